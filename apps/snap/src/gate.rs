//! Operations, and the cuts between them.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// What separates operations from cuts: threads hold it shared for each operation that writes, a checkpoint takes it
/// alone for the cut. A cut that waits goes before operations that come after it.
///
/// A thread must not enter again while it has a pass: a cut that waits between would let neither go on.
#[derive(Debug, Default)]
pub struct Gate(RwLock<()>);

/// An operation in progress; it ends when this is dropped.
#[derive(Debug)]
pub struct Pass<'g>(#[allow(dead_code, reason = "held, not read")] RwLockReadGuard<'g, ()>);

impl Gate {
    /// An open gate.
    pub const fn new() -> Self {
        Self(RwLock::new(()))
    }

    /// Begin an operation; waits for a cut to end.
    pub fn enter(&self) -> Pass<'_> {
        // It guards no data that a panic could have left half changed.
        Pass(self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Wait for all operations to end, and keep others out.
    pub fn close(&self) -> RwLockWriteGuard<'_, ()> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

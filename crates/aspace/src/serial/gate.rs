//! The gate that fork closes before it takes the first right to store away, and opens after the flush: meanwhile no private page is
//! filled or copied (`bonsai.rs`, R13).

use sync::{
    mutant,
    primitive::{AtomicU64, Ordering},
};

/// See the module.
pub struct Gate {
    /// Odd while it is closed. Only who has the mappings locked closes and opens it.
    turns: AtomicU64,
}

impl Gate {
    /// It is open.
    pub fn new() -> Self {
        Self { turns: AtomicU64::new(0) }
    }
    /// Before any leaf is locked to lower an entry.
    pub fn close(&self) {
        // Relaxed: faults look at the gate under a lock that is taken after this, that of a leaf or of the table above it.
        self.turns.fetch_add(1, Ordering::Relaxed);
    }
    /// After the flush.
    pub fn open(&self) {
        let after = if mutant!("bonsai-gate-unordered") { Ordering::Relaxed } else { Ordering::Release };
        // Release: who finds the gate open comes after the flush; partner: the load in `is_open`.
        self.turns.fetch_add(1, after);
    }
    /// Whether no fork is under way. Asked under a leaf's lock, or that of the table in which one is to be linked.
    pub fn is_open(&self) -> bool {
        // Acquire: flushed before the gate is open; partner: `open`. That it is seen closed in time is by the lock.
        self.turns.load(Ordering::Acquire).is_multiple_of(2)
    }
}

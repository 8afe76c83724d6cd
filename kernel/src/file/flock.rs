//! Whole-file locks by `flock`: owned by an open file, shared or exclusive.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use sync::SpinLock;

use super::Result;
use crate::{errno::Errno, wait::WaitQueue};

/// The lock of one inode.
pub struct Flock {
    state: SpinLock<State>,
    /// How many owners there are: so that who closes a file which nobody has locked writes nothing.
    count: AtomicUsize,
    changed: WaitQueue,
}

struct State {
    /// The open files that hold the lock, by a number of their own.
    owners: Vec<u64>,
    exclusive: bool,
}

impl Default for Flock {
    fn default() -> Self {
        Self::new()
    }
}

impl Flock {
    /// Not locked.
    pub const fn new() -> Self {
        Self {
            state: SpinLock::new(State { owners: Vec::new(), exclusive: false }),
            count: AtomicUsize::new(0),
            changed: WaitQueue::new(),
        }
    }

    fn attempt(&self, owner: u64, exclusive: bool) -> Option<()> {
        let mut state = self.state.lock();
        let alone = state.owners.iter().all(|&o| o == owner);
        if !alone && (exclusive || state.exclusive) {
            return None;
        }
        if !state.owners.contains(&owner) {
            state.owners.push(owner);
            // Relaxed: as in `unlock`.
            self.count.store(state.owners.len(), Ordering::Relaxed);
        }
        state.exclusive = exclusive;
        Some(())
    }

    /// Lock for the open file `owner`, or change the kind of its lock; waits for others unless `block` is false
    /// (EAGAIN). As on Linux a change lets go of the old lock first.
    pub fn lock(&self, owner: u64, exclusive: bool, block: bool) -> Result<()> {
        if self.attempt(owner, exclusive).is_none() {
            self.unlock(owner);
            if !block {
                return Err(Errno::EAGAIN);
            }
            self.changed.wait(None, true, || self.attempt(owner, exclusive)).map_err(|_| Errno::RESTART)?;
        }
        self.changed.wake_all();
        Ok(())
    }

    /// Let go of the lock of `owner`, if it has one.
    pub fn unlock(&self, owner: u64) {
        // Relaxed: who has a lock comes after the call that took it, which stored that; as long as it has it there is one.
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let had = {
            let mut state = self.state.lock();
            let before = state.owners.len();
            state.owners.retain(|&o| o != owner);
            if state.owners.is_empty() {
                state.exclusive = false;
            }
            self.count.store(state.owners.len(), Ordering::Relaxed);
            before != state.owners.len()
        };
        if had {
            self.changed.wake_all();
        }
    }
}

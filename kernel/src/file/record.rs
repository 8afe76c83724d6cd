//! Locks on parts of files by `fcntl`: owned by a table of descriptors, so by a process, or by an open file.
//!
//! A process's locks on a file go when it closes any descriptor of that file (fcntl(2)); an open file's go with it. The
//! locks of one owner never overlap, and neighbours of one kind are one lock. Nobody looks for deadlocks.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use sync::SpinLock;

use super::Result;
use crate::{errno::Errno, wait::WaitQueue};

/// Whose a lock is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// A table of descriptors, by its number.
    Table(u64),
    /// An open file, by its number.
    File(u64),
}

/// A lock, or one that is asked for.
#[derive(Clone, Copy)]
pub struct Record {
    /// Whose it is.
    pub owner: Owner,
    /// The process that asked.
    pub pid: u32,
    /// First byte.
    pub start: u64,
    /// Last byte.
    pub last: u64,
    /// Nobody else may have a lock there, not even a shared one.
    pub exclusive: bool,
}

impl Record {
    fn overlaps(&self, other: &Record) -> bool {
        self.start <= other.last && other.start <= self.last
    }
    fn excludes(&self, other: &Record) -> bool {
        self.owner != other.owner && (self.exclusive || other.exclusive) && self.overlaps(other)
    }
}

/// The locks on parts of one inode.
pub struct Records {
    held: SpinLock<Vec<Record>>,
    /// How many there are, so that closing a file without any costs nothing.
    count: AtomicUsize,
    changed: WaitQueue,
}

impl Records {
    /// None.
    pub const fn new() -> Self {
        Self { held: SpinLock::new(Vec::new()), count: AtomicUsize::new(0), changed: WaitQueue::new() }
    }

    /// A lock that stands in the way of `wanted`: the one that begins first.
    pub fn obstacle(&self, wanted: &Record) -> Option<Record> {
        let held = self.held.lock();
        held.iter().filter(|record| record.excludes(wanted)).min_by_key(|record| record.start).copied()
    }

    /// Take `wanted` in place of what its owner has there; waits for others if `block`. EAGAIN, ENOLCK without memory,
    /// RESTART for a signal.
    pub fn lock(&self, wanted: &Record, block: bool) -> Result<()> {
        let attempt = || {
            let mut held = self.held.lock();
            if held.iter().any(|record| record.excludes(wanted)) {
                return None;
            }
            Some(self.replace(&mut held, wanted, true))
        };
        let taken = match attempt() {
            Some(taken) => taken,
            None if !block => return Err(Errno::EAGAIN),
            None => self.changed.wait(None, true, attempt).map_err(|_| Errno::RESTART)?,
        };
        self.changed.wake_all();
        taken
    }

    /// Let go of what the owner has in the range of `range`. ENOLCK without memory for the rest of a lock that is split.
    pub fn unlock(&self, range: &Record) -> Result<()> {
        let result = self.replace(&mut self.held.lock(), range, false);
        self.changed.wake_all();
        result
    }

    /// Let go of all that `owner` has.
    pub fn release(&self, owner: Owner) {
        // Relaxed: a lock that the caller must see was taken before, as far as the program can tell.
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut held = self.held.lock();
        held.retain(|record| record.owner != owner);
        self.count.store(held.len(), Ordering::Relaxed);
        drop(held);
        self.changed.wake_all();
    }

    /// Cut `new` out of its owner's locks, and put it there if `keep`.
    fn replace(&self, held: &mut Vec<Record>, new: &Record, keep: bool) -> Result<()> {
        // One lock can become two, and the new one.
        held.try_reserve(2).map_err(|_| Errno::ENOLCK)?;
        let mut new = *new;
        let mut upper = None;
        held.retain_mut(|record| {
            if record.owner != new.owner {
                return true;
            }
            if keep && record.exclusive == new.exclusive {
                let touches =
                    record.start <= new.last.saturating_add(1) && new.start <= record.last.saturating_add(1);
                if touches {
                    (new.start, new.last) = (new.start.min(record.start), new.last.max(record.last));
                }
                return !touches;
            }
            if !record.overlaps(&new) {
                return true;
            }
            if record.last > new.last {
                upper = Some(Record { start: new.last + 1, ..*record });
            }
            if record.start < new.start {
                record.last = new.start - 1;
                return true;
            }
            false
        });
        held.extend(upper);
        if keep {
            held.push(new);
        }
        // Relaxed: as in `release`.
        self.count.store(held.len(), Ordering::Relaxed);
        Ok(())
    }
}

//! What one CPU keeps: a stack of free single frames, and its share of the counters.
//!
//! Only the CPU itself writes here, with plain (Relaxed) loads and stores; others read when they count.

use core::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use percpu::Pinned;

use crate::Use;

/// The largest batch, in frames.
pub(crate) const MAX_BATCH: usize = 64;

/// One CPU's lines; valid as zeroed memory. 128 bytes, since adjacent lines are prefetched in pairs.
#[repr(C, align(128))]
pub(crate) struct Cache {
    /// Height of the stack, in frames.
    height: AtomicUsize,
    /// Frames taken less frames given back on this CPU, by use.
    owned: [AtomicI64; Use::COUNT],
    /// Times that this CPU went to the pool.
    trips: AtomicU64,
    /// The stack, as numbers of frames from the first one.
    stack: [AtomicU32; 2 * MAX_BATCH],
}

// Relaxed throughout: each word is written by one CPU, and threads on that CPU follow each other by way of its
// scheduler, which orders them; readers on other CPUs want a number and read nothing through it.
const OWN: Ordering = Ordering::Relaxed;

impl Cache {
    /// Height of the stack, in frames; from any CPU.
    pub(crate) fn height(&self) -> usize {
        self.height.load(OWN)
    }
    /// Frames taken less frames given back; from any CPU.
    pub(crate) fn owned(&self, usage: Use) -> i64 {
        self.owned[usage as usize].load(OWN)
    }
    /// Times that this CPU went to the pool; from any CPU.
    pub(crate) fn trips(&self) -> u64 {
        self.trips.load(OWN)
    }
    /// Count `n` frames more (or fewer) of `usage`.
    pub(crate) fn count(&self, _: &Pinned<'_>, usage: Use, n: i64) {
        let word = &self.owned[usage as usize];
        word.store(word.load(OWN) + n, OWN);
    }
    /// Count one visit to the pool.
    pub(crate) fn count_trip(&self, _: &Pinned<'_>) {
        self.trips.store(self.trips.load(OWN) + 1, OWN);
    }
    /// Take the frame that was put in last.
    pub(crate) fn pop(&self, _: &Pinned<'_>) -> Option<usize> {
        let top = self.height.load(OWN).checked_sub(1)?;
        self.height.store(top, OWN);
        Some(self.stack[top].load(OWN) as usize)
    }
    /// Put a frame in. There is room: the owner keeps the height below twice the batch.
    pub(crate) fn push(&self, _: &Pinned<'_>, frame: usize) {
        let top = self.height.load(OWN);
        self.stack[top].store(frame as u32, OWN);
        self.height.store(top + 1, OWN);
    }
    /// Take the `n` frames that have been in longest, whose bytes this CPU's caches have most likely lost.
    pub(crate) fn take_oldest(&self, _: &Pinned<'_>, n: usize, mut each: impl FnMut(usize)) {
        let height = self.height.load(OWN);
        let n = n.min(height);
        self.stack[..n].iter().for_each(|slot| each(slot.load(OWN) as usize));
        for at in n..height {
            self.stack[at - n].store(self.stack[at].load(OWN), OWN);
        }
        self.height.store(height - n, OWN);
    }
}

//! What happened, counted by each CPU for itself.

use core::sync::atomic::{AtomicU64, Ordering};

/// How often what happened since the domain was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Changes held back for an object that a flush brought to its count.
    pub flushed: u64,
    /// The same, brought outside a flush because another object needed the place, or the number grew too large.
    pub evicted: u64,
    /// Objects whose count was found at 0, and which were queued for review.
    pub queued: u64,
    /// Queued objects that another change found at 0.
    pub dirtied: u64,
    /// Objects that had to be queued again at their review.
    pub requeued: u64,
    /// Weak references that became strong while the object was dying.
    pub revived: u64,
    /// Objects disposed of.
    pub freed: u64,
}

impl Stats {
    pub(crate) fn add(&mut self, other: &Self) {
        let Self { flushed, evicted, queued, dirtied, requeued, revived, freed } = other;
        self.flushed += flushed;
        self.evicted += evicted;
        self.queued += queued;
        self.dirtied += dirtied;
        self.requeued += requeued;
        self.revived += revived;
        self.freed += freed;
    }
}

/// One CPU's counts: written by that CPU alone, read by all. Core's atomics under loom too: nothing depends on them.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) flushed: Count,
    pub(crate) evicted: Count,
    pub(crate) queued: Count,
    pub(crate) dirtied: Count,
    pub(crate) requeued: Count,
    pub(crate) revived: Count,
    pub(crate) freed: Count,
}

impl Counts {
    pub(crate) fn read(&self) -> Stats {
        Stats {
            flushed: self.flushed.read(),
            evicted: self.evicted.read(),
            queued: self.queued.read(),
            dirtied: self.dirtied.read(),
            requeued: self.requeued.read(),
            revived: self.revived.read(),
            freed: self.freed.read(),
        }
    }
}

#[derive(Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    /// One more. By the owner alone, so no read-modify-write is needed.
    #[inline]
    pub(crate) fn up(&self) {
        // Relaxed, both: a figure, which orders nothing.
        self.0.store(self.0.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
    fn read(&self) -> u64 {
        // Relaxed: as above.
        self.0.load(Ordering::Relaxed)
    }
}

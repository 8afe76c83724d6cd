//! What each CPU does now and then: flush, and review.
//!
//! The timer's interrupt only raises a flag; [`Domain::work`] is called by a thread, or by the idle loop before it halts.
//! Flush and review of a CPU never overlap, as both happen here, and a call within a call does nothing.

use percpu::{CpuId, Pinned};
use sync::mutant;

use crate::{
    Domain, Obj,
    cache::Cache,
    head::{DIRTY, QUEUED, Under},
    primitive::{Ordering, lock},
    word,
};

/// How much [`Domain::work`] does at most before it returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Changes brought to their objects. 0 is none, not even the end of a flush.
    pub flushes: u32,
    /// Objects judged; of these at most [`MAX_DISPOSALS`] are disposed of.
    pub reviews: u32,
}

/// The most objects that one call of [`Domain::work`] disposes of.
pub const MAX_DISPOSALS: u32 = 256;

impl Budget {
    /// Everything that can be done now, but for the bound on disposals.
    pub const ALL: Self = Self { flushes: u32::MAX, reviews: u32::MAX };
}

impl Default for Budget {
    /// A few dozen microseconds.
    fn default() -> Self {
        Self { flushes: 512, reviews: MAX_DISPOSALS }
    }
}

/// What a call of [`Domain::work`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Changes brought to their objects.
    pub flushed: u32,
    /// Objects judged.
    pub reviewed: u32,
    /// Objects disposed of.
    pub freed: u32,
    /// The budget was used up: call again soon.
    pub more: bool,
}

/// What a review finds.
enum Verdict {
    Alive,
    Again,
    Dead,
}

impl<const WAYS: usize> Domain<WAYS> {
    /// Whether [`Self::work`] has something to do on this CPU: asked after a tick, by a thread. (The tick's handler has no
    /// `Pinned`: it may have interrupted one who is at work.)
    pub fn due(&self, pin: &Pinned<'_>) -> bool {
        let (cache, epoch) = (self.cache(pin), self.tree.epoch());
        Self::mine(cache, |mine| {
            mine.member && (mine.flushing || mine.local != epoch || mine.review.has_due(epoch))
        })
    }
    /// Let the next four epochs follow each other without waiting for ticks, so that what is dead now is disposed of.
    pub fn expedite(&self) {
        // Relaxed: a hint.
        self.hurry.0.fetch_max(self.tree.epoch() + 4, Ordering::Relaxed);
    }
    /// Whether [`Self::expedite`] asks for [`Self::work`] before the next tick.
    pub fn hurried(&self) -> bool {
        // Relaxed: a hint. Without members the epoch stands still.
        self.hurry.0.load(Ordering::Relaxed) > self.tree.epoch() && self.tree.has_members()
    }

    /// The manager's round on this CPU: bring what was held back to its objects, once in an epoch, and judge the objects
    /// that are due. In thread context, at each tick (10 ms or more) and while [`Work::more`] or [`Self::hurried`] say so.
    /// Within a [`Counted::dispose`](crate::Counted::dispose) it does nothing. A CPU that isn't a member has no work.
    ///
    /// All members must call it again and again, or leave: as long as one doesn't, nothing is disposed of.
    pub fn work(&self, pin: &Pinned<'_>, budget: Budget) -> Work {
        let (cache, mut work) = (self.cache(pin), Work::default());
        let begun = Self::mine(cache, |mine| mine.member && !core::mem::replace(&mut mine.working, true));
        if !begun {
            return work;
        }
        /// Ends the work, even if an object's end panics.
        struct Working<'a, const WAYS: usize>(&'a Cache<WAYS>);
        impl<const WAYS: usize> Drop for Working<'_, WAYS> {
            fn drop(&mut self) {
                Domain::mine(self.0, |mine| mine.working = false);
            }
        }
        let _working = Working(cache);
        if self.flush(cache, pin.cpu(), budget.flushes, &mut work) {
            self.adopt(cache);
            self.review(cache, pin, budget.reviews, &mut work);
        }
        work
    }
    /// Whether this CPU's flush of the present epoch is complete.
    fn flush(&self, cache: &Cache<WAYS>, cpu: CpuId, budget: u32, work: &mut Work) -> bool {
        let epoch = self.tree.epoch();
        let flushing = Self::mine(cache, |mine| {
            if !mine.flushing && mine.local != epoch {
                mine.begin_flush(epoch);
            }
            mine.flushing
        });
        if !flushing {
            return true;
        }
        loop {
            if work.flushed >= budget {
                work.more = true;
                return false;
            }
            let Some((o, delta)) = Self::mine(cache, |mine| cache.ways.pop(mine, false)) else { break };
            if delta == 0 && mutant!("refcache-zero-skip") {
                continue;
            }
            cache.counts.flushed.up();
            work.flushed += 1;
            // The epoch is exactly this CPU's until it arrives. When it is one more, some CPU may still hold back what it
            // did before this; when it is two more, none.
            let wait = if mutant!("refcache-review-early") { 1 } else { 2 };
            // SAFETY: this CPU held the change back.
            unsafe { self.evict(cache, o, delta, wait) };
        }
        Self::mine(cache, |mine| mine.flushing = false);
        self.tree.arrive(cpu);
        true
    }
    /// Take over what CPUs left to be reviewed.
    fn adopt(&self, cache: &Cache<WAYS>) {
        if self.has_orphans() {
            let mut orphans = lock(&self.orphans.0.list);
            self.orphans.0.any.store(false, Ordering::Relaxed);
            Self::mine(cache, |mine| mine.review.list(mine.local + 3).append(&mut orphans));
        }
    }
    /// Whether CPUs that have left were to review something that nobody has taken over yet.
    pub fn has_orphans(&self) -> bool {
        // Relaxed: a hint; the lock orders the list.
        self.orphans.0.any.load(Ordering::Relaxed)
    }
    fn review(&self, cache: &Cache<WAYS>, pin: &Pinned<'_>, budget: u32, work: &mut Work) {
        let now = self.tree.epoch();
        while work.reviewed < budget && work.freed < MAX_DISPOSALS {
            let Some(o) = Self::mine(cache, |mine| mine.review.due(now).pop()) else { return };
            work.reviewed += 1;
            if let Verdict::Dead = self.judge(cache, o, now) {
                work.freed += 1;
                cache.counts.freed.up();
                // SAFETY: two epochs after its count was 0 no CPU holds a change back, and it was 0 all the time: nobody
                // has a reference. Nobody gets one, as its weak word is empty.
                unsafe { o.dispose(pin) };
            }
        }
        work.more = Self::mine(cache, |mine| mine.review.has_due(now));
    }
    /// Whether an object that was queued two epochs ago is dead. It is off the list.
    fn judge(&self, cache: &Cache<WAYS>, o: Obj, now: u64) -> Verdict {
        let verdict = |state: &mut u64, under: &mut Under| {
            // SAFETY: the word lives as long as it is the object's.
            let weak = under.weak.map(|weak| unsafe { weak.as_ref() });
            if under.count != 0 {
                *state &= !QUEUED;
                weak.inspect(|weak| word::unmark(weak, o));
                return Verdict::Alive;
            }
            // Who revived it has unmarked the word.
            if *state & DIRTY == 0 && weak.is_none_or(|weak| word::kill(weak, o)) {
                *state &= !QUEUED;
                return Verdict::Dead;
            }
            // All begins anew: two epochs from now nobody can have revived it unseen before it was marked here.
            *state &= !DIRTY;
            weak.inspect(|weak| word::mark(weak, o));
            cache.counts.requeued.up();
            Self::mine(cache, |mine| {
                // The epoch is this CPU's or one more by now, and others may have flushed in it: as outside a flush.
                let due = match () {
                    () if mutant!("refcache-requeue-local") => mine.local + 2,
                    () if mutant!("refcache-requeue-epoch") => now + 2,
                    () => mine.local + 3,
                };
                // SAFETY: the object is alive, this CPU's, off the list, and locked.
                unsafe { mine.review.list(due).push(o) };
            });
            Verdict::Again
        };
        // SAFETY: queued objects are alive.
        unsafe { o.head() }.locked(verdict)
    }
}

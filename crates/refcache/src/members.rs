//! Which CPUs take part in the epochs.
//!
//! Who isn't a member holds nothing back, so nobody needs to wait for it. It joins before it holds anything back, and
//! before it looks at a weak word: between that look and the change that follows, the epochs must wait for it.

use percpu::{CpuId, Pinned};
use sync::mutant;

use crate::{
    Domain,
    cache::{Cache, Mine},
    primitive::{Ordering, lock},
};

impl<const WAYS: usize> Domain<WAYS> {
    #[inline]
    pub(crate) fn join(&self, cache: &Cache<WAYS>, cpu: CpuId) {
        if !Self::mine(cache, |mine| mine.member) {
            self.join_epochs(cache, cpu);
        }
    }
    #[cold]
    fn join_epochs(&self, cache: &Cache<WAYS>, cpu: CpuId) {
        let epoch = self.tree.join(cpu);
        Self::mine(cache, |mine| (mine.member, mine.local, mine.quiet) = (true, epoch, false));
    }
    /// Whether this CPU takes part in the epochs. Who doesn't holds nothing back, and has nothing to review.
    pub fn is_member(&self, pin: &Pinned<'_>) -> bool {
        Self::mine(self.cache(pin), |mine| mine.member)
    }
    /// Leave the epochs for a while, so that nobody waits for this CPU, which has nothing to do. Refused, with
    /// `false`, unless it held nothing back for a whole epoch, and there is nothing for it to review.
    pub fn park(&self, pin: &Pinned<'_>) -> bool {
        let cache = self.cache(pin);
        let orphans = self.has_orphans();
        let idle = |mine: &mut Mine| {
            let holds_nothing = mine.quiet && mine.holds_nothing() || mutant!("refcache-park-holding");
            let idle = holds_nothing && !orphans && mine.review.is_empty() && !mine.working;
            let leaves = mine.member && idle && !mine.flushing;
            mine.member &= !leaves;
            (leaves, !mine.member)
        };
        let (leaves, parked) = Self::mine(cache, idle);
        if leaves {
            self.tree.leave(pin.cpu(), |_| ());
        }
        parked
    }
    /// Take part in the epochs again. [`Self::add`] and [`Self::try_get`] do so by themselves: this is to have it done
    /// before.
    pub fn unpark(&self, pin: &Pinned<'_>) {
        self.join(self.cache(pin), pin.cpu());
    }
    /// Leave the epochs now, for good or for long: bring everything to its objects, and leave the reviews to others. True if
    /// there are no others, and something to review: this CPU should take part again and [work](Self::work), or what is left
    /// waits for the next. Of CPUs that leave at the same time the last is told.
    pub fn leave(&self, pin: &Pinned<'_>) -> bool {
        let cache = self.cache(pin);
        let stays = |mine: &mut Mine| !mine.member || mine.working;
        if Self::mine(cache, stays) {
            return false;
        }
        while let Some((o, delta)) = Self::mine(cache, |mine| cache.ways.pop(mine, true)) {
            cache.counts.evicted.up();
            // SAFETY: this CPU held the change back.
            unsafe { self.evict(cache, o, delta, 3) };
        }
        let mut left = Self::mine(cache, |mine| {
            (mine.member, mine.flushing) = (false, false);
            mine.review.take()
        });
        if !left.is_empty() {
            let mut orphans = lock(&self.orphans.0.list);
            orphans.append(&mut left);
            // Relaxed: a hint; the lock orders the list.
            self.orphans.0.any.store(true, Ordering::Relaxed);
        }
        // What those who left before have left behind is seen here, after them under the gate.
        let members = mutant!("refcache-leave-early").then(|| self.tree.has_members());
        self.tree.leave(pin.cpu(), |still| !members.unwrap_or(still) && self.has_orphans())
    }
}

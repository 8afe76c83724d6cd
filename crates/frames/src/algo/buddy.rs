//! A lane as runs of powers of two, split when they are taken and merged with their buddies later.
//!
//! **Claim.** An allocation is served if and only if an aligned run of its size is free in the blocks held. A size that
//! comes and goes costs neither splits nor merges. The work of a call has a bound that no history raises.
//!
//! **Idea.** The buddy system (Knowlton 1965; Knuth, "The Art of Computer Programming" 1, section 2.5, algorithms R
//! and S): a free run of order k begins at a multiple of 2^k; its *buddy* is the other half of the run of order k + 1
//! that contains it, and when both are free they are merged. Merging at once makes a pair of calls expensive: taking
//! one frame of a free block leaves nine remainders, and putting it back collects them all. So a run that is freed
//! waits first (as in Barkley and Lee, "A Lazy Buddy System Bounded by Two Coalescing Delays per Class", SOSP 1989,
//! with a simpler bound):
//!
//! ```text
//!     free(run) --> waiting[order]: last in, first out --- more than WAITING[order]: the oldest --> settled[order]
//!                     ^ alloc takes from here first                                   merges with settled buddies
//!                                                                                     v
//!     alloc finds no run of its order or above:  all that wait at smaller orders --> settled[larger]
//! ```
//!
//! Allocation takes the smallest run that is large enough, of those a waiting one first; what it splits off is settled.
//! Only when there is none do the smaller waiting runs settle, and it looks once more.
//!
//! **Invariants.**
//! - A frame is free (its bit in `free` is 1) if and only if it lies in one listed run, waiting or settled.
//! - No two settled runs are buddies of each other. So if nothing waits below order k, and an aligned run of 2^k
//!   frames is free, then a run of order k or above is listed: the smallest run within those frames is of order k, or
//!   else it has a buddy within them, which is free, can't be made of smaller runs, and thus is listed as it is: a
//!   contradiction.
//! - The bit of a pair in `pairs` is 1 if and only if one of the two is a settled run of that order. So one bit says
//!   whether to merge.
//! - At most `WAITING[k]` runs wait at order k.
//!
//! **Bounds.** Freeing lets one run settle at most, with 9 merges at most. Allocation splits at most 9 times, after at
//! most 129 runs have settled. Each merge makes one run of two, so over any sequence of calls there are no more merges
//! than runs freed, split off or adopted. Giving a block up lets all settle that waits, and takes the block's runs off
//! the lists, 256 at most. What waits is at most 832 frames, and is in no allocation's way.
//!
//! **Memory.** Links of 2 * 2 bytes a frame, as any frame may begin a run; a free bit a frame and a pair bit for
//! each two of an order: 2176 bytes a block.

use core::alloc::Layout;

use addr::Frame;

use super::{
    Algo, BLOCK, BLOCK_ORDER, FreeRows, Held, Plain, ROW, ROWS, Refused, both, cut, extents, frame, offset,
    place, table,
};

/// Orders of runs.
const ORDERS: usize = BLOCK_ORDER as usize + 1;
/// How many runs of each order may wait: a row's frames, but one run at least; a block has no buddy to wait for.
const WAITING: [u16; ORDERS] = [64, 32, 16, 8, 4, 2, 1, 1, 1, 0];
/// No run. There are at most 2^14 frames, so it is none of them.
const NIL: u16 = u16::MAX;

/// Neighbours of a run on its list, at the index of its first frame.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Link {
    next: u16,
    prev: u16,
}

// SAFETY: two integers of the same size.
unsafe impl Plain for Link {}

/// A list of runs of one order.
#[derive(Clone, Copy, Debug)]
struct List {
    first: u16,
    last: u16,
    len: u16,
}

/// The lists of one kind.
#[derive(Debug)]
struct Lists {
    list: [List; ORDERS],
    /// A bit for each order whose list isn't empty.
    orders: u32,
}

/// Runs by order.
pub(crate) struct Buddy<'m> {
    held: Held,
    waiting: Lists,
    settled: Lists,
    /// By index of a frame: 512 times its slot, and its place in the block.
    links: &'m mut [Link],
    /// Eight words for each slot: a bit for each frame, 1 for free.
    free: &'m mut [u64],
    /// Eight words for each slot: a bit for each pair of buddies, see [`pair`].
    pairs: &'m mut [u64],
}

impl Lists {
    const fn new() -> Self {
        Self { list: [List { first: NIL, last: NIL, len: 0 }; ORDERS], orders: 0 }
    }
    /// The smallest order from `order` on of which there is a run.
    fn smallest(&self, order: usize) -> Option<usize> {
        let orders = self.orders >> order;
        (orders != 0).then(|| order + orders.trailing_zeros() as usize)
    }
    fn push(&mut self, links: &mut [Link], order: usize, run: usize) {
        let list = &mut self.list[order];
        let run16 = run as u16;
        links[run] = Link { next: list.first, prev: NIL };
        match list.first {
            NIL => list.last = run16,
            next => links[usize::from(next)].prev = run16,
        }
        list.first = run16;
        list.len += 1;
        self.orders |= 1 << order;
    }
    fn remove(&mut self, links: &mut [Link], order: usize, run: usize) {
        let list = &mut self.list[order];
        let Link { next, prev } = links[run];
        match prev {
            NIL => list.first = next,
            _ => links[usize::from(prev)].next = next,
        }
        match next {
            NIL => list.last = prev,
            _ => links[usize::from(next)].prev = prev,
        }
        list.len -= 1;
        if list.len == 0 {
            self.orders &= !(1 << order);
        }
    }
}

/// The bit of the pair that a run of `order` < 9 makes with its buddy: as (word, mask). Pairs are numbered as the run
/// they would merge into is in a complete binary tree: the block 1, its halves 2 and 3, their halves 4 to 7.
fn pair(run: usize, order: usize) -> (usize, u64) {
    let above = order + 1;
    let number = (1 << (BLOCK_ORDER as usize - above)) + ((run % BLOCK) >> above);
    (run / BLOCK * ROWS + number / ROW, 1 << (number % ROW))
}

impl<'m> Buddy<'m> {
    /// An instance without blocks, in memory of [`Algo::layout`]. Panics if that is too short.
    pub(crate) fn new(blocks: usize, mut memory: &'m mut [u8]) -> Self {
        let (free, pairs) = (cut(&mut memory, blocks * ROWS), cut(&mut memory, blocks * ROWS));
        let links = cut(&mut memory, blocks * BLOCK);
        free.fill(0);
        pairs.fill(0);
        Self { held: Held::new(blocks), waiting: Lists::new(), settled: Lists::new(), links, free, pairs }
    }

    /// Take the best run for `order` off its list, and answer it and its order.
    fn find(&mut self, order: usize) -> Option<(usize, usize)> {
        match (self.waiting.smallest(order), self.settled.smallest(order)) {
            (Some(k), s) if s.is_none_or(|s| k <= s) => {
                let run = usize::from(self.waiting.list[k].first);
                self.waiting.remove(self.links, k, run);
                Some((run, k))
            }
            (_, Some(k)) => {
                let run = usize::from(self.settled.list[k].first);
                self.unsettle(run, k);
                Some((run, k))
            }
            (_, None) => None,
        }
    }
    /// Let the run of `order` that has waited longest settle.
    fn settle_oldest(&mut self, order: usize) {
        let run = usize::from(self.waiting.list[order].last);
        self.waiting.remove(self.links, order, run);
        self.settle(run, order);
    }
    /// Let all runs below `order` that wait settle.
    fn settle_below(&mut self, order: usize) {
        for k in 0..order {
            while self.waiting.list[k].len > 0 {
                self.settle_oldest(k);
            }
        }
    }
    /// Put a run that is on no list on the settled one, merged with its buddy if that is settled, and so on upwards.
    fn settle(&mut self, mut run: usize, mut order: usize) {
        while order < ORDERS - 1 && self.is_half_settled(run, order) {
            self.unsettle(run ^ (1 << order), order);
            run &= !(1 << order);
            order += 1;
        }
        self.settled.push(self.links, order, run);
        self.flip(run, order);
    }
    /// Take a settled run off its list.
    fn unsettle(&mut self, run: usize, order: usize) {
        self.settled.remove(self.links, order, run);
        self.flip(run, order);
    }
    /// Whether, of an unlisted run and its buddy, the buddy is settled.
    fn is_half_settled(&self, run: usize, order: usize) -> bool {
        let (word, mask) = pair(run, order);
        self.pairs[word] & mask != 0
    }
    /// A run of `order` was settled or is no longer so.
    fn flip(&mut self, run: usize, order: usize) {
        if order < ORDERS - 1 {
            let (word, mask) = pair(run, order);
            self.pairs[word] ^= mask;
        }
    }
    /// The words of `free` in which the 2^`order` frames from `run` on have their bits, and the bits, the same in each.
    fn bits(&mut self, run: usize, order: u32) -> (&mut [u64], u64) {
        let slot = run / BLOCK * ROWS;
        let (rows, bits) = place(run % BLOCK, order);
        (&mut self.free[slot + rows.start..slot + rows.end], bits)
    }
}

/// The runs that free frames of a block make when none is left to merge, as (first, order).
///
/// From the low end of an extent on, the longest aligned run that fits begins there. Its buddy is then not free or not
/// of the same order: it would begin before the extent, or end after it, or the run would have been twice as long.
fn merged(free: &FreeRows) -> impl Iterator<Item = (usize, usize)> {
    extents(free).flat_map(|(first, len)| {
        let (mut at, end) = (first, first + len);
        core::iter::from_fn(move || {
            let run = at;
            let longest = (end - run).checked_ilog2()?;
            let order = longest.min(run.trailing_zeros());
            at += 1 << order;
            Some((run, order as usize))
        })
    })
}

impl Algo for Buddy<'_> {
    fn layout(blocks: usize) -> Layout {
        both(table::<u64>(2 * blocks * ROWS), table::<Link>(blocks * BLOCK))
    }
    fn held(&self) -> &Held {
        &self.held
    }
    fn adopt(&mut self, first: Frame, free: &FreeRows) -> bool {
        let Some(slot) = self.held.add(first) else { return false };
        self.free[slot * ROWS..][..ROWS].copy_from_slice(free);
        for (run, order) in merged(free) {
            self.settle(slot * BLOCK + run, order);
            self.held.count_freed(slot, 1 << order);
        }
        true
    }
    fn alloc(&mut self, order: u32) -> Option<Frame> {
        if order > BLOCK_ORDER {
            return None;
        }
        let wanted = order as usize;
        let (run, mut have) = match self.find(wanted) {
            Some(found) => found,
            None => {
                self.settle_below(wanted);
                self.find(wanted)?
            }
        };
        while have > wanted {
            have -= 1;
            self.settle(run + (1 << have), have);
        }
        let (rows, bits) = self.bits(run, order);
        rows.iter_mut().for_each(|row| *row &= !bits);
        let slot = run / BLOCK;
        self.held.count_taken(slot, 1 << order);
        Some(frame(self.held.first(slot).number() + (run % BLOCK) as u64))
    }
    fn free(&mut self, first: Frame, order: u32) -> Result<(), Refused> {
        let slot = self.held.slot(first).ok_or(Refused::NotHeld)?;
        let run = slot * BLOCK + offset(first);
        let (rows, bits) = self.bits(run, order);
        if rows.iter().any(|row| row & bits != 0) {
            return Err(Refused::DoubleFree);
        }
        rows.iter_mut().for_each(|row| *row |= bits);
        self.held.count_freed(slot, 1 << order);
        let order = order as usize;
        self.waiting.push(self.links, order, run);
        if self.waiting.list[order].len > WAITING[order] {
            self.settle_oldest(order);
        }
        Ok(())
    }
    fn give_up(&mut self, block: Frame) -> Option<FreeRows> {
        let slot = self.held.slot(block)?;
        self.settle_below(ORDERS);
        let mut free = [0; ROWS];
        free.copy_from_slice(&self.free[slot * ROWS..][..ROWS]);
        // Nothing waits, so the block's runs are what its bits say.
        for (run, order) in merged(&free) {
            self.unsettle(slot * BLOCK + run, order);
        }
        self.free[slot * ROWS..][..ROWS].fill(0);
        self.held.remove(slot);
        Some(free)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, vec::Vec};

    use proptest::prelude::*;

    use super::{super::tests::*, *};

    impl Buddy<'_> {
        /// The runs of a list, newest first, after a look at its links.
        fn runs_of(&self, lists: &Lists, order: usize) -> Vec<usize> {
            let list = lists.list[order];
            let (mut runs, mut at, mut prev) = (Vec::new(), list.first, NIL);
            while at != NIL {
                let link = self.links[usize::from(at)];
                assert_eq!(link.prev, prev);
                runs.push(usize::from(at));
                (prev, at) = (at, link.next);
            }
            assert_eq!((list.last, usize::from(list.len)), (prev, runs.len()));
            assert_eq!(lists.orders >> order & 1 == 1, !runs.is_empty());
            runs
        }
        fn settled_runs(&self) -> Vec<Vec<usize>> {
            (0..ORDERS).map(|order| self.runs_of(&self.settled, order)).collect()
        }
    }

    impl Check for Buddy<'_> {
        fn checked(&self) -> Vec<u64> {
            let (mut listed, mut pairs) = (BTreeSet::new(), std::vec![0; self.pairs.len()]);
            for (order, most) in WAITING.into_iter().enumerate() {
                let waiting = self.runs_of(&self.waiting, order);
                let settled = self.runs_of(&self.settled, order);
                assert!(waiting.len() <= most.into(), "{} wait at order {order}", waiting.len());
                for run in settled.iter().filter(|_| order < 9) {
                    let (word, mask) = pair(*run, order);
                    assert_eq!(pairs[word] & mask, 0, "{run:#x} of order {order} and its buddy are settled");
                    pairs[word] |= mask;
                }
                for run in waiting.into_iter().chain(settled) {
                    assert!(run.is_multiple_of(1 << order));
                    (run..run + (1 << order))
                        .for_each(|at| assert!(listed.insert(at), "{at:#x} is listed twice"));
                }
            }
            assert_eq!(pairs, self.pairs);
            let bit = |at: &usize| self.free[at / ROW] >> (at % ROW) & 1 == 1;
            let free: Vec<_> = (0..self.links.len()).filter(bit).collect();
            assert!(listed.iter().eq(&free), "the lists and the bits differ");
            let mut free: Vec<_> = free
                .into_iter()
                .map(|at| self.held.first(at / BLOCK).number() + (at % BLOCK) as u64)
                .collect();
            free.sort_unstable();
            free
        }
        fn answers_well(&self, before: &BTreeSet<u64>, order: u32, got: Option<u64>) -> bool {
            got.is_some() == lowest_run(before, order).is_some()
        }
    }

    model_tests!(Buddy);

    /// Once as many runs of an order have come and gone as may wait, that many come and go without a split or a merge:
    /// the settled runs stay as they are.
    #[test]
    fn a_size_that_comes_and_goes_neither_splits_nor_merges() {
        for order in 0..BLOCK_ORDER {
            let mut buddy = Buddy::new(2, memory::<Buddy>(2));
            assert!(buddy.adopt(frame(512), &[!0; ROWS]) && buddy.adopt(frame(1024), &[!0; ROWS]));
            let most = WAITING[order as usize];
            let mut settled = None;
            for n in [most].into_iter().chain(1..=most) {
                let runs: Vec<_> = (0..n).map(|_| buddy.alloc(order).unwrap()).collect();
                let now = buddy.settled_runs();
                assert_eq!(settled.get_or_insert(now.clone()), &now);
                runs.iter().for_each(|first| buddy.free(*first, order).unwrap());
                assert_eq!(settled.as_ref(), Some(&buddy.settled_runs()));
            }
        }
    }

    #[test]
    fn a_larger_allocation_gathers_what_waits() {
        let mut buddy = Buddy::new(1, memory::<Buddy>(1));
        assert!(buddy.adopt(frame(0), &[0; ROWS]));
        // No two of these merge before the block is asked for: each order waits up to its bound.
        (0..64).for_each(|at| buddy.free(frame(at), 0).unwrap());
        for order in 6..9 {
            buddy.free(frame(1 << order), order).unwrap();
        }
        assert_eq!(buddy.settled.orders, 0);
        assert_eq!(buddy.alloc(9), Some(frame(0)));
        assert_eq!((buddy.waiting.orders, buddy.settled.orders, buddy.free_frames()), (0, 0, 0));
    }

    proptest! {
        #[test]
        fn merged_runs_cover_the_free_frames_and_no_two_are_buddies(free in free_rows()) {
            let runs: Vec<_> = merged(&free).collect();
            let mut covered = [0u64; ROWS];
            for (first, order) in &runs {
                prop_assert!(first.is_multiple_of(1 << order));
                (*first..first + (1 << order)).for_each(|at| covered[at / ROW] |= 1 << (at % ROW));
                prop_assert!(*order == 9 || !runs.contains(&(first ^ (1 << order), *order)));
            }
            prop_assert_eq!(covered, free);
            let frames: usize = runs.iter().map(|(_, order)| 1 << order).sum();
            prop_assert_eq!(frames as u32, free.iter().map(|r| r.count_ones()).sum::<u32>());
        }
    }
}

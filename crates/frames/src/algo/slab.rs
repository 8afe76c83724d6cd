//! A lane as rows of one size each.
//!
//! **Claim.** Allocating and freeing take constant time, and frames come from the row used last, whose bits are in the
//! CPU's cache and whose frames most likely are.
//!
//! **Idea.** After Bonwick ("The Slab Allocator: An Object-Caching Kernel Memory Allocator", USENIX 1994): memory for
//! objects of one size is kept together in pieces, here rows of 64 frames, so that a piece is either of use for its
//! size or comes back whole. A row with some frames free is on its class's list, the one touched last in front; a row
//! with all frames free is of no class and on a list of its own; one with none is on no list, and is found by its
//! address when a frame of it is freed.
//!
//! ```text
//!     class 0:  [..1.11.1]->[1.......]          class 3:  [....1111]          whole:  [11111111]->[11111111]
//!                 ^ allocated from next                                                 for any class
//! ```
//!
//! What a row of some class holds in smaller pieces was not allocated that way, but before the block came here, or is
//! freed in parts: such a row sinks to the class of the piece. It rises again when it is whole.
//!
//! It does not defragment: a long run that is free in a row of a smaller class isn't used as one, and rows are drawn
//! hottest first, not fullest first, so that a row seldom empties. Orders above 5 are not served.
//!
//! **Invariants.**
//! - The free frames of a row of class c make up aligned runs of 2^c. So a row on the list of class c serves order c,
//!   and every smaller one after it has sunk.
//! - A row is on the list of whole rows if all its frames are free, on no list if none is, else on that of its class.
//! - An allocation of order 0 fails only if no frame is free; one of order o only if no row is whole and no row of
//!   class o or above has a free frame.
//!
//! **Memory.** 16 bytes a row: 128 bytes a block.

use core::{alloc::Layout, array};

use addr::Frame;

use super::{
    Algo, FreeRows, Held, Plain, ROW, ROW_ORDER, ROWS, Refused, cut, frame, low_bits, offset, place, runs,
    table,
};

/// Classes, one for each order below a row's.
const CLASSES: usize = ROW_ORDER as usize;
/// The list of rows that are free as a whole.
const WHOLE: usize = CLASSES;
/// No row.
const NIL: u16 = u16::MAX;

/// Free frames of a row, and its neighbours on the list it is on.
#[derive(Clone, Copy, Default, Debug)]
#[repr(C)]
struct Row {
    free: u64,
    next: u16,
    prev: u16,
    class: u16,
    /// So that no byte is padding.
    _zero: u16,
}

// SAFETY: integers, and 8 + 4 * 2 bytes of them, a multiple of 8.
unsafe impl Plain for Row {}
const _: () = assert!(size_of::<Row>() == 16);

impl Row {
    /// The list that the row belongs on.
    fn list(&self) -> Option<usize> {
        match self.free {
            0 => None,
            u64::MAX => Some(WHOLE),
            _ => Some(self.class.into()),
        }
    }
}

/// Rows by class.
pub(crate) struct Slab<'m> {
    held: Held,
    /// Eight for each slot.
    rows: &'m mut [Row],
    /// First rows of the classes' lists, and of the whole ones'.
    heads: [u16; CLASSES + 1],
}

impl<'m> Slab<'m> {
    /// An instance without blocks, in memory of [`Algo::layout`]. Panics if that is too short.
    pub(crate) fn new(blocks: usize, mut memory: &'m mut [u8]) -> Self {
        let rows = cut(&mut memory, blocks * ROWS);
        rows.fill(Row::default());
        Self { held: Held::new(blocks), rows, heads: [NIL; CLASSES + 1] }
    }

    /// Give a row other contents. It is in front of its list afterwards.
    fn set(&mut self, row: usize, free: u64, class: u16) {
        let before = self.rows[row];
        let after = Row { free, class, ..before };
        if before.list() == after.list() && after.list().is_none_or(|list| self.heads[list] == row as u16) {
            self.rows[row] = after;
            return;
        }
        self.unlink(row);
        self.rows[row] = after;
        self.link(row);
    }
    /// Put a row in front of the list that it belongs on, if there is one.
    fn link(&mut self, row: usize) {
        let Some(list) = self.rows[row].list() else { return };
        let next = self.heads[list];
        (self.rows[row].next, self.rows[row].prev) = (next, NIL);
        if next != NIL {
            self.rows[usize::from(next)].prev = row as u16;
        }
        self.heads[list] = row as u16;
    }
    /// Take a row off its list, if it is on one.
    fn unlink(&mut self, row: usize) {
        let Some(list) = self.rows[row].list() else { return };
        let Row { next, prev, .. } = self.rows[row];
        match prev {
            NIL => self.heads[list] = next,
            _ => self.rows[usize::from(prev)].next = next,
        }
        if next != NIL {
            self.rows[usize::from(next)].prev = prev;
        }
    }
    /// The row to allocate a run of `order` from.
    #[inline]
    fn pick(&self, order: usize) -> Option<usize> {
        let mut row = self.heads[order];
        if row == NIL {
            let mut others = [WHOLE].into_iter().chain(order + 1..CLASSES);
            row = others.find_map(|list| (self.heads[list] != NIL).then_some(self.heads[list]))?;
        }
        Some(row.into())
    }
}

impl Algo for Slab<'_> {
    fn layout(blocks: usize) -> Layout {
        table::<Row>(blocks * ROWS)
    }
    fn held(&self) -> &Held {
        &self.held
    }
    fn adopt(&mut self, first: Frame, free: &FreeRows) -> bool {
        let Some(slot) = self.held.add(first) else { return false };
        // Downwards, so that the lowest row comes first.
        for (i, free) in free.iter().enumerate().rev() {
            self.set(slot * ROWS + i, *free, class_of(*free));
            self.held.count_freed(slot, free.count_ones());
        }
        true
    }
    fn alloc(&mut self, order: u32) -> Option<Frame> {
        if order >= ROW_ORDER {
            return None;
        }
        let row = self.pick(order as usize)?;
        let free = self.rows[row].free;
        let at = runs(free, order).trailing_zeros();
        debug_assert!(at < u64::BITS, "a row that doesn't serve its class");
        self.set(row, free & !(low_bits(1 << order) << at), order as u16);
        let slot = row / ROWS;
        self.held.count_taken(slot, 1 << order);
        Some(frame(self.held.first(slot).number() + (row % ROWS * ROW) as u64 + u64::from(at)))
    }
    fn free(&mut self, first: Frame, order: u32) -> Result<(), Refused> {
        let slot = self.held.slot(first).ok_or(Refused::NotHeld)?;
        let (rows, bits) = place(offset(first), order);
        let rows = slot * ROWS + rows.start..slot * ROWS + rows.end;
        if self.rows[rows.clone()].iter().any(|row| row.free & bits != 0) {
            return Err(Refused::DoubleFree);
        }
        for row in rows {
            let Row { free, class, .. } = self.rows[row];
            self.set(row, free | bits, class.min(order as u16));
        }
        self.held.count_freed(slot, 1 << order);
        Ok(())
    }
    fn give_up(&mut self, block: Frame) -> Option<FreeRows> {
        let slot = self.held.slot(block)?;
        self.held.remove(slot);
        Some(array::from_fn(|i| {
            let row = slot * ROWS + i;
            self.unlink(row);
            core::mem::take(&mut self.rows[row]).free
        }))
    }
}

/// The largest class that a row with these free frames can be of.
fn class_of(free: u64) -> u16 {
    // The product puts a run in the place of each of its first frames, and adds up what does not overlap.
    let covered = |class: &u32| runs(free, *class) * low_bits(1 << class);
    (0..ROW_ORDER).rev().find(|class| covered(class) == free).unwrap_or_default() as u16
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, vec, vec::Vec};

    use proptest::prelude::*;

    use super::{super::tests::*, *};

    impl Check for Slab<'_> {
        fn checked(&self) -> Vec<u64> {
            let mut listed = vec![None; self.rows.len()];
            for (list, head) in self.heads.iter().enumerate() {
                let (mut at, mut prev) = (*head, NIL);
                while at != NIL {
                    let row = self.rows[usize::from(at)];
                    assert_eq!(row.prev, prev);
                    assert_eq!(listed[usize::from(at)].replace(list), None, "row {at} is listed twice");
                    (prev, at) = (at, row.next);
                }
            }
            let mut free = Vec::new();
            for (at, row) in self.rows.iter().enumerate() {
                assert_eq!(listed[at], row.list(), "row {at}");
                let first = |i: usize| self.held.first(at / ROWS).number() + (at % ROWS * ROW + i) as u64;
                let runs = (0..ROW).step_by(1 << row.class).map(|i| row.free >> i & low_bits(1 << row.class));
                for run in runs {
                    assert!(run == 0 || run == low_bits(1 << row.class), "{row:?} is not of its class");
                }
                free.extend((0..ROW).filter(|i| row.free >> i & 1 == 1).map(first));
            }
            free.sort_unstable();
            free
        }
        fn answers_well(&self, before: &BTreeSet<u64>, order: u32, got: Option<u64>) -> bool {
            if order >= ROW_ORDER {
                return got.is_none();
            }
            // A call that fails leaves the rows as they were.
            let serves = |row: &Row| row.free == !0 || row.free != 0 && u32::from(row.class) >= order;
            got.is_some() || !self.rows.iter().any(serves) && (order > 0 || before.is_empty())
        }
    }

    model_tests!(Slab);

    fn slab(blocks: usize) -> Slab<'static> {
        Slab::new(blocks, memory::<Slab>(blocks))
    }

    #[test]
    fn the_row_freed_into_last_is_allocated_from_first() {
        let mut slab = slab(1);
        assert!(slab.adopt(frame(512), &[!0; ROWS]));
        let all: Vec<_> = (0..512).map(|_| slab.alloc(0).unwrap()).collect();
        for at in [70, 300, 1, 301, 130] {
            slab.free(all[at], 0).unwrap();
        }
        let rows: Vec<_> = (0..5).map(|_| slab.alloc(0).unwrap().number() / 64 - 8).collect();
        assert_eq!(rows, [2, 4, 4, 0, 1]);
    }

    #[test]
    fn a_whole_row_changes_class_and_a_row_in_use_does_not() {
        let mut slab = slab(1);
        assert!(slab.adopt(frame(0), &[!0; ROWS]));
        let single = slab.alloc(0).unwrap();
        let runs: Vec<_> = (0..7 * 2).map(|_| slab.alloc(5).unwrap()).collect();
        assert!(runs.iter().all(|run| run.number() / 64 != single.number() / 64));
        // Half a row is free, in the class of single frames.
        assert_eq!(slab.alloc(5), None);
        slab.free(single, 0).unwrap();
        assert_eq!(slab.alloc(5).map(|run| run.number() / 64), Some(single.number() / 64));
    }

    #[test]
    fn an_adopted_row_serves_the_runs_it_consists_of() {
        let mut slab = slab(1);
        assert!(slab.adopt(frame(0), &[0, 0xff00, 0, 0xffff_0000, 0, 0, 0xfff0, 0]));
        assert_eq!(slab.alloc(4), Some(frame(3 * 64 + 16)));
        assert_eq!((slab.alloc(4), slab.alloc(3)), (None, Some(frame(64 + 8))));
        // The last row has a run of 8 too, but not of 8 alone.
        assert_eq!((slab.alloc(3), slab.alloc(2)), (None, Some(frame(6 * 64 + 4))));
    }

    #[test]
    fn single_frames_come_from_larger_classes_when_nothing_else_is_left() {
        let mut slab = slab(1);
        assert!(slab.adopt(frame(0), &[!0; ROWS]));
        let runs: Vec<_> = (0..16).map(|_| slab.alloc(5).unwrap()).collect();
        slab.free(runs[3], 5).unwrap();
        assert_eq!(slab.alloc(0), Some(runs[3]));
        assert_eq!(slab.free_frames(), 31);
        // The row has sunk, and serves no run of any size but one frame.
        assert_eq!(slab.alloc(1), None);
        assert!((0..31).all(|_| slab.alloc(0).is_some()));
        assert_eq!(slab.alloc(0), None);
    }

    proptest! {
        #[test]
        fn the_class_is_the_largest_that_covers_the_row(row: u64, with in 0..=5u32) {
            let row = runs(row, with) * low_bits(1 << with);
            let covers = |class: &u32| (0..64).step_by(1 << class).all(|at| {
                let run = row >> at & low_bits(1 << class);
                run == 0 || run == low_bits(1 << class)
            });
            let expected = (0..ROW_ORDER).filter(covers).max().unwrap_or_default();
            prop_assert_eq!(u32::from(class_of(row)), expected);
        }
    }
}

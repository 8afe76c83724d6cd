//! A lane as a tree of free extents: first fit, the lowest address first.
//!
//! **Claim.** An allocation is served if and only if an aligned run of its size is free in the blocks held, and from
//! the lowest address; what is freed is whole again at once.
//!
//! **Idea.** The [tree](super::tree) of Fiasco.OC's L4Re, one for each CPU, as Tian, Waddington and Kuang propose. It
//! is here to be compared with, and for programs that want their memory dense: time rises with the logarithm of the
//! number of extents, as they measured, where the other algorithms have a constant.
//!
//! **Invariants.** Those of the tree. Extents go across blocks that are neighbours, and are cut at a block's bounds
//! when it is given up. A block's 512 frames make at most 256 maximal runs, and one that goes across a bound counts in
//! one of its blocks, so 256 nodes a block always suffice. A run of up to 512 aligned frames lies in one block: only
//! the counts of that one change.
//!
//! **Memory.** 24 bytes a node: 6144 bytes a block, and 24.

use core::alloc::Layout;

use addr::Frame;

use super::{
    Algo, BLOCK, BLOCK_ORDER, FreeRows, Held, ROW, ROWS, Refused, cut, extents, frame, table,
    tree::{Node, Tree},
};

/// Most extents in a block: every other frame.
const EXTENTS: usize = BLOCK / 2;

/// Free extents by address.
pub(crate) struct Avl<'m> {
    held: Held,
    tree: Tree<'m>,
}

impl<'m> Avl<'m> {
    /// An instance without blocks, in memory of [`Algo::layout`]. Panics if that is too short.
    pub(crate) fn new(blocks: usize, mut memory: &'m mut [u8]) -> Self {
        let nodes = cut(&mut memory, Tree::nodes(blocks * EXTENTS));
        Self { held: Held::new(blocks), tree: Tree::new(nodes) }
    }
}

impl Algo for Avl<'_> {
    fn layout(blocks: usize) -> Layout {
        table::<Node>(Tree::nodes(blocks * EXTENTS))
    }
    fn held(&self) -> &Held {
        &self.held
    }
    fn adopt(&mut self, first: Frame, free: &FreeRows) -> bool {
        let Some(slot) = self.held.add(first) else { return false };
        for (at, len) in extents(free) {
            let given = self.tree.give(first.number() + at as u64, len as u32);
            debug_assert!(given.is_ok(), "a frame of a block not held was free");
            self.held.count_freed(slot, len as u32);
        }
        true
    }
    fn alloc(&mut self, order: u32) -> Option<Frame> {
        if order > BLOCK_ORDER {
            return None;
        }
        let first = frame(self.tree.take(order)?);
        let slot = self.held.slot(first)?;
        self.held.count_taken(slot, 1 << order);
        Some(first)
    }
    fn free(&mut self, first: Frame, order: u32) -> Result<(), Refused> {
        debug_assert!(order <= BLOCK_ORDER && first.number().is_multiple_of(1 << order));
        let slot = self.held.slot(first).ok_or(Refused::NotHeld)?;
        self.tree.give(first.number(), 1 << order).map_err(|_| Refused::DoubleFree)?;
        self.held.count_freed(slot, 1 << order);
        Ok(())
    }
    fn give_up(&mut self, block: Frame) -> Option<FreeRows> {
        let slot = self.held.slot(block)?;
        let start = self.held.first(slot).number();
        let mut free = [0; ROWS];
        self.tree.take_within(start, start + BLOCK as u64, |first, len| {
            let first = (first - start) as usize;
            (first..first + len as usize).for_each(|at| free[at / ROW] |= 1 << (at % ROW));
        });
        self.held.remove(slot);
        Some(free)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, vec::Vec};

    use super::{super::tests::*, *};

    impl Check for Avl<'_> {
        fn checked(&self) -> Vec<u64> {
            self.tree.checked().into_iter().flat_map(|(first, len)| first..first + u64::from(len)).collect()
        }
        fn answers_well(&self, before: &BTreeSet<u64>, order: u32, got: Option<u64>) -> bool {
            got == lowest_run(before, order)
        }
    }

    model_tests!(Avl);

    #[test]
    fn the_most_extents_that_there_can_be_have_nodes() {
        const BLOCKS: usize = 3;
        let mut avl = Avl::new(BLOCKS, memory::<Avl>(BLOCKS));
        for block in 0..BLOCKS as u64 {
            assert!(avl.adopt(frame(block * BLOCK as u64), &[0x5555_5555_5555_5555; ROWS]));
        }
        assert_eq!(avl.tree.checked().len(), BLOCKS * EXTENTS);
        assert_eq!(avl.alloc(1), None);
        // Every frame in between joins two extents, down to one; and back.
        let frames = (BLOCKS * BLOCK) as u64;
        for _ in 0..2 {
            (1..frames).step_by(2).for_each(|at| avl.free(frame(at), 0).unwrap());
            assert_eq!(avl.tree.checked(), [(0, frames as u32)]);
            (0..frames).for_each(|at| assert_eq!(avl.alloc(0), Some(frame(at))));
            assert_eq!(avl.tree.checked(), []);
            (0..frames).step_by(2).for_each(|at| avl.free(frame(at), 0).unwrap());
            assert_eq!(avl.tree.checked().len(), BLOCKS * EXTENTS);
        }
    }

    #[test]
    fn a_block_is_cut_out_of_an_extent_that_spans_three() {
        let mut avl = Avl::new(3, memory::<Avl>(3));
        (1..4).for_each(|block| assert!(avl.adopt(frame(block * BLOCK as u64), &[!0; ROWS])));
        assert_eq!(avl.tree.checked(), [(512, 1536)]);
        assert_eq!(avl.alloc(10), None);
        assert_eq!(avl.give_up(frame(2 * 512 + 17)), Some([!0; ROWS]));
        assert_eq!(avl.tree.checked(), [(512, 512), (3 * 512, 512)]);
    }
}

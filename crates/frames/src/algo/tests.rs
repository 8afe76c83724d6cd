//! What every algorithm is held to: random calls against a set of frames, with all invariants checked at every step.

use std::{
    collections::{BTreeMap, BTreeSet},
    vec,
    vec::Vec,
};

use proptest::prelude::*;

use super::*;

/// A structure that shows what it contains.
pub(super) trait Check: Algo {
    /// The numbers of all free frames, in order, after a look at every invariant.
    fn checked(&self) -> Vec<u64>;
    /// Whether `got` was right for an allocation of `order` where the frames of `before` were free.
    fn answers_well(&self, before: &BTreeSet<u64>, order: u32, got: Option<u64>) -> bool;
}

/// Memory for an instance, aligned, with something in it, never freed.
pub(super) fn memory<A: Algo>(blocks: usize) -> &'static mut [u8] {
    memory_of(A::layout(blocks))
}

fn memory_of(layout: Layout) -> &'static mut [u8] {
    let bytes = vec![0xa5; layout.size() + layout.align()].leak();
    let skip = bytes.as_ptr().align_offset(layout.align());
    &mut bytes[skip..][..layout.size()]
}

/// The first frame of the lowest aligned run of 2^`order` among `free`, within a block.
pub(super) fn lowest_run(free: &BTreeSet<u64>, order: u32) -> Option<u64> {
    let n = 1 << order;
    let fits = |first: &&u64| first.is_multiple_of(n) && free.range(**first..**first + n).count() as u64 == n;
    free.iter().find(fits).copied().filter(|_| order <= BLOCK_ORDER)
}

/// The blocks that sequences are about, by number: neighbours, some that meet in the table of those held, and both
/// ends.
const BLOCKS: [u64; 8] = [8, 9, 10, 8 + 64, 9 + 128, 0, (1 << 31) - 2, (1 << 31) - 1];
/// How many of them are held at once.
const ROOM: usize = 5;

#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Take the block in: as it was given up, or with these frames free.
    Adopt(usize, FreeRows),
    /// Give the block up, by one of its frames.
    GiveUp(usize, u64),
    /// Give up the one with most free frames.
    GiveUpMost,
    /// Allocate so many runs of an order.
    Alloc(u32, usize),
    /// Free so many of the runs that were allocated, from there on.
    Free(prop::sample::Index, usize),
    /// Free a run of the block, whatever it is.
    FreeAt(usize, usize, u32),
    /// Allocate and free in turn.
    Pairs(u32, usize),
}

pub(super) fn free_rows() -> impl Strategy<Value = FreeRows> {
    let row = prop_oneof![
        Just(0),
        Just(!0),
        any::<u64>(),
        any::<[u64; 2]>().prop_map(|[a, b]| a | b),
        (0..6u32).prop_flat_map(
            |order| any::<u64>().prop_map(move |x| runs(x | x >> 7, order) * low_bits(1 << order))
        ),
    ];
    prop_oneof![Just([!0; ROWS]), Just([0; ROWS]), prop::array::uniform8(row)]
}

pub(super) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let block = || 0..BLOCKS.len();
    let order = || prop_oneof![3 => 0..=1u32, 3 => 0..=10u32];
    let step = prop_oneof![
        4 => (block(), free_rows()).prop_map(|(block, free)| Step::Adopt(block, free)),
        1 => (block(), 0..512u64).prop_map(|(block, at)| Step::GiveUp(block, at)),
        1 => Just(Step::GiveUpMost),
        6 => (order(), 1..90usize).prop_map(|(order, n)| Step::Alloc(order, n)),
        4 => (any::<prop::sample::Index>(), 1..90usize).prop_map(|(at, n)| Step::Free(at, n)),
        4 => (block(), 0..512usize, 0..=9u32).prop_map(|(block, at, order)| Step::FreeAt(block, at, order)),
        1 => (order(), 1..20usize).prop_map(|(order, n)| Step::Pairs(order, n)),
    ];
    prop::collection::vec(step, 1..50)
}

/// An algorithm, and what must be true of it.
pub(super) struct Model<A> {
    algo: A,
    free: BTreeSet<u64>,
    held: BTreeSet<u64>,
    /// The free frames of blocks that were given up.
    apart: BTreeMap<u64, FreeRows>,
    /// Runs that were allocated, and not freed by that name.
    live: Vec<(u64, u32)>,
}

impl<A: Check> Model<A> {
    pub(super) fn new(make: impl FnOnce(usize, &'static mut [u8]) -> A) -> Self {
        Self {
            algo: make(ROOM, memory::<A>(ROOM)),
            free: BTreeSet::new(),
            held: BTreeSet::new(),
            apart: BTreeMap::new(),
            live: Vec::new(),
        }
    }

    pub(super) fn step(&mut self, step: Step) {
        match step {
            Step::Adopt(block, free) => self.adopt(BLOCKS[block], free),
            Step::GiveUp(block, at) => self.give_up(BLOCKS[block] * BLOCK as u64 + at),
            Step::GiveUpMost => match self.algo.most_free() {
                Some(block) => {
                    let most = self.held.iter().map(|block| self.free_in(*block)).max();
                    assert_eq!(Some(self.algo.free_in(block)), most);
                    self.give_up(block.number());
                }
                None => assert!(self.held.is_empty()),
            },
            Step::Alloc(order, n) => {
                (0..n).for_each(|_| self.alloc(order));
            }
            Step::Free(at, n) => {
                for _ in 0..n.min(self.live.len()) {
                    let (first, order) = self.live.swap_remove(at.index(self.live.len()));
                    self.free(first, order);
                }
            }
            Step::FreeAt(block, at, order) => {
                self.free(BLOCKS[block] * BLOCK as u64 + (at >> order << order) as u64, order);
            }
            Step::Pairs(order, n) => {
                for _ in 0..n {
                    let before = self.live.len();
                    self.alloc(order);
                    for (first, order) in self.live.split_off(before) {
                        self.free(first, order);
                    }
                }
            }
        }
        self.check();
    }

    fn adopt(&mut self, block: u64, free: FreeRows) {
        let free = self.apart.get(&block).copied().unwrap_or(free);
        let fits = self.held.len() < ROOM && !self.held.contains(&block);
        assert_eq!(self.algo.adopt(frame(block * BLOCK as u64), &free), fits);
        if fits {
            self.apart.remove(&block);
            self.held.insert(block);
            let at = (0..BLOCK).filter(|at| free[at / ROW] >> (at % ROW) & 1 == 1);
            self.free.extend(at.map(|at| block * BLOCK as u64 + at as u64));
        }
    }
    fn give_up(&mut self, at: u64) {
        let block = at / BLOCK as u64;
        let got = self.algo.give_up(frame(at));
        assert_eq!(got.is_some(), self.held.remove(&block));
        let Some(got) = got else { return };
        let mut expected = [0; ROWS];
        for frame in self.free.extract_if(block * BLOCK as u64..(block + 1) * BLOCK as u64, |_| true) {
            let at = frame as usize % BLOCK;
            expected[at / ROW] |= 1 << (at % ROW);
        }
        assert_eq!(got, expected);
        self.apart.insert(block, got);
    }
    fn alloc(&mut self, order: u32) {
        let got = self.algo.alloc(order).map(Frame::number);
        assert!(self.algo.answers_well(&self.free, order, got), "order {order}: {got:x?}");
        if let Some(first) = got {
            assert!(first.is_multiple_of(1 << order));
            (first..first + (1 << order))
                .for_each(|at| assert!(self.free.remove(&at), "{at:#x} was not free"));
            self.live.push((first, order));
        }
    }
    fn free(&mut self, first: u64, order: u32) {
        let run = first..first + (1 << order);
        let expected = if !self.held.contains(&(first / BLOCK as u64)) {
            Err(Refused::NotHeld)
        } else if self.free.range(run.clone()).next().is_some() {
            Err(Refused::DoubleFree)
        } else {
            self.free.extend(run);
            Ok(())
        };
        assert_eq!(self.algo.free(frame(first), order), expected);
    }

    fn free_in(&self, block: u64) -> u32 {
        self.free.range(block * BLOCK as u64..(block + 1) * BLOCK as u64).count() as u32
    }
    fn check(&self) {
        assert!(self.algo.checked().iter().eq(&self.free), "other frames are free than should be");
        assert_eq!(self.algo.free_frames() as usize, self.free.len());
        for block in BLOCKS {
            let first = frame(block * BLOCK as u64);
            assert_eq!(self.algo.free_in(first), self.free_in(block));
            assert_eq!(self.algo.held().holds(first), self.held.contains(&block));
        }
        let blocks: BTreeSet<_> =
            self.algo.held().blocks().map(|(first, free)| (first.number() / BLOCK as u64, free)).collect();
        assert!(blocks.into_iter().eq(self.held.iter().map(|block| (*block, self.free_in(*block)))));
    }
}

/// The tests that every algorithm has.
macro_rules! model_tests {
    ($algo:ident) => {
        proptest::proptest! {
            #[test]
            fn the_lane_is_a_set_of_frames(steps in steps()) {
                let mut model = Model::new($algo::new);
                steps.into_iter().for_each(|step| model.step(step));
            }
        }
        #[test]
        fn churn_of_all_blocks_loses_nothing() {
            churn($algo::new(super::super::MAX_BLOCKS, memory::<$algo>(super::super::MAX_BLOCKS)));
        }
    };
}
pub(super) use model_tests;

/// Fill, half empty and refill an instance of the most blocks, in all orders it serves; then all is there again.
pub(super) fn churn<A: Check>(mut algo: A) {
    let first = |i: usize| frame(((i * 5 % MAX_BLOCKS + 100) * BLOCK) as u64);
    (0..MAX_BLOCKS).for_each(|i| assert!(algo.adopt(first(i), &[!0; ROWS])));
    assert!(!algo.adopt(frame(0), &[!0; ROWS]), "there was room for one more");
    let mut seed = 0x2545_f491_4f6c_dd1du64;
    let mut random = |n: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 33) as usize % n
    };
    let mut owned = BTreeSet::new();
    let mut live = Vec::new();
    for round in 0..12 {
        loop {
            let below = random(10) + 1;
            let order = random(below) as u32;
            let large = algo.alloc(order).map(|first| (first, order));
            let Some((first, order)) = large.or_else(|| algo.alloc(0).map(|first| (first, 0))) else { break };
            (first.number()..first.number() + (1 << order)).for_each(|at| assert!(owned.insert(at)));
            live.push((first, order));
        }
        assert_eq!(algo.free_frames(), 0);
        let keep = [0, live.len() / 2, live.len() / 10][round % 3];
        while live.len() > keep {
            let (first, order) = live.swap_remove(random(live.len()));
            algo.free(first, order).unwrap();
            (first.number()..first.number() + (1 << order)).for_each(|at| assert!(owned.remove(&at)));
        }
        let free = algo.checked();
        assert_eq!(free.len() + owned.len(), MAX_BLOCKS * BLOCK);
        assert!(free.iter().all(|at| !owned.contains(at)));
    }
    live.drain(..).for_each(|(first, order)| algo.free(first, order).unwrap());
    // Everything has come together: the largest runs that the algorithm serves are there, as many as memory has.
    let largest = (0..=BLOCK_ORDER)
        .rev()
        .find(|order| algo.alloc(*order).is_some_and(|run| algo.free(run, *order).is_ok()));
    let order = largest.unwrap();
    (0..(MAX_BLOCKS * BLOCK) >> order).for_each(|_| assert!(algo.alloc(order).is_some()));
    assert_eq!((algo.alloc(0), algo.free_frames()), (None, 0));
    (0..MAX_BLOCKS).for_each(|i| assert_eq!(algo.give_up(first(i)), Some([0; ROWS])));
    assert_eq!(algo.most_free(), None);
}

#[test]
fn an_instance_of_each_kind_works_in_memory_of_its_layout() {
    for kind in [AlgoKind::Avl, AlgoKind::Buddy, AlgoKind::Slab] {
        let mut algo = AnyAlgo::new(kind, 2, memory_of(AnyAlgo::layout(kind, 2))).unwrap();
        assert!(algo.adopt(frame(512), &[!0; ROWS]) && !algo.held().is_full());
        assert!(algo.adopt(frame(1024), &[0, 0, 0, !0, 0, 0, 0, 0]) && algo.held().is_full());
        assert_eq!(algo.most_free(), Some(frame(512)));
        let run = algo.alloc(3).unwrap();
        assert_eq!(algo.free_frames(), 512 + 64 - 8);
        assert_eq!(algo.free_in(frame(512)) + algo.free_in(frame(1024)), algo.free_frames());
        assert_eq!(algo.free(run, 3), Ok(()));
        assert_eq!(algo.free(run, 2), Err(Refused::DoubleFree));
        assert_eq!(algo.free(frame(0), 0), Err(Refused::NotHeld));
        assert_eq!(algo.give_up(frame(1500)), Some([0, 0, 0, !0, 0, 0, 0, 0]));
        assert_eq!(algo.give_up(frame(1500)), None);
        assert_eq!(algo.give_up(frame(512)), Some([!0; ROWS]));
        assert_eq!(algo.alloc(0), None);
    }
    assert_eq!(AnyAlgo::layout(AlgoKind::Row, 1).size(), 0);
    assert!(AnyAlgo::new(AlgoKind::Row, 1, &mut []).is_none());
}

#[test]
fn memory_is_what_the_table_says() {
    for blocks in 1..=MAX_BLOCKS {
        assert_eq!(Avl::layout(blocks).size(), 6144 * blocks + 24);
        assert_eq!(Buddy::layout(blocks).size(), 2176 * blocks);
        assert_eq!(Slab::layout(blocks).size(), 128 * blocks);
    }
    assert!(size_of::<AnyAlgo>() <= 512, "{} bytes", size_of::<AnyAlgo>());
}

proptest! {
    #[test]
    fn extents_are_the_maximal_runs(free in free_rows()) {
        let bit = |at: usize| free[at / ROW] >> (at % ROW) & 1 == 1;
        let starts = (0..BLOCK).filter(|at| bit(*at) && (*at == 0 || !bit(at - 1)));
        let expected: Vec<_> =
            starts.map(|at| (at, (at..BLOCK).take_while(|at| bit(*at)).count())).collect();
        prop_assert!(expected.len() <= BLOCK / 2);
        prop_assert_eq!(extents(&free).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn the_largest_order_is_the_largest_that_fits(start in 0..5000u64, len in 1..5000u64) {
        let fits = |order: &u32| {
            let run = start.next_multiple_of(1 << order);
            run + (1 << order) <= start + len
        };
        prop_assert_eq!(Some(largest_order(start, len)), (0..20).filter(fits).max());
    }

    #[test]
    fn places_are_the_bits_of_a_run(at in 0..BLOCK, order in 0..=BLOCK_ORDER) {
        let at = at >> order << order;
        let (rows, bits) = place(at, order);
        let mut marked = [0; ROWS];
        marked[rows].fill(bits);
        prop_assert_eq!(extents(&marked).collect::<Vec<_>>(), [(at, 1 << order)]);
    }
}

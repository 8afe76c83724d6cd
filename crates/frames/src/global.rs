//! One tree of all free memory behind one lock: what the CPUs' own allocators are measured against.
//!
//! **Claim.** None for speed: this is the arrangement that does not scale. Every call on every CPU takes the same
//! lock, and walks a tree that all CPUs write. Nothing uses it unless it is asked for.
//!
//! **Idea.** Native L4Re has one pager with one tree of free areas (Tian, Waddington and Kuang, "A Scalable Physical
//! Memory Allocation Scheme for L4 Microkernel", COMPSAC 2012, measure 25 times the time per allocation with 48
//! cores). Here it is without the pager: no messages, but the queue for the lock stays. The tree is the one that a
//! lane has, see [`tree`](crate::algo::tree).
//!
//! **Memory.** n frames make at most n/2 extents (rounded up, in each range), of 24 bytes: 12 bytes a frame. All of it
//! is given at the beginning, so that neither call fails for want of a node.

use core::alloc::Layout;

use addr::Frame;
use sync::SpinLock;

use crate::{
    FrameRange, FreeError,
    algo::{
        cut, frame, table,
        tree::{Node, Tree},
    },
};

/// The largest order of a run: 2^18 frames are 1 GiB.
const MAX_ORDER: u32 = 18;

/// All free frames, under a lock.
pub struct Global<'m> {
    state: SpinLock<State<'m>>,
    /// The lowest frame, and the first above the highest.
    span: FrameRange,
    /// Number of frames, free or not.
    total: u64,
}

struct State<'m> {
    tree: Tree<'m>,
    free: u64,
}

impl<'m> Global<'m> {
    /// Memory for the frames of `ranges`.
    pub fn layout(ranges: &[FrameRange]) -> Layout {
        table::<Node>(Tree::nodes(ranges.iter().map(|r| len(r).div_ceil(2) as usize).sum()))
    }
    /// The frames of `ranges`, all free, in memory of [`Self::layout`], whatever it contains. Panics if that is too
    /// short, if ranges overlap, or if they are 16 TiB or more.
    pub fn new(ranges: &[FrameRange], memory: &'m mut [u8]) -> Self {
        let global = Self::empty(ranges, memory);
        let mut state = global.state.lock();
        for range in ranges.iter().filter(|r| len(r) > 0) {
            let given = state.tree.give(range.start.number(), len(range) as u32);
            assert!(given.is_ok(), "frame ranges overlap at {range:?}");
        }
        state.free = global.total;
        drop(state);
        global
    }
    /// As [`Self::new`], with none of the frames free yet: they come by [`Self::free`].
    pub fn empty(ranges: &[FrameRange], mut memory: &'m mut [u8]) -> Self {
        let nodes = Self::layout(ranges).size() / size_of::<Node>();
        let tree = Tree::new(cut(&mut memory, nodes));
        let used = || ranges.iter().filter(|r| len(r) > 0);
        let total = used().map(len).sum();
        assert!(u32::try_from(total).is_ok(), "16 TiB of memory or more");
        let span = FrameRange {
            start: used().map(|r| r.start).min().unwrap_or_default(),
            end: used().map(|r| r.end).max().unwrap_or_default(),
        };
        Self { state: SpinLock::new(State { tree, free: 0 }), span, total }
    }
    /// Take the lowest 2^`order` free frames whose first is a multiple of that; order <= 18. `None` if there are none.
    pub fn alloc(&self, order: u32) -> Option<Frame> {
        self.alloc_above(order, 0)
    }
    /// As [`Self::alloc`], if `floor` frames are left then.
    pub fn alloc_above(&self, order: u32, floor: u64) -> Option<Frame> {
        if order > MAX_ORDER {
            return None;
        }
        let mut state = self.state.lock();
        if state.free < floor + (1 << order) {
            return None;
        }
        let first = state.tree.take(order)?;
        state.free -= 1 << order;
        Some(frame(first))
    }
    /// Take back 2^`order` frames from `first` on; they come from [`Self::alloc`], in these pieces or others. Frames
    /// of no range are refused if they lie below or above all ranges.
    pub fn free(&self, first: Frame, order: u32) -> Result<(), FreeError> {
        let (start, n) = (first.number(), 1 << order.min(MAX_ORDER));
        if first < self.span.start || start + n > self.span.end.number() || order > MAX_ORDER {
            return Err(FreeError::NotManaged(first));
        }
        let mut state = self.state.lock();
        state.tree.give(start, n as u32).map_err(|_| FreeError::DoubleFree(first))?;
        state.free += n;
        Ok(())
    }
    /// Number of free frames.
    pub fn free_frames(&self) -> u64 {
        self.state.lock().free
    }
    /// Number of frames, free or not.
    pub fn total(&self) -> u64 {
        self.total
    }
}

/// Frames in a range.
fn len(range: &FrameRange) -> u64 {
    range.end.number().saturating_sub(range.start.number())
}

// A lock under loom lives only within a model.
#[cfg(all(test, not(loom)))]
mod tests {
    use std::{
        collections::BTreeSet,
        sync::{
            Barrier,
            atomic::{AtomicBool, Ordering},
        },
        thread, vec,
        vec::Vec,
    };

    use proptest::prelude::*;

    use super::*;

    fn range(start: u64, end: u64) -> FrameRange {
        FrameRange { start: frame(start), end: frame(end) }
    }
    fn global(ranges: &[FrameRange]) -> Global<'static> {
        let layout = Global::layout(ranges);
        let bytes = vec![0xa5; layout.size() + layout.align()].leak();
        let skip = bytes.as_ptr().align_offset(layout.align());
        Global::new(ranges, &mut bytes[skip..][..layout.size()])
    }
    fn checked(global: &Global) -> Vec<u64> {
        let free: Vec<_> = global
            .state
            .lock()
            .tree
            .checked()
            .into_iter()
            .flat_map(|(first, len)| first..first + u64::from(len))
            .collect();
        assert_eq!(global.free_frames() as usize, free.len());
        free
    }

    #[derive(Clone, Debug)]
    enum Step {
        Alloc(u32, usize),
        Free(prop::sample::Index, usize),
        FreeAt(u64, u32),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (prop_oneof![0..=2u32, 0..=19u32], 1..60usize).prop_map(|(order, n)| Step::Alloc(order, n)),
            4 => (any::<prop::sample::Index>(), 1..60usize).prop_map(|(at, n)| Step::Free(at, n)),
            2 => (0..2600u64, 0..=11u32).prop_map(|(at, order)| Step::FreeAt(at >> order << order, order)),
        ];
        prop::collection::vec(step, 1..60)
    }

    proptest! {
        /// The lowest aligned run is taken, what is freed is free, and nothing else changes.
        #[test]
        fn all_memory_is_a_set_of_frames(steps in steps()) {
            // Two ranges that touch, a hole, and a last one that begins and ends off any alignment.
            let ranges = [range(1024, 2048), range(513, 1024), range(0, 0), range(2101, 2555)];
            let global = global(&ranges);
            let mut free: BTreeSet<u64> = (513..2048).chain(2101..2555).collect();
            let total = free.len();
            prop_assert_eq!(global.total() as usize, total);
            let mut live = Vec::new();
            for step in steps {
                match step {
                    Step::Alloc(order, n) => for _ in 0..n {
                        let fits = |first: &&u64| first.is_multiple_of(1 << order)
                            && free.range(**first..**first + (1 << order)).count() == 1 << order;
                        let lowest = free.iter().find(fits).copied();
                        prop_assert_eq!(global.alloc(order).map(Frame::number), lowest);
                        let Some(first) = lowest else { break };
                        (first..first + (1 << order)).for_each(|at| assert!(free.remove(&at)));
                        live.push((first, order));
                    },
                    Step::Free(at, n) => for _ in 0..n.min(live.len()) {
                        let (first, order): (u64, u32) = live.swap_remove(at.index(live.len()));
                        let run = first..first + (1 << order);
                        let expected = if free.range(run.clone()).next().is_some() {
                            Err(FreeError::DoubleFree(frame(first)))
                        } else {
                            free.extend(run);
                            Ok(())
                        };
                        prop_assert_eq!(global.free(frame(first), order), expected);
                    },
                    Step::FreeAt(at, order) => {
                        let run = at..at + (1 << order);
                        let expected = if run.start < 513 || run.end > 2555 {
                            Err(FreeError::NotManaged(frame(at)))
                        } else if free.range(run.clone()).next().is_some() {
                            Err(FreeError::DoubleFree(frame(at)))
                        } else if run.start < 2101 && run.end > 2048 {
                            continue; // frames that are no memory: the caller's promise
                        } else {
                            free.extend(run);
                            Ok(())
                        };
                        prop_assert_eq!(global.free(frame(at), order), expected);
                    }
                }
                prop_assert!(checked(&global).iter().eq(&free));
            }
        }
    }

    #[test]
    fn the_largest_runs_are_aligned_and_whole_again() {
        let global = global(&[range(5, (3 << 18) + 7)]);
        assert_eq!(global.alloc(19), None);
        let runs: Vec<_> = std::iter::from_fn(|| global.alloc(18)).collect();
        assert_eq!(runs, [frame(1 << 18), frame(2 << 18)]);
        let below: Vec<_> = std::iter::from_fn(|| global.alloc(17)).collect();
        assert_eq!(below, [frame(1 << 17)]);
        assert_eq!(global.free(frame(2 << 18), 19), Err(FreeError::NotManaged(frame(2 << 18))));
        runs.into_iter().for_each(|run| global.free(run, 18).unwrap());
        // In other pieces than it was taken.
        (0..1 << 8).for_each(|i| global.free(frame((1 << 17) + (i << 9)), 9).unwrap());
        assert_eq!(global.free_frames(), global.total());
        assert_eq!(global.state.lock().tree.checked(), [(5, (3 << 18) + 2)]);
    }

    #[test]
    #[should_panic(expected = "frame ranges overlap")]
    fn overlapping_ranges_are_refused() {
        global(&[range(0, 10), range(9, 20)]);
    }

    #[test]
    fn no_frame_has_two_owners() {
        const FRAMES: u64 = 3000;
        let global = global(&[range(0, FRAMES)]);
        let owned: Vec<_> = (0..FRAMES).map(|_| AtomicBool::new(false)).collect();
        let start = Barrier::new(3);
        thread::scope(|s| {
            for t in 0..3u32 {
                let (global, owned, start) = (&global, &owned, &start);
                s.spawn(move || {
                    start.wait();
                    let mut live = Vec::new();
                    for i in 0..20_000u32 {
                        let order = (i * 7 + t) % 11;
                        // Relaxed: the flags only have to tell two owners from one; the lock orders the calls.
                        let mark = |first: Frame, order: u32, to: bool| {
                            let run = first.number() as usize..first.number() as usize + (1 << order);
                            owned[run].iter().for_each(|f| assert_ne!(f.swap(to, Ordering::Relaxed), to));
                        };
                        match global.alloc(order) {
                            Some(first) => {
                                mark(first, order, true);
                                live.push((first, order));
                            }
                            None => {
                                for (first, order) in live.drain(live.len() / 2..) {
                                    mark(first, order, false);
                                    global.free(first, order).unwrap();
                                }
                            }
                        }
                    }
                    for (first, order) in live {
                        owned[first.number() as usize..][..1 << order]
                            .iter()
                            .for_each(|f| assert!(f.swap(false, Ordering::Relaxed)));
                        global.free(first, order).unwrap();
                    }
                });
            }
        });
        assert_eq!(checked(&global).len() as u64, FRAMES);
    }
}

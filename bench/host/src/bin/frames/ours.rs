//! Quire's allocators.

use std::{alloc::Layout, hint, mem::ManuallyDrop};

use addr::{DirectMap, Frame};
use frames::{AlgoKind, Clear, Config, Ctx, FrameRange, Frames, Global, Req, Run, Topology};
use percpu::{CpuId, Pinned};

use crate::{
    subject::{Metadata, Setup, Subject},
    team,
};

/// The first frame's number: a multiple of every run's length.
const FIRST: u64 = 1 << 18;

/// The allocator of each CPU, with the algorithm of that number in [`AlgoKind::ALL`].
pub struct Quire<const ALGORITHM: usize> {
    frames: ManuallyDrop<Frames<'static>>,
    /// What `frames` borrows; used by nobody else, and freed after it.
    _memory: Memory,
    metadata: Metadata,
}

/// What is asked for: down to the last frame, as the others do.
const fn request(order: u32) -> Req {
    Req { ctx: Ctx::Reserve, ..Req::order(order) }
}

impl<const ALGORITHM: usize> Subject for Quire<ALGORITHM> {
    fn new(setup: &Setup) -> Self {
        let mut memory = Memory::default();
        let ranges = [range(setup)];
        // SAFETY: `memory` is dropped after the allocator that gets this.
        let topology = unsafe { memory.topology(Topology::one_node(setup.cpus)) };
        let cfg = Config { ranges: &ranges, cpus: setup.cpus, topology };
        let (map, all) = (Frames::map_bytes(&cfg), Frames::meta_bytes(&cfg));
        let more = Frames::meta_bytes(&Config { cpus: setup.cpus + 1, ..cfg });
        let metadata = Metadata { shared: map, per_cpu: more - all };
        // SAFETY: as above.
        let meta = unsafe { memory.bytes(Layout::from_size_align(all, 8).unwrap_or(Layout::new::<u64>())) };
        // SAFETY: the bytes are zeroed, and no frame of this number is anything. Nobody asks for a zeroed one.
        let frames = unsafe { Frames::new(&cfg, meta, Clear::new(DirectMap::new(0))) };
        let kind = AlgoKind::ALL[ALGORITHM];
        if kind != AlgoKind::Row {
            team::alone(setup.cpus, |pins| {
                for pin in pins {
                    // SAFETY: as above.
                    let lane = unsafe { memory.bytes(Frames::lane_layout(kind)) };
                    let opened = frames.set_algo(pin, kind, Some(lane));
                    assert!(opened.is_ok(), "{}: {opened:?}", kind.name());
                }
            });
        }
        Self { frames: ManuallyDrop::new(frames), _memory: memory, metadata }
    }

    #[inline]
    fn get(&self, pin: &Pinned<'_>, order: u32) -> Option<u64> {
        let (first, _) = self.frames.alloc(pin, request(order)).ok()?.into_raw();
        Some(first.number() - FIRST)
    }

    #[inline]
    fn put(&self, pin: &Pinned<'_>, frame: u64, order: u32) {
        let Some(first) = Frame::new(frame + FIRST) else { return };
        // SAFETY: `get` gave it, by this order, and made a number of it. A frame that is refused stays owned, which shows
        // when all are counted.
        let _ = self.frames.free(pin, unsafe { Run::from_raw(first, order) });
    }

    fn give_up(&self, pin: &Pinned<'_>) {
        self.frames.drain(pin);
    }

    fn owned(&self) -> Option<u64> {
        Some(self.frames.stats().owned)
    }

    fn transfers(&self) -> Option<u64> {
        let cpus = (0..self.frames.cpus()).filter_map(CpuId::new);
        Some(cpus.map(|cpu| self.frames.cpu_stats(cpu).transfers).sum())
    }

    fn metadata(&self) -> Option<Metadata> {
        Some(self.metadata)
    }

    fn sum_up(&self) -> bool {
        hint::black_box(self.frames.available());
        true
    }

    fn sum_up_all(&self) -> bool {
        hint::black_box(self.frames.stats());
        true
    }

    fn switch(&self, pin: &Pinned<'_>, algorithm: usize) -> bool {
        let Some(kind) = AlgoKind::ALL.get(algorithm) else { return false };
        // Only what is open, so that no memory is set aside while the clock runs.
        self.frames.set_algo(pin, *kind, None).is_ok()
    }

    fn open_all(&mut self) {
        for kind in AlgoKind::ALL.into_iter().filter(|kind| *kind != AlgoKind::Row) {
            team::alone(self.frames.cpus(), |pins| {
                for pin in pins {
                    // SAFETY: `_memory` is dropped after the allocator.
                    let lane = unsafe { self._memory.bytes(Frames::lane_layout(kind)) };
                    let opened = self.frames.open_lane(pin, kind, lane);
                    assert!(opened.is_ok(), "{}: {opened:?}", kind.name());
                }
            });
        }
    }
}

impl<const ALGORITHM: usize> Drop for Quire<ALGORITHM> {
    fn drop(&mut self) {
        // SAFETY: only here, and nobody uses it any more.
        unsafe { ManuallyDrop::drop(&mut self.frames) };
    }
}

/// One tree of free extents for all CPUs, under one lock.
pub struct OneTree {
    global: ManuallyDrop<Global<'static>>,
    _memory: Memory,
    metadata: Metadata,
}

impl Subject for OneTree {
    fn new(setup: &Setup) -> Self {
        let mut memory = Memory::default();
        let ranges = [range(setup)];
        let layout = Global::layout(&ranges);
        // SAFETY: `memory` is dropped after the allocator that gets this.
        let global = Global::new(&ranges, unsafe { memory.bytes(layout) });
        let metadata = Metadata { shared: layout.size(), per_cpu: 0 };
        Self { global: ManuallyDrop::new(global), _memory: memory, metadata }
    }

    #[inline]
    fn get(&self, _: &Pinned<'_>, order: u32) -> Option<u64> {
        self.global.alloc(order).map(|first| first.number() - FIRST)
    }

    #[inline]
    fn put(&self, _: &Pinned<'_>, frame: u64, order: u32) {
        let Some(first) = Frame::new(frame + FIRST) else { return };
        // What is refused stays owned, which shows when all are counted.
        let _ = self.global.free(first, order);
    }

    fn owned(&self) -> Option<u64> {
        Some(self.global.total() - self.global.free_frames())
    }

    fn metadata(&self) -> Option<Metadata> {
        Some(self.metadata)
    }
}

impl Drop for OneTree {
    fn drop(&mut self) {
        // SAFETY: only here, and nobody uses it any more.
        unsafe { ManuallyDrop::drop(&mut self.global) };
    }
}

fn range(setup: &Setup) -> FrameRange {
    let frame = |n| Frame::new(n).unwrap_or_else(|| panic!("no frame {n:#x}"));
    FrameRange { start: frame(FIRST), end: frame(FIRST + setup.frames as u64) }
}

/// What an allocator borrows, for as long as this lives.
#[derive(Default)]
struct Memory {
    words: Vec<*mut [u64]>,
    topologies: Vec<*mut Topology>,
}

// SAFETY: the pointers are only kept, to free what they point to.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Zeroed bytes, aligned to a cache line at least.
    ///
    /// # Safety
    /// They are used as long as this lives, and no longer.
    unsafe fn bytes(&mut self, layout: Layout) -> &'static mut [u8] {
        const LINES: usize = 128;
        let align = layout.align().max(LINES);
        let words = vec![0u64; (layout.size() + align).div_ceil(8)].into_boxed_slice();
        let words = Box::into_raw(words);
        self.words.push(words);
        let bytes = words.cast::<u8>();
        // SAFETY: the box is that much longer, and lives as long as this does. Nobody else has its address.
        unsafe { std::slice::from_raw_parts_mut(bytes.add(bytes.align_offset(align)), layout.size()) }
    }

    /// # Safety
    /// As for `bytes`.
    unsafe fn topology(&mut self, topology: Topology) -> &'static Topology {
        let topology = Box::into_raw(Box::new(topology));
        self.topologies.push(topology);
        // SAFETY: it was just made of a box, lives as long as this does, and is not written again.
        unsafe { &*topology }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        for words in self.words.drain(..) {
            // SAFETY: it was made of a box, and whoever borrowed it is gone.
            drop(unsafe { Box::from_raw(words) });
        }
        for topology in self.topologies.drain(..) {
            // SAFETY: as above.
            drop(unsafe { Box::from_raw(topology) });
        }
    }
}

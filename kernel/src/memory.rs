//! Memory from the loader's map to the frame allocator and the heap.
//!
//! # At boot
//! ```text
//!  0        1 MiB     2 MiB                                                              end of RAM
//!  | firmware | free  | image | page tables, IST stacks, frames' tables | free ... | initramfs | ...
//!                             ^ `begin`                                 ^ `init`: the rest goes to `frames`
//! ```
//! Between [`begin`] and [`init`] frames come from the RAM behind the image, one after the other, and are never given
//! back. The initramfs's frames are claimed from `frames` while they hold it, so they are counted from the start, and
//! [`release_initramfs`] makes ordinary free frames of them.
//!
//! # The heap
//! Small allocations come from `talc`, in the direct map, on runs of frames that it never gives back. It is used by
//! interrupt handlers too, while `frames` isn't for them: the interrupted thread may be in the middle of it, and a
//! thread that holds a lock with interrupts off must not wait for one that `frames` holds with interrupts on. So only
//! threads with interrupts on fetch runs, with the heap's lock free; everybody else lives on a *spare* run that
//! the next of those threads replaces. One allocation is at most 4 KiB less than 2 MiB, the
//! largest run.
//!
//! # When memory is short
//! `frames().low()` says so: only the reserve is left, or what is allocated from the heap is more than its share, a
//! quarter of memory (the heap keeps its frames, so what one program made it take is lost to others for good). Calls that
//! need a record of the kernel's then answer ENOMEM before they begin, so what still asks the heap is small, is needed to
//! go on or to end, and has the rest of the reserve, and behind that the spare run. Larger pieces, whose size a program
//! chooses, are asked for with `try_reserve`.
//!
//! In the sanitized build (`sanitize`) allocations have redzones, and what is freed stays in quarantine for a while.
#![allow(unsafe_code)] // hands out raw memory; each block says why it is sound

use core::{
    alloc::{GlobalAlloc, Layout},
    cell::UnsafeCell,
    mem::MaybeUninit,
    ptr::{self, NonNull},
    slice,
    sync::atomic::{AtomicU64, Ordering},
};

use addr::{DirectMap, Frame, PAGE_SIZE, PhysAddr};
use frames::{Clear, Config, FrameRange, HUGE_ORDER};
use owned::{Memory, OwnedFrame, Use};
use percpu::Pinned;
use talc::{DefaultBinning, base::Talc, source::Manual};

use crate::{
    hw::{
        boot::{Info, PhysRange},
        cpu, irq, marker, numa, paging,
    },
    places::Place,
    sanitize::{
        self, exempt,
        heap::{Quarantine, claimed, expect_allocated, open, with_redzones},
    },
};

/// Below this is the firmware's.
const FIRST_MIB: u64 = 1 << 20;
/// What the boot tables map.
const BOOT_MAPPED: u64 = 1 << 30;

/// How to reach a frame's bytes.
pub const fn dm() -> DirectMap {
    // SAFETY: `paging::init` maps all RAM there, and the boot tables the first GiB before that.
    unsafe { DirectMap::new(paging::DIRECT_MAP as usize) }
}

/// RAM behind the image, given out from its low end.
struct Early {
    from: u64,
    next: u64,
    end: u64,
}

static EARLY: irq::Lock<Option<Early>> = irq::Lock::new(None);

impl Early {
    /// `bytes`, rounded up to whole frames, zeroed.
    fn take(&mut self, bytes: u64) -> Option<PhysAddr> {
        let at = PhysAddr::new(self.next)?;
        let next = self.next.checked_add(bytes)?.checked_next_multiple_of(PAGE_SIZE)?;
        if next > self.end {
            return None;
        }
        // SAFETY: RAM that nobody uses, within what the tables in use map.
        unsafe { dm().ptr(at).write_bytes(0, (next - self.next) as usize) };
        self.next = next;
        Some(at)
    }
}

/// Take note of the RAM behind the image, as far as the boot tables map it and up to the initramfs.
pub fn begin(info: &Info) {
    let [start, .., end] = paging::image();
    let module = info.initramfs();
    let Some(ram) = info.ram().iter().find(|r| r.start <= start && end <= r.end) else {
        panic!("the image is not in RAM")
    };
    let from = if module.overlaps(PhysRange { start: end, end: end + 1 }) { module.end } else { end };
    let from = from.next_multiple_of(PAGE_SIZE);
    let stop = if module.start >= from { module.start & !(PAGE_SIZE - 1) } else { ram.end };
    *EARLY.lock() = Some(Early { from, next: from, end: stop.min(ram.end).min(BOOT_MAPPED) });
}

/// A zeroed frame for a page table of the kernel's, never given back. It counts as the kernel's data, so that what
/// counts as page tables belongs to address spaces, and is nothing once they are gone.
pub fn table_frame() -> Option<Frame> {
    kernel_frame(Use::Kernel)
}

/// A frame for a kernel stack, given back only if it was never mapped.
pub fn stack_frame() -> Option<Frame> {
    kernel_frame(Use::Stack)
}

/// Give a frame of [`stack_frame`] back, which nothing maps.
pub fn free_stack_frame(frame: Frame) {
    if EARLY.lock().is_none() {
        // SAFETY: allocated for this use, with one share, which the caller gives up. (At boot it would not be counted.)
        let owned = unsafe { OwnedFrame::from_raw(frame, Use::Stack) };
        frames().free(&here(), owned);
    }
}

fn kernel_frame(usage: Use) -> Option<Frame> {
    if let Some(early) = &mut *EARLY.lock() {
        return early.take(PAGE_SIZE).map(PhysAddr::frame);
    }
    frames().alloc_zeroed(&here(), usage).map(OwnedFrame::into_raw)
}

/// This CPU, for a call to `frames` from a thread with interrupts on, or at boot.
fn here() -> Pinned<'static> {
    debug_assert!(may_use_frames());
    // SAFETY: threads are not preempted in the kernel, and the callers do not sleep while they have it; the assertion's
    // condition never holds in an interrupt handler.
    unsafe { Pinned::assume(cpu::id()) }
}

/// Whether the caller is a thread with interrupts on, or this CPU has no thread yet. Handlers run with interrupts off.
fn may_use_frames() -> bool {
    irq::enabled() || cpu::current_task().is_null()
}

struct MemoryCell(UnsafeCell<MaybeUninit<Memory>>);
// SAFETY: written once, by `init`, before there is another CPU; `Memory` is `Sync`.
unsafe impl Sync for MemoryCell {}
static FRAMES: MemoryCell = MemoryCell(UnsafeCell::new(MaybeUninit::uninit()));

/// All frames of the machine.
pub fn frames() -> &'static Memory {
    debug_assert!(EARLY.lock().is_none(), "too early");
    // SAFETY: `init` has run: nothing before it in the boot order calls this.
    unsafe { (*FRAMES.0.get()).assume_init_ref() }
}

/// Make `frames` of all RAM that isn't in use, for `cpus` CPUs; from here on there is a heap.
pub fn init(info: &Info, cpus: usize) {
    const MOST: usize = 128;
    const FOR_MORE_RANGES: usize = 1024;
    let [start, ..] = paging::image();
    let mut ranges = [FrameRange { start: Frame::default(), end: Frame::default() }; MOST];
    let mut early = EARLY.lock();
    let Some(e) = &mut *early else { panic!("initialised twice") };
    // The tables' size depends on the ranges by their span, which does not change when the tables are cut out, and a little
    // by their number, which does.
    let n = free_ranges(info, core::slice::from_ref(&(start..e.next)), &mut ranges);
    let cfg = Config { ranges: &ranges[..n], cpus, topology: numa::topology() };
    let bytes = Memory::meta_bytes(&cfg) + FOR_MORE_RANGES;
    let Some(meta) = e.take(bytes as u64) else { panic!("no room for the frames' tables: {bytes} bytes") };
    let used = [start..e.from.min(e.next), e.from..e.next];
    let n = free_ranges(info, &used, &mut ranges);
    // SAFETY: zeroed and ours for ever; not in the ranges. The ranges are RAM that nobody uses, but for the initramfs,
    // which is claimed before anything is allocated. All CPUs are below `cpus`. `clear_page` zeroes the page.
    unsafe {
        let meta = slice::from_raw_parts_mut(dm().ptr(meta), bytes);
        let clear = Clear::new(dm()).by(marker::clear_page, marker::clear_page);
        let cfg = Config { ranges: &ranges[..n], cpus, topology: numa::topology() };
        (*FRAMES.0.get()).write(Memory::new(&cfg, meta, clear));
    }
    *early = None;
    drop(early);
    HEAP.0.lock().share = frames().total() as usize * PAGE_SIZE as usize / HEAP_PART;
    let module = info.initramfs();
    if module.start < module.end {
        let range = frame_range(module);
        assert!(frames().claim(&here(), range, Use::File), "the initramfs is not in RAM: {module:x?}");
        // Relaxed, both: there is no other CPU yet.
        INITRAMFS[0].store(module.start, Ordering::Relaxed);
        INITRAMFS[1].store(module.end, Ordering::Relaxed);
    }
}

/// RAM above the first MiB without `used` (ascending), to `out`; how many ranges.
fn free_ranges(info: &Info, used: &[core::ops::Range<u64>], out: &mut [FrameRange]) -> usize {
    let mut n = 0;
    for ram in info.ram() {
        let mut from = ram.start.max(FIRST_MIB);
        let end = ram.end;
        let holes = used.iter().filter(|u| u.start < u.end).map(|u| (u.start, u.end)).chain([(end, end)]);
        for (hole, after) in holes {
            let to = hole.clamp(from, end.max(from));
            if from < to && n < out.len() {
                out[n] = frame_range(PhysRange { start: from, end: to });
                n += 1;
            }
            if after <= end && after > from {
                from = after;
            }
        }
    }
    n
}

/// The frames that `r` touches.
fn frame_range(r: PhysRange) -> FrameRange {
    let frame = |at: u64| PhysAddr::new(at).map(PhysAddr::frame).unwrap_or_default();
    FrameRange { start: frame(r.start), end: frame(r.end.next_multiple_of(PAGE_SIZE)) }
}

/// First byte and end of the initramfs, both 0 if there is none (any more).
static INITRAMFS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// The initramfs as the loader left it; empty without one. Nobody uses it after [`release_initramfs`].
pub fn initramfs() -> &'static [u8] {
    // Relaxed: written at boot.
    let [start, end] = [0, 1].map(|i| INITRAMFS[i].load(Ordering::Relaxed));
    match PhysAddr::new(start) {
        // SAFETY: the loader put it there, and its frames are claimed, so nobody writes to it.
        Some(at) if start < end => unsafe { slice::from_raw_parts(dm().ptr(at), (end - start) as usize) },
        _ => &[],
    }
}

/// Make free frames of the initramfs's. At boot, when everything in it has been copied.
pub fn release_initramfs() {
    // Relaxed: there is no other CPU yet.
    let [start, end] = [0, 1].map(|i| INITRAMFS[i].swap(0, Ordering::Relaxed));
    let range = frame_range(PhysRange { start, end });
    for frame in (range.start.number()..range.end.number()).filter_map(Frame::new) {
        // SAFETY: claimed by `init` for this use, one share each, and taken up here only.
        let owned = unsafe { OwnedFrame::from_raw(frame, Use::File) };
        frames().free(&here(), owned);
    }
}

/// Where the frames' tables and the heap are.
pub fn places(add: &mut dyn FnMut(Place)) {
    let frames = frames();
    frames.places(&mut |what, at, stride| add(Place::divided(what, at, stride)));
    let runs = HEAP.0.lock().runs;
    runs.into_iter()
        .filter(|(from, to)| from < to)
        .for_each(|(from, to)| add(Place::named("kernel heap", from..to)));
}

// ---- heap --------------------------------------------------------------------------------------------------------

/// Order of the smallest run that is good as a spare: 64 KiB.
const SPARE_ORDER: u32 = 4;
/// The largest allocation, in bytes.
const LARGEST: usize = ((PAGE_SIZE as usize) << HUGE_ORDER) - OVERHEAD;
/// The part of memory that the heap may fill with what can be refused.
const HEAP_PART: usize = 4;
/// The part of the heap's share that may be in quarantine.
const QUARANTINE_PART: usize = 16;
/// What `talc` may take of a run for itself, and of an allocation for its header, in bytes; generous.
const OVERHEAD: usize = 4096;

/// How many runs are noted for reports.
const RUNS: usize = 128;

/// What the spare run is asked to hold, in bytes.
const SPARE_BYTES: usize = ((PAGE_SIZE as usize) << SPARE_ORDER) - OVERHEAD;

/// A run of frames that is not yet part of the heap.
struct Run {
    base: NonNull<u8>,
    bytes: usize,
}

struct Heap {
    talc: Talc<Manual, DefaultBinning>,
    spare: Option<Run>,
    /// What was freed a short while ago; empty but in the sanitized build.
    quarantine: Quarantine,
    /// Bytes that are allocated, redzones included.
    used: usize,
    /// How many may be before memory counts as short; see the module.
    share: usize,
    /// The runs that it has, adjacent ones as one, as far as there is room to note them: for reports.
    runs: [(usize, usize); RUNS],
}

// SAFETY: it owns the memory that its pointers name.
unsafe impl Send for Heap {}

impl Heap {
    /// Memory from what the heap has, and if `last` from the spare run.
    fn allocate(&mut self, layout: Layout, last: bool) -> Option<NonNull<u8>> {
        let outer = with_redzones(layout)?;
        let found = self.find(outer, last)?;
        self.count(0, outer.size());
        Some(open(found, layout))
    }

    /// Take back what [`Self::allocate`] gave.
    fn free(&mut self, at: NonNull<u8>, layout: Layout) {
        self.count(with_redzones(layout).map_or(0, |outer| outer.size()), 0);
        if !sanitize::ON {
            // SAFETY: it came from `allocate` with this layout.
            return unsafe { self.talc.deallocate(at.as_ptr(), layout) };
        }
        self.quarantine.push(at, layout);
        while self.quarantine.bytes() > self.share / QUARANTINE_PART && self.release() {}
    }

    /// Take what has been in quarantine longest out of it; false if there is nothing.
    fn release(&mut self) -> bool {
        let Some((block, outer)) = self.quarantine.pop() else { return false };
        // SAFETY: the block came from `talc` with this layout, and its owner has freed it.
        exempt(|| unsafe { self.talc.deallocate(block.as_ptr(), outer) });
        true
    }

    /// `less` bytes fewer are in use, and `more` more.
    fn count(&mut self, less: usize, more: usize) {
        let was = self.used;
        self.used = was - less + more;
        if (was > self.share) != (self.used > self.share) {
            frames().set_strained(self.used > self.share);
        }
    }

    fn find(&mut self, layout: Layout, last: bool) -> Option<NonNull<u8>> {
        loop {
            // SAFETY: the size isn't 0, by `GlobalAlloc`'s contract.
            let found = exempt(|| unsafe { self.talc.allocate(layout) });
            if found.is_some() || !last {
                return found;
            }
            if !self.release() {
                let spare = self.spare.take()?;
                self.claim(spare);
            }
        }
    }

    fn claim(&mut self, run: Run) {
        let (start, end) = (run.base.addr().get(), run.base.addr().get() + run.bytes);
        match self.runs.iter_mut().find(|(from, to)| *to == start || *from == end || from == to) {
            Some(free) if free.0 == free.1 => *free = (start, end),
            Some(known) => *known = (known.0.min(start), known.1.max(end)),
            None => {}
        }
        claimed(run.base.as_ptr(), run.bytes);
        // SAFETY: the run is ours alone and stays so; it may be too small to be of use, then it is lost.
        exempt(|| unsafe { self.talc.claim(run.base.as_ptr(), run.bytes) });
    }
}

/// The kernel's heap; see the module.
struct KernelHeap(irq::Lock<Heap>);

#[global_allocator]
static HEAP: KernelHeap = KernelHeap(irq::Lock::new(Heap {
    talc: Talc::new(Manual),
    spare: None,
    quarantine: Quarantine::new(),
    used: 0,
    share: 0,
    runs: [(0, 0); RUNS],
}));

/// A run for an allocation of `bytes`, and more if there is plenty. For threads with interrupts on, and at boot.
fn fetch(bytes: usize) -> Option<Run> {
    let pages = (bytes + OVERHEAD).div_ceil(PAGE_SIZE as usize);
    let least = pages.next_power_of_two().trailing_zeros();
    let run = (least..=HUGE_ORDER).rev().find_map(|order| frames().alloc_run(&here(), order, Use::Kernel))?;
    let bytes = (PAGE_SIZE as usize) << run.order();
    let base = NonNull::new(dm().ptr(run.into_raw().base()))?;
    Some(Run { base, bytes })
}

// SAFETY: `talc` keeps the contract of memory that is handed out once, under the lock; null when there is none.
unsafe impl GlobalAlloc for KernelHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let bytes =
            with_redzones(layout).map_or(usize::MAX, |outer| outer.size().saturating_add(outer.align()));
        if bytes > LARGEST {
            return ptr::null_mut();
        }
        if !may_use_frames() {
            return self.0.lock().allocate(layout, true).map_or(ptr::null_mut(), NonNull::as_ptr);
        }
        // Each turn but the first follows a fetch that was large enough; others may have been quicker to use it.
        for _ in 0..4 {
            let (found, spared) = {
                let mut heap = self.0.lock();
                (heap.allocate(layout, false), heap.spare.is_some())
            };
            match found {
                Some(found) => {
                    if !spared && let Some(run) = fetch(SPARE_BYTES) {
                        let mut heap = self.0.lock();
                        match heap.spare {
                            None => heap.spare = Some(run),
                            Some(_) => heap.claim(run),
                        }
                    }
                    return found.as_ptr();
                }
                None => {
                    let Some(run) = fetch(bytes) else { break };
                    self.0.lock().claim(run);
                }
            }
        }
        // No frames, not even of the reserve, or not in one piece.
        self.0.lock().allocate(layout, true).map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        expect_allocated(at, layout);
        // The caller's: it came from `alloc` with this layout, so it isn't null.
        if let Some(at) = NonNull::new(at) {
            self.0.lock().free(at, layout);
        }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's: it came from `alloc` with this layout, and the new size isn't 0. The lock is free
        // again before the copy.
        unsafe {
            // Sanitized, every block moves, so that pointers to where it was are seen to be stale.
            if !sanitize::ON {
                let mut heap = self.0.lock();
                if heap.talc.try_realloc_in_place(at, layout, new_size) {
                    heap.count(layout.size(), new_size);
                    return at;
                }
            }
            let new = self.alloc(Layout::from_size_align_unchecked(new_size, layout.align()));
            if !new.is_null() {
                ptr::copy_nonoverlapping(at, new, layout.size().min(new_size));
                self.dealloc(at, layout);
            }
            new
        }
    }
}

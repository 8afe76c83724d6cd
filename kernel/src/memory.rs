//! Memory from the loader's map to the frame allocator; from then on there is a heap (`heap.rs`).
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
#![allow(unsafe_code)] // hands out raw memory; each block says why it is sound

use core::{
    cell::UnsafeCell,
    mem::MaybeUninit,
    slice,
    sync::atomic::{AtomicU64, Ordering},
};

use addr::{DirectMap, Frame, PAGE_SIZE, PhysAddr};
use frames::{Clear, Config, FrameRange};
use owned::{Memory, OwnedFrame, Use};
use percpu::Pinned;

use crate::{
    heap,
    hw::{
        boot::{Info, PhysRange},
        cpu, irq, marker, numa, paging,
    },
    places::Place,
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
pub fn here() -> Pinned<'static> {
    debug_assert!(may_use_frames());
    // SAFETY: threads are not preempted in the kernel, and the callers do not sleep while they have it; the assertion's
    // condition never holds in an interrupt handler.
    unsafe { Pinned::assume(cpu::id()) }
}

/// Whether the caller is a thread with interrupts on, or this CPU has no thread yet. Handlers run with interrupts off.
pub fn may_use_frames() -> bool {
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
    let heap_memory = e.take(heap::bytes(cpus) as u64);
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
    let Some(heap_memory) = heap_memory else { panic!("no room for the heap's lists") };
    heap::init(cpus, heap_memory);
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
        // What lies beyond is not used: an address space could not name it.
        let end = ram.end.min(aspace::FRAMES * PAGE_SIZE);
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
    heap::places(add);
}

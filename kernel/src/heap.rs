//! The kernel's heap.
//!
//! Objects up to 2 KiB come from slabs, each CPU's its own (crate `heap`); larger ones from `talc`, behind one lock, on runs of
//! frames that it never gives back. One allocation is at most 4 KiB less than 2 MiB, the largest run.
//!
//! # Interrupt handlers
//! use the heap too, while `frames` isn't for them: the interrupted thread may be in the middle of it, and a thread that
//! holds a lock with interrupts off must not wait for one that `frames` holds with interrupts on. So only threads with
//! interrupts on fetch frames and give them back, with nothing of the heap's held; everybody else lives on the CPU's reserve of slabs
//! and on a *spare* run for `talc`, which the next of those threads replaces. A CPU enters its slabs with interrupts off, so nobody
//! interrupts it there.
//!
//! # When memory is short
//! `frames().low()` says so: only the reserve is left, or what the heap has is more than its share, a quarter of memory. Calls that
//! need a record of the kernel's then answer ENOMEM before they begin, so what still asks the heap is small, is needed to
//! go on or to end, and has the rest of the frames' reserve, and behind that the heap's own. Larger pieces, whose size a program
//! chooses, are asked for with `try_reserve`.
//!
//! In the sanitized build (`sanitize`) everything comes from `talc`; allocations have redzones, and what is freed stays in quarantine
//! for a while.
#![allow(unsafe_code)] // hands out raw memory; each block says why it is sound

use core::{
    alloc::{GlobalAlloc, Layout},
    cell::UnsafeCell,
    mem::MaybeUninit,
    ptr::{self, NonNull},
    sync::atomic::{AtomicUsize, Ordering},
};

use addr::{PAGE_SIZE, PhysAddr};
use frames::HUGE_ORDER;
use heap::{Class, Heap};
use owned::{OwnedRun, Use};
use percpu::Line;
use talc::{DefaultBinning, base::Talc, source::Manual};

use crate::{
    hw::{cpu, irq, paging},
    memory::{dm, frames, here, may_use_frames},
    places::{self, Place},
    reclaim,
    sanitize::{
        self, exempt,
        heap::{Quarantine, claimed, expect_allocated, open, with_redzones},
    },
};

/// The part of memory that the heap may fill with what can be refused.
const PART: usize = 4;

/// Bytes that the heap has in slabs, and has handed out of runs, redzones included. Apart from what all CPUs only read.
static USED: Line<AtomicUsize> = Line(AtomicUsize::new(0));
/// How many may be before memory counts as short; see the module.
static SHARE: AtomicUsize = AtomicUsize::new(0);

/// `more` bytes more are in use, and `less` fewer.
fn count(more: usize, less: usize) {
    // Relaxed: written at boot.
    let share = SHARE.load(Ordering::Relaxed);
    // SeqCst: who comes last to `set_strained`, a locked operation too, has seen what the other did before it.
    let was = USED.0.fetch_add(more.wrapping_sub(less), Ordering::SeqCst);
    let is_over = || USED.0.load(Ordering::SeqCst) > share;
    let now = was.wrapping_add(more).wrapping_sub(less);
    if (was > share) == (now > share) {
        return;
    }
    let mut over = now > share;
    if over {
        // Other CPUs may have what they don't know of.
        reclaim::ask_to_settle();
    }
    loop {
        frames().set_strained(over);
        if is_over() == over {
            return;
        }
        over = !over;
    }
}

struct SlabCell(UnsafeCell<MaybeUninit<Heap>>);
// SAFETY: written once, by `init`, before there is another CPU; `Heap` is `Sync`.
unsafe impl Sync for SlabCell {}
static SLABS: SlabCell = SlabCell(UnsafeCell::new(MaybeUninit::uninit()));

/// Bytes that [`init`] wants for `cpus` CPUs, from the start of a page.
pub const fn bytes(cpus: usize) -> usize {
    Heap::bytes(cpus)
}

/// Begin, with `memory` of [`bytes`], the heap's for ever. At boot, once, when there are frames.
pub fn init(cpus: usize, memory: PhysAddr) {
    let Some(memory) = NonNull::new(dm().ptr(memory)) else { return };
    // SAFETY: the caller's memory, of whole pages; there is no other CPU yet, and nothing was allocated.
    unsafe { (*SLABS.0.get()).write(Heap::new(cpus, memory)) };
    // Relaxed: there is no other CPU yet.
    SHARE.store(frames().total() as usize * PAGE_SIZE as usize / PART, Ordering::Relaxed);
}

/// `what` in this CPU's slabs.
#[inline]
fn enter<R>(what: impl FnOnce(&Heap, percpu::CpuId) -> R) -> R {
    let _off = irq::Off::new();
    // SAFETY: `init` has run: nothing before it in the boot order allocates.
    what(unsafe { (*SLABS.0.get()).assume_init_ref() }, cpu::id())
}

/// A run of frames that is not part of the heap.
struct Run {
    base: NonNull<u8>,
    bytes: usize,
}
// SAFETY: it owns the memory that its pointer names.
unsafe impl Send for Run {}

/// A run of 2^`order` frames.
fn fetch_run(order: u32) -> Option<Run> {
    let run = frames().alloc_run(&here(), order, Use::Kernel)?;
    Some(Run { base: NonNull::new(dm().ptr(run.into_raw().base()))?, bytes: (PAGE_SIZE as usize) << order })
}

fn order_of(bytes: usize) -> u32 {
    (bytes / PAGE_SIZE as usize).trailing_zeros()
}

/// Give a run of frames back.
fn give(run: Run) {
    let at = (run.base.addr().get() as u64).wrapping_sub(paging::DIRECT_MAP);
    let Some(first) = PhysAddr::new(at).map(PhysAddr::frame) else { return };
    // SAFETY: it came from `fetch_run` or `fetch`, whole, and nobody uses it.
    let run = unsafe { OwnedRun::from_raw(first, order_of(run.bytes), Use::Kernel) };
    frames().free_run(&here(), run);
}

#[inline]
fn alloc_small(class: Class) -> Option<NonNull<u8>> {
    // SAFETY: `enter` keeps the promise of `Heap`.
    let (at, lacks) = enter(|heap, cpu| unsafe { (heap.alloc(cpu, class), heap.lacks(cpu)) });
    if at.is_none() || lacks.is_some() { alloc_slowly(class, at) } else { at }
}

/// There was no object, or the reserve lacks something.
#[inline(never)]
fn alloc_slowly(class: Class, mut at: Option<NonNull<u8>>) -> Option<NonNull<u8>> {
    if !may_use_frames() {
        return at;
    }
    // A handler on this CPU may be quicker to use what was fetched.
    while at.is_none() {
        let bytes = class.slab_bytes();
        let run = fetch_slab(bytes)?;
        at = enter(|heap, cpu| {
            // SAFETY: as in `alloc_small`; the run is ours, aligned as runs are, and of this class's slabs.
            unsafe {
                heap.supply(cpu, class, run.base);
                heap.alloc(cpu, class)
            }
        });
    }
    stock();
    at
}

/// A run for a slab.
fn fetch_slab(bytes: usize) -> Option<Run> {
    let run = fetch_run(order_of(bytes))?;
    count(bytes, 0);
    places::slab(run.base.addr().get()..run.base.addr().get() + bytes);
    Some(run)
}

/// Fill this CPU's reserve, unless memory is short. For threads with interrupts on.
fn stock() {
    // SAFETY: as in `alloc_small`.
    while let Some(bytes) = enter(|heap, cpu| unsafe { heap.lacks(cpu) }) {
        if frames().low() {
            return;
        }
        let Some(run) = fetch_slab(bytes) else { return };
        // SAFETY: as in `alloc_small`; the run is ours, aligned as runs are, and of as many bytes.
        enter(|heap, cpu| unsafe { heap.stock(cpu, run.base, bytes) });
    }
}

#[inline]
fn free_small(at: NonNull<u8>, class: Class) {
    // SAFETY: as in `alloc_small`; the caller's object.
    if enter(|heap, cpu| unsafe { heap.free(cpu, at, class) }) && may_use_frames() {
        give_empty();
    }
}

/// Give this CPU's empty slabs back. For threads with interrupts on.
#[inline(never)]
fn give_empty() {
    // SAFETY: as in `alloc_small`.
    while let Some((base, bytes)) = enter(|heap, cpu| unsafe { heap.pop_empty(cpu) }) {
        count(0, bytes);
        give(Run { base, bytes });
    }
}

/// Take back what other CPUs have freed of this one's, and if memory is low keep nothing but the reserve. For threads with
/// interrupts on.
pub fn settle() {
    if sanitize::ON {
        return;
    }
    // SAFETY: as in `alloc_small`.
    while enter(|heap, cpu| unsafe { heap.settle(cpu) }) {}
    if frames().low() {
        // SAFETY: as in `alloc_small`.
        enter(|heap, cpu| unsafe { heap.trim(cpu) });
    }
    give_empty();
    stock();
}

/// Whether this CPU could have a `T` now: for who is to refuse rather than fail, if that is nearly the last.
pub fn gives<T>() -> bool {
    let layout = Layout::new::<T>();
    // SAFETY: callers' types have a size, and it is given back with the same layout.
    unsafe {
        let at = alloc::alloc::alloc(layout);
        if !at.is_null() {
            alloc::alloc::dealloc(at, layout);
        }
        !at.is_null()
    }
}

/// Where the larger objects are.
pub fn places(add: &mut dyn FnMut(Place)) {
    let runs = HEAP.0.lock().runs;
    runs.into_iter()
        .filter(|(from, to)| from < to)
        .for_each(|(from, to)| add(Place::named("kernel heap", from..to)));
}

/// Order of the smallest run that is good as a spare: 64 KiB.
const SPARE_ORDER: u32 = 4;
/// The largest allocation, in bytes.
const LARGEST: usize = ((PAGE_SIZE as usize) << HUGE_ORDER) - OVERHEAD;
/// The part of the heap's share that may be in quarantine.
const QUARANTINE_PART: usize = 16;
/// What `talc` may take of a run for itself, and of an allocation for its header, in bytes; generous.
const OVERHEAD: usize = 4096;

/// How many runs are noted for reports.
const RUNS: usize = 128;

/// What the spare run is asked to hold, in bytes.
const SPARE_BYTES: usize = ((PAGE_SIZE as usize) << SPARE_ORDER) - OVERHEAD;

struct Large {
    talc: Talc<Manual, DefaultBinning>,
    spare: Option<Run>,
    /// What was freed a short while ago; empty but in the sanitized build.
    quarantine: Quarantine,
    /// The runs that it has, adjacent ones as one, as far as there is room to note them: for reports.
    runs: [(usize, usize); RUNS],
}

// SAFETY: it owns the memory that its pointers name.
unsafe impl Send for Large {}

impl Large {
    /// Memory from what the heap has, and if `last` from the spare run.
    fn allocate(&mut self, layout: Layout, last: bool) -> Option<NonNull<u8>> {
        let outer = with_redzones(layout)?;
        let found = self.find(outer, last)?;
        count(outer.size(), 0);
        Some(open(found, layout))
    }

    /// Take back what [`Self::allocate`] gave.
    fn free(&mut self, at: NonNull<u8>, layout: Layout) {
        count(0, with_redzones(layout).map_or(0, |outer| outer.size()));
        if !sanitize::ON {
            // SAFETY: it came from `allocate` with this layout.
            return unsafe { self.talc.deallocate(at.as_ptr(), layout) };
        }
        self.quarantine.push(at, layout);
        // Relaxed: written at boot.
        let most = SHARE.load(Ordering::Relaxed) / QUARANTINE_PART;
        while self.quarantine.bytes() > most && self.release() {}
    }

    /// Take what has been in quarantine longest out of it; false if there is nothing.
    fn release(&mut self) -> bool {
        let Some((block, outer)) = self.quarantine.pop() else { return false };
        // SAFETY: the block came from `talc` with this layout, and its owner has freed it.
        exempt(|| unsafe { self.talc.deallocate(block.as_ptr(), outer) });
        true
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
struct KernelHeap(irq::Lock<Large>);

#[global_allocator]
static HEAP: KernelHeap = KernelHeap(irq::Lock::new(Large {
    talc: Talc::new(Manual),
    spare: None,
    quarantine: Quarantine::new(),
    runs: [(0, 0); RUNS],
}));

/// A run for an allocation of `bytes`, and more if there is plenty. For threads with interrupts on, and at boot.
fn fetch(bytes: usize) -> Option<Run> {
    let pages = (bytes + OVERHEAD).div_ceil(PAGE_SIZE as usize);
    let least = pages.next_power_of_two().trailing_zeros();
    // What is left when memory is low is for others too.
    let most = if frames().low() { least } else { HUGE_ORDER };
    (least..=most).rev().find_map(fetch_run)
}

/// The class of slabs that serves `layout`.
#[inline]
fn class_of(layout: Layout) -> Option<Class> {
    if sanitize::ON { None } else { Class::of(layout) }
}

impl KernelHeap {
    /// A larger object.
    fn alloc_large(&self, layout: Layout) -> Option<NonNull<u8>> {
        let bytes =
            with_redzones(layout).map_or(usize::MAX, |outer| outer.size().saturating_add(outer.align()));
        if bytes > LARGEST {
            return None;
        }
        if !may_use_frames() {
            return self.0.lock().allocate(layout, true);
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
                    return Some(found);
                }
                None => {
                    let Some(run) = fetch(bytes) else { break };
                    self.0.lock().claim(run);
                }
            }
        }
        // No frames, not even of the reserve, or not in one piece.
        self.0.lock().allocate(layout, true)
    }
}

// SAFETY: the slabs and `talc` keep the contract of memory that is handed out once; null when there is none.
unsafe impl GlobalAlloc for KernelHeap {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let found = match class_of(layout) {
            Some(class) => alloc_small(class),
            None => self.alloc_large(layout),
        };
        found.map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    #[inline]
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        expect_allocated(at, layout);
        // The caller's: it came from `alloc` with this layout, so it isn't null.
        let Some(at) = NonNull::new(at) else { return };
        match class_of(layout) {
            Some(class) => free_small(at, class),
            None => self.0.lock().free(at, layout),
        }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's: `new_size`, rounded up to the alignment, isn't too large.
        let new = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        match (class_of(layout), class_of(new)) {
            (Some(old), Some(new)) if old == new => return at,
            // Sanitized, every block moves, so that pointers to where it was are seen to be stale.
            (None, None) if !sanitize::ON => {
                let mut heap = self.0.lock();
                // SAFETY: the caller's: it came from `alloc` with this layout, from `talc`.
                if unsafe { heap.talc.try_realloc_in_place(at, layout, new_size) } {
                    count(new_size, layout.size());
                    return at;
                }
            }
            _ => {}
        }
        // SAFETY: the caller's: it came from `alloc` with this layout, and the new size isn't 0. No lock is held during the
        // copy.
        unsafe {
            let to = self.alloc(new);
            if !to.is_null() {
                ptr::copy_nonoverlapping(at, to, layout.size().min(new_size));
                self.dealloc(at, layout);
            }
            to
        }
    }
}

//! A global allocator that puts each object against a guard page.
//!
//! - The object ends where the guard begins, but for the bytes that its alignment leaves; these, and some before
//!   the object, hold a pattern that is checked when it is freed.
//! - What is freed is closed as a whole, and stays closed until so many others of its class have been freed: a use
//!   after free traps.
//! - Guards cost no mapping where the kernel has `MADV_GUARD_INSTALL` (Linux 6.13); elsewhere `mprotect` makes
//!   them, and `vm.max_map_count` limits their number to some thirty thousand. What comes after has none, and a line on
//!   standard error says so (`limit.rs`).
//!
//! Objects above 16 MiB, or aligned to more than a page, go to the system's allocator.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicU32, AtomicUsize, Ordering},
};

use crate::{
    limit, report,
    slots::{self, FREED, LIVE, PAGE, Place},
    stack,
};

const PATTERN: u8 = 0xa9;
/// Bytes before an object that are checked.
const BEFORE: usize = 64;
/// Freed slots of a class that stay closed.
const QUARANTINE: u32 = 256;

/// The allocator; use it as the `global_allocator`.
#[derive(Debug)]
pub struct FenceAlloc {
    every: usize,
    count: AtomicUsize,
}

impl Default for FenceAlloc {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether guards need no mapping: 0 not known, 1 yes, 2 no.
static GUARDS: AtomicU32 = AtomicU32::new(0);
/// Guards that `mprotect` has made.
static MAPPED: AtomicUsize = AtomicUsize::new(0);

/// Guards are made by `mprotect` from here on, whatever the kernel has; for before the first object.
pub fn by_mprotect() {
    // Relaxed: see below.
    GUARDS.store(2, Ordering::Relaxed);
}

fn has_guards(at: usize) -> bool {
    // Relaxed, both: any thread finds the same.
    match GUARDS.load(Ordering::Relaxed) {
        0 => {
            // By trying on the page that is to be one: whether it then traps is for `vmprim`'s probe, which
            // allocates.
            // SAFETY: a page of ours that nobody uses.
            let works = unsafe { vmprim::guard::install(at, PAGE) }.is_ok();
            GUARDS.store(if works { 1 } else { 2 }, Ordering::Relaxed);
            works
        }
        known => known == 1,
    }
}

/// Let nobody touch whole pages of ours; what was in them is gone. Whether it worked.
fn close(at: usize, len: usize) -> bool {
    // SAFETY: pages of the reservation that nobody uses.
    unsafe {
        match has_guards(at) {
            true => vmprim::guard::install(at, len).is_ok(),
            false => {
                libc::madvise(at as *mut _, len, libc::MADV_DONTNEED);
                libc::mprotect(at as *mut _, len, libc::PROT_NONE) == 0
            }
        }
    }
}

/// Make the page a guard for good. By `mprotect` there are only so many that a tenth of the mappings is left to the program;
/// the first that is refused is said, since objects from there on have none.
fn guard(at: usize) -> bool {
    // Relaxed, all below: a count and a mark.
    let mapped = !has_guards(at);
    // Each is a mapping, and so is the slot before it.
    let has_room = !mapped || 2 * MAPPED.fetch_add(1, Ordering::Relaxed) < limit::mappings() / 10 * 9;
    let made = has_room && close(at, PAGE);
    if !made {
        limit::say_once(mapped);
    }
    made
}

fn open(at: usize, len: usize) -> bool {
    // SAFETY: as above.
    unsafe {
        match has_guards(at) {
            true => vmprim::guard::remove(at, len).is_ok(),
            false => libc::mprotect(at as *mut _, len, libc::PROT_READ | libc::PROT_WRITE) == 0,
        }
    }
}

fn thread() -> u32 {
    // SAFETY: it touches no memory.
    u32::try_from(unsafe { libc::syscall(libc::SYS_gettid) }).unwrap_or(0)
}

impl FenceAlloc {
    /// Every object is guarded.
    pub const fn new() -> Self {
        Self::sampled(1)
    }

    /// One object in `every` is guarded, the others are the system's: cheap enough to leave on.
    pub const fn sampled(every: usize) -> Self {
        Self { every: if every == 0 { 1 } else { every }, count: AtomicUsize::new(0) }
    }
}

/// A guarded object; nothing if it is too large, aligned to more than a page, or if there are no more guards.
pub fn place(layout: Layout) -> Option<*mut u8> {
    let size = layout.size().max(1);
    if layout.align() > PAGE || !slots::ready() {
        return None;
    }
    let rounded = size.checked_next_multiple_of(layout.align())?;
    let class = slots::class_of(rounded.div_ceil(PAGE))?;
    report::install();
    let (place, used) = slots::take(class)?;
    let (start, len) = (place.start(), place.len());
    let is_first = place.number == 0;
    if !used && (is_first && !guard(start - PAGE) || !guard(start + len)) {
        // No more guards: the rest is the system's. The slot stays carved, and is never used.
        return None;
    }
    let offset = len - rounded;
    let slot = place.slot();
    // Relaxed, all: the slot is this thread's until the object's address is handed out.
    slot.size.store(size, Ordering::Relaxed);
    slot.offset.store(offset, Ordering::Relaxed);
    slot.allocated_by.store(thread(), Ordering::Relaxed);
    stack::note(&slot.allocated_at);
    slot.state.store(LIVE, Ordering::Relaxed);
    let at = start + offset;
    let before = BEFORE.min(offset);
    // SAFETY: all in the slot, which is open and this thread's.
    unsafe {
        ((at - before) as *mut u8).write_bytes(PATTERN, before);
        ((at + size) as *mut u8).write_bytes(PATTERN, rounded - size);
    }
    Some(at as *mut u8)
}

/// Take an object of ours back.
pub fn take_back(at: usize, place: Place) {
    let slot = place.slot();
    let (size, offset) = (slot.size.load(Ordering::Relaxed), slot.offset.load(Ordering::Relaxed));
    if !place.is_carved() || at != place.start() + offset {
        report::free("free of what is not an object", place);
    }
    // AcqRel: of two threads that free it one finds it freed, and sees who did.
    if slot.state.compare_exchange(LIVE, FREED, Ordering::AcqRel, Ordering::Relaxed).is_err() {
        report::free("free of what was freed", place);
    }
    let before = BEFORE.min(offset);
    let is_whole = |from: usize, to: usize| {
        // SAFETY: in the slot, which is open until it is closed below.
        (from..to).all(|at| unsafe { (at as *const u8).read_volatile() } == PATTERN)
    };
    if !is_whole(at + size, place.start() + place.len()) {
        report::free("free, and bytes past the end were written", place);
    }
    if !is_whole(at - before, at) {
        report::free("free, and bytes before the start were written", place);
    }
    slot.freed_by.store(thread(), Ordering::Relaxed);
    stack::note(&slot.freed_at);
    if !close(place.start(), place.len()) {
        // It is never handed out again, so a use of it harms nobody; but it isn't seen.
        report::say_once(&limit::OPEN, "fence: what was freed can't be closed: uses of it are not found\n");
        return;
    }
    if let Some(oldest) = slots::quarantine(place, QUARANTINE)
        && open(oldest.start(), oldest.len())
    {
        slots::give(oldest);
    }
}

// SAFETY: objects are disjoint: one to a slot, and a slot is handed out again only after its object was taken back.
// What is not placed is the system's, and goes back there by its address.
unsafe impl GlobalAlloc for FenceAlloc {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // Relaxed, and not by read-modify-write, which costs as much as an allocation: where threads meet, one more or less is
        // guarded.
        let left = self.count.load(Ordering::Relaxed);
        self.count.store(if left == 0 { self.every - 1 } else { left - 1 }, Ordering::Relaxed);
        let nth = left > 0;
        let placed = if nth { None } else { place(layout) };
        // SAFETY: as the caller says.
        placed.unwrap_or_else(|| unsafe { System.alloc(layout) })
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        match Place::of(at as usize) {
            Some(place) => take_back(at as usize, place),
            // SAFETY: it came from there.
            None => unsafe { System.dealloc(at, layout) },
        }
    }
}

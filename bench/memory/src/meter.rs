//! Bytes that the kernel's heap would have handed out: its size classes, and its allocator of larger objects, in this process.
//!
//! **What is counted.** Allocations of the threads that say so, as long as they say so. One that the kernel has from a slab counts as
//! its part of the slab: the slab's bytes by the objects it holds, so that headers, rounding and what is left over at the end
//! are in it. A slab's free objects are not: they are for whoever comes next. A larger one is really had from
//! [`talc`], as in the kernel, and counts as what talc has less after it.
//!
//! Memory of the slabs' objects is the host's, as where they are doesn't matter.
#![allow(unsafe_code)] // hands out raw memory; each block says why it is sound

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    sync::Mutex,
};

use heap::Class;
use talc::{DefaultBinning, base::Talc, source::Manual};

/// Counts are of so many parts of a byte, that slabs are divided exactly enough.
const PARTS: u64 = 1 << 16;
/// Bytes that talc gets at a time, as in the kernel when there is plenty.
const RUN: usize = 2 << 20;

thread_local! {
    /// Whether this thread's allocations are counted.
    static ON: Cell<bool> = const { Cell::new(false) };
    /// What it has in use, in parts.
    static USED: Cell<i64> = const { Cell::new(0) };
}

/// The host's heap, which counts.
pub struct Meter;

struct Large {
    talc: Talc<Manual, DefaultBinning>,
    /// Where talc's memory is.
    runs: [(usize, usize); 256],
    len: usize,
}

static LARGE: Mutex<Large> = Mutex::new(Large { talc: Talc::new(Manual), runs: [(0, 0); 256], len: 0 });

/// Count what `f` allocates, less what it frees.
pub fn counted<R>(f: impl FnOnce() -> R) -> R {
    let was = ON.replace(true);
    let result = f();
    ON.set(was);
    result
}

/// Bytes in use of what this thread has counted.
pub fn used() -> u64 {
    u64::try_from(USED.get()).unwrap_or(0).div_ceil(PARTS)
}

/// What an object of `class` takes of a slab, in parts of bytes.
fn parts(class: Class) -> i64 {
    (class.slab_bytes() as u64 * PARTS / class.per_slab() as u64) as i64
}

impl Large {
    /// An object, and the bytes that talc has less.
    fn alloc(&mut self, layout: Layout) -> (*mut u8, usize) {
        loop {
            let before = self.talc.counters().available_bytes;
            // SAFETY: the size isn't 0: it is larger than any class.
            if let Some(found) = unsafe { self.talc.allocate(layout) } {
                return (found.as_ptr(), before - self.talc.counters().available_bytes);
            }
            let run = Layout::from_size_align(RUN.max(2 * layout.size()), 4096).unwrap_or(layout);
            // SAFETY: as above.
            let base = unsafe { System.alloc(run) };
            if base.is_null() || self.len == self.runs.len() {
                return (std::ptr::null_mut(), 0);
            }
            self.runs[self.len] = (base.addr(), base.addr() + run.size());
            self.len += 1;
            // SAFETY: the run is talc's alone, for ever.
            unsafe { self.talc.claim(base, run.size()) };
        }
    }
    /// Take it back if it is talc's; how many bytes talc has more.
    fn free(&mut self, at: *mut u8, layout: Layout) -> Option<usize> {
        self.runs[..self.len].iter().find(|(from, to)| (*from..*to).contains(&at.addr()))?;
        let before = self.talc.counters().available_bytes;
        // SAFETY: it lies in a run of talc's, so it came from `alloc`, with this layout by the caller's promise.
        unsafe { self.talc.deallocate(at, layout) };
        Some(self.talc.counters().available_bytes - before)
    }
}

fn charge(parts: i64) {
    if ON.get() {
        USED.set(USED.get() + parts);
    }
}

// SAFETY: the system's and talc's memory is handed out once, and goes back to where it is from.
unsafe impl GlobalAlloc for Meter {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match Class::of(layout) {
            None if ON.get() => {
                let mut large = LARGE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                let (at, bytes) = large.alloc(layout);
                charge(bytes as i64 * PARTS as i64);
                at
            }
            class => {
                charge(class.map_or(0, parts));
                // SAFETY: the caller's promise.
                unsafe { System.alloc(layout) }
            }
        }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        if let Some(class) = Class::of(layout) {
            charge(-parts(class));
        } else if let Some(bytes) =
            LARGE.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).free(at, layout)
        {
            return charge(-(bytes as i64) * PARTS as i64);
        }
        // SAFETY: the caller's promise; it isn't talc's.
        unsafe { System.dealloc(at, layout) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_what_the_kernels_heap_takes() {
        let before = used();
        let kept = counted(|| vec![vec![0u8; 576], vec![0; 4160]]);
        let taken = used() - before;
        let slot = Class::of(Layout::new::<[u8; 576]>()).unwrap();
        let small = slot.slab_bytes() as f64 / slot.per_slab() as f64;
        let list = 4096.0 / 62.0;
        assert!((taken as f64 - small - list) >= 4160.0 && (taken as f64) < small + list + 4300.0, "{taken}");
        // Somebody else's are not counted.
        let others = vec![0u8; 1 << 12];
        assert_eq!(used() - before, taken);
        counted(|| drop(kept));
        assert_eq!(used(), before);
        drop(others);
    }
}

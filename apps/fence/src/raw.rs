//! The allocator's parts, for a `malloc` made of them (`apps/fence-preload`).

use std::alloc::Layout;

use crate::{
    alloc, report,
    slots::{self, Place},
    stack,
};

/// A guarded object that ends at a guard, but for what its alignment leaves; `None` if it can't be one.
pub fn place(size: usize, align: usize) -> Option<*mut u8> {
    alloc::place(Layout::from_size_align(size, align).ok()?)
}

/// Bytes of the object at `at`, if it is a guarded one. What is none of our objects, and in our memory, ends the process.
pub fn size_of(at: *const u8) -> Option<usize> {
    let place = Place::of(at as usize)?;
    if !place.is_live(at as usize) {
        report::free("use of what is not an object", place);
    }
    Some(place.size())
}

/// Take the object at `at` back; false if it is none of ours.
pub fn free(at: *mut u8) -> bool {
    let Some(place) = Place::of(at as usize) else { return false };
    alloc::take_back(at as usize, place);
    true
}

/// Let guards be made by `mprotect`, whatever the kernel has. For before the first object.
pub fn by_mprotect() {
    alloc::by_mprotect();
}

/// Note call stacks of allocations and frees from here on, and say them in reports.
pub fn note_stacks() {
    stack::turn_on();
}

/// Before a fork.
pub fn lock() {
    slots::lock_all();
}

/// After a fork, in both processes.
pub fn unlock() {
    slots::unlock_all();
}

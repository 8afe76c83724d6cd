//! Objects that wait for a grace period together.

use alloc::{boxed::Box, vec::Vec};
use core::ptr::NonNull;

use percpu::{CpuId, Pinned};

use crate::list;

/// A bag is handed over with so many objects, or so many bytes. A period is begun for each, so that of what `membarrier` takes,
/// some 300 ns, an object bears 1 or 2.
pub(super) const OBJECTS: usize = if cfg!(any(loom, shuttle)) { 2 } else { 256 };
pub(super) const BYTES: usize = 64 << 10;
/// What is written over an object that was freed, with checks.
const POISON: u8 = 0xA5;

/// An object, and how to free it.
pub(super) struct Deferred {
    object: NonNull<()>,
    free: unsafe fn(NonNull<()>),
    bytes: usize,
}

impl Deferred {
    /// Of a box that has been unlinked.
    pub(super) fn new<T: Send + 'static>((object, bytes): (NonNull<T>, usize)) -> Self {
        // An object takes a word or two of the allocator's, and its place in the bag.
        let bytes = bytes.max(16) + size_of::<Self>();
        Self { object: object.cast(), free: free::<T>, bytes }
    }
    /// Of an object that carries its own link, and is freed without use of the CPU that its [`Free`](list::Free) is told.
    pub(super) fn linked(retired: list::Retired) -> Self {
        let bytes = retired.bytes() + size_of::<Self>();
        Self { object: retired.into_head().cast(), free: free_linked, bytes }
    }
    /// Free it.
    ///
    /// # Safety
    /// No section may still find it.
    unsafe fn run(self) {
        // SAFETY: made for this type, and by the caller's promise nobody else has it.
        unsafe { (self.free)(self.object) };
    }
}

unsafe fn free<T>(object: NonNull<()>) {
    // SAFETY: made of a box of this type; the caller has it alone.
    unsafe { dispose(object.cast::<T>()) };
}

unsafe fn free_linked(object: NonNull<()>) {
    // SAFETY: nothing is taken from the CPU by it, whatever CPU that is.
    let nowhere = unsafe { Pinned::assume(CpuId::default()) };
    // SAFETY: made of a retired object's link; the caller has the object alone.
    unsafe { list::free(object.cast(), &nowhere) };
}

/// Drop what was a box, and with checks overwrite its memory.
///
/// # Safety
/// It was a box, and the caller alone has it.
pub(crate) unsafe fn dispose<T>(object: NonNull<T>) {
    if super::CHECKED {
        // SAFETY: the value is dropped once; its memory stays a box's, of a type that needs no value.
        unsafe {
            object.drop_in_place();
            object.cast::<u8>().write_bytes(POISON, size_of::<T>());
            drop(Box::from_raw(object.cast::<core::mem::MaybeUninit<T>>().as_ptr()));
        }
    } else {
        // SAFETY: the caller's promise.
        drop(unsafe { Box::from_raw(object.as_ptr()) });
    }
}

/// Some of them.
pub(super) struct Bag {
    items: Vec<Deferred>,
    bytes: usize,
}

// SAFETY: `Deferred::new` takes what may be dropped on any thread.
unsafe impl Send for Bag {}

impl Bag {
    pub(super) const EMPTY: Bag = Bag { items: Vec::new(), bytes: 0 };

    pub(super) fn put(&mut self, item: Deferred) {
        if self.items.capacity() == 0 {
            self.items.reserve_exact(OBJECTS);
        }
        self.bytes += item.bytes;
        self.items.push(item);
    }
    pub(super) fn is_full(&self) -> bool {
        self.items.len() >= OBJECTS || self.bytes >= BYTES
    }
    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
    pub(super) fn take(&mut self) -> Bag {
        core::mem::replace(self, Bag::EMPTY)
    }
    /// Free what is in it; how many.
    ///
    /// # Safety
    /// A grace period has passed since the last was put in.
    pub(super) unsafe fn run(&mut self) -> usize {
        let count = self.items.len();
        self.bytes = 0;
        for item in self.items.drain(..) {
            // SAFETY: the caller's promise.
            unsafe { item.run() };
        }
        count
    }
    /// Take the memory of one that has been run. (An allocator may tidy up all small blocks that are free when it is asked for a
    /// large one, which costs far more than the bag.)
    pub(super) fn reuse(&mut self, empty: Bag) {
        if self.items.capacity() == 0 {
            *self = empty;
        }
    }
}

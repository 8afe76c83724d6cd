//! The primitives that every protocol is written with: core's own, or loom's under `cfg(loom)`, so that the same
//! source is model-checked, or shuttle's under `cfg(shuttle)`, whose schedules are longer and drawn at random.

#[cfg(not(any(loom, shuttle, feature = "testing")))]
pub use core::hint::spin_loop;
#[cfg(not(any(loom, shuttle)))]
pub use core::sync::atomic::{
    AtomicBool, AtomicI64, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};
#[cfg(loom)]
pub use loom::{
    cell::{ConstPtr, MutPtr, UnsafeCell},
    hint::spin_loop,
    sync::atomic::{AtomicBool, AtomicI64, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence},
};
#[cfg(shuttle)]
pub use shuttle::{
    hint::spin_loop,
    sync::atomic::{AtomicBool, AtomicI64, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence},
};
/// On a host the holder of a spin lock may have lost its processor to the spinner: hand it over.
#[cfg(all(not(any(loom, shuttle)), feature = "testing"))]
pub use std::thread::yield_now as spin_loop;

/// `core::cell::UnsafeCell` with loom's style of access: by closure, or by a pointer whose life is the access.
#[cfg(not(loom))]
#[derive(Debug, Default)]
pub struct UnsafeCell<T: ?Sized>(core::cell::UnsafeCell<T>);

#[cfg(not(loom))]
impl<T> UnsafeCell<T> {
    /// A cell that holds `value`.
    pub const fn new(value: T) -> Self {
        Self(core::cell::UnsafeCell::new(value))
    }
    /// The value, back from the cell.
    pub fn into_inner(self) -> T {
        self.0.into_inner()
    }
}

#[cfg(not(loom))]
impl<T: ?Sized> UnsafeCell<T> {
    /// Call `f` with a pointer for reading.
    #[inline(always)]
    pub fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
        f(self.0.get())
    }
    /// Call `f` with a pointer for reading and writing.
    #[inline(always)]
    pub fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
        f(self.0.get())
    }
    /// A read access that lasts as long as the result.
    #[inline(always)]
    pub fn get(&self) -> ConstPtr<T> {
        ConstPtr(self.0.get())
    }
    /// A write access that lasts as long as the result.
    #[inline(always)]
    pub fn get_mut(&self) -> MutPtr<T> {
        MutPtr(self.0.get())
    }
}

/// A read access to an [`UnsafeCell`]; loom checks that no write overlaps it.
#[cfg(not(loom))]
#[derive(Debug)]
pub struct ConstPtr<T: ?Sized>(*const T);

#[cfg(not(loom))]
impl<T: ?Sized> ConstPtr<T> {
    /// The value.
    ///
    /// # Safety
    /// The cell is alive and nothing writes it during the borrow.
    #[inline(always)]
    pub unsafe fn deref(&self) -> &T {
        // SAFETY: the caller's promise is what a shared reference asks.
        unsafe { &*self.0 }
    }
}

/// A write access to an [`UnsafeCell`]; loom checks that no other access overlaps it.
#[cfg(not(loom))]
#[derive(Debug)]
pub struct MutPtr<T: ?Sized>(*mut T);

#[cfg(not(loom))]
impl<T: ?Sized> MutPtr<T> {
    /// The value.
    ///
    /// # Safety
    /// The cell is alive and nothing else touches it during the borrow.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)] // loom's signature; the promise above is what makes it sound
    pub unsafe fn deref(&self) -> &mut T {
        // SAFETY: the caller's promise is what an exclusive reference asks.
        unsafe { &mut *self.0 }
    }
}

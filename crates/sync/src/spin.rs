//! A spin lock: test, and only then test-and-set, so that waiters read their own copy of the line until it changes
//! (Anderson, "The Performance of Spin Lock Alternatives for Shared-Memory Multiprocessors", 1990, section 3).
//!
//! It isn't fair: it is for sections so short that waiting twice does not matter. A holder neither sleeps nor takes a
//! page fault.

use core::{
    fmt,
    ops::{Deref, DerefMut},
};

use crate::{
    mutant,
    primitive::{AtomicBool, MutPtr, Ordering, UnsafeCell, spin_loop},
};

/// Mutual exclusion by spinning.
pub struct SpinLock<T> {
    held: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the lock hands the value from thread to thread, which `T: Send` allows, and to one at a time, so that no
// `&T` is ever shared between threads by the lock itself.
unsafe impl<T: Send> Sync for SpinLock<T> {}
// SAFETY: the lock owns its value.
unsafe impl<T: Send> Send for SpinLock<T> {}

impl<T> SpinLock<T> {
    /// A free lock over `value`.
    #[cfg(not(loom))]
    pub const fn new(value: T) -> Self {
        Self { held: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }
    /// A free lock over `value`.
    #[cfg(loom)]
    pub fn new(value: T) -> Self {
        Self { held: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }
    /// Wait until the lock is free, and take it.
    #[inline]
    pub fn lock(&self) -> SpinGuard<'_, T> {
        loop {
            if let Some(guard) = self.try_lock() {
                return guard;
            }
            // Relaxed: only a hint when to try again; `try_lock` does the ordering.
            while self.held.load(Ordering::Relaxed) {
                spin_loop();
            }
        }
    }
    /// Take the lock if it is free.
    #[inline]
    pub fn try_lock(&self) -> Option<SpinGuard<'_, T>> {
        // Acquire: what the last holder did comes before; partner of the store in `Unlock::drop`.
        // Relaxed on failure: nothing is read.
        match self.held.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => Some(SpinGuard { value: self.value.get_mut(), _unlock: Unlock(&self.held) }),
            Err(_) => None,
        }
    }
    /// Free the lock, whoever holds it.
    ///
    /// # Safety
    /// Nobody who holds it, or waits for it, goes on; and the value may be what its last holder left unfinished.
    pub unsafe fn force_unlock(&self) {
        // Relaxed: there is nobody to order anything with.
        self.held.store(false, Ordering::Relaxed);
    }
    /// The value, without locking: the exclusive borrow shows that nobody holds the lock.
    pub fn get_mut(&mut self) -> &mut T {
        // SAFETY: `self` is borrowed exclusively, for as long as the result.
        self.value.with_mut(|value| unsafe { &mut *value })
    }
    /// The value, back from the lock.
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

impl<T: Default> Default for SpinLock<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T: fmt::Debug> fmt::Debug for SpinLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.try_lock() {
            Some(guard) => f.debug_tuple("SpinLock").field(&*guard).finish(),
            None => f.write_str("SpinLock(held)"),
        }
    }
}

/// The holder's access to the value; dropping it frees the lock.
#[must_use = "the lock is free again as soon as the guard is dropped"]
pub struct SpinGuard<'a, T> {
    // Fields are dropped in this order: the access ends before the lock is free.
    value: MutPtr<T>,
    _unlock: Unlock<'a>,
}

// SAFETY: a shared guard gives `&T` only.
unsafe impl<T: Sync> Sync for SpinGuard<'_, T> {}

impl<T> Deref for SpinGuard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: this thread holds the lock, so nothing else touches the value; the lock outlives the guard.
        unsafe { self.value.deref() }
    }
}

impl<T> DerefMut for SpinGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and the guard is borrowed exclusively.
        unsafe { self.value.deref() }
    }
}

impl<T: fmt::Debug> fmt::Debug for SpinGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

struct Unlock<'a>(&'a AtomicBool);

impl Drop for Unlock<'_> {
    #[inline]
    fn drop(&mut self) {
        // Release: what this holder did comes before the next holder's section; partner of `try_lock`.
        let order = if mutant!("relaxed-unlock") { Ordering::Relaxed } else { Ordering::Release };
        self.0.store(false, order);
    }
}

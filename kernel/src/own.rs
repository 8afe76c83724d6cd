//! What one thread replaces and others read, and what it reads itself without a lock: its memory.
//!
//! **Claim.** A [`Lent`] is good for as long as it lives: nobody replaces the value meanwhile.
//!
//! **Why.** Others read under the lock, and only read. Who replaces the value is its owner, or somebody who keeps the owner from
//! running; the owner is the only one to lend it to, and counts what is lent; with any left it doesn't replace the value,
//! which is asserted. A thread that ends never comes back to those of its functions that have borrowed, so it [takes](Own::end)
//! the value under them. The count is the owner's alone, so it is no line that moves.

#![allow(unsafe_code)] // hands out a reference that no lock guards; the module says why it is sound

use core::{
    cell::UnsafeCell,
    marker::PhantomData,
    mem,
    ops::Deref,
    sync::atomic::{AtomicU32, Ordering},
};

use crate::hw::irq;

/// A value of a thread's.
pub struct Own<T> {
    lock: irq::Lock<()>,
    /// How often it is lent. Relaxed, always: the owner's, or of who keeps it from running.
    lent: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: see the module: it is replaced under the lock, read under it by other threads, and borrowed by one thread only.
unsafe impl<T: Send + Sync> Sync for Own<T> {}

impl<T> Own<T> {
    /// Of a thread that doesn't run yet.
    pub const fn new(value: T) -> Self {
        Self { lock: irq::Lock::new(()), lent: AtomicU32::new(0), value: UnsafeCell::new(value) }
    }
    /// A copy. From any thread.
    pub fn get(&self) -> T
    where
        T: Clone,
    {
        let _guard = self.lock.lock();
        // SAFETY: only who has the lock replaces it; others read.
        unsafe { (*self.value.get()).clone() }
    }
    /// Replace it. Only for its owner, and for others before that runs.
    pub fn replace(&self, value: T) -> T {
        assert_eq!(self.lent.load(Ordering::Relaxed), 0, "what is lent was replaced");
        self.end(value)
    }
    /// Replace it, and never come back to who has borrowed it. For an owner that ends.
    pub fn end(&self, value: T) -> T {
        let _guard = self.lock.lock();
        // SAFETY: with the lock nobody else reads; nothing is lent, or nobody will use it again.
        mem::replace(unsafe { &mut *self.value.get() }, value)
    }
    /// What `part` finds in it, borrowed.
    ///
    /// # Safety
    /// The caller is the owner.
    #[inline]
    pub unsafe fn lend<P>(&self, part: impl FnOnce(&T) -> Option<&P>) -> Option<Lent<'_, P>> {
        // SAFETY: nobody replaces it while it is lent, see the module; others only read.
        let value = part(unsafe { &*self.value.get() })?;
        self.lent.store(self.lent.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        Some(Lent { value, lent: &self.lent, _thread: PhantomData })
    }
}

/// A borrowed part. Not `Send`: it is for the owner.
pub struct Lent<'a, P> {
    value: &'a P,
    lent: &'a AtomicU32,
    _thread: PhantomData<*const ()>,
}

impl<P> Deref for Lent<'_, P> {
    type Target = P;
    #[inline]
    fn deref(&self) -> &P {
        self.value
    }
}

impl<P> Drop for Lent<'_, P> {
    #[inline]
    fn drop(&mut self) {
        self.lent.store(self.lent.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
    }
}

//! Interrupts off, and the lock for what interrupt handlers share with threads.

use core::{
    arch::asm,
    marker::PhantomData,
    ops::{Deref, DerefMut},
};

use sync::{SpinGuard, SpinLock};

/// Whether this CPU takes interrupts now.
#[inline]
pub fn enabled() -> bool {
    let flags: u64;
    // SAFETY: reads the flags by way of the stack.
    unsafe { asm!("pushfq", "pop {}", out(reg) flags, options(preserves_flags)) }
    flags & super::idt::RFLAGS_IF != 0
}

/// Take interrupts from here on. Only for places that know that nothing above them relies on their being off: the
/// system call and fault entries, and idle.
#[inline]
pub fn enable() {
    // SAFETY: handlers preserve every register; what must not be interrupted holds an `Off`. Not `nomem`: memory
    // accesses stay on their side of it.
    unsafe { asm!("sti", options(nostack)) }
}

/// Take no interrupts from here on, before a return to user mode.
#[inline]
pub fn disable() {
    // SAFETY: see `enable`.
    unsafe { asm!("cli", options(nostack)) }
}

/// Interrupts are off on this CPU while it lives; then as before. Nests.
#[must_use = "interrupts are on again as soon as it is dropped"]
pub struct Off {
    was_on: bool,
    _cpu: PhantomData<*const ()>,
}

impl Off {
    /// Turn interrupts off.
    #[inline]
    pub fn new() -> Self {
        let was_on = enabled();
        disable();
        Self { was_on, _cpu: PhantomData }
    }
}

impl Drop for Off {
    #[inline]
    fn drop(&mut self) {
        if self.was_on {
            enable();
        }
    }
}

/// A spin lock whose holder takes no interrupts: for what interrupt handlers touch, and for short sections that
/// must not be drawn out by them. While it waits, the waiter takes interrupts if it did before, so that a shootdown is
/// not held up by a queue for a lock.
pub struct Lock<T>(SpinLock<T>);

impl<T> Lock<T> {
    /// A free lock.
    pub const fn new(value: T) -> Self {
        Self(SpinLock::new(value))
    }

    /// Take the lock.
    #[inline]
    pub fn lock(&self) -> Guard<'_, T> {
        loop {
            if let Some(guard) = self.try_lock() {
                return guard;
            }
            core::hint::spin_loop();
        }
    }

    /// Take the lock if it is free.
    #[inline]
    pub fn try_lock(&self) -> Option<Guard<'_, T>> {
        let off = Off::new();
        Some(Guard { value: self.0.try_lock()?, _off: off })
    }
}

impl<T: Default> Default for Lock<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

/// The holder's access; dropping it frees the lock and then restores interrupts.
#[must_use = "the lock is free again as soon as the guard is dropped"]
pub struct Guard<'a, T> {
    // Dropped in this order: unlock, then interrupts.
    value: SpinGuard<'a, T>,
    _off: Off,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

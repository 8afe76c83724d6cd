//! The seam to RCU: whatever says when readers are gone.

use alloc::sync::Arc;
use core::ptr::NonNull;

use percpu::Pinned;
use rcu::{Free, Head, Retired, kernel};
#[cfg(feature = "std")]
use rcu::{Qsbr, qsbr, user};
#[cfg(feature = "std")]
use sync::mutant;

/// A domain of readers: a handle by which a tree reaches it.
///
/// # Safety
/// If [`Self::is_of`] says so, whatever was in a structure while the guard lived, and is retired to this domain, is not freed
/// before the guard is dropped. What is retired is freed once or never.
pub unsafe trait Rcu: Send + Sync {
    /// A read-side section.
    type Guard<'g>;
    /// What a thread must have to retire something.
    type Context<'c>;

    /// Whether it is a section of this domain.
    fn is_of(&self, guard: &Self::Guard<'_>) -> bool;
    /// Free an object after all sections that are open now. Waits for nothing.
    ///
    /// # Safety
    /// As [`Retired::new`]; and `free` uses nothing of the CPU that it is told, as there may be none.
    unsafe fn retire(&self, context: &Self::Context<'_>, head: NonNull<Head>, free: Free);
}

macro_rules! kernel_domain {
    ($handle:ty $(, $life:lifetime)?) => {
        // SAFETY: a guard's domain compares by its address, and that is what a kernel domain's guard does.
        unsafe impl $(<$life>)? Rcu for $handle {
            type Guard<'g> = kernel::Guard<'g>;
            type Context<'c> = &'c Pinned<'c>;

            #[inline]
            fn is_of(&self, guard: &kernel::Guard<'_>) -> bool {
                guard.is_of(self)
            }
            #[inline]
            unsafe fn retire(&self, pin: &&Pinned<'_>, head: NonNull<Head>, free: Free) {
                // SAFETY: the caller's promise.
                self.call(pin, unsafe { Retired::new(head, free) });
            }
        }
    };
}

kernel_domain!(&'d kernel::Domain, 'd);
kernel_domain!(Arc<kernel::Domain>);

// SAFETY: a brand names one domain, or several that have no pointers in common (the promise of `Domain::new`); so a section of the brand is
// one of this domain, and so is the reader by which something is retired.
#[cfg(feature = "std")]
unsafe impl<D: 'static> Rcu for &user::Domain<D> {
    type Guard<'g> = user::Guard<'g, D>;
    type Context<'c> = &'c user::Reader<'c, D>;

    #[inline]
    fn is_of(&self, _: &user::Guard<'_, D>) -> bool {
        true
    }
    #[inline]
    unsafe fn retire(&self, reader: &&user::Reader<'_, D>, head: NonNull<Head>, free: Free) {
        if mutant!("bonsai-user-early") {
            // SAFETY: the fault: it isn't.
            return unsafe { free(head, &Pinned::assume(percpu::CpuId::default())) };
        }
        // SAFETY: the caller's promises.
        unsafe { reader.retire(Retired::new(head, free)) };
    }
}

// SAFETY: as above.
#[cfg(feature = "std")]
unsafe impl<D: 'static> Rcu for &Qsbr<D> {
    type Guard<'g> = qsbr::Guard<'g, D>;
    type Context<'c> = &'c qsbr::Member<'c, D>;

    #[inline]
    fn is_of(&self, _: &qsbr::Guard<'_, D>) -> bool {
        true
    }
    #[inline]
    unsafe fn retire(&self, member: &&qsbr::Member<'_, D>, head: NonNull<Head>, free: Free) {
        // SAFETY: the caller's promise.
        member.retire(unsafe { Retired::new(head, free) });
    }
}

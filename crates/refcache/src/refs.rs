//! Values in boxes, by references that count themselves.

use alloc::boxed::Box;
use core::{fmt, marker::PhantomData, ops::Deref, ptr::NonNull};

use percpu::Pinned;

use crate::{Counted, Domain, RefHead, primitive::AtomicU64, word};

/// Which domain counts, and on which CPU the caller is: what a reference needs when it is cloned or dropped, without
/// carrying it along.
///
/// # Safety
/// It is the same domain each time.
pub unsafe trait Place<const WAYS: usize>: 'static {
    /// Call `f` with the domain, pinned. Calls nest.
    fn with<R>(f: impl FnOnce(&Domain<WAYS>, &Pinned<'_>) -> R) -> R;
    /// [`Domain::add`] on the caller's CPU, for a place that has a shorter way to it.
    ///
    /// # Safety
    /// As there.
    #[inline]
    unsafe fn add<T: Counted>(o: &T, n: i32) {
        // SAFETY: the caller's promise.
        Self::with(|domain, pin| unsafe { domain.add(o, n, pin) });
    }
    /// A reference was dropped, and nothing is pinned: a moment at which the caller must reckon with other values' ends.
    #[inline]
    fn dropped() {}
}

/// A value and its count.
#[repr(C)]
struct Counting<T> {
    head: RefHead,
    value: T,
}

// SAFETY: the head is the first field, and made for this type in `Ref::new`.
unsafe impl<T: Send + Sync + 'static> Counted for Counting<T> {
    fn head(&self) -> &RefHead {
        &self.head
    }
    unsafe fn dispose(this: NonNull<Self>, _: &Pinned<'_>) {
        // SAFETY: made of a box in `Ref::new`, and nobody has it any more.
        drop(unsafe { Box::from_raw(this.as_ptr()) });
    }
}

/// A counted reference to a value, as [`Arc`](alloc::sync::Arc) is, but cloning and dropping it write nothing that another
/// CPU reads. In return nobody knows the count, and the value is dropped some epochs after its last reference, by any CPU,
/// pinned.
pub struct Ref<T: Send + Sync + 'static, P: Place<WAYS>, const WAYS: usize> {
    to: NonNull<Counting<T>>,
    _place: PhantomData<(T, fn() -> P)>,
}

// SAFETY: as for `Arc`: the value is shared, and may be dropped by any thread.
unsafe impl<T: Send + Sync, P: Place<WAYS>, const WAYS: usize> Send for Ref<T, P, WAYS> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync, P: Place<WAYS>, const WAYS: usize> Sync for Ref<T, P, WAYS> {}

impl<T: Send + Sync, P: Place<WAYS>, const WAYS: usize> Ref<T, P, WAYS> {
    /// The first reference to a value.
    pub fn new(value: T) -> Self {
        let boxed = Box::new(Counting { head: RefHead::new::<Counting<T>>(1), value });
        let to = NonNull::from(Box::leak(boxed));
        // The box is made again of the address alone.
        to.expose_provenance();
        Self { to, _place: PhantomData }
    }
    #[inline]
    fn counting(&self) -> &Counting<T> {
        // SAFETY: this is a reference to it.
        unsafe { self.to.as_ref() }
    }
    /// Whether both are the same value, at the same place.
    pub fn ptr_eq(&self, other: &Self) -> bool {
        self.to == other.to
    }
}

impl<T: Send + Sync, P: Place<WAYS>, const WAYS: usize> Clone for Ref<T, P, WAYS> {
    #[inline]
    fn clone(&self) -> Self {
        // SAFETY: this is a reference.
        unsafe { P::add(self.counting(), 1) };
        Self { ..*self }
    }
}

impl<T: Send + Sync, P: Place<WAYS>, const WAYS: usize> Drop for Ref<T, P, WAYS> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: this is a reference, which ends.
        unsafe { P::add(self.counting(), -1) };
        P::dropped();
    }
}

impl<T: Send + Sync, P: Place<WAYS>, const WAYS: usize> Deref for Ref<T, P, WAYS> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        &self.counting().value
    }
}

impl<T: Send + Sync + fmt::Debug, P: Place<WAYS>, const WAYS: usize> fmt::Debug for Ref<T, P, WAYS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ref").field(&**self).finish()
    }
}

/// The weak reference to a value: there is one at most, for instance that of the table in which the value is found. It
/// doesn't keep the value; getting it from here while it is dying revives it.
pub struct Weak<T: Send + Sync + 'static, P: Place<WAYS>, const WAYS: usize> {
    /// In a box, as its address is known to the value's head.
    word: Box<AtomicU64>,
    _place: PhantomData<(T, fn() -> P)>,
}

impl<T: Send + Sync, P: Place<WAYS>, const WAYS: usize> Weak<T, P, WAYS> {
    /// The weak reference to `to`; `None` if it has one already.
    pub fn new(to: &Ref<T, P, WAYS>) -> Option<Self> {
        let word = Box::new(AtomicU64::new(word::link(to.to.as_ptr())));
        // SAFETY: `to` is a reference; the word lives until `drop` takes it away, and names `to` until it dies.
        let is_first = P::with(|domain, _| unsafe { domain.set_first_weak(to.counting(), &word) });
        // Not made otherwise: its end would take the first one away.
        is_first.then(|| Self { word, _place: PhantomData })
    }
    /// A reference to the value, unless it is dead.
    pub fn get(&self) -> Option<Ref<T, P, WAYS>> {
        // SAFETY: the word is empty, or the link that `new` made, to an object whose weak word it is.
        let to = P::with(|domain, pin| unsafe { domain.try_get(&self.word, pin) })?;
        Some(Ref { to, _place: PhantomData })
    }
}

impl<T: Send + Sync, P: Place<WAYS>, const WAYS: usize> Drop for Weak<T, P, WAYS> {
    fn drop(&mut self) {
        // If the value is dead, nobody knows the word any more.
        if let Some(to) = self.get() {
            // SAFETY: `to` is a reference, and nobody else can reach the word.
            P::with(|domain, _| unsafe { domain.set_weak(to.counting(), None) });
        }
    }
}

impl<T: Send + Sync + fmt::Debug, P: Place<WAYS>, const WAYS: usize> fmt::Debug for Weak<T, P, WAYS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Weak").field(&self.get()).finish()
    }
}

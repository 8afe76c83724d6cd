//! Pointers that are read in sections, and what they pointed to before.
//!
//! **Claim.** Safe code can't read what may be gone, nor free what may be read.
//!
//! * What is loaded is borrowed from the guard of a section, so it doesn't outlive it, and from the pointer, so the pointer
//!   isn't dropped under it.
//! * *Brands* tell domains apart: a type names one domain, and a pointer, a guard and a retired object carry it. So a
//!   section of another domain, which delays nothing here, isn't accepted.
//! * What is published is a box, which nobody else can change; what comes back is a [`Retired`], from which nothing can be
//!   got: a domain frees it after a grace period, or it is leaked.
//!
//! **Order.** A pointer is stored with Release (O1) and loaded with Acquire (O2): who finds an object finds it initialised. On
//! x86-64 both are plain moves.

use alloc::boxed::Box;
use core::{fmt, marker::PhantomData, ptr, ptr::NonNull};

use sync::{
    mutant,
    primitive::{AtomicPtr, Ordering},
};

/// The brand of the domain behind [`read`](crate::read), for those who need no other.
#[derive(Clone, Copy, Debug)]
pub enum Global {}

/// What carries a brand.
pub(crate) type Of<D> = PhantomData<fn() -> D>;

/// A read-side section of the domain that `D` names.
///
/// # Safety
/// As long as the value lives, no grace period of that domain ends that began after it was made.
pub unsafe trait Section<D> {}

/// A pointer to an object of its own, or to none; read in sections of the domain `D`.
///
/// ```
/// # #[cfg(all(feature = "std", not(loom)))] {
/// use rcu::Ptr;
///
/// static LIMIT: Ptr<u32> = Ptr::none();
/// if let Some(old) = LIMIT.assign(Box::new(10), &mut ()) {
///     rcu::free(old).unwrap();
/// }
/// let section = rcu::read();
/// assert_eq!(LIMIT.load(&section), Some(&10));
/// # }
/// ```
pub struct Ptr<T, D = Global> {
    link: Link<T, D>,
    _owns: PhantomData<Box<T>>,
}

/// A pointer that doesn't own what it points to: for structures whose objects are found in more than one way.
pub struct Link<T, D = Global> {
    to: AtomicPtr<T>,
    _brand: Of<D>,
}

// SAFETY: many threads may hold references to the object at once, and any of them may be the one that frees it.
unsafe impl<T: Send + Sync, D> Send for Link<T, D> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync, D> Sync for Link<T, D> {}

impl<T, D> Link<T, D> {
    /// A pointer to nothing.
    #[cfg(not(loom))]
    pub const fn none() -> Self {
        Self { to: AtomicPtr::new(ptr::null_mut()), _brand: PhantomData }
    }
    /// A pointer to nothing.
    #[cfg(loom)]
    pub fn none() -> Self {
        Self { to: AtomicPtr::new(ptr::null_mut()), _brand: PhantomData }
    }
    /// What it points to.
    #[inline(always)]
    pub fn load<'g, S: Section<D>>(&'g self, _section: &'g S) -> Option<&'g T> {
        // Acquire [O2]: the object's initialisation comes before; partner: the stores in `publish` and `replace`.
        // SAFETY: what `publish` was given is freed after a grace period that begins once no pointer leads to it, and so not
        // before the section ends.
        unsafe { self.to.load(Ordering::Acquire).as_ref() }
    }
    /// The address of what it points to, for who excludes all changes.
    pub fn peek(&self) -> Option<NonNull<T>> {
        // Relaxed [O3]: the caller, or whoever excluded changes before, has stored it.
        NonNull::new(self.to.load(Ordering::Relaxed))
    }
    /// Let it point to `to`.
    ///
    /// # Safety
    /// `to` is initialised. It is freed, or changed other than through shared references, only after a grace period of `D`'s
    /// that begins when no pointer leads to it anymore.
    #[inline]
    pub unsafe fn publish(&self, to: Option<NonNull<T>>) {
        let order = if mutant!("rcu-relaxed-publish") { Ordering::Relaxed } else { Ordering::Release };
        // Release [O1]: the object's initialisation comes before; partner: the load in `load`.
        self.to.store(to.map_or(ptr::null_mut(), NonNull::as_ptr), order);
    }
    /// As [`Self::publish`], giving what it pointed to before.
    ///
    /// # Safety
    /// As there.
    unsafe fn replace(&self, to: *mut T) -> Option<NonNull<T>> {
        let order = if mutant!("rcu-relaxed-publish") { Ordering::Relaxed } else { Ordering::AcqRel };
        // Release [O1]: as in `publish`. Acquire: who frees the old object comes after who made it; partner: the same.
        NonNull::new(self.to.swap(to, order))
    }
}

impl<T, D> Ptr<T, D> {
    /// A pointer to nothing.
    #[cfg(not(loom))]
    pub const fn none() -> Self {
        Self { link: Link::none(), _owns: PhantomData }
    }
    /// A pointer to nothing.
    #[cfg(loom)]
    pub fn none() -> Self {
        Self { link: Link::none(), _owns: PhantomData }
    }
    /// A pointer to `value`.
    pub fn new(value: Box<T>) -> Self {
        let this = Self::none();
        // SAFETY: it was a box, and only `assign`, `take` and `drop` end that.
        unsafe { this.link.publish(Some(NonNull::from(Box::leak(value)))) };
        this
    }
    /// What it points to.
    #[inline(always)]
    pub fn load<'g, S: Section<D>>(&'g self, section: &'g S) -> Option<&'g T> {
        self.link.load(section)
    }
    /// What it points to, for who holds the lock that serialises changes.
    ///
    /// # Safety
    /// As long as `lock` is borrowed, nobody else assigns to this pointer or takes from it, and the caller doesn't either.
    pub unsafe fn load_locked<'w, W: ?Sized>(&'w self, _lock: &'w W) -> Option<&'w T> {
        // SAFETY: what it points to is freed after somebody has assigned, which nobody does.
        self.link.peek().map(|object| unsafe { object.as_ref() })
    }
    /// Publish `value`; what was there before no new section finds. `lock` is the guard of the lock that serialises changes:
    /// without one, of two changes that both began with what was there the first would be lost.
    #[must_use = "what was replaced has to be freed"]
    pub fn assign<W: ?Sized>(&self, value: Box<T>, _lock: &mut W) -> Option<Retired<T, D>> {
        // SAFETY: it was a box; as in `new`.
        unsafe { self.link.replace(Box::into_raw(value)) }.map(Retired::of)
    }
    /// Let it point to nothing.
    #[must_use = "what was taken has to be freed"]
    pub fn take<W: ?Sized>(&self, _lock: &mut W) -> Option<Retired<T, D>> {
        // SAFETY: it points to nothing.
        unsafe { self.link.replace(ptr::null_mut()) }.map(Retired::of)
    }
    /// What it points to, for who alone has the pointer.
    pub fn get_mut(&mut self) -> Option<&mut T> {
        // SAFETY: what is loaded borrows the pointer, so nobody has loaded it.
        self.link.peek().map(|mut object| unsafe { object.as_mut() })
    }
}

impl<T, D> Drop for Ptr<T, D> {
    fn drop(&mut self) {
        if let Some(object) = self.link.peek() {
            // SAFETY: made of a box, and not taken; what is loaded borrows the pointer, so nobody has loaded it.
            drop(unsafe { Box::from_raw(object.as_ptr()) });
        }
    }
}

/// An object that no new section finds and that old ones may still be reading: a domain frees it after a grace period.
#[must_use = "an object that is retired has to be freed: `call`, `free` or `leak`"]
pub struct Retired<T, D = Global> {
    object: NonNull<T>,
    bytes: usize,
    _brand: Of<D>,
}

// SAFETY: readers elsewhere may have shared references, and it may be dropped wherever it goes.
unsafe impl<T: Send + Sync, D> Send for Retired<T, D> {}

impl<T, D> Retired<T, D> {
    fn of(object: NonNull<T>) -> Self {
        Self { object, bytes: size_of::<T>(), _brand: PhantomData }
    }
    /// Retire an object of a [`Link`]'s.
    ///
    /// # Safety
    /// It was a box. No pointer leads to it, and whoever let the last one go somewhere else did so before this call.
    /// Nobody else frees it or retires it.
    pub unsafe fn new(object: NonNull<T>) -> Self {
        Self::of(object)
    }
    /// Say how many bytes will be free, if the object holds more than its own.
    pub fn weighing(mut self, bytes: usize) -> Self {
        self.bytes = bytes;
        self
    }
    /// Never free it.
    pub fn leak(self) {
        core::mem::forget(self);
    }
    /// The object and its bytes, whose owner the caller is now.
    #[cfg_attr(not(feature = "std"), allow(dead_code))] // only domains of a host's threads free them
    pub(crate) fn into_raw(self) -> (NonNull<T>, usize) {
        let parts = (self.object, self.bytes);
        core::mem::forget(self);
        parts
    }
}

/// In release builds it leaks.
impl<T, D> Drop for Retired<T, D> {
    fn drop(&mut self) {
        debug_assert!(
            false,
            "a retired {} was dropped: give it to `call` or `free`",
            core::any::type_name::<T>()
        );
    }
}

impl<T, D> fmt::Debug for Retired<T, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Retired({:p})", self.object)
    }
}

impl<T, D> fmt::Debug for Ptr<T, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.link.fmt(f)
    }
}

impl<T, D> fmt::Debug for Link<T, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.peek())
    }
}

//! What an object carries: its count, and where it stands on the way to its end.

use core::{
    fmt,
    mem::offset_of,
    num::NonZero,
    ptr::{self, NonNull},
};

use percpu::Pinned;
use sync::mutant;

use crate::primitive::{AtomicU64, Ordering, UnsafeCell, lock_bit};

/// An object whose references are counted.
///
/// # Safety
/// `head` gives the same [`RefHead`] each time: one made by [`RefHead::new`] for this very type, which lies at the
/// object's own address. It is the first field of a `repr(C)` structure.
pub unsafe trait Counted: Sized {
    /// The object's count.
    fn head(&self) -> &RefHead;
    /// Give the object back to where it came from. Called once, without any lock, on the CPU of `pin`, when no CPU has a
    /// reference, gets one any more, or holds a change of the count back. May change other objects' counts.
    ///
    /// The pointer has the provenance that was [exposed](NonNull::expose_provenance) for the object: whoever allocates it
    /// exposes the pointer by which it will be freed.
    ///
    /// # Safety
    /// Called by a [`Domain`](crate::Domain) alone.
    unsafe fn dispose(this: NonNull<Self>, pin: &Pinned<'_>);
}

/// The fields of the state word. The rest of it is the address of the type's [`Kind`].
pub(crate) const LOCK: u64 = 1 << 0;
/// Since the object was queued, somebody brought a change, and left the count at 0.
pub(crate) const DIRTY: u64 = 1 << 1;
/// On the review list of some CPU.
pub(crate) const QUEUED: u64 = 1 << 2;
const FLAGS: u64 = LOCK | DIRTY | QUEUED;

/// What is known of an object's type once the type is forgotten. Aligned, so that its address leaves room for flags.
#[repr(align(8))]
struct Kind {
    dispose: unsafe fn(Obj, &Pinned<'_>),
}

trait Kinded {
    const KIND: &'static Kind;
}

impl<T: Counted> Kinded for T {
    const KIND: &'static Kind = &Kind { dispose: dispose::<T> };
}

/// # Safety
/// As [`Counted::dispose`], and `o` is a `T`.
unsafe fn dispose<T: Counted>(o: Obj, pin: &Pinned<'_>) {
    // SAFETY: the object is a `T` whose head is at its own address; the rest is the caller's promise.
    unsafe { T::dispose(o.pointer().cast(), pin) }
}

/// The count of an object: 32 bytes at its beginning.
///
/// The true number of references is the count here and all the changes that CPUs hold back. The count is written under the
/// lock bit of the state word, as are the flags and the weak word's address; `next` belongs to the CPU on whose
/// review list the object is.
#[repr(C, align(16))]
pub struct RefHead {
    state: AtomicU64,
    under: UnsafeCell<Under>,
    next: UnsafeCell<Option<Obj>>,
    #[cfg(any(loom, shuttle))]
    room: core::cell::UnsafeCell<[u64; 2]>,
}

/// What the lock bit guards, besides the flags.
pub(crate) struct Under {
    /// May be negative for a while.
    pub(crate) count: i64,
    pub(crate) weak: Option<NonNull<AtomicU64>>,
}

// SAFETY: the cells are reached under the lock bit, and `next` by one CPU at a time; the pointers are only addresses here.
unsafe impl Send for RefHead {}
// SAFETY: as above.
unsafe impl Sync for RefHead {}

impl RefHead {
    /// The head of a new `T` that has `count` references.
    pub fn new<T: Counted>(count: i64) -> Self {
        let kind = ptr::from_ref(T::KIND).expose_provenance() as u64;
        Self {
            state: AtomicU64::new(kind),
            under: UnsafeCell::new(Under { count, weak: None }),
            next: UnsafeCell::new(None),
            #[cfg(any(loom, shuttle))]
            room: core::cell::UnsafeCell::new([0; 2]),
        }
    }
    /// Where the 16 bytes are that the count took while there was one. From the call of [`Counted::dispose`] on, for which
    /// nobody has a reference, they are the object's, for what comes next, such as the link of a list; once it has written
    /// there, [`Self::weak`] must not be called any more. They are aligned to 8.
    #[cfg(not(any(loom, shuttle)))]
    pub const ROOM: usize = offset_of!(Self, under);
    /// Here the cells are larger and know who has reached them, so the room is apart.
    #[cfg(any(loom, shuttle))]
    pub const ROOM: usize = offset_of!(Self, room);
    /// Call `f` with the flags and what the lock guards, under the lock.
    #[inline]
    pub(crate) fn locked<R>(&self, f: impl FnOnce(&mut u64, &mut Under) -> R) -> R {
        let mut state = lock_bit(&self.state, LOCK);
        // SAFETY: the lock is held, and freed only after `f`.
        let result = self.under.with_mut(|under| f(&mut state, unsafe { &mut *under }));
        // Release: what this holder did comes before the next one's section; partner: the Acquire of `lock_bit`. A
        // store does, as nobody else changes the word while the lock is held.
        let order = if mutant!("refcache-relaxed-unlock") { Ordering::Relaxed } else { Ordering::Release };
        self.state.store(state & !LOCK, order);
        result
    }
    /// The weak word, if there is one. In [`Counted::dispose`]: the word that named the object until it died, which is
    /// empty since.
    pub fn weak(&self) -> Option<NonNull<AtomicU64>> {
        self.locked(|_, under| under.weak)
    }
    /// The count without what CPUs hold back.
    pub(crate) fn count(&self) -> i64 {
        self.locked(|_, under| under.count)
    }
    pub(crate) fn set_next(&self, next: Option<Obj>) {
        // SAFETY: the caller is the CPU on whose list the object is.
        self.next.with_mut(|link| unsafe { *link = next });
    }
    pub(crate) fn next(&self) -> Option<Obj> {
        // SAFETY: as above.
        self.next.with(|link| unsafe { *link })
    }
}

impl fmt::Debug for RefHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RefHead({} and what CPUs hold back)", self.count())
    }
}

/// The address of an object whose type is forgotten.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Obj(NonZero<usize>);

impl Obj {
    #[inline]
    pub(crate) fn of<T: Counted>(o: &T) -> Self {
        debug_assert!(ptr::eq(ptr::from_ref(o).cast(), o.head()), "the head is not at the object's address");
        // A reference is not null.
        Self(NonNull::from_ref(o).addr())
    }
    pub(crate) fn address(self) -> u64 {
        self.0.get() as u64
    }
    fn pointer(self) -> NonNull<RefHead> {
        NonNull::with_exposed_provenance(self.0)
    }
    /// The object's head.
    ///
    /// # Safety
    /// The object is alive for as long as the result is used.
    #[inline]
    pub(crate) unsafe fn head<'a>(self) -> &'a RefHead {
        // SAFETY: there is an object at the address, by the caller's promise, with its head at the beginning.
        unsafe { self.pointer().as_ref() }
    }
    /// Call its type's [`Counted::dispose`].
    ///
    /// # Safety
    /// As there; the object is alive.
    pub(crate) unsafe fn dispose(self, pin: &Pinned<'_>) {
        // SAFETY: the object is alive. Relaxed: the address of the kind never changes.
        let state = unsafe { self.head() }.state.load(Ordering::Relaxed);
        let kind = ptr::with_exposed_provenance::<Kind>((state & !FLAGS) as usize);
        // SAFETY: the address is that of a `Kind`, by `RefHead::new`, which asks for the object's own type.
        unsafe { ((*kind).dispose)(self, pin) }
    }
}

#[cfg(not(any(loom, shuttle)))]
const _: () = assert!(size_of::<RefHead>() == 32 && size_of::<Under>() == 16);

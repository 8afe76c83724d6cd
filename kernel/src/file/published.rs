//! Values that walks read without a lock, and that are replaced as a whole: an entry's place, a working directory.
//!
//! **Claim.** Who looks writes nothing that others read, and has the value as somebody has published it, for as long as the
//! look lasts. Who wants several values as they were at one moment has them so.
//!
//! **How.** A look is a section of the kernel's domain ([`grace`]), and what is replaced is freed a grace period later. Where
//! there is no domain (`aspace=locked`) a look at one value holds a lock of that value's, and a look at several [`CHANGES`]; who
//! replaces something holds both, so then it is freed at once.
//!
//! **One moment.** What rename moves it moves under [`CHANGES`], between two steps of [`MOVES`], which is odd in between. Who
//! finds it even, and the same after its looks, has seen nothing of a move that others haven't: had it found a value that
//! was published in between, it would have found the step before, too [M1]; and if it began with the step after, it finds
//! all that was published before that [M2]. Under many renames it takes the lock. (As Linux has it with `rename_lock`.)
#![allow(unsafe_code)] // reads what sections keep; each block says why it is sound

use alloc::boxed::Box;
use core::{
    marker::PhantomData,
    ptr::NonNull,
    sync::atomic::{AtomicPtr, AtomicU64, Ordering, fence},
};

use percpu::{Line, Pinned};
use rcu::{Head, Retired, kernel::Guard};
use sync::{SpinGuard, SpinLock};

use crate::{
    grace,
    hw::cpu,
    planted::{self, Planted},
    task,
};

/// Held by who moves something and, without a domain, by who replaces anything or looks at more than one value.
static CHANGES: Line<SpinLock<()>> = Line(SpinLock::new(()));
/// Twice the moves that are over, and one more while one is under way.
static MOVES: Line<AtomicU64> = Line(AtomicU64::new(0));
/// So often who wants one moment looks before it takes the lock.
const TRIES: u32 = 4;

#[repr(C)] // so that the link is where the object is
struct Shared<T> {
    head: Head,
    value: T,
}

/// A value to be published, with the memory that it takes.
pub struct Prepared<T>(Box<Shared<T>>);

impl<T> Prepared<T> {
    /// Of that value.
    pub fn new(value: T) -> Self {
        Self(Box::new(Shared { head: Head::new(), value }))
    }
}

/// A value that is replaced as a whole.
pub struct Published<T> {
    to: AtomicPtr<Shared<T>>,
    /// Where there is no domain.
    lock: SpinLock<()>,
    _owns: PhantomData<Box<Shared<T>>>,
}

/// What is seen of published values as long as this is there stays as long.
pub struct Sight<'p>(Kept<'p>);

enum Kept<'p> {
    Section(Guard<'p>),
    Lock { _lock: SpinGuard<'static, ()> },
}

impl<'p> Sight<'p> {
    /// The section that it is, if there are sections.
    pub fn section(&self) -> Option<&Guard<'p>> {
        match &self.0 {
            Kept::Section(section) => Some(section),
            Kept::Lock { .. } => None,
        }
    }
}

/// What `f` does with what it sees. It must not sleep, nor look for another sight.
pub fn see<R>(f: impl FnOnce(&Sight<'_>) -> R) -> R {
    match grace::domain() {
        Some(domain) => {
            let pin = task::pinned();
            let sight = Sight(Kept::Section(domain.read(&pin)));
            f(&sight)
        }
        None => {
            let sight = Sight(Kept::Lock { _lock: CHANGES.0.lock() });
            f(&sight)
        }
    }
}

/// What `f` does with what it sees, all of it of one moment: it may be called more than once, and the last time counts.
pub fn see_at_once<R>(mut f: impl FnMut(&Sight<'_>) -> R) -> R {
    for _ in 0..TRIES {
        // Acquire [M2]: what was moved before; partner: the store in `Change::drop`.
        let before = MOVES.0.load(Ordering::Acquire);
        if before.is_multiple_of(2) || planted::is(Planted::PathUnchecked) {
            let found = see(&mut f);
            // Acquire [M1]: the looks come before; partner: the fence in `moving`.
            fence(Ordering::Acquire);
            if MOVES.0.load(Ordering::Relaxed) == before || planted::is(Planted::PathUnchecked) {
                return found;
            }
        }
        cpu::pause();
    }
    // Without a domain a look has the lock already.
    let _lock = grace::domain().map(|_| CHANGES.0.lock());
    see(f)
}

/// A right to replace published values.
pub struct Change {
    /// Something is moved.
    moves: bool,
    _lock: Option<SpinGuard<'static, ()>>,
}

/// Replace a value that is nobody's place. What is replaced must outlive the result.
pub fn change() -> Change {
    let lock = grace::domain().is_none().then(|| CHANGES.0.lock());
    Change { moves: false, _lock: lock }
}

/// Move something: all that is replaced until the result is dropped changes at once for [`see_at_once`].
pub fn moving() -> Change {
    let lock = CHANGES.0.lock();
    // Relaxed: under the lock.
    MOVES.0.store(MOVES.0.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    // Release [M1]: who finds what is published from here on finds the step, too; partner: the fence in `see_at_once`.
    fence(Ordering::Release);
    Change { moves: true, _lock: Some(lock) }
}

impl Drop for Change {
    fn drop(&mut self) {
        if self.moves {
            // Release [M2]: what was moved comes before; partner: the load in `see_at_once`. Relaxed load: under the lock.
            MOVES.0.store(MOVES.0.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
        }
    }
}

impl<T: Send + Sync + 'static> Published<T> {
    /// A first value.
    pub fn new(value: T) -> Self {
        let to = AtomicPtr::new(Box::into_raw(Prepared::new(value).0));
        Self { to, lock: SpinLock::new(()), _owns: PhantomData }
    }

    /// The value.
    pub fn load<'s>(&'s self, _sight: &'s Sight<'_>) -> &'s T {
        // Acquire: the value's making comes before; partner: the swap in `replace`.
        // SAFETY: never null. It is freed a grace period after another has taken its place, so not before this section ends; or
        // after who replaced it had the lock that this sight holds; or with `self`.
        unsafe { &(*self.to.load(Ordering::Acquire)).value }
    }

    /// What `f` makes of the value. It must not sleep, nor look for another.
    pub fn read<R>(&self, f: impl FnOnce(&T) -> R) -> R {
        if grace::domain().is_some() {
            return see(|sight| f(self.load(sight)));
        }
        let _lock = self.lock.lock();
        // Acquire: as in `load`.
        // SAFETY: never null, and freed after who replaced it had this lock.
        f(unsafe { &(*self.to.load(Ordering::Acquire)).value })
    }

    /// Put `value` in place of what is there. The old one is to be dropped after the right to change.
    pub fn replace(&self, value: T, change: &Change) -> Replaced<T> {
        self.put(Prepared::new(value), change)
    }

    /// The same, without memory.
    pub fn put(&self, value: Prepared<T>, _change: &Change) -> Replaced<T> {
        let _lock = grace::domain().is_none().then(|| self.lock.lock());
        // AcqRel: its making comes before, and that of the old one; partner: the load in `load`, and this.
        let old = self.to.swap(Box::into_raw(value.0), Ordering::AcqRel);
        // SAFETY: never null.
        Replaced(unsafe { NonNull::new_unchecked(old) })
    }

    /// The value, of which nobody has a sight.
    pub fn get_mut(&mut self) -> &mut T {
        // SAFETY: never null, and borrowed as `self` is.
        unsafe { &mut (**self.to.get_mut()).value }
    }
}

impl<T> Drop for Published<T> {
    /// Sights borrow it, so there is none.
    fn drop(&mut self) {
        // SAFETY: made of a box, and its last owner.
        drop(unsafe { Box::from_raw(*self.to.get_mut()) });
    }
}

/// A value that no new sight has. Dropping it has it freed when no old one has it.
#[must_use = "it is to be dropped after the right to change"]
pub struct Replaced<T: Send + Sync + 'static>(NonNull<Shared<T>>);

impl<T: Send + Sync + 'static> Drop for Replaced<T> {
    fn drop(&mut self) {
        match grace::domain() {
            // SAFETY: `replace` has unlinked it; nobody else frees it; the link is at its beginning, and may go to another thread.
            Some(domain) => domain.call(&task::pinned(), unsafe { Retired::new(self.0.cast(), free::<T>) }),
            // SAFETY: made of a box. Who looked at it had a lock that was taken since, to replace it.
            None => drop(unsafe { Box::from_raw(self.0.as_ptr()) }),
        }
    }
}

/// # Safety
/// The link is that of a `Shared<T>`, whose owner the caller is.
unsafe fn free<T>(head: NonNull<Head>, _: &Pinned<'_>) {
    // SAFETY: the caller's: it was made of a box, and the link is at its beginning.
    drop(unsafe { Box::from_raw(head.cast::<Shared<T>>().as_ptr()) });
}

//! The domain that every program has, with readers that register themselves.

use core::{
    cell::{Cell, OnceCell},
    mem::ManuallyDrop,
    panic::Location,
    ptr,
};

use super::{Domain, Guard, Reader, core::Core, slot::Slot};
use crate::ptr::{Global, Retired};

/// A call that waits for the sections of all threads was made in one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InSection;

// SAFETY: nobody else makes a domain of this brand.
static GLOBAL: Domain<Global> = unsafe { Domain::new() };

/// What this thread's sections need.
#[derive(Clone, Copy)]
struct Here {
    core: *const Core,
    slot: *const Slot,
}

const NOWHERE: Here = Here { core: ptr::null(), slot: ptr::null() };

std::thread_local! {
    /// Of `READER`; apart from it, so that a look costs no check whether a destructor is registered.
    static HERE: Cell<Here> = const { Cell::new(NOWHERE) };
    static READER: OnceCell<Registered> = const { OnceCell::new() };
}

/// A thread's reader. It ends before `HERE` does, since what it frees may retire in its turn.
struct Registered(ManuallyDrop<Reader<'static>>);

impl Drop for Registered {
    /// A signal handler may have a section at any point of this. So `HERE` names the slot until nothing is freed anymore, and no
    /// longer than the slot is this thread's: the Release store that gives it back comes after. The domain stays enrolled for
    /// forks, as it lives for ever; to leave would take a lock, which a handler that registers anew would wait for.
    fn drop(&mut self) {
        self.0.end(|| HERE.set(NOWHERE));
    }
}

/// The domain behind [`read`].
pub fn global() -> &'static Domain {
    &GLOBAL
}

/// Register the calling thread with the domain behind [`read`] now, rather than at its first section. (A thread whose locals are gone
/// already, as it is ending, is registered for good.)
pub fn register() {
    let new = || ManuallyDrop::new(GLOBAL.register());
    let at = |reader: &Reader<'static>| HERE.set(Here { core: reader.core, slot: reader.slot });
    if READER.try_with(|reader| at(&reader.get_or_init(|| Registered(new())).0)).is_err() {
        at(&new());
    }
}

#[cold]
#[inline(never)]
fn first() -> Here {
    register();
    HERE.get()
}

#[inline(always)]
fn here() -> (&'static Core, &'static Slot) {
    let mut here = HERE.get();
    if here.slot.is_null() {
        here = first();
    }
    // SAFETY: `register` stored them; the domain is static, and slots live as long.
    unsafe { (&*here.core, &*here.slot) }
}

/// Begin a section, on a thread that needn't be registered.
///
/// ```
/// let section = rcu::read();
/// // In a section nobody may wait for all sections to end.
/// # if cfg!(not(debug_assertions)) {
/// assert_eq!(rcu::synchronize(), Err(rcu::user::InSection));
/// # }
/// drop(section);
/// assert_eq!(rcu::synchronize(), Ok(()));
/// ```
#[inline(always)]
#[track_caller]
pub fn read() -> Guard<'static> {
    let (core, slot) = here();
    Guard::enter(core, slot, Location::caller())
}

/// The calling thread's reader, unless it is in a section: that is a mistake, and panics in debug builds.
fn outside<R>(f: impl FnOnce(&'static Core, &'static Slot) -> R) -> Result<R, InSection> {
    let (core, slot) = here();
    let in_section = core.registry.in_section(slot.owner());
    debug_assert!(!in_section, "waiting for all sections to end, in a section");
    if in_section { Err(InSection) } else { Ok(f(core, slot)) }
}

/// Wait until all sections of [`read`] have ended that are open now.
pub fn synchronize() -> Result<(), InSection> {
    outside(|core, _| core.wait(core.snap()))
}

/// Wait until no section can find the object, and free it. In a section it is freed later.
pub fn free<T: Send + Sync + 'static>(retired: Retired<T>) -> Result<(), InSection> {
    match synchronize() {
        Ok(()) => {
            // SAFETY: unlinked before the call, and a period has passed since.
            unsafe { super::bag::dispose(retired.into_raw().0) };
            Ok(())
        }
        Err(in_section) => {
            call(retired);
            Err(in_section)
        }
    }
}

/// Free the object after a grace period; as [`Reader::call`].
pub fn call<T: Send + Sync + 'static>(retired: Retired<T>) {
    let (core, slot) = here();
    core.call(slot, retired);
}

/// Wait until everything is freed that any thread has given to [`call`] by now.
pub fn barrier() -> Result<(), InSection> {
    outside(|core, slot| core.barrier(Some(slot)))
}

//! Sections that cost nothing, for threads of a program that say when they are in none.
//!
//! **Claim.** A section is no instruction. In return each [`Member`] calls [`quiescent`](Member::quiescent) now and then, such as
//! once for each request that it serves, and waits for anything else only [offline](Member::offline): a member that does neither
//! delays everybody's grace periods.
//!
//! **Idea.** The [kernel's domain](crate::kernel) with threads in the place of CPUs: a member has a CPU's number to itself, so
//! its [`Pinned`] is its own, and a thread that is offline is a CPU that idles. What is argued there holds here.
//!
//! That a member is in no section is checked by the compiler: sections borrow it, and what says so takes it by `&mut`.

use alloc::boxed::Box;
use core::{fmt, marker::PhantomData, ptr::NonNull};
use std::{
    sync::{Mutex, PoisonError},
    thread,
    vec::Vec,
};

use percpu::{CpuId, MAX_CPUS, Pinned};

use crate::{
    kernel::{self, BATCH},
    list::{Head, Retired as Linked},
    ptr::{Of, Retired, Section},
};

/// A set of threads whose sections delay what is retired there, named by the brand `D`. Made by [`qsbr!`](crate::qsbr!).
///
/// ```
/// use rcu::{Ptr, qsbr};
///
/// qsbr!(static TABLES: Tables, 16);
/// static TABLE: Ptr<[u32; 4], Tables> = Ptr::none();
///
/// let mut member = TABLES.register().expect("fewer than 16 threads");
/// if let Some(old) = TABLE.assign(Box::new([1, 2, 3, 4]), &mut ()) {
///     member.call(old);
/// }
/// for request in 0..4 {
///     let section = member.read();
///     assert_eq!(TABLE.load(&section).unwrap()[request], request as u32 + 1);
///     drop(section);
///     member.quiescent();
/// }
/// ```
pub struct Qsbr<D: 'static> {
    domain: kernel::Domain,
    free: Mutex<Vec<CpuId>>,
    _brand: Of<D>,
}

/// A thread that reads, and says when it is in no section. Not `Send`.
pub struct Member<'d, D: 'static> {
    qsbr: &'d Qsbr<D>,
    pin: Pinned<'static>,
}

/// A read-side section: what is loaded in it stays allocated until this is dropped.
#[must_use = "the section ends as soon as the guard is dropped"]
#[derive(Debug)]
pub struct Guard<'m, D> {
    _section: kernel::Guard<'m>,
    _brand: Of<D>,
}

// SAFETY: a section of the kernel's domain, of which the brand has one.
unsafe impl<D> Section<D> for Guard<'_, D> {}

impl<D: 'static> Qsbr<D> {
    /// For at most so many threads at a time; no more than [`MAX_CPUS`].
    ///
    /// # Safety
    /// It is the only one of its brand, or others of the brand have no pointers in common with it.
    pub unsafe fn new(threads: usize) -> Self {
        let threads = threads.min(MAX_CPUS);
        let free = (0..threads).rev().filter_map(CpuId::new).collect();
        Self { domain: kernel::Domain::new(threads), free: Mutex::new(free), _brand: PhantomData }
    }
    /// Make the calling thread a member, unless there are as many as may be.
    pub fn register(&self) -> Option<Member<'_, D>> {
        let cpu = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
        // SAFETY: the number is this thread's alone until the member, which stays with its thread, gives it back. A signal
        // handler can't get at the member.
        let pin = unsafe { Pinned::assume(cpu) };
        let mut member = Member { qsbr: self, pin };
        self.domain.idle_exit(&mut member.pin);
        Some(member)
    }
}

impl<D: 'static> Member<'_, D> {
    /// Begin a section.
    #[inline(always)]
    pub fn read(&self) -> Guard<'_, D> {
        Guard { _section: self.qsbr.domain.read(&self.pin), _brand: PhantomData }
    }
    /// This thread is in no section. Frees what it has retired and is due.
    #[inline]
    pub fn quiescent(&mut self) {
        self.qsbr.domain.qs(&mut self.pin);
        // Also what others have left, if this is one that never retires anything.
        if self.qsbr.domain.pending(&self.pin) > 0 || self.qsbr.domain.has_orphans() {
            self.work();
        }
    }
    #[cold]
    fn work(&mut self) {
        while self.qsbr.domain.tick(&mut self.pin) == BATCH {}
    }
    /// Wait until all sections have ended that are open now: until each other member has been quiescent, or offline.
    pub fn synchronize(&mut self) {
        let domain = &self.qsbr.domain;
        let need = domain.snap();
        domain.request(need);
        while !domain.poll(need) {
            domain.look(&mut self.pin);
            thread::yield_now();
        }
    }
    /// Wait until no section can find the object, and free it.
    pub fn free<T>(&mut self, retired: Retired<T, D>) {
        self.synchronize();
        // SAFETY: unlinked before the call, and a period has passed since.
        drop(unsafe { Box::from_raw(retired.into_raw().0.as_ptr()) });
    }
    /// Free the object after a grace period, when a member is quiescent.
    pub fn call<T: Send + Sync + 'static>(&self, retired: Retired<T, D>) {
        let node = Box::new(Node { head: Head::new(), object: retired.into_raw().0 });
        let head = NonNull::from(Box::leak(node)).cast();
        // SAFETY: the object was unlinked before it was retired; the head comes first in the node, which `free_node` frees.
        self.qsbr.domain.call(&self.pin, unsafe { Linked::new(head, free_node::<T>) });
    }
    /// The same of an object that carries its own link: for structures whose objects are found in more than one way. Allocates nothing.
    pub fn retire(&self, retired: Linked) {
        self.qsbr.domain.call(&self.pin, retired);
    }
    /// How many objects this member has retired that are not freed.
    pub fn pending(&self) -> usize {
        self.qsbr.domain.pending(&self.pin)
    }
    /// Do what may take long, and has no sections: nobody waits for this thread meanwhile.
    pub fn offline<R>(&mut self, f: impl FnOnce() -> R) -> R {
        /// Back, even if `f` panics.
        struct Offline<'a, 'd, D: 'static>(&'a mut Member<'d, D>);
        impl<D> Drop for Offline<'_, '_, D> {
            fn drop(&mut self) {
                self.0.qsbr.domain.idle_exit(&mut self.0.pin);
            }
        }
        self.leave();
        let _offline = Offline(self);
        f()
    }
    /// Go offline. What was retired is left to others, or freed if there are none.
    fn leave(&mut self) {
        let domain = &self.qsbr.domain;
        loop {
            domain.hand_over(&self.pin);
            domain.idle_enter(&mut self.pin);
            if !domain.is_abandoned() {
                return;
            }
            domain.idle_exit(&mut self.pin);
            // Nobody else is there, or somebody has come who takes what is handed over next.
            (0..4).for_each(|_| while domain.tick(&mut self.pin) == BATCH {});
        }
    }
}

impl<D: 'static> Drop for Member<'_, D> {
    fn drop(&mut self) {
        self.leave();
        self.qsbr.domain.offline(&mut self.pin);
        self.qsbr.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.pin.cpu());
    }
}

/// An object that has no link of its own.
#[repr(C)]
struct Node<T> {
    head: Head,
    object: NonNull<T>,
}

unsafe fn free_node<T>(head: NonNull<Head>, _: &Pinned<'_>) {
    // SAFETY: made of a box in `call`, head first, for this type.
    let node = unsafe { Box::from_raw(head.cast::<Node<T>>().as_ptr()) };
    // SAFETY: it was a box, and by the domain's promise no section finds it.
    drop(unsafe { Box::from_raw(node.object.as_ptr()) });
}

impl<D: 'static> fmt::Debug for Qsbr<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.domain.fmt(f)
    }
}

impl<D: 'static> fmt::Debug for Member<'_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member").field("pending", &self.pending()).finish_non_exhaustive()
    }
}

/// A domain of quiescent states with its brand, for at most so many threads at a time: `qsbr!(pub static DOMAIN: Brand, 64)`.
#[macro_export]
macro_rules! qsbr {
    ($(#[$meta:meta])* $visibility:vis static $name:ident: $brand:ident, $threads:expr) => {
        #[doc = concat!("The brand of [`", stringify!($name), "`].")]
        #[derive(Clone, Copy, Debug)]
        $visibility enum $brand {}
        $(#[$meta])*
        $visibility static $name: ::std::sync::LazyLock<$crate::Qsbr<$brand>> =
            // SAFETY: the brand is declared beside it, for it alone.
            ::std::sync::LazyLock::new(|| unsafe { $crate::Qsbr::new($threads) });
    };
}

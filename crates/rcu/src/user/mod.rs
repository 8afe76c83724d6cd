//! Read-copy-update for the threads of a program.
//!
//! **Claim.** A section costs two stores to a line of the thread's own and a load of one that seldom changes; it waits for nobody.
//! What is retired is freed, and no earlier than the last section that could have found it has ended.
//!
//! **Idea** (Desnoyers, McKenney, Stern, Dagenais and Walpole, "User-Level Implementations of Read-Copy Update", 2012). Each
//! registered thread announces the epoch in which its section began, in a slot of its own. Who wants a grace period moves the epoch
//! on and waits until no slot announces an older one. Epochs have 52 bits and never come back, so one phase is enough.
//!
//! ```text
//! enter:  if slot has no section: slot = epoch (Acquire) and one section (Release) [O4]; else one section more;   light [O5]
//! leave:  one section less (Release) [O6]
//! snap:   fence(SeqCst) [O7]; need = started + 1                 a period that is under way does not count
//! drive:  (one at a time) if ended == started and need > started:
//!             started += 1; heavy [O5]; target = ++epoch (AcqRel) [O4]
//!         if no slot (Acquire) is in a section of an epoch < target: ended = started (Release) [O9]
//! wait:   drive until ended >= need (Acquire) [O9]
//! ```
//! `light` and `heavy` are two halves of a barrier: [`Mode`].
//!
//! **Why nothing is freed too early.** U unlinks x, then snaps `need`; x is freed by who saw `ended >= need`. The driver D began
//! that period by storing `started`, which U did not see: so U's fence is before D's barrier, and what U unlinked is unlinked
//! for whatever comes after that barrier. Let R be a section that has found x, and D's last look at R's slot the one that let the
//! period end.
//! * *D saw R's announcement, of `target` or more.* R loaded an epoch that D stored behind its barrier (O4): R can't find x.
//! * *D saw nothing of R: what was in the slot before.* R's `light` is not before D's `heavy`, or D would have seen the announcement.
//!   So it is after it, and R's loads with it: R can't find x.
//! * *D saw R's end, or a later announcement by its thread.* Both are Release stores (O4, O6) behind R's loads, which D's look
//!   acquires; `ended` hands that on (O9). R's loads come before x is freed.
//!
//! **Retiring.** `call` puts the object into the thread's own bag. A full bag is stamped, by `snap`, and queued in the domain's
//! limbo before anybody else gets at the bag; then its thread drives, and frees what is due. Waiting bytes are bounded: beyond the
//! [limit](Domain::set_limit) a `call` outside sections and destructors waits. So there is at most the limit and a bag for each thread,
//! plus what is retired within those. A thread may have several readers; whether it is in a section, or a destructor that the domain
//! runs, is asked of the thread, not of the reader it calls by.
//!
//! **Threads.** A thread that ends leaves what it has retired to others, and a panic ends sections as it unwinds. In a child of
//! `fork` the sections of the other threads are ended. A period that takes longer than a second in a debug build, or 21 otherwise,
//! is [reported](Stall) with the threads that are in its way.

mod bag;
mod barrier;
mod core;
mod fork;
#[cfg(not(any(loom, shuttle)))]
mod local;
mod reader;
mod slot;
mod stall;

use ::core::{fmt, marker::PhantomData, sync::atomic::Ordering, time::Duration};
use std::{boxed::Box, sync::OnceLock};

use sync::{SpinGuard, SpinLock};

use self::core::Core;
#[cfg(not(any(loom, shuttle)))]
pub use self::local::{InSection, barrier, call, free, global, read, register, synchronize};
pub use self::{
    barrier::Mode,
    core::{Gp, Stats},
    reader::{Full, Guard, Reader},
    stall::{Holdout, Stall},
};
use crate::ptr::Global;

/// Whether sections note where they began, and what is freed is overwritten.
const CHECKED: bool = cfg!(any(debug_assertions, feature = "check"));
/// Bytes that may wait, unless the domain is told otherwise.
const LIMIT: usize = 64 << 20;
/// When a period is reported; Linux waits for 21 s.
const STALL: Duration = Duration::from_secs(if cfg!(debug_assertions) { 1 } else { 21 });

/// A set of threads whose sections delay what is retired there, named by the brand `D`. Made by [`domain!`](crate::domain!).
///
/// ```
/// use rcu::{Ptr, domain};
///
/// domain!(static ROUTES: Routes);
/// static GATEWAY: Ptr<String, Routes> = Ptr::none();
///
/// let mut reader = ROUTES.register();
/// if let Some(old) = GATEWAY.assign(Box::new("10.0.0.1".into()), &mut ()) {
///     reader.free(old);
/// }
/// {
///     let section = reader.read();
///     assert_eq!(GATEWAY.load(&section).unwrap(), "10.0.0.1");
/// }
/// if let Some(old) = GATEWAY.take(&mut ()) {
///     reader.call(old);
/// }
/// reader.barrier();
/// ```
pub struct Domain<D: 'static = Global> {
    core: OnceLock<Box<Core>>,
    _brand: PhantomData<fn() -> D>,
}

impl<D: 'static> Domain<D> {
    /// A domain without readers.
    ///
    /// # Safety
    /// It is the only one of its brand, or others of the brand have no pointers in common with it.
    pub const unsafe fn new() -> Self {
        Self { core: OnceLock::new(), _brand: PhantomData }
    }
    fn core(&self) -> &Core {
        self.core.get_or_init(|| Box::new(Core::new(Mode::best() == Mode::Fences)))
    }
    /// Register the calling thread, which may also do so more than once.
    pub fn register(&self) -> Reader<'_, D> {
        Reader::new(self)
    }
    /// Let readers run fences even if this kernel grants the other mode. False if the domain has been used already.
    pub fn use_fences(&self) -> bool {
        self.core.set(Box::new(Core::new(true))).is_ok()
    }
    /// How readers and updaters order their steps.
    pub fn mode(&self) -> Mode {
        if self.core().registry.fences() { Mode::Fences } else { Mode::Membarrier }
    }
    /// As [`Reader::synchronize`], for a thread that isn't registered or is in no section.
    pub fn synchronize_unregistered(&self) {
        self.core().synchronize(slot::owner());
    }
    /// As [`Reader::barrier`], for a thread that isn't registered or is in no section.
    pub fn barrier_unregistered(&self) {
        self.core().barrier(None);
    }
    /// The period whose end shows that all sections are over that are open now.
    pub fn snap(&self) -> Gp {
        self.core().snap()
    }
    /// Whether `need` has ended; takes it a step further if it hasn't.
    pub fn poll(&self, need: Gp) -> bool {
        self.core().drive(need);
        self.core().poll(need)
    }
    /// How many bytes may wait to be freed before those who retire more have to wait: 64 MiB, if nobody says otherwise.
    pub fn set_limit(&self, bytes: usize) {
        // Relaxed, here and below: a number.
        self.core().limit.store(bytes, Ordering::Relaxed);
    }
    /// After how long a period is reported, and to whom; usually on standard error.
    pub fn set_stall(&self, limit: Duration, report: fn(&Stall)) {
        self.core().stall_limit.store(limit.as_millis() as u64, Ordering::Relaxed);
        *lock(&self.core().stall_report) = report;
    }
    /// What the domain has done.
    pub fn stats(&self) -> Stats {
        self.core().stats()
    }
}

impl<D: 'static> fmt::Debug for Domain<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Domain").field("core", &self.core.get()).finish()
    }
}

fn lock<T>(lock: &SpinLock<T>) -> SpinGuard<'_, T> {
    #[cfg(not(loom))]
    return lock.lock();
    // Loom may show who only looks an old value for ever; who tries sees the newest.
    #[cfg(loom)]
    loop {
        match lock.try_lock() {
            Some(guard) => return guard,
            None => sync::primitive::spin_loop(),
        }
    }
}

/// A domain with its brand, the type that names it: `domain!(pub static DOMAIN: Brand)`.
#[macro_export]
macro_rules! domain {
    ($(#[$meta:meta])* $visibility:vis static $name:ident: $brand:ident) => {
        #[doc = concat!("The brand of [`", stringify!($name), "`].")]
        #[derive(Clone, Copy, Debug)]
        $visibility enum $brand {}
        $(#[$meta])*
        // SAFETY: the brand is declared beside it, for it alone.
        $visibility static $name: $crate::user::Domain<$brand> = unsafe { $crate::user::Domain::new() };
    };
}

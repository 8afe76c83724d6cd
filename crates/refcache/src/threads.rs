//! Threads of a host as CPUs: each takes a number of its own at its first call, and gives it back when it ends.
//!
//! Nearly every clone and drop finds a change of its object held back already. All that this case needs is one record that the
//! thread finds without a call: where its cache is. So the way there is a look at the record, the hash, a comparison and
//! an addition; the domain, the number and its range are looked at only when a place in the cache changes hands.

use core::cell::Cell;
use std::{
    sync::{Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
    vec::Vec,
};

use percpu::{CpuId, MAX_CPUS, Pinned};

use crate::{Budget, Counted, Domain, Obj, Place, Stats, cache::Cache};

/// Places of a thread's cache: 64 KiB, of which what isn't used takes no memory.
const WAYS: usize = 4096;
/// References dropped between two looks at the clock.
const DROPS: u32 = 256;
/// The least time between two rounds of a thread's.
const TICK: Duration = Duration::from_millis(1);

/// A counted reference between the threads of this process.
///
/// ```
/// use refcache::{Shared, Threads};
///
/// let greeting = Shared::new(String::from("hello"));
/// let theirs = greeting.clone();
/// let length = std::thread::spawn(move || theirs.len());
/// // Who waits is not awaited.
/// assert_eq!(Threads::idle(|| length.join().unwrap()), greeting.len());
/// ```
pub type Shared<T> = crate::Ref<T, Threads, WAYS>;
/// The weak reference to a value that threads share.
///
/// ```
/// use refcache::{Shared, Threads, WeakShared};
///
/// let entry = Shared::new(5);
/// let table = WeakShared::new(&entry).expect("it is the first");
/// assert!(WeakShared::new(&entry).is_none());
/// drop(entry);
/// // For a while it can still be had back.
/// assert_eq!(table.get().as_deref(), Some(&5));
/// // Until nobody wants it.
/// while table.get().is_some() {
///     for _ in 0..8 {
///         Threads::work();
///     }
/// }
/// ```
pub type WeakShared<T> = crate::Weak<T, Threads, WAYS>;

/// The threads of this process, up to 256 at a time; one more panics.
///
/// Threads that drop references do the manager's work along with it, once in a millisecond: values end there, whoever had the
/// last reference to them, and in [`Self::work`]. A thread that does neither for long keeps everything from being disposed
/// of, so one that waits does so in [`Self::idle`].
#[derive(Clone, Copy, Debug)]
pub struct Threads;

/// The domain, and which numbers are free.
struct Process {
    domain: Domain<WAYS>,
    free: Mutex<Vec<CpuId>>,
}

static PROCESS: OnceLock<Process> = OnceLock::new();

#[inline]
fn process() -> &'static Process {
    match PROCESS.get() {
        Some(process) => process,
        None => begin(),
    }
}

#[cold]
fn begin() -> &'static Process {
    PROCESS.get_or_init(|| Process {
        domain: Domain::new(MAX_CPUS),
        free: Mutex::new((0..MAX_CPUS).rev().filter_map(CpuId::new).collect()),
    })
}

/// Where a thread is; without a destructor, so that looking costs nothing.
struct Here {
    /// The cache of the thread's CPU, while it has one.
    cache: Cell<Option<&'static Cache<WAYS>>>,
    cpu: Cell<Option<CpuId>>,
    /// References that may be dropped until the next look at the clock, and when the thread last worked.
    drops: Cell<u32>,
    worked: Cell<Option<Instant>>,
}

impl Here {
    const fn nowhere() -> Self {
        Self {
            cache: Cell::new(None),
            cpu: Cell::new(None),
            drops: Cell::new(DROPS),
            worked: Cell::new(None),
        }
    }
    /// The thread is that CPU from now on, or none.
    fn is(&self, cpu: Option<CpuId>) {
        self.cpu.set(cpu);
        self.cache.set(cpu.map(|cpu| process().domain.cache(&pin(cpu))));
    }
}

std::thread_local! {
    static HERE: Here = const { Here::nowhere() };
    /// Gives the number back when the thread ends.
    static SEAT: Seat = Seat::take();
}

/// A thread's number.
struct Seat(CpuId);

impl Seat {
    fn take() -> Self {
        let free = process().free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let cpu = free.expect("at most 256 threads share counted references at a time");
        HERE.with(|here| here.is(Some(cpu)));
        Self(cpu)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        process().domain.leave(&pin(self.0));
        HERE.with(|here| here.is(None));
        process().free.lock().unwrap_or_else(PoisonError::into_inner).push(self.0);
    }
}

/// On the CPU that is this thread's.
#[inline]
fn pin(cpu: CpuId) -> Pinned<'static> {
    // SAFETY: the callers' number is the thread's alone, so nobody else is pinned there; the result doesn't leave it.
    unsafe { Pinned::assume(cpu) }
}

/// Call `f` on this thread's CPU.
#[inline]
fn pinned<R>(f: impl FnOnce(&Pinned<'_>) -> R) -> R {
    match HERE.with(|here| here.cpu.get()) {
        Some(cpu) => f(&pin(cpu)),
        None => seated(f),
    }
}

/// The same at a thread's first call; and when it is about to end and has given its number up: then with one for this call.
#[cold]
fn seated<R>(f: impl FnOnce(&Pinned<'_>) -> R) -> R {
    match SEAT.try_with(|seat| seat.0) {
        Ok(cpu) => f(&pin(cpu)),
        Err(_) => {
            let seat = Seat::take();
            f(&pin(seat.0))
        }
    }
}

/// Change a count that isn't held back here yet.
///
/// # Safety
/// As for [`Domain::add`].
#[cold]
#[inline(never)]
unsafe fn begin_to_hold(o: Obj, n: i32) {
    // SAFETY: the caller's promise.
    pinned(|pin| unsafe { process().domain.change(o, n, pin) });
}

/// Work, if it is time.
#[cold]
#[inline(never)]
fn tick(here: &Here) {
    here.drops.set(DROPS);
    let (now, domain) = (Instant::now(), &process().domain);
    let is_time = here.worked.get().is_none_or(|worked| now - worked >= TICK);
    if is_time || domain.hurried() {
        here.worked.set(Some(now));
        pinned(|pin| _ = domain.work(pin, Budget::default()));
    }
}

// SAFETY: there is one domain in the process.
unsafe impl Place<WAYS> for Threads {
    #[inline]
    fn with<R>(f: impl FnOnce(&Domain<WAYS>, &Pinned<'_>) -> R) -> R {
        pinned(|pin| f(&process().domain, pin))
    }
    #[inline]
    unsafe fn add<T: Counted>(o: &T, n: i32) {
        let o = Obj::of(o);
        // The cache is this thread's alone for as long as it is found here.
        if !HERE.with(|here| here.cache.get().is_some_and(|cache| cache.ways.hold(o, n))) {
            // SAFETY: the caller's promise.
            unsafe { begin_to_hold(o, n) };
        }
    }
    #[inline]
    fn dropped() {
        HERE.with(|here| {
            let left = here.drops.get() - 1;
            here.drops.set(left);
            if left == 0 {
                tick(here);
            }
        });
    }
}

impl Threads {
    /// Do the manager's work now, as a thread may that has nothing else to do.
    pub fn work() {
        pinned(|pin| _ = process().domain.work(pin, Budget::default()));
    }
    /// Call `f`, which waits for something, while nobody waits for this thread. It may use references, which makes it take part
    /// again.
    pub fn idle<R>(f: impl FnOnce() -> R) -> R {
        pinned(|pin| process().domain.leave(pin));
        f()
    }
    /// What happened so far in all threads.
    pub fn stats() -> Stats {
        process().domain.stats()
    }
}

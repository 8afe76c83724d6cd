//! Threads of a host as CPUs: each takes a number of its own at its first call, and gives it back when it ends.

use core::cell::Cell;
use std::{
    sync::{Mutex, OnceLock, PoisonError},
    thread::{AccessError, LocalKey},
    time::{Duration, Instant},
    vec::Vec,
};

use percpu::{CpuId, MAX_CPUS, Pinned};

use crate::{Budget, Domain, Place, Stats};

/// Places of a thread's cache: 64 KiB, of which what isn't used takes no memory.
const WAYS: usize = 4096;
/// Calls between two looks at the clock.
const CALLS: u32 = 256;
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
/// Threads that call often do the manager's work by themselves, once in a millisecond. A thread that doesn't call for long
/// keeps everything from being disposed of, so one that waits does so in [`Self::idle`].
#[derive(Clone, Copy, Debug)]
pub struct Threads;

/// The domain, and which numbers are free.
struct Process {
    domain: Domain<WAYS>,
    free: Mutex<Vec<CpuId>>,
}

fn process() -> &'static Process {
    static PROCESS: OnceLock<Process> = OnceLock::new();
    PROCESS.get_or_init(|| Process {
        domain: Domain::new(MAX_CPUS),
        free: Mutex::new((0..MAX_CPUS).rev().filter_map(CpuId::new).collect()),
    })
}

/// A thread's number.
struct Seat {
    cpu: CpuId,
    calls: Cell<u32>,
    worked: Cell<Instant>,
}

std::thread_local! {
    static SEAT: Seat = Seat::take();
}

impl Seat {
    fn take() -> Self {
        let free = process().free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let cpu = free.expect("at most 256 threads share counted references at a time");
        Self { cpu, calls: Cell::new(0), worked: Cell::new(Instant::now()) }
    }
    fn pin(&self) -> Pinned<'static> {
        // SAFETY: the number is this thread's alone, so nobody else is pinned there; the result doesn't leave the thread.
        unsafe { Pinned::assume(self.cpu) }
    }
    #[inline]
    fn with<R>(&self, f: impl FnOnce(&Domain<WAYS>, &Pinned<'_>) -> R) -> R {
        let result = f(&process().domain, &self.pin());
        let calls = self.calls.get() + 1;
        self.calls.set(calls);
        if calls >= CALLS {
            self.calls.set(0);
            self.tick();
        }
        result
    }
    #[cold]
    fn tick(&self) {
        let now = Instant::now();
        let domain = &process().domain;
        if now - self.worked.get() >= TICK || domain.hurried() {
            self.worked.set(now);
            domain.work(&self.pin(), Budget::default());
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        process().domain.leave(&self.pin());
        process().free.lock().unwrap_or_else(PoisonError::into_inner).push(self.cpu);
    }
}

/// Call `f` with the thread's seat, or, when the thread is about to end and has given that up, with one for this call.
#[inline]
fn seated<R>(f: impl FnOnce(&Seat) -> R) -> R {
    let mut f = Some(f);
    let mut call = |seat: &Seat| f.take().map(|f| f(seat));
    let result: Result<_, AccessError> = LocalKey::try_with(&SEAT, &mut call);
    match result.unwrap_or_else(|_| call(&Seat::take())) {
        Some(result) => result,
        None => unreachable!("called once"),
    }
}

// SAFETY: there is one domain in the process.
unsafe impl Place<WAYS> for Threads {
    #[inline]
    fn with<R>(f: impl FnOnce(&Domain<WAYS>, &Pinned<'_>) -> R) -> R {
        seated(|seat| seat.with(f))
    }
}

impl Threads {
    /// Do the manager's work now, as a thread may that has nothing else to do.
    pub fn work() {
        seated(|seat| _ = process().domain.work(&seat.pin(), Budget::default()));
    }
    /// Call `f`, which waits for something, while nobody waits for this thread. It may use references, which makes it take part
    /// again.
    pub fn idle<R>(f: impl FnOnce() -> R) -> R {
        seated(|seat| process().domain.leave(&seat.pin()));
        f()
    }
    /// What happened so far in all threads.
    pub fn stats() -> Stats {
        process().domain.stats()
    }
}

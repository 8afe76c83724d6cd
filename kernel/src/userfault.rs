//! `userfaultfd`: faults that a program resolves, for itself or for another.
//!
//! Which mappings are watched, and of what there is to tell, is the address space's business (`aspace::watch`); the watcher
//! that it keeps is a [`Context`], as is what the descriptor refers to. Here are those who wait, and those who read of them.
//!
//! **No fault waits for what has been done.** A thread first enters the list of those who wait, *then* asks the address space
//! whether its access is still one to tell of, then sleeps. Who resolves changes the page *first*, and then wakes those of the list
//! who wait for it. So either the thread finds the page resolved, or it is found in the list. A page that nobody is to be
//! told of any more, since it isn't watched, is found to be so in the same way; a descriptor that is closed says so first, ends
//! all watching, and wakes everybody.
//!
//! A wake is a hint: whoever wakes makes the access again, and may come back. It stays in the thread's entry until that is
//! looked at, so it may come before the sleep.
//!
//! **Signals.** An access by user code is given up for a signal, and made again after it, with another message. A copy of the
//! kernel's goes on waiting, as it can't be begun anew, until its thread is to end. So that it does, a signal that is to end the
//! process does so while the copy waits, as on Linux, and not when the thread would take it ([`signal::fatal`]).

use alloc::{
    collections::VecDeque,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::{
    any::Any,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use addr::{PAGE_SIZE, Page, PageRange, USER_END_PAGE, VirtAddr};
use aspace::{Access, Cause, Error, Mapping, Modes, Watch, Watched};
use linux_raw_sys::general as c;
use sync::SpinLock;

use crate::{
    errno::Errno,
    file::{Events, OpenFile, Readiness, Sink, Special, moved},
    heap,
    process::{self, Mm, Status},
    signal, task, upcall,
    wait::WaitQueue,
};

/// Features of the handshake (include/uapi/linux/userfaultfd.h).
pub const PAGEFAULT_FLAG_WP: u64 = 1 << 0;
const MISSING_SHMEM: u64 = 1 << 5;
const SIGBUS: u64 = 1 << 7;
const THREAD_ID: u64 = 1 << 8;
const MINOR_SHMEM: u64 = 1 << 10;
const EXACT_ADDRESS: u64 = 1 << 11;
const WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
pub const WP_UNPOPULATED: u64 = 1 << 13;
const POISON: u64 = 1 << 14;
pub const WP_ASYNC: u64 = 1 << 15;
const MOVE: u64 = 1 << 16;
/// Those that there are.
pub const FEATURES: u64 = PAGEFAULT_FLAG_WP
    | MISSING_SHMEM
    | SIGBUS
    | THREAD_ID
    | MINOR_SHMEM
    | EXACT_ADDRESS
    | WP_HUGETLBFS_SHMEM
    | WP_UNPOPULATED
    | POISON
    | WP_ASYNC
    | MOVE;
/// Set with the features once they are chosen.
const CHOSEN: u64 = 1 << 63;

/// What a message is about, and how it was accessed.
const EVENT_PAGEFAULT: u64 = 0x12;
const FLAG_WRITE: u64 = 1 << 0;
const FLAG_WP: u64 = 1 << 1;
const FLAG_MINOR: u64 = 1 << 2;
/// Words of `struct uffd_msg`.
const WORDS: usize = 4;
const MESSAGE: usize = 8 * WORDS;

/// A thread whose access waits.
struct Waiter {
    message: [u64; WORDS],
    at: VirtAddr,
    /// A reader has it. Changed under the list's lock.
    read: AtomicBool,
    woken: AtomicBool,
    sleep: WaitQueue,
}

/// A watcher of one process's memory.
pub struct Context {
    /// Whose memory it is. Not kept by a watcher, which the memory's mappings keep.
    mm: Weak<Mm>,
    /// Only accesses by user code are told of.
    user_only: bool,
    /// Those chosen, and [`CHOSEN`]; 0 until then.
    features: AtomicU64,
    /// In the order in which they came.
    waiters: SpinLock<VecDeque<Arc<Waiter>>>,
    readers: WaitQueue,
    closed: AtomicBool,
}

/// The end of the descriptor's: dropped when that is closed for good.
pub struct UserFaults(Arc<Context>);

/// What became of a fault that was to be told of.
pub enum Outcome {
    /// The access may be made again.
    Again,
    /// A signal is to be taken first.
    Interrupted,
    /// Nobody is told: the access fails.
    Refused,
    /// There is no memory to wait with.
    NoMemory,
}

impl UserFaults {
    /// A watcher of the calling thread's memory. ENOSYS if the design can't; ENOMEM.
    pub fn open(user_only: bool, flags: u32) -> Result<Arc<OpenFile>, Errno> {
        let mm = task::current().mm().ok_or(Errno::ENOSYS)?;
        mm.aspace.watched().ok_or(Errno::ENOSYS)?;
        let context = Context {
            mm: Arc::downgrade(&mm),
            user_only,
            features: AtomicU64::new(0),
            waiters: SpinLock::new(VecDeque::new()),
            readers: WaitQueue::new(),
            closed: AtomicBool::new(false),
        };
        Special::Faults(Self(Arc::new(context))).open(c::O_RDONLY | flags & c::O_NONBLOCK)
    }
    /// The watcher.
    pub fn context(&self) -> &Arc<Context> {
        &self.0
    }
    /// Read as many messages as there are and there is room for. EINVAL if that is none, or before the handshake.
    pub fn read(&self, sink: &mut dyn Sink, block: bool) -> Result<usize, Errno> {
        if !self.0.is_ready() || sink.room() < MESSAGE {
            return Err(Errno::EINVAL);
        }
        let mut done = 0;
        while sink.room() >= MESSAGE {
            let message = match self.0.take() {
                Some(message) => message,
                None if done > 0 => break,
                None if !block => return Err(Errno::EAGAIN),
                None => {
                    let taken = self.0.readers.wait(None, true, || self.0.take());
                    taken.map_err(|_| Errno::RESTART)?
                }
            };
            if upcall::owed(|| sink.put(crate::usercopy::bytes_of(&message))) < MESSAGE {
                return moved(done, 1, Errno::EFAULT);
            }
            done += MESSAGE;
        }
        Ok(done)
    }
    /// Readable when a fault waits that nobody has read of. As on Linux an error for who would wait in a read: another
    /// reader may be first.
    pub fn readiness(&self, block: bool) -> Readiness<'_> {
        let waits = || self.0.waiters.lock().iter().any(|waiter| !waiter.is_read());
        let events = match self.0.is_ready() && !block {
            false => Events::ERR,
            true if waits() => Events::IN,
            true => Events::empty(),
        };
        Readiness { events, queues: [Some(&self.0.readers), None] }
    }
}

impl Drop for UserFaults {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Waiter {
    fn is_read(&self) -> bool {
        // Relaxed: under the list's lock.
        self.read.load(Ordering::Relaxed)
    }
}

impl Context {
    /// Choose features, once: false if they are chosen already.
    pub fn choose(&self, features: u64) -> bool {
        // Relaxed: nothing else is published with it.
        let chosen = features | CHOSEN;
        self.features.compare_exchange(0, chosen, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
    /// Whether features are chosen.
    pub fn is_ready(&self) -> bool {
        self.has(CHOSEN)
    }
    /// Whether this feature is chosen.
    pub fn has(&self, feature: u64) -> bool {
        self.features.load(Ordering::Relaxed) & feature != 0
    }
    /// The modes that a mapping is watched in, of those asked for.
    pub fn modes(&self, asked: Modes) -> Modes {
        let mut modes = asked;
        let protect = asked.contains(Modes::PROTECT);
        modes.set(Modes::ASYNC, protect && self.has(WP_ASYNC));
        modes.set(Modes::UNPOPULATED, protect && self.has(WP_UNPOPULATED));
        modes
    }
    /// Whether the memory is the calling thread's.
    pub fn is_callers(&self) -> bool {
        task::current().mm().is_some_and(|mm| core::ptr::eq(self.mm.as_ptr(), Arc::as_ptr(&mm)))
    }
    /// Run `f` with the memory, which stays meanwhile. `gone` if it is no more.
    pub fn with<R>(
        &self,
        gone: Errno,
        f: impl FnOnce(&Mm, &dyn Watched) -> Result<R, Errno>,
    ) -> Result<R, Errno> {
        let mm = self.mm.upgrade().filter(|mm| mm.join_if_used()).ok_or(gone)?;
        let result = mm.aspace.watched().ok_or(gone).and_then(|watched| f(&mm, watched));
        mm.leave();
        result
    }
    /// The next message that nobody has read.
    fn take(&self) -> Option<[u64; WORDS]> {
        let waiters = self.waiters.lock();
        let next = waiters.iter().find(|waiter| !waiter.is_read())?;
        next.read.store(true, Ordering::Relaxed);
        Some(next.message)
    }
    /// Wake those who wait for pages in the bytes `start..end`.
    pub fn wake(&self, start: u64, end: u64) {
        let waits_there = |waiter: &Arc<Waiter>| (start..end).contains(&waiter.at.as_u64());
        self.waiters.lock().iter().filter(|waiter| waits_there(waiter)).for_each(|waiter| {
            // Release: what was done comes first; partner: the load in `wait`.
            waiter.woken.store(true, Ordering::Release);
            waiter.sleep.wake_all();
        });
        // Nobody reads of them any more. Others may have come there meanwhile. Relaxed: stored under the lock.
        self.waiters.lock().retain(|waiter| !waiter.woken.load(Ordering::Relaxed));
    }
    /// Nobody is told of anything from here on.
    fn close(self: &Arc<Self>) {
        // SeqCst: before the watching ends; partner: the load in `wait`, after entering the list.
        self.closed.store(true, Ordering::SeqCst);
        // Should there be no memory for it, the first who waits tries again.
        let _ = self.with(Errno::ESRCH, |mm, watched| {
            if self.watch_nothing(mm, watched) { Ok(()) } else { Err(Errno::ENOMEM) }
        });
        self.wake(0, u64::MAX);
    }
    /// End all watching. False if there is no memory for it.
    fn watch_nothing(self: &Arc<Self>, mm: &Mm, watched: &dyn Watched) -> bool {
        let (ctx, me): (_, Arc<dyn Any + Send + Sync>) = (task::unpinned(), self.clone());
        let mine = |mapping: &Mapping| mapping.watch.as_ref().is_some_and(|watch| watch.is_by(&me));
        let nobody = |mapping: &Mapping| Some(mapping.watch.as_deref().cloned().filter(|_| !mine(mapping)));
        let all = PageRange::new(Page::default(), USER_END_PAGE).unwrap_or_default();
        // Not all of the memory need be locked.
        let (mut ranges, mut room) = (Vec::new(), true);
        mm.aspace.areas(all, &ctx, &mut |info| {
            if mine(info.mapping) {
                room &= ranges.try_reserve(1).is_ok();
                ranges.extend(Some(info.range).filter(|_| room));
            }
        });
        room && ranges.into_iter().all(|range| watched.watch(range, &nobody, &ctx) != Err(Error::NoMemory))
    }

    fn message(&self, at: VirtAddr, access: Access, cause: Cause) -> [u64; WORDS] {
        let flags = if access == Access::Write { FLAG_WRITE } else { 0 }
            | match cause {
                Cause::Missing => 0,
                Cause::Minor => FLAG_MINOR,
                Cause::Protected => FLAG_WP,
            };
        let address = if self.has(EXACT_ADDRESS) { at.as_u64() } else { at.as_u64() & !(PAGE_SIZE - 1) };
        let thread = if self.has(THREAD_ID) { u64::from(task::current().tid()) } else { 0 };
        [EVENT_PAGEFAULT, flags, address, thread]
    }
}

/// Whether the calling thread is to end, and so does no more. If a signal ends its process, it is asked to end now.
pub fn is_dying() -> bool {
    if let Some(signal) = signal::fatal() {
        process::group_exit(Status::killed(signal.number()));
    }
    task::current().is_ending()
}

/// `access` of the calling thread to `at` of `mm` is one that a watcher is told of: tell, and wait until something was done about
/// it. `by_kernel`: the access is a copy for the thread. Nothing is locked. May sleep.
pub fn wait(mm: &Mm, at: VirtAddr, access: Access, by_kernel: bool) -> Outcome {
    let ctx = task::unpinned();
    let Some(watched) = mm.aspace.watched() else { return Outcome::Refused };
    let Some((watch, cause)) = watched.told(at.page(), access, &ctx) else { return Outcome::Again };
    let Ok(context) = watch.by.downcast::<Context>() else { return Outcome::Refused };
    // What a thread does last is not worth waiting for.
    if context.has(SIGBUS) || by_kernel && (context.user_only || is_dying()) {
        return Outcome::Refused;
    }
    if !heap::gives::<Waiter>() {
        return Outcome::NoMemory;
    }
    let waiter = Arc::new(Waiter {
        message: context.message(at, access, cause),
        at,
        read: AtomicBool::new(false),
        woken: AtomicBool::new(false),
        sleep: WaitQueue::new(),
    });
    {
        let mut waiters = context.waiters.lock();
        if waiters.try_reserve(1).is_err() {
            return Outcome::NoMemory;
        }
        waiters.push_back(waiter.clone());
    }
    let still = watched.told(at.page(), access, &ctx);
    let same = |watch: &Watch| core::ptr::addr_eq(Arc::as_ptr(&watch.by), Arc::as_ptr(&context));
    let to_tell = still.is_some_and(|(watch, now)| now == cause && same(&watch));
    let outcome = if !to_tell {
        Outcome::Again
    } else if context.closed.load(Ordering::SeqCst) {
        // SeqCst: partner in `close`.
        if context.watch_nothing(mm, watched) { Outcome::Again } else { Outcome::NoMemory }
    } else {
        context.readers.wake_all();
        // Acquire: partner in `wake`.
        let woken = || waiter.woken.load(Ordering::Acquire) || by_kernel && is_dying();
        match waiter.sleep.wait(None, !by_kernel, || woken().then_some(())) {
            Ok(()) => Outcome::Again,
            Err(_) => Outcome::Interrupted,
        }
    };
    context.waiters.lock().retain(|other| !Arc::ptr_eq(other, &waiter));
    outcome
}

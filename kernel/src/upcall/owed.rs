//! Stores that a call owes: a call that has taken an event, a message or a child, or has changed something and tells what was
//! there, can't start over when a page's level forbids the store of it.
//!
//! **Claim.** What such a call does it does once, and the program has what it tells when it goes on, whatever other threads
//! lower, and whenever: before the call, while it sleeps, or between two of its stores.
//!
//! **Idea.** The levels of a call's buffers are looked at when it begins (`syscall/buffers.rs`), and all is well if they stay. A store beyond the
//! point where the call could start over is made within [`owed`]. If it meets a level its bytes are kept here, and it counts
//! as made. So the call ends as if nothing had been; on the way back the stores are made again, and a level that is met
//! then makes an upcall, as if there were an instruction behind `syscall` that stores:
//!
//! ```text
//! call: takes, store forbidden: kept -> result -> signals -> pay: forbidden -> upcall
//!                                                            pay: stored   <- resume, raised
//!                                        where the thread was to go on <-
//! ```
//! **Signals** come first: whether an interrupted call is made again, and where a handler begins, is settled when the upcall
//! is made; so its frame goes on at the handler's first instruction, which finds what the call has stored.
//!
//! **Who refuses.** A program that takes no upcalls any more when it resumes gets EFAULT from the call. What the call took is gone then, as
//! on Linux; where Linux would keep it the store isn't owed, but comes before it is taken (bytes of a pipe or a stream, epoll's
//! events). If a signal's handler runs first there is no call to fail: the thread has SIGSEGV, as for an instruction. A program that goes
//! on elsewhere has gone past the store.
//!
//! **Which upcall.** A debt is known by the place of its upcall's frame. A frame that is made above one, on the same
//! stack, says that the one below was left by a jump: its debt is forgotten. Beyond that a thread has [`MOST`].
//!
//! **Memory.** A thread that takes upcalls has room for [`ROOM`] stores of [`FEW`] bytes, so those of one call are kept however little
//! memory there is. For more there may be none, and of all a thread has at most [`MOST_BYTES`]: a store beyond is
//! refused, and the call says EFAULT. A fork shares what is long, and else fails.

use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use aspace::Level;
use linux_raw_sys::general as abi;
use sync::SpinLock;

use super::{MET, MET_WRITE, PRESENT, deliver, forget};
use crate::{
    errno::Errno,
    fault,
    hw::TrapFrame,
    memory,
    planted::{self, Planted},
    signal::{self, SigInfo, code},
    task, usercopy,
};

/// The most debts of a thread: upcalls nest less deeply than that, or were left by jumps.
const MOST: usize = 16;
/// The most bytes that a thread's stores have, what is kept with each included.
const MOST_BYTES: usize = 1 << 20;
/// Bytes of a store that needs no memory of its own: all that tell of something, the largest being a `struct rusage`.
const FEW: usize = 144;
/// So many stores have room from the beginning. A call makes hardly more, if it isn't one that tells of many files or messages.
const ROOM: usize = 8;
/// The vector of a page fault.
const PAGE_FAULT: u64 = 14;

/// What is stored.
#[derive(Clone)]
enum Bytes {
    /// So many of these.
    Few(usize, [u8; FEW]),
    /// Shared with forked processes.
    Many(Arc<Vec<u8>>),
}

impl Bytes {
    /// A copy. None without memory, which a small one doesn't need.
    fn new(bytes: &[u8]) -> Option<Self> {
        let mut few = [0; FEW];
        if let Some(to) = few.get_mut(..bytes.len()) {
            to.copy_from_slice(bytes);
            return Some(Self::Few(bytes.len(), few));
        }
        let mut many = Vec::new();
        if memory::frames().low() || bytes.len() > MOST_BYTES || many.try_reserve_exact(bytes.len()).is_err()
        {
            return None;
        }
        many.extend_from_slice(bytes);
        Some(Self::Many(Arc::new(many)))
    }

    fn get(&self) -> &[u8] {
        match self {
            Self::Few(len, bytes) => bytes.get(..*len).unwrap_or_default(),
            Self::Many(bytes) => bytes,
        }
    }
}

/// A store. Those of one call are a debt: they are next to each other, and have all but where and what in common.
#[derive(Clone)]
struct Store {
    at: u64,
    bytes: Bytes,
    /// The frame of the upcall for it; 0 while it is due.
    frame: u64,
    /// Where that frame goes on.
    rip: u64,
    /// Behind the call; 0 while the call runs.
    behind: u64,
}

impl Store {
    fn is_due(&self) -> bool {
        self.frame == 0
    }
    fn cost(&self) -> usize {
        self.bytes.get().len() + size_of::<Self>()
    }
}

/// All stores, those of the oldest call first.
struct Kept {
    stores: Vec<Store>,
    /// What they cost.
    cost: usize,
}

impl Kept {
    /// Forget all but those of which `stays` says so.
    fn retain(&mut self, mut stays: impl FnMut(&Store) -> bool) {
        let cost = &mut self.cost;
        self.stores.retain(|store| {
            let stays = stays(store);
            if !stays {
                *cost -= store.cost();
            }
            stays
        });
        if self.stores.is_empty() && self.stores.capacity() > ROOM {
            // Without memory it stays as large as it is.
            let mut fresh = Vec::new();
            if fresh.try_reserve_exact(ROOM).is_ok() {
                self.stores = fresh;
            }
        }
    }

    /// Room for `n` in all.
    fn reserve(&mut self, n: usize) -> Result<(), Errno> {
        let more = n.saturating_sub(self.stores.len());
        self.stores.try_reserve_exact(more).map_err(|_| Errno::ENOMEM)
    }

    /// One more of the running call. False if there is no room, or it would be too much.
    fn push(&mut self, store: Store) -> bool {
        let is_first = self.stores.last().is_none_or(|last| !last.is_due());
        if is_first && self.stores.chunk_by(|one, next| one.frame == next.frame).count() >= MOST {
            let oldest = self.stores.first().map_or(0, |store| store.frame);
            self.retain(|store| store.frame != oldest);
        }
        let full = self.stores.len() == self.stores.capacity();
        if self.cost + store.cost() > MOST_BYTES
            || full && (memory::frames().low() || self.stores.try_reserve(1).is_err())
        {
            return false;
        }
        self.cost += store.cost();
        self.stores.push(store);
        true
    }
}

/// A thread's part. It is for the thread itself, so its atomics are Relaxed; only a fork looks at it from outside, and that
/// is of the thread's own making.
pub struct Debts {
    /// A store can't be left out.
    within: AtomicBool,
    /// One of `all` is due.
    due: AtomicBool,
    /// How many `all` are, to be seen without its lock.
    count: AtomicUsize,
    all: SpinLock<Kept>,
}

impl Debts {
    /// None.
    pub const fn new() -> Self {
        Self {
            within: AtomicBool::new(false),
            due: AtomicBool::new(false),
            count: AtomicUsize::new(0),
            all: SpinLock::new(Kept { stores: Vec::new(), cost: 0 }),
        }
    }

    /// Have room for a call's small stores, whatever memory there is then. ENOMEM.
    pub fn reserve(&self) -> Result<(), Errno> {
        self.all.lock().reserve(ROOM)
    }

    /// Whether the call that has just run owes something.
    #[inline]
    pub fn is_due(&self) -> bool {
        self.due.load(Ordering::Relaxed)
    }

    /// Change the debts by `f`.
    fn change<R>(&self, f: impl FnOnce(&mut Kept) -> R) -> R {
        let mut all = self.all.lock();
        let result = f(&mut all);
        self.count.store(all.stores.len(), Ordering::Relaxed);
        self.due.store(all.stores.iter().rev().any(Store::is_due), Ordering::Relaxed);
        result
    }

    /// Whether there are any.
    pub fn has_any(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    /// Forget all: `execve`.
    pub fn clear(&self) {
        drop(self.change(|all| core::mem::replace(all, Kept { stores: Vec::new(), cost: 0 })));
    }

    /// What the only thread of a forked process begins with: it returns into the same upcalls. Long stores are shared. ENOMEM.
    pub fn fork_to(&self, child: &Debts) -> Result<(), Errno> {
        let all = self.all.lock();
        child.change(|copy| {
            copy.reserve(all.stores.len().max(ROOM))?;
            copy.stores.extend_from_slice(&all.stores);
            copy.cost = all.cost;
            Ok(())
        })
    }

    /// An upcall's frame is made at `place`, on a stack that begins at `base`.
    #[inline]
    pub fn made(&self, base: u64, place: u64) {
        if self.count.load(Ordering::Relaxed) > 0 {
            let below = base.max(1)..=place;
            self.change(|all| all.retain(|store| !below.contains(&store.frame)));
        }
    }

    /// The upcall whose frame is at `place` is over, and the thread goes on at `rip`.
    #[inline]
    pub fn resumed(&self, place: u64, rip: u64) {
        if self.count.load(Ordering::Relaxed) > 0 {
            self.change(|all| {
                let stays = |store: &Store| store.rip == rip && !planted::is(Planted::OwedDropped);
                all.retain(|store| store.frame != place || stays(store));
                for store in all.stores.iter_mut().filter(|store| store.frame == place) {
                    store.frame = 0;
                }
            });
        }
    }

    /// Keep a store of the running call. False without memory, or if that is too much.
    fn keep(&self, at: u64, bytes: &[u8]) -> bool {
        let Some(bytes) = Bytes::new(bytes) else { return false };
        self.change(|all| all.push(Store { at, bytes, frame: 0, rip: 0, behind: 0 }))
    }

    /// The due store behind the first `n`.
    fn due(&self, n: usize) -> Option<Store> {
        let all = self.all.lock();
        let first = all.stores.iter().position(Store::is_due)?;
        all.stores.get(first + n).filter(|store| store.is_due()).cloned()
    }

    /// The first `n` that are due are no more.
    fn drop_due(&self, n: usize) {
        let mut left = n;
        self.change(|all| {
            all.retain(|store| {
                let goes = store.is_due() && left > 0;
                left -= usize::from(goes);
                !goes
            });
        });
    }

    /// Change those that are due by `f`.
    fn each_due(&self, f: impl FnMut(&mut Store)) {
        self.change(|all| all.stores.iter_mut().filter(|store| store.is_due()).for_each(f));
    }
}

/// Make the stores of `f`, which the call can't do without: one that meets a level is owed.
///
/// What an access before has met is as it was when `f` has stored all; so a call that fails for that starts over. It doesn't if a store
/// of `f` was owed or refused.
pub fn owed<R>(f: impl FnOnce() -> R) -> R {
    let state = &task::current().upcall;
    let within = &state.debts.within;
    let before = within.swap(true, Ordering::Relaxed);
    let met = state.met.swap(0, Ordering::Relaxed);
    let result = f();
    within.store(before, Ordering::Relaxed);
    if !planted::is(Planted::OwedRestarts) {
        let all_made = !state.has_met() && !state.owes() && !planted::is(Planted::OwedForgets);
        state.met.store(if all_made { met } else { 0 }, Ordering::Relaxed);
    }
    result
}

/// Whether the call, which has got to `result`, starts over: then it tells of that nowhere.
pub fn is_again<T>(result: &Result<T, Errno>) -> bool {
    matches!(result, Err(Errno::EFAULT))
        && task::current().upcall.starts_over()
        && !planted::is(Planted::OwedForgets)
}

/// A store of the running call failed. True if it is kept, and so counts as made.
#[cold]
pub fn owe(at: u64, bytes: &[u8]) -> bool {
    let me = task::current();
    let state = &me.upcall;
    let kept = state.debts.within.load(Ordering::Relaxed)
        && state.has_met()
        && state.is_armed()
        && !me.is_visiting()
        && !planted::is(Planted::OwedRestarts)
        && state.debts.keep(at, bytes);
    if kept {
        forget();
    }
    kept
}

/// The call has ended, at `behind`, and the thread is to go on as `frame` says: make the stores that are due, or an upcall for
/// the first that a level forbids.
#[cold]
pub fn pay(frame: &mut TrapFrame, behind: u64) {
    let me = task::current();
    let state = &me.upcall;
    forget();
    let mut made = 0;
    let refused = loop {
        let Some(next) = state.debts.due(made) else { break None };
        if usercopy::copy_out(next.at, next.bytes.get()).is_err() {
            break Some(next);
        }
        made += 1;
    };
    state.debts.drop_due(made);
    let Some(next) = refused else { return };
    let behind = if next.behind == 0 { behind } else { next.behind };
    let met = state.met.swap(0, Ordering::Relaxed);
    let at = if met & MET != 0 { met & !(MET | MET_WRITE) } else { next.at };
    let error = PRESENT | fault::ERROR_USER | fault::ERROR_WRITE;
    if met & MET != 0 && state.is_armed() {
        let rip = frame.rip;
        deliver(frame, at, error, Level::None);
        let place = frame.rsp;
        state.debts.each_due(|store| (store.frame, store.rip, store.behind) = (place, rip, behind));
        return;
    }
    state.debts.drop_due(usize::MAX);
    if frame.rip == behind {
        frame.rax = Errno::EFAULT.as_return();
    } else {
        let info = SigInfo::fault(abi::SIGSEGV, code::SEGV_ACCERR, at);
        signal::force_fault(info, error, PAGE_FAULT, at);
    }
}

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

use alloc::vec::Vec;
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
/// The vector of a page fault.
const PAGE_FAULT: u64 = 14;

/// A store: where, and what.
#[derive(Clone)]
struct Store {
    at: u64,
    bytes: Vec<u8>,
}

/// What one call owes.
#[derive(Clone)]
struct Debt {
    stores: Vec<Store>,
    /// The frame of the upcall for it; 0 while it is due.
    frame: u64,
    /// Where that frame goes on.
    rip: u64,
    /// Behind the call; 0 while the call runs.
    behind: u64,
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
    all: SpinLock<Vec<Debt>>,
}

impl Debts {
    /// None.
    pub const fn new() -> Self {
        Self {
            within: AtomicBool::new(false),
            due: AtomicBool::new(false),
            count: AtomicUsize::new(0),
            all: SpinLock::new(Vec::new()),
        }
    }

    /// Whether the call that has just run owes something.
    #[inline]
    pub fn is_due(&self) -> bool {
        self.due.load(Ordering::Relaxed)
    }

    /// Change the debts by `f`.
    fn change<R>(&self, f: impl FnOnce(&mut Vec<Debt>) -> R) -> R {
        let mut all = self.all.lock();
        let result = f(&mut all);
        self.count.store(all.len(), Ordering::Relaxed);
        self.due.store(all.iter().any(|debt| debt.frame == 0), Ordering::Relaxed);
        result
    }

    /// Forget all: `execve`.
    pub fn clear(&self) {
        if self.count.load(Ordering::Relaxed) > 0 {
            drop(self.change(core::mem::take));
        }
    }

    /// What the only thread of a forked process begins with: it returns into the same upcalls.
    pub fn fork_to(&self, child: &Debts) {
        if self.count.load(Ordering::Relaxed) > 0 {
            let copy = self.all.lock().clone();
            child.change(|all| *all = copy);
        }
    }

    /// An upcall's frame is made at `place`, on a stack that begins at `base`.
    #[inline]
    pub fn made(&self, base: u64, place: u64) {
        if self.count.load(Ordering::Relaxed) > 0 {
            self.change(|all| all.retain(|debt| !(base..=place).contains(&debt.frame)));
        }
    }

    /// The upcall whose frame is at `place` is over, and the thread goes on at `rip`.
    #[inline]
    pub fn resumed(&self, place: u64, rip: u64) {
        if self.count.load(Ordering::Relaxed) > 0 {
            self.change(|all| {
                let stays = |debt: &Debt| debt.rip == rip && !planted::is(Planted::OwedDropped);
                all.retain(|debt| debt.frame != place || stays(debt));
                if let Some(debt) = all.iter_mut().find(|debt| debt.frame == place) {
                    debt.frame = 0;
                }
            });
        }
    }

    /// Keep a store of the running call. False without memory.
    fn keep(&self, at: u64, bytes: &[u8]) -> bool {
        let mut copy = Vec::new();
        if memory::frames().low() || copy.try_reserve_exact(bytes.len()).is_err() {
            return false;
        }
        copy.extend_from_slice(bytes);
        let store = Store { at, bytes: copy };
        let (kept, _oldest) = self.change(|all| {
            if let Some(debt) = all.iter_mut().find(|debt| debt.frame == 0) {
                let room = debt.stores.try_reserve(1).is_ok();
                if room {
                    debt.stores.push(store);
                }
                return (room, None);
            }
            let mut stores = Vec::new();
            if all.try_reserve(1).is_err() || stores.try_reserve(1).is_err() {
                return (false, None);
            }
            let oldest = (all.len() >= MOST).then(|| all.remove(0));
            stores.push(store);
            all.push(Debt { stores, frame: 0, rip: 0, behind: 0 });
            (true, oldest)
        });
        kept
    }

    fn take_due(&self) -> Option<Debt> {
        self.change(|all| all.iter().position(|debt| debt.frame == 0).map(|at| all.remove(at)))
    }
}

/// Make the stores of `f`, which the call can't do without: one that meets a level is owed.
pub fn owed<R>(f: impl FnOnce() -> R) -> R {
    let within = &task::current().upcall.debts.within;
    let before = within.swap(true, Ordering::Relaxed);
    // What was met before now isn't what a store in here meets.
    forget();
    let result = f();
    within.store(before, Ordering::Relaxed);
    result
}

/// A store of the running call failed. True if it is kept, and so counts as made.
#[cold]
pub fn owe(at: u64, bytes: &[u8]) -> bool {
    let me = task::current();
    let state = &me.upcall;
    let owes = state.debts.within.load(Ordering::Relaxed)
        && state.has_met()
        && state.is_armed()
        && !me.is_visiting()
        && !planted::is(Planted::OwedRestarts);
    if !owes {
        return false;
    }
    // In either case the call doesn't start over.
    forget();
    state.debts.keep(at, bytes)
}

/// The call has ended, at `behind`, and the thread is to go on as `frame` says: make the stores that are due, or an upcall for
/// the first that a level forbids.
#[cold]
pub fn pay(frame: &mut TrapFrame, behind: u64) {
    let me = task::current();
    let state = &me.upcall;
    let Some(mut debt) = state.debts.take_due() else { return };
    if debt.behind == 0 {
        debt.behind = behind;
    }
    forget();
    let made =
        debt.stores.iter().take_while(|store| usercopy::copy_out(store.at, &store.bytes).is_ok()).count();
    debt.stores.drain(..made);
    let Some(next) = debt.stores.first() else { return };
    let met = state.met.swap(0, Ordering::Relaxed);
    let at = if met & MET != 0 { met & !(MET | MET_WRITE) } else { next.at };
    let error = PRESENT | fault::ERROR_USER | fault::ERROR_WRITE;
    if met & MET != 0 && state.is_armed() {
        debt.rip = frame.rip;
        deliver(frame, at, error, Level::None);
        debt.frame = frame.rsp;
        state.debts.change(|all| all.push(debt));
    } else if frame.rip == debt.behind {
        frame.rax = Errno::EFAULT.as_return();
    } else {
        let info = SigInfo::fault(abi::SIGSEGV, code::SEGV_ACCERR, at);
        signal::force_fault(info, error, PAGE_FAULT, at);
    }
}

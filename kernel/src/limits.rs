//! A process's resource limits.
//!
//! They are read by every call that maps memory, opens a file or sends a signal, and hardly ever change; so reading takes no
//! lock and writes nothing. Soft and hard limit are words of their own: who reads both while they are changed may see the
//! one from before and the other from after.

use core::sync::atomic::{AtomicU64, Ordering};

use addr::PAGE_SIZE;
use aspace::Limits;

use crate::{errno::Errno, process::task_limit, task};

/// A resource limit, as in `getrlimit`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Rlimit {
    /// What is enforced.
    pub soft: u64,
    /// How far it may be raised.
    pub hard: u64,
}
crate::pod!(Rlimit);

/// No limit.
pub const UNLIMITED: u64 = u64::MAX;
/// `RLIMIT_FSIZE`.
pub const RLIMIT_FSIZE: usize = 1;
/// `RLIMIT_DATA`.
pub const RLIMIT_DATA: usize = 2;
/// `RLIMIT_STACK`.
pub const RLIMIT_STACK: usize = 3;
/// `RLIMIT_CORE`.
const RLIMIT_CORE: usize = 4;
/// `RLIMIT_NPROC`: here it counts all threads of the machine, and root is no exception.
pub const RLIMIT_NPROC: usize = 6;
/// `RLIMIT_NOFILE`.
pub const RLIMIT_NOFILE: usize = 7;
/// `RLIMIT_MEMLOCK`. Linux's default, which holds for the superuser too here.
pub const RLIMIT_MEMLOCK: usize = 8;
/// `RLIMIT_AS`.
pub const RLIMIT_AS: usize = 9;
/// `RLIMIT_SIGPENDING`: how many signals with information may be queued for one thread or process.
pub const RLIMIT_SIGPENDING: usize = 11;
/// How many there are.
const ALL: usize = 16;

/// The highest that a limit may be set, where the kernel's own memory is at stake: what it bounds lies in the heap, and
/// queued signals are even allocated with interrupts off, from what is at hand.
fn ceiling(which: usize) -> u64 {
    match which {
        RLIMIT_NOFILE => 1 << 20,
        RLIMIT_SIGPENDING => 1024,
        _ => UNLIMITED,
    }
}

fn default(which: usize) -> Rlimit {
    let tasks = || task_limit() as u64 / 2;
    let (soft, hard) = match which {
        RLIMIT_STACK => (8 << 20, UNLIMITED),
        RLIMIT_NPROC => (tasks(), tasks()),
        RLIMIT_MEMLOCK => (8 << 20, 8 << 20),
        RLIMIT_NOFILE => (1024, 4096),
        RLIMIT_SIGPENDING => (1024, 1024),
        RLIMIT_CORE => (0, UNLIMITED),
        _ => (UNLIMITED, UNLIMITED),
    };
    Rlimit { soft, hard }
}

/// Soft and hard limits by `RLIMIT_` number.
pub struct Rlimits([[AtomicU64; 2]; ALL]);

// Relaxed, all: a limit is a number that says nothing of other memory.
const RELAXED: Ordering = Ordering::Relaxed;

impl Rlimits {
    /// Those of the first process.
    pub fn new() -> Self {
        Self(core::array::from_fn(|which| {
            let Rlimit { soft, hard } = default(which);
            [AtomicU64::new(soft), AtomicU64::new(hard)]
        }))
    }
    /// A child has its parent's.
    pub fn inherit(&self, parent: &Self) {
        for ([soft, hard], [from_soft, from_hard]) in self.0.iter().zip(&parent.0) {
            soft.store(from_soft.load(RELAXED), RELAXED);
            hard.store(from_hard.load(RELAXED), RELAXED);
        }
    }
    /// The limit `which`, or none for a number that doesn't exist.
    pub fn get(&self, which: usize) -> Option<Rlimit> {
        self.0.get(which).map(|[soft, hard]| Rlimit { soft: soft.load(RELAXED), hard: hard.load(RELAXED) })
    }
    /// What is enforced; nothing for a number that doesn't exist.
    pub fn soft(&self, which: usize) -> u64 {
        self.0.get(which).map_or(UNLIMITED, |[soft, _]| soft.load(RELAXED))
    }
    /// Set one: EINVAL if there is none, or its soft limit would be above the hard one; EPERM if it may not be so high.
    pub fn set(&self, which: usize, new: Rlimit) -> Result<(), Errno> {
        let [soft, hard] = self.0.get(which).filter(|_| new.soft <= new.hard).ok_or(Errno::EINVAL)?;
        if new.hard > ceiling(which) {
            return Err(Errno::EPERM);
        }
        soft.store(new.soft, RELAXED);
        hard.store(new.hard, RELAXED);
        Ok(())
    }
    /// Those that concern the address space of the calling thread's process, in pages.
    pub fn of_memory(&self) -> Limits {
        let pages = |bytes| if bytes == UNLIMITED { UNLIMITED } else { bytes / PAGE_SIZE };
        let data = match self.soft(RLIMIT_DATA) {
            // As Linux, for Valgrind.
            0 => self.get(RLIMIT_DATA).map_or(0, |limit| limit.hard),
            soft => soft,
        };
        Limits {
            pages: pages(self.soft(RLIMIT_AS)),
            data: pages(data),
            stack: pages(self.soft(RLIMIT_STACK)),
            locked: if task::may_lock_all() { UNLIMITED } else { pages(self.soft(RLIMIT_MEMLOCK)) },
        }
    }
}

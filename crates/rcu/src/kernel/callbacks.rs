//! What CPUs have retired: lists of their own, how they move, and how much there may be.
//!
//! ```text
//! next (not yet stamped) -> wait[1] -> wait[0] (stamped with a period) -> ready (freed by the next tick)
//! ```
//! All of it is first in, first out. What a CPU *hands over* goes to the end of the orphans, in the same order, and from there to
//! the `next` of the CPU that adopts.
//!
//! **Bound.** Each object counts for its size, and for `LEAST_BYTES` at least. From [`SOFT`] on a CPU
//! [asks itself](super::Domain::is_asked) for [relief](super::Domain::relieve): then its period is hurried; and if all CPUs
//! together hold the *hard limit*, [`SOFT`] for each and [`LEAST_HARD`] at least, it waits for the period and frees before it
//! retires more. Between two looks a CPU adds [`SOFT`] at most, and what it has retired in one operation. So what waits is at most twice the hard
//! limit, beside these; of one CPU that floods, the hard limit and an eighth of [`SOFT`].

use core::cell::{Cell, RefCell};

use percpu::{CpuId, Line, PerCpu, Pinned};
use sync::{
    SpinLock, mutant,
    primitive::{AtomicBool, AtomicU64, Ordering},
};

use super::{BATCH, Gp, periods::Periods};
use crate::{Retired, list::List};

/// What a CPU may hold before its periods are hurried, in bytes.
pub const SOFT: usize = if cfg!(loom) { 1024 } else { 1 << 20 };
/// What all may hold together, of however few CPUs, before those wait that retire more, in bytes.
pub const LEAST_HARD: usize = 16 * SOFT;
/// What a CPU may add before it looks again what all hold.
const STEP: usize = SOFT / 8;

/// At how many ticks a late period is left to who has begun it. None under loom, whose models are short.
const PATIENCE: u32 = if cfg!(loom) { 0 } else { 2 };

/// Of one CPU.
struct Callbacks {
    next: List,
    /// Stamped, older first.
    wait: [(Gp, List); 2],
    ready: List,
}

/// What only its CPU looks at.
struct Mine {
    callbacks: RefCell<Callbacks>,
    /// Periods up to this one were begun by the last tick, or are older.
    looked: Cell<u64>,
    /// The last period that was late at a tick, and at how many.
    late: Cell<(u64, u32)>,
    /// What it holds, in bytes.
    held: Cell<usize>,
    /// The most bytes that it has held.
    most: Cell<usize>,
    /// What it may hold before it asks for relief.
    relieve_at: Cell<usize>,
}

struct Orphans {
    list: List,
    /// A barrier is under way that has not come to the orphans: nobody adopts.
    closed: bool,
}

pub(super) struct Queues {
    mine: PerCpu<Mine>,
    /// Bytes that each CPU holds. Stored by that CPU; nobody else looks, but barriers, and who holds much himself.
    held: PerCpu<AtomicU64>,
    /// Whether a CPU should do its work soon. Stored by that CPU.
    asked: PerCpu<AtomicBool>,
    /// Called when a CPU is asked.
    tell: fn(CpuId),
    orphans: Line<SpinLock<Orphans>>,
    /// `2 * number of the last barrier + whether there are orphans`. Stored by who has their lock.
    notice: Line<AtomicU64>,
    hard: usize,
}

impl Queues {
    pub(super) fn new(cpus: usize) -> Self {
        let make = |_| Mine {
            callbacks: RefCell::new(Callbacks {
                next: List::EMPTY,
                wait: [(Gp(0), List::EMPTY), (Gp(0), List::EMPTY)],
                ready: List::EMPTY,
            }),
            looked: Cell::new(0),
            late: Cell::new((0, 0)),
            held: Cell::new(0),
            most: Cell::new(0),
            relieve_at: Cell::new(SOFT),
        };
        Self {
            mine: PerCpu::new(cpus, make),
            held: PerCpu::new(cpus, |_| AtomicU64::new(0)),
            asked: PerCpu::new(cpus, |_| AtomicBool::new(false)),
            tell: |_| (),
            orphans: Line(SpinLock::new(Orphans { list: List::EMPTY, closed: false })),
            notice: Line(AtomicU64::new(0)),
            hard: LEAST_HARD.max(cpus * SOFT),
        }
    }
    /// Count what this CPU holds.
    fn add(&self, pin: &Pinned<'_>, bytes: usize) {
        let mine = self.mine.get(pin);
        let now = mine.held.get() + bytes;
        mine.held.set(now);
        mine.most.set(mine.most.get().max(now));
        // Relaxed: who must know of this hears of it from who has retired it.
        self.held.get(pin).store(now as u64, Ordering::Relaxed);
        if now >= mine.relieve_at.get() {
            self.ask(pin.cpu());
        }
    }
    fn sub(&self, pin: &Pinned<'_>, bytes: usize) {
        let mine = self.mine.get(pin);
        let now = mine.held.get() - bytes;
        mine.held.set(now);
        // Release: what was freed, or is with the orphans, before; partner: the load in `holds_nothing`.
        self.held.get(pin).store(now as u64, Ordering::Release);
        // What it comes to from here on is a flood anew.
        mine.relieve_at.set(mine.relieve_at.get().min(SOFT.max(now + STEP)));
    }
    pub(super) fn tell(&mut self, f: fn(CpuId)) {
        self.tell = f;
    }
    fn ask(&self, cpu: CpuId) {
        let Some(asked) = self.asked.of(cpu) else { return };
        // Relaxed, here and below: for this CPU, which looks on its way.
        if !asked.load(Ordering::Relaxed) {
            asked.store(true, Ordering::Relaxed);
        }
        // Also if it is asked already: it may have forgotten what it was told.
        (self.tell)(cpu);
    }
    pub(super) fn is_asked(&self, pin: &Pinned<'_>) -> bool {
        self.asked.get(pin).load(Ordering::Relaxed)
    }
    pub(super) fn take_asked(&self, pin: &Pinned<'_>) {
        if self.is_asked(pin) {
            self.asked.get(pin).store(false, Ordering::Relaxed);
        }
    }
    pub(super) fn push(&self, pin: &Pinned<'_>, retired: Retired) {
        let bytes = retired.bytes();
        self.mine.get(pin).callbacks.borrow_mut().next.push(retired);
        self.add(pin, bytes);
    }
    pub(super) fn len(&self, pin: &Pinned<'_>) -> usize {
        let c = self.mine.get(pin).callbacks.borrow();
        c.next.len() + c.wait[0].1.len() + c.wait[1].1.len() + c.ready.len()
    }
    /// Whether a CPU has freed, or handed over, all that it has ever retired, as far as the caller knows of that.
    pub(super) fn holds_nothing(&self, cpu: CpuId) -> bool {
        // Acquire: partner of the store in `sub`.
        self.held.of(cpu).is_none_or(|held| held.load(Ordering::Acquire) == 0)
    }
    /// What all hold, in bytes, without the orphans.
    pub(super) fn held(&self) -> usize {
        // Relaxed: a sum of what is changed all the time.
        self.held.iter().map(|held| held.load(Ordering::Relaxed) as usize).sum()
    }
    pub(super) fn limit(&self) -> usize {
        self.hard
    }
    /// The most that this CPU has held, in bytes.
    pub(super) fn most(&self, pin: &Pinned<'_>) -> usize {
        self.mine.get(pin).most.get()
    }
    /// Whether this CPU has come to the point where it looks what all hold; the next point is a step further.
    pub(super) fn is_flooded(&self, pin: &Pinned<'_>) -> bool {
        let mine = self.mine.get(pin);
        let held = mine.held.get();
        let flooded = held >= mine.relieve_at.get();
        if flooded {
            mine.relieve_at.set(held + STEP);
        }
        flooded
    }
    /// Whether this CPU holds so much that it has to wait if all hold too much.
    pub(super) fn is_over(&self, pin: &Pinned<'_>) -> bool {
        self.mine.get(pin).held.get() >= SOFT && self.held() >= self.hard && !mutant!("rcu-flood-unbounded")
    }
    /// Leave all to whoever adopts it.
    pub(super) fn hand_over(&self, pin: &Pinned<'_>) {
        let mut c = self.mine.get(pin).callbacks.borrow_mut();
        let Callbacks { next, wait: [(_, first), (_, second)], ready } = &mut *c;
        if next.len() + first.len() + second.len() + ready.len() == 0 {
            return;
        }
        let mut orphans = self.orphans.0.lock();
        let before = orphans.list.bytes();
        // The oldest first; which periods have ended for them is forgotten.
        [ready, first, second, next].into_iter().for_each(|list| orphans.list.append(list.take()));
        self.sub(pin, orphans.list.bytes() - before);
        self.notify(|notice| notice | 1);
    }
    /// By who has the lock of the orphans.
    fn notify(&self, change: impl FnOnce(u64) -> u64) -> u64 {
        // Relaxed: changed under the lock. Who idles is ordered by its fence.
        let notice = change(self.notice.0.load(Ordering::Relaxed));
        // Release: what was changed before, as that the orphans are closed; partner: the load in `notices`.
        self.notice.0.store(notice, Ordering::Release);
        notice / 2
    }
    pub(super) fn has_orphans(&self) -> bool {
        // Relaxed: a hint, or ordered by a fence.
        self.notice.0.load(Ordering::Relaxed) & 1 != 0
    }
    /// The last barrier, and whether there are orphans.
    pub(super) fn notices(&self) -> (u64, bool) {
        // Acquire: partner of the store in `notify`.
        let notice = self.notice.0.load(Ordering::Acquire);
        (notice / 2, notice & 1 != 0)
    }
    /// A barrier begins: nobody adopts from here on. Gives its number.
    pub(super) fn close(&self) -> u64 {
        let mut orphans = self.orphans.0.lock();
        orphans.closed = true;
        self.notify(|notice| notice + 2)
    }
    /// There may be a `marker` behind the orphans; then they may be adopted.
    pub(super) fn open(&self, marker: impl FnOnce() -> Retired) {
        let mut orphans = self.orphans.0.lock();
        orphans.closed = false;
        if orphans.list.len() > 0 && !mutant!("rcu-barrier-orphans") {
            orphans.list.push(marker());
        }
    }
    /// Take over what others have handed over.
    pub(super) fn adopt(&self, pin: &Pinned<'_>) {
        let mut orphans = self.orphans.0.lock();
        if !orphans.closed || mutant!("rcu-barrier-open") {
            self.notify(|notice| notice & !1);
            let list = orphans.list.take();
            self.add(pin, list.bytes());
            self.mine.get(pin).callbacks.borrow_mut().next.append(list);
        }
    }
    /// Whether something waits here for a period, and the one that is open was so at the tick before: then those that tick have
    /// reported, and it is time to look for the others, for who has begun it; or for anybody, if nobody did so.
    pub(super) fn looks(&self, pin: &Pinned<'_>, periods: &Periods) -> bool {
        let mine = self.mine.get(pin);
        if mine.callbacks.borrow().wait[0].1.len() == 0 {
            return false;
        }
        let open = periods.last();
        let late = open <= mine.looked.get();
        mine.looked.set(open);
        if !late {
            return false;
        }
        let (period, ticks) = mine.late.get();
        let ticks = if period == open { ticks + 1 } else { 1 };
        mine.late.set((open, ticks));
        periods.is_scanned_by(pin.cpu()) || ticks > PATIENCE && !mutant!("rcu-scan-one")
    }
    /// Set free what has waited long enough, and stamp what was retired since. Says which period that needs.
    pub(super) fn advance(&self, pin: &Pinned<'_>, periods: &Periods) -> Option<Gp> {
        let mine = self.mine.get(pin);
        let mut c = mine.callbacks.borrow_mut();
        let c = &mut *c;
        while c.wait[0].1.len() > 0 && periods.poll(c.wait[0].0) {
            c.ready.append(c.wait[0].1.take());
            c.wait.swap(0, 1);
        }
        if c.wait[1].1.len() > 0 || c.next.len() == 0 {
            return None;
        }
        let need = periods.snap();
        let at = usize::from(c.wait[0].1.len() > 0);
        c.wait[at] = (need, c.next.take());
        mine.looked.set(need.0);
        Some(need)
    }
    /// Free at most a [`BATCH`] of what is due. Gives how many.
    pub(super) fn run(&self, pin: &Pinned<'_>) -> usize {
        let mine = self.mine.get(pin);
        let mut freed = 0;
        while freed < BATCH {
            // Not borrowed while it runs: it may retire something itself.
            let Some((head, free, bytes)) = mine.callbacks.borrow_mut().ready.pop() else { break };
            // SAFETY: the object was retired, by `Retired::new` it is freed by `free` and by nobody else, and every
            // section that could have found it is over.
            unsafe { free(head, pin) };
            self.sub(pin, bytes);
            freed += 1;
        }
        freed
    }
}

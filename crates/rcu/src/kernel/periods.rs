//! Grace periods: who begins them, who reports, and who ends them. The [module above](super) has the argument.

use alloc::{boxed::Box, vec};
use core::cell::Cell;

use percpu::{CpuId, CpuSet, Line, PerCpu, Pinned};
use sync::{
    SpinLock, mutant,
    primitive::{AtomicU64, Ordering, fence},
    probe,
};

use super::{
    Gp,
    tree::{self, Tree},
};

pub(super) struct Periods {
    gp: Line<Last>,
    /// The last that has ended: at most one behind. Stored by who has cleared the root.
    done: Line<AtomicU64>,
    /// The last period that somebody waits for.
    wanted: Line<AtomicU64>,
    driver: Line<SpinLock<Driver>>,
    tree: Tree,
    /// For each CPU a number that is odd while it may have sections, and changes when it begins to idle and when it ends.
    /// Stored by that CPU, looked at by who [scans](Periods::scan).
    awake: PerCpu<AtomicU64>,
    mine: PerCpu<Mine>,
}

/// The last period begun. Stored by who holds `driver`.
struct Last {
    number: AtomicU64,
    /// The CPU that has begun it, or [`NOBODY`], if that isn't known: it scans at its ticks, so that the others needn't.
    begun_by: AtomicU64,
}

const NOBODY: u64 = u64::MAX;

/// What only its CPU looks at.
#[derive(Default)]
struct Mine {
    /// The last period that it has reported for, or need not.
    reported: Cell<u64>,
    online: Cell<bool>,
    /// A copy of its number in `awake`.
    awake: Cell<u64>,
}

/// What is changed by who begins periods, and scans.
struct Driver {
    /// For each leaf the CPUs that periods wait for.
    online: Box<[u64]>,
    /// What `awake` was of the CPUs that still owed a report, when `period` was scanned last.
    period: u64,
    awake: Box<[u64]>,
    /// The last period that was hurried.
    hurried: u64,
}

/// What a scan has found.
pub(super) struct Found {
    /// Who still owes a report for the open period.
    pub(super) owing: CpuSet,
    /// Nobody has hurried them yet.
    pub(super) first: bool,
}

/// What to do beside beginning what is wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    No,
    Scan,
    /// And take note that those who owe a report are told.
    Hurry,
}

impl Periods {
    pub(super) fn new(cpus: usize) -> Self {
        let tree = Tree::new(cpus);
        let driver = Driver {
            online: vec![0; tree.leaves()].into_boxed_slice(),
            period: 0,
            awake: vec![0; cpus].into_boxed_slice(),
            hurried: 0,
        };
        Self {
            gp: Line(Last { number: AtomicU64::new(0), begun_by: AtomicU64::new(NOBODY) }),
            done: Line(AtomicU64::new(0)),
            wanted: Line(AtomicU64::new(0)),
            driver: Line(SpinLock::new(driver)),
            tree,
            awake: PerCpu::new(cpus, |_| AtomicU64::new(0)),
            mine: PerCpu::new(cpus, |_| Mine::default()),
        }
    }
    pub(super) fn cpus(&self) -> usize {
        self.awake.cpus()
    }
    /// The last period begun, wanted, and ended: for people, and for who looks how long one is open.
    pub(super) fn numbers(&self) -> [u64; 3] {
        // Relaxed: nothing is concluded from them.
        [&self.gp.0.number, &self.wanted.0, &self.done.0].map(|word| word.load(Ordering::Relaxed))
    }
    pub(super) fn is_awake(&self, pin: &Pinned<'_>) -> bool {
        self.mine.get(pin).awake.get() & 1 != 0
    }
    /// Whether all CPUs idle, the calling one too.
    pub(super) fn all_idle(&self) -> bool {
        // SeqCst [O11]: our own number, and what we handed over, before the look at the others'; partner: the same fence there.
        if !mutant!("rcu-no-leave-fence") {
            fence(Ordering::SeqCst);
        }
        // Relaxed: ordered by the fence.
        self.awake.iter().all(|awake| awake.load(Ordering::Relaxed) & 1 == 0)
    }
    pub(super) fn idle_enter(&self, pin: &mut Pinned<'_>) {
        if self.is_awake(pin) {
            // Release [O9]: the sections before come first; partner: the load in `scan`.
            let order = if mutant!("rcu-relaxed-idle") { Ordering::Relaxed } else { Ordering::Release };
            self.next(pin, order);
        }
    }
    fn next(&self, pin: &Pinned<'_>, order: Ordering) {
        let mine = &self.mine.get(pin).awake;
        mine.set(mine.get() + 1);
        self.awake.get(pin).store(mine.get(), order);
    }
    pub(super) fn idle_exit(&self, pin: &mut Pinned<'_>) {
        if !self.mine.get(pin).online.get() {
            self.join(pin);
        }
        if !self.is_awake(pin) && !mutant!("rcu-idle-unnoticed") {
            // Release [O9]: who finds this number instead of the one before must still come after the sections before that;
            // partner: the load in `scan`.
            let order = if mutant!("rcu-relaxed-wake") { Ordering::Relaxed } else { Ordering::Release };
            self.next(pin, order);
            // SeqCst [O10]: partner of the fence in `scan`; and, as O8, of the fence in `snap`.
            if !mutant!("rcu-no-wake-fence") {
                fence(Ordering::SeqCst);
            }
        }
    }
    /// Periods that begin from here on wait for this CPU. Those that are open have begun before its fence in `idle_exit`, as the
    /// lock shows.
    fn join(&self, pin: &Pinned<'_>) {
        let (leaf, bit) = tree::place(pin.cpu());
        if !mutant!("rcu-join-unowed") {
            self.driver.0.lock().online[leaf] |= bit;
        }
        self.mine.get(pin).online.set(true);
    }
    /// Periods don't wait for this CPU, which idles, and scans don't look for it, until it wakes.
    pub(super) fn leave(&self, pin: &Pinned<'_>) {
        let (leaf, bit) = tree::place(pin.cpu());
        if self.mine.get(pin).online.replace(false) {
            self.driver.0.lock().online[leaf] &= !bit;
        }
    }
    pub(super) fn snap(&self) -> Gp {
        // SeqCst [O7]: what the caller unlinked comes before; partners: the fences in `qs` and `idle_exit`.
        if !mutant!("rcu-no-snap-fence") {
            fence(Ordering::SeqCst);
        }
        let ahead = if mutant!("rcu-current-period") { 0 } else { 1 };
        // Relaxed: ordered by the fence.
        Gp(self.gp.0.number.load(Ordering::Relaxed) + ahead)
    }
    /// The last period begun.
    pub(super) fn last(&self) -> u64 {
        // Relaxed: a number, by which nothing is freed.
        self.gp.0.number.load(Ordering::Relaxed)
    }
    /// Whether it is this CPU that scans in the last period, as it has begun it; or anybody, if nobody is known to have.
    pub(super) fn is_scanned_by(&self, cpu: CpuId) -> bool {
        // Relaxed: that somebody scans in the end is the ticks' doing.
        let by = self.gp.0.begun_by.load(Ordering::Relaxed);
        by == cpu.index() as u64 || by == NOBODY
    }
    pub(super) fn poll(&self, need: Gp) -> bool {
        let early = u64::from(mutant!("rcu-early-free"));
        // Acquire [O9]: all sections of all CPUs come before; partner: the store in `finish`.
        self.done.0.load(Ordering::Acquire) + early >= need.0
    }
    pub(super) fn request(&self, need: Gp, by: Option<CpuId>) {
        // Relaxed, both: a number that nothing hangs on but what is begun. Looked at before it is written, so that no line moves
        // if others want the same.
        if self.wanted.0.load(Ordering::Relaxed) < need.0 {
            self.wanted.0.fetch_max(need.0, Ordering::Relaxed);
            // SeqCst [O12]: what is wanted before the look at what has ended; partner: the fence in `finish`.
            if !mutant!("rcu-no-request-fence") {
                fence(Ordering::SeqCst);
            }
        }
        self.begin_wanted(by);
    }
    /// This CPU is in no section, and not idle.
    pub(super) fn qs(&self, pin: &mut Pinned<'_>) {
        let reported = &self.mine.get(pin).reported;
        // Acquire: with the fence after it, partner of `snap`; and the nodes as they were when the period began, partner of the
        // store in `begin`.
        let g = self.gp.0.number.load(Ordering::Acquire);
        if reported.get() != g && !mutant!("rcu-lost-quiescent") {
            // SeqCst [O8]: partner of the fence in `snap`.
            if !mutant!("rcu-no-report-fence") {
                fence(Ordering::SeqCst);
            }
            reported.set(g);
            if self.tree.report(pin.cpu(), g) {
                self.finish(g);
                self.begin_wanted(Some(pin.cpu()));
            }
        }
    }
    /// All have reported for `g`.
    fn finish(&self, g: u64) {
        // Release [O9]: hands on what the root's exchange has acquired; partner: `poll`.
        self.done.0.store(g, Ordering::Release);
        // SeqCst [O12]: that it has ended before the look at what is wanted; partner: the fence in `request`.
        if !mutant!("rcu-no-finish-fence") {
            fence(Ordering::SeqCst);
        }
        probe!(GracePeriod);
    }
    /// Whether a period is wanted and none is open.
    fn can_begin(&self) -> bool {
        // Relaxed, all: the driver looks again, and O12 orders them.
        let g = self.gp.0.number.load(Ordering::Relaxed);
        self.wanted.0.load(Ordering::Relaxed) > g && self.done.0.load(Ordering::Relaxed) == g
    }
    fn begin_wanted(&self, by: Option<CpuId>) {
        if self.can_begin() {
            self.drive(Look::No, by);
        }
    }
    /// Begin what is wanted, and perhaps scan. `None` if somebody else is at it, who looks again what is wanted when he is done.
    pub(super) fn drive(&self, look: Look, by: Option<CpuId>) -> Option<Found> {
        loop {
            let mut driver = self.driver.0.try_lock()?;
            self.begin(&driver, by);
            let found = self.scan(&mut driver, look);
            drop(driver);
            // SeqCst [O12]: that the lock is free, before the look; partners: the fences in `request` and `finish`, after which
            // others have found it held.
            fence(Ordering::SeqCst);
            if !self.can_begin() || mutant!("rcu-no-look-again") {
                return Some(found);
            }
        }
    }
    fn begin(&self, driver: &Driver, by: Option<CpuId>) {
        // Relaxed: changed under the lock.
        let g = self.gp.0.number.load(Ordering::Relaxed) + 1;
        // Acquire: all reports for the period before have changed their nodes; partner: `finish`. Relaxed: a number.
        if self.done.0.load(Ordering::Acquire) + 1 != g || self.wanted.0.load(Ordering::Relaxed) < g {
            return;
        }
        // Relaxed: a hint.
        self.gp.0.begun_by.store(by.map_or(NOBODY, |cpu| cpu.index() as u64), Ordering::Relaxed);
        // Release: the nodes before; partner: `qs`.
        let publish = || self.gp.0.number.store(g, Ordering::Release);
        if mutant!("rcu-begin-late") {
            publish();
        }
        let any = self.tree.begin(g, &driver.online);
        publish();
        if !any {
            self.finish(g);
        }
    }
    /// Report for the CPUs that idle, or have done so since the last scan of this period.
    fn scan(&self, driver: &mut Driver, look: Look) -> Found {
        // Relaxed, both: changed under the lock; and who has ended it has reported all.
        let g = self.gp.0.number.load(Ordering::Relaxed);
        let mut found = Found { owing: CpuSet::EMPTY, first: false };
        if look == Look::No || self.done.0.load(Ordering::Relaxed) >= g {
            return found;
        }
        // SeqCst [O10]: the period's number, which we know, before the looks; partner: the fence in `idle_exit`.
        if !mutant!("rcu-no-scan-fence") {
            fence(Ordering::SeqCst);
        }
        let again = driver.period == g || mutant!("rcu-scan-stale");
        driver.period = g;
        for cpu in (0..self.tree.leaves()).flat_map(|leaf| self.tree.owing(leaf, g)) {
            let Some(awake) = self.awake.of(cpu) else { continue };
            // Acquire [O9]: partner of the stores in `idle_enter` and `idle_exit`.
            let number = awake.load(Ordering::Acquire);
            let last = &mut driver.awake[cpu.index()];
            if number & 1 == 0 || again && *last != number || mutant!("rcu-scan-skips") {
                if self.tree.report(cpu, g) {
                    self.finish(g);
                }
            } else {
                *last = number;
                found.owing.insert(cpu);
            }
        }
        if look == Look::Hurry {
            found.first = driver.hurried != g;
            driver.hurried = g;
        }
        found
    }
    /// Those who owe a report for the open period, as far as they did a moment ago; nobody if there is none.
    pub(super) fn owing(&self) -> CpuSet {
        let g = self.last();
        (0..self.tree.leaves()).flat_map(|leaf| self.tree.owing(leaf, g)).collect()
    }
    /// Whether a CPU is one of these, and awake.
    pub(super) fn owes(&self, cpu: CpuId) -> bool {
        let (leaf, _) = tree::place(cpu);
        // Relaxed: of the CPU that is interrupted here.
        self.awake.of(cpu).is_some_and(|awake| awake.load(Ordering::Relaxed) & 1 != 0)
            && self.tree.owing(leaf, self.last()).any(|owing| owing == cpu)
    }
}

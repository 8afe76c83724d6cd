//! Grace periods from quiescent states.
//!
//! **Idea.** A thread that is pinned isn't preempted, and a section borrows its [`Pinned`]; so a CPU that switches
//! threads, idles or runs user code is in no section: it is *quiescent*. A grace period has passed when each CPU has
//! been quiescent at least once since the period began. Readers do nothing for this; CPUs report where they are
//! quiescent anyway, each on a line of its own, and only when a period has begun since their last report.
//!
//! ```text
//! snap:       fence(SeqCst) [O7]; need = gp + 1        a period that is under way does not count
//! request:    wanted = max(wanted, need)
//! report:     g = gp (Acquire); if g != seen { fence(SeqCst) [O8]; seen = g (Release) [O9] }
//! idle_enter: seen = IDLE (Release) [O9]
//! idle_exit:  seen = gp (Release) [O9]; fence(SeqCst) [O10]; sections
//! drive:      one at a time: if done < gp { fence(SeqCst) [O10]; if every seen >= gp { done = gp (Release) } }
//!             if done == gp and wanted > gp { gp += 1 (Release) }
//! ```
//! IDLE is larger than any period, so CPUs that idle are never waited for, and every CPU starts idle.
//!
//! **Why nothing is freed too early.** U unlinks x and snaps `need`; x is freed by a CPU that has seen `done >= need`.
//! Let R be a reader that has found x, in a section of its CPU that ends after x is freed.
//! * *R's CPU reported `need` or more before the section.* It loaded `gp >= need`, while U loaded `need - 1` behind its
//!   fence. So O7 is before O8 in the one order of fences (after it, U would have loaded at least what the CPU had), and
//!   what U unlinked before O7 is unlinked for what the CPU loads after O8: R can't find x.
//! * *R's CPU was found idle.* The driver has seen `gp >= need`, so O7 is before its O10 as above. R's CPU left the idle
//!   state after the driver's look, so the driver's O10 is before that CPU's O10 (else the driver would have seen it
//!   awake). So O7 is before R's loads again.
//! * *R's CPU reported, went idle or came back after the section.* Each is a Release store that the driver loads with
//!   Acquire (O9), and `done` carries it to who frees x: R's loads come before.
//!
//! A section lasts until its guard is dropped, and a report takes `&mut Pinned`, which no guard of that pin survives.
//!
//! **A CPU that idles for long leaves nothing behind.** It *hands over* what it has retired to a list, from which the next CPU
//! that ticks takes it: as if that CPU had retired it then, for what was unlinked before the list's lock was given up is
//! unlinked before the new owner's O7. If all CPUs idle nobody ticks; so who idles looks whether it is the last:
//! ```text
//! hand_over:    orphans += mine; any = true
//! idle_enter:   seen = IDLE
//! is_abandoned: fence(SeqCst) [O11]; any and every seen == IDLE
//! ```
//! Of two that idle at once, the one whose O11 is later sees the other's IDLE and what it handed over: so it is told to stay.

use core::{cell::RefCell, fmt, ptr};

use percpu::{CpuId, Line, PerCpu, Pinned, Unpinned};
use sync::{
    SpinLock, mutant,
    primitive::{AtomicBool, AtomicU64, Ordering, fence, spin_loop},
    probe,
};

use crate::{Retired, list::List};

/// `seen` of a CPU that idles.
const IDLE: u64 = u64::MAX;
/// Callbacks that [`Domain::tick`] runs at most.
pub const BATCH: usize = 64;

/// A grace period, by number: what [`Domain::snap`] says has to end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Gp(u64);

/// A set of CPUs whose sections delay what is retired there.
///
/// ```
/// # #[cfg(not(loom))] {
/// use percpu::testing::Machine;
/// use rcu::kernel::Domain;
///
/// let (machine, domain) = (Machine::new(1), Domain::new(1));
/// machine.on(0, |ctx| {
///     domain.idle_exit(&mut ctx.pin());
///     {
///         let pin = ctx.pin();
///         let _section = domain.read(&pin);
///         // What is loaded here is not freed before the section ends.
///     }
///     domain.synchronize(&ctx);
/// });
/// # }
/// ```
pub struct Domain {
    /// The last period begun, and the last that has ended: at most one apart. Changed by who holds `driver`.
    gp: Line<AtomicU64>,
    done: Line<AtomicU64>,
    /// The last period that somebody waits for.
    wanted: Line<AtomicU64>,
    driver: Line<SpinLock<()>>,
    /// What CPUs that idle have retired, and whether there is anything.
    orphans: Line<SpinLock<List>>,
    any_orphans: Line<AtomicBool>,
    /// For each CPU the last period in which it was quiescent. Written by that CPU.
    seen: PerCpu<AtomicU64>,
    callbacks: PerCpu<RefCell<Callbacks>>,
}

/// What a CPU has retired.
struct Callbacks {
    /// Not yet stamped.
    next: List,
    /// Stamped, older first.
    wait: [(Gp, List); 2],
    /// To be freed.
    ready: List,
}

/// A read-side section: what is loaded from a structure of the domain stays allocated until this is dropped.
#[must_use = "the section ends as soon as the guard is dropped"]
pub struct Guard<'p> {
    pin: &'p Pinned<'p>,
    domain: &'p Domain,
}

impl<'p> Guard<'p> {
    /// The CPU that the section is on.
    pub fn pin(&self) -> &'p Pinned<'p> {
        self.pin
    }
    /// Whether it is a section of `domain`.
    pub fn is_of(&self, domain: &Domain) -> bool {
        ptr::eq(self.domain, domain)
    }
}

/// Nothing to do; that there is a destructor makes the borrow of the pin last until the end of the guard's scope.
impl Drop for Guard<'_> {
    #[inline]
    fn drop(&mut self) {}
}

impl fmt::Debug for Guard<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Guard({:?})", self.pin.cpu())
    }
}

impl Domain {
    /// A domain of `cpus` CPUs, all of them idle.
    pub fn new(cpus: usize) -> Self {
        let callbacks = |_| {
            let wait = [(Gp(0), List::EMPTY), (Gp(0), List::EMPTY)];
            RefCell::new(Callbacks { next: List::EMPTY, wait, ready: List::EMPTY })
        };
        Self {
            gp: Line(AtomicU64::new(0)),
            done: Line(AtomicU64::new(0)),
            wanted: Line(AtomicU64::new(0)),
            driver: Line(SpinLock::new(())),
            seen: PerCpu::new(cpus, |_| AtomicU64::new(IDLE)),
            callbacks: PerCpu::new(cpus, callbacks),
            orphans: Line(SpinLock::new(List::EMPTY)),
            any_orphans: Line(AtomicBool::new(false)),
        }
    }
    /// Begin a section. The CPU isn't idle (checked in debug builds).
    #[inline]
    pub fn read<'p>(&'p self, pin: &'p Pinned<'_>) -> Guard<'p> {
        // Relaxed, here and in `reported`: this CPU's own word.
        debug_assert_ne!(self.seen.get(pin).load(Ordering::Relaxed), IDLE, "a section on an idle CPU");
        Guard { pin, domain: self }
    }
    /// This CPU is in no section: `pin` is borrowed by none.
    #[inline]
    pub fn qs(&self, pin: &mut Pinned<'_>) {
        self.report(self.seen.get(pin));
    }
    /// As [`Self::qs`], for an interrupt handler on `cpu`.
    ///
    /// # Safety
    /// Called on `cpu`, which was interrupted in user mode: no section is open there.
    pub unsafe fn qs_interrupted(&self, cpu: CpuId) {
        if let Some(seen) = self.seen.of(cpu) {
            self.report(seen);
        }
    }
    /// This CPU will have no section until [`Self::idle_exit`]: periods don't wait for it. True if it has retired
    /// objects that are still there, for which it must go on to [`Self::tick`] now and then.
    pub fn idle_enter(&self, pin: &mut Pinned<'_>) -> bool {
        // Release [O9]: the sections before come first; partner: the load in `all_seen`.
        let order = if mutant!("rcu-relaxed-idle") { Ordering::Relaxed } else { Ordering::Release };
        self.seen.get(pin).store(IDLE, order);
        self.pending(pin) > 0
    }
    /// Leave what this CPU has retired to whoever ticks next: before [`Self::idle_enter`], by a CPU that won't tick while it
    /// idles. Then it asks whether it [may](Self::is_abandoned).
    pub fn hand_over(&self, pin: &Pinned<'_>) {
        if self.pending(pin) > 0 {
            let mut c = self.callbacks.get(pin).borrow_mut();
            let mut orphans = self.orphans.0.lock();
            let Callbacks { next, wait: [(_, first), (_, second)], ready } = &mut *c;
            // The oldest first; which periods have ended for them is forgotten.
            [ready, first, second, next].into_iter().for_each(|list| orphans.append(list.take()));
            // Relaxed: a hint for those who tick, and ordered by the fence for who idles.
            self.any_orphans.0.store(true, Ordering::Relaxed);
        }
    }
    /// Whether something was handed over that nobody will take, as all CPUs idle. Asked by a CPU that has begun to idle: then
    /// it goes on instead. Of those that idle the last is told.
    pub fn is_abandoned(&self) -> bool {
        // SeqCst [O11]: our IDLE, and what we handed over, before the look at the others'; partner: the same fence there.
        if !mutant!("rcu-no-leave-fence") {
            fence(Ordering::SeqCst);
        }
        // Relaxed, both: ordered by the fence.
        self.any_orphans.0.load(Ordering::Relaxed)
            && self.seen.iter().all(|seen| seen.load(Ordering::Relaxed) == IDLE)
    }
    /// Whether something was handed over that nobody has taken yet.
    pub fn has_orphans(&self) -> bool {
        // Relaxed: a hint.
        self.any_orphans.0.load(Ordering::Relaxed)
    }
    /// This CPU may have sections again.
    pub fn idle_exit(&self, pin: &mut Pinned<'_>) {
        // Relaxed: a number older than the newest only makes a period wait longer.
        let g = self.gp.0.load(Ordering::Relaxed);
        // Release [O9]: who finds this number instead of IDLE must still come after the sections before that; partner:
        // the load in `all_seen`.
        let order = if mutant!("rcu-relaxed-wake") { Ordering::Relaxed } else { Ordering::Release };
        self.seen.get(pin).store(g, order);
        // SeqCst [O10]: partner of the fence in `all_seen`; and, as O8, of the fence in `snap`.
        if !mutant!("rcu-no-wake-fence") {
            fence(Ordering::SeqCst);
        }
    }
    /// Free an object after a grace period. Allocates nothing and never waits.
    pub fn call(&self, pin: &Pinned<'_>, retired: Retired) {
        self.callbacks.get(pin).borrow_mut().next.push(retired);
    }
    /// How many objects this CPU has retired that are not freed.
    pub fn pending(&self, pin: &Pinned<'_>) -> usize {
        let c = self.callbacks.get(pin).borrow();
        c.next.len() + c.wait[0].1.len() + c.wait[1].1.len() + c.ready.len()
    }
    /// The period whose end shows that all sections are over that are open now.
    pub fn snap(&self) -> Gp {
        // SeqCst [O7]: what the caller unlinked comes before; partner: the fence in `report` (module text).
        fence(Ordering::SeqCst);
        let ahead = if mutant!("rcu-current-period") { 0 } else { 1 };
        // Relaxed: ordered by the fence.
        Gp(self.gp.0.load(Ordering::Relaxed) + ahead)
    }
    /// Whether `need` has ended.
    pub fn poll(&self, need: Gp) -> bool {
        // Acquire [O9]: all sections of all CPUs come before; partner: the store in `drive`.
        self.done.0.load(Ordering::Acquire) >= need.0
    }
    /// Wait until all sections that are open now have ended. Spins, reporting for this CPU meanwhile.
    pub fn synchronize(&self, ctx: &Unpinned<'_>) {
        let need = self.snap();
        self.request(need);
        while !self.poll(need) {
            let mut pin = ctx.pin();
            // An idle CPU stays so.
            if self.seen.get(&pin).load(Ordering::Relaxed) != IDLE {
                self.qs(&mut pin);
            }
            self.drive();
            drop(pin);
            spin_loop();
        }
    }
    /// The regular work of a CPU, in no section: report, take periods forward, and free at most a [`BATCH`] of what is due.
    /// Gives how many objects it has freed.
    pub fn tick(&self, pin: &mut Pinned<'_>) -> usize {
        if self.seen.get(pin).load(Ordering::Relaxed) != IDLE {
            self.qs(pin);
        }
        self.drive();
        self.adopt(pin);
        self.advance(pin);
        let callbacks = self.callbacks.get(pin);
        let mut freed = 0;
        while freed < BATCH {
            // Not borrowed while it runs: it may retire something itself.
            let Some((head, free)) = callbacks.borrow_mut().ready.pop() else { break };
            // SAFETY: the object was retired, by `Retired::new` it is freed by `free` and by nobody else, and every
            // section that could have found it is over.
            unsafe { free(head, pin) };
            freed += 1;
        }
        freed
    }

    /// Note that a period is waited for; whoever drives next begins it.
    pub(crate) fn request(&self, need: Gp) {
        // Relaxed: only says that there is something to do, and is read under `driver`. Looked at before it is written,
        // so that no line moves if others want the same.
        if self.wanted.0.load(Ordering::Relaxed) < need.0 {
            self.wanted.0.fetch_max(need.0, Ordering::Relaxed);
        }
    }
    fn report(&self, seen: &AtomicU64) {
        // Acquire: with the fence after it, partner of `snap`.
        let g = self.gp.0.load(Ordering::Acquire);
        if seen.load(Ordering::Relaxed) != g && !mutant!("rcu-lost-quiescent") {
            // SeqCst [O8]: partner of the fence in `snap`.
            if !mutant!("rcu-no-report-fence") {
                fence(Ordering::SeqCst);
            }
            // Release [O9]: the sections before come first; partner: the load in `all_seen`.
            seen.store(g, Ordering::Release);
        }
    }
    /// Take over what others have handed over.
    fn adopt(&self, pin: &Pinned<'_>) {
        if self.has_orphans() {
            let mut orphans = self.orphans.0.lock();
            // Relaxed: as above; the lock orders the list.
            self.any_orphans.0.store(false, Ordering::Relaxed);
            self.callbacks.get(pin).borrow_mut().next.append(orphans.take());
        }
    }
    /// Stamp what was retired, and set free what has waited long enough.
    fn advance(&self, pin: &Pinned<'_>) {
        let mut c = self.callbacks.get(pin).borrow_mut();
        let c = &mut *c;
        for _ in 0..2 {
            if self.poll(c.wait[0].0) {
                c.ready.append(c.wait[0].1.take());
                c.wait.swap(0, 1);
            }
        }
        if c.wait[1].1.len() == 0 && c.next.len() > 0 {
            let need = self.snap();
            let at = usize::from(c.wait[0].1.len() > 0);
            c.wait[at] = (need, c.next.take());
            self.request(need);
        }
    }
    /// End the period that is open if every CPU has been quiescent, and begin the one that is wanted. Whoever finds
    /// somebody else at it leaves: the next tick makes up for it.
    pub(crate) fn drive(&self) {
        let Some(_one) = self.driver.0.try_lock() else { return };
        // Relaxed, all but one below: `driver` orders them.
        loop {
            let g = self.gp.0.load(Ordering::Relaxed);
            if self.done.0.load(Ordering::Relaxed) < g {
                if !self.all_seen(g) {
                    return;
                }
                // Release [O9]: hands on what `all_seen` has acquired; partner: `poll`.
                self.done.0.store(g, Ordering::Release);
                probe!(GracePeriod);
            }
            if self.wanted.0.load(Ordering::Relaxed) <= g {
                return;
            }
            // Release: partner in `report`.
            self.gp.0.store(g + 1, Ordering::Release);
        }
    }
    fn all_seen(&self, g: u64) -> bool {
        // SeqCst [O10]: partner of the fence in `idle_exit`.
        fence(Ordering::SeqCst);
        // Acquire [O9]: partner of the stores in `report` and `idle_enter`.
        self.seen.iter().all(|seen| seen.load(Ordering::Acquire) >= g)
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Relaxed: for people.
        let of = |word: &AtomicU64| word.load(Ordering::Relaxed);
        f.debug_struct("Domain")
            .field("gp", &of(&self.gp.0))
            .field("done", &of(&self.done.0))
            .field("wanted", &of(&self.wanted.0))
            .finish_non_exhaustive()
    }
}

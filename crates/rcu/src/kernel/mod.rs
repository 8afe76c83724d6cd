//! Grace periods from quiescent states, for CPUs whose threads are not preempted while they are pinned.
//!
//! **Claim.** A section is no instruction: it stores nothing, orders nothing, and moves no line. A period writes no line from
//! more than sixteen CPUs, waits for no CPU that idles or is offline, and ends within two interrupts' time if it is hurried.
//! Retiring allocates nothing, and what waits is bounded.
//!
//! **Idea.** A section borrows its [`Pinned`]; so a CPU that switches threads, idles or runs user code is in no section: it is
//! *quiescent*. A grace period has passed when each CPU has been quiescent at least once since the period began. A CPU says so
//! where it is quiescent anyway, once a period, by clearing its bit in a tree: who clears the last bit of the root has
//! ended the period. For a CPU that idles somebody else says it, who *scans* a number that each CPU changes, on a line of its own,
//! when it begins to idle and when it ends.
//!
//! ```text
//! snap:       fence(SeqCst) [O7]; need = gp + 1                             a period that is under way does not count
//! request:    if wanted < need { wanted = max(wanted, need); fence(SeqCst) [O12] }; begin
//! begin:      if done == gp and wanted > gp, by one at a time (the driver):
//!                 each node = tag gp + 1, bits of those online; gp += 1 (Release)
//!                 the lock is free; fence(SeqCst) [O12]; look again
//! qs:         g = gp (Acquire); if g != reported { fence(SeqCst) [O8]; reported = g; report(g) }
//! report(g):  if the tag is g and the bit is set { clear it (AcqRel) [O9]; if it was the last: report for the node above, or
//!                 if it was the root: done = g (Release) [O9]; fence(SeqCst) [O12]; begin }
//! idle_enter: awake += 1: even (Release) [O9]
//! idle_exit:  awake += 1: odd (Release) [O9]; fence(SeqCst) [O10]; sections
//! scan:       the driver: fence(SeqCst) [O10]; for each CPU that owes a report for gp:
//!                 if awake (Acquire) [O9] is even, or changed since the last scan of this period: report(gp)
//! ```
//!
//! **Invariants.**
//! * **K1** *Tags.* A report changes no node of another period than the one whose number its CPU had seen, or was scanned in. A CPU may
//!   read `gp`, be delayed, be found idle, wake, and have sections in the next period before it goes on: without the tag it would
//!   speak for these.
//! * **K2** *Nobody idle is waited for.* Who waits scans: [`synchronize`](Domain::synchronize) always, a [tick](Domain::tick) of a CPU
//!   whose callbacks wait if the period was open at its tick before, and the CPU has begun it; and any other whose callbacks wait
//!   if it is open for two ticks more, as who has begun it may idle. By then those that run have reported, so that only the
//!   others' lines are read; and the driver's lock doesn't go round all CPUs that have retired something. CPUs that are *offline*, as all are in the beginning, owe nothing; each first wakes behind the
//!   driver's lock.
//! * **K3** *Callbacks stay on their CPU*, in lists that nobody else touches, until they are freed or [handed over](Domain::hand_over).
//! * **K4** *Hurrying* interrupts each CPU that owes a report once, but the caller, and none that idles. If the thread that is
//!   interrupted there holds no pin the handler reports for it ([`qs_interrupted`](Domain::qs_interrupted)), also in the middle of a
//!   long call; else the thread does, when it gives up its last pin. So a hurried period takes no longer than CPUs stay pinned.
//! * **K5** A kernel's loop that is long says [`qs`](Domain::qs) between its sections.
//! * **K6** A CPU that waits pinned, and serves the others' flushes meanwhile, is not quiescent.
//!
//! **Why nothing is freed too early.** U unlinks x and snaps `need`; x is freed by a CPU that has seen `done >= need`.
//! Let R be a reader that has found x, in a section of its CPU that ends after x is freed.
//! * *R's CPU reported `need` or more before the section.* It loaded `gp >= need`, while U loaded `need - 1` behind its
//!   fence. So O7 is before O8 in the one order of fences (after it, U would have loaded at least what the CPU had), and
//!   what U unlinked before O7 is unlinked for what the CPU loads after O8: R can't find x. By K1 a report for less is no
//!   report in this period.
//! * *R's CPU was found idle in the period, or became online in it.* The driver knew `gp >= need`, so O7 is before its O10 as above.
//!   R's CPU left the idle state after the driver's look, so the driver's O10 is before that CPU's O10 (else the driver would have
//!   seen it awake). So O7 is before R's loads again. A CPU that was offline when the period began has had the lock after that: what
//!   the driver knew, it knows, and its O10 comes after.
//! * *R's CPU was found with another number than in an earlier scan of the period.* Of that scan the same holds: the CPU has left the
//!   idle state after it, and R's section is after that, or before the idle state, which is the next case.
//! * *R's CPU reported, went idle or came back after the section.* Each is a Release (O9) that the driver, or who reports at the
//!   node above, acquires; each node's bits are cleared by read-modify-writes, so the last has them all, and `done` carries them to
//!   who frees x: R's loads come before.
//!
//! A section lasts until its guard is dropped, and a report takes `&mut Pinned`, which no guard of that pin survives. A guard of
//! another pin would: so a report panics if its thread has pinned itself twice. Waits report, so they panic too, instead of
//! ending beside a section that their own thread has open. A handler has no pin to show; it is told whether the thread that it
//! interrupted holds one, as whoever counts pins knows: a section begins after its pin, and ends before it. It may find that
//! thread in the middle of a report, or of beginning a period: then the driver's lock is held, and the thread looks again behind it;
//! and the number that the thread reports next is an old one, which by K1 changes nothing, or the present one.
//!
//! **Why every period ends.** Who reads `gp` with Acquire finds the nodes of that period, so no report is lost to an old tag; what K1
//! drops is said again with the next number. Who wants a period, and who ends one, each says so before the fence O12 and looks for the
//! other after it: one of them sees both, and begins the next. If that one finds the driver's lock held, the holder's O12, after
//! it is free, comes later, and he looks again.
//!
//! **A CPU that idles for long leaves nothing behind.** It *hands over* what it has retired to a list, from which the next CPU
//! that ticks takes it: as if that CPU had retired it then, for what was unlinked before the list's lock was given up is
//! unlinked before the new owner's O7. If all CPUs idle nobody ticks; so who idles looks whether it is the last:
//! ```text
//! hand_over:    orphans += mine; any = true
//! idle_enter:   awake += 1
//! is_abandoned: fence(SeqCst) [O11]; any and every awake is even
//! ```
//! Of two that idle at once, the one whose O11 is later sees the other's number and what it handed over: so it is told to stay.
//!
//! [`barrier`] and [`callbacks`] have what concerns lists.

pub mod barrier;
pub mod callbacks;
mod checks;
mod periods;
mod stall;
mod tree;

use alloc::boxed::Box;
use core::{fmt, ptr};

use percpu::{CpuId, CpuSet, Pinned, Unpinned};
use sync::{mutant, primitive::spin_loop};

use self::{
    barrier::{Barrier, Markers},
    callbacks::Queues,
    checks::Places,
    periods::{Look, Periods},
    stall::Watch,
};
use crate::Retired;

pub use self::{checks::Place, stall::Stall};

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
    periods: Periods,
    queues: Queues,
    markers: Box<Markers>,
    watch: Watch,
    places: Places,
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

/// Nothing to do without checks; that there is a destructor makes the borrow of the pin last until the end of the guard's scope.
impl Drop for Guard<'_> {
    #[inline]
    fn drop(&mut self) {
        self.domain.places.leave(self.pin);
    }
}

impl fmt::Debug for Guard<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Guard({:?})", self.pin.cpu())
    }
}

/// Sections, and where there are none.
impl Domain {
    /// A domain of `cpus` CPUs, all of them offline, which is idle.
    pub fn new(cpus: usize) -> Self {
        Self {
            periods: Periods::new(cpus),
            queues: Queues::new(cpus),
            markers: Markers::new(cpus),
            watch: Watch::new(cpus),
            places: Places::new(cpus),
        }
    }
    /// How many CPUs there are.
    pub fn cpus(&self) -> usize {
        self.periods.cpus()
    }
    /// Begin a section. The CPU isn't idle (checked in debug builds).
    #[inline]
    #[track_caller]
    pub fn read<'p>(&'p self, pin: &'p Pinned<'_>) -> Guard<'p> {
        debug_assert!(
            self.periods.is_awake(pin) || mutant!("rcu-idle-unnoticed"),
            "a section on an idle CPU"
        );
        self.places.enter(pin);
        Guard { pin, domain: self }
    }
    /// This CPU is in no section: `pin` is borrowed by none, and the thread has no other. Panics if it has.
    #[inline]
    #[track_caller]
    pub fn qs(&self, pin: &mut Pinned<'_>) {
        self.assert_none(pin);
        if self.periods.is_awake(pin) {
            self.periods.qs(pin);
        }
    }
    /// A section borrows a pin, so none is open if `pin`, which nothing borrows, is the only one.
    #[inline]
    #[track_caller]
    fn assert_none(&self, pin: &mut Pinned<'_>) {
        assert!(pin.is_only() || mutant!("rcu-second-pin"), "a thread with another pin may be in a section");
        self.places.assert_none(pin);
    }
    /// As [`Self::qs`], for the handler of an interrupt by which somebody [hurries](Self::hurry). Nothing if the thread that it
    /// interrupted is `pinned`: then true if that thread is to call [`Self::qs`] once it isn't.
    ///
    /// # Safety
    /// Called by the handler, on `cpu`. Unless `pinned`, the interrupted thread holds no pin that a section may borrow.
    #[must_use = "the period would wait for longer"]
    pub unsafe fn qs_interrupted(&self, cpu: CpuId, pinned: bool) -> bool {
        if pinned && !mutant!("rcu-kicked-in-section") {
            return self.periods.owes(cpu) && !mutant!("rcu-kick-forgotten");
        }
        // SAFETY: the handler is alone on the CPU until it returns. What it interrupts was not pinned, so no section borrows a pin.
        self.qs(&mut unsafe { Pinned::assume(cpu) });
        false
    }
    /// This CPU will have no section until [`Self::idle_exit`]: periods don't wait for it. True if it has retired
    /// objects that are still there, for which it must go on to [`Self::tick`] now and then.
    #[track_caller]
    pub fn idle_enter(&self, pin: &mut Pinned<'_>) -> bool {
        self.assert_none(pin);
        self.periods.idle_enter(pin);
        self.pending(pin) > 0
    }
    /// This CPU may have sections again.
    pub fn idle_exit(&self, pin: &mut Pinned<'_>) {
        self.periods.idle_exit(pin);
    }
    /// As [`Self::idle_enter`], for long: scans don't even look at this CPU until it [wakes](Self::idle_exit). What it has retired
    /// is handed over; so it asks whether it [may](Self::is_abandoned).
    pub fn offline(&self, pin: &mut Pinned<'_>) {
        self.hand_over(pin);
        self.idle_enter(pin);
        self.periods.leave(pin);
    }
    /// Whether something was handed over that nobody will take, as all CPUs idle. Asked by a CPU that has begun to idle: then
    /// it goes on instead. Of those that idle the last is told.
    pub fn is_abandoned(&self) -> bool {
        let all_idle = self.periods.all_idle();
        all_idle && self.queues.has_orphans()
    }
}

/// Waiting.
impl Domain {
    /// The period whose end shows that all sections are over that are open now.
    pub fn snap(&self) -> Gp {
        self.periods.snap()
    }
    /// Have `need` come, and be begun at once if none is open.
    pub fn request(&self, need: Gp) {
        self.periods.request(need, None);
    }
    /// Whether `need` has ended.
    pub fn poll(&self, need: Gp) -> bool {
        self.periods.poll(need)
    }
    /// Take periods forward: begin what is wanted, and report for CPUs that idle. For who waits.
    pub fn look(&self, pin: &mut Pinned<'_>) {
        self.qs(pin);
        self.periods.drive(Look::Scan, Some(pin.cpu()));
    }
    /// As [`Self::look`]; and have `kick` interrupt those that owe a report for the open period, unless that was done for it. They
    /// call [`Self::qs_interrupted`].
    pub fn hurry(&self, pin: &mut Pinned<'_>, kick: impl FnOnce(&CpuSet)) {
        self.qs(pin);
        if let Some(mut found) = self.periods.drive(Look::Hurry, Some(pin.cpu())) {
            found.owing.remove(pin.cpu());
            if found.first && !found.owing.is_empty() && !mutant!("rcu-hurry-silent") {
                kick(&found.owing);
            }
        }
        // If the period began just now, it waits for this CPU too.
        self.qs(pin);
    }
    /// Wait until all sections that are open now have ended. Spins, reporting for this CPU meanwhile.
    pub fn synchronize(&self, ctx: &Unpinned<'_>) {
        let need = self.snap();
        self.request(need);
        while !self.poll(need) {
            self.look(&mut ctx.pin());
            spin_loop();
        }
    }
    /// As [`Self::synchronize`], for who can't wait until others come by: they are [kicked](Self::hurry). `relax` is called in
    /// between, and may sleep.
    pub fn synchronize_expedited(&self, ctx: &Unpinned<'_>, kick: impl Fn(&CpuSet), mut relax: impl FnMut()) {
        let need = self.snap();
        self.request(need);
        loop {
            self.hurry(&mut ctx.pin(), &kick);
            if self.poll(need) {
                return;
            }
            relax();
        }
    }
    /// A period that is open for `limit` ns or more, as far as this CPU, which waits for one and looks often, has seen it, `now` by
    /// its clock. Each is told of once.
    pub fn stall(&self, pin: &Pinned<'_>, now: u64, limit: u64) -> Option<Stall> {
        self.watch.look(self, pin, now, limit)
    }
    /// How many periods have ended.
    pub fn periods(&self) -> u64 {
        let [_, _, done] = self.periods.numbers();
        done
    }
}

/// What was retired.
impl Domain {
    /// Free an object after a grace period. Allocates nothing and never waits.
    pub fn call(&self, pin: &Pinned<'_>, retired: Retired) {
        self.queues.push(pin, retired);
    }
    /// How many objects this CPU has retired that are not freed.
    pub fn pending(&self, pin: &Pinned<'_>) -> usize {
        self.queues.len(pin)
    }
    /// What may wait on all CPUs, in bytes, before those that retire more are held back.
    pub fn limit(&self) -> usize {
        self.queues.limit()
    }
    /// What wait on all CPUs, in bytes, and the most that this one has held.
    pub fn held(&self, pin: &Pinned<'_>) -> (usize, usize) {
        (self.queues.held(), self.queues.most(pin))
    }
    /// The regular work of a CPU, in no section: report, take periods forward, and free at most a [`BATCH`] of what is due.
    /// Gives how many objects it has freed.
    #[track_caller]
    pub fn tick(&self, pin: &mut Pinned<'_>) -> usize {
        self.qs(pin);
        let (barrier, orphans) = self.queues.notices();
        self.markers.put(pin, barrier, &self.queues);
        if orphans {
            self.queues.adopt(pin);
        }
        let (queues, periods) = (&self.queues, &self.periods);
        if queues.looks(pin, periods) {
            periods.drive(Look::Scan, Some(pin.cpu()));
        }
        if let Some(need) = queues.advance(pin, periods) {
            periods.request(need, Some(pin.cpu()));
        }
        self.queues.run(pin)
    }
    /// Have `f` called, by the CPU itself, each time when one [is asked](Self::is_asked): for who has more
    /// to look at on a CPU's way, and wants one word for all.
    pub fn tell(&mut self, f: fn(CpuId)) {
        self.queues.tell(f);
    }
    /// Whether this CPU was asked to come to [`Self::relieve`].
    #[inline]
    pub fn is_asked(&self, pin: &Pinned<'_>) -> bool {
        self.queues.is_asked(pin)
    }
    /// What a CPU was [asked](Self::is_asked) for, which holds much: to have its period [hurried](Self::hurry) and, if
    /// all hold too much, to wait until it has freed what it holds. For a thread that holds nothing that others wait for.
    pub fn relieve(&self, ctx: &Unpinned<'_>, kick: impl Fn(&CpuSet), mut relax: impl FnMut()) {
        let flooded = {
            let mut pin = ctx.pin();
            self.queues.take_asked(&pin);
            self.qs(&mut pin);
            self.queues.is_flooded(&pin)
        };
        if flooded {
            while self.relieve_once(&mut ctx.pin(), &kick) {
                relax();
            }
        }
    }
    /// True if it is not enough.
    fn relieve_once(&self, pin: &mut Pinned<'_>, kick: impl Fn(&CpuSet)) -> bool {
        while self.tick(pin) == BATCH {}
        self.hurry(pin, kick);
        while self.tick(pin) == BATCH {}
        self.queues.is_over(pin)
    }
    /// Leave what this CPU has retired to whoever ticks next: before [`Self::idle_enter`], by a CPU that won't tick while it
    /// idles. Then it asks whether it [may](Self::is_abandoned).
    pub fn hand_over(&self, pin: &Pinned<'_>) {
        self.queues.hand_over(pin);
    }
    /// Whether something was handed over that nobody has taken yet.
    pub fn has_orphans(&self) -> bool {
        self.queues.has_orphans()
    }
    /// Begin to wait until all is freed that was retired before. `None` as long as another barrier is under way.
    pub fn begin_barrier(&self) -> Option<Barrier<'_>> {
        Barrier::begin(self)
    }
    /// Wait until all is freed that was retired before, on any CPU. `relax` is called in between.
    pub fn barrier(&self, ctx: &Unpinned<'_>, mut relax: impl FnMut()) {
        let mut barrier = loop {
            match self.begin_barrier() {
                Some(barrier) => break barrier,
                // The other may need this CPU's marker.
                None => _ = self.tick(&mut ctx.pin()),
            }
            relax();
        };
        while !barrier.step(&mut ctx.pin()) {
            relax();
        }
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [gp, wanted, done] = self.periods.numbers();
        f.debug_struct("Domain")
            .field("gp", &gp)
            .field("done", &done)
            .field("wanted", &wanted)
            .finish_non_exhaustive()
    }
}

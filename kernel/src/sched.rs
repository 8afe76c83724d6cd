//! The scheduler: one run queue per CPU, stealing, sleep and wake without a global lock.
//!
//! # States
//! ```text
//!            park                     wake
//!  RUNNING ---------> PARKED ----------------> RUNNING (on a run queue, then on a CPU)
//!     |  ^
//! wake|  |park returns at once
//!     v  |
//!  NOTIFIED                         LEAVING: runs here once more, is re-queued by the next `finish_switch`
//! ```
//! A wake is a token: given before the park, it makes the park return at once; so "test, then park" loses nothing.
//! A waker that finds a token adds none, so it must be sure that whoever uses that token up then tests what the waker
//! changed: the waker *changes, fence, looks for the token*; the thread *takes the token away, fence, tests*. Both are
//! store-then-load, which x86-64 reorders without the fences (Intel SDM vol. 3A, 8.2.3.4).
//!
//! # Who may run a thread
//! Exactly one of: the CPU it runs on; the run queue that holds it; its waker between taking it out of PARKED and
//! queueing it. `on_cpu` is set while its registers are not yet saved: a thread that is woken while it is still
//! switching away is queued on that same CPU, which comes back for it only after the switch; thieves skip a thread
//! with `on_cpu` set.
//!
//! # Order
//! A thread owns a slice of [`SLICE`], and what it runs while others wait for its CPU is taken off it. A thread that stops
//! with some of it left (it slept, or made way for one that was woken) resumes it on the same CPU before those who begin a new
//! one, the last to come first; if it slept, at once: else every wait for a lock, however short, would end with a wait for
//! the slice of whoever took the CPU meanwhile. Who has used up its slice, yields, or comes from another CPU goes to the
//! end. So between two turns of a thread each of the others there runs for one slice at most, however often these sleep, are
//! woken, and go elsewhere.
//!
//! # Idle
//! An idle CPU halts, with no timer armed but the one that ends its nap (crate [`idle`](::idle)). It announces itself in `IDLE` and *then*
//! looks at its queue once more with interrupts off; a waker queues and *then* looks for the announcement: one of them sees the
//! other.
//!
//! The kernel is not preemptible: [`reschedule`] is called on the way back to user mode only.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

use ::idle::Announcement;
use percpu::{CpuId, CpuSet, Line, MAX_CPUS};

use crate::{
    algo, central,
    cpu_time::{self, CpuClock},
    grace,
    hw::{
        self,
        cpu::{self, ToDo},
        irq, thread,
    },
    places::Place,
    process, realm, reclaim,
    stats::{self, Counter},
    task::{self, Task, TaskMm},
    timers,
};

/// How long a thread runs while others wait for its CPU, in ns.
pub const SLICE: u64 = 10_000_000;
/// No time at which others began to wait.
const NOBODY: u64 = u64::MAX;
/// With less than this left, in ns, a slice is over.
const SHORTEST: u64 = 100_000;

const RUNNING: u32 = 0;
const PARKED: u32 = 1;
const NOTIFIED: u32 = 2;
const LEAVING: u32 = 3;
const DEAD: u32 = 4;

/// The scheduler's part of a task.
pub struct Entity {
    state: AtomicU32,
    on_cpu: AtomicBool,
    /// Where it runs, or ran last.
    cpu: AtomicU32,
    /// What is left of its slice, in ns; 0 if it begins a new one. Written by its CPU before it stops, and by who queues it.
    left: AtomicU64,
    /// Next in the run queue, under the queue's lock.
    next: irq::Lock<Option<Arc<Task>>>,
    /// Its processor time.
    pub clock: CpuClock,
}

impl Entity {
    /// A thread that isn't queued yet.
    pub const fn new() -> Self {
        Self {
            state: AtomicU32::new(RUNNING),
            on_cpu: AtomicBool::new(false),
            cpu: AtomicU32::new(0),
            left: AtomicU64::new(0),
            next: irq::Lock::new(None),
            clock: CpuClock::new(),
        }
    }
    /// Whether it has ended, and no CPU is on its stack any more.
    pub fn is_dead(&self) -> bool {
        // Acquire, both: that it is on a CPU comes before that it is dead, so an older look at that is not believed; and its registers
        // are saved; partners: `exit_current`, `finish_switch`.
        self.state.load(Ordering::Acquire) == DEAD && !self.on_cpu.load(Ordering::Acquire)
    }
    /// It has run for `ns` while others waited.
    fn spend(&self, ns: u64) {
        // Relaxed, both: its own, until its state says that it may be queued.
        let left = self.left.load(Ordering::Relaxed).saturating_sub(ns);
        self.left.store(if left < SHORTEST { 0 } else { left }, Ordering::Relaxed);
    }
    /// How long it may run while others wait, in ns.
    fn slice(&self) -> u64 {
        // Relaxed: as in `spend`, or by who is alone with it.
        self.left.load(Ordering::Relaxed).max(SHORTEST)
    }
    /// It is queued for `target`: whether it resumes its slice there. If it has none, it gets one.
    fn resumes(&self, target: CpuId) -> bool {
        // Relaxed: the state, or the switch, has handed it to the caller, who is alone with it.
        let begins = self.left.load(Ordering::Relaxed) == 0;
        if begins {
            self.left.store(timers::length(SLICE), Ordering::Relaxed);
        }
        !begins && self.cpu() == target
    }
    /// The CPU it runs on, or ran on last.
    pub fn cpu(&self) -> CpuId {
        // Relaxed: a hint, or the reader is the owner.
        CpuId::new(self.cpu.load(Ordering::Relaxed) as usize).unwrap_or_default()
    }
    /// Whether it is on a CPU now.
    pub fn is_running(&self) -> bool {
        // Relaxed: a snapshot for reporting and kicking.
        self.on_cpu.load(Ordering::Relaxed)
    }
    /// Whether it sleeps: for `/proc`.
    pub fn is_parked(&self) -> bool {
        // Relaxed: a snapshot for reporting.
        self.state.load(Ordering::Relaxed) == PARKED
    }
}

/// The threads that wait for a CPU.
struct Waiting {
    /// With some of their slices left: these go first, the last first.
    resuming: Queue,
    /// At the beginning of one.
    others: Queue,
}

impl Waiting {
    const EMPTY: Self = Self { resuming: Queue::EMPTY, others: Queue::EMPTY };

    fn pop(&mut self) -> Option<Arc<Task>> {
        self.resuming.pop().or_else(|| self.others.pop())
    }
    /// Take out the first that `wanted` accepts.
    fn remove_first(&mut self, wanted: impl Fn(&Task) -> bool) -> Option<Arc<Task>> {
        self.resuming.remove_first(&wanted).or_else(|| self.others.remove_first(&wanted))
    }
}

/// A FIFO of tasks linked through their entities, so that queueing needs no memory.
struct Queue {
    head: Option<Arc<Task>>,
    tail: Option<Arc<Task>>,
}

impl Queue {
    const EMPTY: Self = Self { head: None, tail: None };

    fn push(&mut self, t: Arc<Task>) {
        match self.tail.replace(t.clone()) {
            Some(last) => *last.sched.next.lock() = Some(t),
            None => self.head = Some(t),
        }
    }
    fn push_front(&mut self, t: Arc<Task>) {
        match self.head.replace(t.clone()) {
            Some(first) => *t.sched.next.lock() = Some(first),
            None => self.tail = Some(t),
        }
    }
    fn pop(&mut self) -> Option<Arc<Task>> {
        let t = self.head.take()?;
        self.head = t.sched.next.lock().take();
        if self.head.is_none() {
            self.tail = None;
        }
        Some(t)
    }
    /// Take out the first that `wanted` accepts.
    fn remove_first(&mut self, wanted: impl Fn(&Task) -> bool) -> Option<Arc<Task>> {
        let mut kept = Queue::EMPTY;
        let mut found = None;
        while let Some(t) = self.pop() {
            if found.is_none() && wanted(&t) { found = Some(t) } else { kept.push(t) }
        }
        *self = kept;
        found
    }
}

/// What a CPU schedules, on lines of its own.
#[repr(align(128))]
struct RunQueue {
    queue: irq::Lock<Waiting>,
    /// Length of `queue`, so that thieves need not lock an empty one.
    len: Line<AtomicU32>,
    /// The running thread should give way on its return to user mode.
    resched: ToDo,
    /// Since when others have waited while the running thread runs, in ns since boot; [`NOBODY`] if none has. Its CPU's own.
    crowded: AtomicU64,
    idle: irq::Lock<Option<Arc<Task>>>,
    /// When the CPU switched to its idle thread last, in ns since boot. Its own.
    idle_since: AtomicU64,
    /// The user address space in CR3, if any.
    loaded: irq::Lock<Option<TaskMm>>,
    /// A flush request found the CPU idle with that space still loaded, and loaded the kernel's tables instead.
    left: AtomicBool,
    /// One has found it so, and left it at flushing.
    disturbed: AtomicBool,
}

static CPUS: [RunQueue; MAX_CPUS] = [const {
    RunQueue {
        queue: irq::Lock::new(Waiting::EMPTY),
        len: Line(AtomicU32::new(0)),
        resched: ToDo::new(false),
        crowded: AtomicU64::new(NOBODY),
        idle: irq::Lock::new(None),
        idle_since: AtomicU64::new(0),
        loaded: irq::Lock::new(None),
        left: AtomicBool::new(false),
        disturbed: AtomicBool::new(false),
    }
}; MAX_CPUS];

/// Which CPUs are idle.
static IDLE: [Announcement; MAX_CPUS] = [const { Announcement::new() }; MAX_CPUS];

/// Where the run queues are, and which CPU is idle.
pub fn places() -> [Place; 2] {
    [Place::per_cpu("run queue", &CPUS), Place::per_cpu("idle flag", &IDLE)]
}

fn mine() -> &'static RunQueue {
    &CPUS[cpu::id().index()]
}

/// Sleep until [`wake`]; returns at once if a wake came since the last park. Thread context, nothing pinned.
pub fn park() {
    assert!(cpu::preempt_count() == 0, "sleeping while pinned");
    assert!(irq::enabled(), "sleeping with interrupts off");
    let me = &task::current().sched;
    let _off = irq::Off::new();
    charge(me);
    // Acquire on success: what the waker did before its wake is seen; pairs with the Release in `wake`. Release on the
    // way into PARKED: pairs with the waker's Acquire, which hands our last writes to the CPU that runs us next.
    if me.state.compare_exchange(RUNNING, PARKED, Ordering::AcqRel, Ordering::Acquire).is_err() {
        // NOTIFIED. Relaxed store: the failed exchange was the Acquire.
        me.state.store(RUNNING, Ordering::Relaxed);
        // SeqCst: the token is gone before the caller tests again; pairs with the fence in `wake`.
        fence(Ordering::SeqCst);
        return;
    }
    schedule();
}

/// Make `task`'s park return, now or next time. From any context.
pub fn wake(task: &Arc<Task>) {
    let s = &task.sched;
    // SeqCst: what the caller changed comes before our look for a token; pairs with the fences after a token, or
    // LEAVING, is taken away: in `park`, `schedule` and `yield_from`.
    fence(Ordering::SeqCst);
    loop {
        // AcqRel: Release gives the woken thread what we did before; Acquire pairs with its park, see there.
        match s.state.load(Ordering::Acquire) {
            PARKED => {
                if s.state.compare_exchange(PARKED, RUNNING, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                    return enqueue(task.clone(), true);
                }
            }
            RUNNING => {
                if s.state.compare_exchange(RUNNING, NOTIFIED, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                    return;
                }
            }
            // NOTIFIED has its token; LEAVING is between two waits, so it needs none: every wait enters its queue
            // and then tests, so what was changed before this wake will be seen. DEAD waits for nothing.
            _ => return,
        }
    }
}

/// Let a new task run.
pub fn start(task: Arc<Task>) {
    // Relaxed: the queue's lock publishes it.
    task.sched.cpu.store(cpu::id().index() as u32, Ordering::Relaxed);
    enqueue(task, false);
}

/// Choose a CPU for a runnable task that nobody holds, queue it there, and kick that CPU if need be. One that was `woken`
/// does not wait for a slice to end if it has some of its own left.
fn enqueue(task: Arc<Task>, woken: bool) {
    let _off = irq::Off::new();
    let last = task.sched.cpu();
    // Acquire: pairs with `finish_switch`; only when the flag is clear may another CPU load the saved registers.
    let target = if task.sched.on_cpu.load(Ordering::Acquire) { last } else { place(&task, last) };
    enqueue_on(target, task, woken);
}

fn enqueue_on(target: CpuId, task: Arc<Task>, woken: bool) {
    let rq = &CPUS[target.index()];
    let resumes = task.sched.resumes(target);
    let preempts = woken && resumes;
    let waiting = {
        let mut q = rq.queue.lock();
        if resumes {
            q.resuming.push_front(task)
        } else {
            q.others.push(task)
        }
        // Relaxed: written under the lock; a hint for those who read it without.
        let waiting = rq.len.0.fetch_add(1, Ordering::Relaxed);
        if preempts {
            // Release: who takes the request sees the length; pairs with the Acquire in `reschedule`. Under the lock: nobody who
            // has picked the thread clears it before.
            rq.resched.set(Ordering::Release);
        }
        waiting
    };
    if target != cpu::id() {
        // One that runs is told of the first, too, so that its slice ends.
        if IDLE[target.index()].is_made_after_queueing() || waiting == 0 || preempts {
            stats::count(Counter::RescheduleIpis);
            hw::apic::send(&CpuSet::from_iter([target]), hw::apic::VECTOR_RESCHED);
        }
    } else if waiting == 0 && is_busy() {
        others_wait();
    }
}

/// Others begin to wait for this CPU: the running thread's slice goes on from here. Interrupts are off.
fn others_wait() {
    let (rq, now) = (mine(), hw::timer::now());
    // Relaxed, both: this CPU's own. Others may have waited before, or wait still.
    if rq.crowded.load(Ordering::Relaxed) == NOBODY {
        rq.crowded.store(now, Ordering::Relaxed);
    }
    // No later than it is: else it might never end, and a CPU never do its regular work, however often others come and go.
    timers::limit_slice(now.saturating_add(task::current().sched.slice()));
}

/// Take what the calling thread has run off its slice, if others wait: before its state says that it has stopped. Interrupts
/// are off.
fn charge(me: &Entity) {
    let rq = mine();
    // Relaxed, both: a hint; and this CPU's own.
    if rq.len.0.load(Ordering::Relaxed) > 0 {
        let now = hw::timer::now();
        me.spend(now.saturating_sub(rq.crowded.load(Ordering::Relaxed)));
        rq.crowded.store(now, Ordering::Relaxed);
    }
}

/// Whether this CPU runs a thread, other than its idle one.
fn is_busy() -> bool {
    thread::has_current() && !task::current().is_idle()
}

/// The CPU where a woken task should run: its last one if idle, else any idle one that it may use, else its last.
fn place(task: &Task, last: CpuId) -> CpuId {
    let allowed = task.allowed().intersection(&online());
    if allowed.contains(last) && is_idle(last) {
        return last;
    }
    if let Some(c) = allowed.iter().find(|c| is_idle(*c)) {
        return c;
    }
    if allowed.contains(last) { last } else { allowed.iter().next().unwrap_or_default() }
}

/// Whether a CPU is idle.
pub fn is_idle(cpu: CpuId) -> bool {
    IDLE[cpu.index()].is_made()
}

/// The CPUs that run.
pub fn online() -> CpuSet {
    CpuSet::first(cpu::count())
}

/// Pick the next thread and switch to it. Interrupts are off; the caller has put its own state in order.
fn schedule() {
    // Whoever is pinned may have a section, which the switch would say is over.
    assert!(cpu::preempt_count() == 0, "a pinned thread gives way");
    let rq = mine();
    let here = cpu::id();
    let me = task::current();
    let next = match pick(rq, here) {
        Some(t) => t,
        None => match rq.idle.lock().clone() {
            Some(t) => t,
            None => return,
        },
    };
    let now = hw::timer::now();
    if !next.is_idle() {
        realm::look(now);
    }
    if core::ptr::eq(&*next, &*me) {
        // Relaxed: a hint; who is queued later tells this CPU of it if he is the first.
        if rq.len.0.load(Ordering::Relaxed) > 0 && is_busy() {
            others_wait();
        }
        return;
    }
    // Relaxed, all: a hint; LEAVING is changed by this CPU only; this CPU's own.
    let waiting = rq.len.0.load(Ordering::Relaxed) > 0 || me.sched.state.load(Ordering::Relaxed) == LEAVING;
    rq.crowded.store(if waiting { now } else { NOBODY }, Ordering::Relaxed);
    let slice = if waiting { next.sched.slice() } else { timers::length(SLICE) };
    let sliced = (waiting || realm::is_on()) && !next.is_idle();
    timers::set_slice_end(sliced.then_some(now + slice));
    stats::count(Counter::ContextSwitches);
    if next.is_idle() {
        // Relaxed, here and where it is read: this CPU's own.
        rq.idle_since.store(now, Ordering::Relaxed);
    }
    grace::on_switch();
    me.rseq.set_due();
    next.sched.clock.start(me.sched.clock.stop());
    // Relaxed: the place of the thread that runs here, published by `on_cpu`.
    next.sched.cpu.store(here.index() as u32, Ordering::Relaxed);
    next.sched.on_cpu.store(true, Ordering::Relaxed);
    // SeqCst: `next` is marked before it looks at what others ask of it; pairs with the fences in `kick` and `wake`.
    fence(Ordering::SeqCst);
    plan_look_at(&next, 0);
    load_space(rq, &next);
    // What the next thread was in the middle of is its own work, also if the timer made this one give way.
    hw::marker::periodic_end();
    thread::switch_to(next);
    finish_switch();
}

fn pick(rq: &RunQueue, here: CpuId) -> Option<Arc<Task>> {
    let mut q = rq.queue.lock();
    // Relaxed: under the lock; whoever is queued later sets it again.
    rq.resched.clear();
    if let Some(t) = q.pop() {
        // Relaxed: under the lock.
        rq.len.0.fetch_sub(1, Ordering::Relaxed);
        return Some(t);
    }
    drop(q);
    steal(here)
}

/// Take a thread from the first other CPU that has one to spare.
fn steal(here: CpuId) -> Option<Arc<Task>> {
    let n = cpu::count();
    for i in 1..n {
        let victim = &CPUS[(here.index() + i) % n];
        // Relaxed: a hint; the lock decides.
        if victim.len.0.load(Ordering::Relaxed) == 0 {
            continue;
        }
        let mut q = victim.queue.lock();
        // Acquire: pairs with `finish_switch`: the registers are saved.
        let found = q.remove_first(|t| !t.sched.on_cpu.load(Ordering::Acquire) && t.may_run_on(here));
        if let Some(t) = found {
            // Relaxed: under the lock.
            victim.len.0.fetch_sub(1, Ordering::Relaxed);
            stats::count(Counter::Steals);
            return Some(t);
        }
    }
    None
}

/// First thing on the new stack after a switch: let go of the thread that ran before. Interrupts are off.
fn finish_switch() {
    // Whatever was asked of this thread while it did not run.
    cpu::ask();
    let Some(prev) = thread::take_previous() else { return };
    let s = &prev.sched;
    // LEAVING is changed only here; the others by wakers. Relaxed: we are the CPU that wrote it.
    let leaving = s.state.load(Ordering::Relaxed) == LEAVING;
    // Release: the registers saved by the switch come before; pairs with the Acquire loads of `on_cpu`.
    s.on_cpu.store(false, Ordering::Release);
    if leaving {
        // Release: wakers that waited for this see a thread that is as good as queued.
        s.state.store(RUNNING, Ordering::Release);
        enqueue(prev, false);
    } else {
        thread::bury(&prev);
        // The last reference to a dead thread may go here.
        drop(prev);
    }
}

/// Where a new thread comes out of its first switch.
pub fn first_run() {
    finish_switch();
}

/// On the way back to user mode, interrupts off: give way if asked to, or if the thread may no longer be here.
pub fn reschedule() {
    let me = task::current();
    // Again after giving way: where the thread may run can have changed while it was queued.
    loop {
        let misplaced = me.is_misplaced(cpu::id());
        // Relaxed: looked at again with Acquire, which pairs with the Release of who queues a thread that is not to wait.
        let asked = mine().resched.take(Ordering::Acquire);
        if !(misplaced || asked) {
            return;
        }
        reclaim::tick();
        yield_from(&me, misplaced, false);
    }
}

/// Call `f` on `cpu`, which runs, and come back. For a thread that holds nothing; where it may run otherwise doesn't matter
/// meanwhile, and isn't changed. Interrupts are on.
pub fn on_cpu<R>(cpu: CpuId, f: impl FnOnce() -> R) -> R {
    let me = task::current();
    let home = cpu::id();
    let go = |cpu| {
        me.set_errand(Some(cpu));
        let _off = irq::Off::new();
        reschedule();
    };
    go(cpu);
    let result = f();
    go(home);
    me.set_errand(None);
    result
}

/// `sched_yield`: let the others on this CPU run first.
pub fn yield_now() {
    let _off = irq::Off::new();
    yield_from(&task::current(), false, true);
}

/// Let others run first: those that resume their slices, or with `to_all` all that wait now.
#[cold]
#[inline(never)]
fn yield_from(me: &Task, must_leave: bool, to_all: bool) {
    let rq = mine();
    // Relaxed, both: a hint; if something arrives later it will interrupt us, and ask again if it is not to wait. And this CPU's
    // own.
    if !must_leave && rq.len.0.load(Ordering::Relaxed) == 0 {
        rq.crowded.store(NOBODY, Ordering::Relaxed);
        return;
    }
    let s = &me.sched;
    charge(s);
    if to_all {
        s.spend(u64::MAX);
    }
    // A token that is still there is stale: this thread is between two waits (see `wake`). AcqRel: as in `park`.
    while s.state.compare_exchange(RUNNING, LEAVING, Ordering::AcqRel, Ordering::Relaxed).is_err() {
        // Relaxed: only wakers write besides us, and they only ever add the token.
        s.state.store(RUNNING, Ordering::Relaxed);
    }
    schedule();
    // If nobody else wanted the CPU we never left. Relaxed: only `finish_switch` and we write LEAVING.
    let _ = s.state.compare_exchange(LEAVING, RUNNING, Ordering::Relaxed, Ordering::Relaxed);
    // SeqCst: the states in which wakes were dropped are over before the next wait tests; pairs with that in `wake`.
    fence(Ordering::SeqCst);
}

/// End the calling thread for good. Interrupts may be on.
pub fn exit_current() -> ! {
    let off = irq::Off::new();
    // Release: nobody wakes the dead; pairs with the load in `wake`.
    task::current().sched.state.store(DEAD, Ordering::Release);
    schedule();
    drop(off);
    unreachable!("a dead thread ran")
}

/// The timer interrupt.
pub fn on_timer() {
    central::serve();
    let due = timers::fire();
    if due.slice {
        realm::set_due();
        // Relaxed: read by this CPU on its way back to user mode.
        mine().resched.set(Ordering::Relaxed);
    }
    if due.look {
        let me = task::current();
        if me.sched.clock.is_watched() {
            cpu_time::look(&me.process);
            // Not at once again, also if a timer is behind.
            plan_look_at(&me, cpu_time::finest());
        }
    }
}

/// Have the calling thread's slice end after the usual time, also if nobody else waits for the CPU.
pub fn plan_tick() {
    timers::limit_slice(hw::timer::now() + timers::length(SLICE));
}

/// Have the timer interrupt when the timers of the calling thread's process must be looked at: they have been set.
pub fn plan_look() {
    let _off = irq::Off::new();
    plan_look_at(&task::current(), 0);
}

/// As [`plan_look`] for `task`, which runs here or is about to, in `at_least` ns. Interrupts are off.
fn plan_look_at(task: &Task, at_least: u64) {
    if task.sched.clock.is_watched()
        && let Some(ns) = cpu_time::next_look(&task.process)
    {
        timers::set_look(hw::timer::now() + ns.max(at_least));
    }
}

/// The reschedule interrupt: something was queued here, or the running thread has a signal to look at, or its process
/// has set a timer of processor time.
pub fn on_kick() {
    central::serve();
    let rq = mine();
    // Relaxed: a hint; the interrupt came after the queueing.
    if is_busy() && rq.len.0.load(Ordering::Relaxed) > 0 {
        others_wait();
    }
    if thread::has_current() {
        plan_look_at(&task::current(), 0);
    }
}

/// Have `task` look at its flags: interrupt it if it is in user mode on another CPU.
pub fn kick(task: &Task) {
    cpu::ask();
    // SeqCst: what is asked of the thread comes before our look at where it is; pairs with the fence in `schedule`.
    fence(Ordering::SeqCst);
    if task.sched.is_running() && task.sched.cpu() != cpu::id() {
        hw::apic::send(&CpuSet::from_iter([task.sched.cpu()]), hw::apic::VECTOR_RESCHED);
    }
}

// ---- address spaces -------------------------------------------------------------------------------------------

/// Load `next`'s address space. A thread without one (idle, kernel threads) keeps what is loaded, so that a CPU which
/// goes idle and comes back to the same process does not lose its TLB.
fn load_space(rq: &RunQueue, next: &Task) {
    let Some(mm) = next.space() else { return };
    load(rq, Some(mm));
}

fn load(rq: &RunQueue, mm: Option<TaskMm>) {
    let pin = thread::pinned();
    let mut loaded = rq.loaded.lock();
    // Relaxed: written by this CPU's own interrupt handler.
    let left = rq.left.swap(false, Ordering::Relaxed);
    rq.disturbed.store(false, Ordering::Relaxed);
    let same = match (&*loaded, &mm) {
        (Some(a), Some(b)) => Arc::ptr_eq(&**a, &**b),
        _ => false,
    };
    if same && !left {
        return;
    }
    // Join before loading, leave after: see `AddressSpace::activate`.
    match &mm {
        Some(m) => cpu::load_cr3(m.aspace.activate(&pin)),
        None => cpu::load_cr3(hw::paging::kernel_root()),
    }
    if !same {
        let old = core::mem::replace(&mut *loaded, mm);
        drop(loaded);
        if let Some(old) = old {
            old.aspace.deactivate(&pin);
        }
    }
}

/// Load the calling task's address space, after it was given another one.
pub fn reload_space() {
    let _off = irq::Off::new();
    load(mine(), task::current().space());
}

/// Let go of whatever address space this CPU has loaded, for a thread that has none.
pub fn unload_space() {
    let _off = irq::Off::new();
    load(mine(), None);
}

/// Called by the flush interrupt: if the space that is loaded is not that of the running thread (it is the idle one, or
/// another of the kernel's), and this isn't the first flush since that was so, or is one of `everything`, load the kernel's
/// tables; the CPU leaves the space's set in [`load`], before it is idle again. True if it did so. A thread that sleeps
/// for a moment finds its space as it was, and a CPU that stays idle is disturbed twice at most. Not only idle CPUs: the
/// flush may be the last that a space which ends ever asks for, which is one of everything, and a CPU that kept the space
/// through it would keep its root for as long as it then stays idle.
pub fn drop_lazy_space(everything: bool) -> bool {
    let rq = mine();
    if !thread::has_current() || task::current().space().is_some() || rq.loaded.lock().is_none() {
        return false;
    }
    // Relaxed, here and below: read by this CPU.
    if !rq.disturbed.swap(true, Ordering::Relaxed) && !everything {
        return false;
    }
    cpu::load_cr3(hw::paging::kernel_root());
    rq.left.store(true, Ordering::Relaxed);
    true
}

// ---- idle -----------------------------------------------------------------------------------------------------

/// The idle thread of each CPU.
pub fn idle() -> ! {
    let here = cpu::id();
    hw::smp::release_boot_stack();
    algo::begin();
    reclaim::begin();
    loop {
        let since = mine().idle_since.load(Ordering::Relaxed);
        // Relaxed: a hint; whatever is queued meanwhile is seen below.
        reclaim::idle(since, || mine().len.0.load(Ordering::Relaxed) == 0);
        {
            let _off = irq::Off::new();
            let rq = mine();
            // Relaxed: this CPU's own handler wrote it.
            if rq.left.load(Ordering::Relaxed) {
                load(rq, None);
            }
        }
        let off = irq::Off::new();
        IDLE[here.index()].make();
        // Relaxed: ordered by the announcement. What is asked of the CPU is looked at with interrupts off: the interrupt that
        // told of it may have come before.
        if mine().len.0.load(Ordering::Relaxed) == 0 && !reclaim::is_to_settle() {
            // Interrupts go on and the CPU halts in one step, so that an interrupt in between is not slept over.
            if realm::sleep(since) {
                cpu::halt();
            }
            realm::wake();
        }
        IDLE[here.index()].withdraw();
        drop(off);
        let _off = irq::Off::new();
        schedule();
    }
}

/// The end of a CPU's boot: make its idle thread and run it.
pub fn run() -> ! {
    irq::disable();
    let idle = process::supervisor().and_then(Task::idle);
    let Some(idle) = idle else { panic!("no memory for an idle thread") };
    *mine().idle.lock() = Some(idle.clone());
    // Relaxed: this CPU's own.
    idle.sched.cpu.store(cpu::id().index() as u32, Ordering::Relaxed);
    idle.sched.on_cpu.store(true, Ordering::Relaxed);
    thread::switch_to(idle);
    unreachable!("the boot flow was resumed")
}

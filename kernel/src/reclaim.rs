//! When CPUs give back what they keep of free frames, and what they do with them when they have nothing else to do.
//!
//! A CPU comes to a *safe point* on its way to user mode and before it halts: there it does what others asked of the
//! allocator on it. Before it halts it also lets go of what it keeps, so that an idle CPU keeps no frame from anybody; and
//! as long as nothing is runnable it zeroes frames ahead of need.
//!
//! There it also takes back what other CPUs have freed of its heap's objects, if it was asked to.
//!
//! A thread that found no frame asks every CPU for what it keeps, pokes them with the reschedule interrupt, after which each
//! comes to a safe point, and waits a little. It holds nothing meanwhile, and meets requests itself, so two that ask each
//! other both go on.
#![allow(unsafe_code)] // says that this thread stays where it is

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use frames::Reclaim;
use percpu::{CpuId, CpuSet, MAX_CPUS, Pinned};

use crate::{
    grace, heap,
    hw::{
        apic,
        cpu::{self, ToDo},
        irq, timer,
    },
    memory::frames,
    options, realm, task,
};

/// How long others are waited for, in ns: each is in the kernel for less, but for the longest calls.
const PATIENCE: u64 = 20_000_000;
/// Time between two looks at demand, in ns.
const TICK: u64 = 10_000_000;
/// Frames that an idle CPU zeroes before it looks whether it is still idle.
const AT_A_TIME: u32 = 16;

/// When each CPU looked at demand last.
#[repr(align(128))]
struct LastTick(AtomicU64);
static LAST_TICK: [LastTick; MAX_CPUS] = [const { LastTick(AtomicU64::new(0)) }; MAX_CPUS];

fn here() -> Pinned<'static> {
    // SAFETY: a thread in the kernel isn't preempted, the callers are no interrupt handlers, and none sleeps meanwhile.
    unsafe { Pinned::assume(cpu::id()) }
}

/// On the way to user mode, interrupts off: do what others have asked.
#[inline]
pub fn safe_point() {
    frames().allocator().safe_point(&here());
}

/// Which CPUs are to settle their heap's accounts on their way to user mode.
#[repr(align(128))]
struct Settle(ToDo);
static SETTLE: [Settle; MAX_CPUS] = [const { Settle(ToDo::new(false)) }; MAX_CPUS];

/// Ask all CPUs for what others have freed of their heaps' objects. They do it on their way to user mode after their next
/// interrupt or switch; from any context.
pub fn ask_to_settle() {
    // Relaxed, all: a hint, by which nothing is handed over.
    all_cpus().for_each(|cpu| SETTLE[cpu.index()].0.set(Ordering::Relaxed));
}

/// Whether this CPU was asked to.
#[inline]
pub fn is_to_settle() -> bool {
    SETTLE[cpu::id().index()].0.is_set(Ordering::Relaxed)
}

/// Do it. For threads with interrupts on.
pub fn settle() {
    SETTLE[cpu::id().index()].0.clear();
    heap::settle();
}

fn all_cpus() -> impl Iterator<Item = CpuId> {
    (0..cpu::count()).filter_map(CpuId::new)
}

/// The slice of a thread has ended: look at demand, if it is time.
pub fn tick() {
    let last = &LAST_TICK[cpu::id().index()].0;
    let now = timer::now();
    // Relaxed: this CPU's own.
    if now.saturating_sub(last.load(Ordering::Relaxed)) >= TICK {
        last.store(now, Ordering::Relaxed);
        frames().allocator().tick(&here());
        if frames().low() {
            SETTLE[cpu::id().index()].0.set(Ordering::Relaxed);
        }
    }
}

/// This CPU has nothing to run since `since` (ns since boot), as far as `is_idle` knows: zero frames until it has, and let go of
/// the others. Interrupts are on.
pub fn idle(since: u64, is_idle: impl Fn() -> bool) {
    let allocator = frames().allocator();
    tick();
    settle();
    realm::rest(since);
    // Relaxed: see `begin`.
    let zeroes = !ZEROING_OFF.load(Ordering::Relaxed);
    while zeroes && is_idle() && allocator.idle(&here(), AT_A_TIME) > 0 {
        // There may be seconds of it: epochs don't wait for that.
        realm::rest(since);
        grace::quiescent_point();
    }
    allocator.park(&here());
}

/// Have the other CPUs of `cpus` come by on their way to user mode soon.
pub fn poke(cpus: &CpuSet) {
    cpu::ask();
    let _off = irq::Off::new();
    let mut others = *cpus;
    others.remove(cpu::id());
    apic::send(&others, apic::VECTOR_RESCHED);
}

/// What the allocator needs of the machine to reclaim.
struct Others {
    deadline: u64,
}

impl Reclaim for Others {
    /// Nothing is cached that could be dropped: files live in memory, and have no other copy.
    fn reclaim(&self, _need: u64) -> bool {
        false
    }
    fn poke(&self, cpus: &CpuSet) {
        poke(cpus);
    }
    fn wait(&self, turn: u32) -> bool {
        // The first looks come quickly; afterwards others may want this CPU.
        if turn > 100 {
            crate::sched::yield_now();
        }
        cpu::pause();
        // Who was told to end does that, which frees more.
        timer::now() < self.deadline && !task::current().is_ending()
    }
}

/// Have all CPUs give up what they keep, and wait for that a little. For a thread that holds no lock.
pub fn drain_all() {
    ask_to_settle();
    settle();
    let others = Others { deadline: timer::now() + PATIENCE };
    others.poke(&all_cpus().collect());
    frames().allocator().drain_all(task::unpinned(), &others);
    let mut turn = 0;
    while all_cpus().any(|cpu| SETTLE[cpu.index()].0.is_set(Ordering::Relaxed)) && others.wait(turn) {
        turn += 1;
    }
}

/// Whether idle CPUs zero nothing ahead of need: for measurements.
static ZEROING_OFF: AtomicBool = AtomicBool::new(false);

/// A CPU begins: it takes note of what the command line says.
pub fn begin() {
    // Relaxed: the same on all CPUs, each of which writes before it reads.
    ZEROING_OFF.store(options::get().no_zeroing, Ordering::Relaxed);
    realm::wake();
}

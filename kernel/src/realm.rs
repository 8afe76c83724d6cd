//! What address spaces in radix and Bonsai trees need of each CPU: to hand on, now and then, what it holds back of reference counts, to
//! say that it is in no section, and to free what has waited long enough. Of all this there is nothing if the command line says
//! `aspace=locked`.
//!
//! A CPU that runs threads does so at the end of each slice, on its way to user mode; therefore there are slices also if
//! nobody else waits for the CPU, and a CPU that switches threads so often that no slice ends does so after as long. What may
//! sleep, the end of a file that was mapped, is left to the next thread that comes by, on whichever CPU: nobody can look whether the
//! file is gone who hasn't.
//!
//! **CPUs that halt.** To leave the epochs and to join them again writes words that all CPUs write, and threads that wait for each
//! other halt their CPUs often, and not for long. So a CPU leaves nothing at first: it *naps*, a member of the epochs still, with
//! all that it holds back, which the others await as if it ran; for grace periods it is quiescent, which it says on a line
//! of its own. A timer bounds the nap to one tick, as a slice bounds the work of a CPU that runs: so no epoch waits longer for
//! who naps than for who runs. A CPU that has been idle for a tick, or is asked to tick, collects until it has nothing left or
//! others are at it, leaves them the rest, and is *asleep*, without a timer, unless it is the last. Who has nothing to leave
//! sleeps at once.
//!
//! So what an unmapping leaves behind is collected some tens of milliseconds later. When memory is short that is too late:
//! then calls, and faults that found no frame, first have all running CPUs do turn by turn what they do at ends of slices.
#![allow(unsafe_code)] // says that this thread stays where it is

use alloc::boxed::Box;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

use aspace::{PageTables, Realm};
use percpu::{CpuId, CpuSet, MAX_CPUS, Pinned};

use crate::{
    hw::{cpu, irq, marker, timer},
    memory,
    options::{self, Design},
    reclaim, sched, task, timers,
};

/// How often a CPU does its regular work, and how long it may nap, in ns.
const TICK: u64 = sched::SLICE;

/// After so many turns all is collected that was free at the first: four epochs for each level of a tree, and two grace
/// periods.
const TURNS: u32 = 32;
/// How long CPUs are waited for in one turn, in ns: as [`reclaim`] waits.
const PATIENCE: u64 = 20_000_000;

static REALM: AtomicPtr<Realm> = AtomicPtr::new(core::ptr::null_mut());

fn here() -> Pinned<'static> {
    // SAFETY: a thread in the kernel isn't preempted, the callers are no interrupt handlers, and none sleeps meanwhile.
    unsafe { Pinned::assume(cpu::id()) }
}

/// Make it, if there are to be such address spaces. On the boot CPU, before there are others.
pub fn init() {
    if options::get().design != Design::Locked {
        let realm: &Realm = Box::leak(Box::new(Realm::new(cpu::count(), memory::frames(), wait)));
        realm.init();
        // Release: partner in `get`.
        REALM.store(core::ptr::from_ref(realm).cast_mut(), Ordering::Release);
    }
}

/// This CPU waits for a slot, whose holder may be waiting for it to flush.
fn wait() {
    assert!(irq::enabled(), "a slot is waited for with interrupts off");
    cpu::pause();
}

/// The realm, if there is one.
pub fn get() -> Option<&'static Realm> {
    // SAFETY: it was leaked, and nobody changes the pointer again. Acquire: partner in `init`.
    unsafe { REALM.load(Ordering::Acquire).as_ref() }
}

/// How many page tables each address space has.
pub fn tables() -> PageTables {
    if options::get().shared_table { PageTables::Shared } else { PageTables::PerCpu }
}

/// Where a CPU stands with its regular work.
#[repr(align(128))]
struct State {
    /// It is to tick: on its way to user mode, or before it halts.
    due: AtomicBool,
    /// When it ticked last, in ns since boot.
    ticked: AtomicU64,
    /// It has nothing to run, and has collected what it could.
    rested: AtomicBool,
    /// It has halted, or is about to, and left the rest to others.
    asleep: AtomicBool,
}
static STATES: [State; MAX_CPUS] = [const {
    State {
        due: AtomicBool::new(false),
        ticked: AtomicU64::new(0),
        rested: AtomicBool::new(false),
        asleep: AtomicBool::new(false),
    }
}; MAX_CPUS];

fn mine() -> &'static State {
    &STATES[cpu::id().index()]
}

// Relaxed, on all fields of a state: hints, by which nothing is handed over, and of which `ticked` and `rested` are its CPU's alone.
impl State {
    fn is_due(&self) -> bool {
        self.due.load(Ordering::Relaxed)
    }
    fn set_due(&self) {
        self.due.store(true, Ordering::Relaxed);
    }
    /// Take the request to tick, if there is one.
    fn take_due(&self) -> bool {
        self.is_due() && self.due.swap(false, Ordering::Relaxed)
    }
    /// It is `now`, and the CPU ticks.
    fn ticks(&self, now: u64) {
        self.due.store(false, Ordering::Relaxed);
        self.ticked.store(now, Ordering::Relaxed);
    }
    fn is_late(&self, now: u64) -> bool {
        now.saturating_sub(self.ticked.load(Ordering::Relaxed)) >= timers::length(TICK)
    }
    fn is_asleep(&self) -> bool {
        self.asleep.load(Ordering::Relaxed)
    }
    fn set_asleep(&self, asleep: bool) {
        // Looked at before it is written: a nap leaves it alone.
        if self.is_asleep() != asleep {
            self.asleep.store(asleep, Ordering::Relaxed);
        }
    }
}

/// This CPU begins, or has something to do again.
pub fn wake() {
    if let Some(realm) = get() {
        mine().set_asleep(false);
        realm.idle_exit(&mut here());
    }
}

/// This CPU, idle since `since` (ns since boot), is about to halt; interrupts are off. False if it should go on instead, since
/// there would be nobody to collect what is left.
pub fn sleep(since: u64) -> bool {
    let Some(realm) = get() else { return true };
    let nap_ends = since.saturating_add(timers::length(TICK));
    let naps = !mine().rested.load(Ordering::Relaxed) && timer::now() < nap_ends;
    if naps && !realm.is_free(&here()) {
        realm.nap(&mut here());
    } else if realm.idle_enter(&mut here()) {
        mine().set_asleep(true);
        return true;
    }
    if naps {
        // It comes back then also if nothing else wakes it.
        timers::limit_slice(nap_ends);
    }
    naps
}

/// This CPU has nothing else to do since `since` (ns since boot).
pub fn rest(since: u64) {
    let Some(realm) = get() else { return };
    let (state, now) = (mine(), timer::now());
    // Who is asked to tick doesn't keep others waiting with what it could leave to them.
    let rests = state.is_due() || now >= since.saturating_add(timers::length(TICK));
    state.rested.store(rests, Ordering::Relaxed);
    if rests {
        state.ticks(now);
        realm.rest(&mut here());
    } else if state.is_late(now) {
        state.ticks(now);
        realm.tick(&mut here());
    }
}

/// It is `now`, and this CPU switches to a thread: no slice may have ended here for long.
pub fn look(now: u64) {
    if is_on() && mine().is_late(now) {
        mine().set_due();
    }
}

/// Whether there is one: then a running CPU must [work](self::work) now and then, whatever it runs.
#[inline]
pub fn is_on() -> bool {
    get().is_some()
}

/// This CPU is to [work](self::work) on its way to user mode: its slice has ended. Of an interrupt handler.
pub fn set_due() {
    if is_on() {
        mine().set_due();
    }
}

/// Whether this CPU has to do its regular work, or anybody has to drop what nobody names any more.
#[inline]
pub fn is_due() -> bool {
    mine().is_due() || get().is_some_and(Realm::has_dead)
}

/// A CPU's regular work. For a thread that is in no operation on an address space, holds nothing, and may sleep.
pub fn work() {
    if let Some(realm) = get() {
        let state = mine();
        if state.take_due() {
            marker::periodic_begin();
            state.ticks(timer::now());
            realm.tick(&mut here());
            sched::plan_tick();
            marker::periodic_end();
        }
        realm.reap(&task::unpinned());
    }
}

/// Have all CPUs collect at once what is free by now, until there is `enough`. For a thread that holds nothing. May sleep.
pub fn collect_now(enough: impl Fn() -> bool) {
    let Some(realm) = get() else { return };
    let me = cpu::id();
    for _ in 0..TURNS {
        if realm.is_quiet() || enough() || task::current().is_ending() {
            return;
        }
        // CPUs that sleep take no part.
        let mut others: CpuSet = cpus().filter(|cpu| !STATES[cpu.index()].is_asleep()).collect();
        others.remove(me);
        others.iter().chain([me]).for_each(|cpu| STATES[cpu.index()].set_due());
        reclaim::poke(&others);
        work();
        let deadline = timer::now() + PATIENCE;
        let waits = |cpu: CpuId| {
            let state = &STATES[cpu.index()];
            state.is_due() && !state.is_asleep()
        };
        while others.iter().any(waits) && timer::now() < deadline {
            // They may be here for the same.
            if is_due() {
                work();
            }
            cpu::pause();
        }
    }
}

fn cpus() -> impl Iterator<Item = CpuId> {
    (0..cpu::count()).filter_map(CpuId::new)
}

/// Collect what can be collected on all CPUs, and what they keep, one after the other. For a thread that holds nothing.
pub fn collect() {
    let Some(realm) = get() else { return };
    for id in cpus() {
        sched::on_cpu(id, || {
            realm.rest(&mut here());
            realm.trim(&here());
        });
    }
    realm.reap(&task::unpinned());
}

//! What address spaces in radix and Bonsai trees need of each CPU: to hand on, now and then, what it holds back of reference counts, to
//! say that it is in no section, and to free what has waited long enough. Of all this there is nothing if the command line says
//! `aspace=locked`.
//!
//! A CPU that runs threads does so at the end of each slice, on its way to user mode; therefore there are slices also if
//! nobody else waits for the CPU, and a CPU that switches threads so often that no slice ends does so after as long. What may
//! sleep, the end of a file that was mapped, is left to the next thread that comes by, on whichever CPU: nobody can look whether the
//! file is gone who hasn't.
//!
//! A CPU that halts naps for a tick at most, or leaves what it has to others: crate [`idle`] says how, and why nothing is lost or ends
//! too early. Here are its timer and the requests.
//!
//! So what an unmapping leaves behind is collected some tens of milliseconds later. When memory is short that is too late:
//! then calls, and faults that found no frame, first have all running CPUs do turn by turn what they do at ends of slices.
#![allow(unsafe_code)] // hands out the realm, which is leaked

use alloc::boxed::Box;
use core::sync::atomic::{AtomicPtr, Ordering};

use aspace::{PageTables, Realm};
use idle::{Collect, Halt, Idle, State};
use percpu::{CpuId, CpuSet, MAX_CPUS, Pinned};

use crate::{
    grace,
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

/// `cpu` is to [work](self::work) on its way to user mode. Who isn't on it interrupts it afterwards.
fn ask(cpu: CpuId) {
    STATES[cpu.index()].set_due();
    cpu::ask();
}

/// This CPU, in a way that interrupts know of: what is disposed of may have sections.
fn here() -> Pinned<'static> {
    task::pinned()
}

/// Make it, if there are to be such address spaces. On the boot CPU, before there are others.
pub fn init() {
    if options::get().design != Design::Locked {
        let mut realm = Box::new(Realm::new(cpu::count(), memory::frames(), wait));
        // One word says of all that a CPU has to do here on its way to user mode.
        realm.sections_mut().tell(ask);
        let realm: &Realm = Box::leak(realm);
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

static STATES: [State; MAX_CPUS] = [const { State::new() }; MAX_CPUS];

fn mine() -> &'static State {
    &STATES[cpu::id().index()]
}

/// This CPU has been idle since `since`.
fn idle_since(since: u64) -> Idle {
    Idle { since, now: timer::now(), tick: timers::length(TICK) }
}

/// This CPU begins, or has something to do again.
pub fn wake() {
    if let Some(realm) = get() {
        mine().wake(realm, &mut here());
    }
}

/// This CPU, idle since `since` (ns since boot), is about to halt; interrupts are off. False if it should go on instead, since
/// there would be nobody to collect what is left.
pub fn sleep(since: u64) -> bool {
    let Some(realm) = get() else { return true };
    let halt = mine().sleep(realm, idle_since(since), &mut here());
    if let Halt::Nap(until) = halt {
        timers::limit_slice(until);
    }
    halt != Halt::No
}

/// This CPU has nothing else to do since `since` (ns since boot).
pub fn rest(since: u64) {
    if let Some(realm) = get() {
        mine().rest(realm, idle_since(since), &mut here());
    }
}

/// It is `now`, and this CPU switches to a thread: no slice may have ended here for long.
pub fn look(now: u64) {
    if is_on() && mine().is_late(now, timers::length(TICK)) {
        ask(cpu::id());
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
        ask(cpu::id());
    }
}

/// Whether this CPU has to do its regular work, or anybody has to drop what nobody names any more: nobody is asked to, so who comes
/// by first does it, after an interrupt or a switch at the latest.
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
            grace::watch(realm);
            sched::plan_tick();
            marker::periodic_end();
        }
        if grace::is_asked(realm) {
            grace::attend(realm);
        }
        realm.reap(&task::unpinned());
    }
}

/// Have all CPUs collect at once what is free by now, until there is `enough`. For a thread that holds nothing. May sleep.
pub fn collect_now(enough: impl Fn() -> bool) {
    let Some(realm) = get() else { return };
    for _ in 0..TURNS {
        // It may be another one each time, since `work` may sleep.
        let me = cpu::id();
        if realm.is_quiet() || enough() || task::current().is_ending() {
            return;
        }
        // CPUs that sleep take no part.
        let mut others: CpuSet = cpus().filter(|cpu| !STATES[cpu.index()].is_asleep()).collect();
        others.remove(me);
        others.iter().chain([me]).for_each(ask);
        reclaim::poke(&others);
        work();
        let deadline = timer::now() + PATIENCE;
        let waits = |cpu: CpuId| STATES[cpu.index()].is_awaited();
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

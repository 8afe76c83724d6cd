//! What address spaces in radix trees need of each CPU: to hand on, now and then, what it holds back of reference counts, to
//! say that it is in no section, and to free what has waited long enough. Of all this there is nothing if the command line says
//! `aspace=locked`.
//!
//! A CPU that runs threads does so at the end of each slice, on its way to user mode; therefore there are slices also if
//! nobody else waits for the CPU. A CPU that is about to halt does so until it has nothing left or others are at it,
//! leaves them the rest, and halts unless it is the last. What may sleep, the end of a file that was mapped, is left to the next
//! thread that comes by, on whichever CPU: nobody can look whether the file is gone who hasn't.
//!
//! So what an unmapping leaves behind is collected some tens of milliseconds later. When memory is short that is too late:
//! then calls, and faults that found no frame, first have all running CPUs do turn by turn what they do at ends of slices.
#![allow(unsafe_code)] // says that this thread stays where it is

use alloc::boxed::Box;
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use aspace::{PageTables, Realm};
use percpu::{CpuId, CpuSet, MAX_CPUS, Pinned};

use crate::{
    hw::{cpu, timer},
    options, reclaim, sched, task,
};

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
    if options::get().radix {
        let realm: &Realm = Box::leak(Box::new(Realm::new(cpu::count(), cpu::pause)));
        realm.init();
        // Release: partner in `get`.
        REALM.store(core::ptr::from_ref(realm).cast_mut(), Ordering::Release);
    }
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

/// Which CPUs are to tick on their way to user mode.
#[repr(align(128))]
struct Due(AtomicBool);
static DUE: [Due; MAX_CPUS] = [const { Due(AtomicBool::new(false)) }; MAX_CPUS];

/// This CPU begins, or has something to do again.
pub fn wake() {
    if let Some(realm) = get() {
        realm.idle_exit(&mut here());
    }
}

/// This CPU is about to halt. False if it should go on instead, since there would be nobody to collect what is left.
pub fn sleep() -> bool {
    get().is_none_or(|realm| realm.idle_enter(&mut here()))
}

/// This CPU has nothing else to do.
pub fn rest() {
    if let Some(realm) = get() {
        // Relaxed, here and below: a hint, by which nothing is handed over.
        DUE[cpu::id().index()].0.store(false, Ordering::Relaxed);
        realm.rest(&mut here());
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
        DUE[cpu::id().index()].0.store(true, Ordering::Relaxed);
    }
}

/// Whether this CPU has to do its regular work, or anybody has to drop what nobody names any more.
#[inline]
pub fn is_due() -> bool {
    DUE[cpu::id().index()].0.load(Ordering::Relaxed) || get().is_some_and(Realm::has_dead)
}

/// A CPU's regular work. For a thread that is in no operation on an address space, holds nothing, and may sleep.
pub fn work() {
    if let Some(realm) = get() {
        if DUE[cpu::id().index()].0.swap(false, Ordering::Relaxed) {
            realm.tick(&mut here());
            sched::plan_tick();
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
        // CPUs that halt take no part.
        let mut others: CpuSet = cpus().filter(|&cpu| !sched::is_idle(cpu)).collect();
        others.remove(me);
        others.iter().chain([me]).for_each(|cpu| DUE[cpu.index()].0.store(true, Ordering::Relaxed));
        reclaim::poke(&others);
        work();
        let deadline = timer::now() + PATIENCE;
        let waits = |cpu: CpuId| DUE[cpu.index()].0.load(Ordering::Relaxed) && !sched::is_idle(cpu);
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
            rest();
            realm.trim(&here());
        });
    }
    realm.reap(&task::unpinned());
}

//! What address spaces in radix trees need of each CPU: to hand on, now and then, what it holds back of reference counts, to
//! say that it is in no section, and to free what has waited long enough. Of all this there is nothing unless the command
//! line says `aspace=radix`.
#![allow(unsafe_code)] // says that this thread stays where it is

use alloc::boxed::Box;
use core::sync::atomic::{AtomicPtr, Ordering};

use aspace::{PageTables, Realm};
use percpu::{CpuId, Pinned};

use crate::{hw::cpu, options, sched, task};

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

/// This CPU begins, or has something to do again.
pub fn wake() {
    if let Some(realm) = get() {
        realm.idle_exit(&mut here());
    }
}

/// This CPU is about to halt.
pub fn sleep() {
    if let Some(realm) = get() {
        realm.idle_enter(&mut here());
    }
}

/// This CPU has nothing else to do.
pub fn rest() {
    if let Some(realm) = get() {
        realm.rest(&mut here());
    }
}

/// A CPU's regular work. Its thread is in no operation on an address space.
pub fn tick() {
    if let Some(realm) = get() {
        realm.tick(&mut here());
    }
}

/// Collect what can be collected on all CPUs. For a thread that holds nothing.
pub fn collect() {
    let Some(realm) = get() else { return };
    for id in (0..cpu::count()).filter_map(CpuId::new) {
        sched::on_cpu(id, || {
            tick();
            rest();
        });
    }
    realm.reap(&task::unpinned());
}

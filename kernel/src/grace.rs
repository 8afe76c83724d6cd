//! Grace periods: where CPUs are quiescent, and what waits. The domain is the realm's ([`realm`]); `rcu::kernel` has the argument.
//!
//! A CPU says that it is in no section when it switches threads, when its slice has ended (its tick), and when it is interrupted
//! in user mode because a period is hurried. If that interrupt comes in the kernel it says so at the next of these places, or on the way
//! to user mode. While it halts others find it idle.
//!
//! What is retired waits for a tick or two. A thread whose CPU holds much of that hurries a period on its way to user mode, and if all
//! hold too much it stays there until its CPU has freed what it holds: it holds no lock there.
#![allow(unsafe_code)] // says that this thread stays where it is, and that user mode was interrupted

pub mod selftest;

use core::sync::atomic::{Ordering, fence};

use aspace::Realm;
use percpu::{CpuSet, Pinned};
use rcu::kernel::Domain;

use crate::{
    hw::{cpu, timer},
    realm, reclaim, sched, task, timers, wait,
};

/// After how long a period that doesn't end is told of, in ns: as Linux does it.
const STALL: u64 = 21_000_000_000;
/// How often who waits for a period looks, in ns.
const LOOK: u64 = sched::SLICE / 8;

/// Whose sections and periods they are, if there is a realm.
pub fn domain() -> Option<&'static Domain> {
    realm::get().map(Realm::sections)
}

fn here() -> Pinned<'static> {
    // SAFETY: a thread in the kernel isn't preempted, the callers are no interrupt handlers, and none sleeps meanwhile.
    unsafe { Pinned::assume(cpu::id()) }
}

/// This CPU switches threads.
#[inline]
pub fn on_switch() {
    if let Some(domain) = domain() {
        domain.qs(&mut here());
    }
}

/// The calling thread, in a loop of the kernel that may take long, is in no section, and holds nothing that has one.
pub fn quiescent_point() {
    on_switch();
}

/// The reschedule interrupt, which may be a [`kick`]; it came in user mode, or not.
pub fn on_kick(user: bool) {
    let Some(domain) = domain() else { return };
    if user {
        // SAFETY: as it says.
        unsafe { domain.qs_interrupted(cpu::id()) };
    } else {
        domain.ask(cpu::id());
    }
}

fn kick(cpus: &CpuSet) {
    reclaim::poke(cpus);
}

fn rest() {
    wait::pause_until(timer::now() + timers::length(LOOK));
}

/// Whether this CPU was asked to report, or holds much.
#[inline]
pub fn is_asked(realm: &Realm) -> bool {
    realm.sections().is_asked(&here())
}

/// Do it. For a thread that holds nothing. May sleep.
pub fn attend(realm: &Realm) {
    realm.sections().relieve(&task::unpinned(), kick, rest);
}

/// Tell of a period that doesn't end, if this CPU waits for one. At each tick.
pub fn watch(realm: &Realm) {
    let domain = realm.sections();
    if domain.pending(&here()) > 0 {
        tell(domain);
    }
}

fn tell(domain: &Domain) {
    if let Some(stall) = domain.stall(&here(), timer::now(), timers::length(STALL)) {
        crate::log!("{stall}");
    }
}

/// Wait until all sections have ended that are open now, and all CPUs have passed a full barrier: whoever runs user code has been
/// in the kernel meanwhile. Takes a slice or so. May sleep.
pub fn synchronize(domain: &Domain) {
    let need = domain.snap();
    domain.request(need);
    loop {
        domain.look(&mut here());
        if domain.poll(need) {
            break;
        }
        rest();
        tell(domain);
    }
    fence(Ordering::SeqCst);
}

/// The same for who can't wait so long: CPUs that run are interrupted.
pub fn synchronize_expedited(domain: &Domain) {
    domain.synchronize_expedited(&task::unpinned(), kick);
    fence(Ordering::SeqCst);
}

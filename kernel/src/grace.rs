//! Grace periods: where CPUs are quiescent, and what waits. The domain is the realm's ([`realm`]); `rcu::kernel` has the argument.
//!
//! A CPU says that it is in no section when it switches threads, when its slice has ended (its tick), and when it is interrupted
//! because a period is hurried. Whoever has a section is pinned, and the CPU counts pins: so if that interrupt comes in the kernel, and
//! there is no pin, it says so there; else when the thread gives up its last. While a CPU halts others find it idle.
//!
//! Here CPUs are also named by pins that are not counted, to report, or to look. No section borrows one of these.
//!
//! What is retired waits for a tick or two. A thread whose CPU holds much of that hurries a period on its way to user mode, and if all
//! hold too much it stays there until its CPU has freed what it holds: it holds no lock there.
#![allow(unsafe_code)] // says that this thread stays where it is, and that user mode was interrupted

pub mod selftest;

use core::sync::atomic::{AtomicU64, Ordering, fence};

use aspace::Realm;
use percpu::{CpuSet, Pinned};
use rcu::kernel::{Domain, Stall};

use crate::{
    hw::{cpu, irq::Lock, timer},
    realm, reclaim, sched, task, timers, wait,
};

/// After how long a period that doesn't end is told of, in ns: as Linux does it.
const STALL: u64 = 21_000_000_000;
/// The same, but for a test that has no time for that.
static LIMIT: AtomicU64 = AtomicU64::new(STALL);
/// What was told of last.
static TOLD: Lock<Option<Stall>> = Lock::new(None);
/// How often who waits for a period looks, in ns.
const LOOK: u64 = sched::SLICE / 8;
/// For how long who hurries one looks before that, in ns: some round trips of an interrupt.
const MOMENT: u64 = 50_000;

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

/// The reschedule interrupt, which may be a [`kick`].
pub fn on_kick() {
    let Some(domain) = domain() else { return };
    // SAFETY: of the handler. Sections borrow pins that are counted, of the thread that was interrupted; in user mode there is none.
    if unsafe { domain.qs_interrupted(cpu::id(), cpu::preempt_count() > 0) } {
        cpu::set_awaited();
    }
}

/// The thread has given up its last pin, and a period that is hurried waited for that.
#[cold]
pub fn on_unpinned() {
    on_switch();
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
    // Relaxed: a number that nothing follows from.
    let limit = timers::length(LIMIT.load(Ordering::Relaxed));
    if let Some(stall) = domain.stall(&here(), timer::now(), limit) {
        crate::log!("{stall}");
        *TOLD.lock() = Some(stall);
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

/// The same for who can't wait so long: CPUs that run are interrupted. So it takes a moment, unless one of them keeps a pin for
/// longer, or has interrupts off: then the caller sleeps.
pub fn synchronize_expedited(domain: &Domain) {
    domain.synchronize_expedited(&task::unpinned(), kick, relax(domain));
    fence(Ordering::SeqCst);
}

/// What who hurries a period does in between.
fn relax(domain: &Domain) -> impl FnMut() {
    let begin = timer::now();
    move || {
        if timer::now() - begin < timers::length(MOMENT) {
            cpu::pause();
        } else {
            rest();
            tell(domain);
        }
    }
}

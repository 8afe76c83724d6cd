//! TLB shootdown by interprocessor interrupts: the kernel's side of the `Shootdown` seam. What CPUs ask of each other goes
//! by [`Requests`], whose module has the protocol.
//!
//! No deadlock: the initiator is pinned with interrupts *on*, so while it waits it serves the requests of others. It holds no
//! spin lock that a handler takes, and targets serve requests without any lock. Before it waits for anything it has
//! interrupted all that it has asked.
//!
//! Page-table changes made before a request are seen by page walks after its flush: walks are ordinary loads (Intel SDM
//! vol. 3A, 4.10.4.2 asks only for the invalidation after the change).
//!
//! Only the initiator spins, with `pause`; everyone else who waits in the kernel halts or sleeps.

use addr::PageRange;
use percpu::{CpuSet, MAX_CPUS, Pinned};
use tlb::{Request, Requests, SINGLE_PAGES, Shootdown};

use crate::{
    hw::{apic, cpu, irq},
    places::Place,
    sched,
    stats::{self, Counter},
};

/// Pauses between two looks whether a target has flushed.
const LOOKS_APART: u32 = 4;

/// What each CPU is asked.
static REQUESTS: [Requests; MAX_CPUS] = [const { Requests::new() }; MAX_CPUS];

/// Where that is.
pub fn places() -> [Place; 1] {
    [Place::per_cpu("shootdown requests", &REQUESTS)]
}

/// The kernel's [`Shootdown`].
pub struct Ipi;

impl Shootdown for Ipi {
    fn flush(&self, pin: &Pinned<'_>, cpus: &CpuSet, range: PageRange) {
        let me = pin.cpu();
        if cpus.contains(me) {
            flush_here(range);
        }
        let mut targets = *cpus;
        targets.remove(me);
        if targets.is_empty() {
            return;
        }
        assert!(irq::enabled(), "a shootdown with interrupts off would deadlock");
        let request = Request::new(me, range);
        let (mut posted, mut tried) = (CpuSet::EMPTY, 0);
        for target in targets.iter() {
            let requests = &REQUESTS[target.index()];
            loop {
                if let Some(words) = requests.post(request) {
                    tried = tried.max(words);
                    break;
                }
                apic::send(&core::mem::take(&mut posted), apic::VECTOR_FLUSH);
                while !requests.has_room() {
                    cpu::pause();
                }
            }
            posted.insert(target);
        }
        stats::count_n(Counter::ShootdownsSent, targets.len() as u64);
        apic::send(&posted, apic::VECTOR_FLUSH);
        for target in targets.iter() {
            while REQUESTS[target.index()].has(request, tried) {
                // A look takes the line from the target, who is about to write it, and who takes a microsecond to come by.
                (0..LOOKS_APART).for_each(|_| cpu::pause());
            }
        }
    }
}

/// The flush interrupt: serve everyone who asked; `spared`, a planted fault, is to tell them so without doing it.
pub fn on_request(spared: bool) {
    let mut left = false;
    REQUESTS[cpu::id().index()].serve(|range| {
        left = left || sched::drop_lazy_space(range.is_none());
        if !left && !spared {
            range.map_or_else(cpu::flush_all, flush_here);
        }
        stats::count(Counter::ShootdownsReceived);
    });
    // Under an emulator that runs CPUs in turn, `pause` ends this CPU's turn, so that the initiator gets to go on.
    cpu::pause();
}

fn flush_here(range: PageRange) {
    if range.len() > SINGLE_PAGES {
        cpu::flush_all();
    } else {
        range.iter().for_each(|p| cpu::flush_page(p.base()));
    }
}

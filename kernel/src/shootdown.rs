//! TLB shootdown by interprocessor interrupts: the kernel's side of the `Shootdown` seam.
//!
//! # Protocol
//! Each CPU has one *order* (what it asks others to flush, and how many have not yet done so) and one *inbox* (the set
//! of CPUs that ask something of it).
//! ```text
//! initiator i                                   target t, in the interrupt handler
//! 1  order[i] = {range, pending = n}            5  who = take(inbox[t])
//! 2  inbox[t] += i  for each target             6  for i in who: flush order[i].range; order[i].pending -= 1
//! 3  send the interrupt to the targets
//! 4  wait until order[i].pending == 0
//! ```
//! * An order isn't changed while a target may read it: the initiator writes it only when `pending` is 0, that is,
//!   when all targets of its last order are through with 6.
//! * No interrupt is lost: 2 comes before 3, and a target takes its whole inbox; an interrupt that finds it empty was
//!   served by an earlier one.
//! * No deadlock: the initiator is pinned with interrupts *on*, so while it waits it serves the orders of others. It
//!   holds no spin lock that a handler takes, and targets serve orders without any lock.
//! * Page-table changes made before 1 are seen by page walks after 6: a target's flush comes after its Acquire of the
//!   inbox, which comes after the Release in 2 (and walks are ordinary loads: Intel SDM vol. 3A, 4.10.4.2 asks only
//!   for the invalidation after the change).
//!
//! Only the initiator spins, with `pause`; everyone else who waits in the kernel halts or sleeps.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use addr::{Page, PageRange};
use percpu::{CpuId, CpuSet, MAX_CPUS, Pinned};
use tlb::Shootdown;

use crate::{
    hw::{apic, cpu, irq},
    places::Place,
    sched,
    stats::{self, Counter},
};

/// Above this many pages a flush of everything is cheaper than single ones; Linux's x86 default is the same 33.
const SINGLE_PAGES: u64 = 33;

#[repr(align(128))]
struct Order {
    start: AtomicU64,
    end: AtomicU64,
    pending: AtomicU32,
}

#[repr(align(128))]
struct Inbox([AtomicU64; MAX_CPUS / 64]);

static ORDERS: [Order; MAX_CPUS] =
    [const { Order { start: AtomicU64::new(0), end: AtomicU64::new(0), pending: AtomicU32::new(0) } };
        MAX_CPUS];
static INBOXES: [Inbox; MAX_CPUS] = [const { Inbox([const { AtomicU64::new(0) }; MAX_CPUS / 64]) }; MAX_CPUS];

/// Where orders and inboxes are.
pub fn places() -> [Place; 2] {
    [Place::per_cpu("shootdown order", &ORDERS), Place::per_cpu("shootdown inbox", &INBOXES)]
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
        let order = &ORDERS[me.index()];
        let n = targets.len() as u32;
        // Relaxed, all three: published by the Release below; no target reads them before that.
        order.start.store(range.start().number(), Ordering::Relaxed);
        order.end.store(range.end().number(), Ordering::Relaxed);
        order.pending.store(n, Ordering::Relaxed);
        for t in targets.iter() {
            // Release: the order, and the page-table changes before it; pairs with the Acquire in `on_request`.
            INBOXES[t.index()].0[me.index() / 64].fetch_or(1 << (me.index() % 64), Ordering::Release);
        }
        stats::count_n(Counter::ShootdownsSent, n as u64);
        apic::send(&targets, apic::VECTOR_FLUSH);
        // Acquire: the targets' flushes, and their last reads of the order, come before; pairs with their Release.
        while order.pending.load(Ordering::Acquire) != 0 {
            cpu::pause();
        }
    }
}

/// The flush interrupt: serve everyone who asked.
pub fn on_request() {
    let me = cpu::id();
    let mut left = false;
    for (word, bits) in INBOXES[me.index()].0.iter().enumerate() {
        // Relaxed: a cheap look; a bit set after it comes with an interrupt of its own.
        if bits.load(Ordering::Relaxed) == 0 {
            continue;
        }
        // Acquire: pairs with the Release in `flush`.
        let mut who = bits.swap(0, Ordering::Acquire);
        while who != 0 {
            let Some(i) = CpuId::new(word * 64 + who.trailing_zeros() as usize) else { return };
            who &= who - 1;
            let order = &ORDERS[i.index()];
            // Relaxed: ordered by the Acquire above.
            let (start, end) = (order.start.load(Ordering::Relaxed), order.end.load(Ordering::Relaxed));
            left = left || sched::drop_lazy_space();
            if !left {
                match (Page::new(start), Page::new(end)) {
                    (Some(s), Some(e)) => PageRange::new(s, e).map_or_else(cpu::flush_all, flush_here),
                    _ => cpu::flush_all(),
                }
            }
            stats::count(Counter::ShootdownsReceived);
            // Release: the flush and the reads of the order come before; pairs with the Acquire in `flush`.
            order.pending.fetch_sub(1, Ordering::Release);
        }
    }
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

//! Grace periods, and what waits for them.

use alloc::collections::VecDeque;
use core::{
    fmt,
    sync::atomic::{AtomicU64 as PlainU64, AtomicUsize as PlainUsize},
    time::Duration,
};
use std::vec::Vec;

use percpu::Line;
use sync::{
    SpinLock, mutant,
    primitive::{AtomicU64, Ordering, fence},
};

use super::{
    bag::Bag,
    barrier::heavy,
    lock,
    slot::{Registry, Slot, advance, first_epoch, owner},
    stall::{Stall, Wait, yield_now},
};

/// A grace period, by number: what [`Domain::snap`](super::Domain::snap) says has to end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Gp(u64);

/// What a domain has done.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Grace periods that have ended.
    pub periods: u64,
    /// Objects that were freed after one.
    pub freed: u64,
    /// Bytes that were handed over and wait, with 24 for each object.
    pub waiting: usize,
    /// How often a thread had to wait because too much did.
    pub throttled: u64,
    /// Grace periods that took longer than the limit.
    pub stalls: u64,
}

/// What is behind a domain: at one address for as long as it lives.
pub(super) struct Core {
    /// What readers announce: moved on in each period, behind its barrier.
    pub(super) epoch: Line<AtomicU64>,
    /// The last period begun, and the last that has ended: at most one apart. Changed by who holds `driver`.
    started: Line<AtomicU64>,
    ended: Line<AtomicU64>,
    /// The epoch that the open period waits for.
    driver: Line<SpinLock<u64>>,
    pub(super) registry: Registry,
    limbo: Line<SpinLock<Limbo>>,
    /// Held by who takes the threads' bags.
    collector: SpinLock<()>,
    /// Bytes in limbo, and how many are too many.
    waiting: Line<PlainUsize>,
    pub(super) limit: PlainUsize,
    freed: PlainU64,
    throttled: PlainU64,
    pub(super) stalls: PlainU64,
    /// Milliseconds until a period is reported, and to whom.
    pub(super) stall_limit: PlainU64,
    pub(super) stall_report: SpinLock<fn(&Stall)>,
}

/// Bags that were handed over, in about the order of their periods.
struct Limbo {
    queue: VecDeque<Waiting>,
    /// How many were ever handed over, and those that are being freed.
    number: u64,
    running: Vec<Running>,
}

/// A bag that is being freed.
struct Running {
    number: u64,
    bytes: usize,
    /// By which thread: its [`owner`] number.
    by: usize,
}

struct Waiting {
    number: u64,
    need: Gp,
    bag: Bag,
}

impl Limbo {
    /// Whether a destructor that this thread runs is the caller.
    fn is_run_by(&self, who: usize) -> bool {
        self.running.iter().any(|running| running.by == who)
    }
}

impl Core {
    pub(super) fn new(fences: bool) -> Self {
        Self {
            epoch: Line(AtomicU64::new(first_epoch(fences))),
            started: Line(AtomicU64::new(0)),
            ended: Line(AtomicU64::new(0)),
            driver: Line(SpinLock::new(0)),
            registry: Registry::new(fences),
            limbo: Line(SpinLock::new(Limbo { queue: VecDeque::new(), number: 0, running: Vec::new() })),
            collector: SpinLock::new(()),
            waiting: Line(PlainUsize::new(0)),
            limit: PlainUsize::new(super::LIMIT),
            freed: PlainU64::new(0),
            throttled: PlainU64::new(0),
            stalls: PlainU64::new(0),
            stall_limit: PlainU64::new(super::STALL.as_millis() as u64),
            stall_report: SpinLock::new(super::stall::print),
        }
    }
    pub(super) fn snap(&self) -> Gp {
        // SeqCst [O7]: what the caller unlinked comes before; partner: the barrier in `drive`, whose caller has begun the period
        // if this doesn't see it begun.
        if !mutant!("rcu-user-no-snap-fence") {
            fence(Ordering::SeqCst);
        }
        let ahead = if mutant!("rcu-user-current-period") { 0 } else { 1 };
        // Relaxed: ordered by the fence.
        Gp(self.started.0.load(Ordering::Relaxed) + ahead)
    }
    pub(super) fn poll(&self, need: Gp) -> bool {
        // Acquire [O9]: the sections that were waited for come before; partner: the store in `drive`.
        self.ended.0.load(Ordering::Acquire) >= need.0
    }
    /// Begin `need` or what comes before it, and end it if nobody is in the way. Never waits: what is done here while somebody
    /// else is at it is made up for at the next call.
    pub(super) fn drive(&self, need: Gp) {
        let fences = self.registry.fences();
        let Some(mut target) = self.driver.0.try_lock() else { return };
        loop {
            // Relaxed, all but those below: the lock orders them.
            let period = self.started.0.load(Ordering::Relaxed);
            if self.ended.0.load(Ordering::Relaxed) == period {
                if need.0 <= period {
                    return;
                }
                // Relaxed [O7]: before the barrier; partner: the load in `snap`.
                self.started.0.store(period + 1, Ordering::Relaxed);
                // [O5], for the caller of `snap` [O7]: what was unlinked before the period comes before what sections that are not
                // seen below load; partner: `light` in `enter`.
                heavy(fences);
                *target = advance(&self.epoch.0);
            } else if !mutant!("rcu-user-early-end") && self.registry.slots().any(|slot| slot.blocks(*target))
            {
                return;
            } else {
                // Release [O9]: the sections that `blocks` found over come before; partner: the load in `poll`.
                self.ended.0.store(period, Ordering::Release);
            }
        }
    }
    /// Wait until all sections have ended that are open now. `who` calls.
    pub(super) fn synchronize(&self, who: usize) {
        self.refuse_section(who);
        self.wait(self.snap());
    }
    fn refuse_section(&self, who: usize) {
        assert!(!self.registry.in_section(who), "waiting for all sections to end, in a section");
    }
    /// Wait until `need` has ended. Not in a section.
    pub(super) fn wait(&self, need: Gp) {
        let wait = Wait::new();
        loop {
            self.drive(need);
            if self.poll(need) {
                return;
            }
            wait.pause(|| self.look_for_stall(&wait));
        }
    }
    fn look_for_stall(&self, wait: &Wait) {
        let epoch = *lock(&self.driver.0);
        let limit = Duration::from_millis(self.stall_limit.load(Ordering::Relaxed));
        if let Some(waited) = wait.is_over(limit) {
            self.stalls.fetch_add(1, Ordering::Relaxed);
            let holdouts = self.registry.slots().filter(|slot| slot.blocks(epoch)).map(Slot::who);
            let report = *lock(&self.stall_report);
            report(&Stall::new(waited, self.registry.fences(), holdouts));
        }
    }

    /// Let what is in the bag wait for a period. A thread's own bag is queued while the thread is at it: so `barrier` finds what it
    /// holds in one place or the other.
    pub(super) fn queue(&self, bag: Bag) -> Gp {
        let need = self.snap();
        // Relaxed, here and in `run`: a count.
        self.waiting.0.fetch_add(bag.bytes(), Ordering::Relaxed);
        let mut limbo = lock(&self.limbo.0);
        limbo.number += 1;
        let number = limbo.number;
        limbo.queue.push_back(Waiting { number, need, bag });
        need
    }
    /// After a bag was queued for `need`: free what is due. If there is too much, wait until there isn't; but not if the thread is in
    /// a section or a destructor, by whichever slot, for it would wait for itself.
    pub(super) fn settle(&self, need: Gp, may_wait: bool, slot: &Slot) {
        self.drive(need);
        self.run(Some(slot));
        if !may_wait || !self.is_full() {
            return;
        }
        if self.registry.in_section(slot.owner()) || lock(&self.limbo.0).is_run_by(slot.owner()) {
            return;
        }
        self.throttled.fetch_add(1, Ordering::Relaxed);
        while self.is_full() {
            // Others may have taken what is due, and still be freeing it.
            let oldest = lock(&self.limbo.0).queue.front().map(|waiting| waiting.need);
            match oldest {
                Some(oldest) => self.wait(oldest),
                None => yield_now(),
            }
            self.run(Some(slot));
        }
    }
    /// Whether more waits than the limit allows.
    pub(super) fn is_full(&self) -> bool {
        self.waiting.0.load(Ordering::Relaxed) > self.limit.load(Ordering::Relaxed)
    }
    /// A step towards room for more, without waiting; whether there is room.
    pub(super) fn relieve(&self, slot: &Slot) -> bool {
        if self.is_full() {
            let need = self.snap();
            self.drive(need);
            self.run(Some(slot));
        }
        !self.is_full()
    }
    /// Free what is due, unless this is called by a destructor that does.
    pub(super) fn run(&self, slot: Option<&Slot>) {
        let who = slot.map_or_else(owner, Slot::owner);
        while let Some((number, mut bag)) = self.due(who) {
            /// Takes the bag from the list of those that are being freed.
            struct Freed<'a>(&'a Core, u64, usize);
            impl Drop for Freed<'_> {
                fn drop(&mut self) {
                    self.0.waiting.0.fetch_sub(self.2, Ordering::Relaxed);
                    lock(&self.0.limbo.0).running.retain(|running| running.number != self.1);
                }
            }
            let _freed = Freed(self, number, bag.bytes());
            // SAFETY: the period that the bag waited for has ended, and began after all in it was unlinked: by the thread that
            // put it in, whose bag came here by way of `queue`.
            let freed = unsafe { bag.run() };
            self.freed.fetch_add(freed as u64, Ordering::Relaxed);
            if let Some(slot) = slot {
                slot.with_bag(|own| own.reuse(bag));
            }
        }
    }
    /// What is due, for `who`, who isn't at another bag.
    fn due(&self, who: usize) -> Option<(u64, Bag)> {
        let mut limbo = lock(&self.limbo.0);
        if limbo.is_run_by(who) && !mutant!("rcu-user-nested-run") {
            return None;
        }
        let first = limbo.queue.front()?;
        if !self.poll(first.need) && !mutant!("rcu-user-early-free") {
            return None;
        }
        let Waiting { number, bag, .. } = limbo.queue.pop_front()?;
        limbo.running.push(Running { number, bytes: bag.bytes(), by: who });
        Some((number, bag))
    }
    /// Wait until all is freed that any thread has retired before the call. Not in a section, nor in a destructor.
    pub(super) fn barrier(&self, slot: Option<&Slot>) {
        let who = slot.map_or_else(owner, Slot::owner);
        self.refuse_section(who);
        assert!(!lock(&self.limbo.0).is_run_by(who), "a destructor would wait for itself");
        {
            let _alone = lock(&self.collector);
            self.registry.hold_bags().take(|bag| _ = self.queue(bag));
        }
        let number = lock(&self.limbo.0).number;
        // After the look at the number, for all up to that wait for this period or an earlier one.
        let need = self.snap();
        self.wait(need);
        loop {
            self.run(slot);
            let limbo = lock(&self.limbo.0);
            let waits = limbo.queue.iter().map(|waiting| waiting.number);
            if waits.chain(limbo.running.iter().map(|running| running.number)).all(|other| other > number) {
                return;
            }
            drop(limbo);
            yield_now();
        }
    }
    pub(super) fn stats(&self) -> Stats {
        // Relaxed: counts.
        Stats {
            periods: self.ended.0.load(Ordering::Relaxed),
            freed: self.freed.load(Ordering::Relaxed),
            waiting: self.waiting.0.load(Ordering::Relaxed),
            throttled: self.throttled.load(Ordering::Relaxed),
            stalls: self.stalls.load(Ordering::Relaxed),
        }
    }
}

#[cfg(all(unix, not(any(loom, shuttle))))]
pub(super) mod fork {
    use core::sync::atomic::Ordering;
    use std::{string::String, vec::Vec};

    use sync::{SpinGuard, mutant};

    use super::{
        super::{
            lock,
            slot::{Bags, owner},
            stall::Stall,
        },
        Core, Limbo,
    };

    /// A domain that nobody else changes.
    pub(in crate::user) struct Held {
        core: &'static Core,
        bags: Bags<'static>,
        limbo: SpinGuard<'static, Limbo>,
        _locks: (SpinGuard<'static, ()>, SpinGuard<'static, u64>),
        _report: SpinGuard<'static, fn(&Stall)>,
        _names: Vec<SpinGuard<'static, String>>,
    }

    impl Core {
        /// Keep everything as it is until the result is dropped.
        pub(in crate::user) fn hold(&'static self) -> Held {
            let collector = lock(&self.collector);
            let bags = self.registry.hold_bags();
            let driver = lock(&self.driver.0);
            let limbo = lock(&self.limbo.0);
            // Who holds one of these takes no other lock.
            let (report, names) = (lock(&self.stall_report), bags.hold_names());
            Held { core: self, bags, limbo, _locks: (collector, driver), _report: report, _names: names }
        }
    }

    impl Held {
        /// The child's part: of all threads only this one is left.
        pub(in crate::user) fn alone(mut self) {
            let mut left = Vec::new();
            self.bags.take(|bag| left.push(bag));
            self.bags.forget_others();
            // What others were freeing nobody will, nor wait for it.
            let here = owner();
            self.limbo.running.retain(|running| running.by == here);
            let running = self.limbo.running.iter().map(|running| running.bytes);
            let waiting = self.limbo.queue.iter().map(|waiting| waiting.bag.bytes()).chain(running).sum();
            let core = self.core;
            if !mutant!("rcu-user-fork-waiting") {
                // Relaxed: there is one thread.
                core.waiting.0.store(waiting, Ordering::Relaxed);
            }
            drop(self);
            left.into_iter().for_each(|bag| _ = core.queue(bag));
        }
    }
}

/// Nobody has a reader anymore: free everything.
impl Drop for Core {
    fn drop(&mut self) {
        while let Some(Waiting { mut bag, .. }) = { lock(&self.limbo.0).queue.pop_front() } {
            // SAFETY: readers borrow the domain, so there are none, and no sections.
            unsafe { bag.run() };
        }
        let mut left = Vec::new();
        self.registry.hold_bags().take(|bag| left.push(bag));
        // SAFETY: as above.
        left.iter_mut().for_each(|bag| _ = unsafe { bag.run() });
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stats().fmt(f)
    }
}

//! What is collected: objects without references, and what grace periods delay.

use percpu::Pinned;
use refcache::Budget;
use sync::{
    mutant,
    primitive::{Ordering, fence},
};

/// Rounds that a single CPU needs to find an object dead, and to see a grace period out.
const ROUNDS: u32 = 8;

/// What CPUs collect by regular work of all that don't idle.
pub trait Collect {
    /// This CPU begins, or goes on after [`Self::nap`] or [`Self::idle_enter`].
    fn idle_exit(&self, pin: &mut Pinned<'_>);
    /// This CPU will do nothing until [`Self::idle_exit`], and is not waited for. What it has still to collect is left to the
    /// others; false if there are none, so that it must go on and [tick](Self::tick).
    #[must_use = "what is left would stay"]
    fn idle_enter(&self, pin: &mut Pinned<'_>) -> bool;
    /// This CPU will do nothing until [`Self::idle_exit`], but comes back to [tick](Self::tick) as soon as if it ran: grace periods
    /// don't wait for it, epochs do. Writes nothing that another CPU writes.
    fn nap(&self, pin: &mut Pinned<'_>);
    /// Whether this CPU has nothing to collect, so that nobody waits for it in epochs.
    fn is_free(&self, pin: &Pinned<'_>) -> bool;
    /// A CPU's regular work, by a thread in no operation: hand on what it holds back, free what has waited long enough. At
    /// least every few milliseconds while there is something to do. True if this CPU has nothing left.
    fn tick(&self, pin: &mut Pinned<'_>) -> bool;
    /// This CPU has nothing else to do: if nobody else is at it, collect all that can be collected, as what is left to
    /// others has to wait anew there.
    fn rest(&self, pin: &mut Pinned<'_>) {
        (0..ROUNDS).any(|_| self.tick(pin));
    }
}

/// References by Refcache, and what RCU delays, of which each may leave something to the other.
pub struct Domains<const WAYS: usize> {
    /// Counts references.
    pub refs: refcache::Domain<WAYS>,
    /// Frees after grace periods. Who retires something [says](Self::retires) so.
    pub rcu: rcu::kernel::Domain,
}

impl<const WAYS: usize> Domains<WAYS> {
    /// For `cpus` CPUs, all of them idle.
    pub fn new(cpus: usize) -> Self {
        Self { refs: refcache::Domain::new(cpus), rcu: rcu::kernel::Domain::new(cpus) }
    }
    /// This CPU has retired something: it is not [quiet](Self::is_quiet) until that is free.
    pub fn retires(&self, pin: &Pinned<'_>) {
        self.refs.unpark(pin);
    }
    /// Whether there is nothing left to collect, as far as CPUs have [ticked](Collect::tick) since they did something. What RCU
    /// delays is with a member of the epochs, or with the orphans: it goes to them before its CPU leaves, and from them to one
    /// that has joined. So it is seen in either place, unless it is handed over, and taken, and handed over again meanwhile.
    pub fn is_quiet(&self) -> bool {
        let nobody = || {
            let quiet = self.refs.is_quiet();
            // Acquire: what who has left the epochs had handed over before; partner: the fence in the tree's `leave`.
            fence(Ordering::Acquire);
            quiet
        };
        if !nobody() || self.rcu.has_orphans() {
            return false;
        }
        // Acquire: who has taken orphans had joined before; partner: the store that says that there are none any more.
        fence(Ordering::Acquire);
        nobody() || mutant!("idle-one-look")
    }
}

impl<const WAYS: usize> Collect for Domains<WAYS> {
    fn idle_exit(&self, pin: &mut Pinned<'_>) {
        self.rcu.idle_exit(pin);
    }
    fn idle_enter(&self, pin: &mut Pinned<'_>) -> bool {
        let hand_over = || self.rcu.hand_over(pin);
        if !mutant!("idle-leaves-holding") {
            hand_over();
        }
        let alone = self.refs.leave(pin) && !mutant!("idle-last-member-sleeps");
        if mutant!("idle-leaves-holding") {
            hand_over();
        }
        self.rcu.idle_enter(pin);
        !alone && (mutant!("idle-last-retirer-sleeps") || !self.rcu.is_abandoned())
    }
    fn nap(&self, pin: &mut Pinned<'_>) {
        if !mutant!("idle-nap-in-period") {
            self.rcu.idle_enter(pin);
        }
    }
    fn is_free(&self, pin: &Pinned<'_>) -> bool {
        !self.refs.is_member(pin) && self.rcu.pending(pin) == 0
    }
    fn tick(&self, pin: &mut Pinned<'_>) -> bool {
        if self.refs.has_orphans() || self.rcu.has_orphans() && !mutant!("idle-adopts-parked") {
            self.refs.unpark(pin);
        }
        while self.refs.work(pin, Budget::ALL).more {}
        while self.rcu.tick(pin) == rcu::kernel::BATCH {}
        // Who is no member of the epochs has nothing left to collect: see `is_quiet`.
        let waits = self.rcu.pending(pin) > 0;
        if waits {
            self.refs.unpark(pin);
        }
        !waits && self.refs.park(pin)
    }
}

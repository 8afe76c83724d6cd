//! Where a CPU stands with its regular work, and what it decides when it is idle.

use percpu::Pinned;
use sync::{
    mutant,
    primitive::{AtomicBool, AtomicU64, Ordering},
};

use crate::Collect;

/// How long a CPU has been idle. Times are in ns since boot.
#[derive(Clone, Copy, Debug)]
pub struct Idle {
    /// Since when it has had nothing to run.
    pub since: u64,
    /// The present.
    pub now: u64,
    /// How often a CPU does its regular work, and how long it may nap.
    pub tick: u64,
}

impl Idle {
    fn nap_ends(self) -> u64 {
        self.since.saturating_add(self.tick)
    }
    fn is_long(self) -> bool {
        self.now >= self.nap_ends()
    }
}

/// What a CPU may do that has nothing to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "who halts otherwise is waited for"]
pub enum Halt {
    /// It must go on: it is asked to tick, or there would be nobody to collect what is left.
    No,
    /// It halts, and comes back at this time (ns since boot) also if nothing else wakes it.
    Nap(u64),
    /// It halts until it is interrupted.
    Sleep,
}

/// Where a CPU stands with its regular work.
#[repr(align(128))]
#[derive(Debug)]
pub struct State {
    /// It is to tick: on its way to user mode, or before it halts.
    due: AtomicBool,
    /// When it ticked last, in ns since boot.
    ticked: AtomicU64,
    /// It has nothing to run, and has collected what it could.
    rested: AtomicBool,
    /// It has halted, or is about to, and left the rest to others.
    asleep: AtomicBool,
}

// Relaxed, on all fields: hints, by which nothing is handed over, and of which `ticked` and `rested` are the CPU's alone. That a
// request is seen after the interrupt that follows it is the interrupt's doing.
#[allow(clippy::new_without_default)] // for statics
impl State {
    /// Of a CPU that has never ticked.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        let (due, ticked) = (AtomicBool::new(false), AtomicU64::new(0));
        Self { due, ticked, rested: AtomicBool::new(false), asleep: AtomicBool::new(false) }
    }
    /// Of a CPU that has never ticked.
    #[cfg(loom)]
    pub fn new() -> Self {
        let (due, ticked) = (AtomicBool::new(false), AtomicU64::new(0));
        Self { due, ticked, rested: AtomicBool::new(false), asleep: AtomicBool::new(false) }
    }
    /// Whether the CPU is asked to tick.
    #[inline]
    pub fn is_due(&self) -> bool {
        self.due.load(Ordering::Relaxed)
    }
    /// Ask the CPU to tick. Who isn't that CPU interrupts it afterwards.
    pub fn set_due(&self) {
        self.due.store(true, Ordering::Relaxed);
    }
    /// Take the request to tick, if there is one.
    pub fn take_due(&self) -> bool {
        self.is_due() && self.due.swap(false, Ordering::Relaxed)
    }
    /// It is `now`, and the CPU ticks.
    pub fn ticks(&self, now: u64) {
        self.due.store(false, Ordering::Relaxed);
        self.ticked.store(now, Ordering::Relaxed);
    }
    /// Whether the CPU's last tick was a `tick` ago, or more.
    pub fn is_late(&self, now: u64, tick: u64) -> bool {
        now.saturating_sub(self.ticked.load(Ordering::Relaxed)) >= tick
    }
    /// Whether the CPU has left all that it had: others needn't ask it for anything.
    pub fn is_asleep(&self) -> bool {
        self.asleep.load(Ordering::Relaxed)
    }
    /// Whether who has asked the CPU to tick should wait.
    pub fn is_awaited(&self) -> bool {
        self.is_due() && !self.is_asleep()
    }
    fn set_asleep(&self, asleep: bool) {
        // Looked at before it is written: a nap leaves it alone.
        if self.is_asleep() != asleep {
            self.asleep.store(asleep, Ordering::Relaxed);
        }
    }

    /// This CPU begins, or has something to do again.
    pub fn wake(&self, what: &impl Collect, pin: &mut Pinned<'_>) {
        self.set_asleep(false);
        what.idle_exit(pin);
    }
    /// This CPU has nothing else to do.
    pub fn rest(&self, what: &impl Collect, idle: Idle, pin: &mut Pinned<'_>) {
        // Who is asked to tick doesn't keep others waiting with what it could leave to them.
        let rests = self.is_due() && !mutant!("idle-due-ignored") || idle.is_long();
        self.rested.store(rests, Ordering::Relaxed);
        if rests {
            self.ticks(idle.now);
            what.rest(pin);
        } else if self.is_late(idle.now, idle.tick) {
            self.ticks(idle.now);
            what.tick(pin);
        }
    }
    /// This CPU is about to halt. Interrupts are off until it does, or goes on; whichever it is, it [wakes](Self::wake) then.
    pub fn sleep(&self, what: &impl Collect, idle: Idle, pin: &mut Pinned<'_>) -> Halt {
        // The interrupt that told of it may have come before the halt, which it can't end then.
        if self.is_due() && !mutant!("idle-due-slept-over") {
            return Halt::No;
        }
        let naps = !self.rested.load(Ordering::Relaxed) && !idle.is_long();
        if naps && !what.is_free(pin) {
            what.nap(pin);
        } else if what.idle_enter(pin) {
            self.set_asleep(true);
            return Halt::Sleep;
        }
        match naps {
            true if mutant!("idle-nap-unarmed") => Halt::Sleep,
            true => Halt::Nap(idle.nap_ends()),
            false => Halt::No,
        }
    }
}

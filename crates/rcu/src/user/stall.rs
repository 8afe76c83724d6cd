//! Waiting, and saying so when it takes too long.

use alloc::{string::String, vec::Vec};
use core::{cell::Cell, fmt, panic::Location, time::Duration};
use std::{thread, time::Instant};

use sync::mutant;

/// A grace period that doesn't end.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Stall {
    /// For how long it has been waited for.
    pub waited: Duration,
    /// Whether readers run fences.
    pub fences: bool,
    /// Who is in a section that began before it.
    pub holdouts: Vec<Holdout>,
}

/// A thread that a grace period waits for.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Holdout {
    /// Its number for the system, as of `gettid`.
    pub tid: u32,
    /// Its name.
    pub name: String,
    /// Where it has begun its last section; with checks only.
    pub place: Option<&'static Location<'static>>,
}

impl Stall {
    pub(super) fn new(
        waited: Duration,
        fences: bool,
        holdouts: impl Iterator<Item = (u32, String, Option<&'static Location<'static>>)>,
    ) -> Self {
        let holdouts = holdouts.map(|(tid, name, place)| Holdout { tid, name, place }).collect();
        Self { waited, fences, holdouts }
    }
}

impl fmt::Display for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rcu: a grace period has not ended after {} ms", self.waited.as_millis())?;
        for holdout in &self.holdouts {
            write!(f, "; thread {} {:?} is in a section", holdout.tid, holdout.name)?;
            if let Some(place) = holdout.place {
                write!(f, " begun at {place}")?;
            }
        }
        Ok(())
    }
}

/// What is done with a stall unless the domain was told otherwise.
pub(super) fn print(stall: &Stall) {
    std::eprintln!("{stall}");
}

/// Let others run. (The primitive is loom's in models, and on hosts gives the processor away.)
pub(super) use sync::primitive::spin_loop as yield_now;

/// Looks that are made at once, and those that let others run in between; after these it is left for longer.
const SPINS: u32 = 100;
const YIELDS: u32 = 100;
const SLEEP: Duration = Duration::from_micros(50);

/// Somebody who waits.
pub(super) struct Wait {
    looks: Cell<u32>,
    begun: Instant,
    reports: Cell<u32>,
}

impl Wait {
    pub(super) fn new() -> Self {
        Self { looks: Cell::new(0), begun: Instant::now(), reports: Cell::new(0) }
    }
    /// Before the next look; `check` is called now and then.
    pub(super) fn pause(&self, check: impl FnOnce()) {
        let looks = self.looks.get();
        self.looks.set(looks.saturating_add(1));
        if cfg!(any(loom, shuttle)) || (SPINS..SPINS + YIELDS).contains(&looks) {
            yield_now();
        } else if looks < SPINS {
            core::hint::spin_loop();
        } else {
            check();
            thread::sleep(SLEEP);
        }
    }
    /// For how long it has taken, if that is to be reported: once after each further `limit`.
    pub(super) fn is_over(&self, limit: Duration) -> Option<Duration> {
        let limit = if mutant!("rcu-stall-late") { limit * 2 } else { limit };
        let waited = self.begun.elapsed();
        (waited >= limit * (self.reports.get() + 1)).then(|| {
            self.reports.set(self.reports.get() + 1);
            waited
        })
    }
}

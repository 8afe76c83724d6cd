//! Periods that don't end: who is in their way.

use core::{cell::Cell, fmt};

use percpu::{CpuSet, Line, PerCpu, Pinned};
use sync::primitive::{AtomicU64, Ordering};

use super::{Domain, Place};

/// Which period each CPU has found open, and since when; and which was told of last.
pub(super) struct Watch {
    since: PerCpu<Cell<(u64, u64)>>,
    told: Line<AtomicU64>,
}

/// A period that is open for too long.
#[derive(Clone, Debug)]
pub struct Stall {
    /// Its number.
    pub period: u64,
    /// For how long it has been open at least, in ns.
    pub age: u64,
    /// The CPUs that owe a report.
    pub cpus: CpuSet,
    /// Where one of them, the first, has its section open, as far as checks tell.
    pub place: Place,
}

impl fmt::Display for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { period, age, cpus, place } = self;
        write!(f, "grace period {period} is open for {} ms; waits for CPUs {cpus:?}", age / 1_000_000)?;
        place.map_or(Ok(()), |place| write!(f, ", with a section of {place}"))
    }
}

impl Watch {
    pub(super) fn new(cpus: usize) -> Self {
        let since = PerCpu::new(cpus, |_| Cell::new((0, 0)));
        Self { since, told: Line(AtomicU64::new(0)) }
    }
    pub(super) fn look(&self, domain: &Domain, pin: &Pinned<'_>, now: u64, limit: u64) -> Option<Stall> {
        let [period, _, done] = domain.periods.numbers();
        let since = self.since.get(pin);
        if done >= period || since.get().0 != period {
            since.set((period, now));
            return None;
        }
        let age = now.saturating_sub(since.get().1);
        // Relaxed, both: each period is told of once, by whom doesn't matter.
        if age < limit || self.told.0.load(Ordering::Relaxed) >= period {
            return None;
        }
        let cpus = domain.periods.owing();
        let first = self.told.0.fetch_max(period, Ordering::Relaxed) < period;
        let place = cpus.iter().find_map(|cpu| domain.places.of(cpu));
        (first && !cpus.is_empty()).then_some(Stall { period, age, cpus, place })
    }
}

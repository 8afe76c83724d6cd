//! Threads that measure together, and their clocks.
//!
//! What an operation costs is the time of the thread's own processor clock, so that whatever else the host runs is left
//! out. That clock also hides how threads get into each other's way when they don't run at the same time; with two and
//! more threads the clock on the wall is reported beside it.

use std::{
    hint, iter,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use percpu::{CpuId, Pinned};
use rustix::{
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
    time::{ClockId, clock_gettime},
};

/// How often a waiting thread looks before it lets others run.
const SPINS: u32 = 1000;

/// The host's CPUs that this process may use, in ascending order.
pub fn host_cpus() -> &'static [usize] {
    static CPUS: OnceLock<Vec<usize>> = OnceLock::new();
    CPUS.get_or_init(|| match sched_getaffinity(None) {
        Ok(set) => (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect(),
        Err(_) => vec![0],
    })
}

/// All threads of a team pass it together.
#[derive(Default)]
pub struct Gate {
    members: usize,
    arrived: AtomicUsize,
}

impl Gate {
    /// For so many threads.
    pub fn new(members: usize) -> Self {
        Self { members, arrived: AtomicUsize::new(0) }
    }

    /// Wait for all.
    pub fn pass(&self) {
        // AcqRel: what each did before comes before what any does after; partner of the load.
        let before = self.arrived.fetch_add(1, Ordering::AcqRel);
        let wanted = (before / self.members + 1) * self.members;
        wait_until(|| self.arrived.load(Ordering::Acquire) >= wanted);
    }
}

/// Wait, at first without giving the CPU away.
pub fn wait_until(mut is_so: impl FnMut() -> bool) {
    for spins in 0.. {
        if is_so() {
            return;
        }
        if spins < SPINS { hint::spin_loop() } else { thread::yield_now() }
    }
}

/// A member of a team: one thread, on a CPU of its own as far as the host has enough.
pub struct Member<'a> {
    /// Which CPU it is to the allocator.
    pub cpu: usize,
    /// What the allocator wants to see.
    pub pin: Pinned<'static>,
    /// To be together.
    pub gate: &'a Gate,
    /// What it has measured.
    pub meter: Meter,
}

impl Member<'_> {
    /// How long `work` takes of the processor, in nanoseconds.
    pub fn lap(&self, work: impl FnOnce(&Pinned<'static>)) -> f64 {
        let lap = Lap::begin();
        work(&self.pin);
        lap.end().0
    }

    /// Measure `work`, which says how many operations it did, as `phase`; they add up.
    pub fn time(&mut self, phase: &'static str, work: impl FnOnce(&Pinned<'static>) -> u64) -> u64 {
        let lap = Lap::begin();
        let operations = work(&self.pin);
        let (cpu, wall) = lap.end();
        self.meter.add(phase, Phase { operations, cpu, wall });
        operations
    }
}

/// Run `work` on a thread for each of `inputs`, all on different CPUs, and wait for them; what they gave, in order, and
/// what they measured.
pub fn team<T: Send, R: Send>(
    inputs: Vec<T>,
    work: impl Fn(&mut Member<'_>, T) -> R + Sync,
) -> (Vec<R>, Meter) {
    let gate = Gate::new(inputs.len());
    let host = host_cpus();
    let (mut results, mut meter) = (Vec::new(), Meter::default());
    thread::scope(|scope| {
        let start = |(cpu, input): (usize, T)| {
            let (gate, work) = (&gate, &work);
            scope.spawn(move || {
                let mut place = CpuSet::new();
                place.set(host[cpu % host.len()]);
                // If the host refuses, the threads are where it puts them.
                let _ = sched_setaffinity(None, &place);
                let Some(id) = CpuId::new(cpu) else { panic!("CPU {cpu} is one too many") };
                // SAFETY: a team has one thread for each CPU, a subject is used by one team at a time, and no thread
                // of it ever becomes another CPU.
                let pin = unsafe { Pinned::assume(id) };
                let mut member = Member { cpu, pin, gate, meter: Meter::default() };
                let result = work(&mut member, input);
                (result, member.meter)
            })
        };
        let threads: Vec<_> = inputs.into_iter().enumerate().map(start).collect();
        for thread in threads {
            match thread.join() {
                Ok((result, measured)) => {
                    results.push(result);
                    meter.merge(measured);
                }
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    (results, meter)
}

/// Run `work` on this thread, as all CPUs at once: it calls for one after the other.
pub fn alone<R>(cpus: usize, work: impl FnOnce(&[Pinned<'static>]) -> R) -> R {
    // SAFETY: one thread calls for all the CPUs, and returns from one call before it makes another.
    let pins: Vec<_> = (0..cpus).filter_map(CpuId::new).map(|id| unsafe { Pinned::assume(id) }).collect();
    assert_eq!(pins.len(), cpus, "{cpus} CPUs are too many");
    work(&pins)
}

/// Both clocks.
struct Lap {
    cpu: Duration,
    wall: Instant,
}

impl Lap {
    fn begin() -> Self {
        let wall = Instant::now();
        Self { wall, cpu: thread_clock() }
    }

    /// How long it was by either, less what reading them takes; in nanoseconds.
    fn end(self) -> (f64, f64) {
        let (cpu, wall) = self.raw();
        let empty = empty_lap();
        ((cpu - empty.0).max(0.0), (wall - empty.1).max(0.0))
    }

    fn raw(self) -> (f64, f64) {
        let cpu = thread_clock() - self.cpu;
        let wall = self.wall.elapsed();
        (cpu.as_nanos() as f64, wall.as_nanos() as f64)
    }
}

/// Processor time of this thread.
fn thread_clock() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// What a lap with nothing in it takes by either clock, in nanoseconds: the median of many.
fn empty_lap() -> (f64, f64) {
    static EMPTY: OnceLock<(f64, f64)> = OnceLock::new();
    *EMPTY.get_or_init(|| {
        let laps: Vec<_> = iter::repeat_with(|| Lap::begin().raw()).take(1001).collect();
        let middle = |of: fn(&(f64, f64)) -> f64| {
            let mut all: Vec<_> = laps.iter().map(of).collect();
            all.sort_by(f64::total_cmp);
            all[all.len() / 2]
        };
        (middle(|lap| lap.0), middle(|lap| lap.1))
    })
}

/// Operations and the time they took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Phase {
    /// How many.
    pub operations: u64,
    /// Processor time, in nanoseconds.
    pub cpu: f64,
    /// Time on the wall, in nanoseconds; of several threads, the sum.
    pub wall: f64,
}

/// What threads measured, by phase.
#[derive(Debug, Default)]
pub struct Meter(Vec<(&'static str, Phase)>);

impl Meter {
    fn add(&mut self, name: &'static str, phase: Phase) {
        let place = match self.0.iter().position(|(other, _)| *other == name) {
            Some(at) => at,
            None => {
                self.0.push((name, Phase::default()));
                self.0.len() - 1
            }
        };
        let sum = &mut self.0[place].1;
        sum.operations += phase.operations;
        sum.cpu += phase.cpu;
        sum.wall += phase.wall;
    }

    /// Add what others measured.
    pub fn merge(&mut self, other: Meter) {
        other.0.into_iter().for_each(|(name, phase)| self.add(name, phase));
    }

    /// The phases, in order of their first use.
    pub fn phases(&self) -> &[(&'static str, Phase)] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_pass_the_gate_together() {
        let reached = AtomicUsize::new(0);
        let (seen, _) = team(vec![(); 3], |member, ()| {
            let mut seen = Vec::new();
            for _ in 0..100 {
                reached.fetch_add(1, Ordering::Relaxed);
                member.gate.pass();
                seen.push(reached.load(Ordering::Relaxed));
                member.gate.pass();
            }
            seen
        });
        for one in seen {
            assert_eq!(one, (1..=100).map(|round| round * 3).collect::<Vec<_>>());
        }
    }

    #[test]
    fn time_asleep_is_on_the_wall_only() {
        let ((), meter) = {
            let (_, meter) = team(vec![(), ()], |member, ()| {
                member.time("asleep", |_| {
                    thread::sleep(Duration::from_millis(30));
                    1
                });
                member.time("asleep", |_| 2);
            });
            ((), meter)
        };
        let [("asleep", phase)] = meter.phases() else { panic!("{meter:?}") };
        assert_eq!(phase.operations, 6);
        assert!(phase.wall >= 55e6 && phase.cpu < 20e6, "{phase:?}");
    }
}

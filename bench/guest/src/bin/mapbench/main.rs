//! The scalability benchmark: threads, or processes, that map, fault, protect, unmap and fork, apart from one another or together.
//!
//! **What is measured.** Each worker, on a CPU of its own, does one mode's operation again and again. After the warm-up
//! all threads wait for each other; then each opens its *window* and does its operations, each of them in a *bracket*
//! (`marker.rs`). A counted run does exactly N operations a thread, so that a tracer that counts instructions and
//! cache-line transfers inside the brackets gets the same numbers again; a timed run goes by the clock. Nothing else
//! differs between the two. A thread that has done its part, or waits for another, sleeps, outside of the brackets.
//!
//! **What is checked.** Every page that is written is read back, and must hold what this thread wrote in this round; a
//! page that should be fresh must not hold what was written to it in the last; what was unmapped must be free at the
//! end. One wrong word makes the exit status 1.
//!
//! `docs/mapbench.md` has the exact meaning of each mode. The same executable runs on Linux, on Quire and natively.

mod marker;
mod meter;
mod modes;
mod options;
mod pages;
mod report;
mod sys;
mod wait;
mod workers;

use std::{
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{
    meter::Meter,
    modes::Mode,
    options::{Length, Plan, Request},
    pages::BASE,
    report::{Report, Row},
    wait::Barrier,
};

fn main() -> ExitCode {
    let cpus = sys::allowed_cpus();
    let plan = match options::parse(std::env::args().skip(1), cpus.len()) {
        Ok(Request::Run(plan)) => plan,
        Ok(Request::Help) => {
            println!("{}", options::USAGE);
            return ExitCode::SUCCESS;
        }
        Err(problem) => return mistake(&problem),
    };
    // Every mistake shows before anything runs.
    let modes: Vec<_> = match plan.kinds.iter().map(|kind| modes::make(*kind, &plan)).collect() {
        Ok(modes) => modes,
        Err(problem) => return mistake(&problem),
    };
    sys::refuse_huge_pages();
    let mut right = true;
    for (i, (kind, mode)) in plan.kinds.iter().zip(&modes).enumerate() {
        let rows = run(&**mode, &plan, &cpus);
        let report = Report { kind: *kind, plan: &plan, rows };
        if plan.json {
            println!("{}", report.json());
        } else {
            print!("{}{}", if i == 0 { "" } else { "\n" }, report.table());
        }
        if !report.is_right() {
            eprintln!("mapbench: {}: wrong contents of memory, or nothing checked", kind.name());
            right = false;
        }
    }
    if right { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn mistake(problem: &str) -> ExitCode {
    eprintln!("mapbench: {problem}; see mapbench --help");
    ExitCode::from(2)
}

/// What the workers of one run share, or have a copy of each.
struct Run<'a> {
    mode: &'a dyn Mode,
    plan: &'a Plan,
    /// By team. Processes are a team each, so copies do.
    ends: Vec<End>,
}

/// After which round a team's threads end. Alone on its pair of cache lines, and written once.
#[repr(align(128))]
struct End {
    round: AtomicU64,
    /// Threads in the team.
    members: u64,
}

/// Runs one mode.
fn run(mode: &dyn Mode, plan: &Plan, cpus: &[usize]) -> Vec<Row> {
    ensure_free(mode.extent());
    let threads = 0..plan.threads;
    let members = |team| threads.clone().filter(|thread| mode.team(*thread) == team).count() as u64;
    let ends =
        threads.clone().map(|t| End { round: AtomicU64::new(u64::MAX), members: members(t) }).collect();
    let run = Run { mode, plan, ends };
    let cpu = |worker: usize| cpus[worker % cpus.len()];
    let meters = if plan.processes {
        workers::processes(plan.threads, |worker, barrier| {
            mode.prepare();
            run.worker(worker, cpu(worker), barrier)
        })
    } else {
        mode.prepare();
        let meters =
            workers::threads(plan.threads, |worker, barrier| run.worker(worker, cpu(worker), barrier));
        sys::unmap(BASE, mode.extent());
        meters
    };
    meters.into_iter().enumerate().map(|(worker, meter)| Row { cpu: cpu(worker), meter }).collect()
}

impl Run<'_> {
    /// One worker's whole life.
    fn worker(&self, worker: usize, cpu: usize, barrier: &Barrier) -> Meter {
        sys::pin(cpu);
        let mut work = self.mode.start(worker);
        let mut meter = Meter::default();
        meter.pause = self.plan.pause;
        let mut round = 0;
        while round < self.plan.warm_up {
            work.round(round, &mut meter);
            round += 1;
        }
        barrier.wait();
        meter.open();
        while self.goes_on(worker, round, &meter) {
            if worker == 0 && self.is_graced(&meter) {
                sys::wait_for_readers();
            }
            work.round(round, &mut meter);
            meter.operations += 1;
            round += 1;
        }
        meter.close();
        meter.checks.expect(sys::runs_on(cpu));
        barrier.wait();
        work.finish(round, &mut meter);
        meter
    }

    /// Whether the first worker waits for a grace period now: they are spread over its operations, the first before all.
    fn is_graced(&self, meter: &Meter) -> bool {
        match (self.plan.length, u64::from(self.plan.graces)) {
            (Length::Operations(all), graces) if graces > 0 => {
                let each = u64::from(all).div_ceil(graces);
                meter.operations.is_multiple_of(each)
            }
            _ => false,
        }
    }

    /// Whether a worker does this round.
    ///
    /// Threads of a team may be as many rounds apart as the team has members, less one. So the first whose time is over
    /// names a round that nobody has begun: as many from its own as there are members. Who begins that round has waited
    /// for a publication that came after the naming, directly or through others, so it has seen it.
    fn goes_on(&self, worker: usize, round: u32, meter: &Meter) -> bool {
        let time = match self.plan.length {
            Length::Operations(operations) => return meter.operations < u64::from(operations),
            Length::Seconds(time) => time,
        };
        let end = &self.ends[self.mode.team(worker)];
        let round = u64::from(round);
        if meter.elapsed() >= time {
            let last = if end.members == 1 { round } else { round + end.members };
            // Relaxed, as the load below: only the number counts, and what makes it seen in time is above.
            let _ = end.round.compare_exchange(u64::MAX, last, Ordering::Relaxed, Ordering::Relaxed);
        }
        round < end.round.load(Ordering::Relaxed)
    }
}

/// Makes sure that nothing is mapped in the modes' range, without changing anything.
fn ensure_free(extent: usize) {
    let maps = std::fs::read_to_string("/proc/self/maps")
        .unwrap_or_else(|error| sys::die(format_args!("/proc/self/maps: {error}")));
    for line in maps.lines() {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let number = |text| usize::from_str_radix(text, 16).ok();
        let Some((begin, end)) = range.and_then(|(begin, end)| Some((number(begin)?, number(end)?))) else {
            sys::die(format_args!("/proc/self/maps: {line}"));
        };
        if begin < BASE + extent && end > BASE {
            sys::die(format_args!("the benchmark's addresses are in use: {line}"));
        }
    }
}

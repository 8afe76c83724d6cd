//! `cargo quire bench`: what an operation costs, and what CPUs share while they do it, on Quire and on Linux in the same
//! machine.
//!
//! ```text
//! plan.rs     which points to measure, and how many operations each
//! choice.rs   what the options say of designs, for each system
//! point.rs    one point: a machine, the benchmark in it, what it and the tracer say
//! derive.rs   from counts to records: means an operation, and modelled throughput (bench/cost)
//! cache.rs    --resume: points that would come out the same are not measured again
//! native.rs   the benchmark on this host, without a machine
//! table.rs    the answer at a glance
//! matrix.rs   another suite: which pairs of operations that commute share nothing
//! alone.rs    suites that run by themselves, on this host
//! refcache.rs one of them that goes on in a machine: counting references beside an atomic counter
//! primitives.rs another one: user-level memory primitives, by the clock here or by counts in a machine
//! apps.rs     and one: the applications beside their peers, with targets
//! host.rs     how their programs run
//! ```

mod alone;
mod apps;
mod cache;
mod choice;
mod derive;
mod host;
pub mod matrix;
mod native;
pub mod plan;
mod point;
mod primitives;
mod refcache;
mod table;

use std::{
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::Result;

use crate::{
    args::{Accel, Bench},
    failure::{USAGE, failure},
    results::{self, Results},
    ui,
};
pub use host::build;
use plan::Sweep;
use point::Lab;

/// The applications' packages.
pub const APPLICATIONS: [&str; 4] = ["quire-fence", "quire-pheap", "quire-snap", "quire-kvd"];

/// The suites that run together, in machines.
const SUITES: [&str; 2] = [MAPBENCH, MATRIX];
const MAPBENCH: &str = "mapbench";
const MATRIX: &str = "matrix";
/// Points that are measured at once: an exact machine needs one host thread.
const WORKERS: usize = 2;

/// Measure what the options say; the exit status.
pub fn run(options: &Bench) -> Result<u8> {
    if let Some(status) = alone::run(options)? {
        return Ok(status);
    }
    if let Some(unknown) = options.suites.iter().find(|suite| !SUITES.contains(&suite.as_str())) {
        let all: Vec<_> = SUITES.into_iter().chain(alone::ALL.iter().map(|suite| suite.name)).collect();
        return Err(failure(USAGE, format!("no suite {unknown}: there is {}", all.join(", "))));
    }
    let is_wanted = |suite: &str| options.suites.iter().any(|one| one == suite);
    let of_imbalance = options.pairs.iter().any(|pair| pair.contains(':'));
    if !is_wanted(MATRIX) && !options.pairs.is_empty() && !of_imbalance {
        return Err(failure(USAGE, "--pairs is about the suite matrix: name it"));
    }
    let of_mapbench = !options.mode.is_empty()
        || options.npages.is_some()
        || options.resume
        || options.processes
        || options.steady
        || options.all
        || of_imbalance;
    if of_mapbench && !options.suites.is_empty() && !is_wanted(MAPBENCH) {
        return Err(failure(
            USAGE,
            "--mode, --npages, --steady, --all, --resume and --processes are about the suite mapbench: name it too",
        ));
    }
    let mut all = Results { version: results::VERSION, ..Results::default() };
    if options.suites.is_empty() || is_wanted(MAPBENCH) {
        let results = if options.native { native::measure(options)? } else { measure(options)? };
        ui::result(table::table(&results, options.all).trim_end());
        keep(&results, options)?;
        all.merge(results);
    }
    if is_wanted(MATRIX) {
        all.merge(matrix::measure(options)?);
    }
    if let Some(path) = &options.json {
        all.write(path)?;
    }
    Ok(0)
}

/// A few points that say something, for a report before anything else was measured.
pub fn quick() -> Result<Results> {
    let options = Bench {
        cpus: vec![1, 2, 4],
        mode: vec!["local".into()],
        npages: Some(4),
        operations: Some(100),
        ..Bench::default()
    };
    let results = measure(&options)?;
    keep(&results, &options)?;
    Ok(results)
}

/// Measure what the options say of the suite mapbench in machines.
pub fn measure(options: &Bench) -> Result<Results> {
    let sweeps = plan::sweeps(options)?;
    all_of(&Lab::furnish(options, &sweeps, MAPBENCH)?, &sweeps)
}

/// Measure these in the lab, some at the same time.
fn all_of(lab: &Lab, sweeps: &[Sweep]) -> Result<Results> {
    let total: usize = sweeps.iter().map(|sweep| sweep.cpus.len()).sum();
    let progress = Mutex::new(ui::Progress::new("bench"));
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let found: Vec<Mutex<Option<Result<Results>>>> = sweeps.iter().map(|_| Mutex::new(None)).collect();
    let work = || {
        // Relaxed, here and below: each sweep is taken once whatever the order, and the scope's end publishes results.
        while let Some(sweep) = sweeps.get(next.fetch_add(1, Ordering::Relaxed)) {
            let measured = one_sweep(lab, sweep, |what| {
                let progress = progress.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                progress.steps(done.fetch_add(1, Ordering::Relaxed) as u64, total as u64, what);
            });
            if measured.is_err() {
                // The others needn't begin.
                next.store(sweeps.len(), Ordering::Relaxed);
            }
            *found[sweep.number].lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(measured);
        }
    };
    std::thread::scope(|scope| {
        (0..if lab.is_exact() { WORKERS } else { 1 }).for_each(|_| drop(scope.spawn(work)));
    });
    let mut all = Results { version: results::VERSION, machine: lab.describe(), ..Results::default() };
    let found =
        found.into_iter().map(|cell| cell.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()));
    let mut found: Vec<_> = found.flatten().collect();
    // What went wrong first is what a person wants to know.
    if let Some(at) = found.iter().position(Result::is_err) {
        found.swap_remove(at)?;
    }
    for one in found {
        all.merge(one?);
    }
    Ok(all)
}

/// One system's points of one benchmark, from few CPUs to many.
fn one_sweep(lab: &Lab, sweep: &Sweep, mut begins: impl FnMut(&str)) -> Result<Results> {
    let mut all = Results::default();
    let mut before = None;
    if let (true, Some(&cpus)) = (sweep.steady, sweep.cpus.first()) {
        begins(&format!("{} on {}, how much an operation takes", sweep.mode, sweep.system.label()));
        before = cost(lab, sweep, cpus, sweep.operations(cpus, None))?.1;
    }
    for &cpus in &sweep.cpus {
        begins(&format!("{} on {}, {cpus} CPUs", sweep.mode, sweep.system.label()));
        let operations = sweep.operations(cpus, before);
        let (one, each) = cost(lab, sweep, cpus, operations)?;
        before = each;
        all.merge(one);
    }
    Ok(all)
}

/// One point, and its CPUs and instructions an operation, if they were counted.
fn cost(lab: &Lab, sweep: &Sweep, cpus: u32, operations: u32) -> Result<(Results, Option<(u32, f64)>)> {
    let measure = || point::measure(lab, sweep, cpus, operations);
    let one = cache::through(lab, sweep, cpus, operations, measure)?;
    let each = one.records.iter().find(|r| r.metric == "instructions").map(|r| (cpus, r.value));
    Ok((one, each))
}

/// Add to what is kept of earlier runs, for the report.
fn keep(results: &Results, options: &Bench) -> Result<()> {
    let accel = if options.native { "native" } else { options.accel.name() };
    let path = kept_in(accel);
    let mut all = if path.exists() { Results::read(&path)? } else { Results::default() };
    all.merge(results.clone());
    all.write(&path)
}

fn kept_in(accel: &str) -> PathBuf {
    results::folder().join(format!("mapbench-{accel}.json"))
}

impl Accel {
    /// As on the command line.
    fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
            Self::Exact => "exact",
        }
    }
}

//! `cargo quire bench matrix`: which pairs of memory operations that commute are executed without a conflict.
//!
//! Two operations commute if nobody can tell in which order they were executed; then nothing forces their CPUs to share
//! anything, and whatever cache line moves between them is a choice of the implementation's. `pairs` (`bench/guest`)
//! executes each pair on two CPUs of an exact machine, one operation after the other; the tracer says which lines moved;
//! `commute` (`bench/host`) asks the model which pairs commute. `docs/matrix.md` says what counts, and why.
//!
//! ```text
//! tried.rs    one run of pairs in a machine, joined with the verdicts
//! shown.rs    the tables, and the lines that spoil most
//! ```

mod shown;
mod tried;

use anyhow::{Context, Result, bail};

use super::{
    choice::Choice,
    plan::{self, Target},
};
use crate::{
    args::{Accel, Bench},
    exact::{self, Exact},
    failure::{USAGE, failure},
    linux::Linux,
    results::{self, HotLine, Kind, Point, Record, Results},
    ui,
};
pub use tried::{Lab, Tried, run as try_pairs};

/// The virtual CPUs: one a side.
pub const CPUS: u32 = 2;

/// Measure what the options say, show it, and return it.
pub fn measure(options: &Bench) -> Result<Results> {
    if options.native || options.accel != Accel::Exact {
        return Err(failure(USAGE, "matrix counts cache lines, which needs --accel exact"));
    }
    let systems = plan::systems(options)?;
    let exact = Exact {
        quantum: options.quantum.unwrap_or(exact::QUANTUM),
        seed: options.seed.unwrap_or(exact::SEED),
        ..Exact::new()?
    };
    let lab = Lab::furnish(exact)?;
    let mut words = Vec::new();
    if !options.pairs.is_empty() {
        words = vec!["--pairs".to_owned(), options.pairs.join(",")];
    }
    if let Some(operations) = options.operations {
        words.extend(["--repeats".to_owned(), operations.to_string()]);
    }
    lab.check(&words)?;
    let mut all = Results { version: results::VERSION, ..Results::default() };
    let progress = ui::Progress::new("matrix");
    let mut texts = Vec::new();
    for system in systems {
        progress.message(&system.label());
        let (linux, version) = match system {
            Target::Quire(_) => (None, None),
            Target::Linux(choice) => {
                let linux = Linux::obtain(choice)?;
                (Some(linux.clone()), Some(linux.release))
            }
        };
        let tried = try_pairs(&lab, system, linux.as_ref(), &words, options)?;
        if tried.is_empty() {
            bail!("nothing was tried");
        }
        let told: Vec<_> = Choice::of(options, system).told().collect();
        let of_system = Point {
            suite: "matrix".to_owned(),
            system: if linux.is_some() { "linux" } else { "quire" }.to_owned(),
            linux_version: version,
            aspace: match system {
                Target::Quire(aspace) => Some(aspace.name().to_owned()),
                Target::Linux(_) => None,
            },
            cpus: CPUS,
            threads: CPUS,
            npages: 1,
            q: Some(lab.exact.quantum.into()),
            seed: Some(lab.exact.seed),
            variant: (!told.is_empty()).then(|| told.join(" ")),
            ..Point::default()
        };
        texts.push(shown::text(&of_system.label(), &tried));
        all.merge(records(&of_system, &tried));
    }
    drop(progress);
    ui::result(texts.join("\n").trim_end());
    Ok(all)
}

/// The numbers of a system.
fn records(system: &Point, tried: &[Tried]) -> Results {
    let mut results = Results::default();
    // What tells a combination from others, and the system from a default one.
    let variant = |combination: Option<&str>| {
        let told: Vec<_> = combination.into_iter().chain(system.variant.as_deref()).collect();
        (!told.is_empty()).then(|| told.join(" "))
    };
    for one in tried.iter().filter(|one| one.commutes) {
        let point = Point { bench: one.pair(), variant: variant(Some(&one.variant())), ..system.clone() };
        let record = record(&point, "shared_lines", "lines", one.count as f64, one.windows);
        let (min, max) = (one.extremes.0 as f64, one.extremes.1 as f64);
        results.records.push(Record { min, max, ..record });
        results.lines.extend(one.lines.iter().map(|line| HotLine {
            point: point.clone(),
            name: line.name.clone(),
            // Of one try of each order.
            transfers: line.transfers as f64 / 2.0,
            touched_by: CPUS,
            readers: line.readers.clone(),
            writers: line.writers.clone(),
        }));
    }
    for share in [None, Some("threads"), Some("processes")] {
        let (free, commuting) = shown::totals(tried, share);
        let point = Point { bench: "all".to_owned(), variant: variant(share), ..system.clone() };
        for (metric, n) in [("conflict_free", free), ("commuting", commuting)] {
            results.records.push(record(&point, metric, "combinations", n as f64, 1));
        }
    }
    results
}

fn record(point: &Point, metric: &str, unit: &str, value: f64, repeats: u32) -> Record {
    Record {
        point: point.clone(),
        operations: 1,
        metric: metric.to_owned(),
        value,
        unit: unit.to_owned(),
        kind: Kind::Count,
        repeats,
        min: value,
        max: value,
    }
}

/// A number of the tracer's.
fn number(value: &serde_json::Value, what: &str) -> Result<u64> {
    value.as_u64().with_context(|| format!("the tracer's counts have no {what}"))
}

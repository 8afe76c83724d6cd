//! The benchmark on this host, without a machine: for whoever has a real multiprocessor.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, bail};

use super::{
    derive::{self, Measured},
    plan::{self, PROCESSES},
};
use crate::{
    args::Bench,
    child, guest, machine,
    results::{self, Point, Results},
    ui,
};

const LIMIT: Duration = Duration::from_secs(120);
const REPEATS: usize = 3;

/// Timed runs of each mode with each number of threads that the host has CPUs for.
pub fn measure(options: &Bench) -> Result<Results> {
    plan::check_modes(options)?;
    let program = guest::rust("mapbench")?;
    let host = machine::host_cpus();
    let mut all = Results { version: results::VERSION, ..Results::default() };
    all.machine.insert("host CPUs".into(), host.into());
    let mut usual: Vec<(String, Option<u64>)> =
        plan::usual(options).map(|(mode, _)| (mode.to_owned(), None)).collect();
    usual.dedup();
    let modes = if options.mode.is_empty() { usual } else { plan::named(options) };
    for cpus in options.cpus.iter().filter(|&&cpus| cpus > host) {
        ui::say(&format!("{cpus} threads are left out: this host has {host} CPUs"));
    }
    let progress = ui::Progress::new("bench, native");
    for (mode, npages) in &modes {
        let npages = npages.or(options.npages);
        let least = if ["pipeline", "imbalance"].contains(&mode.as_str()) { 2 } else { 1 };
        for &cpus in options.cpus.iter().filter(|&&cpus| cpus <= host && cpus >= least) {
            progress.message(&format!("{mode}, {cpus} threads"));
            let runs = (0..REPEATS)
                .map(|_| once(&program, mode, npages, cpus, options))
                .collect::<Result<Vec<_>>>()?;
            let npages = runs.first().map_or(0, |run| run.said["npages"].as_u64().unwrap_or(0));
            let point = Point {
                suite: "mapbench".into(),
                bench: mode.clone(),
                system: "host".into(),
                cpus,
                threads: cpus,
                npages,
                variant: variant(options),
                ..Point::default()
            };
            all.merge(derive::timed(&point, &runs));
        }
    }
    Ok(all)
}

/// What tells it from a default run.
fn variant(options: &Bench) -> Option<String> {
    let pairs = (!options.pairs.is_empty()).then(|| format!("--pairs {}", options.pairs.join(",")));
    let words: Vec<_> = options.processes.then(|| PROCESSES.to_owned()).into_iter().chain(pairs).collect();
    (!words.is_empty()).then(|| words.join(" "))
}

fn once(program: &Path, mode: &str, npages: Option<u64>, threads: u32, options: &Bench) -> Result<Measured> {
    let mut command = Command::new(program);
    command.args([mode, "--json", "--seconds", "1", "--threads", &threads.to_string()]);
    if options.processes {
        command.arg(PROCESSES);
    }
    if !options.pairs.is_empty() {
        command.args(["--pairs", &options.pairs.join(",")]);
    }
    if let Some(npages) = npages {
        command.args(["--npages", &npages.to_string()]);
    }
    let end = child::capture(&mut command, &[], LIMIT)?;
    if !end.success() {
        bail!("mapbench {mode}: {}\n{}", end.ending(), end.text());
    }
    let said = serde_json::from_slice(&end.stdout).context("mapbench said nothing that can be read")?;
    Ok(Measured { said, counts: None })
}

//! Read-copy-update in a program, beside other ways to read what somebody may replace: `docs/rcu.md`.
//!
//! All subjects of a benchmark are measured in turn, so that whatever else the host does happens to each; a cost is processor time
//! of the threads divided by their operations, and a ratio is of costs in the same turn. There are the median and the quartiles.
//!
//!     cargo quire bench rcu [BENCH…] [-- OPTIONS]

#[path = "../../../../../crates/rcu/examples/kvcache/table.rs"]
#[allow(dead_code)] // the example uses more of it
mod table;

mod map;
mod mix;
mod read;
mod team;
mod update;

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;

use team::{Record, Scale, host_cpus};

/// What a benchmark does, and says.
type Run = fn(&Scale) -> Vec<Record>;

/// Which benchmarks there are.
const BENCHES: [(&str, Run); 4] =
    [("read", read::run), ("update", update::run), ("mix", mix::run), ("map", map::run)];

/// What to measure, and how often.
#[derive(Debug, Parser)]
#[command(name = "rcu", about = "Measures read-copy-update beside its peers: docs/rcu.md")]
struct Options {
    /// Which benchmarks: read, update, mix, map [default: all]
    #[arg(value_name = "BENCH", value_parser = BENCHES.map(|(name, _)| name))]
    benches: Vec<String>,
    /// Numbers of threads
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_values_t = [1, 2])]
    threads: Vec<usize>,
    /// How often each is measured
    #[arg(long, value_name = "N", default_value_t = 15)]
    turns: usize,
    /// Operations of a thread in a turn, of the cheapest
    #[arg(long, value_name = "N", default_value_t = 1 << 20)]
    operations: u64,
    /// Write everything to a file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    if !options.threads.iter().all(|threads| (1..=60).contains(threads)) || options.turns == 0 {
        eprintln!("rcu: say 1 to 60 threads, and a turn at least");
        return ExitCode::from(2);
    }
    let Options { threads, turns, operations, .. } = &options;
    let scale = Scale { threads: threads.clone(), turns: *turns, operations: (*operations).max(1 << 10) };
    println!("{} CPUs, {turns} turns; a number is: median [quartiles]", host_cpus().len());
    let is_wanted = |name: &str| options.benches.is_empty() || options.benches.iter().any(|one| one == name);
    let all: Vec<_> =
        BENCHES.iter().filter(|(name, _)| is_wanted(name)).flat_map(|(_, run)| run(&scale)).collect();
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&all).expect("numbers and names");
        if let Err(error) = std::fs::write(path, text) {
            eprintln!("rcu: cannot write {}: {error}", path.display());
            return ExitCode::from(1);
        }
    }
    ExitCode::SUCCESS
}

//! Random operations on address spaces for as long as there is time, with seeds that no run had before: half an hour with
//! `--full`, a minute without.
//!
//! Half of it goes to the crates on the host, of which each design runs on 2 to 8 simulated CPUs under the checker of its tests:
//! translation buffers that fill and lose what they like, and an account of every answer. The other half goes to the
//! kernel with debug assertions, on machines of 2 to 8 CPUs with both kinds of page tables: processes that share memory
//! and fork, each page against an oracle.

use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;

use super::{Report, host, linux::Case, output};
use crate::{
    cargo,
    guest::{self, Toolchain},
    kernel::{self, Build},
    needs::{self, Tool},
};

/// Half of the time.
const HALF: Duration = Duration::from_secs(30);
const FULL_HALF: Duration = Duration::from_secs(15 * 60);
/// What building the tests, or one run in a machine, may take beyond that.
const SLACK: Duration = Duration::from_secs(15 * 60);
/// The test programs of `aspace`: a design each.
const DESIGNS: [&str; 4] = ["concurrent", "bonsai", "radix", "radix_percpu"];
/// CPUs of a machine, and how its address spaces have page tables.
const MACHINES: [(u32, &str); 6] =
    [(2, "percpu"), (4, "shared"), (8, "percpu"), (2, "shared"), (4, "percpu"), (8, "shared")];
/// Rounds of the random program in one run.
const ROUNDS: u64 = 60;

pub fn run(report: &mut Report, full: bool) -> Result<()> {
    needs::ensure(&[Tool::MuslGcc])?;
    let half = if full { FULL_HALF } else { HALF };
    let seed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |time| time.as_secs());
    for design in DESIGNS {
        let name = format!("aspace {design}, seeds from {seed}");
        report.doing(&name);
        let mut command = cargo::command(host::target());
        host::quick(&mut command);
        command.args(["test", "-p", "quire-aspace", "--test", design, "--", "runs_for", "--nocapture"]);
        command.env("QUIRE_STRESS", (half / 3).as_secs().to_string()).env("QUIRE_SEED", seed.to_string());
        output::cargo_test(report, &name, &mut command, half + SLACK)?;
    }
    let kernel = kernel::build(Build::Sanitized)?;
    let program = guest::c("mmrandom", "c/mmrandom.c", Toolchain::Musl)?;
    let (begin, mut runs) = (Instant::now(), 0);
    while begin.elapsed() < half {
        let (cpus, tables) = MACHINES[runs % MACHINES.len()];
        let arguments = [seed % 1_000_000 + runs as u64, ROUNDS].map(|number| number.to_string());
        let name = format!("mmrandom {}, {cpus} CPUs, {tables}", arguments.join(" "));
        report.begin(begin.elapsed().as_secs() as usize, half.as_secs() as usize, &name);
        let case = Case::alone(name, program.clone(), "mmrandom", &arguments, cpus, SLACK.as_secs());
        let case = Case { boot: vec!["aspace=radix".to_owned(), format!("pagetable={tables}")], ..case };
        let (result, _) = case.check(&case.machine(&kernel))?;
        report.record(&case.name, result);
        runs += 1;
    }
    report.remark(format!("{runs} runs in the kernel"));
    Ok(())
}

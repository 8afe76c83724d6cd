//! `cargo quire bench refcache`: what counting a reference costs beside an atomic counter and `Arc`, natively by the clock with all
//! of them in turn, and on the exact machine by the lines that move (`bench/host`, `docs/refcache.md`).

use anyhow::Result;

use super::{all_of, alone::Alone, host, plan, point::Lab, table};
use crate::{
    args::{Accel, Bench, Locked},
    machine, ui,
};

/// What is compared.
const SUBJECTS: [&str; 4] = ["atomic", "arc", "domain", "shared"];
/// Pairs of each thread in its window.
const PAIRS: u32 = 100_000;

/// The suite's name.
pub const NAME: &str = "refcache";

/// Run it; its exit status.
pub fn run(suite: &Alone, names: &[String], options: &Bench) -> Result<u8> {
    let others = !options.mode.is_empty()
        || options.npages.is_some()
        || options.vs.is_some()
        || options.accel != Accel::Exact
        || (options.steady, options.processes, options.first_touch) != (false, false, false)
        || (options.plant_shared_counter, options.pagetable.is_some()) != (false, false)
        || options.frames.is_some()
        || options.exclude.is_some()
        || options.locked != Locked::default()
        || !options.pairs.is_empty()
        || !options.words.is_empty();
    suite.refuse(others)?;
    suite.refuse_names(names)?;
    let host = machine::host_cpus();
    let threads: Vec<_> = [1, 2].into_iter().filter(|n| *n <= host).map(|n| n.to_string()).collect();
    let status = host::run(suite.program, |command| {
        command.arg(threads.join(","));
    })?;
    if status != 0 || options.native {
        return Ok(status);
    }
    let sweeps = plan::of_subjects(&SUBJECTS, options.operations.unwrap_or(PAIRS), &options.cpus);
    let results = all_of(&Lab::furnish(options, &sweeps, NAME)?, &sweeps)?;
    ui::result(table::table(&results, options.all).trim_end());
    if let Some(path) = &options.json {
        results.write(path)?;
    }
    Ok(0)
}

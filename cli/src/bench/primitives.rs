//! `cargo quire bench vmprim`: user-level memory primitives (`vmprim/`, `bench/vmprim`). With `--operations PAGES` their cost in
//! instructions, lines and interrupts, in the exact machine; else by the clock, on this host.

use anyhow::{Context, Result};

use super::{
    all_of,
    alone::{self, Alone},
    choice::Choice,
    plan::{self, Sweep},
    point::{self, Lab},
    table,
};
use crate::{
    args::{Accel, Bench, Locked},
    failure::{USAGE, failure},
    ui,
};

/// The suite's name.
pub const NAME: &str = "vmprim";

/// Run it; its exit status.
pub fn run(suite: &Alone, names: &[String], options: &Bench) -> Result<u8> {
    let Some(pages) = options.operations else { return alone::side_by_side(suite, names, options) };
    let others = !options.mode.is_empty()
        || options.npages.is_some()
        || options.accel != Accel::Exact
        || (options.steady, options.processes, options.first_touch) != (false, false, false)
        || (options.plant_shared_counter, options.native, options.resume) != (false, false, false)
        || options.exclude.is_some()
        || options.locked != Locked::default()
        || !options.pairs.is_empty()
        || !options.words.is_empty();
    suite.refuse(others)?;
    let cpus = if options.cpus == Bench::default().cpus { &[1][..] } else { &options.cpus };
    let mut blank = plan::of_subjects(&["all"], pages, cpus);
    let mut all_systems = Vec::new();
    let first = blank.pop().context("no plan")?;
    for system in plan::systems(options)? {
        all_systems.push(Sweep { system, choice: Choice::of(options, system), ..first.clone() });
    }
    let lab = Lab::furnish(options, &all_systems, NAME)?;
    let mut sweeps = Vec::new();
    let mut known = false;
    for of_system in &all_systems {
        let words: Vec<String> =
            [NAME, "all", "--json", "--threads", "1", "--operations", "16"].map(Into::into).into();
        let said = point::ask(&lab, of_system, &words)?;
        for row in said["left_out"].as_array().into_iter().flatten() {
            let (name, why) = (row[0].as_str().unwrap_or_default(), row[1].as_str().unwrap_or_default());
            if names.is_empty() || names.iter().any(|wanted| wanted == name) {
                ui::say(&format!("{name} is left out on {}: {why}", of_system.system.label()));
            }
            known |= names.iter().any(|wanted| wanted == name);
        }
        for cell in said["cells"].as_array().into_iter().flatten().filter_map(|cell| cell.as_str()) {
            let row = cell.split('/').next().unwrap_or_default();
            if names.is_empty() || names.iter().any(|wanted| wanted == row) {
                known = true;
                sweeps.push(Sweep { number: sweeps.len(), mode: cell.to_owned(), ..of_system.clone() });
            }
        }
    }
    if !known {
        return Err(failure(USAGE, format!("no row {}", names.join(", "))));
    }
    let results = all_of(&lab, &sweeps)?;
    ui::result(table::table(&results, options.all).trim_end());
    if let Some(path) = &options.json {
        results.write(path)?;
    }
    Ok(0)
}

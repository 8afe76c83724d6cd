//! Modes side by side: each run is a process of its own in an empty folder, and the modes take turns, so that what else
//! the machine does meets all of them. A ratio is to the fork of the same turn; figures are medians, with the least and
//! the greatest.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use crate::{
    keeper::{MISSING, Refused},
    redis,
};

/// The modes that are compared, the peer last.
pub const MODES: [&str; 3] = ["trap", "precopy", "fork"];

/// What is compared: a name, the figure of a run, and the greatest ratio to the fork's for each of the other modes.
struct Row {
    name: &'static str,
    unit: &'static str,
    figure: fn(&Value) -> Option<f64>,
    /// For trap and for precopy; no target for `None`.
    targets: [Option<f64>; 2],
    /// The figure is a ratio by itself.
    is_ratio: bool,
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => values[len / 2],
        len => (values[len / 2 - 1] + values[len / 2]) / 2.0,
    }
}

/// The median over a run's checkpoints.
fn of_cuts(run: &Value, figure: impl Fn(&Value) -> Option<f64>) -> Option<f64> {
    let mut values: Vec<f64> = run["cuts"].as_array()?.iter().filter_map(figure).collect();
    (!values.is_empty()).then(|| median(&mut values))
}

const ROWS: [Row; 8] = [
    Row {
        name: "pause",
        unit: "ms",
        figure: |run| of_cuts(run, |cut| cut["pause_ms"].as_f64()),
        targets: [Some(0.7), Some(0.2)],
        is_ratio: false,
    },
    Row {
        name: "cut alone",
        unit: "ms",
        figure: |run| of_cuts(run, |cut| cut["cut_ms"].as_f64()),
        targets: [None, None],
        is_ratio: false,
    },
    Row {
        name: "p99.9 during a checkpoint",
        unit: "ms",
        figure: |run| Some(run["during"]["p999_us"].as_f64()? / 1e3),
        targets: [Some(1.0), Some(1.0)],
        is_ratio: false,
    },
    Row {
        name: "p99.9 of all operations",
        unit: "ms",
        figure: |run| Some(run["all_p999_us"].as_f64()? / 1e3),
        targets: [None, None],
        is_ratio: false,
    },
    Row {
        name: "longest operation",
        unit: "ms",
        figure: |run| Some(run["during"]["max_us"].as_f64()?.max(run["between"]["max_us"].as_f64()?) / 1e3),
        targets: [None, None],
        is_ratio: false,
    },
    Row {
        name: "extra memory",
        unit: "MiB",
        figure: |run| Some(run["extra_bytes"].as_f64()? / f64::from(1 << 20)),
        targets: [Some(0.1), Some(0.1)],
        is_ratio: false,
    },
    Row {
        name: "a checkpoint takes",
        unit: "ms",
        figure: |run| of_cuts(run, |cut| cut["took_ms"].as_f64()),
        targets: [None, None],
        is_ratio: false,
    },
    Row {
        name: "bytes written / dirty bytes",
        unit: "",
        figure: |run| of_cuts(run, |cut| Some(cut["bytes"].as_f64()? / (cut["pages"].as_f64()? * 4096.0))),
        targets: [Some(1.1), Some(1.1)],
        is_ratio: true,
    },
];

/// One run of a mode: what it reports.
fn run(mode: &str, load: &[String]) -> Result<Value, Refused> {
    let failed = |what: &str, error: &dyn std::fmt::Display| Refused::Other(format!("{what}: {error}"));
    let program = std::env::current_exe().map_err(|error| failed("cannot find this program", &error))?;
    let folder = load.first().map_or_else(|| ".".to_owned(), |parent| format!("{parent}/kvd-bench-{mode}"));
    let clean = || match std::fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(failed(&format!("cannot remove {folder}"), &error))
        }
        _ => Ok(()),
    };
    clean()?;
    let output = Command::new(program)
        .args(["load", "--mode", mode, "--dir", &folder, "--json", "-"])
        .args(&load[1..])
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| failed(&format!("cannot run {mode}"), &error))?;
    clean()?;
    match output.status.code() {
        Some(0) => {}
        // It has said what.
        Some(code) if code == i32::from(MISSING) => {
            return Err(Refused::Unsupported(format!("the run of {mode} lacks what it needs")));
        }
        _ => return Err(failed(&format!("the run of {mode} failed"), &output.status)),
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|error| failed(&format!("the run of {mode} said no figures"), &error))
}

/// Redis's fork with as many keys of as many bytes, shown beside the pauses of each mode; nothing if it isn't installed.
fn beside_redis(figures: &[Vec<Value>], load: &[String]) -> Vec<Value> {
    let option = |name: &str| {
        let at = load.iter().rposition(|word| word == name)?;
        load.get(at + 1)?.parse::<u64>().ok()
    };
    let folder = Path::new(load.first().map_or(".", String::as_str)).join("kvd-bench-redis");
    let (keys, value) = (option("--keys").unwrap_or(10_000), option("--value").unwrap_or(960));
    let cost = match redis::measure(&folder, keys, value as u32) {
        Ok(cost) => cost,
        Err(error) => {
            eprintln!("kvd: {error}");
            return Vec::new();
        }
    };
    println!(
        "redis-server, BGSAVE with {keys} keys of {value} bytes under redis-benchmark: fork {:.2} ms, {:.1} MiB copied",
        cost.pause_ms, cost.copied_mib
    );
    let rows = MODES.iter().zip(figures).map(|(mode, runs)| {
        let pauses = runs.iter().filter_map(|run| of_cuts(run, |cut| cut["pause_ms"].as_f64()));
        let ratio = median(&mut pauses.collect::<Vec<_>>()) / cost.pause_ms;
        let backend = runs.first().and_then(|run| run["backend"].as_str()).unwrap_or("?");
        json!({
            "application": format!("kvd, {mode}"), "backend": backend, "peer": "redis-server", "what": "pause",
            "ratio": ratio, "target": null,
        })
    });
    rows.collect()
}

/// Run all modes so often, print the table, and give all figures; whether every target is met. `load` is the folder to
/// work in, and options of `kvd load`.
///
/// # Errors
/// A line that says which run failed, or that it lacks what it needs.
pub fn bench(runs: u32, load: &[String]) -> Result<(Value, bool), Refused> {
    let mut figures: Vec<Vec<Value>> = vec![Vec::new(); MODES.len()];
    for turn in 0..runs {
        for (mode, figures) in MODES.iter().zip(&mut figures) {
            eprintln!("run {} of {runs}: {mode}", turn + 1);
            figures.push(run(mode, load)?);
        }
    }
    let mut passes = true;
    let mut rows = Vec::new();
    println!(
        "| median of {runs} runs [least, greatest] | trap | precopy | fork | trap / fork | precopy / fork |"
    );
    println!("| --- | --- | --- | --- | --- | --- |");
    for row in &ROWS {
        let values: Vec<Vec<f64>> = figures
            .iter()
            .map(|runs| runs.iter().map(|run| (row.figure)(run).unwrap_or(f64::NAN)).collect())
            .collect();
        let shown = values.iter().map(|values| {
            let mut values = values.clone();
            let middle = median(&mut values);
            let (least, greatest) = (values.first().copied(), values.last().copied());
            format!("{middle:.2} [{:.2}, {:.2}] {}", least.unwrap_or(0.0), greatest.unwrap_or(0.0), row.unit)
        });
        let mut cells: Vec<String> = shown.map(|cell| cell.trim_end().to_owned()).collect();
        let mut ratios = Vec::new();
        for (values_of_mode, target) in values.iter().zip(row.targets) {
            let forks = values.last().map_or(&[] as &[f64], Vec::as_slice);
            let mut each: Vec<f64> = match row.is_ratio {
                true => values_of_mode.clone(),
                false => values_of_mode.iter().zip(forks).map(|(own, fork)| own / fork).collect(),
            };
            let ratio = median(&mut each);
            let verdict = target.map_or(String::new(), |target| {
                let met = ratio <= target;
                passes &= met;
                format!(" (<= {target}: {})", if met { "pass" } else { "FAIL" })
            });
            cells.push(format!("{ratio:.2}{verdict}"));
            ratios.push(ratio);
        }
        println!("| {} | {} |", row.name, cells.join(" | "));
        for ((mode, ratio), target) in MODES.iter().zip(ratios).zip(row.targets) {
            let index = MODES.iter().position(|other| other == mode).unwrap_or(0);
            let backend = figures[index].first().and_then(|run| run["backend"].as_str()).unwrap_or("?");
            let peer = if row.is_ratio { "dirty bytes" } else { "fork" };
            rows.push(json!({
                "application": format!("kvd, {mode}"), "backend": backend, "peer": peer, "what": row.name,
                "ratio": ratio, "target": target,
            }));
        }
    }
    rows.extend(beside_redis(&figures, load));
    let by_mode: serde_json::Map<String, Value> =
        MODES.iter().zip(figures).map(|(mode, runs)| ((*mode).to_owned(), runs.into())).collect();
    Ok((json!({ "rows": rows, "runs": by_mode }), passes))
}

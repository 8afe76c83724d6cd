//! From what a run said and what was counted to records.
//!
//! Everything is per operation and the mean over CPUs: sums inside of brackets, divided by the operations that the
//! benchmark says it did (an operation may have several brackets). Page clearing and periodic work are apart, as in
//! `docs/results.md`. Linux does not mark its page clearing, so there it is among the instructions.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use cost::{Costs, Counts, Line};
use serde_json::Value;

use crate::results::{HotLine, Kind, Point, Record, Results};

/// Lines for which the model lets CPUs queue; the others are too cold for that.
const MODELLED_LINES: usize = 64;
/// Lines that are kept in the results.
const KEPT_LINES: usize = 12;

/// What one run gave.
pub struct Measured {
    /// The benchmark's own words.
    pub said: Value,
    /// The tracer's.
    pub counts: Option<Value>,
}

/// The cost model's parameters, for people.
pub fn parameters() -> String {
    let c = Costs::default();
    format!(
        "{} cycles an instruction, a transfer {} cycles in a socket of {} CPUs and {} between sockets, an IPI {} and {}, {} GHz",
        c.cycles_per_instruction,
        c.same_socket,
        c.cpus_per_socket,
        c.cross_socket,
        c.ipi_sent,
        c.ipi_received,
        c.hertz / 1e9
    )
}

/// Records of an exact run.
pub fn counted(point: &Point, run: &Measured) -> Result<Results> {
    let counts = run.counts.as_ref().context("nothing was counted")?;
    let operations = checked(run, counts)?;
    let sum = |name: &str| number(&counts["totals"]["in_operations"], name);
    let each = |name: &str| sum(name) / operations;
    let (user, kernel, clearing) = (each("instructions_user"), each("instructions_kernel"), each("clearing"));
    let window = |name: &str| number(&counts["totals"]["in_windows"], name) / operations;
    let worst = worst_cpu(run, counts);
    let lines = lines(counts);
    let modelled = cost::model(
        &Costs::default(),
        point.cpus,
        &Counts {
            instructions: user + kernel + clearing,
            other_transfers: each("transfers")
                - lines.iter().map(|line| line.transfers).sum::<f64>() / operations,
            lines: lines
                .iter()
                .map(|line| Line { transfers: line.transfers / operations, sharers: line.cpus })
                .collect(),
            ipis_sent: each("ipis"),
            // Every interrupt that is sent is received, by CPUs that do the same.
            ipis_received: each("ipis"),
            ..Counts::default()
        },
    );
    let rows = [
        ("instructions", user + kernel, "instructions/operation", Kind::Count),
        ("instructions_user", user, "instructions/operation", Kind::Count),
        ("instructions_kernel", kernel, "instructions/operation", Kind::Count),
        ("clearing", clearing, "instructions/operation", Kind::Count),
        ("transfers", each("transfers"), "lines/operation", Kind::Count),
        ("transfers_max", worst, "lines/operation", Kind::Count),
        ("periodic_instructions", window("periodic_instructions"), "instructions/operation", Kind::Count),
        ("periodic_transfers", window("periodic_transfers"), "lines/operation", Kind::Count),
        ("ipis", each("ipis"), "interrupts/operation", Kind::Count),
        ("throughput_per_cpu", modelled.throughput_per_cpu, "operations/s", Kind::Modelled),
    ];
    let per_thread = (operations / f64::from(point.threads)) as u64;
    let records = rows.map(|(metric, value, unit, kind)| Record {
        point: point.clone(),
        operations: per_thread,
        metric: metric.to_owned(),
        value,
        unit: unit.to_owned(),
        kind,
        repeats: 1,
        min: value,
        max: value,
    });
    let hot = lines.iter().take(KEPT_LINES).map(|line| line.hot(point, operations));
    Ok(Results { records: records.into(), lines: hot.collect(), ..Results::default() })
}

/// The operations of all threads, if the run was right and the tracer saw all of it.
fn checked(run: &Measured, counts: &Value) -> Result<f64> {
    if run.said["right"] != Value::Bool(true) {
        bail!("the benchmark read back what it had not written: {}", run.said);
    }
    if counts["complete"] != Value::Bool(true) || counts["stray_markers"] != 0 {
        bail!("the tracer missed a part of the run");
    }
    let (operations, brackets) = (total(run, "operations"), total(run, "brackets"));
    let seen = counts["totals"]["operations"].as_u64().unwrap_or(0) as f64;
    if operations == 0.0 || brackets != seen {
        bail!("the benchmark marked {brackets} times, the tracer saw {seen}");
    }
    Ok(operations)
}

/// The greatest mean of transfers that a CPU had.
fn worst_cpu(run: &Measured, counts: &Value) -> f64 {
    let threads = run.said["per_thread"].as_array().into_iter().flatten();
    let of = |thread: &Value| {
        let cpu = thread["cpu"].as_u64()? as usize;
        let transfers = number(&counts["per_cpu"].get(cpu)?["in_operations"], "transfers");
        Some(transfers / thread["operations"].as_f64().filter(|n| *n > 0.0)?)
    };
    threads.filter_map(of).fold(0.0, f64::max)
}

/// Records of timed runs.
pub fn timed(point: &Point, runs: &[Measured]) -> Results {
    let each = |run: &Measured| total(run, "window_ns") / total(run, "operations").max(1.0);
    let mut ns: Vec<f64> = runs.iter().map(each).collect();
    ns.sort_by(f64::total_cmp);
    let median = ns.get(ns.len() / 2).copied().unwrap_or(0.0);
    let (least, most) = (ns.first().copied().unwrap_or(0.0), ns.last().copied().unwrap_or(0.0));
    let operations = runs.first().map_or(0.0, |run| total(run, "operations")) / f64::from(point.threads);
    let record = |metric: &str, unit: &str, value: f64, min: f64, max: f64| Record {
        point: point.clone(),
        operations: operations as u64,
        metric: metric.to_owned(),
        value,
        unit: unit.to_owned(),
        kind: Kind::Wall,
        repeats: runs.len() as u32,
        min,
        max,
    };
    let rate = |ns: f64| if ns > 0.0 { 1e9 / ns } else { 0.0 };
    Results {
        records: vec![
            record("ns", "ns/operation", median, least, most),
            record("throughput_per_cpu", "operations/s", rate(median), rate(most), rate(least)),
        ],
        ..Results::default()
    }
}

fn total(run: &Measured, name: &str) -> f64 {
    run.said["per_thread"].as_array().into_iter().flatten().map(|thread| number(thread, name)).sum()
}

fn number(object: &Value, name: &str) -> f64 {
    object[name].as_f64().unwrap_or(0.0)
}

/// A line that moved in operations.
struct Moved {
    name: String,
    transfers: f64,
    cpus: u32,
    readers: Vec<String>,
    writers: Vec<String>,
}

impl Moved {
    fn hot(&self, point: &Point, operations: f64) -> HotLine {
        HotLine {
            point: point.clone(),
            name: self.name.clone(),
            transfers: self.transfers / operations,
            touched_by: self.cpus,
            readers: self.readers.clone(),
            writers: self.writers.clone(),
        }
    }
}

/// The lines that moved most in operations.
fn lines(counts: &Value) -> Vec<Moved> {
    let mut lines: Vec<Moved> = counts["lines"].as_array().into_iter().flatten().map(moved).collect();
    lines.sort_by(|a, b| b.transfers.total_cmp(&a.transfers));
    lines.truncate(MODELLED_LINES);
    lines
}

fn moved(line: &Value) -> Moved {
    let touches = || line["touched_by"].as_array().into_iter().flatten();
    let by = |wanted: fn(&str) -> bool| {
        let named = touches().filter(|touch| touch["access"].as_str().is_some_and(wanted));
        let names: BTreeSet<_> = named.filter_map(|touch| touch["pc"].as_str().map(str::to_owned)).collect();
        names.into_iter().collect::<Vec<_>>()
    };
    Moved {
        name: line["line"].as_str().unwrap_or("?").to_owned(),
        transfers: number(line, "in_operations"),
        cpus: members(line["cpus"].as_str().unwrap_or("")),
        readers: by(|access| access == "read"),
        writers: by(|access| access != "read"),
    }
}

/// How many numbers are in `0-3,7`.
fn members(ranges: &str) -> u32 {
    let count = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(last.parse::<u32>().ok()?.saturating_sub(first.parse().ok()?) + 1)
    };
    ranges.split(',').filter_map(count).sum()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn point() -> Point {
        Point {
            bench: "local".into(),
            system: "quire".into(),
            cpus: 2,
            threads: 2,
            npages: 1,
            ..Point::default()
        }
    }

    fn run() -> Measured {
        let said = json!({"right": true, "npages": 1, "per_thread": [
            {"thread": 0, "cpu": 0, "operations": 10, "brackets": 20, "window_ns": 1000},
            {"thread": 1, "cpu": 1, "operations": 10, "brackets": 20, "window_ns": 3000}]});
        let inside = json!({"instructions_user": 200, "instructions_kernel": 1800, "clearing": 100, "transfers": 60, "ipis": 20});
        let counts = json!({"complete": true, "stray_markers": 0,
            "totals": {"operations": 40, "in_operations": inside, "in_windows": {"periodic_instructions": 40}},
            "per_cpu": [{"in_operations": {"transfers": 20}}, {"in_operations": {"transfers": 40}}],
            "lines": [{"line": "0x40", "in_operations": 50, "cpus": "0-1", "touched_by": [
                {"pc": "0x1", "access": "read"}, {"pc": "0x2", "access": "update"}]}]});
        Measured { said, counts: Some(counts) }
    }

    #[test]
    fn counts_become_means_an_operation() {
        let results = counted(&point(), &run()).unwrap();
        let value = |metric: &str| results.value(&point(), metric).unwrap();
        assert_eq!((value("instructions"), value("clearing"), value("transfers")), (100.0, 5.0, 3.0));
        assert_eq!((value("transfers_max"), value("ipis"), value("periodic_instructions")), (4.0, 1.0, 2.0));
        // 105 cycles of instructions, three transfers in a socket, an interrupt sent and one received; and the wait for
        // the line that takes 2.5 of the transfers.
        let alone = 2.4e9 / (105.0 + 300.0 + 3000.0);
        assert!(value("throughput_per_cpu") < alone && value("throughput_per_cpu") > 0.8 * alone);
        assert_eq!(results.records[0].operations, 10);
        let line = &results.lines[0];
        assert_eq!((line.transfers, line.touched_by, line.writers.len()), (2.5, 2, 1));
    }

    #[test]
    fn a_run_that_is_not_right_gives_no_numbers() {
        let spoil = |path: &str, value: Value| {
            let mut run = run();
            let (which, pointer) = path.split_at(4);
            let object = if which == "said" { &mut run.said } else { run.counts.as_mut().unwrap() };
            *object.pointer_mut(pointer).unwrap() = value;
            counted(&point(), &run).err().map(|error| error.to_string())
        };
        assert!(spoil("said/right", json!(false)).unwrap().contains("read back"));
        assert!(spoil("cnts/complete", json!(false)).unwrap().contains("missed"));
        assert!(spoil("cnts/totals/operations", json!(39)).unwrap().contains("tracer saw 39"));
    }

    #[test]
    fn times_are_medians_with_their_extremes() {
        let mut runs = [run(), run(), run()];
        runs[0].said["per_thread"][0]["window_ns"] = json!(9000);
        runs[1].said["per_thread"][0]["window_ns"] = json!(2000);
        let results = timed(&point(), &runs);
        let ns = &results.records[0];
        assert_eq!((ns.value, ns.min, ns.max, ns.repeats), (250.0, 200.0, 600.0, 3));
        assert_eq!(results.records[1].max, 5e6);
    }

    #[test]
    fn sets_of_cpus_are_counted() {
        assert_eq!((members(""), members("7"), members("0-3,7"), members("0-79")), (0, 1, 5, 80));
    }
}

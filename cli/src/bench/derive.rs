//! From what a run said and what was counted to records.
//!
//! Everything is per operation and the mean over CPUs: sums inside of brackets, divided by the operations that the
//! benchmark says it did (an operation may have several brackets). Page clearing and periodic work are apart, as in
//! `docs/results.md`. Linux does not mark its page clearing, so there it is among the instructions.

use anyhow::{Context, Result, bail};
use cost::{Costs, Counts, Line};
use serde_json::Value;

use crate::{
    results::{Function, HotLine, Kind, Point, Record, Results},
    trace::{self, Report},
};

/// Lines for which the model lets CPUs queue; the others are too cold for that.
const MODELLED: usize = 64;
/// Lines, and functions, that are kept in the results.
const KEPT: usize = 12;
/// Functions that are told of a line.
const TOLD: usize = 4;

/// What one run gave.
pub struct Measured {
    /// The benchmark's own words.
    pub said: Value,
    /// What was counted, if it was.
    pub counts: Option<Counted>,
}

/// What the tracer counted.
pub struct Counted {
    /// Its own words.
    pub raw: Value,
    /// The same with names.
    pub report: Report,
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
    let Counted { raw: counts, report } = run.counts.as_ref().context("nothing was counted")?;
    let operations = checked(run, counts)?;
    let sum = |name: &str| number(&counts["totals"]["in_operations"], name);
    let each = |name: &str| sum(name) / operations;
    let (user, kernel, clearing) = (each("instructions_user"), each("instructions_kernel"), each("clearing"));
    let in_windows = |name: &str| number(&counts["totals"]["in_windows"], name);
    let window = |name: &str| in_windows(name) / operations;
    let worst = worst_cpu(run, counts);
    let queued: Vec<Line> = queued(counts, operations);
    let modelled = cost::model(
        &Costs::default(),
        point.cpus,
        &Counts {
            instructions: user + kernel + clearing,
            other_transfers: each("transfers") - queued.iter().map(|line| line.transfers).sum::<f64>(),
            lines: queued,
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
        ("periods", in_windows("periods"), "periods/window", Kind::Count),
        ("ipis", each("ipis"), "interrupts/operation", Kind::Count),
        ("targets", each("targets"), "interrupts/operation", Kind::Count),
        ("faults", each("faults"), "faults/operation", Kind::Count),
        ("throughput_per_cpu", modelled.throughput_per_cpu, "operations/s", Kind::Modelled),
    ];
    let per_thread = (operations / f64::from(point.threads)) as u64;
    // Known of Quire alone, whose kernel marks them.
    let of_quire = [
        ("faults_new", each("faults_new"), "faults/operation", Kind::Count),
        ("faults_fill", each("faults_fill"), "faults/operation", Kind::Count),
        ("faults_repair", each("faults_repair"), "faults/operation", Kind::Count),
        ("faults_copy", each("faults_copy"), "faults/operation", Kind::Count),
        ("epochs", in_windows("epochs"), "epochs/window", Kind::Count),
        ("grace_periods", in_windows("grace_periods"), "grace periods/window", Kind::Count),
    ];
    let rows = rows.into_iter().chain(of_quire.into_iter().filter(|_| point.system == "quire"));
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
    let lines = report.lines.iter().take(KEPT).map(|line| hot(point, line, operations)).collect();
    let functions = report.functions.iter().take(KEPT).map(|one| Function {
        point: point.clone(),
        name: one.name.clone(),
        instructions: one.in_operations as f64 / operations,
    });
    Ok(Results { records: records.collect(), lines, functions: functions.collect(), ..Results::default() })
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

/// The lines that moved most in operations, for the model.
fn queued(counts: &Value, operations: f64) -> Vec<Line> {
    let line = |line: &Value| Line {
        transfers: number(line, "in_operations") / operations,
        sharers: members(line["cpus"].as_str().unwrap_or("")),
    };
    let mut lines: Vec<Line> = counts["lines"].as_array().into_iter().flatten().map(line).collect();
    lines.sort_by(|a, b| b.transfers.total_cmp(&a.transfers));
    lines.truncate(MODELLED);
    lines
}

/// A line by name, for people.
fn hot(point: &Point, line: &trace::Line, operations: f64) -> HotLine {
    let by = |wanted: fn(&str) -> bool| {
        let mut names: Vec<String> = Vec::new();
        for touch in line.touches.iter().filter(|touch| wanted(&touch.access)) {
            let name = match trace::chain(&touch.functions) {
                unknown if unknown.is_empty() => format!("{:#x}", touch.pc),
                name => name,
            };
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names.truncate(TOLD);
        names
    };
    HotLine {
        point: point.clone(),
        name: trace::title(line),
        transfers: line.in_operations as f64 / operations,
        touched_by: members(&line.cpus.to_string()),
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
    use crate::symbols::Kallsyms;

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
        let inside = json!({"instructions_user": 200, "instructions_kernel": 1800, "clearing": 100, "transfers": 60, "ipis": 20,
            "targets": 10, "faults_new": 30});
        let counts = json!({"complete": true, "stray_markers": 0,
            "totals": {"operations": 40, "in_operations": inside, "in_windows": {"periodic_instructions": 40, "epochs": 3}},
            "per_cpu": [{"in_operations": {"transfers": 20}}, {"in_operations": {"transfers": 40}}],
            "lines": [{"line": "0x40", "in_operations": 50, "cpus": "0-1", "touched_by": [
                {"pc": "0xffffffff81000001", "access": "read"}, {"pc": "0xffffffff81000102", "access": "update"}]}],
            "profile": [{"pc": "0xffffffff81000110", "instructions": 300, "in_operations": 200}]});
        let kernel = Kallsyms::parse(b"ffffffff81000000 T f\nffffffff81000100 t g\n").unwrap();
        let names = trace::Names::from_sources(Box::new(kernel), Vec::new(), None);
        let report = Report::new(&counts.to_string(), &names).unwrap();
        Measured { said, counts: Some(Counted { raw: counts, report }) }
    }

    #[test]
    fn counts_become_means_an_operation() {
        let results = counted(&point(), &run()).unwrap();
        let value = |metric: &str| results.value(&point(), metric).unwrap();
        assert_eq!((value("instructions"), value("clearing"), value("transfers")), (100.0, 5.0, 3.0));
        assert_eq!((value("targets"), value("faults_new"), value("epochs")), (0.5, 1.5, 3.0));
        assert_eq!((value("transfers_max"), value("ipis"), value("periodic_instructions")), (4.0, 1.0, 2.0));
        // 105 cycles of instructions, three transfers in a socket, an interrupt sent and one received; and the wait for
        // the line that takes 2.5 of the transfers.
        let alone = 2.4e9 / (105.0 + 300.0 + 3000.0);
        assert!(value("throughput_per_cpu") < alone && value("throughput_per_cpu") > 0.8 * alone);
        assert_eq!(results.records[0].operations, 10);
        let line = &results.lines[0];
        assert_eq!((line.transfers, line.touched_by), (2.5, 2));
        assert_eq!((&line.readers[..], &line.writers[..]), (&["f".to_owned()][..], &["g".to_owned()][..]));
        assert_eq!((results.functions[0].name.as_str(), results.functions[0].instructions), ("g", 10.0));
    }

    #[test]
    fn a_run_that_is_not_right_gives_no_numbers() {
        let spoil = |path: &str, value: Value| {
            let mut run = run();
            let (which, pointer) = path.split_at(4);
            let object = if which == "said" { &mut run.said } else { &mut run.counts.as_mut().unwrap().raw };
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

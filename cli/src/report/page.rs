//! The report's page: one file, no network, legible on a phone and on paper.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde_json::Value;

use super::chart::{self, Chart, Line};
use crate::results::{Kind, Point, Results};

const STYLE: &str = include_str!("style.css");

/// Functions and lines shown of each point.
const ROWS: usize = 8;

/// The page.
pub fn page(results: &Results) -> Result<String> {
    let answer = super::answer(results);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "Quire: what an operation costs, and what CPUs share" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    p.brand { "Quire" }
                    h1 { (answer.sentence) }
                    @if let Some(group) = answer.group { (figure(results, &group, "transfers", true)?) }
                }
                main {
                    @for group in groups(results) { (section(results, &group)?) }
                    (parameters(results))
                }
            }
        }
    };
    Ok(page.into_string())
}

/// A benchmark with its pages: what one section is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    suite: String,
    bench: String,
    npages: u64,
}

impl Group {
    /// The group of `point`.
    pub fn of(point: &Point) -> Self {
        Self { suite: point.suite.clone(), bench: point.bench.clone(), npages: point.npages }
    }
}

fn groups(results: &Results) -> BTreeSet<Group> {
    results.records.iter().map(|record| Group::of(&record.point)).collect()
}

/// The lines of `metric`: a line for each system.
pub fn lines(results: &Results, group: &Group, metric: &str) -> Vec<Line> {
    let mut lines: BTreeMap<String, Vec<(u32, f64)>> = BTreeMap::new();
    for record in results.records.iter().filter(|r| r.metric == metric && Group::of(&r.point) == *group) {
        lines.entry(record.point.label()).or_default().push((record.point.cpus, record.value));
    }
    let sorted = |(name, mut points): (String, Vec<(u32, f64)>)| {
        points.sort_by_key(|point| point.0);
        Line { name, points }
    };
    lines.into_iter().map(sorted).collect()
}

fn figure(results: &Results, group: &Group, metric: &str, logarithmic: bool) -> Result<Markup> {
    let lines = lines(results, group, metric);
    if lines.is_empty() {
        return Ok(html! {});
    }
    let found = results.records.iter().find(|r| r.metric == metric && Group::of(&r.point) == *group);
    let modelled = if found.is_some_and(|r| r.kind == Kind::Modelled) { ", modelled" } else { "" };
    let unit = found.map_or("", |r| r.unit.as_str());
    let quantity =
        format!("{}: {}{modelled} ({unit})", found.map_or(String::new(), |r| r.point.title()), words(metric));
    let svg = chart::svg(&Chart { quantity: &quantity, lines: &lines, logarithmic })?;
    Ok(html! { figure aria-label=(quantity) { (PreEscaped(svg)) } })
}

/// A metric's name for people.
fn words(metric: &str) -> String {
    match metric {
        "throughput_per_cpu" => "throughput of each CPU".to_owned(),
        "ipis" => "interrupts sent".to_owned(),
        "clearing" => "clearing pages".to_owned(),
        "transfers" => "cache lines moved".to_owned(),
        "transfers_max" => "by the worst CPU".to_owned(),
        "periodic_transfers" => "by periodic work".to_owned(),
        "targets" => "CPUs flushed".to_owned(),
        "faults_new" => "faults: new frame".to_owned(),
        "faults_fill" => "entry for a frame".to_owned(),
        "faults_repair" => "entry mended".to_owned(),
        "faults_copy" => "copy".to_owned(),
        "periods" => "ticks in the window".to_owned(),
        "epochs" => "epochs in it".to_owned(),
        "grace_periods" => "grace periods in it".to_owned(),
        other => other.replace('_', " "),
    }
}

fn section(results: &Results, group: &Group) -> Result<Markup> {
    Ok(html! {
        section {
            h2 { (group.suite) ": " (group.bench) @if group.npages > 1 { ", " (group.npages) " pages" } }
            div.charts {
                (figure(results, group, "throughput_per_cpu", false)?)
                (figure(results, group, "transfers", true)?)
                (figure(results, group, "instructions", false)?)
            }
            (numbers(results, group))
            (hottest(results, group))
            (functions(results, group))
        }
    })
}

/// The points of a group, by system and number of CPUs.
fn points(results: &Results, group: &Group) -> Vec<Point> {
    let mut points: Vec<_> =
        results.records.iter().map(|r| r.point.clone()).filter(|p| Group::of(p) == *group).collect();
    points.sort_by_key(|p| (p.label(), p.cpus, p.clone()));
    points.dedup();
    points
}

fn numbers(results: &Results, group: &Group) -> Markup {
    const ALL: [&str; 17] = [
        "instructions",
        "clearing",
        "transfers",
        "transfers_max",
        "periodic_transfers",
        "ipis",
        "targets",
        "faults",
        "faults_new",
        "faults_fill",
        "faults_repair",
        "faults_copy",
        "periods",
        "epochs",
        "grace_periods",
        "ns",
        "throughput_per_cpu",
    ];
    let points = points(results, group);
    // Counts and times are measured apart.
    let columns: Vec<&str> =
        ALL.into_iter().filter(|metric| points.iter().any(|p| results.value(p, metric).is_some())).collect();
    html! {
        div.wide {
            table {
                caption { "Per operation, the mean over CPUs" }
                thead { tr { th { "system" } th { "CPUs" } @for column in &columns { th { (words(column)) } } } }
                tbody {
                    @for point in &points {
                        tr {
                            td { (point.label()) }
                            td { (point.cpus) }
                            @for column in &columns { td { (cell(results.value(point, column))) } }
                        }
                    }
                }
            }
        }
    }
}

/// A number with as many digits as mean something.
pub fn cell(value: Option<f64>) -> String {
    match value {
        None => "–".to_owned(),
        Some(v) if v >= 1000.0 => grouped(v.round() as u64),
        Some(v) if v >= 100.0 => format!("{v:.0}"),
        Some(v) => format!("{v:.2}"),
    }
}

/// Digits in threes.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

/// Each system's point with the most CPUs, where the curve has been bent most.
fn largest(points: impl Iterator<Item = Point>) -> Vec<Point> {
    let mut largest: BTreeMap<String, Point> = BTreeMap::new();
    for point in points {
        let entry = largest.entry(point.label()).or_insert_with(|| point.clone());
        if point.cpus > entry.cpus {
            *entry = point;
        }
    }
    largest.into_values().collect()
}

fn hottest(results: &Results, group: &Group) -> Markup {
    let of_group = results.lines.iter().map(|l| l.point.clone()).filter(|p| Group::of(p) == *group);
    html! {
        @for point in largest(of_group) {
            div.wide {
                table {
                    caption { "What moves between CPUs: " (point.label()) ", " (point.cpus) " CPUs" }
                    thead { tr { th { "line" } th { "transfers" } th { "CPUs" } th.name { "read by" } th.name { "written by" } } }
                    tbody {
                        @for line in results.lines.iter().filter(|l| l.point == point).take(ROWS) {
                            tr {
                                td.name { (line.name) }
                                td { (cell(Some(line.transfers))) }
                                td { (line.touched_by) }
                                td.name { (line.readers.join(", ")) }
                                td.name { (line.writers.join(", ")) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn functions(results: &Results, group: &Group) -> Markup {
    let of_group = results.functions.iter().map(|f| f.point.clone()).filter(|p| Group::of(p) == *group);
    html! {
        @for point in largest(of_group) {
            div.wide {
                table {
                    caption { "Where the instructions go: " (point.label()) ", " (point.cpus) " CPUs" }
                    thead { tr { th { "function" } th { "instructions" } } }
                    tbody {
                        @for f in results.functions.iter().filter(|f| f.point == point).take(ROWS) {
                            tr { td.name { (f.name) } td { (cell(Some(f.instructions))) } }
                        }
                    }
                }
            }
        }
    }
}

fn parameters(results: &Results) -> Markup {
    let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    html! {
        section {
            h2 { "How this was measured" }
            p {
                "Counts come from an emulated multiprocessor that is the same from run to run. A cache line moves when a \
                 CPU reads what another has written since, or writes what another has read or written since; lines are of \
                 64 bytes, caches are unlimited. Throughput that is called modelled is derived from the counts, not timed. \
                 To measure again: "
                code { "cargo quire bench mapbench --vs linux --accel exact && cargo quire report" }
            }
            dl { @for (name, value) in &results.machine { dt { (name) } dd { (plain(value)) } } }
        }
    }
}

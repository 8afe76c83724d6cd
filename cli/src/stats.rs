//! The counters that the kernel sends at the end of a run, as a table.
//!
//! The record is `{"cpus": N, "counters": {name: [one a CPU]}, "unknown_syscalls": {number: times}, "frames": {kind:
//! number}}`, if there were more unknown calls than the kernel tells apart `"more_unknown_syscalls": times`, and from the
//! sanitized kernel `"edges": {"covered": N, "total": N}`. Names are the kernel's and shown as they come, so that a new
//! counter needs no change here.

use std::fmt::Write;

use anyhow::{Context, Result};
use serde_json::{Map, Value};

/// With more CPUs than this, the table shows sums and extremes instead of a column for each.
const MAX_COLUMNS: usize = 8;
/// So many unknown calls are listed, those that were made most often.
const MAX_UNKNOWN: usize = 16;

/// The table.
pub fn table(json: &str) -> Result<String> {
    let stats: Value = serde_json::from_str(json).context("the kernel's counters are not JSON")?;
    let mut text = String::new();
    counters(&mut text, object(&stats, "counters")?);
    unknown_calls(&mut text, &stats)?;
    if let Some((covered, total)) = edges(&stats) {
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(text, "edges of the kernel's control flow: {covered} of {total} taken");
    }
    let frames: Vec<_> = object(&stats, "frames")?.iter().map(|(name, n)| format!("{name} {n}")).collect();
    // Linux keeps no such account.
    if !frames.is_empty() {
        let _ = write!(text, "page frames: {}", frames.join(", "));
    }
    Ok(text)
}

fn unknown_calls(text: &mut String, stats: &Value) -> Result<()> {
    let times = |value: &Value| value.as_u64().unwrap_or(0);
    let mut calls: Vec<_> =
        object(stats, "unknown_syscalls")?.iter().map(|(nr, n)| (nr.as_str(), times(n))).collect();
    if calls.is_empty() {
        return Ok(());
    }
    // Of two that were made as often, the lower number, which is the shorter one or comes first.
    calls.sort_by_key(|&(nr, n)| (std::cmp::Reverse(n), nr.len(), nr));
    let rest = calls.split_off(calls.len().min(MAX_UNKNOWN));
    let listed: Vec<_> = calls.iter().map(|(nr, n)| format!("{nr} x{n}")).collect();
    let _ = write!(text, "unknown system calls by number: {}", listed.join(", "));
    let not_told_apart = stats.get("more_unknown_syscalls").map_or(0, times);
    let more = rest.iter().map(|(_, n)| n).sum::<u64>() + not_told_apart;
    if more > 0 {
        let _ = write!(text, "; others x{more}");
    }
    text.push('\n');
    Ok(())
}

fn counters(text: &mut String, counters: &Map<String, Value>) {
    let rows: Vec<(&str, Vec<u64>)> = counters
        .iter()
        .map(|(name, row)| {
            (name.as_str(), row.as_array().into_iter().flatten().filter_map(Value::as_u64).collect())
        })
        .collect();
    let cpus = rows.iter().map(|row| row.1.len()).max().unwrap_or(0);
    let columns = match cpus {
        0..=MAX_COLUMNS => (0..cpus).map(|cpu| format!("cpu {cpu}")).collect(),
        _ => vec!["least".to_owned(), "most".to_owned()],
    };
    let mut line = |name: &str, all: String, cells: Vec<String>| {
        let cells: String = cells.iter().map(|cell| format!("{cell:>12}")).collect();
        let _ = writeln!(text, "{name:24}{all:>12}{cells}");
    };
    line("counter", "all".to_owned(), columns);
    for (name, row) in rows {
        let cells = match cpus {
            0..=MAX_COLUMNS => row.iter().map(u64::to_string).collect(),
            _ => [row.iter().min(), row.iter().max()].map(|n| n.copied().unwrap_or(0).to_string()).to_vec(),
        };
        line(name, row.iter().sum::<u64>().to_string(), cells);
    }
}

/// What is wrong with the page frames' accounts, if anything: every frame is free, in a cache, or owned, and none is
/// still owned by a program that has gone.
pub fn accounting_error(json: &str) -> Option<String> {
    let Ok(stats) = serde_json::from_str::<Value>(json) else {
        return Some("the counters are not JSON".to_owned());
    };
    let Ok(frames) = object(&stats, "frames") else {
        return Some("no account of the page frames".to_owned());
    };
    let number = |name: &str| frames.get(name).and_then(Value::as_i64).unwrap_or(0);
    let (total, sum) = (number("total"), number("free") + number("cached") + number("owned"));
    if total == 0 || total != sum {
        return Some(format!("page frames: free + cached + owned = {sum}, total {total}"));
    }
    let leaked = number("leaked");
    (leaked != 0).then(|| format!("{leaked} page frames are owned by programs that have ended"))
}

/// How many edges of its control flow the sanitized kernel took, and how many there are.
pub fn edges_taken(json: &str) -> Option<(u64, u64)> {
    edges(&serde_json::from_str(json).ok()?)
}

fn edges(stats: &Value) -> Option<(u64, u64)> {
    let edges = stats.get("edges")?;
    Some((edges.get("covered")?.as_u64()?, edges.get("total")?.as_u64()?))
}

fn object<'a>(stats: &'a Value, name: &str) -> Result<&'a Map<String, Value>> {
    stats
        .get(name)
        .and_then(Value::as_object)
        .with_context(|| format!("the kernel's counters lack \"{name}\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &str = r#"{"cpus":2,"counters":{"faults_read":[3,4],"mmaps":[1,0]},"unknown_syscalls":{"318":2},
        "frames":{"total":100,"free":80,"cached":15,"owned":5,"leaked":0}}"#;

    #[test]
    fn few_cpus_have_a_column_each() {
        let text = table(JSON).unwrap();
        let words = |line: usize| text.lines().nth(line).unwrap().split_whitespace().collect::<Vec<_>>();
        assert_eq!(words(0), ["counter", "all", "cpu", "0", "cpu", "1"]);
        assert_eq!(words(1), ["faults_read", "7", "3", "4"]);
        assert!(text.contains("unknown system calls by number: 318 x2\n"));
        assert!(text.ends_with("page frames: cached 15, free 80, leaked 0, owned 5, total 100"));
    }

    #[test]
    fn the_most_frequent_unknown_calls_are_listed_and_the_others_counted() {
        let with = |calls: &str, more: &str| {
            let json = JSON.replace(r#"{"318":2}"#, &format!("{{{calls}}}{more}"));
            let text = table(&json).unwrap();
            text.lines().find(|line| line.starts_with("unknown")).map(str::to_owned)
        };
        assert_eq!(with("", ""), None);
        let many: Vec<_> =
            (400..=420).map(|nr| format!(r#""{nr}":{}"#, if nr == 415 { 7 } else { 2 })).collect();
        let listed: Vec<_> = (400..415).map(|nr| format!("{nr} x2")).collect();
        let line = format!("unknown system calls by number: 415 x7, {}; others x", listed.join(", "));
        assert_eq!(with(&many.join(","), ""), Some(format!("{line}10")));
        assert_eq!(with(&many.join(","), r#","more_unknown_syscalls":5"#), Some(format!("{line}15")));
        let few = r#""1000":1,"500":1"#;
        assert_eq!(with(few, "").unwrap(), "unknown system calls by number: 500 x1, 1000 x1");
    }

    #[test]
    fn the_sanitized_kernel_counts_edges() {
        let json = JSON.replace(r#""frames""#, r#""edges":{"covered":12,"total":34},"frames""#);
        assert_eq!((edges_taken(&json), edges_taken(JSON)), (Some((12, 34)), None));
        assert!(table(&json).unwrap().contains("edges of the kernel's control flow: 12 of 34 taken\n"));
        assert!(!table(JSON).unwrap().contains("edges"));
    }

    #[test]
    fn many_cpus_are_summed_up() {
        let row: Vec<String> = (1..=80).map(|n| n.to_string()).collect();
        let json =
            format!(r#"{{"counters":{{"x":[{}]}},"unknown_syscalls":{{}},"frames":{{}}}}"#, row.join(","));
        let text = table(&json).unwrap();
        assert_eq!(
            text.lines().nth(1).unwrap().split_whitespace().collect::<Vec<_>>(),
            ["x", "3240", "1", "80"]
        );
    }

    #[test]
    fn the_accounts_must_balance() {
        assert_eq!(accounting_error(JSON), None);
        assert!(accounting_error(&JSON.replace("80", "79")).unwrap().contains("= 99, total 100"));
        assert!(
            accounting_error(&JSON.replace(r#""leaked":0"#, r#""leaked":3"#)).unwrap().starts_with("3 page")
        );
        assert!(accounting_error("{}").is_some() && accounting_error("oops").is_some());
        assert!(table("{}").is_err() && table("oops").is_err());
    }
}

//! The answer at a glance.

use std::{collections::BTreeSet, fmt::Write};

use crate::results::{Point, Results};

/// Metrics that have a column, and its head.
const COLUMNS: [(&str, &str); 8] = [
    ("instructions", "instr/op"),
    ("clearing", "clearing"),
    ("transfers", "transfers"),
    ("ipis", "IPIs"),
    ("faults", "faults"),
    ("periods", "periods"),
    ("ns", "ns/op"),
    ("throughput_per_cpu", "ops/s/CPU"),
];

/// And those that have one if all are wanted.
const ALL_COLUMNS: [(&str, &str); 17] = [
    ("instructions", "instr/op"),
    ("clearing", "clearing"),
    ("transfers", "transfers"),
    ("transfers_max", "worst CPU"),
    ("periodic_transfers", "periodic"),
    ("ipis", "IPIs"),
    ("targets", "targets"),
    ("faults", "faults"),
    ("faults_new", "new"),
    ("faults_fill", "fill"),
    ("faults_repair", "repair"),
    ("faults_copy", "copy"),
    ("periods", "ticks"),
    ("epochs", "epochs"),
    ("grace_periods", "grace p."),
    ("ns", "ns/op"),
    ("throughput_per_cpu", "ops/s/CPU"),
];

/// So many epochs are to pass in a window for what it shows to be the steady state.
const STEADY_EPOCHS: f64 = 2.0;

/// A table of each benchmark: a row for each system and number of CPUs; with `all` columns, or the usual ones.
pub fn table(results: &Results, all: bool) -> String {
    let mut text = String::new();
    let mut points: Vec<&Point> = results.records.iter().map(|record| &record.point).collect();
    points.sort_by_key(|p| (p.bench.clone(), p.npages, p.cpus, p.label()));
    points.dedup();
    let titles: BTreeSet<(String, u64)> = points.iter().map(|p| (p.bench.clone(), p.npages)).collect();
    let columns: &[_] = if all { &ALL_COLUMNS } else { &COLUMNS };
    let columns: Vec<_> =
        columns.iter().filter(|(metric, _)| results.records.iter().any(|r| r.metric == *metric)).collect();
    let counted = results.records.iter().any(|r| r.metric == "transfers");
    for (bench, npages) in titles {
        let of_title: Vec<_> = points.iter().filter(|p| p.bench == bench && p.npages == npages).collect();
        let Some(first) = of_title.first() else { continue };
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(text, "{}", first.title());
        let _ = write!(text, "{:>5}  {:24}", "CPUs", "system");
        text.extend(columns.iter().map(|(_, head)| format!("{head:>12}")));
        let _ = writeln!(
            text,
            "{}",
            if of_title.iter().any(|p| p.system == "linux") { "    to Linux" } else { "" }
        );
        for point in &of_title {
            let _ = write!(text, "{:>5}  {:24}", point.cpus, point.label());
            for (metric, _) in &columns {
                let _ = write!(text, "{:>12}", results.value(point, metric).map_or("-".to_owned(), digits));
            }
            if let Some(ratio) = ratio(results, &of_title, point) {
                text += &format!("{:>12}", format!("{ratio:.2}x"));
            }
            text.push('\n');
        }
        text.push('\n');
    }
    if all && counted {
        let short = |point: &&&Point| results.value(point, "epochs").is_some_and(|n| n < STEADY_EPOCHS);
        let short: Vec<_> = points.iter().filter(short).collect();
        if !short.is_empty() {
            let named = short.iter().map(|p| format!("{} on {} CPUs", p.title(), p.cpus));
            let named: BTreeSet<_> = named.collect();
            let named = named.into_iter().collect::<Vec<_>>().join("; ");
            let _ = writeln!(
                text,
                "no steady state: fewer than {STEADY_EPOCHS} epochs passed in {named} (--steady)"
            );
        }
        text += "transfers: of the mean and of the worst CPU, and those of periodic work. Targets: CPUs interrupted to flush. Faults:\n\
                 a new frame, an entry for a frame that was there, a too weak entry mended, a copy. Ticks, epochs of reference\n\
                 counts and grace periods are of all CPUs, in their windows.\n";
    }
    if counted {
        text += "per operation, the mean over CPUs; periods (ticks, and Linux's kernel threads) are those that fell into the\n\
                 windows, counted apart; throughput is modelled from the counts (docs/results.md)\n";
    }
    text
}

/// The throughput against the newest Linux's with as many CPUs.
fn ratio(results: &Results, of_title: &[&&Point], point: &Point) -> Option<f64> {
    let linux = of_title.iter().filter(|p| p.system == "linux" && p.cpus == point.cpus);
    let newest = linux.max_by_key(|p| version(p.linux_version.as_deref().unwrap_or("")))?;
    (**newest != point && point.system != "linux").then_some(())?;
    let rate = |point: &Point| results.value(point, "throughput_per_cpu").filter(|rate| *rate > 0.0);
    Some(rate(point)? / rate(newest)?)
}

/// The numbers of a version, to compare.
fn version(text: &str) -> Vec<u64> {
    text.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse().ok()).collect()
}

fn digits(n: f64) -> String {
    match n {
        n if n >= 1e6 => format!("{:.0}k", n / 1e3),
        n if n >= 100.0 => format!("{n:.0}"),
        n => format!("{n:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{Record, tests::sample};

    #[test]
    fn systems_stand_under_one_another_and_linux_is_the_measure() {
        let text = table(&sample(), false);
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[0], ["local,", "4", "pages"]);
        assert_eq!(rows[1], ["CPUs", "system", "instr/op", "transfers", "ops/s/CPU", "to", "Linux"]);
        assert_eq!(rows[2][..5], ["1", "Linux", "6.12", "14000", "0.20"]);
        assert_eq!(rows[3][..5], ["1", "Quire", "locked", "14000", "0.00"]);
        assert_eq!(rows[3].last(), Some(&"1.00x"));
        assert_eq!(rows[7].last(), Some(&"1.24x"));
    }

    #[test]
    fn a_window_without_epochs_is_told() {
        let mut results = sample();
        let transfers = results.records.iter().find(|r| r.metric == "transfers" && r.point.system == "quire");
        let epochs = Record { metric: "epochs".to_owned(), value: 1.0, ..transfers.unwrap().clone() };
        results.records.push(epochs);
        let text = table(&results, true);
        assert!(text.lines().nth(1).unwrap().contains(" epochs "), "{text}");
        assert!(text.contains("no steady state: fewer than 2 epochs passed in local, 4 pages on "), "{text}");
        results.records.last_mut().unwrap().value = 2.0;
        assert!(!table(&results, true).contains("no steady state"));
        assert!(!table(&results, false).contains("epochs"));
    }

    #[test]
    fn versions_are_compared_by_numbers() {
        assert!(version("6.12.117+deb12") > version("6.1.0-56") && version("6.2") < version("6.12"));
    }
}

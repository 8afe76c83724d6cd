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

/// A table of each benchmark: a row for each system and number of CPUs.
pub fn table(results: &Results) -> String {
    let mut text = String::new();
    let mut points: Vec<&Point> = results.records.iter().map(|record| &record.point).collect();
    points.sort_by_key(|p| (p.bench.clone(), p.npages, p.cpus, p.label()));
    points.dedup();
    let titles: BTreeSet<(String, u64)> = points.iter().map(|p| (p.bench.clone(), p.npages)).collect();
    let columns: Vec<_> =
        COLUMNS.iter().filter(|(metric, _)| results.records.iter().any(|r| r.metric == *metric)).collect();
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
    use crate::results::tests::sample;

    #[test]
    fn systems_stand_under_one_another_and_linux_is_the_measure() {
        let text = table(&sample());
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[0], ["local,", "4", "pages"]);
        assert_eq!(rows[1], ["CPUs", "system", "instr/op", "transfers", "ops/s/CPU", "to", "Linux"]);
        assert_eq!(rows[2][..5], ["1", "Linux", "6.12", "14000", "0.20"]);
        assert_eq!(rows[3][..5], ["1", "Quire", "locked", "14000", "0.00"]);
        assert_eq!(rows[3].last(), Some(&"1.00x"));
        assert_eq!(rows[7].last(), Some(&"1.24x"));
    }

    #[test]
    fn versions_are_compared_by_numbers() {
        assert!(version("6.12.117+deb12") > version("6.1.0-56") && version("6.2") < version("6.12"));
    }
}

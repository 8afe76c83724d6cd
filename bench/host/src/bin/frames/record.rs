//! Numbers: of one measurement, of many, and of others' measurements.

use serde::Serialize;

use crate::{
    case::{Case, IDS},
    team::Meter,
};

/// What one measurement gave. A metric's name ends in its unit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// By metric.
    pub values: Vec<(String, f64)>,
    /// Gets that found nothing, where there should have been something.
    pub failures: u64,
}

impl Outcome {
    /// Nanoseconds an operation for each phase: of the threads' processor time, and with more than one thread also of
    /// time on the wall.
    pub fn timed(meter: &Meter, threads: usize) -> Self {
        let mut outcome = Self::default();
        for (name, phase) in meter.phases().iter().filter(|(_, phase)| phase.operations > 0) {
            let each = |ns: f64| ns / phase.operations as f64;
            outcome = outcome.with(format!("{name}_ns"), each(phase.cpu));
            if threads > 1 {
                outcome = outcome.with(format!("{name}_wall_ns"), each(phase.wall));
            }
        }
        outcome
    }

    /// With one more number.
    pub fn with(mut self, metric: impl Into<String>, value: f64) -> Self {
        self.values.push((metric.into(), value));
        self
    }

    /// With so many gets that found nothing.
    pub fn failed(mut self, failures: u64) -> Self {
        self.failures += failures;
        self
    }

    /// A number, if there is one of that name.
    pub fn value(&self, metric: &str) -> Option<f64> {
        self.values.iter().find(|(name, _)| name == metric).map(|(_, value)| *value)
    }
}

/// Where a number comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// This run.
    Measured,
    /// A file that says it was measured on this machine.
    Imported,
    /// Another machine.
    Elsewhere,
}

/// One metric of one subject in one case.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Record {
    /// `B1` to `B11`.
    pub id: String,
    /// Which of that.
    pub case: String,
    /// CPUs of the allocator; threads, unless one thread acts for all (B6).
    pub threads: usize,
    /// Whose number it is.
    pub subject: String,
    /// Its name, which ends in its unit.
    pub metric: String,
    /// The median.
    pub median: f64,
    /// The quartiles.
    pub quartiles: [f64; 2],
    /// The least.
    pub min: f64,
    /// How many numbers these are of.
    pub repeats: usize,
    /// Where they come from.
    pub source: Source,
}

impl Record {
    /// Of many numbers.
    pub fn of(case: &Case, subject: &str, metric: &str, values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        Self {
            id: case.id.to_owned(),
            case: case.name.clone(),
            threads: case.setup.cpus,
            subject: subject.to_owned(),
            metric: metric.to_owned(),
            median: quantile(&sorted, 0.5),
            quartiles: [quantile(&sorted, 0.25), quantile(&sorted, 0.75)],
            min: quantile(&sorted, 0.0),
            repeats: sorted.len(),
            source: Source::Measured,
        }
    }

    /// Of a single number, from somewhere else.
    fn single(words: [&str; 3], threads: usize, metric: &str, value: f64, source: Source) -> Self {
        let [id, case, subject] = words.map(str::to_owned);
        let (metric, quartiles) = (metric.to_owned(), [value, value]);
        Self { id, case, threads, subject, metric, median: value, quartiles, min: value, repeats: 1, source }
    }

    /// Another metric, computed from this one and others.
    fn following(&self, metric: &str, value: f64) -> Self {
        let words = [self.id.as_str(), &self.case, &self.subject];
        Self::single(words, self.threads, metric, value, self.source)
    }

    /// Whether it belongs to the case.
    pub fn is_of(&self, case: &Case) -> bool {
        (self.id.as_str(), &self.case, self.threads) == (case.id, &case.name, case.setup.cpus)
    }
}

/// Between the two nearest, as far as `part` lies from either.
fn quantile(sorted: &[f64], part: f64) -> f64 {
    let at = part * sorted.len().saturating_sub(1) as f64;
    let near = |n: f64| sorted.get(n as usize).copied().unwrap_or(f64::NAN);
    let (low, high) = (near(at.floor()), near(at.ceil()));
    low + (high - low) * at.fract()
}

/// The median of one subject's metric among records of one case.
pub fn median(records: &[Record], of: &Record, subject: &str, metric: &str) -> Option<f64> {
    let same = |r: &&Record| r.id == of.id && r.case == of.case && r.threads == of.threads;
    let found = records.iter().filter(same).find(|r| r.subject == subject && r.metric == metric);
    found.map(|r| r.median)
}

/// What follows from several cases of a subject: of B7, how much slower it is with all threads than with one; of B8, how
/// much its slowest size takes longer than its fastest.
pub fn derived(records: &[Record]) -> Vec<Record> {
    let mut found = Vec::new();
    for r in records.iter().filter(|r| r.id == "B7" && r.threads > 1) {
        let name = match r.metric.as_str() {
            "get_ns" => "get_loss_pct",
            "put_ns" => "put_loss_pct",
            _ => continue,
        };
        let alone = Record { threads: 1, ..r.clone() };
        if let Some(alone) = median(records, &alone, &r.subject, &r.metric) {
            found.push(r.following(name, (r.median / alone - 1.0) * 100.0));
        }
    }
    let last_word = |r: &Record| r.case.split_once(' ').map(|(_, order)| order.to_owned());
    let mut seen = Vec::new();
    for r in records.iter().filter(|r| r.id == "B8" && r.metric == "pair_ns") {
        let key = (r.subject.clone(), last_word(r), r.source);
        if seen.contains(&key) {
            continue;
        }
        let alike = |o: &&Record| {
            o.id == "B8"
                && o.metric == r.metric
                && (&o.subject, &last_word(o), &o.source) == (&key.0, &key.1, &key.2)
        };
        let all = || records.iter().filter(alike).map(|r| r.median);
        let (least, most) = (all().fold(f64::INFINITY, f64::min), all().fold(0.0, f64::max));
        let sizes = Record { case: format!("all {}", key.1.as_deref().unwrap_or("")), ..r.clone() };
        found.push(sizes.following("spread_pct", (most / least - 1.0) * 100.0));
        seen.push(key);
    }
    found
}

/// LLFree, as it isn't a crate that can be compiled in: its Rust version, commit 441c8d1, on a server-class x86-64 guest
/// with 2 CPUs, 2 GiB of memory, one thread, the least of five. B6 was 84 to 93 %.
pub fn elsewhere() -> Vec<Record> {
    let figures: [(&str, &str, &str, f64); 8] = [
        ("B1", "bulk", "get_ns", 33.7),
        ("B1", "bulk", "put_ns", 27.9),
        ("B2", "pair empty", "pair_ns", 58.3),
        ("B3", "random", "get_ns", 32.5),
        ("B3", "random", "put_ns", 27.7),
        ("B5", "order 9", "get_ns", 49.3),
        ("B5", "order 9", "put_ns", 21.4),
        ("B5", "order 9", "pair_ns", 44.6),
    ];
    let record = |(id, case, metric, value)| {
        Record::single([id, case, LLFREE_ELSEWHERE], 1, metric, value, Source::Elsewhere)
    };
    figures.into_iter().map(record).collect()
}

/// Its name where it was measured on this machine, and where it was not.
pub const LLFREE: &str = "llfree";
pub const LLFREE_ELSEWHERE: &str = "llfree, elsewhere";

/// The first columns of a file of results.
const COLUMNS: [&str; 4] = ["subject", "id", "case", "threads"];

/// Results of others: a line of names, then a line for each subject and case; fields are separated by commas, an empty one
/// was not measured, and a line that begins with `#` says something to people.
pub fn import(text: &str) -> Result<Vec<Record>, String> {
    let mut lines =
        text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty() && !line.starts_with('#'));
    let (head, _) = lines.next().ok_or("there is nothing in it")?;
    let head = fields(head);
    let metrics = match head.strip_prefix(&COLUMNS[..]) {
        Some(metrics) if !metrics.is_empty() => metrics,
        _ => return Err(format!("the first line must be {},METRIC,…", COLUMNS.join(","))),
    };
    let mut records = Vec::new();
    for (line, number) in lines {
        let wrong = |what: &str| format!("line {number}: {what}");
        let line = fields(line);
        let [subject, id, case, threads, values @ ..] = &line[..] else {
            return Err(wrong("too few fields"));
        };
        if values.len() > metrics.len() {
            return Err(wrong("more fields than names"));
        }
        if !IDS.iter().any(|(known, _)| known == id) {
            return Err(wrong(&format!("no workload {id}")));
        }
        let threads = threads.parse().map_err(|_| wrong("threads is not a number"))?;
        for (metric, value) in metrics.iter().zip(values).filter(|(_, value)| !value.is_empty()) {
            match value.parse::<f64>() {
                Ok(value) if value.is_finite() => {
                    let words = [*id, *case, *subject];
                    records.push(Record::single(words, threads, metric, value, Source::Imported));
                }
                _ => return Err(wrong(&format!("{metric} is not a number"))),
            }
        }
    }
    Ok(records)
}

fn fields(line: &str) -> Vec<&str> {
    line.split(',').map(str::trim).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{subject::Setup, work::Work};

    #[test]
    fn medians_and_quartiles_lie_between() {
        let case = Case {
            id: "B1",
            name: "bulk".to_owned(),
            setup: Setup { frames: 512, cpus: 1 },
            work: Work::Bulk,
        };
        let record = Record::of(&case, "quire", "get_ns", &[4.0, 1.0, 2.0, 9.0]);
        assert_eq!((record.median, record.quartiles, record.min), (3.0, [1.75, 5.25], 1.0));
        let record = Record::of(&case, "quire", "get_ns", &[5.0]);
        assert_eq!((record.median, record.quartiles, record.min), (5.0, [5.0, 5.0], 5.0));
    }

    #[test]
    fn others_results_are_read() {
        let text = "# LLFree, measured here\n\
                    subject,id,case,threads,get_ns,put_ns\n\
                    llfree,B1,bulk,1,33.5, 27\n\
                    llfree,B1,bulk,2,,41\n";
        let records = import(text).unwrap();
        let found: Vec<_> = records.iter().map(|r| (r.threads, r.metric.as_str(), r.median)).collect();
        assert_eq!(found, [(1, "get_ns", 33.5), (1, "put_ns", 27.0), (2, "put_ns", 41.0)]);
        assert!(records.iter().all(|r| r.subject == LLFREE && r.source == Source::Imported));
    }

    #[test]
    fn losses_and_spreads_follow_from_several_cases() {
        let text = "subject,id,case,threads,get_ns,pair_ns\n\
                    a,B7,10000 a CPU,1,2\na,B7,10000 a CPU,2,2.2\nb,B7,10000 a CPU,1,5\n\
                    a,B8,50 in order,1,,4\na,B8,1000 in order,1,,5\na,B8,50 alternate,1,,7\n";
        let found = derived(&import(text).unwrap());
        let found: Vec<_> =
            found.iter().map(|r| (r.case.as_str(), r.threads, r.metric.as_str(), r.median.round())).collect();
        let expected = [
            ("10000 a CPU", 2, "get_loss_pct", 10.0),
            ("all in order", 1, "spread_pct", 25.0),
            ("all alternate", 1, "spread_pct", 0.0),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_its_line() {
        let refused = |lines: &str| import(&format!("subject,id,case,threads,get_ns\n{lines}")).unwrap_err();
        assert_eq!(refused("x,B1,bulk,1,fast"), "line 2: get_ns is not a number");
        assert_eq!(refused("x,B1,bulk,1,1\nx,B99,bulk,1,1"), "line 3: no workload B99");
        assert_eq!(refused("x,B1,bulk,one,1"), "line 2: threads is not a number");
        assert_eq!(refused("x,B1"), "line 2: too few fields");
        assert_eq!(refused("x,B1,bulk,1,1,2"), "line 2: more fields than names");
        assert!(import("").is_err() && import("subject,id\n").is_err());
    }
}

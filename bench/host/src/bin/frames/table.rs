//! Numbers for people.

use std::fmt::Write;

use crate::{
    record::{Record, Source},
    require::Verdict,
};

/// Columns of a metric, and of a subject's name.
const WIDTH: usize = 30;
const NAME: usize = 18;

/// The records of one case, a line for each subject; a metric is `median [quartiles] least`.
pub fn case(title: &str, records: &[&Record]) -> String {
    let (mut metrics, mut subjects) = (Vec::new(), Vec::new());
    for r in records.iter().filter(|r| !is_detail(&r.metric)) {
        if !metrics.contains(&r.metric.as_str()) {
            metrics.push(r.metric.as_str());
        }
        if !subjects.contains(&(r.subject.as_str(), r.source)) {
            subjects.push((r.subject.as_str(), r.source));
        }
    }
    let mut text = format!("{title}\n  {:NAME$}", "");
    text.extend(metrics.iter().map(|metric| format!("{metric:WIDTH$}")));
    let mut text = text.trim_end().to_owned() + "\n";
    for (subject, source) in subjects {
        let name =
            if source == Source::Imported { format!("{subject}, imported") } else { subject.to_owned() };
        let mut line = format!("  {name:NAME$}");
        for metric in &metrics {
            let found = records
                .iter()
                .find(|r| (r.subject.as_str(), r.source, r.metric.as_str()) == (subject, source, *metric));
            let cell = found.map_or("-".to_owned(), |r| cell(r));
            line += &format!("{cell:WIDTH$}");
        }
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// So many CPUs.
pub fn cpus(n: usize) -> String {
    if n == 1 { "1 CPU".to_owned() } else { format!("{n} CPUs") }
}

/// Numbers that only files have.
fn is_detail(metric: &str) -> bool {
    metric.starts_with("round_") || metric.starts_with("switch_") && metric != "switch_worst_ms"
}

fn cell(record: &Record) -> String {
    let n = digits(record.median);
    if record.repeats == 1 {
        return n;
    }
    let [low, high] = record.quartiles.map(digits);
    format!("{n} [{low} {high}] {}", digits(record.min))
}

fn digits(n: f64) -> String {
    match n.abs() {
        0.0 => "0".to_owned(),
        size if size >= 100.0 => format!("{n:.0}"),
        size if size >= 10.0 => format!("{n:.1}"),
        _ => format!("{n:.2}"),
    }
}

/// What was required beside what was measured.
pub fn verdicts(verdicts: &[Verdict]) -> String {
    let mut text = String::new();
    for v in verdicts {
        let met = match v.met {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "no verdict: the other's time is another machine's",
        };
        let what = format!("{} {}, {}, {}", v.id, v.case, cpus(v.threads), v.metric);
        let _ = writeln!(text, "  {what:48} {:34} {:10} {met}", v.required, v.measured);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::import;

    #[test]
    fn a_case_is_a_table() {
        let text =
            "subject,id,case,threads,get_ns,put_ns,round_1_pct\nb,B1,bulk,1,123.4,2.5,7\nc,B1,bulk,1,,10\n";
        let records = import(text).unwrap();
        let text = case("B1 bulk", &records.iter().collect::<Vec<_>>());
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[0], ["B1", "bulk"]);
        assert_eq!(rows[1], ["get_ns", "put_ns"]);
        assert_eq!(rows[2], ["b,", "imported", "123", "2.50"]);
        assert_eq!(rows[3], ["c,", "imported", "-", "10.0"]);
    }

    #[test]
    fn what_was_missed_is_called_so() {
        let verdict = |met| Verdict {
            id: "B1".into(),
            case: "bulk".into(),
            threads: 2,
            metric: "get_ns".into(),
            required: "at most 1".into(),
            measured: "2".into(),
            met,
        };
        let text = verdicts(&[verdict(Some(true)), verdict(Some(false)), verdict(None)]);
        let ends: Vec<_> = text.lines().map(|line| line.rsplit("  ").next().unwrap_or("").trim()).collect();
        assert!(
            ends[0].ends_with("met") && ends[1].ends_with("MISSED") && ends[2].contains("no verdict"),
            "{text}"
        );
    }
}

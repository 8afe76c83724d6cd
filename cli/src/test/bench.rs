//! What `bench` measures: the same to the last byte each time, and a conflict that is planted in each operation by its name.

use anyhow::Result;

use super::Report;
use crate::{args, bench, results::Results};

/// CPUs of the points.
const CPUS: [u32; 3] = [1, 2, 8];

pub fn run(report: &mut Report) -> Result<()> {
    report.doing("bench");
    let options = args::Bench {
        cpus: CPUS.to_vec(),
        mode: vec!["fault".into()],
        operations: Some(100),
        ..args::Bench::default()
    };
    let (one, other) = (bench::measure(&options)?, bench::measure(&options)?);
    let alike = serde_json::to_string(&one)? == serde_json::to_string(&other)?;
    report.record("two measurements are alike", if alike { Ok(()) } else { Err(differs(&one, &other)) });
    let planted = bench::measure(&args::Bench { plant_shared_counter: true, ..options })?;
    report.record("a planted conflict is counted by its name", counted(&one, &planted));
    Ok(())
}

fn differs(one: &Results, other: &Results) -> String {
    let found = one.records.iter().zip(&other.records).find(|(a, b)| a != b);
    found.map_or("not in the records".to_owned(), |(a, b)| format!("{a:?}\n{b:?}"))
}

/// Every fault moves the counter, unless its CPU was the last to fault: about one transfer an operation, and none where there
/// is one CPU or no counter. (Of all transfers that is too few to show under one lock, whose own vary by more with the
/// interleaving.)
fn counted(usual: &Results, planted: &Results) -> Result<(), String> {
    let counter = |results: &Results, cpus: u32| -> f64 {
        let named =
            results.lines.iter().filter(|l| l.name.contains("SHARED_COUNTER") && l.point.cpus == cpus);
        named.map(|line| line.transfers).sum()
    };
    for cpus in CPUS {
        let (with, without) = (counter(planted, cpus), counter(usual, cpus));
        let wanted = if cpus > 1 { 0.3..=1.0 } else { 0.0..=0.0 };
        if without != 0.0 || !wanted.contains(&with) {
            return Err(format!(
                "{with:.2} transfers an operation with {cpus} CPUs, {without:.2} without the counter"
            ));
        }
    }
    Ok(())
}

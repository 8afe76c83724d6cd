//! Subjects measured in turn, on threads that have a CPU each.

use std::{hint::black_box, sync::Barrier, thread, time::Duration};

use rustix::{
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
    time::{ClockId, clock_gettime},
};
use serde::Serialize;

/// What is measured: a thread's work, of so many operations, with its number.
pub struct Subject<'a> {
    name: &'static str,
    work: Box<dyn Fn(usize, u64) + Sync + 'a>,
}

impl<'a> Subject<'a> {
    pub fn new(name: &'static str, work: impl Fn(usize, u64) + Sync + 'a) -> Self {
        Self { name, work: Box::new(work) }
    }
}

/// A subject's cost, in nanoseconds of processor time for an operation: quartiles, over the turns.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    pub bench: String,
    pub subject: &'static str,
    pub threads: usize,
    pub ns: [f64; 3],
    /// Of the first subject's in the same turn.
    pub ratio: [f64; 3],
    #[serde(skip)]
    turns: Vec<f64>,
}

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Scale {
    pub threads: Vec<usize>,
    pub turns: usize,
    /// Operations of a thread in a turn, for what takes nanoseconds.
    pub operations: u64,
}

/// Processor time of this thread.
fn thread_clock() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// The host's CPUs that this process may use.
pub fn host_cpus() -> Vec<usize> {
    match sched_getaffinity(None) {
        Ok(set) => (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect(),
        Err(_) => vec![0],
    }
}

/// A turn: nanoseconds of processor time for an operation.
fn once(subject: &Subject<'_>, threads: usize, operations: u64, host: &[usize]) -> f64 {
    let barrier = Barrier::new(threads);
    let run = |number: usize| {
        let mut place = CpuSet::new();
        place.set(host[number % host.len()]);
        // If the host refuses, the threads are where it puts them.
        let _ = sched_setaffinity(None, &place);
        // What registers a thread does so here.
        (subject.work)(number, 1);
        barrier.wait();
        let begun = thread_clock();
        (subject.work)(black_box(number), operations);
        thread_clock() - begun
    };
    let total: Duration = thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = (0..threads).map(|number| scope.spawn(move || run(number))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a thread")).sum()
    });
    total.as_nanos() as f64 / (threads as f64 * operations as f64)
}

/// The values at the quarters of the order.
fn quartiles(values: &[f64]) -> [f64; 3] {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| values[(values.len() - 1) * quarter / 4])
}

/// Measure all subjects in turn.
pub fn measure(
    bench: impl Into<String>,
    threads: usize,
    turns: usize,
    operations: u64,
    subjects: &[Subject<'_>],
) -> Vec<Record> {
    let (host, bench) = (host_cpus(), bench.into());
    let mut costs = vec![Vec::new(); subjects.len()];
    for turn in 0..=turns {
        for (subject, costs) in subjects.iter().zip(&mut costs) {
            let cost = once(subject, threads, operations, &host);
            // The first turn warms everything up.
            if turn > 0 {
                costs.push(cost);
            }
        }
    }
    let record = |(subject, turns): (&Subject<'_>, &Vec<f64>)| Record {
        bench: bench.clone(),
        subject: subject.name,
        threads,
        ns: quartiles(turns),
        ratio: ratio(turns, &costs[0]),
        turns: turns.clone(),
    };
    subjects.iter().zip(&costs).map(record).collect()
}

fn ratio(turns: &[f64], base: &[f64]) -> [f64; 3] {
    quartiles(&turns.iter().zip(base).map(|(cost, base)| cost / base).collect::<Vec<_>>())
}

/// Quartiles of one subject's cost over the least of others' in the same turn.
pub fn against(records: &[Record], subject: &str, others: &[&str]) -> [f64; 3] {
    let turns = |name: &str| {
        let found = records.iter().find(|record| record.subject == name);
        found.map_or(&[][..], |record| &record.turns)
    };
    let least: Vec<_> = (0..turns(subject).len())
        .map(|turn| others.iter().map(|other| turns(other)[turn]).fold(f64::INFINITY, f64::min))
        .collect();
    ratio(turns(subject), &least)
}

/// Say what was measured.
pub fn print(records: &[Record]) {
    for record in records {
        let Record { subject, ns: [low, ns, high], ratio: [least, ratio, most], .. } = record;
        println!(
            "  {subject:22} {ns:9.2} [{low:.2} {high:.2}] ns   {ratio:7.2} [{least:.2} {most:.2}] of {}",
            records[0].subject
        );
    }
}

/// Say whether a ratio is as it should be.
pub fn verdict(what: &str, [low, ratio, high]: [f64; 3], most: f64) {
    let met = if ratio <= most { "met" } else { "MISSED" };
    println!("  {what}: {ratio:.2} [{low:.2} {high:.2}], at most {most:.2} wanted: {met}");
}

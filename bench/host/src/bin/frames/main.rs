//! Allocators of page frames, measured side by side: Quire's, two that are crates, and the floor below which none can go.
//!
//! **What is measured.** Threads, each on a CPU of its own, do one workload's calls on a fresh allocator of memory that
//! nobody touches. An operation's cost is the processor time of the threads that call, divided by their calls.
//!
//! **How.** All subjects of a workload are measured in turn, A B C A B C, so that whatever changes on the host while the
//! program runs happens to all of them. The first turns are dropped. Of the others there are the median, the quartiles
//! and the least.
//!
//! **What is checked.** Before it is timed, each workload runs once with a record of who owns which frame. A frame that
//! is handed out twice makes the exit status 1, as does a get that fails where memory is left.
//!
//! ```text
//! options.rs  the command line             subject.rs  what an allocator must do to be measured, and the check
//! case.rs     which workloads there are    peers.rs    other allocators      ours.rs  Quire's
//! work.rs     what is timed                churn.rs    fragmentation         team.rs  threads and clocks
//! record.rs   medians, others' results     require.rs  what is required      table.rs host.rs  what is said
//! ```
//! `docs/frames-bench.md` says what the workloads and the columns mean, and how results of others are imported.

mod case;
mod churn;
mod host;
mod options;
mod ours;
mod peers;
mod record;
mod require;
mod subject;
mod table;
mod team;
mod work;

use std::{
    collections::BTreeMap,
    fs,
    io::{IsTerminal, Write, stderr, stdout},
    path::Path,
    process::ExitCode,
};

use serde_json::{Value, json};

use crate::{
    case::{Case, IDS, Kind},
    options::Options,
    record::Record,
};

/// The version of the file's layout.
const VERSION: u32 = 1;

fn main() -> ExitCode {
    match Options::from_command_line().and_then(|options| run(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(problem) => {
            eprintln!("frames: {problem}");
            ExitCode::from(2)
        }
    }
}

/// Measure what the options say, show it and write it; whether nothing was wrong.
fn run(options: &Options) -> Result<bool, String> {
    // Every mistake shows before anything runs.
    let others = others(options)?;
    let mut host = host::describe();
    host.insert("load_before", json!(host::load()));
    show(&format!("{}\n", introduction(options, &host)));
    let (mut records, mut faults) = (others, Vec::new());
    let mut title = "";
    for case in case::cases(options) {
        if title != case.id {
            title = case.id;
            let about = IDS.iter().find(|(id, _)| *id == title).map_or("", |(_, about)| about);
            show(&format!("{title}  {about}\n"));
        }
        faults.extend(faults_of(&case));
        let (measured, failed) = measure(&case, options);
        records.extend(measured);
        faults.extend(failed);
        let of_case: Vec<_> = records.iter().filter(|r| r.is_of(&case)).collect();
        show(&table::case(&heading(&case), &of_case));
    }
    let derived = record::derived(&records);
    if !derived.is_empty() {
        show("B7, B8  across sizes and numbers of CPUs\n");
        for (i, one) in derived.iter().enumerate() {
            let same = |r: &&Record| (&r.case, r.threads) == (&one.case, one.threads);
            if derived.iter().position(|r| same(&r)) == Some(i) {
                let all: Vec<_> = derived.iter().filter(same).collect();
                show(&table::case(&format!("{}, {}", one.case, table::cpus(one.threads)), &all));
            }
        }
    }
    records.extend(derived);
    let verdicts = require::verdicts(&records);
    show(&format!("required\n\n{}", table::verdicts(&verdicts)));
    host.insert("load_after", json!(host::load()));
    show(&format!("load {} before, {} after", host["load_before"], host["load_after"]));
    for fault in &faults {
        eprintln!("frames: {fault}");
    }
    if let Some(path) = &options.json {
        let settings = json!({
            "repeats": options.repeats, "warm_up": options.warm_up, "seed": options.seed, "quick": options.quick,
            "threads": options.threads,
        });
        let all = json!({
            "program": "frames", "version": VERSION, "host": host, "options": settings, "records": records,
            "verdicts": verdicts, "faults": faults,
        });
        fs::write(path, format!("{all:#}\n")).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(faults.is_empty())
}

/// What was measured by others.
fn others(options: &Options) -> Result<Vec<Record>, String> {
    let mut records = record::elsewhere();
    for path in &options.import {
        let of_file = |problem: String| format!("{}: {problem}", Path::display(path));
        let text = fs::read_to_string(path).map_err(|error| of_file(error.to_string()))?;
        records.extend(record::import(&text).map_err(of_file)?);
    }
    Ok(records)
}

fn introduction(options: &Options, host: &BTreeMap<&str, Value>) -> String {
    let facts: Vec<_> = host.iter().map(|(name, value)| format!("{name} {value}")).collect();
    let mut text = format!(
        "frames: {} repeats after {}, threads {:?}, seed {}\n{}\n\
         a number is: median [quartiles] least; times are processor time of the callers, *_wall_ns the clock on the wall",
        options.repeats,
        options.warm_up,
        options.threads,
        options.seed,
        facts.join(", ")
    );
    let cpus = team::host_cpus().len();
    if options.threads.iter().any(|n| *n > cpus) {
        text +=
            &format!("\nthis host has {cpus} CPUs: more threads take turns, and say nothing about more CPUs");
    }
    if options.quick || cfg!(debug_assertions) {
        text += "\nthis shows whether it works: not its speed";
    }
    text
}

fn heading(case: &Case) -> String {
    format!("{}, {}, {} MiB", case.name, table::cpus(case.setup.cpus), case.setup.frames >> 8)
}

fn called(case: &Case) -> String {
    format!("{} {}, {}", case.id, case.name, table::cpus(case.setup.cpus))
}

/// What is wrong with the subjects of a case.
fn faults_of(case: &Case) -> Vec<String> {
    let mut faults = Vec::new();
    for kind in Kind::ALL.into_iter().filter(|kind| kind.fits(case)) {
        say(&format!("{} {}: checking {}", case.id, case.name, kind.name()));
        if let Some(found) = case.check(kind).filter(|found| !found.are_right()) {
            faults.push(format!("{}: {}: {found:?}", called(case), kind.name()));
        }
    }
    faults
}

/// All numbers of a case, and what was wrong.
fn measure(case: &Case, options: &Options) -> (Vec<Record>, Vec<String>) {
    let kinds: Vec<_> = Kind::ALL.into_iter().filter(|kind| kind.fits(case)).collect();
    let (warm_up, repeats) = if case.work.is_counted() { (0, 1) } else { (options.warm_up, options.repeats) };
    let mut values: Vec<(Kind, String, Vec<f64>)> = Vec::new();
    let mut faults = Vec::new();
    for turn in 0..warm_up + repeats {
        for &kind in &kinds {
            say(&format!("{} {}: {} of {repeats}", case.id, case.name, (turn + 1).saturating_sub(warm_up)));
            let outcome = case.measure(kind);
            if turn < warm_up {
                continue;
            }
            // Only where CPUs need each other's memory may that be more than a fault.
            let judged = case.id == "B9";
            if outcome.failures > 0 && !judged {
                faults.push(format!("{}: {}: {} gets failed", called(case), kind.name(), outcome.failures));
            }
            let failures = judged.then(|| ("failures".to_owned(), outcome.failures as f64));
            for (metric, value) in outcome.values.into_iter().chain(failures) {
                match values.iter_mut().find(|(k, m, _)| *k == kind && *m == metric) {
                    Some((.., all)) => all.push(value),
                    None => values.push((kind, metric, vec![value])),
                }
            }
        }
    }
    say("");
    values.sort_by_key(|(kind, ..)| Kind::ALL.iter().position(|k| k == kind));
    let records = values.iter().map(|(kind, metric, all)| Record::of(case, kind.name(), metric, all));
    (records.collect(), faults)
}

/// A line of results, or several.
fn show(text: &str) {
    // Whoever has stopped reading may still want the file.
    let _ = writeln!(stdout(), "{text}");
}

/// What is being done, on a terminal.
fn say(what: &str) {
    if stderr().is_terminal() {
        // Nobody needs to know that the terminal has gone.
        let _ = write!(stderr(), "\r\x1b[K{what}");
    }
}

//! The frame allocator's calls in sequences that libFuzzer looks for, by what they reach in the code, under
//! AddressSanitizer, on the host (`crates/frames/tests/fuzz.rs`). A planted fault must be found, and tables that are too
//! short must be reported.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result};

use super::{
    Report, output,
    races::{TARGET, instrumented},
};
use crate::{child, needs, workspace};

/// What libFuzzer wants of the compiler: counters of edges, and the operands of comparisons.
const FLAGS: [&str; 8] = [
    "--cfg",
    "fuzzing",
    "-Zsanitizer=address",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];
/// Seconds of looking, as usual and with `--full`.
const SECONDS: [u64; 2] = [60, 900];
/// Building takes at most so much longer.
const BUILD_LIMIT: Duration = Duration::from_secs(15 * 60);
/// A fault that is planted, and what is said of it.
const PLANTED: [(&str, &str); 2] = [
    ("frames-release-early", "tests/calls/mod.rs"),
    ("frames-short-tables", "AddressSanitizer: heap-buffer-overflow"),
];
/// Sequences to begin with, made up at random.
const SEEDS: u64 = 64;
/// The longest, in bytes.
const MOST_BYTES: u64 = 1024;

/// How many tests there are.
pub const TESTS: usize = 1 + PLANTED.len();

/// Run them; `begin` is told which, by its number. Gives how many sequences were tried.
pub fn run(report: &mut Report, full: bool, begin: impl Fn(&Report, usize, &str)) -> Result<String> {
    if workspace::which("g++").is_none() {
        needs::install(&["g++"], "g++ missing")?;
    }
    let seconds = SECONDS[usize::from(full)];
    begin(report, 0, "frames, random calls");
    let end = search(None, seconds)?;
    let text = end.text();
    let clean = if end.success() { Ok(()) } else { Err(format!("{}\n{}", end.ending(), output::tail(&end))) };
    report.record("frames, random calls", clean);
    for (i, (fault, told)) in PLANTED.into_iter().enumerate() {
        let name = format!("{fault} is found");
        begin(report, 1 + i, &name);
        let end = search(Some(fault), SECONDS[0])?;
        let found = !end.success() && end.text().contains(told);
        report.record(&name, if found { Ok(()) } else { Err(output::tail(&end)) });
    }
    let done = text.lines().rfind(|line| line.starts_with("Done "));
    let runs = done.and_then(|line| line.split(' ').nth(1)).unwrap_or("no");
    Ok(format!("{runs} sequences of calls"))
}

/// Look for so many seconds, with `awake` as the fault, if any.
fn search(awake: Option<&str>, seconds: u64) -> Result<child::Finished> {
    let place = tempfile::tempdir().context("cannot make a directory for the sequences")?;
    seed(place.path())?;
    let mut command = instrumented("fuzz", &FLAGS);
    command.args(["test", "-p", "quire-frames", "--features", "mutants", "--test", "fuzz"]);
    command.args(["--target", TARGET, "--"]).arg(place.path());
    command.args([format!("-max_total_time={seconds}"), format!("-max_len={MOST_BYTES}")]);
    // From the beginning as long as they may be; what the program leaks once is no error; nothing is left here.
    command.args(["-len_control=0", "-detect_leaks=0"]);
    command.arg(format!("-artifact_prefix={}/found-", place.path().display()));
    if let Some(awake) = awake {
        command.env("QUIRE_MUTANT", awake);
    }
    child::lines(&mut command, BUILD_LIMIT + Duration::from_secs(2 * seconds), |_| ())
}

/// Sequences to begin with (xorshift, Marsaglia 2003).
fn seed(place: &Path) -> Result<()> {
    let mut random: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut byte = |_| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random >> 32) as u8
    };
    for i in 1..=SEEDS {
        let bytes: Vec<u8> = (0..i * MOST_BYTES / SEEDS).map(&mut byte).collect();
        fs::write(place.join(format!("seed-{i}")), bytes).context("cannot write a sequence")?;
    }
    Ok(())
}

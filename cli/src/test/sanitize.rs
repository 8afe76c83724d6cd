//! The sanitized kernel (`kernel/src/sanitize`): its own tests, mistakes that it must report, the guest programs that
//! reach most of it, and random system calls.

use anyhow::Result;

use super::{
    Report, kernel as kernel_tests,
    linux::{self, Case},
    manifest,
};
use crate::{
    guest::{self, Toolchain},
    kernel::{self, Build},
    machine::Machine,
    needs::{self, Tool},
    session::{End, Outcome},
    stats,
};

/// What the kernel can be told to do wrong, and what its report must say.
const MISTAKES: [(&str, &str); 6] = [
    ("use-after-free", "sanitizer: use after free: load of 8 bytes at 0x"),
    (
        "out-of-bounds-read",
        "sanitizer: out of bounds of the heap, behind an allocation: load of 1 bytes at 0x",
    ),
    ("double-free", "is freed, and is no allocation"),
    ("stack-variable-overrun", "sanitizer: out of bounds of a variable on the stack: load of 4 bytes at 0x"),
    ("store-to-free-frame", "was written while free"),
    ("stack-smash", "sanitizer: a function's frame was overwritten past its variables"),
];
/// Guest programs, by the beginning of their names in the manifest.
const PROGRAMS: [&str; 11] =
    ["mapfork", "mm", "threads", "futex", "signals", "files", "calls_", "traps", "elfs", "storm", "inject"];
/// A machine for each of them has at most so many CPUs.
const MOST_CPUS: u32 = 8;
/// So many times longer than usual they may take.
const SLOWER: u32 = 6;

/// Runs of random calls: CPUs, how many calls, the seed, processes, threads of each.
const FUZZ: [(u32, u32, u32, u32, u32); 4] =
    [(1, 40_000, 1, 1, 1), (2, 120_000, 2, 3, 2), (4, 120_000, 3, 4, 3), (8, 60_000, 4, 8, 2)];
/// One of them may take so long, in seconds.
const FUZZ_LIMIT: u64 = 900;

pub fn run(report: &mut Report, full: bool) -> Result<()> {
    needs::ensure(&[Tool::Gcc, Tool::MuslGcc])?;
    let kernel = kernel::build(Build::Sanitized)?;
    let manifest = manifest::read()?;
    report.doing("building the guest programs");
    let wanted = |entry: &&manifest::Program| PROGRAMS.iter().any(|start| entry.name.starts_with(start));
    let mut cases = linux::programs(report, manifest.programs.iter().filter(wanted), false);
    cases.retain(|case| case.cpus <= MOST_CPUS);
    cases.iter_mut().for_each(|case| case.timeout *= SLOWER);
    let programs = cases.len();
    cases.extend(fuzz()?);
    let counts: &[u32] = if full { &[1, 2, 8] } else { &[2] };
    let total = MISTAKES.len() + counts.len() + cases.len();
    for (i, (mistake, wanted)) in MISTAKES.into_iter().enumerate() {
        report.begin(i, total, mistake);
        let outcome = kernel_tests::boot_selftest(&Machine::new(kernel.clone(), 2), mistake)?;
        report.record(&format!("a report of {mistake}"), reported(&outcome, wanted));
    }
    for (i, cpus) in counts.iter().enumerate() {
        report.begin(MISTAKES.len() + i, total, &format!("selftest, {cpus} CPUs"));
        kernel_tests::selftest(report, &Machine::new(kernel.clone(), *cpus))?;
    }
    let (mut calls, mut most) = (0, (0, 0));
    for (i, case) in cases.iter().enumerate() {
        report.begin(MISTAKES.len() + counts.len() + i, total, &case.name);
        let (result, outcome) = case.check(&case.machine(&kernel))?;
        if i >= programs && result.is_ok() {
            calls += FUZZ[i - programs].1;
        }
        most = most.max(outcome.stats.as_deref().and_then(stats::edges_taken).unwrap_or_default());
        report.record(&case.name, result);
    }
    report.remark(format!("{calls} random calls, at most {} of {} edges taken in one run", most.0, most.1));
    Ok(())
}

fn reported(outcome: &Outcome, wanted: &str) -> Result<(), String> {
    let log = outcome.log.join("\n");
    if outcome.end != End::Panicked || !log.contains(wanted) {
        return Err(format!("{:?}, no report of \"{wanted}\"\n{log}", outcome.end));
    }
    // The backtrace must lead to the mistake, whose function is here.
    if !log.contains("sanitize::selftest::") {
        return Err(format!("the backtrace does not show who did it\n{log}"));
    }
    Ok(())
}

/// Random calls.
fn fuzz() -> Result<Vec<Case>> {
    let host = guest::c("fuzz", "c/fuzz.c", Toolchain::Musl)?;
    let case = |(cpus, calls, seed, processes, threads): (u32, u32, u32, u32, u32)| {
        let arguments = [calls, seed, processes, threads].map(|n| n.to_string());
        let name = format!("fuzz {}, {cpus} CPUs", arguments.join(" "));
        Case::alone(name, host.clone(), "fuzz", &arguments, cpus, FUZZ_LIMIT)
    };
    Ok(FUZZ.into_iter().map(case).collect())
}

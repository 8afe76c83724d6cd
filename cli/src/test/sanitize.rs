//! The frame allocator on the host under the compiler's sanitizers; and the sanitized kernel (`kernel/src/sanitize`): its own
//! tests, mistakes that it must report, the guest programs that reach most of it, and random system calls.

use std::path::Path;

use anyhow::Result;

use super::{
    Report, fuzz, kernel as kernel_tests,
    linux::{self, Case},
    manifest, races,
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
/// A fault that a guest program must lead the kernel into, and what its report must say.
const COPYING: (&str, &str) = ("copy-unflushed", "was written while free");
/// Guest programs, by the beginning of their names in the manifest: those that reach much of the kernel, and all those
/// that try to bring it down.
const PROGRAMS: [&str; 17] = [
    "mapfork",
    "mm",
    "threads",
    "futex",
    "signals",
    "jobs",
    "files",
    "walks",
    "efault",
    "calls_",
    "traps",
    "elfs",
    "storm",
    "inject",
    "oom",
    "usercopy",
    "fuzz-fail",
];
/// A machine for each of them has at most so many CPUs.
const MOST_CPUS: u32 = 8;
/// So many times longer than usual they may take.
const SLOWER: u32 = 6;

/// Random calls a second on a machine that is very busy with other things.
const SLOWEST: u64 = 250;

/// A run of random calls.
struct Fuzz {
    cpus: u32,
    /// How many calls.
    calls: u32,
    /// How many with `--full`: 20 million in all.
    full: u32,
    seed: u32,
    processes: u32,
    /// Of each process.
    threads: u32,
}

const FUZZ: [Fuzz; 4] = [
    Fuzz { cpus: 1, calls: 40_000, full: 2_000_000, seed: 1, processes: 1, threads: 1 },
    Fuzz { cpus: 2, calls: 120_000, full: 8_000_000, seed: 2, processes: 3, threads: 2 },
    Fuzz { cpus: 4, calls: 120_000, full: 7_000_000, seed: 3, processes: 4, threads: 3 },
    Fuzz { cpus: 8, calls: 60_000, full: 3_000_000, seed: 4, processes: 8, threads: 2 },
];

impl Fuzz {
    fn calls(&self, full: bool) -> u32 {
        if full { self.full } else { self.calls }
    }

    /// How long it may take, in seconds.
    fn limit(&self, full: bool) -> u64 {
        900 + u64::from(self.calls(full)) / SLOWEST
    }

    fn case(&self, program: &Path, full: bool) -> Case {
        let arguments =
            [self.calls(full), self.seed, self.processes, self.threads].map(|number| number.to_string());
        let name = format!("fuzz {}, {} CPUs", arguments.join(" "), self.cpus);
        Case::alone(name, program.to_owned(), "fuzz", &arguments, self.cpus, self.limit(full))
    }
}

pub fn run(report: &mut Report, full: bool) -> Result<()> {
    let on_host = races::TESTS + fuzz::TESTS;
    races::run(report, full, |report, i, name| report.begin(i, on_host, name))?;
    let sequences = fuzz::run(report, full, |report, i, name| report.begin(races::TESTS + i, on_host, name))?;
    needs::ensure(&[Tool::Gcc, Tool::MuslGcc])?;
    let kernel = kernel::build(Build::Sanitized)?;
    let manifest = manifest::read()?;
    report.doing("building the guest programs");
    let wanted = |entry: &&manifest::Program| PROGRAMS.iter().any(|start| entry.name.starts_with(start));
    let mut cases = linux::programs(report, manifest.programs.iter().filter(wanted), false);
    cases.retain(|case| case.cpus <= MOST_CPUS);
    cases.iter_mut().for_each(|case| case.timeout *= SLOWER);
    let programs = cases.len();
    let fuzz = guest::c("fuzz", "c/fuzz.c", Toolchain::Musl)?;
    cases.extend(FUZZ.iter().map(|run| run.case(&fuzz, full)));
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
    report.doing(COPYING.0);
    let copying = guest::c("usercopy", "c/usercopy.c", Toolchain::Musl)?;
    let limit = u64::from(SLOWER) * 60;
    let case = Case::alone(COPYING.0.to_owned(), copying, "usercopy", &["300".to_owned()], 4, limit);
    let case = Case { boot: vec![format!("plant={}", COPYING.0)], ..case };
    let (_, outcome) = case.check(&case.machine(&kernel))?;
    let found = outcome.end == End::Panicked && outcome.log.join("\n").contains(COPYING.1);
    let why = || format!("{:?}, no report of \"{}\"", outcome.end, COPYING.1);
    report.record(COPYING.0, found.then_some(()).ok_or_else(why));
    let (mut calls, mut most) = (0, (0, 0));
    for (i, case) in cases.iter().enumerate() {
        report.begin(MISTAKES.len() + counts.len() + i, total, &case.name);
        let (result, outcome) = case.check(&case.machine(&kernel))?;
        if i >= programs && result.is_ok() {
            calls += FUZZ[i - programs].calls(full);
        }
        most = most.max(outcome.stats.as_deref().and_then(stats::edges_taken).unwrap_or_default());
        report.record(&case.name, result);
    }
    report.remark(format!(
        "{sequences} of the allocator's; {calls} random calls, at most {} of {} edges taken in one run",
        most.0, most.1
    ));
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

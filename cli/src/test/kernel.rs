//! The kernel's own tests, in the machine, how the machine ends, and the exact machine.

use std::time::Duration;

use anyhow::Result;

use super::{
    Report, exact,
    pool::{self, Task, Verdict},
};
use crate::{
    image::{Exec, Image},
    kernel::{self, Build},
    machine::{Boot, Machine},
    needs::{self, Tool},
    program, run,
    session::{self, End, Files, Outcome},
};

const LIMIT: Duration = Duration::from_secs(120);
/// The name of the kernel's test that panics.
const PANIC: &str = "panic";

/// CPUs of the one machine in which they run on a further design of the address space.
const FEW: u32 = 8;

/// Shell commands and the exit status of each.
const STATUSES: [(&str, u8); 5] =
    [("exit 0", 0), ("exit 42", 42), ("exit 255", 255), ("kill -SEGV $$", 139), ("kill -KILL $$", 137)];

/// Words for the kernel with which a program must run as with any other: each way that a design can be told to be.
const WAYS: [&str; 9] = [
    "aspace=bonsai exclude=stock",
    "aspace=bonsai exclude=fault-lock",
    "aspace=bonsai exclude=hybrid",
    "aspace=bonsai exclude=per-mapping",
    "aspace=bonsai exclude=rcu",
    "aspace=locked rwlock=sleep last-hit=on flush=range33",
    "aspace=locked rwlock=spin last-hit=off",
    "aspace=locked flush=space",
    "aspace=locked count=atomic",
];
/// Words that it must refuse: what would run is not what was asked for.
const REFUSED: [&str; 5] = ["exclude=nobody", "rwlock=wait", "flush=all", "count=never", "aspace=list"];
/// What is run: a process that is copied, with pages that are written by both.
const SCRIPT: &str = "a=1; (a=42; exit $a)";
/// The kernel's status if it starts no program.
const NOT_STARTED: u8 = 126;

pub fn run(report: &mut Report, full: bool) -> Result<()> {
    needs::ensure(&[Tool::Busybox, Tool::MuslGcc])?;
    let kernel = kernel::build(Build::Ordinary)?;
    let counts: &[u32] = if full { &[1, 2, 8, 80, 255] } else { &[1, 2, 8] };
    let mut machines: Vec<_> = counts.iter().map(|cpus| Machine::new(kernel.clone(), *cpus)).collect();
    machines.push(Machine::new(kernel.clone(), 8).scheduled_otherwise());
    let pair = Machine::new(kernel.clone(), 2);
    let (pair, exact) = (&pair, exact::Lab::new(kernel)?);
    let mut tasks = exact.tasks();
    for machine in &machines {
        let name = format!("selftest, {} CPUs", machine.cpus);
        tasks.push(Task::new(name, machine.host_threads(), || tests(machine)));
    }
    // One CPU of the pair has next to nothing to do.
    let panics = || Ok(check_panic(&boot_selftest(pair, PANIC)?));
    tasks.push(Task::test("a panic ends the machine with its backtrace", 1, panics));
    for (script, status) in STATUSES {
        let ends = move || Ok(ended_with(&shell(pair, script, "")?, status));
        tasks.push(Task::test(format!("the status of '{script}'"), 1, ends));
    }
    let ways = WAYS.iter().map(|words| (words, 42)).chain(REFUSED.iter().map(|word| (word, NOT_STARTED)));
    for (words, status) in ways {
        tasks.push(Task::test(format!("a program with {words}"), 1, move || told(pair, words, status)));
    }
    pool::record(report, tasks)
}

/// The kernel's own tests, in one machine.
pub fn few(report: &mut Report, _: bool) -> Result<()> {
    report.doing("selftest");
    selftest(report, &Machine::new(kernel::build(Build::Ordinary)?, FEW))
}

/// All of the kernel's own tests on `machine`, recorded.
pub fn selftest(report: &mut Report, machine: &Machine) -> Result<()> {
    for (name, result) in tests(machine)? {
        report.record(&name, result);
    }
    Ok(())
}

/// All of the kernel's own tests on `machine`, and that it ends well, if it doesn't.
fn tests(machine: &Machine) -> Result<Vec<(String, Verdict)>> {
    let outcome = boot_selftest(machine, "all")?;
    let cpus = machine.cpus;
    let own = outcome.tests.iter().map(|(name, result)| (format!("{name}, {cpus} CPUs"), result.clone()));
    let mut results: Vec<_> = own.collect();
    if outcome.end != End::Exited(0) || outcome.tests.is_empty() {
        let why =
            format!("{} tests, then {:?}\n{}", outcome.tests.len(), outcome.end, outcome.log.join("\n"));
        results.push((format!("selftest, {cpus} CPUs"), Err(why)));
    }
    Ok(results)
}

/// The kernel's own test `name`.
pub fn boot_selftest(machine: &Machine, name: &str) -> Result<Outcome> {
    let mut image = Image::default();
    image.skeleton();
    let boot = Boot { selftest: Some(name.to_owned()), ..Boot::default() };
    session::run(machine, &boot, image, Files::Captured(Vec::new()), Some(LIMIT))
}

fn check_panic(outcome: &Outcome) -> Result<(), String> {
    let log = outcome.log.join("\n");
    if outcome.end != End::Panicked {
        return Err(format!("{:?} instead of a panic\n{log}", outcome.end));
    }
    if !outcome.log.iter().any(|line| line.contains("  at 0x") && line.contains("quire_kernel::")) {
        return Err(format!("no function of the kernel's in the backtrace\n{log}"));
    }
    Ok(())
}

/// Whether a program ends with this status where the kernel is told so, and the kernel says what it refuses, if it does.
fn told(machine: &Machine, words: &str, status: u8) -> Result<Verdict> {
    let outcome = shell(machine, SCRIPT, words)?;
    let said = String::from_utf8_lossy(&outcome.stderr).contains(&format!("no {words} in this kernel"));
    Ok(ended_with(&outcome, status).and_then(|()| match said == (status == NOT_STARTED) {
        true => Ok(()),
        false => Err(format!("standard error is {:?}", String::from_utf8_lossy(&outcome.stderr))),
    }))
}

fn ended_with(outcome: &Outcome, status: u8) -> Result<(), String> {
    let (end, wanted) = (&outcome.end, End::Exited(status));
    if *end == wanted { Ok(()) } else { Err(format!("{end:?} instead of {wanted:?}")) }
}

/// A script in the machine, with these words for the kernel besides.
fn shell(machine: &Machine, script: &str, words: &str) -> Result<Outcome> {
    let mut image = Image::default();
    let busybox = program::find("busybox".as_ref(), None)?;
    run::add_program(&mut image, &busybox)?;
    let argv = ["busybox", "sh", "-c", script].map(|word| word.as_bytes().to_vec()).to_vec();
    image.exec(&Exec { argv, env: vec![b"PATH=/bin".to_vec()], cwd: b"/".to_vec(), path: busybox.guest });
    let boot = Boot { words: words.split_whitespace().map(str::to_owned).collect(), ..Boot::default() };
    session::run(machine, &boot, image, Files::Captured(Vec::new()), Some(LIMIT))
}

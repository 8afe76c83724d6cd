//! The kernel's own tests, in the machine, how the machine ends, and the exact machine.

use std::time::Duration;

use anyhow::Result;

use super::Report;
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

pub fn run(report: &mut Report, full: bool) -> Result<()> {
    needs::ensure(&[Tool::Busybox, Tool::MuslGcc])?;
    let kernel = kernel::build(Build::Ordinary)?;
    let counts: &[u32] = if full { &[1, 2, 8, 80, 255] } else { &[1, 2, 8] };
    let mut machines: Vec<_> = counts.iter().map(|cpus| Machine::new(kernel.clone(), *cpus)).collect();
    machines.push(Machine::new(kernel.clone(), 8).scheduled_otherwise());
    let total = machines.len() + 1 + STATUSES.len();
    for (i, machine) in machines.iter().enumerate() {
        report.begin(i, total, &format!("selftest, {} CPUs", machine.cpus));
        selftest(report, machine)?;
    }
    report.begin(machines.len(), total, "panic");
    let panic = boot_selftest(&Machine::new(kernel.clone(), 2), PANIC)?;
    report.record("a panic ends the machine with its backtrace", check_panic(&panic));
    for (i, (script, status)) in STATUSES.into_iter().enumerate() {
        report.begin(machines.len() + 1 + i, total, script);
        let end = shell(&Machine::new(kernel.clone(), 2), script)?.end;
        let wanted = End::Exited(status);
        let result = if end == wanted { Ok(()) } else { Err(format!("{end:?} instead of {wanted:?}")) };
        report.record(&format!("the status of '{script}'"), result);
    }
    super::exact::run(report, kernel)
}

/// The kernel's own tests, in one machine.
pub fn few(report: &mut Report, _: bool) -> Result<()> {
    report.doing("selftest");
    selftest(report, &Machine::new(kernel::build(Build::Ordinary)?, FEW))
}

/// All of the kernel's own tests on `machine`.
pub fn selftest(report: &mut Report, machine: &Machine) -> Result<()> {
    let outcome = boot_selftest(machine, "all")?;
    let cpus = machine.cpus;
    for (name, result) in &outcome.tests {
        report.record(&format!("{name}, {cpus} CPUs"), result.clone());
    }
    if outcome.end != End::Exited(0) || outcome.tests.is_empty() {
        let why =
            format!("{} tests, then {:?}\n{}", outcome.tests.len(), outcome.end, outcome.log.join("\n"));
        report.fail(&format!("selftest, {cpus} CPUs"), &why);
    }
    Ok(())
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

fn shell(machine: &Machine, script: &str) -> Result<Outcome> {
    let mut image = Image::default();
    let busybox = program::find("busybox".as_ref(), None)?;
    run::add_program(&mut image, &busybox)?;
    let argv = ["busybox", "sh", "-c", script].map(|word| word.as_bytes().to_vec()).to_vec();
    image.exec(&Exec { argv, env: vec![b"PATH=/bin".to_vec()], cwd: b"/".to_vec(), path: busybox.guest });
    session::run(machine, &Boot::default(), image, Files::Captured(Vec::new()), Some(LIMIT))
}

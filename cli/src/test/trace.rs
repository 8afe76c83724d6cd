//! What `trace` finds: programs whose conflicts are known, and a kernel with one that was planted.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use super::{Report, bench, matrix, primitives};
use crate::{
    exact::Exact,
    guest::{self, Toolchain},
    image::{Exec, Image},
    kernel::{self, Build},
    machine::{Boot, Machine},
    program::Program,
    run,
    session::{self, End, Files},
    trace::{Elf, Names, Report as Traced},
};

const LIMIT: Duration = Duration::from_secs(300);
const CPUS: u32 = 4;
/// The thing to be found must be among so many lines.
const TOP: usize = 8;

/// A run, and what must be found in it.
struct Case {
    what: &'static str,
    arguments: [&'static str; 2],
    planted: bool,
    check: fn(&Traced) -> Result<(), String>,
}

const CASES: [Case; 4] = [
    Case {
        what: "threads that map and unmap share the address space's lock",
        arguments: ["map", "20"],
        planted: false,
        check: |traced| {
            at_the_top(traced, TOP, "address space of PID 2: lock", "sync::rwlock::RwLock<..>::acquire")
        },
    },
    Case {
        what: "threads that add to a variable share it",
        arguments: ["word", "200"],
        planted: false,
        check: |traced| at_the_top(traced, 1, "contended_word (contend)", "task"),
    },
    Case {
        what: "a counter planted in the fault path is found",
        arguments: ["fault", "100"],
        planted: true,
        check: |traced| at_the_top(traced, 1, "planted::SHARED_COUNTER", "fault::resolve"),
    },
    Case {
        what: "a counter that was not planted is not",
        arguments: ["fault", "100"],
        planted: false,
        check: |traced| match traced.lines.iter().find(|line| line.name.what.contains("SHARED_COUNTER")) {
            None if traced.operations == 100 * u64::from(CPUS) => Ok(()),
            None => Err(format!("{} operations", traced.operations)),
            Some(line) => Err(format!("it moved {} times", line.transfers)),
        },
    },
];

pub fn run(report: &mut Report, _: bool) -> Result<()> {
    let machine =
        Machine { exact: Some(Exact::new()?), ..Machine::new(kernel::build(Build::Ordinary)?, CPUS) };
    let host = guest::c("contend", "c/contend.c", Toolchain::Musl)?;
    let program = Program { host, guest: b"/bin/contend".to_vec(), packed: false };
    for (i, case) in CASES.iter().enumerate() {
        report.begin(i, CASES.len(), case.what);
        let result = traced(&machine, &program, case).map_err(|error| format!("{error:#}"));
        report.record(case.what, result.and_then(|traced| (case.check)(&traced)));
    }
    bench::run(report)?;
    matrix::run(report)?;
    primitives::run(report)
}

fn traced(machine: &Machine, program: &Program, case: &Case) -> Result<Traced> {
    let mut image = Image::default();
    run::add_program(&mut image, program)?;
    let cpus = CPUS.to_string();
    let argv = ["contend", case.arguments[0], case.arguments[1], &cpus].map(|word| word.as_bytes().to_vec());
    let path = program.guest.clone();
    image.exec(&Exec { argv: argv.to_vec(), env: Vec::new(), cwd: b"/".to_vec(), path });
    let boot = Boot { places: true, plant_shared_counter: case.planted, ..Boot::default() };
    let outcome = session::run(machine, &boot, image, Files::Captured(Vec::new()), Some(LIMIT))?;
    if outcome.end != End::Exited(0) {
        let errors = String::from_utf8_lossy(&outcome.stderr);
        return Err(anyhow!("{:?}\n{errors}{}", outcome.end, outcome.log.join("\n")));
    }
    let kernel = Box::new(Elf::new(&machine.kernel, 0));
    let names = Names::new(kernel, &outcome.places, &outcome.programs, &program.host, &program.guest);
    Traced::new(outcome.counts.as_deref().context("nothing was counted")?, &names)
}

/// Whether one of the first `top` lines has this name, and the function is among those that moved it.
fn at_the_top(traced: &Traced, top: usize, name: &str, function: &str) -> Result<(), String> {
    let first = || traced.lines.iter().take(top);
    let found = first().find(|line| {
        let functions = line.touches.iter().filter(|touch| touch.transfers > 0).flat_map(|t| &t.functions);
        line.name.what.starts_with(name) && functions.clone().any(|f| f.name == function)
    });
    let names =
        || first().map(|line| format!("{} {}", line.in_operations, line.name.what)).collect::<Vec<_>>();
    match found {
        Some(line) if line.in_operations > 0 => Ok(()),
        _ => Err(format!("not moved by {function}: {name}; at the top are {}", names().join(", "))),
    }
}

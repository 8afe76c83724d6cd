//! Linux in the same machine: as transparent as Quire is, so that a comparison compares kernels.

use std::{collections::HashMap, path::Path, time::Duration};

use anyhow::{Error, Result};
use serde_json::Value;

use super::{
    Report,
    linux::{Case, Result3, difference},
    pool::{self, Task},
};
use crate::{
    args::{self, Window},
    exact::Exact,
    guest::{self, Toolchain},
    image::{Exec, Image},
    kernel::{self, Build},
    linux::{self, Linux},
    machine::{Boot, Machine},
    needs::{self, Tool},
    numa::Numa,
    program::{self, Program},
    run,
    session::{self, End, Files},
    symbols::Kallsyms,
};

/// Shell commands and the CPUs of their machine; natively they do the same.
const COMMANDS: [(&str, &str, u32); 5] = [
    ("outputs and status", "echo out; echo err >&2; echo more; exit 42", 1),
    ("input", "cat; md5sum < /proc/self/cmdline >/dev/null; exit 255", 1),
    ("pipelines", "seq 3000 | sort -r | head -100 | md5sum; cd /; pwd; ls -d tmp", 8),
    ("death by a signal", "echo before; kill -SEGV $$", 4),
    ("orphans", "(sleep 1000 &) ; echo $0 $#; cat | wc -c", 4),
];

/// Nodes of the machines on which both kernels must say the same of them, and CPUs. Linux numbers nodes with CPUs first, so
/// these come first here.
const NODES: [(&str, u32); 3] =
    [("2", 4), ("4:dist=10,16,24", 4), ("4:cpus=1,3,0,0:mem=128M,0,96M,96M:dist=10,21", 4)];
/// What the counted program does: long enough asleep for all that comes every second.
const SCRIPT: &str = "sleep 3; seq 3000 | sort -r | md5sum";
/// Functions that are executed by kernel threads alone, and by anything but them and ticks alone.
const WORKERS: [&str; 4] = ["rcu_gp_kthread", "worker_thread", "process_one_work", "smpboot_thread_fn"];
const OTHERS: [&str; 3] = ["do_idle", "do_syscall_64", "do_user_addr_fault"];

pub fn run(report: &mut Report, full: bool) -> Result<()> {
    needs::ensure(&[Tool::Busybox])?;
    if !needs::is_debian() {
        report.remark("not run: Debian's kernels come with apt-get, which is not here".to_owned());
        return Ok(());
    }
    let newest = Linux::obtain(args::Linux::Newest)?;
    let older = Linux::obtain(args::Linux::V6_1)?;
    let mut runs = Vec::new();
    for case in cases()? {
        runs.push((&newest, case));
    }
    for case in cases()?.into_iter().take(if full { usize::MAX } else { 2 }) {
        runs.push((&older, case));
    }
    let quire = kernel::build(Build::Ordinary)?;
    let mut tasks = Vec::new();
    // What is compared is what programs say, not when.
    for (linux, case) in &runs {
        let name = format!("{}, Linux {}, {} CPUs", case.name, linux.version, case.cpus);
        tasks.push(Task::test(name, 1, || Ok(case.check(&linux.machine(case.cpus))?.0)));
    }
    let (quire, newest, older) = (&quire, &newest, &older);
    for ((nodes, cpus), part) in NODES.into_iter().flat_map(|n| ["machine", "place"].map(|part| (n, part))) {
        let name = format!("nodes {nodes}, {part}, on Quire and Linux {}", newest.version);
        let run = move || same_nodes(quire, newest, &nodes.parse().map_err(Error::msg)?, cpus, part);
        tasks.push(Task::test(name, 1, run));
    }
    tasks.push(Task::test("Linux's symbols", 1, || symbols(newest)));
    for linux in [newest, older] {
        let name = format!("Linux {}'s periodic work is counted apart", linux.version);
        tasks.push(Task::test(name, 1, || periodic(linux)));
    }
    pool::record(report, tasks)?;
    report.remark(format!("Linux {} and {}", older.version, newest.version));
    Ok(())
}

fn cases() -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for (name, command, cpus) in COMMANDS {
        // More than the guest's pipe and all buffers on the way hold at once.
        let stdin = (0..30_000).flat_map(|n: u32| format!("{n} ").into_bytes()).collect();
        cases.push(Case::shell(name.to_owned(), command, stdin, cpus)?);
    }
    cases.push(Case {
        program: Program {
            host: guest::c("mapfork", "c/mapfork.c", Toolchain::Musl)?,
            guest: b"/bin/mapfork".to_vec(),
            packed: false,
        },
        argv: ["mapfork", "4", "10"].map(str::to_owned).to_vec(),
        stdin: Vec::new(),
        timeout: Duration::from_secs(240),
        ..Case::shell("mapfork".to_owned(), "", Vec::new(), 4)?
    });
    Ok(cases)
}

/// Whether `part` of the program about nodes says the same on both kernels.
fn same_nodes(quire: &Path, linux: &Linux, numa: &Numa, cpus: u32, part: &str) -> Result<Result<(), String>> {
    let host = guest::c("calls_numa", "c/calls_numa.c", Toolchain::Glibc)?;
    let case = Case::alone("nodes".to_owned(), host, "calls_numa", &[part.to_owned()], cpus, 120);
    let mut said = Vec::new();
    for machine in [linux.machine(cpus), Machine::new(quire.to_owned(), cpus)] {
        let memory = numa.memory().unwrap_or(machine.memory);
        let (result, outcome) = case.check(&Machine { numa: numa.clone(), memory, ..machine })?;
        if result.is_err() {
            return Ok(result);
        }
        said.push(Result3 { status: 0, stdout: outcome.stdout, stderr: outcome.stderr });
    }
    Ok(if said[0] == said[1] { Ok(()) } else { Err(difference(&said[0], &said[1])) })
}

/// Some that every Linux has are found, by name and by an address inside.
fn symbols(linux: &Linux) -> Result<Result<(), String>> {
    let symbols = linux.kallsyms()?;
    for name in ["do_mmap", "handle_mm_fault", "flush_tlb_mm_range", "init_task"] {
        let Some(address) = symbols.address(name) else { return Ok(Err(format!("no {name}"))) };
        let found = symbols.find(address + 1);
        // Another symbol may have the same address.
        let same =
            found.is_some_and(|(other, offset)| offset == 1 && symbols.address(other) == Some(address));
        if !same {
            return Ok(Err(format!("{name} is at {address:#x}, but {:#x} is {found:?}", address + 1)));
        }
    }
    Ok(Ok(()))
}

/// What kernel threads execute is periodic work to the last instruction, and what threads execute that they have taken turns
/// with is none of it.
fn periodic(linux: &Linux) -> Result<Result<(), String>> {
    let kallsyms = linux.kallsyms()?;
    let mut exact = Exact { window: Window::Run, places: kallsyms.places(), ..Exact::new()? };
    // All blocks that were executed.
    exact.places.push("profile=1000000".to_owned());
    let machine = Machine { exact: Some(exact), ..linux.machine(2) };
    let busybox = program::find("busybox".as_ref(), None)?;
    let mut image = Image::default();
    linux::furnish(&mut image)?;
    run::add_program(&mut image, &busybox)?;
    let argv = ["busybox", "sh", "-c", SCRIPT].map(|word| word.as_bytes().to_vec()).to_vec();
    image.exec(&Exec { argv, env: Vec::new(), cwd: b"/".to_vec(), path: busybox.guest.clone() });
    let limit = Some(Duration::from_secs(240));
    let outcome = session::run(&machine, &Boot::default(), image, Files::Captured(Vec::new()), limit)?;
    let (End::Exited(0), Some(counts)) = (&outcome.end, &outcome.counts) else {
        return Ok(Err(format!("{:?}, {}", outcome.end, outcome.log.join("\n"))));
    };
    Ok(apart(&serde_json::from_str(counts)?, &kallsyms))
}

fn apart(counts: &Value, kallsyms: &Kallsyms) -> Result<(), String> {
    let number = |block: &Value, name: &str| block[name].as_u64().unwrap_or(0);
    let mut functions: HashMap<&str, (u64, u64)> = HashMap::new();
    for block in counts["profile"].as_array().into_iter().flatten() {
        let address =
            block["pc"].as_str().and_then(|pc| u64::from_str_radix(pc.trim_start_matches("0x"), 16).ok());
        if let Some((name, _)) = address.and_then(|address| kallsyms.find(address)) {
            let sum = functions.entry(name).or_default();
            sum.0 += number(block, "instructions");
            sum.1 += number(block, "periodic");
        }
    }
    for name in WORKERS.into_iter().chain(OTHERS) {
        let (own, periodic) = functions.get(name).copied().unwrap_or_default();
        let is_right = match WORKERS.contains(&name) {
            true => own == 0 && periodic > 0,
            false => own > 0 && periodic == 0,
        };
        if !is_right {
            return Err(format!("{name}: {own} instructions and {periodic} of periodic work"));
        }
    }
    match number(&counts["profile_other"], "blocks") {
        0 => Ok(()),
        more => Err(format!("{more} blocks are not in the profile")),
    }
}

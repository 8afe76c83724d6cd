//! Linux in the same machine: as transparent as Quire is, so that a comparison compares kernels.

use std::time::Duration;

use anyhow::Result;

use super::{Report, linux::Case};
use crate::{
    args,
    guest::{self, Toolchain},
    linux::Linux,
    needs::{self, Tool},
    program::Program,
};

/// Shell commands and the CPUs of their machine; natively they do the same.
const COMMANDS: [(&str, &str, u32); 5] = [
    ("outputs and status", "echo out; echo err >&2; echo more; exit 42", 1),
    ("input", "cat; md5sum < /proc/self/cmdline >/dev/null; exit 255", 1),
    ("pipelines", "seq 3000 | sort -r | head -100 | md5sum; cd /; pwd; ls -d tmp", 8),
    ("death by a signal", "echo before; kill -SEGV $$", 4),
    ("orphans", "(sleep 1000 &) ; echo $0 $#; cat | wc -c", 4),
];

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
    for (i, (linux, case)) in runs.iter().enumerate() {
        let name = format!("{}, Linux {}, {} CPUs", case.name, linux.version, case.cpus);
        report.begin(i, runs.len(), &name);
        report.record(&name, case.check(&linux.machine(case.cpus))?.0);
    }
    report.doing("symbols");
    report.record("Linux's symbols", symbols(&newest)?);
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

//! Linux programs: the same executables here and on Quire, with the same results, and every page frame accounted for
//! afterwards.

use std::{path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result, bail};

use super::{
    Report,
    manifest::{self, Manifest},
};
use crate::{
    child,
    guest::{self, Toolchain},
    image::{Exec, Image},
    kernel, linux,
    machine::{Boot, Machine, System},
    needs::{self, Tool},
    program::{self, Program},
    run,
    session::{self, End, Files, Outcome},
    stats,
};

/// A native run takes at most this long.
const NATIVE_LIMIT: Duration = Duration::from_secs(120);

/// One run of a program in the machine.
pub(super) struct Case {
    pub name: String,
    pub program: Program,
    pub argv: Vec<String>,
    pub env: Vec<String>,
    pub cwd: &'static str,
    pub stdin: Vec<u8>,
    pub cpus: u32,
    pub timeout: Duration,
    /// Compare standard output and status with a native run.
    pub compare: bool,
    /// Standard error too. A self-checking program uses it for remarks about the kernel that it finds.
    pub compare_stderr: bool,
}

/// What is compared.
#[derive(PartialEq)]
struct Result3 {
    status: i32,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

pub fn run(report: &mut Report, full: bool) -> Result<()> {
    needs::ensure(&[Tool::Busybox, Tool::Gcc, Tool::MuslGcc])?;
    let kernel = kernel::build()?;
    let manifest = manifest::read()?;
    report.doing("building the guest programs");
    let cases = cases(report, &manifest)?;
    let rounds = if full { 3 } else { 1 };
    for round in 0..rounds {
        for (i, case) in cases.iter().enumerate() {
            report.begin(round * cases.len() + i, rounds * cases.len(), &case.name);
            let machine = Machine::new(kernel.clone(), case.cpus);
            // The other way takes long with many CPUs.
            let otherwise = round % 2 == 1 && case.cpus <= 8;
            let machine = if otherwise { machine.scheduled_otherwise() } else { machine };
            report.record(&case.name, case.check(&machine)?);
        }
    }
    report.remark(format!("{} runs, each with its page frames accounted for", rounds * cases.len()));
    Ok(())
}

fn cases(report: &mut Report, manifest: &Manifest) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for entry in &manifest.shell {
        for cpus in &entry.cpus {
            let stdin = entry.stdin.clone().into_bytes();
            let name = format!("sh {}, {cpus} CPUs", entry.name);
            cases.push(Case { timeout: entry.timeout, ..Case::shell(name, &entry.command, stdin, *cpus)? });
        }
    }
    for entry in &manifest.programs {
        for toolchain in &entry.toolchains {
            let name = format!("{} ({toolchain})", entry.name);
            let host = match build(entry, toolchain) {
                Ok(path) => path,
                Err(error) => {
                    report.fail(&name, &format!("{error:#}"));
                    continue;
                }
            };
            let guest = format!("/bin/{}", entry.name).into_bytes();
            for cpus in &entry.cpus {
                let arguments = entry.args.iter().map(|word| word.replace("{cpus}", &cpus.to_string()));
                cases.push(Case {
                    name: format!("{name}, {cpus} CPUs"),
                    program: Program { host: host.clone(), guest: guest.clone(), packed: false },
                    argv: std::iter::once(entry.name.clone()).chain(arguments).collect(),
                    env: vec!["PATH=/bin".to_owned()],
                    cwd: "/tmp",
                    stdin: Vec::new(),
                    cpus: *cpus,
                    timeout: entry.timeout,
                    compare: entry.compare && entry.native,
                    compare_stderr: false,
                });
            }
        }
    }
    Ok(cases)
}

fn build(entry: &manifest::Program, toolchain: &str) -> Result<PathBuf> {
    match (toolchain, entry.source.strip_prefix("bin:")) {
        ("rust", Some(binary)) => guest::rust(binary),
        ("musl", None) => guest::c(&entry.name, &entry.source, Toolchain::Musl),
        ("glibc", None) => guest::c(&entry.name, &entry.source, Toolchain::Glibc),
        ("none", None) => guest::c(&entry.name, &entry.source, Toolchain::Bare),
        _ => bail!("no way to build {} with {toolchain}", entry.source),
    }
}

impl Case {
    /// A command for busybox's shell, which must do the same here.
    pub fn shell(name: String, command: &str, stdin: Vec<u8>, cpus: u32) -> Result<Self> {
        Ok(Self {
            name,
            program: program::find("busybox".as_ref(), None)?,
            argv: ["busybox", "sh", "-c", command].map(str::to_owned).to_vec(),
            env: vec!["PATH=/bin".to_owned()],
            cwd: "/tmp",
            stdin,
            cpus,
            timeout: Duration::from_secs(120),
            compare: true,
            compare_stderr: true,
        })
    }

    /// Run it in `machine`, and here if it is to be compared.
    pub fn check(&self, machine: &Machine) -> Result<std::result::Result<(), String>> {
        let outcome = self.in_machine(machine)?;
        let End::Exited(status) = outcome.end else {
            let end = match &outcome.end {
                End::TimedOut => format!("no end after {} s", self.timeout.as_secs()),
                other => format!("{other:?}"),
            };
            return Ok(Err(format!("{end}\n{}", self.output(&outcome))));
        };
        let ours =
            Result3 { status: status.into(), stdout: outcome.stdout.clone(), stderr: outcome.stderr.clone() };
        if self.compare {
            let mut native = self.natively()?;
            if !self.compare_stderr {
                native.stderr.clone_from(&ours.stderr);
            }
            if ours != native {
                return Ok(Err(difference(&native, &ours)));
            }
        } else if status != 0 {
            return Ok(Err(format!("exit status {status}\n{}", self.output(&outcome))));
        }
        let accounts = match (&outcome.stats, machine.system) {
            (Some(json), System::Quire) => stats::accounting_error(json),
            (Some(json), System::Linux) => stats::table(json).err().map(|error| format!("{error:#}")),
            (None, _) => Some("no counters at the end".to_owned()),
        };
        Ok(accounts.map_or(Ok(()), Err))
    }

    fn in_machine(&self, machine: &Machine) -> Result<Outcome> {
        let mut image = Image::default();
        run::add_program(&mut image, &self.program)?;
        if machine.system == System::Linux {
            linux::furnish(&mut image)?;
        }
        let bytes = |words: &[String]| words.iter().map(|word| word.clone().into_bytes()).collect();
        image.exec(&Exec {
            argv: bytes(&self.argv),
            env: bytes(&self.env),
            cwd: self.cwd.into(),
            path: self.program.guest.clone(),
        });
        let boot = Boot { stats: true, ..Boot::default() };
        session::run(machine, &boot, image, Files::Captured(self.stdin.clone()), Some(self.timeout))
    }

    fn natively(&self) -> Result<Result3> {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new(&self.program.host);
        if let Some((zeroth, others)) = self.argv.split_first() {
            command.arg0(zeroth).args(others);
        }
        command
            .env_clear()
            .envs(self.env.iter().filter_map(|variable| variable.split_once('=')))
            .current_dir(self.cwd);
        let end = child::capture(&mut command, &self.stdin, NATIVE_LIMIT)?;
        let status = end.code().with_context(|| format!("{}: the native run did not end", self.name))?;
        Ok(Result3 { status, stdout: end.stdout, stderr: end.stderr })
    }

    /// The last lines that a failing run printed.
    fn output(&self, outcome: &Outcome) -> String {
        const LINES: usize = 20;
        let texts =
            [&outcome.stdout, &outcome.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        let lines: Vec<_> =
            texts.iter().flat_map(|text| text.lines()).chain(outcome.log.iter().map(|l| &**l)).collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }
}

/// Where two results differ first.
fn difference(native: &Result3, ours: &Result3) -> String {
    let mut parts = Vec::new();
    if native.status != ours.status {
        parts.push(format!("status {} instead of {}", ours.status, native.status));
    }
    for (name, native, ours) in
        [("standard output", &native.stdout, &ours.stdout), ("standard error", &native.stderr, &ours.stderr)]
    {
        if native != ours {
            let (native, ours) = (String::from_utf8_lossy(native), String::from_utf8_lossy(ours));
            let (mut a, mut b) = (native.lines(), ours.lines());
            let mut number = 0;
            let (wanted, got) = loop {
                number += 1;
                match (a.next(), b.next()) {
                    (None, None) => break (None, None),
                    (wanted, got) if wanted != got => break (wanted, got),
                    _ => {}
                }
            };
            let shown = |line: Option<&str>| line.map_or("nothing".to_owned(), |line| format!("{line:?}"));
            parts.push(format!("{name}, line {number}: {} instead of {}", shown(got), shown(wanted)));
        }
    }
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_shown_by_its_first_line() {
        let result = |status, stdout: &str| Result3 { status, stdout: stdout.into(), stderr: Vec::new() };
        assert_eq!(
            difference(&result(0, "a\nb\n"), &result(1, "a\nc\n")),
            "status 1 instead of 0; standard output, line 2: \"c\" instead of \"b\""
        );
        assert_eq!(
            difference(&result(0, "a\n"), &result(0, "")),
            "standard output, line 1: nothing instead of \"a\""
        );
    }
}

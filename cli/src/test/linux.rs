//! Linux programs: the same executables here and on Quire, with the same results, and every page frame accounted for
//! afterwards.

use std::{
    cell::RefCell,
    cmp::Reverse,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::{
    Report,
    manifest::{self, Interpreter, Manifest},
    pool,
};
use crate::{
    args::Aspace,
    child,
    guest::{self, Toolchain},
    image::{Exec, Image},
    kernel::{self, Build},
    linux,
    machine::{self, Boot, Machine, System},
    needs::{self, Tool},
    program::{self, Program},
    run,
    session::{self, End, Files, Outcome},
    stats,
};

/// A native run takes at most this long.
const NATIVE_LIMIT: Duration = Duration::from_secs(120);

/// One run of a program in the machine.
#[derive(Clone)]
pub(super) struct Case {
    pub name: String,
    pub program: Program,
    /// Further programs that it calls.
    pub helpers: Vec<PathBuf>,
    pub argv: Vec<String>,
    pub env: Vec<String>,
    pub cwd: &'static str,
    pub stdin: Vec<u8>,
    pub cpus: u32,
    pub timeout: Duration,
    /// Bytes of memory of the machine, if not as by default.
    pub memory: Option<u64>,
    /// Words for the kernel's command line.
    pub boot: Vec<String>,
    /// Compare standard output and status with a native run.
    pub compare: bool,
    /// Standard error too. A self-checking program uses it for remarks about the kernel that it finds.
    pub compare_stderr: bool,
}

/// What is compared.
#[derive(PartialEq)]
pub(super) struct Result3 {
    pub status: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

pub fn run(report: &mut Report, full: bool) -> Result<()> {
    needs::ensure(&[Tool::Busybox, Tool::Bash, Tool::Gcc, Tool::MuslGcc])?;
    let manifest = manifest::read()?;
    report.doing("building the guest programs");
    let rounds = if full { 3 } else { 1 };
    // Long runs once, in the first round; the others take what `cargo quire test` takes.
    let cases: Vec<_> =
        (0..rounds).map(|round| cases(report, &manifest, full, full && round == 0)).collect::<Result<_>>()?;
    run_all(report, &cases, manifest.programs.len() + manifest.shell.len())
}

/// One run of each program that is there for what the design of the address space decides: with its first toolchain, and as
/// many CPUs as it has at most.
pub fn few(report: &mut Report, _: bool) -> Result<()> {
    needs::ensure(&[Tool::MuslGcc])?;
    report.doing("building the guest programs");
    let short = |mut entry: manifest::Program| {
        entry.toolchains.truncate(1);
        entry.cpus = entry.cpus.into_iter().max().into_iter().collect();
        entry
    };
    let programs = manifest::read()?.programs.into_iter().filter(|entry| entry.each_design);
    let entries: Vec<_> = programs.map(short).collect();
    let cases = self::programs(report, entries.iter(), false);
    run_all(report, &[cases], entries.len())
}

/// Run the cases of each round, of so many programs.
fn run_all(report: &mut Report, rounds: &[Vec<Case>], programs: usize) -> Result<()> {
    let kernel = kernel::build(Build::Ordinary)?;
    let mut runs: Vec<(&Case, Machine)> = Vec::new();
    for (round, cases) in rounds.iter().enumerate() {
        for case in cases {
            let machine = case.machine(&kernel);
            // The other way takes long with many CPUs.
            let otherwise = round % 2 == 1 && case.cpus <= 8;
            runs.push((case, if otherwise { machine.scheduled_otherwise() } else { machine }));
        }
    }
    // One after another, those that want the host for themselves: each waits for what is running to end. And what may take long
    // first, so that none runs on alone at the end.
    runs.sort_by_key(|(case, machine)| (machine.host_threads().min(pool::THREADS), Reverse(case.timeout)));
    let shared = RefCell::new(report);
    pool::in_order(
        runs.len(),
        |i| runs[i].1.host_threads(),
        |i| Ok(runs[i].0.check(&runs[i].1)?.0),
        |i| shared.borrow().begin(i, runs.len(), &runs[i].0.name),
        |i, result| shared.borrow_mut().record(&runs[i].0.name, result),
    )?;
    let text = format!("{} runs of {programs} programs, each with its page frames accounted for", runs.len());
    shared.into_inner().remark(text);
    Ok(())
}

/// The runs of scripts.
fn scripts(manifest: &Manifest) -> Result<Vec<Case>> {
    let busybox = program::find("busybox".as_ref(), None)?.host;
    let mut cases = Vec::new();
    for entry in &manifest.shell {
        let (words, host): (&[&str], _) = match entry.shell {
            Interpreter::Busybox => (&["busybox", "sh", "-c"], busybox.clone()),
            Interpreter::Bash => (&["bash", "-c"], program::find("bash-static".as_ref(), None)?.host),
            Interpreter::Lua => (&["lua", "-e"], lua()?),
        };
        let guest = [b"/bin/", words[0].as_bytes()].concat();
        for cpus in &entry.cpus {
            cases.push(Case {
                program: Program { host: host.clone(), guest: guest.clone(), packed: false },
                helpers: if guest == b"/bin/busybox" { Vec::new() } else { vec![busybox.clone()] },
                argv: words.iter().chain([&&*entry.command]).map(|&word| word.to_owned()).collect(),
                timeout: entry.timeout,
                ..Case::shell(
                    format!("{} {}, {cpus} CPUs", entry.shell.name(), entry.name),
                    &entry.command,
                    entry.stdin.clone().into_bytes(),
                    *cpus,
                )?
            });
        }
    }
    Ok(cases)
}

/// All runs of a round: with `full`, those that `--full` adds; with `long`, long runs where there are any.
fn cases(report: &mut Report, manifest: &Manifest, full: bool, long: bool) -> Result<Vec<Case>> {
    let mut cases = scripts(manifest)?;
    let wanted = manifest.programs.iter().filter(|entry| full || !entry.only_full);
    cases.extend(programs(report, wanted, long));
    Ok(cases)
}

/// A case for each toolchain and number of CPUs of these programs; with `long`, long runs where there are any.
pub fn programs<'a>(
    report: &mut Report,
    entries: impl Iterator<Item = &'a manifest::Program>,
    long: bool,
) -> Vec<Case> {
    let mut cases = Vec::new();
    for entry in entries {
        let ordinary = (&entry.args, entry.timeout);
        let (args, timeout) = match &entry.long {
            Some((args, timeout)) if long => (args, *timeout),
            _ => ordinary,
        };
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
                let arguments = args.iter().map(|word| word.replace("{cpus}", &cpus.to_string()));
                cases.push(Case {
                    name: format!("{name}, {cpus} CPUs"),
                    program: Program { host: host.clone(), guest: guest.clone(), packed: false },
                    helpers: Vec::new(),
                    argv: std::iter::once(entry.name.clone()).chain(arguments).collect(),
                    env: environment(entry),
                    cwd: "/tmp",
                    stdin: Vec::new(),
                    cpus: *cpus,
                    timeout,
                    memory: entry.memory,
                    boot: entry.boot.clone(),
                    compare: entry.compare && entry.native,
                    compare_stderr: false,
                });
            }
        }
    }
    cases
}

/// What a program finds in its environment. The other designs refuse what `radix` has; their programs leave it out.
fn environment(entry: &manifest::Program) -> Vec<String> {
    let mut env = vec!["PATH=/bin".to_owned()];
    if machine::design().0 == Aspace::Radix && !entry.must.is_empty() {
        env.push(format!("VMPRIM_MUST={}", entry.must.join(",")));
    }
    env
}

/// Build what the usual runs need, as far as it can be built.
pub fn build_all(manifest: &Manifest) {
    let _ = lua();
    for entry in manifest.programs.iter().filter(|entry| !entry.only_full) {
        entry.toolchains.iter().for_each(|toolchain| drop(build(entry, toolchain)));
    }
}

fn lua() -> Result<PathBuf> {
    guest::rust_with("lua", &["lua"])
}

fn build(entry: &manifest::Program, toolchain: &str) -> Result<PathBuf> {
    if let Some((package, name)) = entry.source.strip_prefix("tests:").and_then(|it| it.split_once(':')) {
        anyhow::ensure!(toolchain == "rust", "tests are built with rust, not {toolchain}");
        return guest::tests(package, name);
    }
    match (toolchain, entry.source.strip_prefix("bin:")) {
        ("rust", Some(binary)) => guest::rust(binary),
        ("musl", None) => guest::c(&entry.name, &entry.source, Toolchain::Musl),
        ("glibc", None) => guest::c(&entry.name, &entry.source, Toolchain::Glibc),
        ("none", None) => guest::c(&entry.name, &entry.source, Toolchain::Bare),
        _ => bail!("no way to build {} with {toolchain}", entry.source),
    }
}

impl Case {
    /// A run of the program at `host` that compares nothing, for at most `limit` seconds.
    pub fn alone(
        name: String,
        host: PathBuf,
        program: &str,
        arguments: &[String],
        cpus: u32,
        limit: u64,
    ) -> Self {
        let guest = format!("/bin/{program}").into_bytes();
        Self {
            name,
            program: Program { host, guest, packed: false },
            helpers: Vec::new(),
            argv: std::iter::once(program.to_owned()).chain(arguments.iter().cloned()).collect(),
            env: vec!["PATH=/bin".to_owned()],
            cwd: "/tmp",
            stdin: Vec::new(),
            cpus,
            timeout: Duration::from_secs(limit),
            memory: None,
            boot: Vec::new(),
            compare: false,
            compare_stderr: false,
        }
    }

    /// The machine that it wants, with this kernel.
    pub fn machine(&self, kernel: &Path) -> Machine {
        let machine = Machine::new(kernel.to_owned(), self.cpus);
        Machine { memory: self.memory.unwrap_or(machine.memory), ..machine }
    }

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
            helpers: Vec::new(),
            memory: None,
            boot: Vec::new(),
            compare: true,
            compare_stderr: true,
        })
    }

    /// Run it in `machine`, and here if it is to be compared: whether all is as it should be, and what the run left.
    pub fn check(&self, machine: &Machine) -> Result<(std::result::Result<(), String>, Outcome)> {
        let outcome = self.in_machine(machine)?;
        Ok((self.judge(machine, &outcome)?, outcome))
    }

    fn judge(&self, machine: &Machine, outcome: &Outcome) -> Result<std::result::Result<(), String>> {
        let End::Exited(status) = outcome.end else {
            let end = match &outcome.end {
                End::TimedOut => format!("no end after {} s", self.timeout.as_secs()),
                other => format!("{other:?}"),
            };
            return Ok(Err(format!("{end}\n{}", self.output(outcome))));
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
            return Ok(Err(format!("exit status {status}\n{}", self.output(outcome))));
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
        for host in &self.helpers {
            run::add_program(&mut image, &program::find(host.as_os_str(), None)?)?;
        }
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
        let boot = Boot { stats: true, words: self.boot.clone(), ..Boot::default() };
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
pub(super) fn difference(native: &Result3, ours: &Result3) -> String {
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

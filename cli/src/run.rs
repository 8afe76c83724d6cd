//! `cargo quire run`: a program of the host's, on Quire or on Linux beside it, as if it ran here.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Component, Path, PathBuf},
};

use anyhow::Result;
use signal_hook::consts::SIGPIPE;

use crate::{
    args::{Accel, Run, StatsFormat, design},
    child, counts, exact,
    failure::{BROKEN, TIMED_OUT, USAGE, failure},
    guest,
    image::{Exec, Image},
    kernel::{self, Build},
    linux::{self, Linux},
    machine::{self, Boot, Machine},
    needs::{self, Tool},
    numa::Numa,
    program::{self, GUEST_PATH, Program},
    session::{self, End, Files, Outcome},
    stats,
    symbols::{Names, Symbols},
    terminal, ui,
};

/// The default for `--cpus` where the host has as many.
const DEFAULT_CPUS: u32 = 4;

/// Do what the options say; the exit status.
pub fn run(options: &Run) -> Result<u8> {
    let ran = execute(options)?;
    if let Some(counted) = &ran.outcome.counts {
        counts::show(options, counted, || ran.names())?;
    }
    report(options, &ran.outcome)
}

/// A run that has ended.
pub struct Ran {
    /// How.
    pub outcome: Outcome,
    /// The kernel's file.
    pub kernel: PathBuf,
    /// The Linux that ran, if it wasn't Quire.
    pub linux: Option<Linux>,
    /// The program.
    pub program: Program,
}

impl Ran {
    /// The names of the kernel's functions.
    pub fn names(&self) -> Result<Names> {
        match &self.linux {
            Some(linux) => linux.kallsyms().map(Names::Linux),
            None => Ok(Names::Quire(Box::new(Symbols::new(&self.kernel)))),
        }
    }
}

/// Run what the options say to its end.
pub fn execute(options: &Run) -> Result<Ran> {
    // The demonstration shows several CPUs at work, whatever the host has.
    let default =
        if options.command.is_empty() { DEFAULT_CPUS } else { machine::host_cpus().min(DEFAULT_CPUS) };
    let numa = options.numa.clone().unwrap_or(Numa::even(1));
    let cpus = options.cpus.or(numa.cpus()).unwrap_or(default);
    numa.check(cpus, options.mem)?;
    let wanted_memory = options.mem.or(numa.memory());
    // Mistakes show before anything is built or started.
    let linux = options.system.linux()?;
    if linux.is_some() && wanted_memory.is_some_and(|bytes| bytes < linux::MIN_MEMORY) {
        let mib = linux::MIN_MEMORY >> 20;
        return Err(failure(USAGE, format!("Linux needs {mib} MiB: say --mem {mib}M or more")));
    }
    if linux.is_some() && options.frames.is_some() {
        return Err(failure(
            USAGE,
            "--frames chooses among Quire's algorithms: leave it out with --kernel linux",
        ));
    }
    if linux.is_none() {
        design::check(&[options.aspace], options.exclude, options.locked)?;
    }
    exact::check(options)?;
    let (mut image, program) = image(options)?;
    let (kvm, why) = machine::choose_kvm(options.accel)?;
    machine::emulator()?;
    let linux = linux.map(Linux::obtain).transpose()?;
    let build = if options.sanitize { Build::Sanitized } else { Build::Ordinary };
    let booted = match &linux {
        Some(linux) => boot_linux(linux, &mut image, cpus, options.verbose)?,
        None => Machine::new(kernel::build(build)?, cpus),
    };
    let memory = wanted_memory.unwrap_or(booted.memory);
    let mut exact = exact::machine(options, &program.host)?;
    if let (Some(exact), Some(linux)) = (exact.as_mut().filter(|exact| exact.count), &linux) {
        exact.places = linux.kallsyms()?.places();
    }
    let machine = Machine { memory, numa, kvm, exact, ..booted };
    // What a program does may depend on whether it talks to a terminal; exact runs are all alike.
    let talks = machine.exact.is_none();
    let boot = Boot {
        aspace: Some(options.aspace),
        pagetable: options.pagetable,
        exclude: options.exclude,
        locked: options.locked,
        frames: options.frames,
        stats: options.stats.is_some(),
        terminals: if talks { terminal::standard_files() } else { Vec::new() },
        size: terminal::size().filter(|_| talks),
        verbose: options.verbose,
        places: options.trace.is_some(),
        plant_shared_counter: options.trace.is_some_and(|traced| traced.plant_shared_counter),
        words: options.boot.clone(),
        ..Boot::default()
    };
    if options.verbose {
        ui::say(&format!("{cpus} CPUs, {} MiB, {why}", machine.memory >> 20));
    }
    let outcome = session::run(&machine, &boot, image, Files::Ours, options.timeout)?;
    if outcome.counts.is_none() && machine.exact.as_ref().is_some_and(|exact| exact.count) {
        ui::say("nothing was counted: the machine did not come to its end");
    }
    Ok(Ran { outcome, kernel: machine.kernel, linux, program })
}

/// A machine for this Linux, and in the image what it needs.
fn boot_linux(linux: &Linux, image: &mut Image, cpus: u32, verbose: bool) -> Result<Machine> {
    linux::furnish(image)?;
    if verbose {
        ui::say(&format!("Linux {} (Debian {}), mitigations off", linux.release, linux.version));
    }
    Ok(linux.machine(cpus))
}

/// Say what there is to say about how the run ended; the exit status.
pub fn report(options: &Run, outcome: &Outcome) -> Result<u8> {
    if let (Some(format), Some(json)) = (options.stats, &outcome.stats) {
        match format {
            StatsFormat::Table => ui::show(&stats::table(json)?),
            StatsFormat::Json => ui::show(json),
        }
    }
    if let (true, Some(ready)) = (options.verbose, outcome.ready) {
        ui::say(&format!("{:.3} s to the first user instruction", ready as f64 / 1e9));
    }
    match &outcome.end {
        End::Exited(status) => Ok(*status),
        End::TimedOut => {
            let seconds = options.timeout.unwrap_or_default().as_secs_f64();
            Err(failure(TIMED_OUT, format!("timed out after {seconds} s")))
        }
        End::Panicked => {
            if !options.verbose {
                ui::show(&outcome.log.join("\n"));
            }
            Err(failure(BROKEN, "the kernel panicked: the messages above say where"))
        }
        End::Escaped => Err(failure(BROKEN, "ended by Ctrl-] three times")),
        End::OutputClosed => child::die_of(SIGPIPE),
        End::Died(why) => {
            if !options.verbose {
                ui::show(&outcome.log.join("\n"));
            }
            Err(failure(BROKEN, why.clone()))
        }
    }
}

/// Everything that the guest starts with, and the program.
fn image(options: &Run) -> Result<(Image, Program)> {
    let (program, argv) = match options.command.first() {
        Some(name) => {
            if name == "busybox" && options.root.is_none() {
                needs::ensure(&[Tool::Busybox])?;
            }
            let argv = options.command.iter().map(|word| word.as_bytes().to_vec()).collect();
            (program::find(name, options.root.as_deref())?, argv)
        }
        None => (demonstration()?, vec![b"demo".to_vec()]),
    };
    let mut image = Image::default();
    if let Some(root) = &options.root {
        image.bind(root, b"/")?;
    }
    for bind in &options.bind {
        let (host, guest) = split_bind(bind)?;
        image.bind(&host, &guest)?;
    }
    add_program(&mut image, &program)?;
    let mut env = vec![format!("PATH={GUEST_PATH}"), "HOME=/root".to_owned()];
    if !terminal::standard_files().is_empty() && options.accel != Accel::Exact {
        env.push(format!("TERM={}", std::env::var("TERM").unwrap_or_else(|_| "dumb".to_owned())));
    }
    let exec = Exec { argv, env: merge(env, &options.env), cwd: b"/".to_vec(), path: program.guest.clone() };
    image.exec(&exec);
    Ok((image, program))
}

/// Put a program, checked, and what belongs to it into the guest.
pub fn add_program(image: &mut Image, program: &Program) -> Result<()> {
    program::check(program, |path| image.leads_somewhere(path))?;
    if !program.packed {
        image.bind(&program.host, &program.guest)?;
        let names = program::applets(program);
        if !names.is_empty() && program.guest != b"/bin/busybox" {
            image.symlink(b"/bin/busybox", &program.guest);
        }
        for name in names {
            image.symlink(&[b"/bin/", name.as_bytes()].concat(), &program.guest);
        }
    }
    image.skeleton();
    Ok(())
}

fn demonstration() -> Result<Program> {
    Ok(Program { host: guest::rust("demo")?, guest: b"/bin/demo".to_vec(), packed: false })
}

/// The two sides of `HOST[:GUEST]`. Without GUEST: the same path, where a relative one starts at the guest's root.
fn split_bind(bind: &OsStr) -> Result<(PathBuf, Vec<u8>)> {
    let bytes = bind.as_bytes();
    let colon = bytes.iter().rposition(|byte| *byte == b':').filter(|_| !Path::new(bind).exists());
    let (host, guest) = match colon {
        Some(at) => (&bytes[..at], bytes[at + 1..].to_vec()),
        None => (bytes, bytes.to_vec()),
    };
    let host = PathBuf::from(OsString::from_vec(host.to_vec()));
    if !host.exists() {
        return Err(failure(
            USAGE,
            format!("--bind {}: no such file or directory on the host", host.display()),
        ));
    }
    if guest.is_empty() || (colon.is_some() && guest.first() != Some(&b'/')) {
        return Err(failure(
            USAGE,
            format!("--bind {}: say GUEST as an absolute path", bind.to_string_lossy()),
        ));
    }
    let leaves = colon.is_none() && host.components().any(|part| part == Component::ParentDir);
    let guest = if leaves { host.canonicalize()?.into_os_string().into_vec() } else { guest };
    Ok((host, guest))
}

/// `env` with the variables of `more` set; later ones win.
fn merge(mut env: Vec<String>, more: &[String]) -> Vec<Vec<u8>> {
    for variable in more {
        let name = variable.split_inclusive('=').next().unwrap_or(variable);
        env.retain(|other| !other.starts_with(name));
        env.push(variable.clone());
    }
    env.into_iter().map(String::into_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bind_has_one_side_or_two() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a:b");
        std::fs::write(&path, "").unwrap();
        let bind = |text: &Path, tail: &str| split_bind(OsStr::new(&format!("{}{tail}", text.display())));
        assert_eq!(bind(dir.path(), ":/data").unwrap(), (dir.path().into(), b"/data".to_vec()));
        let same = path.as_os_str().as_bytes().to_vec();
        assert_eq!(bind(&path, "").unwrap(), (path.clone(), same));
        assert_eq!(bind(&path, ":/c").unwrap(), (path.clone(), b"/c".to_vec()));
        assert!(
            bind(dir.path(), ":data").unwrap_err().to_string().ends_with("say GUEST as an absolute path")
        );
        assert!(bind(dir.path(), "/none").unwrap_err().to_string().ends_with("on the host"));
        let above = split_bind(OsStr::new("..")).unwrap();
        assert!(above.1.starts_with(b"/") && !above.1.ends_with(b".."));
    }

    #[test]
    fn later_variables_win() {
        let env =
            merge(vec!["PATH=/bin".into(), "A=1".into()], &["PATH=/x".into(), "AB=2".into(), "AB=3".into()]);
        let env: Vec<_> = env.into_iter().map(|v| String::from_utf8(v).unwrap()).collect();
        assert_eq!(env, ["A=1", "PATH=/x", "AB=3"]);
    }
}

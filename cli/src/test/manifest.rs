//! `bench/guest/tests.toml`: which guest programs and shell commands to run, and how.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use toml::{Table, Value};

use crate::workspace;

/// A self-checking program.
#[derive(Clone, Debug)]
pub struct Program {
    pub name: String,
    pub source: String,
    /// `musl`, `glibc`, `none` or `rust`.
    pub toolchains: Vec<String>,
    /// Arguments; `{cpus}` stands for the number of CPUs.
    pub args: Vec<String>,
    /// Arguments of the long run of `--full`, and its limit.
    pub long: Option<(Vec<String>, Duration)>,
    /// Whether it runs with `--full` only.
    pub only_full: bool,
    /// Whether it runs on each design of the address space without `--full` too.
    pub each_design: bool,
    pub cpus: Vec<u32>,
    pub timeout: Duration,
    /// Bytes of memory of the machine, if not as by default.
    pub memory: Option<u64>,
    /// Words for the kernel's command line.
    pub boot: Vec<String>,
    /// Backends of `vmprim` that must work on Quire's `radix`.
    pub must: Vec<String>,
    /// Its output must equal that of a native run.
    pub compare: bool,
    /// Whether it may run natively.
    pub native: bool,
}

/// What runs a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interpreter {
    /// `busybox sh -c`.
    Busybox,
    /// `bash -c`.
    Bash,
    /// `lua -e`, of this package.
    Lua,
}

impl Interpreter {
    const ALL: [Self; 3] = [Self::Busybox, Self::Bash, Self::Lua];

    /// As the file names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Busybox => "busybox",
            Self::Bash => "bash",
            Self::Lua => "lua",
        }
    }
}

/// A script.
#[derive(Clone, Debug)]
pub struct Shell {
    pub name: String,
    pub shell: Interpreter,
    pub command: String,
    pub stdin: String,
    pub cpus: Vec<u32>,
    pub timeout: Duration,
}

/// Everything that the file lists.
#[derive(Debug)]
pub struct Manifest {
    pub programs: Vec<Program>,
    pub shell: Vec<Shell>,
}

/// The manifest of this workspace.
pub fn read() -> Result<Manifest> {
    let path = workspace::root().join("bench/guest/tests.toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&text).with_context(|| path.display().to_string())
}

fn parse(text: &str) -> Result<Manifest> {
    let mut table: Table = text.parse()?;
    let manifest = Manifest {
        programs: take_all(&mut table, "program", program)?,
        shell: take_all(&mut table, "shell", shell)?,
    };
    nothing_left(&table)?;
    Ok(manifest)
}

fn take_all<T>(table: &mut Table, kind: &str, read: impl Fn(&mut Table) -> Result<T>) -> Result<Vec<T>> {
    let Some(Value::Array(entries)) = table.remove(kind) else { bail!("no [[{kind}]]") };
    entries
        .into_iter()
        .map(|entry| {
            let Value::Table(mut entry) = entry else { bail!("a [[{kind}]] is not a table") };
            let name = entry.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
            let read = read(&mut entry).and_then(|found| nothing_left(&entry).map(|()| found));
            read.with_context(|| format!("[[{kind}]] {name}"))
        })
        .collect()
}

fn program(table: &mut Table) -> Result<Program> {
    Ok(Program {
        name: string(table, "name")?.context("no name")?,
        source: string(table, "source")?.context("no source")?,
        toolchains: strings(table, "toolchains")?.context("no toolchains")?,
        args: strings(table, "args")?.context("no args")?,
        long: long(table)?,
        only_full: boolean(table, "only_full")?.unwrap_or(false),
        each_design: boolean(table, "each_design")?.unwrap_or(false),
        cpus: cpus(table)?.context("no cpus")?,
        timeout: seconds(table, "timeout")?.context("no timeout")?,
        memory: memory(table)?,
        boot: strings(table, "boot")?.unwrap_or_default(),
        must: strings(table, "must")?.unwrap_or_default(),
        compare: boolean(table, "compare")?.context("no compare")?,
        native: boolean(table, "native")?.unwrap_or(true),
    })
}

fn shell(table: &mut Table) -> Result<Shell> {
    Ok(Shell {
        name: string(table, "name")?.context("no name")?,
        shell: interpreter(table)?,
        command: string(table, "command")?.context("no command")?,
        stdin: string(table, "stdin")?.unwrap_or_default(),
        cpus: cpus(table)?.unwrap_or_else(|| vec![1, 4, 16]),
        timeout: seconds(table, "timeout")?.unwrap_or(Duration::from_secs(30)),
    })
}

fn interpreter(table: &mut Table) -> Result<Interpreter> {
    let Some(name) = string(table, "shell")? else { return Ok(Interpreter::Busybox) };
    let known = Interpreter::ALL.into_iter().find(|interpreter| interpreter.name() == name);
    known.with_context(|| {
        format!("shell is {name}, not one of {}", Interpreter::ALL.map(Interpreter::name).join(", "))
    })
}

fn string(table: &mut Table, key: &str) -> Result<Option<String>> {
    match table.remove(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => bail!("{key} is not a string"),
    }
}

fn strings(table: &mut Table, key: &str) -> Result<Option<Vec<String>>> {
    let Some(value) = table.remove(key) else { return Ok(None) };
    let Value::Array(values) = value else { bail!("{key} is not an array") };
    let string = |value| match value {
        Value::String(text) => Ok(text),
        _ => bail!("{key} has something else than strings"),
    };
    values.into_iter().map(string).collect::<Result<_>>().map(Some)
}

fn boolean(table: &mut Table, key: &str) -> Result<Option<bool>> {
    table
        .remove(key)
        .map(|value| value.as_bool().with_context(|| format!("{key} is not true or false")))
        .transpose()
}

fn cpus(table: &mut Table) -> Result<Option<Vec<u32>>> {
    let Some(value) = table.remove("cpus") else { return Ok(None) };
    let count = |value: &Value| {
        value.as_integer().and_then(|n| u32::try_from(n).ok()).filter(|n| (1..=255).contains(n))
    };
    let counts: Option<Vec<u32>> = value.as_array().and_then(|values| values.iter().map(count).collect());
    counts.context("cpus is not an array of numbers from 1 to 255").map(Some)
}

fn seconds(table: &mut Table, key: &str) -> Result<Option<Duration>> {
    let Some(value) = table.remove(key) else { return Ok(None) };
    let seconds = value.as_integer().and_then(|n| u64::try_from(n).ok());
    seconds.map(|n| Some(Duration::from_secs(n))).with_context(|| format!("{key} is not a number of seconds"))
}

fn long(table: &mut Table) -> Result<Option<(Vec<String>, Duration)>> {
    match (strings(table, "full_args")?, seconds(table, "full_timeout")?) {
        (Some(args), Some(limit)) => Ok(Some((args, limit))),
        (None, None) => Ok(None),
        _ => bail!("full_args and full_timeout go together"),
    }
}

fn memory(table: &mut Table) -> Result<Option<u64>> {
    let Some(value) = table.remove("memory") else { return Ok(None) };
    let mib = value.as_integer().and_then(|n| u64::try_from(n).ok()).filter(|n| (64..1 << 20).contains(n));
    mib.map(|n| Some(n << 20)).context("memory is not a number of MiB from 64 on")
}

fn nothing_left(table: &Table) -> Result<()> {
    match table.keys().next() {
        Some(key) => bail!("unknown key {key}"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
        [[program]]
        name = "p"
        source = "c/p.c"
        toolchains = ["musl"]
        args = ["{cpus}"]
        cpus = [1, 80]
        timeout = 60
        compare = true
        [[program]]
        name = "q"
        source = "c/q.c"
        toolchains = []
        args = ["1"]
        full_args = ["10"]
        full_timeout = 600
        only_full = true
        each_design = true
        cpus = [1]
        timeout = 60
        memory = 128
        boot = ["inject"]
        must = ["native"]
        compare = false
        [[shell]]
        name = "s"
        command = "true"
    "#;

    #[test]
    fn entries_are_read_with_their_defaults() {
        let manifest = parse(TEXT).unwrap();
        assert_eq!(manifest.programs[0].cpus, [1, 80]);
        assert!(manifest.programs[0].native);
        let [p, q] = &manifest.programs[..] else { panic!("two programs") };
        assert_eq!((p.memory, p.boot.len(), &p.long), (None, 0, &None));
        assert!(!p.only_full && !p.each_design);
        assert_eq!(
            (q.memory, q.boot.as_slice(), q.only_full, q.each_design),
            (Some(128 << 20), &["inject".to_owned()][..], true, true)
        );
        assert_eq!((p.must.as_slice(), q.must.as_slice()), (&[][..], &["native".to_owned()][..]));
        assert_eq!(q.long, Some((vec!["10".to_owned()], Duration::from_secs(600))));
        assert_eq!(
            (manifest.shell[0].cpus.as_slice(), manifest.shell[0].timeout.as_secs()),
            (&[1, 4, 16][..], 30)
        );
        assert_eq!(manifest.shell[0].shell, Interpreter::Busybox);
    }

    #[test]
    fn mistakes_name_the_entry() {
        let error = |from: &str, to: &str| format!("{:#}", parse(&TEXT.replace(from, to)).unwrap_err());
        assert_eq!(
            error("[1, 80]\n        timeout = 60", "[1, 80]\n        timeout = \"x\""),
            "[[program]] p: timeout is not a number of seconds"
        );
        assert_eq!(error("command = ", "comand = "), "[[shell]] s: no command");
        assert_eq!(error("compare = true", "compare = true\nfrob = 1"), "[[program]] p: unknown key frob");
        assert_eq!(
            error("name = \"s\"", "name = \"s\"\nshell = \"fish\""),
            "[[shell]] s: shell is fish, not one of busybox, bash, lua"
        );
        assert!(error("[1, 80]", "[0]").contains("from 1 to 255"));
        assert!(error("memory = 128", "memory = 63").ends_with("memory is not a number of MiB from 64 on"));
        assert!(error("full_timeout = 600", "").ends_with("full_args and full_timeout go together"));
        assert_eq!(
            error("boot = [\"inject\"]", "boot = [1]"),
            "[[program]] q: boot has something else than strings"
        );
        assert_eq!(error("args = [\"{cpus}\"]", ""), "[[program]] p: no args");
    }

    #[test]
    fn the_workspaces_manifest_is_well_formed() {
        let manifest = read().unwrap();
        assert!(manifest.shell.len() + manifest.programs.len() >= 40);
        for shell in Interpreter::ALL {
            assert!(manifest.shell.iter().any(|entry| entry.shell == shell), "{shell:?} runs nothing");
        }
    }
}

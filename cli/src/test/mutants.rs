//! Planted faults: one build of each crate holds them all, a variable wakes one, and its tests must then fail.
//!
//! The lists `crates/mutants*.txt` have a line for each: `name | package | cargo test arguments | loom, shuttle or no`.
//! The same tests must pass with all faults asleep, or a failure would say nothing. `kernel/mutants.txt` has those that a word
//! on the kernel's command line wakes, and the guest programs that must notice.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{Report, host, linux::Case, loom, output, pool};
use crate::{
    cargo, child,
    guest::{self, Toolchain},
    kernel::{self, Build},
    needs::{self, Tool},
    workspace,
};

/// Names the fault that is awake.
const AWAKE: &str = "QUIRE_MUTANT";
const BUILD_LIMIT: Duration = Duration::from_secs(10 * 60);
/// A fault may make its tests hang; that is caught too.
const RUN_LIMIT: Duration = Duration::from_secs(90);
/// The same for a machine, in seconds.
const MACHINE_LIMIT: u64 = 90;
/// How often the tests may run before a fault counts as not caught: what threads do differs from run to run.
const TRIES: u32 = 3;

/// A program of tests, and how it is built.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Program {
    package: String,
    arguments: Vec<String>,
    /// The `cfg` of the model checker that it runs under.
    under: Option<&'static str>,
}

/// Some tests of a program, by parts of their names; all if there are none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Suite {
    program: Program,
    tests: BTreeSet<String>,
}

pub fn run(report: &mut Report, _full: bool) -> Result<()> {
    let mutants = planted()?;
    // Whatever tests of a program are wanted, at once: each runs once with all faults asleep.
    let mut programs = BTreeMap::<Program, BTreeSet<String>>::new();
    for (_, Suite { program, tests }) in &mutants {
        let all = programs.get(program).is_some_and(BTreeSet::is_empty);
        let wanted = programs.entry(program.clone()).or_default();
        match all || tests.is_empty() {
            true => wanted.clear(),
            false => wanted.extend(tests.iter().cloned()),
        }
    }
    let suites: Vec<_> = programs.into_iter().map(|(program, tests)| Suite { program, tests }).collect();
    let (shared, mut sound) = (RefCell::new(report), BTreeMap::new());
    // Those of a model checker are single threads.
    pool::in_order(
        suites.len(),
        |i| suites[i].threads(),
        |i| {
            let began = Instant::now();
            let end = child::lines(&mut suites[i].command(), BUILD_LIMIT, |_| ())?;
            Ok((end, began.elapsed()))
        },
        |i| shared.borrow().doing(&suites[i].name()),
        |i, (end, took)| {
            if end.success() {
                sound.insert(&suites[i].program, took);
            } else {
                let name = format!("{}: with all faults asleep", suites[i].name());
                shared.borrow_mut().fail(&name, &output::tail(&end));
            }
        },
    )?;
    let mutants: Vec<_> = mutants.iter().filter(|(_, suite)| sound.contains_key(&suite.program)).collect();
    let mut caught = 0;
    pool::in_order(
        mutants.len(),
        |i| mutants[i].1.threads(),
        |i| mutants[i].1.against(&mutants[i].0, sound[&mutants[i].1.program]),
        |i| shared.borrow().begin(i, mutants.len(), &mutants[i].0),
        |i, end| {
            let result = if end { Ok(()) } else { Err("the fault was not caught".to_owned()) };
            caught += u32::from(result.is_ok());
            shared.borrow_mut().record(&mutants[i].0, result);
        },
    )?;
    let report = shared.into_inner();
    let kernels = of_the_kernel()?;
    for (i, (name, case)) in kernels.iter().enumerate() {
        report.begin(i, kernels.len(), name);
        let result = noticed(case, name)?;
        caught += u32::from(result.is_ok());
        report.record(name, result);
    }
    report.remark(format!("{caught}/{} caught", mutants.len() + kernels.len()));
    Ok(())
}

/// Whether the program ends well with all faults asleep, and not with this one.
fn noticed(case: &Case, fault: &str) -> Result<Result<(), String>> {
    let machine = case.machine(&kernel::build(Build::Ordinary)?);
    if let (Err(why), _) = case.check(&machine)? {
        return Ok(Err(format!("with all faults asleep: {why}")));
    }
    let awake = Case { boot: vec![format!("plant={fault}")], ..case.clone() };
    Ok(match awake.check(&machine)?.0 {
        Ok(()) => Err("the fault was not caught".to_owned()),
        Err(_) => Ok(()),
    })
}

/// The faults of the kernel, each with the run of a program that must notice it.
fn of_the_kernel() -> Result<Vec<(String, Case)>> {
    needs::ensure(&[Tool::MuslGcc])?;
    lines("kernel/mutants.txt")?.iter().map(|line| of_kernel(line)).collect()
}

fn of_kernel(line: &str) -> Result<(String, Case)> {
    let fields: Vec<_> = line.split('|').map(str::trim).collect();
    let [name, program, arguments, cpus] = fields[..] else { bail!("not four fields: {line}") };
    let host = guest::c(program, &format!("c/{program}.c"), Toolchain::Musl)?;
    let arguments: Vec<_> = arguments.split_whitespace().map(str::to_owned).collect();
    let cpus = cpus.parse().with_context(|| format!("no number of CPUs: {line}"))?;
    let case = Case::alone(format!("{program} with {name}"), host, program, &arguments, cpus, MACHINE_LIMIT);
    Ok((name.to_owned(), case))
}

impl Suite {
    fn command(&self) -> Command {
        let Program { package, arguments, under } = &self.program;
        let mut command = under.map_or_else(|| cargo::command(host::target()), loom::under);
        host::quick(&mut command);
        command.args(["test", "-p", package]).args(arguments).arg("--").args(&self.tests);
        command
    }

    /// Whether a test fails with this fault awake, in at most [`TRIES`] runs. Building its program and running its tests took
    /// `usually` with none awake: a hang is something else than a slow host.
    fn against(&self, fault: &str, usually: Duration) -> Result<bool> {
        let failed = |line: &str| line.starts_with("test ") && line.ends_with("FAILED");
        for _ in 0..TRIES {
            let mut seen = false;
            let end =
                child::lines_until(self.command().env(AWAKE, fault), RUN_LIMIT.max(3 * usually), |line| {
                    seen |= failed(line);
                    seen
                })?;
            if seen || !end.success() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// How many threads of the host it keeps busy.
    fn threads(&self) -> usize {
        if self.program.under.is_some() { 1 } else { pool::THREADS }
    }

    fn name(&self) -> String {
        let tests: Vec<_> = self.tests.iter().map(String::as_str).collect();
        format!("{} {} {}", self.program.package, self.program.arguments.join(" "), tests.join(" "))
    }
}

/// The lines of a list, but for comments.
fn lines(list: &str) -> Result<Vec<String>> {
    let path = workspace::root().join(list);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(lines.map(str::to_owned).collect())
}

/// All planted faults of the crates, by the lists.
fn planted() -> Result<Vec<(String, Suite)>> {
    let mut mutants = Vec::new();
    for list in ["crates/mutants.txt", "crates/mutants-upper.txt"] {
        for line in lines(list)? {
            mutants.push(entry(&line).with_context(|| list.to_owned())?);
        }
    }
    Ok(mutants)
}

fn entry(line: &str) -> Result<(String, Suite)> {
    let fields: Vec<_> = line.split('|').map(str::trim).collect();
    let [name, package, arguments, under] = fields[..] else { bail!("not four fields: {line}") };
    let under = match under {
        "yes" => Some(loom::LOOM),
        "shuttle" => Some(loom::SHUTTLE),
        "no" => None,
        _ => bail!("neither yes nor shuttle nor no at the end: {line}"),
    };
    let words: Vec<_> = arguments.split_whitespace().map(str::to_owned).collect();
    // What follows the name of a program of tests, or `--`, are names of tests.
    let named = words.iter().position(|word| word == "--test").map(|i| i + 2);
    let lib = || words.iter().position(|word| word == "--lib").map(|i| i + 1);
    let Some(end) = named.or_else(lib).filter(|end| *end <= words.len()) else {
        bail!("no program of tests: {line}")
    };
    let tests = words[end..].iter().filter(|word| *word != "--").cloned().collect();
    let program = Program { package: package.to_owned(), arguments: words[..end].to_vec(), under };
    Ok((name.to_owned(), Suite { program, tests }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_a_fault_and_its_tests() {
        let (name, suite) = entry("drop-ipi | quire-tlb | --test gather -- stale | no").unwrap();
        assert_eq!(name, "drop-ipi");
        let arguments = ["--test", "gather"].map(str::to_owned).to_vec();
        let program = Program { package: "quire-tlb".into(), arguments, under: None };
        assert_eq!(suite, Suite { program, tests: ["stale".to_owned()].into() });
        let arguments: Vec<_> =
            suite.command().get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        assert!(arguments.ends_with(&["--test", "gather", "--", "stale"].map(str::to_owned)));
        assert_eq!(entry("a | b | --lib c | shuttle").unwrap().1.program.under, Some("shuttle"));
        assert!(entry("a | b | c | no").is_err());
        assert!(entry("a | b | --test").is_err());
        assert!(entry("a | b | --lib c").is_err());
        assert!(entry("a | b | --lib c | perhaps").is_err());
    }

    #[test]
    fn the_lists_of_the_workspace_are_well_formed_and_without_doubles() {
        let mutants = planted().unwrap();
        let different: BTreeSet<_> = mutants.iter().collect();
        assert_eq!(different.len(), mutants.len());
        for line in lines("kernel/mutants.txt").unwrap() {
            assert_eq!(line.split('|').count(), 4, "{line}");
        }
    }
}

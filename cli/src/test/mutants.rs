//! Planted faults: one build of each crate holds them all, a variable wakes one, and its tests must then fail.
//!
//! They are the programs that the groups `host` and `loom` have built (`built.rs`). Two run at a time: most are single threads,
//! or wait for each other's.
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

use super::{
    Report,
    built::{self, Built, Program},
    linux::Case,
    loom, output,
    pool::{self, Task, Verdict},
};
use crate::{
    child,
    guest::{self, Toolchain},
    kernel::{self, Build},
    machine::Machine,
    needs::{self, Tool},
    workspace,
};

/// Names the fault that is awake.
const AWAKE: &str = "QUIRE_MUTANT";
const SOUND_LIMIT: Duration = Duration::from_secs(10 * 60);
/// A fault may make its tests hang; that is caught too.
const RUN_LIMIT: Duration = Duration::from_secs(90);
/// The same for a machine, in seconds.
const MACHINE_LIMIT: u64 = 90;
/// How often the tests may run before a fault counts as not caught: what threads do differs from run to run.
const TRIES: u32 = 3;

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
    let built = built::build(report, suites.iter().map(|suite| &suite.program))?;
    let suites: Vec<_> =
        suites.iter().filter_map(|suite| Some((suite, built.get(&suite.program)?))).collect();
    // The models may have passed already, among all others.
    let (passed, suites): (Vec<_>, Vec<_>) =
        suites.into_iter().partition(|(_, built)| built.passed_in().is_some());
    let mut sound: BTreeMap<_, _> = passed
        .into_iter()
        .filter_map(|(suite, built)| Some((&suite.program, (built, built.passed_in()?))))
        .collect();
    let shared = RefCell::new(report);
    pool::in_order(
        suites.len(),
        |_| 1,
        |i| {
            let (suite, built) = suites[i];
            let began = Instant::now();
            let end = child::lines(&mut suite.command(built), SOUND_LIMIT, |_| ())?;
            Ok((end, began.elapsed()))
        },
        |i| shared.borrow().doing(&suites[i].0.name()),
        |i, (end, took)| {
            let (suite, built) = suites[i];
            if end.success() {
                sound.insert(&suite.program, (built, took));
            } else {
                let name = format!("{}: with all faults asleep", suite.name());
                shared.borrow_mut().fail(&name, &output::tail(&end));
            }
        },
    )?;
    let mutants: Vec<_> = mutants.iter().filter(|(_, suite)| sound.contains_key(&suite.program)).collect();
    let mut caught = 0;
    pool::in_order(
        mutants.len(),
        |_| 1,
        |i| {
            let (fault, suite) = mutants[i];
            let (built, usually) = sound[&suite.program];
            suite.against(fault, built, usually)
        },
        |i| shared.borrow().begin(i, mutants.len(), &mutants[i].0),
        |i, end| {
            let result = if end { Ok(()) } else { Err("the fault was not caught".to_owned()) };
            caught += u32::from(result.is_ok());
            shared.borrow_mut().record(&mutants[i].0, result);
        },
    )?;
    let report = shared.into_inner();
    let (kernel, kernels) = (&kernel::build(Build::Ordinary)?, of_the_kernel()?);
    let mut tasks = Vec::new();
    for (name, case) in &kernels {
        let machine = case.machine(kernel);
        tasks.push(Task::test(name, machine.host_threads(), move || noticed(case, name, &machine)));
    }
    let before = report.passed;
    pool::record(report, tasks)?;
    caught += report.passed - before;
    report.remark(format!("{caught}/{} caught", mutants.len() + kernels.len()));
    Ok(())
}

/// Whether the program ends well with all faults asleep, and not with this one.
fn noticed(case: &Case, fault: &str, machine: &Machine) -> Result<Verdict> {
    if let (Err(why), _) = case.check(machine)? {
        return Ok(Err(format!("with all faults asleep: {why}")));
    }
    let mut awake = case.clone();
    awake.boot.push(format!("plant={fault}"));
    Ok(match awake.check(machine)?.0 {
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
    let [name, program, arguments, cpus, ref more @ ..] = fields[..] else {
        bail!("not four fields: {line}")
    };
    let host = guest::c(program, &format!("c/{program}.c"), Toolchain::Musl)?;
    let arguments: Vec<_> = arguments.split_whitespace().map(str::to_owned).collect();
    let cpus = cpus.parse().with_context(|| format!("no number of CPUs: {line}"))?;
    let case = Case::alone(format!("{program} with {name}"), host, program, &arguments, cpus, MACHINE_LIMIT);
    let boot = more.iter().flat_map(|words| words.split_whitespace()).map(str::to_owned).collect();
    Ok((name.to_owned(), Case { boot, ..case }))
}

impl Suite {
    fn command(&self, built: &Built) -> Command {
        let mut command = built.command();
        command.args(&self.tests);
        command
    }

    /// Whether a test fails with this fault awake, in at most [`TRIES`] runs. They took `usually` with none awake: a hang is
    /// something else than a slow host.
    fn against(&self, fault: &str, built: &Built, usually: Duration) -> Result<bool> {
        let failed = |line: &str| line.starts_with("test ") && line.ends_with("FAILED");
        for _ in 0..TRIES {
            let mut seen = false;
            let mut command = self.command(built);
            let end = child::lines_until(command.env(AWAKE, fault), RUN_LIMIT.max(3 * usually), |line| {
                seen |= failed(line);
                seen
            })?;
            if seen || !end.success() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn name(&self) -> String {
        let Program { package, target, under, .. } = &self.program;
        let tests: Vec<_> = self.tests.iter().map(String::as_str).collect();
        format!("{} {package} {} {}", under.unwrap_or_default(), target.join(" "), tests.join(" "))
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
    let named = words.iter().position(|word| word == "--test").map(|i| (i, i + 2));
    let lib = || words.iter().position(|word| word == "--lib").map(|i| (i, i + 1));
    let Some((begin, end)) = named.or_else(lib).filter(|(_, end)| *end <= words.len()) else {
        bail!("no program of tests: {line}")
    };
    let tests = words[end..].iter().filter(|word| *word != "--").cloned().collect();
    let (flags, target) = (words[..begin].to_vec(), words[begin..end].to_vec());
    let program = Program { package: package.to_owned(), target, flags, under };
    Ok((name.to_owned(), Suite { program, tests }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
        words.map(str::to_owned).to_vec()
    }

    #[test]
    fn a_line_names_a_fault_and_its_tests() {
        let (name, suite) = entry("drop-ipi | quire-tlb | --test gather -- stale | no").unwrap();
        assert_eq!(name, "drop-ipi");
        let target = words(["--test", "gather"]);
        let program = Program { package: "quire-tlb".into(), target, flags: vec![], under: None };
        assert_eq!(suite, Suite { program, tests: ["stale".to_owned()].into() });
        let built = Built { file: "/t/gather-1".into(), folder: "/w/crates/tlb".into() };
        let command = suite.command(&built);
        assert_eq!(
            (command.get_program(), command.get_args().collect::<Vec<_>>()),
            ("/t/gather-1".as_ref(), vec!["stale".as_ref()])
        );
        assert_eq!(command.get_current_dir(), Some(built.folder.as_path()));
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
            assert!((4..=5).contains(&line.split('|').count()), "{line}");
        }
    }
}

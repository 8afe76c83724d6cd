//! Planted faults: one build of each crate holds them all, a variable wakes one, and its tests must then fail.
//!
//! Cargo builds the programs of tests beforehand, as many at once as share their dependencies; each run then starts its program
//! itself, in its package's folder as cargo would. Two run at a time: most are single threads, or wait for each other's.
//!
//! The lists `crates/mutants*.txt` have a line for each: `name | package | cargo test arguments | loom, shuttle or no`.
//! The same tests must pass with all faults asleep, or a failure would say nothing. `kernel/mutants.txt` has those that a word
//! on the kernel's command line wakes, and the guest programs that must notice.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
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
const BUILD_LIMIT: Duration = Duration::from_secs(15 * 60);
const SOUND_LIMIT: Duration = Duration::from_secs(10 * 60);
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
    /// `--test` and its name, or `--lib`.
    target: Vec<String>,
    /// Cargo's other arguments.
    flags: Vec<String>,
    /// The `cfg` of the model checker that it runs under.
    under: Option<&'static str>,
}

/// Programs that one command builds.
struct Batch<'a> {
    flags: &'a [String],
    under: Option<&'static str>,
    programs: Vec<&'a Program>,
}

/// A program that is built, and the folder of its package.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Built {
    file: PathBuf,
    folder: PathBuf,
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
    let mut built = BTreeMap::new();
    for build in Batch::all(suites.iter().map(|suite| &suite.program)) {
        report.doing(&build.name());
        match build.run()? {
            Ok(programs) => built.extend(programs),
            Err(why) => report.fail(&build.name(), &why),
        }
    }
    let suites: Vec<_> =
        suites.iter().filter_map(|suite| Some((suite, built.get(&suite.program)?))).collect();
    let (shared, mut sound) = (RefCell::new(report), BTreeMap::new());
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
    let mut awake = case.clone();
    awake.boot.push(format!("plant={fault}"));
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

impl<'a> Batch<'a> {
    /// The builds of all `programs`. Those under a model checker are built package by package: together they would be given the
    /// features of each other's dependencies, and explore more than they are meant to.
    fn all(programs: impl Iterator<Item = &'a Program>) -> Vec<Self> {
        let mut builds = BTreeMap::<_, Vec<_>>::new();
        for program in programs {
            let Program { package, flags, under, .. } = program;
            let alone = under.map(|_| package.as_str());
            builds.entry((*under, flags.as_slice(), alone)).or_default().push(program);
        }
        builds.into_iter().map(|((under, flags, _), programs)| Self { flags, under, programs }).collect()
    }

    fn name(&self) -> String {
        let packages: BTreeSet<_> = self.programs.iter().map(|program| program.package.as_str()).collect();
        let packages: Vec<_> = packages.into_iter().collect();
        format!("building {} {}", self.under.unwrap_or_default(), packages.join(" "))
    }

    fn command(&self) -> Command {
        let mut command = self.under.map_or_else(|| cargo::command(host::target()), loom::under);
        host::quick(&mut command);
        command.args(["test", "--no-run", "--message-format=json"]).args(self.flags);
        let packages: BTreeSet<_> = self.programs.iter().map(|program| &program.package).collect();
        let targets: BTreeSet<_> = self.programs.iter().map(|program| &program.target).collect();
        command.args(packages.into_iter().flat_map(|package| ["-p", package]));
        command.args(targets.into_iter().flatten());
        command
    }

    /// Where each program is; or what cargo says if it can't build them.
    fn run(&self) -> Result<Result<BTreeMap<Program, Built>, String>> {
        let end = child::capture(&mut self.command(), &[], BUILD_LIMIT)?;
        if !end.success() {
            return Ok(Err(format!("{}\n{}", end.ending(), String::from_utf8_lossy(&end.stderr))));
        }
        let built: Vec<_> = end.text().lines().filter_map(executable).collect();
        let mut found = BTreeMap::new();
        for program in &self.programs {
            let of = |(target, built): &(Vec<String>, Built)| {
                let folder = built.folder.file_name().unwrap_or_default().to_string_lossy();
                *target == program.target && program.package == format!("quire-{folder}")
            };
            let Some((_, built)) = built.iter().find(|built| of(built)) else {
                return Ok(Err(format!("there is no {} of {}", program.target.join(" "), program.package)));
            };
            found.insert((*program).clone(), built.clone());
        }
        Ok(Ok(found))
    }
}

/// Which program of tests cargo says it has made, if that is what the line says.
fn executable(line: &str) -> Option<(Vec<String>, Built)> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    let file = PathBuf::from(message["executable"].as_str()?);
    let folder = Path::new(message["manifest_path"].as_str()?).parent()?.to_owned();
    let target = match message["target"]["kind"][0].as_str()? {
        "test" => vec!["--test".to_owned(), message["target"]["name"].as_str()?.to_owned()],
        "lib" => vec!["--lib".to_owned()],
        _ => return None,
    };
    Some((target, Built { file, folder }))
}

impl Suite {
    fn command(&self, built: &Built) -> Command {
        let mut command = Command::new(&built.file);
        command.current_dir(&built.folder).env("CARGO_MANIFEST_DIR", &built.folder).args(&self.tests);
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
    fn programs_are_built_together_but_for_those_of_model_checkers() {
        let lines = [
            "x | quire-tlb | --features mutants --test gather -- stale | no",
            "x | quire-radix | --features mutants --test map | no",
            "x | quire-tlb | --release --features mutants --test loom a | yes",
            "x | quire-radix | --release --features mutants --test loom b | yes",
            "x | quire-radix | --release --features mutants --lib c | yes",
            "x | quire-radix | --release --features mutants --test shuttle c | shuttle",
        ];
        let programs: Vec<_> = lines.iter().map(|line| entry(line).unwrap().1.program).collect();
        let builds = Batch::all(programs.iter());
        let names: Vec<_> = builds.iter().map(|build| build.name()).collect();
        let alone = ["loom quire-radix", "loom quire-tlb", "shuttle quire-radix"];
        assert_eq!(names[0], "building  quire-radix quire-tlb");
        assert_eq!(names[1..], alone.map(|name| format!("building {name}")));
        let arguments: Vec<_> = builds[1].command().get_args().map(|word| word.to_owned()).collect();
        let rest = ["--release", "--features", "mutants", "-p", "quire-radix", "--lib", "--test", "loom"];
        assert!(arguments.ends_with(&rest.map(Into::into)), "{arguments:?}");
    }

    #[test]
    fn cargo_says_what_it_has_made() {
        let line = r#"{"reason":"compiler-artifact","manifest_path":"/w/crates/tlb/Cargo.toml",
            "target":{"kind":["test"],"name":"gather"},"executable":"/t/gather-1"}"#;
        let built = Built { file: "/t/gather-1".into(), folder: "/w/crates/tlb".into() };
        assert_eq!(executable(line), Some((words(["--test", "gather"]), built)));
        let library = line.replace(r#""/t/gather-1""#, "null");
        assert_eq!(executable(&library), None);
        assert_eq!(executable("   Compiling quire-tlb"), None);
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

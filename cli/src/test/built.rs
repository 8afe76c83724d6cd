//! Programs of tests that cargo builds beforehand and that are then run by themselves, each in its package's folder as cargo
//! would.
//!
//! One build serves the tests and the planted faults: both are made with the feature `mutants` and with the same packages
//! chosen, so that cargo finds for the one what it made for the other. No fault is awake unless `QUIRE_MUTANT` names it, and
//! whether it does is asked of no atomic that a model checker sees: the executions of a model are those without the feature.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::Result;

use super::{Report, host, loom};
use crate::{cargo, child};

/// Planted faults are compiled in.
pub const FEATURES: [&str; 2] = ["--features", "mutants"];
const LIMIT: Duration = Duration::from_secs(15 * 60);

/// A program of tests, and how it is built.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Program {
    pub package: String,
    /// `--test` and its name, or `--lib`.
    pub target: Vec<String>,
    /// Cargo's other arguments.
    pub flags: Vec<String>,
    /// The `cfg` of the model checker that it runs under.
    pub under: Option<&'static str>,
}

/// A program that is built, and the folder of its package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    pub file: PathBuf,
    pub folder: PathBuf,
}

/// Programs that one command builds.
pub struct Batch<'a> {
    flags: &'a [String],
    under: Option<&'static str>,
    programs: Vec<&'a Program>,
}

/// Build them; where each is. A build that fails is a failure of the report's, and its programs are left out.
pub fn build<'a>(
    report: &mut Report,
    programs: impl Iterator<Item = &'a Program>,
) -> Result<BTreeMap<Program, Built>> {
    let mut found = BTreeMap::new();
    for batch in Batch::all(programs) {
        let name = format!("building {}", batch.name());
        report.doing(&name);
        match batch.build()? {
            Ok(programs) => found.extend(programs),
            Err(why) => report.fail(&name, &why),
        }
    }
    Ok(found)
}

/// Programs of which all tests have passed since the driver began, and how long they took.
static PASSED: Mutex<BTreeMap<PathBuf, Duration>> = Mutex::new(BTreeMap::new());

impl Built {
    /// All of its tests have passed.
    pub fn has_passed(&self, took: Duration) {
        PASSED.lock().unwrap_or_else(PoisonError::into_inner).insert(self.file.clone(), took);
    }

    /// How long all of its tests took, if they have passed.
    pub fn passed_in(&self) -> Option<Duration> {
        PASSED.lock().unwrap_or_else(PoisonError::into_inner).get(&self.file).copied()
    }

    /// To run it.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.file);
        command.current_dir(&self.folder).env("CARGO_MANIFEST_DIR", &self.folder);
        command
    }
}

impl<'a> Batch<'a> {
    /// The builds of all `programs`. Those under a model checker are built package by package: together they would be given the
    /// features of each other's dependencies, and explore more than they are meant to.
    pub fn all(programs: impl Iterator<Item = &'a Program>) -> Vec<Self> {
        let mut builds = BTreeMap::<_, Vec<_>>::new();
        for program in programs {
            let Program { package, flags, under, .. } = program;
            let alone = under.map(|_| package.as_str());
            builds.entry((*under, flags.as_slice(), alone)).or_default().push(program);
        }
        builds.into_iter().map(|((under, flags, _), programs)| Self { flags, under, programs }).collect()
    }

    pub fn name(&self) -> String {
        let packages: BTreeSet<_> = self.programs.iter().map(|program| program.package.as_str()).collect();
        let packages: Vec<_> = packages.into_iter().collect();
        format!("{} {}", self.under.unwrap_or_default(), packages.join(" ")).trim_start().to_owned()
    }

    fn command(&self) -> Command {
        let mut command = self.under.map_or_else(|| cargo::command(host::target()), loom::under);
        host::quick(&mut command);
        command.args(["test", "--no-run", "--message-format=json"]).args(self.flags);
        let packages: BTreeSet<_> = self.programs.iter().map(|program| &program.package).collect();
        match self.under {
            Some(_) => command.args(packages.into_iter().flat_map(|package| ["-p", package])),
            // As the tests of the host are: other packages would be other features of what they depend on.
            None => command.args(host::PACKAGES),
        };
        let targets: BTreeSet<_> = self.programs.iter().map(|program| &program.target).collect();
        command.args(targets.into_iter().flatten());
        command
    }

    /// Where each program is; or what cargo says if it can't build them.
    pub fn build(&self) -> Result<Result<BTreeMap<Program, Built>, String>> {
        let end = child::capture(&mut self.command(), &[], LIMIT)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_built_together_but_for_those_of_model_checkers() {
        let program = |under: Option<&'static str>, package: &str, words: &[&str]| {
            let flags: &[&str] =
                if under.is_none() { &FEATURES } else { &["--release", FEATURES[0], FEATURES[1]] };
            let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
            Program { package: package.to_owned(), target: owned(words), flags: owned(flags), under }
        };
        let programs = [
            program(None, "quire-tlb", &["--test", "gather"]),
            program(None, "quire-radix", &["--test", "map"]),
            program(Some("loom"), "quire-tlb", &["--test", "loom"]),
            program(Some("loom"), "quire-radix", &["--test", "loom"]),
            program(Some("loom"), "quire-radix", &["--lib"]),
            program(Some("shuttle"), "quire-radix", &["--test", "shuttle"]),
        ];
        let builds = Batch::all(programs.iter());
        let names: Vec<_> = builds.iter().map(|build| build.name()).collect();
        let alone = ["loom quire-radix", "loom quire-tlb", "shuttle quire-radix"];
        assert_eq!(names[0], "quire-radix quire-tlb");
        assert_eq!(names[1..], alone);
        let arguments: Vec<_> = builds[1].command().get_args().map(|word| word.to_owned()).collect();
        let rest = ["--release", "--features", "mutants", "-p", "quire-radix", "--lib", "--test", "loom"];
        assert!(arguments.ends_with(&rest.map(Into::into)), "{arguments:?}");
    }

    #[test]
    fn cargo_says_what_it_has_made() {
        let line = r#"{"reason":"compiler-artifact","manifest_path":"/w/crates/tlb/Cargo.toml",
            "target":{"kind":["test"],"name":"gather"},"executable":"/t/gather-1"}"#;
        let built = Built { file: "/t/gather-1".into(), folder: "/w/crates/tlb".into() };
        let target = ["--test", "gather"].map(str::to_owned).to_vec();
        assert_eq!(executable(line), Some((target, built)));
        let library = line.replace(r#""/t/gather-1""#, "null");
        assert_eq!(executable(&library), None);
        assert_eq!(executable("   Compiling quire-tlb"), None);
    }
}

//! Planted faults: one build of each crate holds them all, a variable wakes one, and its tests must then fail.
//!
//! The lists `crates/mutants*.txt` have a line for each: `name | package | cargo test arguments | loom, shuttle or no`.
//! The same tests must pass with all faults asleep, or a failure would say nothing.

use std::{collections::BTreeSet, process::Command, time::Duration};

use anyhow::{Context, Result, bail};

use super::{Report, host, loom, output};
use crate::{cargo, child, workspace};

/// Names the fault that is awake.
const AWAKE: &str = "QUIRE_MUTANT";
const BUILD_LIMIT: Duration = Duration::from_secs(10 * 60);
/// A fault may make its tests hang; that is caught too.
const RUN_LIMIT: Duration = Duration::from_secs(90);

/// How a fault's tests are run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Suite {
    package: String,
    arguments: Vec<String>,
    /// The `cfg` of the model checker that it runs under.
    under: Option<&'static str>,
}

pub fn run(report: &mut Report, _full: bool) -> Result<()> {
    let mutants = planted()?;
    let suites: BTreeSet<_> = mutants.iter().map(|(_, suite)| suite.clone()).collect();
    let mut sound = BTreeSet::new();
    for suite in suites {
        report.doing(&format!("{} {}", suite.package, suite.arguments.join(" ")));
        let end = child::lines(&mut suite.command(), BUILD_LIMIT, |_| ())?;
        if end.success() {
            sound.insert(suite);
        } else {
            let name = format!("{} {}: with all faults asleep", suite.package, suite.arguments.join(" "));
            report.fail(&name, &output::tail(&end));
        }
    }
    let mut caught = 0;
    for (i, (name, suite)) in mutants.iter().enumerate().filter(|(_, (_, suite))| sound.contains(suite)) {
        report.begin(i, mutants.len(), name);
        let end = child::lines(suite.command().env(AWAKE, name), RUN_LIMIT, |_| ())?;
        if end.success() {
            report.fail(name, "the fault was not caught");
        } else {
            caught += 1;
            report.pass();
        }
    }
    report.remark(format!("{caught}/{} caught", mutants.len()));
    Ok(())
}

impl Suite {
    fn command(&self) -> Command {
        let mut command = self.under.map_or_else(|| cargo::command(host::target()), loom::under);
        host::quick(&mut command);
        command.args(["test", "-p", &self.package]).args(&self.arguments);
        command
    }
}

/// All planted faults, by the lists.
fn planted() -> Result<Vec<(String, Suite)>> {
    let mut mutants = Vec::new();
    for list in ["mutants.txt", "mutants-upper.txt"] {
        let path = workspace::root().join("crates").join(list);
        // A list comes with the crates that it is about.
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        for line in lines {
            mutants.push(entry(line).with_context(|| path.display().to_string())?);
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
    let arguments = arguments.split_whitespace().map(str::to_owned).collect();
    Ok((name.to_owned(), Suite { package: package.to_owned(), arguments, under }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_a_fault_and_its_tests() {
        let (name, suite) = entry("drop-ipi | quire-tlb | --test gather -- stale | no").unwrap();
        assert_eq!(name, "drop-ipi");
        let arguments = ["--test", "gather", "--", "stale"].map(str::to_owned).to_vec();
        assert_eq!(suite, Suite { package: "quire-tlb".into(), arguments, under: None });
        assert_eq!(entry("a | b | c | shuttle").unwrap().1.under, Some("shuttle"));
        assert!(entry("a | b | c").is_err());
        assert!(entry("a | b | c | perhaps").is_err());
    }

    #[test]
    fn the_lists_of_the_workspace_are_well_formed_and_without_doubles() {
        let mutants = planted().unwrap();
        let different: BTreeSet<_> = mutants.iter().collect();
        assert_eq!(different.len(), mutants.len());
    }
}

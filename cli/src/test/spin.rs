//! The models of whole protocols, `crates/*/spin/*.pml`, in Promela: SPIN visits every state.
//!
//! A model passes if no assertion fails and nothing is stuck in any state that can be reached. Its first lines have the
//! mutants, `// mutants: NAME NAME`: with each defined (`-DNAME`) the search must find an error.

use std::{
    cell::RefCell,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::{Report, output, pool};
use crate::{
    child,
    needs::{self, Tool},
    workspace,
};

/// One search takes at most this long.
const LIMIT: Duration = Duration::from_secs(10 * 60);
/// How a search is compiled: of safety alone, in at most so many MiB.
const COMPILE: [&str; 6] = ["-O2", "-w", "-DSAFETY", "-DMEMLIM=6144", "-o", "pan"];
/// Steps of the longest path; more is an error, so that nothing is left out.
const DEPTH: &str = "-m1000000";

pub fn run(report: &mut Report, _full: bool) -> Result<()> {
    needs::ensure(&[Tool::Spin, Tool::Gcc])?;
    let models = models()?;
    let mut searches = Vec::new();
    for model in &models {
        searches.push((model, None));
        searches.extend(mutants(model)?.into_iter().map(|mutant| (model, Some(mutant))));
    }
    let (mut states, mut caught) = (0, 0);
    let name = |i: usize| {
        let (model, mutant) = &searches[i];
        [name(model), mutant.clone().unwrap_or_default()].join(" ").trim_end().to_owned()
    };
    let shared = RefCell::new(report);
    let mut judge = |i: usize, found: Result<Found>| {
        let result = found.and_then(|found| match (&searches[i].1, found) {
            (None, Found { errors: 0, states: n }) => {
                states += n;
                Ok(())
            }
            (None, _) => bail!("an error is reachable"),
            (Some(_), Found { errors: 0, .. }) => bail!("the fault was not caught"),
            (Some(_), _) => {
                caught += 1;
                Ok(())
            }
        });
        shared.borrow_mut().record(&name(i), result.map_err(|error| format!("{error:#}")));
    };
    pool::in_order(
        searches.len(),
        |_| 1,
        |i| Ok(search(searches[i].0, searches[i].1.as_deref())),
        |i| shared.borrow().begin(i, searches.len(), &name(i)),
        &mut judge,
    )?;
    shared.into_inner().remark(format!("{} models, {states} states, {caught} faults caught", models.len()));
    Ok(())
}

/// What a search found.
#[derive(Debug, PartialEq)]
struct Found {
    errors: u32,
    states: u64,
}

/// Visit every state of the model, until one is wrong.
fn search(model: &Path, mutant: Option<&str>) -> Result<Found> {
    let place = tempfile::tempdir().context("cannot make a directory for the search")?;
    let run = |command: &mut Command| {
        let end = child::lines(command.current_dir(place.path()), LIMIT, |_| ())?;
        match end.success() {
            true => Ok(end),
            false => bail!("{}: {}", end.ending(), output::tail(&end)),
        }
    };
    let defined = mutant.map(|name| format!("-D{name}"));
    run(Command::new(Tool::Spin.program()).args(defined).arg("-a").arg(model))?;
    run(Command::new(Tool::Gcc.program()).args(COMPILE).arg("pan.c"))?;
    let end = run(Command::new(place.path().join("pan")).arg(DEPTH))?;
    let text = end.text();
    found(&text).with_context(|| format!("the search is not complete: {}", text.trim()))
}

/// What SPIN's search says; nothing unless it was complete or found an error.
fn found(text: &str) -> Option<Found> {
    let number = |before: &str, after: &str| {
        let line = text.lines().find(|line| line.contains(before) && line.contains(after))?;
        line.split(before).nth(1)?.split_whitespace().next()?.parse::<f64>().ok()
    };
    let errors = number("errors: ", "")? as u32;
    let stored = text.lines().find(|line| line.trim_end().ends_with("states, stored"))?;
    let states = stored.split_whitespace().next()?.parse::<f64>().ok()? as u64;
    let cut = ["max search depth too small", "out of memory", "Search not completed"];
    let complete = !cut.iter().any(|words| text.contains(words));
    (complete || errors > 0).then_some(Found { errors, states })
}

/// The model's file, without the path to the workspace.
fn name(model: &Path) -> String {
    model.strip_prefix(workspace::root()).unwrap_or(model).display().to_string()
}

/// The names of the model's mutants, in its leading comment.
fn mutants(model: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(model).with_context(|| format!("cannot read {}", model.display()))?;
    let comment = text.lines().take_while(|line| line.starts_with("//"));
    let names = comment.filter_map(|line| line.strip_prefix("// mutants:"));
    Ok(names.flat_map(str::split_whitespace).map(str::to_owned).collect())
}

fn models() -> Result<Vec<PathBuf>> {
    let crates = workspace::root().join("crates");
    let folders = fs::read_dir(&crates).with_context(|| format!("cannot read {}", crates.display()))?;
    // Most crates have no models.
    let files = folders.flatten().flat_map(|folder| fs::read_dir(folder.path().join("spin")));
    let mut models: Vec<_> = files.flatten().flatten().map(|file| file.path()).collect();
    models.retain(|path| path.extension().is_some_and(|extension| extension == "pml"));
    models.sort();
    Ok(models)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_complete_search_or_an_error_counts() {
        let text = "\nState-vector 60 byte, depth reached 104, errors: 0\n    73397 states, stored\n  1 states, matched\n";
        assert_eq!(found(text), Some(Found { errors: 0, states: 73397 }));
        assert_eq!(found(&format!("error: max search depth too small\n{text}")), None);
        let text = "pan:1: assertion violated\nWarning: Search not completed\nState-vector 60 byte, depth reached 9, errors: 1\n\
                    1.5e+06 states, stored\n";
        assert_eq!(found(text), Some(Found { errors: 1, states: 1_500_000 }));
        assert_eq!(found("pan: out of memory\n"), None);
    }

    #[test]
    fn models_name_their_mutants_first() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("a.pml");
        fs::write(
            &path,
            "// A model.\n// mutants: ONE TWO\n//\n\n// mutants: NOT\nactive proctype p() { skip }\n",
        )
        .unwrap();
        assert_eq!(mutants(&path).unwrap(), ["ONE", "TWO"]);
    }
}

//! The loom models, `crates/*/tests/loom*.rs`, vmprim's and snap's, and those of a crate's own insides, `crates/*/src/loom.rs`: every
//! interleaving and every weak-memory outcome of the protocols; and the longer runs of `crates/*/tests/shuttle*.rs`, whose
//! schedules are drawn at random.

use std::{
    cell::RefCell,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{
    Report,
    built::{self, Batch, Program},
    output, pool,
};
use crate::{
    cargo,
    child::{self, Finished},
    workspace,
};

/// Both name a `cfg`, and the tests that are built under it.
pub const LOOM: &str = "loom";
pub const SHUTTLE: &str = "shuttle";
/// One model's file explores for at most this long.
const LIMIT: Duration = Duration::from_secs(10 * 60);

pub fn run(report: &mut Report, _full: bool) -> Result<()> {
    let models = models()?;
    let batches = Batch::all(models.iter());
    let (shared, mut executions) = (RefCell::new(report), 0);
    // Those of one package are explored while the next one's are built, of which cargo lets one be at a time.
    pool::in_order(
        batches.len(),
        |_| 1,
        |i| explore(&batches[i]),
        |i| shared.borrow().begin(i, batches.len(), &batches[i].name()),
        |i, explored| match explored {
            Ok(ends) => {
                for (name, end) in ends {
                    executions += output::count(&mut shared.borrow_mut(), &name, &end).executions;
                }
            }
            Err(why) => shared.borrow_mut().fail(&batches[i].name(), &why),
        },
    )?;
    shared.into_inner().remark(format!("{executions} executions explored"));
    Ok(())
}

/// Build the models and explore each: how each ended, by its name; or what cargo says if it can't build them.
fn explore(batch: &Batch) -> Result<Result<Vec<(String, Finished)>, String>> {
    let models = match batch.build()? {
        Ok(models) => models,
        Err(why) => return Ok(Err(why)),
    };
    let mut ends = Vec::new();
    for (Program { package, target, .. }, built) in models {
        let (mut command, began) = (built.command(), Instant::now());
        // Models are deep, not wide: one at a time leaves their printed figures whole.
        let end = child::lines(command.args(["--nocapture", "--test-threads=1"]), LIMIT, |_| ())?;
        if end.success() {
            built.has_passed(began.elapsed());
        }
        ends.push((format!("{package} {}", target.join(" ")), end));
    }
    Ok(Ok(ends))
}

/// A cargo command under the `cfg` of that name.
pub fn under(cfg: &str) -> Command {
    let mut command = cargo::command(workspace::target(cfg));
    cargo::flags(&mut command, &["--cfg", cfg]);
    command
}

/// The models' programs.
fn models() -> Result<Vec<Program>> {
    let crates = workspace::root().join("crates");
    let mut found = Vec::new();
    let mechanisms =
        std::fs::read_dir(&crates).with_context(|| format!("cannot read {}", crates.display()))?.flatten();
    for folder in mechanisms
        .map(|entry| entry.path())
        .chain(["vmprim", "apps/snap"].map(|folder| workspace::root().join(folder)))
    {
        let package = format!("quire-{}", folder.file_name().unwrap_or_default().to_string_lossy());
        if folder.join("src").join("loom.rs").exists() {
            found.push(model(&package, &["--lib"], LOOM));
        }
        // A crate without tests has no models of other kinds.
        for file in std::fs::read_dir(folder.join("tests")).into_iter().flatten().flatten() {
            let path = file.path();
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            let checker = [LOOM, SHUTTLE].into_iter().find(|checker| stem.starts_with(checker));
            if let Some(checker) = checker.filter(|_| path.extension() == Some(Path::new("rs").as_os_str())) {
                found.push(model(&package, &["--test", &stem], checker));
            }
        }
    }
    found.sort();
    Ok(found)
}

fn model(package: &str, target: &[&str], checker: &'static str) -> Program {
    let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
    let flags = ["--release", built::FEATURES[0], built::FEATURES[1]];
    Program { package: package.to_owned(), target: owned(target), flags: owned(&flags), under: Some(checker) }
}

//! The loom models, `crates/*/tests/loom*.rs`, vmprim's and snap's, and those of a crate's own insides, `crates/*/src/loom.rs`: every
//! interleaving and every weak-memory outcome of the protocols; and the longer runs of `crates/*/tests/shuttle*.rs`, whose
//! schedules are drawn at random.

use std::{cell::RefCell, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result};

use super::{Report, output, pool};
use crate::{cargo, child, workspace};

/// Both name a `cfg`, and the tests that are built under it.
pub const LOOM: &str = "loom";
pub const SHUTTLE: &str = "shuttle";
/// In place of a test's name, for the models among a crate's sources.
const LIB: &str = "lib";
/// One model's file explores for at most this long.
const LIMIT: Duration = Duration::from_secs(10 * 60);

pub fn run(report: &mut Report, _full: bool) -> Result<()> {
    let (models, mut executions) = (models()?, 0);
    let name = |i: usize| format!("{} {}", models[i].0, models[i].1);
    let explore = |i: usize| {
        let (package, test) = &models[i];
        let mut command = under(if test.starts_with(SHUTTLE) { SHUTTLE } else { LOOM });
        command.args(["test", "--release", "-p", package]);
        if test == LIB {
            command.arg("--lib")
        } else {
            command.args(["--test", test])
        };
        command.args(["--", "--nocapture"]);
        // Models are deep, not wide: one at a time leaves their printed figures whole.
        command.arg("--test-threads=1");
        child::lines(&mut command, LIMIT, |_| ())
    };
    let shared = RefCell::new(report);
    pool::in_order(
        models.len(),
        |_| 1,
        explore,
        |i| shared.borrow().begin(i, models.len(), &name(i)),
        |i, end| executions += output::count(&mut shared.borrow_mut(), &name(i), &end).executions,
    )?;
    shared.into_inner().remark(format!("{executions} executions explored"));
    Ok(())
}

/// A cargo command under the `cfg` of that name.
pub fn under(cfg: &str) -> Command {
    let mut command = cargo::command(workspace::target(cfg));
    cargo::flags(&mut command, &["--cfg", cfg]);
    command
}

/// Package and test of each model.
fn models() -> Result<Vec<(String, String)>> {
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
            found.push((package.clone(), LIB.to_owned()));
        }
        // A crate without tests has no models of other kinds.
        for file in std::fs::read_dir(folder.join("tests")).into_iter().flatten().flatten() {
            let path = file.path();
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            if (stem.starts_with(LOOM) || stem.starts_with(SHUTTLE))
                && path.extension() == Some(Path::new("rs").as_os_str())
            {
                found.push((package.clone(), stem.into_owned()));
            }
        }
    }
    found.sort();
    Ok(found)
}

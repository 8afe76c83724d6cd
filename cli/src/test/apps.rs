//! The applications on `vmprim` (`apps/`): their tests in an optimised build, and their programs at the scale of a test, each
//! by every mechanism that this system has. `host` runs the same tests with debug assertions.

use std::time::Duration;

use anyhow::Result;

use super::{Report, output};
use crate::{
    bench, cargo, child,
    needs::{self, Tool},
    workspace,
};

/// Of all tests of an application.
const LIMIT: Duration = Duration::from_secs(10 * 60);
/// Of a program's run.
const RUN_LIMIT: Duration = Duration::from_secs(60);
/// The status by which a program says that a primitive is missing.
const MISSING: i32 = 77;

/// Loads that are compared with a model. Which mechanism each takes is `kvd`'s choice where none is named.
const MODES: [&str; 3] = ["trap", "precopy", "fork"];
const BACKENDS: [&str; 5] = ["signal", "uffd-view", "uffd-thread", "async-dirty", "auto"];

pub fn run(report: &mut Report, full: bool) -> Result<()> {
    // For the program with planted bugs. What else tests use of a system, they say they left out where it isn't there.
    needs::ensure(&[Tool::Gcc])?;
    for package in bench::APPLICATIONS {
        report.doing(package);
        let mut command = cargo::command(workspace::target("host"));
        command.args(["test", "--release", "--no-fail-fast", "-p", package]);
        if full {
            command.env("QUIRE_FULL", "1");
        }
        output::cargo_test(report, package, &mut command, LIMIT)?;
    }
    let program = bench::build(("quire-kvd", "kvd"))?;
    let mut missing = Vec::new();
    for mode in MODES {
        for backend in BACKENDS.into_iter().filter(|backend| mode != "fork" || *backend == "auto") {
            let name = format!("kvd {mode} {backend}");
            report.doing(&name);
            let folder = workspace::target("quire").join("apps-test");
            let _ = std::fs::remove_dir_all(&folder);
            let mut command = std::process::Command::new(&program);
            command.args(["load", "--verify", "--mode", mode, "--seconds", "1.5", "--every", "0.2"]);
            command.args(["--mem", "64", "--keys", "20000", "--threads", "2", "--dir"]).arg(&folder);
            if backend != "auto" {
                command.args(["--backend", backend]);
            }
            let end = child::capture(&mut command, &[], RUN_LIMIT)?;
            match end.code() {
                Some(0) => report.pass(),
                Some(MISSING) if backend != "auto" => missing.push(name),
                _ => report.fail(&name, &end.text()),
            }
        }
    }
    if !missing.is_empty() {
        report.remark(format!("not on this system: {}", missing.join(", ")));
    }
    Ok(())
}

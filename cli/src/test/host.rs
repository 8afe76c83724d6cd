//! What needs no machine: formatting, lints, and the tests of every crate, examples in documentation included.

use std::{path::PathBuf, process::Command, time::Duration};

use anyhow::Result;

use super::{Report, built, output};
use crate::{
    cargo, child,
    kernel::{self, Build},
    toolchain::{self, BareMetal},
    workspace,
};

/// The packages whose tests run on the host.
pub const PACKAGES: [&str; 3] = ["--workspace", "--exclude", "quire-kernel"];
const LIMIT: Duration = Duration::from_secs(30 * 60);

pub fn run(report: &mut Report, full: bool) -> Result<()> {
    report.doing("cargo fmt --check");
    check(
        report,
        "cargo fmt",
        cargo::command(target()).args(["fmt", "--all", "--check", "--", "--color=never"]),
    )?;
    report.doing("cargo clippy");
    let mut command = cargo::command(target());
    command.arg("clippy").args(PACKAGES).args(["--all-targets", "--", "-Dwarnings"]);
    check(report, "cargo clippy", &mut command)?;
    if let BareMetal::Installed = toolchain::obtain()? {
        // With another compiler than cargo's own there is no clippy to match.
        let way = BareMetal::Installed;
        let mut command = kernel::command(&way, Build::Ordinary);
        command
            .args(["clippy", "--release"])
            .args(kernel::arguments(&way, Build::Ordinary))
            .args(["--", "-Dwarnings"]);
        check(report, "cargo clippy for the kernel", &mut command)?;
    }
    if full {
        report.doing("cargo doc");
        let mut command = cargo::command(target());
        command.arg("doc").args(PACKAGES).arg("--no-deps");
        check(report, "cargo doc", command.env("RUSTDOCFLAGS", "-Dwarnings"))?;
    }
    let mut command = cargo::command(target());
    quick(&mut command);
    if full {
        command.env("PROPTEST_CASES", "2000").env("QUIRE_FULL", "1");
    }
    command.args(["test", "--no-fail-fast"]).args(built::FEATURES).args(PACKAGES);
    output::cargo_test(report, "cargo test", &mut command, LIMIT)?;
    if full {
        // What the allocator's fast paths and sections are compiled to, in the build that counts.
        let mut command = cargo::command(target());
        command.args(["test", "--release", "-p", "quire-frames", "-p", "quire-rcu", "--test", "fast_paths"]);
        output::cargo_test(report, "cargo test --release", &mut command, LIMIT)?;
    }
    Ok(())
}

/// The tests' own artifacts.
pub fn target() -> PathBuf {
    workspace::target("test")
}

/// Debug assertions, but optimised enough that random operations run many times faster.
pub fn quick(command: &mut Command) {
    command.env("CARGO_PROFILE_DEV_OPT_LEVEL", "1").env("CARGO_PROFILE_DEV_DEBUG", "line-tables-only");
}

/// A command whose success is one test. A tool that is not installed is none.
fn check(report: &mut Report, name: &str, command: &mut Command) -> Result<()> {
    quick(command);
    let end = child::lines(command, LIMIT, |line| {
        let line = line.trim();
        if line.starts_with("Checking") || line.starts_with("Compiling") {
            report.doing(&format!("{name}: {line}"));
        }
    })?;
    let absent = ["no such command", "is not installed"].iter().any(|words| end.text().contains(words));
    match end.success() {
        true => report.pass(),
        false if absent => report.remark(format!("{name} is not installed")),
        false => report.fail(name, &format!("{}\n{}", end.ending(), output::tail(&end))),
    }
    Ok(())
}

//! Understanding what cargo prints while it tests.

use std::{process::Command, time::Duration};

use anyhow::Result;

use super::Report;
use crate::child::{self, Finished};

/// Counts of one `cargo test`.
#[derive(Debug, Default, PartialEq)]
pub struct Counts {
    pub passed: u32,
    pub failed: u32,
    /// Executions that loom models explored.
    pub executions: u64,
    /// Names of the tests that failed.
    pub failures: Vec<String>,
    /// What tests left out, and why, as far as they say it past the harness.
    pub left_out: Vec<String>,
}

impl Counts {
    /// Take in one line of output.
    pub fn line(&mut self, line: &str) {
        let line = line.trim();
        if let Some((_, what)) = line.split_once("left out: ") {
            if !self.left_out.iter().any(|known| known == what) {
                self.left_out.push(what.to_owned());
            }
        } else if let Some(rest) = line.strip_prefix("test result: ") {
            self.passed += before(rest, " passed");
            self.failed += before(rest, " failed");
        } else if let Some((name, "FAILED")) = line.strip_prefix("test ").and_then(|l| l.rsplit_once(" ... "))
        {
            self.failures.push(name.to_owned());
        } else if line.contains("loom ") {
            // What a test prints follows `test NAME ... ` on the same line.
            self.executions += u64::from(before(line, " executions"));
        }
    }
}

/// The number right before `word`, or 0.
fn before(text: &str, word: &str) -> u32 {
    let end = text.find(word).unwrap_or(0);
    text[..end].rsplit([' ', ';']).next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Run `cargo test` and add its counts to the report; a failure without a failed test (it does not compile, or a test
/// ended the whole process) counts as one.
pub fn cargo_test(report: &mut Report, name: &str, command: &mut Command, limit: Duration) -> Result<Counts> {
    let end = child::lines(command, limit, |line| {
        let line = line.trim();
        if line.starts_with("Compiling") || line.starts_with("Running") || line.starts_with("Doc-tests") {
            report.doing(line);
        } else if let Some(test) = line.strip_prefix("test ") {
            report.doing(test);
        }
    })?;
    Ok(count(report, name, &end))
}

/// Add the counts of a `cargo test` that has ended to the report, in the same way.
pub fn count(report: &mut Report, name: &str, end: &Finished) -> Counts {
    let mut counts = Counts::default();
    end.text().lines().for_each(|line| counts.line(line));
    report.passed += counts.passed;
    if !counts.left_out.is_empty() {
        report.remark(format!("left out: {}", counts.left_out.join(", ")));
    }
    if !end.success() {
        let what = if counts.failures.is_empty() { name.to_owned() } else { counts.failures.join(", ") };
        report.fail(&what, &format!("{}\n{}", end.ending(), tail(end)));
        report.failed += counts.failed.saturating_sub(1);
    }
    counts
}

/// What a failing command's output says about why: the test harness's sections about failures and errors, or, if there
/// are none, its end.
pub fn tail(end: &Finished) -> String {
    const LINES: usize = 80;
    let text = end.text();
    let (mut section, mut message) = (false, false);
    let told: Vec<_> = text
        .lines()
        .filter(|line| {
            // "failures:" opens a list of messages and then one of names; the result line follows both. A process that
            // aborts prints none of it, only the panic: a line for its place and one for its message.
            section = (section || *line == "failures:") && !line.starts_with("test result:");
            let panic = line.contains("panicked at ");
            let shown = section || message || panic || line.starts_with("  process didn't exit");
            message = panic;
            shown
        })
        .collect();
    let noise =
        ["Checking", "Compiling", "Running", "Doc-tests", "Finished", "Downloaded", "running", "test "];
    let quiet = |line: &&str| !noise.iter().any(|word| line.trim_start().starts_with(word));
    let lines = if told.is_empty() { text.lines().filter(quiet).collect() } else { told };
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_found_among_everything_else() {
        let text = "running 2 tests\ntest a ... ok\ntest b ... FAILED\n\nfailures:\n\n---- b stdout ----\nassertion\n\n\
                    failures:\n    b\n\ntest result: FAILED. 1 passed; 1 failed\n\n   Doc-tests x\nrunning 0 tests\n";
        let end = |text: &str| Finished { status: None, stdout: text.into(), stderr: Vec::new() };
        assert_eq!(tail(&end(text)), "failures:\n\n---- b stdout ----\nassertion\n\nfailures:\n    b\n");
        assert_eq!(tail(&end("   Compiling x\nerror: no\n --> y\n")), "error: no\n --> y");
    }

    #[test]
    fn results_are_summed_over_binaries() {
        let mut counts = Counts::default();
        for line in [
            "running 2 tests",
            "test a::b ... ok",
            "test a::c - should panic ... FAILED",
            "loom two threads: 1234 executions, complete",
            "test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: ok. 40 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            "test three_threads ... loom three threads: 66 executions, complete",
            "left out: install the package x",
            "test d ... left out: no y",
            "left out: install the package x",
        ] {
            counts.line(line);
        }
        let failures = vec!["a::c - should panic".to_owned()];
        let left_out = vec!["install the package x".to_owned(), "no y".to_owned()];
        assert_eq!(counts, Counts { passed: 41, failed: 1, executions: 1300, failures, left_out });
    }
}

//! Threads under ThreadSanitizer, on the host: what a frame's last owner did to it comes before what the next one does, and a
//! node is made before a reader finds it and reused after, or the detector says so. With an order of memory weakened it must.
//!
//! The standard library is not compiled for the detector, which therefore doesn't see how its locks and channels order
//! things: the tests meet by being joined and by our own atomics (`crates/frames/tests/stress.rs`,
//! `crates/bonsai/tests/threads.rs`).

use std::{io::Write, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result};

use super::{Report, host, output};
use crate::{cargo, child, workspace};

/// The detector makes threads many times slower.
const LIMIT: Duration = Duration::from_secs(20 * 60);
/// The standard library's: the harness's channel, by which threads tell the main one that a test has ended, and the cell that says which
/// fault is awake.
const SUPPRESSED: &str = "race:std::sync::mpmc\nrace:sync::mutant::is_live\n";
/// What the detector says of a race.
const RACE: &str = "ThreadSanitizer: data race";

/// Threads of a crate.
struct Subject {
    package: &'static str,
    test: &'static str,
    /// Faults without which there is no race.
    weakened: [&'static str; 2],
    /// Where the detector finds it.
    place: &'static str,
}

const SUBJECTS: [Subject; 2] = [
    Subject {
        package: "quire-frames",
        test: "stress",
        weakened: ["frames-relaxed-take", "frames-relaxed-release"],
        place: "Owners>::touch",
    },
    Subject {
        package: "quire-bonsai",
        test: "threads",
        weakened: ["bonsai-relaxed-publish", "bonsai-free-early"],
        place: "bonsai::",
    },
];

/// How many tests there are.
pub const TESTS: usize = SUBJECTS.len() * (1 + SUBJECTS[0].weakened.len());

/// Run them; `begin` is told which, by its number.
pub fn run(report: &mut Report, full: bool, begin: impl Fn(&Report, usize, &str)) -> Result<()> {
    let mut suppressed = tempfile::NamedTempFile::new().context("cannot make a file for the detector")?;
    suppressed.write_all(SUPPRESSED.as_bytes())?;
    let mut test = 0..;
    for subject in &SUBJECTS {
        let mut next = |name: &str| begin(report, test.next().unwrap_or_default(), name);
        let name = format!("{} under ThreadSanitizer", subject.package);
        next(&name);
        let end = child::lines(&mut command(subject, suppressed.path(), None, full), LIMIT, |_| ())?;
        let clean =
            if end.success() { Ok(()) } else { Err(format!("{}\n{}", end.ending(), output::tail(&end))) };
        let mut results = vec![(name, clean)];
        for weakened in subject.weakened {
            let name = format!("a race by {weakened}");
            next(&name);
            let mut command = command(subject, suppressed.path(), Some(weakened), false);
            let end = child::lines(&mut command, LIMIT, |_| ())?;
            let text = end.text();
            let told = [RACE, subject.place].iter().all(|words| text.contains(words));
            let told = if told { Ok(()) } else { Err(format!("not reported\n{}", output::tail(&end))) };
            results.push((name, told));
        }
        results.into_iter().for_each(|(name, result)| report.record(&name, result));
    }
    Ok(())
}

/// A subject's tests, with `awake` as the fault, if any.
fn command(subject: &Subject, suppressed: &Path, awake: Option<&str>, full: bool) -> Command {
    let mut command = instrumented("tsan", &["-Zsanitizer=thread"]);
    command.args(["test", "-p", subject.package, "--features", "mutants", "--test", subject.test]);
    command.args(["--target", TARGET, "--", "--test-threads=1"]);
    command.env("TSAN_OPTIONS", format!("suppressions={}", suppressed.display()));
    if !full {
        command.env("QUIRE_SLOW", "1");
    }
    if let Some(awake) = awake {
        command.env("QUIRE_MUTANT", awake);
    }
    command
}

/// Named, so that what the compiler itself loads is not instrumented.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";

/// A cargo command whose artifacts for [`TARGET`] are instrumented: by flags that a stable compiler has for those who ask.
pub fn instrumented(name: &str, flags: &[&str]) -> Command {
    let mut command = cargo::command(workspace::target(name));
    // The standard library isn't instrumented, and its types don't change with it.
    let flags: Vec<_> = flags.iter().chain(&["-Cunsafe-allow-abi-mismatch=sanitizer"]).copied().collect();
    cargo::flags(&mut command, &flags);
    host::quick(&mut command);
    command.env("RUSTC_BOOTSTRAP", "1");
    command
}

//! The frame allocator's threads under ThreadSanitizer, on the host: what a frame's last owner did to it comes before what
//! the next one does, or the detector says so. With an order of memory weakened it must.
//!
//! The standard library is not compiled for the detector, which therefore doesn't see how its locks and channels order
//! things: the tests meet by being joined and by our own atomics (`crates/frames/tests/stress.rs`).

use std::{io::Write, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result};

use super::{Report, host, output};
use crate::{cargo, child, workspace};

/// The detector makes threads many times slower.
const LIMIT: Duration = Duration::from_secs(20 * 60);
/// The test harness's own channel, by which threads tell the main one that a test has ended.
const SUPPRESSED: &str = "race:std::sync::mpmc\n";
/// Orders of memory without which two owners race for a frame.
const WEAKENED: [&str; 2] = ["frames-relaxed-take", "frames-relaxed-release"];
/// What the detector says of a race, and where the owners are.
const RACE: [&str; 2] = ["ThreadSanitizer: data race", "Owners>::touch"];

/// How many tests there are.
pub const TESTS: usize = 1 + WEAKENED.len();

/// Run them; `begin` is told which, by its number.
pub fn run(report: &mut Report, full: bool, begin: impl Fn(&Report, usize, &str)) -> Result<()> {
    let mut suppressed = tempfile::NamedTempFile::new().context("cannot make a file for the detector")?;
    suppressed.write_all(SUPPRESSED.as_bytes())?;
    begin(report, 0, "frames under ThreadSanitizer");
    let end = child::lines(&mut command(suppressed.path(), None, full), LIMIT, |_| ())?;
    let clean = if end.success() { Ok(()) } else { Err(format!("{}\n{}", end.ending(), output::tail(&end))) };
    report.record("frames under ThreadSanitizer", clean);
    for (i, weakened) in WEAKENED.into_iter().enumerate() {
        let name = format!("a race by {weakened}");
        begin(report, 1 + i, &name);
        let end = child::lines(&mut command(suppressed.path(), Some(weakened), false), LIMIT, |_| ())?;
        let text = end.text();
        let told = RACE.iter().all(|words| text.contains(words));
        report
            .record(&name, if told { Ok(()) } else { Err(format!("not reported\n{}", output::tail(&end))) });
    }
    Ok(())
}

/// The stress tests, with `awake` as the fault, if any.
fn command(suppressed: &Path, awake: Option<&str>, full: bool) -> Command {
    let mut command = instrumented("tsan", &["-Zsanitizer=thread"]);
    command.args(["test", "-p", "quire-frames", "--features", "mutants", "--test", "stress"]);
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

//! `cargo quire bench frames`: allocators of page frames side by side, on this host (`bench/host`, `docs/frames-bench.md`).

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::{
    args::Bench,
    cargo, child,
    failure::{TIMED_OUT, failure},
    workspace,
};

/// All of it takes minutes; a person may ask for many repeats.
const LIMIT: Duration = Duration::from_secs(4 * 60 * 60);

/// Run it, with its output as it comes; its exit status. `ids` are its workloads.
pub fn run(ids: &[String], options: &Bench) -> Result<u8> {
    let target = workspace::target("host");
    let mut command = cargo::command(target.clone());
    command.args(["build", "--release", "-p", "quire-bench-host", "--bin", "frames"]);
    cargo::build(&mut command, "the benchmark")?;
    let mut command = Command::new(target.join("release/frames"));
    command.args(ids);
    if let Some(path) = &options.json {
        command.arg("--json").arg(path);
    }
    command.args(&options.words);
    let mut child = child::Guarded::spawn(&mut command)?;
    let status = child.wait_until(Instant::now() + LIMIT).context("cannot wait for the benchmark")?;
    let Some(status) = status else {
        return Err(failure(
            TIMED_OUT,
            format!("the benchmark took more than {} hours", LIMIT.as_secs() / 3600),
        ));
    };
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

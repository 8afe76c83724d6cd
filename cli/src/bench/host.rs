//! Benchmarks that are programs for this host: built, and run with their output as it comes.

use std::{
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::{
    cargo, child,
    failure::{TIMED_OUT, failure},
    workspace,
};

/// All of one takes minutes; a person may ask for many repeats.
const LIMIT: Duration = Duration::from_secs(4 * 60 * 60);

/// Build `program` of `package`; where it is.
pub fn build((package, program): (&str, &str)) -> Result<PathBuf> {
    let target = workspace::target("host");
    let mut command = cargo::command(target.clone());
    command.args(["build", "--release", "-p", package, "--bin", program]);
    cargo::build(&mut command, "the benchmark")?;
    Ok(target.join("release").join(program))
}

/// Run `program` of `package` with the words that `add` adds; its exit status.
pub fn run(program: (&str, &str), add: impl FnOnce(&mut Command)) -> Result<u8> {
    let mut command = Command::new(build(program)?);
    add(&mut command);
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

//! `cargo quire bench frames`: allocators of page frames side by side, on this host (`bench/host`, `docs/frames-bench.md`).

use anyhow::Result;

use super::host;
use crate::args::Bench;

/// Run it; its exit status. `ids` are its workloads.
pub fn run(ids: &[String], options: &Bench) -> Result<u8> {
    host::run("quire-bench-host", "frames", |command| {
        command.args(ids);
        if let Some(path) = &options.json {
            command.arg("--json").arg(path);
        }
        command.args(&options.words);
    })
}

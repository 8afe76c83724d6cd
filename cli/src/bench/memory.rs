//! `cargo quire bench memory`: what processes' memory costs in bookkeeping, on this host (`bench/memory`, `docs/memory.md`).

use anyhow::Result;

use super::host;
use crate::args::Bench;

/// Run it; its exit status. `names` are its shapes.
pub fn run(names: &[String], options: &Bench) -> Result<u8> {
    host::run("quire-bench-memory", "memory", |command| {
        command.args(names);
        let paths = [("--shapes", &options.shapes), ("--output", &options.output), ("--json", &options.json)];
        for (option, path) in paths {
            path.iter().for_each(|path| _ = command.arg(option).arg(path));
        }
        options.record.iter().for_each(|pid| _ = command.arg("--record").arg(pid.to_string()));
    })
}

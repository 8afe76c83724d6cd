//! `cargo quire bench bonsai`: look-ups in a Bonsai tree and in its peers, on this host (`bench/host`, `docs/bonsai.md`).

use anyhow::Result;

use super::host;
use crate::args::Bench;

/// Run it; its exit status.
pub fn run(options: &Bench) -> Result<u8> {
    host::run("quire-bench-host", "bonsai", |command| {
        if let Some(path) = &options.json {
            command.arg("--json").arg(path);
        }
        command.args(&options.words);
    })
}

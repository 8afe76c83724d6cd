//! Running cargo: with a progress bar while it compiles, without a word when there is nothing to do, and with all of
//! its output when it fails.

use std::{ffi::OsString, path::PathBuf, process::Command, time::Duration};

use anyhow::{Result, bail};

use crate::{child, ui, workspace};

/// No build takes longer than this, on a small machine from nothing.
const BUILD_LIMIT: Duration = Duration::from_secs(20 * 60);

/// A cargo command in the workspace's root, with its artifacts in `target`.
pub fn command(target: PathBuf) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(program);
    neutral(&mut command);
    command.current_dir(workspace::root()).env("CARGO_TARGET_DIR", target).env("CARGO_TERM_COLOR", "never");
    command
}

/// Forget what an outer cargo, or the user's shell, says about flags: each build states its own.
pub fn neutral(command: &mut Command) {
    for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET", "RUSTC_WRAPPER", "RUSTC"] {
        command.env_remove(name);
    }
}

/// Set the compiler's flags; unlike RUSTFLAGS, paths with spaces survive.
pub fn flags<S: AsRef<str>>(command: &mut Command, flags: &[S]) {
    let flags: Vec<&str> = flags.iter().map(AsRef::as_ref).collect();
    command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
}

/// Build. `what` names the thing for people, as in "the kernel".
pub fn build(command: &mut Command, what: &str) -> Result<()> {
    command.env("CARGO_TERM_PROGRESS_WHEN", "always").env("CARGO_TERM_PROGRESS_WIDTH", "100");
    let mut progress = None;
    let end = child::lines(command, BUILD_LIMIT, |line| {
        let line = line.trim();
        if progress.is_none()
            && ["Compiling", "Downloading", "Blocking"].iter().any(|word| line.starts_with(word))
        {
            progress = Some(ui::Progress::new(&format!("building {what}")));
            if !ui::on_terminal() {
                ui::say(&format!("building {what}"));
            }
        }
        if let (Some(progress), Some((done, total, now))) = (&progress, progress_bar(line)) {
            progress.steps(done, total, now);
        }
    })?;
    drop(progress);
    if !end.success() {
        let text = end.text();
        let kept: Vec<_> =
            text.split(['\n', '\r']).filter(|line| progress_bar(line.trim()).is_none()).collect();
        ui::show(&kept.join("\n"));
        bail!("building {what} failed: {}", end.ending());
    }
    Ok(())
}

/// Cargo's own bar, `Building [=====>   ] 12/34: core, alloc`: done, total, and what is being compiled.
fn progress_bar(line: &str) -> Option<(u64, u64, &str)> {
    let (_, rest) = line.strip_prefix("Building [")?.split_once("] ")?;
    let (counts, now) = rest.split_once(':').unwrap_or((rest, ""));
    let (done, total) = counts.trim().split_once('/')?;
    Some((done.parse().ok()?, total.parse().ok()?, now.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargos_bar_is_understood() {
        assert_eq!(progress_bar("Building [====>      ] 12/34: core, alloc"), Some((12, 34, "core, alloc")));
        assert_eq!(progress_bar("Building [           ] 0/1"), Some((0, 1, "")));
        assert_eq!(progress_bar("Compiling core v0.0.0"), None);
    }
}

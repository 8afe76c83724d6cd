//! How to compile for bare metal, `x86_64-unknown-none`.
//!
//! In this order: the target's library if it is installed; `rustup target add`; a compiler that has the library's
//! sources beside it, which then builds the library too (cargo's `-Zbuild-std`, opened on a stable compiler by
//! `RUSTC_BOOTSTRAP`); Debian's packages of such a compiler. Where rustup cannot download, the choice is remembered,
//! so that the attempt is made once.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Result, bail};

use crate::{cargo, child, needs, ui, workspace};

/// The target.
pub const TARGET: &str = "x86_64-unknown-none";
/// Debian's compiler with the library's sources.
pub const DEBIAN_PACKAGES: &[&str] = &["rustc-web", "rust-web-src", "binutils"];
/// The oldest compiler that knows this workspace's edition: 1.85.
const OLDEST_MINOR: u32 = 85;
/// `rustup target add` may take this long before the next way is tried.
const RUSTUP_LIMIT: Duration = Duration::from_secs(90);
/// Set to `sources`, it skips the installed target and rustup.
const PREFERENCE: &str = "QUIRE_BARE_METAL";

/// A way to compile for bare metal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BareMetal {
    /// The target's library is installed with the compiler that cargo uses.
    Installed,
    /// This compiler has the library's sources.
    Sources(PathBuf),
}

impl BareMetal {
    /// In words.
    pub fn describe(&self) -> String {
        match self {
            Self::Installed => format!("the installed target {TARGET}"),
            Self::Sources(rustc) => format!("{} and the library's sources", rustc.display()),
        }
    }

    /// The same compiler, with the library built from its sources if it has them.
    pub fn with_sources(self) -> Self {
        match self {
            Self::Installed if has_sources(Path::new("rustc")) => Self::Sources(PathBuf::from("rustc")),
            other => other,
        }
    }
}

/// What is there already.
pub fn find() -> Option<BareMetal> {
    let sources_only = std::env::var_os(PREFERENCE).is_some_and(|v| v == "sources");
    let installed = || {
        let library = sysroot(Path::new("rustc"))?.join("lib/rustlib").join(TARGET).join("lib");
        library.is_dir().then_some(BareMetal::Installed)
    };
    if let Some(found) = (!sources_only).then(installed).flatten() {
        return Some(found);
    }
    (sources_only || without_rustup()).then(with_sources).flatten()
}

/// What is there, or what can be had; says in one line what it took if it had to get it.
pub fn obtain() -> Result<BareMetal> {
    if let Some(found) = find() {
        return Ok(found);
    }
    if add_target() {
        ui::say(&format!("added the target {TARGET} with rustup"));
        if let Some(found) = find() {
            return Ok(found);
        }
    }
    let rustup_command = format!("rustup target add {TARGET}");
    if with_sources().is_none() {
        let why = format!("no bare-metal Rust ({rustup_command} does not work here)");
        if !needs::is_debian() {
            bail!("no bare-metal Rust: {rustup_command}");
        }
        needs::install(DEBIAN_PACKAGES, &why)?;
    }
    let Some(found) = with_sources() else {
        bail!(
            "no bare-metal Rust, not even after installing {}: {rustup_command}",
            DEBIAN_PACKAGES.join(" ")
        );
    };
    ui::say(&format!("compiling the kernel with {}", found.describe()));
    let _ = fs::create_dir_all(workspace::target("kernel")).and_then(|()| fs::write(stamp(), "sources\n"));
    Ok(found)
}

/// Remembers that rustup could not help.
fn stamp() -> PathBuf {
    workspace::target("kernel").join("bare-metal")
}

fn without_rustup() -> bool {
    stamp().exists() || workspace::which("rustup").is_none()
}

fn add_target() -> bool {
    if without_rustup() {
        return false;
    }
    let progress = ui::Progress::new("rustup");
    let mut command = Command::new("rustup");
    command.args(["target", "add", TARGET]);
    child::lines(&mut command, RUSTUP_LIMIT, |line| progress.message(line)).is_ok_and(|end| end.success())
}

/// A compiler that is new enough and has the sources: cargo's own, or the system's.
pub fn with_sources() -> Option<BareMetal> {
    let candidates = [PathBuf::from("rustc"), PathBuf::from("/usr/bin/rustc")];
    candidates.iter().find(|rustc| has_sources(rustc)).map(|rustc| BareMetal::Sources(rustc.clone()))
}

/// Whether `rustc` is new enough, has the sources, and a linker.
fn has_sources(rustc: &Path) -> bool {
    sysroot(rustc).is_some_and(|root| root.join("lib/rustlib/src/rust/library/core").is_dir())
        && minor_version(&ask(rustc, &["--version"]).unwrap_or_default()) >= Some(OLDEST_MINOR)
        && workspace::which("ld").is_some()
}

fn sysroot(rustc: &Path) -> Option<PathBuf> {
    ask(rustc, &["--print", "sysroot"]).map(|text| PathBuf::from(text.trim()))
}

fn ask(rustc: &Path, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new(rustc);
    command.args(arguments).current_dir(workspace::root());
    cargo::neutral(&mut command);
    child::lines(&mut command, Duration::from_secs(30), |_| ())
        .ok()
        .filter(|end| end.success())
        .map(|end| end.text())
}

/// The second number of `rustc 1.96.0 (…)`.
fn minor_version(text: &str) -> Option<u32> {
    text.strip_prefix("rustc 1.")?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(
            minor_version("rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)"),
            Some(96)
        );
        assert_eq!(minor_version("rustc 1.95.0-nightly"), Some(95));
        assert_eq!(minor_version("gcc 12"), None);
    }
}

//! Building the programs of `bench/guest`: static, so that the same file runs on Linux and on Quire.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{
    cargo, child,
    needs::{self, Tool},
    ui, workspace,
};

const PACKAGE: &str = "quire-bench-guest";
const HOST_TARGET: &str = "x86_64-unknown-linux-gnu";

/// The binary `name` of the package, in Rust against the static glibc.
pub fn rust(name: &str) -> Result<PathBuf> {
    rust_with(name, &[])
}

/// As [`rust`], with features of the package.
pub fn rust_with(name: &str, features: &[&str]) -> Result<PathBuf> {
    of_package(PACKAGE, name, features)
}

/// The binary `name` of the package for the host, built as [`rust`] builds: for what the host measures by the clock and a
/// machine by counts.
pub fn of_host(name: &str) -> Result<PathBuf> {
    of_package("quire-bench-host", name, &[])
}

/// The benchmark of memory primitives, built as [`rust`] builds.
pub fn of_primitives() -> Result<PathBuf> {
    of_package("quire-bench-vmprim", "vmprim-bench", &[])
}

/// Single operations of memory primitives between markers, built as [`rust`] builds.
pub fn of_operations() -> Result<PathBuf> {
    of_package("quire-bench-vmprim", "vmbench", &[])
}

fn of_package(package: &str, name: &str, features: &[&str]) -> Result<PathBuf> {
    let mut command = cargo::command(workspace::target("guest"));
    // With an explicit target the flags stay away from build scripts and macros, which must be dynamic.
    command.args(["build", "--release", "-p", package, "--bin", name, "--target", HOST_TARGET]);
    if !features.is_empty() {
        command.args(["--features", &features.join(",")]);
    }
    cargo::flags(&mut command, &["-Ctarget-feature=+crt-static"]);
    cargo::build(&mut command, &format!("the guest program {name}"))?;
    Ok(workspace::target("guest").join(HOST_TARGET).join("release").join(name))
}

/// The tests of the file `tests/NAME.rs` of a package of the workspace, as one program.
pub fn tests(package: &str, name: &str) -> Result<PathBuf> {
    let command = || {
        let mut command = cargo::command(workspace::target("guest"));
        command.args(["test", "--release", "--no-run", "--target", HOST_TARGET]);
        command.args(["-p", package, "--test", name]);
        cargo::flags(&mut command, &["-Ctarget-feature=+crt-static"]);
        command
    };
    cargo::build(&mut command(), &format!("the tests {name} of {package}"))?;
    // Built by now; this says where.
    let told = child::capture(command().arg("--message-format=json"), &[], Duration::from_secs(120))?;
    let built = String::from_utf8_lossy(&told.stdout).lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let of_it = message["target"]["name"] == name;
        message["executable"].as_str().filter(|_| of_it).map(PathBuf::from)
    });
    built.with_context(|| format!("cargo doesn't say where the tests {name} of {package} are"))
}

/// How a C program is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Toolchain {
    /// Against musl.
    Musl,
    /// Against glibc.
    Glibc,
    /// Without a C library.
    Bare,
}

/// A C program of the package's folder. Gets the compiler if need be.
pub fn c(name: &str, source: &str, toolchain: Toolchain) -> Result<PathBuf> {
    let folder = match toolchain {
        Toolchain::Musl => "musl",
        Toolchain::Glibc => "glibc",
        Toolchain::Bare => "bare",
    };
    let source = workspace::root().join("bench/guest").join(source);
    let output = workspace::target("guest").join(folder).join(name);
    // Runs that begin at the same time may want the same program.
    static BUILDING: Mutex<()> = Mutex::new(());
    let _building = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    if up_to_date(&output, &source) {
        return Ok(output);
    }
    needs::ensure(&[if toolchain == Toolchain::Musl { Tool::MuslGcc } else { Tool::Gcc }])?;
    std::fs::create_dir_all(output.parent().unwrap_or(Path::new(".")))?;
    let (compiler, flags): (_, &[&str]) = match toolchain {
        Toolchain::Musl => ("musl-gcc", &["-pthread"]),
        Toolchain::Glibc => ("gcc", &["-pthread"]),
        Toolchain::Bare => {
            ("gcc", &["-nostdlib", "-fno-stack-protector", "-Wl,-z,noexecstack,--build-id=none"])
        }
    };
    let mut command = Command::new(compiler);
    command.args(["-static", "-O2"]).args(flags).arg("-o").arg(&output).arg(&source);
    let end = child::lines(&mut command, Duration::from_secs(120), |_| ())?;
    if !end.success() {
        ui::show(&end.text());
        bail!("{compiler} cannot build {}", source.display());
    }
    Ok(output)
}

/// Whether `output` is newer than everything in the source's folder (headers included).
fn up_to_date(output: &Path, source: &Path) -> bool {
    let modified = |path: &Path| path.metadata().and_then(|m| m.modified()).ok();
    let Some(built) = modified(output) else { return false };
    let Some(Ok(folder)) = source.parent().map(std::fs::read_dir) else { return false };
    folder.flatten().all(|entry| modified(&entry.path()).is_some_and(|changed| changed <= built))
}

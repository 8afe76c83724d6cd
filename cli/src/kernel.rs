//! Building the kernel.

use std::path::PathBuf;

use anyhow::Result;

use crate::{
    cargo,
    toolchain::{self, BareMetal, TARGET},
    workspace,
};

/// Names a kernel to boot instead of building one.
const KERNEL: &str = "QUIRE_KERNEL";

/// The kernel's ELF file, built if need be.
pub fn build() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(KERNEL) {
        return Ok(path.into());
    }
    let way = toolchain::obtain()?;
    cargo::build(command(&way).args(["build", "--release"]).args(arguments(&way)), "the kernel")?;
    Ok(workspace::target("kernel").join(TARGET).join("release/quire-kernel"))
}

/// A cargo command with the kernel's compiler and flags, still without subcommand.
pub fn command(way: &BareMetal) -> std::process::Command {
    let mut command = cargo::command(workspace::target("kernel"));
    let mut flags = vec![
        "-Crelocation-model=static".to_owned(),
        // Backtraces follow the frame pointers.
        "-Cforce-frame-pointers=yes".to_owned(),
        format!("-Clink-arg=-T{}", workspace::root().join("kernel/link.ld").display()),
    ];
    if let BareMetal::Sources(rustc) = way {
        command.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1");
        // Debian's compiler comes without the linker that this target names.
        flags.extend(["-Clinker-flavor=ld".to_owned(), "-Clinker=ld".to_owned()]);
    }
    cargo::flags(&mut command, &flags);
    command
}

/// What follows the subcommand.
pub fn arguments(way: &BareMetal) -> Vec<&'static str> {
    let mut arguments = vec!["-p", "quire-kernel", "--target", TARGET];
    if matches!(way, BareMetal::Sources(_)) {
        let std = "-Zbuild-std=core,alloc,compiler_builtins";
        arguments.extend([std, "-Zbuild-std-features=compiler-builtins-mem"]);
    }
    arguments
}

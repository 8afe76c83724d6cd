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

/// Which kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Build {
    /// The one that programs run on.
    Ordinary,
    /// The one that checks its memory accesses, its stack frames and its arithmetic, and counts the edges of its control
    /// flow; `kernel/src/sanitize` says how.
    Sanitized,
}

impl Build {
    /// The target directory's name.
    fn directory(self) -> &'static str {
        match self {
            Self::Ordinary => "kernel",
            Self::Sanitized => "kernel-sanitized",
        }
    }

    /// Cargo's profile.
    fn profile(self) -> &'static str {
        match self {
            Self::Ordinary => "kernel",
            Self::Sanitized => "release",
        }
    }

    /// In words.
    fn describe(self) -> &'static str {
        match self {
            Self::Ordinary => "the kernel",
            Self::Sanitized => "the sanitized kernel",
        }
    }
}

/// The sanitized build's compiler flags. They are unstable, so this build alone sets `RUSTC_BOOTSTRAP`.
const SANITIZERS: [&str; 13] = [
    "-Zsanitizer=kernel-address",
    // The library that comes with the compiler isn't instrumented, which only means that it checks nothing.
    "-Cunsafe-allow-abi-mismatch=sanitizer",
    "-Zstack-protector=strong",
    // Every check is a call, and so is every change of a frame's shadow: nothing depends on shadow before it is mapped.
    "-Cllvm-args=-asan-instrumentation-with-call-threshold=0",
    "-Cllvm-args=-asan-max-inline-poisoning-size=0",
    "-Cllvm-args=-asan-kernel-mem-intrinsic-prefix=1",
    "-Cllvm-args=-asan-stack=1",
    "-Cllvm-args=-asan-globals=1",
    "-Cllvm-args=-asan-use-after-return=never",
    // The same number is in `kernel/src/sanitize/shadow.rs`.
    "-Cllvm-args=-asan-mapping-offset=0xdffff00000000000",
    // A flag for each edge, in a section of its own.
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=3",
    "-Cllvm-args=-sanitizer-coverage-inline-bool-flag",
];

/// The kernel's ELF file, built if need be.
pub fn build(build: Build) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(KERNEL) {
        return Ok(path.into());
    }
    let way = match build {
        Build::Ordinary => toolchain::obtain()?,
        // With the library's sources, the library is instrumented too.
        Build::Sanitized => toolchain::obtain()?.with_sources(),
    };
    cargo::build(
        command(&way, build).args(["build", "--profile", build.profile()]).args(arguments(&way, build)),
        build.describe(),
    )?;
    let built = workspace::target(build.directory()).join(TARGET).join(build.profile());
    Ok(built.join("quire-kernel"))
}

/// A cargo command with the kernel's compiler and flags, still without subcommand.
pub fn command(way: &BareMetal, build: Build) -> std::process::Command {
    let mut command = cargo::command(workspace::target(build.directory()));
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
    if build == Build::Sanitized {
        command.env("RUSTC_BOOTSTRAP", "1");
        // All that the crates check in debug builds, marks and poison of free frames among it, but optimised.
        for check in ["DEBUG_ASSERTIONS", "OVERFLOW_CHECKS"] {
            command.env(format!("CARGO_PROFILE_RELEASE_{check}"), "true");
        }
        flags.extend(SANITIZERS.map(str::to_owned));
    }
    cargo::flags(&mut command, &flags);
    command
}

/// What follows the subcommand.
pub fn arguments(way: &BareMetal, build: Build) -> Vec<&'static str> {
    let mut arguments = vec!["-p", "quire-kernel", "--target", TARGET];
    if matches!(way, BareMetal::Sources(_)) {
        let std = "-Zbuild-std=core,alloc,compiler_builtins";
        arguments.extend([std, "-Zbuild-std-features=compiler-builtins-mem"]);
    }
    if build == Build::Sanitized {
        arguments.extend(["--features", "sanitize"]);
    }
    arguments
}

//! What the driver needs from the host, and how it gets what is missing: from Debian's packages when it may install
//! them, otherwise it says the one command that does.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Result, bail};

use crate::{child, ui, workspace};

/// Installing takes at most this long.
const INSTALL_LIMIT: Duration = Duration::from_secs(15 * 60);

/// A program of the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// The emulator.
    Qemu,
    /// The C compiler, with a static libc.
    Gcc,
    /// The C compiler against musl.
    MuslGcc,
    /// The shell and tools of the tests, static.
    Busybox,
    /// Another shell of the tests, static.
    Bash,
    /// The model checker.
    Spin,
}

impl Tool {
    /// All of them, in the order in which `doctor` lists them.
    pub const ALL: [Self; 6] = [Self::Qemu, Self::Gcc, Self::MuslGcc, Self::Busybox, Self::Bash, Self::Spin];

    /// The executable.
    pub fn program(self) -> &'static str {
        match self {
            Self::Qemu => "qemu-system-x86_64",
            Self::Gcc => "gcc",
            Self::MuslGcc => "musl-gcc",
            Self::Busybox => "busybox",
            Self::Bash => "bash-static",
            Self::Spin => "spin",
        }
    }

    /// Debian's packages that have it.
    pub fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Qemu => &["qemu-system-x86"],
            Self::Gcc => &["gcc", "libc6-dev"],
            Self::MuslGcc => &["musl-tools"],
            Self::Busybox => &["busybox-static"],
            Self::Bash => &["bash-static"],
            Self::Spin => &["spin"],
        }
    }

    /// What it is for.
    pub fn purpose(self) -> &'static str {
        match self {
            Self::Qemu => "runs the machine",
            Self::Gcc => "builds C test programs, glibc",
            Self::MuslGcc => "builds C test programs, musl",
            Self::Busybox => "shell and tools of the tests",
            Self::Bash => "another shell of the tests",
            Self::Spin => "explores models of protocols",
        }
    }

    /// Whether it is there.
    pub fn present(self) -> bool {
        let busybox_is_static = || {
            let program = crate::program::find("busybox".as_ref(), None);
            program.is_ok_and(|program| crate::program::check(&program, |_| false).is_ok())
        };
        match self {
            Self::Qemu => std::env::var_os(crate::machine::EMULATOR).is_some() || on_path(self),
            Self::Busybox => busybox_is_static(),
            Self::Gcc | Self::MuslGcc | Self::Bash | Self::Spin => on_path(self),
        }
    }
}

fn on_path(tool: Tool) -> bool {
    workspace::which(tool.program()).is_some()
}

/// Have these tools, or say how to get them.
pub fn ensure(tools: &[Tool]) -> Result<()> {
    let missing: Vec<_> = tools.iter().copied().filter(|tool| !tool.present()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<_> = missing.iter().flat_map(|tool| tool.packages()).copied().collect();
    let names: Vec<_> = missing.iter().map(|tool| tool.program()).collect();
    install(&packages, &format!("{} missing", names.join(" and ")))?;
    match missing.iter().find(|tool| !tool.present()) {
        Some(tool) => bail!("{} is still missing after installing {}", tool.program(), packages.join(" ")),
        None => Ok(()),
    }
}

/// Whether this host has apt-get.
pub fn is_debian() -> bool {
    Path::new("/etc/debian_version").exists() && workspace::which("apt-get").is_some()
}

/// The command that installs `packages`, for people.
pub fn command(packages: &[&str]) -> String {
    match (is_debian(), rustix::process::geteuid().is_root()) {
        (true, true) => format!("apt-get install {}", packages.join(" ")),
        (true, false) => format!("sudo apt-get install {}", packages.join(" ")),
        (false, _) => format!("install what Debian calls {}", packages.join(" ")),
    }
}

/// Install Debian packages because of `why`; if that may not be done here, an error with the command to run.
pub fn install(packages: &[&str], why: &str) -> Result<()> {
    if !is_debian() || !rustix::process::geteuid().is_root() {
        bail!("{why}: {}", command(packages));
    }
    ui::say(&format!("{why}: installing {}", packages.join(" ")));
    let progress = ui::Progress::new("apt-get");
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(["-y", "-q", "-o", "DPkg::Lock::Timeout=120"]).args(arguments);
        command.env("DEBIAN_FRONTEND", "noninteractive");
        child::lines(&mut command, INSTALL_LIMIT, |line| progress.message(line))
    };
    let install = [&["install", "--no-install-recommends"], packages].concat();
    // A fresh container has no lists of packages, and old lists name versions that are gone.
    if apt(&install)?.success() {
        return Ok(());
    }
    apt(&["update"])?;
    let end = apt(&install)?;
    if end.success() {
        return Ok(());
    }
    drop(progress);
    let text = end.text();
    let reason = text.lines().rev().find(|line| line.starts_with("E:")).unwrap_or("no reason given");
    bail!("{why}, and {} failed ({}): {reason}", command(packages), end.ending())
}

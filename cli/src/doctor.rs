//! `cargo quire doctor`: what is there, what is missing, and how to get it.

use std::{process::Command, time::Duration};

use anyhow::Result;

use crate::{
    args::{Accel, Doctor, Linux},
    child, exact, linux, machine,
    needs::{self, Tool},
    toolchain, ui,
};

/// The oldest QEMU that boots the kernel directly and knows the options that are used.
const OLDEST_QEMU: u32 = 7;

/// Print a line for each thing that the driver uses, after mending what is missing if so asked. The exit status is 1
/// if something is still missing.
pub fn run(options: &Doctor) -> Result<u8> {
    if options.fix {
        let missing: Vec<_> = Tool::ALL.into_iter().filter(|tool| !tool.present()).collect();
        if let Err(error) = needs::ensure(&missing).and_then(|()| toolchain::obtain().map(drop)) {
            ui::say(&format!("{error:#}"));
        }
    }
    let mut missing = 0;
    let mut line = |found: Result<String, String>, name: &str, purpose: &str| {
        let (mark, text) = match found {
            Ok(text) => ("ok", text),
            Err(text) => ("missing", text),
        };
        missing += u32::from(mark == "missing");
        ui::result(&format!("{mark:8} {name:20} {purpose:30} {text}"));
    };
    line(bare_metal(), "bare-metal Rust", "compiles the kernel");
    for tool in Tool::ALL {
        line(check(tool), tool.program(), tool.purpose());
    }
    let accelerator = machine::choose_kvm(Accel::Auto).map_or_else(|e| e.to_string(), |(_, why)| why);
    line(Ok(accelerator), "acceleration", "what --accel auto takes");
    line(Ok(linux()), "Linux", "what --kernel linux boots");
    let exact = qemu_version()
        .and_then(|text| exact::serves(&text).map(|()| text).map_err(|error| error.to_string()));
    line(exact, "exact machine", "what --accel exact takes");
    if missing > 0 && !options.fix {
        ui::result("cargo quire doctor --fix installs what is missing, as root on Debian");
    }
    Ok(u8::from(missing > 0))
}

/// Which versions are there. None is missing: whoever wants to compare fetches one by doing so.
fn linux() -> String {
    let found: Vec<_> = [Linux::V6_1, Linux::Newest]
        .into_iter()
        .filter_map(|choice| linux::Linux::find(choice).map(|l| format!("{}: {}", choice.name(), l.version)))
        .collect();
    match found.is_empty() {
        true => "fetched at first use".to_owned(),
        false => found.join(", "),
    }
}

fn bare_metal() -> Result<String, String> {
    let found = toolchain::find().or_else(toolchain::with_sources);
    found.map(|way| way.describe()).ok_or_else(|| {
        let packages = needs::command(toolchain::DEBIAN_PACKAGES);
        format!("rustup target add {}, or {packages}", toolchain::TARGET)
    })
}

fn check(tool: Tool) -> Result<String, String> {
    if !tool.present() {
        return Err(needs::command(tool.packages()));
    }
    match tool {
        Tool::Qemu => qemu_version(),
        Tool::Gcc | Tool::Bash => {
            first_line(tool.program(), "--version").ok_or_else(|| needs::command(tool.packages()))
        }
        Tool::Spin => first_line(tool.program(), "-V").ok_or_else(|| needs::command(tool.packages())),
        Tool::MuslGcc => Ok("found".to_owned()),
        Tool::Busybox => Ok(first_line(tool.program(), "--help").unwrap_or_else(|| "found".to_owned())),
    }
}

fn qemu_version() -> Result<String, String> {
    let emulator = machine::emulator().map_err(|error| error.to_string())?;
    let text = first_line(&emulator.to_string_lossy(), "--version").ok_or("does not say its version")?;
    match major_version(&text) {
        Some(major) if major < OLDEST_QEMU => {
            Err(format!("{text}: version {OLDEST_QEMU} or later is needed"))
        }
        _ => Ok(text),
    }
}

/// The first number of `QEMU emulator version 7.2.22 (…)`.
fn major_version(text: &str) -> Option<u32> {
    text.split_once("version ")?.1.split('.').next()?.parse().ok()
}

fn first_line(program: &str, argument: &str) -> Option<String> {
    let end = child::lines(Command::new(program).arg(argument), Duration::from_secs(10), |_| ()).ok()?;
    end.text().lines().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemus_version_is_read() {
        assert_eq!(major_version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)"), Some(7));
        assert_eq!(major_version("QEMU emulator version 10.0.0"), Some(10));
        assert_eq!(major_version("hello"), None);
    }
}

//! Linux beside Quire: Debian's kernel for the cloud in the same machine, with a first process of ours.
//!
//! The kernel is fetched once, with the distribution's own command, and never installed:
//!
//! ```text
//! target/quire/linux/apt/             apt's lists and cache
//!                   /6.1, newest      which version each choice is: a symbolic link, kept until it is deleted
//!                   /VERSION/         a version of Debian's package: vmlinuz-RELEASE, config-RELEASE, kallsyms
//! ```
//!
//! The first process (`bench/guest/linux/init.c`) makes Linux as transparent as Quire: the program's outputs, input and
//! exit status take the same ways.

use std::{
    fmt::Write,
    fs::{self, File},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};

use crate::{
    apt::{Apt, Package},
    args::Linux as Choice,
    guest::{self, Toolchain},
    image::Image,
    machine::{Boot, Machine, System},
    session::{self, End, Files},
    symbols::Kallsyms,
    ui, workspace,
};

/// What Linux prints when it panics.
pub const PANIC: &str = "Kernel panic - not syncing";

/// The exact machine's clock, an instruction a nanosecond, which Linux would otherwise measure: counts of the time-stamp
/// counter in a tick of 4 ms, and its frequency in kHz.
const EXACT_CLOCK: &str = "lpj=4000000 tsc_early_khz=1000000";
/// Elsewhere the counter is the host's. As if it had 5 GHz, delays are somewhat long, which does no harm; measuring them,
/// on each CPU, takes long and goes wrong on a busy host.
const HOST_CLOCK: &str = "lpj=20000000";

/// Seconds that the exact machine's Linux gets to end what it does after its boot (deferred initialisation, timers that
/// fire once), before the program starts. Idle time passes at once there, so that costs little.
const SETTLE: u32 = 5;

/// The least memory that it boots in, in bytes.
pub const MIN_MEMORY: u64 = 96 << 20;

/// Printing the symbols takes at most this long, boot included.
const KALLSYMS_LIMIT: Duration = Duration::from_secs(180);

/// A Linux kernel that is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linux {
    /// The version of Debian's package, as in `6.1.192-2`.
    pub version: String,
    /// What `uname -r` prints there, as in `6.1.0-56-cloud-amd64`.
    pub release: String,
    /// The compressed kernel.
    pub vmlinuz: PathBuf,
}

impl Linux {
    /// The kernel of this choice; fetched if it was not yet.
    pub fn obtain(choice: Choice) -> Result<Self> {
        Self::obtain_in(&workspace::target("quire").join("linux"), choice, &[])
    }

    /// As [`Self::obtain`], kept in `directory` and with `env` for apt.
    fn obtain_in(directory: &Path, choice: Choice, env: &[(&str, &str)]) -> Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        // Another driver may be fetching: then this one waits, and finds it.
        let lock = File::create(directory.join("lock")).context("cannot lock the Linux kernels")?;
        flock(&lock, FlockOperation::LockExclusive).context("cannot lock the Linux kernels")?;
        let link = directory.join(choice.name());
        match Self::open(&link) {
            Some(found) => Ok(found),
            None => fetch(directory, choice, env)
                .with_context(|| format!("no Linux {} here, and fetching Debian's failed", choice.name())),
        }
    }

    /// The kernel of this choice, if it was fetched before.
    pub fn find(choice: Choice) -> Option<Self> {
        Self::open(&workspace::target("quire").join("linux").join(choice.name()))
    }

    /// The kernel in `directory`, which may be a link to it.
    fn open(directory: &Path) -> Option<Self> {
        let directory = directory.canonicalize().ok()?;
        let version = directory.file_name()?.to_str()?.to_owned();
        let names =
            fs::read_dir(&directory).ok()?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let (release, vmlinuz) = names.into_iter().find_map(|name| {
            let release = name.strip_prefix("vmlinuz-")?.to_owned();
            Some((release, directory.join(name)))
        })?;
        Some(Self { version, release, vmlinuz })
    }

    /// A machine that boots it, all else as by default, on TCG.
    pub fn machine(&self, cpus: u32) -> Machine {
        Machine { system: System::Linux, ..Machine::new(self.vmlinuz.clone(), cpus) }
    }

    /// Its symbols. They are in no package: the kernel prints them, once, and they are kept beside it. They hold for
    /// every boot, because each one is without address randomisation.
    pub fn kallsyms(&self) -> Result<Kallsyms> {
        let path = self.vmlinuz.with_file_name("kallsyms");
        if !path.exists() {
            let text = self.print_kallsyms()?;
            Kallsyms::parse(&text).with_context(|| format!("Linux {} prints no symbols", self.version))?;
            write_whole(&path, &text)?;
        }
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Kallsyms::parse(&text).with_context(|| format!("{} has no symbols: delete it", path.display()))
    }

    fn print_kallsyms(&self) -> Result<Vec<u8>> {
        let _progress = ui::Progress::new(&format!("reading the symbols of Linux {}", self.version));
        let mut image = Image::default();
        furnish(&mut image)?;
        let boot = Boot { kallsyms: true, ..Boot::default() };
        let outcome =
            session::run(&self.machine(1), &boot, image, Files::Captured(Vec::new()), Some(KALLSYMS_LIMIT))?;
        match outcome.end {
            End::Exited(0) => Ok(outcome.stdout),
            end => {
                bail!("Linux {} did not print its symbols: {end:?}\n{}", self.version, outcome.log.join("\n"))
            }
        }
    }
}

/// Put the first process into an image that Linux is to boot with.
pub fn furnish(image: &mut Image) -> Result<()> {
    image.bind(&guest::c("init", "linux/init.c", Toolchain::Musl)?, b".quire/init")
}

/// Linux's command line. What follows `--` is the first process's.
///
/// Without mitigations and randomisation, so that addresses have names and runs can be repeated; a panic ends the machine.
/// Whether the timer works is not asked, since the answer depends on how busy the host is; and the ciphers are not tested,
/// which would go on in kernel threads while the program runs.
pub fn command_line(boot: &Boot, shared: bool, exact: bool) -> String {
    let clock = if exact { EXACT_CLOCK } else { HOST_CLOCK };
    let mut line = format!(
        "rdinit=/.quire/init console=ttyS0 panic=-1 nokaslr norandmaps mitigations=off no_timer_check \
         cryptomgr.notests {clock}"
    );
    if !boot.verbose {
        line += " quiet";
    }
    line += " --";
    line += &boot.files();
    if shared {
        line += " shared=1";
    }
    if boot.kallsyms {
        line += " kallsyms=1";
    }
    if exact {
        let _ = write!(line, " settle={SETTLE}");
    }
    line
}

/// Fetch the kernel of this choice and remember which it is.
fn fetch(directory: &Path, choice: Choice, env: &[(&str, &str)]) -> Result<Linux> {
    let progress = ui::Progress::new(&format!("fetching Linux {}", choice.name()));
    let apt = Apt::new(&directory.join("apt"), env)?;
    let complaint = apt.update(&progress)?;
    let Some(package) = choose(&apt, choice)? else {
        bail!(
            "{}",
            complaint.unwrap_or_else(|| format!(
                "this distribution's packages have no such linux-image-*{FLAVOUR}"
            ))
        );
    };
    ui::say(&format!("fetching {} {} ({} MB)", package.name, package.version, package.size / 1_000_000));
    let kept = directory.join(&package.version);
    if Linux::open(&kept).is_none() {
        unpack(&apt, &package, directory, &kept, &progress)?;
    }
    let link = directory.join(choice.name());
    // A link that leads nowhere is in the way.
    let _ = fs::remove_file(&link);
    symlink(&package.version, &link).with_context(|| format!("cannot make {}", link.display()))?;
    Linux::open(&link).with_context(|| format!("{} has no vmlinuz", package.name))
}

/// Debian's smallest configuration: without drivers for hardware that no virtual machine has.
const FLAVOUR: &str = "-cloud-amd64";

/// The package with the highest version among those of this choice.
fn choose(apt: &Apt, choice: Choice) -> Result<Option<Package>> {
    let mut names = apt.names("linux-image-")?;
    names.retain(|name| numbers(name).is_some_and(|n| choice == Choice::Newest || n.starts_with(&[6, 1])));
    names.sort_by_key(|name| std::cmp::Reverse(numbers(name)));
    for name in names {
        if let Some(package) = apt.package(&name)? {
            return Ok(Some(package));
        }
    }
    Ok(None)
}

/// The numbers of a release in a package's name, if it is a kernel's: `linux-image-6.12.117+deb12-cloud-amd64` has 6,
/// 12, 117 and 12. A package that stands for the latest of a kind has fewer than three.
fn numbers(name: &str) -> Option<Vec<u64>> {
    let release = name.strip_prefix("linux-image-")?.strip_suffix(FLAVOUR)?;
    let numbers: Vec<u64> =
        release.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect();
    (release.starts_with(|c: char| c.is_ascii_digit()) && numbers.len() >= 3).then_some(numbers)
}

/// Make `kept` with the kernel and its configuration, whole or not at all.
fn unpack(
    apt: &Apt,
    package: &Package,
    directory: &Path,
    kept: &Path,
    progress: &ui::Progress,
) -> Result<()> {
    let inside = |what: &str| format!("cannot make {what} in {}", directory.display());
    let unpacked = tempfile::tempdir_in(directory).with_context(|| inside("a directory"))?;
    apt.unpack(package, unpacked.path(), progress)?;
    let chosen = tempfile::tempdir_in(directory).with_context(|| inside("a directory"))?;
    for entry in fs::read_dir(unpacked.path().join("boot")).context("the package has no /boot")?.flatten() {
        let name = entry.file_name();
        if ["vmlinuz-", "config-"].iter().any(|start| name.to_string_lossy().starts_with(start)) {
            fs::rename(entry.path(), chosen.path().join(name)).with_context(|| inside("the kernel"))?;
        }
    }
    // What is left of an earlier attempt has no kernel.
    let _ = fs::remove_dir_all(kept);
    fs::rename(chosen.keep(), kept).with_context(|| inside(&package.version))
}

fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        let directory = path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        std::io::Write::write_all(&mut file, bytes)?;
        file.persist(path).map(drop).map_err(std::io::Error::from)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_told_from_packages_that_stand_for_them() {
        assert_eq!(numbers("linux-image-6.12.117+deb12-cloud-amd64"), Some(vec![6, 12, 117, 12]));
        assert_eq!(numbers("linux-image-6.1.0-56-cloud-amd64"), Some(vec![6, 1, 0, 56]));
        for other in [
            "linux-image-cloud-amd64",
            "linux-image-6.12-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64-dbg",
            "linux-image-6.1.0-56-amd64",
            "linux-image-6.1.0-56-cloud-amd64-unsigned",
        ] {
            assert_eq!(numbers(other), None, "{other}");
        }
        assert!(
            numbers("linux-image-6.12.117+deb12-cloud-amd64") > numbers("linux-image-6.12.99-cloud-amd64")
        );
    }

    #[test]
    fn a_kernel_is_found_by_its_link() {
        let dir = tempfile::tempdir().unwrap();
        let kept = dir.path().join("6.1.192-2");
        fs::create_dir(&kept).unwrap();
        symlink("6.1.192-2", dir.path().join("6.1")).unwrap();
        assert_eq!(Linux::open(&dir.path().join("6.1")), None);
        fs::write(kept.join("vmlinuz-6.1.0-56-cloud-amd64"), "").unwrap();
        let found = Linux::obtain_in(dir.path(), Choice::V6_1, &[]).unwrap();
        assert_eq!((&*found.version, &*found.release), ("6.1.192-2", "6.1.0-56-cloud-amd64"));
        assert!(Linux::open(&dir.path().join("newest")).is_none());
    }

    #[test]
    fn without_a_network_one_line_says_why() {
        if !crate::needs::is_debian() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        // Nothing listens on the port "discard".
        let nowhere = "http://127.0.0.1:9";
        let env = [("http_proxy", nowhere), ("https_proxy", nowhere)];
        let line = format!("{:#}", Linux::obtain_in(dir.path(), Choice::Newest, &env).unwrap_err());
        assert!(line.starts_with("no Linux newest here, and fetching Debian's failed: "), "{line}");
        assert!(line.contains("127.0.0.1") && !line.contains('\n'), "{line}");
    }

    #[test]
    fn the_first_process_gets_what_follows_two_dashes() {
        let boot = Boot { stats: true, terminals: vec![0], size: Some((24, 80)), ..Boot::default() };
        let line = command_line(&boot, true, false);
        assert!(line.ends_with(" quiet -- tty=0 rows=24 cols=80 stats=1 shared=1"), "{line}");
        assert!(!command_line(&Boot { verbose: true, ..boot.clone() }, false, false).contains("quiet"));
        assert!(command_line(&boot, false, true).contains(" tsc_early_khz=1000000 "));
    }
}

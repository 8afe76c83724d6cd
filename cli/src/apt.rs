//! Files of Debian packages that are not to be installed: apt with lists and a cache of its own.
//!
//! The system's apt is asked with the system's sources and keys, but what it writes is in one directory of ours. So the
//! lists are fresh whatever the system's are, nothing of the system changes, and nobody has to be root.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{child, ui, workspace};

/// No command of apt's takes longer than this.
const LIMIT: Duration = Duration::from_secs(10 * 60);

/// apt with its state in one directory.
pub struct Apt {
    config: PathBuf,
    /// What is set in the commands' environment.
    env: Vec<(String, String)>,
}

/// A package as the lists have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Bytes of its file.
    pub size: u64,
}

impl Apt {
    /// Keep the state in `directory`, which is made. `env` is for apt alone.
    pub fn new(directory: &Path, env: &[(&str, &str)]) -> Result<Self> {
        let missing = |name: &&&str| workspace::which(name).is_none();
        if let Some(name) = ["apt-get", "apt-cache", "dpkg-deb"].iter().find(missing) {
            bail!("there is no {name} here: this needs Debian or a container of it");
        }
        for name in ["lists/partial", "cache"] {
            let path = directory.join(name);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        let config = directory.join("apt.conf");
        fs::write(&config, configuration(directory)).context("cannot configure apt")?;
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Ok(Self { config, env })
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        // Settings on the command line win over the system's.
        command.arg("-c").arg(&self.config).args(arguments);
        command.env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive");
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Fetch the lists of packages. What went wrong is no error yet: another source may have what is wanted, or an
    /// older list. It is returned in apt's words.
    pub fn update(&self, progress: &ui::Progress) -> Result<Option<String>> {
        let mut command = self.command("apt-get", &["-q", "update"]);
        let end = child::lines(&mut command, LIMIT, |line| progress.message(line))?;
        Ok(complaint(&end.text())
            .or_else(|| (!end.success()).then(|| format!("apt-get update: {}", end.ending()))))
    }

    /// The names of packages that begin so; some are only mentioned by others.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let mut command = self.command("apt-cache", &["pkgnames", prefix]);
        let end = child::capture(&mut command, &[], LIMIT)?;
        Ok(end.text().lines().map(str::to_owned).collect())
    }

    /// The candidate of this name, if the lists have one.
    pub fn package(&self, name: &str) -> Result<Option<Package>> {
        let mut command = self.command("apt-cache", &["show", "--no-all-versions", name]);
        let end = child::capture(&mut command, &[], LIMIT)?;
        Ok(described(&end.text()))
    }

    /// Fetch the package's file into `directory` and unpack its tree there.
    pub fn unpack(&self, package: &Package, directory: &Path, progress: &ui::Progress) -> Result<()> {
        let what = format!("{}={}", package.name, package.version);
        let mut command = self.command("apt-get", &["-q", "download", &what]);
        command.current_dir(directory);
        let end = child::lines(&mut command, LIMIT, |line| progress.message(line))?;
        if !end.success() {
            let why = complaint(&end.text()).unwrap_or_else(|| end.ending());
            bail!("cannot fetch {what}: {why}");
        }
        let is_file = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "deb");
        let file = fs::read_dir(directory)?.flatten().map(|entry| entry.path()).find(is_file);
        let file = file.with_context(|| format!("apt-get downloaded no file of {what}"))?;
        progress.message("unpacking");
        let mut command = Command::new("dpkg-deb");
        command.arg("-x").arg(&file).arg(directory);
        let end = child::lines(&mut command, LIMIT, |_| ())?;
        if !end.success() {
            bail!(
                "cannot unpack {}: {}",
                file.display(),
                complaint(&end.text()).unwrap_or_else(|| end.ending())
            );
        }
        Ok(())
    }
}

/// Lists and caches in `directory`, no more of them than is needed, and no hooks: they are the system's.
fn configuration(directory: &Path) -> String {
    let directory = directory.display();
    format!(
        "\
Dir::State::Lists \"{directory}/lists\";
Dir::Cache \"{directory}/cache\";
Acquire::Languages \"none\";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";
Acquire::IndexTargets::deb::CNF::DefaultEnabled \"false\";
Acquire::Retries \"2\";
Acquire::http::Timeout \"30\";
Acquire::https::Timeout \"30\";
APT::Sandbox::User \"root\";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
"
    )
}

/// The first error, or else the first warning, in what apt printed.
fn complaint(text: &str) -> Option<String> {
    ["E: ", "W: "]
        .iter()
        .find_map(|mark| text.lines().find_map(|line| line.trim_start().strip_prefix(mark)))
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// The first package of a description in Debian's control format.
fn described(text: &str) -> Option<Package> {
    let field = |name: &str| {
        let rest =
            text.lines().take_while(|line| !line.is_empty()).find_map(|line| line.strip_prefix(name))?;
        Some(rest.strip_prefix(':')?.trim().to_owned())
    };
    Some(Package { name: field("Package")?, version: field("Version")?, size: field("Size")?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_names_one_package() {
        let text =
            "Package: linux-image-x\nSize: 12\nVersion: 6.1.1-1\nDescription: Version\n more\n\nPackage: y\n";
        let found = Package { name: "linux-image-x".into(), version: "6.1.1-1".into(), size: 12 };
        assert_eq!(described(text), Some(found));
        assert_eq!(described("Package: x\nVersion: 1\n\nSize: 3\n"), None);
        assert_eq!(described(""), None);
    }

    #[test]
    fn errors_count_before_warnings() {
        assert_eq!(complaint("Get:1 x\nW: old\nE: no\n  such host\n").as_deref(), Some("no"));
        assert_eq!(complaint("W: Failed   to fetch\n").as_deref(), Some("Failed to fetch"));
        assert_eq!(complaint("Fetched 1 kB\n"), None);
    }
}

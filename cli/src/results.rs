//! What `bench` measures and `report` shows: one JSON object a file, kept in `target/quire/results`.
//!
//! A file holds [`Results`]. A record is one number: one metric of one [`Point`], and never mixes kinds. What a script
//! may rely on is listed in `docs/results.md`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::workspace;

/// The version of the layout that this driver writes and reads.
pub const VERSION: u32 = 1;

/// A file of results.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// [`VERSION`].
    pub version: u32,
    /// What the numbers were measured on: emulator, its options, the cost model's parameters, the kernels.
    pub machine: BTreeMap<String, Value>,
    /// The numbers.
    pub records: Vec<Record>,
    /// The cache lines that moved most between CPUs, of each point measured by counts.
    #[serde(default)]
    pub lines: Vec<HotLine>,
    /// Where the instructions went, of each point measured by counts.
    #[serde(default)]
    pub functions: Vec<Function>,
}

/// What was measured where.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Point {
    /// A group of benchmarks, as `mapbench`.
    pub suite: String,
    /// The benchmark in it, as `local`.
    pub bench: String,
    /// `quire`, `linux` (a guest in the same machine) or `host` (native).
    pub system: String,
    /// The version of Linux, if that is the system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub linux_version: Option<String>,
    /// The design of the address space, if the system is Quire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aspace: Option<String>,
    /// An ablation; absent for a default run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Virtual CPUs of the machine.
    pub cpus: u32,
    /// Threads that operate.
    pub threads: u32,
    /// Pages an operation.
    pub npages: u64,
    /// Instructions in a CPU's turn, if counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub q: Option<u64>,
    /// The machine's seed, if counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

impl Point {
    /// The system with what tells it from others in the same chart, as `quire locked` or `Linux 6.12`.
    pub fn label(&self) -> String {
        let base = match (self.system.as_str(), &self.linux_version, &self.aspace) {
            ("linux", Some(version), _) => format!("Linux {}", short(version)),
            ("quire", _, Some(aspace)) => format!("Quire {aspace}"),
            (system, ..) => system.to_owned(),
        };
        match &self.variant {
            Some(variant) => format!("{base} {variant}"),
            None => base,
        }
    }
    /// The benchmark, with its pages where that matters.
    pub fn title(&self) -> String {
        match self.npages {
            0 | 1 => self.bench.clone(),
            n => format!("{}, {n} pages", self.bench),
        }
    }
}

/// `6.12` of `6.12.95-cloud-amd64`.
fn short(version: &str) -> String {
    version.split(['.', '-', '+']).take(2).collect::<Vec<_>>().join(".")
}

/// How a number came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Counted by the tracer; the same in every run.
    Count,
    /// Derived from counts by the cost model.
    Modelled,
    /// By the clock.
    Wall,
}

/// One number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// What was measured where.
    #[serde(flatten)]
    pub point: Point,
    /// Operations of each thread in the window.
    pub operations: u64,
    /// Its name: `transfers`, `instructions`, `throughput_per_cpu`, …
    pub metric: String,
    /// The number; the median where there were repeats.
    pub value: f64,
    /// Its unit.
    pub unit: String,
    /// How it came about.
    pub kind: Kind,
    /// How often it was measured.
    pub repeats: u32,
    /// The least of them.
    pub min: f64,
    /// The greatest of them.
    pub max: f64,
}

/// A cache line that moved between CPUs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HotLine {
    /// What was measured where.
    #[serde(flatten)]
    pub point: Point,
    /// What it is: a symbol and offset, or a kind of memory.
    pub name: String,
    /// Transfers an operation.
    pub transfers: f64,
    /// How many CPUs touched it.
    pub touched_by: u32,
    /// Functions that read it, most frequent first.
    pub readers: Vec<String>,
    /// Functions that wrote it, most frequent first.
    pub writers: Vec<String>,
}

/// A function and the instructions spent in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Function {
    /// What was measured where.
    #[serde(flatten)]
    pub point: Point,
    /// Its name.
    pub name: String,
    /// Instructions an operation, without what it calls.
    pub instructions: f64,
}

impl Results {
    /// Read a file. The error says what is wrong with it.
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let results: Self = serde_json::from_str(&text).with_context(|| {
            format!("{} is not a file of results: make one with cargo quire bench", path.display())
        })?;
        if results.version != VERSION {
            bail!("{}: results of version {}; this driver reads {VERSION}", path.display(), results.version);
        }
        Ok(results)
    }
    /// Write a file, whole or not at all.
    pub fn write(&self, path: &Path) -> Result<()> {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        serde_json::to_writer_pretty(&mut file, self)?;
        std::io::Write::write_all(&mut file, b"\n")?;
        file.persist(path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(())
    }
    /// Everything of `other` too. A point that both have is `other`'s.
    pub fn merge(&mut self, other: Self) {
        let theirs: std::collections::HashSet<Point> =
            other.records.iter().map(|r| r.point.clone()).collect();
        self.records.retain(|r| !theirs.contains(&r.point));
        self.lines.retain(|l| !theirs.contains(&l.point));
        self.functions.retain(|f| !theirs.contains(&f.point));
        self.version = VERSION;
        self.machine.extend(other.machine);
        self.records.extend(other.records);
        self.lines.extend(other.lines);
        self.functions.extend(other.functions);
    }
    /// The number `metric` of `point`.
    pub fn value(&self, point: &Point, metric: &str) -> Option<f64> {
        self.records.iter().find(|r| r.point == *point && r.metric == metric).map(|r| r.value)
    }
}

/// Where `bench` keeps what it measured.
pub fn folder() -> PathBuf {
    workspace::target("quire").join("results")
}

/// Everything that is kept there, older files first.
pub fn kept() -> Result<Results> {
    let mut all = Results { version: VERSION, ..Results::default() };
    let Ok(entries) = std::fs::read_dir(folder()) else { return Ok(all) };
    let mut files: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .collect();
    files.sort_by_key(|path| std::fs::metadata(path).and_then(|m| m.modified()).ok());
    for file in files {
        all.merge(Results::read(&file)?);
    }
    Ok(all)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Two systems, one benchmark, three numbers of CPUs.
    pub fn sample() -> Results {
        let mut results = Results { version: VERSION, ..Results::default() };
        results.machine.insert("qemu".into(), "QEMU emulator version 7.2.22".into());
        for (cpus, ours, theirs) in [(1, 0.0, 0.2), (8, 150.0, 201.0), (80, 700.0, 900.0)] {
            for (system, transfers) in [("quire", ours), ("linux", theirs)] {
                let point = Point {
                    suite: "mapbench".into(),
                    bench: "local".into(),
                    system: system.into(),
                    linux_version: (system == "linux").then(|| "6.12.95-cloud-amd64".into()),
                    aspace: (system == "quire").then(|| "locked".into()),
                    cpus,
                    threads: cpus,
                    npages: 4,
                    q: Some(200),
                    seed: Some(1),
                    variant: None,
                };
                for (metric, value, unit, kind) in [
                    ("transfers", transfers, "lines/operation", Kind::Count),
                    ("instructions", 14_000.0 + transfers, "instructions/operation", Kind::Count),
                    (
                        "throughput_per_cpu",
                        1e9 / (15_000.0 + 100.0 * transfers),
                        "operations/s",
                        Kind::Modelled,
                    ),
                ] {
                    let (point, metric, unit) = (point.clone(), metric.to_owned(), unit.to_owned());
                    let (min, max) = (value, value);
                    results.records.push(Record {
                        point,
                        operations: 1000,
                        metric,
                        value,
                        unit,
                        kind,
                        repeats: 1,
                        min,
                        max,
                    });
                }
                results.lines.push(HotLine {
                    point: point.clone(),
                    name: "aspace::locked::Locked+0x40 <heap>".into(),
                    transfers: transfers / 3.0,
                    touched_by: cpus,
                    readers: vec!["sync::rwlock::RwLock::read".into()],
                    writers: vec!["sync::rwlock::RwLock::write".into()],
                });
                results.functions.push(Function { point, name: "clear_page".into(), instructions: 2_048.0 });
            }
        }
        results
    }

    #[test]
    fn a_file_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/results.json");
        let results = sample();
        results.write(&path).unwrap();
        assert_eq!(Results::read(&path).unwrap(), results);
    }

    #[test]
    fn other_files_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        std::fs::write(&path, "{}").unwrap();
        assert!(Results::read(&path).unwrap_err().to_string().contains("make one with cargo quire bench"));
        Results { version: 99, ..sample() }.write(&path).unwrap();
        assert!(Results::read(&path).unwrap_err().to_string().contains("version 99"));
    }

    #[test]
    fn a_later_measurement_replaces_an_earlier_one() {
        let (mut all, mut later) = (sample(), sample());
        later.records.truncate(3);
        later.lines.truncate(1);
        later.functions.truncate(1);
        later.records[0].value = 7.0;
        let point = later.records[0].point.clone();
        all.merge(later);
        assert_eq!(all.records.len(), sample().records.len());
        assert_eq!(all.value(&point, "transfers"), Some(7.0));
    }

    #[test]
    fn a_system_has_a_short_name() {
        let labels: std::collections::BTreeSet<_> =
            sample().records.iter().map(|r| r.point.label()).collect();
        assert_eq!(labels.into_iter().collect::<Vec<_>>(), ["Linux 6.12", "Quire locked"]);
    }
}

//! One point: boot a machine, run the benchmark in it, and see what it says of itself and what the tracer counted.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{
    derive::{self, Counted, Measured},
    plan::{PROCESSES, Sweep, Target},
};
use crate::{
    args::{Accel, Bench, Linux as Choice},
    child,
    exact::{self, Exact},
    guest,
    image::{Exec, Image},
    kernel::{self, Build},
    linux::{self, Linux},
    machine::{self, Boot, Machine},
    program::Program,
    results::{Point, Results},
    run,
    session::{self, End, Files},
    trace,
};

/// No point takes longer than this.
const LIMIT: Duration = Duration::from_secs(60 * 60);
/// Timed points are measured so often, for so long.
const REPEATS: usize = 3;
const SECONDS: f64 = 1.0;

/// Everything that points have in common.
pub struct Lab {
    /// The suite, which is also the benchmark's name.
    pub suite: &'static str,
    /// The benchmark.
    pub program: PathBuf,
    /// Quire's kernel.
    pub kernel: PathBuf,
    /// Linux's kernels, as wanted.
    pub linux: Vec<(Choice, Linux)>,
    /// The exact machine, if counts are wanted.
    pub exact: Option<Exact>,
    /// What the emulator says of itself.
    pub qemu: String,
    /// Whether to take results of earlier runs.
    pub resume: bool,
    kvm: bool,
}

impl Lab {
    /// Build and fetch what the sweeps need.
    pub fn furnish(options: &Bench, sweeps: &[Sweep], suite: &'static str) -> Result<Self> {
        let (kvm, _) = machine::choose_kvm(options.accel)?;
        let emulator = machine::emulator()?;
        let version = child::capture(
            std::process::Command::new(emulator).arg("--version"),
            &[],
            Duration::from_secs(10),
        )?;
        let qemu = version.text().lines().next().unwrap_or_default().to_owned();
        let mut wanted: Vec<Choice> = Vec::new();
        for sweep in sweeps {
            if let Target::Linux(choice) = sweep.system
                && !wanted.contains(&choice)
            {
                wanted.push(choice);
            }
        }
        let exact = match options.accel {
            Accel::Exact => Some(Exact {
                quantum: options.quantum.unwrap_or(exact::QUANTUM),
                seed: options.seed.unwrap_or(exact::SEED),
                ..Exact::new()?
            }),
            _ => None,
        };
        Ok(Self {
            suite,
            program: match suite {
                super::refcache::NAME => guest::of_host(suite)?,
                super::primitives::NAME => guest::of_primitives()?,
                _ => guest::rust("mapbench")?,
            },
            kernel: kernel::build(Build::Ordinary)?,
            linux: wanted
                .into_iter()
                .map(|choice| Ok((choice, Linux::obtain(choice)?)))
                .collect::<Result<_>>()?,
            exact,
            qemu,
            resume: options.resume,
            kvm,
        })
    }

    /// Whether counts are measured rather than times.
    pub fn is_exact(&self) -> bool {
        self.exact.is_some()
    }

    /// For the results.
    pub fn describe(&self) -> BTreeMap<String, Value> {
        let mut about = BTreeMap::new();
        about.insert("qemu".to_owned(), Value::from(self.qemu.clone()));
        let accelerator = match &self.exact {
            Some(exact) => format!(
                "exact: one host thread, turns of {} instructions, seed {}",
                exact.quantum, exact.seed
            ),
            None if self.kvm => "kvm".to_owned(),
            None => "tcg".to_owned(),
        };
        about.insert("accelerator".to_owned(), accelerator.into());
        about.insert("quire".to_owned(), env!("CARGO_PKG_VERSION").into());
        for (choice, linux) in &self.linux {
            let text = format!("{}, Debian {}, mitigations off", linux.release, linux.version);
            about.insert(format!("linux {}", choice.name()), text.into());
        }
        about.insert("cost model".to_owned(), derive::parameters().into());
        about
    }

    fn linux(&self, choice: Choice) -> Result<&Linux> {
        let found = self.linux.iter().find(|(one, _)| *one == choice);
        found.map(|(_, linux)| linux).context("a Linux that was not asked for")
    }

    /// What `sweep` with `cpus` CPUs is called in results.
    pub fn point(&self, sweep: &Sweep, cpus: u32, npages: u64) -> Result<Point> {
        let (system, linux_version, aspace) = match sweep.system {
            Target::Quire(aspace) => ("quire", None, Some(aspace.name().to_owned())),
            Target::Linux(choice) => ("linux", Some(self.linux(choice)?.release.clone()), None),
        };
        Ok(Point {
            suite: self.suite.to_owned(),
            bench: sweep.mode.clone(),
            system: system.to_owned(),
            linux_version,
            aspace,
            variant: sweep.variant(),
            cpus,
            threads: cpus,
            npages,
            q: self.exact.as_ref().map(|exact| exact.quantum.into()),
            seed: self.exact.as_ref().map(|exact| exact.seed),
        })
    }

    fn machine(&self, sweep: &Sweep, cpus: u32, image: &mut Image) -> Result<Machine> {
        let booted = match sweep.system {
            Target::Quire(_) => Machine::new(self.kernel.clone(), cpus),
            Target::Linux(choice) => {
                linux::furnish(image)?;
                self.linux(choice)?.machine(cpus)
            }
        };
        let mut exact = self.exact.clone();
        if let (Some(exact), Target::Linux(choice)) = (&mut exact, sweep.system) {
            exact.places = self.linux(choice)?.kallsyms()?.places();
        }
        Ok(Machine { kvm: self.kvm, exact, ..booted })
    }
}

/// Grace periods in a window of the steady state.
const GRACES: u32 = 3;

/// Measure: counts of one run, or times of several.
pub fn measure(lab: &Lab, sweep: &Sweep, cpus: u32, operations: u32) -> Result<Results> {
    let warm_up = Sweep::warm_up(operations);
    let length = match lab.is_exact() {
        true => ["--operations".to_owned(), operations.to_string()],
        false => ["--seconds".to_owned(), SECONDS.to_string()],
    };
    let mut words: Vec<String> = vec![lab.suite.into(), sweep.mode.clone(), "--json".into()];
    words.extend(["--threads".into(), cpus.to_string(), "--warm-up".into(), warm_up.to_string()]);
    words.extend(length);
    if sweep.processes {
        words.push(PROCESSES.into());
    }
    if sweep.steady {
        words.extend(["--graces".into(), GRACES.to_string()]);
    }
    if sweep.first_touch {
        words.push("--first-touch".into());
    }
    if let Some(pairs) = &sweep.pairs {
        words.extend(["--pairs".into(), pairs.clone()]);
    }
    if let Some(npages) = sweep.npages {
        words.extend(["--npages".into(), npages.to_string()]);
    }
    let repeats = if lab.is_exact() { 1 } else { REPEATS };
    let runs = (0..repeats).map(|_| once(lab, sweep, cpus, &words)).collect::<Result<Vec<_>>>()?;
    let npages = runs.first().map_or(0, |run| run.said["npages"].as_u64().unwrap_or(0));
    let point = lab.point(sweep, cpus, npages)?;
    if lab.is_exact() {
        let run = runs.into_iter().next().context("no run")?;
        derive::counted(&point, &run)
    } else {
        Ok(derive::timed(&point, &runs))
    }
}

/// What the benchmark says when it is called with `words`, in a machine of one CPU.
pub fn ask(lab: &Lab, sweep: &Sweep, words: &[String]) -> Result<Value> {
    Ok(once(lab, sweep, 1, words)?.said)
}

/// One run in a fresh machine.
fn once(lab: &Lab, sweep: &Sweep, cpus: u32, words: &[String]) -> Result<Measured> {
    let guest = format!("/bin/{}", lab.suite).into_bytes();
    let program = Program { host: lab.program.clone(), guest, packed: false };
    let mut image = Image::default();
    run::add_program(&mut image, &program)?;
    let argv = words.iter().map(|word| word.clone().into_bytes()).collect();
    let path = program.guest.clone();
    image.exec(&Exec { argv, env: Vec::new(), cwd: b"/".to_vec(), path });
    let machine = lab.machine(sweep, cpus, &mut image)?;
    let aspace = match sweep.system {
        Target::Quire(aspace) => Some(aspace),
        Target::Linux(_) => None,
    };
    // What lies where is said after the end, so it costs nothing that is counted.
    let boot =
        Boot { aspace, places: lab.is_exact(), plant_shared_counter: sweep.planted, ..sweep.choice.boot() };
    let outcome = session::run(&machine, &boot, image, Files::Captured(Vec::new()), Some(LIMIT))?;
    let what = || format!("{} on {} with {cpus} CPUs", sweep.mode, sweep.system.label());
    if outcome.end != End::Exited(0) {
        let texts =
            [&outcome.stderr, &outcome.stdout].map(|bytes| String::from_utf8_lossy(bytes).trim().to_owned());
        bail!("{} went wrong: {:?}\n{}\n{}", what(), outcome.end, texts.join("\n"), outcome.log.join("\n"));
    }
    let said = serde_json::from_slice(&outcome.stdout).with_context(|| format!("{}: no result", what()))?;
    let linux = match sweep.system {
        Target::Quire(_) => None,
        Target::Linux(choice) => Some(lab.linux(choice)?),
    };
    let counts = match &outcome.counts {
        Some(text) => {
            let names = trace::names(&outcome, &lab.kernel, linux, &program)?;
            let report = trace::Report::new(text, &names)?;
            let raw = serde_json::from_str(text).with_context(|| format!("{}: no counts", what()))?;
            Some(Counted { raw, report })
        }
        None => None,
    };
    Ok(Measured { said, counts })
}

//! Which points to measure.

use anyhow::Result;

use super::choice::{self, Choice};
use crate::{
    args::{Accel, Aspace, AspaceChoice, Bench, Linux, Vs},
    failure::{USAGE, failure},
};

/// The modes that are run without `--mode`, and the pages of each: mapping a page and four of them, pages handed on, and
/// faults alone.
const USUAL: [(&str, Option<u64>); 4] =
    [("local", Some(1)), ("local", Some(4)), ("pipeline", None), ("fault", None)];

/// All modes of the benchmark.
pub const MODES: [&str; 12] = [
    "local",
    "pipeline",
    "global",
    "global-fixed",
    "countbench",
    "imbalance",
    "fault",
    "fault-2m",
    "protect",
    "fork",
    "unmap-virt",
    "unmap-touched",
];

/// Those whose workers are apart, so that they may be processes.
const APART: [&str; 7] = ["local", "countbench", "fault", "protect", "fork", "unmap-virt", "unmap-touched"];
/// The benchmark's option for that.
pub const PROCESSES: &str = "--processes";

/// Instructions that a point may take: about 20 s of the exact machine, counted, on one core of a small host.
const BUDGET: f64 = 1.2e9;
/// What an operation is taken to cost before anything is known, in instructions.
const GUESS: f64 = 40_000.0;
/// Operations of each thread: with few CPUs, and the least.
const MOST: u32 = 1000;
const LEAST: u32 = 100;
/// Instructions of a CPU in which it ticks four times, and somewhat more: two epochs end in them, each of which every CPU's tick
/// must have come to (`kernel/src/realm.rs`).
const STEADY: f64 = 4.5e7;
/// Up to so many CPUs, [`MOST`].
const FEW: u32 = 8;

/// A system to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Quire with this design.
    Quire(Aspace),
    /// Linux in the same machine.
    Linux(Linux),
}

impl Target {
    /// For progress.
    pub fn label(self) -> String {
        match self {
            Self::Quire(aspace) => format!("Quire {}", aspace.name()),
            Self::Linux(linux) => format!("Linux {}", linux.name()),
        }
    }
}

/// One system's points of one benchmark.
#[derive(Clone, Debug)]
pub struct Sweep {
    /// Its place in the plan.
    pub number: usize,
    /// The benchmark's mode.
    pub mode: String,
    /// Pages an operation, if not the mode's default.
    pub npages: Option<u64>,
    /// The system.
    pub system: Target,
    /// Numbers of CPUs, ascending.
    pub cpus: Vec<u32>,
    /// Operations of each thread, if said.
    pub operations: Option<u32>,
    /// As many as it takes for [`STEADY`] instructions.
    pub steady: bool,
    /// On pages that nobody has touched before.
    pub first_touch: bool,
    /// By processes rather than threads.
    pub processes: bool,
    /// With the planted conflict; Quire alone has it.
    pub planted: bool,
    /// What is said of the system's design.
    pub choice: Choice,
    /// Of the mode imbalance: which thread frees whose pages.
    pub pairs: Option<String>,
}

impl Sweep {
    /// How many operations each thread does with `cpus` CPUs. `before` is the last point's number of CPUs and its
    /// instructions an operation, which are expected to grow with the CPUs at most: a function of counts alone, so that
    /// the same plan is the same each time.
    pub fn operations(&self, cpus: u32, before: Option<(u32, f64)>) -> u32 {
        if let Some(operations) = self.operations {
            return operations;
        }
        if let (true, Some((_, each))) = (self.steady, before) {
            return ((STEADY / each.max(1.0)) as u32).max(LEAST);
        }
        if self.steady {
            return LEAST;
        }
        let expected = before.map_or(GUESS, |(fewer, each)| each * f64::from(cpus) / f64::from(fewer.max(1)));
        let affordable = BUDGET / (expected.max(1.0) * f64::from(cpus));
        let usual = if cpus <= FEW { MOST } else { LEAST };
        (affordable as u32).clamp(LEAST, usual)
    }

    /// What tells it from a default run.
    pub fn variant(&self) -> Option<String> {
        let words = [
            (self.processes, PROCESSES),
            (self.first_touch, "--first-touch"),
            (self.planted, "--plant-shared-counter"),
        ];
        let mut told: Vec<_> =
            words.iter().filter(|(is, _)| *is).map(|(_, word)| (*word).to_owned()).collect();
        told.extend(self.choice.told());
        told.extend(self.pairs.as_ref().map(|pairs| format!("--pairs {pairs}")));
        (!told.is_empty()).then(|| told.join(" "))
    }

    /// Operations of each thread before the window.
    pub fn warm_up(operations: u32) -> u32 {
        (operations / 10).clamp(5, 100)
    }
}

/// What the options ask for.
pub fn sweeps(options: &Bench) -> Result<Vec<Sweep>> {
    check_modes(options)?;
    let mut cpus = options.cpus.clone();
    cpus.sort_unstable();
    cpus.dedup();
    let modes: Vec<(String, Option<u64>)> = match &options.mode[..] {
        [] => usual(options).map(|(mode, npages)| (mode.to_owned(), npages)).collect(),
        _ => named(options),
    };
    let systems = systems(options)?;
    if options.accel != Accel::Exact && (options.quantum.is_some() || options.seed.is_some()) {
        return Err(failure(USAGE, "--quantum and --seed are about the exact machine: say --accel exact"));
    }
    if options.steady && options.accel != Accel::Exact {
        return Err(failure(USAGE, "--steady is about counts: say --accel exact"));
    }
    let of_imbalance: Vec<_> = options.pairs.iter().filter(|pair| pair.contains(':')).cloned().collect();
    if !of_imbalance.is_empty() && !modes.iter().all(|(mode, _)| mode == "imbalance") {
        return Err(failure(USAGE, "--pairs T:T is about the mode imbalance: say --mode imbalance"));
    }
    if options.first_touch && !modes.iter().all(|(mode, _)| mode.starts_with("fault")) {
        return Err(failure(USAGE, "--first-touch is about the modes fault and fault-2m: say --mode fault"));
    }
    let mut sweeps = Vec::new();
    for (mode, npages) in modes {
        for system in &systems {
            // A pair of CPUs is the least that can hand something on.
            let least = if ["pipeline", "imbalance"].contains(&mode.as_str()) { 2 } else { 1 };
            let cpus: Vec<u32> = cpus.iter().copied().filter(|&n| n >= least).collect();
            let npages = npages.or(options.npages);
            let number = sweeps.len();
            sweeps.push(Sweep {
                number,
                mode: mode.clone(),
                npages,
                system: *system,
                cpus,
                operations: options.operations,
                steady: options.steady,
                first_touch: options.first_touch,
                processes: options.processes,
                planted: options.plant_shared_counter && matches!(system, Target::Quire(_)),
                choice: Choice::of(options, *system),
                pairs: (!of_imbalance.is_empty()).then(|| of_imbalance.join(",")),
            });
        }
    }
    Ok(sweeps)
}

/// Sweeps over `subjects` of another suite, on Quire.
pub fn of_subjects(subjects: &[&str], operations: u32, cpus: &[u32]) -> Vec<Sweep> {
    let mut cpus = cpus.to_vec();
    cpus.sort_unstable();
    cpus.dedup();
    let sweep = |(number, subject): (usize, &&str)| Sweep {
        number,
        mode: (*subject).to_owned(),
        npages: None,
        system: Target::Quire(Aspace::Radix),
        cpus: cpus.clone(),
        operations: Some(operations),
        steady: false,
        first_touch: false,
        processes: false,
        planted: false,
        choice: Choice::default(),
        pairs: None,
    };
    subjects.iter().enumerate().map(sweep).collect()
}

/// A mode, and its pages if they are said with it.
fn parts(mode: &str) -> (String, Option<u64>) {
    match mode.split_once(':') {
        Some((mode, pages)) => (mode.to_owned(), pages.parse().ok().filter(|n| *n > 0)),
        None => (mode.to_owned(), None),
    }
}

/// The modes that the options name, and their pages where those are said with them.
pub fn named(options: &Bench) -> Vec<(String, Option<u64>)> {
    options.mode.iter().map(|mode| parts(mode)).collect()
}

/// The modes that are run without `--mode`, with their pages.
pub fn usual(options: &Bench) -> impl Iterator<Item = (&'static str, Option<u64>)> {
    USUAL.into_iter().filter(|(mode, _)| !options.processes || APART.contains(mode))
}

/// Whether the benchmark has these modes, for workers of the kind that is wanted.
pub fn check_modes(options: &Bench) -> Result<()> {
    let is_wrong = |mode: &&String| {
        let (name, pages) = parts(mode);
        !MODES.contains(&name.as_str()) || mode.contains(':') && pages.is_none()
    };
    if let Some(unknown) = options.mode.iter().find(is_wrong) {
        return Err(failure(USAGE, format!("no mode {unknown}: there is {}", MODES.join(", "))));
    }
    if options.processes
        && let Some(mode) = options.mode.iter().find(|mode| !APART.contains(&parts(mode).0.as_str()))
    {
        let among = APART.join(", ");
        return Err(failure(
            USAGE,
            format!("--processes is for modes whose workers are apart, not for {mode}: {among}"),
        ));
    }
    Ok(())
}

/// The systems that the options ask for.
pub fn systems(options: &Bench) -> Result<Vec<Target>> {
    choice::check(options)?;
    let mut systems: Vec<Target> =
        options.aspace.designs().iter().map(|design| Target::Quire(*design)).collect();
    if options.vs == Some(Vs::Linux) {
        systems.extend(
            options
                .linux
                .map_or(vec![Linux::V6_1, Linux::Newest], |one| vec![one])
                .iter()
                .map(|l| Target::Linux(*l)),
        );
    } else if options.linux.is_some() {
        return Err(failure(USAGE, "--linux says which Linux to compare with: say --vs linux too"));
    }
    Ok(systems)
}

impl AspaceChoice {
    /// Their designs.
    pub fn designs(self) -> &'static [Aspace] {
        match self {
            Self::All => &[Aspace::Locked, Aspace::Bonsai, Aspace::Radix],
            Self::Bonsai => &[Aspace::Bonsai],
            Self::Locked => &[Aspace::Locked],
            Self::Radix => &[Aspace::Radix],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{FrameAlgo, PageTables};

    fn options() -> Bench {
        Bench { cpus: vec![8, 1, 8], ..Bench::default() }
    }

    #[test]
    fn each_system_has_a_sweep_of_each_mode() {
        let plan = sweeps(&Bench { vs: Some(Vs::Linux), ..options() }).unwrap();
        assert_eq!(plan.len(), 4 * 3);
        assert_eq!(plan[0].cpus, [1, 8]);
        assert_eq!(plan.iter().filter(|s| s.system == Target::Linux(Linux::V6_1)).count(), 4);
        assert!(plan.iter().enumerate().all(|(i, sweep)| sweep.number == i));
        assert!(plan.iter().filter(|s| s.mode == "pipeline").all(|s| s.cpus == [8]));
        assert!(plan.iter().all(|sweep| sweep.variant().is_none()));
        let planted = Bench { plant_shared_counter: true, vs: Some(Vs::Linux), ..options() };
        let variants: Vec<_> = sweeps(&planted).unwrap().iter().map(Sweep::variant).collect();
        assert_eq!(variants[..2], [Some("--plant-shared-counter".to_owned()), None]);
        let framed = Bench { frames: Some(FrameAlgo::Avl), vs: Some(Vs::Linux), ..options() };
        let variants: Vec<_> = sweeps(&framed).unwrap().iter().map(Sweep::variant).collect();
        assert_eq!(variants[..2], [Some("--frames avl".to_owned()), None]);
        let processes = Bench { processes: true, ..planted };
        let plan = sweeps(&processes).unwrap();
        assert!(plan.len() == 3 * 3 && plan.iter().all(|sweep| sweep.processes && sweep.mode != "pipeline"));
        assert_eq!(plan[0].variant(), Some("--processes --plant-shared-counter".to_owned()));
        let one = sweeps(&Bench { mode: vec!["fork".into()], ..options() }).unwrap();
        assert_eq!((one.len(), one[0].npages), (1, None));
        let mode = vec!["local:4".into(), "local".into()];
        let two = sweeps(&Bench { mode, npages: Some(2), ..options() }).unwrap();
        assert_eq!((&*two[0].mode, two[0].npages, two[1].npages), ("local", Some(4), Some(2)));
        let radix = Bench { aspace: AspaceChoice::Radix, pagetable: Some(PageTables::Shared), ..options() };
        assert_eq!(sweeps(&radix).unwrap()[0].variant(), Some("--pagetable shared".to_owned()));
        let pairs = vec!["0:1".into(), "1:0".into()];
        let freeing = Bench { mode: vec!["imbalance".into()], pairs, ..options() };
        assert_eq!(sweeps(&freeing).unwrap()[0].variant(), Some("--pairs 0:1,1:0".to_owned()));
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        assert!(sweeps(&Bench { linux: Some(Linux::V6_1), ..options() }).is_err());
        let unknown = sweeps(&Bench { mode: vec!["frob".into()], ..options() }).unwrap_err().to_string();
        assert!(unknown.starts_with("no mode frob: there is local, "));
        assert!(sweeps(&Bench { first_touch: true, ..options() }).is_err());
        let together = Bench { processes: true, mode: vec!["local".into(), "global".into()], ..options() };
        assert!(sweeps(&together).unwrap_err().to_string().contains("not for global: local, "));
        assert!(sweeps(&Bench { accel: Accel::Tcg, quantum: Some(50), ..options() }).is_err());
        assert!(sweeps(&Bench { accel: Accel::Tcg, steady: true, ..options() }).is_err());
        assert!(sweeps(&Bench { pagetable: Some(PageTables::Shared), ..options() }).is_err());
        assert!(sweeps(&Bench { pairs: vec!["0:1".into()], ..options() }).is_err());
        assert!(sweeps(&Bench { mode: vec!["local:x".into()], ..options() }).is_err());
    }

    #[test]
    fn the_window_shrinks_with_the_cost() {
        let sweep = &sweeps(&options()).unwrap()[0];
        assert_eq!(sweep.operations(1, None), 1000);
        assert_eq!(sweep.operations(8, Some((4, 40_000.0))), 1000);
        assert_eq!(sweep.operations(8, Some((4, 200_000.0))), 375);
        assert_eq!(sweep.operations(8, Some((4, 1e9))), 100);
        assert_eq!(sweep.operations(80, Some((64, 100.0))), 100);
        let steady = &sweeps(&Bench { steady: true, ..options() }).unwrap()[0];
        assert_eq!((steady.operations(80, None), steady.operations(80, Some((1, 5_000.0)))), (100, 9000));
        assert_eq!((Sweep::warm_up(1000), Sweep::warm_up(100), Sweep::warm_up(7)), (100, 10, 5));
    }
}

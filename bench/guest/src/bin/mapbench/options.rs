//! The command line.

use std::time::Duration;

/// What `--help` prints, and what a mistake is answered with.
pub const USAGE: &str = "\
usage: mapbench MODE[,MODE...] [OPTIONS]

modes: local pipeline global global-fixed countbench imbalance fault fault-2m
       protect fork unmap-virt unmap-touched; or all

  --threads N      threads, each on a CPU of its own (the CPUs that there are)
  --npages N       pages an operation (a region's, for global-fixed)
  --operations N   end after N operations a thread (1000)
  --seconds S      end after S seconds instead
  --warm-up N      operations before the measured ones, at least 1 (100)
  --graces N       the first thread waits for N of the kernel's grace periods between its
                   operations, outside of what is measured (0); with --operations
  --processes      the workers are processes, with memory of their own, not threads
  --pause MS       sleep so long before each operation, outside of what is measured (0)
  --first-touch    fault, fault-2m: on pages that nobody has touched before
  --pairs C:F,...  imbalance: thread F unmaps what thread C maps (0:1,2:3,...)
  --json           one JSON object a mode, on a line of its own";

/// The most threads: as many as have a word of their own in a shared page.
const MOST_THREADS: u64 = 512;

/// A mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Local,
    Pipeline,
    Global,
    GlobalFixed,
    Countbench,
    Imbalance,
    Fault,
    Fault2m,
    Protect,
    Fork,
    UnmapVirt,
    UnmapTouched,
}

/// Every mode with its name and its pages an operation.
const KINDS: [(Kind, &str, usize); 12] = [
    (Kind::Local, "local", 1),
    (Kind::Pipeline, "pipeline", 1),
    (Kind::Global, "global", 16),
    (Kind::GlobalFixed, "global-fixed", 5120),
    (Kind::Countbench, "countbench", 1),
    (Kind::Imbalance, "imbalance", 1024),
    (Kind::Fault, "fault", 1),
    (Kind::Fault2m, "fault-2m", 1),
    (Kind::Protect, "protect", 1),
    (Kind::Fork, "fork", 1),
    (Kind::UnmapVirt, "unmap-virt", 1),
    (Kind::UnmapTouched, "unmap-touched", 1),
];

impl Kind {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    fn row(self) -> (Kind, &'static str, usize) {
        KINDS.into_iter().find(|row| row.0 == self).unwrap_or(KINDS[0])
    }

    /// Whether threads of this mode neither wait for one another nor touch the same memory.
    fn is_apart(self) -> bool {
        matches!(
            self,
            Self::Local
                | Self::Countbench
                | Self::Fault
                | Self::Protect
                | Self::Fork
                | Self::UnmapVirt
                | Self::UnmapTouched
        )
    }

    fn is_fault(self) -> bool {
        matches!(self, Self::Fault | Self::Fault2m)
    }
}

/// When a thread's window ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Length {
    /// After so many operations.
    Operations(u32),
    /// After this time.
    Seconds(Duration),
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub kinds: Vec<Kind>,
    pub threads: usize,
    npages: Option<usize>,
    pub length: Length,
    pub warm_up: u32,
    /// Grace periods that the first worker waits for in its window.
    pub graces: u32,
    pub first_touch: bool,
    /// The workers are processes.
    pub processes: bool,
    /// Sleep before each operation.
    pub pause: Duration,
    pub pairs: Option<Vec<(usize, usize)>>,
    pub json: bool,
}

/// What the command line asks for.
#[derive(Debug, PartialEq)]
pub enum Request {
    Run(Plan),
    Help,
}

impl Plan {
    /// Pages an operation.
    pub fn npages_of(&self, kind: Kind) -> usize {
        self.npages.unwrap_or(kind.row().2)
    }
}

/// Understands the arguments; `cpus` is the default for the threads. Or says what is wrong.
pub fn parse(arguments: impl Iterator<Item = String>, cpus: usize) -> Result<Request, String> {
    let mut plan = Plan {
        kinds: Vec::new(),
        threads: cpus,
        npages: None,
        length: Length::Operations(1000),
        warm_up: 100,
        graces: 0,
        first_touch: false,
        processes: false,
        pause: Duration::ZERO,
        pairs: None,
        json: false,
    };
    let mut arguments = arguments.peekable();
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--threads" => plan.threads = number(&argument, &value()?, MOST_THREADS)? as usize,
            "--npages" => plan.npages = Some(number(&argument, &value()?, 1 << 18)? as usize),
            "--operations" => {
                plan.length = Length::Operations(number(&argument, &value()?, 1 << 30)? as u32);
            }
            "--seconds" => plan.length = Length::Seconds(seconds(&value()?)?),
            "--warm-up" => plan.warm_up = number(&argument, &value()?, 1 << 30)? as u32,
            "--graces" => plan.graces = number(&argument, &value()?, 1000)? as u32,
            "--processes" => plan.processes = true,
            "--pause" => plan.pause = Duration::from_millis(number(&argument, &value()?, 10_000)?),
            "--first-touch" => plan.first_touch = true,
            "--pairs" => plan.pairs = Some(pairs(&value()?)?),
            "--json" => plan.json = true,
            "--help" => return Ok(Request::Help),
            name if name.starts_with('-') => return Err(format!("unknown option {name}")),
            names => plan.kinds.extend(kinds(names)?),
        }
    }
    if plan.kinds.is_empty() {
        return Err("which mode?".into());
    }
    if plan.first_touch && !plan.kinds.iter().all(|kind| kind.is_fault()) {
        return Err("--first-touch is for fault and fault-2m".into());
    }
    if plan.graces > 0 && matches!(plan.length, Length::Seconds(_)) {
        return Err("--graces needs --operations".into());
    }
    if plan.processes && !plan.kinds.iter().all(|kind| kind.is_apart()) {
        let names: Vec<_> = KINDS.iter().filter(|row| row.0.is_apart()).map(|row| row.1).collect();
        return Err(format!("--processes is for modes whose workers are apart: {}", names.join(", ")));
    }
    if plan.pairs.is_some() && plan.kinds != [Kind::Imbalance] {
        return Err("--pairs is for imbalance".into());
    }
    Ok(Request::Run(plan))
}

fn kinds(names: &str) -> Result<Vec<Kind>, String> {
    if names == "all" {
        return Ok(KINDS.map(|row| row.0).to_vec());
    }
    let kind = |name| KINDS.iter().find(|row| row.1 == name).map(|row| row.0);
    names.split(',').map(|name| kind(name).ok_or_else(|| format!("unknown mode {name}"))).collect()
}

fn number(option: &str, value: &str, most: u64) -> Result<u64, String> {
    let number = value.parse().ok().filter(|number| (1..=most).contains(number));
    number.ok_or_else(|| format!("{option} needs a number from 1 to {most}"))
}

fn seconds(value: &str) -> Result<Duration, String> {
    let seconds: Option<f64> = value.parse().ok().filter(|seconds| (0.001..=3600.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "--seconds needs a number from 0.001 to 3600".into())
}

fn pairs(value: &str) -> Result<Vec<(usize, usize)>, String> {
    let pair = |text: &str| {
        let (mapper, freer) = text.split_once(':')?;
        Some((mapper.parse().ok()?, freer.parse().ok()?))
    };
    let pairs: Option<Vec<_>> = value.split(',').map(pair).collect();
    pairs.ok_or_else(|| "--pairs needs thread numbers as in 0:1,2:3".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(line: &str) -> Result<Plan, String> {
        match parse(line.split_whitespace().map(str::to_owned), 4)? {
            Request::Run(plan) => Ok(plan),
            Request::Help => Err("help".into()),
        }
    }

    #[test]
    fn a_mode_alone_is_a_counted_run_on_all_cpus() {
        let plan = plan("local").unwrap();
        assert_eq!((plan.kinds.as_slice(), plan.threads), (&[Kind::Local][..], 4));
        assert_eq!((plan.length, plan.warm_up), (Length::Operations(1000), 100));
        assert_eq!((plan.npages_of(Kind::Local), plan.npages_of(Kind::GlobalFixed)), (1, 5120));
    }

    #[test]
    fn options_may_stand_before_and_behind() {
        let plan = plan("--seconds 0.5 fault,fault-2m --npages 8 --threads 2 --warm-up 3 --json").unwrap();
        assert_eq!(plan.kinds, [Kind::Fault, Kind::Fault2m]);
        assert_eq!(plan.length, Length::Seconds(Duration::from_millis(500)));
        assert_eq!((plan.npages_of(Kind::Fault), plan.threads, plan.warm_up), (8, 2, 3));
        assert!(plan.json);
    }

    #[test]
    fn all_are_twelve() {
        let plan = plan("all").unwrap();
        assert_eq!(plan.kinds.len(), 12);
        assert!(plan.kinds.iter().all(|kind| kinds(kind.name()).unwrap() == [*kind]));
    }

    #[test]
    fn mistakes_are_refused() {
        for line in [
            "",
            "--json",
            "locals",
            "local,",
            "local --threads",
            "local --threads 0",
            "local --threads 513",
            "local --seconds nan",
            "local --seconds -1",
            "local --warm-up 0",
            "local --first-touch",
            "local --graces 0",
            "local --graces 2 --seconds 1",
            "pipeline --processes",
            "local,fault-2m --processes",
            "local --pairs 0:1",
            "imbalance --pairs 0",
            "imbalance --pairs 0:x",
            "local --fast",
            "--help",
        ] {
            assert!(plan(line).is_err(), "{line}");
        }
        assert_eq!(plan("imbalance --pairs 0:1,1:0").unwrap().pairs, Some(vec![(0, 1), (1, 0)]));
    }
}

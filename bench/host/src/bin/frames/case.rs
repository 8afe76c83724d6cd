//! The workloads: which there are, how large they are, and who takes part.

use bitmap_allocator::{BitAlloc, BitAlloc1M, BitAlloc16M};

use crate::{
    options::Options,
    ours::{OneTree, Quire},
    peers::{Bitmap, Buddy, Floor},
    record::Outcome,
    subject::{Checked, Findings, Setup, Subject},
    work::{Before, Work},
};

/// Frames of a gibibyte.
const GIB: usize = 1 << 18;

const HALF_GIB: usize = GIB / 2;

/// An allocator that is compiled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Ours, by rows.
    Quire,
    /// Ours, with other algorithms.
    QuireAvl,
    QuireBuddy,
    QuireSlab,
    /// One tree and one lock.
    Global,
    /// `buddy_system_allocator` and a mutex.
    Buddy,
    /// `bitmap-allocator` and a mutex.
    Bitmap,
    /// A stack for each CPU.
    Floor,
}

/// Does something with a subject's type.
trait With<R> {
    fn with<S: Subject>(&self) -> R;
}

impl Kind {
    /// All.
    pub const ALL: [Kind; 8] = [
        Kind::Quire,
        Kind::QuireAvl,
        Kind::QuireBuddy,
        Kind::QuireSlab,
        Kind::Global,
        Kind::Buddy,
        Kind::Bitmap,
        Kind::Floor,
    ];

    /// As in tables and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Quire => "quire",
            Self::QuireAvl => "quire avl",
            Self::QuireBuddy => "quire buddy",
            Self::QuireSlab => "quire slab",
            Self::Global => "global",
            Self::Buddy => "buddy",
            Self::Bitmap => "bitmap",
            Self::Floor => "floor",
        }
    }

    /// Whether it takes part: whether it can do what the case asks for, and that says something.
    pub fn fits(self, case: &Case) -> bool {
        // What is published about a tree is how it fares with many frames outstanding, and with many CPUs.
        let of_use = match self {
            Self::QuireAvl | Self::QuireBuddy | Self::QuireSlab => ["B6", "B8"].contains(&case.id),
            Self::Global => ["B6", "B7", "B8", "B9", "B10"].contains(&case.id),
            Self::Quire => true,
            // The others have one algorithm each.
            Self::Bitmap => case.id != "B11" && case.setup.frames <= BitAlloc16M::CAP,
            Self::Buddy | Self::Floor => case.id != "B11",
        };
        let (huge, balances) = self.of(&Abilities, case);
        of_use && (huge || !case.work.needs_huge()) && (balances || !case.work.needs_balance())
    }

    /// What `with` makes of the type.
    fn of<R>(self, with: &impl With<R>, case: &Case) -> R {
        match self {
            Self::Quire => with.with::<Quire<0>>(),
            Self::QuireAvl => with.with::<Quire<1>>(),
            Self::QuireBuddy => with.with::<Quire<2>>(),
            Self::QuireSlab => with.with::<Quire<3>>(),
            Self::Global => with.with::<OneTree>(),
            Self::Buddy => with.with::<Buddy>(),
            // The smallest tree that is large enough is the fastest.
            Self::Bitmap if case.setup.frames <= BitAlloc1M::CAP => with.with::<Bitmap<BitAlloc1M>>(),
            Self::Bitmap => with.with::<Bitmap<BitAlloc16M>>(),
            Self::Floor => with.with::<Floor>(),
        }
    }
}

/// Whether it has large runs, and whether it balances.
struct Abilities;

impl With<(bool, bool)> for Abilities {
    fn with<S: Subject>(&self) -> (bool, bool) {
        (S::HUGE, S::BALANCES)
    }
}

struct Measured<'a>(&'a Case);

impl With<Outcome> for Measured<'_> {
    fn with<S: Subject>(&self) -> Outcome {
        let mut subject = S::new(&self.0.setup);
        self.0.work.prepare(&mut subject);
        self.0.work.run(&subject, &self.0.setup)
    }
}

struct Watched<'a>(&'a Case);

impl With<Findings> for Watched<'_> {
    fn with<S: Subject>(&self) -> Findings {
        let mut subject = Checked::<S>::new(&self.0.setup);
        self.0.work.prepare(&mut subject);
        self.0.work.run(&subject, &self.0.setup);
        subject.findings()
    }
}

/// One workload of one size.
#[derive(Debug)]
pub struct Case {
    /// `B1` to `B11`.
    pub id: &'static str,
    /// Which of that; unique with the number of CPUs.
    pub name: String,
    /// The machine; its CPUs are the threads, unless one thread acts for all.
    pub setup: Setup,
    /// What is done.
    pub work: Work,
}

impl Case {
    /// What it measures of a fresh allocator.
    pub fn measure(&self, kind: Kind) -> Outcome {
        kind.of(&Measured(self), self)
    }

    /// The same, untimed, to see whether any frame is handed out twice or lost. `None`: it hands out none.
    pub fn check(&self, kind: Kind) -> Option<Findings> {
        self.work.hands_out().then(|| kind.of(&Watched(self), self))
    }
}

/// What each id is about.
pub const IDS: [(&str, &str); 11] = [
    ("B1", "get many single frames, then put them in the same order"),
    ("B2", "get a single frame and put it, over and over"),
    ("B3", "get many single frames, shuffle them over all threads, put them"),
    ("B4", "one thread gets, another puts"),
    ("B5", "runs of 2^9 frames"),
    ("B6", "wholly free blocks after everything was replaced at random, in % of what is possible"),
    ("B7", "the same number of frames on each CPU, from one CPU to all"),
    ("B8", "from few to many frames outstanding"),
    ("B9", "when CPUs need different amounts of memory"),
    ("B10", "what is kept about frames"),
    ("B11", "from each algorithm to each other one"),
];

/// Sizes that differ between a measurement and a quick look.
struct Sizes {
    /// Frames of the machine for most cases.
    frames: usize,
    /// Frames of the machine for runs of 2^9.
    huge: usize,
    /// Frames a CPU, and memory a CPU, for B7 and B8.
    per_cpu: &'static [usize],
    per_cpu_memory: usize,
    outstanding: &'static [usize],
    /// Operations where nothing else says how many.
    operations: usize,
    /// Sizes of the machine for B10.
    metadata: &'static [usize],
}

const FULL: Sizes = Sizes {
    frames: 2 * GIB,
    huge: 4 * GIB,
    per_cpu: &[10_000, 1_000_000],
    per_cpu_memory: 8 * GIB,
    outstanding: &[50, 1000, 10_000, 100_000, 1_000_000],
    operations: 1 << 20,
    metadata: &[GIB / 8, HALF_GIB, GIB, 8 * GIB, 64 * GIB],
};

const QUICK: Sizes = Sizes {
    frames: GIB / 8,
    huge: GIB / 8,
    per_cpu: &[1000, 10_000],
    per_cpu_memory: GIB / 8,
    outstanding: &[50, 1000, 10_000],
    operations: 1 << 14,
    metadata: &[GIB / 8, HALF_GIB],
};

/// The cases that the options ask for, in order.
pub fn cases(options: &Options) -> Vec<Case> {
    let sizes = if options.quick { &QUICK } else { &FULL };
    let mut cases = Vec::new();
    for (id, _) in IDS.iter().filter(|(id, _)| options.wants(id)) {
        let mut add = |name: &str, frames, cpus, work| {
            cases.push(Case { id, name: name.to_owned(), setup: Setup { frames, cpus }, work });
        };
        let most = options.threads.iter().copied().max().unwrap_or(1);
        match *id {
            "B1" => options.threads.iter().for_each(|&n| add("bulk", sizes.frames, n, Work::Bulk)),
            "B2" => {
                for &n in &options.threads {
                    let pair = |before| Work::Pair { before, pairs: sizes.operations / 2 };
                    add("pair empty", sizes.frames, n, pair(Before::Nothing));
                    add("pair half full", sizes.frames, n, pair(Before::Half));
                    add("pair scattered", sizes.frames, n, pair(Before::Scattered));
                }
            }
            "B3" => {
                let work = || Work::Random { seed: options.seed };
                options.threads.iter().for_each(|&n| add("random", sizes.frames, n, work()));
            }
            "B4" => {
                let work = |by_rows| Work::HandOver { frames: sizes.operations, by_rows };
                add("hand-over in order", sizes.frames, 2, work(false));
                add("hand-over rows", sizes.frames, 2, work(true));
            }
            "B5" => options.threads.iter().for_each(|&n| {
                add("order 9", sizes.huge, n, Work::Huge { rounds: sizes.operations.div_ceil(1 << 15) });
            }),
            "B6" => {
                for free in [50, 75, 90] {
                    for cpus in [1, 2, 4] {
                        let work = Work::Churn { free, rounds: 10, seed: options.seed };
                        add(&format!("churn {free}"), sizes.frames, cpus, work);
                    }
                }
            }
            "B7" => {
                for &frames in sizes.per_cpu {
                    for &n in &options.threads {
                        let work = Work::Rounds { frames, rounds: sizes.operations.div_ceil(frames) };
                        add(&format!("{frames} a CPU"), n * sizes.per_cpu_memory, n, work);
                    }
                }
            }
            "B8" => {
                for &frames in sizes.outstanding {
                    for alternate in [false, true] {
                        let rounds = sizes.operations.div_ceil(frames);
                        let name = if alternate { "alternate" } else { "in order" };
                        let work = Work::Outstanding { frames, rounds, alternate };
                        add(&format!("{frames} {name}"), sizes.per_cpu_memory, 1, work);
                    }
                }
            }
            "B9" => {
                let n = most.max(2);
                add("one gets", sizes.frames, n, Work::OneGets { frames: sizes.operations / 2 });
                add("skewed", sizes.frames, n, Work::Skewed { rounds: 4 });
                add("starving", sizes.frames, n, Work::Starving { rounds: 4 });
            }
            "B10" => {
                for &frames in sizes.metadata {
                    for cpus in [1, 8, 64] {
                        // The limit is for 512 MiB and more.
                        let name = match frames {
                            ..HALF_GIB => format!("{} MiB", frames >> 8),
                            _ => format!("{} GiB", frames as f64 / GIB as f64),
                        };
                        add(&name, frames, cpus, Work::Metadata);
                    }
                }
            }
            "B11" => {
                let frames = sizes.outstanding.last().copied().unwrap_or(0);
                add(&format!("{frames} out"), sizes.per_cpu_memory, 1, Work::Switch { frames });
            }
            _ => {}
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn quick() -> Options {
        Options { quick: true, threads: vec![1, 2], ..Options::default() }
    }

    #[test]
    fn no_subject_hands_a_frame_out_twice() {
        for case in cases(&quick()) {
            for kind in Kind::ALL.into_iter().filter(|kind| kind.fits(&case)) {
                let Some(found) = case.check(kind) else { continue };
                assert!(found.are_right(), "{} {} {}: {found:?}", case.id, case.name, kind.name());
            }
        }
    }

    #[test]
    fn every_case_measures_something_of_ours() {
        let mut names = BTreeSet::new();
        for case in cases(&quick()) {
            let outcome = case.measure(Kind::Quire);
            assert!(!outcome.values.is_empty() && outcome.failures == 0, "{} {}", case.id, case.name);
            assert!(outcome.values.iter().all(|(_, value)| value.is_finite()), "{outcome:?}");
            assert!(names.insert((case.id, case.name.clone(), case.setup.cpus)), "{} twice", case.name);
        }
        let ids: BTreeSet<_> = names.iter().map(|(id, ..)| *id).collect();
        assert_eq!(ids.len(), IDS.len());
    }
}

//! The workloads: which there are, how large they are, and who takes part.

use bitmap_allocator::{BitAlloc, BitAlloc1M, BitAlloc16M};

use crate::{
    options::Options,
    ours::Quire,
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
    /// Ours.
    Quire,
    /// `buddy_system_allocator` and a mutex.
    Buddy,
    /// `bitmap-allocator` and a mutex.
    Bitmap,
    /// A stack for each CPU.
    Floor,
}

impl Kind {
    /// All.
    pub const ALL: [Kind; 4] = [Kind::Quire, Kind::Buddy, Kind::Bitmap, Kind::Floor];

    /// As in tables and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Quire => "quire",
            Self::Buddy => "buddy",
            Self::Bitmap => "bitmap",
            Self::Floor => "floor",
        }
    }

    /// Whether it can do what the case asks for.
    pub fn fits(self, case: &Case) -> bool {
        let (huge, balances) = match self {
            Self::Quire => able::<Quire>(),
            Self::Buddy => able::<Buddy>(),
            Self::Bitmap => able::<Bitmap<BitAlloc1M>>(),
            Self::Floor => able::<Floor>(),
        };
        let size = self != Self::Bitmap || case.setup.frames <= BitAlloc16M::CAP;
        size && (huge || !case.work.needs_huge()) && (balances || !case.work.needs_balance())
    }
}

fn able<S: Subject>() -> (bool, bool) {
    (S::HUGE, S::BALANCES)
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
        match kind {
            Kind::Quire => self.on::<Quire>(),
            Kind::Buddy => self.on::<Buddy>(),
            Kind::Bitmap if self.is_small() => self.on::<Bitmap<BitAlloc1M>>(),
            Kind::Bitmap => self.on::<Bitmap<BitAlloc16M>>(),
            Kind::Floor => self.on::<Floor>(),
        }
    }

    /// The same, untimed, to see whether any frame is handed out twice. `None`: it hands out none.
    pub fn check(&self, kind: Kind) -> Option<Findings> {
        self.work.hands_out().then(|| match kind {
            Kind::Quire => self.watch::<Quire>(),
            Kind::Buddy => self.watch::<Buddy>(),
            Kind::Bitmap if self.is_small() => self.watch::<Bitmap<BitAlloc1M>>(),
            Kind::Bitmap => self.watch::<Bitmap<BitAlloc16M>>(),
            Kind::Floor => self.watch::<Floor>(),
        })
    }

    /// The smallest tree that is large enough is the fastest.
    fn is_small(&self) -> bool {
        self.setup.frames <= BitAlloc1M::CAP
    }

    fn on<S: Subject>(&self) -> Outcome {
        self.work.run(&S::new(&self.setup), &self.setup)
    }

    fn watch<S: Subject>(&self) -> Findings {
        let subject = Checked::<S>::new(&self.setup);
        self.work.run(&subject, &self.setup);
        subject.findings()
    }
}

/// What each id is about.
pub const IDS: [(&str, &str); 10] = [
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
                add("one gets", sizes.frames, n, Work::OneGets { frames: 2 * sizes.operations });
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
            assert!(!outcome.values.is_empty(), "{} {}", case.id, case.name);
            assert!(outcome.values.iter().all(|(_, value)| value.is_finite()), "{outcome:?}");
            assert!(names.insert((case.id, case.name.clone(), case.setup.cpus)), "{} twice", case.name);
        }
        let ids: BTreeSet<_> = names.iter().map(|(id, ..)| *id).collect();
        assert_eq!(ids.len(), IDS.len());
    }
}

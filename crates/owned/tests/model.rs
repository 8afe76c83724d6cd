//! Random operations on one thread that moves between CPUs, against an oracle: who owns what, how many shares there
//! are, and that free + cached + owned = total after every step.
#![cfg(not(loom))]

use std::collections::{HashMap, HashSet};

use addr::Frame;
use owned::{Memory, OwnedFrame, OwnedRun, Stats, Use, testing};
use percpu::{Pinned, testing::Machine};
use proptest::prelude::*;

const CPUS: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    Alloc(Use),
    AllocZeroed(Use),
    Free(usize),
    Share(usize),
    AllocRun(u32, Use),
    FreeRun(usize),
    Drain,
    Migrate(usize),
}

fn usage() -> impl Strategy<Value = Use> {
    prop::sample::select(&Use::ALL[..])
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => usage().prop_map(Step::Alloc),
        2 => usage().prop_map(Step::AllocZeroed),
        8 => any::<usize>().prop_map(Step::Free),
        4 => any::<usize>().prop_map(Step::Share),
        1 => (0..=10u32, usage()).prop_map(|(order, usage)| Step::AllocRun(order, usage)),
        1 => any::<usize>().prop_map(Step::FreeRun),
        1 => Just(Step::Drain),
        3 => (0..CPUS).prop_map(Step::Migrate),
    ]
}

/// What is owned, and what the oracle knows of it.
struct World {
    frames: &'static Memory,
    /// The frames that exist.
    all: HashSet<Frame>,
    shares: Vec<OwnedFrame>,
    runs: Vec<OwnedRun>,
    /// Shares of each owned frame.
    owners: HashMap<Frame, usize>,
}

impl World {
    fn new(frames: &'static Memory, numbers: impl IntoIterator<Item = u64>) -> Self {
        let all = numbers.into_iter().map(|n| Frame::new(n).unwrap()).collect();
        Self { frames, all, shares: Vec::new(), runs: Vec::new(), owners: HashMap::new() }
    }

    /// A frame was handed out: it exists, and nobody had it.
    fn handed_out(&mut self, frame: Frame) {
        assert!(self.all.contains(&frame), "{frame:?} is not one of ours");
        assert_eq!(self.owners.insert(frame, 1), None, "{frame:?} was handed out twice");
    }

    fn add(&mut self, owned: Option<OwnedFrame>, before: &Stats) {
        match owned {
            Some(owned) => {
                self.handed_out(owned.frame());
                assert!(!self.frames.is_shared(owned.frame()));
                self.shares.push(owned);
            }
            // Only what other CPUs keep, and the reserve, may be out of reach.
            None => assert!(before.free <= before.reserve, "refused with {before:?}"),
        }
    }

    fn apply(&mut self, step: Step, pin: &Pinned<'_>) {
        let before = self.frames.stats();
        match step {
            Step::Alloc(usage) => {
                let owned = self.frames.alloc(pin, usage);
                self.add(owned, &before);
            }
            Step::AllocZeroed(usage) => {
                let mut owned = self.frames.alloc_zeroed(pin, usage);
                if let Some(owned) = &mut owned {
                    assert!(testing::bytes(self.frames, owned).iter().all(|b| *b == 0));
                }
                self.add(owned, &before);
            }
            Step::Free(n) if !self.shares.is_empty() => {
                let mut owned = self.shares.swap_remove(n % self.shares.len());
                let frame = owned.frame();
                let left = self.owners.get_mut(&frame).unwrap();
                *left -= 1;
                if *left == 0 {
                    self.owners.remove(&frame);
                    testing::bytes(self.frames, &mut owned).fill(n as u8);
                }
                self.frames.free(pin, owned);
            }
            Step::Share(n) if !self.shares.is_empty() => {
                let share = self.frames.share(&self.shares[n % self.shares.len()]);
                assert!(self.frames.is_shared(share.frame()));
                *self.owners.get_mut(&share.frame()).unwrap() += 1;
                self.shares.push(share);
            }
            Step::AllocRun(order, usage) => {
                if let Some(run) = self.frames.alloc_run(pin, order, usage) {
                    assert!(order <= frames::MAX_ORDER);
                    assert_eq!(run.frame().number() % (1 << order), 0, "a run is aligned");
                    let first = run.frame().number();
                    (first..first + (1 << order)).for_each(|f| self.handed_out(Frame::new(f).unwrap()));
                    self.runs.push(run);
                }
            }
            Step::FreeRun(n) if !self.runs.is_empty() => {
                let run = self.runs.swap_remove(n % self.runs.len());
                let first = run.frame().number();
                for f in first..first + (1 << run.order()) {
                    assert_eq!(self.owners.remove(&Frame::new(f).unwrap()), Some(1));
                }
                self.frames.free_run(pin, run);
            }
            Step::Drain => self.frames.drain(pin),
            _ => {}
        }
        self.check();
    }

    fn check(&self) {
        let s = self.frames.stats();
        assert_eq!(s.free + s.cached + s.owned.iter().sum::<u64>(), s.total, "{s:?}");
        assert_eq!(s.owned.iter().sum::<u64>(), self.owners.len() as u64);
        for usage in Use::ALL {
            let single: HashSet<_> =
                self.shares.iter().filter(|o| o.usage() == usage).map(OwnedFrame::frame).collect();
            let runs: usize =
                self.runs.iter().filter(|r| r.usage() == usage).map(|r| 1usize << r.order()).sum();
            assert_eq!(s.owned[usage as usize], (single.len() + runs) as u64, "{usage:?}");
        }
        assert!(
            self.shares.iter().all(|o| self.frames.is_shared(o.frame()) == (self.owners[&o.frame()] > 1))
        );
        assert_eq!(self.frames.low(), s.free <= s.reserve);
    }

    /// Give all back, on all CPUs: then every frame is in the pool, and in one piece.
    fn end(mut self, machine: &Machine, pin: impl Fn() -> Pinned<'static>) {
        self.shares.drain(..).for_each(|o| self.frames.free(&pin(), o));
        self.runs.drain(..).for_each(|r| self.frames.free_run(&pin(), r));
        for cpu in 0..CPUS {
            machine.migrate(cpu);
            self.frames.drain(&pin());
        }
        let s = self.frames.stats();
        assert_eq!((s.free, s.cached, s.owned), (s.total, 0, [0; 5]));
        assert_eq!(s.total, self.all.len() as u64);
    }
}

/// Run `steps` on frames with these numbers.
fn run(ranges: &[std::ops::Range<u64>], steps: Vec<Step>) {
    let machine: &'static Machine = Box::leak(Box::new(Machine::new(CPUS)));
    let frames = testing::with_ranges(ranges, CPUS);
    let mut world = World::new(frames, ranges.iter().flat_map(Clone::clone));
    machine.on(0, |_| {
        // SAFETY: used by this thread only, within `on`, and not while pinned.
        let ctx = unsafe { percpu::Unpinned::new(machine) };
        for step in steps {
            if let Step::Migrate(cpu) = step {
                machine.migrate(cpu);
            }
            world.apply(step, &ctx.pin());
        }
        world.end(machine, || ctx.pin());
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn plenty(steps in prop::collection::vec(step(), 1..250)) {
        run(&[512..1500, 1500..1600], steps);
    }

    #[test]
    fn scarce_and_full_of_holes(steps in prop::collection::vec(step(), 1..250)) {
        run(&[3..4, 70..100, 128..200, 260..275], steps);
    }
}

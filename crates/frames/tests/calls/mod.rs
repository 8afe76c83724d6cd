//! Calls of the allocator by several CPUs, one after the other, and a set of frames that says what they must do.

use std::collections::{BTreeMap, HashSet};

use addr::DirectMap;
use frames::{AlgoKind, Clear, FrameRange, Frames, Gen, Place, Req, Run, RunVec, testing};
use percpu::{CpuId, Pinned};

/// CPUs of the machines here.
pub const CPUS: usize = 3;

pub fn pin(cpu: usize) -> Pinned<'static> {
    // SAFETY: one thread plays all CPUs, one after the other.
    unsafe { Pinned::assume(CpuId::new(cpu % CPUS).expect("a CPU")) }
}

/// A call.
#[derive(Clone, Debug)]
pub enum Step {
    Alloc { cpu: usize, req: Req },
    Bulk { cpu: usize, n: usize },
    Free { cpu: usize, which: usize },
    FreeMany { cpu: usize, n: usize },
    FreeShared { which: usize },
    Pending { cpu: usize, which: usize, generation: u64 },
    Release { cpu: usize, done: u64 },
    Split { which: usize },
    Drain { cpu: usize },
    AskAll,
    SafePoint { cpu: usize },
    Tick { cpu: usize },
    Balance { cpu: usize },
    Idle { cpu: usize, budget: u32 },
    Park { cpu: usize },
    Switch { cpu: usize, kind: AlgoKind },
    Offline { cpu: usize, block: u64, blocks: u64 },
    Cancel { cpu: usize, block: u64, blocks: u64 },
    Online { cpu: usize, block: u64, blocks: u64 },
}

/// What callers have, and nobody else may.
#[derive(Default)]
pub struct Oracle {
    pub owned: HashSet<u64>,
    runs: Vec<Run>,
    /// In quarantine: generation and frames, by CPU.
    pending: Vec<(usize, u64, u64)>,
    offline: HashSet<u64>,
}

impl Oracle {
    pub fn add(&mut self, run: Run) {
        let first = run.first().number();
        assert!(first.is_multiple_of(run.frames()), "{run:?} is not aligned");
        for f in first..first + run.frames() {
            assert!(self.owned.insert(f), "frame {f:#x} was handed out twice");
            assert!(!self.offline.contains(&(f / 512)), "frame {f:#x} is out of service");
        }
        self.runs.push(run);
    }
    pub fn take(&mut self, which: usize) -> Option<Run> {
        if self.runs.is_empty() {
            return None;
        }
        let run = self.runs.swap_remove(which % self.runs.len());
        let first = run.first().number();
        (first..first + run.frames()).for_each(|f| assert!(self.owned.remove(&f)));
        Some(run)
    }
    pub fn in_quarantine(&self) -> u64 {
        self.pending.iter().map(|p| p.2).sum()
    }
}

pub fn range(base: u64, block: u64, blocks: u64) -> FrameRange {
    let at = |n: u64| testing::frame(base + n * 512);
    FrameRange { start: at(block), end: at(block + blocks) }
}

/// Imaginary frames are zeroed by doing nothing.
pub fn clear() -> Clear {
    // SAFETY: nobody reads a byte of them.
    unsafe { Clear::new(DirectMap::new(0)).by(|_| (), |_| ()) }
}

/// Memory for an algorithm on a CPU that has not got any.
pub type Memory = fn(usize, AlgoKind) -> &'static mut [u8];

/// Make a call, and see that its answer is right.
pub fn apply(frames: &Frames<'static>, oracle: &mut Oracle, base: u64, step: Step, memory: Memory) {
    match step {
        Step::Alloc { cpu, req } => {
            if let Ok(run) = frames.alloc(&pin(cpu), req) {
                assert_eq!(run.order(), req.order);
                if let Place::Bind(nodes, _) = req.place {
                    // A block that two nodes share belongs to that of its first frame.
                    let block = testing::frame(run.first().number() / 512 * 512);
                    assert!(nodes.contains(frames.topology().node_of(block)), "{run:?} is not of {nodes:?}");
                }
                oracle.add(run);
            }
        }
        Step::Bulk { cpu, n } => {
            let mut slots: Vec<_> = (0..n).map(|_| std::mem::MaybeUninit::uninit()).collect();
            let mut runs = RunVec::new(&mut slots);
            frames.alloc_bulk(&pin(cpu), Req::default(), &mut runs);
            while let Some(run) = runs.pop() {
                oracle.add(run);
            }
        }
        Step::Free { cpu, which } => {
            if let Some(run) = oracle.take(which) {
                frames.free(&pin(cpu), run).expect("it was owned");
            }
        }
        Step::FreeMany { cpu, n } => {
            let mut slots: Vec<_> = (0..n).map(|_| std::mem::MaybeUninit::uninit()).collect();
            let mut runs = RunVec::new(&mut slots);
            for i in 0..n {
                if let Some(run) = oracle.take(i.wrapping_mul(7919)) {
                    runs.push(run).expect("there is room");
                }
            }
            frames.free_bulk(&pin(cpu), &mut runs).expect("they were owned");
        }
        Step::FreeShared { which } => {
            if let Some(run) = oracle.take(which) {
                frames.free_shared(run).expect("it was owned");
            }
        }
        Step::Pending { cpu, which, generation } => {
            if let Some(run) = oracle.take(which) {
                let n = run.frames();
                match frames.free_pending(&pin(cpu), run, Gen(generation)) {
                    Ok(()) => oracle.pending.push((cpu, generation, n)),
                    Err((run, _)) => oracle.add(run),
                }
            }
        }
        Step::Release { cpu, done } => {
            let freed = frames.release(&pin(cpu), Gen(done));
            let due = |p: &(usize, u64, u64)| p.0 == cpu && p.1 <= done;
            assert_eq!(freed as u64, oracle.pending.iter().filter(|p| due(p)).map(|p| p.2).sum::<u64>());
            oracle.pending.retain(|p| !due(p));
        }
        Step::Split { which } => {
            if let Some(run) = oracle.take(which) {
                match frames.split(run) {
                    Ok(parts) => parts.for_each(|part| oracle.add(part)),
                    Err((run, error)) => panic!("{run:?}: {error}"),
                }
            }
        }
        Step::Drain { cpu } => frames.drain(&pin(cpu)),
        Step::AskAll => {
            let number = frames.request_drain(&frames.everyone());
            (0..CPUS).for_each(|cpu| frames.safe_point(&pin(cpu)));
            assert!(frames.everyone().iter().all(|cpu| frames.drained(cpu, number)));
            assert_eq!(frames.stats().cached, oracle.in_quarantine());
        }
        Step::SafePoint { cpu } => frames.safe_point(&pin(cpu)),
        Step::Tick { cpu } => frames.tick(&pin(cpu)),
        Step::Balance { cpu } => {
            frames.balance(&pin(cpu));
        }
        Step::Idle { cpu, budget } => {
            frames.idle(&pin(cpu), budget);
        }
        Step::Park { cpu } => frames.park(&pin(cpu)),
        Step::Switch { cpu, kind } => {
            let memory = (!frames.is_open(&pin(cpu), kind)).then(|| memory(cpu % CPUS, kind));
            let report = frames.set_algo(&pin(cpu), kind, memory);
            assert!(report.is_ok());
        }
        Step::Offline { cpu, block, blocks } => {
            // Twice: what other CPUs keep has to be asked for in between.
            let range = range(base, block, blocks);
            let _ = frames.offline(&pin(cpu), range);
            frames.request_drain(&frames.everyone());
            (0..CPUS).for_each(|cpu| frames.safe_point(&pin(cpu)));
            if frames.offline(&pin(cpu), range).is_ok() {
                let first = range.start.number() / 512;
                oracle.offline.extend(first..first + blocks);
                let used = oracle.owned.iter().any(|f| oracle.offline.contains(&(f / 512)));
                assert!(!used, "a block with owned frames went out of service");
            } else {
                frames.cancel_offline(&pin(cpu), range);
            }
        }
        Step::Cancel { cpu, block, blocks } => frames.cancel_offline(&pin(cpu), range(base, block, blocks)),
        Step::Online { cpu, block, blocks } => {
            let range = range(base, block, blocks);
            let first = range.start.number() / 512;
            let all = (first..first + blocks).all(|b| oracle.offline.contains(&b));
            // SAFETY: imaginary frames, which were taken out of service.
            let result = unsafe { frames.online(&pin(cpu), range) };
            assert_eq!(result.is_ok(), all);
            if all {
                (first..first + blocks).for_each(|b| assert!(oracle.offline.remove(&b)));
            }
        }
    }
}

/// Every frame is in one place.
pub fn check(frames: &Frames<'_>, oracle: &Oracle) {
    let s = frames.stats();
    assert_eq!(s.free + s.cached + s.owned, s.total, "{s:?}");
    let owned = oracle.owned.len() as u64;
    assert_eq!(s.owned, owned, "{s:?}, in quarantine {}", oracle.in_quarantine());
    let count = frames.recount();
    assert_eq!((count.wrong, count.counts, count.bits), (0, s.free, s.free), "{count:?} {s:?}");
}

/// Make all calls, and give everything back; the first frame has the number `base`.
pub fn run(frames: &Frames<'static>, base: u64, steps: impl IntoIterator<Item = Step>, memory: Memory) {
    let mut oracle = Oracle::default();
    check(frames, &oracle);
    for step in steps {
        apply(frames, &mut oracle, base, step, memory);
        check(frames, &oracle);
    }
    while let Some(run) = oracle.take(0) {
        frames.free(&pin(1), run).expect("it was owned");
    }
    (0..CPUS).for_each(|cpu| {
        frames.release(&pin(cpu), Gen(u64::MAX));
        frames.drain(&pin(cpu));
    });
    oracle.pending.clear();
    check(frames, &oracle);
    assert_eq!(frames.stats().cached, 0);
    assert!((0..CPUS).all(|cpu| frames.cpu_stats(CpuId::new(cpu).unwrap()).cached == 0));
    let orders = frames.topology().all().iter().fold(BTreeMap::new(), |mut all, node| {
        for (order, n) in frames.free_runs(node).into_iter().enumerate() {
            *all.entry(order).or_insert(0) += n << order;
        }
        all
    });
    assert_eq!(orders.values().sum::<u64>(), frames.stats().free);
}

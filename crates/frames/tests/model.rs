//! The allocator against a set of frames: whatever is asked of it, by whichever CPU, every frame is in one place.
#![cfg(not(loom))]

use std::collections::{BTreeMap, HashSet};

use addr::PAGE_SIZE;
use frames::{
    AlgoKind, Class, Ctx, FrameRange, Frames, FreeError, Gen, NodeSet, Place, Req, Run, RunVec, Topology,
    testing,
    topology::{Builder, CpuAffinity, MemoryAffinity},
};
use percpu::{CpuId, Pinned};
use proptest::prelude::*;

/// CPUs of the machines here.
const CPUS: usize = 3;

fn pin(cpu: usize) -> Pinned<'static> {
    // SAFETY: one thread plays all CPUs, one after the other.
    unsafe { Pinned::assume(CpuId::new(cpu % CPUS).expect("a CPU")) }
}

#[derive(Clone, Debug)]
enum Step {
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
    Switch { cpu: usize, kind: AlgoKind },
    Offline { cpu: usize, block: u64, blocks: u64 },
    Cancel { cpu: usize, block: u64, blocks: u64 },
    Online { cpu: usize, block: u64, blocks: u64 },
}

fn req() -> impl Strategy<Value = Req> {
    let order = prop_oneof![6 => Just(0u32), 4 => 1..9u32, 2 => Just(9u32), 1 => 10..13u32];
    let class = prop_oneof![Just(Class::Movable), Just(Class::Unmovable)];
    let ctx = prop_oneof![Just(Ctx::Normal), Just(Ctx::Atomic), Just(Ctx::Reserve)];
    let place = prop_oneof![
        8 => Just(Place::Local),
        1 => (0..2usize).prop_map(|n| Place::Prefer(frames::Node::new(n).unwrap())),
        1 => (1..4u64).prop_map(|s| Place::Bind(NodeSet::from_bits(s), None)),
        1 => (1..4u64).prop_map(|s| Place::PreferAny(NodeSet::from_bits(s), frames::Node::new(1))),
        1 => (1..4u64).prop_map(|s| Place::Interleave(NodeSet::from_bits(s))),
    ];
    let lane = prop_oneof![
        3 => Just(None),
        1 => prop::sample::select(AlgoKind::ALL.to_vec()).prop_map(Some),
    ];
    (order, class, ctx, place, lane).prop_map(|(order, class, ctx, place, lane)| Req {
        order,
        class,
        ctx,
        place,
        lane,
        ..Req::default()
    })
}

fn step() -> impl Strategy<Value = Step> {
    let cpu = 0..CPUS;
    let kind = prop::sample::select(AlgoKind::ALL.to_vec());
    let blocks = (0..16u64, 1..4u64);
    prop_oneof![
        30 => (cpu.clone(), req()).prop_map(|(cpu, req)| Step::Alloc { cpu, req }),
        8 => (cpu.clone(), 1..300usize).prop_map(|(cpu, n)| Step::Bulk { cpu, n }),
        25 => (cpu.clone(), any::<usize>()).prop_map(|(cpu, which)| Step::Free { cpu, which }),
        8 => (cpu.clone(), 1..400usize).prop_map(|(cpu, n)| Step::FreeMany { cpu, n }),
        4 => any::<usize>().prop_map(|which| Step::FreeShared { which }),
        4 => (cpu.clone(), any::<usize>(), 0..9u64)
            .prop_map(|(cpu, which, generation)| Step::Pending { cpu, which, generation }),
        2 => (cpu.clone(), 0..9u64).prop_map(|(cpu, done)| Step::Release { cpu, done }),
        2 => any::<usize>().prop_map(|which| Step::Split { which }),
        2 => cpu.clone().prop_map(|cpu| Step::Drain { cpu }),
        1 => Just(Step::AskAll),
        2 => cpu.clone().prop_map(|cpu| Step::SafePoint { cpu }),
        2 => cpu.clone().prop_map(|cpu| Step::Tick { cpu }),
        1 => cpu.clone().prop_map(|cpu| Step::Balance { cpu }),
        2 => (cpu.clone(), kind).prop_map(|(cpu, kind)| Step::Switch { cpu, kind }),
        1 => (cpu.clone(), blocks.clone()).prop_map(|(cpu, (block, blocks))| Step::Offline { cpu, block, blocks }),
        1 => (cpu.clone(), blocks.clone()).prop_map(|(cpu, (block, blocks))| Step::Cancel { cpu, block, blocks }),
        1 => (cpu, blocks).prop_map(|(cpu, (block, blocks))| Step::Online { cpu, block, blocks }),
    ]
}

/// What callers have, and nobody else may.
#[derive(Default)]
struct Oracle {
    owned: HashSet<u64>,
    runs: Vec<Run>,
    /// In quarantine: generation and frames, by CPU.
    pending: Vec<(usize, u64, u64)>,
    offline: HashSet<u64>,
}

impl Oracle {
    fn add(&mut self, run: Run) {
        let first = run.first().number();
        assert!(first.is_multiple_of(run.frames()), "{run:?} is not aligned");
        for f in first..first + run.frames() {
            assert!(self.owned.insert(f), "frame {f:#x} was handed out twice");
            assert!(!self.offline.contains(&(f / 512)), "frame {f:#x} is out of service");
        }
        self.runs.push(run);
    }
    fn take(&mut self, which: usize) -> Option<Run> {
        if self.runs.is_empty() {
            return None;
        }
        let run = self.runs.swap_remove(which % self.runs.len());
        let first = run.first().number();
        (first..first + run.frames()).for_each(|f| assert!(self.owned.remove(&f)));
        Some(run)
    }
    fn in_quarantine(&self) -> u64 {
        self.pending.iter().map(|p| p.2).sum()
    }
}

fn range(base: u64, block: u64, blocks: u64) -> FrameRange {
    let at = |n: u64| testing::frame(base + n * 512);
    FrameRange { start: at(block), end: at(block + blocks) }
}

fn apply(frames: &'static Frames<'static>, oracle: &mut Oracle, base: u64, step: Step) {
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
        Step::Switch { cpu, kind } => {
            let report = frames.set_algo(&pin(cpu), kind, Some(testing::lane_memory(kind)));
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

fn check(frames: &Frames<'_>, oracle: &Oracle) {
    let s = frames.stats();
    assert_eq!(s.free + s.cached + s.owned, s.total, "{s:?}");
    let owned = oracle.owned.len() as u64;
    assert_eq!(s.owned, owned, "{s:?}, in quarantine {}", oracle.in_quarantine());
    let count = frames.recount();
    assert_eq!((count.wrong, count.counts, count.bits), (0, s.free, s.free), "{count:?} {s:?}");
}

/// A machine with two nodes and a hole, whose second node begins at `split`.
fn two_nodes(start: u64, split: u64, end: u64) -> Topology {
    let mut builder = Builder::new(CPUS);
    let memory = |from: u64, to: u64, domain| MemoryAffinity {
        base: from * PAGE_SIZE,
        length: (to - from) * PAGE_SIZE,
        domain,
        enabled: true,
    };
    builder.memory(memory(start, split, 0)).unwrap();
    builder.memory(memory(split, end, 1)).unwrap();
    builder.cpu(CpuAffinity { cpu: CpuId::new(2).unwrap(), domain: 1, enabled: true });
    builder.build().unwrap()
}

fn run(frames: &'static Frames<'static>, base: u64, steps: Vec<Step>) {
    let mut oracle = Oracle::default();
    check(frames, &oracle);
    for step in steps {
        apply(frames, &mut oracle, base, step);
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, max_shrink_iters: 20_000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn every_frame_is_in_one_place(steps in prop::collection::vec(step(), 1..120)) {
        run(testing::frames(24 * 512, CPUS), 512, steps);
    }

    #[test]
    fn every_frame_is_in_one_place_on_two_nodes(steps in prop::collection::vec(step(), 1..120)) {
        let topology = Box::leak(Box::new(two_nodes(0, 0x1300, 0x4000)));
        let ranges = [0x200..0x1900, 0x1a80..0x3001, 0x3100..0x3fff];
        run(testing::with_topology(&ranges, topology, CPUS), 512, steps);
    }

    /// So small a machine that CPUs can't keep blocks.
    #[test]
    fn every_frame_is_in_one_place_where_there_are_few(steps in prop::collection::vec(step(), 1..80), n in 1..3000usize) {
        run(testing::frames(n, CPUS), 512, steps);
    }
}

#[test]
fn every_frame_can_be_had() {
    for n in [1, 5, 64, 511, 512, 513, 4096, 40_000] {
        for order in [0, 9] {
            let frames = testing::frames(n, CPUS);
            let mut oracle = Oracle::default();
            let req = Req { ctx: Ctx::Reserve, ..Req::order(order) };
            while let Ok(run) = frames.alloc(&pin(1), req) {
                oracle.add(run);
            }
            assert_eq!(
                oracle.owned.len(),
                if order == 0 { n } else { n / 512 * 512 },
                "{n} frames, order {order}"
            );
            while let Some(run) = oracle.take(3) {
                frames.free(&pin(2), run).expect("it was owned");
            }
        }
    }
}

/// What can be seen of a double free is an error, in release builds too, and spoils nothing.
#[test]
fn what_is_freed_twice_is_refused() {
    let frames = testing::frames(40 * 512, CPUS);
    let (p, other) = (pin(0), pin(1));
    let free = |pin: &Pinned<'_>, first: u64, order: u32| {
        // SAFETY: none, which is what is tested; the frames are imaginary.
        frames.free(pin, unsafe { Run::from_raw(testing::frame(first), order) })
    };
    let alloc = |order: u32| frames.alloc(&p, Req::order(order)).unwrap().into_raw().0.number();
    let twice = |n: u64| Err(FreeError::DoubleFree(testing::frame(n)));
    let wrong = |n: u64| Err(FreeError::WrongState(testing::frame(n)));

    let leased = alloc(0);
    assert_eq!(free(&p, leased, 0), Ok(()));
    assert_eq!(free(&p, leased, 0), twice(leased), "it lies in this CPU's lease");
    assert_eq!(free(&other, leased, 0), Ok(()), "gathered; nobody has looked yet");
    frames.drain(&other);
    assert_eq!(frames.cpu_stats(CpuId::new(1).unwrap()).refused, 1, "it lay in another CPU's lease");
    assert_eq!(frames.recount().wrong, 0);

    let far = alloc(6);
    assert_eq!(free(&p, far, 6), Ok(()));
    assert_eq!(free(&p, far, 6), twice(far), "its bits are clear");
    assert_eq!(free(&p, far, 9), wrong(far), "another order, and the block is not out as a whole");

    let gathered = alloc(1);
    (0..64).for_each(|_| {
        alloc(0);
    });
    assert_eq!(free(&p, gathered, 1), Ok(()));
    assert_eq!(free(&p, gathered + 1, 0), twice(gathered + 1), "it lies in an accumulator");

    let huge = alloc(9);
    assert_eq!(free(&p, huge, 0), wrong(huge), "a part of a huge run");
    assert_eq!(free(&p, huge, 9), Ok(()));
    assert_eq!(free(&p, huge, 9), twice(huge), "it lies on the shelf");
    frames.drain(&p);
    assert_eq!(free(&p, huge, 9), twice(huge), "its block is free");

    let giant = alloc(11);
    assert_eq!(free(&p, giant, 10), wrong(giant), "another order");
    assert_eq!(free(&p, giant + 512, 9), wrong(giant + 512), "a part of a giant run");
    assert_eq!(free(&other, giant, 11), Ok(()));
    assert_eq!(free(&other, giant, 11), twice(giant));

    assert_eq!(free(&p, 1, 0), Err(FreeError::NotManaged(testing::frame(1))));
    assert_eq!(free(&p, 1 << 30, 0), Err(FreeError::NotManaged(testing::frame(1 << 30))));
    assert_eq!(free(&p, 513, 1), wrong(513), "not aligned");
    assert_eq!(free(&p, 512, 19), wrong(512), "no such order");
    (0..CPUS).for_each(|cpu| frames.drain(&pin(cpu)));
    assert_eq!(frames.recount().wrong, 0);
}

//! What the allocator promises beyond handing out each frame once: where frames come from, where they go, who goes short.
#![cfg(not(any(loom, shuttle)))]
#![allow(clippy::single_range_in_vec_init, reason = "a list of ranges that has one")]

use std::{
    collections::HashSet,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use addr::{DirectMap, PAGE_SIZE};
use frames::{
    AllocError, Class, Clear, Config, Ctx, Fill, FrameRange, Frames, Node, NodeSet, Place, Pressure, Reclaim,
    Req, Run, Topology, Watermarks, testing,
    topology::{Builder, CpuAffinity, MemoryAffinity},
};
use percpu::{CpuId, CpuSet, Pinned, testing::Machine};
use proptest::prelude::*;

fn pin(cpu: usize) -> Pinned<'static> {
    // SAFETY: one thread plays all CPUs, one after the other.
    unsafe { Pinned::assume(CpuId::new(cpu).expect("a CPU")) }
}

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).expect("a CPU")
}

fn node(n: usize) -> Node {
    Node::new(n).expect("a node")
}

fn all(frames: &Frames<'_>, pin: &Pinned<'_>, req: Req) -> Vec<Run> {
    std::iter::from_fn(|| frames.alloc(pin, req).ok()).collect()
}

fn give(frames: &Frames<'_>, pin: &Pinned<'_>, runs: impl IntoIterator<Item = Run>) {
    runs.into_iter().for_each(|run| frames.free(pin, run).expect("it was owned"));
}

/// Nodes of `blocks` blocks each, from frame 0 on, with `cpus` CPUs in turn; distances as given.
fn nodes(blocks: &[u64], cpus: usize, distance: impl Fn(u32, u32) -> u8) -> &'static Topology {
    let mut builder = Builder::new(cpus);
    let mut at = 0;
    for (i, n) in blocks.iter().enumerate() {
        let length = n * 512 * PAGE_SIZE;
        builder.memory(MemoryAffinity { base: at, length, domain: i as u32, enabled: true }).unwrap();
        at += length;
    }
    for c in 0..cpus {
        builder.cpu(CpuAffinity { cpu: cpu(c), domain: (c % blocks.len()) as u32, enabled: true });
    }
    let mut topology = builder.build().unwrap();
    topology.set_distances(blocks.len() as u64, distance).unwrap();
    Box::leak(Box::new(topology))
}

fn local_or(far: u8) -> impl Fn(u32, u32) -> u8 {
    move |a, b| if a == b { 10 } else { far + (a + b) as u8 }
}

#[test]
fn metadata_has_the_stated_size() {
    // 1.1 bits a frame from 512 MiB on, and what doesn't grow with memory apart: at most 4 KiB a CPU.
    for (mib, at_most) in [(128, 2.0), (512, 1.1), (1 << 10, 1.1), (64 << 10, 1.1), (1 << 20, 1.1)] {
        for cpus in [1, 8, 160] {
            let range = [FrameRange { start: testing::frame(0), end: testing::frame(mib << 8) }];
            let topology = Topology::one_node(cpus);
            let cfg = Config { ranges: &range, cpus, topology: &topology };
            let bits = Frames::map_bytes(&cfg) as f64 * 8.0 / (mib << 8) as f64;
            assert!(bits <= at_most, "{mib} MiB: {bits:.3} bits a frame");
            let rest = Frames::meta_bytes(&cfg) - Frames::map_bytes(&cfg);
            assert!(rest <= 4096 * (cpus + 1), "{cpus} CPUs: {rest} bytes");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..Default::default() })]

    /// Every frame of every range can be had exactly once, whatever the ranges, nodes and CPUs; none from a hole.
    #[test]
    fn regions_cover_the_ranges_exactly_once(
        lengths in prop::collection::vec((1..3000u64, 0..1500u64), 1..8),
        cpus in 1..20usize,
        count in 1..4usize,
    ) {
        let mut at = 5;
        let ranges: Vec<_> = lengths.iter().map(|(n, gap)| { let r = at..at + n; at += n + gap; r }).collect();
        let topology = nodes(&vec![at / 512 / count as u64 + 1; count], cpus, local_or(20));
        let frames = testing::with_topology(&ranges, topology, cpus);
        let total: u64 = lengths.iter().map(|(n, _)| n).sum();
        prop_assert_eq!(frames.stats().total, total);
        let unused: u64 = (0..cpus).map(|c| frames.cpu_stats(cpu(c)).unused).sum();
        prop_assert!(unused <= total);
        let runs = all(frames, &pin(cpus - 1), Req { ctx: Ctx::Reserve, ..Req::default() });
        let numbers: HashSet<_> = runs.iter().map(|run| run.first().number()).collect();
        prop_assert_eq!((runs.len() as u64, numbers.len() as u64), (total, total));
        prop_assert!(numbers.iter().all(|n| ranges.iter().any(|r| r.contains(n))));
        give(frames, &pin(0), runs);
    }
}

#[test]
fn shares_are_equal_and_cut_between_extents() {
    let frames = testing::frames(8 * 512 * 64, 8);
    for c in 0..8 {
        let unused = frames.cpu_stats(cpu(c)).unused;
        assert!((48 * 512..=80 * 512).contains(&unused), "CPU {c} has {unused}");
    }
}

#[test]
fn a_small_machine_works() {
    // 8 MiB and 8 CPUs: fewer blocks than CPUs.
    let machine = Machine::new(8);
    let frames = testing::frames(2048, 8);
    let kept = Mutex::new(Vec::new());
    machine.run(|_, ctx| {
        for _ in 0..200 {
            let run = frames.alloc(&ctx.pin(), Req::default()).expect("there are 2048");
            kept.lock().unwrap().push(run);
        }
    });
    let kept = kept.into_inner().unwrap();
    let numbers: HashSet<_> = kept.iter().map(|run| run.first()).collect();
    assert_eq!(numbers.len(), 1600);
    give(frames, &pin(3), kept);
}

#[test]
fn what_one_cpu_allocates_and_another_frees_comes_home() {
    let frames = testing::frames(4 * 64 * 512, 4);
    let share = frames.cpu_stats(cpu(0)).unused;
    for _ in 0..20 {
        let runs: Vec<_> = (0..20_000).map(|_| frames.alloc(&pin(0), Req::default()).unwrap()).collect();
        for (i, run) in runs.into_iter().enumerate() {
            frames.free(&pin(1 + i % 3), run).expect("it was owned");
        }
    }
    (0..4).for_each(|c| frames.drain(&pin(c)));
    for c in 0..4 {
        let now = frames.cpu_stats(cpu(c));
        assert!(now.unused <= now.high && now.unused * 10 >= share * 5, "CPU {c}: {now:?}");
    }
}

#[test]
fn transfers_are_rare_under_a_skewed_load() {
    // CPU 0 does nine tenths of the work, on more than its share.
    let frames = testing::frames(4 * 64 * 512, 4);
    let mut live: [Vec<Run>; 4] = Default::default();
    let mut allocations = 0u64;
    for round in 0..300 {
        for (c, live) in live.iter_mut().enumerate() {
            let n = if c == 0 { 900 } else { 33 };
            for _ in 0..n {
                live.push(frames.alloc(&pin(c), Req::default()).expect("there is memory left"));
                allocations += 1;
            }
            let keep = if c == 0 { 80_000 } else { 2_000 };
            while live.len() > keep {
                let run = live.swap_remove(round % 7);
                frames.free(&pin(c), run).unwrap();
            }
            if round % 10 == 0 {
                frames.tick(&pin(c));
            }
        }
    }
    let transfers: u64 = (0..4).map(|c| frames.cpu_stats(cpu(c)).transfers).sum();
    assert!(transfers > 0, "CPU 0 used more than its share");
    assert!(transfers * 1000 < allocations, "{transfers} transfers for {allocations} allocations");
    live.into_iter().flatten().for_each(|run| frames.free(&pin(0), run).unwrap());
}

/// CPUs come to their safe point when they are poked, on a thread of their own.
struct Poked<'a> {
    poked: &'a AtomicBool,
}

impl Reclaim for Poked<'_> {
    fn reclaim(&self, _need: u64) -> bool {
        false
    }
    fn poke(&self, _cpus: &CpuSet) {
        self.poked.store(true, Ordering::SeqCst);
    }
    fn wait(&self, turn: u32) -> bool {
        std::thread::yield_now();
        turn < 10_000_000
    }
}

#[test]
fn the_last_frames_are_found_in_other_cpus_hands() {
    const CPUS: usize = 4;
    let machine = Machine::new(CPUS);
    let frames = testing::frames(CPUS * 16 * 512, CPUS);
    // Each CPU keeps what it can: a lease, and rows on their way home.
    machine.run(|_, ctx| {
        let runs: Vec<_> = (0..1000).map(|_| frames.alloc(&ctx.pin(), Req::default()).unwrap()).collect();
        give(frames, &ctx.pin(), runs);
    });
    let cached = frames.stats().cached;
    assert!(cached > 100, "{cached}");
    let (poked, done) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|s| {
        for c in 1..CPUS {
            let (machine, poked, done) = (&machine, &poked, &done);
            s.spawn(move || {
                machine.on(c, |ctx| {
                    while done.load(Ordering::SeqCst) == 0 {
                        if poked.load(Ordering::SeqCst) {
                            frames.safe_point(&ctx.pin());
                        }
                        std::thread::yield_now();
                    }
                });
            });
        }
        machine.on(0, |ctx| {
            let req = Req { ctx: Ctx::Reserve, ..Req::default() };
            let mut runs = all(frames, &ctx.pin(), req);
            let others = frames.stats();
            assert!(others.free + others.cached > 0, "nothing is left in others' hands");
            let reclaim = Poked { poked: &poked };
            while let Ok(run) = frames.alloc_reclaim(ctx, req, &reclaim) {
                runs.push(run);
            }
            done.store(1, Ordering::SeqCst);
            let s = frames.stats();
            assert_eq!((s.free, s.cached, s.owned), (0, 0, s.total));
            give(frames, &ctx.pin(), runs);
        });
    });
}

#[test]
fn two_cpus_that_drain_each_other_go_on() {
    let machine = Machine::new(2);
    let frames = testing::frames(64 * 512, 2);
    let (poked, done) = (AtomicBool::new(false), AtomicUsize::new(0));
    machine.run(|_, ctx| {
        for _ in 0..200 {
            let run = frames.alloc(&ctx.pin(), Req::default()).unwrap();
            assert!(frames.drain_all(ctx, &Poked { poked: &poked }), "the other did not answer");
            frames.free(&ctx.pin(), run).unwrap();
        }
        // The other may still be waiting for this one.
        done.fetch_add(1, Ordering::Relaxed);
        while done.load(Ordering::Relaxed) < 2 {
            frames.safe_point(&ctx.pin());
            std::thread::yield_now();
        }
    });
}

#[test]
fn classes_reach_to_different_depths() {
    let frames = testing::frames(64 * 512, 2);
    let min = frames.watermarks(Node::FIRST).min;
    let p = pin(0);
    let user = all(frames, &p, Req::default());
    assert_eq!(frames.pressure(Node::FIRST), Pressure::Min);
    assert!(frames.is_exhausted());
    assert_eq!(user.len() as u64, 64 * 512 - min);
    assert_eq!(frames.alloc(&p, Req::order(0)), Err(AllocError::Short { node: Node::FIRST, need: 1 }));
    let table = Req { class: Class::Unmovable, ctx: Ctx::Atomic, ..Req::default() };
    let tables = all(frames, &p, table);
    assert_eq!(tables.len() as u64, min - min / 2);
    let kernel = all(frames, &p, Req { ctx: Ctx::Reserve, ..table });
    assert_eq!(kernel.len() as u64, min / 2);
    give(frames, &pin(1), user);
    assert!(!frames.is_exhausted());
    give(frames, &pin(1), tables);
    give(frames, &pin(1), kernel);
    assert_eq!(frames.pressure(Node::FIRST), Pressure::None);
}

#[test]
fn unmovable_frames_stay_together() {
    let frames = testing::frames(64 * 512, 1);
    let p = pin(0);
    let unmovable = Req { class: Class::Unmovable, ..Req::default() };
    let mut movable = Vec::new();
    let mut fixed = Vec::new();
    for _ in 0..2000 {
        movable.extend((0..8).map(|_| frames.alloc(&p, Req::default()).unwrap()));
        fixed.push(frames.alloc(&p, unmovable).unwrap());
    }
    let blocks = |runs: &[Run]| runs.iter().map(|r| r.first().number() / 512).collect::<HashSet<_>>();
    assert_eq!(blocks(&fixed).len(), 4, "2000 frames fill less than four blocks");
    assert!(blocks(&fixed).is_disjoint(&blocks(&movable)));
    assert_eq!(frames.cpu_stats(cpu(0)).mixed, 0);
    // When the movable ones go, all but those four blocks are whole.
    give(frames, &p, movable);
    frames.drain(&p);
    assert_eq!(frames.free_blocks(Node::FIRST), 60);
    give(frames, &p, fixed);
}

#[test]
fn nodes_are_exhausted_in_order_of_distance() {
    // From node 0: itself, then 2 (15), 1 (20), 3 (30).
    let far = [[10, 20, 15, 30], [20, 10, 30, 15], [15, 30, 10, 20], [30, 15, 20, 10]];
    let topology = nodes(&[40; 4], 4, |a, b| far[a as usize][b as usize]);
    let frames = testing::with_topology(&[0..4 * 40 * 512], topology, 4);
    let p = pin(0);
    let mut seen = Vec::new();
    let mut runs = Vec::new();
    while let Ok(run) = frames.alloc(&p, Req::default()) {
        seen.push(topology.node_of(run.first()).index());
        runs.push(run);
    }
    let mut order = seen.clone();
    order.dedup();
    assert_eq!(order, [0, 2, 1, 3], "strata are exhausted one after the other");
    let local = seen.iter().filter(|n| **n == 0).count() as u64;
    assert_eq!(local, 40 * 512 - frames.watermarks(node(0)).min, "all that node 0 may give is local");
    give(frames, &p, runs);
}

#[test]
fn places_are_kept_to() {
    let topology = nodes(&[40; 3], 3, local_or(20));
    let frames = testing::with_topology(&[0..3 * 40 * 512], topology, 3);
    let p = pin(0);
    let of = |run: &Run| topology.node_of(run.first()).index();
    let ask = |place| frames.alloc(&p, Req { place, ..Req::default() }).unwrap();
    let mut runs: Vec<Run> = Vec::new();
    for _ in 0..500 {
        runs.push(ask(Place::Local));
        assert_eq!(of(runs.last().unwrap()), 0);
        runs.push(ask(Place::Prefer(node(2))));
        assert_eq!(of(runs.last().unwrap()), 2);
        runs.push(ask(Place::Bind(NodeSet::only(node(1)), None)));
        assert_eq!(of(runs.last().unwrap()), 1);
    }
    let turns: Vec<_> = (0..300).map(|_| ask(Place::Interleave(NodeSet::first(3)))).collect();
    for n in 0..3 {
        assert_eq!(turns.iter().filter(|run| of(run) == n).count(), 100);
    }
    // Bound to a node, the others' memory doesn't help; preferring it, it does.
    let bound = all(frames, &p, Req { place: Place::Bind(NodeSet::only(node(1)), None), ..Req::default() });
    assert!(bound.iter().all(|run| of(run) == 1) && bound.len() > 10_000);
    runs.push(ask(Place::PreferAny(NodeSet::only(node(1)), None)));
    assert_ne!(of(runs.last().unwrap()), 1);
    assert_eq!(
        frames.alloc(&p, Req { place: Place::Prefer(node(7)), ..Req::default() }),
        Err(AllocError::Never)
    );
    give(frames, &p, runs.into_iter().chain(turns).chain(bound));
}

#[test]
fn nodes_without_cpus_and_cpus_without_memory_are_served() {
    let mut builder = Builder::new(2);
    for (i, at) in [0, 1u64].into_iter().enumerate() {
        let length = 64 * 512 * PAGE_SIZE;
        builder
            .memory(MemoryAffinity { base: at * length, length, domain: i as u32, enabled: true })
            .unwrap();
    }
    // Node 0 has CPU 0; node 1 has memory only; node 2 has CPU 1 only.
    builder.cpu(CpuAffinity { cpu: cpu(0), domain: 0, enabled: true });
    builder.cpu(CpuAffinity { cpu: cpu(1), domain: 2, enabled: true });
    let topology = Box::leak(Box::new(builder.build().unwrap()));
    let frames = testing::with_topology(&[0..2 * 64 * 512], topology, 2);
    let req = Req { ctx: Ctx::Reserve, ..Req::default() };
    let (a, b) = (all(frames, &pin(1), req), all(frames, &pin(0), req));
    assert_eq!(a.len() + b.len(), 2 * 64 * 512);
    give(frames, &pin(0), a);
    give(frames, &pin(1), b);
    assert!(frames.alloc(&pin(1), Req { order: 11, ..req }).map(|run| give(frames, &pin(0), [run])).is_ok());
}

#[test]
fn zeroed_frames_are_zero() {
    const BLOCKS: usize = 12;
    let memory = vec![0xa5u8; (BLOCKS + 1) * 512 * 4096].leak();
    let base = memory.as_mut_ptr().expose_provenance();
    // SAFETY: frame f is at page f - 512 of the memory, rounded up to a page.
    let dm = unsafe { DirectMap::new(base.next_multiple_of(4096).wrapping_sub(512 * 4096)) };
    let topology = Box::leak(Box::new(Topology::one_node(2)));
    let frames = testing::with_clear(&[512..512 + BLOCKS as u64 * 512], topology, 2, Clear::new(dm));
    let bytes = |run: &Run| {
        // SAFETY: the run is owned by this thread.
        unsafe { std::slice::from_raw_parts_mut(dm.ptr(run.first().base()), 4096 << run.order()) }
    };
    let zeroed = Req { fill: Fill::Zeroed, ..Req::default() };
    let mut hits = 0;
    for round in 0..30 {
        let c = round % 2;
        // What is wanted is zeroed ahead, by an idle CPU, as often as it is asked.
        frames.tick(&pin(c));
        while frames.idle(&pin(c), 100) > 0 {}
        let mut runs: Vec<_> = (0..400).map(|_| frames.alloc(&pin(c), zeroed).unwrap()).collect();
        runs.extend(frames.alloc(&pin(c), Req { order: 9, ..zeroed }));
        runs.extend(frames.alloc(&pin(c), Req { order: 3, ..zeroed }));
        runs.extend(
            (0..50).map(|_| frames.alloc(&pin(c), Req { class: Class::Unmovable, ..zeroed }).unwrap()),
        );
        for run in &runs {
            assert!(bytes(run).iter().all(|b| *b == 0), "{run:?} in round {round}");
            bytes(run).fill(0xee);
        }
        // Freed dirty, by either CPU, and taken again as they are.
        give(frames, &pin(round / 2 % 2), runs);
        let dirty: Vec<_> = (0..300).map(|_| frames.alloc(&pin(c), Req::default()).unwrap()).collect();
        dirty.iter().for_each(|run| bytes(run).fill(0x11));
        give(frames, &pin(c), dirty);
        hits = frames.cpu_stats(cpu(0)).zeroed_hits + frames.cpu_stats(cpu(1)).zeroed_hits;
    }
    assert!(hits > 5000, "{hits} of 12000 were zeroed ahead");
    let ahead: u64 = (0..2).map(|c| frames.cpu_stats(cpu(c)).zeroed_ahead).sum();
    assert!(ahead >= hits / 2);
}

/// A CPU that has looked may take some without looking again; what it was allowed while there was plenty must not let it
/// reach into the last frames when others have used the rest.
#[test]
fn no_cpu_reaches_below_the_mark_by_what_it_saw_before() {
    const CPUS: usize = 8;
    let frames = testing::frames(CPUS * 64 * 512, CPUS);
    let min = frames.watermarks(Node::FIRST).min;
    // Every CPU looks while all is free.
    let mut runs: Vec<_> = (0..CPUS).map(|c| frames.alloc(&pin(c), Req::default()).unwrap()).collect();
    // One uses up what it may.
    runs.extend(all(frames, &pin(0), Req::default()));
    // The others go on with what they saw.
    for c in 1..CPUS {
        runs.extend(all(frames, &pin(c), Req::default()));
    }
    let s = frames.stats();
    assert!(s.free >= min, "{} free, the mark is {min}: {s:?}", s.free);
    give(frames, &pin(0), runs);
}

/// What a CPU gives back it may take again, but no more than it was granted: here one takes, another gives back, and in the
/// end both take what they can.
#[test]
fn no_cpu_reaches_below_the_mark_by_what_it_gave_back() {
    const CPUS: usize = 8;
    let frames = testing::frames(CPUS * 64 * 512, CPUS);
    let min = frames.watermarks(Node::FIRST).min;
    // CPU 1 has a grant that stays good, as there is always more left than half of what there was when it looked.
    let mut runs = vec![frames.alloc(&pin(1), Req::default()).unwrap()];
    let most = frames.stats().free as usize * 2 / 5;
    let take = |n: usize| (0..n).map(|_| frames.alloc(&pin(0), Req::default()).unwrap()).collect::<Vec<_>>();
    for _ in 0..3 {
        give(frames, &pin(1), take(most));
    }
    runs.extend(take(most));
    runs.extend(all(frames, &pin(1), Req::default()));
    let s = frames.stats();
    assert!(s.free >= min, "{} free, the mark is {min}: {s:?}", s.free);
    give(frames, &pin(0), runs);
}

/// Who takes more than it was granted looks first; what it takes then is not there for the others' grants.
#[test]
fn no_cpu_reaches_below_the_mark_by_what_a_large_run_took() {
    let frames = testing::with_ranges(&[4096..4096 + 12 * 512], 2);
    let Watermarks { min, high } = frames.watermarks(Node::FIRST);
    // A giant run comes first, so that it can come again.
    let giant = frames.alloc(&pin(0), Req::order(12)).unwrap();
    let single = |cpu: usize| frames.alloc(&pin(cpu), Req::default()).unwrap();
    let mut runs: Vec<_> = (0..1344).map(|_| single(0)).chain([single(1)]).collect();
    give(frames, &pin(0), [giant]);
    // CPU 1 looks while it is free, and is granted a part of it; what it takes is of a block that it has.
    runs.extend((0..64).map(|_| single(1)));
    runs.push(frames.alloc(&pin(0), Req::order(12)).unwrap());
    runs.extend(all(frames, &pin(1), Req::default()));
    let s = frames.stats();
    assert!(s.free >= min, "{} free, the mark is {min}: {s:?}", s.free);
    let seen = frames.pressure(Node::FIRST) != Pressure::None;
    assert!(s.free > high || seen, "{} free, and nobody has seen that it is below {high}", s.free);
    give(frames, &pin(0), runs);
}

/// A CPU that takes and gives back in turn adds up what all have taken once, not every so many frames.
#[test]
fn a_steady_cpu_looks_once() {
    const CPUS: usize = 8;
    let frames = testing::frames(CPUS * 64 * 512, CPUS);
    for (order, at_once) in [(0, 1500), (2, 400), (9, 12)] {
        for _ in 0..200 {
            let runs: Vec<_> =
                (0..at_once).map(|_| frames.alloc(&pin(3), Req::order(order)).unwrap()).collect();
            give(frames, &pin(3), runs);
        }
    }
    let s = frames.cpu_stats(cpu(3));
    assert!(s.refills > 1000 && s.flushes > 1000, "{s:?}");
    assert!(s.looks <= 4, "{} looks", s.looks);
}

/// What is known of a machine that nothing was interrupted on is known again, rows that end in the middle of a block and
/// blocks that moved among nodes and CPUs too; only what was kept is lost.
#[test]
fn what_recovering_finds_is_what_there_was() {
    let topology = nodes(&[24, 24], 4, local_or(20));
    let ranges = [100..7001, 7400..12_000, 12_288..24_000];
    let frames = testing::with_topology(&ranges, topology, 4);
    let mut runs = Vec::new();
    for (c, orders) in [vec![0; 3000], vec![9, 10, 3, 9], vec![6; 20], vec![9; 30]].into_iter().enumerate() {
        let got = orders
            .into_iter()
            .filter_map(|order| frames.alloc(&pin(c), Req { ctx: Ctx::Reserve, ..Req::order(order) }).ok());
        runs.extend(got);
    }
    let kept = frames.stats().cached;
    let before = frames.stats();
    let unused = |c: usize| frames.cpu_stats(cpu(c)).unused;
    let rows: u64 = (0..4).map(unused).sum();
    // SAFETY: nobody is in a call.
    let count = unsafe { frames.recover() };
    let after = frames.stats();
    assert_eq!((after.total, after.free, after.cached), (before.total, before.free, 0));
    assert_eq!((after.owned, count.wrong), (before.owned + kept, 0));
    assert_eq!((0..4).map(unused).sum::<u64>(), rows);
    give(frames, &pin(0), runs);
    frames.drain(&pin(0));
    let rest = all(frames, &pin(3), Req { ctx: Ctx::Reserve, ..Req::default() });
    assert_eq!(rest.len() as u64 + kept, before.total, "all but what was kept can be had from anywhere");
    give(frames, &pin(3), rest);
}

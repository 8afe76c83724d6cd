//! The allocator against a set of frames: whatever is asked of it, by whichever CPU, every frame is in one place.
#![cfg(not(loom))]
#![allow(clippy::single_range_in_vec_init, reason = "a list of ranges that has one")]

mod calls;

use std::ops::Range;

use addr::PAGE_SIZE;
use frames::{
    AlgoKind, Class, Ctx, Fill, FreeError, NodeSet, Place, Req, Run, Topology, testing,
    topology::{Builder, CpuAffinity, MemoryAffinity},
};
use percpu::{CpuId, Pinned};
use proptest::prelude::*;

use crate::calls::{CPUS, Oracle, Step, clear, pin, run};

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
    let fill = prop_oneof![3 => Just(Fill::Any), 1 => Just(Fill::Zeroed)];
    (order, class, ctx, fill, place, lane).prop_map(|(order, class, ctx, fill, place, lane)| Req {
        order,
        class,
        ctx,
        fill,
        place,
        lane,
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
        2 => (cpu.clone(), 1..1024u32).prop_map(|(cpu, budget)| Step::Idle { cpu, budget }),
        1 => cpu.clone().prop_map(|cpu| Step::Park { cpu }),
        2 => (cpu.clone(), kind).prop_map(|(cpu, kind)| Step::Switch { cpu, kind }),
        1 => (cpu.clone(), blocks.clone()).prop_map(|(cpu, (block, blocks))| Step::Offline { cpu, block, blocks }),
        1 => (cpu.clone(), blocks.clone()).prop_map(|(cpu, (block, blocks))| Step::Cancel { cpu, block, blocks }),
        1 => (cpu, blocks).prop_map(|(cpu, (block, blocks))| Step::Online { cpu, block, blocks }),
    ]
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

/// Make all calls of a machine with these frames, which are imaginary.
fn play(ranges: &[Range<u64>], topology: Topology, steps: Vec<Step>) {
    let frames = testing::with_clear(ranges, Box::leak(Box::new(topology)), CPUS, clear());
    run(frames, 512, steps, |_, kind| testing::lane_memory(kind));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, max_shrink_iters: 20_000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn every_frame_is_in_one_place(steps in prop::collection::vec(step(), 1..120)) {
        play(&[512..25 * 512], Topology::one_node(CPUS), steps);
    }

    #[test]
    fn every_frame_is_in_one_place_on_two_nodes(steps in prop::collection::vec(step(), 1..120)) {
        let ranges = [0x200..0x1900, 0x1a80..0x3001, 0x3100..0x3fff];
        play(&ranges, two_nodes(0, 0x1300, 0x4000), steps);
    }

    /// So small a machine that CPUs can't keep blocks.
    #[test]
    fn every_frame_is_in_one_place_where_there_are_few(steps in prop::collection::vec(step(), 1..80), n in 1..3000u64) {
        play(&[512..512 + n], Topology::one_node(CPUS), steps);
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

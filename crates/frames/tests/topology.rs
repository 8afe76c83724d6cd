//! What firmware may say of nodes, and what is made of it; random tables against an oracle that looks at one frame, one
//! CPU, one pair of nodes at a time.
#![cfg(not(loom))]

use addr::Frame;
use frames::{
    FrameRange, MAX_NODES, Node, NodeSet, Topology,
    topology::{Builder, CpuAffinity, LOCAL, MAX_RANGES, MemoryAffinity, REMOTE, TopologyError, UNREACHABLE},
};
use percpu::{CpuId, CpuSet};
use proptest::prelude::*;

const PAGE: u64 = 4096;

fn node(n: usize) -> Node {
    Node::new(n).expect("a node")
}
fn cpu(n: usize) -> CpuId {
    CpuId::new(n).expect("a CPU")
}
fn frame(n: u64) -> Frame {
    Frame::new(n).expect("a frame")
}
/// Pages `start..end` of `domain`.
fn memory(start: u64, end: u64, domain: u32) -> MemoryAffinity {
    MemoryAffinity { base: start * PAGE, length: (end - start) * PAGE, domain, enabled: true }
}
fn at(n: usize, domain: u32) -> CpuAffinity {
    CpuAffinity { cpu: cpu(n), domain, enabled: true }
}
/// What these records make of a machine with `cpus` CPUs.
fn made(cpus: usize, ranges: &[MemoryAffinity], places: &[CpuAffinity]) -> Topology {
    let mut builder = Builder::new(cpus);
    ranges.iter().for_each(|r| builder.memory(*r).expect("few ranges"));
    places.iter().for_each(|p| builder.cpu(*p));
    builder.build().expect("few domains")
}
fn numbers(nodes: impl Iterator<Item = Node>) -> Vec<usize> {
    nodes.map(Node::index).collect()
}
/// The nodes of frames `0..n`, one after the other.
fn owners(topology: &Topology, n: u64) -> Vec<usize> {
    numbers((0..n).map(|i| topology.node_of(frame(i))))
}

#[test]
fn without_a_table_one_node_has_everything() {
    for topology in [Topology::one_node(3), made(3, &[], &[])] {
        assert_eq!((topology.nodes(), topology.all()), (1, NodeSet::only(node(0))));
        assert_eq!(topology.cpus_of(node(0)), CpuSet::first(3));
        assert_eq!(topology.node_of(frame((1 << 40) - 1)), node(0));
        assert_eq!(numbers(topology.by_distance(node(0))), [0]);
        let all = FrameRange { start: frame(1), end: frame(9) };
        assert_eq!(topology.cut(all).collect::<Vec<_>>(), [(node(0), all)]);
    }
}

#[test]
fn sparse_domains_are_numbered_in_ascending_order() {
    let topology = made(2, &[memory(0, 4, u32::MAX), memory(4, 8, 17)], &[at(1, 0x8000_0000)]);
    assert_eq!(topology.nodes(), 3);
    assert_eq!([0, 1, 2].map(|n| topology.domain(node(n))), [17, 0x8000_0000, u32::MAX]);
    assert_eq!(owners(&topology, 8), [2, 2, 2, 2, 0, 0, 0, 0]);
    assert_eq!(topology.node_of_cpu(cpu(1)), node(1));
}

#[test]
fn disabled_and_empty_records_are_skipped_with_their_domains() {
    let off = |record| MemoryAffinity { enabled: false, ..record };
    let topology = made(
        2,
        &[off(memory(0, 8, 1)), memory(3, 3, 2), memory(0, 2, 5)],
        &[CpuAffinity { enabled: false, ..at(0, 3) }, at(7, 4)],
    );
    assert_eq!((topology.nodes(), topology.domain(node(0))), (1, 5));
    assert_eq!(owners(&topology, 8), [0; 8]);
}

#[test]
fn memory_without_cpus_and_cpus_without_memory_are_nodes() {
    // 0 has both, 1 memory only, 2 a CPU only.
    let topology = made(3, &[memory(0, 4, 0), memory(4, 8, 1)], &[at(0, 0), at(2, 2)]);
    assert_eq!(topology.nodes(), 3);
    assert!(topology.cpus_of(node(1)).is_empty());
    assert_eq!(topology.cpus_of(node(2)), CpuSet::from_iter([cpu(2)]));
    // No record names it.
    assert_eq!(topology.cpus_of(node(0)), CpuSet::from_iter([cpu(0), cpu(1)]));
    assert!(!owners(&topology, 16).contains(&2));
}

#[test]
fn of_overlapping_records_the_first_wins() {
    let topology = made(1, &[memory(2, 6, 1), memory(0, 9, 0), memory(4, 12, 2)], &[at(0, 2), at(0, 1)]);
    assert_eq!(owners(&topology, 14), [0, 0, 1, 1, 1, 1, 0, 0, 0, 2, 2, 2, 0, 0]);
    assert_eq!(topology.node_of_cpu(cpu(0)), node(2));
}

#[test]
fn a_frame_belongs_to_the_range_that_has_its_first_byte() {
    let bytes = |base, length, domain| MemoryAffinity { base, length, domain, enabled: true };
    let half = PAGE / 2;
    let topology = made(1, &[bytes(0, PAGE + half, 0), bytes(PAGE + half, PAGE, 1)], &[]);
    assert_eq!(owners(&topology, 4), [0, 0, 1, 0]);
    // A range that ends beyond all addresses.
    let topology = made(1, &[bytes(0, PAGE, 0), bytes(PAGE, u64::MAX, 1)], &[]);
    assert_eq!(owners(&topology, 3), [0, 1, 1]);
    assert_eq!(topology.node_of(frame((1 << 40) - 1)), node(1));
}

#[test]
fn ranges_are_cut_at_the_borders_of_nodes() {
    let topology = made(1, &[memory(0, 4, 0), memory(4, 8, 1), memory(8, 12, 1), memory(20, 24, 2)], &[]);
    let cut = |start, end| {
        let range = FrameRange { start: frame(start), end: frame(end) };
        let part = |(n, r): (Node, FrameRange)| (n.index(), r.start.number(), r.end.number());
        topology.cut(range).map(part).collect::<Vec<_>>()
    };
    assert_eq!(cut(2, 22), [(0, 2, 4), (1, 4, 12), (0, 12, 20), (2, 20, 22)]);
    assert_eq!(cut(5, 6), [(1, 5, 6)]);
    assert_eq!(cut(6, 6), []);
    assert_eq!(cut(30, 90), [(0, 30, 90)]);
}

#[test]
fn distances_are_the_matrixs_where_it_has_them() {
    let mut topology = made(1, &[memory(0, 1, 0), memory(1, 2, 2), memory(2, 3, 5), memory(3, 4, 9)], &[]);
    assert_eq!((topology.distance(node(0), node(0)), topology.distance(node(3), node(0))), (LOCAL, REMOTE));
    assert_eq!(numbers(topology.by_distance(node(2))), [2, 0, 1, 3]);
    // Domains 0..6, of which 0, 2 and 5 are nodes; not symmetric; 9 lies beyond.
    let entry = |from: u32, to: u32| match (from, to) {
        _ if from == to => LOCAL,
        (5, 0) => 40,
        (5, 2) => 15,
        (2, 5) => UNREACHABLE,
        _ => 30,
    };
    assert_eq!(topology.set_distances(6, entry), Ok(()));
    assert_eq!(topology.distance(node(2), node(0)), 40);
    assert_eq!(topology.distance(node(0), node(2)), 30);
    assert_eq!(topology.distance(node(2), node(3)), REMOTE);
    assert_eq!(numbers(topology.by_distance(node(2))), [2, 1, 3, 0]);
    assert_eq!(numbers(topology.by_distance(node(0))), [0, 3, 1, 2]);
    // What can't be reached isn't listed.
    assert_eq!(numbers(topology.by_distance(node(1))), [1, 3, 0]);
}

#[test]
fn an_impossible_matrix_changes_nothing() {
    let mut topology = made(1, &[memory(0, 1, 0), memory(1, 2, 1)], &[]);
    let good = |from, to| if from == to { LOCAL } else { 21 };
    assert_eq!(topology.set_distances(2, good), Ok(()));
    for (from, to, bad) in [(0, 0, 11), (1, 1, 0), (0, 1, LOCAL), (1, 0, 9)] {
        let entry = |f, t| if (f, t) == (from, to) { bad } else { good(f, t) + u8::from(f != t) };
        assert_eq!(topology.set_distances(2, entry), Err(TopologyError::BadDistance));
        assert_eq!(topology.distance(node(0), node(1)), 21);
    }
    // Not about any node but the first: nothing to say, nothing wrong.
    assert_eq!(topology.set_distances(1, good), Ok(()));
    assert_eq!(topology.set_distances(0, |_, _| 0), Ok(()));
}

#[test]
fn more_than_there_is_room_for_is_refused() {
    let mut builder = Builder::new(1);
    for i in 0..MAX_RANGES as u64 {
        assert_eq!(builder.memory(memory(2 * i, 2 * i + 1, i as u32 % 64)), Ok(()));
    }
    assert_eq!(builder.memory(memory(9999, 10000, 0)), Err(TopologyError::TooManyRanges));
    // What says nothing needs no room.
    assert_eq!(builder.memory(MemoryAffinity { enabled: false, ..memory(0, 1, 0) }), Ok(()));
    let topology = builder.build().expect("as many domains as there may be");
    assert_eq!(topology.nodes(), MAX_NODES);
    assert_eq!(topology.node_of(frame(2 * 127)), node(63));
    builder.cpu(at(0, 64));
    assert_eq!(builder.build().err(), Some(TopologyError::TooManyDomains));
}

#[test]
fn sets_of_nodes_hold_what_was_put_in() {
    let mut set = NodeSet::from_iter([node(63), node(0), node(5)]);
    assert_eq!((set.len(), set.bits(), numbers(set.iter())), (3, 1 << 63 | 1 << 5 | 1, vec![0, 5, 63]));
    set.remove(node(0));
    assert!(!set.contains(node(0)) && set.contains(node(63)));
    assert_eq!(set.lowest(), Some(node(5)));
    assert_eq!(set.intersection(NodeSet::first(6)), NodeSet::only(node(5)));
    assert_eq!(set.union(NodeSet::first(64)), NodeSet::from_bits(u64::MAX));
    assert!(NodeSet::EMPTY.is_empty() && NodeSet::EMPTY.lowest().is_none() && NodeSet::first(0).is_empty());
    assert_eq!(Node::new(MAX_NODES), None);
}

/// Few domains, far apart.
fn a_domain() -> impl Strategy<Value = u32> {
    prop::sample::select(&[0, 1, 2, 3, 40, 700, u32::MAX][..])
}

proptest! {
    #[test]
    fn every_frame_cpu_and_pair_is_as_the_records_say(
        ranges in prop::collection::vec((0..40u64, 0..12u64, a_domain(), prop::bool::weighted(0.8)), 0..12),
        places in prop::collection::vec((0..6usize, a_domain(), prop::bool::weighted(0.8)), 0..8),
        matrix in prop::option::of((0..5u64, prop::collection::vec(11..255u8, 25))),
    ) {
        const CPUS: usize = 5;
        let mut builder = Builder::new(CPUS);
        for &(start, pages, domain, enabled) in &ranges {
            let record = MemoryAffinity { enabled, ..memory(start, start + pages, domain) };
            prop_assert_eq!(builder.memory(record), Ok(()));
        }
        places.iter().for_each(|&(n, domain, enabled)| builder.cpu(CpuAffinity { enabled, ..at(n, domain) }));
        let mut topology = builder.build().expect("few domains");

        let said: Vec<_> = ranges.iter().filter(|r| r.1 > 0 && r.3).collect();
        let placed: Vec<_> = places.iter().filter(|p| p.0 < CPUS && p.2).collect();
        let mut domains: Vec<u32> =
            said.iter().map(|r| r.2).chain(placed.iter().scan([false; CPUS], |seen, p| {
                // Only the first record of a CPU names a domain.
                Some((!std::mem::replace(&mut seen[p.0], true)).then_some(p.1))
            }).flatten()).collect();
        domains.sort_unstable();
        domains.dedup();
        prop_assert_eq!(topology.nodes(), domains.len().max(1));
        let node_of = |domain: u32| node(domains.iter().position(|d| *d == domain).expect("it is named"));

        for i in 0..60 {
            let first = said.iter().find(|r| (r.0..r.0 + r.1).contains(&i));
            prop_assert_eq!(topology.node_of(frame(i)), first.map_or(node(0), |r| node_of(r.2)), "frame {}", i);
        }
        for n in 0..CPUS {
            let first = placed.iter().find(|p| p.0 == n).map_or(node(0), |p| node_of(p.1));
            prop_assert_eq!(topology.node_of_cpu(cpu(n)), first);
            for other in topology.all() {
                prop_assert_eq!(topology.cpus_of(other).contains(cpu(n)), other == first);
            }
        }
        // The parts follow each other without gaps, change node each time, and say of each frame what it is.
        let whole = FrameRange { start: frame(3), end: frame(50) };
        let mut next = whole.start;
        let mut last = None;
        for (owner, part) in topology.cut(whole) {
            prop_assert!(part.start == next && part.start < part.end && last != Some(owner));
            for i in part.start.number()..part.end.number() {
                prop_assert_eq!(topology.node_of(frame(i)), owner);
            }
            (next, last) = (part.end, Some(owner));
        }
        prop_assert_eq!(next, whole.end);

        let entry = |values: &[u8], a: u32, b: u32| if a == b { LOCAL } else { values[(5 * a + b) as usize] };
        if let Some((n, values)) = &matrix {
            prop_assert_eq!(topology.set_distances(*n, |a, b| entry(values, a, b)), Ok(()));
        }
        for from in topology.all() {
            for to in topology.all() {
                let (a, b) = (topology.domain(from), topology.domain(to));
                let wanted = match &matrix {
                    Some((n, values)) if u64::from(a.max(b)) < *n => entry(values, a, b),
                    _ if from == to => LOCAL,
                    _ => REMOTE,
                };
                prop_assert_eq!(topology.distance(from, to), wanted);
            }
            let mut wanted: Vec<_> = topology.all().iter().collect();
            wanted.sort_by_key(|to| topology.distance(from, *to));
            prop_assert_eq!(topology.by_distance(from).collect::<Vec<_>>(), wanted);
        }
    }
}

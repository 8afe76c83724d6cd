//! Random updates against an ordered map, with the tree checked after each; and every way in which memory can fail.
#![cfg(not(any(loom, shuttle)))]

mod random;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use bonsai::{BonsaiMap, Entry, Error, Fit, Heap, Point, Region, RegionTree, Tree, Writer};
use percpu::{CpuId, Pinned};
use proptest::prelude::*;
use random::Random;
use rcu::kernel::Domain;

/// One CPU, of the test's own thread.
struct Cpu {
    domain: Arc<Domain>,
    pin: Pinned<'static>,
}

impl Cpu {
    fn new() -> Self {
        let domain = Arc::new(Domain::new(1));
        // SAFETY: the test's thread is the only one of its domain.
        let mut pin = unsafe { Pinned::assume(CpuId::new(0).unwrap()) };
        domain.idle_exit(&mut pin);
        Self { domain, pin }
    }
    /// Let everything end that was retired.
    fn settle(&mut self) {
        while self.domain.pending(&self.pin) > 0 {
            self.domain.tick(&mut self.pin);
        }
    }
}

impl Drop for Cpu {
    fn drop(&mut self) {
        self.settle();
    }
}

/// A value that is counted.
#[derive(Debug)]
struct Value(u32, Arc<AtomicUsize>);

impl Value {
    fn new(n: u32, alive: &Arc<AtomicUsize>) -> Box<Entry<Value>> {
        alive.fetch_add(1, Relaxed);
        Entry::new(Value(n, alive.clone()))
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Relaxed);
    }
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Insert(u16),
    Replace(u16),
    Remove(u16),
    /// So many more nodes may be had, for the next updates.
    Limit(u8),
    Free,
    Settle,
}

fn ops(keys: u16) -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        6 => (0..keys).prop_map(Op::Insert),
        1 => (0..keys).prop_map(Op::Replace),
        5 => (0..keys).prop_map(Op::Remove),
        1 => (0..6u8).prop_map(Op::Limit),
        1 => Just(Op::Free),
        1 => Just(Op::Settle),
    ];
    proptest::collection::vec(op, 1..400)
}

type Map = BonsaiMap<u16, Value, Arc<Domain>>;
type MapWriter<'a> = Writer<'a, 'a, Point<u16>, Value, Arc<Domain>, Heap>;

/// What readers find, against the oracle, around each of `keys`.
fn compare(map: &Map, cpu: &Cpu, oracle: &BTreeMap<u16, u32>, keys: impl Iterator<Item = u16>) {
    let guard = cpu.domain.read(&cpu.pin);
    let reader = map.read(&guard);
    let plain =
        |found: Option<(bonsai::Point<u16>, &Entry<Value>)>| found.map(|(key, value)| (key.0, value.0));
    let own = |found: Option<(&u16, &u32)>| found.map(|(key, value)| (*key, *value));
    for key in keys {
        assert_eq!(reader.get(key).map(|value| value.0), oracle.get(&key).copied());
        assert_eq!(plain(reader.floor(key)), own(oracle.range(..=key).next_back()));
        assert_eq!(plain(reader.lower(key)), own(oracle.range(..key).next_back()));
        assert_eq!(plain(reader.ceiling(key)), own(oracle.range(key..).next()));
        assert_eq!(plain(reader.higher(key)), own(oracle.range(key.saturating_add(1)..).next()));
    }
    let all: Vec<_> = reader.iter().map(|(key, value)| (key.0, value.0)).collect();
    assert_eq!(all, oracle.iter().map(|(key, value)| (*key, *value)).collect::<Vec<_>>());
}

/// From how many nodes on there are leaves, and how many keys or pages there are: none ever, nothing but leaves and what divides
/// them, and both.
const SORTS: [(usize, u16); 3] = [(usize::MAX, 60), (0, 60), (9, 600)];

fn sorts<T: std::fmt::Debug + 'static>(
    of: impl Fn(u16) -> BoxedStrategy<T>,
) -> BoxedStrategy<(usize, u16, T)> {
    let all = SORTS.map(|(from, keys)| of(keys).prop_map(move |calls| (from, keys, calls)).boxed());
    proptest::strategy::Union::new(all).boxed()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_map_is_an_ordered_map((from, keys, ops) in sorts(|keys| ops(keys).boxed()), full in any::<bool>()) {
        let mut cpu = Cpu::new();
        let alive = Arc::new(AtomicUsize::new(0));
        let map: Map = Tree::new(cpu.domain.clone()).leaves_from(from);
        let mut oracle = BTreeMap::new();
        for key in (0..if full { keys } else { 0 }).step_by(2) {
            map.write(&cpu.pin).insert(key, Value::new(0, &alive)).unwrap();
            oracle.insert(key, 0);
        }
        for (n, op) in ops.into_iter().enumerate() {
            let n = n as u32;
            {
                let mut writer = map.write(&cpu.pin);
                match op {
                    Op::Insert(key) => match writer.insert(key, Value::new(n, &alive)) {
                        Ok(()) => prop_assert_eq!(oracle.insert(key, n), None),
                        Err(refused) if refused.error == Error::Occupied => prop_assert!(oracle.contains_key(&key)),
                        Err(refused) => prop_assert_eq!(refused.error, Error::Memory),
                    },
                    Op::Replace(key) => match writer.replace(key, Value::new(n, &alive)) {
                        Ok(old) => prop_assert_eq!(oracle.insert(key, n), Some(old.0)),
                        Err(refused) if refused.error == Error::Absent => prop_assert!(!oracle.contains_key(&key)),
                        Err(refused) => prop_assert_eq!(refused.error, Error::Memory),
                    },
                    Op::Remove(key) => match writer.remove(key) {
                        Some(old) => {
                            prop_assert!(old.is_dead());
                            prop_assert_eq!(oracle.remove(&key), Some(old.0));
                        }
                        None => prop_assert_eq!(oracle.remove(&key), None),
                    },
                    Op::Limit(more) => map.pool().set_limit(map.pool().nodes() + usize::from(more)),
                    Op::Free => map.pool().set_limit(usize::MAX),
                    Op::Settle => {}
                }
                prop_assert_eq!(writer.len(), oracle.len());
                let last = writer.last().map(|(key, value)| (key.0, value.0));
                prop_assert_eq!(last, oracle.last_key_value().map(|(key, value)| (*key, *value)));
                let shape = writer.check().map_err(TestCaseError::fail)?;
                prop_assert_eq!(shape.spans as usize, oracle.len() + writer.tombstones());
                prop_assert!(from != usize::MAX || shape.leaves == 0);
            }
            let near = match op {
                Op::Insert(key) | Op::Replace(key) | Op::Remove(key) => key.saturating_sub(20)..key + 20,
                Op::Limit(_) | Op::Free | Op::Settle => 0..keys,
            };
            compare(&map, &cpu, &oracle, near);
            if matches!(op, Op::Settle) {
                cpu.settle();
                let tombstones = map.write(&cpu.pin).tombstones();
                let shape = map.write(&cpu.pin).check().map_err(TestCaseError::fail)?;
                prop_assert_eq!(map.pool().nodes(), (shape.nodes + shape.leaves) as usize);
                prop_assert_eq!(alive.load(Relaxed), oracle.len() + tombstones);
            }
        }
        let pool = map.pool().clone();
        drop(map);
        cpu.settle();
        prop_assert_eq!((pool.nodes(), pool.pages(), alive.load(Relaxed)), (0, 0, 0));
    }
}

/// Each update of a long random run is first tried with 0, 1, 2, .. nodes to be had, until it succeeds: what fails changes
/// nothing, and a removal that fails leaves a tombstone that the next removes.
#[test]
fn memory_may_fail_anywhere() {
    memory_fails(usize::MAX);
}

#[test]
fn memory_may_fail_among_leaves() {
    memory_fails(4);
}

fn memory_fails(from: usize) {
    let mut cpu = Cpu::new();
    let alive = Arc::new(AtomicUsize::new(0));
    let map: Map = Tree::new(cpu.domain.clone()).leaves_from(from);
    let mut oracle = BTreeMap::new();
    let mut random = Random(7);
    let (mut failed, mut buried, mut leaves) = (0, 0, 0);
    for n in 0..6000 {
        let key = random.below(300) as u16;
        let removes = random.below(100) < if n / 1000 % 2 == 0 { 35 } else { 65 };
        for more in 0.. {
            let before = {
                let writer = map.write(&cpu.pin);
                (writer.check().unwrap(), writer.counts())
            };
            map.pool().set_limit(map.pool().nodes() + more);
            let mut writer = map.write(&cpu.pin);
            let done = if removes {
                let was = oracle.remove(&key);
                let removed = writer.remove(key).map(|old| old.0);
                assert_eq!(removed, was);
                buried += writer.tombstones();
                // The next update takes the tombstone out. If there is no memory for it, it remains.
                writer.tombstones() == 0
            } else {
                match writer.insert(key, Value::new(n, &alive)) {
                    Ok(()) => {
                        assert_eq!(oracle.insert(key, n), None);
                        true
                    }
                    Err(refused) if refused.error == Error::Occupied => true,
                    Err(refused) => {
                        assert_eq!(refused.error, Error::Memory);
                        failed += 1;
                        assert_eq!(before, (writer.check().unwrap(), writer.counts()));
                        false
                    }
                }
            };
            writer.check().unwrap();
            drop(writer);
            compare(&map, &cpu, &oracle, [key].into_iter());
            if done {
                break;
            }
        }
        if n % 50 == 0 {
            compare(&map, &cpu, &oracle, 0..300);
            cpu.settle();
            let shape = map.write(&cpu.pin).check().unwrap();
            assert_eq!(map.pool().nodes(), (shape.nodes + shape.leaves) as usize);
            assert_eq!((shape.spans as usize, alive.load(Relaxed)), (oracle.len(), oracle.len()));
            leaves = leaves.max(shape.leaves);
        }
    }
    assert!(leaves > 9 || from == usize::MAX && leaves == 0, "{leaves} leaves");
    assert!(failed > 1000 && buried > 100, "{failed} inserts and {buried} removals failed: too few");
    println!("{failed} inserts failed, {buried} removals left tombstones");
}

/// Enough leaves that there are turns of all kinds, at the edges too, and removals of nodes beside leaves and above them, in a map that
/// grows and becomes empty again.
#[test]
fn a_large_map_stays_balanced() {
    for from in [0, 64] {
        let mut cpu = Cpu::new();
        let alive = Arc::new(AtomicUsize::new(0));
        let map: Map = Tree::new(cpu.domain.clone()).leaves_from(from);
        let (mut oracle, mut random) = (BTreeMap::new(), Random(13));
        let mut most = 0;
        for n in 0..60_000 {
            let key = random.below(1 << 15) as u16;
            let mut writer = map.write(&cpu.pin);
            let before = writer.counts();
            if n < 30_000 {
                let inserted = writer.insert(key, Value::new(n, &alive)).is_ok();
                assert_eq!(inserted, !oracle.contains_key(&key));
                oracle.entry(key).or_insert(n);
            } else {
                let at = oracle.range(key..).next().or_else(|| oracle.iter().next()).map(|(key, _)| *key);
                let Some(at) = at else { break };
                assert_eq!(writer.remove(at).map(|old| old.0), oracle.remove(&at));
            }
            let counts = writer.counts();
            if counts.single + counts.double > before.single + before.double || n % 500 == 0 {
                most = most.max(writer.check().unwrap().leaves);
            }
            drop(writer);
            if n % 5000 == 0 {
                compare(&map, &cpu, &oracle, 0..1 << 15);
            }
            cpu.domain.tick(&mut cpu.pin);
        }
        let counts = map.write(&cpu.pin).counts();
        assert!(
            counts.single > 100 && counts.double > 20 && counts.splits > 500 && most > 1500,
            "{counts:?} {most}"
        );
        assert!(map.write(&cpu.pin).is_empty() && map.write(&cpu.pin).check().is_ok());
    }
}

/// Keys that come in order fill their leaves.
#[test]
fn what_comes_in_order_fills_leaves() {
    for down in [false, true] {
        let mut cpu = Cpu::new();
        let alive = Arc::new(AtomicUsize::new(0));
        let map: Map = Tree::new(cpu.domain.clone()).leaves_from(0);
        for n in 0..15_000 {
            let key = if down { 15_000 - n } else { n };
            map.write(&cpu.pin).insert(key, Value::new(0, &alive)).unwrap();
            cpu.domain.tick(&mut cpu.pin);
        }
        let shape = map.write(&cpu.pin).check().unwrap();
        // Full but for one.
        assert_eq!((shape.leaves, shape.nodes), (1072, 1071));
    }
}

/// With reserved nodes a run of updates can't fail, and what fails is the reservation.
#[test]
fn what_is_reserved_suffices() {
    for from in [usize::MAX, 600, 0] {
        let mut cpu = Cpu::new();
        let alive = Arc::new(AtomicUsize::new(0));
        let map: Map = Tree::new(cpu.domain.clone()).leaves_from(from);
        let refused = |writer: &mut MapWriter<'_>| {
            assert_eq!(writer.reserve(1000, 0), Err(Error::Memory));
        };
        for round in 0..40u16 {
            map.pool().set_limit(usize::MAX);
            let mut writer = map.write(&cpu.pin);
            writer.reserve(30, 0).unwrap();
            map.pool().set_limit(0);
            refused(&mut writer);
            // Ascending keys turn the most, and those between them divide leaves.
            for n in 0..30 {
                let key = if round < 20 { 40 * (30 * round + n) } else { 40 * (30 * (round - 20) + n) + 20 };
                writer.insert(key, Value::new(0, &alive)).unwrap();
            }
            writer.check().unwrap();
            drop(writer);
            cpu.settle();
        }
        let shape = map.write(&cpu.pin).check().unwrap();
        assert_eq!((shape.spans, shape.leaves == 0), (1200, from == usize::MAX));
        for round in 0..40u16 {
            map.pool().set_limit(usize::MAX);
            let mut writer = map.write(&cpu.pin);
            writer.reserve(30, 10).unwrap();
            map.pool().set_limit(0);
            refused(&mut writer);
            for n in 0..30 {
                // 7 has no divisor in common with 1200, so each is removed once.
                let key = 20 * ((u32::from(round * 30 + n) * 7) % 1200) as u16;
                if n % 3 == 0 {
                    drop(writer.replace(key, Value::new(1, &alive)).unwrap());
                }
                assert!(writer.remove(key).is_some() && writer.tombstones() == 0);
            }
            writer.check().unwrap();
            drop(writer);
            cpu.settle();
        }
        assert_eq!(map.pool().nodes(), 0);
    }
}

/// All trees with two children of the sizes that a single step can bring about, by the rules alone: the rotation that the
/// rules choose makes every node of it balanced.
#[test]
fn one_turn_restores_the_balance() {
    const DELTA: u32 = 3;
    // As weights: a + 1 <= 3 (b + 1), and the other way round.
    let balanced = |a: u32, b: u32| a < DELTA * (b + 1) && b < DELTA * (a + 1);
    let mut cases = 0;
    for light in 0..130u32 {
        for heavy in 1..=3 * light + 4 {
            // One step away from balance.
            let was = balanced(light + 1, heavy) || heavy > 0 && balanced(light, heavy - 1);
            if balanced(light, heavy) || !was {
                continue;
            }
            for inner in 0..heavy {
                let outer = heavy - 1 - inner;
                if !balanced(inner, outer) {
                    continue;
                }
                if inner + 1 < 2 * (outer + 1) {
                    assert!(
                        balanced(light, inner) && balanced(light + inner + 1, outer),
                        "{light} {inner} {outer}"
                    );
                    cases += 1;
                    continue;
                }
                for near in 0..inner {
                    let far = inner - 1 - near;
                    if balanced(near, far) {
                        let (low, high) = (light + near + 1, far + outer + 1);
                        assert!(
                            balanced(light, near) && balanced(far, outer) && balanced(low, high),
                            "{light} {near} {far} {outer}"
                        );
                        cases += 1;
                    }
                }
            }
        }
    }
    assert!(cases > 10_000, "{cases} cases");
}

type Space = RegionTree<u32, Arc<Domain>>;

const PAGE: u64 = 4096;

/// The regions of an address space, as an array of pages says them.
fn regions_of(pages: &[Option<u32>]) -> Vec<(u64, u64, u32)> {
    let mut regions: Vec<(u64, u64, u32)> = Vec::new();
    for (at, page) in pages.iter().enumerate() {
        let at = at as u64;
        match (page, regions.last_mut()) {
            (Some(id), Some(last)) if last.1 == at && last.2 == *id => last.1 += 1,
            (Some(id), _) => regions.push((at, at + 1, *id)),
            (None, _) => {}
        }
    }
    regions
}

#[derive(Clone, Copy, Debug)]
enum Call {
    /// Map where there is room.
    Place(u64, bool),
    /// Map here, if it is free.
    Map(u64, u64),
    /// Unmap, of one region, what lies here: it becomes shorter, or is cut in two, or goes.
    Unmap(u64, u64),
}

fn calls(pages: u64) -> impl Strategy<Value = Vec<Call>> {
    let call = prop_oneof![
        2 => (1..12u64, any::<bool>()).prop_map(|(len, low)| Call::Place(len, low)),
        2 => (0..pages, 1..12u64).prop_map(|(at, len)| Call::Map(at, len)),
        3 => (0..pages, 1..12u64).prop_map(|(at, len)| Call::Unmap(at, len)),
    ];
    proptest::collection::vec(call, 1..150)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn regions_are_an_array_of_pages(
        (from, size, calls) in sorts(|pages| calls(pages.into()).boxed()),
        full in any::<bool>(),
    ) {
        let mut cpu = Cpu::new();
        let space: Space = Tree::new(cpu.domain.clone()).leaves_from(from);
        let size = u64::from(size);
        let mut pages = vec![None; size as usize];
        let all = Region::new(0, size * PAGE);
        for at in (0..if full { size } else { 0 }).step_by(3) {
            let id = 1000 + at as u32;
            space.write(&cpu.pin).insert(Region::new(at * PAGE, (at + 1) * PAGE), Entry::new(id)).unwrap();
            pages[at as usize] = Some(id);
        }
        for (id, call) in calls.into_iter().enumerate() {
            let id = id as u32;
            let mut writer = space.write(&cpu.pin);
            match call {
                Call::Place(len, low) => {
                    let mut places = (0..=size - len).filter(|at| pages[*at as usize..(at + len) as usize].iter().all(Option::is_none));
                    let place = if low { places.next() } else { places.next_back() };
                    let found = writer.gap(len * PAGE, all, if low { Fit::Lowest } else { Fit::Highest });
                    prop_assert_eq!(found, place.map(|at| at * PAGE));
                    if let Some(at) = place {
                        writer.insert(Region::new(at * PAGE, (at + len) * PAGE), Entry::new(id)).unwrap();
                        pages[at as usize..(at + len) as usize].fill(Some(id));
                    }
                }
                Call::Map(at, len) => {
                    let end = (at + len).min(size);
                    let range = at as usize..end as usize;
                    let done = writer.insert(Region::new(at * PAGE, end * PAGE), Entry::new(id));
                    prop_assert_eq!(done.is_ok(), pages[range.clone()].iter().all(Option::is_none));
                    if done.is_ok() {
                        pages[range].fill(Some(id));
                    }
                }
                Call::Unmap(at, len) => {
                    let end = (at + len).min(size);
                    let Some((old, entry)) = writer.first_in(Region::new(at * PAGE, end * PAGE)) else {
                        prop_assert!(pages[at as usize..end as usize].iter().all(Option::is_none));
                        continue;
                    };
                    let entry = **entry;
                    let (low, high) = (old.start().max(at * PAGE), old.end().min(end * PAGE));
                    pages[(low / PAGE) as usize..(high / PAGE) as usize].fill(None);
                    if high < old.end() {
                        writer.insert_piece(Region::new(high, old.end()), Entry::new(entry)).unwrap();
                        prop_assert!(!writer.read().covering(high).unwrap().1.is_dead());
                    }
                    if old.start() < low {
                        let new = Region::new(old.start(), low);
                        prop_assert_eq!(**writer.replace(new, Entry::new(entry)).unwrap(), entry);
                    } else {
                        prop_assert_eq!(**writer.remove(old.start()).unwrap(), entry);
                    }
                }
            }
            writer.check().map_err(TestCaseError::fail)?;
            drop(writer);
            {
                let guard = cpu.domain.read(&cpu.pin);
                let reader = space.read(&guard);
                for (at, page) in pages.iter().enumerate() {
                    let found = reader.covering(at as u64 * PAGE + 17).map(|(_, entry)| **entry);
                    prop_assert_eq!(found, *page);
                }
                // Parts of one region that was cut are neighbours in the tree, and in the array one region if they touch.
                let mut found: Vec<(u64, u64, u32)> = Vec::new();
                for (region, entry) in reader.iter() {
                    let (start, end) = (region.start() / PAGE, region.end() / PAGE);
                    match found.last_mut() {
                        Some(last) if last.1 == start && last.2 == **entry => last.1 = end,
                        _ => found.push((start, end, **entry)),
                    }
                }
                prop_assert_eq!(found, regions_of(&pages));
            }
            if id.is_multiple_of(16) {
                cpu.settle();
            }
        }
    }

    #[test]
    fn what_is_built_is_balanced(n in 0..700u64, from in 0..700u64, fills in 0..700usize) {
        let cpu = Cpu::new();
        let space: Space = Tree::new(cpu.domain.clone()).leaves_from(fills);
        let mut writer = space.write(&cpu.pin);
        let region = |at: u64| Region::new(2 * at * PAGE, (2 * at + 1) * PAGE);
        let all: Vec<_> = (0..n).map(|at| (region(at), Entry::new(at as u32))).collect();
        writer.build(all).unwrap();
        let shape = writer.check().map_err(TestCaseError::fail)?;
        prop_assert_eq!(u64::from(shape.spans), n);
        if (n as usize) < fills {
            prop_assert_eq!((shape.leaves, shape.height as u32), (0, u64::BITS - n.leading_zeros()));
        } else {
            prop_assert!(shape.nodes as u64 <= n / 7);
        }
        prop_assert!(writer.counts().stores <= 1);
        let refused = writer.build([(region(0), Entry::new(0))]);
        prop_assert_eq!(refused, if n == 0 { Ok(()) } else { Err(Error::Occupied) });
        if n > 0 {
            let rest: Vec<_> = writer.read().iter_from(2 * from * PAGE).map(|(_, entry)| **entry).collect();
            prop_assert_eq!(rest, (from as u32..n as u32).collect::<Vec<_>>());
        }
        // Nodes go in another order than they came, and all pages with them.
        drop(writer);
        let pool = space.pool().clone();
        drop(space);
        prop_assert_eq!((pool.nodes(), pool.pages(), Arc::strong_count(&pool)), (0, 0, 1));
    }
}

/// What was given up has regions put in within it, and one around it. They are found, and when it goes, gaps become what they are.
#[test]
fn what_was_given_up_is_in_nobodys_way() {
    for (from, middle) in [(usize::MAX, 0), (usize::MAX, 7), (1, 0), (1, 7), (5, 7)] {
        let cpu = Cpu::new();
        let space: Space = Tree::new(cpu.domain.clone()).leaves_from(from);
        let pages = |start: u64, end: u64| Region::new(start * PAGE, end * PAGE);
        let mut writer = space.write(&cpu.pin);
        // Regions of 300 pages with as many between them, and all above the last.
        let end = |n: u64| if n < 14 { (600 * n + 300) * PAGE } else { u64::MAX };
        let all: Vec<_> = (0..15).map(|n| (Region::new(600 * n * PAGE, end(n)), Entry::new(0))).collect();
        writer.build(all).unwrap();
        writer.reserve(20, 0).unwrap();
        let at = 600 * middle;
        drop(writer.give_up(at * PAGE).unwrap());
        // So few that it stays where it is in the tree, above them.
        for n in 1..13 {
            writer.insert(pages(at + 6 * n, at + 6 * n + 1), Entry::new(1)).unwrap();
        }
        let whole = pages(0, 8400);
        let before = writer.gap(310 * PAGE, whole, Fit::Lowest);
        drop(writer);
        let mut writer = space.write(&cpu.pin);
        drop(writer.remove((600 * 13) * PAGE).unwrap());
        assert_eq!(writer.tombstones(), 0);
        writer.check().unwrap();
        assert_eq!(writer.gap(310 * PAGE, whole, Fit::Lowest), Some((at + 73) * PAGE), "{before:?}");
        assert_eq!(writer.gap(5 * PAGE, pages(at + 6, at + 12), Fit::Highest), Some((at + 7) * PAGE));
        writer.check().unwrap();
    }
}

/// A region around one that was given up is found where that ends.
#[test]
fn a_region_around_what_was_given_up_is_found() {
    for from in [usize::MAX, 0] {
        let cpu = Cpu::new();
        let space: Space = Tree::new(cpu.domain.clone()).leaves_from(from);
        let mut writer = space.write(&cpu.pin);
        for (start, end) in [(0, 30), (50, 60), (200, 300)] {
            writer.insert(Region::new(start, end), Entry::new(1)).unwrap();
        }
        writer.reserve(5, 5).unwrap();
        drop(writer.give_up(50).unwrap());
        drop(writer.replace(Region::new(0, 100), Entry::new(2)).unwrap());
        let reader = writer.read();
        for at in [0, 49, 60, 70, 99] {
            assert_eq!(
                reader.covering(at).map(|(_, entry)| (**entry, entry.is_dead())),
                Some((2, false)),
                "{at}"
            );
        }
        assert!(reader.covering(55).is_some_and(|(_, entry)| entry.is_dead()));
        assert_eq!(reader.floor(55).map(|(_, entry)| **entry), Some(2));
        assert!(reader.covering(100).is_none() && reader.covering(199).is_none());
    }
}

/// A piece ends where the region does of which it is one, or where the next begins.
#[test]
fn a_piece_leaves_no_room() {
    let cpu = Cpu::new();
    let space: Space = Tree::new(cpu.domain.clone());
    let mut writer = space.write(&cpu.pin);
    writer.insert(Region::new(0, 90), Entry::new(0)).unwrap();
    let pieces = [
        (60, 80, false),
        (60, 91, false),
        (60, 90, true),
        (50, 90, false),
        (40, 50, false),
        (40, 60, true),
        (30, 60, false),
        (30, 40, true),
    ];
    for (start, end, done) in pieces {
        let refused =
            writer.insert_piece(Region::new(start, end), Entry::new(1)).map_err(|refused| refused.error);
        assert_eq!(refused, if done { Ok(()) } else { Err(Error::Absent) }, "{start} to {end}");
    }
    assert!(writer.replace(Region::new(0, 31), Entry::new(2)).is_err());
    drop(writer.replace(Region::new(0, 30), Entry::new(2)).unwrap());
    writer.check().unwrap();
}

/// Keys of which a leaf would be too large: there are none.
#[test]
fn large_keys_have_no_leaves() {
    let mut cpu = Cpu::new();
    let map = BonsaiMap::<[u64; 40], u64, _>::new(cpu.domain.clone()).leaves_from(0);
    {
        let mut writer = map.write(&cpu.pin);
        writer.reserve(2, 1).unwrap();
        for n in 0..100 {
            writer.insert([n; 40], Entry::new(n)).unwrap();
        }
        let shape = writer.check().unwrap();
        assert_eq!((shape.nodes, shape.leaves), (100, 0));
        (0..100).for_each(|n| drop(writer.remove([n; 40]).unwrap()));
    }
    cpu.settle();
    assert_eq!(map.pool().nodes(), 0);
}

/// Gaps beyond what a node can say are found all the same.
#[test]
fn the_largest_gaps_are_found() {
    let cpu = Cpu::new();
    let space: Space = Tree::new(cpu.domain.clone());
    let mut writer = space.write(&cpu.pin);
    let unit = 1 << 45;
    for at in [1, 3, 6, 12, 20] {
        writer.insert(Region::new(at * unit, at * unit + PAGE), Entry::new(0)).unwrap();
    }
    let all = Region::new(PAGE, 1 << 50);
    assert_eq!(writer.gap(unit, all, Fit::Lowest), Some(unit + PAGE));
    assert_eq!(writer.gap(5 * unit, all, Fit::Lowest), Some(6 * unit + PAGE));
    assert_eq!(writer.gap(5 * unit, all, Fit::Highest), Some((1 << 50) - 5 * unit));
    assert_eq!(writer.gap(7 * unit, Region::new(0, 20 * unit), Fit::Highest), Some(13 * unit));
    assert_eq!(writer.gap(12 * unit, all, Fit::Lowest), None);
    writer.check().unwrap();
}

#[test]
#[should_panic(expected = "a section of another domain")]
fn a_section_of_another_domain_is_refused() {
    let (cpu, other) = (Cpu::new(), Cpu::new());
    let map: Map = Tree::new(cpu.domain.clone());
    let guard = other.domain.read(&other.pin);
    let _ = map.read(&guard);
}

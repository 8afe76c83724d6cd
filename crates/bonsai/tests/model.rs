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

use bonsai::{BonsaiMap, Entry, Error, Fit, Region, RegionTree, Tree};
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

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_map_is_an_ordered_map(ops in ops(60)) {
        let mut cpu = Cpu::new();
        let alive = Arc::new(AtomicUsize::new(0));
        let map: Map = Tree::new(cpu.domain.clone());
        let mut oracle = BTreeMap::new();
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
                prop_assert_eq!(shape.nodes as usize, oracle.len() + writer.tombstones());
            }
            compare(&map, &cpu, &oracle, 0..60);
            if matches!(op, Op::Settle) {
                cpu.settle();
                let tombstones = map.write(&cpu.pin).tombstones();
                prop_assert_eq!(map.pool().nodes(), oracle.len() + tombstones);
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
    let mut cpu = Cpu::new();
    let alive = Arc::new(AtomicUsize::new(0));
    let map: Map = Tree::new(cpu.domain.clone());
    let mut oracle = BTreeMap::new();
    let mut random = Random(7);
    let (mut failed, mut buried) = (0, 0);
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
            assert_eq!((map.pool().nodes(), alive.load(Relaxed)), (oracle.len(), oracle.len()));
        }
    }
    assert!(failed > 1000 && buried > 100, "{failed} inserts and {buried} removals failed: too few");
    println!("{failed} inserts failed, {buried} removals left tombstones");
}

/// With reserved nodes a run of updates can't fail, and what fails is the reservation.
#[test]
fn what_is_reserved_suffices() {
    let mut cpu = Cpu::new();
    let alive = Arc::new(AtomicUsize::new(0));
    let map: Map = Tree::new(cpu.domain.clone());
    for round in 0..40u16 {
        map.pool().set_limit(usize::MAX);
        let mut writer = map.write(&cpu.pin);
        writer.reserve(30, 0).unwrap();
        map.pool().set_limit(0);
        assert_eq!(writer.reserve(1000, 0), Err(Error::Memory));
        // Ascending keys turn the most.
        for key in round * 30..round * 30 + 30 {
            writer.insert(key, Value::new(0, &alive)).unwrap();
        }
        writer.check().unwrap();
        drop(writer);
        cpu.settle();
    }
    assert_eq!(map.pool().nodes(), 1200);
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

/// The regions of an address space of 64 pages, as an array of pages says them.
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

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let call = prop_oneof![
        2 => (1..12u64, any::<bool>()).prop_map(|(len, low)| Call::Place(len, low)),
        2 => (0..64u64, 1..12u64).prop_map(|(at, len)| Call::Map(at, len)),
        3 => (0..64u64, 1..12u64).prop_map(|(at, len)| Call::Unmap(at, len)),
    ];
    proptest::collection::vec(call, 1..150)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn regions_are_an_array_of_pages(calls in calls()) {
        let mut cpu = Cpu::new();
        let space: Space = Tree::new(cpu.domain.clone());
        let mut pages = vec![None; 64];
        let all = Region::new(0, 64 * PAGE);
        for (id, call) in calls.into_iter().enumerate() {
            let id = id as u32;
            let mut writer = space.write(&cpu.pin);
            match call {
                Call::Place(len, low) => {
                    let mut places = (0..=64 - len).filter(|at| pages[*at as usize..(at + len) as usize].iter().all(Option::is_none));
                    let place = if low { places.next() } else { places.next_back() };
                    let found = writer.gap(len * PAGE, all, if low { Fit::Lowest } else { Fit::Highest });
                    prop_assert_eq!(found, place.map(|at| at * PAGE));
                    if let Some(at) = place {
                        writer.insert(Region::new(at * PAGE, (at + len) * PAGE), Entry::new(id)).unwrap();
                        pages[at as usize..(at + len) as usize].fill(Some(id));
                    }
                }
                Call::Map(at, len) => {
                    let end = (at + len).min(64);
                    let range = at as usize..end as usize;
                    let done = writer.insert(Region::new(at * PAGE, end * PAGE), Entry::new(id));
                    prop_assert_eq!(done.is_ok(), pages[range.clone()].iter().all(Option::is_none));
                    if done.is_ok() {
                        pages[range].fill(Some(id));
                    }
                }
                Call::Unmap(at, len) => {
                    let end = (at + len).min(64);
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
    fn what_is_built_is_balanced(n in 0..700u64, from in 0..700u64) {
        let cpu = Cpu::new();
        let space: Space = Tree::new(cpu.domain.clone());
        let mut writer = space.write(&cpu.pin);
        let region = |at: u64| Region::new(2 * at * PAGE, (2 * at + 1) * PAGE);
        let all: Vec<_> = (0..n).map(|at| (region(at), Entry::new(at as u32))).collect();
        writer.build(all).unwrap();
        let shape = writer.check().map_err(TestCaseError::fail)?;
        prop_assert_eq!(u64::from(shape.nodes), n);
        prop_assert_eq!(shape.height as u32, u64::BITS - n.leading_zeros());
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

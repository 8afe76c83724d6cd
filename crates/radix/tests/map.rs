//! The map for hosts against a plain one, the table of descriptors, and what is left when everything is gone.
#![cfg(not(any(loom, shuttle)))]

use std::{collections::BTreeMap, ops::Range};

use percpu::{CpuId, Pinned, testing::Machine};
use proptest::prelude::*;
use radix::{
    Descriptors, Given, Mode, RadixMap, Reserve, Section, Space as _, Tree,
    page::Page,
    testing::{Host, Pages},
};
use refcache::{AllStopped, Budget, Domain};

fn pin(cpu: usize) -> Pinned<'static> {
    // SAFETY: the tests that use it are one thread each.
    unsafe { Pinned::assume(CpuId::new(cpu).expect("a CPU")) }
}

fn stopped() -> AllStopped {
    // SAFETY: as above.
    unsafe { AllStopped::assume() }
}

#[derive(Clone, Debug)]
enum Op {
    Insert(Range<u64>, u16),
    Remove(Range<u64>),
    Add(Range<u64>, u16),
    Tick(usize),
}

fn range() -> impl Strategy<Value = Range<u64>> {
    // Around 0, the edges of levels, and the largest key.
    let base = prop_oneof![
        Just(0u64),
        Just(63),
        Just((1 << 12) - 100),
        Just((1 << 30) + 5),
        Just((1 << 57) - 7),
        Just((1 << 63) - 300)
    ];
    (base, 0..200u64, 0..100u64).prop_map(|(base, from, len)| base + from..base + from + len)
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (range(), any::<u16>()).prop_map(|(range, value)| Op::Insert(range, value)),
        3 => range().prop_map(Op::Remove),
        2 => (range(), 0..3u16).prop_map(|(range, value)| Op::Add(range, value)),
        2 => (1..5usize).prop_map(Op::Tick),
    ]
}

proptest! {
    #[test]
    fn it_is_as_a_map_of_single_keys(ops in prop::collection::vec(op(), 1..40)) {
        let (map, mut model) = (RadixMap::<u16>::new(1).unwrap(), BTreeMap::new());
        let mut pin = pin(0);
        let mut here = map.join(&mut pin);
        for op in ops {
            match op.clone() {
                Op::Insert(keys, value) => {
                    here.insert(keys.clone(), value).unwrap();
                    model.extend(keys.map(|key| (key, value)));
                }
                Op::Remove(keys) => {
                    here.remove(keys.clone()).unwrap();
                    keys.for_each(|key| _ = model.remove(&key));
                }
                Op::Add(keys, n) => {
                    here.update(keys.clone(), |old| old.map(|old| old.wrapping_add(n))).unwrap();
                    model.range_mut(keys).for_each(|(_, value)| *value = value.wrapping_add(n));
                }
                Op::Tick(n) => (0..n).for_each(|_| here.tick()),
            }
            let mut found = Vec::new();
            here.for_each(0..1 << 63, |keys, value| found.extend(keys.map(|key| (key, value))));
            prop_assert_eq!(&found, &model.iter().map(|(key, value)| (*key, *value)).collect::<Vec<_>>());
            let (Op::Insert(keys, _) | Op::Remove(keys) | Op::Add(keys, _)) = op else { continue };
            let mut locked = Vec::new();
            here.locked(keys.clone(), |keys, value| locked.extend(keys.map(|key| (key, value)))).unwrap();
            let one_by_one: Vec<_> = keys.clone().map(|key| (key, here.get(key))).collect();
            prop_assert_eq!(&locked, &one_by_one);
            let expected: Vec<_> = keys.map(|key| (key, model.get(&key).copied())).collect();
            prop_assert_eq!(one_by_one, expected);
        }
        here.remove(0..1 << 63).unwrap();
        (0..48).for_each(|_| here.tick());
        prop_assert_eq!(here.nodes(), 1);
    }
}

#[test]
#[should_panic(expected = "has joined the map already")]
fn a_cpu_joins_once_at_a_time() {
    let map = RadixMap::<u32>::new(1).unwrap();
    let (mut first, mut second) = (pin(0), pin(0));
    let _here = map.join(&mut first);
    let _again = map.join(&mut second);
}

/// What CPUs do to ranges of their own comes out as if each were alone; on common ranges each value is somebody's.
#[test]
fn cpus_share_a_map() {
    const CPUS: usize = 4;
    let (machine, map) = (Machine::new(CPUS), RadixMap::<u32>::new(CPUS).unwrap());
    machine.run(|cpu, ctx| {
        let me = cpu.index() as u64;
        for round in 0..if cfg!(debug_assertions) { 60 } else { 2000 } {
            let mut pin = ctx.pin();
            let mut here = map.join(&mut pin);
            let own = 1000 + me * 40..1030 + me * 40;
            here.insert(own.clone(), me as u32).unwrap();
            here.insert(10 * me..500 + me, me as u32).unwrap();
            here.remove(own.start + 3..own.start + 7).unwrap();
            here.update(own.start..own.start + 5, |old| old.map(|old| old + 100)).unwrap();
            own.clone().for_each(|key| {
                let expected = match key - own.start {
                    0..3 => Some(me as u32 + 100),
                    3..7 => None,
                    _ => Some(me as u32),
                };
                assert_eq!(here.get(key), expected);
            });
            let mut spans = 0;
            here.locked(100..400, |_, value| {
                assert!(value.is_none_or(|value| value < CPUS as u32));
                spans += 1;
            })
            .unwrap();
            assert!(spans > 0);
            here.remove(own).unwrap();
            if round % 3 == 0 {
                here.remove(0..600).unwrap();
            }
            here.tick();
        }
    });
    machine.on(0, |ctx| {
        let mut pin = ctx.pin();
        let mut here = map.join(&mut pin);
        here.remove(0..1 << 63).unwrap();
        (0..48).for_each(|_| here.tick());
        assert_eq!(here.nodes(), 1);
    });
}

/// D9: after everything has been unmapped at once, only the root is left: within three epochs for each level below it, and two
/// for the last grace period.
#[test]
fn after_unmapping_everything_the_root_is_left_within_17_epochs() {
    let space = Host::<Pages>::new(2);
    let (tree, mut reserve) = (Tree::new(space, &pin(0)).unwrap(), Reserve::new());
    let far = 1 << 33;
    for cpu in 0..2u64 {
        let pin = pin(cpu as usize);
        let section = Section::new(space, &pin);
        for range in [5..2000, far + cpu * (1 << 27)..far + 3 + cpu * (1 << 27)] {
            let guard = tree.lock_range(range, Mode::Fill, &mut reserve, &section);
            guard.unwrap().replace(Page::new(1).word(), |_| ());
        }
        for key in [5, 700, far + cpu * (1 << 27)] {
            reserve.fill(space, &(key..key + 1), &pin).unwrap();
            let mut guard = tree.lock_one(key, &section).unwrap().unwrap();
            guard.narrow_to(key, &mut reserve).unwrap();
        }
    }
    (0..8).for_each(|_| space.epoch(&stopped()));
    assert!(space.memory().0 > 10);
    {
        let pin = pin(1);
        let section = Section::new(space, &pin);
        let guard = tree.lock_range(0..1 << 35, Mode::Take, &mut reserve, &section);
        guard.unwrap().replace(0, |_| ());
    }
    reserve.give_back(space, &pin(1));
    (0..17).for_each(|_| space.epoch(&stopped()));
    assert_eq!(space.memory().0, 1);
    tree.retire(&Section::new(space, &pin(0)), |one| panic!("{one:?} was left"));
    space.settle(&stopped());
}

/// A mapping of a terabyte that nobody has touched is few words, and forking it makes few nodes (D6).
#[test]
fn a_huge_untouched_mapping_forks_as_a_few_words() {
    let space = Host::<Pages>::new(1);
    let (tree, mut reserve) = (Tree::new(space, &pin(0)).unwrap(), Reserve::new());
    let pin = pin(0);
    let section = Section::new(space, &pin);
    let guard = tree.lock_range(12_345..12_345 + (1 << 28), Mode::Fill, &mut reserve, &section);
    guard.unwrap().replace(Page::new(1).word(), |_| ());
    let before = space.memory().0;
    let mut child = Tree::new(space, &pin).unwrap();
    let guard = tree.lock_range(0..1 << 35, Mode::Freeze, &mut reserve, &section);
    guard.unwrap().fork(&mut child, |_, _| Ok(Given::Same)).unwrap();
    assert!(space.memory().0 - before < 12, "{before} before, {} after", space.memory().0);
    assert_eq!(child.get(12_345 + (1 << 27), &section), tree.get(12_345 + (1 << 27), &section));
    assert_eq!(child.get(12_344, &section).value, 0);
    reserve.give_back(space, &pin);
    [tree, child].into_iter().for_each(|tree| tree.retire(&section, |_| ()));
    drop(section);
    space.settle(&stopped());
    assert_eq!(space.memory(), (0, 0));
}

/// Pages that have frames are not copied one by one, nor are their frames counted: a fork makes a word for each node (D6).
#[test]
fn a_fork_makes_a_word_for_each_leaf() {
    const LEAVES: u64 = 256;
    let space = Host::<Pages>::new(1);
    let (tree, mut reserve) = (Tree::new(space, &pin(0)).unwrap(), Reserve::new());
    let pin = pin(0);
    let section = Section::new(space, &pin);
    for key in 0..LEAVES * 64 {
        let guard = tree.lock_range(key..key + 1, Mode::Fill, &mut reserve, &section);
        guard.unwrap().replace(Page::new(1).with_pfn(key + 1).with_owner(3).word(), |_| ());
    }
    let (before, named) = (space.memory().0, space.named(1));
    let mut child = Tree::new(space, &pin).unwrap();
    let guard = tree.lock_range(0..1 << 35, Mode::Freeze, &mut reserve, &section);
    let mut asked = 0;
    let forked = guard.unwrap().fork(&mut child, |span, values| {
        asked += 1;
        assert!(span.frozen && values.len() == 64);
        Ok(Given::Same)
    });
    forked.unwrap();
    assert_eq!(asked, LEAVES);
    // The blocks, and one node of each level above.
    assert_eq!(space.memory().0 - before, Host::<Pages>::BITS.len() - 2 + LEAVES as usize / 8);
    assert_eq!((space.shared_frames(), space.named(1)), (0, named));
    for key in 0..LEAVES * 64 {
        assert_eq!(
            Page::of(child.get(key, &section).value).with_owner(3),
            Page::of(tree.get(key, &section).value)
        );
        assert_eq!(Page::of(tree.get(key, &section).value).owner(), 3);
    }
    reserve.give_back(space, &pin);
    [tree, child].into_iter().for_each(|tree| tree.retire(&section, |_| ()));
    drop(section);
    space.settle(&stopped());
    assert_eq!(space.memory(), (0, 0));
}

/// What a child gets in the place of a node is one word if it is one value without pages, and a node of its own otherwise; the
/// parent keeps its.
#[test]
fn a_node_that_is_not_given_stays_the_parents() {
    let space = Host::<Pages>::new(1);
    let (tree, mut reserve) = (Tree::new(space, &pin(0)).unwrap(), Reserve::new());
    let pin = pin(0);
    let section = Section::new(space, &pin);
    for key in 0..128 {
        let guard = tree.lock_range(key..key + 1, Mode::Fill, &mut reserve, &section);
        guard.unwrap().replace(Page::new(1).with_pfn(key + 1).word(), |_| ());
    }
    let (before, mut child) = (space.memory().0, Tree::new(space, &pin).unwrap());
    let guard = tree.lock_range(0..1 << 35, Mode::Freeze, &mut reserve, &section);
    let forked = guard.unwrap().fork(&mut child, |span, values| {
        assert!(span.frozen && values.len() == 64);
        if span.first == 0 {
            return Ok(Given::Value(Page::new(2).word()));
        }
        for (key, theirs) in (span.first..).zip(values) {
            *theirs = match key % 3 {
                0 => 0,
                1 => Page::new(3).word(),
                _ => Page::new(4).with_pfn(key + 1).word(),
            };
        }
        Ok(Given::Slots)
    });
    forked.unwrap();
    // The way to a block, and one leaf.
    assert_eq!(space.memory().0 - before, Host::<Pages>::BITS.len());
    let (shared, fours) = (space.shared_frames(), (64..128).filter(|key| key % 3 == 2).count());
    assert_eq!((shared, space.named(2), space.named(4)), (fours, 1, fours as i64));
    assert_eq!(child.get(5, &section).keys, 64);
    for key in 0..128 {
        let (ours, theirs) = (tree.get(key, &section), Page::of(child.get(key, &section).value));
        assert_eq!(
            (Page::of(ours.value).pfn(), tree.sharers(key, &section)),
            (key + 1, Some((1, key >= 64)))
        );
        let expected = match (key / 64, key % 3) {
            (0, _) => (2, 0),
            (_, 0) => (0, 0),
            (_, 1) => (3, 0),
            _ => (4, key + 1),
        };
        assert_eq!((theirs.desc(), theirs.pfn()), expected, "key {key}");
    }
    // It is taken over without memory.
    reserve.give_back(space, &pin);
    space.fail_after(Some(0));
    let guard = tree.lock_range(70..72, Mode::Alone, &mut reserve, &section);
    guard.unwrap().update(|span| Page::of(span.value).with_desc(5).word());
    space.fail_after(None);
    assert_eq!(Page::of(tree.get(71, &section).value).desc(), 5);
    assert_eq!(Page::of(child.get(71, &section).value).desc(), 4);
    [tree, child].into_iter().for_each(|tree| tree.retire(&section, |_| ()));
    drop(section);
    space.settle(&stopped());
    assert_eq!(space.memory(), (0, 0));
    (1..16).for_each(|desc| assert_eq!(space.named(desc), 0));
}

/// A block has something of its own, the same for all its leaves, until it is collected.
#[test]
fn nodes_of_a_level_have_an_annex() {
    use std::sync::atomic::Ordering;
    let space = Host::<Pages>::new(1);
    let (tree, mut reserve) = (Tree::new(space, &pin(0)).unwrap(), Reserve::new());
    let pin = pin(0);
    let section = Section::new(space, &pin);
    let mut lock = |keys: Range<u64>| tree.lock_range(keys, Mode::Fill, &mut reserve, &section).unwrap();
    let guard = lock(1000..1001);
    assert!(guard.annex(1001).is_none());
    guard.annex(1000).unwrap().store(7, Ordering::Relaxed);
    drop(guard);
    // The same block; another leaf, a slot of the block itself; another block; a slot above blocks.
    assert_eq!(lock(600..601).annex(600).unwrap().load(Ordering::Relaxed), 7);
    assert_eq!(lock(640..704).annex(650).unwrap().load(Ordering::Relaxed), 7);
    assert_eq!(lock(0..1).annex(0).unwrap().load(Ordering::Relaxed), 0);
    assert!(lock(1024..1536).annex(1024).is_none());
    reserve.give_back(space, &pin);
    tree.retire(&section, |_| ());
    drop(section);
    space.settle(&stopped());
    assert_eq!(space.memory(), (0, 0));
}

/// What contents are: two words.
type Contents = (u64, u32);

fn table() -> (&'static Domain<64>, &'static rcu::kernel::Domain, &'static Descriptors<Contents, 64>) {
    let (refs, rcu) = (Box::leak(Box::new(Domain::new(2))), Box::leak(Box::new(rcu::kernel::Domain::new(2))));
    let table = Box::leak(Box::new(Descriptors::new(refs, rcu, 2, &[(0, 1), (0, 2)])));
    (0..2).for_each(|cpu| rcu.idle_exit(&mut pin(cpu)));
    (refs, rcu, table)
}

#[test]
fn descriptors_are_named_counted_and_go() {
    let (refs, rcu, table) = table();
    let pin0 = pin(0);
    assert_eq!([table.intern((0, 1), &pin0), table.intern((0, 2), &pin0)], [Ok(1), Ok(2)]);
    // SAFETY: constants aren't counted.
    unsafe { table.count(1, 1_000, &pin0) };
    let id = table.intern((7, 7), &pin0).unwrap();
    assert!(id >= radix::CONSTANTS);
    assert_eq!(table.intern((7, 7), &pin0), Ok(id));
    let other = table.intern((8, 8), &pin0).unwrap();
    assert_ne!(other, id);
    let guard = rcu.read(&pin0);
    assert_eq!(table.get(id, &guard), Some(&(7, 7)));
    assert_eq!((table.get(1, &guard), table.get(0, &guard)), (Some(&(0, 1)), None));
    drop(guard);
    let rounds = |n| {
        for _ in 0..n {
            for cpu in 0..2 {
                refs.work(&pin(cpu), Budget::ALL);
                rcu.tick(&mut pin(cpu));
            }
        }
    };
    // SAFETY: one of the two references that were got.
    unsafe { table.count(id, -1, &pin0) };
    rounds(10);
    assert_eq!(table.get(id, &rcu.read(&pin0)), Some(&(7, 7)));
    // SAFETY: the other one.
    unsafe { table.count(id, -1, &pin(1)) };
    rounds(10);
    assert_eq!(table.get(id, &rcu.read(&pin0)), None);
    // The number is free again; the other's is not.
    assert_eq!(table.intern((9, 9), &pin0), Ok(id));
    assert_eq!((table.get(id, &rcu.read(&pin0)), table.used()), (Some(&(9, 9)), 2));
    assert_eq!(table.get(other, &rcu.read(&pin0)), Some(&(8, 8)));
}

#[test]
fn a_dying_descriptor_is_interned_again_under_its_number() {
    let (refs, _, table) = table();
    let pin0 = pin(0);
    let id = table.intern((7, 7), &pin0).unwrap();
    // SAFETY: the reference from above.
    unsafe { table.count(id, -1, &pin0) };
    (0..2).for_each(|cpu| _ = refs.work(&pin(cpu), Budget::ALL));
    assert_eq!(table.intern((7, 7), &pin0), Ok(id));
}

#[test]
fn there_are_so_many_descriptors_and_no_more() {
    let (_, _, table) = table();
    let pin0 = pin(0);
    let many = radix::page::DESCRIPTORS - radix::CONSTANTS;
    for n in 0..many {
        table.intern((1, n), &pin0).unwrap();
    }
    assert_eq!(table.intern((2, 0), &pin0), Err(radix::Error::OutOfMemory));
}

//! Real threads: readers hold what they find against what was there, beside a writer that never rests.
#![cfg(not(any(loom, shuttle)))]

mod history;
mod random;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread,
};

use bonsai::{BonsaiMap, Entry, Region, RegionTree};
use history::{History, KEYS, Look, Update};
use percpu::{CpuId, Pinned};
use random::Random;
use rcu::kernel::Domain;

const READERS: usize = 3;

/// How much: more in a run that is asked to be full, less in one under a sanitizer.
fn scale() -> usize {
    match () {
        () if std::env::var_os("QUIRE_FULL").is_some() => 20,
        () if std::env::var_os("QUIRE_SLOW").is_some() => 1,
        () => 3,
    }
}

/// CPU number `cpu`, which is one thread's.
fn pin(cpu: usize) -> Pinned<'static> {
    // SAFETY: each thread takes a number of its own.
    unsafe { Pinned::assume(CpuId::new(cpu).unwrap()) }
}

/// Until everything has ended that CPU 0 has retired.
fn settle(domain: &Domain, pin: &mut Pinned<'_>) {
    while domain.pending(pin) > 0 {
        domain.tick(pin);
    }
}

#[test]
fn look_ups_are_of_some_moment() {
    look_ups(usize::MAX);
}

#[test]
fn look_ups_among_leaves_are_of_some_moment() {
    look_ups(0);
}

fn look_ups(leaves_from: usize) {
    let domain = Arc::new(Domain::new(1 + READERS));
    let map = BonsaiMap::<u32, u32, _>::new(domain.clone()).leaves_from(leaves_from);
    let pin_0 = &mut pin(0);
    domain.idle_exit(pin_0);
    let mut random = Random(1);
    let first = 0x5555_5555_5555_5555;
    let history = History::new(first, 60_000 * scale(), KEYS, |n| random.below(n));
    let entry = |key: u32| Entry::new(key);
    (0..KEYS)
        .filter(|key| first & 1 << key != 0)
        .for_each(|key| map.write(pin_0).insert(key, entry(key)).unwrap());
    assert_eq!(history.first(), first);
    let (overlapped, looks) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        let reader = |cpu| {
            let (map, domain, history, overlapped, looks) = (&map, &domain, &history, &overlapped, &looks);
            scope.spawn(move || {
                let pin = &mut pin(cpu);
                let mut random = Random(cpu as u64);
                domain.idle_exit(pin);
                while !history.is_done() {
                    for _ in 0..50 {
                        let guard = domain.read(pin);
                        let reader = map.read(&guard);
                        let meanwhile = history.check(Look::of(random.below(5 * KEYS)), |look| {
                            let found = match look {
                                Look::Get(key) => return reader.get(key).map(|value| **value),
                                Look::Floor(key) => reader.floor(key),
                                Look::Lower(key) => reader.lower(key),
                                Look::Ceiling(key) => reader.ceiling(key),
                                Look::Higher(key) => reader.higher(key),
                            };
                            found.map(|(key, value)| {
                                assert_eq!(key.0, **value);
                                key.0
                            })
                        });
                        looks.fetch_add(1, Relaxed);
                        overlapped.fetch_add(usize::from(meanwhile > 0), Relaxed);
                        if random.below(64) == 0 {
                            history.check_all(|| reader.iter().map(|(_, value)| **value).collect());
                        }
                    }
                    domain.qs(pin);
                }
                domain.idle_enter(pin);
            })
        };
        let readers: Vec<_> = (1..=READERS).map(reader).collect();
        for number in 0..history.updates.len() {
            history.update(number, |update| {
                let mut writer = map.write(&*pin_0);
                match update {
                    Update::Insert(key) => writer.insert(key, entry(key)).unwrap(),
                    Update::Replace(key) => drop(writer.replace(key, entry(key)).unwrap()),
                    Update::Remove(key) => drop(writer.remove(key).unwrap()),
                }
            });
            if number % 16 == 0 {
                domain.tick(pin_0);
            }
        }
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
    map.write(&*pin_0).check().unwrap();
    settle(&domain, pin_0);
    let (looks, overlapped) = (looks.into_inner(), overlapped.into_inner());
    println!("{looks} look-ups, {overlapped} of them while an update was made");
    assert!(overlapped > 100, "too few look-ups met an update");
    let pool = map.pool().clone();
    drop(map);
    assert_eq!((pool.nodes(), pool.pages()), (0, 0));
}

/// A writer cuts, maps and unmaps beside regions that stay, and readers look both up.
#[test]
fn regions_that_stay_are_covered() {
    covered(usize::MAX);
}

#[test]
fn regions_that_stay_are_covered_among_leaves() {
    covered(0);
}

fn covered(leaves_from: usize) {
    const REGIONS: u64 = 500;
    const UNIT: u64 = 64 << 12;
    let domain = Arc::new(Domain::new(1 + READERS));
    let tree = RegionTree::<u64, _>::new(domain.clone()).leaves_from(leaves_from);
    let pin_0 = &mut pin(0);
    domain.idle_exit(pin_0);
    // Every other unit has a region that stays; what is between them comes and goes.
    let region = |n: u64| Region::new(n * UNIT, (n + 1) * UNIT);
    let all: Vec<_> = (0..REGIONS).map(|n| (region(2 * n), Entry::new(2 * n))).collect();
    tree.write(&*pin_0).build(all).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = |cpu| {
            let (tree, domain, done) = (&tree, &domain, &done);
            scope.spawn(move || {
                let pin = &mut pin(cpu);
                let mut random = Random(cpu as u64);
                domain.idle_exit(pin);
                while !done.load(Relaxed) {
                    for _ in 0..50 {
                        let guard = domain.read(pin);
                        let reader = tree.read(&guard);
                        let n = u64::from(random.below(2 * REGIONS as u32));
                        let at = n * UNIT + u64::from(random.below(UNIT as u32));
                        let found = reader.covering(at).map(|(region, entry)| {
                            assert!(region.start() <= at && at < region.end());
                            assert_eq!(**entry, n);
                            entry
                        });
                        match n % 8 {
                            // Cut in two and made whole again: the first half stays.
                            0 => assert!(
                                found.is_some() || at % UNIT >= UNIT / 2,
                                "what stays of {n} is missing"
                            ),
                            2 | 4 | 6 => {
                                assert!(found.is_some_and(|entry| !entry.is_dead()), "{n} is missing")
                            }
                            _ => {}
                        }
                    }
                    domain.qs(pin);
                }
                domain.idle_enter(pin);
            })
        };
        let readers: Vec<_> = (1..=READERS).map(reader).collect();
        let mut random = Random(77);
        for number in 0..40_000 * scale() {
            let n = u64::from(random.below(2 * REGIONS as u32));
            let mut writer = tree.write(&*pin_0);
            if n % 8 == 0 {
                let (start, end) = (n * UNIT, (n + 1) * UNIT);
                let half = start + UNIT / 2;
                writer.insert_piece(Region::new(half, end), Entry::new(n)).unwrap();
                drop(writer.replace(Region::new(start, half), Entry::new(n)).unwrap());
                drop(writer.remove(half).unwrap());
                drop(writer.replace(Region::new(start, end), Entry::new(n)).unwrap());
            } else if n % 2 == 1 {
                match writer.read().covering(n * UNIT).is_some() {
                    true => drop(writer.remove(n * UNIT).unwrap()),
                    false => writer.insert(region(n), Entry::new(n)).unwrap(),
                }
            }
            drop(writer);
            if number % 16 == 0 {
                domain.tick(pin_0);
            }
        }
        done.store(true, Relaxed);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
    settle(&domain, pin_0);
    let (pool, shape) = (tree.pool().clone(), tree.write(&*pin_0).check().unwrap());
    assert_eq!(pool.nodes(), (shape.nodes + shape.leaves) as usize);
    drop(tree);
    assert_eq!((pool.nodes(), pool.pages()), (0, 0));
}

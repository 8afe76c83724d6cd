//! Trees of programs: readers in sections of `rcu`'s user-space domain, in both of its modes, and of `Qsbr`. What is found stays until the
//! section ends, and all is dropped once.
#![cfg(not(any(loom, shuttle)))]

mod random;

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use bonsai::{BonsaiMap, Entry};
use random::Random;
use rcu::user;

/// Counts its end, and shows it.
struct Value {
    key: u32,
    ends: &'static AtomicUsize,
    alive: AtomicBool,
}

impl Value {
    fn entry(key: u32, ends: &'static AtomicUsize) -> Box<Entry<Self>> {
        Entry::new(Self { key, ends, alive: AtomicBool::new(true) })
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        self.alive.store(false, Ordering::SeqCst);
        self.ends.fetch_add(1, Ordering::SeqCst);
    }
}

fn what_is_found_stays<D>(domain: &'static user::Domain<D>, ends: &'static AtomicUsize) {
    let map = BonsaiMap::<u32, Value, _>::new(domain);
    let mut here = domain.register();
    map.write(&here).insert(1, Value::entry(1, ends)).unwrap_or_else(|_| panic!("there is room"));
    {
        let section = here.read();
        let found = map.read(&section).get(1).expect("it is there");
        thread::scope(|scope| {
            scope.spawn(|| {
                let other = domain.register();
                drop(map.write(&other).remove(1));
                let need = other.snap();
                (0..100).for_each(|_| other.flush());
                assert!(!other.poll(need), "the period is over, but not the section");
            });
        });
        assert!(map.read(&section).get(1).is_none(), "it is found after its removal");
        assert!(found.alive.load(Ordering::SeqCst) && ends.load(Ordering::SeqCst) == 0, "dropped early");
    }
    here.barrier();
    assert_eq!(ends.load(Ordering::SeqCst), 1);
}

#[test]
fn what_is_found_stays_until_the_section_ends() {
    rcu::domain!(static DOMAIN: Brand);
    static ENDS: AtomicUsize = AtomicUsize::new(0);
    what_is_found_stays(&DOMAIN, &ENDS);
}

#[test]
fn what_is_found_stays_until_the_section_ends_with_fences() {
    rcu::domain!(static DOMAIN: Brand);
    static ENDS: AtomicUsize = AtomicUsize::new(0);
    assert!(DOMAIN.use_fences());
    what_is_found_stays(&DOMAIN, &ENDS);
}

const KEYS: u32 = 64;
const UPDATES: usize = 20_000;
const READERS: usize = 2;

/// One update at random; how many values it made.
fn update<D: bonsai::Rcu>(
    map: &BonsaiMap<u32, Value, D>,
    context: D::Context<'_>,
    random: &mut Random,
    ends: &'static AtomicUsize,
) -> usize {
    let (key, mut writer) = (random.below(KEYS), map.write(context));
    match random.below(3) {
        0 => {
            drop(writer.remove(key));
            return 0;
        }
        1 => drop(writer.replace(key, Value::entry(key, ends))),
        _ => drop(writer.insert(key, Value::entry(key, ends))),
    }
    1
}

fn check(found: Option<&Entry<Value>>, key: u32) {
    if let Some(value) = found {
        assert!(value.alive.load(Ordering::SeqCst) && value.key == key, "what was found is gone");
    }
}

#[test]
fn readers_find_what_is_there_beside_a_writer() {
    rcu::domain!(static DOMAIN: Brand);
    static ENDS: AtomicUsize = AtomicUsize::new(0);
    let map = BonsaiMap::<u32, Value, _>::new(&DOMAIN);
    let stop = AtomicBool::new(false);
    let made = thread::scope(|scope| {
        for seed in 0..READERS {
            let (map, stop) = (&map, &stop);
            scope.spawn(move || {
                let (reader, mut random) = (DOMAIN.register(), Random(seed as u64 + 1));
                while !stop.load(Ordering::SeqCst) {
                    let key = random.below(KEYS);
                    let section = reader.read();
                    check(map.read(&section).get(key), key);
                }
            });
        }
        let (mut writer, mut random) = (DOMAIN.register(), Random(7));
        let made: usize = (0..UPDATES).map(|_| update(&map, &writer, &mut random, &ENDS)).sum();
        stop.store(true, Ordering::SeqCst);
        // What waits at most is a bag or two: others were freed on the way.
        assert!(ENDS.load(Ordering::SeqCst) > 0, "nothing was freed beside the updates");
        writer.barrier();
        made
    });
    drop(map);
    assert_eq!(ENDS.load(Ordering::SeqCst), made, "values that were not dropped once");
}

#[test]
fn members_find_what_is_there_beside_a_writer() {
    rcu::qsbr!(static THREADS: Brand, READERS + 1);
    static ENDS: AtomicUsize = AtomicUsize::new(0);
    let map = BonsaiMap::<u32, Value, _>::new(&*THREADS);
    let stop = AtomicBool::new(false);
    let made = thread::scope(|scope| {
        for seed in 0..READERS {
            let (map, stop) = (&map, &stop);
            scope.spawn(move || {
                let mut member = THREADS.register().expect("there is room");
                let mut random = Random(seed as u64 + 1);
                while !stop.load(Ordering::SeqCst) {
                    let key = random.below(KEYS);
                    check(map.read(&member.read()).get(key), key);
                    member.quiescent();
                }
            });
        }
        let (mut member, mut random) = (THREADS.register().expect("there is room"), Random(7));
        let mut made = 0;
        for _ in 0..UPDATES {
            made += update(&map, &member, &mut random, &ENDS);
            member.quiescent();
        }
        stop.store(true, Ordering::SeqCst);
        while member.pending() > 0 {
            member.synchronize();
            member.quiescent();
        }
        made
    });
    drop(map);
    assert_eq!(ENDS.load(Ordering::SeqCst), made, "values that were not dropped once");
}

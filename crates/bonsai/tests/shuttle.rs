//! Three readers and a writer in schedules drawn at random: longer ones than can be explored whole.
//!
//! Run with `RUSTFLAGS="--cfg shuttle" cargo test --release -p quire-bonsai --test shuttle`.
#![cfg(shuttle)]

mod common;
mod history;

use std::sync::Arc;

use bonsai::{BonsaiMap, Entry};
use common::Quiet;
use history::{History, Look, Update};
use shuttle::{
    Config, Runner,
    rand::{Rng, thread_rng},
    scheduler::{PctScheduler, RandomScheduler, Scheduler},
    thread,
};

const READERS: usize = 3;
const UPDATES: usize = 40;
/// Look-ups of each reader.
const LOOKS: usize = 25;

fn random(below: u32) -> u32 {
    thread_rng().gen_range(0..below)
}

/// Every look-up was one at some moment, and no reader is in a node that has ended: then its fields are not those of a node.
fn model() {
    model_of(usize::MAX);
}

/// The same with leaves of three keys at most.
fn model_of_leaves() {
    model_of(0);
}

fn model_of(leaves_from: usize) {
    let domain = Box::into_raw(Box::new(Quiet::new(READERS)));
    // SAFETY: the domain ends after the map and the threads.
    let map = Arc::new(BonsaiMap::<u32, u32, _>::new(unsafe { &*domain }).leaves_from(leaves_from));
    let first = u64::from(random(1 << 16));
    let history = Arc::new(History::new(first, UPDATES, 16, random));
    {
        let mut writer = map.write(());
        (0..64)
            .filter(|key| first & 1 << key != 0)
            .for_each(|key| writer.insert(key, Entry::new(key)).unwrap());
    }
    let readers: Vec<_> = (0..READERS)
        .map(|reader| {
            let (map, history) = (map.clone(), history.clone());
            thread::spawn(move || {
                for _ in 0..LOOKS {
                    let guard = map.domain().read(reader);
                    let look = Look::of(random(16 * 5));
                    history.check(look, |look| {
                        let reader = map.read(&guard);
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
                    if random(8) == 0 {
                        history.check_all(|| map.read(&guard).iter().map(|(_, value)| **value).collect());
                    }
                }
            })
        })
        .collect();
    for number in 0..UPDATES {
        history.update(number, |update| {
            let mut writer = map.write(());
            match update {
                Update::Insert(key) => writer.insert(key, Entry::new(key)).unwrap(),
                Update::Replace(key) => drop(writer.replace(key, Entry::new(key)).unwrap()),
                Update::Remove(key) => drop(writer.remove(key).unwrap()),
            }
        });
        map.write(()).check().unwrap();
    }
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    assert!(history.is_done());
    drop(map);
    // SAFETY: nothing uses it any more.
    drop(unsafe { Box::from_raw(domain) });
}

fn run(scheduler: impl Scheduler + 'static, model: fn()) {
    Runner::new(scheduler, Config::default()).run(model);
}

#[test]
fn readers_beside_a_writer() {
    run(RandomScheduler::new(3000), model);
    run(RandomScheduler::new(3000), model_of_leaves);
}

#[test]
fn readers_beside_a_writer_by_priorities() {
    run(PctScheduler::new(4, 3000), model);
    run(PctScheduler::new(4, 3000), model_of_leaves);
}

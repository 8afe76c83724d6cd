//! The table of the example, against a map of the standard library and under resizes.
#![cfg(not(any(loom, shuttle)))]

#[path = "../examples/kvcache/table.rs"]
mod table;

use std::{
    collections::HashMap,
    hash::RandomState,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use proptest::prelude::*;
use rcu::domain;
use table::Cache;

domain!(static DOMAIN: Brand);

#[derive(Clone, Copy, Debug)]
enum Step {
    Put(u8, u32),
    Remove(u8),
    Resize(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (any::<u8>(), any::<u32>()).prop_map(|(key, value)| Step::Put(key, value)),
        4 => any::<u8>().prop_map(Step::Remove),
        1 => (0..12usize).prop_map(|bits| Step::Resize(1 << bits)),
    ];
    prop::collection::vec(step, 1..300)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn it_is_a_map(steps in steps()) {
        let mut reader = DOMAIN.register();
        let cache: Cache<u8, u32, Brand, RandomState> = Cache::new(1, RandomState::new());
        let mut oracle = HashMap::new();
        for step in steps {
            match step {
                Step::Put(key, value) => {
                    cache.put(key, value, &reader);
                    oracle.insert(key, value);
                }
                Step::Remove(key) => prop_assert_eq!(cache.remove(&key, &reader), oracle.remove(&key).is_some()),
                Step::Resize(buckets) => cache.resize(buckets, &mut reader),
            }
            prop_assert_eq!(cache.len(), oracle.len());
        }
        let section = reader.read();
        prop_assert!(cache.buckets(&section).is_power_of_two());
        for key in 0..=u8::MAX {
            prop_assert_eq!(cache.get(&key, &section), oracle.get(&key));
        }
    }
}

#[test]
fn no_key_is_lost_in_a_resize() {
    const KEYS: u64 = 2000;
    let cache: Cache<u64, u64, Brand, RandomState> = Cache::new(64, RandomState::new());
    let here = DOMAIN.register();
    (0..KEYS).for_each(|key| cache.put(key, key, &here));
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for first in 0..2 {
            let (cache, stop) = (&cache, &stop);
            scope.spawn(move || {
                let reader = DOMAIN.register();
                let mut key = first;
                while !stop.load(Ordering::Relaxed) {
                    key = (key + 7919) % KEYS;
                    let section = reader.read();
                    assert_eq!(cache.get(&key, &section).map(|value| value % KEYS), Some(key));
                }
            });
        }
        scope.spawn(|| {
            let reader = DOMAIN.register();
            for turn in 0.. {
                let key = turn % KEYS;
                cache.put(key, key + KEYS, &reader);
                cache.put(KEYS + key, 0, &reader);
                assert!(cache.remove(&(KEYS + key), &reader));
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        let mut reader = DOMAIN.register();
        for turn in 0..60 {
            cache.resize(64 << (turn % 6), &mut reader);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(cache.len(), KEYS as usize);
}

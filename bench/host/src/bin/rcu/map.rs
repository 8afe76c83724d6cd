//! Gets from a table: the example's, that is read under RCU, beside shards of locked maps and DashMap.

use std::{
    cell::Cell,
    collections::HashMap,
    hash::{BuildHasher, Hasher},
    hint::black_box,
    sync::{
        PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use rcu::{domain, user::Reader};

use crate::{
    table::Cache,
    team::{Record, Scale, Subject, against, measure, print, verdict},
};

domain!(static DOMAIN: Maps);

const KEYS: u64 = 100_000;
const SHARDS: usize = 64;
/// Between two resizes.
const PAUSE: Duration = Duration::from_micros(200);

thread_local! {
    static READER: Reader<'static, Maps> = DOMAIN.register();
    static SEED: Cell<u64> = const { Cell::new(1) };
}

/// The same cheap hash for all.
#[derive(Clone, Copy, Default)]
struct Mixer;
struct Mixing(u64);

impl BuildHasher for Mixer {
    type Hasher = Mixing;
    fn build_hasher(&self) -> Mixing {
        Mixing(0)
    }
}

impl Hasher for Mixing {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }
    fn write_u64(&mut self, n: u64) {
        let wide = u128::from(self.0 ^ n ^ 0x9E37_79B9_7F4A_7C15) * 0xD6E8_FEB8_6659_FD93;
        self.0 = (wide >> 64) as u64 ^ wide as u64;
    }
}

fn next() -> u64 {
    let seed = SEED.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    SEED.set(seed);
    seed >> 33
}

struct Shards([RwLock<HashMap<u64, u64, Mixer>>; SHARDS]);

impl Shards {
    fn of(&self, key: u64) -> &RwLock<HashMap<u64, u64, Mixer>> {
        // Of bits that choose no place in a map of these sizes.
        &self.0[(Mixer.hash_one(key) >> 40) as usize & (SHARDS - 1)]
    }
    fn get(&self, key: u64) -> Option<u64> {
        self.of(key).read().unwrap_or_else(PoisonError::into_inner).get(&key).copied()
    }
    fn put(&self, key: u64, value: u64) {
        self.of(key).write().unwrap_or_else(PoisonError::into_inner).insert(key, value);
    }
}

/// With each number of threads.
pub fn run(scale: &Scale) -> Vec<Record> {
    let cache: Cache<u64, u64, Maps, Mixer> = Cache::new(KEYS as usize, Mixer);
    let shards = Shards(std::array::from_fn(|_| RwLock::new(HashMap::with_hasher(Mixer))));
    let dash: dashmap::DashMap<u64, u64, Mixer> = dashmap::DashMap::with_hasher(Mixer);
    READER.with(|reader| {
        for key in 0..KEYS {
            cache.put(key, key, reader);
            shards.put(key, key);
            dash.insert(key, key);
        }
    });
    let mut all = Vec::new();
    for &threads in &scale.threads {
        for (bench, writes) in [("map_get", 0u32), ("map_get_put_1", 10), ("map_get_put_10", 100)] {
            println!("{bench}, {threads} threads: {KEYS} keys, {} % puts", f64::from(writes) / 10.0);
            let is_put = |n: u64| (n * 1000) >> 31 < u64::from(writes);
            let subjects = [
                Subject::new("rcu table", |_, ops| {
                    READER.with(|reader| {
                        (0..ops).for_each(|_| {
                            let key = next() % KEYS;
                            if is_put(next()) {
                                cache.put(key, key, reader);
                            } else {
                                black_box(cache.get(&key, &reader.read()).copied());
                            }
                        });
                    });
                }),
                Subject::new("sharded RwLock", |_, ops| {
                    (0..ops).for_each(|_| {
                        let key = next() % KEYS;
                        if is_put(next()) { shards.put(key, key) } else { _ = black_box(shards.get(key)) }
                    });
                }),
                Subject::new("DashMap", |_, ops| {
                    (0..ops).for_each(|_| {
                        let key = next() % KEYS;
                        if is_put(next()) {
                            dash.insert(key, key);
                        } else {
                            black_box(dash.get(&key).map(|value| *value));
                        }
                    });
                }),
            ];
            let records = measure(bench, threads, scale.turns, scale.operations >> 3, &subjects);
            print(&records);
            all.extend(records);
        }
        all.extend(resized(&cache, threads, scale));
    }
    all
}

/// Gets while another thread resizes, beside gets while it only sleeps.
fn resized(cache: &Cache<u64, u64, Maps, Mixer>, threads: usize, scale: &Scale) -> Vec<Record> {
    println!("map_resize, {threads} threads, and one that resizes every {PAUSE:?}");
    let (resizes, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    let gets = |ops: u64| {
        READER.with(|reader| {
            (0..ops).for_each(|_| {
                let found = black_box(cache.get(&(next() % KEYS), &reader.read()).copied());
                assert!(found.is_some(), "a key is lost");
            });
        });
    };
    thread::scope(|scope| {
        let resizer = scope.spawn(|| {
            let (mut reader, mut count) = (DOMAIN.register(), 0u64);
            while !stop.load(Ordering::Relaxed) {
                if resizes.load(Ordering::Relaxed) {
                    cache.resize((KEYS as usize) << (count % 2), &mut reader);
                    count += 1;
                }
                thread::sleep(PAUSE);
            }
            count
        });
        let subjects = [
            Subject::new("get", |_, ops| {
                resizes.store(false, Ordering::Relaxed);
                gets(ops);
            }),
            Subject::new("get while resized", |_, ops| {
                resizes.store(true, Ordering::Relaxed);
                gets(ops);
            }),
        ];
        let records = measure("map_resize", threads, scale.turns, scale.operations >> 3, &subjects);
        stop.store(true, Ordering::Relaxed);
        print(&records);
        verdict("a get during resizes", against(&records, "get while resized", &["get"]), 1.0 / 0.95);
        println!("  {} resizes", resizer.join().unwrap_or(0));
        records
    })
}

//! A cache of keys and values that is read by some threads, changed by another and resized by a third all the while.
//!
//!     cargo run --release -p quire-rcu --features std --example kvcache

mod table;

use std::{
    hash::RandomState,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use rcu::domain;
use table::Cache;

domain!(static CACHES: Caches);

/// Keys that stay; others come and go.
const KEYS: u64 = 10_000;

fn main() {
    let cache: Cache<u64, String, Caches, RandomState> = Cache::new(1024, RandomState::new());
    let here = CACHES.register();
    (0..KEYS).for_each(|key| cache.put(key, format!("value of {key}"), &here));
    let (stop, gets, lost) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let begun = Instant::now();
    let (puts, resizes) = thread::scope(|scope| {
        for first in 0..2 {
            let (cache, stop, gets, lost) = (&cache, &stop, &gets, &lost);
            scope.spawn(move || {
                let reader = CACHES.register();
                let mut key = first;
                while !stop.load(Ordering::Relaxed) {
                    key = (key + 7919) % KEYS;
                    let section = reader.read();
                    let is_there = cache.get(&key, &section).is_some();
                    drop(section);
                    (if is_there { gets } else { lost }).fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let writer = scope.spawn(|| {
            let reader = CACHES.register();
            let mut puts = 0;
            while !stop.load(Ordering::Relaxed) {
                let key = puts % KEYS;
                cache.put(key, format!("value {puts} of {key}"), &reader);
                cache.put(KEYS + key, String::new(), &reader);
                cache.remove(&(KEYS + key), &reader);
                puts += 1;
            }
            puts
        });
        let resizer = scope.spawn(|| {
            let mut reader = CACHES.register();
            let mut resizes = 0;
            while !stop.load(Ordering::Relaxed) {
                cache.resize(if resizes % 2 == 0 { 16 << 10 } else { 1 << 10 }, &mut reader);
                resizes += 1;
            }
            resizes
        });
        thread::sleep(Duration::from_secs(1));
        stop.store(true, Ordering::Relaxed);
        (writer.join().unwrap_or(0), resizer.join().unwrap_or(0))
    });
    let seconds = begun.elapsed().as_secs_f64();
    let section = here.read();
    println!(
        "{} keys in {} buckets; in {seconds:.1} s {} gets, {} keys not found, {puts} puts, {resizes} resizes",
        cache.len(),
        cache.buckets(&section),
        gets.load(Ordering::Relaxed),
        lost.load(Ordering::Relaxed)
    );
    println!("{:?}", CACHES.stats());
}

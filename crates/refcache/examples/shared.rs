//! Threads that clone and drop references to one value as fast as they can, and how often each did: with `Arc`, and with
//! counts that are held back by each thread.
//!
//!     cargo run --release -p quire-refcache --features std --example shared [THREADS]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use refcache::{Shared, Threads};

const TIME: Duration = Duration::from_millis(500);

/// Clones and drops of all threads in `TIME`.
fn count<T: Clone + Send + Sync>(threads: usize, value: &T) -> u64 {
    let (stop, total) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut done = 0;
                while !stop.load(Ordering::Relaxed) {
                    for _ in 0..100 {
                        drop(std::hint::black_box(value.clone()));
                    }
                    done += 100;
                }
                total.fetch_add(done, Ordering::Relaxed);
            });
        }
        thread::sleep(TIME);
        stop.store(true, Ordering::Relaxed);
    });
    total.into_inner()
}

/// Tells when it is dropped.
struct Value<'a>(&'a AtomicU64);

impl Drop for Value<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn main() {
    static DROPPED: AtomicU64 = AtomicU64::new(0);
    let threads = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(2);
    let each_us = |n: u64| n as f64 / TIME.as_micros() as f64;
    let arc = Arc::new(Value(&DROPPED));
    let exact = count(threads, &arc);
    drop(arc);
    let shared = Shared::new(Value(&DROPPED));
    // This thread waits for the others: they don't wait for it.
    let held_back = Threads::idle(|| count(threads, &shared));
    println!(
        "{threads} threads: Arc {:.1}, Shared {:.1} clones a microsecond",
        each_us(exact),
        each_us(held_back)
    );
    drop(shared);
    while DROPPED.load(Ordering::Relaxed) < 2 {
        Threads::work();
    }
    println!("both values have been dropped: {:?}", Threads::stats());
}

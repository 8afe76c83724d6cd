//! Larger runs than the models': readers, updaters and barriers at once, in schedules drawn at random and by probabilistic concurrency
//! testing. Shuttle has one order of memory, so what it finds are faults of the protocol, not of its orderings.
//!
//! Run with `RUSTFLAGS="--cfg shuttle" cargo test --release -p quire-rcu --test shuttle_user`.
#![cfg(shuttle)]

use std::sync::Arc;

use rcu::{Ptr, user::Domain};
use shuttle::{
    Config, Runner,
    rand::{Rng, thread_rng},
    scheduler::{PctScheduler, RandomScheduler, Scheduler},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

enum Brand {}

/// Counts its end, and is visibly dead after it.
struct Object {
    alive: AtomicBool,
    ends: Arc<AtomicUsize>,
}

impl Drop for Object {
    fn drop(&mut self) {
        assert!(self.alive.swap(false, Ordering::SeqCst), "ended twice");
        self.ends.fetch_add(1, Ordering::SeqCst);
    }
}

struct Sim {
    domain: Domain<Brand>,
    at: [Ptr<Object, Brand>; 2],
    ends: Arc<AtomicUsize>,
    retired: AtomicUsize,
}

impl Sim {
    fn object(&self) -> Box<Object> {
        Box::new(Object { alive: AtomicBool::new(true), ends: self.ends.clone() })
    }
    fn read(&self) {
        let reader = self.domain.register();
        for turn in 0..4 {
            let outer = reader.read();
            let found = self.at[turn % 2].load(&outer);
            let inner = reader.read();
            let other = self.at[(turn + 1) % 2].load(&inner);
            assert!(other.is_none_or(|object| object.alive.load(Ordering::SeqCst)), "found what is freed");
            if turn % 2 == 0 {
                drop(inner);
                thread::yield_now();
            } else {
                thread::yield_now();
                drop(inner);
            }
            assert!(found.is_none_or(|object| object.alive.load(Ordering::SeqCst)), "found what is freed");
        }
    }
    fn update(&self) {
        let mut reader = self.domain.register();
        for turn in 0..4 {
            let Some(old) = self.at[turn % 2].assign(self.object(), &mut ()) else { continue };
            self.retired.fetch_add(1, Ordering::SeqCst);
            match thread_rng().gen_range(0..4) {
                0 => reader.free(old),
                1 => {
                    reader.call(old);
                    let before = self.retired_here();
                    reader.barrier();
                    assert!(self.ends.load(Ordering::SeqCst) >= before);
                }
                _ => reader.call(old),
            }
        }
    }
    /// What is surely retired by now: all but what an updater has just taken out.
    fn retired_here(&self) -> usize {
        self.retired.load(Ordering::SeqCst).saturating_sub(1)
    }
}

fn everything_at_once() {
    // SAFETY: an execution has one domain.
    let domain = unsafe { Domain::new() };
    let ends = Arc::new(AtomicUsize::new(0));
    let sim =
        Sim { domain, at: [Ptr::none(), Ptr::none()], ends: ends.clone(), retired: AtomicUsize::new(0) };
    assert!(sim.domain.use_fences());
    let sim = Arc::new(sim);
    let start = |work: fn(&Sim)| {
        let sim = sim.clone();
        thread::spawn(move || work(&sim))
    };
    let threads = [start(Sim::read), start(Sim::read), start(Sim::update), start(Sim::update)];
    threads.into_iter().for_each(|thread| thread.join().expect("the thread went well"));
    sim.domain.barrier_unregistered();
    assert_eq!(ends.load(Ordering::SeqCst), sim.retired.load(Ordering::SeqCst));
    let retired = sim.retired.load(Ordering::SeqCst);
    drop(Arc::into_inner(sim).expect("all threads are gone"));
    assert_eq!(ends.load(Ordering::SeqCst), retired + 2, "what is current ends with its pointers");
}

fn explore(scheduler: impl Scheduler + 'static) {
    let mut config = Config::new();
    config.stack_size = 1 << 20;
    Runner::new(scheduler, config).run(everything_at_once);
}

/// How many schedules, or as many as `QUIRE_SCHEDULES` says.
fn schedules() -> usize {
    std::env::var("QUIRE_SCHEDULES").ok().and_then(|n| n.parse().ok()).unwrap_or(2_000)
}

#[test]
fn nothing_is_freed_early_at_random() {
    explore(RandomScheduler::new(schedules()));
}

/// As few switches as a fault needs, at random places.
#[test]
fn nothing_is_freed_early_with_few_switches() {
    explore(PctScheduler::new(3, schedules()));
}

//! Every interleaving and weak-memory outcome of readers of the user-space domain with updaters, and of what retires.
//!
//! Models run the fences that stand in for `membarrier`. Waiting is a few steps that give up: what isn't over then isn't freed.
//! Run with `RUSTFLAGS="--cfg loom" cargo test --release -p quire-rcu --test loom_user`.
#![cfg(loom)]

use std::{ptr::NonNull, sync::Arc};

use loom::{
    cell::UnsafeCell,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};
use percpu::testing::explore;
use rcu::{Link, ptr::Retired, user::Domain};

enum Brand {}

/// An object whose uses loom watches: its end writes what readers read.
struct Object {
    value: UnsafeCell<()>,
    ends: Arc<AtomicUsize>,
}

// SAFETY: loom fails the test if two uses of a cell race; that none do is what is shown.
unsafe impl Sync for Object {}
// SAFETY: as above.
unsafe impl Send for Object {}

impl Drop for Object {
    fn drop(&mut self) {
        self.value.with_mut(|_| ());
        self.ends.fetch_add(1, Ordering::Relaxed);
    }
}

struct Sim {
    domain: Domain<Brand>,
    current: Link<Object, Brand>,
    ends: Arc<AtomicUsize>,
}

impl Sim {
    fn new() -> Arc<Self> {
        let ends = Arc::new(AtomicUsize::new(0));
        // SAFETY: an execution has one domain.
        let domain = unsafe { Domain::new() };
        let sim = Self { domain, current: Link::none(), ends };
        assert!(sim.domain.use_fences());
        sim.publish();
        Arc::new(sim)
    }
    /// Publish an object; what was there.
    fn publish(&self) -> Option<NonNull<Object>> {
        let object = Box::leak(Box::new(Object { value: UnsafeCell::new(()), ends: self.ends.clone() }));
        object.value.with_mut(|_| ());
        let old = self.current.peek();
        // SAFETY: a box, that is freed only after a period.
        unsafe { self.current.publish(Some(object.into())) };
        old
    }
    fn retire(&self) -> Retired<Object, Brand> {
        // SAFETY: unlinked just now, and once.
        unsafe { Retired::new(self.publish().expect("there was one")) }
    }
    /// So many sections of a thread's.
    fn read(&self, sections: usize) {
        let reader = self.domain.register();
        for _ in 0..sections {
            let section = reader.read();
            if let Some(object) = self.current.load(&section) {
                object.value.with(|_| ());
            }
        }
    }
    /// Publish another object, and free the old one if a period ends within so many steps.
    fn replace(&self, steps: usize) {
        let old = self.publish().expect("there was one");
        let need = self.domain.snap();
        if (0..steps).any(|_| self.domain.poll(need)) {
            // SAFETY: it was a box, and that no section finds it is what is shown.
            drop(unsafe { Box::from_raw(old.as_ptr()) });
        }
    }
}

fn spawn(sim: &Arc<Sim>, f: impl Fn(&Sim) + 'static) -> thread::JoinHandle<()> {
    let sim = sim.clone();
    thread::spawn(move || f(&sim))
}

fn join(thread: thread::JoinHandle<()>) {
    thread.join().expect("the thread went well");
}

#[test]
fn nothing_is_freed_under_two_sections() {
    explore("user: a reader of two sections, a period", None, || {
        let sim = Sim::new();
        let reader = spawn(&sim, |sim| sim.read(2));
        sim.replace(1);
        join(reader);
    });
}

#[test]
fn nothing_is_freed_in_two_periods() {
    explore("user: a reader of two sections, two periods", None, || {
        let sim = Sim::new();
        let reader = spawn(&sim, |sim| sim.read(2));
        sim.replace(1);
        sim.replace(1);
        join(reader);
    });
}

#[test]
fn nothing_is_freed_under_two_readers() {
    explore("user: two readers, a period", Some(3), || {
        let sim = Sim::new();
        let readers = [spawn(&sim, |sim| sim.read(1)), spawn(&sim, |sim| sim.read(1))];
        sim.replace(1);
        readers.into_iter().for_each(join);
    });
}

/// The updater may take another's period for its own, if that began late enough.
#[test]
fn periods_are_shared() {
    explore("user: a shared period", Some(4), || {
        let sim = Sim::new();
        let reader = spawn(&sim, |sim| sim.read(1));
        let other = spawn(&sim, |sim| {
            let need = sim.domain.snap();
            sim.domain.poll(need);
        });
        sim.replace(1);
        join(reader);
        join(other);
    });
}

/// `flush` hands over, drives, and frees what is due.
#[test]
fn what_is_called_is_freed_once_and_late_enough() {
    explore("user: call against a reader", None, || {
        let sim = Sim::new();
        let reader = spawn(&sim, |sim| sim.read(1));
        {
            let updater = sim.domain.register();
            updater.call(sim.retire());
            updater.flush();
        }
        join(reader);
        sim.domain.barrier_unregistered();
        assert_eq!(sim.ends.load(Ordering::Relaxed), 1);
    });
}

/// A thread puts into its bag while another takes all bags.
#[test]
fn bags_are_taken_whole() {
    explore("user: a bag is put into and taken", Some(3), || {
        let sim = Sim::new();
        let owner = spawn(&sim, |sim| {
            let reader = sim.domain.register();
            reader.call(sim.retire());
        });
        sim.domain.barrier_unregistered();
        join(owner);
        sim.domain.barrier_unregistered();
        assert_eq!(sim.ends.load(Ordering::Relaxed), 1);
    });
}

/// What a call has left in the bag is on its way to limbo, by the next call, when another thread waits for it.
#[test]
fn a_barrier_waits_for_bags_on_their_way() {
    explore("user: a barrier, and a bag on its way", Some(2), || {
        let (sim, called) = (Sim::new(), Arc::new(AtomicUsize::new(0)));
        let seen = called.clone();
        let owner = spawn(&sim, move |sim| {
            let reader = sim.domain.register();
            reader.call(sim.retire());
            called.store(1, Ordering::Release);
            reader.call(sim.retire());
        });
        let before = seen.load(Ordering::Acquire);
        sim.domain.barrier_unregistered();
        assert!(sim.ends.load(Ordering::Relaxed) >= before, "a barrier has not waited");
        join(owner);
    });
}

//! Every interleaving, and every order in which memory may be seen, of two CPUs that count one object's references.
//!
//! The object has a cell that loom watches: who has a reference reads it, and its end writes it. So an end that comes too
//! early, or isn't ordered after the last use, is a race. At the end of each execution every object has ended once.
#![cfg(loom)]

use std::ptr::NonNull;

use loom::{
    cell::UnsafeCell,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
};
use percpu::{CpuId, Pinned, testing::explore};
use refcache::{AllStopped, Budget, Counted, Domain, RefHead, word};

const A: usize = 0;
const B: usize = 1;

#[repr(C)]
struct Object {
    head: RefHead,
    value: UnsafeCell<()>,
    ends: AtomicUsize,
}

// SAFETY: the head is the first field, made for this type.
unsafe impl Counted for Object {
    fn head(&self) -> &RefHead {
        &self.head
    }
    unsafe fn dispose(this: NonNull<Self>, _: &Pinned<'_>) {
        // SAFETY: the models' objects outlive their domains.
        let this = unsafe { this.as_ref() };
        this.value.with_mut(|_| ());
        this.ends.fetch_add(1, Ordering::Relaxed);
    }
}

/// CPU number `cpu`, of which one thread at a time plays each.
fn pin(cpu: usize) -> Pinned<'static> {
    // SAFETY: a model gives each CPU to one thread, and the main thread has both before and after.
    unsafe { Pinned::assume(CpuId::new(cpu).expect("a CPU")) }
}

struct Sim {
    domain: Domain<1>,
    o: Object,
    weak: AtomicU64,
    /// Whether a reference that A has counted waits for B.
    passed: AtomicBool,
}

// SAFETY: loom fails a model if two uses of a cell race; that none do is what is shown.
unsafe impl Send for Sim {}
// SAFETY: as above.
unsafe impl Sync for Sim {}

impl Sim {
    /// Two CPUs at the beginning of an epoch, and an object with `refs` references.
    fn new(refs: i64) -> Arc<Self> {
        Self::of(2, refs)
    }
    /// The same with so many CPUs.
    fn of(cpus: usize, refs: i64) -> Arc<Self> {
        let sim = Arc::new(Self {
            domain: Domain::new(cpus),
            o: Object {
                head: RefHead::new::<Object>(refs),
                value: UnsafeCell::new(()),
                ends: AtomicUsize::new(0),
            },
            weak: AtomicU64::new(0),
            passed: AtomicBool::new(false),
        });
        (0..cpus).for_each(|cpu| sim.domain.unpark(&pin(cpu)));
        // The first has come into an empty tree, which moved the epoch on.
        sim.work(A);
        (0..cpus).for_each(|cpu| sim.work(cpu));
        sim
    }
    fn add(&self, cpu: usize, n: i32) {
        // SAFETY: by the models' books.
        unsafe { self.domain.add(&self.o, n, &pin(cpu)) }
    }
    fn work(&self, cpu: usize) {
        self.domain.work(&pin(cpu), Budget::ALL);
    }
    /// What is done with a reference.
    fn enjoy(&self) {
        self.o.value.with(|_| ());
    }
    fn get(&self, cpu: usize) -> bool {
        // SAFETY: the word is empty, or a link to the object, whose word it is.
        unsafe { self.domain.try_get::<Object>(&self.weak, &pin(cpu)) }.is_some()
    }
    fn set_weak(&self, on: bool) {
        // SAFETY: the caller has a reference; the word lives as long as the object.
        unsafe { self.domain.set_weak(&self.o, on.then_some(&self.weak)) };
    }
    /// Set the weak word, and publish the link.
    fn name(&self) {
        self.set_weak(true);
        // Release: partner: the load in `try_get`.
        self.weak.store(word::link(&self.o), Ordering::Release);
    }
    /// Without references everything comes to an end.
    fn end(&self) {
        // SAFETY: the other thread has been joined.
        let stopped = unsafe { AllStopped::assume() };
        assert_eq!(self.domain.exact(&self.o, &stopped), 0);
        self.domain.settle(&stopped);
        assert_eq!(self.o.ends.load(Ordering::Relaxed), 1);
    }
}

/// Two CPUs at once, and the end.
fn both(sim: Arc<Sim>, a: impl Fn(&Sim), b: impl Fn(&Sim) + Send + 'static) {
    let other = sim.clone();
    let thread = thread::spawn(move || b(&other));
    a(&sim);
    thread.join().expect("CPU 1 went well");
    sim.end();
}

/// B gets a reference while A judges the object: one of them wins, and who has won a reference keeps the object.
#[test]
fn getting_a_reference_against_the_kill() {
    explore("try_get against kill", None, || {
        let sim = Sim::new(1);
        sim.name();
        sim.add(A, -1);
        // Queued in this epoch, and due in the one that begins.
        [A, B, A, B].into_iter().for_each(|cpu| sim.work(cpu));
        let get = |sim: &Sim| {
            if sim.get(B) {
                sim.enjoy();
                sim.work(B);
                sim.enjoy();
                sim.add(B, -1);
            }
        };
        both(
            sim,
            |sim| {
                sim.work(A);
                sim.work(A);
            },
            get,
        );
    });
}

/// B gets a reference while A finds the count to be 0, and marks the word.
#[test]
fn getting_a_reference_against_the_mark() {
    explore("try_get against mark", None, || {
        let sim = Sim::new(1);
        sim.name();
        sim.add(A, -1);
        let get = |sim: &Sim| {
            if sim.get(B) {
                sim.work(B);
                sim.enjoy();
                sim.work(B);
                sim.add(B, -1);
            }
        };
        both(sim, |sim| (0..2).for_each(|_| sim.work(A)), get);
    });
}

/// B has flushed in the epoch after the one in which A marked the word: it sees the mark, or A is still waiting for it.
#[test]
fn getting_a_reference_after_a_flush() {
    explore("try_get after a flush", None, || {
        let sim = Sim::new(1);
        sim.name();
        sim.add(A, -1);
        let get = |sim: &Sim| {
            (0..2).for_each(|_| sim.work(B));
            if sim.get(B) {
                sim.enjoy();
                sim.add(B, -1);
            }
        };
        both(sim, |sim| (0..3).for_each(|_| sim.work(A)), get);
    });
}

/// A passes a reference on and forgets its own; their changes lie in two caches.
#[test]
fn a_reference_that_is_passed_on() {
    explore("relay", None, || {
        let pass = |sim: &Sim| {
            sim.add(A, 1);
            // Release: the change is this CPU's before B has the reference.
            sim.passed.store(true, Ordering::Release);
            sim.enjoy();
            sim.add(A, -1);
            sim.work(A);
            sim.work(A);
        };
        let take = |sim: &Sim| {
            sim.work(B);
            // Acquire: partner above.
            if sim.passed.load(Ordering::Acquire) {
                sim.enjoy();
                sim.add(B, -1);
            }
            sim.work(B);
        };
        let sim = Sim::new(1);
        let other = sim.clone();
        let taken = thread::spawn(move || take(&other));
        pass(&sim);
        taken.join().expect("CPU 1 went well");
        // SAFETY: the other thread has been joined.
        let stopped = unsafe { AllStopped::assume() };
        match sim.domain.exact(&sim.o, &stopped) {
            0 => {}
            // B came too early.
            1 => sim.add(B, -1),
            n => panic!("{n} references"),
        }
        sim.end();
    });
}

/// The last CPU to arrive moves the epoch on while the other begins the next flush, and arrives again.
#[test]
fn the_last_arrival_against_the_next_flush() {
    explore("last arriver against next flush", None, || {
        let sim = Sim::new(2);
        let epoch = sim.domain.epoch();
        let give_up = |cpu| {
            move |sim: &Sim| {
                sim.enjoy();
                sim.add(cpu, -1);
                (0..2).for_each(|_| sim.work(cpu));
                let now = sim.domain.epoch();
                assert!((epoch..=epoch + 2).contains(&now), "from {epoch} to {now}");
            }
        };
        both(sim, give_up(A), give_up(B));
    });
}

/// B gives the object a weak word while A finds the count to be 0.
#[test]
fn setting_the_weak_word_against_the_mark() {
    explore("set_weak against mark", None, || {
        let sim = Sim::new(1);
        sim.add(B, 1);
        sim.add(A, -1);
        let name = |sim: &Sim| {
            sim.name();
            let got = sim.get(B);
            assert!(got, "the object has a reference");
            sim.enjoy();
            sim.add(B, -2);
        };
        both(sim, |sim| sim.work(A), name);
    });
}

/// Once the word is taken away, it is the client's again.
#[test]
fn taking_the_weak_word_away_against_the_mark() {
    explore("set_weak(None) against mark and kill", None, || {
        const OTHER: u64 = 0x70;
        let sim = Sim::new(1);
        sim.name();
        sim.add(B, 1);
        sim.add(A, -1);
        let take = |sim: &Sim| {
            sim.set_weak(false);
            // Relaxed, as below: that nobody else writes is what is shown.
            sim.weak.store(OTHER, Ordering::Relaxed);
            sim.enjoy();
            sim.add(B, -1);
            assert_eq!(sim.weak.load(Ordering::Relaxed), OTHER);
        };
        both(sim, |sim| (0..2).for_each(|_| sim.work(A)), take);
    });
}

/// B gets a dying object and takes its weak word away, with which goes what showed the revival.
#[test]
fn reviving_and_taking_the_weak_word_away_against_the_review() {
    explore("try_get and set_weak(None) against review", None, || {
        let sim = Sim::new(1);
        sim.name();
        sim.add(A, -1);
        // Queued and marked by A; B has flushed in that epoch and the next before it gets the object.
        [A, B, B].into_iter().for_each(|cpu| sim.work(cpu));
        let revive = |sim: &Sim| {
            if sim.get(B) {
                sim.set_weak(false);
                // Relaxed: nobody else writes it any more.
                sim.weak.store(word::EMPTY, Ordering::Relaxed);
                sim.enjoy();
                sim.work(B);
                sim.enjoy();
                sim.add(B, -1);
            }
        };
        both(sim, |sim| (0..2).for_each(|_| sim.work(A)), revive);
    });
}

/// B, which has been away, takes part again while A moves the epoch on.
#[test]
fn joining_against_the_advance() {
    explore("unpark against advance", None, || {
        let sim = Sim::new(1);
        sim.domain.leave(&pin(B));
        sim.name();
        let come = |sim: &Sim| {
            if sim.get(B) {
                sim.enjoy();
                sim.work(B);
                sim.enjoy();
                sim.add(B, -1);
            }
        };
        both(
            sim,
            |sim| {
                sim.add(A, -1);
                (0..3).for_each(|_| sim.work(A));
            },
            come,
        );
    });
}

/// B leaves while A arrives: one of them moves the epoch on, and A goes on alone.
#[test]
fn leaving_against_the_last_arrival() {
    explore("leave against last arriver", None, || {
        let sim = Sim::new(1);
        sim.add(B, -1);
        let epoch = sim.domain.epoch();
        let other = sim.clone();
        let left = thread::spawn(move || {
            other.domain.leave(&pin(B));
        });
        sim.work(A);
        left.join().expect("CPU 1 went well");
        assert!(sim.domain.epoch() > epoch, "nobody moved the epoch on");
        (0..3).for_each(|_| sim.work(A));
        assert!(sim.domain.epoch() >= epoch + 3, "CPU 0 waits for who has left");
        sim.end();
    });
}

/// B has arrived, and leaves while A, the last, arrives: its leaving doesn't count as the arrival of another. A third, which
/// arrived before it got a reference, is awaited in the next epoch.
#[test]
fn leaving_after_the_arrival_against_the_last() {
    const C: usize = 2;
    explore("leave after arrival against last arriver", None, || {
        let sim = Sim::of(3, 2);
        sim.work(C);
        sim.add(C, 1);
        sim.work(B);
        // A's own, and the one that B has had.
        sim.add(A, -2);
        let other = sim.clone();
        let left = thread::spawn(move || {
            other.domain.leave(&pin(B));
        });
        sim.work(A);
        sim.work(A);
        left.join().expect("CPU 1 went well");
        sim.work(A);
        sim.enjoy();
        sim.add(C, -1);
        sim.end();
    });
}

/// Both leave at once and come back one by one.
#[test]
fn leaving_and_coming_back() {
    explore("leave and unpark", None, || {
        let sim = Sim::new(2);
        let rest = |cpu| {
            move |sim: &Sim| {
                sim.domain.leave(&pin(cpu));
                sim.add(cpu, -1);
                sim.work(cpu);
            }
        };
        both(sim, rest(A), rest(B));
    });
}

/// Both leave at once, one with an object for review: somebody is told, and reviews it.
#[test]
fn nothing_is_left_behind_when_all_leave() {
    explore("both leave", None, || {
        let sim = Sim::new(1);
        sim.add(B, -1);
        let other = sim.clone();
        let left = thread::spawn(move || other.domain.leave(&pin(B)));
        let stays = [sim.domain.leave(&pin(A)), left.join().expect("CPU 1 went well")];
        assert!(stays[A] != stays[B], "both or none were told");
        let stays = if stays[A] { A } else { B };
        sim.domain.unpark(&pin(stays));
        (0..4).for_each(|_| sim.work(stays));
        assert_eq!(sim.o.ends.load(Ordering::Relaxed), 1);
        assert!(!sim.domain.leave(&pin(stays)) && sim.domain.is_quiet());
    });
}

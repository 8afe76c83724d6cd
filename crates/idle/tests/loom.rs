//! Every interleaving, and every order in which memory may be seen, of two CPUs that become idle, with something to collect
//! in Refcache and in RCU.
//!
//! An object has a cell that loom watches: who has a reference reads it, and its end writes it. So an end that a napping CPU
//! wasn't awaited for is a race. When the threads are done, CPUs that must come back do so, one after the other, until all are
//! asleep; then everything has ended, once.
#![cfg(loom)]

use std::ptr::NonNull;

use idle::{Announcement, Collect, Domains, Halt, Idle, State};
use loom::{
    cell::UnsafeCell,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};
use percpu::{CpuId, Pinned, testing::explore};
use refcache::{Budget, Counted, RefHead};

const A: usize = 0;
const B: usize = 1;

const TICK: u64 = 10;
/// CPUs are idle since this moment, at which they have ticked.
const SINCE: u64 = 100;
/// One that has just begun to idle, and one that has idled for long.
const SHORT: Idle = Idle { since: SINCE, now: SINCE, tick: TICK };
const LONG: Idle = Idle { since: SINCE, now: SINCE + TICK, tick: TICK };

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

/// What RCU delays.
#[repr(C)]
struct Retired {
    head: rcu::Head,
    freed: *const AtomicUsize,
}

/// # Safety
/// `head` is that of a [`Retired`] in a box.
unsafe fn free(head: NonNull<rcu::Head>, _: &Pinned<'_>) {
    // SAFETY: made of a box in `retire`, head first; the counter lives as long as the model.
    unsafe { &*Box::from_raw(head.cast::<Retired>().as_ptr()).freed }.fetch_add(1, Ordering::Relaxed);
}

fn pin(cpu: usize) -> Pinned<'static> {
    // SAFETY: a model gives each CPU to one thread, and the main thread has both before and after.
    unsafe { Pinned::assume(CpuId::new(cpu).expect("a CPU")) }
}

struct Sim {
    domains: Domains<1>,
    states: [State; 2],
    o: Object,
    freed: AtomicUsize,
}

// SAFETY: loom fails a model if two uses of a cell race; that none do is what is shown.
unsafe impl Send for Sim {}
// SAFETY: as above.
unsafe impl Sync for Sim {}

impl Sim {
    /// Two CPUs at the beginning of an epoch, and an object with a reference.
    fn new() -> Arc<Self> {
        let sim = Arc::new(Self {
            domains: Domains::new(2),
            states: [State::new(), State::new()],
            o: Object {
                head: RefHead::new::<Object>(1),
                value: UnsafeCell::new(()),
                ends: AtomicUsize::new(0),
            },
            freed: AtomicUsize::new(0),
        });
        for cpu in [A, B] {
            sim.domains.refs.unpark(&pin(cpu));
            sim.wake(cpu);
            sim.states[cpu].ticks(SINCE);
        }
        // A came into an empty tree, which moved the epoch on.
        [A, A, B].into_iter().for_each(|cpu| _ = sim.domains.refs.work(&pin(cpu), Budget::ALL));
        sim
    }
    fn add(&self, cpu: usize, n: i32) {
        // SAFETY: by the models' books.
        unsafe { self.domains.refs.add(&self.o, n, &pin(cpu)) }
    }
    fn retire(&self, cpu: usize) {
        let retired = Box::leak(Box::new(Retired { head: rcu::Head::new(), freed: &self.freed }));
        // SAFETY: nobody else knows it; `free` frees it, once.
        let retired = unsafe { rcu::Retired::new(NonNull::from(retired).cast(), free) };
        self.domains.rcu.call(&pin(cpu), retired);
        self.domains.retires(&pin(cpu));
    }
    fn tick(&self, cpu: usize) -> bool {
        self.domains.tick(&mut pin(cpu))
    }
    fn wake(&self, cpu: usize) {
        self.states[cpu].wake(&self.domains, &mut pin(cpu));
    }
    fn rest(&self, cpu: usize, idle: Idle) {
        self.states[cpu].rest(&self.domains, idle, &mut pin(cpu));
    }
    fn sleep(&self, cpu: usize, idle: Idle) -> Halt {
        self.states[cpu].sleep(&self.domains, idle, &mut pin(cpu))
    }
    /// What is done with a reference.
    fn enjoy(&self) {
        self.o.value.with(|_| ());
    }
    /// No thread runs. CPUs that have halted as told come back if they must, until all sleep.
    fn end(&self, mut halts: [Halt; 2], ends: usize, freed: usize) {
        for _ in 0..20 {
            for cpu in [A, B] {
                if halts[cpu] != Halt::Sleep {
                    self.wake(cpu);
                    self.rest(cpu, LONG);
                    halts[cpu] = self.sleep(cpu, LONG);
                }
            }
        }
        assert_eq!(halts, [Halt::Sleep; 2], "a CPU that nobody waits for goes on");
        assert_eq!(self.o.ends.load(Ordering::Relaxed), ends, "all sleep, and an object is left");
        assert_eq!(self.freed.load(Ordering::Relaxed), freed, "all sleep, and what was retired is left");
        assert!(self.domains.is_quiet());
    }
}

/// Call `a` and `b` at once, and give what they say.
fn both<R: 'static>(sim: &Arc<Sim>, a: impl Fn(&Sim) -> R, b: impl Fn(&Sim) -> R + Send + 'static) -> [R; 2] {
    let other = sim.clone();
    let thread = thread::spawn(move || b(&other));
    let a = a(sim);
    [a, thread.join().expect("CPU 1 went well")]
}

/// B has a reference of which only it knows when it naps; A gives up the other, and ticks for as long as epochs go by.
#[test]
fn nothing_ends_under_a_cpu_that_naps() {
    explore("a nap against ticks", None, || {
        let sim = Sim::new();
        // After its flush in this epoch.
        sim.domains.refs.work(&pin(B), Budget::ALL);
        sim.add(B, 1);
        // It idles, but is late with its regular work, which it does before it naps.
        sim.states[B].ticks(SINCE - TICK);
        let ticks = |sim: &Sim| {
            sim.add(A, -1);
            (0..3).for_each(|_| _ = sim.tick(A));
            Halt::No
        };
        let naps = |sim: &Sim| {
            sim.rest(B, SHORT);
            let _halt = sim.sleep(B, SHORT);
            sim.wake(B);
            sim.enjoy();
            sim.add(B, -1);
            Halt::No
        };
        let halts = both(&sim, ticks, naps);
        sim.end(halts, 1, 0);
    });
}

/// What A retires is free while B naps.
#[test]
fn grace_periods_do_not_wait_for_a_cpu_that_naps() {
    explore("a nap against a grace period", None, || {
        let sim = Sim::new();
        sim.add(B, -1);
        let retires = |sim: &Sim| {
            sim.retire(A);
            (0..4).for_each(|_| _ = sim.tick(A));
            Halt::No
        };
        let halts = both(&sim, retires, |sim| sim.sleep(B, SHORT));
        assert_eq!(halts[B], Halt::Nap(SINCE + TICK));
        (0..3).for_each(|_| _ = sim.tick(A));
        assert_eq!(sim.freed.load(Ordering::Relaxed), 1, "a grace period waits for who naps");
        sim.end(halts, 1, 1);
    });
}

/// Both fall asleep at once, and each leaves something: one goes on. B does so twice, woken in between.
#[test]
fn nothing_is_left_when_all_fall_asleep() {
    explore("both fall asleep", None, || {
        let sim = Sim::new();
        sim.add(A, -1);
        sim.retire(B);
        let twice = |sim: &Sim| {
            let _first = sim.sleep(B, LONG);
            sim.wake(B);
            sim.sleep(B, LONG)
        };
        let halts = both(&sim, |sim| sim.sleep(A, LONG), twice);
        assert!(halts.contains(&Halt::No), "both sleep");
        sim.end(halts, 1, 1);
    });
}

/// The same if all that is left is an object to review.
#[test]
fn no_object_is_left_when_all_fall_asleep() {
    explore("both fall asleep, one has given up a reference", None, || {
        let sim = Sim::new();
        sim.add(B, -1);
        let halts = both(&sim, |sim| sim.sleep(A, LONG), |sim| sim.sleep(B, LONG));
        sim.end(halts, 1, 0);
    });
}

/// The same if neither has anything in the epochs, and all that is left is what RCU delays.
#[test]
fn nothing_that_was_retired_is_left_when_all_fall_asleep() {
    explore("both fall asleep, one has retired something", None, || {
        let sim = Sim::new();
        for cpu in [A, B] {
            sim.domains.refs.leave(&pin(cpu));
        }
        let retires = |sim: &Sim| {
            sim.retire(A);
            sim.sleep(A, LONG)
        };
        let halts = both(&sim, retires, |sim| sim.sleep(B, LONG));
        sim.end(halts, 0, 1);
    });
}

/// B has something that only RCU delays, and falls asleep: at no moment does it look as if there were nothing left.
#[test]
fn it_is_not_quiet_while_something_is_handed_over() {
    explore("asking whether it is quiet against falling asleep", None, || {
        let sim = Sim::new();
        sim.domains.refs.leave(&pin(A));
        sim.retire(B);
        let halts = both(
            &sim,
            |sim| {
                assert!(!sim.domains.is_quiet(), "it looks as if there was nothing left");
                Halt::No
            },
            |sim| sim.sleep(B, LONG),
        );
        sim.end(halts, 0, 1);
    });
}

/// The same if a CPU that was no member takes what was handed over.
#[test]
fn it_is_not_quiet_while_something_is_taken_over() {
    explore("asking whether it is quiet against taking over", None, || {
        let sim = Sim::new();
        for cpu in [A, B] {
            sim.domains.refs.leave(&pin(cpu));
        }
        sim.retire(B);
        let halt = sim.sleep(B, LONG);
        let ticks = |sim: &Sim| {
            sim.tick(A);
            Halt::No
        };
        let there = sim.clone();
        let asks = thread::spawn(move || {
            assert!(!there.domains.is_quiet(), "it looks as if there was nothing left");
        });
        let halts = [ticks(&sim), halt];
        asks.join().expect("there is something left");
        sim.end(halts, 0, 1);
    });
}

/// A falls asleep while B, late with its work, does that and naps, holding back what the object's end waits for.
#[test]
fn who_naps_comes_back_to_what_is_left() {
    explore("one falls asleep, one naps", None, || {
        let sim = Sim::new();
        sim.retire(A);
        sim.states[B].ticks(SINCE - TICK);
        let naps = |sim: &Sim| {
            sim.rest(B, SHORT);
            sim.add(B, -1);
            sim.sleep(B, SHORT)
        };
        let halts = both(&sim, |sim| sim.sleep(A, LONG), naps);
        sim.end(halts, 1, 1);
    });
}

/// A thread is queued while its CPU is about to halt.
#[test]
fn what_is_queued_wakes_a_cpu_that_halts() {
    explore("announcing against queueing", None, || {
        let shared = Arc::new((Announcement::new(), AtomicUsize::new(0)));
        let there = shared.clone();
        let waker = thread::spawn(move || {
            // Relaxed, here and below: that the fences order it is what is shown.
            there.1.fetch_add(1, Ordering::Relaxed);
            there.0.is_made_after_queueing()
        });
        shared.0.make();
        let halts = shared.1.load(Ordering::Relaxed) == 0;
        let interrupted = waker.join().expect("the waker went well");
        assert!(!halts || interrupted, "a wake was lost");
    });
}

/// A asks B to tick, as who is short of memory does, and waits: B halts meanwhile for as long as nobody interrupts it.
#[test]
fn who_is_asked_to_tick_does_or_has_left() {
    explore("a request against a halt", None, || {
        let sim = Sim::new();
        sim.add(B, -1);
        // Whether B has interrupts off, or has halted: an interrupt at another time ends no halt.
        let (done, off) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(false)));
        let (other, ended, window) = (sim.clone(), done.clone(), off.clone());
        let cpu = thread::spawn(move || {
            loop {
                other.rest(B, SHORT);
                *window.lock().unwrap() = true;
                if other.sleep(B, SHORT) != Halt::No {
                    // Relaxed: the interrupt orders it.
                    if ended.load(Ordering::Relaxed) {
                        return;
                    }
                    thread::park();
                }
                *window.lock().unwrap() = false;
                other.wake(B);
            }
        });
        let state = &sim.states[B];
        if !state.is_asleep() {
            state.set_due();
            if *off.lock().unwrap() {
                cpu.thread().unpark();
            }
            while state.is_awaited() {
                thread::yield_now();
            }
        }
        done.store(true, Ordering::Relaxed);
        cpu.thread().unpark();
        cpu.join().expect("CPU 1 went well");
        sim.end([Halt::No, Halt::No], 1, 0);
    });
}

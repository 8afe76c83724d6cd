//! Six CPUs that count eight objects' references, in schedules drawn at random: longer ones than can be explored whole.
#![cfg(shuttle)]

use std::{
    ptr::NonNull,
    sync::{Arc, Mutex},
};

use percpu::{CpuId, Pinned};
use refcache::{AllStopped, Budget, Counted, Domain, RefHead, word};
use shuttle::{
    Config, Runner,
    rand::{Rng, thread_rng},
    scheduler::{PctScheduler, RandomScheduler, Scheduler},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

const CPUS: usize = 6;
const OBJECTS: usize = 8;
/// Operations of each CPU.
const STEPS: usize = 60;

/// Exact counts. The mutex is no point at which shuttle switches.
type Books = Arc<Mutex<[Entry; OBJECTS]>>;

#[derive(Clone, Copy)]
struct Entry {
    /// The true number of references, and how many of them nobody is using just now.
    refs: i64,
    free: i64,
    dead: bool,
}

#[repr(C)]
struct Object {
    head: RefHead,
    number: usize,
    weak: AtomicU64,
    /// Whether somebody is at its weak word.
    renamed: AtomicBool,
    books: Books,
}

// SAFETY: the head is the first field, made for this type.
unsafe impl Counted for Object {
    fn head(&self) -> &RefHead {
        &self.head
    }
    unsafe fn dispose(this: NonNull<Self>, _: &Pinned<'_>) {
        // SAFETY: the objects outlive their domain.
        let this = unsafe { this.as_ref() };
        let entry = &mut this.books.lock().unwrap()[this.number];
        assert_eq!(entry.refs, 0, "object {} ends, and has references", this.number);
        assert!(!entry.dead, "object {} ends twice", this.number);
        entry.dead = true;
    }
}

fn pin(cpu: usize) -> Pinned<'static> {
    // SAFETY: each CPU is one thread's, and the main thread's before and after.
    unsafe { Pinned::assume(CpuId::new(cpu).expect("a CPU")) }
}

struct Sim {
    domain: Domain<2>,
    objects: Vec<Object>,
    books: Books,
}

impl Sim {
    fn new() -> Self {
        let books: Books = Arc::new(Mutex::new([Entry { refs: 1, free: 1, dead: false }; OBJECTS]));
        let object = |number| {
            let head = RefHead::new::<Object>(1);
            Object {
                head,
                number,
                weak: AtomicU64::new(0),
                renamed: AtomicBool::new(false),
                books: books.clone(),
            }
        };
        Self { domain: Domain::new(CPUS), objects: (0..OBJECTS).map(object).collect(), books }
    }
    /// Half of the objects have weak words.
    fn name(&self) {
        for o in self.objects.iter().step_by(2) {
            // SAFETY: the object has a reference; the word lives as long.
            unsafe { self.domain.set_weak(o, Some(&o.weak)) };
            o.weak.store(word::link(o), Ordering::Release);
        }
    }
    fn add(&self, cpu: usize, o: &Object, n: i32) {
        // SAFETY: by the books.
        unsafe { self.domain.add(o, n, &pin(cpu)) }
    }
    fn entry<R>(&self, o: &Object, f: impl FnOnce(&mut Entry) -> R) -> R {
        f(&mut self.books.lock().unwrap()[o.number])
    }
    /// Take a reference, if there is one that nobody uses, to make `n` more or fewer of it.
    fn take(&self, o: &Object, n: i64) -> bool {
        self.entry(o, |e| {
            let there_is = e.free > 0;
            if there_is {
                e.free -= 1;
                e.refs += n;
            }
            there_is
        })
    }
    fn clone(&self, cpu: usize, o: &Object) {
        if self.take(o, 1) {
            self.add(cpu, o, 1);
            self.entry(o, |e| e.free += 2);
        }
    }
    fn drop(&self, cpu: usize, o: &Object) {
        if self.take(o, -1) {
            self.add(cpu, o, -1);
        }
    }
    fn get(&self, cpu: usize, o: &Object) {
        // SAFETY: the word is empty or a link to its object.
        if unsafe { self.domain.try_get::<Object>(&o.weak, &pin(cpu)) }.is_some() {
            self.entry(o, |e| {
                assert!(!e.dead, "object {} is dead, and somebody got it", o.number);
                e.refs += 1;
                e.free += 1;
            });
        }
    }
    /// Take an object's weak word away, or give it one again.
    fn rename(&self, o: &Object) {
        // One at a time, with a reference that nobody else uses.
        if o.number % 2 == 0 && self.take(o, 0) {
            if !o.renamed.swap(true, Ordering::SeqCst) {
                let named = word::is_live(o.weak.load(Ordering::SeqCst));
                // SAFETY: this has a reference; the word lives as long as the object.
                unsafe { self.domain.set_weak(o, (!named).then_some(&o.weak)) };
                if named {
                    o.weak.store(word::EMPTY, Ordering::SeqCst);
                } else {
                    o.weak.store(word::link(o), Ordering::SeqCst);
                }
                o.renamed.store(false, Ordering::SeqCst);
            }
            self.entry(o, |e| e.free += 1);
        }
    }
    fn step(&self, cpu: usize) {
        let mut rng = thread_rng();
        let o = &self.objects[rng.gen_range(0..OBJECTS)];
        match rng.gen_range(0..24) {
            0..5 => self.clone(cpu, o),
            5..11 => self.drop(cpu, o),
            11..13 => self.get(cpu, o),
            13 => self.rename(o),
            14..21 => _ = self.domain.work(&pin(cpu), Budget::ALL),
            21 => _ = self.domain.work(&pin(cpu), Budget { flushes: 1, reviews: 1 }),
            22 => _ = self.domain.park(&pin(cpu)),
            _ => _ = self.domain.leave(&pin(cpu)),
        }
    }
    fn check(&self) {
        // SAFETY: the other threads have been joined.
        let stopped = unsafe { AllStopped::assume() };
        for o in &self.objects {
            let refs = self.entry(o, |e| std::mem::take(&mut e.refs));
            assert_eq!(self.domain.exact(o, &stopped), refs, "object {}", o.number);
            if refs > 0 {
                self.add(0, o, -refs as i32);
            }
        }
        self.domain.settle(&stopped);
        assert!(self.books.lock().unwrap().iter().all(|e| e.dead), "an object is lost");
    }
}

fn everything_at_once() {
    let sim = Arc::new(Sim::new());
    sim.name();
    let threads: Vec<_> = (0..CPUS)
        .map(|cpu| {
            let sim = sim.clone();
            thread::spawn(move || (0..STEPS).for_each(|_| sim.step(cpu)))
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().expect("the CPU went well"));
    sim.check();
}

/// Run under a scheduler's schedules.
fn explore(scheduler: impl Scheduler + 'static) {
    let mut config = Config::new();
    config.stack_size = 1 << 20;
    Runner::new(scheduler, config).run(everything_at_once);
}

/// How many schedules, or as many as `QUIRE_SCHEDULES` says.
fn schedules() -> usize {
    std::env::var("QUIRE_SCHEDULES").ok().and_then(|n| n.parse().ok()).unwrap_or(5000)
}

#[test]
fn counts_are_exact_in_random_schedules() {
    explore(RandomScheduler::new(schedules()));
}

/// As few switches as a fault needs, at random places.
#[test]
fn counts_are_exact_in_schedules_of_few_switches() {
    explore(PctScheduler::new(3, schedules()));
}

//! Random operations by several CPUs against exact counts: after each step what the heads and the caches have together is
//! the number of references, no object ends that has one, and each that has none ends once.
//!
//! The CPUs are one thread, which works in pieces as small as a single change or a single review, so that the orders of
//! steps are those that real CPUs could come to.
#![cfg(not(any(loom, shuttle)))]

use std::{
    cell::Cell,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use percpu::{CpuId, Pinned};
use proptest::{collection::vec, prelude::*, test_runner::TestCaseResult};
use refcache::{AllStopped, Budget, Counted, Domain, RefHead, word};

const CPUS: usize = 3;
const OBJECTS: usize = 3;

#[repr(C)]
struct Object {
    head: RefHead,
    /// The true number of references.
    refs: Cell<i64>,
    dead: Cell<bool>,
    /// The weak word, and whether it is the object's.
    weak: AtomicU64,
    named: Cell<bool>,
}

// SAFETY: the head is the first field, made for this type.
unsafe impl Counted for Object {
    fn head(&self) -> &RefHead {
        &self.head
    }
    unsafe fn dispose(this: NonNull<Self>, _: &Pinned<'_>) {
        // SAFETY: the test's objects outlive their domains.
        let this = unsafe { this.as_ref() };
        assert_eq!(this.refs.get(), 0, "an object ends that has references");
        assert!(!this.dead.replace(true), "an object ends twice");
        assert!(this.weak.load(Ordering::Relaxed) == 0, "an object ends that can be got");
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The CPU counts so many references more, or fewer.
    Add(usize, usize, i32),
    /// One reference goes from the first CPU to the second.
    HandOver(usize, usize, usize),
    /// A reference through the weak word.
    Get(usize, usize),
    /// The word is taken away, or given again.
    Name(usize, bool),
    Work(usize, Budget),
    Park(usize),
    Leave(usize),
    Unpark(usize),
    /// Every CPU works, in this order.
    Round(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let (cpu, object) = (0..CPUS, 0..OBJECTS);
    let budget = (0..3u32, 0..3u32).prop_map(|(flushes, reviews)| Budget { flushes, reviews });
    let all = Just(Budget::ALL);
    prop_oneof![
        6 => (cpu.clone(), object.clone(), prop_oneof![Just(1), Just(-1), -3..4]).prop_map(|(c, o, n)| Step::Add(c, o, n)),
        4 => (object.clone(), cpu.clone(), cpu.clone()).prop_map(|(o, from, to)| Step::HandOver(o, from, to)),
        2 => (cpu.clone(), object.clone()).prop_map(|(c, o)| Step::Get(c, o)),
        1 => (object, any::<bool>()).prop_map(|(o, on)| Step::Name(o, on)),
        8 => (cpu.clone(), prop_oneof![budget, all]).prop_map(|(c, b)| Step::Work(c, b)),
        1 => cpu.clone().prop_map(Step::Park),
        1 => cpu.clone().prop_map(Step::Leave),
        1 => cpu.prop_map(Step::Unpark),
        2 => any::<bool>().prop_map(Step::Round),
    ]
}

fn pin(cpu: usize) -> Pinned<'static> {
    // SAFETY: the test is one thread.
    unsafe { Pinned::assume(CpuId::new(cpu).expect("a CPU")) }
}

struct Sim<const WAYS: usize> {
    domain: Domain<WAYS>,
    objects: Vec<Object>,
    stopped: AllStopped,
}

impl<const WAYS: usize> Sim<WAYS> {
    fn new(weak: bool) -> Self {
        let object = |_| Object {
            head: RefHead::new::<Object>(1),
            refs: Cell::new(1),
            dead: Cell::new(false),
            weak: AtomicU64::new(0),
            named: Cell::new(false),
        };
        // SAFETY: the test is one thread.
        let stopped = unsafe { AllStopped::assume() };
        let sim = Self { domain: Domain::new(CPUS), objects: (0..OBJECTS).map(object).collect(), stopped };
        sim.objects.iter().filter(|_| weak).for_each(|o| sim.name(o, true));
        sim
    }
    fn add(&self, cpu: usize, o: &Object, n: i32) {
        o.refs.set(o.refs.get() + i64::from(n));
        // SAFETY: by the callers' books.
        unsafe { self.domain.add(o, n, &pin(cpu)) }
    }
    fn name(&self, o: &Object, on: bool) {
        // SAFETY: the caller knows that the object has a reference; words outlive objects.
        unsafe { self.domain.set_weak(o, on.then_some(&o.weak)) };
        o.weak.store(if on { word::link(o) } else { 0 }, Ordering::Relaxed);
        o.named.set(on);
    }
    fn take(&self, step: Step) {
        match step {
            Step::Add(cpu, o, n) => {
                let o = &self.objects[o];
                let refs = o.refs.get();
                if refs > 0 {
                    self.add(cpu, o, n.max(-(refs as i32)));
                }
            }
            Step::HandOver(o, from, to) => {
                let o = &self.objects[o];
                if o.refs.get() > 0 {
                    self.add(to, o, 1);
                    self.add(from, o, -1);
                }
            }
            Step::Get(cpu, o) => {
                let o = &self.objects[o];
                // SAFETY: the word is empty or a link to its object.
                let got = unsafe { self.domain.try_get::<Object>(&o.weak, &pin(cpu)) };
                assert_eq!(got.is_some(), o.named.get() && !o.dead.get());
                o.refs.set(o.refs.get() + i64::from(got.is_some()));
            }
            Step::Name(o, on) => {
                let o = &self.objects[o];
                if o.refs.get() > 0 {
                    self.name(o, on);
                }
            }
            Step::Work(cpu, budget) => {
                let work = self.domain.work(&pin(cpu), budget);
                assert!(work.flushed <= budget.flushes && work.reviewed <= budget.reviews);
            }
            Step::Park(cpu) => drop(self.domain.park(&pin(cpu))),
            Step::Leave(cpu) => _ = self.domain.leave(&pin(cpu)),
            Step::Unpark(cpu) => self.domain.unpark(&pin(cpu)),
            Step::Round(up) => (0..CPUS).for_each(|cpu| {
                let cpu = if up { cpu } else { CPUS - 1 - cpu };
                self.domain.work(&pin(cpu), Budget::ALL);
            }),
        }
    }
    fn check(&self) -> TestCaseResult {
        for o in &self.objects {
            prop_assert_eq!(self.domain.exact(o, &self.stopped), o.refs.get());
            prop_assert!(!o.dead.get() || o.refs.get() == 0);
        }
        Ok(())
    }
    fn run(weak: bool, steps: &[Step]) -> TestCaseResult {
        let sim = Self::new(weak);
        for step in steps {
            sim.take(*step);
            sim.check()?;
        }
        // What has references outlasts any number of epochs.
        (0..8).for_each(|_| sim.take(Step::Round(true)));
        sim.check()?;
        let dead = |o: &Object| o.dead.get();
        for o in sim.objects.iter().filter(|o| o.refs.get() > 0) {
            prop_assert!(!dead(o));
            let refs = o.refs.get() as i32;
            sim.add(0, o, -refs);
        }
        sim.domain.settle(&sim.stopped);
        sim.check()?;
        prop_assert!(sim.objects.iter().all(dead), "an object is lost: {:?}", sim.domain.stats());
        prop_assert_eq!(sim.domain.stats().freed, OBJECTS as u64);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn counts_are_exact_where_everything_conflicts(weak: bool, steps in vec(step(), 1..120)) {
        Sim::<1>::run(weak, &steps)?;
    }
    #[test]
    fn counts_are_exact_with_two_ways(weak: bool, steps in vec(step(), 1..120)) {
        Sim::<2>::run(weak, &steps)?;
    }
    #[test]
    fn counts_are_exact_without_conflicts(weak: bool, steps in vec(step(), 1..120)) {
        Sim::<64>::run(weak, &steps)?;
    }
}

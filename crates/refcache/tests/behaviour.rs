//! What the crate promises, each in the least setting that shows it, and the runs that break it without one of its rules.
#![cfg(not(any(loom, shuttle)))]

use std::{
    cell::Cell,
    mem::MaybeUninit,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use percpu::{CpuId, Pinned};
use refcache::{AllStopped, Budget, Counted, Domain, MAX_DISPOSALS, RefHead, word};

/// An object that counts how often it was disposed of, and then does something.
#[repr(C)]
struct Object<'a> {
    head: RefHead,
    disposed: AtomicU64,
    then: Cell<&'a dyn Fn()>,
}

// SAFETY: the head is the first field, made for this type.
unsafe impl Counted for Object<'_> {
    fn head(&self) -> &RefHead {
        &self.head
    }
    unsafe fn dispose(this: NonNull<Self>, _: &Pinned<'_>) {
        // SAFETY: the tests' objects outlive their domains.
        let this = unsafe { this.as_ref() };
        this.disposed.fetch_add(1, Ordering::Relaxed);
        this.then.get()();
    }
}

impl<'a> Object<'a> {
    fn new(count: i64) -> Self {
        Self::then(count, &|| ())
    }
    fn then(count: i64, then: &'a dyn Fn()) -> Self {
        Self { head: RefHead::new::<Self>(count), disposed: AtomicU64::new(0), then: Cell::new(then) }
    }
    fn disposed(&self) -> u64 {
        self.disposed.load(Ordering::Relaxed)
    }
}

/// CPU number `cpu`: each test is one thread, which is all CPUs in turn.
fn pin(cpu: usize) -> Pinned<'static> {
    // SAFETY: as said.
    unsafe { Pinned::assume(CpuId::new(cpu).expect("a CPU")) }
}

fn stopped() -> AllStopped {
    // SAFETY: each test is one thread.
    unsafe { AllStopped::assume() }
}

const A: usize = 0;
const B: usize = 1;
const C: usize = 2;

/// A domain and its CPUs, all members, at the beginning of an epoch.
struct Sim<const WAYS: usize>(Domain<WAYS>);

impl<const WAYS: usize> Sim<WAYS> {
    fn new(cpus: usize) -> Self {
        let domain = Domain::new(cpus);
        (0..cpus).for_each(|cpu| domain.unpark(&pin(cpu)));
        let sim = Self(domain);
        // Of those who came into the present epoch only the first is awaited in it.
        sim.work(0);
        sim.round();
        sim
    }
    /// Change the count. The tests keep the books: nobody gives up a reference that there isn't.
    fn add(&self, cpu: usize, o: &Object<'_>, n: i32) {
        // SAFETY: by the books.
        unsafe { self.0.add(o, n, &pin(cpu)) }
    }
    /// The reference goes from a CPU to another, which counts it first.
    fn hand_over(&self, o: &Object<'_>, from: usize, to: usize) {
        self.add(to, o, 1);
        self.add(from, o, -1);
    }
    fn work(&self, cpu: usize) {
        assert!(!self.0.work(&pin(cpu), Budget::ALL).more);
    }
    /// An epoch in which the CPUs work in order.
    fn round(&self) {
        (0..self.0.cpus()).for_each(|cpu| self.work(cpu));
    }
    fn get(&self, cpu: usize, w: &AtomicU64) -> Option<NonNull<Object<'static>>> {
        // SAFETY: the tests' words are empty or link to objects that have them.
        unsafe { self.0.try_get(w, &pin(cpu)) }
    }
    /// An object with one reference, and its weak word.
    fn weak(&self, o: &Object<'_>, w: &AtomicU64) {
        // SAFETY: the tests' words outlive their objects.
        unsafe { self.0.set_weak(o, Some(w)) };
        w.store(word::link(o), Ordering::Relaxed);
    }
}

#[test]
fn an_object_is_disposed_of_once_after_its_last_reference() {
    let (o, sim) = (Object::new(1), Sim::<16>::new(2));
    sim.add(A, &o, 2);
    sim.add(B, &o, -2);
    assert_eq!(sim.0.exact(&o, &stopped()), 1);
    sim.0.settle(&stopped());
    assert_eq!(o.disposed(), 0);
    sim.add(B, &o, -1);
    sim.0.settle(&stopped());
    assert_eq!((o.disposed(), sim.0.stats().freed), (1, 1));
}

/// The place of the CPU that gives the last reference up, among those that work in an epoch, doesn't matter; nor does the
/// number of CPUs.
#[test]
fn what_is_dead_is_disposed_of_within_four_epochs() {
    for cpus in [1, 2, 9, 255] {
        for cpu in [0, cpus / 2, cpus - 1] {
            let (o, sim) = (Object::new(1), Sim::<4>::new(cpus));
            (0..3).for_each(|_| sim.round());
            let epoch = sim.0.epoch();
            sim.add(cpu, &o, -1);
            while o.disposed() == 0 {
                // A round is an epoch at least.
                assert!(
                    sim.0.epoch() < epoch + 4,
                    "{cpus} CPUs, the last {cpu}: alive in epoch {}",
                    sim.0.epoch()
                );
                sim.round();
            }
        }
    }
}

/// However the last changes lie on CPUs: each of them may once more set DIRTY, in the same epoch.
#[test]
fn what_was_shared_is_disposed_of_within_eight_epochs() {
    for cpus in [2, 3, 8, 20] {
        let (o, sim) = (Object::new(1), Sim::<4>::new(cpus));
        (0..cpus).for_each(|cpu| sim.add(cpu, &o, 1));
        sim.round();
        let epoch = sim.0.epoch();
        (0..cpus).for_each(|cpu| sim.add(cpu, &o, -1));
        sim.hand_over(&o, A, B);
        sim.add(B, &o, -1);
        while o.disposed() == 0 {
            assert!(sim.0.epoch() < epoch + 8, "{cpus} CPUs: alive in epoch {}", sim.0.epoch());
            sim.round();
        }
    }
}

#[test]
fn the_epochs_of_255_cpus_wait_for_each() {
    let (o, sim) = (Object::new(1), Sim::<2>::new(255));
    let epoch = sim.0.epoch();
    for last in [0, 7, 8, 63, 64, 254] {
        let epoch = sim.0.epoch();
        (0..255).filter(|cpu| *cpu != last).for_each(|cpu| sim.work(cpu));
        (0..255).filter(|cpu| *cpu != last).for_each(|cpu| sim.work(cpu));
        assert_eq!(sim.0.epoch(), epoch, "CPU {last} was not awaited");
        sim.work(last);
        assert_eq!(sim.0.epoch(), epoch + 1);
    }
    assert_eq!(sim.0.epoch(), epoch + 6);
    (0..255).for_each(|cpu| sim.add(cpu, &o, 1));
    (0..255).for_each(|cpu| sim.add(254 - cpu, &o, -1));
    sim.add(200, &o, -1);
    sim.0.settle(&stopped());
    assert_eq!(o.disposed(), 1);
}

/// What a flush does is what was changed, and not how large the cache is.
#[test]
fn a_flush_costs_what_was_held_back() {
    let (objects, sim) = ((0..100).map(|_| Object::new(1)).collect::<Vec<_>>(), Sim::<4096>::new(1));
    for used in [0, 1, 10, 100] {
        let before = sim.0.stats();
        for o in &objects[..used] {
            (0..50).for_each(|_| sim.add(A, o, 1));
            (0..50).for_each(|_| sim.add(A, o, -1));
        }
        let work = sim.0.work(&pin(A), Budget::ALL);
        let brought = sim.0.stats().evicted - before.evicted + u64::from(work.flushed);
        assert!(work.flushed as usize <= used && brought as usize >= used, "{work:?} of {used}");
    }
    assert!(sim.0.stats().evicted < 5 * 100, "places are used badly: {:?}", sim.0.stats());
}

/// A flush in pieces brings everything, and the CPU arrives only after the last piece.
#[test]
fn a_flush_may_be_split() {
    let (objects, sim) = ((0..10).map(|_| Object::new(0)).collect::<Vec<_>>(), Sim::<64>::new(1));
    objects.iter().for_each(|o| sim.add(A, o, 1));
    let (epoch, evicted) = (sim.0.epoch(), sim.0.stats().evicted);
    let mut flushed = 0;
    loop {
        let work = sim.0.work(&pin(A), Budget { flushes: 3, reviews: 0 });
        flushed += u64::from(work.flushed);
        if !work.more {
            break;
        }
        assert!(sim.0.epoch() == epoch && sim.0.due(&pin(A)), "it arrived too early");
        // What changes meanwhile is held back again, or goes with the rest.
        sim.add(A, &objects[0], 1);
    }
    assert!((10..=13).contains(&(flushed + evicted)), "{flushed} and {evicted} evicted");
    assert_eq!(sim.0.epoch(), epoch + 1);
    sim.0.settle(&stopped());
    let counts: Vec<_> = objects.iter().map(|o| sim.0.exact(o, &stopped())).collect();
    assert_eq!(counts[1..], [1; 9]);
    assert_eq!(counts[0], 4);
}

#[test]
fn a_round_disposes_of_256_objects_at_most() {
    let objects: Vec<_> = (0..600).map(|_| Object::new(1)).collect();
    let sim = Sim::<1024>::new(1);
    objects.iter().for_each(|o| sim.add(A, o, -1));
    let mut freed = 0;
    while freed < 600 {
        let work = sim.0.work(&pin(A), Budget::ALL);
        assert!(work.freed <= MAX_DISPOSALS);
        freed += work.freed;
        assert!(work.more || freed == 600 || work.freed < MAX_DISPOSALS);
    }
    assert!(objects.iter().all(|o| o.disposed() == 1));
}

#[test]
fn changes_too_large_for_a_place_are_brought_at_once() {
    let (o, sim) = (Object::new(1), Sim::<2>::new(1));
    for _ in 0..3 {
        sim.add(A, &o, i32::MAX);
    }
    assert_eq!(sim.0.exact(&o, &stopped()), 1 + 3 * i64::from(i32::MAX));
    assert_eq!(sim.0.stats().evicted, 2);
    for _ in 0..3 {
        sim.add(A, &o, -i32::MAX);
    }
    sim.0.settle(&stopped());
    assert_eq!((o.disposed(), sim.0.exact(&o, &stopped())), (0, 1));
}

#[test]
fn memory_may_be_the_callers() {
    let memory = vec![MaybeUninit::new(0xa5); Domain::<8>::bytes(3)].leak();
    let domain = Domain::<8>::new_in(3, memory);
    let o = Object::new(1);
    // SAFETY: the object's one reference is given up.
    unsafe { domain.add(&o, -1, &pin(2)) };
    domain.settle(&stopped());
    assert_eq!(o.disposed(), 1);
}

/// Rule Z. A reference that is handed over before each flush shows itself to none.
#[test]
fn a_reference_on_its_way_between_cpus_keeps_its_object() {
    let (o, sim) = (Object::new(1), Sim::<4>::new(2));
    sim.hand_over(&o, A, B);
    sim.work(A);
    for _ in 0..12 {
        sim.hand_over(&o, B, A);
        sim.work(B);
        sim.hand_over(&o, A, B);
        sim.work(A);
    }
    assert_eq!((o.disposed(), sim.0.exact(&o, &stopped())), (0, 1));
    sim.add(A, &o, -1);
    sim.0.settle(&stopped());
    assert_eq!(o.disposed(), 1);
}

/// +2. One epoch on, a CPU may still hold back what it did before.
#[test]
fn a_change_that_was_held_back_at_the_flush_is_awaited() {
    let (o, sim) = (Object::new(1), Sim::<4>::new(2));
    sim.work(B);
    sim.hand_over(&o, A, B);
    sim.work(A);
    sim.work(A);
    assert_eq!(o.disposed(), 0);
}

/// +3. Outside a flush the epoch may be one more than the CPU's.
#[test]
fn a_change_that_was_held_back_at_a_conflict_is_awaited() {
    let (o, other, sim) = (Object::new(1), Object::new(1), Sim::<1>::new(2));
    sim.round();
    sim.work(B);
    sim.hand_over(&o, A, B);
    sim.add(A, &other, 1);
    sim.work(A);
    sim.work(A);
    assert_eq!(o.disposed(), 0);
}

/// Rule Q. While a review runs, the epoch goes on, and what is held back then is awaited too.
#[test]
fn a_change_that_was_held_back_during_a_review_is_awaited() {
    // At this distance in memory two objects never meet in the cache.
    let (sim, [first, o]) = (Sim::<4>::new(3), &[Object::new(1), Object::new(1)]);
    let others = || {
        // In the epoch of the review B and C flush last; in the next, C counts the reference that B gives up.
        sim.work(B);
        sim.work(C);
        sim.work(C);
        sim.hand_over(o, B, C);
        sim.work(B);
    };
    first.then.set(&others);
    // The object is queued with a count of 0, which B makes 1 again. What is queued last is judged first.
    sim.add(A, first, -1);
    sim.hand_over(o, A, B);
    sim.round();
    sim.round();
    sim.work(A);
    assert_eq!((first.disposed(), sim.0.stats().requeued), (1, 1), "the setting isn't the one that is meant");
    sim.work(A);
    assert_eq!((o.disposed(), sim.0.exact(o, &stopped())), (0, 1));
}

/// Rule W, with nobody else to wait for.
#[test]
fn what_is_got_weakly_is_alive() {
    let (o, w, sim) = (Object::new(1), AtomicU64::new(0), Sim::<4>::new(1));
    sim.weak(&o, &w);
    sim.add(A, &o, -1);
    for _ in 0..10 {
        let Some(got) = sim.get(A, &w) else { break };
        assert_eq!((got.addr(), o.disposed()), (NonNull::from(&o).addr(), 0));
        sim.work(A);
        assert_eq!(o.disposed(), 0);
        sim.add(A, &o, -1);
        sim.work(A);
    }
    assert_eq!(sim.0.exact(&o, &stopped()), 0);
    sim.0.settle(&stopped());
    assert_eq!((o.disposed(), w.load(Ordering::Relaxed)), (1, word::EMPTY));
    assert!(sim.get(A, &w).is_none());
}

#[test]
fn a_dying_object_is_revived_by_who_gets_it() {
    let (o, w, sim) = (Object::new(1), AtomicU64::new(0), Sim::<4>::new(2));
    sim.weak(&o, &w);
    sim.add(A, &o, -1);
    sim.round();
    assert_eq!(w.load(Ordering::Relaxed), word::link(&o) | word::DYING);
    assert!(sim.get(B, &w).is_some());
    assert_eq!((w.load(Ordering::Relaxed), sim.0.stats().revived), (word::link(&o), 1));
    (0..12).for_each(|_| sim.round());
    assert_eq!((o.disposed(), w.load(Ordering::Relaxed)), (0, word::link(&o)));
    sim.add(B, &o, -1);
    sim.0.settle(&stopped());
    assert_eq!((o.disposed(), o.head.weak().is_some()), (1, true));
}

/// What isn't a live link is the client's: nothing is got from it, and it is never changed.
#[test]
fn other_words_are_left_alone() {
    let (o, w, sim) = (Object::new(1), AtomicU64::new(0), Sim::<4>::new(1));
    sim.weak(&o, &w);
    let link = word::link(&o);
    for other in
        [0, word::LINK | word::LOCK, 0x1234_5670, link & !word::LINK, link | word::FROZEN | word::LOCK]
    {
        w.store(other, Ordering::Relaxed);
        assert!(sim.get(A, &w).is_none());
        sim.add(A, &o, -1);
        (0..3).for_each(|_| sim.round());
        sim.add(A, &o, 1);
        (0..6).for_each(|_| sim.round());
        let named = word::is_live(other);
        assert!(named || w.load(Ordering::Relaxed) == other);
    }
    // It keeps its object all the while.
    sim.add(A, &o, -1);
    w.store(0, Ordering::Relaxed);
    (0..12).for_each(|_| sim.round());
    assert_eq!(o.disposed(), 0);
    w.store(link, Ordering::Relaxed);
    sim.0.settle(&stopped());
    assert_eq!(o.disposed(), 1);
}

#[test]
fn an_object_dies_without_its_word_once_that_is_taken_away() {
    let (o, w, sim) = (Object::new(1), AtomicU64::new(0), Sim::<4>::new(1));
    sim.weak(&o, &w);
    // SAFETY: the object has a reference, and nobody gets one from the word any more.
    unsafe { sim.0.set_weak(&o, None) };
    w.store(0x70, Ordering::Relaxed);
    sim.add(A, &o, -1);
    sim.0.settle(&stopped());
    assert_eq!((o.disposed(), w.load(Ordering::Relaxed), o.head.weak()), (1, 0x70, None));
}

/// Only the word shows that a queued object was revived; so taking it away shows that too.
#[test]
fn a_reference_that_was_got_before_the_word_was_taken_away_is_awaited() {
    let (o, w, sim) = (Object::new(1), AtomicU64::new(0), Sim::<4>::new(2));
    sim.weak(&o, &w);
    sim.work(B);
    sim.add(A, &o, -1);
    sim.work(A);
    // B has flushed in the epoch of A's flush; in the next it flushes first, and then gets the object.
    sim.work(B);
    assert!(sim.get(B, &w).is_some());
    // SAFETY: the object has a reference, B's.
    unsafe { sim.0.set_weak(&o, None) };
    w.store(0, Ordering::Relaxed);
    sim.work(A);
    assert_eq!((o.disposed(), sim.0.exact(&o, &stopped())), (0, 1));
    sim.add(B, &o, -1);
    sim.0.settle(&stopped());
    assert_eq!(o.disposed(), 1);
}

#[test]
fn a_word_that_is_set_while_its_object_is_queued_is_marked() {
    let (o, w, sim) = (Object::new(1), AtomicU64::new(0), Sim::<4>::new(2));
    sim.hand_over(&o, A, B);
    sim.work(A);
    sim.weak(&o, &w);
    // Stored after: not marked, so the object must pass another review.
    assert_eq!(w.load(Ordering::Relaxed), word::link(&o));
    // SAFETY: the object has a reference, of B's.
    unsafe { sim.0.set_weak(&o, Some(&w)) };
    assert_eq!(w.load(Ordering::Relaxed), word::link(&o) | word::DYING);
    sim.add(B, &o, -1);
    sim.0.settle(&stopped());
    assert_eq!((o.disposed(), w.load(Ordering::Relaxed)), (1, 0));
}

#[test]
fn nobody_waits_for_a_parked_cpu() {
    let (o, sim) = (Object::new(1), Sim::<4>::new(2));
    sim.add(B, &o, 1);
    assert!(!sim.0.park(&pin(B)), "it holds something back");
    sim.round();
    assert!(!sim.0.park(&pin(B)), "it held something back in the last epoch");
    sim.round();
    assert!(sim.0.park(&pin(B)) && sim.0.park(&pin(B)));
    let epoch = sim.0.epoch();
    (0..5).for_each(|_| sim.work(A));
    assert_eq!(sim.0.epoch(), epoch + 5);
    assert!(!sim.0.due(&pin(B)));
    // It is back with its first change, and is awaited again.
    sim.add(B, &o, -2);
    (0..5).for_each(|_| sim.work(A));
    assert!(sim.0.epoch() <= epoch + 6);
    sim.0.settle(&stopped());
    assert_eq!(o.disposed(), 1);
}

/// Nobody has arrived and nobody will: who comes first must go on.
#[test]
fn epochs_go_on_after_all_have_parked() {
    let (o, sim) = (Object::new(1), Sim::<4>::new(3));
    (0..3).for_each(|_| sim.round());
    assert!((0..3).all(|cpu| sim.0.park(&pin(cpu))));
    for cpu in [C, A] {
        sim.add(cpu, &o, 1);
        let epoch = sim.0.epoch();
        (0..6).for_each(|_| sim.round());
        assert!(sim.0.epoch() >= epoch + 5, "epoch {}", sim.0.epoch());
        assert!(sim.0.park(&pin(cpu)));
    }
    sim.add(B, &o, -3);
    sim.0.settle(&stopped());
    assert_eq!(o.disposed(), 1);
}

/// A CPU leaves in the midst of everything: its changes are brought, and its reviews are done by another.
#[test]
fn what_a_leaving_cpu_was_to_review_is_reviewed() {
    let (o, other, sim) = (Object::new(1), Object::new(1), Sim::<4>::new(2));
    sim.add(A, &o, -1);
    sim.work(A);
    sim.add(A, &other, -1);
    sim.0.leave(&pin(A));
    for _ in 0..10 {
        sim.work(B);
    }
    assert_eq!((o.disposed(), other.disposed()), (1, 1));
}

/// Who leaves last is told of what nobody would review, and not before, nor again.
#[test]
fn the_last_to_leave_is_told_what_is_left() {
    let (o, sim) = (Object::new(1), Sim::<4>::new(2));
    (0..2).for_each(|cpu| sim.0.unpark(&pin(cpu)));
    assert!(!sim.0.is_quiet());
    sim.add(A, &o, -1);
    assert!(!sim.0.leave(&pin(A)), "CPU B is there");
    assert!(sim.0.leave(&pin(B)) && !sim.0.is_quiet());
    sim.0.unpark(&pin(B));
    (0..4).for_each(|_| sim.work(B));
    assert_eq!(o.disposed(), 1);
    assert!(!sim.0.leave(&pin(B)) && sim.0.is_quiet());
}

#[test]
fn an_expedited_domain_asks_for_work_until_what_is_dead_is_gone() {
    let (o, sim) = (Object::new(1), Sim::<4>::new(2));
    sim.add(A, &o, -1);
    assert!(!sim.0.hurried());
    sim.0.expedite();
    let mut rounds = 0;
    while sim.0.hurried() {
        sim.round();
        rounds += 1;
    }
    assert_eq!((o.disposed(), rounds), (1, 4));
}

/// A child's end gives up the reference to its parent, in the midst of a review.
#[test]
fn ends_may_change_other_counts() {
    let sim = Sim::<1>::new(2);
    let parent = Object::new(1);
    let up = || {
        sim.add(A, &parent, -1);
        // Within a disposal there is no other work.
        assert_eq!(sim.0.work(&pin(A), Budget::ALL), refcache::Work::default());
        assert!(!sim.0.park(&pin(A)));
    };
    let child = Object::then(1, &up);
    sim.add(A, &child, -1);
    (0..12).for_each(|_| sim.round());
    assert_eq!((child.disposed(), parent.disposed()), (1, 1));
}

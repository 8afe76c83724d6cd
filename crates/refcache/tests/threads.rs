//! Threads of this process that share values.
#![cfg(not(any(loom, shuttle)))]

use std::{
    sync::{
        Arc, Barrier,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use refcache::{Shared, Threads, WeakShared};

/// Counts how many of it there are.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
    fn is_alive(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Work until `is_so`; the other tests' threads take part in the same epochs.
fn work_until(is_so: impl Fn() -> bool) {
    while !is_so() {
        Threads::work();
        thread::yield_now();
    }
}

#[test]
fn values_are_dropped_after_their_last_reference() {
    let count = Arc::new(AtomicUsize::new(0));
    let values: Vec<_> = (0..100).map(|_| Shared::new(Counted::new(&count))).collect();
    let use_all = || {
        for value in values.iter().cycle().take(10_000) {
            assert!(value.clone().is_alive());
        }
    };
    Threads::idle(|| thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(use_all)))));
    (0..20).for_each(|_| Threads::work());
    assert_eq!(count.load(Ordering::Relaxed), 100);
    drop(values);
    work_until(|| count.load(Ordering::Relaxed) == 0);
}

#[test]
fn a_weak_reference_is_one_and_ends_with_its_value() {
    let count = Arc::new(AtomicUsize::new(0));
    let value = Shared::new(Counted::new(&count));
    let weak = WeakShared::new(&value).expect("it is the first");
    assert!(WeakShared::new(&value).is_none());
    assert!(weak.get().is_some_and(|got| Shared::ptr_eq(&got, &value)));
    drop(value);
    work_until(|| count.load(Ordering::Relaxed) == 0);
    assert!(weak.get().is_none());
    // And a value outlives its weak reference.
    let value = Shared::new(Counted::new(&count));
    drop(WeakShared::new(&value));
    assert!(value.is_alive() && WeakShared::new(&value).is_some());
    drop(value);
    work_until(|| count.load(Ordering::Relaxed) == 0);
}

#[test]
fn values_may_hold_values() {
    struct Node(#[allow(dead_code)] Counted, #[allow(dead_code)] Option<Shared<Node>>);
    let count = Arc::new(AtomicUsize::new(0));
    let mut list = None;
    for _ in 0..20 {
        list = Some(Shared::new(Node(Counted::new(&count), list)));
    }
    drop(list);
    work_until(|| count.load(Ordering::Relaxed) == 0);
}

/// Numbers of threads that have ended are used again.
#[test]
fn threads_come_and_go() {
    let count = Arc::new(AtomicUsize::new(0));
    let value = Shared::new(Counted::new(&count));
    for _ in 0..100 {
        let barrier = Barrier::new(4);
        Threads::idle(|| {
            thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        let mine = value.clone();
                        barrier.wait();
                        assert!(mine.is_alive());
                    });
                }
            });
        });
    }
    drop(value);
    work_until(|| count.load(Ordering::Relaxed) == 0);
}

/// The variable may be dropped before or after the thread's number.
#[test]
fn references_may_be_a_threads_own_variables() {
    use std::cell::RefCell;
    thread_local! {
        static MINE: RefCell<Option<Shared<Counted>>> = const { RefCell::new(None) };
    }
    let count = Arc::new(AtomicUsize::new(0));
    for first in [true, false] {
        let count = count.clone();
        let ended = thread::spawn(move || {
            if first {
                MINE.with(|mine| assert!(mine.borrow().is_none()));
            }
            let value = Shared::new(Counted::new(&count));
            drop(value.clone());
            MINE.with(|mine| *mine.borrow_mut() = Some(value));
        });
        Threads::idle(|| ended.join()).expect("the thread went well");
    }
    work_until(|| count.load(Ordering::Relaxed) == 0);
}

//! The lock of a page, in every execution: exclusion, visibility, and no sleeper that is forgotten.
#![cfg(loom)]

use loom::{
    cell::UnsafeCell,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};
use percpu::testing::explore;
use vmprim::{
    Access,
    group::{Group, Sleep},
};

/// A futex: the word is looked at and the sleeper listed under one lock, which a wake takes too.
struct Futex(Mutex<u32>, Condvar);

impl Sleep for Futex {
    fn wait(&self, word: &AtomicU32, seen: u32) {
        let mut wakes = self.0.lock().unwrap();
        // Relaxed: the kernel's look is ordered by the lock alone.
        if word.load(Ordering::Relaxed) != seen {
            return;
        }
        let before = *wakes;
        while *wakes == before {
            wakes = self.1.wait(wakes).unwrap();
        }
    }
    fn wake(&self, _: &AtomicU32) {
        *self.0.lock().unwrap() += 1;
        self.1.notify_all();
    }
}

struct State {
    group: Group,
    futex: Futex,
    pages: [UnsafeCell<u32>; 2],
}

impl State {
    fn new() -> Arc<Self> {
        let pages = [UnsafeCell::new(0), UnsafeCell::new(0)];
        Arc::new(Self { group: Group::new(Access::None), futex: Futex(Mutex::new(0), Condvar::new()), pages })
    }
    /// Add one to each page of the mask, under their locks, and change the level of the first.
    fn section(&self, mask: u32) {
        self.group.lock(mask, &self.futex, |_| ());
        for (i, page) in self.pages.iter().enumerate().filter(|(i, _)| mask >> i & 1 != 0) {
            // SAFETY: under the page's lock; loom checks.
            page.with_mut(|value| unsafe { *value += 1 });
            let level = if self.group.level(i) == Access::None { Access::Read } else { Access::None };
            self.group.set_level(1 << i, level);
        }
        self.group.unlock(mask, &self.futex);
    }
    fn value(&self, page: usize) -> u32 {
        self.group.lock(1 << page, &self.futex, |_| ());
        // SAFETY: as above.
        let value = self.pages[page].with(|value| unsafe { *value });
        self.group.unlock(1 << page, &self.futex);
        value
    }
}

#[test]
fn two_threads_on_one_page_exclude_each_other_and_wake() {
    explore("page lock: two threads, two sections each", None, || {
        let state = State::new();
        let s = state.clone();
        let other = thread::spawn(move || (0..2).for_each(|_| s.section(1)));
        (0..2).for_each(|_| state.section(1));
        other.join().unwrap();
        assert_eq!((state.value(0), state.group.level(0)), (4, Access::None));
    });
}

#[test]
fn three_threads_on_one_page_are_all_woken() {
    explore("page lock: three threads, a section each", Some(3), || {
        let state = State::new();
        let others = [0, 1].map(|_| {
            let s = state.clone();
            thread::spawn(move || s.section(1))
        });
        state.section(1);
        others.into_iter().for_each(|other| other.join().unwrap());
        assert_eq!((state.value(0), state.group.level(0)), (3, Access::Read));
    });
}

#[test]
fn pages_that_share_a_word_are_each_their_own() {
    explore("page lock: two pages, one of them by both", None, || {
        let state = State::new();
        let s = state.clone();
        let other = thread::spawn(move || s.section(0b11));
        state.section(0b10);
        state.section(0b01);
        other.join().unwrap();
        assert_eq!((state.value(0), state.value(1)), (2, 2));
        assert_eq!(state.group.by_level(0b11), [0b11, 0, 0]);
    });
}

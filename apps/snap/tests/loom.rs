//! A page's copy and its first write, in every execution: the copy is complete before the page is written, is made
//! once, and nobody sleeps for ever.
#![cfg(loom)]

#[path = "../src/pages.rs"]
#[allow(dead_code, missing_docs, reason = "a part of the crate, which is not built under the model")]
mod pages;

use loom::{
    cell::UnsafeCell,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};
use pages::{Pages, Sleep};
use percpu::testing::explore;

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
    pages: Pages,
    futex: Futex,
    contents: [UnsafeCell<u32>; 2],
    /// Buffers that are free.
    free: AtomicU32,
    copies: [AtomicU32; 2],
}

impl State {
    /// Two pages with 1 in them, armed, as a cut leaves them.
    fn new(buffers: u32) -> Arc<Self> {
        let state = Self {
            pages: Pages::new(2),
            futex: Futex(Mutex::new(0), Condvar::new()),
            contents: [UnsafeCell::new(1), UnsafeCell::new(1)],
            free: AtomicU32::new(buffers),
            copies: [AtomicU32::new(0), AtomicU32::new(0)],
        };
        (0..2).for_each(|page| state.pages.arm(page));
        Arc::new(state)
    }
    fn copy(&self, page: usize) {
        // SAFETY: nobody writes a page that is being copied; loom checks.
        let value = self.contents[page].with(|value| unsafe { *value });
        assert_eq!(value, 1, "written before it was copied");
        self.copies[page].fetch_add(1, Ordering::Relaxed);
    }
    /// A thread that traps on a page, and then writes it.
    fn write(&self, page: usize) {
        let take = || {
            let taken = self.free.fetch_update(Ordering::Acquire, Ordering::Relaxed, |n| n.checked_sub(1));
            taken.is_ok().then(|| Buffer(self))
        };
        self.pages.before_write(page, &self.futex, take, |buffer| {
            self.copy(page);
            // The copier gives it back.
            std::mem::forget(buffer);
        });
        // SAFETY: the copy is complete; loom checks.
        self.contents[page].with_mut(|value| unsafe { *value = 2 });
    }
    /// The copier, on one page.
    fn take(&self, page: usize) {
        if self.pages.claim(page) {
            self.copy(page);
            self.pages.release(page, &self.futex);
        }
    }
    fn give_back(&self) {
        self.free.fetch_add(1, Ordering::Release);
        self.pages.notify(&self.futex);
    }
}

/// Given back when it is dropped; its owner notifies.
struct Buffer<'s>(&'s State);

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        self.0.free.fetch_add(1, Ordering::Release);
    }
}

#[test]
fn the_copier_and_a_writer_race_for_a_page() {
    explore("the copier and a writer race for a page", None, || {
        let state = State::new(1);
        let other = state.clone();
        let writer = thread::spawn(move || other.write(0));
        state.take(0);
        writer.join().unwrap();
        assert_eq!(state.copies[0].load(Ordering::Relaxed), 1);
    });
}

#[test]
fn a_writer_without_a_buffer_waits_for_the_copier() {
    explore("a writer without a buffer waits for the copier", None, || {
        let state = State::new(0);
        let other = state.clone();
        let writer = thread::spawn(move || other.write(0));
        state.take(0);
        writer.join().unwrap();
        assert_eq!(state.copies[0].load(Ordering::Relaxed), 1);
    });
}

#[test]
fn a_writer_without_a_buffer_waits_for_one() {
    explore("a writer without a buffer waits for one", None, || {
        let state = State::new(0);
        let other = state.clone();
        let writer = thread::spawn(move || other.write(0));
        state.give_back();
        writer.join().unwrap();
        assert_eq!(state.copies[0].load(Ordering::Relaxed), 1);
    });
}

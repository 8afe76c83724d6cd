//! Gathers: what is flushed, and when frames go back.
#![cfg(not(loom))]

use std::sync::Mutex;

use addr::{Page, PageRange};
use owned::{Memory, Use, testing};
use percpu::{AtomicCpuSet, CpuId, CpuSet, Pinned, testing::Machine};
use tlb::{Gather, INLINE, LIMIT, Shootdown};

/// Remembers what it was asked to flush, and how many frames were in use then.
struct Flushes {
    frames: &'static Memory,
    asked: Mutex<Vec<(CpuSet, PageRange, u64)>>,
}

impl Flushes {
    fn new(frames: &'static Memory) -> Self {
        Self { frames, asked: Mutex::default() }
    }
}

impl Shootdown for Flushes {
    fn flush(&self, _: &Pinned<'_>, cpus: &CpuSet, range: PageRange) {
        let owned = self.frames.stats().owned.iter().sum();
        self.asked.lock().unwrap().push((*cpus, range, owned));
    }
}

fn range(start: u64, pages: u64) -> PageRange {
    PageRange::with_len(Page::new(start).expect("a page number"), pages).expect("a range")
}

#[test]
fn frames_go_back_after_one_flush_of_the_hull() {
    let (cpus, frames) = (Machine::new(1), testing::memory(256, 1));
    let machine = Flushes::new(frames);
    let active = AtomicCpuSet::new();
    active.insert(CpuId::default());
    cpus.on(0, |ctx| {
        let mut gather = Gather::new(frames, ctx);
        let pin = ctx.pin();
        for i in 0..3 * INLINE as u64 {
            assert!(gather.room() > 0);
            gather.add_range(range(100 + 2 * i, 1));
            gather.take(frames.alloc(&pin, Use::Anonymous).expect("there is memory"));
        }
        gather.add_range(range(7, 0));
        gather.flush(&pin, &machine, &active);
        assert!(gather.is_clean());
        assert_eq!(
            frames.stats().owned[Use::Anonymous as usize],
            3 * INLINE as u64,
            "freed by the flush itself"
        );
        drop(pin);
        drop(gather);
    });
    let asked = machine.asked.into_inner().unwrap();
    assert_eq!(asked, [(CpuSet::first(1), range(100, 6 * INLINE as u64 - 1), 3 * INLINE as u64)]);
    assert_eq!(frames.stats().owned, [0; Use::COUNT]);
}

#[test]
fn frames_that_nobody_could_reach_disturb_nobody() {
    let (cpus, frames) = (Machine::new(1), testing::memory(64, 1));
    let machine = Flushes::new(frames);
    cpus.on(0, |ctx| {
        let mut gather = Gather::new(frames, ctx);
        gather.take(frames.alloc(&ctx.pin(), Use::Anonymous).expect("there is memory"));
        gather.flush(&ctx.pin(), &machine, &AtomicCpuSet::new());
    });
    assert!(machine.asked.into_inner().unwrap().is_empty());
    assert_eq!(frames.stats().owned, [0; Use::COUNT]);
}

#[test]
fn a_full_gather_says_so_and_goes_on_after_a_round() {
    let (cpus, frames) = (Machine::new(1), testing::memory(2 * LIMIT, 1));
    let machine = Flushes::new(frames);
    let active = AtomicCpuSet::new();
    cpus.on(0, |ctx| {
        let mut gather = Gather::new(frames, ctx);
        let pin = ctx.pin();
        let mut taken = 0;
        while gather.room() > 0 {
            gather.add_range(range(taken, 1));
            gather.take(frames.alloc(&pin, Use::Anonymous).expect("there is memory"));
            taken += 1;
        }
        assert_eq!(taken, (INLINE + LIMIT) as u64);
        gather.flush(&pin, &machine, &active);
        gather.release(&pin);
        assert_eq!(frames.stats().owned, [0; Use::COUNT]);
        assert!(gather.room() >= INLINE);
    });
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "dropped without a flush")]
fn a_gather_that_was_not_flushed_is_a_bug() {
    let (cpus, frames) = (Machine::new(1), testing::memory(64, 1));
    cpus.on(0, |ctx| {
        let mut gather = Gather::new(frames, ctx);
        gather.add_range(range(0, 1));
        gather.take(frames.alloc(&ctx.pin(), Use::Anonymous).expect("there is memory"));
    });
}

//! Every interleaving of CPUs that ask one other to flush, by [`Requests`] that have room for one.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test --release -p quire-tlb --test loom_requests`.
#![cfg(loom)]

use addr::{Page, PageRange};
use loom::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};
use percpu::{CpuId, testing::explore};
use tlb::{Request, Requests, WORDS};

/// The target's buffer and the entries that it walks, a word for each initiator. What they say is written and read Relaxed, so
/// that it is the requests that order it.
struct Target {
    requests: Requests,
    entries: [AtomicU64; 2],
    cached: [AtomicU64; 2],
}

fn page(of: usize) -> PageRange {
    PageRange::single(Page::new(of as u64).unwrap()).unwrap()
}

impl Target {
    fn new() -> Self {
        let entries = [AtomicU64::new(1), AtomicU64::new(1)];
        Self { requests: Requests::new(), entries, cached: [AtomicU64::new(1), AtomicU64::new(1)] }
    }
    /// Be interrupted: of each page that is asked for drop what is cached, and walk for it at once. How many they were.
    fn serve(&self) -> usize {
        let mut served = 0;
        self.requests.serve(|range| {
            let of = range.unwrap().start().number() as usize;
            self.cached[of].store(self.entries[of].load(Ordering::Relaxed), Ordering::Relaxed);
            served += 1;
        });
        served
    }
    /// Clear an entry, and ask the target to flush it. The request, if there was room for it.
    fn post(&self, of: usize) -> Option<Request> {
        self.entries[of].store(0, Ordering::Relaxed);
        let request = Request::new(CpuId::new(of + 1).unwrap(), page(of));
        self.requests.post(request).map(|_| request)
    }
    /// A request that was posted is gone.
    fn check(&self, of: usize) {
        let cached = self.cached[of].load(Ordering::Relaxed);
        assert_eq!(cached, 0, "a CPU translates by an entry that was shot down");
    }
}

#[test]
fn who_is_asked_has_flushed_when_the_request_is_gone() {
    explore("one initiator", None, || {
        let target = Arc::new(Target::new());
        let there = target.clone();
        let initiator = thread::spawn(move || {
            let request = there.post(0).expect("there is room");
            while there.requests.has(request, WORDS) {
                thread::yield_now();
            }
            there.check(0);
        });
        while target.serve() == 0 {
            thread::yield_now();
        }
        initiator.join().unwrap();
    });
}

/// The second may find the first's word in use, or free again while the first still looks for its own there. Nobody waits, so
/// that all executions end.
#[test]
fn one_who_takes_the_place_of_a_request_that_is_gone_hides_nothing() {
    explore("two initiators", None, || {
        let target = Arc::new(Target::new());
        let others = [0, 1].map(|of| {
            let there = target.clone();
            thread::spawn(move || {
                if let Some(request) = there.post(of)
                    && !there.requests.has(request, WORDS)
                {
                    there.check(of);
                }
            })
        });
        (0..2).for_each(|_| _ = target.serve());
        others.into_iter().for_each(|other| other.join().unwrap());
    });
}

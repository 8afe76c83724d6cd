//! Every interleaving of CPUs that fill, take and look at the same page under the leaf lock, or that give the right to write
//! back to a mirror's table.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test --release -p quire-pagetable --lib`.

extern crate std;

use std::{
    println,
    sync::atomic::{AtomicUsize, Ordering},
};

use addr::{Page, Prot, Pte};
use loom::{cell::UnsafeCell, sync::Arc, thread};
use owned::{Memory, Use, testing};
use percpu::{Unpinned, testing::Machine};
use sync::primitive::AtomicU64;

use crate::{Entry, Leaf};

/// A frame's bytes.
#[derive(Default)]
struct Bytes(UnsafeCell<u64>);

// SAFETY: loom fails the test if two accesses race; that none do is what is shown.
unsafe impl Sync for Bytes {}

/// A leaf table of two entries.
struct Sim {
    cpus: Machine,
    frames: &'static Memory,
    directory: AtomicU64,
    entries: [AtomicU64; 2],
    bytes: [Bytes; 4],
    /// Stands for the order that the allocator makes between a frame's owners, which its own models show: it isn't
    /// explored here.
    handed_on: AtomicU64,
}

impl Sim {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            cpus: Machine::new(2),
            frames: testing::memory(16, 2),
            directory: AtomicU64::new(Pte::PRESENT),
            entries: [AtomicU64::new(0), AtomicU64::new(0)],
            bytes: Default::default(),
            handed_on: AtomicU64::new(0),
        })
    }
    fn bytes(&self, entry: Pte) -> &UnsafeCell<u64> {
        &self.bytes[(entry.frame().number() - 512) as usize].0
    }
    /// As a fault does it: prepare a frame, lock, look again. True if the frame went in.
    fn fault(&self, page: Page, ctx: &Unpinned<'_>) -> bool {
        let pin = ctx.pin();
        let frame = self.frames.alloc(&pin, Use::Anonymous).expect("there are frames");
        // AcqRel, here and below: whoever gets a frame after it was freed comes after what was done to it.
        self.handed_on.fetch_add(1, Ordering::AcqRel);
        self.bytes(Pte::user_page(frame.frame(), Prot::READ)).with_mut(|_| ());
        let leaf = Leaf::lock(&self.directory, &self.entries, page);
        let entry = leaf.peek(page);
        if entry.is_empty() {
            leaf.insert(page, frame, Prot::READ);
            return true;
        }
        // What another CPU prepared is seen whole.
        self.bytes(entry).with(|_| ());
        drop(leaf);
        self.handed_on.fetch_add(1, Ordering::AcqRel);
        self.frames.free(&pin, frame);
        false
    }
    /// Take the page's frame and use it as its new owner; nobody has it cached in this model. True if there was one.
    fn take(&self, page: Page, ctx: &Unpinned<'_>) -> bool {
        let pin = ctx.pin();
        let taken = Leaf::lock(&self.directory, &self.entries, page).take(page);
        let Some((frame, _)) = taken else { return false };
        self.bytes(Pte::user_page(frame.frame(), Prot::READ)).with_mut(|_| ());
        self.handed_on.fetch_add(1, Ordering::AcqRel);
        self.frames.free(&pin, frame);
        true
    }
    fn owned(&self) -> u64 {
        self.frames.stats().owned.iter().sum()
    }
}

/// Run `model` in every interleaving; a search that was cut short is no proof, so it fails.
fn explore(name: &str, model: impl Fn() + Sync + Send + 'static) {
    let executions = std::sync::Arc::new(AtomicUsize::new(0));
    let count = executions.clone();
    let mut builder = loom::model::Builder::new();
    builder.max_permutations = None;
    builder.max_duration = None;
    let limit = 500_000;
    builder.check(move || {
        // Relaxed: a count.
        assert!(count.fetch_add(1, Ordering::Relaxed) < limit, "not complete after {limit} executions");
        model();
    });
    println!("{name}: {} executions, complete", executions.load(Ordering::Relaxed));
}

#[test]
fn two_faults_leave_one_frame() {
    explore("fault against fault", || {
        let sim = Sim::new();
        let other = sim.clone();
        let page = Page::default();
        let first = thread::spawn(move || other.cpus.on(1, |ctx| other.fault(page, &ctx)));
        let second = sim.cpus.on(0, |ctx| sim.fault(page, &ctx));
        let first = first.join().expect("the other CPU went well");
        assert!(first != second, "one of the two frames goes in");
        assert_eq!(sim.owned(), 1);
        assert!(sim.cpus.on(0, |ctx| sim.take(page, &ctx)));
        assert_eq!(sim.owned(), 0);
    });
}

#[test]
fn a_frame_is_taken_once() {
    explore("take against take and fault", || {
        let sim = Sim::new();
        let page = Page::default();
        sim.cpus.on(0, |ctx| assert!(sim.fault(page, &ctx)));
        let other = sim.clone();
        let there = thread::spawn(move || {
            other.cpus.on(1, |ctx| {
                let taken = other.take(page, &ctx);
                (taken, other.fault(page, &ctx))
            })
        });
        let here = sim.cpus.on(0, |ctx| sim.take(page, &ctx));
        let (taken, filled) = there.join().expect("the other CPU went well");
        assert!(taken || here);
        assert!(filled, "the page was empty after the take");
        let left = u64::from(!(taken && here));
        assert_eq!(sim.owned(), left, "taken there {taken}, here {here}");
        assert_eq!(sim.cpus.on(0, |ctx| sim.take(page, &ctx)), left == 1);
    });
}

/// Two CPUs let a page each be written in a table that nobody may write through: none of the two loses the right by what
/// the other does, as that would be without a flush; and what a third entry says from before is gone.
#[test]
fn a_right_that_is_given_back_stays() {
    explore("set against set in a protected table", || {
        let frame = |n| addr::Frame::new(n).expect("a frame's number");
        let rw = Prot::READ | Prot::WRITE;
        let before = || AtomicU64::new(Pte::user_page(frame(1), rw).bits());
        let directory = AtomicU64::new(Pte::table(frame(9)).bits() & !Pte::WRITE);
        let table = Arc::new((directory, [AtomicU64::new(0), AtomicU64::new(0), before()]));
        let set = move |table: &(AtomicU64, [AtomicU64; 3]), i: usize| {
            let (directory, entries) = table;
            // Acquire: as in `Mirror::prepare`.
            let protected = !Pte::from_bits(directory.load(Ordering::Acquire)).is_writable();
            let entry = Entry { entry: &entries[i], entries, directory, protected };
            entry.set(frame(2 + i as u64), rw);
        };
        let other = table.clone();
        let there = thread::spawn(move || set(&other, 1));
        set(&table, 0);
        there.join().expect("the other CPU went well");
        // Relaxed: it has ended.
        let writable = |word: &AtomicU64| Pte::from_bits(word.load(Ordering::Relaxed)).is_writable();
        assert!(writable(&table.0));
        assert_eq!(table.1.each_ref().map(writable), [true, true, false]);
    });
}

//! Every interleaving of a CPU that uses a page with one that takes the page away and gives its frame to somebody
//! else, on a machine of two CPUs whose translation buffers keep everything until they are told not to.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test --release -p quire-tlb --test loom`.
#![cfg(loom)]

use std::sync::atomic::{AtomicUsize, Ordering as Std};

use addr::{Frame, Page, PageRange, Prot, Pte};
use loom::{
    cell::UnsafeCell,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};
use owned::{Memory, OwnedFrame, Use, testing};
use percpu::{AtomicCpuSet, CpuId, CpuSet, Pinned, Unpinned, testing::Machine};
use tlb::{Gather, Shootdown};

/// A frame's bytes.
#[derive(Default)]
struct Bytes(UnsafeCell<u64>);

// SAFETY: loom fails the test if two accesses race; that none do is what is shown.
unsafe impl Sync for Bytes {}

/// Two CPUs, one page of one address space.
struct Sim {
    cpus: Machine,
    frames: &'static Memory,
    active: AtomicCpuSet,
    /// The page's entry.
    entry: AtomicU64,
    /// Whether CPU 1 was asked to flush, and whether it has.
    asked: AtomicBool,
    done: AtomicBool,
    /// Whether CPU 0 will ask no more.
    over: AtomicBool,
    /// The bytes of the frames, by number from 512; loom checks who uses them when.
    bytes: [Bytes; 2],
}

/// Interprocessor interrupts: CPU 1 looks at `asked` between instructions.
impl Shootdown for Sim {
    fn flush(&self, _: &Pinned<'_>, cpus: &CpuSet, _: PageRange) {
        if cpus.iter().all(|cpu| cpu.index() != 1) {
            return;
        }
        // Release: what was changed before is seen by the handler; partner: the load in `interrupt`.
        self.asked.store(true, Ordering::Release);
        // Acquire: what CPU 1 did before it flushed comes before what follows here; partner: the store there.
        while !self.done.load(Ordering::Acquire) {
            thread::yield_now();
        }
    }
}

impl Sim {
    fn new() -> Self {
        Self {
            cpus: Machine::new(2),
            frames: testing::memory(16, 2),
            active: AtomicCpuSet::new(),
            entry: AtomicU64::new(0),
            asked: AtomicBool::new(false),
            done: AtomicBool::new(false),
            over: AtomicBool::new(false),
            bytes: Default::default(),
        }
    }
    fn bytes(&self, frame: Frame) -> Option<&UnsafeCell<u64>> {
        self.bytes.get((frame.number() - 512) as usize).map(|b| &b.0)
    }
    /// CPU 1, between two instructions.
    fn interrupt(&self, buffer: &mut Option<Frame>) {
        // Acquire, Release: partners in `flush`.
        if self.asked.load(Ordering::Acquire) && !self.done.load(Ordering::Relaxed) {
            *buffer = None;
            self.done.store(true, Ordering::Release);
        }
    }
    /// CPU 1, one load from the page: by the buffer if it has the translation, else by the table.
    fn load(&self, buffer: &mut Option<Frame>) {
        let frame = buffer.or_else(|| {
            // Relaxed: the hardware's walk is ordered by nothing but what the protocol does.
            let entry = Pte::from_bits(self.entry.load(Ordering::Relaxed));
            entry.is_present().then(|| entry.frame())
        });
        *buffer = frame;
        if let Some(bytes) = frame.and_then(|f| self.bytes(f)) {
            bytes.with(|_| ());
        }
    }
    /// CPU 0: take the frame out of the table, flush, free it, and use the next one allocated as its new owner.
    fn take_away(&self, ctx: Unpinned<'_>) {
        let mut gather = Gather::new(self.frames, ctx);
        // AcqRel: as in the page table.
        let old = Pte::from_bits(self.entry.swap(0, Ordering::AcqRel));
        gather.add_range(PageRange::single(Page::default()).expect("page 0"));
        // SAFETY: the entry owned the share, and has been cleared.
        gather.take(unsafe { OwnedFrame::from_raw(old.frame(), Use::Anonymous) });
        gather.flush(&ctx.pin(), self, &self.active);
        drop(gather);
        let pin = ctx.pin();
        let again = self.frames.alloc(&pin, Use::Anonymous).expect("one was freed");
        assert_eq!(again.frame(), old.frame(), "the cache is last in, first out");
        self.bytes(again.frame()).expect("one of the two").with_mut(|_| ());
        self.frames.free(&pin, again);
        // Relaxed: only ends CPU 1's loop.
        self.over.store(true, Ordering::Relaxed);
    }
}

/// Run `model` in every interleaving; a search that was cut short is no proof, so it fails.
fn explore(name: &str, model: impl Fn() + Sync + Send + 'static) {
    let executions = std::sync::Arc::new(AtomicUsize::new(0));
    let count = executions.clone();
    let mut builder = loom::model::Builder::new();
    builder.max_permutations = None;
    builder.max_duration = None;
    let limit = 2_000_000;
    builder.check(move || {
        assert!(count.fetch_add(1, Std::Relaxed) < limit, "not complete after {limit} executions");
        model();
    });
    println!("{name}: {} executions, complete", executions.load(Std::Relaxed));
}

/// When CPU 1 joins the set of those that are flushed.
#[derive(Clone, Copy, PartialEq)]
enum Join {
    /// Long ago.
    Before,
    /// At the start.
    First,
    /// After its first use of the table: the bug.
    TooLate,
}

fn shoot(join: Join, loads: usize) {
    let sim = Arc::new(Sim::new());
    sim.cpus.on(0, |ctx| {
        let frame = sim.frames.alloc(&ctx.pin(), Use::Anonymous).expect("there are frames");
        assert!(sim.bytes(frame.frame()).is_some(), "the first frames go first");
        // Relaxed: before CPU 1 starts.
        sim.entry.store(Pte::user_page(frame.into_raw(), Prot::READ).bits(), Ordering::Relaxed);
    });
    if join == Join::Before {
        sim.active.insert(CpuId::new(1).expect("CPU 1"));
    }
    let other = sim.clone();
    let user = thread::spawn(move || {
        other.cpus.on(1, |ctx| {
            let mut buffer = None;
            if join == Join::First {
                tlb::join(&other.active, &ctx.pin());
            }
            for _ in 0..loads {
                other.load(&mut buffer);
                other.interrupt(&mut buffer);
            }
            if join == Join::TooLate {
                tlb::join(&other.active, &ctx.pin());
            }
            // Another CR3, and out of the set; interrupts are still answered.
            buffer = None;
            tlb::leave(&other.active, &ctx.pin());
            // Relaxed: partner in `take_away`, nothing is read after.
            while !other.over.load(Ordering::Relaxed) {
                other.interrupt(&mut buffer);
                thread::yield_now();
            }
        });
    });
    sim.cpus.on(0, |ctx| sim.take_away(ctx));
    user.join().expect("CPU 1 went well");
}

/// CPU 1 runs the space already: the frame gets a new owner only when CPU 1 can't use it any more.
#[test]
fn a_frame_is_reused_after_the_acknowledgement_only() {
    explore("acknowledgement against reuse", || shoot(Join::Before, 2));
}

/// CPU 1 joins while CPU 0 removes: CPU 0 sees it in the set, or CPU 1's walk sees the entry cleared.
#[test]
fn a_cpu_that_joins_is_flushed_or_finds_nothing() {
    explore("join against removal", || shoot(Join::First, 1));
}

/// The model must notice when the order of joining and walking is wrong.
#[test]
#[should_panic(expected = "Causality violation")]
fn a_cpu_that_walks_before_it_joins_is_missed() {
    explore("walk before join", || shoot(Join::TooLate, 1));
}

//! Every interleaving, within a bound, of what takes a right to store away: a copy on write beside a CPU that reads the old frame
//! and one that stores (R12 of the Bonsai address space), and fork beside stale translations and copies (R13).
//!
//! What is done to entries, the gate and the gather are the real ones. A page has a value, which is in its frame. A CPU's
//! translation buffer is one translation behind a lock, which the CPU holds for an access and a shootdown for a flush. The
//! hardware stores where its buffer or the table lets it, and never waits.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test --release -p quire-aspace --test loom_copy`.
#![cfg(loom)]

use addr::{Frame, Page, PageRange, Prot, Pte};
use aspace::{
    Mapping, page as pages,
    steps::{self, Gate},
};
use loom::{
    sync::{Arc, Mutex},
    thread,
};
use owned::{Memory, OwnedFrame, Use, testing};
use pagetable::{Leaf, steps::lock_leaf};
use percpu::{AtomicCpuSet, CpuId, CpuSet, Pinned, Unpinned, testing::Machine, testing::explore};
use sync::{
    mutant,
    primitive::{AtomicU64, Ordering},
};
use tlb::{Gather, Shootdown};

const RW: Prot = Prot::READ.union(Prot::WRITE);
const FRAMES: usize = 8;

/// Two pages, each under a leaf table of its own.
fn page(n: usize) -> Page {
    Page::new(512 * n as u64).expect("a page")
}

/// A leaf table: what leads to it, with its lock, and its entry.
struct Table {
    slot: AtomicU64,
    entry: [AtomicU64; 1],
}

impl Table {
    fn new() -> Self {
        let link = Pte::table(Frame::new(1).expect("a frame"));
        Self { slot: AtomicU64::new(link.bits()), entry: [AtomicU64::new(0)] }
    }
    fn lock(&self, n: usize) -> Leaf<'_> {
        lock_leaf(&self.slot, &self.entry, page(n)).expect("nobody unlinks it")
    }
    fn entry(&self) -> Pte {
        // Acquire: x86 keeps stores in order, so who finds an entry finds what was stored before it.
        Pte::from_bits(self.entry[0].load(Ordering::Acquire))
    }
}

/// Of a CPU: a page's frame, and whether it may be stored to.
type Translation = Option<(usize, Frame, bool)>;

struct Sim {
    cpus: Machine,
    frames: &'static Memory,
    mapping: Mapping,
    gate: Gate,
    /// The lock of the mappings.
    maps: Mutex<()>,
    parent: [Table; 2],
    child: [Table; 2],
    /// What is in the frames from 512 on.
    values: [AtomicU64; FRAMES],
    buffers: [Mutex<Translation>; 3],
    active: AtomicCpuSet,
}

impl Shootdown for Sim {
    fn flush(&self, _: &Pinned<'_>, cpus: &CpuSet, _: PageRange) {
        cpus.iter().for_each(|cpu| *self.buffers[cpu.index()].lock().unwrap() = None);
    }
}

impl Sim {
    fn new(cpus: usize) -> Self {
        let active = AtomicCpuSet::new();
        (0..cpus).for_each(|cpu| active.insert(CpuId::new(cpu).expect("a CPU")));
        Self {
            cpus: Machine::new(cpus),
            frames: testing::memory(FRAMES, cpus),
            mapping: Mapping::anonymous(RW),
            gate: Gate::new(),
            maps: Mutex::new(()),
            parent: [Table::new(), Table::new()],
            child: [Table::new(), Table::new()],
            values: Default::default(),
            buffers: Default::default(),
            active,
        }
    }
    fn value(&self, frame: Frame) -> &AtomicU64 {
        &self.values[(frame.number() - 512) as usize]
    }
    /// The parent's page is there, its value 1; and for another space, if it is to be shared.
    fn fill(&self, n: usize, shared: bool, ctx: &Unpinned<'_>) -> (Frame, Option<OwnedFrame>) {
        let own = self.frames.alloc(&ctx.pin(), Use::Anonymous).expect("there are frames");
        let frame = own.frame();
        // Relaxed: before the threads begin.
        self.value(frame).store(1, Ordering::Relaxed);
        let leaf = self.parent[n].lock(n);
        leaf.insert(page(n), own, if shared { Prot::READ } else { RW });
        (frame, shared.then(|| leaf.share(page(n), self.frames).expect("it is there")))
    }
    fn translate(&self, buffer: &mut Translation, n: usize, store: bool) -> Option<Frame> {
        // One that does not allow the access is looked up anew before there is a fault.
        if !matches!(*buffer, Some((of, _, stores)) if of == n && (stores || !store)) {
            let entry = self.parent[n].entry();
            *buffer = entry.is_present().then(|| (n, entry.frame(), entry.prot().contains(Prot::WRITE)));
        }
        buffer.filter(|(_, _, stores)| *stores || !store).map(|(_, frame, _)| frame)
    }
    /// The hardware's. What it finds, of a page that is there.
    fn load(&self, cpu: usize, n: usize) -> u64 {
        let mut buffer = self.buffers[cpu].lock().unwrap();
        let frame = self.translate(&mut buffer, n, false).expect("it may be read");
        // Relaxed: ordered by nothing but what the protocol does.
        self.value(frame).load(Ordering::Relaxed)
    }
    /// The hardware's; false if that is a fault.
    fn store(&self, cpu: usize, n: usize, value: u64) -> bool {
        let mut buffer = self.buffers[cpu].lock().unwrap();
        let frame = self.translate(&mut buffer, n, true);
        // Relaxed: as in `load`.
        frame.inspect(|frame| self.value(*frame).store(value, Ordering::Relaxed)).is_some()
    }
    /// What `Serial::step` does for a store to a private page that is there; `None` if the mappings have to be locked.
    fn step(&self, n: usize, ctx: &Unpinned<'_>) -> Option<bool> {
        let (pin, at) = (ctx.pin(), page(n));
        let leaf = self.parent[n].lock(n);
        let entry = leaf.peek(at);
        if entry.prot().contains(Prot::WRITE) {
            return Some(true);
        }
        let rights = pages::rights(&self.mapping, entry.frame(), self.frames);
        if rights.contains(Prot::WRITE) {
            leaf.protect(at, rights);
            return Some(true);
        }
        if !self.gate.is_open() && !mutant!("bonsai-copy-lowered") {
            return None;
        }
        let old = leaf.hold(at, self.frames).expect("it is there");
        drop(leaf);
        let new = self.frames.alloc(&pin, Use::Anonymous).expect("there are frames");
        // Relaxed: the entry is what tells of the copy.
        self.value(new.frame()).store(self.value(old.frame()).load(Ordering::Relaxed), Ordering::Relaxed);
        let may = self.gate_allows();
        let mut gather = Gather::new(self.frames, *ctx);
        let leaf = self.parent[n].lock(n);
        if !may() || !steps::still_has(&leaf, at, &old) {
            drop(leaf);
            [old, new].into_iter().for_each(|frame| self.frames.free(&pin, frame));
            return Some(false);
        }
        steps::replace(&leaf, at, [old, new], RW, &mut gather, |gather| {
            gather.flush(&pin, self, &self.active)
        });
        drop(leaf);
        Some(true)
    }
    fn gate_allows(&self) -> impl Fn() -> bool {
        || self.gate.is_open() || mutant!("bonsai-copy-in-fork")
    }
    /// A fault of a store: once without the lock of the mappings, and then with it.
    fn fault(&self, n: usize, ctx: &Unpinned<'_>) {
        if self.step(n, ctx) != Some(true) {
            let _maps = self.maps.lock().unwrap();
            while self.step(n, ctx) != Some(true) {}
        }
    }
    fn store_by_faults(&self, cpu: usize, n: usize, value: u64, ctx: &Unpinned<'_>) {
        while !self.store(cpu, n, value) {
            self.fault(n, ctx);
        }
    }
    /// As `Serial::duplicate` does it.
    fn fork(&self, pages: usize, ctx: &Unpinned<'_>) {
        let _maps = self.maps.lock().unwrap();
        let mut gather = Gather::new(self.frames, *ctx);
        self.gate.close();
        for n in 0..pages {
            let part = PageRange::single(page(n)).expect("a page");
            let from = self.parent[n].lock(n);
            let to = || Some(self.child[n].lock(n));
            let shared = steps::share(&from, part, &self.mapping, self.frames, &mut gather, to);
            assert_eq!(shared, Some(1));
        }
        gather.flush(&ctx.pin(), self, &self.active);
        self.gate.open();
    }
    /// What is in a page, as no CPU runs or nobody stores.
    fn content(&self, table: &Table) -> u64 {
        // Relaxed: after what it looks for.
        self.value(table.entry().frame()).load(Ordering::Relaxed)
    }
    /// All is given back.
    fn end(&self, others: Option<OwnedFrame>) {
        self.cpus.on(0, |ctx| {
            for (n, table) in self.parent.iter().enumerate().chain(self.child.iter().enumerate()) {
                let taken = table.lock(n).take(page(n));
                taken.into_iter().for_each(|(frame, _)| self.frames.free(&ctx.pin(), frame));
            }
            others.into_iter().for_each(|frame| self.frames.free(&ctx.pin(), frame));
        });
        assert_eq!(self.frames.stats().owned.iter().sum::<u64>(), 0);
    }
}

#[test]
fn r12_nobody_stores_to_a_copy_while_others_read_the_old_frame() {
    explore("copy on write, a reader and a store beside it", Some(4), || {
        let sim = Arc::new(Sim::new(3));
        let (old, other) = sim.cpus.on(0, |ctx| sim.fill(0, true, &ctx));
        *sim.buffers[1].lock().unwrap() = Some((0, old, false));
        let stored = Arc::new(AtomicU64::new(0));
        let reader = thread::spawn({
            let (sim, stored) = (sim.clone(), stored.clone());
            move || {
                // Acquire: the store comes before the load; partner: the stores of the flag.
                let after = stored.load(Ordering::Acquire) != 0;
                let seen = sim.load(1, 0);
                assert!(!after || seen != 1, "a store was not seen");
            }
        });
        let storer = thread::spawn({
            let (sim, stored) = (sim.clone(), stored.clone());
            move || {
                if sim.store(2, 0, 3) {
                    // Release: see the reader.
                    stored.store(1, Ordering::Release);
                }
            }
        });
        sim.cpus.on(0, |ctx| sim.store_by_faults(0, 0, 2, &ctx));
        // Release: see the reader.
        stored.store(1, Ordering::Release);
        for thread in [reader, storer] {
            thread.join().expect("the other CPU went well");
        }
        assert!([2, 3].contains(&sim.content(&sim.parent[0])));
        // Relaxed: after all.
        assert_eq!(sim.value(old).load(Ordering::Relaxed), 1, "who shares the old frame has seen a store");
        sim.end(other);
    });
}

#[test]
fn r13_a_store_by_a_translation_that_fork_has_not_flushed_is_in_every_copy() {
    explore("fork, a store by a stale translation, a copy", Some(4), || {
        let sim = Arc::new(Sim::new(3));
        let (frame, _) = sim.cpus.on(0, |ctx| sim.fill(0, false, &ctx));
        *sim.buffers[1].lock().unwrap() = Some((0, frame, true));
        let storer = thread::spawn({
            let sim = sim.clone();
            move || sim.store(1, 0, 5)
        });
        let copier = thread::spawn({
            let sim = sim.clone();
            move || sim.cpus.on(2, |ctx| sim.fault(0, &ctx))
        });
        let forked = sim.cpus.on(0, |ctx| {
            sim.fork(1, &ctx);
            sim.content(&sim.child[0])
        });
        let stored = storer.join().expect("the other CPU went well");
        copier.join().expect("the other CPU went well");
        assert_eq!(sim.content(&sim.parent[0]), if stored { 5 } else { 1 }, "the parent has lost a store");
        assert_eq!(sim.content(&sim.child[0]), forked, "the child has seen a store after the fork");
        sim.end(None);
    });
}

#[test]
fn r13_no_copy_comes_between_the_pages_that_fork_shares() {
    explore("fork of two pages, stores to both", Some(6), || {
        let sim = Arc::new(Sim::new(2));
        let other = sim.cpus.on(0, |ctx| {
            sim.fill(1, false, &ctx);
            sim.fill(0, true, &ctx).1
        });
        let storer = thread::spawn({
            let sim = sim.clone();
            move || {
                sim.cpus.on(1, |ctx| {
                    sim.store_by_faults(1, 0, 2, &ctx);
                    sim.store_by_faults(1, 1, 2, &ctx);
                });
            }
        });
        sim.cpus.on(0, |ctx| sim.fork(2, &ctx));
        storer.join().expect("the other CPU went well");
        let [first, second] = [0, 1].map(|n| sim.content(&sim.child[n]));
        assert!(second == 1 || first == 2, "the child has a store, and not the one before it");
        assert!([0, 1].iter().all(|&n| sim.content(&sim.parent[n]) == 2), "the parent has lost a store");
        sim.end(other);
    });
}

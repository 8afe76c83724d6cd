//! Every interleaving of a page fault of the Bonsai address space, from the look-up to the access, with an unmapping, from the tree
//! to the frame's and the table's next use; and with a fault beside it under the same leaf table.
//!
//! The tree, the steps at the page table, and the gather are the real ones. Grace periods are those of the tree's own models;
//! a CPU's translation buffer is one translation behind a lock, which the CPU holds for an access and a shootdown for a flush:
//! how interrupts do that is in `tlb`'s models. Loom watches nodes, the mapping, the leaf table's memory and the frames' bytes: what is
//! used again while somebody may still use it is a race.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test --release -p quire-aspace --test loom_fault`.
#![cfg(loom)]

#[path = "../../bonsai/tests/common/mod.rs"]
mod common;

use std::ptr::NonNull;

use addr::{Frame, Page, PageRange, Prot, Pte};
use bonsai::{Entry, Rcu, Region, RegionTree};
use common::Quiet;
use loom::{
    cell::UnsafeCell,
    sync::{Arc, Mutex},
    thread,
};
use owned::{Memory, OwnedFrame, Use, testing};
use pagetable::{Which, steps};
use percpu::{AtomicCpuSet, CpuId, CpuSet, Pinned, Unpinned, testing::Machine, testing::explore};
use rcu::Head;
use sync::{
    SpinLock, mutant,
    primitive::{AtomicU64, Ordering},
};
use tlb::{Gather, Shootdown};

/// Memory whose uses loom watches.
#[derive(Default)]
struct Watched(UnsafeCell<()>);

// SAFETY: loom fails a model if two uses of a cell race; that none do is what is shown.
unsafe impl Sync for Watched {}
// SAFETY: as above.
unsafe impl Send for Watched {}

impl Watched {
    fn read(&self) {
        self.0.with(|_| ());
    }
    /// By the next owner.
    fn reuse(&self) {
        self.0.with_mut(|_| ());
    }
}

/// What a mapping says: that it may be read.
#[derive(Default)]
struct Area(Watched);

impl Drop for Area {
    fn drop(&mut self) {
        self.0.reuse();
    }
}

/// The leaf table's memory, while it waits for a grace period.
#[repr(C)]
struct Waiting {
    head: Head,
    table: NonNull<Watched>,
}

/// # Safety
/// `head` is that of a leaked box of this type, and the sections that may walk the table are over; the model isn't.
unsafe fn free(head: NonNull<Head>, _: &Pinned<'_>) {
    // SAFETY: the caller's promise.
    let waiting = unsafe { Box::from_raw(head.cast::<Waiting>().as_ptr()) };
    // SAFETY: as above.
    unsafe { waiting.table.as_ref() }.reuse();
}

/// Two pages of one mapping, under one leaf table, which may have to be made. CPU 0 unmaps; each other CPU has a fault.
struct Sim {
    cpus: Machine,
    frames: &'static Memory,
    domain: &'static Quiet,
    tree: RegionTree<Area, &'static Quiet>,
    /// The entry that names the directory, and what locks that; the directory, and the leaf table's entries.
    above: AtomicU64,
    lock: SpinLock<()>,
    directory: [AtomicU64; 1],
    leaf: [AtomicU64; 2],
    table: Watched,
    /// Of the frames from 512 on.
    bytes: [Watched; FRAMES],
    buffers: [Mutex<Option<Frame>>; 3],
    active: AtomicCpuSet,
}

const FRAMES: usize = 8;
/// The leaf table that there is from the beginning is nobody's frame.
const FIRST: u64 = 1;

impl Shootdown for Sim {
    fn flush(&self, pin: &Pinned<'_>, cpus: &CpuSet, _: PageRange) {
        // What was freed last is given out first: a frame that is free by now has its next owner here.
        let next = self.frames.alloc(pin, Use::Anonymous).expect("there are frames");
        self.bytes(next.frame()).reuse();
        self.frames.free(pin, next);
        cpus.iter().for_each(|cpu| *self.buffers[cpu.index()].lock().unwrap() = None);
    }
}

fn page(n: usize) -> Page {
    Page::new(n as u64).expect("a page")
}

/// Both pages.
fn all() -> PageRange {
    PageRange::with_len(page(0), 2).expect("two pages")
}

impl Sim {
    fn new(cpus: usize, linked: bool) -> Arc<Self> {
        // The domain outlives the tree, and the threads: see `explore_faults`.
        let domain: &'static Quiet = Box::leak(Box::new(Quiet::new(2)));
        let tree = RegionTree::new(domain);
        // Neighbours, so that the removal has to copy nodes on the way.
        for start in [0x10_0000, 0, 0x20_0000] {
            let entry = Entry::new(Area::default());
            tree.write(()).insert(Region::new(start, start + 0x2000), entry).expect("it is free");
        }
        let first = Pte::table(Frame::new(FIRST).expect("a frame"));
        let active = AtomicCpuSet::new();
        (0..cpus).for_each(|cpu| active.insert(CpuId::new(cpu).expect("a CPU")));
        Arc::new(Self {
            cpus: Machine::new(cpus),
            frames: testing::memory(FRAMES, cpus),
            domain,
            tree,
            above: AtomicU64::new(Pte::PRESENT),
            lock: SpinLock::new(()),
            directory: [AtomicU64::new(if linked { first.bits() } else { 0 })],
            leaf: [AtomicU64::new(0), AtomicU64::new(0)],
            table: Watched::default(),
            bytes: Default::default(),
            buffers: Default::default(),
            active,
        })
    }
    /// How the directory is locked.
    fn directory(&self) -> (&SpinLock<()>, &AtomicU64) {
        (&self.lock, &self.above)
    }
    fn bytes(&self, frame: Frame) -> &Watched {
        &self.bytes[(frame.number() - 512) as usize]
    }
    /// A walk without locks: the leaf table's entry, if there is a table.
    fn peek(&self, n: usize) -> Pte {
        // Acquire: as in `PageTable::peek`.
        if !Pte::from_bits(self.directory[0].load(Ordering::Acquire)).is_present() {
            return Pte::EMPTY;
        }
        self.table.read();
        Pte::from_bits(self.leaf[n].load(Ordering::Acquire))
    }
    /// The path of `Serial::resolve_fast`, for an anonymous page. Whether the page has an entry now.
    fn fault(&self, cpu: usize, n: usize, ctx: &Unpinned<'_>) -> bool {
        let pin = ctx.pin();
        let section = self.domain.read(cpu - 1);
        let Some((_, area)) = self.tree.read(&section).covering(page(n).base().as_u64()) else {
            return false;
        };
        area.0.read();
        let alive = || !area.is_dead() || mutant!("bonsai-dead-unseen");
        if !self.peek(n).is_empty() {
            return true;
        }
        let slot = &self.directory[0];
        // Acquire: as in the walk.
        if !Pte::from_bits(slot.load(Ordering::Acquire)).is_present() {
            let mut spare = self.frames.alloc(&pin, Use::PageTable);
            let linked = steps::link(self.directory(), slot, &mut spare, alive);
            spare.into_iter().for_each(|table| self.frames.free(&pin, table));
            // The directory was unlinked, or the mapping is dead, which is why.
            if !matches!(linked, Some(Ok(_))) {
                return false;
            }
        }
        // Not there: the table was unlinked, and so the mapping is dead.
        let Some(leaf) = steps::lock_leaf(slot, &self.leaf, page(n)) else { return false };
        self.table.read();
        if !alive() || !leaf.peek(page(n)).is_empty() {
            return false;
        }
        leaf.insert(page(n), self.frames.alloc(&pin, Use::Anonymous).expect("there are frames"), Prot::READ);
        true
    }
    /// One access by the hardware: by what the buffer has, or by the table.
    fn load(&self, cpu: usize, n: usize) {
        let mut buffer = self.buffers[cpu].lock().unwrap();
        if buffer.is_none() {
            // Relaxed: the hardware's walk is ordered by nothing but what the protocol does.
            if Pte::from_bits(self.directory[0].load(Ordering::Relaxed)).is_present() {
                self.table.read();
                let entry = Pte::from_bits(self.leaf[n].load(Ordering::Relaxed));
                *buffer = entry.is_present().then(|| entry.frame());
            }
        }
        buffer.iter().for_each(|frame| self.bytes(*frame).read());
    }
    /// As `Serial::evict` and `Serial::close` do it. Which frame the first page had, or the second.
    fn unmap(&self, ctx: &Unpinned<'_>) -> [bool; 2] {
        drop(self.tree.write(()).remove(0).expect("it is mapped"));
        let mut gather = Gather::new(self.frames, *ctx);
        let (mut had, mut table) = ([None; 2], None);
        if let Some(slot) = steps::next_in_order(&self.directory, self.directory()) {
            let leaf = steps::lock_leaf(slot, &self.leaf, page(0)).expect("nobody else unlinks");
            had = [0, 1].map(|n| Some(leaf.peek(page(n))).filter(|entry| entry.is_present()));
            leaf.take_range(all(), Which::All, &mut gather, &mut 0).expect("there is room");
            drop(leaf);
            table = Some(steps::unlink(slot));
            if !mutant!("detach-no-flush") {
                gather.add_range(all());
            }
        }
        steps::unlink_above(self.directory());
        if mutant!("bonsai-table-early") && table.is_some() {
            self.table.reuse();
        }
        gather.flush(&ctx.pin(), self, &self.active);
        drop(gather);
        had.iter().flatten().for_each(|entry| self.bytes(entry.frame()).reuse());
        if let Some(link) = table {
            self.retire(link, ctx);
        }
        had.map(|entry| entry.is_some())
    }
    fn retire(&self, link: Pte, ctx: &Unpinned<'_>) {
        if link.frame().number() != FIRST {
            // SAFETY: the link owned the frame, which stands for the table that the model has elsewhere.
            self.frames.free(&ctx.pin(), unsafe { OwnedFrame::from_raw(link.frame(), Use::PageTable) });
        }
        if mutant!("bonsai-no-grace") {
            self.table.reuse();
        }
        let waiting = Box::new(Waiting { head: Head::new(), table: NonNull::from(&self.table) });
        let head = NonNull::from(Box::leak(waiting)).cast::<Head>();
        // SAFETY: the table is unlinked and flushed; `free` is for this type.
        unsafe { Rcu::retire(&self.domain, &(), head, free) };
    }
    fn owned(&self) -> u64 {
        self.frames.stats().owned.iter().sum()
    }
}

/// An unmapping, and on each other CPU a fault on its page and an access, or only an access to a page that is there.
fn explore_faults(name: &str, preemptions: usize, linked: bool, faults: &'static [usize]) {
    explore(name, Some(preemptions), move || {
        let sim = Sim::new(1 + faults.len(), linked);
        let threads = (1..).zip(faults).map(|(cpu, &n)| {
            let sim = sim.clone();
            thread::spawn(move || {
                let filled = sim.cpus.on(cpu, |ctx| sim.fault(cpu, n, &ctx));
                sim.load(cpu, n);
                filled
            })
        });
        let threads: Vec<_> = threads.collect();
        let had = sim.cpus.on(0, |ctx| sim.unmap(&ctx));
        for (thread, &n) in threads.into_iter().zip(faults) {
            let filled = thread.join().expect("the other CPU went well");
            assert_eq!(filled, had[n], "an entry was put in where nothing is mapped");
        }
        assert!(sim.peek(0).is_empty() && sim.peek(1).is_empty());
        sim.domain.settle();
        assert_eq!(sim.owned(), 0);
        let domain = std::ptr::from_ref(sim.domain).cast_mut();
        drop(sim);
        // SAFETY: it was a box, and what used it is gone.
        drop(unsafe { Box::from_raw(domain) });
    });
}

#[test]
fn a_fault_fills_what_the_unmapping_finds_or_nothing() {
    explore_faults("fault against unmap, table there", 4, true, &[0]);
}

#[test]
fn a_fault_that_makes_the_table_is_found_or_refused() {
    explore_faults("fault against unmap, absent table", 4, false, &[0]);
}

#[test]
fn two_faults_under_one_table_and_an_unmapping() {
    explore_faults("two faults against unmap, table there", 2, true, &[0, 1]);
}

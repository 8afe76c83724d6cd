//! Every interleaving of a fault and an unmapping whose leaf table does not exist yet, and of one that goes away.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test --release -p quire-pagetable --lib`.

extern crate std;

use addr::{Frame, Page, Prot, Pte};
use loom::{sync::Arc, thread};
use owned::{Memory, OwnedFrame, Use, testing};
use percpu::{Unpinned, testing::Machine, testing::explore};
use sync::{
    SpinLock,
    primitive::{AtomicBool, AtomicU64, Ordering},
};

use super::{first_link, first_link_in_order, hold_by, link_under, lock_link};
use crate::Leaf;

/// A directory, the entry that names it, and the one leaf table that it may get.
struct Sim {
    cpus: Machine,
    frames: &'static Memory,
    above: AtomicU64,
    lock: SpinLock<()>,
    directory: [AtomicU64; 1],
    leaf: [AtomicU64; 2],
    /// Whether what the page should be was taken away.
    dead: AtomicBool,
    /// How often the leaf table was unlinked.
    unlinked: AtomicU64,
}

impl Sim {
    fn new(linked: bool) -> Arc<Self> {
        let leaf = Pte::table(Frame::new(1).expect("a frame"));
        Arc::new(Self {
            cpus: Machine::new(2),
            frames: testing::memory(16, 2),
            above: AtomicU64::new(Pte::PRESENT),
            lock: SpinLock::new(()),
            directory: [AtomicU64::new(if linked { leaf.bits() } else { 0 })],
            leaf: [AtomicU64::new(0), AtomicU64::new(0)],
            dead: AtomicBool::new(false),
            unlinked: AtomicU64::new(0),
        })
    }
    /// As [`Concurrent::lock_leaf_or_make`](super::Concurrent::lock_leaf_or_make), and then an entry. True if it went in.
    fn fault(&self, page: Page, ctx: &Unpinned<'_>) -> bool {
        let pin = ctx.pin();
        // Relaxed: the locks order it.
        let alive = || !self.dead.load(Ordering::Relaxed);
        let mut spare = self.frames.alloc(&pin, Use::PageTable);
        let slot = &self.directory[0];
        // Acquire: as in the walk.
        let mut linked = Pte::from_bits(slot.load(Ordering::Acquire)).is_present();
        if !linked && alive() {
            // With the table above gone, nobody is alive.
            linked = hold_by(&self.lock, Some(&self.above))
                .is_some_and(|above| link_under(&above, slot, &mut spare, alive).is_ok());
        }
        spare.into_iter().for_each(|table| self.frames.free(&pin, table));
        if !linked || lock_link(slot).is_none() {
            return false;
        }
        let leaf = Leaf::locked(slot, &self.leaf, page);
        if !alive() {
            return false;
        }
        leaf.insert(page, self.frames.alloc(&pin, Use::Anonymous).expect("there are frames"), Prot::READ);
        true
    }
    /// As an unmapping does it: what the page should be, then the entries, then the table. Whether there was an entry.
    fn unmap(&self, page: Page, ctx: &Unpinned<'_>) -> bool {
        // Relaxed: the locks order it.
        self.dead.store(true, Ordering::Relaxed);
        let pass = || drop(hold_by(&self.lock, Some(&self.above)).expect("nobody else unlinks"));
        let Some((_, slot, _)) = first_link_in_order(&self.directory, pass) else {
            self.unlink_above();
            return false;
        };
        lock_link(slot).expect("nobody else unlinks");
        let taken = Leaf::locked(slot, &self.leaf, page).take(page);
        lock_link(slot).expect("nobody else unlinks");
        // AcqRel: as in `detach`.
        let link = Pte::from_bits(slot.swap(0, Ordering::AcqRel));
        self.unlinked.fetch_add(1, Ordering::Relaxed);
        let pin = ctx.pin();
        // The first leaf was nobody's frame.
        if link.frame().number() != 1 {
            // SAFETY: the link owned it, and the model's walkers do not look into it.
            self.frames.free(&pin, unsafe { OwnedFrame::from_raw(link.frame(), Use::PageTable) });
        }
        self.unlink_above();
        let any = taken.is_some();
        taken.into_iter().for_each(|(frame, _)| self.frames.free(&pin, frame));
        any
    }
    /// The table above serves nothing else.
    fn unlink_above(&self) {
        let held = hold_by(&self.lock, Some(&self.above)).expect("nobody else unlinks");
        // AcqRel: as in `detach`.
        self.above.swap(0, Ordering::AcqRel);
        drop(held);
    }
    fn owned(&self) -> u64 {
        self.frames.stats().owned.iter().sum()
    }
}

fn against(name: &str, linked: bool) {
    explore(name, Some(3), move || {
        let sim = Sim::new(linked);
        let other = sim.clone();
        let page = Page::default();
        let fault = thread::spawn(move || other.cpus.on(1, |ctx| other.fault(page, &ctx)));
        let taken = sim.cpus.on(0, |ctx| sim.unmap(page, &ctx));
        let filled = fault.join().expect("the other CPU went well");
        assert_eq!(filled, taken, "an entry was put in where nothing is mapped");
        assert!(first_link(&sim.directory).is_none(), "a table is left where nothing is mapped");
        assert_eq!(sim.owned(), 0);
    });
}

#[test]
fn no_entry_is_made_in_a_table_that_did_not_exist() {
    against("unmap against fault, absent table", false);
}

#[test]
fn no_entry_is_made_in_a_table_that_goes_away() {
    against("unmap against fault, table unlinked", true);
}

//! Every interleaving of CPUs that fault on pages of one table with one that sweeps the table away, under the pages' locks.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test --release -p quire-pagetable --lib`.

extern crate std;

use addr::Prot;
use loom::{cell::UnsafeCell, sync::Arc, thread};
use percpu::testing::explore;
use sync::BitLock;

use super::*;
use crate::put_link;

/// The lock of a page, and beside it whether it has a frame.
const LOCK: u64 = 1;
const FRAME: u64 = 2;

/// A page of memory that may be a table of two entries.
#[derive(Default)]
struct Table {
    /// Whose it is: users of the table read it, its owners before and after write it.
    bytes: UnsafeCell<()>,
    entries: [AtomicU64; 2],
}

// SAFETY: loom fails the test if two accesses race; that none do is what is shown.
unsafe impl Sync for Table {}
// SAFETY: as above.
unsafe impl Send for Table {}

struct Sim {
    pages: [AtomicU64; 2],
    upper: SpinLock<()>,
    slot: AtomicU64,
    /// By frame number.
    tables: [Table; 3],
}

fn table(number: usize) -> Pte {
    Pte::table(Frame::new(number as u64).expect("a frame number"))
}

impl Sim {
    /// Table 0 is linked, and serves nothing.
    fn new() -> Arc<Self> {
        Arc::new(Self {
            pages: Default::default(),
            upper: SpinLock::new(()),
            slot: AtomicU64::new(table(0).bits()),
            tables: Default::default(),
        })
    }
    /// Page `page`, locked; nothing if somebody else has it.
    fn lock(&self, page: usize) -> Option<u64> {
        BitLock::try_lock(&self.pages[page], LOCK)
    }
    /// As [`Mirror::prepare`] and [`Entry::set`]. Table `fresh` is this CPU's until it is linked. False if others have the page.
    fn fault(&self, page: usize, fresh: usize) -> bool {
        if self.lock(page).is_none() {
            return false;
        }
        // Acquire: as in `Mirror::prepare`.
        let mut link = Pte::from_bits(self.slot.load(Ordering::Acquire));
        if !link.is_present() {
            self.tables[fresh].bytes.with_mut(|_| ());
            link = put_link(&self.upper, &self.slot, table(fresh));
        }
        let table = &self.tables[link.frame().number() as usize];
        table.bytes.with(|_| ());
        let (entry, entries, directory) = (&table.entries[page], &table.entries[..], &self.slot);
        let entry = Entry { entry, entries, directory, protected: false };
        entry.set(Frame::new(8).expect("a frame number"), Prot::READ);
        self.pages[page].fetch_or(FRAME, Ordering::Relaxed);
        BitLock::unlock(&self.pages[page], LOCK);
        true
    }
    /// As the sweep of an address space: with all pages locked that the table serves, or, wrongly, only the first `locked`.
    fn sweep(&self, locked: usize) {
        let mut held = 0;
        while held < locked && self.lock(held).is_some() {
            held += 1;
        }
        let idle = self.pages[..held].iter().all(|page| page.load(Ordering::Relaxed) & FRAME == 0);
        if held == locked && idle {
            let link = take_link(&self.slot);
            if link.is_present() {
                // Flushed and given back, it is somebody else's.
                self.tables[link.frame().number() as usize].bytes.with_mut(|_| ());
            }
        }
        (0..held).for_each(|page| BitLock::unlock(&self.pages[page], LOCK));
    }
    /// Each page that has a frame has an entry in the table that is linked.
    fn check(&self) {
        let link = Pte::from_bits(self.slot.load(Ordering::Relaxed));
        for (page, word) in self.pages.iter().enumerate() {
            if word.load(Ordering::Relaxed) & FRAME != 0 {
                assert!(link.is_present(), "a page's table is lost");
                let table = &self.tables[link.frame().number() as usize];
                assert!(table.entries[page].load(Ordering::Relaxed) != 0, "a page's entry is lost");
            }
        }
    }
}

fn meet(locked: usize) {
    let sim = Sim::new();
    let other = sim.clone();
    let first = thread::spawn(move || other.fault(0, 1));
    let other = sim.clone();
    let second = thread::spawn(move || other.fault(1, 2));
    sim.sweep(locked);
    first.join().expect("the CPU went well");
    second.join().expect("the CPU went well");
    sim.check();
}

#[test]
fn a_table_is_swept_or_used() {
    explore("sweep against two faults", Some(3), || meet(2));
}

/// Both CPUs find no table: one of them links its own, and both use that.
#[test]
fn two_faults_use_one_table() {
    explore("two faults without a table", None, || {
        let sim = Sim::new();
        sim.sweep(2);
        let other = sim.clone();
        let first = thread::spawn(move || other.fault(0, 1));
        assert!(sim.fault(1, 2));
        assert!(first.join().expect("the CPU went well"));
        sim.check();
    });
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_sweep_without_all_locks_is_noticed() {
    explore("sweep with one lock of two", Some(3), || meet(1));
}

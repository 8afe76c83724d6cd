//! What updates cost readers and memory: nodes, turns, and lines written under readers.
#![cfg(not(any(loom, shuttle)))]

mod random;

use std::{
    alloc::{Layout, alloc, dealloc},
    ptr::NonNull,
    sync::{Arc, Mutex},
};

use bonsai::{Counts, Entry, Memory, PAGE, Pool, Region, RegionTree, Writer};
use percpu::{CpuId, Pinned};
use random::Random;
use rcu::kernel::Domain;

const LINE: usize = 64;
/// Where nodes of regions begin in a page: behind the header and 56 sides.
const NODES: usize = 512;
/// The lines of a leaf of regions.
const LEAF: u64 = 6;

/// A page, and what was in it at the last look.
type Page = (NonNull<u8>, Vec<u8>);

/// Pages whose lines are compared.
#[derive(Clone, Default)]
struct Watched(Arc<Mutex<Vec<Page>>>);

// SAFETY: the pages are memory, looked at while nobody writes.
unsafe impl Send for Watched {}
// SAFETY: as above.
unsafe impl Sync for Watched {}

// SAFETY: the allocator's memory, of this layout.
unsafe impl Memory for Watched {
    fn page(&self) -> Option<NonNull<u8>> {
        let layout = Layout::from_size_align(PAGE, PAGE).unwrap();
        // SAFETY: the layout has a size.
        let page = NonNull::new(unsafe { alloc(layout) })?;
        // SAFETY: the page is ours; so that all of it may be read.
        unsafe { page.write_bytes(0, PAGE) };
        self.0.lock().unwrap().push((page, vec![0; PAGE]));
        Some(page)
    }
    unsafe fn free(&self, page: NonNull<u8>) {
        self.0.lock().unwrap().retain(|(other, _)| *other != page);
        // SAFETY: the caller's promise.
        unsafe { dealloc(page.as_ptr(), Layout::from_size_align(PAGE, PAGE).unwrap()) };
    }
}

impl Watched {
    /// Lines of nodes that have changed since the last call.
    fn changed(&self) -> usize {
        let mut changed = 0;
        for (page, before) in self.0.lock().unwrap().iter_mut() {
            for line in (NODES..PAGE).step_by(LINE) {
                // SAFETY: a page of the pool, written by this thread only. Its bytes were all written once.
                let now = unsafe { std::slice::from_raw_parts(page.as_ptr().add(line), LINE) };
                changed += usize::from(now != &before[line..line + LINE]);
                before[line..line + LINE].copy_from_slice(now);
            }
        }
        changed
    }
}

type Tree = RegionTree<u32, Arc<Domain>, Watched>;
type Update<'a> = &'a mut dyn FnMut(&mut Writer<'_, '_, Region, u32, Arc<Domain>, Watched>);

struct Lab {
    domain: Arc<Domain>,
    pin: Pinned<'static>,
    tree: Tree,
    watched: Watched,
}

impl Lab {
    /// A tree with leaves from so many nodes on.
    fn with(leaves_from: usize) -> Self {
        let domain = Arc::new(Domain::new(1));
        // SAFETY: the test's thread is the only one of its domain.
        let mut pin = unsafe { Pinned::assume(CpuId::new(0).unwrap()) };
        domain.idle_exit(&mut pin);
        let watched = Watched::default();
        let tree = Tree::in_pool(domain.clone(), Pool::new(watched.clone())).leaves_from(leaves_from);
        Self { domain, pin, tree, watched }
    }
    /// Let everything end that was retired.
    fn settle(&mut self) {
        while self.domain.pending(&self.pin) > 0 {
            self.domain.tick(&mut self.pin);
        }
    }
    /// What so many calls of `update` do.
    fn run(&mut self, calls: usize, update: Update<'_>) -> Counts {
        let before = self.tree.write(&self.pin).counts();
        for _ in 0..calls {
            update(&mut self.tree.write(&self.pin));
            self.domain.tick(&mut self.pin);
        }
        let writer = self.tree.write(&self.pin);
        writer.check().unwrap();
        let now = writer.counts();
        Counts {
            updates: now.updates - before.updates,
            allocated: now.allocated - before.allocated,
            leaves: now.leaves - before.leaves,
            retired: now.retired - before.retired,
            splits: now.splits - before.splits,
            single: now.single - before.single,
            double: now.double - before.double,
            stores: now.stores - before.stores,
            most: now.most,
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.settle();
    }
}

/// From how many nodes on trees have leaves: none does, and as they do if nobody says.
const SORTS: [(&str, usize); 2] = [("nodes alone", usize::MAX), ("leaves", 512)];

/// A region of one page with the key's number.
fn page(n: u64) -> Region {
    Region::new(n << 12, (n + 1) << 12)
}

struct Cost {
    allocated: f64,
    retired: f64,
    rotations: f64,
    stores: f64,
}

fn cost(name: &str, counts: Counts) -> Cost {
    let per = |n: u64| n as f64 / counts.updates as f64;
    let rotations = per(counts.single + counts.double);
    let cost = Cost {
        allocated: per(counts.allocated),
        retired: per(counts.retired),
        rotations,
        stores: per(counts.stores),
    };
    println!(
        "{name:44} {:8} updates, each: {:.2} made ({:.2} leaves), {:.2} retired, {:.3} splits, {rotations:.3} rotations ({:.3} double), {:.3} stores; at most {} made",
        counts.updates,
        cost.allocated,
        per(counts.leaves),
        cost.retired,
        per(counts.splits),
        per(counts.double),
        cost.stores,
        counts.most
    );
    cost
}

#[test]
fn updates_are_cheap() {
    for (sort, from) in SORTS {
        println!("{sort}:");
        for n in [1000, 100_000] {
            let mut lab = Lab::with(from);
            let mut random = Random(3);
            let counts = lab.run(n, &mut |writer| loop {
                let key = u64::from(random.below(1 << 30));
                if writer.insert(page(key), Entry::new(0)).is_ok() {
                    break;
                }
            });
            let random_inserts = cost(&format!("{n} random inserts"), counts);
            let most = if from == usize::MAX { 0.65 } else { 1.05 };
            assert!(
                random_inserts.retired < most
                    && random_inserts.stores < 1.2
                    && random_inserts.rotations < 0.3
            );
        }
        for down in [false, true] {
            let mut lab = Lab::with(from);
            let mut next = if down { 50_000 } else { 0 };
            let counts = lab.run(50_000, &mut |writer| {
                writer.insert(page(next), Entry::new(0)).unwrap();
                next = if down { next - 1 } else { next + 1 };
            });
            let name = if down { "50000 descending inserts" } else { "50000 ascending inserts" };
            let ordered = cost(name, counts);
            assert!(ordered.retired <= 2.0 && ordered.stores <= 1.5 && ordered.rotations <= 1.0);
        }
    }
}

/// What address spaces do: sizes in pages as of libraries, heaps and stacks, placed from above as `mmap` does, unmapped in
/// random order, and split and merged by `mprotect`.
#[test]
fn updates_of_address_spaces_are_cheap() {
    for (sort, from) in SORTS {
        println!("{sort}:");
        of_address_spaces(from);
    }
}

fn of_address_spaces(from: usize) {
    let all = Region::new(1 << 16, 1 << 47);
    let mut lab = Lab::with(from);
    let mut random = Random(5);
    let mut mapped: Vec<Region> = Vec::new();
    let map = |writer: &mut Writer<'_, '_, Region, u32, Arc<Domain>, Watched>, random: &mut Random| {
        let bytes = (1u64 << random.below(9)) << 12;
        let at = writer.gap(bytes, all, bonsai::Fit::Highest).unwrap();
        let region = Region::new(at, at + bytes);
        writer.insert(region, Entry::new(0)).unwrap();
        region
    };
    let counts = lab.run(1000, &mut |writer| mapped.push(map(writer, &mut random)));
    let grown = cost("1000 regions placed from above", counts);
    assert!(grown.retired <= 2.0 && grown.stores <= 1.5);
    let counts = lab.run(20_000, &mut |writer| {
        let gone = mapped.swap_remove(random.below(1000) as usize);
        drop(writer.remove(gone.start()).unwrap());
        mapped.push(map(writer, &mut random));
    });
    let churn = cost("mmap and munmap at random, 1000 regions", counts);
    assert!(churn.retired <= 2.0 && churn.stores <= 1.5);
    let counts = lab.run(5000, &mut |writer| {
        let (whole, at) = (mapped[random.below(1000) as usize], 1 << 12);
        if whole.end() - whole.start() > at {
            // Another protection for the first page, and the old one again.
            let (half, end) = (whole.start() + at, whole.end());
            writer.insert_piece(Region::new(half, end), Entry::new(0)).unwrap();
            drop(writer.replace(Region::new(whole.start(), half), Entry::new(1)).unwrap());
            drop(writer.remove(half).unwrap());
            drop(writer.replace(whole, Entry::new(0)).unwrap());
        }
    });
    let split = cost("split and merge, 1000 regions", counts);
    assert!(split.retired <= 2.0 && split.stores <= 1.5);
    let mut lab = Lab::with(from);
    let (mut ahead, mut behind) = (0, 0);
    lab.run(1000, &mut |writer| {
        writer.insert(page(ahead), Entry::new(0)).unwrap();
        ahead += 1;
    });
    let counts = lab.run(50_000, &mut |writer| {
        writer.insert(page(ahead), Entry::new(0)).unwrap();
        drop(writer.remove(page(behind).start()).unwrap());
        (ahead, behind) = (ahead + 1, behind + 1);
    });
    let window = cost("mmap ahead and munmap behind, 1000 regions", counts);
    assert!(window.retired <= 2.0 + 0.01 && window.stores <= 1.5);
}

#[test]
fn removals_are_cheap() {
    for (sort, from) in SORTS {
        println!("{sort}:");
        removals(from);
    }
}

fn removals(from: usize) {
    let mut lab = Lab::with(from);
    let mut random = Random(9);
    let mut keys: Vec<u64> = (0..50_000).collect();
    let all: Vec<_> = keys.iter().map(|n| (page(2 * n), Entry::new(0))).collect();
    lab.tree.write(&lab.pin).build(all).unwrap();
    let counts = lab.run(40_000, &mut |writer| {
        let key = keys.swap_remove(random.below(keys.len() as u32) as usize);
        drop(writer.remove(page(2 * key).start()).unwrap());
    });
    let removed = cost("40000 random removals of 50000", counts);
    assert!(removed.retired <= 3.0 && removed.stores <= 1.2);
}

/// Counted by looking at memory: an update writes the nodes that it makes, those that it retires, and those that it stores
/// into; nothing else that readers read. Sizes and gaps change on the whole path, and are elsewhere.
#[test]
fn no_other_lines_of_nodes_are_written() {
    for (sort, from) in SORTS {
        println!("{sort}:");
        lines_written(from);
    }
}

fn lines_written(from: usize) {
    let mut lab = Lab::with(from);
    let mut random = Random(11);
    let (mut inserts, mut lines) = (0, 0);
    for step in 0..4000 {
        let key = u64::from(random.below(if step < 2000 { 100_000 } else { 3000 }));
        let before = lab.tree.write(&lab.pin).counts();
        let pages = lab.watched.0.lock().unwrap().len();
        lab.watched.changed();
        let mut writer = lab.tree.write(&lab.pin);
        let inserted = writer.insert(page(key), Entry::new(0)).is_ok();
        if !inserted {
            drop(writer.remove(page(key).start()).unwrap());
        }
        let now = writer.counts();
        drop(writer);
        let changed = lab.watched.changed();
        let leaves = now.leaves - before.leaves;
        let nodes = now.allocated - before.allocated - leaves;
        let own = nodes + LEAF * leaves + (now.retired - before.retired);
        let stores = now.stores - before.stores;
        // What is retired is linked behind what was retired last.
        assert!(
            changed as u64 <= own + stores + 1,
            "{changed} lines for {own} of nodes and leaves and {stores} stores"
        );
        if inserted {
            inserts += 1;
            lines += changed as u64 - own.min(changed as u64);
        }
        // Only now is anything freed, which writes lines that nobody reads.
        if pages > 200 || step % 64 == 0 {
            lab.settle();
        }
    }
    let mean = lines as f64 / f64::from(inserts);
    println!("{inserts} inserts wrote {mean:.2} lines each of nodes that stayed (as memory shows)");
    // A leaf is retired by nearly each, and linked behind the one before.
    assert!(mean <= if from == usize::MAX { 1.5 } else { 2.0 });
}

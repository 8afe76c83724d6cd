//! Page tables against a map from pages to what was put there, and page-table pages against what the mapped pages
//! need.
#![cfg(not(loom))]

use std::collections::{BTreeMap, BTreeSet};

use addr::{Page, PageRange, Prot};
use owned::{Memory, Use, testing};
use pagetable::{PageTable, USER_PAGES, Which};
use percpu::{AtomicCpuSet, CpuSet, Pinned, Unpinned, testing::Machine};
use proptest::prelude::*;
use tlb::{Gather, Shootdown};

/// Nobody caches anything.
struct NoTlb;

impl Shootdown for NoTlb {
    fn flush(&self, _: &Pinned<'_>, _: &CpuSet, _: PageRange) {}
}

/// Where pages are: around the borders of tables of every level.
const WINDOWS: [u64; 5] = [0, (1 << 9) - 8, (1 << 18) - 8, (1 << 27) - 8, USER_PAGES - 16];
const WINDOW: u64 = 16;

#[derive(Clone, Debug)]
enum Op {
    Insert(u64, Prot),
    Protect(u64, u64, Prot),
    Take(u64, u64),
    Relocate(u64, u64, u64),
}

fn a_page() -> impl Strategy<Value = u64> {
    (prop::sample::select(&WINDOWS[..]), 0..WINDOW).prop_map(|(w, i)| w + i)
}
/// A protection as the hardware knows it: what may be used may be read.
fn a_prot() -> impl Strategy<Value = Prot> {
    (0u8..8).prop_map(|bits| {
        let prot = Prot::from_bits_truncate(bits);
        if prot.is_empty() { prot } else { prot | Prot::READ }
    })
}
fn an_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (a_page(), a_prot()).prop_map(|(n, p)| Op::Insert(n, p)),
        2 => (a_page(), 1..WINDOW, a_prot()).prop_map(|(n, l, p)| Op::Protect(n, l, p)),
        2 => (a_page(), 1..WINDOW).prop_map(|(n, l)| Op::Take(n, l)),
        1 => (a_page(), 1..8u64, a_page()).prop_map(|(n, l, to)| Op::Relocate(n, l, to)),
    ]
}

fn page(n: u64) -> Page {
    Page::new(n).expect("a page number")
}
/// As much of `pages` pages from `start` as is user space.
fn range(start: u64, pages: u64) -> PageRange {
    PageRange::new(page(start), page((start + pages).min(USER_PAGES))).expect("ascending")
}

struct World<'w> {
    frames: &'static Memory,
    ctx: Unpinned<'w>,
    table: PageTable,
    /// Frame number and protection of each page that has one.
    model: BTreeMap<u64, (u64, Prot)>,
}

impl World<'_> {
    fn step(&mut self, op: &Op) {
        match *op {
            Op::Insert(n, prot) => self.insert(n, prot),
            Op::Protect(n, pages, prot) => self.protect(range(n, pages), prot),
            Op::Take(n, pages) => self.take(range(n, pages)),
            Op::Relocate(n, pages, to) => self.relocate(range(n, pages), range(to, pages)),
        }
    }
    fn insert(&mut self, n: u64, prot: Prot) {
        let pin = self.ctx.pin();
        if let Some((frame, _)) = self.model.get(&n) {
            let leaf = self.table.lock_leaf(page(n)).expect("the page is there");
            assert_eq!(leaf.peek(page(n)).frame().number(), *frame);
            return;
        }
        let frame = self.frames.alloc(&pin, Use::Anonymous).expect("there is memory");
        self.model.insert(n, (frame.frame().number(), prot));
        let leaf = self.table.lock_leaf_or_make(self.frames, &pin, page(n)).expect("there is memory");
        leaf.insert(page(n), frame, prot);
    }
    fn protect(&mut self, changed: PageRange, prot: Prot) {
        let mut lost = Vec::new();
        for at in changed {
            if let Some((_, old)) = self.model.get_mut(&at.number()) {
                if !prot.contains(*old) {
                    lost.push(at.number());
                }
                *old = prot;
            }
        }
        let hull = self.table.protect(changed, |_| prot);
        let ends = lost.first().zip(lost.last()).map(|(&first, &last)| range(first, last + 1 - first));
        assert_eq!(hull, ends);
    }
    fn take(&mut self, gone: PageRange) {
        let mut gather = Gather::new(self.frames, self.ctx);
        assert_eq!(self.table.take(gone, Which::All, &mut gather, &mut 0), Ok(()));
        self.model.retain(|&n, _| !gone.contains(page(n)));
        let before = self.model.range(..gone.start().number()).next_back().map_or(0, |(&n, _)| n + 1);
        let after = self.model.range(gone.end().number()..).next().map_or(USER_PAGES, |(&n, _)| n);
        assert_eq!(self.table.prune(gone, range(before, after - before), &mut gather), Ok(()));
        gather.flush(&self.ctx.pin(), &NoTlb, &AtomicCpuSet::new());
    }
    fn relocate(&mut self, from: PageRange, to: PageRange) {
        let used = to.iter().any(|at| self.model.contains_key(&at.number()));
        if from.intersect(to).is_some() || to.len() != from.len() || used {
            return;
        }
        self.protect(from, Prot::empty());
        let pairs = || from.iter().zip(to).map(|(a, b)| (a.number(), b.number()));
        for (_, there) in pairs().filter(|(here, _)| self.model.contains_key(here)) {
            assert!(self.table.lock_leaf_or_make(self.frames, &self.ctx.pin(), page(there)).is_some());
        }
        self.table.relocate(from, to.start(), |_| Prot::READ);
        for (here, there) in pairs() {
            if let Some((frame, _)) = self.model.remove(&here) {
                self.model.insert(there, (frame, Prot::READ));
            }
        }
        // The tables of the source may serve nothing any more: pruning relies on there being none of that kind.
        self.take(from);
    }
    fn compare(&self) {
        for n in WINDOWS.into_iter().flat_map(|w| w..w + WINDOW) {
            let entry = self.table.peek(page(n));
            let seen = (!entry.is_empty()).then(|| (entry.frame().number(), entry.prot()));
            assert_eq!(seen, self.model.get(&n).copied(), "page {n:#x}");
        }
        let (resident, tables) = self.table.census();
        assert_eq!(resident, self.model.len() as u64);
        let tables_of = |n: &u64| [1, 2, 3].map(|level| (level, n >> (9 * level)));
        let needed: BTreeSet<_> = self.model.keys().flat_map(tables_of).collect();
        assert!(tables > needed.len() as u64);
        assert_eq!(self.frames.stats().owned[Use::PageTable as usize], tables);
    }
    fn end(mut self) {
        self.take(range(0, USER_PAGES));
        assert_eq!(self.table.census(), (0, 1));
        let pin = self.ctx.pin();
        self.frames.free(&pin, self.table.retire().expect("the first time"));
        assert!(self.table.retire().is_none() && self.table.root().is_none());
        assert!(self.table.lock_leaf_or_make(self.frames, &pin, page(0)).is_none());
        assert_eq!(self.frames.stats().owned, [0; Use::COUNT]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn entries_are_what_was_put_there(ops in prop::collection::vec(an_op(), 1..60)) {
        let frames = testing::memory(512, 1);
        Machine::new(1).on(0, |ctx| {
            let table = PageTable::new(frames, &ctx.pin(), None).expect("there is memory");
            let mut world = World { frames, ctx, table, model: BTreeMap::new() };
            for op in &ops {
                world.step(op);
                world.compare();
            }
            world.end();
        });
    }
}

#[test]
fn the_kernel_half_is_copied() {
    let frames = testing::memory(64, 1);
    Machine::new(1).on(0, |ctx| {
        let pin = ctx.pin();
        let mut kernel = frames.alloc_zeroed(&pin, Use::Kernel).expect("there is memory");
        let bytes = testing::bytes(frames, &mut kernel);
        bytes.chunks_mut(8).enumerate().for_each(|(i, entry)| entry[0] = (i % 256) as u8 | 1);
        let mut table = PageTable::new(frames, &pin, Some(kernel.frame())).expect("there is memory");
        let mut root = table.retire().expect("the first time");
        for (i, entry) in testing::bytes(frames, &mut root).chunks(8).enumerate() {
            assert_eq!(entry[0], if i < 256 { 0 } else { (i % 256) as u8 | 1 });
        }
        frames.free(&pin, root);
        frames.free(&pin, kernel);
    });
}

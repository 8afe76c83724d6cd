//! Where mappings go that may go anywhere: each CPU has a part of the address space to itself, so that what threads on
//! different CPUs map lies in different nodes of the tree, and choosing a place writes nothing that they share.
//!
//! **Idea.** The truth about what is free is the tree; an arena only knows where it may be worth looking. It hands
//! out places from its end down, past whatever is there already. When it has come to its start, and at least half an arena
//! was handed out since, it begins at its end again, and so finds what was unmapped meanwhile; else the CPU takes the
//! next arena. So each page that is passed over in a search is paid for by one that was handed out, and of the
//! addresses that a space has taken about half are in use or will be, but for an arena for each CPU. What its own CPU
//! unmaps is remembered, so that one who maps and unmaps in a loop gets the same addresses, nodes and page tables.
//!
//! Whoever got a place from here locks it and looks; if others were faster, who asked for that place or whose arena
//! ended in it, it comes again.

use core::{
    cell::RefCell,
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

use addr::PageRange;
use percpu::{PerCpu, Pinned};

use crate::MMAP_TOP;

/// Pages of an arena: what one node of the tree's third level stands for.
pub(super) const ARENA: u64 = 1 << 18;
/// Arenas there may be, from the top of the address space down; the rest is for those who say where.
const MOST: u64 = 3 << 15;
/// Ranges that a CPU remembers to have unmapped.
const FREED: usize = 8;
/// Where whole arenas end.
const BASE: u64 = MMAP_TOP & !(ARENA - 1);

/// A CPU's.
#[derive(Default)]
pub(super) struct Arena {
    pub(super) pages: Range<u64>,
    /// Places are looked for below this page.
    pub(super) top: u64,
    /// Pages handed out since the last search from the end.
    pub(super) handed: u64,
    /// Ranges that were unmapped, the oldest first.
    freed: [PageRange; FREED],
    len: usize,
}

impl Arena {
    /// Begin with `pages`, or with what it has again.
    pub(super) fn begin(&mut self, pages: Range<u64>) {
        (self.top, self.handed, self.pages) = (pages.end, 0, pages);
    }
    /// `range` was unmapped.
    fn note(&mut self, range: PageRange) {
        if self.pages.start <= range.start().number() && range.end().number() <= self.pages.end {
            if self.len == FREED {
                self.freed.rotate_left(1);
                self.len -= 1;
            }
            self.freed[self.len] = range;
            self.len += 1;
        }
    }
    /// The last range of `n` pages that was unmapped.
    pub(super) fn again(&mut self, n: u64) -> Option<PageRange> {
        let i = self.freed[..self.len].iter().rposition(|range| range.len() == n)?;
        self.freed[i..self.len].rotate_left(1);
        self.len -= 1;
        Some(self.freed[self.len])
    }
}

/// The arenas of an address space.
pub(super) struct Arenas {
    mine: PerCpu<RefCell<Arena>>,
    /// How many were taken.
    taken: AtomicU64,
}

impl Arenas {
    pub(super) fn new(cpus: usize) -> Self {
        Self { mine: PerCpu::new(cpus, |_| RefCell::default()), taken: AtomicU64::new(0) }
    }
    pub(super) fn mine<'p>(&'p self, pin: &'p Pinned<'_>) -> &'p RefCell<Arena> {
        self.mine.get(pin)
    }
    /// An arena that no CPU has. The first is what is left above the whole ones.
    pub(super) fn take(&self) -> Option<Range<u64>> {
        // Relaxed: no more than a number of one's own.
        let i = self.taken.fetch_add(1, Ordering::Relaxed);
        let end = if i == 0 { MMAP_TOP } else { BASE.checked_sub((i - 1) * ARENA)? };
        (i < MOST).then(|| BASE - i * ARENA..end)
    }
    /// This CPU has unmapped `range`.
    pub(super) fn freed(&self, range: PageRange, pin: &Pinned<'_>) {
        self.mine(pin).borrow_mut().note(range);
    }
    /// A child's arenas are others than its parent's.
    pub(super) fn follow(&self, parent: &Arenas) {
        // Relaxed, both: as above; nobody uses the child.
        self.taken.store(parent.taken.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

//! Where mappings go that may go anywhere: each CPU has a part of the address space to itself, so that what threads on
//! different CPUs map lies in different nodes of the tree, and choosing a place writes nothing that they share.
//!
//! **Idea.** The truth about what is free is the tree; an arena only knows where it may be worth looking. A CPU goes
//! through its arenas one after the other, through each from its end down, past whatever is there already, and so finds
//! what was unmapped meanwhile, by whichever CPU. When it has been through all, it begins anew if it has handed out a part
//! of all that there is, [`PAID`]; else it takes another arena. So what is passed over in a search is paid for by what was
//! handed out, and an arena is added only if most of what there is could not be had. If that would make more than an
//! arena for each CPU and twice the most that was mapped at once, a smaller part is enough ([`Radix::is_roomy`]):
//! addresses in use stay below that, as long as ranges are small for an arena, so that gaps fit. What its own CPU unmaps
//! is remembered, so that one who maps and unmaps in a loop gets the same addresses, nodes and page tables.
//!
//! A large request passes gaps that small ones would fill. So requests of each of a few classes of sizes have a place of
//! their own in the round.
//!
//! **Large ranges**, of more than [`LARGE`] pages, would fit into few gaps of an arena. They go to parts of the address
//! space that all CPUs share (`large`).
//!
//! Whoever got a place from here locks it and looks; if others were faster, who asked for that place or whose arena
//! ended in it, it comes again.

use alloc::vec::Vec;
use core::{
    cell::RefCell,
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

use addr::PageRange;
use percpu::{PerCpu, Pinned};
use sync::{SpinLock, mutant};

use super::{Radix, large::Large};
use crate::MMAP_TOP;

/// Pages of an arena, 1 GiB: what the slots of one cache line stand for in the tree's third level.
pub(super) const ARENA: u64 = 1 << 18;
/// What is larger has no place in an arena, 16 MiB.
pub(super) const LARGE: u64 = 1 << 12;
/// Arenas there may be, from the top of the address space down; the rest is for those who say where.
const MOST: u64 = 3 << 15;
/// A round is paid for when the pages of all arenas, divided by this and by the smallest request of the class, were handed out;
/// if there are many addresses for what is mapped, by the second.
pub(super) const PAID: [u64; 2] = [8, 64];
/// Ranges that a CPU remembers to have unmapped.
const FREED: usize = 8;
/// Where whole arenas end.
const BASE: u64 = MMAP_TOP & !(ARENA - 1);

/// Requests up to so many pages are of one class, and what is larger of the last.
const CLASSES: [u64; 1] = [1 << 9];

/// Where a class of requests is in a CPU's round.
#[derive(Clone, Copy)]
struct Cursor {
    /// The arena, by its number among the CPU's, and the page below which places are looked for.
    arena: usize,
    top: u64,
    /// Pages that were handed out in this round.
    handed: u64,
}

impl Default for Cursor {
    /// Before the first arena.
    fn default() -> Self {
        Self { arena: usize::MAX, top: 0, handed: 0 }
    }
}

/// A CPU's.
#[derive(Default)]
pub(super) struct Arena {
    /// Those that it has taken, and the pages of all of them.
    taken: Vec<Range<u64>>,
    pages: u64,
    cursors: [Cursor; CLASSES.len() + 1],
    /// Ranges that were unmapped, the oldest first.
    freed: [PageRange; FREED],
    len: usize,
}

impl Arena {
    fn cursor(&mut self, n: u64) -> &mut Cursor {
        &mut self.cursors[CLASSES.iter().filter(|&&most| n > most).count()]
    }
    /// Where `n` pages are to be looked for: from the end of what is given down.
    pub(super) fn place(&mut self, n: u64) -> Range<u64> {
        let Cursor { arena, top, .. } = *self.cursor(n);
        self.taken.get(arena).map_or(0..0, |pages| pages.start..top)
    }
    /// They were found there.
    pub(super) fn found(&mut self, range: PageRange) {
        let cursor = self.cursor(range.len());
        cursor.top = range.start().number();
        cursor.handed += range.len();
    }
    /// They were not: they are to be looked for in the next arena, or in the first again. False if the round is over, and
    /// less than all pages, divided by `paid`, were handed out in it.
    pub(super) fn go_on(&mut self, n: u64, paid: u64) -> bool {
        // A round takes about as many looks as the smallest of the class have room in all that there is.
        let least = CLASSES.iter().rfind(|&&most| n > most).map_or(1, |most| *most);
        let (enough, ends) = ((self.pages / paid / least).max(1), self.taken.len());
        let cursor = self.cursor(n);
        cursor.arena = cursor.arena.wrapping_add(1);
        if cursor.arena >= ends && cursor.handed >= enough && !mutant!("radix-arena-forgotten") {
            (cursor.arena, cursor.handed) = (0, 0);
        }
        let arena = cursor.arena;
        let Some(pages) = self.taken.get(arena) else { return false };
        self.cursor(n).top = pages.end;
        true
    }
    /// `pages` are this CPU's from here on, and `n` pages are to be looked for there. False if there is no memory.
    pub(super) fn begin(&mut self, pages: Range<u64>, n: u64) -> bool {
        if self.taken.try_reserve(1).is_err() {
            return false;
        }
        self.pages += pages.end - pages.start;
        let arena = self.taken.len();
        let cursor = self.cursor(n);
        (cursor.arena, cursor.top) = (arena, pages.end);
        self.taken.push(pages);
        true
    }
    /// `range` was unmapped.
    fn note(&mut self, range: PageRange) {
        let inside =
            |pages: &Range<u64>| pages.start <= range.start().number() && range.end().number() <= pages.end;
        // Where places are looked for, and not in all that there are.
        if self.cursors.iter().filter_map(|cursor| self.taken.get(cursor.arena)).any(inside) {
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
    /// How many were taken, also by the parent, and for what all CPUs share.
    taken: AtomicU64,
    /// How many CPUs have.
    own: AtomicU64,
    large: SpinLock<Large>,
}

impl Arenas {
    pub(super) fn new(cpus: usize) -> Self {
        let mine = PerCpu::new(cpus, |_| RefCell::default());
        let (taken, own) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { mine, taken, own, large: SpinLock::new(Large::default()) }
    }
    pub(super) fn mine<'p>(&'p self, pin: &'p Pinned<'_>) -> &'p RefCell<Arena> {
        self.mine.get(pin)
    }
    /// An arena that no CPU has.
    pub(super) fn take(&self) -> Option<Range<u64>> {
        let arena = self.take_row(1)?;
        // Relaxed: for a rule of thumb.
        self.own.fetch_add(1, Ordering::Relaxed);
        Some(arena)
    }
    /// The pages of `n` arenas in a row that nobody has. The first of all is what is left above the whole ones.
    fn take_row(&self, n: u64) -> Option<Range<u64>> {
        // Relaxed, both: no more than numbers of one's own.
        let enough = |taken: u64| taken.checked_add(n).filter(|&taken| taken <= MOST);
        let i = self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enough).ok()?;
        let end = if i == 0 { MMAP_TOP } else { BASE - (i - 1) * ARENA };
        Some(BASE - (i + n - 1) * ARENA..end)
    }
    /// This CPU has unmapped `range`.
    pub(super) fn freed(&self, range: PageRange, pin: &Pinned<'_>) {
        if range.len() > LARGE {
            self.large.lock().note(range);
        } else {
            self.mine(pin).borrow_mut().note(range);
        }
    }
    /// `n` pages where `gap(top, lowest, unit)` has found them, the highest of `lowest..top` that are free and begin and end at
    /// multiples of `unit`, in what all CPUs share. None if there are no more addresses.
    pub(super) fn large(
        &self,
        n: u64,
        gap: impl Fn(u64, u64, u64) -> Option<PageRange>,
    ) -> Option<PageRange> {
        let mut large = self.large.lock();
        loop {
            if let Some(found) = large.find(n, &gap) {
                return Some(found);
            }
            // As many as there are again after a while, so that there are few parts, and little is lost between them.
            let least = n.div_ceil(ARENA) + 1;
            let row = self.take_row(least.max(large.pages() / ARENA / 4)).or_else(|| self.take_row(least))?;
            if !large.extend(row) {
                return None;
            }
        }
    }
    /// A child's arenas are others than its parent's.
    pub(super) fn follow(&self, parent: &Arenas) {
        // Relaxed, both: as above; nobody uses the child. What is taken meanwhile is found to be mapped there.
        self.taken.store(parent.taken.load(Ordering::Relaxed), Ordering::Relaxed);
        self.large.lock().follow(&parent.large.lock());
    }
    /// Pages of all arenas that CPUs of this space have.
    fn pages(&self) -> u64 {
        // Relaxed: for a rule of thumb.
        self.own.load(Ordering::Relaxed) * ARENA
    }
}

impl Radix {
    /// Whether one more arena would be more than an arena for each CPU, and twice the most pages that were mapped at once.
    pub(super) fn is_roomy(&self) -> bool {
        let (totals, _) = self.counts.look();
        self.arenas.pages() >= totals.peak.saturating_mul(2) + (self.realm.cpus() as u64 - 1) * ARENA
    }
}

//! A page table that is walked while its tables come and go.
//!
//! **Claim.** Software and hardware may walk at any time; an entry changes only under its leaf table's lock; who has
//! locked a leaf table knows that the hardware uses it; and what was unlinked is not reused before [`Unlinked::free`],
//! whose caller knows that all those walks are over.
//!
//! **Idea.** Tables of *every* level have a lock, and to have it is to have found, with it, that the entry that names the table still
//! does. To unlink a table is to empty that entry, by who has the lock. That of a leaf table is [`Pte::LOCK`] in its entry, as in
//! [`PageTable`], taken by a compare-and-swap that fails if there is no table (any more). Entries above are read by every walk, so
//! what locks the tables that they name is elsewhere: one of a few locks, by the entry's place. So
//! * whoever waits for the lock of a table that goes away finds the entry empty, and walks again from the root;
//! * an entry of an unlinked table is empty and stays so: all that it named was unlinked before, and to *link* a table
//!   into another takes the lock of that other one (or that of the root, which is never unlinked).
//!
//! A walk that has passed an entry may be in tables that have been unlinked since. It reads them, finds nothing, and is
//! why they must stay allocated: the walkers' sections delay [`Unlinked::free`].
//!
//! **Absent tables.** Whoever takes away what a range should be, and then the entries, must not miss one that is put into
//! a table which did not exist when they passed by:
//! ```text
//!   take away:   dead = true;  see no table;  go on            fault:   see dead == false;  link the table;  put in the entry
//! ```
//! Both see the state before the other's store. So a fault links under the lock of the table above, in which it asks again
//! (`alive`), and a walk that must not miss anything ([`Concurrent::leaves_in_order`]) takes the lock of each table in which
//! it is about to skip an absent entry, once, before it looks at that for good. Of the two sections one is the first: either
//! the walk sees the link, or the fault sees that it comes too late.
//!
//! **Lock order**: of one page table no two locks are held at once.

#[cfg(all(test, loom))]
#[path = "concurrent_loom.rs"]
mod model;

use core::{fmt, mem::ManuallyDrop, ptr};

use alloc::vec::Vec;

use addr::{Frame, Page, PageRange, Prot, Pte};
use owned::{Memory, OwnedFrame, Use};
use percpu::{Line, Pinned};
use sync::{
    SpinGuard, SpinLock, mutant,
    primitive::{AtomicU64, Ordering, spin_loop},
};
use tlb::Gather;

use crate::{Full, Leaf, PageTable, USER_PAGES, Which, grow, names_frame, span};

/// See the module. All methods that walk are called in a section that delays [`Unlinked::free`], or by the one thread that
/// may [`detach`](Self::detach) at the time.
#[derive(Debug)]
pub struct Concurrent {
    /// Its root is given up by [`Self::retire`] alone.
    table: ManuallyDrop<PageTable>,
    root: Frame,
    /// What locks the root and other tables that are no leaves, on lines of their own.
    locks: [Line<SpinLock<()>>; LOCKS],
}

/// As many locks as there are for tables that are no leaves: makers of tables far apart seldom meet.
const LOCKS: usize = 8;

/// Lock the leaf table that `slot` names; its name. `None` if there is none.
fn lock_link(slot: &AtomicU64) -> Option<Pte> {
    loop {
        // Relaxed: what was seen is exchanged below.
        let link = Pte::from_bits(slot.load(Ordering::Relaxed));
        if !link.is_present() {
            return None;
        }
        let locked = link.bits() | Pte::LOCK;
        // Acquire: the last holder's section comes before; partners: `BitLock::unlock`, and the swap in `detach`.
        let free = link.bits() != locked;
        if free
            && slot.compare_exchange_weak(link.bits(), locked, Ordering::Acquire, Ordering::Relaxed).is_ok()
        {
            return Some(link);
        }
        spin_loop();
    }
}

/// A locked table that is no leaf.
type Held<'t> = SpinGuard<'t, ()>;

/// Lock the table that `slot` names, or the root if there is no slot, by what locks it. `None` if there is no table.
fn hold_by<'t>(lock: &'t SpinLock<()>, slot: Option<&AtomicU64>) -> Option<Held<'t>> {
    let held = lock.lock();
    // Relaxed: whoever has unlinked the table had the lock.
    let is_there = slot.is_none_or(|slot| Pte::from_bits(slot.load(Ordering::Relaxed)).is_present());
    is_there.then_some(held)
}

/// What keeps everybody from changing an entry, see [`Concurrent::hold`].
#[must_use = "the table is unlocked as soon as this is dropped"]
pub struct Hold<'t> {
    leaf: Option<Leaf<'t>>,
    _above: Option<Held<'t>>,
}

impl Hold<'_> {
    /// The entry of `page`, which is the one it is for.
    pub fn peek(&self, page: Page) -> Pte {
        self.leaf.as_ref().map_or(Pte::EMPTY, |leaf| leaf.peek(page))
    }
}

impl fmt::Debug for Hold<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold").field("leaf", &self.leaf).finish_non_exhaustive()
    }
}

/// Why there is no leaf table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unmade {
    /// The caller has said that it is no longer wanted.
    Dead,
    /// There is no frame for a table.
    NoMemory,
}

/// Tables that nothing names any more, and that are still being walked.
#[derive(Debug, Default)]
#[must_use = "tables that are dropped are leaked"]
pub struct Unlinked {
    /// For one there is always room.
    one: Option<OwnedFrame>,
    many: Vec<OwnedFrame>,
}

impl Unlinked {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.one.is_none() && self.many.is_empty()
    }
    /// How many there are.
    pub fn len(&self) -> usize {
        usize::from(self.one.is_some()) + self.many.len()
    }
    fn has_room(&mut self) -> bool {
        self.one.is_none() || self.many.try_reserve(1).is_ok()
    }
    fn push(&mut self, table: OwnedFrame) {
        match &mut self.one {
            one @ None => *one = Some(table),
            Some(_) => self.many.push(table),
        }
    }
    /// Give them back.
    ///
    /// # Safety
    /// Since they were unlinked all CPUs that use the page table have been flushed, and all sections have ended in which it is
    /// walked.
    pub unsafe fn free(&mut self, frames: &Memory, pin: &Pinned<'_>) {
        self.one.take().into_iter().chain(self.many.drain(..)).for_each(|table| frames.free(pin, table));
    }
}

impl Concurrent {
    /// As [`PageTable::new`].
    pub fn new(frames: &Memory, pin: &Pinned<'_>, kernel_half: Option<Frame>) -> Option<Self> {
        let table = PageTable::new(frames, pin, kernel_half)?;
        let root = table.root()?;
        Some(Self {
            table: ManuallyDrop::new(table),
            root,
            locks: [(); LOCKS].map(|()| Line(SpinLock::new(()))),
        })
    }
    /// The root's frame, for CR3.
    pub fn root(&self) -> Frame {
        self.root
    }
    /// The frame of the root, for whoever frees it when no CPU has it in CR3, nor walks by it, any more.
    ///
    /// # Safety
    /// It is the only call; all has been taken and [detached](Self::detach), and nobody links a table after this.
    pub unsafe fn retire(&self) -> OwnedFrame {
        // SAFETY: the root was this table's; the caller says that it is given away once.
        unsafe { OwnedFrame::from_raw(self.root, Use::PageTable) }
    }
    /// The entry of `page` at some moment during the call; without locks, so only a hint.
    pub fn peek(&self, page: Page) -> Pte {
        self.table.peek(page)
    }
    /// Lock the leaf table of `page`, if there is one.
    pub fn lock_leaf(&self, page: Page) -> Option<Leaf<'_>> {
        self.lock(self.table.directory(page)?, page)
    }
    /// Lock the leaf table that `slot` names, and which serves `page`.
    fn lock<'t>(&'t self, slot: &'t AtomicU64, page: Page) -> Option<Leaf<'t>> {
        let link = lock_link(slot)?;
        Some(Leaf::locked(slot, self.table.entries(link.frame()), page))
    }
    /// Lock the leaf table of `page`, and make it and the tables above it if need be, as long as the caller is `alive`: asked
    /// under the lock that orders the new table against [`Self::leaves_in_order`], but not once more under that of the leaf.
    pub fn lock_leaf_or_make(
        &self,
        frames: &Memory,
        pin: &Pinned<'_>,
        page: Page,
        alive: impl Fn() -> bool,
    ) -> Result<Leaf<'_>, Unmade> {
        debug_assert!(page.number() < USER_PAGES);
        let mut spare = None;
        let made = loop {
            match self.try_make(frames, pin, page, &alive, &mut spare) {
                // A table on the way was unlinked.
                Ok(None) if alive() => {}
                Ok(None) => break Err(Unmade::Dead),
                Ok(Some(leaf)) => break Ok(leaf),
                Err(unmade) => break Err(unmade),
            }
        };
        spare.into_iter().for_each(|table| frames.free(pin, table));
        made
    }
    fn try_make(
        &self,
        frames: &Memory,
        pin: &Pinned<'_>,
        page: Page,
        alive: &impl Fn() -> bool,
        spare: &mut Option<OwnedFrame>,
    ) -> Result<Option<Leaf<'_>>, Unmade> {
        let (mut table, mut named_by) = (self.root, None);
        for level in [3, 2, 1] {
            let Some(slot) = self.table.slot(table, page, level) else { return Ok(None) };
            // Acquire: as in `PageTable::peek`.
            let mut link = Pte::from_bits(slot.load(Ordering::Acquire));
            if !link.is_present() {
                let fresh = spare.take().or_else(|| frames.alloc_zeroed(pin, Use::PageTable));
                *spare = Some(fresh.ok_or(Unmade::NoMemory)?);
                let Some(above) = self.hold_table(named_by) else { return Ok(None) };
                link = link_under(&above, slot, spare, alive)?;
            }
            if level == 1 {
                return Ok(self.lock(slot, page));
            }
            (table, named_by) = (link.frame(), Some(slot));
        }
        Ok(None)
    }
    /// Lock the table that `slot` names, which is no leaf; the root, if there is no slot.
    fn hold_table(&self, slot: Option<&AtomicU64>) -> Option<Held<'_>> {
        // Entries in one line, and those of one number in tables that lie one after the other, have different ones.
        let at = slot.map_or(0, |slot| ptr::from_ref(slot).addr());
        hold_by(&self.locks[(at >> 3 ^ at >> 12) % LOCKS].0, slot)
    }
    /// Lock the table that has the entry of `page`, or in which the link is missing that would lead there: until this is
    /// dropped nobody changes the entry, nor makes one.
    pub fn hold(&self, page: Page) -> Hold<'_> {
        'walk: loop {
            let (mut table, mut named_by) = (self.root, None);
            for level in [3, 2, 1] {
                let Some(above) = self.hold_table(named_by) else { continue 'walk };
                let Some(slot) = self.table.slot(table, page, level) else { continue 'walk };
                // Acquire: as in `PageTable::peek`.
                let link = Pte::from_bits(slot.load(Ordering::Acquire));
                if !link.is_present() {
                    return Hold { leaf: None, _above: Some(above) };
                }
                drop(above);
                if level == 1 {
                    let Some(leaf) = self.lock(slot, page) else { continue 'walk };
                    return Hold { leaf: Some(leaf), _above: None };
                }
                (table, named_by) = (link.frame(), Some(slot));
            }
        }
    }
    /// The leaf tables that exist under `range`, ascending, each locked while the caller holds it, with the part of the range
    /// that it serves. One that is made or unlinked at the same time may be missed.
    pub fn leaves(&self, range: PageRange) -> impl Iterator<Item = (Leaf<'_>, PageRange)> {
        let (mut at, end) = (range.start(), range.end());
        core::iter::from_fn(move || {
            loop {
                let start = at;
                let (slot, first) = self.table.next_link(&mut at, end, 1)?;
                let part = PageRange::new(first.max(start), at.min(end))?;
                if let Some(leaf) = self.lock(slot, first) {
                    return Some((leaf, part));
                }
            }
        })
    }
    /// The same, and none is missed that is used by who was `alive` in [`Self::lock_leaf_or_make`], if that is so no more from
    /// before the call. For the one thread that may [`detach`](Self::detach).
    pub fn leaves_in_order(&self, range: PageRange) -> impl Iterator<Item = (Leaf<'_>, PageRange)> {
        let (mut at, end) = (range.start(), range.end());
        core::iter::from_fn(move || {
            loop {
                let start = at;
                let (slot, first) = self.next_leaf_in_order(&mut at, end)?;
                let part = PageRange::new(first.max(start), at.min(end))?;
                if let Some(leaf) = self.lock(slot, first) {
                    return Some((leaf, part));
                }
            }
        })
    }
    /// As [`PageTable::next_link`] for level 1, in order.
    fn next_leaf_in_order(&self, at: &mut Page, end: Page) -> Option<(&AtomicU64, Page)> {
        'from_root: while *at < end {
            let (mut table, mut named_by) = (self.root, None);
            for level in [3, 2, 1] {
                let entries = self.table.entries(table).get(at.index(level)..)?;
                let first = at.number() & !(span(level) - 1);
                // No further than the range goes.
                let wanted = (end.number() - first).div_ceil(span(level)).min(entries.len() as u64) as usize;
                let entries = entries.get(..wanted)?;
                let seen = first_link_in_order(entries, || drop(self.hold_table(named_by)));
                let Some((absent, slot, link)) = seen else {
                    *at = Page::new(first + entries.len() as u64 * span(level)).unwrap_or(end);
                    continue 'from_root;
                };
                let first = first + absent as u64 * span(level);
                if absent > 0 {
                    *at = Page::new(first).filter(|&page| page < end)?;
                }
                if level == 1 {
                    *at = Page::new(first + span(1)).unwrap_or(end);
                    return Some((slot, Page::new(first)?));
                }
                (table, named_by) = (link.frame(), Some(slot));
            }
        }
        None
    }
    /// As [`PageTable::take`], in order.
    pub fn take(
        &self,
        range: PageRange,
        which: Which,
        gather: &mut Gather<'_>,
        taken: &mut u64,
    ) -> Result<(), Full> {
        for (leaf, part) in self.leaves_in_order(range) {
            leaf.take_range(part, which, gather, taken)?;
        }
        Ok(())
    }
    /// As [`PageTable::protect`], in order.
    pub fn protect(&self, range: PageRange, mut rights: impl FnMut(Frame) -> Prot) -> Option<PageRange> {
        let mut lost: Option<PageRange> = None;
        for (leaf, part) in self.leaves_in_order(range) {
            for page in part {
                let entry = leaf.peek(page);
                if names_frame(entry) && leaf.protect(page, rights(entry.frame())) {
                    lost = grow(lost, page);
                }
            }
        }
        lost
    }
    /// As [`PageTable::relocate`]. Nobody else uses entries of either range: what they should be was taken away, and `from`
    /// has been [protected](Self::protect) after that.
    pub fn relocate(&self, from: PageRange, to: Page, rights: impl FnMut(Frame) -> Prot) {
        self.table.move_entries(self.leaves(from), from, to, rights);
    }
    /// Unlink every table that serves a page of `range` and nothing outside of `gap`, into `unlinked`; the gather is told what
    /// to flush. The caller knows that nobody is [alive](Self::lock_leaf_or_make) for a page of `gap`, which contains `range`,
    /// and has taken what there was. Call again after `Err`. One thread at a time.
    pub fn detach(
        &self,
        range: PageRange,
        gap: PageRange,
        unlinked: &mut Unlinked,
        gather: &mut Gather<'_>,
    ) -> Result<(), Full> {
        for level in 1..=3 {
            let mut at = range.start();
            while let Some((slot, first)) = self.table.next_link(&mut at, range.end(), level) {
                let served = PageRange::with_len(first, span(level));
                let Some(served) = served.filter(|&s| gap.contains_range(s)) else { continue };
                if !unlinked.has_room() {
                    return Err(Full(first));
                }
                // Nobody else unlinks, so there is a table.
                let above = if level > 1 { self.hold_table(Some(slot)) } else { None };
                let is_locked = if level > 1 { above.is_some() } else { lock_link(slot).is_some() };
                if !is_locked {
                    continue;
                }
                // Relaxed: it is locked.
                let link = Pte::from_bits(slot.load(Ordering::Relaxed));
                debug_assert!(
                    // Relaxed: the lock orders it, and those of the entries' tables have been given up with them.
                    self.table.entries(link.frame()).iter().all(|e| e.load(Ordering::Relaxed) == 0),
                    "a table was unlinked with entries in it"
                );
                // AcqRel: what software did to the table comes before, and the unlinking before the flush, whose fence orders
                // it against hardware walks. It gives a leaf's lock up too, which has nothing to lock any more.
                slot.swap(0, Ordering::AcqRel);
                drop(above);
                // SAFETY: the link owned the table since it was made, and has just been cleared.
                unlinked.push(unsafe { OwnedFrame::from_raw(link.frame(), Use::PageTable) });
                if let Some(stale) = served.intersect(range)
                    && !mutant!("detach-no-flush")
                {
                    gather.add_range(stale);
                }
            }
        }
        Ok(())
    }
    /// As [`PageTable::census`].
    pub fn census(&self) -> (u64, u64) {
        self.table.census()
    }
}

/// The first of `entries` that names a table: how many come before it, and what it names.
fn first_link(entries: &[AtomicU64]) -> Option<(usize, &AtomicU64, Pte)> {
    // Acquire: as in `PageTable::peek`.
    let links = entries.iter().map(|slot| (slot, Pte::from_bits(slot.load(Ordering::Acquire))));
    links.enumerate().find(|(_, (_, link))| link.is_present()).map(|(n, (slot, link))| (n, slot, link))
}

/// The same, and none is missed that was linked by who has not seen what was done before the call: `pass` locks and unlocks
/// the table that the entries are of.
fn first_link_in_order(entries: &[AtomicU64], pass: impl FnOnce()) -> Option<(usize, &AtomicU64, Pte)> {
    let seen = first_link(entries);
    if matches!(seen, Some((0, ..))) || mutant!("walk-out-of-order") {
        return seen;
    }
    pass();
    first_link(entries)
}

/// Put the spare table into `slot`, of the table that is held, unless another CPU was faster; what is there. `Dead` if the
/// caller is not `alive`.
fn link_under(
    _above: &Held<'_>,
    slot: &AtomicU64,
    spare: &mut Option<OwnedFrame>,
    alive: impl Fn() -> bool,
) -> Result<Pte, Unmade> {
    if !alive() && !mutant!("table-linked-dead") {
        return Err(Unmade::Dead);
    }
    // Relaxed: the lock orders it after the other CPU's store.
    let there = Pte::from_bits(slot.load(Ordering::Relaxed));
    Ok(match spare.take_if(|_| !there.is_present()) {
        Some(fresh) => {
            let link = Pte::table(fresh.into_raw());
            // Release: the zeroed table before the link to it; partner: the Acquire loads of walks.
            slot.store(link.bits(), Ordering::Release);
            link
        }
        None => there,
    })
}

/// Where faults, walks and unmappings meet, on words of a model's own: loom's are larger than entries are, so that a table of them
/// fits no frame.
#[cfg(loom)]
#[allow(missing_docs, reason = "for models of the crates above")]
pub mod steps {
    use super::{AtomicU64, Leaf, Ordering, OwnedFrame, Page, Pte, SpinLock, Unmade};

    pub fn lock_leaf<'t>(slot: &'t AtomicU64, entries: &'t [AtomicU64], page: Page) -> Option<Leaf<'t>> {
        super::lock_link(slot)?;
        Some(Leaf::locked(slot, entries, page))
    }
    /// `lock` and `named` are those of the table that `slot` is in; `None` if it has been unlinked.
    pub fn link(
        (lock, named): (&SpinLock<()>, &AtomicU64),
        slot: &AtomicU64,
        spare: &mut Option<OwnedFrame>,
        alive: impl Fn() -> bool,
    ) -> Option<Result<Pte, Unmade>> {
        super::hold_by(lock, Some(named)).map(|held| super::link_under(&held, slot, spare, alive))
    }
    pub fn next_in_order<'t>(
        entries: &'t [AtomicU64],
        (lock, named): (&SpinLock<()>, &AtomicU64),
    ) -> Option<&'t AtomicU64> {
        let pass = || drop(super::hold_by(lock, Some(named)));
        super::first_link_in_order(entries, pass).map(|(_, slot, _)| slot)
    }
    /// Of a leaf table that is there and stays until then.
    pub fn unlink(slot: &AtomicU64) -> Pte {
        let link = super::lock_link(slot).expect("nobody else unlinks");
        // AcqRel: as in `detach`.
        slot.swap(0, Ordering::AcqRel);
        link
    }
    /// Of the table above.
    pub fn unlink_above((lock, named): (&SpinLock<()>, &AtomicU64)) {
        let held = super::hold_by(lock, Some(named)).expect("nobody else unlinks");
        // AcqRel: as in `detach`.
        named.swap(0, Ordering::AcqRel);
        drop(held);
    }
}

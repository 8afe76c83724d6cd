//! x86-64 page tables of four levels (Intel SDM vol. 3A, 4.5): walk, insert, take, protect, move, prune.
//!
//! **Claim.** Software and hardware may walk while entries change; a table page is unlinked only while no software
//! walks, and reused only after no hardware can; every non-empty leaf entry owns exactly one share of its frame, or has it [lent](owned::Use::Lent).
//!
//! **Idea.**
//! * *Leaf tables* (level 0, 512 pages each) have a lock each: the bit [`Pte::LOCK`] in the directory entry that
//!   points to them, which the hardware ignores. A [`Leaf`] is the held lock. Entries change under it only, but by
//!   read-modify-write, since the hardware sets accessed and dirty bits without asking.
//! * *Upper levels* only ever grow under `&self`: one spin lock per page table, taken to link a new table, never to
//!   read. Links are published with Release and followed with Acquire.
//! * *Shrinking* asks for `&mut self`. Whoever holds a lock over the table proves with the borrow that no other
//!   software walk is going on; hardware walks are the business of the [`Gather`], which owns an unlinked table
//!   until the flush is done. So a walk under `&self` never meets a table that goes away, and there is no count of
//!   entries per table: the caller says which range around the unmapped one holds no mapping (`gap`), and every
//!   table that serves nothing else is unlinked, as Linux's `free_pgtables` does.
//!
//! ```text
//!   level 3 (root)       level 2              level 1 (directory)     level 0 (leaf)
//!   512 GiB an entry     1 GiB an entry       2 MiB an entry          4 KiB an entry
//!   [ 0..256 user  ] --> [ ............ ] --> [ table | LOCK ] -----> [ frame | rights | owner ]
//!   [ 256..  kernel]     shared with the kernel's own root, never touched here
//! ```
//!
//! **An entry** that is not empty names a frame, and owns a share of it until [`Leaf::take`] or [`Leaf::replace`]
//! gives that back as a value. Without any right it is not present: the page keeps its frame under PROT_NONE. Bits
//! 52 to 54, which the hardware ignores, say for which [`Use`] the frame is counted. A *guard* ([`Pte::GUARD`]) is an
//! entry without a frame that keeps frames out; it moves with `relocate`, and goes when everything is taken.
#![no_std]

extern crate alloc;

mod concurrent;
#[cfg(all(test, loom))]
mod loom;
mod mirror;

#[cfg(loom)]
pub use concurrent::steps;
pub use concurrent::{Concurrent, Hold, Unlinked, Unmade};
pub use mirror::{Entry, Mirror};

use addr::{DirectMap, Frame, Page, PageRange, Prot, Pte};
use owned::{Memory, OwnedFrame, Use};
use percpu::{Line, Pinned};
use sync::{
    BitLock, SpinLock, mutant,
    primitive::{AtomicU64, Ordering},
};
use tlb::Gather;

/// Entries in a table of any level.
pub const ENTRIES: usize = 512;
/// First page after the user half: level-3 entries from 256 on belong to the kernel.
pub const USER_PAGES: u64 = 1 << 35;

/// Which entries [`PageTable::take`] takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Which {
    /// All of them, and guards.
    All,
    /// Those with a frame; guards stay.
    Frames,
    /// Those whose frame belongs to an object: not the copies of private mappings, and no guards.
    Objects,
}

/// First bit of the use of an entry's frame.
const USE_SHIFT: u32 = 52;

/// A gather had no more room: flush and release it, then go on from this page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full(pub Page);

/// Pages that one entry of `level` covers.
const fn span(level: u32) -> u64 {
    1 << (9 * level)
}

/// The user half of one address space's translation, over a root that shares its upper half with the kernel.
#[derive(Debug)]
pub struct PageTable {
    root: Option<OwnedFrame>,
    dm: DirectMap,
    /// Held while a table is linked into an upper level. Apart from what every walk reads.
    upper: Line<SpinLock<()>>,
}

/// Put `link` into `slot`, unless another CPU was faster; which link is there. `upper` is the lock of the upper levels.
fn put_link(upper: &SpinLock<()>, slot: &AtomicU64, link: Pte) -> Pte {
    let _upper = upper.lock();
    // Relaxed: the lock orders it after the other CPU's store.
    let there = Pte::from_bits(slot.load(Ordering::Relaxed));
    if there.is_present() {
        return there;
    }
    // Release: the zeroed table before the link to it; partner: the Acquire loads of walks.
    let order = if mutant!("table-relaxed-link") { Ordering::Relaxed } else { Ordering::Release };
    slot.store(link.bits(), order);
    link
}

/// The bits of these entries together. In many tables most entries are empty, or like their neighbours: so who looks at
/// them all looks at some at once.
fn bits_of(entries: &[AtomicU64]) -> u64 {
    let add = |all: u64, entry: &AtomicU64| all | entry.load(Ordering::Relaxed);
    match entries.as_array::<8>() {
        Some(eight) => eight.iter().fold(0, add),
        None => entries.iter().fold(0, add),
    }
}

impl PageTable {
    /// A table that maps nothing in the user half; the entries 256 to 511 are copied from the root `kernel_half`, if
    /// there is one. `None` if there is no frame for the root.
    pub fn new(frames: &Memory, pin: &Pinned<'_>, kernel_half: Option<Frame>) -> Option<Self> {
        let table = Self {
            root: Some(frames.alloc_zeroed(pin, Use::PageTable)?),
            dm: frames.dm(),
            upper: Line(SpinLock::new(())),
        };
        if let (Some(kernel), Some(root)) = (kernel_half, table.root()) {
            let halves = [root, kernel].map(|frame| table.entries(frame).split_at(ENTRIES / 2).1);
            let [mine, theirs] = halves.map(|half| half.as_chunks::<8>().0);
            for (mine, theirs) in mine.iter().zip(theirs).filter(|(_, theirs)| bits_of(*theirs) != 0) {
                for (mine, theirs) in mine.iter().zip(theirs) {
                    // Relaxed: the kernel's entries don't change after boot, and nobody walks this root yet.
                    mine.store(theirs.load(Ordering::Relaxed), Ordering::Relaxed);
                }
            }
        }
        Some(table)
    }
    /// The root's frame, for CR3. `None` after [`Self::retire`].
    pub fn root(&self) -> Option<Frame> {
        self.root.as_ref().map(OwnedFrame::frame)
    }
    /// Give up the root, to be freed when no CPU has it in CR3 any more. All else has been taken and pruned before;
    /// from here on the table maps nothing and takes nothing.
    pub fn retire(&mut self) -> Option<OwnedFrame> {
        let root = self.root.take()?;
        debug_assert!(
            // Relaxed: `&mut self`, nobody else writes.
            self.entries(root.frame()).iter().take(ENTRIES / 2).all(|e| e.load(Ordering::Relaxed) == 0),
            "a page table was retired with tables in it"
        );
        Some(root)
    }

    /// The entry of `page` at some moment during the call; without locks, so only a hint.
    pub fn peek(&self, page: Page) -> Pte {
        let Some(directory) = self.directory(page) else { return Pte::EMPTY };
        // Acquire: the table is seen as it was linked; partner: the Release store in `link`.
        let link = Pte::from_bits(directory.load(Ordering::Acquire));
        if !link.is_present() {
            return Pte::EMPTY;
        }
        let entry = self.entries(link.frame()).get(page.index(0));
        // Acquire: the frame's bytes are seen as they were when it was inserted; partner: `Leaf::insert`.
        entry.map_or(Pte::EMPTY, |e| Pte::from_bits(e.load(Ordering::Acquire)))
    }
    /// Lock the leaf table of `page`, if there is one.
    pub fn lock_leaf(&self, page: Page) -> Option<Leaf<'_>> {
        let directory = self.directory(page)?;
        // Acquire: as in `peek`. An absent table is not locked: the bit in an empty entry would be in the way of
        // linking one.
        let link = Pte::from_bits(directory.load(Ordering::Acquire));
        // A table stays linked while `self` is borrowed, so it is still there once the lock is held.
        link.is_present().then(|| Leaf::lock(directory, self.entries(link.frame()), page))
    }
    /// Lock the leaf table of `page`, and make it and the tables above it if need be. `None` if there is no frame
    /// for one; what was made by then stays and is pruned with the mapping around `page`.
    pub fn lock_leaf_or_make(&self, frames: &Memory, pin: &Pinned<'_>, page: Page) -> Option<Leaf<'_>> {
        debug_assert!(page.number() < USER_PAGES);
        let mut table = self.root()?;
        for level in [3, 2, 1] {
            let slot = self.slot(table, page, level)?;
            // Acquire: as in `peek`.
            let mut link = Pte::from_bits(slot.load(Ordering::Acquire));
            if !link.is_present() {
                link = self.link(slot, frames, pin)?;
            }
            if level == 1 {
                return Some(Leaf::lock(slot, self.entries(link.frame()), page));
            }
            table = link.frame();
        }
        None
    }
    /// The leaf tables that exist under `range`, ascending, each locked while the caller holds it, with the part of
    /// the range that it serves. Absent tables of any level are skipped as a whole.
    pub fn leaves(&self, range: PageRange) -> Leaves<'_> {
        Leaves { table: self, at: range.start(), end: range.end() }
    }

    /// Take the entries `which` under `range`: their frames go into the gather, which is told of what was present,
    /// and `taken` counts them. `Err` if the gather is full: flush, release, and go on from there.
    pub fn take(
        &self,
        range: PageRange,
        which: Which,
        gather: &mut Gather<'_>,
        taken: &mut u64,
    ) -> Result<(), Full> {
        for (leaf, part) in self.leaves(range) {
            leaf.take_range(part, which, gather, taken)?;
        }
        Ok(())
    }
    /// Set the rights of every entry under `range` to what `rights` says for its frame. Gives the hull of the pages
    /// that lost a right, which have to be flushed; pages that only gained some don't, since a stale entry causes at
    /// most one fault that repairs it.
    pub fn protect(&self, range: PageRange, mut rights: impl FnMut(Frame) -> Prot) -> Option<PageRange> {
        let mut lost: Option<PageRange> = None;
        for (leaf, part) in self.leaves(range) {
            for page in part {
                let entry = leaf.peek(page);
                if names_frame(entry) && leaf.protect(page, rights(entry.frame())) {
                    lost = grow(lost, page);
                }
            }
        }
        lost
    }
    /// Unlink every table that serves a page of `range` and nothing outside of `gap`; the gather owns them. The
    /// caller knows that nothing in `gap`, which contains `range`, is mapped, and has taken what was. Call again
    /// after `Err`.
    pub fn prune(&mut self, range: PageRange, gap: PageRange, gather: &mut Gather<'_>) -> Result<(), Full> {
        for level in 1..=3 {
            let mut at = range.start();
            while let Some((slot, first)) = self.next_link(&mut at, range.end(), level) {
                let served = PageRange::with_len(first, span(level));
                let Some(served) = served.filter(|&s| gap.contains_range(s)) else { continue };
                if gather.room() == 0 {
                    return Err(Full(first));
                }
                // AcqRel: what software did to the table comes before, and the unlinking before the flush, whose
                // fence orders it against hardware walks.
                let link = Pte::from_bits(slot.swap(0, Ordering::AcqRel));
                debug_assert!(
                    // Relaxed: `&mut self`, no software writes.
                    self.entries(link.frame()).iter().all(|e| e.load(Ordering::Relaxed) == 0),
                    "a table was unlinked with entries in it"
                );
                // SAFETY: the link owned the table since `link`, and has just been cleared.
                gather.take(unsafe { OwnedFrame::from_raw(link.frame(), Use::PageTable) });
                if let Some(stale) = served.intersect(range) {
                    gather.add_range(stale);
                }
            }
        }
        Ok(())
    }
    /// Move every entry of `from` by the same distance, so that the first page goes to `to`, with the rights that
    /// `rights` says for its frame. The caller has made the leaf tables at the destination, whose entries are empty,
    /// and has taken all rights of `from` and flushed; the two ranges don't overlap.
    pub fn relocate(&mut self, from: PageRange, to: Page, rights: impl FnMut(Frame) -> Prot) {
        self.move_entries(self.leaves(from), from, to, rights);
    }
    /// The same, with the leaf tables that exist under `from`. Nobody else uses entries of either range.
    fn move_entries<'t>(
        &'t self,
        leaves: impl Iterator<Item = (Leaf<'t>, PageRange)>,
        from: PageRange,
        to: Page,
        mut rights: impl FnMut(Frame) -> Prot,
    ) {
        for (source, part) in leaves {
            for page in part {
                let entry = source.peek(page);
                if entry.is_empty() {
                    continue;
                }
                debug_assert!(!entry.is_present(), "an entry was moved while it could be used");
                let moved = match names_frame(entry) {
                    true => {
                        let rights = rights(entry.frame());
                        Pte::user_page(entry.frame(), rights).bits() | entry.bits() & KEPT_BITS
                    }
                    false => entry.bits(),
                };
                let target = to.checked_add(page.number() - from.start().number());
                let slot = target.and_then(|p| {
                    // Acquire: as in `peek`.
                    let link = Pte::from_bits(self.directory(p)?.load(Ordering::Acquire));
                    if link.is_present() { self.entries(link.frame()).get(p.index(0)) } else { None }
                });
                let Some(slot) = slot else {
                    debug_assert!(false, "no table where an entry is to be moved");
                    continue;
                };
                // Relaxed: the entry is not present and software is kept out, so nobody else writes it.
                source.entry(page).store(0, Ordering::Relaxed);
                // Release: as in `Leaf::insert`. The destination's lock is not needed, as nobody else uses the entry.
                let old = slot.swap(moved, Ordering::Release);
                debug_assert!(old == 0, "an entry was moved onto another");
            }
        }
    }

    /// Entries with a frame, and page-table pages with the root among them. Counts by walking, without locks: exact
    /// while nothing changes.
    pub fn census(&self) -> (u64, u64) {
        let links = |level| {
            let (mut at, end) = (Page::default(), Page::new(USER_PAGES).unwrap_or_default());
            core::iter::from_fn(move || self.next_link(&mut at, end, level))
        };
        let frames = links(1).map(|(slot, _)| {
            // Acquire: as in `peek`. Relaxed: a count.
            let leaf = Pte::from_bits(slot.load(Ordering::Acquire)).frame();
            let entries = self.entries(leaf).iter().map(|e| Pte::from_bits(e.load(Ordering::Relaxed)));
            entries.filter(|&e| names_frame(e)).count() as u64
        });
        let tables = (1..=3).map(|level| links(level).count() as u64).sum::<u64>();
        (frames.sum(), tables + u64::from(self.root.is_some()))
    }

    /// The table in `frame`: one that is linked, or the root.
    fn entries(&self, frame: Frame) -> &[AtomicU64] {
        let first = self.dm.ptr(frame.base()).cast::<AtomicU64>();
        // SAFETY: the frame is a table of this page table (or the kernel's root, which is never freed). It was zeroed
        // before it was linked; it is 4 KiB, aligned, and reachable through the direct map; software and hardware
        // access it atomically only; and it can't be unlinked while `self` is borrowed.
        unsafe { core::slice::from_raw_parts(first, ENTRIES) }
    }
    fn slot(&self, table: Frame, page: Page, level: u32) -> Option<&AtomicU64> {
        self.entries(table).get(page.index(level))
    }
    /// The directory entry of `page`, if the tables above it exist.
    fn directory(&self, page: Page) -> Option<&AtomicU64> {
        let mut table = self.root()?;
        for level in [3, 2] {
            // Acquire: as in `peek`.
            let link = Pte::from_bits(self.slot(table, page, level)?.load(Ordering::Acquire));
            if !link.is_present() {
                return None;
            }
            table = link.frame();
        }
        self.slot(table, page, 1)
    }
    /// Make a table and link it into `slot`, unless another CPU was first: then its table is the answer.
    fn link(&self, slot: &AtomicU64, frames: &Memory, pin: &Pinned<'_>) -> Option<Pte> {
        self.link_new(slot, frames, pin).map(|(link, _)| link)
    }
    /// The same, and whether it is a new table.
    fn link_new(&self, slot: &AtomicU64, frames: &Memory, pin: &Pinned<'_>) -> Option<(Pte, bool)> {
        let fresh = frames.alloc_zeroed(pin, Use::PageTable)?;
        let link = Pte::table(fresh.frame());
        let there = put_link(&self.upper.0, slot, link);
        if there == link {
            fresh.into_raw();
        } else {
            frames.free(pin, fresh);
        }
        Some((there, there == link))
    }
    /// The next present link of `level` that serves a page of `at..end`, and the first page it serves; `at` moves
    /// past what it serves. Runs of absent links are passed within their table, so an empty table costs one look at each
    /// of its entries.
    fn next_link(&self, at: &mut Page, end: Page, level: u32) -> Option<(&AtomicU64, Page)> {
        'from_root: while *at < end {
            let mut table = self.root()?;
            for l in (level..=3).rev() {
                let entries = self.entries(table).get(at.index(l)..)?;
                // Acquire: as in `peek`.
                let links = entries.iter().map(|slot| (slot, Pte::from_bits(slot.load(Ordering::Acquire))));
                let found = links.enumerate().find(|(_, (_, link))| link.is_present());
                let first = at.number() & !(span(l) - 1);
                let Some((absent, (slot, link))) = found else {
                    *at = Page::new(first + entries.len() as u64 * span(l)).unwrap_or(end);
                    continue 'from_root;
                };
                let first = first + absent as u64 * span(l);
                if absent > 0 {
                    *at = Page::new(first).filter(|&page| page < end)?;
                }
                if l == level {
                    *at = Page::new(first + span(l)).unwrap_or(end);
                    return Some((slot, Page::new(first)?));
                }
                table = link.frame();
            }
        }
        None
    }
}

/// Iterator over the leaf tables under a range, see [`PageTable::leaves`].
#[derive(Debug)]
pub struct Leaves<'t> {
    table: &'t PageTable,
    at: Page,
    end: Page,
}

impl<'t> Iterator for Leaves<'t> {
    type Item = (Leaf<'t>, PageRange);
    fn next(&mut self) -> Option<Self::Item> {
        let start = self.at;
        let (directory, first) = self.table.next_link(&mut self.at, self.end, 1)?;
        // Acquire: as in `peek`.
        let link = Pte::from_bits(directory.load(Ordering::Acquire));
        let part = PageRange::new(first.max(start), self.at.min(self.end))?;
        Some((Leaf::lock(directory, self.table.entries(link.frame()), first), part))
    }
}

const USE_BITS: u64 = 7 << USE_SHIFT;
/// What a change of rights leaves as it is.
const KEPT_BITS: u64 = USE_BITS | Pte::ACCESSED | Pte::DIRTY;

/// Whether an entry owns a share of a frame.
fn names_frame(entry: Pte) -> bool {
    !entry.is_empty() && !entry.is_guard()
}

/// A locked leaf table: 512 entries that nobody else changes, apart from the hardware's accessed and dirty bits.
///
/// Methods take a page, of which they use the place in the table; it is one that the leaf was locked for.
#[derive(Debug)]
#[must_use = "the table is unlocked as soon as the leaf is dropped"]
pub struct Leaf<'t> {
    directory: &'t AtomicU64,
    entries: &'t [AtomicU64],
    first: Page,
}

impl<'t> Leaf<'t> {
    /// Lock the table `entries`, to which `directory` links, and which serves `page`. There are 512 entries, or some
    /// lower power of two in model checks.
    fn lock(directory: &'t AtomicU64, entries: &'t [AtomicU64], page: Page) -> Self {
        BitLock::lock(directory, Pte::LOCK);
        Self::locked(directory, entries, page)
    }
    /// The same, which the caller has locked.
    fn locked(directory: &'t AtomicU64, entries: &'t [AtomicU64], page: Page) -> Self {
        let first = Page::new(page.number() & !(span(1) - 1)).unwrap_or(page);
        Self { directory, entries, first }
    }
    /// The first page after those that the table serves.
    pub fn end(&self) -> Page {
        self.first.checked_add(span(1)).unwrap_or(self.first)
    }
    fn entry(&self, page: Page) -> &'t AtomicU64 {
        debug_assert!(
            page.number().wrapping_sub(self.first.number()) < span(1),
            "a page of another leaf table"
        );
        &self.entries[page.index(0) & (self.entries.len() - 1)]
    }
    /// The entry of `page`.
    pub fn peek(&self, page: Page) -> Pte {
        // Acquire: the frame's bytes as they were inserted; partner: `insert`. (The lock orders the software's own
        // changes; the copy of a frame by a reader that found it here needs no more than that either.)
        Pte::from_bits(self.entry(page).load(Ordering::Acquire))
    }
    /// Map `page`, whose entry is empty, to `frame` with `prot`. The entry owns the share from here on.
    pub fn insert(&self, page: Page, frame: OwnedFrame, prot: Prot) {
        let old = self.put(page, frame, prot);
        debug_assert!(old.is_none(), "an entry was overwritten");
    }
    /// Map `page` to `frame` with `prot`, and give back the share that the entry owned before.
    pub fn replace(&self, page: Page, frame: OwnedFrame, prot: Prot) -> Option<OwnedFrame> {
        self.put(page, frame, prot)
    }
    /// Empty the entry of `page`: the share that it owned, and whether the hardware could use it, in which case the
    /// frame belongs in a [`Gather`] together with its page.
    pub fn take(&self, page: Page) -> Option<(OwnedFrame, bool)> {
        // AcqRel: as in `put`; swap, so that no accessed or dirty bit lands in an entry already read.
        let old = Pte::from_bits(self.entry(page).swap(0, Ordering::AcqRel));
        own(old).map(|frame| (frame, old.is_present()))
    }
    /// Take the entries `which` of `part`: see [`PageTable::take`].
    pub fn take_range(
        &self,
        part: PageRange,
        which: Which,
        gather: &mut Gather<'_>,
        taken: &mut u64,
    ) -> Result<(), Full> {
        for page in part {
            let entry = self.peek(page);
            let wanted = match which {
                Which::All => !entry.is_empty(),
                Which::Frames => names_frame(entry),
                Which::Objects => use_of(entry).is_some_and(|usage| usage != Use::Anonymous),
            };
            if !wanted {
                continue;
            }
            if gather.room() == 0 {
                return Err(Full(page));
            }
            if let Some((frame, present)) = self.take(page) {
                if let (true, Some(range)) = (present, PageRange::single(page)) {
                    gather.add_range(range);
                }
                gather.take(frame);
                *taken += 1;
            }
        }
        Ok(())
    }
    /// Make the entry of `page` a guard, and give back what [`Self::take`] would.
    pub fn guard(&self, page: Page) -> Option<(OwnedFrame, bool)> {
        // AcqRel: as in `take`.
        let old = Pte::from_bits(self.entry(page).swap(Pte::GUARD.bits(), Ordering::AcqRel));
        own(old).map(|frame| (frame, old.is_present()))
    }
    /// Empty the entry of `page` if it is a guard.
    pub fn unguard(&self, page: Page) {
        if self.peek(page).is_guard() {
            // Relaxed: a guard has no frame and is not present, and the lock keeps other software out.
            self.entry(page).store(0, Ordering::Relaxed);
        }
    }
    /// Set the rights of `page`'s entry, if it has one; says whether a right was lost.
    pub fn protect(&self, page: Page, prot: Prot) -> bool {
        let entry = self.entry(page);
        // Relaxed: the lock orders this thread after the last change; a hardware bit that is missed fails the CAS.
        let mut old = Pte::from_bits(entry.load(Ordering::Relaxed));
        loop {
            if !names_frame(old) {
                return false;
            }
            let kept = old.bits() & KEPT_BITS;
            let new = Pte::user_page(old.frame(), prot).bits() | kept;
            if new == old.bits() {
                return false;
            }
            // AcqRel: a sharer's last reads of the frame come before a right to write it; and the change comes
            // before the flush. Relaxed on failure: looked at again.
            match entry.compare_exchange_weak(old.bits(), new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return !Pte::from_bits(new).prot().contains(old.prot()),
                Err(now) => old = Pte::from_bits(now),
            }
        }
    }
    /// One more share of the frame in `page`'s entry, if it has one: for another entry. Of what the entry was lent it is none.
    pub fn share(&self, page: Page, frames: &Memory) -> Option<OwnedFrame> {
        let entry = self.peek(page);
        let usage = use_of(entry)?;
        // SAFETY: the entry owns a share, and keeps it while the lock is held.
        Some(unsafe { frames.share_raw(entry.frame(), usage) })
    }
    /// A share of the frame in `page`'s entry, if it has one, for who keeps the frame longer than the entry may be there.
    pub fn hold(&self, page: Page, frames: &Memory) -> Option<OwnedFrame> {
        let entry = self.peek(page);
        let usage = match use_of(entry)? {
            Use::Lent => Use::File,
            usage => usage,
        };
        // SAFETY: the entry owns a share and keeps it while the lock is held; or who has lent it the frame has one, and gives it
        // up after the entry is gone.
        Some(unsafe { frames.share_raw(entry.frame(), usage) })
    }

    fn put(&self, page: Page, frame: OwnedFrame, prot: Prot) -> Option<OwnedFrame> {
        let usage = (frame.usage() as u64) << USE_SHIFT;
        let new = Pte::user_page(frame.into_raw(), prot).bits() | usage;
        // AcqRel: the frame's bytes were written before it can be read through the entry (partner: `peek`; for the
        // hardware, x86 keeps stores in order); and the old frame's user comes after whoever inserted it.
        own(Pte::from_bits(self.entry(page).swap(new, Ordering::AcqRel)))
    }
}

impl Drop for Leaf<'_> {
    fn drop(&mut self) {
        BitLock::unlock(self.directory, Pte::LOCK);
    }
}

/// The share that a removed entry owned.
fn own(entry: Pte) -> Option<OwnedFrame> {
    let usage = use_of(entry)?;
    // SAFETY: a non-empty entry was written by `put` or `relocate`, which gave it one share counted for this use, or none
    // of what is lent; it has been removed from the table by the swap that read it, so nobody else makes this share a value again.
    Some(unsafe { OwnedFrame::from_raw(entry.frame(), usage) })
}

/// For what the frame of an entry is counted; `None` if the entry has none.
pub fn use_of(entry: Pte) -> Option<Use> {
    if !names_frame(entry) {
        return None;
    }
    let code = (entry.bits() & USE_BITS) >> USE_SHIFT;
    Use::ALL.into_iter().chain([Use::Lent]).find(|&usage| usage as u64 == code)
}

/// `range` grown so that it holds `page`.
fn grow(range: Option<PageRange>, page: Page) -> Option<PageRange> {
    let single = PageRange::single(page)?;
    match range {
        None => Some(single),
        Some(r) => PageRange::new(r.start().min(single.start()), r.end().max(single.end())),
    }
}

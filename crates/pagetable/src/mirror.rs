//! A page table that owns nothing but its own pages: a copy, for the hardware, of what is written elsewhere.
//!
//! **Claim.** As for [`PageTable`]: software and hardware may walk while entries change, and a table page is unlinked only
//! while no software walks it, and reused only after no hardware can.
//!
//! **Idea.** Whoever keeps the truth about a page has a lock for it, and touches the page's entry only while it holds
//! that. So there are no locks here, but for linking and unlinking tables: a table is unlinked only by who holds the locks
//! of *all* the pages that it serves, and a walk to a page's entry passes only tables that serve that page. Entries own
//! no frames; so a mirror, or any part of it, may be thrown away at any time, and comes back by faults.
//!
//! **A table that nobody may write through.** Rights combine over the levels, so one store in a directory entry takes the
//! right to write from all 512 pages of a table ([`Mirror::protect_table`]); the entries keep what they say. Who has all
//! those pages locked does that, and flushes. The right comes back with the first page that may be written
//! ([`Entry::set`]), of which alone the lock is held: first every entry of the table loses the right, so that none has it
//! from before, and then the directory entry gets it back. That is done by one at a time (the directory entry has a bit
//! for a lock), and only as long as the directory entry is without the right: so no translation that may write is
//! cached anywhere while entries lose it, and none needs a flush; and an entry that has gained it keeps it. The hardware
//! reads the directory entry before the entry, so it finds both as they were left, or no right.
//!
//! Tables that serve nothing any more are found by [`Mirror::sweep`], which asks for each table whether it is still
//! needed. One thread sweeps at a time, and no other unlinks, so a sweep may walk all tables without any page's lock. At
//! the end, when no page is mapped or will be, nobody walks to an entry: then all of them go at once ([`Mirror::strip`]).

#[cfg(all(test, loom))]
#[path = "mirror_loom.rs"]
mod model;

use core::{mem::ManuallyDrop, ops::RangeInclusive};

use addr::{Frame, Page, PageRange, Prot, Pte};
use owned::{Memory, OwnedFrame, Use};
use percpu::{Line, Pinned};
use sync::{
    BitLock, SpinLock, mutant,
    primitive::{AtomicU64, Ordering},
};
use tlb::Gather;

use crate::{KEPT_BITS, PageTable, span};

/// So many entries are looked at before it is asked whether one of them is of interest.
const GLANCE: usize = 8;

/// Unlink the table that `slot` names, all of whose pages the caller has locked; what it named.
fn take_link(slot: &AtomicU64) -> Pte {
    // AcqRel: what software did to the table comes before, and the unlinking before the flush.
    Pte::from_bits(slot.swap(0, Ordering::AcqRel))
}

/// See the module.
#[derive(Debug)]
pub struct Mirror {
    /// Its root is given up by [`Self::retire`] alone.
    table: ManuallyDrop<PageTable>,
    root: Frame,
    /// Apart from what is only read, by all CPUs that take pages away.
    changing: Line<Changing>,
}

#[derive(Debug)]
struct Changing {
    /// Table pages, the root among them.
    pages: AtomicU64,
    /// How many there may be before a sweep is worth its time; and whose turn it is to sweep.
    enough: AtomicU64,
    sweeping: SpinLock<Stripped>,
}

/// Whether [`Mirror::strip`] has been called: nobody looks at the tables after that.
#[derive(Debug)]
struct Stripped(bool);

/// The entry of a page whose lock the holder has.
#[derive(Debug)]
pub struct Entry<'m> {
    pub(crate) entry: &'m AtomicU64,
    /// Those of its table, and the directory entry that links it.
    pub(crate) entries: &'m [AtomicU64],
    pub(crate) directory: &'m AtomicU64,
    /// Whether the table was protected: it is until a right to write is given back to it.
    pub(crate) protected: bool,
}

impl Entry<'_> {
    /// That of another page in the same table, to be [set](Self::set) by who has its lock too.
    #[inline]
    pub fn beside(&self, page: Page) -> Option<Entry<'_>> {
        Some(Entry { entry: self.entries.get(page.index(0))?, ..*self })
    }
    /// Whether it translates nothing.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        // Relaxed: the lock orders software, and the hardware writes to no empty entry.
        self.entry.load(Ordering::Relaxed) == 0
    }
    /// Let the page be translated to `frame` with `prot`. The entry is empty, or is for the same frame and grants no more.
    #[inline(always)]
    pub fn set(self, frame: Frame, prot: Prot) {
        if self.protected && prot.contains(Prot::WRITE) {
            self.unprotect();
        }
        let new = Pte::user_page(frame, prot).bits();
        // Relaxed: the lock orders software, and neither the hardware nor who gives a right back writes to an empty entry.
        let old = self.entry.load(Ordering::Relaxed);
        // Release, both: the frame's bytes were written before it can be read through the entry (for the hardware, x86 keeps
        // stores in order). The bits that the hardware has set stay.
        if old == 0 {
            return self.entry.store(new, Ordering::Release);
        }
        let with_noted = |old| Some(new | old & KEPT_BITS);
        let old = self.entry.fetch_update(Ordering::Release, Ordering::Relaxed, with_noted).unwrap_or(0);
        let old = Pte::from_bits(old);
        // What an entry of a protected table says of writing is from before.
        let had = if self.protected { old.prot().difference(Prot::WRITE) } else { old.prot() };
        debug_assert!(old.frame() == frame && prot.contains(had), "{old:?}");
    }
    /// Let pages of a protected table be written whose entries come to say so; those that say so now are from before.
    #[cold]
    fn unprotect(&self) {
        BitLock::lock(self.directory, Pte::LOCK);
        // Relaxed: by the lock.
        let link = Pte::from_bits(self.directory.load(Ordering::Relaxed));
        if !link.is_writable() || mutant!("mirror-unprotected-twice") {
            // What an entry said when the table was protected is seen, as all pages were locked then.
            let (eights, few) = self.entries.as_chunks::<8>();
            let some = eights.iter().map(<[_; 8]>::as_slice).chain([few]);
            for some in some.filter(|some| crate::bits_of(some) & Pte::WRITE != 0) {
                // Relaxed: as above.
                let writable =
                    |entry: &&AtomicU64| Pte::from_bits(entry.load(Ordering::Relaxed)).is_writable();
                for entry in some.iter().filter(writable).filter(|_| !mutant!("mirror-rights-kept")) {
                    // AcqRel: as in `clear`.
                    entry.fetch_and(!Pte::WRITE, Ordering::AcqRel);
                }
            }
            // Release: the entries before it, for walks (x86 keeps stores in order) and for `leaf`.
            self.directory.fetch_or(Pte::WRITE, Ordering::Release);
        }
        BitLock::unlock(self.directory, Pte::LOCK);
    }
}

/// Fewer table pages than this, a megabyte, are never swept: whoever maps here and there again finds them.
const FEW: u64 = 256;

impl Mirror {
    /// A mirror of nothing; the rest as [`PageTable::new`].
    pub fn new(frames: &Memory, pin: &Pinned<'_>, kernel_half: Option<Frame>) -> Option<Self> {
        let table = PageTable::new(frames, pin, kernel_half)?;
        let root = table.root()?;
        let (pages, enough) = (AtomicU64::new(1), AtomicU64::new(FEW));
        let changing = Line(Changing { pages, enough, sweeping: SpinLock::new(Stripped(false)) });
        Some(Self { table: ManuallyDrop::new(table), root, changing })
    }
    /// The root's frame, for CR3.
    pub fn root(&self) -> Frame {
        self.root
    }
    /// How many table pages there are, the root among them.
    pub fn pages(&self) -> u64 {
        // Relaxed: a count.
        self.changing.0.pages.load(Ordering::Relaxed)
    }
    /// `page`'s entry, with the tables that it needs. The caller has the page's lock, as long as it uses what it gets. `None`
    /// if there is no frame for a table.
    #[inline(always)]
    pub fn prepare(&self, page: Page, frames: &Memory, pin: &Pinned<'_>) -> Option<Entry<'_>> {
        let mut table = self.root;
        for level in [3, 2] {
            let slot = self.table.slot(table, page, level)?;
            table = self.follow(slot, frames, pin)?.frame();
        }
        let directory = self.table.slot(table, page, 1)?;
        let link = self.follow(directory, frames, pin)?;
        let entries = self.table.entries(link.frame());
        Some(Entry { entry: entries.get(page.index(0))?, entries, directory, protected: !link.is_writable() })
    }
    /// The link in `slot`, to a table that is made if there is none.
    #[inline]
    fn follow(&self, slot: &AtomicU64, frames: &Memory, pin: &Pinned<'_>) -> Option<Pte> {
        // Acquire: as in `PageTable::peek`; and if it allows writing, `unprotect` is done with the entries.
        let link = Pte::from_bits(slot.load(Ordering::Acquire));
        if link.is_present() { Some(link) } else { self.link(slot, frames, pin) }
    }
    #[cold]
    fn link(&self, slot: &AtomicU64, frames: &Memory, pin: &Pinned<'_>) -> Option<Pte> {
        let (made, fresh) = self.table.link_new(slot, frames, pin)?;
        if fresh {
            // Relaxed: a count.
            self.changing.0.pages.fetch_add(1, Ordering::Relaxed);
        }
        Some(made)
    }
    /// The directory entry of `page`, and the entries of the table that it links, if there is one. The caller has the
    /// page's lock.
    fn leaf(&self, page: Page) -> Option<(&AtomicU64, Pte, &[AtomicU64])> {
        let directory = self.table.directory(page)?;
        // Acquire: as in `follow`.
        let link = Pte::from_bits(directory.load(Ordering::Acquire));
        link.is_present().then(|| (directory, link, self.table.entries(link.frame())))
    }
    /// The entry of `page`, if there are tables for it. The caller has the page's lock.
    fn entry(&self, page: Page) -> Option<&AtomicU64> {
        self.leaf(page)?.2.get(page.index(0))
    }
    /// What `page`'s entry says, as far as its table allows. The caller has the page's lock.
    pub fn peek(&self, page: Page) -> Pte {
        // Relaxed: the lock orders software, and what the hardware sets is for reports.
        self.leaf(page).map_or(Pte::EMPTY, |(_, link, entries)| {
            let entry = entries[page.index(0) & (entries.len() - 1)].load(Ordering::Relaxed);
            Pte::from_bits(if link.is_writable() { entry } else { entry & !Pte::WRITE })
        })
    }
    /// Let no page be written that the table of `page` serves, until one of them is [set](Entry::set) to be. Whether one
    /// could be: then flush them. The caller has the locks of all of them.
    pub fn protect_table(&self, page: Page) -> bool {
        let Some((directory, link, _)) = self.leaf(page) else { return false };
        if link.is_writable() {
            // AcqRel: as in `clear`. By read-modify-write, as the hardware notes that it has used the entry.
            directory.fetch_and(!Pte::WRITE, Ordering::AcqRel);
        }
        link.is_writable()
    }
    /// Add to `written`, a bit for each entry of the table that serves `pages`, those that say that their page was written, among them
    /// all of `pages`. The caller has the lock of one of these, `locked`, so that the table stays; others' entries are as
    /// they were at some moment.
    pub fn written(&self, locked: Page, pages: PageRange, written: &mut [u64]) {
        let Some((_, _, entries)) = self.leaf(locked) else { return };
        // Acquire: who has emptied an entry had locked its page before that; partner: `clear`.
        let look = |entry: &AtomicU64| entry.load(Ordering::Acquire);
        let first = pages.start().index(0) / GLANCE;
        let end = (pages.start().index(0) + pages.len() as usize).div_ceil(GLANCE);
        let (parts, _) = entries.as_chunks::<GLANCE>();
        for (at, some) in parts.iter().enumerate().take(end).skip(first) {
            if some.iter().fold(0, |all, entry| all | look(entry)) & Pte::DIRTY == 0 {
                continue;
            }
            let is_dirty = |entry| u64::from(look(entry) & Pte::DIRTY != 0);
            let bits = some.iter().enumerate().fold(0, |bits, (i, entry)| bits | is_dirty(entry) << i);
            let bit = at * GLANCE;
            if let Some(word) = written.get_mut(bit / 64) {
                *word |= bits << (bit % 64);
            }
        }
    }
    /// Empty the entries of `pages`, which one table serves. Whether one was present: then flush. The caller has the pages'
    /// locks.
    pub fn clear_all(&self, pages: PageRange) -> bool {
        let Some((_, _, entries)) = self.leaf(pages.start()) else { return false };
        let mut present = false;
        for entry in entries.iter().skip(pages.start().index(0)).take(pages.len() as usize) {
            // Relaxed: the locks order software, and the hardware makes no entry.
            if entry.load(Ordering::Relaxed) != 0 {
                // AcqRel: as in `clear`.
                present |= Pte::from_bits(entry.swap(0, Ordering::AcqRel)).is_present();
            }
        }
        present
    }
    /// The same for pages that mostly have entries: they are not looked at first, which would bring each line twice.
    pub fn clear_run(&self, pages: PageRange) -> bool {
        let Some((_, _, entries)) = self.leaf(pages.start()) else { return false };
        let run = entries.iter().skip(pages.start().index(0)).take(pages.len() as usize);
        // AcqRel: as in `clear`.
        run.fold(false, |any, entry| any | Pte::from_bits(entry.swap(0, Ordering::AcqRel)).is_present())
    }
    /// Empty `page`'s entry, and say what it was: if it was present, flush. The caller has the page's lock.
    pub fn clear(&self, page: Page) -> Pte {
        // AcqRel: comes before the flush, whose fence orders it against hardware walks. A swap, so that no bit of the
        // hardware's lands in an entry already read.
        self.entry(page).map_or(Pte::EMPTY, |entry| Pte::from_bits(entry.swap(0, Ordering::AcqRel)))
    }
    /// Let `page`'s entry say that the page was not written. What it was; if it was present and dirty, flush. The caller has
    /// the page's lock.
    pub fn clean(&self, page: Page) -> Pte {
        let Some(entry) = self.entry(page) else { return Pte::EMPTY };
        // Relaxed: what the hardware sets after this is found the next time.
        let seen = Pte::from_bits(entry.load(Ordering::Relaxed));
        if !seen.is_dirty() {
            return seen;
        }
        // AcqRel: as in `clear`. By read-modify-write, as the hardware has its bits in the same word.
        Pte::from_bits(entry.fetch_and(!Pte::DIRTY, Ordering::AcqRel))
    }
    /// Let `page`'s entry, if there is one, grant `prot`: what a fault would put there. Whether it has lost a right: then
    /// flush. The caller has the page's lock.
    pub fn change(&self, page: Page, prot: Prot) -> bool {
        let Some(entry) = self.entry(page) else { return false };
        let change = |old| {
            let new = Pte::user_page(Pte::from_bits(old).frame(), prot).bits() | old & KEPT_BITS;
            (old != 0 && old != new).then_some(new)
        };
        // AcqRel: as in `clear`. Relaxed: nothing was done.
        let old = entry.fetch_update(Ordering::AcqRel, Ordering::Relaxed, change).map(Pte::from_bits);
        old.is_ok_and(|old| old.is_present() && !prot.contains(old.prot()))
    }
    /// Let `page`'s entry, if it is present, grant no more than `prot`. Whether it has lost a right: then flush. The
    /// caller has the page's lock.
    pub fn lower(&self, page: Page, prot: Prot) -> bool {
        let Some(entry) = self.entry(page) else { return false };
        let lower = |old| {
            let old = Pte::from_bits(old);
            let new = Pte::user_page(old.frame(), old.prot() & prot).bits() | old.bits() & KEPT_BITS;
            (old.is_present() && !prot.contains(old.prot())).then_some(new)
        };
        // AcqRel: as in `clear`. Relaxed: nothing was done.
        entry.fetch_update(Ordering::AcqRel, Ordering::Relaxed, lower).is_ok()
    }

    /// Whether tables have grown so many that a [`Self::sweep`] may be worth it.
    pub fn is_large(&self) -> bool {
        // Relaxed: a hint. Both change when a table is made or a sweep ends, so seldom.
        self.changing.0.pages.load(Ordering::Relaxed) > self.changing.0.enough.load(Ordering::Relaxed)
    }
    /// Ask for each table, the lower levels first, whether what it serves is free. `free` takes the locks of those pages if
    /// they are, calls what it is given, flushes, and lets go; it says nothing if they aren't. Unlinks such tables, but for
    /// those that others are still linked in, unless another sweep is under way. The caller has no page's lock.
    pub fn sweep(&self, mut free: impl FnMut(PageRange, &mut dyn FnMut(&mut Gather<'_>))) {
        self.tables(1..=3, |slot, served| {
            free(served, &mut |gather| {
                // One below may have been in use when its turn was, and be free only now. Relaxed: as in `peek`.
                let link = Pte::from_bits(slot.load(Ordering::Relaxed));
                if self.is_empty(link.frame()) || mutant!("mirror-unlink-full") {
                    self.unlink(slot, served, gather);
                }
            });
        });
        // Relaxed: a hint.
        self.changing.0.enough.store(FEW.max(2 * self.pages()), Ordering::Relaxed);
    }
    /// The same for the tables of the lowest level alone, which may have entries: these are forgotten, with what the hardware
    /// has noted in them, and come back by faults.
    pub fn shed(&self, mut free: impl FnMut(PageRange, &mut dyn FnMut(&mut Gather<'_>))) {
        self.tables(1..=1, |slot, served| {
            free(served, &mut |gather| {
                // Relaxed: as in `peek`.
                let link = Pte::from_bits(slot.load(Ordering::Relaxed));
                // AcqRel: as in `clear`.
                self.table.entries(link.frame()).iter().for_each(|entry| _ = entry.swap(0, Ordering::AcqRel));
                self.unlink(slot, served, gather);
            });
        });
    }
    /// Call `each` with each table's link and what it serves, the lower levels first; not if somebody else is at it, or all
    /// is over.
    fn tables(&self, levels: RangeInclusive<u32>, mut each: impl FnMut(&AtomicU64, PageRange)) {
        let Some(stripped) = self.changing.0.sweeping.try_lock().filter(|stripped| !stripped.0) else {
            return;
        };
        self.each_table(levels, &mut each);
        drop(stripped);
    }
    fn each_table(&self, levels: RangeInclusive<u32>, each: &mut dyn FnMut(&AtomicU64, PageRange)) {
        let end = Page::new(crate::USER_PAGES).unwrap_or_default();
        for level in levels {
            let mut at = Page::default();
            while let Some((slot, first)) = self.table.next_link(&mut at, end, level) {
                let Some(served) = PageRange::with_len(first, span(level)) else { continue };
                each(slot, served);
            }
        }
    }
    /// Whether a table has no entries. The caller has the locks of all pages that it serves.
    fn is_empty(&self, table: Frame) -> bool {
        // Relaxed: the locks order it.
        self.table.entries(table).iter().all(|entry| entry.load(Ordering::Relaxed) == 0)
    }
    fn unlink(&self, slot: &AtomicU64, served: PageRange, gather: &mut Gather<'_>) {
        let link = take_link(slot);
        debug_assert!(
            self.is_empty(link.frame()) || mutant!("mirror-unlink-full"),
            "a table was unlinked with entries in it"
        );
        // SAFETY: the link owned the table since it was made, and has just been cleared.
        gather.take(unsafe { OwnedFrame::from_raw(link.frame(), Use::PageTable) });
        gather.add_range(served);
        // Relaxed: a count.
        self.changing.0.pages.fetch_sub(1, Ordering::Relaxed);
    }
    /// Unlink all tables but the root. That takes no locks and no memory: nothing is mapped any more, or will be. When the
    /// gather is full, `flush` makes all CPUs that use the mirror forget what it was told of, and releases what is in it; the
    /// caller does the same in the end.
    pub fn strip(&self, gather: &mut Gather<'_>, mut flush: impl FnMut(&mut Gather<'_>)) {
        // Nobody else unlinks, or looks at all tables, meanwhile and after this.
        let mut stripped = self.changing.0.sweeping.lock();
        stripped.0 = true;
        self.each_table(1..=3, &mut |slot, served| {
            if gather.room() == 0 {
                flush(gather);
            }
            self.unlink(slot, served, gather);
        });
    }
    /// The frame of the root, for whoever frees it when no CPU has it in CR3 any more. To be called once, when nothing
    /// is mapped and everything has been [stripped](Self::strip): the mirror is of no use after that.
    ///
    /// # Safety
    /// It is the only call, and no other method is called from here on but [`Self::pages`], [`Self::root`], [`Self::sweep`]
    /// and [`Self::shed`], which do nothing any more.
    pub unsafe fn retire(&self) -> OwnedFrame {
        // Relaxed: a count.
        self.changing.0.pages.fetch_sub(1, Ordering::Relaxed);
        // SAFETY: the root was this mirror's; the caller says that it is given away once.
        unsafe { OwnedFrame::from_raw(self.root, Use::PageTable) }
    }
}

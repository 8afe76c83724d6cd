//! What an operation does to pages that it has locked: the counting, and the gathering of what it takes out.

use core::ops::Range;

use ::radix::{Section, Taken};
use addr::{Page, PageRange, Prot};
use owned::{OwnedFrame, Use};
use pagetable::ENTRIES;
use percpu::{AtomicCpuSet, CpuSet, Pinned, Unpinned};
use sync::mutant;
use tlb::Gather;

use super::{
    Guard, Radix,
    realm::{Desc, Realm},
    totals::Difference,
    walk::pages,
    word::{NOBODY, SEVERAL, Slot},
};

/// What was done so far. [`Self::settle`] it while the pages are locked, and drop it, which frees, when they are not.
pub(super) struct Change<'a> {
    space: &'a Radix,
    section: &'a Section<'a, Realm>,
    pub(super) gather: Gather<'a>,
    /// The CPUs that may have cached what was changed since the last flush.
    targets: CpuSet,
    /// Pages in a row, of one block, that several CPUs may have entries for, which are cleared before the next flush: each table
    /// is walked once for all of them.
    hidden: Range<u64>,
    pub(super) difference: Difference,
    /// A run of pages that an object is still to be told to be mapped no more.
    untold: Option<(&'a Desc, u64)>,
}

/// The page with number `key`, which is a key of the tree.
pub(super) fn page(key: u64) -> Page {
    Page::new(key).unwrap_or_default()
}

/// The block that page `key` is of: what one leaf table serves.
fn block(key: u64) -> PageRange {
    let first = key & !(ENTRIES as u64 - 1);
    pages(first, first + ENTRIES as u64)
}

impl<'a> Change<'a> {
    pub(super) fn new(space: &'a Radix, section: &'a Section<'a, Realm>, ctx: &Unpinned<'a>) -> Self {
        let gather = Gather::new(space.machine.frames, *ctx);
        let (targets, difference) = (CpuSet::EMPTY, Difference::default());
        Self { space, section, gather, targets, hidden: 0..0, difference, untold: None }
    }
    pub(super) fn section(&self) -> &'a Section<'a, Realm> {
        self.section
    }
    fn pin(&self) -> &'a Pinned<'a> {
        self.section.pin()
    }
    pub(super) fn desc(&self, slot: Slot) -> &'a Desc {
        self.space.realm.desc(slot, self.section)
    }
    /// Give all the guard's pages `value`. What was there is no more when this is settled.
    #[inline(always)]
    pub(super) fn replace(&mut self, guard: &mut Guard<'_>, value: Slot) {
        if guard.may_have_frozen() {
            self.hide_frozen(guard);
        }
        guard.replace(value.word(), |taken| self.taken(taken));
    }
    /// Nobody translates pages of frozen nodes by this space any more. A share of such a node goes at once, and who gives up the
    /// last one frees the frames. What is taken besides is flushed when it is settled.
    #[cold]
    fn hide_frozen(&mut self, guard: &Guard<'_>) {
        let mut stale = false;
        for span in guard.spans().filter(|span| span.frozen) {
            let pages = pages(span.first, span.first + span.keys);
            if self.space.tables.clear_all(pages, &mut self.targets) {
                self.gather.add_range(pages);
                stale = true;
            }
        }
        if stale && !mutant!("frozen-share-early") {
            self.flush();
        }
    }
    /// A slot that was mapped is no more.
    fn taken(&mut self, taken: Taken) {
        let slot = Slot::of(taken.value);
        if !taken.frozen {
            self.drop_frame(slot, taken.first);
        } else if let Some((frame, usage)) = slot.frame() {
            self.difference.resident(-i64::from(!taken.again));
            if taken.owned {
                // SAFETY: the node's slot had a share, counted for this use, and is no more.
                self.own(unsafe { OwnedFrame::from_raw(frame, usage) });
            }
        }
        if !taken.again {
            self.forget(slot, taken.keys);
        }
    }
    /// `keys` pages from `first` on, of which a slot has said `slot`, are mapped no more.
    pub(super) fn unmapped(&mut self, slot: Slot, first: u64, keys: u64) {
        self.drop_frame(slot, first);
        self.forget(slot, keys);
    }
    /// The same for pages whose frame, if there is one, lives on elsewhere.
    #[inline(always)]
    pub(super) fn forget(&mut self, slot: Slot, keys: u64) {
        let desc = self.desc(slot);
        self.difference.add(desc.kinds, -(keys as i64));
        match &mut self.untold {
            Some((of, pages)) if core::ptr::eq(*of, desc) => *pages += keys,
            _ => {
                if self.untold.is_some() {
                    self.flush_and_tell();
                }
                self.untold = desc.mapping.mappers().is_some().then_some((desc, keys));
            }
        }
    }
    /// `keys` pages that were counted as those of `old` are as those of `new` from now on.
    pub(super) fn relabelled(&mut self, old: &Desc, new: &Desc, keys: u64) {
        self.difference.add(old.kinds, -(keys as i64));
        self.difference.add(new.kinds, keys as i64);
    }
    /// An object hears that its pages are mapped no more when nobody translates to them any more.
    #[cold]
    fn flush_and_tell(&mut self) {
        self.flush();
        self.tell();
    }
    fn tell(&mut self) {
        if let Some((desc, pages)) = self.untold.take() {
            self.space.retract(&desc.mapping, pages, self.pin());
        }
    }
    /// The frame of page `key`, if the slot has one, is to be given back; nobody translates to it after the next flush.
    #[inline(always)]
    pub(super) fn drop_frame(&mut self, slot: Slot, key: u64) {
        let Some((frame, usage)) = slot.frame() else { return };
        self.hide(slot, key);
        self.difference.resident(-1);
        if usage == Use::Lent {
            return;
        }
        // SAFETY: the slot owned a share, counted for this use; the caller has the slot's lock, and takes the frame out.
        self.own(unsafe { OwnedFrame::from_raw(frame, usage) });
    }
    fn own(&mut self, frame: OwnedFrame) {
        if self.gather.room() == 0 {
            self.flush();
            self.gather.release(self.pin());
        }
        self.gather.take(frame);
    }
    /// Nobody translates page `key` after the next flush, until its lock is free. Its slot, `slot`, is to have no owner then.
    #[inline(always)]
    pub(super) fn hide(&mut self, slot: Slot, key: u64) {
        if slot.owner() == SEVERAL {
            self.hide_several(key);
        } else if self.space.tables.clear_of_one(page(key), slot, &mut self.targets) {
            self.stale(key);
        }
    }
    #[cold]
    fn hide_several(&mut self, key: u64) {
        if self.hidden.end != key || key.is_multiple_of(ENTRIES as u64) {
            self.clear_hidden();
            self.hidden = key..key;
        }
        self.hidden.end = key + 1;
    }
    #[cold]
    fn clear_hidden(&mut self) {
        let hidden = core::mem::take(&mut self.hidden);
        if hidden.is_empty() {
            return;
        }
        let run = pages(hidden.start, hidden.end);
        if self.space.tables.clear_run(run, &mut self.targets) {
            self.gather.add_range(if mutant!("radix-flush-wide") { block(hidden.start) } else { run });
        }
    }
    /// The same for a page that may be managed; what its slot is to be. Of one that isn't nothing is done.
    pub(super) fn hide_managed(&mut self, slot: Slot, key: u64) -> Slot {
        if slot.level().is_none() || slot.frame().is_none() {
            return slot;
        }
        let (stale, dirty) = self.space.tables.clear_noting(page(key), slot, &mut self.targets);
        if stale {
            self.stale(key);
        }
        let slot = slot.with_owner(NOBODY);
        if dirty && !mutant!("level-dirty-moved") { slot.dirtied() } else { slot }
    }
    /// No entry of page `key`, whose slot is `slot`, says after the next flush that it was written. Whether one did.
    pub(super) fn clean(&mut self, slot: Slot, key: u64) -> bool {
        let (stale, dirty) = self.space.tables.clean(page(key), slot, &mut self.targets);
        if stale {
            self.stale(key);
        }
        dirty
    }
    /// Nobody has more than `rights` to page `key` after the next flush.
    pub(super) fn lower(&mut self, slot: Slot, key: u64, rights: Prot) {
        if self.space.tables.lower(page(key), slot, rights, &mut self.targets) {
            self.stale(key);
        }
    }
    /// Nobody has more than `rights` to page `key` after the next flush, and this CPU, if it has an entry, no less. They are
    /// what a fault would find.
    #[inline]
    pub(super) fn restrict(&mut self, slot: Slot, key: u64, rights: Prot) {
        if self.space.tables.restrict(page(key), slot, rights, self.pin(), &mut self.targets) {
            self.stale(key);
        }
    }
    /// Nobody writes to a page of the block of page `key` after the next flush, until its lock is free and it is allowed anew.
    /// All pages of the block are locked.
    pub(super) fn protect_block(&mut self, key: u64) {
        if self.space.tables.protect_block(page(key), &mut self.targets) {
            self.gather.add_range(block(key));
        }
    }
    #[inline(always)]
    fn stale(&mut self, key: u64) {
        if mutant!("radix-flush-wide") {
            self.gather.add_range(block(key));
        }
        if let Some(single) = PageRange::single(page(key)) {
            self.gather.add_range(single);
        }
    }
    pub(super) fn flush(&mut self) {
        if !self.hidden.is_empty() && !mutant!("radix-hidden-late") {
            self.clear_hidden();
        }
        let pin = self.pin();
        let targets = core::mem::take(&mut self.targets);
        self.space.flush(&mut self.gather, &targets, pin);
    }
    /// For mutants: what was changed is flushed by no CPU.
    pub(super) fn flush_nobody(&mut self) {
        self.clear_hidden();
        self.gather.flush(self.pin(), self.space.machine.shootdown, &AtomicCpuSet::new());
    }
    /// All is done that has to be done under the lock: nobody uses what was taken out, and the counts are right.
    pub(super) fn settle(&mut self) {
        if mutant!("retract-before-flush") {
            self.tell();
        }
        self.flush();
        self.tell();
        self.space.counts.add(&self.difference, self.pin());
        self.difference = Difference::default();
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        debug_assert!(self.hidden.is_empty(), "a change was dropped without a flush");
    }
}

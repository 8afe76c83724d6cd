//! Looking without locks: what is mapped, where a mapping begins and ends, and where there is room.
//!
//! A look at one page is exact at some moment during the call. A walk over many pages is a look at each, one after the
//! other: what other threads do meanwhile may be in it or not, as in a `/proc/<pid>/maps` that is read in pieces. Who
//! needs more asks again with the pages locked. In particular a page may be seen to be gone while CPUs are still being shot
//! down: that it is gone for everybody is known to who has had it locked.

use core::ops::Range;

use ::radix::{Found, Section, Tree};
use addr::{PageRange, USER_END_PAGE};
use sync::{mutant, pause};

use super::{
    Radix,
    arena::{LARGE, PAID},
    change::page,
    realm::{Desc, Realm},
    word::Slot,
};
use crate::{LOW_WINDOW, LOWEST, MMAP_TOP, Placement, STACK_GAP};

/// Keys of the tree.
pub(super) const KEYS: u64 = Tree::<Realm>::keys();

/// The pages `start..end`.
pub(super) fn pages(start: u64, end: u64) -> PageRange {
    PageRange::new(page(start), page(end)).unwrap_or_default()
}

impl Radix {
    /// What is at page `key`, which is below [`KEYS`].
    pub(super) fn at(&self, key: u64, section: &Section<'_, Realm>) -> (Slot, Found) {
        let found = self.tree.get(key, section);
        (Slot::of(found.value), found)
    }
    /// The lowest slot from `key` on, and below `end`, that is mapped.
    pub(super) fn mapped_from(&self, key: u64, end: u64, section: &Section<'_, Realm>) -> Option<Found> {
        let mut first = None;
        self.tree.scan(key..end, section, |found| {
            first = Some(found);
            false
        });
        first
    }
    fn desc_at<'s>(&'s self, key: u64, section: &'s Section<'_, Realm>) -> Option<&'s Desc> {
        let (slot, _) = self.at(key, section);
        slot.is_mapped().then(|| self.realm.desc(slot, section))
    }
    /// Whether the pages before and at `key` belong to one mapping.
    pub(super) fn joins(&self, key: u64, section: &Section<'_, Realm>) -> bool {
        let before = key.checked_sub(1).and_then(|key| self.desc_at(key, section));
        let Some(before) = before.filter(|_| key < KEYS) else { return false };
        self.desc_at(key, section).is_some_and(|next| before.continues(next))
    }
    /// Where the mapping that has page `key` ends, but not beyond `limit`.
    pub(super) fn end_of(&self, key: u64, limit: u64, section: &Section<'_, Realm>) -> u64 {
        let Some(first) = self.desc_at(key, section) else { return key };
        self.end_from(first, key, limit, section)
    }
    /// Where what `first` says of page `key` ends.
    pub(super) fn end_from(&self, first: &Desc, key: u64, limit: u64, section: &Section<'_, Realm>) -> u64 {
        let mut end = key;
        // No look beyond the first page that isn't mapped.
        self.tree.walk(key..limit, section, |found| {
            let next = Slot::of(found.value);
            let goes_on = next.is_mapped() && first.continues(self.realm.desc(next, section));
            if goes_on {
                end = (found.first + found.keys).min(limit);
            }
            goes_on
        });
        end
    }
    /// Where what `last` says of page `key` begins.
    fn start_from(&self, last: &Desc, key: u64, section: &Section<'_, Realm>) -> u64 {
        let mut start = key;
        while let Some(before) = start.checked_sub(1) {
            let (slot, found) = self.at(before, section);
            if !slot.is_mapped() || !self.realm.desc(slot, section).continues(last) {
                break;
            }
            start = found.first;
        }
        start
    }
    /// The lowest mapping that ends after page `key`, whole.
    pub(super) fn area_from<'s>(
        &'s self,
        key: u64,
        section: &'s Section<'_, Realm>,
    ) -> Option<(PageRange, &'s Desc)> {
        let found = self.mapped_from(key, KEYS, section)?;
        // The slot may begin before, and be changed by now: what holds is what was found. The page is not looked at again, or what
        // is there now could give its extent to a descriptor that it doesn't have.
        let desc = self.realm.desc(Slot::of(found.value), section);
        let first = found.first.max(key);
        pause!("radix-area-found");
        let extent = match mutant!("radix-extent-of-another") {
            true => self.desc_at(first, section).unwrap_or(desc),
            false => desc,
        };
        let start = self.start_from(extent, first, section);
        let end = self.end_from(extent, first, KEYS, section);
        Some((pages(start.min(first), end.max(first + 1)), desc))
    }
    /// The lowest part of a mapping in `key..end`.
    pub(super) fn part_from<'s>(
        &'s self,
        key: u64,
        end: u64,
        section: &'s Section<'_, Realm>,
    ) -> Option<(PageRange, &'s Desc)> {
        let found = self.mapped_from(key, end, section)?;
        // As in `area_from`: what was found holds.
        let desc = self.realm.desc(Slot::of(found.value), section);
        let first = found.first.max(key);
        Some((pages(first, self.end_from(desc, first, end, section).max(first + 1)), desc))
    }
    /// Whether all of `range` is mapped.
    pub(super) fn is_covered(&self, range: PageRange, section: &Section<'_, Realm>) -> bool {
        let mut end = range.start().number();
        self.tree.walk(end..range.end().number(), section, |found| {
            let goes_on = Slot::of(found.value).is_mapped();
            if goes_on {
                end = found.first + found.keys;
            }
            goes_on
        });
        end >= range.end().number()
    }
    /// Whether removing `range` would leave a hole in one mapping.
    pub(super) fn punches(&self, range: PageRange, section: &Section<'_, Realm>) -> bool {
        let (start, end) = (range.start().number(), range.end().number());
        self.joins(start, section) && self.end_of(start - 1, KEYS, section) > end
    }
    /// Whether changing `range` would split a mapping.
    pub(super) fn splits(&self, range: PageRange, section: &Section<'_, Realm>) -> bool {
        self.joins(range.start().number(), section) || self.joins(range.end().number(), section)
    }

    /// Whether the gap below a stack does not reach down below page `end`. Another mapping in it takes its place.
    pub(super) fn is_clear_above(&self, end: u64, section: &Section<'_, Realm>) -> bool {
        let next = self.mapped_from(end, KEYS.min(end + STACK_GAP), section);
        next.is_none_or(|found| !self.realm.desc(Slot::of(found.value), section).mapping.is_stack())
    }
    fn is_clear(&self, range: PageRange, section: &Section<'_, Realm>) -> bool {
        let (start, end) = (range.start().number(), range.end().number());
        self.mapped_from(start, end, section).is_none() && self.is_clear_above(end, section)
    }
    /// Pages that were free a moment ago. As [`Mappings::place`](crate::Mappings::place), but for what may go anywhere.
    pub(super) fn place(&self, at: Placement, n: u64, section: &Section<'_, Realm>) -> Option<PageRange> {
        let hinted = |start: addr::Page, end: u64| {
            let range = PageRange::with_len(start.max(page(LOWEST)), n)?;
            Some(range).filter(|range| range.end().number() <= end && self.is_clear(*range, section))
        };
        match at {
            Placement::Fixed(start) | Placement::FixedNoReplace(start) => PageRange::with_len(start, n),
            Placement::Below32Bit => self.lowest_gap(n, section),
            Placement::HintBelow32Bit(start) => {
                hinted(start, LOW_WINDOW.end).or_else(|| self.lowest_gap(n, section))
            }
            Placement::Anywhere => self.anywhere(n, section),
            Placement::Hint(start) => {
                hinted(start, USER_END_PAGE.number()).or_else(|| self.anywhere(n, section))
            }
        }
    }
    /// Free pages of this CPU's arena, or of what all share if they are many; if there are no more arenas, the highest there
    /// are.
    fn anywhere(&self, n: u64, section: &Section<'_, Realm>) -> Option<PageRange> {
        if n > LARGE {
            let gap = |top, lowest, unit| self.gap_below(top, lowest, n, unit, section);
            return self.arenas.large(n, gap).or_else(|| self.highest_gap(n, section));
        }
        let mut arena = self.arenas.mine(section.pin()).borrow_mut();
        loop {
            if let Some(again) = arena.again(n).filter(|&again| self.is_clear(again, section)) {
                return Some(again);
            }
            let Range { start, end } = arena.place(n);
            if let Some(found) = self.gap_below(end, start, n, 1, section) {
                arena.found(found);
                return Some(found);
            }
            if arena.go_on(n, PAID[0]) || self.is_roomy() && arena.go_on(n, PAID[1]) {
                continue;
            }
            if !self.arenas.take().is_some_and(|fresh| arena.begin(fresh, n)) {
                return self.highest_gap(n, section);
            }
        }
    }
    fn highest_gap(&self, n: u64, section: &Section<'_, Realm>) -> Option<PageRange> {
        let below = |top, lowest| self.gap_below(top, lowest, n, 1, section);
        below(MMAP_TOP, LOWEST).or_else(|| below(USER_END_PAGE.number(), MMAP_TOP))
    }
    /// The highest free pages of `lowest..top` that are not in the gap below a stack, `n` of them, from a multiple of `unit`
    /// on, and what there is up to the next is free too.
    ///
    /// Of a place that isn't free it is the lowest mapped page that says where the next may end. What is below that was seen to
    /// be free, so with two looks the search goes down by `n` pages at least, whatever there is.
    fn gap_below(
        &self,
        top: u64,
        lowest: u64,
        n: u64,
        unit: u64,
        section: &Section<'_, Realm>,
    ) -> Option<PageRange> {
        let above = self.mapped_from(top, KEYS.min(top + STACK_GAP), section);
        let mut end = above.map_or(top, |found| self.clear_of(&found, section).min(top));
        loop {
            let start = (end - end % unit).checked_sub(n.next_multiple_of(unit))?;
            if start < lowest {
                return None;
            }
            match self.mapped_from(start, end, section) {
                None => return Some(pages(start, start + n)),
                Some(found) => end = self.clear_of(&found, section),
            }
        }
    }
    /// Where a search from below has to stop before what was found.
    fn clear_of(&self, found: &Found, section: &Section<'_, Realm>) -> u64 {
        let stack = self.realm.desc(Slot::of(found.value), section).mapping.is_stack();
        if stack { found.first.saturating_sub(STACK_GAP) } else { found.first }
    }
    fn lowest_gap(&self, n: u64, section: &Section<'_, Realm>) -> Option<PageRange> {
        let mut at = LOW_WINDOW.start;
        while at < LOW_WINDOW.end {
            // What comes next after the window matters too.
            let next = self.mapped_from(at, LOW_WINDOW.end + STACK_GAP, section);
            let end = next.map_or(LOW_WINDOW.end, |found| self.clear_of(&found, section).min(LOW_WINDOW.end));
            if at.checked_add(n)? <= end {
                return Some(pages(at, at + n));
            }
            at = next?.first.max(at) + next?.keys - (at.max(next?.first) - next?.first);
        }
        None
    }
}

//! Where large ranges go that may go anywhere: to the highest gap that is large enough, in parts of the address space that all
//! CPUs share and that have nothing else. A lock is no loss where so much is mapped at once.
//!
//! **How many addresses that takes.** First fit by address, in whole units of [`UNIT`] pages, so that what two CPUs write in
//! the tree lies apart. Of first fit it is known that it never needs more than about log2 of the largest request over the
//! smallest times what was in use at once (Robson, "Worst case fragmentation of first fit and best fit storage allocation
//! strategies", Computer Journal 20(3), 1977), and nothing that can't move what it has handed out is better by more than a factor
//! of two (Robson, JACM 18(3), 1971). From 16 MiB to 1 TiB that is 16 times, twice for what units round up. Requests that
//! aren't chosen to be nasty need less than twice what they have mapped.
//!
//! **What a search costs.** The tree is the truth here too. From a place that isn't free a search goes on below the lowest
//! page that is mapped in it, so two looks are enough for as many pages as are looked for. And each class of requests, those up
//! to twice as large, remembers below which page gaps may be, which is put up only by unmapping above. What is unmapped in
//! small pieces isn't heard of; so before addresses are added everything is searched once more, if a part of it has been
//! handed out since ([`PAID`]).

use alloc::vec::Vec;
use core::ops::Range;

use addr::PageRange;
use sync::mutant;

/// Ranges begin and end at multiples of so many pages, 16 MiB: the slots that they take in the tree's level of 2 MiB are no
/// line's in common.
const UNIT: u64 = 1 << 12;
/// Classes of requests, by their binary logarithm; those beyond are of the last.
const CLASSES: usize = 20;
/// All is searched again when the pages of all parts, divided by this, were handed out.
const PAID: u64 = 8;

/// What all CPUs share.
#[derive(Default)]
pub(super) struct Large {
    /// From the highest down; no two adjoin.
    parts: Vec<Range<u64>>,
    /// For each class of requests, the page below which there may be a gap for it.
    tops: [u64; CLASSES],
    /// Pages that were handed out since everything was searched.
    handed: u64,
}

/// The class of requests of `n` pages: it has those of up to `UNIT << class` pages.
fn class(n: u64) -> usize {
    let units = n.div_ceil(UNIT);
    (units.next_power_of_two().trailing_zeros() as usize).min(CLASSES - 1)
}

impl Large {
    /// Pages of all parts.
    pub(super) fn pages(&self) -> u64 {
        self.parts.iter().map(|part| part.end - part.start).sum()
    }
    /// `n` pages of the parts, by `gap(top, lowest, unit)`.
    pub(super) fn find(
        &mut self,
        n: u64,
        gap: &impl Fn(u64, u64, u64) -> Option<PageRange>,
    ) -> Option<PageRange> {
        let class = class(n);
        loop {
            let top = self.tops[class];
            let below = self.parts.iter().filter(|part| part.start < top);
            let found = below.filter_map(|part| gap(part.end.min(top), part.start, UNIT)).next();
            if let Some(found) = found {
                self.tops[class] = found.start().number();
                self.handed += n;
                return Some(found);
            }
            self.tops[class] = 0;
            if self.handed <= self.pages() / PAID || mutant!("large-forgotten") {
                return None;
            }
            self.handed = 0;
            self.tops = [self.end(); CLASSES];
        }
    }
    fn end(&self) -> u64 {
        self.parts.first().map_or(0, |part| part.end)
    }
    /// `range` was unmapped.
    pub(super) fn note(&mut self, range: PageRange) {
        let (start, end) = (range.start().number(), range.end().number());
        if self.parts.iter().any(|part| start < part.end && part.start < end) && !mutant!("large-forgotten") {
            self.look_from(end);
        }
    }
    /// There may be gaps that have a part of what is right below page `end`; each ends above by less than it is large.
    fn look_from(&mut self, end: u64) {
        let highest = self.end();
        for (class, top) in self.tops.iter_mut().enumerate() {
            let most = if class == CLASSES - 1 { highest } else { UNIT << class };
            *top = (*top).max(end.saturating_add(most)).min(highest);
        }
    }
    /// `row` belongs to this from here on. False if there is no memory.
    pub(super) fn extend(&mut self, row: Range<u64>) -> bool {
        if self.parts.try_reserve(1).is_err() {
            return false;
        }
        let end = row.end;
        match self.parts.last_mut().filter(|last| last.start == end) {
            Some(last) => last.start = row.start,
            None => self.parts.push(row),
        }
        self.look_from(end);
        true
    }
    /// A child has what its parent has, as far as there is memory to say so.
    pub(super) fn follow(&mut self, parent: &Large) {
        if self.parts.try_reserve(parent.parts.len()).is_ok() {
            self.parts.extend(parent.parts.iter().cloned());
            (self.tops, self.handed) = (parent.tops, parent.handed);
        }
    }
}

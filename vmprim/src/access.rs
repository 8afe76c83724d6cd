//! Levels, pages, ranges and sets of pages.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::ops::Range;

/// What accesses a page allows. Levels are ordered: each allows what the ones before it do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Access {
    /// No access.
    #[default]
    None = 0,
    /// Loads.
    Read = 1,
    /// Loads and stores.
    ReadWrite = 2,
}

impl Access {
    /// The level of the two bits that stand for it.
    pub(crate) const fn of_bits(bits: u64) -> Self {
        match bits & 3 {
            0 => Self::None,
            1 => Self::Read,
            _ => Self::ReadWrite,
        }
    }
}

/// Why a handler is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A load that the page's level forbids.
    Read,
    /// A store that the page's level forbids.
    Write,
    /// The page had a frame and has lost it (a punched hole, a truncated file): a grant gives it one of zeros,
    /// unless the handler fills it through the alias first.
    Missing,
    /// `pin` asks for the page; nothing has touched it.
    Pin,
    /// Nothing has touched the page, but granting it now would save a mapping: may be declined with `Retry`.
    Speculative,
}

impl Kind {
    /// The least level with which the access goes through.
    pub(crate) const fn needs(self) -> Access {
        match self {
            Self::Write => Access::ReadWrite,
            _ => Access::Read,
        }
    }
}

/// A page of a region: its number, from 0. A page is one protection unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageNo(pub usize);

/// Neighbouring pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageRange {
    /// The first page.
    pub start: PageNo,
    /// How many.
    pub count: usize,
}

impl PageRange {
    /// The page after the last, saturated.
    pub const fn end(self) -> usize {
        self.start.0.saturating_add(self.count)
    }
    pub(crate) const fn new(start: usize, count: usize) -> Self {
        Self { start: PageNo(start), count }
    }
}

impl From<PageNo> for PageRange {
    fn from(page: PageNo) -> Self {
        Self { start: page, count: 1 }
    }
}

impl From<Range<usize>> for PageRange {
    /// Page numbers; a range that ends before it starts is empty.
    fn from(pages: Range<usize>) -> Self {
        Self { start: PageNo(pages.start), count: pages.end.saturating_sub(pages.start) }
    }
}

/// The protection unit, in bytes: a power of two, at least 4096.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageSize(pub(crate) usize);

impl PageSize {
    /// So many KiB.
    pub const fn kib(n: usize) -> Self {
        Self(n.saturating_mul(1024))
    }
    /// So many MiB.
    pub const fn mib(n: usize) -> Self {
        Self(n.saturating_mul(1024 * 1024))
    }
    /// In bytes.
    pub const fn bytes(self) -> usize {
        self.0
    }
}

/// A set of pages of one region, as a bitmap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageSet {
    words: Vec<u64>,
}

impl PageSet {
    /// An empty set.
    pub const fn new() -> Self {
        Self { words: Vec::new() }
    }
    /// Whether `page` is in it.
    pub fn contains(&self, page: PageNo) -> bool {
        self.words.get(page.0 / 64).is_some_and(|word| word >> (page.0 % 64) & 1 != 0)
    }
    /// Put `page` into it.
    pub fn insert(&mut self, page: PageNo) {
        self.insert_bits(page.0 / 64, 1 << (page.0 % 64));
    }
    /// Take all pages out.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }
    /// How many pages are in it.
    pub fn len(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }
    /// Whether no page is in it.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }
    /// Its pages, in order.
    pub fn iter(&self) -> impl Iterator<Item = PageNo> + '_ {
        self.words.iter().enumerate().flat_map(|(i, &word)| {
            std::iter::successors(Some(word), |rest| Some(rest & rest.wrapping_sub(1)))
                .take_while(|&rest| rest != 0)
                .map(move |rest| PageNo(i * 64 + rest.trailing_zeros() as usize))
        })
    }
    /// Its pages as the fewest ranges, in order.
    pub fn runs(&self) -> Vec<PageRange> {
        let mut runs: Vec<PageRange> = Vec::new();
        for page in self.iter() {
            match runs.last_mut() {
                Some(last) if last.end() == page.0 => last.count += 1,
                _ => runs.push(page.into()),
            }
        }
        runs
    }
    pub(crate) fn insert_range(&mut self, range: PageRange) {
        (range.start.0..range.end()).for_each(|page| self.insert(PageNo(page)));
    }
    /// Put the pages in whose bits are set in `bits`, of the pages from 64 × `word`.
    pub(crate) fn insert_bits(&mut self, word: usize, bits: u64) {
        if bits != 0 {
            if self.words.len() <= word {
                self.words.resize(word + 1, 0);
            }
            if let Some(place) = self.words.get_mut(word) {
                *place |= bits;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_gives_its_pages_and_runs_in_order() {
        let mut set = PageSet::new();
        for page in [200, 3, 4, 63, 64, 5] {
            set.insert(PageNo(page));
        }
        assert_eq!(set.iter().map(|page| page.0).collect::<Vec<_>>(), [3, 4, 5, 63, 64, 200]);
        assert_eq!(set.runs(), [PageRange::new(3, 3), PageRange::new(63, 2), PageRange::new(200, 1)]);
        assert!(set.contains(PageNo(64)) && !set.contains(PageNo(65)) && set.len() == 6);
    }
}

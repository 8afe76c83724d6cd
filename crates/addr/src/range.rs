//! A half-open range of pages.

use crate::{PAGE_SHIFT, PAGE_SIZE, Page, VirtAddr};

/// The pages `start..end`, possibly none; `start <= end` always.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct PageRange {
    start: Page,
    end: Page,
}

impl PageRange {
    /// The pages `start..end`, or `None` if `end < start`.
    pub const fn new(start: Page, end: Page) -> Option<Self> {
        if start.number() <= end.number() { Some(Self { start, end }) } else { None }
    }
    /// `pages` pages from `start`, or `None` past the end of the number space.
    pub const fn with_len(start: Page, pages: u64) -> Option<Self> {
        match start.checked_add(pages) {
            Some(end) => Some(Self { start, end }),
            None => None,
        }
    }
    /// The single page `page`, which is not the last of the number space.
    pub const fn single(page: Page) -> Option<Self> {
        Self::with_len(page, 1)
    }
    /// The pages that `len` bytes from page-aligned `addr` touch, or `None` on overflow or misalignment.
    pub const fn covering(addr: VirtAddr, len: u64) -> Option<Self> {
        if addr.offset() != 0 {
            return None;
        }
        match len.checked_add(PAGE_SIZE - 1) {
            Some(l) => Self::with_len(addr.page(), l >> PAGE_SHIFT),
            None => None,
        }
    }
    /// First page.
    pub const fn start(self) -> Page {
        self.start
    }
    /// First page after the range.
    pub const fn end(self) -> Page {
        self.end
    }
    /// Length in pages.
    pub const fn len(self) -> u64 {
        self.end.number() - self.start.number()
    }
    /// Whether the range holds no page.
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }
    /// Whether `page` is in the range.
    pub fn contains(self, page: Page) -> bool {
        self.start <= page && page < self.end
    }
    /// Whether every page of `other` is in the range.
    pub fn contains_range(self, other: PageRange) -> bool {
        other.is_empty() || (self.start <= other.start && other.end <= self.end)
    }
    /// The pages in both, or `None` if there are none.
    pub fn intersect(self, other: PageRange) -> Option<PageRange> {
        let (start, end) = (self.start.max(other.start), self.end.min(other.end));
        (start < end).then_some(Self { start, end })
    }
    /// The pages in ascending order.
    pub fn iter(self) -> Pages {
        Pages { next: self.start.number(), end: self.end.number() }
    }
}

impl IntoIterator for PageRange {
    type Item = Page;
    type IntoIter = Pages;
    fn into_iter(self) -> Pages {
        self.iter()
    }
}

/// Iterator over the pages of a range.
#[derive(Clone, Debug)]
pub struct Pages {
    next: u64,
    end: u64,
}

impl Iterator for Pages {
    type Item = Page;
    fn next(&mut self) -> Option<Page> {
        if self.next == self.end {
            return None;
        }
        let p = Page::new(self.next);
        self.next += 1;
        p
    }
    fn size_hint(&self) -> (usize, Option<usize>) {
        let n = (self.end - self.next) as usize;
        (n, Some(n))
    }
}

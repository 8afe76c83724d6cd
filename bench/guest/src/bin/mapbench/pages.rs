//! Runs of pages in the address range that the modes own, and what is written into them.
//!
//! The range begins at 4 GiB ([`BASE`]) and ends where the mode says. `main` makes sure that nothing is mapped there
//! before it starts, and nothing but the modes maps there afterwards: the addresses are fixed, so kernels that choose
//! other addresses do the same work. No object of the program's lives in it, so reading and writing it by volatile
//! accesses can break nothing; a page that is not mapped ends the program by a signal.
//!
//! Every page that is touched gets a *stamp*: who, when, which page. Rounds alternate between the page's first two
//! words, so the word of the round before must be zero on a page that is fresh, and wrong if a kernel handed out a page
//! that it had not cleared or had not taken away.

use crate::{meter::Checks, sys};

/// Bytes in a page.
pub const PAGE: usize = 4096;
/// Where the modes' range begins.
pub const BASE: usize = 4 << 30;
/// The words in which threads that share a page write, by [`Pages::write_word`].
const OWN_WORDS: usize = PAGE / 8;

/// A run of pages in the modes' range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pages {
    address: usize,
    count: usize,
}

/// Who writes, and when.
#[derive(Clone, Copy)]
pub struct Author {
    /// The thread.
    pub thread: usize,
    /// Its round.
    pub round: u32,
}

impl Author {
    /// What this author writes into page `index` of a run: never zero, and no two alike.
    #[inline(always)]
    pub fn stamp(self, index: usize) -> u64 {
        1 << 63 | (self.thread as u64) << 50 | (index as u64) << 32 | u64::from(self.round)
    }

    /// The word of the page that a fresh page's first writer uses.
    #[inline(always)]
    fn word(self) -> usize {
        (self.round & 1) as usize
    }
}

impl Pages {
    /// `count` pages from `offset` bytes behind the range's begin.
    pub const fn at(offset: usize, count: usize) -> Self {
        Self { address: BASE + offset, count }
    }

    /// How many.
    pub fn count(self) -> usize {
        self.count
    }

    /// Bytes.
    fn bytes(self) -> usize {
        self.count * PAGE
    }

    /// The address of the first.
    pub fn address(self) -> usize {
        self.address
    }

    /// Part of them: `count` pages from page `first` on.
    pub fn part(self, first: usize, count: usize) -> Self {
        assert!(first + count <= self.count);
        Self { address: self.address + first * PAGE, count }
    }

    /// A word of page `index`.
    #[inline(always)]
    fn word(self, index: usize, word: usize) -> *mut u64 {
        (self.address + index * PAGE + word * 8) as *mut u64
    }

    #[inline(always)]
    fn read(self, index: usize, word: usize) -> u64 {
        // SAFETY: a word in the range that holds no object (the module's head); other threads write other words, or
        // have done so before a wait that ordered it.
        unsafe { self.word(index, word).read_volatile() }
    }

    #[inline(always)]
    fn write(self, index: usize, word: usize, value: u64) {
        // SAFETY: as for `read`.
        unsafe { self.word(index, word).write_volatile(value) }
    }

    /// Maps private zeroed memory there, readable and writable, instead of whatever was there.
    #[inline(always)]
    pub fn map(self) {
        sys::map_at(self.address, self.bytes(), libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1);
    }

    /// As [`Pages::map`], of a size that may exceed the memory: the kernel shall not reserve any.
    pub fn map_sparsely(self) {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        sys::map_at(self.address, self.bytes(), flags, -1);
    }

    /// Maps the begin of an object there, shared.
    #[inline(always)]
    pub fn map_object(self, fd: i32) {
        sys::map_at(self.address, self.bytes(), libc::MAP_SHARED, fd);
    }

    /// Unmaps them.
    #[inline(always)]
    pub fn unmap(self) {
        sys::unmap(self.address, self.bytes());
    }

    /// Gives their contents up; they stay mapped.
    pub fn dont_need(self) {
        sys::dont_need(self.address, self.bytes());
    }

    /// Takes the right to write away, or gives it back.
    #[inline(always)]
    pub fn protect(self, writable: bool) {
        let write = if writable { libc::PROT_WRITE } else { 0 };
        sys::protect(self.address, self.bytes(), libc::PROT_READ | write);
    }

    /// Whether nothing at all is mapped there.
    pub fn are_free(self) -> bool {
        sys::is_free(self.address, self.bytes())
    }

    /// Writes the author's stamp into every page: one write a page, each a fault if the page is fresh.
    #[inline(always)]
    pub fn stamp(self, author: Author) {
        for index in 0..self.count {
            self.write(index, author.word(), author.stamp(index));
        }
    }

    /// Checks that every page has the author's stamp, and that it was fresh when the author wrote it.
    #[inline(always)]
    pub fn check(self, author: Author, checks: &mut Checks) {
        for index in 0..self.count {
            let (own, other) = (self.read(index, author.word()), self.read(index, 1 - author.word()));
            checks.expect(own == author.stamp(index) && other == 0);
        }
    }

    /// Touches fresh pages: all are written, then all are read back.
    #[inline(always)]
    pub fn touch(self, author: Author, checks: &mut Checks) {
        self.stamp(author);
        self.check(author, checks);
    }

    /// Writes one word of one page.
    #[inline(always)]
    pub fn write_word(self, index: usize, word: usize, value: u64) {
        assert!(index < self.count && word < OWN_WORDS);
        self.write(index, word, value);
    }

    /// Reads one word of one page.
    #[inline(always)]
    pub fn read_word(self, index: usize, word: usize) -> u64 {
        assert!(index < self.count && word < OWN_WORDS);
        self.read(index, word)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn stamps_differ() {
        let mut stamps = HashSet::new();
        for thread in [0, 1, 79, 1023] {
            for round in [0, 1, 1 << 20, u32::MAX] {
                for index in [0, 1, 511, (1 << 18) - 1] {
                    let stamp = Author { thread, round }.stamp(index);
                    assert!(stamp != 0 && stamps.insert(stamp));
                }
            }
        }
    }

    /// The only test that maps in the modes' range: tests of one process run at the same time.
    #[test]
    fn a_stale_page_and_a_lost_page_are_seen() {
        let pages = Pages::at(0, 3);
        let now = Author { thread: 3, round: 7 };
        pages.map();
        let mut checks = Checks::default();
        pages.touch(now, &mut checks);
        assert_eq!((checks.made, checks.wrong), (3, 0));
        // The same pages again, not renewed: the last round's stamps are still there.
        pages.touch(Author { round: 8, ..now }, &mut checks);
        assert_eq!((checks.made, checks.wrong), (6, 3));
        pages.part(1, 1).dont_need();
        pages.check(Author { round: 8, ..now }, &mut checks);
        assert_eq!((checks.made, checks.wrong), (9, 6));
        assert!(!pages.are_free());
        pages.unmap();
        assert!(pages.are_free() && pages.are_free());
    }
}

//! `global` and `global-fixed`: all threads build one region together and touch all of it at random, as a hash table
//! that grows does.
//!
//! The region is split evenly; thread i maps slice i. In a round each thread maps its slice, waits for all, draws as
//! many random pages as the region has and touches each drawn page once (about 63 % of the region), and waits for all.
//! `global` has a slice of the same size whatever the number of threads, and maps it over the last round's (an unmapping
//! in the same call); `global-fixed` has a region of the same size whatever the number of threads, and unmaps the slice
//! at the round's end. Mapping, touching and unmapping are measured; the draws and the waits are not.
//!
//! Each thread has a word of its own in every page, up to 64 threads on a line of its own, so that what moves between
//! CPUs is the kernel's state, and the page's line once when it has just been cleared.

use super::{Mode, Work};
use crate::{
    meter::{Checks, Meter},
    pages::{Author, PAGE, Pages},
    wait::{Barrier, Between},
};

/// The most pages in a region: as many as stamps can tell apart.
const MOST: usize = 1 << 18;
/// Lines in a page, and words in a line.
const LINES: usize = PAGE / 64;
const WORDS: usize = 8;

pub struct Global {
    threads: usize,
    region: Pages,
    fixed: bool,
    barrier: Barrier,
}

struct Thread<'a> {
    mode: &'a Global,
    thread: usize,
    slice: Pages,
    /// This round's pages, each once.
    drawn: Vec<u32>,
    /// A bit for each page that was drawn.
    seen: Vec<u64>,
}

impl Global {
    /// A region of so many pages in all.
    pub fn new(threads: usize, pages: usize, fixed: bool) -> Result<Self, String> {
        if !(threads..=MOST).contains(&pages) {
            return Err(format!(
                "a region of {pages} pages: it must have a page a thread, and {MOST} at most"
            ));
        }
        Ok(Self {
            threads,
            region: Pages::at(0, pages),
            fixed,
            barrier: Barrier::new(threads, Between::Threads),
        })
    }

    fn slice(&self, thread: usize) -> Pages {
        let begin = |thread| thread * self.region.count() / self.threads;
        self.region.part(begin(thread), begin(thread + 1) - begin(thread))
    }
}

/// The word of a page that is this thread's: on different lines for threads less than 64 apart.
fn own_word(thread: usize) -> usize {
    thread % LINES * WORDS + thread / LINES % WORDS
}

/// The next of a sequence of random numbers (SplitMix64: Steele, Lea and Flood, OOPSLA 2014).
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

impl Mode for Global {
    fn extent(&self) -> usize {
        self.region.count() * PAGE
    }

    fn start(&self, thread: usize) -> Box<dyn Work + '_> {
        let pages = self.region.count();
        Box::new(Thread {
            mode: self,
            thread,
            slice: self.slice(thread),
            drawn: Vec::with_capacity(pages),
            seen: vec![0; pages.div_ceil(64)],
        })
    }

    fn team(&self, _thread: usize) -> usize {
        0
    }
}

impl Thread<'_> {
    /// Draws this round's pages: the same ones in every run.
    fn draw(&mut self, round: u32) {
        let pages = self.mode.region.count() as u64;
        let mut state = (self.thread as u64) << 32 | u64::from(round);
        self.drawn.clear();
        self.seen.fill(0);
        for _ in 0..pages {
            let page = ((u128::from(random(&mut state)) * u128::from(pages)) >> 64) as usize;
            let (word, bit) = (&mut self.seen[page / 64], 1 << (page % 64));
            if *word & bit == 0 {
                *word |= bit;
                self.drawn.push(page as u32);
            }
        }
    }

    /// Checks that what this thread wrote is there, and that the next thread's word is of this round or fresh.
    fn check(&self, me: Author, checks: &mut Checks) {
        let other = Author { thread: (self.thread + 1) % self.mode.threads, ..me };
        for &page in &self.drawn {
            let read = |author: Author| self.mode.region.read_word(page as usize, own_word(author.thread));
            checks.expect(read(me) == me.stamp(page as usize));
            checks.expect([0, other.stamp(page as usize)].contains(&read(other)));
        }
    }
}

impl Work for Thread<'_> {
    fn round(&mut self, round: u32, meter: &mut Meter) {
        let me = Author { thread: self.thread, round };
        let (region, slice) = (self.mode.region, self.slice);
        meter.bracket(0, |_| slice.map());
        self.draw(round);
        self.mode.barrier.wait();
        let drawn = &self.drawn[..];
        meter.bracket(drawn.len(), |_| {
            for &page in drawn {
                region.write_word(page as usize, own_word(me.thread), me.stamp(page as usize));
            }
        });
        self.check(me, &mut meter.checks);
        self.mode.barrier.wait();
        if self.mode.fixed {
            meter.bracket(0, |_| slice.unmap());
        }
    }

    fn finish(&mut self, _rounds: u32, meter: &mut Meter) {
        if !self.mode.fixed {
            self.slice.unmap();
        }
        meter.checks.expect(self.slice.are_free());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn slices_cover_the_region_once() {
        for (threads, pages) in [(1, 1), (3, 16), (80, 5120), (7, 5120)] {
            let mode = Global::new(threads, pages, true).unwrap();
            let mut next = mode.region.address();
            for thread in 0..threads {
                assert_eq!(mode.slice(thread).address(), next);
                next += mode.slice(thread).count() * PAGE;
            }
            assert_eq!(next, mode.region.address() + pages * PAGE);
        }
        assert!(Global::new(4, 3, true).is_err());
    }

    #[test]
    fn threads_write_different_words_and_few_share_a_line() {
        let words: Vec<_> = (0..512).map(own_word).collect();
        assert_eq!(words.iter().collect::<HashSet<_>>().len(), 512);
        assert_eq!(words[..64].iter().map(|word| word / WORDS).collect::<HashSet<_>>().len(), 64);
    }

    #[test]
    fn draws_are_distinct_and_cover_what_chance_gives() {
        let mode = Global::new(2, 10_000, false).unwrap();
        let mut thread =
            Thread { mode: &mode, thread: 1, slice: mode.slice(1), drawn: vec![], seen: vec![0; 157] };
        thread.draw(5);
        let drawn = thread.drawn.clone();
        assert_eq!(drawn.iter().collect::<HashSet<_>>().len(), drawn.len());
        // 1 - 1/e = 0.632 of 10,000; the standard deviation is below 50.
        assert!((6100..6550).contains(&drawn.len()), "{}", drawn.len());
        thread.draw(5);
        assert_eq!(thread.drawn, drawn);
        thread.draw(6);
        assert_ne!(thread.drawn, drawn);
    }
}

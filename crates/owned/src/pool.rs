//! The shared pool: which frames are free, one bit each, under the lock that its owner puts around it.
//!
//! Frames are numbered from 0 here. A *row* is 64 frames, a `u64` with 1 for free. Over the rows stands a summary,
//! one bit a row, 1 if any of its frames is free; `lowest` is the first summary word that may have a 1. Everything
//! is taken from the low end (first fit), which keeps the high end in one piece.
//!
//! A run of 2^k frames, k <= 6, is found within a row: folding the row over itself k times leaves a 1 exactly where
//! 2^k free frames begin, and a mask keeps the aligned ones. A longer run is 2, 4 or 8 adjacent full rows.

use core::ops::Range;

use sync::mutant;

/// Frames in a row.
pub(crate) const ROW: usize = 64;

#[derive(Debug)]
pub(crate) struct Pool {
    rows: &'static mut [u64],
    summary: &'static mut [u64],
    lowest: usize,
    free: usize,
}

/// The positions that 2^k divides, for k in 0..=6.
const ALIGNED: [u64; 7] = [
    !0,
    0x5555_5555_5555_5555,
    0x1111_1111_1111_1111,
    0x0101_0101_0101_0101,
    0x0001_0001_0001_0001,
    0x0000_0001_0000_0001,
    1,
];

/// The lowest `n` bits, n in 0..=64.
const fn low_bits(n: usize) -> u64 {
    if n == 0 { 0 } else { !0 >> (ROW - n) }
}

/// A 1 for each aligned run of 2^`order` ones in `row`, at its first frame; `order` <= 6.
const fn runs(row: u64, order: u32) -> u64 {
    let (mut r, mut k) = (row, 0);
    while k < order {
        r &= r >> (1 << k);
        k += 1;
    }
    r & ALIGNED[order as usize]
}

/// The rows that the `n` frames from `at` on lie in, each with the bits of those frames, of which there is one at least.
fn masks(at: usize, n: usize) -> impl Iterator<Item = (usize, u64)> {
    let end = at + n;
    let rows = if n == 0 { 0..0 } else { at / ROW..end.div_ceil(ROW) };
    rows.map(move |row| {
        let (from, to) = (at.max(row * ROW), end.min((row + 1) * ROW));
        (row, low_bits(to - from) << (from % ROW))
    })
}

impl Pool {
    /// A pool in which no frame is free. Both slices are zero, with a summary bit for each row.
    pub(crate) fn new(rows: &'static mut [u64], summary: &'static mut [u64]) -> Self {
        debug_assert!(summary.len() * ROW >= rows.len());
        Self { rows, summary, lowest: 0, free: 0 }
    }
    /// Where the bitmap and its summary are.
    pub(crate) fn tables(&self) -> [Range<usize>; 2] {
        [&*self.rows, &*self.summary].map(|table| {
            let bytes = table.as_ptr_range();
            bytes.start.addr()..bytes.end.addr()
        })
    }
    /// Number of free frames, as counted along the way.
    pub(crate) fn free(&self) -> usize {
        self.free
    }
    /// Number of free frames, counted in the bitmap.
    pub(crate) fn count(&self) -> usize {
        self.rows.iter().map(|r| r.count_ones() as usize).sum()
    }
    /// Take up to `n` single frames, lowest first, and pass each on.
    pub(crate) fn take(&mut self, n: usize, mut each: impl FnMut(usize)) {
        let mut left = n.min(self.free);
        while left > 0 {
            let Some(row) = self.next_row(self.lowest * ROW) else { return };
            self.lowest = row / ROW;
            while left > 0 && self.rows[row] != 0 {
                let at = row * ROW + self.rows[row].trailing_zeros() as usize;
                self.clear(row, 1 << (at % ROW));
                each(at);
                left -= 1;
            }
        }
    }
    /// Take 2^`order` frames in a run, the first of them a multiple of that.
    pub(crate) fn take_run(&mut self, order: u32) -> Option<usize> {
        if order <= ROW.trailing_zeros() { self.take_within_row(order) } else { self.take_rows(order) }
    }

    /// Take the `n` frames from `at` on. The answer is false, and nothing changes, if one of them is not free.
    pub(crate) fn take_at(&mut self, at: usize, n: usize) -> bool {
        let free = |(row, mask): (usize, u64)| self.rows.get(row).is_some_and(|r| r & mask == mask);
        if at.checked_add(n).is_none() || !masks(at, n).all(free) {
            return false;
        }
        masks(at, n).for_each(|(row, mask)| self.clear(row, mask));
        true
    }

    fn take_within_row(&mut self, order: u32) -> Option<usize> {
        let mut from = self.lowest * ROW;
        loop {
            let row = self.next_row(from)?;
            let found = runs(self.rows[row], order);
            if found != 0 {
                let at = found.trailing_zeros() as usize;
                self.clear(row, low_bits(1 << order) << at);
                return Some(row * ROW + at);
            }
            from = row + 1;
        }
    }

    fn take_rows(&mut self, order: u32) -> Option<usize> {
        let rows = (1 << order) / ROW;
        let mut from = self.lowest * ROW;
        loop {
            let first = self.next_row(from)? / rows * rows;
            if self.rows.get(first..first + rows)?.iter().all(|r| *r == !0) {
                (first..first + rows).for_each(|row| self.clear(row, !0));
                return Some(first * ROW);
            }
            from = first + rows;
        }
    }

    /// Give back `n` frames from `at` on. The answer is false, and nothing changes, if one of them is free.
    pub(crate) fn give(&mut self, at: usize, n: usize) -> bool {
        if masks(at, n).any(|(row, mask)| self.rows[row] & mask != 0) {
            return false;
        }
        masks(at, n).for_each(|(row, mask)| self.set(row, mask));
        true
    }

    /// The first row from `from` on that has a free frame.
    fn next_row(&self, from: usize) -> Option<usize> {
        let mut word = from / ROW;
        let mut seen = self.summary.get(word)? & !low_bits(from % ROW);
        while seen == 0 {
            word += 1;
            seen = *self.summary.get(word)?;
        }
        Some(word * ROW + seen.trailing_zeros() as usize)
    }

    /// Mark the frames `mask` of `row` as taken.
    fn clear(&mut self, row: usize, mask: u64) {
        self.free -= mask.count_ones() as usize;
        if mutant!("frames-double-handout") && row % 2 == 1 {
            return;
        }
        self.rows[row] &= !mask;
        if self.rows[row] == 0 {
            self.summary[row / ROW] &= !(1 << (row % ROW));
        }
    }

    /// Mark the frames `mask` of `row` as free.
    fn set(&mut self, row: usize, mask: u64) {
        self.free += mask.count_ones() as usize;
        self.rows[row] |= mask;
        self.summary[row / ROW] |= 1 << (row % ROW);
        self.lowest = self.lowest.min(row / ROW);
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::{collections::BTreeSet, vec, vec::Vec};

    use proptest::prelude::*;

    use super::*;

    const FRAMES: usize = 1400;

    fn pool() -> Pool {
        let rows = FRAMES.div_ceil(ROW);
        Pool::new(vec![0; rows].leak(), vec![0; rows.div_ceil(ROW)].leak())
    }

    #[derive(Clone, Debug)]
    enum Step {
        Take(usize),
        TakeRun(u32),
        Give(usize, usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0..100usize).prop_map(Step::Take),
            (0..=crate::MAX_ORDER).prop_map(Step::TakeRun),
            (0..FRAMES, 0..600usize).prop_map(|(at, n)| Step::Give(at, n.min(FRAMES - at))),
        ];
        prop::collection::vec(step, 1..60)
    }

    proptest! {
        /// Whatever is taken is the lowest that fits, whatever is given is free afterwards, and nothing else changes.
        #[test]
        fn the_pool_is_a_set_of_frames(steps in steps(), full: bool) {
            let (mut pool, mut oracle) = (pool(), BTreeSet::new());
            if full {
                prop_assert!(pool.give(0, FRAMES));
                oracle.extend(0..FRAMES);
            }
            for step in steps {
                match step {
                    Step::Take(n) => {
                        let mut taken = Vec::new();
                        pool.take(n, |at| taken.push(at));
                        prop_assert!(taken.iter().eq(oracle.iter().take(n)));
                        taken.iter().for_each(|at| assert!(oracle.remove(at)));
                    }
                    Step::TakeRun(order) => {
                        let n = 1 << order;
                        let fits = |at: &usize| (*at..at + n).all(|f| oracle.contains(&f));
                        let lowest = (0..FRAMES).step_by(n).find(fits);
                        prop_assert_eq!(pool.take_run(order), lowest);
                        lowest.into_iter().flat_map(|at| at..at + n).for_each(|f| assert!(oracle.remove(&f)));
                    }
                    Step::Give(at, n) => {
                        let owned = (at..at + n).all(|f| !oracle.contains(&f));
                        prop_assert_eq!(pool.give(at, n), owned);
                        if owned {
                            oracle.extend(at..at + n);
                        }
                    }
                }
                prop_assert_eq!((pool.free(), pool.count()), (oracle.len(), oracle.len()));
            }
        }

        #[test]
        fn folding_finds_the_aligned_runs(row: u64, holes: u64, order in 0..=6u32) {
            let row = row | holes;
            let n = 1 << order;
            let fits = |at: &usize| (row >> at) & low_bits(n) == low_bits(n);
            let expected = (0..ROW).step_by(n).filter(fits).fold(0, |m, at| m | 1 << at);
            prop_assert_eq!(runs(row, order), expected);
        }
    }
}

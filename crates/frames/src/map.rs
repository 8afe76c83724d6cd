//! What all CPUs share: a bit for each frame, a word for each block, and hints of where to look.
//!
//! The functions here change one thing at a time; the protocols that they are steps of are in `lease`, `select`, `huge`
//! and `online`. What must hold between the steps is written at the top of the crate.

use addr::Frame;
use sync::SpinLock;

use crate::{
    FRAMES_PER_BLOCK,
    primitive::{AtomicU64, Ordering},
    word::{AtomicWord, Kind, Owner, State, Word},
};

/// Frames in a row.
pub(crate) const ROW_FRAMES: u32 = 64;
/// Rows in a block.
pub(crate) const BLOCK_ROWS: u32 = FRAMES_PER_BLOCK / ROW_FRAMES;
/// Blocks in an arena: 1 GiB.
pub(crate) const ARENA_BLOCKS: u32 = 512;
/// Blocks whose words share a cache line: 32 MiB.
pub(crate) const EXTENT_BLOCKS: u32 = 16;

/// 64 frames, by their place in the map.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Row(pub(crate) u32);

impl Row {
    /// No row.
    pub(crate) const NONE: Row = Row(u32::MAX);
    #[inline]
    pub(crate) const fn block(self) -> Block {
        Block(self.0 / BLOCK_ROWS)
    }
    /// Its place in its block.
    #[inline]
    pub(crate) const fn in_block(self) -> u32 {
        self.0 % BLOCK_ROWS
    }
}

/// 512 frames, by their place in the map.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Block(pub(crate) u32);

impl Block {
    /// No block.
    pub(crate) const NONE: Block = Block(u32::MAX);
    /// Its row number `i`, below [`BLOCK_ROWS`].
    #[inline]
    pub(crate) const fn row(self, i: u32) -> Row {
        Row(self.0 * BLOCK_ROWS + i)
    }
    /// Its rows.
    pub(crate) fn rows(self) -> impl DoubleEndedIterator<Item = Row> {
        (0..BLOCK_ROWS).map(move |i| self.row(i))
    }
}

/// The positions in a row that 2^k divides, for k in 0..=6.
const ALIGNED: [u64; 7] = [
    !0,
    0x5555_5555_5555_5555,
    0x1111_1111_1111_1111,
    0x0101_0101_0101_0101,
    0x0001_0001_0001_0001,
    0x0000_0001_0000_0001,
    1,
];

/// The lowest 2^`order` bits; `order` in 0..=6.
#[inline]
pub(crate) const fn run_bits(order: u32) -> u64 {
    !0 >> (ROW_FRAMES - (1 << order))
}

/// A 1 for each aligned run of 2^`order` ones in `mask`, at its first bit; `order` in 0..=6. Folding a mask over itself
/// `order` times leaves a 1 where that many ones begin.
#[inline]
pub(crate) const fn runs(mask: u64, order: u32) -> u64 {
    let (mut r, mut k) = (mask, 0);
    while k < order {
        r &= r >> (1 << k);
        k += 1;
    }
    r & ALIGNED[order as usize]
}

/// How many ones there are in `mask`: at once if it is a whole row, nothing or a single frame, as it mostly is, since
/// counting takes long where the processor has no instruction for it.
#[inline]
pub(crate) const fn ones(mask: u64) -> u32 {
    if mask == !0 {
        ROW_FRAMES
    } else if mask & mask.wrapping_sub(1) == 0 {
        (mask != 0) as u32
    } else {
        mask.count_ones()
    }
}

/// The lowest `k` ones of `mask`.
pub(crate) fn lowest_ones(mask: u64, k: u32) -> u64 {
    if ones(mask) <= k {
        return mask;
    }
    let rest = (0..k).fold(mask, |rest, _| rest & (rest - 1));
    mask & !rest
}

/// A value on a cache line of its own.
#[repr(align(64))]
#[derive(Debug)]
pub(crate) struct Line<T>(pub(crate) T);

/// 1 GiB of blocks: where to look for blocks of each kind, and the lock under which giant runs are taken.
///
/// A hint is set when a block comes to be of a kind, if it isn't set already, and cleared only by who looks there in
/// vain. So it may be wrong in either direction (invariant I6), and a block that wavers between two kinds costs nothing.
#[derive(Debug)]
pub(crate) struct Arena {
    hints: [Line<[AtomicU64; 8]>; Kind::COUNT],
    pub(crate) giants: Line<SpinLock<()>>,
}

impl Arena {
    pub(crate) fn new() -> Self {
        Self {
            hints: core::array::from_fn(|_| Line(core::array::from_fn(|_| AtomicU64::new(0)))),
            giants: Line(SpinLock::new(())),
        }
    }
    /// With nobody else about: no block is known to be of any kind.
    pub(crate) fn forget_hints(&self) {
        // Relaxed: hints order nothing.
        self.hints.iter().flat_map(|kind| &kind.0).for_each(|word| word.store(0, Ordering::Relaxed));
    }
}

/// Blocks whose hints of a kind are in one word.
const GROUP: u32 = 64;

/// The hints of a group of blocks.
#[inline]
fn hints(arenas: &[Arena], group: u32, kind: Kind) -> &AtomicU64 {
    let (arena, at) = (group * GROUP / ARENA_BLOCKS, group % (ARENA_BLOCKS / GROUP));
    &arenas[arena as usize].hints[kind as usize].0[at as usize]
}

/// Hinted blocks, see [`Map::hinted`]: those of `mask` in `group`, then those of `from..end`.
#[derive(Debug)]
pub(crate) struct Hinted<'a> {
    arenas: &'a [Arena],
    kind: Kind,
    down: bool,
    from: u32,
    end: u32,
    group: u32,
    mask: u64,
}

impl Iterator for Hinted<'_> {
    type Item = Block;
    #[inline]
    fn next(&mut self) -> Option<Block> {
        while self.mask == 0 {
            if self.from >= self.end {
                return None;
            }
            let (from, end) = (self.from, self.end);
            self.group = if self.down { (end - 1) / GROUP } else { from / GROUP };
            let start = self.group * GROUP;
            if self.down {
                self.end = start
            } else {
                self.from = start + GROUP
            }
            // Relaxed: hints order nothing.
            let hinted = hints(self.arenas, self.group, self.kind).load(Ordering::Relaxed);
            // Mostly there are none, and what of the group lies within needs no thought.
            if hinted != 0 {
                self.mask =
                    hinted & !0 << from.saturating_sub(start) & !0 >> (start + GROUP).saturating_sub(end);
            }
        }
        let bit = if self.down { 63 - self.mask.leading_zeros() } else { self.mask.trailing_zeros() };
        self.mask &= !(1 << bit);
        Some(Block(self.group * GROUP + bit))
    }
}

/// The shared tables.
#[derive(Debug)]
pub(crate) struct Map<'m> {
    /// Number of the frame that the tables begin with: a multiple of an arena.
    pub(crate) base: u64,
    /// A bit for each frame; 1: owned, cached, or not there.
    pub(crate) rows: &'m [AtomicU64],
    pub(crate) words: &'m [AtomicWord],
    pub(crate) arenas: &'m [Arena],
}

impl Map<'_> {
    /// How many blocks the map has, those that are holes among them.
    pub(crate) fn blocks(&self) -> u32 {
        self.words.len() as u32
    }
    #[inline]
    pub(crate) fn word(&self, block: Block) -> &AtomicWord {
        &self.words[block.0 as usize]
    }
    /// The row and the bit of a frame, if the map has it.
    #[inline]
    pub(crate) fn locate(&self, frame: Frame) -> Option<(Row, u32)> {
        // Below the first frame the difference wraps, to more than any map has.
        let at = frame.number().wrapping_sub(self.base);
        let row = at / u64::from(ROW_FRAMES);
        (row < self.rows.len() as u64).then_some((Row(row as u32), (at % u64::from(ROW_FRAMES)) as u32))
    }
    /// The frame at `bit` of `row`.
    #[inline]
    pub(crate) fn frame(&self, row: Row, bit: u32) -> Frame {
        let number = self.base + u64::from(row.0) * u64::from(ROW_FRAMES) + u64::from(bit);
        // Every frame of the map was made from a `Frame` when the map was, or lies below one.
        Frame::new(number).unwrap_or_default()
    }
    /// The frames of `row` that are free. Relaxed: only the block's holder acts on it, and it alone takes bits; what it
    /// misses is a frame that comes back at this moment.
    #[inline]
    pub(crate) fn zeros(&self, row: Row) -> u64 {
        !self.rows[row.0 as usize].load(Ordering::Relaxed)
    }
    /// The frames of each row of `block` that are free, as [`Self::zeros`].
    #[inline]
    pub(crate) fn zeros_of(&self, block: Block) -> impl Iterator<Item = (Row, u64)> + '_ {
        let rows = &self.rows[block.row(0).0 as usize..][..BLOCK_ROWS as usize];
        block.rows().zip(rows).map(|(row, bits)| (row, !bits.load(Ordering::Relaxed)))
    }
    /// Take the frames `mask`, all free, of a row in a block that the caller holds. Gives those that were not: none.
    ///
    /// Acquire: the frames' last owners are done with them; partner of [`Self::release`].
    #[inline]
    pub(crate) fn take(&self, row: Row, mask: u64) -> u64 {
        let order = if sync::mutant!("frames-relaxed-take") { Ordering::Relaxed } else { Ordering::Acquire };
        self.rows[row.0 as usize].fetch_or(mask, order) & mask
    }
    /// Mark the frames `mask` of `row`, which the caller owns, as free; gives those that were owned. The count comes
    /// after (invariant I1).
    ///
    /// Release: the caller is done with them; partner of [`Self::take`].
    #[inline]
    pub(crate) fn release(&self, row: Row, mask: u64) -> u64 {
        let order =
            if sync::mutant!("frames-relaxed-release") { Ordering::Relaxed } else { Ordering::Release };
        self.rows[row.0 as usize].fetch_and(!mask, order) & mask
    }
    /// With nobody else about: exactly the frames `free` of `row` are free.
    pub(crate) fn reset_row(&self, row: Row, free: u64) {
        // Relaxed: see `AtomicWord::reset`.
        self.rows[row.0 as usize].swap(!free, Ordering::Relaxed);
    }

    fn hint(&self, block: Block, kind: Kind) -> (&AtomicU64, u64) {
        (hints(self.arenas, block.0 / GROUP, kind), 1 << (block.0 % GROUP))
    }
    /// Note that `block` is of `kind`. Relaxed, here and below: hints order nothing.
    #[inline]
    pub(crate) fn set_hint(&self, block: Block, kind: Kind) {
        let (word, bit) = self.hint(block, kind);
        if word.load(Ordering::Relaxed) & bit == 0 {
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }
    /// `block` was looked for among `kind`, and has the word `w`: put that right.
    pub(crate) fn repair(&self, block: Block, kind: Kind, w: Word) {
        if w.kind() != Some(kind) {
            let (word, bit) = self.hint(block, kind);
            word.fetch_and(!bit, Ordering::Relaxed);
        }
        if let Some(now) = w.kind() {
            self.set_hint(block, now);
        }
    }
    /// The blocks of `from..end` that are hinted to be of `kind`, ascending, or descending if `down`. Hints set meanwhile
    /// may be missed.
    pub(crate) fn hinted(&self, kind: Kind, from: Block, end: Block, down: bool) -> Hinted<'_> {
        let (from, end) = (from.0, end.0.min(self.blocks()));
        Hinted { arenas: self.arenas, kind, down, from, end, group: 0, mask: 0 }
    }

    /// Claim a block that is wholly free and held by nobody, by its count alone: with the bits of its rows clear (I4).
    /// `as_state` is what it becomes. Gives the word before.
    pub(crate) fn claim_empty(&self, block: Block, w: Word, as_state: State) -> bool {
        w.is_empty() && {
            let to = w.with_state(as_state).with_free(0).with_zeroed(false);
            self.word(block).claim(w, to)
        }
    }
    /// How many rows' worth of free frames a count stands for: whole ones.
    pub(crate) const fn whole_rows(free: u32) -> i64 {
        (free / ROW_FRAMES) as i64
    }
    /// Change the owner of a block that nobody holds, and take hold of it if `hold`; the word afterwards.
    pub(crate) fn adopt(&self, block: Block, w: Word, owner: Owner, hold: bool) -> Option<Word> {
        debug_assert!(w.is(State::Normal));
        if w.held() {
            return None;
        }
        let to = w.with_owner(owner).with_hold(hold);
        self.word(block).claim(w, to).then_some(to)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn folding_finds_the_aligned_runs(mask: u64, holes: u64, order in 0..=6u32) {
            let mask = mask | holes;
            let fits = |at: &u32| mask >> at & run_bits(order) == run_bits(order);
            let expected = (0..64).step_by(1 << order).filter(fits).fold(0, |m, at| m | 1 << at);
            prop_assert_eq!(runs(mask, order), expected);
        }

        #[test]
        fn the_lowest_ones_are_the_lowest(mask: u64, k in 0..70u32) {
            let low = lowest_ones(mask, k);
            prop_assert_eq!(low.count_ones(), mask.count_ones().min(k));
            prop_assert_eq!(low & !mask, 0);
            prop_assert!(mask & !low == 0 || low == 0 || (mask & !low).trailing_zeros() > 63 - low.leading_zeros());
        }
    }
}

//! The blocks that a lane holds: each has a slot, and a count of its free frames.
//!
//! A block is found by its number in a table of twice as many places as blocks, from the place that the low bits of
//! its number name on. A lane's blocks are mostly neighbours, which have places of their own; in the worst case all
//! are looked at.

use addr::Frame;

use super::{BLOCK, BLOCK_ORDER, MAX_BLOCKS, frame};

const PLACES: usize = 2 * MAX_BLOCKS;

/// Which blocks are held, and how many frames of each are free.
#[derive(Debug)]
pub(crate) struct Held {
    /// Numbers of the blocks, by slot. A frame number has 40 bits, so a block number fits.
    numbers: [u32; MAX_BLOCKS],
    /// Free frames of each, by slot.
    free: [u16; MAX_BLOCKS],
    /// The table: slot + 1, or 0 for no block. Half of it at least is 0, so that a search ends.
    places: [u8; PLACES],
    /// A bit for each slot in use.
    used: u32,
    /// Number of slots.
    room: u32,
    /// Free frames of all blocks.
    total: u32,
}

impl Held {
    /// No blocks, and room for `blocks` (1..=[`MAX_BLOCKS`]).
    pub(super) fn new(blocks: usize) -> Self {
        assert!((1..=MAX_BLOCKS).contains(&blocks), "a lane holds 1 to {MAX_BLOCKS} blocks, not {blocks}");
        Self {
            numbers: [0; MAX_BLOCKS],
            free: [0; MAX_BLOCKS],
            places: [0; PLACES],
            used: 0,
            room: blocks as u32,
            total: 0,
        }
    }
    /// Whether the block of `block` is held.
    pub(crate) fn holds(&self, block: Frame) -> bool {
        self.slot(block).is_some()
    }
    /// Whether no further block can be adopted.
    pub(crate) fn is_full(&self) -> bool {
        self.used.count_ones() == self.room
    }
    /// First frame of each block held, and the number of its free frames.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = (Frame, u32)> {
        self.slots().map(|slot| (self.first(slot), self.free[slot].into()))
    }
    /// Free frames of the block of `block`; 0 if it is not held.
    pub(crate) fn free_in(&self, block: Frame) -> u32 {
        self.slot(block).map_or(0, |slot| self.free[slot].into())
    }
    /// Free frames of all blocks.
    pub(crate) fn free_frames(&self) -> u32 {
        self.total
    }
    /// The first frame of the block with most free frames: giving that up moves most memory at a time. `None` if no
    /// block is held.
    pub(crate) fn most_free(&self) -> Option<Frame> {
        self.blocks().max_by_key(|(_, free)| *free).map(|(first, _)| first)
    }

    /// The slot of the block of `block`.
    #[inline]
    pub(super) fn slot(&self, block: Frame) -> Option<usize> {
        let number = number(block);
        let mut place = number as usize % PLACES;
        loop {
            let slot = usize::from(self.places[place]).checked_sub(1)?;
            if self.numbers[slot] == number {
                return Some(slot);
            }
            place = (place + 1) % PLACES;
        }
    }
    /// The first frame of the block in `slot`.
    #[inline]
    pub(super) fn first(&self, slot: usize) -> Frame {
        frame(u64::from(self.numbers[slot]) << BLOCK_ORDER)
    }
    /// A slot for the block that begins at `first`, with no frame free; `None` if it is held, or all slots are in use.
    pub(super) fn add(&mut self, first: Frame) -> Option<usize> {
        debug_assert!(first.number().is_multiple_of(BLOCK as u64));
        if self.is_full() || self.holds(first) {
            return None;
        }
        let slot = self.used.trailing_ones() as usize;
        self.used |= 1 << slot;
        (self.numbers[slot], self.free[slot]) = (number(first), 0);
        self.enter(slot);
        Some(slot)
    }
    /// Forget the block in `slot`, and its free frames.
    pub(super) fn remove(&mut self, slot: usize) {
        self.used &= !(1 << slot);
        self.total -= u32::from(self.free[slot]);
        self.places = [0; PLACES];
        for slot in self.slots() {
            self.enter(slot);
        }
    }
    /// `n` frames more are free in the block of `slot`.
    #[inline]
    pub(super) fn count_freed(&mut self, slot: usize, n: u32) {
        self.free[slot] += n as u16;
        self.total += n;
    }
    /// `n` frames fewer are free in the block of `slot`.
    #[inline]
    pub(super) fn count_taken(&mut self, slot: usize, n: u32) {
        self.free[slot] -= n as u16;
        self.total -= n;
    }

    fn slots(&self) -> impl Iterator<Item = usize> + use<> {
        let used = self.used;
        (0..MAX_BLOCKS).filter(move |slot| used >> slot & 1 == 1)
    }
    fn enter(&mut self, slot: usize) {
        let mut place = self.numbers[slot] as usize % PLACES;
        while self.places[place] != 0 {
            place = (place + 1) % PLACES;
        }
        self.places[place] = slot as u8 + 1;
    }
}

fn number(block: Frame) -> u32 {
    (block.number() >> BLOCK_ORDER) as u32
}

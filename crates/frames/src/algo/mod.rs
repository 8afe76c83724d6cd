//! The algorithms of lanes: which of the free frames that a CPU holds is handed out next.
//!
//! **Claim.** A program may choose how its frames are found without a word that two CPUs write: an algorithm is a plain
//! data structure of one CPU, over blocks that this CPU took out of the shared map whole.
//!
//! **Idea.** The map of all memory says which frames are *not* to be had. An instance *adopts* blocks: the holder takes
//! all free frames of a block out of the map and hands their bits over. From then on they are allocated and freed in
//! the algorithm's own structure, until the block is *given up*, when the bits go back.
//!
//! ```text
//!     the map:  [block][block][block][block] ...        bits, shared
//!                  | adopt        ^ give_up             free bits of 512 frames each way
//!                  v              |
//!     Avl | Buddy | Slab          the lane's structure  plain memory, one CPU
//! ```
//!
//! Nothing is written into free frames: they may still be the target of a stale translation. Bits and links are
//! out of line, in memory that the creator of the instance gives, for at most [`MAX_BLOCKS`] blocks. Frames of a held
//! block that are not free belong to anybody, and it doesn't matter which algorithm handed them out, nor in which
//! sizes: a structure takes back any run inside a block it holds.
//!
//! | algorithm | finds | alloc, free | bytes a block |
//! |---|---|---|---|
//! | [`Avl`] | the lowest aligned run | O(log extents) | 6144, and 24 |
//! | [`Buddy`] | a run of the size, else a split of the smallest larger | O(1), at times 129 runs settle | 2176 |
//! | [`Slab`] | a run in the row used last, orders 0..=5 | O(1) | 128 |
//!
//! Each instance has [`Held`] beside that, inline: which blocks there are, and how many frames of each are free.

mod avl;
mod buddy;
mod held;
mod slab;
#[cfg(test)]
mod tests;
pub(crate) mod tree;

use core::{alloc::Layout, mem, ops::Range, slice};

use addr::Frame;

use crate::{AlgoKind, map::runs};

pub(crate) use self::{avl::Avl, buddy::Buddy, held::Held, slab::Slab};

/// Order of a block.
pub(crate) const BLOCK_ORDER: u32 = 9;
/// Frames in a block: 512, or 2 MiB.
pub(crate) const BLOCK: usize = 1 << BLOCK_ORDER;
/// Frames in a row.
pub(crate) const ROW: usize = 64;
/// Order of a row.
const ROW_ORDER: u32 = 6;
/// Rows in a block.
pub(crate) const ROWS: usize = BLOCK / ROW;
/// Most blocks that an instance may hold, so that its memory has a bound.
pub(crate) const MAX_BLOCKS: usize = 32;

/// The free frames of a block: bit i of word r is frame 64 r + i, 1 for free.
pub(crate) type FreeRows = [u64; ROWS];

/// Why frames were not taken back. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// They are not in a block that is held here: they belong to the map, or to another CPU's lane.
    NotHeld,
    /// One of them is free already.
    DoubleFree,
}

/// A lane's algorithm: the free frames of the blocks that the lane holds.
pub(crate) trait Algo {
    /// Memory that an instance for `blocks` (1..=[`MAX_BLOCKS`]) blocks needs.
    fn layout(blocks: usize) -> Layout
    where
        Self: Sized;
    /// The blocks held here.
    fn held(&self) -> &Held;
    /// Take in the block that begins at `first`, a multiple of [`BLOCK`], with these free frames. The answer is false,
    /// and nothing changes, if the block is held already or there is no room for another.
    #[must_use]
    fn adopt(&mut self, first: Frame, free: &FreeRows) -> bool;
    /// Take 2^`order` frames in a run, the first of them a multiple of that. `None` if the algorithm finds no such run
    /// or doesn't serve the order; no algorithm serves orders above [`BLOCK_ORDER`].
    fn alloc(&mut self, order: u32) -> Option<Frame>;
    /// Take back 2^`order` frames from `first`, a multiple of that, on; order <= [`BLOCK_ORDER`]. They may have been
    /// allocated in other sizes, or elsewhere before their block came here.
    fn free(&mut self, first: Frame, order: u32) -> Result<(), Refused>;
    /// Forget the block of `block`, and answer its free frames; `None` if it is not held here.
    fn give_up(&mut self, block: Frame) -> Option<FreeRows>;

    /// Number of free frames in the block of `block`; 0 if it is not held here.
    #[cfg(test)]
    fn free_in(&self, block: Frame) -> u32 {
        self.held().free_in(block)
    }
    /// Number of free frames.
    #[cfg(test)]
    fn free_frames(&self) -> u32 {
        self.held().free_frames()
    }
    /// The first frame of the block to give up first: see [`Held::most_free`].
    #[cfg(test)]
    fn most_free(&self) -> Option<Frame> {
        self.held().most_free()
    }
}

/// An instance of one of the algorithms, dispatched by a branch.
pub(crate) enum AnyAlgo<'m> {
    Avl(Avl<'m>),
    Buddy(Buddy<'m>),
    Slab(Slab<'m>),
}

impl<'m> AnyAlgo<'m> {
    /// Memory that an instance of `kind` for `blocks` (1..=[`MAX_BLOCKS`]) blocks needs: none for rows.
    pub(crate) fn layout(kind: AlgoKind, blocks: usize) -> Layout {
        match kind {
            AlgoKind::Row => Layout::new::<()>(),
            AlgoKind::Avl => Avl::layout(blocks),
            AlgoKind::Buddy => Buddy::layout(blocks),
            AlgoKind::Slab => Slab::layout(blocks),
        }
    }
    /// An instance of `kind` for `blocks` blocks, holding none, in memory of that layout, whatever it contains. `None`
    /// for rows, which have no instance. Panics if the memory is too short or not aligned.
    pub(crate) fn new(kind: AlgoKind, blocks: usize, memory: &'m mut [u8]) -> Option<Self> {
        match kind {
            AlgoKind::Row => None,
            AlgoKind::Avl => Some(Self::Avl(Avl::new(blocks, memory))),
            AlgoKind::Buddy => Some(Self::Buddy(Buddy::new(blocks, memory))),
            AlgoKind::Slab => Some(Self::Slab(Slab::new(blocks, memory))),
        }
    }
    /// The blocks held here.
    #[inline]
    pub(crate) fn held(&self) -> &Held {
        match self {
            Self::Avl(a) => a.held(),
            Self::Buddy(a) => a.held(),
            Self::Slab(a) => a.held(),
        }
    }
    /// [`Algo::adopt`].
    #[must_use]
    pub(crate) fn adopt(&mut self, first: Frame, free: &FreeRows) -> bool {
        match self {
            Self::Avl(a) => a.adopt(first, free),
            Self::Buddy(a) => a.adopt(first, free),
            Self::Slab(a) => a.adopt(first, free),
        }
    }
    /// [`Algo::alloc`].
    #[inline]
    pub(crate) fn alloc(&mut self, order: u32) -> Option<Frame> {
        match self {
            Self::Avl(a) => a.alloc(order),
            Self::Buddy(a) => a.alloc(order),
            Self::Slab(a) => a.alloc(order),
        }
    }
    /// [`Algo::free`].
    #[inline]
    pub(crate) fn free(&mut self, first: Frame, order: u32) -> Result<(), Refused> {
        match self {
            Self::Avl(a) => a.free(first, order),
            Self::Buddy(a) => a.free(first, order),
            Self::Slab(a) => a.free(first, order),
        }
    }
    /// [`Algo::give_up`].
    pub(crate) fn give_up(&mut self, block: Frame) -> Option<FreeRows> {
        match self {
            Self::Avl(a) => a.give_up(block),
            Self::Buddy(a) => a.give_up(block),
            Self::Slab(a) => a.give_up(block),
        }
    }
    /// [`Algo::free_in`].
    #[cfg(test)]
    pub(crate) fn free_in(&self, block: Frame) -> u32 {
        self.held().free_in(block)
    }
    /// [`Algo::free_frames`].
    #[cfg(test)]
    pub(crate) fn free_frames(&self) -> u32 {
        self.held().free_frames()
    }
    /// [`Algo::most_free`].
    pub(crate) fn most_free(&self) -> Option<Frame> {
        self.held().most_free()
    }
}

/// Types of which memory can be made, whatever it contained.
///
/// # Safety
/// Every pattern of bits is a value, and no byte is padding.
pub(crate) unsafe trait Plain: Copy {}

// SAFETY: an integer.
unsafe impl Plain for u64 {}

/// Cut a table of `n` values off the front of `memory`. Panics if that is too short.
pub(crate) fn cut<'m, T: Plain>(memory: &mut &'m mut [u8], n: usize) -> &'m mut [T] {
    let buffer = mem::take(memory);
    let skip = buffer.as_ptr().align_offset(align_of::<T>());
    let (table, rest) = buffer.split_at_mut(skip + n * size_of::<T>());
    *memory = rest;
    // SAFETY: the bytes from `skip` on are borrowed exclusively for 'm, aligned, as many as `n` values have, and values
    // whatever they are; and since values have no padding, they are bytes again when the borrow ends.
    unsafe { slice::from_raw_parts_mut(table[skip..].as_mut_ptr().cast(), n) }
}

/// The layout of the tables `a` and then `b`.
fn both(a: Layout, b: Layout) -> Layout {
    a.extend(b).expect("a size that fits").0
}

/// The layout of `n` values.
pub(crate) fn table<T: Plain>(n: usize) -> Layout {
    Layout::array::<T>(n).expect("a size that fits")
}

/// Frame number `n`, which is one: it comes from a `Frame`.
#[inline]
pub(crate) fn frame(n: u64) -> Frame {
    debug_assert!(Frame::new(n).is_some());
    Frame::new(n).unwrap_or_default()
}

/// The place of a frame in its block.
#[inline]
fn offset(frame: Frame) -> usize {
    frame.number() as usize % BLOCK
}

/// The lowest `n` bits, n in 1..=64.
const fn low_bits(n: usize) -> u64 {
    !0 >> (ROW - n)
}

/// The rows of a block in which the 2^`order` frames from `at` on lie, and their bits, which are the same in each row.
#[inline]
fn place(at: usize, order: u32) -> (Range<usize>, u64) {
    debug_assert!(order <= BLOCK_ORDER && at.is_multiple_of(1 << order) && at < BLOCK);
    let row = at / ROW;
    match order.checked_sub(ROW_ORDER) {
        None => (row..row + 1, low_bits(1 << order) << (at % ROW)),
        Some(rows) => (row..row + (1 << rows), !0),
    }
}

/// The maximal runs of free frames in a block as (first, length), in order.
fn extents(free: &FreeRows) -> impl Iterator<Item = (usize, usize)> {
    // The first frame from `from` on whose bit, after an exclusive or with `flip`, is 1.
    let next = |from: usize, flip: u64| {
        let mut row = from / ROW;
        let mut bits = (free.get(row)? ^ flip) & (!0 << (from % ROW));
        while bits == 0 {
            row += 1;
            bits = free.get(row)? ^ flip;
        }
        Some(row * ROW + bits.trailing_zeros() as usize)
    };
    let mut at = 0;
    core::iter::from_fn(move || {
        let first = next(at, 0)?;
        at = next(first, !0).unwrap_or(BLOCK);
        Some((first, at - first))
    })
}

/// The first multiple of 2^`order` from `at` on. The division that `next_multiple_of` is would take longer than the
/// search around it.
#[inline]
fn round_up(at: u64, order: u32) -> u64 {
    let below = (1 << order) - 1;
    (at + below) & !below
}

/// The largest k for which an aligned run of 2^k lies within `len` >= 1 frames from `start` on.
///
/// A run as long as the length allows may miss its alignment; one of half that size can't, as fewer than half of the
/// frames are lost before the first multiple.
#[inline]
fn largest_order(start: u64, len: u64) -> u32 {
    let order = len.ilog2();
    if round_up(start, order) + (1 << order) <= start + len { order } else { order - 1 }
}

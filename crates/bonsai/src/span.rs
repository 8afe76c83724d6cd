//! What a node says of itself: a key by which nodes are ordered, and what it covers.

use core::fmt;

/// What a node covers. It is copied with the node, and never changes.
pub trait Span: Copy + Send + Sync + fmt::Debug + 'static {
    /// By what nodes are ordered; each node's is its own.
    type Key: Copy + Ord + Send + Sync + fmt::Debug;
    /// What else there is of it.
    type Rest: Copy + Send + Sync;
    /// What lies between two neighbours.
    type Between: Copy;
    /// Whether the tree keeps the largest gap below each node.
    const GAPS: bool;
    /// Between no neighbours at all.
    const EVERYTHING: Self::Between;

    /// The key.
    fn key(&self) -> Self::Key;
    /// What else there is.
    fn rest(&self) -> Self::Rest;
    /// The span of which these are the parts: the same as before it was taken apart.
    fn of(key: Self::Key, rest: Self::Rest) -> Self;
    /// Whether `at` is covered. Then the key is at or below it.
    fn covers(&self, at: Self::Key) -> bool;
    /// The part of `between` that is left of this node, or right of it.
    fn split(&self, between: Self::Between, right: bool) -> Self::Between;
    /// The size of a gap, rounded down and at most `u32::MAX - 1`.
    fn gap(between: Self::Between) -> u32;
}

/// A key by itself, which covers nothing else: what a [`BonsaiMap`](crate::BonsaiMap) is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Point<K>(pub K);

impl<K: Copy + Ord + Send + Sync + fmt::Debug + 'static> Span for Point<K> {
    type Key = K;
    type Rest = ();
    type Between = ();
    const GAPS: bool = false;
    const EVERYTHING: () = ();

    #[inline(always)]
    fn key(&self) -> K {
        self.0
    }
    #[inline(always)]
    fn rest(&self) {}
    #[inline(always)]
    fn of(key: K, (): ()) -> Self {
        Self(key)
    }
    #[inline(always)]
    fn covers(&self, at: K) -> bool {
        self.0 == at
    }
    fn split(&self, (): (), _: bool) {}
    fn gap((): ()) -> u32 {
        0
    }
}

/// The addresses from `start` to below `end`: what a [`RegionTree`](crate::RegionTree) is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Region {
    start: u64,
    end: u64,
}

/// By so many bits an address is shifted to have the unit in which gaps are kept: pages.
const UNIT: u32 = 12;

impl Region {
    /// The addresses from `start` to below `end`. Panics if there is none.
    #[track_caller]
    pub const fn new(start: u64, end: u64) -> Self {
        assert!(start < end, "a region without addresses");
        Self { start, end }
    }
    /// The first address.
    pub const fn start(&self) -> u64 {
        self.start
    }
    /// The address behind the last.
    pub const fn end(&self) -> u64 {
        self.end
    }
    /// Whether the two have an address in common.
    pub fn overlaps(&self, other: &Region) -> bool {
        self.start < other.end && other.start < self.end
    }
    /// Whether all of `other` is in this one.
    pub fn contains(&self, other: &Region) -> bool {
        self.start <= other.start && other.end <= self.end
    }
    /// The most bytes that a gap may have that is kept as `gap`.
    pub(crate) fn at_most(gap: u32) -> u64 {
        match gap {
            LARGEST.. => u64::MAX,
            _ => (u64::from(gap) << UNIT) | ((1 << UNIT) - 1),
        }
    }
}

/// Stands for gaps of this size and all larger ones.
const LARGEST: u32 = u32::MAX - 1;

impl Span for Region {
    type Key = u64;
    /// Where it ends.
    type Rest = u64;
    /// From the end of the left neighbour to the start of the right one.
    type Between = (u64, u64);
    const GAPS: bool = true;
    const EVERYTHING: (u64, u64) = (0, u64::MAX);

    #[inline(always)]
    fn key(&self) -> u64 {
        self.start
    }
    #[inline(always)]
    fn rest(&self) -> u64 {
        self.end
    }
    #[inline(always)]
    fn of(start: u64, end: u64) -> Self {
        Self { start, end }
    }
    /// One comparison: below the start the difference wraps, and is larger than any region.
    #[inline(always)]
    fn covers(&self, at: u64) -> bool {
        at.wrapping_sub(self.start) < self.end.wrapping_sub(self.start)
    }
    #[inline]
    fn split(&self, (low, high): (u64, u64), right: bool) -> (u64, u64) {
        // A piece may lie within the region that it is about to replace: then it ends no later.
        if right { (low.max(self.end), high) } else { (low, high.min(self.start)) }
    }
    #[inline]
    fn gap((low, high): (u64, u64)) -> u32 {
        u32::try_from(high.saturating_sub(low) >> UNIT).unwrap_or(LARGEST).min(LARGEST)
    }
}

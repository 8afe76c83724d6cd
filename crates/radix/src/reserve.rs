//! Memory taken before the first lock, so that no operation stops half-way for want of it.

use core::{
    fmt,
    ops::Range,
    ptr::{self, NonNull},
};

use percpu::Pinned;

use crate::{
    node::{self, Node},
    space::{Error, MAX_LEVELS, Shape, Space},
};

/// Memory for the nodes that narrowing at the two ends of a range may need: at most two of each level. What an operation
/// doesn't use stays for the next, so a CPU that keeps one allocates only for nodes that a tree gains.
///
/// Must be [given back](Self::give_back) before it is dropped, or the memory is lost.
pub struct Reserve<S> {
    /// Where the memory is from.
    space: *const S,
    stock: [[Option<NonNull<Node<S>>>; 2]; MAX_LEVELS],
}

// SAFETY: it owns the memory.
unsafe impl<S: Space> Send for Reserve<S> {}

impl<S> Default for Reserve<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Reserve<S> {
    /// Nothing.
    pub const fn new() -> Self {
        Self { space: ptr::null(), stock: [[None; 2]; MAX_LEVELS] }
    }
    fn is_of(&self, space: &S) -> bool {
        ptr::eq(self.space, space) || self.nodes() == 0
    }
    /// How many nodes there is memory for.
    pub fn nodes(&self) -> usize {
        self.stock.iter().flatten().flatten().count()
    }
}

impl<S: Space> Reserve<S> {
    /// Have what an operation on `keys` may need. If that fails, what there was and was added stays. Panics if it has memory of
    /// another space.
    pub fn fill(&mut self, space: &S, keys: &Range<u64>, pin: &Pinned<'_>) -> Result<(), Error> {
        self.fill_from(1, space, keys, pin)
    }
    /// The same, for nodes of `level` and below.
    pub(crate) fn fill_from(
        &mut self,
        level: usize,
        space: &S,
        keys: &Range<u64>,
        pin: &Pinned<'_>,
    ) -> Result<(), Error> {
        if !ptr::eq(self.space, space) {
            assert!(self.nodes() == 0, "the reserve has memory of another space");
            self.space = space;
        }
        // From the leaves up: where ends are aligned to a level, they are to those below.
        for level in (level..Shape::<S>::LEVELS).rev() {
            let wanted = Self::wanted(level, keys);
            if wanted > self.stocked(level) {
                self.stock_up(level, wanted, space, pin)?;
            }
        }
        Ok(())
    }
    /// How many nodes of `level` there are. They are at the front.
    #[inline]
    fn stocked(&self, level: usize) -> usize {
        let [first, second] = &self.stock[level];
        usize::from(first.is_some()) + usize::from(second.is_some())
    }
    #[cold]
    fn stock_up(&mut self, level: usize, wanted: usize, space: &S, pin: &Pinned<'_>) -> Result<(), Error> {
        for place in self.stock[level][..wanted].iter_mut().filter(|place| place.is_none()) {
            *place = Some(node::alloc(space, level, pin).ok_or(Error::OutOfMemory)?);
        }
        Ok(())
    }
    /// Nodes of `level` and below that narrowing for `keys` may make.
    pub(crate) fn needed(level: usize, keys: &Range<u64>) -> usize {
        (level..Shape::<S>::LEVELS).map(|level| Self::wanted(level, keys)).sum()
    }
    /// Nodes of `level` that narrowing for `keys` may make: one for each end that lies within a slot of the level above.
    fn wanted(level: usize, keys: &Range<u64>) -> usize {
        let below = Shape::<S>::span(level - 1) - 1;
        let at_start = keys.start & below != 0;
        // Both ends in one slot are narrowed at once.
        let at_end = keys.end & below != 0 && (!at_start || (keys.start ^ keys.end) > below);
        usize::from(at_start) + usize::from(at_end)
    }
    pub(crate) fn take(&mut self, level: usize) -> Option<NonNull<Node<S>>> {
        self.stock[level].iter_mut().rev().find_map(Option::take)
    }
    /// Give all memory back to the space that it came from.
    pub fn give_back(&mut self, space: &S, pin: &Pinned<'_>) {
        assert!(self.is_of(space), "the reserve has memory of another space");
        for (level, places) in self.stock.iter_mut().enumerate() {
            for memory in places.iter_mut().filter_map(Option::take) {
                // SAFETY: it came from `alloc` for this level, and never became a node.
                unsafe { space.free(memory.cast(), node::layout::<S>(level), pin) };
            }
        }
    }
}

impl<S> fmt::Debug for Reserve<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reserve({} nodes)", self.nodes())
    }
}

impl<S> Drop for Reserve<S> {
    fn drop(&mut self) {
        debug_assert!(self.nodes() == 0, "a reserve was dropped with memory in it");
    }
}

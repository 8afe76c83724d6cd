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
    /// Of which levels there is a node, and of which there are two: what `stock` says, as bits.
    one: u8,
    two: u8,
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
        Self { space: ptr::null(), stock: [[None; 2]; MAX_LEVELS], one: 0, two: 0 }
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
        let (one, two) = Self::wanted(level, keys);
        if one & !self.one | two & !self.two == 0 { Ok(()) } else { self.stock_up(one, two, pin) }
    }
    #[cold]
    fn stock_up(&mut self, one: u8, two: u8, pin: &Pinned<'_>) -> Result<(), Error> {
        // SAFETY: the space that `fill_from` was given, which is `'static` as all are.
        let space = unsafe { &*self.space };
        for (level, places) in self.stock.iter_mut().enumerate().take(Shape::<S>::LEVELS) {
            for place in places.iter_mut().take(usize::from(one >> level & 1) + usize::from(two >> level & 1))
            {
                if place.is_none() {
                    *place = Some(node::alloc(space, level, pin).ok_or(Error::OutOfMemory)?);
                }
            }
            self.one |= u8::from(places[0].is_some()) << level;
            self.two |= u8::from(places[1].is_some()) << level;
        }
        Ok(())
    }
    /// How many nodes of `level` and below narrowing for `keys` may make.
    pub(crate) fn needed(level: usize, keys: &Range<u64>) -> usize {
        let (one, two) = Self::wanted(level, keys);
        (one.count_ones() + two.count_ones()) as usize
    }
    /// Of which levels, from `level` on, narrowing for `keys` may make a node, and of which two: one for each end that lies
    /// within a slot of the level above, and one if both are in the same slot.
    #[inline]
    fn wanted(level: usize, keys: &Range<u64>) -> (u8, u8) {
        let within = |key: u64| Shape::<S>::WITHIN[key.trailing_zeros() as usize];
        let (start, end) = (within(keys.start), within(keys.end));
        let apart = !Shape::<S>::WITHIN[(63 - (keys.start ^ keys.end).leading_zeros()) as usize];
        let levels = u8::MAX << level;
        ((start | end) & levels, start & end & apart & levels)
    }
    pub(crate) fn take(&mut self, level: usize) -> Option<NonNull<Node<S>>> {
        let [first, second] = &mut self.stock[level];
        let taken = second.take().or_else(|| first.take());
        self.two &= !(1 << level);
        self.one = self.one & !(1 << level) | u8::from(first.is_some()) << level;
        taken
    }
    /// Give all memory back to the space that it came from.
    pub fn give_back(&mut self, space: &S, pin: &Pinned<'_>) {
        assert!(self.is_of(space), "the reserve has memory of another space");
        (self.one, self.two) = (0, 0);
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

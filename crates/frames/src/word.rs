//! The word of a block: how many of its frames are free, who may take them, and in what state it is.
//!
//! ```text
//!   bit  30..32   26..30      25    24      22..24  13..22  10..13  0..10
//!        (none)   lease row   hold  zeroed  class   owner   state   free
//! ```
//! `free` lies in the low bits so that giving frames back is one addition. No addition here can carry out of a field:
//! only the holder lowers `free` and writes the other fields of a held block, and nobody raises `free` past 512.

use crate::primitive::{AtomicU32, Ordering};

use crate::{Class, FRAMES_PER_BLOCK};

/// What a block is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(crate) enum State {
    /// Not memory, or not ours. Zero, so that tables of zeros describe a machine without memory.
    Hole = 0,
    /// Frames are free one by one, as the rows say.
    Normal = 1,
    /// Handed out as one run of order 9.
    Huge = 2,
    /// First block of a run of order 10 to 18, whose order stands in `free`.
    GiantHead = 3,
    /// Another block of such a run.
    GiantTail = 4,
    /// On the way into or out of a giant run.
    Claiming = 5,
    /// Taken out of service.
    Offline = 6,
}

const FREE_MASK: u32 = (1 << 10) - 1;
const STATE_SHIFT: u32 = 10;
const OWNER_SHIFT: u32 = 13;
const OWNER_MASK: u32 = (1 << 9) - 1;
const CLASS_SHIFT: u32 = 22;
const ZEROED: u32 = 1 << 24;
const HOLD: u32 = 1 << 25;
const LEASE_SHIFT: u32 = 26;
const LEASE_MASK: u32 = 0xf;

/// Who may hold a block: a CPU, nobody in particular (the node's pool), or nobody at all (isolated, on its way offline).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Owner(u32);

const _: () = assert!(percpu::MAX_CPUS < OWNER_MASK as usize);

impl Owner {
    /// The pool of the block's node.
    pub(crate) const POOL: Self = Self(0);
    /// Nobody takes from it.
    pub(crate) const ISOLATED: Self = Self(OWNER_MASK);
    /// CPU number `cpu`.
    pub(crate) const fn cpu(cpu: usize) -> Self {
        Self(cpu as u32 + 1)
    }
    /// The CPU's number.
    pub(crate) fn as_cpu(self) -> Option<usize> {
        if self == Self::POOL || self == Self::ISOLATED { None } else { Some(self.0 as usize - 1) }
    }
}

/// How full a block is: the four lists that it may be found in. What is not free at all is in none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// 1 to 15 free: left to fill.
    Scant = 0,
    /// 16 to 383 free: taken from first.
    Partial = 1,
    /// 384 to 511 free: likely to become wholly free again.
    Sparse = 2,
    /// Wholly free.
    Empty = 3,
}

impl Kind {
    pub(crate) const COUNT: usize = 4;
    /// The order in which single frames are looked for.
    pub(crate) const SEARCH: [Kind; 4] = [Kind::Partial, Kind::Sparse, Kind::Empty, Kind::Scant];
    /// The most frames that are free in a block of the kind.
    pub(crate) const fn most(self) -> u32 {
        match self {
            Self::Scant => 15,
            Self::Partial => 383,
            Self::Sparse => 511,
            Self::Empty => 512,
        }
    }
    /// The kind of a block with `free` free frames.
    pub(crate) const fn of(free: u32) -> Option<Self> {
        match free {
            0 => None,
            1..=15 => Some(Self::Scant),
            16..=383 => Some(Self::Partial),
            384..=511 => Some(Self::Sparse),
            _ => Some(Self::Empty),
        }
    }
}

/// A value of a block's word.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Word(u32);

impl Word {
    /// No memory.
    pub(crate) const HOLE: Self = Self(0);
    /// A block in service, not held.
    pub(crate) const fn normal(free: u32, owner: Owner) -> Self {
        Self(free | (State::Normal as u32) << STATE_SHIFT | owner.0 << OWNER_SHIFT)
    }
    /// Frames free by the count; of a giant head its order.
    pub(crate) const fn free(self) -> u32 {
        self.0 & FREE_MASK
    }
    pub(crate) const fn state(self) -> State {
        match self.0 >> STATE_SHIFT & 7 {
            1 => State::Normal,
            2 => State::Huge,
            3 => State::GiantHead,
            4 => State::GiantTail,
            5 => State::Claiming,
            6 => State::Offline,
            _ => State::Hole,
        }
    }
    pub(crate) fn is(self, state: State) -> bool {
        self.state() == state
    }
    pub(crate) const fn owner(self) -> Owner {
        Owner(self.0 >> OWNER_SHIFT & OWNER_MASK)
    }
    pub(crate) const fn class(self) -> Class {
        if self.0 >> CLASS_SHIFT & 1 == 0 { Class::Movable } else { Class::Unmovable }
    }
    pub(crate) const fn zeroed(self) -> bool {
        self.0 & ZEROED != 0
    }
    pub(crate) fn held(self) -> bool {
        self.0 & HOLD != 0 && !sync::mutant!("frames-steal-held")
    }
    /// The row that the holder leases, as an index in the block.
    pub(crate) fn leased(self) -> Option<u32> {
        (self.0 >> LEASE_SHIFT & LEASE_MASK).checked_sub(1)
    }
    pub(crate) fn kind(self) -> Option<Kind> {
        if self.is(State::Normal) { Kind::of(self.free()) } else { None }
    }
    /// In service, held by nobody, with at least `need` frames free.
    pub(crate) fn is_normal_with(self, need: u32) -> bool {
        self.is(State::Normal) && self.free() >= need && !self.held()
    }
    /// In service, wholly free and held by nobody: nothing is in flight (see the crate's invariant I4).
    pub(crate) fn is_empty(self) -> bool {
        self.is(State::Normal) && self.free() == FRAMES_PER_BLOCK && !self.held()
    }
    pub(crate) const fn with_free(self, free: u32) -> Self {
        Self(self.0 & !FREE_MASK | free)
    }
    pub(crate) const fn with_state(self, state: State) -> Self {
        Self(self.0 & !(7 << STATE_SHIFT) | (state as u32) << STATE_SHIFT)
    }
    pub(crate) const fn with_owner(self, owner: Owner) -> Self {
        Self(self.0 & !(OWNER_MASK << OWNER_SHIFT) | owner.0 << OWNER_SHIFT)
    }
    pub(crate) const fn with_class(self, class: Class) -> Self {
        Self(self.0 & !(3 << CLASS_SHIFT) | (class as u32) << CLASS_SHIFT)
    }
    pub(crate) const fn with_zeroed(self, zeroed: bool) -> Self {
        if zeroed { Self(self.0 | ZEROED) } else { Self(self.0 & !ZEROED) }
    }
    pub(crate) const fn with_hold(self, hold: bool) -> Self {
        if hold { Self(self.0 | HOLD) } else { Self(self.0 & !HOLD & !(LEASE_MASK << LEASE_SHIFT)) }
    }
}

impl core::fmt::Debug for Word {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:?} free {} of {:?}", self.state(), self.free(), self.owner())?;
        write!(f, " {:?} held {} leased {:?}", self.class(), self.held(), self.leased())
    }
}

/// A block's word in memory. It has no store: whatever changes it is a read-modify-write, so that the release sequences
/// that carry other CPUs' frees are never cut (invariant I5).
#[derive(Debug)]
pub(crate) struct AtomicWord(AtomicU32);

impl AtomicWord {
    pub(crate) fn new(word: Word) -> Self {
        Self(AtomicU32::new(word.0))
    }
    /// Relaxed: an estimate; who acts on it does so by a read-modify-write.
    #[inline]
    pub(crate) fn peek(&self) -> Word {
        Word(self.0.load(Ordering::Relaxed))
    }
    /// Acquire: the bits of the frames that the count promises are seen clear; partner of [`Self::give`].
    #[inline]
    pub(crate) fn load(&self) -> Word {
        Word(self.0.load(Ordering::Acquire))
    }
    /// Become its only holder, or claim it whole. Acquire: sees every bit that the last holder set (partner of
    /// [`Self::unhold`]), and what the last owners did to the frames if it is claimed by count (partner of
    /// [`Self::give`] and [`Self::put`]).
    #[inline]
    pub(crate) fn claim(&self, from: Word, to: Word) -> bool {
        self.0.compare_exchange(from.0, to.0, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }
    /// Put a block that the caller owns whole back, or a changed field of a block that nobody holds. Release: what the
    /// owner did to the frames comes before; partner of [`Self::claim`] and [`Self::load`].
    #[inline]
    pub(crate) fn put(&self, from: Word, to: Word) -> bool {
        self.0.compare_exchange(from.0, to.0, Ordering::Release, Ordering::Relaxed).is_ok()
    }
    /// By the holder: `k` frames fewer are free, and `row` of the block is leased. Gives the word before.
    #[inline]
    pub(crate) fn take(&self, seen: Word, k: u32, row: Option<u32>) -> Word {
        let lease = row.map_or(0, |r| r + 1).wrapping_sub(seen.0 >> LEASE_SHIFT & LEASE_MASK) << LEASE_SHIFT;
        // Relaxed: nobody else lowers the count, and a read-modify-write keeps the release sequences whole.
        Word(self.0.fetch_add(lease.wrapping_sub(k), Ordering::Relaxed))
    }
    /// `n` frames more are free, whose bits are clear already. Release: whoever sees the count sees the bits, and what
    /// the owner did to the frames; partner of [`Self::load`] and [`Self::claim`]. Gives the word before.
    #[inline]
    pub(crate) fn give(&self, n: u32) -> Word {
        let order = if sync::mutant!("frames-relaxed-give") { Ordering::Relaxed } else { Ordering::Release };
        Word(self.0.fetch_add(n, order))
    }
    /// By the holder: hold it no more. Release: the bits that it set come before; partner of [`Self::claim`]. Gives the
    /// word after.
    #[inline]
    pub(crate) fn unhold(&self, seen: Word) -> Word {
        let off = HOLD + (seen.0 & (LEASE_MASK << LEASE_SHIFT));
        let order =
            if sync::mutant!("frames-relaxed-unhold") { Ordering::Relaxed } else { Ordering::Release };
        Word(self.0.fetch_sub(off, order).wrapping_sub(off))
    }
    /// With nobody else about: make it `word`.
    pub(crate) fn reset(&self, word: Word) {
        // Relaxed: the caller has the machine to itself, and whoever brings others in orders this.
        self.0.swap(word.0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_do_not_touch_each_other() {
        let w =
            Word::normal(512, Owner::cpu(509)).with_class(Class::Unmovable).with_zeroed(true).with_hold(true);
        assert_eq!((w.free(), w.state(), w.owner().as_cpu()), (512, State::Normal, Some(509)));
        assert!(w.held() && w.zeroed() && w.class() == Class::Unmovable && w.leased().is_none());
        let w = w.with_free(3).with_state(State::Offline).with_owner(Owner::ISOLATED).with_zeroed(false);
        assert_eq!((w.free(), w.state(), w.owner()), (3, State::Offline, Owner::ISOLATED));
        assert!(w.held() && !w.zeroed() && w.owner().as_cpu().is_none());
        assert!(!w.with_hold(false).held());
    }

    #[test]
    #[cfg(not(loom))]
    fn the_holder_takes_and_leases_in_one_addition() {
        let word = AtomicWord::new(Word::normal(512, Owner::cpu(0)).with_hold(true));
        for (k, row) in [(64, 7), (64, 0), (1, 3)] {
            let seen = word.load();
            word.take(seen, k, Some(row));
            assert_eq!((word.peek().free(), word.peek().leased()), (seen.free() - k, Some(row)));
        }
        word.give(129);
        let seen = word.peek();
        word.unhold(seen);
        assert_eq!((word.peek().free(), word.peek().held(), word.peek().leased()), (512, false, None));
    }
}

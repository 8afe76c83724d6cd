//! What a slot of the tree says of its page, or of each page of its span.
//!
//! ```text
//! 63             33    32    31      30 29     12 11      4 3     2 1      0
//! | pfn 31         | DIRTY | level 2   | desc 18 | owner 8 | use 2 | LINK=0 | LOCK |
//! ```
//! A page with a frame has a slot of its own. `pfn` 0 is no frame (frame 0 is never a user's). The two highest are *markers*,
//! which stand where a frame would: all ones is a guard, by which a whole span may be guarded, and one less a page that is
//! poisoned, which has a slot of its own too. Frames are of the first 8 TiB, but for the last two. The level is 0 for a page that isn't managed, and 1 more
//! than the level of one that is (`managed`), which alone may be DIRTY.

use core::fmt;

use addr::{Frame, Prot};
use owned::Use;
use sync::mutant;

use crate::{Fault, Level};

const DESC_SHIFT: u32 = 12;
const OWNER_SHIFT: u32 = 4;
const USE_SHIFT: u32 = 2;
const LEVEL_SHIFT: u32 = 30;
const PFN_SHIFT: u32 = 33;
/// The uses that frames of users' pages have, by their codes.
const USES: [Use; 4] = [Use::Anonymous, Use::File, Use::Lent, Use::Kernel];
/// What the page should be, as its mapping says.
const DESC: u64 = (DESCRIPTORS as u64 - 1) << DESC_SHIFT;
const LEVEL: u64 = 3 << LEVEL_SHIFT;
/// The bit of a slot whose page was written.
pub(super) const DIRTY: u64 = 1 << 32;
/// What stays when the page's contents change.
const KEPT: u64 = DESC | LEVEL | DIRTY;
const GUARD: u64 = (1 << (64 - PFN_SHIFT)) - 1;
const POISON: u64 = GUARD - 1;
/// Frames have numbers below this: 8 TiB of them, but for two frames.
pub const FRAMES: u64 = POISON;

/// Descriptors that there may be; their numbers are below. 0 is none.
pub(super) const DESCRIPTORS: u32 = 1 << 18;

/// No CPU has an entry for the page.
pub(super) const NOBODY: u8 = 0;
/// Several CPUs may have one. Other owners are the number of the one CPU, and 1.
pub(super) const SEVERAL: u8 = u8::MAX;

/// A slot's value without its lock.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot(u64);

impl Slot {
    /// Nothing is mapped.
    pub(super) const EMPTY: Slot = Slot(0);

    /// A page of descriptor `desc` that has no frame.
    pub(super) fn new(desc: u32) -> Self {
        debug_assert!(0 < desc && desc < DESCRIPTORS);
        Self(u64::from(desc) << DESC_SHIFT)
    }
    pub(super) fn of(word: u64) -> Self {
        Self(word)
    }
    pub(super) fn word(self) -> u64 {
        self.0
    }
    pub(super) fn is_mapped(self) -> bool {
        self.0 != 0
    }
    pub(super) fn desc(self) -> u32 {
        (self.0 >> DESC_SHIFT) as u32 & (DESCRIPTORS - 1)
    }
    /// The same page, which should be something else.
    pub(super) fn with_desc(self, desc: u32) -> Self {
        Self(self.0 & !DESC | Self::new(desc).0)
    }
    /// The page's frame, and for what it is counted.
    pub(super) fn frame(self) -> Option<(Frame, Use)> {
        let pfn = self.0 >> PFN_SHIFT;
        let usage = USES[(self.0 >> USE_SHIFT) as usize & 3];
        if pfn == 0 || pfn >= FRAMES { None } else { Some((Frame::new(pfn)?, usage)) }
    }
    pub(super) fn is_guard(self) -> bool {
        self.0 >> PFN_SHIFT == GUARD
    }
    pub(super) fn is_poisoned(self) -> bool {
        self.0 >> PFN_SHIFT == POISON
    }
    /// Whether there is a guard or poison.
    #[inline]
    pub(super) fn is_marker(self) -> bool {
        self.0 >> PFN_SHIFT >= FRAMES
    }
    /// What whoever may access the page meets in the place of its contents, if it has a marker.
    pub(super) fn met(self) -> Option<Fault> {
        match self.0 >> PFN_SHIFT {
            GUARD => Some(Fault::Guard),
            POISON => Some(Fault::Poisoned),
            _ => None,
        }
    }
    /// What all pages of a descriptor and level with frames of one use have in common, and pages of them without frames that
    /// count as anonymous.
    pub(super) fn kind(self) -> Kind {
        Kind(self.0 & (DESC | LEVEL | 3 << USE_SHIFT))
    }
    /// The kind of the slot's descriptor and level, and of this use.
    pub(super) fn kind_with(self, usage: Use) -> Kind {
        Kind(self.0 & (DESC | LEVEL) | code(usage) << USE_SHIFT)
    }
    /// A page without a frame of the same descriptor and level: what tells a mapping's pages of one level from others.
    pub(super) fn said(self) -> Self {
        Self(self.0 & (DESC | LEVEL))
    }
    /// Whether there is neither a frame nor a marker.
    pub(super) fn is_blank(self) -> bool {
        self.0 >> PFN_SHIFT == 0
    }
    /// The page, with this frame, which has one of [`USES`], and not translated by anybody.
    pub(super) fn with_frame(self, frame: Frame, usage: Use) -> Self {
        debug_assert!(USES.contains(&usage) && frame.number() != 0 && frame.number() < FRAMES);
        Self(self.0 & KEPT | frame.number() << PFN_SHIFT | code(usage) << USE_SHIFT)
    }
    /// Another page of the same mapping, which isn't managed.
    pub(super) fn fresh(self) -> Self {
        Self(self.0 & DESC)
    }
    /// The page without contents. If it had some, and is managed, that counts as a write.
    pub(super) fn blank(self) -> Self {
        let kept = Self(self.0 & KEPT);
        if self.frame().is_some() { kept.dirtied() } else { kept }
    }
    pub(super) fn guard(self) -> Self {
        Self(self.blank().0 | GUARD << PFN_SHIFT)
    }
    pub(super) fn poisoned(self) -> Self {
        Self(self.blank().0 | POISON << PFN_SHIFT)
    }
    /// The page with the marker that `other` has.
    pub(super) fn marked_as(self, other: Self) -> Self {
        if other.is_poisoned() { self.poisoned() } else { self.guard() }
    }
    /// What threads may do with a page that is managed.
    #[inline(always)]
    pub(super) fn level(self) -> Option<Level> {
        if self.0 & LEVEL == 0 { None } else { self.managed() }
    }
    #[cold]
    fn managed(self) -> Option<Level> {
        Level::ALL.get(((self.0 & LEVEL) >> LEVEL_SHIFT).wrapping_sub(1) as usize).copied()
    }
    /// The page with another level, or not managed.
    #[inline]
    pub(super) fn with_level(self, level: Option<Level>) -> Self {
        let kept = if level.is_some() { self.0 & !LEVEL } else { self.0 & !(LEVEL | DIRTY) };
        Self(kept | level.map_or(0, |level| level as u64 + 1) << LEVEL_SHIFT)
    }
    /// The most that an entry may grant by the level.
    #[inline]
    pub(super) fn cap(self) -> Prot {
        self.level().map_or(Prot::all(), Level::cap)
    }
    /// Whether the page is known to have been written, whatever its entries say.
    pub(super) fn is_dirty(self) -> bool {
        self.0 & DIRTY != 0
    }
    /// The page, written; which is of interest only if it is managed.
    pub(super) fn dirtied(self) -> Self {
        if self.0 & LEVEL != 0 { Self(self.0 | DIRTY) } else { self }
    }
    pub(super) fn cleaned(self) -> Self {
        Self(self.0 & !DIRTY)
    }
    /// Who may have an entry for the page in a page table: see `tables`.
    pub(super) fn owner(self) -> u8 {
        (self.0 >> OWNER_SHIFT) as u8
    }
    /// Whether it is a page as `other`, with a frame of the same use, and several CPUs may have entries for it.
    #[inline]
    pub(super) fn is_shared_like(self, other: Self) -> bool {
        let owner_like = self.owner() == SEVERAL || mutant!("radix-around-owned");
        self.kind() == other.kind() && owner_like && !self.is_blank() && !self.is_marker()
    }
    pub(super) fn with_owner(self, owner: u8) -> Self {
        Self(self.0 & !(0xff << OWNER_SHIFT) | u64::from(owner) << OWNER_SHIFT)
    }
    /// The same page at a place where nobody translates it yet.
    pub(super) fn moved(self, desc: u32) -> Self {
        self.with_desc(desc).with_owner(NOBODY)
    }
}

/// The code of a use that is one of [`USES`].
#[inline]
fn code(usage: Use) -> u64 {
    usage as u64 & 3
}

/// A descriptor and a use: see [`Slot::kind`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind(u64);

/// That of no slot.
pub(super) const NO_KIND: Kind = Kind(u64::MAX);

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.is_mapped(), self.frame()) {
            (false, _) => f.write_str("Slot(empty)"),
            (_, Some((frame, usage))) => write!(f, "Slot(desc {}, {frame:?}, {usage:?})", self.desc()),
            (_, None) if self.is_guard() => write!(f, "Slot(desc {}, guard)", self.desc()),
            (_, None) if self.is_poisoned() => write!(f, "Slot(desc {}, poisoned)", self.desc()),
            _ => write!(f, "Slot(desc {})", self.desc()),
        }
    }
}

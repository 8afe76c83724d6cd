//! The format of a slot that stands for pages, and the shape of a tree of pages.
//!
//! ```text
//! 63                     30 29        12 11     4     3        2       1        0
//! | pfn 34                 | desc 18    | owner 8 | DIRTY | SHARED | LINK=0 | LOCK |
//! ```
//! A user address has 47 bits, a page number 35: the root takes 8, three levels take 6 each, the block 3 and the leaf 6. A block
//! is what one leaf table of the hardware maps, 2 MiB. Above it the tree has three levels of 64 slots where the hardware has two
//! of 512: a process has a few mappings in a few places far from each other, so most slots there are empty, and a small
//! node less is more than the look-up of a level more.

use core::fmt;

use crate::word::{LINK, LOCK};

/// The shape of a tree of pages, for [`Space::BITS`](crate::Space::BITS).
pub const BITS: &[u32] = &[8, 6, 6, 6, 3, 6];

const DIRTY: u64 = 1 << 3;
const SHARED: u64 = 1 << 2;
const OWNER: Field = Field { shift: 4, bits: 8 };
const DESC: Field = Field { shift: 12, bits: 18 };
const PFN: Field = Field { shift: 30, bits: 34 };

struct Field {
    shift: u32,
    bits: u32,
}

impl Field {
    const fn get(&self, word: u64) -> u64 {
        word >> self.shift & ((1 << self.bits) - 1)
    }
    const fn set(&self, word: u64, value: u64) -> u64 {
        let mask = (1 << self.bits) - 1;
        debug_assert!(value <= mask);
        word & !(mask << self.shift) | (value & mask) << self.shift
    }
}

/// Descriptors that there may be: their numbers are below.
pub const DESCRIPTORS: u32 = 1 << DESC.bits;
/// [`Page::owner`] if several CPUs may hold a translation.
pub const SEVERAL: u8 = 255;

/// What a slot says of its page, or of each page of its span. Made by [`Page::new`]; [`Page::word`] is the slot's value.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Page(u64);

impl Page {
    /// Nothing is mapped.
    pub const EMPTY: Page = Page(0);

    /// A page of descriptor `desc`, from 1 and below [`DESCRIPTORS`], without a frame.
    pub const fn new(desc: u32) -> Self {
        debug_assert!(desc != 0);
        Self(DESC.set(0, desc as u64))
    }
    /// What a slot's value says.
    pub const fn of(word: u64) -> Self {
        Self(word & !(LINK | LOCK))
    }
    /// The slot's value.
    pub const fn word(self) -> u64 {
        self.0
    }
    /// Whether something is mapped.
    pub const fn is_mapped(self) -> bool {
        self.0 != 0
    }
    /// The descriptor's number; 0 if nothing is mapped.
    pub const fn desc(self) -> u32 {
        DESC.get(self.0) as u32
    }
    /// The same page with another descriptor.
    pub const fn with_desc(self, desc: u32) -> Self {
        Self(DESC.set(self.0, desc as u64))
    }
    /// The frame's number, that of the span's first page; 0 if there is none. Below 2^34.
    pub const fn pfn(self) -> u64 {
        PFN.get(self.0)
    }
    /// The same page with another frame, or with none.
    pub const fn with_pfn(self, pfn: u64) -> Self {
        Self(PFN.set(self.0, pfn))
    }
    /// Who may hold a private translation: nobody (0), CPU `owner - 1`, or [`SEVERAL`].
    pub const fn owner(self) -> u8 {
        OWNER.get(self.0) as u8
    }
    /// The same page with another owner.
    pub const fn with_owner(self, owner: u8) -> Self {
        Self(OWNER.set(self.0, owner as u64))
    }
    /// Whether the frame was written to.
    pub const fn is_dirty(self) -> bool {
        self.0 & DIRTY != 0
    }
    /// The same page, written to or not.
    pub const fn with_dirty(self, dirty: bool) -> Self {
        Self(if dirty { self.0 | DIRTY } else { self.0 & !DIRTY })
    }
    /// Whether other trees may have the frame, so that it is copied before it is written to.
    pub const fn is_shared(self) -> bool {
        self.0 & SHARED != 0
    }
    /// The same page, shared or not.
    pub const fn with_shared(self, shared: bool) -> Self {
        Self(if shared { self.0 | SHARED } else { self.0 & !SHARED })
    }
    /// The page that is `offset` pages behind the first one of a span.
    pub const fn part(self, offset: u64) -> Self {
        if self.pfn() == 0 { self } else { self.with_pfn(self.pfn() + offset) }
    }
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.is_mapped() {
            return f.write_str("Page(empty)");
        }
        write!(f, "Page(desc {}, pfn {:#x}, owner {}", self.desc(), self.pfn(), self.owner())?;
        f.write_str(if self.is_dirty() { ", dirty" } else { "" })?;
        f.write_str(if self.is_shared() { ", shared)" } else { ")" })
    }
}

//! The page-table entry of x86-64 (Intel SDM vol. 3A, 4.5.5, tables 4-15 to 4-20).
//!
//! ```text
//!  63  62..59  58..52   51 ........ 12   11   10     9     8  7  6  5  4   3   2  1  0
//!  NX  pkey    ignored  frame            ign  LOCK  SOFT   G  PS D  A  PCD PWT U  W  P
//! ```
//! `LOCK` and `SOFT` are bits that the hardware ignores: `LOCK` in an entry that points to a leaf table is that
//! table's lock; a leaf entry that is nothing but `SOFT` is a guard, which names no frame and lets nobody in.

use crate::{Frame, Prot};

/// One 64-bit entry of any level.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Pte(u64);

impl Pte {
    /// Nothing mapped.
    pub const EMPTY: Pte = Pte(0);
    /// The entry translates, or points to a table.
    pub const PRESENT: u64 = 1;
    /// Stores are allowed.
    pub const WRITE: u64 = 1 << 1;
    /// User mode may use it.
    pub const USER: u64 = 1 << 2;
    /// Set by the hardware on use.
    pub const ACCESSED: u64 = 1 << 5;
    /// Set by the hardware on a store.
    pub const DIRTY: u64 = 1 << 6;
    /// In a directory entry: maps a large page.
    pub const LARGE: u64 = 1 << 7;
    /// Survives a CR3 write.
    pub const GLOBAL: u64 = 1 << 8;
    /// Ignored by hardware; free for the kernel.
    pub const SOFT: u64 = 1 << 9;
    /// Ignored by hardware; lock of the leaf table that a directory entry points to.
    pub const LOCK: u64 = 1 << 10;
    /// Instruction fetches fault.
    pub const NO_EXECUTE: u64 = 1 << 63;
    const FRAME: u64 = ((1 << 52) - 1) & !0xfff;

    /// A guard: no frame, and none to come until the guard is taken away.
    pub const GUARD: Pte = Pte(Self::SOFT);

    /// The entry with exactly these bits.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
    /// The entry's bits.
    pub const fn bits(self) -> u64 {
        self.0
    }
    /// A user page: `frame` with `prot`. With an empty `prot` the entry is not present.
    pub const fn user_page(frame: Frame, prot: Prot) -> Self {
        let mut bits = frame.base().as_u64() | Self::USER;
        if !prot.is_empty() {
            bits |= Self::PRESENT;
        }
        if prot.contains(Prot::WRITE) {
            bits |= Self::WRITE;
        }
        if !prot.contains(Prot::EXEC) {
            bits |= Self::NO_EXECUTE;
        }
        Self(bits)
    }
    /// A link to the table in `frame`, with every right, so that the leaf entry alone decides until one is taken away.
    pub const fn table(frame: Frame) -> Self {
        Self(frame.base().as_u64() | Self::PRESENT | Self::WRITE | Self::USER)
    }
    /// Whether the hardware would use it.
    pub const fn is_present(self) -> bool {
        self.0 & Self::PRESENT != 0
    }
    /// Whether stores are allowed.
    pub const fn is_writable(self) -> bool {
        self.0 & Self::WRITE != 0
    }
    /// Whether a store has set the dirty bit.
    pub const fn is_dirty(self) -> bool {
        self.0 & Self::DIRTY != 0
    }
    /// Whether nothing at all is stored here.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
    /// Whether it is a guard.
    pub const fn is_guard(self) -> bool {
        self.0 == Self::SOFT
    }
    /// Whether the hardware has used it.
    pub const fn is_accessed(self) -> bool {
        self.0 & Self::ACCESSED != 0
    }
    /// The frame it names.
    pub const fn frame(self) -> Frame {
        match Frame::new((self.0 & Self::FRAME) >> crate::PAGE_SHIFT) {
            Some(f) => f,
            None => unreachable!(),
        }
    }
    /// The rights it grants to user mode.
    pub fn prot(self) -> Prot {
        if !self.is_present() {
            return Prot::empty();
        }
        let mut p = Prot::READ;
        p.set(Prot::WRITE, self.is_writable());
        p.set(Prot::EXEC, self.0 & Self::NO_EXECUTE == 0);
        p
    }
}

impl core::fmt::Debug for Pte {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Pte({:#x} {:?})", self.frame().number(), self.prot())
    }
}

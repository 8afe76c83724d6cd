//! Addresses and what they count: virtual and physical addresses in bytes, pages and frames in units of
//! 4 KiB, ranges of pages, protections, and the x86-64 page-table entry.
//!
//! Nothing here touches memory: even [`DirectMap::ptr`] only computes where a frame's bytes are.
//!
//! ```
//! use addr::{Frame, PageRange, Prot, Pte, VirtAddr};
//!
//! // What mmap(0x7000, 5000, PROT_READ | PROT_WRITE) covers, and the entry of its first page.
//! let start = VirtAddr::user(0x7000).unwrap();
//! let range = PageRange::covering(start, 5000).unwrap();
//! assert_eq!((range.start().number(), range.len()), (7, 2));
//!
//! let entry = Pte::user_page(Frame::new(0x1234).unwrap(), Prot::READ | Prot::WRITE);
//! assert!(entry.is_present() && entry.is_writable());
//! assert_eq!(entry.frame().base().as_u64(), 0x123_4000);
//! ```
#![no_std]

mod pte;
mod range;

pub use pte::Pte;
pub use range::{PageRange, Pages};

/// log2 of the page size.
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a page and in a frame.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// Bytes in a page, as a length of memory.
pub const PAGE_BYTES: usize = PAGE_SIZE as usize;
/// First byte after user space: 47 bits less one guard page, as on Linux.
pub const USER_END: u64 = (1 << 47) - PAGE_SIZE;
/// First page number after user space.
pub const USER_END_PAGE: Page = Page(USER_END >> PAGE_SHIFT);

/// A canonical virtual address, in bytes (Intel SDM vol. 1, 3.3.7.1: bits 63..47 are equal).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct VirtAddr(u64);

impl VirtAddr {
    /// The address `raw`, or `None` if it is not canonical.
    pub const fn new(raw: u64) -> Option<Self> {
        let top = (raw as i64) >> 47;
        if top == 0 || top == -1 { Some(Self(raw)) } else { None }
    }
    /// The address `raw` if it lies below [`USER_END`].
    pub const fn user(raw: u64) -> Option<Self> {
        if raw < USER_END { Some(Self(raw)) } else { None }
    }
    /// The address as a number of bytes.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
    /// The page that holds this byte.
    pub const fn page(self) -> Page {
        Page((self.0 & ((1 << 48) - 1)) >> PAGE_SHIFT)
    }
    /// Byte offset within the page: 0..4096.
    pub const fn offset(self) -> u64 {
        self.0 & (PAGE_SIZE - 1)
    }
}

/// A physical address, in bytes: below 2^52.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct PhysAddr(u64);

impl PhysAddr {
    /// The address `raw`, or `None` if it needs more than 52 bits (the most that x86-64 translates to).
    pub const fn new(raw: u64) -> Option<Self> {
        if raw < 1 << 52 { Some(Self(raw)) } else { None }
    }
    /// The address as a number of bytes.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
    /// The frame that holds this byte.
    pub const fn frame(self) -> Frame {
        Frame(self.0 >> PAGE_SHIFT)
    }
}

/// A virtual page number: the address divided by 4 KiB, of 36 bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Page(u64);

impl Page {
    /// Page number `n`, or `None` above 2^36 - 1.
    pub const fn new(n: u64) -> Option<Self> {
        if n < 1 << 36 { Some(Self(n)) } else { None }
    }
    /// The page number, in pages.
    pub const fn number(self) -> u64 {
        self.0
    }
    /// The page's first byte, sign-extended to a canonical address.
    pub const fn base(self) -> VirtAddr {
        VirtAddr((((self.0 << PAGE_SHIFT) << 16) as i64 >> 16) as u64)
    }
    /// The page `n` pages further on, or `None` past the end of the number space.
    pub const fn checked_add(self, n: u64) -> Option<Self> {
        match self.0.checked_add(n) {
            Some(m) => Self::new(m),
            None => None,
        }
    }
    /// The page `n` pages before, or `None` below page 0.
    pub const fn checked_sub(self, n: u64) -> Option<Self> {
        match self.0.checked_sub(n) {
            Some(m) => Some(Self(m)),
            None => None,
        }
    }
    /// Index into the page table of `level`, 0 for the leaf table to 3 for the root: 0..512.
    pub const fn index(self, level: u32) -> usize {
        ((self.0 >> (9 * level)) & 511) as usize
    }
}

/// A physical frame number: the address divided by 4 KiB, of 40 bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Frame(u64);

impl Frame {
    /// Frame number `n`, or `None` above 2^40 - 1.
    pub const fn new(n: u64) -> Option<Self> {
        if n < 1 << 40 { Some(Self(n)) } else { None }
    }
    /// The frame number, in frames.
    pub const fn number(self) -> u64 {
        self.0
    }
    /// The frame's first byte.
    pub const fn base(self) -> PhysAddr {
        PhysAddr(self.0 << PAGE_SHIFT)
    }
}

bitflags::bitflags! {
    /// What an access may do, as in `mmap(2)`; the empty set is PROT_NONE.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct Prot: u8 {
        /// Loads are allowed.
        const READ = 1;
        /// Stores are allowed; on x86-64 a writable page is readable too.
        const WRITE = 2;
        /// Instruction fetches are allowed.
        const EXEC = 4;
    }
}

/// How to reach a frame's bytes: physical address p is at virtual address `offset + p`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirectMap {
    offset: usize,
}

impl DirectMap {
    /// A direct map at `offset` bytes.
    ///
    /// # Safety
    /// For every frame that will be passed to [`Self::ptr`], `offset + address` is mapped readable and writable
    /// for the life of the value.
    pub const unsafe fn new(offset: usize) -> Self {
        Self { offset }
    }
    /// Where the bytes of `at` are. Dereferencing it needs ownership of the frame, or atomics on shared tables.
    pub const fn ptr(self, at: PhysAddr) -> *mut u8 {
        core::ptr::with_exposed_provenance_mut(self.offset.wrapping_add(at.as_u64() as usize))
    }
}

macro_rules! debug_hex {
    ($($t:ident),*) => {$(
        impl core::fmt::Debug for $t {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, concat!(stringify!($t), "({:#x})"), self.0)
            }
        }
    )*};
}
debug_hex!(VirtAddr, PhysAddr, Page, Frame);

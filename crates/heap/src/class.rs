//! Sizes of objects, and of the slabs that they are cut from.

use core::alloc::Layout;

/// Bytes before the first object of a slab: its header, of two lines.
pub(crate) const HEADER: usize = 128;
/// Bytes of a slab of the smaller and of the larger kind: a frame, and four.
const SLAB_BYTES: [usize; 2] = [4096, 16384];
/// Objects up to this many bytes come from the smaller kind.
const SMALL: usize = 256;

/// How many classes there are.
pub(crate) const CLASSES: usize = SIZES.len();
/// Bytes of the objects of each class: less than half as large again as what is asked for, from 32 on. 576 is for nodes of 64
/// slots (crate `radix`), which may be most of what there is.
const SIZES: [usize; 16] = [16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 576, 640, 768, 1024, 1536, 2048];
/// The largest object, in bytes.
pub const LARGEST: usize = SIZES[CLASSES - 1];

/// The class of each size, in units of 16 bytes, rounded up.
const BY_SIZE: [u8; LARGEST / 16 + 1] = {
    let mut table = [0; LARGEST / 16 + 1];
    let mut units = 0;
    let mut class = 0;
    while units < table.len() {
        if units * 16 > SIZES[class] {
            class += 1;
        }
        table[units] = class as u8;
        units += 1;
    }
    table
};

/// A size of objects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Class(u8);

impl Class {
    /// The class of the smallest objects.
    pub const SMALLEST: Class = Class(0);
    /// The class of the largest objects.
    pub const LARGEST: Class = Class(CLASSES as u8 - 1);

    /// The smallest class that `layout` fits, or `None` if it is larger than [`LARGEST`], or more strictly aligned than
    /// any class.
    #[inline]
    pub const fn of(layout: Layout) -> Option<Class> {
        if layout.size() > LARGEST {
            return None;
        }
        let mut class = Class(BY_SIZE[layout.size().div_ceil(16)]);
        while class.align() < layout.align() {
            class.0 += 1;
            if class.index() == CLASSES {
                return None;
            }
        }
        Some(class)
    }
    /// Bytes of an object.
    #[inline]
    pub const fn size(self) -> usize {
        SIZES[self.0 as usize]
    }
    /// Every object's address is a multiple of this: the largest power of two that divides the size.
    const fn align(self) -> usize {
        if self.index() == CLASSES { usize::MAX } else { 1 << self.size().trailing_zeros() }
    }
    /// Bytes of a slab of this class, and its alignment.
    #[inline]
    pub const fn slab_bytes(self) -> usize {
        SLAB_BYTES[self.is_large() as usize]
    }
    /// Objects in a slab.
    pub const fn per_slab(self) -> usize {
        (self.slab_bytes() - self.first()) / self.size()
    }
    /// Whether its slabs are of the larger kind.
    #[inline]
    pub(crate) const fn is_large(self) -> bool {
        self.size() > SMALL
    }
    /// Bytes of a slab of the kind.
    #[inline]
    pub(crate) const fn bytes_of_kind(large: bool) -> usize {
        SLAB_BYTES[large as usize]
    }
    /// Where in a slab the first object is.
    #[inline]
    pub(crate) const fn first(self) -> usize {
        HEADER.next_multiple_of(self.align())
    }
    #[inline]
    pub(crate) const fn index(self) -> usize {
        self.0 as usize
    }
    /// Class number `n`; panics if there is none.
    pub(crate) const fn at(n: u8) -> Class {
        assert!((n as usize) < CLASSES);
        Class(n)
    }
    pub(crate) const fn number(self) -> u8 {
        self.0
    }
}

//! A region's two addresses: the view, which levels govern, and the alias, which is always writable.

use std::{
    marker::PhantomData,
    sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, compiler_fence},
};

use crate::{
    error::Error,
    region::{Inner, Region},
};

/// Values whose every bit pattern is one, without padding or references.
///
/// # Safety
/// The implementer promises just that.
pub unsafe trait Pod: Copy {}

macro_rules! pod {
    ($($of:ty),*) => { $(
        // SAFETY: every bit pattern is a number.
        unsafe impl Pod for $of {}
    )* };
}
pod!(u8, u16, u32, u64, u128, usize, i8, i16, i32, i64, i128, isize, f32, f64);

// SAFETY: elements have no padding, and an array adds none.
unsafe impl<T: Pod, const N: usize> Pod for [T; N] {}

/// Atomic integers that may lie in shared memory.
///
/// # Safety
/// Every bit pattern is a value, and the type is as `u8`, `u32` or `u64` in memory.
pub unsafe trait Atomic {}
// SAFETY: so they are, here and below.
unsafe impl Atomic for AtomicU8 {}
// SAFETY: see above.
unsafe impl Atomic for AtomicU32 {}
// SAFETY: see above.
unsafe impl Atomic for AtomicU64 {}

/// The second mapping of a region's frames: writes through it trap nowhere and dirty nothing.
///
/// Bytes are copied, never lent: another thread may be writing them through the view.
#[derive(Clone, Copy, Debug)]
pub struct Alias<'r> {
    pub(crate) base: *mut u8,
    pub(crate) len: usize,
    pub(crate) of: PhantomData<&'r Region>,
}

// SAFETY: the bytes are shared memory, and every access below is volatile or atomic.
unsafe impl Send for Alias<'_> {}
// SAFETY: see above.
unsafe impl Sync for Alias<'_> {}

impl<'r> Alias<'r> {
    /// Where it starts; the byte at offset `n` of the view is at `ptr() + n`.
    pub const fn ptr(&self) -> *mut u8 {
        self.base
    }
    /// Bytes of it.
    pub const fn len(&self) -> usize {
        self.len
    }
    /// Never: a region has at least a page.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn at(&self, offset: usize, len: usize) -> Result<*mut u8, Error> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(Error::Range);
        }
        Ok(self.base.wrapping_add(offset))
    }

    /// Copy bytes from `offset` into `to`.
    ///
    /// # Errors
    /// [`Error::Range`] if they are not all in the region.
    pub fn read_into(&self, offset: usize, to: &mut [u8]) -> Result<(), Error> {
        let from = self.at(offset, to.len())?;
        compiler_fence(Ordering::SeqCst);
        // SAFETY: both are valid for the length and do not overlap, since Rust's slices are not in regions; racing
        // bytes are any bytes.
        unsafe { std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) };
        compiler_fence(Ordering::SeqCst);
        Ok(())
    }

    /// Copy `from` to the bytes from `offset`.
    ///
    /// # Errors
    /// [`Error::Range`] if they are not all in the region.
    pub fn write_from(&self, offset: usize, from: &[u8]) -> Result<(), Error> {
        let to = self.at(offset, from.len())?;
        compiler_fence(Ordering::SeqCst);
        // SAFETY: as in `read_into`.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
        compiler_fence(Ordering::SeqCst);
        Ok(())
    }

    /// An atomic integer in the region.
    ///
    /// # Errors
    /// [`Error::Range`] if it is not all in the region, or not aligned.
    pub fn atomic<A: Atomic>(&self, offset: usize) -> Result<&'r A, Error> {
        let at = self.at(offset, size_of::<A>())?.cast::<A>();
        if !at.is_aligned() {
            return Err(Error::Range);
        }
        // SAFETY: mapped for the region's life, aligned, and of a type that takes any bits and shared changes.
        Ok(unsafe { &*at })
    }
}

/// One page, through the alias.
#[derive(Clone, Copy, Debug)]
pub struct PageAlias<'r> {
    pub(crate) base: *mut u8,
    pub(crate) len: usize,
    pub(crate) of: PhantomData<&'r Inner>,
}

// SAFETY: as `Alias`.
unsafe impl Send for PageAlias<'_> {}

impl PageAlias<'_> {
    /// Where it starts.
    pub const fn as_ptr(&self) -> *mut u8 {
        self.base
    }
    /// Bytes of a page.
    pub const fn len(&self) -> usize {
        self.len
    }
    /// Never.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// Set all bytes to `byte`.
    pub fn fill(&self, byte: u8) {
        // SAFETY: mapped, writable, and that long; racing bytes are any bytes.
        unsafe { std::ptr::write_bytes(self.base, byte, self.len) };
        compiler_fence(Ordering::SeqCst);
    }
    /// Copy as much of `from` as fits to the page's start.
    pub fn write(&self, from: &[u8]) {
        let len = from.len().min(self.len);
        // SAFETY: as in `fill`; Rust's slices are not in regions.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.base, len) };
        compiler_fence(Ordering::SeqCst);
    }
    /// Copy as much of the page's start as fits to `to`.
    pub fn read(&self, to: &mut [u8]) {
        let len = to.len().min(self.len);
        compiler_fence(Ordering::SeqCst);
        // SAFETY: as in `write`.
        unsafe { std::ptr::copy_nonoverlapping(self.base, to.as_mut_ptr(), len) };
    }
}

/// The region as values of `T`, through the view: accesses trap as the pages' levels say.
///
/// Values are copied by volatile accesses; no reference into the view is given out, because a level may change
/// under it.
#[derive(Clone, Copy, Debug)]
pub struct View<'r, T> {
    pub(crate) base: *mut T,
    pub(crate) count: usize,
    pub(crate) of: PhantomData<&'r Region>,
}

// SAFETY: the bytes are shared memory of plain values, and every access is volatile.
unsafe impl<T: Pod> Send for View<'_, T> {}
// SAFETY: see above.
unsafe impl<T: Pod> Sync for View<'_, T> {}

impl<T: Pod> View<'_, T> {
    /// How many values.
    pub const fn len(&self) -> usize {
        self.count
    }
    /// Whether not one fits.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }
    /// Where it starts.
    pub const fn as_ptr(&self) -> *mut T {
        self.base
    }
    /// The value at `i`, if there is one.
    pub fn get(&self, i: usize) -> Option<T> {
        // SAFETY: in the region and aligned; a level that forbids it makes it wait for the handler.
        (i < self.count).then(|| unsafe { self.base.wrapping_add(i).read_volatile() })
    }
    /// Set the value at `i`; whether there is one.
    pub fn set(&self, i: usize, value: T) -> bool {
        if i < self.count {
            // SAFETY: see above.
            unsafe { self.base.wrapping_add(i).write_volatile(value) };
        }
        i < self.count
    }
}

impl Region {
    /// MAP2: the second mapping of the region's frames.
    ///
    /// # Errors
    /// [`Error::Lacks`] if the region's memory has none.
    ///
    /// ```
    /// use vmprim::{Access, Needs, Region};
    ///
    /// let region = Region::builder(16 << 12).need(Needs::ALIAS).initial(Access::None).build()?;
    /// let (alias, view) = (region.alias()?, region.view::<u8>()?);
    /// alias.write_from(5 << 12, b"hidden")?; // the page is at None: the alias does not care
    /// assert_eq!(view.get((5 << 12) + 1), Some(b'i')); // traps; without a handler the library grants
    /// # Ok::<(), vmprim::Error>(())
    /// ```
    pub fn alias(&self) -> Result<Alias<'_>, Error> {
        let (base, len) = self.inner().alias_bytes()?;
        Ok(Alias { base, len, of: PhantomData })
    }

    /// The region as values of `T`, through the view.
    ///
    /// # Errors
    /// [`Error::Forked`] in another process than the region's.
    pub fn view<T: Pod>(&self) -> Result<View<'_, T>, Error> {
        self.inner().check_process()?;
        let count = self.len().checked_div(size_of::<T>()).unwrap_or(0);
        Ok(View { base: self.base().cast(), count, of: PhantomData })
    }
}

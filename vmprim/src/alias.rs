//! A region's two addresses: the view, which levels govern, and the alias, which is always writable.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

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

/// Bytes of memory that other threads may be changing at any time, through either address: a copy of racing bytes is
/// any of what stood there, byte by byte. Relaxed, all: who wants an order between copies makes it otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Shared<'a>(&'a [AtomicU8]);

/// Bytes of a word.
const WORD: usize = size_of::<u64>();

impl<'a> Shared<'a> {
    /// # Safety
    /// The bytes are mapped, readable and writable for the lifetime, and no other reference to them is anywhere but
    /// of this kind.
    pub const unsafe fn new(at: *mut u8, len: usize) -> Self {
        // SAFETY: mapped, as the caller says; atomics may be changed by others, and take any bits.
        Self(unsafe { std::slice::from_raw_parts(at.cast::<AtomicU8>(), len) })
    }

    /// Of the first `len` bytes those before the first whole word, the words, and those after.
    fn parts(self, len: usize) -> (&'a [AtomicU8], &'a [AtomicU64], &'a [AtomicU8]) {
        // SAFETY: an atomic word takes any bits, as its bytes do.
        unsafe { self.0.get(..len).unwrap_or_default().align_to() }
    }

    /// Copy to `to`, as much as fits.
    pub fn load(self, to: &mut [u8]) {
        let len = self.0.len().min(to.len());
        let (head, words, tail) = self.parts(len);
        // As long as the parts together, so there is always something to cut.
        let Some((first, rest)) = to.split_at_mut_checked(head.len()) else { return };
        let Some((middle, last)) = rest.split_at_mut_checked(size_of_val(words)) else { return };
        let bytes = |to: &mut [u8], from: &[AtomicU8]| {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = from.load(Ordering::Relaxed));
        };
        bytes(first, head);
        for (to, from) in middle.as_chunks_mut().0.iter_mut().zip(words) {
            *to = from.load(Ordering::Relaxed).to_ne_bytes();
        }
        bytes(last, tail);
    }

    /// Copy `from`, as much as fits.
    pub fn store(self, from: &[u8]) {
        let len = self.0.len().min(from.len());
        let (head, words, tail) = self.parts(len);
        let Some((first, rest)) = from.split_at_checked(head.len()) else { return };
        let Some((middle, last)) = rest.split_at_checked(size_of_val(words)) else { return };
        let bytes = |to: &[AtomicU8], from: &[u8]| {
            to.iter().zip(from).for_each(|(to, &from)| to.store(from, Ordering::Relaxed));
        };
        bytes(head, first);
        for (to, &from) in words.iter().zip(middle.as_chunks().0) {
            to.store(u64::from_ne_bytes(from), Ordering::Relaxed);
        }
        bytes(tail, last);
    }

    /// Set all bytes to `byte`.
    pub fn fill(self, byte: u8) {
        let (head, words, tail) = self.parts(self.0.len());
        head.iter().chain(tail).for_each(|to| to.store(byte, Ordering::Relaxed));
        words.iter().for_each(|to| to.store(u64::from_ne_bytes([byte; WORD]), Ordering::Relaxed));
    }

    /// Copy from memory of the same kind, both aligned as words; the lesser length.
    pub fn store_from(self, from: Self) {
        let len = self.0.len().min(from.0.len());
        let ((_, to, _), (_, from, _)) = (self.parts(len), from.parts(len));
        to.iter().zip(from).for_each(|(to, from)| to.store(from.load(Ordering::Relaxed), Ordering::Relaxed));
    }
}

/// The second mapping of a region's frames: writes through it trap nowhere and dirty nothing.
///
/// Bytes are copied, never lent: another thread may be writing them through the view.
#[derive(Clone, Copy, Debug)]
pub struct Alias<'r> {
    pub(crate) base: *mut u8,
    pub(crate) len: usize,
    pub(crate) of: PhantomData<&'r Region>,
}

// SAFETY: the bytes are shared memory, and every access below is atomic.
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
        // SAFETY: in the alias, and Rust's slices are not in regions.
        let from = unsafe { Shared::new(from, to.len()) };
        compiler_fence(Ordering::SeqCst);
        from.load(to);
        compiler_fence(Ordering::SeqCst);
        Ok(())
    }

    /// Copy `from` to the bytes from `offset`.
    ///
    /// # Errors
    /// [`Error::Range`] if they are not all in the region.
    pub fn write_from(&self, offset: usize, from: &[u8]) -> Result<(), Error> {
        let to = self.at(offset, from.len())?;
        // SAFETY: as in `read_into`.
        let to = unsafe { Shared::new(to, from.len()) };
        compiler_fence(Ordering::SeqCst);
        to.store(from);
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
    /// Its bytes.
    pub(crate) const fn shared(&self) -> Shared<'_> {
        // SAFETY: a page of the alias, and Rust's references are not in regions.
        unsafe { Shared::new(self.base, self.len) }
    }
    /// Set all bytes to `byte`.
    pub fn fill(&self, byte: u8) {
        self.shared().fill(byte);
        compiler_fence(Ordering::SeqCst);
    }
    /// Copy as much of `from` as fits to the page's start.
    pub fn write(&self, from: &[u8]) {
        self.shared().store(from);
        compiler_fence(Ordering::SeqCst);
    }
    /// Copy as much of the page's start as fits to `to`.
    pub fn read(&self, to: &mut [u8]) {
        compiler_fence(Ordering::SeqCst);
        self.shared().load(to);
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

#[cfg(all(test, not(any(loom, shuttle))))]
#[allow(clippy::indexing_slicing, reason = "a test")]
mod tests {
    use super::*;

    #[test]
    fn copies_are_whole_wherever_they_begin_and_end() {
        let mut words = [0_u64; 8];
        let base = words.as_mut_ptr().cast::<u8>();
        let bytes = |at: usize, len| {
            // SAFETY: in the array, which is used through this alone.
            unsafe { Shared::new(base.wrapping_add(at), len) }
        };
        for (at, len) in (0..20).flat_map(|at| (0..40).map(move |len| (at, len))) {
            bytes(0, 64).fill(0xee);
            let from: Vec<u8> = (1..=len as u8).collect();
            bytes(at, len).store(&from);
            let mut all = [0; 64];
            bytes(0, 64).load(&mut all);
            let want = std::iter::repeat_n(0xee, at).chain(from).chain(std::iter::repeat(0xee));
            assert!(all.iter().copied().eq(want.take(64)), "{len} at {at}: {all:?}");
            let mut some = [0; 40];
            bytes(at, len).load(&mut some);
            assert!(some[..len] == all[at..at + len] && some[len..].iter().all(|&byte| byte == 0));
        }
        bytes(0, 32).store_from(bytes(32, 16));
        let mut all = [0; 64];
        bytes(0, 64).load(&mut all);
        assert_eq!(all[..16], all[32..48]);
    }
}

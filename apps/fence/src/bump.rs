//! A bump area whose limit is a guard.
//!
//! Objects are taken downward, and the guard lies below, so that the store of an object's first word is its lowest,
//! and is the check: it either succeeds, or traps before it has any effect and goes on at the slow path. An object
//! is no larger than the guard, so none can jump over it.

use vmprim::{Access, Backend, Backing, Error, Needs, Region, Resolution, fault_or, inline};

const PAGE: usize = 4096;

/// Memory for objects, handed out from its top, a header at a time.
///
/// ```
/// let mut bump = fence::Bump::new(1 << 16, 4096)?;
/// let first = bump.alloc(24, 0xabc).expect("room for one");
/// // SAFETY: just taken, 24 bytes.
/// assert_eq!(unsafe { first.read() }, 0xabc);
/// let more = std::iter::from_fn(|| bump.alloc(4096, 1)).count();
/// assert_eq!(more, 15);
/// # Ok::<(), vmprim::Error>(())
/// ```
#[derive(Debug)]
pub struct Bump {
    region: Region,
    guard: usize,
    next: *mut u8,
}

// SAFETY: the pointer is into the region, which goes along.
unsafe impl Send for Bump {}

impl Bump {
    /// An area of `len` bytes for objects of at most `largest` bytes; both are rounded up to pages.
    ///
    /// # Errors
    /// Those of building a region.
    pub fn new(len: usize, largest: usize) -> Result<Self, Error> {
        let round = |bytes: usize| bytes.checked_next_multiple_of(PAGE).ok_or(Error::Range);
        let (len, guard) = (round(len.max(1))?, round(largest.max(1))?);
        // SAFETY: it only answers.
        let handler = unsafe { inline(|_, _| Resolution::Divert) };
        // One border between two levels that never moves: two mappings, and no work at the first touch of a page.
        let region = Region::builder(len.checked_add(guard).ok_or(Error::Range)?)
            .backing(Backing::Anon)
            .backend(Backend::Signal)
            .need(Needs::NONE_LEVEL)
            .inline(handler)
            .build()?;
        region.protect(0..guard / PAGE, Access::None)?;
        let next = region.base().wrapping_add(guard + len);
        Ok(Self { region, guard, next })
    }

    /// Take `size` bytes as [`Cursor::alloc`] does.
    #[inline(always)]
    pub fn alloc(&mut self, size: usize, header: u64) -> Option<*mut u64> {
        self.cursor().alloc(size, header)
    }

    /// The area's end as a value, which a loop can keep in a register.
    #[inline(always)]
    pub fn cursor(&mut self) -> Cursor<'_> {
        Cursor { next: self.next, bump: self }
    }

    /// Take everything back: what was handed out must not be used any more.
    pub fn reset(&mut self) {
        self.next = self.region.base().wrapping_add(self.region.len());
    }

    /// Bytes that are left.
    pub fn room(&self) -> usize {
        self.next as usize - self.region.base() as usize - self.guard
    }
}

/// Takes objects from an area; the area is up to date when it is dropped.
#[derive(Debug)]
pub struct Cursor<'b> {
    next: *mut u8,
    bump: &'b mut Bump,
}

impl Cursor<'_> {
    /// Take `size` bytes (at least 8, a multiple of 8, at most the largest) and store `header` in the first word;
    /// nothing if the area is used up.
    #[inline(always)]
    pub fn alloc(&mut self, size: usize, header: u64) -> Option<*mut u64> {
        debug_assert!(size >= 8 && size.is_multiple_of(8) && size <= self.bump.guard, "{size} bytes");
        let at = self.next.wrapping_sub(size);
        // SAFETY: above the guard's start, by the size's limit: in the area, or in the guard, whose handler diverts.
        unsafe { fault_or!(store at.cast(), header, else { return None }) };
        self.next = at;
        Some(at.cast())
    }
}

impl Drop for Cursor<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        self.bump.next = self.next;
    }
}

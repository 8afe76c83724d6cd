//! Buffers of a page each that handlers may take, made beforehand: an inline handler cannot allocate.
//!
//! A bit a buffer, set while it is free. Taking clears it and giving sets it, each by one read-modify-write, so any
//! thread may do either in any handler, and no state is between the two.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::atomic::{AtomicU64, Ordering};

use crate::{
    alias::Shared,
    error::Errno,
    region::{Inner, Region},
    sys::Mapping,
};

/// The buffers of a region.
#[derive(Debug)]
pub struct Pool {
    mapping: Mapping,
    free: Box<[AtomicU64]>,
}

impl Pool {
    /// `count` buffers of `unit` bytes.
    pub fn new(count: usize, unit: usize) -> Result<Self, Errno> {
        let len = count.checked_mul(unit).ok_or(Errno(libc::ENOMEM))?.max(unit);
        let both = libc::PROT_READ | libc::PROT_WRITE;
        let mapping = Mapping::new(len, both, libc::MAP_PRIVATE | libc::MAP_POPULATE, None)?;
        let bits = |word: usize| match count.saturating_sub(word * 64) {
            rest if rest >= 64 => u64::MAX,
            rest => (1 << rest) - 1,
        };
        Ok(Self { mapping, free: (0..count.div_ceil(64)).map(|word| AtomicU64::new(bits(word))).collect() })
    }

    /// A free buffer's number.
    fn take(&self) -> Option<usize> {
        self.free.iter().enumerate().find_map(|(at, word)| {
            // Relaxed: the exchange below says whether it was current.
            let mut free = word.load(Ordering::Relaxed);
            while free != 0 {
                let lowest = free & free.wrapping_neg();
                // Acquire: pairs with Release in `give`; whoever had the buffer has let go of its bytes.
                match word.compare_exchange_weak(free, free ^ lowest, Ordering::Acquire, Ordering::Relaxed) {
                    Ok(_) => {
                        return Some(at.wrapping_mul(64).wrapping_add(lowest.trailing_zeros() as usize));
                    }
                    Err(now) => free = now,
                }
            }
            None
        })
    }

    fn give(&self, number: usize) {
        if let Some(word) = self.free.get(number / 64) {
            // Release: pairs with Acquire in `take`.
            word.fetch_or(1 << (number % 64), Ordering::Release);
        }
    }

    fn is_taken(&self, number: usize) -> bool {
        // Relaxed: whoever names a number has it from the one who took it.
        self.free.get(number / 64).is_some_and(|word| word.load(Ordering::Relaxed) >> (number % 64) & 1 == 0)
    }
}

/// A buffer of a page, taken; given back when it is dropped.
#[derive(Debug)]
pub struct Buffer<'r> {
    pool: &'r Pool,
    number: usize,
    len: usize,
}

impl Buffer<'_> {
    /// Where it starts.
    pub fn as_ptr(&self) -> *mut u8 {
        self.pool.mapping.address.wrapping_add(self.number.wrapping_mul(self.len)) as *mut u8
    }
    /// Bytes of it: a page's.
    pub const fn len(&self) -> usize {
        self.len
    }
    /// Never.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// Copy a page in, read through the alias.
    pub fn copy_from(&self, page: &crate::PageAlias<'_>) {
        // SAFETY: the pool's mapping, to which no reference is given out.
        let own = unsafe { Shared::new(self.as_ptr(), self.len) };
        own.store_from(page.shared());
    }
    /// Keep it taken, by this number, until [`Region::buffer`] is asked for it: to hand it to another thread.
    pub fn into_number(self) -> usize {
        let number = self.number;
        std::mem::forget(self);
        number
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        self.pool.give(self.number);
    }
}

impl Inner {
    pub fn take_buffer(&self) -> Option<Buffer<'_>> {
        let pool = self.pool.as_ref()?;
        pool.take().map(|number| Buffer { pool, number, len: 1 << self.shift })
    }
}

impl Region {
    /// A free buffer of the pool that the region was built with.
    pub fn take_buffer(&self) -> Option<Buffer<'_>> {
        self.inner().take_buffer()
    }

    /// The buffer that [`Buffer::into_number`] has named, if it is taken: once for each naming.
    ///
    /// ```
    /// use std::sync::{Arc, atomic::{AtomicUsize, Ordering}};
    /// use vmprim::{Access, Needs, Region, Resolution, inline};
    ///
    /// // Copy on write: the old content of a page goes to a buffer before the first store.
    /// let copied: Arc<[AtomicUsize; 8]> = Arc::default();
    /// let copies = copied.clone();
    /// // SAFETY: it copies a page, stores a number, and answers.
    /// let handler = unsafe {
    ///     inline(move |fault, safe| {
    ///         let (Some(buffer), Some(page)) = (safe.take_buffer(), safe.alias(fault.page)) else {
    ///             return Resolution::Fail(12);
    ///         };
    ///         buffer.copy_from(&page);
    ///         if let Some(place) = copies.get(fault.page.0) {
    ///             place.store(1 + buffer.into_number(), Ordering::Release);
    ///         }
    ///         Resolution::Grant(Access::ReadWrite)
    ///     })
    /// };
    /// let region = Region::builder(8 << 12).need(Needs::ALIAS).pool(4).inline(handler).build()?;
    /// let view = region.view::<u8>()?;
    /// view.set(2 << 12, 1);
    /// region.protect(0..8, Access::Read)?; // from here on, what is stored
    /// view.set(2 << 12, 2);
    /// let number = copied[2].load(Ordering::Acquire) - 1;
    /// let buffer = region.buffer(number).expect("a buffer that is taken");
    /// // SAFETY: taken, so nobody else uses it.
    /// assert_eq!((unsafe { buffer.as_ptr().read() }, view.get(2 << 12)), (1, Some(2)));
    /// # Ok::<(), vmprim::Error>(())
    /// ```
    pub fn buffer(&self, number: usize) -> Option<Buffer<'_>> {
        let pool = self.inner().pool.as_ref()?;
        let taken = pool.is_taken(number);
        taken.then(|| Buffer { pool, number, len: self.page_size() })
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    #[allow(clippy::unwrap_used, reason = "a test")]
    fn each_buffer_has_one_owner() {
        const COUNT: usize = 70;
        let pool = Pool::new(COUNT, 4096).unwrap();
        let owners: Vec<_> = (0..COUNT).map(|_| AtomicUsize::new(0)).collect();
        let all: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        assert!(all.iter().copied().eq(0..COUNT) && pool.is_taken(69) && !pool.is_taken(128));
        all.into_iter().for_each(|number| pool.give(number));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5000 {
                        let Some(number) = pool.take() else { continue };
                        let owner = owners.get(number).unwrap();
                        assert_eq!(owner.fetch_add(1, Ordering::SeqCst), 0, "two owners");
                        owner.fetch_sub(1, Ordering::SeqCst);
                        pool.give(number);
                    }
                });
            }
        });
        assert_eq!(std::iter::from_fn(|| pool.take()).count(), COUNT);
    }
}

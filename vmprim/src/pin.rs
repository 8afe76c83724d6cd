//! Pages that keep their level for a while, so that system calls and devices may use them.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::PoisonError;

use sync::primitive::Ordering;

use crate::{
    access::{Access, Kind, PageNo, PageRange},
    error::{Errno, Error},
    group::PAGES,
    handler::{Fault, Resolution},
    mechanism::Stop,
    region::{Futex, Inner, Region},
    thread::Inside,
};

/// Pages that stay at their level or above until it is dropped.
#[derive(Debug)]
pub struct Pin<'r> {
    region: &'r Region,
    pages: PageRange,
}

impl Pin<'_> {
    /// Where the pages start.
    pub fn as_ptr(&self) -> *mut u8 {
        let inner = self.region.inner();
        inner.base.wrapping_add(inner.span(self.pages).offset) as *mut u8
    }
    /// Bytes of them.
    pub fn len(&self) -> usize {
        self.region.inner().span(self.pages).len
    }
    /// Whether no page is pinned.
    pub fn is_empty(&self) -> bool {
        self.pages.count == 0
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        self.region.inner().unpin(self.pages);
    }
}

impl Region {
    /// Pin pages at `level` or above: handlers are asked for those below, with [`Kind::Pin`]. Until the result is
    /// dropped, the pages may be handed to system calls and devices; nothing lowers them, and dirty sets report
    /// those that are open for writing.
    ///
    /// # Errors
    /// - [`Error::Range`] or [`Error::Lacks`].
    /// - [`Error::Poisoned`] with a handler's code, if it failed.
    /// - [`Error::Os`] if the kernel does not open a page.
    ///
    /// ```
    /// use std::io::Read;
    /// use vmprim::{Access, Needs, Region};
    ///
    /// let region = Region::builder(8 << 12).need(Needs::NONE_LEVEL).initial(Access::None).build()?;
    /// let pin = region.pin(2..4, Access::ReadWrite)?;
    /// // SAFETY: pinned for writing, and nobody else uses the pages.
    /// let bytes = unsafe { std::slice::from_raw_parts_mut(pin.as_ptr(), pin.len()) };
    /// std::fs::File::open("/proc/self/exe").and_then(|mut file| file.read_exact(bytes)).expect("bytes to read");
    /// assert_eq!(&bytes[1..4], b"ELF");
    /// # Ok::<(), vmprim::Error>(())
    /// ```
    pub fn pin(&self, pages: impl Into<PageRange>, level: Access) -> Result<Pin<'_>, Error> {
        let (range, inner) = (pages.into(), self.inner());
        inner.check_range(range)?;
        let level = if inner.has_read { level.max(Access::Read) } else { Access::ReadWrite };
        for (done, page) in (range.start.0..range.end()).enumerate() {
            if let Err(error) = inner.pin(PageNo(page), level) {
                inner.unpin(PageRange { start: range.start, count: done });
                return Err(error);
            }
        }
        Ok(Pin { region: self, pages: range })
    }
}

impl Inner {
    fn pin(&self, page: PageNo, wanted: Access) -> Result<(), Error> {
        let Some((group, bit)) = self.slot(page) else { return Err(Error::Range) };
        let inside = Inside::enter(None);
        let span = self.span(page.into());
        loop {
            self.lock(group, page.0 / PAGES, bit);
            let mut result = self.ask_for_pin(&inside, page, group.level(page.0), wanted);
            if let Ok(Some(to)) = result {
                // The kernel may be stricter than the level: a system call would not get the page back.
                let opened = self.raise(group, page.0 / PAGES, bit, to).and_then(|()| {
                    if self.creates && self.is_unborn(group, page) {
                        self.bear(group, page)?;
                    }
                    self.mechanism.reinstall(span, group.level(page.0))
                });
                if let Err(stop) = opened {
                    let errno = if let Stop::Os(errno) = stop { errno } else { Errno(libc::EFAULT) };
                    result = Err(Error::Os { op: "pin", errno });
                }
            }
            if matches!(result, Ok(Some(_))) {
                let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
                *pins.entry(page.0).or_insert(0) += 1;
                // Relaxed: under the page's lock.
                group.pinned.fetch_or(bit, Ordering::Relaxed);
            }
            group.unlock(bit, &Futex);
            match result {
                Ok(Some(_)) => return Ok(()),
                Ok(None) => std::thread::yield_now(),
                Err(error) => return Err(error),
            }
        }
    }

    /// The level to raise a locked page to; nothing if the handler wants to be asked again.
    fn ask_for_pin(
        &self,
        inside: &Inside,
        page: PageNo,
        level: Access,
        wanted: Access,
    ) -> Result<Option<Access>, Error> {
        if level >= wanted {
            return Ok(Some(level));
        }
        let fault = Fault { page, offset: 0, kind: Kind::Pin, level, wanted, region: self.id, pc: 0 };
        match self.ask(inside.block, &fault, false) {
            Resolution::Grant(to) | Resolution::GrantRange(_, to) if to >= wanted => Ok(Some(to)),
            Resolution::Retry => Ok(None),
            Resolution::Fail(code) => Err(Error::Poisoned { code }),
            _ => Err(Error::Pinned { page }),
        }
    }

    /// Open all pages, and have no handler that runs lower one again.
    pub fn open_for_good(&self) {
        for (at, group) in self.groups.iter().enumerate() {
            let count = self.pages.saturating_sub(at * PAGES).min(PAGES) as u32;
            let all = u32::MAX >> (PAGES as u32 - count);
            self.lock(group, at, all);
            // Relaxed: under the pages' locks.
            group.pinned.fetch_or(all, Ordering::Relaxed);
            // What the kernel refuses to open is no memory of the program's any more.
            let _ = self.raise(group, at, all, Access::ReadWrite);
            group.unlock(all, &Futex);
        }
    }

    fn unpin(&self, range: PageRange) {
        for page in (range.start.0..range.end()).map(PageNo) {
            let Some((group, bit)) = self.slot(page) else { continue };
            self.lock(group, page.0 / PAGES, bit);
            let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(count) = pins.get_mut(&page.0) {
                *count -= 1;
                if *count == 0 {
                    pins.remove(&page.0);
                    // Relaxed, both: under the page's lock.
                    group.pinned.fetch_and(!bit, Ordering::Relaxed);
                    if group.level(page.0) == Access::ReadWrite {
                        // Written until now, maybe, and by a device that no protection stops.
                        group.soft_dirty.fetch_or(bit, Ordering::Relaxed);
                    }
                }
            }
            drop(pins);
            group.unlock(bit, &Futex);
        }
    }
}

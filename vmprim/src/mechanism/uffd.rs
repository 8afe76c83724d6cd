//! Userfaultfd: levels in page-table entries, so that no mapping is ever split.
//!
//! | level | anonymous | view of a memfd | tracked by the kernel |
//! | --- | --- | --- | --- |
//! | None | - | no entry: `MADV_DONTNEED` | as the view |
//! | Read | entry with the WP bit | entry with the WP bit | - |
//! | ReadWrite | entry without | entry without | entry with the WP bit (not written yet) or without |
//!
//! - The frames of a view belong to the memfd: dropping the view's entries keeps them, and an access then is a
//!   minor fault (the frame is there, the entry is not), or a missing one if the file has a hole. `CONTINUE`
//!   installs an entry for the frame, with the WP bit or without, and answers EFAULT for a hole.
//! - A zap leaves the WP bit behind as a marker; `CONTINUE` replaces it, so from None to ReadWrite is one trap.
//! - Delivered as SIGBUS in the faulting thread, nobody sleeps in the kernel and nobody need be woken (`DONTWAKE`).
//! - With WP_ASYNC the kernel clears the WP bit itself at the first write, and `PAGEMAP_SCAN` finds entries without
//!   it and sets it again, as one step an entry under the page table's lock: no write between look and re-arming is
//!   lost. An absent entry without a marker counts as written: dropping a page's entry and then scanning finds the
//!   writes before the drop.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use sync::mutant;

use super::{Mechanism, Span, Stop};
use crate::{access::Access, error::Errno, sys, uapi};

/// Runs of pages that one scan returns at most.
const FOUND: usize = 128;
/// Ranges of one `process_madvise`.
const BATCH: usize = 64;

/// Which entries mean what; see the table above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// Anonymous memory: Read and ReadWrite.
    Anonymous,
    /// A view of a memfd.
    View,
}

/// A region at `base`, registered with `fd`.
#[derive(Debug)]
pub struct Uffd {
    pub base: usize,
    pub fd: OwnedFd,
    pub flavour: Flavour,
    /// Threads sleep in the kernel until they are woken, rather than get a signal.
    pub sleeps: bool,
    /// `/proc/self/pagemap`, where the kernel tracks writes.
    pub pagemap: Option<OwnedFd>,
    /// This process, for advice about several ranges at once.
    pub pidfd: Option<OwnedFd>,
    /// The memfd behind a view.
    pub file: Option<RawFd>,
}

impl Uffd {
    fn range(&self, span: Span) -> uapi::Range {
        uapi::Range { start: self.base.wrapping_add(span.offset) as u64, len: span.len as u64 }
    }

    /// Set or clear the WP bit of a span's entries.
    fn write_protect(&self, span: Span, on: bool) -> Result<(), Errno> {
        let mode = match (on, self.sleeps) {
            (true, _) => uapi::WRITEPROTECT_MODE_WP,
            (false, false) => uapi::WRITEPROTECT_MODE_DONTWAKE,
            (false, true) => 0,
        };
        let mut argument = uapi::WriteProtect { range: self.range(span), mode };
        loop {
            // SAFETY: the region's own bytes.
            match unsafe { sys::ioctl(self.fd.as_raw_fd(), uapi::UFFDIO_WRITEPROTECT, &mut argument) } {
                // A mapping of the process is being changed; nothing was done.
                Err(Errno(libc::EAGAIN)) if !mutant!("vmprim-asked-once") => {}
                result => return result.map(drop),
            }
        }
    }

    /// Install entries for frames that are there, with the WP bit or without.
    fn install(&self, span: Span, write_protected: bool) -> Result<(), Stop> {
        let wake = if self.sleeps { 0 } else { uapi::CONTINUE_MODE_DONTWAKE };
        let mode = if write_protected { uapi::CONTINUE_MODE_WP } else { 0 } | wake;
        let mut at = span.offset;
        while at < span.end() {
            let rest = Span { offset: at, len: span.end().wrapping_sub(at) };
            let mut argument = uapi::Continue { range: self.range(rest), mode, mapped: 0 };
            // SAFETY: the region's own bytes; the frames are the file's.
            let result = unsafe { sys::ioctl(self.fd.as_raw_fd(), uapi::UFFDIO_CONTINUE, &mut argument) };
            let done = usize::try_from(argument.mapped).unwrap_or(0);
            match result {
                Ok(_) => return Ok(()),
                Err(Errno(libc::EAGAIN)) if !mutant!("vmprim-asked-once") => at = at.wrapping_add(done),
                Err(Errno(libc::EEXIST)) => {
                    // There is an entry: somebody was first, or the level was lowered in the table only. It gets
                    // the right bit.
                    let one = Span { offset: at, len: sys::BASE };
                    self.write_protect(one, write_protected).map_err(Stop::Os)?;
                    self.wake(one);
                    at = at.wrapping_add(sys::BASE);
                }
                Err(Errno(libc::EFAULT)) => return Err(Stop::Missing(at)),
                Err(errno) => return Err(Stop::Os(errno)),
            }
        }
        Ok(())
    }

    /// Drop the entries of spans; the frames stay in the file.
    fn drop_entries(&self, spans: &[Span]) -> Result<(), Errno> {
        if let (Some(pidfd), true) = (&self.pidfd, spans.len() > 1) {
            let mut vector = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BATCH];
            for batch in spans.chunks(BATCH) {
                let mut bytes = 0_usize;
                for (place, span) in vector.iter_mut().zip(batch) {
                    place.iov_base = self.base.wrapping_add(span.offset) as *mut _;
                    place.iov_len = span.len;
                    bytes = bytes.wrapping_add(span.len);
                }
                let vector = vector.get(..batch.len()).unwrap_or_default();
                // SAFETY: the region's own bytes, and the file keeps what is in them.
                let done = unsafe { sys::advise_many(pidfd.as_raw_fd(), vector, libc::MADV_DONTNEED) };
                if done != Ok(bytes) {
                    self.drop_each(batch)?;
                }
            }
            return Ok(());
        }
        self.drop_each(spans)
    }

    fn drop_each(&self, spans: &[Span]) -> Result<(), Errno> {
        spans.iter().try_for_each(|span| {
            let at = self.base.wrapping_add(span.offset);
            // SAFETY: the region's own bytes, and the file keeps what is in them.
            unsafe { sys::madvise(at, span.len, libc::MADV_DONTNEED) }
        })
    }
}

impl Mechanism for Uffd {
    fn raise(&self, span: Span, from: Access, to: Access) -> Result<(), Stop> {
        match (from, to) {
            (Access::None, _) => self.install(span, to == Access::Read || self.tracks()),
            _ => self.write_protect(span, to == Access::Read).map_err(Stop::Os),
        }
    }

    fn lower(&self, spans: &[Span], to: Access) -> Result<(), Errno> {
        match to {
            Access::None => self.drop_entries(spans),
            _ => spans.iter().try_for_each(|&span| {
                let mut span = span;
                if mutant!("vmprim-wrong-page") && span.offset >= span.len {
                    span.offset -= span.len;
                }
                self.write_protect(span, true)
            }),
        }
    }

    fn reinstall(&self, span: Span, level: Access) -> Result<(), Stop> {
        match (self.flavour, level) {
            (_, Access::None) => Ok(()),
            (Flavour::View, _) => self.install(span, level == Access::Read || self.tracks()),
            (Flavour::Anonymous, _) => self.write_protect(span, level == Access::Read).map_err(Stop::Os),
        }
    }

    fn create(&self, span: Span) -> Result<(), Errno> {
        self.file.map_or(Ok(()), |file| sys::allocate(file, span.offset, span.len))
    }

    fn creates(&self) -> bool {
        self.flavour == Flavour::View
    }

    fn tracks(&self) -> bool {
        self.pagemap.is_some()
    }

    fn scan(&self, span: Span, found: &mut dyn FnMut(Span)) -> Result<(), Errno> {
        let Some(pagemap) = &self.pagemap else { return Ok(()) };
        let mut runs = [uapi::Found::default(); FOUND];
        let range = self.range(span);
        let arms = !mutant!("vmprim-dirty-not-armed");
        let mut argument = uapi::Scan {
            size: size_of::<uapi::Scan>() as u64,
            flags: uapi::PM_SCAN_CHECK_WPASYNC | if arms { uapi::PM_SCAN_WP_MATCHING } else { 0 },
            start: range.start,
            end: range.start.wrapping_add(range.len),
            vec: runs.as_mut_ptr() as u64,
            vec_len: FOUND as u64,
            category_mask: uapi::PAGE_IS_WRITTEN,
            return_mask: uapi::PAGE_IS_WRITTEN,
            ..uapi::Scan::default()
        };
        while argument.start < argument.end {
            // SAFETY: the vector is valid for the call; the scan changes no content.
            match unsafe { sys::ioctl(pagemap.as_raw_fd(), uapi::PAGEMAP_SCAN, &mut argument) } {
                Err(Errno(libc::EINTR | libc::EAGAIN)) => continue,
                Err(errno) => return Err(errno),
                Ok(n) => {
                    for run in runs.iter().take(n) {
                        let offset = (run.start as usize).wrapping_sub(self.base);
                        found(Span { offset, len: run.end.wrapping_sub(run.start) as usize });
                    }
                }
            }
            if argument.walk_end <= argument.start {
                break;
            }
            argument.start = argument.walk_end;
        }
        Ok(())
    }

    fn wake(&self, span: Span) {
        if self.sleeps {
            let mut range = self.range(span);
            // SAFETY: it changes no memory. It fails only for what is not registered, where nobody sleeps.
            let _ = unsafe { sys::ioctl(self.fd.as_raw_fd(), uapi::UFFDIO_WAKE, &mut range) };
        }
    }

    fn faults(&self) -> Option<RawFd> {
        self.sleeps.then(|| self.fd.as_raw_fd())
    }
}

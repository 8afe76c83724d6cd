//! What a program's handlers are given, and what they answer.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    os::fd::{AsRawFd, BorrowedFd},
    sync::atomic::AtomicU32,
    time::Duration,
};

use crate::{
    access::{Access, Kind, PageNo, PageRange},
    alias::PageAlias,
    error::Errno,
    region::{Inner, RegionId},
    sys,
    thread::Block,
};

/// A fault that a handler is to resolve.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Fault {
    /// The page.
    pub page: PageNo,
    /// Bytes into the page; where the access began, or went on from the page before.
    pub offset: usize,
    /// Why the handler is called.
    pub kind: Kind,
    /// The page's level.
    pub level: Access,
    /// The least level that a grant must give.
    pub wanted: Access,
    /// The region.
    pub region: RegionId,
    /// The instruction that faulted; 0 where there is none, or it is not known.
    pub pc: usize,
}

/// What is to become of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// Raise the page to this level, at least what is wanted, and repeat the access.
    Grant(Access),
    /// Raise these pages, among them the one that faulted; others that are in use elsewhere, or in another group of
    /// 32, may be left as they are.
    GrantRange(PageRange, Access),
    /// Repeat the access as it is: somebody else sees to it.
    Retry,
    /// Of an inline handler: let the deferred handler decide.
    Defer,
    /// Go on at the place that `fault_or!` names for the instruction.
    Divert,
    /// Not for us: to the signal handler that was there before.
    Forward,
    /// Nothing can be done; the code is for the report.
    Fail(i32),
}

/// A handler that runs in the thread that faulted, as part of a signal handler.
///
/// The page stays locked until it returns: other threads that fault on it wait.
///
/// # Safety
/// The implementer promises that `fault`
/// - allocates nothing, takes no lock of std, prints nothing, and drops nothing that does;
/// - uses no thread-local storage;
/// - does not panic;
/// - touches no page of a region's view, unless that region's handlers never wait for this one;
/// - uses no more than 16 KiB of stack.
pub unsafe trait InlineHandler: Send + Sync {
    /// Resolve `fault`.
    fn fault(&self, fault: &Fault, safe: &SignalSafe<'_>) -> Resolution;
}

/// A handler that runs in a thread of its own and may lock, allocate and wait.
///
/// It must not touch a view's page that somebody waits for it to resolve: the page's bytes are at the alias. A panic
/// of it ends the process.
pub trait DeferredHandler: Send + Sync {
    /// Resolve `fault`; `page` is the page's bytes, where the region has an alias.
    fn fault(&self, fault: &Fault, page: Option<PageAlias<'_>>) -> Resolution;
}

impl<F: Fn(&Fault, Option<PageAlias<'_>>) -> Resolution + Send + Sync> DeferredHandler for F {
    fn fault(&self, fault: &Fault, page: Option<PageAlias<'_>>) -> Resolution {
        self(fault, page)
    }
}

/// An inline handler made of a function; see [`inline`].
#[derive(Debug)]
pub struct Inline<F>(F);

/// An inline handler made of a function.
///
/// # Safety
/// The function keeps the promises of [`InlineHandler`].
pub const unsafe fn inline<F>(f: F) -> Inline<F>
where
    F: Fn(&Fault, &SignalSafe<'_>) -> Resolution + Send + Sync,
{
    Inline(f)
}

// SAFETY: whoever called `inline` has promised it.
unsafe impl<F> InlineHandler for Inline<F>
where
    F: Fn(&Fault, &SignalSafe<'_>) -> Resolution + Send + Sync,
{
    fn fault(&self, fault: &Fault, safe: &SignalSafe<'_>) -> Resolution {
        self.0(fault, safe)
    }
}

/// What an inline handler may do. Only the library makes one.
#[derive(Debug)]
pub struct SignalSafe<'r> {
    pub(crate) region: &'r Inner,
    pub(crate) block: &'r Block,
}

impl SignalSafe<'_> {
    /// A page's bytes, whatever its level, where the region has an alias.
    pub fn alias(&self, page: PageNo) -> Option<PageAlias<'_>> {
        self.region.page_alias(page)
    }

    /// A page's level; a guess unless it is the page that faulted.
    pub fn level(&self, page: PageNo) -> Option<Access> {
        self.region.level(page)
    }

    /// Lower those of `pages` that are above `to`, idle and not pinned; how many were lowered. The page that
    /// faulted is not idle.
    pub fn try_evict(&self, pages: &[PageNo], to: Access) -> usize {
        self.region.try_lower(pages, to, &mut |_| ()).unwrap_or(0)
    }

    /// A free buffer of the region's pool; it is given back when it is dropped.
    pub fn take_buffer(&self) -> Option<crate::Buffer<'_>> {
        self.region.take_buffer()
    }

    /// Sleep while `word` is `seen`, at most for `limit`; may return early.
    pub fn park(&self, word: &AtomicU32, seen: u32, limit: Duration) {
        sys::futex_wait(word, seen, Some(limit));
    }

    /// Wake all that are parked on `word`.
    pub fn unpark(&self, word: &AtomicU32) {
        sys::futex_wake(word, i32::MAX);
    }

    /// Read from a file at `offset` into a page of the region, through the alias; how many bytes.
    ///
    /// # Errors
    /// What the kernel answered; EINVAL if there is no such page or no alias.
    pub fn pread(&self, file: BorrowedFd<'_>, page: PageNo, offset: u64) -> Result<usize, Errno> {
        let alias = self.region.page_alias(page).ok_or(Errno(libc::EINVAL))?;
        let offset = i64::try_from(offset).map_err(|_| Errno(libc::EINVAL))?;
        // SAFETY: the alias is mapped, writable and that long.
        done(unsafe { libc::pread(file.as_raw_fd(), alias.as_ptr().cast(), alias.len(), offset) })
    }

    /// Write a page of the region, read through the alias, to a file at `offset`; how many bytes.
    ///
    /// # Errors
    /// As [`pread`](Self::pread).
    pub fn pwrite(&self, file: BorrowedFd<'_>, page: PageNo, offset: u64) -> Result<usize, Errno> {
        let alias = self.region.page_alias(page).ok_or(Errno(libc::EINVAL))?;
        let offset = i64::try_from(offset).map_err(|_| Errno(libc::EINVAL))?;
        // SAFETY: the alias is mapped, readable and that long.
        done(unsafe { libc::pwrite(file.as_raw_fd(), alias.as_ptr().cast(), alias.len(), offset) })
    }

    /// Say a line on standard error, by one write; at most 400 bytes of it.
    pub fn say(&self, parts: &[&str]) {
        sys::say(parts);
    }

    /// How many faults of this thread are being handled, this one included; 0 if the handler was asked by `pin`.
    pub fn depth(&self) -> usize {
        // Relaxed: this thread's own.
        self.block.depth.load(std::sync::atomic::Ordering::Relaxed)
    }
}

fn done(result: isize) -> Result<usize, Errno> {
    usize::try_from(result).map_err(|_| Errno(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)))
}

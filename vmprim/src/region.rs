//! A region: its pages' state, the mechanism beneath, and who handles its faults.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::BTreeMap,
    marker::PhantomData,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    thread::JoinHandle,
};

use crate::{
    access::{Access, PageNo, PageRange},
    alias::PageAlias,
    budget, deferred, dispatch,
    error::{Backend, Error},
    group::{Group, PAGES, Sleep},
    handler::InlineHandler,
    mechanism::{Mechanism, Span},
    sys, table, worker,
};

/// A region's number, never used again in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RegionId(pub u64);

/// What becomes of a fault that its handler fails, or that the kernel refuses to resolve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFail {
    /// Say region, page, kind, place and code, and abort.
    #[default]
    Abort,
    /// Open the page as it is (zeros where there is no frame), mark the region, and go on: [`Region::check`] tells.
    Poison,
}

/// Waiting for pages' locks by futex.
#[derive(Debug)]
pub struct Futex;

impl Sleep for Futex {
    #[cfg(not(any(loom, shuttle)))]
    fn wait(&self, word: &sync::primitive::AtomicU32, seen: u32) {
        sys::futex_wait(std::ptr::from_ref(word), seen, None);
    }
    #[cfg(not(any(loom, shuttle)))]
    fn wake(&self, word: &sync::primitive::AtomicU32) {
        sys::futex_wake(std::ptr::from_ref(word), i32::MAX);
    }
    // Under a model the lock is explored with a sleep of the model's own; regions are only compiled.
    #[cfg(any(loom, shuttle))]
    fn wait(&self, _: &sync::primitive::AtomicU32, _: u32) {
        sync::primitive::spin_loop();
    }
    #[cfg(any(loom, shuttle))]
    fn wake(&self, _: &sync::primitive::AtomicU32) {}
}

/// What a region is made of; its handlers, workers and owner share it.
pub struct Inner {
    pub id: RegionId,
    pub base: usize,
    pub len: usize,
    /// A page is 1 << `shift` bytes.
    pub shift: u32,
    /// How many pages.
    pub pages: usize,
    pub groups: Box<[Group]>,
    pub mechanism: Box<dyn Mechanism>,
    /// What the mechanism says of itself, to ask without a call.
    pub splits: bool,
    pub tracks: bool,
    pub keeps_written: bool,
    pub resumes: bool,
    pub creates: bool,
    pub backend: Backend,
    /// The levels that there are, besides ReadWrite.
    pub has_none: bool,
    pub has_read: bool,
    pub inline: Option<Box<dyn InlineHandler>>,
    pub deferred: Option<deferred::Queue>,
    pub on_fail: OnFail,
    /// A code and [`Inner::POISONED`], or 0.
    pub poisoned: AtomicI64,
    /// A probe's: what the kernel refuses diverts.
    pub probing: bool,
    /// The process that made it.
    pub generation: u32,
    /// Pins of each page that has any.
    pub pins: Mutex<BTreeMap<usize, usize>>,
    pub pool: Option<crate::pool::Pool>,
    // In the order of their end: the mechanism's descriptors go before the mappings.
    pub alias: Option<sys::Mapping>,
    pub view: Option<sys::Mapping>,
    pub file: Option<OwnedFd>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Region")
            .field("id", &self.id)
            .field("base", &(self.base as *const u8))
            .field("pages", &self.pages)
            .field("page_size", &(1_usize << self.shift))
            .field("backend", &self.backend)
            .finish_non_exhaustive()
    }
}

impl Inner {
    pub const POISONED: i64 = 1 << 40;

    /// The page that an address of the region is in, and the bytes into it.
    #[inline]
    pub fn page_of(&self, address: usize) -> (PageNo, usize) {
        let offset = address.wrapping_sub(self.base);
        (PageNo(offset >> self.shift), offset & (1_usize << self.shift).wrapping_sub(1))
    }

    /// A page's group, and its bit there.
    #[inline]
    pub fn slot(&self, page: PageNo) -> Option<(&Group, u32)> {
        let group = self.groups.get(page.0 / PAGES)?;
        (page.0 < self.pages).then_some((group, 1 << (page.0 % PAGES)))
    }

    /// A page's level; a guess unless the caller holds the page.
    pub fn level(&self, page: PageNo) -> Option<Access> {
        self.slot(page).map(|(group, _)| group.level(page.0))
    }

    /// A range's bytes.
    #[inline]
    pub fn span(&self, range: PageRange) -> Span {
        Span { offset: range.start.0 << self.shift, len: range.count << self.shift }
    }

    /// A page's bytes at the alias.
    pub fn page_alias(&self, page: PageNo) -> Option<PageAlias<'_>> {
        let alias = self.alias.as_ref()?;
        (page.0 < self.pages).then(|| PageAlias {
            base: alias.address.wrapping_add(page.0 << self.shift) as *mut u8,
            len: 1 << self.shift,
            of: PhantomData,
        })
    }

    pub fn alias_bytes(&self) -> Result<(*mut u8, usize), Error> {
        self.check_process()?;
        let needs = crate::error::Needs::ALIAS;
        let alias = self.alias.as_ref().ok_or(Error::Lacks { backend: self.backend, needs })?;
        Ok((alias.address as *mut u8, self.len))
    }

    /// A range is in the region, and the caller in its process.
    pub fn check_range(&self, range: PageRange) -> Result<(), Error> {
        self.check_process()?;
        match range.start.0.checked_add(range.count) {
            Some(end) if end <= self.pages => Ok(()),
            _ => Err(Error::Range),
        }
    }

    pub fn check_process(&self) -> Result<(), Error> {
        if self.generation == dispatch::generation() { Ok(()) } else { Err(Error::Forked) }
    }

    /// Set the level of the pages of `mask` in a group, which the caller holds, and count what that does to mappings.
    #[inline]
    pub fn set_level(&self, at: usize, mask: u32, level: Access) {
        let Some(group) = self.groups.get(at) else { return };
        if !self.splits {
            group.set_level(mask, level);
            return;
        }
        // Neighbours in other groups: compared before and after.
        let outer = |other: usize, theirs: usize, ours: usize| {
            let touched = mask >> (ours % PAGES) & 1 != 0;
            let group_of = self.groups.get(other).filter(|_| touched);
            group_of.map_or(0, |other| {
                let theirs = other.level(theirs);
                i32::from(theirs != level) - i32::from(theirs != group.level(ours))
            })
        };
        let edges =
            outer(at.wrapping_sub(1), PAGES - 1, 0).wrapping_add(outer(at.wrapping_add(1), 0, PAGES - 1));
        budget::add(group.set_level(mask, level).wrapping_add(edges));
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.check_process().is_err() {
            // The parent's mappings were not copied; what is there now is somebody else's.
            std::mem::forget((self.view.take(), self.alias.take()));
        } else if self.view.is_none() && self.splits {
            // The program's own memory, which it gets back open, even if its workers were refused. Userfaultfd opens
            // it when its descriptor goes.
            // SAFETY: the program gave the memory to us, until now.
            let _ = unsafe { sys::mprotect(self.base, self.len, libc::PROT_READ | libc::PROT_WRITE) };
        }
    }
}

/// Memory whose accesses a program can forbid, see and undo, a page at a time.
///
/// Dropping it waits for handlers that run, and unmaps it: no pointer into it may be used afterwards.
#[derive(Debug)]
pub struct Region {
    inner: Arc<Inner>,
    workers: Vec<JoinHandle<()>>,
    /// Ends the reading of faults from the descriptor.
    stop: Option<OwnedFd>,
}

impl Region {
    /// A region over what was opened, with its workers; known to the signal handlers.
    pub(crate) fn start(inner: Inner, workers: usize) -> Result<Self, Error> {
        let inner = Arc::new(inner);
        let (workers, stop) = worker::start(&inner, workers)?;
        table::add(inner.base, inner.base.wrapping_add(inner.len), Arc::as_ptr(&inner));
        Ok(Self { inner, workers, stop })
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.inner
    }

    /// Its number.
    pub fn id(&self) -> RegionId {
        self.inner.id
    }
    /// Where the view starts.
    pub fn base(&self) -> *mut u8 {
        self.inner.base as *mut u8
    }
    /// Bytes of the view.
    pub fn len(&self) -> usize {
        self.inner.len
    }
    /// Never: a region has at least a page.
    pub fn is_empty(&self) -> bool {
        self.inner.len == 0
    }
    /// How many pages (protection units).
    pub fn pages(&self) -> usize {
        self.inner.pages
    }
    /// Bytes of a page.
    pub fn page_size(&self) -> usize {
        1 << self.inner.shift
    }
    /// The backend that was chosen.
    pub fn backend(&self) -> Backend {
        self.inner.backend
    }
    /// A page's level now; others may change it at any time.
    pub fn level(&self, page: PageNo) -> Option<Access> {
        self.inner.level(page)
    }
    /// The file behind a region of a memfd, for instance to punch holes into.
    pub fn file(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        use std::os::fd::AsFd;
        self.inner.file.as_ref().map(AsFd::as_fd)
    }

    /// Whether every fault so far was resolved.
    ///
    /// # Errors
    /// [`Error::Poisoned`] with the last code of a handler that failed.
    pub fn check(&self) -> Result<(), Error> {
        // Acquire: pairs with Release in `failed`.
        match self.inner.poisoned.load(Ordering::Acquire) {
            0 => Ok(()),
            marked => Err(Error::Poisoned { code: marked as i32 }),
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if self.inner.check_process().is_err() {
            // Workers did not come along, and the table is empty.
            self.workers.drain(..).for_each(std::mem::forget);
            return;
        }
        if self.inner.view.is_none() {
            // The program may go on using its memory meanwhile: no fault is to come once nobody is asked; see
            // dispatch.rs for those that came before.
            self.inner.open_for_good();
            table::give_back();
        }
        table::remove(Arc::as_ptr(&self.inner));
        if self.inner.resumes {
            self.inner.groups.iter().for_each(|group| group.await_resumed(u32::MAX));
        }
        worker::stop(&self.inner, self.stop.as_ref());
        for worker in self.workers.drain(..) {
            // A handler that panics ends the process.
            let _ = worker.join();
        }
    }
}

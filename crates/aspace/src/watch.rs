//! Pages whose faults are for somebody else to resolve: what `userfaultfd(2)` is made of.
//!
//! A mapping may have a [`Watch`]: who is told of accesses to its pages, and of which. Like all that a mapping says it is split
//! and joined with the mapping. What is said of single pages is their [`Level`](crate::Level): those of a watched mapping are
//! [`ReadWrite`](crate::Level::ReadWrite), or [`Read`](crate::Level::Read) if they are *protected*, which is that their
//! watcher is told of the next store. An access that the watcher is told of is [`Fault::Watched`](crate::Fault::Watched), and changes
//! nothing; [`Watched::told`] says what there is to tell.
//!
//! The watcher is any value of the kernel's; here it is kept and compared.

use alloc::sync::Arc;
use core::{any::Any, fmt, ptr};

use addr::{PAGE_BYTES, Page, PageRange};
use percpu::Unpinned;

use crate::{Access, Error, Mapping, Resident};

bitflags::bitflags! {
    /// Which accesses a watcher is told of.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct Modes: u8 {
        /// The page has no contents yet.
        const MISSING = 1;
        /// The page has no frame yet, and its object has one for it.
        const MINOR = 1 << 1;
        /// A store to a page that is protected.
        const PROTECT = 1 << 2;
        /// With `PROTECT`: nobody is told, but the page is protected no more. So it is known which were written.
        const ASYNC = 1 << 3;
        /// With `PROTECT`: pages without contents can be protected too, in whatever mapping.
        const UNPOPULATED = 1 << 4;
    }
}

/// Who is told, and of what.
#[derive(Clone)]
pub struct Watch {
    /// The watcher.
    pub by: Arc<dyn Any + Send + Sync>,
    /// What it is told of.
    pub modes: Modes,
}

impl Watch {
    /// Whether the watcher is `other`.
    pub fn is_by(&self, other: &Arc<dyn Any + Send + Sync>) -> bool {
        ptr::addr_eq(Arc::as_ptr(&self.by), Arc::as_ptr(other))
    }
}

impl PartialEq for Watch {
    fn eq(&self, other: &Self) -> bool {
        self.modes == other.modes && self.is_by(&other.by)
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Watch({:?})", self.modes)
    }
}

/// Why a watcher is told of an access.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Cause {
    /// [`Modes::MISSING`]
    Missing,
    /// [`Modes::MINOR`]
    Minor,
    /// [`Modes::PROTECT`]
    Protected,
}

/// What a page is filled with.
#[derive(Clone, Copy)]
pub enum Content<'a> {
    /// Zeros.
    Zeros,
    /// These bytes.
    Bytes(&'a [u8; PAGE_BYTES]),
    /// What its object has there already.
    Object,
    /// Nothing: they are lost. Whoever accesses the page, watched or not, finds it [poisoned](crate::Fault::Poisoned), until it gets
    /// others or is dropped.
    Lost,
}

/// Why a page was not filled. Nothing has changed then, but that the object may have a page more.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Unfilled {
    /// It isn't watched, or not any more: ENOENT.
    Unwatched,
    /// It has contents already: EEXIST. For zeros of a page's own and [`Content::Lost`] a marker, or protection, is some.
    There,
    /// It can't be filled like this, or not be protected: EINVAL.
    Invalid,
    /// Its object has no such page: EFAULT.
    Absent,
    /// ENOMEM.
    NoMemory,
}

/// Why the contents of a page did not go to another one ([`Watched::transfer`]). Nothing has changed then.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Untransferred {
    /// One of the two isn't mapped: ENOENT.
    Unmapped,
    /// They may not go from one mapping to the other: EINVAL.
    Refused,
    /// The target has contents, a marker, or protection: EEXIST.
    There,
    /// The source has no contents: ENOENT.
    Hole,
    /// The source has a marker, or protection, in the place of contents: EFAULT.
    Marked,
    /// Others have the source's frame too: EBUSY.
    Shared,
    /// ENOMEM.
    NoMemory,
}

/// Who looks at pages in a [`scan`](Watched::scan), and says of which that they are to be protected.
pub type Look<'a> = dyn FnMut(PageRange, Option<Resident>, bool) -> bool + 'a;

/// What an address space does whose mappings can be watched.
pub trait Watched {
    /// Ask of each mapping that has pages in `range` who watches these from now on: `Some(None)` is nobody. Protection ends
    /// where nobody watches, or not for stores. `Denied`, with nothing changed, if `ask` says `None`; `Exists` for pages with
    /// levels of their own ([`Managed`](crate::Managed)); `NoMapping` if nothing is mapped; `Invalid`; `NoMemory`.
    fn watch(
        &self,
        range: PageRange,
        ask: &dyn Fn(&Mapping) -> Option<Option<Watch>>,
        ctx: &Unpinned<'_>,
    ) -> Result<(), Error>;
    /// Protect all pages of `range` that are mapped, or no longer. Pages without contents of anonymous mappings stay as they are,
    /// unless [`Modes::UNPOPULATED`] is among the modes. When this returns, nobody stores to a page that is protected.
    ///
    /// Errors: `NoMapping` at the first mapping that isn't watched for stores, with what lies before done, or if nothing is
    /// mapped; `Invalid`; `NoMemory`.
    fn protect_pages(&self, range: PageRange, on: bool, ctx: &Unpinned<'_>) -> Result<(), Error>;
    /// Give page `at` contents, and protect it or not. May sleep.
    fn fill(&self, at: Page, with: Content<'_>, protected: bool, ctx: &Unpinned<'_>) -> Result<(), Unfilled>;
    /// Give the pages from `to` on the contents, and the frames, of the pages `from`, which have none any more; sources without
    /// contents are passed over if `holes` says so. How many pages are done with, from the first on: one at least; the next ones
    /// are for another call. When this returns, nobody stores to the contents by their old addresses, and none has before that which
    /// isn't in them.
    ///
    /// Both must be private anonymous memory, and the target watched; what else is asked of their mappings, `may` says, in this
    /// order. The target's pages are not protected. `from` and `to` are of user pages.
    fn transfer(
        &self,
        from: PageRange,
        to: Page,
        may: &dyn Fn(&Mapping, &Mapping) -> bool,
        holes: bool,
        ctx: &Unpinned<'_>,
    ) -> Result<u64, Untransferred>;
    /// Who would be told of `access` to page `at`, and why, at some moment of the call. May sleep.
    fn told(&self, at: Page, access: Access, ctx: &Unpinned<'_>) -> Option<(Watch, Cause)>;
    /// Call `f` for all pages of `range` that are mapped, ascending, for one, or for several in a row that are alike, with what they have
    /// (nothing if they have neither frame nor guard), and whether they are protected; and protect them if `f` says so and they are
    /// watched for stores. A store that comes before that finds the pages as `f` has; one that comes later finds them
    /// protected. `f` must not sleep nor use the address space. When this returns, nobody stores to a page that was protected. Who
    /// uses a page is not said.
    ///
    /// Errors: `NoMemory`, with what lies before done.
    fn scan(&self, range: PageRange, f: &mut Look<'_>, ctx: &Unpinned<'_>) -> Result<(), Error>;
}

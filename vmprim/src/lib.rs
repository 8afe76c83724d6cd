//! Virtual-memory primitives for user programs: the six of Appel and Li, "Virtual Memory Primitives for User
//! Programs" (ASPLOS 1991), on stock Linux, x86-64.
//!
//! | primitive | here | meaning |
//! | --- | --- | --- |
//! | TRAP | [`Builder::inline`], [`Builder::deferred`] | an access that a page's level forbids stops its thread before it has any effect; a handler decides; the access is repeated |
//! | PROT1 | [`Region::protect`] of a page | lower a page; on return no thread can complete an access above |
//! | PROTN | [`Region::protect`] of a range, [`Region::protect_many`] | the same for many, with few calls |
//! | UNPROT | a handler's [`Resolution::Grant`], [`Region::unprotect`] | raise a page |
//! | DIRTY | [`Region::take_dirty`] | which pages were written since the last time; read, cleared and re-armed as one step |
//! | MAP2 | [`Region::alias`] | a second mapping of the same frames, always writable |
//!
//! **Claim.** One interface over every mechanism that the kernel has for this, at the cost of the best one that is
//! there.
//!
//! **Idea.** A [`Region`] has a *view*, whose pages have levels (`None < Read < ReadWrite`), and, backed by a file,
//! an *alias*, which has none. What the kernel must be told is behind one seam ([`Backend`]). What the library
//! itself knows, a level and a lock a page, is the same for all, and it is the truth: outside of a page's lock the
//! kernel may be stricter than the level, never looser.
//!
//! - *Exclusion*: whoever acts on a page (a handler, `protect`, `take_dirty`, an eviction) holds its lock.
//! - *Raising*: contents through the alias, then the kernel, then the level, then the lock's release.
//! - *Lowering*: the kernel, which returns when no CPU translates more; then the level; then the release.
//! - *No waits in circles*: a handler holds the page that it is about, and only tries others.
//!
//! ```text
//! access.rs error.rs       levels, pages, sets; what can be asked for, and refusals
//! builder.rs probe.rs      a region from needs: which backend, and whether it works here
//! region.rs                what a region is; its end
//! group.rs                 32 pages: their locks and levels
//! dispatch.rs thread.rs    the signal handlers, chaining, and what a thread is inside of
//! table.rs                 from an address to its region, without locks
//! fault.rs                 TRAP and UNPROT
//! protect.rs pin.rs        PROT1, PROTN, UNPROT, DIRTY, eviction; pages for system calls
//! alias.rs                 MAP2 and views
//! pool.rs                  buffers for inline handlers
//! deferred.rs worker.rs    handlers in threads of their own
//! mechanism/               mprotect; userfaultfd and PAGEMAP_SCAN; Quire's managed pages
//! upcall.rs                faults without signals, on Quire
//! guard.rs fixup.rs        guard pages without mappings; accesses that go on elsewhere
//! uapi.rs sys.rs           Linux
//! ```
//!
//! A process that forks keeps its regions; the child has none of them, and faults there are plain ones.
//!
//! ```
//! use vmprim::{Access, Needs, Region, Resolution};
//!
//! // Pages that are filled when they are first touched, by a thread that may take its time.
//! let region = Region::builder(64 << 12)
//!     .need(Needs::NONE_LEVEL | Needs::ALIAS)
//!     .initial(Access::None)
//!     .deferred(
//!         |fault: &vmprim::Fault, page: Option<vmprim::PageAlias<'_>>| {
//!             if let Some(page) = page {
//!                 page.fill(fault.page.0 as u8);
//!             }
//!             Resolution::Grant(Access::ReadWrite)
//!         },
//!         1,
//!     )
//!     .build()?;
//! let view = region.view::<u8>()?;
//! assert_eq!((view.get(9 << 12), view.get(50 << 12)), (Some(9), Some(50)));
//! # Ok::<(), vmprim::Error>(())
//! ```
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod access;
mod alias;
mod budget;
mod builder;
mod deferred;
mod dispatch;
mod doctor;
mod error;
mod fault;
mod fixup;
#[doc(hidden)]
pub mod group;
pub mod guard;
mod handler;
mod mechanism;
mod pin;
mod pool;
mod probe;
mod protect;
mod region;
mod sys;
mod table;
mod thread;
#[allow(missing_docs, reason = "names and layouts are the kernel's")]
mod uapi;
mod upcall;
mod worker;

pub use access::{Access, Kind, PageNo, PageRange, PageSet, PageSize};
pub use alias::{Alias, Atomic, PageAlias, Pod, View};
pub use builder::{Backing, Builder};
pub use dispatch::claim_signals;
pub use doctor::{Report, doctor};
pub use error::{Backend, Errno, Error, Needs, Reason};
pub use handler::{DeferredHandler, Fault, Inline, InlineHandler, Resolution, SignalSafe, inline};
pub use pin::Pin;
pub use pool::Buffer;
pub use region::{OnFail, Region, RegionId};
pub use thread::{attach, spawn};

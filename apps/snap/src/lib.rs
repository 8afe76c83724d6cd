//! Concurrent checkpointing, after Appel and Li, "Virtual Memory Primitives for User Programs" (ASPLOS 1991), 3.3:
//! memory whose consistent image goes to disk while threads keep writing to it.
//!
//! **Claim.** [`Snap::checkpoint`] makes durable the memory as it was at one moment, the *cut*: at which no thread was
//! between [`Gate::enter`] and the end of its pass. Threads are stopped for the cut alone, not for the copying. What is
//! written is what changed since the last cut, and what is kept in memory meanwhile is bounded. [`Snap::open`] gives
//! back the newest image that is whole.
//!
//! **Idea, [`Mode::Trap`].** At the cut, all pages that were written since the last one, D, are closed to writing (most
//! of them a little before it, see `trap.rs`). Then a copier takes them one by one, while the first write to one that it hasn't reached traps: the
//! faulting thread copies the page itself, to a buffer from a pool, and goes on. See `pages.rs` for who may copy a page
//! when.
//! - *The image is the state at the cut.* A page of D is copied once, before its first write after the cut: it is
//!   protected in the cut, while nobody writes, and whoever opens it has copied it, or waited for who did. A page that
//!   is not in D is in an image before, and has not changed since, or it would be in D.
//! - *D is the pages that were opened.* All pages are closed at first, and are opened by the trap handler alone, which
//!   notes it. So a page that was written since the last cut is noted, and is in D.
//! - *Nobody waits in circles.* The copier touches no view and waits for the disk alone. A thread that traps waits, at
//!   worst, for the copier: until it has copied the page, or until it has given back a buffer. The state that goes with
//!   the image is taken before the pages are closed, so the copier's own thread does not trap.
//!
//! **Idea, [`Mode::PreCopy`].** No traps: the kernel says which pages were written ([`Region::take_dirty`]). They are
//! copied in rounds while threads run, until few are left; those are copied in the cut.
//! - *The image is the state at the cut.* The set of the cut has every page that was written since the round before
//!   took its set; it is copied while nobody writes. Of the other pages the last copy began after the last write had
//!   ended: a write that ended after a set was taken is in a later set, so the page is copied again. A later copy of a
//!   page replaces the earlier ones. Copies that a write has torn are replaced so too.
//!
//! **A checkpoint that fails** (a full disk) leaves the image before, and its set of pages is carried over: they are
//! part of the next one, whose parent is the last image that became durable.
//!
//! **Files.** A folder has `N.base`, all pages, and `N.delta`, those that changed since the epoch that it names as its
//! parent; see `format.rs`. A file has its name only once all of it is durable. Deltas that together exceed their base
//! are folded into a new base in the background, from the files alone (`fold.rs`); the base before it, and the deltas
//! between, are kept until the next fold, so that a damaged file costs as little as can be.
//!
//! ```
//! use snap::{Gate, Snap, SnapConfig};
//! use vmprim::Region;
//!
//! # let dir = tempfile::tempdir()?;
//! # let dir = dir.path();
//! let snap = Snap::open(dir, Region::builder(64 << 12), SnapConfig::default())?;
//! let gate = Gate::new();
//! {
//!     let _pass = gate.enter(); // around each operation, in each thread
//!     snap.region().view::<u64>()?.set(1000, 7);
//! }
//! let cut = snap.checkpoint(&gate, |state| state.extend(b"one operation"))?;
//! assert_eq!((cut.epoch, cut.pages), (1, 1));
//! drop(snap);
//!
//! let snap = Snap::open(dir, Region::builder(64 << 12), SnapConfig::default())?;
//! assert_eq!(snap.restored().unwrap().state, b"one operation");
//! assert_eq!(snap.region().view::<u64>()?.get(1000), Some(7));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! ```text
//! snap.rs            opening, checkpoints, what is known of the files
//! gate.rs            operations and cuts
//! trap.rs pages.rs   the trap handler and the copier; which of them copies a page
//! precopy.rs         rounds
//! format.rs write.rs read.rs    an image file
//! chain.rs fold.rs   images upon images; deltas into a base
//! disk.rs            a folder, or what a test has in its place
//! ```
//!
//! [`Region::take_dirty`]: vmprim::Region::take_dirty
// Under a model only `pages.rs` is explored, which the model includes.
#![cfg(all(target_os = "linux", target_arch = "x86_64", not(any(loom, shuttle))))]

mod chain;
mod disk;
mod error;
mod fold;
mod format;
mod gate;
mod pages;
mod precopy;
mod read;
mod snap;
mod trap;
mod write;

pub use chain::Image;
pub use disk::{Disk, Folder, Sink, Source};
pub use error::Error;
pub use format::{Codec, Header};
pub use gate::{Gate, Pass};
pub use snap::{Cut, Folds, Mode, Restored, Snap, SnapConfig};
pub use write::Writer;

//! Refcache: reference counts that many CPUs change without sharing a cache line.
//!
//! **Claim.** [`Domain::add`] writes one line of its own CPU's. An object is disposed of once, when no reference to it is left,
//! and within 4 epochs if one CPU made the last changes. Objects hold 32 bytes each, however many CPUs there are; a CPU holds
//! 16 bytes for each of its `WAYS` places. A weak reference becomes a strong one by one read, or one compare-and-swap
//! if the object is dying.
//!
//! **Idea.** A CPU holds changes back in a small cache, and *flushes* them to the objects' counts once in an epoch. Changes
//! commute, so counts may be late, and even wrong for a while: a count of 0 says little. It says enough when it has been 0, with
//! nobody changing it, through an epoch in which every CPU began and ended a flush. So an object whose count is found at 0
//! is queued for *review* two epochs later.
//!
//! **Source.** Clements, Kaashoek and Zeldovich, "RadixVM: Scalable Address Spaces for Multithreaded Applications", EuroSys
//! 2013, section 3.1; `docs/refcache.md` says what is different here.
//!
//! ```text
//! RefHead   state  type | QUEUED DIRTY LOCK      count   weak: its weak word   next: on a review list
//! Cache     ways   [object, change] x WAYS, direct-mapped, occupied ones chained     lists of objects to review
//! Tree      epoch, on a line of its own; arrivals combine in words of 8 CPUs
//! word      address | FROZEN DYING LINK LOCK     the client's, one for an object at most
//! ```
//!
//! **Rules.** Each has a test, and a model that fails without it (`spin/`); the names are those of the faults that are planted.
//!
//! * **Zeros are brought too** (`zero-skip`). A reference that goes from CPU to CPU, counted by the next before the last gives it
//!   up, can be a change of 0 in every flush. So a flush brings zeros, and any change that finds the count at 0 sets DIRTY.
//! * **Two epochs after a flush** (`review-early`). While a CPU flushes, the epoch is exactly its own, e. When it is e + 1, some
//!   CPUs have not begun to flush what they held back; when it is e + 2, all have brought it.
//! * **Three otherwise** (`conflict-early`, `requeue-local`, `requeue-epoch`). Outside a flush the epoch is the CPU's or one
//!   more, and may move on at any moment, as during a review. That is safe without a look at the shared line.
//! * **From the look to the change, pinned** (`unpinned-get`). Who got a reference weakly doesn't flush before it has counted it.
//! * **Only weak words raise a count from 0.** Every other reference is made of one that is kept meanwhile.
//! * **A word that is taken away leaves DIRTY** (`forget-revival`). Only in the word is it seen that somebody revived a queued
//!   object, so without the word its review can't be the last one.
//! * **Join, then read the epoch** (`read-then-join`); see `tree.rs`. Who isn't a member holds nothing back, and joins before
//!   it does, or looks at a weak word.
//!
//! **Why it holds.** Let o be queued at time q with count 0, for the epoch e + 2, where e is the epoch at q at least. Every
//! CPU's flush of the epoch e + 1 begins after q, and brings what the CPU held back at q; who left meanwhile has brought it, and
//! who joins held nothing. If any of these changes found the count at 0, or brought it back there, o is DIRTY. If it isn't, and the
//! count is 0, nothing was held back at q: the true count was 0 then. It can only have risen through the weak word, and
//! who does that clears DYING: either before the reviewer's compare-and-swap, which fails then, or not at all. A CPU that saw
//! the word before it was marked has its change brought by e + 2, like any other.
//!
//! **Order.** What is done with a reference comes before the object's end: the change that gives it up is brought under the
//! object's lock, which the reviewer takes. Who flushed in e + 1 sees the mark of e: arrivals are AcqRel up the tree, the epoch
//! is stored with Release and loaded with Acquire. What a CPU keeps is written by that CPU alone, against a
//! [`Pinned`](percpu::Pinned).
//!
//! ```
//! # #[cfg(not(loom))] {
//! use percpu::{Pinned, testing::Machine};
//! use refcache::{Budget, Counted, Domain, RefHead};
//! use std::{ptr::NonNull, sync::atomic::{AtomicBool, Ordering}};
//!
//! #[repr(C)]
//! struct Page {
//!     head: RefHead,
//!     written_back: AtomicBool,
//! }
//!
//! // SAFETY: the head comes first, and is made for this type.
//! unsafe impl Counted for Page {
//!     fn head(&self) -> &RefHead {
//!         &self.head
//!     }
//!     unsafe fn dispose(this: NonNull<Self>, _: &Pinned<'_>) {
//!         // SAFETY: the page outlives the domain.
//!         unsafe { this.as_ref() }.written_back.store(true, Ordering::Relaxed);
//!     }
//! }
//!
//! let page = Page { head: RefHead::new::<Page>(1), written_back: AtomicBool::new(false) };
//! let machine = Machine::new(4);
//! let domain = Domain::<64>::new(machine.cpus());
//! machine.run(|_, ctx| {
//!     for _ in 0..1000 {
//!         // SAFETY: the first reference is kept all the while; each gives up what it has counted.
//!         unsafe {
//!             domain.add(&page, 1, &ctx.pin());
//!             domain.add(&page, -1, &ctx.pin());
//!         }
//!         domain.work(&ctx.pin(), Budget::default());
//!     }
//! });
//! assert!(!page.written_back.load(Ordering::Relaxed));
//! machine.on(0, |ctx| {
//!     // SAFETY: the first reference is given up.
//!     unsafe { domain.add(&page, -1, &ctx.pin()) };
//! });
//! // SAFETY: the machine's threads have ended.
//! domain.settle(&unsafe { refcache::AllStopped::assume() });
//! assert!(page.written_back.load(Ordering::Relaxed));
//! # }
//! ```
#![no_std]

#[cfg(feature = "alloc")]
extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

mod cache;
mod domain;
mod head;
mod manager;
mod members;
mod primitive;
#[cfg(feature = "alloc")]
mod refs;
mod review;
mod stats;
#[cfg(feature = "std")]
mod threads;
mod tree;
pub mod word;

pub use domain::{AllStopped, Domain};
pub use head::{Counted, RefHead};
pub use manager::{Budget, MAX_DISPOSALS, Work};
#[cfg(feature = "alloc")]
pub use refs::{Place, Ref, Weak};
pub use stats::Stats;
#[cfg(feature = "std")]
pub use threads::{Shared, Threads, WeakShared};

pub(crate) use head::Obj;

//! Physical page frames: who owns them, where free ones are kept, and how a shared one is given up.
//!
//! **Claim.** Allocating or freeing one frame on its own CPU writes no cache line that another CPU uses, but for one
//! call in [`batch`](Stats::batch) or more, which refills or returns a batch. No heap is needed: all that is kept
//! about frames lies in one buffer that the caller gives.
//!
//! **Idea.** Free frames are in one of two places (Bonwick and Adams, "Magazines and Vmem", USENIX 2001, section 3):
//!
//! ```text
//!     CPU 0: [ stack of single frames ]   CPU 1: [ ... ]   CPU 2: [ ... ]      cached: own lines, no lock
//!                 | ^ refill, return: one batch, one lock
//!                 v |
//!     pool: one bit a frame, 1 = free; runs of 2^0..2^9 frames                 free: spin lock
//! ```
//!
//! A stack holds at most two batches, so after a refill or a return at least a batch of calls stay on the CPU.
//!
//! **Owners.** A frame that is not free belongs to [`OwnedFrame`] values, each of which is one *share*. The table of
//! page tables keeps shares as raw frame numbers ([`OwnedFrame::into_raw`]). Beside each frame stands `sharers`, the
//! number of its owners less one: zero for a frame with one owner *and* for a free one, so a frame that is never
//! shared never has its count written. Giving up a share is
//!
//! ```text
//!     loop: n = sharers                      // Acquire
//!           n == 0: last owner, free it      // nobody else can raise it: only an owner makes shares
//!           CAS(n, n - 1): done              // Release
//! ```
//!
//! **Running low.** When the pool holds no more than the reserve, a flag goes up, and from then on (a) the user's
//! allocations ([`Use::Anonymous`], [`Use::File`]) first give this CPU's cache back to the pool and fail if that
//! leaves it at the reserve; (b) page tables and stacks stop at half of it in the same way, and the kernel's heap may go
//! to zero, one frame at a time, so that no cache carries the reserve off; (c) every free gives its CPU's cache back. A CPU can't touch another's cache: an allocation can fail
//! while CPUs that neither allocate nor free hold up to two batches each, which together are at most an eighth of
//! all frames (or two frames a CPU, if that is more).
//!
//! **Accounting.** Three sources that know nothing of each other: `free` counts bits of the pool, `cached` adds up the
//! heights of the stacks, `owned` adds up signed per-CPU counters that allocation raises and freeing lowers. While
//! nobody allocates or frees, `free + cached + owned = total`.
//!
//! **Debug builds** fill free frames with a pattern and check it before handing one out, so a store through a stale
//! translation shows; and they mark every frame as free or owned by a use, so freeing twice or under a wrong name
//! shows.
//!
//! ```
//! # #[cfg(not(loom))] {
//! use frames::{Use, testing};
//! use percpu::testing::Machine;
//!
//! let machine = Machine::new(1);
//! let frames = testing::frames(256, machine.cpus());
//! machine.on(0, |ctx| {
//!     let pin = ctx.pin();
//!     let frame = frames.alloc(&pin, Use::Anonymous).expect("there are 256");
//!     let share = frames.share(&frame);
//!     assert!(frames.is_shared(frame.frame()));
//!     frames.free(&pin, frame);
//!     assert_eq!(frames.stats().owned[Use::Anonymous as usize], 1);
//!     frames.free(&pin, share);
//!     let s = frames.stats();
//!     assert_eq!((s.owned, s.free + s.cached), ([0; 5], s.total));
//! });
//! # }
//! ```
#![no_std]

#[cfg(feature = "testing")]
extern crate std;

mod cache;
mod frames;
mod layout;
mod marks;
mod owned;
mod pool;
#[cfg(feature = "testing")]
pub mod testing;
pub mod topology;

pub use frames::{Frames, Stats};
pub use owned::{OwnedFrame, OwnedRun};
pub use topology::{MAX_NODES, Node, NodeSet, Topology};

use addr::Frame;

/// The largest order of a run: 2^9 frames are 2 MiB.
pub const MAX_ORDER: u32 = 9;

/// The frames `start..end`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameRange {
    /// First frame.
    pub start: Frame,
    /// First frame after the range.
    pub end: Frame,
}

/// What a frame is used for; each use is counted apart.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Use {
    /// A user's anonymous page.
    Anonymous,
    /// A page of a file.
    File,
    /// A page table.
    PageTable,
    /// The kernel's own data.
    Kernel,
    /// A kernel stack.
    Stack,
}

impl Use {
    /// Number of uses.
    pub const COUNT: usize = 5;
    /// All uses, in the order of [`Stats::owned`].
    pub const ALL: [Use; Use::COUNT] = [Use::Anonymous, Use::File, Use::PageTable, Use::Kernel, Use::Stack];
}

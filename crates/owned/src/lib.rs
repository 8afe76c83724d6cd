//! Who owns page frames: shares, uses, and how many there are of each.
//!
//! Beneath is the allocator (`frames`), which knows only which frames are free. Here a frame that is not free belongs to
//! [`OwnedFrame`] values, each of which is one *share*. The table of page tables keeps shares as raw frame numbers
//! ([`OwnedFrame::into_raw`]). Beside each frame stands `sharers`, the number of its owners less one: zero for a frame with
//! one owner *and* for a free one, so a frame that is never shared never has its count written. Giving up a share is
//!
//! ```text
//!     loop: n = sharers                      // Acquire
//!           n == 0: last owner, free it      // nobody else can raise it: only an owner makes shares
//!           CAS(n, n - 1): done              // Release
//! ```
//!
//! **Lending.** Who owns a frame may [lend](Memory::lend) it, instead of sharing it, to users that it can find and send away: it
//! keeps its share until they have gone. What is lent is no share: taking it and giving it back writes nothing, so that any
//! number of CPUs do that to one frame and share no line. A frame that was lent counts as shared until it is free.
//!
//! **Uses.** Each frame is allocated for a [`Use`], which says whether its contents can be moved and how deep into the last
//! frames it may reach: users stop at the allocator's `min` watermark, page tables and stacks at half of it, the kernel's
//! heap at zero.
//!
//! **Accounting.** `owned` adds up signed per-CPU counters that allocation raises and freeing lowers here; `free` and
//! `cached` are the allocator's. While nobody allocates or frees, `free + cached + owned = total`, from sources that know
//! nothing of each other.
//!
//! **Debug builds** fill free frames with a pattern and check it before handing one out, so a store through a stale
//! translation shows; and they mark every frame as free or owned by a use, so freeing twice or under a wrong name
//! shows.
//!
//! ```
//! # #[cfg(not(loom))] {
//! use owned::{Use, testing};
//! use percpu::testing::Machine;
//!
//! let machine = Machine::new(1);
//! let memory = testing::memory(256, machine.cpus());
//! machine.on(0, |ctx| {
//!     let pin = ctx.pin();
//!     let frame = memory.alloc(&pin, Use::Anonymous).expect("there are 256");
//!     let share = memory.share(&frame);
//!     assert!(memory.is_shared(frame.frame()));
//!     memory.free(&pin, frame);
//!     assert_eq!(memory.stats().owned[Use::Anonymous as usize], 1);
//!     memory.free(&pin, share);
//!     let s = memory.stats();
//!     assert_eq!((s.owned, s.free + s.cached), ([0; 5], s.total));
//! });
//! # }
//! ```
#![no_std]

#[cfg(feature = "testing")]
extern crate std;

mod marks;
mod memory;
mod owned;
#[cfg(feature = "testing")]
pub mod testing;

#[cfg(feature = "testing")]
pub use memory::Watcher;
pub use memory::{Central, Memory, Stats};
pub use owned::{OwnedFrame, OwnedRun};

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
    /// A page of a file, in the hands of who has it [lent](Memory::lend): no share, and nothing is allocated for it.
    // A slot of an address space knows it by two bits.
    Lent = 6,
}

impl Use {
    /// Number of uses that frames are allocated for.
    pub const COUNT: usize = 5;
    /// These, in the order of [`Stats::owned`].
    pub const ALL: [Use; Use::COUNT] = [Use::Anonymous, Use::File, Use::PageTable, Use::Kernel, Use::Stack];
}

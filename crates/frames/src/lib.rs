//! Page frames: an allocator for each CPU, balanced, aware of nodes, with algorithms to choose from.
//!
//! **Claim.** Allocating and freeing frames on one CPU takes no lock, no atomic read-modify-write and no cache line that
//! another CPU writes, but once for each row of up to 64 frames. Frames freed anywhere go back to where they belong;
//! nobody goes without while any CPU in reach has a frame; and wholly free blocks of 2 MiB stay so as long as they can.
//!
//! **Source.** The scheme is that of Tian, Waddington and Kuang, "A Scalable Physical Memory Allocation Scheme for L4
//! Microkernel", COMPSAC 2012: one allocator per CPU over a region of its own, unused memory published and balanced in
//! batches, the algorithm chosen by the program, near nodes first. How frames are kept is ours.
//!
//! **Words.** A *row* is 64 frames, a *block* 8 rows or 2 MiB, an *extent* 16 blocks whose words share a cache line, an
//! *arena* 512 blocks or 1 GiB. A *run* is 2^order aligned frames in a caller's hands.
//!
//! ```text
//!     rows    [u64 ...]   1 bit a frame; 1: not to be had (owned, kept by a CPU, or no memory)
//!     words   [u32 ...]   one a block: how many are free, whose it is, whether somebody holds it
//!     CPU     lease [row, mask] a class     frames leave by tzcnt, and come back by or
//!             accumulators [row, mask] x 8  freed frames of other rows, on their way home
//! ```
//!
//! A CPU *holds* a block, leases a row of it by taking the row's free frames out of the map at once, and then serves up to
//! 64 requests from a word of its own.
//!
//! **Invariants.**
//!
//! * **I1**, promise: in a block in service the count is at most the number of clear bits. Taking lowers the count first
//!   and then sets bits; giving clears bits first and then raises the count.
//! * **I2**, single setter: a bit goes from 0 to 1 only by the CPU that holds the block. It goes from 1 to 0 by whoever
//!   owns the frame. The holder alone lowers the count.
//! * **I3**: while a block is held, others only raise its count; every other field is the holder's.
//! * **I4**: claiming a block whole, taking it over, isolating it: by a compare-and-swap of the whole word, of a block that
//!   nobody holds. Clear bits = count + promised and not yet set + cleared and not yet counted, and there are 512 bits; so
//!   at a count of 512 nothing is in flight, and the rows need not be looked at.
//! * **I5**: rows and words change by read-modify-writes only. A plain store would cut the release sequence that carries
//!   what other CPUs did to the frames before they freed them.
//! * **I6**: hints of where to look may be wrong in either direction. The word decides, and every word is looked at before
//!   anybody goes without.
//!
//! **Order.** What the last owner did to a frame comes before what the next one does: the owner clears the bit with
//! Release, the next holder sets it with Acquire; a read-modify-write reads the newest value, so it reads the clearing of
//! just these bits, or a later one in the same release sequence. Whole blocks go by the word: raising the count is a
//! Release, claiming is an Acquire of a count to which every one of the 512 frames has contributed, and the sequence isn't
//! cut (I5). The same pair on `hold` makes a new holder see all bits that the last one set, without which it might take a
//! frame twice. What a CPU keeps for itself needs no order: it is written by one CPU, whose threads its scheduler orders.
//!
//! **The one rule.** No frame is handed out while a translation to it may be used: the allocator gets frames when they are
//! free and not before, knows nothing of translations, and never reads or writes a free frame except to zero it. Frames
//! whose shootdown isn't finished can wait in [quarantine](Frames::free_pending).
//!
//! ```
//! # #[cfg(not(loom))] {
//! use frames::{Req, testing};
//! use percpu::testing::Machine;
//!
//! let machine = Machine::new(2);
//! let frames = testing::frames(1 << 18, machine.cpus()); // a GiB
//! machine.on(0, |ctx| {
//!     let pin = ctx.pin();
//!     let page = frames.alloc(&pin, Req::default())?;
//!     let large = frames.alloc(&pin, Req::order(9))?;
//!     assert!(large.first().number() % 512 == 0);
//!     assert_eq!(frames.stats().owned, 1 + 512);
//!     frames.free(&pin, page).expect("it is ours");
//!     frames.free(&pin, large).expect("it is ours");
//!     let s = frames.stats();
//!     assert_eq!((s.owned, s.free + s.cached), (0, s.total));
//!     Ok::<(), frames::AllocError>(())
//! })?;
//! # }
//! # Ok::<(), frames::AllocError>(())
//! ```
#![no_std]

#[cfg(any(feature = "testing", loom))]
extern crate std;

mod algo;
mod bulk;
mod cpu;
mod frames;
mod global;
mod huge;
mod lane;
mod layout;
mod lease;
mod map;
mod online;
mod pressure;
mod primitive;
mod quarantine;
mod recover;
mod request;
mod select;
mod stats;
#[cfg(feature = "testing")]
pub mod testing;
pub mod topology;
mod word;
mod zero;

pub use algo::Refused;
pub use bulk::RunVec;
pub use frames::{Clear, Config, Frames};
pub use global::Global;
pub use huge::Runs;
pub use lane::{SwitchError, SwitchReport};
pub use online::Busy;
pub use pressure::{Pressure, Reclaim, Watermarks};
pub use quarantine::{Full, Gen, RING};
pub use request::{AlgoKind, AllocError, Class, Ctx, Fill, FrameRange, FreeError, Place, Req, Run};
pub use stats::{CpuStats, Recount, Stats};
pub use topology::{MAX_NODES, Node, NodeSet, Topology};

/// Frames in a block: 2 MiB.
pub const FRAMES_PER_BLOCK: u32 = 512;
/// The order of a block.
pub const HUGE_ORDER: u32 = 9;
/// The largest order of a run: 2^18 frames are 1 GiB.
pub const MAX_ORDER: u32 = 18;

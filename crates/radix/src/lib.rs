//! A radix tree of ranges, in whose slots are the locks: the state of a page lives in one slot, and whoever holds the slot
//! holds the page.
//!
//! **Claim.** Operations on ranges that don't overlap write no common memory; operations on ranges that do are ordered,
//! each as a whole; lookups take no lock and write nothing; and what is in the tree costs memory by the number of
//! different spans, not of keys.
//!
//! **Idea** (Clements, Kaashoek and Zeldovich, "RadixVM: Scalable Address Spaces for Multithreaded Applications", EuroSys
//! 2013). A slot at any level may have a value for its whole span, *folded*, so a large mapping is few words. A bit of the
//! slot is its lock. To lock a range is to lock the slots that its keys are in, in ascending order; a folded slot that
//! sticks out is first *narrowed*: replaced by a node in which only the wanted part is locked. Nodes that have become
//! empty are found by [`refcache`] and taken out of the tree; memory is freed by [`rcu`], since lookups may be inside.
//!
//! ```text
//! root    [ link | value, folded | EMPTY | .. ]              a slot: 8 bytes, see `word`
//!            |
//! ..      [ EMPTY | link | .. ]                              a node: a line of head, and its slots, see `node`
//!                     |
//! leaf    [ value | value, LOCK | EMPTY | .. ]
//! ```
//!
//! **Invariants**, and where each is argued:
//! * I1. The bottommost slots divide the keys among them, and a key has one holder at most (`lock`, `narrow`, `guard`).
//! * I2. Who waits holds lower keys only; nobody who holds waits for anything but slots (`lock`; `freeze` for its wait).
//! * I3. A node's count is its used slots, and holds; a node in which a slot is locked is in the tree (`lock`, `node`).
//! * I4. A link is changed by its parent slot's lock (value to link), by Refcache (link to EMPTY, if nobody has revived the
//!   node), or by one who has seized it with FROZEN and LOCK (link to value, or to a frozen link); in each case by one
//!   store or swap, so that it is a value or a whole node at any time (`narrow`, `node`, `guard`, `freeze`).
//! * I5. A node that is replaced is DEAD in all slots after its place has the new value (`guard`).
//! * I6. No slot of a shared frozen node changes; and who looks something up answers only by a slot of a node that his link
//!   still names (`freeze`).
//! * I7. Memory for narrowing is there before the first lock; if the list of locks can't grow, all is unlocked and no key's
//!   value has changed (`reserve`, `record`).
//!
//! **Parts.** [`Tree`] with [`Space`] is what an address space is made of: [`page`] has the format and the shape for it,
//! [`Descriptors`] what slots have in common. [`RadixMap`] is a map with all that around it, for programs of a host.
//! `docs/radix.md` has the figures.
#![no_std]

extern crate alloc;
#[cfg(feature = "testing")]
extern crate std;

mod descriptors;
mod freeze;
mod guard;
mod lock;
mod map;
mod narrow;
mod node;
pub mod page;
mod record;
mod refine;
mod reserve;
mod slot;
mod space;
#[cfg(feature = "testing")]
pub mod testing;
mod tree;
mod word;

pub use descriptors::{CONSTANTS, Descriptors};
pub use freeze::Given;
pub use guard::{RangeGuard, Span, Taken};
pub use lock::Mode;
pub use map::{Here, RadixMap, Value};
pub use reserve::Reserve;
pub use slot::SlotGuard;
pub use space::{Error, MAX_LEVELS, Refs, Space};
pub use tree::{Found, Section, Tree};

//! Read-copy-update (McKenney and Slingwine, "Read-Copy Update: Using Execution History to Solve Concurrency Problems",
//! 1998).
//!
//! **Claim.** Readers write nothing that another CPU reads and wait for nobody; whoever changes a structure publishes
//! with one store, and what was unlinked is freed after every reader that could have found it is gone.
//!
//! | flavour | a section | for |
//! | --- | --- | --- |
//! | [`kernel::Domain`] | no instruction: a borrow of the [`Pinned`](percpu::Pinned) that its thread holds anyway | a kernel, whose threads are not preempted while pinned |
//! | `Qsbr` (feature `std`) | no instruction | threads of a program that say now and then that they are in no section |
//! | `user::Domain`, `read()` (feature `std`) | two stores to a line of the thread's own | any thread of a program |
//!
//! Who has to sleep with what it found, or wants it to end at once when it is given up, is [lent](lend) it instead.
//!
//! [`Ptr`] is what readers load from, and [`ptr`] says which mistakes don't compile. `docs/rcu.md` says what it is good for.
#![no_std]

extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

pub mod kernel;
pub mod lend;
mod list;
pub mod ptr;
#[cfg(feature = "std")]
pub mod qsbr;
#[cfg(feature = "std")]
pub mod user;

pub use list::{Free, Head, Retired};
pub use ptr::{Global, Link, Ptr, Section};
#[cfg(feature = "std")]
pub use qsbr::Qsbr;
#[cfg(all(feature = "std", not(any(loom, shuttle))))]
pub use user::{barrier, call, free, read, register, synchronize};

//! Read-copy-update (McKenney and Slingwine, "Read-Copy Update: Using Execution History to Solve Concurrency Problems",
//! 1998).
//!
//! **Claim.** Readers write nothing that another CPU reads and wait for nobody; whoever changes a structure publishes
//! with one store, and what was unlinked is freed after every reader that could have found it is gone.
//!
//! [`kernel::Domain`] is the flavour for a kernel, whose threads are not preempted while pinned: a section is a borrow
//! of the [`Pinned`](percpu::Pinned) that its thread holds anyway, and costs no instruction.
#![no_std]

extern crate alloc;

pub mod kernel;
mod list;

pub use list::{Free, Head, Retired};

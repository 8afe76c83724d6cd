//! Reference counts that many CPUs change without sharing a cache line.
#![no_std]

#[cfg(feature = "alloc")]
extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

mod cache;
mod domain;
mod head;
mod primitive;
#[cfg(feature = "alloc")]
mod refs;
mod review;
mod stats;
#[cfg(feature = "std")]
mod threads;
mod tree;
pub mod word;

pub use domain::{AllStopped, Budget, Domain, MAX_DISPOSALS, Work};
pub use head::{Counted, RefHead};
#[cfg(feature = "alloc")]
pub use refs::{Place, Ref, Weak};
pub use stats::Stats;
#[cfg(feature = "std")]
pub use threads::{Shared, Threads, WeakShared};

pub(crate) use head::Obj;

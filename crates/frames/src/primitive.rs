//! The atomics that the allocator is written with. Under loom they are loom's only in the allocator's own models (feature
//! `model`): the models of the crates above take the allocator for granted, and would be too large with it.

#[cfg(all(loom, not(feature = "model")))]
pub(crate) use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering, fence};

#[cfg(not(all(loom, not(feature = "model"))))]
pub(crate) use sync::primitive::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering, fence};

pub(crate) use sync::primitive::{UnsafeCell, spin_loop};

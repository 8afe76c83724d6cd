//! The atomics and cells that the protocol is written with: core's, loom's or shuttle's.

pub(crate) use sync::primitive::{AtomicBool, AtomicU64, Ordering, UnsafeCell};

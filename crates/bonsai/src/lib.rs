//! The Bonsai tree: a balanced search tree that is read without a lock while one writer changes it.
#![no_std]

extern crate alloc;

mod check;
mod domain;
mod entry;
mod gap;
mod map;
mod node;
mod plan;
mod pool;
mod region;
mod span;
mod stack;
mod tree;
mod writer;

pub use check::Shape;
pub use domain::Rcu;
pub use entry::Entry;
pub use gap::Fit;
pub use map::BonsaiMap;
pub use pool::{Heap, Memory, PAGE, Pool};
pub use region::RegionTree;
pub use span::{Point, Region, Span};
pub use tree::{Iter, Reader, Tree};
pub use writer::{Counts, Error, Refused, Removed, Writer};

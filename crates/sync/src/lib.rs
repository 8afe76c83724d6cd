//! Locks, by how long they are held and where they live.
//!
//! | lock | waiting | for |
//! | --- | --- | --- |
//! | [`SpinLock`] | spins | a few dozen instructions, never across a sleep |
//! | [`BitLock`] | spins | the same, when the lock must fit into one bit of a word that exists anyway |
//! | [`SeqLock`] | writers spin, readers look again | a few words that many read together and some change |
//! | [`RwLock`] | sleeps, first come first served | whole operations, which may themselves sleep |
//! | [`Biased`] | as `RwLock`; a writer also spins for readers | look-ups by many CPUs of what seldom changes |
//!
//! All are written over [`primitive`], so the same source runs under loom. [`mutant!`] plants the faults that
//! the tests must catch, [`probe!`] marks what an emulator's tracer counts, and [`pause!`] where a test has other threads go on.
//!
//! ```
//! use sync::SpinLock;
//!
//! static TOTAL: SpinLock<u64> = SpinLock::new(0);
//! *TOTAL.lock() += 2;
//! assert_eq!(*TOTAL.lock(), 2);
//! ```
#![no_std]

extern crate alloc;
#[cfg(any(feature = "mutants", feature = "pause", feature = "testing"))]
extern crate std;

mod biased;
mod bit;
pub mod mutant;
pub mod pause;
pub mod primitive;
pub mod probe;
mod rwlock;
mod seq;
mod spin;

pub use biased::{Biased, BiasedReadGuard, READS, Readers};
pub use bit::BitLock;
pub use rwlock::{ReadGuard, RwLock, WriteGuard};
pub use seq::SeqLock;
pub use spin::{SpinGuard, SpinLock};

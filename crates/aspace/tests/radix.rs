//! All tests of address spaces again, for the radix tree with one page table.
#![cfg(not(loom))]
#![allow(clippy::duplicate_mod, reason = "each of the programs has the machine as a module")]

mod bounds;
#[path = "concurrent.rs"]
mod concurrent;
#[path = "defects.rs"]
mod defects;
#[path = "lending.rs"]
mod lending;
#[path = "memory.rs"]
mod memory;
#[path = "policy.rs"]
mod policy;
#[path = "races.rs"]
mod races;
mod radix_only;
#[path = "sequences.rs"]
mod sequences;
#[path = "tables.rs"]
mod tables;

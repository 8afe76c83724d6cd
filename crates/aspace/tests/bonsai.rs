//! All tests of address spaces again, for the Bonsai tree.
#![cfg(not(loom))]
#![allow(clippy::duplicate_mod, reason = "each of the programs has the machine as a module")]

mod bonsai_only;
#[path = "concurrent.rs"]
mod concurrent;
#[path = "defects.rs"]
mod defects;
#[path = "lending.rs"]
mod lending;
#[path = "locked.rs"]
mod locked;
#[path = "memory.rs"]
mod memory;
#[path = "policy.rs"]
mod policy;
#[path = "races.rs"]
mod races;
#[path = "sequences.rs"]
mod sequences;
#[path = "tables.rs"]
mod tables;

//! Tests of address spaces again, for the Bonsai tree with leaves, which it has else where there are thousands of mappings.
#![cfg(not(loom))]
#![allow(clippy::duplicate_mod, reason = "each of the programs has the machine as a module")]

#[path = "concurrent.rs"]
mod concurrent;
#[path = "defects.rs"]
mod defects;
#[path = "memory.rs"]
mod memory;
#[path = "races.rs"]
mod races;
#[path = "sequences.rs"]
mod sequences;
#[path = "tables.rs"]
mod tables;

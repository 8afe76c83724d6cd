//! A key-value server whose memory is checkpointed while it serves.
//!
//! Keys and values, the table that finds them and the allocator's records are in one region (`pheap`), which `snap`
//! makes images of. So an image needs no serialisation, and a restart is the image put back into memory. What was set
//! since the last checkpoint is lost by a crash, and nothing of what was set before.
//!
//! - *An operation is whole or not there.* One that writes holds a [`snap::Pass`] throughout, so no cut is within it.
//! - *Reads need none*: they change nothing, and go on during a cut.
//! - *Order.* A shard of the table has a lock; an operation is done when it releases it, before its pass ends.
//!
//! ```text
//! table.rs               the table in the heap
//! keeper.rs fork.rs      what makes images: snap by traps or rounds, or a forked child, to compare with
//! resp.rs server.rs      the protocol; connections
//! workload.rs            operations that a seed repeats, and the model of what they leave
//! load.rs histogram.rs   a driver inside of the process; its latencies
//! bench.rs               modes side by side
//! redis.rs               Redis's checkpoint, for reference
//! demo.rs glob.rs        real records, and a kill; patterns of SCAN
//! ```
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

pub mod bench;
pub mod demo;
mod fork;
mod glob;
pub mod histogram;
pub mod keeper;
pub mod load;
pub mod redis;
pub mod resp;
pub mod server;
pub mod table;
pub mod workload;

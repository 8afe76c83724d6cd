//! What /proc says of page frames: `buddyinfo` as Linux has it, and `frames`, a line for each node and each CPU.

use alloc::string::String;
use core::fmt::Write;

use frames::{CpuStats, Pressure};

use crate::memory;

/// Free runs that are not part of a larger one, by order from 0 to 18, a line a node.
pub fn buddyinfo() -> String {
    let allocator = memory::frames().allocator();
    let mut text = String::new();
    for node in allocator.topology().all().iter() {
        let _ = write!(text, "Node {}, zone   Normal ", node.index());
        allocator.free_runs(node).iter().for_each(|n| {
            let _ = write!(text, "{n:>6} ");
        });
        text.push('\n');
    }
    text
}

/// One CPU's numbers by name, as they are shown everywhere.
pub fn columns(s: &CpuStats) -> [(&'static str, u64); 16] {
    [
        ("unused", s.unused),
        ("cached", s.cached),
        ("low", s.low),
        ("high", s.high),
        ("refills", s.refills),
        ("flushes", s.flushes),
        ("remote_flushes", s.remote_flushes),
        ("transfers", s.transfers),
        ("blocks_taken", s.blocks_taken),
        ("blocks_given", s.blocks_given),
        ("away", s.away),
        ("mixed", s.mixed),
        ("zeroed_ahead", s.zeroed_ahead),
        ("zeroed_hits", s.zeroed_hits),
        ("switches", s.switches),
        ("drains", s.drains),
    ]
}

/// All frames, then each node, then each CPU: `key value` pairs, counts in frames.
pub fn frames() -> String {
    let memory = memory::frames();
    let (allocator, s) = (memory.allocator(), memory.stats());
    let mut text = String::new();
    let owned: u64 = s.owned.iter().sum();
    let _ = writeln!(text, "total {} free {} cached {} owned {owned}", s.total, s.free, s.cached);
    for node in allocator.topology().all().iter() {
        let ((total, free), marks) = (allocator.node_stats(node), allocator.watermarks(node));
        let pressure = match allocator.pressure(node) {
            Pressure::None => "none",
            Pressure::Low => "low",
            Pressure::Min => "min",
        };
        let _ = writeln!(
            text,
            "node {} total {total} free {free} whole_blocks {} min {} high {} pressure {pressure}",
            node.index(),
            allocator.free_blocks(node),
            marks.min,
            marks.high,
        );
    }
    for cpu in allocator.everyone().iter() {
        let stats = allocator.cpu_stats(cpu);
        let _ = write!(text, "cpu {} algo {}", cpu.index(), stats.algo.name());
        columns(&stats).iter().for_each(|(name, n)| {
            let _ = write!(text, " {name} {n}");
        });
        text.push('\n');
    }
    text
}

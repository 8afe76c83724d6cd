//! What /proc says of page frames: `buddyinfo` as Linux has it; `frames`, a line for each node and each CPU; and of each
//! process `N/frames`, in which it chooses.

use alloc::{format, string::String};
use core::{fmt::Write, str};

use aspace::Policy;
use frames::{CpuStats, Pressure};

use super::{Result, proc_numa::words};
use crate::{algo, errno::Errno, memory, process::Process, task};

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
        let (now, default) = (stats.algo.name(), algo::default_of(cpu).name());
        let _ = write!(text, "cpu {} algo {now} default {default}", cpu.index());
        columns(&stats).iter().for_each(|(name, n)| {
            let _ = write!(text, " {name} {n}");
        });
        text.push('\n');
    }
    text
}

/// /proc/N/frames: what the process chose, and where its thread wants memory.
pub fn of_process(process: &Process, policy: &Policy) -> String {
    format!("algo {}\nplace {}\n", algo::name(process.frames.get()), words(policy))
}

/// Do what lines like those of [`of_process`] say, all or nothing. The place is set by set_mempolicy(2), so here it can only
/// be said as it is.
///
/// Errors: EPERM for another process than the caller's, EINVAL, ENOMEM.
pub fn set_process(process: &Process, policy: &Policy, bytes: &[u8]) -> Result<()> {
    if !core::ptr::eq(process, &*task::current().process) {
        return Err(Errno::EPERM);
    }
    let (mut choice, mut place) = (None, None);
    for line in str::from_utf8(bytes).map_err(|_| Errno::EINVAL)?.lines() {
        match line.split_once(' ') {
            Some(("algo", name)) if choice.is_none() => choice = Some(algo::by_name(name.trim())?),
            Some(("place", place_now)) if place.is_none() => place = Some(place_now.trim()),
            _ => return Err(Errno::EINVAL),
        }
    }
    if place.is_some_and(|place| place != words(policy)) {
        return Err(Errno::EINVAL);
    }
    choice.map_or(Ok(()), algo::choose)
}

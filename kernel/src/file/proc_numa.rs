//! /proc/N/numa_maps: of each mapping, its policy and on which nodes its pages are.

use alloc::{format, string::String, vec::Vec};
use core::fmt::Write;

use addr::{Page, PageRange, USER_END_PAGE};
use aspace::{Backing, Label, Mode, Policy};
use frames::MAX_NODES;
use owned::Use;

use super::{
    Result,
    proc::Text,
    proc_memory::heap,
    proc_pid::ranges,
    proc_users::{self, Piece},
};
use crate::{
    errno::Errno,
    hw::numa,
    process::Mm,
    syscall::mm::numa::{MPOL_F_NUMA_BALANCING, MPOL_F_RELATIVE_NODES, MPOL_F_STATIC_NODES},
};

/// A policy in words: its mode, flags after `=`, nodes after `:`.
pub fn words(policy: &Policy) -> String {
    let mut out = String::from(match policy.mode {
        Mode::Default => "default",
        Mode::Local => "local",
        Mode::Preferred => "prefer",
        Mode::PreferredMany => "prefer (many)",
        Mode::Bind => "bind",
        Mode::Interleave => "interleave",
        Mode::WeightedInterleave => "weighted interleave",
    });
    let mut sign = '=';
    for (flag, name) in [
        (MPOL_F_STATIC_NODES, "static"),
        (MPOL_F_RELATIVE_NODES, "relative"),
        (MPOL_F_NUMA_BALANCING, "balancing"),
    ] {
        if policy.flags & flag != 0 {
            out.push(core::mem::replace(&mut sign, '|'));
            out += name;
        }
    }
    if !policy.nodes.is_empty() {
        out.push(':');
        out += &ranges(policy.nodes.iter().map(frames::Node::index));
    }
    out
}

/// A mapping's pages.
#[derive(Clone)]
struct Tally {
    pages: u64,
    anonymous: u64,
    dirty: u64,
    /// The most that one of them is mapped.
    mapped: u64,
    nodes: [u64; MAX_NODES],
}

impl Tally {
    const NONE: Tally = Tally { pages: 0, anonymous: 0, dirty: 0, mapped: 0, nodes: [0; MAX_NODES] };

    /// What is said of them; nothing if there are none.
    fn words(&self) -> String {
        let mut out = String::new();
        if self.pages == 0 {
            return out;
        }
        let counts = [
            ("anon", self.anonymous, self.anonymous > 0),
            ("dirty", self.dirty, self.dirty > 0),
            ("mapped", self.pages, self.pages != self.anonymous && self.pages != self.dirty),
            ("mapmax", self.mapped, self.mapped > 1),
        ];
        for (name, count, _) in counts.iter().filter(|(.., shown)| *shown) {
            // Writing to a string does not fail, here and below.
            let _ = write!(out, " {name}={count}");
        }
        for (node, count) in self.nodes.iter().enumerate().filter(|(_, count)| **count > 0) {
            let _ = write!(out, " N{node}={count}");
        }
        out + " kernelpagesize_kB=4"
    }
}

/// /proc/N/numa_maps; `policy` is the thread's.
pub fn numa_maps(mm: Option<&Mm>, policy: Policy) -> Result<Text> {
    let mut text = Text::default();
    let Some(mm) = mm else { return Ok(text) };
    let (from, to) = heap(mm);
    let everything = PageRange::new(Page::default(), USER_END_PAGE).unwrap_or_default();
    let all = proc_users::mappings(mm, everything, &mut |info| {
        let m = info.mapping;
        let (start, end) = (info.range.start().base().as_u64(), info.range.end().base().as_u64());
        let mut head = format!("{start:08x} {}", words(&m.policy.get().or(policy)));
        match (&m.backing, m.label) {
            (Backing::Object { object, .. }, Label::None) => {
                head += " file=";
                for c in String::from_utf8_lossy(&object.path()).chars() {
                    // What would end the line or the name, or look like a count.
                    match c {
                        '\n' | '\t' | '=' | ' ' => {
                            let _ = write!(head, "\\{:03o}", u32::from(c));
                        }
                        c => head.push(c),
                    }
                }
            }
            (Backing::Anonymous, Label::Stack) => head += " stack",
            (Backing::Anonymous, _) if start < to && end > from => head += " heap",
            _ => {}
        }
        head
    })?;
    let mut tallies = Vec::new();
    tallies.try_reserve_exact(all.len()).map_err(|_| Errno::ENOMEM)?;
    tallies.resize(all.len(), Tally::NONE);
    proc_users::pages(mm, everything, &all, &mut |piece, _, page, users| {
        let Some((frame, tally)) = page.frame.zip(tallies.get_mut(piece)) else { return };
        let own = page.usage == Use::Anonymous;
        tally.pages += 1;
        tally.anonymous += u64::from(own);
        tally.dirty += u64::from(page.dirty);
        tally.mapped = tally.mapped.max(users);
        if let Some(count) = tally.nodes.get_mut(numa::topology().node_of(frame).index()) {
            *count += 1;
        }
    })?;
    for (Piece { head, .. }, tally) in all.iter().zip(&tallies) {
        text.push(format!("{head}{}\n", tally.words()).as_bytes())?;
    }
    Ok(text)
}

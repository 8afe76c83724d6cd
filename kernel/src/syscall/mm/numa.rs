//! Policies of memory: where the frames of a mapping, or those that a thread is the first to use, are to come from. They are
//! checked here as Linux does it (mm/mempolicy.c), kept by the address space and by the thread, and told again.

use addr::{PAGE_SIZE, USER_END, VirtAddr};
use aspace::{Access, Advice, Error, Mode, Policy, Seen};
use frames::{Node, NodeSet};

use super::{errno, mm, pages, range};
use crate::{
    errno::{Errno, SysResult},
    hw::{cpu, numa},
    process::Mm,
    syscall::Args,
    task::{self, CAP_SYS_NICE},
    usercopy,
};

/// Linux's numbers of the modes, from 0 on.
const MODES: [Mode; 7] = [
    Mode::Default,
    Mode::Preferred,
    Mode::Bind,
    Mode::Interleave,
    Mode::Local,
    Mode::PreferredMany,
    Mode::WeightedInterleave,
];
/// Flags that come with a mode, and are kept with it.
pub const MPOL_F_STATIC_NODES: u16 = 1 << 15;
pub const MPOL_F_RELATIVE_NODES: u16 = 1 << 14;
pub const MPOL_F_NUMA_BALANCING: u16 = 1 << 13;
const MPOL_F_NODE: u32 = 1;
const MPOL_F_ADDR: u32 = 2;
const MPOL_F_MEMS_ALLOWED: u32 = 4;
const MPOL_MF_STRICT: u32 = 1;
pub const MPOL_MF_MOVE: u32 = 2;
pub const MPOL_MF_MOVE_ALL: u32 = 4;

/// Words of Linux's masks of nodes: 1024 nodes.
const WORDS: usize = 16;

/// A mask of nodes as a program gives it, which may name nodes that there aren't.
pub struct Mask([u64; WORDS]);

impl Mask {
    /// The mask of `bits - 1` bits at `addr`. EINVAL if it is too long, or names a node that there can't be; EFAULT.
    pub fn read(addr: u64, bits: u64) -> Result<Self, Errno> {
        let mut mask = Self([0; WORDS]);
        let bits = bits.wrapping_sub(1);
        if addr == 0 || bits == 0 {
            return Ok(mask);
        }
        if bits > PAGE_SIZE * 8 {
            return Err(Errno::EINVAL);
        }
        let word = |i: u64| usercopy::read::<u64>(addr.wrapping_add(8 * i));
        // From the end, and whole words, as Linux looks at what it has no room for.
        for i in (WORDS as u64..bits.div_ceil(64)).rev() {
            if word(i)? != 0 {
                return Err(Errno::EINVAL);
            }
        }
        for (i, slot) in (0..bits.div_ceil(64)).zip(&mut mask.0) {
            let partial = if i == bits / 64 { (1 << (bits % 64)) - 1 } else { u64::MAX };
            *slot = word(i)? & partial;
        }
        Ok(mask)
    }

    fn is_empty(&self) -> bool {
        self.0 == [0; WORDS]
    }
    /// Those of its nodes that there can be here.
    pub fn nodes(&self) -> NodeSet {
        NodeSet::from_bits(self.0[0])
    }
    /// Whether it names nodes that there can't be here.
    pub fn exceeds(&self, allowed: NodeSet) -> bool {
        self.0[0] & !allowed.bits() != 0 || self.0[1..] != [0; WORDS - 1]
    }
    /// Its nodes as numbers among those of `allowed`, counted round and round.
    fn relative_to(&self, allowed: NodeSet) -> NodeSet {
        let named = (0..64 * WORDS).filter(|bit| self.0[bit / 64] >> (bit % 64) & 1 != 0);
        named.filter_map(|bit| allowed.iter().nth(bit % allowed.len().max(1))).collect()
    }
}

/// A mode and its flags, which go together. EINVAL.
fn mode(word: u32) -> Result<(Mode, u16), Errno> {
    let known = MPOL_F_STATIC_NODES | MPOL_F_RELATIVE_NODES | MPOL_F_NUMA_BALANCING;
    let flags = word as u16 & known;
    let mode = usize::try_from(word & !u32::from(known)).ok().and_then(|n| MODES.get(n)).copied();
    let mode = mode.ok_or(Errno::EINVAL)?;
    let both = MPOL_F_STATIC_NODES | MPOL_F_RELATIVE_NODES;
    let balanced = matches!(mode, Mode::Bind | Mode::PreferredMany);
    if flags & both == both || flags & MPOL_F_NUMA_BALANCING != 0 && !balanced {
        return Err(Errno::EINVAL);
    }
    Ok((mode, flags))
}

/// The policy of this mode, flags and nodes. EINVAL unless they go together, and there is such a node with memory.
fn policy(mode: Mode, flags: u16, asked: &Mask) -> Result<Policy, Errno> {
    let chosen = flags & (MPOL_F_STATIC_NODES | MPOL_F_RELATIVE_NODES) != 0;
    let said = |mode| Policy { mode, flags, ..Policy::DEFAULT };
    match mode {
        Mode::Default if asked.is_empty() => return Ok(Policy::DEFAULT),
        Mode::Local | Mode::Preferred if asked.is_empty() && !chosen => return Ok(said(Mode::Local)),
        Mode::Default | Mode::Local => return Err(Errno::EINVAL),
        _ if asked.is_empty() => return Err(Errno::EINVAL),
        _ => {}
    }
    let allowed = numa::with_memory();
    let mut nodes = if flags & MPOL_F_RELATIVE_NODES != 0 {
        asked.relative_to(allowed)
    } else {
        asked.nodes().intersection(allowed)
    };
    let first = nodes.lowest().ok_or(Errno::EINVAL)?;
    if mode == Mode::Preferred {
        nodes = NodeSet::only(first);
    }
    // As it was said, if that was to be kept; else what it comes down to.
    Ok(Policy { nodes, told: if flags != 0 { asked.nodes() } else { nodes }, ..said(mode) })
}

/// A policy's mode with its flags, by Linux's numbers.
fn word(policy: &Policy) -> u32 {
    let number = MODES.iter().position(|mode| *mode == policy.mode).unwrap_or(0);
    number as u32 | u32::from(policy.flags)
}

/// EPERM if pages that others use too are to move, and the caller may not.
pub fn may_move_all(flags: u32) -> Result<(), Errno> {
    if flags & MPOL_MF_MOVE_ALL != 0 && !task::is_capable(CAP_SYS_NICE) { Err(Errno::EPERM) } else { Ok(()) }
}

/// The whole pages of `addr..addr + len`, which are user space's or not: first byte and the byte after the last. EINVAL.
fn span(addr: u64, len: u64) -> Result<(u64, u64), Errno> {
    if !addr.is_multiple_of(PAGE_SIZE) {
        return Err(Errno::EINVAL);
    }
    // Modulo 2^64, as Linux rounds.
    let bytes = pages(len).and_then(|n| n.checked_mul(PAGE_SIZE)).unwrap_or(0);
    Ok((addr, addr.checked_add(bytes).ok_or(Errno::EINVAL)?))
}

/// `mbind(2)`. What moves is said in `moving`; what can't is an error only with MPOL_MF_STRICT.
pub fn mbind(a: &Args) -> SysResult {
    let (addr, len, bits, flags) = (a.raw(0), a.raw(1), a.raw(4), a.uint(5));
    let (mode, mode_flags) = mode(a.uint(2))?;
    let asked = Mask::read(a.raw(3), bits)?;
    if flags & !(MPOL_MF_STRICT | MPOL_MF_MOVE | MPOL_MF_MOVE_ALL) != 0 {
        return Err(Errno::EINVAL);
    }
    may_move_all(flags)?;
    let (addr, end) = span(addr, len)?;
    if addr == end {
        return Ok(0);
    }
    let policy = policy(mode, mode_flags, &asked)?;
    // What lies beyond user space is not mapped.
    let clipped = range(addr, end.min(USER_END).saturating_sub(addr)).filter(|r| !r.is_empty());
    let r = clipped.filter(|_| end <= USER_END || policy.is_default()).ok_or(Errno::EFAULT)?;
    let mm = mm()?;
    let strict = flags & MPOL_MF_STRICT != 0 && !policy.is_default();
    let moves = flags & (MPOL_MF_MOVE | MPOL_MF_MOVE_ALL) != 0;
    if strict && !moves && any_elsewhere(&mm, r, asked.nodes()) {
        return Err(Errno::EIO);
    }
    mm.aspace.advise(r, Advice::Place(policy), &task::unpinned()).map_err(|e| match e {
        Error::NoMapping => Errno::EFAULT,
        e => errno(e),
    })?;
    if !moves {
        return Ok(0);
    }
    // What is to move is told by what was asked for, as Linux does; where it goes, by the policy.
    let here = NodeSet::only(numa::topology().node_of_cpu(cpu::id()));
    let goal = if policy.nodes.is_empty() { here } else { policy.nodes };
    let stay = super::moving::relocate(&mm, r, &|index, node| {
        (!asked.nodes().contains(node)).then(|| (goal, policy.place(index)))
    })?;
    if strict && stay > 0 { Err(Errno::EIO) } else { Ok(0) }
}

/// Whether a page of `r`, before the first hole, is on none of `nodes`.
fn any_elsewhere(mm: &Mm, r: addr::PageRange, nodes: NodeSet) -> bool {
    let (mut elsewhere, mut next) = (false, Some(r.start()));
    mm.aspace.inspect(r, &task::unpinned(), &mut |seen| match seen {
        Seen::Mapping(info) => {
            next = next.filter(|next| info.range.start() <= *next).map(|_| info.range.end())
        }
        Seen::Page(_, page) => {
            let node = page.frame.map(|frame| numa::topology().node_of(frame));
            elsewhere |= next.is_some() && node.is_some_and(|node| !nodes.contains(node));
        }
    });
    elsewhere
}

/// `set_mempolicy(2)`.
pub fn set_mempolicy(a: &Args) -> SysResult {
    let (mode, flags) = mode(a.uint(0))?;
    let policy = policy(mode, flags, &Mask::read(a.raw(1), a.raw(2))?)?;
    task::current().memory_policy.set(policy);
    Ok(0)
}

/// `set_mempolicy_home_node(2)`: where to begin among the nodes of the policies of `addr..addr + len`. ENOENT if none of the
/// mappings there has a policy; EOPNOTSUPP at the first whose policy has no use for it, with what lies before done.
pub fn set_mempolicy_home_node(a: &Args) -> SysResult {
    let (addr, len, home, flags) = (a.raw(0), a.raw(1), a.raw(2), a.raw(3));
    if !addr.is_multiple_of(PAGE_SIZE) || flags != 0 {
        return Err(Errno::EINVAL);
    }
    let home = usize::try_from(home).ok().and_then(Node::new);
    let home = home.filter(|&node| numa::topology().all().contains(node)).ok_or(Errno::EINVAL)?;
    let (addr, end) = span(addr, len)?;
    if addr == end {
        return Ok(0);
    }
    let Some(r) = range(addr, end.min(USER_END).saturating_sub(addr)).filter(|r| !r.is_empty()) else {
        return Err(Errno::ENOENT);
    };
    let (mm, ctx) = (mm()?, task::unpinned());
    let mut result = Err(Errno::ENOENT);
    let mut at = r.start();
    while at < r.end() {
        // The mapping at `at`, or the next; what it says may change until the advice is taken, by another thread.
        let mut found = None;
        let rest = addr::PageRange::new(at, r.end()).unwrap_or_default();
        mm.aspace.areas(rest, &ctx, &mut |info| {
            found = found.or(info.range.intersect(rest).map(|part| (part, info.mapping.policy.get())));
        });
        let Some((part, policy)) = found else { break };
        at = part.end();
        match policy.mode {
            Mode::Default => {}
            Mode::Bind | Mode::PreferredMany => {
                let policy = Policy { home: Some(home), ..policy };
                mm.aspace.advise(part, Advice::Place(policy), &ctx).map_err(errno)?;
                result = Ok(0);
            }
            _ => return Err(Errno::EOPNOTSUPP),
        }
    }
    result
}

/// `get_mempolicy(2)`.
pub fn get_mempolicy(a: &Args) -> SysResult {
    let (mode, mask, bits, addr, flags) = (a.raw(0), a.raw(1), a.raw(2), a.raw(3), a.uint(4));
    if mask != 0 && bits < numa::topology().nodes() as u64 {
        return Err(Errno::EINVAL);
    }
    let (answer, nodes) = ask(addr, flags)?;
    if mode != 0 {
        usercopy::write(mode, &answer)?;
    }
    let bytes = bits.saturating_sub(1).div_ceil(64) * 8;
    if mask == 0 || bytes == 0 {
        return Ok(0);
    }
    if bytes > PAGE_SIZE {
        return Err(Errno::EINVAL);
    }
    for at in (8..bytes).step_by(8) {
        usercopy::write(mask.wrapping_add(at), &0u64)?;
    }
    usercopy::write(mask, &nodes.bits())?;
    Ok(0)
}

/// What `get_mempolicy` answers: a mode or a node, and a mask.
fn ask(addr: u64, flags: u32) -> Result<(u32, NodeSet), Errno> {
    let has = |flag| flags & flag != 0;
    if flags & !(MPOL_F_NODE | MPOL_F_ADDR | MPOL_F_MEMS_ALLOWED) != 0 {
        return Err(Errno::EINVAL);
    }
    if has(MPOL_F_MEMS_ALLOWED) {
        let both = has(MPOL_F_NODE | MPOL_F_ADDR);
        return if both { Err(Errno::EINVAL) } else { Ok((0, numa::with_memory())) };
    }
    if has(MPOL_F_ADDR) {
        let (va, mm, ctx) = (VirtAddr::user(addr).ok_or(Errno::EFAULT)?, mm()?, task::unpinned());
        let (_, mapping) = addr::PageRange::single(va.page())
            .and_then(|page| mm.aspace.find(page, &ctx))
            .ok_or(Errno::EFAULT)?;
        let policy = mapping.policy.get();
        if !has(MPOL_F_NODE) {
            return Ok((word(&policy), policy.told));
        }
        mm.aspace.fault_by(&task::memory_policy(), va, Access::Read, &ctx).map_err(|_| Errno::EFAULT)?;
        let node = super::moving::node_of(&mm, va.page()).map_err(|_| Errno::EFAULT)?;
        return Ok((node.index() as u32, policy.told));
    }
    let policy = task::memory_policy();
    match policy.mode {
        _ if addr != 0 => Err(Errno::EINVAL),
        // The next node that it will take for what belongs to no page's number; nothing does.
        Mode::Interleave | Mode::WeightedInterleave if has(MPOL_F_NODE) => {
            Ok((policy.nodes.lowest().map_or(0, Node::index) as u32, policy.told))
        }
        _ if has(MPOL_F_NODE) => Err(Errno::EINVAL),
        _ => Ok((word(&policy), policy.told)),
    }
}

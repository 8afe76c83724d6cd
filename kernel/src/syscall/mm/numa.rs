//! The calls about nodes of memory, of which there is one: policies are checked, kept and told, and move nothing.

use alloc::sync::Arc;

use addr::{PAGE_SIZE, USER_END, VirtAddr};
use aspace::{Access, Advice, Error, Policy, Seen};

use super::{errno, mm, pages, range};
use crate::{
    errno::{Errno, SysResult},
    process,
    syscall::Args,
    task::{self, CAP_SYS_NICE},
    usercopy,
};

const MPOL_DEFAULT: u32 = 0;
const MPOL_PREFERRED: u32 = 1;
const MPOL_BIND: u32 = 2;
const MPOL_INTERLEAVE: u32 = 3;
const MPOL_LOCAL: u32 = 4;
const MPOL_PREFERRED_MANY: u32 = 5;
const MPOL_WEIGHTED_INTERLEAVE: u32 = 6;
const MPOL_F_STATIC_NODES: u32 = 1 << 15;
const MPOL_F_RELATIVE_NODES: u32 = 1 << 14;
const MPOL_F_NUMA_BALANCING: u32 = 1 << 13;
const MPOL_F_NODE: u32 = 1;
const MPOL_F_ADDR: u32 = 2;
const MPOL_F_MEMS_ALLOWED: u32 = 4;
const MPOL_MF_STRICT: u32 = 1;
const MPOL_MF_MOVE: u32 = 2;
const MPOL_MF_MOVE_ALL: u32 = 4;
/// How many nodes Linux's masks have room for.
const MAX_NODES: u64 = 1024;

/// The first word of the node mask of `bits - 1` bits at `addr`. EINVAL if it is too long, or names a node that there can't
/// be.
fn nodes(addr: u64, bits: u64) -> Result<u64, Errno> {
    let bits = bits.wrapping_sub(1);
    if addr == 0 || bits == 0 {
        return Ok(0);
    }
    if bits > PAGE_SIZE * 8 {
        return Err(Errno::EINVAL);
    }
    let word = |i: u64| -> Result<u64, Errno> {
        let word: u64 = usercopy::read(addr.wrapping_add(8 * i))?;
        Ok(if i == bits / 64 { word & ((1 << (bits % 64)) - 1) } else { word })
    };
    for i in (1..bits.div_ceil(64)).rev() {
        if word(i)? != 0 && i >= MAX_NODES / 64 {
            return Err(Errno::EINVAL);
        }
    }
    word(0)
}

/// The policy `mode` with the mask of `bits - 1` bits at `mask`, as it is told again.
fn policy(mode: u32, mask: u64, bits: u64) -> Result<Asked, Errno> {
    let kinds = mode & (MPOL_F_STATIC_NODES | MPOL_F_RELATIVE_NODES | MPOL_F_NUMA_BALANCING);
    let mode = mode & !kinds;
    let (fixed, relative) = (kinds & MPOL_F_STATIC_NODES != 0, kinds & MPOL_F_RELATIVE_NODES != 0);
    let balancing = kinds & MPOL_F_NUMA_BALANCING != 0 && mode != MPOL_BIND && mode != MPOL_PREFERRED_MANY;
    if mode > MPOL_WEIGHTED_INTERLEAVE || fixed && relative || balancing {
        return Err(Errno::EINVAL);
    }
    Ok(Asked { mode, kinds, nodes: nodes(mask, bits)? })
}

/// A policy that was asked for, not yet checked.
struct Asked {
    mode: u32,
    kinds: u32,
    nodes: u64,
}

impl Asked {
    /// The policy as it is kept. EINVAL unless it goes with its nodes, of which there is number 0.
    fn check(&self) -> Result<Policy, Errno> {
        let chosen = self.kinds & (MPOL_F_STATIC_NODES | MPOL_F_RELATIVE_NODES) != 0;
        // Relative to what there is, every node is number 0.
        let served = self.nodes & 1 != 0 || self.nodes != 0 && self.kinds & MPOL_F_RELATIVE_NODES != 0;
        let fits = match self.mode {
            MPOL_DEFAULT => self.nodes == 0,
            MPOL_LOCAL => self.nodes == 0 && !chosen,
            MPOL_PREFERRED if self.nodes == 0 => !chosen,
            _ => served,
        };
        if !fits {
            return Err(Errno::EINVAL);
        }
        Ok(match self.mode {
            MPOL_DEFAULT => Policy::default(),
            MPOL_LOCAL | MPOL_PREFERRED if self.nodes == 0 => {
                Policy { mode: MPOL_LOCAL | self.kinds, nodes: 0 }
            }
            // As it was said, if that was to be kept; else what it comes down to.
            mode => Policy { mode: mode | self.kinds, nodes: if chosen { self.nodes } else { 1 } },
        })
    }
}

/// EPERM if pages that others use too are to move, and the caller may not.
fn may_move_all(flags: u32) -> Result<(), Errno> {
    if flags & MPOL_MF_MOVE_ALL != 0 && !task::is_capable(CAP_SYS_NICE) { Err(Errno::EPERM) } else { Ok(()) }
}

/// `mbind(2)`.
pub fn mbind(a: &Args) -> SysResult {
    let (addr, len, mode, mask, bits, flags) = (a.raw(0), a.raw(1), a.uint(2), a.raw(3), a.raw(4), a.uint(5));
    let policy = policy(mode, mask, bits)?;
    if flags & !(MPOL_MF_STRICT | MPOL_MF_MOVE | MPOL_MF_MOVE_ALL) != 0 {
        return Err(Errno::EINVAL);
    }
    may_move_all(flags)?;
    if addr % PAGE_SIZE != 0 {
        return Err(Errno::EINVAL);
    }
    // Modulo 2^64, as Linux rounds.
    let bytes = pages(len).and_then(|n| n.checked_mul(PAGE_SIZE)).unwrap_or(0);
    let end = addr.checked_add(bytes).ok_or(Errno::EINVAL)?;
    if bytes == 0 {
        return Ok(0);
    }
    let policy = policy.check()?;
    // What lies beyond user space is not mapped.
    let clipped = range(addr, end.min(USER_END).saturating_sub(addr)).filter(|r| !r.is_empty());
    let r = clipped.filter(|_| end <= USER_END || policy.mode == MPOL_DEFAULT).ok_or(Errno::EFAULT)?;
    mm()?.aspace.advise(r, Advice::Place(policy), &task::unpinned()).map_err(|e| match e {
        Error::NoMapping => Errno::EFAULT,
        e => errno(e),
    })?;
    Ok(0)
}

/// `set_mempolicy(2)`.
pub fn set_mempolicy(a: &Args) -> SysResult {
    let policy = policy(a.uint(0), a.raw(1), a.raw(2))?.check()?;
    task::current().attributes.lock().memory_policy = policy;
    Ok(0)
}

/// `get_mempolicy(2)`.
pub fn get_mempolicy(a: &Args) -> SysResult {
    let (mode, mask, bits, addr, flags) = (a.raw(0), a.raw(1), a.raw(2), a.raw(3), a.uint(4));
    if mask != 0 && bits < 1 {
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
    usercopy::write(mask, &nodes)?;
    Ok(0)
}

/// What `get_mempolicy` answers: a mode or a node, and a mask.
fn ask(addr: u64, flags: u32) -> Result<(u32, u64), Errno> {
    let has = |flag| flags & flag != 0;
    if flags & !(MPOL_F_NODE | MPOL_F_ADDR | MPOL_F_MEMS_ALLOWED) != 0 {
        return Err(Errno::EINVAL);
    }
    if has(MPOL_F_MEMS_ALLOWED) {
        return if has(MPOL_F_NODE | MPOL_F_ADDR) { Err(Errno::EINVAL) } else { Ok((MPOL_DEFAULT, 1)) };
    }
    if has(MPOL_F_ADDR) {
        let (va, mm, ctx) = (VirtAddr::user(addr).ok_or(Errno::EFAULT)?, mm()?, task::unpinned());
        let (_, mapping) = mm.aspace.find(va.page(), &ctx).ok_or(Errno::EFAULT)?;
        let Policy { mode, nodes } = mapping.policy;
        if !has(MPOL_F_NODE) {
            return Ok((mode, nodes));
        }
        mm.aspace.fault(va, Access::Read, &ctx).map_err(|_| Errno::EFAULT)?;
        return Ok((0, nodes));
    }
    let Policy { mode, nodes } = task::current().attributes.lock().memory_policy;
    let kinds = MPOL_F_STATIC_NODES | MPOL_F_RELATIVE_NODES | MPOL_F_NUMA_BALANCING;
    match mode & !kinds {
        _ if addr != 0 => Err(Errno::EINVAL),
        // The next node that it will take.
        MPOL_INTERLEAVE | MPOL_WEIGHTED_INTERLEAVE if has(MPOL_F_NODE) => Ok((0, nodes)),
        _ if has(MPOL_F_NODE) => Err(Errno::EINVAL),
        _ => Ok((mode, nodes)),
    }
}

/// `move_pages(2)`: all pages are on node 0 already.
pub fn move_pages(a: &Args) -> SysResult {
    let (pid, count, list, wanted, status, flags) =
        (a.int(0), a.raw(1), a.raw(2), a.raw(3), a.raw(4), a.uint(5));
    if flags & !(MPOL_MF_MOVE | MPOL_MF_MOVE_ALL) != 0 {
        return Err(Errno::EINVAL);
    }
    may_move_all(flags)?;
    let mm = match u32::try_from(pid) {
        Ok(0) => Arc::clone(&*mm()?),
        Ok(pid) => process::find(pid).and_then(|p| p.mm()).ok_or(Errno::ESRCH)?,
        Err(_) => return Err(Errno::ESRCH),
    };
    for i in 0..count {
        let at = |base: u64, size: u64| base.wrapping_add(i.wrapping_mul(size));
        let page: u64 = usercopy::read(at(list, 8))?;
        if wanted != 0 && usercopy::read::<i32>(at(wanted, 4))? != 0 {
            return Err(Errno::ENODEV);
        }
        let mut answer = -(Errno::EFAULT.0);
        if let Some(r) = range(page / PAGE_SIZE * PAGE_SIZE, PAGE_SIZE) {
            mm.aspace.inspect(r, &task::unpinned(), &mut |seen| match seen {
                Seen::Mapping(_) => answer = -(Errno::ENOENT.0),
                Seen::Page(_, resident) if resident.frame.is_some() => answer = 0,
                Seen::Page(..) => {}
            });
        }
        usercopy::write(at(status, 4), &answer)?;
        if task::current().is_ending() {
            break;
        }
    }
    Ok(0)
}

//! The calls about nodes of memory, of which there is one: policies are checked, and change nothing.

use addr::{PAGE_SIZE, USER_END, VirtAddr};
use aspace::Seen;

use super::{mm, pages, range};
use crate::{
    errno::{Errno, SysResult},
    process,
    syscall::Args,
    task, usercopy,
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
const MPOL_F_NODE: u32 = 1;
const MPOL_F_ADDR: u32 = 2;
const MPOL_F_MEMS_ALLOWED: u32 = 4;
const MPOL_MF_STRICT: u32 = 1;
const MPOL_MF_MOVE: u32 = 2;
const MPOL_MF_MOVE_ALL: u32 = 4;

/// The bits of a node mask of `bits - 1` bits at `addr`: whether node 0 is in it. EINVAL if another is.
fn nodes(addr: u64, bits: u64) -> Result<bool, Errno> {
    let bits = bits.saturating_sub(1);
    if addr == 0 || bits == 0 {
        return Ok(false);
    }
    if bits > PAGE_SIZE * 8 {
        return Err(Errno::EINVAL);
    }
    let mut any = false;
    for i in 0..bits.div_ceil(64) {
        let mut word: u64 = usercopy::read(addr.wrapping_add(8 * i))?;
        if i == bits / 64 {
            word &= (1 << (bits % 64)) - 1;
        }
        if word & !u64::from(i == 0) != 0 {
            return Err(Errno::EINVAL);
        }
        any |= word != 0;
    }
    Ok(any)
}

/// EINVAL unless the policy `mode` goes with the mask.
fn check(mode: u32, mask: u64, bits: u64) -> Result<(), Errno> {
    let kinds = mode & (MPOL_F_STATIC_NODES | MPOL_F_RELATIVE_NODES);
    let mode = mode & !kinds;
    if mode > MPOL_WEIGHTED_INTERLEAVE || kinds == MPOL_F_STATIC_NODES | MPOL_F_RELATIVE_NODES {
        return Err(Errno::EINVAL);
    }
    let any = nodes(mask, bits)?;
    let fits = match mode {
        MPOL_DEFAULT => !any && kinds == 0,
        MPOL_LOCAL => !any && kinds == 0,
        MPOL_PREFERRED => any || kinds == 0,
        MPOL_BIND | MPOL_INTERLEAVE | MPOL_PREFERRED_MANY | MPOL_WEIGHTED_INTERLEAVE => any,
        _ => false,
    };
    if fits { Ok(()) } else { Err(Errno::EINVAL) }
}

/// `mbind(2)`.
pub fn mbind(a: &Args) -> SysResult {
    let (addr, len, mode, mask, bits, flags) = (a.raw(0), a.raw(1), a.uint(2), a.raw(3), a.raw(4), a.uint(5));
    if flags & !(MPOL_MF_STRICT | MPOL_MF_MOVE | MPOL_MF_MOVE_ALL) != 0 || addr % PAGE_SIZE != 0 {
        return Err(Errno::EINVAL);
    }
    check(mode, mask, bits)?;
    let bytes = pages(len).and_then(|n| n.checked_mul(PAGE_SIZE)).ok_or(Errno::EINVAL)?;
    let end = addr.checked_add(bytes).ok_or(Errno::EINVAL)?;
    if bytes == 0 {
        return Ok(0);
    }
    let r =
        range(addr, end.min(USER_END).saturating_sub(addr)).filter(|r| !r.is_empty()).ok_or(Errno::EFAULT)?;
    let (mut upto, mut hole) = (r.start(), end > USER_END);
    mm()?.aspace.areas(r, &task::unpinned(), &mut |info| {
        hole |= info.range.start() > upto;
        upto = info.range.end();
    });
    if hole || upto < r.end() { Err(Errno::EFAULT) } else { Ok(0) }
}

/// `set_mempolicy(2)`.
pub fn set_mempolicy(a: &Args) -> SysResult {
    check(a.uint(0), a.raw(1), a.raw(2)).map(|()| 0)
}

/// `get_mempolicy(2)`: the default, and node 0.
pub fn get_mempolicy(a: &Args) -> SysResult {
    let (mode, mask, bits, addr, flags) = (a.raw(0), a.raw(1), a.raw(2), a.raw(3), a.uint(4));
    if flags & !(MPOL_F_NODE | MPOL_F_ADDR | MPOL_F_MEMS_ALLOWED) != 0 || mask != 0 && bits < 1 {
        return Err(Errno::EINVAL);
    }
    let has = |flag| flags & flag != 0;
    let mut allowed = 0u64;
    if has(MPOL_F_MEMS_ALLOWED) {
        if has(MPOL_F_NODE | MPOL_F_ADDR) {
            return Err(Errno::EINVAL);
        }
        allowed = 1;
    } else if has(MPOL_F_ADDR) {
        let page = VirtAddr::user(addr).ok_or(Errno::EFAULT)?.page();
        mm()?.aspace.find(page, &task::unpinned()).ok_or(Errno::EFAULT)?;
    } else if addr != 0 || has(MPOL_F_NODE) {
        return Err(Errno::EINVAL);
    }
    if mode != 0 {
        usercopy::write(mode, &0u32)?;
    }
    if mask != 0 {
        let words = bits.saturating_sub(1).min(PAGE_SIZE * 8).div_ceil(64);
        for i in 0..words {
            usercopy::write(mask.wrapping_add(8 * i), &if i == 0 { allowed } else { 0 })?;
        }
    }
    Ok(0)
}

/// `move_pages(2)`: all pages are on node 0 already.
pub fn move_pages(a: &Args) -> SysResult {
    let (pid, count, list, wanted, status, flags) =
        (a.int(0), a.raw(1), a.raw(2), a.raw(3), a.raw(4), a.uint(5));
    if flags & !(MPOL_MF_MOVE | MPOL_MF_MOVE_ALL) != 0 {
        return Err(Errno::EINVAL);
    }
    let mm = match u32::try_from(pid) {
        Ok(0) => mm()?,
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

//! Memory that stays: `mlock` and its kin. All memory here does; what remains is the count against RLIMIT_MEMLOCK, which
//! binds all but those with CAP_IPC_LOCK, and that pages are brought in.

use addr::{PAGE_SIZE, PageRange, USER_END};
use aspace::{Error, Fault, Lock};
use linux_raw_sys::general as abi;

use super::{bring_in, errno, mm, pages, range};
use crate::{
    errno::{Errno, SysResult},
    limits::RLIMIT_MEMLOCK,
    syscall::Args,
    task,
};

/// EPERM if nothing may be locked at all.
pub fn may_lock() -> Result<(), Errno> {
    let limit = task::current().process.limits.soft(RLIMIT_MEMLOCK);
    if limit == 0 && !task::may_lock_all() { Err(Errno::EPERM) } else { Ok(()) }
}

fn lock_errno(e: Error) -> Errno {
    match e {
        Error::LockLimit => Errno::ENOMEM,
        e => errno(e),
    }
}

/// The bytes of the pages that bytes `addr..addr + len` touch, modulo 2^64, as Linux rounds.
fn rounded(addr: u64, len: u64) -> u64 {
    pages(len.wrapping_add(addr % PAGE_SIZE)).unwrap_or(0) * PAGE_SIZE
}

/// The pages that bytes `addr..addr + len` touch, with what lies beyond user space cut off, and whether something was.
/// EINVAL if the range wraps, None if it is empty.
fn touched(addr: u64, len: u64) -> Result<Option<(PageRange, bool)>, Errno> {
    let start = addr / PAGE_SIZE * PAGE_SIZE;
    let end = start.checked_add(rounded(addr, len)).ok_or(Errno::EINVAL)?;
    if end == start {
        return Ok(None);
    }
    let kept = range(start, end.min(USER_END).saturating_sub(start)).filter(|r| !r.is_empty());
    Ok(Some((kept.ok_or(Errno::ENOMEM)?, end > USER_END)))
}

fn lock(a: &Args, how: Lock) -> SysResult {
    may_lock()?;
    let (mm, ctx) = (mm()?, task::unpinned());
    let limits = task::current().process.limits.of_memory();
    // The limit comes before the question of where the range ends.
    if rounded(a.raw(0), a.raw(1)) / PAGE_SIZE > limits.locked {
        return Err(Errno::ENOMEM);
    }
    let Some((r, cut)) = touched(a.raw(0), a.raw(1))? else { return Ok(0) };
    mm.aspace.lock(r, how, &limits, &ctx).map_err(lock_errno)?;
    if cut {
        return Err(Errno::ENOMEM);
    }
    if how == Lock::Now {
        // What may not be accessed, or lies beyond its file, is locked all the same, but that is an error.
        bring_in(&mm, r)
            .map_err(|fault| if fault == Fault::NoMemory { Errno::EAGAIN } else { Errno::ENOMEM })?;
    }
    Ok(0)
}

/// `mlock(2)`.
pub fn mlock(a: &Args) -> SysResult {
    lock(a, Lock::Now)
}

/// `mlock2(2)`.
pub fn mlock2(a: &Args) -> SysResult {
    match a.uint(2) {
        0 => lock(a, Lock::Now),
        abi::MLOCK_ONFAULT => lock(a, Lock::OnFault),
        _ => Err(Errno::EINVAL),
    }
}

/// `munlock(2)`.
pub fn munlock(a: &Args) -> SysResult {
    let Some((r, cut)) = touched(a.raw(0), a.raw(1))? else { return Ok(0) };
    let limits = task::current().process.limits.of_memory();
    mm()?.aspace.lock(r, Lock::Off, &limits, &task::unpinned()).map_err(lock_errno)?;
    if cut { Err(Errno::ENOMEM) } else { Ok(0) }
}

/// `mlockall(2)`.
pub fn mlockall(a: &Args) -> SysResult {
    let flags = a.uint(0);
    let known = abi::MCL_CURRENT | abi::MCL_FUTURE | abi::MCL_ONFAULT;
    if flags == 0 || flags & !known != 0 || flags == abi::MCL_ONFAULT {
        return Err(Errno::EINVAL);
    }
    may_lock()?;
    let how = if flags & abi::MCL_ONFAULT != 0 { Lock::OnFault } else { Lock::Now };
    let now = (flags & abi::MCL_CURRENT != 0).then_some(how);
    let future = if flags & abi::MCL_FUTURE != 0 { how } else { Lock::Off };
    let (mm, ctx) = (mm()?, task::unpinned());
    let limits = task::current().process.limits.of_memory();
    mm.aspace.lock_all(now, Some(future), &limits, &ctx).map_err(lock_errno)?;
    if now == Some(Lock::Now) {
        let mut areas = alloc::vec::Vec::new();
        mm.aspace.mappings(&ctx, &mut |info| {
            // Without memory for the list they are brought in as they are used.
            if areas.try_reserve(1).is_ok() {
                areas.push(info.range);
            }
        });
        for area in areas {
            let _ = bring_in(&mm, area);
        }
    }
    Ok(0)
}

/// `munlockall(2)`.
pub fn munlockall(_: &Args) -> SysResult {
    let limits = task::current().process.limits.of_memory();
    mm()?
        .aspace
        .lock_all(Some(Lock::Off), Some(Lock::Off), &limits, &task::unpinned())
        .map_err(lock_errno)?;
    Ok(0)
}

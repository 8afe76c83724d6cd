//! `process_vm_readv` and `process_vm_writev`: copies between the caller's memory and another process's.
//!
//! A copy touches user memory through the tables that are loaded, and a fault is resolved in the thread's own address
//! space. So for the other side of a copy the thread *moves in*: it becomes a user of the other address space, loads it,
//! copies, and goes back ([`inside`]). Bytes pass through a buffer of the kernel's, a piece at a time.

use alloc::{sync::Arc, vec::Vec};

use super::Args;
use crate::{
    errno::{Errno, SysResult},
    ids,
    process::Mm,
    task, usercopy,
};

/// The most segments of a call.
const MAX_SEGMENTS: u64 = 1024;
/// Bytes of one step.
const PIECE: usize = 16 << 10;

/// Run `f` with `mm` as the calling thread's memory. ESRCH if its process has ended.
fn inside<R>(mm: &Arc<Mm>, f: impl FnOnce() -> Result<R, Errno>) -> Result<R, Errno> {
    task::visit(mm, f).unwrap_or(Err(Errno::ESRCH))
}

#[derive(Clone, Copy)]
struct Segment {
    at: u64,
    len: u64,
}

/// The `struct iovec` array of `count` at `array`. EINVAL for too many or a negative length.
fn segments(array: u64, count: u64) -> Result<Vec<Segment>, Errno> {
    if count > MAX_SEGMENTS {
        return Err(Errno::EINVAL);
    }
    let mut all = Vec::new();
    for i in 0..count {
        let [at, len] = usercopy::read::<[u64; 2]>(array.checked_add(16 * i).ok_or(Errno::EFAULT)?)?;
        if len > i64::MAX as u64 {
            return Err(Errno::EINVAL);
        }
        all.push(Segment { at, len });
    }
    Ok(all)
}

/// The next piece of `list`: at most `most` bytes, within a page, so that a copy fails as a whole or not at all.
fn next(list: &mut Vec<Segment>, most: usize) -> Option<Segment> {
    loop {
        let first = list.last_mut()?;
        if first.len == 0 {
            list.pop();
            continue;
        }
        let in_page = addr::PAGE_SIZE - first.at % addr::PAGE_SIZE;
        let len = first.len.min(in_page).min(most as u64);
        let piece = Segment { at: first.at, len };
        first.at = first.at.wrapping_add(len);
        first.len -= len;
        return Some(piece);
    }
}

/// `process_vm_readv(2)`.
pub fn process_vm_readv(a: &Args) -> SysResult {
    transfer(a, false)
}

/// `process_vm_writev(2)`.
pub fn process_vm_writev(a: &Args) -> SysResult {
    transfer(a, true)
}

fn transfer(a: &Args, write: bool) -> SysResult {
    if a.raw(5) != 0 {
        return Err(Errno::EINVAL);
    }
    let mut local = segments(a.raw(1), a.raw(2))?;
    let mut remote = segments(a.raw(3), a.raw(4))?;
    local.reverse();
    remote.reverse();
    let total: u64 = local.iter().fold(0, |sum, s| sum.saturating_add(s.len));
    if total == 0 || remote.iter().all(|s| s.len == 0) {
        return Ok(0);
    }
    let task = u32::try_from(a.int(0)).ok().and_then(ids::find_task).ok_or(Errno::ESRCH)?;
    let mm = task.mm().ok_or(Errno::ESRCH)?;
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(PIECE).map_err(|_| Errno::ENOMEM)?;
    buffer.resize(PIECE, 0u8);
    let mut done = 0usize;
    // Both lists advance by the same pieces.
    while let Some(theirs) = next(&mut remote, PIECE) {
        let mut left = theirs;
        while left.len > 0 {
            let Some(ours) = next(&mut local, left.len as usize) else { return Ok(done) };
            let bytes = buffer.get_mut(..ours.len as usize).unwrap_or_default();
            let result = if write {
                usercopy::copy_in(ours.at, bytes)
                    .and_then(|()| inside(&mm, || usercopy::copy_out(left.at, bytes)))
            } else {
                inside(&mm, || usercopy::copy_in(left.at, bytes))
                    .and_then(|()| usercopy::copy_out(ours.at, bytes))
            };
            if let Err(e) = result {
                return if done > 0 { Ok(done) } else { Err(e) };
            }
            left.at += ours.len;
            left.len -= ours.len;
            done += ours.len as usize;
        }
        if task::current().is_ending() {
            return Ok(done);
        }
    }
    Ok(done)
}

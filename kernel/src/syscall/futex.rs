//! `futex(2)` and the robust lists.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use super::{Args, time};
use crate::{
    errno::{Errno, SysResult},
    futex::{self, Word},
    hw, ids,
    task::{self, Task},
    usercopy,
};

const WAIT: u32 = 0;
const WAKE: u32 = 1;
const REQUEUE: u32 = 3;
const CMP_REQUEUE: u32 = 4;
const WAKE_OP: u32 = 5;
const LOCK_PI: u32 = 6;
const UNLOCK_PI: u32 = 7;
const TRYLOCK_PI: u32 = 8;
const WAIT_BITSET: u32 = 9;
const WAKE_BITSET: u32 = 10;
const LOCK_PI2: u32 = 13;
const PRIVATE: u32 = 128;
const CLOCK_REALTIME: u32 = 256;

/// `futex(2)`.
pub fn futex(a: &Args) -> SysResult {
    let (address, op, value) = (a.raw(0), a.uint(1), a.uint(2));
    let private = op & PRIVATE != 0;
    let word = Word { address, private };
    let command = op & !(PRIVATE | CLOCK_REALTIME);
    let realtime = op & CLOCK_REALTIME != 0;
    if realtime && !matches!(command, WAIT_BITSET | LOCK_PI2) {
        return Err(Errno::ENOSYS);
    }
    // The fourth argument is a count for some commands, and the address of a time for others.
    let (second, bits) = (Word { address: a.raw(4), private }, a.uint(5));
    let deadline = |absolute: bool, realtime: bool| deadline(a.raw(3), absolute, realtime);
    // Counts are ints; FUTEX_WAKE takes any, and at least one waiter.
    let wakes = (value as i32).max(1) as usize;
    match command {
        WAIT => futex::wait(word, value, futex::ANY, deadline(false, false)?),
        WAIT_BITSET | WAKE_BITSET if bits == 0 => Err(Errno::EINVAL),
        WAIT_BITSET => futex::wait(word, value, bits, deadline(true, realtime)?),
        WAKE => futex::wake(word, wakes, futex::ANY),
        WAKE_BITSET => futex::wake(word, wakes, bits),
        REQUEUE | CMP_REQUEUE => {
            let moves = a.int(3);
            if moves < 0 || (value as i32) < 0 {
                return Err(Errno::EINVAL);
            }
            let expected = (command == CMP_REQUEUE).then_some(bits);
            let (woken, moved) = futex::requeue(word, second, value as usize, moves as usize, expected)?;
            // Both forms count those that moved, whatever futex(2) says of the one without a comparison.
            Ok(woken + moved)
        }
        WAKE_OP => futex::wake_op(word, second, wakes, a.int(3).max(1) as usize, bits),
        LOCK_PI => futex::lock_owned(word, deadline(true, true)?, true),
        LOCK_PI2 => futex::lock_owned(word, deadline(true, realtime)?, true),
        TRYLOCK_PI => futex::lock_owned(word, None, false),
        UNLOCK_PI => futex::unlock_owned(word),
        _ => Err(Errno::ENOSYS),
    }
}

/// The `timespec` at `at`, if not 0, as ns since boot: from now, or a time of CLOCK_MONOTONIC or CLOCK_REALTIME.
fn deadline(at: u64, absolute: bool, realtime: bool) -> Result<Option<u64>, Errno> {
    if at == 0 {
        return Ok(None);
    }
    let ns = time::read_timespec(at)?;
    Ok(Some(match (absolute, realtime) {
        (false, _) => hw::timer::now().saturating_add(ns),
        (true, false) => ns,
        (true, true) => ns.saturating_sub(hw::timer::boot_epoch_ns()),
    }))
}

/// `set_robust_list(2)`.
pub fn set_robust_list(a: &Args) -> SysResult {
    if a.raw(1) != futex::ROBUST_HEAD_BYTES {
        return Err(Errno::EINVAL);
    }
    // Relaxed: the word belongs to the thread.
    task::current().robust_list.store(a.raw(0), Ordering::Relaxed);
    Ok(0)
}

/// `get_robust_list(2)`.
pub fn get_robust_list(a: &Args) -> SysResult {
    // Relaxed: a snapshot.
    let of = |task: &Task| task.robust_list.load(Ordering::Relaxed);
    let list = match a.int(0) {
        0 => of(&task::current()),
        tid => {
            let found = u32::try_from(tid).ok().and_then(|tid| ids::with(tid, |task: &Arc<Task>| of(task)));
            found.ok_or(Errno::ESRCH)?
        }
    };
    usercopy::write(a.raw(2), &futex::ROBUST_HEAD_BYTES)?;
    usercopy::write(a.raw(1), &list)?;
    Ok(0)
}

/// `struct futex_waitv`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Waitv {
    value: u64,
    address: u64,
    flags: u32,
    reserved: u32,
}
crate::pod!(Waitv);

/// `futex_waitv(2)`, on words of 32 bits.
pub fn futex_waitv(a: &Args) -> SysResult {
    const MOST: u32 = 128;
    const SIZE_U32: u32 = 2;
    let (at, count, flags, timeout) = (a.raw(0), a.uint(1), a.uint(2), a.raw(3));
    if flags != 0 || count == 0 || count > MOST || at == 0 {
        return Err(Errno::EINVAL);
    }
    let deadline = match (timeout, a.int(4)) {
        (0, _) => None,
        (at, time::MONOTONIC) => deadline(at, true, false)?,
        (at, time::REALTIME) => deadline(at, true, true)?,
        _ => return Err(Errno::EINVAL),
    };
    let mut words = alloc::vec::Vec::new();
    for i in 0..u64::from(count) {
        let bytes = size_of::<Waitv>() as u64;
        let w: Waitv = usercopy::read(at.checked_add(bytes * i).ok_or(Errno::EFAULT)?)?;
        if w.flags & !(SIZE_U32 | PRIVATE) != 0 || w.flags & SIZE_U32 == 0 || w.reserved != 0 {
            return Err(Errno::EINVAL);
        }
        // A word has 32 bits: the upper half of the value can't be met.
        let value = u32::try_from(w.value).map_err(|_| Errno::EINVAL)?;
        words.push((Word { address: w.address, private: w.flags & PRIVATE != 0 }, value));
    }
    futex::wait_for_any(&words, deadline)
}

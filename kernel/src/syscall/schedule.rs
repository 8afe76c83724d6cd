//! Scheduling policies and priorities. They are kept and told, as `task::Attributes` says; all threads are scheduled alike.

use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::Ordering;

use super::{Args, time};
use crate::{
    errno::{Errno, SysResult},
    ids, process,
    task::{self, Attributes, Task},
    usercopy,
};

const OTHER: u32 = 0;
const FIFO: u32 = 1;
const RR: u32 = 2;
const BATCH: u32 = 3;
const IDLE: u32 = 5;
/// In a policy: children don't inherit it.
const RESET_ON_FORK: u32 = 0x4000_0000;
/// Greatest priority of a real-time policy; the least is 1.
const MAX_PRIORITY: u32 = 99;
/// A slice as `sched_rr_get_interval` tells it, in ns.
const SLICE: u64 = 4_000_000;

/// The thread `tid`, 0 for the caller. EINVAL for a negative id, ESRCH.
fn target(tid: i32) -> Result<Arc<Task>, Errno> {
    match u32::try_from(tid) {
        Ok(0) => Ok(task::current().arc()),
        Ok(tid) => ids::find_task(tid).ok_or(Errno::ESRCH),
        Err(_) => Err(Errno::EINVAL),
    }
}

/// What the thread `tid` was told, 0 for the caller. Errors as [`target`].
fn told(tid: i32) -> Result<Attributes, Errno> {
    match u32::try_from(tid) {
        Ok(0) => Ok(task::current().attributes.get()),
        Ok(tid) => ids::with(tid, |task: &Arc<Task>| task.attributes.get()).ok_or(Errno::ESRCH),
        Err(_) => Err(Errno::EINVAL),
    }
}

fn is_real_time(policy: u32) -> bool {
    matches!(policy, FIFO | RR)
}

/// Set policy and priority. EINVAL for an unknown policy, or a priority that it doesn't have.
fn set(task: &Task, policy: u32, priority: i32) -> Result<(), Errno> {
    let (reset_on_fork, policy) = (policy & RESET_ON_FORK != 0, policy & !RESET_ON_FORK);
    let range = match policy {
        OTHER | BATCH | IDLE => 0..=0,
        FIFO | RR => 1..=MAX_PRIORITY,
        _ => return Err(Errno::EINVAL),
    };
    let priority = u32::try_from(priority).ok().filter(|p| range.contains(p)).ok_or(Errno::EINVAL)?;
    task.attributes.change(|now| {
        (now.policy, now.priority, now.reset_on_fork) = (policy, priority, reset_on_fork);
    });
    Ok(())
}

/// `sched_setscheduler(2)`.
pub fn sched_setscheduler(a: &Args) -> SysResult {
    if a.int(1) < 0 || a.raw(2) == 0 || a.int(0) < 0 {
        return Err(Errno::EINVAL);
    }
    let priority = usercopy::read(a.raw(2))?;
    let task = target(a.int(0))?;
    set(&task, a.uint(1), priority)?;
    Ok(0)
}

/// `sched_getscheduler(2)`.
pub fn sched_getscheduler(a: &Args) -> SysResult {
    let now = told(a.int(0))?;
    Ok((now.policy | if now.reset_on_fork { RESET_ON_FORK } else { 0 }) as usize)
}

/// `sched_setparam(2)`.
pub fn sched_setparam(a: &Args) -> SysResult {
    if a.raw(1) == 0 || a.int(0) < 0 {
        return Err(Errno::EINVAL);
    }
    let priority = usercopy::read(a.raw(1))?;
    let task = target(a.int(0))?;
    let now = task.attributes.get();
    set(&task, now.policy | if now.reset_on_fork { RESET_ON_FORK } else { 0 }, priority)?;
    Ok(0)
}

/// `sched_getparam(2)`.
pub fn sched_getparam(a: &Args) -> SysResult {
    if a.raw(1) == 0 {
        return Err(Errno::EINVAL);
    }
    let priority = told(a.int(0))?.priority;
    usercopy::write(a.raw(1), &priority)?;
    Ok(0)
}

/// The policy that a range of priorities is asked for. EINVAL.
fn known(a: &Args) -> Result<bool, Errno> {
    /// SCHED_DEADLINE and SCHED_EXT have one priority only.
    const OTHERS: [u32; 5] = [OTHER, BATCH, IDLE, 6, 7];
    let policy = a.uint(0);
    if is_real_time(policy) || OTHERS.contains(&policy) {
        Ok(is_real_time(policy))
    } else {
        Err(Errno::EINVAL)
    }
}

/// `sched_get_priority_max(2)`.
pub fn sched_get_priority_max(a: &Args) -> SysResult {
    Ok(if known(a)? { MAX_PRIORITY as usize } else { 0 })
}

/// `sched_get_priority_min(2)`.
pub fn sched_get_priority_min(a: &Args) -> SysResult {
    Ok(known(a)?.into())
}

/// `sched_rr_get_interval(2)`: none for SCHED_FIFO.
pub fn sched_rr_get_interval(a: &Args) -> SysResult {
    let fifo = told(a.int(0))?.policy == FIFO;
    time::write_timespec(a.raw(1), if fifo { 0 } else { SLICE })?;
    Ok(0)
}

/// `struct sched_attr`, its first version.
#[derive(Clone, Copy)]
#[repr(C)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    deadline: [u64; 3],
}
crate::pod!(SchedAttr);

/// `sched_getattr(2)`.
pub fn sched_getattr(a: &Args) -> SysResult {
    const BYTES: u32 = size_of::<SchedAttr>() as u32;
    if a.raw(1) == 0 || a.int(0) < 0 || a.uint(3) != 0 || !(BYTES..=4096).contains(&a.uint(2)) {
        return Err(Errno::EINVAL);
    }
    let now = told(a.int(0))?;
    let attr = SchedAttr {
        size: BYTES,
        policy: now.policy,
        flags: now.reset_on_fork.into(),
        nice: if is_real_time(now.policy) { 0 } else { now.nice },
        priority: now.priority,
        deadline: [0; 3],
    };
    usercopy::write(a.raw(1), &attr)?;
    Ok(0)
}

/// `sched_setattr(2)`, without SCHED_DEADLINE and without utilisation clamps.
pub fn sched_setattr(a: &Args) -> SysResult {
    const BYTES: u32 = size_of::<SchedAttr>() as u32;
    if a.raw(1) == 0 || a.int(0) < 0 || a.uint(2) != 0 {
        return Err(Errno::EINVAL);
    }
    let size: u32 = usercopy::read(a.raw(1))?;
    if size != 0 && size < BYTES {
        usercopy::write(a.raw(1), &BYTES)?;
        return Err(Errno::E2BIG);
    }
    let attr: SchedAttr = usercopy::read(a.raw(1))?;
    if attr.flags & !1 != 0 {
        return Err(Errno::EINVAL);
    }
    let task = target(a.int(0))?;
    let reset = if attr.flags & 1 != 0 { RESET_ON_FORK } else { 0 };
    let priority = i32::try_from(attr.priority).map_err(|_| Errno::EINVAL)?;
    set(&task, attr.policy | reset, priority)?;
    if !is_real_time(attr.policy) {
        task.attributes.change(|now| now.nice = attr.nice.clamp(-20, 19));
    }
    Ok(0)
}

const PRIO_PROCESS: i32 = 0;
const PRIO_PGRP: i32 = 1;
const PRIO_USER: i32 = 2;

/// Whose nice value: a thread's, a group's or all. ESRCH if there is nobody, EINVAL.
fn nice_targets(a: &Args) -> Result<Vec<Arc<Task>>, Errno> {
    let (kind, who) = (a.int(0), a.uint(1));
    let me = task::current();
    let threads = |wanted: &dyn Fn(&process::Process) -> bool| -> Vec<Arc<Task>> {
        let all = ids::those(|p| p.pid > 1 && wanted(p));
        all.iter().flat_map(|p| p.threads.lock().clone()).collect()
    };
    let found = match kind {
        PRIO_PROCESS if who == 0 => Vec::from([me.arc()]),
        PRIO_PROCESS => ids::find_task(who).into_iter().collect(),
        PRIO_PGRP => {
            // Relaxed: ids that change meanwhile may be seen either way.
            let group = if who == 0 { me.process.pgid.load(Ordering::Relaxed) } else { who };
            threads(&|p| p.pgid.load(Ordering::Relaxed) == group)
        }
        PRIO_USER if who == 0 => threads(&|_| true),
        PRIO_USER => Vec::new(),
        _ => return Err(Errno::EINVAL),
    };
    if found.is_empty() { Err(Errno::ESRCH) } else { Ok(found) }
}

/// `getpriority(2)`: 20 minus the lowest nice value, so that it is no error.
pub fn getpriority(a: &Args) -> SysResult {
    if let (PRIO_PROCESS, Ok(tid)) = (a.int(0), i32::try_from(a.uint(1))) {
        return Ok((20 - told(tid)?.nice) as usize);
    }
    let lowest = nice_targets(a)?.iter().map(|t| t.attributes.get().nice).min().unwrap_or(0);
    Ok((20 - lowest) as usize)
}

/// `setpriority(2)`.
pub fn setpriority(a: &Args) -> SysResult {
    let nice = a.int(2).clamp(-20, 19);
    for task in nice_targets(a)? {
        task.attributes.change(|now| now.nice = nice);
    }
    Ok(0)
}

//! Calls about signals.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use super::{Args, time};
use crate::{
    errno::{Errno, SysResult},
    hw::{self, TrapFrame},
    ids,
    process::Process,
    signal::{self, Action, SigInfo, SigSet, Signal, code},
    task::{self, Task},
    upcall, usercopy,
    wait::{self, Woken},
};

/// Bytes of the kernel's `sigset_t`; the calls say which size they mean.
const SET_BYTES: u64 = size_of::<SigSet>() as u64;

fn check_size(bytes: u64) -> Result<(), Errno> {
    if bytes == SET_BYTES { Ok(()) } else { Err(Errno::EINVAL) }
}

/// Signal number `n`, or `None` for 0, which only asks whether the target exists.
pub fn signal_or_probe(n: i32) -> Result<Option<Signal>, Errno> {
    match u64::try_from(n) {
        Ok(0) => Ok(None),
        Ok(n) => Signal::new(n).map(Some).ok_or(Errno::EINVAL),
        Err(_) => Err(Errno::EINVAL),
    }
}

/// `rt_sigaction(2)`.
pub fn rt_sigaction(a: &Args) -> SysResult {
    check_size(a.raw(3))?;
    let signal = u64::try_from(a.int(0)).ok().and_then(Signal::new).ok_or(Errno::EINVAL)?;
    let new = if a.raw(1) == 0 { None } else { Some(usercopy::read::<Action>(a.raw(1))?) };
    if new.is_some() && SigSet::UNBLOCKABLE.has(signal) {
        return Err(Errno::EINVAL);
    }
    let old = signal::action(signal, new);
    if a.raw(2) != 0 {
        upcall::owed(|| usercopy::write(a.raw(2), &old))?;
    }
    Ok(0)
}

/// `rt_sigprocmask(2)`.
pub fn rt_sigprocmask(a: &Args) -> SysResult {
    const BLOCK: i32 = 0;
    const UNBLOCK: i32 = 1;
    const SETMASK: i32 = 2;
    check_size(a.raw(3))?;
    let old = signal::blocked();
    if a.raw(1) != 0 {
        let set: SigSet = usercopy::read(a.raw(1))?;
        signal::set_blocked(match a.int(0) {
            BLOCK => SigSet(old.0 | set.0),
            UNBLOCK => SigSet(old.0 & !set.0),
            SETMASK => set,
            _ => return Err(Errno::EINVAL),
        });
    }
    if a.raw(2) != 0 {
        upcall::owed(|| usercopy::write(a.raw(2), &old))?;
    }
    Ok(0)
}

/// `rt_sigpending(2)`: what is blocked and pending. The size may be smaller than a set.
pub fn rt_sigpending(a: &Args) -> SysResult {
    if a.raw(1) > SET_BYTES {
        return Err(Errno::EINVAL);
    }
    let set = signal::blocked_and_pending();
    let bytes = usercopy::bytes_of(&set);
    usercopy::copy_out(a.raw(0), bytes.get(..a.raw(1) as usize).unwrap_or_default())?;
    Ok(0)
}

/// `rt_sigsuspend(2)`: wait for a handler to run, with another mask.
pub fn rt_sigsuspend(a: &Args) -> SysResult {
    check_size(a.raw(1))?;
    signal::mask_for_wait(usercopy::read(a.raw(0))?);
    wait::sleep_until(None);
    Err(Errno::RESTART_NO_HANDLER)
}

/// `pause(2)`.
pub fn pause(_: &Args) -> SysResult {
    wait::sleep_until(None);
    Err(Errno::RESTART_NO_HANDLER)
}

/// `rt_sigtimedwait(2)`: take one of a set of signals, without its action.
pub fn rt_sigtimedwait(a: &Args) -> SysResult {
    check_size(a.raw(3))?;
    let set: SigSet = usercopy::read(a.raw(0))?;
    let deadline = match a.raw(2) {
        0 => None,
        at => Some(hw::timer::now().saturating_add(time::read_timespec(at)?)),
    };
    let info = match signal::await_one(set, deadline) {
        Ok(info) => info,
        Err(Woken::TimedOut) => return Err(Errno::EAGAIN),
        Err(Woken::Interrupted) => return Err(Errno::EINTR),
    };
    if a.raw(1) != 0 {
        upcall::owed(|| usercopy::write(a.raw(1), &info))?;
    }
    Ok(info.signal().map_or(0, |s| s.number() as usize))
}

/// `rt_sigreturn(2)`.
pub fn rt_sigreturn(_: &Args, frame: &mut TrapFrame) -> Option<SysResult> {
    signal::sigreturn(frame);
    None
}

/// `restart_syscall(2)`: the rest of a call that a stop or an ignored signal interrupted.
pub fn restart_syscall(_: &Args) -> SysResult {
    let rest = signal::take_restart();
    rest.map_or(Err(Errno::EINTR), |f| f())
}

/// `sigaltstack(2)`.
pub fn sigaltstack(a: &Args, frame: &mut TrapFrame) -> Option<SysResult> {
    Some(signal::sigaltstack(a.raw(0), a.raw(1), frame.rsp))
}

/// `kill(2)`.
pub fn kill(a: &Args) -> SysResult {
    let (pid, signal) = (a.int(0), signal_or_probe(a.int(1))?);
    let me = task::current();
    // Relaxed, here and below: ids that change meanwhile may be seen either way.
    let own_group = me.process.pgid.load(Ordering::Relaxed);
    let is_meant = |p: &Process| match pid {
        0 => p.pgid.load(Ordering::Relaxed) == own_group,
        // Everybody but the supervisor and the caller.
        -1 => p.pid > 1 && p.pid != me.process.pid,
        _ => p.pgid.load(Ordering::Relaxed) == pid.unsigned_abs(),
    };
    if pid == i32::MIN {
        return Err(Errno::ESRCH);
    }
    let info = signal.map(|signal| SigInfo::from_caller(signal.number(), code::SI_USER));
    let send = |p: &Process| info.map_or(Ok(()), |info| signal::queue(p, None, info));
    match pid {
        // The caller's own process needs no finding.
        1.. if pid as u32 == me.process.pid => send(&me.process)?,
        1.. => ids::with(pid as u32, |p: &Arc<Process>| send(p)).ok_or(Errno::ESRCH)??,
        _ => match info {
            Some(info) => signal::send_to(is_meant, info)?,
            None if ids::any(is_meant) => {}
            None => return Err(Errno::ESRCH),
        },
    }
    Ok(0)
}

/// What `f`, which must not sleep, makes of the thread `tid`, of process `tgid` if given. EINVAL for ids that no thread can have,
/// ESRCH if there is none.
fn with_thread<R>(tgid: Option<i32>, tid: i32, f: impl FnOnce(&Arc<Task>) -> R) -> Result<R, Errno> {
    if tid <= 0 || tgid.is_some_and(|g| g <= 0) {
        return Err(Errno::EINVAL);
    }
    let is_meant = |task: &Arc<Task>| tgid.is_none_or(|g| task.process.pid == g as u32);
    let checked = |task: &Arc<Task>| is_meant(task).then(|| f(task));
    let me = task::current();
    let done =
        if tid as u32 == me.tid() { checked(&me.arc()) } else { ids::with(tid as u32, checked).flatten() };
    done.ok_or(Errno::ESRCH)
}

fn kill_thread(tgid: Option<i32>, tid: i32, signal: i32) -> SysResult {
    let signal = signal_or_probe(signal);
    with_thread(tgid, tid, |task| {
        let Some(signal) = signal? else { return Ok(0) };
        let info = SigInfo::from_caller(signal.number(), code::SI_TKILL);
        signal::queue(&task.process, Some(task), info).map(|()| 0)
    })?
}

/// `tkill(2)`.
pub fn tkill(a: &Args) -> SysResult {
    kill_thread(None, a.int(0), a.int(1))
}

/// `tgkill(2)`.
pub fn tgkill(a: &Args) -> SysResult {
    kill_thread(Some(a.int(0)), a.int(1), a.int(2))
}

/// The information at `at`, for `signal`. EPERM if it poses as the kernel's, or as another thread's `tkill`, to
/// anybody but the caller's own process `own`.
pub fn given_info(at: u64, signal: i32, own: bool) -> Result<SigInfo, Errno> {
    let info = usercopy::read::<SigInfo>(at)?.given(signal as u32);
    if !own && (info.code() >= 0 || info.code() == code::SI_TKILL) {
        return Err(Errno::EPERM);
    }
    Ok(info)
}

/// `rt_sigqueueinfo(2)`.
pub fn rt_sigqueueinfo(a: &Args) -> SysResult {
    let (pid, number) = (a.int(0), a.int(1));
    let info = given_info(a.raw(2), number, pid == task::current().process.pid as i32)?;
    let signal = signal_or_probe(number)?;
    let send = |target: &Arc<Process>| signal.map_or(Ok(()), |_| signal::queue(target, None, info));
    u32::try_from(pid).ok().and_then(|pid| ids::with(pid, send)).ok_or(Errno::ESRCH)??;
    Ok(0)
}

/// `rt_tgsigqueueinfo(2)`.
pub fn rt_tgsigqueueinfo(a: &Args) -> SysResult {
    let (tgid, tid, number) = (a.int(0), a.int(1), a.int(2));
    if tid <= 0 || tgid <= 0 {
        return Err(Errno::EINVAL);
    }
    let info = given_info(a.raw(3), number, tid == task::current().tid() as i32)?;
    let signal = signal_or_probe(number)?;
    let send =
        |target: &Arc<Task>| signal.map_or(Ok(()), |_| signal::queue(&target.process, Some(target), info));
    with_thread(Some(tgid), tid, send)??;
    Ok(0)
}

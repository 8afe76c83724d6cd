//! Calls for waiting by descriptor: epoll, timerfd, signalfd, pidfd.

use alloc::sync::Arc;

use linux_raw_sys::general as c;

use super::{
    Args,
    file::{files, opened, timespec_at, with_mask},
    posix_timer::{read_itimerspec, write_itimerspec},
    signal::{given_info, signal_or_probe},
    time,
};
use crate::{
    errno::{Errno, SysResult},
    file::{Epoll, Interest, OpenFile, ProcessFile, Setting, SignalFile, Special, TimerFile},
    hw, ids,
    signal::{self, SigInfo, SigSet, code},
    task, upcall, usercopy,
};

// ---- epoll --------------------------------------------------------------------------------------------------------

/// Bytes of `struct epoll_event`, which is packed.
const EVENT_BYTES: u64 = 12;

/// `epoll_create(2)`: the size is only checked.
pub fn epoll_create(a: &Args) -> SysResult {
    if a.int(0) <= 0 { Err(Errno::EINVAL) } else { make_epoll(0) }
}

/// `epoll_create1(2)`.
pub fn epoll_create1(a: &Args) -> SysResult {
    if a.uint(0) & !c::EPOLL_CLOEXEC != 0 { Err(Errno::EINVAL) } else { make_epoll(a.uint(0)) }
}

fn make_epoll(flags: u32) -> SysResult {
    files().insert(Epoll::open()?, flags & c::EPOLL_CLOEXEC != 0)
}

fn epoll(file: &OpenFile) -> Result<&Arc<Epoll>, Errno> {
    match file.special() {
        Some(Special::Epoll(epoll)) => Ok(epoll),
        _ => Err(Errno::EINVAL),
    }
}

/// `epoll_ctl(2)`.
pub fn epoll_ctl(a: &Args) -> SysResult {
    let (operation, fd) = (a.uint(1), a.int(2));
    // As on Linux, the event is read for whatever operation but DEL.
    let interest = if operation == c::EPOLL_CTL_DEL {
        Interest { events: 0, data: 0 }
    } else {
        let [events, low, high]: [u32; 3] = usercopy::read(a.raw(3))?;
        Interest { events, data: u64::from(low) | u64::from(high) << 32 }
    };
    let own = opened(a, 0)?;
    let file = files().get(fd)?;
    if own.is_path() || file.is_path() {
        return Err(Errno::EBADF);
    }
    file.check_waitable()?;
    if core::ptr::eq(&*own, &*file) {
        return Err(Errno::EINVAL);
    }
    let epoll = epoll(&own)?;
    match operation {
        c::EPOLL_CTL_ADD => epoll.add(fd, &file, interest)?,
        c::EPOLL_CTL_MOD => epoll.modify(fd, &file, interest)?,
        c::EPOLL_CTL_DEL => epoll.delete(fd, &file)?,
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

/// A time limit in ms; None for none.
fn after_ms(ms: i32) -> Option<u64> {
    u64::try_from(ms).ok().map(|ms| hw::timer::now().saturating_add(ms * 1_000_000))
}

/// `epoll_wait(2)`.
pub fn epoll_wait(a: &Args) -> SysResult {
    wait_for_events(a, after_ms(a.int(3)))
}

/// `epoll_pwait(2)`.
pub fn epoll_pwait(a: &Args) -> SysResult {
    let deadline = after_ms(a.int(3));
    with_mask(a.raw(4), a.raw(5), || wait_for_events(a, deadline))
}

/// `epoll_pwait2(2)`.
pub fn epoll_pwait2(a: &Args) -> SysResult {
    let deadline = timespec_at(a.raw(3))?;
    with_mask(a.raw(4), a.raw(5), || wait_for_events(a, deadline))
}

fn wait_for_events(a: &Args, deadline: Option<u64>) -> SysResult {
    let (at, most) = (a.raw(1), a.int(2));
    if most <= 0 || most as u64 > i32::MAX as u64 / EVENT_BYTES {
        return Err(Errno::EINVAL);
    }
    if at.checked_add(most as u64 * EVENT_BYTES).is_none_or(|end| end > addr::USER_END) {
        return Err(Errno::EFAULT);
    }
    let file = opened(a, 0)?;
    epoll(&file)?.wait(most as usize, deadline, |i, event| {
        let words = [event.events, event.data as u32, (event.data >> 32) as u32];
        usercopy::write(at + EVENT_BYTES * i as u64, &words)
    })
}

// ---- timerfd ------------------------------------------------------------------------------------------------------

/// `timerfd_create(2)`.
pub fn timerfd_create(a: &Args) -> SysResult {
    const REALTIME_ALARM: i32 = 8;
    const BOOTTIME_ALARM: i32 = 9;
    let flags = a.uint(1);
    if flags & !(c::TFD_CLOEXEC | c::TFD_NONBLOCK) != 0 {
        return Err(Errno::EINVAL);
    }
    let realtime = match a.int(0) {
        time::REALTIME | REALTIME_ALARM => true,
        time::MONOTONIC | time::BOOTTIME | BOOTTIME_ALARM => false,
        _ => return Err(Errno::EINVAL),
    };
    files().insert(TimerFile::open(realtime, flags)?, flags & c::TFD_CLOEXEC != 0)
}

fn timer(file: &OpenFile) -> Result<&TimerFile, Errno> {
    match file.special() {
        Some(Special::Timer(timer)) => Ok(timer),
        _ if file.is_path() => Err(Errno::EBADF),
        _ => Err(Errno::EINVAL),
    }
}

fn setting_out(at: u64, s: Setting) -> Result<(), Errno> {
    write_itimerspec(at, (s.left, s.interval))
}

/// `timerfd_settime(2)`. The clock is never set, so TFD_TIMER_CANCEL_ON_SET has nothing to cancel.
pub fn timerfd_settime(a: &Args) -> SysResult {
    let flags = a.uint(1);
    let (interval, first) = read_itimerspec(a.raw(2))?;
    if flags & !(c::TFD_TIMER_ABSTIME | c::TFD_TIMER_CANCEL_ON_SET) != 0 {
        return Err(Errno::EINVAL);
    }
    let file = opened(a, 0)?;
    let old = timer(&file)?.set(first, interval, flags & c::TFD_TIMER_ABSTIME != 0);
    if a.raw(3) != 0 {
        upcall::owed(|| setting_out(a.raw(3), old))?;
    }
    Ok(0)
}

/// `timerfd_gettime(2)`.
pub fn timerfd_gettime(a: &Args) -> SysResult {
    let file = opened(a, 0)?;
    setting_out(a.raw(1), timer(&file)?.setting())?;
    Ok(0)
}

// ---- signalfd -----------------------------------------------------------------------------------------------------

/// `signalfd(2)` of old.
pub fn signalfd(a: &Args) -> SysResult {
    make_signalfd(a, 0)
}

/// `signalfd4(2)`.
pub fn signalfd4(a: &Args) -> SysResult {
    make_signalfd(a, a.uint(3))
}

fn make_signalfd(a: &Args, flags: u32) -> SysResult {
    if a.raw(2) != size_of::<SigSet>() as u64 {
        return Err(Errno::EINVAL);
    }
    let set: SigSet = usercopy::read(a.raw(1))?;
    if flags & !(c::O_CLOEXEC | c::O_NONBLOCK) != 0 {
        return Err(Errno::EINVAL);
    }
    if a.int(0) == -1 {
        return files().insert(SignalFile::open(set, flags)?, flags & c::O_CLOEXEC != 0);
    }
    let file = opened(a, 0)?;
    match file.special() {
        Some(Special::Signals(signals)) => signals.set(set),
        _ if file.is_path() => return Err(Errno::EBADF),
        _ => return Err(Errno::EINVAL),
    }
    Ok(a.uint(0) as usize)
}

// ---- pidfd --------------------------------------------------------------------------------------------------------

/// `pidfd_open(2)`, for processes.
pub fn pidfd_open(a: &Args) -> SysResult {
    let (pid, flags) = (a.int(0), a.uint(1));
    if flags & !c::O_NONBLOCK != 0 {
        return Err(Errno::EINVAL);
    }
    let pid = u32::try_from(pid).ok().filter(|&pid| pid > 0).ok_or(Errno::EINVAL)?;
    let found = ids::find(pid);
    let process = match found {
        Some(process) => process,
        // A thread that isn't its process's first.
        None if ids::is_thread(pid) => return Err(Errno::ENOENT),
        None => return Err(Errno::ESRCH),
    };
    files().insert(ProcessFile::open(process, flags)?, true)
}

/// The process that `file` stands for. EBADF if it is no pidfd.
pub fn process_of(file: &OpenFile) -> Result<&ProcessFile, Errno> {
    match file.special() {
        Some(Special::Process(process)) => Ok(process),
        _ => Err(Errno::EBADF),
    }
}

/// `pidfd_send_signal(2)`.
pub fn pidfd_send_signal(a: &Args) -> SysResult {
    let (number, info) = (a.int(1), a.raw(2));
    if a.uint(3) != 0 {
        return Err(Errno::EINVAL);
    }
    let file = opened(a, 0)?;
    let target = process_of(&file)?;
    let own = Arc::ptr_eq(target.process(), &task::current().process);
    let given = match info {
        0 => None,
        at => {
            let signo: i32 = usercopy::read(at)?;
            if signo != number {
                return Err(Errno::EINVAL);
            }
            Some(given_info(at, number, own)?)
        }
    };
    let signal = signal_or_probe(number);
    let process = target.alive_or_zombie()?;
    if let Some(signal) = signal? {
        let info = given.unwrap_or_else(|| SigInfo::from_caller(signal.number(), code::SI_USER));
        signal::queue(process, None, info)?;
    }
    Ok(0)
}

/// `pidfd_getfd(2)`.
pub fn pidfd_getfd(a: &Args) -> SysResult {
    if a.uint(2) != 0 {
        return Err(Errno::EINVAL);
    }
    let file = opened(a, 0)?;
    let process = process_of(&file)?.alive_or_zombie()?;
    if process.ended().is_some() {
        return Err(Errno::ESRCH);
    }
    let theirs = process.file(a.int(1))?;
    files().insert(theirs, true)
}

//! Clocks, sleeps and the alarm.
//!
//! Times are u64 nanoseconds since boot inside the kernel: 584 years. CLOCK_REALTIME is that plus the time of day at
//! boot, which never changes; so a deadline of any clock becomes one since boot at once.

use alloc::{
    boxed::Box,
    sync::{Arc, Weak},
    task::Wake,
};

use super::Args;
use crate::{
    cpu_time::{self, Which},
    errno::{Errno, SysResult},
    hw, ids,
    process::Process,
    signal::{self, SigInfo, Signal},
    task::{self, Task},
    timers::{self, Timer},
    upcall, usercopy,
    wait::{self, Woken},
};

pub const NS: u64 = 1_000_000_000;
pub const REALTIME: i32 = 0;
pub const MONOTONIC: i32 = 1;
pub const PROCESS_CPUTIME: i32 = 2;
pub const THREAD_CPUTIME: i32 = 3;
pub const MONOTONIC_RAW: i32 = 4;
pub const REALTIME_COARSE: i32 = 5;
pub const MONOTONIC_COARSE: i32 = 6;
pub const BOOTTIME: i32 = 7;
pub const TAI: i32 = 11;

/// The `timespec` at `at` in ns, or as many as there can be. EINVAL if negative or not normal.
pub fn read_timespec(at: u64) -> Result<u64, Errno> {
    let [seconds, ns]: [i64; 2] = usercopy::read(at)?;
    from_parts(seconds, ns, NS)
}

pub fn from_parts(seconds: i64, part: i64, parts: u64) -> Result<u64, Errno> {
    let (s, p) = (u64::try_from(seconds).map_err(|_| Errno::EINVAL)?, part as u64);
    if p >= parts {
        return Err(Errno::EINVAL);
    }
    Ok(s.saturating_mul(NS).saturating_add(p * (NS / parts)))
}

/// Store `ns` as a `timespec` at `at`.
pub fn write_timespec(at: u64, ns: u64) -> Result<(), Errno> {
    usercopy::write(at, &[ns / NS, ns % NS])
}

fn write_timeval(at: u64, ns: u64) -> Result<(), Errno> {
    usercopy::write(at, &[ns / NS, ns % NS / 1000])
}

/// Nanoseconds in clock ticks of 1/100 s.
fn ticks(ns: u64) -> u64 {
    ns / (NS / 100)
}

/// The time of day, in ns since 1970.
pub fn realtime() -> u64 {
    hw::timer::boot_epoch_ns() + hw::timer::now()
}

/// The clock that a dynamic id names (`clock_getcpuclockid`): the complement of a process or thread id in the upper
/// bits, "a thread's" in bit 2, the kind of clock in bits 0 and 1.
fn cpu_clock(id: i32) -> Result<u64, Errno> {
    const PER_THREAD: i32 = 4;
    if id & 3 > 2 {
        return Err(Errno::EINVAL);
    }
    let target = !(id >> 3) as u32;
    let me = task::current();
    if id & PER_THREAD != 0 {
        let tid = if target == 0 { me.tid() } else { target };
        let clock = |t: &Arc<Task>| {
            let is_own = Arc::ptr_eq(&t.process, &me.process);
            is_own.then(|| t.sched.clock.run_ns()).ok_or(Errno::EINVAL)
        };
        return ids::with(tid, clock).unwrap_or(Err(Errno::EINVAL));
    }
    let pid = if target == 0 { me.process.pid } else { target };
    ids::with(pid, |p: &Arc<Process>| p.cpu_ns()).ok_or(Errno::EINVAL)
}

/// What clock `id` shows, in ns. EINVAL if there is no such clock.
fn read_clock(id: i32) -> Result<u64, Errno> {
    match id {
        // There are no leap seconds: TAI is what Linux says without an offset.
        REALTIME | REALTIME_COARSE | TAI => Ok(realtime()),
        MONOTONIC | MONOTONIC_RAW | MONOTONIC_COARSE | BOOTTIME => Ok(hw::timer::now()),
        PROCESS_CPUTIME => Ok(task::current().process.cpu_ns()),
        THREAD_CPUTIME => Ok(task::current().sched.clock.run_ns()),
        i32::MIN..0 => cpu_clock(id),
        _ => Err(Errno::EINVAL),
    }
}

/// `clock_gettime(2)`.
pub fn clock_gettime(a: &Args) -> SysResult {
    write_timespec(a.raw(1), read_clock(a.int(0))?)?;
    Ok(0)
}

/// `clock_getres(2)`: every clock counts ns.
pub fn clock_getres(a: &Args) -> SysResult {
    read_clock(a.int(0))?;
    if a.raw(1) != 0 {
        write_timespec(a.raw(1), 1)?;
    }
    Ok(0)
}

/// `gettimeofday(2)`: the time zone is UTC.
pub fn gettimeofday(a: &Args) -> SysResult {
    if a.raw(0) != 0 {
        write_timeval(a.raw(0), realtime())?;
    }
    if a.raw(1) != 0 {
        usercopy::write(a.raw(1), &[0i32; 2])?;
    }
    Ok(0)
}

/// `time(2)`.
pub fn time(a: &Args) -> SysResult {
    let seconds = realtime() / NS;
    if a.raw(0) != 0 {
        usercopy::write(a.raw(0), &seconds)?;
    }
    Ok(seconds as usize)
}

/// `times(2)`: processor time in 1/100 s; all of it counts as user time.
pub fn times(a: &Args) -> SysResult {
    if a.raw(0) != 0 {
        let p = &task::current().process;
        let children = p.children_used().cpu_ns;
        usercopy::write(a.raw(0), &[ticks(p.cpu_ns()), 0, ticks(children), 0])?;
    }
    Ok(ticks(hw::timer::now()) as usize)
}

/// Sleep until `deadline` (ns since boot). Interrupted, it tells the time left at `left` if that isn't 0, and goes on
/// afterwards if no handler ran.
fn sleep(deadline: u64, left: u64) -> SysResult {
    match wait::sleep_until(Some(deadline)) {
        Woken::TimedOut => Ok(0),
        Woken::Interrupted => {
            let rest = deadline.saturating_sub(hw::timer::now());
            if rest == 0 {
                return Ok(0);
            }
            if left != 0 {
                upcall::owed(|| write_timespec(left, rest))?;
            }
            Err(signal::restart_with(Box::new(move || sleep(deadline, left))))
        }
    }
}

/// `nanosleep(2)`.
pub fn nanosleep(a: &Args) -> SysResult {
    let ns = read_timespec(a.raw(0))?;
    sleep(hw::timer::now().saturating_add(ns), a.raw(1))
}

/// `clock_nanosleep(2)`, on the clocks that advance with time.
pub fn clock_nanosleep(a: &Args) -> SysResult {
    const TIMER_ABSTIME: i32 = 1;
    let offset = match a.int(0) {
        REALTIME | TAI => hw::timer::boot_epoch_ns(),
        MONOTONIC | BOOTTIME => 0,
        PROCESS_CPUTIME | THREAD_CPUTIME | MONOTONIC_RAW | REALTIME_COARSE | MONOTONIC_COARSE => {
            return Err(Errno::EOPNOTSUPP);
        }
        i32::MIN..0 => return Err(Errno::EOPNOTSUPP),
        _ => return Err(Errno::EINVAL),
    };
    let ns = read_timespec(a.raw(2))?;
    if a.int(1) & TIMER_ABSTIME == 0 {
        return sleep(hw::timer::now().saturating_add(ns), a.raw(3));
    }
    match wait::sleep_until(Some(ns.saturating_sub(offset))) {
        Woken::TimedOut => Ok(0),
        // The deadline is absolute, so the call can simply be made again.
        Woken::Interrupted => Err(Errno::RESTART_NO_HANDLER),
    }
}

/// ITIMER_REAL of a process.
pub struct Alarm {
    timer: Timer,
    /// Then every so many ns; 0 for once.
    interval: u64,
}

/// What the timer wakes: SIGALRM for the process.
struct Ring(Weak<Process>);

impl Wake for Ring {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    // In an interrupt handler. The process is not freed here: its end cancels the timer first (`process_exit`).
    fn wake_by_ref(self: &Arc<Self>) {
        if let Some(process) = self.0.upgrade() {
            signal::send_process(&process, SigInfo::kernel(Signal::ALRM.number()));
        }
    }
}

impl Alarm {
    fn new(process: &Arc<Process>, deadline: u64, interval: u64) -> Self {
        Self { timer: timers::wake_at(deadline, Arc::new(Ring(Arc::downgrade(process)))), interval }
    }
    /// Time left and interval, in ns. While it is set there is some time left.
    fn setting(&self) -> (u64, u64) {
        let left = self.timer.deadline().saturating_sub(hw::timer::now());
        match (left, self.interval) {
            (0, 0) => (0, 0),
            (left, interval) => (left.max(1000), interval),
        }
    }
}

/// `info` was taken from what is pending for `process`: timers that wait for that go on. Gives it as the program
/// shall see it. With no lock held.
pub fn taken(process: &Arc<Process>, info: SigInfo) -> SigInfo {
    if info.signal() == Some(Signal::ALRM) {
        rearm(process);
    }
    process.timers.taken(info)
}

/// A SIGALRM was taken: if it came from the process's interval timer, set that for the next time. Not by the timer
/// itself, so that a program that doesn't keep up is not flooded, and handlers of interrupts need no memory.
fn rearm(process: &Arc<Process>) {
    let now = hw::timer::now();
    let due = {
        let mut state = process.signals.lock();
        let due = state.alarm().as_ref().filter(|a| a.interval != 0 && a.timer.deadline() <= now);
        due.map(|a| (a.timer.deadline(), a.interval))
    };
    let Some((last, interval)) = due else { return };
    let mut new = Some(Alarm::new(process, last + ((now - last) / interval + 1) * interval, interval));
    {
        let mut state = process.signals.lock();
        // Unless another thread has set it meanwhile.
        if state.alarm().as_ref().is_some_and(|a| a.timer.deadline() == last) {
            core::mem::swap(state.alarm(), &mut new);
        }
    }
    // With no lock held, since this waits if the timer is being fired.
    drop(new);
}

/// Replace the alarm: what was set, as by [`Alarm::setting`].
fn set_alarm(first: u64, interval: u64) -> (u64, u64) {
    let process = &task::current().process;
    let new = (first != 0).then(|| Alarm::new(process, hw::timer::now().saturating_add(first), interval));
    let old = core::mem::replace(process.signals.lock().alarm(), new);
    let setting = old.as_ref().map_or((0, 0), Alarm::setting);
    drop(old);
    setting
}

/// A timer of a process.
enum IntervalTimer {
    Real,
    Cpu(Which),
}

fn interval_timer(which: i32) -> Result<IntervalTimer, Errno> {
    match which {
        0 => Ok(IntervalTimer::Real),
        1 => Ok(IntervalTimer::Cpu(Which::Virtual)),
        2 => Ok(IntervalTimer::Cpu(Which::Prof)),
        _ => Err(Errno::EINVAL),
    }
}

fn write_itimer(at: u64, (left, interval): (u64, u64)) -> Result<(), Errno> {
    usercopy::write(at, &[interval / NS, interval % NS / 1000, left / NS, left % NS / 1000])
}

/// `setitimer(2)`.
pub fn setitimer(a: &Args) -> SysResult {
    let [interval_s, interval_us, first_s, first_us]: [i64; 4] = match a.raw(1) {
        0 => [0; 4],
        at => usercopy::read(at)?,
    };
    let interval = from_parts(interval_s, interval_us, 1_000_000)?;
    let first = from_parts(first_s, first_us, 1_000_000)?;
    let old = match interval_timer(a.int(0))? {
        IntervalTimer::Real => set_alarm(first, interval),
        IntervalTimer::Cpu(which) => cpu_time::set(which, first, interval),
    };
    if a.raw(2) != 0 {
        upcall::owed(|| write_itimer(a.raw(2), old))?;
    }
    Ok(0)
}

/// `getitimer(2)`.
pub fn getitimer(a: &Args) -> SysResult {
    let setting = match interval_timer(a.int(0))? {
        IntervalTimer::Real => {
            task::current().process.signals.lock().alarm().as_ref().map_or((0, 0), Alarm::setting)
        }
        IntervalTimer::Cpu(which) => cpu_time::get(which),
    };
    write_itimer(a.raw(1), setting)?;
    Ok(0)
}

/// `alarm(2)`: the seconds that were left, rounded as Linux does: to the nearest, but 0 only if none was set.
pub fn alarm(a: &Args) -> SysResult {
    let (left, _) = set_alarm(u64::from(a.uint(0)) * NS, 0);
    let seconds = (left + NS / 2) / NS;
    Ok(if left != 0 { seconds.max(1) as usize } else { 0 })
}

/// `clock_settime(2)`: the time of day is the machine's, and nobody may change it.
pub fn clock_settime(a: &Args) -> SysResult {
    if a.int(0) != REALTIME {
        return Err(Errno::EINVAL);
    }
    read_timespec(a.raw(1))?;
    Err(Errno::EPERM)
}

/// `settimeofday(2)`: as [`clock_settime`]. Setting nothing is allowed.
pub fn settimeofday(a: &Args) -> SysResult {
    if a.raw(0) != 0 {
        let [seconds, us]: [i64; 2] = usercopy::read(a.raw(0))?;
        from_parts(seconds, us, 1_000_000)?;
    }
    if a.raw(1) != 0 {
        usercopy::read::<[i32; 2]>(a.raw(1))?;
    }
    if a.raw(0) == 0 && a.raw(1) == 0 { Ok(0) } else { Err(Errno::EPERM) }
}

/// `adjtimex(2)`.
pub fn adjtimex(a: &Args) -> SysResult {
    adjust(a.raw(0))
}

/// `clock_adjtime(2)`, of CLOCK_REALTIME.
pub fn clock_adjtime(a: &Args) -> SysResult {
    match a.int(0) {
        REALTIME => adjust(a.raw(1)),
        MONOTONIC | PROCESS_CPUTIME | THREAD_CPUTIME | MONOTONIC_RAW | REALTIME_COARSE | MONOTONIC_COARSE
        | BOOTTIME | TAI => Err(Errno::EOPNOTSUPP),
        _ => Err(Errno::EINVAL),
    }
}

/// `struct timex` at `at`: asking is answered, for a clock that nobody disciplines; changing is EPERM.
fn adjust(at: u64) -> SysResult {
    const TIME_ERROR: usize = 5;
    const STA_UNSYNC: u64 = 0x40;
    const STA_NANO: u64 = 0x2000;
    /// Words of `struct timex`.
    const WORDS: usize = 26;
    let mut timex: [u64; WORDS] = usercopy::read(at)?;
    if timex[0] as u32 != 0 {
        return Err(Errno::EPERM);
    }
    let now = realtime();
    timex = [0; WORDS];
    // modes, offset, freq, maxerror, esterror, status, constant, precision, tolerance, time, tick, ...
    timex[3] = 16_000_000;
    timex[4] = 16_000_000;
    timex[5] = STA_UNSYNC | STA_NANO;
    timex[7] = 1;
    timex[8] = 500 << 16;
    timex[9] = now / NS;
    timex[10] = now % NS;
    timex[11] = 10_000;
    usercopy::write(at, &timex)?;
    Ok(TIME_ERROR)
}

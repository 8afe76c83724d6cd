//! POSIX timers: a process's own, that send signals.
//!
//! A timer has at most one signal pending (timer_create(2)): when it expires it sends one, and stands still; when that
//! is taken, the expirations that have passed meanwhile are counted as its overrun, and the timer is set for the next.
//! So a timer costs an interrupt and a signal for each one that the program takes, however short the interval.
//!
//! A timer is fired by an interrupt, which sends the signal: it takes the timer's own lock, then the locks of signals,
//! and frees nothing. Its [`Timer`] is only ever dropped with none of these held.

use alloc::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    task::Wake,
    vec::Vec,
};
use core::sync::atomic::{AtomicBool, Ordering};

use sync::SpinLock;

use super::{Args, time};
use crate::{
    errno::{Errno, SysResult},
    hw::{self, irq},
    ids,
    limits::RLIMIT_SIGPENDING,
    memory,
    process::Process,
    signal::{self, SigInfo, Signal},
    task::{self, Task},
    timers::{self, Timer},
    upcall, usercopy,
};

/// The most timers of a process, whatever RLIMIT_SIGPENDING says.
const MOST: u64 = 1024;
/// Linux's DELAYTIMER_MAX: the most that an overrun is told as.
const OVERRUN_MAX: u64 = i32::MAX as u64;

const SIGEV_SIGNAL: i32 = 0;
const SIGEV_NONE: i32 = 1;
const SIGEV_THREAD: i32 = 2;
const SIGEV_THREAD_ID: i32 = 4;

/// What an expiration does.
struct Target {
    process: Weak<Process>,
    /// For SIGEV_THREAD_ID; gone with the thread, and then nothing is sent.
    thread: Option<Arc<Task>>,
    /// None for SIGEV_NONE.
    info: Option<SigInfo>,
    to_thread: bool,
}

/// What the interrupt calls.
struct Bell(irq::Lock<Target>);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    // In an interrupt handler. The process is not freed here: its end cancels its timers first (`process_exit`).
    fn wake_by_ref(self: &Arc<Self>) {
        let target = self.0.lock();
        let (Some(info), Some(process)) = (target.info, target.process.upgrade()) else { return };
        match (&target.thread, target.to_thread) {
            (Some(task), _) => signal::send_task(task, info),
            (None, false) => signal::send_process(&process, info),
            (None, true) => {}
        }
    }
}

#[derive(Default)]
struct State {
    /// ns since boot of the expiration that comes next, or came and has not been taken; None if it isn't set.
    next: Option<u64>,
    /// ns; 0 for once.
    interval: u64,
    /// Of the signal that was taken last.
    overrun: u64,
    timer: Option<Timer>,
}

/// A timer.
struct PosixTimer {
    realtime: bool,
    bell: Arc<Bell>,
    /// The number of the signal that it sends.
    signal: Option<Signal>,
    state: SpinLock<State>,
}

impl PosixTimer {
    /// Time left and interval, in ns.
    fn setting(&self, state: &State) -> (u64, u64) {
        let now = hw::timer::now();
        let left = match state.next {
            None => 0,
            Some(next) if next > now => next - now,
            Some(_) if state.interval == 0 => 0,
            Some(next) => state.interval - (now - next) % state.interval,
        };
        (left, state.interval)
    }

    /// Set it to expire at `next` (ns since boot), or not at all; gives what was set.
    fn set(&self, next: Option<u64>, interval: u64) -> (u64, u64) {
        let sends = self.signal.is_some();
        let timer = next.filter(|_| sends).map(|at| timers::wake_at(at, self.bell.clone()));
        let (old, rung) = {
            let mut state = self.state.lock();
            let old = self.setting(&state);
            (old, core::mem::replace(&mut *state, State { next, interval, overrun: 0, timer }))
        };
        drop(rung); // with no lock held
        old
    }

    /// Its signal was taken, or may go again: count what has passed and go on. Gives the overrun, if it had expired.
    fn go_on(&self) -> Option<u64> {
        let now = hw::timer::now();
        let (overrun, rung) = {
            let mut state = self.state.lock();
            let next = state.next.filter(|&next| next <= now)?;
            let rung = match now.checked_sub(next).and_then(|late| late.checked_div(state.interval)) {
                None => {
                    state.next = None;
                    state.overrun = 0;
                    state.timer.take()
                }
                Some(more) => {
                    state.overrun = more.min(OVERRUN_MAX);
                    let next = next.saturating_add((more + 1).saturating_mul(state.interval));
                    state.next = Some(next);
                    state.timer.replace(timers::wake_at(next, self.bell.clone()))
                }
            };
            (state.overrun, rung)
        };
        drop(rung); // with no lock held
        Some(overrun)
    }
}

/// The timers of a process.
pub struct PosixTimers {
    list: SpinLock<List>,
    /// Whether there has been one.
    used: AtomicBool,
}

struct List {
    timers: BTreeMap<u32, Arc<PosixTimer>>,
    next: u32,
}

impl Default for PosixTimers {
    fn default() -> Self {
        Self::new()
    }
}

impl PosixTimers {
    /// None.
    pub const fn new() -> Self {
        Self { list: SpinLock::new(List { timers: BTreeMap::new(), next: 0 }), used: AtomicBool::new(false) }
    }

    fn get(&self, id: i32) -> Result<Arc<PosixTimer>, Errno> {
        let id = u32::try_from(id).map_err(|_| Errno::EINVAL)?;
        self.list.lock().timers.get(&id).cloned().ok_or(Errno::EINVAL)
    }

    /// Enter what `make` makes of a fresh id. EAGAIN past `most`.
    fn insert(&self, most: u64, make: impl FnOnce(u32) -> PosixTimer) -> Result<u32, Errno> {
        let mut list = self.list.lock();
        if list.timers.len() as u64 >= most {
            return Err(Errno::EAGAIN);
        }
        let mut id = list.next;
        while list.timers.contains_key(&id) {
            id = (id + 1) & i32::MAX as u32;
        }
        list.next = (id + 1) & i32::MAX as u32;
        let timer = Arc::new(make(id));
        list.timers.insert(id, timer);
        // Relaxed: the timer waits for a signal to be taken, if it does, only when it has expired; and who takes the signal has
        // the lock under which that was found pending.
        self.used.store(true, Ordering::Relaxed);
        Ok(id)
    }

    /// `execve` and the end of the process: there are none any more.
    pub fn clear(&self) {
        let timers = core::mem::take(&mut self.list.lock().timers);
        drop(timers); // with no lock held
    }

    /// `task` ends: nothing is sent to it any more.
    pub fn thread_ended(&self, task: &Arc<Task>) {
        let timers: Vec<_> = self.list.lock().timers.values().cloned().collect();
        for timer in timers {
            let gone = {
                let mut target = timer.bell.0.lock();
                if target.thread.as_ref().is_some_and(|t| Arc::ptr_eq(t, task)) {
                    target.thread.take()
                } else {
                    None
                }
            };
            drop(gone);
        }
    }

    /// `info` was taken: timers that wait for that go on. Gives it with the overrun in it.
    pub fn taken(&self, info: SigInfo) -> SigInfo {
        // Relaxed: see `insert`.
        if !self.used.load(Ordering::Relaxed) {
            return info;
        }
        let mine = |timer: &PosixTimer| timer.signal == info.signal();
        let timers: Vec<_> = {
            let list = self.list.lock();
            list.timers.iter().filter(|(_, t)| mine(t)).map(|(id, t)| (*id, t.clone())).collect()
        };
        let mut info = info;
        for (id, timer) in timers {
            let overrun = timer.go_on();
            if info.timer_id() == Some(id) {
                info = info.with_overrun(overrun.unwrap_or(0) as u32);
            }
        }
        info
    }

    /// What `signal` does has changed: timers whose expiration was ignored go on.
    pub fn action_changed(&self, signal: Signal) {
        let timers: Vec<_> =
            self.list.lock().timers.values().filter(|t| t.signal == Some(signal)).cloned().collect();
        for timer in timers {
            timer.go_on();
        }
    }
}

/// `struct sigevent`, as far as the kernel reads it.
#[derive(Clone, Copy)]
#[repr(C)]
struct SigEvent {
    value: u64,
    signo: i32,
    notify: i32,
    tid: i32,
    rest: [i32; 11],
}
crate::pod!(SigEvent);

/// Whether a timer on `clock` counts by CLOCK_REALTIME. EINVAL for no clock, EOPNOTSUPP for one without timers: those
/// of processor time among them, which only interval timers count (`cpu_time.rs`).
pub fn timer_clock(clock: i32) -> Result<bool, Errno> {
    match clock {
        time::REALTIME | time::TAI => Ok(true),
        time::MONOTONIC | time::BOOTTIME => Ok(false),
        time::PROCESS_CPUTIME
        | time::THREAD_CPUTIME
        | time::MONOTONIC_RAW
        | time::REALTIME_COARSE
        | time::MONOTONIC_COARSE => Err(Errno::EOPNOTSUPP),
        i32::MIN..0 => Err(Errno::EOPNOTSUPP),
        _ => Err(Errno::EINVAL),
    }
}

/// `timer_create(2)`.
pub fn timer_create(a: &Args) -> SysResult {
    let me = task::current();
    let event = match a.raw(1) {
        0 => None,
        at => Some(usercopy::read::<SigEvent>(at)?),
    };
    let realtime = timer_clock(a.int(0))?;
    let notify = event.map_or(SIGEV_SIGNAL, |e| e.notify);
    let number = event.map_or(Signal::ALRM.number() as i32, |e| e.signo);
    let signal = match notify {
        SIGEV_NONE => None,
        SIGEV_SIGNAL | SIGEV_THREAD | SIGEV_THREAD_ID => {
            Some(u64::try_from(number).ok().and_then(Signal::new).ok_or(Errno::EINVAL)?)
        }
        _ => return Err(Errno::EINVAL),
    };
    let to_thread = notify == SIGEV_THREAD_ID;
    let thread = match event.filter(|_| to_thread) {
        None => None,
        Some(e) => {
            let task = u32::try_from(e.tid).ok().and_then(ids::find_task);
            Some(task.filter(|t| Arc::ptr_eq(&t.process, &me.process)).ok_or(Errno::EINVAL)?)
        }
    };
    if memory::frames().low() {
        return Err(Errno::EAGAIN);
    }
    let most = me.process.limits.soft(RLIMIT_SIGPENDING).min(MOST);
    let id = me.process.timers.insert(most, |id| {
        let value = event.map_or(u64::from(id), |e| e.value);
        let target = Target {
            process: Arc::downgrade(&me.process),
            thread,
            info: signal.map(|s| SigInfo::timer(s.number(), id, value)),
            to_thread,
        };
        PosixTimer {
            realtime,
            bell: Arc::new(Bell(irq::Lock::new(target))),
            signal,
            state: SpinLock::default(),
        }
    })?;
    if let Err(e) = usercopy::write(a.raw(2), &id) {
        delete(&me.process, id as i32)?;
        return Err(e);
    }
    Ok(0)
}

fn delete(process: &Process, id: i32) -> Result<(), Errno> {
    let id = u32::try_from(id).map_err(|_| Errno::EINVAL)?;
    let gone = process.timers.list.lock().timers.remove(&id);
    gone.map(drop).ok_or(Errno::EINVAL)
}

/// `timer_delete(2)`.
pub fn timer_delete(a: &Args) -> SysResult {
    delete(&task::current().process, a.int(0)).map(|()| 0)
}

/// The `itimerspec` at `at`, in ns: interval and first time. EINVAL.
pub fn read_itimerspec(at: u64) -> Result<(u64, u64), Errno> {
    let [interval_s, interval_ns, first_s, first_ns]: [i64; 4] = usercopy::read(at)?;
    let interval = time::from_parts(interval_s, interval_ns, time::NS)?;
    Ok((interval, time::from_parts(first_s, first_ns, time::NS)?))
}

/// Store an `itimerspec`: time left and interval, in ns.
pub fn write_itimerspec(at: u64, (left, interval): (u64, u64)) -> Result<(), Errno> {
    usercopy::write(at, &[interval / time::NS, interval % time::NS, left / time::NS, left % time::NS])
}

/// `timer_settime(2)`.
pub fn timer_settime(a: &Args) -> SysResult {
    const TIMER_ABSTIME: i32 = 1;
    if a.raw(2) == 0 {
        return Err(Errno::EINVAL);
    }
    let (interval, first) = read_itimerspec(a.raw(2))?;
    let timer = task::current().process.timers.get(a.int(0))?;
    let next = match (a.int(1) & TIMER_ABSTIME != 0, timer.realtime) {
        _ if first == 0 => None,
        (false, _) => Some(hw::timer::now().saturating_add(first)),
        (true, false) => Some(first),
        (true, true) => Some(first.saturating_sub(hw::timer::boot_epoch_ns())),
    };
    let old = timer.set(next, if next.is_some() { interval } else { 0 });
    if a.raw(3) != 0 {
        upcall::owed(|| write_itimerspec(a.raw(3), old))?;
    }
    Ok(0)
}

/// `timer_gettime(2)`.
pub fn timer_gettime(a: &Args) -> SysResult {
    let timer = task::current().process.timers.get(a.int(0))?;
    let setting = timer.setting(&timer.state.lock());
    write_itimerspec(a.raw(1), setting)?;
    Ok(0)
}

/// `timer_getoverrun(2)`: how many expirations came between the signal that was taken last and its taking.
pub fn timer_getoverrun(a: &Args) -> SysResult {
    let timer = task::current().process.timers.get(a.int(0))?;
    let overrun = timer.state.lock().overrun;
    Ok(overrun as usize)
}

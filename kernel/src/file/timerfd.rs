//! `timerfd`: a timer that is read.
//!
//! The time of the next expiration is all the state; how many have been is computed when somebody reads. So a timer
//! with an interval wakes its readers once, at the first expiration that they have not seen, and is set again by the
//! read: a program that doesn't read costs nothing, and the interrupt needs no memory.

use alloc::{sync::Arc, task::Wake};

use linux_raw_sys::general as c;
use sync::SpinLock;

use super::{
    Result,
    io::Sink,
    open::OpenFile,
    poll::{Events, Readiness},
    special::Special,
};
use crate::{
    errno::Errno,
    hw,
    timers::{self, Timer},
    upcall,
    wait::WaitQueue,
};

/// A time and an interval, in ns, as `itimerspec` tells them.
#[derive(Clone, Copy, Default)]
pub struct Setting {
    /// Until the next expiration; 0 if there is none.
    pub left: u64,
    /// From each to the next; 0 for once.
    pub interval: u64,
}

/// When it expires.
struct Armed {
    /// ns since boot.
    next: u64,
    /// ns; 0 for once.
    interval: u64,
}

impl Armed {
    /// How many expirations there have been by `now`, `next` included.
    fn expirations(&self, now: u64) -> u64 {
        match now.checked_sub(self.next) {
            None => 0,
            Some(late) => 1 + late.checked_div(self.interval).unwrap_or(0),
        }
    }

    /// What `timerfd_gettime` tells at `now`.
    fn setting(&self, now: u64) -> Setting {
        let passed = self.expirations(now);
        let ended = passed > 0 && self.interval == 0;
        let next = self.next.saturating_add(passed.saturating_mul(self.interval));
        Setting { left: if ended { 0 } else { (next - now).max(1) }, interval: self.interval }
    }
}

/// Wakes the readers, from the timer interrupt.
struct Bell(WaitQueue);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        self.0.wake_all();
    }
}

struct State {
    armed: Option<Armed>,
    /// Rings at the first expiration that nobody has read.
    timer: Option<Timer>,
}

/// A timer.
pub struct TimerFile {
    realtime: bool,
    bell: Arc<Bell>,
    state: SpinLock<State>,
}

impl TimerFile {
    /// A timer that isn't set, on CLOCK_REALTIME or one that counts from boot; `flags` may have O_NONBLOCK. ENOMEM.
    pub fn open(realtime: bool, flags: u32) -> Result<Arc<OpenFile>> {
        let timer = Self {
            realtime,
            bell: Arc::new(Bell(WaitQueue::new())),
            state: SpinLock::new(State { armed: None, timer: None }),
        };
        Special::Timer(timer).open(c::O_RDWR | flags & c::O_NONBLOCK)
    }

    /// When a ring is due, from the interval timer's state. A bell that rings at once is harmless, so the interrupt may
    /// come before the lock is free: it takes the queue's only.
    fn ring_at(&self, next: u64) -> Timer {
        timers::wake_at(next, self.bell.clone())
    }

    /// Set it: `first` ns from now, or at `first` of its clock if `absolute`; 0 for never. Says what was set.
    pub fn set(&self, first: u64, interval: u64, absolute: bool) -> Setting {
        let now = hw::timer::now();
        let next = match (absolute, self.realtime) {
            (false, _) => now.saturating_add(first),
            (true, false) => first,
            (true, true) => first.saturating_sub(hw::timer::boot_epoch_ns()),
        };
        let (armed, timer) = if first == 0 {
            (None, None)
        } else {
            (Some(Armed { next, interval }), Some(self.ring_at(next)))
        };
        let old = core::mem::replace(&mut *self.state.lock(), State { armed, timer });
        // The timer is dropped here, with no lock held.
        old.armed.map_or(Setting::default(), |a| a.setting(now))
    }

    /// What is set.
    pub fn setting(&self) -> Setting {
        self.state.lock().armed.as_ref().map_or(Setting::default(), |a| a.setting(hw::timer::now()))
    }

    fn expired(&self) -> bool {
        self.state.lock().armed.as_ref().is_some_and(|a| a.next <= hw::timer::now())
    }

    /// The expirations that nobody has read, if any.
    fn take(&self) -> Option<u64> {
        let mut state = self.state.lock();
        let armed = state.armed.as_mut()?;
        let n = armed.expirations(hw::timer::now());
        if n == 0 {
            return None;
        }
        let rung = if armed.interval == 0 {
            state.armed = None;
            state.timer.take()
        } else {
            armed.next = armed.next.saturating_add(n.saturating_mul(armed.interval));
            let next = armed.next;
            state.timer.replace(self.ring_at(next))
        };
        drop(state);
        drop(rung); // with no lock held
        Some(n)
    }

    /// Read eight bytes: how many expirations there have been since the last. EINVAL for a smaller buffer.
    pub fn read(&self, sink: &mut dyn Sink, block: bool) -> Result<usize> {
        if sink.room() < size_of::<u64>() {
            return Err(Errno::EINVAL);
        }
        let n = match self.take() {
            Some(n) => n,
            None if !block => return Err(Errno::EAGAIN),
            None => self.bell.0.wait(None, true, || self.take()).map_err(|_| Errno::RESTART)?,
        };
        if upcall::owed(|| sink.put(&n.to_ne_bytes())) < size_of::<u64>() {
            Err(Errno::EFAULT)
        } else {
            Ok(size_of::<u64>())
        }
    }

    /// Readable once it has expired.
    pub fn readiness(&self) -> Readiness<'_> {
        let events = if self.expired() { Events::IN } else { Events::empty() };
        Readiness { events, queues: [Some(&self.bell.0), None] }
    }
}

//! Processor time: a clock for each thread, and the timers of a process that count it.
//!
//! # The clock of a thread
//! One word says all ([`CpuClock::word`]): how long the thread has run, or while it runs, what to subtract from the time
//! of day to know. Only the CPU that switches to or from the thread writes it; anybody reads it, and **no two readers
//! see time go back**. What could make it do so is a reader that finds the thread running and then takes the time, while
//! the thread is switched away from by an earlier time. So a switch away marks the word before it takes the time, and a
//! reader counts only if the word is the same, and not marked, after it took the time: then it took the time before the
//! switch did.
//!
//! # Time in user mode
//! Entries to the kernel and returns from it take the time only in threads that are *watched*: those of a process with
//! a timer set. For all others, all of their time counts as time in user mode, which costs a call nothing. Hence the
//! clock of user mode only says how much passes while a timer counts it, which is all that a timer asks.
//!
//! # The timers
//! ITIMER_VIRTUAL and ITIMER_PROF expire by the sum over the threads of a process, which grows by as much as they have
//! CPUs. Nobody adds it up continually: a CPU that runs a watched thread has its timer interrupt it ([`sched`]) when the
//! sum could at the earliest have come to what is left, were all threads to run at once; looks; and again. With one
//! thread that is one interrupt per expiration; with several the steps get smaller, down to [`FINEST`]. A thread that
//! is made meanwhile was not reckoned with, so no step is longer than [`COARSEST`], which is Linux's usual tick.
//!
//! # Lock order
//! A process's timers, then its threads. The signals are sent with neither held.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use crate::{
    hw::{self, cpu, irq::Lock},
    process::{Process, Used},
    sched,
    signal::{self, SigInfo, Signal},
    task, timers,
};

/// See [`finest`].
const FINEST: u64 = 100_000;
/// The longest, in ns, as it runs on a CPU.
const COARSEST: u64 = 4_000_000;

/// [`CpuClock::word`]: the thread runs, and the rest is when it would have started, had it never paused.
const RUNNING: u64 = 1 << 63;
/// [`CpuClock::word`]: it is being switched away from, and the rest says nothing.
const STOPPING: u64 = 1 << 62;
/// [`CpuClock::system`]: the thread is in the kernel, and the rest is its time in user mode.
const IN_KERNEL: u64 = 1 << 63;

/// The processor time of a thread, in ns.
pub struct CpuClock {
    /// How long it has run, or a marked word.
    word: AtomicU64,
    /// How much of it was in the kernel, while watched; or a marked word.
    system: AtomicU64,
    /// Whether a timer of its process is set. Written with the process's `threads` locked.
    watched: AtomicBool,
}

impl CpuClock {
    /// That of a thread that has not run.
    pub const fn new() -> Self {
        Self { word: AtomicU64::new(0), system: AtomicU64::new(0), watched: AtomicBool::new(false) }
    }

    /// The thread runs from `now` (ns since boot) on. By the CPU that switches to it, when it is nowhere else.
    pub fn start(&self, now: u64) {
        // Relaxed: the last to write it was the CPU where it ran before, whose release of the thread orders that.
        let ran = self.word.load(Ordering::Relaxed);
        // Relaxed: a reader that sees the old word is told of a moment before.
        self.word.store(RUNNING | now.saturating_sub(ran), Ordering::Relaxed);
    }

    /// The thread, which runs here, is switched away from: gives the time, in ns since boot. Interrupts are off.
    pub fn stop(&self) -> u64 {
        // Relaxed: written by this CPU.
        let since = self.word.load(Ordering::Relaxed) & !RUNNING;
        self.word.store(STOPPING, Ordering::Relaxed);
        // SeqCst: the mark is there before the time is taken; pairs with the second look of `run_ns`.
        fence(Ordering::SeqCst);
        let now = hw::timer::now();
        // Release: the mark comes before.
        self.word.store(now.saturating_sub(since), Ordering::Release);
        now
    }

    /// Time spent on CPUs. Of the calling thread or any other; never less than anybody was told before.
    pub fn run_ns(&self) -> u64 {
        loop {
            // Acquire: the time is taken after this look.
            let word = self.word.load(Ordering::Acquire);
            if word & (RUNNING | STOPPING) == 0 {
                return word;
            }
            let now = hw::timer::now_in_order();
            // Relaxed: the clock was read in order, see there; and if the mark wasn't there yet, the time of the switch
            // is later than ours.
            if word & STOPPING == 0 && self.word.load(Ordering::Relaxed) == word {
                return now.saturating_sub(word & !RUNNING);
            }
            hw::cpu::pause();
        }
    }

    /// How much of it counts as time in user mode.
    pub fn user_ns(&self) -> u64 {
        // Relaxed, here and below: only the thread itself writes it. Others may see an entry or a return late.
        match self.system.load(Ordering::Relaxed) {
            user if user & IN_KERNEL != 0 => user & !IN_KERNEL,
            system => self.run_ns().saturating_sub(system),
        }
    }

    /// The thread, which is the caller, has entered the kernel.
    #[inline]
    pub fn enter_kernel(&self) {
        if self.is_watched() {
            self.note_entry();
        }
    }

    #[cold]
    fn note_entry(&self) {
        let system = self.system.load(Ordering::Relaxed);
        if system & IN_KERNEL == 0 {
            self.system.store(IN_KERNEL | self.run_ns().saturating_sub(system), Ordering::Relaxed);
            cpu::ask();
        }
    }

    /// The thread, which is the caller, returns to user mode. Whoever was noted as entering is noted as leaving, also
    /// if nobody watches any more.
    #[inline]
    pub fn leave_kernel(&self) {
        if self.system.load(Ordering::Relaxed) & IN_KERNEL != 0 {
            self.note_return();
        }
    }

    #[cold]
    fn note_return(&self) {
        let user = self.system.load(Ordering::Relaxed) & !IN_KERNEL;
        self.system.store(self.run_ns().saturating_sub(user), Ordering::Relaxed);
    }

    /// Whether a timer of its process is set.
    #[inline]
    pub fn is_watched(&self) -> bool {
        // Relaxed: whoever sets it interrupts the CPU where the thread runs, or else the switch to it sees it
        // (`sched::kick`, `schedule`); an entry that misses it counts as user mode.
        self.watched.load(Ordering::Relaxed)
    }

    /// A timer of its process is set, or none any more. With the process's `threads` locked.
    pub fn watch(&self, watched: bool) {
        self.watched.store(watched, Ordering::Relaxed);
    }
}

impl Default for CpuClock {
    fn default() -> Self {
        Self::new()
    }
}

/// Which timer.
#[derive(Clone, Copy)]
pub enum Which {
    /// ITIMER_VIRTUAL: time in user mode; sends SIGVTALRM.
    Virtual,
    /// ITIMER_PROF: all processor time; sends SIGPROF.
    Prof,
}

impl Which {
    const ALL: [Self; 2] = [Self::Virtual, Self::Prof];

    fn signal(self) -> Signal {
        match self {
            Self::Virtual => Signal::VTALRM,
            Self::Prof => Signal::PROF,
        }
    }

    /// The clock that it goes by.
    fn clock(self, used: &Used) -> u64 {
        match self {
            Self::Virtual => used.user_ns,
            Self::Prof => used.cpu_ns,
        }
    }
}

/// What a timer is set to.
#[derive(Clone, Copy)]
struct Setting {
    /// What its clock shows when it expires.
    expires: Option<u64>,
    /// And then every so many ns; 0 for once.
    interval: u64,
}

impl Setting {
    const NONE: Self = Self { expires: None, interval: 0 };

    /// What is left at `clock`; None if it isn't set.
    fn left(&self, clock: u64) -> Option<u64> {
        self.expires.map(|expires| expires.saturating_sub(clock))
    }

    /// Time left and interval, as a program is told. While it is set there is some time left.
    fn told(&self, clock: u64) -> (u64, u64) {
        (self.left(clock).map_or(0, |left| left.max(1000)), self.interval)
    }
}

/// The timers of a process that count processor time. A child of `fork` begins without, and `execve` keeps them.
pub struct CpuTimers(Lock<[Setting; 2]>);

impl CpuTimers {
    /// None set.
    pub const fn new() -> Self {
        Self(Lock::new([Setting::NONE; 2]))
    }
}

impl Default for CpuTimers {
    fn default() -> Self {
        Self::new()
    }
}

/// Time left of the calling process's timer, and its interval, in ns.
pub fn get(which: Which) -> (u64, u64) {
    let process = &task::current().process;
    let settings = process.cpu_timers.0.lock();
    settings[which as usize].told(which.clock(&process.used()))
}

/// Set the calling process's timer to expire in `first`, or not at all if that is 0, and then every `interval` (ns).
/// Gives what was set.
pub fn set(which: Which, first: u64, interval: u64) -> (u64, u64) {
    let me = task::current();
    let process = &me.process;
    let old = {
        let mut settings = process.cpu_timers.0.lock();
        let old = settings[which as usize].told(which.clock(&process.used()));
        // By the clock that runs from here on, which is that of a watched thread in the kernel.
        settings[which as usize] = Setting { expires: (first != 0).then_some(0), interval };
        watch(process, &settings);
        me.sched.clock.enter_kernel();
        let clock = which.clock(&process.used());
        settings[which as usize].expires = (first != 0).then(|| clock.saturating_add(first));
        old
    };
    if first != 0 {
        process.threads.lock().iter().for_each(|thread| sched::kick(thread));
        sched::plan_look();
    }
    old
}

/// Have the threads of `process` watched if one of its `settings` is set, and only then.
fn watch(process: &Process, settings: &[Setting; 2]) {
    let set = settings.iter().any(|setting| setting.expires.is_some());
    process.threads.lock().iter().for_each(|thread| thread.sched.clock.watch(set));
}

/// The shortest time between two looks, in ns.
pub fn finest() -> u64 {
    timers::length(FINEST)
}

/// In how many ns the timers of `process` must be looked at; None if none is set. 0 if one has expired.
pub fn next_look(process: &Process) -> Option<u64> {
    let settings = *process.cpu_timers.0.lock();
    let used = process.used();
    let left =
        Which::ALL.into_iter().filter_map(|which| settings[which as usize].left(which.clock(&used))).min()?;
    if left == 0 {
        return Some(0);
    }
    let at_once = process.threads.lock().len().clamp(1, hw::cpu::count());
    Some((left / at_once as u64).clamp(finest(), timers::length(COARSEST)))
}

/// Look at the timers of `process`: those that have expired send their signals, and go on by their intervals. From the
/// timer interrupt.
pub fn look(process: &Process) {
    let mut expired = [false; 2];
    {
        let mut settings = process.cpu_timers.0.lock();
        let used = process.used();
        for which in Which::ALL {
            let setting = &mut settings[which as usize];
            let Some(expires) = setting.expires.filter(|&expires| expires <= which.clock(&used)) else {
                continue;
            };
            expired[which as usize] = true;
            // By one interval, as Linux: who is behind catches up, a signal at a time.
            setting.expires = (setting.interval != 0).then(|| expires.saturating_add(setting.interval));
        }
        if settings.iter().all(|setting| setting.expires.is_none()) {
            watch(process, &settings);
        }
    }
    for which in Which::ALL.into_iter().filter(|&which| expired[which as usize]) {
        signal::send_process(process, SigInfo::kernel(which.signal().number()));
    }
}

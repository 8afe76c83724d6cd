//! Signals: what is pending for whom, who may take it, and what becomes of it.
//!
//! * A signal sent to a thread waits in that thread's [`TaskSignals`]; one sent to a process waits in its
//!   [`ProcessSignals`], and any thread that doesn't block it may take it.
//! * A standard signal (1..=31) is pending or not; a real-time one (32..=64) queues, with its information, in order.
//! * A signal is acted on only on the way back to user mode, by the thread that took it ([`deliver`]). So handlers,
//!   stops and ends happen with nothing of the kernel's held.
//! * SIGKILL never waits: who sends it asks all threads to end, which each does on its way back to user mode. So whoever
//!   sleeps or works long in the kernel sees at once that it is over.
//!
//! # The flag
//! `pending()` is asked on every return to user mode and in every interruptible sleep, so it is one load of a flag in
//! the thread. The flag is a summary that may err on one side only: it is set whenever a signal that the thread could
//! take, or a stop that it must join, may have been given to it. The flag is set *after* the signal is queued and
//! *before* the thread is woken; it is recomputed by the thread itself. A shared signal raises the
//! flag of one thread only, the one chosen to be woken; if that thread then blocks the signal, or ends, it chooses
//! another ([`retarget`]).
//!
//! # What a thread does alone
//! A thread that changes its mask, sends itself a signal, or takes one that was sent to it, has nothing to do with the other
//! threads of its process, and touches no line that they write. Its mask and its signals are behind a lock of its own. Of the
//! process it reads words that change only with what they say, under no lock: what each signal does, the set of what waits for
//! the process, and whether that stops ([`ProcessSignals`]).
//!
//! Two sides each write one thing and then look at the other's. Neither needs a fence, since the writing or the looking of
//! both is in a section of the same lock, the thread's:
//! ```text
//! sender:  process locked:  waiting = waiting + s (or stopping = true)
//!                           section of T's lock: does T's mask let s through?  if so (and for a stop in any case): T's flag = true
//! T:                        section of T's lock: mask = new mask; look at waiting and stopping; flag = whether there is something
//! ```
//! If the sender's section is first its word was written before, and T's look finds it: so the flag stays, or is set. If T's
//! section is first the sender finds the new mask, and its store to the flag comes after T's, which so doesn't undo it. (The
//! store may come after the section, but not before it.) What T's section finds of a signal that T has come to block is the
//! sender's choice that T takes back: if the sender has looked at the old mask, T finds the signal waiting, and [retargets](retarget) it,
//! with the process locked: so after the sender, who has the process until it has raised the flag.
//!
//! Likewise with what a signal does, for one that is sent to T: the sender looks at it in the section in which it queues, and T in that
//! in which it takes one; who
//! has a signal ignored says so first, and then forgets, in a section of each thread's, what is queued. A stop is taken with the process
//! locked, as SIGCONT takes back those that were sent before it. A change of an action stores to what all threads read, as it must.
//!
//! # Locks
//! A process's state, then its list of threads, then a thread's state; all with interrupts off. Wakes and
//! notifications of the parent are made after they are released. Signals may be sent from interrupt handlers (timers,
//! the terminal): those are bare ones ([`SigInfo::kernel`]), which take no memory.

mod deliver;
mod frame;
mod state;

use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::Ordering;

use addr::PAGE_SHIFT;

pub use deliver::{deliver, orphaned, settle};
pub use frame::{sigaltstack, sigreturn};
pub use state::{Action, AltStack, ProcessSignals, Restart, TaskSignals};
use state::{Held, Job, TaskState};

use crate::{
    errno::Errno,
    ids,
    limits::RLIMIT_SIGPENDING,
    planted::{self, Planted},
    process::{self, Process, Status},
    syscall::time,
    task::{self, Task},
    wait::{self, Woken},
};

/// Highest signal number.
pub const SIGNALS: u32 = 64;

/// Interrupted, and to be continued by `restart_syscall` if no handler runs, else EINTR. Linux's
/// ERESTART_RESTARTBLOCK. Made by [`restart_with`].
pub const RESTART_BLOCK: Errno = Errno(516);

/// Interrupted, and to be made again even if a handler runs. Linux's ERESTARTNOINTR.
pub const RESTART_ALWAYS: Errno = Errno(513);

/// A signal number: 1..=64.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Signal(u8);

impl core::fmt::Debug for Signal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "signal {}", self.0)
    }
}

macro_rules! signals {
    ($($name:ident = $n:literal),* $(,)?) => {
        #[allow(missing_docs)] // The names of signal(7); those that the kernel itself must know.
        impl Signal {
            $(pub const $name: Signal = Signal($n);)*
        }
    };
}
signals! {
    QUIT = 3, ILL = 4, TRAP = 5, ABRT = 6, BUS = 7, FPE = 8, KILL = 9, SEGV = 11, ALRM = 14, CHLD = 17, CONT = 18, STOP = 19, TSTP = 20,
    TTIN = 21, TTOU = 22, URG = 23, XCPU = 24, XFSZ = 25, VTALRM = 26, PROF = 27, WINCH = 28, SYS = 31,
}

impl Signal {
    /// Signal number `n`, or `None` outside 1..=64.
    pub const fn new(n: u64) -> Option<Self> {
        if n >= 1 && n <= SIGNALS as u64 { Some(Self(n as u8)) } else { None }
    }
    /// The number: 1..=64.
    pub const fn number(self) -> u32 {
        self.0 as u32
    }
    const fn bit(self) -> u64 {
        1 << (self.0 - 1)
    }
    const fn index(self) -> usize {
        self.0 as usize - 1
    }
    const fn is_real_time(self) -> bool {
        self.0 >= 32
    }
}

/// A set of signals; bit n-1 is signal n, as in the kernel's `sigset_t` of 8 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(transparent)]
pub struct SigSet(pub u64);

impl SigSet {
    /// No signal.
    pub const EMPTY: SigSet = SigSet(0);
    /// What nobody can block, catch or ignore.
    pub const UNBLOCKABLE: SigSet = SigSet::of(&[Signal::KILL, Signal::STOP]);
    /// Those that stop a process by default.
    const STOPS: SigSet = SigSet::of(&[Signal::STOP, Signal::TSTP, Signal::TTIN, Signal::TTOU]);
    /// Those that do something to the whole process when they are sent.
    const COMMANDS: SigSet = SigSet::STOPS.or(SigSet::of(&[Signal::KILL, Signal::CONT]));
    /// Those that do nothing by default.
    const IGNORED: SigSet = SigSet::of(&[Signal::CONT, Signal::CHLD, Signal::WINCH, Signal::URG]);
    /// Those that leave an image of the process's memory by default, where such are kept, as it ends.
    const IMAGES: SigSet =
        SigSet::SYNCHRONOUS.or(SigSet::of(&[Signal::QUIT, Signal::ABRT, Signal::XCPU, Signal::XFSZ]));
    /// Those that an instruction causes: they are taken before others, so that the saved state is the instruction's.
    const SYNCHRONOUS: SigSet =
        SigSet::of(&[Signal::SEGV, Signal::BUS, Signal::ILL, Signal::TRAP, Signal::FPE, Signal::SYS]);

    const fn of(list: &[Signal]) -> Self {
        let (mut set, mut i) = (0, 0);
        while i < list.len() {
            set |= list[i].bit();
            i += 1;
        }
        SigSet(set)
    }
    /// Whether `s` is in the set.
    pub const fn has(self, s: Signal) -> bool {
        self.0 & s.bit() != 0
    }
    const fn with(self, s: Signal) -> Self {
        SigSet(self.0 | s.bit())
    }
    const fn without(self, other: SigSet) -> Self {
        SigSet(self.0 & !other.0)
    }
    const fn and(self, other: SigSet) -> Self {
        SigSet(self.0 & other.0)
    }
    const fn or(self, other: SigSet) -> Self {
        SigSet(self.0 | other.0)
    }
    const fn is_empty(self) -> bool {
        self.0 == 0
    }
    /// The signal to take first: the lowest number, synchronous ones before all others.
    fn first(self) -> Option<Signal> {
        let now = self.and(Self::SYNCHRONOUS);
        let from = if now.is_empty() { self } else { now };
        Signal::new(u64::from(from.0.trailing_zeros()) + 1).filter(|_| !self.is_empty())
    }
}

/// Linux's `siginfo_t`: 128 bytes, of which the second half of the first 16 is padding on x86-64.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct SigInfo {
    signo: i32,
    errno: i32,
    code: i32,
    pad: i32,
    fields: [u64; 14],
}
crate::pod!(SigInfo);

/// `si_code` values (sigaction(2)).
pub mod code {
    #![allow(missing_docs)] // The names of sigaction(2).
    pub const SI_USER: i32 = 0;
    pub const SI_KERNEL: i32 = 0x80;
    pub const SI_TIMER: i32 = -2;
    pub const SI_TKILL: i32 = -6;
    pub const ILL_ILLOPN: i32 = 2;
    pub const SEGV_MAPERR: i32 = 1;
    pub const SEGV_ACCERR: i32 = 2;
    pub const BUS_ADRALN: i32 = 1;
    pub const BUS_ADRERR: i32 = 2;
    pub const BUS_MCEERR_AR: i32 = 4;
    pub const TRAP_TRACE: i32 = 2;
    pub const FPE_INTDIV: i32 = 1;
    pub const FPE_FLTDIV: i32 = 3;
    pub const FPE_FLTOVF: i32 = 4;
    pub const FPE_FLTUND: i32 = 5;
    pub const FPE_FLTRES: i32 = 6;
    pub const FPE_FLTINV: i32 = 7;
    pub const CLD_EXITED: i32 = 1;
    pub const CLD_KILLED: i32 = 2;
    pub const CLD_STOPPED: i32 = 5;
    pub const CLD_CONTINUED: i32 = 6;
}

impl SigInfo {
    const fn new(signal: u32, code: i32) -> Self {
        Self { signo: signal as i32, errno: 0, code, pad: 0, fields: [0; 14] }
    }
    /// Signal number `signal` from the kernel itself (`SI_KERNEL`), with nothing more to say. It takes no memory to
    /// queue.
    pub const fn kernel(signal: u32) -> Self {
        Self::new(signal, code::SI_KERNEL)
    }
    /// From the calling process, by `kill` (`SI_USER`) or `tkill` (`SI_TKILL`).
    pub fn from_caller(signal: u32, code: i32) -> Self {
        let mut info = Self::new(signal, code);
        info.fields[0] = u64::from(task::current().process.pid); // and the user id 0 in the upper half
        info
    }
    /// An instruction's fault: `si_addr` is `addr`.
    pub const fn fault(signal: u32, code: i32, addr: u64) -> Self {
        let mut info = Self::new(signal, code);
        info.fields[0] = addr;
        info
    }
    /// An instruction's access at `addr` to a page whose contents are lost: also `si_addr_lsb`, which says how much is.
    pub const fn lost(addr: u64) -> Self {
        let mut info = Self::fault(Signal::BUS.number(), code::BUS_MCEERR_AR, addr);
        info.fields[1] = PAGE_SHIFT as u64;
        info
    }
    /// What happened to the child `pid`, told by signal number `signal`, usually SIGCHLD.
    pub const fn child(signal: u32, pid: u32, status: Status) -> Self {
        let (code, value) = match status.0 {
            s if s == Status::CONTINUED.0 => (code::CLD_CONTINUED, Signal::CONT.number()),
            s if s & 0xff == 0x7f => (code::CLD_STOPPED, s >> 8),
            s if s & 0x7f == 0 => (code::CLD_EXITED, s >> 8 & 0xff),
            s => (code::CLD_KILLED, s & 0x7f),
        };
        let mut info = Self::new(signal, code);
        info.fields[0] = pid as u64;
        info.fields[1] = value as u64;
        info
    }
    /// As a program gave it to `rt_sigqueueinfo`, for signal number `signal`.
    pub const fn given(mut self, signal: u32) -> Self {
        self.signo = signal as i32;
        self
    }
    /// An expiration of the POSIX timer `id`, which gives `value` with it.
    pub const fn timer(signal: u32, id: u32, value: u64) -> Self {
        let mut info = Self::new(signal, code::SI_TIMER);
        info.fields[0] = id as u64;
        info.fields[1] = value;
        info
    }
    /// Say that `more` expirations of a timer came before this one was taken.
    pub const fn with_overrun(mut self, more: u32) -> Self {
        self.fields[0] = self.fields[0] & 0xffff_ffff | (more as u64) << 32;
        self
    }
    /// The timer's id, for an expiration of a POSIX timer.
    pub const fn timer_id(&self) -> Option<u32> {
        if self.code == code::SI_TIMER { Some(self.fields[0] as u32) } else { None }
    }
    /// As `signalfd` tells it (signalfd(2)): which fields mean something depends on the signal and the code.
    pub fn record(&self) -> [u8; 128] {
        let mut out = [0; 128];
        let mut put = |at: usize, value: u64, bytes: usize| {
            for (to, from) in out.iter_mut().skip(at).zip(value.to_le_bytes()).take(bytes) {
                *to = from;
            }
        };
        put(0, self.signo as u64, 4);
        put(4, self.errno as u64, 4);
        put(8, self.code as u64, 4);
        let [first, second, ..] = self.fields;
        let synchronous = self.signal().is_some_and(|s| SigSet::SYNCHRONOUS.has(s));
        if self.code == code::SI_TIMER {
            put(24, first, 4); // ssi_tid
            put(32, first >> 32, 4); // ssi_overrun
            put(44, second, 4); // ssi_int
            put(48, second, 8); // ssi_ptr
        } else if self.code > 0 && synchronous {
            put(72, first, 8); // ssi_addr
        } else {
            put(12, first, 4); // ssi_pid
            put(16, first >> 32, 4); // ssi_uid
            if self.code > 0 && self.signal() == Some(Signal::CHLD) {
                put(40, second, 4); // ssi_status
            } else if self.code < 0 {
                put(44, second, 4); // ssi_int
                put(48, second, 8); // ssi_ptr
            }
        }
        out
    }
    /// Which signal.
    pub const fn signal(&self) -> Option<Signal> {
        if self.signo < 0 { None } else { Signal::new(self.signo as u64) }
    }
    /// `si_code`.
    pub const fn code(&self) -> i32 {
        self.code
    }
    /// Whether it says no more than its number and SI_KERNEL.
    const fn is_bare(&self) -> bool {
        self.code == code::SI_KERNEL && self.fields[0] == 0
    }
}

/// Whether the calling thread has a signal to act on, or was asked to end: then interruptible sleeps are over and the
/// return to user mode calls [`deliver`].
pub fn pending() -> bool {
    let me = task::current();
    me.signals.flag() || me.is_ending()
}

/// The signal, if one is pending, that ends the calling thread's process whatever that waits for: on Linux those do so as soon as
/// they are sent that end a process by default, and leave no image.
pub fn fatal() -> Option<Signal> {
    let me = task::current();
    if !me.signals.flag() {
        return None;
    }
    let state = me.process.signals.lock();
    let t = me.signals.lock();
    let others = t.blocked.or(SigSet::STOPS).or(SigSet::IGNORED).or(SigSet::IMAGES);
    let mut open = t.pending.set().or(state.pending_set()).without(others);
    while let Some(signal) = open.first() {
        if state.action(signal).is_default() {
            return Some(signal);
        }
        open = open.without(SigSet::of(&[signal]));
    }
    None
}

/// Send to one thread.
pub fn send_task(task: &Arc<Task>, info: SigInfo) {
    // The only error is a full queue of real-time signals: senders that care use `queue`.
    let _ = queue(&task.process, Some(task), info);
}

/// Send to a process: to any of its threads that doesn't block the signal.
pub fn send_process(process: &Process, info: SigInfo) {
    // As above.
    let _ = queue(process, None, info);
}

/// Send to every process of the group `pgid`; ESRCH if there is none.
pub fn send_group(pgid: u32, info: SigInfo) -> Result<(), Errno> {
    // Relaxed: an id that changes meanwhile may be seen either way.
    send_to(|p| p.pgid.load(Ordering::Relaxed) == pgid, info)
}

/// Send to every process that is a `member`; ESRCH if there is none, and success if any got it. SIGKILL goes to those too that
/// members make meanwhile: who was told makes no more.
pub fn send_to(member: impl Fn(&Process) -> bool, info: SigInfo) -> Result<(), Errno> {
    let send = |all: bool| {
        let members = ids::those(&member).into_iter();
        let left = members.filter(|p| all || p.ended().is_none() && !p.is_leaving());
        left.map(|p| queue(&p, None, info)).reduce(Result::or)
    };
    let sent = send(true).unwrap_or(Err(Errno::ESRCH));
    if info.signal() == Some(Signal::KILL) {
        while send(false).is_some() {}
    }
    sent
}

/// Queue `info` for the thread `target`, or for any of the process, and wake who should take it. EAGAIN if as much as
/// RLIMIT_SIGPENDING allows is queued already.
pub fn queue(process: &Process, target: Option<&Arc<Task>>, info: SigInfo) -> Result<(), Errno> {
    let Some(signal) = info.signal() else { return Err(Errno::EINVAL) };
    let limit = process.limits.soft(RLIMIT_SIGPENDING);
    let (woken, continued) = match target {
        // It is that thread's and nobody else's, so the process's state has no part in it.
        Some(task) if !SigSet::COMMANDS.has(signal) => (queue_to(task, signal, info, limit)?, false),
        _ => {
            let mut state = process.signals.lock();
            let continued = job_control(process, &mut state, signal);
            let woken = match target {
                _ if signal == Signal::KILL => None,
                Some(task) => queue_to(task, signal, info, limit)?,
                None if ignored(process, &state, signal) => None,
                None => {
                    let early = planted::is(Planted::SignalQueuedLate).then(|| choose(process, signal));
                    planted::hesitate(Planted::SignalQueuedLate);
                    state.pend(|all| all.add(info, limit))?;
                    let chosen = early.unwrap_or_else(|| choose(process, signal));
                    chosen.map(|task| task.signals.raise(&task))
                }
            };
            (woken, continued)
        }
    };
    if let Some(task) = woken {
        task.interrupt();
    }
    crate::file::signal_arrived();
    if continued {
        process.signals.resumed.wake_all();
        process::notify_parent(process, Status::CONTINUED);
    } else if signal == Signal::KILL {
        process::end_process(process, Status::killed(signal.number()));
        process.signals.resumed.wake_all();
    }
    Ok(())
}

/// Queue `info` for `task` alone, which is given for a wake if it should take it.
fn queue_to(task: &Arc<Task>, signal: Signal, info: SigInfo, limit: u64) -> Result<Option<Arc<Task>>, Errno> {
    let mut t = task.signals.lock();
    // In the thread's section: who changes the action then looks for what is to be forgotten, in such a section.
    if task.process.signals.action(signal).ignores(signal) && !t.holds(signal) {
        return Ok(None);
    }
    t.pending.add(info, limit)?;
    Ok(t.wants(signal).then(|| task.signals.raise(task)))
}

/// What a stop or continue signal does at once, whether or not it is blocked or ignored: each takes back the other.
/// True if the process was stopped and now goes on.
fn job_control(process: &Process, state: &mut Held<'_>, signal: Signal) -> bool {
    let opposite = match signal {
        Signal::CONT => SigSet::STOPS,
        Signal::KILL => SigSet::EMPTY,
        s if SigSet::STOPS.has(s) => SigSet::of(&[Signal::CONT]),
        _ => return false,
    };
    if !opposite.is_empty() {
        state.pend(|all| all.remove(opposite));
        for task in process.threads.lock().iter() {
            task.signals.lock().pending.remove(opposite);
        }
    }
    // A stop is carried out later, by the thread that takes it.
    !SigSet::STOPS.has(signal) && state.with_job(Job::resume) && signal == Signal::CONT
}

/// Whether the signal would do nothing to the process, so that it isn't even queued. A blocked one is queued all the same,
/// since its action may change until it is unblocked.
fn ignored(process: &Process, state: &Held<'_>, signal: Signal) -> bool {
    let held = |task: &Arc<Task>| task.signals.lock().holds(signal);
    state.action(signal).ignores(signal) && !process.threads.lock().first().is_some_and(held)
}

/// Which thread should be told of a signal for the process: the first if it can take it, then the caller, then any
/// that isn't busy with another, then any. Called with the process's state locked.
fn choose(process: &Process, signal: Signal) -> Option<Arc<Task>> {
    let me = task::current();
    let threads = process.threads.lock();
    let takes = |t: &&Arc<Task>| !t.is_ending() && t.signals.lock().wants(signal);
    let candidates = || threads.iter().filter(takes);
    threads
        .first()
        .filter(takes)
        .or_else(|| candidates().find(|t| t.tid() == me.tid()))
        .or_else(|| candidates().find(|t| !t.signals.flag()))
        .or_else(|| candidates().next())
        .cloned()
}

/// Find other threads for those of the process's signals in `set` that the calling thread won't take any more.
fn retarget(process: &Process, set: SigSet) {
    let woken: Vec<_> = {
        let state = process.signals.lock();
        let mut left = state.pending_set().and(set);
        let mut woken = Vec::new();
        while let Some(signal) = left.first() {
            left = left.without(SigSet::of(&[signal]));
            woken.extend(choose(process, signal).map(|task| task.signals.raise(&task)));
        }
        woken
    };
    woken.iter().for_each(Task::interrupt);
}

/// A thread ends: its share of the process's signals goes to others, and if all others have stopped by now, the
/// process has.
pub fn thread_exit(task: &Arc<Task>) {
    let process = &task.process;
    let open = {
        let t = task.signals.lock();
        SigSet(!t.blocked.0)
    };
    retarget(process, open);
    process.timers.thread_ended(task);
    deliver::report_stop(process);
}

/// The process ends: no timer of its own fires any more. Called once, by its last thread, with no lock held.
pub fn process_exit(process: &Process) {
    let timer = process.signals.lock().alarm().take();
    drop(timer);
    process.timers.clear();
}

/// A fault of the calling thread's own instruction: `info` is delivered before anything else. If the signal is blocked
/// or ignored, it gets its default action, since returning to the instruction would only repeat it. `error`, `vector`
/// and `address` (CR2) are what the handler finds in its saved context.
pub fn force_fault(info: SigInfo, error: u64, vector: u64, address: u64) {
    const PAGE_FAULT: u64 = 14;
    {
        let me = task::current();
        let mut t = me.signals.lock();
        // Other exceptions leave CR2 alone, so the address of the last page fault stays.
        let address = if vector == PAGE_FAULT { address } else { t.trap.address };
        t.trap = TrapCause { vector, error, address };
    }
    force(info, false);
}

/// As [`force_fault`], for a failure of the kernel's own on the thread's behalf; `fatal`: no handler may run.
fn force(info: SigInfo, fatal: bool) {
    let me = task::current();
    let Some(signal) = info.signal() else { return };
    if signal == Signal::KILL {
        return process::group_exit(Status::killed(signal.number()));
    }
    let signals = &me.process.signals;
    let impossible = |t: &TaskState, action: Action| fatal || t.blocked.has(signal) || action.is_ignore();
    let open = |t: &mut TaskState| {
        t.blocked = t.blocked.without(SigSet::of(&[signal]));
        t.pending.force(info);
        me.signals.set_flag();
    };
    {
        let mut t = me.signals.lock();
        if !impossible(&t, signals.action(signal)) {
            return open(&mut t);
        }
    }
    // The first lock is the last that is given up: it is the one that lets interrupts in again.
    let mut state = signals.lock();
    let mut t = me.signals.lock();
    if impossible(&t, state.action(signal)) {
        state.set_action(signal, Action::DEFAULT);
    }
    open(&mut t);
}

/// The `si_code` of a floating-point exception, from the flags that are raised and not masked: those of SSE if `simd`,
/// else those of the x87 unit (Intel SDM vol. 1, 8.1.3 and 10.2.3).
pub fn fpe_code(simd: bool) -> i32 {
    let raised = task::current()
        .thread
        .with_xstate(|x| {
            let word =
                |at: usize| x.bytes().get(at..at + 2).map_or(0, |b| u32::from(b[0]) | u32::from(b[1]) << 8);
            // FXSAVE image: control word at 0, status word at 2, MXCSR at 24 with its masks 7 bits up.
            if simd { word(24) & !(word(24) >> 7) } else { word(2) & !word(0) }
        })
        .unwrap_or(0);
    match (raised & 0x3f).trailing_zeros() {
        0 => code::FPE_FLTINV,
        2 => code::FPE_FLTDIV,
        3 => code::FPE_FLTOVF,
        1 | 4 => code::FPE_FLTUND,
        5 => code::FPE_FLTRES,
        _ => 0,
    }
}

/// What the processor said about a fault: the fields `trapno`, `err` and `cr2` of a `sigcontext`.
#[derive(Clone, Copy, Default)]
struct TrapCause {
    vector: u64,
    error: u64,
    address: u64,
}

/// The calling thread's blocked signals.
pub fn blocked() -> SigSet {
    task::current().signals.lock().blocked
}

/// Change the calling thread's blocked signals; those that can't be blocked stay open.
pub fn set_blocked(mask: SigSet) {
    let me = task::current();
    let signals = &me.process.signals;
    let newly = {
        let mut t = me.signals.lock();
        let mask = mask.without(SigSet::UNBLOCKABLE);
        let newly = mask.without(t.blocked);
        t.blocked = mask;
        me.signals.summarise(signals, &t);
        newly.and(signals.waiting())
    };
    if !newly.is_empty() {
        retarget(&me.process, newly);
    }
}

/// Block `mask` for the length of a wait (`sigsuspend`, `ppoll`, `pselect`): the mask of before is put back by
/// [`unmask`], or, if a handler runs, when that returns.
pub fn mask_for_wait(mask: SigSet) {
    let before = blocked();
    set_blocked(mask);
    task::current().signals.save(before);
}

/// The end of a wait with [`mask_for_wait`] that no signal interrupted. After an interrupted one, leave the mask to the
/// delivery of the signal.
pub fn unmask() {
    if let Some(mask) = task::current().signals.take_saved() {
        set_blocked(mask);
    }
}

/// What of the calling thread's blocked signals waits, for itself or for its process.
pub fn blocked_and_pending() -> SigSet {
    let me = task::current();
    let t = me.signals.lock();
    me.process.signals.waiting().or(t.pending.set()).and(t.blocked)
}

/// What `signal` does in the calling process, and what it shall do if `new`: if that is nothing, those that wait are
/// forgotten.
pub fn action(signal: Signal, new: Option<Action>) -> Action {
    let process = &task::current().process;
    let old = exchange_action(process, signal, new);
    if new.is_some() && old.ignores(signal) {
        process.timers.action_changed(signal);
    }
    old
}

fn exchange_action(process: &Process, signal: Signal, new: Option<Action>) -> Action {
    let Some(new) = new.map(Action::checked) else { return process.signals.action(signal) };
    let mut state = process.signals.lock();
    let old = state.action(signal);
    state.set_action(signal, new);
    if new.ignores(signal) {
        let alone = SigSet::of(&[signal]);
        state.pend(|all| all.remove(alone));
        for task in process.threads.lock().iter() {
            task.signals.lock().pending.remove(alone);
        }
    }
    old
}

/// Take a signal of `set` that waits for the calling thread or its process, without acting on it.
pub fn take_pending(set: SigSet) -> Option<SigInfo> {
    let me = task::current();
    let others = SigSet(!set.without(SigSet::UNBLOCKABLE).0);
    let taken = {
        let mut state = me.process.signals.lock();
        let mut t = me.signals.lock();
        let info = t.pending.take(others).or_else(|| state.pend(|all| all.take(others)));
        me.signals.summarise(&me.process.signals, &t);
        info
    };
    taken.map(|info| time::taken(&me.process, info))
}

/// Whether [`take_pending`] would find one.
pub fn has_pending(set: SigSet) -> bool {
    let me = task::current();
    let shared = me.process.signals.lock().pending_set();
    !shared.or(me.signals.lock().pending.set()).and(set.without(SigSet::UNBLOCKABLE)).is_empty()
}

/// Take a signal of `set` without acting on it, waiting until `deadline` (ns since boot) for one to come.
pub fn await_one(set: SigSet, deadline: Option<u64>) -> Result<SigInfo, Woken> {
    let me = task::current();
    let set = set.without(SigSet::UNBLOCKABLE);
    // Announced before the look, so that one which comes after the look wakes us.
    me.signals.lock().awaited = set;
    let take = || {
        let mut state = me.process.signals.lock();
        let mut t = me.signals.lock();
        let others = SigSet(!set.0);
        let info = t.pending.take(others).or_else(|| state.pend(|all| all.take(others)));
        me.signals.summarise(&me.process.signals, &t);
        info
    };
    let taken = wait::wait_any(&[], deadline, true, take);
    me.signals.lock().awaited = SigSet::EMPTY;
    // One that came while the wait ended for another reason is taken, not lost sight of.
    let taken = taken.or_else(|why| take().ok_or(why));
    // What else this thread was chosen for, as it waited for it, is for others now.
    let left = {
        let t = me.signals.lock();
        me.process.signals.waiting().and(set).and(t.blocked)
    };
    if !left.is_empty() {
        retarget(&me.process, left);
    }
    taken.map(|info| time::taken(&me.process, info))
}

/// The rest of the call that was interrupted last, if it may still be continued.
pub fn take_restart() -> Option<Restart> {
    task::current().signals.lock().restart.take()
}

/// Whether signal number `signal` would do nothing to the calling thread now: blocked or ignored. For terminals.
pub fn is_held(signal: u32) -> bool {
    let Some(signal) = Signal::new(u64::from(signal)) else { return true };
    let me = task::current();
    let action = me.process.signals.action(signal);
    action.is_ignore() || blocked().has(signal)
}

/// Have `restart_syscall` run `rest` if no handler runs; what an interrupted wait with a time limit returns.
pub fn restart_with(rest: Restart) -> Errno {
    let old = task::current().signals.lock().restart.replace(rest);
    drop(old);
    RESTART_BLOCK
}

/// Tell `parent` by SIGCHLD that its child `pid` stopped or goes on, unless it asked not to be told.
pub fn child_changed(parent: &Process, pid: u32, news: Status) {
    if !parent.signals.action(Signal::CHLD).no_child_stop() {
        send_process(parent, SigInfo::child(Signal::CHLD.number(), pid, news));
    }
}

/// Whether nobody will wait for a child of `parent` that ends with `exit_signal`: SIGCHLD, ignored or with
/// SA_NOCLDWAIT.
pub fn child_ended_ignored(parent: &Process, exit_signal: u32) -> bool {
    let action = parent.signals.action(Signal::CHLD);
    exit_signal == Signal::CHLD.number() && (action.is_ignore() || action.no_child_wait())
}

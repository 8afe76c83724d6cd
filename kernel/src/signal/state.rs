//! What a thread and a process remember about signals.

use alloc::{boxed::Box, collections::VecDeque, sync::Arc};
use core::{
    array,
    hint::spin_loop,
    ops::DerefMut,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use percpu::Line;
use sync::SeqLock;

use super::{SIGNALS, SigInfo, SigSet, Signal, TrapCause};
use crate::{
    errno::{Errno, SysResult},
    hw::{cpu::ToDo, irq},
    syscall::time::Alarm,
    task::Task,
    wait::WaitQueue,
};

/// The rest of an interrupted call, for `restart_syscall`.
pub type Restart = Box<dyn FnOnce() -> SysResult + Send>;

/// The most signals with information that wait in one place, whatever RLIMIT_SIGPENDING says: 1 MiB of them.
const QUEUE_LIMIT: u64 = 8192;

/// Signals that wait to be taken.
#[derive(Default)]
pub(super) struct Pending {
    set: SigSet,
    /// Information on members of `set`, in order of arrival. A member without an entry is a bare one from the kernel.
    queue: VecDeque<SigInfo>,
    /// Information on one more member, which a fault of the thread's own raised: it must not depend on memory.
    fault: Option<SigInfo>,
}

impl Pending {
    /// Which signals wait.
    pub(super) fn set(&self) -> SigSet {
        self.set
    }

    /// Queue `info`, a standard signal only if it isn't there yet. EAGAIN if `limit` entries are queued and it is a
    /// real-time one from anything but `kill`; others then lose their information instead.
    pub(super) fn add(&mut self, info: SigInfo, limit: u64) -> Result<(), Errno> {
        let Some(signal) = info.signal() else { return Err(Errno::EINVAL) };
        if !signal.is_real_time() && self.set.has(signal) {
            return Ok(());
        }
        if !info.is_bare() {
            if (self.queue.len() as u64) < limit.min(QUEUE_LIMIT) && self.queue.try_reserve(1).is_ok() {
                self.queue.push_back(info);
            } else if signal.is_real_time() && info.code() != super::code::SI_USER {
                return Err(Errno::EAGAIN);
            }
        }
        self.set = self.set.with(signal);
        Ok(())
    }

    /// Have `info` in place of whatever waits of its signal.
    pub(super) fn force(&mut self, info: SigInfo) {
        let Some(signal) = info.signal() else { return };
        self.remove(SigSet::of(&[signal]));
        if let Some((before, other)) = self.fault.replace(info).and_then(|i| Some((i, i.signal()?))) {
            // Its information may be lost, the signal isn't.
            self.set = self.set.without(SigSet::of(&[other]));
            let _ = self.add(before, u64::MAX);
        }
        self.set = self.set.with(signal);
    }

    /// Take the first of the signals that wait and are not in `blocked`.
    pub(super) fn take(&mut self, blocked: SigSet) -> Option<SigInfo> {
        let signal = self.set.without(blocked).first()?;
        if let Some(fault) = self.fault.take_if(|i| i.signal() == Some(signal)) {
            self.set = self.set.without(SigSet::of(&[signal]));
            return Some(fault);
        }
        let mut same = (0..).zip(&self.queue).filter(|(_, i)| i.signal() == Some(signal)).map(|(at, _)| at);
        let (first, more) = (same.next(), same.next().is_some());
        if !more {
            self.set = self.set.without(SigSet::of(&[signal]));
        }
        Some(first.and_then(|at: usize| self.queue.remove(at)).unwrap_or(SigInfo::kernel(signal.number())))
    }

    /// Forget the signals in `set`.
    pub(super) fn remove(&mut self, set: SigSet) {
        if !self.set.and(set).is_empty() {
            self.set = self.set.without(set);
            let stays = |i: &SigInfo| i.signal().is_some_and(|s| !set.has(s));
            self.queue.retain(stays);
            self.fault = self.fault.filter(stays);
        }
    }
}

/// The stack for handlers with SA_ONSTACK, as `sigaltstack` set it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct AltStack {
    /// Lowest byte.
    pub base: u64,
    /// `SS_DISABLE`, `SS_ONSTACK` or 0, and `SS_AUTODISARM`.
    pub flags: u32,
    /// Bytes.
    pub size: u64,
}

impl AltStack {
    /// `ss_flags`: in use now.
    pub const ONSTACK: u32 = 1;
    /// `ss_flags`: there is none.
    pub const DISABLE: u32 = 2;
    /// `ss_flags`: forget the stack while a handler runs on it.
    pub const AUTODISARM: u32 = 1 << 31;
    /// No alternate stack, as a thread that shares memory with its creator begins, or with AUTODISARM a handler.
    pub const NONE: AltStack = AltStack { base: 0, flags: Self::DISABLE, size: 0 };
    /// No alternate stack, as a process begins: it differs from [`Self::NONE`] in what signal frames show.
    const FRESH: AltStack = AltStack { flags: 0, ..Self::NONE };

    /// Whether `sp` lies in the stack, regardless of AUTODISARM.
    pub fn contains(&self, sp: u64) -> bool {
        sp > self.base && sp - self.base <= self.size
    }
    /// Whether a thread with stack pointer `sp` is running on it.
    pub fn in_use(&self, sp: u64) -> bool {
        self.flags & Self::AUTODISARM == 0 && self.contains(sp)
    }
    /// `SS_DISABLE`, `SS_ONSTACK` or 0, for a thread with stack pointer `sp`.
    pub fn status(&self, sp: u64) -> u32 {
        match (self.size, self.in_use(sp)) {
            (0, _) => Self::DISABLE,
            (_, true) => Self::ONSTACK,
            (_, false) => 0,
        }
    }
}

/// A thread's part. [`TaskSignals::lock`] gives the state; the flag is read without.
pub struct TaskSignals {
    flag: ToDo,
    /// Whether `TaskState::saved` is something.
    saved: ToDo,
    state: irq::Lock<TaskState>,
}

/// See [`TaskSignals`].
pub struct TaskState {
    pub(super) pending: Pending,
    pub(super) blocked: SigSet,
    /// The mask to put back when a wait with another one is over.
    pub(super) saved: Option<SigSet>,
    /// What `rt_sigtimedwait` waits for: blocked, but worth a wake.
    pub(super) awaited: SigSet,
    pub(super) alt_stack: AltStack,
    pub(super) trap: TrapCause,
    pub(super) restart: Option<Restart>,
}

impl TaskState {
    fn with(blocked: SigSet, alt_stack: AltStack) -> Self {
        Self {
            pending: Pending::default(),
            blocked,
            saved: None,
            awaited: SigSet::EMPTY,
            alt_stack,
            trap: TrapCause::default(),
            restart: None,
        }
    }
    /// Whether a new `signal` is this thread's business now.
    pub(super) fn wants(&self, signal: Signal) -> bool {
        !self.blocked.without(self.awaited).has(signal)
    }
    /// Whether `signal` waits for the thread even if it would do nothing now.
    pub(super) fn holds(&self, signal: Signal) -> bool {
        self.blocked.or(self.awaited).has(signal)
    }
    /// The blocked signals.
    pub fn blocked(&self) -> SigSet {
        self.blocked
    }
    /// Signals that wait for this thread alone.
    pub fn pending_set(&self) -> SigSet {
        self.pending.set()
    }
    /// What a thread created by this one begins with: the same mask, and the same alternate stack unless the two will
    /// run in the same memory at the same time.
    pub fn for_clone(&self, same_memory: bool) -> Self {
        Self::with(self.blocked, if same_memory { AltStack::NONE } else { self.alt_stack })
    }
    /// `execve`: the alternate stack goes with the memory; the mask and what is pending stay.
    pub fn exec(&mut self) {
        self.alt_stack = AltStack { flags: self.alt_stack.flags, ..AltStack::NONE };
    }
    /// The alternate stack.
    pub fn alt_stack(&mut self) -> &mut AltStack {
        &mut self.alt_stack
    }
}

impl Default for TaskSignals {
    fn default() -> Self {
        Self::new()
    }
}

impl TaskSignals {
    /// Nothing pending, nothing blocked, no alternate stack. The flag is set, so that a new thread looks once before it
    /// runs: its process may have been told to stop before the thread was in its list.
    pub fn new() -> Self {
        Self {
            flag: ToDo::new(true),
            saved: ToDo::new(false),
            state: irq::Lock::new(TaskState::with(SigSet::EMPTY, AltStack::FRESH)),
        }
    }

    /// Whether a mask is to be put back. For the thread itself, as are the next two.
    pub(super) fn has_saved(&self) -> bool {
        // Relaxed: the thread's own.
        self.saved.is_set(Ordering::Relaxed)
    }

    /// Remember the mask of before a wait.
    pub(super) fn save(&self, mask: SigSet) {
        self.state.lock().saved = Some(mask);
        self.saved.set(Ordering::Relaxed);
    }

    /// The mask that was remembered; it is forgotten.
    pub(super) fn take_saved(&self) -> Option<SigSet> {
        self.saved.clear();
        self.state.lock().saved.take()
    }

    /// The state.
    pub fn lock(&self) -> impl DerefMut<Target = TaskState> {
        self.state.lock()
    }

    /// Whether the thread has something to look at.
    pub(super) fn flag(&self) -> bool {
        // Relaxed: whoever sets it wakes the thread afterwards, and the wake orders it (sched.rs); a running thread
        // sees it at the next return to user mode, which `Task::interrupt` brings about.
        self.flag.is_set(Ordering::Relaxed)
    }

    /// Set the flag: in the section of the thread's state in which the caller looked at the mask, or after it.
    pub(super) fn set_flag(&self) {
        // Relaxed: see `flag`.
        self.flag.set(Ordering::Relaxed);
    }

    /// Set the flag of `task`, whose signals these are, and give the task for a wake after the locks are released.
    pub(super) fn raise(&self, task: &Arc<Task>) -> Arc<Task> {
        self.set_flag();
        task.clone()
    }

    /// Compute the flag anew. By the thread itself, with its state locked.
    pub(super) fn summarise(&self, process: &ProcessSignals, mine: &TaskState) {
        let open = mine.pending.set.or(process.waiting()).without(mine.blocked);
        // Relaxed: see `flag`, and the module for why none is lost that others set.
        match !open.is_empty() || process.is_stopping() {
            true => self.flag.set(Ordering::Relaxed),
            false => self.flag.clear(),
        }
    }
}

/// What to do on a signal, as in the kernel's `struct sigaction`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Action {
    /// Address of the handler, or `SIG_DFL` (0) or `SIG_IGN` (1).
    pub handler: u64,
    /// `SA_` flags.
    pub flags: u64,
    /// Where a handler returns to.
    pub restorer: u64,
    /// What is blocked while the handler runs.
    pub mask: SigSet,
}
crate::pod!(SigSet, Action);

impl Action {
    /// SIG_DFL.
    pub const DEFAULT: Action = Action { handler: 0, flags: 0, restorer: 0, mask: SigSet::EMPTY };
    const NOCLDSTOP: u64 = 1;
    const NOCLDWAIT: u64 = 2;
    pub(super) const RESTORER: u64 = 0x0400_0000;
    pub(super) const ONSTACK: u64 = 0x0800_0000;
    pub(super) const RESTART: u64 = 0x1000_0000;
    pub(super) const NODEFER: u64 = 0x4000_0000;
    pub(super) const RESETHAND: u64 = 0x8000_0000;
    const SIGINFO: u64 = 4;
    /// The flags that exist; others are dropped, so that a program can find out which do.
    const KNOWN: u64 = Self::NOCLDSTOP
        | Self::NOCLDWAIT
        | Self::SIGINFO
        | Self::RESTORER
        | Self::ONSTACK
        | Self::RESTART
        | Self::NODEFER
        | Self::RESETHAND;

    /// The action as the kernel keeps it: known flags only, and nothing unblockable in the mask.
    pub fn checked(mut self) -> Self {
        self.flags &= Self::KNOWN;
        self.mask = self.mask.without(SigSet::UNBLOCKABLE);
        self
    }
    const fn words(self) -> [u64; 4] {
        [self.handler, self.flags, self.restorer, self.mask.0]
    }
    const fn from_words([handler, flags, restorer, mask]: [u64; 4]) -> Self {
        Self { handler, flags, restorer, mask: SigSet(mask) }
    }
    /// Whether it is a handler that is called once.
    pub(super) fn is_for_once(&self) -> bool {
        !self.is_default() && !self.is_ignore() && self.flags & Self::RESETHAND != 0
    }
    pub(super) fn is_default(&self) -> bool {
        self.handler == 0
    }
    pub(super) fn is_ignore(&self) -> bool {
        self.handler == 1
    }
    /// Whether `signal` with this action does nothing.
    pub(super) fn ignores(&self, signal: Signal) -> bool {
        self.is_ignore() || self.is_default() && SigSet::IGNORED.has(signal)
    }
    pub(super) fn no_child_stop(&self) -> bool {
        self.flags & Self::NOCLDSTOP != 0
    }
    pub(super) fn no_child_wait(&self) -> bool {
        self.flags & Self::NOCLDWAIT != 0
    }
}

/// Whether the process is stopped.
#[derive(Default)]
pub(super) struct Job {
    /// The signal that stops it: all threads are to stop, or have.
    pub(super) stop: Option<Signal>,
    /// Threads that have.
    pub(super) arrived: usize,
    /// Whether the parent was told that all have.
    pub(super) reported: bool,
    /// How many times it was told to go on. A stop that was taken before that is void, and a thread that stopped before
    /// that isn't part of a later stop until it has noticed.
    pub(super) era: u64,
}

impl Job {
    /// Go on. True if the process had stopped.
    pub(super) fn resume(&mut self) -> bool {
        let had_stopped = self.reported;
        *self = Self { era: self.era + 1, ..Self::default() };
        had_stopped
    }
}

/// A process's part. [`ProcessSignals::lock`] gives the state.
pub struct ProcessSignals {
    /// On lines that change only when signals do.
    seen: Line<Seen>,
    state: irq::Lock<ProcessState>,
    /// Where its threads wait while it is stopped.
    pub(super) resumed: WaitQueue,
}

/// What all threads read, and nobody changes but with the state locked.
struct Seen {
    /// What the signals do, by [`Action::words`].
    actions: [SeqLock<4>; SIGNALS as usize],
    /// The set of `ProcessState::pending`.
    waiting: AtomicU64,
    /// Whether there is a `Job::stop`.
    stopping: AtomicBool,
}

/// See [`ProcessSignals`].
pub struct ProcessState {
    pending: Pending,
    job: Job,
    alarm: Option<Alarm>,
}

impl Default for ProcessSignals {
    fn default() -> Self {
        Self::new()
    }
}

impl ProcessSignals {
    /// Default actions, nothing pending.
    pub fn new() -> Self {
        Self {
            seen: Line(Seen {
                actions: array::from_fn(|_| SeqLock::new(Action::DEFAULT.words())),
                waiting: AtomicU64::new(0),
                stopping: AtomicBool::new(false),
            }),
            state: irq::Lock::new(ProcessState {
                pending: Pending::default(),
                job: Job::default(),
                alarm: None,
            }),
            resumed: WaitQueue::new(),
        }
    }

    /// The state.
    pub fn lock(&self) -> Held<'_> {
        Held { seen: &self.seen.0, state: self.state.lock() }
    }

    /// What `signal` does. From any context, and with any lock of signals held, so it must not wait for the state: whoever has
    /// that may be waiting for a thread's. It waits for some stores, which are made with interrupts off.
    pub fn action(&self, signal: Signal) -> Action {
        let words = &self.seen.0.actions[signal.index()];
        loop {
            if let Some(words) = words.try_read() {
                return Action::from_words(words);
            }
            spin_loop();
        }
    }

    /// What waits for the process. For a thread that has its own state locked, or wants to know what has been so.
    pub(super) fn waiting(&self) -> SigSet {
        // Relaxed: ordered by the thread's lock, see the module.
        SigSet(self.seen.0.waiting.load(Ordering::Relaxed))
    }

    /// Whether its threads are to stop. For a thread that has its own state locked.
    pub(super) fn is_stopping(&self) -> bool {
        // Relaxed: as in `waiting`.
        self.seen.0.stopping.load(Ordering::Relaxed)
    }
}

/// The state of a process's signals, locked.
pub struct Held<'a> {
    seen: &'a Seen,
    state: irq::Guard<'a, ProcessState>,
}

impl Held<'_> {
    /// What `signal` does.
    pub fn action(&self, signal: Signal) -> Action {
        Action::from_words(self.seen.actions[signal.index()].read())
    }
    pub(super) fn set_action(&mut self, signal: Signal, action: Action) {
        self.seen.actions[signal.index()].update(|_| action.words());
    }
    /// A child of `fork`, which has nothing pending and no timer, begins with its parent's actions.
    pub fn inherit(&mut self, parent: &Held<'_>) {
        for (mine, parents) in self.seen.actions.iter().zip(&parent.seen.actions) {
            let words = parents.read();
            // Most are the default's, all zeros, and so are the child's so far.
            if words.iter().any(|word| *word != 0) {
                mine.update(|_| words);
            }
        }
    }
    /// `execve`: handlers are gone, what was ignored stays ignored.
    pub fn exec(&mut self) {
        for action in &self.seen.actions {
            action.update(|words| {
                let handler = u64::from(Action::from_words(words).is_ignore());
                Action { handler, ..Action::DEFAULT }.words()
            });
        }
    }
    /// What waits.
    pub(super) fn pending_set(&self) -> SigSet {
        self.state.pending.set()
    }
    /// Whether the process stops, and how far it has come.
    pub(super) fn job(&self) -> &Job {
        &self.state.job
    }
    /// Change what waits.
    pub(super) fn pend<R>(&mut self, change: impl FnOnce(&mut Pending) -> R) -> R {
        let before = self.state.pending.set();
        let result = change(&mut self.state.pending);
        let now = self.state.pending.set();
        if now != before {
            // Relaxed: see the module.
            self.seen.waiting.store(now.0, Ordering::Relaxed);
        }
        result
    }
    /// Change whether the process stops.
    pub(super) fn with_job<R>(&mut self, change: impl FnOnce(&mut Job) -> R) -> R {
        let before = self.state.job.stop.is_some();
        let result = change(&mut self.state.job);
        let now = self.state.job.stop.is_some();
        if now != before {
            // Relaxed: see the module.
            self.seen.stopping.store(now, Ordering::Relaxed);
        }
        result
    }
    /// ITIMER_REAL.
    pub fn alarm(&mut self) -> &mut Option<Alarm> {
        &mut self.state.alarm
    }
}

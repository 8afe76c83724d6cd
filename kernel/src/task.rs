//! A task: one thread of a process, or one of the kernel's own.

use alloc::{boxed::Box, sync::Arc, task::Wake, vec::Vec};
use core::{
    ops::Deref,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};

use aspace::Policy;
use percpu::{CpuId, CpuSet};
use rcu::Head;
use sync::SeqLock;

pub use crate::hw::thread::{Current, current, pinned, unpinned};
use crate::{
    errno::Errno,
    file::Files,
    futex,
    hw::{TrapFrame, cpu::ToDo, irq, thread::Thread},
    own::{Lent, Own},
    places,
    process::{self, Mm, Process, Used},
    rseq,
    sched::{self, Entity},
    signal::TaskSignals,
    trap, upcall, usercopy,
};

/// A task's own handle of the memory that it shares with others. Faults and calls of different threads count their
/// references to the handle, so they write no line that another thread writes.
pub type TaskMm = Arc<Handle>;

/// What is behind it. With the counts it has cache lines of its own, since what lies beside it in the heap is others'.
#[repr(align(64))]
pub struct Handle(Arc<Mm>);

impl Deref for Handle {
    type Target = Arc<Mm>;

    fn deref(&self) -> &Arc<Mm> {
        &self.0
    }
}

/// What a thread that runs where its affinity says has for an errand: no CPU's number.
const NO_ERRAND: u32 = u32::MAX;

/// A thread. Aligned, so that how often it is referred to is counted on another line.
#[repr(align(128))]
pub struct Task {
    /// Thread id; that of a process's first thread is the process id. `execve` by another thread makes it so again.
    tid: AtomicU32,
    /// The process that it belongs to.
    pub process: Arc<Process>,
    /// `comm`: at most 15 bytes and a NUL.
    pub name: irq::Lock<[u8; 16]>,
    /// Mask, pending signals, alternate stack.
    pub signals: TaskSignals,
    /// Where to store 0 and wake a futex on exit; 0 for nowhere.
    pub clear_child_tid: AtomicU64,
    /// Head of the robust futex list; 0 for none.
    pub robust_list: AtomicU64,
    /// Where it takes upcalls.
    pub upcall: upcall::State,
    /// Its restartable sequence.
    pub rseq: rseq::State,
    /// Where it may run: see [`Self::set_affinity`].
    affinity: irq::Lock<CpuSet>,
    /// Whether where it may run has changed since it looked.
    unplaced: ToDo,
    /// The only CPU where it may run for now, by number; [`NO_ERRAND`] if there is none such.
    errand: AtomicU32,
    /// What it was told about its priority and its powers.
    pub attributes: Told,
    /// Where it wants memory.
    pub memory_policy: MemoryPolicy,
    /// The scheduler's part.
    pub sched: Entity,
    /// The machine's part.
    pub thread: Thread,
    /// Where the thread stores its id when it first runs (CLONE_CHILD_SETTID); 0 for nowhere.
    set_tid: AtomicU64,
    /// Page faults that were resolved for it.
    faults: AtomicU64,
    mm: Own<Option<TaskMm>>,
    /// The process's descriptors, as the thread last found them. For the thread itself.
    files: irq::Lock<Option<Files>>,
    /// The memory that it has moved into for a moment: [`visit`].
    visited: Own<Option<TaskMm>>,
    /// Whether there is any. For the thread itself.
    visits: AtomicBool,
    kind: Kind,
    /// Asked to end: by `exit`, or since the process ends or executes another program.
    ending: ToDo,
    /// What `exit` was given, for a last thread that nobody killed.
    exit_code: AtomicU32,
    /// For when it has left the table of ids.
    pub retired: Head,
}

/// What a thread has been told about itself, and tells again. Nothing here acts on it: all threads are scheduled alike,
/// and all run as root.
#[derive(Clone, Copy)]
pub struct Attributes {
    /// `SCHED_OTHER` (0) and so on.
    pub policy: u32,
    /// Priority of a real-time policy; else 0.
    pub priority: u32,
    /// SCHED_RESET_ON_FORK.
    pub reset_on_fork: bool,
    /// -20..=19.
    pub nice: i32,
    /// Capabilities by bit: effective, permitted, inheritable.
    pub capabilities: [u64; 3],
    /// personality(2).
    pub personality: u32,
    /// How many supplementary groups it has; all of them are 0.
    pub groups: u32,
}

impl Attributes {
    /// All the capabilities that there are (CAP_LAST_CAP is 40).
    pub const ALL_CAPABILITIES: u64 = (1 << 41) - 1;
    /// Those of the first program.
    pub const FRESH: Attributes = Attributes {
        policy: 0,
        priority: 0,
        reset_on_fork: false,
        nice: 0,
        capabilities: [Self::ALL_CAPABILITIES, Self::ALL_CAPABILITIES, 0],
        personality: 0,
        groups: 0,
    };

    const fn words(self) -> [u64; 6] {
        const fn pair(low: u32, high: u32) -> u64 {
            low as u64 | (high as u64) << 32
        }
        let [effective, permitted, inheritable] = self.capabilities;
        let nice = pair(self.nice as u32, self.reset_on_fork as u32);
        let rest = pair(self.personality, self.groups);
        [pair(self.policy, self.priority), nice, rest, effective, permitted, inheritable]
    }
    const fn from_words([policy, nice, rest, effective, permitted, inheritable]: [u64; 6]) -> Self {
        Self {
            policy: policy as u32,
            priority: (policy >> 32) as u32,
            reset_on_fork: nice >> 32 != 0,
            nice: nice as u32 as i32,
            capabilities: [effective, permitted, inheritable],
            personality: rest as u32,
            groups: (rest >> 32) as u32,
        }
    }

    /// Those of a thread that this one makes.
    pub fn for_clone(mut self) -> Self {
        if self.reset_on_fork {
            self.nice = if self.policy == 0 { self.nice.max(0) } else { 0 };
            (self.policy, self.priority, self.reset_on_fork) = (0, 0, false);
        }
        self
    }
}

/// The [`Attributes`] of a thread, which any may read, and few change.
pub struct Told(SeqLock<6>);

impl Told {
    fn new(attributes: Attributes) -> Self {
        Self(SeqLock::new(attributes.words()))
    }
    /// What it was told.
    pub fn get(&self) -> Attributes {
        Attributes::from_words(self.0.read())
    }
    /// Tell it something else. `change` must not sleep.
    pub fn change<R>(&self, change: impl FnOnce(&mut Attributes) -> R) -> R {
        let mut result = None;
        self.0.update(|words| {
            let mut attributes = Attributes::from_words(words);
            result = Some(change(&mut attributes));
            attributes.words()
        });
        match result {
            Some(result) => result,
            None => unreachable!("a sequence lock was not updated"),
        }
    }
}

/// Where a thread wants memory, as it said by set_mempolicy(2). Page faults ask, so it costs nothing to have said nothing.
pub struct MemoryPolicy {
    said: AtomicBool,
    policy: irq::Lock<Policy>,
}

impl MemoryPolicy {
    const fn new() -> Self {
        Self { said: AtomicBool::new(false), policy: irq::Lock::new(Policy::DEFAULT) }
    }
    /// What was said, if anything.
    pub fn get(&self) -> Policy {
        // Relaxed: the thread itself sets it, or who makes the thread before it runs; to others it is a report.
        if self.said.load(Ordering::Relaxed) { *self.policy.lock() } else { Policy::DEFAULT }
    }
    /// Say it.
    pub fn set(&self, policy: Policy) {
        *self.policy.lock() = policy;
        // Relaxed: as in `get`.
        self.said.store(!policy.is_default(), Ordering::Relaxed);
    }
}

/// Where the calling thread wants memory.
pub fn memory_policy() -> Policy {
    current().memory_policy.get()
}

/// Lock memory without limit.
const CAP_IPC_LOCK: u32 = 14;
/// Look into other processes.
pub const CAP_SYS_PTRACE: u32 = 19;
/// What concerns the machine, such as which frames there are.
pub const CAP_SYS_ADMIN: u32 = 21;
/// Decide where other processes' memory is, and how they run.
pub const CAP_SYS_NICE: u32 = 23;

/// Whether the calling thread has the capability numbered `which` in effect.
pub fn is_capable(which: u32) -> bool {
    let [effective, ..] = current().attributes.get().capabilities;
    effective >> which & 1 != 0
}

/// Whether RLIMIT_MEMLOCK does not bind the calling thread.
pub fn may_lock_all() -> bool {
    is_capable(CAP_IPC_LOCK)
}

enum Kind {
    User,
    Idle,
    Kernel(irq::Lock<Option<Box<dyn FnOnce() + Send>>>),
}

/// Run `f` with `mm` as the calling thread's memory, for copies on its behalf; `None` if the last task that used it has gone.
/// The thread becomes a user of `mm` meanwhile, so that its contents and its tables stay. What others ask the thread for
/// ([`Task::mm`]) is still its own.
pub fn visit<R>(mm: &Arc<Mm>, f: impl FnOnce() -> R) -> Option<R> {
    let me = current();
    if me.mm().is_some_and(|own| Arc::ptr_eq(&**own, mm)) {
        return Some(f());
    }
    // Not `join`: the caller is no user, so the count may have come down to 0, and what is cleared stays so.
    if !mm.join_if_used() {
        return None;
    }
    me.visited.replace(Some(Arc::new(Handle(mm.clone()))));
    // Relaxed, both: read by this thread.
    me.visits.store(true, Ordering::Relaxed);
    sched::reload_space();
    let result = f();
    me.visits.store(false, Ordering::Relaxed);
    let visited = me.visited.replace(None);
    sched::reload_space();
    drop(visited);
    mm.leave();
    Some(result)
}

/// The descriptors of the calling thread's process.
pub fn files() -> Files {
    let me = current();
    if let Some(files) = me.files.lock().as_ref().filter(|files| me.process.has_table(files.table())) {
        return files.clone();
    }
    let files = Files::of(me.process.files());
    let old = me.files.lock().replace(files.clone());
    drop(old); // with no lock held
    files
}

impl Task {
    fn assemble(tid: u32, process: Arc<Process>, thread: Thread, kind: Kind) -> Self {
        Self {
            tid: AtomicU32::new(tid),
            process,
            name: irq::Lock::new([0; 16]),
            signals: TaskSignals::new(),
            clear_child_tid: AtomicU64::new(0),
            robust_list: AtomicU64::new(0),
            upcall: upcall::State::new(),
            rseq: rseq::State::new(),
            affinity: irq::Lock::new(sched::online()),
            unplaced: ToDo::new(true),
            errand: AtomicU32::new(NO_ERRAND),
            attributes: Told::new(Attributes::FRESH),
            memory_policy: MemoryPolicy::new(),
            sched: Entity::new(),
            thread,
            set_tid: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            mm: Own::new(None),
            files: irq::Lock::new(None),
            visited: Own::new(None),
            visits: AtomicBool::new(false),
            kind,
            ending: ToDo::new(false),
            exit_code: AtomicU32::new(0),
            retired: Head::new(),
        }
    }

    /// A user thread of `process` that will enter user mode with `frame` and FS base `fs`, in the address space `mm`.
    /// It inherits the caller's floating-point state if `inherit`. Not started yet.
    pub fn user(
        tid: u32,
        process: Arc<Process>,
        mm: Arc<Mm>,
        frame: &TrapFrame,
        fs: u64,
        inherit: bool,
    ) -> Result<Arc<Self>, Errno> {
        let mut thread = Thread::new(true, user_entry).ok_or(Errno::ENOMEM)?;
        thread.set_first_frame(frame, fs);
        if inherit {
            thread.copy_state_of_caller();
        }
        let task = Self::assemble(tid, process, thread, Kind::User);
        let me = current();
        if inherit && !me.mm().is_some_and(|mine| Arc::ptr_eq(&*mine, &mm)) {
            me.rseq.fork_to(&task.rseq, Arc::as_ptr(&mm).addr());
            me.upcall.fork_to(&task.upcall)?;
        }
        task.mm.replace(Some(Arc::new(Handle(mm))));
        let task = Arc::new(task);
        places::thread(&task);
        Ok(task)
    }

    /// A kernel thread that runs `f` and ends. Not started yet.
    pub fn kernel(process: Arc<Process>, f: impl FnOnce() + Send + 'static) -> Option<Arc<Self>> {
        let thread = Thread::new(false, kernel_entry)?;
        let kind = Kind::Kernel(irq::Lock::new(Some(Box::new(f))));
        Some(Arc::new(Self::assemble(0, process, thread, kind)))
    }

    /// The idle thread of a CPU.
    pub fn idle(process: Arc<Process>) -> Option<Arc<Self>> {
        let thread = Thread::new(false, idle_entry)?;
        Some(Arc::new(Self::assemble(0, process, thread, Kind::Idle)))
    }

    /// The thread id, as `gettid` gives it; 0 for the kernel's own threads.
    pub fn tid(&self) -> u32 {
        // Relaxed: changed only by the thread itself in `execve`, when it is alone in its process.
        self.tid.load(Ordering::Relaxed)
    }
    /// Take over the process's id, after `execve` ended the other threads.
    pub fn become_leader(&self) {
        // Relaxed: as in `tid`.
        self.tid.store(self.process.pid, Ordering::Relaxed);
    }
    /// Note that a page fault of this thread, which is the caller, was resolved.
    pub fn count_fault(&self) {
        // Relaxed: a count, and only the thread itself adds to it.
        self.faults.store(self.faults.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
    /// What it has used.
    pub fn used(&self) -> Used {
        let clock = &self.sched.clock;
        // Relaxed: a count.
        let faults = self.faults.load(Ordering::Relaxed);
        Used { cpu_ns: clock.run_ns(), user_ns: clock.user_ns(), faults, peak_resident: 0 }
    }
    /// Let the thread, which is the caller, run on this CPU only, until it says otherwise.
    pub fn set_errand(&self, cpu: Option<CpuId>) {
        // Relaxed: published to other CPUs when the thread is queued.
        self.errand.store(cpu.map_or(NO_ERRAND, |cpu| cpu.index() as u32), Ordering::Relaxed);
        self.unplaced.set(Ordering::Relaxed);
    }
    /// Where it may run but for errands.
    pub fn affinity(&self) -> CpuSet {
        *self.affinity.lock()
    }
    /// Let it run on these CPUs only. It leaves others on its way to user mode, if it is [kicked](sched::kick).
    pub fn set_affinity(&self, cpus: CpuSet) {
        *self.affinity.lock() = cpus;
        // Relaxed: the kick, or that it is queued, brings it about that the thread looks, and comes after.
        self.unplaced.set(Ordering::Relaxed);
    }
    /// Whether the thread, which is the caller, may not be on `cpu`, where it is. Who put it there may have looked at what has
    /// changed since; then the change has set the flag after the thread's last look.
    #[inline]
    pub fn is_misplaced(&self, cpu: CpuId) -> bool {
        // Relaxed: a flag that is seen late is seen at the kick. Taken back before the look, so that a change during it
        // counts: of the two holders of `affinity`'s lock, the look is first, and then the flag comes to be set after it was
        // taken back; or the change is, and the look sees it.
        if !self.unplaced.is_set(Ordering::Relaxed) {
            return false;
        }
        self.unplaced.clear();
        let misplaced = !self.may_run_on(cpu);
        if misplaced {
            self.unplaced.set(Ordering::Relaxed);
        }
        misplaced
    }
    fn errand(&self) -> Option<CpuId> {
        // Relaxed: see `set_errand`.
        CpuId::new(self.errand.load(Ordering::Relaxed) as usize)
    }
    /// Where it may run now.
    pub fn allowed(&self) -> CpuSet {
        self.errand().map_or_else(|| *self.affinity.lock(), |cpu| CpuSet::from_iter([cpu]))
    }
    /// Whether it may run there now.
    pub fn may_run_on(&self, cpu: CpuId) -> bool {
        self.errand().map_or_else(|| self.affinity.lock().contains(cpu), |only| only == cpu)
    }
    /// Whether this is an idle thread.
    pub fn is_idle(&self) -> bool {
        matches!(self.kind, Kind::Idle)
    }
    /// The address space, for user threads that have not ended.
    pub fn mm(&self) -> Option<TaskMm> {
        self.mm.get()
    }
    /// The address space that it runs in: its own, unless it [`visit`]s another.
    pub fn space(&self) -> Option<TaskMm> {
        // Relaxed: the thread's own; others see one or the other.
        if self.is_visiting() { self.visited.get() } else { self.mm() }
    }
    /// The same, lent to the thread itself, which is the caller. None for a thread that has none.
    ///
    /// # Safety
    /// The caller is this thread.
    #[allow(unsafe_code)] // what it calls has the same contract
    #[inline]
    pub unsafe fn lend_space(&self) -> Option<Lent<'_, Handle>> {
        let own = if self.is_visiting() { &self.visited } else { &self.mm };
        // SAFETY: by this function's contract.
        unsafe { own.lend(Option::as_deref) }
    }
    /// Its own, lent in the same way.
    ///
    /// # Safety
    /// The caller is this thread.
    #[allow(unsafe_code)] // as above
    #[inline]
    pub unsafe fn lend_mm(&self) -> Option<Lent<'_, Handle>> {
        // SAFETY: by this function's contract.
        unsafe { self.mm.lend(Option::as_deref) }
    }
    /// Whether it is in another's. For the thread itself.
    pub fn is_visiting(&self) -> bool {
        // Relaxed: as in `space`.
        self.visits.load(Ordering::Relaxed)
    }
    /// Replace the address space: `execve`, and who makes the thread.
    pub fn set_mm(&self, mm: Option<Arc<Mm>>) -> Option<Arc<Mm>> {
        let old = self.mm.replace(mm.map(|mm| Arc::new(Handle(mm))));
        old.map(|handle| Arc::clone(&*handle))
    }
    /// Have none any more, and never return to who has borrowed it: exit.
    pub fn end_mm(&self) -> Option<Arc<Mm>> {
        self.mm.end(None).map(|handle| Arc::clone(&*handle))
    }
    /// Be no user of descriptors any more.
    pub fn leave_files(&self) {
        let files = self.files.lock().take();
        drop(files); // with no lock held
    }
    /// Store the thread id at `at` in its own memory when it first runs.
    pub fn set_tid_on_start(&self, at: u64) {
        // Relaxed: published with the task.
        self.set_tid.store(at, Ordering::Relaxed);
    }
    /// End the thread when it next is on its way to user mode; interrupts its sleep.
    pub fn end(self: &Arc<Self>) {
        // Release: with the wake in `interrupt`, what the caller wrote before is seen by the thread's own check.
        self.ending.set(Ordering::Release);
        self.interrupt();
    }
    /// As [`Self::end`] for the calling thread itself, with the code of its `exit`.
    pub fn end_self(&self, code: u32) {
        // Relaxed: read by this thread.
        self.exit_code.store(code, Ordering::Relaxed);
        self.ending.set(Ordering::Relaxed);
    }
    /// Whether the thread was asked to end.
    pub fn is_ending(&self) -> bool {
        // Acquire: pairs with `end`.
        self.ending.is_set(Ordering::Acquire)
    }
    /// What `exit` was given.
    pub fn exit_code(&self) -> u32 {
        // Relaxed: read by this thread, or after it ended under a lock.
        self.exit_code.load(Ordering::Relaxed)
    }
    /// Make the park that the task is in, or its next, return. From any context.
    pub fn wake(self: &Arc<Self>) {
        sched::wake(self);
    }
    /// Make the task look at its signals soon: ends an interruptible sleep, and interrupts user mode.
    pub fn interrupt(self: &Arc<Self>) {
        sched::wake(self);
        sched::kick(self);
    }
    /// The name as bytes without the NUL.
    pub fn comm(&self) -> Vec<u8> {
        let name = *self.name.lock();
        name.iter().copied().take_while(|b| *b != 0).collect()
    }
    /// Set the name from the last component of a path, or from what `prctl` was given.
    pub fn set_comm(&self, name: &[u8]) {
        let base = name.rsplit(|b| *b == b'/').next().unwrap_or(name);
        let mut n = [0; 16];
        for (to, from) in n.iter_mut().take(15).zip(base) {
            *to = *from;
        }
        *self.name.lock() = n;
    }
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        sched::wake(&self);
    }
    fn wake_by_ref(self: &Arc<Self>) {
        sched::wake(self);
    }
}

extern "C" fn user_entry() -> ! {
    sched::first_run();
    let me = current();
    // Relaxed: written before the task was started.
    let at = me.set_tid.load(Ordering::Relaxed);
    if at != 0 {
        irq::enable();
        // A bad address is the program's own affair.
        let _ = usercopy::write(at, &me.tid());
        irq::disable();
    }
    let mut frame = me.frame();
    trap::leave_to_user(&mut frame);
    me.set_frame(&frame);
    me.enter_user()
}

extern "C" fn kernel_entry() -> ! {
    sched::first_run();
    irq::enable();
    let f = match &current().kind {
        Kind::Kernel(f) => f.lock().take(),
        _ => None,
    };
    if let Some(f) = f {
        f();
    }
    sched::exit_current()
}

extern "C" fn idle_entry() -> ! {
    sched::first_run();
    irq::enable();
    sched::idle()
}

/// The end of a user thread, called by itself on the way to user mode when [`Task::is_ending`]. Nothing on the stack
/// below this call owns memory.
pub fn exit_now() -> ! {
    irq::enable();
    exit_steps();
    sched::exit_current()
}

fn exit_steps() {
    let me = current().arc();
    // Relaxed: these words belong to the thread.
    let clear = me.clear_child_tid.load(Ordering::Relaxed);
    futex::exit_robust_list(&me);
    if clear != 0 && me.mm().is_some_and(|mm| mm.is_shared()) {
        // A bad address is the program's own affair.
        if usercopy::write(clear, &0u32).is_ok() {
            futex::wake_address(clear, 1);
        }
    }
    process::thread_ended(&me);
}

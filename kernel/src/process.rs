//! Processes: their table, their life and their end.
//!
//! A process is alive while it has a thread. `exit_group`, a fatal signal and `execve` only *ask* threads to end
//! (`Task::end`); each ends by itself on its way to user mode (`task::exit_now`), and the last one ends the process
//! ([`thread_ended`]): it gives the memory and the files back, hands its children to the supervisor, and becomes a
//! zombie that its parent collects.
//!
//! # Lock order
//! A parent's `children`, then one process's `life` or `threads`; none is held across a sleep. The table's ([`ids`]) is taken with
//! none of them, and none with it. Signals are sent with none of them held.
//!
//! # Who owns what
//! A child is owned by its parent's `children` until it is collected; a thread by its process's `threads` until it ends, and by the
//! scheduler while it runs. Both by the table, until a grace period after they have left it: so who looks them up there need not count
//! them. A thread gives its kernel stack back when it has ended, whoever still has the thread (`sched.rs`).

use alloc::{
    sync::{Arc, Weak},
    vec::Vec,
};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use addr::VirtAddr;
use aspace::AddressSpace;
use linux_raw_sys::general::SIGCHLD;
use rcu::Head;
use sync::RwLock;

use crate::{
    algo::Choice,
    cpu_time::CpuTimers,
    errno::Errno,
    file::{Claim, FileTable, FsShare, OpenFile, Share},
    hw::{cpu, irq::Lock},
    ids,
    limits::{RLIMIT_NPROC, Rlimits},
    memory, oom, places, sched,
    signal::{self, ProcessSignals, SigInfo},
    syscall::posix_timer::PosixTimers,
    task::{self, Task},
    wait::WaitQueue,
};

/// The supervisor's id.
const SUPERVISOR_PID: u32 = 1;

/// What threads that share memory share.
pub struct Mm {
    /// The address space.
    pub aspace: Arc<dyn AddressSpace>,
    /// The heap that `brk` moves: its first byte and the first byte after it.
    pub brk: RwLock<Brk>,
    /// Absolute path of the program.
    pub exe: Vec<u8>,
    /// Nobody writes the program while the memory is used.
    pub running: Lock<Option<Claim>>,
    /// Where the arguments and the environment lie in user memory: start and end of each, in bytes.
    pub args: Lock<[u64; 4]>,
    /// Commands of `membarrier` that it has registered for.
    pub barriers: AtomicU32,
    /// Where the program's code and initialised data lie: start and end of each, in bytes.
    pub image: Lock<[u64; 4]>,
    /// The stack pointer that the program began with.
    pub start_stack: AtomicU64,
    /// How many tasks use it.
    users: AtomicUsize,
}

/// The heap of [`Mm::brk`], in bytes.
#[derive(Clone, Copy, Default)]
pub struct Brk {
    /// First byte.
    pub start: u64,
    /// First byte after.
    pub end: u64,
}

impl Mm {
    /// An address space with one user, for the program at `exe`.
    pub fn new(
        aspace: Arc<dyn AddressSpace>,
        exe: Vec<u8>,
        running: Option<Claim>,
        brk: Brk,
        args: [u64; 4],
    ) -> Arc<Self> {
        Arc::new(Self {
            aspace,
            brk: RwLock::new(brk),
            exe,
            running: Lock::new(running),
            args: Lock::new(args),
            barriers: AtomicU32::new(0),
            image: Lock::new([0; 4]),
            start_stack: AtomicU64::new(0),
            users: AtomicUsize::new(1),
        })
    }
    /// One more task uses it.
    pub fn join(self: &Arc<Self>) -> Arc<Self> {
        // Relaxed: the caller is a user itself, so the count can't reach 0 meanwhile.
        self.users.fetch_add(1, Ordering::Relaxed);
        self.clone()
    }
    /// As [`Self::join`] for a caller that is no user: false if there is none left.
    pub fn join_if_used(&self) -> bool {
        let one_more = |users: usize| (users > 0).then_some(users + 1);
        // Relaxed: as in `join`; the count alone decides.
        self.users.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
    }
    /// One task fewer uses it; the last one gives everything in it back. May sleep.
    pub fn leave(&self) {
        // AcqRel: the uses of all others come before the clearing by the last.
        if self.users.fetch_sub(1, Ordering::AcqRel) == 1 {
            if places::wanted() {
                let brk = *self.brk.read(&task::unpinned());
                places::user("heap", brk.start..brk.end);
            }
            self.aspace.clear(&task::unpinned());
            let program = self.running.lock().take();
            drop(program); // with no lock held: the file may go with it
        }
    }
    /// Make the stack above `va` grow down to it, within the calling process's limits. False if there is none, or it
    /// may not.
    pub fn grow(&self, va: VirtAddr) -> bool {
        self.aspace.grow(va, &task::current().process.limits.of_memory(), &task::unpinned()).is_ok()
    }
    /// Whether more than one task uses it.
    pub fn is_shared(&self) -> bool {
        // Relaxed: a caller that is the only user reads a stable 1.
        self.users.load(Ordering::Relaxed) > 1
    }
}

/// How a process ended, or what else happened to it, in the encoding of `wait4`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Status(pub u32);

impl Status {
    /// It called `exit` with this code.
    pub const fn exited(code: u32) -> Self {
        Self((code & 0xff) << 8)
    }
    /// This signal killed it.
    pub const fn killed(signal: u32) -> Self {
        Self(signal & 0x7f)
    }
    /// Whether a signal killed it.
    pub const fn is_killed(self) -> bool {
        self.0 != 0 && self.0 & !0x7f == 0
    }
    /// This signal stopped it.
    pub const fn stopped(signal: u32) -> Self {
        Self((signal << 8) | 0x7f)
    }
    /// It was continued.
    pub const CONTINUED: Status = Status(0xffff);

    /// As a shell tells it: the code, or 128 plus the signal.
    pub fn shell(self) -> u32 {
        if self.0 & 0x7f == 0 { (self.0 >> 8) & 0xff } else { 128 + (self.0 & 0x7f) }
    }
}

/// What a parent may still collect.
#[derive(Default)]
struct Life {
    /// Set once, by the last thread.
    ended: Option<Status>,
    /// Set when the process was asked to end as a whole, or its last thread ends; the first wins.
    group_exit: Option<Status>,
    /// Whether `group_exit` was a signal, and is counted as leaving (`oom.rs`).
    killed: bool,
    /// A stop or continue that no wait has seen yet.
    news: Option<Status>,
    /// The thread that is executing another program, and has asked all others to end.
    exec: Option<u32>,
}

/// A process. Aligned, so that how often it is referred to is counted on another line.
#[repr(align(128))]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its parent; the supervisor once the parent has ended.
    pub parent: Lock<Weak<Process>>,
    /// Its process group.
    pub pgid: AtomicU32,
    /// Its session.
    pub sid: AtomicU32,
    /// Actions and shared pending signals.
    pub signals: ProcessSignals,
    /// Its descriptors.
    files: Lock<Share>,
    /// Where the table of `files` is, for threads to see whether it is the one that they know.
    table: AtomicUsize,
    /// Working directory and file mode mask.
    pub fs: FsShare,
    /// Its live threads; the first one first.
    pub threads: Lock<Vec<Arc<Task>>>,
    /// Its children, ended or not, until they are collected.
    pub children: Lock<Vec<Arc<Process>>>,
    /// It has ended, and will have no more. Changed with the list locked.
    childless: AtomicBool,
    /// Woken when a child ends, stops or continues.
    pub child_wait: WaitQueue,
    /// What it may use.
    pub limits: Rlimits,
    /// The signal that its end sends to the parent; 0 for none.
    pub exit_signal: AtomicU32,
    /// Whether it has called `execve`.
    pub has_execed: AtomicBool,
    /// What its ended threads have used.
    ended_threads: Lock<Used>,
    /// What its collected children have used, and theirs.
    children_used: Lock<Used>,
    /// Woken when a `vfork` child lets go of its parent's memory.
    pub vfork_wait: WaitQueue,
    /// The parent of a `vfork` waits until this is clear.
    pub vfork_busy: AtomicBool,
    /// Woken when a thread ends, and when the process has ended or been collected: `execve` waits for the others, and
    /// whoever has a descriptor of the process for the rest.
    pub thread_wait: WaitQueue,
    /// Its POSIX timers.
    pub timers: PosixTimers,
    /// By which algorithm it gets page frames.
    pub frames: Choice,
    /// Its timers that count processor time.
    pub cpu_timers: CpuTimers,
    /// Since boot, in ns.
    pub started: u64,
    life: Lock<Life>,
    /// For when it has left the table.
    pub retired: Head,
}

/// What threads or processes have used, as `getrusage` tells it.
#[derive(Clone, Copy, Default)]
pub struct Used {
    /// Processor time in ns.
    pub cpu_ns: u64,
    /// Of it, what counts as time in user mode for a timer: see `cpu_time.rs`.
    pub user_ns: u64,
    /// Page faults that were resolved.
    pub faults: u64,
    /// The most pages that were in memory at once.
    pub peak_resident: u64,
}

impl Used {
    /// Both together.
    pub fn and(self, other: Self) -> Self {
        Self {
            cpu_ns: self.cpu_ns + other.cpu_ns,
            user_ns: self.user_ns + other.user_ns,
            faults: self.faults + other.faults,
            peak_resident: self.peak_resident.max(other.peak_resident),
        }
    }
}

/// How many threads there may be: their kernel stacks can take a quarter of memory. Linux's formula for
/// /proc/sys/kernel/threads-max.
pub fn task_limit() -> usize {
    const FRAMES_PER_TASK: u64 = 32;
    // A list of so many is one object of the heap, of 1 MiB at most.
    const MOST: u64 = 100_000;
    (memory::frames().total() / FRAMES_PER_TASK).clamp(20, MOST) as usize
}

/// Whether the calling process may make one more thread: EAGAIN beyond RLIMIT_NPROC or [`task_limit`].
pub fn check_task_limit() -> Result<(), Errno> {
    let soft = task::current().process.limits.soft(RLIMIT_NPROC);
    let tasks = ids::task_count();
    if tasks as u64 >= soft || tasks >= task_limit() { Err(Errno::EAGAIN) } else { Ok(()) }
}

impl Process {
    /// A process with nothing in it. Not in the table yet. It is large, so its callers have none on their stacks.
    #[inline(never)]
    pub fn new(pid: u32, parent: Weak<Process>, files: Share, fs: FsShare) -> Arc<Self> {
        Arc::new(Self {
            pid,
            parent: Lock::new(parent),
            pgid: AtomicU32::new(pid),
            sid: AtomicU32::new(pid),
            signals: ProcessSignals::new(),
            table: AtomicUsize::new(Arc::as_ptr(files.table()).addr()),
            files: Lock::new(files),
            fs,
            threads: Lock::new(Vec::new()),
            children: Lock::new(Vec::new()),
            childless: AtomicBool::new(false),
            child_wait: WaitQueue::new(),
            limits: Rlimits::new(),
            exit_signal: AtomicU32::new(SIGCHLD),
            has_execed: AtomicBool::new(false),
            ended_threads: Lock::new(Used::default()),
            children_used: Lock::new(Used::default()),
            vfork_wait: WaitQueue::new(),
            vfork_busy: AtomicBool::new(false),
            thread_wait: WaitQueue::new(),
            timers: PosixTimers::new(),
            cpu_timers: CpuTimers::new(),
            frames: Choice::default(),
            started: crate::hw::timer::now(),
            life: Lock::new(Life::default()),
            retired: Head::new(),
        })
    }

    /// The descriptors, for a look: its threads take [`task::files`].
    pub fn files(&self) -> Arc<FileTable> {
        self.files.lock().table().clone()
    }
    /// A share of the descriptors for another process.
    pub fn share_files(&self) -> Share {
        self.files.lock().clone()
    }
    /// Have other descriptors. What it had is closed with the result, if nobody shares it: with no lock held.
    #[must_use = "closing may sleep"]
    pub fn set_files(&self, files: Share) -> Share {
        let mut mine = self.files.lock();
        // Release: before the old table is cleared; partner: the load in `has_table`, by who has found it empty.
        self.table.store(Arc::as_ptr(files.table()).addr(), Ordering::Release);
        core::mem::replace(&mut *mine, files)
    }
    /// Have descriptors that no other process shares: a copy, if need be. ENOMEM. The copy is made and put in place with the old
    /// table locked: so who changes a table, and sees under its lock that its process has it, changes the copy too. If another thread
    /// was first its copy stays.
    pub fn unshare_files(&self) -> Result<(), Errno> {
        let table = self.files();
        table.unshare(|| self.has_table(&table), |copy| self.set_files(copy))
    }
    /// A copy of the descriptors for another process. ENOMEM.
    pub fn fork_files(&self) -> Result<Share, Errno> {
        loop {
            let table = self.files();
            if let Some(copy) = table.fork_if(|| self.has_table(&table)) {
                return copy;
            }
        }
    }
    /// The open file behind `fd`, counted: for another process. EBADF.
    pub fn file(&self, fd: i32) -> Result<Arc<OpenFile>, Errno> {
        loop {
            let table = self.files();
            if let Some(file) = table.get_if(fd, || self.has_table(&table)) {
                return file;
            }
        }
    }
    /// Whether `table`, which the caller has, is that of the descriptors.
    pub fn has_table(&self, table: &Arc<FileTable>) -> bool {
        // Acquire: partner of the store in `set_files`.
        self.table.load(Ordering::Acquire) == Arc::as_ptr(table).addr()
    }
    /// The address space of its first live thread.
    pub fn mm(&self) -> Option<Arc<Mm>> {
        let first = self.threads.lock().first().cloned();
        first?.mm().map(|mm| Arc::clone(&*mm))
    }
    /// The thread that has the process's id, or else any live one.
    pub fn leader(&self) -> Option<Arc<Task>> {
        let threads = self.threads.lock();
        threads.iter().find(|t| t.tid() == self.pid).or_else(|| threads.first()).cloned()
    }
    /// The parent's id; 0 if there is none that the process may know of.
    pub fn ppid(&self) -> u32 {
        self.parent.lock().upgrade().map_or(0, |p| p.pid)
    }
    /// How it ended, if it has.
    pub fn ended(&self) -> Option<Status> {
        self.life.lock().ended
    }
    /// Whether it was asked to end, or ends by itself, and hasn't yet.
    pub fn is_leaving(&self) -> bool {
        let life = self.life.lock();
        life.group_exit.is_some() && life.ended.is_none()
    }
    /// A stop or continue that no wait has seen; `take`: it has now.
    pub fn news(&self, take: bool) -> Option<Status> {
        let mut l = self.life.lock();
        if take { l.news.take() } else { l.news }
    }
    /// Processor time of all its threads, ended ones included, in ns.
    pub fn cpu_ns(&self) -> u64 {
        self.used().cpu_ns
    }
    /// What all its threads have used, ended ones included. Its memory counts when it has let go of it.
    pub fn used(&self) -> Used {
        // Held over both, as by a thread that ends: it is among the live or among the ended, never both or neither.
        let threads = self.threads.lock();
        let live = threads.iter().map(|t| t.used()).fold(Used::default(), Used::and);
        live.and(*self.ended_threads.lock())
    }
    /// What its collected children have used, and theirs.
    pub fn children_used(&self) -> Used {
        *self.children_used.lock()
    }
    /// Note how much of `mm`, which it is about to leave, was in memory. May sleep.
    pub fn note_peak(&self, mm: &Mm) {
        let used = Used { peak_resident: mm.aspace.peak_resident(&task::unpinned()), ..Used::default() };
        let mut ended = self.ended_threads.lock();
        *ended = ended.and(used);
    }
    /// Release a parent that waits in `vfork`.
    pub fn release_vfork(&self) {
        // Release: the child's last use of the shared memory comes before; pairs with the Acquire in `vfork_done`.
        if self.vfork_busy.swap(false, Ordering::Release) {
            self.vfork_wait.wake_all();
        }
    }
    /// Whether a `vfork` child has let go.
    pub fn vfork_done(&self) -> bool {
        // Acquire: pairs with `release_vfork`.
        !self.vfork_busy.load(Ordering::Acquire)
    }
}

/// Enter a new process and its first thread, whose id the caller has, into the table, and hand it to its parent. It is in the group and
/// session of `like`, or in those of its own.
pub fn register(process: &Arc<Process>, first: &Arc<Task>, like: Option<&Process>) {
    // The thread first: who finds the process may ask it to end. Nobody can have yet, so this can't fail.
    let entered = register_thread(process, first);
    debug_assert!(entered.is_ok());
    ids::enter_process(process, like);
    let parent = process.parent.lock().upgrade();
    let is_taken = parent.is_some_and(|parent| {
        let mut children = parent.children.lock();
        // Relaxed: changed with the list locked.
        let open = !parent.childless.load(Ordering::Relaxed);
        if open {
            children.push(process.clone());
        }
        open
    });
    // The caller's parent, which this one was to have, may have ended: see `process_ended`.
    if !is_taken && let Some(heir) = supervisor().filter(|heir| !Arc::ptr_eq(heir, process)) {
        process.exit_signal.store(SIGCHLD, Ordering::Relaxed);
        *process.parent.lock() = Arc::downgrade(&heir);
        heir.children.lock().push(process.clone());
    }
}

/// Enter a new thread, whose id the caller has; EAGAIN if the process was asked to end meanwhile (the thread must not run then).
pub fn register_thread(process: &Process, task: &Arc<Task>) -> Result<(), Errno> {
    {
        let life = process.life.lock();
        if life.group_exit.is_some() || life.exec.is_some() {
            return Err(Errno::EAGAIN);
        }
        // Under `life`, so that whoever asks the process to end sees either the thread or nothing to come.
        let mut threads = process.threads.lock();
        task.sched.clock.watch(threads.first().is_some_and(|first| first.sched.clock.is_watched()));
        threads.push(task.clone());
    }
    ids::enter_thread(task);
    Ok(())
}

/// Ask the calling process to end with `status`. Returns; the caller ends on its way to user mode, so it should go
/// there without delay.
pub fn group_exit(status: Status) {
    end_process(&task::current().process, status);
}

/// Ask `process` to end with `status`; the first such request wins, or the end of its last thread. From any context;
/// takes no memory, since a want of memory may be the reason.
pub fn end_process(process: &Process, status: Status) {
    if process.pid == SUPERVISOR_PID {
        return;
    }
    // The caller may be one of its threads, and be told already, by an interrupt that has not come yet.
    cpu::ask();
    {
        // Under `life`, so that whoever enters a thread sees the request, or the thread is seen below.
        let mut life = process.life.lock();
        if life.group_exit.is_none() {
            life.group_exit = Some(status);
            life.killed = status.is_killed();
            if life.killed {
                oom::leaves();
            }
        }
    }
    // One at a time, since a thread is woken with no lock held. Those that go meanwhile move others down, so in the end it
    // is looked once more from the start.
    let next = |from: usize| {
        let threads = process.threads.lock();
        let mut rest = threads.iter().enumerate().skip(from);
        rest.find(|(_, t)| !t.is_ending()).map(|(i, t)| (i, t.clone()))
    };
    let mut from = 0;
    loop {
        match next(from) {
            Some((i, t)) => {
                t.end();
                from = i + 1;
            }
            None if from == 0 => return,
            None => from = 0,
        }
    }
}

/// Make the calling thread the only one of its process, for `execve`. Err if the process is ending instead.
pub fn end_other_threads() -> Result<(), Errno> {
    let me = task::current().arc();
    let p = &me.process;
    let others: Vec<_> = {
        let mut l = p.life.lock();
        if l.group_exit.is_some() || l.exec.is_some() {
            return Err(Errno::EAGAIN);
        }
        l.exec = Some(me.tid());
        p.threads.lock().iter().filter(|t| !Arc::ptr_eq(t, &me)).cloned().collect()
    };
    for t in &others {
        t.end();
    }
    drop(others);
    let alone = p.thread_wait.wait(None, false, || (p.threads.lock().len() == 1).then_some(()));
    let ended = {
        let mut l = p.life.lock();
        l.exec = None;
        l.group_exit.is_some()
    };
    if alone.is_err() || ended {
        return Err(Errno::EAGAIN);
    }
    if me.tid() != p.pid {
        ids::become_leader(&me);
    }
    Ok(())
}

/// The last steps of a thread, called by itself.
pub fn thread_ended(me: &Arc<Task>) {
    let p = &me.process;
    signal::thread_exit(me);
    me.leave_files();
    // Out of the table before out of the process: whoever waits in `execve` to be alone takes over the process's id then,
    // and that entry must not go with a first thread that is late.
    ids::leave_thread(me);
    let last = {
        let mut life = p.life.lock();
        let mut threads = p.threads.lock();
        let last = threads.len() == 1;
        if last {
            // Nobody changes any more how it ends. The last thread's code, as on Linux since 5.17, whichever it is.
            life.group_exit.get_or_insert(Status::exited(me.exit_code()));
        } else {
            threads.retain(|t| !Arc::ptr_eq(t, me));
            let mut ended = p.ended_threads.lock();
            *ended = ended.and(me.used());
        }
        drop(threads);
        drop(life);
        last
    };
    if last {
        signal::process_exit(p);
        release_resources(p);
    }
    if let Some(mm) = me.end_mm() {
        if last {
            p.note_peak(&mm);
        }
        // This CPU must not keep the tables of a space that may end now: nobody would ask it to let go later.
        sched::unload_space();
        mm.leave();
    }
    if last {
        p.release_vfork();
        {
            let mut threads = p.threads.lock();
            threads.clear();
            let mut ended = p.ended_threads.lock();
            *ended = ended.and(me.used());
        }
        process_ended(p);
    }
    p.thread_wait.wake_all();
}

/// Give back what the process has beside memory: it has ended, or will not begin. May sleep.
pub fn release_resources(p: &Arc<Process>) {
    p.fs.leave();
    let files = p.set_files(Share::empty());
    // Closing may sleep and send signals; it happens here, with no lock held, if ours was the last share.
    drop(files);
}

fn process_ended(p: &Arc<Process>) {
    let heir = supervisor();
    let children = {
        let mut children = p.children.lock();
        p.childless.store(true, Ordering::Relaxed);
        core::mem::take(&mut *children)
    };
    for c in children {
        if let Some(h) = &heir {
            // As Linux: an heir is told in the usual way. Relaxed: as where it is read.
            c.exit_signal.store(SIGCHLD, Ordering::Relaxed);
            *c.parent.lock() = Arc::downgrade(h);
            h.children.lock().push(c);
        }
    }
    if let Some(h) = &heir {
        h.child_wait.wake_all();
    }
    let status = {
        let mut l = p.life.lock();
        // Set by now, see `thread_ended`.
        let status = l.group_exit.unwrap_or_default();
        l.ended = Some(status);
        l.news = None;
        if l.killed {
            oom::has_left();
        }
        status
    };
    let Some(parent) = p.parent.lock().upgrade() else { return };
    // Relaxed: written before the process could end.
    let signal = p.exit_signal.load(Ordering::Relaxed);
    let reap = signal::child_ended_ignored(&parent, signal);
    if signal != 0 {
        signal::send_process(&parent, SigInfo::child(signal, p.pid, status));
    }
    if reap {
        forget(&parent, p);
    }
    parent.child_wait.wake_all();
}

/// Tell the parent of `p` that it stopped or continued.
pub fn notify_parent(p: &Process, news: Status) {
    {
        let mut life = p.life.lock();
        if life.ended.is_some() {
            return;
        }
        life.news = Some(news);
    }
    let Some(parent) = p.parent.lock().upgrade() else { return };
    signal::child_changed(&parent, p.pid, news);
    parent.child_wait.wake_all();
}

/// Remove an ended child from its parent and the table; false if somebody else did.
pub fn forget(parent: &Process, child: &Arc<Process>) -> bool {
    let mut children = parent.children.lock();
    let Some(i) = children.iter().position(|c| Arc::ptr_eq(c, child)) else { return false };
    children.swap_remove(i);
    drop(children);
    let used = child.used().and(child.children_used());
    {
        let mut all = parent.children_used.lock();
        *all = all.and(used);
    }
    ids::leave_process(child);
    child.thread_wait.wake_all();
    true
}

static SUPERVISOR: Lock<Option<Arc<Process>>> = Lock::new(None);

/// The kernel's own process: parent of the first program and of orphans.
pub fn supervisor() -> Option<Arc<Process>> {
    SUPERVISOR.lock().clone()
}

/// Make the kernel's own process, before any task exists.
pub fn init(files: Share, fs: FsShare) -> Arc<Process> {
    let p = Process::new(SUPERVISOR_PID, Weak::new(), files, fs);
    *SUPERVISOR.lock() = Some(p.clone());
    p
}

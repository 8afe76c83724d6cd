//! Calls about processes: make, replace, end and collect them, and what they may ask about themselves.

use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::Ordering;

use linux_raw_sys::general as abi;

use super::{Args, frames};
use crate::{
    errno::{Errno, SysResult},
    exec::{self, Program},
    file::{OpenFile, ProcessFile},
    hw::{self, TrapFrame, cpu},
    ids, memory, options, places,
    planted::{self, Planted},
    process::{self, Mm, Process, Status, Used},
    sched,
    task::{self, Task},
    upcall, usercopy,
};

// ---- making -------------------------------------------------------------------------------------------------------

/// What `clone`, `clone3`, `fork` and `vfork` come down to.
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    exit_signal: u32,
    /// New stack pointer; 0 keeps the caller's.
    stack: u64,
    tls: u64,
    parent_tid: u64,
    child_tid: u64,
    /// Where a descriptor of the child goes (CLONE_PIDFD).
    pidfd: u64,
}

const fn flag(f: u32) -> u64 {
    f as u64
}

const CLONE_VM: u64 = flag(abi::CLONE_VM);
const CLONE_FS: u64 = flag(abi::CLONE_FS);
const CLONE_FILES: u64 = flag(abi::CLONE_FILES);
const CLONE_SIGHAND: u64 = flag(abi::CLONE_SIGHAND);
const CLONE_VFORK: u64 = flag(abi::CLONE_VFORK);
const CLONE_PIDFD: u64 = flag(abi::CLONE_PIDFD);
const CLONE_PARENT: u64 = flag(abi::CLONE_PARENT);
const CLONE_THREAD: u64 = flag(abi::CLONE_THREAD);
const CLONE_SYSVSEM: u64 = flag(abi::CLONE_SYSVSEM);
const CLONE_SETTLS: u64 = flag(abi::CLONE_SETTLS);
const CLONE_PARENT_SETTID: u64 = flag(abi::CLONE_PARENT_SETTID);
const CLONE_CHILD_CLEARTID: u64 = flag(abi::CLONE_CHILD_CLEARTID);
const CLONE_DETACHED: u64 = flag(abi::CLONE_DETACHED);
const CLONE_UNTRACED: u64 = flag(abi::CLONE_UNTRACED);
const CLONE_CHILD_SETTID: u64 = flag(abi::CLONE_CHILD_SETTID);
const CLONE_IO: u64 = flag(abi::CLONE_IO);
const CLONE_CLEAR_SIGHAND: u64 = 1 << 32;

/// Flags that are done, or that mean nothing without what they ask for (I/O contexts, System V semaphores, tracing).
const CLONE_KNOWN: u64 = CLONE_VM
    | CLONE_FS
    | CLONE_FILES
    | CLONE_SIGHAND
    | CLONE_VFORK
    | CLONE_PIDFD
    | CLONE_PARENT
    | CLONE_THREAD
    | CLONE_SYSVSEM
    | CLONE_SETTLS
    | CLONE_PARENT_SETTID
    | CLONE_CHILD_CLEARTID
    | CLONE_DETACHED
    | CLONE_UNTRACED
    | CLONE_CHILD_SETTID
    | CLONE_IO
    | CLONE_CLEAR_SIGHAND;

/// `fork(2)`.
pub fn fork(_: &Args, frame: &mut TrapFrame) -> Option<SysResult> {
    Some(do_clone(&CloneArgs { exit_signal: abi::SIGCHLD, ..Default::default() }, frame))
}

/// `vfork(2)`.
pub fn vfork(_: &Args, frame: &mut TrapFrame) -> Option<SysResult> {
    let c = CloneArgs { flags: CLONE_VM | CLONE_VFORK, exit_signal: abi::SIGCHLD, ..Default::default() };
    Some(do_clone(&c, frame))
}

/// `clone(2)`, in the order of arguments of x86-64.
pub fn clone(a: &Args, frame: &mut TrapFrame) -> Option<SysResult> {
    let c = CloneArgs {
        flags: u64::from(a.uint(0)) & !0xff,
        exit_signal: a.uint(0) & 0xff,
        stack: a.raw(1),
        parent_tid: a.raw(2),
        child_tid: a.raw(3),
        tls: a.raw(4),
        // The same word serves for one or the other.
        pidfd: a.raw(2),
    };
    if c.flags & CLONE_PIDFD != 0 && c.flags & CLONE_PARENT_SETTID != 0 {
        return Some(Err(Errno::EINVAL));
    }
    Some(do_clone(&c, frame))
}

/// `clone3(2)`.
pub fn clone3(a: &Args, frame: &mut TrapFrame) -> Option<SysResult> {
    Some(clone3_args(a).and_then(|c| do_clone(&c, frame)))
}

fn clone3_args(a: &Args) -> Result<CloneArgs, Errno> {
    // struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid,
    // set_tid_size, cgroup. Versions of 64, 80 and 88 bytes exist.
    let size = a.raw(1);
    if size > 4096 {
        return Err(Errno::E2BIG);
    }
    if size < 64 {
        return Err(Errno::EINVAL);
    }
    let mut raw = alloc::vec![0u8; size as usize];
    usercopy::copy_in(a.raw(0), &mut raw)?;
    let mut words = [0u64; 11];
    for (w, b) in words.iter_mut().zip(raw.as_chunks::<8>().0) {
        *w = u64::from_le_bytes(*b);
    }
    if raw.iter().skip(88).any(|b| *b != 0) {
        return Err(Errno::E2BIG);
    }
    let [flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, _] =
        words;
    if set_tid != 0 || set_tid_size != 0 {
        return Err(Errno::EINVAL);
    }
    if exit_signal > 64
        || (stack == 0) != (stack_size == 0)
        || flags & CLONE_DETACHED != 0
        || flags & 0xff != 0
    {
        return Err(Errno::EINVAL);
    }
    if flags & (CLONE_THREAD | CLONE_PARENT) != 0 && exit_signal != 0 {
        return Err(Errno::EINVAL);
    }
    let top = stack.checked_add(stack_size).filter(|t| *t <= addr::USER_END).ok_or(Errno::EINVAL)?;
    Ok(CloneArgs { flags, exit_signal: exit_signal as u32, stack: top, tls, parent_tid, child_tid, pidfd })
}

fn do_clone(c: &CloneArgs, frame: &TrapFrame) -> SysResult {
    let has = |f| c.flags & f != 0;
    if c.flags & !CLONE_KNOWN != 0 {
        // Namespaces, pidfds, tracing.
        return Err(Errno::EINVAL);
    }
    if has(CLONE_THREAD) && !has(CLONE_SIGHAND) || has(CLONE_SIGHAND) && !has(CLONE_VM) {
        return Err(Errno::EINVAL);
    }
    if has(CLONE_SIGHAND) && has(CLONE_CLEAR_SIGHAND) {
        return Err(Errno::EINVAL);
    }
    if has(CLONE_PIDFD) && has(CLONE_THREAD | CLONE_DETACHED) {
        return Err(Errno::EINVAL);
    }
    if has(CLONE_SETTLS) && c.tls >= addr::USER_END {
        return Err(Errno::EPERM);
    }
    if memory::frames().low() {
        // The kernel's stacks and tables may use the reserve, so here is where a program that makes threads without
        // end has to be stopped.
        return Err(Errno::ENOMEM);
    }
    let me = task::current().arc();
    let p = &me.process;
    let mm = me.mm().ok_or(Errno::ENOMEM)?;
    process::check_task_limit()?;
    let id = ids::new_id()?;
    let tid = id.number();

    let mut child_frame = frame.clone();
    child_frame.rax = 0;
    if c.stack != 0 {
        child_frame.rsp = c.stack;
    }
    let fs = if has(CLONE_SETTLS) { c.tls } else { cpu::fs_base() };
    let (child_process, child_mm) = if has(CLONE_THREAD) {
        if !has(CLONE_FILES) || !has(CLONE_FS) {
            // Threads of one process have one descriptor table and one directory here.
            return Err(Errno::ENOSYS);
        }
        (p.clone(), mm.join())
    } else {
        if has(CLONE_SIGHAND) {
            return Err(Errno::ENOSYS);
        }
        let child = fork_process(c, p, tid)?;
        let child_mm = if has(CLONE_VM) { mm.join() } else { fork_mm(&mm)? };
        (child, child_mm)
    };

    let child = match Task::user(tid, child_process.clone(), child_mm.clone(), &child_frame, fs, true) {
        Ok(t) => t,
        Err(e) => {
            child_mm.leave();
            return Err(e);
        }
    };
    *child.name.lock() = *me.name.lock();
    child.set_affinity(me.affinity());
    let attributes = me.attributes.get().for_clone();
    child.attributes.change(|told| *told = attributes);
    child.memory_policy.set(me.memory_policy.get());
    *child.signals.lock() = me.signals.lock().for_clone(has(CLONE_VM) && !has(CLONE_VFORK));
    if has(CLONE_CHILD_CLEARTID) {
        // Relaxed: published with the task.
        child.clear_child_tid.store(c.child_tid, Ordering::Relaxed);
    }
    // Before the child exists for others, so that a bad address or a full table leaves no trace.
    let pidfd = match has(CLONE_PIDFD) {
        true => give_pidfd(&child_process, c.pidfd).map(Some),
        false => Ok(None),
    };
    let undo = |pidfd: Option<(i32, Arc<OpenFile>)>| {
        if let Some((fd, file)) = pidfd {
            task::files().close_if(fd, &file);
        }
        leave_memory(&child);
        if !has(CLONE_THREAD) {
            // Another thread may have copied the descriptor, which keeps the process: but nothing else of it.
            process::release_resources(&child_process);
        }
    };
    let pidfd = pidfd.inspect_err(|_| undo(None))?;
    if let Err(e) = tell_ids(c, tid) {
        undo(pidfd);
        return Err(e);
    }
    if has(CLONE_CHILD_SETTID) && !has(CLONE_VM) {
        child.set_tid_on_start(c.child_tid);
    }
    if !has(CLONE_THREAD) {
        places::process(&child_process);
        places::memory(tid, &child_mm);
    }
    let entered = if has(CLONE_THREAD) {
        process::register_thread(&child_process, &child)
    } else if me.is_ending() {
        // Else processes that do nothing but fork could outrun whoever kills them all.
        Err(Errno::EINTR)
    } else {
        process::register(&child_process, &child, Some(p));
        Ok(())
    };
    if let Err(e) = entered {
        undo(pidfd);
        return Err(e);
    }
    if has(CLONE_VFORK) {
        // Relaxed: published by the start of the child.
        child_process.vfork_busy.store(true, Ordering::Relaxed);
    }
    sched::start(child);
    if has(CLONE_VFORK) {
        // The end of the process ends the wait; the child then goes on with the memory that it shares.
        let _ = child_process
            .vfork_wait
            .wait(None, false, || (child_process.vfork_done() || me.is_ending()).then_some(()));
    }
    Ok(tid as usize)
}

/// The child was not started.
fn leave_memory(child: &Task) {
    if let Some(mm) = child.set_mm(None) {
        mm.leave();
    }
}

/// Store the child's id in memory that the caller has. Not owed (`upcall/owed.rs`): the child may look for it, or have the place for
/// something else when it has ended. EFAULT if a level forbids that, and the call starts over. As on Linux, a
/// bad address doesn't undo the child.
fn tell_ids(c: &CloneArgs, tid: u32) -> Result<(), Errno> {
    let child_too = CLONE_CHILD_SETTID | CLONE_VM;
    let parent = (c.flags & CLONE_PARENT_SETTID != 0).then_some(c.parent_tid);
    let child = (c.flags & child_too == child_too).then_some(c.child_tid);
    for at in [parent, child].into_iter().flatten() {
        let store = || usercopy::write(at, &tid);
        let told = if planted::is(Planted::OwedIds) { upcall::owed(store) } else { store() };
        if upcall::is_again(&told) {
            return told;
        }
    }
    Ok(())
}

/// A descriptor of `process` for the caller, stored at `at`, and its file.
fn give_pidfd(process: &Arc<Process>, at: u64) -> Result<(i32, Arc<OpenFile>), Errno> {
    let files = task::files();
    let file = ProcessFile::open(process.clone(), 0)?;
    let fd = files.insert(file.clone(), true)? as i32;
    usercopy::write(at, &fd).inspect_err(|_| files.close_if(fd, &file))?;
    Ok((fd, file))
}

fn fork_mm(mm: &Arc<Mm>) -> Result<Arc<Mm>, Errno> {
    let ctx = task::unpinned();
    let brk = mm.brk.read(&ctx);
    let space = mm.aspace.fork(&ctx).map_err(|_| Errno::ENOMEM)?;
    let child = Mm::new(space, mm.exe.clone(), mm.running.lock().clone(), *brk, *mm.args.lock());
    *child.image.lock() = *mm.image.lock();
    // Relaxed: set once, before the program began.
    child.start_stack.store(mm.start_stack.load(Ordering::Relaxed), Ordering::Relaxed);
    // Relaxed: only threads of the process change it, and a racing one may come after the fork.
    child.barriers.store(mm.barriers.load(Ordering::Relaxed), Ordering::Relaxed);
    Ok(child)
}

fn fork_process(c: &CloneArgs, p: &Arc<Process>, pid: u32) -> Result<Arc<Process>, Errno> {
    let has = |f| c.flags & f != 0;
    let parent = if has(CLONE_PARENT) { p.parent.lock().clone() } else { Arc::downgrade(p) };
    let files = if has(CLONE_FILES) { p.share_files() } else { p.fork_files()? };
    let fs = if has(CLONE_FS) { p.fs.share() } else { p.fs.fork() };
    let child = Process::new(pid, parent, files, fs);
    // Relaxed, all: published when the child is registered.
    // A sibling tells the parent as the caller does.
    let exit_signal = if has(CLONE_PARENT) { p.exit_signal.load(Ordering::Relaxed) } else { c.exit_signal };
    child.exit_signal.store(exit_signal, Ordering::Relaxed);
    child.limits.inherit(&p.limits);
    child.frames.set(p.frames.get());
    let mut signals = child.signals.lock();
    signals.inherit(&p.signals.lock());
    if has(CLONE_CLEAR_SIGHAND) {
        signals.exec();
    }
    drop(signals);
    Ok(child)
}

/// `execve(2)`.
pub fn execve(a: &Args, frame: &mut TrapFrame) -> Option<SysResult> {
    let program = || -> Result<Program, Errno> {
        let path = usercopy::read_cstr(a.raw(0), 4096)?;
        let mut argv = usercopy::read_strings(a.raw(1), exec::MAX_ARGS)?;
        let envp = usercopy::read_strings(a.raw(2), exec::MAX_ARGS)?;
        if argv.is_empty() {
            argv.push(Vec::new());
        }
        Ok(Program { path, argv, envp })
    };
    match program().and_then(|p| exec::execve(p, frame)) {
        Ok(()) => None,
        Err(e) => Some(Err(e)),
    }
}

// ---- ending and collecting ----------------------------------------------------------------------------------------

/// `exit(2)`: the thread ends on its way to user mode.
pub fn exit(a: &Args) -> SysResult {
    task::current().end_self(a.uint(0) & 0xff);
    Ok(0)
}

/// `exit_group(2)`.
pub fn exit_group(a: &Args) -> SysResult {
    process::group_exit(Status::exited(a.uint(0)));
    Ok(0)
}

/// Which children a wait is for.
enum Which {
    Any,
    Pid(u32),
    /// Not who has its number now.
    Process(Arc<Process>),
    Group(u32),
}

impl Which {
    fn from_pid(pid: i32, me: &Process) -> Self {
        match pid {
            -1 => Which::Any,
            // Relaxed: as if the call came a little earlier or later.
            0 => Which::Group(me.pgid.load(Ordering::Relaxed)),
            p if p > 0 => Which::Pid(p as u32),
            p => Which::Group(p.unsigned_abs()),
        }
    }
    fn accepts(&self, p: &Process) -> bool {
        match self {
            Which::Any => true,
            Which::Pid(pid) => p.pid == *pid,
            Which::Process(process) => core::ptr::eq(p, &**process),
            // Relaxed: as in `from_pid`.
            Which::Group(g) => p.pgid.load(Ordering::Relaxed) == *g,
        }
    }
}

struct Collected {
    pid: u32,
    status: Status,
    used: Used,
}

#[derive(Clone, Copy)]
struct Wanted {
    ended: bool,
    stopped: bool,
    continued: bool,
    no_hang: bool,
    keep: bool,
}

/// Wait for a child. `Ok(None)`: none yet, and the caller would not hang.
fn collect(which: &Which, want: Wanted) -> Result<Option<Collected>, Errno> {
    let me = task::current().process.clone();
    let look = || 'again: loop {
        let children: Vec<_> = me.children.lock().iter().filter(|c| which.accepts(c)).cloned().collect();
        if children.is_empty() {
            return Some(Err(Errno::ECHILD));
        }
        for c in &children {
            if let Some(status) = c.ended().filter(|_| want.ended) {
                let used = c.used().and(c.children_used());
                if want.keep || process::forget(&me, c) {
                    return Some(Ok(Some(Collected { pid: c.pid, status, used })));
                }
                // Another thread was quicker. It wakes nobody, and what is left may be no child at all.
                continue 'again;
            }
            let interesting = |s: Status| if s == Status::CONTINUED { want.continued } else { want.stopped };
            if c.news(false).is_some_and(interesting)
                && let Some(status) = c.news(!want.keep)
            {
                let used = c.used().and(c.children_used());
                return Some(Ok(Some(Collected { pid: c.pid, status, used })));
            }
        }
        return want.no_hang.then_some(Ok(None));
    };
    me.child_wait.wait(None, true, look).unwrap_or(Err(Errno::RESTART))
}

/// `struct rusage`: all processor time counts as the user's, and every fault is a minor one.
fn rusage(used: Used) -> [u64; 18] {
    let mut r = [0; 18];
    r[0] = used.cpu_ns / 1_000_000_000;
    r[1] = used.cpu_ns % 1_000_000_000 / 1000;
    r[4] = used.peak_resident * (addr::PAGE_SIZE >> 10);
    r[8] = used.faults;
    r
}

/// `wait4(2)`.
pub fn wait4(a: &Args) -> SysResult {
    let (pid, options) = (a.int(0), a.uint(2));
    let known =
        abi::WNOHANG | abi::WUNTRACED | abi::WCONTINUED | abi::__WNOTHREAD | abi::__WCLONE | abi::__WALL;
    if options & !known != 0 {
        return Err(Errno::EINVAL);
    }
    if pid == i32::MIN {
        return Err(Errno::ESRCH);
    }
    let want = Wanted {
        ended: true,
        stopped: options & abi::WUNTRACED != 0,
        continued: options & abi::WCONTINUED != 0,
        no_hang: options & abi::WNOHANG != 0,
        keep: false,
    };
    let which = Which::from_pid(pid, &task::current().process);
    let Some(c) = collect(&which, want)? else { return Ok(0) };
    if a.raw(1) != 0 {
        upcall::owed(|| usercopy::write(a.raw(1), &c.status.0))?;
    }
    if a.raw(3) != 0 {
        upcall::owed(|| usercopy::write(a.raw(3), &rusage(c.used)))?;
    }
    Ok(c.pid as usize)
}

/// `waitid(2)`.
pub fn waitid(a: &Args) -> SysResult {
    let (kind, id, info, options) = (a.uint(0), a.int(1), a.raw(2), a.uint(3));
    let known = abi::WNOHANG
        | abi::WEXITED
        | abi::WSTOPPED
        | abi::WCONTINUED
        | abi::WNOWAIT
        | abi::__WNOTHREAD
        | abi::__WALL;
    let which_events = abi::WEXITED | abi::WSTOPPED | abi::WCONTINUED;
    if options & !known != 0 || options & which_events == 0 {
        return Err(Errno::EINVAL);
    }
    let me = task::current().process.clone();
    let mut no_wait = false;
    let which = match kind {
        abi::P_PIDFD if id >= 0 => {
            let file = task::files().get(id)?;
            no_wait = !file.blocks();
            Which::Process(super::event::process_of(&file)?.process().clone())
        }
        abi::P_ALL => Which::Any,
        abi::P_PID if id > 0 => Which::Pid(id as u32),
        abi::P_PGID if id > 0 => Which::Group(id as u32),
        abi::P_PGID if id == 0 => Which::from_pid(0, &me),
        _ => return Err(Errno::EINVAL),
    };
    let want = Wanted {
        ended: options & abi::WEXITED != 0,
        stopped: options & abi::WSTOPPED != 0,
        continued: options & abi::WCONTINUED != 0,
        no_hang: options & abi::WNOHANG != 0 || no_wait,
        keep: options & abi::WNOWAIT != 0,
    };
    let found = collect(&which, want)?;
    if found.is_none() && no_wait && options & abi::WNOHANG == 0 {
        return Err(Errno::EAGAIN);
    }
    if info != 0 {
        // siginfo_t: signo, errno, code, pid, uid, status.
        let mut out = [0u32; 32];
        if let Some(c) = &found {
            let s = c.status.0;
            let (code, status) = if c.status == Status::CONTINUED {
                (abi::CLD_CONTINUED, abi::SIGCONT)
            } else if s & 0xff == 0x7f {
                (abi::CLD_STOPPED, (s >> 8) & 0xff)
            } else if s & 0x7f == 0 {
                (abi::CLD_EXITED, (s >> 8) & 0xff)
            } else {
                (abi::CLD_KILLED, s & 0x7f)
            };
            let fields = [abi::SIGCHLD, 0, code, 0, c.pid, 0, status];
            for (to, from) in out.iter_mut().zip(fields) {
                *to = from;
            }
        }
        upcall::owed(|| usercopy::write(info, &out))?;
    }
    if a.raw(4) != 0 {
        let used = rusage(found.map_or(Used::default(), |c| c.used));
        upcall::owed(|| usercopy::write(a.raw(4), &used))?;
    }
    Ok(0)
}

// ---- ids ----------------------------------------------------------------------------------------------------------

/// `getpid(2)`.
pub fn getpid(_: &Args) -> SysResult {
    Ok(task::current().process.pid as usize)
}

/// `getppid(2)`.
pub fn getppid(_: &Args) -> SysResult {
    Ok(task::current().process.ppid() as usize)
}

/// What `f`, which must not sleep, makes of the process `pid`, 0 for the caller's. ESRCH.
fn of_process<R>(pid: i32, f: impl FnOnce(&Process) -> R) -> Result<R, Errno> {
    let me = task::current();
    match u32::try_from(pid).map_err(|_| Errno::ESRCH)? {
        0 => Ok(f(&me.process)),
        pid if pid == me.process.pid => Ok(f(&me.process)),
        pid => ids::with(pid, |p: &Arc<Process>| f(p)).ok_or(Errno::ESRCH),
    }
}

/// `getpgid(2)`.
pub fn getpgid(a: &Args) -> SysResult {
    // Relaxed: as if the call came a little earlier or later. So below.
    Ok(of_process(a.int(0), |p| p.pgid.load(Ordering::Relaxed))? as usize)
}

/// `getpgrp(2)`.
pub fn getpgrp(_: &Args) -> SysResult {
    Ok(task::current().process.pgid.load(Ordering::Relaxed) as usize)
}

/// `getsid(2)`.
pub fn getsid(a: &Args) -> SysResult {
    Ok(of_process(a.int(0), |p| p.sid.load(Ordering::Relaxed))? as usize)
}

/// `setsid(2)`.
pub fn setsid(_: &Args) -> SysResult {
    let me = task::current();
    ids::new_session(&me.process)?;
    Ok(me.process.pid as usize)
}

/// `setpgid(2)`.
pub fn setpgid(a: &Args) -> SysResult {
    let me = task::current().process.clone();
    if a.int(1) < 0 {
        return Err(Errno::EINVAL);
    }
    let target = match a.int(0) {
        0 => me.clone(),
        pid => u32::try_from(pid).ok().and_then(ids::find).ok_or(Errno::ESRCH)?,
    };
    let group = if a.int(1) == 0 { target.pid } else { a.uint(1) };
    let is_child = target.parent.lock().upgrade().is_some_and(|p| Arc::ptr_eq(&p, &me));
    if !Arc::ptr_eq(&target, &me) {
        if !is_child {
            return Err(Errno::ESRCH);
        }
        if target.sid.load(Ordering::Relaxed) != me.sid.load(Ordering::Relaxed) {
            return Err(Errno::EPERM);
        }
        if target.has_execed.load(Ordering::Relaxed) {
            return Err(Errno::EACCES);
        }
    }
    let sid = me.sid.load(Ordering::Relaxed);
    ids::join_group(&target, group, sid)?;
    Ok(0)
}

/// `getuid(2)` and its like: everything runs as root.
pub fn get_zero_id(_: &Args) -> SysResult {
    Ok(0)
}

/// `getresuid(2)`, `getresgid(2)`.
pub fn getres_id(a: &Args) -> SysResult {
    for i in 0..3 {
        usercopy::write(a.raw(i), &0u32)?;
    }
    Ok(0)
}

/// `setuid(2)`, `setgid(2)`: there is only root to become.
pub fn set_id(a: &Args) -> SysResult {
    if a.uint(0) == 0 { Ok(0) } else { Err(Errno::EINVAL) }
}

/// `getgroups(2)`: all the supplementary groups that there are, are root's.
pub fn getgroups(a: &Args) -> SysResult {
    let count = task::current().attributes.get().groups;
    match u32::try_from(a.int(0)) {
        Ok(0) => return Ok(count as usize),
        Ok(room) if room >= count => {}
        _ => return Err(Errno::EINVAL),
    }
    for i in 0..u64::from(count) {
        usercopy::write(a.raw(1).checked_add(4 * i).ok_or(Errno::EFAULT)?, &0u32)?;
    }
    Ok(count as usize)
}

// ---- limits and use -----------------------------------------------------------------------------------------------

/// `prlimit64(2)`.
pub fn prlimit64(a: &Args) -> SysResult {
    let which = a.uint(1) as usize;
    let old = of_process(a.int(0), |p| p.limits.get(which))?.ok_or(Errno::EINVAL)?;
    if a.raw(2) != 0 {
        let new = usercopy::read(a.raw(2))?;
        of_process(a.int(0), |p| p.limits.set(which, new))??;
    }
    if a.raw(3) != 0 {
        upcall::owed(|| usercopy::write(a.raw(3), &old))?;
    }
    Ok(0)
}

/// `getrlimit(2)`.
pub fn getrlimit(a: &Args) -> SysResult {
    let limit = task::current().process.limits.get(a.uint(0) as usize).ok_or(Errno::EINVAL)?;
    usercopy::write(a.raw(1), &limit)?;
    Ok(0)
}

/// `setrlimit(2)`.
pub fn setrlimit(a: &Args) -> SysResult {
    let new = usercopy::read(a.raw(1))?;
    task::current().process.limits.set(a.uint(0) as usize, new)?;
    Ok(0)
}

/// `getrusage(2)`: processor time, memory and faults; everything else reads 0.
pub fn getrusage(a: &Args) -> SysResult {
    let me = task::current();
    let mut used = match a.int(0) {
        0 => me.process.used(),
        -1 => me.process.children_used(),
        1 => me.used(),
        _ => return Err(Errno::EINVAL),
    };
    if let Some(mm) = me.mm().filter(|_| a.int(0) >= 0) {
        used.peak_resident = used.peak_resident.max(mm.aspace.peak_resident(&task::unpinned()));
    }
    usercopy::write(a.raw(1), &rusage(used))?;
    Ok(0)
}

/// `uname(2)`.
pub fn uname(a: &Args) -> SysResult {
    let mut out = [0u8; 6 * 65];
    let fields: [&[u8]; 6] =
        [b"Linux", b"quire", RELEASE.as_bytes(), VERSION.as_bytes(), b"x86_64", b"(none)"];
    for (to, from) in out.as_chunks_mut::<65>().0.iter_mut().zip(fields) {
        for (t, f) in to.iter_mut().zip(from) {
            *t = *f;
        }
    }
    usercopy::write(a.raw(0), &out)?;
    Ok(0)
}

/// The release that `uname` gives.
pub const RELEASE: &str = "6.6.0-quire";
/// The version that `uname` gives.
pub const VERSION: &str = concat!("#1 SMP Quire ", env!("CARGO_PKG_VERSION"));

/// `sysinfo(2)`.
pub fn sysinfo(a: &Args) -> SysResult {
    let f = memory::frames().stats();
    let free = (f.free + f.cached) * addr::PAGE_SIZE;
    let uptime = hw::timer::now() / 1_000_000_000;
    // struct sysinfo: uptime, loads[3], totalram, freeram, sharedram, bufferram, totalswap, freeswap, procs (u16),
    // totalhigh, freehigh, mem_unit (u32).
    let tasks = ids::task_count().min(u16::MAX as usize) as u64;
    let out: [u64; 14] = [uptime, 0, 0, 0, f.total * addr::PAGE_SIZE, free, 0, 0, 0, 0, tasks, 0, 0, 1];
    usercopy::write(a.raw(0), &out)?;
    Ok(0)
}

/// `prctl(2)`: the name, and what C runtimes ask about.
pub fn prctl(a: &Args) -> SysResult {
    const PR_SET_PDEATHSIG: u32 = 1;
    const PR_GET_PDEATHSIG: u32 = 2;
    const PR_GET_DUMPABLE: u32 = 3;
    const PR_SET_DUMPABLE: u32 = 4;
    const PR_SET_NAME: u32 = 15;
    const PR_GET_NAME: u32 = 16;
    const PR_SET_VMA: u32 = 0x5356_4d41;
    /// Quire's own, with the boot option `inject`: let the so-manieth allocation of a frame from now on fail, and say
    /// how far off the one asked for before was (0: it has failed). ASCII "FAIL".
    const PR_FAIL_FRAME: u32 = 0x4641_494c;
    let me = task::current();
    match a.uint(0) {
        frames::PR_QUIRE_FRAMES => frames::control(a.uint(1), a.raw(2), a.raw(3)),
        PR_FAIL_FRAME if options::get().inject => {
            let left = memory::frames().until_failure();
            memory::frames().fail_nth(a.raw(1));
            Ok(left as usize)
        }
        PR_SET_NAME => {
            // At most 15 bytes count; a longer name is cut, as on Linux.
            let mut name = Vec::new();
            for i in 0..15 {
                let b: u8 = usercopy::read(a.raw(1).checked_add(i).ok_or(Errno::EFAULT)?)?;
                if b == 0 {
                    break;
                }
                name.push(b);
            }
            let mut fixed = [0u8; 16];
            fixed.iter_mut().zip(&name).for_each(|(t, f)| *t = *f);
            *me.name.lock() = fixed;
            Ok(0)
        }
        PR_GET_NAME => {
            let name = *me.name.lock();
            usercopy::write(a.raw(1), &name)?;
            Ok(0)
        }
        PR_GET_DUMPABLE => Ok(1),
        PR_SET_DUMPABLE if a.raw(1) <= 1 => Ok(0),
        PR_GET_PDEATHSIG => usercopy::write(a.raw(1), &0u32).map(|()| 0),
        PR_SET_PDEATHSIG if a.raw(1) == 0 => Ok(0),
        // Names for anonymous mappings: a kernel built without them answers EINVAL.
        PR_SET_VMA => Err(Errno::EINVAL),
        _ => Err(Errno::EINVAL),
    }
}

//! What a thread does about its signals on the way back to user mode.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use super::{Action, Held, RESTART_ALWAYS, RESTART_BLOCK, SigInfo, SigSet, Signal, frame, unmask};
use crate::{
    errno::Errno,
    hw::TrapFrame,
    ids,
    process::{self, Process, Status},
    rseq,
    syscall::time,
    task::{self, Task},
};

/// `restart_syscall`.
const SYS_RESTART: u64 = 219;
/// Bytes of the SYSCALL instruction.
const SYSCALL_BYTES: u64 = 2;

/// What to do next.
enum Step {
    /// Nothing is left.
    Done,
    /// All threads of the process are to stop.
    Stop,
    /// The process ends.
    End(Signal),
    /// Run the handler.
    Handle(Signal, SigInfo, Action),
}

/// Act on the calling thread's signals, changing `frame` so that a handler runs. Interrupts are on. If the process is
/// to end, it has been asked to on return.
pub fn deliver(frame: &mut TrapFrame) {
    loop {
        match next() {
            Step::Done => return,
            Step::Stop => stop(),
            Step::End(signal) => return process::group_exit(Status::killed(signal.number())),
            Step::Handle(signal, info, action) => {
                interrupted_call(frame, &action);
                // A handler doesn't return into a restartable sequence, but to where that starts again.
                let restarted = rseq::update(frame).is_ok();
                if !restarted || frame::push(frame, signal, &info, &action).is_err() {
                    // A handler for SIGSEGV can't be told that there is no stack to run it on.
                    super::force(SigInfo::kernel(Signal::SEGV.number()), signal == Signal::SEGV);
                }
            }
        }
    }
}

/// Take the next signal that needs something done; stops and defaults that do nothing are settled here.
fn next() -> Step {
    let me = task::current();
    let process = &me.process;
    loop {
        if me.is_ending() {
            return Step::Done;
        }
        let (info, action, era) = match take_own() {
            Taken::Nothing => return Step::Done,
            Taken::Own(info, action) => (info, action, None),
            Taken::LookFurther => {
                let mut state = process.signals.lock();
                let mut t = me.signals.lock();
                if state.job().stop.is_some() {
                    return Step::Stop;
                }
                let blocked = t.blocked;
                let Some(info) = t.pending.take(blocked).or_else(|| state.pend(|all| all.take(blocked)))
                else {
                    me.signals.summarise(&process.signals, &t);
                    return Step::Done;
                };
                let action = info.signal().map(|signal| claim_action(&mut state, signal));
                (info, action.unwrap_or(Action::DEFAULT), Some(state.job().era))
            }
        };
        let Some(signal) = info.signal() else { continue };
        let info = time::taken(process, info);
        if action.ignores(signal) {
            continue;
        }
        if !action.is_default() {
            return Step::Handle(signal, info, action);
        }
        if !SigSet::STOPS.has(signal) {
            return Step::End(signal);
        }
        if let Some(era) = era
            && (signal == Signal::STOP || !orphaned(process))
        {
            begin_stop(process, signal, era);
        }
    }
}

/// What the calling thread finds with its own state locked alone.
enum Taken {
    Nothing,
    /// One that was sent to the thread, and stops nobody; and what it does.
    Own(SigInfo, Action),
    /// There is something of the process's, a stop, which has an era, or one whose action changes as it is taken.
    LookFurther,
}

fn take_own() -> Taken {
    let me = task::current();
    let signals = &me.process.signals;
    let mut t = me.signals.lock();
    let blocked = t.blocked;
    let own = t.pending.set().without(blocked);
    if signals.is_stopping() || !own.and(SigSet::STOPS).is_empty() {
        return Taken::LookFurther;
    }
    if let Some(signal) = own.first() {
        // In the section in which it is taken: who has it ignored, and then does not, comes before or after both.
        let action = signals.action(signal);
        if action.is_for_once() {
            return Taken::LookFurther;
        }
        return t.pending.take(blocked).map_or(Taken::Nothing, |info| Taken::Own(info, action));
    }
    if !signals.waiting().without(blocked).is_empty() {
        return Taken::LookFurther;
    }
    me.signals.summarise(signals, &t);
    Taken::Nothing
}

/// What `signal` does, for who has just taken one: an action that is good for once is no other's then.
fn claim_action(state: &mut Held<'_>, signal: Signal) -> Action {
    let action = state.action(signal);
    if action.is_for_once() {
        state.set_action(signal, Action { handler: 0, ..action });
    }
    action
}

/// Have all threads of `process` stop because of `signal`, which was taken in `era`: SIGCONT or SIGKILL may have come
/// meanwhile.
fn begin_stop(process: &Process, signal: Signal, era: u64) {
    let threads = {
        let mut state = process.signals.lock();
        if state.job().era != era {
            return;
        }
        state.with_job(|job| job.stop = Some(signal));
        let threads = process.threads.lock().clone();
        threads.iter().for_each(|t| {
            let _section = t.signals.lock();
            t.signals.set_flag();
        });
        threads
    };
    let me = task::current();
    threads.iter().filter(|t| t.tid() != me.tid()).for_each(Task::interrupt);
}

/// Stay stopped until the process goes on or ends.
fn stop() {
    let me = task::current();
    let process = &me.process;
    let era = {
        let mut state = process.signals.lock();
        if state.job().stop.is_none() {
            return;
        }
        state.with_job(|job| {
            job.arrived += 1;
            job.era
        })
    };
    report_stop(process);
    // Uninterruptible as far as signals go; SIGCONT, SIGKILL and the end of the process wake it.
    let _ = process
        .signals
        .resumed
        .wait(None, false, || (me.is_ending() || process.signals.lock().job().era != era).then_some(()));
}

/// If every thread that isn't ending has stopped, tell the parent, once.
pub(super) fn report_stop(process: &Process) {
    let stopped = {
        let mut state = process.signals.lock();
        let live = process.threads.lock().iter().filter(|t| !t.is_ending()).count();
        state.with_job(|job| {
            let complete = !job.reported && live > 0 && job.arrived >= live;
            job.reported |= complete && job.stop.is_some();
            job.stop.filter(|_| complete)
        })
    };
    if let Some(signal) = stopped {
        process::notify_parent(process, Status::stopped(signal.number()));
    }
}

/// Whether the process group of `process` is orphaned: no member has a parent in the same session outside of the group,
/// so nobody could continue it, and terminal stops don't apply (POSIX, 2.4.3). The supervisor stands for the shell of
/// the session's first program.
pub fn orphaned(process: &Process) -> bool {
    // Relaxed, here and below: ids that change meanwhile may be seen either way.
    let group = process.pgid.load(Ordering::Relaxed);
    let supervisor = process::supervisor();
    !ids::any(|p| {
        if p.pgid.load(Ordering::Relaxed) != group || p.ended().is_some() {
            return false;
        }
        let session = p.sid.load(Ordering::Relaxed);
        let Some(parent) = p.parent.lock().upgrade() else { return false };
        if supervisor.as_ref().is_some_and(|s| Arc::ptr_eq(s, &parent)) {
            return session == p.pid;
        }
        parent.pgid.load(Ordering::Relaxed) != group && parent.sid.load(Ordering::Relaxed) == session
    })
}

fn is(code: Errno, rax: u64) -> bool {
    code.as_return() == rax
}

/// Whether `frame` is that of a system call, and not of an exception or interrupt.
fn in_call(frame: &TrapFrame) -> bool {
    frame.orig_rax != u64::MAX
}

/// A handler is about to run: an interrupted system call will be made again after it, or gives EINTR.
fn interrupted_call(frame: &mut TrapFrame, action: &Action) {
    if !in_call(frame) {
        return;
    }
    let rax = frame.rax;
    if is(RESTART_ALWAYS, rax) || is(Errno::RESTART, rax) && action.flags & Action::RESTART != 0 {
        again(frame, frame.orig_rax);
    } else if is(Errno::RESTART, rax) || is(Errno::RESTART_NO_HANDLER, rax) || is(RESTART_BLOCK, rax) {
        frame.rax = Errno::EINTR.as_return();
        frame.orig_rax = u64::MAX;
    }
}

/// Make the thread repeat its SYSCALL instruction, with `number`.
fn again(frame: &mut TrapFrame, number: u64) {
    frame.rax = number;
    frame.rip = frame.rip.wrapping_sub(SYSCALL_BYTES);
    frame.orig_rax = u64::MAX;
}

/// The last look before user mode, when nothing is pending: an interrupted call that no handler saw is made again, and
/// a mask that was set for its wait is put back. True if that opened the way for a signal, so that the caller must
/// look again. From any context of a thread.
pub fn settle(frame: &mut TrapFrame) -> bool {
    if in_call(frame) {
        let rax = frame.rax;
        if [Errno::RESTART, Errno::RESTART_NO_HANDLER, RESTART_ALWAYS].iter().any(|e| is(*e, rax)) {
            again(frame, frame.orig_rax);
        } else if is(RESTART_BLOCK, rax) {
            again(frame, SYS_RESTART);
        }
    }
    if !task::current().signals.has_saved() {
        return false;
    }
    unmask();
    super::pending()
}

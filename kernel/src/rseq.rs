//! Restartable sequences: `rseq(2)`, as in Linux's `kernel/rseq.c` and `include/uapi/linux/rseq.h`.
//!
//! A thread registers a structure in its memory. The kernel keeps the CPU's number in it, and if the thread is preempted,
//! moved or signalled between two addresses that the structure names (a critical section), it goes on at a third one
//! instead, where it starts again. So user code can change per-CPU data without atomic instructions.
//!
//! The structure can only be touched where faults are allowed. So a switch away from a thread just marks it
//! ([`State::set_due`]), and the thread does the rest itself on its way to user mode: any number of switches in between
//! come down to one update, after which it is on the CPU that the structure says, or it is marked again.
//!
//! A registration belongs to an address space: after `execve` it names nothing.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};

use addr::USER_END;

use crate::{
    errno::{Errno, SysResult},
    hw::{
        TrapFrame,
        cpu::{self, ToDo},
        irq,
    },
    pod, task, usercopy,
};

/// Bytes of `struct rseq` in its first form, and its alignment.
const BYTES: u32 = 32;
/// `RSEQ_FLAG_UNREGISTER`.
const UNREGISTER: u32 = 1;
/// What `cpu_id` says when nothing is registered.
const NO_CPU: u32 = u32::MAX;

/// The beginning of `struct rseq`: the CPU's number twice (`cpu_id_start`, `cpu_id`).
const OFFSET_CS: u64 = 8;
/// `node_id` and `mm_cid`.
const OFFSET_NODE: u64 = 20;

#[derive(Clone, Copy, PartialEq, Eq)]
struct Registration {
    /// Address of the `Mm` that it was made in.
    memory: usize,
    at: u64,
    len: u32,
    signature: u32,
}

/// A thread's part.
pub struct State {
    registration: irq::Lock<Option<Registration>>,
    /// Where the registered structure is, or 0: a hint for the thread itself, to look there before it looks here.
    at: AtomicU64,
    due: ToDo,
}

/// `struct rseq_cs`.
#[derive(Clone, Copy)]
#[repr(C)]
struct CriticalSection {
    version: u32,
    flags: u32,
    start: u64,
    length: u64,
    abort: u64,
}
pod!(CriticalSection);

impl State {
    /// Nothing registered.
    pub const fn new() -> Self {
        Self { registration: irq::Lock::new(None), at: AtomicU64::new(0), due: ToDo::new(false) }
    }
    fn set(&self, registration: Option<Registration>) {
        *self.registration.lock() = registration;
        // Relaxed: read by the thread itself, which sets it too, or is begun by who does.
        self.at.store(registration.map_or(0, |r| r.at), Ordering::Relaxed);
    }
    /// Forget what is registered: `execve`.
    pub fn clear(&self) {
        self.set(None);
        // Relaxed: see `set_due`.
        self.due.clear();
    }
    /// The thread is being switched away from, or another one wants it out of its critical section (`membarrier`).
    pub fn set_due(&self) {
        // Relaxed: read by the thread itself, after the switch or the interrupt that the other one sends.
        self.due.set(Ordering::Relaxed);
    }
    /// Whether the structure may be out of date.
    pub fn is_due(&self) -> bool {
        // Relaxed: see `set_due`.
        self.due.is_set(Ordering::Relaxed)
    }
    /// What the only thread of a forked process begins with: its creator's, in its own copy `memory` of the memory.
    pub fn fork_to(&self, child: &State, memory: usize) {
        let mine = *self.registration.lock();
        child.set(mine.map(|r| Registration { memory, ..r }));
        child.set_due();
    }
}

/// The address of the calling thread's `Mm`, by which a registration knows where it belongs.
fn memory() -> Option<usize> {
    task::current().mm().map(|mm| Arc::as_ptr(&*mm).addr())
}

fn current() -> Option<Registration> {
    let here = memory()?;
    task::current().rseq.registration.lock().filter(|r| r.memory == here)
}

/// Bring the calling thread's structure up to date and leave a critical section that was interrupted. Interrupts are on.
/// Err: the structure or what it names makes no sense; the thread gets SIGSEGV.
pub fn update(frame: &mut TrapFrame) -> Result<(), Errno> {
    // Relaxed: only this thread's switches set it. Cleared first: a switch from here on sets it anew.
    task::current().rseq.due.clear();
    let Some(r) = current() else { return Ok(()) };
    restart(&r, frame)?;
    store_cpu(&r, cpu::id().index() as u32)
}

/// The thread goes on elsewhere than in a restartable sequence, and back to where that starts again.
///
/// Errors: as [`update`].
pub fn leave(frame: &mut TrapFrame) -> Result<(), Errno> {
    // Relaxed: see `State::set`.
    let at = task::current().rseq.at.load(Ordering::Relaxed);
    // As a rule there is none, and whose memory it is need not be asked. What can't be read is found out below.
    if at == 0 || usercopy::load_word(at + OFFSET_CS) == Ok(0) {
        return Ok(());
    }
    current().map_or(Ok(()), |r| restart(&r, frame))
}

fn store_cpu(r: &Registration, cpu: u32) -> Result<(), Errno> {
    usercopy::write(r.at, &[cpu, cpu])?;
    // One node. The number of the CPU is unique among the process's running threads, as `mm_cid` must be.
    usercopy::write(r.at + OFFSET_NODE, &[0u32, cpu])
}

fn restart(r: &Registration, frame: &mut TrapFrame) -> Result<(), Errno> {
    let at = usercopy::load_word(r.at + OFFSET_CS)?;
    if at == 0 {
        return Ok(());
    }
    let cs: CriticalSection = usercopy::read(at)?;
    let end = cs.start.checked_add(cs.length).ok_or(Errno::EINVAL)?;
    let bad =
        cs.version != 0 || cs.flags != 0 || cs.start >= USER_END || end >= USER_END || cs.abort >= USER_END;
    if bad || (cs.start..end).contains(&cs.abort) {
        return Err(Errno::EINVAL);
    }
    let signature: u32 = usercopy::read(cs.abort.checked_sub(4).ok_or(Errno::EINVAL)?)?;
    if signature != r.signature {
        return Err(Errno::EINVAL);
    }
    // The section is over, or is about to be.
    usercopy::write(r.at + OFFSET_CS, &0u64)?;
    if (cs.start..end).contains(&frame.rip) {
        frame.rip = cs.abort;
    }
    Ok(())
}

/// `rseq(2)`.
pub fn rseq(at: u64, len: u32, flags: u32, signature: u32) -> SysResult {
    let here = memory().ok_or(Errno::EFAULT)?;
    let wanted = Registration { memory: here, at, len, signature };
    let existing = current();
    if flags & UNREGISTER != 0 {
        if flags != UNREGISTER || existing.is_none_or(|r| r.at != at || r.len != len) {
            return Err(Errno::EINVAL);
        }
        if existing != Some(wanted) {
            return Err(Errno::EPERM);
        }
        usercopy::write(at, &[0u32, NO_CPU])?;
        usercopy::write(at + OFFSET_NODE, &[0u32, 0])?;
        task::current().rseq.set(None);
        return Ok(0);
    }
    if flags != 0 {
        return Err(Errno::EINVAL);
    }
    if let Some(r) = existing {
        return Err(match () {
            () if r.at != at || r.len != len => Errno::EINVAL,
            () if r.signature != signature => Errno::EPERM,
            () => Errno::EBUSY,
        });
    }
    if len < BYTES || !at.is_multiple_of(BYTES.into()) {
        return Err(Errno::EINVAL);
    }
    if at.checked_add(len.into()).is_none_or(|end| end > USER_END) {
        return Err(Errno::EFAULT);
    }
    // Libraries reuse the structure of a thread that has ended, and may have left a critical section in it: a leftover is
    // taken out rather than taken for the new thread's, as in Linux since 6.15.
    if usercopy::read::<u64>(at + OFFSET_CS)? != 0 {
        usercopy::write(at + OFFSET_CS, &0u64)?;
    }
    let me = task::current();
    me.rseq.set(Some(wanted));
    me.rseq.set_due();
    Ok(0)
}

//! Calls about the calling thread.

use alloc::sync::Arc;
use core::sync::atomic::{Ordering, fence};

use addr::PageRange;
use linux_raw_sys::general as abi;
use percpu::{CpuSet, MAX_CPUS};
use tlb::Shootdown;

use super::Args;
use crate::{
    errno::{Errno, SysResult},
    file, grace,
    hw::{cpu, numa},
    ids, sched,
    shootdown::Ipi,
    task::{self, Task},
    usercopy,
};

/// `gettid(2)`.
pub fn gettid(_: &Args) -> SysResult {
    Ok(task::current().tid() as usize)
}

/// `set_tid_address(2)`.
pub fn set_tid_address(a: &Args) -> SysResult {
    let me = task::current();
    // Relaxed: the word belongs to the thread.
    me.clear_child_tid.store(a.raw(0), Ordering::Relaxed);
    Ok(me.tid() as usize)
}

/// `arch_prctl(2)`: the bases of FS and GS.
pub fn arch_prctl(a: &Args) -> SysResult {
    const SET_GS: u32 = 0x1001;
    const SET_FS: u32 = 0x1002;
    const GET_FS: u32 = 0x1003;
    const GET_GS: u32 = 0x1004;
    let value = a.raw(1);
    match a.uint(0) {
        SET_FS | SET_GS if value >= addr::USER_END => return Err(Errno::EPERM),
        SET_FS => cpu::set_fs_base(value),
        SET_GS => cpu::set_user_gs_base(value),
        GET_FS => usercopy::write(value, &cpu::fs_base())?,
        GET_GS => usercopy::write(value, &cpu::user_gs_base())?,
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

/// `rseq(2)`.
pub fn rseq(a: &Args) -> SysResult {
    crate::rseq::rseq(a.raw(0), a.uint(1), a.uint(2), a.uint(3))
}

/// `sched_yield(2)`.
pub fn sched_yield(_: &Args) -> SysResult {
    sched::yield_now();
    Ok(0)
}

fn target(tid: i32) -> Result<Arc<Task>, Errno> {
    if tid == 0 {
        return Ok(task::current().arc());
    }
    u32::try_from(tid).ok().and_then(ids::find_task).ok_or(Errno::ESRCH)
}

/// `sched_getaffinity(2)`: the number of bytes written.
pub fn sched_getaffinity(a: &Args) -> SysResult {
    let len = a.uint(1) as usize;
    if len * 8 < cpu::count() || !len.is_multiple_of(8) {
        return Err(Errno::EINVAL);
    }
    let found = match u32::try_from(a.int(0)).map_err(|_| Errno::ESRCH)? {
        0 => task::current().affinity(),
        tid => ids::with(tid, |task: &Arc<Task>| task.affinity()).ok_or(Errno::ESRCH)?,
    };
    let set = found.intersection(&sched::online());
    let bytes: alloc::vec::Vec<u8> = set.words().iter().flat_map(|w| w.to_le_bytes()).collect();
    let n = len.min(MAX_CPUS / 8);
    usercopy::copy_out(a.raw(2), bytes.get(..n).unwrap_or_default())?;
    Ok(n)
}

/// `sched_setaffinity(2)`.
pub fn sched_setaffinity(a: &Args) -> SysResult {
    let len = (a.uint(1) as usize).min(MAX_CPUS / 8);
    let mut bytes = [0u8; MAX_CPUS / 8];
    usercopy::copy_in(a.raw(2), bytes.get_mut(..len).unwrap_or_default())?;
    let mut words = [0u64; MAX_CPUS / 64];
    for (w, b) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *w = u64::from_le_bytes(*b);
    }
    let set = CpuSet::from_words(words).intersection(&sched::online());
    let t = target(a.int(0))?;
    if set.is_empty() {
        return Err(Errno::EINVAL);
    }
    t.set_affinity(set);
    // If it now runs where it may not, it leaves on its way to user mode; ours is next.
    sched::kick(&t);
    Ok(0)
}

/// `getcpu(2)`.
pub fn getcpu(a: &Args) -> SysResult {
    // Both of one instant: the thread may move when it waits for a page of its own.
    let here = cpu::id();
    if a.raw(0) != 0 {
        usercopy::write(a.raw(0), &(here.index() as u32))?;
    }
    if a.raw(1) != 0 {
        usercopy::write(a.raw(1), &(numa::topology().node_of_cpu(here).index() as u32))?;
    }
    Ok(0)
}

/// `getrandom(2)`. The generator is seeded at boot, so it never blocks.
pub fn getrandom(a: &Args) -> SysResult {
    let (addr, len, flags) = (a.raw(0), a.raw(1).min(0x1ff_ffff) as usize, a.uint(2));
    let known = abi::GRND_NONBLOCK | abi::GRND_RANDOM | abi::GRND_INSECURE;
    if flags & !known != 0
        || flags & (abi::GRND_RANDOM | abi::GRND_INSECURE) == abi::GRND_RANDOM | abi::GRND_INSECURE
    {
        return Err(Errno::EINVAL);
    }
    let mut done = 0;
    while done < len {
        let mut buf = [0u8; 256];
        let n = (len - done).min(buf.len());
        let Some(part) = buf.get_mut(..n) else { break };
        file::random_bytes(part);
        match usercopy::copy_out(addr.wrapping_add(done as u64), part) {
            Ok(()) => done += n,
            Err(e) if done == 0 => return Err(e),
            Err(_) => break,
        }
    }
    Ok(done)
}

/// `membarrier(2)`: for all processes by a grace period, else, and where there are none, by interrupting every other CPU: an interrupt serialises the processor too, and a thread
/// that is marked before it leaves its restartable sequence on the way back.
pub fn membarrier(a: &Args) -> SysResult {
    const QUERY: u32 = 0;
    const GLOBAL: u32 = 1;
    const GLOBAL_EXPEDITED: u32 = 1 << 1;
    const REGISTER_GLOBAL_EXPEDITED: u32 = 1 << 2;
    const PRIVATE_EXPEDITED: u32 = 1 << 3;
    const REGISTER_PRIVATE_EXPEDITED: u32 = 1 << 4;
    const PRIVATE_EXPEDITED_SYNC_CORE: u32 = 1 << 5;
    const REGISTER_PRIVATE_EXPEDITED_SYNC_CORE: u32 = 1 << 6;
    const PRIVATE_EXPEDITED_RSEQ: u32 = 1 << 7;
    const REGISTER_PRIVATE_EXPEDITED_RSEQ: u32 = 1 << 8;
    const GET_REGISTRATIONS: u32 = 1 << 9;
    /// Of restartable sequences only those on one CPU. Here they are all restarted.
    const FLAG_CPU: u32 = 1;
    const REGISTERING: u32 = REGISTER_GLOBAL_EXPEDITED
        | REGISTER_PRIVATE_EXPEDITED
        | REGISTER_PRIVATE_EXPEDITED_SYNC_CORE
        | REGISTER_PRIVATE_EXPEDITED_RSEQ;
    const ALL: u32 = REGISTERING
        | GLOBAL
        | GLOBAL_EXPEDITED
        | PRIVATE_EXPEDITED
        | PRIVATE_EXPEDITED_SYNC_CORE
        | PRIVATE_EXPEDITED_RSEQ
        | GET_REGISTRATIONS;
    let flags = if a.uint(0) == PRIVATE_EXPEDITED_RSEQ { FLAG_CPU } else { 0 };
    if a.uint(1) & !flags != 0 {
        return Err(Errno::EINVAL);
    }
    let mm = task::current().mm().ok_or(Errno::EINVAL)?;
    // Relaxed, here and below: the registrations are the process's own, and order nothing.
    let registered = mm.barriers.load(Ordering::Relaxed);
    match a.uint(0) {
        QUERY => return Ok(ALL as usize),
        GET_REGISTRATIONS => {
            // As Linux tells it: the other private kinds count as this one, but do not make it ready.
            const KINDS: u32 = REGISTER_PRIVATE_EXPEDITED_SYNC_CORE | REGISTER_PRIVATE_EXPEDITED_RSEQ;
            let private = if registered & KINDS != 0 { REGISTER_PRIVATE_EXPEDITED } else { 0 };
            return Ok((registered | private) as usize);
        }
        command if command.is_power_of_two() && command & REGISTERING != 0 => {
            mm.barriers.fetch_or(command, Ordering::Relaxed);
            return Ok(0);
        }
        command @ (GLOBAL | GLOBAL_EXPEDITED) => {
            if let Some(domain) = grace::domain() {
                let wait = if command == GLOBAL { grace::synchronize } else { grace::synchronize_expedited };
                wait(domain);
                return Ok(0);
            }
        }
        command @ (PRIVATE_EXPEDITED | PRIVATE_EXPEDITED_SYNC_CORE | PRIVATE_EXPEDITED_RSEQ) => {
            // A command's registration is the next bit.
            if registered & command << 1 == 0 {
                return Err(Errno::EPERM);
            }
            if command == PRIVATE_EXPEDITED_RSEQ {
                task::current().process.threads.lock().iter().for_each(|thread| thread.rseq.set_due());
            }
        }
        _ => return Err(Errno::EINVAL),
    }
    // SeqCst: orders the caller's accesses before against those after. On every other CPU the interrupt that an empty
    // flush sends, and waits for, is the barrier.
    fence(Ordering::SeqCst);
    Ipi.flush(&task::pinned(), &sched::online(), PageRange::default());
    fence(Ordering::SeqCst);
    Ok(0)
}

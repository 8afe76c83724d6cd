//! Where calls read and write user memory, as far as they could not start over after they had found a page there whose level
//! forbids it (`upcall`): since something has happened by then that can't happen twice, or part of it is done. Of these calls the
//! levels are looked at before anything else; only for threads that take upcalls.
//!
//! Calls that aren't here either have no effect before their last access, or none that a second time would tell from a first. A page that
//! is lowered after the look, by another thread, also while the call sleeps, is found by the copy as all are. If nothing was
//! taken yet the call says how much it has done, or EFAULT and starts over; else the store is owed (`upcall/owed.rs`). What such a call
//! reads, it reads before it takes anything.

use addr::{PAGE_SIZE, PageRange, USER_END, VirtAddr};
use aspace::{Access, Managed};
use linux_raw_sys::general as nr;

use super::Args;
use crate::{errno::Errno, task, usercopy};

/// A buffer, by the arguments of its call.
#[derive(Clone, Copy)]
enum Buffer {
    /// Argument `.0` is its address; so many bytes.
    Fixed(usize, u64),
    /// As many bytes as argument `.1` says.
    Bytes(usize, usize),
    /// As many times `.2` bytes as argument `.1` says.
    Items(usize, usize, u64),
    /// The parts that the `iovec`s at argument `.0` say, of which there are as many as argument `.1` says.
    Vector(usize, usize),
    /// The `msghdr` at argument `.0`, and its parts.
    Message(usize),
    /// The `mmsghdr`s at argument `.0`, of which there are as many as argument `.1` says, and their parts.
    Messages(usize, usize),
}
use Buffer::{Bytes, Fixed, Items, Message, Messages, Vector};

/// The most that a call moves at once (Linux's `MAX_RW_COUNT`).
const MOST: u64 = 0x7fff_f000;

/// The largest socket address, and of other structures.
const ADDRESS: u64 = 128;
const RUSAGE: u64 = 144;
const SIGINFO: u64 = 128;
const FD_SET: u64 = 128;

/// Most parts of a vector (`UIO_MAXIOV`).
const MAX_PARTS: u64 = 1024;

/// What call `number` reads, and what it writes.
fn of(number: u32) -> (&'static [Buffer], &'static [Buffer]) {
    match number {
        nr::__NR_read | nr::__NR_pread64 | nr::__NR_getdents64 => (&[], &[Bytes(1, 2)]),
        nr::__NR_readv | nr::__NR_preadv | nr::__NR_preadv2 => (&[], &[Vector(1, 2)]),
        nr::__NR_write | nr::__NR_pwrite64 => (&[Bytes(1, 2)], &[]),
        nr::__NR_writev | nr::__NR_pwritev | nr::__NR_pwritev2 => (&[Vector(1, 2)], &[]),
        nr::__NR_recvfrom => (&[], &[Bytes(1, 2), Fixed(4, ADDRESS), Fixed(5, 4)]),
        nr::__NR_sendto => (&[Bytes(1, 2)], &[]),
        nr::__NR_recvmsg => (&[], &[Message(1)]),
        nr::__NR_sendmsg => (&[Message(1)], &[]),
        nr::__NR_accept | nr::__NR_accept4 => (&[], &[Fixed(1, ADDRESS), Fixed(2, 4)]),
        nr::__NR_pipe | nr::__NR_pipe2 => (&[], &[Fixed(0, 8)]),
        nr::__NR_socketpair => (&[], &[Fixed(3, 8)]),
        nr::__NR_wait4 => (&[], &[Fixed(1, 4), Fixed(3, RUSAGE)]),
        nr::__NR_waitid => (&[], &[Fixed(2, SIGINFO), Fixed(4, RUSAGE)]),
        nr::__NR_epoll_wait | nr::__NR_epoll_pwait => (&[], &[Items(1, 2, 12)]),
        nr::__NR_poll | nr::__NR_ppoll => (&[], &[Items(0, 1, 8)]),
        nr::__NR_select | nr::__NR_pselect6 => (&[], &[Fixed(1, FD_SET), Fixed(2, FD_SET), Fixed(3, FD_SET)]),
        nr::__NR_nanosleep => (&[], &[Fixed(1, 16)]),
        nr::__NR_clock_nanosleep => (&[], &[Fixed(3, 16)]),
        nr::__NR_rt_sigtimedwait => (&[], &[Fixed(1, SIGINFO)]),
        nr::__NR_rt_sigaction => (&[], &[Fixed(2, 32)]),
        nr::__NR_rt_sigprocmask => (&[], &[Fixed(2, 8)]),
        nr::__NR_sigaltstack => (&[], &[Fixed(1, 24)]),
        nr::__NR_setitimer => (&[], &[Fixed(2, 32)]),
        nr::__NR_timer_create => (&[], &[Fixed(2, 4)]),
        nr::__NR_timer_settime | nr::__NR_timerfd_settime => (&[], &[Fixed(3, 32)]),
        nr::__NR_prlimit64 => (&[], &[Fixed(3, 16)]),
        nr::__NR_sendfile => (&[], &[Fixed(2, 8)]),
        nr::__NR_splice | nr::__NR_copy_file_range => (&[], &[Fixed(1, 8), Fixed(3, 8)]),
        nr::__NR_vmsplice => (&[], &[Vector(1, 2)]),
        nr::__NR_getsockopt => (&[], &[Fixed(3, 4), Fixed(4, 4)]),
        nr::__NR_recvmmsg => (&[], &[Messages(1, 2)]),
        nr::__NR_sendmmsg => (&[Messages(1, 2)], &[]),
        nr::__NR_clone => (&[], &[Fixed(2, 4), Fixed(3, 4)]),
        _ => (&[], &[]),
    }
}

/// EFAULT, with the page noted, if call `number` would read or write one whose level forbids that.
pub fn check(number: u64, a: &Args) -> Result<(), Errno> {
    let me = task::current();
    let (Ok(number), Some(mm)) = (u32::try_from(number), me.mm()) else { return Ok(()) };
    let Some(managed) = mm.aspace.managed() else { return Ok(()) };
    let (reads, writes) = of(number);
    for (buffers, access) in [(reads, Access::Read), (writes, Access::Write)] {
        buffers.iter().try_for_each(|buffer| look(*buffer, a, access, managed))?;
    }
    Ok(())
}

fn look(buffer: Buffer, a: &Args, access: Access, managed: &dyn Managed) -> Result<(), Errno> {
    match buffer {
        Fixed(at, bytes) => span(a.raw(at), bytes, access, managed),
        Bytes(at, bytes) => span(a.raw(at), a.raw(bytes), access, managed),
        Items(at, items, bytes) => span(a.raw(at), a.raw(items).saturating_mul(bytes), access, managed),
        Vector(at, parts) => vector(a.raw(at), a.raw(parts), access, managed),
        Message(at) => message(a.raw(at), access, managed),
        Messages(at, n) => {
            for i in 0..a.raw(n).min(MAX_PARTS) {
                let at = a.raw(at).saturating_add(64 * i);
                message(at, access, managed)?;
                // How many bytes each has had is written there.
                span(at.saturating_add(56), 4, Access::Write, managed)?;
            }
            Ok(())
        }
    }
}

fn message(at: u64, access: Access, managed: &dyn Managed) -> Result<(), Errno> {
    // name, its length; parts, their number; control data, its length; flags.
    let Ok([name, _, parts, n, control, control_len, _]) = usercopy::read::<[u64; 7]>(at) else {
        return met();
    };
    span(name, ADDRESS, access, managed)?;
    span(control, control_len, access, managed)?;
    vector(parts, n, access, managed)?;
    if access == Access::Write { span(at, 56, access, managed) } else { Ok(()) }
}

fn vector(at: u64, parts: u64, access: Access, managed: &dyn Managed) -> Result<(), Errno> {
    let mut left = MOST;
    for i in 0..parts.min(MAX_PARTS) {
        let Ok([base, len]) = usercopy::read::<[u64; 2]>(at.saturating_add(16 * i)) else { return met() };
        let len = len.min(left);
        span(base, len, access, managed)?;
        left -= len;
    }
    Ok(())
}

/// What tells of the buffers can't be read: for its level, or for what the call itself says.
fn met() -> Result<(), Errno> {
    if task::current().upcall.has_met() { Err(Errno::EFAULT) } else { Ok(()) }
}

fn span(at: u64, bytes: u64, access: Access, managed: &dyn Managed) -> Result<(), Errno> {
    // What is beyond is not reached by the call. So a look is at no more than half a million pages.
    let end = at.saturating_add(bytes.min(MOST)).min(USER_END);
    if at == 0 || end <= at {
        return Ok(());
    }
    let first = VirtAddr::user(at).ok_or(Errno::EFAULT)?.page();
    let pages = (end - 1) / PAGE_SIZE - at / PAGE_SIZE + 1;
    let Some(range) = PageRange::with_len(first, pages) else { return Ok(()) };
    match managed.first_forbidden(range, access, &task::unpinned()) {
        Some(page) => {
            task::current().upcall.meet(page.base().as_u64().max(at), access);
            Err(Errno::EFAULT)
        }
        None => Ok(()),
    }
}

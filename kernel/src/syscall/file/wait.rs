//! `poll` and `select`: wait until a file can be used without waiting.

use alloc::vec::Vec;

use super::{files, lent};
use crate::{
    errno::{Errno, SysResult},
    file::{Events, Lent},
    hw,
    limits::RLIMIT_NOFILE,
    signal::{self, SigSet},
    syscall::Args,
    task, upcall, usercopy,
    wait::{self, Woken},
};

/// `struct pollfd`.
#[derive(Clone, Copy)]
#[repr(C)]
struct PollFd {
    fd: i32,
    events: u16,
    revents: u16,
}
crate::pod!(PollFd);

/// What is always told, asked for or not.
const ALWAYS: Events = Events::ERR.union(Events::HUP).union(Events::NVAL);

/// One file that a call waits for.
struct Watched {
    /// None for a bad descriptor.
    file: Option<Lent>,
    events: Events,
}

impl Watched {
    /// What there is to tell now.
    fn ready(&self) -> Events {
        match &self.file {
            Some(file) => file.readiness().events.with_synonyms() & self.events,
            None => Events::NVAL,
        }
    }
}

/// When a time limit of nanoseconds from now is over.
fn after(ns: u64) -> Option<u64> {
    Some(hw::timer::now().saturating_add(ns))
}

/// Wait until one of `watched` has something to tell or the deadline (ns since boot) has passed; says what each has,
/// and how many have something. RESTART_NO_HANDLER for a signal.
fn wait_for(watched: &[Watched], deadline: Option<u64>) -> Result<(Vec<Events>, usize), Errno> {
    let mut found = room_for(watched.len())?;
    let mut look = || {
        found.clear();
        found.extend(watched.iter().map(Watched::ready));
        found.iter().filter(|e| !e.is_empty()).count()
    };
    let mut count = look();
    if count == 0 && deadline.is_none_or(|d| d > hw::timer::now()) {
        let mut queues = room_for(2 * watched.len())?;
        for file in watched.iter().filter_map(|w| w.file.as_ref()) {
            queues.extend(file.readiness().queues.into_iter().flatten());
        }
        match wait::wait_any(&queues, deadline, true, || Some(look()).filter(|&n| n > 0)) {
            Ok(n) => count = n,
            Err(Woken::TimedOut) => count = look(),
            Err(Woken::Interrupted) => return Err(Errno::RESTART_NO_HANDLER),
        }
    }
    Ok((found, count))
}

/// An empty list with room for `n`. ENOMEM.
fn room_for<T>(n: usize) -> Result<Vec<T>, Errno> {
    let mut list = Vec::new();
    list.try_reserve_exact(n).map_err(|_| Errno::ENOMEM)?;
    Ok(list)
}

/// A time limit from a `struct timespec` at `addr`; None for no limit if that is 0. EINVAL.
pub(in crate::syscall) fn timespec_at(addr: u64) -> Result<Option<u64>, Errno> {
    if addr == 0 {
        return Ok(None);
    }
    let [sec, nsec]: [i64; 2] = usercopy::read(addr)?;
    match (u64::try_from(sec), u64::try_from(nsec)) {
        (Ok(sec), Ok(nsec)) if nsec < 1_000_000_000 => {
            Ok(after(sec.saturating_mul(1_000_000_000).saturating_add(nsec)))
        }
        _ => Err(Errno::EINVAL),
    }
}

/// Write what is left of a time limit back, in units of `unit` ns below the second; a bad address is no error. Not if the call, which gave
/// `result`, starts over: then the limit is read again.
fn remaining_out(result: &SysResult, addr: u64, deadline: Option<u64>, unit: u64) {
    if let Some(d) = deadline.filter(|_| addr != 0 && !upcall::is_again(result)) {
        let left = d.saturating_sub(hw::timer::now());
        let parts = [left / 1_000_000_000, left % 1_000_000_000 / unit];
        let _ = upcall::owed(|| usercopy::write(addr, &parts));
    }
}

/// Run `f` with the signal mask at `addr` (of `size` bytes), if there is one.
pub(in crate::syscall) fn with_mask(addr: u64, size: u64, f: impl FnOnce() -> SysResult) -> SysResult {
    if addr == 0 {
        return f();
    }
    if size != 8 {
        return Err(Errno::EINVAL);
    }
    signal::mask_for_wait(SigSet(usercopy::read(addr)?));
    let result = f();
    if !matches!(result, Err(Errno::RESTART_NO_HANDLER | Errno::EINTR)) {
        signal::unmask();
    }
    result
}

/// `poll(2)`.
pub fn poll(a: &Args) -> SysResult {
    let deadline = u64::try_from(a.int(2)).ok().and_then(|ms| after(ms * 1_000_000));
    poll_until(a.raw(0), a.uint(1), deadline)
}

/// `ppoll(2)`.
pub fn ppoll(a: &Args) -> SysResult {
    let deadline = timespec_at(a.raw(2))?;
    let result = with_mask(a.raw(3), a.raw(4), || poll_until(a.raw(0), a.uint(1), deadline));
    remaining_out(&result, a.raw(2), deadline, 1);
    result
}

fn poll_until(addr: u64, count: u32, deadline: Option<u64>) -> SysResult {
    let limit = task::current().process.limits.soft(RLIMIT_NOFILE);
    if u64::from(count) > limit {
        return Err(Errno::EINVAL);
    }
    let mut list = room_for(count as usize)?;
    let mut watched = room_for(count as usize)?;
    for i in 0..u64::from(count) {
        let p: PollFd = usercopy::read(addr.checked_add(8 * i).ok_or(Errno::EFAULT)?)?;
        // A negative descriptor is left out.
        if p.fd >= 0 {
            let events = Events::from_bits_truncate(p.events) | ALWAYS;
            watched.push(Watched { file: lent(p.fd).ok(), events });
        }
        list.push(p);
    }
    let (ready, n) = wait_for(&watched, deadline)?;
    let mut ready = ready.into_iter();
    for (i, p) in list.iter().enumerate() {
        let events = if p.fd >= 0 { ready.next().unwrap_or_default() } else { Events::empty() };
        upcall::owed(|| usercopy::write(addr + 8 * i as u64 + 6, &events.bits()))?;
    }
    Ok(n)
}

/// `select(2)`.
pub fn select(a: &Args) -> SysResult {
    let addr = a.raw(4);
    let deadline = if addr == 0 {
        None
    } else {
        let [sec, usec]: [i64; 2] = usercopy::read(addr)?;
        match (u64::try_from(sec), u64::try_from(usec)) {
            (Ok(s), Ok(us)) => after(s.saturating_mul(1_000_000_000).saturating_add(us.saturating_mul(1000))),
            _ => return Err(Errno::EINVAL),
        }
    };
    let result = select_until(a, deadline);
    remaining_out(&result, addr, deadline, 1000);
    result
}

/// `pselect6(2)`.
pub fn pselect6(a: &Args) -> SysResult {
    let deadline = timespec_at(a.raw(4))?;
    let [mask, size] = if a.raw(5) == 0 { [0, 0] } else { usercopy::read::<[u64; 2]>(a.raw(5))? };
    let result = with_mask(mask, size, || select_until(a, deadline));
    remaining_out(&result, a.raw(4), deadline, 1);
    result
}

/// A set of descriptors at `addr`, as far as `words` words; no descriptors if it is 0.
fn set_at(addr: u64, words: u64) -> Result<Vec<u64>, Errno> {
    let mut set = room_for(words as usize)?;
    for i in 0..words {
        set.push(if addr == 0 { 0 } else { usercopy::read(addr.wrapping_add(8 * i))? });
    }
    Ok(set)
}

fn has(set: &[u64], fd: usize) -> bool {
    set.get(fd / 64).is_some_and(|w| w >> (fd % 64) & 1 != 0)
}

/// What makes a descriptor stay in each of select's three sets.
const SETS: [Events; 3] =
    [Events::IN.union(Events::HUP).union(Events::ERR), Events::OUT.union(Events::ERR), Events::PRI];

fn select_until(a: &Args, deadline: Option<u64>) -> SysResult {
    let count = usize::try_from(a.int(0)).map_err(|_| Errno::EINVAL)?;
    let files = files();
    // As on Linux, descriptors beyond the table are not looked at.
    let highest = files.descriptors().last().map_or(0, |&fd| fd as usize + 1);
    let words = count.div_ceil(64) as u64;
    let words = words.min(highest.max(1).div_ceil(64) as u64);
    let addrs = [a.raw(1), a.raw(2), a.raw(3)];
    let mut sets = [set_at(addrs[0], words)?, set_at(addrs[1], words)?, set_at(addrs[2], words)?];
    let mut places = room_for(highest)?;
    let mut watched = room_for(highest)?;
    for fd in 0..count.min(64 * words as usize) {
        if sets.iter().any(|set| has(set, fd)) {
            let file = lent(fd as i32)?;
            if file.is_path() {
                return Err(Errno::EBADF);
            }
            watched.push(Watched { file: Some(file), events: wanted(&sets, fd) });
            places.push(fd);
        }
    }
    let (ready, _) = wait_for(&watched, deadline)?;
    let mut total = 0;
    let mut asked = [room_for(words as usize)?, room_for(words as usize)?, room_for(words as usize)?];
    for (set, asked) in sets.iter_mut().zip(&mut asked) {
        asked.append(set);
        set.resize(asked.len(), 0);
    }
    for (&fd, events) in places.iter().zip(ready) {
        for ((set, asked), stays) in sets.iter_mut().zip(&asked).zip(SETS) {
            if has(asked, fd)
                && events.intersects(stays)
                && let Some(word) = set.get_mut(fd / 64)
            {
                *word |= 1 << (fd % 64);
                total += 1;
            }
        }
    }
    for (set, addr) in sets.iter().zip(addrs).filter(|(_, addr)| *addr != 0) {
        for (i, word) in set.iter().enumerate() {
            upcall::owed(|| usercopy::write(addr + 8 * i as u64, word))?;
        }
    }
    Ok(total)
}

/// What must happen to `fd` for select to return.
fn wanted(sets: &[Vec<u64>; 3], fd: usize) -> Events {
    let stays = sets.iter().zip(SETS).filter(|(set, _)| has(set, fd)).map(|(_, stays)| stays);
    stays.fold(Events::empty(), |all, e| all | e)
}

//! Whether a backend works here: found out by using it on a small region, once a process.
//!
//! What a kernel answers to a call is not believed. Each probe builds a region of four pages, with the library's
//! own handlers, and checks that forbidden accesses trap where they should, that grants let them through, that
//! neighbours are left alone, and that dirty sets say what was written.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicUsize, Ordering},
};

use crate::{
    access::{Access, PageNo, PageSet},
    builder::{Backing, Failed},
    error::{Backend, Errno, Error, Needs, Reason},
    fault_or,
    handler::{Resolution, inline},
    region::Region,
    sys,
};

const PAGES: usize = 4;
/// A backend, on anonymous memory or a memfd, with or without system calls into protected pages.
const KINDS: usize = 6 * 4;

/// Whether `backend` works here.
pub fn result(backend: Backend, memfd: bool, needs: Needs) -> Result<(), Reason> {
    static RESULTS: [OnceLock<Result<(), Reason>>; KINDS] = [const { OnceLock::new() }; KINDS];
    let row = match backend {
        Backend::Auto | Backend::Signal => 0,
        Backend::UffdWp => 1,
        Backend::UffdView => 2,
        Backend::UffdThread { .. } => 3,
        Backend::AsyncDirty => 4,
        Backend::Native => 5,
    };
    let syscalls = needs.contains(Needs::SYSCALLS);
    let at = row * 4 + usize::from(memfd) * 2 + usize::from(syscalls);
    RESULTS[at].get_or_init(|| probe(backend, memfd, syscalls)).clone()
}

const fn wrong(what: &'static str) -> Reason {
    Reason::Behaviour(what)
}

fn check(holds: bool, what: &'static str) -> Result<(), Reason> {
    if holds { Ok(()) } else { Err(wrong(what)) }
}

/// Why a call of the library failed in a probe.
fn said(error: Error) -> Reason {
    match error {
        Error::Os { op, errno } => Reason::Refused { op, errno, hint: None },
        _ => wrong("a call was refused"),
    }
}

/// Store a word, unless the fault cannot be resolved.
fn store(region: &Region, page: usize, value: u64) -> Result<(), Reason> {
    let at = region.base().wrapping_add(page * sys::BASE).cast::<u64>();
    // SAFETY: in a region whose handler diverts what fails.
    unsafe { fault_or!(store at, value, else { return Err(wrong("a store could not be let through")) }) };
    Ok(())
}

fn load(region: &Region, page: usize) -> Result<u64, Reason> {
    let at = region.base().wrapping_add(page * sys::BASE).cast::<u64>();
    // SAFETY: see above.
    Ok(unsafe { fault_or!(load at, else { return Err(wrong("a load could not be let through")) }) })
}

fn probe(backend: Backend, memfd: bool, syscalls: bool) -> Result<(), Reason> {
    let traps = Arc::new((AtomicUsize::new(0), AtomicUsize::new(usize::MAX)));
    let seen = traps.clone();
    // SAFETY: it counts and answers; nothing else.
    let handler = unsafe {
        inline(move |fault, _| {
            seen.0.fetch_add(1, Ordering::Relaxed);
            seen.1.store(fault.page.0, Ordering::Relaxed);
            Resolution::Grant(fault.wanted)
        })
    };
    let count = || (traps.0.swap(0, Ordering::Relaxed), traps.1.load(Ordering::Relaxed));
    let backing = if memfd { Backing::Memfd } else { Backing::Anon };
    let mut builder = Region::builder(PAGES * sys::BASE).backing(backing).inline(handler);
    if syscalls {
        builder = builder.need(Needs::SYSCALLS);
    }
    builder.probing = true;
    let region = builder.make(backend).map_err(|failed| match failed {
        Failed::Open(reason) => reason,
        Failed::Start(error) => said(error),
        Failed::Os(op, errno) => Reason::Refused { op, errno, hint: None },
    })?;
    for page in 0..PAGES {
        store(&region, page, 10 + page as u64)?;
    }
    check(count().0 == 0, "an open page trapped")?;
    if region.inner().has_read {
        region.protect(PageNo(1), Access::Read).map_err(said)?;
        check(load(&region, 1)? == 11, "a page lost what it held")?;
        check(count().0 == 0, "a page that may be read trapped at a load")?;
        store(&region, 1, 21)?;
        check(count() == (1, 1), "a store to a page that may only be read did not trap once, there")?;
        store(&region, 1, 31)?;
        store(&region, 0, 30)?;
        store(&region, 2, 32)?;
        check(count().0 == 0, "a granted page or its neighbour trapped")?;
        check(load(&region, 1)? == 31, "a store was lost")?;
    }
    if region.inner().has_none {
        region.protect(0..3, Access::None).map_err(said)?;
        let value = load(&region, 2)?;
        check(count() == (1, 2), "a load of a page at None did not trap once, there")?;
        check(value == if region.inner().has_read { 32 } else { 12 }, "a page lost what it held at None")?;
        store(&region, 0, 40)?;
        check(count() == (1, 0), "from None to ReadWrite was not one trap")?;
    }
    if let Some(alias) = region.inner().page_alias(PageNo(3)) {
        store(&region, 3, 43)?;
        let mut word = [0; 8];
        alias.read(&mut word);
        check(u64::from_ne_bytes(word) == 43, "the alias does not show the view's memory")?;
    }
    let dirty = || -> Result<Vec<usize>, Reason> {
        let mut set = PageSet::new();
        region.take_dirty(0..PAGES, &mut set).map_err(said)?;
        Ok(set.iter().map(|page| page.0).collect())
    };
    dirty()?;
    check(dirty()?.is_empty(), "a page was dirty that nobody wrote")?;
    store(&region, 3, 53)?;
    check(dirty()? == [3], "a written page was not dirty, or another was")?;
    store(&region, 3, 63)?;
    check(dirty()? == [3], "a page written again was not dirty again")?;
    check(dirty()?.is_empty(), "a page stayed dirty")?;
    if syscalls {
        region.protect(PageNo(1), if memfd { Access::None } else { Access::Read }).or_else(unless_lacking)?;
        kernel_writes(region.base().wrapping_add(sys::BASE)).map_err(|errno| Reason::Refused {
            op: "read(2) into a protected page",
            errno,
            hint: None,
        })?;
        check(load(&region, 1)? == KERNEL_WROTE, "what a system call wrote is not there")?;
    }
    Ok(())
}

/// Not every backend has every level.
fn unless_lacking(error: Error) -> Result<(), Reason> {
    match error {
        Error::Lacks { .. } => Ok(()),
        other => Err(said(other)),
    }
}

const KERNEL_WROTE: u64 = 0x0123_4567_89ab_cdef;

/// Have the kernel write a word at `to`.
fn kernel_writes(to: *mut u8) -> Result<(), Errno> {
    let last = || Errno(std::io::Error::last_os_error().raw_os_error().unwrap_or(0));
    let mut ends = [0; 2];
    // SAFETY: the array holds both descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(last());
    }
    let ends = ends.map(|end| sys::owned(usize::try_from(end).unwrap_or(usize::MAX)));
    let [Ok(from), Ok(into)] = &ends else { return Err(Errno(libc::EBADF)) };
    use std::os::fd::AsRawFd;
    let word = KERNEL_WROTE;
    // SAFETY: the word is eight bytes, and so are those at `to`, which the kernel checks besides.
    let done = unsafe {
        libc::write(into.as_raw_fd(), (&raw const word).cast(), 8);
        libc::read(from.as_raw_fd(), to.cast(), 8)
    };
    if done == 8 { Ok(()) } else { Err(last()) }
}

//! `userfaultfd` and what is asked of its descriptor, in the order in which Linux looks at it.
//!
//! COPY, ZEROPAGE, CONTINUE and POISON go page by page, and MOVE some pages at a time; each stops where the address space says
//! that a page can't be done, and tells how far it came. What is asked of the mappings is asked once before, and of each page
//! again by the address space, with the page locked.

use alloc::{sync::Arc, vec::Vec};
use core::{any::Any, cell::Cell};

use addr::{PAGE_BYTES, PAGE_SIZE, Page, PageRange, Prot, USER_END};
use aspace::{
    Backing, Content, Error, Flags, LOWEST, Mapping, Modes, Unfilled, Untransferred, Watch, Watched,
};
use linux_raw_sys::general as c;

use super::{Args, file::files};
use crate::{
    errno::{Errno, SysResult},
    oom,
    process::Mm,
    task::{self, CAP_SYS_PTRACE},
    upcall, usercopy,
    userfault::{self, Context, FEATURES, UserFaults, WP_ASYNC, WP_UNPOPULATED},
};

const USER_MODE_ONLY: u32 = 1;
const API_VERSION: u64 = 0xaa;

/// Numbers of the requests, and with their sizes and directions.
const NR_REGISTER: u64 = 0;
const NR_UNREGISTER: u64 = 1;
const NR_WAKE: u64 = 2;
const NR_COPY: u64 = 3;
const NR_ZEROPAGE: u64 = 4;
const NR_MOVE: u64 = 5;
const NR_WRITEPROTECT: u64 = 6;
const NR_CONTINUE: u64 = 7;
const NR_POISON: u64 = 8;
const NR_API: u64 = 0x3f;
const API: u32 = 0xc018_aa3f;
const REGISTER: u32 = 0xc020_aa00;
const UNREGISTER: u32 = 0x8010_aa01;
const WAKE: u32 = 0x8010_aa02;
const COPY: u32 = 0xc028_aa03;
const ZEROPAGE: u32 = 0xc020_aa04;
const MOVE: u32 = 0xc028_aa05;
const WRITEPROTECT: u32 = 0xc018_aa06;
const CONTINUE: u32 = 0xc020_aa07;
const POISON: u32 = 0xc020_aa08;
/// Of /dev/userfaultfd.
const NEW: u32 = 0xaa00;

const REGISTER_MISSING: u64 = 1;
const REGISTER_WP: u64 = 2;
const REGISTER_MINOR: u64 = 4;
/// Of all that fill, and of MOVE.
const DONTWAKE: u64 = 1;
/// Of MOVE.
const ALLOW_SRC_HOLES: u64 = 2;
/// Of COPY and CONTINUE.
const FILL_WP: u64 = 2;
const PROTECT_WP: u64 = 1;
const PROTECT_DONTWAKE: u64 = 2;

/// `userfaultfd(2)`. Of faults in copies by the kernel only those learn who are privileged.
pub fn userfaultfd(a: &Args) -> SysResult {
    let flags = a.uint(0);
    if task::current().mm().is_some_and(|mm| mm.aspace.watched().is_none()) {
        return Err(Errno::ENOSYS);
    }
    if flags & USER_MODE_ONLY == 0 && !task::is_capable(CAP_SYS_PTRACE) {
        return Err(Errno::EPERM);
    }
    make(flags)
}

/// `ioctl` of /dev/userfaultfd: whoever may open it may do what `userfaultfd` does.
pub fn device(request: u32, arg: u64) -> SysResult {
    if request == NEW { make(arg as u32) } else { Err(Errno::EINVAL) }
}

fn make(flags: u32) -> SysResult {
    if flags & !(c::O_CLOEXEC | c::O_NONBLOCK | USER_MODE_ONLY) != 0 {
        return Err(Errno::EINVAL);
    }
    let file = UserFaults::open(flags & USER_MODE_ONLY != 0, flags)?;
    files().insert(file, flags & c::O_CLOEXEC != 0)
}

/// `ioctl` of such a descriptor.
pub fn ioctl(faults: &UserFaults, request: u32, arg: u64) -> SysResult {
    let context = faults.context();
    if request != API && !context.is_ready() {
        return Err(Errno::EINVAL);
    }
    match request {
        API => api(context, arg),
        REGISTER => register(context, arg),
        UNREGISTER => unregister(context, arg),
        WAKE => wake(context, arg),
        COPY => copy(context, arg),
        ZEROPAGE => fill_range(context, arg, Content::Zeros, DONTWAKE),
        CONTINUE => fill_range(context, arg, Content::Object, DONTWAKE | FILL_WP),
        WRITEPROTECT => write_protect(context, arg),
        MOVE => transfer(context, arg),
        POISON => fill_range(context, arg, Content::Lost, DONTWAKE),
        _ => Err(Errno::EINVAL),
    }?;
    Ok(0)
}

/// The handshake.
fn api(context: &Context, arg: u64) -> Result<(), Errno> {
    let [version, mut features, _]: [u64; 3] = usercopy::read(arg)?;
    // What Linux asks for unasked.
    if features & WP_ASYNC != 0 {
        features |= WP_UNPOPULATED;
    }
    let refuse = || {
        usercopy::write(arg, &[0u64; 3])?;
        Err(Errno::EINVAL)
    };
    if version != API_VERSION || features & !FEATURES != 0 {
        return refuse();
    }
    let requests = 1u64 << NR_REGISTER | 1 << NR_UNREGISTER | 1 << NR_API;
    usercopy::write(arg, &[version, FEATURES, requests])?;
    if context.choose(features) { Ok(()) } else { refuse() }
}

/// Whole pages of user memory, not the lowest. EINVAL.
fn range(start: u64, len: u64) -> Result<PageRange, Errno> {
    if !start.is_multiple_of(PAGE_SIZE) {
        return Err(Errno::EINVAL);
    }
    check_bytes(start, len)?;
    let first = Page::new(start / PAGE_SIZE).ok_or(Errno::EINVAL)?;
    PageRange::with_len(first, len / PAGE_SIZE).ok_or(Errno::EINVAL)
}

/// Whether so many bytes, a multiple of a page's, are user memory from there on. EINVAL.
fn check_bytes(start: u64, len: u64) -> Result<(), Errno> {
    let good = len != 0
        && len.is_multiple_of(PAGE_SIZE)
        && (LOWEST * PAGE_SIZE..USER_END).contains(&start)
        && len <= USER_END - start;
    if good { Ok(()) } else { Err(Errno::EINVAL) }
}

/// Whether a mapping is Linux's shmem: memory that processes share, rather than a file.
fn is_memory(mapping: &Mapping) -> bool {
    matches!(&mapping.backing, Backing::Object { object, .. } if object.is_memory())
}

fn is_anonymous(mapping: &Mapping) -> bool {
    matches!(mapping.backing, Backing::Anonymous)
}

/// Whether `mapping` can be watched in these modes.
fn can_be_watched(mapping: &Mapping, asked: Modes, modes: Modes) -> bool {
    !mapping.flags.contains(Flags::DROPPABLE)
        && !mapping.is_special()
        && (!asked.contains(Modes::MINOR) || is_memory(mapping))
        && (modes.contains(Modes::ASYNC) && asked == Modes::PROTECT
            || is_anonymous(mapping)
            || is_memory(mapping))
}

fn register(context: &Arc<Context>, arg: u64) -> Result<(), Errno> {
    let [start, len, mode]: [u64; 3] = usercopy::read(arg)?;
    if mode == 0 || mode & !(REGISTER_MISSING | REGISTER_WP | REGISTER_MINOR) != 0 {
        return Err(Errno::EINVAL);
    }
    let range = range(start, len)?;
    let mut asked = Modes::empty();
    asked.set(Modes::MISSING, mode & REGISTER_MISSING != 0);
    asked.set(Modes::PROTECT, mode & REGISTER_WP != 0);
    asked.set(Modes::MINOR, mode & REGISTER_MINOR != 0);
    let modes = context.modes(asked);
    let me: Arc<dyn Any + Send + Sync> = context.clone();
    let why = Cell::new(Errno::EINVAL);
    let ask = |mapping: &Mapping| {
        why.set(match &mapping.watch {
            _ if !can_be_watched(mapping, asked, modes) => Errno::EINVAL,
            _ if !mapping.max_prot.contains(Prot::WRITE) => Errno::EPERM,
            Some(watch) if !watch.is_by(&me) => Errno::EBUSY,
            _ => return Some(Some(Watch { by: me.clone(), modes })),
        });
        None
    };
    context.with(Errno::ENOMEM, |_, watched| watch(watched, range, &ask, &why))?;
    let mut requests = 1u64 << NR_WAKE | 1 << NR_COPY | 1 << NR_ZEROPAGE | 1 << NR_MOVE | 1 << NR_POISON;
    if asked.contains(Modes::PROTECT) {
        requests |= 1 << NR_WRITEPROTECT;
    }
    if asked.contains(Modes::MINOR) {
        requests |= 1 << NR_CONTINUE;
    }
    upcall::owed(|| usercopy::write(arg + 24, &requests))
}

fn watch(
    watched: &dyn Watched,
    range: PageRange,
    ask: &dyn Fn(&Mapping) -> Option<Option<Watch>>,
    why: &Cell<Errno>,
) -> Result<(), Errno> {
    watched.watch(range, ask, &task::unpinned()).map_err(|error| match error {
        Error::Denied => why.get(),
        Error::Exists => Errno::EBUSY,
        Error::NoMemory => Errno::ENOMEM,
        _ => Errno::EINVAL,
    })
}

fn unregister(context: &Arc<Context>, arg: u64) -> Result<(), Errno> {
    let [start, len]: [u64; 2] = usercopy::read(arg)?;
    let range = range(start, len)?;
    let me: Arc<dyn Any + Send + Sync> = context.clone();
    let why = Cell::new(Errno::EINVAL);
    let modes = context.modes(Modes::PROTECT);
    let ask = |mapping: &Mapping| {
        let others = mapping.watch.as_ref().is_some_and(|watch| !watch.is_by(&me));
        (!others && can_be_watched(mapping, Modes::PROTECT, modes)).then_some(None)
    };
    context.with(Errno::ENOMEM, |_, watched| watch(watched, range, &ask, &why))?;
    context.wake(start, start + len);
    Ok(())
}

fn wake(context: &Context, arg: u64) -> Result<(), Errno> {
    let [start, len]: [u64; 2] = usercopy::read(arg)?;
    range(start, len)?;
    context.wake(start, start + len);
    Ok(())
}

fn write_protect(context: &Context, arg: u64) -> Result<(), Errno> {
    let [start, len, mode]: [u64; 3] = usercopy::read(arg)?;
    let range = range(start, len)?;
    let (on, dont_wake) = (mode & PROTECT_WP != 0, mode & PROTECT_DONTWAKE != 0);
    if mode & !(PROTECT_WP | PROTECT_DONTWAKE) != 0 || on && dont_wake {
        return Err(Errno::EINVAL);
    }
    context.with(Errno::ESRCH, |_, watched| {
        watched.protect_pages(range, on, &task::unpinned()).map_err(|error| match error {
            Error::NoMapping => Errno::ENOENT,
            Error::NoMemory => Errno::ENOMEM,
            _ => Errno::EINVAL,
        })
    })?;
    if !on && !dont_wake {
        context.wake(start, start + len);
    }
    Ok(())
}

/// COPY.
fn copy(context: &Context, arg: u64) -> Result<(), Errno> {
    let [to, from, len, mode]: [u64; 4] = usercopy::read(arg)?;
    check_bytes(from, len)?;
    let range = range(to, len)?;
    if mode & !(DONTWAKE | FILL_WP) != 0 {
        return Err(Errno::EINVAL);
    }
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(PAGE_BYTES).map_err(|_| Errno::ENOMEM)?;
    buffer.resize(PAGE_BYTES, 0u8);
    let result = fill(context, range, Content::Zeros, mode, &mut |page, protected| {
        usercopy::copy_in(from + (page.base().as_u64() - to), &mut buffer)?;
        let bytes = buffer.first_chunk().ok_or(Errno::ENOMEM)?;
        put(context, page, Content::Bytes(bytes), protected)
    })?;
    answer(context, arg + 32, range, mode, result)
}

/// ZEROPAGE, CONTINUE and POISON.
fn fill_range(context: &Context, arg: u64, with: Content<'_>, modes: u64) -> Result<(), Errno> {
    let [start, len, mode]: [u64; 3] = usercopy::read(arg)?;
    let range = range(start, len)?;
    if mode & !modes != 0 {
        return Err(Errno::EINVAL);
    }
    let fill_one = &mut |page, protected| put(context, page, with, protected);
    let result = fill(context, range, with, mode, fill_one)?;
    answer(context, arg + 24, range, mode, result)
}

/// Fill the pages of `range`, which must be in one watched mapping, each by `one`: how many were, if any. Err: the memory is no
/// more.
fn fill(
    context: &Context,
    range: PageRange,
    with: Content<'_>,
    mode: u64,
    one: &mut dyn FnMut(Page, bool) -> Result<(), Errno>,
) -> Result<Result<u64, Errno>, Errno> {
    let protected = context.with(Errno::ESRCH, |mm, _| Ok(may_fill(mm, range, with, mode)))?;
    Ok(protected.and_then(|protected| fill_each(range, protected, one)))
}

/// Whether the pages of `range` may be filled so, and are to be protected.
fn may_fill(mm: &Mm, range: PageRange, with: Content<'_>, mode: u64) -> Result<bool, Errno> {
    let found = mm.aspace.find(range, &task::unpinned());
    let (area, mapping) = found.filter(|(area, _)| range.end() <= area.end()).ok_or(Errno::ENOENT)?;
    let protected = mode & FILL_WP != 0;
    let modes = mapping.watch.as_ref().map(|watch| watch.modes).ok_or(Errno::ENOENT)?;
    let of_object = matches!(with, Content::Object);
    if protected && !modes.contains(Modes::PROTECT)
        || !is_memory(&mapping) && (of_object || !is_anonymous(&mapping))
    {
        return Err(Errno::EINVAL);
    }
    debug_assert!(area.contains(range.start()));
    Ok(protected)
}

fn fill_each(
    range: PageRange,
    protected: bool,
    one: &mut dyn FnMut(Page, bool) -> Result<(), Errno>,
) -> Result<u64, Errno> {
    let mut done = 0;
    for page in range {
        let filled = match userfault::is_dying() {
            true => Err(Errno::EINTR),
            false => one(page, protected),
        };
        match filled {
            Ok(()) => done += 1,
            Err(_) if done > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// How often room is made at most.
const ATTEMPTS: u32 = 64;

/// Fill one page. The memory is used for that alone: if it is the calling process's no more, and room is made meanwhile, it
/// can go.
fn put(context: &Context, page: Page, with: Content<'_>, protected: bool) -> Result<(), Errno> {
    let mut attempts = 0..ATTEMPTS;
    loop {
        let ctx = task::unpinned();
        let filled =
            context.with(Errno::ESRCH, |_, watched| Ok(watched.fill(page, with, protected, &ctx)))?;
        return match filled {
            Err(Unfilled::NoMemory) if attempts.next().is_some() && oom::make_room() => continue,
            Err(Unfilled::NoMemory) => Err(Errno::ENOMEM),
            Err(Unfilled::Unwatched) => Err(Errno::ENOENT),
            Err(Unfilled::There) => Err(Errno::EEXIST),
            Err(Unfilled::Invalid) => Err(Errno::EINVAL),
            Err(Unfilled::Absent) => Err(Errno::EFAULT),
            Ok(()) => Ok(()),
        };
    }
}

/// MOVE, within the calling process's memory.
fn transfer(context: &Arc<Context>, arg: u64) -> Result<(), Errno> {
    let [to, from, len, mode]: [u64; 4] = usercopy::read(arg)?;
    if !context.is_callers() {
        return Err(Errno::EINVAL);
    }
    let (target, source) = (range(to, len)?, range(from, len)?);
    if mode & !(DONTWAKE | ALLOW_SRC_HOLES) != 0 {
        return Err(Errno::EINVAL);
    }
    let me: Arc<dyn Any + Send + Sync> = context.clone();
    let holes = mode & ALLOW_SRC_HOLES != 0;
    let result = context.with(Errno::ESRCH, |mm, watched| {
        let within = are_in_mappings(mm, source, target);
        Ok(within.and_then(|()| transfer_each(watched, source, target, &|s, t| may_go(s, t, &me), holes)))
    })?;
    answer(context, arg + 32, target, mode, result)
}

/// Whether each of the two ranges is in one mapping: ENOENT if it doesn't begin in one, EINVAL if it ends elsewhere.
fn are_in_mappings(mm: &Mm, source: PageRange, target: PageRange) -> Result<(), Errno> {
    let end = |range: PageRange| mm.aspace.find(range, &task::unpinned()).map(|(area, _)| area.end());
    let target_end = end(target).ok_or(Errno::ENOENT)?;
    let source_end = end(source).ok_or(Errno::ENOENT)?;
    if source.end() <= source_end && target.end() <= target_end { Ok(()) } else { Err(Errno::EINVAL) }
}

/// What Linux asks of two mappings of anonymous memory besides.
fn may_go(source: &Mapping, target: &Mapping, watcher: &Arc<dyn Any + Send + Sync>) -> bool {
    let locked = |mapping: &Mapping| mapping.flags.contains(Flags::LOCKED);
    source.prot == target.prot
        && locked(source) == locked(target)
        && source.prot.contains(Prot::WRITE)
        && target.watch.as_ref().is_some_and(|watch| watch.is_by(watcher))
}

/// Move the pages of `source` to those of `target`: how many, if any.
fn transfer_each(
    watched: &dyn Watched,
    source: PageRange,
    target: PageRange,
    may: &dyn Fn(&Mapping, &Mapping) -> bool,
    holes: bool,
) -> Result<u64, Errno> {
    let (mut done, mut attempts) = (0, 0..ATTEMPTS);
    while done < source.len() {
        let rest = source.start().checked_add(done).and_then(|at| PageRange::new(at, source.end()));
        let to = target.start().checked_add(done);
        let (Some(rest), Some(to)) = (rest, to) else { break };
        let moved = match userfault::is_dying() {
            true => Err(Errno::EINTR),
            false => watched.transfer(rest, to, may, holes, &task::unpinned()).map_err(|why| match why {
                Untransferred::Unmapped | Untransferred::Hole => Errno::ENOENT,
                Untransferred::Refused => Errno::EINVAL,
                Untransferred::There => Errno::EEXIST,
                Untransferred::Marked => Errno::EFAULT,
                Untransferred::Shared => Errno::EBUSY,
                Untransferred::NoMemory => Errno::ENOMEM,
            }),
        };
        match moved {
            Ok(pages) => done += pages,
            Err(Errno::ENOMEM) if attempts.next().is_some() && oom::make_room() => {}
            Err(_) if done > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Tell at `to` how many bytes were filled, or moved, or the error, and wake who waited for them.
fn answer(
    context: &Context,
    to: u64,
    range: PageRange,
    mode: u64,
    result: Result<u64, Errno>,
) -> Result<(), Errno> {
    let told = match result {
        Ok(pages) => (pages * PAGE_SIZE) as i64,
        Err(error) => -i64::from(error.0),
    };
    if upcall::is_again(&result) {
        return Err(Errno::EFAULT);
    }
    upcall::owed(|| usercopy::write(to, &told))?;
    let pages = result?;
    if mode & DONTWAKE == 0 {
        let start = range.start().base().as_u64();
        context.wake(start, start + pages * PAGE_SIZE);
    }
    if pages == range.len() { Ok(()) } else { Err(Errno::EAGAIN) }
}

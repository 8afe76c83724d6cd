//! Advice on memory, and questions about it: `madvise`, `process_madvise`, `mincore`, `msync`.

use alloc::{sync::Arc, vec::Vec};

use addr::{PAGE_SIZE, PageRange, USER_END};
use aspace::{Access, Advice, Fault, Flags, Mapping, ObjectError, Seen};
use linux_raw_sys::general as abi;

use super::{errno, mm, pages, range, touch};
use crate::{
    errno::{Errno, SysResult},
    process::Mm,
    syscall::{Args, event::process_of},
    task::{self, CAP_SYS_NICE},
    usercopy,
};

const MADV_POPULATE_READ: u32 = 22;
const MADV_POPULATE_WRITE: u32 = 23;
const MADV_DONTNEED_LOCKED: u32 = 24;
const MADV_GUARD_INSTALL: u32 = 102;
const MADV_GUARD_REMOVE: u32 = 103;

/// What is to be done about a piece of advice.
enum Act {
    Advise(Advice),
    Populate(Access),
    Remove,
}

/// None: Linux does not know it, or is not configured for it (MADV_HWPOISON and MADV_SOFT_OFFLINE).
fn act(advice: u32) -> Option<Act> {
    let flags = |set, clear| Act::Advise(Advice::Flags(set, clear));
    let none = Flags::empty();
    Some(match advice {
        abi::MADV_NORMAL => flags(none, Flags::SEQUENTIAL | Flags::RANDOM),
        abi::MADV_RANDOM => flags(Flags::RANDOM, Flags::SEQUENTIAL),
        abi::MADV_SEQUENTIAL => flags(Flags::SEQUENTIAL, Flags::RANDOM),
        abi::MADV_WILLNEED => Act::Advise(Advice::WillNeed),
        abi::MADV_DONTNEED => Act::Advise(Advice::DontNeed),
        MADV_DONTNEED_LOCKED => Act::Advise(Advice::DontNeedLocked),
        abi::MADV_FREE => Act::Advise(Advice::Free),
        abi::MADV_REMOVE => Act::Remove,
        abi::MADV_DONTFORK => flags(Flags::DONT_FORK, none),
        abi::MADV_DOFORK => flags(none, Flags::DONT_FORK),
        // Equal pages are not looked for.
        abi::MADV_MERGEABLE | abi::MADV_UNMERGEABLE => Act::Advise(Advice::WillNeed),
        abi::MADV_HUGEPAGE => flags(Flags::HUGE, Flags::NO_HUGE),
        abi::MADV_NOHUGEPAGE => flags(Flags::NO_HUGE, Flags::HUGE),
        abi::MADV_DONTDUMP => flags(Flags::DONT_DUMP, none),
        abi::MADV_DODUMP => flags(none, Flags::DONT_DUMP),
        abi::MADV_WIPEONFORK => flags(Flags::WIPE_ON_FORK, none),
        abi::MADV_KEEPONFORK => flags(none, Flags::WIPE_ON_FORK),
        abi::MADV_COLD | abi::MADV_PAGEOUT => Act::Advise(Advice::Cold),
        MADV_POPULATE_READ => Act::Populate(Access::Read),
        MADV_POPULATE_WRITE => Act::Populate(Access::Write),
        MADV_GUARD_INSTALL => Act::Advise(Advice::InstallGuards),
        MADV_GUARD_REMOVE => Act::Advise(Advice::RemoveGuards),
        _ => return None,
    })
}

/// `madvise(2)`.
pub fn madvise(a: &Args) -> SysResult {
    advise(&*mm()?, a.raw(0), a.raw(1), a.uint(2)).map(|()| 0)
}

/// `process_madvise(2)`: for other processes only what cannot be noticed but by the clock.
pub fn process_madvise(a: &Args) -> SysResult {
    let advice = a.uint(3);
    if a.uint(4) != 0 {
        return Err(Errno::EINVAL);
    }
    let ranges = ranges(a.raw(1), a.raw(2))?;
    let file = task::files().get(a.int(0))?;
    let process = process_of(&file)?.alive_or_zombie()?;
    let mm = process.mm().ok_or(Errno::ESRCH)?;
    if !Arc::ptr_eq(&mm, &*super::mm()?) {
        if !matches!(advice, abi::MADV_COLD | abi::MADV_PAGEOUT | abi::MADV_WILLNEED | abi::MADV_COLLAPSE) {
            return Err(Errno::EINVAL);
        }
        if !task::is_capable(CAP_SYS_NICE) {
            return Err(Errno::EPERM);
        }
    }
    let total: u64 = ranges.iter().map(|(_, len)| len).sum();
    let mut done = 0;
    for (at, len) in ranges {
        // Empty ranges at the end are not looked at.
        if done == total {
            break;
        }
        match advise(&mm, at, len, advice) {
            Ok(()) => done += len,
            Err(e) => return if done > 0 { Ok(done as usize) } else { Err(e) },
        }
    }
    Ok(done as usize)
}

/// The ranges that the `struct iovec` array of `count` at `array` names, at most [`MOST_BYTES`] in all. EINVAL, EFAULT.
fn ranges(array: u64, count: u64) -> Result<Vec<(u64, u64)>, Errno> {
    /// The most segments and bytes of a call (`MAX_RW_COUNT`).
    const MOST: u64 = 1024;
    const MOST_BYTES: u64 = i32::MAX as u64 / PAGE_SIZE * PAGE_SIZE;
    if count > MOST {
        return Err(Errno::EINVAL);
    }
    let (mut all, mut left) = (Vec::new(), MOST_BYTES);
    all.try_reserve_exact(count as usize).map_err(|_| Errno::ENOMEM)?;
    for i in 0..count {
        let [at, len] = usercopy::read::<[u64; 2]>(array.checked_add(16 * i).ok_or(Errno::EFAULT)?)?;
        if len > i64::MAX as u64 {
            return Err(Errno::EINVAL);
        }
        all.push((at, len));
    }
    for (at, len) in &mut all {
        // A single one is cut to size first.
        if count == 1 {
            *len = left.min(*len);
        }
        if at.checked_add(*len).is_none_or(|end| end > USER_END) {
            return Err(Errno::EFAULT);
        }
        *len = left.min(*len);
        left -= *len;
    }
    Ok(all)
}

fn advise(mm: &Mm, addr: u64, len: u64, advice: u32) -> Result<(), Errno> {
    let act = act(advice).ok_or(Errno::EINVAL)?;
    if !addr.is_multiple_of(PAGE_SIZE) {
        return Err(Errno::EINVAL);
    }
    let bytes = pages(len).and_then(|n| n.checked_mul(PAGE_SIZE)).ok_or(Errno::EINVAL)?;
    let end = addr.checked_add(bytes).ok_or(Errno::EINVAL)?;
    if bytes == 0 {
        return Ok(());
    }
    // What lies beyond user space is not mapped; the rest is served.
    let r =
        range(addr, end.min(USER_END).saturating_sub(addr)).filter(|r| !r.is_empty()).ok_or(Errno::ENOMEM)?;
    match act {
        Act::Advise(advice) => mm.aspace.advise(r, advice, &task::unpinned()).map_err(errno)?,
        Act::Populate(access) => populate(mm, r, access)?,
        Act::Remove => remove(mm, r)?,
    }
    if end > USER_END { Err(Errno::ENOMEM) } else { Ok(()) }
}

/// MADV_POPULATE_READ and MADV_POPULATE_WRITE.
fn populate(mm: &Mm, r: PageRange, access: Access) -> Result<(), Errno> {
    let ctx = task::unpinned();
    let mut at = r.start();
    while at < r.end() {
        let rest = PageRange::new(at, r.end()).ok_or(Errno::ENOMEM)?;
        let (part, mapping) = mm.aspace.find(rest, &ctx).ok_or(Errno::ENOMEM)?;
        if !access.allowed_by(mapping.prot) {
            return Err(Errno::EINVAL);
        }
        touch(mm, part, access).map_err(|fault| match fault {
            Fault::NoMapping | Fault::NoMemory => Errno::ENOMEM,
            Fault::Denied => Errno::EINVAL,
            Fault::Poisoned => Errno::EHWPOISON,
            Fault::BeyondObject | Fault::Guard | Fault::Level(_) | Fault::Watched => Errno::EFAULT,
        })?;
        at = part.end();
    }
    Ok(())
}

/// MADV_REMOVE: holes in what shared mappings show.
fn remove(mm: &Mm, r: PageRange) -> Result<(), Errno> {
    let ctx = task::unpinned();
    let (mut at, mut hole) = (r.start(), false);
    while at < r.end() {
        let Some((area, mapping)) = next(mm, at, r) else { break };
        hole |= area.start() > at;
        let part = area.intersect(r).ok_or(Errno::ENOMEM)?;
        let offset = part.start().number() - area.start().number();
        let object = mapping.object_page(offset).filter(|_| !mapping.flags.contains(Flags::LOCKED));
        let (object, index) = object.ok_or(Errno::EINVAL)?;
        if !mapping.may_write_object() {
            return Err(Errno::EACCES);
        }
        // With no lock held: the object visits the address spaces that map it.
        object.punch(index, part.len(), &ctx).map_err(|e| match e {
            ObjectError::Sealed => Errno::EPERM,
            ObjectError::Io | ObjectError::BeyondEnd => Errno::EOPNOTSUPP,
            ObjectError::NoMemory => Errno::ENOMEM,
        })?;
        at = part.end();
    }
    if hole || at < r.end() { Err(Errno::ENOMEM) } else { Ok(()) }
}

/// The first mapping that has pages in `r` from `at` on, and its pages.
fn next(mm: &Mm, at: addr::Page, r: PageRange) -> Option<(PageRange, Mapping)> {
    let rest = PageRange::new(at, r.end())?;
    let ctx = task::unpinned();
    mm.aspace.find(rest, &ctx).or_else(|| {
        let mut first = None;
        mm.aspace.areas(rest, &ctx, &mut |info| {
            first.get_or_insert_with(|| (info.range, info.mapping.clone()));
        });
        first
    })
}

/// `mincore(2)`.
pub fn mincore(a: &Args) -> SysResult {
    /// Pages answered for at a time.
    const STEP: u64 = 4096;
    let (addr, len, vector) = (a.raw(0), a.raw(1), a.raw(2));
    if addr % PAGE_SIZE != 0 {
        return Err(Errno::EINVAL);
    }
    if addr.checked_add(len).is_none_or(|end| end > USER_END) {
        return Err(Errno::ENOMEM);
    }
    let n = len.div_ceil(PAGE_SIZE);
    if vector.checked_add(n).is_none_or(|end| end > USER_END) {
        return Err(Errno::EFAULT);
    }
    let (mm, ctx) = (mm()?, task::unpinned());
    let mut done = 0;
    while done < n {
        let step = (n - done).min(STEP);
        let r = range(addr + done * PAGE_SIZE, step * PAGE_SIZE).ok_or(Errno::ENOMEM)?;
        let mut answers = alloc::vec::Vec::new();
        answers.try_reserve_exact(step as usize).map_err(|_| Errno::EAGAIN)?;
        answers.resize(step as usize, 0u8);
        let mut upto = r.start();
        let mut objects = alloc::vec::Vec::new();
        let mut short = false;
        mm.aspace.inspect(r, &ctx, &mut |seen| match seen {
            Seen::Mapping(info) => {
                let Some(part) = info.range.intersect(r) else { return };
                if part.start() == upto {
                    upto = part.end();
                }
                if let Some((object, index)) =
                    info.mapping.object_page(part.start().number() - info.range.start().number())
                {
                    short |= objects.try_reserve(1).is_err();
                    if !short {
                        objects.push((part, object.clone(), index));
                    }
                }
            }
            Seen::Page(page, resident) => {
                if let (Some(_), Some(answer)) =
                    (resident.frame, answers.get_mut((page.number() - r.start().number()) as usize))
                {
                    *answer = 1;
                }
            }
        });
        // What a page that was never used would show may be there all the same.
        for (part, object, first) in objects {
            for (page, index) in part.iter().zip(first..) {
                if let Some(answer) = answers.get_mut((page.number() - r.start().number()) as usize) {
                    *answer |= u8::from(object.is_resident(index, &ctx));
                }
            }
        }
        if short {
            return Err(Errno::EAGAIN);
        }
        let served = (upto.number() - r.start().number()) as usize;
        usercopy::copy_out(vector + done, answers.get(..served).unwrap_or_default())?;
        if upto < r.end() {
            return Err(Errno::ENOMEM);
        }
        done += step;
    }
    Ok(0)
}

/// `msync(2)`: shared mappings show their objects themselves, so only the arguments matter.
pub fn msync(a: &Args) -> SysResult {
    let (addr, len, flags) = (a.raw(0), a.raw(1), a.uint(2));
    let both = abi::MS_ASYNC | abi::MS_SYNC;
    if flags & !(both | abi::MS_INVALIDATE) != 0 || addr % PAGE_SIZE != 0 || flags & both == both {
        return Err(Errno::EINVAL);
    }
    let bytes = pages(len).and_then(|n| n.checked_mul(PAGE_SIZE)).unwrap_or(0);
    let end = addr.checked_add(bytes).ok_or(Errno::ENOMEM)?;
    if len == 0 || bytes == 0 {
        return Ok(0);
    }
    let r =
        range(addr, end.min(USER_END).saturating_sub(addr)).filter(|r| !r.is_empty()).ok_or(Errno::ENOMEM)?;
    let (mut upto, mut locked, mut hole) = (r.start(), false, end > USER_END);
    mm()?.aspace.areas(r, &task::unpinned(), &mut |info| {
        hole |= info.range.start() > upto;
        upto = info.range.end();
        locked |= info.mapping.flags.contains(Flags::LOCKED);
    });
    match () {
        () if locked && flags & abi::MS_INVALIDATE != 0 => Err(Errno::EBUSY),
        () if hole || upto < r.end() => Err(Errno::ENOMEM),
        () => Ok(0),
    }
}

//! Memory calls: they check what the program said, in Linux's order, and hand it to the address space.
//!
//! Limits are those of the calling process at the time of the call; the address space checks them together with what
//! the call does.

mod advice;
mod locking;
mod map;
mod moving;
pub mod numa;

use addr::{PAGE_SIZE, Page, PageRange, Prot, USER_END, VirtAddr};
use aspace::{Access, Error, Fault, Flags, Label, Mapping, Placement, RemapTo, STACK_GAP};
use linux_raw_sys::general as abi;

use super::Args;
use crate::{
    errno::{Errno, SysResult},
    limits::RLIMIT_DATA,
    own::Lent,
    planted::{self, Planted},
    process::Mm,
    stats::{self, Counter},
    task::{self, Handle},
    userfault::{self, Outcome},
};

pub use advice::{madvise, mincore, msync, process_madvise};
pub use locking::{mlock, mlock2, mlockall, munlock, munlockall};
pub use map::{mmap, remap_file_pages};
pub use moving::{migrate_pages, move_pages};
pub use numa::{get_mempolicy, mbind, set_mempolicy, set_mempolicy_home_node};

fn mm() -> Result<Lent<'static, Handle>, Errno> {
    task::current().lend_mm().ok_or(Errno::ENOMEM)
}

/// As the man pages say: a hole is ENOMEM; only `mremap` calls it EFAULT.
pub fn errno(e: Error) -> Errno {
    match e {
        Error::NoMemory | Error::NoRoom | Error::NoMapping | Error::Limit => Errno::ENOMEM,
        Error::Exists => Errno::EEXIST,
        Error::Invalid => Errno::EINVAL,
        Error::Denied => Errno::EACCES,
        Error::TooLow | Error::Sealed => Errno::EPERM,
        Error::Overflow => Errno::EOVERFLOW,
        Error::LockLimit => Errno::EAGAIN,
    }
}

/// What a program asked for; bits that mean nothing are the caller's business.
fn prot(bits: u64) -> Prot {
    Prot::from_bits_truncate((bits & 7) as u8)
}

/// Whole pages that `len` bytes take; None on overflow.
fn pages(len: u64) -> Option<u64> {
    Some(len.checked_add(PAGE_SIZE - 1)? / PAGE_SIZE)
}

/// The range of an existing-memory call: `addr` aligned, inside user space.
fn range(addr: u64, len: u64) -> Option<PageRange> {
    let n = pages(len)?;
    let end = addr.checked_add(n.checked_mul(PAGE_SIZE)?)?;
    if end > USER_END {
        return None;
    }
    PageRange::with_len(VirtAddr::new(addr)?.page(), n)
}

/// As [`range`], of whole pages only, and of one at least.
pub(super) fn exact_range(addr: u64, len: u64) -> Option<PageRange> {
    range(addr, len).filter(|range| !range.is_empty() && (addr | len).is_multiple_of(PAGE_SIZE))
}

/// Bring in what `range` maps, as the program itself would: stores to what is private, loads from the rest. Stops at
/// the first page that can't be, among which all that may not be accessed are, and at holes.
fn bring_in(mm: &Mm, range: PageRange) -> Result<(), Fault> {
    let ctx = task::unpinned();
    let mut at = range.start();
    while at < range.end() {
        let rest = PageRange::new(at, range.end()).ok_or(Fault::NoMapping)?;
        let (part, mapping) = mm.aspace.find(rest, &ctx).ok_or(Fault::NoMapping)?;
        let stores = mapping.prot.contains(Prot::WRITE) && !mapping.shared;
        touch(mm, part, if stores { Access::Write } else { Access::Read })?;
        at = part.end();
    }
    Ok(())
}

/// Access each page of `range`. EINTR's place: a process that is to end does not go on.
fn touch(mm: &Mm, range: PageRange, access: Access) -> Result<(), Fault> {
    let (ctx, policy) = (task::unpinned(), task::memory_policy());
    range.iter().try_for_each(|p| {
        if task::current().is_ending() {
            Err(Fault::NoMemory)
        } else {
            loop {
                let result = mm.aspace.fault_by(&policy, p.base(), access, &ctx);
                let again = result == Err(Fault::Watched)
                    && matches!(userfault::wait(mm, p.base(), access, true), Outcome::Again);
                if !again {
                    break result;
                }
            }
        }
    })
}

/// `munmap(2)`.
pub fn munmap(a: &Args) -> SysResult {
    let (addr, len) = (a.raw(0), a.raw(1));
    if !addr.is_multiple_of(PAGE_SIZE) || len == 0 {
        return Err(Errno::EINVAL);
    }
    let r = range(addr, len).ok_or(Errno::EINVAL)?;
    mm()?.aspace.unmap(r, &task::unpinned()).map_err(errno)?;
    stats::count(Counter::Unmaps);
    Ok(0)
}

/// `mprotect(2)`.
pub fn mprotect(a: &Args) -> SysResult {
    protect(a, true)
}

/// `pkey_mprotect(2)`: only key -1, which is none, exists.
pub fn pkey_mprotect(a: &Args) -> SysResult {
    protect(a, a.int(3) == -1)
}

fn protect(a: &Args, key: bool) -> SysResult {
    let (addr, len, bits) = (a.raw(0), a.raw(1), a.raw(2));
    let (down, up) = (u64::from(abi::PROT_GROWSDOWN), u64::from(abi::PROT_GROWSUP));
    if bits & (down | up) == down | up || !addr.is_multiple_of(PAGE_SIZE) {
        return Err(Errno::EINVAL);
    }
    if len == 0 {
        return Ok(0);
    }
    let n = pages(len).ok_or(Errno::ENOMEM)?;
    addr.checked_add(n.checked_mul(PAGE_SIZE).ok_or(Errno::ENOMEM)?).ok_or(Errno::ENOMEM)?;
    let known = u64::from(abi::PROT_READ | abi::PROT_WRITE | abi::PROT_EXEC | abi::PROT_SEM) | down | up;
    if bits & !known != 0 || !key {
        return Err(Errno::EINVAL);
    }
    let mm = mm()?;
    let ctx = task::unpinned();
    // A range that leaves user space ends at a hole.
    let clipped = range(addr, len).or_else(|| range(addr, USER_END.checked_sub(addr)?));
    let r = clipped.filter(|r| !r.is_empty()).ok_or(Errno::ENOMEM)?;
    if bits & up != 0 {
        // Nothing grows up on this machine.
        return Err(if mm.aspace.find(r, &ctx).is_some() { Errno::EINVAL } else { Errno::ENOMEM });
    }
    let limits = task::current().process.limits.of_memory();
    mm.aspace.protect_within(r, prot(bits), bits & down != 0, &limits, &ctx).map_err(errno)?;
    stats::count(Counter::Protects);
    if r.len() == n { Ok(0) } else { Err(Errno::ENOMEM) }
}

/// `pkey_alloc(2)`: there are no keys, which Linux calls EINVAL on processors without them.
pub fn pkey_alloc(_: &Args) -> SysResult {
    Err(Errno::EINVAL)
}

/// `pkey_free(2)`.
pub fn pkey_free(_: &Args) -> SysResult {
    Err(Errno::EINVAL)
}

/// `mremap(2)`.
pub fn mremap(a: &Args) -> SysResult {
    let (addr, old_len, new_len, flags, new_addr) = (a.raw(0), a.raw(1), a.raw(2), a.uint(3), a.raw(4));
    let known = abi::MREMAP_MAYMOVE | abi::MREMAP_FIXED | abi::MREMAP_DONTUNMAP;
    if flags & !known != 0 || !addr.is_multiple_of(PAGE_SIZE) {
        return Err(Errno::EINVAL);
    }
    let has = |flag| flags & flag != 0;
    let (fixed, keep) = (has(abi::MREMAP_FIXED), has(abi::MREMAP_DONTUNMAP));
    let new_pages = pages(new_len).filter(|n| *n > 0 && *n < USER_END / PAGE_SIZE).ok_or(Errno::EINVAL)?;
    let old_pages = pages(old_len).ok_or(Errno::EINVAL)?;
    if fixed || keep {
        let end = new_addr.checked_add(new_pages * PAGE_SIZE).filter(|e| *e <= USER_END);
        let overlaps = new_addr < addr.saturating_add(old_pages.saturating_mul(PAGE_SIZE))
            && end.is_some_and(|end| addr < end);
        if end.is_none()
            || !new_addr.is_multiple_of(PAGE_SIZE)
            || keep && old_pages != new_pages
            || !has(abi::MREMAP_MAYMOVE)
            || overlaps
        {
            return Err(Errno::EINVAL);
        }
    }
    let mm = mm()?;
    let ctx = task::unpinned();
    // A range that leaves user space is not mapped to its end.
    let old = range(addr, old_len).ok_or_else(|| {
        let first = VirtAddr::user(addr).and_then(|va| PageRange::single(va.page()));
        let mapped = first.is_some_and(|page| mm.aspace.find(page, &ctx).is_some());
        if mapped && !fixed && new_pages <= old_pages { Errno::EINVAL } else { Errno::EFAULT }
    })?;
    let target = VirtAddr::user(new_addr).map(VirtAddr::page);
    let to = match (fixed, target) {
        (true, target) => RemapTo::Fixed(target.ok_or(Errno::EINVAL)?),
        (false, Some(target)) if keep && target.number() != 0 => RemapTo::Hint(target),
        _ if has(abi::MREMAP_MAYMOVE) => RemapTo::MayMove,
        _ => RemapTo::InPlace,
    };
    let limits = task::current().process.limits.of_memory();
    let page = mm.aspace.remap_within(old, new_pages, to, keep, &limits, &ctx).map_err(|e| match e {
        Error::NoMapping => Errno::EFAULT,
        Error::Overflow => Errno::EINVAL,
        e => errno(e),
    })?;
    // What was added to locked memory is brought in.
    if new_pages > old.len()
        && let Some((_, mapping)) = PageRange::single(page).and_then(|page| mm.aspace.find(page, &ctx))
        && mapping.flags & (Flags::LOCKED | Flags::ON_FAULT) == Flags::LOCKED
        && let Some(added) =
            page.checked_add(old.len()).and_then(|p| PageRange::with_len(p, new_pages - old.len()))
    {
        let _ = bring_in(&mm, added);
    }
    Ok(page.base().as_u64() as usize)
}

/// `brk(2)`: the new end, or the old one if it can't be moved.
pub fn brk(a: &Args) -> SysResult {
    let want = a.raw(0);
    let mm = mm()?;
    let ctx = task::unpinned();
    let mut brk = mm.brk.write(&ctx);
    let unchanged = Ok(brk.end as usize);
    if want < brk.start || want >= USER_END {
        return unchanged;
    }
    let process = &task::current().process;
    let [.., data, data_end] = *mm.image.lock();
    let data_limit = process.limits.soft(RLIMIT_DATA);
    if (want - brk.start).saturating_add(data_end.saturating_sub(data)) > data_limit {
        return unchanged;
    }
    let old_page = brk.end.div_ceil(PAGE_SIZE);
    let new_page = want.div_ceil(PAGE_SIZE);
    if new_page > old_page {
        let n = new_page - old_page;
        let Some(start) = Page::new(old_page) else { return unchanged };
        // A page stays free above it, and the gap below a stack.
        let above = PageRange::with_len(start, n + 1 + STACK_GAP).unwrap_or_default();
        let mut next = None;
        mm.aspace.areas(above, &ctx, &mut |info| {
            next = next.or(Some((info.range.start().number(), info.mapping.is_stack())));
        });
        if next
            .is_some_and(|(at, stack)| new_page + 1 > if stack { at.saturating_sub(STACK_GAP) } else { at })
        {
            return unchanged;
        }
        let mapping = Mapping { label: Label::Heap, ..Mapping::anonymous(Prot::READ | Prot::WRITE) };
        let placed = mm.aspace.map_within(
            Placement::FixedNoReplace(start),
            n,
            &mapping,
            &process.limits.of_memory(),
            &ctx,
        );
        let Ok((placed, wanted)) = placed else { return unchanged };
        brk.end = want;
        drop(brk);
        if wanted {
            let _ = bring_in(&mm, placed);
        }
        return Ok(want as usize);
    }
    if new_page < old_page {
        let range = Page::new(new_page).zip(Page::new(old_page)).and_then(|(s, e)| PageRange::new(s, e));
        let Some(range) = range else { return unchanged };
        if !planted::is(Planted::HeapKeeps) && mm.aspace.unmap(range, &ctx).is_err() {
            return unchanged;
        }
    }
    brk.end = want;
    Ok(want as usize)
}

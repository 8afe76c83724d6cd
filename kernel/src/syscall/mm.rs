//! Memory calls: they check what the program said, in Linux's order, and hand it to the address space.

use alloc::sync::Arc;

use addr::{PAGE_SIZE, Page, PageRange, Prot, USER_END, VirtAddr};
use aspace::{Access, Advice, Backing, Error, Label, Mapping, Placement, RemapTo};
use linux_raw_sys::general as abi;

use super::Args;
use crate::{
    errno::{Errno, SysResult},
    file,
    process::{Mm, RLIMIT_AS},
    stats::{self, Counter},
    task,
};

fn mm() -> Result<Arc<Mm>, Errno> {
    task::current().mm().ok_or(Errno::ENOMEM)
}

/// As the man pages say: a hole is ENOMEM; only `mremap` calls it EFAULT.
fn errno(e: Error) -> Errno {
    match e {
        Error::NoMemory | Error::NoRoom | Error::NoMapping => Errno::ENOMEM,
        Error::Exists => Errno::EEXIST,
        Error::Invalid => Errno::EINVAL,
        Error::Denied => Errno::EACCES,
        Error::TooLow => Errno::EPERM,
        Error::Overflow => Errno::EOVERFLOW,
    }
}

fn prot(bits: u64) -> Result<Prot, Errno> {
    // PROT_SEM is accepted and means nothing; PROT_GROWSDOWN and PROT_GROWSUP are not done.
    if bits & !u64::from(abi::PROT_READ | abi::PROT_WRITE | abi::PROT_EXEC | abi::PROT_SEM) != 0 {
        return Err(Errno::EINVAL);
    }
    let mut p = Prot::from_bits_truncate((bits & 7) as u8);
    if p.contains(Prot::WRITE) {
        // x86-64 has no write-only pages.
        p |= Prot::READ;
    }
    Ok(p)
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

fn check_address_limit(mm: &Mm, more_pages: u64) -> Result<(), Errno> {
    let limit = task::current().process.rlimit(RLIMIT_AS).map_or(u64::MAX, |r| r.soft);
    if limit == u64::MAX {
        return Ok(());
    }
    let total =
        mm.aspace.usage(&task::unpinned()).mapped_pages.saturating_add(more_pages).saturating_mul(PAGE_SIZE);
    if total > limit { Err(Errno::ENOMEM) } else { Ok(()) }
}

/// `mmap(2)`.
pub fn mmap(a: &Args) -> SysResult {
    let (addr, len, flags, offset) = (a.raw(0), a.raw(1), a.uint(3), a.raw(5));
    if offset % PAGE_SIZE != 0 {
        return Err(Errno::EINVAL);
    }
    let kind = flags & abi::MAP_TYPE;
    let anonymous = flags & abi::MAP_ANONYMOUS != 0;
    let file = if anonymous { None } else { Some(task::current().process.files().get(a.int(4))?) };
    if len == 0 {
        return Err(Errno::EINVAL);
    }
    let n = pages(len).filter(|n| *n <= USER_END / PAGE_SIZE).ok_or(Errno::ENOMEM)?;
    let shared = match kind {
        abi::MAP_PRIVATE => false,
        abi::MAP_SHARED => true,
        abi::MAP_SHARED_VALIDATE => {
            let known = abi::MAP_TYPE
                | abi::MAP_FIXED
                | abi::MAP_ANONYMOUS
                | abi::MAP_NORESERVE
                | abi::MAP_POPULATE
                | abi::MAP_STACK
                | abi::MAP_FIXED_NOREPLACE;
            if flags & !known != 0 {
                return Err(Errno::EOPNOTSUPP);
            }
            true
        }
        _ => return Err(Errno::EINVAL),
    };
    if flags & abi::MAP_HUGETLB != 0 {
        return Err(Errno::ENOMEM);
    }
    let prot = prot(a.raw(2))?;
    let fixed = flags & (abi::MAP_FIXED | abi::MAP_FIXED_NOREPLACE) != 0;
    if fixed && addr % PAGE_SIZE != 0 {
        return Err(Errno::EINVAL);
    }
    let (backing, max_prot) = match &file {
        Some(f) => {
            offset
                .checked_add(n * PAGE_SIZE)
                .filter(|end| *end <= i64::MAX as u64)
                .ok_or(Errno::EOVERFLOW)?;
            let (object, max_prot) = f.mapping(shared, prot)?;
            (Backing::Object { object, page: offset / PAGE_SIZE }, max_prot)
        }
        None if shared => (Backing::Object { object: file::shared_memory(n)?, page: 0 }, Prot::all()),
        None => (Backing::Anonymous, Prot::all()),
    };
    let placement = if fixed {
        if addr.checked_add(n * PAGE_SIZE).is_none_or(|end| end > USER_END) {
            return Err(Errno::ENOMEM);
        }
        let page = VirtAddr::user(addr).ok_or(Errno::ENOMEM)?.page();
        if flags & abi::MAP_FIXED_NOREPLACE != 0 {
            Placement::FixedNoReplace(page)
        } else {
            Placement::Fixed(page)
        }
    } else if flags & abi::MAP_32BIT != 0 {
        Placement::Below32Bit
    } else {
        match VirtAddr::user(addr / PAGE_SIZE * PAGE_SIZE) {
            Some(hint) if hint.as_u64() != 0 => Placement::Hint(hint.page()),
            _ => Placement::Anywhere,
        }
    };
    let mm = mm()?;
    check_address_limit(&mm, n)?;
    let mapping = Mapping { prot, max_prot, backing, shared, label: Label::None };
    let placed = mm.aspace.map(placement, n, mapping, &task::unpinned()).map_err(errno)?;
    stats::count(Counter::Maps);
    if flags & abi::MAP_POPULATE != 0 && flags & abi::MAP_NONBLOCK == 0 {
        populate(&mm, placed, prot);
    }
    Ok(placed.start().base().as_u64() as usize)
}

/// Fault all of `range` in. A failure to populate is not a failure of the call, so this ends at the first.
fn populate(mm: &Mm, range: PageRange, prot: Prot) {
    let access = if prot.contains(Prot::WRITE) { Access::Write } else { Access::Read };
    let _ = range.iter().try_for_each(|p| mm.aspace.fault(p.base(), access, &task::unpinned()));
}

/// `munmap(2)`.
pub fn munmap(a: &Args) -> SysResult {
    let (addr, len) = (a.raw(0), a.raw(1));
    if addr % PAGE_SIZE != 0 || len == 0 {
        return Err(Errno::EINVAL);
    }
    let r = range(addr, len).ok_or(Errno::EINVAL)?;
    mm()?.aspace.unmap(r, &task::unpinned()).map_err(errno)?;
    stats::count(Counter::Unmaps);
    Ok(0)
}

/// `mprotect(2)`.
pub fn mprotect(a: &Args) -> SysResult {
    let (addr, len) = (a.raw(0), a.raw(1));
    if addr % PAGE_SIZE != 0 {
        return Err(Errno::EINVAL);
    }
    if len == 0 {
        return Ok(0);
    }
    let n = pages(len).ok_or(Errno::ENOMEM)?;
    addr.checked_add(n.checked_mul(PAGE_SIZE).ok_or(Errno::ENOMEM)?).ok_or(Errno::ENOMEM)?;
    let prot = prot(a.raw(2))?;
    let r = range(addr, len).ok_or(Errno::ENOMEM)?;
    mm()?.aspace.protect(r, prot, &task::unpinned()).map_err(errno)?;
    stats::count(Counter::Protects);
    Ok(0)
}

/// `mremap(2)`, without MREMAP_DONTUNMAP.
pub fn mremap(a: &Args) -> SysResult {
    let (addr, old_len, new_len, flags, new_addr) = (a.raw(0), a.raw(1), a.raw(2), a.uint(3), a.raw(4));
    let known = abi::MREMAP_MAYMOVE | abi::MREMAP_FIXED | abi::MREMAP_DONTUNMAP;
    if flags & !known != 0 || addr % PAGE_SIZE != 0 {
        return Err(Errno::EINVAL);
    }
    if flags & abi::MREMAP_DONTUNMAP != 0 {
        return Err(Errno::EINVAL);
    }
    if flags & abi::MREMAP_FIXED != 0 && flags & abi::MREMAP_MAYMOVE == 0 {
        return Err(Errno::EINVAL);
    }
    let new_pages = pages(new_len).filter(|n| *n > 0).ok_or(Errno::EINVAL)?;
    if new_pages > USER_END / PAGE_SIZE {
        return Err(if flags & abi::MREMAP_FIXED != 0 { Errno::EINVAL } else { Errno::ENOMEM });
    }
    // An old length of 0 duplicates a shared mapping.
    let old = range(addr, old_len).ok_or(Errno::EINVAL)?;
    let to = if flags & abi::MREMAP_FIXED != 0 {
        let end = new_addr.checked_add(new_pages * PAGE_SIZE).filter(|e| *e <= USER_END);
        if new_addr % PAGE_SIZE != 0 || end.is_none() {
            return Err(Errno::EINVAL);
        }
        let target = VirtAddr::user(new_addr).ok_or(Errno::EINVAL)?.page();
        let moved = PageRange::with_len(target, new_pages).ok_or(Errno::EINVAL)?;
        if moved.intersect(old).is_some() {
            return Err(Errno::EINVAL);
        }
        RemapTo::Fixed(target)
    } else if flags & abi::MREMAP_MAYMOVE != 0 {
        RemapTo::MayMove
    } else {
        RemapTo::InPlace
    };
    let mm = mm()?;
    check_address_limit(&mm, new_pages.saturating_sub(old.len()))?;
    let page = mm.aspace.remap(old, new_pages, to, &task::unpinned()).map_err(|e| match e {
        Error::NoMapping => Errno::EFAULT,
        e => errno(e),
    })?;
    Ok(page.base().as_u64() as usize)
}

/// `madvise(2)`: MADV_DONTNEED is done; advice that changes nothing but speed is accepted; what would change contents
/// or inheritance and is not done is refused with EINVAL, as by a kernel configured without it.
pub fn madvise(a: &Args) -> SysResult {
    let (addr, len, advice) = (a.raw(0), a.raw(1), a.uint(2));
    let advice = match advice {
        abi::MADV_DONTNEED => Advice::DontNeed,
        // What only changes speed changes nothing here, but a hole in the range is an error all the same.
        abi::MADV_WILLNEED | abi::MADV_NORMAL | abi::MADV_RANDOM | abi::MADV_SEQUENTIAL => Advice::WillNeed,
        abi::MADV_COLD | abi::MADV_PAGEOUT | abi::MADV_HUGEPAGE | abi::MADV_NOHUGEPAGE => Advice::WillNeed,
        abi::MADV_DONTDUMP | abi::MADV_DODUMP => Advice::WillNeed,
        _ => return Err(Errno::EINVAL),
    };
    if addr % PAGE_SIZE != 0 {
        return Err(Errno::EINVAL);
    }
    let n = pages(len).ok_or(Errno::EINVAL)?;
    addr.checked_add(n.checked_mul(PAGE_SIZE).ok_or(Errno::EINVAL)?).ok_or(Errno::EINVAL)?;
    if n == 0 {
        return Ok(0);
    }
    let r = range(addr, len).ok_or(Errno::ENOMEM)?;
    mm()?.aspace.advise(r, advice, &task::unpinned()).map_err(errno)?;
    Ok(0)
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
    let old_page = brk.end.div_ceil(PAGE_SIZE);
    let new_page = want.div_ceil(PAGE_SIZE);
    if new_page > old_page {
        let n = new_page - old_page;
        let Some(start) = Page::new(old_page) else { return unchanged };
        let mapping = Mapping {
            prot: Prot::READ | Prot::WRITE,
            max_prot: Prot::all(),
            backing: Backing::Anonymous,
            shared: false,
            label: Label::Heap,
        };
        if check_address_limit(&mm, n).is_err()
            || mm.aspace.map(Placement::FixedNoReplace(start), n, mapping, &ctx).is_err()
        {
            return unchanged;
        }
    } else if new_page < old_page {
        let range = Page::new(new_page).zip(Page::new(old_page)).and_then(|(s, e)| PageRange::new(s, e));
        let Some(range) = range else { return unchanged };
        if mm.aspace.unmap(range, &ctx).is_err() {
            return unchanged;
        }
    }
    brk.end = want;
    Ok(want as usize)
}

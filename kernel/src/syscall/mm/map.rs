//! New mappings: `mmap`, and `remap_file_pages`, which is one.

use alloc::sync::Arc;

use addr::{PAGE_SIZE, Page, PageRange, Prot, USER_END, VirtAddr};
use aspace::{Backing, Flags, LOWEST, Mapping, Object, Placement, Said};
use linux_raw_sys::general as abi;

use super::{bring_in, errno, locking, mm, pages, prot, range};
use crate::{
    errno::{Errno, SysResult},
    file::{self, OpenFile},
    process::Mm,
    stats::{self, Counter},
    syscall::{Args, file::lent},
    task,
};

/// The flags of `mmap` that a shared mapping of a file is checked against (`LEGACY_MAP_MASK`).
const KNOWN: u32 = (HUGE_SIZES[0] | HUGE_SIZES[1]) << abi::MAP_HUGE_SHIFT
    | abi::MAP_SHARED
    | abi::MAP_PRIVATE
    | abi::MAP_FIXED
    | abi::MAP_ANONYMOUS
    | abi::MAP_DENYWRITE
    | abi::MAP_EXECUTABLE
    | abi::MAP_UNINITIALIZED
    | abi::MAP_GROWSDOWN
    | abi::MAP_LOCKED
    | abi::MAP_NORESERVE
    | abi::MAP_POPULATE
    | abi::MAP_NONBLOCK
    | abi::MAP_STACK
    | abi::MAP_HUGETLB
    | abi::MAP_32BIT;

/// A type of mapping, like MAP_PRIVATE: contents that may go when memory is short.
const MAP_DROPPABLE: u32 = 8;
/// Sizes of large pages that x86-64 has, as powers of two.
const HUGE_SIZES: [u32; 2] = [21, 30];

/// What a mapping is to be of.
struct What {
    /// `None`: the file that was named.
    backing: Option<Backing>,
    max_prot: Prot,
    shared: bool,
    flags: Flags,
}

/// What the program asked for, beside the place.
struct Wanted {
    pages: u64,
    prot: Prot,
    flags: u32,
    /// In bytes.
    offset: u64,
}

impl Wanted {
    fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }
    /// What every mapping is told.
    fn told(&self) -> Flags {
        let mut told = Flags::empty();
        told.set(Flags::GROWS_DOWN, self.has(abi::MAP_GROWSDOWN));
        told.set(Flags::LOCKED, self.has(abi::MAP_LOCKED));
        told.set(Flags::NO_RESERVE, self.has(abi::MAP_NORESERVE));
        told
    }
    /// EOVERFLOW unless all of it could be in a file. `regular`: whose offsets are signed.
    fn check_offset(&self, regular: bool) -> Result<(), Errno> {
        let most = if regular { i64::MAX as u64 } else { u64::MAX };
        let end = self.offset.checked_add(self.pages * PAGE_SIZE).filter(|&end| end <= most);
        end.map(|_| ()).ok_or(Errno::EOVERFLOW)
    }
    /// Whether a mapping of a file is shared.
    fn file_type(&self) -> Result<bool, Errno> {
        match self.flags & abi::MAP_TYPE {
            abi::MAP_PRIVATE => Ok(false),
            abi::MAP_SHARED => Ok(true),
            abi::MAP_SHARED_VALIDATE if self.flags & !KNOWN != 0 => Err(Errno::EOPNOTSUPP),
            abi::MAP_SHARED_VALIDATE => Ok(true),
            _ => Err(Errno::EINVAL),
        }
    }
    fn of_file(&self, file: &OpenFile) -> Result<What, Errno> {
        self.check_offset(file.is_regular() || file.is_socket())?;
        let shared = self.file_type()?;
        let mapping = file.mapping(shared, self.prot);
        // A seal, and what a socket says, are looked at later than this.
        let mappable = match mapping {
            Ok(_) => true,
            Err(Errno::EPERM) => file.is_regular(),
            Err(Errno::ENODEV) => file.is_socket(),
            Err(_) => false,
        };
        if self.has(abi::MAP_GROWSDOWN) && mappable {
            return Err(Errno::EINVAL);
        }
        let (object, max_prot) = mapping?;
        let backing = object.map(|object| Backing::Object { object, page: self.offset / PAGE_SIZE });
        let (_, writes) = file::access(file.flags());
        let mut flags = self.told();
        flags.set(Flags::READ_ONLY_FILE, shared && !writes);
        Ok(What { backing, max_prot, shared, flags })
    }
    /// Pages of `size` bytes: none are set aside for them.
    fn of_large_pages(&self, size: u64) -> Result<What, Errno> {
        self.check_offset(true)?;
        self.file_type()?;
        let fits = !self.has(abi::MAP_GROWSDOWN) && self.offset.is_multiple_of(size);
        Err(if fits { Errno::ENOMEM } else { Errno::EINVAL })
    }
    fn of_memory(&self) -> Result<What, Errno> {
        let mut flags = self.told();
        let shared = match self.flags & abi::MAP_TYPE {
            abi::MAP_PRIVATE => false,
            abi::MAP_SHARED if self.has(abi::MAP_GROWSDOWN) => return Err(Errno::EINVAL),
            abi::MAP_SHARED => true,
            MAP_DROPPABLE if self.has(abi::MAP_GROWSDOWN | abi::MAP_LOCKED) => return Err(Errno::EINVAL),
            MAP_DROPPABLE => {
                flags |= Flags::DROPPABLE | Flags::NO_RESERVE | Flags::WIPE_ON_FORK | Flags::DONT_DUMP;
                false
            }
            _ => return Err(Errno::EINVAL),
        };
        let backing = match shared {
            true => Backing::Object { object: file::shared_memory(self.pages)?, page: 0 },
            false => Backing::Anonymous,
        };
        Ok(What { backing: Some(backing), max_prot: Prot::all(), shared, flags })
    }
}

/// `mmap(2)`.
pub fn mmap(a: &Args) -> SysResult {
    let (addr, len, flags, offset) = (a.raw(0), a.raw(1), a.uint(3), a.raw(5));
    if offset % PAGE_SIZE != 0 {
        return Err(Errno::EINVAL);
    }
    let has = |flag| flags & flag != 0;
    let file = match has(abi::MAP_ANONYMOUS) {
        true => None,
        false => Some(lent(a.int(4))?),
    };
    if file.as_ref().is_some_and(|file| file.is_path()) {
        return Err(Errno::EBADF);
    }
    let (large, len) = match has(abi::MAP_HUGETLB) {
        true if file.is_some() => return Err(Errno::EINVAL),
        true => {
            let size = large_page(flags)?;
            // Modulo 2^64, as Linux rounds.
            (Some(size), len.wrapping_add(size - 1) & !(size - 1))
        }
        false => (None, len),
    };
    if len == 0 {
        return Err(Errno::EINVAL);
    }
    let n = pages(len).filter(|n| *n <= USER_END / PAGE_SIZE).ok_or(Errno::ENOMEM)?;
    let wanted = Wanted { pages: n, prot: prot(a.raw(2)), flags, offset };
    if large.is_some_and(|size| has(abi::MAP_FIXED | abi::MAP_FIXED_NOREPLACE) && !addr.is_multiple_of(size))
    {
        return Err(Errno::EINVAL);
    }
    let placement = placement(addr, n, flags)?;
    let mm = mm()?;
    let what = match (&file, large) {
        (Some(file), _) => wanted.of_file(file),
        (None, Some(size)) => wanted.of_large_pages(size),
        (None, None) => wanted.of_memory(),
    };
    // What is wrong with the place, or the limit, comes first.
    let what = what.map_err(|e| objection(&mm, placement, &wanted).unwrap_or(e))?;
    if has(abi::MAP_LOCKED) {
        locking::may_lock()?;
    }
    let limits = task::current().process.limits.of_memory();
    let What { backing, max_prot, shared, flags: told } = what;
    let named = backing.is_none();
    let backing = backing.unwrap_or(Backing::Anonymous);
    let mapping = Mapping { max_prot, shared, flags: told, ..Mapping::new(wanted.prot, backing) };
    let map = |mapping: &Mapping| mm.aspace.map_within(placement, n, mapping, &limits, &task::unpinned());
    let placed = match &file {
        // The open file keeps what it shows.
        Some(file) if named => map(&mapping.of(&file.entry, wanted.offset / PAGE_SIZE)),
        _ => map(&mapping),
    };
    let (placed, locked) = placed.map_err(errno)?;
    stats::count(Counter::Maps);
    if locked || has(abi::MAP_POPULATE) && !has(abi::MAP_NONBLOCK) {
        // A failure to populate is not a failure of the call.
        let _ = bring_in(&mm, placed);
    }
    Ok(placed.start().base().as_u64() as usize)
}

/// The size in bytes of the large pages that `flags` ask for. EINVAL if there are none of that size.
fn large_page(flags: u32) -> Result<u64, Errno> {
    let size = match flags >> abi::MAP_HUGE_SHIFT & abi::MAP_HUGE_MASK {
        0 => HUGE_SIZES[0],
        size => size,
    };
    if HUGE_SIZES.contains(&size) { Ok(1 << size) } else { Err(Errno::EINVAL) }
}

/// What Linux objects to before it looks at what is to be mapped.
fn objection(mm: &Mm, placement: Placement, wanted: &Wanted) -> Option<Errno> {
    let ctx = task::unpinned();
    if let Placement::Fixed(start) | Placement::FixedNoReplace(start) = placement {
        if start.number() < LOWEST {
            return Some(Errno::EPERM);
        }
        let mut taken = false;
        if let Some(place) = PageRange::with_len(start, wanted.pages) {
            mm.aspace.areas(place, &ctx, &mut |_| taken = true);
        }
        if taken && matches!(placement, Placement::FixedNoReplace(_)) {
            return Some(Errno::EEXIST);
        }
    }
    if !wanted.has(abi::MAP_LOCKED) {
        return None;
    }
    let locked = mm.aspace.usage(&ctx).totals.locked.saturating_add(wanted.pages);
    let over = locked > task::current().process.limits.of_memory().locked;
    locking::may_lock().err().or(over.then_some(Errno::EAGAIN))
}

fn placement(addr: u64, n: u64, flags: u32) -> Result<Placement, Errno> {
    if flags & (abi::MAP_FIXED | abi::MAP_FIXED_NOREPLACE) != 0 {
        if addr.checked_add(n * PAGE_SIZE).is_none_or(|end| end > USER_END) {
            return Err(Errno::ENOMEM);
        }
        let page = VirtAddr::user(addr).ok_or(Errno::ENOMEM)?.page();
        if !addr.is_multiple_of(PAGE_SIZE) {
            return Err(Errno::EINVAL);
        }
        let replaces = flags & abi::MAP_FIXED_NOREPLACE == 0;
        return Ok(if replaces { Placement::Fixed(page) } else { Placement::FixedNoReplace(page) });
    }
    let hint =
        VirtAddr::user(addr / PAGE_SIZE * PAGE_SIZE).filter(|hint| hint.as_u64() != 0).map(VirtAddr::page);
    Ok(match (flags & abi::MAP_32BIT != 0, hint) {
        (false, None) => Placement::Anywhere,
        (false, Some(page)) => Placement::Hint(page),
        (true, None) => Placement::Below32Bit,
        (true, Some(page)) => Placement::HintBelow32Bit(page),
    })
}

/// `remap_file_pages(2)`, as Linux emulates it: the same object once more, from another page on.
pub fn remap_file_pages(a: &Args) -> SysResult {
    let (addr, len, bits, first, flags) = (a.raw(0), a.raw(1), a.raw(2), a.raw(3), a.uint(4));
    let r = range(addr / PAGE_SIZE * PAGE_SIZE, len / PAGE_SIZE * PAGE_SIZE).filter(|r| !r.is_empty());
    let r = r.filter(|_| bits == 0).ok_or(Errno::EINVAL)?;
    first.checked_add(r.len()).ok_or(Errno::EINVAL)?;
    let (mm, ctx) = (mm()?, task::unpinned());
    let (_, mapping) = mm.aspace.find(r, &ctx).ok_or(Errno::EINVAL)?;
    let Backing::Object { object, .. } = &mapping.backing else { return Err(Errno::EINVAL) };
    if !mapping.shared || mapping.flags.contains(Flags::READ_ONLY_FILE) || !all_of(&mm, r, object, &mapping) {
        return Err(Errno::EINVAL);
    }
    if first.checked_add(r.len()).is_none_or(|end| end > i64::MAX as u64 / PAGE_SIZE) {
        return Err(Errno::EOVERFLOW);
    }
    let mut max_prot = mapping.max_prot;
    if !object.is_writable() {
        if mapping.prot.contains(Prot::WRITE) {
            return Err(Errno::EPERM);
        }
        max_prot.remove(Prot::WRITE);
    }
    let backing = Backing::Object { object: object.clone(), page: first };
    let limits = task::current().process.limits.of_memory();
    let mapping = Mapping { backing, max_prot, policy: Said::default(), ..mapping };
    let at = Placement::Fixed(r.start());
    let (placed, _) = mm.aspace.map_within(at, r.len(), &mapping, &limits, &ctx).map_err(errno)?;
    if flags & abi::MAP_NONBLOCK == 0 {
        let _ = bring_in(&mm, placed);
    }
    Ok(0)
}

/// Whether all of `r` is mapped like `first`, whatever pages of its object are shown.
fn all_of(mm: &Mm, r: PageRange, object: &Arc<dyn Object>, first: &Mapping) -> bool {
    let mut upto: Page = r.start();
    mm.aspace.areas(r, &task::unpinned(), &mut |info| {
        let m = info.mapping;
        let same = match &m.backing {
            Backing::Object { object: other, .. } => {
                core::ptr::addr_eq(Arc::as_ptr(object), Arc::as_ptr(other))
            }
            Backing::Anonymous => false,
        };
        if same
            && info.range.start() <= upto
            && (m.prot, m.max_prot, m.flags, m.shared)
                == (first.prot, first.max_prot, first.flags, first.shared)
        {
            upto = info.range.end();
        }
    });
    upto >= r.end()
}

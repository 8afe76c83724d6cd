//! /proc/N/pagemap: a word for each page, and the PAGEMAP_SCAN call, which finds pages by what they are
//! (Documentation/admin-guide/mm/pagemap.rst).
//!
//! What a scan finds is put into a buffer while the address space is looked at, and goes to the program between two looks;
//! each page is shown as it is at one instant. A look that fills the buffer goes on to its end for nothing, so looks begin
//! small, and double as long as the buffer has room.
//!
//! Categories are Linux's, with these remarks:
//! * SWAPPED: guards, and pages whose contents are lost, which Linux keeps in the form of swapped pages.
//! * WRITTEN: whatever has a frame or is SWAPPED, if no userfaultfd protects it. In a mapping that one may protect so that nobody
//!   waits (WPALLOWED), every page that isn't protected; of another, an empty page never has it. On Linux an empty page that
//!   isn't protected has it where there is a page table around it.
//! * PFNZERO, HUGE, SOFT_DIRTY: no page. Each has a frame of its own, of 4 KiB, and writes are not tracked.
//!
//! Where the buffer was full in between, Linux 6.18 says that the scan has ended there; here it says where it has.

use alloc::{sync::Arc, vec::Vec};

use addr::{PAGE_SIZE, Page, PageRange, USER_END, USER_END_PAGE};
use aspace::{Error, Label, Mapping, Modes, Resident, Seen, Watched};
use owned::Use;

use super::{
    Result,
    io::{Sink, moved},
    proc_users,
};
use crate::{
    errno::{Errno, SysResult},
    process::Mm,
    task::{self, CAP_SYS_ADMIN},
    upcall, usercopy,
};

const PRESENT: u64 = 1 << 63;
const SWAP: u64 = 1 << 62;
const FILE: u64 = 1 << 61;
const GUARD: u64 = 1 << 58;
const PROTECTED: u64 = 1 << 57;
const EXCLUSIVE: u64 = 1 << 56;

/// An open /proc/N/pagemap.
pub struct PageMap {
    /// None if the process had no memory.
    mm: Option<Arc<Mm>>,
    /// Whether who opened it may know frames.
    tells_frames: bool,
}

impl PageMap {
    /// Of `mm`, opened by the calling thread.
    pub fn new(mm: Option<Arc<Mm>>) -> Self {
        Self { mm, tells_frames: task::is_capable(CAP_SYS_ADMIN) }
    }

    /// The word of a page.
    fn word(&self, page: &Resident, users: u64) -> u64 {
        let (own, alone) = (page.usage == Use::Anonymous, users == 1);
        let Some(frame) = page.frame else { return if page.poisoned { SWAP } else { GUARD | SWAP } };
        let number = if self.tells_frames { frame.number() } else { 0 };
        let protected = if page.protected { PROTECTED } else { 0 };
        PRESENT | protected | number | if own { 0 } else { FILE } | if alone { EXCLUSIVE } else { 0 }
    }

    /// Read from byte `offset` on: a word for each page. EINVAL unless whole words are asked for.
    pub fn read(&self, offset: u64, sink: &mut dyn Sink) -> Result<usize> {
        /// Pages answered for at a time.
        const STEP: usize = 512;
        let room = sink.room();
        if !offset.is_multiple_of(8) || !room.is_multiple_of(8) {
            return Err(Errno::EINVAL);
        }
        let Some(mm) = &self.mm else { return Ok(0) };
        let mut done = 0;
        while done < room {
            let first = (offset + done as u64) / 8;
            let left = USER_END_PAGE.number().saturating_sub(first);
            let n = ((room - done) / 8).min(STEP).min(usize::try_from(left).unwrap_or(usize::MAX));
            let range = Page::new(first).and_then(|first| PageRange::with_len(first, n as u64));
            let Some(range) = range.filter(|_| n > 0) else { break };
            let mut words = [0u64; STEP];
            let pieces = proc_users::mappings(mm, range, &mut |info| info.mapping.label == Label::Vvar)?;
            proc_users::pages(mm, range, &pieces, &mut |piece, page, resident, users| {
                let hidden = pieces.get(piece).is_some_and(|piece| piece.head);
                if let Some(word) = words.get_mut((page.number() - first) as usize).filter(|_| !hidden) {
                    *word = self.word(resident, users);
                }
            })?;
            let mut bytes = [0u8; STEP * 8];
            for (to, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
                *to = word.to_le_bytes();
            }
            let wanted = bytes.get(..8 * n).unwrap_or_default();
            let put = sink.put(wanted);
            done += put;
            if put < wanted.len() {
                return moved(done, 1, Errno::EFAULT);
            }
        }
        Ok(done)
    }

    /// `ioctl(2)`.
    pub fn ioctl(&self, request: u32, arg: u64) -> SysResult {
        match request {
            PAGEMAP_SCAN => self.scan(arg),
            _ => Err(Errno::EINVAL),
        }
    }

    /// PAGEMAP_SCAN: how many regions the program has got.
    fn scan(&self, arg: u64) -> SysResult {
        let mut scan = Scan::new(&usercopy::read(arg)?)?;
        let result = self.run(&mut scan);
        let end = scan.stopped.unwrap_or(scan.end) * PAGE_SIZE;
        scan.store(|| usercopy::write(arg + 8 * WALK_END, &end))?;
        result
    }

    fn run(&self, scan: &mut Scan) -> SysResult {
        /// Pages of the first look.
        const FIRST: u64 = 512;
        let (mut regions, mut at, mut step) = (0, scan.start, FIRST);
        while let Some(mm) = self.mm.as_ref().filter(|_| at < scan.end) {
            if task::current().is_ending() {
                return Err(Errno::EINTR);
            }
            let until = at.saturating_add(step).min(scan.end);
            let range = Page::new(at).and_then(|first| PageRange::with_len(first, until - at));
            let range = range.ok_or(Errno::EFAULT)?;
            if scan.protects() || is_allowed_in(mm, range) {
                scan.look_and_protect(mm, range)?
            } else {
                scan.look(mm, range)
            }
            (at, step) = (until, step * 2);
            if scan.stopped.is_some() || scan.refused.is_some() {
                regions += scan.flush()?;
                scan.refused.map_or(Ok(()), Err)?;
                if scan.room == 0 || scan.found == scan.most {
                    return Ok(regions);
                }
                // The buffer was full: it goes on there.
                (at, step) = (scan.stopped.take().unwrap_or(at), FIRST);
            }
        }
        Ok(regions + scan.flush()?)
    }
}

const PAGEMAP_SCAN: u32 = 0xc060_6610;
/// Words of `struct pm_scan_arg`, and which of them is written back.
const WORDS: usize = 12;
const WALK_END: u64 = 4;

const WP_MATCHING: u64 = 1 << 0;
const CHECK_WPASYNC: u64 = 1 << 1;

const IS_WPALLOWED: u64 = 1 << 0;
const IS_WRITTEN: u64 = 1 << 1;
const IS_FILE: u64 = 1 << 2;
const IS_PRESENT: u64 = 1 << 3;
const IS_SWAPPED: u64 = 1 << 4;
const IS_GUARD: u64 = 1 << 8;
/// PFNZERO, HUGE and SOFT_DIRTY, among them, are known and no page's.
const CATEGORIES: u64 = (1 << 9) - 1;

/// A scan under way. Pages are numbers.
struct Scan {
    flags: u64,
    start: u64,
    end: u64,
    inverted: u64,
    mask: u64,
    any_of: u64,
    returned: u64,
    /// What all pages of the mapping are that is looked into.
    allowed: u64,
    /// Pages that may be found.
    most: u64,
    found: u64,
    /// Where regions go in the program's memory, and how many more.
    to: u64,
    room: u64,
    /// Regions that are to go there: first byte, end, categories.
    regions: Vec<[u64; 3]>,
    /// How many may be in it at once.
    capacity: usize,
    /// The page before which there was no more room, or which would have been one too many.
    stopped: Option<u64>,
    refused: Option<Errno>,
}

impl Scan {
    /// EINVAL, EFAULT, ENOMEM.
    fn new(arg: &[u64; WORDS]) -> Result<Self> {
        /// Regions between two copies.
        const BUFFER: u64 = 512;
        let &[size, flags, start, end, _, vec, vec_len, most, inverted, mask, any_of, returned] = arg;
        if size != 8 * WORDS as u64
            || flags & !(WP_MATCHING | CHECK_WPASYNC) != 0
            || (inverted | mask | any_of | returned) & !CATEGORIES != 0
            || !start.is_multiple_of(PAGE_SIZE)
        {
            return Err(Errno::EINVAL);
        }
        let is_user = |at: u64, len: u64| at.checked_add(len).is_some_and(|end| end <= USER_END);
        if !is_user(start, end.wrapping_sub(start)) {
            return Err(Errno::EFAULT);
        }
        if vec == 0 && vec_len != 0 {
            return Err(Errno::EINVAL);
        }
        if vec != 0 && !is_user(vec, vec_len.saturating_mul(24)) {
            return Err(Errno::EFAULT);
        }
        let capacity = vec_len.min(BUFFER) as usize;
        let mut regions = Vec::new();
        regions.try_reserve_exact(capacity).map_err(|_| Errno::ENOMEM)?;
        Ok(Self {
            flags,
            start: start / PAGE_SIZE,
            end: end.div_ceil(PAGE_SIZE),
            inverted,
            mask,
            any_of,
            returned,
            allowed: 0,
            most: if most == 0 { u64::MAX } else { most },
            found: 0,
            to: vec,
            room: vec_len,
            regions,
            capacity,
            stopped: None,
            refused: None,
        })
    }

    /// Take what is found in `range`, where no page may be protected.
    fn look(&mut self, mm: &Mm, range: PageRange) {
        // What of the mapping that was seen last was not told yet.
        let mut rest = 0..0;
        mm.aspace.inspect(range, &task::unpinned(), &mut |seen| match seen {
            Seen::Mapping(info) => {
                self.take(rest.start, rest.end, 0);
                let wanted = self.wants(info.mapping);
                rest = if wanted { info.range.start().number()..info.range.end().number() } else { 0..0 };
            }
            Seen::Page(page, resident) if rest.contains(&page.number()) => {
                let page = page.number();
                self.take(rest.start, page, 0);
                self.take(page, page + 1, categories(&resident));
                rest.start = page + 1;
            }
            Seen::Page(..) => {}
        });
        self.take(rest.start, rest.end, 0);
    }

    /// Whether what is found is to be protected.
    fn protects(&self) -> bool {
        self.flags & WP_MATCHING != 0
    }

    /// Take what is found in `range`, and protect it if that is asked for.
    fn look_and_protect(&mut self, mm: &Mm, range: PageRange) -> Result<()> {
        let Some(watched) = mm.aspace.watched() else {
            self.look(mm, range);
            return Ok(());
        };
        for piece in proc_users::mappings(mm, range, &mut |info| info.mapping.clone())? {
            let wanted = self.wants(&piece.head);
            if self.stopped.is_some() || self.refused.is_some() {
                break;
            }
            if let Some(part) = piece.range.intersect(range).filter(|_| wanted) {
                self.protect_part(watched, part)?;
            }
        }
        Ok(())
    }

    /// The same for pages of one mapping.
    fn protect_part(&mut self, watched: &dyn Watched, part: PageRange) -> Result<()> {
        let ctx = task::unpinned();
        let failed = |error| if error == Error::NoMemory { Errno::ENOMEM } else { Errno::EFAULT };
        if self.to == 0 && self.protects() {
            // Nothing is told, and so, as on Linux, nothing is asked for either.
            return match watched.protect_pages(part, true, &ctx) {
                // It is watched no more.
                Ok(()) | Err(Error::NoMapping) => Ok(()),
                Err(error) => Err(failed(error)),
            };
        }
        let (mut rest, end) = (part.start().number(), part.end().number());
        let mut one = |pages: PageRange, resident: Option<Resident>, protected: bool| {
            let (first, end) = (pages.start().number(), pages.end().number());
            self.take(rest, first, self.allowed);
            rest = end;
            let empty = if protected || self.allowed == 0 { 0 } else { IS_WRITTEN };
            let (all, before) = (self.allowed | resident.as_ref().map_or(empty, categories), self.found);
            self.take(first, end, all);
            // Not those of which there was no room for some: they are told of again.
            self.protects() && all & IS_WRITTEN != 0 && self.found - before == end - first
        };
        watched.scan(part, &mut one, &ctx).map_err(failed)?;
        self.take(rest, end, self.allowed);
        Ok(())
    }

    /// Whether a mapping is looked into.
    fn wants(&mut self, mapping: &Mapping) -> bool {
        let allows = is_allowed(mapping);
        if !allows && self.stopped.is_none() && self.flags & CHECK_WPASYNC != 0 {
            self.refused = Some(Errno::EPERM);
        }
        self.allowed = if allows { IS_WPALLOWED } else { 0 };
        let required = self.mask & IS_WPALLOWED;
        (allows || !self.protects())
            && mapping.label != Label::Vvar
            && (self.allowed ^ self.inverted) & required == required
    }

    /// The pages `first..end` are of these categories.
    fn take(&mut self, first: u64, end: u64, categories: u64) {
        let said = categories ^ self.inverted;
        let fits = said & self.mask == self.mask && (self.any_of == 0 || said & self.any_of != 0);
        if first >= end || !fits || self.capacity == 0 || self.stopped.is_some() || self.refused.is_some() {
            return;
        }
        let until = first + (end - first).min(self.most - self.found);
        if until > first {
            let region = [first * PAGE_SIZE, until * PAGE_SIZE, categories & self.returned];
            let has_room = self.regions.len() < self.capacity;
            match self.regions.last_mut() {
                Some(last) if last[1] == region[0] && last[2] == region[2] => last[1] = region[1],
                _ if has_room => self.regions.push(region),
                _ => {
                    self.stopped = Some(first);
                    return;
                }
            }
        }
        self.found += until - first;
        if until < end {
            self.stopped = Some(until);
        }
    }

    /// Make a store. One that tells of pages that were protected is told once.
    fn store(&self, store: impl FnOnce() -> Result<()>) -> Result<()> {
        if self.protects() { upcall::owed(store) } else { store() }
    }

    /// Hand over what was found; how many regions. EFAULT.
    fn flush(&mut self) -> Result<usize> {
        let n = self.regions.len();
        self.store(|| usercopy::write_all(self.to, &self.regions))?;
        self.to += 24 * n as u64;
        self.room -= n as u64;
        self.capacity = self.capacity.min(usize::try_from(self.room).unwrap_or(usize::MAX));
        self.regions.clear();
        Ok(n)
    }
}

/// Whether pages of `mapping` may be protected so that nobody waits.
fn is_allowed(mapping: &Mapping) -> bool {
    let modes = Modes::PROTECT | Modes::ASYNC | Modes::UNPOPULATED;
    mapping.watch.as_ref().is_some_and(|watch| watch.modes.contains(modes))
}

/// Whether there is such a mapping in `range`.
fn is_allowed_in(mm: &Mm, range: PageRange) -> bool {
    let mut any = false;
    mm.aspace.areas(range, &task::unpinned(), &mut |info| any |= is_allowed(info.mapping));
    any
}

/// What a page is that has a frame or a marker.
fn categories(page: &Resident) -> u64 {
    let written = if page.protected { 0 } else { IS_WRITTEN };
    match page.frame {
        None => IS_SWAPPED | written | if page.poisoned { 0 } else { IS_GUARD },
        Some(_) if page.usage == Use::Anonymous => IS_PRESENT | written,
        Some(_) => IS_PRESENT | written | IS_FILE,
    }
}

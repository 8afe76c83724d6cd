//! The bytes of a regular file: whole pages in frames, found by their index.
//!
//! A page that is absent reads as zeros (a hole), or as its part of the file's *image*, a stretch of the boot image
//! that the file was unpacked from; so a file of the boot image costs frames only for the pages that are written or
//! mapped. A page that is present is a share of a frame. `read` and `write` take further shares of the
//! same frame, and mappings have it lent ([`Object::lend`](aspace::Object::lend)), so all see one copy, and a frame lives until the last of them
//! lets go: a truncated or removed file never pulls memory away from under a mapping or a copy in progress.
//!
//! Two sleeping locks protect a store:
//!
//! * `writer` makes the calls that change the contents or the size exclude each other. Bytes are copied from the
//!   program's memory while it is held, so page faults nest inside it, and nothing that a page fault needs may take it.
//! * `pages` protects the index of pages, for a look-up at a time. It is the innermost: a page fault on a mapping takes
//!   it inside the address space's own locks. User memory is never touched while it is held; copies work on a share
//!   taken under it. Pages of one file are looked up by many CPUs, so readers are [`Biased`]: they write no line that others write,
//!   and don't sleep; who is in a section of RCU's tries, and waits for nobody ([`Store::frame_at_hand`]); calls that look at many pages at once come through the lock itself.
//!
//! Files may fill at most half of the memory, as on Linux's tmpfs; then writes fail with ENOSPC while programs still
//! have memory to run in. Shared anonymous memory and `memfd` files are the programs' own and not limited so, nor are the pages of the boot image.
//!
//! Pages that are cut off, or punched out, go from every mapping before the call returns ([`Mappers`]): a translation to
//! them is gone when the page is given back. The visit is made under `writer` and without `pages`, as it takes the
//! locks of address spaces.
//!
//! Seals (`F_ADD_SEALS`) change under `writer`, so a call that changes the file sees them as they were when it began.
//!
//! Invariant: every byte after the end of the file, in pages that are present, is zero, except what a mapping writes
//! into the rest of the last page; growing the file clears that.

use alloc::{collections::BTreeMap, vec::Vec};
use core::{
    ops::{Deref, DerefMut},
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use addr::{PAGE_BYTES, PAGE_SIZE};
use aspace::{Mappers, ObjectError, Policy};
use linux_raw_sys::general as c;
use owned::OwnedFrame;
use percpu::{Pinned, Unpinned};
use sync::{Biased, Readers, RwLock, WriteGuard};

use super::{
    READERS, Result,
    io::{Sink, Source, moved},
    page::{PageShare, ZEROS},
};
use crate::{errno::Errno, memory, task};

/// The greatest size of a file, in bytes.
pub const MAX_SIZE: u64 = i64::MAX as u64;

/// The seals that forbid writing.
const WRITING: u32 = c::F_SEAL_WRITE | c::F_SEAL_FUTURE_WRITE;

/// How many pages limited files hold in frames, and how many they may.
static USED: AtomicU64 = AtomicU64::new(0);
static LIMIT: AtomicU64 = AtomicU64::new(u64::MAX);

/// Set the limit, once the memory is known.
pub fn set_limit() {
    // Relaxed: at boot; and nothing else depends on the value.
    LIMIT.store(memory::frames().stats().total / 2, Ordering::Relaxed);
}

/// How many pages files may hold in all, and how many more now.
pub fn capacity() -> (u64, u64) {
    // Relaxed: statistics.
    let (used, limit) = (USED.load(Ordering::Relaxed), LIMIT.load(Ordering::Relaxed));
    (limit, limit.saturating_sub(used))
}

/// One page's share of the limit; dropping it gives the share back.
struct Quota;

impl Quota {
    fn take() -> Option<Self> {
        // Relaxed, here and below: a count that orders nothing. A late answer lets a few pages more or fewer in.
        if USED.fetch_add(1, Ordering::Relaxed) < LIMIT.load(Ordering::Relaxed) {
            return Some(Self);
        }
        USED.fetch_sub(1, Ordering::Relaxed);
        None
    }
}

impl Drop for Quota {
    fn drop(&mut self) {
        USED.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A page in a store.
struct Present {
    page: PageShare,
    _quota: Option<Quota>,
}

/// Where a write begins.
#[derive(Clone, Copy)]
pub enum WriteAt {
    /// At this byte.
    Offset(u64),
    /// At the end of the file, whatever that is when the write begins.
    End,
}

/// What is at a page's index.
enum Held {
    Page(PageShare),
    /// The page's part of the boot image; the rest of the page is zero.
    Image(&'static [u8]),
    Hole,
}

struct Pages {
    present: BTreeMap<u64, Present>,
    /// The file's first bytes, for pages that are not present.
    image: &'static [u8],
    /// How many of the pages that are present are the image's, so that all can be counted at once.
    covered: u64,
    /// Whether its pages count towards the limit.
    limited: bool,
}

impl Pages {
    fn image_of(&self, index: u64) -> &'static [u8] {
        let from = usize::try_from(index.saturating_mul(PAGE_SIZE)).unwrap_or(usize::MAX);
        let rest = self.image.get(from..).unwrap_or(&[]);
        rest.get(..PAGE_BYTES).unwrap_or(rest)
    }

    fn held(&self, index: u64) -> Held {
        match (self.present.get(&index), self.image_of(index)) {
            (Some(present), _) => Held::Page(present.page.share()),
            (None, []) => Held::Hole,
            (None, image) => Held::Image(image),
        }
    }

    /// The page at `index`, brought into a frame where `policy` wants it if it is in none yet.
    fn materialise(&mut self, index: u64, policy: &Policy) -> Option<&PageShare> {
        // Looked for twice, as what is found here can't be answered with if the other way changes the index.
        if self.present.contains_key(&index) {
            return self.present.get(&index).map(|present| &present.page);
        }
        let mut image = self.image_of(index);
        // The boot image's own pages are no more than it is, and running its programs takes frames for them.
        let imaged = !image.is_empty();
        let quota = if self.limited && !imaged { Some(Quota::take()?) } else { None };
        let page = PageShare::zeroed(policy.place(index))?;
        page.write(0, image.len(), &mut image);
        self.covered += u64::from(imaged);
        Some(&self.present.entry(index).or_insert(Present { page, _quota: quota }).page)
    }

    /// Pages with bytes in memory: present or in the image.
    fn count(&self) -> u64 {
        let image = (self.image.len() as u64).div_ceil(PAGE_SIZE);
        image + self.present.len() as u64 - self.covered
    }
}

/// Pages that are being changed.
struct Changing<'a> {
    pages: WriteGuard<'a, Pages>,
    count: &'a AtomicU64,
}

impl Deref for Changing<'_> {
    type Target = Pages;
    fn deref(&self) -> &Pages {
        &self.pages
    }
}

impl DerefMut for Changing<'_> {
    fn deref_mut(&mut self) -> &mut Pages {
        &mut self.pages
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        let now = self.pages.count();
        // Relaxed: in the lock. Written only if it changes, as who asks for it may be many.
        if self.count.load(Ordering::Relaxed) != now {
            self.count.store(now, Ordering::Relaxed);
        }
    }
}

/// The contents of one regular file.
pub struct Store {
    size: AtomicU64,
    pages: Biased<Pages, &'static Readers>,
    /// How many hold bytes: for who has a directory's lock.
    count: AtomicU64,
    writer: RwLock<()>,
    mappers: Mappers,
    seals: AtomicU32,
}

impl Store {
    /// A file whose contents are `image`.
    pub fn new(image: &'static [u8]) -> Self {
        Self::with(Pages { present: BTreeMap::new(), image, covered: 0, limited: true })
    }

    /// Memory of programs, which the limit on files does not concern.
    pub fn unlimited() -> Self {
        Self::with(Pages { present: BTreeMap::new(), image: &[], covered: 0, limited: false })
    }

    fn with(pages: Pages) -> Self {
        let size = AtomicU64::new(pages.image.len() as u64);
        let seals = AtomicU32::new(c::F_SEAL_SEAL);
        let count = AtomicU64::new(pages.count());
        Self {
            size,
            count,
            pages: Biased::new(pages, &READERS),
            writer: RwLock::new(()),
            mappers: Mappers::new(),
            seals,
        }
    }

    /// Who maps it.
    pub fn mappers(&self) -> &Mappers {
        &self.mappers
    }

    /// Whether it is memory of programs rather than a file of the tree.
    pub fn is_memory(&self) -> bool {
        !self.pages.read(&task::unpinned()).limited
    }

    /// Whether page `index` holds bytes.
    pub fn is_resident(&self, index: u64) -> bool {
        let pages = self.pages.read(&task::unpinned());
        pages.present.contains_key(&index) || !pages.image_of(index).is_empty()
    }

    /// Whether page `index` holds bytes. `BeyondEnd`.
    pub fn has(&self, index: u64) -> core::result::Result<bool, ObjectError> {
        let pages = self.pages.read(&task::unpinned());
        if index >= self.size().div_ceil(PAGE_SIZE) {
            return Err(ObjectError::BeyondEnd);
        }
        Ok(pages.present.contains_key(&index) || !pages.image_of(index).is_empty())
    }

    /// Let page `index`, if it holds none, hold `bytes`, or zeros, in a frame where `policy` wants it. False if it holds
    /// some. `BeyondEnd`, `Sealed`, `NoMemory`.
    pub fn put(
        &self,
        index: u64,
        bytes: Option<&[u8; PAGE_BYTES]>,
        policy: &Policy,
    ) -> core::result::Result<bool, ObjectError> {
        let mut pages = self.change(&task::unpinned());
        if index >= self.size().div_ceil(PAGE_SIZE) {
            return Err(ObjectError::BeyondEnd);
        }
        // Who asked may have lost its mapping meanwhile, so that writing could be sealed; that was under the same lock. A seal
        // against writing in future leaves the mappings that there are.
        if self.seals() & c::F_SEAL_WRITE != 0 {
            return Err(ObjectError::Sealed);
        }
        if pages.present.contains_key(&index) || !pages.image_of(index).is_empty() {
            return Ok(false);
        }
        // Nobody finds it before the lock is free.
        let page = pages.materialise(index, policy).ok_or(ObjectError::NoMemory)?;
        if let Some(bytes) = bytes {
            page.write(0, PAGE_BYTES, &mut &bytes[..]);
        }
        Ok(true)
    }

    /// The pages, to be changed. Sleeps until nobody looks at them.
    fn change(&self, ctx: &Unpinned<'_>) -> Changing<'_> {
        Changing { pages: self.pages.write(ctx), count: &self.count }
    }

    /// The seals.
    pub fn seals(&self) -> u32 {
        // Relaxed: who must not miss one holds `writer`, as does who adds one; mappings are counted by `mappers`.
        self.seals.load(Ordering::Relaxed)
    }

    /// Start with these seals, before anybody else knows the file.
    pub fn set_first_seals(&self, seals: u32) {
        // Relaxed: published with the file.
        self.seals.store(seals, Ordering::Relaxed);
    }

    /// Add seals. EPERM if that is sealed, EBUSY if writing is to be and a mapping could.
    pub fn seal(&self, seals: u32) -> Result<()> {
        let ctx = task::unpinned();
        let _writer = self.writer.write(&ctx);
        let _pages = self.change(&ctx);
        let old = self.seals();
        if old & c::F_SEAL_SEAL != 0 {
            return Err(Errno::EPERM);
        }
        if seals & !old & c::F_SEAL_WRITE != 0 && !self.mappers.seal() {
            return Err(Errno::EBUSY);
        }
        // Relaxed: as in `seals`.
        self.seals.fetch_or(seals, Ordering::Relaxed);
        Ok(())
    }

    /// EPERM if one of `seals` is there. The caller holds `writer`.
    fn unsealed(&self, seals: u32) -> Result<()> {
        if self.seals() & seals != 0 { Err(Errno::EPERM) } else { Ok(()) }
    }

    /// The size in bytes.
    pub fn size(&self) -> u64 {
        // Acquire, with the Release in `write` and `set_size`: who sees the size sees the bytes below it.
        self.size.load(Ordering::Acquire)
    }

    fn publish_size(&self, size: u64) {
        // Release, with the Acquire in `size`.
        self.size.store(size, Ordering::Release);
    }

    /// How many pages hold bytes, for `st_blocks`. Never sleeps.
    pub fn pages(&self) -> u64 {
        // Relaxed: a count that orders nothing.
        self.count.load(Ordering::Relaxed)
    }

    /// Copy from byte `offset` on into `sink`, to its end or the file's. EFAULT if nothing could be copied.
    pub fn read(&self, offset: u64, sink: &mut dyn Sink) -> Result<usize> {
        let mut done = 0usize;
        while sink.room() > 0 {
            let at = offset.saturating_add(done as u64);
            let Some(ahead) = self.size().checked_sub(at).filter(|&n| n > 0) else { break };
            let from = (at % PAGE_SIZE) as usize;
            let want = sink.room().min(PAGE_BYTES - from).min(usize::try_from(ahead).unwrap_or(usize::MAX));
            let held = self.pages.read(&task::unpinned()).held(at / PAGE_SIZE);
            let got = match held {
                Held::Page(page) => page.read(from, want, sink),
                Held::Image(image) if from < image.len() => {
                    let rest = image.get(from..).unwrap_or(&[]);
                    let got = sink.put(rest.get(..want).unwrap_or(rest));
                    // The image may end before the file does: the rest of the page is zeros, by the next round.
                    if got == rest.len() && got < want {
                        done += got;
                        continue;
                    }
                    got
                }
                Held::Image(_) | Held::Hole => sink.put(ZEROS.get(..want).unwrap_or(&ZEROS)),
            };
            done += got;
            if got < want {
                return moved(done, want, Errno::EFAULT);
            }
        }
        Ok(done)
    }

    /// Copy all of `source` into the file; says how many bytes, and the offset after them. EFAULT, ENOSPC or EFBIG
    /// if none could be copied.
    pub fn write(&self, at: WriteAt, source: &mut dyn Source) -> Result<(usize, u64)> {
        let ctx = task::unpinned();
        let _writer = self.writer.write(&ctx);
        let start = match at {
            WriteAt::Offset(o) => o,
            WriteAt::End => self.size(),
        };
        if source.left() == 0 {
            return Ok((0, start));
        }
        if start >= MAX_SIZE {
            return Err(Errno::EFBIG);
        }
        self.unsealed(WRITING)?;
        // What would be past the end of a file that may not grow is not written, if anything else is.
        let most =
            if self.seals() & c::F_SEAL_GROW != 0 { self.size().saturating_sub(start) } else { u64::MAX };
        if most == 0 {
            return Err(Errno::EPERM);
        }
        if start > self.size() {
            self.clear_tail();
        }
        let mut done = 0usize;
        while source.left() > 0 {
            let offset = start + done as u64;
            let from = (offset % PAGE_SIZE) as usize;
            let ahead = usize::try_from(MAX_SIZE - offset).unwrap_or(usize::MAX);
            let rest = usize::try_from(most - done as u64).unwrap_or(usize::MAX);
            let want = source.left().min(PAGE_BYTES - from).min(ahead).min(rest);
            if want == 0 {
                break;
            }
            let index = offset / PAGE_SIZE;
            let present = match self.pages.read(&ctx).held(index) {
                Held::Page(page) => Some(page),
                Held::Image(_) | Held::Hole => None,
            };
            let Some(page) = present.or_else(|| {
                self.change(&ctx).materialise(index, &task::memory_policy()).map(PageShare::share)
            }) else {
                return moved(done, 1, Errno::ENOSPC).map(|n| (n, offset));
            };
            let got = page.write(from, want, source);
            done += got;
            if offset + got as u64 > self.size() {
                self.publish_size(offset + got as u64);
            }
            if got < want {
                return moved(done, 1, Errno::EFAULT).map(|n| (n, offset + got as u64));
            }
        }
        Ok((done, start + done as u64))
    }

    /// Make the file `size` bytes long; what is new reads as zeros. EFBIG past [`MAX_SIZE`].
    pub fn set_size(&self, size: u64) -> Result<()> {
        if size > MAX_SIZE {
            return Err(Errno::EFBIG);
        }
        let ctx = task::unpinned();
        let _writer = self.writer.write(&ctx);
        if size > self.size() {
            self.unsealed(c::F_SEAL_GROW)?;
            self.clear_tail();
            self.publish_size(size);
            return Ok(());
        }
        if size < self.size() {
            self.unsealed(c::F_SEAL_SHRINK)?;
        }
        let cut = {
            let mut pages = self.change(&ctx);
            // Under the lock, so that no fault brings in a page after the end.
            self.publish_size(size);
            let keep = usize::try_from(size).unwrap_or(usize::MAX).min(pages.image.len());
            let into_image = keep < pages.image.len();
            pages.image = pages.image.get(..keep).unwrap_or(&[]);
            let cut = pages.present.split_off(&size.div_ceil(PAGE_SIZE));
            if into_image {
                // What is left is the image's.
                pages.covered = pages.present.len() as u64;
            }
            cut
        };
        // No page past the end comes into a mapping from here on; those that are there go, and copies of them.
        self.mappers.cut(size.div_ceil(PAGE_SIZE)..u64::MAX, true, &ctx);
        drop(cut);
        self.clear_tail();
        Ok(())
    }

    /// Clear what follows the end of the file in its last page. The caller holds `writer`.
    fn clear_tail(&self) {
        let size = self.size();
        let from = (size % PAGE_SIZE) as usize;
        if from > 0
            && let Held::Page(page) = self.pages.read(&task::unpinned()).held(size / PAGE_SIZE)
        {
            page.clear(from, PAGE_BYTES);
        }
    }

    /// Give every page of `offset..offset + len` a frame, growing the file unless `keep_size`. ENOSPC without memory.
    pub fn allocate(&self, offset: u64, len: u64, keep_size: bool) -> Result<()> {
        let end = offset.checked_add(len).filter(|&e| e <= MAX_SIZE).ok_or(Errno::EFBIG)?;
        let ctx = task::unpinned();
        let _writer = self.writer.write(&ctx);
        if end > self.size() {
            self.unsealed(c::F_SEAL_GROW)?;
        }
        let limited = self.pages.read(&ctx).limited;
        let free = memory::frames().stats().free.min(if limited { capacity().1 } else { u64::MAX });
        if end.div_ceil(PAGE_SIZE) - offset / PAGE_SIZE > free {
            return Err(Errno::ENOSPC);
        }
        for index in offset / PAGE_SIZE..end.div_ceil(PAGE_SIZE) {
            self.change(&ctx).materialise(index, &task::memory_policy()).ok_or(Errno::ENOSPC)?;
        }
        if !keep_size && end > self.size() {
            self.clear_tail();
            self.publish_size(end);
        }
        Ok(())
    }

    /// Make bytes `offset..offset + len` read as zeros and give back whole pages; the size stays.
    pub fn punch(&self, offset: u64, len: u64) -> Result<()> {
        let end = offset.checked_add(len).ok_or(Errno::EFBIG)?;
        let ctx = task::unpinned();
        let _writer = self.writer.write(&ctx);
        self.unsealed(WRITING)?;
        // Pages are taken from the index first, then from the mappings, then given back; also if it ends half way.
        let mut dropped = Vec::new();
        let result = self.punch_index(offset, end, &mut dropped);
        // Copies stay, as on Linux: only what shows the file shows the hole. Whole pages only.
        let whole = offset.div_ceil(PAGE_SIZE)..end / PAGE_SIZE;
        if whole.start < whole.end {
            self.mappers.cut(whole, false, &ctx);
        }
        drop(dropped);
        result
    }

    /// Make bytes `offset..end` holes or zeros; the pages that are no longer in the index go into `dropped`.
    fn punch_index(&self, offset: u64, end: u64, dropped: &mut Vec<Present>) -> Result<()> {
        let ctx = task::unpinned();
        let mut at = offset;
        while at < end {
            let index = at / PAGE_SIZE;
            let next = end.min((index + 1) * PAGE_SIZE);
            let mut pages = self.change(&ctx);
            let whole = next - at == PAGE_SIZE;
            let imaged = !pages.image_of(index).is_empty();
            if whole && !imaged {
                // Jump to the next page that is there: the range may be far longer than the file.
                dropped.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
                dropped.extend(pages.present.remove(&index));
                let jump = pages.present.range(index..).next().map_or(end, |(&i, _)| i * PAGE_SIZE);
                at = jump.max(next);
            } else {
                if imaged || pages.present.contains_key(&index) {
                    let page = pages.materialise(index, &task::memory_policy()).ok_or(Errno::ENOSPC)?;
                    let from = (at % PAGE_SIZE) as usize;
                    page.clear(from, from + (next - at) as usize);
                }
                at = next;
            }
        }
        Ok(())
    }

    /// The first byte from `offset` on that is data (`data`) or in a hole; the end of the file counts as a hole.
    /// ENXIO at or past the end, and for data if none follows.
    pub fn seek(&self, offset: u64, data: bool) -> Result<u64> {
        let size = self.size();
        if offset >= size {
            return Err(Errno::ENXIO);
        }
        // It may look at all of them, so not pinned.
        let ctx = task::unpinned();
        let pages = self.pages.read_long(&ctx);
        let held = |i: u64| pages.present.contains_key(&i) || !pages.image_of(i).is_empty();
        let mut index = offset / PAGE_SIZE;
        if data && !held(index) {
            index = pages.present.range(index..).next().map(|(&i, _)| i).ok_or(Errno::ENXIO)?;
        }
        while !data && held(index) {
            index += 1;
        }
        let found = (index * PAGE_SIZE).max(offset).min(size);
        if data && found >= size { Err(Errno::ENXIO) } else { Ok(found) }
    }

    /// What `give` makes of the page at `index`, for a mapping. Holes get a frame, where `policy` wants it, so that what a
    /// shared mapping writes stays.
    pub fn frame(
        &self,
        index: u64,
        policy: &Policy,
        give: impl Fn(&PageShare) -> OwnedFrame,
    ) -> core::result::Result<OwnedFrame, ObjectError> {
        let ctx = task::unpinned();
        {
            let pages = self.pages.read(&ctx);
            if index >= self.size().div_ceil(PAGE_SIZE) {
                return Err(ObjectError::BeyondEnd);
            }
            if let Some(present) = pages.present.get(&index) {
                return Ok(give(&present.page));
            }
        }
        let mut pages = self.change(&ctx);
        if index >= self.size().div_ceil(PAGE_SIZE) {
            return Err(ObjectError::BeyondEnd);
        }
        pages.materialise(index, policy).map(give).ok_or(ObjectError::NoMemory)
    }

    /// The same, if the page is present and nobody changes which are.
    pub fn frame_at_hand(
        &self,
        index: u64,
        give: impl Fn(&PageShare) -> OwnedFrame,
        pin: &Pinned<'_>,
    ) -> Option<OwnedFrame> {
        let pages = self.pages.try_read(pin)?;
        let present = pages.present.get(&index).filter(|_| index < self.size().div_ceil(PAGE_SIZE))?;
        Some(give(&present.page))
    }

    /// Give back every page: the machine is ending.
    pub fn clear(&self) {
        let ctx = task::unpinned();
        let pages = {
            let mut pages = self.change(&ctx);
            self.publish_size(0);
            (pages.image, pages.covered) = (&[], 0);
            core::mem::take(&mut pages.present)
        };
        // A process may be late in ending.
        self.mappers.cut(0..u64::MAX, true, &ctx);
        drop(pages);
    }
}

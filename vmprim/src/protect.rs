//! PROT1, PROTN and UNPROT outside of handlers, DIRTY, and eviction.
//!
//! Lowering: lock the pages, have the kernel lower them, which returns when no thread can complete an access above,
//! store the level, unlock. Pages are taken in ascending order, and batches of them share one call of the kernel
//! where they are neighbours.
//!
//! The dirty set of a mechanism that does not track writes: a page is noted as written *before* the kernel opens it
//! for writing. A set takes the notes of pages that it holds, and lowers these pages to Read. A write that ended
//! before the call began was to an open page, so its note was there; one that begins after it returned finds the
//! page closed, so it is noted anew.
//!
//! Where the mechanism tracks writes, a set scans for them, which begins anew for the pages found. So does lowering, to
//! note what it finds; and a set that scans after that, but looks for the note before it is there, would miss a write
//! that ended long ago. Lowering holds its pages from before its scan until the notes are there: so a set, once it has
//! scanned, looks which pages are held, waits for these, and takes their notes under their locks. A page that is not
//! held at that look was lowered before, and noted; or will be after, and what was written came up in the set's scan.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use sync::{mutant, primitive::Ordering};

use crate::{
    access::{Access, PageNo, PageRange, PageSet},
    budget,
    error::{Errno, Error, Needs},
    fault,
    group::{Group, PAGES},
    mechanism::{Span, Stop},
    region::{Futex, Inner, Region},
    thread,
};

/// Spans of one call of a mechanism. A group has at most 16 runs.
const SPANS: usize = 32;
/// Pages that one eviction handles at once.
const PAGES_AT_ONCE: usize = 32;

/// Pages that are locked and about to be lowered together.
struct Batch<'r, const GROUPS: usize, const RUNS: usize> {
    region: &'r Inner,
    to: Access,
    spans: [Span; RUNS],
    used: usize,
    /// Group, pages to lower, pages to unlock.
    groups: [(usize, u32, u32); GROUPS],
    held: usize,
}

impl<'r, const GROUPS: usize, const RUNS: usize> Batch<'r, GROUPS, RUNS> {
    fn new(region: &'r Inner, to: Access) -> Self {
        Self { region, to, spans: [Span::default(); RUNS], used: 0, groups: [(0, 0, 0); GROUPS], held: 0 }
    }

    /// Add pages of a group, which the caller has locked: `lower` of them are above the level. On an error nothing is
    /// held.
    fn push(&mut self, at: usize, lower: u32, held: u32) -> Result<(), Errno> {
        let begins = lower & !(lower << 1);
        if (self.held == GROUPS || self.used + begins.count_ones() as usize > RUNS)
            && let Err(errno) = self.flush()
        {
            if let Some(group) = self.region.groups.get(at) {
                release(group, lower, held, false);
            }
            return Err(errno);
        }
        if let Some(place) = self.groups.get_mut(self.held) {
            *place = (at, lower, held);
            self.held += 1;
        }
        for run in runs(at, lower) {
            let span = self.region.span(run);
            let last = self.used.checked_sub(1).and_then(|last| self.spans.get_mut(last));
            match last {
                Some(last) if last.end() == span.offset => last.len += span.len,
                _ => {
                    if let Some(place) = self.spans.get_mut(self.used) {
                        *place = span;
                        self.used += 1;
                    }
                }
            }
        }
        Ok(())
    }

    /// Lower them, and unlock. On an error their levels stay, which the kernel may then be stricter than.
    fn flush(&mut self) -> Result<(), Errno> {
        let region = self.region;
        let groups = self.groups.get(..self.held).unwrap_or_default();
        if region.resumes {
            for &(at, lower, _) in groups {
                if let Some(group) = region.groups.get(at).filter(|_| lower != 0) {
                    group.await_resumed(lower);
                }
            }
        }
        let spans = self.spans.get(..self.used).unwrap_or_default();
        let mut result = if spans.is_empty() { Ok(()) } else { region.mechanism.lower(spans, self.to) };
        if region.tracks && !region.keeps_written && result.is_ok() {
            // Writes that came before their entries were dropped.
            let mut note = |found| {
                if mutant!("vmprim-dirty-not-awaited") {
                    std::thread::sleep(std::time::Duration::from_micros(300));
                }
                region.note(found);
            };
            result = spans.iter().try_for_each(|&span| region.mechanism.scan(span, &mut note));
        }
        for &(at, lower, held) in groups {
            if lower != 0 && result.is_ok() {
                region.set_level(at, lower, self.to);
            }
            if let Some(group) = region.groups.get(at) {
                release(group, lower, held, result.is_ok());
            }
        }
        (self.used, self.held) = (0, 0);
        result
    }
}

/// Unlock `held`, of which `lower` were to be lowered. Those that were not are open still, and so count as written
/// until the next set is taken, though this one has taken their notes.
fn release(group: &Group, lower: u32, held: u32, lowered: bool) {
    if lower != 0 && !lowered {
        // Relaxed: under the pages' locks.
        group.soft_dirty.fetch_or(lower, Ordering::Relaxed);
    }
    group.unlock(held, &Futex);
}

/// The runs of a group's pages.
fn runs(at: usize, mask: u32) -> impl Iterator<Item = PageRange> {
    let mut rest = mask;
    std::iter::from_fn(move || {
        let start = rest.trailing_zeros();
        let ahead = rest.checked_shr(start).unwrap_or(0);
        let count = ahead.trailing_ones();
        let run = u32::MAX.checked_shr(PAGES as u32 - count)?;
        rest &= !(run << start);
        Some(PageRange::new(at * PAGES + start as usize, count as usize))
    })
}

/// The groups that a range has pages in, with these pages.
fn groups(range: PageRange) -> impl Iterator<Item = (usize, u32)> {
    let (start, end) = (range.start.0, range.end());
    (start / PAGES..end.div_ceil(PAGES)).filter_map(move |at| {
        let from = start.saturating_sub(at * PAGES).min(PAGES);
        let to = (end - (at * PAGES).min(end)).min(PAGES);
        let mask = (((1_u64 << to) - 1) & !((1_u64 << from) - 1)) as u32;
        (mask != 0).then_some((at, mask))
    })
}

/// Pages of a mask above a level.
fn above(group: &Group, mask: u32, level: Access) -> u32 {
    let [_, read, write] = group.by_level(mask);
    match level {
        Access::None => read | write,
        Access::Read => write,
        Access::ReadWrite => 0,
    }
}

impl Inner {
    fn has_level(&self, level: Access) -> Result<(), Error> {
        let lacks = |needs| Err(Error::Lacks { backend: self.backend, needs });
        match level {
            Access::None if !self.has_none => lacks(Needs::NONE_LEVEL),
            Access::Read if !self.has_read => lacks(Needs::READ_LEVEL),
            _ => Ok(()),
        }
    }

    /// Lock pages outside of a handler.
    pub fn lock(&self, group: &Group, at: usize, mask: u32) {
        group.lock(mask, &Futex, |i| {
            // About to sleep: this may be a handler's thread, waiting for itself. Any other has no block, and takes
            // none: it would wait for handlers that may wait for what it holds.
            if let Some(block) = thread::own() {
                fault::refuse_own(self, block, PageNo(at * PAGES + i as usize));
            }
        });
    }

    /// Lower what is above `to` in these ranges, ascending and disjoint.
    fn lower(&self, ranges: &[PageRange], to: Access) -> Result<(), Error> {
        self.check_budget(ranges, 2 * ranges.len(), |level| level.min(to))?;
        let pinned = |at: usize, mask: u32| {
            // Relaxed: read first as a guess, then under the pages' locks.
            let pinned = self.groups.get(at).map_or(0, |group| group.pinned.load(Ordering::Relaxed)) & mask;
            (pinned != 0).then(|| PageNo(at * PAGES + pinned.trailing_zeros() as usize))
        };
        let all = || ranges.iter().flat_map(|&range| groups(range));
        if let Some(page) = all().find_map(|(at, mask)| pinned(at, mask)) {
            return Err(Error::Pinned { page });
        }
        let os = |errno| match errno {
            Errno(libc::ENOMEM) if self.splits => {
                let (used, limit) = budget::recount();
                Error::VmaBudget { used, limit }
            }
            errno => Error::Os { op: "protect", errno },
        };
        let one =
            || ranges.first().is_some_and(|range| range.start.0 / PAGES + 1 >= range.end().div_ceil(PAGES));
        match ranges.len() == 1 && one() {
            true => self.lower_all::<1>(all(), to, pinned, os),
            false => self.lower_all::<512>(all(), to, pinned, os),
        }
    }

    fn lower_all<const GROUPS: usize>(
        &self,
        all: impl Iterator<Item = (usize, u32)>,
        to: Access,
        pinned: impl Fn(usize, u32) -> Option<PageNo>,
        os: impl Fn(Errno) -> Error,
    ) -> Result<(), Error> {
        let mut batch = Batch::<GROUPS, SPANS>::new(self, to);
        let mut last = usize::MAX;
        for (at, mask) in all {
            let Some(group) = self.groups.get(at) else { break };
            if at == last {
                // Several ranges in one group: those before are held.
                batch.flush().map_err(&os)?;
            }
            last = at;
            let got = group.try_lock(mask);
            if got != mask {
                // Nothing of other groups is held while sleeping.
                group.unlock(got, &Futex);
                batch.flush().map_err(&os)?;
                self.lock(group, at, mask);
            }
            if let Some(page) = pinned(at, mask) {
                group.unlock(mask, &Futex);
                batch.flush().map_err(&os)?;
                return Err(Error::Pinned { page });
            }
            batch.push(at, above(group, mask, to), mask).map_err(&os)?;
        }
        batch.flush().map_err(os)
    }

    /// Whether there are mappings enough for `change`, which needs no more than `most` new ones.
    fn check_budget(
        &self,
        ranges: &[PageRange],
        most: usize,
        change: impl Fn(Access) -> Access,
    ) -> Result<(), Error> {
        if !self.splits || budget::fits(most) {
            return Ok(());
        }
        // Near the limit it is counted how many neighbours will differ that do not now: a change that joins pages
        // is let through. Levels are guesses here, since nothing is locked; who races may go over by a few, of the
        // tenth that is kept back.
        let level = |page: usize| self.level(PageNo(page));
        let differ = |a: Option<Access>, b: Option<Access>| i64::from(a.is_some() && b.is_some() && a != b);
        let growth: i64 = ranges
            .iter()
            .flat_map(|range| {
                let inside = move |page: usize| page >= range.start.0 && page < range.end();
                let first = range.start.0.saturating_sub(1);
                (first..range.end()).map(move |page| (page, inside(page), inside(page + 1)))
            })
            .map(|(page, this, next)| {
                let (a, b) = (level(page), level(page + 1));
                let after = |level: Option<Access>, inside| if inside { level.map(&change) } else { level };
                differ(after(a, this), after(b, next)) - differ(a, b)
            })
            .sum();
        match usize::try_from(growth) {
            Ok(growth) if growth > 0 => budget::check(growth),
            _ => Ok(()),
        }
    }

    /// Lower those of `pages` that are idle, not pinned, and above `to`; how many. Safe in a signal handler.
    pub fn try_lower(
        &self,
        pages: &[PageNo],
        to: Access,
        lowered: &mut dyn FnMut(PageNo),
    ) -> Result<usize, Error> {
        self.check_process()?;
        self.has_level(to)?;
        if let [_] = pages {
            return self.try_lower_some::<1, 1>(pages, to, lowered);
        }
        let mut count = 0;
        for some in pages.chunks(PAGES_AT_ONCE) {
            count += self.try_lower_some::<PAGES_AT_ONCE, SPANS>(some, to, lowered)?;
        }
        Ok(count)
    }
    /// The same for at most so many.
    fn try_lower_some<const MOST: usize, const RUNS: usize>(
        &self,
        pages: &[PageNo],
        to: Access,
        lowered: &mut dyn FnMut(PageNo),
    ) -> Result<usize, Error> {
        if self.splits && budget::is_near() {
            return Ok(0);
        }
        let mut count = 0;
        let mut batch = Batch::<MOST, RUNS>::new(self, to);
        for &page in pages {
            let Some((group, bit)) = self.slot(page) else { continue };
            if group.level(page.0) <= to || group.try_lock(bit) == 0 {
                continue;
            }
            // Relaxed: under the page's lock.
            let pinned = group.pinned.load(Ordering::Relaxed) & bit != 0;
            if group.level(page.0) <= to || pinned || self.resumes && group.to_be_raised(bit) != 0 {
                group.unlock(bit, &Futex);
                continue;
            }
            let os = |errno| Error::Os { op: "evict", errno };
            batch.push(page.0 / PAGES, bit, bit).map_err(os)?;
            count += 1;
            lowered(page);
        }
        batch.flush().map_err(|errno| Error::Os { op: "evict", errno })?;
        Ok(count)
    }

    /// Raise the pages of `mask` in a group, which the caller holds, to `to`; pages above stay. Safe in a signal
    /// handler.
    pub fn raise(&self, group: &Group, at: usize, mask: u32, to: Access) -> Result<(), Stop> {
        let [none, read, _] = group.by_level(mask);
        let below = match to {
            Access::None => return Ok(()),
            Access::Read => [(Access::None, none), (Access::Read, 0)],
            Access::ReadWrite => [(Access::None, none), (Access::Read, read)],
        };
        // Relaxed: `take_dirty` looks again under the locks.
        let note = || group.soft_dirty.fetch_or(below[0].1 | below[1].1, Ordering::Relaxed);
        let notes = to == Access::ReadWrite && !self.tracks && !mutant!("vmprim-dirty-not-noted");
        if notes && !mutant!("vmprim-dirty-noted-late") {
            // Before the kernel opens them.
            note();
        }
        for (from, pages) in below {
            if self.creates && from == Access::None && pages != 0 {
                // Relaxed, both: under the pages' locks.
                let unborn = pages & !group.born.load(Ordering::Relaxed);
                for run in runs(at, unborn) {
                    self.mechanism.create(self.span(run)).map_err(Stop::Os)?;
                }
                if unborn != 0 {
                    group.born.fetch_or(unborn, Ordering::Relaxed);
                }
            }
            for run in runs(at, pages) {
                self.mechanism.raise(self.span(run), from, to)?;
                self.set_level(at, mask_of(run), to);
            }
        }
        if notes && mutant!("vmprim-dirty-noted-late") {
            std::thread::sleep(std::time::Duration::from_micros(300));
            note();
        }
        Ok(())
    }

    /// Whether a page never had a frame in the view; steady for its holder.
    pub fn is_unborn(&self, group: &Group, page: PageNo) -> bool {
        // Relaxed: under the page's lock.
        group.born.load(Ordering::Relaxed) >> (page.0 % PAGES) & 1 == 0
    }

    /// Give a page, which the caller holds, its first frame.
    pub fn bear(&self, group: &Group, page: PageNo) -> Result<(), Stop> {
        self.mechanism.create(self.span(page.into())).map_err(Stop::Os)?;
        // Relaxed: under the page's lock.
        group.born.fetch_or(1 << (page.0 % PAGES), Ordering::Relaxed);
        Ok(())
    }

    /// Note that a span's pages were written.
    fn note(&self, span: Span) {
        let first = span.offset >> self.shift;
        let last = span.end().saturating_sub(1) >> self.shift;
        for (at, mask) in groups(PageRange::new(first, last + 1 - first)) {
            if let Some(group) = self.groups.get(at) {
                // Relaxed: under the pages' locks.
                group.soft_dirty.fetch_or(mask, Ordering::Relaxed);
            }
        }
    }

    fn take_dirty(&self, range: PageRange, out: &mut PageSet) -> Result<(), Errno> {
        if self.tracks {
            self.mechanism.scan(self.span(range), &mut |found| {
                let first = found.offset >> self.shift;
                let last = found.end().saturating_sub(1) >> self.shift;
                out.insert_range(PageRange::new(first, last + 1 - first));
            })?;
        }
        let mut batch = Batch::<64, SPANS>::new(self, Access::Read);
        for (at, mask) in groups(range) {
            let Some(group) = self.groups.get(at) else { break };
            // After the scan, and before the notes are looked at.
            let waits = self.tracks && !mutant!("vmprim-dirty-not-awaited");
            let busy = if waits { group.busy(mask) } else { 0 };
            // Relaxed: a write that ended before the call was noted before its thread went on, so the note is seen
            // here; or before the page was free, by the Acquire of that look.
            let noted = busy | group.soft_dirty.load(Ordering::Relaxed) & mask;
            let pinned = group.pinned.load(Ordering::Relaxed) & mask;
            if noted == 0 && pinned == 0 {
                continue;
            }
            self.lock(group, at, noted | pinned);
            // Relaxed, both: under the pages' locks.
            let pinned = group.pinned.load(Ordering::Relaxed) & (noted | pinned);
            let written = group.soft_dirty.fetch_and(!noted, Ordering::Relaxed) & noted;
            let [_, _, open] = group.by_level(noted | pinned);
            // Devices may write a pinned page at any time.
            let bits = written | pinned & open;
            out.insert_bits(at / 2, u64::from(bits) << (at % 2 * PAGES));
            let lower = if self.tracks || mutant!("vmprim-dirty-not-closed") { 0 } else { open & !pinned };
            batch.push(at, lower, noted | pinned)?;
        }
        batch.flush()
    }
}

/// A run's bits in its group.
const fn mask_of(run: PageRange) -> u32 {
    let ones = u32::MAX >> (PAGES - run.count);
    ones << (run.start.0 % PAGES)
}

impl Region {
    /// PROT1 and PROTN: lower pages to `to`; pages at or below it stay. On return, no thread of the process can
    /// complete an access above the level.
    ///
    /// # Errors
    /// - [`Error::Range`] for pages outside of the region.
    /// - [`Error::Lacks`] if the backend does not have the level.
    /// - [`Error::Pinned`] if one of the pages is pinned; others may have been lowered.
    /// - [`Error::VmaBudget`] if too many mappings would be needed; nothing was changed.
    ///
    /// ```
    /// use std::sync::{Arc, atomic::{AtomicUsize, Ordering}};
    /// use vmprim::{Access, PageNo, Needs, Region, Resolution, inline};
    ///
    /// let traps = Arc::new(AtomicUsize::new(0));
    /// let counts = traps.clone();
    /// // SAFETY: the handler counts and grants; it allocates nothing, and touches no page.
    /// let handler = unsafe {
    ///     inline(move |fault, _| {
    ///         counts.fetch_add(1, Ordering::Relaxed);
    ///         Resolution::Grant(fault.wanted)
    ///     })
    /// };
    /// let region = Region::builder(8 << 12).need(Needs::READ_LEVEL).inline(handler).build()?;
    /// let view = region.view::<u8>()?;
    /// view.set(3 << 12, 1);
    /// region.protect(PageNo(3), Access::Read)?; // PROT1
    /// view.set(3 << 12, 2); // TRAP, and UNPROT by the handler
    /// assert_eq!((view.get(3 << 12), traps.load(Ordering::Relaxed)), (Some(2), 1));
    ///
    /// region.protect(0..8, Access::Read)?; // PROTN
    /// (0..8).for_each(|page| _ = view.set(page << 12, 3));
    /// assert_eq!(traps.load(Ordering::Relaxed), 9);
    /// # Ok::<(), vmprim::Error>(())
    /// ```
    pub fn protect(&self, pages: impl Into<PageRange>, to: Access) -> Result<(), Error> {
        let range = pages.into();
        self.inner().check_range(range)?;
        self.inner().has_level(to)?;
        self.inner().lower(&[range], to)
    }

    /// PROTN of several ranges, with few calls of the kernel.
    ///
    /// # Errors
    /// As [`protect`](Self::protect).
    ///
    /// ```
    /// use vmprim::{Access, PageNo, Needs, Region};
    ///
    /// let region = Region::builder(64 << 12).need(Needs::NONE_LEVEL).build()?;
    /// region.protect_many(&[(1..3).into(), PageNo(9).into(), (40..64).into()], Access::None)?;
    /// let closed = (0..64).filter(|&page| region.level(PageNo(page)) == Some(Access::None)).count();
    /// assert_eq!(closed, 2 + 1 + 24);
    /// # Ok::<(), vmprim::Error>(())
    /// ```
    pub fn protect_many(&self, ranges: &[PageRange], to: Access) -> Result<(), Error> {
        ranges.iter().try_for_each(|&range| self.inner().check_range(range))?;
        self.inner().has_level(to)?;
        let is_ascending = ranges.is_sorted_by(|one, next| one.end() <= next.start.0);
        if is_ascending {
            return self.inner().lower(ranges, to);
        }
        let mut set = PageSet::new();
        ranges.iter().for_each(|&range| set.insert_range(range));
        self.inner().lower(&set.runs(), to)
    }

    /// UNPROT outside of a handler: raise pages to `to`; pages at or above it stay.
    ///
    /// # Errors
    /// [`Error::Range`], [`Error::Lacks`], or [`Error::Os`] with EFAULT for a page that has lost its frame.
    ///
    /// ```
    /// use vmprim::{Access, PageNo, Needs, Region};
    ///
    /// let region = Region::builder(4 << 12).need(Needs::NONE_LEVEL).initial(Access::None).build()?;
    /// region.unprotect(PageNo(2), Access::ReadWrite)?;
    /// assert_eq!(region.level(PageNo(2)), Some(Access::ReadWrite));
    /// # Ok::<(), vmprim::Error>(())
    /// ```
    pub fn unprotect(&self, pages: impl Into<PageRange>, to: Access) -> Result<(), Error> {
        let (range, inner) = (pages.into(), self.inner());
        inner.check_range(range)?;
        inner.has_level(to)?;
        inner.check_budget(&[range], 2, |level| level.max(to))?;
        for (at, mask) in groups(range) {
            let Some(group) = inner.groups.get(at) else { break };
            inner.lock(group, at, mask);
            let result = inner.raise(group, at, mask, to);
            group.unlock(mask, &Futex);
            result.map_err(|stop| match stop {
                Stop::Missing(_) => Error::Os { op: "unprotect", errno: Errno(libc::EFAULT) },
                Stop::Os(errno) => Error::Os { op: "unprotect", errno },
            })?;
        }
        Ok(())
    }

    /// DIRTY: put into `out` the pages of a range that were written since they were last taken, and begin anew for
    /// these, as one step.
    ///
    /// A write that ended before the call began is in this set or an earlier one; a write that begins after it
    /// returned is in a later one; one at the same time is in at least one of them. Pages that were not written may
    /// be in it.
    ///
    /// # Errors
    /// [`Error::Range`], [`Error::Lacks`] if the region was not built to need [`Needs::DIRTY`] and its backend has
    /// none, or [`Error::Os`].
    ///
    /// ```
    /// use vmprim::{Needs, PageNo, PageSet, Region};
    ///
    /// let region = Region::builder(100 << 12).need(Needs::DIRTY).build()?;
    /// let mut dirty = PageSet::new();
    /// region.take_dirty(0..100, &mut dirty)?; // from here on
    /// dirty.clear();
    /// let view = region.view::<u64>()?;
    /// view.set(17 * 512, 1);
    /// view.set(30 * 512, 1);
    /// region.take_dirty(0..100, &mut dirty)?;
    /// assert!(dirty.contains(PageNo(17)) && dirty.contains(PageNo(30)));
    /// # Ok::<(), vmprim::Error>(())
    /// ```
    pub fn take_dirty(&self, pages: impl Into<PageRange>, out: &mut PageSet) -> Result<(), Error> {
        let range = pages.into();
        self.inner().check_range(range)?;
        if !self.inner().tracks && !self.inner().has_read {
            return Err(Error::Lacks { backend: self.backend(), needs: Needs::DIRTY });
        }
        self.inner().take_dirty(range, out).map_err(|errno| Error::Os { op: "take_dirty", errno })
    }

    /// Lower those of `pages` that no fault is using, that are not pinned, and that are above `to`; which were
    /// lowered.
    ///
    /// # Errors
    /// [`Error::Lacks`] or [`Error::Os`].
    pub fn try_evict(&self, pages: &[PageNo], to: Access) -> Result<PageSet, Error> {
        let mut set = PageSet::new();
        self.inner().try_lower(pages, to, &mut |page| set.insert(page))?;
        Ok(set)
    }
}

//! The mappings of an address space: split exactly where an operation begins or ends and joined wherever two neighbours say
//! the same, as Linux does. So the mappings are a function of what each page is, whatever the history.
//!
//! They are the areas of a Bonsai tree ([`Index`]), and nowhere else. Methods that take `&mut self` change it, others look;
//! so whoever has this under a lock for reading sees a tree that stays as it is. Faults that take no lock look into the same
//! tree in sections. They find every mapping that a change leaves as it is, and of those that it does not the old area, the new
//! one, or none: what stays of a mapping is in the tree before the mapping goes ([`Mappings::remove`],
//! [`Mappings::update`]), while one that is joined with another is missing for a moment. When a change is done, every area that
//! said otherwise is dead.
//!
//! **Memory.** A new area needs an entry and nodes, which are taken before anything changes. [`Mappings::update`], which may need many,
//! fails if there are none, and says how far it got. The others need two areas at most, and must not fail half way through what their callers do: who calls
//! them has asked [`Memory::low`](owned::Memory::low), which keeps a reserve for them.

use alloc::{
    alloc::handle_alloc_error,
    boxed::Box,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::{alloc::Layout, fmt, ops::Range};

use ::bonsai::{Entry, Fit, Still};
use addr::{Page, PageRange};
use percpu::{Pinned, Unpinned};
use sync::{mutant, pause};

use crate::{
    Error, LOW_WINDOW, LOWEST, MMAP_TOP, Mapper, Mappers, Mapping, Placement, STACK_GAP, Totals,
    index::{Area, HIDDEN, Index, key, region},
};

/// The mappings of one address space: disjoint, ordered, none of which continues its neighbour.
///
/// Placement is by the highest gap that fits. Below a mapping that grows down the search keeps clear of [`STACK_GAP`] pages.
///
/// The objects are told which of their pages are mapped ([`Mappers`]): whoever wants to [`insert`](Self::insert) a
/// mapping has [`announce`](Self::announce)d it, and [`retract`](Self::retract)s it after it was removed.
pub(crate) struct Mappings {
    index: Arc<Index>,
    /// Areas so far, that their numbers differ.
    numbers: u64,
    len: usize,
    totals: Totals,
    /// Whose they are.
    owner: Weak<dyn Mapper>,
}

impl fmt::Debug for Mappings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// Page number `n` of user space.
fn page(n: u64) -> Page {
    Page::new(n).unwrap_or(addr::USER_END_PAGE)
}

fn range(start: Page, end: Page) -> PageRange {
    PageRange::new(start, end).unwrap_or_default()
}

type Found<'a> = (PageRange, &'a Mapping);

fn found(entry: &Entry<Area>) -> Found<'_> {
    (entry.range, &entry.mapping)
}

/// A memory of no size is short.
fn out_of_memory<T>() -> T {
    handle_alloc_error(Layout::new::<Entry<Area>>())
}

/// So many areas are changed at a time: what is to be in their place is listed first.
const AT_ONCE: usize = 64;

/// What is to be in the place of some areas: an area that is there already, or a new one.
type Piece = (PageRange, Option<Box<Entry<Area>>>);

impl Mappings {
    /// Nothing is mapped; what will be is `owner`'s. Nobody else changes the index.
    pub(crate) fn new(index: Arc<Index>, owner: Weak<dyn Mapper>) -> Self {
        Self { index, numbers: HIDDEN, len: 0, totals: Totals::default(), owner }
    }
    fn still(&self) -> Still<'_, ::bonsai::Region, Area> {
        // SAFETY: only methods with `&mut self` change the tree.
        unsafe { self.index.still() }
    }
    /// Pages by what they count as.
    pub(crate) fn totals(&self) -> &Totals {
        &self.totals
    }
    /// What [`Self::totals`] would be without `gone`.
    pub(crate) fn totals_without(&self, gone: PageRange) -> Totals {
        let mut totals = self.totals;
        for (area, mapping) in self.overlapping(gone) {
            totals.sub(mapping, area.intersect(gone).map_or(0, PageRange::len));
        }
        totals
    }
    /// Tell the object of `mapping` that `pages` of its pages will be mapped. False if it must not be written and the
    /// mapping could.
    pub(crate) fn announce(&self, mapping: &Mapping, pages: u64, pin: &Pinned<'_>) -> bool {
        mapping.mappers().is_none_or(|m| m.add(&self.owner, pages, mapping.may_write_object(), pin))
    }
    /// Take back an announcement of what was not mapped after all, or is mapped no more, and translated by nobody.
    pub(crate) fn retract(&self, mapping: &Mapping, pages: u64, pin: &Pinned<'_>) {
        if let Some(mappers) = mapping.mappers() {
            mappers.sub(&self.owner, pages, mapping.may_write_object(), pin);
        }
    }
    /// How many mappings there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
    /// The mapping that holds `page`, and its pages.
    #[inline]
    pub(crate) fn find(&self, page: Page) -> Option<Found<'_>> {
        // SAFETY: as in `still`.
        unsafe { self.index.find(page) }.map(found)
    }
    /// All mappings, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Found<'_>> {
        self.overlapping(Self::everywhere())
    }
    fn areas(&self, within: PageRange) -> impl Iterator<Item = &Entry<Area>> {
        let mut at = within.start();
        core::iter::from_fn(move || {
            let rest = PageRange::new(at, within.end()).filter(|rest| !rest.is_empty())?;
            // SAFETY: as in `still`.
            let entry = unsafe { self.index.first_in(rest) };
            at = entry.map_or(within.end(), |entry| entry.range.end());
            entry
        })
    }
    /// The mappings that hold a page of `within`, each whole, ascending.
    pub(crate) fn overlapping(&self, within: PageRange) -> impl Iterator<Item = Found<'_>> {
        self.areas(within).map(found)
    }
    /// Whether no page of `within` is mapped.
    pub(crate) fn is_free(&self, within: PageRange) -> bool {
        self.overlapping(within).next().is_none()
    }
    /// Whether every page of `within` is mapped.
    pub(crate) fn covers(&self, within: PageRange) -> bool {
        self.holes(within).next().is_none()
    }
    /// The longest runs of pages of `within` that are not mapped, ascending.
    pub(crate) fn holes(&self, within: PageRange) -> impl Iterator<Item = PageRange> {
        let mut at = within.start();
        let ends = core::iter::once((within.end(), within.end()));
        self.overlapping(within).map(|(r, _)| (r.start(), r.end())).chain(ends).filter_map(
            move |(start, end)| {
                let hole = range(at, start.min(within.end()).max(at));
                at = at.max(end);
                (!hole.is_empty()).then_some(hole)
            },
        )
    }
    /// The pages around `hole`, which is not mapped, up to the nearest mappings or the ends of the user half.
    pub(crate) fn gap_around(&self, hole: PageRange) -> PageRange {
        let [before, behind] = self.still().around(key(hole.start()));
        let start = before.map_or(Page::default(), |(_, area)| area.range.end());
        range(start, behind.map_or(page(pagetable::USER_PAGES), |(_, area)| area.range.start()))
    }
    /// The pages that show `pages` of the object whose mappers are `of`, of the mappings that hold a page of `within`; each with
    /// what is behind its mapping.
    pub(crate) fn showing(
        &self,
        of: &Mappers,
        pages: Range<u64>,
        within: PageRange,
    ) -> impl Iterator<Item = (PageRange, PageRange)> {
        self.overlapping(within).filter(move |(_, mapping)| mapping.shows(of)).filter_map(
            move |(area, mapping)| {
                let (_, first) = mapping.object_page(0)?;
                let (from, to) = (pages.start.max(first), pages.end.min(first.saturating_add(area.len())));
                let part =
                    PageRange::with_len(area.start().checked_add(from - first)?, to.checked_sub(from)?)?;
                (!part.is_empty()).then_some((part, range(area.end(), within.end())))
            },
        )
    }
    /// All pages that a space can have.
    pub(crate) fn everywhere() -> PageRange {
        range(Page::default(), page(pagetable::USER_PAGES))
    }
    /// The lowest mapping that ends after `page`.
    pub(crate) fn find_from(&self, page: Page) -> Option<Found<'_>> {
        let [before, behind] = self.still().around(key(page));
        let holds = before.filter(|(_, area)| area.range.end() > page);
        holds.or(behind).map(|(_, entry)| found(entry))
    }
    /// The highest mapping that ends at or before `page`.
    pub(crate) fn find_below(&self, page: Page) -> Option<Found<'_>> {
        let below = |at| self.still().lower(key(at)).map(|(_, entry)| found(entry));
        below(page).and_then(|(area, _)| if area.end() <= page { below(page) } else { below(area.start()) })
    }
    /// Where a search from below has to stop before the mapping at `start`.
    fn clear_of(start: Page, mapping: &Mapping) -> Page {
        if mapping.is_stack() { start.checked_sub(STACK_GAP).unwrap_or_default() } else { start }
    }
    /// Whether no page of `within` is mapped, nor does the gap below a stack reach into it.
    pub(crate) fn is_clear(&self, within: PageRange) -> bool {
        let [before, behind] = self.still().around(key(within.start()));
        before.is_none_or(|(_, area)| area.range.end() <= within.start())
            && behind
                .is_none_or(|(_, area)| within.end() <= Self::clear_of(area.range.start(), &area.mapping))
    }
    /// How many more mappings there are at most after changing `within`: the ends that lie inside of a mapping.
    pub(crate) fn splits(&self, within: PageRange) -> usize {
        let inside = |at: Page| self.find(at).is_some_and(|(r, _)| r.start() < at);
        usize::from(inside(within.start())) + usize::from(inside(within.end()))
    }
    /// Whether removing `within` leaves a hole in one mapping, so that there is one more.
    pub(crate) fn punches(&self, within: PageRange) -> bool {
        self.find(within.start()).is_some_and(|(r, _)| r.start() < within.start() && within.end() < r.end())
    }
    /// The first mapping in `within` whose object knows who maps it, and which pages of `within` it has.
    pub(crate) fn announced(&self, within: PageRange) -> Option<(PageRange, Mapping)> {
        let (area, mapping) = self.overlapping(within).find(|(_, mapping)| mapping.mappers().is_some())?;
        Some((area.intersect(within)?, mapping.clone()))
    }

    fn fresh(&mut self, range: PageRange, mapping: &Mapping) -> Option<Box<Entry<Area>>> {
        self.numbers += 1;
        self.index.entry(range, mapping, self.numbers)
    }
    /// Map the pages of `at`, none of which is mapped; [announced](Self::announce) before.
    pub(crate) fn insert(&mut self, at: PageRange, mapping: Mapping, ctx: &Unpinned<'_>) {
        debug_assert!(!at.is_empty() && self.is_free(at));
        self.totals.add(&mapping, at.len());
        self.put(at, mapping, ctx);
    }
    /// Put an area where none is, joined with its neighbours.
    fn put(&mut self, at: PageRange, mut mapping: Mapping, ctx: &Unpinned<'_>) {
        let [below, above] = self.still().around(key(at.start())).map(|area| area.map(|(_, area)| area));
        let above = above.filter(|a| a.range.start() == at.end() && mapping.continues(at.len(), &a.mapping));
        let above = above.map(|area| area.range);
        let below = below.filter(|b| b.range.end() == at.start());
        let below = below.filter(|b| b.mapping.continues(b.range.len(), &mapping));
        let joined = range(
            below.map_or(at.start(), |area| area.range.start()),
            above.map_or(at.end(), |area| area.end()),
        );
        let joins_below = below.is_some();
        if let Some(below) = below {
            mapping = below.mapping.clone();
        }
        let entry = self.fresh(joined, &mapping).unwrap_or_else(out_of_memory);
        {
            let index = &self.index;
            let (_alone, pin) = (index.alone(ctx), ctx.pin());
            let mut tree = index.write(&pin);
            if tree.reserve(2, 0).is_err() {
                out_of_memory()
            }
            if let Some(above) = above
                && let Some(removed) = tree.remove(key(above.start()))
            {
                index.ended(&removed);
            }
            let done = if joins_below {
                tree.replace(region(joined), entry).map(|removed| index.ended(&removed))
            } else {
                tree.insert(region(joined), entry)
            };
            debug_assert!(done.is_ok(), "there was memory, and the place was free");
        }
        self.len += 1;
        self.len -= usize::from(above.is_some()) + usize::from(joins_below);
        self.index.reap(ctx);
    }
    /// The mapping that begins at `top` grows down to `at`, above which nothing is mapped up to there.
    pub(crate) fn grow_down(&mut self, top: Page, at: Page, ctx: &Unpinned<'_>) {
        let Some((area, mapping)) = self.find(top) else { return };
        let (grown, mapping) = (range(at, area.end()), mapping.clone());
        debug_assert!(area.start() == top && matches!(mapping.backing, crate::Backing::Anonymous));
        self.totals.add(&mapping, top.number() - at.number());
        {
            let (_alone, pin) = (self.index.alone(ctx), ctx.pin());
            let mut tree = self.index.write(&pin);
            tree.remove(key(top)).into_iter().for_each(|removed| self.index.ended(&removed));
        }
        self.len -= 1;
        pause!("bonsai-pieces");
        self.put(grown, mapping, ctx);
    }
    /// Unmap what is mapped of `gone`. Only if it [`punches`](Self::punches) there is one mapping more. What was
    /// [`announced`](Self::announced) is for the caller to [`retract`](Self::retract), when nobody translates to it any more.
    pub(crate) fn remove(&mut self, gone: PageRange, ctx: &Unpinned<'_>) {
        if gone.is_empty() {
            return;
        }
        let index = self.index.clone();
        {
            let (_alone, pin) = (index.alone(ctx), ctx.pin());
            let mut tree = index.write(&pin);
            // SAFETY: nobody else changes the tree, and this does not before it has looked.
            while let Some(area) = unsafe { index.first_in(gone) } {
                let Area { range: old, ref mapping, .. } = **area;
                self.totals.sub(mapping, old.intersect(gone).map_or(0, PageRange::len));
                let mut piece = |piece: PageRange| {
                    let mapping = mapping.advanced(piece.start().number() - old.start().number());
                    self.numbers += 1;
                    let entry = index.entry(piece, &mapping, self.numbers);
                    (region(piece), entry.unwrap_or_else(out_of_memory))
                };
                let lower = (old.start() < gone.start()).then(|| piece(range(old.start(), gone.start())));
                let upper = (old.end() > gone.end()).then(|| piece(range(gone.end(), old.end())));
                self.len += usize::from(lower.is_some()) + usize::from(upper.is_some());
                self.len -= 1;
                let rests = usize::from(upper.is_some());
                if (rests > 0 || lower.is_some()) && tree.reserve(2 * rests, 1).is_err() {
                    out_of_memory()
                }
                // What stays is there before the rest goes.
                if let Some((piece, entry)) = upper {
                    let done = tree.insert_piece(piece, entry);
                    debug_assert!(done.is_ok(), "there was memory");
                }
                let removed = match lower {
                    Some((piece, entry)) => tree.replace(piece, entry).ok(),
                    None => tree.remove(key(old.start())),
                };
                debug_assert!(removed.is_some(), "there was memory, and the area");
                removed.into_iter().for_each(|removed| index.ended(&removed));
                if old.end() >= gone.end() {
                    break;
                }
            }
        }
        index.reap(ctx);
    }
    /// As [`Self::update`], by who must not fail.
    pub(crate) fn change(&mut self, within: PageRange, change: impl Fn(&mut Mapping), ctx: &Unpinned<'_>) {
        if self.update(within, change, ctx).is_err() {
            out_of_memory()
        }
    }
    /// Change what the mapped pages of `within` say. If there is no memory, the page up to which that is done.
    pub(crate) fn update(
        &mut self,
        within: PageRange,
        change: impl Fn(&mut Mapping),
        ctx: &Unpinned<'_>,
    ) -> Result<(), Page> {
        let mut at = within.start();
        while let Some(last) = self.areas(range(at, within.end())).take(AT_ONCE).last() {
            let end = last.range.end().min(within.end());
            let done = self.update_some(range(at, end), &change, ctx);
            // Also what was made for a change that failed.
            if done.is_ok() || !mutant!("update-unreaped") {
                self.index.reap(ctx);
            }
            done.map_err(|_| at)?;
            at = end;
        }
        Ok(())
    }
    fn update_some(
        &mut self,
        within: PageRange,
        change: &impl Fn(&mut Mapping),
        ctx: &Unpinned<'_>,
    ) -> Result<(), Error> {
        let (mut totals, mut list) = (self.totals, Vec::new());
        // With the neighbours, which may say the same afterwards.
        let around = range(
            within.start().checked_sub(1).unwrap_or_default(),
            within.end().checked_add(1).unwrap_or(within.end()),
        );
        let mut around = around.intersect(Self::everywhere()).unwrap_or_default();
        for (area, mapping) in self.overlapping(around) {
            around = range(around.start().min(area.start()), around.end().max(area.end()));
            let inner = area.intersect(within).filter(|inner| !inner.is_empty());
            let Some(inner) = inner else {
                push(&mut list, area, mapping.clone())?;
                continue;
            };
            let part = |part: PageRange| mapping.advanced(part.start().number() - area.start().number());
            let (lower, upper) = (range(area.start(), inner.start()), range(inner.end(), area.end()));
            if !lower.is_empty() {
                push(&mut list, lower, mapping.clone())?;
            }
            let mut changed = part(inner);
            totals.sub(&changed, inner.len());
            change(&mut changed);
            totals.add(&changed, inner.len());
            push(&mut list, inner, changed)?;
            if !upper.is_empty() {
                push(&mut list, upper, part(upper))?;
            }
        }
        let mut pieces = Vec::new();
        pieces.try_reserve(list.len()).map_err(|_| Error::NoMemory)?;
        for (range, mapping) in list {
            let there = self.find(range.start());
            let same = there.is_some_and(|(old, said)| old == range && said.continues(0, &mapping));
            let entry = if same { None } else { Some(self.fresh(range, &mapping).ok_or(Error::NoMemory)?) };
            pieces.push((range, entry));
        }
        let done = self.splice(around, pieces, ctx);
        if done.is_ok() {
            self.totals = totals;
        }
        done
    }
    /// Put `pieces`, ascending, in the place of all areas of `around`, which hold the same pages.
    fn splice(&mut self, around: PageRange, mut pieces: Vec<Piece>, ctx: &Unpinned<'_>) -> Result<(), Error> {
        let index = &self.index;
        let (_alone, pin) = (index.alone(ctx), ctx.pin());
        let mut tree = index.write(&pin);
        let begins =
            |pieces: &[Piece], at: u64| pieces.binary_search_by_key(&at, |(r, _)| key(r.start())).is_ok();
        let (mut old, mut gone, mut next) = (0, 0, around.start());
        while let Some((_, area)) = PageRange::new(next, around.end())
            .filter(|rest| !rest.is_empty())
            .and_then(|rest| tree.first_in(region(rest)))
        {
            next = area.range.end();
            old += 1;
            gone += usize::from(!begins(&pieces, key(area.range.start())));
        }
        let added = pieces.len() + gone - old;
        tree.reserve(added, pieces.len()).map_err(|_| Error::NoMemory)?;
        self.len = self.len + added - gone;
        if mutant!("bonsai-shrink-first") {
            let mut next = key(around.start());
            while let Some((span, _)) =
                tree.read().ceiling(next).filter(|(s, _)| s.start() < key(around.end()))
            {
                next = span.start() + 1;
                tree.remove(span.start()).into_iter().for_each(|removed| index.ended(&removed));
            }
        }
        // What an area that goes still covers is there before it goes; the last first.
        for (range, entry) in pieces.iter_mut().rev() {
            let piece = region(*range);
            let whole = tree.read().lower(piece.start()).filter(|(whole, _)| whole.contains(&piece));
            if whole.is_some()
                && tree.read().get_span(piece.start()).is_none()
                && let Some(entry) = entry.take()
            {
                let done = tree.insert_piece(piece, entry);
                debug_assert!(done.is_ok(), "there was memory");
            }
        }
        pause!("bonsai-pieces");
        // Areas that nothing begins with.
        let mut next = key(around.start());
        while let Some((span, _)) = tree.read().ceiling(next).filter(|(s, _)| s.start() < key(around.end())) {
            next = span.start() + 1;
            if !begins(&pieces, span.start()) {
                // What is still to be put in keeps its nodes.
                let removed = match tree.reserve(added + 1, pieces.len()) {
                    Ok(()) => tree.remove(span.start()),
                    Err(_) => tree.give_up(span.start()),
                };
                removed.into_iter().for_each(|removed| index.ended(&removed));
            }
        }
        // And what is in the place of others, or has begun within one.
        for (range, entry) in pieces {
            let Some(entry) = entry else { continue };
            let span = region(range);
            let done = if tree.read().get_span(span.start()).is_some() {
                tree.replace(span, entry).map(|removed| index.ended(&removed))
            } else {
                tree.insert(span, entry)
            };
            debug_assert!(done.is_ok(), "there was memory, and the place was free");
        }
        Ok(())
    }
    /// Faults find none of the mappings that have pages in `range`, nor go on with those that they have found, until they are
    /// [shown](Self::show) again or replaced.
    pub(crate) fn hide(&mut self, range: PageRange, ctx: &Unpinned<'_>) {
        let _alone = self.index.alone(ctx);
        for area in self.areas(range) {
            area.set_number(HIDDEN);
            self.index.ended(area);
        }
    }
    /// Faults find the mappings that have pages in `range` again; those that had found them before know them no more.
    pub(crate) fn show(&mut self, range: PageRange) {
        let mut numbers = self.numbers;
        for area in self.areas(range).filter(|area| area.number() == HIDDEN) {
            numbers += 1;
            area.set_number(numbers);
        }
        self.numbers = numbers;
    }

    /// `pages` pages that are not mapped, where `at` wants them; `None` if there is no such place. A dictated place
    /// is checked by the caller.
    pub(crate) fn place(&mut self, at: Placement, pages: u64, ctx: &Unpinned<'_>) -> Option<PageRange> {
        let there = |this: &Self, start: Page, end: u64| {
            let hinted = PageRange::with_len(start.max(page(LOWEST)), pages);
            hinted.filter(|&r| r.end().number() <= end && this.is_clear(r))
        };
        match at {
            Placement::Fixed(start) | Placement::FixedNoReplace(start) => PageRange::with_len(start, pages),
            Placement::Below32Bit => self.lowest_gap(pages),
            Placement::HintBelow32Bit(start) => {
                there(self, start, LOW_WINDOW.end).or_else(|| self.lowest_gap(pages))
            }
            Placement::Anywhere => self.highest_gap(pages, ctx),
            Placement::Hint(start) => {
                there(self, start, addr::USER_END_PAGE.number()).or_else(|| self.highest_gap(pages, ctx))
            }
        }
    }
    fn highest_gap(&mut self, pages: u64, ctx: &Unpinned<'_>) -> Option<PageRange> {
        let below = self.highest_gap_in(page(LOWEST), page(MMAP_TOP), pages, ctx);
        below.or_else(|| self.highest_gap_in(page(MMAP_TOP), addr::USER_END_PAGE, pages, ctx))
    }
    /// The highest `pages` free pages of `lowest..top`. The gap below a stack matters only if no other mapping lies in it.
    fn highest_gap_in(
        &mut self,
        lowest: Page,
        mut top: Page,
        pages: u64,
        ctx: &Unpinned<'_>,
    ) -> Option<PageRange> {
        // Areas that were given up lie within others, or where nothing is: then the tree doesn't know where its gaps are.
        if self.index.write(&ctx.pin()).tombstones() > 0 {
            return self.highest_hole(range(lowest, top), pages);
        }
        while lowest < top && pages <= top.number() - lowest.number() {
            let (bytes, within) = (pages << addr::PAGE_SHIFT, region(range(lowest, top)));
            let start = self.index.write(&ctx.pin()).gap(bytes, within, Fit::Highest)?;
            let room = PageRange::with_len(page(start >> addr::PAGE_SHIFT), pages)?;
            let [before, behind] = self.still().around(key(room.start()));
            let end = behind.map_or(top, |(_, area)| Self::clear_of(area.range.start(), &area.mapping));
            if room.end() <= end {
                return Some(room);
            }
            // Lower in the same gap, or in one below it.
            top = end.max(before.map_or(lowest, |(_, area)| area.range.end()).max(lowest));
        }
        None
    }
    /// The same by looking at all mappings.
    fn highest_hole(&self, within: PageRange, pages: u64) -> Option<PageRange> {
        let fits = |hole: PageRange| {
            let [_, behind] = self.still().around(key(hole.start()));
            let clear = |(_, area): (_, &Entry<Area>)| Self::clear_of(area.range.start(), &area.mapping);
            let end = behind.map_or(hole.end(), clear).min(hole.end());
            let start = end.checked_sub(pages).filter(|&start| start >= hole.start())?;
            PageRange::with_len(start, pages)
        };
        let mut rooms = self.holes(within).filter_map(fits);
        if mutant!("hole-lowest") { rooms.next() } else { rooms.last() }
    }
    fn lowest_gap(&self, pages: u64) -> Option<PageRange> {
        let window = range(page(LOW_WINDOW.start), page(LOW_WINDOW.end));
        let fits =
            |hole: &PageRange| PageRange::with_len(hole.start(), pages).filter(|&r| hole.contains_range(r));
        self.holes(window).filter_map(|hole| fits(&hole)).find(|&r| self.is_clear(r))
    }
}

/// One more of a list of what is to be, joined with the last if that says the same.
fn push(list: &mut Vec<(PageRange, Mapping)>, at: PageRange, mapping: Mapping) -> Result<(), Error> {
    if let Some((last, said)) = list.last_mut()
        && last.end() == at.start()
        && said.continues(last.len(), &mapping)
    {
        *last = range(last.start(), at.end());
        return Ok(());
    }
    list.try_reserve(1).map_err(|_| Error::NoMemory)?;
    list.push((at, mapping));
    Ok(())
}

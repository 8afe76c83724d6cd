//! Moving, growing and shrinking a mapping: a plan is made with all the pages locked that it is about, with every check that
//! Linux makes and in its order; then it is carried out, which can't fail. If the plan needs pages that aren't locked,
//! everything is let go, and it begins anew with more.

use super::{
    watch::{begun, emptied},
    *,
};

/// A change of one mapping.
struct Request<'a> {
    old: PageRange,
    pages: u64,
    to: RemapTo,
    keep: bool,
    limits: &'a Limits,
    /// Whether the caller has `moving`.
    still: bool,
}

/// What became of an attempt.
enum Attempt {
    Done(Page),
    /// The pages have to move, to a place that is still to be found.
    Move,
    /// Something was changed by others meanwhile.
    Again,
    /// The pages are an object's, which may be looking for them, and `moving` isn't the caller's.
    Unsettled,
}

impl Request<'_> {
    /// Whether a dictated place makes sense.
    fn check_target(&self, at: Page) -> Result<PageRange, Error> {
        let target = PageRange::with_len(at, self.pages).filter(|t| t.end() <= USER_END_PAGE);
        target.filter(|t| t.intersect(self.old).is_none()).ok_or(Error::Invalid)
    }
    /// The pages that stay or move.
    fn kept(&self) -> Range<u64> {
        let start = self.old.start().number();
        start..start + self.pages.min(self.old.len())
    }
    /// Where the old pages would end if they grew, if they may and can.
    fn grown_end(&self) -> Option<u64> {
        let end = self.old.start().number().checked_add(self.pages)?;
        let may = !self.keep && self.pages > self.old.len() && !matches!(self.to, RemapTo::Fixed(_));
        (may && end <= USER_END_PAGE.number()).then_some(end)
    }
}

impl Radix {
    pub(super) fn remap_pages(
        &self,
        old: PageRange,
        n: u64,
        to: RemapTo,
        keep: bool,
        limits: &Limits,
        ctx: &Unpinned<'_>,
    ) -> Result<Page, Error> {
        let mut all = Request { old, pages: n, to, keep, limits, still: false };
        // Several mappings move one by one, and what lies between them stays.
        let one = old.len() != n || !matches!(to, RemapTo::Fixed(_)) || self.is_one(old, ctx);
        if one && let Some(at) = self.remap_one(&all, ctx)? {
            return Ok(at);
        }
        let _mover = self.moving.0.write(ctx);
        all.still = true;
        let RemapTo::Fixed(target) = to else { return self.remap_still(&all, ctx) };
        if one {
            return self.remap_still(&all, ctx);
        }
        all.check_target(target)?;
        let mut rest = old;
        while let Some(part) = self.first_part(rest, ctx)? {
            let there = target.checked_add(part.start().number() - old.start().number());
            let to = RemapTo::Fixed(there.ok_or(Error::Invalid)?);
            match self.remap_still(&Request { old: part, pages: part.len(), to, ..all }, ctx) {
                Err(Error::NoMapping) => continue,
                moved => _ = moved?,
            }
            rest = PageRange::new(part.end(), old.end()).unwrap_or_default();
        }
        Ok(target)
    }
    /// Whether all of `range` is mapped as one, or its first page isn't at all.
    fn is_one(&self, range: PageRange, ctx: &Unpinned<'_>) -> bool {
        let (start, end) = (range.start().number(), range.end().number().min(KEYS));
        let pin = ctx.pin();
        let section = self.tree.enter(&pin);
        start >= end || !self.at(start, &section).0.is_mapped() || self.end_of(start, end, &section) == end
    }
    /// The pages of the lowest mapping in `range` that are in it. With the pages locked, so that what is found to be gone is
    /// gone for everybody, and not still being shot down.
    fn first_part(&self, range: PageRange, ctx: &Unpinned<'_>) -> Result<Option<PageRange>, Error> {
        if range.is_empty() {
            return Ok(None);
        }
        let pin = ctx.pin();
        let section = self.tree.enter(&pin);
        let guard = self.lock_pages(range, Mode::Cover, &section)?;
        let desc = |span: &::radix::Span| self.realm.desc(Slot::of(span.value), &section);
        let mut mapped = guard.values().skip_while(|span| !Slot::of(span.value).is_mapped());
        let Some(first) = mapped.next() else { return Ok(None) };
        let mut end = first.first + first.keys;
        for next in mapped.take_while(|next| Slot::of(next.value).is_mapped()) {
            if next.first != end || !desc(&first).continues(desc(&next)) {
                break;
            }
            end += next.keys;
        }
        Ok(pages(first.first, end).intersect(range))
    }

    fn remap_still(&self, request: &Request<'_>, ctx: &Unpinned<'_>) -> Result<Page, Error> {
        let moved = self.remap_one(request, ctx)?;
        debug_assert!(moved.is_some(), "nothing moves, and a mapping was taken for unsettled");
        Ok(moved.unwrap_or_default())
    }
    /// One mapping; `None` if that is [`Unsettled`](Attempt::Unsettled).
    fn remap_one(&self, request: &Request<'_>, ctx: &Unpinned<'_>) -> Result<Option<Page>, Error> {
        let &Request { old, pages: n, to, keep, .. } = request;
        if n == 0 || keep && (n != old.len() || to == RemapTo::InPlace) {
            return Err(Error::Invalid);
        }
        let mut target = match to {
            RemapTo::Fixed(at) => Some(request.check_target(at)?),
            _ => None,
        };
        if old.start().number() >= KEYS {
            return Err(Error::NoMapping);
        }
        loop {
            match self.attempt(request, target, ctx)? {
                Attempt::Done(at) => return Ok(Some(at)),
                Attempt::Unsettled => return Ok(None),
                Attempt::Again => {}
                Attempt::Move => {
                    let pin = ctx.pin();
                    let section = self.tree.enter(&pin);
                    let at = match to {
                        RemapTo::Hint(at) => Placement::Hint(at),
                        _ => Placement::Anywhere,
                    };
                    let place = self.place(at, n, &section).ok_or(Error::NoRoom)?;
                    // If old pages were unmapped since, what was theirs may have been found to be free; and nobody locks a
                    // page twice. Then the old place says what is to be said.
                    target = Some(place)
                        .filter(|place| place.intersect(old).is_none() || mutant!("remap-own-pages"));
                }
            }
        }
    }
    fn attempt(
        &self,
        request: &Request<'_>,
        target: Option<PageRange>,
        ctx: &Unpinned<'_>,
    ) -> Result<Attempt, Error> {
        let pin = ctx.pin();
        let section = self.tree.enter(&pin);
        let start = request.old.start().number();
        let mut change = Change::new(self, &section, ctx);
        let lock = |keys: Range<u64>| self.lock_pages(pages(keys.start, keys.end), Mode::Exact, &section);
        let mut source = start..request.old.end().number().max(start + 1).min(KEYS);
        let Some(target) = target else {
            source.end = source.end.max(request.grown_end().unwrap_or(0));
            let mut guard = lock(source)?;
            let attempt = self.in_place(request, &mut guard, &mut change);
            change.settle();
            drop(guard);
            return attempt;
        };
        if request.keep {
            let whole = self.left_behind(request, target, &section);
            source = source.start.min(whole.start)..source.end.max(whole.end);
        }
        debug_assert!(target.intersect(request.old).is_none(), "pages would be locked twice");
        // The one page that is shown once more may be where it is shown.
        let (mut from, mut into) = if keys(target).contains(&source.start) {
            debug_assert!(request.old.is_empty());
            (None, lock(keys(target))?)
        } else if source.start < target.start().number() {
            let from = lock(source)?;
            let into = self.lock_behind(&from, target, &section)?;
            (Some(from), into)
        } else {
            let into = lock(keys(target))?;
            (Some(self.lock_behind(&into, pages(source.start, source.end), &section)?), into)
        };
        let attempt = self.elsewhere(request, from.as_mut(), &mut into, target, &mut change);
        change.settle();
        drop(from);
        drop(into);
        attempt
    }
    /// Lock the pages of `range` too, for one who has `lower`.
    fn lock_behind<'g>(
        &'g self,
        lower: &Guard<'_>,
        range: PageRange,
        section: &'g Section<'_, Realm>,
    ) -> Result<Guard<'g>, Error> {
        let mut reserve = self.realm.reserve(section.pin()).borrow_mut();
        let guard = self.tree.lock_behind(lower, keys(range), Mode::Exact, &mut reserve, section);
        guard.map_err(|_| Error::NoMemory)
    }
    /// The mapping that pages leave behind when they go to `target`, which may cut a part of it off.
    fn left_behind(
        &self,
        request: &Request<'_>,
        target: PageRange,
        section: &Section<'_, Realm>,
    ) -> Range<u64> {
        let kept = request.kept();
        let area = self.area_from(kept.start, section).filter(|(area, _)| area.contains(request.old.start()));
        let Some(mut whole) = area.map(|(area, _)| keys(area)) else { return kept };
        if keys(target).start >= kept.end {
            whole.end = whole.end.min(keys(target).start);
        } else {
            whole.start = whole.start.max(keys(target).end);
        }
        whole
    }

    /// What is to be said of the source, in Linux's order: its first page's slot.
    fn checked(&self, request: &Request<'_>, change: &Change<'_>) -> Result<Slot, Error> {
        let &Request { old, pages: n, keep, .. } = request;
        let section = change.section();
        let (slot, _) = self.at(old.start().number(), section);
        if !slot.is_mapped() {
            return Err(Error::NoMapping);
        }
        let mapping = &change.desc(slot).mapping;
        if old.is_empty() && !mapping.shared {
            return Err(Error::Invalid);
        }
        if n <= old.len() && !keep {
            user(old)?;
            if !matches!(request.to, RemapTo::Fixed(_)) {
                return Ok(slot);
            }
        }
        let kept = request.kept();
        if self.end_of(kept.start, kept.end.min(KEYS), section) < kept.end {
            return Err(Error::NoMapping);
        }
        check(&mapping.advanced(old.start().number()), n)?;
        Ok(slot)
    }
    /// Shrink or grow without moving, if that is what it comes to.
    fn in_place(
        &self,
        request: &Request<'_>,
        guard: &mut Guard<'_>,
        change: &mut Change<'_>,
    ) -> Result<Attempt, Error> {
        let &Request { old, pages: n, keep, limits, .. } = request;
        let slot = self.checked(request, change)?;
        let mapping = &change.desc(slot).mapping;
        let (start, end, section) = (old.start().number(), old.end().number(), change.section());
        if n <= old.len() && !keep {
            let cut = start + n..end;
            if !cut.is_empty() && self.machine.frames.low() && self.punches(pages(cut.start, end), section) {
                return Err(Error::NoMemory);
            }
            self.vacate(guard, cut, change)?;
            return Ok(Attempt::Done(old.start()));
        }
        let more = Difference::more(mapping, n.saturating_sub(old.len()));
        if n > old.len() {
            self.counts.charge(binds(limits, mapping), &more, section.pin(), |now| {
                limits.admit(now, mapping, n - old.len())
            })?;
        }
        let undo = |answer| {
            if n > old.len() {
                self.counts.add(&more.undone(), section.pin());
            }
            answer
        };
        if keep {
            if let Err(error) = self.admit_kept(request, mapping, None, change) {
                return undo(Err(error));
            }
            return undo(Ok(Attempt::Move));
        }
        let free = |guard: &Guard<'_>| {
            let beyond = |span: &::radix::Span| span.first + span.keys > end;
            guard.spans().filter(beyond).all(|span| !Slot::of(span.value).is_mapped())
        };
        match request.grown_end() {
            Some(grown) if free(guard) => {
                let crosses = |span: ::radix::Span| span.first < end && end < span.first + span.keys;
                if self.machine.frames.low() || guard.refine(crosses).is_err() {
                    return undo(Err(Error::NoMemory));
                }
                // It is more of a mapping that there is: nothing can forbid it.
                let _ = self.announce(mapping, n - old.len(), section.pin());
                guard.update(|span| match (end..grown).contains(&span.first) {
                    true => begun(slot, mapping).word(),
                    false => span.value,
                });
                Ok(Attempt::Done(old.start()))
            }
            _ if request.to == RemapTo::InPlace => undo(Err(Error::NoRoom)),
            _ => undo(Ok(Attempt::Move)),
        }
    }
    /// Whether the limits allow pages that leave their mapping behind.
    fn admit_kept(
        &self,
        request: &Request<'_>,
        mapping: &Mapping,
        target: Option<Totals>,
        change: &Change<'_>,
    ) -> Result<(), Error> {
        // The source unlocks as its pages go, so no more are locked than before.
        let limits = Limits { locked: u64::MAX, ..*request.limits };
        let gone = target.unwrap_or_default();
        let nothing = Difference::default();
        self.counts.charge(binds(&limits, mapping), &nothing, change.section().pin(), |now| {
            let without = Totals {
                pages: now.pages.saturating_sub(gone.pages),
                data: now.data.saturating_sub(gone.data),
                ..*now
            };
            limits.admit(&without, mapping, request.pages)
        })
    }
    /// Empty the pages `cut`, all of which the guard has.
    fn vacate(&self, guard: &mut Guard<'_>, cut: Range<u64>, change: &mut Change<'_>) -> Result<(), Error> {
        let crosses = |span: ::radix::Span, key| span.first < key && key < span.first + span.keys;
        let edge = |span| crosses(span, cut.start) || crosses(span, cut.end);
        guard.refine(edge).map_err(|_| Error::NoMemory)?;
        guard.update(|span| {
            let slot = Slot::of(span.value);
            if !cut.contains(&span.first) || !slot.is_mapped() {
                return span.value;
            }
            change.unmapped(slot, span.first, span.keys);
            Slot::EMPTY.word()
        });
        Ok(())
    }

    /// Move to `target`, all of which `into` has.
    fn elsewhere(
        &self,
        request: &Request<'_>,
        mut from: Option<&mut Guard<'_>>,
        into: &mut Guard<'_>,
        target: PageRange,
        change: &mut Change<'_>,
    ) -> Result<Attempt, Error> {
        let &Request { old, pages: n, to, keep, limits, still } = request;
        let slot = self.checked(request, change)?;
        let mapping = &change.desc(slot).mapping;
        let (section, start, there) = (change.section(), old.start().number(), target.start().number());
        if mapping.mappers().is_some() && !still && !mutant!("remap-unsettled") {
            return Ok(Attempt::Unsettled);
        }
        let kept = request.kept();
        let fixed = matches!(to, RemapTo::Fixed(_));
        let mut gone = Totals::default();
        for span in into.spans().filter(|span| keys(target).contains(&span.first)) {
            let slot = Slot::of(span.value);
            if slot.is_mapped() && !fixed {
                return Ok(Attempt::Move);
            }
            if slot.is_mapped() {
                gone.add(&change.desc(slot).mapping, span.keys);
            }
        }
        if !fixed && !self.is_clear_above(target.end().number(), section) {
            return Ok(Attempt::Move);
        }
        // All of the old mapping is unlocked, as Linux does (`dontunmap_complete`).
        let unlocks = keep && mapping.flags.contains(Flags::LOCKED);
        let whole = if unlocks { self.left_behind(request, target, section) } else { kept.clone() };
        let has = |from: &&mut Guard<'_>| from.keys().start <= whole.start && whole.end <= from.keys().end;
        if !whole.is_empty() && !from.as_ref().is_some_and(has) {
            return Ok(Attempt::Again);
        }
        let more = Difference::more(mapping, n.saturating_sub(old.len()));
        let grows = n > old.len();
        if grows {
            self.counts.charge(binds(limits, mapping), &more, section.pin(), |now| {
                limits.admit(now, mapping, n - old.len())
            })?;
        }
        let ready = || {
            if keep {
                self.admit_kept(request, mapping, fixed.then_some(gone), change)?;
            }
            if fixed {
                dictated(Placement::Fixed(target.start()), target)?;
            }
            if self.machine.frames.low() { Err(Error::NoMemory) } else { Ok(()) }
        };
        // What the pages should be where they go, where nobody watches them.
        let mut base = mapping.advanced(start).advanced(0u64.wrapping_sub(there));
        let unwatched = base.watch.take().is_some();
        let source =
            |key: u64| (key - there < kept.end - start).then(|| self.at(key - there + start, section));
        let prepared = ready().and_then(|()| {
            let desc = self.realm.intern(&base, section.pin()).ok_or(Error::NoMemory)?;
            let crosses = |span: ::radix::Span, key| span.first < key && key < span.first + span.keys;
            let (end, moved_end) = (target.end().number(), there + (kept.end - start));
            let splits = |span: ::radix::Span| {
                let inside = span.first >= there && span.first < moved_end;
                let uniform = !inside
                    || source(span.first).is_none_or(|(_, found)| {
                        let offset = span.first - there + start - found.first;
                        offset + span.keys <= found.keys
                    });
                let edges = [there, end, moved_end];
                edges.iter().any(|&edge| crosses(span, edge)) || !uniform
            };
            into.refine(splits).map_err(|_| Error::NoMemory)?;
            let edges = [kept.start, kept.end, old.end().number(), whole.start, whole.end];
            let at_edge = |span| edges.iter().any(|&edge| crosses(span, edge));
            from.as_mut().map_or(Ok(()), |from| from.refine(at_edge)).map_err(|_| Error::NoMemory)?;
            let new = match from.as_deref().filter(|_| unlocks) {
                Some(from) => {
                    Some(self.describe(from, &whole, section.pin(), section, |m| relock(m, Lock::Off))?)
                }
                None => None,
            };
            Ok((desc, new))
        });
        let (desc, unlocked) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                if grows {
                    self.counts.add(&more.undone(), section.pin());
                }
                return Err(error);
            }
        };
        // It is more of a mapping that there is: nothing can forbid it.
        let _ = self.announce(&desc.desc().mapping, n, section.pin());
        let charged = if grows { n - old.len() } else { 0 };
        change.difference.add(desc.desc().kinds, (n - charged) as i64);
        let mut from = from;
        // What the hardware has noted of managed pages is in the words that move.
        if let Some(from) = from.as_deref_mut() {
            from.update(|span| match kept.contains(&span.first) {
                true => change.hide_managed(Slot::of(span.value), span.first).word(),
                false => span.value,
            });
        }
        into.update(|span| {
            if Slot::of(span.value).is_mapped() {
                change.unmapped(Slot::of(span.value), span.first, span.keys);
            }
            match source(span.first) {
                Some((was, _)) if unwatched => was.moved(desc.slot().desc()).with_level(None).word(),
                Some((was, _)) => was.moved(desc.slot().desc()).word(),
                None => desc.slot().word(),
            }
        });
        let Some(from) = from else { return Ok(Attempt::Done(target.start())) };
        from.update(|span| {
            let slot = Slot::of(span.value);
            let old_page = (start..old.end().number()).contains(&span.first);
            let moves = kept.contains(&span.first);
            if !(slot.is_mapped() && (old_page || keep && whole.contains(&span.first))) {
                return span.value;
            }
            if moves && slot.frame().is_some() {
                change.hide(slot, span.first);
            }
            if keep {
                let left = if moves { emptied(slot, &change.desc(slot).mapping) } else { slot };
                let Some(hold) = unlocked.as_ref().and_then(|new| new.of(slot)) else {
                    return left.word();
                };
                change.relabelled(change.desc(slot), hold.desc(), span.keys);
                let slot = left;
                return slot.with_desc(hold.slot().desc()).word();
            }
            match moves {
                true => change.forget(slot, span.keys),
                false => change.unmapped(slot, span.first, span.keys),
            }
            Slot::EMPTY.word()
        });
        Ok(Attempt::Done(target.start()))
    }
}

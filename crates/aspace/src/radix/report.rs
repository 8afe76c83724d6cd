//! What reports are told.

use super::{fault::said, watch::is_protected, *};
use crate::{Backing, Resident};

impl Radix {
    /// Call `f` with each mapping that has pages in `range`, whole, ascending; without any lock.
    pub(super) fn each_area(&self, range: PageRange, ctx: &Unpinned<'_>, mut f: impl FnMut(MappingInfo<'_>)) {
        let mut at = range.start().number();
        while at < range.end().number().min(KEYS) {
            let next = {
                let pin = ctx.pin();
                let section = self.tree.enter(&pin);
                let area = self.area_from(at, &section);
                area.map(|(area, desc)| (area, desc.mapping.advanced(area.start().number())))
            };
            let Some((area, mapping)) = next.filter(|(area, _)| area.start() < range.end()) else { return };
            f(MappingInfo { range: area, mapping: &mapping });
            at = area.end().number();
        }
    }
    /// Call `f` with the parts of mappings in `range`, ascending; without any lock. What lies beyond isn't looked at.
    pub(super) fn each_part(&self, range: PageRange, ctx: &Unpinned<'_>, mut f: impl FnMut(MappingInfo<'_>)) {
        let Range { start: mut at, end } = keys(range);
        while at < end {
            let next = {
                let pin = ctx.pin();
                let section = self.tree.enter(&pin);
                let part = self.part_from(at, end, &section);
                part.map(|(part, desc)| (part, desc.mapping.advanced(part.start().number())))
            };
            let Some((part, mapping)) = next else { return };
            f(MappingInfo { range: part, mapping: &mapping });
            at = part.end().number();
        }
    }
    /// Call `f` with each page of `range` that has a frame or a marker, ascending; without any lock.
    pub(super) fn each_page(&self, range: PageRange, ctx: &Unpinned<'_>, mut f: impl FnMut(Page, Resident)) {
        let Range { start: mut at, end } = keys(range);
        while at < end {
            let pin = ctx.pin();
            let section = self.tree.enter(&pin);
            let mut next = None;
            self.tree.scan(at..end, &section, |found| {
                next = Some(found).filter(|found| !Slot::of(found.value).is_blank());
                next.is_none()
            });
            let Some(found) = next else { return };
            let slots = found.first.max(at)..(found.first + found.keys).min(end);
            at = slots.end;
            if let Some(resident) = self.resident(slots.start, &section) {
                slots.for_each(|key| f(page(key), resident));
            }
        }
    }
    /// What is to be said of page `key`, looked at while it is locked. All pages of a span are alike: guards.
    fn resident(&self, key: u64, section: &Section<'_, Realm>) -> Option<Resident> {
        let guard = self.tree.lock_one(key, section).ok()??;
        let (slot, frozen) = said(&guard, key);
        let seen = if frozen { slot.with_owner(SEVERAL) } else { slot };
        let (accessed, dirty) = self.tables.noted(page(key), seen);
        // A frozen node has one share for all trees that have it. As far as it is known: those that have a frame by another
        // frozen node count as one.
        let others = u64::from(guard.trees()) - 1;
        let frame = slot.frame();
        let usage = frame.map_or(owned::Use::Anonymous, |(_, usage)| usage);
        let frame = frame.map(|(frame, _)| frame);
        (!slot.is_blank()).then(|| Resident {
            frame,
            usage,
            sharers: frame.map_or(0, |frame| self.machine.frames.sharers(frame) + others),
            accessed,
            dirty,
            protected: is_protected(slot, &self.realm.desc(slot, section).mapping),
            poisoned: slot.is_poisoned(),
        })
    }
    /// The part of a mapping with which `within` begins.
    pub(super) fn part_at(&self, within: PageRange, ctx: &Unpinned<'_>) -> Option<(PageRange, Mapping)> {
        let pin = ctx.pin();
        let section = self.tree.enter(&pin);
        let first = Some(within.start()).filter(|_| !keys(within).is_empty())?;
        let single = PageRange::single(first)?;
        let (_, desc) = self.part_from(first.number(), single.end().number(), &section)?;
        let end = self.end_from(desc, first.number(), keys(within).end, &section);
        Some((pages(first.number(), end.max(single.end().number())), desc.mapping.advanced(first.number())))
    }
    pub(super) fn shown(&self, at: Page, ctx: &Unpinned<'_>) -> Option<((u64, u64), u64)> {
        let pin = ctx.pin();
        let section = self.tree.enter(&pin);
        let key = Some(at.number()).filter(|&key| key < KEYS)?;
        let slot = Some(self.at(key, &section).0).filter(|slot| slot.is_mapped())?;
        match &self.realm.desc(slot, &section).mapping {
            Mapping { backing: Backing::Object { object, page }, shared: true, .. } => {
                Some((object.identity(), page.wrapping_add(key)))
            }
            _ => None,
        }
    }

    /// Forget the pages `cut` of the object whose mappers are `of`, wherever they are.
    pub(super) fn cut_pages(&self, of: &Mappers, cut: Range<u64>, copies: bool, ctx: &Unpinned<'_>) {
        // Nothing moves to where this has been already.
        let _still = self.moving.0.write(ctx);
        self.each_area(pages(0, KEYS), ctx, |info| {
            let Some((_, first)) = info.mapping.object_page(0) else { return };
            if !shows(info.mapping, of) {
                return;
            }
            let (from, to) = (cut.start.max(first), cut.end.min(first.saturating_add(info.range.len())));
            if from >= to {
                return;
            }
            let start = info.range.start().number();
            let part = pages(start + (from - first), start + (to - first));
            // Page by page if there is no memory for the list of what is locked. One that has a frame, or is poisoned, has a slot
            // of its own, or is in a frozen node that no other tree has (I-F of `fork`): for those none is needed.
            if !self.cut_part(of, &cut, part, copies, ctx) {
                for page in part {
                    let single = PageRange::single(page).unwrap_or_default();
                    while self.may_be_cut(page, ctx) && !self.cut_part(of, &cut, single, copies, ctx) {}
                }
            }
        });
        if !mutant!("radix-cut-passes-by") {
            self.await_locked(ctx);
        }
    }
    /// Wait for each slot that is locked until it is not: what had been taken out when this was called, and could not be seen any
    /// more, has been flushed then.
    fn await_locked(&self, ctx: &Unpinned<'_>) {
        /// Spans looked at without a break.
        const AT_ONCE: usize = 4096;
        let mut at = 0;
        while at < KEYS {
            let pin = ctx.pin();
            let section = self.tree.enter(&pin);
            let (mut seen, mut locked, mut end) = (0, false, KEYS);
            self.tree.walk(at..KEYS, &section, |found| {
                (seen, locked, end) = (seen + 1, found.locked, found.first + found.keys);
                !locked && seen < AT_ONCE
            });
            // The lock is had, or has been free.
            while locked && self.tree.lock_one(end - 1, &section).is_err() {}
            at = if locked || seen == AT_ONCE { end } else { KEYS };
        }
    }
    /// Whether page `at` has a frame or is poisoned. Looked at while it is locked, so that a fault which has it locked later
    /// knows of the cut.
    fn may_be_cut(&self, at: Page, ctx: &Unpinned<'_>) -> bool {
        let (pin, key) = (ctx.pin(), at.number());
        let section = self.tree.enter(&pin);
        match self.tree.lock_one(key, &section) {
            Ok(guard) => guard.is_some_and(|guard| {
                let (slot, _) = said(&guard, key);
                slot.frame().is_some() || slot.is_poisoned()
            }),
            Err(_) => true,
        }
    }
    /// False if there was no memory. For one page none is needed.
    fn cut_part(
        &self,
        of: &Mappers,
        cut: &Range<u64>,
        part: PageRange,
        copies: bool,
        ctx: &Unpinned<'_>,
    ) -> bool {
        let pin = ctx.pin();
        let section = self.tree.enter(&pin);
        let mut change = Change::new(self, &section, ctx);
        let Ok(mut guard) = self.lock_pages(part, Mode::Alone, &section) else { return false };
        guard.update(|span| {
            let slot = Slot::of(span.value);
            // Poison goes with a mapping's own pages.
            let own = match slot.frame() {
                Some((_, usage)) => usage == owned::Use::Anonymous,
                None if slot.is_poisoned() && !mutant!("poison-uncut") => true,
                None => return span.value,
            };
            let mapping = &change.desc(slot).mapping;
            let shown = match &mapping.backing {
                Backing::Object { page, .. } => cut.contains(&page.wrapping_add(span.first)),
                Backing::Anonymous => false,
            };
            if !shown || !shows(mapping, of) || own && !copies {
                return span.value;
            }
            change.drop_frame(slot, span.first);
            slot.blank().word()
        });
        if mutant!("cut-no-flush") {
            change.flush_nobody();
        }
        change.settle();
        drop(guard);
        true
    }
}

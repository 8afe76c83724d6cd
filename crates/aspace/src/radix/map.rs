//! Mapping, unmapping, and the stack that grows.

use super::{watch::begun, *};
use crate::Backing;

impl Radix {
    pub(super) fn map_pages(
        &self,
        at: Placement,
        n: u64,
        asked: &Mapping,
        limits: &Limits,
        ctx: &Unpinned<'_>,
    ) -> Result<(PageRange, bool), Error> {
        let dictates = matches!(at, Placement::Fixed(_) | Placement::FixedNoReplace(_));
        let pin = ctx.pin();
        let section = self.tree.enter(&pin);
        loop {
            let range = self.place(at, n, &section).ok_or(Error::NoRoom)?;
            dictated(at, range)?;
            let mut change = Change::new(self, &section, ctx);
            let mut guard = self.guard(range, &section);
            self.lock_by(&mut guard, Mode::Fill, &section)?;
            let free = guard.all(|span| !(span.frozen || Slot::of(span.value).is_mapped()));
            // What was chosen without a lock may be taken by now.
            if !(dictates || free && self.is_clear_above(range.end().number(), &section)) {
                continue;
            }
            if matches!(at, Placement::FixedNoReplace(_)) && !free {
                return Err(Error::Exists);
            }
            // Relaxed: `lock_all` sets it while it has all pages, of which this guard has some.
            let flags = asked.flags | FUTURES[self.future.load(Ordering::Relaxed) as usize].flags();
            // As on Linux, droppable memory counts and is brought in as if it were to be locked, and then it isn't.
            let droppable = flags.contains(Flags::DROPPABLE);
            let locked = flags.contains(Flags::LOCKED);
            let bring_in = locked && (droppable || !flags.contains(Flags::ON_FAULT));
            let unlocked = flags.difference(Flags::LOCKED | Flags::ON_FAULT);
            let counted = asked.but(flags);
            let mut mapping = asked.but(if droppable { unlocked } else { flags });
            let more = Difference::more(&mapping, n);
            self.counts.charge(binds(limits, &counted), &more, &pin, |now| {
                let mut without = *now;
                guard.values().map(|span| (Slot::of(span.value), span.keys)).for_each(|(slot, keys)| {
                    if slot.is_mapped() {
                        without.sub(&change.desc(slot).mapping, keys);
                    }
                });
                limits.admit(&Totals { locked: now.locked, ..without }, &counted, n)
            })?;
            let refuse = |error| {
                self.counts.add(&more.undone(), &pin);
                Err(error)
            };
            if self.machine.frames.low() {
                return refuse(Error::NoMemory);
            }
            mapping.advance(0u64.wrapping_sub(range.start().number()));
            let Some(desc) = self.realm.intern(&mapping, &pin) else { return refuse(Error::NoMemory) };
            if !self.announce(&mapping, n, &pin) {
                return refuse(Error::Sealed);
            }
            change.replace(&mut guard, desc.slot());
            change.settle();
            // Unlocked first, as it is the later one.
            return Ok((range, bring_in));
        }
    }

    pub(super) fn unmap_pages(&self, range: PageRange, ctx: &Unpinned<'_>) -> Result<(), Error> {
        let pin = ctx.pin();
        let section = self.tree.enter(&pin);
        if self.machine.frames.low() && self.punches(range, &section) {
            return Err(Error::NoMemory);
        }
        let mut change = Change::new(self, &section, ctx);
        let early = mutant!("unlock-before-flush");
        {
            let mut guard = self.guard(range, &section);
            self.lock_by(&mut guard, Mode::Take, &section)?;
            change.replace(&mut guard, Slot::EMPTY);
            if !early {
                change.settle();
            }
        }
        if early {
            change.settle();
        }
        self.arenas.freed(range, &pin);
        Ok(())
    }

    pub(super) fn unmap_shown(
        &self,
        range: PageRange,
        identity: (u64, u64),
        ctx: &Unpinned<'_>,
    ) -> Result<bool, Error> {
        let start = range.start().number();
        let pin = ctx.pin();
        let section = self.tree.enter(&pin);
        // Only a mapping that holds the whole range and more is left with a hole in its middle.
        if self.machine.frames.low() && self.punches(range, &section) {
            return Err(Error::NoMemory);
        }
        let mut change = Change::new(self, &section, ctx);
        let mut guard = self.lock_pages(range, Mode::Edit, &section)?;
        let mut any = false;
        guard.update(|span| {
            let slot = Slot::of(span.value);
            let shown = slot.is_mapped()
                && match &change.desc(slot).mapping {
                    // Of a mapping of page 0 at the range's start, page 0 of the space would be that far before it.
                    Mapping { backing: Backing::Object { object, page }, shared: true, .. } => {
                        object.identity() == identity && *page == 0u64.wrapping_sub(start)
                    }
                    _ => false,
                };
            if !shown {
                return span.value;
            }
            any = true;
            change.unmapped(slot, span.first, span.keys);
            Slot::EMPTY.word()
        });
        change.settle();
        drop(guard);
        Ok(any)
    }

    pub(super) fn grow_stack(&self, at: Page, limits: &Limits, ctx: &Unpinned<'_>) -> Result<(), Error> {
        let at = at.number();
        let pin = ctx.pin();
        let section = self.tree.enter(&pin);
        loop {
            let next = self.mapped_from(at, KEYS, &section).ok_or(Error::NoMapping)?;
            if next.first <= at {
                return Ok(());
            }
            let top = next.first;
            if !self.realm.desc(Slot::of(next.value), &section).mapping.is_stack() || at < LOWEST {
                return Err(Error::NoMapping);
            }
            // The gap below, what is added, and the page above, so that it stays what it is.
            let below = at.saturating_sub(STACK_GAP);
            let mut change = Change::new(self, &section, ctx);
            let mut guard = self.lock_pages(pages(below, top + 1), Mode::Exact, &section)?;
            let mapped = |span: &::radix::Span| Slot::of(span.value).is_mapped();
            let first = guard.spans().find(|span| span.first + span.keys > at && mapped(span));
            let Some(first) = first.filter(|span| span.first == top) else { continue };
            let stack = Slot::of(first.value);
            let mapping = &change.desc(stack).mapping;
            if !mapping.is_stack() {
                return Err(Error::NoMapping);
            }
            // A mapping that nobody can use may be near, and so may a stack.
            let near = guard.spans().filter(|span| span.first < at && mapped(span)).last();
            if near.is_some_and(|span| {
                let other = &change.desc(Slot::of(span.value)).mapping;
                !other.is_stack() && !other.prot.is_empty()
            }) {
                return Err(Error::NoMapping);
            }
            let added = top - at;
            if (self.end_of(top, KEYS, &section) - top).saturating_add(added) > limits.stack {
                return Err(Error::Limit);
            }
            let more = Difference::more(mapping, added);
            self.counts
                .charge(binds(limits, mapping), &more, &pin, |now| limits.admit(now, mapping, added))?;
            let crosses = |span: ::radix::Span, key| span.first < key && key < span.first + span.keys;
            if self.machine.frames.low()
                || guard.refine(|span| crosses(span, at) || crosses(span, top)).is_err()
            {
                self.counts.add(&more.undone(), &pin);
                return Err(Error::NoMemory);
            }
            guard.update(|span| match (at..top).contains(&span.first) {
                true => begun(stack, mapping).word(),
                false => span.value,
            });
            change.settle();
            drop(guard);
            return Ok(());
        }
    }
}

//! Protection, and locked memory.

use super::{realm::Desc, *};
use crate::page as contents;

impl Radix {
    pub(super) fn protect_pages(
        &self,
        range: PageRange,
        prot: Prot,
        down: bool,
        limits: &Limits,
        ctx: &Unpinned<'_>,
    ) -> Result<(), Error> {
        if range.is_empty() {
            return Err(Error::Invalid);
        }
        let pin = ctx.pin();
        let section = self.tree.enter(&pin);
        if keys(range).is_empty() {
            return Err(Error::NoMapping);
        }
        loop {
            let range = if down { self.down_to_start(range, &section)? } else { range };
            let mut change = Change::new(self, &section, ctx);
            let mut guard = self.guard(range, &section);
            self.lock_by(&mut guard, Mode::Edit, &section)?;
            if down && (self.joins(range.start().number(), &section) || !self.begins_stack(&guard, &change)) {
                continue;
            }
            let splits = |end| self.splits(pages(range.start().number(), end), &section);
            let (reach, mut result) = self.protectable(&guard, &change, prot, limits);
            if result.is_ok() && reach.end < range.end().number() {
                result = Err(Error::NoMapping);
            }
            if reach.is_empty() {
                return result;
            }
            if self.machine.frames.low() && splits(reach.end) {
                return Err(Error::NoMemory);
            }
            let frames = self.machine.frames;
            let ask = |mapping: &mut Mapping| mapping.prot = prot;
            self.relabel_and(
                &mut guard,
                reach,
                &mut change,
                &section,
                ask,
                |change, slot, mapping, first| {
                    if let Some((frame, _)) = slot.frame()
                        && !mutant!("protect-no-flush")
                    {
                        let raised = mutant!("protect-raise-shared");
                        let all = if raised {
                            contents::hardware(prot)
                        } else {
                            contents::rights(mapping, frame, frames) & slot.cap()
                        };
                        change.restrict(slot, first, all);
                    }
                },
            )?;
            change.settle();
            // Unlocked first, as it is the later one.
            return result;
        }
    }
    /// `range` from the start of the lowest mapping in it, which must grow down.
    fn down_to_start(&self, range: PageRange, section: &Section<'_, Realm>) -> Result<PageRange, Error> {
        let (area, desc) = self.area_from(range.start().number(), section).ok_or(Error::NoMapping)?;
        if area.start() >= range.end() {
            return Err(Error::NoMapping);
        }
        if !desc.mapping.is_stack() {
            return Err(Error::Invalid);
        }
        PageRange::new(area.start(), range.end()).ok_or(Error::Invalid)
    }
    fn begins_stack(&self, guard: &Guard<'_>, change: &Change<'_>) -> bool {
        let first = guard.spans().next().map_or(Slot::EMPTY, |span| Slot::of(span.value));
        first.is_mapped() && change.desc(first).mapping.is_stack()
    }
    /// How far the guard's pages may be given `prot`, and what is to be said of the rest.
    fn protectable(
        &self,
        guard: &Guard<'_>,
        change: &Change<'_>,
        prot: Prot,
        limits: &Limits,
    ) -> (Range<u64>, Result<(), Error>) {
        let (start, limit) = (guard.keys().start, guard.keys().end);
        // Only who has such a limit asks for the totals.
        let totals = if limits.data < u64::MAX { self.counts.look().0 } else { Totals::default() };
        // Each mapping is looked at when all of its pages are known: `run` is its descriptor, from `at` to `end`.
        let (mut at, mut end, mut data) = (start, start, totals.data);
        let mut run: Option<&Desc> = None;
        // What becomes data is limited, unless there is so much mapped that as much again, of whatever kind, would be
        // too much (Linux's mprotect_fixup asks whether the old kind had fitted).
        let mut may_be = |run: Option<&Desc>, pages: u64| {
            let Some(Desc { mapping, .. }) = run else { return true };
            let (was, is) = (mapping.is_data(), mapping.is_data_under(prot));
            let fits = totals.pages.saturating_add(pages) <= limits.pages;
            if is && !was && fits && data.saturating_add(pages) > limits.data {
                return false;
            }
            match (was, is) {
                (false, true) => data += pages,
                (true, false) => data = data.saturating_sub(pages),
                _ => {}
            }
            true
        };
        let mut result = Ok(());
        guard.all(|span| {
            let slot = Slot::of(span.value);
            if !slot.is_mapped() {
                return false;
            }
            let desc = change.desc(slot);
            if !run.is_some_and(|run| run.continues(desc)) {
                if !may_be(run, end - at) {
                    result = Err(Error::Limit);
                    return false;
                }
                (at, run) = (end, Some(desc));
                if !desc.mapping.max_prot.contains(prot) {
                    (result, run) = (Err(Error::Denied), None);
                    return false;
                }
            }
            end = (span.first + span.keys).min(limit);
            true
        });
        if result.is_ok() && !may_be(run, end - at) {
            result = Err(Error::Limit);
        }
        // What was refused begins with its mapping.
        let reach = if result.is_ok() { end } else { at };
        (start..reach, result.and(if reach == limit { Ok(()) } else { Err(Error::NoMapping) }))
    }

    pub(super) fn lock_memory(
        &self,
        range: PageRange,
        lock: Lock,
        limits: &Limits,
        ctx: &Unpinned<'_>,
    ) -> Result<(), Error> {
        let pin = ctx.pin();
        let section = self.tree.enter(&pin);
        let mut change = Change::new(self, &section, ctx);
        if keys(range).is_empty() {
            let too_many = lock != Lock::Off && self.counts.look().0.locked + range.len() > limits.locked;
            return Err(if too_many { Error::LockLimit } else { Error::NoMapping });
        }
        let mut guard = self.lock_pages(range, Mode::Edit, &section)?;
        let reach = guard.keys().start..Self::reach(&guard);
        // Pages that are locked already count once.
        let locked = |mapping: &Mapping| mapping.flags.contains(Flags::LOCKED);
        let (mut before, mut after) = (0, 0);
        for span in guard.spans().filter(|span| Slot::of(span.value).is_mapped()) {
            let mapping = &change.desc(Slot::of(span.value)).mapping;
            let can = !mapping.flags.contains(Flags::DROPPABLE) && reach.contains(&span.first);
            before += if locked(mapping) { span.keys } else { 0 };
            after += if can && !locked(mapping) && lock != Lock::Off { span.keys } else { 0 };
        }
        let bind = lock != Lock::Off && limits.locked < u64::MAX;
        let mut more = Difference::default();
        more.add(Kinds::LOCKED, after as i64);
        self.counts.charge(bind, &more, &pin, |now| {
            let others = now.locked.saturating_sub(before);
            if others.saturating_add(range.len()) > limits.locked { Err(Error::LockLimit) } else { Ok(()) }
        })?;
        let splits = self.machine.frames.low() && self.splits(pages(reach.start, reach.end), &section);
        let relabelled = match splits && !reach.is_empty() {
            true => Err(Error::NoMemory),
            false => self
                .relabel(&mut guard, reach.clone(), &mut change, &section, |mapping| relock(mapping, lock)),
        };
        // What was charged is counted once more by what is done, or nothing is done.
        change.difference.add(Kinds::LOCKED, -(after as i64));
        change.settle();
        drop(guard);
        relabelled?;
        if reach.end >= range.end().number() { Ok(()) } else { Err(Error::NoMapping) }
    }

    pub(super) fn lock_all_memory(
        &self,
        now: Option<Lock>,
        to_come: Option<Lock>,
        limits: &Limits,
        ctx: &Unpinned<'_>,
    ) -> Result<(), Error> {
        let pin = ctx.pin();
        let section = self.tree.enter(&pin);
        let mut change = Change::new(self, &section, ctx);
        // With all pages locked nobody maps, and the totals stay what they are.
        let mut guard = self.lock_pages(pages(0, KEYS), Mode::Edit, &section)?;
        if now.is_some_and(|lock| lock != Lock::Off) && self.counts.look().0.pages > limits.locked {
            return Err(Error::LockLimit);
        }
        if let Some(lock) = now {
            self.relabel(&mut guard, 0..KEYS, &mut change, &section, |mapping| relock(mapping, lock))?;
        }
        if let Some(lock) = to_come {
            // Relaxed: read by who has locked pages, and so comes after this guard.
            self.future.store(future(lock), Ordering::Relaxed);
        }
        change.settle();
        drop(guard);
        Ok(())
    }
}

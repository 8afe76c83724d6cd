//! Levels of single pages, and what was written.
//!
//! **Claim.** When a call that lowers pages returns, no CPU completes an access above the new level, unless somebody has
//! raised the page since; only CPUs that have an entry for a lowered page are interrupted, once for a batch of pages; raising
//! interrupts nobody. A store is lost by no [`Radix::collect_dirty`]: it is found by the first call that begins after it, or
//! was found by one before. No call splits or joins a mapping, and none counts how many pages differ.
//!
//! **Idea.** The level is in the page's slot, beside its descriptor and not in it: so mappings don't know of levels, and
//! pages that are alike in both stay folded. An entry grants no more than the level allows (I2 of [`super`]); to change a
//! level is to lock the slot, store the word, and change the entries. What was written is said by the hardware's dirty bits
//! in the entries, of all tables that may have one, and by the slot's own DIRTY. A page was written if any of them says so.
//!
//! **Lowering.** Under the locks of all pages of the batch: entries lose the right in every table that the slot's owner
//! names (`tables`); then one flush of the CPUs whose tables had an entry with it; then the locks are given up. Two that
//! lower one page: the second finds the level low when it gets the lock, hence after the first one's flush. So it may
//! return at once.
//!
//! **Raising.** This CPU's entry gets what a fault would find, that is no writing to a frame which others share; entries of
//! other CPUs' tables stay, and so may stricter translations anywhere. A thread that meets one faults, the fault finds that the
//! level allows the access, puts the entry right, and nobody hears of it. The page's contents are what the frame in the
//! slot holds; a page without a frame gets no entry, but the level alone, and its first use is an ordinary fault.
//!
//! **Who is first, a fault or a lowering.** Both have the slot locked. A fault that was first has put its entry in, and the
//! lowering takes the right from it; one that comes later finds the level, and is refused.
//! An object is asked for its page without a lock; its entry is made by the level that the page has then.
//!
//! **Dirty bits.** To take them is, per page, under the slot's lock: clear the bit in each table's entry by read-modify-write; flush
//! those CPUs whose entry had it; unlock. A processor that has a translation cached as dirty stores without setting the bit
//! again; by the flush that is over when the call returns, and until then its stores go to a page that the caller is about to be told
//! of, and reads after that. One that has it cached as clean must set the bit in the entry first, and finds it as it is.
//!
//! **Pages that nobody has written.** To lock them all is most of the work where few were, so a table's pages are glanced at
//! first: one of them is locked, so that no table of theirs is unlinked; then all their entries are looked at, *and then* their
//! slots. If no entry of a page has the bit, and its slot is neither DIRTY nor locked, it was not written since an earlier call. For
//! a store that was over had its bit in an entry that the look goes to, or in the slot. If it was in the entry and the look found
//! it no more, somebody had taken it out, under the slot's lock, which was taken before that: and what the look found in the
//! entry, it found before it came to the slot. There it finds the lock, or what the holder left: DIRTY, unless a call has
//! taken it since, and told of it. The other way round a bit could be missed that is on its way from the entry to the slot.
//!
//! **A dirty bit goes nowhere but into the slot.** Entries that are dropped while the page lives on:
//! * copy on write is for a store, so the slot becomes DIRTY with the copy;
//! * `remap` and `move_page` empty the entry by a swap and keep the bit that was there ([`Change::hide_managed`]): after the
//!   swap the hardware finds no entry to set a bit in;
//! * tables that are shed are emptied of managed pages first, in the same way ([`Radix::keep_dirty`]). A frozen node's words can't
//!   be changed, so a table with a bit for one of its pages is not shed. None comes to be there meanwhile, as nobody
//!   writes by entries of frozen nodes (`fork`);
//! * a page that loses its contents, to `madvise` or as its object is cut, counts as written.
//!
//! Rights that are lowered leave the bit in the entry, present or not. Copies that the kernel makes for the program go by its
//! addresses, so the hardware notes them like any store. A child of a fork has pages of the same levels, and keeps track of its own
//! stores alone.
//!
//! **Locks.** Of one page its slot alone is locked, as by a fault. For several a range each, ascending, at most [`BATCH`] at a
//! time, or [`RUNS`] of pages that were written, all of which are kept until their one flush is over.

use alloc::vec::Vec;

use super::{fault::said, tables::Written, *};
use crate::{Level, Step, page as contents};

/// So many ranges are locked at a time.
const BATCH: usize = 32;
/// So many pages are looked at for what was written at a time: those of a leaf table.
const CHUNK: u64 = ENTRIES as u64;
/// Runs of them that are locked at a time, at most.
const RUNS: usize = 64;

impl Radix {
    fn manage_pages(&self, range: PageRange, level: Option<Level>, ctx: &Unpinned<'_>) -> Result<(), Error> {
        let pin = ctx.pin();
        let section = self.tree.enter(&pin);
        let mut change = Change::new(self, &section, ctx);
        let mut guard = self.lock_pages(range, Mode::Edit, &section)?;
        if range.end().number() > KEYS || !guard.all(|span| Slot::of(span.value).is_mapped()) {
            return Err(Error::NoMapping);
        }
        // Levels of watched pages are their watchers'.
        if !guard.all(|span| change.desc(Slot::of(span.value)).mapping.watch.is_none()) {
            return Err(Error::Invalid);
        }
        guard.update(|span| {
            let slot = Slot::of(span.value);
            self.put_level(slot, span.first, slot.with_level(level), &mut change).word()
        });
        fold_alike(&mut guard);
        change.settle();
        drop(guard);
        Ok(())
    }
    /// Page `key`, whose locked slot is `old`, is to be `new`, of which only the level is another: what it is to be. No entry
    /// grants more than that after the next flush.
    pub(super) fn put_level(&self, old: Slot, key: u64, new: Slot, change: &mut Change<'_>) -> Slot {
        if let Some((frame, _)) = old.frame() {
            let granted = |slot: Slot| {
                let rights = contents::rights(&change.desc(old).mapping, frame, self.machine.frames);
                rights & slot.cap()
            };
            let rights = granted(new);
            if new.cap().contains(old.cap()) {
                let rights = match mutant!("level-raise-shared") {
                    true => contents::hardware(change.desc(old).mapping.prot) & new.cap(),
                    false => rights,
                };
                self.tables.raise(page(key), rights, change.section().pin());
            } else if mutant!("level-no-flush") {
                self.tables.lower(page(key), old, rights, &mut CpuSet::EMPTY.clone());
            } else {
                change.restrict(old, key, rights);
            }
        }
        new
    }

    fn step_pages(&self, steps: &[Step], ctx: &Unpinned<'_>) -> Result<(), Error> {
        let ascending = steps.windows(2).all(|pair| pair[0].range.end() <= pair[1].range.start());
        if !ascending || steps.iter().any(|step| step.range.is_empty()) {
            return Err(Error::Invalid);
        }
        if let [step] = steps
            && step.range.len() == 1
        {
            return self.step_one(step.range.start(), step, ctx);
        }
        steps.chunks(BATCH).try_for_each(|batch| self.step_batch(batch, ctx))
    }
    fn step_batch(&self, steps: &[Step], ctx: &Unpinned<'_>) -> Result<(), Error> {
        let pin = ctx.pin();
        let section = self.tree.enter(&pin);
        let mut change = Change::new(self, &section, ctx);
        let mut guards = Vec::new();
        guards.try_reserve_exact(steps.len()).map_err(|_| Error::NoMemory)?;
        let mut result = Ok(());
        for step in steps {
            result = self.step_range(step, &mut guards, &mut change, &section);
            if result.is_err() {
                break;
            }
        }
        change.settle();
        drop(guards);
        result
    }
    /// Lock what `step` is about, behind `guards`, which get one more, and take it.
    fn step_range<'g>(
        &'g self,
        step: &Step,
        guards: &mut Vec<Guard<'g>>,
        change: &mut Change<'_>,
        section: &'g Section<'_, Realm>,
    ) -> Result<(), Error> {
        if keys(step.range).is_empty() {
            return Err(Error::NoMapping);
        }
        let guard = self.lock_more(step.range, guards, section)?;
        let mut result = Ok(());
        guard.all(|span| {
            let slot = Slot::of(span.value);
            result = self.own_level(slot, section).map(drop);
            result.is_ok()
        });
        result?;
        // It is kept from here on: the one flush is for it too.
        guards.push(guard);
        let Some(guard) = guards.last_mut() else { return Ok(()) };
        guard.update(|span| {
            let slot = Slot::of(span.value);
            let new = slot.with_level(slot.level().map(|old| step.apply(old)));
            if new == slot { span.value } else { self.put_level(slot, span.first, new, change).word() }
        });
        fold_alike(guard);
        Ok(())
    }
    /// The level of the pages of `slot`, which the program itself has said: of watched pages it is their watcher's.
    #[inline]
    fn own_level(&self, slot: Slot, section: &Section<'_, Realm>) -> Result<Level, Error> {
        if !slot.is_mapped() {
            return Err(Error::NoMapping);
        }
        let is_own = self.realm.desc(slot, section).mapping.watch.is_none() || mutant!("watch-managed");
        slot.level().filter(|_| is_own).ok_or(Error::Invalid)
    }
    /// Lock `range`, which lies behind `guards`.
    pub(super) fn lock_more<'g>(
        &'g self,
        range: PageRange,
        guards: &[Guard<'g>],
        section: &'g Section<'_, Realm>,
    ) -> Result<Guard<'g>, Error> {
        let Some(lower) = guards.last() else { return self.lock_pages(range, Mode::Edit, section) };
        let mut reserve = self.realm.reserve(section.pin()).borrow_mut();
        let locked = self.tree.lock_behind(lower, keys(range), Mode::Edit, &mut reserve, section);
        locked.map_err(|_| Error::NoMemory)
    }
    /// Take `step` for page `at` alone.
    fn step_one(&self, at: Page, step: &Step, ctx: &Unpinned<'_>) -> Result<(), Error> {
        let key = at.number();
        if key >= KEYS {
            return Err(Error::NoMapping);
        }
        let pin = ctx.pin();
        let section = self.tree.enter(&pin);
        let guard = self.tree.lock_one(key, &section).map_err(|_| Error::NoMemory)?;
        let mut guard = guard.ok_or(Error::NoMapping)?;
        let level = step.apply(self.own_level(said(&guard, key).0, &section)?);
        let narrowed = guard.narrow_to(key, &mut self.realm.reserve(&pin).borrow_mut());
        narrowed.map_err(|_| Error::NoMemory)?;
        let slot = Slot::of(guard.span().value);
        let new = slot.with_level(Some(level));
        if new == slot {
            return Ok(());
        }
        let mut change = Change::new(self, &section, ctx);
        let new = self.put_level(slot, key, new, &mut change);
        guard.set(new.word());
        change.settle();
        drop(guard);
        Ok(())
    }

    /// Raise page `at`; if it has a frame this CPU has an entry for it then.
    fn grant_one(&self, at: Page, level: Level, ctx: &Unpinned<'_>) -> Result<(), Error> {
        let key = at.number();
        if key >= KEYS {
            return Err(Error::NoMapping);
        }
        let pin = ctx.pin();
        let section = self.tree.enter(&pin);
        let guard = self.tree.lock_one(key, &section).map_err(|_| Error::NoMemory)?;
        let mut guard = guard.ok_or(Error::NoMapping)?;
        if guard.span().keys > 1 || guard.span().frozen {
            self.own_level(said(&guard, key).0, &section)?;
            let narrowed = guard.narrow_to(key, &mut self.realm.reserve(&pin).borrow_mut());
            narrowed.map_err(|_| Error::NoMemory)?;
        }
        let slot = Slot::of(guard.span().value);
        let slot = slot.with_level(Some(self.own_level(slot, &section)?.max(level)));
        let Some((frame, _)) = slot.frame() else {
            guard.finish(slot.word());
            return Ok(());
        };
        let mapping = &self.realm.desc(slot, &section).mapping;
        let rights = contents::rights(mapping, frame, self.machine.frames) & slot.cap();
        // Without a table there is a fault more; and if the entry was shed.
        if self.tables.is_alone(slot, &pin) {
            self.tables.raise(at, rights, &pin);
            guard.finish(slot.word());
        } else {
            let ready = self.tables.ready(at, &pin);
            guard.finish(ready.map_or(slot, |ready| ready.set(slot, rights)).word());
        }
        Ok(())
    }
    /// The level of page `at` if that alone forbids `access`, by a look without locks: then the access was refused at the time of
    /// the look, whatever becomes of the page.
    #[inline(always)]
    pub(super) fn refused(&self, at: Page, access: Access, pin: &Pinned<'_>) -> Option<Level> {
        let section = self.tree.enter(pin);
        let slot = Slot::of(self.tree.get(at.number(), &section).value);
        let level = slot.level().filter(|level| !access.allowed_by(level.cap()))?;
        let mapping = &self.realm.desc(slot, &section).mapping;
        let others = access == Access::Exec || slot.is_marker() || mapping.watch.is_some();
        (!others && access.allowed_by(mapping.prot)).then_some(level)
    }

    fn collect_dirty(&self, range: PageRange, written: &mut [u64], ctx: &Unpinned<'_>) -> Result<(), Error> {
        let Range { start, end } = keys(range);
        let mut at = start;
        while let Some(from) = self.written_from(at, end, ctx) {
            let chunk = from..((from / CHUNK + 1) * CHUNK).min(end);
            at = chunk.end;
            let mut may = self.may_be_written(&chunk, ctx)?;
            if runs(&may, chunk.clone()).count() > RUNS {
                // Few that are larger: who has stored to any of them is told once.
                may.iter_mut().filter(|word| **word != 0).for_each(|word| *word = u64::MAX);
            }
            let say = |pages: Range<u64>| pages.for_each(|key| set(written, key - start));
            self.collect_runs(runs(&may, chunk), say, ctx)?;
        }
        Ok(())
    }
    /// Say of the pages of `runs`, which ascend and are [`RUNS`] at most, which were written.
    fn collect_runs(
        &self,
        runs: impl Iterator<Item = Range<u64>>,
        mut say: impl FnMut(Range<u64>),
        ctx: &Unpinned<'_>,
    ) -> Result<(), Error> {
        let pin = ctx.pin();
        let section = self.tree.enter(&pin);
        let mut change = Change::new(self, &section, ctx);
        let mut guards = Vec::new();
        guards.try_reserve_exact(RUNS).map_err(|_| Error::NoMemory)?;
        let mut result = Ok(());
        for run in runs {
            let locked = self.lock_more(pages(run.start, run.end), &guards, &section);
            result = locked.map(|mut guard| {
                guard.update(|span| {
                    let slot = Slot::of(span.value);
                    if slot.level().is_none() {
                        return span.value;
                    }
                    let noted = slot.frame().is_some() && change.clean(slot, span.first);
                    if noted || slot.is_dirty() {
                        say(span.first..span.first + span.keys);
                    }
                    slot.cleaned().word()
                });
                guards.push(guard);
            });
            if result.is_err() {
                break;
            }
        }
        if mutant!("dirty-no-flush") {
            change.flush_nobody();
        }
        change.settle();
        drop(guards);
        result
    }
    /// The first page of `at..end` that may have been written, by a look without locks: pages without a frame that aren't DIRTY
    /// were not when they were looked at.
    fn written_from(&self, at: u64, end: u64, ctx: &Unpinned<'_>) -> Option<u64> {
        let mut first = None;
        let pin = ctx.pin();
        self.tree.scan(at..end, &self.tree.enter(&pin), |found| {
            let slot = Slot::of(found.value);
            let may = slot.level().is_some() && (slot.frame().is_some() || slot.is_dirty());
            first = may.then_some(found.first.max(at));
            !may
        });
        first
    }
    /// Which pages of `chunk`, that one leaf table serves, may have been written, by a look with its first page
    /// locked: of the others none was that had not been taken when it began.
    fn may_be_written(&self, chunk: &Range<u64>, ctx: &Unpinned<'_>) -> Result<Written, Error> {
        let pin = ctx.pin();
        let section = self.tree.enter(&pin);
        let guard = self.tree.lock_one(chunk.start, &section).map_err(|_| Error::NoMemory)?;
        // Unmapped meanwhile: nothing keeps a table.
        let Some(guard) = guard else { return Ok([u64::MAX; _]) };
        let locked = guard.span().first;
        // The entries, and then the slots: see the module.
        let mut written = self.tables.written(page(chunk.start), pages(chunk.start, chunk.end), &pin);
        self.tree.glance(chunk.clone(), word::DIRTY, &section, |found| {
            let is_changing = found.locked && found.first != locked && !mutant!("dirty-glance-unlocked");
            let may = found.frozen || is_changing || Slot::of(found.value).is_dirty();
            if may && !mutant!("dirty-glance-no-slots") {
                // Of spans that are larger all have the same word.
                let keys = found.first.max(chunk.start)..(found.first + found.keys).min(chunk.end);
                keys.for_each(|key| set(&mut written, key % CHUNK));
            }
        });
        drop(guard);
        Ok(written)
    }
    fn write_again(&self, range: PageRange, written: &[u64], ctx: &Unpinned<'_>) -> Result<(), Error> {
        let start = range.start().number();
        for key in keys(range).filter(|key| get(written, key - start)) {
            let pin = ctx.pin();
            let section = self.tree.enter(&pin);
            let guard = self.tree.lock_one(key, &section).map_err(|_| Error::NoMemory)?;
            let Some(mut guard) = guard.filter(|guard| said(guard, key).0.level().is_some()) else {
                continue;
            };
            let narrowed = guard.narrow_to(key, &mut self.realm.reserve(&pin).borrow_mut());
            narrowed.map_err(|_| Error::NoMemory)?;
            let slot = Slot::of(guard.span().value);
            guard.set(slot.dirtied().word());
        }
        Ok(())
    }
    /// `mirror` is about to lose all entries of the guard's pages: put into the slots what it has noted of managed ones. False
    /// if there is something that can't be put there.
    pub(super) fn keep_dirty(&self, guard: &mut Guard<'_>, mirror: &Mirror) -> bool {
        let noted = |span: &::radix::Span| mirror.peek(page(span.first)).is_dirty();
        let managed = |span: &::radix::Span| Slot::of(span.value).level().is_some();
        if guard.may_have_frozen() && guard.values().any(|span| span.frozen && managed(&span) && noted(&span))
        {
            return false;
        }
        guard.update(|span| {
            let slot = Slot::of(span.value);
            let lives = managed(&span) && slot.frame().is_some();
            let dirty = lives && mirror.clear(page(span.first)).is_dirty();
            if dirty { slot.dirtied().word() } else { span.value }
        });
        true
    }
}

/// Let the guard's pages be in as few slots as possible, if they are all alike and without frames.
pub(super) fn fold_alike(guard: &mut Guard<'_>) {
    let keys = guard.keys();
    if keys.end - keys.start < LEAF {
        return;
    }
    let (mut alike, mut single) = (None, false);
    let all = guard.all(|span| {
        let slot = Slot::of(span.value);
        single |= span.keys == 1;
        !span.frozen && slot.is_mapped() && slot.is_blank() && *alike.get_or_insert(slot) == slot
    });
    if let Some(slot) = alike.filter(|_| all && single) {
        guard.replace(slot.word(), |_| ());
    }
}

/// The runs of pages of `chunk` that `of` has, a bit for each page of the chunk's table.
fn runs(of: &Written, chunk: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
    let table = chunk.start / CHUNK * CHUNK;
    let (mut at, end) = (chunk.start - table, chunk.end - table);
    // The first bit from `at` on that differs from `flipped`'s, or the end.
    let first = move |mut at: u64, flipped: u64| {
        while at < end {
            let word = of.get((at / 64) as usize).map_or(0, |word| (word ^ flipped) >> (at % 64));
            if word != 0 {
                return end.min(at + u64::from(word.trailing_zeros()));
            }
            at = (at / 64 + 1) * 64;
        }
        end
    };
    core::iter::from_fn(move || {
        let start = first(at, 0);
        at = first(start, u64::MAX);
        (start < end).then_some(table + start..table + at)
    })
}

fn set(bits: &mut [u64], at: u64) {
    if let Some(word) = bits.get_mut((at / 64) as usize) {
        *word |= 1 << (at % 64);
    }
}

fn get(bits: &[u64], at: u64) -> bool {
    bits.get((at / 64) as usize).is_some_and(|word| word >> (at % 64) & 1 != 0)
}

impl Managed for Radix {
    fn manage(&self, range: PageRange, level: Option<Level>, ctx: &Unpinned<'_>) -> Result<(), Error> {
        user(range)?;
        // Relaxed: faults that don't see it look under the lock.
        self.manages.store(true, Ordering::Relaxed);
        if keys(range).is_empty() { Err(Error::NoMapping) } else { self.manage_pages(range, level, ctx) }
    }
    fn set_levels(&self, steps: &[Step], ctx: &Unpinned<'_>) -> Result<(), Error> {
        self.step_pages(steps, ctx)
    }
    fn grant(&self, page: Page, level: Level, ctx: &Unpinned<'_>) -> Result<(), Error> {
        self.grant_one(page, level, ctx)
    }
    fn take_dirty(&self, range: PageRange, written: &mut [u64], ctx: &Unpinned<'_>) -> Result<(), Error> {
        user(range)?;
        self.collect_dirty(range, written, ctx)
    }
    fn mark_dirty(&self, range: PageRange, written: &[u64], ctx: &Unpinned<'_>) -> Result<(), Error> {
        user(range)?;
        self.write_again(range, written, ctx)
    }
    fn first_forbidden(&self, range: PageRange, access: Access, ctx: &Unpinned<'_>) -> Option<Page> {
        let all = keys(range);
        let mut first = None;
        let pin = ctx.pin();
        let section = self.tree.enter(&pin);
        self.tree.scan(all.clone(), &section, |found| {
            let slot = Slot::of(found.value);
            let forbids = slot.level().is_some_and(|level| level.check(access).is_err())
                && self.realm.desc(slot, &section).mapping.watch.is_none();
            first = forbids.then_some(page(found.first.max(all.start)));
            !forbids
        });
        first
    }
}

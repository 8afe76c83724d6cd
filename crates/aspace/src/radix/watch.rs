//! Watched pages: whose faults somebody else resolves (`watch` in the crate's root).
//!
//! **Claim.** An access that a watcher is to be told of changes nothing, and is let through by no CPU until the watcher has
//! acted. When a call that protects pages returns, no CPU stores to one of them, unless it was allowed since. What is
//! protected again where it was found to be written loses no store between the look and the protection. Pages that nobody
//! watches cost no fault an instruction more.
//!
//! **Idea.** Who watches is said by the descriptor, and by the slot no more than that somebody may: *I-W: a page of a watched
//! mapping has a level.* So a fault that finds none in the slot, which it looks for anyway, is done with watching too. A page
//! that is protected has the level Read; an entry grants no more than that (I2), and to protect is to lower a level, as in `managed`,
//! with its argument. Mappings keep their watchers when they are split, get other rights or grow; where pages go by
//! `remap`, and in a child of a fork, nobody watches them. Then they have no level either.
//!
//! **A fault that is told** was refused under the slot's lock, before any frame was asked for. Who then sees to it that the
//! watcher acts asks again ([`Watched::told`]) when the watcher can find it: a page that was filled or allowed before that is
//! found to be so, and one that is later has somebody to wake. Whether an object has a page is asked without locks, as
//! all is that is asked of objects: the answer may be late, in which case the access is one that came a moment earlier.
//!
//! **Filling.** The frame is made before the slot is locked, and put in if the page still is of the same descriptor, and blank. It is
//! never seen with half of its contents. A page whose contents are *lost* is one with a marker in the place of its frame, as
//! guards are: it has no entry, and so every access comes to the fault, which finds the marker before it looks who watches. It goes
//! where frames go: to where the page moves, to children, and away with what a mapping had of its own.
//!
//! **What was written** since it was protected is not protected any more.
//! With [`Modes::ASYNC`] the first store makes it so, in its own fault, under the slot's lock; and so does the loss of contents that
//! the page alone had. To protect it again is, under the locks of a span or of all pages of a leaf: look; store the level; take the right from the entries; then one flush, then unlock. A store
//! by an entry that still has the right is over by the flush, and so before the caller hears of the look's result.

use ::radix::SlotGuard;
use percpu::CpuSet;

use super::{
    fault::{own, said},
    managed::fold_alike,
    realm::Kept,
    *,
};
use crate::{
    Backing, Cause, Content, Fault, Level, Look, Modes, Object, ObjectError, Resident, Unfilled,
    Untransferred, Watch, Watched, page as contents,
};

/// How an access to a watched page goes on that nobody is told of, as far as the slot says.
pub(super) enum Met {
    /// The page is this, in a frozen node or not.
    Goes(Slot, bool),
    /// If its object has the page, or if it hasn't: that is to be asked without locks.
    Ask,
}

/// What there is to tell of an access.
enum Told {
    Nothing,
    Cause(Cause),
    /// If the page is missing, or if it is not: so its object has to be asked.
    IfObject,
}

/// How a page is to be filled.
struct Filling<'a> {
    with: Content<'a>,
    protected: bool,
    /// How often its object had been cut before it was asked for its page.
    cuts: u64,
}

/// So many pages in slots of their own are looked at at a time: those of a leaf table.
const CHUNK: u64 = ENTRIES as u64;

/// The modes in which it matters whether an object has a page.
const CONTENTS: Modes = Modes::MISSING.union(Modes::MINOR);

/// What there is to tell of `access`, which `mapping` allows, to a page of it whose slot is `slot`, and no marker.
fn told_of(slot: Slot, mapping: &Mapping, modes: Modes, access: Access) -> Told {
    if slot.frame().is_none() && modes.intersects(CONTENTS) {
        match &mapping.backing {
            Backing::Object { .. } => return Told::IfObject,
            Backing::Anonymous if modes.contains(Modes::MISSING) => return Told::Cause(Cause::Missing),
            Backing::Anonymous => {}
        }
    }
    let protected = access == Access::Write && slot.level() == Some(Level::Read);
    if protected && modes.contains(Modes::PROTECT) { Told::Cause(Cause::Protected) } else { Told::Nothing }
}

/// The same if the object has to be asked, and has answered whether it `has` the page.
fn told_by_object(modes: Modes, has: bool) -> Option<Cause> {
    let (cause, mode) = if has { (Cause::Minor, Modes::MINOR) } else { (Cause::Missing, Modes::MISSING) };
    modes.contains(mode).then_some(cause)
}

/// The object's page that page `key` of a descriptor's mapping shows, which is as if it began at page 0.
fn object_at(mapping: &Mapping, key: u64) -> Option<(&Arc<dyn Object>, u64)> {
    match &mapping.backing {
        Backing::Object { object, page } => Some((object, page.wrapping_add(key))),
        Backing::Anonymous => None,
    }
}

/// What a new page of `mapping` is, which is like that of `slot`.
pub(super) fn begun(slot: Slot, mapping: &Mapping) -> Slot {
    slot.fresh().with_level(mapping.watch.as_ref().map(|_| Level::ReadWrite))
}

/// Whether a page of `mapping` whose slot is `slot` may get the contents `with`. As Linux has it what was copied, and an object's
/// page, takes the place of a marker too.
fn takes(slot: Slot, mapping: &Mapping, with: Content<'_>) -> bool {
    match with {
        Content::Bytes(_) | Content::Object => slot.frame().is_none(),
        Content::Zeros if mapping.shared => slot.frame().is_none(),
        Content::Zeros | Content::Lost => slot.is_blank() && !is_protected(slot, mapping),
    }
}

/// What a page of `mapping` is whose contents were dropped: an anonymous one is no longer protected.
pub(super) fn emptied(slot: Slot, mapping: &Mapping) -> Slot {
    match mapping.watch {
        Some(_) if matches!(mapping.backing, Backing::Anonymous) => {
            slot.blank().with_level(Some(Level::ReadWrite))
        }
        _ => slot.blank(),
    }
}

impl Radix {
    /// An access that `mapping` allows, and that is watched by `watch`, has come to the guard's page `key`.
    #[cold]
    pub(super) fn met(
        &self,
        guard: &mut SlotGuard<'_, Realm>,
        key: u64,
        (mapping, watch): (&Mapping, &Watch),
        access: Access,
    ) -> Result<Met, Fault> {
        let (slot, frozen) = said(guard, key);
        match told_of(slot, mapping, watch.modes, access) {
            Told::IfObject => Ok(Met::Ask),
            Told::Cause(Cause::Protected) if watch.modes.contains(Modes::ASYNC) => {
                let narrowed = guard.narrow_to(key, &mut self.realm.reserve(guard.pin()).borrow_mut());
                narrowed.map_err(|_| Fault::NoMemory)?;
                let slot = Slot::of(guard.span().value).with_level(Some(Level::ReadWrite));
                guard.set(slot.word());
                Ok(Met::Goes(slot, false))
            }
            Told::Cause(Cause::Missing) if mutant!("watch-missing-filled") => Ok(Met::Goes(slot, frozen)),
            Told::Cause(_) => Err(Fault::Watched),
            Told::Nothing => {
                slot.level().map_or(Ok(()), |level| level.check(access))?;
                Ok(Met::Goes(slot, frozen))
            }
        }
    }
    /// Whether page `at` of `kept`, which is blank, may have what its object has for it, or its watcher is told.
    pub(super) fn met_object(&self, kept: &Kept, at: Page, ctx: &Unpinned<'_>) -> Result<(), Fault> {
        let mapping = &kept.desc().mapping;
        let (Some(watch), Some((object, index))) = (&mapping.watch, object_at(mapping, at.number())) else {
            return Ok(());
        };
        match object.has(index, ctx).map(|has| told_by_object(watch.modes, has)) {
            Err(ObjectError::NoMemory) => Err(Fault::NoMemory),
            Err(_) => Err(Fault::BeyondObject),
            Ok(Some(_)) => Err(Fault::Watched),
            Ok(None) => Ok(()),
        }
    }

    fn watch_pages(
        &self,
        range: PageRange,
        ask: &dyn Fn(&Mapping) -> Option<Option<Watch>>,
        ctx: &Unpinned<'_>,
    ) -> Result<(), Error> {
        let pin = ctx.pin();
        let section = self.tree.enter(&pin);
        let mut change = Change::new(self, &section, ctx);
        let mut guard = self.lock_pages(range, Mode::Edit, &section)?;
        let (mut last, mut result) = (None, Err(Error::NoMapping));
        guard.all(|span| {
            let slot = Slot::of(span.value);
            if !slot.is_mapped() {
                return true;
            }
            let mapping = &change.desc(slot).mapping;
            let known = last.replace(ptr::from_ref(mapping)) == Some(ptr::from_ref(mapping));
            result = match slot.level() {
                Some(_) if mapping.watch.is_none() => Err(Error::Exists),
                _ if known || ask(mapping).is_some() => Ok(()),
                _ => Err(Error::Denied),
            };
            result.is_ok()
        });
        result?;
        if self.machine.frames.low() && self.splits(range, &section) {
            return Err(Error::NoMemory);
        }
        let new = self.describe(&guard, &guard.keys(), &pin, &section, |mapping| {
            if let Some(watch) = ask(mapping) {
                mapping.watch = watch.map(Arc::new);
            }
        })?;
        guard.update(|span| {
            let slot = Slot::of(span.value);
            let Some(hold) = new.of(slot).filter(|_| slot.is_mapped()) else { return span.value };
            let level = hold.desc().mapping.watch.as_ref().map(|watch| match slot.level() {
                Some(level) if watch.modes.contains(Modes::PROTECT) => level,
                _ => Level::ReadWrite,
            });
            change.relabelled(change.desc(slot), hold.desc(), span.keys);
            let new = slot.with_level(level);
            let put = if new.cap() == slot.cap() {
                new
            } else {
                self.put_level(slot, span.first, new, &mut change)
            };
            put.with_desc(hold.slot().desc()).word()
        });
        fold_alike(&mut guard);
        change.settle();
        drop(guard);
        Ok(())
    }

    fn protect_watched(&self, range: PageRange, on: bool, ctx: &Unpinned<'_>) -> Result<(), Error> {
        let pin = ctx.pin();
        let section = self.tree.enter(&pin);
        let mut change = Change::new(self, &section, ctx);
        let mut guard = self.lock_pages(range, Mode::Edit, &section)?;
        let (mut result, mut limit) = (Err(Error::NoMapping), u64::MAX);
        guard.all(|span| {
            let slot = Slot::of(span.value);
            if !slot.is_mapped() {
                return true;
            }
            let watch = &change.desc(slot).mapping.watch;
            let watched = watch.as_ref().is_some_and(|watch| watch.modes.contains(Modes::PROTECT));
            (result, limit) = if watched { (Ok(()), limit) } else { (Err(Error::NoMapping), span.first) };
            watched
        });
        guard.update(|span| {
            let slot = Slot::of(span.value);
            if !slot.is_mapped() || span.first >= limit || slot.is_marker() && on {
                return span.value;
            }
            let mapping = &change.desc(slot).mapping;
            let any = mapping.watch.as_ref().is_some_and(|watch| watch.modes.contains(Modes::UNPOPULATED));
            let skipped = slot.frame().is_none() && matches!(mapping.backing, Backing::Anonymous) && !any;
            if skipped && on { span.value } else { self.protect(slot, span.first, on, &mut change).word() }
        });
        fold_alike(&mut guard);
        change.settle();
        drop(guard);
        result
    }
    /// Page `key`, of which `slot` is said, is protected, or no longer: what it is to be.
    fn protect(&self, slot: Slot, key: u64, on: bool, change: &mut Change<'_>) -> Slot {
        let new = match on {
            true => slot.with_level(Some(Level::Read)),
            false => slot.with_level(Some(Level::ReadWrite)),
        };
        if on && mutant!("watch-no-flush") {
            let rights = contents::hardware(change.desc(slot).mapping.prot) & new.cap();
            self.tables.lower(page(key), slot, rights, &mut CpuSet::EMPTY.clone());
            return new;
        }
        if new == slot { slot } else { self.put_level(slot, key, new, change) }
    }

    fn fill_page(
        &self,
        at: Page,
        with: Content<'_>,
        protected: bool,
        ctx: &Unpinned<'_>,
    ) -> Result<(), Unfilled> {
        loop {
            let kept = self.watched_at(at, ctx)?;
            let filled = self.fill_kept(at, &kept, with, protected, ctx);
            kept.release(&ctx.pin());
            if filled? {
                return Ok(());
            }
        }
    }
    /// The descriptor of page `at`, if it is watched.
    fn watched_at(&self, at: Page, ctx: &Unpinned<'_>) -> Result<Kept, Unfilled> {
        let key = at.number();
        if key >= KEYS {
            return Err(Unfilled::Unwatched);
        }
        let pin = ctx.pin();
        let section = self.tree.enter(&pin);
        let guard = self.tree.lock_one(key, &section).map_err(|_| Unfilled::NoMemory)?;
        let slot = guard.map_or(Slot::EMPTY, |guard| said(&guard, key).0);
        let watched = slot.is_mapped() && self.realm.desc(slot, &section).mapping.watch.is_some();
        if watched { Ok(self.realm.keep(slot, &pin)) } else { Err(Unfilled::Unwatched) }
    }
    /// Fill page `at`, which has just been one of `kept`. False if it isn't any more.
    fn fill_kept(
        &self,
        at: Page,
        kept: &Kept,
        with: Content<'_>,
        protected: bool,
        ctx: &Unpinned<'_>,
    ) -> Result<bool, Unfilled> {
        let frames = self.machine.frames;
        let mapping = &kept.desc().mapping;
        let modes = mapping.watch.as_ref().map_or(Modes::empty(), |watch| watch.modes);
        if protected && !modes.contains(Modes::PROTECT) {
            return Err(Unfilled::Invalid);
        }
        let cuts = mapping.mappers().map_or(0, Mappers::cuts);
        let policy = mapping.policy.get();
        let new = match (object_at(mapping, at.number()), with) {
            (None, Content::Object) => return Err(Unfilled::Invalid),
            (object, Content::Lost) => {
                object.map_or(Ok(true), |(object, index)| object.has(index, ctx)).map_err(unfilled)?;
                None
            }
            (object, Content::Zeros | Content::Bytes(_)) if !mapping.shared => {
                if let Some((object, index)) = object {
                    object.has(index, ctx).map_err(unfilled)?;
                }
                let index = object.map_or(at.number(), |(_, index)| index);
                let frame = contents::filled(with, policy.place(index), frames, &ctx.pin());
                Some((frame.ok_or(Unfilled::NoMemory)?, contents::hardware(mapping.prot)))
            }
            (None, _) => return Err(Unfilled::Invalid),
            (Some((object, index)), _) => {
                put_into(object, index, with, &policy, ctx)?;
                let of = (object, index);
                let asked =
                    contents::of_object(mapping, of, &policy, crate::Count::Lent, Access::Read, frames, ctx);
                Some(asked.map_err(|fault| match fault {
                    Fault::NoMemory => Unfilled::NoMemory,
                    _ => Unfilled::Absent,
                })?)
            }
        };
        self.install(at, kept, &Filling { with, protected, cuts }, new, &ctx.pin())
    }
    /// Give page `at` what it is to have: a frame and rights to it, or none if its contents are lost. False if it isn't one of
    /// `kept` any more.
    fn install(
        &self,
        at: Page,
        kept: &Kept,
        filling: &Filling<'_>,
        new: Option<(OwnedFrame, Prot)>,
        pin: &Pinned<'_>,
    ) -> Result<bool, Unfilled> {
        let key = at.number();
        let section = self.tree.enter(pin);
        let ready = || {
            let guard = self.tree.lock_one(key, &section).map_err(|_| Unfilled::NoMemory)?;
            let Some(mut guard) = guard else { return Ok(None) };
            let (slot, _) = said(&guard, key);
            let mapping = &kept.desc().mapping;
            let cut = mapping.mappers().is_some_and(|mappers| mappers.cut_since(filling.cuts));
            if !kept.names(slot) || cut {
                return Ok(None);
            }
            if !takes(slot, mapping, filling.with) {
                return Err(Unfilled::There);
            }
            let narrowed = guard.narrow_to(key, &mut self.realm.reserve(pin).borrow_mut());
            narrowed.map_err(|_| Unfilled::NoMemory)?;
            Ok(Some(guard))
        };
        match ready() {
            Ok(Some(guard)) => {
                let level = if filling.protected { Level::Read } else { Level::ReadWrite };
                let slot = Slot::of(guard.span().value).with_level(Some(level));
                let Some((frame, rights)) = new else {
                    guard.finish(slot.poisoned().word());
                    return Ok(true);
                };
                let slot = own(slot, frame);
                self.counts.one_resident(pin);
                // Without a table there is a fault more.
                let place = self.tables.ready(at, pin);
                guard.finish(place.map_or(slot, |place| place.set(slot, rights & slot.cap())).word());
                Ok(true)
            }
            not_ready => {
                new.into_iter().for_each(|(frame, _)| self.machine.frames.free(pin, frame));
                not_ready.map(|_| false)
            }
        }
    }

    fn told_at(&self, at: Page, access: Access, ctx: &Unpinned<'_>) -> Option<(Watch, Cause)> {
        let key = Some(at.number()).filter(|&key| key < KEYS)?;
        let (watch, (object, index)) = {
            let pin = ctx.pin();
            let section = self.tree.enter(&pin);
            let slot = Some(self.at(key, &section).0).filter(|slot| slot.is_mapped() && !slot.is_marker())?;
            let mapping = &self.realm.desc(slot, &section).mapping;
            let watch = mapping.watch.as_ref().filter(|_| access.allowed_by(mapping.prot))?;
            match told_of(slot, mapping, watch.modes, access) {
                Told::Nothing => return None,
                Told::Cause(Cause::Protected) if watch.modes.contains(Modes::ASYNC) => return None,
                Told::Cause(cause) => return Some((Watch::clone(watch), cause)),
                Told::IfObject => {
                    let (object, index) = object_at(mapping, key)?;
                    (Watch::clone(watch), (object.clone(), index))
                }
            }
        };
        let has = object.has(index, ctx).ok()?;
        told_by_object(watch.modes, has).map(|cause| (watch, cause))
    }

    fn scan_pages(&self, range: PageRange, f: &mut Look<'_>, ctx: &Unpinned<'_>) -> Result<(), Error> {
        let Range { start: mut at, end } = keys(range);
        while at < end {
            let pin = ctx.pin();
            let section = self.tree.enter(&pin);
            let Some(found) = self.mapped_from(at, end, &section) else { return Ok(()) };
            let first = found.first.max(at);
            // A span stays one. Of what is in slots of their own, what a leaf table serves is looked at in one go.
            let folded = found.keys > 1 && !found.frozen;
            let next = if folded { found.first + found.keys } else { (first / CHUNK + 1) * CHUNK };
            at = next.min(end);
            let mut change = Change::new(self, &section, ctx);
            let mut guard = self.lock_pages(pages(first, at), Mode::Edit, &section)?;
            guard.update(|span| {
                let slot = Slot::of(span.value);
                if !slot.is_mapped() {
                    return span.value;
                }
                let mapping = &change.desc(slot).mapping;
                let modes = mapping.watch.as_ref().map_or(Modes::empty(), |watch| watch.modes);
                let (all, resident) =
                    (pages(span.first, span.first + span.keys), self.resident_of(slot, mapping));
                let protect = f(all, resident, is_protected(slot, mapping)) && modes.contains(Modes::PROTECT);
                let new = if protect { self.protect(slot, span.first, true, &mut change) } else { slot };
                new.word()
            });
            change.settle();
            drop(guard);
        }
        Ok(())
    }
    /// What a scan says of pages whose locked slot is `slot`, of `mapping`.
    fn resident_of(&self, slot: Slot, mapping: &Mapping) -> Option<Resident> {
        let frame = slot.frame();
        (!slot.is_blank()).then(|| Resident {
            frame: frame.map(|(frame, _)| frame),
            usage: frame.map_or(owned::Use::Anonymous, |(_, usage)| usage),
            sharers: frame.map_or(0, |(frame, _)| self.machine.frames.sharers(frame)),
            accessed: false,
            dirty: false,
            protected: is_protected(slot, mapping),
            poisoned: slot.is_poisoned(),
        })
    }
}

/// Whether the watcher of a page of `mapping` is told of the next store to it.
pub(super) fn is_protected(slot: Slot, mapping: &Mapping) -> bool {
    slot.level() == Some(Level::Read) && mapping.watch.is_some()
}

/// See to it that page `index` of `object` has these contents, or has any.
fn put_into(
    object: &Arc<dyn Object>,
    index: u64,
    with: Content<'_>,
    policy: &Policy,
    ctx: &Unpinned<'_>,
) -> Result<(), Unfilled> {
    let bytes = match with {
        Content::Object => {
            return match object.has(index, ctx) {
                Ok(true) => Ok(()),
                Ok(false) => Err(Unfilled::Absent),
                // As Linux has it.
                Err(ObjectError::BeyondEnd) => Err(Unfilled::Invalid),
                Err(error) => Err(unfilled(error)),
            };
        }
        Content::Zeros | Content::Lost => None,
        Content::Bytes(bytes) => Some(bytes),
    };
    if object.put(index, bytes, policy, ctx).map_err(unfilled)? { Ok(()) } else { Err(Unfilled::There) }
}

fn unfilled(error: ObjectError) -> Unfilled {
    match error {
        ObjectError::BeyondEnd => Unfilled::Absent,
        ObjectError::NoMemory => Unfilled::NoMemory,
        ObjectError::Io | ObjectError::Sealed => Unfilled::Invalid,
    }
}

impl Watched for Radix {
    fn watch(
        &self,
        range: PageRange,
        ask: &dyn Fn(&Mapping) -> Option<Option<Watch>>,
        ctx: &Unpinned<'_>,
    ) -> Result<(), Error> {
        user(range)?;
        let answer =
            if keys(range).is_empty() { Err(Error::NoMapping) } else { self.watch_pages(range, ask, ctx) };
        self.tidy(ctx);
        answer
    }
    fn protect_pages(&self, range: PageRange, on: bool, ctx: &Unpinned<'_>) -> Result<(), Error> {
        user(range)?;
        if keys(range).is_empty() { Err(Error::NoMapping) } else { self.protect_watched(range, on, ctx) }
    }
    fn fill(&self, at: Page, with: Content<'_>, protected: bool, ctx: &Unpinned<'_>) -> Result<(), Unfilled> {
        self.fill_page(at, with, protected, ctx)
    }
    fn transfer(
        &self,
        from: PageRange,
        to: Page,
        may: &dyn Fn(&Mapping, &Mapping) -> bool,
        holes: bool,
        ctx: &Unpinned<'_>,
    ) -> Result<u64, Untransferred> {
        self.transfer_pages(from, to, may, holes, ctx)
    }
    fn told(&self, at: Page, access: Access, ctx: &Unpinned<'_>) -> Option<(Watch, Cause)> {
        self.told_at(at, access, ctx)
    }
    fn scan(&self, range: PageRange, f: &mut Look<'_>, ctx: &Unpinned<'_>) -> Result<(), Error> {
        user(range)?;
        self.scan_pages(range, f, ctx)
    }
}

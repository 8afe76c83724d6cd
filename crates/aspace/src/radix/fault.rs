//! The page fault, and a page that moves to another frame.

use core::mem::ManuallyDrop;

use ::radix::SlotGuard;
use sync::probe;

use super::{realm::Kept, tables::Ready, watch::Met, word::SEVERAL, *};
use crate::{Backing, Count, page as contents, rules};

/// Pages around one that several CPUs have, aligned to as many, which are entered with it: two lines of slots.
const AROUND: u64 = 16;

/// What a fault comes to while the page is locked.
enum Step {
    Done,
    /// The page is one of an object's, which is asked without locks.
    Ask(Kept),
}

impl Radix {
    pub(super) fn resolve(
        &self,
        policy: &Policy,
        at: Page,
        access: Access,
        ctx: &Unpinned<'_>,
    ) -> Result<(), Fault> {
        if at.number() >= KEYS {
            return Err(Fault::NoMapping);
        }
        // Relaxed: as in `manage`.
        let mut levels = self.manages.load(Ordering::Relaxed);
        if levels && let Some(level) = self.refused(at, access, &ctx.pin()) {
            return Err(Fault::Level(level));
        }
        loop {
            let step = match levels {
                true => self.with_levels(policy, at, access, ctx),
                false => match self.with_page::<false>(policy, at, access, ctx) {
                    Err(Fault::Watched) => {
                        levels = true;
                        continue;
                    }
                    step => step,
                },
            };
            let Step::Ask(kept) = step? else { return Ok(()) };
            if levels && let Err(fault) = self.met_object(&kept, at, ctx) {
                kept.release(&ctx.pin());
                return Err(fault);
            }
            let mapping = &kept.desc().mapping;
            let cuts = mapping.mappers().map_or(0, Mappers::cuts);
            let asked = match &mapping.backing {
                Backing::Object { object, page } => contents::of_object(
                    mapping,
                    (object, page.wrapping_add(at.number())),
                    &mapping.policy.get().or(*policy),
                    Count::Lent,
                    access,
                    self.machine.frames,
                    ctx,
                ),
                Backing::Anonymous => Err(Fault::BeyondObject),
            };
            let copied = !mapping.shared && access == Access::Write;
            let pin = ctx.pin();
            let put = asked.and_then(|(frame, rights)| self.put(at, &kept, cuts, frame, rights, &pin));
            kept.release(&pin);
            if put? {
                if copied {
                    probe!(FaultCopy);
                } else {
                    probe!(FaultFill);
                }
                return Ok(());
            }
        }
    }

    /// What can be done without asking anybody. Without `LEVELS` a page that has a level counts as watched, so that those which
    /// have none cost nothing for it.
    #[inline(always)]
    fn with_page<const LEVELS: bool>(
        &self,
        policy: &Policy,
        at: Page,
        access: Access,
        ctx: &Unpinned<'_>,
    ) -> Result<Step, Fault> {
        let (frames, key) = (self.machine.frames, at.number());
        let pin = ctx.pin();
        let section = self.tree.enter(&pin);
        // Lock the page; find what it should be; check the access.
        let guard = self.tree.lock_one(key, &section).map_err(|_| Fault::NoMemory)?;
        let mut guard = guard.ok_or(Fault::NoMapping)?;
        let (mut slot, mut frozen) = said(&guard, key);
        if !slot.is_mapped() {
            return Err(Fault::NoMapping);
        }
        let mapping = &self.realm.desc(slot, &section).mapping;
        if slot.is_marker() || !access.allowed_by(mapping.prot) {
            rules::allows(access, mapping.prot, slot.met())?;
        }
        let mut all = contents::hardware(mapping.prot);
        if let Some(level) = slot.level() {
            if !LEVELS {
                return Err(Fault::Watched);
            }
            match &mapping.watch {
                None => level.check(access)?,
                Some(watch) => match self.met(&mut guard, key, (mapping, watch), access)? {
                    Met::Goes(now, shared) => (slot, frozen) = (now, shared),
                    Met::Ask => return Ok(Step::Ask(self.realm.keep(slot, &pin))),
                },
            }
            all &= slot.cap();
        }
        let index = match &mapping.backing {
            Backing::Object { page, .. } => page.wrapping_add(key),
            Backing::Anonymous => key,
        };
        let place = mapping.policy.get().or(*policy).place(index);
        if let Some((frame, _)) = slot.frame()
            && frozen
        {
            // A frozen node is parted with by who writes, and by the last who has it.
            if access == Access::Write || guard.trees() == 1 {
                let narrowed = guard.narrow_to(key, &mut self.realm.reserve(&pin).borrow_mut());
                narrowed.map_err(|_| Fault::NoMemory)?;
                slot = Slot::of(guard.span().value);
            } else {
                let rights = match mutant!("frozen-read-writable") {
                    true => contents::rights(mapping, frame, frames),
                    false => all.difference(Prot::WRITE),
                };
                // Changes no word: it isn't known who has entries of a frozen node.
                self.tables.ready(at, &pin).ok_or(Fault::NoMemory)?.set(slot, rights);
                return Ok(Step::Done);
            }
        }
        if let Some((frame, _)) = slot.frame() {
            let rights = contents::rights(mapping, frame, frames) & slot.cap();
            if access.allowed_by(rights) {
                let ready = self.tables.ready(at, &pin).ok_or(Fault::NoMemory)?;
                if ready.is_empty() {
                    probe!(FaultFill);
                    self.fill_around(&guard, slot, &ready, mapping);
                } else {
                    probe!(FaultRepair);
                }
                guard.finish(ready.set(slot, rights).word());
                return Ok(Step::Done);
            }
            probe!(FaultCopy);
            let mut change = Change::new(self, &section, ctx);
            return self.copy_page(&mut guard, slot, (place, all), &mut change);
        }
        if let Backing::Object { .. } = mapping.backing {
            return Ok(Step::Ask(self.realm.keep(slot, &pin)));
        }
        let narrowed = guard.narrow_to(key, &mut self.realm.reserve(&pin).borrow_mut());
        let ready = narrowed.ok().and_then(|()| self.tables.ready(at, &pin)).ok_or(Fault::NoMemory)?;
        let zeroed =
            contents::frame(place, owned::Use::Anonymous, true, frames, &pin).ok_or(Fault::NoMemory)?;
        self.counts.one_resident(&pin);
        probe!(FaultNew);
        guard.finish(ready.set(own(slot, zeroed), all).word());
        Ok(Step::Done)
    }
    /// The same for pages that may have levels.
    #[cold]
    #[inline(never)]
    fn with_levels(
        &self,
        policy: &Policy,
        at: Page,
        access: Access,
        ctx: &Unpinned<'_>,
    ) -> Result<Step, Fault> {
        self.with_page::<true>(policy, at, access, ctx)
    }
    /// What this CPU enters now, others have. If several have, it enters their neighbours as well: those of the [`AROUND`] pages
    /// around it that are of the same mapping, that several CPUs have, and that nobody is at; each as its fault would. A page
    /// that one CPU alone has used stays its own, and concerns no other when it goes.
    #[inline]
    fn fill_around(&self, guard: &SlotGuard<'_, Realm>, slot: Slot, ready: &Ready<'_>, mapping: &Mapping) {
        if slot.owner() == SEVERAL && ready.is_own() && slot.level().is_none() {
            self.fill_neighbours(guard, slot, ready, mapping);
        }
    }
    #[inline(never)]
    fn fill_neighbours(
        &self,
        guard: &SlotGuard<'_, Realm>,
        slot: Slot,
        ready: &Ready<'_>,
        mapping: &Mapping,
    ) {
        let first = guard.keys().start & !(AROUND - 1);
        for key in first..first + AROUND {
            let Some(place) = ready.beside(page(key)) else { continue };
            let like = |word| Slot::of(word).is_shared_like(slot);
            let Some(beside) = guard.beside(key, like) else { continue };
            let neighbour = Slot::of(beside.span().value);
            let Some((frame, _)) = neighbour.frame() else { continue };
            // What a store would have to copy is left to its own fault.
            let rights = contents::rights(mapping, frame, self.machine.frames);
            if rights == contents::hardware(mapping.prot) {
                // Several have it, and this CPU is one of them now: the word stays.
                place.set(neighbour, rights);
            }
        }
    }
    /// Copy on write: nobody uses the old frame any more when the copy can be used. It goes when the change is dropped.
    fn copy_page<'a>(
        &'a self,
        guard: &mut SlotGuard<'_, Realm>,
        slot: Slot,
        (place, rights): (Place, Prot),
        change: &mut Change<'a>,
    ) -> Result<Step, Fault> {
        let (frames, pin, span) = (self.machine.frames, guard.pin(), guard.span());
        let Some((frame, usage)) = slot.frame() else { return Ok(Step::Done) };
        let ready = self.tables.ready(page(span.first), pin).ok_or(Fault::NoMemory)?;
        // SAFETY: the slot has a share, counted for this use, or what it was lent, which is not taken away while it is locked; the
        // value made of it here is not given back.
        let old = ManuallyDrop::new(unsafe { OwnedFrame::from_raw(frame, usage) });
        let new = contents::copy(&old, place, frames, pin)?;
        if !mutant!("cow-no-flush") {
            change.drop_frame(slot, span.first);
        } else {
            self.tables.clear(page(span.first), slot, &mut CpuSet::EMPTY.clone());
            frames.free(pin, ManuallyDrop::into_inner(old));
        }
        change.flush();
        change.difference.resident(1);
        // What the old entries have noted goes with them, and this is for a store.
        guard.set(ready.set(own(slot.dirtied(), new), rights).word());
        change.settle();
        Ok(Step::Done)
    }
    /// Give page `at` the frame that its object has given, if it is still a page of `kept` without one, and nothing was cut
    /// off since `cuts` were counted. False if not; the frame is given back then.
    fn put(
        &self,
        at: Page,
        kept: &Kept,
        cuts: u64,
        frame: OwnedFrame,
        rights: Prot,
        pin: &Pinned<'_>,
    ) -> Result<bool, Fault> {
        let (frames, key) = (self.machine.frames, at.number());
        let section = self.tree.enter(pin);
        let ready = || {
            let Some(mut guard) = self.tree.lock_one(key, &section).map_err(drop)? else {
                return Ok::<_, ()>(None);
            };
            let (slot, _) = said(&guard, key);
            let cut = || kept.desc().mapping.mappers().is_some_and(|mappers| mappers.cut_since(cuts));
            let same = kept.names(slot) && slot.is_blank() && (mutant!("radix-cut-unseen") || !cut());
            if !same && !mutant!("leaf-race-lost") {
                return Ok(None);
            }
            guard.narrow_to(key, &mut self.realm.reserve(pin).borrow_mut()).map_err(drop)?;
            let place = self.tables.ready(at, pin).ok_or(())?;
            Ok(Some((guard, slot, place)))
        };
        match ready() {
            Ok(Some((guard, slot, place))) => {
                self.counts.one_resident(pin);
                // By the level that the page has now.
                guard.finish(place.set(own(slot, frame), rights & slot.cap()).word());
                Ok(true)
            }
            not_ready => {
                if mutant!("radix-lost-frame") {
                    frame.into_raw();
                } else {
                    frames.free(pin, frame);
                }
                if not_ready.is_err() { Err(Fault::NoMemory) } else { Ok(false) }
            }
        }
    }

    pub(super) fn move_frame(
        &self,
        at: Page,
        place: Place,
        wanted: &dyn Fn(Frame) -> bool,
        ctx: &Unpinned<'_>,
    ) -> Result<(), Unmoved> {
        let (frames, key) = (self.machine.frames, at.number());
        if key >= KEYS {
            return Err(Unmoved::NoMapping);
        }
        let pin = ctx.pin();
        let section = self.tree.enter(&pin);
        let mut change = Change::new(self, &section, ctx);
        let guard = self.tree.lock_one(key, &section).map_err(|_| Unmoved::NoMemory)?;
        let mut guard = guard.ok_or(Unmoved::NoMapping)?;
        let (mut slot, frozen) = said(&guard, key);
        if !slot.is_mapped() {
            return Err(Unmoved::NoMapping);
        }
        let (frame, usage) = match slot.frame() {
            _ if slot.is_marker() => return Err(Unmoved::NoMapping),
            None => return Err(Unmoved::Empty),
            Some((frame, _)) if wanted(frame) => return Ok(()),
            Some((_, usage)) if usage != owned::Use::Anonymous => return Err(Unmoved::Object),
            Some((frame, _)) if frames.is_shared(frame) => return Err(Unmoved::Shared),
            Some(_) if guard.trees() > 1 => return Err(Unmoved::Shared),
            Some(own) => own,
        };
        if frozen {
            let alone = guard.narrow_to(key, &mut self.realm.reserve(&pin).borrow_mut());
            alone.map_err(|_| Unmoved::NoMemory)?;
            slot = Slot::of(guard.span().value);
        }
        // Nobody stores to it while it is copied.
        let slot = if slot.level().is_some() {
            change.hide_managed(slot, key)
        } else {
            change.hide(slot, key);
            slot
        };
        if mutant!("move-no-flush") {
            change.flush_nobody();
        }
        change.flush();
        // SAFETY: the slot has a share, counted for this use; the value made of it here is not given back.
        let old = ManuallyDrop::new(unsafe { OwnedFrame::from_raw(frame, usage) });
        let new = match contents::copy(&old, place, frames, &pin) {
            Ok(new) if wanted(new.frame()) => new,
            none_there => {
                none_there.into_iter().for_each(|new| frames.free(&pin, new));
                guard.set(slot.word());
                return Err(Unmoved::NoMemory);
            }
        };
        change.drop_frame(slot, key);
        change.difference.resident(1);
        guard.set(own(slot, new).word());
        change.settle();
        Ok(())
    }
}

/// What a page's slot says when it has `new`.
pub(super) fn own(slot: Slot, new: OwnedFrame) -> Slot {
    let usage = new.usage();
    slot.with_frame(new.into_raw(), usage)
}

/// What is said of page `key`, which is one of the guard's, and whether that is in a frozen node.
#[inline]
pub(super) fn said(guard: &SlotGuard<'_, Realm>, key: u64) -> (Slot, bool) {
    let span = guard.span();
    if span.frozen { (Slot::of(guard.frozen(key)), true) } else { (Slot::of(span.value), false) }
}

//! Fork.

use alloc::collections::BTreeMap;

use super::{realm::Hold, *};
use crate::page as contents;

impl Radix {
    pub(super) fn copy(&self, ctx: &Unpinned<'_>) -> Result<Arc<Self>, Error> {
        if self.machine.frames.low() {
            return Err(Error::NoMemory);
        }
        let child = Self::new(self.machine, self.realm, self.kind, ctx)?;
        child.arenas.follow(&self.arenas);
        let _still = self.moving.0.write(ctx);
        match self.copy_to(&child, ctx) {
            Ok(()) => Ok(child),
            Err(error) => {
                child.clear(ctx);
                Err(error)
            }
        }
    }
    fn copy_to(&self, child: &Self, ctx: &Unpinned<'_>) -> Result<(), Error> {
        let pin = ctx.pin();
        let (section, theirs) = (self.tree.enter(&pin), child.tree.enter(&pin));
        let mut change = Change::new(self, &section, ctx);
        let guard = self.lock_pages(pages(0, KEYS), Mode::Edit, &section)?;
        let mut into = child.lock_pages(pages(0, KEYS), Mode::Fill, &theirs)?;
        // Nothing fails after this.
        let new = self.descs_of_child(&guard, &change, &pin)?;
        into.refine(|span| {
            let (_, found) = self.at(span.first, &section);
            found.keys < span.keys
        })
        .map_err(|_| Error::NoMemory)?;
        // Known to the objects before it has anything of theirs, so that what is cut off from now on is cut off here.
        let mut difference = Difference::default();
        for span in guard.spans() {
            let slot = Slot::of(span.value);
            let Some(hold) = new.get(&slot.desc()).filter(|_| slot.is_mapped()) else { continue };
            if !mutant!("fork-unannounced") {
                // Whatever a shared mapping may write, the parent's may too: so it is not sealed.
                let _ = child.announce(&hold.desc().mapping, span.keys);
            }
            difference.add(hold.desc().kinds, span.keys as i64);
        }
        let frames = self.machine.frames;
        into.update(|span| {
            let (slot, _) = self.at(span.first, &section);
            let Some(hold) = new.get(&slot.desc()).filter(|_| slot.is_mapped()) else { return 0 };
            let mapping = &change.desc(slot).mapping;
            let wiped = mapping.flags.contains(Flags::WIPE_ON_FORK);
            match slot.frame() {
                None if slot.is_guard() && !wiped => hold.slot().guard().word(),
                Some((frame, usage)) if !wiped && !mapping.shared => {
                    // SAFETY: the parent's slot has a share, and is locked.
                    let share = unsafe { frames.share_raw(frame, usage) };
                    let rights = contents::hardware(mapping.prot).difference(Prot::WRITE);
                    match mutant!("fork-no-flush") {
                        true => {
                            _ = self.tables.lower(page(span.first), slot, rights, &mut CpuSet::EMPTY.clone())
                        }
                        false => change.lower(slot, span.first, rights),
                    }
                    difference.resident(1);
                    hold.slot().with_frame(share.into_raw(), usage).word()
                }
                _ => hold.slot().word(),
            }
        });
        child.counts.add(&difference, &pin);
        change.settle();
        drop(guard);
        drop(into);
        Ok(())
    }
    /// For each descriptor of the parent that a child gets pages of, the child's.
    fn descs_of_child<'p>(
        &self,
        guard: &Guard<'_>,
        change: &Change<'_>,
        pin: &'p Pinned<'p>,
    ) -> Result<BTreeMap<u32, Hold<'p>>, Error> {
        let (mut new, mut last) = (BTreeMap::new(), 0);
        for span in guard.spans() {
            let slot = Slot::of(span.value);
            if !slot.is_mapped() || slot.desc() == last || new.contains_key(&slot.desc()) {
                continue;
            }
            last = slot.desc();
            let mut mapping = change.desc(slot).mapping.clone();
            if !mapping.flags.contains(Flags::DONT_FORK) {
                mapping.flags = mapping.flags.difference(Flags::LOCKED | Flags::ON_FAULT);
                new.insert(last, self.realm.intern(mapping, pin).ok_or(Error::NoMemory)?);
            }
        }
        Ok(new)
    }
}

//! Frames that are copied, or shared until they are: pages that move, and fork.

use alloc::sync::Arc;

use addr::{Frame, Page, PageRange, Prot};
use owned::Use;
use pagetable::use_of;
use percpu::Unpinned;
use sync::mutant;
use tlb::Gather;

use super::{Locked, Space};
use crate::{AddressSpace, Error, Flags, Place, Unmoved, page};

impl Locked {
    /// See [`AddressSpace::move_page`](crate::AddressSpace::move_page).
    pub(super) fn move_private(
        &self,
        at: Page,
        place: Place,
        wanted: &dyn Fn(Frame) -> bool,
        ctx: &Unpinned<'_>,
    ) -> Result<(), Unmoved> {
        let frames = self.machine.frames;
        // Exclude those that change the mappings, not faults.
        let space = self.space.read(ctx);
        let (_, mapping) = space.mappings.find(at).ok_or(Unmoved::NoMapping)?;
        let mut gather = self.gather(ctx);
        // One more share, then no right to store: a fault finds the frame shared, so it copies rather than give the right
        // back, and the frame stays as it is while it is copied here.
        let old = {
            let pin = ctx.pin();
            let leaf = space.table.lock_leaf(at).ok_or(Unmoved::Empty)?;
            let entry = leaf.peek(at);
            match use_of(entry) {
                _ if entry.is_guard() => return Err(Unmoved::NoMapping),
                None => return Err(Unmoved::Empty),
                Some(_) if wanted(entry.frame()) => return Ok(()),
                Some(Use::Anonymous) if frames.is_shared(entry.frame()) => return Err(Unmoved::Shared),
                Some(Use::Anonymous) => {}
                Some(_) => return Err(Unmoved::Object),
            }
            let old = leaf.share(at, frames).ok_or(Unmoved::Empty)?;
            if leaf.protect(at, page::rights(mapping, old.frame(), frames))
                && !mutant!("move-no-flush")
                && let Some(single) = PageRange::single(at)
            {
                gather.add_range(single);
            }
            self.flush(&mut gather, &pin);
            old
        };
        let pin = ctx.pin();
        let new = match page::copy(&old, place, frames, &pin) {
            Ok(new) if wanted(new.frame()) => new,
            none_there => {
                none_there.into_iter().for_each(|new| frames.free(&pin, new));
                frames.free(&pin, old);
                return Err(Unmoved::NoMemory);
            }
        };
        let rights = page::hardware(mapping.prot);
        if self.replace(&space, at, old, new, rights, &mut gather, ctx) { Ok(()) } else { Err(Unmoved::Busy) }
    }

    /// See [`AddressSpace::fork`](crate::AddressSpace::fork).
    pub(super) fn duplicate(&self, ctx: &Unpinned<'_>) -> Result<Arc<Self>, Error> {
        // Exclude.
        let parent = self.space.write(ctx);
        if self.machine.frames.low() {
            return Err(Error::NoMemory);
        }
        let child = Self::new(self.machine, ctx)?;
        let mut into = child.space.write(ctx);
        // Known to the objects before it has anything of theirs, so that what is cut off from now on is cut off here.
        for (area, mapping) in parent.mappings.iter().filter(|(_, m)| !m.flags.contains(Flags::DONT_FORK)) {
            let mut mapping = mapping.clone();
            mapping.flags = mapping.flags.difference(Flags::LOCKED | Flags::ON_FAULT);
            if !mutant!("fork-unannounced") {
                // Whatever a shared mapping may write, the parent's may too: so it is not sealed.
                let _ = into.mappings.announce(&mapping, area.len());
            }
            into.mappings.insert(area, mapping);
        }
        let mut gather = self.gather(ctx);
        let copied = self.share_private(&parent, &into, &mut gather, ctx);
        // Also if it failed half way: see the module's table of races.
        self.flush(&mut gather, &ctx.pin());
        drop(parent);
        drop(into);
        if copied {
            Ok(child)
        } else {
            child.clear(ctx);
            Err(Error::NoMemory)
        }
    }

    /// The child's entries: the same frames as the parent's in private mappings, writable in neither, and guards.
    /// Shared mappings are filled from their objects as the child uses them. False if a page table can't be made; what
    /// was made by then is the child's.
    fn share_private(
        &self,
        parent: &Space,
        into: &Space,
        gather: &mut Gather<'_>,
        ctx: &Unpinned<'_>,
    ) -> bool {
        let frames = self.machine.frames;
        let pin = ctx.pin();
        let skipped = Flags::DONT_FORK | Flags::WIPE_ON_FORK;
        for (area, mapping) in parent.mappings.iter().filter(|(_, m)| !m.flags.intersects(skipped)) {
            let rights = page::hardware(mapping.prot).difference(Prot::WRITE);
            for (from, part) in parent.table.leaves(area) {
                let copied = |page| {
                    let entry = from.peek(page);
                    entry.is_guard() || !mapping.shared && !entry.is_empty()
                };
                if !part.iter().any(copied) {
                    continue;
                }
                let Some(to) = into.table.lock_leaf_or_make(frames, &pin, part.start()) else { return false };
                for page in part.iter().filter(|&page| copied(page)) {
                    let Some(share) = from.share(page, frames) else {
                        let _ = to.guard(page);
                        continue;
                    };
                    to.insert(page, share, rights);
                    into.gained(1);
                    if from.protect(page, rights)
                        && !mutant!("fork-no-flush")
                        && let Some(single) = PageRange::single(page)
                    {
                        gather.add_range(single);
                    }
                }
            }
        }
        true
    }
}

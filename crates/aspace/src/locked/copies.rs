//! Frames that are copied, or shared until they are: pages that move, and fork.

use alloc::sync::Arc;

use addr::{Frame, Page};
use percpu::Unpinned;
use sync::mutant;
use tlb::Gather;

use super::{Locked, Space};
use crate::{AddressSpace, Error, Flags, Place, Unmoved, leaves, page};

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
        let old = {
            let pin = ctx.pin();
            let leaf = space.table.lock_leaf(at).ok_or(Unmoved::Empty)?;
            let old = leaves::hold_still(&leaf, at, mapping, wanted, frames, &mut gather)?;
            self.flush(&mut gather, &pin);
            let Some(old) = old else { return Ok(()) };
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
                let _ = into.mappings.announce(&mapping, area.len(), &ctx.pin());
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
            for (from, part) in parent.table.leaves(area) {
                let to = || into.table.lock_leaf_or_make(frames, &pin, part.start());
                match leaves::share(&from, part, mapping, frames, gather, to) {
                    Some(gained) => into.gained(gained),
                    None => return false,
                }
            }
        }
        true
    }
}

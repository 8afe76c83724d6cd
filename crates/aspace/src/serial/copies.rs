//! Frames that are copied, or shared until they are: pages that move, and fork.

use alloc::sync::Arc;

use addr::{Frame, Page};
use percpu::Unpinned;
use sync::mutant;

use super::{Maps, Serial, Taken};
use crate::{AddressSpace, Error, Flags, Place, Unmoved, leaves, page};

impl Serial {
    /// See [`AddressSpace::move_page`].
    pub(super) fn move_private(
        &self,
        at: Page,
        place: Place,
        wanted: &dyn Fn(Frame) -> bool,
        ctx: &Unpinned<'_>,
    ) -> Result<(), Unmoved> {
        let frames = self.machine.frames;
        // Exclude those that change the mappings, not faults.
        let maps = self.maps.0.read(ctx);
        let (_, mapping) = maps.mappings.find(at).ok_or(Unmoved::NoMapping)?;
        let mut taken = self.taken(ctx);
        let old = {
            let pin = ctx.pin();
            let leaf = self.table.lock_leaf(at).ok_or(Unmoved::Empty)?;
            let old = leaves::hold_still(&leaf, at, mapping, wanted, frames, &mut taken.gather)?;
            self.flush(&mut taken.gather, &pin);
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
        if self.replace(at, old, new, rights, || true, ctx) { Ok(()) } else { Err(Unmoved::Busy) }
    }

    /// See [`AddressSpace::fork`].
    pub(super) fn duplicate(&self, ctx: &Unpinned<'_>) -> Result<Arc<Self>, Error> {
        // Exclude others that change mappings.
        let parent = self.maps.0.write(ctx);
        if self.machine.frames.low() {
            return Err(Error::NoMemory);
        }
        let child = Self::new(self.machine, self.protocol, ctx)?;
        let mut into = child.maps.0.write(ctx);
        // Known to the objects before it has anything of theirs, so that what is cut off from now on is cut off here.
        let mut room = true;
        for (area, mapping) in parent.mappings.iter().filter(|(_, m)| !m.flags.contains(Flags::DONT_FORK)) {
            // There may be more of them than what is kept back for a call that has begun.
            room = !self.machine.frames.low();
            if !room {
                break;
            }
            let mut mapping = mapping.clone();
            mapping.flags = mapping.flags.difference(Flags::LOCKED | Flags::ON_FAULT);
            if !mutant!("fork-unannounced") {
                // Whatever a shared mapping may write, the parent's may too: so it is not sealed.
                let _ = into.mappings.announce(&mapping, area.len(), &ctx.pin());
            }
            into.mappings.insert(area, mapping, ctx);
        }
        if !room {
            drop(parent);
            drop(into);
            child.clear(ctx);
            return Err(Error::NoMemory);
        }
        let mut taken = self.taken(ctx);
        // Faults fill and copy no private pages meanwhile.
        self.gate.close();
        let copied = self.share_private(&parent, &child, &mut taken, ctx);
        // Also if it failed half way: else another fork would find nothing to lower, flush nothing, and leave a CPU with a
        // writable translation to a shared frame.
        self.flush(&mut taken.gather, &ctx.pin());
        self.gate.open();
        drop(parent);
        drop(into);
        if copied {
            Ok(child)
        } else {
            child.clear(ctx);
            Err(Error::NoMemory)
        }
    }

    /// The child's entries: the same frames as the parent's in private mappings, writable in neither, and guards. False if a
    /// page table can't be made; what was made by then is the child's.
    fn share_private(&self, parent: &Maps, child: &Self, taken: &mut Taken<'_>, ctx: &Unpinned<'_>) -> bool {
        let frames = self.machine.frames;
        let pin = ctx.pin();
        let skipped = Flags::DONT_FORK | Flags::WIPE_ON_FORK;
        for (area, mapping) in parent.mappings.iter().filter(|(_, m)| !m.flags.intersects(skipped)) {
            for (from, part) in self.table.leaves_in_order(area) {
                let to = || child.table.lock_leaf_or_make(frames, &pin, part.start(), || true).ok();
                match leaves::share(&from, part, mapping, frames, &mut taken.gather, to) {
                    Some(gained) => child.resident(gained as i64, ctx),
                    None => return false,
                }
            }
        }
        true
    }
}

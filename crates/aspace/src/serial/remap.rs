//! Moving, growing and shrinking a mapping: first a plan, then what changes, which can't fail.

use addr::{Page, PageRange, Prot};
use percpu::Unpinned;
use sync::mutant;

use super::{Maps, Serial, Taken};
use crate::{Error, Limits, Lock, RemapTo, page, plan::Remap, rules::relock};

impl Serial {
    /// One mapping of `remap_within`, with the mappings locked.
    #[allow(clippy::too_many_arguments, reason = "the operation's own arguments, and what it holds")]
    pub(super) fn remap_one(
        &self,
        maps: &mut Maps,
        old: PageRange,
        new_pages: u64,
        to: RemapTo,
        keep: bool,
        limits: &Limits,
        taken: &mut Taken<'_>,
        ctx: &Unpinned<'_>,
    ) -> Result<Page, Error> {
        let plan = Remap::plan(&mut maps.mappings, old, new_pages, to, keep, limits, ctx)?;
        if plan.needs_memory(&maps.mappings) && self.machine.frames.low() {
            return Err(Error::NoMemory);
        }
        // Make the tables at the destination: after this nothing fails.
        let Remap { keep: kept, source, target, ref mapping, .. } = plan;
        if let (Some(target), false) = (target, kept.is_empty())
            && !self.make_tables(kept, target.start(), ctx)
        {
            let holes = core::iter::successors(maps.mappings.holes(target).next(), |last| {
                PageRange::new(last.end(), target.end()).and_then(|rest| maps.mappings.holes(rest).next())
            });
            holes.for_each(|hole| self.detach(maps, hole, taken, ctx));
            self.close(taken, ctx);
            return Err(Error::NoMemory);
        }
        // Take what is cut off, and what was at the destination.
        if let Some(tail) = plan.cut {
            self.take_all(maps, tail, taken, ctx);
            self.detach_beside(maps, tail, target, taken, ctx);
        }
        let Some(target) = target else {
            if let Some(grown) = plan.grown {
                let tail = mapping.advanced(grown.start().number() - source.number());
                // It is more of a mapping that there is: nothing can forbid it.
                let _ = maps.mappings.announce(&tail, grown.len(), &ctx.pin());
                maps.mappings.insert(grown, tail, ctx);
            }
            self.close(taken, ctx);
            return Ok(old.start());
        };
        // Its tables stay: they are in use again in a moment.
        self.take_all(maps, target, taken, ctx);
        // Faults find neither place from here on.
        if !mutant!("bonsai-source-found") {
            maps.mappings.hide(kept, ctx);
        }
        // They may have filled pages since tables were made. What was cut off or replaced is gone if there is no memory for that,
        // as on Linux.
        if !self.make_tables(kept, target.start(), ctx) {
            maps.mappings.show(kept);
            self.detach(maps, target, taken, ctx);
            self.close(taken, ctx);
            return Err(Error::NoMemory);
        }
        // The source loses all rights; flush; then the entries move.
        if let Some(lost) = self.table.protect(kept, |_| Prot::empty()) {
            taken.gather.add_range(lost);
        }
        self.close(taken, ctx);
        let moved = mapping.advanced(old.start().number() - source.number());
        self.table.relocate(kept, target.start(), |frame| page::rights(&moved, frame, self.machine.frames));
        // As above. Before the source is given up, so that the object has no moment in which nobody maps it.
        let _ = maps.mappings.announce(&moved, target.len(), &ctx.pin());
        if keep {
            // All of the old mapping, as Linux does (`dontunmap_complete`).
            let old = maps.mappings.find(kept.start()).map_or(kept, |(area, _)| area);
            maps.mappings.change(old, |mapping| relock(mapping, Lock::Off), ctx);
            maps.mappings.show(old);
        } else if !kept.is_empty() {
            self.take_all(maps, kept, taken, ctx);
            self.detach_beside(maps, kept, Some(target), taken, ctx);
            self.close(taken, ctx);
        }
        maps.mappings.insert(target, moved, ctx);
        Ok(target.start())
    }
    /// Make the leaf tables that the entries of `from` need when they move to `to`. False if there is no memory.
    fn make_tables(&self, from: PageRange, to: Page, ctx: &Unpinned<'_>) -> bool {
        let pin = ctx.pin();
        let make = |at| self.table.lock_leaf_or_make(self.machine.frames, &pin, at, || true).is_ok();
        self.table.leaves_in_order(from).all(|(leaf, part)| {
            let used = |page: &Page| !leaf.peek(*page).is_empty();
            let (Some(first), Some(last)) = (part.iter().find(used), part.iter().filter(used).last()) else {
                return true;
            };
            drop(leaf);
            // A leaf table's worth of entries goes into two at most.
            [first, last]
                .into_iter()
                .all(|page| to.checked_add(page.number() - from.start().number()).is_some_and(make))
        })
    }
}

//! Moving, growing and shrinking a mapping: first a plan, then what changes, which can't fail.

use addr::{Page, PageRange, Prot};
use percpu::Unpinned;
use tlb::Gather;

use super::{Locked, Remap, Space, relock};
use crate::{Error, Limits, Lock, RemapTo, page};

impl Locked {
    /// One mapping of `remap_within`, with the space locked exclusively.
    #[allow(clippy::too_many_arguments, reason = "the operation's own arguments, and what it holds")]
    pub(super) fn remap_one(
        &self,
        space: &mut Space,
        old: PageRange,
        new_pages: u64,
        to: RemapTo,
        keep: bool,
        limits: &Limits,
        gather: &mut Gather<'_>,
        ctx: &Unpinned<'_>,
    ) -> Result<Page, Error> {
        let plan = Remap::plan(&mut space.mappings, old, new_pages, to, keep, limits)?;
        if plan.needs_memory(&space.mappings) && self.machine.frames.low() {
            return Err(Error::NoMemory);
        }
        // Make the tables at the destination: after this nothing fails.
        let Remap { keep: kept, source, target, ref mapping, .. } = plan;
        if let (Some(target), false) = (target, kept.is_empty())
            && !self.make_tables(space, kept, target.start(), ctx)
        {
            let holes = core::iter::successors(space.mappings.holes(target).next(), |last| {
                PageRange::new(last.end(), target.end()).and_then(|rest| space.mappings.holes(rest).next())
            });
            for hole in holes {
                let gap = space.mappings.gap_around(hole);
                while space.table.prune(hole, gap, gather).is_err() {
                    self.round(gather, ctx);
                }
            }
            self.flush(gather, &ctx.pin());
            return Err(Error::NoMemory);
        }
        // Take what is cut off, and what was at the destination.
        if let Some(tail) = plan.cut {
            self.evict_beside(space, tail, target, gather, ctx);
        }
        let Some(target) = target else {
            if let Some(grown) = plan.grown {
                let tail = mapping.advanced(grown.start().number() - source.number());
                // It is more of a mapping that there is: nothing can forbid it.
                let _ = space.mappings.announce(&tail, grown.len(), &ctx.pin());
                space.mappings.insert(grown, tail);
            }
            self.flush(gather, &ctx.pin());
            return Ok(old.start());
        };
        // Its tables stay: they are in use again in a moment (I3 holds again when the mapping is in).
        self.take_all(space, target, gather, ctx);
        // The source loses all rights; flush; then the entries move.
        if let Some(lost) = space.table.protect(kept, |_| Prot::empty()) {
            gather.add_range(lost);
        }
        self.flush(gather, &ctx.pin());
        let moved = mapping.advanced(old.start().number() - source.number());
        space.table.relocate(kept, target.start(), |frame| page::rights(&moved, frame, self.machine.frames));
        if keep {
            // All of the old mapping, as Linux does (`dontunmap_complete`).
            let old = space.mappings.find(kept.start()).map_or(kept, |(area, _)| area);
            space.mappings.update(old, |mapping| relock(mapping, Lock::Off));
        }
        // As above.
        let _ = space.mappings.announce(&moved, target.len(), &ctx.pin());
        space.mappings.insert(target, moved);
        if !keep && !kept.is_empty() {
            self.evict(space, kept, gather, ctx);
            self.flush(gather, &ctx.pin());
        }
        Ok(target.start())
    }
    /// Make the leaf tables that the entries of `from` need when they move to `to`. False if there is no memory.
    fn make_tables(&self, space: &Space, from: PageRange, to: Page, ctx: &Unpinned<'_>) -> bool {
        let pin = ctx.pin();
        space.table.leaves(from).all(|(leaf, part)| {
            let used = |page: &Page| !leaf.peek(*page).is_empty();
            let (Some(first), Some(last)) = (part.iter().find(used), part.iter().filter(used).last()) else {
                return true;
            };
            drop(leaf);
            // A leaf table's worth of entries goes into two at most.
            [first, last].into_iter().all(|page| {
                let target = to.checked_add(page.number() - from.start().number());
                target.is_some_and(|t| space.table.lock_leaf_or_make(self.machine.frames, &pin, t).is_some())
            })
        })
    }
}

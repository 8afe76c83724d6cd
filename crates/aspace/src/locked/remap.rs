//! Moving, growing and shrinking a mapping: first a plan, with every check that Linux makes and in its order, then what
//! changes, which can't fail.

use addr::{Page, PageRange, Prot, USER_END_PAGE};
use pagetable::Which;
use percpu::Unpinned;
use tlb::Gather;

use super::{Locked, Space, check, dictated, relock, user};
use crate::{Error, Limits, Lock, Mapping, Mappings, Placement, RemapTo, page};

/// What a remap will do, found before anything changes.
pub(super) struct Remap {
    /// The pages whose contents stay or move.
    keep: PageRange,
    /// Where the mapping that holds them begins.
    source: Page,
    mapping: Mapping,
    /// The pages that are cut off.
    cut: Option<PageRange>,
    /// The pages that are added in place.
    grown: Option<PageRange>,
    /// Where the pages go, if they move.
    target: Option<PageRange>,
}

impl Remap {
    /// Whether a dictated place makes sense.
    pub(super) fn check_target(old: PageRange, pages: u64, at: Page) -> Result<PageRange, Error> {
        let target = PageRange::with_len(at, pages).filter(|t| t.end() <= USER_END_PAGE);
        target.filter(|t| t.intersect(old).is_none()).ok_or(Error::Invalid)
    }
    /// The checks of Linux's `mremap`, in its order (`mm/mremap.c`), but before anything is unmapped.
    fn plan(
        mappings: &mut Mappings,
        old: PageRange,
        pages: u64,
        to: RemapTo,
        keep: bool,
        limits: &Limits,
    ) -> Result<Self, Error> {
        if pages == 0 || keep && (pages != old.len() || to == RemapTo::InPlace) {
            return Err(Error::Invalid);
        }
        let fixed = match to {
            RemapTo::Fixed(at) => Some(Self::check_target(old, pages, at)?),
            _ => None,
        };
        let (area, mapping) = mappings.find(old.start()).ok_or(Error::NoMapping)?;
        if old.is_empty() && !mapping.shared {
            return Err(Error::Invalid);
        }
        let mut plan = Self {
            keep: old,
            source: area.start(),
            mapping: mapping.clone(),
            cut: None,
            grown: None,
            target: fixed,
        };
        if pages <= old.len() && !keep {
            user(old)?;
            let kept = PageRange::with_len(old.start(), pages).ok_or(Error::Invalid)?;
            plan.keep = kept;
            plan.cut = PageRange::new(kept.end(), old.end()).filter(|cut| !cut.is_empty());
            if fixed.is_none() {
                return Ok(plan);
            }
        }
        if !area.contains_range(plan.keep) {
            return Err(Error::NoMapping);
        }
        let offset = old.start().number() - area.start().number();
        check(&mapping.advanced(offset), pages)?;
        if pages > old.len() {
            limits.admit(mappings.totals(), mapping, pages - old.len())?;
        }
        if keep {
            let without = fixed.map_or(*mappings.totals(), |target| mappings.totals_without(target));
            // The source unlocks as its pages go, so no more are locked than before.
            Limits { locked: u64::MAX, ..*limits }.admit(&without, mapping, pages)?;
        }
        if let Some(target) = fixed {
            dictated(Placement::Fixed(target.start()), target)?;
            return Ok(plan);
        }
        let whole = PageRange::with_len(old.start(), pages).filter(|w| w.end() <= USER_END_PAGE);
        let grown = whole.and_then(|w| PageRange::new(old.end(), w.end()));
        if let Some(grown) = grown.filter(|&g| !keep && old.end() == area.end() && mappings.is_free(g)) {
            plan.grown = Some(grown);
            return Ok(plan);
        }
        let to = match to {
            RemapTo::InPlace => return Err(Error::NoRoom),
            RemapTo::Hint(at) => Placement::Hint(at),
            RemapTo::MayMove | RemapTo::Fixed(_) => Placement::Anywhere,
        };
        plan.target = Some(mappings.place(to, pages).ok_or(Error::NoRoom)?);
        Ok(plan)
    }
    /// Whether there may be more mappings afterwards, or page tables have to be made.
    fn needs_memory(&self, mappings: &Mappings) -> bool {
        self.target.is_some() || self.grown.is_some() || self.cut.is_some_and(|cut| mappings.punches(cut))
    }
}

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
            self.evict(space, tail, gather, ctx);
        }
        let Some(target) = target else {
            if let Some(grown) = plan.grown {
                let tail = mapping.advanced(grown.start().number() - source.number());
                // It is more of a mapping that there is: nothing can forbid it.
                let _ = space.mappings.announce(&tail, grown.len());
                space.mappings.insert(grown, tail);
            }
            self.flush(gather, &ctx.pin());
            return Ok(old.start());
        };
        // Its tables stay: they are in use again in a moment (I3 holds again when the mapping is in).
        space.mappings.remove(target);
        self.take(space, target, Which::All, gather, ctx);
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
        let _ = space.mappings.announce(&moved, target.len());
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

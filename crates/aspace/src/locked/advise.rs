//! What advice does: to frames and entries under the leaves' locks, to mappings under the space's.

use addr::PageRange;
use percpu::Unpinned;
use tlb::Gather;

use super::{Locked, Space};
use crate::{Backing, Error, Flags, Policy, Said, leaves};

impl Locked {
    /// DontNeed: the frames of `part` go, leaf by leaf; the lock of each is held over its flush.
    pub(super) fn discard(
        &self,
        space: &Space,
        part: PageRange,
        gather: &mut Gather<'_>,
        ctx: &Unpinned<'_>,
    ) {
        let pin = ctx.pin();
        let taken = leaves::discard(space.table.leaves(part), false, gather, &pin, |g| self.flush(g, &pin));
        space.lost(taken);
    }
    /// Guards on every page of `part`, leaf by leaf; the lock of each is held over its flush.
    pub(super) fn install_guards(
        &self,
        space: &Space,
        part: PageRange,
        gather: &mut Gather<'_>,
        ctx: &Unpinned<'_>,
    ) -> Result<(), Error> {
        let pin = ctx.pin();
        let mut at = part.start();
        while at < part.end() {
            let leaf = space.table.lock_leaf_or_make(self.machine.frames, &pin, at).ok_or(Error::NoMemory)?;
            let served = PageRange::new(at, leaf.end().min(part.end())).unwrap_or_default();
            let taken = leaves::guard(leaf, served, gather, &pin, |gather| self.flush(gather, &pin));
            space.lost(taken);
            at = served.end();
        }
        Ok(())
    }
    /// Advice that changes what mappings say.
    pub(super) fn advise_flags(
        &self,
        range: PageRange,
        set: Flags,
        clear: Flags,
        ctx: &Unpinned<'_>,
    ) -> Result<(), Error> {
        // Exclude.
        let mut space = self.space.write(ctx);
        let mut at = Some(range.start());
        while let Some((area, mapping)) = at.and_then(|at| space.mappings.find_from(at)) {
            let Some(part) = area.intersect(range) else { break };
            let anonymous = matches!(mapping.backing, Backing::Anonymous) && !mapping.shared;
            if set.contains(Flags::WIPE_ON_FORK) && !anonymous {
                return Err(Error::Invalid);
            }
            if space.mappings.splits(part) > 0 && self.machine.frames.low() {
                return Err(Error::NoMemory);
            }
            space.mappings.update(part, |mapping| mapping.flags = mapping.flags.difference(clear).union(set));
            at = Some(part.end()).filter(|&end| end < range.end());
        }
        if space.mappings.covers(range) { Ok(()) } else { Err(Error::NoMapping) }
    }
    /// Where the pages of mappings are to be.
    pub(super) fn advise_policy(
        &self,
        range: PageRange,
        policy: Policy,
        ctx: &Unpinned<'_>,
    ) -> Result<(), Error> {
        // Exclude.
        let mut space = self.space.write(ctx);
        let default = policy.is_default();
        if space.mappings.is_free(range) || !default && !space.mappings.covers(range) {
            return Err(Error::NoMapping);
        }
        if space.mappings.splits(range) > 0 && self.machine.frames.low() {
            return Err(Error::NoMemory);
        }
        let policy = Said::from(policy);
        space.mappings.update(range, |mapping| mapping.policy = policy.clone());
        Ok(())
    }
}

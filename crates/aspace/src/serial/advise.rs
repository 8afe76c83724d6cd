//! What advice does: to frames and entries under the leaves' locks, to mappings under that of all.

use addr::{Page, PageRange};
use percpu::Unpinned;
use sync::mutant;
use tlb::Gather;

use super::Serial;
use crate::{
    Advice, Backing, Error, Exclude, Flags, Mapping, Policy, Said,
    index::{HIDDEN, Within, is_alive},
    leaves,
    rules::is_for,
};

/// Pages that are served in one section: 16 leaf tables.
const AT_ONCE: u64 = 16 << 9;

impl Serial {
    /// Advice that leaves the mappings as they are.
    pub(super) fn advise_pages(
        &self,
        range: PageRange,
        advice: &Advice,
        ctx: &Unpinned<'_>,
    ) -> Result<(), Error> {
        let contents = matches!(advice, Advice::DontNeed | Advice::DontNeedLocked | Advice::Free);
        if contents && self.discard_fast(range, advice, ctx) {
            return Ok(());
        }
        // Exclude those that change the mappings, not faults.
        let maps = self.maps.0.read(ctx);
        for (area, mapping) in maps.mappings.overlapping(range) {
            let Some(part) = area.intersect(range) else { continue };
            if !is_for(*advice, mapping) {
                return Err(Error::Invalid);
            }
            match advice {
                Advice::DontNeed | Advice::DontNeedLocked | Advice::Free => {
                    self.discard(part, &|| true, ctx);
                }
                Advice::InstallGuards => self.install_guards(part, ctx)?,
                Advice::RemoveGuards => {
                    let _pin = ctx.pin();
                    let leaves = self.table.leaves(part);
                    leaves.for_each(|(leaf, part)| part.iter().for_each(|page| leaf.unguard(page)));
                }
                Advice::WillNeed | Advice::Cold | Advice::Flags(..) | Advice::Place(_) => {}
            }
        }
        if maps.mappings.covers(range) { Ok(()) } else { Err(Error::NoMapping) }
    }
    /// Give up the contents of `range` without the lock of the mappings. False, with some of it done perhaps, if it is for who has
    /// that.
    fn discard_fast(&self, range: PageRange, advice: &Advice, ctx: &Unpinned<'_>) -> bool {
        let exclude = self.protocol.exclude();
        let Some(realm) = self.protocol.realm().filter(|_| exclude != Exclude::Stock) else { return false };
        let _shared = (exclude == Exclude::FaultLock).then(|| self.index.faults.0.read(ctx));
        let mut at = range.start();
        while at < range.end() {
            let looking = (exclude == Exclude::Hybrid).then(|| self.index.faults.0.read(ctx));
            let pin = ctx.pin();
            let section = realm.sections().read(&pin);
            let found = self.index.covering(at, &section);
            let Some(area) = found.filter(|area| is_for(*advice, &area.mapping)) else { return false };
            let number = area.number();
            if number == HIDDEN {
                return false;
            }
            drop(looking);
            let _within = Within::new(area, exclude);
            let most = Page::new(at.number() + AT_ONCE).unwrap_or(range.end());
            let end = area.range.end().min(range.end()).min(most);
            let part = PageRange::new(at, end).unwrap_or_default();
            if part.is_empty() || !self.discard(part, &|| is_alive(area, number), ctx) {
                return false;
            }
            at = end;
        }
        true
    }
    /// The frames of `part` go, leaf by leaf, as long as the mapping is `alive`; the lock of each leaf is held over its flush.
    fn discard(&self, part: PageRange, alive: &impl Fn() -> bool, ctx: &Unpinned<'_>) -> bool {
        let pin = ctx.pin();
        let mut gather = Gather::new(self.machine.frames, *ctx);
        let leaves = self.table.leaves(part).take_while(|_| alive());
        let unflushed = !mutant!("bonsai-discard-lowered");
        let taken = leaves::discard(leaves, unflushed, &mut gather, &pin, |gather| self.flush(gather, &pin));
        self.resident(-(taken as i64), ctx);
        alive()
    }
    /// Guards on every page of `part`, leaf by leaf. The mappings are locked.
    fn install_guards(&self, part: PageRange, ctx: &Unpinned<'_>) -> Result<(), Error> {
        let pin = ctx.pin();
        let mut gather = Gather::new(self.machine.frames, *ctx);
        let mut at = part.start();
        while at < part.end() {
            let leaf = self.table.lock_leaf_or_make(self.machine.frames, &pin, at, || true);
            let leaf = leaf.map_err(|_| Error::NoMemory)?;
            let served = PageRange::new(at, leaf.end().min(part.end())).unwrap_or_default();
            let taken = leaves::guard(leaf, served, &mut gather, &pin, |gather| self.flush(gather, &pin));
            self.resident(-(taken as i64), ctx);
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
        // Exclude others that change mappings.
        let mut maps = self.maps.0.write(ctx);
        let mut at = Some(range.start());
        while let Some((area, mapping)) = at.and_then(|at| maps.mappings.find_from(at)) {
            let Some(part) = area.intersect(range) else { break };
            let anonymous = matches!(mapping.backing, Backing::Anonymous) && !mapping.shared;
            if set.contains(Flags::WIPE_ON_FORK) && !anonymous {
                return Err(Error::Invalid);
            }
            if maps.mappings.splits(part) > 0 && self.machine.frames.low() {
                return Err(Error::NoMemory);
            }
            let change = |mapping: &mut Mapping| mapping.flags = mapping.flags.difference(clear).union(set);
            maps.mappings.update(part, change, ctx).map_err(|_| Error::NoMemory)?;
            at = Some(part.end()).filter(|&end| end < range.end());
        }
        if maps.mappings.covers(range) { Ok(()) } else { Err(Error::NoMapping) }
    }
    /// Where the pages of mappings are to be.
    pub(super) fn advise_policy(
        &self,
        range: PageRange,
        policy: Policy,
        ctx: &Unpinned<'_>,
    ) -> Result<(), Error> {
        // Exclude others that change mappings.
        let mut maps = self.maps.0.write(ctx);
        let default = policy.is_default();
        if maps.mappings.is_free(range) || !default && !maps.mappings.covers(range) {
            return Err(Error::NoMapping);
        }
        if maps.mappings.splits(range) > 0 && self.machine.frames.low() {
            return Err(Error::NoMemory);
        }
        let policy = Said::from(policy);
        let done = maps.mappings.update(range, |mapping| mapping.policy = policy.clone(), ctx);
        done.map_err(|_| Error::NoMemory)
    }
}

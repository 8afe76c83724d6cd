//! What `mprotect` does.

use addr::{PageRange, Prot};
use percpu::Unpinned;
use sync::mutant;

use super::Locked;
use crate::{
    Error, Limits, page,
    plan::{down_to_start, protectable},
};

impl Locked {
    /// See [`AddressSpace::protect_within`](crate::AddressSpace::protect_within).
    pub(super) fn change_rights(
        &self,
        range: PageRange,
        prot: Prot,
        down: bool,
        limits: &Limits,
        ctx: &Unpinned<'_>,
    ) -> Result<(), Error> {
        if range.is_empty() {
            return Err(Error::Invalid);
        }
        // Exclude.
        let mut guard = self.space.write(ctx);
        let space = &mut *guard;
        let range = if down { down_to_start(&space.mappings, range)? } else { range };
        let (reach, result) = protectable(&space.mappings, range, prot, limits);
        if space.mappings.splits(reach) > 0 && self.machine.frames.low() {
            return Err(Error::NoMemory);
        }
        if reach.is_empty() {
            return result;
        }
        // Change what the pages should be, then what they are.
        space.mappings.update(reach, |mapping| mapping.prot = prot);
        let mut gather = self.gather(ctx);
        for (area, mapping) in space.mappings.overlapping(reach) {
            let Some(part) = area.intersect(reach) else { continue };
            let rights = |frame| page::rights(mapping, frame, self.machine.frames);
            if let Some(lost) = space.table.protect(part, rights)
                && !mutant!("protect-no-flush")
            {
                gather.add_range(lost);
            }
        }
        self.flush(&mut gather, &ctx.pin());
        drop(guard);
        result
    }
}

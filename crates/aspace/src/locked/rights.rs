//! What `mprotect` does.

use addr::{PageRange, Prot};
use percpu::Unpinned;
use sync::mutant;

use super::Locked;
use crate::{Error, Limits, Mappings, page};

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

/// `range` from the start of the lowest mapping in it, which must grow down.
fn down_to_start(mappings: &Mappings, range: PageRange) -> Result<PageRange, Error> {
    let (area, mapping) = mappings.find_from(range.start()).ok_or(Error::NoMapping)?;
    if area.start() >= range.end() {
        return Err(Error::NoMapping);
    }
    if !mapping.is_stack() {
        return Err(Error::Invalid);
    }
    PageRange::new(area.start(), range.end()).ok_or(Error::Invalid)
}

/// How far `range` may be given `prot`, and what is to be said of the rest.
fn protectable(
    mappings: &Mappings,
    range: PageRange,
    prot: Prot,
    limits: &Limits,
) -> (PageRange, Result<(), Error>) {
    let upto = |at| PageRange::new(range.start(), at).unwrap_or_default();
    let (mut at, mut data) = (range.start(), mappings.totals().data);
    for (area, mapping) in mappings.overlapping(range) {
        if area.start() > at {
            break;
        }
        if !mapping.max_prot.contains(prot) {
            return (upto(at), Err(Error::Denied));
        }
        let end = area.end().min(range.end());
        // What becomes data is limited, unless there is so much mapped that as much again, of whatever kind, would be
        // too much (Linux's mprotect_fixup asks whether the old kind had fitted).
        let (was, is, pages) = (mapping.is_data(), mapping.is_data_under(prot), end.number() - at.number());
        let fits = mappings.totals().pages.saturating_add(pages) <= limits.pages;
        if is && !was && fits && data.saturating_add(pages) > limits.data {
            return (upto(at), Err(Error::Limit));
        }
        data = if is && !was {
            data + pages
        } else if was && !is {
            data - pages
        } else {
            data
        };
        at = end;
    }
    (upto(at), if at == range.end() { Ok(()) } else { Err(Error::NoMapping) })
}

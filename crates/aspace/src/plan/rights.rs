//! How far an `mprotect` gets.

use addr::{PageRange, Prot};

use crate::{Error, Limits, mappings::Mappings};

/// `range` from the start of the lowest mapping in it, which must grow down.
pub(crate) fn down_to_start(mappings: &Mappings, range: PageRange) -> Result<PageRange, Error> {
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
pub(crate) fn protectable(
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

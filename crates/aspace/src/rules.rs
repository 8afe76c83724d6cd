//! What any design asks of its arguments, and does to a mapping, as Linux does.

use addr::{PageRange, Prot, USER_END_PAGE};
use sync::mutant;

use crate::{Access, Advice, Backing, Error, Fault, Flags, LOWEST, Lock, Mapping, Placement};

/// A new mapping of `pages` pages must make sense.
pub(crate) fn check(mapping: &Mapping, pages: u64) -> Result<(), Error> {
    if pages == 0 {
        return Err(Error::Invalid);
    }
    if !mapping.max_prot.contains(mapping.prot) {
        return Err(Error::Denied);
    }
    match mapping.backing {
        Backing::Anonymous if mapping.shared => Err(Error::Invalid),
        Backing::Object { page, .. } if page.checked_add(pages).is_none() => Err(Error::Overflow),
        _ => Ok(()),
    }
}

/// The chosen place must be user space, and a dictated one not too low.
pub(crate) fn dictated(at: Placement, range: PageRange) -> Result<(), Error> {
    if range.end() > USER_END_PAGE {
        return Err(Error::NoRoom);
    }
    let dictated = matches!(at, Placement::Fixed(_) | Placement::FixedNoReplace(_));
    if dictated && range.start().number() < LOWEST { Err(Error::TooLow) } else { Ok(()) }
}

/// The range is of user pages, and there are some.
pub(crate) fn user(range: PageRange) -> Result<(), Error> {
    if range.is_empty() || range.end() > USER_END_PAGE { Err(Error::Invalid) } else { Ok(()) }
}

/// Whether a page allows `access`, as its mapping's protection says and the `marker` that it may have. A fetch is refused for a
/// right only where there is a page to fetch from: the marker in a mapping that may be read is what it meets first.
#[cold]
pub(crate) fn allows(access: Access, prot: Prot, marker: Option<Fault>) -> Result<(), Fault> {
    let met = access.allowed_by(prot) || access == Access::Exec && !prot.is_empty();
    match (marker, access.allowed_by(prot)) {
        (Some(fault), _) if met => Err(fault),
        (_, true) => Ok(()),
        (_, false) => Err(Fault::Denied),
    }
}

/// Whether `advice` about contents is for `mapping`.
pub(crate) fn is_for(advice: Advice, mapping: &Mapping) -> bool {
    let locked = mapping.flags.contains(Flags::LOCKED);
    let anonymous = matches!(mapping.backing, Backing::Anonymous);
    match advice {
        Advice::DontNeed | Advice::Cold => !locked,
        Advice::Free => !locked && anonymous,
        Advice::InstallGuards => !locked && !mapping.is_special(),
        Advice::RemoveGuards => !mapping.is_special(),
        _ => true,
    }
}

/// Make `mapping` locked as `lock` says; what may be dropped never is.
pub(crate) fn relock(mapping: &mut Mapping, lock: Lock) {
    if mapping.flags.contains(Flags::DROPPABLE) {
        return;
    }
    mapping.flags = mapping.flags.difference(Flags::LOCKED | Flags::ON_FAULT).union(lock.flags());
}

/// What of `gap`, which is around `range`, is on the same side of `other` as `range`.
pub(crate) fn beside(gap: PageRange, range: PageRange, other: Option<PageRange>) -> PageRange {
    let Some(other) = other.filter(|other| !other.is_empty() && !mutant!("remap-tables-lost")) else {
        return gap;
    };
    let part = if other.start() >= range.end() {
        PageRange::new(gap.start(), gap.end().min(other.start()))
    } else {
        PageRange::new(gap.start().max(other.end()), gap.end())
    };
    part.unwrap_or(range)
}

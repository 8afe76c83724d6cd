//! New mappings, stacks that grow, what is locked, and what shows an object.

use addr::{Page, PageRange, VirtAddr};
use percpu::Unpinned;

use crate::{
    Backing, Error, Flags, LOWEST, Limits, Lock, Mapping, Placement, STACK_GAP, Totals, mappings::Mappings,
    rules::dictated,
};

/// A mapping that may be made.
pub(crate) struct NewMapping {
    pub(crate) range: PageRange,
    /// Whether nothing is mapped there.
    pub(crate) free: bool,
    pub(crate) mapping: Mapping,
    /// Whether its pages are to be brought in.
    pub(crate) bring_in: bool,
}

impl NewMapping {
    /// Where `mapping`, which makes sense by itself, goes, with what `future` says of all new mappings; as
    /// [`map_within`](crate::AddressSpace::map_within).
    pub(crate) fn plan(
        mappings: &mut Mappings,
        future: Lock,
        at: Placement,
        pages: u64,
        mapping: &Mapping,
        limits: &Limits,
        ctx: &Unpinned<'_>,
    ) -> Result<Self, Error> {
        let mapping = Mapping { flags: mapping.flags | future.flags(), ..mapping.clone() };
        let range = mappings.place(at, pages, ctx).ok_or(Error::NoRoom)?;
        dictated(at, range)?;
        let free = mappings.is_free(range);
        if matches!(at, Placement::FixedNoReplace(_)) && !free {
            return Err(Error::Exists);
        }
        let now = mappings.totals();
        let others = if free { *now } else { mappings.totals_without(range) };
        limits.admit(&Totals { locked: now.locked, ..others }, &mapping, pages)?;
        Ok(Self { range, free, mapping, bring_in: false })
    }
    /// Settle how it is locked, once it is [announced](Mappings::announce). As on Linux, droppable memory counts and is
    /// brought in as if it were to be locked, and then it isn't.
    pub(crate) fn settle(&mut self) {
        let flags = &mut self.mapping.flags;
        let (locked, droppable) = (flags.contains(Flags::LOCKED), flags.contains(Flags::DROPPABLE));
        self.bring_in = locked && (droppable || !flags.contains(Flags::ON_FAULT));
        if droppable {
            *flags = flags.difference(Flags::LOCKED | Flags::ON_FAULT);
        }
    }
}

/// The mapping that has to grow down to make `va` a page of it: where it begins now. `None` if `va` is mapped already.
pub(crate) fn growth(mappings: &Mappings, va: VirtAddr, limits: &Limits) -> Result<Option<Page>, Error> {
    let at = va.page();
    let (area, mapping) = mappings.find_from(at).ok_or(Error::NoMapping)?;
    if area.start() <= at {
        return Ok(None);
    }
    if !mapping.is_stack() || at.number() < LOWEST {
        return Err(Error::NoMapping);
    }
    // A mapping that nobody can use may be near, and so may a stack.
    if let Some((below, other)) = mappings.find_below(area.start())
        && !other.is_stack()
        && !other.prot.is_empty()
        && at.number() - below.end().number() < STACK_GAP
    {
        return Err(Error::NoMapping);
    }
    let added = area.start().number() - at.number();
    if area.len().saturating_add(added) > limits.stack {
        return Err(Error::Limit);
    }
    limits.admit(mappings.totals(), mapping, added)?;
    Ok(Some(area.start()))
}

/// How far `range` is mapped without a hole, if `lock` is within `limits`.
pub(crate) fn lockable(
    mappings: &Mappings,
    range: PageRange,
    lock: Lock,
    limits: &Limits,
) -> Result<PageRange, Error> {
    // Pages that are locked already count once.
    let wanted = mappings.totals_without(range).locked.saturating_add(range.len());
    if lock != Lock::Off && wanted > limits.locked {
        return Err(Error::LockLimit);
    }
    let end = mappings.holes(range).next().map_or(range.end(), |hole| hole.start());
    Ok(PageRange::new(range.start(), end).unwrap_or_default())
}

/// The part of `range` that `mapping`, of `area`, shows as a mapping of the object `identity` from its page 0 on at the
/// range's start would. A mapping may begin before the range.
pub(crate) fn part_of(
    area: PageRange,
    mapping: &Mapping,
    range: PageRange,
    identity: (u64, u64),
) -> Option<PageRange> {
    match &mapping.backing {
        Backing::Object { object, page } if mapping.shared && object.identity() == identity => {
            let part = area.intersect(range)?;
            let shown = page + (part.start().number() - area.start().number());
            (part.start().number() - range.start().number() == shown).then_some(part)
        }
        _ => None,
    }
}

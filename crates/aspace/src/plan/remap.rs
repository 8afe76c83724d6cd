//! What `mremap` will do, with every check that Linux makes and in its order, found before anything changes.

use addr::{Page, PageRange, USER_END_PAGE};
use percpu::Unpinned;

use crate::{
    Error, Limits, Mapping, Placement, RemapTo,
    mappings::Mappings,
    rules::{check, dictated, user},
};

/// What a remap will do, found before anything changes.
pub(crate) struct Remap {
    /// The pages whose contents stay or move.
    pub(crate) keep: PageRange,
    /// Where the mapping that holds them begins.
    pub(crate) source: Page,
    pub(crate) mapping: Mapping,
    /// The pages that are cut off.
    pub(crate) cut: Option<PageRange>,
    /// The pages that are added in place.
    pub(crate) grown: Option<PageRange>,
    /// Where the pages go, if they move.
    pub(crate) target: Option<PageRange>,
}

impl Remap {
    /// Whether a dictated place makes sense.
    pub(crate) fn check_target(old: PageRange, pages: u64, at: Page) -> Result<PageRange, Error> {
        let target = PageRange::with_len(at, pages).filter(|t| t.end() <= USER_END_PAGE);
        target.filter(|t| t.intersect(old).is_none()).ok_or(Error::Invalid)
    }
    /// The checks of Linux's `mremap`, in its order (`mm/mremap.c`), but before anything is unmapped.
    pub(crate) fn plan(
        mappings: &mut Mappings,
        old: PageRange,
        pages: u64,
        to: RemapTo,
        keep: bool,
        limits: &Limits,
        ctx: &Unpinned<'_>,
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
        plan.target = Some(mappings.place(to, pages, ctx).ok_or(Error::NoRoom)?);
        Ok(plan)
    }
    /// Whether there may be more mappings afterwards, or page tables have to be made.
    pub(crate) fn needs_memory(&self, mappings: &Mappings) -> bool {
        self.target.is_some() || self.grown.is_some() || self.cut.is_some_and(|cut| mappings.punches(cut))
    }
}

/// The parts of `old`, one for each mapping, that move one by one to a dictated place, if there are several: what lies
/// between them stays. `None` if `old` is to be served as a whole.
pub(crate) fn in_parts(mappings: &Mappings, old: PageRange, pages: u64, to: RemapTo) -> Option<Page> {
    let RemapTo::Fixed(target) = to else { return None };
    let first = mappings.find(old.start()).map(|(area, _)| area);
    let one = first.is_none_or(|area| area.contains_range(old));
    (!one && old.len() == pages).then_some(target)
}

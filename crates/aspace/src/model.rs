//! The oracle: an address space as a map from single pages to what each is. No ranges, no splits, no frames, no page
//! table, no sharing between copies; everything that an implementation is clever about is absent, so what is left is
//! the meaning of the calls.
//!
//! A page's contents are one number, by which tests recognise it. Memory never runs out here.

use alloc::{collections::BTreeMap, vec::Vec};

use addr::{Page, PageRange, Prot, USER_END_PAGE};

use crate::{
    Access, Advice, Backing, Error, Fault, LOW_WINDOW, LOWEST, Label, MMAP_TOP, Mapping, Placement, RemapTo,
};

/// Device and inode number of an object.
pub type ObjectId = (u64, u64);
/// The contents of each page of each object; a page index that is not there lies beyond the object's end.
pub type Objects = BTreeMap<ObjectId, Vec<u64>>;

/// What a page is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct State {
    /// What accesses may do.
    pub prot: Prot,
    /// What `protect` may allow.
    pub max_prot: Prot,
    /// Whether stores go to the object.
    pub shared: bool,
    /// What reports call it.
    pub label: Label,
    /// The object and the page's index in it.
    pub object: Option<(ObjectId, u64)>,
    /// Contents of this address space's own, once it has some.
    pub own: Option<u64>,
}

impl State {
    /// Whether `next` would belong to the same mapping, were it the next page. Contents do not matter.
    fn continues(&self, next: &State) -> bool {
        let follows = match (self.object, next.object) {
            (None, None) => true,
            (Some((a, i)), Some((b, j))) => a == b && i.checked_add(1) == Some(j),
            _ => false,
        };
        let same = |s: &State| (s.prot, s.max_prot, s.shared, s.label);
        follows && same(self) == same(next)
    }
}

/// An address space.
#[derive(Clone, Default, Debug)]
pub struct Model {
    pages: BTreeMap<u64, State>,
}

/// Page number `n`; numbers here are below 2^36.
fn page(n: u64) -> Page {
    Page::new(n).unwrap_or(USER_END_PAGE)
}

fn numbers(r: PageRange) -> core::ops::Range<u64> {
    r.start().number()..r.end().number()
}

impl Model {
    /// Nothing mapped.
    pub fn new() -> Self {
        Self::default()
    }
    /// The mappings: the longest runs of pages of which each continues the one before, with the state of the first.
    pub fn list(&self) -> Vec<(PageRange, State)> {
        let mut list: Vec<(u64, u64, State)> = Vec::new();
        let mut last: Option<(u64, &State)> = None;
        for (&n, state) in &self.pages {
            match (last, list.last_mut()) {
                (Some((before, s)), Some(run)) if before + 1 == n && s.continues(state) => run.1 = n + 1,
                _ => list.push((n, n + 1, State { own: None, ..state.clone() })),
            }
            last = Some((n, state));
        }
        list.into_iter().filter_map(|(a, b, s)| Some((PageRange::new(page(a), page(b))?, s))).collect()
    }
    /// What `at` is.
    pub fn state(&self, at: Page) -> Option<&State> {
        self.pages.get(&at.number())
    }
    fn is_free(&self, r: PageRange) -> bool {
        self.pages.range(numbers(r)).next().is_none()
    }
    fn covers(&self, r: PageRange) -> bool {
        self.pages.range(numbers(r)).count() as u64 == r.len()
    }
    fn remove(&mut self, r: PageRange) {
        self.pages.retain(|&n, _| !r.contains(page(n)));
    }
    /// The runs of free pages in `low..high`, ascending.
    fn holes(&self, low: u64, high: u64) -> Vec<(u64, u64)> {
        let mut holes = Vec::new();
        let mut at = low;
        for &n in self.pages.range(low..high).map(|(n, _)| n).chain([&high]) {
            if at < n {
                holes.push((at, n));
            }
            at = n + 1;
        }
        holes
    }
    fn place(&self, at: Placement, pages: u64) -> Option<PageRange> {
        let fits = |&(a, b): &(u64, u64)| b - a >= pages;
        let top = |low, high| self.holes(low, high).into_iter().rev().find(fits).map(|(_, b)| b - pages);
        let highest = || top(LOWEST, MMAP_TOP).or_else(|| top(MMAP_TOP, USER_END_PAGE.number()));
        let start = match at {
            Placement::Fixed(p) | Placement::FixedNoReplace(p) => p.number(),
            Placement::Below32Bit => self.holes(LOW_WINDOW.start, LOW_WINDOW.end).into_iter().find(fits)?.0,
            Placement::Anywhere => highest()?,
            Placement::Hint(p) => {
                let p = p.number().max(LOWEST);
                let free = p + pages <= USER_END_PAGE.number()
                    && PageRange::with_len(page(p), pages).is_some_and(|r| self.is_free(r));
                if free { p } else { highest()? }
            }
        };
        PageRange::with_len(page(start), pages)
    }

    /// See [`AddressSpace::map`](crate::AddressSpace::map).
    pub fn map(&mut self, at: Placement, pages: u64, mapping: &Mapping) -> Result<PageRange, Error> {
        if pages == 0 {
            return Err(Error::Invalid);
        }
        if !mapping.max_prot.contains(mapping.prot) {
            return Err(Error::Denied);
        }
        let object = match &mapping.backing {
            Backing::Anonymous if mapping.shared => return Err(Error::Invalid),
            Backing::Anonymous => None,
            Backing::Object { page, .. } if page.checked_add(pages).is_none() => return Err(Error::Overflow),
            Backing::Object { object, page } => Some((object.identity(), *page)),
        };
        let range = self.place(at, pages).filter(|r| r.end() <= USER_END_PAGE).ok_or(Error::NoRoom)?;
        let dictated = matches!(at, Placement::Fixed(_) | Placement::FixedNoReplace(_));
        if dictated && range.start().number() < LOWEST {
            return Err(Error::TooLow);
        }
        if matches!(at, Placement::FixedNoReplace(_)) && !self.is_free(range) {
            return Err(Error::Exists);
        }
        for (i, n) in numbers(range).enumerate() {
            let state = State {
                prot: mapping.prot,
                max_prot: mapping.max_prot,
                shared: mapping.shared,
                label: mapping.label,
                object: object.map(|(id, first)| (id, first + i as u64)),
                own: None,
            };
            self.pages.insert(n, state);
        }
        Ok(range)
    }
    /// See [`AddressSpace::unmap`](crate::AddressSpace::unmap).
    pub fn unmap(&mut self, range: PageRange) -> Result<(), Error> {
        if range.is_empty() || range.end() > USER_END_PAGE {
            return Err(Error::Invalid);
        }
        self.remove(range);
        Ok(())
    }
    /// See [`AddressSpace::protect`](crate::AddressSpace::protect).
    pub fn protect(&mut self, range: PageRange, prot: Prot) -> Result<(), Error> {
        if range.is_empty() {
            return Err(Error::Invalid);
        }
        for n in numbers(range) {
            let state = self.pages.get_mut(&n).ok_or(Error::NoMapping)?;
            if !state.max_prot.contains(prot) {
                return Err(Error::Denied);
            }
            state.prot = prot;
        }
        Ok(())
    }
    /// See [`AddressSpace::advise`](crate::AddressSpace::advise).
    pub fn advise(&mut self, range: PageRange, advice: Advice) -> Result<(), Error> {
        if range.is_empty() {
            return Err(Error::Invalid);
        }
        if advice == Advice::DontNeed {
            self.pages.range_mut(numbers(range)).for_each(|(_, state)| state.own = None);
        }
        if self.covers(range) { Ok(()) } else { Err(Error::NoMapping) }
    }
    /// See [`AddressSpace::remap`](crate::AddressSpace::remap).
    pub fn remap(&mut self, old: PageRange, pages: u64, to: RemapTo) -> Result<Page, Error> {
        if pages == 0 {
            return Err(Error::Invalid);
        }
        let mut target = None;
        if let RemapTo::Fixed(at) = to {
            let there =
                PageRange::with_len(at, pages).filter(|t| t.end() <= USER_END_PAGE).ok_or(Error::Invalid)?;
            if there.intersect(old).is_some() {
                return Err(Error::Invalid);
            }
            if at.number() < LOWEST {
                return Err(Error::TooLow);
            }
            target = Some(there);
        }
        let first = self.state(old.start()).ok_or(Error::NoMapping)?.clone();
        if old.is_empty() && !first.shared {
            return Err(Error::Invalid);
        }
        let kept = PageRange::with_len(old.start(), pages.min(old.len())).ok_or(Error::Invalid)?;
        let cut = PageRange::new(kept.end(), old.end()).ok_or(Error::Invalid)?;
        if pages <= old.len() && old.end() > USER_END_PAGE {
            return Err(Error::Invalid);
        }
        if pages <= old.len() && target.is_none() {
            self.remove(cut);
            return Ok(old.start());
        }
        let (whole, _) =
            self.list().into_iter().find(|(r, _)| r.contains(old.start())).ok_or(Error::NoMapping)?;
        if !whole.contains_range(kept) {
            return Err(Error::NoMapping);
        }
        if first.object.is_some_and(|(_, index)| index.checked_add(pages).is_none()) {
            return Err(Error::Overflow);
        }
        let fresh = |i: u64| State {
            object: first.object.map(|(id, index)| (id, index + i)),
            own: None,
            ..first.clone()
        };
        if target.is_none() {
            let end = old.start().number() + pages;
            let grown = PageRange::new(old.end(), page(end)).filter(|_| end <= USER_END_PAGE.number());
            if let Some(grown) = grown.filter(|&g| old.end() == whole.end() && self.is_free(g)) {
                for n in numbers(grown) {
                    self.pages.insert(n, fresh(n - old.start().number()));
                }
                return Ok(old.start());
            }
            if to == RemapTo::InPlace {
                return Err(Error::NoRoom);
            }
            target = self.place(Placement::Anywhere, pages);
        }
        let target = target.ok_or(Error::NoRoom)?;
        let moved: Vec<_> = numbers(kept).filter_map(|n| self.pages.remove(&n)).collect();
        self.remove(cut);
        for (i, n) in numbers(target).enumerate() {
            let state = moved.get(i).cloned().unwrap_or_else(|| fresh(i as u64));
            self.pages.insert(n, state);
        }
        Ok(target.start())
    }
    /// What an access to `at` is answered.
    pub fn access(&self, at: Page, access: Access, objects: &Objects) -> Result<&State, Fault> {
        let state = self.state(at).ok_or(Fault::NoMapping)?;
        if !access.allowed_by(state.prot) {
            return Err(Fault::Denied);
        }
        match state.object {
            Some((id, index)) if state.own.is_none() => {
                let pages = objects.get(&id).map_or(0, Vec::len) as u64;
                if index < pages { Ok(state) } else { Err(Fault::BeyondObject) }
            }
            _ => Ok(state),
        }
    }
    /// What a load from `at` gives.
    pub fn load(&self, at: Page, objects: &Objects) -> Result<u64, Fault> {
        let state = self.access(at, Access::Read, objects)?;
        Ok(match (state.own, state.object) {
            (Some(value), _) => value,
            (None, None) => 0,
            (None, Some((id, index))) => {
                objects.get(&id).and_then(|pages| pages.get(index as usize)).copied().unwrap_or(0)
            }
        })
    }
    /// Store to `at`.
    pub fn store(&mut self, at: Page, value: u64, objects: &mut Objects) -> Result<(), Fault> {
        let state = self.access(at, Access::Write, objects)?;
        match state.object {
            Some((id, index)) if state.shared => {
                if let Some(word) = objects.get_mut(&id).and_then(|pages| pages.get_mut(index as usize)) {
                    *word = value;
                }
            }
            _ => {
                if let Some(state) = self.pages.get_mut(&at.number()) {
                    state.own = Some(value);
                }
            }
        }
        Ok(())
    }
}

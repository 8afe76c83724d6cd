//! The oracle: an address space as a map from single pages to what each is. No ranges, no splits, no frames, no page
//! table, no sharing between copies; everything that an implementation is clever about is absent, so what is left is
//! the meaning of the calls.
//!
//! A page's contents are one number, by which tests recognise it. Memory never runs out here.

use alloc::{collections::BTreeMap, vec::Vec};

use addr::{Page, PageRange, Prot, USER_END_PAGE};

use crate::{
    Access, Advice, Backing, Error, Fault, Flags, LOW_WINDOW, LOWEST, Label, Limits, Lock, MMAP_TOP, Mapping,
    Placement, Policy, RemapTo, STACK_GAP,
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
    /// What else it was told.
    pub flags: Flags,
    /// Where it is to be.
    pub policy: Policy,
    /// The object and the page's index in it.
    pub object: Option<(ObjectId, u64)>,
    /// Contents of this address space's own, once it has some.
    pub own: Option<u64>,
    /// Whether it is a guard. Reports do not tell.
    pub guard: bool,
}

impl State {
    /// Whether `next` would belong to the same mapping, were it the next page. Contents do not matter.
    fn continues(&self, next: &State) -> bool {
        let follows = match (self.object, next.object) {
            (None, None) => true,
            (Some((a, i)), Some((b, j))) => a == b && i.checked_add(1) == Some(j),
            _ => false,
        };
        let same = |s: &State| (s.prot, s.max_prot, s.shared, s.label, s.flags, s.policy);
        follows && same(self) == same(next)
    }
}

impl State {
    fn is_stack(&self) -> bool {
        self.flags.contains(Flags::GROWS_DOWN)
    }
    fn is_data(&self) -> bool {
        self.prot.contains(Prot::WRITE) && !self.shared && !self.is_stack()
    }
    fn is_locked(&self) -> bool {
        self.flags.contains(Flags::LOCKED)
    }
    fn never_locked_if_droppable(mut self) -> Self {
        if self.flags.contains(Flags::DROPPABLE) {
            self.flags.remove(Flags::LOCKED | Flags::ON_FAULT);
        }
        self
    }
    fn relock(&mut self, lock: Lock) {
        if self.flags.contains(Flags::DROPPABLE) {
            return;
        }
        self.flags.remove(Flags::LOCKED | Flags::ON_FAULT);
        self.flags.insert(lock.flags());
    }
}

/// An address space.
#[derive(Clone, Debug)]
pub struct Model {
    pages: BTreeMap<u64, State>,
    future: Lock,
    chosen: Option<Page>,
}

impl Default for Model {
    fn default() -> Self {
        Self { pages: BTreeMap::new(), future: Lock::Off, chosen: None }
    }
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
                _ => list.push((n, n + 1, State { own: None, guard: false, ..state.clone() })),
            }
            last = Some((n, state));
        }
        list.into_iter().filter_map(|(a, b, s)| Some((PageRange::new(page(a), page(b))?, s))).collect()
    }
    /// What may go anywhere goes to `at` if there is room: for designs that choose otherwise than Linux does.
    pub fn choose(&mut self, at: Option<Page>) {
        self.chosen = at;
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
    /// The runs of free pages in `low..high` that are not in the gap below a stack, ascending.
    fn holes(&self, low: u64, high: u64) -> Vec<(u64, u64)> {
        let mut holes = Vec::new();
        let mut at = low;
        let stack = |n: u64| self.pages.get(&n).is_some_and(State::is_stack);
        // What comes next after `high` matters too.
        let beyond = self.pages.range(high..).next().map(|(&n, _)| n);
        let ends = self.pages.range(low..high).map(|(&n, _)| n).chain([beyond.unwrap_or(u64::MAX)]);
        for n in ends {
            let end = if stack(n) { n.saturating_sub(STACK_GAP) } else { n }.min(high);
            if at < end {
                holes.push((at, end));
            }
            at = n.saturating_add(1);
        }
        holes
    }
    fn place(&self, at: Placement, pages: u64) -> Option<PageRange> {
        let fits = |&(a, b): &(u64, u64)| b - a >= pages;
        let top = |low, high| self.holes(low, high).into_iter().rev().find(fits).map(|(_, b)| b - pages);
        let chosen = || {
            let chosen = self.chosen?.number();
            let fits = |&(a, b): &(u64, u64)| {
                a.max(LOWEST) <= chosen && chosen.checked_add(pages).is_some_and(|end| end <= b)
            };
            self.holes(0, USER_END_PAGE.number()).iter().any(fits).then_some(chosen)
        };
        let highest =
            || chosen().or_else(|| top(LOWEST, MMAP_TOP)).or_else(|| top(MMAP_TOP, USER_END_PAGE.number()));
        let lowest = || self.holes(LOW_WINDOW.start, LOW_WINDOW.end).into_iter().find(fits).map(|(a, _)| a);
        // Whether `p..p + pages` lies in a hole below `end`; a hole begins after a page or at 0.
        let clear = |p: u64, end: u64| {
            let last = p.checked_add(pages).filter(|&last| last <= end);
            last.is_some_and(|last| self.holes(0, end).iter().any(|&(a, b)| a <= p && last <= b))
        };
        let start = match at {
            Placement::Fixed(p) | Placement::FixedNoReplace(p) => p.number(),
            Placement::Below32Bit => lowest()?,
            Placement::Anywhere => highest()?,
            Placement::Hint(p) | Placement::HintBelow32Bit(p) => {
                let low = matches!(at, Placement::HintBelow32Bit(_));
                let p = p.number().max(LOWEST);
                match clear(p, if low { LOW_WINDOW.end } else { USER_END_PAGE.number() }) {
                    true => p,
                    false if low => lowest()?,
                    false => highest()?,
                }
            }
        };
        PageRange::with_len(page(start), pages)
    }
    /// How many pages outside of `gone` are like this.
    fn count(&self, gone: Option<PageRange>, like: impl Fn(&State) -> bool) -> u64 {
        let kept = |n: u64| gone.is_none_or(|gone| !gone.contains(page(n)));
        self.pages.iter().filter(|&(&n, state)| kept(n) && like(state)).count() as u64
    }
    /// Whether `more` pages like `state` may be added once `gone` is: see [`Limits`].
    fn admit(&self, limits: &Limits, gone: Option<PageRange>, state: &State, more: u64) -> Result<(), Error> {
        if state.is_locked() && self.count(None, State::is_locked).saturating_add(more) > limits.locked {
            return Err(Error::LockLimit);
        }
        let data = state.is_data() && self.count(gone, State::is_data).saturating_add(more) > limits.data;
        let pages = self.count(gone, |_| true).saturating_add(more) > limits.pages;
        if data || pages { Err(Error::Limit) } else { Ok(()) }
    }

    /// See [`AddressSpace::map`](crate::AddressSpace::map).
    pub fn map(
        &mut self,
        at: Placement,
        pages: u64,
        mapping: &Mapping,
        limits: &Limits,
    ) -> Result<PageRange, Error> {
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
        let first = State {
            prot: mapping.prot,
            max_prot: mapping.max_prot,
            shared: mapping.shared,
            label: mapping.label,
            flags: mapping.flags | self.future.flags(),
            policy: mapping.policy.get(),
            object,
            own: None,
            guard: false,
        };
        self.admit(limits, Some(range), &first, pages)?;
        let first = first.never_locked_if_droppable();
        for (i, n) in numbers(range).enumerate() {
            let object = object.map(|(id, first)| (id, first + i as u64));
            self.pages.insert(n, State { object, ..first.clone() });
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
    /// See [`AddressSpace::protect_within`](crate::AddressSpace::protect_within).
    pub fn protect(
        &mut self,
        range: PageRange,
        prot: Prot,
        down: bool,
        limits: &Limits,
    ) -> Result<(), Error> {
        if range.is_empty() {
            return Err(Error::Invalid);
        }
        let mut range = range;
        if down {
            let (area, first) = self
                .list()
                .into_iter()
                .find(|(r, _)| r.intersect(range).is_some())
                .ok_or(Error::NoMapping)?;
            if !first.is_stack() {
                return Err(Error::Invalid);
            }
            range = PageRange::new(area.start(), range.end()).ok_or(Error::Invalid)?;
        }
        let total = self.count(None, |_| true);
        for (area, first) in self.list() {
            // Mapping by mapping, as the data limit is about all that one has in the range.
            let Some(part) = area.intersect(range) else { continue };
            let before = PageRange::new(range.start(), part.start()).unwrap_or_default();
            if !self.covers(before) {
                return Err(Error::NoMapping);
            }
            if !first.max_prot.contains(prot) {
                return Err(Error::Denied);
            }
            let becomes = State { prot, ..first.clone() }.is_data() && !first.is_data();
            let data = self.count(None, State::is_data).saturating_add(part.len());
            if becomes && data > limits.data && total.saturating_add(part.len()) <= limits.pages {
                return Err(Error::Limit);
            }
            self.pages.range_mut(numbers(part)).for_each(|(_, state)| state.prot = prot);
        }
        if self.covers(range) { Ok(()) } else { Err(Error::NoMapping) }
    }
    /// See [`AddressSpace::advise`](crate::AddressSpace::advise).
    pub fn advise(&mut self, range: PageRange, advice: Advice) -> Result<(), Error> {
        if range.is_empty() {
            return Err(Error::Invalid);
        }
        if let Advice::Place(policy) = advice {
            if self.is_free(range) || !policy.is_default() && !self.covers(range) {
                return Err(Error::NoMapping);
            }
            self.pages.range_mut(numbers(range)).for_each(|(_, state)| state.policy = policy);
            return Ok(());
        }
        for (_, state) in self.pages.range_mut(numbers(range)) {
            let (locked, anonymous) = (state.is_locked(), state.object.is_none());
            match advice {
                Advice::InstallGuards | Advice::RemoveGuards
                    if matches!(state.label, Label::Vdso | Label::Vvar) =>
                {
                    return Err(Error::Invalid);
                }
                Advice::DontNeed | Advice::Cold | Advice::Free | Advice::InstallGuards if locked => {
                    return Err(Error::Invalid);
                }
                Advice::Free if !anonymous => return Err(Error::Invalid),
                Advice::DontNeed | Advice::DontNeedLocked | Advice::Free => state.own = None,
                Advice::InstallGuards => (state.own, state.guard) = (None, true),
                Advice::RemoveGuards => state.guard = false,
                Advice::Flags(set, _) if set.contains(Flags::WIPE_ON_FORK) && !anonymous => {
                    return Err(Error::Invalid);
                }
                Advice::Flags(set, clear) => state.flags = state.flags.difference(clear).union(set),
                Advice::WillNeed | Advice::Cold | Advice::Place(_) => {}
            }
        }
        if self.covers(range) { Ok(()) } else { Err(Error::NoMapping) }
    }
    /// See [`AddressSpace::lock`](crate::AddressSpace::lock).
    pub fn lock(&mut self, range: PageRange, lock: Lock, limits: &Limits) -> Result<(), Error> {
        if range.is_empty() {
            return Err(Error::Invalid);
        }
        let others = self.count(Some(range), State::is_locked);
        if lock != Lock::Off && others.saturating_add(range.len()) > limits.locked {
            return Err(Error::LockLimit);
        }
        for n in numbers(range) {
            self.pages.get_mut(&n).ok_or(Error::NoMapping)?.relock(lock);
        }
        Ok(())
    }
    /// See [`AddressSpace::lock_all`](crate::AddressSpace::lock_all).
    pub fn lock_all(
        &mut self,
        now: Option<Lock>,
        future: Option<Lock>,
        limits: &Limits,
    ) -> Result<(), Error> {
        if now.is_some_and(|lock| lock != Lock::Off) && self.pages.len() as u64 > limits.locked {
            return Err(Error::LockLimit);
        }
        self.future = future.unwrap_or(self.future);
        if let Some(lock) = now {
            self.pages.values_mut().for_each(|state| state.relock(lock));
        }
        Ok(())
    }
    /// See [`AddressSpace::grow`](crate::AddressSpace::grow).
    pub fn grow(&mut self, at: Page, limits: &Limits) -> Result<(), Error> {
        let n = at.number();
        if self.pages.contains_key(&n) {
            return Ok(());
        }
        let (&top, first) = self.pages.range(n..).next().ok_or(Error::NoMapping)?;
        let first = State { own: None, guard: false, ..first.clone() };
        if !first.is_stack() || n < LOWEST {
            return Err(Error::NoMapping);
        }
        let below = self.pages.range(..n).next_back();
        if below.is_some_and(|(&b, s)| !s.is_stack() && !s.prot.is_empty() && n - (b + 1) < STACK_GAP) {
            return Err(Error::NoMapping);
        }
        let area = self.list().into_iter().find(|(r, _)| r.contains(page(top))).map_or(0, |(r, _)| r.len());
        if area + (top - n) > limits.stack {
            return Err(Error::Limit);
        }
        self.admit(limits, None, &first, top - n)?;
        self.pages.extend((n..top).map(|n| (n, first.clone())));
        Ok(())
    }
    /// The child of a fork.
    pub fn fork(&self) -> Self {
        let mut child = Self { pages: self.pages.clone(), ..Self::default() };
        child.pages.retain(|_, state| !state.flags.contains(Flags::DONT_FORK));
        for state in child.pages.values_mut() {
            state.flags.remove(Flags::LOCKED | Flags::ON_FAULT);
            if state.flags.contains(Flags::WIPE_ON_FORK) {
                (state.own, state.guard) = (None, false);
            }
        }
        child
    }
    /// Pages `pages` of the object are cut off (`copies`) or punched out.
    pub fn cut(&mut self, id: ObjectId, pages: core::ops::Range<u64>, copies: bool) {
        for state in self.pages.values_mut() {
            if copies && state.object.is_some_and(|(o, index)| o == id && pages.contains(&index)) {
                state.own = None;
            }
        }
    }
    /// See [`AddressSpace::remap_within`](crate::AddressSpace::remap_within).
    pub fn remap(
        &mut self,
        old: PageRange,
        pages: u64,
        to: RemapTo,
        keep: bool,
        limits: &Limits,
    ) -> Result<Page, Error> {
        let RemapTo::Fixed(at) = to else { return self.remap_one(old, pages, to, keep, limits) };
        let parts: Vec<_> = self.list().into_iter().filter_map(|(r, _)| r.intersect(old)).collect();
        let starts = parts.first().is_some_and(|part| part.start() == old.start());
        if !starts || pages != old.len() || parts.first() == Some(&old) {
            return self.remap_one(old, pages, to, keep, limits);
        }
        Self::target(old, pages, at)?;
        for part in parts {
            let there = RemapTo::Fixed(page(at.number() + part.start().number() - old.start().number()));
            self.remap_one(part, part.len(), there, keep, limits)?;
        }
        Ok(at)
    }
    fn target(old: PageRange, pages: u64, at: Page) -> Result<PageRange, Error> {
        let there =
            PageRange::with_len(at, pages).filter(|t| t.end() <= USER_END_PAGE).ok_or(Error::Invalid)?;
        if there.intersect(old).is_some() { Err(Error::Invalid) } else { Ok(there) }
    }
    fn remap_one(
        &mut self,
        old: PageRange,
        pages: u64,
        to: RemapTo,
        keep: bool,
        limits: &Limits,
    ) -> Result<Page, Error> {
        if pages == 0 || keep && (pages != old.len() || to == RemapTo::InPlace) {
            return Err(Error::Invalid);
        }
        let mut target = None;
        if let RemapTo::Fixed(at) = to {
            target = Some(Self::target(old, pages, at)?);
        }
        let first = self.state(old.start()).ok_or(Error::NoMapping)?.clone();
        if old.is_empty() && !first.shared {
            return Err(Error::Invalid);
        }
        let kept = PageRange::with_len(old.start(), pages.min(old.len())).ok_or(Error::Invalid)?;
        let cut = PageRange::new(kept.end(), old.end()).ok_or(Error::Invalid)?;
        if pages <= old.len() && !keep && old.end() > USER_END_PAGE {
            return Err(Error::Invalid);
        }
        if pages <= old.len() && !keep && target.is_none() {
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
        if pages > old.len() {
            self.admit(limits, None, &first, pages - old.len())?;
        }
        if keep {
            let mut unlocked = first.clone();
            unlocked.relock(Lock::Off);
            self.admit(limits, target, &unlocked, pages)?;
        }
        if target.is_some_and(|target| target.start().number() < LOWEST) {
            return Err(Error::TooLow);
        }
        let fresh = |i: u64| State {
            object: first.object.map(|(id, index)| (id, index + i)),
            own: None,
            guard: false,
            ..first.clone()
        };
        if target.is_none() {
            let end = old.start().number() + pages;
            let grown = PageRange::new(old.end(), page(end)).filter(|_| end <= USER_END_PAGE.number());
            let fits = |g: &PageRange| !keep && old.end() == whole.end() && self.is_free(*g);
            if let Some(grown) = grown.filter(fits) {
                for n in numbers(grown) {
                    self.pages.insert(n, fresh(n - old.start().number()));
                }
                return Ok(old.start());
            }
            target = match to {
                RemapTo::InPlace => return Err(Error::NoRoom),
                RemapTo::Hint(at) => self.place(Placement::Hint(at), pages),
                _ => self.place(Placement::Anywhere, pages),
            };
        }
        let target = target.ok_or(Error::NoRoom)?;
        let moved: Vec<_> = numbers(kept).filter_map(|n| self.pages.remove(&n)).collect();
        self.remove(cut);
        self.remove(target);
        if keep {
            for (i, n) in numbers(kept).enumerate() {
                self.pages.insert(n, fresh(i as u64));
            }
            // What remains of the old mapping is unlocked.
            if let Some((old, _)) = self.list().into_iter().find(|(r, _)| r.contains(kept.start())) {
                self.pages.range_mut(numbers(old)).for_each(|(_, state)| state.relock(Lock::Off));
            }
        }
        for (i, n) in numbers(target).enumerate() {
            let state = moved.get(i).cloned().unwrap_or_else(|| fresh(i as u64));
            self.pages.insert(n, state);
        }
        Ok(target.start())
    }
    /// What an access to `at` is answered.
    pub fn access(&self, at: Page, access: Access, objects: &Objects) -> Result<&State, Fault> {
        let state = self.state(at).ok_or(Fault::NoMapping)?;
        match access {
            // Whether there is a page at all is asked before whether it may be executed.
            Access::Exec if state.guard && !state.prot.is_empty() => return Err(Fault::Guard),
            _ if !access.allowed_by(state.prot) => return Err(Fault::Denied),
            _ if state.guard => return Err(Fault::Guard),
            _ => {}
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

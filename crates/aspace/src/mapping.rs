//! What a page should be ([`Mapping`]), and the index of that ([`Mappings`]): an ordered map from first pages, whose
//! mappings are split exactly where an operation begins or ends and joined wherever two neighbours say the same, as
//! Linux does. So the list of mappings is a function of what each page is, whatever the history.

use alloc::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::{
    fmt,
    marker::PhantomData,
    mem::ManuallyDrop,
    ops::{Deref, Range},
    ptr,
};

use addr::{Page, PageRange, Prot};
use owned::{Memory, OwnedFrame};
use percpu::{Pinned, Unpinned};

use crate::{LOW_WINDOW, LOWEST, MMAP_TOP, Mapper, Mappers, Placement, Policy, STACK_GAP, Said};

/// Why an object has no page to give.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ObjectError {
    /// The object ends before this page.
    BeyondEnd,
    /// No frame is free.
    NoMemory,
    /// The page can't be read.
    Io,
    /// The object is sealed against it.
    Sealed,
}

/// Something with pages that can be mapped: a file, or memory shared by processes.
///
/// Two mappings are parts of one only if their objects are the same `Arc`.
pub trait Object: Send + Sync {
    /// A share of the frame that holds page `index`; if it has none yet, one where `policy` wants that page. May sleep;
    /// the caller holds the address space's lock, so it must not touch user memory.
    fn page(
        &self,
        index: u64,
        policy: &Policy,
        frames: &Memory,
        ctx: &Unpinned<'_>,
    ) -> Result<OwnedFrame, ObjectError>;
    /// Device and inode number, for `/proc/self/maps`.
    fn identity(&self) -> (u64, u64);
    /// Name, for `/proc/self/maps`.
    fn path(&self) -> Vec<u8>;
    /// Who maps it, if its pages can go away while they are mapped.
    fn mappers(&self) -> Option<&Mappers> {
        None
    }
    /// Whether new shared mappings may write it.
    fn is_writable(&self) -> bool {
        true
    }
    /// Whether it is memory that processes share, rather than a file; for reports.
    fn is_memory(&self) -> bool {
        false
    }
    /// Whether page `index` needs no reading; for reports.
    fn is_resident(&self, _index: u64, _ctx: &Unpinned<'_>) -> bool {
        true
    }
    /// Make `pages` pages from `index` on read as zeros, and give their frames back. May sleep, and takes address
    /// spaces' locks. The default can't: `Io`.
    fn punch(&self, _index: u64, _pages: u64, _ctx: &Unpinned<'_>) -> Result<(), ObjectError> {
        Err(ObjectError::Io)
    }
}

bitflags::bitflags! {
    /// What a mapping is told beside its protection: by `mmap`'s flags, `madvise` and `mlock`.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct Flags: u16 {
        /// A fault below it, down to the gap above the next mapping, makes it longer.
        const GROWS_DOWN = 1;
        /// Counted as locked: its pages stay in memory (which all pages here do anyway).
        const LOCKED = 1 << 1;
        /// With `LOCKED`: pages are not brought in ahead.
        const ON_FAULT = 1 << 2;
        /// A forked child does not get it.
        const DONT_FORK = 1 << 3;
        /// A forked child gets it empty.
        const WIPE_ON_FORK = 1 << 4;
        /// No memory is set aside for it.
        const NO_RESERVE = 1 << 5;
        /// Not in core dumps.
        const DONT_DUMP = 1 << 6;
        /// Will be used in ascending order.
        const SEQUENTIAL = 1 << 7;
        /// Will be used in no order.
        const RANDOM = 1 << 8;
        /// Large pages are welcome.
        const HUGE = 1 << 9;
        /// Large pages are not.
        const NO_HUGE = 1 << 10;
        /// Pages that are the same as others may be shared.
        const MERGEABLE = 1 << 11;
        /// Its contents may go when memory is short (they do not, here); never locked.
        const DROPPABLE = 1 << 12;
        /// Shared, but of a file that isn't open for writing; for reports.
        const READ_ONLY_FILE = 1 << 13;
    }
}

/// Where a page's first contents come from.
#[derive(Clone)]
pub enum Backing {
    /// Zeros.
    Anonymous,
    /// A page of an object.
    Object {
        /// The object.
        object: Arc<dyn Object>,
        /// Index in the object of the mapping's first page.
        page: u64,
    },
}

impl Backing {
    /// The backing of the page that is `pages` pages further on.
    fn advanced(&self, pages: u64) -> Self {
        match self {
            Backing::Anonymous => Backing::Anonymous,
            Backing::Object { object, page } => {
                Backing::Object { object: object.clone(), page: page.wrapping_add(pages) }
            }
        }
    }
    /// Whether `next` is what `self` would say `pages` pages further on.
    fn continues(&self, pages: u64, next: &Self) -> bool {
        match (self, next) {
            (Backing::Anonymous, Backing::Anonymous) => true,
            (Backing::Object { object: a, page: p }, Backing::Object { object: b, page: q }) => {
                core::ptr::addr_eq(Arc::as_ptr(a), Arc::as_ptr(b)) && p.checked_add(pages) == Some(*q)
            }
            _ => false,
        }
    }
}

impl fmt::Debug for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Backing::Anonymous => f.write_str("Anonymous"),
            Backing::Object { object, page } => write!(f, "Object({:?}, page {page})", object.identity()),
        }
    }
}

/// What `/proc/self/maps` calls a mapping without an object.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Label {
    /// Nothing.
    #[default]
    None,
    /// `[heap]`
    Heap,
    /// `[stack]`
    Stack,
    /// `[vdso]`
    Vdso,
    /// `[vvar]`
    Vvar,
}

/// What the pages of a range should be.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// What accesses may do now.
    pub prot: Prot,
    /// The most that [`AddressSpace::protect`](crate::AddressSpace::protect) may allow.
    pub max_prot: Prot,
    /// Where the contents come from; the page index is that of the mapping's first page.
    pub backing: Backing,
    /// Whether stores go to the object (which there must be), or to a copy of this address space's own.
    pub shared: bool,
    /// What reports call it.
    pub label: Label,
    /// What else it was told.
    pub flags: Flags,
    /// Where its pages are to be.
    pub policy: Said,
}

impl Mapping {
    /// Zeros of this address space's own, which `prot` may be changed to anything.
    pub fn anonymous(prot: Prot) -> Self {
        Self::new(prot, Backing::Anonymous)
    }
    /// A private mapping without a label or flags.
    pub fn new(prot: Prot, backing: Backing) -> Self {
        let (max_prot, label) = (Prot::all(), Label::None);
        Self { prot, max_prot, backing, shared: false, label, flags: Flags::empty(), policy: Said::NOTHING }
    }
    /// What the mapping says of the pages from the one `pages` further on.
    pub fn advanced(&self, pages: u64) -> Self {
        Self { backing: self.backing.advanced(pages), policy: self.policy.clone(), ..*self }
    }
    /// Whether `next`, which begins `pages` pages further on, could as well be part of this mapping.
    pub fn continues(&self, pages: u64, next: &Self) -> bool {
        self.prot == next.prot
            && self.max_prot == next.max_prot
            && self.shared == next.shared
            && self.label == next.label
            && self.flags == next.flags
            && self.policy == next.policy
            && self.backing.continues(pages, &next.backing)
    }
}

/// A mapping for a look, which takes no count of its object: that is counted elsewhere for as long as this lives. Who keeps the
/// mapping clones it, which counts.
///
/// Where a [`Mapping`] would be made to be compared and dropped, the object's count is a cache line that all CPUs which map
/// the object would write twice.
pub struct Lent<'a>(ManuallyDrop<Mapping>, PhantomData<&'a Mapping>);

impl Deref for Lent<'_> {
    type Target = Mapping;
    fn deref(&self) -> &Mapping {
        &self.0
    }
}

impl Mapping {
    /// A mapping of `object` from page `page` on, which says otherwise what this one does.
    pub fn of<'a, O: Object + 'static>(&'a self, object: &'a Arc<O>, page: u64) -> Lent<'a> {
        let mut lent = self.but(self.flags);
        // SAFETY: a second owner that is never dropped, nor used after the borrow of the first. What was there is not dropped
        // either, as it is `self`'s.
        unsafe {
            let object: Arc<dyn Object> = ptr::read::<Arc<O>>(object);
            ptr::write(&mut lent.0.backing, Backing::Object { object, page });
        }
        lent
    }
    /// The same with other flags.
    pub(crate) fn but(&self, flags: Flags) -> Lent<'_> {
        // SAFETY: a second owner of what it refers to, which is never dropped, nor used after the borrow of the first.
        let mut copy = ManuallyDrop::new(unsafe { ptr::read(self) });
        copy.flags = flags;
        Lent(copy, PhantomData)
    }
}

impl Lent<'_> {
    /// What it says of the pages from the one `pages` further on.
    pub(crate) fn advance(&mut self, pages: u64) {
        if let Backing::Object { page, .. } = &mut self.0.backing {
            *page = page.wrapping_add(pages);
        }
    }
}

impl Mapping {
    /// Whether it grows down.
    pub fn is_stack(&self) -> bool {
        self.flags.contains(Flags::GROWS_DOWN)
    }
    /// Whether it counts against RLIMIT_DATA: private, writable, no stack (Linux's `is_data_mapping`).
    pub fn is_data(&self) -> bool {
        self.is_data_under(self.prot)
    }
    /// Whether it would with the protection `prot`.
    pub fn is_data_under(&self, prot: Prot) -> bool {
        prot.contains(Prot::WRITE) && !self.shared && !self.is_stack()
    }
    /// Whether stores can ever reach the object.
    pub fn may_write_object(&self) -> bool {
        self.shared && self.max_prot.contains(Prot::WRITE)
    }
    /// Who has to know who maps the object.
    pub fn mappers(&self) -> Option<&Mappers> {
        match &self.backing {
            Backing::Object { object, .. } => object.mappers(),
            Backing::Anonymous => None,
        }
    }
    /// Whether it shows the object whose mappers are `of`.
    pub fn shows(&self, of: &Mappers) -> bool {
        self.mappers().is_some_and(|mappers| core::ptr::eq(mappers, of))
    }
    /// What the page `offset` pages into the mapping shows of which object, if it is shared.
    pub fn shared_page(&self, offset: u64) -> Option<((u64, u64), u64)> {
        let (object, page) = self.object_page(offset).filter(|_| self.shared)?;
        Some((object.identity(), page))
    }
    /// The object's page that the page `offset` pages into the mapping shows.
    pub fn object_page(&self, offset: u64) -> Option<(&Arc<dyn Object>, u64)> {
        match &self.backing {
            Backing::Object { object, page } => Some((object, page.checked_add(offset)?)),
            Backing::Anonymous => None,
        }
    }
}

/// A mapping and where it is.
#[derive(Clone, Copy, Debug)]
pub struct MappingInfo<'a> {
    /// Its pages.
    pub range: PageRange,
    /// What they should be.
    pub mapping: &'a Mapping,
}

#[derive(Clone, Debug)]
struct Area {
    end: Page,
    mapping: Mapping,
}

/// The mappings of one address space: disjoint, ordered, none of which continues its neighbour.
///
/// Placement is by the highest gap that fits. So that a row of placements does not walk past the same mappings again
/// and again, the search remembers that no gap from `searched` up to [`MMAP_TOP`] is larger than `largest` (Linux
/// 2.6's `free_area_cache` and `cached_hole_size`); the answers are the same as without.
///
/// Below a mapping that grows down the search keeps clear of [`STACK_GAP`] pages.
///
/// The objects are told which of their pages are mapped ([`Mappers`]): whoever wants to [`insert`](Self::insert) a
/// mapping has [`announce`](Self::announce)d it, and [`retract`](Self::retract)s it after it was removed.
pub struct Mappings {
    areas: BTreeMap<Page, Area>,
    totals: Totals,
    searched: Page,
    largest: u64,
    /// Whose they are.
    owner: Weak<dyn Mapper>,
}

/// Pages by what they count as, and the most there ever were.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Pages mapped.
    pub pages: u64,
    /// The most that were ever mapped at once.
    pub peak: u64,
    /// Of mappings that count against RLIMIT_DATA.
    pub data: u64,
    /// Of mappings that grow down.
    pub stack: u64,
    /// Of mappings that may be executed and not written.
    pub code: u64,
    /// Of locked mappings.
    pub locked: u64,
    /// Of shared mappings.
    pub shared: u64,
}

impl Totals {
    /// Count `pages` pages of `mapping`.
    pub fn add(&mut self, mapping: &Mapping, pages: u64) {
        self.each(mapping, |count| *count += pages);
        self.peak = self.peak.max(self.pages);
    }
    pub(crate) fn sub(&mut self, mapping: &Mapping, pages: u64) {
        self.each(mapping, |count| *count -= pages);
    }
    fn each(&mut self, mapping: &Mapping, mut change: impl FnMut(&mut u64)) {
        let Self { pages, peak: _, data, stack, code, locked, shared } = self;
        let counts = [pages, data, stack, code, locked, shared];
        let counted = counts.into_iter().zip(Self::kinds(mapping)).filter(|(_, counted)| *counted);
        counted.for_each(|(count, _)| change(count));
    }
    /// Whether a page of `mapping` counts as mapped, data, stack, code, locked, shared.
    pub(crate) fn kinds(mapping: &Mapping) -> [bool; 6] {
        let code = mapping.prot.contains(Prot::EXEC) && !mapping.prot.contains(Prot::WRITE);
        [
            true,
            mapping.is_data(),
            mapping.is_stack(),
            code && !mapping.is_stack(),
            mapping.flags.contains(Flags::LOCKED),
            mapping.shared,
        ]
    }
}

impl fmt::Debug for Mappings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// Page number `n` of user space.
fn page(n: u64) -> Page {
    Page::new(n).unwrap_or(addr::USER_END_PAGE)
}

fn range(start: Page, end: Page) -> PageRange {
    PageRange::new(start, end).unwrap_or_default()
}

impl Mappings {
    /// Nothing is mapped; what will be is `owner`'s.
    pub fn new(owner: Weak<dyn Mapper>) -> Self {
        Self {
            areas: BTreeMap::new(),
            totals: Totals::default(),
            searched: page(MMAP_TOP),
            largest: 0,
            owner,
        }
    }
    /// Pages by what they count as.
    pub fn totals(&self) -> &Totals {
        &self.totals
    }
    /// What [`Self::totals`] would be without `gone`.
    pub fn totals_without(&self, gone: PageRange) -> Totals {
        let mut totals = self.totals;
        for (area, mapping) in self.overlapping(gone) {
            totals.sub(mapping, area.intersect(gone).map_or(0, PageRange::len));
        }
        totals
    }
    /// Tell the object of `mapping` that `pages` of its pages will be mapped. False if it must not be written and the
    /// mapping could.
    pub fn announce(&self, mapping: &Mapping, pages: u64, pin: &Pinned<'_>) -> bool {
        mapping.mappers().is_none_or(|m| m.add(&self.owner, pages, mapping.may_write_object(), pin))
    }
    /// Take back an announcement of what was not mapped after all, or is mapped no more, and translated by nobody.
    pub fn retract(&self, mapping: &Mapping, pages: u64, pin: &Pinned<'_>) {
        if let Some(mappers) = mapping.mappers() {
            mappers.sub(&self.owner, pages, mapping.may_write_object(), pin);
        }
    }
    /// How many mappings there are.
    pub fn len(&self) -> usize {
        self.areas.len()
    }
    /// Whether nothing is mapped.
    pub fn is_empty(&self) -> bool {
        self.areas.is_empty()
    }
    /// The mapping that holds `page`, and its pages.
    pub fn find(&self, page: Page) -> Option<(PageRange, &Mapping)> {
        let (&start, area) = self.areas.range(..=page).next_back()?;
        (page < area.end).then(|| (range(start, area.end), &area.mapping))
    }
    /// All mappings, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (PageRange, &Mapping)> {
        self.areas.iter().map(|(&start, area)| (range(start, area.end), &area.mapping))
    }
    /// The mappings that hold a page of `within`, each whole, ascending.
    pub fn overlapping(&self, within: PageRange) -> impl DoubleEndedIterator<Item = (PageRange, &Mapping)> {
        let first = self.find(within.start()).map_or(within.start(), |(r, _)| r.start());
        let upto = within.end().max(first);
        self.areas.range(first..upto).map(|(&start, area)| (range(start, area.end), &area.mapping))
    }
    /// Whether no page of `within` is mapped.
    pub fn is_free(&self, within: PageRange) -> bool {
        self.overlapping(within).next().is_none()
    }
    /// Whether every page of `within` is mapped.
    pub fn covers(&self, within: PageRange) -> bool {
        self.holes(within).next().is_none()
    }
    /// The longest runs of pages of `within` that are not mapped, ascending.
    pub fn holes(&self, within: PageRange) -> impl Iterator<Item = PageRange> {
        let mut at = within.start();
        let ends = core::iter::once((within.end(), within.end()));
        self.overlapping(within).map(|(r, _)| (r.start(), r.end())).chain(ends).filter_map(
            move |(start, end)| {
                let hole = range(at, start.min(within.end()).max(at));
                at = at.max(end);
                (!hole.is_empty()).then_some(hole)
            },
        )
    }
    /// The pages around `hole`, which is not mapped, up to the nearest mappings or the ends of the user half.
    pub fn gap_around(&self, hole: PageRange) -> PageRange {
        let start = self.areas.range(..hole.start()).next_back().map_or(Page::default(), |(_, a)| a.end);
        let end = self.areas.range(hole.end()..).next().map_or(page(pagetable::USER_PAGES), |(&s, _)| s);
        range(start, end)
    }
    /// The pages that show `pages` of the object whose mappers are `of`, of the mappings that hold a page of `within`.
    pub fn showing(
        &self,
        of: &Mappers,
        pages: Range<u64>,
        within: PageRange,
    ) -> impl Iterator<Item = PageRange> {
        self.overlapping(within).filter(move |(_, mapping)| mapping.shows(of)).filter_map(
            move |(area, mapping)| {
                let (_, first) = mapping.object_page(0)?;
                let (from, to) = (pages.start.max(first), pages.end.min(first.saturating_add(area.len())));
                let part =
                    PageRange::with_len(area.start().checked_add(from - first)?, to.checked_sub(from)?)?;
                (!part.is_empty()).then_some(part)
            },
        )
    }
    /// All pages that a space can have.
    pub fn everywhere() -> PageRange {
        range(Page::default(), page(pagetable::USER_PAGES))
    }
    /// The lowest mapping that ends after `page`.
    pub fn find_from(&self, page: Page) -> Option<(PageRange, &Mapping)> {
        self.find(page).or_else(|| {
            let (&start, area) = self.areas.range(page..).next()?;
            Some((range(start, area.end), &area.mapping))
        })
    }
    /// The highest mapping that ends at or before `page`.
    pub fn find_below(&self, page: Page) -> Option<(PageRange, &Mapping)> {
        let (&start, area) = self.areas.range(..page).rev().find(|(_, area)| area.end <= page)?;
        Some((range(start, area.end), &area.mapping))
    }
    /// Where a search from below has to stop before the mapping at `start`.
    fn clear_of(start: Page, mapping: &Mapping) -> Page {
        if mapping.is_stack() { start.checked_sub(STACK_GAP).unwrap_or_default() } else { start }
    }
    /// Whether no page of `within` is mapped, nor does the gap below a stack reach into it.
    pub fn is_clear(&self, within: PageRange) -> bool {
        self.is_free(within)
            && self
                .areas
                .range(within.end()..)
                .next()
                .is_none_or(|(&start, area)| within.end() <= Self::clear_of(start, &area.mapping))
    }
    /// How many more mappings there are at most after changing `within`: the ends that lie inside of a mapping.
    pub fn splits(&self, within: PageRange) -> usize {
        let inside = |at: Page| self.find(at).is_some_and(|(r, _)| r.start() < at);
        usize::from(inside(within.start())) + usize::from(inside(within.end()))
    }
    /// Whether removing `within` leaves a hole in one mapping, so that there is one more.
    pub fn punches(&self, within: PageRange) -> bool {
        self.find(within.start()).is_some_and(|(r, _)| r.start() < within.start() && within.end() < r.end())
    }

    /// Map the pages of `at`, none of which is mapped; [announced](Self::announce) before.
    pub fn insert(&mut self, at: PageRange, mapping: Mapping) {
        debug_assert!(!at.is_empty() && self.is_free(at));
        self.totals.add(&mapping, at.len());
        self.areas.insert(at.start(), Area { end: at.end(), mapping });
        if self.areas.range(at.end()..).next().is_some_and(|(_, above)| above.mapping.is_stack()) {
            // What keeps clear of the stack above begins below the new mapping, no longer at the stack.
            self.searched = self.searched.max(at.start().min(page(MMAP_TOP)));
        }
        self.join(at);
    }
    /// The mapping that begins at `top` grows down to `at`, above which nothing is mapped up to there.
    pub fn grow_down(&mut self, top: Page, at: Page) {
        if let Some(area) = self.areas.remove(&top) {
            let added = range(at, top);
            debug_assert!(self.is_free(added) && matches!(area.mapping.backing, Backing::Anonymous));
            self.totals.add(&area.mapping, added.len());
            self.areas.insert(at, area);
            self.join(added);
        }
    }
    /// The first mapping in `within` whose object knows who maps it, and which pages of `within` it has.
    pub fn announced(&self, within: PageRange) -> Option<(PageRange, Mapping)> {
        let (area, mapping) = self.overlapping(within).find(|(_, mapping)| mapping.mappers().is_some())?;
        Some((area.intersect(within)?, mapping.clone()))
    }
    /// Unmap what is mapped of `gone`. Only if it [`punches`](Self::punches) there is one mapping more. What was
    /// [`announced`](Self::announced) is for the caller to [`retract`](Self::retract), when nobody translates to it any more.
    pub fn remove(&mut self, gone: PageRange) {
        let totals = &mut self.totals;
        let mut forget = |mapping: &Mapping, start: Page, end: Page| {
            totals.sub(mapping, end.min(gone.end()).number() - start.number());
        };
        if let Some((&start, area)) = self.areas.range_mut(..gone.start()).next_back()
            && area.end > gone.start()
        {
            let end = core::mem::replace(&mut area.end, gone.start());
            forget(&area.mapping, gone.start(), end);
            if end > gone.end() {
                let mapping = area.mapping.advanced(gone.end().number() - start.number());
                self.areas.insert(gone.end(), Area { end, mapping });
            }
        }
        while let Some((&start, _)) = self.areas.range(gone.start()..gone.end()).next() {
            let Some(area) = self.areas.remove(&start) else { break };
            forget(&area.mapping, start, area.end);
            if area.end > gone.end() {
                let mapping = area.mapping.advanced(gone.end().number() - start.number());
                self.areas.insert(gone.end(), Area { end: area.end, mapping });
            }
        }
        // The new gap may be larger than what the search has passed.
        let gap_end = self.gap_around(gone).end().min(page(MMAP_TOP));
        self.searched = self.searched.max(gap_end);
    }
    /// Change what the mapped pages of `within` say.
    pub fn update(&mut self, within: PageRange, mut change: impl FnMut(&mut Mapping)) {
        self.split(within.start());
        self.split(within.end());
        for (&start, area) in self.areas.range_mut(within.start()..within.end()) {
            let pages = area.end.number() - start.number();
            self.totals.sub(&area.mapping, pages);
            change(&mut area.mapping);
            self.totals.add(&area.mapping, pages);
        }
        self.join(within);
    }
    /// Change what every mapping says.
    pub fn update_all(&mut self, change: impl FnMut(&mut Mapping)) {
        let last = self.areas.last_key_value().map(|(_, area)| area.end);
        if let (Some((&first, _)), Some(last)) = (self.areas.first_key_value(), last) {
            self.update(range(first, last), change);
        }
    }

    /// `pages` pages that are not mapped, where `at` wants them; `None` if there is no such place. A dictated place
    /// is checked by the caller.
    pub fn place(&mut self, at: Placement, pages: u64) -> Option<PageRange> {
        match at {
            Placement::Fixed(start) | Placement::FixedNoReplace(start) => PageRange::with_len(start, pages),
            Placement::Below32Bit => self.lowest_gap(pages),
            Placement::HintBelow32Bit(start) => {
                let hinted = PageRange::with_len(start.max(page(LOWEST)), pages);
                match hinted.filter(|&r| r.end().number() <= LOW_WINDOW.end && self.is_clear(r)) {
                    Some(r) => Some(r),
                    None => self.lowest_gap(pages),
                }
            }
            Placement::Anywhere => self.highest_gap(pages),
            Placement::Hint(start) => {
                let hinted = PageRange::with_len(start.max(page(LOWEST)), pages);
                match hinted.filter(|&r| r.end() <= addr::USER_END_PAGE && self.is_clear(r)) {
                    Some(r) => Some(r),
                    None => self.highest_gap(pages),
                }
            }
        }
    }
    fn highest_gap(&mut self, pages: u64) -> Option<PageRange> {
        let (from, passed) =
            if pages > self.largest { (self.searched, self.largest) } else { (page(MMAP_TOP), 0) };
        let (found, largest) = self.gap_below(from, page(LOWEST), pages);
        if let Some(r) = found {
            (self.searched, self.largest) = (r.end(), passed.max(largest));
            return Some(r);
        }
        self.gap_below(addr::USER_END_PAGE, page(MMAP_TOP), pages).0
    }
    /// The highest `pages` free pages of `lowest..top`, and the largest gap that was passed over. The gap below a stack
    /// matters only if no other mapping lies in it.
    fn gap_below(&self, top: Page, lowest: Page, pages: u64) -> (Option<PageRange>, u64) {
        let mut largest = 0;
        let next = self.areas.range(top..).next();
        let mut end = next.map_or(top, |(&start, area)| Self::clear_of(start, &area.mapping).min(top));
        for (&start, area) in self.areas.range(..top).rev() {
            let bottom = area.end.max(lowest);
            if bottom < end {
                let gap = end.number() - bottom.number();
                if gap >= pages {
                    break;
                }
                largest = largest.max(gap);
            }
            if start <= lowest {
                return (None, largest);
            }
            end = Self::clear_of(start, &area.mapping);
        }
        let start = end.checked_sub(pages).filter(|&s| s >= lowest);
        (start.map(|s| range(s, end)), largest)
    }
    fn lowest_gap(&self, pages: u64) -> Option<PageRange> {
        let window = range(page(LOW_WINDOW.start), page(LOW_WINDOW.end));
        let fits =
            |hole: &PageRange| PageRange::with_len(hole.start(), pages).filter(|&r| hole.contains_range(r));
        self.holes(window).filter_map(|hole| fits(&hole)).find(|&r| self.is_clear(r))
    }

    /// Make a mapping begin at `at`, if one holds it.
    fn split(&mut self, at: Page) {
        if let Some((&start, area)) = self.areas.range_mut(..at).next_back()
            && area.end > at
        {
            let end = core::mem::replace(&mut area.end, at);
            let mapping = area.mapping.advanced(at.number() - start.number());
            self.areas.insert(at, Area { end, mapping });
        }
    }
    /// Join what can be joined within `around` and with its neighbours.
    fn join(&mut self, around: PageRange) {
        let before = self.areas.range(..around.start()).next_back();
        let mut at = before.map_or(around.start(), |(&start, _)| start);
        while let Some((&start, area)) = self.areas.range(at..=around.end()).next() {
            let (end, length) = (area.end, area.end.number() - start.number());
            if end > around.end() {
                return;
            }
            at = match self.areas.get(&end) {
                Some(next) if area.mapping.continues(length, &next.mapping) => {
                    let joined = next.end;
                    self.areas.remove(&end);
                    if let Some(area) = self.areas.get_mut(&start) {
                        area.end = joined;
                    }
                    start
                }
                _ => end,
            };
        }
    }
}

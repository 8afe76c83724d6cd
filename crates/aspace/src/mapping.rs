//! What a page should be ([`Mapping`]), and the index of that ([`Mappings`]): an ordered map from first pages, whose
//! mappings are split exactly where an operation begins or ends and joined wherever two neighbours say the same, as
//! Linux does. So the list of mappings is a function of what each page is, whatever the history.

use alloc::{collections::BTreeMap, sync::Arc, vec::Vec};
use core::fmt;

use addr::{Page, PageRange, Prot};
use frames::{Frames, OwnedFrame};
use percpu::Unpinned;

use crate::{LOW_WINDOW, LOWEST, MMAP_TOP, Placement};

/// Why an object has no page to give.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ObjectError {
    /// The object ends before this page.
    BeyondEnd,
    /// No frame is free.
    NoMemory,
    /// The page can't be read.
    Io,
}

/// Something with pages that can be mapped: a file, or memory shared by processes.
///
/// Two mappings are parts of one only if their objects are the same `Arc`.
pub trait Object: Send + Sync {
    /// A share of the frame that holds page `index`. May sleep; the caller holds the address space's lock, so it
    /// must not touch user memory.
    fn page(&self, index: u64, frames: &Frames, ctx: &Unpinned<'_>) -> Result<OwnedFrame, ObjectError>;
    /// Device and inode number, for `/proc/self/maps`.
    fn identity(&self) -> (u64, u64);
    /// Name, for `/proc/self/maps`.
    fn path(&self) -> Vec<u8>;
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
}

impl Mapping {
    /// What the mapping says of the pages from the one `pages` further on.
    pub fn advanced(&self, pages: u64) -> Self {
        Self { backing: self.backing.advanced(pages), ..*self }
    }
    /// Whether `next`, which begins `pages` pages further on, could as well be part of this mapping.
    pub fn continues(&self, pages: u64, next: &Self) -> bool {
        self.prot == next.prot
            && self.max_prot == next.max_prot
            && self.shared == next.shared
            && self.label == next.label
            && self.backing.continues(pages, &next.backing)
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
#[derive(Clone, Debug)]
pub struct Mappings {
    areas: BTreeMap<Page, Area>,
    pages: u64,
    searched: Page,
    largest: u64,
}

impl Default for Mappings {
    fn default() -> Self {
        Self { areas: BTreeMap::new(), pages: 0, searched: page(MMAP_TOP), largest: 0 }
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
    /// Pages mapped.
    pub fn pages(&self) -> u64 {
        self.pages
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
    pub fn overlapping(&self, within: PageRange) -> impl Iterator<Item = (PageRange, &Mapping)> {
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
    /// How many more mappings there are at most after changing `within`: the ends that lie inside of a mapping.
    pub fn splits(&self, within: PageRange) -> usize {
        let inside = |at: Page| self.find(at).is_some_and(|(r, _)| r.start() < at);
        usize::from(inside(within.start())) + usize::from(inside(within.end()))
    }
    /// Whether removing `within` leaves a hole in one mapping, so that there is one more.
    pub fn punches(&self, within: PageRange) -> bool {
        self.find(within.start()).is_some_and(|(r, _)| r.start() < within.start() && within.end() < r.end())
    }

    /// Map the pages of `at`, none of which is mapped.
    pub fn insert(&mut self, at: PageRange, mapping: Mapping) {
        debug_assert!(!at.is_empty() && self.is_free(at));
        self.areas.insert(at.start(), Area { end: at.end(), mapping });
        self.pages += at.len();
        self.join(at);
    }
    /// Unmap what is mapped of `gone`. Only if it [`punches`](Self::punches) there is one mapping more.
    pub fn remove(&mut self, gone: PageRange) {
        if let Some((&start, area)) = self.areas.range_mut(..gone.start()).next_back()
            && area.end > gone.start()
        {
            let end = core::mem::replace(&mut area.end, gone.start());
            self.pages -= end.min(gone.end()).number() - gone.start().number();
            if end > gone.end() {
                let mapping = area.mapping.advanced(gone.end().number() - start.number());
                self.areas.insert(gone.end(), Area { end, mapping });
            }
        }
        while let Some((&start, _)) = self.areas.range(gone.start()..gone.end()).next() {
            let Some(area) = self.areas.remove(&start) else { break };
            self.pages -= area.end.min(gone.end()).number() - start.number();
            if area.end > gone.end() {
                let mapping = area.mapping.advanced(gone.end().number() - start.number());
                self.areas.insert(gone.end(), Area { end: area.end, mapping });
            }
        }
        // The new gap may be larger than what the search has passed.
        let gap_end = self.gap_around(gone).end().min(page(MMAP_TOP));
        self.searched = self.searched.max(gap_end);
    }
    /// Change what `within`, all of which is mapped, says.
    pub fn update(&mut self, within: PageRange, mut change: impl FnMut(&mut Mapping)) {
        self.split(within.start());
        self.split(within.end());
        self.areas.range_mut(within.start()..within.end()).for_each(|(_, area)| change(&mut area.mapping));
        self.join(within);
    }

    /// `pages` pages that are not mapped, where `at` wants them; `None` if there is no such place. A dictated place
    /// is checked by the caller.
    pub fn place(&mut self, at: Placement, pages: u64) -> Option<PageRange> {
        match at {
            Placement::Fixed(start) | Placement::FixedNoReplace(start) => PageRange::with_len(start, pages),
            Placement::Below32Bit => self.lowest_gap(pages),
            Placement::Anywhere => self.highest_gap(pages),
            Placement::Hint(start) => {
                let hinted = PageRange::with_len(start.max(page(LOWEST)), pages);
                match hinted.filter(|&r| r.end() <= addr::USER_END_PAGE && self.is_free(r)) {
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
    /// The highest `pages` free pages of `lowest..top`, and the largest gap that was passed over.
    fn gap_below(&self, mut top: Page, lowest: Page, pages: u64) -> (Option<PageRange>, u64) {
        let mut largest = 0;
        for (&start, area) in self.areas.range(..top).rev() {
            let bottom = area.end.max(lowest);
            if bottom < top {
                let gap = top.number() - bottom.number();
                if gap >= pages {
                    break;
                }
                largest = largest.max(gap);
            }
            top = start.min(top);
            if top <= lowest {
                return (None, largest);
            }
        }
        let start = top.checked_sub(pages).filter(|&s| s >= lowest);
        (start.map(|s| range(s, top)), largest)
    }
    fn lowest_gap(&self, pages: u64) -> Option<PageRange> {
        let window = range(page(LOW_WINDOW.start), page(LOW_WINDOW.end));
        let hole = self.holes(window).find(|h| h.len() >= pages)?;
        PageRange::with_len(hole.start(), pages)
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

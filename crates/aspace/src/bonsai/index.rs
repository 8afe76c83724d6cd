//! What faults look up: the mappings, each as an entry of a Bonsai tree that says what it says for ever, until it is dead.
//!
//! The list of mappings under the lock (`maps`) is the truth. The tree follows it: after each change of the list, and before
//! any entry of the page table is touched for it, [`Bonsai::publish`] makes the tree say the same of the pages concerned.
//! What is not found in the tree, or found dead, is looked up in the list; so the tree may lag behind in one direction: it
//! may lack mappings, when there is no memory for an entry, or between two steps of one change. It never has a live entry that
//! the list does not have, outside of [`Bonsai::publish`].

use alloc::boxed::Box;

use ::bonsai::{Entry, Region};
use addr::{Page, PageRange};
use percpu::Unpinned;
use sync::{
    mutant, pause,
    primitive::{AtomicU64, Ordering, fence, spin_loop},
};

use super::{Bonsai, Exclude, Maps};
use crate::{
    Backing, Mapping, Mappings,
    radix::{Buried, Realm},
};

/// A mapping as faults find it.
pub(super) struct Area {
    /// No other area of the space has or had it.
    pub(super) id: u64,
    /// As it is at the region's start.
    pub(super) mapping: Mapping,
    /// How many faults are at work in it, if that is what excludes those that change it.
    faults: AtomicU64,
    realm: &'static Realm,
    /// Where the object goes in the end: that may sleep, and an area ends where nothing may.
    grave: Option<Box<Buried>>,
}

impl Area {
    /// `None` if there is no memory.
    fn entry(id: u64, mapping: &Mapping, realm: &'static Realm) -> Option<Box<Entry<Self>>> {
        let grave = match mapping.backing {
            Backing::Object { .. } => Some(Buried::new()?),
            Backing::Anonymous => None,
        };
        let (mapping, faults) = (mapping.clone(), AtomicU64::new(0));
        Entry::try_new(Self { id, mapping, faults, realm, grave }).ok()
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        if let Some(grave) = self.grave.take() {
            let mapping = core::mem::replace(&mut self.mapping, Mapping::anonymous(addr::Prot::empty()));
            self.realm.bury_mapping(mapping, grave);
        }
    }
}

/// A fault at work in an area: see [`Exclude::PerMapping`].
pub(super) struct Within<'a>(Option<&'a AtomicU64>);

impl<'a> Within<'a> {
    pub(super) fn new(area: &'a Area, exclude: Exclude) -> Self {
        let counted = (exclude == Exclude::PerMapping).then_some(&area.faults);
        if let Some(faults) = counted {
            faults.fetch_add(1, Ordering::Relaxed);
            // SeqCst: counted before the look whether it is dead; partner: the fence in `ended`.
            fence(Ordering::SeqCst);
        }
        Self(counted)
    }
}

impl Drop for Within<'_> {
    fn drop(&mut self) {
        // Release: what the fault has done comes first; partner: the wait in `ended`.
        self.0.inspect(|faults| _ = faults.fetch_sub(1, Ordering::Release));
    }
}

/// The entry is dead: wait until nobody is at work in it, if that is counted.
fn ended(entry: &Entry<Area>, exclude: Exclude) {
    if exclude == Exclude::PerMapping {
        // SeqCst: dead before the look; partner: the fence in `Within::new`.
        fence(Ordering::SeqCst);
        // Acquire: partner of the store in `drop`.
        while entry.faults.load(Ordering::Acquire) > 0 {
            spin_loop();
        }
    }
}

pub(super) fn region(range: PageRange) -> Option<Region> {
    (!range.is_empty()).then(|| Region::new(key(range.start()), key(range.end())))
}

/// What a page's first address is to the tree.
pub(super) fn key(page: Page) -> u64 {
    page.number() << addr::PAGE_SHIFT
}

pub(super) fn pages(region: Region) -> PageRange {
    let page = |at: u64| Page::new(at >> addr::PAGE_SHIFT).unwrap_or_default();
    PageRange::new(page(region.start()), page(region.end())).unwrap_or_default()
}

fn hull(a: PageRange, b: PageRange) -> PageRange {
    PageRange::new(a.start().min(b.start()), a.end().max(b.end())).unwrap_or(a)
}

/// What the list says of the mapping that begins exactly at `start`.
fn beginning(mappings: &Mappings, start: Page) -> Option<(PageRange, &Mapping)> {
    mappings.find(start).filter(|(range, _)| range.start() == start)
}

/// Whether an entry says what the list says.
fn same(there: (Region, &Entry<Area>), (range, mapping): (PageRange, &Mapping)) -> bool {
    region(range) == Some(there.0) && there.1.mapping.continues(0, mapping)
}

impl Bonsai {
    /// Make the tree say of `around` what the list says, and of what was joined with it or cut off it. When this returns, every
    /// entry that said otherwise is dead. What there is no memory for is left out.
    ///
    /// Pieces of an area that goes are put in before it goes, so that faults on what stays find one or the other.
    pub(super) fn publish(&self, maps: &mut Maps, around: PageRange, ctx: &Unpinned<'_>) {
        let _alone = (self.exclude == Exclude::Hybrid).then(|| self.faults.0.write(ctx));
        let pin = ctx.pin();
        let mut tree = self.index.write(&pin);
        let Maps { mappings, ids, .. } = maps;
        let mut fresh = |mapping: &Mapping| {
            *ids += 1;
            Area::entry(*ids, mapping, self.realm)
        };
        self.realm.retires(&pin);
        // What is most often so: nothing is left, or something is where nothing was.
        let mut listed = mappings.overlapping(around);
        match (listed.next(), listed.next(), region(around)) {
            (None, _, Some(all)) => {
                while let Some((whole, _)) = tree.first_in(all).filter(|(found, _)| all.contains(found)) {
                    let Some(removed) = tree.remove(whole.start()) else { break };
                    ended(&removed, self.exclude);
                }
                if tree.first_in(all).is_none() {
                    return;
                }
            }
            (Some((range, mapping)), None, Some(all)) if range == around && tree.first_in(all).is_none() => {
                if let Some(entry) = fresh(mapping) {
                    let _ = tree.insert(all, entry);
                }
                return;
            }
            _ => {}
        }
        drop(listed);
        let around = self.concerned(mappings, around, &tree);
        let Some(all) = region(around) else { return };
        if mutant!("bonsai-shrink-first") {
            while let Some(start) = tree.first_in(all).map(|(whole, _)| whole.start()) {
                tree.remove(start).inspect(|removed| ended(removed, self.exclude));
            }
        }
        // Pieces, the last first.
        for (range, mapping) in mappings.overlapping(around).rev() {
            let whole = tree.read().lower(key(range.start())).map(|(whole, _)| whole);
            if let Some(piece) = region(range).filter(|piece| whole.is_some_and(|w| w.contains(piece)))
                && beginning_is_free(&tree, piece)
                && let Some(entry) = fresh(mapping)
            {
                // A piece that is refused is missing.
                let _ = tree.insert_piece(piece, entry);
            }
        }
        pause!("bonsai-pieces");
        // Areas that nothing takes the place of.
        let mut next = tree.first_in(all).map(|(first, _)| first.start());
        while let Some(start) = next {
            let there = tree.read().get_span(start);
            next = tree.read().higher(start).map(|(next, _)| next.start()).filter(|&next| next < all.end());
            let stays = there.is_none_or(|(span, _)| beginning(mappings, pages(span).start()).is_some());
            if !stays && let Some(removed) = tree.remove(start) {
                ended(&removed, self.exclude);
            }
        }
        // Those that another one takes the place of.
        for (range, mapping) in mappings.overlapping(around) {
            let Some(span) = region(range) else { continue };
            let there = tree.read().get_span(span.start());
            if there.is_none_or(|there| same(there, (range, mapping))) {
                continue;
            }
            let replaced = fresh(mapping)
                .and_then(|entry| tree.replace(span, entry).ok().map(|old| ended(&old, self.exclude)));
            if replaced.is_none()
                && let Some(removed) = tree.remove(span.start())
            {
                ended(&removed, self.exclude);
            }
        }
        // And what is new.
        for (range, mapping) in mappings.overlapping(around) {
            if let Some(span) = region(range).filter(|&span| beginning_is_free(&tree, span))
                && let Some(entry) = fresh(mapping)
            {
                let _ = tree.insert(span, entry);
            }
        }
    }
    /// `around` with all of the areas, old and new, that have pages in it.
    fn concerned(&self, mappings: &Mappings, mut around: PageRange, tree: &Writer<'_, '_>) -> PageRange {
        loop {
            let before = around;
            let listed = [mappings.overlapping(around).next(), mappings.overlapping(around).next_back()];
            around = listed.into_iter().flatten().fold(around, |around, (range, _)| hull(around, range));
            let Some(all) = region(around) else { return around };
            let last = tree.read().lower(all.end()).filter(|(last, _)| last.overlaps(&all));
            let found = [tree.first_in(all), last];
            around = found.into_iter().flatten().fold(around, |around, (span, _)| hull(around, pages(span)));
            if around == before {
                return around;
            }
        }
    }
    /// No fault finds the areas that have pages in `range`, until they are published again: all of the result.
    pub(super) fn hide(&self, range: PageRange, ctx: &Unpinned<'_>) -> PageRange {
        let _alone = (self.exclude == Exclude::Hybrid).then(|| self.faults.0.write(ctx));
        let pin = ctx.pin();
        let mut tree = self.index.write(&pin);
        self.realm.retires(&pin);
        let mut hidden = range;
        let Some(all) = region(range) else { return range };
        while let Some((span, _)) = tree.first_in(all) {
            hidden = hull(hidden, pages(span));
            let Some(removed) = tree.remove(span.start()) else { break };
            ended(&removed, self.exclude);
        }
        hidden
    }
}

type Writer<'t, 'c> = ::bonsai::Writer<'t, 'c, Region, Area, &'static rcu::kernel::Domain, ::bonsai::Heap>;

fn beginning_is_free(tree: &Writer<'_, '_>, span: Region) -> bool {
    tree.read().get_span(span.start()).is_none()
}

//! Who maps an object: the way back from an object to the address spaces that show its pages, so that pages which are
//! cut off a file, or punched out of it, go from every mapping too.
//!
//! **Claim.** When [`Mappers::cut`] returns, no CPU translates to a page of the object that was cut off before the call.
//!
//! **Idea.** An object keeps, for each address space, how many of its pages that space maps; a number that splits and
//! joins of mappings do not change. A space is entered before its mapping can be used and removed when the last page
//! is unmapped, both while it is locked exclusively. Cutting is: *publish the new size, so that the object gives out
//! no such page any more; take the list; visit every space on it, locked exclusively; look for spaces that have come
//! since, until there are none.* A space that is on the list has either finished the fault that asked before, so that
//! the visit finds the entry, or begins its fault after the visit (a fault holds the space's lock from asking to
//! inserting). A space that comes later and maps the object itself asks for pages later, and gets none. But one that
//! comes by fork has its parent's entries: if those were copied before the parent was visited, then the child was
//! entered before that too (fork holds the parent's lock throughout), so it is found when the list is taken again; a
//! child of a space that was visited has nothing to forget. The spaces are visited one by one, each with a flush of
//! its own; frames are dropped after it, as always.
//!
//! **Lending.** A mapping has no share of the frames of an object that says who maps it, so that nobody counts on a line that
//! all who show a page write: the object [lends](crate::Object::lend) them. *Claim: no CPU translates to a lent frame that its
//! object has given up.* An object gives a frame up when it is cut off, or ends:
//!
//! * *Cut off.* It lends the frame no more, cuts, and then gives up. When the cut is over nobody translates to the frame, as
//!   above, and what is left are faults that had it lent before, and have not put it in yet. A fault puts in what it was lent
//!   with the page locked, if it can tell that the visit is still to come that must come before the object gives up, and takes the
//!   frame out again. `locked` asks with the mappings locked. `bonsai` finds the area by the number it had, so it was mapped, and
//!   its space on the list, all the time, and a visit would have changed the number. In `radix` the mapping may have gone meanwhile, so that
//!   no visit came, and be there again: it looks whether the object has [begun to cut](Mappers::cut_since). If not, the
//!   list is taken later, and the space is on it, as the mapping is there when the page is locked.
//! * *Passed by.* A visit must not pass by what is taken out, and not flushed yet: as who takes it out keeps no share. So a
//!   visit excludes those that change mappings, or, in `radix`, waits for every slot that is locked. (Frozen nodes, which are locked by
//!   their links, hold no frames of objects that others could be taking out; and who takes out what they hold flushes first.)
//! * *At its end.* Every mapping keeps its object. What unmaps keeps the mapping until it has flushed: `radix` is in a section,
//!   which descriptors outlive; the others hold one by hand. A fault keeps it until it has put the frame in, or has given up.
//!
//! A frame that was lent counts as shared, so private mappings copy it before they write. Who copies an object's page does so without
//! locks, and takes a share for that. How often a page is shown has to be looked for ([`Mappers::shown`]); reports do.
//!
//! **Lock order**: an object's lock for writers > an address space's > this list's (spins, for a look-up at a time) >
//! the object's pages. Whoever calls `cut` holds no address space's lock, and not the object's lock for pages.
//!
//! The list also counts the pages that could be written through shared mappings, and can forbid that there are any: what
//! a seal against writing needs (`F_SEAL_WRITE`), decided under one lock.
//!
//! **Where many CPUs map one object** its list would be a line that each of them writes twice. So a list that was entered
//! by one CPU and then another [`MOVES`] times is continued by lists of the CPUs. Each says by how many pages what was mapped
//! *there* exceeds what was unmapped *there*, for each space, which may be less than none; so the sum over the lists is what
//! one list would say. Who enters or leaves locks the list of its CPU alone. Who reads, or forbids writing, locks one
//! list after the other and keeps all until it has the last. So what it has read of each is what they say at one moment, the one at
//! which it got the last lock, and the argument above holds as with one list. (One by one does not: a parent that is
//! counted in the last list, and forks, which is counted in the first, after that was read, and unmaps, before the last is,
//! would be missed, and its child too, although one or the other has pages at any time.)
//!
//! A CPU's list is made under the lock of the common list, which who reads takes first; so there are no fewer at that moment
//! than were locked. In CPUs' lists a space stays when its number comes to 0, as it is likely to come back, and others' counts of
//! it need not be looked at. Such entries, and those of spaces that are no more, whatever they say, are dropped when
//! the list has doubled since the last time, and whenever the lists are read. A space that is no more has no pages, so its
//! sum isn't asked for.

use alloc::{
    boxed::Box,
    collections::BTreeMap,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::{
    fmt,
    ops::Range,
    ptr,
    sync::atomic::{AtomicPtr, AtomicU64, Ordering, fence},
};

use addr::PageRange;
use owned::Use;
use percpu::{CpuId, Line, MAX_CPUS, Pinned, Unpinned};
use sync::{SpinGuard, SpinLock, mutant};

use crate::AddressSpace;

/// How many times another CPU than before enters the common list until the CPUs have lists of their own.
pub const MOVES: u32 = 64;

/// An address space as objects see it.
pub trait Mapper: Send + Sync {
    /// Remove the translations of the pages `pages` of the object whose mappers are `of`; with `copies` also the private
    /// copies that were made of them, as Linux does for truncation but not for holes. The mappings stay.
    fn cut(&self, of: &Mappers, pages: Range<u64>, copies: bool, ctx: &Unpinned<'_>);
    /// How many mappings show the object whose mappers are `of`.
    fn count(&self, of: &Mappers, ctx: &Unpinned<'_>) -> u64;
    /// Call `f` with each page of that object, of those in `pages`, that has an entry here: as often as it has some.
    fn shown(&self, of: &Mappers, pages: Range<u64>, ctx: &Unpinned<'_>, f: &mut dyn FnMut(u64));
}

/// [`Mapper::shown`] of an address space. If there is no memory for a list of the mappings, of those only that were in it.
pub(crate) fn shown_in(
    space: &impl AddressSpace,
    of: &Mappers,
    pages: Range<u64>,
    ctx: &Unpinned<'_>,
    f: &mut dyn FnMut(u64),
) {
    let mut parts = Vec::new();
    space.mappings(ctx, &mut |info| {
        let Some((_, first)) = info.mapping.object_page(0).filter(|_| info.mapping.shows(of)) else { return };
        let (from, to) = (pages.start.max(first), pages.end.min(first.saturating_add(info.range.len())));
        let start = info.range.start().checked_add(from.saturating_sub(first));
        let part = start.filter(|_| from < to).and_then(|start| PageRange::with_len(start, to - from));
        if let Some(part) = part
            && parts.try_reserve(1).is_ok()
        {
            parts.push((part, from));
        }
    });
    for (part, from) in parts {
        space.pages(part, ctx, &mut |page, resident| {
            if resident.frame.is_some() && resident.usage != Use::Anonymous {
                f(from + (page.number() - part.start().number()));
            }
        });
    }
}

struct Entry {
    mapper: Weak<dyn Mapper>,
    /// Mapped by this list's CPUs, less those unmapped.
    pages: i64,
}

impl Entry {
    fn is_needed(&self) -> bool {
        self.pages != 0 && self.mapper.strong_count() > 0
    }
}

/// A list: the common one, or a CPU's.
struct List {
    /// One of the mappers, with its address, which is nobody else's while there is a weak reference to it. Most objects have one
    /// at most: that needs no memory.
    one: Option<(usize, Entry)>,
    /// The others, by their addresses.
    others: BTreeMap<usize, Entry>,
    /// When there are as many others, those that are not needed are dropped.
    full: usize,
    /// Pages that shared mappings may write, or could be changed to; counted as in the entries.
    writable: i64,
    /// There must be none.
    sealed: bool,
}

/// Others in a list that are never looked at again.
const FEW: usize = 4;

impl List {
    const fn new(sealed: bool) -> Self {
        Self { one: None, others: BTreeMap::new(), full: FEW, writable: 0, sealed }
    }
    fn get(&mut self, key: usize) -> Option<&mut Entry> {
        match &mut self.one {
            Some((is, entry)) if *is == key => Some(entry),
            _ => self.others.get_mut(&key),
        }
    }
    /// `mapper` maps `pages` pages more here, of which `written` may be written.
    fn count(&mut self, mapper: &Weak<dyn Mapper>, pages: i64, written: i64) {
        self.writable += written;
        let key = key(mapper);
        if let Some(entry) = self.get(key) {
            entry.pages += pages;
            return;
        }
        self.one.take_if(|(_, entry)| !entry.is_needed());
        let entry = Entry { mapper: mapper.clone(), pages };
        if self.one.is_none() {
            self.one = Some((key, entry));
            return;
        }
        if self.others.len() >= self.full {
            self.tidy();
        }
        self.others.insert(key, entry);
    }
    /// Forget what isn't needed.
    fn tidy(&mut self) {
        self.one.take_if(|(_, entry)| !entry.is_needed());
        self.others.retain(|_, entry| entry.is_needed());
        self.full = FEW.max(2 * self.others.len());
    }
    /// Forget `key` if nothing is counted of it.
    fn remove_empty(&mut self, key: usize) -> Option<Entry> {
        match self.one.take_if(|(is, entry)| *is == key && entry.pages == 0) {
            Some((_, entry)) => Some(entry),
            None if self.others.get(&key).is_some_and(|entry| entry.pages == 0) => self.others.remove(&key),
            None => None,
        }
    }
    fn all(&self) -> impl Iterator<Item = (usize, &Entry)> {
        let others = self.others.iter().map(|(key, entry)| (*key, entry));
        self.one.iter().map(|(key, entry)| (*key, entry)).chain(others)
    }
}

/// The common list, and who enters it.
struct Common {
    list: List,
    /// The last CPU that did, and how many times it was another than the one before.
    last: Option<CpuId>,
    moves: u32,
}

/// Something that is made once and then stays until the end. Made by one at a time, which the makers see to.
struct Once<T>(AtomicPtr<T>);

impl<T> Once<T> {
    const fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }
    #[inline]
    fn get(&self) -> Option<&T> {
        // SAFETY: null, or what `set` has put there, which stays until `self` is dropped.
        // Acquire: what it was made with; partner: the store in `set`.
        unsafe { self.0.load(Ordering::Acquire).as_ref() }
    }
    fn set(&self, value: T) {
        debug_assert!(self.get().is_none());
        // Release: partner in `get`.
        self.0.store(Box::into_raw(Box::new(value)), Ordering::Release);
    }
}

impl<T> Drop for Once<T> {
    fn drop(&mut self) {
        let value = *self.0.get_mut();
        if !value.is_null() {
            // SAFETY: made of a box by `set`, and borrowed by nobody any more.
            drop(unsafe { Box::from_raw(value) });
        }
    }
}

type Own = Line<SpinLock<List>>;

/// The address spaces that map an object.
pub struct Mappers {
    common: SpinLock<Common>,
    /// The lists of CPUs, each made when it is first used. Made with `common` locked.
    own: Once<[Once<Own>; MAX_CPUS]>,
    /// How many cuts have begun.
    cuts: AtomicU64,
}

impl Default for Mappers {
    fn default() -> Self {
        Self::new()
    }
}

fn key(mapper: &Weak<dyn Mapper>) -> usize {
    mapper.as_ptr().cast::<()>().addr()
}

/// Every list, locked.
struct All<'a> {
    common: SpinGuard<'a, Common>,
    own: Vec<SpinGuard<'a, List>>,
}

impl All<'_> {
    fn each(&mut self, mut f: impl FnMut(&mut List)) {
        f(&mut self.common.list);
        self.own.iter_mut().for_each(|list| f(list));
    }
}

impl Mappers {
    /// Nobody.
    pub fn new() -> Self {
        let common = Common { list: List::new(false), last: None, moves: 0 };
        Self { common: SpinLock::new(common), own: Once::new(), cuts: AtomicU64::new(0) }
    }
    /// `mapper` maps `pages` pages more. False, and nothing done, if they may be written and must not be.
    pub fn add(&self, mapper: &Weak<dyn Mapper>, pages: u64, writable: bool, pin: &Pinned<'_>) -> bool {
        let (pages, written) = numbers(pages, writable);
        if let Some(own) = self.own(pin) {
            let mut list = own.lock();
            let may = !(writable && list.sealed);
            if may {
                list.count(mapper, pages, written);
            }
            return may;
        }
        let mut common = self.common.lock();
        if writable && common.list.sealed {
            return false;
        }
        common.list.count(mapper, pages, written);
        if common.last != Some(pin.cpu()) {
            common.last = Some(pin.cpu());
            common.moves += 1;
            if common.moves == MOVES {
                self.own.set([const { Once::new() }; MAX_CPUS]);
            }
        }
        true
    }
    /// `mapper` maps `pages` pages fewer.
    pub fn sub(&self, mapper: &Weak<dyn Mapper>, pages: u64, writable: bool, pin: &Pinned<'_>) {
        let (pages, written) = numbers(pages, writable);
        if let Some(own) = self.own(pin) {
            return own.lock().count(mapper, -pages, -written);
        }
        let mut common = self.common.lock();
        common.list.count(mapper, -pages, -written);
        let gone = common.list.remove_empty(key(mapper));
        drop(common);
        drop(gone);
    }
    /// This CPU's list, if CPUs have them.
    #[inline]
    fn own(&self, pin: &Pinned<'_>) -> Option<&SpinLock<List>> {
        let place = &self.own.get()?[pin.cpu().index()];
        if place.get().is_none() {
            // Nobody else makes one here, and who locks all lists waits for this.
            let common = self.common.lock();
            place.set(Line(SpinLock::new(List::new(common.list.sealed))));
        }
        place.get().map(|own| &own.0)
    }
    /// Lock every list; `f` sees each as it is when all are locked.
    fn lock_all(&self, mut f: impl FnMut(&mut List)) -> All<'_> {
        // Room for all guards before the first lock, unless the CPUs get their lists just now.
        let most = if self.own.get().is_some() { MAX_CPUS } else { 0 };
        let own = Vec::with_capacity(most);
        let mut all = All { common: self.common.lock(), own };
        f(&mut all.common.list);
        for own in self.own.get().into_iter().flatten().filter_map(Once::get) {
            let mut list = own.0.lock();
            f(&mut list);
            if !mutant!("mappers-one-by-one") {
                all.own.push(list);
            }
        }
        all
    }
    /// From now on no shared mapping may write. False, and nothing done, if one can.
    pub fn seal(&self) -> bool {
        let (mut writable, mut sealed) = (0, false);
        let mut all = self.lock_all(|list| {
            writable += list.writable;
            sealed |= list.sealed;
        });
        sealed |= writable == 0;
        all.each(|list| list.sealed = sealed);
        sealed
    }
    /// Make everybody forget `pages` of the object whose mappers these are; see the module.
    pub fn cut(&self, pages: Range<u64>, copies: bool, ctx: &Unpinned<'_>) {
        // SeqCst: counted before the list is taken; partner: the fence in `cut_since`.
        self.cuts.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        // Kept until the end, so that no other space gets an address that stands for one that was visited.
        let mut visited: BTreeMap<usize, Arc<dyn Mapper>> = BTreeMap::new();
        loop {
            let mut fresh = self.all();
            fresh.retain(|key, _| !visited.contains_key(key));
            for mapper in fresh.values() {
                mapper.cut(self, pages.clone(), copies, ctx);
            }
            if fresh.is_empty() || mutant!("cut-forked-missed") {
                return;
            }
            visited.append(&mut fresh);
        }
    }
    /// How many cuts have begun: to be read before the object is asked.
    pub(crate) fn cuts(&self) -> u64 {
        // Acquire: the object is asked after this. Who is lent what a cut has taken away asked before the cutter had the object's
        // lock, and so has read a count from before: the cutter counts with what it has read there behind it.
        self.cuts.load(Ordering::Acquire)
    }
    /// Whether a cut has begun since `before` was read, by who has a page locked that is mapped. If none has, the cut that
    /// follows visits the space.
    pub(crate) fn cut_since(&self, before: u64) -> bool {
        // SeqCst: the space was entered, and the page locked, before the look; partner: the fence in `cut`.
        fence(Ordering::SeqCst);
        self.cuts.load(Ordering::Relaxed) != before
    }
    /// Whether somebody maps pages of it.
    pub fn is_mapped(&self) -> bool {
        !self.all().is_empty()
    }
    /// How many mappings there are.
    pub fn count(&self, ctx: &Unpinned<'_>) -> u64 {
        self.all().values().map(|mapper| mapper.count(self, ctx)).sum()
    }
    /// Call `f` with each of `pages` as often as it has an entry in a mapping. One mapper is asked after the other, so who moves
    /// pages meanwhile may be missed.
    pub fn shown(&self, pages: Range<u64>, ctx: &Unpinned<'_>, f: &mut dyn FnMut(u64)) {
        self.all().values().for_each(|mapper| mapper.shown(self, pages.clone(), ctx, f));
    }
    /// Those that map pages, by their addresses. One that has ended meanwhile has nothing to forget. In maps, whose pieces are small.
    fn all(&self) -> BTreeMap<usize, Arc<dyn Mapper>> {
        let mut sums: BTreeMap<usize, Entry> = BTreeMap::new();
        drop(self.lock_all(|list| {
            list.tidy();
            for (key, entry) in list.all() {
                let sum = || Entry { mapper: entry.mapper.clone(), pages: 0 };
                sums.entry(key).or_insert_with(sum).pages += entry.pages;
            }
        }));
        // With no list locked: the weak references keep the addresses.
        let mapping = sums.iter().filter(|(_, sum)| sum.pages > 0);
        mapping.filter_map(|(key, sum)| Some((*key, sum.mapper.upgrade()?))).collect()
    }
}

/// Pages as lists count them, and those that may be written.
fn numbers(pages: u64, writable: bool) -> (i64, i64) {
    let pages = pages as i64;
    (pages, if writable { pages } else { 0 })
}

impl fmt::Debug for Mappers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut entries, mut writable) = (0, 0);
        drop(self.lock_all(|list| {
            entries += list.all().count();
            writable += list.writable;
        }));
        f.debug_struct("Mappers").field("entries", &entries).field("writable", &writable).finish()
    }
}

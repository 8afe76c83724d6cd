//! Where mappings are looked up: a Bonsai tree of [`Area`]s. An area says what it says for ever, until it is dead.
//!
//! There are two kinds of users ([`Readers`]). Either whoever looks keeps those out that change the tree, by a lock around it,
//! and what was taken out is freed at once; then the area that was found last is tried first ([`Index::find`]). Or faults look
//! in sections, without a lock, and what was taken out is freed when those are over that may have found it.

use alloc::{boxed::Box, sync::Arc};
use core::{mem, ptr, ptr::NonNull};

use ::bonsai::{Entry, Rcu, Region, RegionTree, Still};
use addr::{Page, PageRange};
use percpu::{Line, Pinned, Unpinned};
use rcu::{Free, Head, kernel};
use sync::{
    RwLock, WriteGuard, mutant, pause,
    primitive::{AtomicPtr, AtomicU64, Ordering, fence, spin_loop},
};

use crate::{
    Backing, Exclude, Mapping,
    radix::{Buried, Graves, Realm},
};

/// A mapping, as it is looked up.
pub(crate) struct Area {
    pub(crate) range: PageRange,
    /// As it is at the range's start.
    pub(crate) mapping: Mapping,
    /// No other area of the space has or had the number; [`HIDDEN`] while faults must not find it.
    number: AtomicU64,
    /// How many faults are at work in it, if that is what excludes those that change it.
    faults: AtomicU64,
    /// Where the object goes in the end: that may sleep, and an area ends where nothing may.
    grave: Option<(Yard, Box<Buried>)>,
}

/// The number of an area while whoever changes mappings is at work in it.
pub(crate) const HIDDEN: u64 = 0;

impl Area {
    /// By what faults know it. Relaxed, here and below, like the mark of the dead: who changes it locks the leaf tables of its
    /// pages afterwards, and faults look at it under those locks.
    pub(crate) fn number(&self) -> u64 {
        self.number.load(Ordering::Relaxed)
    }
    pub(crate) fn set_number(&self, number: u64) {
        self.number.store(number, Ordering::Relaxed);
    }
}

/// Whether what is known by `number` is still to be had in `entry`.
pub(crate) fn is_alive(entry: &Entry<Area>, number: u64) -> bool {
    !entry.is_dead() && entry.number() == number
}

impl Drop for Area {
    fn drop(&mut self) {
        if let Some((yard, grave)) = self.grave.take() {
            let mapping = mem::replace(&mut self.mapping, Mapping::anonymous(addr::Prot::empty()));
            yard.bury(mapping, grave);
        }
    }
}

/// Where mappings wait for a thread that may sleep.
#[derive(Clone)]
enum Yard {
    /// With those of other spaces.
    Common(&'static Realm),
    /// Until the change is done that has taken them out.
    Own(Arc<Graves>),
}

impl Yard {
    fn bury(&self, mapping: Mapping, grave: Box<Buried>) {
        match self {
            Yard::Common(realm) => realm.bury_mapping(mapping, grave),
            Yard::Own(graves) => graves.bury(mapping, grave),
        }
    }
}

/// Who looks into the tree.
pub(crate) enum Readers {
    /// Who has the lock around it.
    Locked,
    /// And those in sections of the realm's domain.
    Sections(&'static Realm),
}

// SAFETY: with the lock there is no section that counts, so whatever was in the tree while a guard lived is not asked for; and
// who looks is out when something is retired. Else the realm's domain does what is asked for.
unsafe impl Rcu for Readers {
    type Guard<'g> = kernel::Guard<'g>;
    type Context<'c> = &'c Pinned<'c>;

    #[inline]
    fn is_of(&self, guard: &kernel::Guard<'_>) -> bool {
        matches!(self, Readers::Sections(realm) if guard.is_of(realm.sections()))
    }
    #[inline]
    unsafe fn retire(&self, pin: &&Pinned<'_>, head: NonNull<Head>, free: Free) {
        match self {
            // SAFETY: the caller's promise, and no reader is left.
            Readers::Locked => unsafe { free(head, pin) },
            // SAFETY: the caller's promise.
            Readers::Sections(realm) => realm.sections().call(pin, unsafe { rcu::Retired::new(head, free) }),
        }
    }
}

type Tree = RegionTree<Area, Readers>;
pub(crate) type Writer<'t, 'c> = ::bonsai::Writer<'t, 'c, Region, Area, Readers, ::bonsai::Heap>;

/// Nodes that the tree has in store, and a few leaves if it has any, so that who reserves some takes few from its pool.
const IN_STORE: usize = 256;

/// The tree, and who waits for whom at it. Only [`Mappings`](crate::mappings::Mappings) changes it.
pub(crate) struct Index {
    tree: Line<Tree>,
    exclude: Exclude,
    /// The second lock of [`Exclude::FaultLock`] and [`Exclude::Hybrid`].
    pub(crate) faults: Line<RwLock<()>>,
    yard: Yard,
    /// The area that was found last, if that is of use: on a line that every fault writes.
    last: Option<Line<AtomicPtr<Entry<Area>>>>,
}

impl Index {
    /// An empty one, with leaves from so many nodes on. `last_hit`: who looks into it with the lock tries the area first that was found last.
    pub(crate) fn new(readers: Readers, leaves_from: usize, exclude: Exclude, last_hit: bool) -> Self {
        let yard = match &readers {
            Readers::Locked => Yard::Own(Arc::new(Graves::new())),
            Readers::Sections(realm) => Yard::Common(realm),
        };
        let tree = Line(RegionTree::new(readers).keeping(IN_STORE).leaves_from(leaves_from));
        let last_hit = last_hit || mutant!("last-hit-always");
        let last = last_hit.then(|| Line(AtomicPtr::new(ptr::null_mut())));
        Self { tree, exclude, faults: Line(RwLock::new(())), yard, last }
    }
    /// An entry that is in no tree yet. `None` if there is no memory.
    pub(crate) fn entry(&self, range: PageRange, mapping: &Mapping, number: u64) -> Option<Box<Entry<Area>>> {
        let grave = match mapping.backing {
            Backing::Object { .. } => Some((self.yard.clone(), Buried::new()?)),
            Backing::Anonymous => None,
        };
        let (number, faults) = (AtomicU64::new(number), AtomicU64::new(0));
        Entry::try_new(Area { range, mapping: mapping.clone(), number, faults, grave }).ok()
    }
    /// Look up an address in a section.
    #[inline]
    pub(crate) fn covering<'g>(
        &'g self,
        page: Page,
        section: &'g kernel::Guard<'_>,
    ) -> Option<&'g Entry<Area>> {
        self.tree.0.read(section).covering(key(page)).map(|(_, entry)| entry)
    }
    /// The area that has `page`.
    ///
    /// # Safety
    /// As [`Self::still`].
    #[inline]
    pub(crate) unsafe fn find(&self, page: Page) -> Option<&Entry<Area>> {
        // SAFETY: the caller's promise.
        let (last, still) = unsafe { (self.last_hit(page), self.still()) };
        if last.is_some() {
            pause!("last-hit");
            return last;
        }
        let found = still.covering(key(page)).filter(|(_, entry)| !entry.is_dead());
        // What was given up may be found in the place of what is there.
        let found = found.or_else(|| still.floor(key(page)).filter(|(_, entry)| entry.range.contains(page)));
        let (_, entry) = found?;
        if let Some(last) = &self.last {
            last.0.store(ptr::from_ref(entry).cast_mut(), Ordering::Relaxed);
        }
        Some(entry)
    }
    /// The first area that has a page of `range`, which has some.
    ///
    /// # Safety
    /// As [`Self::still`].
    #[inline]
    pub(crate) unsafe fn first_in(&self, range: PageRange) -> Option<&Entry<Area>> {
        // SAFETY: the caller's promise.
        let (last, still) = unsafe { (self.last_hit(range.start()), self.still()) };
        last.or_else(|| still.first_in(region(range)).map(|(_, entry)| entry))
    }
    /// The area that was found last, if it has `page`.
    ///
    /// # Safety
    /// As [`Self::still`].
    #[inline]
    unsafe fn last_hit(&self, page: Page) -> Option<&Entry<Area>> {
        // Relaxed: the lock orders it against changes, and areas are all that it leads to.
        // SAFETY: no area has ended since it was found, so it is in the tree.
        let last = unsafe { self.last.as_ref()?.0.load(Ordering::Relaxed).as_ref() };
        last.filter(|entry| entry.range.contains(page))
    }
    /// Look into the tree without a section.
    ///
    /// # Safety
    /// The caller excludes those that change it.
    #[inline]
    pub(crate) unsafe fn still(&self) -> Still<'_, Region, Area> {
        // SAFETY: the caller's promise.
        unsafe { self.tree.0.still() }
    }
    /// Change it. Areas that are taken out have [ended](Self::ended).
    pub(crate) fn write<'t, 'c>(&'t self, pin: &'c Pinned<'c>) -> Writer<'t, 'c> {
        if let Readers::Sections(realm) = self.tree.0.domain() {
            realm.retires(pin);
        }
        self.tree.0.write(pin)
    }
    /// For [`Exclude::Hybrid`]: nobody looks into the tree until this is dropped.
    pub(crate) fn alone(&self, ctx: &Unpinned<'_>) -> Option<WriteGuard<'_, ()>> {
        let excludes = self.exclude == Exclude::Hybrid && !mutant!("bonsai-tree-shared");
        excludes.then(|| self.faults.0.write(ctx))
    }
    /// Drop the mappings that were taken out, if they wait for that here.
    pub(crate) fn reap(&self, _: &Unpinned<'_>) {
        if let Yard::Own(graves) = &self.yard
            && !graves.is_empty()
        {
            graves.take().for_each(drop);
        }
    }
    /// An area is dead, or hidden: wait until nobody is at work in it, if that is counted. Called before it is retired.
    pub(crate) fn ended(&self, area: &Area) {
        if let Some(last) = &self.last
            && !mutant!("last-hit-kept")
        {
            // Relaxed: who looks is excluded.
            last.0.store(ptr::null_mut(), Ordering::Relaxed);
        }
        if self.exclude == Exclude::PerMapping && !mutant!("bonsai-ended-at-once") {
            // SeqCst: dead before the look; partner: the fence in `Within::new`.
            fence(Ordering::SeqCst);
            // Acquire: partner of the store in `drop`.
            while area.faults.load(Ordering::Acquire) > 0 {
                spin_loop();
            }
        }
    }
    /// The addresses of the tree, for reports.
    pub(crate) fn place(&self) -> core::ops::Range<usize> {
        let start = ptr::from_ref(&self.tree).addr();
        start..start + size_of_val(&self.tree)
    }
}

/// A fault at work in an area: see [`Exclude::PerMapping`].
pub(crate) struct Within<'a>(Option<&'a AtomicU64>);

impl<'a> Within<'a> {
    pub(crate) fn new(area: &'a Area, exclude: Exclude) -> Self {
        let counts = exclude == Exclude::PerMapping && !mutant!("bonsai-fault-uncounted");
        let counted = counts.then_some(&area.faults);
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

/// What a page's first address is to the tree.
pub(crate) fn key(page: Page) -> u64 {
    page.number() << addr::PAGE_SHIFT
}

/// What pages are to the tree. There are some.
pub(crate) fn region(range: PageRange) -> Region {
    Region::new(key(range.start()), key(range.end()))
}

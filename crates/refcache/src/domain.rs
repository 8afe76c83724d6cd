//! A domain: the CPUs' caches, their epochs, and the operations.

use core::{
    alloc::Layout,
    fmt,
    mem::MaybeUninit,
    ptr::{self, NonNull},
};

use percpu::{CpuId, Line, MAX_CPUS, Pinned};
use sync::{SpinLock, mutant};

use crate::{
    Budget, Counted, Obj, Stats,
    cache::{Added, Cache, Mine},
    head::{DIRTY, QUEUED, Under},
    primitive::{AtomicBool, AtomicU64, Ordering},
    review::List,
    tree::Tree,
    word,
};

/// Proof that no CPU calls the domain: in tests, and when everything ends.
#[derive(Debug)]
pub struct AllStopped(());

impl AllStopped {
    /// A witness made from nothing.
    ///
    /// # Safety
    /// As long as it lives, no other thread calls the domain that it is shown to, and what they did there comes before.
    pub const unsafe fn assume() -> Self {
        Self(())
    }
}

/// Let `w` be the weak word of `o`, whose lock is held.
fn name<T: Counted>(o: &T, w: Option<&AtomicU64>, state: u64, under: &mut Under) {
    under.weak = w.map(NonNull::from_ref);
    if state & QUEUED != 0
        && let Some(word) = w
    {
        word::mark(word, Obj::of(o));
    }
}

/// Objects to be reviewed, of CPUs that left; and whether there are any, so that nobody takes the lock in vain.
pub(crate) struct Orphans {
    pub(crate) list: SpinLock<List>,
    pub(crate) any: AtomicBool,
}

/// Counts of objects, held back by each CPU in a direct-mapped cache of `WAYS` places. See the crate.
pub struct Domain<const WAYS: usize> {
    pub(crate) tree: Tree,
    caches: NonNull<Cache<WAYS>>,
    cpus: usize,
    /// Until this epoch nobody should wait for the next tick.
    pub(crate) hurry: Line<AtomicU64>,
    pub(crate) orphans: Line<Orphans>,
    /// The memory that it allocated for itself.
    #[cfg(feature = "alloc")]
    own: Option<NonNull<u8>>,
}

// SAFETY: a cache is reached against a `Pinned` of its CPU, or when all CPUs have stopped; the rest is atomic or locked.
unsafe impl<const WAYS: usize> Send for Domain<WAYS> {}
// SAFETY: as above.
unsafe impl<const WAYS: usize> Sync for Domain<WAYS> {}

impl<const WAYS: usize> Domain<WAYS> {
    fn layout(cpus: usize) -> (Layout, usize) {
        assert!((1..=MAX_CPUS).contains(&cpus), "{cpus} CPUs");
        let caches = Layout::array::<Cache<WAYS>>(cpus);
        let words = Layout::array::<Line<AtomicU64>>(Tree::words(cpus));
        let all = caches.and_then(|caches| caches.extend(words?));
        all.expect("a domain fits into memory")
    }
    /// Bytes of memory for [`Self::new_in`] of so many CPUs: about 16 a CPU and way.
    pub fn bytes(cpus: usize) -> usize {
        let layout = Self::layout(cpus).0;
        layout.size() + layout.align()
    }
    /// A domain for the CPUs below `cpus`, none of them a member of its epochs yet: each joins at its first call. Panics if
    /// there are none or more than [`MAX_CPUS`], or if `memory` is shorter than [`Self::bytes`].
    pub fn new_in(cpus: usize, memory: &'static mut [MaybeUninit<u8>]) -> Self {
        assert!(memory.len() >= Self::bytes(cpus), "{} bytes for {cpus} CPUs", memory.len());
        memory.fill(MaybeUninit::new(0));
        let start: *mut u8 = memory.as_mut_ptr().cast();
        let start = start.wrapping_add(start.align_offset(Self::layout(cpus).0.align()));
        // SAFETY: the memory is zeroed, long enough, and borrowed for ever.
        unsafe { Self::make(cpus, NonNull::new_unchecked(start)) }
    }
    /// The same in memory of its own, which it gives back when it is dropped. Objects that are queued then are lost: see
    /// [`Self::settle`].
    #[cfg(feature = "alloc")]
    pub fn new(cpus: usize) -> Self {
        let layout = Self::layout(cpus).0;
        // SAFETY: caches have a size, and there is one at least, or `layout` panics.
        let memory = unsafe { alloc::alloc::alloc_zeroed(layout) };
        let Some(memory) = NonNull::new(memory) else { alloc::alloc::handle_alloc_error(layout) };
        // SAFETY: the memory is zeroed, long enough, and this domain's until it is dropped.
        let mut domain = unsafe { Self::make(cpus, memory) };
        domain.own = Some(memory);
        domain
    }
    /// # Safety
    /// The memory has the layout, is zeroed and is the domain's alone for as long as that lives.
    unsafe fn make(cpus: usize, memory: NonNull<u8>) -> Self {
        let caches = memory.cast::<Cache<WAYS>>();
        // SAFETY: the layout has words behind caches, as many as are made here.
        let tree = unsafe {
            (0..cpus).for_each(|cpu| Cache::place(caches.add(cpu).as_ptr()));
            let words = memory.add(Self::layout(cpus).1).cast::<Line<AtomicU64>>();
            (0..Tree::words(cpus)).for_each(|n| words.add(n).write(Line(AtomicU64::new(0))));
            Tree::new(cpus, words)
        };
        Self {
            tree,
            caches,
            cpus,
            hurry: Line(AtomicU64::new(0)),
            orphans: Line(Orphans { list: SpinLock::new(List::EMPTY), any: AtomicBool::new(false) }),
            #[cfg(feature = "alloc")]
            own: None,
        }
    }
    /// How many CPUs may call.
    pub fn cpus(&self) -> usize {
        self.cpus
    }
    /// The epoch: 1 at first, and one more when all members have flushed.
    pub fn epoch(&self) -> u64 {
        self.tree.epoch()
    }
    /// Whether no CPU holds anything back or has anything to review, as far as CPUs have [parked](Self::park) that have
    /// nothing to do. Others may begin to at any moment.
    pub fn is_quiet(&self) -> bool {
        !self.tree.has_members() && !self.has_orphans()
    }
    fn caches(&self) -> &[Cache<WAYS>] {
        // SAFETY: so many were made.
        unsafe { core::slice::from_raw_parts(self.caches.as_ptr(), self.cpus) }
    }
    #[inline]
    pub(crate) fn cache(&self, pin: &Pinned<'_>) -> &Cache<WAYS> {
        &self.caches()[pin.cpu().index()]
    }
    /// What happened so far on all CPUs; while they run, the figures needn't fit together.
    pub fn stats(&self) -> Stats {
        let mut all = Stats::default();
        self.caches().iter().for_each(|cache| all.add(&cache.counts.read()));
        all
    }

    /// Change the count of `o` by `n`, in this CPU's cache. Writes nothing that another CPU reads, unless another object
    /// is in its place.
    ///
    /// # Safety
    /// For `n` of 0 and above: somebody has a reference to `o` and keeps it until this returns. Below: the caller has `-n`
    /// references, which it gives up; it uses `o` no more on their account.
    #[inline]
    pub unsafe fn add<T: Counted>(&self, o: &T, n: i32, pin: &Pinned<'_>) {
        // SAFETY: the caller's promise.
        unsafe { self.change(Obj::of(o), n, pin) };
    }
    /// The same for an object whose type is forgotten.
    ///
    /// # Safety
    /// As there.
    #[inline]
    pub(crate) unsafe fn change(&self, o: Obj, n: i32, pin: &Pinned<'_>) {
        let cache = self.cache(pin);
        match cache.ways.add(o, n) {
            Added::Held => {}
            Added::InPlaceOf(other, delta) => self.make_room(cache, other, delta),
            Added::Vacant => self.occupy(cache, o, n, pin),
        }
    }
    #[cold]
    #[inline(never)]
    fn make_room(&self, cache: &Cache<WAYS>, other: Obj, delta: i32) {
        cache.counts.evicted.up();
        // Outside a flush the epoch is this CPU's or one more.
        let wait = if mutant!("refcache-conflict-early") { 2 } else { 3 };
        // SAFETY: this CPU held the change back.
        unsafe { self.evict(cache, other, delta, wait) };
    }
    #[inline(never)]
    fn occupy(&self, cache: &Cache<WAYS>, o: Obj, n: i32, pin: &Pinned<'_>) {
        self.join(cache, pin.cpu());
        Self::mine(cache, |mine| cache.ways.occupy(o, n, mine));
    }
    /// Call `f` with where this CPU stands.
    #[inline]
    pub(crate) fn mine<R>(cache: &Cache<WAYS>, f: impl FnOnce(&mut Mine) -> R) -> R {
        // SAFETY: the callers are on the cache's CPU, or all others have stopped; and `f` calls nothing that comes here.
        cache.mine.with_mut(|mine| f(unsafe { &mut *mine }))
    }
    /// Bring a change to its object, which is judged, if its count is 0 then, `wait` epochs after this CPU's.
    ///
    /// # Safety
    /// The object is alive: this CPU held the change back until now.
    pub(crate) unsafe fn evict(&self, cache: &Cache<WAYS>, o: Obj, delta: i32, wait: u64) {
        // SAFETY: by the caller's promise.
        let head = unsafe { o.head() };
        head.locked(|state, under| {
            under.count += i64::from(delta);
            if under.count != 0 {
                return;
            }
            if *state & QUEUED != 0 {
                // Also if the change is 0: a reference that is handed from CPU to CPU leaves only zeros behind.
                *state |= DIRTY;
                cache.counts.dirtied.up();
                return;
            }
            *state = (*state | QUEUED) & !DIRTY;
            cache.counts.queued.up();
            // SAFETY: the object is alive, wasn't queued, and is locked.
            Self::mine(cache, |mine| unsafe { mine.review.list(mine.local + wait).push(o) });
            if let Some(weak) = under.weak {
                // SAFETY: the word lives as long as it is the object's.
                word::mark(unsafe { weak.as_ref() }, o);
            }
        });
    }

    /// A reference to what the word names, unless that is dying for good or frozen, or the word names nothing. The
    /// caller owns the reference: [`Self::add`] of -1 gives it up.
    ///
    /// # Safety
    /// If the word is a live link, then to a `T` whose weak word it is ([`Self::set_weak`]).
    #[inline]
    pub unsafe fn try_get<T: Counted>(&self, w: &AtomicU64, pin: &Pinned<'_>) -> Option<NonNull<T>> {
        // Who isn't a member is awaited by nobody between the look at the word and the change of the count.
        let cache = self.cache(pin);
        self.join(cache, pin.cpu());
        // Acquire: the object was made before its link; partner: the client's store of the link.
        let mut seen = w.load(Ordering::Acquire);
        loop {
            if !word::is_live(seen) || seen & word::FROZEN != 0 {
                return None;
            }
            if seen & word::DYING == 0 {
                break;
            }
            // AcqRel, Acquire: against the kill in the word's order of modifications; partner: `word::kill`.
            match w.compare_exchange(seen, seen & !word::DYING, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    cache.counts.revived.up();
                    break;
                }
                Err(now) => seen = now,
            }
        }
        if mutant!("refcache-unpinned-get") {
            (0..4).for_each(|_| _ = self.work(pin, Budget::ALL));
        }
        let o = NonNull::new(word::object::<T>(seen))?;
        // SAFETY: the word named `o`, and wasn't marked, or is unmarked now. This CPU is pinned since, so it hasn't flushed:
        // the epoch in which the object could die is not reached before the change made here is seen.
        unsafe { self.add(o.as_ref(), 1, pin) };
        Some(o)
    }

    /// Let `w` be the word that names `o` weakly, instead of the one before, if there is one. `None` takes it away;
    /// it is then not marked as dying, and isn't touched any more.
    ///
    /// The link may be stored before or after. A word that doesn't name its object isn't changed, and keeps the object from
    /// dying. Spins while another CPU has the object's lock, so the caller isn't preempted by who is pinned to its CPU.
    ///
    /// # Safety
    /// The caller has a reference to `o`. The word lives until it is taken away, or until the object dies. It may hold
    /// anything meanwhile; but once the word is another object's, or taken away, the client sees to it that nobody calls
    /// [`Self::try_get`] on a link to an object that may have died.
    pub unsafe fn set_weak<T: Counted>(&self, o: &T, w: Option<&AtomicU64>) {
        o.head().locked(|state, under| {
            if let Some(old) = under.weak {
                // Whether somebody revived the object is seen in the word alone. Without it, take it that somebody did.
                if *state & QUEUED != 0 && !mutant!("refcache-forget-revival") {
                    *state |= DIRTY;
                }
                // SAFETY: the word lives as long as it is the object's.
                word::unmark(unsafe { old.as_ref() }, Obj::of(o));
            }
            name(o, w, *state, under);
        });
    }
    /// The same if there is none yet; whether that was so.
    ///
    /// # Safety
    /// As there.
    #[cfg(feature = "alloc")]
    pub(crate) unsafe fn set_first_weak<T: Counted>(&self, o: &T, w: &AtomicU64) -> bool {
        o.head().locked(|state, under| {
            let first = under.weak.is_none();
            if first {
                name(o, Some(w), *state, under);
            }
            first
        })
    }

    /// The number of references to `o`.
    pub fn exact<T: Counted>(&self, o: &T, _: &AllStopped) -> i64 {
        let held = self.caches().iter().map(|cache| i64::from(cache.ways.held(Obj::of(o))));
        o.head().count() + held.sum::<i64>()
    }
    /// Work for all CPUs until nothing is held back and nothing is queued: every object without references has been
    /// disposed of then. All CPUs have left the epochs. Doesn't return while a dead object's weak word doesn't name it.
    pub fn settle(&self, _: &AllStopped) {
        // SAFETY: no other thread calls, so this one is every CPU in turn.
        let pins = || (0..self.cpus).filter_map(CpuId::new).map(|cpu| unsafe { Pinned::assume(cpu) });
        while self.has_orphans() | pins().any(|pin| self.is_busy(&pin)) {
            // Somebody must take over what those left that are no members.
            pins().take(1).for_each(|pin| self.unpark(&pin));
            pins().for_each(|pin| _ = self.work(&pin, Budget::ALL));
        }
        pins().for_each(|pin| _ = self.leave(&pin));
    }
    fn is_busy(&self, pin: &Pinned<'_>) -> bool {
        Self::mine(self.cache(pin), |mine| !mine.holds_nothing() || !mine.review.is_empty())
    }
}

impl<const WAYS: usize> Drop for Domain<WAYS> {
    fn drop(&mut self) {
        // SAFETY: made in `make`, and dropped once.
        unsafe {
            ptr::drop_in_place(ptr::slice_from_raw_parts_mut(self.caches.as_ptr(), self.cpus));
            self.tree.drop_words();
        }
        #[cfg(feature = "alloc")]
        if let Some(memory) = self.own {
            // SAFETY: allocated in `new` with this layout.
            unsafe { alloc::alloc::dealloc(memory.as_ptr(), Self::layout(self.cpus).0) };
        }
    }
}

impl<const WAYS: usize> fmt::Debug for Domain<WAYS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Domain({} CPUs, epoch {})", self.cpus, self.epoch())
    }
}

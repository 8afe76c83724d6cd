//! A domain: the CPUs' caches, their epochs, and the operations.

use core::{
    alloc::Layout,
    fmt,
    mem::MaybeUninit,
    ptr::{self, NonNull},
};

use percpu::{CpuId, MAX_CPUS, Pinned};
use sync::{SpinLock, mutant};

use crate::{
    Counted, Obj, Stats,
    cache::{Added, Cache, Mine},
    head::{DIRTY, QUEUED, Under},
    primitive::{AtomicBool, AtomicU64, Ordering, lock},
    review::List,
    tree::{Line, Tree},
    word,
};

/// How much [`Domain::work`] does at most before it returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Changes brought to their objects. 0 is none, not even the end of a flush.
    pub flushes: u32,
    /// Objects judged; of these at most [`MAX_DISPOSALS`] are disposed of.
    pub reviews: u32,
}

/// The most objects that one call of [`Domain::work`] disposes of.
pub const MAX_DISPOSALS: u32 = 256;

impl Budget {
    /// Everything that can be done now, but for the bound on disposals.
    pub const ALL: Self = Self { flushes: u32::MAX, reviews: u32::MAX };
}

impl Default for Budget {
    /// A few dozen microseconds.
    fn default() -> Self {
        Self { flushes: 512, reviews: MAX_DISPOSALS }
    }
}

/// What a call of [`Domain::work`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Changes brought to their objects.
    pub flushed: u32,
    /// Objects judged.
    pub reviewed: u32,
    /// Objects disposed of.
    pub freed: u32,
    /// The budget was used up: call again soon.
    pub more: bool,
}

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

/// What a review finds.
enum Verdict {
    Alive,
    Again,
    Dead,
}

/// Counts of objects, held back by each CPU in a direct-mapped cache of `WAYS` places. See the crate.
pub struct Domain<const WAYS: usize> {
    tree: Tree,
    caches: NonNull<Cache<WAYS>>,
    cpus: usize,
    /// Until this epoch nobody should wait for the next tick.
    hurry: Line<AtomicU64>,
    /// Objects to be reviewed, of CPUs that left.
    orphans: Line<SpinLock<List>>,
    any_orphans: AtomicBool,
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
        // SAFETY: caches have a size, and there is one at least, or `make` panics.
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
        assert!((1..=MAX_CPUS).contains(&cpus), "{cpus} CPUs");
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
            orphans: Line(SpinLock::new(List::EMPTY)),
            any_orphans: AtomicBool::new(false),
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
    fn caches(&self) -> &[Cache<WAYS>] {
        // SAFETY: so many were made.
        unsafe { core::slice::from_raw_parts(self.caches.as_ptr(), self.cpus) }
    }
    #[inline]
    fn cache(&self, pin: &Pinned<'_>) -> &Cache<WAYS> {
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
        let (cache, o) = (self.cache(pin), Obj::of(o));
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
    fn mine<R>(cache: &Cache<WAYS>, f: impl FnOnce(&mut Mine) -> R) -> R {
        // SAFETY: the callers are on the cache's CPU, or all others have stopped; and `f` calls nothing that comes here.
        cache.mine.with_mut(|mine| f(unsafe { &mut *mine }))
    }
    /// Bring a change to its object, which is judged, if its count is 0 then, `wait` epochs after this CPU's.
    ///
    /// # Safety
    /// The object is alive: this CPU held the change back until now.
    unsafe fn evict(&self, cache: &Cache<WAYS>, o: Obj, delta: i32, wait: u64) {
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
    /// dying.
    ///
    /// # Safety
    /// The caller has a reference to `o`. The word lives until it is taken away, or until the object dies. Before it is
    /// taken away it names `o`, or nothing; after, the client sees to it that nobody calls [`Self::try_get`] with a link to
    /// an object that may die.
    pub unsafe fn set_weak<T: Counted>(&self, o: &T, w: Option<&AtomicU64>) {
        o.head().locked(|state, under| {
            if let Some(old) = under.weak {
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

    /// Whether [`Self::work`] has something to do on this CPU: what the timer's tick asks.
    pub fn due(&self, pin: &Pinned<'_>) -> bool {
        let (cache, epoch) = (self.cache(pin), self.tree.epoch());
        Self::mine(cache, |mine| {
            mine.member && (mine.flushing || mine.local != epoch || mine.review.has_due(epoch))
        })
    }
    /// Let the next four epochs follow each other without waiting for ticks, so that what is dead now is disposed of.
    pub fn expedite(&self) {
        // Relaxed: a hint.
        self.hurry.0.fetch_max(self.tree.epoch() + 4, Ordering::Relaxed);
    }
    /// Whether [`Self::expedite`] asks for [`Self::work`] before the next tick.
    pub fn hurried(&self) -> bool {
        // Relaxed: a hint.
        self.hurry.0.load(Ordering::Relaxed) > self.tree.epoch()
    }

    /// The manager's round on this CPU: bring what was held back to its objects, once in an epoch, and judge the objects
    /// that are due. In thread context, at each tick (10 ms or more) and while [`Work::more`] or [`Self::hurried`] say so.
    /// Within a [`Counted::dispose`] it does nothing. A CPU that isn't a member has no work.
    ///
    /// All members must call it again and again, or leave: as long as one doesn't, nothing is disposed of.
    pub fn work(&self, pin: &Pinned<'_>, budget: Budget) -> Work {
        let (cache, mut work) = (self.cache(pin), Work::default());
        let begun = Self::mine(cache, |mine| mine.member && !core::mem::replace(&mut mine.working, true));
        if !begun {
            return work;
        }
        /// Ends the work, even if an object's end panics.
        struct Working<'a, const WAYS: usize>(&'a Cache<WAYS>);
        impl<const WAYS: usize> Drop for Working<'_, WAYS> {
            fn drop(&mut self) {
                Domain::mine(self.0, |mine| mine.working = false);
            }
        }
        let _working = Working(cache);
        if self.flush(cache, pin.cpu(), budget.flushes, &mut work) {
            self.adopt(cache);
            self.review(cache, pin, budget.reviews, &mut work);
        }
        work
    }
    /// Whether this CPU's flush of the present epoch is complete.
    fn flush(&self, cache: &Cache<WAYS>, cpu: CpuId, budget: u32, work: &mut Work) -> bool {
        let epoch = self.tree.epoch();
        let flushing = Self::mine(cache, |mine| {
            if !mine.flushing && mine.local != epoch {
                mine.begin_flush(epoch);
            }
            mine.flushing
        });
        if !flushing {
            return true;
        }
        loop {
            if work.flushed >= budget {
                work.more = true;
                return false;
            }
            let Some((o, delta)) = Self::mine(cache, |mine| cache.ways.pop(mine, false)) else { break };
            if delta == 0 && mutant!("refcache-zero-skip") {
                continue;
            }
            cache.counts.flushed.up();
            work.flushed += 1;
            // The epoch is exactly this CPU's until it arrives. When it is one more, some CPU may still hold back what it
            // did before this; when it is two more, none.
            let wait = if mutant!("refcache-review-early") { 1 } else { 2 };
            // SAFETY: this CPU held the change back.
            unsafe { self.evict(cache, o, delta, wait) };
        }
        Self::mine(cache, |mine| mine.flushing = false);
        self.tree.arrive(cpu);
        true
    }
    /// Take over what CPUs left to be reviewed.
    fn adopt(&self, cache: &Cache<WAYS>) {
        // Relaxed: a hint; the lock orders the list.
        if self.any_orphans.load(Ordering::Relaxed) {
            let mut orphans = lock(&self.orphans.0);
            self.any_orphans.store(false, Ordering::Relaxed);
            Self::mine(cache, |mine| mine.review.list(mine.local + 3).append(&mut orphans));
        }
    }
    fn review(&self, cache: &Cache<WAYS>, pin: &Pinned<'_>, budget: u32, work: &mut Work) {
        let now = self.tree.epoch();
        while work.reviewed < budget && work.freed < MAX_DISPOSALS {
            let Some(o) = Self::mine(cache, |mine| mine.review.due(now).pop()) else { return };
            work.reviewed += 1;
            if let Verdict::Dead = self.judge(cache, o, now) {
                work.freed += 1;
                cache.counts.freed.up();
                // SAFETY: two epochs after its count was 0 no CPU holds a change back, and it was 0 all the time: nobody
                // has a reference. Nobody gets one, as its weak word is empty.
                unsafe { o.dispose(pin) };
            }
        }
        work.more = Self::mine(cache, |mine| mine.review.has_due(now));
    }
    /// Whether an object that was queued two epochs ago is dead. It is off the list.
    fn judge(&self, cache: &Cache<WAYS>, o: Obj, now: u64) -> Verdict {
        let verdict = |state: &mut u64, under: &mut Under| {
            // SAFETY: the word lives as long as it is the object's.
            let weak = under.weak.map(|weak| unsafe { weak.as_ref() });
            if under.count != 0 {
                *state &= !QUEUED;
                weak.inspect(|weak| word::unmark(weak, o));
                return Verdict::Alive;
            }
            // Who revived it has unmarked the word.
            if *state & DIRTY == 0 && weak.is_none_or(|weak| word::kill(weak, o)) {
                *state &= !QUEUED;
                return Verdict::Dead;
            }
            // All begins anew: two epochs from now nobody can have revived it unseen before it was marked here.
            *state &= !DIRTY;
            weak.inspect(|weak| word::mark(weak, o));
            cache.counts.requeued.up();
            Self::mine(cache, |mine| {
                // The epoch is this CPU's or one more by now, and others may have flushed in it: as outside a flush.
                let due = match () {
                    () if mutant!("refcache-requeue-local") => mine.local + 2,
                    () if mutant!("refcache-requeue-epoch") => now + 2,
                    () => mine.local + 3,
                };
                // SAFETY: the object is alive, this CPU's, off the list, and locked.
                unsafe { mine.review.list(due).push(o) };
            });
            Verdict::Again
        };
        // SAFETY: queued objects are alive.
        unsafe { o.head() }.locked(verdict)
    }

    #[inline]
    fn join(&self, cache: &Cache<WAYS>, cpu: CpuId) {
        if !Self::mine(cache, |mine| mine.member) {
            self.join_epochs(cache, cpu);
        }
    }
    #[cold]
    fn join_epochs(&self, cache: &Cache<WAYS>, cpu: CpuId) {
        let epoch = self.tree.join(cpu);
        Self::mine(cache, |mine| (mine.member, mine.local, mine.quiet) = (true, epoch, false));
    }
    /// Leave the epochs for a while, so that nobody waits for this CPU, which has nothing to do. Refused, with
    /// `false`, unless it held nothing back for a whole epoch and has nothing to review.
    pub fn park(&self, pin: &Pinned<'_>) -> bool {
        let cache = self.cache(pin);
        let idle = |mine: &mut Mine| {
            let idle = mine.quiet && mine.holds_nothing() && mine.review.is_empty() && !mine.working;
            let leaves = mine.member && idle && !mine.flushing;
            mine.member &= !leaves;
            (leaves, !mine.member)
        };
        let (leaves, parked) = Self::mine(cache, idle);
        if leaves {
            self.tree.leave(pin.cpu());
        }
        parked
    }
    /// Take part in the epochs again. [`Self::add`] and [`Self::try_get`] do so by themselves: this is to have it done
    /// before.
    pub fn unpark(&self, pin: &Pinned<'_>) {
        self.join(self.cache(pin), pin.cpu());
    }
    /// Leave the epochs now, for good or for long: bring everything to its objects, and leave the reviews to others. The
    /// last one to leave should [work](Self::work) until nothing is left, or what it was to review waits for the next.
    pub fn leave(&self, pin: &Pinned<'_>) {
        let cache = self.cache(pin);
        let stays = |mine: &mut Mine| !mine.member || mine.working;
        if Self::mine(cache, stays) {
            return;
        }
        while let Some((o, delta)) = Self::mine(cache, |mine| cache.ways.pop(mine, true)) {
            cache.counts.evicted.up();
            // SAFETY: this CPU held the change back.
            unsafe { self.evict(cache, o, delta, 3) };
        }
        let mut left = Self::mine(cache, |mine| {
            (mine.member, mine.flushing) = (false, false);
            mine.review.take()
        });
        if !left.is_empty() {
            let mut orphans = lock(&self.orphans.0);
            orphans.append(&mut left);
            // Relaxed: a hint; the lock orders the list.
            self.any_orphans.store(true, Ordering::Relaxed);
        }
        self.tree.leave(pin.cpu());
    }

    /// The number of references to `o`.
    pub fn exact<T: Counted>(&self, o: &T, _: &AllStopped) -> i64 {
        let held = self.caches().iter().map(|cache| i64::from(cache.ways.held(Obj::of(o))));
        o.head().count() + held.sum::<i64>()
    }
    /// Work for all CPUs until nothing is held back and nothing is queued: every object without references has been
    /// disposed of then. All CPUs have left the epochs.
    pub fn settle(&self, _: &AllStopped) {
        // SAFETY: no other thread calls, so this one is every CPU in turn.
        let pins = || (0..self.cpus).filter_map(CpuId::new).map(|cpu| unsafe { Pinned::assume(cpu) });
        // Relaxed: nobody else calls.
        while self.any_orphans.load(Ordering::Relaxed) | pins().any(|pin| self.is_busy(&pin)) {
            // Somebody must take over what those left that are no members.
            pins().take(1).for_each(|pin| self.unpark(&pin));
            pins().for_each(|pin| _ = self.work(&pin, Budget::ALL));
        }
        pins().for_each(|pin| self.leave(&pin));
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

//! The allocator: the caches, the pool and the counts put together.

use core::{
    fmt,
    ops::Range,
    sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering},
};

use addr::{DirectMap, Frame, PAGE_BYTES};
use percpu::Pinned;
use sync::{SpinLock, mutant};

use crate::{
    FrameRange, MAX_ORDER, OwnedFrame, OwnedRun, Use,
    cache::{Cache, MAX_BATCH},
    layout::{Carver, Layout},
    marks::Marks,
    pool::Pool,
};

/// The reserve is this part of all frames, rounded up.
const RESERVE_PART: usize = 64;
/// All caches together hold at most this part of all frames.
const CACHED_PART: usize = 8;

/// A value on cache lines of its own.
#[repr(align(128))]
struct Lines<T>(T);

/// All frames of the machine.
pub struct Frames {
    dm: DirectMap,
    /// How a page is zeroed.
    zero: unsafe fn(*mut u8),
    first: Frame,
    total: usize,
    batch: usize,
    reserve: usize,
    caches: &'static [Cache],
    sharers: &'static [AtomicU32],
    marks: Marks,
    /// What makes allocation more than popping a cache, and what callers ask about: [`LOW`], [`FAILING`], [`STRAINED`]. Every call reads it, so it has its own
    /// line, and is written only when it changes.
    pressure: Lines<AtomicU8>,
    /// How many allocations it is to the one that must fail; counts only while [`FAILING`] is set.
    countdown: Lines<AtomicU64>,
    pool: Lines<SpinLock<Pool>>,
}

/// Pressure: the pool is down to the reserve.
const LOW: u8 = 1;
/// Pressure: an allocation is to fail, see [`Frames::fail_nth`].
const FAILING: u8 = 2;
/// Pressure: the kernel has taken its share, see [`Frames::set_strained`].
const STRAINED: u8 = 4;

/// How many frames are where. The sums are exact while nobody allocates or frees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stats {
    /// All frames.
    pub total: u64,
    /// Frames in the pool: bits of its bitmap.
    pub free: u64,
    /// Frames in the CPUs' caches: heights of their stacks.
    pub cached: u64,
    /// Frames with owners, by [`Use`]: what allocation and freeing counted. A shared frame counts once.
    pub owned: [u64; Use::COUNT],
    /// Frames that a refill or a return moves at a time.
    pub batch: u64,
    /// Frames in the pool that only the kernel may take.
    pub reserve: u64,
    /// Times that CPUs went to the pool, since the start.
    pub trips: u64,
}

impl Frames {
    /// Bytes of buffer that [`Self::new`] needs: about 4 a frame (5 in debug builds) between the lowest and the
    /// highest, and 640 a CPU.
    pub fn meta_bytes(ranges: &[FrameRange], cpus: usize) -> usize {
        Layout::new(ranges, cpus).bytes()
    }

    /// The frames of `ranges`, all free, for `cpus` CPUs. Panics if `meta` is shorter than [`Self::meta_bytes`] or
    /// ranges overlap.
    ///
    /// # Safety
    /// `meta` is zeroed. The frames are usable memory that `dm` reaches and that nobody else uses from now on; `meta`
    /// does not lie in them. CPUs of `cpus` on are never pinned when calling.
    pub unsafe fn new(ranges: &[FrameRange], cpus: usize, meta: &'static mut [u8], dm: DirectMap) -> Self {
        let layout = Layout::new(ranges, cpus);
        // SAFETY: `meta` is zeroed, by the caller's promise.
        let tables = unsafe { Carver::carve(meta, &layout) };
        let mut pool = Pool::new(tables.rows, tables.summary);
        for r in ranges.iter().filter(|r| r.start < r.end) {
            let at = (r.start.number() - layout.first.number()) as usize;
            let n = (r.end.number() - r.start.number()) as usize;
            assert!(pool.give(at, n), "frame ranges overlap at {r:?}");
        }
        let total = pool.free();
        let reserve = total.div_ceil(RESERVE_PART);
        Self {
            dm,
            zero: zero_page,
            first: layout.first,
            total,
            batch: (total / (2 * CACHED_PART * cpus.max(1))).clamp(1, MAX_BATCH),
            reserve,
            caches: tables.caches,
            sharers: tables.sharers,
            marks: Marks(tables.marks),
            pressure: Lines(AtomicU8::new(if total <= reserve { LOW } else { 0 })),
            countdown: Lines(AtomicU64::new(0)),
            pool: Lines(SpinLock::new(pool)),
        }
    }

    /// The same frames, zeroed by `zero` from now on: a machine may know a better way.
    ///
    /// # Safety
    /// `zero` writes zeros to the page that it is given, to all of it and to nothing else.
    pub unsafe fn zero_by(self, zero: unsafe fn(*mut u8)) -> Self {
        Self { zero, ..self }
    }

    /// How to reach a frame's bytes.
    pub fn dm(&self) -> DirectMap {
        self.dm
    }

    /// A frame with one owner, its bytes unspecified. `None` if there is none, or only what `usage` may not take of the
    /// reserve.
    #[inline]
    pub fn alloc(&self, pin: &Pinned<'_>, usage: Use) -> Option<OwnedFrame> {
        let cache = self.cache(pin);
        let at = match self.pressure() {
            0 => match cache.pop(pin) {
                Some(at) => at,
                None => self.refill(pin, cache, usage)?,
            },
            pressure => self.alloc_under(pressure, pin, cache, usage)?,
        };
        let frame = self.frame(at);
        self.marks.hand_out(at, frame, usage, self.dm);
        cache.count(pin, usage, 1);
        // SAFETY: the frame was free, so we make its first share; it is `usage`'s from here on.
        Some(unsafe { OwnedFrame::from_raw(frame, usage) })
    }

    /// As [`Self::alloc`], with all bytes zero.
    pub fn alloc_zeroed(&self, pin: &Pinned<'_>, usage: Use) -> Option<OwnedFrame> {
        let owned = self.alloc(pin, usage)?;
        // SAFETY: the direct map reaches the frame, and we are its only owner.
        unsafe { (self.zero)(self.dm.ptr(owned.frame().base())) };
        Some(owned)
    }

    /// 2^`order` adjacent frames, the first a multiple of that, their bytes unspecified; `order` in
    /// 0..=[`MAX_ORDER`]. `None` if there is no such run, or it would cut into what `usage` may not take of the reserve.
    pub fn alloc_run(&self, pin: &Pinned<'_>, order: u32, usage: Use) -> Option<OwnedRun> {
        if order > MAX_ORDER {
            return None;
        }
        if self.pressure() & FAILING != 0 && self.must_fail() {
            return None;
        }
        let n = 1 << order;
        let cache = self.cache(pin);
        let kept = self.kept_from(usage);
        let take = |pool: &mut Pool| if pool.free() < n + kept { None } else { pool.take_run(order) };
        let at = self.with_pool(pin, cache, take).or_else(|| {
            // Some of the missing frames may be in this CPU's cache.
            self.drain(pin);
            self.with_pool(pin, cache, take)
        })?;
        for at in at..at + n {
            self.marks.hand_out(at, self.frame(at), usage, self.dm);
        }
        cache.count(pin, usage, n as i64);
        // SAFETY: the frames were free, so the run is ours, of this order and for this use.
        Some(unsafe { OwnedRun::from_raw(self.frame(at), order, usage) })
    }

    /// Give a run back.
    pub fn free_run(&self, pin: &Pinned<'_>, run: OwnedRun) {
        let (order, usage) = (run.order(), run.usage());
        let (first, n) = (self.index(run.into_raw()), 1 << order);
        for at in first..first + n {
            self.marks.take_back(at, self.frame(at), usage, self.dm);
        }
        let cache = self.cache(pin);
        cache.count(pin, usage, -(n as i64));
        let ok = self.with_pool(pin, cache, |pool| pool.give(first, n));
        debug_assert!(ok, "{:?} was freed twice", self.frame(first));
    }

    /// Take the frames of `range` out of the pool, without touching their bytes: for what lay in them before the
    /// allocator did. Each then has one share, which the caller takes up by [`OwnedFrame::from_raw`]. The answer is
    /// false, and nothing changes, if one of them is not in the pool.
    pub fn claim(&self, pin: &Pinned<'_>, range: FrameRange, usage: Use) -> bool {
        let n = range.end.number().saturating_sub(range.start.number()) as usize;
        let first = self.index(range.start);
        let cache = self.cache(pin);
        if !self.with_pool(pin, cache, |pool| pool.take_at(first, n)) {
            return false;
        }
        for at in first..first + n {
            self.marks.hand_out(at, self.frame(at), usage, self.dm);
        }
        cache.count(pin, usage, n as i64);
        true
    }

    /// Give up one share; the frame is free again when it was the last.
    #[inline]
    pub fn free(&self, pin: &Pinned<'_>, owned: OwnedFrame) {
        let usage = owned.usage();
        let frame = owned.into_raw();
        let at = self.index(frame);
        self.marks.expect(at, frame, usage);
        if !self.give_up_share(at) {
            return;
        }
        self.marks.take_back(at, frame, usage, self.dm);
        let cache = self.cache(pin);
        cache.count(pin, usage, -1);
        if cache.height() >= 2 * self.batch {
            self.give_back(pin, cache, self.batch);
        }
        cache.push(pin, at);
        if self.exhausted() {
            self.drain(pin);
        }
    }

    /// One more share of a frame that the caller has a share of.
    pub fn share(&self, owned: &OwnedFrame) -> OwnedFrame {
        // SAFETY: the caller has a share, and knows the use.
        unsafe { self.share_raw(owned.frame(), owned.usage()) }
    }

    /// One more share of `frame`.
    ///
    /// # Safety
    /// Somebody has a share and keeps it during the call (say, it is in a page table that the caller has locked), and
    /// the frame was allocated for `usage`.
    pub unsafe fn share_raw(&self, frame: Frame, usage: Use) -> OwnedFrame {
        let at = self.index(frame);
        self.marks.expect(at, frame, usage);
        // Relaxed: the new share comes from an old one, by whatever order the holder has it; giving shares up is what
        // needs order. It can't overflow: each share is a word in memory, and 2^32 of them would be 32 GiB of page
        // tables for one frame.
        self.sharers[at].fetch_add(1, Ordering::Relaxed);
        // SAFETY: the share was just counted.
        unsafe { OwnedFrame::from_raw(frame, usage) }
    }

    /// Whether `frame` has more than one share. If the caller has one and the answer is no, it stays no until the
    /// caller makes another, and what other owners did to the frame has been done.
    pub fn is_shared(&self, frame: Frame) -> bool {
        // Acquire: the other owners' use of the frame comes before; partner of the CAS in `give_up_share`.
        self.sharers[self.index(frame)].load(Ordering::Acquire) != 0
    }

    /// How many shares `frame` has beside one; a report, which may be out of date.
    pub fn sharers(&self, frame: Frame) -> u64 {
        // Relaxed: nothing follows from it.
        self.sharers[self.index(frame)].load(Ordering::Relaxed).into()
    }

    /// Whether memory is short: the pool is down to the reserve, so that the user's allocations are about to fail, or
    /// the kernel is [strained](Self::set_strained). Who is asked for something that needs a record refuses then.
    #[inline]
    pub fn low(&self) -> bool {
        self.pressure() & (LOW | STRAINED) != 0
    }

    /// Whether the pool is down to the reserve.
    #[inline]
    pub fn exhausted(&self) -> bool {
        self.pressure() & LOW != 0
    }

    /// Say whether the kernel's own records have grown to all that they may take. It keeps what it has taken, so without
    /// this limit a program that makes it keep many records would leave no memory to anybody when it has gone.
    pub fn set_strained(&self, strained: bool) {
        // Relaxed, both: a hint, see `pressure`.
        if strained {
            self.pressure.0.fetch_or(STRAINED, Ordering::Relaxed);
        } else {
            self.pressure.0.fetch_and(!STRAINED, Ordering::Relaxed);
        }
    }

    /// Let the `n`-th allocation from now on, of a frame or a run and by anyone, fail as if there were no memory; one
    /// only. 0 takes that back. For tests of what callers do then; costs nothing while it isn't used.
    pub fn fail_nth(&self, n: u64) {
        // Relaxed, all: the flag only sends callers to the counter; a call at the same time is early or late.
        self.countdown.0.store(n, Ordering::Relaxed);
        if n > 0 {
            self.pressure.0.fetch_or(FAILING, Ordering::Relaxed);
        } else {
            self.pressure.0.fetch_and(!FAILING, Ordering::Relaxed);
        }
    }

    /// How many allocations it is to the one that [`Self::fail_nth`] asked for; 0 when it has failed.
    pub fn until_failure(&self) -> u64 {
        // Relaxed: see `fail_nth`.
        self.countdown.0.load(Ordering::Relaxed)
    }

    /// Give all of this CPU's cached frames back to the pool.
    pub fn drain(&self, pin: &Pinned<'_>) {
        let cache = self.cache(pin);
        if cache.height() > 0 {
            self.give_back(pin, cache, usize::MAX);
        }
    }

    /// Call `f` with the name, the addresses and the bytes of each CPU's part (0 if it isn't divided) of each table: for
    /// reports that name memory.
    pub fn places(&self, _: &Pinned<'_>, f: &mut dyn FnMut(&'static str, Range<usize>, usize)) {
        fn span<T: ?Sized>(value: &T) -> Range<usize> {
            let start = core::ptr::from_ref(value).addr();
            start..start + size_of_val(value)
        }
        f("frames: cache", span(self.caches), size_of::<Cache>());
        f("frames: sharers", span(self.sharers), 0);
        f("frames: pool's lock", span(&self.pool), 0);
        f("frames: whether few are left", span(&self.pressure), 0);
        let [rows, summary] = self.pool.0.lock().tables();
        f("frames: pool's bitmap", rows, 0);
        f("frames: pool's summary", summary, 0);
    }

    /// Number of all frames.
    pub fn total(&self) -> u64 {
        self.total as u64
    }

    /// How many frames are where.
    pub fn stats(&self) -> Stats {
        let free = {
            let pool = self.pool.0.lock();
            pool.count() as u64
        };
        let sum = |usage: Use| self.caches.iter().map(|c| c.owned(usage)).sum::<i64>();
        Stats {
            total: self.total as u64,
            free,
            cached: self.caches.iter().map(|c| c.height() as u64).sum(),
            // While frames move between CPUs a sum may be read as negative for a moment.
            owned: Use::ALL.map(|usage| u64::try_from(sum(usage)).unwrap_or(0)),
            batch: self.batch as u64,
            reserve: self.reserve as u64,
            trips: self.caches.iter().map(Cache::trips).sum(),
        }
    }

    /// Give up a share of frame number `at`; whether it was the last.
    #[inline]
    fn give_up_share(&self, at: usize) -> bool {
        let sharers = &self.sharers[at];
        let last = if mutant!("frames-early-free") { 1 } else { 0 };
        // Acquire: if ours is the last, all that the other owners did comes before we free; partner of the CAS below
        // (each a read-modify-write, so one load of the last value is ordered after them all).
        let mut seen = sharers.load(Ordering::Acquire);
        while seen > last {
            // Release: what this owner did comes before the last one's freeing; partner of the loads here.
            // Acquire on failure: as for the load above.
            match sharers.compare_exchange_weak(seen, seen - 1, Ordering::Release, Ordering::Acquire) {
                Ok(_) => return false,
                Err(now) => seen = now,
            }
        }
        true
    }

    #[inline]
    fn pressure(&self) -> u8 {
        // Relaxed: a hint; whoever acts on it takes the pool's lock.
        self.pressure.0.load(Ordering::Relaxed)
    }

    /// One frame, when that takes more than popping the cache.
    #[cold]
    fn alloc_under(&self, pressure: u8, pin: &Pinned<'_>, cache: &Cache, usage: Use) -> Option<usize> {
        if pressure & FAILING != 0 && self.must_fail() {
            return None;
        }
        // What the caches hold counts towards the reserve, so it is not for those who may not have all of that.
        let free_to_take = pressure & LOW == 0 || self.kept_from(usage) == 0;
        free_to_take.then(|| cache.pop(pin)).flatten().or_else(|| self.refill(pin, cache, usage))
    }

    /// Count one allocation down; whether it is the one to fail.
    fn must_fail(&self) -> bool {
        // Relaxed: see `fail_nth`.
        let counted = self.countdown.0.try_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        let last = counted == Ok(1);
        if last {
            self.pressure.0.fetch_and(!FAILING, Ordering::Relaxed);
        }
        last
    }

    /// How much of the reserve is closed to `usage`, in frames. Page tables and stacks stop half-way, since programs
    /// can make many of them without a frame of their own; the rest is for the kernel's heap, which has to answer
    /// while it refuses and ends whoever took so much.
    fn kept_from(&self, usage: Use) -> usize {
        match usage {
            Use::Anonymous | Use::File => self.reserve,
            Use::PageTable | Use::Stack => self.reserve / 2,
            Use::Kernel => 0,
        }
    }

    /// Fetch a batch from the pool and take one frame of it.
    #[cold]
    fn refill(&self, pin: &Pinned<'_>, cache: &Cache, usage: Use) -> Option<usize> {
        if self.exhausted() {
            // What this CPU keeps counts towards the reserve.
            self.drain(pin);
        }
        self.with_pool(pin, cache, |pool| {
            let n = match pool.free().saturating_sub(self.reserve) {
                // The reserve is given out one frame at a time, so that none of it gets into a cache.
                0 => usize::from(pool.free() > self.kept_from(usage)),
                above => above.min(self.batch),
            };
            pool.take(n, |at| cache.push(pin, at));
        });
        cache.pop(pin)
    }

    /// Return the `n` frames that have been cached longest.
    #[cold]
    fn give_back(&self, pin: &Pinned<'_>, cache: &Cache, n: usize) {
        self.with_pool(pin, cache, |pool| {
            cache.take_oldest(pin, n, |at| {
                let ok = pool.give(at, 1);
                debug_assert!(ok, "{:?} was freed twice", self.frame(at));
            });
        });
    }

    /// Run `f` on the pool, and raise or lower the flag.
    fn with_pool<R>(&self, pin: &Pinned<'_>, cache: &Cache, f: impl FnOnce(&mut Pool) -> R) -> R {
        cache.count_trip(pin);
        let mut pool = self.pool.0.lock();
        let result = f(&mut pool);
        let low = pool.free() <= self.reserve;
        if low != self.exhausted() {
            // Relaxed: a hint, see `pressure`; written under the lock, so that the last writer is right.
            if low {
                self.pressure.0.fetch_or(LOW, Ordering::Relaxed);
            } else {
                self.pressure.0.fetch_and(!LOW, Ordering::Relaxed);
            }
        }
        result
    }

    fn cache(&self, pin: &Pinned<'_>) -> &'static Cache {
        &self.caches[pin.cpu().index()]
    }

    fn frame(&self, at: usize) -> Frame {
        match Frame::new(self.first.number() + at as u64) {
            Some(frame) => frame,
            None => unreachable!("the tables end with the last frame"),
        }
    }

    /// The number of one of our frames; panics, here or at the first use, on any other.
    fn index(&self, frame: Frame) -> usize {
        frame.number().wrapping_sub(self.first.number()) as usize
    }
}

/// Zero a page, where the machine has no better way.
///
/// # Safety
/// `at` is a whole page that may be written, and nobody else uses it.
unsafe fn zero_page(at: *mut u8) {
    // SAFETY: the caller's.
    unsafe { at.write_bytes(0, PAGE_BYTES) }
}

impl fmt::Debug for Frames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stats().fmt(f)
    }
}

//! All memory of the machine: the allocator, shares, and the counts put together.

use core::{
    cell::UnsafeCell,
    fmt,
    ops::Range,
    sync::atomic::{AtomicI64, AtomicU8, AtomicU32, AtomicU64, Ordering},
};

use addr::{DirectMap, Frame};
use frames::{AllocError, Class, Clear, Config, Ctx, Fill, FrameRange, Frames, MAX_ORDER, Req, Run};
use percpu::Pinned;
use sync::mutant;

use crate::{OwnedFrame, OwnedRun, Use, marks::Marks};

/// A value on cache lines of its own.
#[repr(align(128))]
struct Lines<T>(T);

/// Frames taken less frames given back on one CPU, by use. Only the CPU itself writes here, with plain loads and stores.
#[repr(align(128))]
struct Counts([AtomicI64; Use::COUNT]);

// Relaxed: each word is written by one CPU, and threads on that CPU follow each other by way of its scheduler, which orders
// them; readers on other CPUs want a number and read nothing through it.
const OWN: Ordering = Ordering::Relaxed;

/// All frames of the machine, and who owns them.
pub struct Memory {
    frames: Frames<'static>,
    /// The frame with index 0 in the tables here.
    first: Frame,
    sharers: &'static [AtomicU32],
    marks: Marks,
    counts: &'static [Counts],
    /// What makes allocation more than asking the allocator: [`FAILING`], [`STRAINED`]. Every call reads it, so it has its
    /// own line, and is written only when it changes.
    flags: Lines<AtomicU8>,
    /// How many allocations it is to the one that must fail; counts only while [`FAILING`] is set.
    countdown: Lines<AtomicU64>,
    /// What hands out frames instead of the allocator, while [`CENTRAL`] is set: written once before.
    central: Once,
    /// Who is told of every run that nobody owns any more, before anybody else can have it.
    #[cfg(feature = "testing")]
    watcher: std::sync::OnceLock<Watcher>,
    /// Who is told before a frame is looked for.
    #[cfg(feature = "testing")]
    asked: std::sync::OnceLock<AskWatcher>,
}

/// See [`Memory::watch_asking`].
#[cfg(feature = "testing")]
pub type AskWatcher = std::boxed::Box<dyn Fn(Use) + Send + Sync>;

/// See [`Memory::watch`].
#[cfg(feature = "testing")]
pub type Watcher = std::boxed::Box<dyn Fn(Frame, u32, Use) + Send + Sync>;

/// A value that is written once, before a flag says that it is there.
struct Once(UnsafeCell<Option<&'static dyn Central>>);
// SAFETY: written before there is another CPU (`Memory::centralise`), and only read afterwards.
unsafe impl Sync for Once {}

/// One allocator for all CPUs: what theirs are measured against.
pub trait Central: Sync {
    /// 2^`order` frames, the first a multiple of that, if `floor` frames are left then.
    fn alloc(&self, pin: &Pinned<'_>, order: u32, floor: u64) -> Option<Frame>;
    /// Give them back.
    fn free(&self, pin: &Pinned<'_>, first: Frame, order: u32);
    /// How many are free.
    fn free_frames(&self) -> u64;
}

/// An allocation is to fail, see [`Memory::fail_nth`].
const FAILING: u8 = 1;
/// Frames come from one allocator for all, see [`Memory::centralise`].
const CENTRAL: u8 = 4;
/// The kernel has taken its share, see [`Memory::set_strained`].
const STRAINED: u8 = 2;

/// In the count of a frame's other shares: it was lent, see [`Memory::lend`].
const WAS_LENT: u32 = 1 << 31;

/// How many frames are where. The sums are exact while nobody allocates or frees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stats {
    /// All frames.
    pub total: u64,
    /// Frames that the allocator has: the counts of its blocks.
    pub free: u64,
    /// Frames that CPUs keep at hand.
    pub cached: u64,
    /// Frames with owners, by [`Use`]: what allocation and freeing counted here. A shared frame counts once.
    pub owned: [u64; Use::COUNT],
    /// Frames that users can't have.
    pub reserve: u64,
}

impl Memory {
    /// Bytes of buffer that [`Self::new`] needs: of the allocator, and beside it 4 bytes a frame (5 in debug builds)
    /// between the lowest and the highest.
    pub fn meta_bytes(cfg: &Config<'_, '_>) -> usize {
        let (_, span) = span(cfg.ranges);
        Frames::meta_bytes(cfg) + cfg.cpus * size_of::<Counts>() + span * (4 + usize::from(Marks::KEPT)) + 512
    }

    /// The frames of `cfg`, all free. Panics if `meta` is shorter than [`Self::meta_bytes`] or ranges overlap.
    ///
    /// # Safety
    /// `meta` is zeroed. The frames are usable memory that `clear` reaches and that nobody else uses from now on; `meta`
    /// does not lie in them.
    pub unsafe fn new(cfg: &Config<'_, 'static>, meta: &'static mut [u8], clear: Clear) -> Self {
        let (first, span) = span(cfg.ranges);
        let mut rest = meta;
        // SAFETY: all are made of atomic integers, for which zero is a value, and the buffer is zeroed.
        let (counts, sharers, marks) = unsafe {
            (
                cut(&mut rest, cfg.cpus),
                cut(&mut rest, span),
                cut(&mut rest, if Marks::KEPT { span } else { 0 }),
            )
        };
        Self {
            // SAFETY: the caller's promise.
            frames: unsafe { Frames::new(cfg, rest, clear) },
            first,
            sharers,
            marks: Marks(marks),
            counts,
            flags: Lines(AtomicU8::new(0)),
            countdown: Lines(AtomicU64::new(0)),
            central: Once(UnsafeCell::new(None)),
            #[cfg(feature = "testing")]
            watcher: std::sync::OnceLock::new(),
            #[cfg(feature = "testing")]
            asked: std::sync::OnceLock::new(),
        }
    }

    /// Call `watcher` with the first frame, the order and the last use of each run that is given back, while it still is
    /// the caller's alone. To be called once at most.
    #[cfg(feature = "testing")]
    pub fn watch(&self, watcher: Watcher) {
        assert!(self.watcher.set(watcher).is_ok(), "there is a watcher");
    }

    /// Call `watcher` with the use for which frames are asked for, by who asks, before they are looked for: what others do
    /// meanwhile comes between two steps of who asks. To be called once at most.
    #[cfg(feature = "testing")]
    pub fn watch_asking(&self, watcher: AskWatcher) {
        assert!(self.asked.set(watcher).is_ok(), "there is a watcher");
    }

    /// Whether `frame` is owned by `usage`; always so if it isn't kept who owns what.
    #[cfg(feature = "testing")]
    pub fn is_owned_by(&self, frame: Frame, usage: Use) -> bool {
        !Marks::KEPT || self.marks.is(self.index(frame), usage)
    }

    /// From now on `central`, which has none yet, hands out all frames: those that are free now, and those that are given
    /// back. For comparisons; nodes, classes and algorithms mean nothing then.
    ///
    /// # Safety
    /// No other CPU uses this value yet.
    pub unsafe fn centralise(&self, pin: &Pinned<'_>, central: &'static dyn Central) {
        for order in [frames::HUGE_ORDER, 6, 3, 0] {
            let req = Req { ctx: Ctx::Reserve, ..Req::order(order) };
            while let Ok(run) = self.frames.alloc(pin, req) {
                let (first, order) = run.into_raw();
                central.free(pin, first, order);
            }
        }
        // SAFETY: nobody else reads it yet, by the caller's promise.
        unsafe { *self.central.0.get() = Some(central) };
        self.flags.0.fetch_or(CENTRAL, Ordering::Relaxed);
    }

    /// What hands out frames instead of the allocator, if anything does.
    fn central(&self) -> Option<&'static dyn Central> {
        if self.flags() & CENTRAL == 0 {
            return None;
        }
        // SAFETY: written before the flag was, and never again.
        unsafe { *self.central.0.get() }
    }

    /// The allocator beneath.
    pub fn allocator(&self) -> &Frames<'static> {
        &self.frames
    }

    /// How to reach a frame's bytes.
    pub fn dm(&self) -> DirectMap {
        self.frames.clear().dm
    }

    /// A frame with one owner, its bytes unspecified. `None` if there is none within reach, or only what `usage` may not
    /// have.
    #[inline]
    pub fn alloc(&self, pin: &Pinned<'_>, usage: Use) -> Option<OwnedFrame> {
        self.alloc_by(pin, usage, usage.req()).ok()
    }

    /// As [`Self::alloc`], with all bytes zero.
    #[inline]
    pub fn alloc_zeroed(&self, pin: &Pinned<'_>, usage: Use) -> Option<OwnedFrame> {
        self.alloc_by(pin, usage, Req { fill: Fill::Zeroed, ..usage.req() }).ok()
    }

    /// A frame with one owner, as `req`, of order 0, asks.
    ///
    /// Errors: as [`Frames::alloc`].
    #[inline]
    pub fn alloc_by(&self, pin: &Pinned<'_>, usage: Use, req: Req) -> Result<OwnedFrame, AllocError> {
        debug_assert_eq!(req.order, 0);
        let run = self.take(pin, usage, req)?;
        // SAFETY: the frame was free, so we make its first share; it is `usage`'s from here on.
        Ok(unsafe { OwnedFrame::from_raw(run.into_raw().0, usage) })
    }

    /// 2^`order` adjacent frames, the first a multiple of that, their bytes unspecified; `order` in
    /// 0..=[`MAX_ORDER`]. `None` if there is no such run within reach, or `usage` may not have it.
    pub fn alloc_run(&self, pin: &Pinned<'_>, order: u32, usage: Use) -> Option<OwnedRun> {
        if order > MAX_ORDER {
            return None;
        }
        let run = self.take(pin, usage, Req { order, ..usage.req() }).ok()?;
        // SAFETY: the frames were free, so the run is ours, of this order and for this use.
        Some(unsafe { OwnedRun::from_raw(run.into_raw().0, order, usage) })
    }

    /// A run for `usage`, counted and marked.
    #[inline]
    fn take(&self, pin: &Pinned<'_>, usage: Use, req: Req) -> Result<Run, AllocError> {
        #[cfg(feature = "testing")]
        self.asked.get().inspect(|watcher| watcher(usage));
        if self.flags() & FAILING != 0 && self.must_fail() {
            return Err(AllocError::Short { node: frames::Node::FIRST, need: 1 << req.order });
        }
        let run = match self.central() {
            None => self.frames.alloc(pin, req)?,
            Some(central) => self.take_central(pin, central, req)?,
        };
        if Marks::KEPT {
            let zeroed = req.fill == Fill::Zeroed;
            let first = self.index(run.first());
            for at in first..first + (1 << req.order) {
                self.marks.hand_out(at, self.frame(at), usage, zeroed, self.dm());
            }
        }
        self.count(pin, usage, 1 << req.order);
        Ok(run)
    }

    #[cold]
    fn take_central(&self, pin: &Pinned<'_>, central: &dyn Central, req: Req) -> Result<Run, AllocError> {
        let short = AllocError::Short { node: frames::Node::FIRST, need: 1 << req.order };
        let first = central.alloc(pin, req.order, self.floor(req.ctx)).ok_or(short)?;
        // SAFETY: the frames were free, and are the caller's.
        let run = unsafe { Run::from_raw(first, req.order) };
        if req.fill == Fill::Zeroed {
            let first = run.first().number();
            (first..first + run.frames())
                .filter_map(Frame::new)
                .for_each(|frame| self.frames.clear().now(frame));
        }
        Ok(run)
    }

    /// The frames that `ctx` may not touch, of all nodes together.
    fn floor(&self, ctx: Ctx) -> u64 {
        let min =
            self.frames.topology().all().iter().map(|node| self.frames.watermarks(node).min).sum::<u64>();
        match ctx {
            Ctx::Normal => min,
            Ctx::Atomic => min / 2,
            Ctx::Reserve => 0,
        }
    }

    /// Give a run back.
    pub fn free_run(&self, pin: &Pinned<'_>, run: OwnedRun) {
        let (order, usage) = (run.order(), run.usage());
        self.give(pin, usage, run.into_raw(), order);
    }

    fn give(&self, pin: &Pinned<'_>, usage: Use, first: Frame, order: u32) {
        #[cfg(feature = "testing")]
        if let Some(watcher) = self.watcher.get() {
            watcher(first, order, usage);
        }
        if Marks::KEPT {
            let at = self.index(first);
            (at..at + (1 << order)).for_each(|at| self.marks.take_back(at, self.frame(at), usage, self.dm()));
        }
        self.count(pin, usage, -(1 << order));
        if let Some(central) = self.central() {
            return central.free(pin, first, order);
        }
        // SAFETY: the caller had the frames, in a run of this order.
        let result = self.frames.free(pin, unsafe { Run::from_raw(first, order) });
        debug_assert_eq!(result, Ok(()), "the error names the frame");
    }

    /// Take the frames of `range` out of the allocator, without touching their bytes: for what lay in them before it
    /// did. Each then has one share, which the caller takes up by [`OwnedFrame::from_raw`]. The answer is
    /// false, and nothing changes, if one of them is not there. While the machine is being set up.
    pub fn claim(&self, pin: &Pinned<'_>, range: FrameRange, usage: Use) -> bool {
        if !self.frames.claim(pin, range) {
            return false;
        }
        for frame in (range.start.number()..range.end.number()).filter_map(Frame::new) {
            self.marks.hand_out(self.index(frame), frame, usage, false, self.dm());
        }
        self.count(pin, usage, range.frames() as i64);
        true
    }

    /// Give up one share; the frame is free again when it was the last. What was lent just ends.
    #[inline]
    pub fn free(&self, pin: &Pinned<'_>, owned: OwnedFrame) {
        let usage = owned.usage();
        let frame = owned.into_raw();
        if usage == Use::Lent {
            return;
        }
        let at = self.index(frame);
        self.marks.expect(at, frame, usage);
        if self.give_up_share(at, usage) {
            self.give(pin, usage, frame, 0);
        }
    }

    /// One more share of a frame that the caller has a share of.
    pub fn share(&self, owned: &OwnedFrame) -> OwnedFrame {
        // SAFETY: the caller has a share, and knows the use.
        unsafe { self.share_raw(owned.frame(), owned.usage()) }
    }

    /// A frame of a file for a user who gives it up before `owned`, and all other shares that there are now, are given up:
    /// who lends sees to that.
    pub fn lend(&self, owned: &OwnedFrame) -> OwnedFrame {
        debug_assert_eq!(owned.usage(), Use::File);
        let frame = owned.frame();
        let sharers = &self.sharers[self.index(frame)];
        // Relaxed, both: the mark stays as long as the caller's share, by whose order the frame was made known to the caller, and
        // goes with the last share. Written once, so that the line stays with everybody.
        if sharers.load(Ordering::Relaxed) & WAS_LENT == 0 && !mutant!("owned-lent-unmarked") {
            sharers.fetch_or(WAS_LENT, Ordering::Relaxed);
        }
        // SAFETY: it is no share.
        unsafe { OwnedFrame::from_raw(frame, Use::Lent) }
    }

    /// One more share of `frame`, or, if that is for what was lent, no share either.
    ///
    /// # Safety
    /// Somebody has a share and keeps it during the call (say, it is in a page table that the caller has locked), and
    /// the frame was allocated for `usage`, or is lent.
    pub unsafe fn share_raw(&self, frame: Frame, usage: Use) -> OwnedFrame {
        if usage == Use::Lent {
            // SAFETY: the caller's promise.
            return unsafe { OwnedFrame::from_raw(frame, usage) };
        }
        let at = self.index(frame);
        self.marks.expect(at, frame, usage);
        // Relaxed: the new share comes from an old one, by whatever order the holder has it; giving shares up is what
        // needs order. It can't overflow: each share is a word in memory, and 2^32 of them would be 32 GiB of page
        // tables for one frame.
        self.sharers[at].fetch_add(1, Ordering::Relaxed);
        // SAFETY: the share was just counted.
        unsafe { OwnedFrame::from_raw(frame, usage) }
    }

    /// Whether `frame` has more than one share, or was lent. If the caller has one and the answer is no, it stays no until the
    /// caller makes another, and what other owners did to the frame has been done.
    pub fn is_shared(&self, frame: Frame) -> bool {
        // Acquire: the other owners' use of the frame comes before; partner of the exchanges in `give_up_share`.
        self.sharers[self.index(frame)].load(Ordering::Acquire) != 0
    }

    /// How many shares `frame` has beside one, without what was lent; a report, which may be out of date.
    pub fn sharers(&self, frame: Frame) -> u64 {
        // Relaxed: nothing follows from it.
        let sharers = self.sharers[self.index(frame)].load(Ordering::Relaxed);
        // Less than none while the last share is given up.
        u64::from(sharers.wrapping_add(1) & !WAS_LENT).saturating_sub(1)
    }

    /// Whether memory is short: only the reserve is left, so that the user's allocations fail, or the kernel is
    /// [strained](Self::set_strained). Who is asked for something that needs a record refuses then.
    #[inline]
    pub fn low(&self) -> bool {
        self.flags() & STRAINED != 0 || self.exhausted()
    }

    /// Whether only the reserve is left.
    #[inline]
    pub fn exhausted(&self) -> bool {
        match self.central() {
            None => self.frames.is_exhausted(),
            Some(central) => central.free_frames() <= self.floor(Ctx::Normal),
        }
    }

    /// Say whether the kernel's own records have grown to all that they may take. It keeps what it has taken, so without
    /// this limit a program that makes it keep many records would leave no memory to anybody when it has gone.
    pub fn set_strained(&self, strained: bool) {
        // Relaxed, both: a hint, see `flags`.
        if strained {
            self.flags.0.fetch_or(STRAINED, Ordering::Relaxed);
        } else {
            self.flags.0.fetch_and(!STRAINED, Ordering::Relaxed);
        }
    }

    /// Let the `n`-th allocation from now on, of a frame or a run and by anyone, fail as if there were no memory; one
    /// only. 0 takes that back. For tests of what callers do then; costs nothing while it isn't used.
    pub fn fail_nth(&self, n: u64) {
        // Relaxed, all: the flag only sends callers to the counter; a call at the same time is early or late.
        self.countdown.0.store(n, Ordering::Relaxed);
        if n > 0 {
            self.flags.0.fetch_or(FAILING, Ordering::Relaxed);
        } else {
            self.flags.0.fetch_and(!FAILING, Ordering::Relaxed);
        }
    }

    /// How many allocations it is to the one that [`Self::fail_nth`] asked for; 0 when it has failed.
    pub fn until_failure(&self) -> u64 {
        // Relaxed: see `fail_nth`.
        self.countdown.0.load(Ordering::Relaxed)
    }

    /// Give all that this CPU keeps at hand back to the allocator.
    pub fn drain(&self, pin: &Pinned<'_>) {
        self.frames.drain(pin);
    }

    /// Call `f` with the name, the addresses and the bytes of each CPU's part (0 if it isn't divided) of each table: for
    /// reports that name memory.
    pub fn places(&self, f: &mut dyn FnMut(&'static str, Range<usize>, usize)) {
        fn span<T: ?Sized>(value: &T) -> Range<usize> {
            let start = core::ptr::from_ref(value).addr();
            start..start + size_of_val(value)
        }
        f("memory: sharers", span(self.sharers), 0);
        f("memory: counts by use", span(self.counts), size_of::<Counts>());
        f("memory: flags", span(&self.flags), 0);
        self.frames.places(f);
    }

    /// The frames from the lowest to the highest, holes among them.
    pub fn span(&self) -> FrameRange {
        let end = Frame::new(self.first.number() + self.sharers.len() as u64).unwrap_or(self.first);
        FrameRange { start: self.first, end }
    }

    /// Number of all frames in service.
    pub fn total(&self) -> u64 {
        self.frames.topology().all().iter().map(|node| self.frames.node_stats(node).0).sum()
    }

    /// How many frames are where.
    pub fn stats(&self) -> Stats {
        let s = self.frames.stats();
        let sum = |usage: Use| self.counts.iter().map(|c| c.0[usage as usize].load(OWN)).sum::<i64>();
        let reserve = self.floor(Ctx::Normal);
        Stats {
            total: s.total,
            free: s.free + self.central().map_or(0, Central::free_frames),
            cached: s.cached,
            // While frames move between CPUs a sum may be read as negative for a moment.
            owned: Use::ALL.map(|usage| u64::try_from(sum(usage)).unwrap_or(0)),
            reserve,
        }
    }

    /// Give up a share of frame number `at`; whether it was the last.
    #[inline]
    fn give_up_share(&self, at: usize, usage: Use) -> bool {
        let sharers = &self.sharers[at];
        let last = if mutant!("owned-early-free") { 1 } else { 0 };
        // Pages of files mostly have other owners: the file, and who reads it on other CPUs. The count's line comes once for an
        // exchange, but twice for a look and an exchange.
        if usage == Use::File {
            // Release and Acquire: as below, of one exchange with another.
            let seen = sharers.fetch_sub(1, Ordering::AcqRel) & !WAS_LENT;
            if seen <= last {
                // Relaxed: nobody else has a share, so nobody else counts. Reports may have seen one less than none.
                sharers.store(0, Ordering::Relaxed);
            }
            return seen <= last;
        }
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
    fn flags(&self) -> u8 {
        // Relaxed: a hint.
        self.flags.0.load(Ordering::Relaxed)
    }

    /// Count one allocation down; whether it is the one to fail.
    #[cold]
    fn must_fail(&self) -> bool {
        // Relaxed: see `fail_nth`.
        let counted = self.countdown.0.try_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        let last = counted == Ok(1);
        if last {
            self.flags.0.fetch_and(!FAILING, Ordering::Relaxed);
        }
        last
    }

    #[inline]
    fn count(&self, pin: &Pinned<'_>, usage: Use, n: i64) {
        let word = &self.counts[pin.cpu().index()].0[usage as usize];
        word.store(word.load(OWN) + n, OWN);
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

impl Use {
    /// One frame for this use.
    ///
    /// Page tables and stacks stop half-way into the reserve, since programs can make many of them without a frame of
    /// their own; the rest is for the kernel's heap, which has to answer while it refuses and ends whoever took so much.
    pub const fn req(self) -> Req {
        let (class, ctx) = match self {
            Use::Anonymous | Use::File | Use::Lent => (Class::Movable, Ctx::Normal),
            Use::PageTable | Use::Stack => (Class::Unmovable, Ctx::Atomic),
            Use::Kernel => (Class::Unmovable, Ctx::Reserve),
        };
        Req { class, ctx, ..Req::order(0) }
    }
}

/// The lowest frame, and how many there are from it to the highest.
fn span(ranges: &[FrameRange]) -> (Frame, usize) {
    let used = || ranges.iter().filter(|r| r.start < r.end);
    let first = used().map(|r| r.start).min().unwrap_or_default();
    let end = used().map(|r| r.end).max().unwrap_or_default();
    (first, end.number().saturating_sub(first.number()) as usize)
}

/// The next `n` values off the front of a buffer.
///
/// # Safety
/// The buffer is zeroed, and zero is a value of `T`.
unsafe fn cut<T>(rest: &mut &'static mut [u8], n: usize) -> &'static [T] {
    let buffer = core::mem::take(rest);
    let skip = buffer.as_ptr().align_offset(align_of::<T>());
    let (table, after) = buffer.split_at_mut(skip + n * size_of::<T>());
    *rest = after;
    // SAFETY: the bytes are ours for ever, aligned by `skip`, long enough, and hold values by the caller's promise.
    unsafe { core::slice::from_raw_parts(table[skip..].as_ptr().cast(), n) }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stats().fmt(f)
    }
}

//! How much an address space holds: counted by each CPU on lines of its own.
//!
//! **Claim.** Who has no limits writes nothing that another CPU reads. Limits are exact: at no time have calls been let in
//! that together exceed one, and none is refused that would have fitted at some time during the call.
//!
//! **Idea.** The true total is the sum over the CPUs. Callers without limits add to their own part. A caller whose
//! limits could bind takes a lock, sums up, compares, and adds to its own part before it lets go; so of two such callers
//! one sees the other's. What callers without limits add at the same time is before or after that, as one likes: they are
//! always let in. Calls that make the total smaller need no lock either: who is refused meanwhile came before.
//! Limits are a process's, so either all of its calls take the lock or none: a process that has a limit on memory, or locks
//! memory, pays with one line for each call that maps.
//!
//! **The most there ever was** is the largest sum that somebody has seen. A sum is largest just before a part becomes smaller, or
//! now; so whoever is to make a part smaller looks first, if any part has grown since somebody looked, and so does whoever asks:
//!
//! ```text
//! grow:    part += n;  if part >= seen + STEP:  seen = part;  fence [T1];  if !grown: grown = true
//! shrink:  if grown:  look;  grown = false;  fence [T1];  look;      then part -= n
//! ```
//! The first look is for who shrinks at the same time and finds nothing to do; the second for what has grown since the first.
//! Threads that only get more memory share `grown`, which they read; and so do those that map and unmap the same again and again,
//! whose parts are never larger than they were. By the fences either the growing part is in the sum, or the one who grows finds
//! that it has to say so again. The figure is too small by fewer than [`STEP`] for each CPU; and, as a part is not said to grow that
//! only gets back what it had before, by what such parts have in common.

use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering, fence};

use percpu::{Line, PerCpu, Pinned};
use sync::{SpinLock, mutant};

use crate::{Error, Limits, Mapping, Totals};

/// Pages by which a CPU's part has to become larger than it ever was before that is said.
const STEP: i64 = 32;

const PAGES: usize = 0;
const RESIDENT: usize = 6;
const COUNTS: usize = 7;

/// One CPU's part: counts, which may be negative, and how large two of them were when it last said that they grow.
#[derive(Default)]
struct Part {
    counts: [AtomicI64; COUNTS],
    seen: [AtomicI64; 2],
}

pub(crate) struct Counts {
    parts: PerCpu<Part>,
    limiting: Line<SpinLock<()>>,
    /// On lines of their own, since faults read what is beside them.
    peaks: Line<Peaks>,
}

#[derive(Default)]
struct Peaks {
    /// The most pages, and the most that had a frame.
    most: [AtomicU64; 2],
    /// Whether a part has grown since somebody looked. Read by all, so written only to change it.
    grown: AtomicBool,
}

// Relaxed, all of this module: a CPU's part is written by who is pinned to it; what calls have returned before is seen by
// who was told so; and `limiting` orders those who compare.
const OWN: Ordering = Ordering::Relaxed;

/// What pages count as: a bit for each of [`Totals::kinds`].
#[derive(Clone, Copy)]
pub(super) struct Kinds(u8);

impl Kinds {
    pub(super) const LOCKED: Self = Self(1 << 4);

    pub(super) fn of(mapping: &Mapping) -> Self {
        let kinds = Totals::kinds(mapping).into_iter().enumerate();
        Self(kinds.fold(0, |bits, (i, counted)| bits | u8::from(counted) << i))
    }
}

/// How much an operation adds and takes away: by kind, and pages that have a frame.
#[derive(Clone, Copy, Default)]
pub(crate) struct Difference {
    counts: [i64; COUNTS],
    /// Which of them were touched.
    touched: u8,
}

impl Difference {
    /// `pages` pages more of `mapping`.
    pub(super) fn more(mapping: &Mapping, pages: u64) -> Self {
        let mut all = Self::default();
        all.add(Kinds::of(mapping), pages as i64);
        all
    }
    /// `pages` pages more that count as `kinds`; fewer, if negative.
    #[inline]
    pub(super) fn add(&mut self, kinds: Kinds, pages: i64) {
        self.touched |= kinds.0;
        each(kinds.0, |i| self.counts[i] += pages);
    }
    /// `pages` pages more have a frame.
    #[inline]
    pub(crate) fn resident(&mut self, pages: i64) {
        self.touched |= 1 << RESIDENT;
        self.counts[RESIDENT] += pages;
    }
    /// What takes it back.
    pub(super) fn undone(&self) -> Self {
        Self { counts: self.counts.map(|count| -count), ..*self }
    }
}

/// Call `f` with the numbers of the bits.
#[inline]
fn each(mut bits: u8, mut f: impl FnMut(usize)) {
    while bits != 0 {
        f(bits.trailing_zeros() as usize % COUNTS);
        bits &= bits - 1;
    }
}

/// Whether [`Limits::admit`] may say no to pages of `mapping`.
pub(super) fn binds(limits: &Limits, mapping: &Mapping) -> bool {
    let locked = mapping.flags.contains(crate::Flags::LOCKED) && limits.locked < u64::MAX;
    locked || limits.pages < u64::MAX || mapping.is_data() && limits.data < u64::MAX
}

impl Counts {
    pub(crate) fn new(cpus: usize) -> Self {
        Self {
            parts: PerCpu::new(cpus, |_| Part::default()),
            limiting: Line(SpinLock::new(())),
            peaks: Line::default(),
        }
    }
    #[inline]
    pub(crate) fn add(&self, change: &Difference, pin: &Pinned<'_>) {
        if change.counts[PAGES].min(change.counts[RESIDENT]) < 0 && self.peaks.0.grown.load(OWN) {
            self.look_before();
        }
        let part = self.parts.get(pin);
        each(change.touched, |i| part.counts[i].store(part.counts[i].load(OWN) + change.counts[i], OWN));
        for (seen, count) in part.seen.iter().zip([PAGES, RESIDENT]) {
            let now = part.counts[count].load(OWN);
            if now >= seen.load(OWN) + STEP {
                self.grown(seen, now);
            }
        }
    }
    /// One page more has a frame.
    #[inline]
    pub(crate) fn one_resident(&self, pin: &Pinned<'_>) {
        let part = self.parts.get(pin);
        let (count, seen) = (&part.counts[RESIDENT], &part.seen[1]);
        let now = count.load(OWN) + 1;
        count.store(now, OWN);
        if now >= seen.load(OWN) + STEP {
            self.grown(seen, now);
        }
    }
    /// A part, which the caller has changed, is larger than ever.
    #[cold]
    fn grown(&self, seen: &AtomicI64, now: i64) {
        seen.store(now, OWN);
        // SeqCst [T1]: the part before the flag; partner: the fence in `look_before`.
        fence(Ordering::SeqCst);
        let grown = &self.peaks.0.grown;
        if !grown.load(OWN) {
            grown.store(true, OWN);
        }
    }
    /// Some part has grown, and the caller is to make one smaller.
    #[cold]
    fn look_before(&self) {
        if mutant!("peak-unseen") {
            return;
        }
        self.look();
        self.peaks.0.grown.store(false, OWN);
        // SeqCst [T1]: the flag before the parts; partner: the fence in `grown`.
        fence(Ordering::SeqCst);
        self.look();
    }
    /// Add to the totals what is `more`, if `admit` agrees to what they are. Nobody else for whom limits may `bind` comes
    /// between.
    pub(super) fn charge(
        &self,
        bind: bool,
        more: &Difference,
        pin: &Pinned<'_>,
        admit: impl FnOnce(&Totals) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let _one = bind.then(|| self.limiting.0.lock());
        if bind {
            admit(&self.look().0)?;
        }
        self.add(more, pin);
        Ok(())
    }
    /// The totals, and how many pages have a frame; of which the largest are kept.
    pub(crate) fn look(&self) -> (Totals, u64) {
        let mut sums = [0; COUNTS];
        for part in self.parts.iter() {
            sums.iter_mut().zip(&part.counts).for_each(|(sum, count)| *sum += count.load(OWN));
        }
        // Parts are read one after the other, so a sum may be off while others change them; never below zero for long.
        let [pages, data, stack, code, locked, shared, resident] = sums.map(|sum| sum.max(0) as u64);
        let [peak, _] = &self.peaks.0.most;
        for (most, now) in self.peaks.0.most.iter().zip([pages, resident]) {
            // Not written unless it must be: whoever makes a part smaller reads this line.
            if most.load(OWN) < now {
                most.fetch_max(now, OWN);
            }
        }
        (Totals { pages, peak: peak.load(OWN), data, stack, code, locked, shared }, resident)
    }
    /// The most pages that had a frame.
    pub(crate) fn peak_resident(&self) -> u64 {
        self.look();
        self.peaks.0.most[1].load(OWN)
    }
}

//! What the holder of a range does with it: look, change slot by slot, replace all of it, and unlock.
//!
//! **Folding.** Where a range that is replaced by one value covers all slots of a node, the value goes to the node's place
//! in its parent instead, and the node goes away; deepest first, as far up as it goes. The guard has all locks in the
//! node, and so has the node's keys to itself. It takes the link for itself as a freezer does (FROZEN and LOCK, in
//! one swap), so that from here on nobody else changes that word; if a freezer was first, the node stays as it is. Then
//! the node's weak word is taken away, so that Refcache leaves the word alone; value and LOCK are stored in the link's
//! place; all slots become DEAD, which sends those who wait for them or look them up back to the root; and the references
//! of slots and hold are given up. The memory goes when Refcache finds that others have dropped their holds, and
//! after a grace period.
//!
//! A lookup that is in the node reads what was there before, or DEAD. It had come by the link, so what it reads was there
//! at a moment after it had begun.
//!
//! Where a range becomes EMPTY its nodes stay, for the next who maps there, and collapse if nobody does (`node`).

use core::{fmt, ops::Range};

use percpu::Pinned;
use sync::{
    mutant,
    primitive::{AtomicU32, AtomicU64, Ordering},
};

use crate::{
    freeze,
    node::At,
    record::{Record, Records},
    space::{Refs, Shape, Space},
    word::{self, EMPTY, FROZEN, LINK, LOCK},
};

/// A range that is locked; dropping it unlocks. See [`Tree::lock_range`](crate::Tree::lock_range).
#[must_use = "the range is unlocked as soon as the guard is dropped"]
pub struct RangeGuard<'g, S: Space> {
    pub(crate) space: &'g S,
    pub(crate) pin: &'g Pinned<'g>,
    pub(crate) keys: Range<u64>,
    pub(crate) records: Records<'g, S>,
    pub(crate) gate: Gate<'g>,
}

/// What a guard has to do with its tree's gate: see `lock`.
#[derive(Clone, Copy)]
pub(crate) enum Gate<'g> {
    /// It has a slot already.
    Passed,
    /// It has to find it open when it has its first slot.
    Before(&'g AtomicU32),
    /// It has closed it.
    Closed(&'g AtomicU32),
}

impl<'g> Gate<'g> {
    /// The gate that is to be found open.
    pub(crate) fn before(self) -> Option<&'g AtomicU32> {
        if let Self::Before(closed) = self { Some(closed) } else { None }
    }
}

/// A slot that is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first key that the slot stands for.
    pub first: u64,
    /// How many keys it stands for: a power of two.
    pub keys: u64,
    /// Its value; 0 if it has none. Of no meaning if it is `frozen`.
    pub value: u64,
    /// Whether the slot's pages are in a frozen node, whose values are those that [`Tree::get`](crate::Tree::get) finds.
    pub frozen: bool,
}

/// What was taken out of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The value.
    pub value: u64,
    /// The first key that it stood for.
    pub first: u64,
    /// For how many keys.
    pub keys: u64,
    /// Whether what the value owns is the taker's now. Otherwise other trees have the same slot.
    pub owned: bool,
    /// Whether it was in a frozen node.
    pub frozen: bool,
    /// Whether it was taken before, without being owned, and those others have given it up meanwhile.
    pub again: bool,
}

impl<'g, S: Space> RangeGuard<'g, S> {
    pub(crate) fn new(space: &'g S, pin: &'g Pinned<'g>, keys: Range<u64>) -> Self {
        Self { space, pin, keys, records: Records::new(), gate: Gate::Passed }
    }
    /// The keys that were asked for.
    pub fn keys(&self) -> Range<u64> {
        self.keys.clone()
    }
    /// The CPU that the guard is on.
    pub fn pin(&self) -> &'g Pinned<'g> {
        self.pin
    }
    /// The slots, in ascending order. The first and the last may stick out of [`Self::keys`], by the guard's
    /// [`Mode`](crate::Mode).
    pub fn spans(&self) -> impl Iterator<Item = Span> + '_ {
        self.records.iter().flat_map(|record| {
            record.slots().map(move |(first, slot)| Span::of(first, record.span(), held(slot)))
        })
    }
    /// Whether `f` says so of all slots, in ascending order; it is asked no more once it has said no.
    #[inline]
    pub fn all(&self, mut f: impl FnMut(Span) -> bool) -> bool {
        (0..self.records.len()).all(|i| {
            let record = self.records.get(i);
            let span = record.span();
            record.slots().all(|(first, slot)| f(Span::of(first, span, held(slot))))
        })
    }
    /// Whether there may be a frozen slot.
    #[inline]
    pub fn may_have_frozen(&self) -> bool {
        (0..self.records.len()).any(|i| self.records.get(i).frozen)
    }
    /// The values, in ascending order: as [`Self::spans`], but in the place of a frozen slot what is in its node, as far as it
    /// is of [`Self::keys`].
    pub fn values(&self) -> impl Iterator<Item = Span> + '_ {
        self.records.iter().flat_map(move |record| {
            record.slots().flat_map(move |(first, slot)| {
                let (word, keys) = (held(slot), record.span());
                // SAFETY: the link is in a slot that this guard holds.
                let node = word::is_frozen(word).then(|| unsafe { At::<S>::of_link(word) });
                let (from, to) =
                    (self.keys.start.max(first) - first, self.keys.end.min(first + keys) - first);
                (if node.is_some() { from..to } else { 0..1 }).map(move |i| match node {
                    None => Span::of(first, keys, word),
                    Some(node) => {
                        Span { first: first + i, keys: 1, value: held(node.slot(i as usize)), frozen: true }
                    }
                })
            })
        })
    }
    /// What the node of [`Space::ANNEX_LEVEL`] has besides its slots that is on the way to the slot of `key`, which is locked:
    /// `None` if the slot is above that level, or isn't the guard's. The node stays in the tree as long as the guard.
    pub fn annex(&self, key: u64) -> Option<&S::Annex> {
        let has =
            |record: &Record<'g, S>| record.key(record.first()) <= key && key < record.key(record.end());
        let record = self.records.iter().find(has)?;
        let (mut at, mut link, level) = (record.at, record.link, S::ANNEX_LEVEL?);
        while at.level() > level {
            // SAFETY: the slot names the node, and is its parent's, which has it as a used slot.
            at = unsafe { at.parent(link?) };
            link = at.named_by();
        }
        at.annex()
    }
    /// Give each slot the value that `new` says, in ascending order. A slot that sticks out of the range keeps its value, as
    /// does a frozen one: panics otherwise, or if it is no value.
    pub fn update(&mut self, mut new: impl FnMut(Span) -> u64) {
        for record in self.records.iter() {
            let mut used = Used { at: record.at, n: 0, pin: self.pin };
            for (first, slot) in record.slots() {
                let old = held(slot);
                let span = Span::of(first, record.span(), old);
                let value = new(span);
                if value == span.value {
                    continue;
                }
                assert!(!span.frozen && self.covers(&span), "{span:?} is not for this guard to change");
                used.n += put(self.space, slot, old, value, self.pin);
            }
        }
    }
    fn covers(&self, span: &Span) -> bool {
        self.keys.start <= span.first && span.first + span.keys <= self.keys.end
    }
    /// Give all keys `value`, in as few slots as possible, or EMPTY. What was there goes to `taken`, in ascending order. A
    /// frozen slot's share goes at once, and the last tree to give up its own has what the node owned: so whatever this
    /// tree's users may still do by it has to be over before the call.
    /// Panics if a slot sticks out of the range and would have to change; a panic, also of `taken`, ends the program.
    pub fn replace(&mut self, value: u64, mut taken: impl FnMut(Taken)) {
        let (mut done, unwound) = (0usize, Unwound);
        for i in 0..self.records.len() {
            let mut record = *self.records.get(i);
            self.replace_run(&record, value, &mut taken);
            loop {
                // The same node's slots before these: one run.
                if let Some(before) = done.checked_sub(1).map(|last| *self.records.get(last))
                    && (before.at, before.end()) == (record.at, record.first())
                {
                    if before.held {
                        record.drop_hold(self.pin);
                        record.held = true;
                    }
                    record = record.of(before.first()..record.end());
                    done -= 1;
                }
                if value == EMPTY {
                    break;
                }
                let Some(above) = self.fold(&record, value) else { break };
                record = above;
            }
            *self.records.get_mut(done) = record;
            done += 1;
        }
        self.records.truncate(done);
        core::mem::forget(unwound);
    }
    fn replace_run(&self, record: &Record<'g, S>, value: u64, taken: &mut impl FnMut(Taken)) {
        let (mut used, keys) = (Used { at: record.at, n: 0, pin: self.pin }, record.span());
        for (first, slot) in record.slots() {
            let old = held(slot);
            if value == EMPTY && old == EMPTY {
                continue;
            }
            assert!(self.covers(&Span::of(first, keys, old)), "a slot sticks out of {:?}", self.keys);
            used.n += put(self.space, slot, old, S::part(value, first - self.keys.start), self.pin);
            if word::is_frozen(old) {
                // SAFETY: the link was in the slot.
                freeze::drop_share(unsafe { At::<S>::of_link(old) }, first, self.pin, taken);
            } else if old != EMPTY {
                taken(Taken { value: old, first, keys, owned: true, frozen: false, again: false });
            }
        }
    }
    /// Put the value into the place of a node that this guard has all of, and which has it in all slots. The record of that
    /// place; `None` if the node isn't all the guard's, is the root, or is being frozen.
    fn fold(&self, record: &Record<'g, S>, value: u64) -> Option<Record<'g, S>> {
        let link = record.link.filter(|_| record.is_whole())?;
        let folded = S::part(value, record.base - self.keys.start);
        let (at, fanout) = (record.at, record.len() as i32);
        if !seize(link, at) {
            return None;
        }
        // SAFETY: the node's slots are used, which are references. Nobody gets one by the link, which is frozen.
        unsafe { self.space.refs().set_weak(at.node(), None) };
        // Release: as in `put`.
        link.store(folded | LOCK, Ordering::Release);
        if !mutant!("radix-fold-not-dead") {
            at.die();
        }
        self.space.count(value, 1 - fanout, self.pin);
        // SAFETY: the references of the slots and the hold, which are given up.
        unsafe { at.add(-fanout - i32::from(record.held), self.pin) };
        // SAFETY: the slot has named the node until now, and its node has used slots.
        let above = unsafe { at.parent(link) };
        let base = Shape::<S>::base(above.level(), record.base);
        Some(Record::new(above, above.named_by(), base, at.index()..at.index() + 1))
    }
}

/// By how much the number of a node's used slots has changed, which it is told at the end, also if that is by a panic.
struct Used<'g, S: Space> {
    at: At<'g, S>,
    n: i32,
    pin: &'g Pinned<'g>,
}

impl<S: Space> Drop for Used<'_, S> {
    fn drop(&mut self) {
        // SAFETY: up: the guard has a hold, or found a used slot. Down: slots that were used, and the node isn't touched on
        // their account any more, but for unlocking, in this section.
        unsafe { self.at.add(self.n, self.pin) };
    }
}

/// Ends the program (a panic while panicking) if a range is left half replaced, as its records are not those of its locks.
struct Unwound;

impl Drop for Unwound {
    fn drop(&mut self) {
        panic!("a range was left half replaced");
    }
}

/// Store a value in a slot that is held and has `old`. Gives by how much the number of used slots changes.
#[inline]
pub(crate) fn put<S: Space>(space: &S, slot: &AtomicU64, old: u64, value: u64, pin: &Pinned<'_>) -> i32 {
    assert!(word::is_value(value), "{value:#x} is no value");
    // Release: what the value names was there before; partner: lookups, which take no lock.
    slot.store(value | LOCK, Ordering::Release);
    let counted = if old & LINK == 0 { old } else { EMPTY };
    space.recount(counted, value, pin);
    i32::from(value != EMPTY) - i32::from(old != EMPTY)
}

/// Let the next one have a slot that is held.
#[inline]
pub(crate) fn unlock(slot: &AtomicU64) {
    unlock_with(slot, held(slot));
}

/// The same, with another value.
#[inline]
pub(crate) fn unlock_with(slot: &AtomicU64, value: u64) {
    // Release: what this holder did comes before the next one's section, and what the value names was there before;
    // partners: `lock` in `lock`, and lookups, which take no lock.
    let order = if mutant!("radix-relaxed-unlock") { Ordering::Relaxed } else { Ordering::Release };
    slot.store(value, order);
}

/// The word of a slot that is held, without LOCK.
#[inline]
pub(crate) fn held(slot: &AtomicU64) -> u64 {
    // Relaxed: the holder alone changes it.
    slot.load(Ordering::Relaxed) & !LOCK
}

/// Make the link to a node this thread's alone, who alone may change the word then. False if it is somebody else's already,
/// or names another node by now.
pub(crate) fn seize<S: Space>(link: &AtomicU64, to: At<'_, S>) -> bool {
    let names = |seen| word::descends(seen) && refcache::word::object(seen) == to.pointer().as_ptr();
    // AcqRel, Acquire: in one order with Refcache's marks, and with whoever tries the same; partners: each other.
    let take = |seen| names(seen).then_some(seen | FROZEN | LOCK);
    link.fetch_update(Ordering::AcqRel, Ordering::Acquire, take).is_ok()
}

impl Span {
    #[inline]
    pub(crate) fn of(first: u64, keys: u64, word: u64) -> Self {
        let frozen = word::is_frozen(word);
        Self { first, keys, value: if frozen { EMPTY } else { word }, frozen }
    }
}

impl<S: Space> Drop for RangeGuard<'_, S> {
    fn drop(&mut self) {
        for record in self.records.iter() {
            record.slots().for_each(|(_, slot)| unlock(slot));
            record.drop_hold(self.pin);
        }
        if let Gate::Closed(closed) = self.gate {
            // Release: what this guard found EMPTY was that until here; partner: the load in `may_stay`.
            closed.fetch_sub(1, Ordering::Release);
        }
    }
}

impl<S: Space> fmt::Debug for RangeGuard<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RangeGuard").field("keys", &self.keys).finish_non_exhaustive()
    }
}

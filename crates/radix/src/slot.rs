//! The holder of one slot: what a page fault needs, without a list of what is locked.

use core::{fmt, ops::Range};

use percpu::Pinned;
use sync::{mutant, primitive::Ordering};

use crate::{
    freeze,
    guard::{RangeGuard, Span, held, put, unlock, unlock_with},
    lock::lock,
    node::At,
    record::Record,
    reserve::Reserve,
    space::{Error, Shape, Space},
    word,
};

/// A slot that is locked, and had a value when it was; dropping it unlocks. See [`Tree::lock_one`](crate::Tree::lock_one).
#[must_use = "the slot is unlocked as soon as the guard is dropped"]
pub struct SlotGuard<'g, S: Space> {
    pub(crate) space: &'g S,
    pub(crate) pin: &'g Pinned<'g>,
    /// Of one slot.
    pub(crate) record: Record<'g, S>,
}

impl<'g, S: Space> SlotGuard<'g, S> {
    /// The slot.
    #[inline]
    pub fn span(&self) -> Span {
        let (first, span) = (self.record.first(), self.record.span());
        Span::of(self.record.key(first), span, held(self.record.at.slot(first)))
    }
    /// The keys that it stands for.
    pub fn keys(&self) -> Range<u64> {
        let first = self.record.key(self.record.first());
        first..first + self.record.span()
    }
    /// What the slot's node has of `key`, if it is a frozen one; else 0.
    pub fn frozen(&self, key: u64) -> u64 {
        let slot = |leaf: At<'_, S>| held(leaf.slot(Shape::<S>::index(Shape::<S>::LEAF, key)));
        self.leaf().map_or(word::EMPTY, slot)
    }
    /// How many trees have the slot: more than one only if it is a frozen one. When it is one it stays so, until this
    /// tree is forked.
    pub fn trees(&self) -> u32 {
        self.leaf().map_or(1, freeze::trees)
    }
    /// The node that the slot links, if it is frozen.
    fn leaf(&self) -> Option<At<'g, S>> {
        let seen = held(self.record.at.slot(self.record.first()));
        // SAFETY: the link is in a slot that this guard holds.
        word::is_frozen(seen).then(|| unsafe { At::of_link(seen) })
    }
    /// Lock the slot of `key`, another page's in the same node, if it is there, nobody has it, and it has a value that is
    /// `wanted`. It is given up before this one, so whoever freezes the node waits for both (`lock`).
    #[inline]
    pub fn beside(&self, key: u64, wanted: impl FnOnce(u64) -> bool) -> Option<SlotGuard<'_, S>> {
        let record = self.record;
        let index = usize::try_from(key.checked_sub(record.base)?).ok()?;
        if record.span() != 1 || index >= Shape::<S>::fanout(Shape::<S>::LEAF) || index == record.first() {
            return None;
        }
        let slot = record.at.slot(index);
        // Relaxed: only a copy to compare with; a node of leaves has no links.
        let seen = slot.load(Ordering::Relaxed);
        if !word::is_value(seen) || seen == word::EMPTY || !wanted(seen) {
            return None;
        }
        if !lock(slot, seen) && !mutant!("radix-beside-unlocked") {
            return None;
        }
        // The hold is this guard's own; the slot, which has a value, keeps the node anyway.
        let mut record = record.of(index..index + 1);
        record.held = false;
        Some(SlotGuard { space: self.space, pin: self.pin, record })
    }
    /// The CPU that the guard is on.
    pub fn pin(&self) -> &'g Pinned<'g> {
        self.pin
    }
    /// Give the slot another value. Panics if that is none, or if the slot is a frozen one.
    #[inline]
    pub fn set(&mut self, value: u64) {
        let slot = self.record.at.slot(self.record.first());
        let old = held(slot);
        if value != old {
            assert!(!word::is_frozen(old), "{:?} is not for this guard to change", self.span());
            let used = put(self.space, slot, old, value, self.pin);
            // SAFETY: down, as there was a value: the node isn't touched on the slot's account any more, but for unlocking,
            // in this section.
            unsafe { self.record.at.add(used, self.pin) };
        }
    }
    /// Give the slot another value, and unlock it. Panics as [`Self::set`], or if there is to be none.
    #[inline(always)]
    pub fn finish(self, value: u64) {
        let this = core::mem::ManuallyDrop::new(self);
        let slot = this.record.at.slot(this.record.first());
        let old = held(slot);
        assert!(word::is_value(value) && value != word::EMPTY && !word::is_frozen(old), "{:?}", this.span());
        this.space.recount(old, value, this.pin);
        unlock_with(slot, value);
        this.record.drop_hold(this.pin);
    }
    /// Give up all keys but `key`, which is one of the guard's. `reserve` was [filled](Reserve::fill) for it before the slot
    /// was locked, or memory is looked for now. On failure the guard has what it had.
    #[inline(always)]
    pub fn narrow_to(&mut self, key: u64, reserve: &mut Reserve<S>) -> Result<(), Error> {
        let seen = held(self.record.at.slot(self.record.first()));
        if self.record.span() == 1 && !word::is_frozen(seen) {
            debug_assert!(self.keys().contains(&key));
            return Ok(());
        }
        self.open(key, seen, reserve)
    }
    #[cold]
    fn open(&mut self, key: u64, seen: u64, reserve: &mut Reserve<S>) -> Result<(), Error> {
        let keys = self.keys();
        assert!(keys.contains(&key), "key {key} is not the guard's");
        let (keep, first) = (key..key + 1, self.record.first());
        // The slot is the one behind the range's last record, as where a range is locked.
        let mut range = RangeGuard::new(self.space, self.pin, keep.clone());
        range.records.push(self.record.of(first..first));
        let opened = range.open(self.record.at.slot(first), seen, keys.start, keep, reserve);
        let last = range.records.pop();
        debug_assert!(range.records.len() == 0, "one slot became several");
        if opened.is_ok() {
            self.record = last.ok_or(Error::OutOfMemory)?;
        }
        opened
    }
}

impl<S: Space> Drop for SlotGuard<'_, S> {
    #[inline]
    fn drop(&mut self) {
        unlock(self.record.at.slot(self.record.first()));
        self.record.drop_hold(self.pin);
    }
}

impl<S: Space> fmt::Debug for SlotGuard<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlotGuard").field("keys", &self.keys()).finish_non_exhaustive()
    }
}

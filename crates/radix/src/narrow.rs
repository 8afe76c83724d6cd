//! Narrowing: a locked slot gives way to a node in which fewer keys are locked.
//!
//! **How.** The path to the kept keys is built aside: each new node has in its slots the parts of the folded value, with
//! LOCK where the keys are kept, and at most two links, to the new nodes below that straddle an edge of what is kept. One
//! store of the topmost link, in the place of the locked value, then publishes all of it and frees everything
//! outside what is kept. Whoever waited for the slot finds a link and descends.
//!
//! **Why exactly one holder.** Before the store nobody else has any of these keys, as the slot is locked. The store
//! hands the lock on: the kept slots come into being locked, the others unlocked. No key is locked twice or not at all
//! in between, and nothing on the way down was a lock before.
//!
//! **Counts.** A new node has as many references as it has used slots, and a hold for the guard if any slot is locked in
//! it. If the old value was EMPTY, its slot is used from now on. What the value names has a reference for each slot.
//!
//! **A frozen link** is a value whose parts are in the node that it names. If other trees have the node too, it is copied,
//! and each page gets another owner; if this tree is the last, the node is taken over: unlocked words are locked where
//! they are kept, the node gets its weak word back, and the link is frozen no more. A node that is taken over needs no
//! hold, even for its EMPTY slots: it has used ones, so it can't die before the guard ends (`lock`).

use core::{ops::Range, ptr::NonNull};

use sync::{
    mutant,
    primitive::{AtomicU64, Ordering},
};

use crate::{
    freeze,
    guard::RangeGuard,
    node::{At, COPIED, Node},
    record::Record,
    reserve::Reserve,
    space::{Error, Refs, Shape, Space},
    word::{self, EMPTY, FROZEN, LOCK},
};

impl<'g, S: Space> RangeGuard<'g, S> {
    /// Give up what `slot` stands for but `keep`; the records of that are added. The slot, number `record.end()` of the
    /// last record, is locked, not part of the record, and was `seen`; its first key is `first`. On failure it stays
    /// locked and nothing has changed.
    pub(crate) fn open(
        &mut self,
        slot: &'g AtomicU64,
        seen: u64,
        first: u64,
        keep: Range<u64>,
        reserve: &mut Reserve<S>,
    ) -> Result<(), Error> {
        let Some(parent) = self.records.last().copied() else { return Ok(()) };
        let level = parent.at.level() + 1;
        // A run in each node at most, of a key at least.
        let most = usize::try_from(keep.end - keep.start).unwrap_or(usize::MAX);
        self.records.reserve(Reserve::<S>::needed(level, &keep).clamp(1, most))?;
        if word::is_frozen(seen) {
            return self.thaw(slot, seen, first, keep, parent.end(), reserve);
        }
        reserve.fill_from(level, self.space, &keep, self.pin)?;
        if parent.is_empty() {
            // It stays behind without a locked slot; the last to use it is the count below.
            _ = self.records.pop();
        }
        if seen == EMPTY {
            // SAFETY: the guard has a hold on the node, or it is the root.
            unsafe { parent.at.add(1, self.pin) };
        }
        let node = self.build(slot, seen, (level, parent.end(), first), &keep, reserve);
        debug_assert!(node.is_some(), "the reserve was short");
        // Release: the nodes were filled before; partner: the loads of those who descend.
        if let Some(node) = node {
            slot.store(node.link(), Ordering::Release);
        }
        if parent.is_empty() {
            parent.drop_hold(self.pin);
        }
        Ok(())
    }
    /// A node for the slot `link`, at `(level, index in the parent, first key)`, that has the parts of `value`, locked
    /// where they meet `keep`, and below them the same. `None` if the reserve is short, which `fill_from` excludes.
    fn build(
        &mut self,
        link: &'g AtomicU64,
        value: u64,
        (level, index, base): (usize, usize, u64),
        keep: &Range<u64>,
        reserve: &mut Reserve<S>,
    ) -> Option<At<'g, S>> {
        let memory = reserve.take(level)?;
        let (span, fanout) = (Shape::<S>::span(level), Shape::<S>::fanout(level));
        let part = |i: usize| S::part(value, i as u64 * span);
        let kept = |i: usize| {
            let first = base + i as u64 * span;
            keep.start.max(first)..keep.end.min(first + span)
        };
        let (left, right) = (Shape::<S>::index(level, keep.start), Shape::<S>::index(level, keep.end - 1));
        let whole = |i: usize| kept(i).end - kept(i).start == span;
        let first = if whole(left) { left } else { left + 1 };
        let end = if whole(right) { right + 1 } else { right };
        let straddles_right = right != left && !whole(right);
        let links = usize::from(!whole(left)) + usize::from(straddles_right);
        // No slot is locked if the kept keys are in two neighbours, or in one.
        let len = end.saturating_sub(first);
        let used = if value == EMPTY { links } else { fanout };
        let locked = |i: usize| if (first..first + len).contains(&i) { LOCK } else { 0 };
        let word = |i| part(i) | if mutant!("radix-narrow-unlocked") { 0 } else { locked(i) };
        // SAFETY: the memory is of this level and ours; the space lives for ever; a node that has a used slot or a hold is
        // not freed before a grace period after it has none.
        let at = unsafe { At::make(memory, self.space, (level, index), used + usize::from(len > 0), word) };
        // SAFETY: the node is ours, and so has references that are ours; the slot is its parent's, and outlives it.
        unsafe { self.space.refs().set_weak(at.node(), Some(link)) };
        if value != EMPTY {
            self.space.count(value, fanout as i32 - 1, self.pin);
        }
        let mut descend = |guard: &mut Self, i: usize| {
            let place = (level + 1, i, base + i as u64 * span);
            let child = guard.build(at.slot(i), part(i), place, &kept(i), reserve)?;
            // Relaxed: the node isn't published yet.
            at.slot(i).store(child.link(), Ordering::Relaxed);
            Some(())
        };
        if !whole(left) {
            descend(self, left)?;
        }
        if len > 0 {
            self.records.push(Record::new(at, Some(link), base, first..first + len).with_hold());
        }
        if straddles_right {
            descend(self, right)?;
        }
        Some(at)
    }
    /// As [`Self::open`], for a slot that is a frozen link.
    fn thaw(
        &mut self,
        slot: &'g AtomicU64,
        seen: u64,
        base: u64,
        keep: Range<u64>,
        index: usize,
        reserve: &mut Reserve<S>,
    ) -> Result<(), Error> {
        // SAFETY: the link is in a slot.
        let frozen: At<'g, S> = unsafe { At::of_link(seen) };
        let level = frozen.level();
        let (first, last) = (Shape::<S>::index(level, keep.start), Shape::<S>::index(level, keep.end - 1));
        let len = last - first + 1;
        // Acquire: what a tree did that has given its share up comes before; partner: `drop_share`.
        let sharers = frozen.node().sharers.load(Ordering::Acquire);
        let (at, held) = if sharers & !COPIED == 1 {
            self.take_over(frozen, sharers & COPIED != 0, first..first + len);
            // SAFETY: the node has used slots, which are this tree's references now; the slot is its parent's.
            unsafe { self.space.refs().set_weak(frozen.node(), Some(slot)) };
            // Release: the words are as they should be; partner: the loads of those who descend. Refcache may have set
            // DYING by now, so the bits alone are cleared.
            slot.fetch_and(!(FROZEN | LOCK), Ordering::Release);
            (frozen, false)
        } else {
            let memory = reserve
                .take(level)
                .or_else(|| crate::node::alloc(self.space, level, self.pin))
                .ok_or(Error::OutOfMemory)?;
            let copy = self.copy(frozen, memory, index, first..first + len);
            // SAFETY: as above; the node is new.
            unsafe { self.space.refs().set_weak(copy.node(), Some(slot)) };
            // Release: the node was filled before; partner: the loads of those who descend.
            slot.store(copy.link(), Ordering::Release);
            freeze::leave(frozen, self.pin);
            (copy, true)
        };
        if let Some(parent) = self.records.last().copied().filter(Record::is_empty) {
            _ = self.records.pop();
            parent.drop_hold(self.pin);
        }
        let record = Record::new(at, Some(slot), base, first..first + len);
        self.records.push(if held { record.with_hold() } else { record });
        Ok(())
    }
    /// Lock the words of a frozen node that are kept, and mark pages that others may have, if there are `copies`. Others
    /// may be in the node, who will back out as its link is frozen, so each word is changed when it isn't locked.
    fn take_over(&self, frozen: At<'g, S>, copies: bool, keep: Range<usize>) {
        for (i, slot) in frozen.all().iter().enumerate() {
            let lock = if keep.contains(&i) { LOCK } else { 0 };
            loop {
                // Relaxed: the swap orders.
                let seen = slot.load(Ordering::Relaxed);
                let new = match seen {
                    EMPTY => EMPTY,
                    _ if copies => self.space.thawed(self.space.mark_shared(seen)),
                    _ => self.space.thawed(seen),
                } | lock;
                if seen & LOCK == 0
                    // Acquire: as when a slot is locked.
                    && (new == seen
                        || slot.compare_exchange(seen, new, Ordering::Acquire, Ordering::Relaxed).is_ok())
                {
                    break;
                }
                // To give up is no choice here; who has the slot leaves it without waiting for anything.
                let _ = self.space.spin_wait(self.pin);
            }
        }
    }
    /// A node with the words of a frozen one, each of whose pages has one more owner then.
    fn copy(
        &self,
        frozen: At<'g, S>,
        memory: NonNull<Node<S>>,
        index: usize,
        keep: Range<usize>,
    ) -> At<'g, S> {
        let share = |i: usize| {
            // Relaxed: nothing changes in a frozen node, but for LOCK, and its link was read with Acquire.
            let value = frozen.slot(i).load(Ordering::Relaxed) & !LOCK;
            if value == EMPTY {
                return EMPTY;
            }
            self.space.count(value, 1, self.pin);
            self.space.thawed(self.space.mark_shared(self.space.share(value, 1, self.pin)))
        };
        let lock = |i| if keep.contains(&i) { LOCK } else { 0 };
        let count = frozen.used() as usize + 1;
        let place = (frozen.level(), index);
        // SAFETY: the memory is of this level and ours; the space lives for ever; the hold keeps the node.
        unsafe { At::make(memory, self.space, place, count, |i| share(i) | lock(i)) }
    }
}

//! Refining: a slot that a guard has whole gives way to a node of which the guard has every slot.
//!
//! As in `narrow` the node is built aside and published by one store of its link; but nothing is given up. All keys stay
//! locked by the same guard from before the store to after it, and no key's value changes: so nobody can tell the
//! difference but the holder, who may now give the parts different values.

use percpu::Pinned;
use sync::primitive::Ordering;

use crate::{
    guard::{RangeGuard, Span},
    node::{self, At},
    record::{Record, Records},
    space::{Error, Refs, Shape, Space},
    word::{self, EMPTY, LOCK},
};

impl<'g, S: Space> RangeGuard<'g, S> {
    /// Split each slot of which `wants` says yes, and its parts as long as it does. Asked in ascending order, a slot before
    /// its parts; not of slots of leaves, nor of frozen ones, nor of those that stick out of the range. On failure some
    /// slots may have been split; values are as they were.
    pub fn refine(&mut self, mut wants: impl FnMut(Span) -> bool) -> Result<(), Error> {
        let mut all = Records::new();
        all.reserve(self.records.len())?;
        let old = core::mem::replace(&mut self.records, all);
        let (mut pending, mut enough) = (old.len(), true);
        for record in old.iter() {
            pending -= 1;
            match enough {
                true => enough = self.refine_run(record, pending, &mut wants),
                false => self.records.push(record),
            }
        }
        if enough { Ok(()) } else { Err(Error::OutOfMemory) }
    }
    /// Add the records for a run, refined. There is room for it and for `pending` more. False if memory was short, for
    /// what is left of the run then.
    fn refine_run(
        &mut self,
        record: Record<'g, S>,
        pending: usize,
        wants: &mut impl FnMut(Span) -> bool,
    ) -> bool {
        let (mut rest, mut enough) = (record, true);
        while enough && let Some(i) = self.next_to_split(&rest, wants) {
            // What is before the slot, the new node, what is behind, and those that wait.
            let child = match self.records.reserve(pending + 3) {
                Ok(()) => self.split(&rest, i),
                Err(_) => None,
            };
            let Some(child) = child else {
                enough = false;
                break;
            };
            let before = rest.of(rest.first()..i);
            rest = rest.of(i + 1..rest.end());
            if !before.is_empty() {
                self.records.push(before);
            }
            // Each run has a hold of its own.
            match (record.held, !before.is_empty(), !rest.is_empty()) {
                // SAFETY: up: there is a hold. Down: that is given up, and the new node keeps its parent.
                (true, true, true) => unsafe { record.at.add(1, self.pin) },
                // SAFETY: as above.
                (true, false, false) => unsafe { record.at.add(-1, self.pin) },
                _ => {}
            }
            enough = self.refine_run(child, pending + usize::from(!rest.is_empty()), wants);
        }
        if !rest.is_empty() {
            self.records.push(rest);
        }
        enough
    }
    /// The first slot of a run that is to be split.
    fn next_to_split(&self, run: &Record<'g, S>, wants: &mut impl FnMut(Span) -> bool) -> Option<usize> {
        if run.at.level() == Shape::<S>::LEAF {
            return None;
        }
        (run.first()..run.end()).find(|&i| {
            // Relaxed: this guard holds the slot.
            let value = run.at.slot(i).load(Ordering::Relaxed) & !LOCK;
            let span = Span { first: run.key(i), keys: run.span(), value, frozen: false };
            self.may_refine(&span, value) && wants(span)
        })
    }
    fn may_refine(&self, span: &Span, word: u64) -> bool {
        !word::is_frozen(word) && self.keys.start <= span.first && span.first + span.keys <= self.keys.end
    }
    /// A node in the place of slot `i` of a run, all of whose slots are locked and have the parts of its value.
    fn split(&self, record: &Record<'g, S>, i: usize) -> Option<Record<'g, S>> {
        let (at, slot, pin): (_, _, &Pinned<'_>) = (record.at, record.at.slot(i), self.pin);
        let level = at.level() + 1;
        let (span, fanout) = (Shape::<S>::span(level), Shape::<S>::fanout(level));
        // Relaxed: this guard holds the slot.
        let value = slot.load(Ordering::Relaxed) & !LOCK;
        let memory = node::alloc(self.space, level, pin)?;
        let used = if value == EMPTY { 0 } else { fanout };
        let part = |j: usize| S::part(value, j as u64 * span) | LOCK;
        // SAFETY: the memory is of this level and ours; the space lives for ever; the hold keeps the node.
        let child: At<'g, S> = unsafe { At::make(memory, self.space, (level, i), used + 1, part) };
        // SAFETY: the node is ours, and so has references that are ours; the slot is its parent's, and outlives it.
        unsafe { self.space.refs().set_weak(child.node(), Some(slot)) };
        if value == EMPTY {
            // SAFETY: the guard has a hold on the node, or it is the root, or has used slots.
            unsafe { at.add(1, pin) };
        } else {
            self.space.count(value, fanout as i32 - 1, pin);
        }
        // Release: the node was filled before; partner: the loads of those who descend.
        slot.store(child.link(), Ordering::Release);
        Some(Record::new(child, Some(slot), record.key(i), 0..fanout).with_hold())
    }
}

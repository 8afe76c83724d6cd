//! What a guard has locked: runs of slots, each in one node.

use alloc::vec::Vec;
use core::{mem::MaybeUninit, ops::Range};

use percpu::Pinned;
use sync::primitive::AtomicU64;

use crate::{
    node::At,
    space::{Error, Shape, Space},
};

/// Slots `first..first + len` of a node, all locked by one guard. Small, as guards are moved about.
pub(crate) struct Record<'g, S> {
    pub(crate) at: At<'g, S>,
    /// The slot that names the node, unless it's the root.
    pub(crate) link: Option<&'g AtomicU64>,
    /// The node's first key.
    pub(crate) base: u64,
    first: u16,
    len: u16,
    /// Whether the guard has a hold on the node.
    pub(crate) held: bool,
    /// Whether a frozen link may be among the slots.
    pub(crate) frozen: bool,
}

impl<S> Clone for Record<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for Record<'_, S> {}

impl<'g, S: Space> Record<'g, S> {
    /// Slots `run` of the node at `at`, whose first key is `base`, and which `link` names unless it's the root. No hold.
    pub(crate) fn new(at: At<'g, S>, link: Option<&'g AtomicU64>, base: u64, run: Range<usize>) -> Self {
        Self { at, link, base, first: run.start as u16, len: run.len() as u16, held: false, frozen: false }
    }
    pub(crate) fn with_hold(self) -> Self {
        Self { held: true, ..self }
    }
    /// The same for other slots of the node.
    pub(crate) fn of(&self, run: Range<usize>) -> Self {
        Self { first: run.start as u16, len: run.len() as u16, ..*self }
    }
    pub(crate) fn first(&self) -> usize {
        self.first.into()
    }
    pub(crate) fn len(&self) -> usize {
        self.len.into()
    }
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }
    pub(crate) fn end(&self) -> usize {
        self.first() + self.len()
    }
    /// The slot behind the run is locked too.
    pub(crate) fn lengthen(&mut self) {
        self.len += 1;
    }
    /// Keys of a slot.
    pub(crate) fn span(&self) -> u64 {
        Shape::<S>::span(self.at.level())
    }
    /// First key of slot number `index`.
    pub(crate) fn key(&self, index: usize) -> u64 {
        self.base + index as u64 * self.span()
    }
    /// The slots with their first keys.
    pub(crate) fn slots(self) -> impl Iterator<Item = (u64, &'g AtomicU64)> + use<'g, S> {
        let span = self.span();
        (self.first()..self.end()).map(move |i| (self.base + i as u64 * span, self.at.slot(i)))
    }
    /// Give up the hold, if there is one.
    #[inline]
    pub(crate) fn drop_hold(&self, pin: &Pinned<'_>) {
        if self.held {
            // SAFETY: the hold is the reference that is given up.
            unsafe { self.at.add(-1, pin) };
        }
    }
    /// Whether these are all slots of the node.
    pub(crate) fn is_whole(&self) -> bool {
        self.len() == Shape::<S>::fanout(self.at.level())
    }
}

/// Records that need no heap: enough for a range in few nodes. More would make guards large.
const FEW: usize = 3;

/// A list of records in ascending order of keys.
pub(crate) struct Records<'g, S> {
    few: [MaybeUninit<Record<'g, S>>; FEW],
    few_len: usize,
    many: Vec<Record<'g, S>>,
}

impl<'g, S: Space> Records<'g, S> {
    pub(crate) const fn new() -> Self {
        Self { few: [const { MaybeUninit::uninit() }; FEW], few_len: 0, many: Vec::new() }
    }
    pub(crate) fn len(&self) -> usize {
        self.few_len + self.many.len()
    }
    /// Make room for `n` more.
    pub(crate) fn reserve(&mut self, n: usize) -> Result<(), Error> {
        if self.few_len + n <= FEW {
            return Ok(());
        }
        self.many.try_reserve(n).map_err(|_| Error::OutOfMemory)
    }
    /// Add one, for which there is room.
    pub(crate) fn push(&mut self, record: Record<'g, S>) {
        if self.few_len < FEW {
            self.few[self.few_len].write(record);
            self.few_len += 1;
        } else {
            debug_assert!(self.many.len() < self.many.capacity(), "no room was made for a record");
            self.many.push(record);
        }
    }
    pub(crate) fn pop(&mut self) -> Option<Record<'g, S>> {
        let last = *self.last()?;
        if self.many.pop().is_none() {
            self.few_len -= 1;
        }
        Some(last)
    }
    pub(crate) fn last(&mut self) -> Option<&mut Record<'g, S>> {
        let last = self.len().checked_sub(1)?;
        Some(self.get_mut(last))
    }
    pub(crate) fn get(&self, i: usize) -> &Record<'g, S> {
        if i < self.few_len {
            // SAFETY: so many were written.
            unsafe { self.few[i].assume_init_ref() }
        } else {
            &self.many[i - self.few_len]
        }
    }
    pub(crate) fn get_mut(&mut self, i: usize) -> &mut Record<'g, S> {
        if i < self.few_len {
            // SAFETY: so many were written.
            unsafe { self.few[i].assume_init_mut() }
        } else {
            &mut self.many[i - self.few_len]
        }
    }
    /// Forget all but the first `n`.
    pub(crate) fn truncate(&mut self, n: usize) {
        self.many.truncate(n.saturating_sub(self.few_len));
        self.few_len = self.few_len.min(n);
    }
    pub(crate) fn iter(&self) -> impl Iterator<Item = Record<'g, S>> + '_ {
        (0..self.len()).map(|i| *self.get(i))
    }
}

//! Objects that wait for their review, on lists linked through their heads.
//!
//! An object is queued for the epoch after which it may be judged, at most 3 after the CPU's. So four lists, by the epoch
//! modulo 4, keep all objects of a list due at once, and an object needs no epoch of its own; what is due already goes to a
//! fifth list, in order of epochs.

use crate::Obj;

/// A list: new objects at the front, whole lists at the back.
#[derive(Clone, Copy, Default)]
pub(crate) struct List {
    ends: Option<(Obj, Obj)>,
}

impl List {
    pub(crate) const EMPTY: Self = Self { ends: None };

    pub(crate) fn is_empty(&self) -> bool {
        self.ends.is_none()
    }
    /// # Safety
    /// The object is alive and on no list, and this CPU is the one to queue it.
    pub(crate) unsafe fn push(&mut self, o: Obj) {
        // SAFETY: the object is alive.
        unsafe { o.head() }.set_next(self.ends.map(|(first, _)| first));
        self.ends = Some((o, self.ends.map_or(o, |(_, last)| last)));
    }
    pub(crate) fn pop(&mut self) -> Option<Obj> {
        let (first, last) = self.ends?;
        // SAFETY: objects on a list are alive.
        let next = unsafe { first.head() }.next();
        self.ends = if first == last { None } else { next.map(|next| (next, last)) };
        Some(first)
    }
    pub(crate) fn append(&mut self, other: &mut Self) {
        let Some((first, last)) = other.ends.take() else { return };
        self.ends = match self.ends {
            None => Some((first, last)),
            Some((head, tail)) => {
                // SAFETY: objects on a list are alive, and this CPU has both lists.
                unsafe { tail.head() }.set_next(Some(first));
                Some((head, last))
            }
        };
    }
}

/// One CPU's objects.
pub(crate) struct Review {
    /// The list of epoch e at e modulo 4, with e.
    waiting: [(u64, List); 4],
    due: List,
}

impl Review {
    pub(crate) const EMPTY: Self = Self { waiting: [(0, List::EMPTY); 4], due: List::EMPTY };

    /// Queue an object, or a list of them, for `epoch`.
    pub(crate) fn list(&mut self, epoch: u64) -> &mut List {
        let Self { waiting, due } = self;
        let (of, list) = &mut waiting[epoch as usize % 4];
        if *of != epoch {
            // It is at least 4 before this one, so it has come.
            debug_assert!(*of < epoch);
            due.append(list);
            *of = epoch;
        }
        list
    }
    /// What can be judged in epoch `now`.
    pub(crate) fn due(&mut self, now: u64) -> &mut List {
        let Self { waiting, due } = self;
        // In order of epochs: the objects that wait longest go first.
        for epoch in now.saturating_sub(3)..=now {
            let (of, list) = &mut waiting[epoch as usize % 4];
            if *of <= now {
                due.append(list);
            }
        }
        due
    }
    pub(crate) fn has_due(&self, now: u64) -> bool {
        !self.due.is_empty() || self.waiting.iter().any(|(epoch, list)| *epoch <= now && !list.is_empty())
    }
    pub(crate) fn is_empty(&self) -> bool {
        self.due.is_empty() && self.waiting.iter().all(|(_, list)| list.is_empty())
    }
    /// Take everything, whenever it is due.
    pub(crate) fn take(&mut self) -> List {
        let mut all = core::mem::take(&mut self.due);
        self.waiting.iter_mut().for_each(|(_, list)| all.append(list));
        all
    }
}

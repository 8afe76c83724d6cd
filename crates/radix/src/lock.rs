//! Locking: a range of keys, or the one slot that a key is in.
//!
//! **Claim.** Between locking and unlocking, what the locked slots stand for is changed by the holder alone; two guards
//! never have the same key; nobody waits for ever, if holders don't.
//!
//! **What is locked.** The *bottommost slot* of a key: the one reached from the root by links that aren't frozen. At any
//! moment the bottommost slots divide the keys among them. A lock is the slot's LOCK bit, taken by a compare-and-swap of
//! the whole word, never by setting the bit: so it is known that what was locked is a value and not a link that has just
//! come to be there. A value may be locked, EMPTY may (by ranges only), a frozen link may; a live link never is.
//!
//! **Order.** Every guard takes its locks in ascending order of keys, and narrowing only gives up. Who waits for a slot
//! holds lower ones only; so the holder of the highest slot that is waited for waits for nobody.
//!
//! **Holds.** A slot is in a node, and the node must be in the tree while the lock counts. If the slot isn't EMPTY, the
//! node's count isn't 0, and since the guard's CPU is pinned it can't become 0 and stay so for two epochs of Refcache
//! before the guard ends: the node stays. An EMPTY slot says nothing of the kind, as its node may have been collapsed
//! already; hence a range takes a *hold* on the node first, by the weak reference that the link is. If Refcache had taken
//! the link away, that fails and we look again. The nodes above need none, as a used child keeps its parent used. A
//! node that was *replaced* by a folded value has DEAD in all slots, which no one locks.
//!
//! **Freezing.** In a node of leaves, who locks a slot as the first one there looks at the node's link once more. The two
//! fences, here between slot and link, and in `freeze` between link and slots, are in one order: either this looker sees
//! the link FROZEN, or replaced, and backs out, or the freezer finds the slot locked and waits for it. For further slots
//! of the same node no look is needed, and none may be taken: the freezer waits for the first (its ascending look at the
//! slots comes to it before it comes to the others), so to wait for the freezer would be a deadlock. That is so too for a
//! second range in the same leaf, behind one that is kept (`lock_behind`). Who has one slot may also try for another of the node, also
//! a lower one ([`SlotGuard::beside`]): he waits for nobody, and gives it up first, so a freezer who has passed it already
//! still waits for the one that he keeps, and changes nothing until then.
//!
//! **All keys.** Who locks all of a tree to look, as a fork does, leaves EMPTY slots alone, of which there are thousands in
//! the upper nodes of a small process. It *closes the gate* instead: counts itself in the tree, has a fence, and then goes
//! over the slots in ascending order, waits for those that are locked, and locks what isn't EMPTY. Who locks a range
//! has a fence after the first slot, and looks at the gate; if it is closed he backs out, and waits with nothing locked. So
//! either he finds the gate closed, or his first slot is found locked and waited for, and what he does behind it is done
//! when the closer comes there. For the same reason one who has a range already doesn't look again when he locks another
//! behind it, and must not wait (`lock_behind`). A page's fault fills no EMPTY slot, and has no need to look.
//!
//! In a leaf a closer that is there to change things (`Mode::Vacate`) leaves out EMPTY slots before its first one only. From there on it
//! locks all, as one run: if it came back to the node for a second run, it would find the link taken by one who freezes, wait
//! for him, and he for the slots of the first run. Before its first slot it has nothing in the node, which may be another tree's by
//! now; so it looks at the link after it has found slots EMPTY (`freeze` says why that is enough).
//!
//! **Orderings.** The swap that locks is Acquire and the store that unlocks is Release, so what a page is travels with its
//! lock. Links are stored with Release and followed with Acquire: a node was filled before anybody is in it.

use core::ops::Range;

use percpu::Pinned;
use sync::{
    mutant,
    primitive::{AtomicU32, AtomicU64, Ordering, fence},
};

use crate::{
    Section, SlotGuard, Tree, freeze,
    guard::{Gate, RangeGuard},
    node::{At, Node},
    record::Record,
    reserve::Reserve,
    space::{Error, Refs, Shape, Space},
    word::{self, DEAD, EMPTY, LINK, LOCK},
};

/// What a range is locked for: it decides what is narrowed, so that exactly the range is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// To look: whole slots, also those that stick out of the range.
    Cover,
    /// To make all of it EMPTY: slots that stick out are narrowed, but for EMPTY ones.
    Take,
    /// To give all of it one value: slots that stick out are narrowed.
    Fill,
    /// To change what there is, slot by slot: as [`Self::Take`], and what is in frozen nodes is copied first.
    Edit,
    /// To change it and to fill what is EMPTY, slot by slot: as [`Self::Fill`], and what is in frozen nodes is copied first.
    Exact,
    /// To look, and to change what is this tree's alone, slot by slot: as [`Self::Cover`], and frozen nodes that no other tree has
    /// are taken over, for which no memory is needed.
    Alone,
    /// To share it with another tree: as [`Self::Cover`], and nodes of leaves are frozen instead of being entered. It is for
    /// all keys only, and what is EMPTY stays so, but isn't among the guard's slots.
    Freeze,
    /// To make all keys EMPTY: as [`Self::Cover`], and without what is EMPTY, as [`Self::Freeze`].
    Vacate,
}

impl Mode {
    /// Whether a slot with `value` is narrowed, if it sticks out.
    fn narrows(self, value: u64) -> bool {
        match self {
            Self::Cover | Self::Alone | Self::Freeze | Self::Vacate => false,
            Self::Take | Self::Edit => value != EMPTY,
            Self::Fill | Self::Exact => true,
        }
    }
    /// Whether a locked slot with the frozen link `seen` becomes a node of the tree's own.
    fn thaws<S: Space>(self, seen: u64) -> bool {
        match self {
            Self::Edit | Self::Exact => true,
            // SAFETY: the link is in a slot that the caller has locked. That no other tree has the node stays so meanwhile.
            Self::Alone => freeze::trees(unsafe { At::<S>::of_link(seen) }) == 1,
            _ => false,
        }
    }
}

impl<S: Space> Tree<S> {
    /// Lock `keys`, in ascending order; waits for who has them. Slots may stick out of the range, by what `mode` says.
    /// `reserve` is filled before the first lock. On failure nothing is locked, and no key's value has changed.
    ///
    /// The caller neither sleeps nor waits for anything but other slots, in ascending order, while it has the guard.
    /// Panics if the range is empty or ends above the tree's keys.
    #[inline]
    pub fn lock_range<'g>(
        &'g self,
        keys: Range<u64>,
        mode: Mode,
        reserve: &mut Reserve<S>,
        section: &'g Section<'_, S>,
    ) -> Result<RangeGuard<'g, S>, Error> {
        let mut guard = self.guard(keys, section);
        guard.lock(self, mode, reserve)?;
        Ok(guard)
    }
    /// The same for one who has `lower`, a guard of lower keys of this tree, and keeps it.
    #[cold]
    pub fn lock_behind<'g>(
        &'g self,
        lower: &RangeGuard<'_, S>,
        keys: Range<u64>,
        mode: Mode,
        reserve: &mut Reserve<S>,
        section: &'g Section<'_, S>,
    ) -> Result<RangeGuard<'g, S>, Error> {
        assert!(lower.keys.end <= keys.start, "keys {keys:?} are not behind");
        let mut guard = self.guard(keys, section);
        guard.lock_all(self, Some(lower), mode, reserve)?;
        Ok(guard)
    }
    /// A guard for `keys` that has nothing yet. As guards are large, who [locks](RangeGuard::lock) by one where it is saves
    /// moving it.
    #[inline(always)]
    pub fn guard<'g>(&'g self, keys: Range<u64>, section: &'g Section<'_, S>) -> RangeGuard<'g, S> {
        assert!(keys.start < keys.end && keys.end <= Self::keys(), "keys {keys:?} of {}", Self::keys());
        self.check(section);
        RangeGuard::new(self.space(), section.pin(), keys)
    }

    /// Lock the slot of `key`, if it isn't EMPTY. The guard has all the keys that are folded into it, and may be
    /// [narrowed](SlotGuard::narrow_to). Panics if there is no such key.
    ///
    /// No hold is needed: a slot that isn't EMPTY keeps its node.
    #[inline(always)]
    pub fn lock_one<'g>(
        &'g self,
        key: u64,
        section: &'g Section<'_, S>,
    ) -> Result<Option<SlotGuard<'g, S>>, Error> {
        assert!(key < Self::keys(), "key {key} of {}", Self::keys());
        self.check(section);
        let (space, pin) = (self.space(), section.pin());
        loop {
            let mut record = Self::bottommost(self.root(), key, Shape::<S>::LEVELS);
            let slot = record.at.slot(record.first());
            // Acquire: for the look at the link, as in `descend`. Otherwise the swap below orders.
            let seen = slot.load(Ordering::Acquire);
            if seen == EMPTY {
                if record.at.is_still_in(record.link) {
                    return Ok(None);
                }
                continue;
            }
            if seen == DEAD || seen & LOCK != 0 {
                wait(space, pin)?;
                continue;
            }
            if word::descends(seen) || !lock(slot, seen) {
                continue;
            }
            if !may_stay(&record, None) {
                back_out(slot);
                wait(space, pin)?;
                continue;
            }
            // What was locked is the slot, so the span is that of its level, whatever it was on the way here.
            record.lengthen();
            return Ok(Some(SlotGuard { space, pin, record }));
        }
    }

    /// The slot of `key` that was bottommost on the way here, as a record of no slots; not below `depth` levels.
    fn bottommost<'g>(root: At<'g, S>, key: u64, depth: usize) -> Record<'g, S> {
        let (mut at, mut link, mut level) = (root, None, 0);
        loop {
            let index = Shape::<S>::index(level, key);
            let slot = at.slot(index);
            // Acquire: what is in a node was there before its link; partner: the stores of links in `narrow`.
            let seen = slot.load(Ordering::Acquire);
            if !word::descends(seen) || level + 1 == depth {
                let base = Shape::<S>::base(level, key);
                return Record::new(at, link, base, index..index);
            }
            // SAFETY: the link was in a slot during the guard's section.
            at = unsafe { At::of_link(seen) };
            (link, level) = (Some(slot), level + 1);
        }
    }
}

/// Lock a slot whose word is `seen`, without LOCK; false if it has changed.
pub(crate) fn lock(slot: &AtomicU64, seen: u64) -> bool {
    if mutant!("radix-lock-by-or") {
        return slot.fetch_or(LOCK, Ordering::Acquire) & LOCK == 0;
    }
    // Acquire: what the last holder did comes before; partner: `unlock` in `guard`. Relaxed: nothing is used on failure.
    slot.compare_exchange(seen, seen | LOCK, Ordering::Acquire, Ordering::Relaxed).is_ok()
}

/// Unlock a slot in which nothing was done. The word may be changed meanwhile by who has taken over its frozen node,
/// so the bit alone is cleared.
fn back_out(slot: &AtomicU64) {
    // Release: partner in `lock`.
    slot.fetch_and(!LOCK, Ordering::Release);
}

/// Somebody else is at it: let this CPU do what may be waited for. An error to give up.
#[cold]
fn wait<S: Space>(space: &S, pin: &Pinned<'_>) -> Result<(), Error> {
    if space.spin_wait(pin) { Ok(()) } else { Err(Error::Busy) }
}

/// Whether the node of a slot that was just locked, the first in it, is still in its place, and not frozen; and the gate,
/// if the slot is a guard's first, open.
fn may_stay<S: Space>(record: &Record<'_, S>, gate: Option<&AtomicU32>) -> bool {
    let link = record.link.filter(|_| record.at.level() == Shape::<S>::LEAF);
    if link.is_none() && gate.is_none() {
        return true;
    }
    // SeqCst: the slot is locked before link and gate are looked at; partners: the fences in `freeze` and `lock_range`.
    if !mutant!("radix-no-lock-fence") {
        fence(Ordering::SeqCst);
    }
    let names = |link: &AtomicU64| {
        // Relaxed: ordered by the fence.
        let seen = link.load(Ordering::Relaxed);
        word::descends(seen) && record.at.is_named_by(seen)
    };
    // Acquire: who has had it closed has left what this one is to find; partner: the end of `RangeGuard`.
    let open = |closed: &AtomicU32| closed.load(Ordering::Acquire) == 0 || mutant!("radix-no-gate");
    gate.is_none_or(open) && link.is_none_or(names)
}

impl<'g, S: Space> RangeGuard<'g, S> {
    /// Lock all keys, in `tree`, of which this is a new guard: as [`Tree::lock_range`]. After a failure it is only good to be
    /// dropped, which unlocks what was locked until then.
    #[inline(always)]
    pub fn lock(&mut self, tree: &'g Tree<S>, mode: Mode, reserve: &mut Reserve<S>) -> Result<(), Error> {
        self.lock_all(tree, None, mode, reserve)
    }
    #[inline(always)]
    fn lock_all(
        &mut self,
        tree: &'g Tree<S>,
        lower: Option<&RangeGuard<'_, S>>,
        mode: Mode,
        reserve: &mut Reserve<S>,
    ) -> Result<(), Error> {
        debug_assert!(self.records.len() == 0, "a guard is used once");
        if !matches!(mode, Mode::Cover | Mode::Alone | Mode::Freeze | Mode::Vacate) {
            reserve.fill(self.space, &self.keys, self.pin)?;
        }
        let closes = matches!(mode, Mode::Freeze | Mode::Vacate);
        assert!(!closes || self.keys == (0..Tree::<S>::keys()), "keys {:?} are not all", self.keys);
        let mut key = self.keys.start;
        match lower {
            None => self.gate = Gate::Before(&tree.closed),
            Some(lower) => key = self.lock_beside(lower, key, mode, reserve)?,
        }
        if closes {
            // Relaxed: ordered by the fence.
            tree.closed.fetch_add(1, Ordering::Relaxed);
            self.gate = Gate::Closed(&tree.closed);
            // SeqCst: the gate is closed before slots are looked at; partner: the fence in `may_stay`.
            if !mutant!("radix-no-gate-fence") {
                fence(Ordering::SeqCst);
            }
        }
        while key < self.keys.end {
            key = self.lock_from(tree.root(), key, mode, reserve)?;
        }
        Ok(())
    }
    pub(crate) fn wait(&self) -> Result<(), Error> {
        wait(self.space, self.pin)
    }
    /// Lock slots from that of `key` on, as many as are in one node in a row. Gives the first key that is not locked.
    #[inline(never)]
    fn lock_from(
        &mut self,
        root: At<'g, S>,
        key: u64,
        mode: Mode,
        reserve: &mut Reserve<S>,
    ) -> Result<u64, Error> {
        let depth = if mode == Mode::Freeze { Shape::<S>::LEAF } else { Shape::<S>::LEVELS };
        let mut record = Tree::<S>::bottommost(root, key, depth);
        self.records.reserve(1)?;
        if let Some(link) = record.link
            && !mutant!("radix-no-hold")
        {
            if !self.hold(record.at, link) {
                self.wait()?;
                return Ok(key);
            }
            record.held = true;
        }
        let next = self.lock_run(record, key, mode, reserve)?;
        if next == key {
            self.wait()?;
        }
        Ok(next)
    }
    /// Lock slots from that of `key` on that are in the last leaf in which `lower` has some, if it is. They are further slots
    /// of a node, for which the link isn't looked at. Gives the first key that is not locked.
    #[cold]
    fn lock_beside(
        &mut self,
        lower: &RangeGuard<'_, S>,
        key: u64,
        mode: Mode,
        reserve: &mut Reserve<S>,
    ) -> Result<u64, Error> {
        let last = lower.records.len().checked_sub(1).map(|last| *lower.records.get(last));
        let same = |record: &Record<'_, S>| {
            record.at.level() == Shape::<S>::LEAF && record.base == Shape::<S>::base(Shape::<S>::LEAF, key)
        };
        let Some(last) = last.filter(same) else { return Ok(key) };
        // SAFETY: the other guard has slots in it, or a hold, and is kept; this one gets a hold of its own.
        let at: At<'g, S> = unsafe { At::new(last.at.pointer()) };
        self.records.reserve(1)?;
        // SAFETY: as above: the node is used, or held.
        unsafe { at.add(1, self.pin) };
        let index = Shape::<S>::index(Shape::<S>::LEAF, key);
        let record = Record::new(at, None, last.base, index..index).with_hold();
        self.lock_run(record, key, mode, reserve)
    }
    /// A reference to the node that `link` names, if that is still `at`.
    fn hold(&self, at: At<'g, S>, link: &AtomicU64) -> bool {
        if mutant!("radix-no-revival") {
            // SAFETY: none, that is the fault.
            unsafe { at.add(1, self.pin) };
            return true;
        }
        // SAFETY: links are the weak words of the nodes that they name (`narrow`), and those are `Node<S>`.
        match unsafe { self.space.refs().try_get::<Node<S>>(link, self.pin) } {
            Some(node) if node == at.pointer() => true,
            Some(node) => {
                // SAFETY: the reference was just got.
                unsafe { At::<S>::new(node).add(-1, self.pin) };
                false
            }
            None => false,
        }
    }
    /// Lengthen `record`, which begins with the slot of `key`, for as long as the range goes on and its node has slots that can
    /// be locked, and add it to the guard's, for which there is room. Gives the first key that is not locked.
    #[inline(always)]
    fn lock_run(
        &mut self,
        mut record: Record<'g, S>,
        key: u64,
        mode: Mode,
        reserve: &mut Reserve<S>,
    ) -> Result<u64, Error> {
        let next = self.lock_slots(&mut record, key, mode);
        let opens = matches!(next, Ok(Next::Open { .. }));
        if record.is_empty() && !opens {
            record.drop_hold(self.pin);
        } else {
            // What is locked is the guard's, also if there is more to do or an error.
            self.records.push(record);
            if let Gate::Before(_) = self.gate {
                self.gate = Gate::Passed;
            }
        }
        match next? {
            Next::Key(next) => Ok(next),
            Next::Open { slot, seen, first, keep } => {
                let end = keep.end;
                let opened = self.open(slot, seen, first, keep, reserve);
                opened.inspect_err(|_| {
                    if !mutant!("radix-lock-left") {
                        back_out(slot)
                    }
                })?;
                Ok(end)
            }
        }
    }
    #[inline(always)]
    fn lock_slots(&self, record: &mut Record<'g, S>, mut key: u64, mode: Mode) -> Result<Next<'g>, Error> {
        let (at, level, keys) = (record.at, record.at.level(), self.keys.clone());
        let (span, fanout) = (Shape::<S>::span(level), Shape::<S>::fanout(level));
        let (mut begin, mut i) = (record.first(), record.end());
        let mut first = record.key(i);
        let next = loop {
            if key >= keys.end || i >= fanout {
                break Ok(Next::Key(key));
            }
            let slot = at.slot(i);
            // Acquire: a link is followed by `freeze`; partner: the stores of links in `narrow`.
            let seen = slot.load(Ordering::Acquire);
            let end = first + span;
            if seen & LINK == 0 || word::is_frozen(seen) {
                let skips = i == begin || level != Shape::<S>::LEAF || mutant!("radix-leaf-in-runs");
                if seen == EMPTY
                    && skips
                    && let Gate::Closed(_) = self.gate
                {
                    let empty = empty(&at.all()[i..]);
                    // In a leaf that was another tree's by then, it may be another tree's slots that are EMPTY.
                    if !at.is_still_in(record.link) {
                        break Ok(Next::Key(key));
                    }
                    key = first + empty as u64 * span;
                    if i > begin {
                        break Ok(Next::Key(key));
                    }
                    (begin, i, first) = (i + empty, i + empty, key);
                    continue;
                }
                if seen & LOCK != 0 {
                    match self.wait() {
                        Ok(()) => continue,
                        Err(error) => break Err(error),
                    }
                }
                if !lock(slot, seen) {
                    continue;
                }
                if i == begin && !may_stay(record, self.gate.before()) {
                    back_out(slot);
                    break Ok(Next::Key(key));
                }
                let sticks_out = first < keys.start || end > keys.end;
                let frozen = seen & LINK != 0;
                record.frozen |= frozen;
                let thaws = frozen && mode.thaws::<S>(seen);
                if thaws || sticks_out && mode.narrows(seen) && !mutant!("radix-whole-spans") {
                    let keep = first.max(keys.start)..end.min(keys.end);
                    break Ok(Next::Open { slot, seen, first, keep });
                }
            } else {
                // Another node, from the root; or one that is frozen instead; or the node was replaced.
                if seen == DEAD || mode != Mode::Freeze || level + 1 != Shape::<S>::LEAF {
                    break Ok(Next::Key(key));
                }
                match self.freeze(slot, record) {
                    Ok(true) => record.frozen = true,
                    Ok(false) => match self.wait() {
                        Ok(()) => continue,
                        Err(error) => break Err(error),
                    },
                    Err(error) => break Err(error),
                }
            }
            i += 1;
            first = end;
            key = end;
        };
        *record = record.of(begin..i);
        // Of the last slot, what sticks out is the guard's, and nobody asked for it.
        next.map(|next| match next {
            Next::Key(key) => Next::Key(key.min(keys.end)),
            open => open,
        })
    }
}

/// How many of `slots` are EMPTY, from the first on.
fn empty(slots: &[AtomicU64]) -> usize {
    // Acquire: what was taken out of a slot is gone; partner: the unlocking store.
    let seen = |slot: &AtomicU64| slot.load(Ordering::Acquire);
    let all = |eight: &&[AtomicU64; 8]| eight.iter().fold(0, |all, slot| all | seen(slot)) == EMPTY;
    let eights = 8 * slots.as_chunks::<8>().0.iter().take_while(all).count();
    eights + slots[eights..].iter().take_while(|slot| seen(slot) == EMPTY).count()
}

/// What is to be done when a run ends.
enum Next<'g> {
    /// To go on with this key, if it is one of the range.
    Key(u64),
    /// To open a slot, which is locked and not part of the run.
    Open { slot: &'g AtomicU64, seen: u64, first: u64, keep: Range<u64> },
}

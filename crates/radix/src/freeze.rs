//! Fork by freezing: what two trees share is not copied but made immutable.
//!
//! **Idea.** To share a node of leaves the forking tree takes the node's link for itself (FROZEN and LOCK in one swap),
//! waits until no slot of the node is locked, and lets the other tree have the same link. From then on no slot of the
//! node changes. Lockers of either tree treat their link as one slot; lookups go through it. The first to change
//! something copies the node, and the last one takes it over (`narrow`). `sharers` counts the trees that have it.
//!
//! **Nobody is left inside.** A locker swaps LOCK into the slot, has a fence, and reads the link; the freezer swaps FROZEN
//! into the link, has a fence, and reads the slots. One of them sees the other. A locker that sees FROZEN backs out;
//! its lock may be seen for a moment, in which it changes nothing. A locker that was inside may lock more slots of the node
//! without another look (`lock`). The freezer reads each slot until it isn't locked, in ascending order: when it has
//! seen the locker's first slot free, the locker is unlocking and takes no more, and the slots behind are read after that.
//!
//! **A frozen node stays.** Its slots are used and don't change; its weak word is taken away once the link is the freezer's,
//! so Refcache never touches the link. In between it may set DYING, which that takes back; it can't take the link
//! away, as it expects the bare link. Only then are there two trees, so two forks of one tree never meet here: they are
//! ordered by the link's lock.

use percpu::Pinned;
use sync::{
    mutant,
    primitive::{AtomicU64, Ordering, fence},
};

use crate::{
    Section, Tree,
    guard::{RangeGuard, Span, Taken, seize},
    node::{self, At, COPIED, Node},
    record::Record,
    space::{Error, MAX_LEVELS, Refs, Shape, Space},
    word::{self, EMPTY, FROZEN, LOCK},
};

impl<'g, S: Space> RangeGuard<'g, S> {
    /// Freeze the node that the link in `slot` names, and leave the link locked; or, if the node is empty, put EMPTY there,
    /// locked. False if the link is no more, or somebody else's.
    pub(crate) fn freeze(&self, slot: &'g AtomicU64, parent: &Record<'g, S>) -> Result<bool, Error> {
        let refs = self.space.refs();
        // SAFETY: links are the weak words of the nodes that they name, and those are `Node<S>`.
        let Some(leaf) = (unsafe { refs.try_get::<Node<S>>(slot, self.pin) }) else { return Ok(false) };
        // SAFETY: the reference was just got.
        let leaf: At<'g, S> = unsafe { At::new(leaf) };
        if !seize(slot, leaf) {
            // SAFETY: the reference from above.
            unsafe { leaf.add(-1, self.pin) };
            return Ok(false);
        }
        // SeqCst: the link is frozen before the slots are looked at; partner: the fence in `may_stay`.
        if !mutant!("radix-no-freeze-fence") {
            fence(Ordering::SeqCst);
        }
        for place in leaf.all() {
            // Acquire: what its holder did comes before; partner: the unlocking store.
            while place.load(Ordering::Acquire) & LOCK != 0 && !mutant!("radix-freeze-no-wait") {
                if let Err(error) = self.wait() {
                    // Release: nothing was done. Refcache may have set DYING, so the bits alone are cleared.
                    slot.fetch_and(!(FROZEN | LOCK), Ordering::Release);
                    // SAFETY: the reference from above.
                    unsafe { leaf.add(-1, self.pin) };
                    return Err(error);
                }
            }
        }
        // SAFETY: there is a reference. The link is frozen, so nobody gets one by it.
        unsafe { refs.set_weak(leaf.node(), None) };
        if leaf.used() > 0 {
            // Relaxed: whoever reads it has read the link, or has it from another who did.
            leaf.node().sharers.store(1, Ordering::Relaxed);
        } else {
            // Release: as in `open`.
            slot.store(EMPTY | LOCK, Ordering::Release);
            // SAFETY: the link was a used slot of the parent, on which there is a hold, or which is the root.
            unsafe { parent.at.add(-1, self.pin) };
        }
        // SAFETY: the reference from above; used slots keep the node.
        unsafe { leaf.add(-1, self.pin) };
        Ok(true)
    }

    /// Give `to`, which nobody uses yet, what this guard has of its tree, but for the slots of which `which` says no. The
    /// guard is one of [`Mode::Freeze`](crate::Mode::Freeze); nodes of leaves come to be shared. If there is no
    /// memory, `to` has a part, and this tree what it had; `to` is then to be [retired](Tree::retire).
    pub fn fork(&mut self, to: &mut Tree<S>, mut which: impl FnMut(Span) -> bool) -> Result<(), Error> {
        let (space, pin) = (self.space, self.pin);
        assert!(core::ptr::eq(space, to.space()), "the other tree is another space's");
        for record in self.records.iter() {
            let level = record.at.level();
            for (first, slot) in record.slots() {
                // Relaxed: this guard holds the slot.
                let seen = slot.load(Ordering::Relaxed) & !LOCK;
                let frozen = word::is_frozen(seen);
                let value = if frozen { EMPTY } else { seen };
                if seen == EMPTY || !which(Span { first, keys: record.span(), value, frozen }) {
                    continue;
                }
                let path = Path::prepare(to, first, level, pin)?;
                if frozen {
                    // SAFETY: the link is in the slot.
                    let leaf = unsafe { At::<S>::of_link(seen) };
                    // Relaxed: who gives a share up later has the link from here.
                    leaf.node().sharers.fetch_add(1, Ordering::Relaxed);
                    path.put(to, seen, pin);
                } else {
                    space.count(seen, 1, pin);
                    path.put(to, space.mark_shared(space.share(seen, record.span(), pin)), pin);
                    // Release: as in `put` of `guard`.
                    slot.store(space.mark_shared(seen) | LOCK, Ordering::Release);
                }
            }
        }
        Ok(())
    }
}

/// A tree has copied a frozen node, and gives its own share up. If it is the last after all, the pages lose an owner.
pub(crate) fn leave<S: Space>(leaf: At<'_, S>, pin: &Pinned<'_>) {
    // Relaxed: ordered by the next one.
    leaf.node().sharers.fetch_or(COPIED, Ordering::Relaxed);
    // AcqRel: the copying comes before what the last one does; partners: each other, and the load in `thaw`.
    if leaf.node().sharers.fetch_sub(1, Ordering::AcqRel) & !COPIED == 1 {
        give_up(leaf, pin, |_, value| leaf.space().unshare(value, pin));
    }
}

/// A tree gives its share of a frozen node up, whose first key is `base`, and has the link no more.
pub(crate) fn drop_share<S: Space>(
    leaf: At<'_, S>,
    base: u64,
    pin: &Pinned<'_>,
    taken: &mut impl FnMut(Taken),
) {
    let sharers = &leaf.node().sharers;
    let mut take = |owned: bool, i: usize, value: u64| {
        // Relaxed: decided before the last share was given up, by which it is ordered.
        let copied = sharers.load(Ordering::Relaxed) & COPIED != 0;
        let value = if copied || !owned { leaf.space().mark_shared(value) } else { value };
        taken(Taken { value, first: base + i as u64, keys: 1, owned });
    };
    // Acquire: as in `thaw`. This tree's share is one, so nobody else's can appear.
    if sharers.load(Ordering::Acquire) & !COPIED != 1 {
        values(leaf).for_each(|(i, value)| take(false, i, value));
        // AcqRel: as in `leave`.
        if sharers.fetch_sub(1, Ordering::AcqRel) & !COPIED != 1 {
            return;
        }
    }
    give_up(leaf, pin, |i, value| take(true, i, value));
}

/// The slots of a frozen node that aren't EMPTY.
fn values<S: Space>(leaf: At<'_, S>) -> impl Iterator<Item = (usize, u64)> + '_ {
    // Relaxed: they don't change while the node is shared, and the link was read with Acquire.
    let values = leaf.all().iter().map(|slot| slot.load(Ordering::Relaxed) & !LOCK);
    values.enumerate().filter(|(_, value)| *value != EMPTY)
}

/// Nobody has the frozen node any more: let it go.
fn give_up<S: Space>(leaf: At<'_, S>, pin: &Pinned<'_>, mut each: impl FnMut(usize, u64)) {
    let mut used = 0;
    for (i, value) in values(leaf) {
        each(i, value);
        leaf.space().count(value, -1, pin);
        used += 1;
    }
    // SAFETY: the used slots are references, which the last tree gives up. It has no weak word.
    unsafe { leaf.add(-used, pin) };
}

/// Memory for the nodes on the way to a slot, in a tree that nobody uses.
struct Path<S> {
    first: u64,
    level: usize,
    missing: [Option<core::ptr::NonNull<Node<S>>>; MAX_LEVELS],
}

impl<S: Space> Path<S> {
    fn prepare(to: &mut Tree<S>, first: u64, level: usize, pin: &Pinned<'_>) -> Result<Self, Error> {
        let mut path = Self { first, level, missing: [None; MAX_LEVELS] };
        let mut at = Some(to.root());
        for above in 0..level {
            // Relaxed, here and below: nobody else uses the tree.
            let seen = at.map(|at| at.slot(Shape::<S>::index(above, first)).load(Ordering::Relaxed));
            // SAFETY: the link is in a slot.
            at = seen.filter(|seen| word::descends(*seen)).map(|seen| unsafe { At::of_link(seen) });
            if at.is_none() {
                path.missing[above + 1] = node::alloc(to.space(), above + 1, pin);
                if path.missing[above + 1].is_none() {
                    path.give_back(to.space(), pin);
                    return Err(Error::OutOfMemory);
                }
            }
        }
        Ok(path)
    }
    fn give_back(self, space: &S, pin: &Pinned<'_>) {
        for (level, memory) in self.missing.into_iter().enumerate() {
            let Some(memory) = memory else { continue };
            // SAFETY: it came from `alloc` for this level, and is no node.
            unsafe { space.free(memory.cast(), node::layout::<S>(level), pin) };
        }
    }
    /// Store `word` in the slot, which is EMPTY.
    fn put(self, to: &mut Tree<S>, word: u64, pin: &Pinned<'_>) {
        let (space, mut at) = (to.space(), to.root());
        for above in 0..self.level {
            let index = Shape::<S>::index(above, self.first);
            let slot = at.slot(index);
            at = if let Some(memory) = self.missing[above + 1] {
                // SAFETY: the memory is of this level and ours; the space lives for ever. The node gets a used slot below.
                let new: At<'_, S> = unsafe { At::make(memory, space, (above + 1, index), 0, |_| EMPTY) };
                // SAFETY: nobody else knows the node; the slot is its parent's, whose tree nobody uses.
                unsafe {
                    space.refs().set_weak(new.node(), Some(slot));
                    at.add(1, pin);
                }
                // Release: as all links.
                slot.store(new.link(), Ordering::Release);
                new
            } else {
                // SAFETY: the link is in the slot.
                unsafe { At::of_link(slot.load(Ordering::Relaxed)) }
            };
        }
        // Release: as all values.
        at.slot(Shape::<S>::index(self.level, self.first)).store(word, Ordering::Release);
        // SAFETY: nobody else uses the tree, so the node isn't judged: this CPU is pinned.
        unsafe { at.add(1, pin) };
    }
}

/// For callers that have a section anyway.
impl<S: Space> Tree<S> {
    /// How many trees have the frozen node at `key`, and whether one of them has made a copy; `None` if there is none.
    pub fn sharers(&self, key: u64, section: &Section<'_, S>) -> Option<(u32, bool)> {
        self.check(section);
        let mut at = self.root();
        for level in 0..Shape::<S>::LEAF {
            // Acquire: as in `get`.
            let seen = at.slot(Shape::<S>::index(level, key)).load(Ordering::Acquire);
            if !word::is_link(seen) {
                return None;
            }
            // SAFETY: the link was in a slot during the section.
            at = unsafe { At::of_link(seen) };
            if word::is_frozen(seen) {
                // Relaxed: a figure.
                let sharers = at.node().sharers.load(Ordering::Relaxed);
                return Some((sharers & !COPIED, sharers & COPIED != 0));
            }
        }
        None
    }
}

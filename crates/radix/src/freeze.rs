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
//! without another look (`lock`). The freezer reads the slots in ascending order until none is locked: when it has
//! seen the locker's first slot free, the locker is unlocking and takes no more, and the slots behind are read after that.
//!
//! **A frozen node stays.** Its slots are used and don't change; its weak word is taken away once the link is the freezer's,
//! so Refcache never touches the link. In between it may set DYING, which that takes back; it can't take the link
//! away, as it expects the bare link. Only then are there two trees, so two forks of one tree never meet here: they are
//! ordered by the link's lock.
//!
//! **What differs for the other tree** it gets slot by slot ([`Given::Slots`]): a copy of the node, made at once; or as one word
//! ([`Given::Value`]). The node is the forking tree's alone, and stays frozen until something is to be changed, when it is
//! taken over without memory. Who decides reads a copy of the values, which is as good as the node, as they don't change.
//!
//! **Who looks something up may be left inside.** He comes by a link, and while he is in the node his tree may share it, part with
//! it by a copy, and the last tree that has it may take it over and change it. So he loads the slot with Acquire, and
//! then looks whether the link that he came by names the node even now; if not, he starts again from the root. That is enough:
//! * If the word is another tree's, his tree had stored another link before: *his tree stores its new link; gives its share up*
//!   (`fetch_sub`, a release) *-> the last tree finds itself alone* (an acquire) *-> stores the word* (a release) *-> he loads it*.
//!   Each of these comes before the next, so the second look finds the new link, or a later word. All stores to a
//!   slot are releases, or swaps of the LOCK bit, which carry them on; taking over changes no value, but for what is known of its use.
//! * If the link names the node, then the node was his tree's all the time in between: it doesn't come back to a tree that has parted with
//!   it. New trees alone are given nodes, and nobody looks in them yet; and its memory is another node's only
//!   after a grace period, which his section holds up. So what he read was his tree's when he read it, whether the
//!   node was frozen or not.
//!
//! He may find it gone as often as somebody has replaced the link, and no more often. The same goes for who locks one slot and
//! finds it EMPTY, and for who leaves EMPTY slots out (`lock`); who locks a slot looks at the link anyway.
//!
//! **Schedules to think of.** A tree is forked while others that share its nodes part with them: the count of trees goes up under
//! the lock of a link that has the node, so it isn't 0 meanwhile, and one who finds himself alone stays so while he has the lock of his link. The last
//! two part at once: each copies, and who is the last after all has the pages that the node owned given up by `unshare`; or
//! one of them comes late, and takes over. A tree ends while another narrows: its values are told before the share goes, and are
//! told again as owned if it was the last. A locker that comes late into a node that another tree has taken over locks a
//! slot for a moment; that tree waits for him as for any other, and he waits for nobody before he backs out.

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

/// The bits of all of these slots together, which are looked at in ascending order.
#[inline]
fn either(slots: &[AtomicU64]) -> u64 {
    // Acquire: what their holders did comes before; partner: the unlocking store.
    let add = |all: u64, slot: &AtomicU64| all | slot.load(Ordering::Acquire);
    match slots.as_array::<8>() {
        Some(eight) => eight.iter().fold(0, add),
        None => slots.iter().fold(0, add),
    }
}

/// What another tree gets of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given {
    /// Nothing.
    Nothing,
    /// The same: the frozen node, or the value, with the same pages.
    Same,
    /// Another value, with the same pages or without any; of a frozen node, one without pages for all of its slots.
    Value(u64),
    /// Of a frozen node, the values that are in the slice now.
    Slots,
}

/// Slots of a leaf, at most.
const MOST: usize = 64;

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
        let mut used = false;
        for some in leaf.all().chunks(8) {
            let value = loop {
                let seen = either(some);
                if seen & LOCK == 0 || mutant!("radix-freeze-no-wait") {
                    break seen & !LOCK;
                }
                if let Err(error) = self.wait() {
                    // Release: nothing was done. Refcache may have set DYING, so the bits alone are cleared.
                    slot.fetch_and(!(FROZEN | LOCK), Ordering::Release);
                    // SAFETY: the reference from above.
                    unsafe { leaf.add(-1, self.pin) };
                    return Err(error);
                }
            };
            used |= value != EMPTY;
        }
        // SAFETY: there is a reference. The link is frozen, so nobody gets one by it.
        unsafe { refs.set_weak(leaf.node(), None) };
        if used {
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

    /// Give `to`, which is new, what `child` says of the slots that this guard has of its tree, in ascending order; of a frozen
    /// one it is told the values of its node too, or 0 for nothing, in whose place it may put the other tree's, and say
    /// [`Given::Slots`]. The guard is one of [`Mode::Freeze`](crate::Mode::Freeze). If there is no memory, or `child` fails,
    /// `to` has a part, and this tree what it had; `to` is then to be [retired](Tree::retire). Panics if what is said is not for
    /// the slot.
    pub fn fork(
        &mut self,
        to: &mut Tree<S>,
        mut child: impl FnMut(Span, &mut [u64]) -> Result<Given, Error>,
    ) -> Result<(), Error> {
        const { assert!(Shape::<S>::fanout(Shape::<S>::LEAF) <= MOST) }
        let (space, pin) = (self.space, self.pin);
        assert!(core::ptr::eq(space, to.space()), "the other tree is another space's");
        let (mut path, mut room) = (Path::new(to, pin), [EMPTY; MOST]);
        for record in self.records.iter() {
            let (level, keys) = (record.at.level(), record.span());
            for (first, slot) in record.slots() {
                // Relaxed: this guard holds the slot.
                let seen = slot.load(Ordering::Relaxed) & !LOCK;
                if seen == EMPTY {
                    continue;
                }
                // SAFETY: the link is in the slot.
                let leaf = word::is_frozen(seen).then(|| unsafe { At::<S>::of_link(seen) });
                let values = leaf.map_or(&mut [][..], |leaf| read(leaf, &mut room));
                let value = match (child(Span::of(first, keys, seen), values)?, leaf) {
                    (Given::Nothing, _) => continue,
                    (Given::Slots, Some(leaf)) => {
                        give_slots(leaf, (first, level), values, &mut path)?;
                        continue;
                    }
                    (Given::Same, Some(leaf)) => {
                        let place = path.slot(first, level)?;
                        // Relaxed: who gives a share up later has the link from here.
                        leaf.node().sharers.fetch_add(1, Ordering::Relaxed);
                        // Release: as all links.
                        place.store(seen, Ordering::Release);
                        continue;
                    }
                    (Given::Value(value), Some(_)) if !space.has_pages(value) => {
                        let place = path.slot(first, level)?;
                        space.count(value, 1, pin);
                        // Release: as all values.
                        place.store(share(space, value, keys, pin), Ordering::Release);
                        continue;
                    }
                    (Given::Same, None) => seen,
                    (Given::Value(value), None) => value,
                    (given, _) => panic!("{given:?} is not for {:?}", Span::of(first, keys, seen)),
                };
                if mutant!("radix-fork-by-parts") && level < Shape::<S>::LEAF {
                    let (part, parts) = (Shape::<S>::span(level + 1), Shape::<S>::fanout(level + 1));
                    for i in 0..parts as u64 {
                        let place = path.slot(first + i * part, level + 1)?;
                        space.count(value, 1, pin);
                        place.store(S::part(value, i * part), Ordering::Release);
                    }
                    continue;
                }
                let place = path.slot(first, level)?;
                space.count(value, 1, pin);
                // Release: as in `put` of `guard`.
                slot.store(space.mark_shared(seen) | LOCK, Ordering::Release);
                // Release: as all values.
                place.store(share(space, value, keys, pin), Ordering::Release);
            }
        }
        Ok(())
    }
}

/// Copy the values of a frozen node, or EMPTY.
fn read<'v, S: Space>(leaf: At<'_, S>, into: &'v mut [u64; MOST]) -> &'v mut [u64] {
    // Relaxed: they don't change, and the link was read with Acquire.
    let value = |slot: &AtomicU64| slot.load(Ordering::Relaxed) & !LOCK;
    let slots = leaf.all();
    let into = &mut into[..slots.len()];
    let ((eights, few), (into_eights, into_few)) = (slots.as_chunks::<8>(), into.as_chunks_mut::<8>());
    into_eights.iter_mut().zip(eights).for_each(|(into, slots)| *into = slots.each_ref().map(value));
    into_few.iter_mut().zip(few).for_each(|(into, slot)| *into = value(slot));
    into
}

/// `value` for a slot of another tree, of `keys` keys.
fn share<S: Space>(space: &S, value: u64, keys: u64, pin: &Pinned<'_>) -> u64 {
    assert!(word::is_value(value) && value != EMPTY, "{value:#x} is no value for a slot");
    space.mark_shared(space.share(value, keys, pin))
}

/// Give another tree `values` for the slots of a frozen node, whose place is `(first key, level of the link)`.
fn give_slots<S: Space>(
    leaf: At<'_, S>,
    (base, level): (u64, usize),
    values: &[u64],
    path: &mut Path<'_, S>,
) -> Result<(), Error> {
    let (space, pin) = (leaf.space(), path.pin);
    // Relaxed: as in `leave`. What both have is shared from now on.
    leaf.node().sharers.fetch_or(COPIED, Ordering::Relaxed);
    if values.iter().all(|value| *value == EMPTY) {
        return Ok(());
    }
    path.enter(base, level)?;
    // The value before, what is stored for it, and in how many slots in a row if it is the same in all.
    let (mut last, mut word, mut alike, mut used) = (EMPTY, EMPTY, 0, 0);
    path.make(base, level + 1, |i| {
        let value = values[i];
        if value != last || space.has_pages(value) {
            count_run(space, last, alike, pin);
            (last, alike) = (value, 0);
            word = if value == EMPTY { EMPTY } else { share(space, value, 1, pin) };
        }
        alike += 1;
        used += i32::from(value != EMPTY);
        word
    })?;
    count_run(space, last, alike, pin);
    path.fill(level + 1, used);
    Ok(())
}

/// `n` more slots have `value`, which may be EMPTY.
fn count_run<S: Space>(space: &S, value: u64, n: i32, pin: &Pinned<'_>) {
    if value != EMPTY {
        space.count(value, n, pin);
    }
}

/// How many trees have the frozen node. One who is asked with its tree's link locked, and finds that tree alone, may rely on it.
pub(crate) fn trees<S: Space>(leaf: At<'_, S>) -> u32 {
    // Relaxed: what others did who have given their shares up is ordered where the node is taken over.
    leaf.node().sharers.load(Ordering::Relaxed) & !COPIED
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
    let mut take = |owned: bool, again: bool, i: usize, value: u64| {
        // Relaxed: decided before the last share was given up, by which it is ordered.
        let copied = sharers.load(Ordering::Relaxed) & COPIED != 0;
        let value = if copied || !owned { leaf.space().mark_shared(value) } else { value };
        taken(Taken { value, first: base + i as u64, keys: 1, owned, frozen: true, again });
    };
    // Acquire: as in `thaw`. This tree's share is one, so nobody else's can appear.
    let shared = sharers.load(Ordering::Acquire) & !COPIED != 1;
    if shared {
        values(leaf).for_each(|(i, value)| take(false, false, i, value));
        // AcqRel: as in `leave`.
        if sharers.fetch_sub(1, Ordering::AcqRel) & !COPIED != 1 {
            return;
        }
    }
    give_up(leaf, pin, |i, value| take(true, shared, i, value));
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

/// The way to the slot of a new tree that was filled last. There is a hold on each node of it, and the slots that were
/// filled are counted when it is left.
struct Path<'t, S: Space> {
    tree: &'t mut Tree<S>,
    pin: &'t Pinned<'t>,
    /// For each level a node, its first key, and how many of its slots are used. None below one that isn't there.
    nodes: [Option<(At<'t, S>, u64, i32)>; MAX_LEVELS],
}

impl<'t, S: Space> Path<'t, S> {
    fn new(tree: &'t mut Tree<S>, pin: &'t Pinned<'t>) -> Self {
        // SAFETY: the root is there as long as its tree.
        let root = unsafe { At::new(tree.root().pointer()) };
        let mut nodes = [None; MAX_LEVELS];
        nodes[0] = Some((root, 0, 0));
        Self { tree, pin, nodes }
    }
    /// The slot for `first` at `level`, which is EMPTY, to be filled. Slots are asked for in ascending order.
    #[inline]
    fn slot(&mut self, first: u64, level: usize) -> Result<&'t AtomicU64, Error> {
        if self.nodes[level].is_none_or(|(_, base, _)| base != Shape::<S>::base(level, first)) {
            self.enter(first, level)?;
        }
        let (at, _, used) = self.nodes[level].as_mut().ok_or(Error::OutOfMemory)?;
        *used += 1;
        Ok(at.slot(Shape::<S>::index(level, first)))
    }
    /// Go to the node of `level` that has a slot for `first`: it is made if it isn't there yet.
    #[cold]
    fn enter(&mut self, first: u64, level: usize) -> Result<(), Error> {
        for level in 1..=level {
            if self.nodes[level].is_none_or(|(_, base, _)| base != Shape::<S>::base(level, first)) {
                self.make(first, level, |_| EMPTY)?;
            }
        }
        Ok(())
    }
    /// Make such a node, with the words that `word` gives for its slots; none of them is counted. The node above is there.
    #[inline]
    fn make(&mut self, first: u64, level: usize, word: impl FnMut(usize) -> u64) -> Result<(), Error> {
        let (space, pin) = (self.tree.space(), self.pin);
        self.leave(level);
        let memory = node::alloc(space, level, pin).ok_or(Error::OutOfMemory)?;
        let Some((above, _, used)) = &mut self.nodes[level - 1] else { return Err(Error::OutOfMemory) };
        *used += 1;
        let index = Shape::<S>::index(level - 1, first);
        let slot = above.slot(index);
        // SAFETY: the memory is of this level and ours; the space lives for ever; one reference is the hold.
        let new: At<'t, S> = unsafe { At::make(memory, space, (level, index), 1, word) };
        // SAFETY: nobody else knows the node; the slot is its parent's.
        unsafe { space.refs().set_weak(new.node(), Some(slot)) };
        // Release: as all links.
        slot.store(new.link(), Ordering::Release);
        self.nodes[level] = Some((new, Shape::<S>::base(level, first), 0));
        Ok(())
    }
    /// `used` slots of the node of `level` were EMPTY and aren't any more.
    fn fill(&mut self, level: usize, used: i32) {
        if let Some((_, _, count)) = &mut self.nodes[level] {
            *count += used;
        }
    }
    /// Count what was filled in the nodes of `level` and below, and give up the holds on them.
    fn leave(&mut self, level: usize) {
        let places = self.nodes.iter_mut().skip(level).map_while(Option::take);
        for ((at, _, used), level) in places.zip(level..) {
            // SAFETY: up: used slots. Down: the hold; the root has none.
            unsafe { at.add(used - i32::from(level > 0), self.pin) };
        }
    }
}

impl<S: Space> Drop for Path<'_, S> {
    fn drop(&mut self) {
        self.leave(0);
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

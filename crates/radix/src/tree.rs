//! The tree: lookups, which take no lock and write nothing, and its end.

use core::{fmt, ops::Range, ptr::NonNull};

use percpu::Pinned;
use sync::primitive::{AtomicU32, AtomicU64, Ordering};

use crate::{
    guard::Taken,
    node::{self, At, Node},
    space::{Error, Shape, Space},
    word::{self, DEAD, EMPTY, LOCK},
};

/// A map from keys to values, in which a value may stand for a whole aligned span of keys.
///
/// A tree ends by [`Self::retire`]; one that is dropped otherwise keeps its nodes for ever.
pub struct Tree<S: Space> {
    root: NonNull<Node<S>>,
    space: &'static S,
    /// How many guards keep EMPTY slots from being filled: see `lock`.
    pub(crate) closed: AtomicU32,
}

// SAFETY: nodes may be used by any thread; what they have in common is the space, which is `Sync`.
unsafe impl<S: Space> Send for Tree<S> {}
// SAFETY: as above.
unsafe impl<S: Space> Sync for Tree<S> {}

/// So many slots are looked at before it is asked whether one of them is of interest.
const GLANCE: usize = 8;

/// A time in which no node that an operation may meet is freed: a section of the space's RCU domain.
#[must_use = "the section ends as soon as this is dropped"]
pub struct Section<'p, S> {
    pin: &'p Pinned<'p>,
    space: &'p S,
    _read: rcu::kernel::Guard<'p>,
}

impl<'p, S: Space> Section<'p, S> {
    /// Enter. The CPU stays out of the domain's idle state meanwhile.
    pub fn new(space: &'p S, pin: &'p Pinned<'p>) -> Self {
        Self { pin, space, _read: space.rcu().read(pin) }
    }
    /// The CPU that the section is on.
    pub fn pin(&self) -> &'p Pinned<'p> {
        self.pin
    }
}

impl<S> fmt::Debug for Section<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Section({:?})", self.pin.cpu())
    }
}

/// What a lookup finds: a value, and the span that it is folded over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The value; 0 if there is none.
    pub value: u64,
    /// The span's first key.
    pub first: u64,
    /// The number of keys in the span: a power of two.
    pub keys: u64,
    /// Whether the slot is in a frozen node: other trees have it as well.
    pub frozen: bool,
    /// Whether somebody has the slot locked, who may not be done with what it said before.
    pub locked: bool,
}

impl<S: Space> Tree<S> {
    /// An empty tree: its root and no more.
    pub fn new(space: &'static S, pin: &Pinned<'_>) -> Result<Self, Error> {
        let memory = node::alloc(space, 0, pin).ok_or(Error::OutOfMemory)?;
        // SAFETY: the memory is ours, and the space lives for ever. One reference is the tree's.
        let root: At<'_, S> = unsafe { At::make(memory, space, (0, 0), 1, |_| EMPTY) };
        Ok(Self { root: root.pointer(), space, closed: AtomicU32::new(0) })
    }
    /// How many keys there are: they are those below.
    pub const fn keys() -> u64 {
        Shape::<S>::KEYS
    }
    /// The space that the tree is of.
    pub fn space(&self) -> &'static S {
        self.space
    }
    /// Enter a section, in which the tree may be used.
    pub fn enter<'p>(&self, pin: &'p Pinned<'p>) -> Section<'p, S> {
        Section::new(self.space, pin)
    }
    pub(crate) fn root<'s>(&'s self) -> At<'s, S> {
        // SAFETY: the root has the tree's reference until `retire`, which owns the tree.
        unsafe { At::new(self.root) }
    }
    /// Whether the section is one of the tree's space.
    pub(crate) fn check(&self, section: &Section<'_, S>) {
        assert!(core::ptr::eq(self.space, section.space), "the section is another space's");
    }
    /// What is at `key`, without locking and without writing. Panics if there is no such key.
    ///
    /// **Linearisable.** The load of the slot decides: one word is a consistent view of it, and after it the link to its node
    /// is looked at again, which still names the node: so it was this tree's when the slot was read, and what it said
    /// there was what the tree said. If the node was collapsed, replaced, or left to another tree, the way from the root
    /// leads to what is there now.
    pub fn get(&self, key: u64, section: &Section<'_, S>) -> Found {
        assert!(key < Self::keys(), "key {key} of {}", Self::keys());
        self.check(section);
        loop {
            if let Some(found) = self.descend(key) {
                return found;
            }
        }
    }
    fn descend(&self, key: u64) -> Option<Found> {
        let (mut at, mut link, mut frozen) = (self.root(), None, false);
        for level in 0..Shape::<S>::LEVELS {
            let slot = at.slot(Shape::<S>::index(level, key));
            // Acquire: a node was filled before its link was stored, and what a value names before the value; partners:
            // the Release stores of links in `narrow`, and of values in `guard`.
            let seen = slot.load(Ordering::Acquire);
            if word::is_link(seen) {
                frozen = word::is_frozen(seen);
                // SAFETY: the link was in a slot during the caller's section.
                (at, link) = (unsafe { At::of_link(seen) }, Some(slot));
                continue;
            }
            if seen == DEAD || !at.is_still_in(link) {
                return None;
            }
            let keys = Shape::<S>::span(level);
            let (value, locked) = (seen & !LOCK, seen & LOCK != 0);
            return Some(Found { value, first: key & !(keys - 1), keys, frozen, locked });
        }
        unreachable!("a leaf has no links")
    }
    /// Call `each` with what is found from `keys.start` on, in ascending order, until the range ends or `each` says false.
    /// Spans without a value are left out. Each is looked up at some moment during the call, as by [`Self::get`]: a node that
    /// was found is read to its end, or until the tree has it no more.
    pub fn scan(&self, keys: Range<u64>, section: &Section<'_, S>, mut each: impl FnMut(Found) -> bool) {
        self.walk(keys, section, |found| found.value == EMPTY || each(found));
    }
    /// The same, with spans that have no value.
    pub fn walk(&self, keys: Range<u64>, section: &Section<'_, S>, mut each: impl FnMut(Found) -> bool) {
        self.check(section);
        let (mut key, end) = (keys.start, keys.end.min(Self::keys()));
        while key < end {
            let (at, link, level, frozen) = self.bottom(key);
            let span = Shape::<S>::span(level);
            for i in Shape::<S>::index(level, key)..Shape::<S>::fanout(level) {
                // Acquire: as in `descend`.
                let seen = at.slot(i).load(Ordering::Acquire);
                // DEAD, or another tree's by now: from the root again, as for a link.
                if key >= end || seen == DEAD || word::is_link(seen) || !at.is_still_in(link) {
                    break;
                }
                let (value, first, locked) = (seen & !LOCK, key & !(span - 1), seen & LOCK != 0);
                let found = Found { value, first, keys: span, frozen, locked };
                if !each(found) {
                    return;
                }
                key = found.first + span;
            }
        }
    }
    /// As [`Self::walk`], but for spans alone that are locked or frozen, or whose values have one of `bits`; of a leaf it takes two
    /// instructions for each of the others. What is in the way of a look at a leaf is found twice.
    pub fn glance(&self, keys: Range<u64>, bits: u64, section: &Section<'_, S>, mut each: impl FnMut(Found)) {
        self.check(section);
        let (mut at, end) = (keys.start, keys.end.min(Self::keys()));
        while at < end {
            let base = Shape::<S>::base(Shape::<S>::LEAF, at);
            let part = at..end.min(base + Shape::<S>::fanout(Shape::<S>::LEAF) as u64);
            at = part.end;
            if self.glance_leaf(part.clone(), bits, &mut each) {
                continue;
            }
            self.walk(part, section, |found| {
                if found.frozen || found.locked || found.value & bits != 0 {
                    each(found);
                }
                true
            });
        }
    }
    /// The same for keys of one leaf. False if there is none, it is frozen, or the tree has lost it meanwhile.
    #[inline]
    fn glance_leaf(&self, keys: Range<u64>, bits: u64, each: &mut impl FnMut(Found)) -> bool {
        let leaf = Shape::<S>::LEAF;
        let (at, link, level, frozen) = self.bottom(keys.start);
        if level != leaf || frozen {
            return false;
        }
        // Acquire: as in `descend`; and who finds the word of another tree finds that this one has lost the leaf.
        let look = |slot: &AtomicU64| slot.load(Ordering::Acquire);
        let slots = at.all().get(Shape::<S>::index(leaf, keys.start)..).unwrap_or_default();
        for (key, some) in keys.clone().step_by(GLANCE).zip(slots.chunks(GLANCE)) {
            let any = |some: &[AtomicU64]| some.iter().fold(0, |all, slot| all | look(slot));
            // Of so many the compiler makes no loop.
            let all = <&[AtomicU64; GLANCE]>::try_from(some).map_or_else(|_| any(some), |some| any(some));
            // DEAD has LOCK.
            if all & (bits | LOCK) == 0 {
                continue;
            }
            for (first, slot) in (key..keys.end).zip(some) {
                let seen = look(slot);
                if seen == DEAD || !at.is_still_in(link) {
                    return false;
                }
                if seen & (bits | LOCK) != 0 {
                    each(Found { value: seen & !LOCK, first, keys: 1, frozen, locked: seen & LOCK != 0 });
                }
            }
        }
        at.is_still_in(link)
    }
    /// The node to which links lead for `key`, the slot of the last one, the node's level, and whether it is frozen.
    fn bottom(&self, key: u64) -> (At<'_, S>, Option<&AtomicU64>, usize, bool) {
        let (mut at, mut link, mut frozen) = (self.root(), None, false);
        for level in 0..Shape::<S>::LEAF {
            let slot = at.slot(Shape::<S>::index(level, key));
            // Acquire: as in `descend`.
            let seen = slot.load(Ordering::Acquire);
            if !word::is_link(seen) {
                return (at, link, level, frozen);
            }
            frozen = word::is_frozen(seen);
            // SAFETY: the link was in a slot during the caller's section.
            (at, link) = (unsafe { At::of_link(seen) }, Some(slot));
        }
        (at, link, Shape::<S>::LEAF, frozen)
    }
    /// How many nodes there are now, by level, the root's first: for reports. Others may change the tree meanwhile.
    pub fn nodes(&self, section: &Section<'_, S>) -> [usize; crate::MAX_LEVELS] {
        fn visit<S: Space>(at: At<'_, S>, count: &mut [usize]) {
            count[at.level()] += 1;
            for slot in at.all() {
                // Acquire: as in `descend`.
                let seen = slot.load(Ordering::Acquire);
                if word::is_link(seen) {
                    // SAFETY: the link was in a slot during the caller's section.
                    visit(unsafe { At::<S>::of_link(seen) }, count);
                }
            }
        }
        self.check(section);
        let mut count = [0; crate::MAX_LEVELS];
        visit(self.root(), &mut count);
        count
    }
    /// End the tree: every value goes to `taken`, and its nodes are collected by and by. Nobody else uses the tree any
    /// more, so no locks are taken, and nothing can fail. Locks of guards that were forgotten don't matter.
    pub fn retire(self, section: &Section<'_, S>, mut taken: impl FnMut(Taken)) {
        self.check(section);
        let (root, pin) = (self.root(), section.pin());
        self.empty(root, 0, section.pin(), &mut taken);
        // SAFETY: the reference that the tree had from the start. Used slots keep the root until their nodes are gone.
        unsafe { root.add(-1, pin) };
    }
    fn empty(&self, at: At<'_, S>, base: u64, pin: &Pinned<'_>, taken: &mut impl FnMut(Taken)) {
        let (level, mut used) = (at.level(), 0);
        let keys = Shape::<S>::span(level);
        for (i, slot) in at.all().iter().enumerate() {
            // Acquire: as in `descend`.
            let (seen, first) = (slot.load(Ordering::Acquire) & !LOCK, base + i as u64 * keys);
            if word::is_frozen(seen) {
                // Relaxed: nobody looks any more.
                slot.store(EMPTY, Ordering::Relaxed);
                // SAFETY: the link was in a slot during the section.
                crate::freeze::drop_share(unsafe { At::<S>::of_link(seen) }, first, pin, taken);
            } else if word::is_link(seen) {
                // SAFETY: the link was in a slot during the section.
                self.empty(unsafe { At::of_link(seen) }, first, pin, taken);
                continue;
            } else if seen != EMPTY {
                slot.store(EMPTY, Ordering::Relaxed);
                self.space.count(seen, -1, pin);
                taken(Taken { value: seen, first, keys, owned: true, frozen: false, again: false });
            } else {
                continue;
            }
            used += 1;
        }
        // SAFETY: the slots were used.
        unsafe { at.add(-used, pin) };
    }
}

impl<S: Space> fmt::Debug for Tree<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tree").field("root", &self.root).finish_non_exhaustive()
    }
}

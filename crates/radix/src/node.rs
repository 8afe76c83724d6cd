//! Nodes: a line of head, and slots.
//!
//! ```text
//!  0   RefHead: count of used slots and holds       32   rcu: link of what waits to be freed
//! 48   space        56 sharers (frozen), 60 index in the parent, 62 level        64.. slots of 8 bytes, annex
//! ```
//! **Count.** The true count of a node is the number of its slots that are not EMPTY, plus one for each hold; the root has
//! one more, its tree's. When it has been 0 for two epochs, Refcache puts EMPTY in the place of the link to the node, and
//! calls [`dispose`](Counted::dispose): the parent has a used slot less, and the memory is freed after a grace period, as
//! lookups may be inside. A node without a weak word was replaced or given up, and whoever did that has settled with the
//! parent already.

use core::{
    alloc::Layout,
    marker::PhantomData,
    mem::{MaybeUninit, offset_of},
    ptr,
    ptr::NonNull,
};

use percpu::Pinned;
use refcache::{Counted, RefHead, word as refs};
use sync::{
    mutant,
    primitive::{AtomicU32, AtomicU64, Ordering},
};

use crate::{
    space::{Refs, Shape, Space},
    word::{DEAD, EMPTY, is_link},
};

/// The head of a node. Slots follow.
#[repr(C, align(64))]
pub(crate) struct Node<S> {
    head: RefHead,
    retired: rcu::Head,
    space: *const S,
    /// If the node is frozen: how many trees have it, and [`COPIED`].
    pub(crate) sharers: AtomicU32,
    index: u16,
    level: u8,
}

/// In `sharers`: some tree has made a copy, so pages may be shared even if this is the last tree that has the node.
pub(crate) const COPIED: u32 = 1 << 31;

// SAFETY: all that changes is atomic, or belongs to the domains that are meant; the pointer is to a `Sync` space.
unsafe impl<S: Space> Send for Node<S> {}
// SAFETY: as above.
unsafe impl<S: Space> Sync for Node<S> {}

// SAFETY: the head is the first field, and made for this type in `At::make`.
unsafe impl<S: Space> Counted for Node<S> {
    fn head(&self) -> &RefHead {
        &self.head
    }
    unsafe fn dispose(this: NonNull<Self>, pin: &Pinned<'_>) {
        // SAFETY: the object is there until `free` below is called, and its memory until then too.
        let at = unsafe { At::<S>::new(this) };
        let space = at.space();
        if let Some(slot) = at.node().head.weak() {
            // SAFETY: the slot is a parent's, which is there, since its count has this node until now.
            let parent = unsafe { at.parent(slot.as_ref()) };
            // SAFETY: the used slot is the reference that is given up.
            unsafe { space.refs().add(parent.node(), -1, pin) };
        }
        // SAFETY: the link is gone, be it by Refcache or by who replaced the node, and `dispose` is called once. The
        // pointer is the one for the whole node.
        let retired = unsafe {
            let head = this.byte_add(offset_of!(Self, retired)).cast::<rcu::Head>();
            rcu::Retired::new(head, free::<S>)
        };
        if mutant!("radix-free-early") {
            // SAFETY: none; a reader may be in the node.
            return unsafe { free::<S>(this.byte_add(offset_of!(Self, retired)).cast(), pin) };
        }
        let bytes = layout::<S>(at.level()).size();
        space.rcu().call(pin, retired.of_bytes(bytes));
    }
}

/// # Safety
/// `head` is that of a `Node<S>`, which nobody uses any more.
unsafe fn free<S: Space>(head: NonNull<rcu::Head>, pin: &Pinned<'_>) {
    // SAFETY: by the caller's promise, and as `dispose` derived the pointer.
    unsafe { At::new(head.byte_sub(offset_of!(Node<S>, retired)).cast::<Node<S>>()).free(pin) };
}

/// Where the annex of a node of `level` is, if it has one.
fn annex<S: Space>(level: usize) -> Option<usize> {
    Shape::<S>::annex(level, size_of::<Node<S>>(), size_of::<AtomicU64>())
}

/// Memory for a node of `level`.
pub(crate) fn layout<S: Space>(level: usize) -> Layout {
    let slots = size_of::<Node<S>>() + Shape::<S>::fanout(level) * size_of::<AtomicU64>();
    let size = annex::<S>(level).map_or(slots, |offset| offset + size_of::<S::Annex>());
    // A size below a megabyte, and an alignment that a type has.
    Layout::from_size_align(size, align_of::<Node<S>>()).unwrap_or(Layout::new::<Node<S>>()).pad_to_align()
}

/// Memory that may become a node.
pub(crate) fn alloc<S: Space>(space: &S, level: usize, pin: &Pinned<'_>) -> Option<NonNull<Node<S>>> {
    space.alloc(layout::<S>(level), pin).map(NonNull::cast)
}

/// A node, for as long as `'s`: a section, or the life of its tree.
pub(crate) struct At<'s, S> {
    node: NonNull<Node<S>>,
    _section: PhantomData<&'s Node<S>>,
}

impl<S> Clone for At<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for At<'_, S> {}

impl<S> PartialEq for At<'_, S> {
    fn eq(&self, other: &Self) -> bool {
        self.node == other.node
    }
}

impl<'s, S: Space> At<'s, S> {
    /// # Safety
    /// A node that [`Self::make`] made is there, and isn't freed during `'s`; the pointer is to the whole of it.
    pub(crate) unsafe fn new(node: NonNull<Node<S>>) -> Self {
        Self { node, _section: PhantomData }
    }
    /// The node that `link` names.
    ///
    /// # Safety
    /// `link` is a live link that was in a slot of a tree of `S` during the section `'s`.
    pub(crate) unsafe fn of_link(link: u64) -> Self {
        // SAFETY: the address of a live link is not null, and nodes are freed a grace period after their link is gone.
        unsafe { Self::new(NonNull::new_unchecked(refs::object(link))) }
    }
    /// Make a node in `memory`, with `count` references and the words that `word` gives for its slots.
    ///
    /// # Safety
    /// The memory is of the level's [`layout`], and nobody else's; `space` is there until the node is freed. What is made
    /// isn't freed during `'s`.
    pub(crate) unsafe fn make(
        memory: NonNull<Node<S>>,
        space: &S,
        (level, index): (usize, usize),
        count: usize,
        mut word: impl FnMut(usize) -> u64,
    ) -> Self {
        let head = Node {
            head: RefHead::new::<Node<S>>(count as i64),
            retired: rcu::Head::new(),
            space: ptr::from_ref(space),
            sharers: AtomicU32::new(0),
            index: index as u16,
            level: level as u8,
        };
        // SAFETY: the memory has room for the head and the level's slots, and is ours. The address is exposed, as links
        // and Refcache make pointers of addresses.
        unsafe {
            memory.as_ptr().expose_provenance();
            memory.write(head);
            let slots = memory.add(1).cast::<MaybeUninit<AtomicU64>>();
            let slots = NonNull::slice_from_raw_parts(slots, Shape::<S>::fanout(level)).as_mut();
            slots.iter_mut().enumerate().for_each(|(i, slot)| _ = slot.write(AtomicU64::new(word(i))));
            if let Some(offset) = annex::<S>(level) {
                memory.byte_add(offset).cast::<S::Annex>().write(S::Annex::default());
            }
            Self::new(memory)
        }
    }
    /// Give the memory back.
    ///
    /// # Safety
    /// Nobody else uses the node.
    pub(crate) unsafe fn free(self, pin: &Pinned<'_>) {
        let (space, level) = (self.space(), self.level());
        // SAFETY: made by `make`, and used by nobody.
        unsafe {
            let slots = ptr::slice_from_raw_parts_mut(self.slots().as_ptr(), Shape::<S>::fanout(level));
            if let Some(offset) = annex::<S>(level) {
                self.node.byte_add(offset).cast::<S::Annex>().drop_in_place();
            }
            ptr::drop_in_place(slots);
            ptr::drop_in_place(self.node.as_ptr());
            space.free(self.node.cast(), layout::<S>(level), pin);
        }
    }

    pub(crate) fn pointer(self) -> NonNull<Node<S>> {
        self.node
    }
    pub(crate) fn node(self) -> &'s Node<S> {
        // SAFETY: the promise of `new`.
        unsafe { self.node.as_ref() }
    }
    pub(crate) fn space(self) -> &'s S {
        // SAFETY: the promise of `make`.
        unsafe { &*self.node().space }
    }
    #[inline]
    pub(crate) fn level(self) -> usize {
        self.node().level.into()
    }
    fn slots(self) -> NonNull<AtomicU64> {
        // SAFETY: slots follow the head, in the same memory.
        unsafe { self.node.add(1).cast() }
    }
    #[inline]
    pub(crate) fn slot(self, index: usize) -> &'s AtomicU64 {
        debug_assert!(index < Shape::<S>::fanout(self.level()));
        // SAFETY: the callers' indices are below the level's fan-out, and so many slots were made.
        unsafe { self.slots().add(index).as_ref() }
    }
    /// What the node has besides.
    pub(crate) fn annex(self) -> Option<&'s S::Annex> {
        // SAFETY: made by `make`, and there as long as the node.
        annex::<S>(self.level()).map(|offset| unsafe { self.node.byte_add(offset).cast().as_ref() })
    }
    /// All slots.
    pub(crate) fn all(self) -> &'s [AtomicU64] {
        // SAFETY: so many were made.
        unsafe { NonNull::slice_from_raw_parts(self.slots(), Shape::<S>::fanout(self.level())).as_ref() }
    }
    /// The word that names the node.
    pub(crate) fn link(self) -> u64 {
        refs::link(self.node.as_ptr())
    }
    /// The node in which `slot` is, that names this one.
    ///
    /// # Safety
    /// It does, or did until the node died; the parent isn't freed during `'s`.
    pub(crate) unsafe fn parent(self, slot: &AtomicU64) -> Self {
        let back = size_of::<Node<S>>() + self.index() * size_of::<AtomicU64>();
        let address = ptr::from_ref(slot).addr() - back;
        // SAFETY: the slot is number `index` of its node, whose address was exposed when it was made.
        unsafe { Self::new(NonNull::new_unchecked(ptr::with_exposed_provenance_mut(address))) }
    }
    /// The slot that names it, if there is one: neither the root has one nor a node that was frozen or replaced.
    pub(crate) fn named_by(self) -> Option<&'s AtomicU64> {
        // SAFETY: the parent is there as long as its node is, and isn't freed in the section.
        self.node().head.weak().map(|slot| unsafe { slot.as_ref() })
    }
    /// Whether `word` is a link to it.
    pub(crate) fn is_named_by(self, word: u64) -> bool {
        is_link(word) && ptr::eq(refs::object::<Node<S>>(word), self.node.as_ptr())
    }
    /// Whether the slot by which a lookup has come here, if it wasn't the root, names the node even now, after a word of it
    /// was read with Acquire: else that may be another tree's (`freeze`).
    #[inline]
    pub(crate) fn is_still_in(self, link: Option<&AtomicU64>) -> bool {
        // Relaxed: if the word is another tree's, this tree's link was replaced before it was stored; partners: the chain
        // that `freeze` names. Nothing is read by it.
        link.is_none_or(|link| self.is_named_by(link.load(Ordering::Relaxed)))
            || mutant!("radix-no-second-look")
    }
    /// Which slot of its parent names it.
    pub(crate) fn index(self) -> usize {
        self.node().index.into()
    }
    /// Change the count.
    ///
    /// # Safety
    /// As [`refcache::Domain::add`].
    pub(crate) unsafe fn add(self, n: i32, pin: &Pinned<'_>) {
        if n != 0 {
            // SAFETY: the caller's promise.
            unsafe { self.space().refs().add(self.node(), n, pin) };
        }
    }
    /// Slots that are not EMPTY. Exact if nobody changes them.
    pub(crate) fn used(self) -> i32 {
        // Relaxed: the caller has excluded everybody else.
        let used = |slot: &&AtomicU64| slot.load(Ordering::Relaxed) & !crate::word::LOCK != EMPTY;
        self.all().iter().filter(used).count() as i32
    }
    /// Send whoever is in the node, or comes late, back to the root.
    pub(crate) fn die(self) {
        // Release: who meets DEAD sees what has taken the node's place; partner: the loads of lockers and lookups.
        self.all().iter().for_each(|slot| slot.store(DEAD, Ordering::Release));
    }
}

#[cfg(not(any(loom, shuttle)))]
const _: () = assert!(size_of::<Node<()>>() == 64);

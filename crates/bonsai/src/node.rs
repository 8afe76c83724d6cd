//! Nodes: one cache line of what readers read. What only the writer needs is apart from them.
//!
//! In a large tree a path ends in a *leaf*: up to [`LEAF`] spans in order, side by side, in place of the nodes that would be the
//! last four or five levels of the tree, each in a line of its own. Nothing of a leaf changes after its publication: an update makes
//! another.

use core::{cell::Cell, mem::offset_of, ptr, ptr::NonNull};

use percpu::Pinned;
use rcu::Head;
use sync::primitive::{AtomicPtr, Ordering, UnsafeCell};

use crate::{
    entry::Entry,
    pool::{self, Memory},
    span::Span,
};

/// A node. Only `child` changes after its publication.
#[repr(C, align(64))]
pub(crate) struct Node<S, V> {
    pub(crate) span: S,
    pub(crate) entry: NonNull<Entry<V>>,
    child: [AtomicPtr<Node<S, V>>; 2],
    /// For the time between its retirement and its end.
    head: Head,
    /// The next free node, or the next private one; null in a node that has been published.
    link: Cell<*mut Node<S, V>>,
    /// Says to loom that the node is read, or begins or ends. Of no size without it.
    life: UnsafeCell<()>,
}

#[cfg(not(any(loom, shuttle)))]
const _: () = assert!(size_of::<Node<crate::Region, ()>>() == 64);

/// The most spans of a leaf. Models have small ones, which are soon full.
pub(crate) const LEAF: usize = if cfg!(loom) {
    2
} else if cfg!(shuttle) {
    3
} else {
    14
};

/// Keys of a leaf that are compared together.
const GROUP: usize = if LEAF < 5 { LEAF } else { 5 };

/// A span and its entry.
pub(crate) type Item<S, V> = (S, NonNull<Entry<V>>);

/// The end of a path in a large tree. Keys lie together, as they are all compared, and behind the last there is the last again: so the
/// number of keys at or below the one that is looked for says where it is, which takes no branch, and readers need no length. What
/// they do next then does not wait for what they have found here.
#[repr(C, align(64))]
pub(crate) struct Leaf<S: Span, V> {
    keys: [S::Key; LEAF],
    rests: [(S::Rest, NonNull<Entry<V>>); LEAF],
    len: u32,
    /// The next private leaf, while it is one.
    link: Cell<*mut Leaf<S, V>>,
    /// For the time between its retirement and its end.
    head: Head,
    life: UnsafeCell<()>,
}

#[cfg(not(any(loom, shuttle)))]
const _: () = assert!(size_of::<Leaf<crate::Region, ()>>() == 6 * 64);

/// What the writer alone knows of a node or leaf.
pub(crate) struct Side {
    /// The nodes of the subtree, without leaves.
    pub(crate) size: Cell<u32>,
    /// The largest gap in the subtree's interval, or [`UNKNOWN`].
    pub(crate) gap: Cell<u32>,
}

/// The gap of a node that is private or has just been.
pub(crate) const UNKNOWN: u32 = u32::MAX;

/// What a path leads to.
pub(crate) enum Link<'t, S: Span, V> {
    Empty,
    Node(&'t Node<S, V>),
    Leaf(&'t Leaf<S, V>),
}

impl<S: Span, V> Clone for Link<'_, S, V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S: Span, V> Copy for Link<'_, S, V> {}

/// The lowest bit of a link says that it leads to no node, but to a leaf or, with no address beside it, to nothing. So a descent asks one
/// thing of each.
const ENDS: usize = 1;

/// A link to nothing.
pub(crate) const fn nothing<T>() -> *mut T {
    ptr::without_provenance_mut(ENDS)
}

impl<S: Span, V> Link<'_, S, V> {
    /// As it is stored.
    pub(crate) fn pointer(self) -> *mut Node<S, V> {
        match self {
            Link::Empty => nothing(),
            Link::Node(node) => pool::exposed(ptr::from_ref(node).addr()).as_ptr(),
            Link::Leaf(leaf) => pool::exposed(ptr::from_ref(leaf).addr() | ENDS).as_ptr(),
        }
    }
    pub(crate) fn is_empty(self) -> bool {
        matches!(self, Link::Empty)
    }
}

/// What lies in pages of a pool.
pub(crate) trait Slot: Sized {
    const IS_LEAF: bool;
    /// Where its [`Head`] is in it.
    const HEAD: usize;
    fn life(&self) -> &UnsafeCell<()>;
    /// The next private one, while it is one; null in one that has been published.
    fn link(&self) -> &Cell<*mut Self>;

    /// A pointer to the whole of it, as the pool gave it.
    fn pointer(&self) -> NonNull<Self> {
        pool::exposed(ptr::from_ref(self).addr())
    }
    /// What the writer knows of it.
    fn side(&self) -> &Side {
        // SAFETY: it is in a page of a pool, whose sides live as long as what they are of.
        unsafe { pool::side(self.pointer()).as_ref() }
    }
    /// The link by which it is retired.
    fn head(&self) -> NonNull<Head> {
        pool::exposed(ptr::from_ref(self).addr() + Self::HEAD)
    }
    /// Its end: what is left is memory.
    ///
    /// # Safety
    /// No reader and no writer uses it, or will.
    unsafe fn end(this: NonNull<Self>) {
        // SAFETY: the caller's promise.
        unsafe {
            this.as_ref().life().with_mut(|_| ());
            this.drop_in_place();
        }
    }
}

impl<S, V> Slot for Node<S, V> {
    const IS_LEAF: bool = false;
    const HEAD: usize = offset_of!(Self, head);
    fn life(&self) -> &UnsafeCell<()> {
        &self.life
    }
    fn link(&self) -> &Cell<*mut Self> {
        &self.link
    }
}

impl<S: Span, V> Slot for Leaf<S, V> {
    const IS_LEAF: bool = true;
    const HEAD: usize = offset_of!(Self, head);
    fn life(&self) -> &UnsafeCell<()> {
        &self.life
    }
    fn link(&self) -> &Cell<*mut Self> {
        &self.link
    }
}

impl<S: Span, V> Node<S, V> {
    /// What a reader finds at `place`.
    ///
    /// # Safety
    /// The result is not freed before 't ends: by a section, or by exclusion of the writer.
    #[inline(always)]
    pub(crate) unsafe fn follow<'t>(place: &AtomicPtr<Self>) -> Link<'t, S, V> {
        // Acquire [O2]: the node's fields come with it; partner: the stores in `Plan::publish`.
        // SAFETY: the caller's promise.
        unsafe { Self::at(place.load(Ordering::Acquire)) }
    }
    /// What is at `place`, for who knows that nobody stores there meanwhile.
    ///
    /// # Safety
    /// That nobody does, and the result is not freed before 't ends.
    #[inline(always)]
    pub(crate) unsafe fn stored<'t>(place: &AtomicPtr<Self>) -> Link<'t, S, V> {
        // Relaxed [O3]: nobody stores.
        // SAFETY: the caller's promise.
        unsafe { Self::at(place.load(Ordering::Relaxed)) }
    }
    /// # Safety
    /// The link was published, and what it leads to is not freed before 't ends.
    #[inline(always)]
    unsafe fn at<'t>(link: *mut Self) -> Link<'t, S, V> {
        if link.addr() & ENDS == 0 {
            // SAFETY: what is published is whole, and stays so by the caller's promise; the bit says what it is.
            let node = unsafe { &*link };
            node.life.with(|_| ());
            return Link::Node(node);
        }
        // SAFETY: as above.
        match unsafe { link.map_addr(|at| at & !ENDS).cast::<Leaf<S, V>>().as_ref() } {
            Some(leaf) => {
                leaf.life.with(|_| ());
                Link::Leaf(leaf)
            }
            None => Link::Empty,
        }
    }
    /// The place of one of the children.
    #[inline(always)]
    pub(crate) fn place(&self, right: bool) -> &AtomicPtr<Self> {
        &self.child[usize::from(right)]
    }
    /// Make a node of memory that is the writer's: private, and without children.
    ///
    /// # Safety
    /// `this` came from the pool, and nobody else uses it.
    pub(crate) unsafe fn init(this: NonNull<Self>, span: S, entry: NonNull<Entry<V>>, next: *mut Self) {
        let child = [AtomicPtr::new(nothing()), AtomicPtr::new(nothing())];
        let (head, link, life) = (Head::new(), Cell::new(next), UnsafeCell::new(()));
        // SAFETY: the caller's promise.
        unsafe { this.write(Self { span, entry, child, head, link, life }) };
        // SAFETY: as above. Loom is told that the node's fields were written.
        unsafe { this.as_ref() }.life.with_mut(|_| ());
    }
    pub(crate) fn is_private(&self) -> bool {
        !self.link.get().is_null()
    }
    /// The entry.
    #[inline(always)]
    pub(crate) fn entry(&self) -> &Entry<V> {
        // SAFETY: an entry is retired after the node that leads to it, and not before.
        unsafe { self.entry.as_ref() }
    }
}

impl<S: Span, V> Leaf<S, V> {
    /// Whether a leaf of these spans is small enough for a page to have some.
    pub(crate) const FITS: bool = size_of::<Self>() <= pool::PAGE / 4;

    /// Make a leaf of memory that is the writer's, private, of the first `len` of `items`.
    ///
    /// # Safety
    /// `this` came from the pool, and nobody else uses it. There are items, and no more than [`LEAF`].
    pub(crate) unsafe fn init(
        this: NonNull<Self>,
        len: usize,
        mut item: impl FnMut(usize) -> Item<S, V>,
        next: *mut Self,
    ) {
        let mut last = item(0);
        let (mut keys, mut rests) = ([last.0.key(); LEAF], [(last.0.rest(), last.1); LEAF]);
        for i in 1..LEAF {
            if i < len {
                last = item(i);
            }
            keys[i] = last.0.key();
            rests[i] = (last.0.rest(), last.1);
        }
        let (link, head, life) = (Cell::new(next), Head::new(), UnsafeCell::new(()));
        // SAFETY: the caller's promise.
        unsafe { this.write(Self { keys, rests, len: len as u32, link, head, life }) };
        // SAFETY: as above. Loom is told that the leaf was written.
        unsafe { this.as_ref() }.life.with_mut(|_| ());
    }
    /// How many spans it has.
    pub(crate) fn len(&self) -> usize {
        self.len as usize
    }
    #[inline(always)]
    pub(crate) fn item(&self, i: usize) -> Item<S, V> {
        (S::of(self.keys[i], self.rests[i].0), self.rests[i].1)
    }
    /// Its spans and their entries, in order.
    pub(crate) fn items(&self) -> impl Iterator<Item = Item<S, V>> + '_ {
        (0..self.len()).map(|i| self.item(i))
    }
    /// Have what there is of the spans and the entries fetched while keys are compared, as one will be needed.
    #[inline(always)]
    pub(crate) fn fetch(&self) {
        #[cfg(all(target_arch = "x86_64", not(any(loom, shuttle, miri))))]
        {
            const LINE: usize = 64;
            let first = offset_of!(Self, rests);
            for at in (first / LINE * LINE..first + size_of_val(&self.rests)).step_by(LINE) {
                // SAFETY: fetching changes nothing, and may not even fail.
                unsafe {
                    core::arch::asm!(
                        "prefetcht0 [{}]", in(reg) ptr::from_ref(self).cast::<u8>().wrapping_add(at),
                        options(nostack, preserves_flags, readonly)
                    );
                }
            }
        }
    }
    /// How many keys, of all places, are `low`, as all below some key are. So it is the first place whose key is not, if there is
    /// one; and the one before has the last that is, also if that is the last of all.
    ///
    /// The groups are counted first whose last key is `low`, and then the keys of the one that follows: two steps of a few
    /// comparisons that wait for nothing, and no branch.
    #[inline(always)]
    pub(crate) fn count(&self, low: impl Fn(S::Key) -> bool) -> usize {
        let is_low = |i: usize| usize::from(low(self.keys[i]));
        let groups: usize = (1..LEAF.div_ceil(GROUP)).map(|group| is_low(group * GROUP - 1)).sum();
        // The last group begins earlier if it would end beyond the keys: what it has in common with the one before is `low`.
        let first = (groups * GROUP).min(LEAF - GROUP);
        first + (0..GROUP).map(|i| is_low(first + i)).sum::<usize>()
    }
    /// Where the span with this key is.
    #[inline(always)]
    pub(crate) fn find(&self, key: S::Key) -> Option<usize> {
        let i = self.count(|at| at < key);
        // Below the length also if the order of keys is none.
        self.keys.get(i).is_some_and(|at| *at == key && i < self.len()).then_some(i)
    }
    /// One of its spans, and the entry. `None` behind the last place.
    #[inline(always)]
    pub(crate) fn get(&self, i: usize) -> Option<(S, &Entry<V>)> {
        if i >= LEAF {
            return None;
        }
        let (span, entry) = self.item(i);
        // SAFETY: an entry is retired after the leaves that lead to it, and not before.
        Some((span, unsafe { entry.as_ref() }))
    }
}

/// Gives a retired node, or leaf, back to its pool.
///
/// # Safety
/// `head` is that of one of a pool of this type, which nobody uses any more.
pub(crate) unsafe fn free<N: Slot, S: Span, V: Send + Sync + 'static, M: Memory>(
    head: NonNull<Head>,
    _: &Pinned<'_>,
) {
    // SAFETY: the caller's promise.
    unsafe { give::<N, S, V, M>(pool::exposed(head.as_ptr().addr() - N::HEAD)) };
}

/// End it, and give its memory back.
///
/// # Safety
/// It came from a pool of this type, and nobody uses it.
pub(crate) unsafe fn give<N: Slot, S, V, M: Memory>(this: NonNull<N>) {
    // SAFETY: the caller's promise.
    unsafe {
        N::end(this);
        pool::give::<N, S, V, M>(this);
    }
}

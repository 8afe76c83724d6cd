//! Nodes: one cache line of what readers read. What only the writer needs is apart from them.

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

/// What the writer alone knows of a node.
pub(crate) struct Side {
    /// The nodes of the subtree.
    pub(crate) size: Cell<u32>,
    /// The largest gap in the subtree's interval, or [`UNKNOWN`].
    pub(crate) gap: Cell<u32>,
}

/// The gap of a node that is private or has just been.
pub(crate) const UNKNOWN: u32 = u32::MAX;

/// A node that the writer has, or none.
pub(crate) type Link<'t, S, V> = Option<&'t Node<S, V>>;

impl<S: Span, V> Node<S, V> {
    /// The node that a reader finds at `place`.
    ///
    /// # Safety
    /// The result is not freed before 't ends: by a section, or by exclusion of the writer.
    #[inline(always)]
    pub(crate) unsafe fn follow<'t>(place: &AtomicPtr<Self>) -> Link<'t, S, V> {
        // Acquire [O2]: the node's fields come with it; partner: the stores in `Plan::publish`.
        // SAFETY: what is published is a whole node, and stays one by the caller's promise.
        let node = unsafe { place.load(Ordering::Acquire).as_ref() }?;
        node.life.with(|_| ());
        Some(node)
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
        let child = [AtomicPtr::new(ptr::null_mut()), AtomicPtr::new(ptr::null_mut())];
        let (head, link, life) = (Head::new(), Cell::new(next), UnsafeCell::new(()));
        // SAFETY: the caller's promise.
        unsafe { this.write(Self { span, entry, child, head, link, life }) };
        // SAFETY: as above. Loom is told that the node's fields were written.
        unsafe { this.as_ref() }.life.with_mut(|_| ());
    }
    /// The node's end: what is left is memory.
    ///
    /// # Safety
    /// No reader and no writer uses the node, or will.
    pub(crate) unsafe fn end(this: NonNull<Self>) {
        // SAFETY: the caller's promise.
        unsafe {
            this.as_ref().life.with_mut(|_| ());
            this.drop_in_place();
        }
    }
    /// The next node of a list that the writer keeps.
    pub(crate) fn next(&self) -> *mut Self {
        self.link.get()
    }
    pub(crate) fn set_next(&self, next: *mut Self) {
        self.link.set(next);
    }
    pub(crate) fn is_private(&self) -> bool {
        !self.link.get().is_null()
    }
    /// A pointer to the whole node, as the pool gave it.
    pub(crate) fn pointer(&self) -> NonNull<Self> {
        pool::exposed(ptr::from_ref(self).addr())
    }
    /// The link by which the node is retired.
    pub(crate) fn head(&self) -> NonNull<Head> {
        pool::exposed(ptr::from_ref(&self.head).addr())
    }
    /// What the writer knows of it.
    pub(crate) fn side(&self) -> &Side {
        // SAFETY: the node is in a page of a pool, whose sides live as long as its nodes do.
        unsafe { pool::side(self.pointer()).as_ref() }
    }
    /// The entry.
    #[inline(always)]
    pub(crate) fn entry(&self) -> &Entry<V> {
        // SAFETY: an entry is retired after the node that leads to it, and not before.
        unsafe { self.entry.as_ref() }
    }
}

/// Gives a retired node back to its pool.
///
/// # Safety
/// `head` is that of a node of a pool of this type, which nobody uses any more.
pub(crate) unsafe fn free<S: Span, V: Send + Sync + 'static, M: Memory>(head: NonNull<Head>, _: &Pinned<'_>) {
    let node: NonNull<Node<S, V>> = pool::exposed(head.as_ptr().addr() - offset_of!(Node<S, V>, head));
    // SAFETY: the caller's promise.
    unsafe {
        Node::end(node);
        pool::give::<S, V, M>(node);
    }
}

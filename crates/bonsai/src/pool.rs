//! Memory for nodes: pages in which the nodes lie apart from what only the writer reads of them.
//!
//! ```text
//! page, 4 KiB:  [ header 64 B | sides, 8 B each | nodes, 64 B each ]      56 nodes of regions, or 10 leaves of 384 B
//! ```
//! An insert changes the sizes of all nodes on its path. Were they in the nodes, each insert would take the line of the root,
//! and of all below it, from every reader. In lines of their own they cost readers nothing.
//!
//! A node's page, its side and its pool are found from its address. Each page owns a reference to its pool, so that nodes may
//! outlive their tree until their grace period has ended. A page that has become empty goes back where it came from, unless
//! it is the last with room and there are nodes in others; it goes with the last of those. A page has nodes, or it has leaves.

use alloc::{alloc as heap, sync::Arc};
use core::{
    alloc::Layout,
    cell::Cell,
    fmt,
    marker::PhantomData,
    mem,
    ptr::{self, NonNull},
};

use sync::SpinLock;

use crate::{
    node::{Leaf, Node, Side, Slot},
    span::Span,
};

/// The bytes of a page, and what its address is a multiple of.
pub const PAGE: usize = 4096;
/// Where the sides begin.
const SIDES: usize = 64;

/// Where pages come from.
///
/// # Safety
/// [`Self::page`] gives [`PAGE`] writable bytes, aligned to as many, which are nobody else's until [`Self::free`].
pub unsafe trait Memory: Send + Sync + 'static {
    /// A page, or `None`. Neither sleeps nor waits for a writer.
    fn page(&self) -> Option<NonNull<u8>>;
    /// Take a page back.
    ///
    /// # Safety
    /// It came from [`Self::page`] of this memory, and nobody uses it any more.
    unsafe fn free(&self, page: NonNull<u8>);
}

/// Pages of the heap.
#[derive(Clone, Copy, Default, Debug)]
pub struct Heap;

const LAYOUT: Layout = match Layout::from_size_align(PAGE, PAGE) {
    Ok(layout) => layout,
    Err(_) => panic!("a page is aligned to itself"),
};

// SAFETY: the allocator gives what the layout says.
unsafe impl Memory for Heap {
    fn page(&self) -> Option<NonNull<u8>> {
        // SAFETY: the layout has a size.
        NonNull::new(unsafe { heap::alloc(LAYOUT) })
    }
    unsafe fn free(&self, page: NonNull<u8>) {
        // SAFETY: the caller's promise.
        unsafe { heap::dealloc(page.as_ptr(), LAYOUT) };
    }
}

/// A page's first line.
struct Header<S, V, M: Memory> {
    pool: *const Pool<S, V, M>,
    /// Among the pages with room.
    before: *mut Header<S, V, M>,
    behind: *mut Header<S, V, M>,
    free: *mut Free,
    /// Nodes that are out, and nodes that have ever been.
    used: u32,
    fresh: u32,
}

/// What a free node is.
struct Free {
    next: *mut Free,
}

/// Pages of nodes, for one tree or for many.
pub struct Pool<S, V, M: Memory = Heap> {
    stocks: SpinLock<Stocks<S, V, M>>,
    memory: M,
}

struct Stocks<S, V, M: Memory> {
    nodes: Stock<S, V, M>,
    leaves: Stock<S, V, M>,
    /// Of nodes and leaves together.
    limit: usize,
}

/// Those of one kind.
struct Stock<S, V, M: Memory> {
    /// Pages with room.
    first: *mut Header<S, V, M>,
    out: usize,
    pages: usize,
}

impl<S, V, M: Memory> Stock<S, V, M> {
    const EMPTY: Self = Self { first: ptr::null_mut(), out: 0, pages: 0 };
}

impl<S, V, M: Memory> Stocks<S, V, M> {
    fn of<N: Slot>(&mut self) -> &mut Stock<S, V, M> {
        if N::IS_LEAF { &mut self.leaves } else { &mut self.nodes }
    }
    fn out(&self) -> usize {
        self.nodes.out + self.leaves.out
    }
}

// SAFETY: the pages are the pool's, and are touched under its lock.
unsafe impl<S, V, M: Memory> Send for Stock<S, V, M> {}

/// A pointer to what lies at an address in some pool's page.
pub(crate) fn exposed<T>(address: usize) -> NonNull<T> {
    // SAFETY: no page is at 0.
    unsafe { NonNull::new_unchecked(ptr::with_exposed_provenance_mut(address)) }
}

/// Nodes in a page, or leaves.
const fn capacity<N>() -> usize {
    (PAGE - SIDES) / (size_of::<N>() + size_of::<Side>())
}

/// Where they begin: they fill the end of the page.
const fn first_at<N>() -> usize {
    PAGE - capacity::<N>() * size_of::<N>()
}

/// What the writer knows of a node, or leaf.
pub(crate) fn side<N: Slot>(node: NonNull<N>) -> NonNull<Side> {
    let (page, at) = (node.as_ptr().addr() & !(PAGE - 1), node.as_ptr().addr() & (PAGE - 1));
    exposed(page + SIDES + (at - first_at::<N>()) / size_of::<N>() * size_of::<Side>())
}

impl<S, V, M: Memory> Pool<S, V, M> {
    /// A pool without pages.
    pub fn new(memory: M) -> Arc<Self> {
        const { assert!(size_of::<Header<S, V, M>>() <= SIDES) };
        const { assert!(capacity::<Node<S, V>>() > 0, "a node with this span is larger than a page") };
        let stocks = Stocks { nodes: Stock::EMPTY, leaves: Stock::EMPTY, limit: usize::MAX };
        Arc::new(Self { stocks: SpinLock::new(stocks), memory })
    }
    /// Give out at most so many nodes and leaves from now on, those included that are out.
    pub fn set_limit(&self, nodes: usize) {
        self.stocks.lock().limit = nodes;
    }
    /// How many nodes and leaves are out: in trees, waiting for a grace period, or kept by a writer for later.
    pub fn nodes(&self) -> usize {
        self.stocks.lock().out()
    }
    /// How many pages the pool has.
    pub fn pages(&self) -> usize {
        let stocks = self.stocks.lock();
        stocks.nodes.pages + stocks.leaves.pages
    }
    /// Memory for a node, or a leaf.
    pub(crate) fn take<N: Slot>(self: &Arc<Self>) -> Option<NonNull<N>> {
        let mut stocks = self.stocks.lock();
        if stocks.out() >= stocks.limit || capacity::<N>() == 0 {
            return None;
        }
        let stock = stocks.of::<N>();
        if stock.first.is_null() {
            let page = self.memory.page()?;
            let header = page.cast::<Header<S, V, M>>();
            let none = ptr::null_mut();
            let pool = Arc::into_raw(self.clone());
            // SAFETY: the page is ours, and a header fits into it.
            unsafe {
                header.write(Header {
                    pool,
                    before: none,
                    behind: none,
                    free: ptr::null_mut(),
                    used: 0,
                    fresh: 0,
                });
            }
            // Whoever has a node finds its page by the address.
            stock.first = ptr::with_exposed_provenance_mut(page.as_ptr().expose_provenance());
            stock.pages += 1;
        }
        let first = stock.first;
        // SAFETY: the pool's page, touched under its lock.
        let header = unsafe { &mut *first };
        let node = match NonNull::new(header.free) {
            Some(free) => {
                // SAFETY: a free node of the page.
                header.free = unsafe { free.as_ref() }.next;
                free.cast()
            }
            None => {
                let at = first_at::<N>() + header.fresh as usize * size_of::<N>();
                header.fresh += 1;
                let fresh = exposed::<N>(first.addr() + at);
                // SAFETY: the side of a node that was never out is nobody else's.
                unsafe { side(fresh).write(Side { size: Cell::new(0), gap: Cell::new(0) }) };
                fresh
            }
        };
        header.used += 1;
        if header.used as usize == capacity::<N>() {
            let behind = header.behind;
            header.behind = ptr::null_mut();
            stock.first = behind;
            // SAFETY: as above.
            if let Some(behind) = unsafe { behind.as_mut() } {
                behind.before = ptr::null_mut();
            }
        }
        stock.out += 1;
        Some(node)
    }
    /// Take the node at `node` back. Gives the first of the pages that are to be freed for it, which are linked.
    ///
    /// # Safety
    /// It came from this pool, in whose page `header` it is, and nobody uses it.
    unsafe fn put<N: Slot>(&self, node: NonNull<N>, page: NonNull<Header<S, V, M>>) -> *mut Header<S, V, M> {
        let mut stocks = self.stocks.lock();
        let stock = stocks.of::<N>();
        stock.out -= 1;
        // SAFETY: the pool's pages, touched under its lock; the node's memory is the pool's again.
        unsafe {
            let header = &mut *page.as_ptr();
            node.cast::<Free>().write(Free { next: header.free });
            header.free = node.cast().as_ptr();
            let was_full = header.used as usize == capacity::<N>();
            header.used -= 1;
            if was_full {
                header.behind = stock.first;
                if let Some(behind) = header.behind.as_mut() {
                    behind.before = page.as_ptr();
                }
                stock.first = page.as_ptr();
            }
            if stock.out == 0 {
                // All pages are empty, this one and one that was kept, and all have room.
                stock.pages = 0;
                return mem::replace(&mut stock.first, ptr::null_mut());
            }
            let alone = header.before.is_null() && header.behind.is_null();
            // The last page with room is kept as long as there are others, whose nodes will need some.
            if header.used > 0 || alone {
                return ptr::null_mut();
            }
            match header.before.as_mut() {
                Some(before) => before.behind = header.behind,
                None => stock.first = header.behind,
            }
            if let Some(behind) = header.behind.as_mut() {
                behind.before = header.before;
            }
            header.behind = ptr::null_mut();
        }
        stock.pages -= 1;
        page.as_ptr()
    }
}

/// Give a node's memory back to its pool.
///
/// # Safety
/// It came from [`Pool::take`] of a pool of this type, and nobody uses it.
pub(crate) unsafe fn give<N: Slot, S, V, M: Memory>(node: NonNull<N>) {
    let page: NonNull<Header<S, V, M>> = exposed(node.as_ptr().addr() & !(PAGE - 1));
    // SAFETY: a page's header says whose it is, and doesn't change in that as long as a node is out.
    let pool = unsafe { (*page.as_ptr()).pool };
    // SAFETY: the page owns a reference to the pool; the node is of that page.
    let mut empty = unsafe { (*pool).put(node, page) };
    while let Some(page) = NonNull::new(empty) {
        // SAFETY: the page is in no list of the pool's, and no node of it is out: its memory and its reference are ours.
        unsafe {
            empty = (*page.as_ptr()).behind;
            let pool = Arc::from_raw(pool);
            pool.memory.free(page.cast());
        }
    }
}

impl<S, V, M: Memory> fmt::Debug for Pool<S, V, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (nodes, pages) = (self.nodes(), self.pages());
        f.debug_struct("Pool").field("nodes", &nodes).field("pages", &pages).finish_non_exhaustive()
    }
}

/// What a writer keeps for later.
pub(crate) struct Store<S: Span, V, M: Memory> {
    pub(crate) nodes: Magazine<Node<S, V>, S, V, M>,
    pub(crate) leaves: Magazine<Leaf<S, V>, S, V, M>,
}

impl<S: Span, V, M: Memory> Store<S, V, M> {
    pub(crate) const EMPTY: Self = Self { nodes: Magazine::EMPTY, leaves: Magazine::EMPTY };
}

/// Free nodes in a list of a writer's, or leaves.
pub(crate) struct Magazine<N: Slot, S, V, M: Memory> {
    first: *mut Free,
    len: usize,
    _of: PhantomData<(*mut N, *mut Header<S, V, M>)>,
}

impl<N: Slot, S, V, M: Memory> Magazine<N, S, V, M> {
    pub(crate) const EMPTY: Self = Self { first: ptr::null_mut(), len: 0, _of: PhantomData };

    /// # Safety
    /// It came from a pool of this type, and nobody uses it.
    pub(crate) unsafe fn push(&mut self, node: NonNull<N>) {
        let free = node.cast::<Free>();
        // SAFETY: the caller's promise.
        unsafe { free.write(Free { next: self.first }) };
        self.first = free.as_ptr();
        self.len += 1;
    }
    /// The same of one that was begun.
    ///
    /// # Safety
    /// As [`Self::push`].
    pub(crate) unsafe fn take_back(&mut self, node: NonNull<N>) {
        // SAFETY: the caller's promise.
        unsafe {
            N::end(node);
            self.push(node);
        }
    }
    pub(crate) fn pop(&mut self) -> Option<NonNull<N>> {
        let free = NonNull::new(self.first)?;
        // SAFETY: what is in the list is a free node of its own.
        self.first = unsafe { free.as_ref() }.next;
        self.len -= 1;
        Some(free.cast())
    }
    /// Have at least so many. Says whether there was memory for them.
    pub(crate) fn fill(&mut self, least: usize, pool: &Arc<Pool<S, V, M>>) -> bool {
        while self.len < least {
            let Some(node) = pool.take() else { return false };
            // SAFETY: from the pool, and ours.
            unsafe { self.push(node) };
        }
        true
    }
    /// Give some back until there are no more than `most`.
    pub(crate) fn shrink(&mut self, most: usize) {
        while self.len > most
            && let Some(node) = self.pop()
        {
            // SAFETY: what is in the list came from a pool, by the promise of `push`.
            unsafe { give::<N, S, V, M>(node) };
        }
    }
}

impl<N: Slot, S, V, M: Memory> Drop for Magazine<N, S, V, M> {
    fn drop(&mut self) {
        self.shrink(0);
    }
}

// SAFETY: it owns what is in it, which is memory and no more.
unsafe impl<N: Slot, S, V, M: Memory> Send for Magazine<N, S, V, M> {}

//! The tree, and what readers do with it.

use alloc::sync::Arc;
use core::{fmt, ptr::NonNull};

use percpu::Line;
use sync::{
    SpinLock, mutant,
    primitive::{AtomicPtr, Ordering},
};

use crate::{
    domain::Rcu,
    entry::{Entry, State},
    node::{self, Leaf, Link, Node, Slot},
    pool::{Heap, Memory, Pool, Store},
    span::Span,
    still::Still,
    writer::{Counts, Writer},
};

/// An ordered tree of spans with entries: see the crate's text. `D` says when readers are gone; nodes come from pages of `M`.
pub struct Tree<S: Span, V: Send + Sync + 'static, D: Rcu, M: Memory = Heap> {
    pub(crate) root: AtomicPtr<Node<S, V>>,
    pub(crate) domain: D,
    pub(crate) pool: Arc<Pool<S, V, M>>,
    /// Nodes that writers leave for the next one.
    pub(crate) keeps: usize,
    /// With so many nodes there are leaves.
    pub(crate) leaves_from: usize,
    /// On lines of its own: readers need what is above.
    state: Line<SpinLock<Kept<S, V, M>>>,
}

/// From how many nodes on there are leaves, if nobody [says](Tree::leaves_from).
pub const LEAVES_FROM: usize = 4096;

/// What the writer keeps from one update to the next.
pub(crate) struct Kept<S: Span, V, M: Memory> {
    pub(crate) store: Store<S, V, M>,
    /// Entries that the tree leads to.
    pub(crate) found: usize,
    /// Those of them that were removed when there was no memory to take them out.
    pub(crate) tombstones: usize,
    pub(crate) counts: Counts,
}

// SAFETY: readers share nodes and entries by reference, which `V: Sync` and `S: Sync` allow; entries end on any thread, by
// `V: Send`; all else is under the lock, or is made for sharing.
unsafe impl<S: Span, V: Send + Sync + 'static, D: Rcu, M: Memory> Sync for Tree<S, V, D, M> {}
// SAFETY: as above.
unsafe impl<S: Span, V: Send + Sync + 'static, D: Rcu, M: Memory> Send for Tree<S, V, D, M> {}

impl<S: Span, V: Send + Sync + 'static, D: Rcu> Tree<S, V, D> {
    /// An empty tree, whose readers are in sections of `domain`, with a pool of its own.
    pub fn new(domain: D) -> Self {
        Self::in_pool(domain, Pool::new(Heap))
    }
}

impl<S: Span, V: Send + Sync + 'static, D: Rcu, M: Memory> Tree<S, V, D, M> {
    /// An empty tree with nodes from `pool`.
    pub fn in_pool(domain: D, pool: Arc<Pool<S, V, M>>) -> Self {
        let state = Kept { store: Store::EMPTY, found: 0, tombstones: 0, counts: Counts::default() };
        let root = AtomicPtr::new(node::nothing());
        Self { root, domain, pool, keeps: 0, leaves_from: LEAVES_FROM, state: Line(SpinLock::new(state)) }
    }
    /// The same tree, but what is put in goes into leaves once there are so many nodes, rather than [`LEAVES_FROM`], or is built of so many spans.
    /// In a smaller tree each span has a node of its own: all of it is in the first caches anyway, and a leaf is lost to the readers of all
    /// its spans when one changes.
    pub fn leaves_from(mut self, nodes: usize) -> Self {
        self.leaves_from = nodes;
        self
    }
    /// The same tree, but what a writer has [reserved](Writer::reserve) and not used stays for the next one, if it is not more
    /// than `nodes`, and a few leaves: for who reserves before each update.
    pub fn keeping(mut self, nodes: usize) -> Self {
        self.keeps = nodes;
        self
    }
    /// The domain of its readers.
    pub fn domain(&self) -> &D {
        &self.domain
    }
    /// Where its nodes come from.
    pub fn pool(&self) -> &Arc<Pool<S, V, M>> {
        &self.pool
    }
    /// Look into the tree, in a section. Panics if the section is of another domain.
    #[inline]
    pub fn read<'g>(&'g self, guard: &'g D::Guard<'_>) -> Reader<'g, S, V> {
        assert!(self.domain.is_of(guard), "a section of another domain");
        Reader { root: &self.root }
    }
    /// Look into a tree that stays as it is, without a section.
    ///
    /// # Safety
    /// The caller knows that nobody changes the tree before the borrow ends, and sees all changes so far.
    #[inline]
    pub unsafe fn still(&self) -> Still<'_, S, V> {
        // SAFETY: the caller's promise; nodes and entries are freed only after they were taken out.
        unsafe { Still::of(Reader::of(&self.root)) }
    }
    /// Change the tree. Spins while somebody else does: users whose changes are long have a lock of their own around this.
    pub fn write<'t, 'c>(&'t self, context: D::Context<'c>) -> Writer<'t, 'c, S, V, D, M> {
        Writer::new(self, self.state.0.lock(), context)
    }
    /// As [`Self::write`], or `None` if somebody else is at it.
    pub fn try_write<'t, 'c>(&'t self, context: D::Context<'c>) -> Option<Writer<'t, 'c, S, V, D, M>> {
        Some(Writer::new(self, self.state.0.try_lock()?, context))
    }
}

impl<S: Span, V: Send + Sync + 'static, D: Rcu, M: Memory> Drop for Tree<S, V, D, M> {
    /// Readers borrow the tree, so there are none: nothing has to wait.
    fn drop(&mut self) {
        // Left-hung: each left child is turned up until there is none, and then the root goes. No stack is needed.
        // SAFETY: the borrow is exclusive, and what the tree leads to is whole.
        let mut at = unsafe { Node::stored(&self.root) };
        loop {
            match at {
                Link::Empty => return,
                // SAFETY: each leaf is found once.
                Link::Leaf(leaf) => return unsafe { end_leaf::<S, V, M>(leaf.pointer()) },
                Link::Node(node) => {
                    // SAFETY: as above.
                    let (left, right) =
                        unsafe { (Node::stored(node.place(false)), Node::stored(node.place(true))) };
                    if let Link::Node(child) = left {
                        // Relaxed, all: the borrow is exclusive.
                        let between = child.place(true).load(Ordering::Relaxed);
                        node.place(false).store(between, Ordering::Relaxed);
                        child.place(true).store(at.pointer(), Ordering::Relaxed);
                        at = left;
                        continue;
                    }
                    at = right;
                    // SAFETY: an entry was a box, and has one node; nobody else uses either, nor the leaf.
                    unsafe {
                        if let Link::Leaf(leaf) = left {
                            end_leaf::<S, V, M>(leaf.pointer());
                        }
                        drop(alloc::boxed::Box::from_raw(node.entry.as_ptr()));
                        node::give::<_, S, V, M>(node.pointer());
                    }
                }
            }
        }
    }
}

/// The end of a leaf and of its entries.
///
/// # Safety
/// Nobody uses them, or will.
unsafe fn end_leaf<S: Span, V: Send + Sync + 'static, M: Memory>(leaf: NonNull<Leaf<S, V>>) {
    // SAFETY: the caller's promise; an entry was a box, and is in one leaf.
    unsafe {
        leaf.as_ref().items().for_each(|(_, entry)| drop(alloc::boxed::Box::from_raw(entry.as_ptr())));
        node::give::<_, S, V, M>(leaf);
    }
}

impl<S: Span, V: Send + Sync + 'static, D: Rcu, M: Memory> fmt::Debug for Tree<S, V, D, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tree").field("pool", &self.pool).finish_non_exhaustive()
    }
}

/// A reader in a section. It takes no lock, writes nothing, and never waits for the writer.
pub struct Reader<'g, S, V> {
    root: &'g AtomicPtr<Node<S, V>>,
}

impl<S, V> Clone for Reader<'_, S, V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S, V> Copy for Reader<'_, S, V> {}

impl<S, V> fmt::Debug for Reader<'_, S, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reader")
    }
}

/// Where a path ends, and the last nodes on it below and above what was looked for.
pub(crate) struct End<'g, S: Span, V> {
    pub(crate) at: Link<'g, S, V>,
    pub(crate) below: Option<&'g Node<S, V>>,
    pub(crate) above: Option<&'g Node<S, V>>,
}

/// Which neighbour is looked for.
#[derive(Clone, Copy)]
enum Side {
    /// The largest key at or below, or below.
    Floor,
    Lower,
    /// The smallest key at or above, or above.
    Ceiling,
    Higher,
}

impl<'g, S: Span, V> Reader<'g, S, V> {
    /// For who keeps nodes from being freed for all of 'g, by a section or as the writer.
    pub(crate) fn of(root: &'g AtomicPtr<Node<S, V>>) -> Self {
        Self { root }
    }
    pub(crate) fn root(&self) -> &'g AtomicPtr<Node<S, V>> {
        self.root
    }
    #[inline(always)]
    fn follow(place: &AtomicPtr<Node<S, V>>) -> Link<'g, S, V> {
        // SAFETY: nodes are retired after they were unlinked, to the domain in whose section this reader is until 'g ends.
        unsafe { Node::follow(place) }
    }
    /// Where a path ends that goes right at the nodes whose key is `low`, as all below some key are; and the last nodes where it
    /// did, and where it did not. If that were a branch, half of them would be foretold wrongly: it is the index of a child.
    #[inline(always)]
    pub(crate) fn end(&self, low: impl Fn(S::Key) -> bool) -> End<'g, S, V> {
        let (mut at, mut below, mut above) = (Self::follow(self.root), None, None);
        while let Link::Node(x) = at {
            let right = low(x.span.key());
            (below, above) = if right { (Some(x), above) } else { (below, Some(x)) };
            at = Self::follow(x.place(right));
        }
        End { at, below, above }
    }
    /// The last span whose key is `low`, as all below some key are, by one descent. What is on the path is farther away than what
    /// is in the leaf where it ends.
    #[inline(always)]
    fn last_low(&self, low: impl Fn(S::Key) -> bool) -> Option<(S, &'g Entry<V>)> {
        let End { at, below, .. } = self.end(&low);
        if let Link::Leaf(leaf) = at {
            leaf.fetch();
            if let Some(i) = leaf.count(&low).checked_sub(1) {
                return leaf.get(i);
            }
        }
        below.map(|x| (x.span, x.entry()))
    }
    /// The first span whose key is not `low`, in the same way.
    #[inline(always)]
    fn first_above(&self, low: impl Fn(S::Key) -> bool) -> Option<(S, &'g Entry<V>)> {
        let End { at, above, .. } = self.end(&low);
        if let Link::Leaf(leaf) = at {
            leaf.fetch();
            if let Some(found) = leaf.get(leaf.count(&low)) {
                return Some(found);
            }
        }
        above.map(|x| (x.span, x.entry()))
    }
    /// The span that covers `at`, and its entry. An entry that is not [dead](Entry::is_dead) afterwards covers `at` then. One that
    /// is may have been given up, and have another around it that is in the tree: [`floor`](Self::floor) finds that.
    #[inline]
    pub fn covering(&self, at: S::Key) -> Option<(S, &'g Entry<V>)> {
        let found = self.last_low(|key| key <= at)?;
        if found.0.covers(at) { Some(found) } else { self.beyond(at, found.1) }
    }
    /// The same, if this is the last that begins at or below `at`, and does not cover it: one that was given up may have another around
    /// it.
    #[cold]
    fn beyond(&self, at: S::Key, last: &Entry<V>) -> Option<(S, &'g Entry<V>)> {
        match last.state() {
            State::Tombstone | State::Purged => self.floor(at).filter(|(span, _)| span.covers(at)),
            State::Live | State::Dead => None,
        }
    }
    /// The span with this very key, and its entry, as they were at some time during the call.
    #[inline]
    pub fn get_span(&self, key: S::Key) -> Option<(S, &'g Entry<V>)> {
        let found = self.last_low(|at| at <= key).filter(|(span, _)| span.key() == key);
        // One that is dead by now was in the tree when this reader began.
        found.filter(|(_, entry)| matches!(entry.state(), State::Live | State::Dead))
    }
    /// The span with the largest key at or below `at`, as it was at some time during the call.
    #[inline]
    pub fn floor(&self, at: S::Key) -> Option<(S, &'g Entry<V>)> {
        self.neighbour(Side::Floor, at)
    }
    /// The span with the largest key below `at`, as it was at some time during the call.
    #[inline]
    pub fn lower(&self, at: S::Key) -> Option<(S, &'g Entry<V>)> {
        self.neighbour(Side::Lower, at)
    }
    /// The span with the smallest key at or above `at`, as it was at some time during the call.
    #[inline]
    pub fn ceiling(&self, at: S::Key) -> Option<(S, &'g Entry<V>)> {
        self.neighbour(Side::Ceiling, at)
    }
    /// The span with the smallest key above `at`, as it was at some time during the call.
    #[inline]
    pub fn higher(&self, at: S::Key) -> Option<(S, &'g Entry<V>)> {
        self.neighbour(Side::Higher, at)
    }
    /// The span with the smallest key of all.
    pub fn first(&self) -> Option<(S, &'g Entry<V>)> {
        loop {
            let (span, entry) = self.first_above(|_| false)?;
            match entry.state() {
                State::Live => return Some((span, entry)),
                State::Dead | State::Purged => {}
                State::Tombstone => return self.higher(span.key()),
            }
        }
    }
    /// All spans in order of their keys. Each that is in the tree throughout is found once, and others once at most.
    pub fn iter(&self) -> Iter<'g, S, V> {
        Iter { reader: *self, last: None }
    }
    /// The spans with keys at or above `from`, in order, as [`Self::iter`].
    pub fn iter_from(&self, from: S::Key) -> impl Iterator<Item = (S, &'g Entry<V>)> + use<'g, S, V> {
        let first = self.ceiling(from);
        let rest = Iter { reader: *self, last: first.map(|(span, _)| span.key()) };
        first.into_iter().chain(rest.take(if first.is_some() { usize::MAX } else { 0 }))
    }

    /// A neighbour. What one descent finds may be stale: see the crate's text.
    #[inline(always)]
    fn neighbour(&self, mut side: Side, mut at: S::Key) -> Option<(S, &'g Entry<V>)> {
        loop {
            let (span, entry) = match side {
                Side::Floor => self.last_low(|key| key <= at),
                Side::Lower => self.last_low(|key| key < at),
                Side::Ceiling => self.first_above(|key| key < at),
                Side::Higher => self.first_above(|key| key <= at),
            }?;
            match entry.state() {
                State::Live => return Some((span, entry)),
                State::Dead if mutant!("bonsai-no-recheck") => return Some((span, entry)),
                // While this reader was under way, that node was unlinked: what was next to `at` then may be gone too.
                State::Dead | State::Purged => {}
                State::Tombstone => {
                    at = span.key();
                    side = match side {
                        Side::Floor | Side::Lower => Side::Lower,
                        Side::Ceiling | Side::Higher => Side::Higher,
                    };
                }
            }
        }
    }
}

/// The spans of a tree in order: see [`Reader::iter`].
pub struct Iter<'g, S: Span, V> {
    reader: Reader<'g, S, V>,
    last: Option<S::Key>,
}

impl<'g, S: Span, V> Iterator for Iter<'g, S, V> {
    type Item = (S, &'g Entry<V>);
    fn next(&mut self) -> Option<Self::Item> {
        let found = match self.last {
            None => self.reader.first(),
            Some(last) => self.reader.higher(last),
        }?;
        self.last = Some(found.0.key());
        Some(found)
    }
}

impl<S: Span, V> fmt::Debug for Iter<'_, S, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Iter({:?})", self.last)
    }
}

//! The tree, and what readers do with it.

use alloc::sync::Arc;
use core::{fmt, ptr};

use percpu::Line;
use sync::{
    SpinLock, mutant,
    primitive::{AtomicPtr, Ordering},
};

use crate::{
    domain::Rcu,
    entry::{Entry, State},
    node::{Link, Node},
    pool::{self, Heap, Magazine, Memory, Pool},
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
    /// On lines of its own: readers need what is above.
    state: Line<SpinLock<Kept<S, V, M>>>,
}

/// What the writer keeps from one update to the next.
pub(crate) struct Kept<S, V, M: Memory> {
    pub(crate) magazine: Magazine<S, V, M>,
    /// Entries that were removed when there was no memory to take them out.
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
        let state = Kept { magazine: Magazine::EMPTY, tombstones: 0, counts: Counts::default() };
        let root = AtomicPtr::new(ptr::null_mut());
        Self { root, domain, pool, keeps: 0, state: Line(SpinLock::new(state)) }
    }
    /// The same tree, but what a writer has [reserved](Writer::reserve) and not used stays for the next one, if it is not more
    /// than `nodes`: for who reserves before each update.
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
        // Relaxed, all: the borrow is exclusive.
        let mut at = self.root.load(Ordering::Relaxed);
        // SAFETY: what the tree leads to is whole, and each node and entry is found once.
        while let Some(node) = unsafe { at.as_ref() } {
            let left = node.place(false).load(Ordering::Relaxed);
            // SAFETY: as above.
            match unsafe { left.as_ref() } {
                Some(child) => {
                    node.place(false).store(child.place(true).load(Ordering::Relaxed), Ordering::Relaxed);
                    child.place(true).store(at, Ordering::Relaxed);
                    at = left;
                }
                None => {
                    at = node.place(true).load(Ordering::Relaxed);
                    let (node, entry) = (node.pointer(), node.entry);
                    // SAFETY: an entry was a box, and has one node; nobody else uses either.
                    unsafe {
                        drop(alloc::boxed::Box::from_raw(entry.as_ptr()));
                        Node::end(node);
                        pool::give::<S, V, M>(node);
                    }
                }
            }
        }
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
    /// The span that covers `at`, and its entry. An entry that is not [dead](Entry::is_dead) afterwards covers `at` then.
    ///
    /// A descent has one comparison at each node to be done with it, and another, by which it goes on, that is no branch:
    /// its result is the index of a child.
    #[inline]
    pub fn covering(&self, at: S::Key) -> Option<(S, &'g Entry<V>)> {
        let mut next = Self::follow(self.root);
        while let Some(x) = next {
            if x.span.covers(at) {
                return Some((x.span, x.entry()));
            }
            next = Self::follow(x.place(x.span.key() <= at));
        }
        None
    }
    /// The span with this very key, and its entry, as they were at some time during the call.
    #[inline]
    pub fn get_span(&self, key: S::Key) -> Option<(S, &'g Entry<V>)> {
        let mut next = Self::follow(self.root);
        while let Some(x) = next {
            let at = x.span.key();
            if at == key {
                // One that is dead by now was in the tree when this reader began.
                let found = matches!(x.entry().state(), State::Live | State::Dead);
                return found.then(|| (x.span, x.entry()));
            }
            next = Self::follow(x.place(at < key));
        }
        None
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
            let mut next = Self::follow(self.root);
            let mut found = None;
            while let Some(x) = next {
                found = next;
                next = Self::follow(x.place(false));
            }
            let x = found?;
            match x.entry().state() {
                State::Live => return Some((x.span, x.entry())),
                State::Dead | State::Purged => {}
                State::Tombstone => return self.higher(x.span.key()),
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

    /// One descent for a neighbour, whose result may be stale: see the crate's text.
    #[inline(always)]
    fn descend(&self, side: Side, at: S::Key) -> Link<'g, S, V> {
        let mut next = Self::follow(self.root);
        let mut found = None;
        while let Some(x) = next {
            let key = x.span.key();
            let right = match side {
                Side::Floor | Side::Higher => key <= at,
                Side::Lower | Side::Ceiling => key < at,
            };
            let keep = right == matches!(side, Side::Floor | Side::Lower);
            found = if keep { next } else { found };
            next = Self::follow(x.place(right));
        }
        found
    }
    #[inline(always)]
    fn neighbour(&self, mut side: Side, mut at: S::Key) -> Option<(S, &'g Entry<V>)> {
        loop {
            let x = self.descend(side, at)?;
            match x.entry().state() {
                State::Live => return Some((x.span, x.entry())),
                State::Dead if mutant!("bonsai-no-recheck") => return Some((x.span, x.entry())),
                // While this reader was under way, that node was unlinked: what was next to `at` then may be gone too.
                State::Dead | State::Purged => {}
                State::Tombstone => {
                    at = x.span.key();
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

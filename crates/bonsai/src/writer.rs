//! The writer: one at a time, by the tree's lock.

use alloc::boxed::Box;
use core::{fmt, ops::Deref, ptr::NonNull};

use sync::{SpinGuard, mutant};

use crate::{
    domain::Rcu,
    entry::{self, Entry, State},
    gap, node,
    node::{Leaf, Link, Node, Slot},
    plan::{self, Found, MAX_LEN, MOST_LEAVES, Plan, Retiring, height_bound, most_nodes},
    pool::Memory,
    span::Span,
    still::Still,
    tree::{Kept, Reader, Tree},
};

/// What a tree's updates have done since it was made.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counts {
    /// Changes that were committed.
    pub updates: u64,
    /// Nodes and leaves made.
    pub allocated: u64,
    /// Leaves made.
    pub leaves: u64,
    /// Nodes and leaves retired.
    pub retired: u64,
    /// Leaves that were full.
    pub splits: u64,
    /// Rotations of two nodes.
    pub single: u64,
    /// Rotations of three nodes.
    pub double: u64,
    /// Stores into nodes that readers may be at, or into the root: each takes a line from them.
    pub stores: u64,
    /// The most nodes and leaves that one update has made.
    pub most: u64,
}

impl Counts {
    fn add(&mut self, one: Counts) {
        self.updates += 1;
        self.allocated += one.allocated;
        self.leaves += one.leaves;
        self.retired += one.retired;
        self.splits += one.splits;
        self.single += one.single;
        self.double += one.double;
        self.stores += one.stores;
        self.most = self.most.max(one.allocated);
    }
}

/// Why an update was refused. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// There is no memory for a node.
    Memory,
    /// The key, or some of the region, is taken.
    Occupied,
    /// There is nothing with this key.
    Absent,
    /// The tree has as many nodes as a tree can have.
    Full,
}

/// An update that was refused, and the entry it was about.
pub struct Refused<V> {
    /// Why.
    pub error: Error,
    /// What was to be put in.
    pub entry: Box<Entry<V>>,
}

impl<V> fmt::Debug for Refused<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Refused({:?})", self.error)
    }
}

/// Changes a tree. Readers go on meanwhile.
pub struct Writer<'t, 'c, S: Span, V: Send + Sync + 'static, D: Rcu, M: Memory> {
    tree: &'t Tree<S, V, D, M>,
    kept: SpinGuard<'t, Kept<S, V, M>>,
    context: D::Context<'c>,
    /// It has reserved memory, which is for its updates alone.
    reserved: bool,
}

/// An entry that was taken out of a tree, whose readers may still have it. It is retired when this is dropped.
#[must_use = "what has to be done with an entry that is gone is done before it is dropped"]
pub struct Removed<'w, 'c, V: Send + Sync + 'static, D: Rcu> {
    entry: NonNull<Entry<V>>,
    domain: &'w D,
    context: &'w D::Context<'c>,
    /// Whether the tree still leads to it, for want of memory.
    buried: bool,
}

impl<V: Send + Sync + 'static, D: Rcu> Deref for Removed<'_, '_, V, D> {
    type Target = Entry<V>;
    fn deref(&self) -> &Entry<V> {
        // SAFETY: it is not retired before this is dropped.
        unsafe { self.entry.as_ref() }
    }
}

impl<V: Send + Sync + 'static, D: Rcu> Drop for Removed<'_, '_, V, D> {
    fn drop(&mut self) {
        if !self.buried && mutant!("bonsai-entry-early") {
            // SAFETY: none; that this is wrong is what is to be found.
            drop(unsafe { Box::from_raw(self.entry.as_ptr()) });
        } else if !self.buried {
            // SAFETY: no node leads to it; it was a box's, and this is the only one to retire it.
            unsafe { self.domain.retire(self.context, Entry::head(self.entry), entry::free::<V>) };
        }
    }
}

impl<V: Send + Sync + 'static, D: Rcu> fmt::Debug for Removed<'_, '_, V, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Removed")
    }
}

impl<'t, 'c, S: Span, V: Send + Sync + 'static, D: Rcu, M: Memory> Writer<'t, 'c, S, V, D, M> {
    pub(crate) fn new(
        tree: &'t Tree<S, V, D, M>,
        kept: SpinGuard<'t, Kept<S, V, M>>,
        context: D::Context<'c>,
    ) -> Self {
        Self { tree, kept, context, reserved: false }
    }
    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.kept.found - self.kept.tombstones
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// How many entries are given up that are found in the tree still, since there was no memory to take them out.
    pub fn tombstones(&self) -> usize {
        self.kept.tombstones
    }
    /// What was done so far.
    pub fn counts(&self) -> Counts {
        self.kept.counts
    }
    /// Look into the tree as it is now: nobody else changes it.
    pub fn read(&self) -> Reader<'_, S, V> {
        Reader::of(&self.tree.root)
    }
    /// As [`Self::read`], with what only the writer may look at.
    pub fn still(&self) -> Still<'_, S, V> {
        // SAFETY: only the writer changes the tree, and it is borrowed.
        unsafe { Still::of(self.read()) }
    }
    /// As [`Still::last`].
    pub fn last(&self) -> Option<(S, &Entry<V>)> {
        self.still().last()
    }
    /// Take as much memory as `updates` updates may need, and as many replacements, so that they can't fail for want of it. What
    /// this writer has not used goes back when it is dropped, but for as much as the tree [keeps](Tree::keeping).
    pub fn reserve(&mut self, updates: usize, replacements: usize) -> Result<(), Error> {
        self.purge();
        self.reserved = true;
        // With the nodes that the updates may add.
        let most = self.nodes().saturating_add(updates);
        let nodes = updates.saturating_mul(most_nodes(height_bound(most))).saturating_add(replacements);
        // Of a tree with leaves, and of one that may get some.
        let has_leaves = self.fills(most) || self.nodes() < self.kept.found;
        let leaves =
            if has_leaves { updates.saturating_mul(MOST_LEAVES).saturating_add(replacements) } else { 0 };
        self.reserve_exactly(nodes, leaves)
    }
    fn reserve_exactly(&mut self, nodes: usize, leaves: usize) -> Result<(), Error> {
        let (pool, store) = (&self.tree.pool, &mut self.kept.store);
        match store.nodes.fill(nodes, pool) && store.leaves.fill(leaves, pool) {
            true => Ok(()),
            false => Err(Error::Memory),
        }
    }
    /// Whether spans are put into leaves, in a tree of so many nodes.
    fn fills(&self, nodes: usize) -> bool {
        Leaf::<S, V>::FITS && nodes >= self.tree.leaves_from
    }

    pub(crate) fn root(&self) -> Link<'_, S, V> {
        self.still().root()
    }
    pub(crate) fn child(&self, node: &Node<S, V>, right: bool) -> Link<'_, S, V> {
        self.still().child(node, right)
    }
    fn nodes(&self) -> usize {
        match self.root() {
            Link::Node(root) => root.side().size.get() as usize,
            _ => 0,
        }
    }
    /// Plan an update and make it. `key` is where it is.
    fn update(
        &mut self,
        key: S::Key,
        plan: impl FnOnce(&mut Plan<'t, '_, S, V, M>) -> Result<Link<'t, S, V>, Error>,
    ) -> Result<(), Error> {
        let tree = self.tree;
        let kept = &mut *self.kept;
        // SAFETY: the lock is held, and nodes are retired below, when the plan is done.
        let mut update = unsafe { Plan::new(&tree.root, &tree.pool, &mut kept.store) };
        let root = plan(&mut update)?;
        let early = mutant!("bonsai-retire-early");
        if early {
            retire(tree, &self.context, update.retiring());
        }
        let counts = update.commit(root);
        if S::GAPS && !mutant!("bonsai-gap-kept") {
            // SAFETY: the lock is held, and nothing is retired yet.
            unsafe { gap::forget(root, key) };
        }
        if !early {
            retire(tree, &self.context, update.retiring());
        }
        drop(update);
        kept.counts.add(counts);
        Ok(())
    }
    /// Take out what was given up before, as far as there is memory that isn't reserved.
    #[inline]
    fn purge(&mut self) {
        if self.kept.tombstones > 0 {
            self.purge_all();
        }
    }
    #[cold]
    #[inline(never)]
    fn purge_all(&mut self) {
        let before = self.kept.tombstones;
        while !self.reserved && self.kept.tombstones > 0 {
            let Some((key, entry)) = self.first_buried() else { break };
            if self.unlink(key, State::Tombstone, &mut None).is_err() {
                break;
            }
            self.kept.tombstones -= 1;
            self.drop_entry(entry);
        }
        if self.kept.tombstones < before {
            self.forget_gaps();
        }
    }
    /// A tombstone is gone, which may have had others within it: any gap may be another.
    fn forget_gaps(&mut self) {
        if S::GAPS && !mutant!("bonsai-end-kept") {
            // SAFETY: the lock is held, and the writer is borrowed.
            unsafe { gap::forget_all(self.root()) };
        }
    }
    /// The first tombstone, in order.
    fn first_buried(&self) -> Option<(S::Key, NonNull<Entry<V>>)> {
        fn walk<S: Span, V: Send + Sync + 'static, D: Rcu, M: Memory>(
            writer: &Writer<'_, '_, S, V, D, M>,
            at: Link<'_, S, V>,
        ) -> Option<(S::Key, NonNull<Entry<V>>)> {
            // SAFETY: the tree leads to it.
            let is_buried = |entry: NonNull<Entry<V>>| unsafe { entry.as_ref() }.state() == State::Tombstone;
            match at {
                Link::Empty => None,
                Link::Leaf(leaf) => {
                    let buried = leaf.items().find(|(_, entry)| is_buried(*entry));
                    buried.map(|(span, entry)| (span.key(), entry))
                }
                Link::Node(x) => walk(writer, writer.child(x, false))
                    .or_else(|| is_buried(x.entry).then_some((x.span.key(), x.entry)))
                    .or_else(|| walk(writer, writer.child(x, true))),
            }
        }
        walk(self, self.root())
    }
    /// Take the item with this key out, if its entry is in that state: then it is `old`, also if there was no memory.
    fn unlink(
        &mut self,
        key: S::Key,
        state: State,
        old: &mut Option<NonNull<Entry<V>>>,
    ) -> Result<(), Error> {
        self.update(key, |plan| {
            let found = plan.descend(key);
            *old = Some(in_state(&found, state)?);
            plan.remove(found)
        })?;
        self.kept.found -= 1;
        Ok(())
    }
    /// An entry that no node leads to any more.
    fn drop_entry(&self, entry: NonNull<Entry<V>>) {
        drop(self.removed(entry, false));
    }
    fn removed(&self, entry: NonNull<Entry<V>>, buried: bool) -> Removed<'_, 'c, V, D> {
        if !buried {
            // SAFETY: it is not retired yet.
            unsafe { entry.as_ref() }.kill();
        }
        Removed { entry, domain: &self.tree.domain, context: &self.context, buried }
    }
    /// `fits` is asked about the neighbours, the last below and the first above, unless entries were given up that are found
    /// still.
    pub(crate) fn insert_span(
        &mut self,
        span: S,
        entry: Box<Entry<V>>,
        fits: impl Fn([Option<S>; 2]) -> bool,
    ) -> Result<(), Refused<V>> {
        self.purge();
        let covered = self.kept.tombstones > 0;
        let key = span.key();
        if self.nodes() >= MAX_LEN as usize {
            return Err(Refused { error: Error::Full, entry });
        }
        let new = entry_pointer(entry);
        let mut buried = None;
        let fill = self.fills(self.nodes());
        let done = self.update(key, |plan| match plan.descend(key) {
            Found::Absent(end) if !covered && !fits(plan.neighbours(end, key)) => Err(Error::Occupied),
            Found::Absent(end) => plan.insert(end, (span, new), fill),
            // A tombstone that there is no memory to take out; there may be enough to put something in its place.
            found => match in_state(&found, State::Live) {
                Ok(_) => Err(Error::Occupied),
                Err(_) => {
                    buried = found.entry();
                    plan.replace(found, (span, new))
                }
            },
        });
        match done {
            Ok(()) => {
                match buried {
                    Some(old) => {
                        self.forget_gaps();
                        self.kept.tombstones -= 1;
                        self.drop_entry(old);
                    }
                    None => self.kept.found += 1,
                }
                Ok(())
            }
            // SAFETY: it was a box's, and the tree has not taken it.
            Err(error) => Err(Refused { error, entry: unsafe { Box::from_raw(new.as_ptr()) } }),
        }
    }
    pub(crate) fn replace_span(
        &mut self,
        span: S,
        entry: Box<Entry<V>>,
    ) -> Result<Removed<'_, 'c, V, D>, Refused<V>> {
        self.purge();
        let key = span.key();
        let new = entry_pointer(entry);
        let mut old = new;
        let done = self.update(key, |plan| {
            let found = plan.descend(key);
            old = in_state(&found, State::Live)?;
            plan.replace(found, (span, new))
        });
        match done {
            Ok(()) => Ok(self.removed(old, false)),
            // SAFETY: it was a box's, and the tree has not taken it.
            Err(error) => Err(Refused { error, entry: unsafe { Box::from_raw(new.as_ptr()) } }),
        }
    }
    /// Take the entry with this key out. This can't fail for want of memory: then readers still find the entry, and find it
    /// dead, until the next update for which there is memory.
    pub fn remove(&mut self, key: S::Key) -> Option<Removed<'_, 'c, V, D>> {
        self.purge();
        let mut old = None;
        let buried = self.unlink(key, State::Live, &mut old).is_err();
        let entry = old?;
        if buried {
            self.bury(entry);
        }
        Some(self.removed(entry, buried))
    }
    /// As [`Self::remove`] when there is no memory: by who has reserved some for what comes after this.
    pub fn give_up(&mut self, key: S::Key) -> Option<Removed<'_, 'c, V, D>> {
        let (_, entry) = self.read().get_span(key)?;
        let entry = NonNull::from(entry);
        self.bury(entry);
        Some(self.removed(entry, true))
    }
    fn bury(&mut self, entry: NonNull<Entry<V>>) {
        // SAFETY: the tree leads to it.
        unsafe { entry.as_ref() }.bury();
        self.kept.tombstones += 1;
    }
    pub(crate) fn build_spans(
        &mut self,
        entries: &mut dyn ExactSizeIterator<Item = (S, Box<Entry<V>>)>,
    ) -> Result<(), Error> {
        self.purge();
        let n = entries.len();
        if n == 0 {
            return Ok(());
        }
        if !self.root().is_empty() {
            return Err(Error::Occupied);
        }
        if n > MAX_LEN as usize {
            return Err(Error::Full);
        }
        let fill = self.fills(n);
        let nodes = if fill { plan::nodes_between(n) } else { n };
        self.reserve_exactly(nodes, if fill { nodes + 1 } else { 0 })?;
        let mut last: Option<S> = None;
        let mut next = || {
            let (span, entry) = entries.next().expect("as many as were said");
            assert!(last.is_none_or(|last| last.key() < span.key()), "the entries are not in order");
            last = Some(span);
            (span, entry_pointer(entry))
        };
        let first = next();
        let (key, mut first) = (first.0.key(), Some(first));
        self.update(key, |plan| plan.build(n, &mut || first.take().unwrap_or_else(&mut next), fill))?;
        self.kept.found += n;
        Ok(())
    }
}

/// The entry of what has the key, if it is in that state.
fn in_state<S: Span, V>(found: &Found<'_, S, V>, state: State) -> Result<NonNull<Entry<V>>, Error> {
    // SAFETY: the tree leads to it.
    found.entry().filter(|entry| unsafe { entry.as_ref() }.state() == state).ok_or(Error::Absent)
}

fn entry_pointer<V>(entry: Box<Entry<V>>) -> NonNull<Entry<V>> {
    NonNull::from(Box::leak(entry))
}

/// Retire nodes, and a leaf, that the tree does not lead to.
fn retire<S: Span, V: Send + Sync + 'static, D: Rcu, M: Memory>(
    tree: &Tree<S, V, D, M>,
    context: &D::Context<'_>,
    Retiring { nodes, leaf }: Retiring<'_, '_, S, V>,
) {
    for node in nodes {
        // SAFETY: the commit has unlinked the node, and each is retired once; it is the pool's of this tree.
        unsafe { retire_one(tree, context, node.pointer()) };
    }
    if let Some(leaf) = leaf {
        // SAFETY: as above.
        unsafe { retire_one(tree, context, leaf) };
    }
}

/// # Safety
/// It is the pool's of this tree, which does not lead to it, and is retired once.
unsafe fn retire_one<N: Slot, S: Span, V: Send + Sync + 'static, D: Rcu, M: Memory>(
    tree: &Tree<S, V, D, M>,
    context: &D::Context<'_>,
    slot: NonNull<N>,
) {
    if mutant!("bonsai-free-early") || N::IS_LEAF && mutant!("bonsai-leaf-early") {
        // SAFETY: none; that this is wrong is what is to be found.
        unsafe { node::give::<N, S, V, M>(slot) };
        return;
    }
    // SAFETY: the caller's promise; it is not freed yet.
    unsafe {
        let head = slot.as_ref().head();
        tree.domain.retire(context, head, node::free::<N, S, V, M>);
    }
}

impl<S: Span, V: Send + Sync + 'static, D: Rcu, M: Memory> Drop for Writer<'_, '_, S, V, D, M> {
    /// Nodes that were reserved, or taken for updates that failed, go back, unless the tree keeps them.
    fn drop(&mut self) {
        let most = self.tree.keeps;
        self.kept.store.nodes.shrink(most);
        // As many as a change of an address space may need, which is two updates and a replacement.
        self.kept.store.leaves.shrink(most.min(2 * MOST_LEAVES + 1));
    }
}

impl<S: Span, V: Send + Sync + 'static, D: Rcu, M: Memory> fmt::Debug for Writer<'_, '_, S, V, D, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer")
            .field("len", &self.len())
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}

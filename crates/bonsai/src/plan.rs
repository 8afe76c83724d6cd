//! An update: planned, and then committed.
//!
//! **Plan.** Copies and new nodes are *private*: nobody else finds them, so they are written freely. A node of the path that
//! needs another child and no turn is *kept*: what is to be stored into it waits in its frame. Planning takes memory and may
//! fail; then private nodes go back, and nothing of the tree has changed, the sizes neither.
//!
//! **Commit.** The kept nodes' children are stored, the lowest first; it can't fail. The first store makes the change visible;
//! those above only turn the tree. Each leads from a search tree to a search tree with the same keys, and the new nodes it
//! leads to are complete. Sizes are stored on the way, which readers don't see, and last come the retired nodes.
//!
//! **Turns.** With weight = size + 1, a node is balanced if neither child is more than [`DELTA`] times as heavy as the other; if
//! one is, it turns up, by a single rotation if its inner child is lighter than [`GAMMA`] times its outer one, and by a double
//! one otherwise (Hirai and Yamamoto, "Balancing weight-balanced trees", JFP 2011, where <3, 2> is shown to be sound). The
//! nodes that turn are copied, since a node below which the interval of keys became narrower would lose readers that are on
//! their way in it; the subtrees they carry are not.
//!
//! **Leaves** have no part in the balance: to it, one is what a missing child is, with weight 1, and a turn carries it along. So the
//! rules above hold as they are, and where there are no leaves, nothing is different. An insert where a path ends makes a leaf there,
//! if the tree is large, or another with one span more; a full one makes two, and a node between them. A removal makes another with
//! one span less, or none; and a node that is removed, and has a leaf beside it or at the end of the spine, gets a span of that. No size
//! changes then. Leaves are not joined: each has a span, and a node that has lost both is a node with a span, as in a small tree.

use alloc::sync::Arc;
use core::ptr;

use sync::{
    mutant,
    primitive::{AtomicPtr, Ordering},
};

use crate::{
    entry::Entry,
    node::{Item, LEAF, Leaf, Link, Node, Slot, UNKNOWN},
    pool::{Memory, Pool, Store},
    span::Span,
    stack::Stack,
    writer::{Counts, Error},
};

/// How many times heavier a child may be than its sibling.
const DELTA: u64 = 3;
/// How many times heavier than the outer child the inner one must be for a double rotation.
const GAMMA: u64 = 2;
/// The most nodes on a path: a child's weight is at most 3/4 of its parent's, so that a path in a tree of
/// [`MAX_LEN`] has log(2^26) / log(4/3) = 62.7 of them.
pub(crate) const MAX_HEIGHT: usize = 64;
/// The most nodes of a tree.
pub(crate) const MAX_LEN: u32 = (1 << 26) - 2;
/// The most nodes that an update takes for a tree of this height: a turn has three, and each node of the path turns once.
pub(crate) const fn most_nodes(height: usize) -> usize {
    2 + 3 * height
}

/// Whether siblings of these sizes are in balance.
pub(crate) fn is_balanced(left: u32, right: u32) -> bool {
    let (left, right) = (u64::from(left) + 1, u64::from(right) + 1);
    left <= DELTA * right && right <= DELTA * left
}
/// The most nodes on a path of a tree of `len` nodes.
pub(crate) fn most_height(len: usize) -> usize {
    let (mut weight, mut height) = (len as u64 + 1, 0);
    while weight > 1 {
        // A child has at most 3/4 of the weight.
        weight = weight * DELTA / (DELTA + 1);
        height += 1;
    }
    height
}

/// At least [`most_height`], and quicker: the logarithm to the base 4/3 is less than 2.41 times that to the base 2.
pub(crate) const fn height_bound(len: usize) -> usize {
    (len as u64 + 1).ilog2() as usize * 5 / 2 + 3
}

/// A node of the path, and what is to become of it.
struct Frame<'t, S: Span, V> {
    node: &'t Node<S, V>,
    /// Where the path goes on.
    right: bool,
    /// Whether the node stays and gets `child` there, and with it `size`.
    kept: bool,
    child: Link<'t, S, V>,
    size: u32,
}

impl<S: Span, V> Clone for Frame<'_, S, V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S: Span, V> Copy for Frame<'_, S, V> {}

/// The end of the list of private nodes, whose links are not null.
const LAST: usize = 64;

fn last<T>() -> *mut T {
    ptr::without_provenance_mut(LAST)
}

/// Where a descent has ended: at what has the key, or where it would be.
pub(crate) enum Found<'t, S: Span, V> {
    Node(&'t Node<S, V>),
    /// At this place of a leaf.
    In(&'t Leaf<S, V>, usize),
    /// The path ends here, in nothing or in a leaf.
    Absent(Link<'t, S, V>),
}

impl<S: Span, V> Found<'_, S, V> {
    /// The entry of what has the key.
    pub(crate) fn entry(&self) -> Option<ptr::NonNull<Entry<V>>> {
        match self {
            Found::Node(node) => Some(node.entry),
            Found::In(leaf, i) => Some(leaf.item(*i).1),
            Found::Absent(_) => None,
        }
    }
}

/// The most leaves that an update makes.
pub(crate) const MOST_LEAVES: usize = 2;

/// What an update has replaced.
pub(crate) struct Retiring<'p, 't, S: Span, V> {
    pub(crate) nodes: &'p [&'t Node<S, V>],
    pub(crate) leaf: Option<ptr::NonNull<Leaf<S, V>>>,
}

/// How many nodes [`Plan::build`] puts between the leaves of `n` items.
pub(crate) fn nodes_between(n: usize) -> usize {
    if n <= LEAF { 0 } else { 1 + nodes_between(n / 2) + nodes_between(n - n / 2 - 1) }
}

pub(crate) struct Plan<'t, 'p, S: Span, V: Send + Sync + 'static, M: Memory> {
    root: &'t AtomicPtr<Node<S, V>>,
    pool: &'t Arc<Pool<S, V, M>>,
    store: &'p mut Store<S, V, M>,
    frames: Stack<Frame<'t, S, V>, MAX_HEIGHT>,
    /// Live nodes that private ones will stand for.
    retiring: Stack<&'t Node<S, V>, { most_nodes(MAX_HEIGHT) }>,
    /// An update has no more than one such leaf.
    retiring_leaf: Option<ptr::NonNull<Leaf<S, V>>>,
    private: *mut Node<S, V>,
    private_leaves: *mut Leaf<S, V>,
    counts: Counts,
}

impl<'t, 'p, S: Span, V: Send + Sync + 'static, M: Memory> Plan<'t, 'p, S, V, M> {
    /// No change yet.
    ///
    /// # Safety
    /// The caller has the tree's lock, and frees none of its nodes, for all of 't.
    #[inline(always)]
    pub(crate) unsafe fn new(
        root: &'t AtomicPtr<Node<S, V>>,
        pool: &'t Arc<Pool<S, V, M>>,
        store: &'p mut Store<S, V, M>,
    ) -> Self {
        Self {
            root,
            pool,
            store,
            frames: Stack::new(),
            retiring: Stack::new(),
            retiring_leaf: None,
            private: last(),
            private_leaves: last(),
            counts: Counts::default(),
        }
    }
    fn follow(&self, place: &AtomicPtr<Node<S, V>>) -> Link<'t, S, V> {
        // SAFETY: nobody frees nodes for all of 't, by the promise of `new`; private ones are freed when the plan ends.
        unsafe { Node::follow(place) }
    }
    /// Go from the root towards `key`, leaving a frame for each node that is passed.
    #[inline]
    pub(crate) fn descend(&mut self, key: S::Key) -> Found<'t, S, V> {
        let mut next = self.follow(self.root);
        loop {
            match next {
                Link::Node(node) if node.span.key() == key => return Found::Node(node),
                Link::Node(node) => next = self.step(node, node.span.key() < key),
                Link::Leaf(leaf) => {
                    return leaf.find(key).map_or(Found::Absent(next), |i| Found::In(leaf, i));
                }
                Link::Empty => return Found::Absent(next),
            }
        }
    }
    fn step(&mut self, node: &'t Node<S, V>, right: bool) -> Link<'t, S, V> {
        self.frames.push(Frame { node, right, kept: false, child: Link::Empty, size: 0 });
        self.follow(node.place(right))
    }
    /// The spans below and above `key`, where the descent to it has ended.
    #[inline]
    pub(crate) fn neighbours(&self, end: Link<'t, S, V>, key: S::Key) -> [Option<S>; 2] {
        let last = |right| self.frames.as_slice().iter().rev().find(|frame| frame.right == right);
        let [low, high] = [true, false].map(|right| last(right).map(|frame| frame.node.span));
        let Link::Leaf(leaf) = end else { return [low, high] };
        let at = leaf.count(|other| other < key);
        let span = |i: usize| leaf.get(i).map(|(span, _)| span);
        [at.checked_sub(1).and_then(span).or(low), span(at).or(high)]
    }
    /// Put an item in where the descent has ended. Where there is nothing it goes into a leaf if `fill` says so, and else into a node.
    pub(crate) fn insert(
        &mut self,
        end: Link<'t, S, V>,
        (span, entry): Item<S, V>,
        fill: bool,
    ) -> Result<Link<'t, S, V>, Error> {
        let Link::Leaf(leaf) = end else {
            if fill {
                let new = self.make_leaf(1, |_| (span, entry))?;
                return Ok(self.end_in(new));
            }
            let node = self.make((span, entry))?;
            self.set(node, Link::Empty, Link::Empty);
            return self.up(Link::Node(node), 0..self.frames.as_slice().len(), false);
        };
        let len = leaf.len();
        let at = leaf.count(|key| key < span.key()).min(len);
        let item = |i: usize| match i.cmp(&at) {
            core::cmp::Ordering::Less => leaf.item(i),
            core::cmp::Ordering::Equal => (span, entry),
            core::cmp::Ordering::Greater => leaf.item(i - 1),
        };
        self.retire_leaf(leaf);
        if len < LEAF {
            let new = self.make_leaf(len + 1, item)?;
            return Ok(self.end_in(new));
        }
        // One is in the middle; beyond an end it is near that, so that what comes in order fills leaves.
        let middle = match at {
            0 => 1,
            _ if at == len => len - 1,
            _ => len.div_ceil(2),
        };
        self.counts.splits += 1;
        let low = self.make_leaf(middle, item)?;
        let high = self.make_leaf(len - middle, |i| item(middle + 1 + i))?;
        let node = self.make(item(middle))?;
        self.set(node, low, high);
        self.up(Link::Node(node), 0..self.frames.as_slice().len(), false)
    }
    /// Another span and entry in the place of `old`, to which the descent has led.
    pub(crate) fn replace(
        &mut self,
        old: Found<'t, S, V>,
        item: Item<S, V>,
    ) -> Result<Link<'t, S, V>, Error> {
        let new = match old {
            Found::Node(old) => {
                let new = self.make(item)?;
                self.set(new, self.follow(old.place(false)), self.follow(old.place(true)));
                self.retire(old);
                Link::Node(new)
            }
            Found::In(leaf, at) => {
                let new = self.make_leaf(leaf.len(), |i| if i == at { item } else { leaf.item(i) })?;
                self.retire_leaf(leaf);
                new
            }
            Found::Absent(_) => return Err(Error::Absent),
        };
        Ok(self.end_in(new))
    }
    /// `new`, of the same size, takes the place of what the descent has led to: the tree with it.
    fn end_in(&mut self, new: Link<'t, S, V>) -> Link<'t, S, V> {
        match self.frames.as_mut_slice() {
            [] => new,
            [first, ..] => {
                let root = first.node;
                let above = self.frames.as_mut_slice().last_mut().expect("there is a first");
                (above.kept, above.child, above.size) = (true, new, above.node.side().size.get());
                Link::Node(root)
            }
        }
    }
    /// The tree without what the descent has led to.
    pub(crate) fn remove(&mut self, old: Found<'t, S, V>) -> Result<Link<'t, S, V>, Error> {
        match old {
            Found::Node(k) => self.remove_node(k),
            Found::In(leaf, i) => {
                let rest = self.without(leaf, i)?;
                Ok(self.end_in(rest))
            }
            Found::Absent(_) => Err(Error::Absent),
        }
    }
    fn remove_node(&mut self, k: &'t Node<S, V>) -> Result<Link<'t, S, V>, Error> {
        let above = self.frames.as_slice().len();
        let (left, right) = (self.follow(k.place(false)), self.follow(k.place(true)));
        let cur = match (left, right) {
            (Link::Empty, only) | (only, Link::Empty) => only,
            _ => {
                // A leaf gives up what is next to k, else the heavier side does.
                let side = match (left, right) {
                    (Link::Leaf(_), _) => false,
                    (_, Link::Leaf(_)) => true,
                    _ => self.weight(right) >= self.weight(left),
                };
                let other = if side { left } else { right };
                // The spine is copied: with what moves unlinked in place, a reader past k that looks for it would miss it.
                let copy = !mutant!("bonsai-destructive-unlink");
                let (mut end, mut m) = (self.step(k, side), None);
                while let Link::Node(next) = end {
                    m = Some(next);
                    end = self.step(next, !side);
                }
                let spine = above + 1..self.frames.as_slice().len();
                match (end, m) {
                    (Link::Leaf(leaf), _) => {
                        let i = if side { 0 } else { leaf.len() - 1 };
                        let node = self.make(leaf.item(i))?;
                        let rest = self.without(leaf, i)?;
                        // No size has changed, so nothing turns.
                        let rest = self.up(rest, spine, copy)?;
                        self.set_beside(node, side, rest, other);
                        Link::Node(node)
                    }
                    (_, Some(m)) => {
                        let rest = self.up(self.follow(m.place(side)), spine.start..spine.end - 1, copy)?;
                        // It was the heavier side, so it is balanced with the other also without m.
                        Link::Node(self.take(m, side, rest, other)?)
                    }
                    (_, None) => unreachable!("k has both children"),
                }
            }
        };
        self.retire(k);
        self.up(cur, 0..above, false)
    }
    /// What is left of a leaf without one of its items.
    fn without(&mut self, leaf: &'t Leaf<S, V>, at: usize) -> Result<Link<'t, S, V>, Error> {
        let rest = match leaf.len() {
            1 => Link::Empty,
            len => self.make_leaf(len - 1, |i| leaf.item(i + usize::from(i >= at)))?,
        };
        self.retire_leaf(leaf);
        Ok(rest)
    }
    /// `n` items, which `next` gives in order, as balanced as can be; in leaves, and nodes between them, if `fill` says so.
    pub(crate) fn build(
        &mut self,
        n: usize,
        next: &mut dyn FnMut() -> Item<S, V>,
        fill: bool,
    ) -> Result<Link<'t, S, V>, Error> {
        if n == 0 {
            return Ok(Link::Empty);
        }
        if fill && n <= LEAF {
            return self.make_leaf(n, |_| next());
        }
        let left = self.build(n / 2, next, fill)?;
        let node = self.make(next())?;
        let right = self.build(n - n / 2 - 1, next, fill)?;
        self.set(node, left, right);
        Ok(Link::Node(node))
    }

    /// `cur` takes the place below the last of these frames: the tree from the first of them on. Nodes that don't turn are
    /// kept, or copied if `copy` says so.
    fn up(
        &mut self,
        mut cur: Link<'t, S, V>,
        frames: core::ops::Range<usize>,
        copy: bool,
    ) -> Result<Link<'t, S, V>, Error> {
        let mut size = self.size(cur);
        for i in frames.rev() {
            let Frame { node: x, right, .. } = self.frames.as_slice()[i];
            // Beside the path nothing is pending.
            let other = self.follow(x.place(!right));
            let beside = stored(other);
            let (here, there) = (u64::from(size) + 1, u64::from(beside) + 1);
            size += 1 + beside;
            cur = Link::Node(if here > DELTA * there {
                self.turn(x, right, cur, other)?
            } else if there > DELTA * here {
                self.turn(x, !right, other, cur)?
            } else if copy {
                self.take(x, right, cur, other)?
            } else {
                let frame = &mut self.frames.as_mut_slice()[i];
                (frame.kept, frame.child, frame.size) = (true, cur, size);
                x
            });
        }
        Ok(cur)
    }
    /// `x` with `heavy` at the side `h` and `light` at the other: `heavy` turns up, or its inner child does.
    fn turn(
        &mut self,
        x: &'t Node<S, V>,
        h: bool,
        heavy: Link<'t, S, V>,
        light: Link<'t, S, V>,
    ) -> Result<&'t Node<S, V>, Error> {
        let Link::Node(heavy) = heavy else { unreachable!("it is heavier than another") };
        let (inner, outer) = (self.child(heavy, !h), self.child(heavy, h));
        let gamma = if mutant!("bonsai-single-too-often") { GAMMA + 1 } else { GAMMA };
        match inner {
            Link::Node(inner) if self.weight(Link::Node(inner)) >= gamma * self.weight(outer) => {
                self.counts.double += 1;
                let (near, far) = (self.child(inner, !h), self.child(inner, h));
                let low = self.take(x, h, near, light)?;
                let high = self.take(heavy, h, outer, far)?;
                self.take(inner, h, Link::Node(high), Link::Node(low))
            }
            _ => {
                self.counts.single += 1;
                let low = self.take(x, h, inner, light)?;
                self.take(heavy, h, outer, Link::Node(low))
            }
        }
    }
    /// `n` with other children: itself if it is private, and else a copy.
    fn take(
        &mut self,
        n: &'t Node<S, V>,
        side: bool,
        child: Link<'t, S, V>,
        other: Link<'t, S, V>,
    ) -> Result<&'t Node<S, V>, Error> {
        let copy = match n.is_private() {
            true => n,
            false => {
                let copy = self.make((n.span, n.entry))?;
                self.retire(n);
                // What was to be stored into it is among the children that the copy gets.
                if let Some(frame) = self.frames.as_mut_slice().iter_mut().find(|f| ptr::eq(f.node, n)) {
                    frame.kept = false;
                }
                copy
            }
        };
        self.set_beside(copy, side, child, other);
        Ok(copy)
    }
    /// The children of a private node: at this side, and at the other.
    fn set_beside(&self, node: &Node<S, V>, side: bool, child: Link<'t, S, V>, other: Link<'t, S, V>) {
        let (left, right) = if side { (other, child) } else { (child, other) };
        self.set(node, left, right);
    }
    /// The children of a private node.
    fn set(&self, node: &Node<S, V>, left: Link<'t, S, V>, right: Link<'t, S, V>) {
        // Relaxed: nobody else finds the node before the stores in `publish`.
        node.place(false).store(left.pointer(), Ordering::Relaxed);
        node.place(true).store(right.pointer(), Ordering::Relaxed);
        node.side().size.set(1 + self.size(left) + self.size(right));
    }
    /// A private node. Its children and size are still to be set.
    fn make(&mut self, (span, entry): Item<S, V>) -> Result<&'t Node<S, V>, Error> {
        let memory = self.store.nodes.pop().or_else(|| self.pool.take()).ok_or(Error::Memory)?;
        // SAFETY: from the pool, and nobody else's. It lives as long as the tree leads to it, or until the plan ends.
        let node: &'t Node<S, V> = unsafe {
            Node::init(memory, span, entry, self.private);
            memory.as_ref()
        };
        node.side().gap.set(UNKNOWN);
        self.private = memory.as_ptr();
        self.counts.allocated += 1;
        Ok(node)
    }
    /// A private leaf of so many items. Not inlined: a leaf is large, and is not to be in a frame more than once.
    #[inline(never)]
    fn make_leaf(
        &mut self,
        len: usize,
        item: impl FnMut(usize) -> Item<S, V>,
    ) -> Result<Link<'t, S, V>, Error> {
        let memory = self.store.leaves.pop().or_else(|| self.pool.take()).ok_or(Error::Memory)?;
        // SAFETY: as in `make`; callers know how many there are.
        let leaf: &'t Leaf<S, V> = unsafe {
            Leaf::init(memory, len, item, self.private_leaves);
            memory.as_ref()
        };
        leaf.side().gap.set(UNKNOWN);
        self.private_leaves = memory.as_ptr();
        self.counts.allocated += 1;
        self.counts.leaves += 1;
        Ok(Link::Leaf(leaf))
    }
    fn retire(&mut self, node: &'t Node<S, V>) {
        self.retiring.push(node);
        self.counts.retired += 1;
    }
    fn retire_leaf(&mut self, leaf: &'t Leaf<S, V>) {
        debug_assert!(self.retiring_leaf.is_none(), "an update changes one leaf");
        self.retiring_leaf = Some(leaf.pointer());
        self.counts.retired += 1;
    }
    /// What is to be stored into a node that is kept.
    fn pending(&self, n: &Node<S, V>) -> Option<&Frame<'t, S, V>> {
        self.frames.as_slice().iter().rev().find(|f| f.kept && ptr::eq(f.node, n))
    }
    fn child(&self, n: &Node<S, V>, right: bool) -> Link<'t, S, V> {
        match self.pending(n) {
            Some(frame) if frame.right == right => frame.child,
            _ => self.follow(n.place(right)),
        }
    }
    fn size(&self, n: Link<'t, S, V>) -> u32 {
        match n {
            Link::Node(node) => self.pending(node).map_or_else(|| stored(n), |frame| frame.size),
            _ => 0,
        }
    }
    fn weight(&self, n: Link<'t, S, V>) -> u64 {
        u64::from(self.size(n)) + 1
    }

    /// What is to be retired after the commit.
    pub(crate) fn retiring(&self) -> Retiring<'_, 't, S, V> {
        Retiring { nodes: self.retiring.as_slice(), leaf: self.retiring_leaf }
    }
    /// Make the change: `root` is what planning has given. What was done.
    pub(crate) fn commit(&mut self, root: Link<'t, S, V>) -> Counts {
        private(&mut self.private).for_each(|node| node.link().set(ptr::null_mut()));
        private(&mut self.private_leaves).for_each(|leaf| leaf.link().set(ptr::null_mut()));
        for i in (0..self.frames.as_slice().len()).rev() {
            let Frame { node, right, kept, child, size } = self.frames.as_slice()[i];
            if kept {
                self.publish(node.place(right), child);
                node.side().size.set(size);
            }
        }
        self.publish(self.root, root);
        self.counts
    }
    fn publish(&mut self, place: &AtomicPtr<Node<S, V>>, new: Link<'t, S, V>) {
        // Relaxed: only the writer stores [O3].
        if place.load(Ordering::Relaxed) != new.pointer() {
            // Release [O1]: the nodes it leads to are complete; partner: the load in `Node::follow`.
            let order = if mutant!("bonsai-relaxed-publish") { Ordering::Relaxed } else { Ordering::Release };
            place.store(new.pointer(), order);
            self.counts.stores += 1;
        }
    }
}

/// The size of a subtree, whatever is pending.
fn stored<S: Span, V>(link: Link<'_, S, V>) -> u32 {
    match link {
        Link::Node(node) => node.side().size.get(),
        _ => 0,
    }
}

impl<S: Span, V: Send + Sync + 'static, M: Memory> Drop for Plan<'_, '_, S, V, M> {
    /// What has not been committed is given up.
    fn drop(&mut self) {
        // SAFETY: the private ones, which nothing but this plan leads to.
        unsafe {
            private(&mut self.private).for_each(|node| self.store.nodes.take_back(node.pointer()));
            private(&mut self.private_leaves).for_each(|leaf| self.store.leaves.take_back(leaf.pointer()));
        }
    }
}

/// Take a plan's list of private nodes, or leaves, to pieces.
fn private<'l, N: Slot + 'l>(list: &mut *mut N) -> impl Iterator<Item = &'l N> + use<'l, N> {
    let mut next = core::mem::replace(list, last());
    core::iter::from_fn(move || {
        if next == last() {
            return None;
        }
        // SAFETY: in the list of a plan, which has not given it to anybody yet.
        let one = unsafe { &*next };
        next = one.link().get();
        Some(one)
    })
}

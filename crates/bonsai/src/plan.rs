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

use alloc::sync::Arc;
use core::ptr;

use sync::{
    mutant,
    primitive::{AtomicPtr, Ordering},
};

use crate::{
    entry::Entry,
    node::{Link, Node, UNKNOWN},
    pool::{Magazine, Memory, Pool},
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
struct Frame<'t, S, V> {
    node: &'t Node<S, V>,
    /// Where the path goes on.
    right: bool,
    /// Whether the node stays and gets `child` there, and with it `size`.
    kept: bool,
    child: Link<'t, S, V>,
    size: u32,
}

impl<S, V> Clone for Frame<'_, S, V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S, V> Copy for Frame<'_, S, V> {}

/// The end of the list of private nodes, whose links are not null.
const LAST: usize = 64;

fn last<T>() -> *mut T {
    ptr::without_provenance_mut(LAST)
}

pub(crate) struct Plan<'t, 'p, S: Span, V: Send + Sync + 'static, M: Memory> {
    root: &'t AtomicPtr<Node<S, V>>,
    pool: &'t Arc<Pool<S, V, M>>,
    magazine: &'p mut Magazine<S, V, M>,
    frames: Stack<Frame<'t, S, V>, MAX_HEIGHT>,
    /// Live nodes that private ones will stand for.
    retiring: Stack<&'t Node<S, V>, { most_nodes(MAX_HEIGHT) }>,
    private: *mut Node<S, V>,
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
        magazine: &'p mut Magazine<S, V, M>,
    ) -> Self {
        let (frames, retiring) = (Stack::new(), Stack::new());
        Self { root, pool, magazine, frames, retiring, private: last(), counts: Counts::default() }
    }
    fn follow(&self, place: &AtomicPtr<Node<S, V>>) -> Link<'t, S, V> {
        // SAFETY: nobody frees nodes for all of 't, by the promise of `new`; private ones are freed when the plan ends.
        unsafe { Node::follow(place) }
    }
    /// Go from the root towards `key`, leaving a frame for each node that is passed; the node with that key.
    pub(crate) fn descend(&mut self, key: S::Key) -> Link<'t, S, V> {
        let mut next = self.follow(self.root);
        while let Some(node) = next {
            let at = node.span.key();
            if at == key {
                return next;
            }
            next = self.step(node, at < key);
        }
        None
    }
    fn step(&mut self, node: &'t Node<S, V>, right: bool) -> Link<'t, S, V> {
        self.frames.push(Frame { node, right, kept: false, child: None, size: 0 });
        self.follow(node.place(right))
    }
    /// The spans below and above the place where the descent has ended.
    pub(crate) fn neighbours(&self) -> [Option<&S>; 2] {
        let last = |right| self.frames.as_slice().iter().rev().find(|frame| frame.right == right);
        [true, false].map(|right| last(right).map(|frame| &frame.node.span))
    }
    /// A node with this span and entry where the descent has ended.
    pub(crate) fn insert(&mut self, span: S, entry: ptr::NonNull<Entry<V>>) -> Result<Link<'t, S, V>, Error> {
        let leaf = self.make(span, entry)?;
        self.set(leaf, None, None);
        self.up(Some(leaf), 0..self.frames.as_slice().len(), false)
    }
    /// Another span and entry in the place of `old`, to which the descent has led.
    pub(crate) fn replace(
        &mut self,
        old: &'t Node<S, V>,
        span: S,
        entry: ptr::NonNull<Entry<V>>,
    ) -> Result<Link<'t, S, V>, Error> {
        let new = self.make(span, entry)?;
        self.set(new, self.follow(old.place(false)), self.follow(old.place(true)));
        self.retire(old);
        Ok(match self.frames.as_mut_slice() {
            [] => Some(new),
            [first, ..] => {
                let root = first.node;
                let above = self.frames.as_mut_slice().last_mut().expect("there is a first");
                (above.kept, above.child, above.size) = (true, Some(new), above.node.side().size.get());
                Some(root)
            }
        })
    }
    /// The tree without `k`, to which the descent has led.
    pub(crate) fn remove(&mut self, k: &'t Node<S, V>) -> Result<Link<'t, S, V>, Error> {
        let above = self.frames.as_slice().len();
        let (left, right) = (self.follow(k.place(false)), self.follow(k.place(true)));
        let cur = match (left, right) {
            (None, only) | (only, None) => only,
            (Some(_), Some(_)) => {
                // The heavier side gives up m, its node next to k.
                let side = self.weight(right) >= self.weight(left);
                let mut m = self.step(k, side).expect("k has both children");
                while let Some(next) = self.follow(m.place(!side)) {
                    self.step(m, !side);
                    m = next;
                }
                // The spine is copied: with m unlinked in place, a reader past k that looks for m would miss it.
                let copy = !mutant!("bonsai-destructive-unlink");
                let spine = above + 1..self.frames.as_slice().len();
                let rest = self.up(self.follow(m.place(side)), spine, copy)?;
                // It was the heavier side, so it is balanced with the other also without m.
                Some(self.take(m, side, rest, if side { left } else { right })?)
            }
        };
        self.retire(k);
        self.up(cur, 0..above, false)
    }
    /// `n` nodes with what `next` gives, in order, as balanced as can be.
    pub(crate) fn build(
        &mut self,
        n: usize,
        next: &mut dyn FnMut() -> Option<(S, ptr::NonNull<Entry<V>>)>,
    ) -> Result<Link<'t, S, V>, Error> {
        if n == 0 {
            return Ok(None);
        }
        let left = self.build(n / 2, next)?;
        let (span, entry) = next().expect("as many as were said");
        let node = self.make(span, entry)?;
        let right = self.build(n - n / 2 - 1, next)?;
        self.set(node, left, right);
        Ok(Some(node))
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
            cur = Some(if here > DELTA * there {
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
        let heavy = heavy.expect("it is heavier than another");
        let (inner, outer) = (self.child(heavy, !h), self.child(heavy, h));
        let gamma = if mutant!("bonsai-single-too-often") { GAMMA + 1 } else { GAMMA };
        match inner {
            Some(inner) if self.weight(Some(inner)) >= gamma * self.weight(outer) => {
                self.counts.double += 1;
                let (near, far) = (self.child(inner, !h), self.child(inner, h));
                let low = self.take(x, h, near, light)?;
                let high = self.take(heavy, h, outer, far)?;
                self.take(inner, h, Some(high), Some(low))
            }
            _ => {
                self.counts.single += 1;
                let low = self.take(x, h, inner, light)?;
                self.take(heavy, h, outer, Some(low))
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
                let copy = self.make(n.span, n.entry)?;
                self.retire(n);
                // What was to be stored into it is among the children that the copy gets.
                if let Some(frame) = self.frames.as_mut_slice().iter_mut().find(|f| ptr::eq(f.node, n)) {
                    frame.kept = false;
                }
                copy
            }
        };
        let (left, right) = if side { (other, child) } else { (child, other) };
        self.set(copy, left, right);
        Ok(copy)
    }
    /// The children of a private node.
    fn set(&self, node: &Node<S, V>, left: Link<'t, S, V>, right: Link<'t, S, V>) {
        // Relaxed: nobody else finds the node before the stores in `publish`.
        node.place(false).store(pointer(left), Ordering::Relaxed);
        node.place(true).store(pointer(right), Ordering::Relaxed);
        node.side().size.set(1 + self.size(left) + self.size(right));
    }
    /// A private node. Its children and size are still to be set.
    fn make(&mut self, span: S, entry: ptr::NonNull<Entry<V>>) -> Result<&'t Node<S, V>, Error> {
        let memory = self.magazine.pop().or_else(|| self.pool.take()).ok_or(Error::Memory)?;
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
    fn retire(&mut self, node: &'t Node<S, V>) {
        self.retiring.push(node);
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
        n.map_or(0, |n| self.pending(n).map_or_else(|| stored(Some(n)), |frame| frame.size))
    }
    fn weight(&self, n: Link<'t, S, V>) -> u64 {
        u64::from(self.size(n)) + 1
    }

    /// The nodes to retire after the commit.
    pub(crate) fn retiring(&self) -> &[&'t Node<S, V>] {
        self.retiring.as_slice()
    }
    /// Make the change: `root` is what planning has given. What was done.
    pub(crate) fn commit(&mut self, root: Link<'t, S, V>) -> Counts {
        let mut private = core::mem::replace(&mut self.private, last());
        while private != last() {
            // SAFETY: the list of private nodes.
            let node = unsafe { &*private };
            private = node.next();
            node.set_next(ptr::null_mut());
        }
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
        if place.load(Ordering::Relaxed) != pointer(new) {
            // Release [O1]: the nodes it leads to are complete; partner: the load in `Node::follow`.
            let order = if mutant!("bonsai-relaxed-publish") { Ordering::Relaxed } else { Ordering::Release };
            place.store(pointer(new), order);
            self.counts.stores += 1;
        }
    }
}

/// The size of a subtree, whatever is pending.
fn stored<S: Span, V>(node: Link<'_, S, V>) -> u32 {
    node.map_or(0, |node| node.side().size.get())
}

fn pointer<S: Span, V>(node: Link<'_, S, V>) -> *mut Node<S, V> {
    node.map_or(ptr::null_mut(), |node| node.pointer().as_ptr())
}

impl<S: Span, V: Send + Sync + 'static, M: Memory> Drop for Plan<'_, '_, S, V, M> {
    /// What has not been committed is given up.
    fn drop(&mut self) {
        while self.private != last() {
            // SAFETY: the list of private nodes, which nothing but this plan leads to.
            unsafe {
                let node = ptr::NonNull::new_unchecked(self.private);
                self.private = node.as_ref().next();
                Node::end(node);
                self.magazine.push(node);
            }
        }
    }
}

//! Free memory as a balanced tree of extents.
//!
//! **Claim.** Frames are taken from the lowest address at which an aligned run of the size is free, and taken back next
//! to what is free there already, in O(log n) for n extents, whatever the alignment and the history.
//!
//! **Idea.** An *extent* is a maximal run of free frames. Extents hang in a binary tree ordered by address, which is
//! kept balanced by the heights of subtrees (Adelson-Velsky and Landis 1962; Knuth, "The Art of Computer Programming"
//! 3, section 6.2.3). This is how the pagers of Fiasco.OC's L4Re keep the memory they give out; what Tian, Waddington
//! and Kuang measured ("A Scalable Physical Memory Allocation Scheme for L4 Microkernel", COMPSAC 2012) is its rise
//! with the number of extents, and the queue in front of one such tree.
//!
//! Each node knows, of all extents below and including it, the largest order for which one holds an aligned run:
//!
//! ```text
//!                      [96, 8 frames] best: order 4
//!                      /             \
//!       [17, 30 frames] best: 3     [128, 16 frames] best: 4
//! ```
//!
//! Here 17..47 holds an aligned run of 8 (24..32) but none of 16 (only 32..48 would do). An extent that holds a run of
//! some order holds one of every smaller order, so the search goes left if the left subtree's best suffices, else stops
//! here if this extent does, else goes right: it never turns back. A tree that knew the greatest *length* of its
//! subtrees would have to visit extents that are long enough and lie badly.
//!
//! **Invariants.**
//! - Extents do not overlap, and between two of them lies at least one frame. So n frames make at most n/2 extents,
//!   rounded up.
//! - The heights of a node's two subtrees differ by 1 at most.
//! - `best` is the maximum over the subtree, plus 1; 0 stands for no extent.
//!
//! Nodes lie in one table and are named by their index. Index 0 is no node: its height and best are 0. Nodes given
//! back form a chain; those never used need no preparation.

use super::{Plain, largest_order, round_up};

/// No node.
const NIL: u32 = 0;
const LEFT: usize = 0;
const RIGHT: usize = 1;

/// An extent, and its place in the tree.
#[derive(Clone, Copy, Default, Debug)]
#[repr(C)]
pub(crate) struct Node {
    /// Number of the first frame.
    start: u64,
    /// Length in frames.
    len: u32,
    /// Roots of the subtrees before and after; in a spare node, the next spare one and nothing.
    child: [u32; 2],
    /// 1 more than the greater height of the subtrees.
    height: u8,
    /// 1 more than the largest order that this extent can serve.
    own: u8,
    /// 1 more than the largest order that the subtree can serve.
    best: u8,
    /// So that no byte is padding.
    _zero: u8,
}

// SAFETY: integers, and 8 + 4 + 2 * 4 + 4 * 1 bytes of them, a multiple of 8.
unsafe impl Plain for Node {}
const _: () = assert!(size_of::<Node>() == 24);

impl Node {
    fn end(&self) -> u64 {
        self.start + u64::from(self.len)
    }
    /// Change the bounds of the extent.
    fn set(&mut self, start: u64, len: u32) {
        (self.start, self.len) = (start, len);
        self.own = largest_order(start, len.into()) as u8 + 1;
    }
}

/// A frame to be given is free already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Overlap;

/// Free extents by address.
pub(crate) struct Tree<'m> {
    nodes: &'m mut [Node],
    root: u32,
    /// First of the chain of nodes that were given back.
    spare: u32,
    /// Nodes from here on were never used.
    fresh: u32,
}

impl<'m> Tree<'m> {
    /// Nodes that a tree of at most `extents` extents needs.
    pub(crate) const fn nodes(extents: usize) -> usize {
        extents + 1
    }
    /// An empty tree over [`Self::nodes`] nodes, whatever they contain.
    pub(crate) fn new(nodes: &'m mut [Node]) -> Self {
        nodes[NIL as usize] = Node::default();
        Self { nodes, root: NIL, spare: NIL, fresh: NIL + 1 }
    }
    /// Take the lowest run of 2^`order` frames whose first is a multiple of that.
    pub(crate) fn take(&mut self, order: u32) -> Option<u64> {
        let at = self.first_fit(order)?;
        let run = round_up(self.node(at).start, order);
        self.cut(at, run, run + (1 << order));
        Some(run)
    }
    /// Add `len` frames from `start` on, all of which are in no extent; else nothing changes.
    pub(crate) fn give(&mut self, start: u64, len: u32) -> Result<(), Overlap> {
        let [before, after] = self.neighbours(start);
        let end = start + u64::from(len);
        if before != NIL && self.node(before).end() > start || after != NIL && self.node(after).start < end {
            return Err(Overlap);
        }
        let joins_before = before != NIL && self.node(before).end() == start;
        let joins_after = after != NIL && self.node(after).start == end;
        match (joins_before, joins_after) {
            (false, false) => self.add(start, len),
            (true, false) => self.resize(before, self.node(before).start, self.node(before).len + len),
            (false, true) => self.resize(after, start, len + self.node(after).len),
            (true, true) => {
                let Node { start, len: more, .. } = *self.node(after);
                self.remove(start);
                self.resize(before, self.node(before).start, self.node(before).len + len + more);
            }
        }
        Ok(())
    }
    /// Take all free frames of `start..end`, and pass each stretch on as (first, length), highest first.
    pub(crate) fn take_within(&mut self, start: u64, end: u64, mut each: impl FnMut(u64, u32)) {
        loop {
            let [last, _] = self.neighbours(end - 1);
            if last == NIL || self.node(last).end() <= start {
                return;
            }
            let (from, to) = (self.node(last).start.max(start), self.node(last).end().min(end));
            self.cut(last, from, to);
            each(from, (to - from) as u32);
        }
    }

    /// The lowest extent that holds an aligned run of `order`.
    fn first_fit(&self, order: u32) -> Option<u32> {
        let mut at = self.root;
        if u32::from(self.node(at).best) <= order {
            return None;
        }
        loop {
            let node = self.node(at);
            let [left, right] = node.child;
            if u32::from(self.node(left).best) > order {
                at = left;
            } else if u32::from(node.own) > order {
                return Some(at);
            } else {
                at = right;
            }
        }
    }
    /// The last extent that begins at `key` or before, and the first that begins after it.
    fn neighbours(&self, key: u64) -> [u32; 2] {
        let (mut found, mut at) = ([NIL; 2], self.root);
        while at != NIL {
            let after = self.node(at).start > key;
            found[usize::from(after)] = at;
            at = self.node(at).child[usize::from(!after)];
        }
        found
    }
    /// Take `from..to` out of the extent `at`, which holds it.
    fn cut(&mut self, at: u32, from: u64, to: u64) {
        let Node { start, .. } = *self.node(at);
        let end = self.node(at).end();
        let (head, tail) = ((from - start) as u32, (end - to) as u32);
        match (head, tail) {
            (0, 0) => self.remove(start),
            (0, _) => self.resize(at, to, tail),
            (_, 0) => self.resize(at, start, head),
            _ => {
                self.resize(at, start, head);
                self.add(to, tail);
            }
        }
    }

    /// Put an extent in, which touches no other.
    fn add(&mut self, start: u64, len: u32) {
        let node = if self.spare == NIL {
            self.fresh += 1;
            self.fresh - 1
        } else {
            let node = self.spare;
            self.spare = self.node(node).child[LEFT];
            node
        };
        *self.node_mut(node) = Node::default();
        self.node_mut(node).set(start, len);
        self.refresh(node);
        self.root = self.insert(self.root, node);
    }
    /// Take the extent that begins at `start` out, and give its node back. Other extents stay where their nodes are.
    fn remove(&mut self, start: u64) {
        let (root, node) = self.detach(self.root, start);
        self.root = root;
        self.node_mut(node).child = [self.spare, NIL];
        self.spare = node;
    }
    /// Change the bounds of an extent, between those of its neighbours.
    fn resize(&mut self, at: u32, start: u64, len: u32) {
        self.node_mut(at).set(start, len);
        self.refresh_path(self.root, start);
    }

    // The functions below work on the subtree at `at`, and answer its root. They go one level down at each call, which
    // in a tree of 2^32 nodes are 46 levels.

    fn insert(&mut self, at: u32, node: u32) -> u32 {
        if at == NIL {
            return node;
        }
        let side = self.side(at, self.node(node).start);
        self.node_mut(at).child[side] = self.insert(self.node(at).child[side], node);
        self.balance(at)
    }
    /// Take out the node of the extent that begins at `start`; it is answered second.
    fn detach(&mut self, at: u32, start: u64) -> (u32, u32) {
        debug_assert!(at != NIL, "no extent begins at {start:#x}");
        let Node { start: here, child: [left, right], .. } = *self.node(at);
        if here != start {
            let side = self.side(at, start);
            let (rest, node) = self.detach(self.node(at).child[side], start);
            self.node_mut(at).child[side] = rest;
            return (self.balance(at), node);
        }
        if right == NIL {
            return (left, at);
        }
        let (rest, next) = self.detach_lowest(right);
        self.node_mut(next).child = [left, rest];
        (self.balance(next), at)
    }
    fn detach_lowest(&mut self, at: u32) -> (u32, u32) {
        let [left, right] = self.node(at).child;
        if left == NIL {
            return (right, at);
        }
        let (rest, lowest) = self.detach_lowest(left);
        self.node_mut(at).child[LEFT] = rest;
        (self.balance(at), lowest)
    }
    /// Restore the balance of `at`, where one subtree has grown or shrunk by one level.
    fn balance(&mut self, at: u32) -> u32 {
        let [left, right] = self.heights(at);
        let heavy = match (left, right) {
            (l, r) if l > r + 1 => LEFT,
            (l, r) if r > l + 1 => RIGHT,
            _ => {
                self.refresh(at);
                return at;
            }
        };
        let (child, light) = (self.node(at).child[heavy], 1 - heavy);
        let below = self.heights(child);
        if below[light] > below[heavy] {
            self.node_mut(at).child[heavy] = self.rotate(child, heavy);
        }
        self.rotate(at, light)
    }
    /// Let `at` sink to its side `to`, and the child on the other side rise.
    fn rotate(&mut self, at: u32, to: usize) -> u32 {
        let up = self.node(at).child[1 - to];
        self.node_mut(at).child[1 - to] = self.node(up).child[to];
        self.node_mut(up).child[to] = at;
        self.refresh(at);
        self.refresh(up);
        up
    }
    /// Refresh the nodes down to the one that begins at `start`.
    fn refresh_path(&mut self, at: u32, start: u64) {
        debug_assert!(at != NIL, "no extent begins at {start:#x}");
        if self.node(at).start != start {
            self.refresh_path(self.node(at).child[self.side(at, start)], start);
        }
        self.refresh(at);
    }
    /// Compute what a node knows of its subtree from its children.
    fn refresh(&mut self, at: u32) {
        let [left, right] = self.node(at).child.map(|child| *self.node(child));
        let node = self.node_mut(at);
        node.height = 1 + left.height.max(right.height);
        node.best = node.own.max(left.best).max(right.best);
    }

    /// The side of `at` on which an extent that begins at `start` is.
    fn side(&self, at: u32, start: u64) -> usize {
        if start < self.node(at).start { LEFT } else { RIGHT }
    }
    fn heights(&self, at: u32) -> [u8; 2] {
        self.node(at).child.map(|child| self.node(child).height)
    }
    #[inline]
    fn node(&self, at: u32) -> &Node {
        &self.nodes[at as usize]
    }
    #[inline]
    fn node_mut(&mut self, at: u32) -> &mut Node {
        &mut self.nodes[at as usize]
    }
}

#[cfg(test)]
impl Tree<'_> {
    /// All extents as (first frame, length), in order, after a look at every invariant.
    pub(crate) fn checked(&self) -> std::vec::Vec<(u64, u32)> {
        let mut found = std::vec::Vec::new();
        self.check(self.root, &mut found);
        let nil = self.node(NIL);
        assert_eq!((nil.height, nil.best), (0, 0));
        for pair in found.windows(2) {
            assert!(
                pair[0].0 + u64::from(pair[0].1) < pair[1].0,
                "{pair:x?} overlap, touch or are out of order"
            );
        }
        let mut spare = 0;
        let mut at = self.spare;
        while at != NIL {
            (spare, at) = (spare + 1, self.node(at).child[LEFT]);
        }
        assert_eq!(found.len() + spare + 1, self.fresh as usize, "a node is lost");
        found
    }
    fn check(&self, at: u32, found: &mut std::vec::Vec<(u64, u32)>) {
        if at == NIL {
            return;
        }
        let node = self.node(at);
        self.check(node.child[LEFT], found);
        found.push((node.start, node.len));
        self.check(node.child[RIGHT], found);
        let [left, right] = node.child.map(|child| *self.node(child));
        assert!(node.len > 0);
        assert!(left.height.abs_diff(right.height) <= 1, "out of balance: {node:?}");
        assert_eq!(node.height, 1 + left.height.max(right.height));
        let fits = |order: &u32| {
            let run = node.start.next_multiple_of(1 << order);
            run + (1 << order) <= node.end()
        };
        let own = (0..40).filter(fits).max().expect("a single frame fits") as u8 + 1;
        assert_eq!((node.own, node.best), (own, own.max(left.best).max(right.best)));
    }
}

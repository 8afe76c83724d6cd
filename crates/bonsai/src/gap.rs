//! The largest gap below each node, so that room for a region is found in one descent.
//!
//! Each missing child stands for one gap, from the end of the last region on its left to the start of the first on its right:
//! n nodes, n + 1 gaps. A leaf stands for its regions, and so for one gap more than it has of these. A node's gap is the largest of those below it. Turns leave the gaps as they are. An insert divides one,
//! a removal joins two: those that the search for the region's start ends in. So what an update changes is on that path, or
//! new itself. But a tombstone may have regions within it: while it is there, gaps count as
//! none that turns bring out from under it, and when it goes, all are forgotten.
//!
//! An update only notes that it is not known any more ([`UNKNOWN`]); who searches computes it. Above a node whose gap is not
//! known there is none whose gap is.

use crate::{
    node::{Leaf, Link, Node, Slot, UNKNOWN},
    span::{Region, Span},
};

/// A child.
///
/// # Safety
/// The caller has the tree's lock, and frees no node for all of 't.
unsafe fn child<'t, S: Span, V>(node: &Node<S, V>, right: bool) -> Link<'t, S, V> {
    // SAFETY: the caller's promise.
    unsafe { Node::stored(node.place(right)) }
}

/// The gaps of the nodes on the path to `key` have changed.
///
/// # Safety
/// As [`child`].
#[inline]
pub(crate) unsafe fn forget<S: Span, V>(root: Link<'_, S, V>, key: S::Key) {
    let mut at = root;
    loop {
        match at {
            Link::Node(x) => {
                x.side().gap.set(UNKNOWN);
                // SAFETY: the caller's promise.
                at = unsafe { child(x, x.span.key() <= key) };
            }
            Link::Leaf(leaf) => return leaf.side().gap.set(UNKNOWN),
            Link::Empty => return,
        }
    }
}
/// All gaps may have changed.
///
/// # Safety
/// As [`child`].
pub(crate) unsafe fn forget_all<S: Span, V>(link: Link<'_, S, V>) {
    match link {
        Link::Node(x) => {
            x.side().gap.set(UNKNOWN);
            // SAFETY: the caller's promise.
            [false, true].into_iter().for_each(|right| unsafe { forget_all(child(x, right)) });
        }
        Link::Leaf(leaf) => leaf.side().gap.set(UNKNOWN),
        Link::Empty => {}
    }
}
/// The gaps of a leaf whose interval is `between`, in order.
fn of_leaf<S: Span, V>(
    leaf: &Leaf<S, V>,
    between: S::Between,
) -> impl Iterator<Item = S::Between> + use<'_, S, V> {
    let mut rest = between;
    let before = leaf.items().map(move |(span, _)| {
        let gap = span.split(rest, false);
        rest = span.split(rest, true);
        gap
    });
    // What follows the last, by itself: the first part has not been gone through yet.
    let last = leaf.items().fold(between, |rest, (span, _)| span.split(rest, true));
    before.chain([last])
}
/// The largest of them. Not inlined, as below: what calls it does so again and again, and its frames are to be small.
#[inline(never)]
pub(crate) fn largest<S: Span, V>(leaf: &Leaf<S, V>, between: S::Between) -> u32 {
    of_leaf(leaf, between).map(S::gap).max().unwrap_or(0)
}
/// The largest gap below `node`, computed as far as it is not known.
///
/// # Safety
/// As [`child`].
#[inline]
unsafe fn known<S: Span, V>(link: Link<'_, S, V>, between: S::Between) -> u32 {
    let side = match link {
        Link::Empty => return S::gap(between),
        Link::Node(x) => x.side(),
        Link::Leaf(leaf) => leaf.side(),
    };
    match side.gap.get() {
        // SAFETY: the caller's promise.
        UNKNOWN => unsafe { compute(link, between) },
        gap => gap,
    }
}
/// # Safety
/// As [`child`].
unsafe fn compute<S: Span, V>(link: Link<'_, S, V>, between: S::Between) -> u32 {
    let (side, gap) = match link {
        Link::Empty => return S::gap(between),
        Link::Leaf(leaf) => (leaf.side(), largest(leaf, between)),
        Link::Node(x) => {
            // SAFETY: the caller's promise.
            let [left, right] =
                [false, true].map(|right| unsafe { known(child(x, right), x.span.split(between, right)) });
            (x.side(), left.max(right))
        }
    };
    side.gap.set(gap);
    gap
}

/// Which of the places with enough room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fit {
    /// The lowest address.
    Lowest,
    /// The highest address.
    Highest,
}

/// What is looked for.
pub(crate) struct Want {
    pub(crate) bytes: u64,
    pub(crate) within: Region,
    pub(crate) fit: Fit,
}

/// Where there is room in a gap, as far as it is wanted there.
fn room((low, high): (u64, u64), want: &Want) -> Option<u64> {
    let (low, high) = (low.max(want.within.start()), high.min(want.within.end()));
    (high.saturating_sub(low) >= want.bytes).then(|| match want.fit {
        Fit::Lowest => low,
        Fit::Highest => high - want.bytes,
    })
}

/// Where there is room in the gaps of a leaf.
#[inline(never)]
fn room_in<V>(leaf: &Leaf<Region, V>, between: (u64, u64), want: &Want) -> Option<u64> {
    let mut rooms = of_leaf(leaf, between).filter_map(|gap| room(gap, want));
    if want.fit == Fit::Highest { rooms.last() } else { rooms.next() }
}

/// Where there is room in the interval `between` of what `link` leads to.
///
/// # Safety
/// As [`child`].
pub(crate) unsafe fn find<V>(link: Link<'_, Region, V>, between: (u64, u64), want: &Want) -> Option<u64> {
    let all = room(between, want)?;
    // SAFETY: the caller's promise.
    if Region::at_most(unsafe { known(link, between) }) < want.bytes {
        return None;
    }
    let x = match link {
        Link::Node(x) => x,
        Link::Leaf(leaf) => return room_in(leaf, between, want),
        Link::Empty => return Some(all),
    };
    let first = want.fit == Fit::Highest;
    [first, !first].into_iter().find_map(|right| {
        // SAFETY: the caller's promise.
        unsafe { find(child(x, right), x.span.split(between, right), want) }
    })
}

//! The largest gap below each node, so that room for a region is found in one descent.
//!
//! Each missing child stands for one gap, from the end of the last region on its left to the start of the first on its right:
//! n nodes, n + 1 gaps. A node's gap is the largest of those below it. Turns leave the gaps as they are. An insert divides one,
//! a removal joins two: those that the search for the region's start ends in. So what an update changes is on that path, or
//! new itself.
//!
//! An update only notes that it is not known any more ([`UNKNOWN`]); who searches computes it. Above a node whose gap is not
//! known there is none whose gap is.

use core::sync::atomic::Ordering;

use crate::{
    node::{Link, Node, UNKNOWN},
    span::{Region, Span},
};

/// A child.
///
/// # Safety
/// The caller has the tree's lock, and frees no node for all of 't.
unsafe fn child<'t, S: Span, V>(node: &Node<S, V>, right: bool) -> Link<'t, S, V> {
    // Relaxed [O3]: only the writer stores.
    // SAFETY: the caller's promise.
    unsafe { node.place(right).load(Ordering::Relaxed).as_ref() }
}

/// The gaps of the nodes on the path to `key` have changed.
///
/// # Safety
/// As [`child`].
#[inline]
pub(crate) unsafe fn forget<S: Span, V>(root: Link<'_, S, V>, key: S::Key) {
    let mut at = root;
    while let Some(x) = at {
        x.side().gap.set(UNKNOWN);
        // SAFETY: the caller's promise.
        at = unsafe { child(x, x.span.key() <= key) };
    }
}
/// The largest gap below `node`, computed as far as it is not known.
///
/// # Safety
/// As [`child`].
#[inline]
unsafe fn known<S: Span, V>(node: Link<'_, S, V>, between: S::Between) -> u32 {
    let Some(x) = node else { return S::gap(between) };
    match x.side().gap.get() {
        // SAFETY: the caller's promise.
        UNKNOWN => unsafe { compute(x, between) },
        gap => gap,
    }
}
/// # Safety
/// As [`child`].
unsafe fn compute<S: Span, V>(x: &Node<S, V>, between: S::Between) -> u32 {
    // SAFETY: the caller's promise.
    let [left, right] =
        [false, true].map(|right| unsafe { known(child(x, right), x.span.split(between, right)) });
    let gap = left.max(right);
    x.side().gap.set(gap);
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

/// Where there is room in the interval `between` of `node`.
///
/// # Safety
/// As [`child`].
pub(crate) unsafe fn find<V>(node: Link<'_, Region, V>, between: (u64, u64), want: &Want) -> Option<u64> {
    let (low, high) = (between.0.max(want.within.start()), between.1.min(want.within.end()));
    if high.saturating_sub(low) < want.bytes {
        return None;
    }
    let Some(x) = node else {
        return Some(match want.fit {
            Fit::Lowest => low,
            Fit::Highest => high - want.bytes,
        });
    };
    // SAFETY: the caller's promise.
    if Region::at_most(unsafe { known(node, between) }) < want.bytes {
        return None;
    }
    let first = want.fit == Fit::Highest;
    [first, !first].into_iter().find_map(|right| {
        // SAFETY: the caller's promise.
        unsafe { find(child(x, right), x.span.split(between, right), want) }
    })
}

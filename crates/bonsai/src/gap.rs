//! The largest gap below each node, so that room for a region is found in one descent.
//!
//! Each missing child stands for one gap, from the end of the last region on its left to the start of the first on its right:
//! n nodes, n + 1 gaps. A node's gap is the largest of those below it. Turns leave the gaps as they are. An insert divides one,
//! a removal joins two: those that the search for the region's start ends in. So what is to be computed anew after an
//! update is on that path, or new itself.

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

/// Compute anew the gaps of the nodes on the path to `key`, and of those whose gap is not known; the largest below `node`.
///
/// # Safety
/// As [`child`].
pub(crate) unsafe fn refresh<S: Span, V>(
    node: Link<'_, S, V>,
    between: S::Between,
    path: Option<S::Key>,
) -> u32 {
    let Some(x) = node else { return S::gap(between) };
    if path.is_none() && x.side().gap.get() != UNKNOWN {
        return x.side().gap.get();
    }
    let (mut left, mut right) = (None, None);
    if let Some(key) = path {
        *(if x.span.key() <= key { &mut right } else { &mut left }) = path;
    }
    // SAFETY: the caller's promise.
    let gap = unsafe {
        let left = refresh(child(x, false), x.span.split(between, false), left);
        left.max(refresh(child(x, true), x.span.split(between, true), right))
    };
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
    if Region::at_most(x.side().gap.get()) < want.bytes {
        return None;
    }
    let first = want.fit == Fit::Highest;
    [first, !first].into_iter().find_map(|right| {
        // SAFETY: the caller's promise.
        unsafe { find(child(x, right), x.span.split(between, right), want) }
    })
}

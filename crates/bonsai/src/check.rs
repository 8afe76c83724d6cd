//! Whether a tree is what it should be: for tests.

use crate::{
    domain::Rcu,
    gap,
    node::{LEAF, Leaf, Link, Slot, UNKNOWN},
    plan::{is_balanced, most_height},
    pool::Memory,
    span::Span,
    writer::Writer,
};

fn known(slot: &impl Slot) -> Option<u32> {
    Some(slot.side().gap.get()).filter(|&gap| gap != UNKNOWN)
}
fn unknown<S: Span, V>(link: Link<'_, S, V>) -> bool {
    match link {
        Link::Empty => false,
        Link::Node(node) => known(node).is_none(),
        Link::Leaf(leaf) => known(leaf).is_none(),
    }
}

/// What a tree looks like.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Shape {
    /// Nodes, without leaves.
    pub nodes: u32,
    /// Leaves.
    pub leaves: u32,
    /// Spans, of nodes and in leaves.
    pub spans: u32,
    /// Nodes on the longest path.
    pub height: usize,
    /// The largest gap, in pages, of a tree that keeps gaps.
    pub gap: u32,
}

impl<S: Span, V: Send + Sync + 'static, D: Rcu, M: Memory> Writer<'_, '_, S, V, D, M> {
    /// Check order, balance, height, sizes and gaps of all nodes. What is wrong, or what the tree looks like.
    pub fn check(&self) -> Result<Shape, &'static str> {
        let mut last = None;
        let shape = self.check_below(self.root(), S::EVERYTHING, &mut last)?;
        match shape.height > most_height(shape.nodes as usize) {
            true => Err("the tree is too high"),
            false => Ok(shape),
        }
    }
    fn check_below(
        &self,
        link: Link<'_, S, V>,
        between: S::Between,
        last: &mut Option<S::Key>,
    ) -> Result<Shape, &'static str> {
        let x = match link {
            Link::Empty => return Ok(Shape { gap: S::gap(between), ..Shape::default() }),
            Link::Leaf(leaf) => return check_leaf(leaf, between, last),
            Link::Node(x) => x,
        };
        let left = self.check_below(self.child(x, false), x.span.split(between, false), last)?;
        if last.is_some_and(|last| last >= x.span.key()) {
            return Err("keys are out of order");
        }
        *last = Some(x.span.key());
        let right = self.check_below(self.child(x, true), x.span.split(between, true), last)?;
        let shape = Shape {
            nodes: 1 + left.nodes + right.nodes,
            leaves: left.leaves + right.leaves,
            spans: 1 + left.spans + right.spans,
            height: 1 + left.height.max(right.height),
            gap: left.gap.max(right.gap),
        };
        match () {
            () if x.is_private() => Err("a node in the tree is private"),
            () if x.side().size.get() != shape.nodes => Err("a size is wrong"),
            () if S::GAPS && known(x).is_some_and(|gap| gap != shape.gap) => Err("a gap is wrong"),
            () if S::GAPS
                && known(x).is_some()
                && [false, true].into_iter().any(|right| unknown(self.child(x, right))) =>
            {
                Err("a gap is known below which one is not")
            }
            () if !is_balanced(left.nodes, right.nodes) => Err("a node is out of balance"),
            () => Ok(shape),
        }
    }
}

fn check_leaf<S: Span, V>(
    leaf: &Leaf<S, V>,
    between: S::Between,
    last: &mut Option<S::Key>,
) -> Result<Shape, &'static str> {
    for (span, _) in leaf.items() {
        if last.is_some_and(|last| last >= span.key()) {
            return Err("keys are out of order");
        }
        *last = Some(span.key());
    }
    let gap = gap::largest(leaf, between);
    match leaf.len() {
        0 => Err("a leaf is empty"),
        spans if spans > LEAF => Err("a leaf is too full"),
        _ if !leaf.link().get().is_null() => Err("a leaf in the tree is private"),
        _ if S::GAPS && known(leaf).is_some_and(|known| known != gap) => Err("a gap is wrong"),
        spans => Ok(Shape { nodes: 0, leaves: 1, spans: spans as u32, height: 0, gap }),
    }
}

//! A look into a tree that nobody changes: for the writer, and for whoever has other reasons to know.

use core::{fmt, ops::Deref};

use crate::{
    Entry, Region,
    entry::State,
    node::{Link, Node},
    span::Span,
    tree::{End, Reader},
};

/// What a [`Reader`] sees, and what only the writer may look at. As the tree stays as it is, nothing is looked for twice.
pub struct Still<'t, S, V> {
    reader: Reader<'t, S, V>,
}

impl<S, V> Clone for Still<'_, S, V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S, V> Copy for Still<'_, S, V> {}

impl<'t, S, V> Deref for Still<'t, S, V> {
    type Target = Reader<'t, S, V>;
    fn deref(&self) -> &Reader<'t, S, V> {
        &self.reader
    }
}

impl<S, V> fmt::Debug for Still<'_, S, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Still")
    }
}

impl<'t, S: Span, V> Still<'t, S, V> {
    /// # Safety
    /// Nobody changes the tree, nor frees a node or an entry of it, before 't ends.
    pub(crate) unsafe fn of(reader: Reader<'t, S, V>) -> Self {
        Self { reader }
    }
    pub(crate) fn root(&self) -> Link<'t, S, V> {
        // SAFETY: nobody stores, and nothing is freed, by the promise of `of`.
        unsafe { Node::stored(self.reader.root()) }
    }
    pub(crate) fn child(&self, node: &Node<S, V>, right: bool) -> Link<'t, S, V> {
        // SAFETY: as above.
        unsafe { Node::stored(node.place(right)) }
    }
    /// The last entry with a key at or below `at`, and the first above: by one descent, unless entries were given up that are
    /// found still.
    #[inline]
    pub fn around(&self, at: S::Key) -> [Option<(S, &'t Entry<V>)>; 2] {
        let End { at: end, below, above } = self.end(|key| key <= at);
        let mut found = [below, above].map(|x| x.map(|x| (x.span, x.entry())));
        if let Link::Leaf(leaf) = end {
            let behind = leaf.count(|key| key <= at);
            let [low, high] = found;
            found = [behind.checked_sub(1).and_then(|i| leaf.get(i)).or(low), leaf.get(behind).or(high)];
        }
        if found.iter().flatten().any(|(_, entry)| entry.state() == State::Tombstone) {
            return [self.floor(at), self.higher(at)];
        }
        found
    }
    /// The largest of all.
    pub fn last(&self) -> Option<(S, &'t Entry<V>)> {
        let (mut next, mut found) = (self.root(), None);
        loop {
            match next {
                Link::Node(x) => {
                    found = Some((x.span, x.entry()));
                    next = self.child(x, true);
                }
                Link::Leaf(leaf) => {
                    found = leaf.get(leaf.len() - 1);
                    break;
                }
                Link::Empty => break,
            }
        }
        let (span, entry) = found?;
        match entry.state() {
            State::Live => Some((span, entry)),
            _ => self.lower(span.key()),
        }
    }
}

impl<'t, V> Still<'t, Region, V> {
    /// The first region that has an address in common with `region`.
    #[inline]
    pub fn first_in(&self, region: Region) -> Option<(Region, &'t Entry<V>)> {
        let [before, behind] = self.around(region.start());
        let overlaps = |(found, _): &(Region, _)| region.overlaps(found);
        before.filter(overlaps).or_else(|| behind.filter(overlaps))
    }
}

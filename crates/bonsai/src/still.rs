//! A look into a tree that nobody changes: for the writer, and for whoever has other reasons to know.

use core::{fmt, ops::Deref, sync::atomic::Ordering};

use crate::{
    Entry, Region,
    entry::State,
    node::{Link, Node},
    span::Span,
    tree::Reader,
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
        // Relaxed [O3]: nobody stores.
        // SAFETY: no node is freed, by the promise of `of`.
        unsafe { self.reader.root().load(Ordering::Relaxed).as_ref() }
    }
    pub(crate) fn child(&self, node: &Node<S, V>, right: bool) -> Link<'t, S, V> {
        // Relaxed [O3] and SAFETY: as above.
        unsafe { node.place(right).load(Ordering::Relaxed).as_ref() }
    }
    /// The last entry with a key at or below `at`, and the first above: by one descent, unless entries were given up that are
    /// found still.
    #[inline]
    pub fn around(&self, at: S::Key) -> [Option<(S, &'t Entry<V>)>; 2] {
        let (mut next, mut found) = (self.root(), [None; 2]);
        while let Some(x) = next {
            let right = x.span.key() <= at;
            found[usize::from(!right)] = next;
            next = self.child(x, right);
        }
        let buried = |x: &Link<'t, S, V>| x.is_some_and(|x| x.entry().state() == State::Tombstone);
        if found.iter().any(buried) {
            return [self.floor(at), self.higher(at)];
        }
        found.map(|x| x.map(|x| (x.span, x.entry())))
    }
    /// The largest of all.
    pub fn last(&self) -> Option<(S, &'t Entry<V>)> {
        let mut x = self.root()?;
        while let Some(next) = self.child(x, true) {
            x = next;
        }
        match x.entry().state() {
            State::Live => Some((x.span, x.entry())),
            _ => self.lower(x.span.key()),
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

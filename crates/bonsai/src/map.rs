//! A map from keys to entries.

use alloc::boxed::Box;

use crate::{
    Entry, Error, Point, Rcu, Reader, Refused, Removed, Tree, Writer, pool::Heap, pool::Memory, span::Span,
};

/// A tree of keys. Readers look up with [`Reader::get`] and the neighbours of a key, all without a lock.
pub type BonsaiMap<K, V, D, M = Heap> = Tree<Point<K>, V, D, M>;

impl<'g, K, V> Reader<'g, Point<K>, V>
where
    Point<K>: Span<Key = K>,
{
    /// The entry of `key`, as it was at some time during the call.
    #[inline]
    pub fn get(&self, key: K) -> Option<&'g Entry<V>> {
        self.get_span(key).map(|(_, entry)| entry)
    }
}

impl<'c, K, V: Send + Sync + 'static, D: Rcu, M: Memory> Writer<'_, 'c, Point<K>, V, D, M>
where
    Point<K>: Span<Key = K>,
{
    /// Put an entry in. Refused if the key has one.
    pub fn insert(&mut self, key: K, entry: Box<Entry<V>>) -> Result<(), Refused<V>> {
        self.insert_span(Point(key), entry, |_| true)
    }
    /// Put an entry in the place of the one that the key has: readers find the old one or the new one.
    pub fn replace(&mut self, key: K, entry: Box<Entry<V>>) -> Result<Removed<'_, 'c, V, D>, Refused<V>> {
        self.replace_span(Point(key), entry)
    }
    /// Fill an empty map with entries in ascending order of their keys, by one store. Panics if they are not in order.
    pub fn build<I>(&mut self, entries: I) -> Result<(), Error>
    where
        I: IntoIterator<Item = (K, Box<Entry<V>>)>,
        I::IntoIter: ExactSizeIterator,
    {
        self.build_spans(&mut entries.into_iter().map(|(key, entry)| (Point(key), entry)))
    }
}

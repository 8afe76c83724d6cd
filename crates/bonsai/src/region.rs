//! Regions of addresses: what an address space looks its mappings up in.

use alloc::boxed::Box;

use crate::{
    Entry, Error, Rcu, Refused, Region, Removed, Tree, Writer,
    gap::{self, Fit, Want},
    pool::{Heap, Memory},
    span::Span,
};

/// A tree of regions. Readers look up with [`Reader::covering`](crate::Reader::covering).
pub type RegionTree<V, D, M = Heap> = Tree<Region, V, D, M>;

impl<'c, V: Send + Sync + 'static, D: Rcu, M: Memory> Writer<'_, 'c, Region, V, D, M> {
    /// As [`Still::first_in`](crate::Still::first_in).
    pub fn first_in(&self, region: Region) -> Option<(Region, &Entry<V>)> {
        self.still().first_in(region)
    }
    /// Put a region in. Refused if some of it is taken.
    pub fn insert(&mut self, region: Region, entry: Box<Entry<V>>) -> Result<(), Refused<V>> {
        if self.tombstones() > 0 && self.first_in(region).is_some() {
            return Err(Refused { error: Error::Occupied, entry });
        }
        self.insert_span(region, entry, |neighbours| {
            neighbours.into_iter().flatten().all(|other| !other.overlaps(&region))
        })
    }
    /// Put a piece of a region in, before the region makes room for it: it lies within the region, starts later, and ends where that
    /// does, or where the piece starts that was put in before. The caller goes on to [`replace`](Self::replace) the region by one that ends where the
    /// first piece starts, or earlier. So no reader ever finds a piece's addresses uncovered. Refused if there is no such region.
    pub fn insert_piece(&mut self, piece: Region, entry: Box<Entry<V>>) -> Result<(), Refused<V>> {
        let next = self.read().higher(piece.start()).map_or(u64::MAX, |(next, _)| next.start());
        let fits = |whole: Region| whole.contains(&piece) && piece.end() == whole.end().min(next);
        match self.read().lower(piece.start()) {
            Some((whole, _)) if fits(whole) => self.insert_span(piece, entry, |_| true),
            _ => Err(Refused { error: Error::Absent, entry }),
        }
    }
    /// Put another region and entry in the place of the region that has the same start, with one store. Refused if there is
    /// none, or if some of the new one is taken by others.
    pub fn replace(
        &mut self,
        region: Region,
        entry: Box<Entry<V>>,
    ) -> Result<Removed<'_, 'c, V, D>, Refused<V>> {
        let reader = self.read();
        match reader.higher(region.start()) {
            Some((next, _)) if next.start() < region.end() => Err(Refused { error: Error::Occupied, entry }),
            _ => self.replace_span(region, entry),
        }
    }
    /// Where in `within` a region of so many bytes has room. The answer takes as many steps as the tree is high, for regions of
    /// whole pages, and those that updates have left to it. What was given up and is still in the tree counts as taken, but for what lies
    /// behind a region that was put in within it.
    pub fn gap(&mut self, bytes: u64, within: Region, fit: Fit) -> Option<u64> {
        // SAFETY: the lock is held, and the writer is borrowed.
        unsafe { gap::find(self.root(), Region::EVERYTHING, &Want { bytes, within, fit }) }
    }
    /// Fill an empty tree with regions in ascending order, by one store. Panics if they are not in order.
    pub fn build<I>(&mut self, regions: I) -> Result<(), Error>
    where
        I: IntoIterator<Item = (Region, Box<Entry<V>>)>,
        I::IntoIter: ExactSizeIterator,
    {
        self.build_spans(&mut regions.into_iter())
    }
}

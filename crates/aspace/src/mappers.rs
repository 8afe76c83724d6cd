//! Who maps an object: the way back from an object to the address spaces that show its pages, so that pages which are
//! cut off a file, or punched out of it, go from every mapping too.
//!
//! **Claim.** When [`Mappers::cut`] returns, no CPU translates to a page of the object that was cut off before the call.
//!
//! **Idea.** An object keeps, for each address space, how many of its pages that space maps; a number that splits and
//! joins of mappings do not change. A space is entered before its mapping can be used and removed when the last page
//! is unmapped, both while it is locked exclusively. Cutting is: *publish the new size, so that the object gives out
//! no such page any more; take the list; visit every space on it, locked exclusively; look for spaces that have come
//! since, until there are none.* A space that is on the list has either finished the fault that asked before, so that
//! the visit finds the entry, or begins its fault after the visit (a fault holds the space's lock from asking to
//! inserting). A space that comes later and maps the object itself asks for pages later, and gets none. But one that
//! comes by fork has its parent's entries: if those were copied before the parent was visited, then the child was
//! entered before that too (fork holds the parent's lock throughout), so it is found when the list is taken again; a
//! child of a space that was visited has nothing to forget. The spaces are visited one by one, each with a flush of
//! its own; frames are dropped after it, as always.
//!
//! **Lock order**: an object's lock for writers > an address space's > this list's (spins, for a look-up at a time) >
//! the object's pages. Whoever calls `cut` holds no address space's lock, and not the object's lock for pages.
//!
//! The list also counts the pages that could be written through shared mappings, and can forbid that there are any: what
//! a seal against writing needs (`F_SEAL_WRITE`), decided under one lock.

use alloc::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::{fmt, ops::Range};

use percpu::Unpinned;
use sync::{SpinLock, mutant};

/// An address space as objects see it.
pub trait Mapper: Send + Sync {
    /// Remove the translations of the pages `pages` of the object whose mappers are `of`; with `copies` also the private
    /// copies that were made of them, as Linux does for truncation but not for holes. The mappings stay.
    fn cut(&self, of: &Mappers, pages: Range<u64>, copies: bool, ctx: &Unpinned<'_>);
    /// How many mappings show the object whose mappers are `of`.
    fn count(&self, of: &Mappers, ctx: &Unpinned<'_>) -> u64;
}

struct Entry {
    mapper: Weak<dyn Mapper>,
    pages: u64,
    writable: u64,
}

#[derive(Default)]
struct List {
    /// One of the mappers, with its address, which is nobody else's while there is a weak reference to it. Most objects have one
    /// at most: that needs no memory.
    one: Option<(usize, Entry)>,
    /// The others, by their addresses.
    others: BTreeMap<usize, Entry>,
    /// Pages that shared mappings may write, or could be changed to.
    writable: u64,
    /// There must be none.
    sealed: bool,
}

impl List {
    fn get(&mut self, key: usize) -> Option<&mut Entry> {
        match &mut self.one {
            Some((is, entry)) if *is == key => Some(entry),
            _ => self.others.get_mut(&key),
        }
    }
    /// The entry of `key`, made if it isn't there.
    fn get_or_make(&mut self, key: usize, fresh: impl FnOnce() -> Entry) -> &mut Entry {
        let elsewhere = self.one.as_ref().is_some_and(|(is, _)| *is != key) || self.others.contains_key(&key);
        if elsewhere {
            return self.others.entry(key).or_insert_with(fresh);
        }
        &mut self.one.get_or_insert_with(|| (key, fresh())).1
    }
    fn remove(&mut self, key: usize) -> Option<Entry> {
        match self.one.take_if(|(is, _)| *is == key) {
            Some((_, entry)) => Some(entry),
            None => self.others.remove(&key),
        }
    }
    fn all(&self) -> impl Iterator<Item = &Entry> {
        self.one.iter().map(|(_, entry)| entry).chain(self.others.values())
    }
}

/// The address spaces that map an object.
pub struct Mappers(SpinLock<List>);

impl Default for Mappers {
    fn default() -> Self {
        Self::new()
    }
}

fn key(mapper: &Weak<dyn Mapper>) -> usize {
    mapper.as_ptr().cast::<()>().addr()
}

impl Mappers {
    /// Nobody.
    pub fn new() -> Self {
        let list = List { one: None, others: BTreeMap::new(), writable: 0, sealed: false };
        Self(SpinLock::new(list))
    }
    /// `mapper` maps `pages` pages more. False, and nothing done, if they may be written and must not be.
    pub fn add(&self, mapper: &Weak<dyn Mapper>, pages: u64, writable: bool) -> bool {
        let mut list = self.0.lock();
        if writable && list.sealed {
            return false;
        }
        let written = if writable { pages } else { 0 };
        list.writable += written;
        let fresh = || Entry { mapper: mapper.clone(), pages: 0, writable: 0 };
        let entry = list.get_or_make(key(mapper), fresh);
        entry.pages += pages;
        entry.writable += written;
        true
    }
    /// `mapper` maps `pages` pages fewer.
    pub fn sub(&self, mapper: &Weak<dyn Mapper>, pages: u64, writable: bool) {
        let mut list = self.0.lock();
        let written = if writable { pages } else { 0 };
        list.writable -= written;
        let mut gone = None;
        if let Some(entry) = list.get(key(mapper)) {
            entry.pages -= pages;
            entry.writable -= written;
            if entry.pages == 0 {
                gone = list.remove(key(mapper));
            }
        }
        drop(list);
        drop(gone);
    }
    /// From now on no shared mapping may write. False, and nothing done, if one can.
    pub fn seal(&self) -> bool {
        let mut list = self.0.lock();
        list.sealed |= list.writable == 0;
        list.sealed
    }
    /// Make everybody forget `pages` of the object whose mappers these are; see the module.
    pub fn cut(&self, pages: Range<u64>, copies: bool, ctx: &Unpinned<'_>) {
        // Kept until the end, so that no other space gets an address that stands for one that was visited.
        let mut visited: BTreeMap<usize, Arc<dyn Mapper>> = BTreeMap::new();
        loop {
            let mut fresh = self.all();
            fresh.retain(|mapper| !visited.contains_key(&key(&Arc::downgrade(mapper))));
            for mapper in &fresh {
                mapper.cut(self, pages.clone(), copies, ctx);
            }
            if fresh.is_empty() || mutant!("cut-forked-missed") {
                return;
            }
            visited.extend(fresh.into_iter().map(|mapper| (key(&Arc::downgrade(&mapper)), mapper)));
        }
    }
    /// Whether somebody maps pages of it.
    pub fn is_mapped(&self) -> bool {
        self.0.lock().all().next().is_some()
    }
    /// How many mappings there are.
    pub fn count(&self, ctx: &Unpinned<'_>) -> u64 {
        self.all().iter().map(|mapper| mapper.count(self, ctx)).sum()
    }
    /// Those that are on the list. One that has ended meanwhile has nothing to forget.
    fn all(&self) -> Vec<Arc<dyn Mapper>> {
        self.0.lock().all().filter_map(|entry| entry.mapper.upgrade()).collect()
    }
}

impl fmt::Debug for Mappers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = self.0.lock();
        f.debug_struct("Mappers")
            .field("spaces", &list.all().count())
            .field("writable", &list.writable)
            .finish()
    }
}

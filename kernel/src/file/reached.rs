//! Entries that a walk has come to, without counting them.
//!
//! **The rule.** No entry is freed while a walk could still use it.
//!
//! A walk is in a section ([`grace`]) and comes from entry to entry by *ways*: from its start (a counted reference of the caller's,
//! or a working directory), from a directory to a child, from a directory up to its parent. A way holds a counted reference to
//! where it leads. Where a walk may go on from there, so where that is a directory, the reference is given up a grace period
//! after the way was closed, and not before: [`let_go`] does so for a child that was removed, [`Published`](super::published)
//! for the parent of a directory that was moved, and for a working directory.
//!
//! So an entry that a walk came to by a way is counted by that way until the section ends. It follows, from the first step
//! on, that the walk finds what it uses: an entry is dropped when it isn't counted, and its own ways, which are dropped with it
//! at once, are used by no walk then, as a walk that had come to it would count it by the way by which it came. A child that is
//! moved from directory to directory is counted by one of them at any time, as its reference goes with it.
//!
//! Files, and symbolic links, no walk goes on from. Their directory gives them up at once when it no longer has them, so that their
//! pages are free when the call returns that removes them; and a walk looks at one in the directory's lock only, or counts it
//! there. Targets of links are copied.
//!
//! Entries of /proc and /sys are made for who looks them up, and counted by nobody else; a walk counts those.
#![allow(unsafe_code)] // counts what sections keep; each block says why it is sound

use alloc::sync::Arc;
use core::{
    marker::PhantomData,
    mem::offset_of,
    ops::Deref,
    ptr::{self, NonNull},
};

use percpu::Pinned;
use rcu::{Head, Retired, kernel::Guard};

use super::{
    entry::Entry,
    inode::Inode,
    published::{Published, Sight},
};
use crate::{
    grace,
    planted::{self, Planted},
    task,
};

/// An entry that stays for `'a`: a reference to it is counted, by whomever.
#[derive(Clone, Copy)]
pub struct Reached<'a> {
    /// Of an `Arc`.
    entry: *const Entry,
    _counted: PhantomData<&'a Entry>,
}

impl<'a> Reached<'a> {
    /// One that is counted where the reference is.
    pub fn held(entry: &'a Arc<Entry>) -> Self {
        Self { entry: Arc::as_ptr(entry), _counted: PhantomData }
    }

    /// A child that is a directory, which may be removed meanwhile.
    ///
    /// # Safety
    /// Its own directory had it in the section, as was seen in that one's lock.
    pub unsafe fn child(entry: &Arc<Entry>, _section: &'a Guard<'_>) -> Self {
        debug_assert!(entry.inode.kind.is_directory(), "a walk goes on from what is freed at once");
        Self { entry: Arc::as_ptr(entry), _counted: PhantomData }
    }

    /// The working directory.
    pub fn working(directory: &'a Published<Arc<Entry>>, sight: &'a Sight<'_>) -> Self {
        Self::held(directory.load(sight))
    }

    /// The directory that it is in; itself for the root and for what has no place.
    pub fn parent(self, sight: &'a Sight<'_>) -> Self {
        // SAFETY: it is counted for as long.
        let entry: &'a Entry = unsafe { &*self.entry };
        entry.parent_in(sight).map_or(self, Self::held)
    }

    /// A counted reference.
    pub fn counted(self) -> Arc<Entry> {
        // SAFETY: of an `Arc`, which is counted, as this is there.
        unsafe {
            Arc::increment_strong_count(self.entry);
            Arc::from_raw(self.entry)
        }
    }

    /// Whether it is `other`.
    pub fn is(self, other: &Arc<Entry>) -> bool {
        ptr::eq(self.entry, Arc::as_ptr(other))
    }
}

impl Deref for Reached<'_> {
    type Target = Entry;
    fn deref(&self) -> &Entry {
        // SAFETY: it is counted, as this is there.
        unsafe { &*self.entry }
    }
}

/// Give up the reference that a directory had to a child that it no longer has, for good.
pub fn let_go(entry: Arc<Entry>) {
    let walked = entry.inode.kind.is_directory() && !planted::is(Planted::EntryFreedEarly);
    match grace::domain().filter(|_| walked) {
        Some(domain) => {
            let bytes = size_of::<Entry>() + size_of::<Inode>();
            let entry = Arc::into_raw(entry);
            // SAFETY: the reference, which is this function's, is what is retired. A directory gives a child up once, as what was
            // removed isn't put into a directory again; nobody finds it there any more; the link is derived from the whole.
            let retired = unsafe {
                let head = NonNull::new_unchecked((&raw const (*entry).retired).cast_mut());
                Retired::new(head, free)
            };
            domain.call(&task::pinned(), retired.of_bytes(bytes));
        }
        None => drop(entry),
    }
}

/// # Safety
/// The link is that of an entry of which the caller owns a counted reference.
unsafe fn free(head: NonNull<Head>, _: &Pinned<'_>) {
    // SAFETY: the caller's: the link lies in an entry of an `Arc`'s, and was derived from a pointer to that.
    drop(unsafe { Arc::from_raw(head.as_ptr().byte_sub(offset_of!(Entry, retired)).cast::<Entry>()) });
}

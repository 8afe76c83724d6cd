//! Entries: places in the tree of names, and how they hang together.
//!
//! An [`Entry`] is a name in a directory together with the inode that it stands for. It holds its parent, and a
//! directory's inode holds the entries of its children; removing a name breaks that circle, and what is left lives
//! while someone has it open. So an open file knows what it is called even after a rename, as /proc shows it.
//!
//! Where an entry is, its parent and its name, is published as one: who looks takes no lock ([`published`](super::published)).
//!
//! Entries of /proc and /sys are made for each look-up and held by nobody but those who looked.

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicBool, Ordering};

use addr::{PAGE_BYTES, PAGE_SIZE};
use aspace::{Mappers, Object, ObjectError, Policy};
use linux_raw_sys::general as c;
use owned::{Memory, OwnedFrame};
use percpu::{Pinned, Unpinned};
use rcu::Head;

use super::{
    Result,
    inode::{Inode, Kind, Volume},
    io::KernelBuffer,
    page::PageShare,
    published::{Change, Published, Sight, see_at_once},
    store::{MAX_SIZE, Store},
};
use crate::{
    errno::Errno,
    heap,
    planted::{self, Planted},
};

/// A name in a directory, and what it stands for. Its line is read by all that have it, and so isn't that of its count.
#[repr(align(64))]
pub struct Entry {
    /// What the name stands for.
    pub inode: Arc<Inode>,
    place: Published<Place>,
    /// No directory holds it any more.
    removed: AtomicBool,
    /// For the reference that its directory has given up ([`reached`](super::reached)).
    pub(super) retired: Head,
}

struct Place {
    /// None: the root, or something without a name.
    parent: Option<Arc<Entry>>,
    name: Box<[u8]>,
}

impl Entry {
    /// The name `name` for `inode` in `parent`. The caller puts it into the directory.
    pub fn new(parent: Option<Arc<Entry>>, name: &[u8], inode: Arc<Inode>) -> Arc<Self> {
        let place = Published::new(Place { parent, name: name.into() });
        Arc::new(Self { inode, place, removed: AtomicBool::new(false), retired: Head::new() })
    }

    /// A file outside the tree, shown as `name`.
    pub fn anonymous(name: &[u8], inode: Arc<Inode>) -> Arc<Self> {
        Self::new(None, name, inode)
    }

    /// The directory that it is in; itself for the root and for what has no place.
    pub fn parent(self: &Arc<Self>) -> Arc<Entry> {
        self.place.read(|place| place.parent.clone()).unwrap_or_else(|| self.clone())
    }

    /// The directory that it is in; none for the root and for what has no place.
    pub fn parent_in<'s>(&'s self, sight: &'s Sight<'_>) -> Option<&'s Arc<Entry>> {
        self.place.load(sight).parent.as_ref()
    }

    /// The last part of its path.
    pub fn name(&self) -> Box<[u8]> {
        self.place.read(|place| place.name.clone())
    }

    /// Whether a volume begins here.
    pub fn is_volume_root(self: &Arc<Self>) -> bool {
        let parent = self.parent();
        Arc::ptr_eq(self, &parent) && !self.is_removed() || parent.inode.volume != self.inode.volume
    }

    /// Whether its name has been removed.
    pub fn is_removed(&self) -> bool {
        // Acquire: whatever its remover did before; partner: the store in `set_removed`.
        self.removed.load(Ordering::Acquire)
    }

    /// Note that the directory no longer holds it.
    pub fn set_removed(&self) {
        // Release: see `is_removed`.
        self.removed.store(true, Ordering::Release);
    }

    /// Note that it is now `name` in `parent`.
    pub fn set_place(&self, parent: &Arc<Entry>, name: &[u8], moving: &Change) -> impl Sized + use<> {
        self.place.replace(Place { parent: Some(parent.clone()), name: name.into() }, moving)
    }

    /// The path from the root, with " (deleted)" for a removed name, as /proc shows it. ENAMETOOLONG beyond PATH_MAX:
    /// directories can be deeper than any path, and than memory is large.
    pub fn path(&self) -> Result<Vec<u8>> {
        see_at_once(|sight| self.path_in(sight))
    }

    /// The same, as far as it is of one moment.
    pub fn path_in(&self, sight: &Sight<'_>) -> Result<Vec<u8>> {
        let mut length = 0;
        let mut parts: Vec<&[u8]> = Vec::new();
        let place = self.place.load(sight);
        let in_tree = place.parent.is_some() || place.name.is_empty();
        parts.push(&place.name);
        let mut above = place.parent.as_ref();
        while let Some(entry) = above {
            planted::hesitate(Planted::PathUnchecked);
            let place = entry.place.load(sight);
            if place.parent.is_some() {
                length += place.name.len() + 1;
                if length > c::PATH_MAX as usize {
                    return Err(Errno::ENAMETOOLONG);
                }
                parts.push(&place.name);
            }
            above = place.parent.as_ref();
        }
        let mut path = Vec::new();
        for part in parts.iter().rev() {
            if in_tree {
                path.push(b'/');
            }
            path.extend_from_slice(part);
        }
        if self.is_removed() {
            path.extend_from_slice(b" (deleted)");
        }
        Ok(path)
    }

    /// Whether `self` is `other` or a directory above it.
    pub fn holds(self: &Arc<Self>, other: &Arc<Entry>) -> bool {
        let mut at = other.clone();
        loop {
            if Arc::ptr_eq(self, &at) {
                return true;
            }
            let parent = at.parent();
            if Arc::ptr_eq(&parent, &at) {
                return false;
            }
            at = parent;
        }
    }

    /// The child `name`. ENOTDIR, ENAMETOOLONG, ENOENT, ENOMEM.
    pub fn lookup(self: &Arc<Self>, name: &[u8]) -> Result<Arc<Entry>> {
        if !self.inode.kind.is_directory() {
            return Err(Errno::ENOTDIR);
        }
        if name.len() > c::NAME_MAX as usize {
            return Err(Errno::ENAMETOOLONG);
        }
        match &self.inode.kind {
            Kind::Directory(directory) => directory.get(name).ok_or(Errno::ENOENT),
            Kind::Listing(listing) => {
                // What is made here goes with the call; so it may have of the last memory, if there is any.
                if !heap::gives::<(Inode, Entry, Place)>() {
                    return Err(Errno::ENOMEM);
                }
                let node = listing.lookup(name).ok_or(Errno::ENOENT)?;
                let number = made_up_number(self.inode.number, name);
                let inode = Inode::numbered(number, node.kind, node.mode, self.inode.volume);
                Ok(Entry::new(Some(self.clone()), name, inode))
            }
            _ => Err(Errno::ENOTDIR),
        }
    }

    /// Copy the regular file's bytes from `offset` on; says how many. EINVAL if it is something else.
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize> {
        let store = self.inode.store().ok_or(Errno::EINVAL)?;
        store.read(offset, &mut KernelBuffer { free: into })
    }

    /// Size of the file in bytes.
    pub fn size(&self) -> u64 {
        self.inode.size()
    }

    /// The file as something to map.
    pub fn object(self: &Arc<Self>) -> Arc<dyn Object> {
        self.clone()
    }
}

/// A number for the child `name` of the made-up directory `parent`: the same at every look-up (FNV-1a).
pub fn made_up_number(parent: u64, name: &[u8]) -> u64 {
    let start = parent ^ 0xcbf2_9ce4_8422_2325;
    name.iter().fold(start, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)) & (u64::MAX >> 16)
        | 1 << 40
}

impl Drop for Entry {
    /// Let go of the chain of parents one by one: a removed tree may be deeper than the stack.
    fn drop(&mut self) {
        let mut next = self.place.get_mut().parent.take();
        while let Some(entry) = next {
            next = Arc::into_inner(entry).and_then(|mut e| e.place.get_mut().parent.take());
        }
    }
}

/// A regular file as the address space sees it. Mappings of one entry are mappings of one object.
impl Object for Entry {
    fn page(
        &self,
        index: u64,
        policy: &Policy,
        _: &Memory,
        _: &Unpinned<'_>,
    ) -> core::result::Result<OwnedFrame, ObjectError> {
        self.inode.store().ok_or(ObjectError::Io)?.frame(index, policy, |page| page.share().into_owned())
    }
    fn lend(
        &self,
        index: u64,
        policy: &Policy,
        _: &Memory,
        _: &Unpinned<'_>,
    ) -> core::result::Result<OwnedFrame, ObjectError> {
        self.inode.store().ok_or(ObjectError::Io)?.frame(index, policy, PageShare::lend)
    }
    fn at_hand(&self, index: u64, lent: bool, _: &Memory, pin: &Pinned<'_>) -> Option<OwnedFrame> {
        let give = |page: &PageShare| if lent { page.lend() } else { page.share().into_owned() };
        self.inode.store()?.frame_at_hand(index, give, pin)
    }
    fn identity(&self) -> (u64, u64) {
        (self.inode.volume.device(), self.inode.number)
    }
    fn path(&self) -> Vec<u8> {
        // One that is too long is shown by its end.
        Entry::path(self).unwrap_or_else(|_| self.name().into())
    }
    fn mappers(&self) -> Option<&Mappers> {
        self.inode.store().map(Store::mappers)
    }
    fn is_writable(&self) -> bool {
        self.inode.store().is_none_or(|store| store.seals() & (c::F_SEAL_WRITE | c::F_SEAL_FUTURE_WRITE) == 0)
    }
    fn is_memory(&self) -> bool {
        self.inode.store().is_some_and(Store::is_memory)
    }
    fn is_resident(&self, index: u64, _: &Unpinned<'_>) -> bool {
        self.inode.store().is_some_and(|store| store.is_resident(index))
    }
    fn has(&self, index: u64, _: &Unpinned<'_>) -> core::result::Result<bool, ObjectError> {
        self.inode.store().ok_or(ObjectError::Io)?.has(index)
    }
    fn put(
        &self,
        index: u64,
        bytes: Option<&[u8; PAGE_BYTES]>,
        policy: &Policy,
        _: &Unpinned<'_>,
    ) -> core::result::Result<bool, ObjectError> {
        self.inode.store().ok_or(ObjectError::Io)?.put(index, bytes, policy)
    }
    fn punch(&self, index: u64, pages: u64, _: &Unpinned<'_>) -> core::result::Result<(), ObjectError> {
        let store = self.inode.store().ok_or(ObjectError::Io)?;
        let bytes = |pages: u64| pages.saturating_mul(PAGE_SIZE).min(MAX_SIZE);
        let (from, to) = (bytes(index), bytes(index.saturating_add(pages)));
        store.punch(from, to - from).map_err(|e| match e {
            Errno::EPERM => ObjectError::Sealed,
            _ => ObjectError::NoMemory,
        })?;
        self.inode.touch();
        Ok(())
    }
}

/// The root of a new tree.
pub fn new_root() -> Arc<Entry> {
    let kind = Kind::Directory(super::directory::Directory::new());
    Entry::new(None, b"", Inode::new(kind, 0o755, Volume::Root))
}

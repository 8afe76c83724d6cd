//! Directories in memory, and the calls that change them.
//!
//! A directory has a sleeping lock of its own; look-ups share it, and write nothing for it while it is biased. What they find they
//! may use in the lock; a child that is a directory also after that, in a section ([`reached`](super::reached)). A listing goes by *position*: each child gets the
//! next number when it enters and keeps it, so a listing that is continued after changes neither repeats nor skips
//! what stayed.
//!
//! # Locking
//! Directories are locked from the root downwards: a parent before its child. `rename`, which alone moves directories,
//! may lock two that are not above one another; it takes `RENAME` first, so that the shape of the tree stands still
//! and "above" is well defined, then the upper one first, and the lower number first if neither is above. The others
//! lock at most a parent and then its child, which agrees with that order. (The scheme of Linux,
//! Documentation/filesystems/directory-locking.)

use alloc::{boxed::Box, collections::BTreeMap, sync::Arc};
use core::{
    ops::{Deref, DerefMut},
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
};

use linux_raw_sys::general as c;
use percpu::{Pinned, Unpinned};
use sync::{Biased, Readers, RwLock, WriteGuard};

use super::{
    READERS, Result,
    entry::Entry,
    inode::{Inode, Kind},
    published,
    reached::let_go,
};
use crate::{errno::Errno, memory, task};

/// Serialises renames; see the module's text.
static RENAME: RwLock<()> = RwLock::new(());

/// How many names there are in all directories, and how many there may be: each costs memory of the kernel's own, which
/// must not run out. A quarter of the number of frames, where Linux's tmpfs allows a half.
static NAMES: AtomicU64 = AtomicU64::new(0);
static MOST_NAMES: AtomicU64 = AtomicU64::new(u64::MAX);

/// Set the limit on names, once the memory is known.
pub fn set_limit() {
    // Relaxed: at boot; and nothing else depends on the value.
    MOST_NAMES.store(memory::frames().stats().total / 4, Ordering::Relaxed);
}

/// How many names there may be, and how many more now.
pub fn capacity() -> (u64, u64) {
    // Relaxed: statistics.
    let (names, most) = (NAMES.load(Ordering::Relaxed), MOST_NAMES.load(Ordering::Relaxed));
    (most, most.saturating_sub(names))
}

/// The names in one directory.
pub struct Directory {
    children: Biased<Children, &'static Readers>,
    /// How many there are: for who has another directory's lock.
    len: AtomicUsize,
}

struct Children {
    by_name: BTreeMap<Box<[u8]>, u64>,
    by_position: BTreeMap<u64, Arc<Entry>>,
    next: u64,
    /// The directory itself was removed: nothing may be put into it.
    removed: bool,
}

impl Children {
    fn get(&self, name: &[u8]) -> Option<&Arc<Entry>> {
        self.by_position.get(self.by_name.get(name)?)
    }

    fn insert(&mut self, name: &[u8], entry: Arc<Entry>) {
        let position = self.next;
        self.next += 1;
        // Relaxed, here and below: a count that orders nothing.
        NAMES.fetch_add(1, Ordering::Relaxed);
        self.by_name.insert(name.into(), position);
        self.by_position.insert(position, entry);
    }

    fn remove(&mut self, name: &[u8]) -> Option<Arc<Entry>> {
        let position = self.by_name.remove(name)?;
        NAMES.fetch_sub(1, Ordering::Relaxed);
        self.by_position.remove(&position)
    }

    /// ENOENT if nothing may be put in here any more, EEXIST if `name` is there, ENOSPC without memory to spare.
    fn check_free(&self, name: &[u8]) -> Result<()> {
        if self.removed {
            return Err(Errno::ENOENT);
        }
        if self.by_name.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        check_room()
    }
}

/// ENOSPC without memory to spare for a new name. To be asked before an inode is made for it, too: or threads that are refused afterwards
/// have taken the last of the memory meanwhile.
pub fn check_room() -> Result<()> {
    if memory::frames().low() || capacity().1 == 0 { Err(Errno::ENOSPC) } else { Ok(()) }
}

impl Default for Directory {
    fn default() -> Self {
        Self::new()
    }
}

impl Directory {
    /// An empty directory.
    pub fn new() -> Self {
        let children =
            Children { by_name: BTreeMap::new(), by_position: BTreeMap::new(), next: 2, removed: false };
        Self { children: Biased::new(children, &READERS), len: AtomicUsize::new(0) }
    }

    /// The child `name`.
    pub fn get(&self, name: &[u8]) -> Option<Arc<Entry>> {
        self.children.read(&task::unpinned()).get(name).cloned()
    }

    /// What `f` makes of the child `name`; `None` if one would have to sleep first. It has the directory's lock: it must not sleep,
    /// nor look into another directory, or into a file.
    pub fn look<R>(
        &self,
        name: &[u8],
        pin: &Pinned<'_>,
        f: impl FnOnce(Option<&Arc<Entry>>) -> R,
    ) -> Option<R> {
        self.children.try_read(pin).map(|children| f(children.get(name)))
    }

    /// How many children there are. Never sleeps.
    pub fn len(&self) -> usize {
        // Relaxed: a count that orders nothing.
        self.len.load(Ordering::Relaxed)
    }

    /// The children, to be changed. Sleeps until nobody looks at them.
    fn change(&self, ctx: &Unpinned<'_>) -> Changing<'_> {
        Changing { children: self.children.write(ctx), len: &self.len }
    }

    /// Show the children at `from` and later positions to `each`, until it answers false.
    pub fn list(&self, from: u64, mut each: impl FnMut(u64, &Arc<Entry>) -> bool) {
        for (&position, entry) in self.children.read_long(&task::unpinned()).by_position.range(from..) {
            if !each(position, entry) {
                break;
            }
        }
    }

    /// Take out all children: the machine is ending.
    pub fn take_all(&self) -> BTreeMap<u64, Arc<Entry>> {
        let mut children = self.change(&task::unpinned());
        NAMES.fetch_sub(children.by_name.len() as u64, Ordering::Relaxed);
        children.by_name.clear();
        children.removed = true;
        core::mem::take(&mut children.by_position)
    }
}

/// Children that are being changed.
struct Changing<'a> {
    children: WriteGuard<'a, Children>,
    len: &'a AtomicUsize,
}

impl Deref for Changing<'_> {
    type Target = Children;
    fn deref(&self) -> &Children {
        &self.children
    }
}

impl DerefMut for Changing<'_> {
    fn deref_mut(&mut self) -> &mut Children {
        &mut self.children
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        // Relaxed: in the lock.
        self.len.store(self.children.by_name.len(), Ordering::Relaxed);
    }
}

/// The directory that `entry` is, if names can be put into it. ENOTDIR, EACCES (for /proc and /sys).
fn directory(entry: &Arc<Entry>) -> Result<&Directory> {
    match &entry.inode.kind {
        Kind::Directory(d) => Ok(d),
        Kind::Listing(_) => Err(Errno::EACCES),
        _ => Err(Errno::ENOTDIR),
    }
}

/// Put `inode` into `parent` as `name`. EEXIST, ENOENT (the parent was removed), ENAMETOOLONG, ENOSPC.
pub fn create(parent: &Arc<Entry>, name: &[u8], inode: Arc<Inode>) -> Result<Arc<Entry>> {
    if name.len() > c::NAME_MAX as usize {
        return Err(Errno::ENAMETOOLONG);
    }
    let mut children = directory(parent)?.change(&task::unpinned());
    children.check_free(name)?;
    let subdirectory = inode.kind.is_directory();
    let entry = Entry::new(Some(parent.clone()), name, inode);
    children.insert(name, entry.clone());
    drop(children);
    if subdirectory {
        parent.inode.relink(1);
    }
    parent.inode.touch();
    Ok(entry)
}

/// Give the file `old` the further name `name` in `parent`. EPERM for a directory, EXDEV across volumes.
pub fn link(old: &Arc<Entry>, parent: &Arc<Entry>, name: &[u8]) -> Result<()> {
    if old.inode.volume != parent.inode.volume {
        return Err(Errno::EXDEV);
    }
    if old.inode.kind.is_directory() {
        return Err(Errno::EPERM);
    }
    // A removed file can't come back under a new name, as on Linux.
    if !old.inode.may_be_linked() {
        return Err(Errno::ENOENT);
    }
    create(parent, name, old.inode.clone())?;
    old.inode.relink(1);
    old.inode.set_linkable(false);
    Ok(())
}

/// Remove the name `name` of something that is not a directory. ENOENT, EISDIR.
pub fn unlink(parent: &Arc<Entry>, name: &[u8]) -> Result<()> {
    let mut children = directory(parent)?.change(&task::unpinned());
    let entry = children.get(name).ok_or(Errno::ENOENT)?.clone();
    if entry.inode.kind.is_directory() {
        return Err(Errno::EISDIR);
    }
    let held = children.remove(name);
    entry.set_removed();
    drop(children);
    if let Some(held) = held {
        let_go(held);
    }
    entry.inode.relink(-1);
    parent.inode.touch();
    Ok(())
}

/// Remove the empty directory `name`. ENOENT, ENOTDIR, ENOTEMPTY, EBUSY for /proc and /sys.
pub fn rmdir(parent: &Arc<Entry>, name: &[u8]) -> Result<()> {
    let mut children = directory(parent)?.change(&task::unpinned());
    let entry = children.get(name).ok_or(Errno::ENOENT)?.clone();
    retire(&entry)?;
    let held = children.remove(name);
    entry.set_removed();
    drop(children);
    if let Some(held) = held {
        let_go(held);
    }
    entry.inode.relink(-2);
    parent.inode.relink(-1);
    parent.inode.touch();
    Ok(())
}

/// Close the directory `entry` for new children, if it has none. The caller holds its parent's lock.
fn retire(entry: &Arc<Entry>) -> Result<()> {
    let Kind::Directory(directory) = &entry.inode.kind else {
        return Err(if entry.inode.kind.is_directory() { Errno::EBUSY } else { Errno::ENOTDIR });
    };
    let mut children = directory.change(&task::unpinned());
    if !children.by_name.is_empty() {
        return Err(Errno::ENOTEMPTY);
    }
    children.removed = true;
    Ok(())
}

/// What `rename` does about a name that is there already.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Replace it.
    Replace,
    /// Fail with EEXIST.
    Keep,
    /// Give it the old name.
    Exchange,
}

/// Move one name to another: each a directory and a name in it. `slashes`: whether the paths ended in a slash, so that
/// what they name must be a directory.
///
/// EINVAL if that would put a directory into itself, EXDEV across volumes, ENOTEMPTY, EISDIR or ENOTDIR if what is
/// replaced does not fit, EBUSY for a mount point.
pub fn rename(
    (from, from_name): (&Arc<Entry>, &[u8]),
    (to, to_name): (&Arc<Entry>, &[u8]),
    slashes: [bool; 2],
    existing: Existing,
) -> Result<()> {
    if to_name.len() > c::NAME_MAX as usize {
        return Err(Errno::ENAMETOOLONG);
    }
    if from.inode.volume != to.inode.volume {
        return Err(Errno::EXDEV);
    }
    let ctx = task::unpinned();
    let _rename = RENAME.write(&ctx);
    let (source, target) = (directory(from)?, directory(to)?);
    let same = Arc::ptr_eq(from, to);
    let from_first = from.holds(to) || (!to.holds(from) && from.inode.number < to.inode.number);
    let (mut a, mut b);
    let (old_side, mut new_side) = if same {
        a = source.change(&ctx);
        (&mut *a, None)
    } else if from_first {
        a = source.change(&ctx);
        b = target.change(&ctx);
        (&mut *a, Some(&mut *b))
    } else {
        b = target.change(&ctx);
        a = source.change(&ctx);
        (&mut *a, Some(&mut *b))
    };
    let moved = old_side.get(from_name).ok_or(Errno::ENOENT)?.clone();
    let there = new_side.as_deref().unwrap_or(old_side).get(to_name).cloned();
    if new_side.as_deref().unwrap_or(old_side).removed {
        return Err(Errno::ENOENT);
    }
    check_present(&moved, there.as_ref(), slashes, existing)?;
    check_move(&moved, from, there.as_ref(), to, existing)?;
    if let Some(there) = &there
        && Arc::ptr_eq(&moved.inode, &there.inode)
    {
        return Ok(()); // one file under one or two names: POSIX says that nothing happens
    }
    let directory_moves = moved.inode.kind.is_directory();
    let directory_there = there.as_ref().is_some_and(|t| t.inode.kind.is_directory());
    if existing == Existing::Replace
        && directory_there
        && let Some(t) = &there
    {
        retire(t)?;
    }

    // Nothing can fail from here on.
    let held_moved = old_side.remove(from_name);
    let held_there = new_side.as_deref_mut().unwrap_or(old_side).remove(to_name);
    new_side.unwrap_or(old_side).insert(to_name, moved.clone());
    let exchanged = there.as_ref().filter(|_| existing == Existing::Exchange);
    // Before the locks are free: who finds it at its new name finds its new place.
    let moving = published::moving();
    let places =
        (moved.set_place(to, to_name, &moving), exchanged.map(|t| t.set_place(from, from_name, &moving)));
    if let Some(t) = there.as_ref().filter(|_| existing != Existing::Exchange) {
        // In the same step: what is moved has the place of what was there.
        t.set_removed();
    }
    drop(moving);
    drop(places);
    match &there {
        Some(t) if existing == Existing::Exchange => old_side.insert(from_name, t.clone()),
        Some(t) => t.inode.relink(if directory_there { -2 } else { -1 }),
        None => {}
    }
    let swapped = existing == Existing::Exchange;
    let from_change = i32::from(swapped && directory_there) - i32::from(directory_moves);
    let to_change = i32::from(directory_moves) - i32::from(directory_there);
    from.inode.relink(from_change);
    to.inode.relink(to_change);
    moved.inode.relink(0);
    from.inode.touch();
    to.inode.touch();
    drop(held_moved); // counted where it is now
    if let Some(held) = held_there.filter(|_| existing != Existing::Exchange) {
        let_go(held);
    }
    Ok(())
}

/// Whether what is at both names is as the call expects. The order of the checks is Linux's.
fn check_present(
    moved: &Entry,
    there: Option<&Arc<Entry>>,
    slashes: [bool; 2],
    existing: Existing,
) -> Result<()> {
    let is_directory = |e: &Entry| e.inode.kind.is_directory();
    let [from_slash, to_slash] = slashes;
    match (existing, there) {
        (Existing::Keep, Some(_)) => return Err(Errno::EEXIST),
        (Existing::Exchange, None) => return Err(Errno::ENOENT),
        (Existing::Exchange, Some(t)) if to_slash && !is_directory(t) => return Err(Errno::ENOTDIR),
        _ => {}
    }
    let to_slash = to_slash && existing != Existing::Exchange;
    if (from_slash || to_slash) && !is_directory(moved) { Err(Errno::ENOTDIR) } else { Ok(()) }
}

/// Whether `moved` may go from `from` to `to`, where `there` is already.
fn check_move(
    moved: &Arc<Entry>,
    from: &Arc<Entry>,
    there: Option<&Arc<Entry>>,
    to: &Arc<Entry>,
    existing: Existing,
) -> Result<()> {
    let directory_moves = moved.inode.kind.is_directory();
    let is_volume = |entry: &Arc<Entry>| matches!(entry.inode.kind, Kind::Listing(_));
    if is_volume(moved) || existing == Existing::Exchange && there.is_some_and(is_volume) {
        return Err(Errno::EBUSY);
    }
    if directory_moves && moved.holds(to) {
        return Err(Errno::EINVAL);
    }
    let Some(t) = there else { return Ok(()) };
    let directory_there = t.inode.kind.is_directory();
    match (existing, directory_moves, directory_there) {
        (Existing::Exchange, ..) if directory_there && t.holds(from) => Err(Errno::EINVAL),
        (Existing::Exchange, ..) => Ok(()),
        (_, _, true) if t.holds(from) => Err(Errno::ENOTEMPTY),
        (_, true, false) => Err(Errno::ENOTDIR),
        (_, false, true) => Err(Errno::EISDIR),
        _ => Ok(()),
    }
}

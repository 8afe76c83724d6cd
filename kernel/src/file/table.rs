//! Descriptor tables, and what else a process knows about files: its root, its working directory, its mask.

use alloc::{sync::Arc, vec::Vec};
use core::{
    mem,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use linux_raw_sys::general as c;
use sync::SpinLock;

use super::{
    Result,
    entry::Entry,
    open::OpenFile,
    path::{self, Follow, Found},
    record::Owner,
    stdio,
};
use crate::{errno::Errno, limits::RLIMIT_NOFILE, task};

/// The highest descriptor plus one, whatever the limit says; Linux's /proc/sys/fs/nr_open.
const MOST: u64 = 1 << 20;

/// The descriptors of a process, or of several that share them.
///
/// The lock is held for a look-up or a change, never while a file is opened, used or closed.
pub struct FileTable {
    slots: SpinLock<Slots>,
    /// The owner's number for `fcntl`'s locks.
    number: u64,
}

struct Slots {
    files: Vec<Option<Slot>>,
    /// No descriptor below is free.
    first_free: usize,
}

#[derive(Clone)]
struct Slot {
    file: Arc<OpenFile>,
    close_on_exec: bool,
}

impl Slots {
    fn slot(&self, fd: i32) -> Option<&Slot> {
        self.files.get(usize::try_from(fd).ok()?)?.as_ref()
    }

    /// Make sure that there is a place `at`. EMFILE without memory for it.
    fn extend_to(&mut self, at: usize) -> Result<()> {
        if at >= self.files.len() {
            let more = at + 1 - self.files.len();
            self.files.try_reserve(more).map_err(|_| Errno::EMFILE)?;
            self.files.resize(at + 1, None);
        }
        Ok(())
    }

    /// Fill a place that [`Self::extend_to`] made; says what was there.
    fn put(&mut self, at: usize, slot: Slot) -> Option<Slot> {
        self.files.get_mut(at).and_then(|place| place.replace(slot))
    }

    fn take(&mut self, at: usize) -> Option<Slot> {
        let slot = self.files.get_mut(at)?.take()?;
        self.first_free = self.first_free.min(at);
        Some(slot)
    }
}

impl Drop for FileTable {
    fn drop(&mut self) {
        for slot in self.slots.get_mut().files.drain(..).flatten() {
            slot.file.entry.inode.records.release(Owner::Table(self.number));
        }
    }
}

/// The calling process's limit on descriptors: the highest plus one.
fn limit() -> u64 {
    task::current().process.limits.soft(RLIMIT_NOFILE).min(MOST)
}

impl FileTable {
    fn new(slots: Slots) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        // Relaxed: only uniqueness matters.
        Self { slots: SpinLock::new(slots), number: NEXT.fetch_add(1, Ordering::Relaxed) }
    }

    /// No descriptors.
    pub fn empty() -> Arc<Self> {
        Arc::new(Self::new(Slots { files: Vec::new(), first_free: 0 }))
    }

    /// Descriptors 0, 1 and 2: the command's standard files.
    pub fn with_stdio() -> Arc<Self> {
        let files = (0..3).map(|fd| Some(Slot { file: stdio(fd), close_on_exec: false })).collect();
        Arc::new(Self::new(Slots { files, first_free: 3 }))
    }

    /// A table of its own with the same files, for a new process. ENOMEM.
    pub fn fork(&self) -> Result<Arc<Self>> {
        let slots = self.slots.lock();
        let mut files = Vec::new();
        files.try_reserve_exact(slots.files.len()).map_err(|_| Errno::ENOMEM)?;
        files.extend(slots.files.iter().cloned());
        let copy = Slots { files, first_free: slots.first_free };
        drop(slots);
        Ok(Arc::new(Self::new(copy)))
    }

    /// Close what is to be closed when another program is executed.
    pub fn exec(&self) {
        self.close_where(|_, slot| slot.close_on_exec);
    }

    fn close_where(&self, wanted: impl Fn(usize, &Slot) -> bool) {
        let mut closed = Vec::new();
        {
            let mut slots = self.slots.lock();
            for fd in 0..slots.files.len() {
                if slots.files.get(fd).and_then(Option::as_ref).is_some_and(|s| wanted(fd, s)) {
                    closed.push(slots.take(fd));
                }
            }
        }
        closed.into_iter().flatten().for_each(|slot| self.let_go(slot));
    }

    /// The open file behind `fd`. EBADF.
    pub fn get(&self, fd: i32) -> Result<Arc<OpenFile>> {
        self.slots.lock().slot(fd).map(|s| s.file.clone()).ok_or(Errno::EBADF)
    }

    /// Give `file` the lowest free descriptor from `least` on. EMFILE; EINVAL if `least` is beyond the limit.
    pub fn insert_from(&self, least: u64, file: Arc<OpenFile>, close_on_exec: bool) -> Result<usize> {
        let limit = limit();
        if least >= limit {
            return Err(Errno::EINVAL);
        }
        let mut slots = self.slots.lock();
        let from = slots.first_free.max(least as usize);
        let taken = slots.files.iter().skip(from).take_while(|s| s.is_some()).count();
        let fd = from + taken;
        if fd as u64 >= limit {
            return Err(Errno::EMFILE);
        }
        slots.extend_to(fd)?;
        slots.put(fd, Slot { file, close_on_exec });
        if from == slots.first_free {
            slots.first_free = fd + 1;
        }
        Ok(fd)
    }

    /// Give `file` the lowest free descriptor. EMFILE.
    pub fn insert(&self, file: Arc<OpenFile>, close_on_exec: bool) -> Result<usize> {
        self.insert_from(0, file, close_on_exec).map_err(|_| Errno::EMFILE)
    }

    /// Make `fd` refer to `file`, closing what it referred to. EBADF beyond the limit.
    pub fn replace(&self, fd: i32, file: Arc<OpenFile>, close_on_exec: bool) -> Result<usize> {
        let at = u64::try_from(fd).ok().filter(|&at| at < limit()).ok_or(Errno::EBADF)? as usize;
        let old = {
            let mut slots = self.slots.lock();
            slots.extend_to(at)?;
            slots.put(at, Slot { file, close_on_exec })
        };
        if let Some(slot) = old {
            self.let_go(slot);
        }
        Ok(at)
    }

    /// Take `fd` away, and close the file if that was its last descriptor. EBADF.
    pub fn close(&self, fd: i32) -> Result<()> {
        let at = usize::try_from(fd).map_err(|_| Errno::EBADF)?;
        let slot = self.slots.lock().take(at);
        slot.map(|slot| self.let_go(slot)).ok_or(Errno::EBADF)
    }

    /// Close what was taken out of the table. With its lock not held: closing may sleep. Any descriptor of a file that a
    /// process closes takes the process's locks on it (fcntl(2)).
    fn let_go(&self, slot: Slot) {
        slot.file.entry.inode.records.release(Owner::Table(self.number));
    }

    /// What tells it from all other tables.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Close the descriptors `first..=last`, or, if `on_exec`, mark them to be closed on exec.
    pub fn close_range(&self, first: usize, last: usize, on_exec: bool) {
        if !on_exec {
            return self.close_where(|fd, _| (first..=last).contains(&fd));
        }
        let mut slots = self.slots.lock();
        let count = last.saturating_sub(first).saturating_add(1);
        for slot in slots.files.iter_mut().skip(first).take(count).flatten() {
            slot.close_on_exec = true;
        }
    }

    /// Whether `fd` is closed on exec. EBADF.
    pub fn close_on_exec(&self, fd: i32) -> Result<bool> {
        self.slots.lock().slot(fd).map(|s| s.close_on_exec).ok_or(Errno::EBADF)
    }

    /// Say whether `fd` is closed on exec. EBADF.
    pub fn set_close_on_exec(&self, fd: i32, on: bool) -> Result<()> {
        let at = usize::try_from(fd).map_err(|_| Errno::EBADF)?;
        let mut slots = self.slots.lock();
        let slot = slots.files.get_mut(at).and_then(Option::as_mut).ok_or(Errno::EBADF)?;
        slot.close_on_exec = on;
        Ok(())
    }

    /// The descriptors in use, in ascending order.
    pub fn descriptors(&self) -> Vec<i32> {
        let slots = self.slots.lock();
        slots.files.iter().enumerate().filter(|(_, s)| s.is_some()).map(|(fd, _)| fd as i32).collect()
    }

    /// Close everything: the machine is ending.
    pub fn clear(&self) {
        let files = mem::take(&mut self.slots.lock().files);
        drop(files);
    }
}

/// Root, working directory and mask of a process, or of several that share them.
pub struct FsInfo {
    root: Arc<Entry>,
    cwd: SpinLock<Arc<Entry>>,
    umask: AtomicU32,
}

impl FsInfo {
    /// In the root of the tree, with the usual mask.
    pub fn root() -> Arc<Self> {
        let root = super::root();
        Arc::new(Self { cwd: SpinLock::new(root.clone()), root, umask: AtomicU32::new(0o022) })
    }

    /// A copy of its own, for a new process.
    pub fn fork(&self) -> Self {
        let umask = AtomicU32::new(self.umask());
        Self { root: self.root.clone(), cwd: SpinLock::new(self.cwd()), umask }
    }

    /// The working directory.
    pub fn cwd(&self) -> Arc<Entry> {
        self.cwd.lock().clone()
    }

    /// The root directory.
    pub fn root_directory(&self) -> &Arc<Entry> {
        &self.root
    }

    /// Make `entry` the working directory. ENOTDIR.
    pub fn set_cwd(&self, entry: Arc<Entry>) -> Result<()> {
        if !entry.inode.kind.is_directory() {
            return Err(Errno::ENOTDIR);
        }
        let old = mem::replace(&mut *self.cwd.lock(), entry);
        drop(old); // outside the lock
        Ok(())
    }

    /// Make `path` the working directory.
    pub fn chdir(&self, path: &[u8]) -> Result<()> {
        self.set_cwd(self.walk(&self.cwd(), path, Follow::Always)?.existing()?)
    }

    /// Permission bits that new files do not get.
    pub fn umask(&self) -> u32 {
        // Relaxed: a word of its own.
        self.umask.load(Ordering::Relaxed)
    }

    /// Set the mask; says what it was.
    pub fn set_umask(&self, mask: u32) -> u32 {
        // Relaxed: a word of its own.
        self.umask.swap(mask & 0o777, Ordering::Relaxed)
    }

    /// Walk `path` from `start`.
    pub fn walk(&self, start: &Arc<Entry>, path: &[u8], follow: Follow) -> Result<Found> {
        if path.len() >= c::PATH_MAX as usize {
            return Err(Errno::ENAMETOOLONG);
        }
        path::walk(&self.root, start, path, follow)
    }
}

//! Descriptor tables, and what else a process knows about files: its root, its working directory, its mask.

use alloc::{sync::Arc, vec::Vec};
use core::{
    mem,
    ops::Deref,
    sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
};

use linux_raw_sys::general as c;
use rcu::lend::{self, Table};
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
/// Threads are lent open files by number ([`rcu::lend`]): they take no lock, and count nothing that another thread counts.
/// The table's lock is held for a change, never while a file is opened, used or closed. A file ends when the last table gives it up,
/// or the last thread that was lent it, if that is later.
///
/// The table ends with the last process that has a [`Share`] of it: then its files are closed, though threads that are about to
/// look elsewhere may keep the empty table for a while.
pub struct FileTable {
    files: Table<OpenFile>,
    /// No descriptor below is free. Changed under the table's lock.
    first_free: AtomicUsize,
    /// The owner's number for `fcntl`'s locks.
    number: u64,
    /// Processes that have it.
    shares: AtomicUsize,
}

impl AsRef<Table<OpenFile>> for FileTable {
    fn as_ref(&self) -> &Table<OpenFile> {
        &self.files
    }
}

/// An open file that is lent to the calling thread.
pub type Lent = lend::Lent<OpenFile, FileTable>;
type User = lend::User<OpenFile, FileTable>;
type Held<'a> = lend::Locked<'a, OpenFile>;

/// What is noted of a descriptor: that it is closed on exec.
const CLOSE_ON_EXEC: u32 = 1;

/// The calling process's limit on descriptors: the highest plus one.
fn limit() -> u64 {
    task::current().process.limits.soft(RLIMIT_NOFILE).min(MOST)
}

fn index(fd: i32) -> Result<usize> {
    usize::try_from(fd).map_err(|_| Errno::EBADF)
}

impl FileTable {
    fn new() -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        // Relaxed: only uniqueness matters.
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let (first_free, shares) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(Self { files: Table::new(), first_free, number, shares })
    }

    /// A table of its own with the same files, for a new process. ENOMEM.
    pub fn fork(&self) -> Result<Share> {
        let copy = Self::new();
        {
            let theirs = self.files.lock();
            let mut ours = copy.files.lock();
            for fd in (0..theirs.len()).filter(|&fd| theirs.get(fd).is_some()) {
                ours.extend_to(fd).map_err(|_| Errno::ENOMEM)?;
                if let Some(file) = theirs.counted(fd) {
                    ours.put::<FileTable>(fd, file, theirs.mark(fd), None);
                }
            }
            // Relaxed: both are locked.
            copy.first_free.store(self.first_free.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        Ok(Share::of(copy))
    }

    /// Close what is to be closed when another program is executed.
    pub fn exec(&self) {
        self.close_where(|held, fd| held.mark(fd) == CLOSE_ON_EXEC);
    }

    fn close_where(&self, wanted: impl Fn(&Held<'_>, usize) -> bool) {
        let mut closed = Vec::new();
        {
            let mut held = self.files.lock();
            for fd in 0..held.len() {
                if held.get(fd).is_some() && wanted(&held, fd) {
                    closed.push(self.take(&mut held, fd, None));
                }
            }
        }
        closed.into_iter().flatten().for_each(|file| self.let_go(file));
    }

    fn take(&self, held: &mut Held<'_>, fd: usize, by: Option<&User>) -> Option<Arc<OpenFile>> {
        let file = held.take(fd, by)?;
        // Relaxed: under the lock.
        self.first_free.fetch_min(fd, Ordering::Relaxed);
        Some(file)
    }

    /// The open file behind `fd`, counted: for who keeps it, or is no thread of a process that has the table. EBADF.
    pub fn get(&self, fd: i32) -> Result<Arc<OpenFile>> {
        self.files.lock().counted(index(fd)?).ok_or(Errno::EBADF)
    }

    /// Close what was taken out of the table. With its lock not held: closing may sleep. Any descriptor of a file that a
    /// process closes takes the process's locks on it (fcntl(2)).
    fn let_go(&self, file: Arc<OpenFile>) {
        file.entry.inode.records.release(Owner::Table(self.number));
    }

    /// What tells it from all other tables.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Close the descriptors `first..=last`, or, if `on_exec`, mark them to be closed on exec.
    pub fn close_range(&self, first: usize, last: usize, on_exec: bool) {
        if !on_exec {
            return self.close_where(|_, fd| (first..=last).contains(&fd));
        }
        let mut held = self.files.lock();
        let end = last.saturating_add(1).min(held.len());
        (first..end).for_each(|fd| held.set_mark(fd, CLOSE_ON_EXEC));
    }

    /// Whether `fd` is closed on exec. EBADF.
    pub fn close_on_exec(&self, fd: i32) -> Result<bool> {
        let (fd, held) = (index(fd)?, self.files.lock());
        held.get(fd).map(|_| held.mark(fd) == CLOSE_ON_EXEC).ok_or(Errno::EBADF)
    }

    /// Say whether `fd` is closed on exec. EBADF.
    pub fn set_close_on_exec(&self, fd: i32, on: bool) -> Result<()> {
        let (fd, mut held) = (index(fd)?, self.files.lock());
        held.get(fd).ok_or(Errno::EBADF)?;
        held.set_mark(fd, u32::from(on));
        Ok(())
    }

    /// The descriptors in use, in ascending order.
    pub fn descriptors(&self) -> Vec<i32> {
        let held = self.files.lock();
        (0..held.len()).filter(|&fd| held.get(fd).is_some()).map(|fd| fd as i32).collect()
    }

    /// Close everything.
    pub fn clear(&self) {
        self.close_where(|_, _| true);
    }
}

/// A process's share of a table.
pub struct Share(Arc<FileTable>);

impl Share {
    fn of(table: Arc<FileTable>) -> Self {
        // Relaxed: others come to share it through a share.
        table.shares.fetch_add(1, Ordering::Relaxed);
        Self(table)
    }
    /// No descriptors.
    pub fn empty() -> Self {
        Self::of(FileTable::new())
    }
    /// Descriptors 0, 1 and 2: the command's standard files.
    pub fn with_stdio() -> Self {
        let table = FileTable::new();
        {
            let mut held = table.files.lock();
            for fd in 0..3 {
                // Without memory there is no program that could miss them.
                let _ = held.extend_to(fd);
                held.put::<FileTable>(fd, stdio(fd), 0, None);
            }
        }
        // Relaxed: nobody else has it yet.
        table.first_free.store(3, Ordering::Relaxed);
        Self::of(table)
    }
    /// The table.
    pub fn table(&self) -> &Arc<FileTable> {
        &self.0
    }
    /// How many shares there are.
    pub fn count(&self) -> usize {
        // Relaxed: who has the only one can rely on it.
        self.0.shares.load(Ordering::Relaxed)
    }
}

impl Clone for Share {
    fn clone(&self) -> Self {
        Self::of(self.0.clone())
    }
}

impl Deref for Share {
    type Target = FileTable;
    fn deref(&self) -> &FileTable {
        &self.0
    }
}

impl Drop for Share {
    /// Closing may sleep and send signals.
    fn drop(&mut self) {
        // AcqRel: what other processes did with the table comes before.
        if self.0.shares.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.clear();
        }
    }
}

/// The descriptors of the calling thread's process, of which the thread is a user of its own.
#[derive(Clone)]
pub struct Files(Arc<User>);

impl Files {
    /// A new user of `table`.
    pub fn of(table: Arc<FileTable>) -> Self {
        Self(User::of(table))
    }

    /// The table.
    pub fn table(&self) -> &Arc<FileTable> {
        self.0.table()
    }

    /// The open file behind `fd`, for the length of a call. EBADF.
    pub fn lend(&self, fd: i32) -> Result<Lent> {
        self.0.lend(index(fd)?).ok_or(Errno::EBADF)
    }

    /// Give `file` the lowest free descriptor from `least` on. EMFILE; EINVAL if `least` is beyond the limit.
    pub fn insert_from(&self, least: u64, file: Arc<OpenFile>, close_on_exec: bool) -> Result<usize> {
        let limit = limit();
        if least >= limit {
            return Err(Errno::EINVAL);
        }
        let mut held = self.files.lock();
        // Relaxed: under the lock.
        let first_free = self.first_free.load(Ordering::Relaxed);
        let from = first_free.max(least as usize);
        let fd = (from..).find(|&fd| held.get(fd).is_none()).ok_or(Errno::EMFILE)?;
        if fd as u64 >= limit {
            return Err(Errno::EMFILE);
        }
        held.extend_to(fd).map_err(|_| Errno::EMFILE)?;
        held.put(fd, file, u32::from(close_on_exec), Some(&*self.0));
        if from == first_free {
            self.first_free.store(fd + 1, Ordering::Relaxed);
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
            let mut held = self.files.lock();
            held.extend_to(at).map_err(|_| Errno::EMFILE)?;
            held.put(at, file, u32::from(close_on_exec), Some(&*self.0))
        };
        if let Some(file) = old {
            self.let_go(file);
        }
        Ok(at)
    }

    /// Take `fd` away, and close the file if that was its last descriptor. EBADF.
    pub fn close(&self, fd: i32) -> Result<()> {
        let fd = index(fd)?;
        let file = self.take(&mut self.files.lock(), fd, Some(&*self.0));
        file.map(|file| self.let_go(file)).ok_or(Errno::EBADF)
    }
}

impl Deref for Files {
    type Target = FileTable;
    fn deref(&self) -> &FileTable {
        self.0.table()
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

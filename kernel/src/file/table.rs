//! Descriptor tables, and what else a process knows about files: its root, its working directory, its mask.

use alloc::{sync::Arc, vec::Vec};
use core::{
    mem,
    ops::Deref,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
};

use linux_raw_sys::general as c;
use rcu::lend::{self, Table};
use sync::SpinLock;

use super::{
    Result,
    entry::Entry,
    open::OpenFile,
    path::{self, End, Follow, Found, Start},
    published::{self, Prepared, Published},
    reached::Reached,
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
/// look elsewhere may keep the empty table for a while. Nobody else has shares: who looks into another process's table, or copies
/// it, holds its lock, and sees under it that the process has that table; only behind that can it be cleared. So the number of shares
/// is the number of processes. A process that is to have a table alone sees under the lock whether it has, and gives its share up there if
/// it hasn't: of two that do so at once the second keeps the table, and its record locks.
pub struct FileTable {
    /// Noted of it: no descriptor below is free.
    files: Table<OpenFile>,
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

fn take_where(held: &mut Held<'_>, wanted: impl Fn(&Held<'_>, usize) -> bool) -> Vec<Arc<OpenFile>> {
    let mut taken = Vec::new();
    for fd in 0..held.len() {
        if held.get(fd).is_some() && wanted(held, fd) {
            taken.extend(take(held, fd, None));
        }
    }
    taken
}

fn take(held: &mut Held<'_>, fd: usize, by: Option<&User>) -> Option<Arc<OpenFile>> {
    let file = held.take(fd, by)?;
    held.set_note(held.note().min(fd));
    Some(file)
}

impl FileTable {
    fn new() -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        // Relaxed: only uniqueness matters.
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self { files: Table::new(), number, shares: AtomicUsize::new(0) })
    }

    /// A table of its own with the same files, for a new process. `None` if the table, locked, isn't `present`. ENOMEM.
    pub fn fork_if(&self, present: impl FnOnce() -> bool) -> Option<Result<Share>> {
        let theirs = self.files.lock();
        present().then(|| self.copy(&theirs))
    }

    /// Give a process, which has a share of this table as long as it is `present`, a table of its own: `put` puts a copy in place of
    /// its share, which it gives. Nothing if the share is the only one, or the table isn't present. ENOMEM.
    pub fn unshare(&self, present: impl FnOnce() -> bool, put: impl FnOnce(Share) -> Share) -> Result<()> {
        let theirs = self.files.lock();
        // Relaxed: under the lock; and who leaves the table without it is gone from it.
        if !present() || self.shares.load(Ordering::Relaxed) == 1 {
            return Ok(());
        }
        let mut left = put(self.copy(&theirs)?);
        let last = left.give_up();
        drop(theirs);
        if last {
            self.clear();
        }
        Ok(())
    }

    /// A table of its own with the same files, which `theirs` keeps as they are.
    fn copy(&self, theirs: &Held<'_>) -> Result<Share> {
        let copy = Self::new();
        {
            let mut ours = copy.files.lock();
            for fd in (0..theirs.len()).filter(|&fd| theirs.get(fd).is_some()) {
                ours.extend_to(fd).map_err(|_| Errno::ENOMEM)?;
                if let Some(file) = theirs.counted(fd) {
                    ours.put::<FileTable>(fd, file, theirs.mark(fd), None);
                }
            }
            ours.set_note(theirs.note());
        }
        Ok(Share::of(copy))
    }

    /// Close what is to be closed when another program is executed.
    pub fn exec(&self) {
        self.close_where(|held, fd| held.mark(fd) == CLOSE_ON_EXEC);
    }

    fn close_where(&self, wanted: impl Fn(&Held<'_>, usize) -> bool) {
        let taken = take_where(&mut self.files.lock(), wanted);
        taken.into_iter().for_each(|file| self.let_go(file));
    }

    /// The open file behind `fd`, counted: for who is no thread of a process that has the table. EBADF.
    pub fn get(&self, fd: i32) -> Result<Arc<OpenFile>> {
        self.files.lock().counted(index(fd)?).ok_or(Errno::EBADF)
    }

    /// The same, unless the table, locked, isn't `present`: then `None`.
    pub fn get_if(&self, fd: i32, present: impl FnOnce() -> bool) -> Option<Result<Arc<OpenFile>>> {
        let held = self.files.lock();
        present().then(|| held.counted(index(fd)?).ok_or(Errno::EBADF))
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
pub struct Share {
    table: Arc<FileTable>,
    /// It is not given up.
    counted: bool,
}

impl Share {
    fn of(table: Arc<FileTable>) -> Self {
        // Relaxed: others come to share it through a share.
        table.shares.fetch_add(1, Ordering::Relaxed);
        Self { table, counted: true }
    }
    /// It is no share any more. True if it was the last: then the table is to be cleared, with its lock not held.
    fn give_up(&mut self) -> bool {
        // AcqRel: what other processes did with the table comes before.
        mem::take(&mut self.counted) && self.table.shares.fetch_sub(1, Ordering::AcqRel) == 1
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
            held.set_note(3);
        }
        Self::of(table)
    }
    /// The table.
    pub fn table(&self) -> &Arc<FileTable> {
        &self.table
    }
}

impl Clone for Share {
    fn clone(&self) -> Self {
        Self::of(self.table.clone())
    }
}

impl Deref for Share {
    type Target = FileTable;
    fn deref(&self) -> &FileTable {
        &self.table
    }
}

impl Drop for Share {
    /// Closing may sleep and send signals.
    fn drop(&mut self) {
        if self.give_up() {
            self.clear();
        }
    }
}

/// The descriptors of the calling thread's process, of which the thread is a user of its own.
///
/// The process may get another table at any time (`Process::unshare_files`). So what changes the table, or counts a file of it,
/// looks under its lock whether the process still has it, and takes the process's present one else.
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

    /// What `f` does with the present table of the calling thread's process, and those files if they are others than these.
    fn change<R>(&self, f: impl FnOnce(&Self, &mut Held<'_>) -> R) -> (R, Option<Self>) {
        let mut present = None;
        loop {
            let files = present.as_ref().unwrap_or(self);
            let mut held = files.files.lock();
            if task::current().process.has_table(files.table()) {
                let result = f(files, &mut held);
                drop(held);
                return (result, present);
            }
            drop(held);
            present = Some(task::files());
        }
    }

    /// The open file behind `fd`, counted: for who keeps it. EBADF.
    pub fn get(&self, fd: i32) -> Result<Arc<OpenFile>> {
        let fd = index(fd)?;
        self.change(|_, held| held.counted(fd)).0.ok_or(Errno::EBADF)
    }

    /// Whether the calling thread's process has this table still, and `fd` is `file` in it.
    pub fn still_has(&self, fd: i32, file: &OpenFile) -> bool {
        let held = self.files.lock();
        let is = |fd| held.get(fd).is_some_and(|now| core::ptr::eq(now, file));
        task::current().process.has_table(self.table()) && index(fd).is_ok_and(is)
    }

    /// Close the descriptors `first..=last`, or, if `on_exec`, mark them to be closed on exec.
    pub fn close_range(&self, first: usize, last: usize, on_exec: bool) {
        let (taken, present) = self.change(|_, held| {
            if !on_exec {
                return take_where(held, |_, fd| (first..=last).contains(&fd));
            }
            let end = last.saturating_add(1).min(held.len());
            (first..end).for_each(|fd| held.set_mark(fd, CLOSE_ON_EXEC));
            Vec::new()
        });
        let files = present.as_ref().unwrap_or(self);
        taken.into_iter().for_each(|file| files.let_go(file));
    }

    /// Whether `fd` is closed on exec. EBADF.
    pub fn close_on_exec(&self, fd: i32) -> Result<bool> {
        let fd = index(fd)?;
        let mark = self.change(|_, held| held.get(fd).map(|_| held.mark(fd) == CLOSE_ON_EXEC)).0;
        mark.ok_or(Errno::EBADF)
    }

    /// Say whether `fd` is closed on exec. EBADF.
    pub fn set_close_on_exec(&self, fd: i32, on: bool) -> Result<()> {
        let fd = index(fd)?;
        let set = |_: &Self, held: &mut Held<'_>| {
            held.get(fd).ok_or(Errno::EBADF)?;
            held.set_mark(fd, u32::from(on));
            Ok(())
        };
        self.change(set).0
    }

    /// Give `file` the lowest free descriptor from `least` on. EMFILE; EINVAL if `least` is beyond the limit.
    pub fn insert_from(&self, least: u64, file: Arc<OpenFile>, close_on_exec: bool) -> Result<usize> {
        let limit = limit();
        if least >= limit {
            return Err(Errno::EINVAL);
        }
        // Dropped with no lock held if there is no place.
        let mut file = Some(file);
        let insert = |files: &Self, held: &mut Held<'_>| {
            let first_free = held.note();
            let from = first_free.max(least as usize);
            let fd = (from..).find(|&fd| held.get(fd).is_none()).ok_or(Errno::EMFILE)?;
            if fd as u64 >= limit {
                return Err(Errno::EMFILE);
            }
            held.extend_to(fd).map_err(|_| Errno::EMFILE)?;
            if let Some(file) = file.take() {
                held.put(fd, file, u32::from(close_on_exec), Some(&*files.0));
            }
            if from == first_free {
                held.set_note(fd + 1);
            }
            Ok(fd)
        };
        self.change(insert).0
    }

    /// Give `file` the lowest free descriptor. EMFILE.
    pub fn insert(&self, file: Arc<OpenFile>, close_on_exec: bool) -> Result<usize> {
        self.insert_from(0, file, close_on_exec).map_err(|_| Errno::EMFILE)
    }

    /// Make `fd` refer to `file`, closing what it referred to. EBADF beyond the limit.
    pub fn replace(&self, fd: i32, file: Arc<OpenFile>, close_on_exec: bool) -> Result<usize> {
        let at = u64::try_from(fd).ok().filter(|&at| at < limit()).ok_or(Errno::EBADF)? as usize;
        // As above.
        let mut file = Some(file);
        let (old, present) = self.change(|files, held| {
            held.extend_to(at).map_err(|_| Errno::EMFILE)?;
            let Some(file) = file.take() else { return Ok(None) };
            Ok(held.put(at, file, u32::from(close_on_exec), Some(&*files.0)))
        });
        if let Some(file) = old? {
            present.as_ref().unwrap_or(self).let_go(file);
        }
        Ok(at)
    }

    /// Take `fd` away, and close the file if that was its last descriptor. EBADF.
    pub fn close(&self, fd: i32) -> Result<()> {
        let fd = index(fd)?;
        let (file, present) = self.change(|files, held| take(held, fd, Some(&*files.0)));
        file.map(|file| present.as_ref().unwrap_or(self).let_go(file)).ok_or(Errno::EBADF)
    }

    /// The same, if `fd` is `file` still.
    pub fn close_if(&self, fd: i32, file: &OpenFile) {
        let Ok(fd) = index(fd) else { return };
        let (file, present) = self.change(|files, held| {
            held.get(fd).filter(|now| core::ptr::eq(*now, file))?;
            take(held, fd, Some(&*files.0))
        });
        if let Some(file) = file {
            present.as_ref().unwrap_or(self).let_go(file);
        }
    }
}

impl Deref for Files {
    type Target = FileTable;
    fn deref(&self) -> &FileTable {
        self.0.table()
    }
}

fn check_length(path: &[u8]) -> Result<()> {
    if path.len() >= c::PATH_MAX as usize { Err(Errno::ENAMETOOLONG) } else { Ok(()) }
}

/// Root, working directory and mask of a process, or of several that share them.
pub struct FsInfo {
    root: Arc<Entry>,
    cwd: Published<Arc<Entry>>,
    umask: AtomicU32,
    /// Processes that have not ended.
    users: AtomicU32,
    /// The root, for the last of them to be in: it may have ended for want of memory. None then.
    home: SpinLock<Option<Prepared<Arc<Entry>>>>,
}

/// A process's share of it.
///
/// What has ended may be kept, by its parent or by who looks at it in /proc; and a working directory may be that process's own there. So
/// the last one that ends leaves its working directory.
pub struct FsShare {
    fs: Arc<FsInfo>,
    left: AtomicBool,
}

impl FsShare {
    fn new(fs: Arc<FsInfo>) -> Self {
        // Relaxed: a count, and who comes last has seen the others' decrements.
        fs.users.fetch_add(1, Ordering::Relaxed);
        Self { fs, left: AtomicBool::new(false) }
    }
    /// In the root of the tree, with the usual mask.
    pub fn root() -> Self {
        Self::new(FsInfo::root())
    }
    /// The same, for another process that changes it too.
    pub fn share(&self) -> Self {
        Self::new(self.fs.clone())
    }
    /// A copy, for another process.
    pub fn fork(&self) -> Self {
        Self::new(Arc::new(self.fs.fork()))
    }
    /// The process ends.
    pub fn leave(&self) {
        // AcqRel, both: what users did comes before what the last one does.
        if !self.left.swap(true, Ordering::AcqRel) && self.fs.users.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.fs.move_home();
        }
    }
    /// Whether the process has ended.
    pub fn is_left(&self) -> bool {
        // Relaxed: a report.
        self.left.load(Ordering::Relaxed)
    }
}

impl Deref for FsShare {
    type Target = FsInfo;
    fn deref(&self) -> &FsInfo {
        &self.fs
    }
}

impl Drop for FsShare {
    fn drop(&mut self) {
        self.leave();
    }
}

impl FsInfo {
    fn new(root: Arc<Entry>, cwd: Arc<Entry>, umask: u32) -> Self {
        let home = SpinLock::new(Some(Prepared::new(root.clone())));
        let (umask, users) = (AtomicU32::new(umask), AtomicU32::new(0));
        Self { root, cwd: Published::new(cwd), umask, users, home }
    }

    fn root() -> Arc<Self> {
        let root = super::root();
        Arc::new(Self::new(root.clone(), root, 0o022))
    }

    fn fork(&self) -> Self {
        Self::new(self.root.clone(), self.cwd(), self.umask())
    }

    /// The working directory.
    pub fn cwd(&self) -> Arc<Entry> {
        self.cwd.read(Arc::clone)
    }

    /// The same, as the beginning of a walk.
    pub fn start(&self) -> Start<'_> {
        Start::In(&self.cwd)
    }

    /// The path of the working directory. ENOENT if it was removed, ENAMETOOLONG.
    pub fn cwd_path(&self) -> Result<Vec<u8>> {
        published::see_at_once(|sight| {
            let cwd = self.cwd.load(sight);
            let path = cwd.path_in(sight)?;
            // Afterwards: what is removed stays so, and then the path says it too.
            if cwd.is_removed() { Err(Errno::ENOENT) } else { Ok(path) }
        })
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
        let change = published::change();
        let old = self.cwd.replace(entry, &change);
        drop(change);
        drop(old);
        Ok(())
    }

    /// Nobody is in its working directory any more. Takes no memory.
    fn move_home(&self) {
        let Some(home) = self.home.lock().take() else { return };
        let change = published::change();
        let old = self.cwd.put(home, &change);
        drop(change);
        drop(old);
    }

    /// Make `path` the working directory.
    pub fn chdir(&self, path: &[u8]) -> Result<()> {
        self.set_cwd(self.existing(self.start(), path, Follow::Always)?)
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
    pub fn walk(&self, start: Start<'_>, path: &[u8], follow: Follow) -> Result<Found> {
        check_length(path)?;
        path::walk(&self.root, start, path, follow)
    }

    /// What `f` makes of where a walk ends. It has the directory locked: it must not sleep, nor look into another directory, or into
    /// a file.
    pub fn find<R>(
        &self,
        start: Start<'_>,
        path: &[u8],
        follow: Follow,
        f: impl FnMut(End<'_>) -> R,
    ) -> Result<R> {
        check_length(path)?;
        path::find(&self.root, start, path, follow, f)
    }

    /// What `path` stands for, from `start`.
    pub fn existing(&self, start: Start<'_>, path: &[u8], follow: Follow) -> Result<Arc<Entry>> {
        self.find(start, path, follow, |end| end.existing().map(Reached::counted))?
    }
}

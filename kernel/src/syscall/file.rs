//! System calls about files: descriptors here, then by subject.
//!
//! `transfer`: reading, writing, seeking. `names`: calls that take paths and change the tree. `metadata`: what `stat`
//! tells and `chmod` changes. `wait`: poll and select.

mod lock;
mod metadata;
mod names;
mod transfer;
mod wait;

use alloc::{sync::Arc, vec::Vec};
use core::ops::Deref;

use linux_raw_sys::{general as c, ioctl as io};

pub use metadata::*;
pub use names::*;
pub use transfer::*;
pub use wait::*;

use super::Args;
use crate::{
    errno::{Errno, SysResult},
    file::{
        self, Device, Entry, Files, Follow, Found, FsInfo, Kind, Lent, OpenFile, Reached, Special, Start,
        Store,
    },
    task, usercopy,
};

/// The caller's descriptors.
pub(super) fn files() -> Files {
    task::files()
}

/// The caller's root, working directory and mask.
fn fs() -> Fs {
    Fs(task::current())
}

/// They are the process's for good, so there is nothing to count.
struct Fs(task::Current);

impl Deref for Fs {
    type Target = FsInfo;
    fn deref(&self) -> &FsInfo {
        &self.0.process.fs
    }
}

/// The open file behind argument `i`. EBADF.
pub(super) fn opened(a: &Args, i: usize) -> Result<Lent, Errno> {
    lent(a.int(i))
}

/// The open file behind `fd`. EBADF.
pub(super) fn lent(fd: i32) -> Result<Lent, Errno> {
    loop {
        let files = files();
        let found = files.lend(fd);
        // In a table that the process has no more others may have put what is found, or closed what isn't.
        if task::current().process.has_table(files.table()) {
            return found;
        }
    }
}

/// A path from user memory. ENAMETOOLONG, EFAULT.
fn path_at(addr: u64) -> Result<Vec<u8>, Errno> {
    usercopy::read_cstr(addr, c::PATH_MAX as usize)
}

/// Where a path begins that doesn't begin with a slash.
enum Origin {
    /// In the working directory.
    Here,
    /// In an open one.
    Open(Lent),
}

impl Origin {
    /// By the first argument of a call with a directory's descriptor, which isn't looked at where the path begins with a slash.
    /// ENOENT for an empty path, EBADF.
    fn of(dirfd: i32, path: &[u8]) -> Result<Self, Errno> {
        if path.is_empty() {
            return Err(Errno::ENOENT);
        }
        if path.starts_with(b"/") || dirfd == c::AT_FDCWD {
            Ok(Origin::Here)
        } else {
            lent(dirfd).map(Origin::Open)
        }
    }
    fn start<'a>(&'a self, fs: &'a FsInfo) -> Start<'a> {
        match self {
            Origin::Here => fs.start(),
            Origin::Open(file) => Start::At(&file.entry),
        }
    }
}

/// Walk the path at `addr` from `dirfd`.
fn walk(dirfd: i32, addr: u64, follow: Follow) -> Result<Found, Errno> {
    let path = path_at(addr)?;
    let fs = fs();
    fs.walk(Origin::of(dirfd, &path)?.start(&fs), &path, follow)
}

/// What the path at `addr` stands for, from `dirfd`; `follow`: also if that is a symbolic link. ENOENT and so on.
fn lookup(dirfd: i32, addr: u64, follow: bool) -> Result<Arc<Entry>, Errno> {
    lookup_with_flags(dirfd, addr, if follow { 0 } else { c::AT_SYMLINK_NOFOLLOW })
}

/// As [`lookup`] with the flags AT_SYMLINK_NOFOLLOW and AT_EMPTY_PATH, the latter for `dirfd` itself.
fn lookup_with_flags(dirfd: i32, addr: u64, flags: u32) -> Result<Arc<Entry>, Errno> {
    look_with_flags(dirfd, addr, flags, |entry| entry.counted())
}

/// What `f` makes of the same, for who only looks. It must not sleep, nor look into a directory or a file.
fn look_with_flags<R>(
    dirfd: i32,
    addr: u64,
    flags: u32,
    mut f: impl FnMut(Reached<'_>) -> R,
) -> Result<R, Errno> {
    let named = Named::at(dirfd, addr, flags)?;
    let fs = fs();
    if named.path.is_empty() {
        return Ok(match &named.from {
            Origin::Here => f(Reached::held(&fs.cwd())),
            Origin::Open(file) => f(Reached::held(&file.entry)),
        });
    }
    fs.find(named.from.start(&fs), &named.path, named.follow, |end| end.existing().map(&mut f))?
}

/// What a call names.
struct Named {
    from: Origin,
    /// Empty: where it begins.
    path: Vec<u8>,
    follow: Follow,
}

impl Named {
    fn at(dirfd: i32, addr: u64, flags: u32) -> Result<Self, Errno> {
        let path = match (addr, flags & c::AT_EMPTY_PATH) {
            // Linux takes NULL for an empty path with this flag (since 6.11).
            (0, c::AT_EMPTY_PATH) => Vec::new(),
            _ => path_at(addr)?,
        };
        let from = if !path.is_empty() || flags & c::AT_EMPTY_PATH == 0 {
            Origin::of(dirfd, &path)?
        } else if dirfd == c::AT_FDCWD {
            Origin::Here
        } else {
            Origin::Open(lent(dirfd)?)
        };
        let follow = if flags & c::AT_SYMLINK_NOFOLLOW == 0 { Follow::Always } else { Follow::BeforeSlash };
        Ok(Self { from, path, follow })
    }
}

/// `close(2)`.
pub fn close(a: &Args) -> SysResult {
    files().close(a.int(0)).map(|()| 0)
}

/// `close_range(2)`.
pub fn close_range(a: &Args) -> SysResult {
    const CLOSE_RANGE_UNSHARE: u32 = 2;
    const CLOSE_RANGE_CLOEXEC: u32 = 4;
    let (first, last, flags) = (a.uint(0), a.uint(1), a.uint(2));
    if flags & !(CLOSE_RANGE_UNSHARE | CLOSE_RANGE_CLOEXEC) != 0 || first > last {
        return Err(Errno::EINVAL);
    }
    if flags & CLOSE_RANGE_UNSHARE != 0 {
        task::current().process.unshare_files()?;
    }
    files().close_range(first as usize, last as usize, flags & CLOSE_RANGE_CLOEXEC != 0);
    Ok(0)
}

/// `dup(2)`.
pub fn dup(a: &Args) -> SysResult {
    let files = files();
    files.insert(files.get(a.int(0))?, false)
}

/// `dup2(2)`.
pub fn dup2(a: &Args) -> SysResult {
    let files = files();
    let file = files.get(a.int(0))?;
    if a.int(0) == a.int(1) { Ok(a.uint(1) as usize) } else { files.replace(a.int(1), file, false) }
}

/// `dup3(2)`.
pub fn dup3(a: &Args) -> SysResult {
    if a.uint(2) & !c::O_CLOEXEC != 0 || a.int(0) == a.int(1) {
        return Err(Errno::EINVAL);
    }
    let files = files();
    files.replace(a.int(1), files.get(a.int(0))?, a.uint(2) & c::O_CLOEXEC != 0)
}

/// `pipe(2)`.
pub fn pipe(a: &Args) -> SysResult {
    make_pipe(a.raw(0), 0)
}

/// `pipe2(2)`, without O_NOTIFICATION_PIPE; O_DIRECT (packets) is refused.
pub fn pipe2(a: &Args) -> SysResult {
    if a.uint(1) & !(c::O_CLOEXEC | c::O_NONBLOCK) != 0 {
        return Err(Errno::EINVAL);
    }
    make_pipe(a.raw(0), a.uint(1))
}

fn make_pipe(addr: u64, flags: u32) -> SysResult {
    let close_on_exec = flags & c::O_CLOEXEC != 0;
    let (reader, writer) = file::new_pipe(flags & c::O_NONBLOCK)?;
    let files = files();
    let r = files.insert(reader, close_on_exec)? as i32;
    let result = files.insert(writer, close_on_exec).and_then(|w| {
        let w = w as i32;
        usercopy::write(addr, &[r, w]).or_else(|e| files.close(w).and(Err(e)))
    });
    result.or_else(|e| files.close(r).and(Err(e)))?;
    Ok(0)
}

/// `eventfd(2)`.
pub fn eventfd(a: &Args) -> SysResult {
    make_event(a.uint(0), 0)
}

/// `eventfd2(2)`.
pub fn eventfd2(a: &Args) -> SysResult {
    make_event(a.uint(0), a.uint(1))
}

fn make_event(count: u32, flags: u32) -> SysResult {
    if !file::event_flags_are_known(flags) {
        return Err(Errno::EINVAL);
    }
    files().insert(file::new_event(count, flags)?, flags & c::EFD_CLOEXEC != 0)
}

/// The seal on the permission to execute; `linux/fcntl.h`.
const F_SEAL_EXEC: u32 = 0x20;

/// `memfd_create(2)`: without huge pages.
pub fn memfd_create(a: &Args) -> SysResult {
    const PREFIX: &[u8] = b"/memfd:";
    let flags = a.uint(1);
    let executable = c::MFD_EXEC | c::MFD_NOEXEC_SEAL;
    if flags & !(c::MFD_CLOEXEC | c::MFD_ALLOW_SEALING | executable) != 0 || flags & executable == executable
    {
        return Err(Errno::EINVAL);
    }
    let most = c::NAME_MAX as usize - (PREFIX.len() - 1);
    let given = usercopy::read_cstr(a.raw(0), most + 1).map_err(|e| match e {
        Errno::ENAMETOOLONG => Errno::EINVAL,
        e => e,
    })?;
    let mut name = PREFIX.to_vec();
    name.extend(given);
    let mode = if flags & c::MFD_NOEXEC_SEAL != 0 { 0o666 } else { 0o777 };
    let store = Store::unlimited();
    store.set_first_seals(match flags & (c::MFD_ALLOW_SEALING | c::MFD_NOEXEC_SEAL) {
        0 => c::F_SEAL_SEAL,
        c::MFD_ALLOW_SEALING => 0,
        _ => F_SEAL_EXEC,
    });
    // As on Linux, its contents can be run while this descriptor is open.
    let file = OpenFile::plain(file::unnamed_file(&name, mode, store)?, c::O_RDWR);
    files().insert(file, flags & c::MFD_CLOEXEC != 0)
}

/// `fcntl(2)`.
pub fn fcntl(a: &Args) -> SysResult {
    let (fd, arg) = (a.int(0), a.raw(2));
    let files = files();
    let file = lent(fd)?;
    let command = a.uint(1);
    if file.is_path()
        && !matches!(command, c::F_DUPFD | c::F_DUPFD_CLOEXEC | c::F_GETFD | c::F_SETFD | c::F_GETFL)
    {
        return Err(Errno::EBADF);
    }
    match command {
        c::F_DUPFD | c::F_DUPFD_CLOEXEC => {
            files.insert_from(u64::from(arg as u32), file.counted(), command == c::F_DUPFD_CLOEXEC)
        }
        c::F_GETFD => Ok(files.close_on_exec(fd)?.into()),
        c::F_SETFD => files.set_close_on_exec(fd, arg & 1 != 0).map(|()| 0),
        c::F_GETFL => Ok(file.flags() as usize),
        c::F_SETFL => {
            file.set_flags(arg as u32);
            Ok(0)
        }
        c::F_GETLK | c::F_SETLK | c::F_SETLKW | c::F_OFD_GETLK | c::F_OFD_SETLK | c::F_OFD_SETLKW => {
            lock::record_lock(fd, &file, command, arg)
        }
        c::F_GETPIPE_SZ => Ok(file.end().ok_or(Errno::EBADF)?.pipe().capacity()),
        c::F_SETPIPE_SZ => file.end().ok_or(Errno::EBADF)?.pipe().set_capacity(arg as u32 as usize),
        c::F_GET_SEALS => Ok(sealable(&file)?.seals() as usize),
        c::F_ADD_SEALS => {
            file.check_writable().map_err(|_| Errno::EPERM)?;
            let mut seals = arg as u32;
            let writing = c::F_SEAL_SHRINK | c::F_SEAL_GROW | c::F_SEAL_WRITE | c::F_SEAL_FUTURE_WRITE;
            if seals & !(writing | c::F_SEAL_SEAL | F_SEAL_EXEC) != 0 {
                return Err(Errno::EINVAL);
            }
            if seals & F_SEAL_EXEC != 0 && file.entry.inode.mode() & 0o111 != 0 {
                // What can be executed can't be written from here on.
                seals |= writing;
            }
            sealable(&file)?.seal(seals).map(|()| 0)
        }
        _ => Err(Errno::EINVAL),
    }
}

/// The memory of a `memfd`. EINVAL for other files.
fn sealable(file: &OpenFile) -> Result<&Store, Errno> {
    file.entry.inode.store().filter(|store| store.is_memory()).ok_or(Errno::EINVAL)
}

/// `ioctl(2)`.
pub fn ioctl(a: &Args) -> SysResult {
    let (fd, request, arg) = (a.int(0), a.uint(1), a.raw(2));
    let files = files();
    let file = lent(fd)?;
    if file.is_path() {
        return Err(Errno::EBADF);
    }
    match request {
        io::FIOCLEX | io::FIONCLEX => return files.set_close_on_exec(fd, request == io::FIOCLEX).map(|()| 0),
        io::FIONBIO => {
            let on: i32 = usercopy::read(arg)?;
            let others = file.flags() & !c::O_NONBLOCK;
            file.set_flags(if on != 0 { others | c::O_NONBLOCK } else { others });
            return Ok(0);
        }
        _ => {}
    }
    match &file.entry.inode.kind {
        Kind::Device(Device::Console | Device::Tty) => file::tty::ioctl(request, arg),
        Kind::Device(Device::UserFaults) => super::userfault::device(request, arg),
        Kind::Special(Special::Faults(faults)) => super::userfault::ioctl(faults, request, arg),
        Kind::Pages(map) => map.ioctl(request, arg),
        Kind::Special(Special::Socket(socket)) if request == io::FIONREAD => {
            count_out(arg, socket.available()? as i64)
        }
        Kind::Special(Special::Socket(socket)) if request == io::TIOCOUTQ => {
            count_out(arg, socket.unread() as i64)
        }
        Kind::Fifo(pipe) if request == io::FIONREAD => count_out(arg, pipe.available() as i64),
        Kind::Console(channel) if request == io::FIONREAD => count_out(arg, channel.available() as i64),
        Kind::File(store) if request == io::FIONREAD => {
            count_out(arg, store.size() as i64 - file.offset() as i64)
        }
        _ => Err(Errno::ENOTTY),
    }
}

fn count_out(addr: u64, n: i64) -> SysResult {
    usercopy::write(addr, &(n.min(i32::MAX.into()) as i32))?;
    Ok(0)
}

/// `flock(2)`.
pub fn flock(a: &Args) -> SysResult {
    let file = opened(a, 0)?;
    if file.is_path() {
        return Err(Errno::EBADF);
    }
    let (lock, owner) = (&file.entry.inode.flock, file.number());
    let block = a.uint(1) & c::LOCK_NB == 0;
    match a.uint(1) & !c::LOCK_NB {
        c::LOCK_UN => lock.unlock(owner),
        c::LOCK_SH => lock.lock(owner, false, block)?,
        c::LOCK_EX => lock.lock(owner, true, block)?,
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

//! Calls that take paths and look up, open, create, remove or rename what they name.

use alloc::{boxed::Box, sync::Arc, vec::Vec};

use linux_raw_sys::general as c;

use super::{Origin, files, fs, look_with_flags, lookup, lookup_with_flags, opened, path_at, walk};
use crate::{
    errno::{Errno, SysResult},
    file::{
        self, Directory, Entry, Existing, Follow, Found, Inode, Kind, Last, Listed, OpenFile, Seek, Store,
        Volume, read_link,
    },
    syscall::Args,
    usercopy,
};

/// Flags of `open` that are known; others are ignored, as `open` always did.
const OPEN_FLAGS: u32 = c::O_ACCMODE
    | c::O_CREAT
    | c::O_EXCL
    | c::O_NOCTTY
    | c::O_TRUNC
    | c::O_APPEND
    | c::O_NONBLOCK
    | c::O_SYNC
    | c::O_DIRECT
    | c::O_LARGEFILE
    | c::O_NOFOLLOW
    | c::O_NOATIME
    | c::O_CLOEXEC
    | c::O_TMPFILE; // includes O_DIRECTORY
/// Flags that O_PATH leaves in force.
const PATH_FLAGS: u32 = c::O_PATH | c::O_DIRECTORY | c::O_NOFOLLOW | c::O_CLOEXEC;

/// `open(2)`.
pub fn open(a: &Args) -> SysResult {
    open_path(c::AT_FDCWD, a.raw(0), a.uint(1), a.uint(2))
}

/// `openat(2)`.
pub fn openat(a: &Args) -> SysResult {
    open_path(a.int(0), a.raw(1), a.uint(2), a.uint(3))
}

/// `creat(2)`.
pub fn creat(a: &Args) -> SysResult {
    open_path(c::AT_FDCWD, a.raw(0), c::O_CREAT | c::O_WRONLY | c::O_TRUNC, a.uint(1))
}

fn open_path(dirfd: i32, addr: u64, flags: u32, mode: u32) -> SysResult {
    const CREATED_DIRECTORY: u32 = c::O_CREAT | c::O_DIRECTORY;
    let flags = if flags & c::O_PATH != 0 { flags & PATH_FLAGS } else { flags & OPEN_FLAGS | c::O_LARGEFILE };
    let unnamed = flags & c::O_TMPFILE & !c::O_DIRECTORY != 0;
    if flags & CREATED_DIRECTORY == CREATED_DIRECTORY
        || unnamed && (flags & c::O_DIRECTORY == 0 || !file::access(flags).1)
    {
        return Err(Errno::EINVAL);
    }
    let path = path_at(addr)?;
    let opened = open_file(dirfd, &path, flags, mode)?;
    files().insert(opened, flags & c::O_CLOEXEC != 0)
}

fn open_file(dirfd: i32, path: &[u8], flags: u32, mode: u32) -> Result<Arc<OpenFile>, Errno> {
    let fs = fs();
    let from = Origin::of(dirfd, path)?;
    let mode = mode & 0o7777 & !fs.umask();
    if flags & c::O_TMPFILE == c::O_TMPFILE {
        return open_unnamed(fs.existing(from.start(&fs), path, Follow::Always)?, flags, mode);
    }
    let creates = flags & c::O_CREAT != 0;
    let exclusive = creates && flags & c::O_EXCL != 0;
    let follow = match (flags & c::O_NOFOLLOW == 0 && !exclusive, creates) {
        (true, false) => Follow::Always,
        (true, true) => Follow::UnlessSlash,
        (false, false) => Follow::BeforeSlash,
        (false, true) => Follow::Never,
    };
    let entry = if creates {
        // The directory is counted only if something is to be made in it.
        let found = fs.find(from.start(&fs), path, follow, |end| match end.child {
            _ if end.slash => Err(Errno::EISDIR),
            Some(_) if exclusive => Err(Errno::EEXIST),
            Some(child) => Ok(Ok(child.counted())),
            None => Ok(Err((end.parent.counted(), end.name.to_vec()))),
        });
        match found?? {
            Ok(entry) => entry,
            Err((parent, name)) => {
                file::check_room()?;
                let inode = Inode::new(Kind::File(Store::new(&[])), mode, Volume::Root);
                return match file::create(&parent, &name, inode) {
                    // The permissions apply to later opens; this one may write whatever they are.
                    Ok(entry) => OpenFile::open(entry, flags & !(c::O_TRUNC | c::O_CREAT)),
                    // Another thread was faster.
                    Err(Errno::EEXIST) if !exclusive => open_file(dirfd, path, flags, mode),
                    Err(e) => Err(e),
                };
            }
        }
    } else {
        fs.existing(from.start(&fs), path, follow)?
    };
    let kind = &entry.inode.kind;
    if kind.is_link() && flags & c::O_PATH == 0 {
        return Err(Errno::ELOOP);
    }
    if flags & c::O_DIRECTORY != 0 && !kind.is_directory() {
        return Err(Errno::ENOTDIR);
    }
    OpenFile::open(entry, flags)
}

/// O_TMPFILE: a file without a name, in the volume of `directory`.
fn open_unnamed(directory: Arc<Entry>, flags: u32, mode: u32) -> Result<Arc<OpenFile>, Errno> {
    match directory.inode.kind {
        Kind::Directory(_) => {}
        Kind::Listing(_) => return Err(Errno::EOPNOTSUPP),
        _ => return Err(Errno::ENOTDIR),
    }
    let file = file::unnamed_file(b"/#unnamed", mode, Store::new(&[]))?;
    file.inode.set_linkable(flags & c::O_EXCL == 0);
    OpenFile::open(file, flags & !(c::O_TMPFILE | c::O_CREAT))
}

/// The directory and name of something to remove or rename. `special`: what `.` and `..` give.
fn named(found: Found, special: impl FnOnce(Last) -> Errno) -> Result<(Arc<Entry>, Vec<u8>), Errno> {
    if found.last != Last::Name {
        return Err(special(found.last));
    }
    match &found.child {
        None => Err(Errno::ENOENT),
        Some(child) if found.slash && !child.inode.kind.is_directory() => Err(Errno::ENOTDIR),
        Some(_) => Ok((found.parent, found.name)),
    }
}

/// `mkdir(2)`.
pub fn mkdir(a: &Args) -> SysResult {
    make_directory(c::AT_FDCWD, a.raw(0), a.uint(1))
}

/// `mkdirat(2)`.
pub fn mkdirat(a: &Args) -> SysResult {
    make_directory(a.int(0), a.raw(1), a.uint(2))
}

fn make_directory(dirfd: i32, addr: u64, mode: u32) -> SysResult {
    let (parent, name) = walk(dirfd, addr, Follow::Never)?.vacant(true)?;
    let mode = mode & 0o1777 & !fs().umask();
    file::check_room()?;
    file::create(&parent, &name, Inode::new(Kind::Directory(Directory::new()), mode, Volume::Root))?;
    Ok(0)
}

/// `mknod(2)`.
pub fn mknod(a: &Args) -> SysResult {
    make_node(c::AT_FDCWD, a.raw(0), a.uint(1), a.raw(2))
}

/// `mknodat(2)`.
pub fn mknodat(a: &Args) -> SysResult {
    make_node(a.int(0), a.raw(1), a.uint(2), a.raw(3))
}

fn make_node(dirfd: i32, addr: u64, mode: u32, device: u64) -> SysResult {
    let kind = file::node(mode, device)?;
    let (parent, name) = walk(dirfd, addr, Follow::Never)?.vacant(false)?;
    let mode = mode & 0o7777 & !fs().umask();
    file::check_room()?;
    file::create(&parent, &name, Inode::new(kind, mode, Volume::Root))?;
    Ok(0)
}

/// `symlink(2)`.
pub fn symlink(a: &Args) -> SysResult {
    make_symlink(a.raw(0), c::AT_FDCWD, a.raw(1))
}

/// `symlinkat(2)`.
pub fn symlinkat(a: &Args) -> SysResult {
    make_symlink(a.raw(0), a.int(1), a.raw(2))
}

fn make_symlink(target: u64, dirfd: i32, addr: u64) -> SysResult {
    let target = path_at(target)?;
    if target.is_empty() {
        return Err(Errno::ENOENT);
    }
    let (parent, name) = walk(dirfd, addr, Follow::Never)?.vacant(false)?;
    file::check_room()?;
    let target: Box<[u8]> = target.into();
    file::create(&parent, &name, Inode::new(Kind::Symlink(target), 0o777, Volume::Root))?;
    Ok(0)
}

/// `link(2)`.
pub fn link(a: &Args) -> SysResult {
    make_link(lookup(c::AT_FDCWD, a.raw(0), false)?, c::AT_FDCWD, a.raw(1))
}

/// `linkat(2)`.
pub fn linkat(a: &Args) -> SysResult {
    let flags = a.uint(4);
    if flags & !(c::AT_SYMLINK_FOLLOW | c::AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    let nofollow = if flags & c::AT_SYMLINK_FOLLOW == 0 { c::AT_SYMLINK_NOFOLLOW } else { 0 };
    let old = lookup_with_flags(a.int(0), a.raw(1), flags & c::AT_EMPTY_PATH | nofollow)?;
    make_link(old, a.int(2), a.raw(3))
}

fn make_link(old: Arc<Entry>, dirfd: i32, addr: u64) -> SysResult {
    let (parent, name) = walk(dirfd, addr, Follow::Never)?.vacant(false)?;
    file::link(&old, &parent, &name)?;
    Ok(0)
}

/// `unlink(2)`.
pub fn unlink(a: &Args) -> SysResult {
    remove_file(c::AT_FDCWD, a.raw(0))
}

/// `rmdir(2)`.
pub fn rmdir(a: &Args) -> SysResult {
    remove_directory(c::AT_FDCWD, a.raw(0))
}

/// `unlinkat(2)`.
pub fn unlinkat(a: &Args) -> SysResult {
    match a.uint(2) {
        0 => remove_file(a.int(0), a.raw(1)),
        c::AT_REMOVEDIR => remove_directory(a.int(0), a.raw(1)),
        _ => Err(Errno::EINVAL),
    }
}

fn remove_file(dirfd: i32, addr: u64) -> SysResult {
    let found = walk(dirfd, addr, Follow::Never)?;
    let slash = found.slash;
    let (parent, name) = named(found, |_| Errno::EISDIR)?;
    if slash {
        return Err(Errno::EISDIR);
    }
    file::unlink(&parent, &name)?;
    Ok(0)
}

fn remove_directory(dirfd: i32, addr: u64) -> SysResult {
    let special = |last| match last {
        Last::Dot => Errno::EINVAL,
        Last::DotDot => Errno::ENOTEMPTY,
        _ => Errno::EBUSY,
    };
    let (parent, name) = named(walk(dirfd, addr, Follow::Never)?, special)?;
    file::rmdir(&parent, &name)?;
    Ok(0)
}

/// `rename(2)`.
pub fn rename(a: &Args) -> SysResult {
    move_name((c::AT_FDCWD, a.raw(0)), (c::AT_FDCWD, a.raw(1)), 0)
}

/// `renameat(2)`.
pub fn renameat(a: &Args) -> SysResult {
    move_name((a.int(0), a.raw(1)), (a.int(2), a.raw(3)), 0)
}

/// `renameat2(2)`, without RENAME_WHITEOUT.
pub fn renameat2(a: &Args) -> SysResult {
    move_name((a.int(0), a.raw(1)), (a.int(2), a.raw(3)), a.uint(4))
}

fn move_name(from: (i32, u64), to: (i32, u64), flags: u32) -> SysResult {
    let existing = match flags {
        0 => Existing::Replace,
        c::RENAME_NOREPLACE => Existing::Keep,
        c::RENAME_EXCHANGE => Existing::Exchange,
        _ => return Err(Errno::EINVAL),
    };
    let old = walk(from.0, from.1, Follow::Never)?;
    let new = walk(to.0, to.1, Follow::Never)?;
    if old.last != Last::Name {
        return Err(Errno::EBUSY);
    }
    if new.last != Last::Name {
        return Err(if existing == Existing::Keep { Errno::EEXIST } else { Errno::EBUSY });
    }
    let slashes = [old.slash, new.slash];
    file::rename((&old.parent, &old.name), (&new.parent, &new.name), slashes, existing)?;
    Ok(0)
}

/// `readlink(2)`.
pub fn readlink(a: &Args) -> SysResult {
    link_out((c::AT_FDCWD, a.raw(0)), c::AT_SYMLINK_NOFOLLOW, a.raw(1), a.int(2))
}

/// `readlinkat(2)`.
pub fn readlinkat(a: &Args) -> SysResult {
    // An empty path means the link that `dirfd` is open on as a path.
    link_out((a.int(0), a.raw(1)), c::AT_SYMLINK_NOFOLLOW | c::AT_EMPTY_PATH, a.raw(2), a.int(3))
}

fn link_out((dirfd, path): (i32, u64), flags: u32, addr: u64, size: i32) -> SysResult {
    let found = look_with_flags(dirfd, path, flags, |entry| match &entry.inode.kind {
        Kind::Symlink(text) => Ok(text.to_vec()),
        // What a link of /proc says may have to be found out.
        _ => Err(entry.counted()),
    })?;
    let size = usize::try_from(size).ok().filter(|&s| s > 0).ok_or(Errno::EINVAL)?;
    let text = found.or_else(|entry| read_link(&entry))?;
    let text = text.get(..size).unwrap_or(&text);
    usercopy::copy_out(addr, text)?;
    Ok(text.len())
}

/// `chdir(2)`.
pub fn chdir(a: &Args) -> SysResult {
    fs().set_cwd(lookup(c::AT_FDCWD, a.raw(0), true)?)?;
    Ok(0)
}

/// `fchdir(2)`.
pub fn fchdir(a: &Args) -> SysResult {
    fs().set_cwd(opened(a, 0)?.entry.clone())?;
    Ok(0)
}

/// `getcwd(2)`.
pub fn getcwd(a: &Args) -> SysResult {
    let mut path = fs().cwd_path()?;
    path.push(0);
    if path.len() > c::PATH_MAX as usize {
        return Err(Errno::ENAMETOOLONG);
    }
    if path.len() as u64 > a.raw(1) {
        return Err(Errno::ERANGE);
    }
    usercopy::copy_out(a.raw(0), &path)?;
    Ok(path.len())
}

/// The form of a directory entry.
#[derive(Clone, Copy)]
enum Form {
    /// `struct linux_dirent`: the type is the last byte.
    Old,
    /// `struct linux_dirent64`: the type is before the name.
    New,
}

impl Form {
    /// Bytes of an entry with a name of `len` bytes.
    fn size(self, len: usize) -> usize {
        match self {
            Form::Old => (18 + len + 2).next_multiple_of(8),
            Form::New => (19 + len + 1).next_multiple_of(8),
        }
    }

    fn append(self, out: &mut Vec<u8>, listed: &Listed<'_>) {
        let (start, size) = (out.len(), self.size(listed.name.len()));
        out.extend_from_slice(&listed.number.to_ne_bytes());
        out.extend_from_slice(&listed.next.to_ne_bytes());
        out.extend_from_slice(&(size as u16).to_ne_bytes());
        if matches!(self, Form::New) {
            out.push(listed.kind);
        }
        out.extend_from_slice(listed.name);
        out.resize(start + size, 0);
        if let (Form::Old, Some(last)) = (self, out.last_mut()) {
            *last = listed.kind;
        }
    }
}

/// `getdents64(2)`.
pub fn getdents64(a: &Args) -> SysResult {
    list(a, Form::New)
}

/// `getdents(2)`.
pub fn getdents(a: &Args) -> SysResult {
    list(a, Form::Old)
}

fn list(a: &Args, form: Form) -> SysResult {
    /// A call returns no more than this, whatever the buffer.
    const MOST: usize = 64 << 10;
    let file = opened(a, 0)?;
    let room = (a.uint(2) as usize).min(MOST);
    let mut out = Vec::new();
    let mut full = false;
    let before = file.offset();
    file.list(|listed| {
        full = out.len() + form.size(listed.name.len()) > room;
        if !full {
            form.append(&mut out, listed);
        }
        !full
    })?;
    if out.is_empty() && full {
        return Err(Errno::EINVAL);
    }
    if let Err(e) = usercopy::copy_out(a.raw(1), &out) {
        // Nothing was listed: the next call begins where this one did.
        file.seek(Seek::Start, before as i64)?;
        return Err(e);
    }
    Ok(out.len())
}

/// `mount(2)`: the tree is what it is, and nobody may change that.
pub fn mount(a: &Args) -> SysResult {
    // Type, then source, then place, as Linux reads them; each of the first two may be NULL.
    for name in [a.raw(2), a.raw(0)] {
        if name != 0 {
            path_at(name)?;
        }
    }
    lookup(c::AT_FDCWD, a.raw(1), true)?;
    Err(Errno::EPERM)
}

/// `umount2(2)`: as [`mount`]. EINVAL where nothing is mounted.
pub fn umount2(a: &Args) -> SysResult {
    /// MNT_FORCE, MNT_DETACH, MNT_EXPIRE.
    const KNOWN: u32 = 7;
    const UMOUNT_NOFOLLOW: u32 = 8;
    let flags = a.uint(1);
    if flags & !(KNOWN | UMOUNT_NOFOLLOW) != 0 {
        return Err(Errno::EINVAL);
    }
    let entry = lookup(c::AT_FDCWD, a.raw(0), flags & UMOUNT_NOFOLLOW == 0)?;
    Err(if entry.is_volume_root() { Errno::EPERM } else { Errno::EINVAL })
}

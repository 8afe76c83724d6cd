//! What `stat` tells and `chmod` changes.

use alloc::sync::Arc;

use linux_raw_sys::general as c;

use super::{F_SEAL_EXEC, fs, look_with_flags, lookup, lookup_with_flags, opened};
use crate::{
    errno::{Errno, SysResult},
    file::{self, Entry, Inode, Kind, Time, Volume},
    syscall::Args,
    usercopy,
};

/// Preferred size of transfers, in bytes.
const BLOCK: u64 = 4096;

/// `struct stat` of x86-64.
#[derive(Clone, Copy)]
#[repr(C)]
struct Stat {
    device: u64,
    number: u64,
    links: u64,
    mode: u32,
    uid: u32,
    gid: u32,
    pad: u32,
    special: u64,
    size: u64,
    block_size: u64,
    /// In units of 512 bytes.
    blocks: u64,
    /// Access, modification, change: seconds and nanoseconds.
    times: [[u64; 2]; 3],
    unused: [u64; 3],
}

/// `struct statx_timestamp`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Stamp {
    sec: i64,
    nsec: u32,
    pad: i32,
}

/// `struct statx`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Statx {
    mask: u32,
    block_size: u32,
    attributes: u64,
    links: u32,
    uid: u32,
    gid: u32,
    mode: u16,
    pad: u16,
    number: u64,
    size: u64,
    blocks: u64,
    attributes_mask: u64,
    accessed: Stamp,
    born: Stamp,
    changed: Stamp,
    modified: Stamp,
    special: [u32; 2],
    device: [u32; 2],
    mount: u64,
    rest: [u64; 13],
}

/// `struct statfs`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Statfs {
    magic: u64,
    block_size: u64,
    blocks: u64,
    free: u64,
    available: u64,
    files: u64,
    files_free: u64,
    id: [u32; 2],
    name_max: u64,
    fragment_size: u64,
    flags: u64,
    spare: [u64; 4],
}

crate::pod!(Stat, Statx, Statfs);

/// The device number that a device stands for; 0 for others.
fn special(inode: &Inode) -> u64 {
    match inode.kind {
        Kind::Device(device) => device.number(),
        _ => 0,
    }
}

/// Space taken, in units of 512 bytes.
fn blocks(inode: &Inode) -> u64 {
    inode.store().map_or(0, |s| s.pages() * (BLOCK / 512))
}

fn stat_of(inode: &Inode) -> Stat {
    let m = inode.meta();
    let time = |t: Time| [t.sec as u64, t.nsec.into()];
    Stat {
        device: inode.volume.device(),
        number: inode.number,
        links: m.links.into(),
        mode: inode.kind.type_bits() | m.mode,
        uid: m.uid,
        gid: m.gid,
        pad: 0,
        special: special(inode),
        size: inode.size(),
        block_size: BLOCK,
        blocks: blocks(inode),
        times: [time(m.accessed), time(m.modified), time(m.changed)],
        unused: [0; 3],
    }
}

fn stat_out(stat: &Stat, addr: u64) -> SysResult {
    usercopy::write(addr, stat)?;
    Ok(0)
}

/// As `look_with_flags` says it.
fn stat_at(dirfd: i32, addr: u64, flags: u32, to: u64) -> SysResult {
    stat_out(&look_with_flags(dirfd, addr, flags, |entry| stat_of(&entry.inode))?, to)
}

/// `stat(2)`.
pub fn stat(a: &Args) -> SysResult {
    stat_at(c::AT_FDCWD, a.raw(0), 0, a.raw(1))
}

/// `lstat(2)`.
pub fn lstat(a: &Args) -> SysResult {
    stat_at(c::AT_FDCWD, a.raw(0), c::AT_SYMLINK_NOFOLLOW, a.raw(1))
}

/// `fstat(2)`.
pub fn fstat(a: &Args) -> SysResult {
    stat_out(&stat_of(&opened(a, 0)?.entry.inode), a.raw(1))
}

/// `newfstatat(2)`.
pub fn newfstatat(a: &Args) -> SysResult {
    let flags = a.uint(3);
    if flags & !(c::AT_SYMLINK_NOFOLLOW | c::AT_EMPTY_PATH | c::AT_NO_AUTOMOUNT) != 0 {
        return Err(Errno::EINVAL);
    }
    stat_at(a.int(0), a.raw(1), flags, a.raw(2))
}

/// `statx(2)`.
pub fn statx(a: &Args) -> SysResult {
    let (flags, mask) = (a.uint(2), a.uint(3));
    let known = c::AT_SYMLINK_NOFOLLOW | c::AT_EMPTY_PATH | c::AT_NO_AUTOMOUNT | c::AT_STATX_SYNC_TYPE;
    if flags & !known != 0
        || flags & c::AT_STATX_SYNC_TYPE == c::AT_STATX_SYNC_TYPE
        || mask & c::STATX__RESERVED != 0
    {
        return Err(Errno::EINVAL);
    }
    let out = look_with_flags(a.int(0), a.raw(1), flags, |entry| statx_of(&entry.inode))?;
    usercopy::write(a.raw(4), &out)?;
    Ok(0)
}

fn statx_of(inode: &Inode) -> Statx {
    let m = inode.meta();
    let stamp = |t: Time| Stamp { sec: t.sec, nsec: t.nsec, pad: 0 };
    let pair = |device| {
        let (major, minor) = file::split_device(device);
        [major, minor]
    };
    Statx {
        mask: c::STATX_BASIC_STATS,
        block_size: BLOCK as u32,
        attributes: 0,
        links: m.links,
        uid: m.uid,
        gid: m.gid,
        mode: (inode.kind.type_bits() | m.mode) as u16,
        pad: 0,
        number: inode.number,
        size: inode.size(),
        blocks: blocks(inode),
        attributes_mask: 0,
        accessed: stamp(m.accessed),
        born: stamp(Time::default()),
        changed: stamp(m.changed),
        modified: stamp(m.modified),
        special: pair(special(inode)),
        device: pair(inode.volume.device()),
        mount: 0,
        rest: [0; 13],
    }
}

fn statfs_out(volume: Volume, addr: u64) -> SysResult {
    let on_root = volume == Volume::Root;
    let (blocks, free) = if on_root { file::capacity() } else { (0, 0) };
    let (files, files_free) = if on_root { file::name_capacity() } else { (0, 0) };
    let out = Statfs {
        magic: volume.magic().into(),
        block_size: BLOCK,
        blocks,
        free,
        available: free,
        files,
        files_free,
        id: [0, 0],
        name_max: c::NAME_MAX.into(),
        fragment_size: BLOCK,
        flags: 0,
        spare: [0; 4],
    };
    usercopy::write(addr, &out)?;
    Ok(0)
}

/// `statfs(2)`.
pub fn statfs(a: &Args) -> SysResult {
    statfs_out(look_with_flags(c::AT_FDCWD, a.raw(0), 0, |entry| entry.inode.volume)?, a.raw(1))
}

/// `fstatfs(2)`.
pub fn fstatfs(a: &Args) -> SysResult {
    statfs_out(opened(a, 0)?.entry.inode.volume, a.raw(1))
}

/// Whether the caller, who is user 0, may do what `mode` asks: everything, but execute what nobody may execute.
fn check_access(entry: &Entry, mode: u32) -> SysResult {
    const X_OK: u32 = 1;
    let nobody = entry.inode.meta().mode & 0o111 == 0 && !entry.inode.kind.is_directory();
    if mode & X_OK != 0 && nobody { Err(Errno::EACCES) } else { Ok(0) }
}

fn access_at(dirfd: i32, addr: u64, mode: u32, flags: u32) -> SysResult {
    if mode & !7 != 0 || flags & !(c::AT_EACCESS | c::AT_SYMLINK_NOFOLLOW | c::AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    look_with_flags(dirfd, addr, flags, |entry| check_access(&entry, mode))?
}

/// `access(2)`.
pub fn access(a: &Args) -> SysResult {
    access_at(c::AT_FDCWD, a.raw(0), a.uint(1), 0)
}

/// `faccessat(2)`: the call has no flags.
pub fn faccessat(a: &Args) -> SysResult {
    access_at(a.int(0), a.raw(1), a.uint(2), 0)
}

/// `faccessat2(2)`.
pub fn faccessat2(a: &Args) -> SysResult {
    access_at(a.int(0), a.raw(1), a.uint(2), a.uint(3))
}

fn set_mode(entry: &Entry, mode: u32) -> SysResult {
    if entry.inode.kind.is_link() {
        return Err(Errno::EOPNOTSUPP);
    }
    let sealed = entry.inode.store().is_some_and(|store| store.seals() & F_SEAL_EXEC != 0);
    if sealed && (entry.inode.mode() ^ mode) & 0o111 != 0 {
        return Err(Errno::EPERM);
    }
    let now = Time::now();
    entry.inode.update(|m| (m.mode, m.changed) = (mode & 0o7777, now));
    Ok(0)
}

/// `chmod(2)`.
pub fn chmod(a: &Args) -> SysResult {
    set_mode(&*lookup(c::AT_FDCWD, a.raw(0), true)?, a.uint(1))
}

/// `fchmod(2)`.
pub fn fchmod(a: &Args) -> SysResult {
    let file = opened(a, 0)?;
    if file.is_path() { Err(Errno::EBADF) } else { set_mode(&file.entry, a.uint(1)) }
}

/// `fchmodat(2)`: the call has no flags.
pub fn fchmodat(a: &Args) -> SysResult {
    set_mode(&*lookup(a.int(0), a.raw(1), true)?, a.uint(2))
}

/// `fchmodat2(2)`.
pub fn fchmodat2(a: &Args) -> SysResult {
    if a.uint(3) & !(c::AT_SYMLINK_NOFOLLOW | c::AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    set_mode(&*lookup_with_flags(a.int(0), a.raw(1), a.uint(3))?, a.uint(2))
}

fn set_owner(entry: &Entry, uid: u32, gid: u32) -> SysResult {
    const KEEP: u32 = u32::MAX;
    let now = Time::now();
    let regular = entry.inode.store().is_some();
    entry.inode.update(|m| {
        m.uid = if uid == KEEP { m.uid } else { uid };
        m.gid = if gid == KEEP { m.gid } else { gid };
        if regular {
            // A file that changes hands is no longer set-id; set-group-id without execution is a lock's mark.
            m.mode &= if m.mode & 0o010 != 0 { !0o6000 } else { !0o4000 };
        }
        m.changed = now;
    });
    Ok(0)
}

/// `chown(2)`.
pub fn chown(a: &Args) -> SysResult {
    set_owner(&*lookup(c::AT_FDCWD, a.raw(0), true)?, a.uint(1), a.uint(2))
}

/// `lchown(2)`.
pub fn lchown(a: &Args) -> SysResult {
    set_owner(&*lookup(c::AT_FDCWD, a.raw(0), false)?, a.uint(1), a.uint(2))
}

/// `fchown(2)`.
pub fn fchown(a: &Args) -> SysResult {
    let file = opened(a, 0)?;
    if file.is_path() { Err(Errno::EBADF) } else { set_owner(&file.entry, a.uint(1), a.uint(2)) }
}

/// `fchownat(2)`.
pub fn fchownat(a: &Args) -> SysResult {
    if a.uint(4) & !(c::AT_SYMLINK_NOFOLLOW | c::AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    set_owner(&*lookup_with_flags(a.int(0), a.raw(1), a.uint(4))?, a.uint(2), a.uint(3))
}

/// `umask(2)`.
pub fn umask(a: &Args) -> SysResult {
    Ok(fs().set_umask(a.uint(0)) as usize)
}

/// `truncate(2)`.
pub fn truncate(a: &Args) -> SysResult {
    let size = a.raw(1);
    if size > file::MAX_SIZE {
        return Err(Errno::EINVAL);
    }
    file::truncate(&lookup(c::AT_FDCWD, a.raw(0), true)?, size)?;
    Ok(0)
}

/// Access and modification times as a call gives them: None leaves one as it is.
type NewTimes = [Option<Time>; 2];

fn set_times(entry: &Arc<Entry>, times: NewTimes) -> SysResult {
    let now = Time::now();
    if times.iter().any(Option::is_some) {
        entry.inode.update(|m| {
            m.accessed = times[0].unwrap_or(m.accessed);
            m.modified = times[1].unwrap_or(m.modified);
            m.changed = now;
        });
    }
    Ok(0)
}

/// `utimensat(2)`.
pub fn utimensat(a: &Args) -> SysResult {
    let now = Time::now();
    let mut times = [Some(now); 2];
    if a.raw(2) != 0 {
        let given: [[i64; 2]; 2] = usercopy::read(a.raw(2))?;
        for (time, [sec, nsec]) in times.iter_mut().zip(given) {
            *time = match u32::try_from(nsec).map_err(|_| Errno::EINVAL)? {
                c::UTIME_NOW => Some(now),
                c::UTIME_OMIT => None,
                nsec if nsec < 1_000_000_000 => Some(Time { sec, nsec }),
                _ => return Err(Errno::EINVAL),
            };
        }
    }
    let flags = a.uint(3);
    if flags & !(c::AT_SYMLINK_NOFOLLOW | c::AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    let entry = if a.raw(1) == 0 && a.int(0) != c::AT_FDCWD {
        opened(a, 0)?.entry.clone()
    } else {
        lookup_with_flags(a.int(0), a.raw(1), flags)?
    };
    set_times(&entry, times)
}

/// Times from two pairs of seconds and microseconds at `addr`; the present if it is 0.
fn times_at(addr: u64) -> Result<NewTimes, Errno> {
    if addr == 0 {
        return Ok([Some(Time::now()); 2]);
    }
    let given: [[i64; 2]; 2] = usercopy::read(addr)?;
    let mut times = [None; 2];
    for (time, [sec, usec]) in times.iter_mut().zip(given) {
        let usec = u32::try_from(usec).ok().filter(|&u| u < 1_000_000).ok_or(Errno::EINVAL)?;
        *time = Some(Time { sec, nsec: usec * 1000 });
    }
    Ok(times)
}

/// `utimes(2)`.
pub fn utimes(a: &Args) -> SysResult {
    let times = times_at(a.raw(1))?;
    set_times(&lookup(c::AT_FDCWD, a.raw(0), true)?, times)
}

/// `futimesat(2)`.
pub fn futimesat(a: &Args) -> SysResult {
    let times = times_at(a.raw(2))?;
    let entry = if a.raw(1) == 0 { opened(a, 0)?.entry.clone() } else { lookup(a.int(0), a.raw(1), true)? };
    set_times(&entry, times)
}

/// `utime(2)`.
pub fn utime(a: &Args) -> SysResult {
    let times = if a.raw(1) == 0 {
        [Some(Time::now()); 2]
    } else {
        let given: [i64; 2] = usercopy::read(a.raw(1))?;
        given.map(|sec| Some(Time { sec, nsec: 0 }))
    };
    set_times(&lookup(c::AT_FDCWD, a.raw(0), true)?, times)
}

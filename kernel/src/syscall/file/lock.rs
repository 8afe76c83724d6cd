//! `fcntl`'s locks on parts of files.

use linux_raw_sys::general as c;

use super::files;
use crate::{
    errno::{Errno, SysResult},
    file::{Files, OpenFile, Owner, Record},
    task, usercopy,
};

/// `struct flock`: kind, what the start is relative to, start, length, process.
#[derive(Clone, Copy)]
#[repr(C)]
struct Flock {
    kind: i16,
    whence: i16,
    pad: u32,
    start: i64,
    len: i64,
    pid: i32,
    pad_end: u32,
}
crate::pod!(Flock);

/// Greatest offset, in bytes: a lock that ends there has no end.
const END: u64 = i64::MAX as u64;

/// The bytes that `given` means in `file`: the first and the last. EINVAL, EOVERFLOW.
fn range(file: &OpenFile, given: &Flock) -> Result<(u64, u64), Errno> {
    let base = match given.whence as u32 {
        c::SEEK_SET => 0,
        c::SEEK_CUR => file.offset() as i64,
        c::SEEK_END => file.entry.inode.size() as i64,
        _ => return Err(Errno::EINVAL),
    };
    let start = base.checked_add(given.start).ok_or(Errno::EOVERFLOW)?;
    let negative = |_| Errno::EINVAL;
    let first = u64::try_from(start).map_err(negative)?;
    match given.len {
        0 => Ok((first, END)),
        1.. => Ok((first, start.checked_add(given.len - 1).ok_or(Errno::EOVERFLOW)? as u64)),
        // The bytes before it.
        len => {
            let lower = u64::try_from(start.checked_add(len).ok_or(Errno::EINVAL)?).map_err(negative)?;
            Ok((lower, first.checked_sub(1).ok_or(Errno::EINVAL)?))
        }
    }
}

/// F_GETLK, F_SETLK, F_SETLKW and those of open files, on `file`, which is `fd`.
pub fn record_lock(fd: i32, file: &OpenFile, command: u32, at: u64) -> SysResult {
    loop {
        let files = files();
        let result = record_lock_of(&files, fd, file, command, at);
        // The locks of a table that the process has no more are let go of by nobody.
        if result != Err(Errno::EBADF) || task::current().process.has_table(files.table()) {
            return result;
        }
    }
}

/// The same, as the process has these descriptors. EBADF if it has them no more, too.
fn record_lock_of(files: &Files, fd: i32, file: &OpenFile, command: u32, at: u64) -> SysResult {
    let mut given: Flock = usercopy::read(at)?;
    let pid = task::current().process.pid;
    let of_file = matches!(command, c::F_OFD_GETLK | c::F_OFD_SETLK | c::F_OFD_SETLKW);
    if of_file && given.pid != 0 {
        return Err(Errno::EINVAL);
    }
    let owner = if of_file { Owner::File(file.number()) } else { Owner::Table(files.number()) };
    let kind = u32::try_from(given.kind).map_err(|_| Errno::EINVAL)?;
    let asks = matches!(command, c::F_GETLK | c::F_OFD_GETLK);
    if kind > c::F_UNLCK || asks && kind == c::F_UNLCK {
        return Err(Errno::EINVAL);
    }
    let (start, last) = range(file, &given)?;
    let record = Record { owner, pid, start, last, exclusive: kind == c::F_WRLCK };
    let records = &file.entry.inode.records;
    if asks {
        match records.obstacle(&record) {
            None => given.kind = c::F_UNLCK as i16,
            Some(other) => {
                given.kind = if other.exclusive { c::F_WRLCK } else { c::F_RDLCK } as i16;
                given.whence = c::SEEK_SET as i16;
                given.start = other.start as i64;
                given.len = if other.last == END { 0 } else { (other.last - other.start + 1) as i64 };
                given.pid = if matches!(other.owner, Owner::Table(_)) { other.pid as i32 } else { -1 };
            }
        }
        usercopy::write(at, &given)?;
        return Ok(0);
    }
    match kind {
        c::F_UNLCK => records.unlock(&record)?,
        c::F_WRLCK => file.check_writable()?,
        _ => file.check_readable()?,
    }
    if kind != c::F_UNLCK {
        records.lock(&record, matches!(command, c::F_SETLKW | c::F_OFD_SETLKW))?;
        // If another thread closed the descriptor meanwhile, or replaced the table, nothing would let go of the lock.
        if !of_file && !files.still_has(fd, file) {
            records.release(owner);
            return Err(Errno::EBADF);
        }
    }
    Ok(0)
}

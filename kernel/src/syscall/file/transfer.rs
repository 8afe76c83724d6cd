//! Reading, writing, seeking, and what is done to the contents of files.

use core::iter;

use linux_raw_sys::general as c;

use super::{files, opened};
use crate::{
    errno::{Errno, SysResult},
    file::{KernelBuffer, Kind, MAX_SIZE, MAX_TRANSFER, OpenFile, Seek, Sink, Source, UserBuffer},
    syscall::Args,
    upcall, usercopy,
};

/// An offset that must not be negative.
fn offset(a: &Args, i: usize) -> Result<u64, Errno> {
    let o = a.raw(i);
    if o > MAX_SIZE { Err(Errno::EINVAL) } else { Ok(o) }
}

/// `read(2)`.
pub fn read(a: &Args) -> SysResult {
    let file = opened(a, 0)?;
    file.check_readable()?;
    file.read(&mut UserBuffer::new(a.raw(1), a.raw(2))?)
}

/// `write(2)`.
pub fn write(a: &Args) -> SysResult {
    let file = opened(a, 0)?;
    file.check_writable()?;
    file.write(&mut UserBuffer::new(a.raw(1), a.raw(2))?)
}

/// `readv(2)`.
pub fn readv(a: &Args) -> SysResult {
    let file = opened(a, 0)?;
    file.check_readable()?;
    let mut buffer = UserBuffer::vectored(a.raw(1), a.raw(2))?;
    if buffer.room() == 0 { Ok(0) } else { file.read(&mut buffer) }
}

/// `writev(2)`.
pub fn writev(a: &Args) -> SysResult {
    let file = opened(a, 0)?;
    file.check_writable()?;
    let mut buffer = UserBuffer::vectored(a.raw(1), a.raw(2))?;
    if buffer.left() == 0 { Ok(0) } else { file.write(&mut buffer) }
}

/// `pread64(2)`.
pub fn pread64(a: &Args) -> SysResult {
    let at = offset(a, 3)?;
    opened(a, 0)?.read_at(at, &mut UserBuffer::new(a.raw(1), a.raw(2))?)
}

/// `pwrite64(2)`.
pub fn pwrite64(a: &Args) -> SysResult {
    let at = offset(a, 3)?;
    opened(a, 0)?.write_at(at, &mut UserBuffer::new(a.raw(1), a.raw(2))?)
}

/// `preadv(2)`.
pub fn preadv(a: &Args) -> SysResult {
    let at = offset(a, 3)?;
    opened(a, 0)?.read_at(at, &mut UserBuffer::vectored(a.raw(1), a.raw(2))?)
}

/// `pwritev(2)`.
pub fn pwritev(a: &Args) -> SysResult {
    let at = offset(a, 3)?;
    opened(a, 0)?.write_at(at, &mut UserBuffer::vectored(a.raw(1), a.raw(2))?)
}

/// `lseek(2)`.
pub fn lseek(a: &Args) -> SysResult {
    let file = opened(a, 0)?;
    if file.is_path() {
        return Err(Errno::EBADF);
    }
    let from = match a.uint(2) {
        c::SEEK_SET => Seek::Start,
        c::SEEK_CUR => Seek::Current,
        c::SEEK_END => Seek::End,
        c::SEEK_DATA => Seek::Data,
        c::SEEK_HOLE => Seek::Hole,
        _ => return Err(Errno::EINVAL),
    };
    file.seek(from, a.raw(1) as i64).map(|o| o as usize)
}

/// `ftruncate(2)`.
pub fn ftruncate(a: &Args) -> SysResult {
    let size = offset(a, 1)?;
    opened(a, 0)?.set_size(size).map(|()| 0)
}

/// `fallocate(2)`: allocation, FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE and FALLOC_FL_ZERO_RANGE.
pub fn fallocate(a: &Args) -> SysResult {
    let (mode, at, len) = (a.uint(1), a.raw(2), a.raw(3));
    let file = opened(a, 0)?;
    file.check_writable()?;
    if at > MAX_SIZE || len > MAX_SIZE || len == 0 {
        return Err(Errno::EINVAL);
    }
    if at + len > MAX_SIZE {
        return Err(Errno::EFBIG);
    }
    let store =
        file.entry.inode.store().ok_or(if file.end().is_some() { Errno::ESPIPE } else { Errno::ENODEV })?;
    let keep = mode & c::FALLOC_FL_KEEP_SIZE != 0;
    match mode & !c::FALLOC_FL_KEEP_SIZE {
        0 => store.allocate(at, len, keep)?,
        c::FALLOC_FL_PUNCH_HOLE if keep => store.punch(at, len)?,
        c::FALLOC_FL_ZERO_RANGE => {
            store.punch(at, len)?;
            store.allocate(at, len, keep)?;
        }
        _ => return Err(Errno::EOPNOTSUPP),
    }
    file.entry.inode.touch();
    Ok(0)
}

/// Move up to `len` bytes from `from` to `to` through the kernel, a piece at a time, stopping at the end of the one or
/// when the other takes no more. `from_at`, `to_at`: offsets to use, and to move on, in place of the files' own.
fn copy(
    from: &OpenFile,
    to: &OpenFile,
    from_at: &mut Option<u64>,
    to_at: &mut Option<u64>,
    len: usize,
) -> SysResult {
    const PIECE: usize = 32 << 10;
    let mut piece = alloc::vec::Vec::new();
    piece.try_reserve_exact(len.min(PIECE)).map_err(|_| Errno::ENOMEM)?;
    piece.extend(iter::repeat_n(0u8, len.min(PIECE)));
    let mut done = 0;
    while done < len {
        let want = piece.len().min(len - done);
        let mut room = KernelBuffer { free: piece.get_mut(..want).unwrap_or_default() };
        let read = match *from_at {
            Some(at) => from.read_at(at, &mut room),
            None => from.read(&mut room),
        };
        let n = match read {
            Ok(n) => n,
            Err(e) if done == 0 => return Err(e),
            Err(_) => break,
        };
        let mut bytes = piece.get(..n).unwrap_or_default();
        let written = match *to_at {
            Some(at) => to.write_at(at, &mut bytes),
            None => to.write(&mut bytes),
        };
        let put = written.as_ref().map_or(0, |&n| n);
        for at in [&mut *from_at, &mut *to_at].into_iter().flatten() {
            *at += put as u64;
        }
        done += put;
        if put < n && from_at.is_none() {
            // What was read and not written goes back, where there is an offset to move back.
            let _ = from.seek(Seek::Current, put as i64 - n as i64);
        }
        match written {
            Err(e) if done == 0 => return Err(e),
            _ if put < n || n == 0 => break,
            _ => {}
        }
    }
    Ok(done)
}

/// An offset in user memory that a call uses and moves; None for a NULL pointer. EINVAL for a negative one.
fn offset_at(addr: u64) -> Result<Option<u64>, Errno> {
    if addr == 0 {
        return Ok(None);
    }
    let at: u64 = usercopy::read(addr)?;
    if at > MAX_SIZE { Err(Errno::EINVAL) } else { Ok(Some(at)) }
}

fn store_offset(addr: u64, at: Option<u64>) -> Result<(), Errno> {
    at.map_or(Ok(()), |at| upcall::owed(|| usercopy::write(addr, &at)))
}

/// `sendfile(2)`.
pub fn sendfile(a: &Args) -> SysResult {
    let from = opened(a, 1)?;
    from.check_readable()?;
    let mut at = offset_at(a.raw(2))?;
    if at.is_some() {
        from.check_offset()?;
    }
    let to = opened(a, 0)?;
    to.check_writable()?;
    if let Some(end) = to.end() {
        end.pipe().check_readers()?;
    }
    if to.flags() & c::O_APPEND != 0
        || from.check_offset().is_err()
        || matches!(to.entry.inode.kind, Kind::Event(_))
    {
        return Err(Errno::EINVAL);
    }
    let len = (a.raw(3) as usize).min(MAX_TRANSFER);
    let n = copy(&from, &to, &mut at, &mut None, len)?;
    store_offset(a.raw(2), at)?;
    Ok(n)
}

/// `splice(2)`: between a pipe and a file, or two pipes: one piece, through the kernel.
pub fn splice(a: &Args) -> SysResult {
    /// As much as a pipe holds by default.
    const PIECE: usize = 64 << 10;
    const KNOWN: u32 = c::SPLICE_F_MOVE | c::SPLICE_F_NONBLOCK | c::SPLICE_F_MORE | c::SPLICE_F_GIFT;
    let len = (a.raw(4) as usize).min(PIECE);
    if len == 0 {
        return Ok(0);
    }
    if a.uint(5) & !KNOWN != 0 {
        return Err(Errno::EINVAL);
    }
    let (from, to) = (opened(a, 0)?, opened(a, 2)?);
    from.check_readable()?;
    to.check_writable()?;
    let (source, target) = (from.end().map(|e| e.pipe()), to.end().map(|e| e.pipe()));
    if source.is_some() && a.raw(1) != 0 || target.is_some() && a.raw(3) != 0 {
        return Err(Errno::ESPIPE);
    }
    let same = matches!((source, target), (Some(x), Some(y)) if core::ptr::eq(x, y));
    if source.is_none() && target.is_none() || same || to.flags() & c::O_APPEND != 0 {
        return Err(Errno::EINVAL);
    }
    let (mut from_at, mut to_at) = (offset_at(a.raw(1))?, offset_at(a.raw(3))?);
    let block = a.uint(5) & c::SPLICE_F_NONBLOCK == 0;
    // What is taken from a pipe can't be put back, so there must be room for it first.
    let len = match target {
        Some(pipe) => len.min(pipe.await_room(block && to.blocks())?),
        None => len,
    };
    let mut piece = alloc::vec::Vec::new();
    piece.try_reserve_exact(len).map_err(|_| Errno::ENOMEM)?;
    piece.resize(len, 0u8);
    let mut room = KernelBuffer { free: &mut piece };
    let n = match (source, from_at) {
        (Some(pipe), _) => pipe.read(&mut room, block && from.blocks())?,
        (None, Some(at)) => from.read_at(at, &mut room)?,
        (None, None) => from.read(&mut room)?,
    };
    let mut bytes = piece.get(..n).unwrap_or_default();
    let put = match to_at {
        _ if n == 0 => 0,
        Some(at) => to.write_at(at, &mut bytes)?,
        None => to.write(&mut bytes)?,
    };
    for at in [&mut from_at, &mut to_at].into_iter().flatten() {
        *at += put as u64;
    }
    store_offset(a.raw(1), from_at)?;
    store_offset(a.raw(3), to_at)?;
    Ok(put)
}

/// `vmsplice(2)`: by copying, as `readv` or `writev` of a pipe.
pub fn vmsplice(a: &Args) -> SysResult {
    if a.uint(3) & !(c::SPLICE_F_MOVE | c::SPLICE_F_NONBLOCK | c::SPLICE_F_MORE | c::SPLICE_F_GIFT) != 0 {
        return Err(Errno::EINVAL);
    }
    let file = opened(a, 0)?;
    let pipe = file.end().ok_or(Errno::EBADF)?.pipe();
    let block = a.uint(3) & c::SPLICE_F_NONBLOCK == 0 && file.blocks();
    let mut buffer = UserBuffer::vectored(a.raw(1), a.raw(2))?;
    if buffer.room() == 0 {
        Ok(0)
    } else if file.check_writable().is_ok() {
        pipe.write(&mut buffer, block)
    } else {
        pipe.read(&mut buffer, block)
    }
}

/// `copy_file_range(2)`.
pub fn copy_file_range(a: &Args) -> SysResult {
    let (from, to) = (opened(a, 0)?, opened(a, 2)?);
    from.check_readable()?;
    to.check_writable()?;
    if to.flags() & c::O_APPEND != 0 {
        return Err(Errno::EBADF);
    }
    for f in [&from, &to] {
        let kind = &f.entry.inode.kind;
        if kind.is_directory() {
            return Err(Errno::EISDIR);
        }
        if f.entry.inode.store().is_none() {
            return Err(Errno::EINVAL);
        }
    }
    if a.uint(5) != 0 {
        return Err(Errno::EINVAL);
    }
    let (mut from_at, mut to_at) = (offset_at(a.raw(1))?, offset_at(a.raw(3))?);
    let len = (a.raw(4) as usize).min(MAX_TRANSFER);
    if core::ptr::eq(&*from.entry.inode, &*to.entry.inode) {
        let (x, y) = (from_at.unwrap_or_else(|| from.offset()), to_at.unwrap_or_else(|| to.offset()));
        if x.abs_diff(y) < len as u64 {
            return Err(Errno::EINVAL);
        }
    }
    let n = copy(&from, &to, &mut from_at, &mut to_at, len)?;
    store_offset(a.raw(1), from_at)?;
    store_offset(a.raw(3), to_at)?;
    Ok(n)
}

/// `fsync(2)`: memory is all the storage there is.
pub fn fsync(a: &Args) -> SysResult {
    let file = files().get(a.int(0))?;
    if file.is_path() {
        return Err(Errno::EBADF);
    }
    let kept = file.entry.inode.store().is_some() || file.entry.inode.kind.is_directory();
    if kept { Ok(0) } else { Err(Errno::EINVAL) }
}

/// `fdatasync(2)`.
pub fn fdatasync(a: &Args) -> SysResult {
    fsync(a)
}

/// `sync_file_range(2)`.
pub fn sync_file_range(a: &Args) -> SysResult {
    let file = opened(a, 0)?;
    if file.is_path() {
        return Err(Errno::EBADF);
    }
    let (from, len) = (offset(a, 1)?, offset(a, 2)?);
    if a.uint(3) & !7 != 0 || from + len > MAX_SIZE {
        return Err(Errno::EINVAL);
    }
    let kept = file.entry.inode.store().is_some() || file.entry.inode.kind.is_directory();
    if kept { Ok(0) } else { Err(Errno::ESPIPE) }
}

/// `syncfs(2)`.
pub fn syncfs(a: &Args) -> SysResult {
    opened(a, 0).map(|_| 0)
}

/// `sync(2)`.
pub fn sync(_: &Args) -> SysResult {
    Ok(0)
}

/// `fadvise64(2)`: everything is in memory already.
pub fn fadvise64(a: &Args) -> SysResult {
    const LAST_ADVICE: u32 = 5;
    let file = opened(a, 0)?;
    if file.end().is_some() {
        return Err(Errno::ESPIPE);
    }
    if a.uint(3) > LAST_ADVICE || a.raw(2) > MAX_SIZE { Err(Errno::EINVAL) } else { Ok(0) }
}

//! System calls as results, callable from signal handlers: no allocation, no locks, `errno` kept by the dispatcher.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    ffi::{c_int, c_ulong},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    sync::atomic::AtomicU32,
    time::Duration,
};

use crate::error::Errno;

/// The base page, in bytes.
pub const BASE: usize = 4096;

fn errno() -> Errno {
    // SAFETY: the location is this thread's own.
    Errno(unsafe { *libc::__errno_location() })
}

/// What a call has returned.
pub fn check(result: i64) -> Result<usize, Errno> {
    usize::try_from(result).map_err(|_| errno())
}

/// Bytes that were mapped, unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    pub address: usize,
    pub len: usize,
}

impl Mapping {
    /// Map `len` bytes; of the file if there is one, from its byte `offset`, else of nothing.
    pub fn new(
        len: usize,
        protection: c_int,
        flags: c_int,
        file: Option<(RawFd, u64)>,
    ) -> Result<Self, Errno> {
        let (fd, offset) = file.unwrap_or((-1, 0));
        let flags = if file.is_some() { flags } else { flags | libc::MAP_ANONYMOUS };
        let offset = i64::try_from(offset).map_err(|_| Errno(libc::EINVAL))?;
        // SAFETY: no fixed address, so no existing mapping is touched.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, fd, offset) };
        if at == libc::MAP_FAILED { Err(errno()) } else { Ok(Self { address: at as usize, len }) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the bytes are this value's; whoever points into them has been outlived.
        unsafe { libc::munmap(self.address as *mut _, self.len) };
    }
}

/// Let another thread run.
pub fn yield_now() {
    // SAFETY: it does nothing else.
    unsafe { libc::sched_yield() };
}

/// Change what `len` bytes allow.
///
/// # Safety
/// The bytes are the caller's to change.
pub unsafe fn mprotect(address: usize, len: usize, protection: c_int) -> Result<(), Errno> {
    // SAFETY: as the caller says.
    check(unsafe { libc::mprotect(address as *mut _, len, protection) }.into()).map(drop)
}

/// Advise about `len` bytes.
///
/// # Safety
/// The bytes are the caller's to advise about, and the advice keeps what others may rely on.
pub unsafe fn madvise(address: usize, len: usize, advice: c_int) -> Result<(), Errno> {
    // SAFETY: as the caller says.
    check(unsafe { libc::madvise(address as *mut _, len, advice) }.into()).map(drop)
}

/// An ioctl whose argument is a structure.
///
/// # Safety
/// `number` takes a `T`, and what it does to memory is the caller's to do.
pub unsafe fn ioctl<T>(fd: RawFd, number: c_ulong, argument: &mut T) -> Result<usize, Errno> {
    // SAFETY: as the caller says; the reference is valid for the call.
    check(unsafe { libc::ioctl(fd, number, std::ptr::from_mut(argument)) }.into())
}

/// A descriptor that an ioctl or system call returned.
pub fn owned(fd: usize) -> Result<OwnedFd, Errno> {
    let fd = RawFd::try_from(fd).map_err(|_| Errno(libc::EBADF))?;
    // SAFETY: the call that returned it gave it to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A system call by number that returns a descriptor.
pub fn descriptor(number: i64, first: c_int, second: c_int) -> Result<OwnedFd, Errno> {
    // SAFETY: the calls made this way take two numbers and touch no memory.
    owned(check(unsafe { libc::syscall(number, first, second) })?)
}

/// An ioctl without an argument that returns a descriptor.
pub fn ioctl_descriptor(fd: &OwnedFd, number: c_ulong, flags: c_int) -> Result<OwnedFd, Errno> {
    // SAFETY: it takes a number and touches no memory.
    owned(check(unsafe { libc::ioctl(fd.as_raw_fd(), number, flags) }.into())?)
}

/// A file in memory of `len` bytes that cannot shrink.
pub fn memfd(len: usize) -> Result<OwnedFd, Errno> {
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"vmprim".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    let fd = owned(check(fd.into())?)?;
    let size = i64::try_from(len).map_err(|_| Errno(libc::EINVAL))?;
    // SAFETY: the descriptor is ours, here and below.
    check(unsafe { libc::ftruncate(fd.as_raw_fd(), size) }.into())?;
    // SAFETY: see above.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK) }.into())?;
    Ok(fd)
}

/// Give `len` bytes of the file from `offset` frames where they have none; contents stay.
pub fn allocate(fd: RawFd, offset: usize, len: usize) -> Result<(), Errno> {
    let word = |n: usize| i64::try_from(n).map_err(|_| Errno(libc::EINVAL));
    loop {
        // SAFETY: it touches no memory.
        match check(unsafe { libc::fallocate(fd, 0, word(offset)?, word(len)?) }.into()) {
            Err(Errno(libc::EINTR)) => {}
            result => return result.map(drop),
        }
    }
}

/// Several ranges advised about by one call; how many bytes were.
///
/// # Safety
/// As [`madvise`].
pub unsafe fn advise_many(pidfd: RawFd, ranges: &[libc::iovec], advice: c_int) -> Result<usize, Errno> {
    let number = crate::uapi::SYS_PROCESS_MADVISE;
    // SAFETY: as the caller says; the slice is valid for the call.
    check(unsafe { libc::syscall(number, pidfd, ranges.as_ptr(), ranges.len(), advice, 0) })
}

/// Sleep while `word` is `seen`, at most for `limit`. May return early.
pub fn futex_wait(word: *const AtomicU32, seen: u32, limit: Option<Duration>) {
    let limit = limit.map(|limit| libc::timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    });
    let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let op = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: the kernel checks the address; the timeout is valid for the call.
    unsafe { libc::syscall(libc::SYS_futex, word, op, seen, limit) };
}

/// Wake up to `n` that sleep on `word`. The address may be nobody's any more: then nobody sleeps on it.
pub fn futex_wake(word: *const AtomicU32, n: i32) {
    let op = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: the kernel takes the address as a name and reads nothing.
    unsafe { libc::syscall(libc::SYS_futex, word, op, n) };
}

/// This thread's number.
pub fn gettid() -> u32 {
    // SAFETY: it touches no memory.
    u32::try_from(unsafe { libc::syscall(libc::SYS_gettid) }).unwrap_or(0)
}

/// Say `parts` on standard error by one write.
pub fn say(parts: &[&str]) {
    let mut line = [0_u8; 400];
    let mut used = 0;
    for byte in parts.iter().flat_map(|part| part.bytes()) {
        if let Some(place) = line.get_mut(used) {
            *place = byte;
            used = used.wrapping_add(1);
        }
    }
    // SAFETY: the buffer holds that many bytes.
    unsafe { libc::write(2, line.as_ptr().cast(), used) };
}

/// Say why, and abort.
pub fn die(parts: &[&str]) -> ! {
    say(parts);
    // SAFETY: aborting needs nothing.
    unsafe { libc::abort() }
}

/// A number in the digits of `base`, without allocation.
pub struct Digits([u8; 20], usize);

impl Digits {
    pub fn new(mut n: usize, base: usize) -> Self {
        let mut text = [b'0'; 20];
        let mut first = 20_usize;
        for place in text.iter_mut().rev() {
            *place = b"0123456789abcdef".get(n.wrapping_rem(base.max(2))).copied().unwrap_or(b'?');
            first = first.wrapping_sub(1);
            n = n.wrapping_div(base.max(2));
            if n == 0 {
                break;
            }
        }
        Self(text, first)
    }
    pub fn as_str(&self) -> &str {
        self.0.get(self.1..).and_then(|digits| std::str::from_utf8(digits).ok()).unwrap_or("?")
    }
}

/// How many mappings a process may have.
pub fn map_limit() -> usize {
    let text = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap_or_default();
    text.trim().parse().unwrap_or(65_530)
}

/// How many mappings this process has.
pub fn map_count() -> usize {
    std::fs::read("/proc/self/maps").map_or(0, |maps| maps.iter().filter(|&&byte| byte == b'\n').count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_people_read_them() {
        assert_eq!(Digits::new(0, 10).as_str(), "0");
        assert_eq!(Digits::new(65_530, 10).as_str(), "65530");
        assert_eq!(Digits::new(usize::MAX, 10).as_str(), usize::MAX.to_string());
        assert_eq!(Digits::new(0xdead_beef, 16).as_str(), "deadbeef");
    }
}

//! Where bytes come from and go to: user memory, or the kernel's own.
//!
//! A transfer asks how much room is left, then hands over pieces. User memory may turn out not to be there in the
//! middle of a piece; the piece is then taken up to the exact byte, so that a call can answer how much it has moved,
//! as Linux does, and EFAULT only if that is nothing.

use alloc::vec::Vec;

use addr::{PAGE_SIZE, USER_END};

use super::Result;
use crate::{errno::Errno, usercopy};

/// The most bytes that one call moves; Linux's `MAX_RW_COUNT`.
pub const MAX_TRANSFER: usize = 0x7fff_f000;
/// The most segments of one vectored call; Linux's `UIO_MAXIOV`.
const MAX_SEGMENTS: u64 = 1024;

/// A place for bytes.
pub trait Sink {
    /// How many bytes it still takes.
    fn room(&self) -> usize;
    /// Put `bytes` there; says how many went, fewer than all only at the end of the room or on a bad address.
    fn put(&mut self, bytes: &[u8]) -> usize;
}

/// A supply of bytes.
pub trait Source {
    /// How many bytes are left.
    fn left(&self) -> usize;
    /// Fill `into`; says how many bytes came, fewer than asked only at the end or on a bad address.
    fn take(&mut self, into: &mut [u8]) -> usize;
}

/// A buffer of a program: one or several segments of its memory, used from the front.
pub struct UserBuffer {
    current: Segment,
    later: Vec<Segment>,
    /// Bytes in `later`.
    later_bytes: usize,
}

#[derive(Clone, Copy, Default)]
struct Segment {
    addr: u64,
    len: usize,
}

impl UserBuffer {
    /// `len` bytes at `addr`, at most [`MAX_TRANSFER`]. EFAULT if that is not all below the end of user space.
    pub fn new(addr: u64, len: u64) -> Result<Self> {
        check(addr, len)?;
        let len = (len as usize).min(MAX_TRANSFER);
        Ok(Self { current: Segment { addr, len }, later: Vec::new(), later_bytes: 0 })
    }

    /// The `count` segments of the `struct iovec` array at `array`. EINVAL for too many or a negative length.
    pub fn vectored(array: u64, count: u64) -> Result<Self> {
        if count > MAX_SEGMENTS {
            return Err(Errno::EINVAL);
        }
        let mut later = Vec::new();
        later.try_reserve(count as usize).map_err(|_| Errno::ENOMEM)?;
        let mut total = 0usize;
        for i in 0..count {
            let [addr, len] = usercopy::read::<[u64; 2]>(array.checked_add(16 * i).ok_or(Errno::EFAULT)?)?;
            if len > i64::MAX as u64 {
                return Err(Errno::EINVAL);
            }
            check(addr, len)?;
            let len = (len as usize).min(MAX_TRANSFER - total);
            total += len;
            later.push(Segment { addr, len });
        }
        later.reverse();
        Ok(Self { current: Segment::default(), later, later_bytes: total })
    }

    /// Run `copy(addr, from, len)` over the next `len` bytes of the buffer, a contiguous stretch at a time.
    fn each(&mut self, len: usize, mut copy: impl FnMut(u64, usize, usize) -> usize) -> usize {
        let mut done = 0;
        while done < len {
            if self.current.len == 0 {
                match self.later.pop() {
                    Some(next) => {
                        self.later_bytes -= next.len;
                        self.current = next;
                        continue;
                    }
                    None => break,
                }
            }
            let want = (len - done).min(self.current.len);
            let got = copy(self.current.addr, done, want);
            self.current.addr += got as u64;
            self.current.len -= got;
            done += got;
            if got < want {
                break;
            }
        }
        done
    }
}

fn check(addr: u64, len: u64) -> Result<()> {
    match addr.checked_add(len) {
        Some(end) if end <= USER_END => Ok(()),
        _ => Err(Errno::EFAULT),
    }
}

/// Copy by `copy(addr, from, len)`, whole if possible; else page by page, as far as it goes. Copies may be repeated.
fn as_far_as_possible(addr: u64, len: usize, mut copy: impl FnMut(u64, usize, usize) -> bool) -> usize {
    if copy(addr, 0, len) {
        return len;
    }
    let mut done = 0;
    while done < len {
        let at = addr + done as u64;
        let n = ((PAGE_SIZE - at % PAGE_SIZE) as usize).min(len - done);
        if !copy(at, done, n) {
            break;
        }
        done += n;
    }
    done
}

impl Sink for UserBuffer {
    fn room(&self) -> usize {
        self.current.len + self.later_bytes
    }
    fn put(&mut self, bytes: &[u8]) -> usize {
        self.each(bytes.len(), |addr, from, len| {
            as_far_as_possible(addr, len, |at, skip, n| match bytes.get(from + skip..from + skip + n) {
                Some(piece) => usercopy::copy_out(at, piece).is_ok(),
                None => false,
            })
        })
    }
}

impl Source for UserBuffer {
    fn left(&self) -> usize {
        self.room()
    }
    fn take(&mut self, into: &mut [u8]) -> usize {
        self.each(into.len(), |addr, from, len| {
            as_far_as_possible(addr, len, |at, skip, n| match into.get_mut(from + skip..from + skip + n) {
                Some(piece) => usercopy::copy_in(at, piece).is_ok(),
                None => false,
            })
        })
    }
}

/// The kernel's own bytes as a place, filled from the front.
pub struct KernelBuffer<'a> {
    /// What is still free.
    pub free: &'a mut [u8],
}

impl Sink for KernelBuffer<'_> {
    fn room(&self) -> usize {
        self.free.len()
    }
    fn put(&mut self, bytes: &[u8]) -> usize {
        let n = bytes.len().min(self.free.len());
        let (now, rest) = core::mem::take(&mut self.free).split_at_mut(n);
        if let Some(from) = bytes.get(..n) {
            now.copy_from_slice(from);
        }
        self.free = rest;
        n
    }
}

/// The kernel's own bytes as a supply.
impl Source for &[u8] {
    fn left(&self) -> usize {
        self.len()
    }
    fn take(&mut self, into: &mut [u8]) -> usize {
        let n = into.len().min(self.len());
        let (now, rest) = self.split_at(n);
        if let Some(to) = into.get_mut(..n) {
            to.copy_from_slice(now);
        }
        *self = rest;
        n
    }
}

/// What a transfer answers: the bytes moved, or `error` if there were none though some were asked for.
pub fn moved(done: usize, asked: usize, error: Errno) -> Result<usize> {
    if done == 0 && asked > 0 { Err(error) } else { Ok(done) }
}

//! Pipes: a ring of bytes between those who write and those who read.
//!
//! Bytes are copied straight between the ring and the programs' memory under a sleeping lock, the ring's. How full
//! the ring is and how many ends are open is kept in atomics besides, so that waiting and polling take no lock.
//!
//! **Nobody sleeps through a change.** Readers wait for "not empty, or no writer", writers for "room for what must go
//! in one piece, or no reader". A reader can only be asleep if it saw the ring empty, so a write wakes the readers
//! when it finds the ring empty; a writer can only be asleep if it saw less than `PIPE_BUF` room (it waits for at
//! most that much), so a read wakes the writers when it found so little. The last end of a kind to close wakes all.
//!
//! Writes of at most `PIPE_BUF` bytes go in one piece (POSIX).

use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use linux_raw_sys::general as c;
use sync::RwLock;

use super::{
    Result,
    io::{Sink, Source, moved},
    poll::{Events, Readiness},
};
use crate::{errno::Errno, memory, task, wait::WaitQueue};

/// Bytes that go in one piece.
const PIPE_BUF: usize = c::PIPE_BUF as usize;
/// Capacity of a new pipe in bytes.
const DEFAULT_CAPACITY: usize = 64 << 10;
/// The greatest capacity; Linux's /proc/sys/fs/pipe-max-size.
const MAX_CAPACITY: usize = 1 << 20;
/// The ring's first allocation: most pipes carry little.
const FIRST_RING: usize = PIPE_BUF;

/// The bytes of a pipe. The storage's length is 0 or a power of two and grows up to the capacity.
struct Ring {
    bytes: Vec<u8>,
    /// Index of the oldest byte.
    head: usize,
    len: usize,
}

impl Ring {
    /// Make room for `more` bytes, moving what is there to a larger ring if need be. ENOMEM.
    fn reserve(&mut self, more: usize) -> Result<()> {
        let need = self.len + more;
        if need <= self.bytes.len() {
            return Ok(());
        }
        let size = need.next_power_of_two().max(FIRST_RING);
        if memory::frames().low() {
            return Err(Errno::ENOMEM);
        }
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(size).map_err(|_| Errno::ENOMEM)?;
        let (first, second) = self.used();
        bytes.extend_from_slice(first);
        bytes.extend_from_slice(second);
        bytes.resize(size, 0);
        self.bytes = bytes;
        self.head = 0;
        Ok(())
    }

    /// The two stretches of used bytes, oldest first.
    fn used(&self) -> (&[u8], &[u8]) {
        let (before, from_head) = self.bytes.split_at_checked(self.head).unwrap_or_default();
        let first = from_head.get(..self.len).unwrap_or(from_head);
        let second = before.get(..self.len - first.len()).unwrap_or(&[]);
        (first, second)
    }

    /// The next stretch of unused bytes.
    fn unused(&mut self) -> &mut [u8] {
        let size = self.bytes.len();
        let tail = self.head + self.len;
        let (from, to) = if tail < size { (tail, size) } else { (tail - size, self.head) };
        self.bytes.get_mut(from..to).unwrap_or_default()
    }

    fn consume(&mut self, n: usize) {
        self.len -= n;
        self.head = if self.len == 0 { 0 } else { (self.head + n) & (self.bytes.len() - 1) };
    }
}

/// A pipe.
pub struct Pipe {
    ring: RwLock<Ring>,
    /// Bytes in the ring; changed under its lock, read without.
    used: AtomicUsize,
    capacity: AtomicUsize,
    readers: AtomicU32,
    writers: AtomicU32,
    /// How often an end was opened, ever: who waits for the other side notices one that came and went.
    reader_opens: AtomicU32,
    writer_opens: AtomicU32,
    can_read: WaitQueue,
    can_write: WaitQueue,
}

// All atomics of a pipe are SeqCst: a sleeper enters a wait queue and then reads them, a waker changes them and then
// looks at the queue, which only a single order of all four steps makes safe. The queue's lock orders them too; that
// is a matter of wait.rs, and these are nowhere hot enough to depend on it.
use Ordering::SeqCst;

impl Pipe {
    /// An empty pipe with no end open.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            ring: RwLock::new(Ring { bytes: Vec::new(), head: 0, len: 0 }),
            used: AtomicUsize::new(0),
            capacity: AtomicUsize::new(DEFAULT_CAPACITY),
            readers: AtomicU32::new(0),
            writers: AtomicU32::new(0),
            reader_opens: AtomicU32::new(0),
            writer_opens: AtomicU32::new(0),
            can_read: WaitQueue::new(),
            can_write: WaitQueue::new(),
        })
    }

    /// Bytes that a read would get.
    pub fn available(&self) -> usize {
        self.used.load(SeqCst)
    }

    fn room(&self) -> usize {
        self.capacity.load(SeqCst).saturating_sub(self.available())
    }

    /// Capacity in bytes.
    pub fn capacity(&self) -> usize {
        self.capacity.load(SeqCst)
    }

    /// Set the capacity to `bytes`, rounded up to a power of two pages. EBUSY if more is in it, EPERM if too large.
    pub fn set_capacity(&self, bytes: usize) -> Result<usize> {
        if bytes > MAX_CAPACITY {
            return Err(Errno::EPERM);
        }
        let size = bytes.max(PIPE_BUF).next_power_of_two();
        let ring = self.ring.write(&task::unpinned());
        if ring.len > size {
            return Err(Errno::EBUSY);
        }
        self.capacity.store(size, SeqCst);
        drop(ring);
        self.can_write.wake_all();
        Ok(size)
    }

    /// Take what is there into `sink`; 0 bytes means that there is nothing.
    fn take(&self, sink: &mut dyn Sink) -> Result<usize> {
        let mut ring = self.ring.write(&task::unpinned());
        let before = self.room();
        let mut done = 0;
        while ring.len > 0 && sink.room() > 0 {
            let piece = ring.used().0;
            let want = piece.len().min(sink.room());
            let got = sink.put(piece.get(..want).unwrap_or(piece));
            ring.consume(got);
            done += got;
            if got < want {
                done = moved(done, want, Errno::EFAULT)?;
                break;
            }
        }
        self.used.store(ring.len, SeqCst);
        drop(ring);
        if done > 0 && before < PIPE_BUF {
            self.can_write.wake_all();
        }
        Ok(done)
    }

    /// Put as much of `source` as fits, but nothing if less than `piece` bytes fit. Says how much went, and whether a
    /// bad address ended it.
    fn put(&self, source: &mut dyn Source, piece: usize) -> Result<(usize, bool)> {
        let mut ring = self.ring.write(&task::unpinned());
        let was_empty = ring.len == 0;
        let room = self.room();
        if room < piece {
            return Ok((0, false));
        }
        let total = source.left().min(room);
        ring.reserve(total)?;
        let mut done = 0;
        let mut fault = false;
        while done < total {
            let space = ring.unused();
            let want = space.len().min(total - done);
            let got = space.get_mut(..want).map_or(0, |space| source.take(space));
            ring.len += got;
            done += got;
            if got < want {
                fault = true;
                break;
            }
        }
        self.used.store(ring.len, SeqCst);
        drop(ring);
        if was_empty && done > 0 {
            self.can_read.wake_all();
        }
        Ok((done, fault))
    }

    /// Read into `sink`: waits until there is something, unless `block` is false. 0 at the end: empty, no writer.
    pub fn read(&self, sink: &mut dyn Sink, block: bool) -> Result<usize> {
        if sink.room() == 0 {
            return Ok(0);
        }
        loop {
            let ended = self.writers.load(SeqCst) == 0;
            let n = if self.available() > 0 { self.take(sink)? } else { 0 };
            if n > 0 || ended {
                return Ok(n);
            }
            if !block {
                return Err(Errno::EAGAIN);
            }
            let ready = || (self.available() > 0 || self.writers.load(SeqCst) == 0).then_some(());
            self.can_read.wait(None, true, ready).map_err(|_| Errno::RESTART)?;
        }
    }

    /// EPIPE with SIGPIPE if nobody can read.
    pub fn check_readers(&self) -> Result<()> {
        if self.readers.load(SeqCst) == 0 {
            super::raise(c::SIGPIPE);
            return Err(Errno::EPIPE);
        }
        Ok(())
    }

    /// Write all of `source`; without `block` what fits. EPIPE with SIGPIPE if nobody can read.
    pub fn write(&self, source: &mut dyn Source, block: bool) -> Result<usize> {
        let total = source.left();
        let mut done = 0;
        while done < total {
            if let Err(e) = self.check_readers() {
                return moved(done, 1, e);
            }
            let piece = if total <= PIPE_BUF { total } else { 1 };
            let (n, fault) = match self.put(source, piece) {
                Ok(result) => result,
                Err(e) => return moved(done, 1, e),
            };
            done += n;
            if fault {
                return moved(done, 1, Errno::EFAULT);
            }
            if n > 0 {
                continue;
            }
            if !block {
                return moved(done, 1, Errno::EAGAIN);
            }
            let ready = || (self.room() >= piece || self.readers.load(SeqCst) == 0).then_some(());
            if self.can_write.wait(None, true, ready).is_err() {
                return moved(done, 1, Errno::RESTART);
            }
        }
        Ok(done)
    }
}

/// One open end of a pipe (or both, for a named pipe opened for reading and writing).
pub struct PipeEnd {
    pipe: Arc<Pipe>,
    reads: bool,
    writes: bool,
    /// For a reader that was opened while nobody wrote: how often a writer had been opened then. The pipe is merely
    /// empty for it, not at its end, until one comes.
    before_writers: Option<u32>,
}

impl PipeEnd {
    /// Open an end, without waiting for the other.
    pub fn new(pipe: Arc<Pipe>, reads: bool, writes: bool) -> Self {
        if reads {
            pipe.readers.fetch_add(1, SeqCst);
            pipe.reader_opens.fetch_add(1, SeqCst);
            pipe.can_write.wake_all();
        }
        if writes {
            pipe.writers.fetch_add(1, SeqCst);
            pipe.writer_opens.fetch_add(1, SeqCst);
            pipe.can_read.wake_all();
        }
        Self { pipe, reads, writes, before_writers: None }
    }

    /// Open an end of a named pipe, as `open` does: waits for the other side, unless `block` is false. ENXIO for a
    /// writer that would wait but must not.
    pub fn open(pipe: Arc<Pipe>, reads: bool, writes: bool, block: bool) -> Result<Self> {
        let (reader_opens, writer_opens) = (pipe.reader_opens.load(SeqCst), pipe.writer_opens.load(SeqCst));
        // Who was there before us may be gone by the time we look again: our coming is all that it waited for. Asked
        // after the counts of opens, so that one who comes in between shows there.
        let met_before = if reads { &pipe.writers } else { &pipe.readers }.load(SeqCst) > 0;
        if writes && !reads && !block && pipe.readers.load(SeqCst) == 0 {
            return Err(Errno::ENXIO);
        }
        let mut end = Self::new(pipe, reads, writes);
        if !block || (reads && writes) {
            end.before_writers = (end.pipe.writers.load(SeqCst) == 0).then_some(writer_opens);
            return Ok(end);
        }
        if met_before {
            return Ok(end);
        }
        let pipe = &end.pipe;
        let (queue, opens, before) = if reads {
            (&pipe.can_read, &pipe.writer_opens, writer_opens)
        } else {
            (&pipe.can_write, &pipe.reader_opens, reader_opens)
        };
        let met = || (opens.load(SeqCst) != before).then_some(());
        queue.wait(None, true, met).map_err(|_| Errno::RESTART)?;
        Ok(end)
    }

    /// The pipe.
    pub fn pipe(&self) -> &Pipe {
        &self.pipe
    }

    /// What can be done now without waiting, and what to wait on.
    pub fn readiness(&self) -> Readiness<'_> {
        let pipe = &*self.pipe;
        let (mut events, mut queues) = (Events::empty(), [None, None]);
        if self.reads {
            events.set(Events::IN, pipe.available() > 0);
            let ended = pipe.writers.load(SeqCst) == 0;
            events.set(Events::HUP, ended && self.before_writers != Some(pipe.writer_opens.load(SeqCst)));
            queues[0] = Some(&pipe.can_read);
        }
        if self.writes {
            events.set(Events::OUT, pipe.room() >= PIPE_BUF);
            events.set(Events::ERR, pipe.readers.load(SeqCst) == 0);
            queues[1] = Some(&pipe.can_write);
        }
        Readiness { events, queues }
    }
}

impl Drop for PipeEnd {
    fn drop(&mut self) {
        if self.reads && self.pipe.readers.fetch_sub(1, SeqCst) == 1 {
            self.pipe.can_write.wake_all();
        }
        if self.writes && self.pipe.writers.fetch_sub(1, SeqCst) == 1 {
            self.pipe.can_read.wake_all();
        }
    }
}

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

use addr::PAGE_BYTES;
use linux_raw_sys::general as c;
use sync::RwLock;

use super::{
    Result,
    io::{KernelBuffer, Sink, Source, moved},
    page::PageShare,
    poll::{Events, Readiness},
};
use crate::{errno::Errno, task, wait::WaitQueue};

/// Bytes that go in one piece.
const PIPE_BUF: usize = c::PIPE_BUF as usize;
/// Capacity of a new pipe in bytes.
const DEFAULT_CAPACITY: usize = 64 << 10;
/// The greatest capacity; Linux's /proc/sys/fs/pipe-max-size.
const MAX_CAPACITY: usize = 1 << 20;

/// The bytes of a pipe: byte number n since the pipe was made is in page n / 4096, counted around the ring. A page gets
/// a frame when it is first written, and all but one give it back when the ring is empty.
struct Ring {
    pages: Vec<Option<PageShare>>,
    /// Number of the oldest byte.
    head: usize,
    len: usize,
}

impl Ring {
    /// A ring of `bytes`, a multiple of the page size.
    fn new(bytes: usize) -> Result<Self> {
        let mut pages = Vec::new();
        let count = bytes / PAGE_BYTES;
        pages.try_reserve_exact(count).map_err(|_| Errno::ENOMEM)?;
        pages.resize_with(count, || None);
        Ok(Self { pages, head: 0, len: 0 })
    }

    fn capacity(&self) -> usize {
        self.pages.len() * PAGE_BYTES
    }

    /// Where byte number `n` is: index of the page, and offset in it.
    fn place(&self, n: usize) -> (usize, usize) {
        (n / PAGE_BYTES % self.pages.len().max(1), n % PAGE_BYTES)
    }

    /// Move up to `len` of the oldest bytes to `sink`, as far as the end of a page; says how many were to go, and went.
    fn take(&mut self, len: usize, sink: &mut dyn Sink) -> (usize, usize) {
        let (page, offset) = self.place(self.head);
        let want = len.min(self.len).min(PAGE_BYTES - offset);
        let got = match self.pages.get(page) {
            Some(Some(page)) => page.read(offset, want, sink),
            _ => 0,
        };
        self.head += got;
        self.len -= got;
        if self.len == 0 {
            self.head = 0;
            self.pages.iter_mut().skip(1).for_each(|p| *p = None);
        }
        (want, got)
    }

    /// Add up to `len` bytes from `source`, as far as the end of a page and as there is room; says how many were to
    /// come, and came. ENOMEM.
    fn put(&mut self, len: usize, source: &mut dyn Source) -> Result<(usize, usize)> {
        let (page, offset) = self.place(self.head + self.len);
        let want = len.min(self.capacity() - self.len).min(PAGE_BYTES - offset);
        let slot = self.pages.get_mut(page).ok_or(Errno::ENOMEM)?;
        if slot.is_none() {
            *slot = PageShare::uncleared();
        }
        let got = slot.as_ref().ok_or(Errno::ENOMEM)?.write(offset, want, source);
        self.len += got;
        Ok((want, got))
    }

    /// The same bytes in a ring of `bytes`, which are enough for them. ENOMEM.
    fn resized(&mut self, bytes: usize) -> Result<Self> {
        let mut other = Self::new(bytes)?;
        for slot in other.pages.iter_mut().take(self.len.div_ceil(PAGE_BYTES)) {
            *slot = Some(PageShare::uncleared().ok_or(Errno::ENOMEM)?);
        }
        let mut copy = [0; 512];
        while self.len > 0 {
            let (_, n) = self.take(copy.len(), &mut KernelBuffer { free: &mut copy });
            let mut rest = copy.get(..n).unwrap_or(&[]);
            while !rest.is_empty() {
                other.put(rest.len(), &mut rest)?;
            }
        }
        Ok(other)
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
    /// An empty pipe with no end open. ENOMEM.
    pub fn new() -> Result<Arc<Self>> {
        let ring = Ring::new(DEFAULT_CAPACITY)?;
        Ok(Arc::new(Self {
            ring: RwLock::new(ring),
            used: AtomicUsize::new(0),
            capacity: AtomicUsize::new(DEFAULT_CAPACITY),
            readers: AtomicU32::new(0),
            writers: AtomicU32::new(0),
            reader_opens: AtomicU32::new(0),
            writer_opens: AtomicU32::new(0),
            can_read: WaitQueue::new(),
            can_write: WaitQueue::new(),
        }))
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
        let mut ring = self.ring.write(&task::unpinned());
        if ring.len > size {
            return Err(Errno::EBUSY);
        }
        *ring = ring.resized(size)?;
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
            let (want, got) = ring.take(sink.room(), sink);
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
        } else if done > 0 {
            self.can_write.notify();
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
        let (mut done, mut fault) = (0, false);
        while done < total && !fault {
            match ring.put(total - done, source) {
                Ok((want, got)) => {
                    done += got;
                    fault = got < want;
                }
                Err(e) if done == 0 => return Err(e),
                Err(_) => break,
            }
        }
        self.used.store(ring.len, SeqCst);
        drop(ring);
        if was_empty && done > 0 {
            self.can_read.wake_all();
        } else if done > 0 {
            self.can_read.notify();
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

    /// Wait until there is room for some bytes, unless `block` is false: for how many. EPIPE, EAGAIN.
    pub fn await_room(&self, block: bool) -> Result<usize> {
        loop {
            self.check_readers()?;
            match self.room() {
                0 if !block => return Err(Errno::EAGAIN),
                0 => {}
                room => return Ok(room),
            }
            let ready = || (self.room() > 0 || self.readers.load(SeqCst) == 0).then_some(());
            self.can_write.wait(None, true, ready).map_err(|_| Errno::RESTART)?;
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

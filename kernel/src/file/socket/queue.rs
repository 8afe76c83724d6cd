//! One end of a connection: what has come in for it and not been read, and how things stand.
//!
//! Ends don't know sockets, and a message knows the end that sent it, for the account: bytes in flight are charged to
//! the sender, as on Linux, up to its SO_SNDBUF, and a message costs [`OVERHEAD`] besides its bytes. Two ends may thus
//! hold each other by unread messages; an end that is closed drops those it has.

use alloc::{collections::VecDeque, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicI32, AtomicU8, AtomicUsize, Ordering};

use sync::{RwLock, SpinLock};

use super::{Address, Credentials, passing::Passed};
use crate::{errno::Errno, file::Result, wait::WaitQueue};

/// What a message is charged besides its bytes: about what the kernel needs for it.
pub const OVERHEAD: usize = 256;
/// Bytes that a stream's message may grow to when more is written before it is read.
const GROWTH: usize = 16 << 10;
/// The most messages that wait at a datagram socket (Linux's /proc/sys/net/unix/max_dgram_qlen, plus one).
const MOST_DATAGRAMS: usize = 11;

/// `shutdown` bits: nothing more is received.
pub const NO_RECEIVE: u8 = 1;
/// Nothing more is sent.
pub const NO_SEND: u8 = 2;
/// The socket is closed.
pub const CLOSED: u8 = 4;

/// A message, or for streams a stretch of bytes.
pub struct Packet {
    /// The bytes, of which `start..` have not been read.
    pub bytes: Vec<u8>,
    /// How many have been read.
    pub start: usize,
    /// What came along.
    pub passed: Passed,
    /// Who sent it.
    pub credentials: Credentials,
    /// The name of the socket that it came from.
    pub from: Arc<Address>,
    /// The end that it came from.
    pub sender: Arc<End>,
    charge: usize,
}

impl Packet {
    /// A message from `sender`, charged to it.
    pub fn new(
        bytes: Vec<u8>,
        passed: Passed,
        credentials: Credentials,
        from: Arc<Address>,
        sender: &Arc<End>,
    ) -> Self {
        let charge = bytes.capacity() + OVERHEAD;
        sender.charge(charge);
        Self { bytes, start: 0, passed, credentials, from, sender: sender.clone(), charge }
    }

    /// What has not been read.
    pub fn unread(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }
}

impl Drop for Packet {
    fn drop(&mut self) {
        self.sender.discharge(self.charge);
    }
}

#[derive(Default)]
struct Queue {
    packets: VecDeque<Packet>,
    /// A reader has the first one in its hands, and may put it back.
    in_hand: bool,
    bytes: usize,
}

/// See the module's text.
pub struct End {
    queue: SpinLock<Queue>,
    /// One reader at a time, so that a stream's bytes stay in order.
    pub reading: RwLock<()>,
    shutdown: AtomicU8,
    error: AtomicI32,
    /// Bytes in flight from here.
    sent: AtomicUsize,
    /// The most of those.
    limit: AtomicUsize,
    /// Woken when there is something to read, or never will be.
    pub readable: WaitQueue,
    /// Woken when there is room to send, or never will be.
    pub writable: WaitQueue,
    /// Woken when a message was taken from here.
    pub room: WaitQueue,
}

// The atomics of an end are SeqCst: a sleeper enters a wait queue and then reads them, a waker changes them and then
// looks at the queue, which only a single order of all four steps makes safe; none of them is hot.
use Ordering::SeqCst;

impl End {
    /// A fresh end that may have `limit` bytes in flight.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            queue: SpinLock::new(Queue::default()),
            reading: RwLock::new(()),
            shutdown: AtomicU8::new(0),
            error: AtomicI32::new(0),
            sent: AtomicUsize::new(0),
            limit: AtomicUsize::new(limit),
            readable: WaitQueue::new(),
            writable: WaitQueue::new(),
            room: WaitQueue::new(),
        })
    }

    /// The shutdown bits.
    pub fn state(&self) -> u8 {
        self.shutdown.load(SeqCst)
    }

    /// Whether any of the shutdown bits `bits` is set.
    pub fn is(&self, bits: u8) -> bool {
        self.state() & bits != 0
    }

    /// Set shutdown bits, and wake everyone.
    pub fn shut(&self, bits: u8) {
        {
            // Under the lock, so that `push` adds nothing afterwards.
            let _queue = self.queue.lock();
            self.shutdown.fetch_or(bits, SeqCst);
        }
        self.wake();
    }

    fn wake(&self) {
        self.readable.wake_all();
        self.writable.wake_all();
        self.room.wake_all();
    }

    /// Give the next call `error`.
    pub fn fail(&self, error: Errno) {
        self.error.store(error.0, SeqCst);
    }

    /// Whether there is an error to tell.
    pub fn has_failed(&self) -> bool {
        self.error.load(SeqCst) != 0
    }

    /// The error to tell, once.
    pub fn take_error(&self) -> Option<Errno> {
        match self.error.swap(0, SeqCst) {
            0 => None,
            e => Some(Errno(e)),
        }
    }

    /// The most bytes in flight.
    pub fn limit(&self) -> usize {
        self.limit.load(SeqCst)
    }

    /// Set the most bytes in flight.
    pub fn set_limit(&self, bytes: usize) {
        self.limit.store(bytes, SeqCst);
        self.writable.wake_all();
    }

    fn charge(&self, bytes: usize) {
        self.sent.fetch_add(bytes, SeqCst);
    }

    fn discharge(&self, bytes: usize) {
        self.sent.fetch_sub(bytes, SeqCst);
        self.writable.wake_all();
    }

    /// Bytes in flight from here.
    pub fn in_flight(&self) -> usize {
        self.sent.load(SeqCst)
    }

    /// Whether something may be sent; it may go beyond the limit.
    pub fn may_send(&self) -> bool {
        self.in_flight() < self.limit()
    }

    /// Whether `poll` calls it writable: three quarters are free, as on Linux.
    pub fn is_writable(&self) -> bool {
        self.in_flight().saturating_mul(4) <= self.limit()
    }

    /// Whether there is something to read.
    pub fn has_some(&self) -> bool {
        let queue = self.queue.lock();
        queue.in_hand || !queue.packets.is_empty()
    }

    /// Whether a datagram would have to wait.
    pub fn is_full(&self) -> bool {
        self.queue.lock().packets.len() >= MOST_DATAGRAMS
    }

    /// Bytes that can be read; `first`: of the first message alone.
    pub fn available(&self, first: bool) -> usize {
        let queue = self.queue.lock();
        if first { queue.packets.front().map_or(0, |p| p.unread().len()) } else { queue.bytes }
    }

    /// Bring `packet` here. `stream`: it may join the one before. The packet comes back if nothing is received any
    /// more, or memory is short.
    pub fn push(&self, mut packet: Packet, stream: bool) -> core::result::Result<(), (Errno, Packet)> {
        {
            let mut queue = self.queue.lock();
            if self.is(CLOSED | NO_RECEIVE) {
                drop(queue);
                return Err((Errno::EPIPE, packet));
            }
            let more = packet.bytes.len();
            let joined = stream
                && packet.passed.is_empty()
                && queue.packets.back_mut().is_some_and(|last| last.join(&packet));
            if joined {
                // The bytes are the last one's now, and so is their charge; the rest is given back with the packet.
                packet.charge -= more;
            } else if queue.packets.try_reserve(1).is_err() {
                drop(queue);
                return Err((Errno::ENOMEM, packet));
            }
            queue.bytes += more;
            if joined {
                drop(queue);
                drop(packet);
            } else {
                queue.packets.push_back(packet);
            }
        }
        self.readable.wake_all();
        Ok(())
    }

    /// Take the first message in hand; `files`: even if files come with it. None: there is none; Some(None): it has
    /// files. Ended by [`Self::put_back`] or [`Self::taken`].
    pub fn take(&self, files: bool) -> Option<Option<Packet>> {
        let mut queue = self.queue.lock();
        if !files && !queue.packets.front()?.passed.is_empty() {
            return Some(None);
        }
        let packet = queue.packets.pop_front()?;
        queue.in_hand = true;
        queue.bytes -= packet.unread().len();
        Some(Some(packet))
    }

    /// The message in hand goes back to the front, unless the end was closed meanwhile.
    pub fn put_back(&self, packet: Packet) {
        let mut queue = self.queue.lock();
        queue.in_hand = false;
        queue.bytes += packet.unread().len();
        // There is room: it was just taken out.
        queue.packets.push_front(packet);
    }

    /// The message in hand is gone.
    pub fn taken(&self) {
        self.queue.lock().in_hand = false;
        self.room.wake_all();
    }

    /// Everything that waits, taken out.
    pub fn take_all(&self) -> VecDeque<Packet> {
        let mut queue = self.queue.lock();
        queue.bytes = 0;
        core::mem::take(&mut queue.packets)
    }

    /// Show the files of each message to `each`.
    pub fn each_passed(&self, each: &mut dyn FnMut(&Passed)) {
        self.queue.lock().packets.iter().for_each(|p| each(&p.passed));
    }
}

impl Packet {
    /// Take the bytes of `next`, the next in the same stream, if they look like one write.
    fn join(&mut self, next: &Packet) -> bool {
        let joins = self.passed.is_empty()
            && self.credentials == next.credentials
            && Arc::ptr_eq(&self.sender, &next.sender)
            && self.bytes.len() + next.bytes.len() <= GROWTH
            && self.bytes.try_reserve(next.bytes.len()).is_ok();
        if joins {
            self.bytes.extend_from_slice(&next.bytes);
            self.charge += next.bytes.len();
        }
        joins
    }
}

/// A copy of `files`, for a look at a message that stays. ENOMEM.
pub fn copies(passed: &Passed) -> Result<Vec<Arc<crate::file::OpenFile>>> {
    let mut all = Vec::new();
    all.try_reserve(passed.files().len()).map_err(|_| Errno::ENOMEM)?;
    all.extend(passed.files().iter().cloned());
    Ok(all)
}

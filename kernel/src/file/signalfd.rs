//! `signalfd`: signals that are read.
//!
//! It is a view of whoever reads: the calling thread's own pending signals and its process's, whoever made the file. So
//! its sleepers can't wait on a queue of the file's; they wait on [`ARRIVALS`], one for all. Senders look at it only
//! while there are such files ([`FILES`]).

use alloc::sync::Arc;
use core::sync::atomic::{AtomicUsize, Ordering};

use linux_raw_sys::general as c;
use sync::SpinLock;

use super::{
    Result,
    io::Sink,
    open::OpenFile,
    poll::{Events, Readiness},
    special::Special,
};
use crate::{
    errno::Errno,
    signal::{self, SigSet},
    upcall,
    wait::WaitQueue,
};

/// Woken when a signal has been queued anywhere, while [`FILES`] isn't 0.
static ARRIVALS: WaitQueue = WaitQueue::new();
/// Files that exist.
static FILES: AtomicUsize = AtomicUsize::new(0);

/// Bytes of `struct signalfd_siginfo`.
const RECORD: usize = 128;

/// A signal has been queued. From any context.
pub fn arrived() {
    // Relaxed: a reader made its file before it looked for signals under the lock that the sender has just released; if
    // it didn't see the signal then, its look came first, and so this load sees the count.
    if FILES.load(Ordering::Relaxed) > 0 {
        ARRIVALS.wake_all();
    }
}

/// The signals that may be read.
pub struct SignalFile {
    set: SpinLock<SigSet>,
}

impl SignalFile {
    /// A file that gives the signals of `set`; `flags` may have O_NONBLOCK. ENOMEM.
    pub fn open(set: SigSet, flags: u32) -> Result<Arc<OpenFile>> {
        // Relaxed: see `arrived`.
        FILES.fetch_add(1, Ordering::Relaxed);
        Special::Signals(Self { set: SpinLock::new(set) }).open(c::O_RDWR | flags & c::O_NONBLOCK)
    }

    /// Give those of `set` from now on.
    pub fn set(&self, set: SigSet) {
        *self.set.lock() = set;
        ARRIVALS.wake_all();
    }

    fn wanted(&self) -> SigSet {
        *self.set.lock()
    }

    /// Read as many records as there are signals and there is room for. EINVAL if that is none.
    pub fn read(&self, sink: &mut dyn Sink, block: bool) -> Result<usize> {
        if sink.room() < RECORD {
            return Err(Errno::EINVAL);
        }
        let mut done = 0;
        while sink.room() >= RECORD {
            let set = self.wanted();
            let info = match signal::take_pending(set) {
                Some(info) => info,
                None if done > 0 => break,
                None if !block => return Err(Errno::EAGAIN),
                None => {
                    let there = || signal::has_pending(self.wanted()).then_some(());
                    ARRIVALS.wait(None, true, there).map_err(|_| Errno::RESTART)?;
                    continue;
                }
            };
            if upcall::owed(|| sink.put(&info.record())) < RECORD {
                return super::io::moved(done, 1, Errno::EFAULT);
            }
            done += RECORD;
        }
        Ok(done)
    }

    /// Readable when the calling thread has such a signal.
    pub fn readiness(&self) -> Readiness<'_> {
        let events = if signal::has_pending(self.wanted()) { Events::IN } else { Events::empty() };
        Readiness { events, queues: [Some(&ARRIVALS), None] }
    }
}

impl Drop for SignalFile {
    fn drop(&mut self) {
        // Relaxed: a count that is too high for a moment costs a wake.
        FILES.fetch_sub(1, Ordering::Relaxed);
    }
}

//! `eventfd`: a counter to wait on.

use linux_raw_sys::general as c;
use sync::SpinLock;

use super::{
    Result,
    io::{Sink, Source},
    poll::{Events, Readiness},
};
use crate::{errno::Errno, upcall, wait::WaitQueue};

/// The greatest value of the counter.
const MAX: u64 = u64::MAX - 1;

/// A counter: reads take from it and wait for more than zero, writes add to it and wait for room.
pub struct Event {
    count: SpinLock<u64>,
    semaphore: bool,
    readable: WaitQueue,
    writable: WaitQueue,
}

impl Event {
    /// A counter at `count`. `semaphore`: a read takes one rather than all.
    pub fn new(count: u32, semaphore: bool) -> Self {
        Self {
            count: SpinLock::new(u64::from(count)),
            semaphore,
            readable: WaitQueue::new(),
            writable: WaitQueue::new(),
        }
    }

    fn take(&self) -> Option<u64> {
        let mut count = self.count.lock();
        let taken = if self.semaphore { (*count).min(1) } else { *count };
        *count -= taken;
        (taken > 0).then_some(taken)
    }

    fn add(&self, n: u64) -> Option<()> {
        let mut count = self.count.lock();
        *count = count.checked_add(n).filter(|&sum| sum <= MAX)?;
        Some(())
    }

    /// What `attempt` gives once it gives something: then those who wait for `after` can go on.
    fn retry<R>(
        &self,
        block: bool,
        mut attempt: impl FnMut() -> Option<R>,
        before: &WaitQueue,
        after: &WaitQueue,
    ) -> Result<R> {
        let result = match attempt() {
            Some(r) => r,
            None if !block => return Err(Errno::EAGAIN),
            None => before.wait(None, true, attempt).map_err(|_| Errno::RESTART)?,
        };
        after.wake_all();
        Ok(result)
    }

    /// Read eight bytes. EINVAL for a smaller buffer.
    pub fn read(&self, sink: &mut dyn Sink, block: bool) -> Result<usize> {
        if sink.room() < size_of::<u64>() {
            return Err(Errno::EINVAL);
        }
        let taken = self.retry(block, || self.take(), &self.readable, &self.writable)?;
        if upcall::owed(|| sink.put(&taken.to_ne_bytes())) < size_of::<u64>() {
            Err(Errno::EFAULT)
        } else {
            Ok(size_of::<u64>())
        }
    }

    /// Write eight bytes. EINVAL for another number of them, or for the value 2^64 - 1.
    pub fn write(&self, source: &mut dyn Source, block: bool) -> Result<usize> {
        let mut bytes = [0; size_of::<u64>()];
        if source.left() != bytes.len() {
            return Err(Errno::EINVAL);
        }
        if source.take(&mut bytes) < bytes.len() {
            return Err(Errno::EFAULT);
        }
        let n = u64::from_ne_bytes(bytes);
        if n > MAX {
            return Err(Errno::EINVAL);
        }
        self.retry(block, || self.add(n), &self.writable, &self.readable)?;
        Ok(bytes.len())
    }

    /// What can be done now.
    pub fn readiness(&self) -> Readiness<'_> {
        let count = *self.count.lock();
        let mut events = Events::empty();
        events.set(Events::IN, count > 0);
        events.set(Events::OUT, count < MAX);
        Readiness { events, queues: [Some(&self.readable), Some(&self.writable)] }
    }
}

/// Whether `flags` of `eventfd2` are known.
pub fn flags_are_known(flags: u32) -> bool {
    flags & !(c::EFD_SEMAPHORE | c::EFD_CLOEXEC | c::EFD_NONBLOCK) == 0
}

//! `pidfd`: a process to wait for and to signal, that stays the same one when its id is used again.

use alloc::sync::Arc;

use linux_raw_sys::general as c;

use super::{
    Result,
    open::OpenFile,
    poll::{Events, Readiness},
    special::Special,
};
use crate::{errno::Errno, ids, process::Process};

/// A process, ended or not. It may have been collected.
pub struct ProcessFile {
    process: Arc<Process>,
}

impl ProcessFile {
    /// A descriptor's file for `process`; `flags` may have O_NONBLOCK. ENOMEM.
    pub fn open(process: Arc<Process>, flags: u32) -> Result<Arc<OpenFile>> {
        Special::Process(Self { process }).open(c::O_RDWR | flags & c::O_NONBLOCK)
    }

    /// The process.
    pub fn process(&self) -> &Arc<Process> {
        &self.process
    }

    /// Whether its parent has collected it, so that nothing of it can be found any more.
    pub fn is_collected(&self) -> bool {
        self.process.ended().is_some() && !self.is_entered()
    }

    /// The process, unless it has been collected, or is not there yet: its descriptor is given out first. ESRCH.
    pub fn alive_or_zombie(&self) -> Result<&Arc<Process>> {
        if self.is_entered() { Ok(&self.process) } else { Err(Errno::ESRCH) }
    }
    fn is_entered(&self) -> bool {
        ids::with(self.process.pid, |p: &Arc<Process>| Arc::ptr_eq(p, &self.process)) == Some(true)
    }

    /// Readable once the process has ended; the other side is gone once it has been collected.
    pub fn readiness(&self) -> Readiness<'_> {
        let mut events = Events::empty();
        events.set(Events::IN, self.process.ended().is_some());
        events.set(Events::HUP, self.is_collected());
        Readiness { events, queues: [Some(&self.process.thread_wait), None] }
    }
}

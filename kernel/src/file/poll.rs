//! Readiness: what a file can do now without waiting.

use bitflags::bitflags;
use linux_raw_sys::general as c;

use crate::wait::WaitQueue;

bitflags! {
    /// What `poll` tells, with its bits.
    #[derive(Clone, Copy, PartialEq, Eq, Default)]
    pub struct Events: u16 {
        /// A read would not wait.
        const IN = c::POLLIN as u16;
        /// Urgent data; never set here, but may be asked for.
        const PRI = c::POLLPRI as u16;
        /// A write would not wait.
        const OUT = c::POLLOUT as u16;
        /// The other side is gone: a write fails.
        const ERR = c::POLLERR as u16;
        /// The other side has hung up.
        const HUP = c::POLLHUP as u16;
        /// No such file descriptor.
        const NVAL = c::POLLNVAL as u16;
        /// As IN.
        const RDNORM = c::POLLRDNORM as u16;
        /// As OUT.
        const WRNORM = c::POLLWRNORM as u16;
        /// The other side of a socket will send no more.
        const RDHUP = c::POLLRDHUP as u16;
    }
}

/// The state of a file, and the queues that are woken when it changes.
pub struct Readiness<'a> {
    /// What can be done now.
    pub events: Events,
    /// At most one queue for reading and one for writing.
    pub queues: [Option<&'a WaitQueue>; 2],
}

impl Readiness<'_> {
    /// A file that never makes anyone wait.
    pub const ALWAYS: Readiness<'static> =
        Readiness { events: Events::IN.union(Events::OUT), queues: [None, None] };
}

impl Events {
    /// With the synonyms that `poll` knows for IN and OUT.
    pub fn with_synonyms(self) -> Self {
        let mut all = self;
        all.set(Events::RDNORM, self.contains(Events::IN));
        all.set(Events::WRNORM, self.contains(Events::OUT));
        all
    }
}

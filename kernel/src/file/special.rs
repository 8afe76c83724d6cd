//! Files that are neither bytes at offsets nor names in the tree: what `socket`, `epoll_create`, `timerfd_create`,
//! `pidfd_open` and `signalfd` make. Each has one module; here is what they have in common for the rest.

use alloc::sync::Arc;

use linux_raw_sys::general as c;

use super::{
    Result,
    entry::Entry,
    epoll::Epoll,
    inode::{Inode, Kind, Volume},
    io::{Sink, Source},
    open::OpenFile,
    pidfd::ProcessFile,
    poll::Readiness,
    signalfd::SignalFile,
    socket::Socket,
    timerfd::TimerFile,
};
use crate::{errno::Errno, memory, userfault::UserFaults};

/// One of the kinds of special file.
pub enum Special {
    /// One end of a connection, or what makes one.
    Socket(Arc<Socket>),
    /// A set of files to wait for.
    Epoll(Arc<Epoll>),
    /// A timer to read.
    Timer(TimerFile),
    /// A process to wait for.
    Process(ProcessFile),
    /// Signals to read.
    Signals(SignalFile),
    /// Page faults to read.
    Faults(UserFaults),
}

impl Special {
    /// The type bits of `st_mode`.
    pub fn type_bits(&self) -> u32 {
        if matches!(self, Special::Socket(_)) { c::S_IFSOCK } else { 0 }
    }

    /// What /proc shows for it; `number` is the inode's.
    fn name(&self, number: u64) -> alloc::string::String {
        match self {
            Special::Socket(_) => alloc::format!("socket:[{number}]"),
            Special::Epoll(_) => "anon_inode:[eventpoll]".into(),
            Special::Timer(_) => "anon_inode:[timerfd]".into(),
            Special::Process(_) => "anon_inode:[pidfd]".into(),
            Special::Signals(_) => "anon_inode:[signalfd]".into(),
            Special::Faults(_) => "anon_inode:[userfaultfd]".into(),
        }
    }

    /// Open it, with `flags` of `open`. ENOMEM when memory is short.
    pub fn open(self, flags: u32) -> Result<Arc<OpenFile>> {
        if memory::frames().low() {
            return Err(Errno::ENOMEM);
        }
        let mode = if matches!(self, Special::Socket(_)) { 0o777 } else { 0o600 };
        let inode = Inode::new(Kind::Special(self), mode, Volume::Anonymous);
        let name = match &inode.kind {
            Kind::Special(special) => special.name(inode.number),
            _ => Default::default(),
        };
        Ok(OpenFile::plain(Entry::anonymous(name.as_bytes(), inode), flags))
    }

    /// Read. EINVAL for what can't be read.
    pub fn read(&self, sink: &mut dyn Sink, block: bool) -> Result<usize> {
        match self {
            Special::Socket(socket) => socket.read(sink, block),
            Special::Timer(timer) => timer.read(sink, block),
            Special::Signals(signals) => signals.read(sink, block),
            Special::Faults(faults) => faults.read(sink, block),
            Special::Epoll(_) | Special::Process(_) => Err(Errno::EINVAL),
        }
    }

    /// Write. EINVAL for what can't be written.
    pub fn write(&self, source: &mut dyn Source, block: bool) -> Result<usize> {
        match self {
            Special::Socket(socket) => socket.write(source, block),
            _ => Err(Errno::EINVAL),
        }
    }

    /// What can be done now. `block`: reads would wait.
    pub fn readiness(&self, block: bool) -> Readiness<'_> {
        match self {
            Special::Socket(socket) => socket.readiness(),
            Special::Epoll(epoll) => epoll.readiness(),
            Special::Timer(timer) => timer.readiness(),
            Special::Process(process) => process.readiness(),
            Special::Signals(signals) => signals.readiness(),
            Special::Faults(faults) => faults.readiness(block),
        }
    }

    /// Whether `lseek` answers 0 rather than ESPIPE.
    pub fn seeks_nowhere(&self) -> bool {
        !matches!(self, Special::Socket(_) | Special::Process(_))
    }
}

impl OpenFile {
    /// The special file that it is, if it is one and open as such.
    pub fn special(&self) -> Option<&Special> {
        match &self.entry.inode.kind {
            Kind::Special(special) if !self.is_path() => Some(special),
            _ => None,
        }
    }

    /// The socket. ENOTSOCK.
    pub fn socket(&self) -> Result<&Arc<Socket>> {
        match self.special() {
            Some(Special::Socket(socket)) => Ok(socket),
            _ if self.is_path() => Err(Errno::EBADF),
            _ => Err(Errno::ENOTSOCK),
        }
    }
}

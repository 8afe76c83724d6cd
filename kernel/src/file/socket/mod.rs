//! Sockets of the family AF_UNIX: streams, datagrams and sequenced packets between programs on the machine.
//!
//! ```text
//!   Socket (a descriptor's)                            Socket
//!     state: Connected --- peer ---------------------->  end   what came in for it; its shutdown bits
//!     end  <------------------------------- peer --- state
//! ```
//! A socket has an [`End`]; being connected is knowing the other's. To send is to put a message into the other's end; to
//! receive is to take one from one's own. Ends outlive sockets, so nobody asks whether the other socket is still there:
//! it says so in its end's bits, and on closing in those of its peer.
//!
//! A stream is connected as a whole by `connect`: the accepted socket is made there and waits in the listener's list;
//! `accept` merely opens it.
//!
//! **Nobody sleeps through a change**: each condition is in an end's queue, bits and account, which are changed before
//! the end's wait queues are woken (`wait.rs`). Bytes are copied from and to programs with no spinning lock held: a
//! message is made before it is queued, and taken out of the queue to be read. `transfer.rs` does both, and
//! `passing.rs` has what files in messages need.
//!
//! Not served: out-of-band bytes (MSG_OOB), and that `poll` waits for room at a datagram socket that many send to (it
//! looks at the sender's own account, and a send may still have to wait).
//!
//! Source: unix(7), socket(7); Linux's net/unix/af_unix.c where they are silent.

mod name;
mod passing;
mod queue;
mod transfer;

use alloc::{collections::VecDeque, sync::Arc, vec::Vec};
use core::{
    mem,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use bitflags::bitflags;
use linux_raw_sys::general as c;
use sync::{SpinGuard, SpinLock};

pub use name::{AF_UNIX, Address};
use passing::Passed;
pub use passing::{collect_all as collect_sockets, release as release_files};
use queue::{CLOSED, End, NO_RECEIVE, NO_SEND, OVERHEAD, Packet};

use super::{
    Result,
    open::OpenFile,
    poll::{Events, Readiness},
    special::Special,
};
use crate::{
    errno::Errno,
    hw, memory, task,
    wait::{self, WaitQueue, Woken},
};

/// SO_SNDBUF and SO_RCVBUF of a new socket (Linux's net.core.wmem_default).
const DEFAULT_BUFFER: usize = 212_992;
/// The most that SO_SNDBUF may ask for (net.core.wmem_max); it is doubled then, as Linux does.
const MAX_BUFFER: usize = 212_992;
/// The least SO_SNDBUF.
const MIN_SEND_BUFFER: usize = 4608;
/// The least SO_RCVBUF.
const MIN_RECEIVE_BUFFER: usize = 2304;
/// Bytes of a stream's write that go into one message.
const PIECE: usize = 32 << 10;
/// The most connections that wait for `accept`, whatever `listen` says (net.core.somaxconn).
const MAX_BACKLOG: usize = 4096;

/// How a socket carries what is sent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Style {
    /// A stream of bytes.
    Stream,
    /// Messages, to anyone.
    Datagram,
    /// Messages over a connection.
    Sequenced,
}

impl Style {
    /// From `SOCK_STREAM` and so on. ESOCKTNOSUPPORT.
    pub fn from_type(number: u32) -> Result<Self> {
        match number {
            1 => Ok(Style::Stream),
            // As on Linux, raw ones are datagrams.
            2 | 3 => Ok(Style::Datagram),
            5 => Ok(Style::Sequenced),
            _ => Err(Errno::ESOCKTNOSUPPORT),
        }
    }
    /// `SO_TYPE`.
    pub fn number(self) -> i32 {
        match self {
            Style::Stream => 1,
            Style::Datagram => 2,
            Style::Sequenced => 5,
        }
    }
    fn connects(self) -> bool {
        self != Style::Datagram
    }
}

bitflags! {
    /// Flags of `send` and `recv`, with their bits.
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub struct Flags: u32 {
        /// Out of band; refused.
        const OOB = 0x1;
        /// Look, and leave it there.
        const PEEK = 0x2;
        /// A message was cut, or: tell how long it really is.
        const TRUNC = 0x20;
        /// Do not wait.
        const DONTWAIT = 0x40;
        /// Wait for all that was asked for.
        const WAITALL = 0x100;
        /// No SIGPIPE.
        const NOSIGNAL = 0x4000;
    }
}

/// Who sent a message or made a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Credentials {
    /// Process id.
    pub pid: u32,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

impl Credentials {
    /// Of nobody: an unconnected socket's peer.
    pub const NOBODY: Credentials = Credentials { pid: 0, uid: u32::MAX, gid: u32::MAX };

    /// The caller's.
    pub fn own() -> Self {
        Self { pid: task::current().process.pid, uid: 0, gid: 0 }
    }
}

/// What is sent besides bytes.
#[derive(Default)]
pub struct Sent {
    /// To whom, if not to the peer.
    pub to: Option<Address>,
    /// Files that go along.
    pub files: Vec<Arc<OpenFile>>,
    /// Who says that they send it.
    pub credentials: Option<Credentials>,
}

/// What was received besides bytes.
#[derive(Default)]
pub struct Received {
    /// Bytes stored, or with TRUNC the message's.
    pub bytes: usize,
    /// Whence.
    pub from: Option<Arc<Address>>,
    /// Files that came along.
    pub files: Vec<Arc<OpenFile>>,
    /// Who sent it.
    pub credentials: Option<Credentials>,
    /// The message was longer than the room.
    pub cut: bool,
    /// The room can't be written to from here on.
    faulted: bool,
}

/// The other side of a connection.
#[derive(Clone)]
struct Peer {
    end: Arc<End>,
    name: Arc<Address>,
    credentials: Credentials,
}

/// Connections that wait for `accept`.
struct Listener {
    waiting: VecDeque<Arc<Socket>>,
    backlog: usize,
    /// Who listens.
    credentials: Credentials,
}

enum State {
    Unconnected,
    Listening(Listener),
    Connected(Peer),
}

/// A socket.
pub struct Socket {
    /// How it carries what is sent.
    pub style: Style,
    end: Arc<End>,
    state: SpinLock<State>,
    name: SpinLock<Arc<Address>>,
    /// SO_PASSCRED.
    pass_credentials: AtomicBool,
    receive_buffer: AtomicU64,
    /// SO_RCVTIMEO and SO_SNDTIMEO in ns; 0 for none.
    timeouts: [AtomicU64; 2],
}

/// Which of a socket's numbers `option` reads or sets.
#[derive(Clone, Copy)]
pub enum Number {
    /// SO_PASSCRED.
    PassCredentials,
    /// SO_SNDBUF.
    SendBuffer,
    /// SO_RCVBUF.
    ReceiveBuffer,
    /// SO_RCVTIMEO, in ns.
    ReceiveTimeout,
    /// SO_SNDTIMEO, in ns.
    SendTimeout,
}

// Relaxed, for the options of a socket: words of their own.
const OPTION: Ordering = Ordering::Relaxed;

impl Socket {
    /// An unconnected socket. ENOMEM when memory is short.
    pub fn new(style: Style) -> Result<Arc<Self>> {
        if memory::frames().low() {
            return Err(Errno::ENOMEM);
        }
        Ok(Arc::new(Self {
            style,
            end: End::new(DEFAULT_BUFFER),
            state: SpinLock::new(State::Unconnected),
            name: SpinLock::new(Arc::new(Address::Unnamed)),
            pass_credentials: AtomicBool::new(false),
            receive_buffer: AtomicU64::new(DEFAULT_BUFFER as u64),
            timeouts: [AtomicU64::new(0), AtomicU64::new(0)],
        }))
    }

    /// Two that are connected to each other.
    pub fn pair(style: Style) -> Result<[Arc<Self>; 2]> {
        let (a, b) = (Self::new(style)?, Self::new(style)?);
        let credentials = Credentials::own();
        for (one, other) in [(&a, &b), (&b, &a)] {
            let peer = Peer { end: other.end.clone(), name: other.name(), credentials };
            *one.state.lock() = State::Connected(peer);
        }
        Ok([a, b])
    }

    /// Open it; `flags` may have O_NONBLOCK.
    pub fn open(self: Arc<Self>, flags: u32) -> Result<Arc<OpenFile>> {
        Special::Socket(self).open(c::O_RDWR | flags & c::O_NONBLOCK)
    }

    /// Its own name.
    pub fn name(&self) -> Arc<Address> {
        self.name.lock().clone()
    }

    fn peer(&self) -> Option<Peer> {
        match &*self.state.lock() {
            State::Connected(peer) => Some(peer.clone()),
            _ => None,
        }
    }

    /// The name of its peer. ENOTCONN.
    pub fn peer_name(&self) -> Result<Arc<Address>> {
        self.peer().map(|p| p.name).ok_or(Errno::ENOTCONN)
    }

    /// SO_PEERCRED.
    pub fn peer_credentials(&self) -> Credentials {
        match &*self.state.lock() {
            State::Connected(peer) => peer.credentials,
            State::Listening(listener) => listener.credentials,
            State::Unconnected => Credentials::NOBODY,
        }
    }

    /// Whether it listens.
    pub fn is_listening(&self) -> bool {
        matches!(*self.state.lock(), State::Listening(_))
    }

    /// SO_ERROR: what went wrong since it was last asked.
    pub fn take_error(&self) -> i32 {
        self.end.take_error().map_or(0, |e| e.0)
    }

    /// Bytes that can be read: of all for a stream, else of the first message. EINVAL for a listener.
    pub fn available(&self) -> Result<usize> {
        if self.is_listening() {
            Err(Errno::EINVAL)
        } else {
            Ok(self.end.available(!matches!(self.style, Style::Stream)))
        }
    }

    /// Bytes sent that nobody has read.
    pub fn unread(&self) -> usize {
        self.end.in_flight()
    }

    /// An option's value.
    pub fn number(&self, which: Number) -> u64 {
        let [receive, send] = &self.timeouts;
        match which {
            Number::PassCredentials => self.pass_credentials.load(OPTION).into(),
            Number::SendBuffer => self.end.limit() as u64,
            Number::ReceiveBuffer => self.receive_buffer.load(OPTION),
            Number::ReceiveTimeout => receive.load(OPTION),
            Number::SendTimeout => send.load(OPTION),
        }
    }

    /// Set an option. Buffers are doubled and kept in bounds, as on Linux; `force`: beyond the usual most.
    pub fn set_number(&self, which: Number, value: u64) {
        let [receive, send] = &self.timeouts;
        let doubled = 2 * (value as usize).min(MAX_BUFFER);
        match which {
            Number::PassCredentials => self.pass_credentials.store(value != 0, OPTION),
            Number::SendBuffer => self.end.set_limit(doubled.max(MIN_SEND_BUFFER)),
            Number::ReceiveBuffer => {
                self.receive_buffer.store(doubled.max(MIN_RECEIVE_BUFFER) as u64, OPTION)
            }
            Number::ReceiveTimeout => receive.store(value, OPTION),
            Number::SendTimeout => send.store(value, OPTION),
        }
    }

    // ---- connecting ----------------------------------------------------------------------------------------------

    /// `bind`. EINVAL if it has a name already, EADDRINUSE.
    pub fn bind(self: &Arc<Self>, name: Address) -> Result<()> {
        if *self.name() != Address::Unnamed {
            return match name {
                // Linux makes the name in the tree before it looks.
                Address::Path(_) if !matches!(name.find(self.style), Err(Errno::ENOENT)) => {
                    Err(Errno::EADDRINUSE)
                }
                Address::Unnamed => Ok(()),
                _ => Err(Errno::EINVAL),
            };
        }
        let name = match name {
            Address::Unnamed => Address::take_any(self)?,
            name => {
                name.take(self)?;
                name
            }
        };
        *self.name.lock() = Arc::new(name);
        Ok(())
    }

    /// `listen`. EOPNOTSUPP for datagrams, EINVAL without a name or when connected.
    pub fn listen(&self, backlog: u32) -> Result<()> {
        if !self.style.connects() {
            return Err(Errno::EOPNOTSUPP);
        }
        if *self.name() == Address::Unnamed {
            return Err(Errno::EINVAL);
        }
        let credentials = Credentials::own();
        let backlog = (backlog as usize).min(MAX_BACKLOG);
        {
            let mut state = self.state.lock();
            match &mut *state {
                State::Connected(_) => return Err(Errno::EINVAL),
                State::Listening(listener) => {
                    (listener.backlog, listener.credentials) = (backlog, credentials)
                }
                State::Unconnected => {
                    *state = State::Listening(Listener { waiting: VecDeque::new(), backlog, credentials });
                }
            }
        }
        self.end.room.wake_all();
        Ok(())
    }

    /// `connect`. ECONNREFUSED if nobody listens, EPROTOTYPE for another style, EISCONN, EINVAL for a listener.
    pub fn connect(self: &Arc<Self>, to: &Address, block: bool) -> Result<()> {
        if *to == Address::Unnamed {
            return Err(Errno::EINVAL);
        }
        if self.style == Style::Datagram {
            return self.connect_datagrams(to);
        }
        loop {
            let target = to.find(self.style)?;
            if target.style != self.style {
                return Err(Errno::EPROTOTYPE);
            }
            self.check_free()?;
            if self.knock(&target)? {
                return Ok(());
            }
            if !block {
                return Err(Errno::EAGAIN);
            }
            let changed = || (!target.is_crowded()).then_some(());
            self.wait(&[&target.end.room], Number::SendTimeout, changed)?;
        }
    }

    /// EISCONN if it is connected, EINVAL if it listens.
    fn check_free(&self) -> Result<()> {
        match &*self.state.lock() {
            State::Unconnected => Ok(()),
            State::Connected(_) => Err(Errno::EISCONN),
            State::Listening(_) => Err(Errno::EINVAL),
        }
    }

    /// Whether it listens and too many wait already.
    fn is_crowded(&self) -> bool {
        match &*self.state.lock() {
            State::Listening(listener) => listener.waiting.len() > listener.backlog,
            _ => false,
        }
    }

    /// Connect to the listener `target`; false if too many wait there.
    fn knock(self: &Arc<Self>, target: &Arc<Self>) -> Result<bool> {
        let accepted = Self::new(self.style)?;
        *accepted.name.lock() = target.name();
        accepted.pass_credentials.store(target.pass_credentials.load(OPTION), OPTION);
        let mine = Peer { end: self.end.clone(), name: self.name(), credentials: Credentials::own() };
        *accepted.state.lock() = State::Connected(mine);
        let (name, credentials) = (target.name(), target.peer_credentials());
        let peer = Peer { end: accepted.end.clone(), name, credentials };
        // First this one, then the listener, with one lock at a time: two that knock at each other hold none.
        match &mut *self.state.lock() {
            here @ State::Unconnected => *here = State::Connected(peer),
            _ => return Err(Errno::EISCONN),
        }
        let made = accepted.end.clone();
        let entered = target.admit(accepted);
        if !matches!(entered, Ok(true)) {
            let mut here = self.state.lock();
            if matches!(&*here, State::Connected(peer) if Arc::ptr_eq(&peer.end, &made)) {
                *here = State::Unconnected;
            }
            return entered;
        }
        target.end.readable.wake_all();
        Ok(true)
    }

    /// Have `accepted` wait for `accept`; false if too many do. ECONNREFUSED unless it listens.
    fn admit(&self, accepted: Arc<Self>) -> Result<bool> {
        let mut state = self.state.lock();
        let State::Listening(listener) = &mut *state else { return Err(refuse(state, accepted)) };
        if self.end.is(CLOSED | NO_RECEIVE) {
            return Err(refuse(state, accepted));
        }
        let room = listener.waiting.len() <= listener.backlog;
        if room && listener.waiting.try_reserve(1).is_ok() {
            listener.waiting.push_back(accepted);
            return Ok(true);
        }
        let _ = refuse(state, accepted);
        if room { Err(Errno::ENOMEM) } else { Ok(false) }
    }

    fn connect_datagrams(self: &Arc<Self>, to: &Address) -> Result<()> {
        let target = to.find(self.style)?;
        self.may_reach(&target)?;
        let peer = Peer { end: target.end.clone(), name: target.name(), credentials: Credentials::NOBODY };
        let old = mem::replace(&mut *self.state.lock(), State::Connected(peer));
        drop(old);
        Ok(())
    }

    /// EPROTOTYPE for another style, EPERM for one that is connected to somebody else.
    fn may_reach(&self, target: &Socket) -> Result<()> {
        if target.style != self.style {
            return Err(Errno::EPROTOTYPE);
        }
        match target.peer() {
            Some(peer) if !Arc::ptr_eq(&peer.end, &self.end) => Err(Errno::EPERM),
            _ => Ok(()),
        }
    }

    /// `connect` to AF_UNSPEC: a datagram socket has no peer any more. EINVAL for others.
    pub fn disconnect(&self) -> Result<()> {
        if self.style.connects() {
            return Err(Errno::EINVAL);
        }
        let old = mem::replace(&mut *self.state.lock(), State::Unconnected);
        drop(old);
        Ok(())
    }

    /// `accept`. EOPNOTSUPP for datagrams, EINVAL unless it listens.
    pub fn accept(&self, block: bool) -> Result<Arc<Self>> {
        if !self.style.connects() {
            return Err(Errno::EOPNOTSUPP);
        }
        let next = || match &mut *self.state.lock() {
            State::Listening(_) if self.end.is(NO_RECEIVE) => Some(Err(Errno::EINVAL)),
            State::Listening(listener) => listener.waiting.pop_front().map(Ok),
            _ => Some(Err(Errno::EINVAL)),
        };
        let accepted = match next() {
            Some(result) => result?,
            None if !block => return Err(Errno::EAGAIN),
            None => self.wait(&[&self.end.readable], Number::ReceiveTimeout, next)??,
        };
        self.end.room.wake_all();
        Ok(accepted)
    }

    /// `shutdown` of receiving, sending or both.
    pub fn shutdown(&self, receive: bool, send: bool) {
        let bits = |receive, send| if receive { NO_RECEIVE } else { 0 } | if send { NO_SEND } else { 0 };
        self.end.shut(bits(receive, send));
        if self.style.connects()
            && let Some(peer) = self.peer()
        {
            peer.end.shut(bits(send, receive));
        }
    }

    // ---- waiting -------------------------------------------------------------------------------------------------

    /// Wait for `ready`, as long as the option `timeout` allows. EAGAIN past that.
    fn wait<R>(&self, queues: &[&WaitQueue], timeout: Number, ready: impl FnMut() -> Option<R>) -> Result<R> {
        let limit = Some(self.number(timeout)).filter(|&ns| ns != 0);
        let deadline = limit.map(|ns| hw::timer::now().saturating_add(ns));
        wait::wait_any(queues, deadline, true, ready).map_err(|why| match why {
            Woken::TimedOut => Errno::EAGAIN,
            Woken::Interrupted if deadline.is_some() => Errno::EINTR,
            Woken::Interrupted => Errno::RESTART,
        })
    }

    /// What can be done now.
    pub fn readiness(&self) -> Readiness<'_> {
        let end = &*self.end;
        let bits = end.state();
        let mut events = Events::empty();
        let (listening, unconnected, crowd) = match &*self.state.lock() {
            State::Listening(listener) => (true, false, !listener.waiting.is_empty()),
            State::Unconnected => (false, true, false),
            State::Connected(_) => (false, false, false),
        };
        events.set(Events::IN, crowd || end.has_some() || bits & NO_RECEIVE != 0);
        events.set(Events::RDHUP, bits & NO_RECEIVE != 0);
        let both = bits & (NO_RECEIVE | NO_SEND) == NO_RECEIVE | NO_SEND;
        events.set(Events::HUP, both || unconnected && self.style.connects());
        events.set(Events::OUT, !listening && end.is_writable());
        events.set(Events::ERR, end.has_failed());
        Readiness { events, queues: [Some(&end.readable), Some(&end.writable)] }
    }

    // ---- closing -------------------------------------------------------------------------------------------------

    /// Show the ends whose messages go with this socket: its own and those of connections that wait for `accept`.
    fn each_end(&self, each: &mut dyn FnMut(&End)) {
        each(&self.end);
        if let State::Listening(listener) = &*self.state.lock() {
            listener.waiting.iter().for_each(|s| each(&s.end));
        }
    }
}

/// Drop `made`, a connection that isn't wanted, with the listener's lock free and without a word to the one who knocked.
fn refuse(listener: SpinGuard<'_, State>, made: Arc<Socket>) -> Errno {
    drop(listener);
    let peer = mem::replace(&mut *made.state.lock(), State::Unconnected);
    drop(peer);
    drop(made);
    Errno::ECONNREFUSED
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.name().give_back(self.style);
        let unread = self.end.has_some();
        self.end.shut(CLOSED | NO_RECEIVE | NO_SEND);
        match mem::replace(self.state.get_mut(), State::Unconnected) {
            State::Connected(peer) if self.style.connects() => {
                if unread {
                    peer.end.fail(Errno::ECONNRESET);
                }
                peer.end.shut(NO_RECEIVE | NO_SEND);
            }
            State::Connected(_) | State::Unconnected => {}
            State::Listening(listener) => {
                for waiting in listener.waiting {
                    if let Some(peer) = waiting.peer() {
                        peer.end.fail(Errno::ECONNRESET);
                    }
                }
            }
        }
        // Messages hold files, and their senders' ends; nothing comes in after the bits were set.
        drop(self.end.take_all());
        passing::closed();
    }
}

const _: () = assert!(OVERHEAD < MIN_SEND_BUFFER);

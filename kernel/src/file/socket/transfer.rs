//! Sending and receiving: messages into the other's end, and out of one's own.

use alloc::vec::Vec;
use core::mem;

use linux_raw_sys::general as c;

use super::{
    CLOSED, Credentials, End, Flags, NO_RECEIVE, NO_SEND, Number, OPTION, PIECE, Packet, Passed, Received,
    Sent, Socket, State, Style, passing, queue,
};
use crate::{
    errno::Errno,
    file::{
        self, Result,
        io::{Sink, Source, moved},
    },
    memory, task, upcall,
};

impl Socket {
    // ---- sending -------------------------------------------------------------------------------------------------

    /// `write`.
    pub fn write(&self, source: &mut dyn Source, block: bool) -> Result<usize> {
        self.send(source, Sent::default(), Flags::empty(), block)
    }

    /// `sendmsg`. EPIPE (with SIGPIPE unless NOSIGNAL) if the other side receives no more, and so on.
    pub fn send(&self, source: &mut dyn Source, sent: Sent, flags: Flags, block: bool) -> Result<usize> {
        if flags.contains(Flags::OOB) {
            return Err(Errno::EOPNOTSUPP);
        }
        let block = block && !flags.contains(Flags::DONTWAIT);
        let result = match self.style {
            Style::Stream => self.send_bytes(source, sent, block),
            _ => self.send_message(source, sent, block),
        };
        if result == Err(Errno::EPIPE) && !flags.contains(Flags::NOSIGNAL) && self.style == Style::Stream {
            file::raise(c::SIGPIPE);
        }
        result
    }

    fn send_bytes(&self, source: &mut dyn Source, sent: Sent, block: bool) -> Result<usize> {
        let peer = self.peer();
        if sent.to.is_some() {
            return Err(if peer.is_some() { Errno::EISCONN } else { Errno::EOPNOTSUPP });
        }
        let peer = peer.ok_or(Errno::ENOTCONN)?;
        let credentials = sent.credentials.unwrap_or_else(Credentials::own);
        let mut passed = Passed::new(sent.files)?;
        let name = self.name();
        let total = source.left();
        let mut done = 0;
        while done < total {
            let shut = || self.end.is(NO_SEND) || peer.end.is(NO_RECEIVE | CLOSED);
            if shut() {
                return moved(done, 1, Errno::EPIPE);
            }
            if !self.end.may_send() {
                if !block {
                    return moved(done, 1, Errno::EAGAIN);
                }
                let ready = || (self.end.may_send() || shut()).then_some(());
                if let Err(e) = self.wait(&[&self.end.writable], Number::SendTimeout, ready) {
                    return moved(done, 1, e);
                }
                continue;
            }
            let bytes = match bytes_from(source, (total - done).min(PIECE)) {
                Ok(bytes) if bytes.is_empty() => return moved(done, 1, Errno::EFAULT),
                Ok(bytes) => bytes,
                Err(e) => return moved(done, 1, e),
            };
            let n = bytes.len();
            let files = mem::replace(&mut passed, Passed::NONE);
            let packet = Packet::new(bytes, files, credentials, name.clone(), &self.end);
            if let Err((e, _)) = peer.end.push(packet, true) {
                return moved(done, 1, e);
            }
            done += n;
        }
        Ok(done)
    }

    fn send_message(&self, source: &mut dyn Source, sent: Sent, block: bool) -> Result<usize> {
        // A sequenced socket has its peer, whatever address is given.
        let to = sent.to.filter(|_| !self.style.connects());
        let peer = match &to {
            Some(to) => {
                let target = to.find(self.style)?;
                self.may_reach(&target)?;
                target.end.clone()
            }
            None => self.peer().ok_or(Errno::ENOTCONN)?.end,
        };
        if self.end.is(NO_SEND) {
            return Err(Errno::EPIPE);
        }
        let len = source.left();
        if len > self.end.limit().saturating_sub(32) {
            return Err(Errno::EMSGSIZE);
        }
        let passed = Passed::new(sent.files)?;
        let bytes = bytes_from(source, len)?;
        if bytes.len() < len {
            return Err(Errno::EFAULT);
        }
        let datagram = self.style == Style::Datagram;
        let ended = || self.end.is(NO_SEND) || peer.is(NO_RECEIVE | CLOSED);
        let free = || self.end.may_send() && !(datagram && peer.is_full());
        if !ended() && !free() {
            if !block {
                return Err(Errno::EAGAIN);
            }
            let ready = || (ended() || free()).then_some(());
            self.wait(&[&self.end.writable, &peer.room], Number::SendTimeout, ready)?;
        }
        if ended() {
            return Err(self.lost(&peer, to.is_none()));
        }
        let credentials = sent.credentials.unwrap_or_else(Credentials::own);
        let packet = Packet::new(bytes, passed, credentials, self.name(), &self.end);
        match peer.push(packet, false) {
            Ok(()) => Ok(len),
            Err((Errno::EPIPE, _)) => Err(self.lost(&peer, to.is_none())),
            Err((e, _)) => Err(e),
        }
    }

    /// Why nothing can be sent to `peer`; a datagram socket lets go of one that is closed.
    fn lost(&self, peer: &End, is_own: bool) -> Errno {
        if self.style.connects() || self.end.is(NO_SEND) || !peer.is(CLOSED) {
            return Errno::EPIPE;
        }
        if is_own {
            let old = mem::replace(&mut *self.state.lock(), State::Unconnected);
            drop(old);
        }
        Errno::ECONNREFUSED
    }

    // ---- receiving -----------------------------------------------------------------------------------------------

    /// `read`.
    pub fn read(&self, sink: &mut dyn Sink, block: bool) -> Result<usize> {
        if sink.room() == 0 {
            return Ok(0);
        }
        let received = self.receive(sink, Flags::empty(), block)?;
        Ok(received.bytes)
    }

    /// `recvmsg`. 0 bytes once the other side sends no more.
    pub fn receive(&self, sink: &mut dyn Sink, flags: Flags, block: bool) -> Result<Received> {
        if flags.contains(Flags::OOB) {
            return Err(Errno::EOPNOTSUPP);
        }
        let connected = matches!(*self.state.lock(), State::Connected(_));
        match self.style {
            Style::Stream if !connected => return Err(Errno::EINVAL),
            Style::Sequenced if !connected => return Err(Errno::ENOTCONN),
            _ => {}
        }
        let block = block && !flags.contains(Flags::DONTWAIT);
        let mut received = Received::default();
        let wanted = if flags.contains(Flags::WAITALL) { sink.room() } else { 1 };
        loop {
            let found = if self.style == Style::Stream {
                self.take_bytes(sink, flags, &mut received)?
            } else {
                self.take_message(sink, flags, &mut received)?
            };
            let enough = self.style != Style::Stream
                || received.bytes >= wanted
                || !received.files.is_empty()
                || received.faulted
                || flags.contains(Flags::PEEK);
            if found && enough {
                return Ok(received);
            }
            if received.bytes == 0
                && let Some(e) = self.end.take_error()
            {
                return Err(e);
            }
            // After a look at the queue: what came before the end was sent is there.
            let ended = self.end.is(NO_RECEIVE);
            if ended && !self.end.has_some() || sink.room() == 0 {
                return Ok(received);
            }
            if ended {
                continue;
            }
            if !block {
                return if received.bytes > 0 { Ok(received) } else { Err(Errno::EAGAIN) };
            }
            let ready =
                || (self.end.has_some() || self.end.is(NO_RECEIVE) || self.end.has_failed()).then_some(());
            if let Err(e) = self.wait(&[&self.end.readable], Number::ReceiveTimeout, ready) {
                return if received.bytes > 0 { Ok(received) } else { Err(e) };
            }
        }
    }

    /// The first message in hand, if there is one.
    fn first(&self) -> Option<Packet> {
        match self.end.take(false)? {
            Some(packet) => Some(packet),
            None => passing::receiving(|| self.end.take(true)).flatten(),
        }
    }

    /// Take bytes of a stream as far as they are there, up to a message with files or by somebody else. Says whether
    /// there were any.
    fn take_bytes(&self, sink: &mut dyn Sink, flags: Flags, received: &mut Received) -> Result<bool> {
        let _reading = self.end.reading.write(&task::unpinned());
        let peek = flags.contains(Flags::PEEK);
        let pass_credentials = self.pass_credentials.load(OPTION);
        let mut any = false;
        while sink.room() > 0 && received.files.is_empty() {
            let Some(mut packet) = self.first() else { break };
            let other = received.credentials.is_some_and(|c| c != packet.credentials);
            if pass_credentials && other {
                self.end.put_back(packet);
                break;
            }
            let piece = packet.unread();
            let want = piece.len().min(sink.room());
            let got = sink.put(piece.get(..want).unwrap_or(piece));
            if got == 0 && want > 0 {
                self.end.put_back(packet);
                received.faulted = true;
                return if received.bytes > 0 { Ok(true) } else { Err(Errno::EFAULT) };
            }
            any = true;
            received.bytes += got;
            received.from.get_or_insert_with(|| packet.from.clone());
            if pass_credentials {
                received.credentials = Some(packet.credentials);
            }
            if peek {
                // One look shows one message: the next is behind this one.
                let files = queue::copies(&packet.passed);
                self.end.put_back(packet);
                received.files = files?;
                break;
            }
            packet.start += got;
            received.files = mem::replace(&mut packet.passed, Passed::NONE).arrive();
            if packet.unread().is_empty() {
                drop(packet);
                self.end.taken();
            } else {
                self.end.put_back(packet);
                break;
            }
        }
        Ok(any)
    }

    /// Take one message. Says whether there was one.
    fn take_message(&self, sink: &mut dyn Sink, flags: Flags, received: &mut Received) -> Result<bool> {
        let _reading = self.end.reading.write(&task::unpinned());
        let Some(mut packet) = self.first() else { return Ok(false) };
        let whole = packet.bytes.len();
        let want = whole.min(sink.room());
        let got = upcall::owed(|| sink.put(packet.bytes.get(..want).unwrap_or_default()));
        let fault = got < want;
        received.bytes = if flags.contains(Flags::TRUNC) { whole } else { got };
        received.cut = want < whole;
        received.from = Some(packet.from.clone());
        received.credentials = self.pass_credentials.load(OPTION).then_some(packet.credentials);
        if flags.contains(Flags::PEEK) {
            let files = queue::copies(&packet.passed);
            self.end.put_back(packet);
            received.files = files?;
        } else {
            received.files = mem::replace(&mut packet.passed, Passed::NONE).arrive();
            drop(packet);
            self.end.taken();
        }
        if fault { Err(Errno::EFAULT) } else { Ok(true) }
    }
}

/// Up to `len` bytes of `source`: fewer if it ends at a bad address. ENOBUFS when memory is short.
fn bytes_from(source: &mut dyn Source, len: usize) -> Result<Vec<u8>> {
    if memory::frames().low() {
        return Err(Errno::ENOBUFS);
    }
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| Errno::ENOBUFS)?;
    bytes.resize(len, 0);
    let got = source.take(&mut bytes);
    bytes.truncate(got);
    Ok(bytes)
}

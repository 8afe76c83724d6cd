//! Calls about sockets. There is the family AF_UNIX; all others are EAFNOSUPPORT.

use alloc::{sync::Arc, vec::Vec};

use linux_raw_sys::general as c;

use super::{
    Args,
    file::{files, opened},
    time,
};
use crate::{
    errno::{Errno, SysResult},
    file::{
        self, AF_UNIX, Address, Credentials, Lent, OpenFile, Received, Sent, Socket, SocketFlags as Flags,
        SocketNumber as Number, Style, UserBuffer,
    },
    hw, ids, memory, task, upcall, usercopy,
};

/// Bits of a socket type that are flags.
const TYPE_FLAGS: u32 = c::O_CLOEXEC | c::O_NONBLOCK;
/// The greatest plain socket type, with room: Linux's SOCK_TYPE_MASK.
const TYPE_MASK: u32 = 0xf;
/// Bytes of `struct sockaddr_storage`: no address is longer.
const STORAGE: usize = 128;
/// The most bytes of control messages that one call takes.
const MAX_CONTROL: u64 = 20480;
/// The most files in one message (Linux's SCM_MAX_FD).
const MAX_FILES: usize = 253;
/// The most segments of a message.
const MAX_SEGMENTS: u64 = 1024;
/// `SOL_SOCKET`.
const SOL_SOCKET: i32 = 1;
/// `SCM_RIGHTS`.
const SCM_RIGHTS: i32 = 1;
/// `SCM_CREDENTIALS`.
const SCM_CREDENTIALS: i32 = 2;
/// Bytes of `struct cmsghdr`.
const HEADER: usize = 16;
/// `MSG_CTRUNC`.
const CUT_CONTROL: u32 = 0x8;
/// `MSG_CMSG_CLOEXEC`.
const CLOEXEC: u32 = 0x4000_0000;
/// `MSG_WAITFORONE`.
const WAIT_FOR_ONE: u32 = 0x1_0000;

/// The socket open as argument 0, and its open file. EBADF, ENOTSOCK.
fn socket_file(a: &Args) -> Result<Lent, Errno> {
    let file = opened(a, 0)?;
    file.socket()?;
    Ok(file)
}

/// Family, type and protocol of a new socket, checked in Linux's order.
fn style(a: &Args) -> Result<Style, Errno> {
    let (family, kind, protocol) = (a.int(0), a.uint(1), a.int(2));
    if kind & !(TYPE_FLAGS | TYPE_MASK) != 0 {
        return Err(Errno::EINVAL);
    }
    if family != i32::from(AF_UNIX) {
        return Err(Errno::EAFNOSUPPORT);
    }
    if kind & TYPE_MASK > 10 {
        return Err(Errno::EINVAL);
    }
    if protocol != 0 && protocol != i32::from(AF_UNIX) {
        return Err(Errno::EPROTONOSUPPORT);
    }
    Style::from_type(kind & TYPE_MASK)
}

/// `socket(2)`.
pub fn socket(a: &Args) -> SysResult {
    let file = Socket::new(style(a)?)?.open(a.uint(1) & TYPE_FLAGS)?;
    files().insert(file, a.uint(1) & c::O_CLOEXEC != 0)
}

/// `socketpair(2)`.
pub fn socketpair(a: &Args) -> SysResult {
    let flags = a.uint(1) & TYPE_FLAGS;
    let [one, other] = Socket::pair(style(a)?)?;
    let (one, other) = (one.open(flags)?, other.open(flags)?);
    let close_on_exec = flags & c::O_CLOEXEC != 0;
    let files = files();
    let first = files.insert(one, close_on_exec)? as i32;
    let result = files.insert(other, close_on_exec).and_then(|second| {
        let second = second as i32;
        usercopy::write(a.raw(3), &[first, second]).or_else(|e| files.close(second).and(Err(e)))
    });
    result.or_else(|e| files.close(first).and(Err(e)))?;
    Ok(0)
}

// ---- addresses ----------------------------------------------------------------------------------------------------

/// The bytes of a `sockaddr` of `len` bytes at `at`. EINVAL, EFAULT.
fn address_bytes(at: u64, len: i32) -> Result<Vec<u8>, Errno> {
    let len = usize::try_from(len).ok().filter(|&len| len <= STORAGE).ok_or(Errno::EINVAL)?;
    let mut bytes = alloc::vec![0; len];
    usercopy::copy_in(at, &mut bytes)?;
    Ok(bytes)
}

/// Where a call tells an address.
struct AddressOut {
    at: u64,
    len_at: u64,
    /// How much room there is, or what is wrong with the number of it, which is told after the wait, as on Linux.
    room: Result<usize, Errno>,
}

impl AddressOut {
    /// That, unless `at` is 0.
    fn asked(at: u64, len_at: u64) -> Result<Option<Self>, Errno> {
        if at == 0 { Ok(None) } else { Self::new(at, len_at).map(Some) }
    }

    /// At `at`, as far as the int at `len_at` says: EINVAL for a negative one. That is read now, before the call takes
    /// anything; EFAULT if its page's level forbids it and the call can start over.
    fn new(at: u64, len_at: u64) -> Result<Self, Errno> {
        let room = match usercopy::read::<i32>(len_at) {
            Err(e) if task::current().upcall.starts_over() => return Err(e),
            room => room.and_then(|room| usize::try_from(room).map_err(|_| Errno::EINVAL)),
        };
        Ok(Self { at, len_at, room })
    }

    /// Store `bytes`, and how many there are.
    fn tell(&self, bytes: &[u8]) -> Result<(), Errno> {
        let shown = bytes.get(..self.room?).unwrap_or(bytes);
        upcall::owed(|| {
            usercopy::copy_out(self.at, shown)?;
            usercopy::write(self.len_at, &(bytes.len() as i32))
        })
    }
}

/// `bind(2)`.
pub fn bind(a: &Args) -> SysResult {
    let file = socket_file(a)?;
    let bytes = address_bytes(a.raw(1), a.int(2))?;
    file.socket()?.bind(Address::parse(&bytes)?)?;
    Ok(0)
}

/// `listen(2)`.
pub fn listen(a: &Args) -> SysResult {
    socket_file(a)?.socket()?.listen(a.uint(1))?;
    Ok(0)
}

/// `connect(2)`.
pub fn connect(a: &Args) -> SysResult {
    let file = socket_file(a)?;
    let socket = file.socket()?;
    let bytes = address_bytes(a.raw(1), a.int(2))?;
    let unspecified = bytes.first_chunk::<2>().is_some_and(|family| *family == [0, 0]);
    if unspecified {
        socket.disconnect()?;
    } else {
        socket.connect(&Address::parse(&bytes)?, file.blocks())?;
    }
    Ok(0)
}

/// `accept(2)`.
pub fn accept(a: &Args) -> SysResult {
    accept_with(a, 0)
}

/// `accept4(2)`.
pub fn accept4(a: &Args) -> SysResult {
    accept_with(a, a.uint(3))
}

fn accept_with(a: &Args, flags: u32) -> SysResult {
    if flags & !TYPE_FLAGS != 0 {
        return Err(Errno::EINVAL);
    }
    let file = socket_file(a)?;
    let out = AddressOut::asked(a.raw(1), a.raw(2))?;
    let accepted = file.socket()?.accept(file.blocks())?;
    if let Some(out) = out {
        out.tell(&accepted.peer_name()?.bytes())?;
    }
    files().insert(accepted.open(flags)?, flags & c::O_CLOEXEC != 0)
}

/// `getsockname(2)`.
pub fn getsockname(a: &Args) -> SysResult {
    let name = socket_file(a)?.socket()?.name();
    AddressOut::new(a.raw(1), a.raw(2))?.tell(&name.bytes())?;
    Ok(0)
}

/// `getpeername(2)`.
pub fn getpeername(a: &Args) -> SysResult {
    let name = socket_file(a)?.socket()?.peer_name()?;
    AddressOut::new(a.raw(1), a.raw(2))?.tell(&name.bytes())?;
    Ok(0)
}

/// `shutdown(2)`.
pub fn shutdown(a: &Args) -> SysResult {
    let file = socket_file(a)?;
    let how = a.uint(1);
    if how > 2 {
        return Err(Errno::EINVAL);
    }
    file.socket()?.shutdown(how != 1, how != 0);
    Ok(0)
}

// ---- sending ------------------------------------------------------------------------------------------------------

/// Whom to send to, from a `sockaddr`; none without one. Streams and sequenced packets don't look at it.
fn destination(socket: &Socket, at: u64, len: i32) -> Result<Option<Address>, Errno> {
    if at == 0 || len == 0 {
        return Ok(None);
    }
    let bytes = address_bytes(at, len)?;
    if socket.style != Style::Datagram {
        return Ok(Some(Address::Unnamed));
    }
    Address::parse(&bytes).map(Some)
}

/// `sendto(2)`.
pub fn sendto(a: &Args) -> SysResult {
    let mut source = UserBuffer::new(a.raw(1), a.raw(2))?;
    let file = socket_file(a)?;
    let socket = file.socket()?;
    let to = destination(socket, a.raw(4), a.int(5))?;
    let flags = Flags::from_bits_truncate(a.uint(3));
    socket.send(&mut source, Sent { to, ..Sent::default() }, flags, file.blocks())
}

/// `struct msghdr`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Header {
    name: u64,
    name_len: i32,
    pad: u32,
    segments: u64,
    segment_count: u64,
    control: u64,
    control_len: u64,
    flags: u32,
    end: u32,
}
crate::pod!(Header);

impl Header {
    /// The one at `at`. EINVAL for a negative length of the name, EMSGSIZE for too many segments.
    fn read(at: u64) -> Result<Self, Errno> {
        let header: Self = usercopy::read(at)?;
        if header.name != 0 && header.name_len < 0 {
            return Err(Errno::EINVAL);
        }
        if header.segment_count > MAX_SEGMENTS {
            return Err(Errno::EMSGSIZE);
        }
        Ok(header)
    }

    fn buffer(&self) -> Result<UserBuffer, Errno> {
        UserBuffer::vectored(self.segments, self.segment_count)
    }
}

/// `sendmsg(2)`.
pub fn sendmsg(a: &Args) -> SysResult {
    let file = socket_file(a)?;
    send_message(&file, a.raw(1), a.uint(2))
}

fn send_message(file: &OpenFile, at: u64, flags: u32) -> SysResult {
    let socket = file.socket()?;
    let header = Header::read(at)?;
    let to = destination(socket, header.name, header.name_len.min(STORAGE as i32))?;
    let mut source = header.buffer()?;
    let mut sent = Sent { to, ..Sent::default() };
    match read_control(&header, &mut sent) {
        Ok(()) => socket.send(&mut source, sent, Flags::from_bits_truncate(flags), file.blocks()),
        Err(e) => {
            file::release_files(sent.files);
            Err(e)
        }
    }
}

/// The control messages of `header`. EINVAL for malformed ones, EBADF for a bad descriptor.
fn read_control(header: &Header, sent: &mut Sent) -> Result<(), Errno> {
    if header.control == 0 || header.control_len == 0 {
        return Ok(());
    }
    if header.control_len > MAX_CONTROL {
        return Err(Errno::ENOBUFS);
    }
    let mut bytes = alloc::vec![0; header.control_len as usize];
    usercopy::copy_in(header.control, &mut bytes)?;
    let mut rest = bytes.as_slice();
    while let Some((head, _)) = rest.split_first_chunk::<HEADER>() {
        let [l0, l1, l2, l3, l4, l5, l6, l7, v0, v1, v2, v3, t0, t1, t2, t3] = *head;
        let len = u64::from_ne_bytes([l0, l1, l2, l3, l4, l5, l6, l7]) as usize;
        let (level, kind) = (i32::from_ne_bytes([v0, v1, v2, v3]), i32::from_ne_bytes([t0, t1, t2, t3]));
        let data = rest.get(HEADER..len).ok_or(Errno::EINVAL)?;
        if level == SOL_SOCKET {
            match kind {
                SCM_RIGHTS => read_files(data, sent)?,
                SCM_CREDENTIALS => read_credentials(data, sent)?,
                _ => return Err(Errno::EINVAL),
            }
        }
        rest = rest.get(len.next_multiple_of(8)..).unwrap_or_default();
    }
    Ok(())
}

fn read_files(data: &[u8], sent: &mut Sent) -> Result<(), Errno> {
    let (numbers, _) = data.as_chunks::<4>();
    if sent.files.len() + numbers.len() > MAX_FILES {
        return Err(Errno::EINVAL);
    }
    let files = files();
    for number in numbers {
        let file = files.get(i32::from_ne_bytes(*number))?;
        if file.is_path() {
            return Err(Errno::EBADF);
        }
        sent.files.push(file);
    }
    Ok(())
}

fn read_credentials(data: &[u8], sent: &mut Sent) -> Result<(), Errno> {
    let (words, rest) = data.as_chunks::<4>();
    let [pid, uid, gid] = words else { return Err(Errno::EINVAL) };
    if !rest.is_empty() {
        return Err(Errno::EINVAL);
    }
    let [pid, uid, gid] = [pid, uid, gid].map(|w| u32::from_ne_bytes(*w));
    // Root may pose as any process that there is.
    if pid != task::current().process.pid && !ids::is_process(pid) {
        return Err(Errno::ESRCH);
    }
    sent.credentials = Some(Credentials { pid, uid, gid });
    Ok(())
}

/// `sendmmsg(2)`.
pub fn sendmmsg(a: &Args) -> SysResult {
    let file = socket_file(a)?;
    let count = u64::from(a.uint(2)).min(MAX_SEGMENTS);
    many(count, a.raw(1), |at| send_message(&file, at, a.uint(3)))
}

/// Bytes of `struct mmsghdr`: a `msghdr` and an int for the result.
const MANY_HEADER: u64 = 64;

/// Run `one` on each of `count` messages at `at`, storing what it gives, until one fails: how many went.
fn many(count: u64, at: u64, mut one: impl FnMut(u64) -> SysResult) -> SysResult {
    let mut done = 0;
    while (done as u64) < count {
        let here = at.checked_add(MANY_HEADER * done as u64).ok_or(Errno::EFAULT)?;
        let stored = one(here)
            .and_then(|n| upcall::owed(|| usercopy::write(here + size_of::<Header>() as u64, &(n as u32))));
        match stored {
            Ok(()) => done += 1,
            Err(_) if done > 0 => break,
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

// ---- receiving ----------------------------------------------------------------------------------------------------

/// `recvfrom(2)`.
pub fn recvfrom(a: &Args) -> SysResult {
    let mut sink = UserBuffer::new(a.raw(1), a.raw(2))?;
    let file = socket_file(a)?;
    let flags = Flags::from_bits_truncate(a.uint(3));
    let out = AddressOut::asked(a.raw(4), a.raw(5))?;
    let received = file.socket()?.receive(&mut sink, flags, file.blocks())?;
    // Files that nobody asked for are closed.
    file::release_files(received.files);
    if let Some(out) = out {
        out.tell(&whence(&received.from))?;
    }
    Ok(received.bytes)
}

/// The address of a sender, empty if it has no name.
fn whence(from: &Option<Arc<Address>>) -> Vec<u8> {
    from.as_ref().filter(|name| ***name != Address::Unnamed).map_or(Vec::new(), |name| name.bytes())
}

/// `recvmsg(2)`.
pub fn recvmsg(a: &Args) -> SysResult {
    let file = socket_file(a)?;
    receive_message(&file, a.raw(1), a.uint(2), file.blocks())
}

fn receive_message(file: &OpenFile, at: u64, flags: u32, block: bool) -> SysResult {
    let header = Header::read(at)?;
    let mut sink = header.buffer()?;
    let received = file.socket()?.receive(&mut sink, Flags::from_bits_truncate(flags), block)?;
    let bytes = received.bytes;
    upcall::owed(|| tell(at, &header, received, flags))?;
    Ok(bytes)
}

/// What there is to say of a message besides its bytes, in the `msghdr` at `at` and where that says.
fn tell(at: u64, header: &Header, mut received: Received, flags: u32) -> Result<(), Errno> {
    let from = whence(&received.from);
    let mut out = flags & CLOEXEC;
    if received.cut {
        out |= Flags::TRUNC.bits();
    }
    let mut control = Control { at: header.control, left: header.control_len, used: 0, cut: false };
    let pass = core::mem::take(&mut received.files);
    control.write(&received, pass, flags & CLOEXEC != 0)?;
    if control.cut {
        out |= CUT_CONTROL;
    }
    if header.name != 0 {
        let room = (header.name_len as usize).min(from.len());
        usercopy::copy_out(header.name, from.get(..room).unwrap_or_default())?;
        usercopy::write(at + 8, &(from.len() as i32))?;
    }
    usercopy::write(at + 48, &out)?;
    usercopy::write(at + 40, &control.used)
}

/// The program's room for control messages.
struct Control {
    at: u64,
    left: u64,
    used: u64,
    cut: bool,
}

impl Control {
    fn write(
        &mut self,
        received: &Received,
        passed: Vec<Arc<OpenFile>>,
        close_on_exec: bool,
    ) -> Result<(), Errno> {
        let mut result = Ok(());
        if let Some(c) = received.credentials {
            let words: Vec<u8> = [c.pid, c.uid, c.gid].iter().flat_map(|w| w.to_ne_bytes()).collect();
            result = self.put(SCM_CREDENTIALS, &words);
        }
        if result.is_ok() && !passed.is_empty() {
            result = self.put_files(&passed, close_on_exec);
        }
        file::release_files(passed);
        result
    }

    fn header(&self, kind: i32, len: usize) -> Result<(), Errno> {
        let kinds = SOL_SOCKET as u32 as u64 | (kind as u32 as u64) << 32;
        usercopy::write(self.at, &[(HEADER + len) as u64, kinds])
    }

    fn advance(&mut self, len: usize) {
        let space = ((HEADER + len).next_multiple_of(8) as u64).min(self.left);
        self.at += space;
        self.left -= space;
        self.used += space;
    }

    /// One message with as much of `data` as there is room for.
    fn put(&mut self, kind: i32, data: &[u8]) -> Result<(), Errno> {
        if self.at == 0 || self.left < HEADER as u64 {
            self.cut = true;
            return Ok(());
        }
        let room = data.len().min((self.left as usize).saturating_sub(HEADER));
        self.cut |= room < data.len();
        usercopy::copy_out(self.at + HEADER as u64, data.get(..room).unwrap_or_default())?;
        self.header(kind, room)?;
        self.advance(room);
        Ok(())
    }

    /// Descriptors for as many of `passed` as there is room for and the process may have.
    fn put_files(&mut self, passed: &[Arc<OpenFile>], close_on_exec: bool) -> Result<(), Errno> {
        let room = if self.at == 0 { 0 } else { (self.left as usize).saturating_sub(HEADER) / 4 };
        let table = files();
        let mut count = 0;
        for file in passed.iter().take(room) {
            let Ok(fd) = table.insert(file.clone(), close_on_exec) else { break };
            if usercopy::write(self.at + (HEADER + 4 * count) as u64, &(fd as i32)).is_err() {
                table.close(fd as i32)?;
                break;
            }
            count += 1;
        }
        if count > 0 {
            self.header(SCM_RIGHTS, 4 * count)?;
            self.advance(4 * count);
        }
        self.cut |= count < passed.len();
        Ok(())
    }
}

/// `recvmmsg(2)`.
pub fn recvmmsg(a: &Args) -> SysResult {
    let file = socket_file(a)?;
    let count = u64::from(a.uint(2)).min(MAX_SEGMENTS);
    let deadline = match a.raw(4) {
        0 => None,
        at => Some(hw::timer::now().saturating_add(time::read_timespec(at)?)),
    };
    let mut block = file.blocks();
    let mut late = false;
    let done = many(count, a.raw(1), |at| {
        if late {
            return Err(Errno::EAGAIN);
        }
        let n = receive_message(&file, at, a.uint(3) & !WAIT_FOR_ONE, block)?;
        block &= a.uint(3) & WAIT_FOR_ONE == 0;
        // As on Linux, the time is looked at after each message.
        late = deadline.is_some_and(|d| d <= hw::timer::now());
        Ok(n)
    })?;
    if let Some(d) = deadline {
        upcall::owed(|| time::write_timespec(a.raw(4), d.saturating_sub(hw::timer::now())))?;
    }
    Ok(done)
}

// ---- options ------------------------------------------------------------------------------------------------------

const SO_REUSEADDR: i32 = 2;
const SO_TYPE: i32 = 3;
const SO_ERROR: i32 = 4;
const SO_DONTROUTE: i32 = 5;
const SO_BROADCAST: i32 = 6;
const SO_SNDBUF: i32 = 7;
const SO_RCVBUF: i32 = 8;
const SO_KEEPALIVE: i32 = 9;
const SO_OOBINLINE: i32 = 10;
const SO_LINGER: i32 = 13;
const SO_PASSCRED: i32 = 16;
const SO_PEERCRED: i32 = 17;
const SO_RCVTIMEO: i32 = 20;
const SO_SNDTIMEO: i32 = 21;
const SO_ACCEPTCONN: i32 = 30;
const SO_PROTOCOL: i32 = 38;
const SO_DOMAIN: i32 = 39;

/// A time limit in ns as a `timeval`.
fn timeval(ns: u64) -> Vec<u8> {
    [ns / time::NS, ns % time::NS / 1000].iter().flat_map(|w| w.to_ne_bytes()).collect()
}

/// `getsockopt(2)`.
pub fn getsockopt(a: &Args) -> SysResult {
    let file = socket_file(a)?;
    let socket = file.socket()?;
    if a.int(1) != SOL_SOCKET {
        return Err(Errno::EOPNOTSUPP);
    }
    let room: i32 = usercopy::read(a.raw(4))?;
    let room = usize::try_from(room).map_err(|_| Errno::EINVAL)?;
    let int = |value: u64| (value as i32).to_ne_bytes().to_vec();
    let value = match a.int(2) {
        SO_TYPE => int(socket.style.number() as u64),
        SO_ERROR => int(socket.take_error() as u64),
        SO_SNDBUF => int(socket.number(Number::SendBuffer)),
        SO_RCVBUF => int(socket.number(Number::ReceiveBuffer)),
        SO_PASSCRED => int(socket.number(Number::PassCredentials)),
        SO_ACCEPTCONN => int(socket.is_listening().into()),
        SO_DOMAIN => int(AF_UNIX.into()),
        SO_PROTOCOL | SO_REUSEADDR | SO_DONTROUTE | SO_BROADCAST | SO_KEEPALIVE | SO_OOBINLINE => int(0),
        SO_LINGER => alloc::vec![0; 8],
        SO_RCVTIMEO => timeval(socket.number(Number::ReceiveTimeout)),
        SO_SNDTIMEO => timeval(socket.number(Number::SendTimeout)),
        SO_PEERCRED => {
            let c = socket.peer_credentials();
            [c.pid, c.uid, c.gid].iter().flat_map(|w| w.to_ne_bytes()).collect()
        }
        _ => return Err(Errno::ENOPROTOOPT),
    };
    let value = value.get(..room).unwrap_or(&value);
    // SO_ERROR is told once.
    upcall::owed(|| {
        usercopy::copy_out(a.raw(3), value)?;
        usercopy::write(a.raw(4), &(value.len() as i32))
    })?;
    Ok(0)
}

/// `setsockopt(2)`: what has a meaning for AF_UNIX; the rest of the common options is taken and does nothing.
pub fn setsockopt(a: &Args) -> SysResult {
    let (level, option, at, len) = (a.int(1), a.int(2), a.raw(3), a.int(4));
    if len < 0 {
        return Err(Errno::EINVAL);
    }
    let file = socket_file(a)?;
    let socket = file.socket()?;
    if level != SOL_SOCKET {
        return Err(Errno::EOPNOTSUPP);
    }
    if memory::frames().low() {
        return Err(Errno::ENOMEM);
    }
    if len < 4 {
        return Err(Errno::EINVAL);
    }
    let value: i32 = usercopy::read(at)?;
    let number = match option {
        SO_SNDBUF => Number::SendBuffer,
        SO_RCVBUF => Number::ReceiveBuffer,
        SO_PASSCRED => Number::PassCredentials,
        SO_RCVTIMEO | SO_SNDTIMEO => {
            if len < 16 {
                return Err(Errno::EINVAL);
            }
            let [seconds, us]: [i64; 2] = usercopy::read(at)?;
            if !(0..1_000_000).contains(&us) {
                return Err(Errno::EDOM);
            }
            let ns =
                u64::try_from(seconds).unwrap_or(0).saturating_mul(time::NS).saturating_add(us as u64 * 1000);
            let which = if option == SO_RCVTIMEO { Number::ReceiveTimeout } else { Number::SendTimeout };
            socket.set_number(which, ns);
            return Ok(0);
        }
        SO_LINGER if len < 8 => return Err(Errno::EINVAL),
        SO_REUSEADDR | SO_DONTROUTE | SO_BROADCAST | SO_KEEPALIVE | SO_OOBINLINE | SO_LINGER => return Ok(0),
        _ => return Err(Errno::ENOPROTOOPT),
    };
    // A negative size is a large one, as on Linux.
    socket.set_number(number, u64::from(value as u32));
    Ok(0)
}

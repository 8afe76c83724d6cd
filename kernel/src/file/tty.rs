//! The machine's connection to the command that started it: the terminal, or plain streams.
//!
//! Each of the command's standard files is a terminal or it is not. Those that are share one terminal here, with a line
//! discipline, a size and a foreground process group; the others are streams, and a program sees a pipe.
//!
//! # Input
//! Input comes over the serial line as records (a length of two bytes, low byte first, then that many bytes; length 0
//! is the end of the file; length 0xffff announces a control record), byte by byte, to [`input`] in the interrupt
//! handler. What has no room is refused, and the line stays quiet until a reader makes room and calls
//! `resume_input`. Signals from the keyboard are sent after the lock is released.
//!
//! # Locks
//! `STATE` is taken with interrupts off, holds while bytes are moved within it, and nothing is taken inside it but the
//! output ports' own lock. `WRITERS` are sleeping locks that keep the bytes of one write together.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use linux_raw_sys::{general as c, ioctl as io};
use sync::RwLock;

use super::{
    Result,
    io::{Sink, Source, moved},
    line::{Line, Received, Termios},
    poll::{Events, Readiness},
};
use crate::{
    errno::{Errno, SysResult},
    hw::{self, irq},
    ids,
    options::Options,
    process::Process,
    signal::{self, SigInfo},
    task, upcall, usercopy,
    wait::{WaitQueue, Woken},
};

/// One of the command's standard files, as a stream.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// Standard input.
    Input,
    /// Standard output.
    Output,
    /// Standard error.
    Error,
}

/// Bytes that wait for the reader of a stream.
const STREAM_CAPACITY: usize = 16 << 10;
/// Bytes that are processed with interrupts off at a time.
const CHUNK: usize = 256;
/// A length that announces a control record.
const CONTROL: u16 = 0xffff;
/// The control record that says the window's size: rows and columns, two bytes each.
const CONTROL_SIZE: u8 = 1;

/// `struct winsize` of the system call.
#[derive(Clone, Copy)]
#[repr(C)]
struct WindowSize {
    rows: u16,
    columns: u16,
    /// In pixels, unknown.
    width: u16,
    height: u16,
}

crate::pod!(WindowSize, Termios);

/// Where the parser of input records is.
#[derive(Clone, Copy)]
enum Record {
    Length,
    /// The low byte of the length.
    LengthHigh(u8),
    /// So many bytes are left.
    Data(u16),
    Control,
    /// The bytes of a size so far.
    Size([u8; 4], usize),
}

/// Bytes of a stream on their way to the reader.
struct Stream {
    bytes: [u8; STREAM_CAPACITY],
    head: usize,
    len: usize,
}

impl Stream {
    fn push(&mut self, byte: u8) -> bool {
        let tail = (self.head + self.len) % STREAM_CAPACITY;
        match self.bytes.get_mut(tail) {
            Some(slot) if self.len < STREAM_CAPACITY => {
                *slot = byte;
                self.len += 1;
                true
            }
            _ => false,
        }
    }

    fn pop(&mut self, out: &mut [u8]) -> usize {
        let n = out.len().min(self.len);
        for slot in out.iter_mut().take(n) {
            *slot = self.bytes.get(self.head).copied().unwrap_or(0);
            self.head = (self.head + 1) % STREAM_CAPACITY;
        }
        self.len -= n;
        n
    }
}

struct State {
    record: Record,
    line: Line,
    stream: Stream,
    /// The command's input has ended.
    ended: bool,
    /// Input was refused for lack of room.
    refused: bool,
    /// Which of the standard files are the terminal.
    terminal: [bool; 3],
    size: WindowSize,
    /// The session whose terminal it is; 0 for none.
    session: u32,
    /// The process group that gets the keyboard's signals, and may read.
    foreground: u32,
}

static STATE: irq::Lock<State> = irq::Lock::new(State {
    record: Record::Length,
    line: Line::new(),
    stream: Stream { bytes: [0; STREAM_CAPACITY], head: 0, len: 0 },
    ended: false,
    refused: false,
    terminal: [false; 3],
    size: WindowSize { rows: 24, columns: 80, width: 0, height: 0 },
    session: 0,
    foreground: 0,
});

/// Woken when there is input, or the end of it.
static READABLE: WaitQueue = WaitQueue::new();
/// Keep the bytes of one write together: standard output or the terminal, standard error.
static WRITERS: [RwLock<()>; 2] = [const { RwLock::new(()) }; 2];

/// Take the settings from the kernel's options.
pub fn configure(options: &Options) {
    let mut state = STATE.lock();
    state.terminal = options.tty;
    (state.size.rows, state.size.columns) = (options.rows, options.cols);
}

/// Whether there is a terminal at all.
pub fn exists() -> bool {
    STATE.lock().terminal.contains(&true)
}

/// Whether the terminal is that of the calling process's session.
pub fn is_ours() -> bool {
    // Relaxed: a process's own.
    exists() && STATE.lock().session == task::current().process.sid.load(Ordering::Relaxed)
}

/// Whether the standard file `fd` (0, 1, 2) is the terminal.
pub fn is_terminal(fd: usize) -> bool {
    STATE.lock().terminal.get(fd).copied().unwrap_or(false)
}

/// Make the terminal that of the session `sid`, with the process group of that number in the foreground.
pub fn attach(sid: u32) {
    let mut state = STATE.lock();
    (state.session, state.foreground) = (sid, sid);
}

impl State {
    /// Where the terminal's output goes: the first of standard output and error that is the terminal.
    fn output(&self) -> Option<fn(&[u8])> {
        match self.terminal {
            [_, true, _] => Some(hw::serial::stdout),
            [_, _, true] => Some(hw::serial::stderr),
            _ => None,
        }
    }

    fn show(&mut self, bytes: &[u8]) {
        if let Some(out) = self.output() {
            self.line.write(bytes, &mut |b| out(b));
        }
    }

    /// Take one byte of data. Says whether there was room, and the signal that it means.
    fn data(&mut self, byte: u8) -> (bool, Option<u32>) {
        if !matches!(self.terminal, [true, ..]) {
            return (self.stream.push(byte), None);
        }
        let received = match self.output() {
            Some(out) => self.line.receive(byte, &mut |b| out(b)),
            None => self.line.receive(byte, &mut |_| {}),
        };
        match received {
            Received::Taken => (true, None),
            Received::Signal(s) => (true, Some(s)),
            Received::Full => (false, None),
        }
    }

    /// Take one byte from the serial line. Says whether there was room, and the signal that it means.
    fn byte(&mut self, byte: u8) -> (bool, Option<u32>) {
        let mut signal = None;
        self.record = match self.record {
            Record::Length => Record::LengthHigh(byte),
            Record::LengthHigh(low) => match u16::from_le_bytes([low, byte]) {
                0 => {
                    self.ended = true;
                    Record::Length
                }
                CONTROL => Record::Control,
                n => Record::Data(n),
            },
            Record::Data(left) => {
                let (taken, s) = self.data(byte);
                if !taken {
                    return (false, None);
                }
                signal = s;
                if left > 1 { Record::Data(left - 1) } else { Record::Length }
            }
            Record::Control if byte == CONTROL_SIZE => Record::Size([0; 4], 0),
            Record::Control => Record::Length,
            Record::Size(mut got, n) => {
                if let Some(slot) = got.get_mut(n) {
                    *slot = byte;
                }
                if n < 3 {
                    Record::Size(got, n + 1)
                } else {
                    let [a, b, c0, d] = got;
                    (self.size.rows, self.size.columns) =
                        (u16::from_le_bytes([a, b]), u16::from_le_bytes([c0, d]));
                    signal = Some(c::SIGWINCH);
                    Record::Length
                }
            }
        };
        (true, signal)
    }
}

/// Take bytes from the serial line; says how many. If that is not all, the line must be quiet until it is told to
/// resume. Called by the interrupt handler.
pub fn input(bytes: &[u8]) -> usize {
    let mut taken = 0;
    let mut signals = 0u64;
    let foreground = {
        let mut state = STATE.lock();
        for &byte in bytes {
            let (room, signal) = state.byte(byte);
            if !room {
                state.refused = true;
                break;
            }
            taken += 1;
            signals |= signal.map_or(0, |s| 1 << s);
        }
        state.foreground
    };
    READABLE.wake_all();
    while signals != 0 && foreground != 0 {
        let signal = signals.trailing_zeros();
        signals &= signals - 1;
        // A group that is gone needs no signal.
        let _ = signal::send_group(foreground, SigInfo::kernel(signal));
    }
    taken
}

/// Let the serial line go on if it waits for room. `state` is what was locked while room was made.
fn resume(mut state: irq::Guard<'_, State>) {
    let refused = core::mem::take(&mut state.refused);
    drop(state);
    if refused {
        hw::serial::resume_input();
    }
}

/// A buffer of `len` bytes, at most `most`.
fn buffer(len: usize, most: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let len = len.min(most);
    bytes.try_reserve_exact(len).map_err(|_| Errno::ENOMEM)?;
    bytes.resize(len, 0);
    Ok(bytes)
}

impl Channel {
    /// Read from the stream: waits for something, or the end. 0 at the end.
    pub fn read(self, sink: &mut dyn Sink, block: bool) -> Result<usize> {
        if self != Channel::Input {
            return Err(Errno::EBADF);
        }
        if sink.room() == 0 {
            return Ok(0);
        }
        let ready = || {
            let state = STATE.lock();
            (state.stream.len > 0 || state.ended).then_some(())
        };
        let mut bytes = buffer(sink.room(), STREAM_CAPACITY)?;
        loop {
            let mut state = STATE.lock();
            let n = state.stream.pop(&mut bytes);
            if n > 0 || state.ended {
                resume(state);
                let got = upcall::owed(|| sink.put(bytes.get(..n).unwrap_or(&[])));
                return moved(got, n, Errno::EFAULT);
            }
            drop(state);
            if !block {
                return Err(Errno::EAGAIN);
            }
            READABLE.wait(None, true, ready).map_err(|_| Errno::RESTART)?;
        }
    }

    /// Write to the stream.
    pub fn write(self, source: &mut dyn Source) -> Result<usize> {
        let (writer, out): (_, fn(&[u8])) = match self {
            Channel::Input => return Err(Errno::EBADF),
            Channel::Output => (&WRITERS[0], hw::serial::stdout),
            Channel::Error => (&WRITERS[1], hw::serial::stderr),
        };
        let ctx = task::unpinned();
        let _writer = writer.write(&ctx);
        transfer(source, out)
    }

    /// Bytes that a read would get.
    pub fn available(self) -> usize {
        if self == Channel::Input { STATE.lock().stream.len } else { 0 }
    }

    /// What can be done now.
    pub fn readiness(self) -> Readiness<'static> {
        if self != Channel::Input {
            return Readiness { events: Events::OUT, queues: [None, None] };
        }
        let state = STATE.lock();
        let mut events = Events::empty();
        events.set(Events::IN, state.stream.len > 0);
        events.set(Events::HUP, state.ended);
        Readiness { events, queues: [Some(&READABLE), None] }
    }
}

/// Give all of `source` to `out`, a chunk at a time.
fn transfer(source: &mut dyn Source, mut out: impl FnMut(&[u8])) -> Result<usize> {
    let asked = source.left();
    let mut done = 0;
    let mut chunk = [0; 4 * CHUNK];
    while source.left() > 0 {
        let want = source.left().min(chunk.len());
        let got = chunk.get_mut(..want).map_or(0, |part| source.take(part));
        out(chunk.get(..got).unwrap_or(&[]));
        done += got;
        if got < want {
            break;
        }
    }
    moved(done, asked, Errno::EFAULT)
}

/// Stop a process that is not in the foreground from using the terminal: sends `signal` to its group, and the call is
/// run again when it goes on. EIO if the signal would do nothing.
fn check_foreground(signal: u32) -> Result<()> {
    let process = &task::current().process;
    let (session, foreground) = {
        let state = STATE.lock();
        (state.session, state.foreground)
    };
    // Relaxed: ids that only this session's own processes change.
    let (sid, pgid) = (process.sid.load(Ordering::Relaxed), process.pgid.load(Ordering::Relaxed));
    if sid != session || pgid == foreground {
        return Ok(());
    }
    if signal == c::SIGTTOU && signal::is_held(signal) {
        return Ok(());
    }
    if signal::is_held(signal) || signal::orphaned(process) {
        return Err(Errno::EIO);
    }
    signal::send_group(pgid, SigInfo::kernel(signal))?;
    Err(Errno::RESTART)
}

/// Read from the terminal: a line, or raw bytes as VMIN and VTIME say. 0 at the end.
pub fn read(sink: &mut dyn Sink, block: bool) -> Result<usize> {
    if sink.room() == 0 {
        return Ok(0);
    }
    check_foreground(c::SIGTTIN)?;
    let mut bytes = buffer(sink.room(), 4096)?;
    wait_for_input(bytes.len(), block)?;
    let mut state = STATE.lock();
    let n = state.line.read(&mut bytes);
    if n == bytes.len() {
        state.line.skip_end(n);
    }
    resume(state);
    let got = upcall::owed(|| sink.put(bytes.get(..n).unwrap_or(&[])));
    moved(got, n, Errno::EFAULT)
}

/// Wait until a read of `room` bytes should return.
fn wait_for_input(room: usize, block: bool) -> Result<()> {
    let mut seen = 0;
    let mut deadline = None;
    loop {
        let (have, ended, canonical, (least, tenths)) = {
            let state = STATE.lock();
            let t = state.line.termios();
            let have = if t.canonical() { state.line.readable().into() } else { state.line.available() };
            (have, state.ended, t.canonical(), t.raw_limits())
        };
        let least = if canonical { 1 } else { least.min(room) };
        if ended || have >= least.max(1) {
            return Ok(());
        }
        if !block {
            return if have > 0 { Ok(()) } else { Err(Errno::EAGAIN) };
        }
        if !canonical && least == 0 && tenths == 0 {
            return Ok(());
        }
        // VTIME runs from the call if VMIN is 0, else from each byte to the next.
        if !canonical && tenths > 0 && (least == 0 && deadline.is_none() || least > 0 && have > seen) {
            deadline = Some(hw::timer::now() + tenths * 100_000_000);
        }
        seen = have;
        let more = || {
            let state = STATE.lock();
            let t = state.line.termios();
            let now = if t.canonical() { state.line.readable().into() } else { state.line.available() };
            (state.ended || now > have || t.canonical() != canonical).then_some(())
        };
        match READABLE.wait(deadline, true, more) {
            Ok(()) => {}
            Err(Woken::TimedOut) => return Ok(()),
            Err(Woken::Interrupted) => return if have > 0 { Ok(()) } else { Err(Errno::RESTART) },
        }
    }
}

/// Write to the terminal, with output processing.
pub fn write(source: &mut dyn Source) -> Result<usize> {
    if STATE.lock().line.termios().lflag & c::TOSTOP != 0 {
        check_foreground(c::SIGTTOU)?;
    }
    let ctx = task::unpinned();
    let _writer = WRITERS[0].write(&ctx);
    transfer(source, |bytes| bytes.chunks(CHUNK).for_each(|part| STATE.lock().show(part)))
}

/// What can be done with the terminal now.
pub fn readiness() -> Readiness<'static> {
    let state = STATE.lock();
    let mut events = Events::OUT;
    events.set(Events::IN, state.line.readable() || state.ended);
    Readiness { events, queues: [Some(&READABLE), None] }
}

/// The terminal's session and foreground group, for /proc: `(session, group)`.
pub fn owners() -> (u32, u32) {
    let state = STATE.lock();
    (state.session, state.foreground)
}

/// Whether a live process satisfies `wanted`.
fn any_process(wanted: impl Fn(&Process) -> bool) -> bool {
    ids::any(wanted)
}

/// `ioctl` on the terminal.
pub fn ioctl(request: u32, arg: u64) -> SysResult {
    let process = task::current().process.clone();
    // Relaxed: a process changes its own; others' changes may be seen either way.
    let sid = process.sid.load(Ordering::Relaxed);
    let ours = |state: &State| if state.session == sid { Ok(()) } else { Err(Errno::ENOTTY) };
    match request {
        io::TCGETS => {
            let termios = *STATE.lock().line.termios();
            usercopy::write(arg, &termios)?;
        }
        io::TCSETS | io::TCSETSW | io::TCSETSF => {
            let termios: Termios = usercopy::read(arg)?;
            check_foreground(c::SIGTTOU)?;
            let mut state = STATE.lock();
            if request == io::TCSETSF {
                state.line.flush();
            }
            state.line.set_termios(termios);
            resume(state);
            READABLE.wake_all();
        }
        io::TIOCGWINSZ => {
            let size = STATE.lock().size;
            usercopy::write(arg, &size)?;
        }
        io::TIOCSWINSZ => {
            let size: WindowSize = usercopy::read(arg)?;
            let (changed, group) = {
                let mut state = STATE.lock();
                let changed = (state.size.rows, state.size.columns) != (size.rows, size.columns);
                state.size = size;
                (changed, state.foreground)
            };
            if changed && group != 0 {
                // A group that is gone needs no signal.
                let _ = signal::send_group(group, SigInfo::kernel(c::SIGWINCH));
            }
        }
        io::TIOCGPGRP => {
            let group = {
                let state = STATE.lock();
                ours(&state)?;
                state.foreground
            };
            usercopy::write(arg, &group)?;
        }
        io::TIOCSPGRP => {
            let group: u32 = usercopy::read(arg)?;
            ours(&STATE.lock())?;
            check_foreground(c::SIGTTOU)?;
            if i32::try_from(group).is_err() {
                return Err(Errno::EINVAL);
            }
            if !any_process(|p| {
                // Relaxed: as above.
                p.pgid.load(Ordering::Relaxed) == group && p.sid.load(Ordering::Relaxed) == sid
            }) {
                return Err(Errno::EPERM);
            }
            STATE.lock().foreground = group;
        }
        io::TIOCGSID => {
            let session = {
                let state = STATE.lock();
                ours(&state)?;
                state.session
            };
            usercopy::write(arg, &session)?;
        }
        io::TIOCSCTTY => {
            if process.pid != sid {
                return Err(Errno::EPERM);
            }
            let mut state = STATE.lock();
            let taken = state.session;
            if taken != sid {
                drop(state);
                // A session that is gone has no say.
                if taken != 0 && arg != 1 && any_process(|p| p.sid.load(Ordering::Relaxed) == taken) {
                    return Err(Errno::EPERM);
                }
                state = STATE.lock();
                // Relaxed: as above.
                (state.session, state.foreground) = (sid, process.pgid.load(Ordering::Relaxed));
            }
        }
        io::TIOCNOTTY => {
            let mut state = STATE.lock();
            ours(&state)?;
            if process.pid == sid {
                (state.session, state.foreground) = (0, 0);
            }
        }
        io::FIONREAD => {
            let n = STATE.lock().line.available() as u32;
            usercopy::write(arg, &n)?;
        }
        io::TIOCOUTQ => usercopy::write(arg, &0u32)?,
        io::TCFLSH => {
            match arg as u32 {
                c::TCIFLUSH | c::TCIOFLUSH => {
                    let mut state = STATE.lock();
                    state.line.flush();
                    resume(state);
                }
                c::TCOFLUSH => {}
                _ => return Err(Errno::EINVAL),
            };
        }
        // Output is never held back, so it is drained, and there is nothing to stop or start.
        io::TCSBRK | io::TCSBRKP | io::TCXONC => {}
        _ => return Err(Errno::ENOTTY),
    }
    Ok(0)
}

//! The terminal's line discipline: what happens to a byte between the keyboard and the program.
//!
//! All of it is here as plain data and functions, without locks or hardware, and without memory of its own to ask for,
//! since it runs in the interrupt handler. Input goes into one ring. In canonical mode its tail is the line being
//! edited; a delimiter turns it into a line that can be read. In raw mode every byte can be read at once. A byte in
//! the ring carries marks: that a line ends after it, or that it stands for the end-of-file key, which ends a line
//! without being part of it.
//!
//! The behaviour is that of Linux's N_TTY (termios(3)), without XON/XOFF, parity and delays, which a serial line of
//! an emulated machine has no use for.

use linux_raw_sys::general as c;

/// Bytes that a line discipline holds; as on Linux.
const CAPACITY: usize = 4096;
/// Mark: a line ends after this byte.
const END: u16 = 1 << 8;
/// Mark: this is the end-of-file key, not a byte of the line.
const EOF: u16 = 1 << 9;

/// `IUTF8`: erasing takes a whole UTF-8 character.
const IUTF8: u32 = 0x4000;
/// `NOFLSH`: signals do not discard input.
const NOFLSH: u32 = 0x80;

/// `struct termios` of the system call.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Termios {
    /// Input modes.
    pub iflag: u32,
    /// Output modes.
    pub oflag: u32,
    /// Control modes.
    pub cflag: u32,
    /// Local modes.
    pub lflag: u32,
    /// The line discipline's number: 0.
    pub line: u8,
    /// The special characters.
    pub cc: [u8; c::NCCS as usize],
}

impl Termios {
    /// A terminal as a login shell finds it.
    pub const fn cooked() -> Self {
        let mut cc = [0; c::NCCS as usize];
        cc[c::VINTR as usize] = 3;
        cc[c::VQUIT as usize] = 28;
        cc[c::VERASE as usize] = 127;
        cc[c::VKILL as usize] = 21;
        cc[c::VEOF as usize] = 4;
        cc[c::VMIN as usize] = 1;
        cc[c::VSTART as usize] = 17;
        cc[c::VSTOP as usize] = 19;
        cc[c::VSUSP as usize] = 26;
        cc[c::VREPRINT as usize] = 18;
        cc[c::VDISCARD as usize] = 15;
        cc[c::VWERASE as usize] = 23;
        cc[c::VLNEXT as usize] = 22;
        Self {
            iflag: c::ICRNL | IUTF8,
            oflag: c::OPOST | c::ONLCR,
            cflag: c::B38400 | c::CS8 | c::CREAD,
            lflag: c::ISIG | c::ICANON | c::ECHO | c::ECHOE | c::ECHOK | c::ECHOCTL | c::ECHOKE | c::IEXTEN,
            line: 0,
            cc,
        }
    }

    fn key(&self, which: u32) -> u8 {
        self.cc.get(which as usize).copied().unwrap_or(0)
    }

    /// Whether `byte` is the special character `which`; 0 disables one.
    fn is(&self, byte: u8, which: u32) -> bool {
        byte != 0 && byte == self.key(which)
    }

    fn local(&self, flag: u32) -> bool {
        self.lflag & flag != 0
    }

    /// Whether input is gathered to lines.
    pub fn canonical(&self) -> bool {
        self.local(c::ICANON)
    }

    /// Least bytes and most tenths of a second of a raw read.
    pub fn raw_limits(&self) -> (usize, u64) {
        (self.key(c::VMIN).into(), self.key(c::VTIME).into())
    }
}

/// What became of a byte of input.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Received {
    /// It was taken.
    Taken,
    /// It was taken and means this signal to the foreground.
    Signal(u32),
    /// There is no room until a program reads.
    Full,
}

/// A line discipline: settings and input on its way.
pub struct Line {
    termios: Termios,
    ring: [u16; CAPACITY],
    head: usize,
    len: usize,
    /// Of `len`, how many can be read; the rest is the line being edited. All of them in raw mode.
    ready: usize,
    /// The next byte is taken as it is (VLNEXT).
    literal: bool,
    /// Where the cursor is, in columns.
    column: usize,
    /// Where it was when the line being edited began.
    start_column: usize,
}

/// Where echo and processed output go.
pub type Output<'a> = &'a mut dyn FnMut(&[u8]);

impl Line {
    /// No input, cooked mode.
    pub const fn new() -> Self {
        Self {
            termios: Termios::cooked(),
            ring: [0; CAPACITY],
            head: 0,
            len: 0,
            ready: 0,
            literal: false,
            column: 0,
            start_column: 0,
        }
    }

    /// The settings.
    pub fn termios(&self) -> &Termios {
        &self.termios
    }

    /// Change the settings. Input that is there stays; a change of mode makes all of it readable.
    pub fn set_termios(&mut self, termios: Termios) {
        if termios.canonical() != self.termios.canonical() {
            self.ready = self.len;
            self.literal = false;
        }
        self.termios = termios;
    }

    /// Discard all input.
    pub fn flush(&mut self) {
        (self.head, self.len, self.ready, self.literal) = (0, 0, 0, false);
    }

    fn at(&self, i: usize) -> u16 {
        self.ring.get((self.head + i) % CAPACITY).copied().unwrap_or(0)
    }

    fn push(&mut self, value: u16) {
        let tail = (self.head + self.len) % CAPACITY;
        if self.len < CAPACITY
            && let Some(slot) = self.ring.get_mut(tail)
        {
            *slot = value;
            self.len += 1;
        }
    }

    fn pop_front(&mut self) -> u16 {
        let value = self.at(0);
        self.head = (self.head + 1) % CAPACITY;
        self.len -= 1;
        self.ready -= 1;
        value
    }

    /// How many bytes a read would get at most.
    pub fn available(&self) -> usize {
        if !self.termios.canonical() {
            return self.ready;
        }
        let end = (0..self.ready).position(|i| self.at(i) & (END | EOF) != 0);
        match end {
            Some(i) => i + usize::from(self.at(i) & EOF == 0),
            None => self.ready,
        }
    }

    /// Whether a read would find a line, or at least one raw byte.
    pub fn readable(&self) -> bool {
        self.ready > 0
    }

    /// Move a line (canonical), or what is there (raw), into `out`; says how many bytes. 0 with something
    /// [`Self::readable`] is an end of file.
    pub fn read(&mut self, out: &mut [u8]) -> usize {
        let canonical = self.termios.canonical();
        let mut n = 0;
        while self.ready > 0 && n <= out.len() {
            let next = self.at(0);
            if next & EOF != 0 {
                self.pop_front();
                if canonical {
                    break;
                }
                continue;
            }
            let Some(slot) = out.get_mut(n) else { break };
            self.pop_front();
            *slot = next as u8;
            n += 1;
            if canonical && next & END != 0 {
                break;
            }
        }
        n
    }

    /// Whether the rest of a line of which `read` gave `n` bytes, all that were asked for, is an end-of-file key;
    /// takes that key then, so that the next read does not see it as an end of file of its own.
    pub fn skip_end(&mut self, n: usize) {
        if n > 0 && self.ready > 0 && self.termios.canonical() && self.at(0) & EOF != 0 {
            self.pop_front();
        }
    }

    /// Take one byte from the keyboard, with echo to `out`.
    pub fn receive(&mut self, byte: u8, out: Output) -> Received {
        let t = self.termios;
        let mut byte = byte;
        if self.literal {
            self.literal = false;
            self.insert(byte, 0, out);
            return Received::Taken;
        }
        if byte == b'\r' {
            if t.iflag & c::IGNCR != 0 {
                return Received::Taken;
            }
            if t.iflag & c::ICRNL != 0 {
                byte = b'\n';
            }
        } else if byte == b'\n' && t.iflag & c::INLCR != 0 {
            byte = b'\r';
        }
        if t.local(c::ISIG)
            && let Some(signal) = self.signal_of(byte)
        {
            if !t.local(NOFLSH) {
                self.flush();
            }
            self.echo(byte, out);
            return Received::Signal(signal);
        }
        if !t.canonical() {
            if self.len == CAPACITY {
                return Received::Full;
            }
            self.echo(byte, out);
            self.push(u16::from(byte));
            self.ready = self.len;
            return Received::Taken;
        }
        self.receive_cooked(byte, out)
    }

    fn signal_of(&self, byte: u8) -> Option<u32> {
        [(c::VINTR, c::SIGINT), (c::VQUIT, c::SIGQUIT), (c::VSUSP, c::SIGTSTP)]
            .into_iter()
            .find(|&(key, _)| self.termios.is(byte, key))
            .map(|(_, signal)| signal)
    }

    fn receive_cooked(&mut self, byte: u8, out: Output) -> Received {
        let t = self.termios;
        let extended = t.local(c::IEXTEN);
        if t.is(byte, c::VERASE) || byte == 8 && t.key(c::VERASE) == 127 {
            self.erase(out);
        } else if t.is(byte, c::VWERASE) && extended {
            self.erase_word(out);
        } else if t.is(byte, c::VKILL) {
            self.kill(byte, out);
        } else if t.is(byte, c::VREPRINT) && extended && t.local(c::ECHO) {
            self.echo(byte, out);
            self.emit(b'\n', out);
            for i in self.ready..self.len {
                self.echo(self.at(i) as u8, out);
            }
        } else if t.is(byte, c::VLNEXT) && extended {
            self.literal = true;
            if t.local(c::ECHO) && t.local(c::ECHOCTL) {
                out(b"^\x08");
            }
        } else if t.is(byte, c::VEOF) {
            return self.finish(0, EOF, out);
        } else if byte == b'\n' || t.is(byte, c::VEOL) || t.is(byte, c::VEOL2) && extended {
            return self.finish(byte, END, out);
        } else {
            return self.insert(byte, 0, out);
        }
        Received::Taken
    }

    /// End the line being edited with `byte`.
    fn finish(&mut self, byte: u8, mark: u16, out: Output) -> Received {
        if self.len == CAPACITY {
            return Received::Full;
        }
        if mark == END && (self.termios.local(c::ECHO) || byte == b'\n' && self.termios.local(c::ECHONL)) {
            self.echo_always(byte, out);
        }
        self.push(u16::from(byte) | mark);
        self.ready = self.len;
        Received::Taken
    }

    /// Add `byte` to the line being edited. One place is kept for the delimiter: a line that is too long loses bytes,
    /// with a bell; but while there are lines to read, input waits instead.
    fn insert(&mut self, byte: u8, mark: u16, out: Output) -> Received {
        if self.len >= CAPACITY - 1 {
            if self.ready > 0 {
                return Received::Full;
            }
            out(b"\x07");
            return Received::Taken;
        }
        if self.len == self.ready {
            self.start_column = self.column;
        }
        self.echo(byte, out);
        self.push(u16::from(byte) | mark);
        if !self.termios.canonical() {
            self.ready = self.len;
        }
        Received::Taken
    }

    fn echo(&mut self, byte: u8, out: Output) {
        if self.termios.local(c::ECHO) {
            self.echo_always(byte, out);
        }
    }

    fn echo_always(&mut self, byte: u8, out: Output) {
        if self.shown_as_control(byte) {
            self.emit(b'^', out);
            self.emit(byte ^ 0x40, out);
        } else {
            self.emit(byte, out);
        }
    }

    fn shown_as_control(&self, byte: u8) -> bool {
        self.termios.local(c::ECHOCTL) && (byte < 32 || byte == 127) && byte != b'\n' && byte != b'\t'
    }

    /// Columns that `byte` takes at `column`.
    fn width(&self, byte: u8, column: usize) -> usize {
        match byte {
            b'\t' => 8 - column % 8,
            _ if self.shown_as_control(byte) => 2,
            0..32 | 127 => 0,
            0x80..0xc0 if self.termios.iflag & IUTF8 != 0 => 0,
            _ => 1,
        }
    }

    fn drop_last(&mut self) -> Option<u8> {
        if self.len == self.ready {
            return None;
        }
        self.len -= 1;
        Some(self.at(self.len) as u8)
    }

    /// Take the last character of the line back, also from the screen.
    fn erase(&mut self, out: Output) {
        let utf8 = self.termios.iflag & IUTF8 != 0;
        let Some(mut byte) = self.drop_last() else { return };
        while utf8 && (0x80..0xc0).contains(&byte) {
            match self.drop_last() {
                Some(b) => byte = b,
                None => break,
            }
        }
        if !self.termios.local(c::ECHO) {
            return;
        }
        if !self.termios.local(c::ECHOE) {
            self.echo(self.termios.key(c::VERASE), out);
            return;
        }
        let before = (self.ready..self.len)
            .fold(self.start_column, |column, i| column + self.width(self.at(i) as u8, column));
        for _ in 0..self.width(byte, before) {
            out(if byte == b'\t' { b"\x08" } else { b"\x08 \x08" });
            self.column = self.column.saturating_sub(1);
        }
    }

    fn last(&self) -> Option<u8> {
        (self.len > self.ready).then(|| self.at(self.len - 1) as u8)
    }

    /// Take the last word back, with the blanks after it.
    fn erase_word(&mut self, out: Output) {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b >= 0x80;
        while self.last().is_some_and(|b| !word(b)) {
            self.erase(out);
        }
        while self.last().is_some_and(word) {
            self.erase(out);
        }
    }

    /// Take the line back.
    fn kill(&mut self, byte: u8, out: Output) {
        if self.termios.local(c::ECHOKE) && self.termios.local(c::ECHOE) {
            while self.last().is_some() {
                self.erase(out);
            }
            return;
        }
        self.len = self.ready;
        self.echo(byte, out);
        if self.termios.local(c::ECHOK) {
            self.emit(b'\n', out);
        }
    }

    /// One byte of output, processed.
    fn emit(&mut self, byte: u8, out: Output) {
        self.write(&[byte], out);
    }

    /// Output of a program, processed as the settings say.
    pub fn write(&mut self, bytes: &[u8], out: Output) {
        let flags = self.termios.oflag;
        if flags & c::OPOST == 0 {
            out(bytes);
            return;
        }
        let mut plain = 0; // start of what needs no processing
        for (i, &byte) in bytes.iter().enumerate() {
            match byte {
                b'\n' if flags & c::ONLCR != 0 => {
                    out(bytes.get(plain..i).unwrap_or(&[]));
                    out(b"\r\n");
                    plain = i + 1;
                    self.column = 0;
                }
                b'\r' if flags & c::OCRNL != 0 => {
                    out(bytes.get(plain..i).unwrap_or(&[]));
                    out(b"\n");
                    plain = i + 1;
                }
                b'\r' => self.column = 0,
                8 => self.column = self.column.saturating_sub(1),
                b'\t' => self.column += 8 - self.column % 8,
                0..32 | 127 => {}
                0x80..0xc0 if self.termios.iflag & IUTF8 != 0 => {}
                _ => self.column += 1,
            }
        }
        out(bytes.get(plain..).unwrap_or(&[]));
    }
}

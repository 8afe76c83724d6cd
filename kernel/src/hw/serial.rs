//! Bytes out by QEMU's debug consoles, bytes in by the first serial port.
//!
//! Output is one `rep outsb` per call. The order of what different CPUs write is the callers' business, but for the
//! control channel, whose lines are written whole.
//!
//! Input is flow-controlled end to end: what `file::tty::input` does not accept stays here, at most one FIFO of it, and
//! the port's interrupt is off; then the port's FIFO fills up, and QEMU stops reading its own input. Whoever makes
//! room calls [`resume_input`].

use core::fmt::{self, Write};

use super::{irq, port};

const STDOUT: u16 = 0xe9;
const STDERR: u16 = 0xea;
const CONTROL: u16 = 0xeb;

/// Write to the program's standard output.
pub fn stdout(bytes: &[u8]) {
    // SAFETY: a debug console, or nothing.
    unsafe { port::outsb(STDOUT, bytes) }
}

/// Write to the program's standard error.
pub fn stderr(bytes: &[u8]) {
    // SAFETY: a debug console, or nothing.
    unsafe { port::outsb(STDERR, bytes) }
}

static CONTROL_LOCK: irq::Lock<()> = irq::Lock::new(());

/// Write to the control channel; not mixed with what other CPUs write there.
pub fn control(bytes: &[u8]) {
    let _whole = CONTROL_LOCK.lock();
    control_unlocked(bytes);
}

/// Write to the control channel when this CPU is the last that runs.
pub fn control_unlocked(bytes: &[u8]) {
    // SAFETY: a debug console, or nothing.
    unsafe { port::outsb(CONTROL, bytes) }
}

/// A line in the making; what does not fit is cut off.
struct Line {
    bytes: [u8; 512],
    len: usize,
}

impl Write for Line {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let n = s.len().min(self.bytes.len() - 1 - self.len);
        self.bytes[self.len..self.len + n].copy_from_slice(&s.as_bytes()[..n]);
        self.len += n;
        Ok(())
    }
}

/// Write a line to the control channel; `locked` unless all others are stopped. At most 511 bytes. Needs no memory.
pub fn control_line(args: fmt::Arguments<'_>, locked: bool) {
    let mut line = Line { bytes: [0; 512], len: 0 };
    // It never fails.
    let _ = line.write_fmt(args);
    line.bytes[line.len] = b'\n';
    let bytes = &line.bytes[..=line.len];
    if locked { control(bytes) } else { control_unlocked(bytes) }
}

/// A line of the kernel's log: on the control channel, which the driver shows when asked to.
#[macro_export]
macro_rules! log {
    ($($arg:tt)*) => {
        $crate::hw::serial::control_line(format_args!($($arg)*), true)
    };
}

// ---- input -------------------------------------------------------------------------------------------------------

const COM1: u16 = 0x3f8;
const DATA: u16 = COM1;
const INTERRUPT_ENABLE: u16 = COM1 + 1;
const FIFO_CONTROL: u16 = COM1 + 2;
const LINE_CONTROL: u16 = COM1 + 3;
const MODEM_CONTROL: u16 = COM1 + 4;
const LINE_STATUS: u16 = COM1 + 5;
const FIFO_BYTES: usize = 16;

/// Bytes taken from the port and not yet accepted.
struct Input {
    held: [u8; FIFO_BYTES],
    len: usize,
}

impl Input {
    /// Take what the port has.
    fn take(&mut self) {
        while self.len < FIFO_BYTES && has_byte() {
            // SAFETY: reads the byte that has arrived; the value is only reached with INPUT locked.
            self.held[self.len] = unsafe { port::inb(DATA) };
            self.len += 1;
        }
    }
}

static INPUT: irq::Lock<Input> = irq::Lock::new(Input { held: [0; FIFO_BYTES], len: 0 });

/// Let the port interrupt (16550: 115200 baud, 8N1, FIFO, an interrupt at 14 bytes or soon after the last). Once,
/// when `file::tty::input` is ready.
///
/// Turning the FIFO on empties the port. A byte that waits is taken before, but another could come in between: the
/// driver sends nothing before the kernel's `ready` record.
pub fn enable_input() {
    let mut input = INPUT.lock();
    // SAFETY: the registers of the first serial port, which nobody else uses.
    unsafe {
        port::outb(INTERRUPT_ENABLE, 0);
        port::outb(LINE_CONTROL, 0x80);
        port::outb(DATA, 1);
        port::outb(INTERRUPT_ENABLE, 0);
        port::outb(LINE_CONTROL, 3);
        input.take();
        port::outb(FIFO_CONTROL, 0xc1);
        port::outb(MODEM_CONTROL, 0b1011);
    }
    drop(input);
    resume_input();
}

/// Offer again what was not accepted, and take more. Call it when there is room again, with no lock held that
/// `file::tty::input` takes.
pub fn resume_input() {
    pump(&mut INPUT.lock());
}

/// The port's interrupt; the caller says `eoi`.
pub fn on_interrupt() {
    pump(&mut INPUT.lock());
}

/// Whether a byte has arrived. All ones come from a port that isn't there.
fn has_byte() -> bool {
    // SAFETY: a status register of the first serial port.
    let status = unsafe { port::inb(LINE_STATUS) };
    status & 1 != 0 && status != 0xff
}

fn pump(input: &mut Input) {
    loop {
        let taken = crate::file::tty::input(&input.held[..input.len]).min(input.len);
        input.held.copy_within(taken..input.len, 0);
        input.len -= taken;
        if input.len > 0 {
            // SAFETY: a register of the port, which is only used with INPUT locked.
            return unsafe { port::outb(INTERRUPT_ENABLE, 0) };
        }
        input.take();
        if input.len == 0 {
            // SAFETY: as above. Bytes that came since the last look raise the line again now.
            return unsafe { port::outb(INTERRUPT_ENABLE, 1) };
        }
    }
}

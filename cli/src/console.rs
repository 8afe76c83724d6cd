//! Between the guest's channels and the standard files: framed input, and pumps for the outputs.
//!
//! Input goes over a serial line, which has no end of file and no room for anything but bytes, so it is framed: a
//! length in two bytes, little-endian, and that many bytes; the length 0 is the end of file; the length 0xffff
//! introduces a control record, a byte for its kind and what belongs to it (1: the window's rows and columns, two
//! bytes each).

use std::{
    io::{self, PipeReader, Read, Write},
    os::fd::AsFd,
    process::ChildStdin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, poll};

/// A frame's contents are at most this long, so that interleaved control records don't wait.
const FRAME: usize = 4096;
const CONTROL: u16 = 0xffff;
const WINDOW_SIZE: u8 = 1;

/// A frame with these bytes; with none, the end of file.
pub fn frame(bytes: &[u8]) -> Vec<u8> {
    debug_assert!(bytes.len() <= FRAME);
    [&(bytes.len() as u16).to_le_bytes(), bytes].concat()
}

/// The control record of a window size.
pub fn window_size(rows: u16, columns: u16) -> Vec<u8> {
    [&CONTROL.to_le_bytes()[..], &[WINDOW_SIZE], &rows.to_le_bytes(), &columns.to_le_bytes()].concat()
}

/// The guest's input; several threads send whole frames.
#[derive(Clone)]
pub struct Input(Arc<Mutex<ChildStdin>>);

impl Input {
    /// Input through this pipe.
    pub fn new(pipe: ChildStdin) -> Self {
        Self(Arc::new(Mutex::new(pipe)))
    }

    /// Send a whole frame. Fails when the machine is gone.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write_all(frame)
    }

    /// Send everything that `from` yields, and the end of file. `seen` is shown all bytes first and may end it.
    pub fn pump(&self, mut from: impl Read, mut seen: impl FnMut(&[u8]) -> bool) {
        let mut buffer = [0; FRAME];
        loop {
            let n = match from.read(&mut buffer) {
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // As on Linux, a terminal that has gone reads as the end of file.
                Err(_) => 0,
            };
            if !seen(&buffer[..n]) || self.send(&frame(&buffer[..n])).is_err() || n == 0 {
                return;
            }
        }
    }
}

/// Recognises the escape, Ctrl-] three times within a second, in what is typed.
#[derive(Default)]
pub struct Escape {
    count: u32,
    began: Option<Instant>,
}

impl Escape {
    const KEY: u8 = 0x1d;
    const TIMES: u32 = 3;
    const WITHIN: Duration = Duration::from_secs(1);

    /// Whether `typed` completes the escape at the time `now`.
    pub fn completes(&mut self, typed: &[u8], now: Instant) -> bool {
        for byte in typed {
            let running = self.began.is_some_and(|began| now.duration_since(began) <= Self::WITHIN);
            if *byte != Self::KEY {
                self.count = 0;
            } else if self.count == 0 || !running {
                (self.count, self.began) = (1, Some(now));
            } else {
                self.count += 1;
            }
            if self.count == Self::TIMES {
                return true;
            }
        }
        false
    }
}

/// Copy everything from a channel to a standard file; an error is the file's, as when its reader has gone.
pub fn copy(mut from: PipeReader, to: impl AsFd) -> io::Result<()> {
    let mut buffer = [0; 65536];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => write_all(&to, &buffer[..n])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Ok(()),
        }
    }
}

/// Write to a file that may be non-blocking: a terminal is, if any other program has made it so.
fn write_all(to: &impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => {
                poll(&mut [PollFd::new(to, PollFlags::OUT)], None)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Everything from a channel, of which the first `limit` bytes are kept.
pub fn collect(mut from: PipeReader, limit: usize) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut buffer = [0; 65536];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        kept.extend_from_slice(&buffer[..n.min(limit - kept.len())]);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_carry_their_length() {
        assert_eq!(frame(b"hi"), b"\x02\0hi");
        assert_eq!(frame(&[7; 300])[..3], [44, 1, 7]);
        assert_eq!(frame(b""), b"\0\0");
        assert_eq!(window_size(24, 0x150), b"\xff\xff\x01\x18\0\x50\x01");
    }

    #[test]
    fn input_is_framed_and_ends() {
        let mut cat = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let input = Input::new(cat.stdin.take().unwrap());
        input.pump(&vec![b'x'; FRAME + 1][..], |_| true);
        drop(input);
        let out = cat.wait_with_output().unwrap().stdout;
        assert_eq!(out.len(), 2 + FRAME + 2 + 1 + 2);
        assert_eq!(&out[..3], b"\0\x10x");
        assert_eq!(&out[2 + FRAME..], b"\x01\0x\0\0");
    }

    #[test]
    fn the_escape_is_three_in_a_row_within_a_second() {
        let now = Instant::now();
        let mut escape = Escape::default();
        assert!(!escape.completes(b"a\x1d\x1d", now));
        assert!(!escape.completes(b"x\x1d\x1d", now));
        assert!(escape.completes(b"\x1d", now + Duration::from_millis(900)));
        let mut slow = Escape::default();
        assert!(!slow.completes(b"\x1d\x1d", now));
        assert!(!slow.completes(b"\x1d", now + Duration::from_secs(2)));
    }
}

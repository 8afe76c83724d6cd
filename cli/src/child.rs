//! Child processes. Two promises: each one is bounded in time, and none outlives the driver.
//!
//! A child leads a process group of its own, so that its children (cargo's compilers and tests) go with it. The groups
//! alive are registered: a signal that ends the driver ends them first. Against SIGKILL, which nobody sees, the kernel
//! is asked to kill the child when its parent dies.

use std::{
    io::{self, PipeReader, Read, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{Mutex, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM},
    iterator::Signals,
    low_level::emulate_default_handler,
};

use crate::terminal;

/// The process groups that are alive.
static LIVE: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// Make the signals that end the driver, and its panics, restore the terminal and end all children first.
pub fn die_cleanly() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        terminal::restore();
        hook(info);
        kill_all();
    }));
    let Ok(mut signals) = Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM]) else { return };
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            die_of(signal);
        }
    });
}

/// End the driver as `signal` would, after putting everything in order.
pub fn die_of(signal: i32) -> ! {
    terminal::restore();
    kill_all();
    let _ = emulate_default_handler(signal);
    std::process::exit(128 + signal)
}

fn kill_all() {
    for group in LIVE.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
        let _ = kill_process_group(group, Signal::KILL);
    }
}

/// A child that is killed, with its whole group, when this is dropped.
pub struct Guarded {
    child: Child,
    group: Pid,
}

impl Guarded {
    /// Start `command`. Call from a thread that waits for the child: it dies with that thread.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        command.process_group(0);
        // SAFETY: between fork and exec only a single system call is made, which is async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(io::Error::from)
            });
        }
        let child = command.spawn().with_context(|| format!("cannot start {}", name(command)))?;
        let group = Pid::from_child(&child);
        LIVE.lock().unwrap_or_else(PoisonError::into_inner).push(group);
        Ok(Self { child, group })
    }

    /// The child's standard input, if it was piped; once.
    pub fn stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Kill the child and its group.
    pub fn kill(&self) {
        let _ = kill_process_group(self.group, Signal::KILL);
    }

    /// Wait until `deadline`; `None` when it has passed, and the child is then dead.
    pub fn wait_until(&mut self, deadline: Instant) -> io::Result<Option<ExitStatus>> {
        // Callers come here when the child's pipes have closed, so it is about to end: a short poll is enough.
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Some(status));
            }
            if Instant::now() >= deadline {
                self.kill();
                self.child.wait()?;
                return Ok(None);
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.kill();
        let _ = self.child.wait();
        LIVE.lock().unwrap_or_else(PoisonError::into_inner).retain(|group| *group != self.group);
    }
}

/// How a child ended.
pub struct Finished {
    /// `None`: it was killed, at the time limit or because it had said enough.
    pub status: Option<ExitStatus>,
    /// Standard output and standard error together, or standard output alone if they were captured apart.
    pub stdout: Vec<u8>,
    /// Standard error, if captured apart.
    pub stderr: Vec<u8>,
}

impl Finished {
    /// Exit status 0 in time.
    pub fn success(&self) -> bool {
        self.status.is_some_and(|s| s.success())
    }

    /// The output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// How it ended, in words.
    pub fn ending(&self) -> String {
        match self.status {
            None => "ran out of time".to_owned(),
            Some(status) => status.to_string(),
        }
    }

    /// The exit status as a shell gives it: 128 + N if signal N ended it; `None` at the time limit.
    pub fn code(&self) -> Option<i32> {
        self.status.map(|s| s.code().unwrap_or_else(|| 128 + s.signal().unwrap_or(0)))
    }
}

/// Run `command` for at most `limit`, with both outputs together, and show each line to `on_line` as it comes. A
/// carriage return ends a line too, as in progress displays.
pub fn lines(command: &mut Command, limit: Duration, mut on_line: impl FnMut(&str)) -> Result<Finished> {
    lines_until(command, limit, |line| {
        on_line(line);
        false
    })
}

/// As [`lines`], and the command is killed, as at its limit, after a line that `is_enough`.
pub fn lines_until(
    command: &mut Command,
    limit: Duration,
    mut is_enough: impl FnMut(&str) -> bool,
) -> Result<Finished> {
    let (reader, writer) = io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let deadline = Instant::now() + limit;
    let mut child = Guarded::spawn(command)?;
    // The command holds the write ends; without this the pipe would never end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let (send, chunks) = mpsc::channel();
    thread::spawn(move || forward(reader, &send));
    let mut output = Vec::new();
    let (mut line, mut enough) = (Vec::new(), false);
    while !enough && let Ok(chunk) = chunks.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        for byte in &chunk {
            match byte {
                b'\n' | b'\r' => enough |= is_enough(&String::from_utf8_lossy(&std::mem::take(&mut line))),
                _ => line.push(*byte),
            }
        }
        output.extend(chunk);
    }
    if !line.is_empty() {
        enough |= is_enough(&String::from_utf8_lossy(&line));
    }
    let deadline = if enough { Instant::now() } else { deadline };
    Ok(Finished { status: child.wait_until(deadline)?, stdout: output, stderr: Vec::new() })
}

fn forward(mut reader: PipeReader, to: &mpsc::Sender<Vec<u8>>) {
    let mut buffer = [0; 8192];
    while let Ok(n @ 1..) = reader.read(&mut buffer) {
        if to.send(buffer[..n].to_vec()).is_err() {
            return;
        }
    }
}

/// Run `command` for at most `limit` with this standard input; the two outputs apart.
pub fn capture(command: &mut Command, input: &[u8], limit: Duration) -> Result<Finished> {
    let (out, out_writer) = io::pipe()?;
    let (err, err_writer) = io::pipe()?;
    command.stdin(Stdio::piped()).stdout(out_writer).stderr(err_writer);
    let deadline = Instant::now() + limit;
    let mut child = Guarded::spawn(command)?;
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let stdin = child.stdin();
    thread::scope(|scope| {
        let out = scope.spawn(|| read_all(out));
        let err = scope.spawn(|| read_all(err));
        scope.spawn(|| stdin.map(|mut pipe| pipe.write_all(input)));
        let status = child.wait_until(deadline);
        // What the child left running in its group may still hold the pipes.
        child.kill();
        let join = |thread: thread::ScopedJoinHandle<'_, Vec<u8>>| thread.join().unwrap_or_default();
        Ok(Finished { stdout: join(out), stderr: join(err), status: status? })
    })
}

fn read_all(mut pipe: PipeReader) -> Vec<u8> {
    let mut bytes = Vec::new();
    // An error ends the output like an end of file: what came before it counts.
    let _ = pipe.read_to_end(&mut bytes);
    bytes
}

fn name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_child_past_its_limit_is_killed_with_its_group() {
        let began = Instant::now();
        let end = lines(&mut shell("sleep 100 & sleep 100"), Duration::from_millis(100), |_| ()).unwrap();
        assert!(end.status.is_none() && began.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_child_is_killed_after_a_line_that_is_enough() {
        let began = Instant::now();
        let limit = Duration::from_secs(60);
        let end = lines_until(&mut shell("echo a; echo b; sleep 100"), limit, |line| line == "b").unwrap();
        assert!(end.status.is_none() && end.text() == "a\nb\n" && began.elapsed() < limit / 2);
        let end = lines_until(&mut shell("echo a"), limit, |line| line == "b").unwrap();
        assert!(end.success());
    }

    #[test]
    fn lines_end_at_carriage_returns_too() {
        let mut seen = Vec::new();
        let end = lines(&mut shell("printf 'a\\rb\\nc'; exit 3"), Duration::from_secs(20), |l| {
            seen.push(l.to_owned())
        });
        assert_eq!(seen, ["a", "b", "c"]);
        assert_eq!(end.unwrap().code(), Some(3));
    }

    #[test]
    fn outputs_are_captured_apart_and_signals_are_128_plus_n() {
        let end =
            capture(&mut shell("cat; echo err >&2; kill -9 $$"), b"in", Duration::from_secs(20)).unwrap();
        assert_eq!((end.stdout, end.stderr), (b"in".to_vec(), b"err\n".to_vec()));
        assert_eq!(end.status.and_then(|s| s.signal()), Some(9));
    }
}

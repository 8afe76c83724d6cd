//! One run of a machine, from QEMU's start to its end.
//!
//! Threads move bytes: a pump for each output, a reader of the control channel, one of what Linux prints on the serial
//! line, one of QEMU's own messages, one for input. The main thread takes their events, keeps the time, and decides how the run ended. The machine has ended when
//! the control channel has: QEMU alone holds its other end.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, PipeReader, PipeWriter, Read, Seek, SeekFrom},
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::io::{FdFlags, fcntl_setfd};
use signal_hook::{consts::SIGWINCH, iterator::Signals};

use crate::{
    child::Guarded,
    console::{self, Escape, Input},
    exact,
    image::Image,
    linux,
    machine::{self, Boot, Machine, System},
    record::{self, Line, Place, ProgramPlace},
    symbols::Symbols,
    terminal, ui,
};

/// After its last word, the machine has this long to end by itself.
const GRACE: Duration = Duration::from_secs(5);
/// Captured output beyond this many bytes is dropped.
const CAPTURE_LIMIT: usize = 64 << 20;
/// So much may wait in an output's pipe, in bytes, before the machine has to.
const PIPE_SIZE: usize = 1 << 20;
/// At most this many of the kernel's messages are kept.
const LOG_LIMIT: usize = 10_000;

/// Where the guest's standard files are.
pub enum Files {
    /// They are the driver's.
    Ours,
    /// This input; the outputs are captured.
    Captured(Vec<u8>),
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The program ended with this status (128 + N: by signal N).
    Exited(u8),
    /// The time limit passed.
    TimedOut,
    /// The kernel panicked.
    Panicked,
    /// The user typed the escape.
    Escaped,
    /// The reader of an output has gone.
    OutputClosed,
    /// The emulator ended, or never started, without a result; why, as far as is known.
    Died(String),
}

/// What a run left behind.
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// Captured standard output.
    pub stdout: Vec<u8>,
    /// Captured standard error.
    pub stderr: Vec<u8>,
    /// The kernel's messages, with symbolised backtraces.
    pub log: Vec<String>,
    /// The counters as JSON.
    pub stats: Option<String>,
    /// What the exact machine's tracer counted, as JSON.
    pub counts: Option<String>,
    /// Nanoseconds from the machine's start to the first user instruction.
    pub ready: Option<u64>,
    /// Names for memory, if they were asked for.
    pub places: Vec<Place>,
    /// And for the programs in it.
    pub programs: Vec<ProgramPlace>,
    /// Results of the kernel's own tests.
    pub tests: Vec<(String, Result<(), String>)>,
    /// From QEMU's start to its end.
    pub took: Duration,
}

enum Event {
    Line(Line),
    /// The control channel has ended.
    Ended,
    Escape,
    OutputClosed,
}

/// Boot `machine` with `image` and see the run to its end.
pub fn run(
    machine: &Machine,
    boot: &Boot,
    mut image: Image,
    files: Files,
    limit: Option<Duration>,
) -> Result<Outcome> {
    let began = Instant::now();
    let boot = &Boot { serial_time: machine.exact.is_some(), ..boot.clone() };
    if machine.exact.is_some() {
        exact::prepare(&mut image, &files, limit)?;
    }
    let report =
        machine.exact.as_ref().filter(|exact| exact.count).map(|_| tempfile::tempfile()).transpose()?;
    let initramfs = pack(image, machine)?;
    let (control, control_writer) = io::pipe()?;
    let (out, out_writer) = io::pipe()?;
    let (err, err_writer) = io::pipe()?;
    // If both outputs are one file, they share a pipe, so that their order is kept.
    let shared = matches!(files, Files::Ours) && same_file(io::stdout().as_fd(), io::stderr().as_fd());
    for pipe in [&out_writer, &err_writer] {
        // A larger pipe is only faster.
        let _ = rustix::pipe::fcntl_setpipe_size(pipe, PIPE_SIZE);
    }
    let err_channel = if shared { &out_writer } else { &err_writer };
    let channels = [&out_writer, err_channel, &control_writer].map(|writer| descriptor(writer.as_raw_fd()));
    let interactive = matches!(files, Files::Ours) && machine.exact.is_none();
    let raw = interactive.then(terminal::Raw::enter).flatten();

    let mut command = Command::new(machine::emulator()?);
    let report_path = report.as_ref().map(|file| descriptor(file.as_raw_fd()));
    command.args(machine.arguments(
        &descriptor(initramfs.as_raw_fd()),
        &channels,
        report_path.as_deref(),
        &machine.command_line(boot, shared),
    ));
    let (messages, messages_writer) = io::pipe()?;
    let (serial, serial_writer) = io::pipe()?;
    command.stdin(Stdio::piped()).stdout(serial_writer).stderr(messages_writer);
    let mut inherited: Vec<_> = vec![
        initramfs.as_raw_fd(),
        out_writer.as_raw_fd(),
        err_writer.as_raw_fd(),
        control_writer.as_raw_fd(),
    ];
    inherited.extend(report.as_ref().map(AsRawFd::as_raw_fd));
    pass_on(&mut command, inherited);
    let mut qemu = Guarded::spawn(&mut command)?;
    // The command and these writers would keep the channels open.
    drop(command);
    drop::<[PipeWriter; 3]>([out_writer, err_writer, control_writer]);

    let (events, inbox) = mpsc::channel();
    let input = qemu.stdin().map(Input::new).context("QEMU has no standard input")?;
    let outputs = pump_outputs(&files, out, err, &events);
    let messages = thread::spawn(move || console::collect(messages, CAPTURE_LIMIT));
    read_control(control, events.clone());
    let serial = read_serial(serial, events.clone());
    let source = match files {
        _ if machine.exact.is_some() => Source::Packed,
        Files::Ours => Source::Ours { raw: raw.is_some() },
        Files::Captured(bytes) => Source::Bytes(bytes),
    };
    let mut watch = Watch {
        deadline: limit.map(|limit| began + limit),
        input: Some((input, source, events)),
        more: None,
        verbose: boot.verbose,
        symbols: None,
        machine,
        panicked: false,
        last_word: None,
        outcome: Outcome::new(),
    };
    let end = watch.until_the_end(&inbox);
    if end.is_some() {
        qemu.kill();
    }
    let status = qemu.wait_until(Instant::now() + GRACE)?;
    // The pumps end when QEMU has: what they had is written now, before the terminal is given back.
    let [stdout, stderr] = outputs.map(|pump| pump.join().unwrap_or_default());
    drop(raw);
    // Linux's last words may come after the end of the control channel.
    let _ = serial.join();
    watch.take_the_rest(&inbox);
    let said = messages.join().unwrap_or_default();
    let mut outcome = watch.outcome;
    (outcome.stdout, outcome.stderr, outcome.took) = (stdout, stderr, began.elapsed());
    outcome.counts = report.map(read_whole).transpose()?.filter(|text| !text.is_empty());
    outcome.end = match (end, watch.panicked, outcome.end) {
        (_, true, _) => End::Panicked,
        (_, _, exited @ End::Exited(_)) => exited,
        (Some(end), ..) => end,
        (None, ..) => died(status, &String::from_utf8_lossy(&said)),
    };
    Ok(outcome)
}

impl Outcome {
    fn new() -> Self {
        Self {
            end: End::Died(String::new()),
            stdout: Vec::new(),
            stderr: Vec::new(),
            log: Vec::new(),
            stats: None,
            counts: None,
            ready: None,
            places: Vec::new(),
            programs: Vec::new(),
            tests: Vec::new(),
            took: Duration::ZERO,
        }
    }
}

/// The main thread's part.
struct Watch<'a> {
    deadline: Option<Instant>,
    /// Until input may be sent.
    input: Option<(Input, Source, Sender<Event>)>,
    /// Tells the input's thread that it may send a frame, on Linux; Quire holds the emulator back by itself.
    more: Option<Sender<()>>,
    verbose: bool,
    symbols: Option<Symbols>,
    machine: &'a Machine,
    panicked: bool,
    /// When the machine said that it was ending.
    last_word: Option<Instant>,
    outcome: Outcome,
}

impl Watch<'_> {
    /// Take events until the control channel ends (`None`) or the run is to be ended.
    fn until_the_end(&mut self, inbox: &Receiver<Event>) -> Option<End> {
        loop {
            let grace = self.last_word.map(|at| at + GRACE);
            let until = [self.deadline, grace].into_iter().flatten().min();
            let event = match until {
                Some(until) => inbox.recv_timeout(until.saturating_duration_since(Instant::now())),
                None => inbox.recv().map_err(RecvTimeoutError::from),
            };
            match event {
                Ok(Event::Line(line)) => self.line(line),
                Ok(Event::Ended) | Err(RecvTimeoutError::Disconnected) => return None,
                Ok(Event::Escape) => return Some(End::Escaped),
                Ok(Event::OutputClosed) => return Some(End::OutputClosed),
                Err(RecvTimeoutError::Timeout) => return Some(End::TimedOut),
            }
        }
    }

    fn take_the_rest(&mut self, inbox: &Receiver<Event>) {
        for event in inbox.try_iter() {
            if let Event::Line(line) = event {
                self.line(line);
            }
        }
    }

    fn line(&mut self, line: Line) {
        match line {
            Line::Ready(ns) => {
                self.outcome.ready = Some(ns);
                if let Some((input, source, events)) = self.input.take() {
                    source.send_to(input, events, self.turns());
                }
            }
            Line::More => self.may_send(),
            Line::Exit(status) => {
                self.outcome.end = End::Exited(status);
                self.last_word = Some(Instant::now());
            }
            Line::Place(place) => self.outcome.places.push(place),
            Line::Program(program) => self.outcome.programs.push(program),
            Line::Stats(json) => self.outcome.stats = Some(json),
            Line::Test(name, result) => self.outcome.tests.push((name, result)),
            Line::Panic => {
                self.panicked = true;
                self.last_word = Some(Instant::now());
            }
            Line::Message(text) => self.message(text),
        }
    }

    /// Where the input's thread waits for its turn to send a frame; the first turn is there.
    fn turns(&mut self) -> Option<Receiver<()>> {
        if self.machine.system == System::Quire {
            return None;
        }
        let (more, turns) = mpsc::channel();
        self.more = Some(more);
        self.may_send();
        Some(turns)
    }

    fn may_send(&mut self) {
        if let Some(more) = &self.more {
            // The input may have ended before.
            let _ = more.send(());
        }
    }

    fn message(&mut self, text: String) {
        let quire = self.machine.system == System::Quire;
        if !quire && text.contains(linux::PANIC) {
            self.panicked = true;
            self.last_word = Some(Instant::now());
        }
        let lines = match record::backtrace_address(&text).filter(|_| quire) {
            Some(address) => {
                self.symbols.get_or_insert_with(|| Symbols::new(&self.machine.kernel)).describe(address)
            }
            None => vec![text],
        };
        for line in lines {
            if self.verbose {
                ui::show(&line);
            }
            if self.outcome.log.len() < LOG_LIMIT {
                self.outcome.log.push(line);
            }
        }
    }
}

/// Where input comes from.
enum Source {
    /// It's in the image.
    Packed,
    Ours {
        raw: bool,
    },
    Bytes(Vec<u8>),
}

impl Source {
    /// Send it all from a thread; each frame waits for its turn, if there are turns.
    fn send_to(self, input: Input, events: Sender<Event>, turns: Option<Receiver<()>>) {
        let turn = move || turns.as_ref().is_none_or(|turns| turns.recv().is_ok());
        match self {
            Self::Packed => {}
            Self::Bytes(bytes) => {
                thread::spawn(move || input.pump(&bytes[..], |_| turn()));
            }
            Self::Ours { raw } => {
                watch_window(input.clone());
                let mut escape = Escape::default();
                thread::spawn(move || {
                    input.pump(io::stdin(), |typed| {
                        if raw && escape.completes(typed, Instant::now()) {
                            let _ = events.send(Event::Escape);
                            return false;
                        }
                        turn()
                    });
                });
            }
        }
    }
}

/// Tell the guest when the window's size changes.
fn watch_window(input: Input) {
    let Ok(mut signals) = Signals::new([SIGWINCH]) else { return };
    thread::spawn(move || {
        for _ in signals.forever() {
            if let Some((rows, columns)) = terminal::size()
                && input.send(&console::window_size(rows, columns)).is_err()
            {
                return;
            }
        }
    });
}

fn read_control(control: PipeReader, events: Sender<Event>) {
    thread::spawn(move || {
        let mut reader = BufReader::new(control);
        let mut line = Vec::new();
        while let Ok(1..) = reader.read_until(b'\n', &mut line) {
            let text = String::from_utf8_lossy(&line);
            if events.send(Event::Line(record::parse(text.trim_end_matches(['\n', '\r'])))).is_err() {
                return;
            }
            line.clear();
        }
        let _ = events.send(Event::Ended);
    });
}

/// Each line that Linux prints on the serial line is a message.
fn read_serial(serial: PipeReader, events: Sender<Event>) -> JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(serial).split(b'\n').map_while(Result::ok) {
            let text = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
            if events.send(Event::Line(Line::Message(text))).is_err() {
                return;
            }
        }
    })
}

/// A thread for each output, which yields what it captured.
fn pump_outputs(
    files: &Files,
    out: PipeReader,
    err: PipeReader,
    events: &Sender<Event>,
) -> [JoinHandle<Vec<u8>>; 2] {
    let capture = matches!(files, Files::Captured(_));
    let pump = |from: PipeReader, to: BorrowedFd<'static>| {
        let events = events.clone();
        thread::spawn(move || {
            if capture {
                return console::collect(from, CAPTURE_LIMIT);
            }
            if console::copy(from, to).is_err() {
                let _ = events.send(Event::OutputClosed);
            }
            Vec::new()
        })
    };
    [pump(out, rustix::stdio::stdout()), pump(err, rustix::stdio::stderr())]
}

/// The archive, in a file without a name, which vanishes with the last process that has it.
fn pack(image: Image, machine: &Machine) -> Result<File> {
    let mut file = tempfile::tempfile().context("cannot make a temporary file")?;
    let size = image.write(io::BufWriter::new(&mut file)).context("cannot pack the files")?;
    // The archive is in memory beside the files that are made of it.
    let needed = 2 * size + (64 << 20);
    if needed > machine.memory {
        anyhow::bail!(
            "the packed files are {} MiB, too many for {} MiB of memory: say --mem {}M",
            size >> 20,
            machine.memory >> 20,
            needed.div_ceil(1 << 20)
        );
    }
    Ok(file)
}

/// What another process wrote to `file`.
fn read_whole(mut file: File) -> Result<String> {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_string(&mut text)?;
    Ok(text)
}

fn descriptor(fd: RawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{fd}"))
}

/// Let the child have these file descriptors, which are otherwise closed when it starts, and no other child.
fn pass_on(command: &mut Command, descriptors: Vec<RawFd>) {
    // SAFETY: between fork and exec only async-signal-safe system calls are made, and nothing is allocated. The
    // descriptors are open until the child was started: `run` owns them.
    unsafe {
        command.pre_exec(move || {
            for fd in &descriptors {
                fcntl_setfd(BorrowedFd::borrow_raw(*fd), FdFlags::empty())?;
            }
            Ok(())
        });
    }
}

fn same_file(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> bool {
    match (rustix::fs::fstat(one), rustix::fs::fstat(other)) {
        (Ok(a), Ok(b)) => (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino),
        _ => false,
    }
}

fn died(status: Option<ExitStatus>, said: &str) -> End {
    let status_code = status.and_then(|s| s.code());
    if status_code == Some(machine::STATUS_PANIC) {
        return End::Panicked;
    }
    // What the tracer says is the reason of what QEMU says after it.
    let tracer = said.lines().find_map(|line| line.strip_prefix("quire-tracer: "));
    if let Some(why) = tracer {
        return End::Died(why.to_owned());
    }
    let last = said.lines().rev().find(|line| !line.trim().is_empty());
    let status = status.map_or("killed".to_owned(), |s| s.to_string());
    End::Died(match (last, status_code) {
        (Some(line), _) if line.contains("cannot set up guest memory") => {
            "the host has not so much memory: say a smaller --mem".to_owned()
        }
        (Some(line), _) => format!("the emulator ended without a result ({status}): {line}"),
        (None, Some(0)) => "the machine reset itself (a triple fault)".to_owned(),
        (None, Some(machine::STATUS_DONE)) => {
            "the kernel ended the machine without saying how the program ended".to_owned()
        }
        (None, _) => format!("the emulator ended without a result ({status})"),
    })
}

//! The exact machine: all virtual CPUs in one host thread of QEMU's, time counted in instructions, and turns ended by the
//! tracer's quantum, so that a run is the same each time. `docs/exact.md` says what it's for.
//!
//! Whatever could make a difference is fixed or left out: the seed, the date, random instructions, the files' times,
//! terminals, and when input comes: all of it is read before the machine starts, and packed as a file.

use std::{
    io::{self, IsTerminal, Read},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{
    args::{Accel, Run, Window},
    cargo,
    failure::{TIMED_OUT, USAGE, failure},
    image::Image,
    session::Files,
    ui, workspace,
};

/// Instructions of a turn while something is counted, if nobody says otherwise.
pub const QUANTUM: u32 = 200;
/// QEMU's seed, if nobody says otherwise.
pub const SEED: u64 = 1;

/// How many cache lines a report has.
const LINES: u32 = 100;
/// And how many for `trace`, which also adds them up by what they are part of.
const TRACED_LINES: u32 = 1 << 15;
/// How many are of each window alone.
const WINDOW_LINES: u32 = 16;

/// The interrupt by which Quire's kernel ends translations on other CPUs (`kernel/src/hw/apic.rs`).
const FLUSH: u8 = 0xf2;
/// The bytes of the marker that opens a window: `nopl 0x51510001(%rax,%rax,1)`.
const WINDOW_BEGIN: [u8; 8] = [0x0f, 0x1f, 0x84, 0x00, 0x01, 0x00, 0x51, 0x51];
/// After so long without an end of the input, a person is told what is being waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// What makes a machine exact.
#[derive(Clone, Debug)]
pub struct Exact {
    /// The tracer's library.
    pub tracer: PathBuf,
    /// Instructions of a turn while a window is open.
    pub quantum: u32,
    /// QEMU's seed.
    pub seed: u64,
    /// What is counted.
    pub window: Window,
    /// Whether it is; else turns alone are kept, which is faster.
    pub count: bool,
    /// Where a kernel without markers zeroes frames and does periodic work, as the tracer's options: `clearing=0xA-0xB`,
    /// `periodic=0xA`, … (`docs/exact.md`).
    pub places: Vec<String>,
    /// How many cache lines the report has.
    pub lines: u32,
    /// How many it has of each window alone.
    pub window_lines: u32,
}

impl Exact {
    /// The usual quantum and seed, counting what lies between markers. Builds the tracer if need be.
    pub fn new() -> Result<Self> {
        let tracer = build()?;
        let (window, places) = (Window::Marked, Vec::new());
        Ok(Self {
            tracer,
            quantum: QUANTUM,
            seed: SEED,
            window,
            count: true,
            places,
            lines: LINES,
            window_lines: WINDOW_LINES,
        })
    }

    /// What QEMU is told, instead of `-machine q35 -cpu max`; the tracer writes to `report`.
    pub fn arguments(&self, report: Option<&Path>) -> Vec<String> {
        let window = match self.window {
            Window::Marked => "marked",
            Window::Run => "run",
        };
        // A comma in a value is said twice.
        let path = |path: &Path| path.display().to_string().replace(',', ",,");
        let Self { tracer, quantum, seed, lines, window_lines, .. } = self;
        let mut plugin = format!("file={},quantum={quantum},seed={seed}", path(tracer));
        plugin += &format!(",window={window},lines={lines},window_lines={window_lines}");
        if self.places.is_empty() {
            plugin += &format!(",flush={FLUSH:#x}");
        }
        for place in &self.places {
            plugin += &format!(",{place}");
        }
        if let Some(report) = report {
            plugin += &format!(",out={}", path(report));
        }
        let words = [
            ("-machine", "q35,hpet=off"),
            // Without instructions that are random, or that count for as many as the bytes they move; and with the
            // interrupt controller whose commands the tracer sees.
            ("-cpu", "max,-erms,-fsrm,-rdrand,-rdseed,-x2apic"),
            ("-icount", "shift=0,sleep=off"),
            ("-rtc", "base=2026-01-01,clock=vm"),
            ("-seed", &seed.to_string()),
            ("-plugin", &plugin),
        ];
        words.iter().flat_map(|(option, value)| [(*option).to_owned(), (*value).to_owned()]).collect()
    }
}

/// A mistake in the options of `run` that are about this machine.
pub fn check(options: &Run) -> Result<()> {
    let others = [
        ("--quantum", options.quantum.is_some()),
        ("--seed", options.seed.is_some()),
        ("--counts", options.counts.is_some()),
        ("--window", options.window.is_some()),
    ];
    match others.iter().find(|(_, given)| *given) {
        Some((name, _)) if options.accel != Accel::Exact => {
            Err(failure(USAGE, format!("{name} is about the exact machine: say --accel exact too")))
        }
        _ => Ok(()),
    }?;
    // Found out before a long run rather than after it; what is in the file stays until then.
    if let Some(path) = &options.counts {
        let opened = std::fs::OpenOptions::new().create(true).append(true).open(path);
        opened.map_err(|error| failure(USAGE, format!("--counts {}: {error}", path.display())))?;
    }
    Ok(())
}

/// The exact machine that the options of `run` ask for, if they do; `program` is the host's file.
pub fn machine(options: &Run, program: &Path) -> Result<Option<Exact>> {
    if options.accel != Accel::Exact {
        return Ok(None);
    }
    let marked = if has_markers(program)? { Window::Marked } else { Window::Run };
    Ok(Some(Exact {
        quantum: options.quantum.unwrap_or(QUANTUM),
        seed: options.seed.unwrap_or(SEED),
        window: options.window.unwrap_or(marked),
        count: options.stats.is_some() || options.counts.is_some() || options.trace.is_some(),
        lines: if options.trace.is_some() { TRACED_LINES } else { LINES },
        ..Exact::new()?
    }))
}

/// Whether the program opens windows.
fn has_markers(program: &Path) -> Result<bool> {
    let bytes = std::fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    Ok(bytes.windows(WINDOW_BEGIN.len()).any(|part| part == WINDOW_BEGIN))
}

/// The tracer's library, built if need be.
fn build() -> Result<PathBuf> {
    let target = workspace::target("tracer");
    let mut command = cargo::command(target.clone());
    cargo::build(command.args(["build", "--release", "-p", "quire-tracer"]), "the tracer")?;
    Ok(target.join("release/libquire_tracer.so"))
}

/// Make an image that is the same for the same files and input.
pub fn prepare(image: &mut Image, files: &Files, limit: Option<Duration>) -> Result<()> {
    let input = match files {
        Files::Captured(bytes) => bytes.clone(),
        Files::Ours => whole_input(limit)?,
    };
    image.input(input);
    image.forget_times();
    Ok(())
}

/// Standard input to its end; nothing of a terminal, which has none.
fn whole_input(limit: Option<Duration>) -> Result<Vec<u8>> {
    if io::stdin().is_terminal() {
        return Ok(Vec::new());
    }
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What can't be read is the end of it.
        let _ = io::stdin().read_to_end(&mut bytes);
        let _ = sender.send(bytes);
    });
    let limit = limit.unwrap_or(Duration::MAX);
    if let Ok(bytes) = receiver.recv_timeout(PATIENCE.min(limit)) {
        return Ok(bytes);
    }
    ui::say(
        "waiting for the end of standard input, which the exact machine reads first; say </dev/null for none",
    );
    match receiver.recv_timeout(limit.saturating_sub(PATIENCE)) {
        Ok(bytes) => Ok(bytes),
        Err(_) => Err(failure(TIMED_OUT, "timed out waiting for the end of standard input")),
    }
}

/// Whether the tracer works in the QEMU that says of itself `version`, as in `QEMU emulator version 7.2.22 (…)`.
pub fn serves(version: &str) -> Result<()> {
    let numbers = version.split_once("version ").map_or("", |(_, rest)| rest);
    let mut numbers = numbers.split(['.', ' ', '(']).map(|n| n.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(7), Some(2..)) | (Some(8), Some(_)) => Ok(()),
        _ => bail!("the exact machine needs a QEMU of 7.2 to 8.2, whose plugins the tracer is one of"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_found_in_a_program() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        std::fs::write(&path, [&[0x90; 100][..], &WINDOW_BEGIN, &[0xc3]].concat()).unwrap();
        assert!(has_markers(&path).unwrap());
        std::fs::write(&path, [&[0x90; 100][..], &WINDOW_BEGIN[..7], &[0x52, 0xc3]].concat()).unwrap();
        assert!(!has_markers(&path).unwrap());
    }

    #[test]
    fn versions_of_qemu_are_known() {
        for good in ["7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)", "8.0.0", "8.2.4"] {
            assert!(serves(&format!("QEMU emulator version {good}")).is_ok(), "{good}");
        }
        for bad in ["7.1.0", "6.2.0", "9.0.0", "10.0.2 (Debian)", "x"] {
            assert!(serves(&format!("QEMU emulator version {bad}")).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_machine_is_said_in_full() {
        let exact = Exact {
            tracer: "/a,b/t.so".into(),
            quantum: 50,
            seed: 7,
            window: Window::Run,
            count: true,
            places: vec!["periodic=0x10".into()],
            lines: 3,
            window_lines: 5,
        };
        let quire = Exact { places: Vec::new(), ..exact.clone() };
        assert!(quire.arguments(None).concat().ends_with("window_lines=5,flush=0xf2"));
        let words = exact.arguments(Some(Path::new("/proc/self/fd/9"))).join(" ");
        assert!(words.contains("-icount shift=0,sleep=off ") && words.contains(" -seed 7 "));
        let plugin = "file=/a,,b/t.so,quantum=50,seed=7,window=run,lines=3,window_lines=5,periodic=0x10,\
                      out=/proc/self/fd/9";
        assert!(words.ends_with(&format!(" -plugin {plugin}")));
        assert!(!exact.arguments(None).join(" ").contains("out="));
    }
}

//! What the kernel command line asks for.
//!
//! Words that are not known are ignored with a message. A choice of a design that isn't there is not: what runs then would not be
//! what was asked for, and its figures those of something else. So no program is started ([`Options::refused`]).

use alloc::{
    format,
    string::{String, ToString},
};

use aspace::{Exclude, Variant};
use frames::AlgoKind;

use crate::{central::Mode, hw::irq::Lock, planted::Planted};

/// What address spaces are.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub enum Design {
    /// Radix trees.
    #[default]
    Radix,
    /// Bonsai trees.
    Bonsai,
    /// Lists with a lock.
    Locked,
}

/// The options that the kernel knows.
#[derive(Clone, Default)]
pub struct Options {
    /// Why nothing can be run on what was asked for.
    pub refused: Option<String>,
    /// Print counters at the end.
    pub stats: bool,
    /// Which of descriptors 0, 1 and 2 are a terminal.
    pub tty: [bool; 3],
    /// Lines of the terminal.
    pub rows: u16,
    /// Columns of the terminal.
    pub cols: u16,
    /// Run the kernel's own tests instead of a program: `all`, or a name.
    pub selftest: Option<String>,
    /// What address spaces are.
    pub design: Design,
    /// What page faults exclude in a Bonsai tree.
    pub exclude: Exclude,
    /// What lists with a lock are like.
    pub variant: Variant,
    /// Whether their CPUs share one page table.
    pub shared_table: bool,
    /// The algorithm that hands out frames, if not rows.
    pub frames: Option<AlgoKind>,
    /// Whether one allocator serves all CPUs.
    pub frames_mode: Mode,
    /// Zero no frames in idle time.
    pub no_zeroing: bool,
    /// Let programs choose an allocation of a frame that fails (`prctl`).
    pub inject: bool,
    /// Write at the end what lies where in memory.
    pub places: bool,
    /// A fault to be found by tests and measurements.
    pub planted: Option<Planted>,
    /// The machine's CPUs take turns: its clock advances by what all of them execute together.
    pub serial_time: bool,
}

static OPTIONS: Lock<Option<Options>> = Lock::new(None);

/// Read the command line, once.
pub fn init(line: &str) {
    let mut o = Options { rows: 24, cols: 80, ..Options::default() };
    let mut unknown = None;
    for word in line.split_ascii_whitespace() {
        let (key, value) = word.split_once('=').unwrap_or((word, "1"));
        match key {
            "serial_time" => o.serial_time = value == "1",
            "places" => o.places = value == "1",
            "plant" => match Planted::from_name(value) {
                None => crate::log!("plant={value} is no fault that can be planted"),
                planted => o.planted = planted,
            },
            "inject" => o.inject = value == "1",
            "frames" => match (AlgoKind::from_name(value), Mode::from_name(value)) {
                (Some(kind), _) => o.frames = Some(kind),
                (None, Some(mode)) => o.frames_mode = mode,
                (None, None) => unknown = Some(word),
            },
            "zero_ahead" => o.no_zeroing = value == "0",
            "stats" => o.stats = value == "1",
            "selftest" => o.selftest = Some(value.to_string()),
            "pagetable" => match value {
                "shared" => o.shared_table = true,
                "percpu" => o.shared_table = false,
                _ => unknown = Some(word),
            },
            "aspace" => match value {
                "radix" => o.design = Design::Radix,
                "bonsai" => o.design = Design::Bonsai,
                "locked" => o.design = Design::Locked,
                _ => unknown = Some(word),
            },
            "exclude" => match Exclude::from_name(value) {
                Some(exclude) => o.exclude = exclude,
                None => unknown = Some(word),
            },
            "rwlock" | "last-hit" | "flush" | "count" => {
                if !o.variant.set(key, value) {
                    unknown = Some(word);
                }
            }
            "rows" => o.rows = value.parse().unwrap_or(o.rows),
            "cols" => o.cols = value.parse().unwrap_or(o.cols),
            "tty" => {
                for fd in value.split(',').filter_map(|v| v.parse::<usize>().ok()) {
                    if let Some(t) = o.tty.get_mut(fd) {
                        *t = true;
                    }
                }
            }
            "cpus" | "verbose" => {}
            _ => crate::log!("unknown option {word}"),
        }
    }
    o.refused = unknown.map(|word| format!("no {word} in this kernel"));
    *OPTIONS.lock() = Some(o);
}

/// The options; defaults before [`init`].
pub fn get() -> Options {
    OPTIONS.lock().clone().unwrap_or_default()
}

//! The command line, and how its values are written.

pub mod design;

use std::{ffi::OsString, path::PathBuf, time::Duration};

use anyhow::Result;
use clap::{
    Args, Parser, Subcommand, ValueEnum,
    error::{ContextKind, ContextValue, ErrorKind},
};

pub use self::design::{Aspace, Exclude, FrameAlgo, Locked, PageTables};
use crate::{
    failure::{USAGE, failure},
    numa::Numa,
};

/// What this driver can be told to do.
#[derive(Parser)]
#[command(
    name = "cargo quire",
    bin_name = "cargo quire",
    version,
    about = "Runs Linux programs on the Quire kernel"
)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

/// The subcommands.
#[derive(Subcommand)]
pub enum Command {
    /// Run a static Linux program on Quire; without PROGRAM, a demonstration
    #[command(after_help = RUN_NOTES)]
    Run(Run),
    /// Run a program on the exact machine, and say which cache lines moved between its CPUs
    #[command(after_help = TRACE_NOTES)]
    Trace(Trace),
    /// Run the tests
    Test(Test),
    /// Measure what operations cost and what CPUs share
    Bench(Bench),
    /// Show what was measured, as one HTML file
    Report(Report),
    /// Say what is there and what is missing
    Doctor(Doctor),
}

const RUN_NOTES: &str = "\
The program's input, output and exit status (128 + N if signal N ended it) are the command's. The driver's own exit
statuses: 2 mistake on the command line, 124 timed out, 125 kernel panic or machine failure, 126 not a program that
Quire runs, 127 no such program. On a terminal, Ctrl-] three times within a second ends the machine.";

const TRACE_NOTES: &str = "\
The program's input, output and exit status are the command's, as with run; the table is on standard error. docs/trace.md
says how to read it.";

/// Which kernel the machine boots; of every subcommand that boots one for a program.
#[derive(Args)]
pub struct System {
    /// The kernel: Quire, or Linux as Debian builds it, in the same machine
    #[arg(long, value_name = "quire|linux", default_value = "quire")]
    pub kernel: Kernel,
    /// Which Linux; fetched by apt-get at first use [default: newest]
    #[arg(long, value_name = "6.1|newest")]
    pub linux: Option<Linux>,
}

impl System {
    /// Which Linux to boot, if it is to be Linux.
    pub fn linux(&self) -> Result<Option<Linux>> {
        match (self.kernel, self.linux) {
            (Kernel::Linux, which) => Ok(Some(which.unwrap_or(Linux::Newest))),
            (Kernel::Quire, None) => Ok(None),
            (Kernel::Quire, Some(_)) => {
                Err(failure(USAGE, "--linux says which Linux, but Quire is booted: add --kernel linux"))
            }
        }
    }
}

/// Options of `run`.
#[derive(Args)]
pub struct Run {
    /// Quire or Linux
    #[command(flatten)]
    pub system: System,
    /// Virtual CPUs, 1 to 255 [default: the host's, at most 4]
    #[arg(long, value_name = "N", value_parser = cpus, allow_negative_numbers = true)]
    pub cpus: Option<u32>,
    /// Memory, as in 512M or 2G [default: 256M + 64M a CPU]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub mem: Option<u64>,
    /// NUMA nodes, as in 2, 2:dist=10,31, or 3:cpus=2,2,0:mem=256M,0,1G [default: 1]
    #[arg(long, value_name = "N[:…]", value_parser = numa, allow_negative_numbers = true)]
    pub numa: Option<Numa>,
    /// The design of the address space
    #[arg(long, value_name = "NAME", default_value = "radix")]
    pub aspace: Aspace,
    /// With the radix design: page tables of an address space [default: percpu]
    #[arg(long, value_name = "percpu|shared")]
    pub pagetable: Option<PageTables>,
    /// With the Bonsai design: what page faults wait for [default: rcu, nothing]
    #[arg(long, value_name = "stock|fault-lock|hybrid|per-mapping|rcu")]
    pub exclude: Option<Exclude>,
    #[command(flatten)]
    pub locked: Locked,
    /// The algorithm that hands out page frames [default: row]
    #[arg(long, value_name = "row|avl|buddy|slab|global|served")]
    pub frames: Option<FrameAlgo>,
    /// What executes the machine: auto takes KVM where there is hardware behind it
    #[arg(long, value_name = "auto|kvm|tcg|exact", default_value = "auto")]
    pub accel: Accel,
    /// With exact: instructions of a CPU's turn [default: 200]
    #[arg(long, value_name = "N", value_parser = quantum, allow_negative_numbers = true)]
    pub quantum: Option<u32>,
    /// With exact: the emulator's seed [default: 1]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// With exact: write what was counted to a file, as JSON
    #[arg(long, value_name = "FILE")]
    pub counts: Option<PathBuf>,
    /// With exact: count between the program's markers, or the whole run [default: as the program has markers or not]
    #[arg(long, value_name = "marked|run")]
    pub window: Option<Window>,
    /// Pack a host file or directory; without GUEST, under the same path
    #[arg(long, value_name = "HOST[:GUEST]")]
    pub bind: Vec<OsString>,
    /// Pack this directory as the guest's root
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Set a variable of the program's environment
    #[arg(long, value_name = "K=V", value_parser = variable)]
    pub env: Vec<String>,
    /// End the run after so many seconds, with status 124
    #[arg(long, value_name = "S", value_parser = seconds, allow_negative_numbers = true)]
    pub timeout: Option<Duration>,
    /// Print counters on standard error at the end
    #[arg(long, value_name = "FORMAT", num_args = 0..=1, require_equals = true, default_missing_value = "table")]
    pub stats: Option<StatsFormat>,
    /// Add a word to the kernel's command line
    #[arg(long, value_name = "WORD", value_parser = word)]
    pub boot: Vec<String>,
    /// Take the sanitized kernel: it checks its memory accesses, and is several times slower
    #[arg(long)]
    pub sanitize: bool,
    /// Print the kernel's messages and what the driver chose
    #[arg(long)]
    pub verbose: bool,
    /// A static x86-64 Linux program, by name or path, and its arguments
    #[arg(value_names = ["PROGRAM", "ARGS"], num_args = 0.., trailing_var_arg = true)]
    pub command: Vec<OsString>,
    /// What `trace` adds.
    #[arg(skip)]
    pub trace: Option<Traced>,
}

/// What a run that is traced is told besides.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traced {
    /// Share a counter of page faults among all CPUs.
    pub plant_shared_counter: bool,
}

/// Options of `trace`.
#[derive(Args)]
pub struct Trace {
    /// How many lines, objects and functions are shown
    #[arg(long, value_name = "N", default_value_t = 12)]
    pub top: usize,
    /// Write all of it to a file, as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write it to a file, as a page for a browser
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Let every page fault also write a word that all CPUs share, which the table must then show
    #[arg(long)]
    pub plant_shared_counter: bool,
    #[command(flatten)]
    pub run: Run,
}

/// Options of `test`.
#[derive(Args)]
pub struct Test {
    /// What to test
    #[arg(value_name = "GROUP", default_value = "all")]
    pub groups: Vec<Group>,
    /// Also what takes long
    #[arg(long)]
    pub full: bool,
    /// The design of the machines' address spaces [default: radix for kernel, linux, mutants and sanitize, and for the first two some of it on bonsai, with --full all of it on each; else locked]
    #[arg(long, value_name = "NAME")]
    pub aspace: Option<Aspace>,
    /// With the radix design: page tables of an address space [default: percpu]
    #[arg(long, value_name = "percpu|shared")]
    pub pagetable: Option<PageTables>,
}

/// Options of `bench`.
#[derive(Args)]
pub struct Bench {
    /// Suites of benchmarks, of mapbench and matrix [default: mapbench]; or refcache; or bonsai; or frames, followed by ids of
    /// its workloads; or rcu or vmprim, followed by names of their benchmarks; or memory, followed by names of shapes; or
    /// apps, followed by names of applications
    #[arg(value_name = "SUITE")]
    pub suites: Vec<String>,
    /// Of the suites apps, frames, rcu, bonsai and vmprim: their own options, after --; -- --help lists them
    #[arg(value_name = "OPTION", last = true)]
    pub words: Vec<OsString>,
    /// Numbers of virtual CPUs, each with as many threads; matrix has two
    #[arg(long, value_name = "N,…", value_delimiter = ',', value_parser = cpus, default_value = "1,2,4,8")]
    pub cpus: Vec<u32>,
    /// Modes of the benchmark, each with its pages an operation if they are others than --npages says [default: local with
    /// 1 and 4 pages, pipeline, fault]
    #[arg(long, value_name = "MODE[:PAGES],…", value_delimiter = ',')]
    pub mode: Vec<String>,
    /// Pages an operation [default: the mode's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 18))]
    pub npages: Option<u64>,
    /// Operations of each thread [default: 1000, or 100 with more than 8 CPUs]; of matrix, how often each order is tried
    /// [default: 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub operations: Option<u32>,
    /// Of mapbench, counted: as many operations as it takes that two of Refcache's epochs pass in the windows, and grace
    /// periods as well, for which the first thread asks between its operations
    #[arg(long, conflicts_with = "operations")]
    pub steady: bool,
    /// Also print the worst CPU, periodic work, epochs, and faults by kind
    #[arg(long)]
    pub all: bool,
    /// Also Linux in the same machine
    #[arg(long, value_name = "linux")]
    pub vs: Option<Vs>,
    /// Only this Linux [default: both]
    #[arg(long, value_name = "6.1|newest")]
    pub linux: Option<Linux>,
    /// Designs of the address space
    #[arg(long, value_name = "NAME|all", default_value = "radix")]
    pub aspace: AspaceChoice,
    /// With the radix design: page tables of an address space [default: percpu]
    #[arg(long, value_name = "percpu|shared")]
    pub pagetable: Option<PageTables>,
    /// With the Bonsai design: what page faults wait for [default: rcu, nothing]
    #[arg(long, value_name = "stock|fault-lock|hybrid|per-mapping|rcu")]
    pub exclude: Option<Exclude>,
    #[command(flatten)]
    pub locked: Locked,
    /// Quire's algorithm that hands out page frames [default: row]
    #[arg(long, value_name = "row|avl|buddy|slab|global|served")]
    pub frames: Option<FrameAlgo>,
    /// Counts, or times
    #[arg(long, value_name = "exact|tcg|kvm", default_value = "exact")]
    pub accel: Accel,
    /// Instructions of a CPU's turn [default: 200]
    #[arg(long, value_name = "N", value_parser = quantum, allow_negative_numbers = true)]
    pub quantum: Option<u32>,
    /// The emulator's seed [default: 1]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Write the results to a file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Take counts of earlier runs where nothing has changed
    #[arg(long)]
    pub resume: bool,
    /// Run on this host instead, timed
    #[arg(long, conflicts_with_all = ["vs", "quantum", "seed", "resume", "plant_shared_counter", "first_touch", "frames", "pagetable", "steady"])]
    pub native: bool,
    /// Of the suite matrix: only these pairs of operations; of the mode imbalance: which thread frees whose pages
    #[arg(long, value_name = "OP1-OP2,…|T:T,…", value_delimiter = ',')]
    pub pairs: Vec<String>,
    /// Share a counter of page faults among all CPUs of Quire: a control, which must show
    #[arg(long)]
    pub plant_shared_counter: bool,
    /// Of the modes fault and fault-2m: pages that nobody has touched before
    #[arg(long)]
    pub first_touch: bool,
    /// Of mapbench: processes instead of threads, with memory of their own
    #[arg(long)]
    pub processes: bool,
    /// Of the suite memory: also the shapes of processes in this folder
    #[arg(long, value_name = "DIR")]
    pub shapes: Option<PathBuf>,
    /// Of the suite memory: write the shape of a process that runs, and measure nothing
    #[arg(long, value_name = "PID", conflicts_with_all = ["shapes", "json"])]
    pub record: Option<u32>,
    /// Where the recorded shape goes [default: standard output]
    #[arg(long, value_name = "FILE", requires = "record")]
    pub output: Option<PathBuf>,
}

impl Default for Bench {
    fn default() -> Self {
        Self {
            suites: Vec::new(),
            words: Vec::new(),
            cpus: vec![1, 2, 4, 8],
            mode: Vec::new(),
            npages: None,
            operations: None,
            steady: false,
            all: false,
            vs: None,
            linux: None,
            aspace: AspaceChoice::Locked,
            pagetable: None,
            exclude: None,
            locked: Locked::default(),
            frames: None,
            accel: Accel::Exact,
            quantum: None,
            seed: None,
            json: None,
            resume: false,
            native: false,
            pairs: Vec::new(),
            plant_shared_counter: false,
            first_touch: false,
            processes: false,
            shapes: None,
            record: None,
            output: None,
        }
    }
}

/// What to compare with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Vs {
    /// Debian's Linux in the same machine
    Linux,
}

/// Which designs of the address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AspaceChoice {
    /// Each that the kernel has
    All,
    /// A Bonsai tree that faults read without a lock
    Bonsai,
    /// One reader-writer lock
    Locked,
    /// A radix tree with a lock in each slot
    Radix,
}

/// Options of `report`.
#[derive(Args)]
pub struct Report {
    /// Files of results [default: all that bench has kept]
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Where the report goes [default: target/quire/report/index.html]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// Options of `doctor`.
#[derive(Args)]
pub struct Doctor {
    /// Install what is missing
    #[arg(long)]
    pub fix: bool,
}

/// Kernels that the machine can boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kernel {
    /// This workspace's
    Quire,
    /// Debian's, for comparison
    Linux,
}

/// Versions of Linux to compare with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Linux {
    /// The last before mappings got locks of their own
    #[value(name = "6.1")]
    V6_1,
    /// The newest that Debian's packages offer here
    Newest,
}

impl Linux {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::Newest => "newest",
        }
    }
}

/// What executes the machine's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Accel {
    /// KVM where there is hardware behind it, else TCG
    Auto,
    /// Hardware virtualisation
    Kvm,
    /// QEMU's translator
    Tcg,
    /// QEMU's translator, the same way each time, and counted
    Exact,
}

/// What the exact machine counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Window {
    /// What lies between markers
    Marked,
    /// The whole run
    Run,
}

/// How `--stats` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StatsFormat {
    /// A table to read
    Table,
    /// One line of JSON
    Json,
}

/// Groups of tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Group {
    /// Formatting, lints, and every crate's tests
    Host,
    /// Every interleaving of the protocols' loom models
    Loom,
    /// Every state of the protocols' models for SPIN
    Spin,
    /// Tests inside the kernel, and how the machine ends
    Kernel,
    /// Linux programs, against the same programs run natively
    Linux,
    /// Linux in the same machine: as transparent as Quire
    Peer,
    /// What `trace` finds in programs whose conflicts are known
    Trace,
    /// Planted faults that the tests must catch
    Mutants,
    /// Programs and random calls on the sanitized kernel; by name or with --full
    Sanitize,
    /// Random operations on address spaces, half an hour with --full; by name or with --full
    Stress,
    /// The applications' oracles, optimised, and their programs with --verify; by name or with --full
    Apps,
    /// All of them
    All,
}

/// The command line of this process. Help and version are printed here and end the process.
pub fn parse() -> Result<Command> {
    match CommandLine::try_parse() {
        Ok(line) => Ok(line.command),
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            error.exit()
        }
        Err(error) if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            Err(failure(USAGE, "say what to do: cargo quire run, trace, test or doctor; --help says more"))
        }
        Err(error) => Err(failure(USAGE, one_line(&error))),
    }
}

/// A mistake on the command line as one line: clap's first sentence, and what to do about it.
fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let mut what = text.lines().next().unwrap_or("bad command line").trim_start_matches("error: ").to_owned();
    if what.ends_with(':') {
        // "the following arguments were not provided:" continues on the next lines.
        what += &text
            .lines()
            .skip(1)
            .take_while(|l| !l.is_empty())
            .map(|l| format!(" {}", l.trim()))
            .collect::<String>();
    }
    let names = |kind| match error.get(kind) {
        Some(ContextValue::String(one)) => Some(one.clone()),
        Some(ContextValue::Strings(many)) if !many.is_empty() => Some(many.join(", ")),
        _ => None,
    };
    if let Some(valid) = names(ContextKind::ValidValue) {
        return format!("{what}: there is {valid}");
    }
    let similar = names(ContextKind::SuggestedArg).or_else(|| names(ContextKind::SuggestedSubcommand));
    match (similar, error.kind()) {
        (Some(similar), _) => format!("{what}: did you mean {similar}?"),
        (None, ErrorKind::ValueValidation) => what,
        (None, _) => format!("{what}: see cargo quire --help"),
    }
}

fn cpus(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(n @ 1..=255) => Ok(n),
        _ => Err("say a number of CPUs from 1 to 255".to_owned()),
    }
}

/// The range is the tracer's.
fn quantum(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(n @ 1..=16_777_216) => Ok(n),
        _ => Err("say a number of instructions from 1 to 16777216".to_owned()),
    }
}

fn numa(text: &str) -> Result<Numa, String> {
    text.parse()
}

/// Bytes from `512M`, `2G`, `1.5G`, `65536K`, with or without `B` or `iB`; binary multiples.
fn size(text: &str) -> Result<u64, String> {
    let enough = bytes(text).filter(|bytes| *bytes >= MIN_MEMORY);
    enough.ok_or_else(|| "say a size as in 512M or 2G, at least 64M".to_owned())
}

/// A size above 0, as [`size`]. None for anything else, and for more than the emulated processor can address.
pub fn bytes(text: &str) -> Option<u64> {
    let upper = text.trim().to_ascii_uppercase();
    let upper = upper.strip_suffix("IB").or_else(|| upper.strip_suffix('B')).unwrap_or(&upper);
    let unit = match upper.chars().last()? {
        'K' => 1u64 << 10,
        'M' => 1 << 20,
        'G' => 1 << 30,
        'T' => 1 << 40,
        _ => return None,
    };
    let number: f64 = upper[..upper.len() - 1].parse().ok()?;
    let bytes = number * unit as f64;
    (1.0..=(1u64 << 40) as f64).contains(&bytes).then_some(bytes as u64)
}

/// The least memory that the kernel and a small program fit in, in bytes.
const MIN_MEMORY: u64 = 64 << 20;

fn variable(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((name, _)) if !name.is_empty() => Ok(text.to_owned()),
        _ => Err("say NAME=VALUE".to_owned()),
    }
}

fn word(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains(|c: char| !c.is_ascii_graphic()) {
        return Err("say one word, as in inject or KEY=VALUE".to_owned());
    }
    Ok(text.to_owned())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let wrong = || "say a number of seconds above 0".to_owned();
    let number: f64 = text.parse().map_err(|_| wrong())?;
    // A year is as good as for ever, and fits everywhere.
    if number > 0.0 && number.is_finite() {
        Ok(Duration::from_secs_f64(number.min(31_536_000.0)))
    } else {
        Err(wrong())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(words: &[&str]) -> Result<Run, String> {
        let line = ["cargo quire", "run"].iter().chain(words);
        match CommandLine::try_parse_from(line) {
            Ok(CommandLine { command: Command::Run(run) }) => Ok(run),
            Ok(_) => panic!("not a run"),
            Err(error) => Err(one_line(&error)),
        }
    }

    fn mistake(words: &[&str]) -> String {
        match run(words) {
            Err(line) => line,
            Ok(_) => panic!("{words:?} was accepted"),
        }
    }

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(size("512M"), Ok(512 << 20));
        assert_eq!(size("2g"), Ok(2 << 30));
        assert_eq!(size("1.5GiB"), Ok(3 << 29));
        assert_eq!(size("65536K"), Ok(64 << 20));
        for bad in ["", "512", "M", "-1G", "1M", "9999T", "nanG", "infG", "1X", "é"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_programs_arguments_are_its_own() {
        let r = run(&["--cpus", "2", "busybox", "--verbose", "ls", "-l", "--", "x"]).unwrap();
        assert_eq!(r.command, ["busybox", "--verbose", "ls", "-l", "--", "x"]);
        assert!(!r.verbose);
        assert_eq!(run(&["--", "echo", "-n"]).unwrap().command, ["echo", "-n"]);
        assert_eq!(run(&["echo", "--", "-n"]).unwrap().command, ["echo", "--", "-n"]);
        assert!(run(&[]).unwrap().command.is_empty());
    }

    #[test]
    fn linux_is_the_newest_unless_said_otherwise() {
        let linux = |words: &[&str]| run(words).unwrap().system.linux().map_err(|error| error.to_string());
        assert_eq!(linux(&["true"]), Ok(None));
        assert_eq!(linux(&["--kernel", "linux", "true"]), Ok(Some(Linux::Newest)));
        assert_eq!(linux(&["--kernel", "linux", "--linux", "6.1", "true"]), Ok(Some(Linux::V6_1)));
        assert!(linux(&["--linux", "6.1", "true"]).unwrap_err().ends_with("add --kernel linux"));
    }

    #[test]
    fn stats_take_an_optional_format() {
        assert_eq!(run(&["--stats", "true"]).unwrap().stats, Some(StatsFormat::Table));
        assert_eq!(run(&["--stats=json", "true"]).unwrap().stats, Some(StatsFormat::Json));
        assert_eq!(run(&["true"]).unwrap().stats, None);
    }

    #[test]
    fn every_mistake_is_one_line_that_says_what_to_do() {
        assert_eq!(
            mistake(&["--cpu", "2", "true"]),
            "unexpected argument '--cpu' found: did you mean --cpus?"
        );
        assert_eq!(
            mistake(&["--frob", "true"]),
            "unexpected argument '--frob' found: see cargo quire --help"
        );
        for n in ["0", "256", "-1", "many"] {
            assert!(mistake(&["--cpus", n]).ends_with("say a number of CPUs from 1 to 255"), "{n}");
        }
        assert!(mistake(&["--mem", "lots"]).ends_with("say a size as in 512M or 2G, at least 64M"));
        assert_eq!(
            mistake(&["--aspace", "tree"]),
            "invalid value 'tree' for '--aspace <NAME>': there is bonsai, locked, radix"
        );
        assert!(mistake(&["--frames", "lifo"]).ends_with("there is row, avl, buddy, slab, global, served"));
        assert!(mistake(&["--accel", "fast"]).ends_with("there is auto, kvm, tcg, exact"));
        assert!(mistake(&["--quantum", "0"]).ends_with("from 1 to 16777216"));
        assert!(mistake(&["--window", "some"]).ends_with("there is marked, run"));
        assert!(mistake(&["--env", "FOO"]).ends_with("say NAME=VALUE"));
        assert!(mistake(&["--boot", "a b"]).ends_with("say one word, as in inject or KEY=VALUE"));
        assert!(mistake(&["--timeout", "0"]).ends_with("say a number of seconds above 0"));
        assert!(mistake(&["--stats=xml"]).ends_with("there is table, json"));
        assert!(mistake(&["--numa", "0"]).ends_with("from 1 to 64"));
        assert!(mistake(&["--numa", "2:dist=10"]).contains("with N from 11 to 254"));
        assert_eq!(
            mistake(&["--kernel", "linux", "--linux", "5.4"]),
            "invalid value '5.4' for '--linux <6.1|newest>': there is 6.1, newest"
        );
        assert!(mistake(&["--kernel", "hurd"]).ends_with("there is quire, linux"));
        for words in [&["--cpus"][..], &["--bind"], &["--root"]] {
            assert!(!mistake(words).contains('\n'));
        }
    }
}

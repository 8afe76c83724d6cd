//! One run of `pairs` in a machine: what it says, what the tracer saw in each window, and what the model says of it.

use std::{collections::BTreeMap, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{CPUS, number};
use crate::{
    args::Bench,
    bench::{choice::Choice, plan::Target},
    cargo, child,
    exact::Exact,
    failure::{USAGE, failure},
    guest,
    image::{Exec, Image},
    kernel::{self, Build},
    linux::{self, Linux},
    machine::{Boot, Machine},
    program::Program,
    run as runs,
    session::{self, End, Files},
    trace::{self, Kind, Line, Report},
    workspace,
};

/// No run takes longer than this.
const LIMIT: Duration = Duration::from_secs(900);
/// And nothing on the host.
const SHORT: Duration = Duration::from_secs(60);
/// Lines of each window that the tracer reports: more than two operations share.
const WINDOW_LINES: u32 = 1024;
/// Where both sides have their pages (`bench/guest/src/bin/pairs/memory.rs`).
const PAGES: std::ops::Range<u64> = 64 << 30..80 << 30;

/// What every run needs.
pub struct Lab {
    /// The tracer and its parameters.
    pub exact: Exact,
    program: PathBuf,
    oracle: PathBuf,
    kernel: PathBuf,
}

impl Lab {
    /// Build it.
    pub fn furnish(exact: Exact) -> Result<Self> {
        Ok(Self {
            exact: Exact { window_lines: WINDOW_LINES, ..exact },
            program: guest::rust("pairs")?,
            oracle: oracle()?,
            kernel: kernel::build(Build::Ordinary)?,
        })
    }
}

impl Lab {
    /// Whether `pairs` understands these options, which it can say on the host, too.
    pub fn check(&self, words: &[String]) -> Result<()> {
        let answer = child::capture(Command::new(&self.program).arg("--list").args(words), &[], SHORT)?;
        match String::from_utf8_lossy(&answer.stderr).lines().next() {
            Some(problem) if !answer.success() => {
                Err(failure(USAGE, problem.trim_start_matches("pairs: ").to_owned()))
            }
            _ => Ok(()),
        }
    }
}

/// The program that asks the model.
fn oracle() -> Result<PathBuf> {
    let target = workspace::target("host");
    let mut command = cargo::command(target.clone());
    command.args(["build", "--profile", "driver", "-p", "quire-bench-host", "--bin", "commute"]);
    cargo::build(&mut command, "the oracle")?;
    Ok(target.join("driver/commute"))
}

/// A combination that was tried.
#[derive(Debug)]
pub struct Tried {
    /// `OP1 OP2 PLACE STATE SHARE START1 START2`.
    pub words: Vec<String>,
    /// Whether the operations commute.
    pub commutes: bool,
    /// What the operations moved, in the better window of each order; what moved most first.
    pub lines: Vec<Shared>,
    /// How many lines that were, in the worse order.
    pub count: usize,
    /// The fewest and the most lines of any window.
    pub extremes: (usize, usize),
    /// How many windows were looked at.
    pub windows: u32,
}

/// Lines of one name that moved between the two sides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shared {
    /// What they are.
    pub name: String,
    /// Which line of it, in bytes from its beginning.
    pub offset: u64,
    /// How often it moved.
    pub transfers: u64,
    /// Functions that read it, and that wrote it.
    pub readers: Vec<String>,
    /// See above.
    pub writers: Vec<String>,
}

impl Tried {
    /// As `mmap-munmap`.
    pub fn pair(&self) -> String {
        format!("{}-{}", self.words[0], self.words[1])
    }
    /// `same`, `adjacent`, `near` or `disjoint`.
    pub fn place(&self) -> &str {
        &self.words[2]
    }
    /// `fresh` or `warm`.
    pub fn state(&self) -> &str {
        &self.words[3]
    }
    /// `threads` or `processes`.
    pub fn share(&self) -> &str {
        &self.words[4]
    }
    /// All of it, as in `mmap-munmap/same/fresh/threads`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.pair(), self.variant())
    }
    /// As in `same/fresh/threads`.
    pub fn variant(&self) -> String {
        self.words[2..5].join("/")
    }
    /// Whether no line moved.
    pub fn is_free(&self) -> bool {
        self.count == 0
    }
    /// Whether none moved in any window at all.
    pub fn is_always_free(&self) -> bool {
        self.extremes.1 == 0
    }
}

/// Run `pairs` with these words on the system, as `options` say; `linux` is what to boot if that isn't Quire.
pub fn run(
    lab: &Lab,
    system: Target,
    linux: Option<&Linux>,
    words: &[String],
    options: &Bench,
) -> Result<Vec<Tried>> {
    let program = Program { host: lab.program.clone(), guest: b"/bin/pairs".to_vec(), packed: false };
    let mut image = Image::default();
    runs::add_program(&mut image, &program)?;
    let argv = std::iter::once("pairs").chain(words.iter().map(String::as_str));
    let argv = argv.map(|word| word.as_bytes().to_vec()).collect();
    image.exec(&Exec { argv, env: Vec::new(), cwd: b"/".to_vec(), path: program.guest.clone() });
    let booted = match linux {
        None => Machine::new(lab.kernel.clone(), CPUS),
        Some(linux) => {
            linux::furnish(&mut image)?;
            linux.machine(CPUS)
        }
    };
    let mut exact = lab.exact.clone();
    if let Some(linux) = linux {
        exact.places = linux.kallsyms()?.places();
    }
    let machine = Machine { exact: Some(exact), ..booted };
    let aspace = match system {
        Target::Quire(aspace) => Some(aspace),
        Target::Linux(_) => None,
    };
    let boot = Boot {
        aspace,
        places: linux.is_none(),
        plant_shared_counter: options.plant_shared_counter && linux.is_none(),
        ..Choice::of(options, system).boot()
    };
    let outcome = session::run(&machine, &boot, image, Files::Captured(Vec::new()), Some(LIMIT))?;
    if outcome.end != End::Exited(0) {
        let texts =
            [&outcome.stderr, &outcome.stdout].map(|bytes| String::from_utf8_lossy(bytes).trim().to_owned());
        bail!(
            "pairs on {} went wrong: {:?}\n{}\n{}",
            system.label(),
            outcome.end,
            texts.join("\n"),
            outcome.log.join("\n")
        );
    }
    let said = String::from_utf8(outcome.stdout.clone()).context("pairs prints text")?;
    let counts = outcome.counts.as_deref().context("nothing was counted")?;
    let names = trace::names(&outcome, &machine.kernel, linux, &program)?;
    join(&said, &asked(lab, &said)?, counts, &Report::new(counts, &names)?)
}

/// What the oracle says of these lines.
fn asked(lab: &Lab, said: &str) -> Result<String> {
    let answer = child::capture(&mut Command::new(&lab.oracle), said.as_bytes(), SHORT)?;
    if !answer.success() {
        bail!("the oracle: {}\n{}", answer.ending(), String::from_utf8_lossy(&answer.stderr).trim_end());
    }
    Ok(answer.text())
}

/// Put together what pairs said, the verdicts, and the windows, of which each combination has as many.
fn join(said: &str, verdicts: &str, counts: &str, report: &Report) -> Result<Vec<Tried>> {
    let counts: Value = serde_json::from_str(counts).context("the tracer's counts are not JSON")?;
    if counts["complete"] != Value::Bool(true) || counts["stray_markers"] != 0 {
        bail!("the tracer missed a part of the run");
    }
    let windows = counts["windows"].as_array().context("the tracer saw no windows")?;
    let combinations = said.lines().count();
    if combinations == 0 || verdicts.lines().count() != combinations || windows.len() % combinations != 0 {
        bail!("{} windows of {combinations} combinations", windows.len());
    }
    let each = windows.len() / combinations;
    let named = windows.chunks(each.max(1)).zip(report.windows.chunks(each.max(1)));
    let mut all = Vec::new();
    for ((line, verdict), (windows, lines)) in said.lines().zip(verdicts.lines()).zip(named) {
        let commutes = agreed(line, verdict)?;
        let words: Vec<String> =
            line.split('|').next().unwrap_or("").split_whitespace().map(str::to_owned).collect();
        if words.len() != 7 {
            bail!("not a combination: {line}");
        }
        let mut orders: [Vec<Vec<Shared>>; 2] = Default::default();
        for (i, (window, lines)) in windows.iter().zip(lines).enumerate() {
            // A tick in the window touches lines too.
            if quiet(window).with_context(|| line.to_owned())? {
                // The orders take turns.
                orders[i % 2].push(lines.iter().filter(|line| is_shared(line)).map(shared).collect());
            }
        }
        if orders.iter().any(Vec::is_empty) {
            bail!("no window without a tick: try more often, with --operations\n{line}");
        }
        let counts = orders.iter().flatten().map(Vec::len);
        let extremes = (counts.clone().min().unwrap_or(0), counts.clone().max().unwrap_or(0));
        let looked_at = counts.count() as u32;
        let best = orders.map(|windows| windows.into_iter().min_by_key(Vec::len).unwrap_or_default());
        let count = best.iter().map(Vec::len).max().unwrap_or(0);
        let lines = together(best.into_iter().flatten());
        all.push(Tried { words, commutes, lines, count, extremes, windows: looked_at });
    }
    Ok(all)
}

/// Whether the operations commute; an error if the machine's answers aren't the model's.
fn agreed(line: &str, verdict: &str) -> Result<bool> {
    let (answers, commutes) = match (verdict.strip_suffix(" | commutes"), verdict.strip_suffix(" | depends"))
    {
        (Some(answers), _) => (answers, true),
        (_, Some(answers)) => (answers, false),
        _ => bail!("not a verdict: {verdict}"),
    };
    if answers != line.trim_end() {
        bail!("the machine's answers and pages are not the model's:\nmachine: {line}\nmodel:   {answers}");
    }
    Ok(commutes)
}

/// Whether nothing periodic was done in the window; an error if it isn't one of a pair's.
fn quiet(window: &Value) -> Result<bool> {
    let cpus = window["cpus"].as_array().context("a window without CPUs")?;
    if cpus.len() != CPUS as usize || cpus.iter().any(|cpu| cpu["operations"] != 1 || cpu["opened"] != 1) {
        bail!("a window with other than one operation on each of two CPUs");
    }
    let periodic = |cpu: &Value| number(&cpu["in_window"]["periodic_instructions"], "periodic instructions");
    Ok(cpus.iter().map(periodic).sum::<Result<u64>>()? == 0)
}

/// Whether the operations moved the line. The sides wait for each other in user mode, so a line of the kernel's moves for
/// an operation or for an interrupt that it caused, in whichever bracket; the programs' own lines count where they are
/// the pages that are operated on.
fn is_shared(line: &Line) -> bool {
    match line.name.kind {
        Kind::User => line.in_operations > 0 && PAGES.contains(&line.user_address),
        _ => line.transfers > line.periodic,
    }
}

fn shared(line: &Line) -> Shared {
    let by = |read: bool| {
        let touches = line.touches.iter().filter(|touch| (touch.access == "read") == read);
        let mut names: Vec<_> = touches.filter_map(|touch| who(&touch.functions)).collect();
        names.dedup();
        names
    };
    // Linux doesn't say what is in its heap; who uses it does.
    let what = &line.name.what;
    let vague = trace::linux_areas().iter().any(|area| area.name == *what);
    let user = line.touches.iter().find_map(|touch| who(&touch.functions));
    let name = match user {
        Some(user) if vague => format!("{what}, used by {user}"),
        _ => what.clone(),
    };
    Shared {
        name,
        offset: line.name.offset & !63,
        transfers: line.transfers - line.periodic,
        readers: by(true),
        writers: by(false),
    }
}

/// Who did it, of functions of which each is inlined in the next: the last, which has the path.
fn who(functions: &[trace::Function]) -> Option<String> {
    Some(functions.last()?.name.clone())
}

/// Those of one name and offset as one; what moved most first.
fn together(lines: impl Iterator<Item = Shared>) -> Vec<Shared> {
    let mut all: BTreeMap<(String, u64), Shared> = BTreeMap::new();
    for line in lines {
        let sum = all.entry((trace::common(&line.name), line.offset)).or_insert_with_key(|(name, offset)| {
            Shared { name: name.clone(), offset: *offset, ..Shared::default() }
        });
        sum.transfers += line.transfers;
        for (to, from) in [(&mut sum.readers, line.readers), (&mut sum.writers, line.writers)] {
            from.into_iter().for_each(|name| {
                if !to.contains(&name) {
                    to.push(name)
                }
            });
        }
    }
    let mut all: Vec<_> = all.into_values().collect();
    all.sort_by_key(|line| std::cmp::Reverse(line.transfers));
    all
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const LINE: &str = "munmap munmap disjoint warm threads present present | 0x0 | 0x0";

    /// The report of two orders, each tried twice: in `moved` windows a line of the kernel's moved, in `ticked` ones there
    /// was a tick.
    fn counts(moved: [bool; 4], ticked: [bool; 4]) -> String {
        let window = |i: usize| {
            let cpu = |cpu: u32| {
                let periodic = u32::from(ticked[i]);
                json!({"cpu": cpu, "opened": 1, "operations": 1, "in_window": {"periodic_instructions": periodic}})
            };
            let line = |name: &str, address: &str, in_operations: u32| {
                json!({"line": "0x40", "transfers": 1, "in_operations": in_operations, "periodic": 0, "cpus": "0-1",
                       name: address, "by_others": 0, "touched_by": []})
            };
            // The words by which the sides meet, and a page of theirs.
            let mut lines =
                vec![line("user_address", "0x7f0000001000", 1), line("user_address", "0x1000000000", 0)];
            if moved[i] {
                lines.push(line("kernel_address", "0xffff800000000040", 0));
            }
            json!({"cpus": [cpu(0), cpu(1)], "lines_moved": lines.len(), "lines": lines})
        };
        let windows: Vec<_> = (0..4).map(window).collect();
        json!({"complete": true, "stray_markers": 0, "windows": windows, "lines": []}).to_string()
    }

    fn tried(moved: [bool; 4], ticked: [bool; 4]) -> Result<Tried> {
        struct Nothing;
        impl trace::Source for Nothing {
            fn functions(&self, _: u64) -> Vec<trace::Function> {
                Vec::new()
            }
            fn object(&self, _: u64) -> Option<(String, u64)> {
                Some(("lock".to_owned(), 0))
            }
        }
        let counts = counts(moved, ticked);
        let names = trace::Names::new(Box::new(Nothing), &[], &[], std::path::Path::new("/nonexistent"), b"");
        let report = Report::new(&counts, &names)?;
        let mut all = join(LINE, &format!("{LINE} | commutes"), &counts, &report)?;
        all.pop().context("one combination")
    }

    #[test]
    fn the_better_try_of_each_order_counts() {
        let quiet = [false; 4];
        let free = tried([true, false, false, true], quiet).unwrap();
        assert!(free.is_free() && !free.is_always_free() && free.lines.is_empty());
        assert_eq!((free.extremes, free.windows), ((0, 1), 4));
        // In one order it's shared each time.
        let shared = tried([true, false, true, false], quiet).unwrap();
        assert_eq!((shared.count, shared.lines.len(), &*shared.lines[0].name), (1, 1, "lock"));
        assert!(tried([false; 4], quiet).unwrap().is_always_free());
    }

    #[test]
    fn a_window_with_a_tick_says_nothing() {
        let ticked = [true, false, false, false];
        let one = tried([true, false, false, false], ticked).unwrap();
        assert!(one.is_always_free() && one.windows == 3);
        let error = tried([false; 4], [true, false, true, false]).unwrap_err();
        assert!(error.to_string().contains("without a tick"), "{error}");
    }

    #[test]
    fn the_machine_must_answer_as_the_model_does() {
        assert!(agreed(LINE, &format!("{LINE} | commutes")).unwrap());
        assert!(!agreed(LINE, &format!("{LINE} | depends")).unwrap());
        let error =
            agreed(LINE, "munmap munmap disjoint warm threads present present | 0x0 | errno12 | commutes");
        assert!(error.unwrap_err().to_string().contains("not the model's"));
        assert!(agreed(LINE, LINE).is_err());
    }

    #[test]
    fn windows_that_are_missing_are_seen() {
        let names = trace::Names::new(
            Box::new(trace::Elf::new(std::path::Path::new("/nonexistent"), 0)),
            &[],
            &[],
            std::path::Path::new("/nonexistent"),
            b"",
        );
        let text = counts([false; 4], [false; 4]);
        let report = Report::new(&text, &names).unwrap();
        let three = [LINE; 3].join("\n");
        let verdicts =
            [format!("{LINE} | commutes"), format!("{LINE} | commutes"), format!("{LINE} | commutes")];
        let error = join(&three, &verdicts.join("\n"), &text, &report).unwrap_err();
        assert!(error.to_string().contains("4 windows of 3 combinations"), "{error}");
    }
}

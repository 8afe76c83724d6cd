//! The exact machine: the same run is the same to the last byte of its report, and what is counted is what the program is
//! known to do.

use std::{path::PathBuf, time::Duration};

use anyhow::Result;
use serde_json::Value;

use super::pool::{Task, Verdict};
use crate::{
    args::Window,
    exact::Exact,
    guest::{self, Toolchain},
    image::{Exec, Image},
    machine::{Boot, Machine},
    program::{self, Program},
    run,
    session::{self, End, Files, Outcome},
};

const LIMIT: Duration = Duration::from_secs(240);
/// Hand-overs each way in the test of two threads.
const TIMES: u64 = 100;

fn program(name: &str) -> Result<Program> {
    let host = guest::c(name, &format!("c/{name}.c"), Toolchain::Musl)?;
    Ok(Program { host, guest: format!("/bin/{name}").into_bytes(), packed: false })
}

/// What the tests need.
pub struct Lab {
    kernel: PathBuf,
    exact: Exact,
    lines: Program,
    mapfork: Program,
    mapbench: Program,
}

impl Lab {
    pub fn new(kernel: PathBuf) -> Result<Self> {
        let host = guest::rust("mapbench")?;
        let mapbench = Program { host, guest: b"/bin/mapbench".to_vec(), packed: false };
        Ok(Self {
            kernel,
            exact: Exact::new()?,
            lines: program("lines")?,
            mapfork: program("mapfork")?,
            mapbench,
        })
    }

    /// The tests. What an exact machine counts does not depend on what else the host does.
    pub fn tasks(&self) -> Vec<Task<'_>> {
        let test = |name: &str, run: fn(&Self) -> Result<Verdict>| Task::test(name, 1, move || run(self));
        let marked = |cpus| {
            let name = format!("two exact runs are alike, marked, {cpus} CPUs");
            Task::test(name, 1, move || self.alike(&self.exact, &self.lines, "shared 200 {cpus}", cpus))
        };
        let mut tasks: Vec<_> = [80, 8, 2].map(marked).into();
        tasks.extend([
            test("two exact runs are alike, whole", |lab| {
                lab.alike(&lab.whole(), &lab.mapfork, "{cpus} 4", 8)
            }),
            test("a line handed to and fro moves as often", Self::handed_over),
            test("lines of one's own do not move", Self::own),
            test("turns are as long as the quantum", Self::quantum),
            test("every interrupt sent is counted", Self::interrupts),
            test("input and status pass through the exact machine", Self::transparent),
        ]);
        tasks
    }

    /// Counting from the first instruction to the last.
    fn whole(&self) -> Exact {
        Exact { window: Window::Run, ..self.exact.clone() }
    }

    /// Run `program` with these words as arguments.
    fn outcome(&self, exact: &Exact, program: &Program, words: &[&str], cpus: u32) -> Result<Outcome> {
        let machine = Machine { exact: Some(exact.clone()), ..Machine::new(self.kernel.clone(), cpus) };
        let mut image = Image::default();
        run::add_program(&mut image, program)?;
        let argv = words.iter().map(|word| word.as_bytes().to_vec()).collect();
        image.exec(&Exec { argv, env: Vec::new(), cwd: b"/".to_vec(), path: program.guest.clone() });
        let boot = Boot { stats: true, ..Boot::default() };
        session::run(&machine, &boot, image, Files::Captured(b"line\n".to_vec()), Some(LIMIT))
    }

    /// The tracer's report of a run that ended well, or why there is none.
    fn report(
        &self,
        exact: &Exact,
        program: &Program,
        arguments: &str,
        cpus: u32,
    ) -> Result<std::result::Result<String, String>> {
        let arguments = arguments.replace("{cpus}", &cpus.to_string());
        let words: Vec<_> = std::iter::once("program").chain(arguments.split(' ')).collect();
        let outcome = self.outcome(exact, program, &words, cpus)?;
        Ok(match (outcome.end, outcome.counts) {
            (End::Exited(0), Some(counts)) => Ok(counts),
            (end, counts) => {
                let text = String::from_utf8_lossy(&outcome.stderr).into_owned();
                Err(format!("{end:?}, {} bytes of report\n{text}", counts.map_or(0, |c| c.len())))
            }
        })
    }

    fn alike(&self, exact: &Exact, program: &Program, arguments: &str, cpus: u32) -> Result<Verdict> {
        let one = self.report(exact, program, arguments, cpus)?;
        let other = self.report(exact, program, arguments, cpus)?;
        Ok(one.and_then(|one| {
            let other = other?;
            if one.len() < 1000 || !one.contains("\"complete\":true") {
                return Err(format!("not a complete report: {one}"));
            }
            match one.lines().zip(other.lines()).find(|(a, b)| a != b) {
                Some((a, b)) => Err(format!("the reports differ:\n{a}\n{b}")),
                None if one != other => Err("one report is longer".to_owned()),
                None => Ok(()),
            }
        }))
    }

    fn handed_over(&self) -> Result<Verdict> {
        let report = self.report(&self.exact, &self.lines, &format!("bounce {TIMES} 2"), 2)?;
        Ok(report.and_then(|report| {
            let counts = in_operations(&report)?;
            equal("operations", counts.operations, 2)?;
            equal("transfers", counts.transfers, 4 * TIMES)?;
            equal("transfers to user mode", counts.user_transfers, 4 * TIMES)?;
            // All of them are of one line.
            equal("transfers of the first line", first_line(&report)?, 4 * TIMES)
        }))
    }

    fn own(&self) -> Result<Verdict> {
        let report = self.report(&self.exact, &self.lines, "own 1000 8", 8)?;
        Ok(report.and_then(|report| {
            let counts = in_operations(&report)?;
            equal("operations", counts.operations, 8)?;
            equal("transfers to user mode", counts.user_transfers, 0)
        }))
    }

    /// Two CPUs that add to one line move it once a turn. A block is executed whole, so turns are a little longer than
    /// the quantum, which shows the more the shorter they are.
    fn quantum(&self) -> Result<Verdict> {
        let mut found = Vec::new();
        for quantum in [50, 1000] {
            let exact = Exact { quantum, ..self.exact.clone() };
            match self.report(&exact, &self.lines, "shared 10000 2", 2)? {
                Ok(report) => found.push((quantum, in_operations(&report))),
                Err(why) => return Ok(Err(why)),
            }
        }
        let mut user = Vec::new();
        for (quantum, counts) in found {
            let counts = match counts {
                Ok(counts) => counts,
                Err(why) => return Ok(Err(why)),
            };
            let turns = counts.instructions_user / u64::from(quantum);
            if !(turns * 9 / 10..=turns * 11 / 10 + 1).contains(&counts.transfers) {
                return Ok(Err(format!("q = {quantum}: {} transfers in {turns} turns", counts.transfers)));
            }
            user.push(counts.instructions_user);
        }
        Ok(equal("instructions with another quantum", user[0], user[1]))
    }

    /// Against what the kernel counts itself. It counts outside the window too, and not the few by which it makes a
    /// thread look at a signal. In any design of address spaces a page that two threads have used is shot down.
    fn interrupts(&self) -> Result<Verdict> {
        let words = "mapbench pipeline --threads 4 --operations 100 --warm-up 1";
        let words: Vec<_> = words.split(' ').collect();
        let outcome = self.outcome(&self.whole(), &self.mapbench, &words, 4)?;
        let [Some(counted), Some(own)] = [outcome.counts, outcome.stats] else {
            return Ok(Err(format!("{:?} without counts", outcome.end)));
        };
        let number = |text: &str, at: &str| -> u64 {
            let value: Value = serde_json::from_str(text).unwrap_or_default();
            match value.pointer(at) {
                Some(Value::Array(each)) => each.iter().filter_map(Value::as_u64).sum(),
                other => other.and_then(Value::as_u64).unwrap_or(0),
            }
        };
        let kernels: u64 = ["/counters/shootdowns_sent", "/counters/reschedule_ipis"]
            .map(|at| number(&own, at))
            .iter()
            .sum();
        let tracers: u64 = ["ipis", "periodic_ipis"]
            .map(|at| number(&counted, &format!("/totals/in_windows/{at}")))
            .iter()
            .sum();
        Ok(match kernels > 100 && kernels.abs_diff(tracers) * 20 <= kernels {
            true => Ok(()),
            false => Err(format!("the tracer counted {tracers}, the kernel {kernels}")),
        })
    }

    fn transparent(&self) -> Result<Verdict> {
        let busybox = program::find("busybox".as_ref(), None)?;
        let exact = Exact { count: false, ..self.exact.clone() };
        let script = "read a; nproc; echo got $a; read b || exit 42";
        let outcome = self.outcome(&exact, &busybox, &["busybox", "sh", "-c", script], 3)?;
        let output = String::from_utf8_lossy(&outcome.stdout);
        Ok(match (&outcome.end, &*output) {
            (End::Exited(42), "3\ngot line\n") => Ok(()),
            (end, output) => Err(format!("{end:?}, {output:?}")),
        })
    }
}

/// Sums over all CPUs, within operations.
struct Sums {
    operations: u64,
    instructions_user: u64,
    transfers: u64,
    user_transfers: u64,
}

fn in_operations(report: &str) -> std::result::Result<Sums, String> {
    let report: Value = serde_json::from_str(report).map_err(|error| error.to_string())?;
    let number =
        |at: &str| report.pointer(at).and_then(Value::as_u64).ok_or(format!("no {at} in the report"));
    Ok(Sums {
        operations: number("/totals/operations")?,
        instructions_user: number("/totals/in_operations/instructions_user")?,
        transfers: number("/totals/in_operations/transfers")?,
        user_transfers: number("/totals/in_operations/user_transfers")?,
    })
}

/// How often the line moved that moved most, in operations.
fn first_line(report: &str) -> std::result::Result<u64, String> {
    let report: Value = serde_json::from_str(report).map_err(|error| error.to_string())?;
    let first = report.pointer("/lines/0/in_operations").and_then(Value::as_u64);
    first.ok_or("no line moved".to_owned())
}

fn equal(what: &str, got: u64, wanted: u64) -> Verdict {
    if got == wanted { Ok(()) } else { Err(format!("{got} {what} instead of {wanted}")) }
}

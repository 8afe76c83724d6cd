//! What memory primitives cost a program on Quire (`vmprim` by the kernel's own calls), held to ceilings in the exact
//! machine: instructions of TRAP+UNPROT and of TRAP+PROT1+UNPROT, a cost of PROT1 that doesn't depend on how many pages
//! differ, and interrupts. The same operations by signals are the control: they must be over each ceiling.

use std::{path::PathBuf, time::Duration};

use anyhow::Result;
use serde_json::Value;

use super::Report;
use crate::{
    args::Aspace,
    exact::Exact,
    guest,
    image::{Exec, Image},
    kernel::{self, Build},
    machine::{Boot, Machine},
    program::Program,
    run,
    session::{self, End, Files},
};

const LIMIT: Duration = Duration::from_secs(120);
/// Instructions of an operation, user and kernel, at most: the target of `trap`; of `prot1`, whose target of 3,000 is missed, a
/// twentieth above what it takes.
const CEILINGS: [(&str, f64); 2] = [("trap", 2000.0), ("prot1", 3700.0)];
/// Pages of the region where every second one is closed; the cost of one may differ by so much.
const ALTERNATE: [u32; 2] = [1 << 10, 1 << 16];
const FLAT: f64 = 1.2;
/// CPUs that use pages which one of them closes.
const SPREAD: [u32; 3] = [1, 2, 4];

/// A result of a test.
type Verdict = std::result::Result<(), String>;

pub fn run(report: &mut Report) -> Result<()> {
    report.doing("memory primitives");
    let lab = Lab {
        kernel: kernel::build(Build::Ordinary)?,
        exact: Exact::new()?,
        program: Program { host: guest::of_operations()?, guest: b"/bin/vmbench".to_vec(), packed: false },
    };
    for (mode, ceiling) in CEILINGS {
        let words = |backend| format!("{mode} --pages 1024 --backend {backend}");
        let native = lab.counts(&words("native"), 1)?.and_then(|counts| instructions(&counts));
        let signal = lab.counts(&words("signal"), 1)?.and_then(|counts| instructions(&counts));
        report.record(
            &format!("an operation of {mode} takes no more than it may"),
            native.and_then(|n| below(n, ceiling)),
        );
        let over = signal.and_then(|n| match below(n, ceiling) {
            Ok(()) => Err(format!("{n:.0} instructions by signals are below the ceiling")),
            Err(_) => Ok(()),
        });
        report.record(&format!("{mode} by signals is seen to take more"), over);
    }
    let mut each = Vec::new();
    for pages in ALTERNATE {
        let words = format!("alternate --pages {pages} --blank --backend native");
        each.push(lab.counts(&words, 1)?.and_then(|counts| instructions(&counts)));
    }
    let each: std::result::Result<Vec<_>, _> = each.into_iter().collect();
    report.record("a page costs as much among many that differ", each.and_then(|each| flat(&each)));
    for cpus in SPREAD {
        let words = format!("spread --pages 256 --threads {cpus} --backend native");
        let counts = lab.counts(&words, cpus)?;
        let name = format!("closing interrupts each CPU once, opening nobody, {cpus} CPUs");
        report.record(&name, counts.and_then(|counts| interrupts(&counts, cpus)));
    }
    Ok(())
}

struct Lab {
    kernel: PathBuf,
    exact: Exact,
    program: Program,
}

impl Lab {
    /// What was counted in a run that ended well.
    fn counts(&self, words: &str, cpus: u32) -> Result<std::result::Result<Value, String>> {
        let machine = Machine { exact: Some(self.exact.clone()), ..Machine::new(self.kernel.clone(), cpus) };
        let mut image = Image::default();
        run::add_program(&mut image, &self.program)?;
        let argv = std::iter::once("vmbench").chain(words.split(' ')).map(|word| word.as_bytes().to_vec());
        let path = self.program.guest.clone();
        image.exec(&Exec { argv: argv.collect(), env: Vec::new(), cwd: b"/".to_vec(), path });
        let boot = Boot { aspace: Some(Aspace::Radix), ..Boot::default() };
        let outcome = session::run(&machine, &boot, image, Files::Captured(Vec::new()), Some(LIMIT))?;
        Ok(match (outcome.end, outcome.counts) {
            (End::Exited(0), Some(counts)) => {
                serde_json::from_str(&counts).map_err(|error| error.to_string())
            }
            (end, _) => Err(format!("{words}: {end:?}\n{}", String::from_utf8_lossy(&outcome.stderr))),
        })
    }
}

/// Of an operation, user and kernel.
fn instructions(counts: &Value) -> std::result::Result<f64, String> {
    let number = |at: &str| counts.pointer(&format!("/totals/{at}")).and_then(Value::as_f64);
    let parts = ["in_operations/instructions_user", "in_operations/instructions_kernel", "operations"];
    match parts.map(number) {
        [Some(user), Some(kernel), Some(operations)] if operations >= 100.0 => {
            Ok((user + kernel) / operations)
        }
        found => Err(format!("no instructions of many operations, but {found:?}")),
    }
}

fn below(found: f64, ceiling: f64) -> Verdict {
    match found <= ceiling {
        true => Ok(()),
        false => Err(format!("{found:.0} instructions, and {ceiling:.0} are allowed")),
    }
}

fn flat(each: &[f64]) -> Verdict {
    let (least, most) = each.iter().fold((f64::INFINITY, 0.0_f64), |(a, b), &n| (a.min(n), b.max(n)));
    match most <= FLAT * least {
        true => Ok(()),
        false => Err(format!("{each:.0?} instructions with {ALTERNATE:?} pages")),
    }
}

/// Each window has two operations: one closes pages that all CPUs have used, the other opens them. The CPU that closes them
/// has nobody to interrupt but the others, and each of them has used a page: not fewer than one is sent, either.
fn interrupts(counts: &Value, cpus: u32) -> Verdict {
    /// In `each`: user, kernel, clearing, transfers, interrupts.
    const SENT: usize = 4;
    let windows = counts["windows"].as_array().map_or(&[][..], Vec::as_slice);
    for window in windows {
        let operations = &window["cpus"][0]["each"];
        let sent = [&operations[0][SENT], &operations[1][SENT]].map(Value::as_u64);
        if sent != [Some(u64::from(cpus) - 1), Some(0)] {
            return Err(format!("interrupts of closing and of opening: {sent:?}"));
        }
    }
    if windows.len() >= 8 { Ok(()) } else { Err(format!("{} windows", windows.len())) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_grows_with_the_pages_is_not_flat() {
        assert!(flat(&[1530.0, 1531.0]).is_ok() && flat(&[1530.0, 1300.0]).is_ok());
        assert!(flat(&[1000.0, 1201.0]).is_err() && flat(&[1201.0, 1000.0]).is_err());
    }

    #[test]
    fn an_interrupt_too_many_or_too_few_is_seen() {
        let counts = |closing: u64, opening: u64, windows: usize| {
            let each = json!({ "cpus": [{ "each": [[9, 9, 0, 3, closing], [9, 9, 0, 3, opening]] }] });
            json!({ "windows": vec![each; windows] })
        };
        assert!(interrupts(&counts(3, 0, 8), 4).is_ok());
        for (closing, opening, windows) in [(4, 0, 8), (2, 0, 8), (3, 1, 8), (3, 0, 0)] {
            assert!(interrupts(&counts(closing, opening, windows), 4).is_err());
        }
    }

    #[test]
    fn instructions_are_of_an_operation() {
        let text = |operations| {
            let parts = json!({ "instructions_user": 400, "instructions_kernel": 600 });
            json!({ "totals": { "operations": operations, "in_operations": parts } })
        };
        assert_eq!(instructions(&text(100)), Ok(10.0));
        assert!(instructions(&text(0)).is_err() && instructions(&json!({})).is_err());
    }
}

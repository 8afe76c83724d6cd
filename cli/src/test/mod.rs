//! `cargo quire test`: every test there is, in groups.
//!
//! Each group shows its progress on a terminal, each failure as it happens, and a line with its counts at the end; the
//! last line of all is `N passed, N failed`.

mod ahead;
mod apps;
mod bench;
mod built;
mod exact;
mod fuzz;
mod host;
mod kernel;
mod linux;
mod loom;
mod manifest;
mod matrix;
mod mutants;
mod output;
mod peer;
mod pool;
mod primitives;
mod races;
mod sanitize;
mod spin;
mod stress;
mod trace;

use std::time::Duration;

use anyhow::Result;

use self::ahead::Ahead;
use crate::{
    args::{Aspace, Group as Name, PageTables, Test},
    machine, ui,
};

/// Run the groups that the options name; the exit status is 1 if a test failed.
pub fn run(options: &Test) -> Result<u8> {
    let wanted = |name: Name| {
        // These take long as a whole.
        let among_all = !matches!(name, Name::Sanitize | Name::Stress | Name::Apps) || options.full;
        options.groups.iter().any(|group| *group == name || *group == Name::All && among_all)
    };
    let groups: Vec<_> = GROUPS.iter().filter(|(name, _)| wanted(*name)).collect();
    let names: Vec<_> = groups.iter().map(|(name, _)| *name).collect();
    let mut ahead = Ahead::begin(&names);
    let (mut passed, mut failed) = (0, 0);
    for (name, group) in groups {
        ahead.before(*name);
        for (design, tables, extent) in designs(*name, options) {
            machine::set_design(design, tables);
            let mut report = Report::new(label(*name));
            let group = match extent {
                Extent::All => *group,
                Extent::Few(few) => few,
            };
            if let Err(error) = group(&mut report, options.full) {
                report.fail("the group could not run", &format!("{error:#}"));
            }
            if matches!(name, Name::Kernel | Name::Linux) {
                let tables = tables.map_or(String::new(), |tables| format!(", {} tables", tables.name()));
                report.remark = format!("{}{tables}  {}", design.name(), report.remark);
            }
            let counts = report.end();
            passed += counts.0;
            failed += counts.1;
        }
    }
    ui::result(&format!("{passed} passed, {failed} failed"));
    Ok(u8::from(failed > 0))
}

/// How much of a group is run.
#[derive(Clone, Copy)]
enum Extent {
    All,
    /// By these instead: what the design of the address space decides, in a minute or so.
    Few(RunGroup),
}

/// The designs of the address space with which a group's tests are made, one after the other, and how many of them.
fn designs(name: Name, options: &Test) -> Vec<(Aspace, Option<PageTables>, Extent)> {
    let tables = options.pagetable;
    let all = |design, tables| (design, tables, Extent::All);
    let few = |design, few: RunGroup| (design, None, Extent::Few(few));
    match (name, options.aspace) {
        (_, Some(design)) => vec![all(design, tables)],
        (Name::Kernel | Name::Linux, None) if options.full => vec![
            all(Aspace::Radix, Some(PageTables::Percpu)),
            all(Aspace::Radix, Some(PageTables::Shared)),
            all(Aspace::Bonsai, None),
            all(Aspace::Locked, None),
        ],
        (Name::Kernel, None) => vec![all(Aspace::Radix, tables), few(Aspace::Bonsai, kernel::few)],
        (Name::Linux, None) => vec![all(Aspace::Radix, tables), few(Aspace::Bonsai, linux::few)],
        (Name::Mutants | Name::Sanitize, None) => vec![all(Aspace::Radix, tables)],
        // What moves between CPUs is known by name there, and so are the locks.
        (_, None) => vec![all(Aspace::Locked, None)],
    }
}

/// A group: runs its tests, `full` or in the usual time.
type RunGroup = fn(&mut Report, full: bool) -> Result<()>;

const GROUPS: [(Name, RunGroup); 11] = [
    (Name::Host, host::run),
    (Name::Loom, loom::run),
    (Name::Spin, spin::run),
    (Name::Kernel, kernel::run),
    (Name::Linux, linux::run),
    (Name::Peer, peer::run),
    (Name::Trace, trace::run),
    (Name::Mutants, mutants::run),
    (Name::Sanitize, sanitize::run),
    (Name::Stress, stress::run),
    (Name::Apps, apps::run),
];

fn label(name: Name) -> &'static str {
    match name {
        Name::Host => "host",
        Name::Loom => "loom",
        Name::Spin => "spin",
        Name::Kernel => "kernel",
        Name::Linux => "linux",
        Name::Peer => "peer",
        Name::Trace => "trace",
        Name::Mutants => "mutants",
        Name::Sanitize => "sanitize",
        Name::Stress => "stress",
        Name::Apps => "apps",
        Name::All => "all",
    }
}

/// The results of one group.
struct Report {
    progress: ui::Progress,
    passed: u32,
    failed: u32,
    remark: String,
}

impl Report {
    fn new(name: &str) -> Self {
        Self { progress: ui::Progress::new(name), passed: 0, failed: 0, remark: String::new() }
    }

    /// What is being done just now.
    fn doing(&self, what: &str) {
        self.progress.message(what);
    }

    /// Test number `done` of `total` begins.
    fn begin(&self, done: usize, total: usize, test: &str) {
        self.progress.steps(done as u64, total as u64, test);
    }

    fn pass(&mut self) {
        self.passed += 1;
    }

    fn fail(&mut self, test: &str, why: &str) {
        self.failed += 1;
        ui::show(&format!("FAILED {}: {test}: {}", self.progress.name(), why.trim_end()));
    }

    fn record(&mut self, test: &str, result: Result<(), String>) {
        match result {
            Ok(()) => self.pass(),
            Err(why) => self.fail(test, &why),
        }
    }

    /// A figure of the group's own, or what it left out; shown in its line, after others.
    fn remark(&mut self, text: String) {
        if !self.remark.is_empty() {
            self.remark += "; ";
        }
        self.remark += &text;
    }

    /// Print the group's line; what passed and what failed.
    fn end(self) -> (u32, u32) {
        let Self { progress, passed, failed, remark } = self;
        let (name, took) = (progress.name().to_owned(), seconds(progress.elapsed()));
        drop(progress);
        let line = format!("{name:8} {passed:5} passed {failed:4} failed {took:>9}  {remark}");
        ui::result(line.trim_end());
        (passed, failed)
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a design of the address space can break is run on each.
    #[test]
    fn the_kernel_and_programs_run_on_every_design() {
        let all = |full| Test { groups: vec![Name::All], full, aspace: None, pagetable: None };
        for name in [Name::Kernel, Name::Linux] {
            let usual = designs(name, &all(false));
            assert!(matches!(
                usual[..],
                [(Aspace::Radix, None, Extent::All), (Aspace::Bonsai, None, Extent::Few(_))]
            ));
            let full = designs(name, &all(true));
            for wanted in [Aspace::Bonsai, Aspace::Locked, Aspace::Radix] {
                let runs = |turn: &(Aspace, _, Extent)| turn.0 == wanted && matches!(turn.2, Extent::All);
                assert!(full.iter().any(runs), "{wanted:?}");
            }
        }
    }
}

//! `cargo quire trace`: which cache lines moved between CPUs, what they are, and who moved them.
//!
//! A program runs on the exact machine, as with `run --accel exact`; what the tracer counted by address and what the kernel
//! said of its places are put together into a [`Report`], which is shown as a table, and written as JSON or as a page.
//! `docs/trace.md` says how to read it, and has the schema of the JSON.

mod cpus;
mod html;
mod json;
mod names;
mod report;
mod source;
mod table;

use std::path::Path;

use anyhow::{Context, Result};

use crate::{
    args::{Accel, Trace, Traced},
    counts,
    failure::{USAGE, failure},
    linux::Linux,
    program::Program,
    run,
    session::Outcome,
    ui,
};
pub use names::{Kind, Names};
pub use report::{Line, Report, common};
pub use source::{Elf, Function, Source, linux_areas};
pub use table::{chain, title};

/// Do what the options say; the exit status is the program's.
pub fn run(options: Trace) -> Result<u8> {
    let Trace { top, json, html, plant_shared_counter, run: mut wanted } = options;
    if !matches!(wanted.accel, Accel::Auto | Accel::Exact) {
        return Err(failure(USAGE, "trace runs on the exact machine: leave out --accel"));
    }
    wanted.accel = Accel::Exact;
    wanted.trace = Some(Traced { plant_shared_counter });
    let ran = run::execute(&wanted)?;
    if let Some(counted) = &ran.outcome.counts {
        counts::show(&wanted, counted, || ran.names())?;
        let names = names(&ran.outcome, &ran.kernel, ran.linux.as_ref(), &ran.program)?;
        let report = Report::new(counted, &names)?;
        if let Some(path) = &json {
            let text = format!("{:#}\n", json::value(&report));
            std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        if let Some(path) = &html {
            let words: Vec<_> = wanted.command.iter().map(|word| word.to_string_lossy()).collect();
            let title = if words.is_empty() { "demo".to_owned() } else { words.join(" ") };
            let page = html::page(&report, &title, top);
            std::fs::write(path, page).with_context(|| format!("cannot write {}", path.display()))?;
        }
        ui::show(&table::table(&report, top));
    }
    run::report(&wanted, &ran.outcome)
}

/// Names for what a run's addresses are: of this kernel, Linux's if one is given, and of the program.
pub fn names(outcome: &Outcome, kernel: &Path, linux: Option<&Linux>, program: &Program) -> Result<Names> {
    let kernel: Box<dyn Source> = match linux {
        Some(linux) => Box::new(linux.kallsyms()?),
        None => Box::new(Elf::new(kernel, 0)),
    };
    let (places, programs) = match linux {
        // It says nothing of what lies where, but without randomisation that is the same each time.
        Some(_) => (source::linux_areas(), vec![source::placed(&program.host, &program.guest)]),
        None => (outcome.places.clone(), outcome.programs.clone()),
    };
    Ok(Names::new(kernel, &places, &programs, &program.host, &program.guest))
}

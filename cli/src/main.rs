//! `cargo quire`: builds the kernel, runs Linux programs on it, and tests it.
//!
//! The driver uses nothing of the other crates: it runs them, as programs. `run` is transparent, so everything of its
//! own (progress, notes, mistakes) goes to standard error, starts with `quire:` and is one line each.

mod apt;
mod args;
mod bench;
mod cargo;
mod child;
mod console;
mod counts;
mod doctor;
mod exact;
mod failure;
mod guest;
mod image;
mod kernel;
mod linux;
mod machine;
mod needs;
mod numa;
mod program;
mod record;
mod report;
mod results;
mod run;
mod session;
mod stats;
mod symbols;
mod terminal;
mod test;
mod toolchain;
mod trace;
mod ui;
mod workspace;

use std::process::ExitCode;

use args::Command;

fn main() -> ExitCode {
    child::die_cleanly();
    let outcome = args::parse().and_then(|command| match command {
        Command::Run(options) => run::run(&options),
        Command::Trace(options) => trace::run(options),
        Command::Test(options) => test::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Report(options) => report::run(&options),
        Command::Doctor(options) => doctor::run(&options),
    });
    match outcome {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            ui::say(&format!("{error:#}"));
            ExitCode::from(failure::status(&error))
        }
    }
}

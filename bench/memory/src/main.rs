//! What processes' memory costs in bookkeeping, beside Linux's: the `memory` suite of `cargo quire bench`.
//!
//! A *shape* is a process in numbers: its mappings and its resident pages ([`shape`]). It is made in the kernel's own address spaces
//! ([`replay`]), and what they take of the heap is counted by the kernel's own size classes ([`meter`]). Linux's is
//! counted by the size of its structures ([`linux`]). `docs/memory.md` says what is in the numbers and what isn't.

mod linux;
mod meter;
mod record;
mod replay;
mod shape;
mod table;

use std::{
    fs,
    io::{IsTerminal, Write, stderr},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Parser;
use serde_json::json;

use crate::{replay::Design, shape::Shape, table::Measured};

#[global_allocator]
static HEAP: meter::Meter = meter::Meter;

/// The version of the file's layout.
const VERSION: u32 = 1;
/// Where the shapes are that come with the program.
const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../shapes");

/// What to measure, or to record.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "memory",
    about = "What the memory of processes costs in bookkeeping, beside Linux's: docs/memory.md"
)]
struct Options {
    /// Which shapes [default: all]
    #[arg(value_name = "SHAPE", conflicts_with = "record")]
    names: Vec<String>,
    /// Also the shapes in this folder, files that end in .txt
    #[arg(long, value_name = "DIR", conflicts_with = "record")]
    shapes: Option<PathBuf>,
    /// Write the shape of a process that runs, and measure nothing
    #[arg(long, value_name = "PID")]
    record: Option<u32>,
    /// Where the recorded shape goes [default: standard output]
    #[arg(long, value_name = "FILE", requires = "record")]
    output: Option<PathBuf>,
    /// Write the results to a file
    #[arg(long, value_name = "FILE", conflicts_with = "record")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) if !error.use_stderr() => error.exit(),
        Err(error) => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or("").trim_start_matches("error: ").to_owned();
            return fail(&format!("{line}; see memory --help"));
        }
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => fail(&problem),
    }
}

fn fail(problem: &str) -> ExitCode {
    eprintln!("memory: {problem}");
    ExitCode::from(2)
}

fn run(options: &Options) -> Result<(), String> {
    if let Some(pid) = options.record {
        let text = record::record(pid)?.write();
        return match &options.output {
            Some(path) => write(path, &text),
            None => {
                show(&text);
                Ok(())
            }
        };
    }
    let mut shapes = folder(Path::new(SHIPPED))?;
    if let Some(path) = &options.shapes {
        shapes.extend(folder(path)?);
    }
    if let Some(unknown) = options.names.iter().find(|name| shapes.iter().all(|(known, _)| known != *name)) {
        let known: Vec<_> = shapes.iter().map(|(name, _)| name.as_str()).collect();
        return Err(format!("no shape {unknown}: there is {}", known.join(", ")));
    }
    shapes.retain(|(name, _)| options.names.is_empty() || options.names.contains(name));
    // Every mistake shows before anything is measured.
    options.json.as_deref().map_or(Ok(()), |path| write(path, ""))?;
    let all = shapes.iter().map(|(name, shape)| measure(name, shape)).collect::<Result<Vec<_>, _>>()?;
    say("");
    show(&table::table(&all));
    if let Some(path) = &options.json {
        let shapes: Vec<_> = all.iter().map(Measured::json).collect();
        let all = json!({ "program": "memory", "version": VERSION, "shapes": shapes });
        write(path, &format!("{all:#}\n"))?;
    }
    Ok(())
}

fn measure(name: &str, shape: &Shape) -> Result<Measured, String> {
    let of = |design: Design| {
        say(&format!("{name}: {}", design.name()));
        replay::replay(shape, design).map_err(|problem| format!("{name}: {}: {problem}", design.name()))
    };
    Ok(Measured::new(name, shape, [of(Design::Radix)?, of(Design::Locked)?]))
}

/// The shapes in a folder, by the names of their files.
fn folder(path: &Path) -> Result<Vec<(String, Shape)>, String> {
    let of = |path: &Path, problem: String| format!("{}: {problem}", path.display());
    let entries = fs::read_dir(path).map_err(|error| of(path, error.to_string()))?;
    let files = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut files: Vec<_> = files.filter(|file| file.extension().is_some_and(|end| end == "txt")).collect();
    files.sort();
    if files.is_empty() {
        return Err(of(path, "there is no shape in it, no file that ends in .txt".to_owned()));
    }
    let read = |file: PathBuf| {
        let text = fs::read_to_string(&file).map_err(|error| of(&file, error.to_string()))?;
        let shape = Shape::parse(&text).map_err(|problem| of(&file, problem))?;
        Ok((file.file_stem().unwrap_or_default().to_string_lossy().into_owned(), shape))
    };
    files.into_iter().map(read).collect()
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

fn show(text: &str) {
    // Whoever has stopped reading has what he wanted.
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// What is being done, on a terminal.
fn say(what: &str) {
    if stderr().is_terminal() {
        // Nobody needs to know that the terminal has gone.
        let _ = write!(stderr(), "\r\x1b[K{what}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The gate: at most so much of Linux's mappings and page tables.
    #[test]
    fn shipped_shapes_cost_less_than_linuxs() {
        let shapes = folder(Path::new(SHIPPED)).unwrap();
        assert!(shapes.len() >= 4, "{} shapes", shapes.len());
        for (name, shape) in shapes {
            let measured = measure(&name, &shape).unwrap();
            let m1 = measured.m1(0);
            assert!(m1 <= table::M1, "{name}: M1 {m1:.3}");
        }
    }

    /// Where all pages are resident, one costs its slot and its part of a leaf's head, of a block, and of what slabs lose.
    #[test]
    fn a_page_among_resident_ones_costs_little_more_than_its_slot() {
        let text = "quire-shape 1\nmap 100000 104000 rw-p anon 0 0 -\nres 100000 104000\n";
        let dense = measure("dense", &Shape::parse(text).unwrap()).unwrap().marginal(0);
        assert!((9.0..9.5).contains(&dense), "{dense}");
    }

    #[test]
    fn mistakes_are_a_line() {
        let run = |words: &[&str]| run(&Options::parse_from([&["memory"], words].concat())).unwrap_err();
        assert!(run(&["nothing"]).starts_with("no shape nothing: there is "));
        assert!(run(&["--shapes", "/nowhere"]).starts_with("/nowhere: No such file"));
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
        let none = format!("{path}: there is no shape in it, no file that ends in .txt");
        assert_eq!(run(&["--shapes", path]), none);
        assert!(Options::try_parse_from(["memory", "--output", "x"]).is_err());
        assert!(Options::try_parse_from(["memory", "--record", "1", "--json", "x"]).is_err());
    }
}

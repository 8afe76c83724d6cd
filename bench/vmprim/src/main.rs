//! The table of Appel and Li (ASPLOS 1991) on this host, for each backend that works here, beside C that makes the
//! same calls by hand.
//!
//! ```text
//! cells.rs    one cell: a region, an order of pages, a time
//! counted.rs  the same cell between markers, in a machine that counts
//! twin.rs     the same cell by C (c/twin.c)
//! shown.rs    the table, and the records for machines
//! ```
//! A figure is the median over runs of the median over rounds; the least and greatest run stand beside it. Runs of
//! the library and of C alternate, and so do a column's rows, so that what else the machine does meets all that is compared.

mod cells;
mod counted;
#[path = "../../guest/src/bin/mapbench/marker.rs"]
mod marker;
mod shown;
mod twin;

use std::{process::ExitCode, sync::OnceLock};

use clap::{Parser, ValueEnum};

use cells::{Cell, Row};
use shown::Figure;

/// What to vary instead of printing the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Sweep {
    /// Pages of the region: 1024 to 262144
    Pages,
    /// Threads: 1 to twice the CPUs, each on pages of its own, and all on the same
    Threads,
    /// The protection unit: 4 KiB to 256 KiB, in as many pages
    Unit,
}

/// Options.
#[derive(Debug, Parser)]
#[command(name = "vmprim", about = "Virtual-memory primitives on this host, in nanoseconds and in additions")]
struct Options {
    /// Rows [default: all that work here]
    #[arg(value_name = "ROW")]
    rows: Vec<String>,
    /// Pages of the region
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(32..=1 << 18))]
    pages: u32,
    /// Runs; a figure is their median
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Rounds of a run
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Of the order of pages
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Vary one thing instead
    #[arg(long)]
    sweep: Option<Sweep>,
    /// Write the results to a file
    #[arg(long, value_name = "FILE")]
    json: Option<std::path::PathBuf>,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.iter().any(|word| word == counted::OPTION) {
        return counted::run(&words);
    }
    let options = Options::parse();
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("vmprim: {message}");
            ExitCode::FAILURE
        }
    }
}

/// The rows that were asked for and work here; why the others are left out is said.
fn rows(options: &Options) -> Result<Vec<Row>, String> {
    let unknown = options.rows.iter().find(|name| !Row::ALL.iter().any(|row| row.name() == **name));
    if let Some(unknown) = unknown {
        let names: Vec<_> = Row::ALL.iter().map(|row| row.name()).collect();
        return Err(format!("no row {unknown}: there is {}", names.join(", ")));
    }
    let wanted = |row: &Row| options.rows.is_empty() || options.rows.iter().any(|name| name == row.name());
    let mut rows = Vec::new();
    for row in Row::ALL.into_iter().filter(wanted) {
        match row.region(16) {
            Ok(_) => rows.push(row),
            Err(error) => eprintln!("{} is left out: {error}", row.name()),
        }
    }
    Ok(rows)
}

/// The process measures on one CPU if it is `alone`, else on those that it began with. A run that hangs ends.
fn settle(alone: bool) {
    static ALL: OnceLock<libc::cpu_set_t> = OnceLock::new();
    // SAFETY: valid structures; the calls touch nothing else.
    unsafe {
        libc::alarm(60);
        let mut set = std::mem::zeroed::<libc::cpu_set_t>();
        let all = ALL.get_or_init(|| {
            libc::sched_getaffinity(0, size_of_val(&set), &mut set);
            set
        });
        let mut one = std::mem::zeroed::<libc::cpu_set_t>();
        libc::CPU_SET(usize::try_from(libc::sched_getcpu()).unwrap_or(0), &mut one);
        libc::sched_setaffinity(0, size_of_val(&one), if alone { &one } else { all });
    }
}

/// Real-time priority for this thread alone; whether it was given.
fn before_others(on: bool) -> bool {
    let (policy, priority) = if on { (libc::SCHED_FIFO, 10) } else { (libc::SCHED_OTHER, 0) };
    let parameter = libc::sched_param { sched_priority: priority };
    // SAFETY: a valid structure.
    unsafe { libc::sched_setscheduler(0, policy, &parameter) == 0 }
}

fn run(options: &Options) -> Result<(), String> {
    shown::cpus();
    let rows = rows(options)?;
    let figures = match options.sweep {
        None => table(options, &rows)?,
        Some(sweep) => vary(options, &rows, sweep)?,
    };
    if let Some(path) = &options.json {
        let has_priority = before_others(true);
        before_others(false);
        std::fs::write(path, shown::json(&figures, options.seed, &shown::machine(has_priority)))
            .map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

fn table(options: &Options, rows: &[Row]) -> Result<Vec<Figure>, String> {
    let has_priority = before_others(true);
    if !has_priority {
        eprintln!("no real-time priority: figures are those of a process among others");
    }
    let add = cells::add();
    before_others(false);
    let mut figures = Vec::new();
    for cell in Cell::ALL {
        // Of each row what the library took, and C.
        let with = rows.iter().filter(|row| row.has(cell));
        let mut taken: Vec<_> = with.map(|&row| (row, Vec::new(), Vec::new())).collect();
        for run in 0..options.runs {
            for (row, ours, theirs) in &mut taken {
                settle(row.is_in_thread());
                let seed = options.seed + u64::from(run);
                before_others(row.is_in_thread());
                let measured =
                    cells::measure(*row, cell, options.pages as usize, 4096, options.rounds, seed, None);
                before_others(false);
                ours.push(measured?);
                theirs.extend(twin::measure(*row, cell, options.pages, options.rounds, seed)?);
            }
        }
        for (row, ours, theirs) in taken {
            // Each run beside the one of C that followed it.
            let mut ratios: Vec<_> = ours.iter().zip(&theirs).map(|(ours, theirs)| ours / theirs).collect();
            let mut figure = Figure::new(row, cell, options.pages as usize, ours);
            figure.to_c = (!ratios.is_empty()).then(|| cells::median(&mut ratios));
            figures.push(figure);
        }
    }
    print!("{}", shown::table(&figures, rows, add, options));
    for figure in &mut figures {
        figure.adds = Some(figure.ns / add);
    }
    Ok(figures)
}

fn vary(options: &Options, rows: &[Row], sweep: Sweep) -> Result<Vec<Figure>, String> {
    let cpus = shown::cpus();
    let points: Vec<usize> = match sweep {
        Sweep::Pages => vec![1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18],
        Sweep::Unit => vec![4, 16, 64, 256],
        Sweep::Threads => (0..).map(|i| 1 << i).take_while(|&n| n <= 2 * cpus).collect(),
    };
    let mut figures = Vec::new();
    let runs = options.runs.min(3);
    let cells: &[(&str, bool)] = match sweep {
        Sweep::Threads => &[("disjoint", false), ("equal", true)],
        _ => &[("", false)],
    };
    for &row in rows.iter().filter(|row| row.has(Cell::ProtN)) {
        for &(what, same) in cells {
            for &point in &points {
                if sweep == Sweep::Pages && row.splits() && point > 1 << 16 {
                    println!(
                        "{:28} {point} pages in random order need more mappings than there may be",
                        row.label()
                    );
                    continue;
                }
                // A larger unit has as many pages, so fewer of them fit.
                let pages = match sweep {
                    Sweep::Pages => point,
                    Sweep::Unit => options.pages.min(1024) as usize,
                    Sweep::Threads => options.pages as usize,
                };
                let mut found = Vec::new();
                for run in 0..runs {
                    settle(sweep != Sweep::Threads && row.is_in_thread());
                    let seed = options.seed + u64::from(run);
                    let rounds = if point >= 1 << 16 { 1 } else { options.rounds };
                    // Threads have the priority of the one that starts them.
                    before_others(row.is_in_thread());
                    found.push(match sweep {
                        Sweep::Pages => cells::measure(row, Cell::ProtN, pages, 4096, rounds, seed, None)?,
                        Sweep::Unit => {
                            cells::measure(row, Cell::ProtN, pages, point << 10, rounds, seed, None)?
                        }
                        Sweep::Threads => cells::threads(row, pages, point, same, rounds, seed)?,
                    });
                    before_others(false);
                }
                let mut figure = match sweep {
                    Sweep::Threads => Figure::by_threads(row, pages, point, same, found),
                    _ => Figure::new(row, Cell::ProtN, pages, found),
                };
                figure.variant = match sweep {
                    Sweep::Pages => format!("{point} pages"),
                    Sweep::Unit => format!("unit {point} KiB"),
                    Sweep::Threads => format!("{point} threads, {what} pages"),
                };
                println!("{}", figure.line());
                figures.push(figure);
            }
        }
    }
    Ok(figures)
}

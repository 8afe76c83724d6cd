//! A cell in a machine that counts, for `cargo quire bench vmprim`:
//!
//!     vmprim-bench ROW/CELL --json --threads N --warm-up IGNORED --operations PAGES
//!     vmprim-bench all --json --threads N --warm-up IGNORED --operations PAGES
//!
//! Each thread is on a CPU of its own, and has a region of its own of so many pages, in the same process. It works through
//! them twice; the second time is its window, and one bracket. The answer is a line of JSON as `mapbench`'s. `all`: which
//! cells there are here, and why others are not.

use std::{process::ExitCode, sync::Barrier, thread};

use serde_json::{Value, json};

use crate::cells::{self, Cell, Row};

/// The word by which this is known.
pub const OPTION: &str = "--operations";

fn usage() -> ExitCode {
    eprintln!("vmprim-bench: say ROW/CELL, or all, and --json --threads N --warm-up N --operations PAGES");
    ExitCode::from(2)
}

pub fn run(words: &[String]) -> ExitCode {
    let value = |name: &str| {
        let at = words.iter().position(|word| word == name)?;
        words.get(at + 1)?.parse::<usize>().ok()
    };
    let (Some(mode), Some(threads), Some(pages)) =
        (words.first(), value("--threads").filter(|n| *n > 0), value(OPTION).filter(|n| *n >= 16))
    else {
        return usage();
    };
    if mode == "all" {
        println!("{}", present());
        return ExitCode::SUCCESS;
    }
    let named = |(row, cell): &(Row, Cell)| *mode == name(*row, *cell);
    let Some((row, cell)) = all().find(named) else { return usage() };
    match measure(row, cell, threads, pages) {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("vmprim-bench: {mode}: {message}");
            ExitCode::FAILURE
        }
    }
}

fn all() -> impl Iterator<Item = (Row, Cell)> {
    Row::ALL
        .into_iter()
        .flat_map(|row| Cell::ALL.map(|cell| (row, cell)))
        .filter(|(row, cell)| row.has(*cell))
}

fn name(row: Row, cell: Cell) -> String {
    format!("{}/{}", row.name(), cell.name())
}

fn present() -> Value {
    // Which thread handles a fault is counted with that thread's CPU, whose window is not open.
    let in_thread = Row::ALL.into_iter().filter(|row| row.is_in_thread());
    let tried: Vec<_> = in_thread.map(|row| (row, row.region(16).err())).collect();
    let works = |row: Row| tried.iter().any(|(one, refused)| *one == row && refused.is_none());
    let cells: Vec<_> = all().filter(|(row, _)| works(*row)).map(|(row, cell)| name(row, cell)).collect();
    let refused = tried.iter().filter_map(|(row, why)| Some((row.name(), why.as_ref()?.to_string())));
    json!({ "cells": cells, "left_out": refused.collect::<Vec<_>>() })
}

fn measure(row: Row, cell: Cell, threads: usize, pages: usize) -> Result<Value, String> {
    let together = Barrier::new(threads);
    let work = |cpu: usize| {
        place(cpu)?;
        vmprim::attach().map_err(|error| error.to_string())?;
        cells::measure(row, cell, pages, 4096, 2, 1 + cpu as u64, Some(&together))
    };
    thread::scope(|scope| {
        let work = &work;
        let all: Vec<_> = (0..threads).map(|cpu| scope.spawn(move || work(cpu))).collect();
        let ended = all.into_iter().map(|one| one.join().unwrap_or_else(|_| Err("a thread panicked".into())));
        ended.collect::<Result<Vec<_>, _>>()
    })?;
    let operations = if cell == Cell::Dirty { pages / 8 } else { pages };
    let each = |cpu| json!({"thread": cpu, "cpu": cpu, "operations": operations, "brackets": 1});
    let per_thread: Vec<_> = (0..threads).map(each).collect();
    Ok(json!({"program": "vmprim", "npages": pages, "right": true, "per_thread": per_thread}))
}

/// This thread stays on a CPU.
fn place(cpu: usize) -> Result<(), String> {
    // SAFETY: an empty set is all zeros; the call only reads it.
    let set = unsafe {
        let mut one = std::mem::zeroed::<libc::cpu_set_t>();
        libc::CPU_SET(cpu, &mut one);
        libc::sched_setaffinity(0, size_of_val(&one), &one)
    };
    if set == 0 { Ok(()) } else { Err(format!("there is no CPU {cpu}")) }
}

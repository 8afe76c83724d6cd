//! The same cell by C, in a process of its own: it has signal handlers of its own.

use std::process::Command;

use crate::cells::{Cell, Row};

/// Nanoseconds an operation; nothing if there was no C compiler, or C has no such row.
pub fn measure(row: Row, cell: Cell, pages: u32, rounds: u32, seed: u64) -> Result<Option<f64>, String> {
    let program = env!("QUIRE_TWIN");
    if program.is_empty() || matches!(row, Row::Thread | Row::NativeAnon | Row::NativeMemfd) {
        return Ok(None);
    }
    let numbers = [u64::from(pages), seed, u64::from(rounds)].map(|n| n.to_string());
    let output = Command::new(program).args([row.name(), cell.name()]).args(&numbers).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    match said.trim().parse() {
        Ok(ns) if output.status.success() => Ok(Some(ns)),
        _ => Err(format!("C, {} {}: {}", row.name(), cell.name(), output.status)),
    }
}

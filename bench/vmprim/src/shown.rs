//! The table for people, and the records for machines.

use std::fmt::Write;

use serde_json::json;

use crate::{
    Options,
    cells::{Cell, Row, median},
};

/// What was measured of a cell.
#[derive(Debug)]
pub struct Figure {
    pub row: Row,
    pub cell: Cell,
    pub pages: u32,
    /// The median over runs, the least and the greatest.
    pub ns: f64,
    pub least: f64,
    pub greatest: f64,
    pub runs: usize,
    /// Of the time that C took: the median over runs.
    pub to_c: Option<f64>,
    pub adds: Option<f64>,
    /// What a sweep varied.
    pub variant: String,
}

impl Figure {
    pub fn new(row: Row, cell: Cell, pages: u32, mut runs: Vec<f64>) -> Self {
        let ns = median(&mut runs);
        let (least, greatest) = (runs.first().copied().unwrap_or(0.0), runs.last().copied().unwrap_or(0.0));
        let variant = String::new();
        Self { row, cell, pages, ns, least, greatest, runs: runs.len(), to_c: None, adds: None, variant }
    }

    /// A line of a sweep.
    pub fn line(&self) -> String {
        format!(
            "{:28} {:28} {:>9.0} ns [{:.0}, {:.0}]",
            self.row.label(),
            self.variant,
            self.ns,
            self.least,
            self.greatest
        )
    }
}

const HEADS: [(Cell, &str); 5] = [
    (Cell::Trap, "TRAP"),
    (Cell::Prot1, "TRAP+PROT1+UNPROT"),
    (Cell::ProtN, "PROTN+TRAP+UNPROT"),
    (Cell::Dirty, "DIRTY"),
    (Cell::Map2, "MAP2"),
];

fn find(figures: &[Figure], row: Row, cell: Cell) -> Option<&Figure> {
    figures.iter().find(|figure| figure.row == row && figure.cell == cell)
}

/// The paper's table.
pub fn table(figures: &[Figure], rows: &[Row], add: f64, options: &Options) -> String {
    let mut text = format!(
        "ADD {add:.3} ns; {} pages of 4096 bytes; medians of {} runs of {} rounds\n\n{:28}",
        options.pages, options.runs, options.rounds, "ns an operation [runs]"
    );
    // Writing to a String cannot fail, here and below.
    text.extend(HEADS.iter().map(|(_, head)| format!("{head:>26}")));
    for &row in rows {
        let _ = write!(text, "\n{:28}", row.label());
        for (cell, _) in HEADS {
            let shown = find(figures, row, cell).map_or("-".into(), |figure| {
                let digits = usize::from(figure.ns < 100.0);
                format!("{:.digits$} [{:.digits$}, {:.digits$}]", figure.ns, figure.least, figure.greatest)
            });
            let _ = write!(text, "{shown:>26}");
        }
    }
    let _ = write!(text, "\n\n{:28}", "in ADDs; to C by hand");
    text.extend(HEADS.iter().map(|(_, head)| format!("{head:>26}")));
    for &row in rows {
        let _ = write!(text, "\n{:28}", row.label());
        for (cell, _) in HEADS {
            let shown = find(figures, row, cell).map_or("-".into(), |figure| {
                let to_c = figure.to_c.map_or("-".into(), |ratio| format!("{ratio:.2}"));
                format!("{:.0}; {to_c}", figure.ns / add)
            });
            let _ = write!(text, "{shown:>26}");
        }
    }
    text.push_str("\n\n");
    for (cell, head) in HEADS {
        let Some(signal) = find(figures, Row::SignalAnon, cell) else { continue };
        let all = figures.iter().filter(|figure| figure.cell == cell);
        if let Some(best) = all.min_by(|a, b| a.ns.total_cmp(&b.ns)) {
            let _ = writeln!(
                text,
                "{head}: {} is the best, {:.2} of Signal on anonymous memory",
                best.row.label(),
                best.ns / signal.ns
            );
        }
    }
    text
}

/// The records, by the schema of the driver's results.
pub fn json(figures: &[Figure], seed: u64) -> String {
    let mut records = Vec::new();
    for figure in figures {
        let mut add = |mode: &str, metric: &str, value: f64, unit: &str, spread: Option<(f64, f64)>| {
            let (min, max) = spread.unwrap_or((value, value));
            let mut record = json!({
                "suite": "vmprim", "bench": figure.cell.name(), "mode": mode, "system": "host",
                "cpus": 1, "threads": 1, "npages": figure.pages, "seed": seed, "operations": figure.pages,
                "metric": metric, "value": value, "unit": unit, "kind": "wall", "repeats": figure.runs,
                "min": min, "max": max,
            });
            if !figure.variant.is_empty() {
                record["variant"] = json!(figure.variant);
            }
            records.push(record);
        };
        let mode = figure.row.name();
        add(mode, "ns", figure.ns, "ns", Some((figure.least, figure.greatest)));
        if let Some(adds) = figure.adds {
            add(mode, "adds", adds, "additions", None);
        }
        if let Some(ratio) = figure.to_c {
            add(mode, "ratio_to_c", ratio, "ratio", None);
        }
        let plain = figure.variant.is_empty();
        if let Some(signal) = find(figures, Row::SignalAnon, figure.cell).filter(|_| plain) {
            add(mode, "ratio_to_mprotect", figure.ns / signal.ns, "ratio", None);
            let rivals = figures.iter().filter(|other| other.cell == figure.cell);
            if rivals.min_by(|a, b| a.ns.total_cmp(&b.ns)).is_some_and(|best| best.row == figure.row) {
                add("best", "ns", figure.ns, "ns", Some((figure.least, figure.greatest)));
                add("best", "ratio_to_mprotect", figure.ns / signal.ns, "ratio", None);
            }
        }
    }
    let all = json!({ "version": 1, "machine": {}, "records": records });
    format!("{all:#}\n")
}

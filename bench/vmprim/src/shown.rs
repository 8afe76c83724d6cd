//! The table for people, and the records for machines.

use std::{fmt::Write, sync::OnceLock};

use serde_json::{Value, json};

use crate::{
    Options,
    cells::{Cell, Row, median},
};

/// What was measured of a cell.
#[derive(Debug)]
pub struct Figure {
    pub row: Row,
    pub cell: Cell,
    /// Of the region.
    pub pages: usize,
    /// Threads that operate, and the CPUs that they may use.
    pub threads: usize,
    pub cpus: usize,
    /// Of each thread, in a round.
    pub operations: usize,
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
    /// Of a thread that works through all pages on one CPU, unless more is said; a thread that reads faults has a CPU beside it.
    pub fn new(row: Row, cell: Cell, pages: usize, mut runs: Vec<f64>) -> Self {
        let ns = median(&mut runs);
        let (least, greatest) = (runs.first().copied().unwrap_or(0.0), runs.last().copied().unwrap_or(0.0));
        Self {
            row,
            cell,
            pages,
            threads: 1,
            cpus: if row.is_in_thread() { 1 } else { cpus() },
            operations: if cell == Cell::Dirty { pages / 8 } else { pages },
            ns,
            least,
            greatest,
            runs: runs.len(),
            to_c: None,
            adds: None,
            variant: String::new(),
        }
    }

    /// By several threads on `pages` in all, each on its share of them, or all on the `same`.
    pub fn by_threads(row: Row, pages: usize, threads: usize, same: bool, runs: Vec<f64>) -> Self {
        let operations = if same { pages } else { pages / threads };
        Self { threads, cpus: cpus(), operations, ..Self::new(row, Cell::ProtN, pages, runs) }
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

/// Of this machine, as far as the process may use them; asked first before it keeps to one of them.
pub fn cpus() -> usize {
    static CPUS: OnceLock<usize> = OnceLock::new();
    *CPUS.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// What figures were measured on.
pub fn machine(has_priority: bool) -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    json!({
        "cpu": model.map(|(_, name)| name),
        "cpus": cpus(),
        "kernel": read("/proc/sys/kernel/osrelease").trim_end(),
        "real_time": has_priority,
    })
}

const HEADS: [(Cell, &str); 6] = [
    (Cell::Trap, "TRAP"),
    (Cell::Prot1, "TRAP+PROT1+UNPROT"),
    (Cell::Prot16, "TRAP+PROT16+UNPROT"),
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
pub fn json(figures: &[Figure], seed: u64, machine: &Value) -> String {
    let mut records = Vec::new();
    for figure in figures {
        let mut add = |mode: &str, metric: &str, value: f64, unit: &str, spread: Option<(f64, f64)>| {
            let (min, max) = spread.unwrap_or((value, value));
            let mut record = json!({
                "suite": "vmprim", "bench": figure.cell.name(), "mode": mode, "system": "host",
                "cpus": figure.cpus, "threads": figure.threads, "npages": figure.pages, "seed": seed,
                "operations": figure.operations,
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
    let all = json!({ "version": 1, "machine": machine, "records": records });
    format!("{all:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The point of a figure's first record.
    fn point(figure: Figure) -> [Value; 5] {
        let said: Value = serde_json::from_str(&json(&[figure], 7, &machine(false))).unwrap();
        ["cpus", "threads", "npages", "operations", "variant"].map(|name| said["records"][0][name].clone())
    }

    #[test]
    fn records_say_the_point_that_was_measured() {
        let runs = || vec![2.0, 1.0, 3.0];
        let plain = point(Figure::new(Row::UffdWp, Cell::ProtN, 4096, runs()));
        assert_eq!(plain, [json!(1), json!(1), json!(4096), json!(4096), Value::Null]);
        let dirty = point(Figure::new(Row::UffdWp, Cell::Dirty, 4096, runs()));
        assert_eq!(dirty[3], 512);
        let others = point(Figure::new(Row::Thread, Cell::ProtN, 64, runs()));
        assert_eq!(others[..2], [json!(cpus()), json!(1)]);
        let shared = |same| point(Figure::by_threads(Row::UffdWp, 4096, 4, same, runs()));
        assert_eq!(shared(true)[..4], [json!(cpus()), json!(4), json!(4096), json!(4096)]);
        assert_eq!(shared(false)[..4], [json!(cpus()), json!(4), json!(4096), json!(1024)]);
    }

    #[test]
    fn the_file_says_what_it_was_measured_on_and_how_runs_spread() {
        let figure = Figure::new(Row::SignalAnon, Cell::Trap, 16, vec![2.0, 1.0, 9.0]);
        let said: Value = serde_json::from_str(&json(&[figure], 7, &machine(true))).unwrap();
        assert!(said["machine"]["cpus"].as_u64().is_some_and(|cpus| cpus > 0));
        assert!(said["machine"]["kernel"].as_str().is_some_and(|kernel| !kernel.is_empty()));
        assert_eq!(said["machine"]["real_time"], true);
        let first = &said["records"][0];
        let figures = ["value", "min", "max", "repeats", "seed"].map(|name| first[name].as_f64());
        assert_eq!(figures, [2.0, 1.0, 9.0, 3.0, 7.0].map(Some));
    }
}

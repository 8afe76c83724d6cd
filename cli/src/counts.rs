//! What the exact machine counted, for people. `docs/exact.md` has the schema of the JSON that it comes in.

use std::fmt::Write;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{
    args::{Run, StatsFormat},
    symbols::Names,
    ui,
};

/// So many of the lines that moved most are shown.
const SHOWN_LINES: usize = 8;
/// And of each so many instructions that touched it.
const SHOWN_TOUCHES: usize = 4;

/// The counts in a table, in this order.
const ROWS: [&str; 20] = [
    "instructions_user",
    "instructions_kernel",
    "clearing",
    "periodic_instructions",
    "accesses",
    "transfers",
    "user_transfers",
    "clearing_transfers",
    "periodic_transfers",
    "ipis",
    "periodic_ipis",
    "periods",
    "targets",
    "faults",
    "faults_new",
    "faults_fill",
    "faults_repair",
    "faults_copy",
    "epochs",
    "grace_periods",
];

/// Write the counts where the options want them.
/// `names`, which may take long to get, is for the table alone.
pub fn show(options: &Run, json: &str, names: impl FnOnce() -> Result<Names>) -> Result<()> {
    if let Some(path) = &options.counts {
        std::fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    match options.stats {
        None => {}
        Some(StatsFormat::Json) => ui::show(&json.replace('\n', "")),
        Some(StatsFormat::Table) => {
            let names = names()?;
            ui::show(&table(json, |pc| names.function(pc))?);
        }
    }
    Ok(())
}

/// A table of the sums, and the lines that moved most; `name` names the kernel's functions.
fn table(json: &str, name: impl Fn(u64) -> Option<String>) -> Result<String> {
    let counts: Value = serde_json::from_str(json).context("the tracer's counts are not JSON")?;
    let number = |at: &str| counts.pointer(at).and_then(Value::as_u64).unwrap_or(0);
    let operations = number("/totals/operations");
    let windows = match counts["window"].as_str() {
        Some("run") => "the whole run".to_owned(),
        _ => format!("{} windows", counts["windows"].as_array().map_or(0, Vec::len)),
    };
    let (q, cpus, seed) = (number("/q"), number("/cpus"), number("/seed"));
    // Writing to a String cannot fail, here and below.
    let mut text = format!("counted exactly: {windows}, {cpus} CPUs, q = {q}, seed {seed}\n");
    let _ = writeln!(text, "{:24}{:>16}{:>16}{:>16}", "", "all", "in operations", "an operation");
    for row in ROWS {
        let (all, inside) =
            (number(&format!("/totals/in_windows/{row}")), number(&format!("/totals/in_operations/{row}")));
        let mean = match operations {
            0 => "-".to_owned(),
            n => format!("{:.2}", inside as f64 / n as f64),
        };
        let _ = writeln!(text, "{row:24}{all:>16}{inside:>16}{mean:>16}");
    }
    let _ = write!(text, "operations: {operations}; lines that moved: {}", number("/lines_moved"));
    if counts["complete"] == Value::Bool(false) {
        text += "\nthe first window was not seen from its beginning: open one before, to warm up";
    }
    if number("/stray_markers") > 0 {
        let _ = write!(text, "\n{} markers had no meaning where they came", number("/stray_markers"));
    }
    for line in counts["lines"].as_array().into_iter().flatten().take(SHOWN_LINES) {
        let _ =
            write!(text, "\n  {} moved {} times", line["line"].as_str().unwrap_or("?"), line["transfers"]);
        for touch in line["touched_by"].as_array().into_iter().flatten().take(SHOWN_TOUCHES) {
            let pc = touch["pc"].as_str().unwrap_or("?");
            let address = pc.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok());
            let function = address.and_then(&name).unwrap_or_default();
            let access = touch["access"].as_str().unwrap_or("?");
            let times = touch["transfers"].as_u64().unwrap_or(0);
            let _ = write!(text, "\n    {access:6} {times:>8}  {pc} {function}");
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_means_are_shown() {
        let json = r#"{"q":200,"seed":1,"cpus":2,"window":"marked","complete":true,"stray_markers":0,
            "totals":{"operations":4,"in_windows":{"transfers":9},"in_operations":{"transfers":6}},
            "windows":[{}],"lines_moved":1,"lines":[{"line":"0x40","transfers":9,"touched_by":[
            {"pc":"0xffffffff80200000","access":"write","transfers":9,"cpus":"0-1"}]}]}"#;
        let text = table(json, |pc| (pc == 0xffff_ffff_8020_0000).then(|| "boot".to_owned())).unwrap();
        assert!(text.starts_with("counted exactly: 1 windows, 2 CPUs, q = 200, seed 1\n"));
        let row = text.lines().find(|line| line.starts_with("transfers")).unwrap();
        assert_eq!(row.split_whitespace().collect::<Vec<_>>(), ["transfers", "9", "6", "1.50"]);
        assert!(text.ends_with("  0x40 moved 9 times\n    write         9  0xffffffff80200000 boot"));
        assert!(!text.contains("warm up") && !text.contains("no meaning"));
        let late =
            json.replace(r#""complete":true,"stray_markers":0"#, r#""complete":false,"stray_markers":2"#);
        let text = table(&late, |_| None).unwrap();
        assert!(text.contains("warm up") && text.contains("2 markers had no meaning"));
    }
}

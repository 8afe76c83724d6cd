//! The report as a table, for a terminal of 100 columns.

use std::fmt::Write;

use super::{
    cpus::Cpus,
    report::{Executed, Line, Report, Touch},
    source::Function,
};

/// So many of the functions that touched a line are shown.
const TOUCHES: usize = 5;
/// Columns of the table.
const WIDTH: usize = 100;

/// The table, with the first `top` of each part.
pub fn table(report: &Report, top: usize) -> String {
    let mut text = heading(report) + "\n";
    if !report.complete {
        text += "the first window was not seen from its beginning: open one before, to warm up\n";
    }
    objects(&mut text, report, top);
    lines(&mut text, report, top);
    functions(&mut text, report, top);
    text
}

/// One row: a name, and up to 34 columns of numbers.
fn row(text: &mut String, name: &str, numbers: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{:66}{}", cut(name, 65), numbers.trim_end());
}

fn objects(text: &mut String, report: &Report, top: usize) {
    text.push('\n');
    row(text, &format!("{:58}{:>7}", "by object", "lines"), &headings(report, "transfers"));
    let mut one = |name: &str, lines: u64, weight: u64| {
        row(text, &format!("{:58}{lines:>7}", cut(name, 57)), &numbers(report, weight, report.total()));
    };
    for object in report.objects.iter().take(top) {
        one(&object.name, object.lines, report.weight(object.transfers, object.in_operations));
    }
    let rest = report.lines_moved.saturating_sub(report.lines.len() as u64);
    if rest > 0 {
        one("lines that moved less than those that have names", rest, report.unlisted());
    }
}

fn lines(text: &mut String, report: &Report, top: usize) {
    text.push('\n');
    row(text, "by line", &headings(report, "transfers"));
    for (i, line) in report.lines.iter().take(top).enumerate() {
        let weight = report.weight(line.transfers, line.in_operations);
        row(text, &format!("{} {}", i + 1, title(line)), &numbers(report, weight, report.total()));
        let folded = fold(line);
        for row in folded.iter().take(TOUCHES) {
            *text += &touch_row(row);
        }
        let rest = folded.iter().skip(TOUCHES).map(|row| row.transfers).sum::<u64>() + line.by_others;
        if rest > 0 {
            *text += &format!("{rest:>9}  by others\n");
        }
    }
}

fn functions(text: &mut String, report: &Report, top: usize) {
    text.push('\n');
    row(text, "by function", &headings(report, "instructions"));
    let weight = |f: &Executed| report.weight(f.instructions + f.periodic, f.in_operations);
    let all = report.functions.iter().map(weight).sum();
    for function in report.functions.iter().take(top) {
        row(text, &function.name, &numbers(report, weight(function), all));
    }
}

fn headings(report: &Report, counted: &str) -> String {
    let per = if report.operations > 0 { "an operation" } else { "" };
    format!("{counted:>12}{:>8}{per:>14}", "share")
}

fn numbers(report: &Report, weight: u64, all: u64) -> String {
    format!("{weight:>12}{:>8}{:>14}", share(weight, all), mean(report, weight))
}

/// What was counted, in a sentence.
pub fn heading(report: &Report) -> String {
    let Report { cpus, quantum, seed, operations, transfers, lines_moved, .. } = report;
    let windows = match (report.whole_run, report.windows.len()) {
        (true, _) => "the whole run".to_owned(),
        (false, 1) => "1 window".to_owned(),
        (false, n) => format!("{n} windows"),
    };
    let inside = match operations {
        0 => String::new(),
        _ => format!(", {} of them in {operations} operations", report.total()),
    };
    format!(
        "traced exactly: {windows}, {cpus} CPUs, q = {quantum}, seed {seed}\n\
         {transfers} transfers of {lines_moved} cache lines{inside}"
    )
}

/// `part` of `all`, in percent.
pub fn share(part: u64, all: u64) -> String {
    format!("{:.1}%", part as f64 * 100.0 / all.max(1) as f64)
}

/// Of each operation; nothing without operations.
pub fn mean(report: &Report, weight: u64) -> String {
    match report.operations {
        0 => String::new(),
        n => format!("{:.2}", weight as f64 / n as f64),
    }
}

/// A line's name with where in it what is accessed lies.
pub fn title(line: &Line) -> String {
    match line.name.offset {
        0 => line.name.what.clone(),
        offset => format!("{}+{offset:#x}", line.name.what),
    }
}

/// Touches by the same functions to the same part, together.
pub struct Row {
    /// How often they moved the line.
    pub transfers: u64,
    /// `read`, `write`, `update`, or several of them.
    pub access: String,
    /// The functions.
    pub functions: String,
    /// The part, if it isn't what the line has its name of.
    pub part: Option<String>,
    /// The CPUs.
    pub cpus: Cpus,
}

/// The touches of a line by functions.
pub fn fold(line: &Line) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for touch in &line.touches {
        let Touch { functions, access, part, transfers, cpus, .. } = touch;
        let functions = chain(functions);
        let same = |row: &&mut Row| row.functions == functions && (row.part == *part || *transfers == 0);
        match rows.iter_mut().find(same) {
            Some(row) => {
                row.transfers += transfers;
                row.cpus.add(cpus);
                if !row.access.split('+').any(|known| known == access) {
                    row.access += &format!("+{access}");
                }
            }
            None => rows.push(Row {
                transfers: *transfers,
                access: access.clone(),
                functions,
                part: part.clone(),
                cpus: cpus.clone(),
            }),
        }
    }
    rows.sort_by_key(|row| std::cmp::Reverse(row.transfers));
    rows
}

fn touch_row(row: &Row) -> String {
    let Row { transfers, access, functions, part, cpus } = row;
    let part = part.as_ref().map_or(String::new(), |part| format!(" [{}]", cut(part, 30)));
    let room = WIDTH - 22 - 14;
    let functions = cut(functions, room.saturating_sub(part.len())) + &part;
    let access = match access.contains('+') {
        // By their initials.
        true => access.split('+').filter_map(|one| one.get(..1)).collect::<Vec<_>>().join("+"),
        false => access.clone(),
    };
    format!("{transfers:>9}  {access:10} {functions:room$} CPU {}\n", cut(&cpus.to_string(), 9))
}

/// The functions of an instruction: `inner < outer`, without those of libraries that are inlined in them.
pub fn chain(functions: &[Function]) -> String {
    let library = |f: &Function| f.place.starts_with("library/") || f.place.starts_with('/');
    let last = functions.len().saturating_sub(1);
    let kept = functions.iter().enumerate().filter(|(i, f)| *i == last || !library(f));
    let names: Vec<_> = kept.map(|(_, f)| f.name.as_str()).collect();
    match names.as_slice() {
        [inner, _, .., outer] if names.join(" < ").len() > 66 => format!("{inner} < .. < {outer}"),
        _ => names.join(" < "),
    }
}

/// At most `width` characters of `text`.
fn cut(text: &str, width: usize) -> String {
    match text.chars().count() > width {
        true => text.chars().take(width.saturating_sub(2)).chain("..".chars()).collect(),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::report::sample;

    #[test]
    fn the_table_is_readable_at_100_columns() {
        let text = table(&sample::report(), 2);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        let words = |start: &str| {
            let found = text.lines().find(|line| line.trim_start().starts_with(start));
            found
                .unwrap_or_else(|| panic!("{start}: {text}"))
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(text.lines().next(), Some("traced exactly: 1 window, 4 CPUs, q = 200, seed 1"));
        assert_eq!(text.lines().nth(1), Some("63 transfers of 4 cache lines, 50 of them in 10 operations"));
        assert_eq!(words("address space"), "address space of PID 2: lock 1 38 76.0% 3.80");
        assert_eq!(words("lines that"), "lines that moved less than those that have names 1 10 20.0% 1.00");
        assert_eq!(words("1 address"), "1 address space of PID 2: lock+0x8 38 76.0% 3.80");
        assert_eq!(words("30 "), "30 update spin::lock < aspace::locked::Locked::fault CPU 0-3");
        assert_eq!(words("9 "), "9 r+w sched::steal [mappings] CPU 0-2");
        assert_eq!(words("1  by others"), "1 by others");
        assert_eq!(words("aspace::locked"), "aspace::locked::Locked::fault 550 87.3% 55.00");
        assert!(!text.contains("counter"));
    }

    #[test]
    fn without_operations_all_transfers_count() {
        let report = Report { operations: 0, whole_run: true, ..sample::report() };
        let text = table(&report, 3);
        assert!(text.contains("the whole run") && !text.contains("an operation"), "{text}");
        assert!(
            text.lines().any(|line| line.contains("counter (p)+0x4") && line.contains("31.7%")),
            "{text}"
        );
    }

    #[test]
    fn long_chains_keep_their_ends() {
        let function = |name: &str| Function { name: name.to_owned(), place: "crates/x.rs:1".to_owned() };
        let long: Vec<_> = (0..9).map(|i| function(&format!("module::function_{i}"))).collect();
        assert_eq!(chain(&long), "module::function_0 < .. < module::function_8");
        assert_eq!(chain(&long[..2]), "module::function_0 < module::function_1");
        assert_eq!(chain(&[]), "");
        assert_eq!(cut("abcdef", 4), "ab..");
    }
}

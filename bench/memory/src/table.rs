//! The answer: a table with a column for each shape, and the same for programs.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::{
    linux,
    replay::{Bytes, Design},
    shape::Shape,
};

/// The most that metadata may be of Linux's.
pub const M1: f64 = 0.80;
/// The most bytes by which metadata may grow for a page that becomes resident, over all of a shape's.
pub const MARGINAL: f64 = 9.0;

/// What was found of a shape.
pub struct Measured {
    name: String,
    about: String,
    mappings: u64,
    pages: u64,
    /// Linux's mappings and page tables.
    linux: (u64, u64),
    /// The same as the kernel had it where the shape was recorded.
    said: Option<u64>,
    designs: [Bytes; 2],
}

impl Measured {
    pub fn new(name: &str, shape: &Shape, designs: [Bytes; 2]) -> Self {
        let mappings = shape.maps.len() as u64;
        Self {
            name: name.to_owned(),
            about: shape.about.clone(),
            mappings,
            pages: shape.pages(),
            linux: linux::bytes(shape),
            said: shape.linux.map(|(vma, tables)| mappings * vma + tables),
            designs,
        }
    }
    fn linux(&self) -> f64 {
        (self.linux.0 + self.linux.1) as f64
    }
    /// Metadata of a design, of Linux's mappings and page tables.
    pub fn m1(&self, design: usize) -> f64 {
        self.designs[design].resident as f64 / self.linux()
    }
    /// Metadata and one CPU's page tables.
    fn m2(&self, design: usize) -> f64 {
        (self.designs[design].resident + self.designs[design].tables) as f64 / self.linux()
    }
    /// Bytes by which metadata grew for each page that became resident.
    pub fn marginal(&self, design: usize) -> f64 {
        let bytes = self.designs[design];
        bytes.resident.saturating_sub(bytes.mapped) as f64 / self.pages.max(1) as f64
    }
    fn a_page(&self, design: usize) -> f64 {
        self.designs[design].resident as f64 / self.pages.max(1) as f64
    }
    pub fn json(&self) -> Value {
        let design = |(at, design): (usize, Design)| {
            let bytes = self.designs[at];
            let value = json!({
                "empty_bytes": bytes.empty, "mapped_bytes": bytes.mapped, "metadata_bytes": bytes.resident,
                "table_bytes": bytes.tables, "m1": self.m1(at), "m2": self.m2(at),
                "marginal_bytes_per_page": self.marginal(at), "bytes_per_page": self.a_page(at),
            });
            (design.name().to_owned(), value)
        };
        let designs: serde_json::Map<_, _> = Design::ALL.into_iter().enumerate().map(design).collect();
        json!({
            "shape": self.name, "about": self.about, "mappings": self.mappings, "resident_pages": self.pages,
            "linux": { "mapping_bytes": self.linux.0, "table_bytes": self.linux.1, "said_bytes": self.said },
            "designs": designs,
            "gates": { "m1": M1, "marginal_bytes_per_page": MARGINAL },
        })
    }
}

/// What a row says of a shape.
type Figure<'f> = dyn Fn(&Measured) -> String + 'f;

/// A table with a column for each shape, and what was asked for.
pub fn table(all: &[Measured]) -> String {
    let mut rows: Vec<(String, Vec<String>)> = Vec::new();
    let mut row =
        |title: &str, figure: &Figure<'_>| rows.push((title.to_owned(), all.iter().map(figure).collect()));
    row("", &|m| m.name.clone());
    row("mappings", &|m| thousands(m.mappings));
    row("resident pages", &|m| thousands(m.pages));
    row("Linux: mappings, B", &|m| thousands(m.linux.0));
    row("Linux: page tables, B", &|m| thousands(m.linux.1));
    for (at, design) in Design::ALL.into_iter().enumerate() {
        let mut row = |title: &str, figure: &Figure<'_>| row(&format!("{}: {title}", design.name()), figure);
        row("metadata, B", &|m| thousands(m.designs[at].resident));
        row("of it with nothing resident, B", &|m| thousands(m.designs[at].mapped));
        row("of it with nothing mapped, B", &|m| thousands(m.designs[at].empty));
        row("page tables of one CPU, B", &|m| thousands(m.designs[at].tables));
        row("M1, metadata of Linux's", &|m| format!("{:.3}", m.m1(at)));
        row("M2, with page tables", &|m| format!("{:.3}", m.m2(at)));
        row("metadata B a resident page", &|m| format!("{:.1}", m.a_page(at)));
        row("marginal B a resident page", &|m| format!("{:.2}", m.marginal(at)));
    }
    let said = |m: &Measured| m.said.map(|said| m.designs[0].resident as f64 / said as f64);
    row("radix: M1 by that Linux's own figures", &|m| {
        said(m).map_or("-".to_owned(), |m1| format!("{m1:.3}"))
    });
    let width =
        |of: &mut dyn Iterator<Item = &String>| of.map(|cell| cell.chars().count()).max().unwrap_or(0);
    let first = width(&mut rows.iter().map(|(title, _)| title));
    let widths: Vec<_> =
        (0..all.len()).map(|at| width(&mut rows.iter().map(|(_, cells)| &cells[at]))).collect();
    let mut text = String::new();
    for (title, cells) in &rows {
        let cells: Vec<_> =
            cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:>width$}")).collect();
        // Writing to a string does not fail.
        let _ = writeln!(text, "{title:first$}  {}", cells.join("  "));
    }
    let over = |figure: fn(&Measured, usize) -> f64, most: f64| {
        let over = all.iter().filter(|m| figure(m, 0) > most).map(|m| m.name.as_str()).collect::<Vec<_>>();
        if over.is_empty() { "yes".to_owned() } else { format!("NO: {}", over.join(", ")) }
    };
    let _ = writeln!(text, "\nradix: M1 at most {M1:.2}: {}", over(Measured::m1, M1));
    let _ = writeln!(text, "radix: marginal at most {MARGINAL} B: {}", over(Measured::marginal, MARGINAL));
    text
}

fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    groups.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_column_for_each_shape_and_says_what_is_too_much() {
        let shape =
            Shape::parse("quire-shape 1\nlinux 200 8192\nmap 0 40 rw-p anon 0 0 -\nres 0 20\n").unwrap();
        // A mapping and four page-table pages.
        let linux = 176 + 4 * 4096;
        let design = |resident| Bytes { empty: 10, mapped: 20, resident, tables: 16384 };
        let small = Measured::new("small", &shape, [design(20 + 32 * 9), design(0)]);
        let large = Measured::new("large", &shape, [design(linux), design(0)]);
        assert_eq!((small.marginal(0), large.m1(0)), (9.0, 1.0));
        let json = large.json();
        assert_eq!(json["designs"]["radix"]["m1"], 1.0);
        assert_eq!(json["linux"]["said_bytes"], 200 + 8192);
        let text = table(&[small, large]);
        let mut lines = text.lines();
        assert_eq!(lines.next().map(|line| line.split_whitespace().collect()), Some(vec!["small", "large"]));
        assert!(text.contains("16,560"), "{text}");
        assert!(text.contains("radix: M1 at most 0.80: NO: large\n"), "{text}");
        assert!(text.ends_with("marginal at most 9 B: NO: large\n"), "{text}");
    }
}

//! The matrix as text, and the lines that spoil most of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

use super::tried::{Shared, Tried};

/// Shares, places and states: the columns, in this order.
const SHARES: [&str; 2] = ["threads", "processes"];
const PLACES: [&str; 4] = ["same", "adjacent", "near", "disjoint"];
const STATES: [&str; 2] = ["fresh", "warm"];
/// Functions that are named with a residual line.
const FUNCTIONS: usize = 3;
/// Residual lines that are named; the JSON has more.
const NAMED: usize = 24;

/// How many commuting combinations are free of conflicts, and how many there are; of one share or of all.
pub fn totals(tried: &[Tried], share: Option<&str>) -> (usize, usize) {
    let commuting = || tried.iter().filter(|one| one.commutes && share.is_none_or(|s| one.share() == s));
    (commuting().filter(|one| one.is_free()).count(), commuting().count())
}

/// All of it, for a system.
pub fn text(system: &str, tried: &[Tried]) -> String {
    let mut text = format!("{system}: lines shared by two operations that commute\n\n");
    table(&mut text, tried);
    text += "\n.  conflict-free    N  lines that moved    -  they do not commute\n\n";
    let (free, commuting) = totals(tried, None);
    // Writing to a String cannot fail, here and below.
    let _ = write!(text, "conflict-free {free} of {commuting} commuting combinations (");
    let parts = SHARES.map(|share| {
        let (free, commuting) = totals(tried, Some(share));
        format!("{share} {free} of {commuting}")
    });
    let always = tried.iter().filter(|one| one.commutes && one.is_always_free()).count();
    let _ = writeln!(text, "{}); in every single try {always}", parts.join(", "));
    residuals(&mut text, tried);
    text
}

/// A row for each pair, a column for each place, state and share.
fn table(text: &mut String, tried: &[Tried]) {
    let mut heads = [String::new(), String::new(), String::new()];
    for share in SHARES {
        heads[0] += &format!("  {share:<48}");
        for place in PLACES {
            heads[1] += &format!("{}{place:<12}", if place == PLACES[0] { "  " } else { "" });
            for (i, state) in STATES.iter().enumerate() {
                let gap = if i == 0 && place == PLACES[0] { "  " } else { "" };
                heads[2] += &format!("{gap}{state:<6}");
            }
        }
    }
    for head in heads {
        let _ = writeln!(text, "{}", format!("{:18}{head}", "").trim_end());
    }
    let mut pairs: Vec<String> = Vec::new();
    for one in tried {
        if !pairs.contains(&one.pair()) {
            pairs.push(one.pair());
        }
    }
    for pair in pairs {
        let mut row = format!("{pair:18}");
        for share in SHARES {
            row += "  ";
            for place in PLACES {
                for state in STATES {
                    let here = |one: &&Tried| {
                        one.pair() == pair && (one.share(), one.place(), one.state()) == (share, place, state)
                    };
                    row += &format!("{:<6}", tried.iter().find(here).map_or(String::new(), cell));
                }
            }
        }
        let _ = writeln!(text, "{}", row.trim_end());
    }
}

fn cell(one: &Tried) -> String {
    match (one.commutes, one.is_free()) {
        (false, _) => "-".to_owned(),
        (true, true) => ".".to_owned(),
        (true, false) => one.count.to_string(),
    }
}

/// What a residual line spoils.
#[derive(Default)]
struct Residual {
    /// Combinations by share.
    spoils: [usize; 2],
    /// Combinations in which it is the only one.
    alone: usize,
    functions: BTreeMap<String, usize>,
}

/// Each thing that moved, by how many combinations it spoils.
fn residuals(text: &mut String, tried: &[Tried]) {
    let mut all: BTreeMap<&str, Residual> = BTreeMap::new();
    for one in tried.iter().filter(|one| one.commutes) {
        let names: BTreeSet<&str> = one.lines.iter().map(|line| &*line.name).collect();
        let share = usize::from(one.share() == SHARES[1]);
        for name in &names {
            let residual = all.entry(name).or_default();
            residual.spoils[share] += 1;
            residual.alone += usize::from(names.len() == 1);
            let lines = one.lines.iter().filter(|line| line.name == **name);
            for function in lines.flat_map(Shared::functions) {
                *residual.functions.entry(function.clone()).or_default() += 1;
            }
        }
    }
    if all.is_empty() {
        return;
    }
    let mut all: Vec<_> = all.into_iter().collect();
    all.sort_by_key(|(_, residual)| std::cmp::Reverse(residual.spoils.iter().sum::<usize>()));
    let _ = writeln!(text, "\ncombinations spoiled\n{:>8} {:>10} {:>6}  by", "threads", "processes", "alone");
    let others = all.len().saturating_sub(NAMED);
    for (name, Residual { spoils, alone, functions }) in all.into_iter().take(NAMED) {
        let mut functions: Vec<_> = functions.into_iter().collect();
        functions.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        let functions: Vec<_> = functions.into_iter().take(FUNCTIONS).map(|(name, _)| name).collect();
        let [threads, processes] = spoils;
        let _ = writeln!(text, "{threads:>8} {processes:>10} {alone:>6}  {name} ({})", functions.join(", "));
    }
    if others > 0 {
        let _ = writeln!(text, "{:28}{others} others: --json FILE has them", "");
    }
}

impl Shared {
    /// Who wrote it, and who read it.
    fn functions(&self) -> impl Iterator<Item = &String> {
        self.writers.iter().chain(&self.readers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(words: &str, commutes: bool, names: &[&str]) -> Tried {
        let lines = names.iter().map(|name| Shared {
            name: (*name).to_owned(),
            transfers: 1,
            writers: vec!["f".to_owned()],
            ..Shared::default()
        });
        Tried {
            words: words.split(' ').map(str::to_owned).collect(),
            commutes,
            lines: lines.collect(),
            count: names.len(),
            extremes: (names.len(), names.len()),
            windows: 4,
        }
    }

    #[test]
    fn what_spoils_most_comes_first() {
        let all = [
            tried("mmap munmap same fresh threads present present", false, &["lock", "heap"]),
            tried("mmap munmap adjacent fresh threads free present", true, &["lock", "heap"]),
            tried("mmap munmap disjoint warm threads free present", true, &["lock"]),
            tried("mmap munmap disjoint warm processes free present", true, &[]),
        ];
        assert_eq!(totals(&all, None), (1, 3));
        assert_eq!(totals(&all, Some("threads")), (0, 2));
        let text = text("Quire locked", &all);
        assert!(
            text.contains("conflict-free 1 of 3 commuting combinations (threads 0 of 2, processes 1 of 1); in every single try 1")
        );
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert!(rows.contains(&vec!["mmap-munmap", "-", "2", "1", "."]), "{text}");
        let at = |row: &[&str]| rows.iter().position(|other| other == row);
        let (lock, heap) = (at(&["2", "0", "1", "lock", "(f)"]), at(&["1", "0", "0", "heap", "(f)"]));
        assert!(lock.is_some() && lock < heap, "{text}");
    }
}

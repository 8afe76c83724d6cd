//! A set of CPUs as the tracer writes it: `0-3,7`.

use std::{collections::BTreeSet, fmt};

/// CPUs by number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cpus(BTreeSet<u32>);

impl Cpus {
    /// Understand `0-3,7`; what can't be is left out.
    pub fn parse(text: &str) -> Self {
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.parse().ok()?..=last.parse::<u32>().ok()?)
        };
        Self(text.split(',').filter_map(range).flatten().collect())
    }

    /// Add all of `other`.
    pub fn add(&mut self, other: &Self) {
        self.0.extend(&other.0);
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        let mut cpus = self.0.iter().copied().peekable();
        while let Some(first) = cpus.next() {
            let mut last = first;
            while let Some(next) = cpus.next_if(|next| *next == last + 1) {
                last = next;
            }
            let comma = if text.is_empty() { "" } else { "," };
            text += &match last == first {
                true => format!("{comma}{first}"),
                false => format!("{comma}{first}-{last}"),
            };
        }
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_read_and_written() {
        for text in ["", "0", "0-2,5,63-64,255"] {
            assert_eq!(Cpus::parse(text).to_string(), text);
        }
        let mut all = Cpus::parse("0-1,7,x");
        all.add(&Cpus::parse("2"));
        assert_eq!(all.to_string(), "0-2,7");
    }
}

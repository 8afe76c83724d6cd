//! Which pairs of memory operations commute: the model of the address space executes both in either order.
//!
//! Two operations commute, from a given start, if nobody can tell from what they answer and from what is there afterwards
//! which came first. The rule of Clements et al. (*The Scalable Commutativity Rule*, SOSP 2013) is that operations that
//! commute can be implemented without a conflict: no line that one writes and the other touches.
//!
//! Standard input has a combination a line, as `pairs` of `bench/guest` prints them (also with `--list`):
//!
//! ```text
//! OP1 OP2 PLACE STATE SHARE START1 START2
//! ```
//! whatever follows a `|` is left out. Standard output has the same line, and after a `|` each, for the order in which the
//! first side goes first and for the other: for each side its answer, its page, and the place that it moves to; and
//! `commutes` or `depends`. A page is its first word and a `w` if it may be written, or `refused` if it can't be read.

use std::{
    io::{self, BufRead, Write},
    process::ExitCode,
};

use addr::{Page, PageRange, Prot};
use aspace::{
    Advice, Error, Limits, Mapping, Placement, RemapTo,
    model::{Model, Objects, State},
};

/// The first side's page, and how far the second's is if it's far, in pages: 64 GiB and 8 GiB.
const BASE: u64 = 64 << 18;
const FAR: u64 = 8 << 18;
/// From a side's page, in pages, the neighbour and the place to move to; a second side's are a step further.
const NEIGHBOUR: u64 = 16;
const TARGET: u64 = 24;
const STEP: u64 = 16;
/// What pages with contents have in their first word.
const CONTENTS: u64 = 0x100;
/// Linux's numbers of the errors for a page that isn't mapped.
const ENOMEM: u32 = 12;
const EFAULT: u32 = 14;

fn main() -> ExitCode {
    let mut out = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let verdict = line.map_err(|error| error.to_string()).and_then(|line| answer(&line));
        match verdict {
            Ok(text) => {
                if writeln!(out, "{text}").is_err() {
                    return ExitCode::FAILURE;
                }
            }
            Err(problem) => {
                eprintln!("commute: {problem}");
                return ExitCode::from(2);
            }
        }
    }
    ExitCode::SUCCESS
}

/// The line for a combination.
fn answer(line: &str) -> Result<String, String> {
    let words = line.split('|').next().unwrap_or("").trim();
    let combination = Combination::parse(words).ok_or_else(|| format!("not a combination: {line}"))?;
    let [first, second] = [0, 1].map(|first| combination.execute(first));
    let verdict = if first == second { "commutes" } else { "depends" };
    Ok(format!("{words} | {} | {} | {verdict}", first.text(), second.text()))
}

#[derive(Clone, Copy)]
enum Operation {
    Mmap,
    Munmap,
    Mprotect,
    /// And `fault`, which is a store to a page that has nothing yet: the model knows no difference.
    Write,
    Madvise,
    Mremap,
    Read,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Start {
    Free,
    Mapped,
    Present,
}

/// What one side does where.
#[derive(Clone, Copy)]
struct Part {
    operation: Operation,
    page: u64,
    target: u64,
    start: Start,
    /// What it stores.
    value: u64,
}

struct Combination {
    parts: [Part; 2],
    /// Mapped, with contents, and touched by nobody.
    neighbours: Vec<u64>,
    /// Whether both sides' pages are in one address space.
    one_space: bool,
}

/// All that can be seen of an order.
#[derive(PartialEq, Eq)]
struct Outcome {
    /// By side: the operation's answer, the page, the place to move to.
    sides: [[String; 3]; 2],
    /// The address spaces.
    spaces: Vec<Space>,
}

/// Its mappings, and the contents of each page of theirs.
#[derive(PartialEq, Eq)]
struct Space {
    mappings: Vec<(PageRange, State)>,
    contents: Vec<u64>,
}

impl Outcome {
    fn text(&self) -> String {
        self.sides.each_ref().map(|side| side.join(" ")).join(" ")
    }
}

fn page(n: u64) -> Page {
    Page::new(n).unwrap_or(addr::USER_END_PAGE)
}

fn single(n: u64) -> PageRange {
    PageRange::single(page(n)).unwrap_or_default()
}

impl Combination {
    fn parse(words: &str) -> Option<Self> {
        let words: Vec<&str> = words.split_whitespace().collect();
        let [a, b, place, state, share, start_a, start_b] = words[..] else { return None };
        let operation = |word| {
            Some(match word {
                "mmap" => Operation::Mmap,
                "munmap" => Operation::Munmap,
                "mprotect" => Operation::Mprotect,
                "fault" | "write" => Operation::Write,
                "madvise" => Operation::Madvise,
                "mremap" => Operation::Mremap,
                "read" => Operation::Read,
                _ => return None,
            })
        };
        let start = |word| {
            Some(match word {
                "free" => Start::Free,
                "mapped" => Start::Mapped,
                "present" => Start::Present,
                _ => return None,
            })
        };
        let offset = match place {
            "same" => 0,
            "adjacent" => 1,
            "near" => 8,
            "disjoint" => FAR,
            _ => return None,
        };
        let one_space = match share {
            "threads" => true,
            "processes" => false,
            _ => return None,
        };
        let part = |side: u64, operation, start| Part {
            operation,
            page: BASE + side * offset,
            target: BASE + side * (offset + STEP) + TARGET,
            start,
            value: CONTENTS + 1 + side,
        };
        let parts = [part(0, operation(a)?, start(start_a)?), part(1, operation(b)?, start(start_b)?)];
        let neighbours = match state {
            "fresh" => Vec::new(),
            "warm" => vec![BASE + NEIGHBOUR, BASE + offset + NEIGHBOUR + STEP],
            _ => return None,
        };
        Some(Self { parts, neighbours, one_space })
    }

    /// Both operations, that of side `first` first.
    fn execute(&self, first: usize) -> Outcome {
        let space_of = |side: usize| if self.one_space { 0 } else { side };
        let mut spaces = vec![Model::new(); if self.one_space { 1 } else { 2 }];
        for (side, part) in self.parts.iter().enumerate() {
            let space = &mut spaces[space_of(side)];
            // Of a page of both only once: mapping it again would take the contents.
            if space.state(page(part.page)).is_none() {
                prepare(space, part.page, part.start);
            }
            self.neighbours.iter().for_each(|at| prepare(space, *at, Start::Present));
        }
        let mut sides: [[String; 3]; 2] = Default::default();
        for side in [first, 1 - first] {
            sides[side][0] = operate(&mut spaces[space_of(side)], &self.parts[side]);
        }
        for (side, part) in self.parts.iter().enumerate() {
            let space = &spaces[space_of(side)];
            sides[side][1] = look(space, part.page);
            sides[side][2] = look(space, part.target);
        }
        Outcome { sides, spaces: spaces.iter().map(all_of).collect() }
    }
}

fn prepare(space: &mut Model, at: u64, start: Start) {
    if start == Start::Free {
        return;
    }
    let rw = Prot::READ | Prot::WRITE;
    let mapped = space.map(Placement::Fixed(page(at)), 1, &Mapping::anonymous(rw), &Limits::NONE);
    assert!(mapped.is_ok(), "there is room for page {at:#x}");
    if start == Start::Present {
        let stored = space.store(page(at), CONTENTS, &mut Objects::new());
        assert!(stored.is_ok(), "page {at:#x} was just mapped");
    }
}

/// Execute it; its answer.
fn operate(space: &mut Model, part: &Part) -> String {
    let Part { operation, page: at, target, value, .. } = *part;
    let range = single(at);
    let done = match operation {
        Operation::Mmap => {
            let mapping = Mapping::anonymous(Prot::READ | Prot::WRITE);
            space.map(Placement::Fixed(page(at)), 1, &mapping, &Limits::NONE).map(drop)
        }
        Operation::Munmap => space.unmap(range),
        Operation::Mprotect => space.protect(range, Prot::READ, false, &Limits::NONE),
        Operation::Madvise => space.advise(range, Advice::DontNeed),
        Operation::Mremap => {
            let moved = space.remap(range, 1, RemapTo::Fixed(page(target)), false, &Limits::NONE);
            // A page that isn't mapped is another mistake to this call than to others.
            return moved.map_or_else(|error| refusal(error, EFAULT), |_| "0x0".to_owned());
        }
        Operation::Read => return word(space.load(page(at), &Objects::new())),
        Operation::Write => return word(space.store(page(at), value, &mut Objects::new()).map(|()| 0)),
    };
    done.map_or_else(|error| refusal(error, ENOMEM), |()| "0x0".to_owned())
}

fn refusal(error: Error, no_mapping: u32) -> String {
    match error {
        Error::NoMapping => format!("errno{no_mapping}"),
        other => format!("{other:?}"),
    }
}

fn word<E>(read: Result<u64, E>) -> String {
    read.map_or("refused".to_owned(), |word| format!("{word:#x}"))
}

/// What can be seen of a page.
fn look(space: &Model, at: u64) -> String {
    let seen = word(space.load(page(at), &Objects::new()));
    let writable = space.state(page(at)).is_some_and(|state| state.prot.contains(Prot::WRITE));
    if writable { seen + "w" } else { seen }
}

/// Everything there is in a space.
fn all_of(space: &Model) -> Space {
    let mappings = space.list();
    let pages = mappings.iter().flat_map(|(range, _)| range.start().number()..range.end().number());
    let contents = pages.map(|n| space.load(page(n), &Objects::new()).unwrap_or(u64::MAX)).collect();
    Space { mappings, contents }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commutes(line: &str) -> bool {
        answer(line).unwrap().ends_with("| commutes")
    }

    #[test]
    fn what_is_apart_commutes() {
        for pair in ["mmap mmap", "munmap munmap", "mmap munmap", "mremap mprotect", "madvise mremap"] {
            for place in ["adjacent", "near", "disjoint"] {
                let starts = pair.split(' ').map(|op| if op == "mmap" { "free" } else { "present" });
                let starts: Vec<_> = starts.collect();
                assert!(commutes(&format!("{pair} {place} fresh threads {}", starts.join(" "))));
            }
        }
    }

    #[test]
    fn on_one_page_it_depends() {
        assert!(!commutes("mmap munmap same warm threads present present"));
        assert!(!commutes("munmap read same warm threads present present"));
        assert!(!commutes("write write same warm threads present present"));
        assert!(!commutes("mremap mremap same fresh threads present present"));
        // The same twice is the same.
        assert!(commutes("mmap mmap same fresh threads free free"));
        assert!(commutes("munmap munmap same fresh threads present present"));
        assert!(commutes("madvise madvise same fresh threads present present"));
        assert!(commutes("read read same fresh threads present present"));
        // Nobody can tell when a page became read-only that is only read.
        assert!(commutes("mprotect read same fresh threads present present"));
        // Processes don't see each other.
        assert!(commutes("mmap munmap same warm processes free present"));
    }

    #[test]
    fn answers_are_those_of_linux() {
        let line = answer("mprotect mremap same fresh threads present present | whatever").unwrap();
        let expected = "mprotect mremap same fresh threads present present \
                        | 0x0 refused refused 0x0 refused 0x100 \
                        | errno12 refused refused 0x0 refused 0x100w | depends";
        assert_eq!(line, expected);
        let line = answer("fault read same warm threads mapped mapped").unwrap();
        assert!(line.contains("| 0x0 0x101w refused 0x101 0x101w refused |"), "{line}");
    }

    #[test]
    fn what_is_no_combination_is_refused() {
        for line in
            ["", "mmap", "mmap mmap far fresh threads free free", "mmap fly same fresh threads free free"]
        {
            assert!(answer(line).is_err(), "{line}");
        }
    }
}

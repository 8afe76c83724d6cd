//! What is tried: two operations, where their pages lie, what is around them, and who executes them.
//!
//! The words here are those of `bench/host`, which asks the model about the same combinations, and reads the lines that
//! this program prints.

/// What one side does to its page, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Map it anew, private, anonymous, readable and writable, instead of whatever is there.
    Mmap,
    /// Unmap it.
    Munmap,
    /// Make it read-only.
    Mprotect,
    /// Write to it, where it is mapped and was not touched since.
    Fault,
    /// Give its contents up (MADV_DONTNEED).
    Madvise,
    /// Move it to a place of this side's own.
    Mremap,
    /// Load from it.
    Read,
    /// Store to it.
    Write,
}

/// All of them, and their names.
pub const OPERATIONS: [(Operation, &str); 8] = [
    (Operation::Mmap, "mmap"),
    (Operation::Munmap, "munmap"),
    (Operation::Mprotect, "mprotect"),
    (Operation::Fault, "fault"),
    (Operation::Madvise, "madvise"),
    (Operation::Mremap, "mremap"),
    (Operation::Read, "read"),
    (Operation::Write, "write"),
];

/// Where the second side's page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It is the first's.
    Same,
    /// The next one.
    Adjacent,
    /// 32 KiB away, under the same page table, in another line of it.
    Near,
    /// Under page tables of its own, but for the two upper levels.
    Disjoint,
}

/// All of them, and their names.
pub const PLACES: [(Place, &str); 4] = [
    (Place::Same, "same"),
    (Place::Adjacent, "adjacent"),
    (Place::Near, "near"),
    (Place::Disjoint, "disjoint"),
];

/// What is around the pages. `true` is warm.
pub const STATES: [(bool, &str); 2] = [(false, "fresh"), (true, "warm")];

/// Who the sides are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// Threads of one process.
    Threads,
    /// Processes, each with memory of its own.
    Processes,
}

/// All of them, and their names.
pub const SHARES: [(Share, &str); 2] = [(Share::Threads, "threads"), (Share::Processes, "processes")];

/// What a page is before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Not mapped.
    Free,
    /// Mapped, and never touched.
    Mapped,
    /// Mapped, with contents.
    Present,
}

impl Start {
    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Mapped => "mapped",
            Self::Present => "present",
        }
    }
}

/// One thing to try.
#[derive(Clone, Copy, Debug)]
pub struct Combination {
    /// By side.
    pub operations: [Operation; 2],
    /// Where the second side's page is.
    pub place: Place,
    /// Whether there are neighbours, which keep the page tables.
    pub warm: bool,
    /// Who the sides are.
    pub share: Share,
}

impl Combination {
    /// What the sides' pages are before. A page that both use can't be as both would have it: untouched if one is to
    /// fault on it, else with contents if one is to find some.
    pub fn starts(&self) -> [Start; 2] {
        let own = self.operations.map(|operation| match operation {
            Operation::Mmap => Start::Free,
            Operation::Fault => Start::Mapped,
            _ => Start::Present,
        });
        if self.place != Place::Same || self.share == Share::Processes {
            return own;
        }
        let one = match own {
            _ if own.contains(&Start::Mapped) => Start::Mapped,
            _ if own.contains(&Start::Present) => Start::Present,
            _ => Start::Free,
        };
        [one, one]
    }

    /// `OP1 OP2 PLACE STATE SHARE START1 START2`.
    pub fn words(&self) -> String {
        let [first, second] = self.operations.map(|operation| name(&OPERATIONS, operation));
        let (place, state) = (name(&PLACES, self.place), name(&STATES, self.warm));
        let [a, b] = self.starts().map(Start::name);
        format!("{first} {second} {place} {state} {} {a} {b}", name(&SHARES, self.share))
    }
}

/// The name of one of `all`.
pub fn name<T: PartialEq>(all: &[(T, &'static str)], one: T) -> &'static str {
    all.iter().find(|(other, _)| *other == one).map_or("?", |(_, name)| name)
}

/// All pairs, each once: the operation that comes first in [`OPERATIONS`] is the first side's.
pub fn pairs() -> Vec<[Operation; 2]> {
    let operations = || OPERATIONS.iter().map(|(operation, _)| *operation);
    operations()
        .enumerate()
        .flat_map(|(i, first)| operations().skip(i).map(move |second| [first, second]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_is_there_once() {
        let pairs = pairs();
        assert_eq!(pairs.len(), 36);
        for (i, [a, b]) in pairs.iter().enumerate() {
            assert!(!pairs[..i].contains(&[*a, *b]) && !pairs[..i].contains(&[*b, *a]));
        }
    }

    #[test]
    fn one_page_has_one_start() {
        let combination = |place, share| Combination {
            operations: [Operation::Mmap, Operation::Read],
            place,
            warm: false,
            share,
        };
        assert_eq!(combination(Place::Same, Share::Threads).starts(), [Start::Present; 2]);
        assert_eq!(combination(Place::Same, Share::Processes).starts(), [Start::Free, Start::Present]);
        let words = combination(Place::Adjacent, Share::Threads).words();
        assert_eq!(words, "mmap read adjacent fresh threads free present");
    }
}

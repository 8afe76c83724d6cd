//! Whether a heap's records agree with each other.
//!
//! Two walks. One over the pages, from the first to the first never used, each step by what the map says the page is:
//! slabs have as many live bits as they count, and none beyond their objects; runs end inside, their insides are
//! marked so, free ones have the same length at both ends, and no two are neighbours; of what was never used, nothing
//! is said. It counts, a class at a time,
//! the slabs with room, and the free runs. The other walk is over the lists: each member is a page that the first
//! walk has counted, points back to the one before, and there are as many as were counted. As each page points back
//! to one page only, a list that is walked no further than that cannot repeat a page unnoticed.

use crate::{
    PAGE,
    error::Error,
    heap::{Heap, word},
    map::{self, CLASSES, Entry, Kind},
};

/// What a heap holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Live objects.
    pub objects: u64,
    /// Pages of slabs.
    pub slabs: u64,
    /// Pages of large objects.
    pub large: u64,
    /// Pages of free runs.
    pub free: u64,
}

const fn damaged<T>(page: u64, what: &'static str) -> Result<T, Error> {
    Err(Error::Damaged { page, what })
}

impl Heap {
    /// Check all records; what the heap holds.
    ///
    /// # Errors
    /// [`Error::Damaged`] with the first contradiction.
    pub fn check(&self) -> Result<Summary, Error> {
        let memory = self.memory();
        let fresh = memory.load(word::FRESH);
        let mut page = memory.load(word::FIRST);
        let mut sum = Summary::default();
        // Slabs with room of each class, and free runs.
        let mut roomy = [0_u64; CLASSES.len()];
        let mut runs = 0_u64;
        let mut after_free = false;
        while page < fresh {
            let Some(entry) = self.entry(page) else {
                return damaged(page, "a page of no kind or class that there is");
            };
            match entry.kind {
                Kind::Slab => {
                    let (live, slots) = (u32::from(entry.live), map::slots(entry.class));
                    let beyond = entry.objects.checked_shr(slots).unwrap_or(0);
                    if entry.run != 1 || beyond != 0 || entry.objects.count_ones() != live || live == 0 {
                        return damaged(page, "a slab counts other objects than it has");
                    }
                    if live == slots && (entry.next, entry.previous) != (0, 0) {
                        return damaged(page, "a full slab that is on a list");
                    }
                    roomy[usize::from(entry.class)] += u64::from(live < slots);
                    sum.objects += u64::from(live);
                    sum.slabs += 1;
                }
                Kind::Large | Kind::Free => {
                    let end = page + u64::from(entry.run);
                    let Entry { next, previous, .. } = entry;
                    let links = if entry.kind == Kind::Free { (next, previous) } else { (0, 0) };
                    let plain = Entry { kind: entry.kind, run: entry.run, ..Entry::default() };
                    if entry != (Entry { next: links.0, previous: links.1, ..plain }) {
                        return damaged(page, "a run has what only slabs have");
                    }
                    if entry.run == 0 || end > fresh {
                        return damaged(page, "a run ends outside of the heap");
                    }
                    self.check_inside(page, entry)?;
                    if entry.kind == Kind::Large {
                        sum.objects += 1;
                        sum.large += u64::from(entry.run);
                    } else if after_free || end == fresh {
                        return damaged(page, "a free run that should have been joined");
                    } else {
                        runs += 1;
                        sum.free += u64::from(entry.run);
                    }
                }
                Kind::Inner | Kind::FreeEnd => {
                    return damaged(page, "the inside of a run without a beginning");
                }
            }
            after_free = entry.kind == Kind::Free;
            page += u64::from(entry.run);
        }
        for page in fresh..memory.len() / PAGE {
            if map::load(memory, page as u32) != Some(Entry::default()) {
                return damaged(page, "a page that was never used says that it is something");
            }
        }
        if sum.objects != self.objects() {
            return damaged(0, "the header counts other objects than there are");
        }
        self.check_list(word::RUNS, runs, |entry| entry.kind == Kind::Free)?;
        for (class, &slabs) in roomy.iter().enumerate() {
            self.check_list(word::SLABS + 8 * class as u64, slabs, |entry| {
                let full = u32::from(entry.live) == map::slots(entry.class);
                entry.kind == Kind::Slab && usize::from(entry.class) == class && !full
            })?;
        }
        Ok(sum)
    }

    /// The pages of a run after the first.
    fn check_inside(&self, page: u64, run: Entry) -> Result<(), Error> {
        let last = page + u64::from(run.run) - 1;
        for inside in page + 1..=last {
            let ends = run.kind == Kind::Free && inside == last;
            let end = Entry { kind: Kind::FreeEnd, run: run.run, ..Entry::default() };
            if self.entry(inside) != Some(if ends { end } else { Entry::default() }) {
                return damaged(inside, "a page inside of a run says that it is something else");
            }
        }
        Ok(())
    }

    fn check_list(&self, list: u64, count: u64, belongs: impl Fn(&Entry) -> bool) -> Result<(), Error> {
        let (mut before, mut page) = (0_u64, self.memory().load(list));
        for _ in 0..count {
            match self.entry(page) {
                Some(entry) if belongs(&entry) && u64::from(entry.previous) == before => {
                    (before, page) = (page, entry.next.into());
                }
                _ => return damaged(page, "a list has a page that does not belong on it"),
            }
        }
        if page == 0 { Ok(()) } else { damaged(page.min(self.memory().len() / PAGE), "a list is too long") }
    }
}

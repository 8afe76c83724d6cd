//! Every backend against an oracle that is a plain array: which accesses trap, what pages hold, what is dirty.
#![cfg(not(any(loom, shuttle)))]

mod common;

use std::sync::{Arc, Mutex};

use common::{PAGE, Random, Way, ways};
use vmprim::{Access, Kind, PageNo, PageSet, PageSize, Resolution, inline};

const PAGES: usize = 64;
const STEPS: usize = 4000;

/// What a page should be.
#[derive(Clone, Copy)]
struct Page {
    level: Access,
    value: u64,
    /// Written since the last set; and opened or written, so that it may be in the next set.
    written: bool,
    maybe: bool,
}

type Trap = (usize, Kind, Access);

/// The traps of a run, for the comparison of backends with the same levels.
fn script(way: &Way, seed: u64, unit: usize) -> Vec<Trap> {
    let traps: Arc<Mutex<Vec<Trap>>> = Arc::default();
    let seen = traps.clone();
    // SAFETY: the lock is of this test, nobody holds it while a page is touched, and the vector has room enough.
    let handler = unsafe {
        inline(move |fault, _| {
            seen.lock().unwrap().push((fault.page.0, fault.kind, fault.level));
            Resolution::Grant(fault.wanted)
        })
    };
    traps.lock().unwrap().reserve(2 * STEPS);
    let builder = way.builder(PAGES * unit / PAGE).page(PageSize::kib(unit >> 10));
    let region = builder.inline(handler).build().unwrap();
    let view = region.view::<u64>().unwrap();
    let mut random = Random(seed);
    let open = Page { level: Access::ReadWrite, value: 0, written: false, maybe: true };
    let mut model = [open; PAGES];
    let mut all = Vec::new();
    let mut expected = |page: &mut Page, at: usize, kind: Kind, needs: Access| {
        let forbidden = page.level < needs;
        let before = page.level;
        if forbidden {
            page.level = if way.has_read { needs } else { Access::ReadWrite };
        }
        if needs == Access::ReadWrite {
            (page.written, page.maybe) = (true, true);
        }
        let found = std::mem::take(&mut *traps.lock().unwrap());
        traps.lock().unwrap().reserve(64);
        let should = if forbidden { vec![(at, kind, before)] } else { vec![] };
        assert_eq!(found, should, "{way:?}, seed {seed}");
        all.extend(found);
    };
    for step in 0..STEPS {
        let first = random.below(PAGES);
        let most = if random.below(8) == 0 { PAGES } else { 5 };
        let count = 1 + random.below((PAGES - first).min(most));
        let levels = way.levels();
        let level = levels[random.below(levels.len())];
        let at = first * unit / 8 + random.below(unit / 8);
        let stamped = (first + 1) * unit / 8 - 7;
        let context = || format!("{way:?}, seed {seed}, step {step}");
        match random.below(16) {
            0..=2 => {
                region.protect(first..first + count, level).unwrap();
                model[first..first + count].iter_mut().for_each(|page| page.level = page.level.min(level));
            }
            3 => {
                let others: Vec<_> = (0..4).map(|_| random.below(PAGES)).collect();
                let ranges: Vec<_> = others.iter().map(|&page| PageNo(page).into()).collect();
                region.protect_many(&ranges, level).unwrap();
                others.iter().for_each(|&page| model[page].level = model[page].level.min(level));
            }
            4 => {
                region.unprotect(first..first + count, level).unwrap();
                for page in &mut model[first..first + count] {
                    page.maybe |= level == Access::ReadWrite && page.level < level;
                    page.level = page.level.max(level);
                }
            }
            5..=8 => {
                view.get(at);
                expected(&mut model[first], first, Kind::Read, Access::Read);
                let value = view.get(stamped);
                assert_eq!(value, Some(model[first].value), "{}", context());
            }
            9..=12 => {
                let value = random.next();
                view.set(stamped, value);
                expected(&mut model[first], first, Kind::Write, Access::ReadWrite);
                model[first].value = value;
            }
            13 => {
                // Drawn by all, so that backends with and without an alias go on alike.
                let value = random.next();
                if let Ok(alias) = region.alias() {
                    alias.write_from(stamped * 8, &value.to_ne_bytes()).unwrap();
                    model[first].value = value;
                }
            }
            14 => {
                let pages: Vec<_> = (0..3).map(|_| PageNo(random.below(PAGES))).collect();
                let lowered = region.try_evict(&pages, level).unwrap();
                for page in pages {
                    let was_above = model[page.0].level > level;
                    // A thread that reads faults may still hold the page it has just let through.
                    let is_idle = way.is_in_thread();
                    assert!(lowered.contains(page) || !(was_above && is_idle), "{}", context());
                    if lowered.contains(page) {
                        model[page.0].level = model[page.0].level.min(level);
                    }
                }
            }
            _ => {
                let mut dirty = PageSet::new();
                region.take_dirty(first..first + count, &mut dirty).unwrap();
                for (i, page) in model.iter_mut().enumerate() {
                    let inside = (first..first + count).contains(&i);
                    let is_dirty = dirty.contains(PageNo(i));
                    assert!(is_dirty || !(inside && page.written), "page {i} was written: {}", context());
                    assert!(!is_dirty || inside && page.maybe, "page {i} was not: {}", context());
                    if inside {
                        (page.written, page.maybe) = (false, false);
                        // Sets that note writes by traps close what they report.
                        if is_dirty && !way.tracks {
                            page.level = page.level.min(Access::Read);
                        }
                    }
                }
            }
        }
        for (i, page) in model.iter().enumerate() {
            let level = common::level_of(way, &region, i, page.level);
            assert_eq!(level, Some(page.level), "level of page {i}: {}", context());
        }
    }
    assert!(traps.lock().unwrap().is_empty());
    all
}

#[test]
fn each_backend_is_what_the_model_says() {
    for way in ways() {
        for seed in 1..=6 {
            let traps = script(&way, seed, PAGE);
            assert!(
                traps.len() > if way.has_none || way.has_read { STEPS / 20 } else { 0 }
                    || way.levels().len() == 1
            );
        }
    }
}

#[test]
fn larger_units_are_the_same() {
    for way in ways() {
        let traps = script(&way, 9, 4 * PAGE);
        assert_eq!(traps, script(&way, 9, 16 * PAGE), "{way:?}");
    }
}

#[test]
fn backends_of_the_same_levels_trap_alike() {
    let full: Vec<_> = ways().into_iter().filter(|way| way.has_none && way.has_read).collect();
    // Where nobody else keeps track, a dirty set costs traps.
    let (track, others) = full.iter().copied().partition::<Vec<_>, _>(|way| way.tracks);
    for alike in [track, others] {
        for way in alike.iter().skip(1) {
            assert_eq!(script(way, 77, PAGE), script(&alike[0], 77, PAGE), "{way:?} and {:?}", alike[0]);
        }
    }
    assert!(full.len() >= 2);
}

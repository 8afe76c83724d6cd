//! Levels of single pages, and what was written.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use addr::{PageRange, Prot};
use aspace::{
    Access, AddressSpace, Advice, Error, Fault, Level, Managed, Place, Placement, RemapTo, Step, Unmoved,
};
use owned::Use;
use percpu::{CpuSet, Unpinned};

use super::{
    BASE, cpus,
    machine::{self, Design, Pages, RW, Random, Sim, anonymous, object, page, range},
    work,
};

fn managed(space: &dyn AddressSpace) -> &dyn Managed {
    space.managed().expect("the design has levels")
}

fn step(at: u64, pages: u64, level: Level, raise: bool) -> Step {
    Step { range: range(BASE + at, pages), level, raise }
}

fn lower(at: u64, pages: u64, level: Level) -> Step {
    step(at, pages, level, false)
}

fn raise(at: u64, pages: u64, level: Level) -> Step {
    step(at, pages, level, true)
}

/// Which pages of a space were written, from [`BASE`] on.
fn taken(space: &dyn AddressSpace, pages: u64, ctx: &Unpinned<'_>) -> Vec<u64> {
    let mut bits = vec![0; pages.div_ceil(64) as usize];
    assert_eq!(managed(space).take_dirty(range(BASE, pages), &mut bits, ctx), Ok(()));
    (0..pages).filter(|i| bits[(i / 64) as usize] >> (i % 64) & 1 != 0).collect()
}

/// Run `f` with a space that has `pages` managed pages of `level` at [`BASE`], which CPU 0 runs.
fn with(
    cpus: usize,
    pages: u64,
    level: Level,
    f: impl FnOnce(&'static Sim, &Arc<dyn AddressSpace>, &Unpinned<'_>),
) {
    let sim = Sim::new(cpus, 2048);
    sim.cpus.on(0, |ctx| {
        let space = sim.space(&ctx);
        space.map(Placement::Fixed(page(BASE)), pages, anonymous(RW), &ctx).expect("there is room");
        assert_eq!(managed(&*space).manage(range(BASE, pages), Some(level), &ctx), Ok(()));
        sim.enter(&*space, &ctx);
        f(sim, &space, &ctx);
        sim.leave(&*space, &ctx);
        space.clear(&ctx);
    });
    assert_eq!(sim.owned(), [0; Use::COUNT]);
}

#[test]
fn a_level_forbids_what_the_mapping_allows_and_no_more() {
    with(1, 8, Level::None, |sim, space, ctx| {
        let levels = managed(&**space);
        assert_eq!(sim.load(&**space, page(BASE), ctx), Err(Fault::Level(Level::None)));
        assert_eq!(sim.fetch(&**space, page(BASE), ctx), Err(Fault::Denied));
        assert_eq!(levels.set_levels(&[raise(0, 4, Level::Read)], ctx), Ok(()));
        assert_eq!(sim.load(&**space, page(BASE + 3), ctx), Ok(0));
        assert_eq!(sim.store(&**space, page(BASE + 3), 1, ctx), Err(Fault::Level(Level::Read)));
        assert_eq!(sim.load(&**space, page(BASE + 4), ctx), Err(Fault::Level(Level::None)));
        // Neither raises what is higher, nor lowers what is lower.
        assert_eq!(levels.grant(page(BASE + 3), Level::ReadWrite, ctx), Ok(()));
        assert_eq!(levels.set_levels(&[raise(0, 8, Level::Read)], ctx), Ok(()));
        assert_eq!(sim.store(&**space, page(BASE + 3), 1, ctx), Ok(()));
        assert_eq!(levels.set_levels(&[lower(0, 8, Level::Read)], ctx), Ok(()));
        assert_eq!(
            levels.set_levels(&[lower(0, 2, Level::None), lower(2, 6, Level::ReadWrite)], ctx),
            Ok(())
        );
        assert_eq!(sim.load(&**space, page(BASE + 1), ctx), Err(Fault::Level(Level::None)));
        assert_eq!(sim.load(&**space, page(BASE + 2), ctx), Ok(0));
        // What the mapping forbids is no matter of levels, and one mapping it is.
        assert_eq!(space.protect(range(BASE, 8), Prot::empty(), ctx), Ok(()));
        assert_eq!(sim.load(&**space, page(BASE), ctx), Err(Fault::Denied));
        assert_eq!(space.protect(range(BASE, 8), RW, ctx), Ok(()));
        assert_eq!(sim.store(&**space, page(BASE + 3), 1, ctx), Err(Fault::Level(Level::Read)));
        assert_eq!(space.usage(ctx).mappings, 1);
        let first = |access| levels.first_forbidden(range(BASE, 8), access, ctx);
        assert_eq!((first(Access::Write), first(Access::Read)), (Some(page(BASE)), Some(page(BASE))));
        assert_eq!(levels.first_forbidden(range(BASE + 2, 6), Access::Read, ctx), None);
        assert_eq!(levels.manage(range(BASE, 8), None, ctx), Ok(()));
        assert_eq!(sim.store(&**space, page(BASE), 1, ctx), Ok(()));
        sim.audit(&**space, range(BASE, 8), ctx);
    });
}

#[test]
fn what_makes_no_sense_is_refused() {
    with(1, 8, Level::Read, |_, space, ctx| {
        let levels = managed(&**space);
        let beyond = range(addr::USER_END_PAGE.number() - 1, 2);
        let mut bits = [0];
        assert_eq!(levels.manage(range(BASE, 9), Some(Level::None), ctx), Err(Error::NoMapping));
        assert_eq!(levels.manage(range(BASE, 0), Some(Level::None), ctx), Err(Error::Invalid));
        assert_eq!(levels.manage(beyond, Some(Level::None), ctx), Err(Error::Invalid));
        assert_eq!(levels.take_dirty(range(BASE, 0), &mut bits, ctx), Err(Error::Invalid));
        assert_eq!(levels.take_dirty(beyond, &mut bits, ctx), Err(Error::Invalid));
        for wrong in [
            [raise(2, 1, Level::Read), raise(1, 1, Level::Read)],
            [raise(1, 2, Level::Read), raise(2, 1, Level::Read)],
            [raise(1, 0, Level::Read), raise(2, 1, Level::Read)],
        ] {
            assert_eq!(levels.set_levels(&wrong, ctx), Err(Error::Invalid));
        }
        space.map(Placement::Fixed(page(BASE + 8)), 1, anonymous(RW), ctx).expect("there is room");
        let partly = [lower(0, 1, Level::None), lower(7, 2, Level::None)];
        assert_eq!(levels.set_levels(&partly, ctx), Err(Error::Invalid));
        assert_eq!(levels.set_levels(&[lower(8, 1, Level::None)], ctx), Err(Error::Invalid));
        assert_eq!(levels.set_levels(&[lower(9, 1, Level::None)], ctx), Err(Error::NoMapping));
        assert_eq!(levels.grant(page(BASE + 8), Level::Read, ctx), Err(Error::Invalid));
        assert_eq!(levels.grant(page(BASE + 9), Level::Read, ctx), Err(Error::NoMapping));
        let first = |at| levels.first_forbidden(range(BASE + at, 1), Access::Read, ctx);
        assert_eq!((first(0), first(7), first(8)), (Some(page(BASE)), None, None));
    });
}

/// A page that differs has a slot of its own; the others stay in as few as before, and all are in one again when they are alike.
#[test]
fn folded_spans_stay_folded_until_a_page_differs() {
    const PAGES: u64 = 1 << 18;
    with(1, PAGES, Level::None, |sim, space, ctx| {
        let before = sim.frames.stats();
        let levels = managed(&**space);
        assert_eq!(levels.set_levels(&[raise(0, PAGES, Level::ReadWrite)], ctx), Ok(()));
        assert_eq!(levels.set_levels(&[lower(0, PAGES, Level::Read)], ctx), Ok(()));
        assert_eq!(levels.set_levels(&[lower(70_000, 1, Level::None)], ctx), Ok(()));
        assert_eq!(sim.load(&**space, page(BASE + 70_000), ctx), Err(Fault::Level(Level::None)));
        assert_eq!(sim.load(&**space, page(BASE + 69_999), ctx), Ok(0));
        assert_eq!(sim.load(&**space, page(BASE + 70_001), ctx), Ok(0));
        assert_eq!(space.usage(ctx).mappings, 1);
        assert_eq!(taken(&**space, PAGES, ctx), []);
        let used = before.free + before.cached - sim.frames.stats().free - sim.frames.stats().cached;
        assert!(used < 8, "{used} frames for two pages and their tables");
    });
}

#[test]
fn only_cpus_that_have_an_entry_are_told_of_a_lowering_and_nobody_of_a_raising() {
    with(3, 8, Level::ReadWrite, |sim, space, _| {
        let on = |cpu: usize, f: &(dyn Fn(&Unpinned<'_>) + Sync)| {
            std::thread::scope(|s| s.spawn(|| sim.cpus.on(cpu, |ctx| f(&ctx))).join()).expect("it works");
        };
        let store = |cpu: usize, at: u64| {
            let space = space.clone();
            on(cpu, &move |ctx| assert_eq!(sim.store(&*space, page(BASE + at), at, ctx), Ok(())));
        };
        [1, 2].iter().for_each(|&cpu| on(cpu, &|ctx| sim.enter(&**space, ctx)));
        // Page 0 is CPU 1's, page 1 CPU 2's, page 2 both's, page 3 nobody's.
        [(1, 0), (2, 1), (1, 2), (2, 2)].iter().for_each(|&(cpu, at)| store(cpu, at));
        let told = |steps: &[Step]| {
            *sim.targets.lock().unwrap() = CpuSet::EMPTY;
            let flushes = sim.flushes.load(Ordering::Relaxed);
            on(1, &|ctx| assert_eq!(managed(&**space).set_levels(steps, ctx), Ok(())));
            (sim.flushes.load(Ordering::Relaxed) - flushes, *sim.targets.lock().unwrap())
        };
        let exact = |targets: &[usize]| match machine::design() {
            Design::RadixPerCpu => cpus(targets),
            _ => cpus(&[0, 1, 2]),
        };
        let none = |at, pages| lower(at, pages, Level::None);
        assert_eq!(told(&[none(3, 1)]), (0, CpuSet::EMPTY));
        assert_eq!(told(&[none(1, 1)]), (1, exact(&[2])));
        assert_eq!(told(&[none(1, 1)]), (0, CpuSet::EMPTY));
        let all = [raise(0, 1, Level::ReadWrite), raise(1, 3, Level::ReadWrite)];
        assert_eq!(told(&all), (0, CpuSet::EMPTY));
        // The CPU that had page 1 meets what is stricter in a table of its own, once, and nobody hears of it.
        let faults = || sim.faults.load(Ordering::Relaxed);
        let before = faults();
        store(2, 1);
        assert_eq!(faults() - before, usize::from(machine::design() == Design::RadixPerCpu));
        assert_eq!(told(&[none(0, 1), none(1, 1), none(2, 1), none(4, 2)]), (1, exact(&[1, 2])));
        assert_eq!(told(&all), (0, CpuSet::EMPTY));
        // The CPU that has raised it has an entry as it was.
        let before = faults();
        store(1, 0);
        assert_eq!(faults() - before, 0);
        on(1, &|ctx| sim.audit(&**space, range(BASE, 8), ctx));
        [1, 2].iter().for_each(|&cpu| on(cpu, &|ctx| sim.leave(&**space, ctx)));
    });
}

/// A frame that others share is copied before it is written, whatever level was raised.
#[test]
fn a_page_that_is_raised_while_its_frame_is_shared_is_copied_first() {
    with(1, 4, Level::ReadWrite, |sim, space, ctx| {
        let levels = managed(&**space);
        assert_eq!(sim.store(&**space, page(BASE), 7, ctx), Ok(()));
        let child = space.fork(ctx).expect("there is memory");
        assert_eq!(sim.load(&**space, page(BASE), ctx), Ok(7));
        // Pages of its table may be written again.
        assert_eq!(sim.store(&**space, page(BASE + 1), 1, ctx), Ok(()));
        assert_eq!(levels.set_levels(&[lower(0, 1, Level::None)], ctx), Ok(()));
        assert_eq!(levels.set_levels(&[raise(0, 1, Level::ReadWrite)], ctx), Ok(()));
        assert_eq!(sim.store(&**space, page(BASE), 8, ctx), Ok(()));
        sim.leave(&**space, ctx);
        sim.enter(&*child, ctx);
        assert_eq!(sim.load(&*child, page(BASE), ctx), Ok(7));
        // The child's pages have levels too, which are its own.
        assert_eq!(managed(&*child).set_levels(&[lower(0, 1, Level::None)], ctx), Ok(()));
        assert_eq!(sim.load(&*child, page(BASE), ctx), Err(Fault::Level(Level::None)));
        sim.leave(&*child, ctx);
        child.clear(ctx);
        sim.enter(&**space, ctx);
        assert_eq!(sim.load(&**space, page(BASE), ctx), Ok(8));
    });
}

/// N3: what was written is told once, whatever became of the entries that the hardware noted it in.
#[test]
fn a_page_that_was_written_is_told_of_once_whatever_becomes_of_its_entry() {
    with(1, 600, Level::ReadWrite, |sim, space, ctx| {
        let write = |at: u64| assert_eq!(sim.store(&**space, page(BASE + at), at, ctx), Ok(()));
        let read = |at: u64| assert_eq!(sim.load(&**space, page(BASE + at), ctx), Ok(at));
        assert_eq!(taken(&**space, 600, ctx), []);
        [0, 1, 513].iter().for_each(|&at| write(at));
        assert_eq!(sim.load(&**space, page(BASE + 2), ctx), Ok(0));
        assert_eq!(taken(&**space, 600, ctx), [0, 1, 513]);
        assert_eq!(taken(&**space, 600, ctx), []);
        // Lowered, raised, written again.
        write(1);
        let steps = [lower(0, 600, Level::Read)];
        assert_eq!(managed(&**space).set_levels(&steps, ctx), Ok(()));
        assert_eq!(managed(&**space).set_levels(&[lower(1, 1, Level::None)], ctx), Ok(()));
        assert_eq!(taken(&**space, 600, ctx), [1]);
        assert_eq!(managed(&**space).set_levels(&[raise(0, 600, Level::ReadWrite)], ctx), Ok(()));
        assert_eq!(taken(&**space, 600, ctx), []);
        // Tables that are discarded.
        write(0);
        space.shed(ctx);
        read(1);
        assert_eq!(taken(&**space, 600, ctx), [0]);
        // A fork, and the copy after it; tables that are discarded with nodes that two spaces have.
        write(1);
        let child = space.fork(ctx).expect("there is memory");
        space.shed(ctx);
        assert_eq!(taken(&**space, 600, ctx), [1]);
        write(513);
        child.clear(ctx);
        drop(child);
        assert_eq!(taken(&**space, 600, ctx), [513]);
        // Another frame.
        write(0);
        let moved = space.move_page(page(BASE), Place::default(), &|_| false, ctx);
        assert_eq!(moved, Err(Unmoved::NoMemory));
        assert_eq!(taken(&**space, 600, ctx), [0]);
        write(0);
        let old = sim.frame_of(&**space, page(BASE), ctx);
        let moved = space.move_page(page(BASE), Place::default(), &|new| Some(new) != old, ctx);
        assert_eq!(moved, Ok(()));
        read(0);
        assert_eq!(taken(&**space, 600, ctx), [0]);
        // Another place.
        write(1);
        let away = space.remap(range(BASE, 4), 4, RemapTo::Fixed(page(BASE + 0x4000)), ctx);
        assert_eq!(away, Ok(page(BASE + 0x4000)));
        assert_eq!(space.remap(range(BASE + 0x4000, 4), 4, RemapTo::Fixed(page(BASE)), ctx), Ok(page(BASE)));
        read(1);
        assert_eq!(taken(&**space, 600, ctx), [1]);
        // Other contents.
        assert_eq!(space.advise(range(BASE + 1, 3), Advice::DontNeed, ctx), Ok(()));
        assert_eq!(taken(&**space, 600, ctx), [1, 2]);
        assert_eq!(taken(&**space, 600, ctx), []);
        // What could not be told.
        assert_eq!(managed(&**space).mark_dirty(range(BASE + 512, 88), &[1 << 1, 1 << 8], ctx), Ok(()));
        assert_eq!(taken(&**space, 600, ctx), [513, 584]);
    });
}

#[test]
fn a_cpu_that_has_a_page_cached_as_written_says_so_again_when_it_was_told_of() {
    with(2, 4, Level::ReadWrite, |sim, space, ctx| {
        let store = || {
            let other = |ctx: Unpinned<'_>| assert_eq!(sim.store(&**space, page(BASE), 1, &ctx), Ok(()));
            std::thread::scope(|s| s.spawn(|| sim.cpus.on(1, other)).join()).expect("it works");
        };
        std::thread::scope(|s| s.spawn(|| sim.cpus.on(1, |ctx| sim.enter(&**space, &ctx))).join())
            .expect("it works");
        for _ in 0..3 {
            store();
            store();
            assert_eq!(taken(&**space, 4, ctx), [0]);
            assert_eq!(taken(&**space, 4, ctx), []);
        }
        std::thread::scope(|s| s.spawn(|| sim.cpus.on(1, |ctx| sim.leave(&**space, &ctx))).join())
            .expect("it works");
    });
}

/// Random calls and accesses by CPUs in turn, against a page's level, number, and whether it was written.
#[test]
fn levels_and_what_was_written_are_as_in_a_list_of_pages() {
    const PAGES: u64 = 70;
    const CPUS: usize = 3;
    for seed in 0..6 {
        let sim = Sim::new(CPUS, 2048);
        let space = sim.cpus.on(0, |ctx| sim.space(&ctx));
        let file = sim.cpus.on(0, |ctx| Pages::new(sim, 9, &[0; PAGES as usize], &ctx));
        let mapping = match seed % 3 {
            0 => object(&file, 0, RW, true),
            1 => object(&file, 0, RW, false),
            _ => anonymous(RW),
        };
        sim.cpus.on(0, |ctx| {
            space.map(Placement::Fixed(page(BASE)), PAGES, mapping, &ctx).expect("there is room");
            assert_eq!(managed(&*space).manage(range(BASE, PAGES), Some(Level::Read), &ctx), Ok(()));
        });
        (0..CPUS).for_each(|cpu| sim.cpus.on(cpu, |ctx| sim.enter(&*space, &ctx)));
        let mut model = vec![(Level::Read, 0u64, false); PAGES as usize];
        let mut random = Random::new(seed, 0);
        for n in 1..1500 {
            let cpu = random.below(CPUS as u64) as usize;
            sim.cpus.on(cpu, |ctx| one(sim, &*space, &mut model, &mut random, n, &ctx));
            sim.stir(range(BASE, PAGES), |n| random.below(n));
        }
        sim.cpus.on(0, |ctx| sim.audit(&*space, range(BASE, PAGES), &ctx));
        (0..CPUS).for_each(|cpu| sim.cpus.on(cpu, |ctx| sim.leave(&*space, &ctx)));
        sim.cpus.on(0, |ctx| {
            space.clear(&ctx);
            file.free(sim, &ctx);
        });
        assert_eq!(sim.owned(), [0; Use::COUNT]);
    }
}

/// One of these.
fn one(
    sim: &Sim,
    space: &dyn AddressSpace,
    model: &mut [(Level, u64, bool)],
    random: &mut Random,
    n: u64,
    ctx: &Unpinned<'_>,
) {
    let pages = model.len() as u64;
    let at = random.below(pages);
    let i = at as usize;
    match random.below(16) {
        0..5 => {
            let answer = sim.load(space, page(BASE + at), ctx);
            let (level, value, _) = model[i];
            let expected = if level == Level::None { Err(Fault::Level(level)) } else { Ok(value) };
            assert_eq!(answer, expected, "a load of page {at}");
        }
        5..10 => {
            let answer = sim.store(space, page(BASE + at), n, ctx);
            let (level, value, written) = &mut model[i];
            let expected = if *level == Level::ReadWrite { Ok(()) } else { Err(Fault::Level(*level)) };
            assert_eq!(answer, expected, "a store to page {at}");
            if answer.is_ok() {
                (*value, *written) = (n, true);
            }
        }
        10..14 => {
            let mut steps = Vec::new();
            let mut from = at;
            while from < pages && steps.len() < 5 {
                let most = (pages - from).min(if random.below(2) == 0 { 1 } else { 40 });
                let next = step(from, 1 + random.below(most), random.pick(&Level::ALL), random.below(2) == 0);
                from = next.range.end().number() - BASE + random.below(9);
                steps.push(next);
            }
            match steps.as_slice() {
                [step] if step.raise && step.range.len() == 1 && random.below(2) == 0 => {
                    assert_eq!(managed(space).grant(step.range.start(), step.level, ctx), Ok(()));
                }
                _ => assert_eq!(managed(space).set_levels(&steps, ctx), Ok(())),
            }
            for step in &steps {
                for page in step.range {
                    let level = &mut model[(page.number() - BASE) as usize].0;
                    *level = step.apply(*level);
                }
            }
        }
        14 => {
            let written = taken(space, pages, ctx);
            for (i, (.., dirty)) in model.iter_mut().enumerate() {
                // Pages may be told of that were not written.
                let (told, was) = (written.contains(&(i as u64)), std::mem::take(dirty));
                assert!(told || !was, "page {i} was written, and nobody said so");
            }
        }
        _ => match random.below(3) {
            0 => space.shed(ctx),
            1 => {
                let child = space.fork(ctx).expect("there is memory");
                child.clear(ctx);
            }
            _ => _ = space.move_page(page(BASE + at), Place::default(), &|_| false, ctx),
        },
    }
}

/// A page that nobody may use stays as it is, and what was stored before it was lowered is there. Two threads store to pages that a third lowers and
/// raises.
#[test]
fn nobody_uses_a_page_that_was_lowered() {
    const PAGES: u64 = 4;
    with(3, PAGES, Level::ReadWrite, |sim, space, ctx| {
        let stop = AtomicBool::new(false);
        let stored: Vec<_> = (0..PAGES).map(|_| AtomicU64::new(0)).collect();
        std::thread::scope(|threads| {
            for cpu in 1..3 {
                let (stop, stored) = (&stop, &stored);
                threads.spawn(move || {
                    sim.cpus.on(cpu, |ctx| sim.enter(&**space, &ctx));
                    let mut random = Random::new(3, cpu);
                    while !stop.load(Ordering::Relaxed) {
                        let at = random.below(PAGES);
                        sim.cpus.on(cpu, |ctx| {
                            match sim.store(&**space, page(BASE + at), random.below(1 << 20), &ctx) {
                                Ok(()) => _ = stored[at as usize].fetch_add(1, Ordering::Relaxed),
                                Err(fault) => assert!(matches!(fault, Fault::Level(_)), "{fault:?}"),
                            }
                        });
                    }
                    sim.cpus.on(cpu, |ctx| sim.leave(&**space, &ctx));
                });
            }
            let mut random = Random::new(4, 0);
            for _ in 0..500 {
                let at = random.below(PAGES);
                let to = random.pick(&[Level::None, Level::Read]);
                assert_eq!(managed(&**space).set_levels(&[lower(at, 1, to)], ctx), Ok(()));
                if let Some(frame) = sim.frame_of(&**space, page(BASE + at), ctx) {
                    let word = &sim.entries(frame)[0];
                    let before = word.load(Ordering::SeqCst);
                    (0..8).for_each(|_| std::thread::yield_now());
                    assert_eq!(
                        word.load(Ordering::SeqCst),
                        before,
                        "page {at} was stored to after it was lowered"
                    );
                }
                assert_eq!(managed(&**space).grant(page(BASE + at), Level::ReadWrite, ctx), Ok(()));
                (0..4).for_each(|_| std::thread::yield_now());
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(stored.iter().all(|n| n.load(Ordering::Relaxed) > 0), "{stored:?}");
    });
}

/// S3: whoever copies the pages that he is told of, each time, has everything in the end. Two threads store, and a third makes the
/// hardware's notes go where they may.
#[test]
fn no_store_is_lost_by_who_takes_what_was_written() {
    const PAGES: u64 = 6;
    with(4, PAGES, Level::ReadWrite, |sim, space, ctx| {
        let stop = AtomicBool::new(false);
        let word = |at: u64, ctx: &Unpinned<'_>| {
            let frame = sim.frame_of(&**space, page(BASE + at), ctx);
            frame.map_or(0, |frame| sim.entries(frame)[0].load(Ordering::SeqCst))
        };
        let mut copy = [0; PAGES as usize];
        let mut take = |space: &Arc<dyn AddressSpace>| {
            taken(&**space, PAGES, ctx).into_iter().for_each(|at| copy[at as usize] = word(at, ctx));
            copy
        };
        std::thread::scope(|threads| {
            let stop = &stop;
            for cpu in 1..3 {
                threads.spawn(move || {
                    work(sim, &**space, cpu, 5, stop, |n, random, ctx| {
                        let at = page(BASE + random.below(PAGES));
                        assert_eq!(sim.store(&**space, at, n << 2 | cpu as u64, ctx), Ok(()));
                    });
                });
            }
            threads.spawn(move || {
                work(sim, &**space, 3, 5, stop, |_, random, ctx| match random.below(8) {
                    0 => space.fork(ctx).expect("there is memory").clear(ctx),
                    1 => space.shed(ctx),
                    2..5 => {
                        let at = page(BASE + random.below(PAGES));
                        let _ = space.move_page(at, Place::default(), &|_| false, ctx);
                    }
                    _ => sim.stir(pages(), |n| random.below(n)),
                });
            });
            (0..300).for_each(|_| {
                take(space);
                std::thread::yield_now();
            });
            stop.store(true, Ordering::Relaxed);
        });
        let copy = take(space);
        let now: Vec<_> = (0..PAGES).map(|at| word(at, ctx)).collect();
        assert_eq!(copy[..], now);
        assert!(now.iter().all(|&value| value > 0));
    });
    fn pages() -> PageRange {
        range(BASE, PAGES)
    }
}

/// N3, at once: a store that is over is told of by the next call, also while its note is on the way from an entry to the slot.
#[test]
fn a_store_is_told_of_by_the_next_call_while_its_page_moves() {
    with(2, 4, Level::ReadWrite, |sim, space, ctx| {
        // The look locks the first page that has a frame: not the one that moves.
        assert_eq!(sim.store(&**space, page(BASE), 1, ctx), Ok(()));
        assert_eq!(taken(&**space, 4, ctx), [0]);
        assert_eq!(sim.store(&**space, page(BASE + 1), 2, ctx), Ok(()));
        let (emptied, is_emptied) = std::sync::mpsc::channel();
        let taker = {
            let space = space.clone();
            std::thread::spawn(move || {
                is_emptied.recv().expect("the page moves");
                sim.cpus.on(1, |ctx| taken(&*space, 4, &ctx))
            })
        };
        *sim.on_flush.lock().unwrap() = Some(Arc::new(move || {
            // Its entry is empty, and its slot says nothing yet. Who takes waits for the lock, or is mistaken.
            let _ = emptied.send(());
            std::thread::sleep(std::time::Duration::from_millis(50));
        }));
        let moved = space.move_page(page(BASE + 1), Place::default(), &|_| false, ctx);
        assert_eq!(moved, Err(Unmoved::NoMemory));
        *sim.on_flush.lock().unwrap() = None;
        assert_eq!(taker.join().expect("it works"), [1]);
    });
}

/// Where only some groups of a table's pages were written, the others are left alone.
#[test]
fn written_pages_are_found_in_any_part_of_a_table() {
    with(1, 1500, Level::ReadWrite, |sim, space, ctx| {
        let all: Vec<u64> = (0..1500).collect();
        all.iter().for_each(|&at| assert_eq!(sim.store(&**space, page(BASE + at), at, ctx), Ok(())));
        assert_eq!(taken(&**space, 1500, ctx), all);
        for step in [1, 63, 64, 65, 200, 511, 512, 700] {
            let some: Vec<u64> = (step % 7..1500).step_by(step as usize).collect();
            some.iter().for_each(|&at| assert_eq!(sim.store(&**space, page(BASE + at), at, ctx), Ok(())));
            assert_eq!(taken(&**space, 1500, ctx), some);
            assert_eq!(taken(&**space, 1500, ctx), []);
        }
        // Parts of the range: what is beyond them is as it was.
        let at = |at: u64| assert_eq!(sim.store(&**space, page(BASE + at), 1, ctx), Ok(()));
        [70, 100, 130].iter().for_each(|&page| at(page));
        let mut bits = [0];
        assert_eq!(managed(&**space).take_dirty(range(BASE + 90, 20), &mut bits, ctx), Ok(()));
        assert_eq!(bits, [1 << 10]);
        assert_eq!(taken(&**space, 1500, ctx), [70, 130]);
    });
}

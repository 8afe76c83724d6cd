//! Watched pages: whose faults somebody else resolves.

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use addr::{PAGE_BYTES, Prot};
use aspace::{
    Access, AddressSpace, Advice, Cause, Content, Error, Fault, Level, Mapping, Modes, Placement, RemapTo,
    Step, Unfilled, Watch, Watched,
};
use owned::Use;
use percpu::Unpinned;

use super::{
    BASE,
    machine::{Pages, RW, Random, Sim, anonymous, object, page, range},
    work,
};

const BOTH: Modes = Modes::MISSING.union(Modes::PROTECT);
const ASYNC: Modes = Modes::PROTECT.union(Modes::ASYNC).union(Modes::UNPOPULATED);

fn watched(space: &dyn AddressSpace) -> &dyn Watched {
    space.watched().expect("the design has watched mappings")
}

fn watcher() -> Arc<dyn Any + Send + Sync> {
    Arc::new(7u64)
}

/// Let `by` watch `pages` pages from the one `at` pages after [`BASE`] on.
fn watch(
    space: &dyn AddressSpace,
    (at, pages): (u64, u64),
    by: &Arc<dyn Any + Send + Sync>,
    modes: Modes,
    ctx: &Unpinned<'_>,
) -> Result<(), Error> {
    let ask = |_: &Mapping| Some(Some(Watch { by: by.clone(), modes }));
    watched(space).watch(range(BASE + at, pages), &ask, ctx)
}

fn told(space: &dyn AddressSpace, at: u64, access: Access, ctx: &Unpinned<'_>) -> Option<Cause> {
    watched(space).told(page(BASE + at), access, ctx).map(|(_, cause)| cause)
}

/// Run `f` with a space that has `pages` pages at [`BASE`], watched in these modes, which CPU 0 runs.
fn with(
    cpus: usize,
    pages: u64,
    modes: Modes,
    f: impl FnOnce(&'static Sim, &Arc<dyn AddressSpace>, &Unpinned<'_>),
) {
    let sim = Sim::new(cpus, 2048);
    sim.cpus.on(0, |ctx| {
        let space = sim.space(&ctx);
        space.map(Placement::Fixed(page(BASE)), pages, anonymous(RW), &ctx).expect("there is room");
        assert_eq!(watch(&*space, (0, pages), &watcher(), modes, &ctx), Ok(()));
        sim.enter(&*space, &ctx);
        f(sim, &space, &ctx);
        sim.leave(&*space, &ctx);
        space.clear(&ctx);
    });
    assert_eq!(sim.owned(), [0; Use::COUNT]);
}

#[test]
fn a_page_that_is_missing_is_told_of_until_it_is_filled() {
    with(1, 600, BOTH, |sim, space, ctx| {
        for access in [Access::Read, Access::Write] {
            assert_eq!(space.fault(page(BASE + 1).base(), access, ctx), Err(Fault::Watched));
            assert_eq!(told(&**space, 1, access, ctx), Some(Cause::Missing));
        }
        assert_eq!(space.usage(ctx).resident_pages, 0);
        let mut bytes = [0; PAGE_BYTES];
        bytes[0] = 5;
        let fill = |at: u64, with, protected| watched(&**space).fill(page(BASE + at), with, protected, ctx);
        assert_eq!(fill(1, Content::Bytes(&bytes), false), Ok(()));
        assert_eq!(fill(1, Content::Bytes(&bytes), false), Err(Unfilled::There));
        assert_eq!(fill(2, Content::Object, false), Err(Unfilled::Invalid));
        assert_eq!(fill(600, Content::Zeros, false), Err(Unfilled::Unwatched));
        assert_eq!(sim.load(&**space, page(BASE + 1), ctx), Ok(5));
        assert_eq!(sim.store(&**space, page(BASE + 1), 6, ctx), Ok(()));
        assert_eq!(fill(2, Content::Zeros, true), Ok(()));
        assert_eq!(sim.load(&**space, page(BASE + 2), ctx), Ok(0));
        assert_eq!(sim.store(&**space, page(BASE + 2), 1, ctx), Err(Fault::Watched));
        assert_eq!(told(&**space, 2, Access::Write, ctx), Some(Cause::Protected));
        assert_eq!(told(&**space, 2, Access::Read, ctx), None);
        assert_eq!(space.usage(ctx).resident_pages, 2);
        // What the mapping forbids is nothing to tell.
        assert_eq!(space.protect(range(BASE, 600), Prot::READ, ctx), Ok(()));
        assert_eq!(sim.store(&**space, page(BASE + 3), 1, ctx), Err(Fault::Denied));
        assert_eq!(told(&**space, 3, Access::Write, ctx), None);
        assert_eq!(sim.load(&**space, page(BASE + 3), ctx), Err(Fault::Watched));
        assert_eq!(space.protect(range(BASE, 600), RW, ctx), Ok(()));
        // Contents that were dropped are missing again.
        assert_eq!(space.advise(range(BASE + 1, 2), Advice::DontNeed, ctx), Ok(()));
        assert_eq!(sim.load(&**space, page(BASE + 1), ctx), Err(Fault::Watched));
        assert_eq!(told(&**space, 2, Access::Write, ctx), Some(Cause::Missing));
        sim.audit(&**space, range(BASE, 600), ctx);
    });
}

/// Protection is of what is there: it goes with the contents.
#[test]
fn a_page_whose_contents_went_is_protected_no_more() {
    with(1, 8, Modes::PROTECT, |sim, space, ctx| {
        (0..8).for_each(|at| assert_eq!(sim.store(&**space, page(BASE + at), 1, ctx), Ok(())));
        assert_eq!(watched(&**space).protect_pages(range(BASE, 8), true, ctx), Ok(()));
        let advise = |at, advice| assert_eq!(space.advise(range(BASE + at, 1), advice, ctx), Ok(()));
        advise(1, Advice::DontNeed);
        advise(2, Advice::InstallGuards);
        advise(2, Advice::RemoveGuards);
        for at in 0..8 {
            let stored = if at == 1 || at == 2 { Ok(()) } else { Err(Fault::Watched) };
            assert_eq!(sim.store(&**space, page(BASE + at), 2, ctx), stored, "page {at}");
        }
    });
}

#[test]
fn who_watches_is_said_by_mappings_and_ends_with_them() {
    with(1, 64, BOTH, |sim, space, ctx| {
        assert_eq!(space.usage(ctx).mappings, 1);
        let (other, nobody) = (watcher(), |_: &Mapping| Some(None));
        assert_eq!(watch(&**space, (8, 8), &other, Modes::MISSING, ctx), Ok(()));
        assert_eq!(space.usage(ctx).mappings, 3);
        let refuse =
            |mapping: &Mapping| mapping.watch.as_ref().is_some_and(|w| w.is_by(&other)).then_some(None);
        assert_eq!(watched(&**space).watch(range(BASE, 16), &refuse, ctx), Err(Error::Denied));
        assert_eq!(space.usage(ctx).mappings, 3);
        // Not for stores: so it can't be protected, but what lies before it.
        let protect = |at, n, on| watched(&**space).protect_pages(range(BASE + at, n), on, ctx);
        assert_eq!(watched(&**space).fill(page(BASE), Content::Zeros, false, ctx), Ok(()));
        assert_eq!(watched(&**space).fill(page(BASE + 16), Content::Zeros, false, ctx), Ok(()));
        assert_eq!(protect(0, 64, true), Err(Error::NoMapping));
        assert_eq!(sim.store(&**space, page(BASE), 1, ctx), Err(Fault::Watched));
        assert_eq!(sim.store(&**space, page(BASE + 16), 1, ctx), Ok(()));
        assert_eq!(watched(&**space).watch(range(BASE, 64), &nobody, ctx), Ok(()));
        assert_eq!(space.usage(ctx).mappings, 1);
        assert_eq!(sim.store(&**space, page(BASE), 1, ctx), Ok(()));
        assert_eq!(sim.store(&**space, page(BASE + 9), 1, ctx), Ok(()));
        // Levels of a program's own are another matter.
        let managed = space.managed().expect("it has levels");
        assert_eq!(managed.manage(range(BASE, 4), Some(Level::Read), ctx), Ok(()));
        assert_eq!(watch(&**space, (0, 8), &other, BOTH, ctx), Err(Error::Exists));
        assert_eq!(watch(&**space, (4, 60), &other, BOTH, ctx), Ok(()));
        assert_eq!(managed.manage(range(BASE + 4, 4), Some(Level::Read), ctx), Err(Error::Invalid));
        for pages in [1, 2] {
            let step = Step { range: range(BASE + 4, pages), level: Level::ReadWrite, raise: true };
            assert_eq!(managed.set_levels(&[step], ctx), Err(Error::Invalid));
        }
        assert_eq!(managed.grant(page(BASE + 4), Level::ReadWrite, ctx), Err(Error::Invalid));
        assert_eq!(watch(&**space, (0x9000, 4), &other, BOTH, ctx), Err(Error::NoMapping));
        // What is mapped in its place is new; what has moved is not watched; what has grown is.
        space.map(Placement::Fixed(page(BASE + 10)), 1, anonymous(RW), ctx).expect("there is room");
        assert_eq!(sim.store(&**space, page(BASE + 10), 1, ctx), Ok(()));
        assert_eq!(protect(9, 1, true), Ok(()));
        let away = page(BASE + 0x4000);
        assert_eq!(space.remap(range(BASE + 8, 2), 2, RemapTo::Fixed(away), ctx), Ok(away));
        assert_eq!(sim.store(&**space, page(BASE + 0x4001), 2, ctx), Ok(()));
        assert_eq!(sim.store(&**space, page(BASE + 0x4000), 2, ctx), Ok(()));
        assert_eq!(space.remap(range(BASE + 60, 4), 8, RemapTo::InPlace, ctx), Ok(page(BASE + 60)));
        assert_eq!(sim.load(&**space, page(BASE + 67), ctx), Err(Fault::Watched));
        sim.audit(&**space, range(BASE, 80), ctx);
    });
}

#[test]
fn nobody_watches_a_child_and_nothing_is_protected_there() {
    with(1, 1024, BOTH, |sim, space, ctx| {
        for at in (0..1024).step_by(3) {
            assert_eq!(watched(&**space).fill(page(BASE + at), Content::Zeros, false, ctx), Ok(()));
        }
        assert_eq!(watched(&**space).protect_pages(range(BASE, 600), true, ctx), Ok(()));
        let child = space.fork(ctx).expect("there is memory");
        assert_eq!(sim.store(&**space, page(BASE), 1, ctx), Err(Fault::Watched));
        assert_eq!(sim.load(&**space, page(BASE + 1), ctx), Err(Fault::Watched));
        assert_eq!(sim.store(&**space, page(BASE + 600), 1, ctx), Ok(()));
        sim.leave(&**space, ctx);
        sim.enter(&*child, ctx);
        assert_eq!(child.usage(ctx).mappings, 1);
        for at in [0, 1, 2, 3, 600, 1023] {
            assert_eq!(sim.load(&*child, page(BASE + at), ctx), Ok(0));
            assert_eq!(sim.store(&*child, page(BASE + at), 9, ctx), Ok(()));
            assert_eq!(told(&*child, at, Access::Write, ctx), None);
        }
        sim.audit(&*child, range(BASE, 1024), ctx);
        sim.leave(&*child, ctx);
        child.clear(ctx);
        sim.enter(&**space, ctx);
        assert_eq!(watched(&**space).protect_pages(range(BASE, 600), false, ctx), Ok(()));
        assert_eq!(sim.store(&**space, page(BASE), 1, ctx), Ok(()));
        sim.audit(&**space, range(BASE, 1024), ctx);
    });
}

#[test]
fn a_page_that_its_object_has_is_told_of_before_it_is_shown() {
    let sim = Sim::new(1, 2048);
    sim.cpus.on(0, |ctx| {
        let space = sim.space(&ctx);
        let file = Pages::new(sim, 3, &[1, 2, 3, 4], &ctx);
        space.map(Placement::Fixed(page(BASE)), 4, object(&file, 0, RW, true), &ctx).expect("there is room");
        sim.enter(&*space, &ctx);
        assert_eq!(sim.load(&*space, page(BASE), &ctx), Ok(1));
        assert_eq!(watch(&*space, (0, 4), &watcher(), Modes::MINOR | Modes::PROTECT, &ctx), Ok(()));
        assert_eq!(sim.load(&*space, page(BASE), &ctx), Ok(1));
        assert_eq!(sim.load(&*space, page(BASE + 1), &ctx), Err(Fault::Watched));
        assert_eq!(told(&*space, 1, Access::Read, &ctx), Some(Cause::Minor));
        let fill = |at| watched(&*space).fill(page(BASE + at), Content::Object, true, &ctx);
        assert_eq!(fill(1), Ok(()));
        assert_eq!(fill(1), Err(Unfilled::There));
        assert_eq!(sim.load(&*space, page(BASE + 1), &ctx), Ok(2));
        assert_eq!(sim.store(&*space, page(BASE + 1), 8, &ctx), Err(Fault::Watched));
        // Protection outlives what it protects, where that is the object's.
        assert_eq!(space.advise(range(BASE, 2), Advice::DontNeed, &ctx), Ok(()));
        assert_eq!(told(&*space, 1, Access::Write, &ctx), Some(Cause::Minor));
        assert_eq!(watched(&*space).watch(range(BASE, 4), &|_: &Mapping| Some(None), &ctx), Ok(()));
        assert_eq!(sim.store(&*space, page(BASE + 1), 8, &ctx), Ok(()));
        sim.leave(&*space, &ctx);
        space.clear(&ctx);
        file.free(sim, &ctx);
    });
    assert_eq!(sim.owned(), [0; Use::COUNT]);
}

/// Pages of `pages` that a scan says were written; they are protected.
fn scanned(space: &dyn AddressSpace, pages: u64, ctx: &Unpinned<'_>) -> Vec<u64> {
    let mut found = Vec::new();
    let scan = watched(space).scan(
        range(BASE, pages),
        &mut |pages, resident, protected| {
            assert!(resident.is_none_or(|resident| resident.protected == protected));
            found.extend(pages.iter().map(|page| page.number() - BASE).filter(|_| !protected));
            !protected
        },
        ctx,
    );
    assert_eq!(scan, Ok(()));
    found
}

#[test]
fn a_scan_finds_what_was_written_since_it_was_protected() {
    with(1, 600, ASYNC, |sim, space, ctx| {
        let write = |at: u64| assert_eq!(sim.store(&**space, page(BASE + at), at, ctx), Ok(()));
        // What was never protected counts as written.
        assert_eq!(scanned(&**space, 600, ctx), Vec::from_iter(0..600));
        assert_eq!(scanned(&**space, 600, ctx), []);
        assert_eq!(sim.load(&**space, page(BASE + 2), ctx), Ok(0));
        [1, 5, 599].into_iter().for_each(write);
        assert_eq!(scanned(&**space, 600, ctx), [1, 5, 599]);
        assert_eq!(scanned(&**space, 600, ctx), []);
        assert_eq!(sim.load(&**space, page(BASE + 1), ctx), Ok(1));
        assert_eq!(scanned(&**space, 600, ctx), []);
        write(5);
        // Whole spans are protected before there is anything.
        assert_eq!(watched(&**space).protect_pages(range(BASE, 600), true, ctx), Ok(()));
        assert_eq!(scanned(&**space, 600, ctx), []);
        write(300);
        assert_eq!(scanned(&**space, 600, ctx), [300]);
        // A node that a child has too.
        let child = space.fork(ctx).expect("there is memory");
        write(5);
        assert_eq!(scanned(&**space, 600, ctx), [5]);
        child.clear(ctx);
        // Dropped contents are not protected, whether there were any or not.
        write(1);
        assert_eq!(space.advise(range(BASE, 2), Advice::DontNeed, ctx), Ok(()));
        assert_eq!(scanned(&**space, 600, ctx), [0, 1]);
        assert_eq!(scanned(&**space, 600, ctx), []);
        sim.audit(&**space, range(BASE, 600), ctx);
    });
}

/// A page that is protected stays as it is until it is allowed. Two threads store to pages that a third protects.
#[test]
fn nobody_stores_to_a_page_that_is_protected() {
    const PAGES: u64 = 4;
    with(3, PAGES, Modes::PROTECT, |sim, space, ctx| {
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
                                Err(fault) => assert_eq!(fault, Fault::Watched),
                            }
                        });
                    }
                    sim.cpus.on(cpu, |ctx| sim.leave(&**space, &ctx));
                });
            }
            let mut random = Random::new(4, 0);
            for _ in 0..150 {
                let at = random.below(PAGES);
                let protect = |on| watched(&**space).protect_pages(range(BASE + at, 1), on, ctx);
                assert_eq!(protect(true), Ok(()));
                if let Some(frame) = sim.frame_of(&**space, page(BASE + at), ctx) {
                    let word = &sim.entries(frame)[0];
                    let before = word.load(Ordering::SeqCst);
                    (0..8).for_each(|_| std::thread::yield_now());
                    let after = word.load(Ordering::SeqCst);
                    assert_eq!(after, before, "page {at} was stored to after it was protected");
                }
                assert_eq!(protect(false), Ok(()));
                (0..4).for_each(|_| std::thread::yield_now());
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(stored.iter().any(|n| n.load(Ordering::Relaxed) > 0), "{stored:?}");
    });
}

/// Whoever copies the pages that a scan finds, each time, has everything in the end. Two threads store, and a third shares and moves
/// their frames.
#[test]
fn no_store_is_lost_by_who_scans() {
    const PAGES: u64 = 6;
    with(4, PAGES, ASYNC, |sim, space, ctx| {
        let stop = AtomicBool::new(false);
        let word = |at: u64, ctx: &Unpinned<'_>| {
            let frame = sim.frame_of(&**space, page(BASE + at), ctx);
            frame.map_or(0, |frame| sim.entries(frame)[0].load(Ordering::SeqCst))
        };
        let mut copy = [0; PAGES as usize];
        let mut take = |space: &Arc<dyn AddressSpace>| {
            scanned(&**space, PAGES, ctx).into_iter().for_each(|at| copy[at as usize] = word(at, ctx));
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
                    _ => sim.stir(range(BASE, PAGES), |n| random.below(n)),
                });
            });
            for round in 0.. {
                let all = take(space).iter().all(|&value| value > 0);
                std::thread::yield_now();
                if all && round > 150 {
                    break;
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        let copy = take(space);
        let now: Vec<_> = (0..PAGES).map(|at| word(at, ctx)).collect();
        assert_eq!(copy[..], now);
        assert!(now.iter().all(|&value| value > 0));
    });
}

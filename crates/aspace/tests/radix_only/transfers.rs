//! Contents of pages that go to other pages, and contents that are lost.

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use addr::{PAGE_BYTES, Prot};
use aspace::{
    Access, AddressSpace, Advice, Content, Fault, Flags, Level, Mapping, Modes, Placement, RemapTo, Unfilled,
    Untransferred, Watch, Watched,
};
use owned::Use;
use percpu::Unpinned;

use super::{
    BASE, SPARES,
    machine::{Pages, RW, Random, Sim, anonymous, object, page, range},
    work,
};

const MODES: Modes = Modes::MISSING.union(Modes::PROTECT).union(Modes::UNPOPULATED);
/// Where a second mapping begins, which nobody watches, after [`BASE`].
const OTHER: u64 = 0x1000;

fn watched(space: &dyn AddressSpace) -> &dyn Watched {
    space.watched().expect("the design has watched mappings")
}

fn watch(space: &dyn AddressSpace, at: u64, pages: u64, modes: Modes, ctx: &Unpinned<'_>) {
    let by: Arc<dyn Any + Send + Sync> = Arc::new(7u64);
    let ask = |_: &Mapping| Some(Some(Watch { by: by.clone(), modes }));
    assert_eq!(watched(space).watch(range(BASE + at, pages), &ask, ctx), Ok(()));
}

/// Transfer `pages` pages from the one `from` pages after [`BASE`] on, in as many calls as it takes: how many went, and why not all.
fn transfer(
    space: &dyn AddressSpace,
    (from, to): (u64, u64),
    pages: u64,
    holes: bool,
    ctx: &Unpinned<'_>,
) -> (u64, Option<Untransferred>) {
    let mut done = 0;
    while done < pages {
        let (rest, to) = (range(BASE + from + done, pages - done), page(BASE + to + done));
        match watched(space).transfer(rest, to, &|_, _| true, holes, ctx) {
            Ok(n) => {
                assert!(0 < n && n <= pages - done, "{n} of {}", pages - done);
                done += n;
            }
            Err(error) => return (done, Some(error)),
        }
    }
    (done, None)
}

/// Run `f` with a space that has `pages` watched pages at [`BASE`] and as many that nobody watches at [`OTHER`], which CPU 0
/// runs.
fn with(cpus: usize, pages: u64, f: impl FnOnce(&'static Sim, &Arc<dyn AddressSpace>, &Unpinned<'_>)) {
    let sim = Sim::new(cpus, 2048);
    sim.cpus.on(0, |ctx| {
        let space = sim.space(&ctx);
        for at in [BASE, BASE + OTHER] {
            space.map(Placement::Fixed(page(at)), pages, anonymous(RW), &ctx).expect("there is room");
        }
        watch(&*space, 0, pages, MODES, &ctx);
        sim.enter(&*space, &ctx);
        f(sim, &space, &ctx);
        sim.leave(&*space, &ctx);
        space.clear(&ctx);
    });
    assert_eq!(sim.owned(), [0; Use::COUNT]);
}

#[test]
fn lost_contents_are_met_by_every_access_and_go_where_pages_go() {
    with(1, 600, |sim, space, ctx| {
        let fill = |at, with| watched(&**space).fill(page(BASE + at), with, false, ctx);
        assert_eq!(fill(OTHER, Content::Lost), Err(Unfilled::Unwatched));
        (0..8).for_each(|at| assert_eq!(fill(at, Content::Lost), Ok(())));
        assert_eq!(space.usage(ctx).resident_pages, 0);
        for access in [Access::Read, Access::Write] {
            assert_eq!(space.fault(page(BASE).base(), access, ctx), Err(Fault::Poisoned));
            assert_eq!(watched(&**space).told(page(BASE), access, ctx), None);
        }
        // What the mapping forbids comes first, but for code where it may be read.
        assert_eq!(sim.fetch(&**space, page(BASE), ctx), Err(Fault::Poisoned));
        assert_eq!(space.protect(range(BASE, 600), Prot::READ, ctx), Ok(()));
        assert_eq!(sim.store(&**space, page(BASE), 1, ctx), Err(Fault::Denied));
        assert_eq!(space.protect(range(BASE, 600), RW, ctx), Ok(()));
        assert_eq!(sim.store(&**space, page(BASE), 1, ctx), Err(Fault::Poisoned));
        let mut seen = Vec::new();
        space.pages(range(BASE, 600), ctx, &mut |at, is| {
            seen.push((at.number() - BASE, is.poisoned, is.frame));
        });
        assert_eq!(seen, Vec::from_iter((0..8).map(|at| (at, true, None))));
        // Copies take its place, and zeros do not.
        assert_eq!(fill(0, Content::Zeros), Err(Unfilled::There));
        assert_eq!(fill(0, Content::Lost), Err(Unfilled::There));
        assert_eq!(fill(0, Content::Bytes(&[1; PAGE_BYTES])), Ok(()));
        assert_eq!(fill(0, Content::Lost), Err(Unfilled::There));
        assert_eq!(sim.load(&**space, page(BASE), ctx), Ok(u64::from_ne_bytes([1; 8])));
        // It is not protected, nor are empty pages that are filled with it.
        let protect = |at, on| watched(&**space).protect_pages(range(BASE + at, 1), on, ctx);
        assert_eq!((protect(1, true), protect(9, true)), (Ok(()), Ok(())));
        assert_eq!(fill(9, Content::Lost), Err(Unfilled::There));
        assert_eq!(fill(9, Content::Zeros), Err(Unfilled::There));
        assert_eq!(fill(1, Content::Bytes(&[2; PAGE_BYTES])), Ok(()));
        assert_eq!(sim.store(&**space, page(BASE + 1), 1, ctx), Ok(()));
        // Guards take its place; what removes guards leaves it.
        let advise = |at, advice| space.advise(range(BASE + at, 1), advice, ctx);
        assert_eq!(advise(2, Advice::RemoveGuards), Ok(()));
        assert_eq!(sim.load(&**space, page(BASE + 2), ctx), Err(Fault::Poisoned));
        assert_eq!(advise(2, Advice::InstallGuards), Ok(()));
        assert_eq!(sim.load(&**space, page(BASE + 2), ctx), Err(Fault::Guard));
        assert_eq!(fill(2, Content::Lost), Err(Unfilled::There));
        for (at, advice) in [(3, Advice::DontNeed), (4, Advice::Free)] {
            assert_eq!(advise(at, advice), Ok(()));
            assert_eq!(fill(at, Content::Zeros), Ok(()));
        }
        // Where it goes, and to a child, nobody has to watch.
        let away = page(BASE + 0x4000);
        assert_eq!(space.remap(range(BASE + 5, 1), 1, RemapTo::Fixed(away), ctx), Ok(away));
        assert_eq!(sim.load(&**space, away, ctx), Err(Fault::Poisoned));
        assert_eq!(watched(&**space).watch(range(BASE, 600), &|_: &Mapping| Some(None), ctx), Ok(()));
        let child = space.fork(ctx).expect("there is memory");
        for space in [space, &child] {
            for at in [6, 7, 0x4000] {
                assert_eq!(space.fault(page(BASE + at).base(), Access::Read, ctx), Err(Fault::Poisoned));
            }
        }
        assert_eq!(child.unmap(range(BASE + 6, 1), ctx), Ok(()));
        sim.audit(&*child, range(BASE, 600), ctx);
        child.clear(ctx);
        let wiped = Advice::Flags(Flags::WIPE_ON_FORK, Flags::empty());
        assert_eq!(advise(6, wiped), Ok(()));
        let child = space.fork(ctx).expect("there is memory");
        assert_eq!(child.fault(page(BASE + 6).base(), Access::Read, ctx), Ok(()));
        assert_eq!(child.fault(page(BASE + 7).base(), Access::Read, ctx), Err(Fault::Poisoned));
        child.clear(ctx);
        sim.audit(&**space, range(BASE, 600), ctx);
    });
}

/// They are the mapping's own, not the object's: so they end where the object is cut, and only a child that has copies has them.
#[test]
fn lost_contents_of_an_objects_mapping_are_a_mappings_own() {
    let sim = Sim::new(1, 2048);
    sim.cpus.on(0, |ctx| {
        let space = sim.space(&ctx);
        let file = Pages::new(sim, 3, &[1, 2, 3, 4], &ctx);
        for (at, shared) in [(0, true), (OTHER, false)] {
            let mapping = object(&file, 0, RW, shared);
            space.map(Placement::Fixed(page(BASE + at)), 4, mapping, &ctx).expect("there is room");
            watch(&*space, at, 4, Modes::MISSING, &ctx);
            for page_at in 0..4 {
                let lost = watched(&*space).fill(page(BASE + at + page_at), Content::Lost, false, &ctx);
                assert_eq!(lost, Ok(()));
            }
        }
        sim.enter(&*space, &ctx);
        let load = |at| sim.load(&*space, page(BASE + at), &ctx);
        let poisoned = Err(Fault::Poisoned);
        assert_eq!((load(1), load(OTHER + 1)), (poisoned, poisoned));
        let child = space.fork(&ctx).expect("there is memory");
        let child_reads = |at| child.fault(page(BASE + at).base(), Access::Read, &ctx);
        assert_eq!((child_reads(1), child_reads(OTHER + 1)), (Ok(()), poisoned.map(drop)));
        child.clear(&ctx);
        file.punch_page(sim, 1, &ctx);
        assert_eq!((load(1), load(OTHER + 1)), (poisoned, poisoned));
        file.resize(sim, 2, &ctx);
        file.resize(sim, 4, &ctx);
        for at in [0, OTHER] {
            assert_eq!((load(at + 1), load(at + 2)), (poisoned, Ok(0)));
            assert_eq!(space.advise(range(BASE + at, 1), Advice::DontNeed, &ctx), Ok(()));
            assert_eq!(load(at), Ok(1));
        }
        let fill = |with| watched(&*space).fill(page(BASE + 1), with, false, &ctx);
        assert_eq!(fill(Content::Object), Ok(()));
        assert_eq!((load(1), fill(Content::Lost)), (Ok(0), Err(Unfilled::There)));
        sim.leave(&*space, &ctx);
        space.clear(&ctx);
        file.free(sim, &ctx);
    });
    assert_eq!(sim.owned(), [0; Use::COUNT]);
}

#[test]
fn contents_go_with_their_frame_and_nothing_is_left() {
    with(2, 600, |sim, space, ctx| {
        let store = |at, value| sim.store(&**space, page(BASE + at), value, ctx);
        let load = |at| sim.load(&**space, page(BASE + at), ctx);
        assert_eq!(store(OTHER + 70, 5), Ok(()));
        // Another CPU has an entry too.
        std::thread::scope(|threads| {
            threads.spawn(|| {
                sim.cpus.on(1, |ctx| {
                    sim.enter(&**space, &ctx);
                    assert_eq!(sim.load(&**space, page(BASE + OTHER + 70), &ctx), Ok(5));
                });
            });
        });
        let frame = sim.frame_of(&**space, page(BASE + OTHER + 70), ctx);
        assert_eq!(transfer(&**space, (OTHER + 70, 3), 1, false, ctx), (1, None));
        sim.audit(&**space, range(BASE + OTHER, 600), ctx);
        assert!(!sim.may_store(1, page(BASE + OTHER + 70)));
        assert_eq!((load(OTHER + 70), load(3)), (Ok(0), Ok(5)));
        assert_eq!(sim.frame_of(&**space, page(BASE + 3), ctx), frame);
        assert_eq!(space.usage(ctx).resident_pages, 2);
        // What is in the way, and what isn't there.
        assert_eq!(transfer(&**space, (OTHER + 70, 3), 1, false, ctx), (0, Some(Untransferred::There)));
        assert_eq!(transfer(&**space, (OTHER + 71, 4), 1, false, ctx), (0, Some(Untransferred::Hole)));
        assert_eq!(transfer(&**space, (OTHER + 70, 4), 600, true, ctx), (530, Some(Untransferred::Unmapped)));
        assert_eq!((load(4), load(5)), (Ok(0), Err(Fault::Watched)));
        assert_eq!(transfer(&**space, (3, OTHER + 3), 1, false, ctx), (0, Some(Untransferred::Refused)));
        let refuse = |source: &Mapping, target: &Mapping| source.watch.is_some() && target.watch.is_none();
        let refused = watched(&**space).transfer(range(BASE + 3, 1), page(BASE + 8), &refuse, false, ctx);
        assert_eq!(refused, Err(Untransferred::Refused));
        // To itself.
        assert_eq!(transfer(&**space, (3, 3), 1, true, ctx), (0, Some(Untransferred::There)));
        assert_eq!(transfer(&**space, (5, 5), 1, false, ctx), (0, Some(Untransferred::Hole)));
        assert_eq!(transfer(&**space, (5, 5), 2, true, ctx), (2, None));
        // Within one mapping, to pages that have been sources, both ways.
        assert_eq!(transfer(&**space, (3, 5), 2, false, ctx), (2, None));
        assert_eq!(transfer(&**space, (3, 4), 4, true, ctx), (1, Some(Untransferred::There)));
        assert_eq!(transfer(&**space, (5, 4), 2, false, ctx), (2, None));
        assert_eq!((load(4), load(5), load(6)), (Ok(5), Ok(0), Err(Fault::Watched)));
        // Markers do not go, nor does protection.
        let fill = |at, with, protected| watched(&**space).fill(page(BASE + at), with, protected, ctx);
        assert_eq!(fill(10, Content::Lost, false), Ok(()));
        assert_eq!(transfer(&**space, (10, 11), 1, true, ctx), (0, Some(Untransferred::Marked)));
        assert_eq!(transfer(&**space, (4, 10), 1, true, ctx), (0, Some(Untransferred::There)));
        assert_eq!(watched(&**space).protect_pages(range(BASE + 12, 1), true, ctx), Ok(()));
        assert_eq!(transfer(&**space, (12, 11), 1, true, ctx), (0, Some(Untransferred::Marked)));
        assert_eq!(transfer(&**space, (4, 12), 1, true, ctx), (0, Some(Untransferred::There)));
        assert_eq!(fill(13, Content::Zeros, true), Ok(()));
        assert_eq!(transfer(&**space, (13, 14), 1, false, ctx), (1, None));
        assert_eq!(store(14, 1), Ok(()));
        assert_eq!(fill(13, Content::Zeros, false), Ok(()));
        // A source that the program has levels for.
        let managed = space.managed().expect("it has levels");
        assert_eq!(store(OTHER + 200, 8), Ok(()));
        assert_eq!(managed.manage(range(BASE + OTHER + 200, 1), Some(Level::Read), ctx), Ok(()));
        assert_eq!(transfer(&**space, (OTHER + 200, 15), 1, false, ctx), (1, None));
        assert_eq!((store(15, 9), load(15)), (Ok(()), Ok(9)));
        assert_eq!(store(OTHER + 200, 8), Err(Fault::Level(Level::Read)));
        let mut written = [0];
        assert_eq!(managed.take_dirty(range(BASE + OTHER + 200, 1), &mut written, ctx), Ok(()));
        assert_eq!(written, [1]);
        sim.audit(&**space, range(BASE, 600), ctx);
        std::thread::scope(|threads| {
            threads.spawn(|| sim.cpus.on(1, |ctx| sim.leave(&**space, &ctx)));
        });
    });
}

#[test]
fn what_a_child_has_too_does_not_go() {
    with(1, 600, |sim, space, ctx| {
        for at in 0..200 {
            assert_eq!(sim.store(&**space, page(BASE + OTHER + at), at, ctx), Ok(()));
        }
        let child = space.fork(ctx).expect("there is memory");
        assert_eq!(transfer(&**space, (OTHER, 0), 4, false, ctx), (0, Some(Untransferred::Shared)));
        assert_eq!(sim.store(&**space, page(BASE + OTHER), 7, ctx), Ok(()));
        assert_eq!(transfer(&**space, (OTHER, 0), 4, false, ctx), (1, Some(Untransferred::Shared)));
        child.clear(ctx);
        assert_eq!(transfer(&**space, (OTHER + 1, 1), 199, false, ctx), (199, None));
        for at in 0..200 {
            let value = if at == 0 { 7 } else { at };
            assert_eq!(sim.load(&**space, page(BASE + at), ctx), Ok(value));
        }
        assert_eq!(space.usage(ctx).resident_pages, 200);
        sim.audit(&**space, range(BASE, 600), ctx);
    });
}

/// The target's pages are in a slot for many, which has to be split: without memory nothing has happened.
#[test]
fn without_memory_nothing_goes() {
    with(1, 4096, |sim, space, ctx| {
        for at in 2..6 {
            assert_eq!(sim.store(&**space, page(BASE + OTHER + at), at, ctx), Ok(()));
        }
        sim.realm.trim(&ctx.pin());
        SPARES.set(true);
        let first = transfer(&**space, (OTHER + 2, 1000), 4, false, ctx);
        SPARES.set(false);
        assert_eq!(first, (0, Some(Untransferred::NoMemory)));
        assert_eq!(space.usage(ctx).resident_pages, 4);
        for at in 2..6 {
            assert_eq!(sim.load(&**space, page(BASE + OTHER + at), ctx), Ok(at));
            assert_eq!(sim.load(&**space, page(BASE + 998 + at), ctx), Err(Fault::Watched));
        }
        sim.audit(&**space, range(BASE, 1200), ctx);
        assert_eq!(transfer(&**space, (OTHER + 2, 1000), 4, false, ctx), (4, None));
        for at in 2..6 {
            assert_eq!(sim.load(&**space, page(BASE + 998 + at), ctx), Ok(at));
        }
        sim.audit(&**space, range(BASE, 1200), ctx);
    });
}

/// What is at a page, as the oracle has it.
#[derive(Clone, Copy, PartialEq, Debug)]
enum State {
    Hole,
    Guard,
    Lost,
    /// A value, and whether a child has the frame too.
    Value(u64, bool),
}

#[derive(Clone, Copy, PartialEq, Debug)]
struct Cell {
    state: State,
    protected: bool,
}

/// One page's transfer, by the rules of `Watched::transfer`.
fn expected(
    cells: &mut [Cell],
    watched: usize,
    (from, to): (usize, usize),
    holes: bool,
) -> Option<Untransferred> {
    let (Some(&source), Some(&target)) = (cells.get(from), cells.get(to)) else {
        return Some(Untransferred::Unmapped);
    };
    match (source.state, target.state) {
        _ if to >= watched => Some(Untransferred::Refused),
        (_, State::Guard | State::Lost | State::Value(..)) => Some(Untransferred::There),
        _ if target.protected => Some(Untransferred::There),
        (State::Value(_, true), _) => Some(Untransferred::Shared),
        (State::Value(value, false), _) => {
            cells[to].state = State::Value(value, false);
            cells[from] = Cell { state: State::Hole, protected: false };
            None
        }
        (State::Guard | State::Lost, _) => Some(Untransferred::Marked),
        _ if source.protected => Some(Untransferred::Marked),
        _ if holes => None,
        _ => Some(Untransferred::Hole),
    }
}

/// Random operations of two CPUs, one at a time, against the oracle.
#[test]
fn transfers_do_what_the_oracle_does() {
    /// All pages, and those from the first on that are watched.
    const PAGES: usize = 150;
    const WATCHED: usize = 80;
    for seed in 0..12 {
        let sim = Sim::new(2, 2048);
        let space = sim.cpus.on(0, |ctx| {
            let space = sim.space(&ctx);
            let room = space.map(Placement::Fixed(page(BASE)), PAGES as u64, anonymous(RW), &ctx);
            room.expect("there is room");
            watch(&*space, 0, WATCHED as u64, MODES, &ctx);
            space
        });
        (0..2).for_each(|cpu| sim.cpus.on(cpu, |ctx| sim.enter(&*space, &ctx)));
        let mut cells = [Cell { state: State::Hole, protected: false }; PAGES];
        let mut child: Option<Arc<dyn AddressSpace>> = None;
        let mut random = Random::new(seed, 0);
        let mut counts = [0; 8];
        for step in 0..1500 {
            let cpu = random.below(2) as usize;
            let at = random.below(PAGES as u64) as usize;
            let here = page(BASE + at as u64);
            let one = range(BASE + at as u64, 1);
            let is_watched = at < WATCHED;
            sim.cpus.on(cpu, |ctx| {
                let cell = &mut cells[at];
                let refused = match cell.state {
                    State::Guard => Some(Fault::Guard),
                    State::Lost => Some(Fault::Poisoned),
                    State::Hole if is_watched => Some(Fault::Watched),
                    _ => None,
                };
                match random.below(12) {
                    0..4 => {
                        let refused = refused.or(cell.protected.then_some(Fault::Watched));
                        let stored = sim.store(&*space, here, step, &ctx);
                        assert_eq!(stored, refused.map_or(Ok(()), Err), "{cell:?}");
                        if refused.is_none() {
                            cell.state = State::Value(step, false);
                        }
                    }
                    4 => {
                        if refused.is_none() && cell.state == State::Hole {
                            cell.state = State::Value(0, false);
                        }
                        let value = if let State::Value(value, _) = cell.state { value } else { 0 };
                        assert_eq!(sim.load(&*space, here, &ctx), refused.map_or(Ok(value), Err), "{cell:?}");
                    }
                    5 => {
                        let with = random.pick(&[Content::Zeros, Content::Lost]);
                        let filled = watched(&*space).fill(here, with, false, &ctx);
                        let free = *cell == Cell { state: State::Hole, protected: false };
                        let wanted = match (is_watched, free) {
                            (false, _) => Err(Unfilled::Unwatched),
                            (true, false) => Err(Unfilled::There),
                            (true, true) => Ok(()),
                        };
                        assert_eq!(filled, wanted, "{cell:?}");
                        if wanted.is_ok() {
                            let lost = matches!(with, Content::Lost);
                            cell.state = if lost { State::Lost } else { State::Value(0, false) };
                        }
                    }
                    6 => {
                        let advice =
                            random.pick(&[Advice::DontNeed, Advice::InstallGuards, Advice::RemoveGuards]);
                        assert_eq!(space.advise(one, advice, &ctx), Ok(()));
                        let is_guard = cell.state == State::Guard;
                        match advice {
                            Advice::InstallGuards => cell.state = State::Guard,
                            Advice::DontNeed if is_guard => return,
                            Advice::RemoveGuards if !is_guard => return,
                            _ => cell.state = State::Hole,
                        }
                        cell.protected = false;
                    }
                    7 if is_watched => {
                        let on = random.below(2) == 0;
                        assert_eq!(watched(&*space).protect_pages(one, on, &ctx), Ok(()));
                        let marked = matches!(cell.state, State::Guard | State::Lost);
                        cell.protected = on && !marked;
                    }
                    8 => match child.take() {
                        Some(gone) => {
                            gone.clear(&ctx);
                            for cell in &mut cells {
                                if let State::Value(_, shared) = &mut cell.state {
                                    *shared = false;
                                }
                            }
                        }
                        None => {
                            child = Some(space.fork(&ctx).expect("there is memory"));
                            for cell in &mut cells {
                                if let State::Value(_, shared) = &mut cell.state {
                                    *shared = true;
                                }
                            }
                        }
                    },
                    9 => sim.stir(range(BASE, PAGES as u64), |n| random.below(n)),
                    _ => {
                        // Some are of more pages than there are.
                        let at = if random.below(8) == 0 { PAGES - 1 } else { at };
                        let near = (at as u64).saturating_sub(3) + random.below(7);
                        let far = random.below(WATCHED as u64 + 2);
                        let to = random.pick(&[far, near]) as usize;
                        let n = 1 + random.pick(&[0, 2, 100]).min(random.below(100)) as usize;
                        let holes = random.below(3) > 0;
                        let got = transfer(&*space, (at as u64, to as u64), n as u64, holes, &ctx);
                        let (mut done, mut error) = (0, None);
                        while done < n && error.is_none() {
                            error = expected(&mut cells, WATCHED, (at + done, to + done), holes);
                            done += usize::from(error.is_none());
                        }
                        assert_eq!(got, (done as u64, error), "seed {seed}, {n} pages from {at} to {to}");
                        counts[error.map_or(0, |error| error as usize + 1)] += 1;
                    }
                }
                if step % 50 == 0 {
                    sim.audit(&*space, range(BASE, PAGES as u64), &ctx);
                }
            });
        }
        // Each way to end was taken, but for want of memory.
        assert!(counts[..7].iter().all(|&n| n > 0), "{counts:?}");
        sim.cpus.on(0, |ctx| child.iter().for_each(|child| child.clear(&ctx)));
        (0..2).for_each(|cpu| sim.cpus.on(cpu, |ctx| sim.leave(&*space, &ctx)));
        sim.cpus.on(0, |ctx| space.clear(&ctx));
        drop((space, child));
        assert_eq!(sim.owned(), [0; Use::COUNT]);
    }
}

/// Contents are moved from under threads that store to them. What was stored before is moved, and what is stored after goes to a new
/// page; meanwhile the space is forked, its tables are dropped, a source page is mapped anew, and CPUs fill their buffers as they like.
#[test]
fn no_store_gets_into_contents_that_have_gone() {
    /// Sources with a writer of their own, and one that comes and goes.
    const WRITERS: u64 = 2;
    const PAGES: u64 = WRITERS + 1;
    with(4, PAGES, |sim, space, ctx| {
        let stop = AtomicBool::new(false);
        let stored: Vec<_> = (0..WRITERS).map(|_| AtomicU64::new(0)).collect();
        let word = |at: u64| {
            let frame = sim.frame_of(&**space, page(BASE + at), ctx).expect("it has one");
            sim.entries(frame)[0].load(Ordering::SeqCst)
        };
        let (mut latest, mut moved) = ([0; WRITERS as usize], [0; PAGES as usize]);
        std::thread::scope(|threads| {
            let stop = &stop;
            for writer in 0..WRITERS {
                let stored = &stored;
                threads.spawn(move || {
                    work(sim, &**space, writer as usize + 1, 6, stop, |n, random, ctx| {
                        let own = page(BASE + OTHER + writer);
                        assert_eq!(sim.store(&**space, own, n, ctx), Ok(()));
                        stored[writer as usize].store(n, Ordering::SeqCst);
                        // Who reads what has gone finds it, or is told to wait.
                        match sim.load(&**space, page(BASE + random.below(PAGES)), ctx) {
                            Ok(_) | Err(Fault::Watched) => {}
                            Err(fault) => panic!("{fault:?}"),
                        }
                        let other = sim.store(&**space, page(BASE + OTHER + WRITERS), n, ctx);
                        assert!(matches!(other, Ok(()) | Err(Fault::NoMapping)), "{other:?}");
                    });
                });
            }
            threads.spawn(move || {
                work(sim, &**space, 3, 6, stop, |_, random, ctx| match random.below(16) {
                    0 => space.fork(ctx).expect("there is memory").clear(ctx),
                    1 => space.shed(ctx),
                    2 => {
                        let last = range(BASE + OTHER + WRITERS, 1);
                        assert_eq!(space.unmap(last, ctx), Ok(()));
                        let again = space.map(Placement::Fixed(last.start()), 1, anonymous(RW), ctx);
                        again.expect("there is room");
                    }
                    3 => sim.audit(&**space, range(BASE + OTHER, PAGES), ctx),
                    _ => sim.stir(range(BASE + OTHER, PAGES), |n| random.below(n)),
                });
            });
            let mut random = Random::new(7, 0);
            for _ in 0..100_000 {
                let at = random.below(PAGES);
                let before = stored.get(at as usize).map_or(0, |stored| stored.load(Ordering::SeqCst));
                match transfer(&**space, (OTHER + at, at), 1, false, ctx) {
                    (1, None) => {}
                    (0, Some(Untransferred::Hole | Untransferred::Shared)) => {
                        std::thread::yield_now();
                        continue;
                    }
                    (0, Some(Untransferred::Unmapped)) if at == WRITERS => continue,
                    other => panic!("{other:?}"),
                }
                let value = word(at);
                (0..8).for_each(|_| std::thread::yield_now());
                assert_eq!(word(at), value, "page {at} was stored to by its old address");
                if let Some(latest) = latest.get_mut(at as usize) {
                    // 0: taken between a fault and its store.
                    assert!(value == 0 || value > *latest, "{value} after {latest}");
                    *latest = value.max(*latest);
                    assert!(*latest >= before, "{latest}, and {before} was stored");
                }
                moved[at as usize] += 1;
                assert_eq!(space.advise(range(BASE + at, 1), Advice::DontNeed, ctx), Ok(()));
                if moved.iter().all(|&n| n >= 60) {
                    break;
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(moved.iter().all(|&n| n >= 60), "{moved:?}");
    });
}

//! The races of the designs' essays, one by one, each brought about on purpose.

mod machine;

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    mpsc,
};
use std::time::{Duration, Instant};

use addr::Prot;
use aspace::{Access, AddressSpace, Advice, Fault, Limits, Lock, Placement, RemapTo};
use machine::{Pages, RW, Sim, anonymous, object, page, range, relax};
use owned::Use;
use percpu::{CpuId, Unpinned};

const BASE: u64 = 0x1000;

/// A space on its machine that CPU 0 runs, with `pages` anonymous pages at [`BASE`].
fn one_space(sim: &'static Sim, pages: u64, ctx: &Unpinned<'_>) -> Arc<dyn AddressSpace> {
    let space = sim.space(ctx);
    space.map(Placement::Fixed(page(BASE)), pages, anonymous(RW), ctx).expect("there is room");
    sim.enter(&*space, ctx);
    space
}

fn end(sim: &'static Sim, space: &Arc<dyn AddressSpace>, ctx: &Unpinned<'_>) {
    space.clear(ctx);
    assert_eq!(sim.owned(), [0; Use::COUNT], "frames were not given back");
}

/// Where two CPUs wait for each other; not for ever, so that a failure of one is not a hang of the other.
#[derive(Default)]
struct Meeting(AtomicU64);

impl Meeting {
    /// Wait until both CPUs have come here for the `nth` time.
    fn wait(&self, nth: u64) {
        self.0.fetch_add(1, Ordering::SeqCst);
        let late = Instant::now() + Duration::from_secs(10);
        while self.0.load(Ordering::SeqCst) < 2 * nth {
            assert!(Instant::now() < late, "the other CPU does not come");
            relax();
        }
    }
}

/// CPU 1 uses a page, CPU 0 does something, CPU 1 uses it again.
fn other_cpu_after(
    before: impl Fn(&Sim, &dyn AddressSpace, &Unpinned<'_>) + Sync,
    change: impl Fn(&Sim, &dyn AddressSpace, &Unpinned<'_>) + Sync,
    after: impl Fn(&Sim, &dyn AddressSpace, &Unpinned<'_>) + Sync,
) {
    let sim = Sim::new(2, 256);
    let space = sim.cpus.on(0, |ctx| one_space(sim, 4, &ctx));
    let turn = Meeting::default();
    sim.cpus.run(|cpu, ctx| {
        if cpu == CpuId::default() {
            turn.wait(1);
            change(sim, &*space, &ctx);
            turn.wait(2);
        } else {
            sim.enter(&*space, &ctx);
            before(sim, &*space, &ctx);
            turn.wait(1);
            turn.wait(2);
            after(sim, &*space, &ctx);
        }
        turn.wait(3);
        sim.leave(&*space, &ctx);
    });
    sim.cpus.on(0, |ctx| end(sim, &space, &ctx));
}

#[test]
fn an_unmapped_page_is_gone_on_every_cpu() {
    other_cpu_after(
        |sim, space, ctx| assert_eq!(sim.store(space, page(BASE), 7, ctx), Ok(())),
        |_, space, ctx| assert_eq!(space.unmap(range(BASE, 4), ctx), Ok(())),
        |sim, space, ctx| assert_eq!(sim.load(space, page(BASE), ctx), Err(Fault::NoMapping)),
    );
}

#[test]
fn a_protected_page_is_protected_on_every_cpu() {
    other_cpu_after(
        |sim, space, ctx| assert_eq!(sim.store(space, page(BASE), 7, ctx), Ok(())),
        |_, space, ctx| assert_eq!(space.protect(range(BASE, 2), Prot::READ, ctx), Ok(())),
        |sim, space, ctx| {
            assert_eq!(sim.store(space, page(BASE), 8, ctx), Err(Fault::Denied));
            assert_eq!(sim.load(space, page(BASE), ctx), Ok(7));
        },
    );
}

#[test]
fn contents_survive_no_access_and_raising_flushes_nobody() {
    let sim = Sim::new(1, 256);
    sim.cpus.on(0, |ctx| {
        let space = one_space(sim, 4, &ctx);
        assert_eq!(sim.store(&*space, page(BASE), 7, &ctx), Ok(()));
        assert_eq!(space.protect(range(BASE, 4), Prot::empty(), &ctx), Ok(()));
        assert_eq!(sim.load(&*space, page(BASE), &ctx), Err(Fault::Denied));
        let flushes = sim.flushes.load(Ordering::Relaxed);
        assert_eq!(space.protect(range(BASE, 4), RW, &ctx), Ok(()));
        assert_eq!(sim.load(&*space, page(BASE), &ctx), Ok(7));
        assert_eq!(sim.store(&*space, page(BASE), 8, &ctx), Ok(()));
        assert_eq!(sim.flushes.load(Ordering::Relaxed), flushes);
        sim.leave(&*space, &ctx);
        end(sim, &space, &ctx);
    });
}

#[test]
fn never_touched_pages_are_unmapped_without_a_flush() {
    let sim = Sim::new(1, 256);
    sim.cpus.on(0, |ctx| {
        let space = one_space(sim, 4096, &ctx);
        assert_eq!(space.unmap(range(BASE, 4096), &ctx), Ok(()));
        assert_eq!(sim.flushes.load(Ordering::Relaxed), 0);
        sim.leave(&*space, &ctx);
        end(sim, &space, &ctx);
    });
}

#[test]
fn a_new_page_after_dont_need_is_fresh_on_every_cpu() {
    other_cpu_after(
        |sim, space, ctx| assert_eq!(sim.store(space, page(BASE), 7, ctx), Ok(())),
        |_, space, ctx| assert_eq!(space.advise(range(BASE, 4), Advice::DontNeed, ctx), Ok(())),
        |sim, space, ctx| assert_eq!(sim.load(space, page(BASE), ctx), Ok(0)),
    );
}

#[test]
fn a_guarded_page_is_gone_on_every_cpu() {
    other_cpu_after(
        |sim, space, ctx| assert_eq!(sim.store(space, page(BASE), 7, ctx), Ok(())),
        |_, space, ctx| assert_eq!(space.advise(range(BASE, 4), Advice::InstallGuards, ctx), Ok(())),
        |sim, space, ctx| {
            assert_eq!(sim.load(space, page(BASE), ctx), Err(Fault::Guard));
            assert_eq!(space.advise(range(BASE, 4), Advice::RemoveGuards, ctx), Ok(()));
            assert_eq!(sim.load(space, page(BASE), ctx), Ok(0));
        },
    );
}

/// CPU 1 uses a shared page and a copy of another; an object's pages go; CPU 1 finds neither.
fn after_a_change_of_the_object(
    change: impl Fn(&Sim, &Pages, &Unpinned<'_>) + Sync,
    shared: Result<u64, Fault>,
    copied: Result<u64, Fault>,
) {
    let (at, made) = (BASE + 100, OnceLock::new());
    other_cpu_after(
        |sim, space, ctx| {
            let pages = made.get_or_init(|| Pages::new(sim, 1, &[5, 6], ctx));
            let map = |at, mapping| space.map(Placement::Fixed(page(at)), 2, mapping, ctx);
            assert_eq!(map(at, object(pages, 0, RW, true)), Ok(range(at, 2)));
            assert_eq!(map(at + 2, object(pages, 0, RW, false)), Ok(range(at + 2, 2)));
            assert_eq!(sim.store(space, page(at), 7, ctx), Ok(()));
            assert_eq!(sim.store(space, page(at + 3), 8, ctx), Ok(()));
        },
        |sim, _, ctx| change(sim, made.get().expect("CPU 1 made it"), ctx),
        |sim, space, ctx| {
            assert_eq!(sim.load(space, page(at), ctx), shared);
            assert_eq!(sim.load(space, page(at + 3), ctx), copied);
            assert_eq!(space.unmap(range(at, 4), ctx), Ok(()));
            made.get().expect("it was made").free(sim, ctx);
        },
    );
}

#[test]
fn a_page_that_is_cut_off_is_gone_on_every_cpu() {
    let beyond = Err(Fault::BeyondObject);
    after_a_change_of_the_object(|sim, pages, ctx| pages.resize(sim, 0, ctx), beyond, beyond);
}

#[test]
fn a_page_that_is_punched_out_is_zero_on_every_cpu_and_copies_stay() {
    let punch = |sim: &Sim, pages: &Pages, ctx: &Unpinned<'_>| {
        pages.punch_page(sim, 0, ctx);
        pages.punch_page(sim, 1, ctx);
    };
    after_a_change_of_the_object(punch, Ok(0), Ok(8));
}

#[test]
fn a_moved_page_is_gone_from_the_old_place_on_every_cpu() {
    other_cpu_after(
        |sim, space, ctx| assert_eq!(sim.store(space, page(BASE), 7, ctx), Ok(())),
        |_, space, ctx| {
            let to = RemapTo::Fixed(page(BASE + 1000));
            assert_eq!(space.remap(range(BASE, 4), 600, to, ctx), Ok(page(BASE + 1000)));
        },
        |sim, space, ctx| {
            assert_eq!(sim.load(space, page(BASE), ctx), Err(Fault::NoMapping));
            assert_eq!(sim.load(space, page(BASE + 1000), ctx), Ok(7));
            assert_eq!(sim.load(space, page(BASE + 1599), ctx), Ok(0));
        },
    );
}

#[test]
fn a_copy_is_seen_by_a_cpu_that_had_the_old_frame() {
    // CPU 1 reads a page that is shared with a child; CPU 0 writes it, and the copy must not pass CPU 1 by.
    let child = std::sync::Mutex::new(None);
    other_cpu_after(
        |sim, space, ctx| {
            assert_eq!(sim.store(space, page(BASE), 7, ctx), Ok(()));
            *child.lock().unwrap() = Some(space.fork(ctx).expect("there is memory"));
            assert_eq!(sim.load(space, page(BASE), ctx), Ok(7));
        },
        |_, space, ctx| {
            // By way of the fault handler alone, so that this CPU's own buffer has no part in it.
            assert_eq!(space.fault(page(BASE).base(), Access::Write, ctx), Ok(()));
        },
        |sim, space, ctx| {
            assert_eq!(sim.store(space, page(BASE), 8, ctx), Ok(()));
            sim.leave(space, ctx);
            let child = child.lock().unwrap().take().expect("it was made");
            sim.enter(&*child, ctx);
            assert_eq!(sim.load(&*child, page(BASE), ctx), Ok(7), "the child sees its parent's store");
            sim.leave(&*child, ctx);
            child.clear(ctx);
            sim.enter(space, ctx);
            assert_eq!(sim.load(space, page(BASE), ctx), Ok(8));
        },
    );
}

#[test]
fn the_last_owner_writes_in_place() {
    let sim = Sim::new(1, 256);
    sim.cpus.on(0, |ctx| {
        let space = one_space(sim, 1, &ctx);
        assert_eq!(sim.store(&*space, page(BASE), 7, &ctx), Ok(()));
        let child = space.fork(&ctx).expect("there is memory");
        child.clear(&ctx);
        let (owned, flushes) = (sim.owned(), sim.flushes.load(Ordering::Relaxed));
        assert_eq!(sim.store(&*space, page(BASE), 8, &ctx), Ok(()));
        assert_eq!((sim.owned(), sim.flushes.load(Ordering::Relaxed)), (owned, flushes));
        sim.leave(&*space, &ctx);
        end(sim, &space, &ctx);
    });
}

/// Guards of whole tables and of single pages, among pages that were stored to, are where their pages are: in a child, in a
/// child of that, and elsewhere.
#[test]
fn guards_are_inherited_and_move() {
    const PAGES: u64 = 1500;
    let sim = Sim::new(1, 512);
    sim.cpus.on(0, |ctx| {
        let space = one_space(sim, PAGES, &ctx);
        let guarded = |n: u64| n < 1024 && n != 700 || n == 1200 || n == 1202;
        let check = |space: &dyn AddressSpace, base| {
            for n in [0, 511, 512, 699, 700, 701, 1023, 1024, 1199, 1200, 1201, 1202, 1203] {
                let expected = match n {
                    n if guarded(n) => Err(Fault::Guard),
                    1199 | 1201 => Ok(n),
                    _ => Ok(0),
                };
                assert_eq!(sim.load(space, page(base + n), &ctx), expected, "page {n}");
            }
        };
        (1199..1203).for_each(|n| assert_eq!(sim.store(&*space, page(BASE + n), n, &ctx), Ok(())));
        for (first, pages) in [(0, 1024), (1200, 1), (1202, 1)] {
            assert_eq!(space.advise(range(BASE + first, pages), Advice::InstallGuards, &ctx), Ok(()));
        }
        assert_eq!(space.advise(range(BASE + 700, 1), Advice::RemoveGuards, &ctx), Ok(()));
        let child = space.fork(&ctx).expect("there is memory");
        let grandchild = child.fork(&ctx).expect("there is memory");
        sim.leave(&*space, &ctx);
        for relative in [&grandchild, &child] {
            sim.enter(&**relative, &ctx);
            check(&**relative, BASE);
            sim.leave(&**relative, &ctx);
            relative.clear(&ctx);
        }
        sim.enter(&*space, &ctx);
        check(&*space, BASE);
        let away = BASE + 10_007;
        let moved = space.remap(range(BASE, PAGES), PAGES, RemapTo::Fixed(page(away)), &ctx);
        assert_eq!(moved, Ok(page(away)));
        check(&*space, away);
        sim.leave(&*space, &ctx);
        end(sim, &space, &ctx);
    });
}

/// Run `operation` with a look at the frames in use in the middle of its flush, and before it.
fn owned_during_flush(
    setup: impl Fn(&Sim, &dyn AddressSpace, &Unpinned<'_>),
    operation: impl Fn(&dyn AddressSpace, &Unpinned<'_>),
) {
    let sim = Sim::new(1, 4096);
    sim.cpus.on(0, |ctx| {
        let space = one_space(sim, 1024, &ctx);
        setup(sim, &*space, &ctx);
        let before: u64 = sim.owned().iter().sum();
        let least = Arc::new(AtomicU64::new(u64::MAX));
        let seen = least.clone();
        *sim.on_flush.lock().unwrap() = Some(Arc::new(move || {
            seen.fetch_min(sim.frames.stats().owned.iter().sum(), Ordering::Relaxed);
        }));
        operation(&*space, &ctx);
        *sim.on_flush.lock().unwrap() = None;
        assert!(least.load(Ordering::Relaxed) >= before, "a frame was free while CPUs could still use it");
        sim.leave(&*space, &ctx);
        end(sim, &space, &ctx);
    });
}

fn touch(sim: &Sim, space: &dyn AddressSpace, ctx: &Unpinned<'_>) {
    for i in 0..1024 {
        assert_eq!(sim.store(space, page(BASE + i), i, ctx), Ok(()));
    }
}

#[test]
fn unmap_frees_after_the_flush() {
    owned_during_flush(touch, |space, ctx| assert_eq!(space.unmap(range(BASE, 1024), ctx), Ok(())));
}

#[test]
fn dont_need_frees_after_the_flush() {
    owned_during_flush(touch, |space, ctx| {
        // One leaf table's pages: what one flush is for.
        assert_eq!(space.advise(range(BASE, 100), Advice::DontNeed, ctx), Ok(()));
    });
}

#[test]
fn guards_free_after_the_flush() {
    owned_during_flush(touch, |space, ctx| {
        assert_eq!(space.advise(range(BASE, 100), Advice::InstallGuards, ctx), Ok(()));
    });
}

#[test]
fn a_replacing_map_frees_after_the_flush() {
    owned_during_flush(touch, |space, ctx| {
        let at = Placement::Fixed(page(BASE));
        assert_eq!(space.map(at, 1024, anonymous(Prot::READ), ctx), Ok(range(BASE, 1024)));
    });
}

#[test]
fn a_copying_fault_frees_after_the_flush() {
    let child = std::cell::RefCell::new(None);
    let sim = Sim::new(1, 4096);
    sim.cpus.on(0, |ctx| {
        let space = one_space(sim, 1, &ctx);
        assert_eq!(sim.store(&*space, page(BASE), 7, &ctx), Ok(()));
        *child.borrow_mut() = Some(space.fork(&ctx).expect("there is memory"));
        assert_eq!(sim.load(&*space, page(BASE), &ctx), Ok(7));
        // The child's share goes while the parent copies; so the parent's is the last.
        let gone = child.take().expect("it was made");
        let flushed = Arc::new(AtomicBool::new(false));
        let seen = flushed.clone();
        *sim.on_flush.lock().unwrap() = Some(Arc::new(move || {
            assert_eq!(sim.frames.stats().owned[Use::Anonymous as usize], 2, "the old frame went too early");
            seen.store(true, Ordering::Relaxed);
        }));
        assert_eq!(sim.store(&*space, page(BASE), 8, &ctx), Ok(()));
        *sim.on_flush.lock().unwrap() = None;
        assert!(flushed.load(Ordering::Relaxed), "a copy went in without a flush");
        gone.clear(&ctx);
        sim.leave(&*space, &ctx);
        end(sim, &space, &ctx);
    });
}

#[test]
fn nobody_gets_in_before_the_flush_is_done() {
    let sim = Sim::new(2, 256);
    let space = sim.cpus.on(0, |ctx| {
        let space = one_space(sim, 4, &ctx);
        assert_eq!(sim.store(&*space, page(BASE), 7, &ctx), Ok(()));
        space
    });
    let (flushing, started) = mpsc::channel();
    let mapped = Arc::new(AtomicBool::new(false));
    let seen = mapped.clone();
    *sim.on_flush.lock().unwrap() = Some(Arc::new(move || {
        flushing.send(()).expect("the other CPU waits");
        // Long enough for the other CPU to get through, if nothing stops it.
        std::thread::sleep(Duration::from_millis(100));
        assert!(!seen.load(Ordering::SeqCst), "a page was mapped anew while CPUs still had the old one");
    }));
    let started = std::sync::Mutex::new(started);
    sim.cpus.run(|cpu, ctx| {
        if cpu == CpuId::default() {
            assert_eq!(space.unmap(range(BASE, 4), &ctx), Ok(()));
        } else {
            started.lock().unwrap().recv().expect("the flush begins");
            let at = Placement::FixedNoReplace(page(BASE));
            assert_eq!(space.map(at, 4, anonymous(RW), &ctx), Ok(range(BASE, 4)));
            mapped.store(true, Ordering::SeqCst);
        }
    });
    *sim.on_flush.lock().unwrap() = None;
    sim.cpus.on(0, |ctx| {
        sim.leave(&*space, &ctx);
        end(sim, &space, &ctx);
    });
}

#[test]
fn an_object_is_mapped_until_the_flush_is_done() {
    let sim = Sim::new(2, 256);
    let pages = sim.cpus.on(0, |ctx| Pages::new(sim, 1, &[41, 42], &ctx));
    let space = sim.cpus.on(0, |ctx| {
        let space = sim.space(&ctx);
        sim.enter(&*space, &ctx);
        let at = Placement::Fixed(page(BASE));
        space.map(at, 2, object(&pages, 0, RW, true), &ctx).expect("there is room");
        assert_eq!(sim.store(&*space, page(BASE), 7, &ctx), Ok(()));
        space
    });
    let (flushes, of) = (Arc::new(AtomicUsize::new(0)), pages.clone());
    let counted = flushes.clone();
    *sim.on_flush.lock().unwrap() = Some(Arc::new(move || {
        // Pages that somebody may still write can't be sealed. A later flush is for tables.
        if counted.fetch_add(1, Ordering::SeqCst) == 0 {
            assert!(!of.seal(), "an object was sealed while CPUs could write it");
        }
    }));
    sim.cpus.on(1, |ctx| {
        assert_eq!(space.unmap(range(BASE, 2), &ctx), Ok(()));
        assert!(flushes.load(Ordering::SeqCst) > 0, "nobody was shot down");
    });
    *sim.on_flush.lock().unwrap() = None;
    assert!(pages.seal(), "an object is mapped for ever");
    sim.cpus.on(0, |ctx| {
        sim.leave(&*space, &ctx);
        space.clear(&ctx);
        pages.free(sim, &ctx);
    });
}

/// The first to ask reads, and is lent the page; or writes, and has copied it for nothing.
fn two_faults_on_a_page(writes: bool) {
    let sim = Sim::new(2, 256);
    let space = sim.cpus.on(0, |ctx| sim.space(&ctx));
    let pages = sim.cpus.on(0, |ctx| Pages::new(sim, 1, &[41], &ctx));
    sim.cpus.on(0, |ctx| {
        let at = Placement::Fixed(page(BASE));
        space.map(at, 1, object(&pages, 0, RW, false), &ctx).expect("there is room");
    });
    // The first fault to ask for the object's page waits there until the second has been served in full.
    let (first_asks, asked) = mpsc::channel();
    let (second_done, go_on) = mpsc::channel();
    *pages.on_page.lock().unwrap() = Some(Box::new(move || {
        first_asks.send(()).expect("the other CPU waits");
        go_on.recv().expect("the other CPU is served");
    }));
    let ends = std::sync::Mutex::new((asked, second_done));
    sim.cpus.run(|cpu, ctx| {
        sim.enter(&*space, &ctx);
        if cpu == CpuId::default() {
            if writes {
                assert_eq!(sim.store(&*space, page(BASE), 43, &ctx), Ok(()));
            }
            let last = if writes { 43 } else { 42 };
            assert_eq!(sim.load(&*space, page(BASE), &ctx), Ok(last), "the last store is lost");
        } else {
            let (asked, second_done) = &*ends.lock().unwrap();
            asked.recv().expect("the first fault asks");
            assert_eq!(sim.store(&*space, page(BASE), 42, &ctx), Ok(()));
            second_done.send(()).expect("the first fault waits");
        }
        sim.leave(&*space, &ctx);
    });
    sim.cpus.on(0, |ctx| {
        space.clear(&ctx);
        pages.free(sim, &ctx);
        assert_eq!(sim.owned(), [0; Use::COUNT], "the loser's frame is lost");
    });
}

#[test]
fn two_faults_on_a_page_give_it_one_frame() {
    two_faults_on_a_page(false);
    two_faults_on_a_page(true);
}

#[test]
fn a_page_that_is_cut_off_while_it_is_given_does_not_stay() {
    [true, false].into_iter().for_each(cut_off_while_it_is_given);
}

/// The page is given to who may sleep, or, if it is `at_hand`, to who may not.
fn cut_off_while_it_is_given(at_hand: bool) {
    let sim = Sim::new(2, 256);
    let space = sim.cpus.on(0, |ctx| sim.space(&ctx));
    let pages = sim.cpus.on(0, |ctx| Pages::new(sim, 1, &[41, 42], &ctx));
    *pages.at_hand.lock().unwrap() = Some(at_hand);
    sim.cpus.on(0, |ctx| {
        let at = Placement::Fixed(page(BASE));
        space.map(at, 2, object(&pages, 0, RW, true), &ctx).expect("there is room");
    });
    let ((given, wait), (cut, go_on)) = (mpsc::channel(), mpsc::channel());
    *pages.on_given.lock().unwrap() = Some(Box::new(move || {
        given.send(()).expect("the other CPU waits");
        // A cut that has to wait for this fault is not waited for.
        let _ = go_on.recv_timeout(Duration::from_millis(200));
    }));
    let ends = std::sync::Mutex::new((wait, cut));
    sim.cpus.run(|cpu, ctx| {
        sim.enter(&*space, &ctx);
        if cpu == CpuId::default() {
            // What was there before the cut may be seen once.
            let _ = sim.load(&*space, page(BASE), &ctx);
        } else {
            let (wait, cut) = &*ends.lock().unwrap();
            wait.recv().expect("a page is given");
            pages.resize(sim, 0, &ctx);
            let _ = cut.send(());
        }
        sim.leave(&*space, &ctx);
    });
    sim.cpus.on(0, |ctx| {
        sim.enter(&*space, &ctx);
        assert_eq!(sim.load(&*space, page(BASE), &ctx), Err(Fault::BeyondObject));
        sim.leave(&*space, &ctx);
        end(sim, &space, &ctx);
    });
}

#[test]
fn the_root_outlives_lazy_users() {
    // One for each CPU, and one for CPUs that find no frame for theirs.
    let roots = if machine::design() == machine::Design::RadixPerCpu { 3 } else { 1 };
    let sim = Sim::new(2, 256);
    let space = sim.cpus.on(0, |ctx| one_space(sim, 1, &ctx));
    sim.cpus.on(1, |ctx| sim.enter(&*space, &ctx));
    sim.cpus.on(0, |ctx| {
        space.clear(&ctx);
        assert_eq!(sim.owned()[Use::PageTable as usize], roots);
        sim.leave(&*space, &ctx);
        assert_eq!(sim.owned()[Use::PageTable as usize], roots);
    });
    sim.cpus.on(1, |ctx| sim.leave(&*space, &ctx));
    assert_eq!(sim.owned(), [0; Use::COUNT]);
}

#[test]
fn mappings_that_stay_behind_alike_move_once_each() {
    let sim = Sim::new(1, 256);
    sim.cpus.on(0, |ctx| {
        let space = one_space(sim, 4, &ctx);
        for i in 0..4 {
            assert_eq!(sim.store(&*space, page(BASE + i), 7 + i, &ctx), Ok(()));
        }
        // Two mappings until they are left behind, unlocked.
        assert_eq!(space.lock(range(BASE, 2), Lock::Now, &Limits::NONE, &ctx), Ok(()));
        let to = RemapTo::Fixed(page(BASE + 100));
        let moved = space.remap_within(range(BASE, 4), 4, to, true, &Limits::NONE, &ctx);
        assert_eq!(moved, Ok(page(BASE + 100)));
        for i in 0..4 {
            assert_eq!(sim.load(&*space, page(BASE + 100 + i), &ctx), Ok(7 + i));
            assert_eq!(sim.load(&*space, page(BASE + i), &ctx), Ok(0));
        }
        sim.leave(&*space, &ctx);
        end(sim, &space, &ctx);
    });
}

#[test]
fn only_what_shows_an_object_from_the_start_is_detached() {
    let sim = Sim::new(1, 256);
    sim.cpus.on(0, |ctx| {
        let of = |inode: u64| Pages::new(sim, inode, &[1, 2, 3, 4, 5, 6, 7, 8], &ctx);
        let (ours, others) = (of(7), of(8));
        let space = sim.space(&ctx);
        let map = |at: u64, pages: u64, mapping| {
            space.map(Placement::Fixed(page(BASE + at)), pages, mapping, &ctx).expect("there is room");
        };
        map(0, 8, object(&ours, 0, RW, true));
        // Another object, another page of the same, a private mapping, and none at all.
        map(2, 1, object(&others, 2, RW, true));
        map(3, 1, object(&ours, 0, RW, true));
        map(4, 1, object(&ours, 4, RW, false));
        space.unmap(range(BASE + 5, 1), &ctx).expect("pages of the user's");
        for at in [0, 1, 2, 3, 4, 6, 7] {
            assert_eq!(space.fault(page(BASE + at).base(), Access::Read, &ctx), Ok(()));
        }
        let detach = || space.unmap_object(range(BASE, 8), (1, 7), &ctx);
        assert_eq!(detach(), Ok(true));
        let mapped: Vec<_> = (0..8).filter(|&at| space.find(range(BASE + at, 1), &ctx).is_some()).collect();
        assert_eq!(mapped, [2, 3, 4]);
        assert_eq!(detach(), Ok(false));
        space.clear(&ctx);
        ours.free(sim, &ctx);
        others.free(sim, &ctx);
        assert_eq!(sim.owned(), [0; Use::COUNT], "frames were not given back");
    });
}

#[test]
fn what_moves_while_its_object_is_cut_is_cut_too() {
    const PLACES: [u64; 2] = [BASE, BASE + 5000];
    let sim = Sim::new(2, 512);
    for _ in 0..100 {
        let space = sim.cpus.on(0, |ctx| sim.space(&ctx));
        let pages = sim.cpus.on(0, |ctx| Pages::new(sim, 1, &[41], &ctx));
        let (cut, last) = (AtomicBool::new(false), AtomicU64::new(0));
        sim.cpus.on(0, |ctx| {
            let at = Placement::Fixed(page(PLACES[0]));
            space.map(at, 1, object(&pages, 0, RW, true), &ctx).expect("there is room");
            // Much for the cut to go through, before and between.
            for i in 0..64 {
                let at = Placement::Fixed(page(BASE - 100 + i + if i % 2 == 0 { 1000 } else { 0 }));
                space.map(at, 1, object(&pages, 7 + 2 * i, RW, true), &ctx).expect("there is room");
            }
        });
        sim.cpus.run(|cpu, ctx| {
            sim.enter(&*space, &ctx);
            let mut at = 0;
            if cpu == CpuId::default() {
                while !cut.load(Ordering::SeqCst) {
                    // What was there before the cut may be seen until it ends.
                    let _ = sim.load(&*space, page(PLACES[at]), &ctx);
                    let to = RemapTo::Fixed(page(PLACES[1 - at]));
                    let moved = space.remap(range(PLACES[at], 1), 1, to, &ctx);
                    assert_eq!(moved, Ok(page(PLACES[1 - at])));
                    at = 1 - at;
                }
                last.store(PLACES[at], Ordering::SeqCst);
            } else {
                pages.resize(sim, 0, &ctx);
                cut.store(true, Ordering::SeqCst);
            }
            sim.leave(&*space, &ctx);
        });
        sim.cpus.on(0, |ctx| {
            sim.enter(&*space, &ctx);
            let last = page(last.load(Ordering::SeqCst));
            assert_eq!(sim.load(&*space, last, &ctx), Err(Fault::BeyondObject));
            sim.leave(&*space, &ctx);
            end(sim, &space, &ctx);
        });
    }
}

//! What `locked` alone promises: in which order threads get its lock, that the mapping found last is forgotten in time, what it
//! flushes, and that all its variants are right.

mod machine;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::channel,
    },
    thread,
    time::{Duration, Instant},
};

use addr::{PageRange, Prot};
use aspace::{Access, AddressSpace, Count, Exclude, Fault, Flush, Placement, Serial, Variant, Wait};
use machine::{Pages, RW, Random, Sim, anonymous, object, page, range, relax, storm};
use owned::Use;
use percpu::Unpinned;
use sync::pause;

const BASE: u64 = 0x1000;
/// Another page, in another leaf table.
const OTHER: u64 = BASE + 512;
/// As long as others get to queue, or to do what they should not get done.
const MOMENT: Duration = Duration::from_millis(200);
/// As long as others get to do what they must get done.
const LONG: Duration = Duration::from_secs(20);

fn space(sim: &'static Sim, variant: Variant) -> Arc<dyn AddressSpace> {
    sim.cpus
        .on(0, |ctx| Serial::locked(sim.machine(), sim.cpus.cpus(), variant, &ctx))
        .expect("there is memory")
}

fn waits() -> [Variant; 2] {
    [Wait::Sleep, Wait::Spin].map(|wait| Variant { wait, ..Variant::default() })
}

fn map(space: &dyn AddressSpace, at: u64, ctx: &Unpinned<'_>) {
    space.map(Placement::Fixed(page(at)), 1, anonymous(RW), ctx).expect("there is room");
}

fn end(sim: &'static Sim, space: &dyn AddressSpace) {
    sim.cpus.on(0, |ctx| space.clear(&ctx));
    assert_eq!(sim.owned(), [0; Use::COUNT], "frames were not given back");
}

/// CPU 0 does `first`, in the midst of which it calls what it is given; there it waits until CPU 1 has been at `second` for a
/// moment, and CPU 2, after that, at `third`. Neither must be done then.
fn one_after_the_other(
    sim: &'static Sim,
    first: impl Fn(&Unpinned<'_>, Arc<dyn Fn() + Send + Sync>) + Sync,
    second: impl Fn(&Unpinned<'_>) + Sync,
    third: impl Fn(&Unpinned<'_>) + Sync,
) {
    let (turn, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let until = |turn: &AtomicUsize, n: usize| {
        let late = Instant::now() + LONG;
        while turn.load(Ordering::SeqCst) < n {
            assert!(Instant::now() < late, "the other CPU does not come");
            relax();
        }
    };
    sim.cpus.run(|cpu, ctx| match cpu.index() {
        0 => {
            let (turn, done) = (turn.clone(), done.clone());
            let wait = move || {
                turn.store(1, Ordering::SeqCst);
                until(&turn, 3);
                thread::sleep(MOMENT);
                assert_eq!(done.load(Ordering::SeqCst), 0, "somebody is in beside the first");
            };
            first(&ctx, Arc::new(wait));
        }
        1 => {
            until(&turn, 1);
            turn.store(2, Ordering::SeqCst);
            second(&ctx);
            done.fetch_add(1, Ordering::SeqCst);
        }
        _ => {
            until(&turn, 2);
            thread::sleep(MOMENT);
            turn.store(3, Ordering::SeqCst);
            third(&ctx);
            done.fetch_add(1, Ordering::SeqCst);
        }
    });
}

#[test]
fn a_change_is_not_overtaken_by_a_fault_that_comes_later() {
    for variant in waits() {
        let sim = Sim::new(3, 256);
        let space = space(sim, variant);
        sim.cpus.on(0, |ctx| map(&*space, BASE, &ctx));
        one_after_the_other(
            sim,
            |ctx, wait| {
                *sim.on_asking.lock().unwrap() = Some((Use::Anonymous, Box::new(move || wait())));
                assert_eq!(space.fault(page(BASE).base(), Access::Write, ctx), Ok(()));
            },
            |ctx| map(&*space, OTHER, ctx),
            // It would find no mapping if it were first.
            |ctx| assert_eq!(space.fault(page(OTHER).base(), Access::Write, ctx), Ok(()), "{variant:?}"),
        );
        end(sim, &*space);
    }
}

#[test]
fn a_fault_is_not_overtaken_by_a_change_that_comes_later() {
    for variant in waits() {
        let sim = Sim::new(3, 256);
        let space = space(sim, variant);
        sim.cpus.on(0, |ctx| {
            map(&*space, BASE, &ctx);
            map(&*space, OTHER, &ctx);
            assert_eq!(space.fault(page(BASE).base(), Access::Write, &ctx), Ok(()));
        });
        one_after_the_other(
            sim,
            |ctx, wait| {
                let first = AtomicBool::new(true);
                let wait = move || {
                    if first.swap(false, Ordering::SeqCst) {
                        wait()
                    }
                };
                *sim.on_flush.lock().unwrap() = Some(Arc::new(wait));
                assert_eq!(space.unmap(range(BASE, 1), ctx), Ok(()));
            },
            // It would find no mapping if it were last.
            |ctx| assert_eq!(space.fault(page(OTHER).base(), Access::Write, ctx), Ok(()), "{variant:?}"),
            |ctx| assert_eq!(space.unmap(range(OTHER, 1), ctx), Ok(())),
        );
        *sim.on_flush.lock().unwrap() = None;
        end(sim, &*space);
    }
}

#[test]
fn faults_that_wait_for_a_change_are_let_in_together() {
    for variant in waits() {
        let sim = Sim::new(3, 256);
        let space = space(sim, variant);
        let inside = Arc::new(AtomicUsize::new(0));
        // Each of the two faults asks its object in the lock, and waits there for the other one.
        let objects = [1, 2].map(|id| {
            let pages = sim.cpus.on(0, |ctx| Pages::new(sim, id, &[id], &ctx));
            let inside = inside.clone();
            *pages.on_page.lock().unwrap() = Some(Box::new(move || {
                inside.fetch_add(1, Ordering::SeqCst);
                let late = Instant::now() + LONG;
                while inside.load(Ordering::SeqCst) < 2 {
                    assert!(Instant::now() < late, "the other fault is not let in");
                    relax();
                }
            }));
            pages
        });
        sim.cpus.on(0, |ctx| {
            map(&*space, BASE, &ctx);
            for (i, pages) in objects.iter().enumerate() {
                let at = Placement::Fixed(page(OTHER + i as u64));
                space.map(at, 1, object(pages, 0, Prot::READ, true), &ctx).expect("there is room");
            }
            assert_eq!(space.fault(page(BASE).base(), Access::Write, &ctx), Ok(()));
        });
        let fault = |i, ctx: &Unpinned<'_>| space.fault(page(OTHER + i).base(), Access::Read, ctx);
        one_after_the_other(
            sim,
            |ctx, wait| {
                let first = AtomicBool::new(true);
                let wait = move || {
                    if first.swap(false, Ordering::SeqCst) {
                        wait()
                    }
                };
                *sim.on_flush.lock().unwrap() = Some(Arc::new(wait));
                assert_eq!(space.unmap(range(BASE, 1), ctx), Ok(()));
            },
            |ctx| assert_eq!(fault(0, ctx), Ok(())),
            |ctx| assert_eq!(fault(1, ctx), Ok(())),
        );
        *sim.on_flush.lock().unwrap() = None;
        sim.cpus.on(0, |ctx| {
            space.clear(&ctx);
            objects.iter().for_each(|pages| pages.free(sim, &ctx));
        });
        assert_eq!(sim.owned(), [0; Use::COUNT], "frames were not given back");
    }
}

#[test]
fn a_page_that_is_filled_during_a_fault_keeps_that_frame() {
    let sim = Sim::new(2, 256);
    let space = space(sim, Variant::default());
    sim.cpus.on(0, |ctx| {
        map(&*space, BASE, &ctx);
        let there = space.clone();
        let meanwhile = move || {
            let fault = move || sim.cpus.on(1, |ctx| there.fault(page(BASE).base(), Access::Write, &ctx));
            assert_eq!(thread::spawn(fault).join().expect("it ends"), Ok(()));
        };
        *sim.on_asking.lock().unwrap() = Some((Use::Anonymous, Box::new(meanwhile)));
        assert_eq!(space.fault(page(BASE).base(), Access::Write, &ctx), Ok(()));
    });
    assert_eq!(sim.owned()[Use::Anonymous as usize], 1, "a page has two frames");
    end(sim, &*space);
}

#[test]
fn what_was_found_last_is_forgotten_when_it_goes() {
    let sim = Sim::new(1, 256);
    let space = space(sim, Variant::default());
    sim.cpus.on(0, |ctx| {
        let fault = |access| space.fault(page(BASE).base(), access, &ctx);
        map(&*space, BASE, &ctx);
        assert_eq!(fault(Access::Write), Ok(()));
        assert_eq!(space.protect(range(BASE, 1), Prot::READ, &ctx), Ok(()));
        assert_eq!((fault(Access::Write), fault(Access::Read)), (Err(Fault::Denied), Ok(())));
        assert_eq!(space.unmap(range(BASE, 1), &ctx), Ok(()));
        assert_eq!(fault(Access::Read), Err(Fault::NoMapping));
        map(&*space, BASE, &ctx);
        assert_eq!(fault(Access::Write), Ok(()));
    });
    end(sim, &*space);
}

#[test]
fn what_was_found_last_is_tried_first_if_that_is_wanted() {
    for last_hit in [true, false] {
        let sim = Sim::new(1, 256);
        let space = space(sim, Variant { last_hit, ..Variant::default() });
        let tried = Arc::new(AtomicBool::new(false));
        let seen = tried.clone();
        sim.cpus.on(0, |ctx| {
            map(&*space, BASE, &ctx);
            assert_eq!(space.fault(page(BASE).base(), Access::Read, &ctx), Ok(()));
            pause::once_at("last-hit", move || seen.store(true, Ordering::SeqCst));
            assert_eq!(space.fault(page(BASE).base(), Access::Write, &ctx), Ok(()));
        });
        assert_eq!(tried.load(Ordering::SeqCst), last_hit);
        end(sim, &*space);
    }
}

/// Who waits with [`Wait::Spin`] looks, and need not sleep if it is let in meanwhile; with [`Wait::Sleep`] nobody looks.
#[test]
fn who_waits_looks_before_it_sleeps_if_that_is_wanted() {
    for variant in waits() {
        let sim = Sim::new(2, 256);
        let space = space(sim, variant);
        sim.cpus.on(0, |ctx| {
            map(&*space, BASE, &ctx);
            map(&*space, OTHER, &ctx);
            assert_eq!(space.fault(page(BASE).base(), Access::Write, &ctx), Ok(()));
        });
        let ((comes, has_come), (looks, does_look)) = (channel(), channel());
        let (unmapped, is_unmapped) = channel();
        let fault = {
            let space = space.clone();
            move || {
                has_come.recv_timeout(LONG).expect("CPU 0 has the lock");
                pause::once_at("rwlock-looks", move || {
                    looks.send(()).expect("CPU 0 waits for that");
                    is_unmapped.recv_timeout(LONG).expect("CPU 0 leaves the lock");
                });
                sim.cpus.on(1, |ctx| space.fault(page(OTHER).base(), Access::Write, &ctx))
            }
        };
        let fault = thread::spawn(fault);
        let looked = Arc::new(AtomicBool::new(false));
        let (told, once) = (looked.clone(), Mutex::new(Some((comes, does_look))));
        *sim.on_flush.lock().unwrap() = Some(Arc::new(move || {
            if let Some((comes, does_look)) = once.lock().unwrap().take() {
                comes.send(()).expect("CPU 1 waits for that");
                let patience = if variant.wait == Wait::Spin { LONG / 4 } else { MOMENT };
                told.store(does_look.recv_timeout(patience).is_ok(), Ordering::SeqCst);
            }
        }));
        sim.cpus.on(0, |ctx| assert_eq!(space.unmap(range(BASE, 1), &ctx), Ok(())));
        let _ = unmapped.send(());
        assert_eq!(fault.join().expect("it ends"), Ok(()));
        *sim.on_flush.lock().unwrap() = None;
        assert_eq!(looked.load(Ordering::SeqCst), variant.wait == Wait::Spin, "{variant:?}");
        end(sim, &*space);
    }
}

#[test]
fn what_is_flushed_is_what_has_changed_or_all_of_the_space() {
    for (flush, pages) in [(Flush::Range33, 1), (Flush::Space, pagetable::USER_PAGES)] {
        let sim = Sim::new(1, 256);
        let space = space(sim, Variant { flush, ..Variant::default() });
        sim.cpus.on(0, |ctx| {
            map(&*space, BASE, &ctx);
            sim.enter(&*space, &ctx);
            assert_eq!(sim.store(&*space, page(BASE), 1, &ctx), Ok(()));
            assert_eq!(space.protect(range(BASE, 1), Prot::READ, &ctx), Ok(()));
            assert_eq!(sim.flushed.lock().unwrap().len(), pages, "{flush:?}");
            sim.leave(&*space, &ctx);
        });
        end(sim, &*space);
    }
}

/// Lets allocations of a thread fail: all of at least so many bytes, but for the first ones.
struct Heap;

thread_local! {
    static FAILS: Cell<Option<(usize, usize)>> = const { Cell::new(None) };
}

// SAFETY: the system's allocator, which may fail.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match FAILS.get() {
            Some((bytes, 0)) if layout.size() >= bytes => return std::ptr::null_mut(),
            Some((bytes, more)) if layout.size() >= bytes => FAILS.set(Some((bytes, more - 1))),
            _ => {}
        }
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's.
        unsafe { System.dealloc(at, layout) };
    }
}

#[global_allocator]
static HEAP: Heap = Heap;

/// A mapping takes the place of two others for whose removal there are no nodes, so that they stay in the tree, given up. Then room
/// is looked for.
#[test]
fn the_highest_room_is_found_beside_mappings_that_were_given_up() {
    // A page of the tree's nodes.
    const SLAB: usize = 4096;
    for others in 0..120 {
        let sim = Sim::new(1, 256);
        let space = space(sim, Variant::default());
        sim.cpus.on(0, |ctx| {
            let highest =
                |pages| space.map(Placement::Anywhere, pages, anonymous(RW), &ctx).expect("there is room");
            let old = highest(30);
            let part =
                |from, pages| PageRange::with_len(page(old.start().number() + from), pages).expect("pages");
            assert_eq!(space.protect(part(10, 10), Prot::READ, &ctx), Ok(()));
            assert_eq!(space.protect(part(20, 10), Prot::empty(), &ctx), Ok(()));
            (0..others).for_each(|i| map(&*space, BASE + 2 * i, &ctx));
            FAILS.set(Some((SLAB, 0)));
            let _ = space.protect(part(5, 24), RW, &ctx);
            FAILS.set(None);
            assert_eq!(highest(5).end(), old.start(), "with {others} others");
        });
        end(sim, &*space);
    }
}

/// What a change has made before there was no memory any more is gone.
#[test]
fn an_object_has_no_more_mappings_after_a_change_that_failed() {
    let mut failed = 0;
    for first in 0..20 {
        let sim = Sim::new(1, 256);
        let space = space(sim, Variant::default());
        sim.cpus.on(0, |ctx| {
            let pages = Pages::new(sim, 1, &[41], &ctx);
            let at = Placement::Fixed(page(BASE));
            space.map(at, 3, object(&pages, 0, RW, false), &ctx).expect("there is room");
            let named = Arc::strong_count(&pages);
            FAILS.set(Some((1, first)));
            let done = space.protect(range(BASE + 1, 1), Prot::READ, &ctx);
            FAILS.set(None);
            if done.is_err() {
                failed += 1;
                assert_eq!(Arc::strong_count(&pages), named, "with {first} allocations");
            }
            space.clear(&ctx);
            pages.free(sim, &ctx);
        });
    }
    assert!((2..20).contains(&failed), "{failed} failed");
}

/// What `f` gives while the CPU runs `space`.
fn within<T>(sim: &'static Sim, space: &dyn AddressSpace, ctx: &Unpinned<'_>, f: impl Fn() -> T) -> T {
    sim.enter(space, ctx);
    let given = f();
    sim.leave(space, ctx);
    given
}

/// Each mapping of a page has a share of it if that is wanted, however the object gives it; a copy is the mapping's own, and what is cut
/// off is given back.
#[test]
fn a_page_of_an_object_is_lent_or_counted() {
    for (count, at_hand) in
        [Count::Lent, Count::Atomic].into_iter().flat_map(|count| [(count, false), (count, true)])
    {
        let sim = Sim::new(1, 256);
        let spaces = [(); 3].map(|()| space(sim, Variant { count, ..Variant::default() }));
        sim.cpus.on(0, |ctx| {
            let pages = Pages::new(sim, 1, &[41, 42], &ctx);
            *pages.at_hand.lock().unwrap() = Some(at_hand);
            for (n, space) in spaces.iter().enumerate() {
                let shown = object(&pages, 0, RW, n > 0);
                space.map(Placement::Fixed(page(BASE)), 2, shown, &ctx).expect("there is room");
            }
            let load =
                |space: &dyn AddressSpace| within(sim, space, &ctx, || sim.load(space, page(BASE), &ctx));
            let store = |space: &dyn AddressSpace, value| {
                within(sim, space, &ctx, || sim.store(space, page(BASE), value, &ctx))
            };
            spaces.iter().for_each(|space| assert_eq!(load(&**space), Ok(41)));
            let told = |space: &dyn AddressSpace| {
                let mut told = None;
                space.pages(range(BASE, 1), &ctx, &mut |_, resident| {
                    told = Some((resident.usage, resident.sharers));
                });
                told
            };
            let (usage, sharers) = if count == Count::Lent { (Use::Lent, 0) } else { (Use::File, 3) };
            spaces.iter().for_each(|space| assert_eq!(told(&**space), Some((usage, sharers)), "{count:?}"));
            // A private mapping's copy; and a store to what is shared, which makes none.
            assert_eq!((store(&*spaces[0], 7), store(&*spaces[1], 43)), (Ok(()), Ok(())));
            assert_eq!([0, 1, 2].map(|n: usize| load(&*spaces[n])), [Ok(7), Ok(43), Ok(43)]);
            assert_eq!(told(&*spaces[0]), Some((Use::Anonymous, 0)));
            assert_eq!(told(&*spaces[1]), Some((usage, sharers.min(2))));
            pages.resize(sim, 0, &ctx);
            assert!(load(&*spaces[1]).is_err());
            spaces.iter().for_each(|space| space.clear(&ctx));
            pages.free(sim, &ctx);
        });
        spaces.iter().for_each(|space| end(sim, &**space));
    }
}

#[test]
fn all_variants_are_right() {
    for wait in [Wait::Sleep, Wait::Spin] {
        for (last_hit, flush) in [(true, Flush::Space), (false, Flush::Range33), (false, Flush::Space)] {
            let sim = Sim::new(4, 512);
            let count = if last_hit { Count::Lent } else { Count::Atomic };
            let space = space(sim, Variant { wait, last_hit, flush, count });
            sim.cpus.run(|cpu, ctx| storm(sim, &*space, BASE, &mut Random::new(1, cpu.index()), 300, &ctx));
            end(sim, &*space);
        }
    }
}

#[test]
fn options_are_known_by_name() {
    let mut variant = Variant::default();
    let said = [("rwlock", "spin"), ("last-hit", "off"), ("flush", "space"), ("count", "atomic")];
    assert!(said.into_iter().all(|(key, value)| variant.set(key, value)));
    assert_eq!(
        variant,
        Variant { wait: Wait::Spin, last_hit: false, flush: Flush::Space, count: Count::Atomic }
    );
    assert!(
        !variant.set("flush", "nothing") && !variant.set("count", "never") && !variant.set("lock", "spin")
    );
    let excludes = ["stock", "fault-lock", "hybrid", "per-mapping", "rcu"].map(Exclude::from_name);
    let wanted =
        [Exclude::Stock, Exclude::FaultLock, Exclude::Hybrid, Exclude::PerMapping, Exclude::default()];
    assert_eq!(excludes, wanted.map(Some));
    assert_eq!(Exclude::from_name("Rcu"), None);
}

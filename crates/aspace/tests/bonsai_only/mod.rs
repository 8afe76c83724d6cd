//! What the Bonsai tree's address space promises beyond others, and its races, each brought about on purpose: a CPU is stopped
//! where it asks for a frame, in the middle of a fault, or where it begins to flush, and others go on.

mod directed;
mod excluded;
mod flood;
#[path = "../machine/mod.rs"]
mod machine;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    time::Duration,
};

use addr::Prot;
use aspace::{Access, AddressSpace, Advice, Exclude, Fault, Placement, RemapTo, Serial};
use machine::{Pages, RW, Random, Sim, anonymous, object, page, range, storm};
use owned::Use;
use percpu::Unpinned;

const BASE: u64 = 0x1000;
/// A page in another leaf table, of the same directory.
const OTHER: u64 = BASE + 512;
/// What faults may exclude.
const ALL: [Exclude; 5] =
    [Exclude::Stock, Exclude::FaultLock, Exclude::Hybrid, Exclude::PerMapping, Exclude::Rcu];
/// As long as others get to do what they should not get done.
const MOMENT: Duration = Duration::from_millis(200);
/// As long as others get to do what they must get done.
const LONG: Duration = Duration::from_secs(20);

fn map(space: &dyn AddressSpace, at: u64, pages: u64, ctx: &Unpinned<'_>) {
    let at = Placement::Fixed(page(at));
    space.map(at, pages, anonymous(RW), ctx).expect("there is room");
}

/// A space that CPU 0 runs, with a page at [`BASE`] and two behind it, and one at [`OTHER`].
fn two_leaves(sim: &'static Sim) -> Arc<dyn AddressSpace> {
    sim.cpus.on(0, |ctx| {
        let space = sim.space(&ctx);
        map(&*space, BASE, 3, &ctx);
        map(&*space, OTHER, 1, &ctx);
        sim.enter(&*space, &ctx);
        space
    })
}

fn end(sim: &'static Sim, space: &dyn AddressSpace) {
    sim.cpus.on(0, |ctx| {
        sim.leave(space, &ctx);
        space.clear(&ctx);
    });
    assert_eq!(sim.owned(), [0; Use::COUNT], "frames were not given back");
}

/// Two ways between a CPU that stops and one that goes on.
struct Stop {
    stopped: Mutex<Receiver<()>>,
    done: Mutex<Sender<()>>,
}

impl Stop {
    /// What the CPU that stops has to call, and the rest.
    fn new(patience: Duration) -> (impl Fn() + Send + Sync, Self) {
        let ((stopped, sees), (done, goes_on)) = (channel(), channel());
        let goes_on = Mutex::new(goes_on);
        let stop = move || {
            if stopped.send(()).is_ok() {
                let _ = goes_on.lock().unwrap().recv_timeout(patience);
            }
        };
        (stop, Self { stopped: Mutex::new(sees), done: Mutex::new(done) })
    }
    /// Do `f` while the other CPU is stopped. That one goes on even if `f` fails.
    fn meanwhile<R>(&self, f: impl FnOnce() -> R) -> R {
        struct Done<'a>(&'a Stop);
        impl Drop for Done<'_> {
            fn drop(&mut self) {
                let _ = self.0.done.lock().map(|done| done.send(()));
            }
        }
        self.stopped.lock().unwrap().recv_timeout(LONG).expect("the other CPU stops");
        let _done = Done(self);
        f()
    }
}

/// CPU 0 stores to page `at`. While it asks for a frame for `usage`, CPU 1 does `meanwhile`.
fn in_the_middle_of_a_fault(
    sim: &'static Sim,
    space: &dyn AddressSpace,
    at: u64,
    usage: Use,
    meanwhile: impl Fn(&Unpinned<'_>) + Sync,
) -> Result<(), Fault> {
    let answer = Mutex::new(None);
    let (stop, other) = Stop::new(LONG);
    *sim.on_asking.lock().unwrap() = Some((usage, Box::new(stop)));
    sim.cpus.run(|cpu, ctx| {
        if cpu.index() == 0 {
            *answer.lock().unwrap() = Some(sim.store(space, page(at), 7, &ctx));
        } else if cpu.index() == 1 {
            other.meanwhile(|| meanwhile(&ctx));
        }
    });
    answer.into_inner().unwrap().expect("there is an answer")
}

#[test]
fn r3_a_page_that_is_unmapped_during_a_fault_stays_empty() {
    let sim = Sim::new(2, 256);
    let space = two_leaves(sim);
    // So that there is a table, and that it stays.
    sim.cpus.on(0, |ctx| assert_eq!(sim.store(&*space, page(BASE + 1), 1, &ctx), Ok(())));
    let answer = in_the_middle_of_a_fault(sim, &*space, BASE, Use::Anonymous, |ctx| {
        assert_eq!(space.unmap(range(BASE, 1), ctx), Ok(()));
    });
    assert_eq!(answer, Err(Fault::NoMapping));
    sim.cpus.on(0, |ctx| assert_eq!(sim.frame_of(&*space, page(BASE), &ctx), None));
    end(sim, &*space);
}

#[test]
fn r4_no_table_is_made_for_what_was_unmapped_during_the_fault() {
    for usage in [Use::Anonymous, Use::PageTable] {
        let sim = Sim::new(2, 256);
        let space = two_leaves(sim);
        let answer = in_the_middle_of_a_fault(sim, &*space, BASE, usage, |ctx| {
            assert_eq!(space.unmap(range(BASE, 3), ctx), Ok(()));
        });
        assert_eq!(answer, Err(Fault::NoMapping));
        let tables = sim.cpus.on(0, |ctx| space.usage(&ctx).table_pages);
        // One that was linked before the other CPU began stays, until something near it is unmapped.
        assert!(tables == 1 || usage == Use::PageTable, "{tables} tables for nothing");
        end(sim, &*space);
    }
}

#[test]
fn r5_a_page_that_is_filled_during_a_fault_keeps_that_frame() {
    let sim = Sim::new(2, 256);
    let space = two_leaves(sim);
    let answer = in_the_middle_of_a_fault(sim, &*space, BASE, Use::Anonymous, |ctx| {
        sim.enter(&*space, ctx);
        assert_eq!(sim.store(&*space, page(BASE), 8, ctx), Ok(()));
        sim.leave(&*space, ctx);
    });
    assert_eq!(answer, Ok(()));
    assert_eq!(sim.owned()[Use::Anonymous as usize], 1, "a page has two frames");
    sim.cpus.on(0, |ctx| assert_eq!(sim.load(&*space, page(BASE), &ctx), Ok(7)));
    end(sim, &*space);
}

#[test]
fn r6_a_table_stays_allocated_while_a_fault_walks_it() {
    let sim = Sim::new(2, 256);
    let space = two_leaves(sim);
    sim.cpus.on(0, |ctx| assert_eq!(sim.store(&*space, page(BASE), 1, &ctx), Ok(())));
    let tables = || sim.frames.stats().owned[Use::PageTable as usize];
    assert_eq!(tables(), 4);
    // Between the directory and the leaf that it does not have yet.
    let answer = in_the_middle_of_a_fault(sim, &*space, OTHER, Use::PageTable, |ctx| {
        assert_eq!(space.unmap(range(BASE, 600), ctx), Ok(()));
        (0..32).for_each(|_| sim.tick(ctx));
        assert_eq!(tables(), 4, "a table was freed while a fault walks it");
    });
    assert_eq!(answer, Err(Fault::NoMapping));
    let tables = sim.owned()[Use::PageTable as usize];
    assert_eq!(tables, 1, "tables are left");
    end(sim, &*space);
}

#[test]
fn r8_a_page_that_is_protected_during_a_fault_is_not_writable() {
    let sim = Sim::new(2, 256);
    let space = two_leaves(sim);
    let answer = in_the_middle_of_a_fault(sim, &*space, BASE, Use::Anonymous, |ctx| {
        assert_eq!(space.protect(range(BASE, 2), Prot::READ, ctx), Ok(()));
    });
    assert_eq!(answer, Err(Fault::Denied));
    sim.cpus.on(0, |ctx| {
        assert_eq!(sim.load(&*space, page(BASE), &ctx), Ok(0));
        sim.audit(&*space, range(BASE, 2), &ctx);
    });
    end(sim, &*space);
}

#[test]
fn r7_a_table_goes_after_the_flush_also_if_no_page_of_it_was_there() {
    let sim = Sim::new(2, 256);
    let space = two_leaves(sim);
    sim.cpus.on(1, |ctx| sim.enter(&*space, &ctx));
    sim.cpus.on(0, |ctx| {
        assert_eq!(sim.store(&*space, page(BASE), 1, &ctx), Ok(()));
        assert_eq!(space.advise(range(BASE, 3), Advice::DontNeed, &ctx), Ok(()));
        // CPU 1 walks, finds nothing, and keeps in mind where the tables are.
        sim.stir(range(BASE, 1), |n| n - 1);
        assert_eq!(space.unmap(range(BASE, 3), &ctx), Ok(()));
    });
    // The checker looks at what is freed here.
    assert_eq!(sim.owned()[Use::PageTable as usize], 3);
    sim.cpus.on(1, |ctx| sim.leave(&*space, &ctx));
    end(sim, &*space);
}

/// CPU 0 does `operation`. While it begins its first flush CPU 1 does `other`, which must not be done before the flush is.
fn waits_for_the_flush(
    sim: &'static Sim,
    operation: impl Fn(&Unpinned<'_>) + Sync,
    other: impl Fn(&Unpinned<'_>) + Sync,
) {
    let (stop, rest) = Stop::new(MOMENT);
    let early = Arc::new(AtomicBool::new(false));
    let (first, too_early) = (AtomicBool::new(true), early.clone());
    let done = Arc::new(AtomicBool::new(false));
    let seen = done.clone();
    *sim.on_flush.lock().unwrap() = Some(Arc::new(move || {
        if first.swap(false, Ordering::SeqCst) {
            stop();
            too_early.store(seen.load(Ordering::SeqCst), Ordering::SeqCst);
        }
    }));
    sim.cpus.run(|cpu, ctx| match cpu.index() {
        0 => operation(&ctx),
        1 => rest.meanwhile(|| {
            other(&ctx);
            done.store(true, Ordering::SeqCst);
        }),
        _ => {}
    });
    *sim.on_flush.lock().unwrap() = None;
    assert!(!early.load(Ordering::SeqCst), "it was not waited for the flush");
}

#[test]
fn r8_the_old_protection_is_not_found_while_entries_change() {
    let sim = Sim::new(2, 256);
    let space = two_leaves(sim);
    sim.cpus.on(0, |ctx| assert_eq!(sim.store(&*space, page(BASE + 1), 1, &ctx), Ok(())));
    waits_for_the_flush(
        sim,
        |ctx| assert_eq!(space.protect(range(BASE, 3), Prot::READ, ctx), Ok(())),
        |ctx| assert_eq!(space.fault(page(BASE).base(), Access::Write, ctx), Err(Fault::Denied)),
    );
    end(sim, &*space);
}

#[test]
fn r17_what_replaces_a_mapping_is_not_found_before_the_flush() {
    let sim = Sim::new(2, 256);
    let space = two_leaves(sim);
    sim.cpus.on(0, |ctx| assert_eq!(sim.store(&*space, page(BASE), 1, &ctx), Ok(())));
    waits_for_the_flush(
        sim,
        |ctx| map(&*space, BASE, 3, ctx),
        |ctx| {
            sim.enter(&*space, ctx);
            assert_eq!(sim.load(&*space, page(BASE), ctx), Ok(0));
            sim.leave(&*space, ctx);
        },
    );
    end(sim, &*space);
}

#[test]
fn r18_what_moves_is_found_nowhere_before_the_flush() {
    let sim = Sim::new(2, 256);
    let space = two_leaves(sim);
    sim.cpus.on(0, |ctx| assert_eq!(sim.store(&*space, page(BASE), 1, &ctx), Ok(())));
    waits_for_the_flush(
        sim,
        |ctx| {
            let to = page(BASE + 100);
            assert_eq!(space.remap(range(BASE, 3), 3, RemapTo::Fixed(to), ctx), Ok(to));
        },
        |ctx| {
            sim.enter(&*space, ctx);
            assert_eq!(sim.load(&*space, page(BASE), ctx), Err(Fault::NoMapping));
            assert_eq!(sim.load(&*space, page(BASE + 100), ctx), Ok(1));
            sim.leave(&*space, ctx);
        },
    );
    end(sim, &*space);
}

#[test]
fn r13_no_empty_page_is_filled_between_fork_and_its_flush() {
    let sim = Sim::new(2, 256);
    let space = two_leaves(sim);
    sim.cpus.on(0, |ctx| assert_eq!(sim.store(&*space, page(BASE), 1, &ctx), Ok(())));
    let child = Mutex::new(None);
    waits_for_the_flush(
        sim,
        |ctx| *child.lock().unwrap() = Some(space.fork(ctx).expect("there is memory")),
        |ctx| assert_eq!(space.fault(page(BASE + 1).base(), Access::Write, ctx), Ok(())),
    );
    let child = child.into_inner().unwrap().expect("a child");
    sim.cpus.on(0, |ctx| child.clear(&ctx));
    end(sim, &*space);
}

#[test]
fn r13_no_store_is_lost_that_comes_between_fork_and_its_flush() {
    let sim = Sim::new(3, 256);
    let space = two_leaves(sim);
    for cpu in [1, 2] {
        sim.cpus.on(cpu, |ctx| sim.enter(&*space, &ctx));
    }
    sim.cpus.on(2, |ctx| assert_eq!(sim.store(&*space, page(BASE), 2, &ctx), Ok(())));
    let child = Mutex::new(None);
    let (stop_fork, fork) = Stop::new(LONG);
    let (copying, copied) = channel::<()>();
    let (copying, copied) = (Mutex::new(copying), Mutex::new(copied));
    let first = AtomicBool::new(true);
    *sim.on_flush.lock().unwrap() = Some(Arc::new(move || {
        if first.swap(false, Ordering::SeqCst) {
            stop_fork();
        }
    }));
    sim.cpus.run(|cpu, ctx| match cpu.index() {
        0 => *child.lock().unwrap() = Some(space.fork(&ctx).expect("there is memory")),
        1 => {
            copied.lock().unwrap().recv_timeout(LONG).expect("fork is at its flush");
            assert_eq!(space.fault(page(BASE).base(), Access::Write, &ctx), Ok(()));
        }
        _ => fork.meanwhile(|| {
            copying.lock().unwrap().send(()).expect("CPU 1 waits");
            std::thread::sleep(MOMENT);
            // With a translation from before the fork, which is not flushed yet.
            assert_eq!(sim.store(&*space, page(BASE), 3, &ctx), Ok(()));
        }),
    });
    *sim.on_flush.lock().unwrap() = None;
    sim.cpus.on(0, |ctx| {
        assert_eq!(sim.load(&*space, page(BASE), &ctx), Ok(3), "a store is lost");
        child.lock().unwrap().take().expect("it was made").clear(&ctx);
    });
    for cpu in [1, 2] {
        sim.cpus.on(cpu, |ctx| sim.leave(&*space, &ctx));
    }
    end(sim, &*space);
}

#[test]
fn r19_contents_that_are_given_up_go_after_the_flush_of_who_has_protected_them() {
    let sim = Sim::new(3, 256);
    let space = two_leaves(sim);
    sim.cpus.on(2, |ctx| {
        sim.enter(&*space, &ctx);
        assert_eq!(sim.store(&*space, page(BASE), 1, &ctx), Ok(()));
    });
    let (stop, rest) = Stop::new(MOMENT);
    *sim.on_flush.lock().unwrap() = Some(Arc::new(stop));
    sim.cpus.run(|cpu, ctx| match cpu.index() {
        0 => assert_eq!(space.protect(range(BASE, 1), Prot::empty(), &ctx), Ok(())),
        // The checker sees whether a CPU still has the frame when it goes.
        1 => rest.meanwhile(|| assert_eq!(space.advise(range(BASE, 1), Advice::DontNeed, &ctx), Ok(()))),
        _ => {}
    });
    *sim.on_flush.lock().unwrap() = None;
    sim.cpus.on(2, |ctx| sim.leave(&*space, &ctx));
    end(sim, &*space);
}

#[test]
fn faults_go_on_while_mappings_change() {
    let sim = Sim::new(2, 256);
    let space = two_leaves(sim);
    sim.cpus.on(0, |ctx| assert_eq!(sim.store(&*space, page(BASE), 1, &ctx), Ok(())));
    let (stop, rest) = Stop::new(LONG);
    let done = Arc::new(AtomicBool::new(false));
    let seen = done.clone();
    *sim.on_flush.lock().unwrap() = Some(Arc::new(move || {
        stop();
        assert!(seen.load(Ordering::SeqCst), "a fault has waited for an unmapping of other pages");
    }));
    sim.cpus.run(|cpu, ctx| match cpu.index() {
        0 => assert_eq!(space.unmap(range(BASE, 1), &ctx), Ok(())),
        _ => rest.meanwhile(|| {
            // A page of what stays of the mapping, and one of another.
            assert_eq!(space.fault(page(BASE + 1).base(), Access::Write, &ctx), Ok(()));
            assert_eq!(space.fault(page(OTHER).base(), Access::Write, &ctx), Ok(()));
            done.store(true, Ordering::SeqCst);
        }),
    });
    *sim.on_flush.lock().unwrap() = None;
    end(sim, &*space);
}

#[test]
fn an_object_is_asked_by_who_may_sleep() {
    for exclude in ALL {
        let sim = Sim::new(1, 256);
        sim.cpus.on(0, |ctx| {
            let space = Serial::bonsai(sim.machine(), sim.realm, exclude, &ctx).expect("there is memory");
            let pages = Pages::new(sim, 1, &[41, 42], &ctx);
            *pages.at_hand.lock().unwrap() = Some(false);
            let at = Placement::Fixed(page(BASE));
            space.map(at, 2, object(&pages, 0, RW, true), &ctx).expect("there is room");
            sim.enter(&*space, &ctx);
            assert_eq!(sim.load(&*space, page(BASE + 1), &ctx), Ok(42), "{exclude:?}");
            sim.leave(&*space, &ctx);
            space.clear(&ctx);
            pages.free(sim, &ctx);
        });
        assert_eq!(sim.owned(), [0; Use::COUNT]);
    }
}

#[test]
fn what_an_object_has_at_hand_is_not_asked_for() {
    let sim = Sim::new(1, 256);
    sim.cpus.on(0, |ctx| {
        let space = sim.space(&ctx);
        let pages = Pages::new(sim, 1, &[41, 42], &ctx);
        let (shared, private) = (BASE, BASE + 1000);
        for (at, whose) in [(shared, true), (private, false)] {
            let mapping = object(&pages, 0, RW, whose);
            space.map(Placement::Fixed(page(at)), 2, mapping, &ctx).expect("there is room");
        }
        sim.enter(&*space, &ctx);
        *pages.at_hand.lock().unwrap() = Some(true);
        let users = Arc::strong_count(&pages);
        // In a section nobody may sleep, and nobody counts who uses the object.
        let (of, seen) = (Arc::downgrade(&pages), Arc::new(AtomicUsize::new(0)));
        let count = seen.clone();
        let look = move || {
            assert_eq!(of.strong_count(), users, "a fault counts as a user of the object");
            count.fetch_add(1, Ordering::SeqCst);
        };
        for (at, value) in [(shared, 41), (private + 1, 42)] {
            *pages.on_given.lock().unwrap() = Some(Box::new(look.clone()));
            assert_eq!(sim.load(&*space, page(at), &ctx), Ok(value));
        }
        *pages.on_given.lock().unwrap() = Some(Box::new(look.clone()));
        assert_eq!(sim.store(&*space, page(private), 7, &ctx), Ok(()), "a copy");
        assert_eq!(sim.load(&*space, page(shared), &ctx), Ok(41));
        assert_eq!(seen.load(Ordering::SeqCst), 3);
        sim.leave(&*space, &ctx);
        space.clear(&ctx);
        pages.free(sim, &ctx);
    });
    assert_eq!(sim.owned(), [0; Use::COUNT]);
}

#[test]
fn all_that_faults_may_exclude_is_right() {
    for exclude in ALL {
        let sim = Sim::new(4, 512);
        let space = sim.cpus.on(0, |ctx| Serial::bonsai(sim.machine(), sim.realm, exclude, &ctx));
        let space = space.expect("there is memory");
        sim.cpus.run(|cpu, ctx| storm(sim, &*space, BASE, &mut Random::new(1, cpu.index()), 600, &ctx));
        sim.cpus.on(0, |ctx| space.clear(&ctx));
        assert_eq!(sim.owned(), [0; Use::COUNT], "{exclude:?}: frames were not given back");
    }
}

//! The rest of the races that the module text of `bonsai.rs` lists, each brought about on purpose: where a place in the source is
//! marked for that, the CPU that comes there has another go on in the meantime.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::channel,
    },
    thread,
};

use aspace::{Access, Flags, Limits, Mapping};
use sync::pause;

use super::*;

/// Have `f` done by CPU `cpu`, by another thread than this one, which is in the midst of something.
fn by_another(sim: &'static Sim, cpu: usize, f: impl Fn(&Unpinned<'_>) + Send + 'static) {
    thread::spawn(move || sim.cpus.on(cpu, |ctx| f(&ctx))).join().expect("it ends");
}

#[test]
fn r1_a_page_that_stays_is_found_while_its_mapping_is_split() {
    let sim = Sim::new(2, 256);
    let space = two_leaves(sim);
    sim.cpus.on(0, |ctx| {
        let (there, went_on) = (space.clone(), Arc::new(AtomicBool::new(false)));
        let seen = went_on.clone();
        pause::once_at("bonsai-pieces", move || {
            let (done, is_done) = channel();
            thread::spawn(move || {
                sim.cpus.on(1, |ctx| {
                    let answer = there.fault(page(BASE + 2).base(), Access::Write, &ctx);
                    let _ = done.send(answer);
                });
            });
            let answer = is_done.recv_timeout(LONG / 4);
            seen.store(answer == Ok(Ok(())), Ordering::SeqCst);
        });
        assert_eq!(space.protect(range(BASE + 1, 1), Prot::READ, &ctx), Ok(()));
        assert!(went_on.load(Ordering::SeqCst), "a fault has waited, or was refused");
    });
    end(sim, &*space);
}

#[test]
fn r2_a_page_that_a_stack_grows_to_is_not_refused_before_the_tree_has_it() {
    let sim = Sim::new(2, 256);
    let space = sim.cpus.on(0, |ctx| sim.space(&ctx));
    sim.cpus.on(0, |ctx| {
        let stack = Mapping { flags: Flags::GROWS_DOWN, ..anonymous(RW) };
        space.map(Placement::Fixed(page(BASE)), 3, stack, &ctx).expect("there is room");
        sim.enter(&*space, &ctx);
        // Before it has grown the page is nobody's.
        assert_eq!(space.fault(page(BASE - 2).base(), Access::Write, &ctx), Err(Fault::NoMapping));
        let (there, (answers, answer)) = (space.clone(), channel());
        pause::once_at("bonsai-pieces", move || {
            thread::spawn(move || {
                sim.cpus.on(1, |ctx| {
                    let _ = answers.send(there.fault(page(BASE - 2).base(), Access::Write, &ctx));
                });
            });
            // It asks the list, which this CPU has locked.
            thread::sleep(MOMENT);
        });
        assert_eq!(space.grow(page(BASE - 2).base(), &Limits::NONE, &ctx), Ok(()));
        assert_eq!(answer.recv_timeout(LONG), Ok(Ok(())), "the stack has grown");
    });
    end(sim, &*space);
}

#[test]
fn r9_a_page_that_an_object_gave_is_not_put_into_another_mapping() {
    let sim = Sim::new(2, 256);
    let space = two_leaves(sim);
    let [first, second] =
        [1, 2].map(|id| sim.cpus.on(0, |ctx| Pages::new(sim, id, &[10 * id, 10 * id + 1], &ctx)));
    // Who asks in the section finds the number changed (R10).
    *first.at_hand.lock().unwrap() = Some(false);
    let map_object = |pages: &Arc<Pages>, space: &dyn AddressSpace, ctx: &Unpinned<'_>| {
        space.map(Placement::Fixed(page(BASE)), 2, object(pages, 0, RW, true), ctx).expect("there is room");
    };
    sim.cpus.on(0, |ctx| map_object(&first, &*space, &ctx));
    let (there, other) = (space.clone(), second.clone());
    // The fault is in no section now, so what it has found may be reused.
    *first.on_given.lock().unwrap() = Some(Box::new(move || {
        let (there, other) = (there.clone(), other.clone());
        by_another(sim, 1, move |ctx| {
            assert_eq!(there.unmap(range(BASE, 2), ctx), Ok(()));
            (0..32).for_each(|_| sim.tick(ctx));
            map_object(&other, &*there, ctx);
        });
    }));
    sim.cpus.on(0, |ctx| assert_eq!(sim.load(&*space, page(BASE), &ctx), Ok(20), "not the second's page"));
    sim.cpus.on(0, |ctx| {
        sim.leave(&*space, &ctx);
        space.clear(&ctx);
        [first, second].iter().for_each(|pages| pages.free(sim, &ctx));
    });
    assert_eq!(sim.owned(), [0; Use::COUNT]);
}

#[test]
fn r9_what_a_fault_has_found_stays_allocated_in_its_section() {
    let sim = Sim::new(2, 256);
    let space = two_leaves(sim);
    let pages = sim.cpus.on(0, |ctx| {
        let pages = Pages::new(sim, 1, &[41], &ctx);
        space
            .map(Placement::Fixed(page(BASE)), 1, object(&pages, 0, RW, false), &ctx)
            .expect("there is room");
        assert_eq!(sim.load(&*space, page(BASE), &ctx), Ok(41));
        pages
    });
    let named = Arc::downgrade(&pages);
    // A copy is made in the section.
    let answer = in_the_middle_of_a_fault(sim, &*space, BASE, Use::Anonymous, |ctx| {
        assert_eq!(space.unmap(range(BASE, 1), ctx), Ok(()));
        (0..32).for_each(|_| sim.tick(ctx));
        assert_eq!(named.strong_count(), 2, "a mapping has ended while a fault is at it");
    });
    assert_eq!(answer, Err(Fault::NoMapping));
    sim.cpus.on(0, |ctx| pages.free(sim, &ctx));
    end(sim, &*space);
    assert_eq!(named.strong_count(), 1, "a mapping is left");
}

#[test]
fn r12_nobody_stores_to_a_copy_while_others_read_what_it_is_a_copy_of() {
    let sim = Sim::new(3, 256);
    let space = two_leaves(sim);
    let child = sim.cpus.on(0, |ctx| {
        assert_eq!(sim.store(&*space, page(BASE), 1, &ctx), Ok(()));
        space.fork(&ctx).expect("there is memory")
    });
    for cpu in [1, 2] {
        sim.cpus.on(cpu, |ctx| sim.enter(&*space, &ctx));
    }
    sim.cpus.on(1, |ctx| assert_eq!(sim.load(&*space, page(BASE), &ctx), Ok(1)));
    let early = Arc::new(AtomicBool::new(false));
    let stored = early.clone();
    *sim.on_flush.lock().unwrap() = Some(Arc::new(move || {
        // CPU 1 still reads the old frame.
        stored.fetch_or(sim.may_store(2, page(BASE)), Ordering::SeqCst);
    }));
    let flushes = sim.flushes.load(Ordering::Relaxed);
    sim.cpus.on(0, |ctx| assert_eq!(sim.store(&*space, page(BASE), 2, &ctx), Ok(())));
    *sim.on_flush.lock().unwrap() = None;
    assert!(sim.flushes.load(Ordering::Relaxed) > flushes, "the copy was not flushed");
    assert!(!early.load(Ordering::SeqCst), "a store to the copy before the flush");
    assert!(sim.may_store(2, page(BASE)), "and after it");
    for cpu in [1, 2] {
        sim.cpus.on(cpu, |ctx| {
            assert_eq!(sim.load(&*space, page(BASE), &ctx), Ok(2));
            sim.leave(&*space, &ctx);
        });
    }
    sim.cpus.on(0, |ctx| child.clear(&ctx));
    end(sim, &*space);
}

#[test]
fn r14_who_had_the_only_share_does_not_keep_it_through_a_fork() {
    let sim = Sim::new(2, 256);
    let space = two_leaves(sim);
    let child = sim.cpus.on(0, |ctx| {
        assert_eq!(sim.store(&*space, page(BASE), 1, &ctx), Ok(()));
        // What is left is an entry that does not allow stores, to a frame of which this space has the only share.
        space.fork(&ctx).expect("there is memory").clear(&ctx);
        let (there, (children, child)) = (space.clone(), channel());
        pause::once_at("bonsai-entry-seen", move || {
            by_another(sim, 1, move |ctx| {
                children.send(there.fork(ctx).expect("there is memory")).expect("it is waited for");
            });
        });
        assert_eq!(sim.store(&*space, page(BASE), 2, &ctx), Ok(()));
        child.try_recv().expect("there was a fork during the fault")
    });
    sim.cpus.on(1, |ctx| {
        sim.enter(&*child, &ctx);
        assert_eq!(sim.load(&*child, page(BASE), &ctx), Ok(1), "a store after the fork is seen by the child");
        sim.leave(&*child, &ctx);
        child.clear(&ctx);
    });
    end(sim, &*space);
}

#[test]
fn r13_no_copy_comes_between_the_pages_that_fork_shares() {
    let sim = Sim::new(2, 256);
    let space = two_leaves(sim);
    let first = sim.cpus.on(0, |ctx| {
        assert_eq!(sim.store(&*space, page(BASE), 1, &ctx), Ok(()));
        let child = space.fork(&ctx).expect("there is memory");
        // For this one there is something to flush.
        assert_eq!(sim.store(&*space, page(OTHER), 1, &ctx), Ok(()));
        child
    });
    let (stop, rest) = Stop::new(MOMENT);
    let (stopped, done, early) = (AtomicBool::new(false), Arc::new(AtomicBool::new(false)), Arc::default());
    let (seen, too_early): (_, Arc<AtomicBool>) = (done.clone(), Arc::clone(&early));
    *sim.on_flush.lock().unwrap() = Some(Arc::new(move || {
        if !stopped.swap(true, Ordering::SeqCst) {
            stop();
            too_early.store(seen.load(Ordering::SeqCst), Ordering::SeqCst);
        }
    }));
    let (children, child) = channel();
    sim.cpus.on(0, |ctx| {
        let there = space.clone();
        let rest = Arc::new(rest);
        let other = rest.clone();
        pause::once_at("bonsai-copy-made", move || {
            thread::spawn(move || {
                sim.cpus.on(1, |ctx| {
                    let _ = children.send(there.fork(&ctx).expect("there is memory"));
                });
            });
            // Fork has shared the pages, and has not flushed.
            other.stopped.lock().unwrap().recv_timeout(LONG).expect("fork comes to its flush");
        });
        assert_eq!(sim.store(&*space, page(BASE), 2, &ctx), Ok(()));
        done.store(true, Ordering::SeqCst);
        let _ = rest.done.lock().unwrap().send(());
    });
    let second = child.recv_timeout(LONG).expect("there was a fork during the fault");
    *sim.on_flush.lock().unwrap() = None;
    assert!(!early.load(Ordering::SeqCst), "a page was copied, and stored to, while fork was under way");
    sim.cpus.on(0, |ctx| [first, second].iter().for_each(|child| child.clear(&ctx)));
    end(sim, &*space);
}

#[test]
fn r16_a_page_that_is_cut_off_stays_allocated_while_a_fault_has_it() {
    let sim = Sim::new(2, 256);
    let space = two_leaves(sim);
    let pages = sim.cpus.on(0, |ctx| {
        let pages = Pages::new(sim, 1, &[41], &ctx);
        space
            .map(Placement::Fixed(page(BASE)), 1, object(&pages, 0, RW, false), &ctx)
            .expect("there is room");
        pages
    });
    // The fault copies what it was given, and asks for a frame for that.
    let cut = pages.clone();
    *sim.on_asking.lock().unwrap() = Some((
        Use::Anonymous,
        Box::new(move || {
            by_another(sim, 1, move |ctx| cut.resize(sim, 0, ctx));
            assert_eq!(
                sim.frames.stats().owned[Use::File as usize],
                1,
                "a page is free that is being copied"
            );
        }),
    ));
    sim.cpus.on(0, |ctx| {
        assert_eq!(sim.store(&*space, page(BASE), 7, &ctx), Err(Fault::BeyondObject));
        assert_eq!(sim.frames.stats().owned[Use::File as usize], 0);
    });
    end(sim, &*space);
}

#[test]
fn r20_a_cpu_that_joins_while_pages_are_taken_is_shot_down() {
    let sim = Sim::new(3, 256);
    let space = two_leaves(sim);
    sim.cpus.on(2, |ctx| sim.enter(&*space, &ctx));
    sim.cpus.on(0, |ctx| {
        assert_eq!(sim.store(&*space, page(BASE), 1, &ctx), Ok(()));
        let there = space.clone();
        pause::once_at("bonsai-take", move || {
            let (joins, leaves) = (there.clone(), there.clone());
            by_another(sim, 1, move |ctx| {
                sim.enter(&*joins, ctx);
                assert_eq!(sim.load(&*joins, page(BASE), ctx), Ok(1), "the entry is there");
            });
            by_another(sim, 2, move |ctx| sim.leave(&*leaves, ctx));
        });
        *sim.targets.lock().unwrap() = Default::default();
        // The checker looks whether a CPU still has the frame when it goes.
        assert_eq!(space.unmap(range(BASE, 1), &ctx), Ok(()));
    });
    let targets = *sim.targets.lock().unwrap();
    assert!(
        targets.iter().map(|cpu| cpu.index()).eq([0, 1]),
        "who has joined, and not who has left: {targets:?}"
    );
    sim.cpus.on(1, |ctx| {
        assert_eq!(sim.load(&*space, page(BASE), &ctx), Err(Fault::NoMapping));
        sim.leave(&*space, &ctx);
    });
    end(sim, &*space);
}

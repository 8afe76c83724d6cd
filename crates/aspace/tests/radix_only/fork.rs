//! Fork by frozen nodes: what it costs, who sees what, and who frees what.

use std::{
    ops::Range,
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use addr::Prot;
use aspace::{Access, AddressSpace, Advice, Fault, Flags, Placement, RemapTo};
use owned::Use;
use percpu::Unpinned;

use super::{
    BASE, SPARES,
    machine::{Pages, RW, Sim, anonymous, list, object, page, range},
};

/// Four nodes of leaves and a part of one on each side, in two blocks.
const PAGES: u64 = 4 * 64 + 20;
const FIRST: u64 = BASE + 512 - 3 * 64 - 10;

/// A space, in which each page of `FIRST..FIRST + PAGES` holds its number, and which CPU 0 runs.
fn filled(sim: &'static Sim, ctx: &Unpinned<'_>) -> Arc<dyn AddressSpace> {
    let space = sim.space(ctx);
    space.map(Placement::Fixed(page(FIRST)), PAGES, anonymous(RW), ctx).expect("there is room");
    sim.enter(&*space, ctx);
    (FIRST..FIRST + PAGES).for_each(|n| assert_eq!(sim.store(&*space, page(n), n, ctx), Ok(())));
    space
}
/// Run `space` instead of `old`.
fn switch(sim: &Sim, old: &dyn AddressSpace, space: &dyn AddressSpace, ctx: &Unpinned<'_>) {
    sim.leave(old, ctx);
    sim.enter(space, ctx);
}
fn holds(sim: &Sim, space: &dyn AddressSpace, ctx: &Unpinned<'_>, what: impl Fn(u64) -> u64) {
    for n in FIRST..FIRST + PAGES {
        assert_eq!(sim.load(space, page(n), ctx), Ok(what(n)), "page {n:#x}");
    }
}
fn frames(sim: &Sim) -> u64 {
    sim.owned()[Use::Anonymous as usize]
}
fn end(sim: &Sim, spaces: &[&Arc<dyn AddressSpace>], ctx: &Unpinned<'_>) {
    spaces.iter().for_each(|space| space.clear(ctx));
    assert_eq!(sim.owned(), [0; Use::COUNT], "frames were not given back");
}

/// Neither frames nor their counts change by a fork, and each side's stores stay its own (D6, D15).
#[test]
fn a_fork_takes_no_frames_and_copies_what_is_written() {
    let sim = Sim::new(1, 2048);
    sim.cpus.on(0, |ctx| {
        let parent = filled(sim, &ctx);
        let before = frames(sim);
        let child = parent.fork(&ctx).expect("there is memory");
        assert_eq!(frames(sim), before);
        assert_eq!(child.usage(&ctx).resident_pages, PAGES);
        assert_eq!(list(&*child, &ctx), list(&*parent, &ctx));
        // To read takes none either, in the parent, or in the child.
        holds(sim, &*parent, &ctx, |n| n);
        switch(sim, &*parent, &*child, &ctx);
        holds(sim, &*child, &ctx, |n| n);
        assert_eq!(frames(sim), before);
        // The child writes a page of each node; then the parent another, and one of the child's.
        let mine = |n: u64| n % 64 == 5;
        for n in (FIRST..FIRST + PAGES).filter(|n| mine(*n)) {
            assert_eq!(sim.store(&*child, page(n), !n, &ctx), Ok(()));
        }
        let copies = (FIRST..FIRST + PAGES).filter(|n| mine(*n)).count() as u64;
        assert_eq!(frames(sim), before + copies);
        holds(sim, &*child, &ctx, |n| if mine(n) { !n } else { n });
        switch(sim, &*child, &*parent, &ctx);
        holds(sim, &*parent, &ctx, |n| n);
        let theirs = |n: u64| n % 64 == 6 || mine(n);
        for n in (FIRST..FIRST + PAGES).filter(|n| theirs(*n)) {
            assert_eq!(sim.store(&*parent, page(n), n + 1, &ctx), Ok(()));
        }
        // Of what both have written each has a frame; of the child's the parent was the last owner, and kept it.
        let more = (FIRST..FIRST + PAGES).filter(|n| n % 64 == 6).count() as u64;
        assert_eq!(frames(sim), before + copies + more);
        holds(sim, &*parent, &ctx, |n| if theirs(n) { n + 1 } else { n });
        switch(sim, &*parent, &*child, &ctx);
        holds(sim, &*child, &ctx, |n| if mine(n) { !n } else { n });
        sim.leave(&*child, &ctx);
        end(sim, &[&parent, &child], &ctx);
    });
}

/// Who is the last to have a node writes where it is, whoever ends first (D14, D15).
#[test]
fn the_last_one_keeps_the_frames() {
    for parent_first in [true, false] {
        let sim = Sim::new(1, 1024);
        sim.cpus.on(0, |ctx| {
            let parent = filled(sim, &ctx);
            let child = parent.fork(&ctx).expect("there is memory");
            let (gone, left) = if parent_first { (&parent, &child) } else { (&child, &parent) };
            switch(sim, &*parent, &**left, &ctx);
            let before = frames(sim);
            gone.clear(&ctx);
            assert_eq!(frames(sim), before, "frames went with one of two");
            holds(sim, &**left, &ctx, |n| n);
            for n in FIRST..FIRST + PAGES {
                assert_eq!(sim.store(&**left, page(n), n + 7, &ctx), Ok(()));
            }
            assert_eq!(frames(sim), before, "the only owner has copied");
            holds(sim, &**left, &ctx, |n| n + 7);
            sim.leave(&**left, &ctx);
            end(sim, &[left], &ctx);
        });
    }
}

/// A right to write that was there before the fork doesn't come back with that of a neighbour in the same leaf table.
#[test]
fn a_neighbours_right_to_write_is_its_own() {
    let sim = Sim::new(1, 1024);
    sim.cpus.on(0, |ctx| {
        let parent = filled(sim, &ctx);
        let child = parent.fork(&ctx).expect("there is memory");
        for n in FIRST..FIRST + PAGES {
            assert_eq!(sim.store(&*parent, page(n), !n, &ctx), Ok(()));
        }
        switch(sim, &*parent, &*child, &ctx);
        holds(sim, &*child, &ctx, |n| n);
        sim.leave(&*child, &ctx);
        end(sim, &[&parent, &child], &ctx);
    });
}

/// Another CPU that reads a page, before and after this one has written to it (D15).
#[test]
fn what_one_cpu_writes_after_a_fork_another_reads() {
    let sim = Sim::new(2, 1024);
    let (parent, child) = sim.cpus.on(0, |ctx| {
        let parent = filled(sim, &ctx);
        let child = parent.fork(&ctx).expect("there is memory");
        (parent, child)
    });
    sim.cpus.on(1, |ctx| {
        sim.enter(&*parent, &ctx);
        holds(sim, &*parent, &ctx, |n| n);
    });
    sim.cpus.on(0, |ctx| {
        for n in FIRST..FIRST + PAGES {
            assert_eq!(sim.store(&*parent, page(n), n + 1, &ctx), Ok(()));
        }
    });
    sim.cpus.on(1, |ctx| {
        holds(sim, &*parent, &ctx, |n| n + 1);
        switch(sim, &*parent, &*child, &ctx);
        holds(sim, &*child, &ctx, |n| n);
        sim.leave(&*child, &ctx);
    });
    sim.cpus.on(0, |ctx| {
        sim.leave(&*parent, &ctx);
        end(sim, &[&parent, &child], &ctx);
    });
}

/// The last one frees what the others had, and these don't translate to it any more: they have flushed before (D19).
#[test]
fn a_share_goes_after_the_flush() {
    let sim = Sim::new(2, 1024);
    let (parent, child) = sim.cpus.on(0, |ctx| {
        let parent = filled(sim, &ctx);
        let child = parent.fork(&ctx).expect("there is memory");
        (parent, child)
    });
    sim.cpus.on(1, |ctx| {
        sim.enter(&*child, &ctx);
        holds(sim, &*child, &ctx, |n| n);
    });
    // While the child is being shot down, the parent unmaps too.
    let (first, all) = (range(FIRST, PAGES), frames(sim));
    let seen = Arc::new(AtomicU64::new(0));
    let (other, record, began) = (parent.clone(), seen.clone(), AtomicBool::new(false));
    *sim.on_flush.lock().unwrap() = Some(Arc::new(move || {
        if !began.swap(true, Ordering::Relaxed) {
            let parent = other.clone();
            let there = std::thread::spawn(move || {
                sim.cpus.on(1, |ctx| {
                    assert_eq!(parent.unmap(first, &ctx), Ok(()));
                    frames(sim)
                })
            });
            let left = there.join().expect("the other CPU went well");
            record.store(left, Ordering::Relaxed);
        }
    }));
    sim.cpus.on(0, |ctx| {
        sim.leave(&*parent, &ctx);
        assert_eq!(child.unmap(range(FIRST, PAGES), &ctx), Ok(()));
    });
    *sim.on_flush.lock().unwrap() = None;
    let left = seen.load(Ordering::Relaxed);
    assert_eq!(left, all, "frames were freed before the child's CPU had forgotten them");
    assert_eq!(frames(sim), 0);
    sim.cpus.on(1, |ctx| sim.leave(&*child, &ctx));
    sim.cpus.on(0, |ctx| end(sim, &[&parent, &child], &ctx));
}

/// All calls on pages of frozen nodes, whole and in part, in one of three generations; the others keep what they had.
#[test]
fn calls_on_frozen_nodes_are_for_one_generation() {
    type Call = fn(&dyn AddressSpace, &Unpinned<'_>);
    let (middle, whole) = (FIRST + 70, FIRST / 64 * 64 + 64);
    let calls: [Call; 10] = [
        |space, ctx| assert_eq!(space.unmap(range(FIRST, PAGES), ctx), Ok(())),
        |space, ctx| assert_eq!(space.unmap(range(FIRST + 70, 3), ctx), Ok(())),
        |space, ctx| assert_eq!(space.protect(range(FIRST + 70, 100), Prot::READ, ctx), Ok(())),
        |space, ctx| assert_eq!(space.advise(range(FIRST + 70, 100), Advice::DontNeed, ctx), Ok(())),
        |space, ctx| assert_eq!(space.advise(range(FIRST, PAGES), Advice::InstallGuards, ctx), Ok(())),
        |space, ctx| {
            let flags = Advice::Flags(Flags::DONT_FORK, Flags::empty());
            assert_eq!(space.advise(range(FIRST + 70, 100), flags, ctx), Ok(()));
        },
        |space, ctx| {
            let to = RemapTo::Fixed(page(BASE + (5 << 18)));
            assert_eq!(space.remap(range(FIRST, PAGES), PAGES, to, ctx).map(drop), Ok(()));
        },
        |space, ctx| {
            let to = RemapTo::InPlace;
            assert_eq!(space.remap(range(FIRST, PAGES), 30, to, ctx).map(drop), Ok(()));
        },
        |space, ctx| {
            let place = Placement::Fixed(page(FIRST + 10));
            space.map(place, 200, anonymous(RW), ctx).map(drop).expect("there is room");
        },
        |space, ctx| space.fault(page(FIRST + 71).base(), Access::Write, ctx).expect("it may be written"),
    ];
    assert!(FIRST < whole && whole + 64 < middle + 100);
    for call in calls {
        for generation in 0..3 {
            let sim = Sim::new(1, 2048);
            sim.cpus.on(0, |ctx| {
                let first = filled(sim, &ctx);
                let second = first.fork(&ctx).expect("there is memory");
                let third = second.fork(&ctx).expect("there is memory");
                let spaces = [&first, &second, &third];
                let before = list(&*first, &ctx);
                call(&**spaces[generation], &ctx);
                sim.leave(&*first, &ctx);
                for space in
                    spaces.iter().enumerate().filter(|(i, _)| *i != generation).map(|(_, space)| space)
                {
                    assert_eq!(list(&***space, &ctx), before);
                    assert_eq!(space.usage(&ctx).resident_pages, PAGES);
                    sim.enter(&***space, &ctx);
                    holds(sim, &***space, &ctx, |n| n);
                    sim.leave(&***space, &ctx);
                }
                // In an order of its own.
                end(sim, &[&second, spaces[0], &third], &ctx);
            });
        }
    }
}

/// What a child is not to have as its parent does is copied page by page, in the same nodes.
#[test]
fn pages_that_are_not_inherited_do_not_freeze() {
    let sim = Sim::new(1, 1024);
    sim.cpus.on(0, |ctx| {
        let parent = filled(sim, &ctx);
        let flag = |first: u64, flags: Flags| {
            let advice = Advice::Flags(flags, Flags::empty());
            assert_eq!(parent.advise(range(FIRST + first, 2), advice, &ctx), Ok(()));
        };
        flag(3, Flags::DONT_FORK);
        flag(80, Flags::WIPE_ON_FORK);
        let locked = range(FIRST + 160, 2);
        assert_eq!(parent.lock(locked, aspace::Lock::Now, &aspace::Limits::NONE, &ctx), Ok(()));
        let child = parent.fork(&ctx).expect("there is memory");
        assert_eq!(child.usage(&ctx).resident_pages, PAGES - 4);
        assert_eq!(child.usage(&ctx).mapped_pages, PAGES - 2);
        assert_eq!(child.usage(&ctx).totals.locked, 0);
        switch(sim, &*parent, &*child, &ctx);
        for n in 0..PAGES {
            let expected = match n {
                3 | 4 => Err(aspace::Fault::NoMapping),
                80 | 81 => Ok(0),
                _ => Ok(FIRST + n),
            };
            assert_eq!(sim.load(&*child, page(FIRST + n), &ctx), expected, "page {n}");
        }
        sim.leave(&*child, &ctx);
        end(sim, &[&child, &parent], &ctx);
    });
}

/// CPUs fork one space, write, look, and end their children, all at once; each child has what was there at its fork.
#[test]
fn children_of_many_forks_at_once_have_what_was_there() {
    const CPUS: usize = 4;
    let sim = Sim::new(CPUS, 8192);
    let parent = sim.cpus.on(0, |ctx| {
        let parent = filled(sim, &ctx);
        sim.leave(&*parent, &ctx);
        parent
    });
    let start = Barrier::new(CPUS);
    sim.cpus.run(|cpu, ctx| {
        let me = cpu.index() as u64;
        start.wait();
        for round in 0..6u64 {
            // Each CPU has pages of its own in every node, of which it knows what they hold.
            let mine = |n: &u64| n % CPUS as u64 == me;
            let expected = |n: u64, round: u64| if round == 0 { n } else { n << 8 | round };
            let child = parent.fork(&ctx).expect("there is memory");
            sim.enter(&*parent, &ctx);
            for n in (FIRST..FIRST + PAGES).filter(mine) {
                assert_eq!(sim.load(&*parent, page(n), &ctx), Ok(expected(n, round)));
                assert_eq!(sim.store(&*parent, page(n), expected(n, round + 1), &ctx), Ok(()));
            }
            switch(sim, &*parent, &*child, &ctx);
            for n in (FIRST..FIRST + PAGES).filter(mine) {
                assert_eq!(
                    sim.load(&*child, page(n), &ctx),
                    Ok(expected(n, round)),
                    "page {n:#x} of round {round}"
                );
                if n % 3 == 0 {
                    assert_eq!(sim.store(&*child, page(n), 1, &ctx), Ok(()));
                }
            }
            sim.leave(&*child, &ctx);
            child.clear(&ctx);
        }
    });
    sim.cpus.on(0, |ctx| end(sim, &[&parent], &ctx));
}

/// Pages of an object in the same nodes as anonymous ones, some of them written in the parent. What a cut takes away goes from
/// parent and child, and needs no memory: neither the object's pages nor the copies are in frozen nodes. The others'
/// contents stay.
#[test]
fn an_object_is_cut_after_a_fork_without_memory() {
    const CUT: u64 = 24;
    for punched in [false, true] {
        let sim = Sim::new(1, 1024);
        sim.cpus.on(0, |ctx| {
            let file = Pages::new(sim, 1, &(100..100 + CUT).collect::<Vec<_>>(), &ctx);
            let first = FIRST / 64 * 64 + 64 + 40;
            let parent = filled(sim, &ctx);
            let mapping = object(&file, 0, RW, false);
            parent.map(Placement::Fixed(page(first)), CUT, mapping, &ctx).expect("there is room");
            for n in 0..CUT {
                assert_eq!(sim.load(&*parent, page(first + n), &ctx), Ok(100 + n));
                if n % 3 == 0 {
                    assert_eq!(sim.store(&*parent, page(first + n), n, &ctx), Ok(()));
                }
            }
            let child = parent.fork(&ctx).expect("there is memory");
            SPARES.set(true);
            match punched {
                false => file.resize(sim, 0, &ctx),
                true => (0..CUT as usize).for_each(|n| file.punch_page(sim, n, &ctx)),
            }
            SPARES.set(false);
            let expected = |n: u64| match n.checked_sub(first).filter(|n| *n < CUT) {
                None => Ok(n),
                Some(_) if !punched => Err(Fault::BeyondObject),
                Some(n) => Ok(if n % 3 == 0 { n } else { 0 }),
            };
            for n in FIRST..FIRST + PAGES {
                assert_eq!(sim.load(&*parent, page(n), &ctx), expected(n), "page {n:#x} of the parent");
            }
            switch(sim, &*parent, &*child, &ctx);
            for n in FIRST..FIRST + PAGES {
                assert_eq!(sim.load(&*child, page(n), &ctx), expected(n), "page {n:#x} of the child");
            }
            sim.leave(&*child, &ctx);
            [&parent, &child].iter().for_each(|space| space.clear(&ctx));
            file.free(sim, &ctx);
            assert_eq!(sim.owned(), [0; Use::COUNT], "frames were not given back");
        });
    }
}

/// Nodes of which all pages are an object's: only read, copied, untouched, or some of each; and one of several mappings. A child
/// has the copies, and asks for the rest.
#[test]
fn a_child_has_the_copies_in_nodes_of_an_objects_pages() {
    const ALL: u64 = 5 * 64;
    const SHARED: Range<u64> = 4 * 64 + 20..4 * 64 + 44;
    let (read, written) = (
        |n: &u64| matches!(n / 64, 0 | 1) || n / 64 > 2 && n.is_multiple_of(3),
        |n: &u64| n / 64 == 1 || n / 64 > 2 && n.is_multiple_of(5),
    );
    let holds = |n: u64| match n {
        n if written(&n) => n,
        n if n >= SHARED.end => 0,
        _ => 1000 + n,
    };
    let sim = Sim::new(1, 2048);
    sim.cpus.on(0, |ctx| {
        let file = Pages::new(sim, 1, &(1000..1000 + ALL).collect::<Vec<_>>(), &ctx);
        let (parent, at) = (sim.space(&ctx), |n: u64| page(FIRST / 64 * 64 + n));
        for (from, pages, mapping) in [
            (0, ALL, object(&file, 0, RW, false)),
            (SHARED.start, 24, object(&file, SHARED.start, RW, true)),
            (SHARED.end, 20, anonymous(RW)),
        ] {
            parent.map(Placement::Fixed(at(from)), pages, mapping, &ctx).expect("there is room");
        }
        sim.enter(&*parent, &ctx);
        (0..ALL).filter(read).for_each(|n| assert!(sim.load(&*parent, at(n), &ctx).is_ok()));
        (0..ALL).filter(written).for_each(|n| assert_eq!(sim.store(&*parent, at(n), n, &ctx), Ok(())));
        let child = parent.fork(&ctx).expect("there is memory");
        assert_eq!(list(&*child, &ctx), list(&*parent, &ctx));
        let copied = |n: &u64| written(n) && !SHARED.contains(n) || read(n) && *n >= SHARED.end;
        assert_eq!(child.usage(&ctx).resident_pages, (0..ALL).filter(copied).count() as u64);
        assert_eq!(child.usage(&ctx).mapped_pages, ALL);
        (0..ALL).for_each(|n| assert_eq!(sim.store(&*parent, at(n), !n, &ctx), Ok(())));
        switch(sim, &*parent, &*child, &ctx);
        for n in 0..ALL {
            let expected = if SHARED.contains(&n) { !n } else { holds(n) };
            assert_eq!(sim.load(&*child, at(n), &ctx), Ok(expected), "page {n}");
        }
        sim.leave(&*child, &ctx);
        [&parent, &child].iter().for_each(|space| space.clear(&ctx));
        file.free(sim, &ctx);
        assert_eq!(sim.owned(), [0; Use::COUNT], "frames were not given back");
    });
}

/// An end needs no memory, in whatever order the members of a family end.
#[test]
fn spaces_that_share_nodes_end_without_memory() {
    for order in [[0, 1, 2], [1, 0, 2], [2, 1, 0]] {
        let sim = Sim::new(1, 1024);
        sim.cpus.on(0, |ctx| {
            let first = filled(sim, &ctx);
            let second = first.fork(&ctx).expect("there is memory");
            let third = second.fork(&ctx).expect("there is memory");
            sim.leave(&*first, &ctx);
            SPARES.set(true);
            let spaces = [&first, &second, &third];
            end(sim, &order.map(|i: usize| spaces[i]), &ctx);
            SPARES.set(false);
        });
    }
}

/// CPUs fork a space over and over while another cuts the object that is mapped in it, and yet others read and write: no
/// space, old or new, shows what was cut off before it was made or looked at.
#[test]
fn a_cut_while_forking_misses_nobody() {
    const CPUS: usize = 3;
    const CUT: u64 = 8;
    let sim = Sim::new(CPUS, 8192);
    let first = FIRST / 64 * 64 + 64 + 4;
    let (parent, file) = sim.cpus.on(0, |ctx| {
        let file = Pages::new(sim, 1, &[7; CUT as usize], &ctx);
        let parent = filled(sim, &ctx);
        let mapping = object(&file, 0, RW, false);
        parent.map(Placement::Fixed(page(first)), CUT, mapping, &ctx).expect("there is room");
        for n in 0..CUT {
            assert_eq!(sim.load(&*parent, page(first + n), &ctx), Ok(7));
        }
        sim.leave(&*parent, &ctx);
        (parent, file)
    });
    let (start, cut) = (Barrier::new(CPUS), AtomicU64::new(0));
    sim.cpus.run(|cpu, ctx| {
        start.wait();
        if cpu.index() == 0 {
            for n in 0..CUT {
                file.punch_page(sim, n as usize, &ctx);
                cut.store(n + 1, Ordering::SeqCst);
            }
            return;
        }
        for round in 0..6 {
            let child = parent.fork(&ctx).expect("there is memory");
            let grandchild = child.fork(&ctx).expect("there is memory");
            let mine = page(FIRST + cpu.index() as u64);
            for space in [&child, &grandchild, &parent] {
                let gone = cut.load(Ordering::SeqCst);
                sim.enter(&**space, &ctx);
                for n in 0..CUT {
                    let seen = sim.load(&**space, page(first + n), &ctx).expect("it is mapped");
                    assert!(seen == 0 || n >= gone && seen == 7, "page {n}, {gone} cut, holds {seen}");
                }
                assert_eq!(sim.store(&**space, mine, round, &ctx), Ok(()));
                sim.leave(&**space, &ctx);
            }
            child.clear(&ctx);
            grandchild.clear(&ctx);
        }
    });
    sim.cpus.on(0, |ctx| {
        parent.clear(&ctx);
        file.free(sim, &ctx);
        assert_eq!(sim.owned(), [0; Use::COUNT], "frames were not given back");
    });
}

//! What the radix tree promises and the locked design does not.

mod fork;
mod levels;
mod looks;
#[path = "../machine/mod.rs"]
mod machine;
mod transfers;
mod watches;

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use addr::Prot;
use aspace::{Access, AddressSpace, Collect, Error, Limits, Mapping, Placement, RemapTo};
use machine::{Design, Pages, RW, Random, Sim, anonymous, object, page, range};
use owned::Use;
use percpu::{CpuId, CpuSet, Unpinned, testing};

const BASE: u64 = 0x1000;

/// Let CPU `cpu` run `space`, and do `step` until it is to stop: with how often it was done, from 1, and numbers that `seed` repeats.
fn work(
    sim: &Sim,
    space: &dyn AddressSpace,
    cpu: usize,
    seed: u64,
    stop: &AtomicBool,
    step: impl Fn(u64, &mut Random, &Unpinned<'_>) + Sync,
) {
    sim.cpus.on(cpu, |ctx| sim.enter(space, &ctx));
    let mut random = Random::new(seed, cpu);
    for n in 1.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        sim.cpus.on(cpu, |ctx| step(n, &mut random, &ctx));
    }
    sim.cpus.on(cpu, |ctx| sim.leave(space, &ctx));
}

fn cpus(numbers: &[usize]) -> CpuSet {
    numbers.iter().filter_map(|&n| CpuId::new(n)).collect()
}

#[test]
fn only_cpus_that_used_a_page_are_shot_down() {
    let sim = Sim::new(3, 256);
    let space = sim.cpus.on(0, |ctx| sim.space(&ctx));
    let on = |cpu: usize, f: &dyn Fn(&dyn AddressSpace, &percpu::Unpinned<'_>)| {
        sim.cpus.on(cpu, |ctx| f(&*space, &ctx));
    };
    on(0, &|space, ctx| {
        space.map(Placement::Fixed(page(BASE)), 4, anonymous(RW), ctx).expect("there is room");
    });
    (0..3).for_each(|cpu| on(cpu, &|space, ctx| sim.enter(space, ctx)));
    // Page 0 is CPU 0's, page 1 CPU 1's, page 2 both's, page 3 nobody's.
    for (cpu, at) in [(0, 0), (1, 1), (0, 2), (1, 2)] {
        on(cpu, &|space, ctx| assert_eq!(sim.store(space, page(BASE + at), at, ctx), Ok(())));
    }
    let all = cpus(&[0, 1, 2]);
    let exact = |targets: &[usize]| match machine::design() {
        Design::RadixPerCpu => cpus(targets),
        _ => all,
    };
    let protected = |at: u64| {
        *sim.targets.lock().unwrap() = CpuSet::EMPTY;
        on(2, &|space, ctx| assert_eq!(space.protect(range(BASE + at, 1), Prot::READ, ctx), Ok(())));
        *sim.targets.lock().unwrap()
    };
    assert_eq!(protected(0), exact(&[0]));
    assert_eq!(protected(1), exact(&[1]));
    // Of several, those whose tables have an entry.
    assert_eq!(protected(2), exact(&[0, 1]));
    assert_eq!(protected(3), CpuSet::EMPTY);
    let flushes = sim.flushes.load(Ordering::Relaxed);
    on(2, &|space, ctx| assert_eq!(space.unmap(range(BASE + 3, 1), ctx), Ok(())));
    assert_eq!(sim.flushes.load(Ordering::Relaxed), flushes);
    (0..3).for_each(|cpu| on(cpu, &|space, ctx| sim.leave(space, ctx)));
    on(0, &|space, ctx| space.clear(ctx));
    assert_eq!(sim.owned(), [0; Use::COUNT]);
}

/// Who enters a page that several CPUs have gets those around it that several have, and no other.
#[test]
fn what_several_cpus_have_is_entered_with_its_neighbours() {
    let sim = Sim::new(4, 256);
    let space = sim.cpus.on(0, |ctx| sim.space(&ctx));
    let on = |cpu: usize, f: &dyn Fn(&dyn AddressSpace, &percpu::Unpinned<'_>)| {
        sim.cpus.on(cpu, |ctx| f(&*space, &ctx));
    };
    let first = BASE.next_multiple_of(64);
    on(0, &|space, ctx| {
        space.map(Placement::Fixed(page(first)), 24, anonymous(RW), ctx).expect("there is room");
    });
    (0..4).for_each(|cpu| on(cpu, &|space, ctx| sim.enter(space, ctx)));
    // CPU 1 alone has page 3, nobody page 4, and CPUs 0 and 1 the others.
    for (cpu, at) in [0, 1, 2, 5, 15, 16].into_iter().flat_map(|at| [(0, at), (1, at)]).chain([(1, 3)]) {
        on(cpu, &|space, ctx| assert_eq!(sim.store(space, page(first + at), at, ctx), Ok(())));
    }
    on(0, &|space, ctx| assert_eq!(space.protect(range(first + 2, 1), Prot::READ, ctx), Ok(())));
    let faults = |cpu: usize, at: u64| {
        let before = sim.faults.load(Ordering::Relaxed);
        on(cpu, &|space, ctx| _ = sim.load(space, page(first + at), ctx));
        sim.faults.load(Ordering::Relaxed) - before
    };
    let percpu = machine::design() == Design::RadixPerCpu;
    assert_eq!(faults(2, 1), u64::from(percpu).try_into().unwrap());
    on(2, &|space, ctx| sim.audit(space, range(first, 24), ctx));
    // Page 2 is another mapping's by now, and page 16 is too far away.
    for (at, entered) in [(0, true), (5, true), (15, true), (2, false), (3, false), (16, false)] {
        assert_eq!(faults(2, at) == 0, entered || !percpu, "page {at}");
    }
    // What was entered goes with its page, and its CPU is told. CPU 3 never had it.
    *sim.targets.lock().unwrap() = CpuSet::EMPTY;
    on(3, &|space, ctx| assert_eq!(space.unmap(range(first, 24), ctx), Ok(())));
    if percpu {
        assert_eq!(*sim.targets.lock().unwrap(), cpus(&[0, 1, 2]));
    }
    (0..4).for_each(|cpu| on(cpu, &|space, ctx| sim.leave(space, ctx)));
    on(0, &|space, ctx| space.clear(ctx));
    assert_eq!(sim.owned(), [0; Use::COUNT]);
}

/// Which means that nothing is there that a fault would not have put there: a frame that is shared stays read-only.
#[test]
fn a_right_that_is_given_back_is_there_at_once_unless_the_frame_is_shared() {
    let sim = Sim::new(2, 256);
    let space = sim.cpus.on(0, |ctx| sim.space(&ctx));
    let gave_back = |space: &dyn AddressSpace, ctx: &percpu::Unpinned<'_>| {
        assert_eq!(space.protect(range(BASE, 2), Prot::READ, ctx), Ok(()));
        let flushes = sim.flushes.load(Ordering::Relaxed);
        assert_eq!(space.protect(range(BASE, 2), RW, ctx), Ok(()));
        assert_eq!(sim.flushes.load(Ordering::Relaxed), flushes);
        sim.audit(space, range(BASE, 2), ctx);
        let faults = sim.faults.load(Ordering::Relaxed);
        assert_eq!(sim.store(space, page(BASE), 8, ctx), Ok(()));
        sim.faults.load(Ordering::Relaxed) - faults
    };
    let child = sim.cpus.on(0, |ctx| {
        space.map(Placement::Fixed(page(BASE)), 2, anonymous(RW), &ctx).expect("there is room");
        sim.enter(&*space, &ctx);
        (0..2).for_each(|i| assert_eq!(sim.store(&*space, page(BASE + i), 7, &ctx), Ok(())));
        assert_eq!(gave_back(&*space, &ctx), 0);
        space.fork(&ctx).expect("there is memory")
    });
    sim.cpus.on(1, |ctx| {
        sim.enter(&*child, &ctx);
        assert_eq!(sim.load(&*child, page(BASE), &ctx), Ok(8));
    });
    sim.cpus.on(0, |ctx| {
        // Copied once, and then its own.
        assert_eq!(sim.load(&*space, page(BASE), &ctx), Ok(8));
        assert_eq!(gave_back(&*space, &ctx), 1);
        assert_eq!(gave_back(&*space, &ctx), 0);
        assert_eq!(sim.store(&*space, page(BASE), 9, &ctx), Ok(()));
    });
    sim.cpus.on(1, |ctx| {
        assert_eq!(sim.load(&*child, page(BASE), &ctx), Ok(8));
        sim.leave(&*child, &ctx);
        child.clear(&ctx);
    });
    sim.cpus.on(0, |ctx| {
        sim.leave(&*space, &ctx);
        space.clear(&ctx);
    });
    assert_eq!(sim.owned(), [0; Use::COUNT]);
}

/// D7: an operation flushes once, from the first page that had an entry to the last, however much more it was asked for.
#[test]
fn what_was_not_touched_is_flushed_only_between_what_was() {
    const PAGES: u64 = 1 << 18;
    let sim = Sim::new(1, 256);
    sim.cpus.on(0, |ctx| {
        let space = sim.space(&ctx);
        sim.enter(&*space, &ctx);
        let flushed = |touched: &[u64], operation: &dyn Fn(&dyn AddressSpace)| {
            let at = Placement::Fixed(page(BASE));
            space.map(at, PAGES, anonymous(RW), &ctx).expect("there is room");
            for at in touched {
                assert_eq!(sim.store(&*space, page(BASE + at), 1, &ctx), Ok(()));
            }
            let before = sim.flushes.load(Ordering::Relaxed);
            *sim.flushed.lock().unwrap() = range(0, 0);
            operation(&*space);
            let flushed = (sim.flushes.load(Ordering::Relaxed) - before, *sim.flushed.lock().unwrap());
            assert_eq!(space.unmap(range(BASE, PAGES), &ctx), Ok(()));
            flushed
        };
        let unmap = |space: &dyn AddressSpace| assert_eq!(space.unmap(range(BASE, PAGES), &ctx), Ok(()));
        let protect = |space: &dyn AddressSpace| {
            assert_eq!(space.protect(range(BASE, PAGES), Prot::READ, &ctx), Ok(()));
        };
        assert_eq!(flushed(&[], &unmap), (0, range(0, 0)));
        assert_eq!(flushed(&[777], &unmap), (1, range(BASE + 777, 1)));
        assert_eq!(flushed(&[700, 777, 710], &unmap), (1, range(BASE + 700, 78)));
        // Of far more than are flushed one by one it is all the same how many.
        assert_eq!(flushed(&[5, 200_000], &unmap), (1, range(BASE + 5, 199_996)));
        let part = |space: &dyn AddressSpace| assert_eq!(space.unmap(range(BASE + 701, 99), &ctx), Ok(()));
        assert_eq!(flushed(&[700, 777, 800], &part), (1, range(BASE + 777, 1)));
        assert_eq!(flushed(&[64, 4096], &protect), (1, range(BASE + 64, 4033)));
        sim.leave(&*space, &ctx);
        space.clear(&ctx);
        assert_eq!(sim.owned(), [0; Use::COUNT]);
    });
}

/// More kinds of mappings than a CPU knows descriptors, twice over, so that known ones make room: all of them go.
#[test]
fn descriptors_that_made_room_for_others_die_like_all() {
    let sim = Sim::new(1, 512);
    sim.cpus.on(0, |ctx| {
        let contents: Vec<u64> = (0..400).collect();
        let file = Pages::new(sim, 1, &contents, &ctx);
        let space = sim.space(&ctx);
        for _ in 0..2 {
            for at in 0..400 {
                let mapping = object(&file, 399 - at, Prot::READ, false);
                assert!(space.map(Placement::Fixed(page(BASE + 2 * at)), 1, mapping, &ctx).is_ok());
            }
        }
        assert!(std::sync::Arc::strong_count(&file) > 400);
        space.clear(&ctx);
        (0..32).for_each(|_| sim.tick(&ctx));
        assert_eq!(std::sync::Arc::strong_count(&file), 1, "a descriptor is left");
        file.free(sim, &ctx);
        assert_eq!(sim.owned(), [0; Use::COUNT]);
    });
}

#[test]
fn a_cpu_that_comes_back_finds_nothing_of_what_is_gone() {
    let sim = Sim::new(2, 256);
    let space = sim.cpus.on(0, |ctx| sim.space(&ctx));
    sim.cpus.on(1, |ctx| {
        space.map(Placement::Fixed(page(BASE)), 2, anonymous(RW), &ctx).expect("there is room");
        sim.enter(&*space, &ctx);
        assert_eq!(sim.store(&*space, page(BASE), 7, &ctx), Ok(()));
        assert_eq!(sim.store(&*space, page(BASE + 1), 8, &ctx), Ok(()));
        sim.leave(&*space, &ctx);
    });
    sim.cpus.on(0, |ctx| {
        assert_eq!(space.protect(range(BASE, 1), Prot::READ, &ctx), Ok(()));
        assert_eq!(space.unmap(range(BASE + 1, 1), &ctx), Ok(()));
    });
    sim.cpus.on(1, |ctx| {
        sim.enter(&*space, &ctx);
        assert_eq!(sim.store(&*space, page(BASE), 9, &ctx), Err(aspace::Fault::Denied));
        assert_eq!(sim.load(&*space, page(BASE), &ctx), Ok(7));
        assert_eq!(sim.load(&*space, page(BASE + 1), &ctx), Err(aspace::Fault::NoMapping));
        sim.leave(&*space, &ctx);
        space.clear(&ctx);
    });
    assert_eq!(sim.owned(), [0; Use::COUNT]);
}

#[test]
fn page_tables_do_not_pile_up() {
    let sim = Sim::new(1, 1024);
    sim.cpus.on(0, |ctx| {
        let space = sim.space(&ctx);
        sim.enter(&*space, &ctx);
        let mut most = 0;
        for i in 0..2000u64 {
            let at = page(BASE + (i << 9) + ((i % 7) << 27));
            space.map(Placement::Fixed(at), 1, anonymous(RW), &ctx).expect("there is room");
            assert_eq!(sim.store(&*space, at, i, &ctx), Ok(()));
            assert_eq!(space.unmap(range(at.number(), 1), &ctx), Ok(()));
            most = most.max(sim.owned()[Use::PageTable as usize]);
        }
        assert!(most < 300, "{most} pages of tables for one page at a time");
        sim.leave(&*space, &ctx);
        space.clear(&ctx);
        assert_eq!(sim.owned(), [0; Use::COUNT]);
    });
}

#[test]
fn tables_that_are_shed_come_back_and_translate_no_more() {
    const BLOCKS: u64 = 20;
    let sim = Sim::new(2, 512);
    let space = sim.cpus.on(0, |ctx| sim.space(&ctx));
    let at = |i: u64| page(BASE + (i << 9));
    sim.cpus.on(0, |ctx| {
        for i in 0..BLOCKS {
            space.map(Placement::Fixed(at(i)), 2, anonymous(RW), &ctx).expect("there is room");
        }
    });
    for cpu in 0..2 {
        sim.cpus.on(cpu, |ctx| {
            sim.enter(&*space, &ctx);
            for i in 0..BLOCKS {
                assert_eq!(sim.store(&*space, page(at(i).number() + cpu as u64), i, &ctx), Ok(()));
            }
        });
    }
    let tables = || sim.owned()[Use::PageTable as usize];
    let before = tables();
    sim.cpus.on(0, |ctx| space.shed(&ctx));
    let each = if machine::design() == Design::RadixPerCpu { 2 } else { 1 };
    assert_eq!(tables() + each * BLOCKS, before, "all tables of the lowest level");
    // Nothing is lost, and pages that are unmapped now are gone for the CPU that had used them.
    sim.cpus.on(0, |ctx| {
        assert_eq!(space.usage(&ctx).resident_pages, 2 * BLOCKS);
        assert_eq!(sim.load(&*space, at(3), &ctx), Ok(3));
        assert_eq!(space.unmap(range(at(5).number(), 2), &ctx), Ok(()));
        assert_eq!(space.protect(range(at(6).number(), 2), Prot::READ, &ctx), Ok(()));
    });
    sim.cpus.on(1, |ctx| {
        let second = |i| page(at(i).number() + 1);
        assert_eq!(sim.load(&*space, second(5), &ctx), Err(aspace::Fault::NoMapping));
        assert_eq!(sim.store(&*space, second(6), 1, &ctx), Err(aspace::Fault::Denied));
        assert_eq!(sim.load(&*space, second(6), &ctx), Ok(6));
        sim.leave(&*space, &ctx);
    });
    sim.cpus.on(0, |ctx| {
        sim.leave(&*space, &ctx);
        space.clear(&ctx);
        // Of a space that is no more there is nothing to shed.
        space.shed(&ctx);
    });
    assert_eq!(sim.owned(), [0; Use::COUNT]);
}

/// A mapping is to grow, and has to move; meanwhile, at each place where that may be, its last pages are unmapped with what lies
/// behind them, which is the highest gap that is large enough then.
#[test]
fn what_moves_never_goes_to_pages_of_its_own() {
    const UNIT: u64 = 1 << 12;
    let (mut moved, mut gone) = (0, 0);
    for pins in 0.. {
        let sim = Sim::new(2, 256);
        let preempted = sim.cpus.on(0, |ctx| {
            let space = sim.space(&ctx);
            let all = space.map(Placement::Anywhere, 4 * UNIT, anonymous(Prot::READ), &ctx);
            let edge = all.expect("there is room").start().number() + UNIT;
            space.map(Placement::Fixed(page(edge - 5)), 10, anonymous(RW), &ctx).expect("there is room");
            let others = space.clone();
            testing::preempt_after(pins, move || {
                let unmap = |ctx: percpu::Unpinned<'_>| others.unmap(range(edge, 2 * UNIT), &ctx);
                std::thread::scope(|threads| {
                    let other = threads.spawn(|| sim.cpus.on(1, unmap));
                    assert_eq!(other.join().expect("it ends"), Ok(()));
                });
            });
            let to = space.remap(range(edge - 5, 10), 2 * UNIT, RemapTo::MayMove, &ctx);
            let preempted = testing::was_preempted();
            match to {
                Ok(_) => moved += 1,
                Err(error) => {
                    assert_eq!(error, Error::NoMapping);
                    gone += 1;
                }
            }
            space.clear(&ctx);
            assert_eq!(sim.owned(), [0; Use::COUNT]);
            preempted
        });
        if !preempted {
            break;
        }
    }
    assert!(moved > 0 && gone > 0, "moved {moved} times, gone before {gone} times");
}

#[test]
fn limits_are_exact_whoever_asks() {
    let sim = Sim::new(4, 256);
    let space = sim.cpus.on(0, |ctx| sim.space(&ctx));
    let admitted = AtomicU64::new(0);
    const LIMIT: u64 = 500;
    sim.cpus.run(|cpu, ctx| {
        for i in 0..100u64 {
            let at = Placement::Fixed(page((1 << 20) + (cpu.index() as u64 * 100 + i) * 16));
            let limits = Limits { pages: LIMIT, ..Limits::NONE };
            match space.map_within(at, 3, &anonymous(RW), &limits, &ctx) {
                Ok(_) => drop(admitted.fetch_add(3, Ordering::Relaxed)),
                Err(error) => assert_eq!(error, Error::Limit),
            }
        }
    });
    // As many as fit, and no more.
    assert_eq!(admitted.load(Ordering::Relaxed), LIMIT / 3 * 3);
    sim.cpus.on(0, |ctx| {
        assert_eq!(space.usage(&ctx).totals.pages, LIMIT / 3 * 3);
        assert_eq!(space.usage(&ctx).totals.peak, LIMIT / 3 * 3);
        space.clear(&ctx);
    });
}

#[test]
fn a_terabyte_that_is_not_used_costs_nothing() {
    const PAGES: u64 = 1 << 28;
    let sim = Sim::new(1, 64);
    sim.cpus.on(0, |ctx| {
        let space = sim.space(&ctx);
        let range = space.map(Placement::Anywhere, PAGES, anonymous(RW), &ctx).expect("there is room");
        let middle = page(range.start().number() + PAGES / 2 + 5);
        assert_eq!(space.fault(middle.base(), Access::Write, &ctx), Ok(()));
        let child = space.fork(&ctx).expect("there is memory");
        assert_eq!(child.usage(&ctx).mapped_pages, PAGES);
        assert_eq!(child.usage(&ctx).resident_pages, 1);
        assert_eq!(space.unmap(range, &ctx), Ok(()));
        assert_eq!(space.usage(&ctx).mappings, 0);
        child.clear(&ctx);
        space.clear(&ctx);
        assert_eq!(sim.owned(), [0; Use::COUNT]);
    });
}

#[test]
fn the_most_pages_are_known_to_a_few() {
    let sim = Sim::new(1, 512);
    sim.cpus.on(0, |ctx| {
        let space = sim.space(&ctx);
        let at = Placement::Fixed(page(BASE));
        space.map(at, 300, anonymous(RW), &ctx).expect("there is room");
        for i in 0..300 {
            assert_eq!(space.fault(page(BASE + i).base(), Access::Write, &ctx), Ok(()));
        }
        assert_eq!(space.unmap(range(BASE, 300), &ctx), Ok(()));
        let usage = space.usage(&ctx);
        assert_eq!((usage.mapped_pages, usage.resident_pages), (0, 0));
        assert_eq!(usage.totals.peak, 300);
        assert!((300 - 32..=300).contains(&usage.peak_resident), "{}", usage.peak_resident);
        space.clear(&ctx);
    });
}

/// Nobody has looked at the sum while it grew: the CPU that makes it smaller must, also one whose own part never grew.
#[test]
fn the_most_pages_are_known_when_another_cpu_takes_them_away() {
    let sim = Sim::new(2, 512);
    let space = sim.cpus.on(0, |ctx| {
        let space = sim.space(&ctx);
        space.map(Placement::Fixed(page(BASE)), 300, anonymous(RW), &ctx).expect("there is room");
        for i in 0..300 {
            assert_eq!(space.fault(page(BASE + i).base(), Access::Write, &ctx), Ok(()));
        }
        space
    });
    sim.cpus.on(1, |ctx| {
        // In two steps: what is looked at is the sum before the first.
        assert_eq!(space.unmap(range(BASE, 200), &ctx), Ok(()));
        assert_eq!(space.unmap(range(BASE + 200, 100), &ctx), Ok(()));
        let usage = space.usage(&ctx);
        assert_eq!((usage.mapped_pages, usage.resident_pages), (0, 0));
        assert!(usage.totals.peak >= 300 - 32, "{}", usage.totals.peak);
        assert!(usage.peak_resident >= 300 - 32, "{}", usage.peak_resident);
        space.clear(&ctx);
    });
}

#[test]
fn cpus_map_apart_and_get_the_same_place_again() {
    const GIB: u64 = 1 << 18;
    let sim = Sim::new(2, 64);
    let space = sim.cpus.on(0, |ctx| sim.space(&ctx));
    let place = |cpu: usize, pages: u64| {
        sim.cpus.on(cpu, |ctx| {
            let range = space.map(Placement::Anywhere, pages, anonymous(RW), &ctx);
            range.expect("there is room").start().number()
        })
    };
    let (zero, one) = (place(0, 4), place(1, 4));
    assert_ne!(zero / GIB, one / GIB);
    assert_eq!(place(0, 8), zero - 8);
    sim.cpus.on(0, |ctx| assert_eq!(space.unmap(range(zero, 4), &ctx), Ok(())));
    assert_eq!(place(0, 4), zero);
    sim.cpus.on(0, |ctx| space.clear(&ctx));
}

#[test]
fn addresses_are_used_again() {
    const PAGES: u64 = 1000;
    let sim = Sim::new(1, 64);
    sim.cpus.on(0, |ctx| {
        let space = sim.space(&ctx);
        let (mut kept, mut lowest) = (std::collections::VecDeque::new(), u64::MAX);
        // Sixteen times what two arenas have, of which little is in use at any time.
        for i in 0..16 * (2 << 18) / PAGES {
            let pages = PAGES + i % 3;
            let range = space.map(Placement::Anywhere, pages, anonymous(RW), &ctx).expect("there is room");
            lowest = lowest.min(range.start().number());
            kept.push_back(range);
            if kept.len() > 20 {
                let oldest = kept.pop_front().expect("there are 21");
                assert_eq!(space.unmap(oldest, &ctx), Ok(()));
            }
        }
        assert!(lowest > aspace::MMAP_TOP - (4 << 18), "down to page {lowest:#x}");
        space.clear(&ctx);
    });
}

/// Lets larger allocations of a thread fail, as the kernel's do when there is no memory.
struct Sparing;

thread_local! {
    static SPARES: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

// SAFETY: the system's allocator, which may fail.
unsafe impl std::alloc::GlobalAlloc for Sparing {
    unsafe fn alloc(&self, layout: std::alloc::Layout) -> *mut u8 {
        if layout.size() >= 512 && SPARES.get() {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's.
        unsafe { std::alloc::System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: std::alloc::Layout) {
        // SAFETY: the caller's.
        unsafe { std::alloc::System.dealloc(at, layout) };
    }
}

#[global_allocator]
static HEAP: Sparing = Sparing;

#[test]
fn a_space_of_many_tables_ends_without_memory() {
    const BLOCKS: u64 = 200;
    let sim = Sim::new(1, 1024);
    sim.cpus.on(0, |ctx| {
        let space = sim.space(&ctx);
        sim.enter(&*space, &ctx);
        for i in 0..BLOCKS {
            let at = page(BASE + (i << 9));
            space.map(Placement::Fixed(at), 1, anonymous(RW), &ctx).expect("there is room");
            assert_eq!(sim.store(&*space, at, i, &ctx), Ok(()));
        }
        assert!(space.usage(&ctx).table_pages > BLOCKS);
        sim.leave(&*space, &ctx);
        SPARES.set(true);
        space.clear(&ctx);
        SPARES.set(false);
        assert_eq!(sim.owned(), [0; Use::COUNT]);
    });
}

/// Unmap the only mapping of an object on CPU 0.
fn unmap_on_the_first(sim: &'static Sim, space: &dyn AddressSpace) -> std::sync::Weak<Pages> {
    sim.cpus.on(0, |ctx| {
        let pages = Pages::new(sim, 1, &[], &ctx);
        let mapping = object(&pages, 0, RW, true);
        space.map(Placement::Fixed(page(BASE)), 3, mapping, &ctx).expect("there is room");
        assert_eq!(space.unmap(range(BASE, 3), &ctx), Ok(()));
        std::sync::Arc::downgrade(&pages)
    })
}

#[test]
fn what_an_idle_cpu_has_unmapped_is_collected_by_another() {
    let sim = Sim::new(2, 64);
    let space = sim.cpus.on(0, |ctx| sim.space(&ctx));
    let pages = unmap_on_the_first(sim, &*space);
    sim.cpus.on(1, |ctx| {
        space.map(Placement::Fixed(page(BASE << 9)), 3, anonymous(RW), &ctx).expect("there is room");
    });
    assert!(!sim.realm.is_quiet() && pages.strong_count() > 0);
    sim.cpus.on(0, |ctx| assert!(sim.realm.idle_enter(&mut ctx.pin()), "CPU 1 is there"));
    sim.cpus.on(1, |ctx| {
        // As many as are made when memory is short.
        (0..32).for_each(|_| sim.tick(&ctx));
        assert_eq!(pages.strong_count(), 0);
        assert!(sim.realm.is_quiet());
        space.clear(&ctx);
    });
}

#[test]
fn who_naps_keeps_what_it_holds_until_it_comes_back() {
    let sim = Sim::new(2, 64);
    let space = sim.cpus.on(0, |ctx| sim.space(&ctx));
    let pages = unmap_on_the_first(sim, &*space);
    sim.cpus.on(0, |ctx| {
        assert!(!sim.realm.is_free(&ctx.pin()));
        sim.realm.nap(&mut ctx.pin());
    });
    sim.cpus.on(1, |ctx| {
        (0..32).for_each(|_| sim.tick(&ctx));
        assert!(pages.strong_count() > 0, "what a CPU held back was not awaited");
    });
    // The end of the nap.
    sim.cpus.on(0, |ctx| {
        sim.realm.idle_exit(&mut ctx.pin());
        _ = sim.realm.idle_enter(&mut ctx.pin());
        assert!(sim.realm.is_free(&ctx.pin()));
    });
    sim.cpus.on(1, |ctx| {
        (0..32).for_each(|_| sim.tick(&ctx));
        assert_eq!(pages.strong_count(), 0);
        space.clear(&ctx);
    });
}

#[test]
fn the_last_cpu_to_idle_goes_on_until_all_is_collected() {
    let sim = Sim::new(2, 64);
    let space = sim.cpus.on(0, |ctx| sim.space(&ctx));
    let pages = unmap_on_the_first(sim, &*space);
    // CPU 1 comes first, with nothing.
    sim.cpus.on(1, |ctx| assert!(sim.realm.idle_enter(&mut ctx.pin())));
    sim.cpus.on(0, |ctx| {
        let mut rounds = 0;
        while !sim.realm.idle_enter(&mut ctx.pin()) {
            sim.realm.idle_exit(&mut ctx.pin());
            sim.realm.rest(&mut ctx.pin());
            rounds += 1;
            assert!(rounds < 10, "there is always something left");
        }
        assert!(rounds > 0 && sim.realm.has_dead());
        sim.realm.reap(&ctx);
        assert_eq!(pages.strong_count(), 0);
        assert!(sim.realm.is_quiet());
        sim.realm.idle_exit(&mut ctx.pin());
        space.clear(&ctx);
    });
}

#[test]
fn objects_are_cut_and_descriptors_end_without_memory() {
    const MAPPINGS: u64 = 2000;
    let sim = Sim::new(1, 64);
    sim.cpus.on(0, |ctx| {
        let space = sim.space(&ctx);
        for round in 0..3 {
            let pages = Pages::new(sim, round, &[], &ctx);
            // The same page everywhere, so that no two are of one descriptor.
            for i in 0..MAPPINGS {
                let at = Placement::Fixed(page(BASE + i));
                space.map(at, 1, object(&pages, 7, RW, true), &ctx).expect("there is room");
            }
            assert_eq!(space.usage(&ctx).mappings, MAPPINGS);
            SPARES.set(true);
            pages.resize(sim, 0, &ctx);
            SPARES.set(false);
            assert_eq!(space.unmap(range(BASE, MAPPINGS), &ctx), Ok(()));
            let left = Arc::downgrade(&pages);
            drop(pages);
            SPARES.set(true);
            (0..32).for_each(|_| sim.tick(&ctx));
            SPARES.set(false);
            assert_eq!(left.strong_count(), 0);
        }
        space.clear(&ctx);
    });
}

/// Where many CPUs map one object, its count would be a line that all of them write.
#[test]
fn an_object_is_not_counted_for_a_mapping_that_the_cpu_knows() {
    let sim = Sim::new(1, 64);
    sim.cpus.on(0, |ctx| {
        let space = sim.space(&ctx);
        sim.enter(&*space, &ctx);
        let pages = Pages::new(sim, 1, &[7], &ctx);
        let shared = Mapping { shared: true, ..anonymous(RW) };
        let counts = [0, 1, 2].map(|_| {
            let at = Placement::Fixed(page(BASE));
            let mapped = space.map_within(at, 1, &shared.of(&pages, 0), &Limits::NONE, &ctx);
            assert_eq!(mapped, Ok((range(BASE, 1), false)));
            assert_eq!(sim.load(&*space, page(BASE), &ctx), Ok(7));
            assert_eq!(space.unmap(range(BASE, 1), &ctx), Ok(()));
            Arc::strong_count(&pages)
        });
        // The test's, and that of what the mapping is described by.
        assert_eq!(counts, [2; 3]);
        sim.leave(&*space, &ctx);
        space.clear(&ctx);
        (0..32).for_each(|_| sim.tick(&ctx));
        assert_eq!(Arc::strong_count(&pages), 1);
        pages.free(sim, &ctx);
    });
}

#[test]
fn every_cpu_that_runs_a_space_hears_of_its_end() {
    let sim = Sim::new(3, 64);
    let space = sim.cpus.on(0, |ctx| sim.space(&ctx));
    // CPU 1 has used nothing, CPU 2 has left.
    (0..3).for_each(|cpu| sim.cpus.on(cpu, |ctx| sim.enter(&*space, &ctx)));
    sim.cpus.on(2, |ctx| sim.leave(&*space, &ctx));
    *sim.targets.lock().unwrap() = CpuSet::EMPTY;
    sim.cpus.on(0, |ctx| {
        sim.leave(&*space, &ctx);
        space.clear(&ctx);
    });
    assert_eq!(*sim.targets.lock().unwrap(), cpus(&[1]));
    assert!(sim.owned()[Use::PageTable as usize] > 0);
    sim.cpus.on(1, |ctx| sim.leave(&*space, &ctx));
    assert_eq!(sim.owned(), [0; Use::COUNT]);
}

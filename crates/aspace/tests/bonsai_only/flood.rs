//! What unmappings leave behind for readers is bounded: one that stays where it is holds back who unmaps, and nobody's memory.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use aspace::Access;
use owned::Use;
use rcu::kernel::callbacks::{LEAST_HARD, SOFT};

use super::{BASE, end, machine::Sim, map, page, range};

/// Frames for twice what may wait. Nothing here touches more than a page at a time.
const FRAMES: usize = 2 * LEAST_HARD / addr::PAGE_BYTES + 1024;

/// The tables of a page that is mapped alone: all but the root.
const TABLES: usize = 3 * addr::PAGE_BYTES;

/// A fault that never ends, as far as who unmaps can tell, against mmap, a store and munmap without rest: what waits stays below
/// the limit, page tables with it, and who unmaps stands until the reader has left. In a call it holds nothing up but itself: faults
/// of others go on.
#[test]
fn a_reader_that_stays_holds_back_who_unmaps_and_no_memory() {
    let sim = Sim::new(3, FRAMES);
    let space = sim.cpus.on(0, |ctx| {
        let space = sim.space(&ctx);
        sim.enter(&*space, &ctx);
        space
    });
    let space = &*space;
    let domain = sim.realm.sections();
    let [begun, stands, left, over] = [(); 4].map(|()| AtomicBool::new(false));
    let [most, tables, others] = [(); 3].map(|()| AtomicUsize::new(0));
    std::thread::scope(|s| {
        // The reader, in the midst of a look-up.
        s.spawn(|| {
            sim.cpus.on(1, |ctx| {
                let pin = ctx.pin();
                let section = domain.read(&pin);
                begun.store(true, Ordering::Release);
                let is_wanted = || stands.load(Ordering::Acquire) && others.load(Ordering::Acquire) > 0;
                while !is_wanted() && !over.load(Ordering::Acquire) {
                    std::thread::yield_now();
                }
                left.store(is_wanted(), Ordering::Release);
                drop(section);
                drop(pin);
                while !over.load(Ordering::Acquire) {
                    sim.tick(&ctx);
                    std::thread::yield_now();
                }
            });
        });
        // Another CPU, with a page of its own.
        s.spawn(|| {
            sim.cpus.on(2, |ctx| {
                let other = sim.space(&ctx);
                map(&*other, BASE, 1, &ctx);
                while !over.load(Ordering::Acquire) {
                    if stands.load(Ordering::Acquire) {
                        assert_eq!(other.fault(page(BASE).base(), Access::Write, &ctx), Ok(()));
                        others.fetch_add(1, Ordering::Release);
                    }
                    sim.tick(&ctx);
                    std::thread::yield_now();
                }
                other.clear(&ctx);
            });
        });
        sim.cpus.on(0, |ctx| {
            while !begun.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            let measure = || {
                most.fetch_max(domain.held(&ctx.pin()).0, Ordering::Relaxed);
                let owned = sim.frames.stats().owned[Use::PageTable as usize] as usize;
                tables.fetch_max(owned * addr::PAGE_BYTES, Ordering::Relaxed);
            };
            // Twice what may wait, if nobody held this back.
            for _ in 0..2 * domain.limit() / TABLES {
                map(space, BASE, 1, &ctx);
                assert_eq!(space.fault(page(BASE).base(), Access::Write, &ctx), Ok(()));
                assert_eq!(space.unmap(range(BASE, 1), &ctx), Ok(()));
                // As a thread on its way to user mode.
                if domain.is_asked(&ctx.pin()) {
                    domain.relieve(
                        &ctx,
                        |_| (),
                        || {
                            measure();
                            stands.store(!left.load(Ordering::Acquire), Ordering::Release);
                            std::thread::yield_now();
                        },
                    );
                }
                measure();
            }
            over.store(true, Ordering::Release);
        });
    });
    let (most, tables, limit) = (most.into_inner(), tables.into_inner(), domain.limit());
    println!("{most} bytes waited at most, and {tables} of page tables, of {limit}");
    assert!(left.into_inner(), "nobody was in the way");
    assert!(most <= limit + SOFT, "{most} bytes, of {limit}");
    assert!(tables <= limit + SOFT, "{tables} bytes of page tables, of {limit}");
    sim.cpus.on(0, |ctx| (0..100).for_each(|_| sim.tick(&ctx)));
    end(sim, space);
}

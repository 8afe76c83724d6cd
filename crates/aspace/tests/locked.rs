//! What `locked` promises of its page table, and no other design.

mod machine;

use aspace::{Access, Placement};
use machine::{RW, Sim, anonymous, page, range};
use owned::Use;

const BASE: u64 = 0x1000;

#[test]
fn a_failed_fork_leaves_no_writable_translation_behind() {
    // The fork fails for want of page tables after it has made the first pages read-only. The next one finds nothing
    // to downgrade; CPU 1 must not have kept a writable translation from before the first.
    let sim = Sim::new(2, 64);
    let space = sim.cpus.on(0, |ctx| {
        let space = sim.space(&ctx);
        for i in 0..4 {
            let at = Placement::Fixed(page(BASE + (i << 27)));
            space.map(at, 1, anonymous(RW), &ctx).expect("there is room");
            assert_eq!(space.fault(page(BASE + (i << 27)).base(), Access::Write, &ctx), Ok(()));
        }
        space
    });
    sim.cpus.on(1, |ctx| {
        sim.enter(&*space, &ctx);
        assert_eq!(sim.store(&*space, page(BASE), 7, &ctx), Ok(()));
        let mut hogs = Vec::new();
        let pin = ctx.pin();
        while !sim.frames.low() && hogs.len() < 60 {
            hogs.extend(sim.frames.alloc(&pin, Use::Kernel));
            sim.frames.drain(&pin);
        }
        // The root, and tables for one or two pages, but not for all.
        for _ in 0..6 {
            hogs.pop().into_iter().for_each(|frame| sim.frames.free(&pin, frame));
        }
        drop(pin);
        assert!(space.fork(&ctx).is_err());
        hogs.into_iter().for_each(|frame| sim.frames.free(&ctx.pin(), frame));
        let child = space.fork(&ctx).expect("there is memory again");
        assert_eq!(sim.store(&*space, page(BASE), 8, &ctx), Ok(()));
        sim.leave(&*space, &ctx);
        sim.enter(&*child, &ctx);
        assert_eq!(sim.load(&*child, page(BASE), &ctx), Ok(7), "the child sees its parent's store");
        sim.leave(&*child, &ctx);
        child.clear(&ctx);
        space.clear(&ctx);
        assert_eq!(sim.owned(), [0; Use::COUNT], "frames were not given back");
    });
}

#[test]
fn tables_go_with_the_last_mapping_that_they_serve() {
    let sim = Sim::new(1, 256);
    sim.cpus.on(0, |ctx| {
        let space = sim.space(&ctx);
        space.map(Placement::Fixed(page(BASE)), 2, anonymous(RW), &ctx).expect("there is room");
        sim.enter(&*space, &ctx);
        let tables = |n| assert_eq!(space.usage(&ctx).table_pages, n);
        tables(1);
        assert_eq!(sim.store(&*space, page(BASE), 1, &ctx), Ok(()));
        tables(4);
        assert_eq!(space.unmap(range(BASE, 1), &ctx), Ok(()));
        tables(4);
        let far = Placement::Fixed(page(BASE + (1 << 18)));
        space.map(far, 1, anonymous(RW), &ctx).expect("there is room");
        assert_eq!(sim.store(&*space, page(BASE + (1 << 18)), 1, &ctx), Ok(()));
        tables(6);
        assert_eq!(space.unmap(range(BASE, 2), &ctx), Ok(()));
        tables(4);
        assert_eq!(space.unmap(range(0, 1 << 30), &ctx), Ok(()));
        tables(1);
        sim.leave(&*space, &ctx);
        space.clear(&ctx);
        assert_eq!(sim.owned(), [0; Use::COUNT], "frames were not given back");
    });
}

//! Out of memory at every point: each scenario runs with 0, 1, 2, ... free frames until it succeeds with room to
//! spare. What fails says `NoMemory`, leaves the mappings, the contents and the frame counts as they were, and
//! succeeds once there is memory.

mod machine;

use std::sync::Arc;

use addr::Prot;
use aspace::{Access, AddressSpace, Advice, Error, Fault, Placement, RemapTo};
use machine::{Pages, RW, Sim, anonymous, list, object, page, range};
use owned::{OwnedFrame, Use};
use percpu::Unpinned;

/// Two leaf tables' border, with tables of all levels of its own.
const A: u64 = (5 << 27) + (3 << 18) + (7 << 9) - 4;
/// Another place, which shares only the root.
const B: u64 = (9 << 27) + 100;

struct World {
    sim: &'static Sim,
    space: Arc<dyn AddressSpace>,
    object: Arc<Pages>,
    children: std::cell::RefCell<Vec<Arc<dyn AddressSpace>>>,
}

impl World {
    /// Eight anonymous pages at `A`, of which four were written; two of an object at `B`, of which one was read.
    fn new(sim: &'static Sim, ctx: &Unpinned<'_>) -> Self {
        let object_ = Pages::new(sim, 1, &[71, 72], ctx);
        let space = sim.space(ctx);
        space.map(Placement::Fixed(page(A)), 8, anonymous(RW), ctx).expect("there is memory");
        let mapping = object(&object_, 0, RW, false);
        space.map(Placement::Fixed(page(B)), 2, mapping, ctx).expect("there is memory");
        sim.enter(&*space, ctx);
        for i in 2..6 {
            sim.store(&*space, page(A + i), 10 + i, ctx).expect("there is memory");
        }
        sim.load(&*space, page(B), ctx).expect("there is memory");
        World { sim, space, object: object_, children: Default::default() }
    }
    /// What the pages that have frames hold.
    fn contents(&self, ctx: &Unpinned<'_>) -> Vec<Result<u64, Fault>> {
        let pages = (A + 2..A + 6).chain([B]);
        pages.map(|n| self.sim.load(&*self.space, page(n), ctx)).collect()
    }
    fn end(self, ctx: &Unpinned<'_>) {
        self.sim.leave(&*self.space, ctx);
        self.children.take().iter().for_each(|child| child.clear(ctx));
        self.space.clear(ctx);
        self.object.free(self.sim, ctx);
        assert_eq!(self.sim.owned(), [0; Use::COUNT], "frames were not given back");
    }
}

/// Take frames until `left` are free.
fn hog(sim: &Sim, left: u64, ctx: &Unpinned<'_>) -> Vec<OwnedFrame> {
    let mut hogs = Vec::new();
    let pin = ctx.pin();
    loop {
        sim.frames.drain(&pin);
        if sim.frames.stats().free <= left {
            return hogs;
        }
        hogs.extend(sim.frames.alloc(&pin, Use::Kernel));
    }
}

/// Run `operation` at every level of free memory. `keeps_tables`: a failure may leave page tables that the mapping
/// has a use for. Prints how often it failed.
fn at_every_level(
    name: &str,
    keeps_tables: bool,
    prepare: impl Fn(&World, &Unpinned<'_>),
    operation: impl Fn(&World, &Unpinned<'_>) -> Result<(), Error>,
) {
    let (mut failed, mut succeeded) = (0, 0);
    for left in 0..40 {
        let sim = Sim::new(1, 64);
        sim.cpus.on(0, |ctx| {
            let world = World::new(sim, &ctx);
            prepare(&world, &ctx);
            let hogs = hog(sim, left, &ctx);
            let before = (list(&*world.space, &ctx), sim.owned());
            let answer = operation(&world, &ctx);
            let after = (list(&*world.space, &ctx), sim.owned());
            hogs.into_iter().for_each(|frame| sim.frames.free(&ctx.pin(), frame));
            match answer {
                Ok(()) => succeeded += 1,
                Err(error) => {
                    assert_eq!(error, Error::NoMemory);
                    failed += 1;
                    assert_eq!(before.0, after.0, "{name} with {left} frames changed the mappings");
                    for usage in Use::ALL.into_iter().filter(|&u| !(keeps_tables && u == Use::PageTable)) {
                        let count = |owned: &[u64; Use::COUNT]| owned[usage as usize];
                        assert_eq!(count(&before.1), count(&after.1), "{name} with {left} frames: {usage:?}");
                    }
                    let held = [12, 13, 14, 15, 71].map(Ok).to_vec();
                    assert_eq!(world.contents(&ctx), held, "{name} with {left} frames lost contents");
                    assert_eq!(operation(&world, &ctx), Ok(()), "{name} fails with memory");
                }
            }
            world.end(&ctx);
        });
    }
    println!("{name}: failed {failed} times, succeeded {succeeded}");
    assert!(failed > 0 && succeeded > 0, "{name}: the levels of memory are wrong");
}

fn nothing(_: &World, _: &Unpinned<'_>) {}

fn fault(world: &World, n: u64, access: Access, ctx: &Unpinned<'_>) -> Result<(), Error> {
    world.space.fault(page(n).base(), access, ctx).map_err(|fault| {
        assert_eq!(fault, Fault::NoMemory);
        Error::NoMemory
    })
}

#[test]
fn a_new_space() {
    at_every_level("a new space", false, nothing, |world, ctx| {
        let space = world.sim.try_space(ctx)?;
        space.clear(ctx);
        Ok(())
    });
}

#[test]
fn map_and_first_fault() {
    let there = Placement::Fixed(page(3 << 27));
    at_every_level(
        "first fault of a new region",
        true,
        |world, ctx| {
            world.space.map(there, 4, anonymous(RW), ctx).expect("there is memory");
        },
        |world, ctx| fault(world, (3 << 27) + 1, Access::Write, ctx),
    );
    at_every_level("map", false, nothing, |world, ctx| {
        world.space.map(there, 4, anonymous(RW), ctx)?;
        assert_eq!(world.space.unmap(range(3 << 27, 4), ctx), Ok(()));
        Ok(())
    });
}

#[test]
fn a_copy_of_an_objects_page() {
    at_every_level("store to a private object page", true, nothing, |world, ctx| {
        fault(world, B + 1, Access::Write, ctx)
    });
    at_every_level("store to a private object page that was read", false, nothing, |world, ctx| {
        fault(world, B, Access::Write, ctx)
    });
}

#[test]
fn a_copy_after_fork() {
    at_every_level(
        "store after fork",
        false,
        |world, ctx| {
            let child = world.space.fork(ctx).expect("there is memory");
            world.children.borrow_mut().push(child);
        },
        |world, ctx| fault(world, A + 2, Access::Write, ctx),
    );
}

#[test]
fn fork() {
    at_every_level("fork", false, nothing, |world, ctx| {
        let child = world.space.fork(ctx)?;
        world.children.borrow_mut().push(child);
        Ok(())
    });
}

#[test]
fn remap_to_a_new_place() {
    let to = (11 << 27) - 4;
    at_every_level("remap that moves", false, nothing, |world, ctx| {
        let moved = world.space.remap(range(A, 8), 700, RemapTo::Fixed(page(to)), ctx)?;
        assert_eq!(moved, page(to));
        Ok(())
    });
}

#[test]
fn remap_onto_other_mappings() {
    at_every_level(
        "remap that replaces",
        // One for the mapping in the way.
        true,
        |world, ctx| {
            // A mapping that is in the way, and has no page table where the moved pages need one.
            world
                .space
                .map(Placement::Fixed(page(12 << 27)), 3, anonymous(RW), ctx)
                .expect("there is memory");
        },
        |world, ctx| {
            let moved = world.space.remap(range(A, 6), 6, RemapTo::Fixed(page((12 << 27) - 3)), ctx)?;
            assert_eq!(moved, page((12 << 27) - 3));
            Ok(())
        },
    );
}

#[test]
fn splitting_calls() {
    at_every_level("unmap in the middle", false, nothing, |world, ctx| {
        world.space.unmap(range(A + 1, 1), ctx)
    });
    at_every_level("protect in the middle", false, nothing, |world, ctx| {
        world.space.protect(range(A + 1, 1), Prot::READ, ctx)
    });
}

#[test]
fn what_gives_memory_back_needs_none() {
    let sim = Sim::new(1, 64);
    sim.cpus.on(0, |ctx| {
        let world = World::new(sim, &ctx);
        let hogs = hog(sim, 0, &ctx);
        assert_eq!(world.space.advise(range(A, 4), Advice::DontNeed, &ctx), Ok(()));
        assert_eq!(world.space.unmap(range(A + 3, 20), &ctx), Ok(()));
        assert_eq!(world.space.remap(range(A, 3), 1, RemapTo::InPlace, &ctx), Ok(page(A)));
        hogs.into_iter().for_each(|frame| sim.frames.free(&ctx.pin(), frame));
        world.end(&ctx);
    });
}

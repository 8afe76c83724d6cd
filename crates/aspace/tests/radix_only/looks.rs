//! Looks without a lock, while what they look at changes.

use std::sync::{Arc, Mutex};

use addr::{PageRange, Prot};
use aspace::{AddressSpace, Placement};
use percpu::Unpinned;
use sync::pause;

use super::{
    BASE,
    machine::{RW, Sim, anonymous, page, range},
};

/// A page, and then, mapped over it and what is around it, six.
const SMALL: (u64, u64) = (BASE, 1);
const LARGE: (u64, u64) = (BASE - 2, 6);

/// What `look` of CPU 0 at [`BASE`] finds, if CPU 1 maps anew what is there once the look has found it, and before it looks how far
/// it goes. `first` was mapped before, for reading, and `then` is mapped over it, for writing too.
fn look_while_mapped(
    first: (u64, u64),
    then: (u64, u64),
    look: impl Fn(&dyn AddressSpace, &Unpinned<'_>) -> Option<(PageRange, Prot)>,
) -> Option<(PageRange, Prot)> {
    let sim = Sim::new(2, 64);
    let map = |space: &dyn AddressSpace, (at, pages), prot, ctx: &Unpinned<'_>| {
        space.map(Placement::Fixed(page(at)), pages, anonymous(prot), ctx).expect("there is room");
    };
    sim.cpus.on(0, |ctx| {
        let space = sim.space(&ctx);
        map(&*space, first, Prot::READ, &ctx);
        let (there, done) = (space.clone(), Arc::new(Mutex::new(false)));
        let ends = done.clone();
        pause::once_at("radix-area-found", move || {
            let other = || sim.cpus.on(1, |ctx| map(&*there, then, RW, &ctx));
            std::thread::scope(|threads| threads.spawn(other).join()).expect("nobody is waited for");
            *ends.lock().unwrap() = true;
        });
        let found = look(&*space, &ctx);
        assert!(*done.lock().unwrap(), "the look was not interrupted");
        space.clear(&ctx);
        found
    })
}

/// A mapping's extent is that of what was found, or of what came after: never the one's description with the other's extent.
fn is_of_one_of_them(first: (u64, u64), then: (u64, u64), found: Option<(PageRange, Prot)>) {
    let (first, then) = (range(first.0, first.1), range(then.0, then.1));
    match found {
        // What was found, as far as it is still there.
        Some((found, Prot::READ)) => {
            assert!(found.intersect(first) == Some(found), "{found:?} was never all for reading");
        }
        Some((found, RW)) => assert_eq!(found, then),
        other => panic!("{other:?} was never there"),
    }
}

#[test]
fn a_mapping_is_reported_with_an_extent_of_its_own() {
    for (first, then) in [(SMALL, LARGE), (LARGE, SMALL)] {
        let found = look_while_mapped(first, then, |space, ctx| {
            let mut found = None;
            space.areas(range(BASE, 1), ctx, &mut |info| found = Some((info.range, info.mapping.prot)));
            found
        });
        is_of_one_of_them(first, then, found);
    }
}

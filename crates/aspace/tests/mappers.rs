//! The list of an object's mappers, with address spaces that do nothing but join it.
#![cfg(not(loom))]

use std::{
    ops::Range,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use aspace::{MOVES, Mapper, Mappers};
use percpu::{Unpinned, testing};

/// Counts its visits. As if a fork had begun before the visit and ended just before it, the first visit finds a child
/// on the list that was not there when the cut began.
struct Parent {
    visits: AtomicU64,
    child: Mutex<Option<Arc<Parent>>>,
}

impl Parent {
    fn new(child: Option<Arc<Parent>>) -> Arc<Self> {
        Arc::new(Self { visits: AtomicU64::new(0), child: Mutex::new(child) })
    }
    fn visits(&self) -> u64 {
        self.visits.load(Ordering::Relaxed)
    }
}

fn weak(space: &Arc<Parent>) -> Weak<dyn Mapper> {
    let space: Arc<dyn Mapper> = space.clone();
    Arc::downgrade(&space)
}

impl Mapper for Parent {
    fn cut(&self, of: &Mappers, _: Range<u64>, _: bool, ctx: &Unpinned<'_>) {
        self.visits.fetch_add(1, Ordering::Relaxed);
        if let Some(child) = &*self.child.lock().unwrap() {
            of.add(&weak(child), 1, false, &ctx.pin());
        }
    }
    fn count(&self, _: &Mappers, _: &Unpinned<'_>) -> u64 {
        1
    }
    fn shown(&self, _: &Mappers, _: Range<u64>, _: &Unpinned<'_>, _: &mut dyn FnMut(u64)) {}
}

#[test]
fn a_space_that_was_forked_meanwhile_is_visited_too() {
    let grandchild = Parent::new(None);
    let child = Parent::new(Some(grandchild.clone()));
    let parent = Parent::new(Some(child.clone()));
    let mappers = Mappers::new();
    testing::Machine::new(1).on(0, |ctx| {
        mappers.add(&weak(&parent), 1, false, &ctx.pin());
        mappers.cut(0..1, true, &ctx);
    });
    assert_eq!([&parent, &child, &grandchild].map(|space| space.visits()), [1, 1, 1]);
}

/// Mappers whose CPUs have lists of their own, and nobody in them.
fn spread(machine: &testing::Machine) -> Mappers {
    let (mappers, space) = (Mappers::new(), Parent::new(None));
    for turn in 0..MOVES as usize + machine.cpus() {
        machine.on(turn % machine.cpus(), |ctx| {
            assert!(mappers.add(&weak(&space), 1, false, &ctx.pin()));
            mappers.sub(&weak(&space), 1, false, &ctx.pin());
        });
    }
    mappers
}

#[test]
fn what_is_mapped_on_one_cpu_and_unmapped_on_another_is_mapped_no_more() {
    let machine = testing::Machine::new(2);
    let mappers = spread(&machine);
    let space = Parent::new(None);
    let me = weak(&space);
    let seen = |ctx: &Unpinned<'_>| {
        mappers.cut(0..1, true, ctx);
        (mappers.is_mapped(), mappers.count(ctx), space.visits())
    };
    machine.on(0, |ctx| assert!(mappers.add(&me, 3, true, &ctx.pin())));
    machine.on(1, |ctx| {
        mappers.sub(&me, 2, true, &ctx.pin());
        assert_eq!(seen(&ctx), (true, 1, 1));
        assert!(!mappers.seal());
        assert!(mappers.add(&me, 1, true, &ctx.pin()));
        mappers.sub(&me, 2, true, &ctx.pin());
        assert_eq!(seen(&ctx), (false, 0, 1));
        assert!(mappers.seal());
        assert!(!mappers.add(&me, 1, true, &ctx.pin()));
        assert!(mappers.add(&me, 1, false, &ctx.pin()));
    });
    machine.on(0, |ctx| {
        assert!(!mappers.add(&me, 1, true, &ctx.pin()));
        assert_eq!(seen(&ctx), (true, 1, 2));
    });
    // A CPU that comes later finds it sealed too.
    testing::Machine::new(3).on(2, |ctx| assert!(!mappers.add(&me, 1, true, &ctx.pin())));
}

/// Pages go from the list that is looked at last to the one that is looked at first: as when a parent forks and ends.
#[test]
fn what_is_mapped_at_any_time_is_never_missed() {
    const LOOKS: usize = 150_000;
    // With many lists between the two, so that a look takes its time.
    const LAST: usize = 99;
    let machine = testing::Machine::new(LAST + 1);
    let mappers = spread(&machine);
    let spaces = [Parent::new(None), Parent::new(None)];
    let [parent, child] = spaces.each_ref().map(weak);
    machine.on(LAST, |ctx| assert!(mappers.add(&parent, 1, false, &ctx.pin())));
    let done = AtomicBool::new(false);
    let missed = std::thread::scope(|threads| {
        threads.spawn(|| {
            let go = |cpu, comes, goes| {
                machine.on(cpu, |ctx| assert!(mappers.add(comes, 1, false, &ctx.pin())));
                machine.on(LAST - cpu, |ctx| mappers.sub(goes, 1, false, &ctx.pin()));
            };
            while !done.load(Ordering::Relaxed) {
                go(0, &child, &parent);
                go(LAST, &parent, &child);
            }
        });
        let missed = (0..LOOKS).filter(|_| !mappers.is_mapped()).count();
        done.store(true, Ordering::Relaxed);
        missed
    });
    assert_eq!(missed, 0);
}

#[test]
fn spaces_that_are_no_more_are_forgotten() {
    let machine = testing::Machine::new(2);
    let mappers = spread(&machine);
    for _ in 0..1000 {
        let space = Parent::new(None);
        machine.on(0, |ctx| assert!(mappers.add(&weak(&space), 1, false, &ctx.pin())));
        machine.on(1, |ctx| mappers.sub(&weak(&space), 1, false, &ctx.pin()));
    }
    let report = format!("{mappers:?}");
    let entries = report.split("entries: ").nth(1).and_then(|rest| rest.split(',').next());
    let entries: usize = entries.expect("they are told").parse().expect("a number");
    assert!((2..=11).contains(&entries), "{report}");
}

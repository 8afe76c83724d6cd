//! Where policies want pages, and whose policy is in force.
#![cfg(not(loom))]

mod machine;

use std::{
    cell::Cell,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use addr::Frame;
use aspace::{
    Access, AddressSpace, Advice, Backing, Error, Mapping, Mode, Object, ObjectError, Place, Placement,
    Policy, RemapTo, Seen, Unmoved,
};
use frames::{Node, NodeSet};
use machine::{RW, Sim, anonymous, page, range};
use owned::{Memory, OwnedFrame, Use};
use percpu::Unpinned;

fn node(n: usize) -> Node {
    Node::new(n).expect("a node")
}
fn policy(mode: Mode, nodes: &[usize]) -> Policy {
    let nodes: NodeSet = nodes.iter().map(|&n| node(n)).collect();
    Policy { mode, nodes, told: nodes, ..Policy::DEFAULT }
}

#[test]
fn a_policy_comes_to_a_place_for_each_page() {
    let places = |policy: Policy| [7, 8, 9].map(|index| policy.place(index));
    let set = |nodes: &[usize]| policy(Mode::Bind, nodes).nodes;
    assert_eq!(places(Policy::DEFAULT), [Place::Local; 3]);
    assert_eq!(places(policy(Mode::Local, &[])), [Place::Local; 3]);
    assert_eq!(places(policy(Mode::Preferred, &[2, 5])), [Place::Prefer(node(2)); 3]);
    assert_eq!(places(policy(Mode::PreferredMany, &[2, 5])), [Place::PreferAny(set(&[2, 5]), None); 3]);
    let home = Policy { home: Some(node(5)), ..policy(Mode::Bind, &[2, 5]) };
    assert_eq!(places(home), [Place::Bind(set(&[2, 5]), Some(node(5))); 3]);
    for mode in [Mode::Interleave, Mode::WeightedInterleave] {
        let turns = [3, 0, 1].map(|n| Place::Prefer(node(n)));
        assert_eq!([2, 3, 4].map(|index| policy(mode, &[0, 1, 3]).place(index)), turns);
    }
}

/// An object that keeps the policies by which its pages were asked for.
#[derive(Default)]
struct Listener {
    asked: Mutex<Vec<(u64, Policy)>>,
}

impl Object for Listener {
    fn page(
        &self,
        index: u64,
        policy: &Policy,
        _: &Memory,
        _: &Unpinned<'_>,
    ) -> Result<OwnedFrame, ObjectError> {
        self.asked.lock().unwrap().push((index, *policy));
        Err(ObjectError::BeyondEnd)
    }
    fn identity(&self) -> (u64, u64) {
        (1, 1)
    }
    fn path(&self) -> Vec<u8> {
        Vec::new()
    }
}

#[test]
fn the_mappings_policy_is_in_force_and_else_the_callers() {
    let sim = Sim::new(1, 64);
    sim.cpus.on(0, |ctx| {
        let space = sim.space(&ctx);
        let object = Arc::new(Listener::default());
        let mapping = Mapping {
            shared: true,
            ..Mapping::new(RW, Backing::Object { object: object.clone(), page: 10 })
        };
        space.map(Placement::Fixed(page(100)), 4, mapping, &ctx).expect("there is memory");
        let bound = policy(Mode::Bind, &[1]);
        let callers = policy(Mode::Interleave, &[0, 1]);
        space.advise(range(102, 2), Advice::Place(bound), &ctx).expect("it is mapped");
        // A mapping that was told to be local is, whatever its users were told.
        let local = policy(Mode::Local, &[]);
        space.advise(range(103, 1), Advice::Place(local), &ctx).expect("it is mapped");
        for at in 101..104 {
            assert!(space.fault_by(&callers, page(at).base(), Access::Read, &ctx).is_err());
        }
        assert!(space.fault(page(100).base(), Access::Read, &ctx).is_err());
        let asked = object.asked.lock().unwrap().split_off(0);
        assert_eq!(asked, [(11, callers), (12, bound), (13, local), (10, Policy::DEFAULT)]);
        space.clear(&ctx);
    });
}

/// The policies of what is mapped, with the first page and the length of each mapping.
fn policies(space: &dyn AddressSpace, ctx: &Unpinned<'_>) -> Vec<(u64, u64, Policy)> {
    let mut all = Vec::new();
    space.mappings(ctx, &mut |info| {
        all.push((info.range.start().number(), info.range.len(), info.mapping.policy.get()));
    });
    all
}

#[test]
fn policies_split_join_move_and_are_inherited() {
    let sim = Sim::new(1, 256);
    sim.cpus.on(0, |ctx| {
        let space = sim.space(&ctx);
        space.map(Placement::Fixed(page(100)), 8, anonymous(RW), &ctx).expect("there is memory");
        let bound = policy(Mode::Bind, &[0]);
        let home = Policy { home: Some(node(0)), ..bound };
        let place = |at, pages, policy| space.advise(range(at, pages), Advice::Place(policy), &ctx);
        assert_eq!(place(102, 2, bound), Ok(()));
        assert_eq!(place(104, 2, bound), Ok(()));
        let default = Policy::DEFAULT;
        assert_eq!(policies(&*space, &ctx), [(100, 2, default), (102, 4, bound), (106, 2, default)]);
        assert_eq!(place(105, 1, home), Ok(()));
        let split = [(100, 2, default), (102, 3, bound), (105, 1, home), (106, 2, default)];
        assert_eq!(policies(&*space, &ctx), split);
        // A hole is an error but for the default; nothing has changed then.
        assert_eq!(place(107, 2, bound), Err(Error::NoMapping));
        assert_eq!(policies(&*space, &ctx), split);
        let child = space.fork(&ctx).expect("there is memory");
        assert_eq!(policies(&*child, &ctx), split);
        child.clear(&ctx);
        space.remap(range(102, 3), 3, RemapTo::Fixed(page(300)), &ctx).expect("there is memory");
        assert_eq!(
            policies(&*space, &ctx),
            [(100, 2, default), (105, 1, home), (106, 2, default), (300, 3, bound)]
        );
        assert_eq!(place(90, 30, default), Ok(()));
        assert_eq!(place(300, 3, default), Ok(()));
        assert_eq!(policies(&*space, &ctx), [(100, 2, default), (105, 3, default), (300, 3, default)]);
        space.clear(&ctx);
    });
}

#[test]
fn a_page_that_moves_keeps_what_siblings_store_to_it() {
    const MOVES: u64 = 300;
    let sim = Sim::new(2, 256);
    let space = sim.cpus.on(0, |ctx| {
        let space = sim.space(&ctx);
        space.map(Placement::Fixed(page(100)), 1, anonymous(RW), &ctx).expect("there is memory");
        space
    });
    let (stores, done, failed) = (AtomicU64::new(0), AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            sim.cpus.on(1, |ctx| {
                sim.enter(&*space, &ctx);
                let mut n = 0;
                while !done.load(Ordering::Relaxed) {
                    n += 1;
                    let stored = sim.store(&*space, page(100), n, &ctx);
                    // A store that went to a frame that was left behind is lost here.
                    let loaded = sim.load(&*space, page(100), &ctx);
                    if (stored, loaded) != (Ok(()), Ok(n)) {
                        failed.store(true, Ordering::Relaxed);
                        panic!("{stored:?}, then {loaded:?} instead of {n}");
                    }
                    stores.store(n, Ordering::Relaxed);
                }
                sim.leave(&*space, &ctx);
            });
        });
        sim.cpus.on(0, |ctx| {
            let (mut moved, mut last) = (0, 0);
            while moved < MOVES {
                // There is something to lose.
                while stores.load(Ordering::Relaxed) == last && !failed.load(Ordering::Relaxed) {
                    machine::relax();
                }
                last = stores.load(Ordering::Relaxed);
                if failed.load(Ordering::Relaxed) {
                    break;
                }
                let first = Cell::new(true);
                let answer = space.move_page(page(100), Place::Local, &|_| !first.replace(false), &ctx);
                moved += u64::from(answer == Ok(()));
                assert!(!matches!(answer, Err(Unmoved::NoMapping | Unmoved::Object | Unmoved::NoMemory)));
            }
            done.store(true, Ordering::Relaxed);
        });
    });
    sim.cpus.on(0, |ctx| {
        space.clear(&ctx);
        assert_eq!(sim.owned(), [0; Use::COUNT]);
    });
}

#[test]
fn pages_stay_where_they_may_and_where_there_is_no_place() {
    let sim = Sim::new(1, 256);
    sim.cpus.on(0, |ctx| {
        let space = sim.space(&ctx);
        space.map(Placement::Fixed(page(100)), 3, anonymous(RW), &ctx).expect("there is memory");
        sim.enter(&*space, &ctx);
        sim.store(&*space, page(100), 7, &ctx).expect("there is memory");
        let frame = || {
            let mut frame = None;
            space.inspect(range(100, 1), &ctx, &mut |seen| {
                if let Seen::Page(_, page) = seen {
                    frame = page.frame;
                }
            });
            frame.expect("it was stored to")
        };
        let here = frame();
        let go = |at, wanted: &dyn Fn(Frame) -> bool| space.move_page(page(at), Place::Local, wanted, &ctx);
        assert_eq!(go(100, &|frame| frame == here), Ok(()));
        assert_eq!(go(100, &|_| false), Err(Unmoved::NoMemory));
        assert_eq!(frame(), here);
        // Its rights come back with the next store.
        assert_eq!(sim.store(&*space, page(100), 8, &ctx), Ok(()));
        assert_eq!(frame(), here);
        assert_eq!(go(100, &|frame| frame != here), Ok(()));
        assert_ne!(frame(), here);
        assert_eq!(sim.load(&*space, page(100), &ctx), Ok(8));
        assert_eq!(go(101, &|_| false), Err(Unmoved::Empty));
        assert_eq!(go(103, &|_| false), Err(Unmoved::NoMapping));
        let child = space.fork(&ctx).expect("there is memory");
        assert_eq!(go(100, &|_| false), Err(Unmoved::Shared));
        child.clear(&ctx);
        sim.leave(&*space, &ctx);
        space.clear(&ctx);
    });
}

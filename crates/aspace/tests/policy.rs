//! Where policies want pages, and whose policy is in force.
#![cfg(not(loom))]

mod machine;

use std::sync::{Arc, Mutex};

use aspace::{
    Access, AddressSpace, Advice, Backing, Error, Mapping, Mode, Object, ObjectError, Place, Placement,
    Policy, RemapTo,
};
use frames::{Frames, Node, NodeSet, OwnedFrame};
use machine::{RW, Sim, anonymous, page, range};
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
        _: &Frames,
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
        all.push((info.range.start().number(), info.range.len(), info.mapping.policy));
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

//! The list of an object's mappers, with address spaces that do nothing but join it.
#![cfg(not(loom))]

use std::{
    ops::Range,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use aspace::{Mapper, Mappers};
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
    fn cut(&self, of: &Mappers, _: Range<u64>, _: bool, _: &Unpinned<'_>) {
        self.visits.fetch_add(1, Ordering::Relaxed);
        if let Some(child) = &*self.child.lock().unwrap() {
            of.add(&weak(child), 1, false);
        }
    }
    fn count(&self, _: &Mappers, _: &Unpinned<'_>) -> u64 {
        1
    }
}

#[test]
fn a_space_that_was_forked_meanwhile_is_visited_too() {
    let grandchild = Parent::new(None);
    let child = Parent::new(Some(grandchild.clone()));
    let parent = Parent::new(Some(child.clone()));
    let mappers = Mappers::new();
    mappers.add(&weak(&parent), 1, false);
    testing::Machine::new(1).on(0, |ctx| mappers.cut(0..1, true, &ctx));
    assert_eq!([&parent, &child, &grandchild].map(|space| space.visits()), [1, 1, 1]);
}

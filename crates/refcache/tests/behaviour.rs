//! What the crate promises, each in the least setting that shows it.

#![cfg(not(any(loom, shuttle)))]

use std::{
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use percpu::{CpuId, Pinned};
use refcache::{AllStopped, Budget, Counted, Domain, RefHead, word};

/// An object that counts how often it was disposed of.
#[repr(C)]
struct Object {
    head: RefHead,
    disposed: AtomicU64,
}

// SAFETY: the head is the first field, made for this type.
unsafe impl Counted for Object {
    fn head(&self) -> &RefHead {
        &self.head
    }
    unsafe fn dispose(this: NonNull<Self>, _: &Pinned<'_>) {
        // SAFETY: the tests' objects outlive their domains.
        unsafe { this.as_ref() }.disposed.fetch_add(1, Ordering::Relaxed);
    }
}

impl Object {
    fn new(count: i64) -> Self {
        Self { head: RefHead::new::<Self>(count), disposed: AtomicU64::new(0) }
    }
    fn disposed(&self) -> u64 {
        self.disposed.load(Ordering::Relaxed)
    }
}

/// CPU number `cpu`: each test is one thread, which is all CPUs in turn.
fn pin(cpu: usize) -> Pinned<'static> {
    // SAFETY: as said.
    unsafe { Pinned::assume(CpuId::new(cpu).expect("a CPU")) }
}

fn stopped() -> AllStopped {
    // SAFETY: each test is one thread.
    unsafe { AllStopped::assume() }
}

#[test]
fn an_object_is_disposed_of_once_after_its_last_reference() {
    let domain = Domain::<16>::new(2);
    let o = Object::new(1);
    // SAFETY: the count began at 1; two more and three fewer.
    unsafe {
        domain.add(&o, 2, &pin(0));
        domain.add(&o, -2, &pin(1));
        assert_eq!(domain.exact(&o, &stopped()), 1);
        domain.settle(&stopped());
        assert_eq!(o.disposed(), 0);
        domain.add(&o, -1, &pin(1));
    }
    domain.settle(&stopped());
    assert_eq!((o.disposed(), domain.stats().freed), (1, 1));
    let _ = (Budget::ALL, word::EMPTY);
}

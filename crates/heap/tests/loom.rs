//! Every interleaving of an object's way back from another CPU. `cfg(loom)` only.
#![cfg(loom)]
#![allow(unsafe_code)] // the harness keeps the promises of `Heap`

use std::{
    alloc::Layout,
    ptr::NonNull,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use heap::{Class, Heap};
use loom::{cell::UnsafeCell, sync::Arc, thread};
use percpu::CpuId;

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).unwrap()
}

/// Run `f` for every interleaving, and say how many there were.
fn explore(name: &str, f: impl Fn() + Sync + Send + 'static) {
    let executions = std::sync::Arc::new(AtomicUsize::new(0));
    let count = executions.clone();
    loom::model(move || {
        count.fetch_add(1, Relaxed);
        f();
    });
    println!("loom {name}: {} executions, complete", executions.load(Relaxed));
}

fn memory(bytes: usize, align: usize) -> NonNull<u8> {
    // SAFETY: the size isn't 0.
    NonNull::new(unsafe { std::alloc::alloc(Layout::from_size_align(bytes, align).unwrap()) }).unwrap()
}

/// A heap of `cpus` CPUs, the first of which has a slab of objects of 1024 bytes; and what stands for the objects' contents.
struct World {
    heap: Heap,
    base: usize,
    contents: [UnsafeCell<u32>; 2],
}
// SAFETY: loom checks the accesses to the cells, and each thread is a CPU of its own.
unsafe impl Sync for World {}
// SAFETY: as above.
unsafe impl Send for World {}

/// An address, to be moved to another thread.
#[derive(Clone, Copy)]
struct At(NonNull<u8>);
// SAFETY: plain memory.
unsafe impl Send for At {}

impl World {
    fn new(cpus: usize) -> Arc<Self> {
        let base = memory(16384, 16384);
        // SAFETY: long and aligned enough; leaked.
        let heap = unsafe { Heap::new(cpus, memory(Heap::bytes(cpus), 128)) };
        // SAFETY: fresh, long and aligned enough.
        unsafe { heap.supply(cpu(0), class(), base) };
        let contents = [UnsafeCell::new(0), UnsafeCell::new(0)];
        Arc::new(Self { heap, base: base.addr().get(), contents })
    }
    fn alloc(&self) -> Option<At> {
        // SAFETY: the first CPU's thread calls this.
        let at = unsafe { self.heap.alloc(cpu(0), class()) }?;
        self.touch(At(at));
        Some(At(at))
    }
    /// Write to the object: loom finds another thread's access that this isn't ordered with.
    fn touch(&self, At(at): At) {
        let i = (at.addr().get() - self.base) / 1024 - 1;
        if let Some(cell) = self.contents.get(i) {
            // SAFETY: the object is the caller's.
            cell.with_mut(|p| unsafe { *p += 1 });
        }
    }
    fn free(&self, on: usize, at: At) {
        self.touch(at);
        // SAFETY: each thread is a CPU of its own.
        let empty = unsafe { self.heap.free(cpu(on), at.0, class()) };
        assert!(!empty);
    }
    fn collect(&self) -> usize {
        // SAFETY: the first CPU's thread calls this.
        unsafe {
            while self.heap.settle(cpu(0)) {}
            self.heap.trim(cpu(0));
            self.heap.empty(cpu(0)) as usize
        }
    }
}

fn class() -> Class {
    Class::of(Layout::from_size_align(1024, 16).unwrap()).unwrap()
}

#[test]
fn an_object_comes_back_from_another_cpu() {
    explore("an object comes back from another CPU", || {
        let world = World::new(2);
        let objects: Vec<_> = (0..class().per_slab()).map(|_| world.alloc().unwrap()).collect();
        let other = {
            let (world, at) = (world.clone(), objects[0]);
            thread::spawn(move || world.free(1, at))
        };
        // All are out, so it is this very object or none.
        let again = world.alloc();
        let again = again.or_else(|| {
            thread::yield_now();
            world.alloc()
        });
        assert!(again.is_none_or(|at| at.0 == objects[0].0));
        other.join().unwrap();
        assert!(again.is_some() || world.alloc().is_some());
    });
}

#[test]
fn two_cpus_free_while_the_owner_collects() {
    explore("two CPUs free while the owner collects", || {
        let world = World::new(3);
        let objects = [world.alloc().unwrap(), world.alloc().unwrap()];
        // Not one of loom's: it counts, and takes no part in the protocol.
        let begun = std::sync::Arc::new(AtomicUsize::new(0));
        let others: Vec<_> = [1, 2]
            .into_iter()
            .zip(objects)
            .map(|(on, at)| {
                let (world, begun) = (world.clone(), begun.clone());
                thread::spawn(move || {
                    begun.fetch_add(1, Relaxed);
                    world.free(on, at);
                })
            })
            .collect();
        // Or else the owner always looks first: loom remembers only the last access to the mailbox, so the load before an
        // exchange hides the owner's load from it.
        thread::yield_now();
        let early = world.collect();
        // Empty exactly once, and only after both.
        assert!(early == 0 || early == 1 && begun.load(Relaxed) == 2, "empty with an object in use");
        others.into_iter().for_each(|t| t.join().unwrap());
        assert_eq!(world.collect(), 1);
    });
}

//! Random calls by several CPUs against an account of every object and slab; and threads that hand objects around.
#![allow(unsafe_code)] // the harness keeps the promises of `Heap`

use std::{
    alloc::Layout,
    collections::BTreeMap,
    ptr::NonNull,
    sync::{Barrier, Mutex},
};

use heap::{Class, Heap, LARGEST};
use percpu::CpuId;
use proptest::prelude::*;

const CPUS: usize = 3;

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).unwrap()
}

fn memory(bytes: usize, align: usize) -> NonNull<u8> {
    // SAFETY: the size isn't 0.
    NonNull::new(unsafe { std::alloc::alloc(Layout::from_size_align(bytes, align).unwrap()) }).unwrap()
}

fn release(at: NonNull<u8>, bytes: usize) {
    // SAFETY: as a slab it came from `memory`.
    unsafe { std::alloc::dealloc(at.as_ptr(), Layout::from_size_align(bytes, bytes).unwrap()) };
}

fn new_heap(cpus: usize) -> Heap {
    // SAFETY: long and aligned enough, and leaked.
    unsafe { Heap::new(cpus, memory(Heap::bytes(cpus), 128)) }
}

struct Object {
    at: NonNull<u8>,
    class: Class,
    fill: u8,
}
// SAFETY: plain memory that has one owner at a time.
unsafe impl Send for Object {}

impl Object {
    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: handed out by the heap, to us alone.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.class.size()) }
    }
}

/// A heap and what it should have.
struct World {
    heap: Heap,
    objects: Vec<Object>,
    /// Slabs by address: their end.
    slabs: BTreeMap<usize, usize>,
    fill: u8,
}

impl World {
    fn new() -> Self {
        Self { heap: new_heap(CPUS), objects: Vec::new(), slabs: BTreeMap::new(), fill: 0 }
    }

    fn alloc(&mut self, on: usize, layout: Layout) {
        let class = Class::of(layout).unwrap();
        // SAFETY: one thread does all, so nobody else is in the heap.
        let at = unsafe { self.heap.alloc(cpu(on), class) }.unwrap_or_else(|| {
            let base = memory(class.slab_bytes(), class.slab_bytes());
            self.slabs.insert(base.addr().get(), base.addr().get() + class.slab_bytes());
            // SAFETY: fresh, long and aligned enough.
            unsafe {
                self.heap.supply(cpu(on), class, base);
                self.heap.alloc(cpu(on), class).expect("a slab was supplied")
            }
        });
        let (from, to) = (at.addr().get(), at.addr().get() + class.size());
        assert!(from.is_multiple_of(layout.align()) && layout.size() <= class.size());
        let (base, end) = self.slabs.range(..=from).next_back().expect("of no slab");
        assert!(base + 128 <= from && to <= *end, "outside of its slab, or over its header");
        for o in &self.objects {
            let start = o.at.addr().get();
            assert!(to <= start || start + o.class.size() <= from, "handed out twice");
        }
        self.fill = self.fill.wrapping_add(1);
        let mut object = Object { at, class, fill: self.fill };
        object.bytes().fill(self.fill);
        self.objects.push(object);
    }

    fn gone(&mut self, base: NonNull<u8>, bytes: usize) {
        let from = base.addr().get();
        assert_eq!(self.slabs.remove(&from), Some(from + bytes), "not a slab");
        for o in &self.objects {
            assert!(!(from..from + bytes).contains(&o.at.addr().get()), "given back with an object in use");
        }
        release(base, bytes);
    }

    fn free(&mut self, on: usize, which: usize) {
        let mut object = self.objects.swap_remove(which);
        let fill = object.fill;
        assert!(object.bytes().iter().all(|b| *b == fill), "somebody else wrote to it");
        // SAFETY: it came from `alloc`.
        if unsafe { self.heap.free(cpu(on), object.at, object.class) } && !self.fill.is_multiple_of(4) {
            self.give_back(on);
        }
    }

    fn give_back(&mut self, on: usize) {
        // SAFETY: as above.
        while let Some((base, bytes)) = unsafe { self.heap.pop_empty(cpu(on)) } {
            self.gone(base, bytes);
        }
    }

    /// How many slabs the CPUs keep in reserve.
    fn reserved(&self) -> usize {
        // SAFETY: as above.
        (0..CPUS).map(|on| unsafe { self.heap.empty(cpu(on)) } as usize).sum()
    }

    fn collect(&mut self, on: usize) {
        // SAFETY: as above.
        unsafe {
            while self.heap.settle(cpu(on)) {}
            self.heap.trim(cpu(on));
        }
        self.give_back(on);
    }
}

#[derive(Clone, Debug)]
enum Op {
    Alloc(usize, usize, u32),
    Free(usize, prop::sample::Index),
    Collect(usize),
}

fn op() -> impl Strategy<Value = Op> {
    // Few sizes most of the time, so that slabs fill up.
    let size = prop_oneof![Just(1024usize), Just(200), Just(2048), 1..=LARGEST];
    prop_oneof![
        6 => (0..CPUS, size, 0..8u32).prop_map(|(on, size, align)| Op::Alloc(on, size, align)),
        5 => (0..CPUS, any::<prop::sample::Index>()).prop_map(|(on, i)| Op::Free(on, i)),
        1 => (0..CPUS).prop_map(Op::Collect),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn objects_are_disjoint_and_slabs_come_back(ops in prop::collection::vec(op(), 1..600)) {
        let mut world = World::new();
        for op in ops {
            match op {
                Op::Alloc(on, size, align) => {
                    world.alloc(on, Layout::from_size_align(size, 1 << align).unwrap());
                }
                Op::Free(on, i) if !world.objects.is_empty() => world.free(on, i.index(world.objects.len())),
                Op::Free(..) => {}
                Op::Collect(on) => world.collect(on),
            }
        }
        while let Some(last) = world.objects.len().checked_sub(1) {
            world.free(last % CPUS, last);
        }
        (0..CPUS).for_each(|on| world.collect(on));
        prop_assert_eq!(world.slabs.len(), world.reserved(), "slabs are lost");
        prop_assert!(world.reserved() <= CPUS * 20);
    }
}

#[test]
fn a_slab_is_used_up_before_another_is_wanted() {
    let mut world = World::new();
    let layout = Layout::from_size_align(96, 8).unwrap();
    let each = Class::of(layout).unwrap().per_slab();
    for _ in 0..each {
        world.alloc(0, layout);
    }
    assert_eq!(world.slabs.len(), 1);
    // Others' frees come back too, when they are needed.
    for _ in 0..each {
        world.free(1, 0);
    }
    for _ in 0..each {
        world.alloc(0, layout);
    }
    assert_eq!(world.slabs.len(), 1);
    // A full slab is found again when one of its objects is freed.
    world.alloc(0, layout);
    assert_eq!(world.slabs.len(), 2);
    world.free(0, 0);
    let spare = each - 1 + 1;
    for _ in 0..spare {
        world.alloc(0, layout);
    }
    assert_eq!(world.slabs.len(), 2);
}

#[test]
fn a_few_empty_slabs_stay_and_others_go() {
    let mut world = World::new();
    let layout = Layout::from_size_align(2048, 2048).unwrap();
    let each = Class::of(layout).unwrap().per_slab();
    (0..9 * each).for_each(|_| world.alloc(2, layout));
    (0..9 * each).for_each(|_| world.free(2, 0));
    world.give_back(2);
    // The reserve, and the last of its class.
    assert_eq!(world.slabs.len(), 4 + 1);
    world.collect(2);
    assert_eq!(world.slabs.len(), 4);
    // SAFETY: one thread does all.
    let lacks = unsafe { world.heap.lacks(cpu(2)) };
    assert_eq!(lacks, Some(4096));
    // The reserve serves who can't fetch more.
    (0..4 * each).for_each(|_| world.alloc(2, layout));
    assert_eq!(world.slabs.len(), 4);
}

#[test]
fn a_reserve_is_stocked_until_nothing_lacks() {
    let mut world = World::new();
    // SAFETY: one thread does all.
    while let Some(bytes) = unsafe { world.heap.lacks(cpu(1)) } {
        let base = memory(bytes, bytes);
        world.slabs.insert(base.addr().get(), base.addr().get() + bytes);
        // SAFETY: fresh, long and aligned enough.
        unsafe { world.heap.stock(cpu(1), base, bytes) };
    }
    assert_eq!(world.slabs.len(), world.reserved());
    let stocked = world.slabs.len();
    for size in [16, 100, 1000, 2000] {
        world.alloc(1, Layout::from_size_align(size, 8).unwrap());
    }
    assert_eq!(world.slabs.len(), stocked, "another slab was wanted");
}

#[test]
fn every_layout_up_to_the_largest_has_a_class_that_fits() {
    for size in 0..=LARGEST {
        for align in (0..12).map(|shift| 1usize << shift) {
            let layout = Layout::from_size_align(size, align).unwrap();
            let Some(class) = Class::of(layout) else { panic!("no class for {layout:?}") };
            assert!(class.size() >= size.max(1) && class.per_slab() >= 7);
            assert!(size <= 32 || align > 16 || class.size() * 2 < size * 3, "{size} in {}", class.size());
        }
    }
    assert_eq!(Class::of(Layout::from_size_align(LARGEST + 1, 1).unwrap()), None);
    assert_eq!(Class::of(Layout::from_size_align(8, 4096).unwrap()), None);
}

#[test]
fn threads_hand_objects_around() {
    const ROUNDS: usize = 3000;
    let heap = new_heap(CPUS);
    let passed: [Mutex<Vec<Object>>; CPUS] = Default::default();
    let slabs = Mutex::new(0_i64);
    let start = Barrier::new(CPUS);
    std::thread::scope(|s| {
        for me in 0..CPUS {
            let (heap, passed, slabs, start) = (&heap, &passed, &slabs, &start);
            s.spawn(move || {
                start.wait();
                let mut seed = me as u64 + 1;
                for round in 0..ROUNDS {
                    seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    let size = 1 + (seed >> 33) as usize % if round % 2 == 0 { 128 } else { LARGEST };
                    let class = Class::of(Layout::from_size_align(size, 8).unwrap()).unwrap();
                    // SAFETY: each thread is one CPU.
                    let at = unsafe { heap.alloc(cpu(me), class) }.unwrap_or_else(|| {
                        let base = memory(class.slab_bytes(), class.slab_bytes());
                        *slabs.lock().unwrap() += 1;
                        // SAFETY: fresh, long and aligned enough.
                        unsafe {
                            heap.supply(cpu(me), class, base);
                            heap.alloc(cpu(me), class).unwrap()
                        }
                    });
                    let mut object = Object { at, class, fill: seed as u8 };
                    let fill = object.fill;
                    object.bytes().fill(fill);
                    passed[(me + round) % CPUS].lock().unwrap().push(object);
                    let mine = std::mem::take(&mut *passed[me].lock().unwrap());
                    for mut object in mine {
                        let fill = object.fill;
                        assert!(object.bytes().iter().all(|b| *b == fill), "handed out twice");
                        // SAFETY: it came from `alloc`.
                        if unsafe { heap.free(cpu(me), object.at, object.class) } {
                            give_back(heap, me, slabs);
                        }
                    }
                }
            });
        }
    });
    for object in passed.into_iter().flat_map(|list| list.into_inner().unwrap()) {
        // SAFETY: the threads have ended, and it came from `alloc`.
        unsafe { heap.free(cpu(0), object.at, object.class) };
    }
    for on in 0..CPUS {
        // SAFETY: as above.
        unsafe {
            while heap.settle(cpu(on)) {}
            heap.trim(cpu(on));
        }
        give_back(&heap, on, &slabs);
    }
    // SAFETY: as above.
    let reserved: i64 = (0..CPUS).map(|on| i64::from(unsafe { heap.empty(cpu(on)) })).sum();
    assert_eq!(*slabs.lock().unwrap(), reserved);
}

/// Take the CPU's empty slabs back. Its thread calls this.
fn give_back(heap: &Heap, on: usize, slabs: &Mutex<i64>) {
    // SAFETY: each thread is one CPU.
    while let Some((base, bytes)) = unsafe { heap.pop_empty(cpu(on)) } {
        *slabs.lock().unwrap() -= 1;
        release(base, bytes);
    }
}

#[test]
fn an_empty_slab_begins_anew_with_another_class() {
    let mut world = World::new();
    let [small, other] = [64, 192].map(|size| Layout::from_size_align(size, 16).unwrap());
    let each = Class::of(small).unwrap().per_slab();
    (0..2 * each).for_each(|_| world.alloc(0, small));
    world.fill = 3; // so that nothing is given back meanwhile
    (0..2 * each).for_each(|_| world.free(0, 0));
    world.alloc(0, other);
    assert_eq!(world.slabs.len(), 2);
}

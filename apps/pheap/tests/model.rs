//! The heap against a map of what was allocated.

use std::collections::BTreeMap;

use pheap::{Error, Heap, Memory, PAGE};

/// Memory of some pages, which outlives its heap.
struct Pages(Vec<u64>);

impl Pages {
    fn new(pages: usize) -> Self {
        // What was there before must not matter.
        Self(vec![0xdead_beef_dead_beef; pages * 512])
    }
    fn memory(&mut self) -> Memory {
        // SAFETY: each test uses its words through this alone, for as long as it has them.
        unsafe { Memory::new(self.0.as_mut_ptr().cast(), self.0.len() * 8) }
    }
}

fn size(random: &mut fastrand::Rng) -> u64 {
    match random.u8(..10) {
        0..6 => random.u64(0..300),
        6..9 => random.u64(300..2049),
        _ => random.u64(2049..6 * PAGE),
    }
}

#[test]
fn random_calls_do_as_a_map_of_objects() {
    for seed in 1..=4 {
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let mut pages = Pages::new(100);
        let memory = pages.memory();
        let mut heap = Heap::format(memory).unwrap();
        let empty = heap.used();
        // Offset, to size and what was written.
        let mut model: BTreeMap<u64, (u64, u8)> = BTreeMap::new();
        let mut full = 0;
        for step in 0..3000 {
            // Fills and empties by turns.
            let grows = random.u32(..100) < if step / 750 % 2 == 0 { 70 } else { 35 };
            if grows {
                let bytes = size(&mut random);
                match heap.alloc(bytes) {
                    Ok(offset) => {
                        let capacity = heap.capacity(offset).unwrap();
                        assert!(capacity >= bytes && offset.is_multiple_of(16) && offset > 0);
                        assert!(offset + capacity <= memory.len());
                        let before = model.range(..=offset).next_back();
                        assert!(
                            before.is_none_or(|(at, (size, _))| at + size <= offset),
                            "overlaps the one before"
                        );
                        let after = model.range(offset..).next();
                        assert!(
                            after.is_none_or(|(&at, _)| offset + capacity <= at),
                            "overlaps the one after"
                        );
                        let byte = random.u8(..);
                        memory.write(offset, &vec![byte; capacity as usize]);
                        model.insert(offset, (capacity, byte));
                    }
                    Err(error) => {
                        assert_eq!(error, Error::Full { wanted: bytes });
                        full += 1;
                    }
                }
            } else if !model.is_empty() {
                let at = random.usize(..model.len());
                let (&offset, &(capacity, byte)) = model.iter().nth(at).unwrap();
                assert!(memory.is(offset, &vec![byte; capacity as usize]), "an object was written over");
                heap.free(offset).unwrap();
                model.remove(&offset);
                assert_eq!(heap.free(offset), Err(Error::NotAllocated { offset }), "freed twice");
            }
            if step % 50 == 0 {
                let wrong = random.u64(..memory.len());
                if !model.contains_key(&wrong) {
                    assert!(heap.free(wrong).is_err());
                }
                assert_eq!(heap.check().unwrap().objects, model.len() as u64);
                heap = Heap::open(memory).unwrap();
            }
        }
        assert!(full > 0, "the heap was never full");
        for (offset, (capacity, byte)) in model {
            assert!(memory.is(offset, &vec![byte; capacity as usize]));
            heap.free(offset).unwrap();
        }
        assert_eq!((heap.used(), heap.objects()), (empty, 0), "something was not given back");
    }
}

#[test]
fn what_was_freed_is_used_again_for_larger_objects() {
    let mut pages = Pages::new(64);
    let mut heap = Heap::format(pages.memory()).unwrap();
    let pages: Vec<u64> = std::iter::from_fn(|| heap.alloc(PAGE).ok()).collect();
    for &offset in pages.iter().step_by(2).chain(pages.iter().skip(1).step_by(2)) {
        heap.free(offset).unwrap();
    }
    heap.alloc(pages.len() as u64 * PAGE).unwrap();
    assert!(matches!(heap.alloc(1), Err(Error::Full { .. })));
}

#[test]
fn damage_is_found_or_harmless() {
    let mut random = fastrand::Rng::with_seed(7);
    let mut pages = Pages::new(64);
    let memory = pages.memory();
    let mut heap = Heap::format(memory).unwrap();
    let mut objects = Vec::new();
    while let Ok(offset) = heap.alloc(size(&mut random)) {
        objects.push(offset);
    }
    for offset in objects.extract_if(.., |_| random.bool()) {
        heap.free(offset).unwrap();
    }
    let whole = pages.0.clone();
    let mut found = 0;
    for bit in (0..8 * (2 * PAGE as usize)).step_by(11) {
        pages.0[bit / 64] ^= 1 << (bit % 64);
        let memory = pages.memory();
        match Heap::open(memory) {
            Err(Error::Damaged { .. } | Error::NoHeap | Error::OtherSize { .. }) => found += 1,
            Err(other) => panic!("{other}"),
            Ok(mut heap) => {
                // A root, an unused word: the heap works all the same.
                while heap.alloc(size(&mut random)).is_ok() {}
                heap.check().unwrap();
            }
        }
        pages.0.copy_from_slice(&whole);
    }
    assert!(found > 200, "{found}");
}

#[test]
fn refusals_say_what_to_do() {
    let mut small = Pages::new(3);
    assert!(matches!(Heap::format(small.memory()), Err(Error::Size { bytes: 12288 })));
    let mut pages = Pages::new(32);
    assert!(matches!(Heap::open(pages.memory()), Err(Error::NoHeap)));
    Heap::format(pages.memory()).unwrap();
    let mut part = Pages(pages.0[..16 * 512].to_vec());
    let error = Heap::open(part.memory()).unwrap_err();
    assert_eq!(error.to_string(), "the heap has 131072 bytes, the memory 65536: open it with as many");
}

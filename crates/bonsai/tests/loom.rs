//! Every interleaving, and every order in which memory may be seen, of a reader and a writer.
//!
//! Loom watches each node: a reader's visit reads it, its making and its end write it. So a node that is found before it is
//! complete, or ends while a reader may be at it, is a race. Entries are watched in the same way, by their values.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test --release -p quire-bonsai --test loom`.
#![cfg(loom)]

mod common;

use bonsai::{BonsaiMap, Entry, Heap, Point, Reader, Region, RegionTree, Writer};
use common::Quiet;
use loom::{cell::UnsafeCell, sync::Arc, thread};
use percpu::testing::explore;

/// A value whose uses loom watches.
struct Value(u32, UnsafeCell<()>);

// SAFETY: loom fails a model if two uses of a cell race; that none do is what is shown.
unsafe impl Sync for Value {}
// SAFETY: as above.
unsafe impl Send for Value {}

impl Value {
    fn new(n: u32) -> Box<Entry<Value>> {
        Entry::new(Value(n, UnsafeCell::new(())))
    }
    fn get(&self) -> u32 {
        self.1.with(|_| ());
        self.0
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        self.1.with_mut(|_| ());
    }
}

type Map = BonsaiMap<u32, Value, &'static Quiet>;
type MapWriter<'a> = Writer<'a, 'a, Point<u32>, Value, &'static Quiet, Heap>;

/// Explore one reader and one writer of a map that has `keys`, put in in this order, with themselves as values.
fn map(
    name: &str,
    keys: &'static [u32],
    write: fn(&mut MapWriter<'_>),
    read: fn(Reader<'_, Point<u32>, Value>),
) {
    map_of(usize::MAX, name, keys, write, read);
}

/// The same of a map with leaves, of which each has two keys at most.
fn leaves(
    name: &str,
    keys: &'static [u32],
    write: fn(&mut MapWriter<'_>),
    read: fn(Reader<'_, Point<u32>, Value>),
) {
    map_of(0, name, keys, write, read);
}

/// With nodes alone, and with leaves.
fn both(
    [nodes, with_leaves]: [&str; 2],
    keys: &'static [u32],
    write: fn(&mut MapWriter<'_>),
    read: fn(Reader<'_, Point<u32>, Value>),
) {
    map(nodes, keys, write, read);
    leaves(with_leaves, keys, write, read);
}

fn map_of(
    leaves_from: usize,
    name: &str,
    keys: &'static [u32],
    write: fn(&mut MapWriter<'_>),
    read: fn(Reader<'_, Point<u32>, Value>),
) {
    explore(name, None, move || {
        let domain = Box::into_raw(Box::new(Quiet::new(1)));
        // SAFETY: the domain ends after the map and the threads.
        let map = Arc::new(Map::new(unsafe { &*domain }).leaves_from(leaves_from));
        {
            let mut writer = map.write(());
            keys.iter().for_each(|key| writer.insert(*key, Value::new(*key)).unwrap());
        }
        let other = map.clone();
        let reader = thread::spawn(move || {
            let guard = other.domain().read(0);
            read(other.read(&guard));
        });
        {
            let mut writer = map.write(());
            write(&mut writer);
            writer.check().unwrap();
        }
        reader.join().unwrap();
        drop(map);
        // SAFETY: nothing uses it any more.
        drop(unsafe { Box::from_raw(domain) });
    });
}

/// 1, 5 and 3 in one line; 4 makes 3 turn up over both.
#[test]
fn what_an_insert_publishes_is_complete() {
    map(
        "an insert with a double rotation, and two look-ups",
        &[1, 5, 3],
        |writer| {
            writer.insert(4, Value::new(4)).unwrap();
            assert_eq!(writer.counts().double, 1);
        },
        |reader| {
            assert_eq!(reader.get(3).map(|value| value.get()), Some(3), "3 is there all the time");
            if let Some(value) = reader.get(4) {
                assert_eq!(value.get(), 4);
                assert!(reader.get(4).is_some(), "4 stays");
            }
        },
    );
}

/// 2 has two children, and the node next to it is 3, at the end of a line of two.
#[test]
fn a_removal_hides_no_other_key() {
    map(
        "a removal of a node with two children, and two look-ups",
        &[2, 1, 4, 3, 5],
        |writer| assert_eq!(writer.remove(2).unwrap().get(), 2),
        |reader| {
            assert_eq!(reader.get(3).map(|value| value.get()), Some(3), "3 is there all the time");
            assert_eq!(reader.floor(3).map(|(_, value)| value.get()), Some(3), "and is the floor of 3");
        },
    );
}

#[test]
fn a_removal_of_a_leaf_and_an_insert() {
    both(
        [
            "a removal and an insert in its place, and two look-ups",
            "a removal of the only key of a leaf and an insert in its place, and two look-ups",
        ],
        &[2, 1, 3],
        |writer| {
            assert_eq!(writer.remove(1).unwrap().get(), 1);
            writer.insert(0, Value::new(0)).unwrap();
        },
        |reader| {
            let removed = reader.get(1).is_none();
            let inserted = reader.get(0).is_some();
            if let Some((key, value)) = reader.lower(2) {
                assert_eq!(key.0, value.get());
                assert!(key.0 == 0 || !inserted, "0 was there, and 1 not any more");
                assert!(key.0 == 0 || !removed, "1 was not there any more");
            } else {
                assert!(!inserted, "0 stays");
            }
        },
    );
}

/// 1 leads to 3, and 3 to 2, which is a node or in a leaf. A reader at 1 that goes on when both 1 and 2 are gone finds 3, which is above;
/// but 1 was not the floor of 2 at any time.
#[test]
fn a_floor_was_the_floor() {
    for (leaves_from, name) in [
        (usize::MAX, "the floor of a key, and removals of it and of the one below"),
        (2, "the floor of a key in a leaf, and removals of it and of the one below"),
    ] {
        map_of(
            leaves_from,
            name,
            &[1, 3, 2],
            |writer| {
                assert_eq!(writer.remove(1).unwrap().get(), 1);
                assert_eq!(writer.remove(2).unwrap().get(), 2);
            },
            |reader| {
                let found = reader.floor(2).map(|(_, value)| value.get());
                assert!(matches!(found, Some(2) | None), "{found:?} was never the floor of 2");
            },
        );
    }
}

/// As above, with the order of keys turned round.
#[test]
fn a_ceiling_was_the_ceiling() {
    for (leaves_from, name) in [
        (usize::MAX, "the ceiling of a key, and removals of it and of the one above"),
        (2, "the ceiling of a key in a leaf, and removals of it and of the one above"),
    ] {
        map_of(
            leaves_from,
            name,
            &[3, 1, 2],
            |writer| {
                assert_eq!(writer.remove(3).unwrap().get(), 3);
                assert_eq!(writer.remove(2).unwrap().get(), 2);
            },
            |reader| {
                let found = reader.ceiling(2).map(|(_, value)| value.get());
                assert!(matches!(found, Some(2) | None), "{found:?} was never the ceiling of 2");
            },
        );
    }
}

/// Of a node with two children, and of a leaf.
#[test]
fn a_replaced_entry_is_the_old_or_the_new_one() {
    let replace: fn(&mut MapWriter<'_>) =
        |writer| assert_eq!(writer.replace(2, Value::new(20)).unwrap().get(), 2);
    let look: fn(Reader<'_, Point<u32>, Value>) = |reader| {
        let seen = [(); 2].map(|()| reader.get(2).expect("2 is there all the time").get());
        assert!(matches!(seen, [2, 2] | [2, 20] | [20, 20]), "{seen:?}");
        let floor = reader.floor(2).expect("2 is there all the time").1;
        assert!(floor.get() == 20 || seen == [2, 2]);
    };
    map("a replacement, and two look-ups", &[2, 1, 3], replace, look);
    leaves("a replacement in a leaf, and two look-ups", &[1, 2], replace, look);
}

/// In order, each key that stays once.
#[test]
fn an_iteration_finds_what_stays() {
    both(
        ["an iteration, a removal and an insert", "an iteration through leaves, a removal and an insert"],
        &[2, 1, 3],
        |writer| {
            assert_eq!(writer.remove(2).unwrap().get(), 2);
            writer.insert(4, Value::new(4)).unwrap();
        },
        |reader| {
            let keys: Vec<u32> = reader.iter().map(|(_, value)| value.get()).collect();
            assert!(keys.is_sorted_by(|a, b| a < b) && keys.contains(&1) && keys.contains(&3), "{keys:?}");
        },
    );
}

/// 2 between leaves of 1 and 3, or 1 and 2 in one.
#[test]
fn a_leaf_that_is_found_is_complete() {
    leaves(
        "an insert into a leaf, and two look-ups",
        &[1],
        |writer| {
            writer.insert(2, Value::new(2)).unwrap();
            assert_eq!(writer.counts().leaves, 2);
        },
        |reader| {
            assert_eq!(reader.get(1).map(|value| value.get()), Some(1), "1 is there all the time");
            if let Some(value) = reader.get(2) {
                assert_eq!(value.get(), 2);
                assert!(reader.ceiling(2).is_some(), "2 stays");
            }
        },
    );
}

#[test]
fn a_full_leaf_is_divided() {
    for (name, keys, new) in [
        ("a key within a full leaf, and four look-ups", &[1, 3], 2),
        ("a key behind a full leaf, and four look-ups", &[1, 2], 3),
        ("a key before a full leaf, and four look-ups", &[2, 3], 1),
    ] as [(_, &'static [u32], _); 3]
    {
        let write: [fn(&mut MapWriter<'_>); 3] = [
            |writer| writer.insert(1, Value::new(1)).unwrap(),
            |writer| writer.insert(2, Value::new(2)).unwrap(),
            |writer| writer.insert(3, Value::new(3)).unwrap(),
        ];
        let read: [fn(Reader<'_, Point<u32>, Value>); 3] =
            [|reader| divided(reader, 1), |reader| divided(reader, 2), |reader| divided(reader, 3)];
        leaves(name, keys, write[new - 1], read[new - 1]);
    }
}

/// Of 1, 2 and 3 all are there but `new`, which may be.
fn divided(reader: Reader<'_, Point<u32>, Value>, new: u32) {
    let found = [1, 2, 3].map(|key| reader.get(key).map(|value| value.get()));
    for key in [1, 2, 3].into_iter().filter(|key| *key != new) {
        assert_eq!(found[key as usize - 1], Some(key), "{key} is there all the time");
    }
    let floor = reader.floor(new).map(|(key, _)| key.0);
    let before = (new > 1).then_some(new - 1);
    assert!(floor == Some(new) || floor == before && found[new as usize - 1].is_none(), "{floor:?}");
}

/// 2 is between leaves of 1 and 3, of which that of 1 gives its key up.
#[test]
fn a_leaf_gives_a_key_to_the_node_above() {
    leaves(
        "a removal of a node between leaves, and four look-ups",
        &[1, 3, 2],
        |writer| assert_eq!(writer.remove(2).unwrap().get(), 2),
        |reader| {
            assert_eq!(reader.get(1).map(|value| value.get()), Some(1), "1 is there all the time");
            let floor = reader.floor(2).map(|(_, value)| value.get());
            assert!(matches!(floor, Some(2) | Some(1)), "{floor:?}");
            assert_eq!(reader.get(3).map(|value| value.get()), Some(3), "3 is there all the time");
            assert_eq!(reader.higher(2).map(|(_, value)| value.get()), Some(3), "and is above 2");
        },
    );
}

/// 40 has nodes on both sides, and the next key to it is in a leaf below one of these.
#[test]
fn a_leaf_at_the_end_of_a_spine_gives_a_key() {
    leaves(
        "a removal of a node above nodes above leaves, and two look-ups",
        &[10, 20, 30, 40, 50, 60, 70, 80, 90],
        |writer| {
            let made = writer.counts().allocated;
            assert_eq!(writer.remove(40).unwrap().get(), 40);
            assert_eq!(writer.counts().allocated - made, 2, "a copy of 60, and 50 in the place of 40");
        },
        |reader| {
            assert_eq!(reader.get(50).map(|value| value.get()), Some(50), "50 is there all the time");
            assert_eq!(reader.floor(55).map(|(_, value)| value.get()), Some(50), "and is the floor of 55");
        },
    );
}

/// A reader at 2 that goes on to a leaf that has lost 3 meanwhile finds nothing above 2; but that was gone before.
#[test]
fn a_floor_was_the_floor_among_leaves() {
    leaves(
        "a floor in a leaf, and removals of the node above and of it",
        &[1, 3, 2],
        |writer| {
            assert_eq!(writer.remove(2).unwrap().get(), 2);
            assert_eq!(writer.remove(3).unwrap().get(), 3);
        },
        |reader| {
            let found = reader.floor(3).map(|(_, value)| value.get());
            assert!(matches!(found, Some(3) | Some(1)), "{found:?} was never the floor of 3");
            let found = reader.ceiling(2).map(|(_, value)| value.get());
            assert!(matches!(found, Some(2) | Some(3) | None), "{found:?}");
        },
    );
}

/// A region is cut in two: the addresses that stay are covered all the time, by a live entry or by one that was just live.
#[test]
fn a_cut_region_covers_what_stays() {
    cut("a region that is cut in two, and two look-ups", usize::MAX);
    cut("a region of a leaf that is cut in two, and two look-ups", 0);
}

fn cut(name: &str, leaves_from: usize) {
    explore(name, None, move || {
        let domain = Box::into_raw(Box::new(Quiet::new(1)));
        // SAFETY: the domain ends after the tree and the threads.
        let tree = Arc::new(RegionTree::<Value, _>::new(unsafe { &*domain }).leaves_from(leaves_from));
        let region = |start, end| Region::new(start, end);
        tree.write(()).insert(region(0, 90), Value::new(0)).unwrap();
        let other = tree.clone();
        let reader = thread::spawn(move || {
            let guard = other.domain().read(0);
            let reader = other.read(&guard);
            let (found, value) = reader.covering(70).expect("70 is covered all the time");
            assert_eq!(found.start(), value.get().into());
            let (found, value) = reader.covering(10).expect("10 is covered all the time");
            assert_eq!((found.start(), value.get()), (0, 0));
        });
        {
            let mut writer = tree.write(());
            writer.insert_piece(region(60, 90), Value::new(60)).unwrap();
            drop(writer.replace(region(0, 30), Value::new(0)).unwrap());
        }
        reader.join().unwrap();
        drop(tree);
        // SAFETY: nothing uses it any more.
        drop(unsafe { Box::from_raw(domain) });
    });
}

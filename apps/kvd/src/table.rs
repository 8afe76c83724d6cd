//! The hash table, in the heap.
//!
//! ```text
//! root      seed of the hash, and for each shard: buckets' offset, their number as a power of two, entries
//! buckets   offsets of entries, 0 for none
//! entry     0 next    8 hash    16 key's length (32), value's (32)    24 bytes of the entry    32 key, value
//! ```
//! A shard's lock guards its buckets and entries; the allocator has a lock of its own, which is taken within. A value
//! that fits is overwritten in place. Buckets double when there are more entries than they.

use std::sync::{Mutex, MutexGuard, PoisonError};

use pheap::{Error, Heap, Memory};
use snap::{Gate, Pass};

/// Shards, each with a lock of its own.
const SHARDS: usize = 64;
/// Buckets of a new shard, as a power of two.
const FIRST_BITS: u64 = 4;
/// Bytes of an entry before the key.
const ENTRY: u64 = 32;
/// The longest key, in bytes.
pub const MAX_KEY: usize = 64 << 10;
/// The longest value, in bytes.
pub const MAX_VALUE: usize = 64 << 20;

/// Why a number was not added to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The value is no number, or the sum would be none.
    NoNumber,
    /// No room.
    Heap(Error),
}

/// A table in memory that an image may be made of.
#[derive(Debug)]
pub struct Table {
    memory: Memory,
    heap: Mutex<Heap>,
    root: u64,
    seed: u64,
    shards: Box<[Mutex<()>]>,
    gate: Gate,
}

/// A hash of the key: what a seed makes unforeseeable, and no other build of the program changes.
fn hash(seed: u64, key: &[u8]) -> u64 {
    let mix = |hash: u64, word: u64| {
        let product = u128::from(hash ^ word) * 0x9e37_79b9_7f4a_7c15;
        (product ^ product >> 64) as u64
    };
    let words = key.chunks(8).map(|chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(word)
    });
    let last = words.fold(seed ^ key.len() as u64, mix);
    mix(last, !seed)
}

/// Where an entry was looked for.
struct Place {
    /// The word that points to it, or that would.
    link: u64,
    /// 0 if there is none.
    entry: u64,
}

impl Table {
    /// The table that the memory holds, or a new one if it holds no heap and `fresh` says that it need not.
    ///
    /// # Errors
    /// Those of [`Heap::open`] and [`Heap::format`].
    pub fn open(memory: Memory, fresh: bool) -> Result<Self, Error> {
        let mut heap = match Heap::open(memory) {
            Err(Error::NoHeap) if fresh => Heap::format(memory)?,
            other => other?,
        };
        if heap.root(0) == 0 {
            let root = heap.alloc(8 + 24 * SHARDS as u64)?;
            memory.store(root, fastrand::u64(..));
            for shard in 0..SHARDS as u64 {
                let buckets = heap.alloc(8 << FIRST_BITS)?;
                memory.clear(buckets, 8 << FIRST_BITS);
                let at = root + 8 + 24 * shard;
                [buckets, FIRST_BITS, 0]
                    .iter()
                    .zip((at..).step_by(8))
                    .for_each(|(&word, at)| memory.store(at, word));
            }
            heap.set_root(0, root);
        }
        let root = heap.root(0);
        let seed = memory.load(root);
        let shards = (0..SHARDS).map(|_| Mutex::new(())).collect();
        Ok(Self { memory, heap: Mutex::new(heap), root, seed, shards, gate: Gate::new() })
    }

    /// What cuts are made at.
    pub const fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Begin an operation that writes.
    pub fn enter(&self) -> Pass<'_> {
        self.gate.enter()
    }

    /// Bytes of the heap that were ever used.
    pub fn used(&self) -> u64 {
        self.heap().used()
    }

    fn heap(&self) -> MutexGuard<'_, Heap> {
        self.heap.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A shard's words in the root: the buckets, their bits, the count.
    const fn words(&self, shard: usize) -> [u64; 3] {
        let at = self.root + 8 + 24 * shard as u64;
        [at, at + 8, at + 16]
    }

    fn lock(&self, hash: u64) -> (usize, MutexGuard<'_, ()>) {
        // The low bits choose the bucket.
        let shard = (hash >> 58) as usize % SHARDS;
        (shard, self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn lens(&self, entry: u64) -> (usize, usize) {
        let lens = self.memory.load(entry + 16);
        (lens as u32 as usize, (lens >> 32) as usize)
    }

    fn find(&self, shard: usize, hash: u64, key: &[u8]) -> Place {
        let [buckets, bits, _] = self.words(shard).map(|at| self.memory.load(at));
        let mut link = buckets + 8 * (hash & ((1 << bits) - 1));
        loop {
            let entry = self.memory.load(link);
            let is_it = || {
                self.memory.load(entry + 8) == hash
                    && self.lens(entry).0 == key.len()
                    && self.memory.is(entry + ENTRY, key)
            };
            if entry == 0 || is_it() {
                return Place { link, entry };
            }
            link = entry;
        }
    }

    /// A key's value, put at the end of `value`; whether there is one.
    pub fn get(&self, key: &[u8], value: &mut Vec<u8>) -> bool {
        let hash = hash(self.seed, key);
        let (shard, _guard) = self.lock(hash);
        let Place { entry, .. } = self.find(shard, hash, key);
        if entry == 0 {
            return false;
        }
        let (key_len, value_len) = self.lens(entry);
        let at = value.len();
        value.resize(at + value_len, 0);
        self.memory.read(entry + ENTRY + key_len as u64, &mut value[at..]);
        true
    }

    /// Set a key's value.
    ///
    /// # Errors
    /// [`Error::Full`]; the value is what it was.
    pub fn set(&self, _: &Pass<'_>, key: &[u8], value: &[u8]) -> Result<(), Error> {
        let hash = hash(self.seed, key);
        let (shard, _guard) = self.lock(hash);
        let place = self.find(shard, hash, key);
        self.put(shard, place, hash, key, value)
    }

    fn put(&self, shard: usize, place: Place, hash: u64, key: &[u8], value: &[u8]) -> Result<(), Error> {
        let Place { link, entry } = place;
        let bytes = ENTRY + (key.len() + value.len()) as u64;
        let lens = key.len() as u64 | (value.len() as u64) << 32;
        if entry != 0 && bytes <= self.memory.load(entry + 24) {
            self.memory.store(entry + 16, lens);
            self.memory.write(entry + ENTRY + key.len() as u64, value);
            return Ok(());
        }
        let mut heap = self.heap();
        let new = heap.alloc(bytes)?;
        let capacity = heap.capacity(new)?;
        let next = if entry == 0 { 0 } else { self.memory.load(entry) };
        let head = [next, hash, lens, capacity];
        head.iter().zip((new..).step_by(8)).for_each(|(&word, at)| self.memory.store(at, word));
        self.memory.write(new + ENTRY, key);
        self.memory.write(new + ENTRY + key.len() as u64, value);
        self.memory.store(link, new);
        if entry == 0 {
            let [_, _, count] = self.words(shard);
            self.memory.store(count, self.memory.load(count) + 1);
            self.grow(shard, &mut heap);
            Ok(())
        } else {
            heap.free(entry)
        }
    }

    /// Twice the buckets, if there are more entries than buckets, and room.
    fn grow(&self, shard: usize, heap: &mut Heap) {
        let words = self.words(shard);
        let [old, bits, count] = words.map(|at| self.memory.load(at));
        if count <= 1 << bits {
            return;
        }
        let Ok(new) = heap.alloc(16 << bits) else { return };
        self.memory.clear(new, 16 << bits);
        let mask = (2 << bits) - 1;
        for bucket in 0..1_u64 << bits {
            let mut entry = self.memory.load(old + 8 * bucket);
            while entry != 0 {
                let next = self.memory.load(entry);
                let head = new + 8 * (self.memory.load(entry + 8) & mask);
                self.memory.store(entry, self.memory.load(head));
                self.memory.store(head, entry);
                entry = next;
            }
        }
        self.memory.store(words[0], new);
        self.memory.store(words[1], bits + 1);
        let freed = heap.free(old);
        debug_assert!(freed.is_ok(), "buckets that were not allocated");
    }

    /// Remove a key; whether it was there.
    pub fn del(&self, _: &Pass<'_>, key: &[u8]) -> bool {
        let hash = hash(self.seed, key);
        let (shard, _guard) = self.lock(hash);
        let Place { link, entry } = self.find(shard, hash, key);
        if entry == 0 {
            return false;
        }
        self.memory.store(link, self.memory.load(entry));
        let [_, _, count] = self.words(shard);
        self.memory.store(count, self.memory.load(count) - 1);
        let freed = self.heap().free(entry);
        debug_assert!(freed.is_ok(), "an entry that was not allocated");
        true
    }

    /// Add to a key's number, 0 if there is none; the sum.
    ///
    /// # Errors
    /// [`Refused`]; the value is what it was.
    pub fn add(&self, _: &Pass<'_>, key: &[u8], by: i64) -> Result<i64, Refused> {
        let hash = hash(self.seed, key);
        let (shard, _guard) = self.lock(hash);
        let place = self.find(shard, hash, key);
        let old = match place.entry {
            0 => 0,
            entry => {
                let (key_len, value_len) = self.lens(entry);
                let mut text = vec![0; value_len.min(32)];
                self.memory.read(entry + ENTRY + key_len as u64, &mut text);
                let number = std::str::from_utf8(&text).ok().and_then(|text| text.parse::<i64>().ok());
                number.ok_or(Refused::NoNumber)?
            }
        };
        let sum = old.checked_add(by).ok_or(Refused::NoNumber)?;
        self.put(shard, place, hash, key, sum.to_string().as_bytes()).map_err(Refused::Heap)?;
        Ok(sum)
    }

    /// How many keys there are.
    pub fn len(&self) -> u64 {
        (0..SHARDS).map(|shard| self.memory.load(self.words(shard)[2])).sum()
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Some keys with their values, at least `count` unless there are no more; where to go on, 0 at the end. A key that
    /// is there from the first call, with 0, to the last is handed out at least once, whatever else comes and goes:
    /// buckets are visited in the order of their reversed numbers, in which those that a bucket splits into are
    /// neighbours.
    pub fn scan(&self, cursor: u64, count: usize, mut each: impl FnMut(&[u8], &[u8])) -> u64 {
        let (mut shard, mut at) = ((cursor % SHARDS as u64) as usize, cursor / SHARDS as u64);
        let mut found = 0;
        let (mut key, mut value) = (Vec::new(), Vec::new());
        while shard < SHARDS {
            let guard = self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner);
            let [buckets, bits, _] = self.words(shard).map(|at| self.memory.load(at));
            let mask = (1 << bits) - 1;
            loop {
                let mut entry = self.memory.load(buckets + 8 * (at & mask));
                while entry != 0 {
                    let (key_len, value_len) = self.lens(entry);
                    key.resize(key_len, 0);
                    value.resize(value_len, 0);
                    self.memory.read(entry + ENTRY, &mut key);
                    self.memory.read(entry + ENTRY + key_len as u64, &mut value);
                    each(&key, &value);
                    found += 1;
                    entry = self.memory.load(entry);
                }
                at = (at | !mask).reverse_bits().wrapping_add(1).reverse_bits();
                if at == 0 {
                    shard += 1;
                    break;
                }
                if found >= count {
                    return at * SHARDS as u64 + shard as u64;
                }
            }
            drop(guard);
            if found >= count && shard < SHARDS {
                return shard as u64;
            }
        }
        0
    }

    /// Check the heap, and each entry against it.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), String> {
        let heap = self.heap();
        let sum = heap.check().map_err(|error| error.to_string())?;
        let mut objects = 1;
        for shard in 0..SHARDS {
            let [buckets, bits, count] = self.words(shard).map(|at| self.memory.load(at));
            let room = heap.capacity(buckets).map_err(|error| error.to_string())?;
            if room < 8 << bits {
                return Err(format!("shard {shard} has more buckets than bytes"));
            }
            let mut entries = 0;
            for bucket in 0..1_u64 << bits {
                let mut entry = self.memory.load(buckets + 8 * bucket);
                while entry != 0 && entries <= count {
                    let capacity = heap.capacity(entry).map_err(|error| error.to_string())?;
                    let (key_len, value_len) = self.lens(entry);
                    if capacity != self.memory.load(entry + 24)
                        || ENTRY + (key_len + value_len) as u64 > capacity
                    {
                        return Err(format!("the entry at {entry} is longer than its object"));
                    }
                    let mut key = vec![0; key_len];
                    self.memory.read(entry + ENTRY, &mut key);
                    let hash = hash(self.seed, &key);
                    let belongs =
                        (hash >> 58) as usize % SHARDS == shard && hash & ((1 << bits) - 1) == bucket;
                    if hash != self.memory.load(entry + 8) || !belongs {
                        return Err(format!("the entry at {entry} is in another key's place"));
                    }
                    entries += 1;
                    entry = self.memory.load(entry);
                }
            }
            if entries != count {
                return Err(format!("shard {shard} counts {count} entries and has {entries}"));
            }
            objects += 1 + entries;
        }
        match objects == sum.objects {
            true => Ok(()),
            false => Err(format!("of {} objects in the heap, {objects} are the table's", sum.objects)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn random_calls_do_as_a_map() {
        let mut words = vec![0_u64; 512 * 512];
        // SAFETY: the words outlive the table, and are used through it alone.
        let memory = unsafe { Memory::new(words.as_mut_ptr().cast(), words.len() * 8) };
        let mut table = Table::open(memory, true).unwrap();
        let mut random = fastrand::Rng::with_seed(3);
        let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        let mut full = 0;
        for step in 0..30_000 {
            let key = format!("key {}", random.u16(..3000)).into_bytes();
            let pass = table.enter();
            match random.u8(..10) {
                0..5 => {
                    let len = random.usize(..900);
                    let value: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(len).collect();
                    match table.set(&pass, &key, &value) {
                        Ok(()) => _ = model.insert(key, value),
                        Err(Error::Full { .. }) => full += 1,
                        Err(error) => panic!("{error}"),
                    }
                }
                5..8 => assert_eq!(table.del(&pass, &key), model.remove(&key).is_some()),
                8 => {
                    let key = format!("number {}", random.u8(..)).into_bytes();
                    let by = random.i64(-100..100);
                    let old = model
                        .get(&key)
                        .map_or(0, |text| String::from_utf8_lossy(text).parse::<i64>().unwrap());
                    if table.add(&pass, &key, by) == Ok(old + by) {
                        model.insert(key, (old + by).to_string().into_bytes());
                    } else {
                        full += 1;
                    }
                }
                _ => {
                    let mut value = Vec::new();
                    assert_eq!(table.get(&key, &mut value).then_some(&value), model.get(&key));
                }
            }
            drop(pass);
            if step % 3000 == 0 {
                table.check().unwrap();
                assert_eq!(table.len(), model.len() as u64);
                table = Table::open(memory, false).unwrap();
                let (mut cursor, mut all) = (0, BTreeMap::new());
                loop {
                    cursor = table.scan(cursor, 7, |key, value| _ = all.insert(key.to_vec(), value.to_vec()));
                    if cursor == 0 {
                        break;
                    }
                }
                assert!(all == model);
            }
        }
        println!("{} keys, {full} times full", model.len());
    }

    #[test]
    fn a_scan_hands_out_what_stays_while_buckets_double() {
        let mut words = vec![0_u64; 1024 * 512];
        // SAFETY: as above.
        let memory = unsafe { Memory::new(words.as_mut_ptr().cast(), words.len() * 8) };
        let table = Table::open(memory, true).unwrap();
        let set = |i: u32| table.set(&table.enter(), format!("{i}").as_bytes(), b"").unwrap();
        (0..1000).for_each(set);
        let (mut cursor, mut next, mut seen) = (0, 1000, vec![false; 1000]);
        loop {
            cursor = table.scan(cursor, 20, |key, _| {
                let i: usize = String::from_utf8_lossy(key).parse().unwrap();
                if let Some(seen) = seen.get_mut(i) {
                    *seen = true;
                }
            });
            if cursor == 0 {
                break;
            }
            (next..next + 20).for_each(set);
            next += 20;
        }
        assert!(next > 2000 && seen.iter().all(|&seen| seen));
    }
}

//! A hash table that is read, and even resized, without readers noticing (Triplett, McKenney and Walpole, "Resizable, Scalable,
//! Concurrent Hash Tables via Relativistic Programming", 2011).
//!
//! **Claim.** A look-up waits for nobody and writes nothing that is shared. It finds each key that is there throughout, also while the
//! table is resized.
//!
//! **Idea.** An item has two links, of which a table uses one. A resize builds the chains of the new table by the other link, which
//! nobody reads, and publishes the table with one store: no look-up ever meets a chain that is half of this and half of that.
//! ```text
//! put, remove   lock of the bucket; one store links, replaces or unlinks an item; what was there is retired
//! resize        wait until nobody can be reading the other link; all locks; new chains; publish; retire the old table
//! ```
//! * **A bucket has one lock**: a lock is chosen by the hash's lowest bits, of which any table uses more.
//! * **Who holds a lock sees the table that is current**, as a resize holds them all.
//! * **The other link is nobody's**: the last resize retired the table that used it, and a period has passed since.
//! * **A removed item may be reached by the old table's chains**, but only by sections that have found that table, and so began
//!   before the item was retired.

use std::{
    hash::{BuildHasher, Hash},
    ptr::NonNull,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use rcu::{
    Link, Ptr,
    ptr::Retired,
    user::{Gp, Guard, Reader},
};

/// Locks, and the least number of buckets.
const LOCKS: usize = 64;

/// A table from `K` to `V`, read in sections of the domain `D`.
pub struct Cache<K, V, D: 'static, S> {
    table: Ptr<Table<K, V, D>, D>,
    locks: [Mutex<()>; LOCKS],
    len: AtomicUsize,
    /// Held by who resizes: the period after which the other link is nobody's.
    resizing: Mutex<Option<Gp>>,
    hasher: S,
}

/// What leads to the first item of a chain, or to the next.
type Chain<K, V, D> = Link<Item<K, V, D>, D>;

struct Table<K, V, D> {
    /// Which of the items' links it uses.
    link: usize,
    buckets: Box<[Chain<K, V, D>]>,
}

struct Item<K, V, D> {
    hash: usize,
    key: K,
    value: V,
    next: [Chain<K, V, D>; 2],
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K, V, D> Table<K, V, D> {
    fn new(link: usize, buckets: usize) -> Box<Self> {
        Box::new(Self { link, buckets: (0..buckets).map(|_| Link::none()).collect() })
    }
    fn bucket(&self, hash: usize) -> &Chain<K, V, D> {
        &self.buckets[hash & (self.buckets.len() - 1)]
    }
}

impl<K: Hash + Eq + Send + Sync + 'static, V: Send + Sync + 'static, D: 'static, S: BuildHasher>
    Cache<K, V, D, S>
{
    /// A table of so many buckets, or a few more.
    pub fn new(buckets: usize, hasher: S) -> Self {
        Self {
            table: Ptr::new(Table::new(0, buckets.next_power_of_two().max(LOCKS))),
            locks: [const { Mutex::new(()) }; LOCKS],
            len: AtomicUsize::new(0),
            resizing: Mutex::new(None),
            hasher,
        }
    }
    fn hash(&self, key: &K) -> usize {
        self.hasher.hash_one(key) as usize
    }
    /// How many keys it has.
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }
    /// How many buckets it has.
    pub fn buckets(&self, section: &Guard<'_, D>) -> usize {
        self.table.load(section).map_or(0, |table| table.buckets.len())
    }
    /// What belongs to a key.
    pub fn get<'g>(&'g self, key: &K, section: &'g Guard<'_, D>) -> Option<&'g V> {
        let hash = self.hash(key);
        let table = self.table.load(section)?;
        let mut next = table.bucket(hash).load(section);
        while let Some(item) = next {
            if item.hash == hash && item.key == *key {
                return Some(&item.value);
            }
            next = item.next[table.link].load(section);
        }
        None
    }
    /// The current table, for who holds one of its locks.
    fn current<'l>(&'l self, lock: &'l MutexGuard<'_, ()>) -> &'l Table<K, V, D> {
        // SAFETY: a resize, which alone assigns, holds all locks.
        unsafe { self.table.load_locked(lock) }.expect("there is always a table")
    }
    /// The link that leads to a key, or to nothing behind its bucket's last item. The bucket's lock is held.
    fn find<'t>(&self, table: &'t Table<K, V, D>, hash: usize, key: &K) -> &'t Chain<K, V, D> {
        let mut at = table.bucket(hash);
        while let Some(item) = at.peek() {
            // SAFETY: linked, and only who holds the lock unlinks it.
            let item: &'t Item<K, V, D> = unsafe { item.as_ref() };
            if item.hash == hash && item.key == *key {
                break;
            }
            at = &item.next[table.link];
        }
        at
    }
    /// Let `value` belong to a key. What did before is freed later.
    pub fn put(&self, key: K, value: V, reader: &Reader<'_, D>) {
        let hash = self.hash(&key);
        let lock = locked(&self.locks[hash % LOCKS]);
        let table = self.current(&lock);
        let at = self.find(table, hash, &key);
        let new = Box::leak(Box::new(Item { hash, key, value, next: [Link::none(), Link::none()] }));
        let old = at.peek();
        // SAFETY: the old one as in `find`: what comes behind it comes behind the new one, which is a box that is freed after a
        // period behind its removal.
        unsafe {
            if let Some(old) = old {
                new.next[table.link].publish(old.as_ref().next[table.link].peek());
            } else {
                self.len.fetch_add(1, Ordering::Relaxed);
            }
            at.publish(Some(NonNull::from(new)));
        }
        // `call` may wait for readers: nobody should wait for that.
        drop(lock);
        // SAFETY: as in `remove`.
        old.into_iter().for_each(|old| reader.call(unsafe { Retired::new(old) }));
    }
    /// Let nothing belong to a key; whether something did.
    pub fn remove(&self, key: &K, reader: &Reader<'_, D>) -> bool {
        let hash = self.hash(key);
        let lock = locked(&self.locks[hash % LOCKS]);
        let table = self.current(&lock);
        let at = self.find(table, hash, key);
        let Some(item) = at.peek() else { return false };
        // SAFETY: as in `find`; what comes behind it stays as it is.
        unsafe { at.publish(item.as_ref().next[table.link].peek()) };
        self.len.fetch_sub(1, Ordering::Relaxed);
        drop(lock);
        // SAFETY: it was a box, and no chain of the current table has it anymore; see above for the old one's.
        reader.call(unsafe { Retired::new(item) });
        true
    }
    /// Change the number of buckets.
    pub fn resize(&self, buckets: usize, reader: &mut Reader<'_, D>) {
        let mut other = locked(&self.resizing);
        if other.is_some_and(|need| !reader.poll(need)) {
            reader.synchronize();
        }
        let mut locks: Vec<_> = self.locks.iter().map(locked).collect();
        let new = {
            let table = self.current(&locks[0]);
            let new = Table::new(1 - table.link, buckets.next_power_of_two().max(LOCKS));
            for bucket in &table.buckets {
                let mut next = bucket.peek();
                while let Some(item) = next {
                    // SAFETY: linked, and we have all locks.
                    let this = unsafe { item.as_ref() };
                    let head = new.bucket(this.hash);
                    // SAFETY: no section can have the table that used this link last: a period has passed since it was
                    // retired. The item is freed as before.
                    unsafe {
                        this.next[new.link].publish(head.peek());
                        head.publish(Some(item));
                    }
                    next = this.next[table.link].peek();
                }
            }
            new
        };
        let old = self.table.assign(new, &mut locks[0]);
        drop(locks);
        *other = Some(reader.snap());
        old.into_iter().for_each(|old| reader.call(old));
    }
}

impl<K, V, D: 'static, S> Drop for Cache<K, V, D, S> {
    fn drop(&mut self) {
        let Some(table) = self.table.get_mut() else { return };
        for bucket in &table.buckets {
            let mut next = bucket.peek();
            while let Some(item) = next {
                // SAFETY: linked once, and nobody else has the table.
                next = unsafe { Box::from_raw(item.as_ptr()) }.next[table.link].peek();
            }
        }
    }
}

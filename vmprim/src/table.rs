//! Which region an address is in, asked by signal handlers: a sorted array behind one pointer, replaced as a whole.
//!
//! How a replaced array and a region that left it come to be freed is in `thread.rs`.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};

use sync::mutant;

use crate::{
    region::Inner,
    sys,
    thread::{self, Held},
};

#[derive(Clone, Copy, Debug)]
struct Entry {
    start: usize,
    end: usize,
    region: *const Inner,
}

/// Regions by address.
#[derive(Debug)]
pub struct Table(Box<[Entry]>);

static TABLE: AtomicPtr<Table> = AtomicPtr::new(std::ptr::null_mut());
/// 0 free, 1 taken: a lock that a fork can hold across.
static UPDATES: AtomicU32 = AtomicU32::new(0);

/// How many regions have given memory that they had adopted back to the program.
static GIVEN_BACK: AtomicUsize = AtomicUsize::new(0);

/// A region is about to leave the table, whose memory will be used on: a fault may be late.
pub fn give_back() {
    // Relaxed: the table that is without the region is stored after it, and read before it.
    GIVEN_BACK.fetch_add(1, Ordering::Relaxed);
}

/// After how many of them a fault that is no region's may be late; asked after the look into the table.
pub fn given_back() -> usize {
    // Relaxed: see `give_back`.
    GIVEN_BACK.load(Ordering::Relaxed)
}

/// Keep others from changing the table.
pub fn lock_updates() {
    // Acquire: pairs with Release in `unlock_updates`.
    while UPDATES.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
        sys::futex_wait(&raw const UPDATES, 1, Some(std::time::Duration::from_millis(1)));
    }
}

/// Let others change the table.
pub fn unlock_updates() {
    // Release: pairs with Acquire in `lock_updates`.
    UPDATES.store(0, Ordering::Release);
    sys::futex_wake(&raw const UPDATES, 1);
}

/// The region that `address` is in, named in `held` so that it stays.
#[inline]
pub fn find(address: usize, held: &Held) -> Option<&'static Inner> {
    let mut table;
    loop {
        // SeqCst, all three: the argument in thread.rs.
        table = TABLE.load(Ordering::SeqCst);
        held.hazard.store(table, Ordering::SeqCst);
        if TABLE.load(Ordering::SeqCst) == table {
            break;
        }
    }
    // SAFETY: the hazard, set while the table was current, keeps it.
    let found = unsafe { table.as_ref() }.and_then(|table| {
        let after = table.0.partition_point(|entry| entry.start <= address);
        let entry = table.0.get(after.checked_sub(1)?)?;
        (address < entry.end).then_some(entry.region)
    });
    // Relaxed, then Release: pairs with the updater's look at the hazard. Who finds it gone sees the region named.
    held.region.store(found.map_or(0, |region| region as usize), Ordering::Relaxed);
    held.hazard.store(std::ptr::null_mut(), Ordering::Release);
    // SAFETY: named in `held` before the table was let go, so its owner waits.
    found.map(|region| unsafe { &*region })
}

/// What all threads are inside of.
fn held() -> impl Iterator<Item = &'static Held> {
    thread::blocks().flat_map(|block| &block.frames)
}

/// Replace the table by what `change` makes of it, and wait until nobody looks into the old one.
fn update(change: impl FnOnce(&mut Vec<Entry>)) {
    lock_updates();
    // Relaxed: under the lock.
    let old = TABLE.load(Ordering::Relaxed);
    // SAFETY: freed only below, under the lock.
    let mut entries = unsafe { old.as_ref() }.map_or_else(Vec::new, |table| table.0.to_vec());
    change(&mut entries);
    let new = Box::into_raw(Box::new(Table(entries.into_boxed_slice())));
    // SeqCst, here and below: the argument in thread.rs.
    TABLE.store(new, Ordering::SeqCst);
    if !old.is_null() {
        let is_looked_into = || held().any(|held| held.hazard.load(Ordering::SeqCst) == old);
        while is_looked_into() {
            std::thread::yield_now();
        }
        // SAFETY: made by `Box::into_raw` above; out of reach, and nobody looks into it.
        drop(unsafe { Box::from_raw(old) });
    }
    unlock_updates();
}

/// Faults from `start` to `end` are the region's.
pub fn add(start: usize, end: usize, region: *const Inner) {
    update(|entries| {
        let at = entries.partition_point(|entry| entry.start < start);
        entries.insert(at, Entry { start, end, region });
    });
}

/// They no longer are; on return no handler is about the region.
pub fn remove(region: *const Inner) {
    update(|entries| entries.retain(|entry| entry.region != region));
    let names = |held: &Held| held.region.load(Ordering::SeqCst) == region as usize;
    while held().any(names) && !mutant!("vmprim-drop-early") {
        std::thread::yield_now();
    }
}

/// In the child of a fork: no region is there.
pub fn forget_all() {
    // The array is leaked, once a fork: whether it may be freed is not worth the argument.
    TABLE.store(std::ptr::null_mut(), Ordering::SeqCst);
}

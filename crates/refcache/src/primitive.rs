//! The atomics, cells and locks that the protocol is written with: core's, loom's or shuttle's.

use sync::{SpinGuard, SpinLock, primitive::spin_loop};

pub(crate) use sync::primitive::{AtomicBool, AtomicU64, Ordering, UnsafeCell, fence};

/// Take the lock.
pub(crate) fn lock<T>(lock: &SpinLock<T>) -> SpinGuard<'_, T> {
    #[cfg(not(loom))]
    return lock.lock();
    // Loom may show who only looks an old value for ever; who tries sees the newest.
    #[cfg(loom)]
    loop {
        match lock.try_lock() {
            Some(guard) => return guard,
            None => spin_loop(),
        }
    }
}

/// Take the lock that is a bit of a word. Gives the word, without it. Who waits writes nothing, so that the holder may free
/// the lock by a store, with what else it changes in the word.
#[inline]
pub(crate) fn lock_bit(word: &AtomicU64, bit: u64) -> u64 {
    // Relaxed: a guess, that the exchange verifies.
    let mut seen = word.load(Ordering::Relaxed);
    loop {
        let free = seen & !bit;
        // Acquire: the last holder's section comes before; partner: the store in `RefHead::locked`.
        match word.compare_exchange(free, free | bit, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => return free,
            Err(now) => seen = now,
        }
        #[cfg(not(loom))]
        while seen & bit != 0 {
            spin_loop();
            // Relaxed: only a hint when to try again.
            seen = word.load(Ordering::Relaxed);
        }
        #[cfg(loom)]
        spin_loop();
    }
}

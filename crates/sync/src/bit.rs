//! A spin lock that is one bit of a word which exists anyway, such as a page-table entry.
//!
//! The other bits go on changing while the lock is held, by whatever rule the word has, as long as they change by
//! read-modify-write: the processor itself sets "accessed" and "dirty" in page-table entries.

use crate::primitive::{AtomicU64, Ordering, spin_loop};

/// The operations of a lock in one bit; the lock itself is the bit.
///
/// ```
/// # #[cfg(not(loom))] {
/// use sync::{BitLock, primitive::{AtomicU64, Ordering}};
///
/// const LOCK: u64 = 1 << 10;
/// let word = AtomicU64::new(0x5000);
/// assert_eq!(BitLock::lock(&word, LOCK), 0x5000);
/// assert_eq!(BitLock::try_lock(&word, LOCK), None);
/// BitLock::unlock(&word, LOCK);
/// assert_eq!(word.load(Ordering::Relaxed), 0x5000);
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct BitLock;

impl BitLock {
    /// Wait until the bits of `bit` (a mask of one bit) are clear in `word`, and set them. Gives the word as it was
    /// then, without the lock bit.
    #[inline]
    pub fn lock(word: &AtomicU64, bit: u64) -> u64 {
        loop {
            if let Some(seen) = Self::try_lock(word, bit) {
                return seen;
            }
            // Relaxed: only a hint when to try again; `try_lock` does the ordering.
            while word.load(Ordering::Relaxed) & bit != 0 {
                spin_loop();
            }
        }
    }
    /// Set the lock bit if it is clear; gives the word as it was then, without the lock bit.
    #[inline]
    pub fn try_lock(word: &AtomicU64, bit: u64) -> Option<u64> {
        debug_assert!(bit.is_power_of_two());
        // Acquire: the last holder's section comes before; partner of `unlock`.
        let seen = word.fetch_or(bit, Ordering::Acquire);
        (seen & bit == 0).then_some(seen)
    }
    /// Clear the lock bit. The caller holds the lock.
    #[inline]
    pub fn unlock(word: &AtomicU64, bit: u64) {
        // Release: this holder's section comes before the next one's; partner of `try_lock`.
        let seen = word.fetch_and(!bit, Ordering::Release);
        debug_assert!(seen & bit != 0, "unlocking a bit lock that is not held");
    }
}

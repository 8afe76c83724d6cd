//! The state of 32 pages, and the lock of each.
//!
//! **Claim.** At most one thread acts on a page at a time; one that finds it taken sleeps and is not forgotten; and
//! who takes it sees all that the last holder did.
//!
//! **Idea.** A page's lock is one bit, BUSY, of a word that 32 pages share, so that whole groups are taken and
//! released with one read-modify-write each. Whoever must wait sets the page's WAIT bit in the *same* word: the
//! read-modify-write that sets it also says whether BUSY is still set, and the one that clears BUSY also says
//! whether somebody waits. Waiters sleep on `seq`, which a release that saw WAIT increments:
//!
//! ```text
//! lock(p):    loop: s = seq                             // before BUSY is looked at: a later release changes it
//!                   if fetch_or(BUSY p) had it clear: taken
//!                   if fetch_or(WAIT p) still has BUSY p: sleep while seq == s
//! unlock(p):  old = fetch_and(!(BUSY p | WAIT p))
//!             if old had WAIT p: seq += 1; wake all
//! ```
//!
//! Sleeping on the lock word itself would not do: it changes for 31 other pages, and between the look and the sleep
//! the bit may be released and taken again with WAIT gone. A WAIT bit that is set just after the release stays
//! until the next one, which wakes nobody for nothing.
//!
//! **Levels.** Two bits a page in one word, changed by xor by the holder of the page's BUSY bit, so that changes of
//! other pages' levels are not lost. The old word, which xor returns, also says exactly how many neighbours within
//! the group differ before and after: that is what mappings cost where each run of one level is a mapping.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use sync::{
    mutant,
    primitive::{AtomicU32, AtomicU64, Ordering},
};

use crate::access::Access;

/// Pages of a group.
pub const PAGES: usize = 32;

/// How waiting threads sleep: a futex, or a model of one.
pub trait Sleep {
    /// Sleep while `word` is `seen`; may return early.
    fn wait(&self, word: &AtomicU32, seen: u32);
    /// Wake all that sleep on `word`.
    fn wake(&self, word: &AtomicU32);
}

/// State of 32 pages.
#[derive(Debug)]
#[repr(C, align(32))]
pub struct Group {
    /// Low half: BUSY of each page; high half: WAIT.
    lock: AtomicU64,
    /// Two bits a page.
    level: AtomicU64,
    /// Incremented by a release that saw a waiter.
    seq: AtomicU32,
    /// Pages that may have been written since the last dirty set.
    pub soft_dirty: AtomicU32,
    /// Pages that must keep their level.
    pub pinned: AtomicU32,
    /// Where views need entries made, pages that once had a frame in the view; where the kernel raises pages on the way back
    /// from faults, those whose level says so already.
    pub born: AtomicU32,
}

impl Group {
    /// A page, held, is about to be raised by the kernel, which clears the bit of the word afterwards.
    pub fn resuming(&self, bit: u32) -> &AtomicU32 {
        // Relaxed: seen by whoever holds the page next, by its lock.
        self.born.fetch_or(bit, Ordering::Relaxed);
        &self.born
    }
    /// Of these pages, held, the ones that the kernel is about to raise.
    pub fn to_be_raised(&self, mask: u32) -> u32 {
        // Acquire: the kernel has raised the others; pairs with its locked clearing.
        self.born.load(Ordering::Acquire) & mask
    }
    /// Wait until the kernel has raised these pages, which are held, as far as it was to. Their threads are on the way back to
    /// what they were at, and wait for nobody.
    pub fn await_resumed(&self, mask: u32) {
        while self.to_be_raised(mask) != 0 && !mutant!("vmprim-resume-not-awaited") {
            crate::sys::yield_now();
        }
    }
}

/// Two bits for each bit of `mask`, both set.
const fn spread(mask: u32) -> u64 {
    let mut x = mask as u64;
    x = (x | x << 16) & 0x0000_ffff_0000_ffff;
    x = (x | x << 8) & 0x00ff_00ff_00ff_00ff;
    x = (x | x << 4) & 0x0f0f_0f0f_0f0f_0f0f;
    x = (x | x << 2) & 0x3333_3333_3333_3333;
    x = (x | x << 1) & 0x5555_5555_5555_5555;
    x | x << 1
}

/// Neighbours within the group whose levels differ.
fn borders(levels: u64) -> i32 {
    let differ = levels ^ levels >> 2;
    ((differ | differ >> 1) & (0x5555_5555_5555_5555 >> 2)).count_ones() as i32
}

impl Group {
    /// All pages at `level`, free.
    pub fn new(level: Access) -> Self {
        Self {
            lock: AtomicU64::new(0),
            level: AtomicU64::new(level as u64 * 0x5555_5555_5555_5555),
            seq: AtomicU32::new(0),
            soft_dirty: AtomicU32::new(0),
            pinned: AtomicU32::new(0),
            born: AtomicU32::new(0),
        }
    }

    /// Take those pages of `mask` that are free; which were taken.
    #[inline]
    pub fn try_lock(&self, mask: u32) -> u32 {
        // Acquire: pairs with Release in `unlock`; the last holder's levels and page contents are seen.
        let old = self.lock.fetch_or(mask.into(), Ordering::Acquire);
        mask & !(old as u32)
    }

    /// Take all pages of `mask`, in ascending order where some must be waited for. `waits` is called with a page's
    /// index before sleeping on it.
    #[inline]
    pub fn lock(&self, mask: u32, sleep: &impl Sleep, waits: impl Fn(u32)) {
        let mut want = mask;
        loop {
            // Acquire: pairs with the Release increment in `unlock`, so that a value read after it goes with a lock
            // word that is as new; read before BUSY is looked at, see above.
            let seen = self.seq.load(Ordering::Acquire);
            let missing = want & !self.try_lock(want);
            if missing == 0 {
                return;
            }
            let first = missing & missing.wrapping_neg();
            // Nothing above a page that is waited for is held: waits go upward only, so they form no cycle.
            self.unlock(want & !missing & !(first.wrapping_sub(1)), sleep);
            want &= !(first.wrapping_sub(1));
            waits(first.trailing_zeros());
            // Relaxed: what orders the wait is the one modification order of the lock word.
            if self.lock.fetch_or(u64::from(first) << 32, Ordering::Relaxed) & u64::from(first) != 0 {
                sleep.wait(&self.seq, seen);
            }
        }
    }

    /// Release the pages of `mask`, which the caller holds.
    #[inline]
    pub fn unlock(&self, mask: u32, sleep: &impl Sleep) {
        if mask == 0 {
            return;
        }
        let order = if mutant!("vmprim-relaxed-unlock") { Ordering::Relaxed } else { Ordering::Release };
        // Release: pairs with Acquire in `try_lock`; the level and the page's contents come first.
        let old = self.lock.fetch_and(!(u64::from(mask) | u64::from(mask) << 32), order);
        if old >> 32 & u64::from(mask) != 0 && !mutant!("vmprim-lost-wake") {
            // Release: pairs with the Acquire load in `lock`.
            self.seq.fetch_add(1, Ordering::Release);
            sleep.wake(&self.seq);
        }
    }

    /// The pages of `mask` that are taken.
    pub fn busy(&self, mask: u32) -> u32 {
        // Acquire: pairs with Release in `unlock`; of a page that is free, what follows comes after the last holder.
        self.lock.load(Ordering::Acquire) as u32 & mask
    }

    /// The level of page `i`; steady for the holder of its lock, a guess for others.
    #[inline]
    pub fn level(&self, i: usize) -> Access {
        // Relaxed: the holder's Acquire of the lock made it current; others use it as a guess.
        Access::of_bits(self.level.load(Ordering::Relaxed) >> (2 * (i % PAGES)))
    }

    /// Pages of `mask` by level: those at None, at Read, at ReadWrite. Steady for the holder of `mask`.
    pub fn by_level(&self, mask: u32) -> [u32; 3] {
        // Relaxed: as in `level`.
        let levels = self.level.load(Ordering::Relaxed);
        let squeeze = |mut x: u64| {
            x &= 0x5555_5555_5555_5555;
            x = (x | x >> 1) & 0x3333_3333_3333_3333;
            x = (x | x >> 2) & 0x0f0f_0f0f_0f0f_0f0f;
            x = (x | x >> 4) & 0x00ff_00ff_00ff_00ff;
            x = (x | x >> 8) & 0x0000_ffff_0000_ffff;
            (x | x >> 16) as u32
        };
        let (read, write) = (squeeze(levels) & mask, squeeze(levels >> 1) & mask);
        [mask & !read & !write, read, write]
    }

    /// Set the level of the pages of `mask`, which the caller holds; by how much the number of neighbours in the
    /// group that differ has grown.
    #[inline]
    pub fn set_level(&self, mask: u32, level: Access) -> i32 {
        let mine = spread(mask);
        // Relaxed, both: only holders change these bits, and the lock orders holders. The xor leaves other pages'
        // bits alone.
        let change = (self.level.load(Ordering::Relaxed) ^ (level as u64 * 0x5555_5555_5555_5555)) & mine;
        let old = self.level.fetch_xor(change, Ordering::Relaxed);
        borders(old ^ change).wrapping_sub(borders(old))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    struct Never;
    impl Sleep for Never {
        fn wait(&self, _: &AtomicU32, _: u32) {
            unreachable!("nothing is held");
        }
        fn wake(&self, _: &AtomicU32) {
            unreachable!("nobody waits");
        }
    }

    #[test]
    fn whoever_lowers_waits_until_the_kernel_has_raised() {
        let group = Group::new(Access::None);
        let word = group.resuming(1 << 5);
        assert_eq!((group.to_be_raised(u32::MAX), group.to_be_raised(1 << 6)), (1 << 5, 0));
        let raised = AtomicU32::new(0);
        std::thread::scope(|threads| {
            // As the kernel: it raises, and then it clears the bit.
            threads.spawn(|| {
                std::thread::sleep(std::time::Duration::from_millis(50));
                raised.store(1, Ordering::Relaxed);
                word.fetch_and(!(1 << 5), Ordering::SeqCst);
            });
            group.await_resumed(u32::MAX);
            assert_eq!(raised.load(Ordering::Relaxed), 1);
        });
    }

    #[test]
    fn levels_are_each_pages_own_and_borders_are_counted() {
        let group = Group::new(Access::None);
        assert_eq!(group.set_level(1 << 5, Access::ReadWrite), 2);
        assert_eq!(group.set_level(1 << 6, Access::ReadWrite), 0);
        assert_eq!(group.set_level(1 << 31, Access::Read), 1);
        assert_eq!(group.by_level(u32::MAX), [!(1 << 5 | 1 << 6 | 1 << 31), 1 << 31, 1 << 5 | 1 << 6]);
        assert_eq!((group.level(5), group.level(4)), (Access::ReadWrite, Access::None));
        assert_eq!(group.set_level(u32::MAX, Access::Read), -3);
    }

    #[test]
    fn what_is_taken_is_not_taken_again() {
        let group = Group::new(Access::None);
        group.lock(0xff, &Never, |_| ());
        assert_eq!(group.try_lock(0x1ff), 0x100);
        group.unlock(0x1f0, &Never);
        assert_eq!(group.busy(0x1ff), 0x0f);
    }
}

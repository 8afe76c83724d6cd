//! A sequence lock: a few words that are read together by many, who write nothing, and changed together by some.
//!
//! **Claim.** A reader has the words as one writer left them, and writes nothing, unless writers are in its way some times in a row: then it
//! takes their lock, so that its wait has an end. Writers exclude each other, and don't wait for other readers.
//!
//! **Idea** (Lameter, "Effective Synchronization on Linux/NUMA Systems", 2005; in terms of a language's memory model: Boehm, "Can
//! Seqlocks Get Along With Programming Language Memory Models?", MSPC 2012). A number tells the states apart: it is odd while the words
//! change, and even, and another than before, when they have. Who finds it even, and the same after reading, has read one state.
//!
//! ```text
//! reader:   n = seq (Acquire) [S1]; even?  words; fence(Acquire) [S2]; seq == n?  else again
//! writer:   lock; seq = n + 1; fence(Release) [S2]; words; seq = n + 2 (Release) [S1]; unlock
//! ```
//!
//! **Why the words are of one state.** A reader that finds n even has all words of that state or later ones [S1]. If it has found
//! a word of a later state, the fences order that writer's odd number before its second look at the number [S2], which so isn't n.
//!
//! The words are atomic, so reading them beside a writer is defined. The number comes round after 2^31 changes in the course of one
//! reading.

use core::{array, fmt};

use crate::{
    mutant,
    primitive::{AtomicU32, AtomicU64, Ordering, fence, spin_loop},
    spin::SpinLock,
};

/// So often a reader tries before it keeps writers out.
const TRIES: usize = if cfg!(loom) { 1 } else { 8 };

/// `N` words that change together.
///
/// ```
/// # #[cfg(not(loom))] {
/// use sync::SeqLock;
///
/// let pair = SeqLock::new([1, 2]);
/// pair.update(|[a, b]| [b, a]);
/// assert_eq!(pair.read(), [2, 1]);
/// # }
/// ```
pub struct SeqLock<const N: usize> {
    seq: AtomicU32,
    writer: SpinLock<()>,
    words: [AtomicU64; N],
}

impl<const N: usize> SeqLock<N> {
    /// A lock over these words.
    pub fn new(words: [u64; N]) -> Self {
        Self { seq: AtomicU32::new(0), writer: SpinLock::new(()), words: words.map(AtomicU64::new) }
    }
    /// The words. Waits for somebody who changes them, and if many do, for its turn.
    #[inline]
    pub fn read(&self) -> [u64; N] {
        for _ in 0..TRIES {
            if let Some(words) = self.try_read() {
                return words;
            }
            spin_loop();
        }
        self.read_locked()
    }
    #[cold]
    fn read_locked(&self) -> [u64; N] {
        let _writer = self.writer.lock();
        self.load()
    }
    /// The words, unless somebody changes them.
    #[inline]
    pub fn try_read(&self) -> Option<[u64; N]> {
        // Acquire [S1]: the words of that state come before; partner: the last store in `update`.
        let before = self.seq.load(Ordering::Acquire);
        if !before.is_multiple_of(2) && !mutant!("seq-odd-ignored") {
            return None;
        }
        let words = self.load();
        // Acquire [S2]: if a word is of a later state, so is what is found of the number; partner: the fence in `update`.
        if !mutant!("seq-no-read-fence") {
            fence(Ordering::Acquire);
        }
        let after = self.seq.load(Ordering::Relaxed);
        (before == after || mutant!("seq-one-look")).then_some(words)
    }
    /// Change the words. `change` must not sleep.
    pub fn update(&self, change: impl FnOnce([u64; N]) -> [u64; N]) {
        let _writer = self.writer.lock();
        // Relaxed, and in `load`: changed under the lock only.
        let seq = self.seq.load(Ordering::Relaxed);
        let new = change(self.load());
        self.seq.store(seq.wrapping_add(1), Ordering::Relaxed);
        // Release [S2]: the odd number before the words; partner: the fence in `try_read`.
        if !mutant!("seq-no-write-fence") {
            fence(Ordering::Release);
        }
        for (word, new) in self.words.iter().zip(new) {
            // Relaxed: between the two.
            word.store(new, Ordering::Relaxed);
        }
        let order = if mutant!("seq-relaxed-end") { Ordering::Relaxed } else { Ordering::Release };
        // Release [S1]: the words before the even number; partner: the first load in `try_read`.
        self.seq.store(seq.wrapping_add(2), order);
    }
    fn load(&self) -> [u64; N] {
        // Relaxed: see the callers.
        array::from_fn(|i| self.words[i].load(Ordering::Relaxed))
    }
}

impl<const N: usize> fmt::Debug for SeqLock<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SeqLock").field(&self.try_read()).finish()
    }
}

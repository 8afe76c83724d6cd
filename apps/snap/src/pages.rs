//! Which thread copies a page, and when it may be written: the part of a checkpoint that two threads race for.
//!
//! **Claim.** A page that was armed in the cut is copied exactly once, and no thread gets past
//! [`Pages::before_write`] until that copy is complete. Whoever sleeps is woken.
//!
//! **Idea.** Two bits a page, PENDING and COPYING, in one word that 32 pages share:
//!
//! ```text
//! arm(p):      PENDING                                  // in the cut: nobody writes
//! claim(p):    PENDING -> COPYING, by one exchange; the copier, or the thread that trapped; one of them wins
//! release(p):  COPYING -> neither                       // the copy is complete
//! before_write(p):
//!     neither:  not of this cut, or copied: go on
//!     COPYING:  the copier is at it: sleep until it has released it
//!     PENDING:  take a buffer, claim, copy, release; without a buffer sleep until one is given back, or until the
//!               copier has come to the page
//! ```
//! The thread that trapped takes its buffer *before* it claims the page. So between a claim and its release there is
//! nothing but a copy of one page, whoever claims; sleepers wait for that, or for the copier's next step, which waits
//! for no sleeper.
//!
//! **Sleeping.** One futex word for all: a sleeper counts itself in `waiting`, fences, reads the word, looks at its page
//! and the pool once more, and sleeps while the word is as it was read. Whoever releases a page or gives back a buffer
//! fences after that, and where somebody waits, changes the word and wakes. Of the two fences one comes first: either
//! the sleeper's second look finds the change, or the waker finds the sleeper counted, and then changes the word after
//! the sleeper has read it, or before, in which case the second look finds the change, by the word's Acquire.

use sync::{
    mutant,
    primitive::{AtomicU32, AtomicU64, Ordering, fence},
};

/// Pages of a word.
pub const GROUP: usize = 32;

/// How threads sleep: a futex, or a model of one.
pub trait Sleep {
    /// Sleep while `word` is `seen`; may return early.
    fn wait(&self, word: &AtomicU32, seen: u32);
    /// Wake all that sleep on `word`.
    fn wake(&self, word: &AtomicU32);
}

/// The pages of a region.
#[derive(Debug)]
pub struct Pages {
    /// Low half: PENDING of 32 pages; high half: COPYING.
    words: Box<[AtomicU64]>,
    changed: AtomicU32,
    waiting: AtomicU32,
}

const fn pending(page: usize) -> u64 {
    1 << (page % GROUP)
}

const fn copying(page: usize) -> u64 {
    pending(page) << GROUP
}

impl Pages {
    /// So many pages, none of which is to be copied.
    pub fn new(pages: usize) -> Self {
        let words = (0..pages.div_ceil(GROUP)).map(|_| AtomicU64::new(0)).collect();
        Self { words, changed: AtomicU32::new(0), waiting: AtomicU32::new(0) }
    }

    fn word(&self, page: usize) -> Option<&AtomicU64> {
        self.words.get(page / GROUP)
    }

    /// In the cut: the page is to be copied before it is written.
    pub fn arm(&self, page: usize) {
        if let Some(word) = self.word(page) {
            // Release: pairs with Acquire in `claim`; what was written before the cut is what is copied.
            word.fetch_or(pending(page), Ordering::Release);
        }
    }

    /// The page need not be copied after all; whether it was still to be.
    pub fn disarm(&self, page: usize) -> bool {
        // Relaxed: nothing is read or written on account of it.
        self.word(page)
            .is_some_and(|word| word.fetch_and(!pending(page), Ordering::Relaxed) & pending(page) != 0)
    }

    /// Take it upon oneself to copy the page; whether that is left to do.
    pub fn claim(&self, page: usize) -> bool {
        let Some(word) = self.word(page) else { return false };
        // Relaxed: the exchange says whether it is current.
        let mut old = word.load(Ordering::Relaxed);
        while old & pending(page) != 0 {
            let new = old & !pending(page) | copying(page);
            // Acquire: pairs with Release in `arm`.
            match word.compare_exchange_weak(old, new, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => old = now,
            }
        }
        false
    }

    /// The copy of a page that was claimed is complete.
    pub fn release(&self, page: usize, sleep: &impl Sleep) {
        if let Some(word) = self.word(page) {
            // Release: pairs with Acquire in `attempt`; the copy is complete before somebody writes the page.
            word.fetch_and(!copying(page), Ordering::Release);
        }
        self.notify(sleep);
    }

    /// A page was released, or a buffer given back.
    pub fn notify(&self, sleep: &impl Sleep) {
        // SeqCst: pairs with the fence in `before_write`; see above.
        fence(Ordering::SeqCst);
        // Relaxed: ordered by the fence.
        if self.waiting.load(Ordering::Relaxed) > 0 && !mutant!("snap-no-wake") {
            // Release: pairs with the Acquire load in `before_write`; what changed is seen with the word.
            self.changed.fetch_add(1, Ordering::Release);
            sleep.wake(&self.changed);
        }
    }

    /// Return once the page may be written. `take` gets a buffer, `copy` copies the page to it and hands it on.
    pub fn before_write<B>(
        &self,
        page: usize,
        sleep: &impl Sleep,
        take: impl Fn() -> Option<B>,
        copy: impl Fn(B),
    ) {
        while !self.attempt(page, sleep, &take, &copy) {
            // Relaxed: ordered by the fence.
            self.waiting.fetch_add(1, Ordering::Relaxed);
            // SeqCst: pairs with the fence in `notify`.
            fence(Ordering::SeqCst);
            // Acquire: pairs with Release in `notify`.
            let seen = self.changed.load(Ordering::Acquire);
            let done = self.attempt(page, sleep, &take, &copy);
            if !done {
                sleep.wait(&self.changed, seen);
            }
            // Relaxed: too high a count costs a wake.
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            if done {
                return;
            }
        }
    }

    /// Whether the page may be written.
    fn attempt<B>(
        &self,
        page: usize,
        sleep: &impl Sleep,
        take: &impl Fn() -> Option<B>,
        copy: &impl Fn(B),
    ) -> bool {
        let Some(word) = self.word(page) else { return true };
        // Acquire: pairs with Release in `release`.
        let word = word.load(Ordering::Acquire);
        if word & copying(page) != 0 {
            return mutant!("snap-copy-not-awaited");
        }
        if word & pending(page) == 0 || mutant!("snap-grant-before-copy") {
            return true;
        }
        let Some(buffer) = take() else { return false };
        if !self.claim(page) {
            drop(buffer);
            // Somebody may be waiting for it.
            self.notify(sleep);
            return false;
        }
        copy(buffer);
        self.release(page, sleep);
        true
    }
}

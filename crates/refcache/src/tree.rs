//! Epochs: a number that goes up by one when every member has arrived.
//!
//! **Claim.** An arrival writes one line that at most 8 CPUs write, and seldom one more; it takes no lock. `epoch` moves
//! from g to g + 1 only after each CPU that was a member when it became g has arrived, or left.
//!
//! **Idea.** A combining tree (Yew, Tzeng and Lawrie, "Distributing Hot-Spot Addressing in Large-Scale Multiprocessors",
//! 1987) of fan-in 8. Each word has a bit for each child in two sets: `active`, the members, and `pending`, whose arrival
//! is awaited. Who clears the last pending bit of a word arrives in the word above; who clears the root's advances.
//!
//! **Invariants.**
//!
//! * `active` and `epoch` change under the gate. Both are rare: parking, and once in an epoch.
//! * Bits go into `pending` in an advance only, and before `epoch` is stored: a CPU arrives after it has read the new epoch.
//! * Who joins sets `active`, *then* reads `epoch`, with no advance between: so it counts as arrived in the epoch that it
//!   reads, and the next one awaits it. Read first, an advance may come between, and the epoch after runs without it.
//! * Somebody is pending, or about to advance, whenever there is a member: who joins an empty tree advances at once.

use core::ptr::NonNull;

use percpu::{CpuId, Line};
use sync::{SpinLock, mutant, probe};

use crate::primitive::{AtomicU64, Ordering, fence, lock};

/// Children of a word; few under loom, so that two CPUs fill one.
pub(crate) const FAN_IN: usize = if cfg!(loom) { 2 } else { 8 };
/// Enough for all CPUs.
const MOST_LEVELS: usize = 8;
/// The bits of `pending`; those of `active` are above.
const PENDING: u64 = (1 << FAN_IN) - 1;

pub(crate) struct Tree {
    epoch: Line<AtomicU64>,
    gate: Line<SpinLock<()>>,
    /// Level after level, from the CPUs up.
    words: NonNull<Line<AtomicU64>>,
    /// Where each level begins, and where the last one ends.
    begins: [u16; MOST_LEVELS + 1],
    levels: usize,
}

/// What a level of the tree is for a CPU: the word's number in all, and the CPU's bit in it.
struct Step {
    word: usize,
    bit: u64,
}

impl Tree {
    /// How many words a tree for `cpus` CPUs has.
    pub(crate) const fn words(cpus: usize) -> usize {
        let (mut width, mut words) = (cpus, 0);
        loop {
            width = width.div_ceil(FAN_IN);
            words += width;
            if width <= 1 {
                return words;
            }
        }
    }
    /// A tree of `cpus` CPUs without members, at epoch 1.
    ///
    /// # Safety
    /// `words` are [`Self::words`] words, all 0, that live as long as the tree and are used by nobody else.
    pub(crate) unsafe fn new(cpus: usize, words: NonNull<Line<AtomicU64>>) -> Self {
        let (mut width, mut begins, mut levels) = (cpus, [0; MOST_LEVELS + 1], 0);
        while levels == 0 || width > 1 {
            width = width.div_ceil(FAN_IN);
            begins[levels + 1] = begins[levels] + width as u16;
            levels += 1;
        }
        Self { epoch: Line(AtomicU64::new(1)), gate: Line(SpinLock::new(())), words, begins, levels }
    }
    fn all(&self) -> &[Line<AtomicU64>] {
        // SAFETY: by the promise of `new`.
        unsafe { core::slice::from_raw_parts(self.words.as_ptr(), self.begins[self.levels].into()) }
    }
    /// # Safety
    /// The tree isn't used any more.
    pub(crate) unsafe fn drop_words(&mut self) {
        let words = core::ptr::slice_from_raw_parts_mut(self.words.as_ptr(), self.begins[self.levels].into());
        // SAFETY: by the promises here and of `new`.
        unsafe { core::ptr::drop_in_place(words) };
    }
    fn word(&self, n: usize) -> &AtomicU64 {
        &self.all()[n].0
    }
    /// The way up from a CPU.
    fn steps(&self, cpu: CpuId) -> impl Iterator<Item = Step> {
        let mut at = cpu.index();
        self.begins[..self.levels].iter().map(move |begin| {
            let bit = 1 << (at % FAN_IN);
            at /= FAN_IN;
            Step { word: usize::from(*begin) + at, bit }
        })
    }

    /// The epoch.
    #[inline]
    pub(crate) fn epoch(&self) -> u64 {
        // Acquire: what members did before they arrived comes before what follows; partner: `advance`.
        self.epoch.0.load(Ordering::Acquire)
    }
    /// This CPU has flushed in the present epoch. The last one advances it.
    pub(crate) fn arrive(&self, cpu: CpuId) {
        assert!(self.is_awaited(cpu), "CPU {} arrives where nobody awaits it", cpu.index());
        if self.clear(cpu) {
            let _gate = lock(&self.gate.0);
            self.advance();
        }
    }
    fn is_awaited(&self, cpu: CpuId) -> bool {
        // Relaxed: this CPU's own bit, which was set before the epoch that it read was stored.
        self.steps(cpu)
            .next()
            .is_some_and(|Step { word, bit }| self.word(word).load(Ordering::Relaxed) & bit != 0)
    }
    /// Take the CPU's arrival up the tree; whether it was the last.
    fn clear(&self, cpu: CpuId) -> bool {
        let order = if mutant!("refcache-relaxed-arrive") { Ordering::Relaxed } else { Ordering::AcqRel };
        for Step { word, bit } in self.steps(cpu) {
            // AcqRel: the last arriver's advance comes after what all others did before their arrivals; partners: each
            // other, and the Acquire of `epoch` through `advance`.
            let seen = self.word(word).fetch_and(!bit, order);
            // Who has arrived before, and leaves now, is counted once.
            let again = seen & bit == 0 && !mutant!("refcache-counted-twice");
            if again || seen & PENDING & !bit != 0 {
                return false;
            }
        }
        true
    }
    /// Under the gate, when nobody is pending: await all members, then say so.
    fn advance(&self) {
        for Line(word) in self.all() {
            // Relaxed, both: nobody arrives before the store of `epoch`, and `active` is ordered by the gate.
            let active = word.load(Ordering::Relaxed) & !PENDING;
            word.store(active | active >> FAN_IN, Ordering::Relaxed);
        }
        let epoch = self.epoch.0.load(Ordering::Relaxed);
        // Release: the words, and what members did before they arrived; partner: `epoch`.
        let order = if mutant!("refcache-relaxed-epoch") { Ordering::Relaxed } else { Ordering::Release };
        self.epoch.0.store(epoch + 1, order);
        probe!(Epoch);
    }
    /// Make the CPU a member. Gives the epoch in which it counts as arrived.
    pub(crate) fn join(&self, cpu: CpuId) -> u64 {
        let early = mutant!("refcache-read-then-join").then(|| self.epoch());
        let _gate = lock(&self.gate.0);
        let empty = !self.has_members();
        for Step { word, bit } in self.steps(cpu) {
            // Relaxed: ordered by the gate.
            self.word(word).fetch_or(bit << FAN_IN, Ordering::Relaxed);
        }
        let epoch = early.unwrap_or_else(|| self.epoch());
        if empty {
            self.advance();
        }
        epoch
    }
    /// The CPU, which holds nothing back, is a member no more; that is also its last arrival. Calls `f`, under the gate, with
    /// whether there are members still.
    pub(crate) fn leave<R>(&self, cpu: CpuId, f: impl FnOnce(bool) -> R) -> R {
        let _gate = lock(&self.gate.0);
        // Release: what this CPU did before, and by the gate those that have left before it; partner: who finds no members without
        // the gate, and then asks what they have left (`Domains::is_quiet` of crate idle).
        fence(Ordering::Release);
        for Step { word, bit } in self.steps(cpu) {
            let bit = bit << FAN_IN;
            // Relaxed: ordered by the gate.
            let seen = self.word(word).fetch_and(!bit, Ordering::Relaxed);
            if seen & !PENDING & !bit != 0 {
                break;
            }
        }
        if self.clear(cpu) {
            self.advance();
        }
        f(self.has_members())
    }
    /// Whether any CPU is a member; certain under the gate.
    pub(crate) fn has_members(&self) -> bool {
        // Relaxed: ordered by the gate.
        self.all().last().is_some_and(|root| root.0.load(Ordering::Relaxed) & !PENDING != 0)
    }
}

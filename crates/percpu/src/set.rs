//! Sets of CPUs: a plain one, and one that CPUs join and leave concurrently.

#[cfg(not(loom))]
use core::sync::atomic::{AtomicU64, Ordering};
#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering};

use crate::{CpuId, MAX_CPUS};

const WORDS: usize = MAX_CPUS / 64;

/// A set of CPUs, by value.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuSet([u64; WORDS]);

impl CpuSet {
    /// No CPU.
    pub const EMPTY: CpuSet = CpuSet([0; WORDS]);

    /// The CPUs 0..`n`.
    pub fn first(n: usize) -> Self {
        let mut s = Self::EMPTY;
        (0..n).filter_map(CpuId::new).for_each(|c| s.insert(c));
        s
    }
    /// Add `cpu`.
    pub fn insert(&mut self, cpu: CpuId) {
        self.0[cpu.index() / 64] |= 1 << (cpu.index() % 64);
    }
    /// Take `cpu` out.
    pub fn remove(&mut self, cpu: CpuId) {
        self.0[cpu.index() / 64] &= !(1 << (cpu.index() % 64));
    }
    /// Whether `cpu` is in the set.
    pub fn contains(&self, cpu: CpuId) -> bool {
        self.0[cpu.index() / 64] & 1 << (cpu.index() % 64) != 0
    }
    /// Whether no CPU is in the set.
    pub fn is_empty(&self) -> bool {
        self.0 == [0; WORDS]
    }
    /// How many CPUs are in the set.
    pub fn len(&self) -> usize {
        self.0.iter().map(|w| w.count_ones() as usize).sum()
    }
    /// The CPUs in ascending order.
    pub fn iter(&self) -> CpuSetIter {
        CpuSetIter { words: self.0, at: 0 }
    }
    /// The CPUs that are in both sets.
    pub fn intersection(&self, other: &CpuSet) -> CpuSet {
        CpuSet(core::array::from_fn(|i| self.0[i] & other.0[i]))
    }
    /// The set as 64-bit words, CPU 0 in bit 0 of the first.
    pub fn words(&self) -> [u64; WORDS] {
        self.0
    }
    /// The set whose words these are.
    pub fn from_words(words: [u64; WORDS]) -> Self {
        Self(words)
    }
}

impl core::fmt::Debug for CpuSet {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_set().entries(self.iter().map(CpuId::index)).finish()
    }
}

impl FromIterator<CpuId> for CpuSet {
    fn from_iter<I: IntoIterator<Item = CpuId>>(iter: I) -> Self {
        let mut s = Self::EMPTY;
        iter.into_iter().for_each(|c| s.insert(c));
        s
    }
}

/// Iterator over the CPUs of a set.
#[derive(Clone, Debug)]
pub struct CpuSetIter {
    words: [u64; WORDS],
    at: usize,
}

impl Iterator for CpuSetIter {
    type Item = CpuId;
    fn next(&mut self) -> Option<CpuId> {
        while self.at < WORDS {
            let w = self.words[self.at];
            if w != 0 {
                self.words[self.at] = w & (w - 1);
                return CpuId::new(self.at * 64 + w.trailing_zeros() as usize);
            }
            self.at += 1;
        }
        None
    }
}

/// A set that CPUs join and leave while others read it.
///
/// Every access is `SeqCst`: a CPU joins and *then* reads what the set protects; a remover changes that and *then*
/// reads the set. Store-then-load needs one total order (Intel SDM vol. 3A, 8.2.3.4 shows the reordering otherwise).
#[derive(Debug)]
pub struct AtomicCpuSet([AtomicU64; WORDS]);

impl Default for AtomicCpuSet {
    fn default() -> Self {
        Self::new()
    }
}

impl AtomicCpuSet {
    /// No CPU.
    pub fn new() -> Self {
        Self(core::array::from_fn(|_| AtomicU64::new(0)))
    }
    /// Add `cpu`; a read-modify-write, so also a full fence on x86-64.
    pub fn insert(&self, cpu: CpuId) {
        // SeqCst: partner of `snapshot`, see the type.
        self.0[cpu.index() / 64].fetch_or(1 << (cpu.index() % 64), Ordering::SeqCst);
    }
    /// Take `cpu` out.
    pub fn remove(&self, cpu: CpuId) {
        // SeqCst: what the CPU did while in the set comes before; partner of `snapshot`.
        self.0[cpu.index() / 64].fetch_and(!(1 << (cpu.index() % 64)), Ordering::SeqCst);
    }
    /// The CPUs in the set, each word at one instant.
    pub fn snapshot(&self) -> CpuSet {
        // SeqCst: partner of `insert` and `remove`; the caller puts `fence(SeqCst)` between its change and this.
        CpuSet(core::array::from_fn(|i| self.0[i].load(Ordering::SeqCst)))
    }
}

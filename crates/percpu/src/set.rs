//! Sets of CPUs: a plain one, and one that CPUs join and leave concurrently.

#[cfg(not(loom))]
use core::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering, fence};

use crate::{CpuId, MAX_CPUS};

const WORDS: usize = MAX_CPUS / 64;

/// A set of CPUs, by value.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuSet([u64; WORDS]);

impl CpuSet {
    /// No CPU.
    pub const EMPTY: CpuSet = CpuSet([0; WORDS]);
    /// Every CPU that there may be.
    pub const ALL: CpuSet = CpuSet([u64::MAX; WORDS]);

    /// The CPUs 0..`n`.
    pub fn first(n: usize) -> Self {
        let mut s = Self::EMPTY;
        (0..n).filter_map(CpuId::new).for_each(|c| s.insert(c));
        s
    }
    /// Add `cpu`.
    #[inline]
    pub fn insert(&mut self, cpu: CpuId) {
        self.0[cpu.index() / 64] |= 1 << (cpu.index() % 64);
    }
    /// Take `cpu` out.
    #[inline]
    pub fn remove(&mut self, cpu: CpuId) {
        self.0[cpu.index() / 64] &= !(1 << (cpu.index() % 64));
    }
    /// Whether `cpu` is in the set.
    #[inline]
    pub fn contains(&self, cpu: CpuId) -> bool {
        self.0[cpu.index() / 64] & 1 << (cpu.index() % 64) != 0
    }
    /// Whether no CPU is in the set.
    #[inline]
    pub fn is_empty(&self) -> bool {
        // Not `==`, which calls a comparison of bytes.
        self.0.iter().fold(0, |all, word| all | word) == 0
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
/// **Rule.** A CPU joins and *then* reads what the set protects; a remover changes that and *then* takes a snapshot.
/// So either the snapshot has the CPU, or the CPU reads what the remover wrote. Store-then-load is the one pair that
/// even x86-64 reorders (Intel SDM vol. 3A, 8.2.3.4), so there is a full fence between the two on both sides: at the
/// end of [`Self::insert`] and at the beginning of [`Self::snapshot`].
///
/// **And back.** What a CPU did while it was in the set comes before the rest of a snapshot's caller that no longer
/// finds it there.
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
    /// Add `cpu`; what the caller reads after the call is read after the CPU is in the set.
    pub fn insert(&self, cpu: CpuId) {
        // AcqRel: keeps the chain from an earlier `remove` to later snapshots unbroken.
        self.0[cpu.index() / 64].fetch_or(1 << (cpu.index() % 64), Ordering::AcqRel);
        // SeqCst: partner of the fence in `snapshot`, see the type.
        if !is_live("cpuset-no-join-fence") {
            fence(Ordering::SeqCst);
        }
    }
    /// Take `cpu` out.
    pub fn remove(&self, cpu: CpuId) {
        // AcqRel: what the CPU did while in the set comes before; partner of the load in `snapshot`.
        self.0[cpu.index() / 64].fetch_and(!(1 << (cpu.index() % 64)), Ordering::AcqRel);
    }
    /// The CPUs in the set, each word at one instant after what the caller wrote before the call.
    pub fn snapshot(&self) -> CpuSet {
        // SeqCst: partner of the fence in `insert`, see the type.
        if !is_live("cpuset-no-snapshot-fence") {
            fence(Ordering::SeqCst);
        }
        // Acquire: partner of `remove`.
        CpuSet(core::array::from_fn(|i| self.0[i].load(Ordering::Acquire)))
    }
}

/// As `sync::mutant!`, which is above this crate.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
const fn is_live(_: &str) -> bool {
    false
}

#[cfg(feature = "mutants")]
fn is_live(name: &str) -> bool {
    static LIVE: std::sync::OnceLock<Option<std::ffi::OsString>> = std::sync::OnceLock::new();
    LIVE.get_or_init(|| std::env::var_os("QUIRE_MUTANT")).as_deref().is_some_and(|live| live == name)
}

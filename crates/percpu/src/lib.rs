//! CPUs: identities, sets, per-CPU values, and the two witnesses that the whole system passes around.
//!
//! * [`Pinned`] proves "I am on this CPU and will not leave it while I hold this". Whoever touches a per-CPU value
//!   must show one.
//! * [`Unpinned`] proves "I am a thread and may sleep". Whoever takes a sleeping lock, or runs an operation that may,
//!   must show one.
//!
//! Both come from a [`Host`], the one seam to whatever schedules threads: the kernel, or the tests' machine. Interrupt
//! handlers have neither, so the compiler keeps them away from per-CPU words and from sleeping.
#![no_std]

extern crate alloc;
#[cfg(any(feature = "testing", feature = "mutants"))]
extern crate std;

mod set;
#[cfg(feature = "testing")]
pub mod testing;

use alloc::{boxed::Box, vec::Vec};
use core::{fmt, marker::PhantomData, task::Waker};

pub use set::{AtomicCpuSet, CpuSet, CpuSetIter};

/// The most CPUs that a machine may have: xAPIC and x2APIC machines of up to 255, rounded up to whole words. One word
/// under loom, whose state grows with each.
pub const MAX_CPUS: usize = if cfg!(loom) { 64 } else { 256 };

/// A CPU: 0..[`MAX_CPUS`], dense, the boot CPU is 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct CpuId(u16);

impl CpuId {
    /// CPU number `n`, or `None` from [`MAX_CPUS`] on.
    pub const fn new(n: usize) -> Option<Self> {
        if n < MAX_CPUS { Some(Self(n as u16)) } else { None }
    }
    /// The number, as an index: below [`MAX_CPUS`].
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Whatever runs threads on CPUs: the seam behind [`Pinned`] and [`Unpinned`].
///
/// # Safety
/// Between `enter_pinned` and the matching `leave_pinned` the calling thread stays on the CPU returned, and no other
/// thread is pinned to that CPU. Pairs nest. `park` is not called while pinned.
pub unsafe trait Host: Sync {
    /// Stop preemption and migration; says which CPU this is.
    fn enter_pinned(&self) -> CpuId;
    /// Undo one `enter_pinned`.
    fn leave_pinned(&self);
    /// How many of the calling thread's `enter_pinned` are not undone.
    fn pins(&self) -> usize;
    /// How to end this thread's `park`: a wake before the park makes the next park return at once.
    fn waker(&self) -> Waker;
    /// Sleep until woken; may also return for no reason, so callers loop on their condition.
    fn park(&self);
}

/// Proof that the holder is a thread on CPU [`Self::cpu`] and stays there. Not `Send`, not `Sync`.
pub struct Pinned<'a> {
    cpu: CpuId,
    host: Option<&'a dyn Host>,
    _thread: PhantomData<*const ()>,
}

impl Pinned<'_> {
    /// A witness made from nothing.
    ///
    /// # Safety
    /// The calling thread is on `cpu` and can't migrate or be preempted by another thread that pins itself to `cpu`,
    /// for as long as the value lives; and this isn't an interrupt handler. Whoever borrows it mutably, to show that nothing borrows
    /// a pin of the thread, has no other.
    pub const unsafe fn assume(cpu: CpuId) -> Pinned<'static> {
        Pinned { cpu, host: None, _thread: PhantomData }
    }
    /// Whether the thread holds no other that its host knows of: then what borrows one of the thread's pins borrows this. One that
    /// was [assumed](Self::assume) is taken for the only one.
    pub fn is_only(&self) -> bool {
        self.host.is_none_or(|host| host.pins() == 1)
    }
    /// The CPU that this thread is on.
    pub fn cpu(&self) -> CpuId {
        self.cpu
    }
}

impl Drop for Pinned<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Some(host) = self.host {
            host.leave_pinned();
        }
    }
}

/// Proof that the holder is a thread that may sleep. Not `Send`, not `Sync`.
#[derive(Clone, Copy)]
pub struct Unpinned<'a> {
    host: &'a dyn Host,
    _thread: PhantomData<*const ()>,
}

impl<'a> Unpinned<'a> {
    /// The calling thread may sleep, by `host`.
    ///
    /// # Safety
    /// The calling thread is one of `host`'s, holds no [`Pinned`] and no spin lock, and isn't an interrupt handler,
    /// whenever the value is used.
    pub const unsafe fn new(host: &'a dyn Host) -> Self {
        Self { host, _thread: PhantomData }
    }
    /// Stay on this CPU until the result is dropped.
    pub fn pin(&self) -> Pinned<'a> {
        Pinned { cpu: self.host.enter_pinned(), host: Some(self.host), _thread: PhantomData }
    }
    /// How to wake this thread from [`Self::park`].
    pub fn waker(&self) -> Waker {
        self.host.waker()
    }
    /// Sleep until the waker is used (also before the call); may return early.
    pub fn park(&self) {
        self.host.park();
    }
}

/// A value on cache lines of its own; 128 bytes, since adjacent lines are prefetched in pairs.
#[repr(align(128))]
#[derive(Debug, Default)]
pub struct Line<T>(pub T);

/// One `T` for each CPU, on lines of its own.
pub struct PerCpu<T> {
    slots: Box<[Line<T>]>,
}

// SAFETY: a `&T` is handed out only against a `Pinned` (one thread at a time for one CPU, so a `T` that is merely
// `Send` is handed from thread to thread), or by `of` and `iter`, which ask for `T: Sync`.
unsafe impl<T: Send> Sync for PerCpu<T> {}

impl<T> PerCpu<T> {
    /// `cpus` values, made by `make`.
    pub fn new(cpus: usize, mut make: impl FnMut(CpuId) -> T) -> Self {
        let slots: Vec<_> = (0..cpus).filter_map(CpuId::new).map(|c| Line(make(c))).collect();
        Self { slots: slots.into_boxed_slice() }
    }
    /// This CPU's value. Panics if the machine has more CPUs than the value was made for.
    pub fn get<'p>(&'p self, pin: &'p Pinned<'_>) -> &'p T {
        &self.slots[pin.cpu().index()].0
    }
    /// Any CPU's value, for types that may be shared.
    pub fn of(&self, cpu: CpuId) -> Option<&T>
    where
        T: Sync,
    {
        self.slots.get(cpu.index()).map(|p| &p.0)
    }
    /// All values in order of CPU, for types that may be shared.
    pub fn iter(&self) -> impl Iterator<Item = &T>
    where
        T: Sync,
    {
        self.slots.iter().map(|p| &p.0)
    }
    /// How many CPUs it was made for.
    pub fn cpus(&self) -> usize {
        self.slots.len()
    }
}

impl<T> fmt::Debug for PerCpu<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PerCpu({} CPUs)", self.slots.len())
    }
}

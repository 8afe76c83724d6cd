//! A reader-writer lock whose readers write a line of their own CPU, for what is read by many and seldom changed.
//!
//! **Claim.** While it is *biased* a reader writes nothing that another CPU writes, and waits for nobody. A reader is never let in
//! beside a writer.
//!
//! **Idea** (Dice and Kogan, "BRAVO: Biased Locking for Reader-Writer Locks", USENIX ATC 2019). Readers of a biased lock leave the
//! [`RwLock`] alone: each CPU has a slot, common to all locks, in which it says what lock it is reading, pinned. A writer takes
//! the `RwLock`, takes the bias away, and waits until no slot names the lock. From then on readers come through the
//! `RwLock`, until [`READS`] of them came after the last writer: the last of these makes it biased again, from
//! inside. So a lock that is written often is an `RwLock`, and looking through the slots is paid for by the reads before.
//!
//! ```text
//! reader:   biased (Acquire)?  slot = lock; fence(SeqCst) [B1]; biased (Acquire)?  read; slot = 0 (Release) [B3]
//! writer:   lock the RwLock; biased = false; fence(SeqCst) [B1]; each slot (Acquire) [B3] != lock; write; unlock
//! to bias:  in the RwLock as a reader: biased = true (Release) [B2]
//! ```
//!
//! **Why no reader is beside a writer.** Let a reader's second look at `biased` find it true. If that was set before the
//! writer took it away, the reader's fence is before the writer's (after it, it would have found false or something later), so the
//! writer finds the slot, and waits. If it was set after the writer, who set it was in the `RwLock` after the writer, and the
//! reader acquires what that had seen [B2]. What the reader read comes before the writer's writing by [B3]: the writer's look at
//! the slot finds what the reader left there or something later, which may be the name of another lock, so that is released too.
//!
//! A reader must not sleep, nor read another such lock: it is pinned, and its CPU has one slot. One that may, or reads for
//! long, comes through the `RwLock` ([`Biased::read_long`]).

use core::{
    fmt,
    ops::{Deref, Range},
    ptr,
};

use percpu::{Line, MAX_CPUS, Pinned, Unpinned};

use crate::{
    ReadGuard, RwLock, WriteGuard, mutant,
    primitive::{AtomicBool, AtomicU32, AtomicUsize, ConstPtr, Ordering, fence, spin_loop},
};

/// CPUs that may read.
const SLOTS: usize = if cfg!(loom) { 2 } else { MAX_CPUS };
/// Readers between two writers that make it worth while to bias a lock.
pub const READS: u32 = if cfg!(loom) { 1 } else { 64 };

/// Which lock each CPU is reading: one of these for all locks.
pub struct Readers {
    slots: [Line<AtomicUsize>; SLOTS],
}

impl Readers {
    /// No CPU reads.
    #[cfg(not(any(loom, shuttle)))]
    pub const fn new() -> Self {
        Self { slots: [const { Line(AtomicUsize::new(0)) }; SLOTS] }
    }
    /// No CPU reads.
    #[cfg(any(loom, shuttle))]
    pub fn new() -> Self {
        Self { slots: core::array::from_fn(|_| Line(AtomicUsize::new(0))) }
    }
}

impl Default for Readers {
    fn default() -> Self {
        Self::new()
    }
}

/// A lock that many readers or one writer hold. `R` leads to the [`Readers`], the same for all locks of a kernel.
///
/// ```
/// # #[cfg(not(loom))] {
/// use percpu::testing::Machine;
/// use sync::{Biased, Readers};
///
/// static READERS: Readers = Readers::new();
/// let machine = Machine::new(4);
/// let total = Biased::new(0, &READERS);
/// machine.run(|_cpu, ctx| *total.write(&ctx) += 1);
/// machine.run(|_cpu, ctx| (0..1000).for_each(|_| assert_eq!(*total.read(&ctx), 4)));
/// # }
/// ```
pub struct Biased<T, R> {
    lock: RwLock<T>,
    biased: AtomicBool,
    /// Readers that have come through the lock since the last writer.
    reads: AtomicU32,
    readers: R,
}

impl<T, R: Deref<Target = Readers>> Biased<T, R> {
    /// A free lock over `value`, not biased.
    pub fn new(value: T, readers: R) -> Self {
        Self { lock: RwLock::new(value), biased: AtomicBool::new(false), reads: AtomicU32::new(0), readers }
    }
    /// Take the lock for reading: at once if it is biased, else sleep until it can be held so.
    pub fn read<'l>(&'l self, ctx: &Unpinned<'l>) -> BiasedReadGuard<'l, T> {
        let pin = ctx.pin();
        if let Some(slot) = self.enter(&pin) {
            return BiasedReadGuard(Held::Slot {
                value: self.lock.peek(),
                _leave: Leave { slot, _pin: Some(pin) },
            });
        }
        drop(pin);
        self.entered(self.lock.read(ctx))
    }
    /// As [`Self::read`], for a thread that is pinned and so must not sleep: `None` if it would have to.
    pub fn try_read<'l>(&'l self, pin: &'l Pinned<'_>) -> Option<BiasedReadGuard<'l, T>> {
        if let Some(slot) = self.enter(pin) {
            let _leave = Leave { slot, _pin: None };
            return Some(BiasedReadGuard(Held::Slot { value: self.lock.peek(), _leave }));
        }
        self.lock.try_read().map(|guard| self.entered(guard))
    }
    /// A reader has come through the lock.
    fn entered<'l>(&'l self, guard: ReadGuard<'l, T>) -> BiasedReadGuard<'l, T> {
        // Relaxed: only how often. Not counted further than that, so that the line is left alone.
        if self.reads.load(Ordering::Relaxed) < READS
            && self.reads.fetch_add(1, Ordering::Relaxed) + 1 == READS
        {
            // Release [B2]: what the last writer wrote comes before; partner: the loads in `enter`.
            self.biased.store(true, Ordering::Release);
        }
        BiasedReadGuard(Held::Lock(guard))
    }
    /// Sleep until the lock can be held for reading, and take it, for a reader that may sleep in it or keeps it for long.
    pub fn read_long<'l>(&'l self, ctx: &Unpinned<'_>) -> ReadGuard<'l, T> {
        self.lock.read(ctx)
    }
    /// Sleep until the lock can be held for writing, and take it. Spins for readers that are in by their slots.
    pub fn write<'l>(&'l self, ctx: &Unpinned<'_>) -> WriteGuard<'l, T> {
        self.lock.write_after(ctx, || self.revoke())
    }
    /// The addresses of the lock's own words, and those of the value: for reports that name memory.
    pub fn places(&self) -> [Range<usize>; 2] {
        self.lock.places()
    }

    /// Take the bias away and wait for those who are in by it. By a writer, in the lock.
    fn revoke(&self) {
        // Relaxed: changed by who is in the lock.
        if self.biased.load(Ordering::Relaxed) {
            self.biased.store(false, Ordering::Relaxed);
            // SeqCst [B1]: partner of the fence in `enter`.
            if !mutant!("biased-no-write-fence") {
                fence(Ordering::SeqCst);
            }
            for slot in &self.readers.slots {
                // Acquire [B3]: what was read comes before; partner: the store in `Leave::drop`.
                while slot.0.load(Ordering::Acquire) == self.name() && !mutant!("biased-no-wait") {
                    spin_loop();
                }
            }
        }
        // Relaxed: only how often.
        self.reads.store(0, Ordering::Relaxed);
    }
    /// What a slot says of this lock.
    fn name(&self) -> usize {
        ptr::from_ref(self).addr()
    }
    /// Be in by this CPU's slot, which is given, if the lock is biased.
    fn enter(&self, pin: &Pinned<'_>) -> Option<&AtomicUsize> {
        // Acquire, here and below [B2]: partner of the store in `read`.
        if !self.biased.load(Ordering::Acquire) {
            return None;
        }
        let slot = &self.readers.slots[pin.cpu().index()].0;
        // Relaxed: this CPU's own.
        debug_assert_eq!(slot.load(Ordering::Relaxed), 0, "the CPU reads another lock");
        let order = if mutant!("biased-relaxed-name") { Ordering::Relaxed } else { Ordering::Release };
        // Release [B3]: what was read of another lock comes before, if its writer finds this; partner: the load in `revoke`.
        slot.store(self.name(), order);
        // SeqCst [B1]: that it is read, before whether that is allowed; partner: the fence in `revoke`.
        if !mutant!("biased-no-read-fence") {
            fence(Ordering::SeqCst);
        }
        if self.biased.load(Ordering::Acquire) || mutant!("biased-one-look") {
            return Some(slot);
        }
        // Release [B3]: nothing was read, but maybe before, of another lock.
        slot.store(0, Ordering::Release);
        None
    }
}

/// A reader's access to the value; dropping it leaves the lock.
#[must_use = "the lock is left as soon as the guard is dropped"]
pub struct BiasedReadGuard<'a, T>(Held<'a, T>);

enum Held<'a, T> {
    // Fields are dropped in this order: the access ends before the lock is left.
    Slot { value: ConstPtr<T>, _leave: Leave<'a> },
    Lock(ReadGuard<'a, T>),
}

impl<T> Deref for BiasedReadGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        match &self.0 {
            // SAFETY: this CPU's slot says that it reads, so nothing writes the value (module text); the lock outlives the guard.
            Held::Slot { value, .. } => unsafe { value.deref() },
            Held::Lock(guard) => guard,
        }
    }
}

struct Leave<'a> {
    slot: &'a AtomicUsize,
    /// Unless the guard borrows its caller's.
    _pin: Option<Pinned<'a>>,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        let order = if mutant!("biased-relaxed-leave") { Ordering::Relaxed } else { Ordering::Release };
        // Release [B3]: what was read comes before; partner: the load in `revoke`.
        self.slot.store(0, order);
    }
}

impl<T, R> fmt::Debug for Biased<T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Relaxed: for people.
        let biased = self.biased.load(Ordering::Relaxed);
        f.debug_struct("Biased").field("biased", &biased).field("lock", &self.lock).finish()
    }
}

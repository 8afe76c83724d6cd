//! What a registered thread has of its own, and where all of that is found.
//!
//! A slot is two pairs of cache lines: one that the thread writes at each section and updaters read, and one for what it
//! retires. Slots are never freed before their domain, so that whoever scans them needs no protection.

use alloc::boxed::Box;
use core::{
    hint::cold_path,
    panic::Location,
    ptr,
    sync::atomic::{AtomicPtr as PlainPtr, AtomicU32 as PlainU32},
};
use std::{string::String, vec::Vec};

use percpu::Line;
use sync::{
    SpinGuard, SpinLock, mutant,
    primitive::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, UnsafeCell, spin_loop},
};

use super::{
    bag::Bag,
    barrier::{heavy, light},
    lock,
};

/// An announcement: the epoch, of which 52 bits last for centuries; whether readers run fences; how many sections there are. The
/// epoch says nothing while there is none. So a section ends by counting one less, whatever was found, and the domain's
/// epoch has its first section counted already: what it says is announced as it is.
const EPOCH_SHIFT: u32 = 12;
const FENCES: u64 = 1 << 11;
const DEPTH: u64 = FENCES - 1;

/// What is announced by who is in no section.
fn idle(fences: bool) -> u64 {
    if fences { FENCES } else { 0 }
}

/// The epoch word of a new domain: what a thread announces for its first section.
pub(super) fn first_epoch(fences: bool) -> u64 {
    1 << EPOCH_SHIFT | idle(fences) | 1
}

/// Move the epoch on; the new one.
pub(super) fn advance(epoch: &AtomicU64) -> u64 {
    // Release [O4]: who announces the new epoch sees what was unlinked before; partner: the load in `enter`. Acquire: the scan
    // comes after.
    (epoch.fetch_add(1 << EPOCH_SHIFT, Ordering::AcqRel) >> EPOCH_SHIFT) + 1
}
/// Slots in the first chunk; each further one has twice as many as the one before.
const FIRST: usize = if cfg!(loom) { 2 } else { 8 };

/// A registered thread.
#[repr(align(128))]
pub(super) struct Slot {
    /// In which epoch the thread's open section began, and how many it is in. Written by the thread.
    announced: AtomicU64,
    /// Whether the domain's readers run fences.
    fences: bool,
    /// Which thread it is: its [`owner`] number, or 0.
    owner: AtomicUsize,
    /// Where the open section began; only with checks.
    place: PlainPtr<Location<'static>>,
    /// For reports: the thread's number for the system, and its name.
    tid: PlainU32,
    name: SpinLock<String>,
    pub(super) own: Line<Own>,
}

/// What its thread has retired. The thread enters without an atomic exchange, others after a barrier on every CPU:
/// ```text
/// thread:   busy = true; light [O13]; if taken: busy = false, wait, again;  the bag;  busy = false (Release)
/// others:   (one at a time) taken = true; heavy [O13]; wait until busy == false (Acquire);  the bag;  taken = false (Release)
/// ```
/// Either the thread sees `taken`, or the other sees `busy`.
pub(super) struct Own {
    busy: AtomicBool,
    taken: AtomicBool,
    bag: UnsafeCell<Bag>,
}

// SAFETY: the bag is touched as `Own` says, by one thread at a time; what is in it may go to any thread.
unsafe impl Sync for Slot {}
// SAFETY: as above.
unsafe impl Send for Slot {}

/// A number for the calling thread that no other living one has, and that it keeps in a child of `fork`.
#[cfg(not(any(loom, shuttle)))]
pub(super) fn owner() -> usize {
    std::thread_local!(static HERE: u8 = const { 0 });
    HERE.with(|here| ptr::from_ref(here).addr())
}

/// Threads of a model are one of the host's: it is another number at each call. So a model's thread has one slot.
#[cfg(any(loom, shuttle))]
pub(super) fn owner() -> usize {
    use core::sync::atomic::AtomicUsize;
    static LAST: AtomicUsize = AtomicUsize::new(0);
    LAST.fetch_add(1, Ordering::Relaxed) + 1
}

impl Slot {
    fn new(fences: bool) -> Self {
        let own = Own {
            busy: AtomicBool::new(false),
            taken: AtomicBool::new(false),
            bag: UnsafeCell::new(Bag::EMPTY),
        };
        Self {
            announced: AtomicU64::new(idle(fences)),
            fences,
            owner: AtomicUsize::new(0),
            place: PlainPtr::new(ptr::null_mut()),
            tid: PlainU32::new(0),
            name: SpinLock::new(String::new()),
            own: Line(own),
        }
    }
    /// Begin a section, which may lie in another. Called by the slot's thread, also in a signal handler: each step leaves the
    /// word as whoever was interrupted expects it, for a handler ends the sections that it began.
    #[inline(always)]
    pub(super) fn enter(&self, epoch: &AtomicU64) {
        // Relaxed, here and in `leave`: the thread's own word.
        let now = self.announced.load(Ordering::Relaxed);
        if now & (FENCES | DEPTH) == 0 {
            self.announce(Self::current(epoch));
            light(false);
        } else {
            cold_path();
            self.announce(if now & DEPTH == 0 { Self::current(epoch) } else { deeper(now) });
            // In a handler, too, which may have come between the two for another section.
            light(now & FENCES != 0);
        }
    }
    /// [O5]: before the section's loads by `light`; partner: `heavy` in `drive`.
    #[inline(always)]
    fn announce(&self, announcement: u64) {
        let order = if mutant!("rcu-user-relaxed-announce") { Ordering::Relaxed } else { Ordering::Release };
        // Release [O4]: who scans may find this in place of the end of the section before, whose loads must come first too;
        // partner: the load in `blocks`.
        self.announced.store(announcement, order);
    }
    #[inline(always)]
    fn current(epoch: &AtomicU64) -> u64 {
        // Acquire [O4]: who announces an epoch sees what was unlinked before it; partner: the addition in `advance`.
        epoch.load(Ordering::Acquire)
    }
    /// End a section. No branch asks whether it is the last; the compiler makes one instruction of this.
    #[inline(always)]
    pub(super) fn leave(&self) {
        let now = self.announced.load(Ordering::Relaxed);
        let order = if mutant!("rcu-user-relaxed-leave") { Ordering::Relaxed } else { Ordering::Release };
        // Release [O6]: the section's loads come before; partner: the load in `blocks`.
        self.announced.store(now - 1, order);
    }
    /// Whether the thread is in a section; asked by itself.
    pub(super) fn is_open(&self) -> bool {
        // Relaxed: its own word.
        self.announced.load(Ordering::Relaxed) & DEPTH != 0
    }
    /// Whether the thread is in a section that began before `epoch`.
    pub(super) fn blocks(&self, epoch: u64) -> bool {
        // Acquire [O4, O6]: sections that are over come before what is done then; partners: the stores in `enter` and `leave`.
        let announced = self.announced.load(Ordering::Acquire);
        announced & DEPTH != 0 && announced >> EPOCH_SHIFT < epoch
    }
    /// The number of the slot's thread; asked by itself.
    pub(super) fn owner(&self) -> usize {
        // Relaxed: its own word.
        self.owner.load(Ordering::Relaxed)
    }
    /// Note where a section begins, for reports.
    #[inline(always)]
    pub(super) fn note(&self, place: &'static Location<'static>) {
        if super::CHECKED {
            // Relaxed: for people.
            self.place.store(ptr::from_ref(place).cast_mut(), Ordering::Relaxed);
        }
    }
    /// What is said of the thread if it blocks.
    pub(super) fn who(&self) -> (u32, String, Option<&'static Location<'static>>) {
        // SAFETY: null, or what `note` stored.
        let place = unsafe { self.place.load(Ordering::Relaxed).as_ref() };
        (self.tid.load(Ordering::Relaxed), lock(&self.name).clone(), place)
    }
    /// The thread's own way to its bag; not in a signal handler.
    pub(super) fn with_bag<R>(&self, f: impl FnOnce(&mut Bag) -> R) -> R {
        let own = &self.own.0;
        loop {
            // Relaxed: ordered by the barrier.
            own.busy.store(true, Ordering::Relaxed);
            // [O13]: partner: `heavy` in `hold_bags`.
            light(self.fences);
            // Acquire: who had the bag comes before; partner: the store when `Bags` are dropped.
            if !own.taken.load(Ordering::Acquire) {
                break;
            }
            own.busy.store(false, Ordering::Release);
            while newest(&own.taken) {
                spin_loop();
            }
        }
        // SAFETY: whoever else wants the bag waits for `busy`; and this isn't reentered: `f` frees nothing.
        let result = own.bag.with_mut(|bag| f(unsafe { &mut *bag }));
        // Release: partner: the load in `wait`.
        own.busy.store(false, Ordering::Release);
        result
    }
    /// Let another thread have it. What it has retired has been taken out, and no section is open.
    pub(super) fn give_back(&self) {
        // Release: all of this thread's comes before; partner: the exchange in `claim`.
        self.owner.store(0, Ordering::Release);
    }
}

#[cold]
fn deeper(now: u64) -> u64 {
    assert!(now & DEPTH != DEPTH, "sections are nested more than {DEPTH} deep");
    now + 1
}

/// All slots of a domain.
pub(super) struct Registry {
    fences: bool,
    last: AtomicPtr<Chunk>,
    growing: SpinLock<()>,
}

/// All threads are kept away from their bags, and none gets a slot that there wasn't, until this is dropped.
pub(super) struct Bags<'r> {
    registry: &'r Registry,
    _growing: SpinGuard<'r, ()>,
}

struct Chunk {
    slots: Box<[Slot]>,
    before: *const Chunk,
}

// SAFETY: chunks are shared as slots are, and freed by the registry alone.
unsafe impl Send for Registry {}
// SAFETY: as above.
unsafe impl Sync for Registry {}

impl Registry {
    pub(super) fn new(fences: bool) -> Self {
        let last = AtomicPtr::new(Chunk::new(FIRST, ptr::null(), fences));
        Self { fences, last, growing: SpinLock::new(()) }
    }
    pub(super) fn fences(&self) -> bool {
        self.fences
    }
    /// Every slot.
    pub(super) fn slots(&self) -> impl Iterator<Item = &Slot> {
        // Acquire: the chunk is initialised; partner: the store in `grow`. A chunk that is missed holds sections whose
        // barrier comes after the scanner's, as in [O5].
        let mut next = self.last.load(Ordering::Acquire).cast_const();
        let chunks = core::iter::from_fn(move || {
            // SAFETY: null, or a chunk, which lives as long as the registry.
            let chunk: &Chunk = unsafe { next.as_ref() }?;
            next = chunk.before;
            Some(chunk)
        });
        chunks.flat_map(|chunk| chunk.slots.iter())
    }
    /// Whether the calling thread, with this number, is in a section by any of its slots.
    pub(super) fn in_section(&self, owner: usize) -> bool {
        // Relaxed: the thread's own words; what else is found there, or not yet, are other numbers.
        self.slots().any(|slot| slot.owner.load(Ordering::Relaxed) == owner && slot.is_open())
    }
    /// A slot for the calling thread.
    pub(super) fn claim(&self) -> &Slot {
        loop {
            let free = self.slots().find(|slot| {
                // Acquire: the last owner's comes before; partner: the store in `give_back`.
                slot.owner.load(Ordering::Relaxed) == 0
                    && slot.owner.compare_exchange(0, owner(), Ordering::Acquire, Ordering::Relaxed).is_ok()
            });
            if let Some(slot) = free {
                describe(slot);
                return slot;
            }
            self.grow();
        }
    }
    fn grow(&self) {
        let _growing = lock(&self.growing);
        // Relaxed: changed under this lock alone.
        let last = self.last.load(Ordering::Relaxed);
        // SAFETY: there is always a chunk, and it lives as long as the registry.
        let slots = 2 * unsafe { &*last }.slots.len();
        // Release: the chunk is initialised; partner: the load in `slots`.
        self.last.store(Chunk::new(slots, last, self.fences), Ordering::Release);
    }
    /// Keep all threads away from their bags. One at a time: the caller sees to that.
    pub(super) fn hold_bags(&self) -> Bags<'_> {
        let bags = Bags { registry: self, _growing: lock(&self.growing) };
        // Relaxed: ordered by the barrier.
        self.slots().for_each(|slot| slot.own.0.taken.store(true, Ordering::Relaxed));
        // [O13]: partner: `light` in `with_bag`.
        if !mutant!("rcu-user-no-bag-barrier") {
            heavy(self.fences);
        }
        self.slots().for_each(|slot| slot.own.0.wait());
        bags
    }
}

impl<'r> Bags<'r> {
    /// Take out what all threads have retired and not yet handed over.
    pub(super) fn take(&self, mut put: impl FnMut(Bag)) {
        for slot in self.registry.slots() {
            // SAFETY: its thread is kept away.
            let bag = slot.own.0.bag.with_mut(|bag| unsafe { &mut *bag }.take());
            if !bag.is_empty() {
                put(bag);
            }
        }
    }
    /// Keep all threads' names as they are.
    #[cfg_attr(any(loom, shuttle), allow(dead_code))] // models don't fork
    pub(super) fn hold_names(&self) -> Vec<SpinGuard<'r, String>> {
        self.registry.slots().map(|slot| lock(&slot.name)).collect()
    }
    /// In a child of `fork`, where only the calling thread is left: end the others' sections, and free their slots.
    #[cfg_attr(any(loom, shuttle), allow(dead_code))] // models don't fork
    pub(super) fn forget_others(&self) {
        let here = owner();
        // Relaxed: there is one thread.
        let others = self.registry.slots().filter(|slot| slot.owner.load(Ordering::Relaxed) != here);
        for slot in others {
            slot.announced.store(idle(slot.fences), Ordering::Relaxed);
            // A thread that was about to see `taken`.
            slot.own.0.busy.store(false, Ordering::Relaxed);
            slot.give_back();
        }
    }
}

impl Drop for Bags<'_> {
    fn drop(&mut self) {
        // Release: partner: the load in `with_bag`.
        self.registry.slots().for_each(|slot| slot.own.0.taken.store(false, Ordering::Release));
    }
}

impl Own {
    /// Until the thread has left its bag.
    fn wait(&self) {
        // Acquire: what it put in comes before; partner: the store in `with_bag`.
        if self.busy.load(Ordering::Acquire) {
            while newest(&self.busy) {
                spin_loop();
            }
        }
    }
}

/// A look of who waits. Acquire, as the first look.
fn newest(flag: &AtomicBool) -> bool {
    // Loom may show who only looks an old value for ever; who tries to change it sees the newest.
    if cfg!(loom) {
        flag.compare_exchange(false, false, Ordering::Acquire, Ordering::Acquire).is_err()
    } else {
        flag.load(Ordering::Acquire)
    }
}

fn describe(slot: &Slot) {
    #[cfg(target_os = "linux")]
    // SAFETY: the call touches no memory.
    slot.tid.store(unsafe { libc::gettid() }.unsigned_abs(), Ordering::Relaxed);
    *lock(&slot.name) = std::thread::current().name().unwrap_or("").into();
}

impl Chunk {
    fn new(slots: usize, before: *const Chunk, fences: bool) -> *mut Self {
        Box::into_raw(Box::new(Chunk { slots: (0..slots).map(|_| Slot::new(fences)).collect(), before }))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let mut next = self.last.load(Ordering::Relaxed);
        while !next.is_null() {
            // SAFETY: made by `Chunk::new`, and nobody else has the registry.
            next = unsafe { Box::from_raw(next) }.before.cast_mut();
        }
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    /// The moment of `with_bag` between the store and the look at `taken`, which a fork is not likely to hit.
    #[test]
    fn a_thread_that_was_about_to_see_that_its_bag_is_taken_is_not_waited_for() {
        let registry = Registry::new(true);
        let bags = registry.hold_bags();
        let other = registry.slots().next().unwrap();
        other.owner.store(owner() + 1, Ordering::Relaxed);
        other.own.0.busy.store(true, Ordering::Relaxed);
        bags.forget_others();
        assert!(!other.own.0.busy.load(Ordering::Relaxed));
        drop(bags);
        drop(registry.hold_bags());
        assert_eq!(other.owner.load(Ordering::Relaxed), 0);
    }
}

//! A registered thread, and its sections.

use core::{fmt, marker::PhantomData, panic::Location};

use sync::mutant;

use super::{
    Domain,
    bag::Deferred,
    core::{Core, Gp},
    slot::Slot,
};
use crate::{
    list,
    ptr::{Global, Of, Retired, Section},
};

/// A thread that is registered with a domain: by it the thread reads, waits and retires.
///
/// It stays with its thread, and borrows its domain. Waiting takes it by `&mut`, so not in a section:
/// ```compile_fail
/// # rcu::domain!(static CONFIG: Config);
/// let mut reader = CONFIG.register();
/// let section = reader.read();
/// reader.synchronize();
/// drop(section);
/// ```
pub struct Reader<'d, D: 'static = Global> {
    pub(super) core: &'d Core,
    pub(super) slot: &'d Slot,
    /// What goes to other threads is the domain, not this.
    _thread: PhantomData<*mut ()>,
    _brand: Of<D>,
}

/// A read-side section: what is loaded in it stays allocated until this is dropped.
///
/// Sections may be nested, end in any order, and be begun in signal handlers on threads that are registered. One that is forgotten
/// never ends.
#[must_use = "the section ends as soon as the guard is dropped"]
pub struct Guard<'r, D = Global> {
    slot: &'r Slot,
    _thread: PhantomData<*mut ()>,
    _brand: Of<D>,
}

/// More waits to be freed than the domain allows; what was to be retired is given back.
#[derive(Debug)]
#[must_use = "what is given back has still to be freed"]
pub struct Full<T, D>(pub Retired<T, D>);

// SAFETY: `enter` announced the section, and what began after that waits for `leave`.
unsafe impl<D> Section<D> for Guard<'_, D> {}

impl<'r, D> Guard<'r, D> {
    #[inline(always)]
    pub(super) fn enter(core: &Core, slot: &'r Slot, place: &'static Location<'static>) -> Self {
        slot.enter(&core.epoch.0);
        slot.note(place);
        Self { slot, _thread: PhantomData, _brand: PhantomData }
    }
}

impl<D> Drop for Guard<'_, D> {
    #[inline(always)]
    fn drop(&mut self) {
        self.slot.leave();
    }
}

impl<D> fmt::Debug for Guard<'_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Guard")
    }
}

impl Core {
    /// Free the object after a grace period: the calling thread's part.
    pub(super) fn call<T: Send + Sync + 'static, D>(&self, slot: &Slot, retired: Retired<T, D>) {
        self.put(slot, retired, true);
    }
    fn put<T: Send + Sync + 'static, D>(&self, slot: &Slot, retired: Retired<T, D>, may_wait: bool) {
        self.put_item(slot, Deferred::new(retired.into_raw()), may_wait);
    }
    fn put_item(&self, slot: &Slot, item: Deferred, may_wait: bool) {
        let late = mutant!("rcu-user-late-queue");
        let (queued, full) = slot.with_bag(|bag| {
            bag.put(item);
            let full = bag.is_full().then(|| bag.take());
            if late { (None, full) } else { (full.map(|bag| self.queue(bag)), None) }
        });
        if let Some(need) = queued.or_else(|| full.map(|bag| self.queue(bag))) {
            self.settle(need, may_wait, slot);
        }
    }
    /// Queue the thread's bag, if there is something in it.
    fn hand_over(&self, slot: &Slot) -> Option<Gp> {
        slot.with_bag(|bag| (!bag.is_empty()).then(|| self.queue(bag.take())))
    }
}

impl<'d, D: 'static> Reader<'d, D> {
    pub(super) fn new(domain: &'d Domain<D>) -> Self {
        let core = domain.core();
        super::fork::enroll(core);
        Self { core, slot: core.registry.claim(), _thread: PhantomData, _brand: PhantomData }
    }
    /// Begin a section.
    #[inline(always)]
    #[track_caller]
    pub fn read(&self) -> Guard<'_, D> {
        Guard::enter(self.core, self.slot, Location::caller())
    }
    /// Wait until all sections have ended that are open now. Callers at the same time share a period. Panics if the thread is in a
    /// section by another of its readers.
    pub fn synchronize(&mut self) {
        self.core.synchronize(self.slot.owner());
    }
    /// Wait until no section can find the object, and free it. As [`Self::synchronize`]; if that panics the object leaks.
    pub fn free<T>(&mut self, retired: Retired<T, D>) {
        let (object, _) = retired.into_raw();
        self.synchronize();
        // SAFETY: unlinked before the call, and a period has passed since.
        unsafe { super::bag::dispose(object) };
    }
    /// Free the object after a grace period, on whatever thread hands over then. Waits only if more waits than the domain allows,
    /// and neither in a section nor in a destructor of such an object. Not in a signal handler.
    pub fn call<T: Send + Sync + 'static>(&self, retired: Retired<T, D>) {
        self.core.call(self.slot, retired);
    }
    /// Free an object that carries its own link after a grace period, on whatever thread hands over then: for structures whose objects
    /// are found in more than one way. Never waits, so what a thread that never does retires by this is not bounded. Not in a signal handler.
    ///
    /// # Safety
    /// Its `free` uses nothing of the CPU that it is told: threads are on none that is known here.
    pub unsafe fn retire(&self, retired: list::Retired) {
        self.core.put_item(self.slot, Deferred::linked(retired), false);
    }
    /// As [`Self::call`], but never waits: the object is given back if more waits than the domain allows.
    pub fn try_call<T: Send + Sync + 'static>(&self, retired: Retired<T, D>) -> Result<(), Full<T, D>> {
        if self.core.relieve(self.slot) {
            self.core.put(self.slot, retired, false);
            Ok(())
        } else {
            Err(Full(retired))
        }
    }
    /// Hand over what this thread has retired, and free what is due. For a thread that pauses.
    pub fn flush(&self) {
        let need = self.core.hand_over(self.slot).unwrap_or_else(|| self.core.snap());
        self.core.settle(need, false, self.slot);
    }
    /// Wait until everything is freed that any thread has retired by now. Panics in a destructor of such an object, and in a
    /// section by another of the thread's readers.
    pub fn barrier(&mut self) {
        self.core.barrier(Some(self.slot));
    }
    /// The period whose end shows that all sections are over that are open now.
    pub fn snap(&self) -> Gp {
        self.core.snap()
    }
    /// Whether `need` has ended; takes it a step further if it hasn't.
    pub fn poll(&self, need: Gp) -> bool {
        self.core.drive(need);
        self.core.poll(need)
    }
    /// The reader's end. What the thread has retired is left to others; then `forget` is called, and only after that another thread
    /// may get the slot. If a section is open, as its guard was forgotten, it stays open.
    pub(super) fn end(&self, forget: impl FnOnce()) {
        if let Some(need) = self.core.hand_over(self.slot) {
            self.core.settle(need, false, self.slot);
        }
        forget();
        if !self.slot.is_open() {
            self.slot.give_back();
        }
    }
}

impl<D: 'static> Drop for Reader<'_, D> {
    fn drop(&mut self) {
        self.end(|| ());
        super::fork::leave(self.core);
    }
}

impl<D: 'static> fmt::Debug for Reader<'_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("in a section", &self.slot.is_open()).finish()
    }
}

//! A domain for models: each reader has one section, and what is retired while no section is open ends at once, so that
//! whoever retires too early is found out.

use std::{ptr::NonNull, sync::Mutex};

use bonsai::Rcu;
use percpu::{CpuId, Pinned};
use rcu::{Free, Head};
use sync::primitive::{AtomicU32, Ordering, fence};

pub struct Quiet {
    /// Of each reader: how many sections are open.
    open: Vec<AtomicU32>,
    /// What was retired during sections.
    waiting: Mutex<Vec<Waiting>>,
}

struct Waiting(NonNull<Head>, Free);

// SAFETY: what is retired may end on any thread.
unsafe impl Send for Waiting {}

pub struct Section<'g> {
    domain: &'g Quiet,
    reader: usize,
}

impl Quiet {
    pub fn new(readers: usize) -> Self {
        let open = (0..readers).map(|_| AtomicU32::new(0)).collect();
        Self { open, waiting: Mutex::new(Vec::new()) }
    }
    pub fn read(&self, reader: usize) -> Section<'_> {
        // Relaxed: ordered by the fence.
        self.open[reader].store(1, Ordering::Relaxed);
        // SeqCst: the announcement before the section's loads; partner: the fence in `retire`.
        fence(Ordering::SeqCst);
        Section { domain: self, reader }
    }
    /// End what waits. Nobody is in a section.
    pub fn settle(&self) {
        // SAFETY: as the caller says.
        std::mem::take(&mut *self.waiting.lock().unwrap())
            .into_iter()
            .for_each(|waiting| unsafe { end(waiting) });
    }
}

/// # Safety
/// No section is open that has begun before it was retired.
unsafe fn end(Waiting(head, free): Waiting) {
    // SAFETY: the functions of nodes and entries use no CPU.
    let pin = unsafe { Pinned::assume(CpuId::new(0).unwrap()) };
    // SAFETY: the caller's promise.
    unsafe { free(head, &pin) };
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        // Release: after the section's loads; partner: the load in `retire`.
        self.domain.open[self.reader].store(0, Ordering::Release);
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        self.settle();
    }
}

// SAFETY: what is retired ends when no section is open, or with the domain.
unsafe impl Rcu for &'static Quiet {
    type Guard<'g> = Section<'g>;
    type Context<'c> = ();

    fn is_of(&self, guard: &Section<'_>) -> bool {
        std::ptr::eq(*self, guard.domain)
    }
    unsafe fn retire(&self, (): &(), head: NonNull<Head>, free: Free) {
        // SeqCst: what was unlinked before the look at the sections; partner: the fence in `read`.
        fence(Ordering::SeqCst);
        let waiting = Waiting(head, free);
        // Acquire: partner: the store at a section's end.
        if self.open.iter().all(|open| open.load(Ordering::Acquire) == 0) {
            // SAFETY: no section is open, and later ones don't find it.
            unsafe { end(waiting) };
        } else {
            self.waiting.lock().unwrap().push(waiting);
        }
    }
}

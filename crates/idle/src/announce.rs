//! That a CPU is about to halt.

use sync::{
    mutant,
    primitive::{AtomicBool, Ordering, fence},
};

/// Whether a CPU halts, or is about to. On lines of its own: its CPU writes it at each halt, and wakers read that of one CPU
/// mostly.
///
/// The CPU *announces*, then looks at its queue with interrupts off, and halts if it is empty; a waker *queues*, then looks for
/// the announcement, and interrupts who made one. So one of the two sees what the other did. Both are store-then-load, which
/// x86-64 reorders without the fences (Intel SDM vol. 3A, 8.2.3.4).
#[repr(align(128))]
#[derive(Debug)]
pub struct Announcement(AtomicBool);

#[allow(clippy::new_without_default)] // for statics
impl Announcement {
    /// Of a CPU that runs.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self(AtomicBool::new(false))
    }
    /// Of a CPU that runs.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self(AtomicBool::new(false))
    }
    /// This CPU will halt, unless it finds something in its queue, at which it looks after this. Interrupts are off from
    /// before until it halts.
    #[inline]
    pub fn make(&self) {
        // Relaxed: ordered by the fence.
        self.0.store(true, Ordering::Relaxed);
        if !mutant!("idle-no-announce-fence") {
            // SeqCst: the announcement comes before the look at the queue; partner: the fence in `is_made_after_queueing`.
            fence(Ordering::SeqCst);
        }
    }
    /// This CPU goes on.
    #[inline]
    pub fn withdraw(&self) {
        // Relaxed: an interrupt too many is the worst that comes of a late look.
        self.0.store(false, Ordering::Relaxed);
    }
    /// Something was queued for the CPU: whether it must be interrupted to find it.
    #[inline]
    pub fn is_made_after_queueing(&self) -> bool {
        if !mutant!("idle-no-queued-fence") {
            // SeqCst: the queueing comes before this look; partner: the fence in `make`.
            fence(Ordering::SeqCst);
        }
        // Relaxed: ordered by the fence.
        self.0.load(Ordering::Relaxed)
    }
    /// A hint whether the CPU is idle.
    #[inline]
    pub fn is_made(&self) -> bool {
        // Relaxed: a hint.
        self.0.load(Ordering::Relaxed)
    }
}

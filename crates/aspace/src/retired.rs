//! The root of a page table whose address space is no more, until no CPU has it loaded.
//!
//! Who clears the space puts it here, and it is freed by them or by the last CPU that leaves the space, whichever comes
//! later. Both do *own step; fence(SeqCst); look for the other's*, so at least one of them sees that both are done, and
//! the lock lets only one of them take it.

use owned::OwnedFrame;
use percpu::AtomicCpuSet;
use sync::{
    SpinLock,
    primitive::{AtomicBool, Ordering, fence},
};

pub(crate) struct Retired {
    /// Set when the root is here.
    cleared: AtomicBool,
    root: SpinLock<Option<OwnedFrame>>,
}

impl Retired {
    pub(crate) fn new() -> Self {
        Self { cleared: AtomicBool::new(false), root: SpinLock::new(None) }
    }
    /// The space is cleared; [take](Self::take_unused) after this.
    pub(crate) fn put(&self, root: OwnedFrame) {
        *self.root.lock() = Some(root);
        // Release: the root before the flag; partner: the load in `take_unused`.
        self.cleared.store(true, Ordering::Release);
    }
    pub(crate) fn is_cleared(&self) -> bool {
        // Relaxed: only a check of a caller's duty.
        self.cleared.load(Ordering::Relaxed)
    }
    /// The root, if the space is cleared and no CPU of `active` has it in CR3. Asked by who has put it here, and by who has
    /// left `active`.
    pub(crate) fn take_unused(&self, active: &AtomicCpuSet) -> Option<OwnedFrame> {
        // SeqCst: our own step (cleared, or left) before, the other's after; partner: the same fence on the other side.
        fence(Ordering::SeqCst);
        // Acquire: with the flag, see the root; the lock would do that too.
        let unused = self.cleared.load(Ordering::Acquire) && active.snapshot().is_empty();
        if unused { self.root.lock().take() } else { None }
    }
}

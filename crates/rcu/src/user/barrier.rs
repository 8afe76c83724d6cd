//! The two halves of a barrier between one thread that does it often and another that does it seldom.
//!
//! Who stores one word and then loads another needs a barrier between them, if somebody else does the same with the words
//! exchanged and one of the two must see the other. [`light`] and [`heavy`] are the two barriers. With `membarrier` the seldom
//! one has the kernel run a barrier on every CPU that runs a thread of the process, so that the other is only an order to the
//! compiler. Where the kernel refuses that, and in models, both are fences.

use core::sync::atomic::compiler_fence;
use std::io::Write;

use sync::{
    mutant,
    primitive::{Ordering, fence},
};

/// How readers and updaters order their steps. Chosen once for a domain, before its first reader.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Readers run no barrier: `membarrier` does it for them.
    Membarrier,
    /// Both run fences.
    Fences,
}

impl Mode {
    /// The better one that this kernel grants.
    pub fn best() -> Self {
        if register() { Mode::Membarrier } else { Mode::Fences }
    }
}

/// The frequent half. SeqCst [O5]; partner: [`heavy`].
#[inline(always)]
pub(super) fn light(fences: bool) {
    if fences {
        if !mutant!("rcu-user-no-light") {
            fence(Ordering::SeqCst);
        }
    } else {
        compiler_fence(Ordering::SeqCst);
    }
}

/// The seldom half. SeqCst [O5]; partner: [`light`].
///
/// It can't fail: whoever unwinds from here leaves what the caller has stored for the period to others, who would end it without
/// a barrier. A process that has had `membarrier` taken away, as by a filter of its system calls, is ended.
pub(super) fn heavy(fences: bool) {
    if mutant!("rcu-user-no-heavy") {
        return;
    }
    fence(Ordering::SeqCst);
    // Readers have no fences that could take its place.
    if !fences && !expedited() {
        // Not a macro that panics if nothing can be written.
        _ = std::io::stderr().write_all(b"rcu: membarrier was granted, and then refused\n");
        std::process::abort();
    }
}

#[cfg(all(target_os = "linux", not(any(loom, shuttle))))]
mod linux {
    fn membarrier(command: libc::c_int) -> libc::c_long {
        // SAFETY: the call touches no memory of ours.
        unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) }
    }

    /// Ask for the expedited barrier, and whether it was granted. Again in a child of `fork`.
    pub(in crate::user) fn register() -> bool {
        let wanted = libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED | libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED;
        let offered = membarrier(libc::MEMBARRIER_CMD_QUERY);
        offered >= 0
            && offered & libc::c_long::from(wanted) == libc::c_long::from(wanted)
            && membarrier(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) == 0
    }

    pub(super) fn expedited() -> bool {
        membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED) == 0
    }
}

#[cfg(any(not(target_os = "linux"), loom, shuttle))]
mod linux {
    pub(in crate::user) fn register() -> bool {
        false
    }
    pub(super) fn expedited() -> bool {
        false
    }
}

use linux::expedited;
pub(super) use linux::register;

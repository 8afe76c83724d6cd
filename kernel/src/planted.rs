//! A negative control for whoever looks for what CPUs share: with `plant_shared_counter=1` on the command line every page
//! fault also adds one to a word that all CPUs share. A measurement that doesn't show it, at the top, is worth nothing.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::options;

/// A value that has its cache lines to itself, so that nothing else seems to be shared with it.
#[repr(align(128))]
struct Alone<T>(T);

/// Page faults, counted as one should not.
static SHARED_COUNTER: Alone<AtomicU64> = Alone(AtomicU64::new(0));
static PLANTED: Alone<AtomicBool> = Alone(AtomicBool::new(false));

/// Plant it if the command line says so. At boot.
pub fn init() {
    // Relaxed: there is no other CPU yet.
    PLANTED.0.store(options::get().plant_shared_counter, Ordering::Relaxed);
}

/// A page fault has come.
#[inline]
pub fn on_fault() {
    // Relaxed, both: written at boot; and a count that nothing follows from.
    if PLANTED.0.load(Ordering::Relaxed) {
        SHARED_COUNTER.0.fetch_add(1, Ordering::Relaxed);
    }
}

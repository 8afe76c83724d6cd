//! Faults to be found: `plant=NAME` on the command line puts one into this kernel, and a measurement or a test that doesn't
//! show it is worth nothing. `crates/mutants*.txt` have those of the crates; which program must notice one of these is said in
//! `kernel/mutants.txt`.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::{
    hw::{cpu, irq, timer},
    options,
};

/// What can be planted.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Planted {
    /// Every page fault adds one to a word that all CPUs share.
    SharedCounter = 1,
    /// Page faults are resolved with interrupts off.
    MaskedFaults,
    /// A heap that shrinks keeps its pages.
    HeapKeeps,
    /// A copy to or from user memory that may not go on has nowhere else to go on.
    CopyUnrepaired,
    /// A CPU that is copying to or from user memory doesn't flush when it is told to.
    CopyUnflushed,
    /// A directory that is removed is given up at once, while walks go on from it; and these take their time.
    EntryFreedEarly,
    /// A path is put together of parts that were true one after the other, with time in between.
    PathUnchecked,
    /// A call whose last store meets a level starts over, though it has taken what it stores.
    OwedRestarts,
    /// What a call owes is forgotten when its upcall is over.
    OwedDropped,
    /// What a call has met is forgotten when it makes a store that it can't do without.
    OwedForgets,
    /// A child's id is owed, as what other calls tell.
    OwedIds,
    /// A signal for a process is queued only when a thread was looked for that lets it through.
    SignalQueuedLate,
    /// Threads and processes are given up at once by the table of ids, while others look at them; and these take their time.
    IdFreedEarly,
}

impl Planted {
    /// The one of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "shared-counter" => Self::SharedCounter,
            "masked-faults" => Self::MaskedFaults,
            "heap-keeps" => Self::HeapKeeps,
            "copy-unrepaired" => Self::CopyUnrepaired,
            "copy-unflushed" => Self::CopyUnflushed,
            "entry-freed-early" => Self::EntryFreedEarly,
            "path-unchecked" => Self::PathUnchecked,
            "owed-restarts" => Self::OwedRestarts,
            "owed-dropped" => Self::OwedDropped,
            "owed-forgets" => Self::OwedForgets,
            "owed-ids" => Self::OwedIds,
            "signal-queued-late" => Self::SignalQueuedLate,
            "id-freed-early" => Self::IdFreedEarly,
            _ => return None,
        })
    }
}

/// How long who hesitates does, in ns.
const LONG: u64 = 200_000;

/// A value that has its cache lines to itself, so that nothing else seems to be shared with it.
#[repr(align(128))]
struct Alone<T>(T);

/// Page faults, counted as one should not.
static SHARED_COUNTER: Alone<AtomicU64> = Alone(AtomicU64::new(0));
/// The number of what is planted, or 0.
static PLANTED: Alone<AtomicU8> = Alone(AtomicU8::new(0));

/// Plant it if the command line says so. At boot.
pub fn init() {
    // Relaxed: there is no other CPU yet.
    PLANTED.0.store(options::get().planted.map_or(0, |planted| planted as u8), Ordering::Relaxed);
}

/// Whether this is planted.
#[inline]
pub fn is(planted: Planted) -> bool {
    // Relaxed: written at boot.
    PLANTED.0.load(Ordering::Relaxed) == planted as u8
}

/// If this is planted, take so long here that it shows.
#[inline]
pub fn hesitate(planted: Planted) {
    if is(planted) {
        linger();
    }
}

#[cold]
fn linger() {
    let until = timer::now() + LONG;
    while timer::now() < until {
        cpu::pause();
    }
}

/// A page fault has come.
#[inline]
pub fn on_fault() {
    // Relaxed: as above.
    match PLANTED.0.load(Ordering::Relaxed) {
        0 => {}
        other => spoil(other),
    }
}

#[cold]
fn spoil(planted: u8) {
    if planted == Planted::SharedCounter as u8 {
        // Relaxed: a count that nothing follows from.
        SHARED_COUNTER.0.fetch_add(1, Ordering::Relaxed);
    } else if planted == Planted::MaskedFaults as u8 {
        irq::disable();
    }
}

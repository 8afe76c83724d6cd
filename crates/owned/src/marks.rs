//! Debug builds only: what every frame is thought to be, and the pattern in free ones.
//!
//! A mark goes `UNUSED -> owned by a use -> FREE -> owned -> ...`; any other step is a bug of the caller and panics.
//! An `UNUSED` frame was never handed out, so it has not been filled yet: filling all memory at boot would take long.

use core::sync::atomic::{AtomicU8, Ordering};

use addr::{DirectMap, Frame, PAGE_BYTES};

use crate::Use;

/// What free frames are filled with: neither a canonical address nor a present page-table entry.
pub(crate) const POISON: u64 = 0xf7ee_f7ee_f7ee_f7ee;

const UNUSED: u8 = 0;
const FREE: u8 = 1;
const OWNED: u8 = 2;

// Relaxed throughout: marks order nothing, and a frame's owner is unique when they change.
const R: Ordering = Ordering::Relaxed;

/// One mark for each frame; none in release builds. Valid as zeroed memory.
#[derive(Debug)]
pub(crate) struct Marks(pub(crate) &'static [AtomicU8]);

impl Marks {
    /// Whether marks are kept and frames are filled.
    pub(crate) const KEPT: bool = cfg!(debug_assertions);

    /// Frame number `at`, `frame`, is handed out for `usage`: it was free, and nobody wrote to it meanwhile but the
    /// allocator, which may have zeroed it, and has if it says that it is `zeroed`.
    #[inline(always)]
    pub(crate) fn hand_out(&self, at: usize, frame: Frame, usage: Use, zeroed: bool, dm: DirectMap) {
        if Self::KEPT {
            match self.0[at].swap(OWNED + usage as u8, R) {
                UNUSED if !zeroed => {}
                FREE | UNUSED => check(frame, zeroed, dm),
                mark => panic!("{frame:?} was handed out while owned by {}", name(mark)),
            }
        }
    }
    /// Frame number `at`, `frame`, comes back from `usage`.
    #[inline(always)]
    pub(crate) fn take_back(&self, at: usize, frame: Frame, usage: Use, dm: DirectMap) {
        if Self::KEPT {
            self.expect(at, frame, usage);
            fill(frame, dm);
            self.0[at].store(FREE, R);
        }
    }
    /// Whether frame number `at` is owned by `usage`.
    #[cfg(feature = "testing")]
    pub(crate) fn is(&self, at: usize, usage: Use) -> bool {
        self.0[at].load(R) == OWNED + usage as u8
    }
    /// Frame number `at`, `frame`, is owned by `usage`.
    #[inline(always)]
    pub(crate) fn expect(&self, at: usize, frame: Frame, usage: Use) {
        if Self::KEPT {
            let mark = self.0[at].load(R);
            assert!(mark == OWNED + usage as u8, "{frame:?} is {}, not owned by {usage:?}", name(mark));
        }
    }
}

fn name(mark: u8) -> &'static str {
    match mark {
        UNUSED | FREE => "free",
        _ => ["Anonymous", "File", "PageTable", "Kernel", "Stack"][usize::from(mark - OWNED)],
    }
}

fn fill(frame: Frame, dm: DirectMap) {
    let words = dm.ptr(frame.base()).cast::<u64>();
    for i in 0..PAGE_BYTES / 8 {
        // SAFETY: the frame is one of ours, so the direct map reaches its bytes, and its last owner has just given it
        // up. Volatile, as the store is meant to be seen by whoever still reads through a stale translation.
        unsafe { words.add(i).write_volatile(POISON) }
    }
}

/// A free frame is full of the pattern, or of zeros.
fn check(frame: Frame, zeroed: bool, dm: DirectMap) {
    let words = dm.ptr(frame.base()).cast::<u64>();
    // SAFETY: as in `fill`; the frame has no owner but the caller. Volatile, as another CPU with a stale translation may
    // be writing, which is what this looks for.
    let word = |i: usize| unsafe { words.add(i).read_volatile() };
    let expected = if zeroed || word(0) == 0 { 0 } else { POISON };
    for i in 0..PAGE_BYTES / 8 {
        let seen = word(i);
        assert!(seen == expected, "{frame:?} was written while free: {seen:#x} at byte {}", 8 * i);
    }
}

//! The weak word: 64 bits of the client's that name an object without counting it.
//!
//! ```text
//! 63                              4      3      2     1     0
//! |        address of the object   | FROZEN DYING LINK  LOCK |
//! ```
//!
//! A word is a *live link* if LINK is set and the address is not 0. Everything else (0, a value without LINK, LINK without
//! an address) is the client's own business and is never changed here. The crate sets and clears DYING, and
//! replaces a live link by [`EMPTY`] when its object dies. LOCK and FROZEN are the client's; through a frozen link nobody
//! gets a reference.

use crate::{
    Obj,
    primitive::{AtomicU64, Ordering},
};

/// Names nothing.
pub const EMPTY: u64 = 0;
/// A lock of the client's.
pub const LOCK: u64 = 1 << 0;
/// The word names an object.
pub const LINK: u64 = 1 << 1;
/// The object's count was seen at 0: whoever gets a reference clears the bit, and so revives the object.
pub const DYING: u64 = 1 << 2;
/// No reference is got through this link.
pub const FROZEN: u64 = 1 << 3;
/// The bits of the object's address, which is a multiple of 16 bytes.
pub const ADDRESS: u64 = !0xf;

/// The live link to `object`, whose address is a multiple of 16, and which is thereby exposed.
pub fn link<T>(object: *const T) -> u64 {
    let address = object.expose_provenance() as u64;
    debug_assert!(address & !ADDRESS == 0, "{address:#x} is not aligned to 16 bytes");
    address | LINK
}

/// Whether the word names an object.
pub const fn is_live(word: u64) -> bool {
    word & LINK != 0 && word & ADDRESS != 0
}

/// Where the object is that a live link names.
pub fn object<T>(word: u64) -> *mut T {
    core::ptr::with_exposed_provenance_mut((word & ADDRESS) as usize)
}

/// Change the word by `with` if it is a live link to `o`.
fn change(word: &AtomicU64, o: Obj, with: impl Fn(u64) -> u64) {
    // Acquire, AcqRel: marks, revivals and the kill decide by the word's one order of modifications, and each sees what
    // the one before it has seen; partners: each other.
    let named = |v: u64| (is_live(v) && v & ADDRESS == o.address()).then(|| with(v));
    let _ = word.fetch_update(Ordering::AcqRel, Ordering::Acquire, named);
}

/// Set DYING, if the word names `o`.
pub(crate) fn mark(word: &AtomicU64, o: Obj) {
    change(word, o, |v| v | DYING);
}

/// Clear DYING, if the word names `o`.
pub(crate) fn unmark(word: &AtomicU64, o: Obj) {
    change(word, o, |v| v & !DYING);
}

/// Take the link to `o` away, if nobody has cleared DYING since it was set.
pub(crate) fn kill(word: &AtomicU64, o: Obj) -> bool {
    // AcqRel, Acquire: as in `change`; partner also: the revival in `Domain::try_get`, which loses or wins.
    word.compare_exchange(o.address() | LINK | DYING, EMPTY, Ordering::AcqRel, Ordering::Acquire).is_ok()
}

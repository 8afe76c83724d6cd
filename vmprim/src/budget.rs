//! How many mappings the process has, where levels use them up: an estimate that is cheap, and a count now and then.
//!
//! Each change of levels adds the number of neighbours that came to differ. Changes at the border of two groups of
//! pages may race and be off by one; mappings that others make are not seen. So before a refusal the mappings are
//! counted in `/proc/self/maps`, and the estimate begins there again.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use crate::{error::Error, sys};

static USED: AtomicI64 = AtomicI64::new(0);
static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Count, and read the limit.
pub fn recount() -> (usize, usize) {
    let (used, limit) = (sys::map_count(), sys::map_limit());
    // Relaxed, all in this module: an estimate.
    LIMIT.store(limit, Ordering::Relaxed);
    USED.store(i64::try_from(used).unwrap_or(i64::MAX), Ordering::Relaxed);
    (used, limit)
}

/// So many more neighbours differ.
pub fn add(more: i32) {
    USED.fetch_add(more.into(), Ordering::Relaxed);
}

/// How many mappings there may be, as it was read last.
pub fn limit() -> usize {
    LIMIT.load(Ordering::Relaxed)
}

fn ceiling(limit: usize) -> usize {
    limit / 10 * 9
}

/// Whether nine tenths are in use, by the estimate.
pub fn is_near() -> bool {
    usize::try_from(USED.load(Ordering::Relaxed)).unwrap_or(0) > ceiling(LIMIT.load(Ordering::Relaxed))
}

/// Whether `more` fit under nine tenths of the limit, by the estimate.
pub fn fits(more: usize) -> bool {
    let used = usize::try_from(USED.load(Ordering::Relaxed)).unwrap_or(0);
    used.saturating_add(more) <= ceiling(LIMIT.load(Ordering::Relaxed))
}

/// Whether `more` fit under nine tenths of the limit.
///
/// # Errors
/// [`Error::VmaBudget`].
pub fn check(more: usize) -> Result<(), Error> {
    if fits(more) {
        return Ok(());
    }
    let (used, limit) = recount();
    if fits(more) { Ok(()) } else { Err(Error::VmaBudget { used, limit }) }
}

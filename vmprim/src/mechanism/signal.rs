//! `mprotect` and SIGSEGV: on every kernel, for every backing.
//!
//! Neighbouring pages of one level are one mapping of the kernel's, so a page that differs from both neighbours
//! costs two more. The process may have `vm.max_map_count` of them; the region counts (`budget.rs`).

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::ffi::c_int;

use sync::mutant;

use super::{Mechanism, Span, Stop};
use crate::{access::Access, error::Errno, sys};

/// A region at `base`.
#[derive(Debug)]
pub struct Signal {
    pub base: usize,
    /// What ReadWrite means: a private mapping of a file that cannot be written is still readable and writable.
    pub len: usize,
}

/// What `mprotect` calls a level.
pub const fn protection(level: Access) -> c_int {
    match level {
        Access::None => libc::PROT_NONE,
        Access::Read => libc::PROT_READ,
        Access::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
    }
}

impl Signal {
    fn set(&self, span: Span, level: Access) -> Result<(), Errno> {
        debug_assert!(span.end() <= self.len, "a span outside of its region");
        // SAFETY: the region's own bytes.
        unsafe { sys::mprotect(self.base.wrapping_add(span.offset), span.len, protection(level)) }
    }
}

impl Mechanism for Signal {
    fn raise(&self, span: Span, _: Access, to: Access) -> Result<(), Stop> {
        self.set(span, to).map_err(Stop::Os)
    }
    fn lower(&self, spans: &[Span], to: Access) -> Result<(), Errno> {
        spans.iter().try_for_each(|&span| {
            let mut span = span;
            if mutant!("vmprim-lower-first-only") {
                span.len = sys::BASE;
            }
            self.set(span, to)
        })
    }
    fn reinstall(&self, span: Span, level: Access) -> Result<(), Stop> {
        self.set(span, level).map_err(Stop::Os)
    }
    fn splits(&self) -> bool {
        true
    }
}

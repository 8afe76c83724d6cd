//! What the kernel does for a region: the seam between the library and each backend.
//!
//! A mechanism knows bytes and levels, no pages' locks: callers hold BUSY of all pages of a span, and store the
//! level themselves. What another kernel offers becomes one more implementation.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod native;
mod open;
pub mod signal;
pub mod uffd;

pub use open::{Ground, open};

use crate::{access::Access, error::Errno};

/// Bytes of a region: from an offset, so many; both whole pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    pub offset: usize,
    pub len: usize,
}

impl Span {
    pub const fn end(self) -> usize {
        self.offset.wrapping_add(self.len)
    }
}

/// Why a span, or the rest of it, was not raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// At this offset there is no frame.
    Missing(usize),
    /// The kernel refused.
    Os(Errno),
}

/// How the kernel is asked. Every call may come from a signal handler: no allocation, no locks of std.
pub trait Mechanism: Send + Sync + std::fmt::Debug {
    /// Raise a span, all of it at `from`, to `to`.
    fn raise(&self, span: Span, from: Access, to: Access) -> Result<(), Stop>;

    /// Lower each of the spans, whose pages are above `to`, to `to`. When it returns no thread can complete an
    /// access above it.
    fn lower(&self, spans: &[Span], to: Access) -> Result<(), Errno>;

    /// Make a span allow what its level says, though the kernel may be stricter.
    fn reinstall(&self, span: Span, level: Access) -> Result<(), Stop>;

    /// Give a span's pages frames where they have none.
    fn create(&self, _span: Span) -> Result<(), Errno> {
        Ok(())
    }

    /// Whether pages that never had a frame must be given one before they are raised from None.
    fn creates(&self) -> bool {
        false
    }

    /// Whether the kernel keeps track of writes itself.
    fn tracks(&self) -> bool {
        false
    }

    /// Whether the kernel can raise a page on the way back from a fault; see `fault.rs`.
    fn resumes(&self) -> bool {
        false
    }

    /// Of a mechanism that tracks: whether what was written is known after a page was lowered, too.
    fn keeps_written(&self) -> bool {
        false
    }

    /// Of a mechanism that tracks: call `found` for each run of pages that were written since the last scan, and
    /// begin anew for these, as one step a page.
    fn scan(&self, _span: Span, _found: &mut dyn FnMut(Span)) -> Result<(), Errno> {
        Ok(())
    }

    /// Whether each run of pages of one level is a mapping, so that levels use up `vm.max_map_count`.
    fn splits(&self) -> bool {
        false
    }

    /// Let threads go on that sleep in the kernel for a span.
    fn wake(&self, _span: Span) {}

    /// The descriptor that faults are read from.
    fn faults(&self) -> Option<std::os::fd::RawFd> {
        None
    }
}

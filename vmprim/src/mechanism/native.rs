//! Quire's managed pages: every level, on any memory, and no mapping is split.
//!
//! The kernel's slot of a page is the truth: it keeps the level whatever becomes of the page's frame, so there is nothing to
//! install again. What was written stays known while pages are lowered. System calls into a protected page raise the fault as if the
//! thread had touched it, and start over.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::{Mechanism, Span, Stop};
use crate::{
    access::Access,
    error::Errno,
    sys,
    upcall::{Calls, NO_LEVEL, Op},
};

/// Parts of a call.
const PARTS: usize = 32;
/// Words of a bitmap that are asked for at once.
const WORDS: usize = 64;

/// A region at `base`, of `len` bytes.
#[derive(Debug)]
pub struct Native {
    calls: Calls,
    base: usize,
    len: usize,
}

impl Native {
    /// Manage the memory.
    pub fn new(calls: Calls, base: usize, len: usize, level: Access) -> Result<Self, Errno> {
        // SAFETY: the region's own bytes.
        unsafe { calls.region(base, len, level as u64) }?;
        Ok(Self { calls, base, len })
    }
    fn op(&self, span: &Span, level: Access, raise: bool) -> Op {
        debug_assert!(span.end() <= self.len, "a span outside of its region");
        Op {
            address: self.base.wrapping_add(span.offset) as u64,
            pages: (span.len / sys::BASE) as u64,
            level: level as u32,
            raise: raise.into(),
        }
    }
}

impl Mechanism for Native {
    fn raise(&self, span: Span, _: Access, to: Access) -> Result<(), Stop> {
        // SAFETY: the region's own bytes.
        unsafe { self.calls.prot(&[self.op(&span, to, true)]) }.map_err(Stop::Os)
    }
    fn lower(&self, spans: &[Span], to: Access) -> Result<(), Errno> {
        if let [span] = spans {
            // SAFETY: the region's own bytes.
            return unsafe { self.calls.prot(&[self.op(span, to, false)]) };
        }
        spans.chunks(PARTS).try_for_each(|spans| {
            let mut ops = [Op::default(); PARTS];
            for (used, span) in spans.iter().enumerate() {
                // In its place, and those behind it one further. Most come in order.
                let mut next = self.op(span, to, false);
                let after = ops.iter().take(used).filter(|op| op.address > next.address).count();
                for op in ops.iter_mut().take(used.wrapping_add(1)).skip(used.wrapping_sub(after)) {
                    std::mem::swap(op, &mut next);
                }
            }
            // SAFETY: see above.
            unsafe { self.calls.prot(ops.get(..spans.len()).unwrap_or_default()) }
        })
    }
    fn reinstall(&self, span: Span, level: Access) -> Result<(), Stop> {
        self.raise(span, level, level)
    }
    fn resumes(&self) -> bool {
        true
    }
    fn tracks(&self) -> bool {
        true
    }
    fn keeps_written(&self) -> bool {
        true
    }
    fn scan(&self, span: Span, found: &mut dyn FnMut(Span)) -> Result<(), Errno> {
        let (first, end) = (span.offset / sys::BASE, span.end() / sys::BASE);
        let mut at = first;
        while at < end {
            let pages = end.saturating_sub(at).min(64 * WORDS);
            let mut bits = [0; WORDS];
            self.calls.dirty(self.base.wrapping_add(at.wrapping_mul(sys::BASE)), pages, &mut bits)?;
            for (i, &word) in bits.iter().enumerate() {
                let mut rest = word;
                while rest != 0 {
                    let start = rest.trailing_zeros();
                    let run = rest.checked_shr(start).unwrap_or(0).trailing_ones();
                    let page = at.wrapping_add(i.wrapping_mul(64)).wrapping_add(start as usize);
                    found(Span {
                        offset: page.wrapping_mul(sys::BASE),
                        len: (run as usize).wrapping_mul(sys::BASE),
                    });
                    let ones = u64::MAX.checked_shr(64_u32.wrapping_sub(run)).unwrap_or(0);
                    rest &= !(ones.checked_shl(start).unwrap_or(0));
                }
            }
            at = at.saturating_add(pages);
        }
        Ok(())
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        // The memory may be the program's, and go on.
        // SAFETY: the region's own bytes. A child of a fork that hasn't got them is told so.
        let _ = unsafe { self.calls.region(self.base, self.len, NO_LEVEL) };
    }
}

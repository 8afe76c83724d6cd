//! Where the tables lie in the caller's buffer.
//!
//! ```text
//!   caches: a Cache for each CPU | rows | summary | sharers: u32 a frame | marks: u8 a frame (debug builds)
//! ```
//! Tables are indexed from the first frame of the lowest range, rounded down to a multiple of the longest run so that
//! aligned indices are aligned frames, to the last of the highest range. Frames that do not exist have entries that
//! nobody uses.

use core::{mem::size_of, slice};

use addr::Frame;

use crate::{FrameRange, MAX_ORDER, cache::Cache, marks, pool::ROW};

/// Sizes of the tables, in entries.
pub(crate) struct Layout {
    /// The frame with index 0: a multiple of 2^[`MAX_ORDER`].
    pub(crate) first: Frame,
    /// Frames from the first to the last, holes included.
    pub(crate) span: usize,
    cpus: usize,
    rows: usize,
    summary: usize,
    marks: usize,
}

impl Layout {
    pub(crate) fn new(ranges: &[FrameRange], cpus: usize) -> Self {
        let used = || ranges.iter().filter(|r| r.start < r.end);
        let lowest = used().map(|r| r.start.number()).min().unwrap_or_default();
        let first = Frame::new(lowest >> MAX_ORDER << MAX_ORDER).unwrap_or_default();
        let end = used().map(|r| r.end).max().unwrap_or_default();
        let span = (end.number() - first.number()) as usize;
        assert!(u32::try_from(span).is_ok(), "more than 16 TiB between the first frame and the last");
        let rows = span.div_ceil(ROW);
        let marks = if marks::KEPT { span } else { 0 };
        Self { first, span, cpus, rows, summary: rows.div_ceil(ROW), marks }
    }
    /// Bytes that [`Carver`] needs, wherever the buffer begins.
    pub(crate) fn bytes(&self) -> usize {
        let slack = align_of::<Cache>() + 3 * align_of::<u64>();
        slack
            + self.cpus * size_of::<Cache>()
            + (self.rows + self.summary) * size_of::<u64>()
            + self.span * size_of::<u32>()
            + self.marks
    }
}

/// Cuts slices off the front of a zeroed buffer.
pub(crate) struct Carver(&'static mut [u8]);

/// The tables.
pub(crate) struct Tables {
    pub(crate) caches: &'static [Cache],
    pub(crate) rows: &'static mut [u64],
    pub(crate) summary: &'static mut [u64],
    pub(crate) sharers: &'static [core::sync::atomic::AtomicU32],
    pub(crate) marks: &'static [core::sync::atomic::AtomicU8],
}

impl Carver {
    /// Panics if the buffer is shorter than [`Layout::bytes`].
    ///
    /// # Safety
    /// `meta` is zeroed.
    pub(crate) unsafe fn carve(meta: &'static mut [u8], layout: &Layout) -> Tables {
        let mut rest = Carver(meta);
        // SAFETY: all five types are made of integers and atomic integers, for which zero is a value, and the buffer
        // is zeroed.
        unsafe {
            Tables {
                caches: rest.cut(layout.cpus),
                rows: rest.cut(layout.rows),
                summary: rest.cut(layout.summary),
                sharers: rest.cut(layout.span),
                marks: rest.cut(layout.marks),
            }
        }
    }
    /// The next `n` values.
    ///
    /// # Safety
    /// The buffer is zeroed, and zero is a value of `T`.
    unsafe fn cut<T>(&mut self, n: usize) -> &'static mut [T] {
        let buffer = core::mem::take(&mut self.0);
        let skip = buffer.as_ptr().align_offset(align_of::<T>());
        let (table, rest) = buffer.split_at_mut(skip + n * size_of::<T>());
        self.0 = rest;
        // SAFETY: the bytes are ours for ever, aligned by `skip`, long enough, and hold values by the caller's
        // promise.
        unsafe { slice::from_raw_parts_mut(table[skip..].as_mut_ptr().cast(), n) }
    }
}

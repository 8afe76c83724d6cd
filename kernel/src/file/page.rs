//! Pages of files and pipes: frames whose bytes are copied to and from programs.
#![allow(unsafe_code)] // reaches the bytes of frames that it has a share of, through the direct map

use core::{mem::ManuallyDrop, slice};

use addr::PAGE_BYTES;
use aspace::Place;
use owned::{OwnedFrame, Use};

use super::io::{Sink, Source};
use crate::{memory, task};

/// A page of zeros.
pub static ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// A share of a frame; dropping it gives the share back.
pub struct PageShare(ManuallyDrop<OwnedFrame>);

impl PageShare {
    /// A fresh page of zeros, at `place`. None when memory is short.
    pub fn zeroed(place: Place) -> Option<Self> {
        let frame = aspace::page::frame(place, Use::File, true, memory::frames(), &task::unpinned().pin())?;
        Some(Self(ManuallyDrop::new(frame)))
    }

    /// A fresh page of anything, which must be written before it is read. None when memory is short.
    pub fn uncleared() -> Option<Self> {
        let place = Place::Local;
        let frame = aspace::page::frame(place, Use::File, false, memory::frames(), &task::unpinned().pin())?;
        Some(Self(ManuallyDrop::new(frame)))
    }

    /// One more share of the same frame.
    pub fn share(&self) -> Self {
        Self(ManuallyDrop::new(memory::frames().share(&self.0)))
    }

    /// The frame for a mapping of the file whose page this is: see [`Object::lend`](aspace::Object::lend).
    pub fn lend(&self) -> OwnedFrame {
        memory::frames().lend(&self.0)
    }

    /// The share, to be given back by its new owner.
    pub fn into_owned(self) -> OwnedFrame {
        let mut this = ManuallyDrop::new(self);
        // SAFETY: `this` is never dropped, so the frame is taken out exactly once.
        unsafe { ManuallyDrop::take(&mut this.0) }
    }

    fn ptr(&self) -> *mut u8 {
        memory::dm().ptr(self.0.frame().base())
    }

    /// Hand bytes `from..from + len` of the page to `sink`; says how many went.
    pub fn read(&self, from: usize, len: usize, sink: &mut dyn Sink) -> usize {
        let len = len.min(PAGE_BYTES.saturating_sub(from));
        // SAFETY: the range lies in a frame that is alive while `self` is. Programs may write it meanwhile through
        // mappings; the slice only goes to copy routines, to which any mix of old and new bytes is fine.
        sink.put(unsafe { slice::from_raw_parts(self.ptr().add(from), len) })
    }

    /// Fill bytes `from..from + len` of the page from `source`; says how many came.
    pub fn write(&self, from: usize, len: usize, source: &mut dyn Source) -> usize {
        let len = len.min(PAGE_BYTES.saturating_sub(from));
        // SAFETY: as in `read`; stores to the page by calls exclude one another by a lock of its owner's.
        source.take(unsafe { slice::from_raw_parts_mut(self.ptr().add(from), len) })
    }

    /// Set bytes `from..to` of the page to zero.
    pub fn clear(&self, from: usize, to: usize) {
        let to = to.min(PAGE_BYTES);
        let mut zeros = ZEROS.get(..to.saturating_sub(from)).unwrap_or(&[]);
        self.write(from, zeros.len(), &mut zeros);
    }
}

impl Drop for PageShare {
    fn drop(&mut self) {
        // SAFETY: drop runs once, and `into_owned` prevents it.
        let frame = unsafe { ManuallyDrop::take(&mut self.0) };
        memory::frames().free(&task::pinned(), frame);
    }
}

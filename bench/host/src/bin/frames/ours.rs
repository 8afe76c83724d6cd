//! Quire's allocator.

use std::mem::ManuallyDrop;

use addr::{DirectMap, Frame, PAGE_BYTES};
use frames::{FrameRange, Frames, OwnedFrame, OwnedRun, Use};
use percpu::Pinned;

use crate::subject::{Metadata, Setup, Subject};

/// As the kernel uses it, for users' memory.
pub struct Quire {
    frames: ManuallyDrop<Frames>,
    /// What it keeps about frames, in words.
    meta: *mut [u64],
    metadata: Metadata,
    /// Debug builds write to free frames; others never touch one.
    _memory: Vec<u8>,
}

// SAFETY: the allocator may be shared, and nobody else uses `meta` before the end.
unsafe impl Sync for Quire {}

/// Bytes that lines of the allocator are aligned to.
const LINES: usize = 128;
/// The first frame's number: a multiple of every run's length.
const FIRST: u64 = 512;

impl Subject for Quire {
    fn new(setup: &Setup) -> Self {
        let end = FIRST + setup.frames as u64;
        let [start, end] = [FIRST, end].map(|n| Frame::new(n).unwrap_or_else(|| panic!("no frame {n:#x}")));
        let range = FrameRange { start, end };
        let bytes = Frames::meta_bytes(&[range], setup.cpus);
        let per_cpu = Frames::meta_bytes(&[range], setup.cpus + 1) - bytes;
        let metadata = Metadata { shared: bytes - per_cpu * setup.cpus, per_cpu };
        // Aligned as the caches' lines are.
        let meta = Box::into_raw(vec![0u64; (bytes + LINES).div_ceil(8)].into_boxed_slice());
        let skipped = meta.cast::<u8>().align_offset(LINES);
        // SAFETY: the slice is that of the box less what alignment takes. Nobody else uses it until `drop`, which is after
        // the last use of `frames`.
        let given = unsafe { std::slice::from_raw_parts_mut(meta.cast::<u8>().add(skipped), bytes) };
        let bytes_of_memory = if cfg!(debug_assertions) { (setup.frames + 1) * PAGE_BYTES } else { 0 };
        let memory = vec![0; bytes_of_memory];
        let base = memory.as_ptr().expose_provenance().next_multiple_of(PAGE_BYTES);
        let base = base.wrapping_sub(FIRST as usize * PAGE_BYTES);
        // SAFETY: in debug builds the frames are the bytes of `memory`, which has its size until the end. In others the
        // allocator only ever counts them: nothing here asks for a zeroed frame.
        let frames = unsafe { Frames::new(&[range], setup.cpus, given, DirectMap::new(base)) };
        Self { frames: ManuallyDrop::new(frames), meta, metadata, _memory: memory }
    }

    #[inline]
    fn get(&self, pin: &Pinned<'_>, order: u32) -> Option<u64> {
        let first = match order {
            0 => self.frames.alloc(pin, Use::Anonymous)?.into_raw(),
            _ => self.frames.alloc_run(pin, order, Use::Anonymous)?.into_raw(),
        };
        Some(first.number() - FIRST)
    }

    #[inline]
    fn put(&self, pin: &Pinned<'_>, frame: u64, order: u32) {
        let Some(first) = Frame::new(frame + FIRST) else { return };
        if order == 0 {
            // SAFETY: `get` gave it, by this order and for this use, and made a number of it.
            let owned = unsafe { OwnedFrame::from_raw(first, Use::Anonymous) };
            self.frames.free(pin, owned);
        } else {
            // SAFETY: as above.
            let run = unsafe { OwnedRun::from_raw(first, order, Use::Anonymous) };
            self.frames.free_run(pin, run);
        }
    }

    fn transfers(&self) -> Option<u64> {
        Some(self.frames.stats().trips)
    }

    fn metadata(&self) -> Option<Metadata> {
        Some(self.metadata)
    }

    fn stats(&self) -> bool {
        std::hint::black_box(self.frames.stats());
        true
    }
}

impl Drop for Quire {
    fn drop(&mut self) {
        // SAFETY: only here, and nobody uses the allocator any more.
        unsafe { ManuallyDrop::drop(&mut self.frames) };
        // SAFETY: `new` made it of a box.
        drop(unsafe { Box::from_raw(self.meta) });
    }
}

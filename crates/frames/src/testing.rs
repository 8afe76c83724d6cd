//! Allocators for host tests: of imaginary frames, which nobody touches, or of real ones.

use core::ops::Range;
use std::{boxed::Box, vec, vec::Vec};

use addr::{DirectMap, Frame};

use crate::{AlgoKind, Clear, Config, FrameRange, Frames, Topology};

/// An allocator of `n` imaginary frames for `cpus` CPUs, of one node. Never ask for zeroed ones. Nothing is returned to
/// the system, as tests keep `'static` references.
///
/// Its first frame has number 512, which is an aligned run of any order up to 9, and no frame has number 0.
pub fn frames(n: usize, cpus: usize) -> &'static Frames<'static> {
    with_ranges(core::slice::from_ref(&(512..512 + n as u64)), cpus)
}

/// An allocator of these imaginary frames, by number, of one node.
pub fn with_ranges(ranges: &[Range<u64>], cpus: usize) -> &'static Frames<'static> {
    with_topology(ranges, Box::leak(Box::new(Topology::one_node(cpus))), cpus)
}

/// An allocator of these imaginary frames, by number.
pub fn with_topology(
    ranges: &[Range<u64>],
    topology: &'static Topology,
    cpus: usize,
) -> &'static Frames<'static> {
    // SAFETY: imaginary frames are not reached, by the callers' promise not to ask for zeroed ones.
    with_clear(ranges, topology, cpus, Clear::new(unsafe { DirectMap::new(0) }))
}

/// An allocator of these frames, by number, which `clear` reaches.
pub fn with_clear(
    ranges: &[Range<u64>],
    topology: &'static Topology,
    cpus: usize,
    clear: Clear,
) -> &'static Frames<'static> {
    let ranges: Vec<_> =
        ranges.iter().map(|r| FrameRange { start: frame(r.start), end: frame(r.end) }).collect();
    let cfg = Config { ranges: ranges.leak(), cpus, topology };
    let meta = vec![0; Frames::meta_bytes(&cfg)].leak();
    // SAFETY: the buffer is zeroed, and the frames are this allocator's alone.
    Box::leak(Box::new(unsafe { Frames::new(&cfg, meta, clear) }))
}

/// The frame of that number.
pub fn frame(n: u64) -> Frame {
    Frame::new(n).expect("a frame number")
}

/// Memory for an algorithm on one CPU.
pub fn lane_memory(kind: AlgoKind) -> &'static mut [u8] {
    let layout = Frames::lane_layout(kind);
    let memory = vec![0u64; layout.size().div_ceil(8)].leak();
    assert!(layout.align() <= 8);
    // SAFETY: integers are bytes, and the slice is ours for ever.
    unsafe { core::slice::from_raw_parts_mut(memory.as_mut_ptr().cast(), size_of_val(memory)) }
}

//! Memory for host tests: real frames in the process's own memory, reached by a [`DirectMap`].

use core::{ops::Range, slice};
use std::{
    alloc::{Layout, alloc_zeroed, handle_alloc_error},
    boxed::Box,
    vec,
    vec::Vec,
};

use addr::{DirectMap, Frame, PAGE_BYTES, PAGE_SIZE};
use frames::{
    Clear, Config, FrameRange, Topology,
    topology::{Builder, MemoryAffinity},
};

use crate::{Memory, OwnedFrame};

/// An allocator of `n` frames for `cpus` CPUs. The memory is never returned, as tests keep `'static` references.
///
/// Its first frame has number 512, which is an aligned run of any order, and no frame has number 0.
pub fn memory(n: usize, cpus: usize) -> &'static Memory {
    with_ranges(slice::from_ref(&(512..512 + n as u64)), cpus)
}

/// An allocator of these frames, by number. Memory is set aside from the lowest to the highest.
pub fn with_ranges(ranges: &[Range<u64>], cpus: usize) -> &'static Memory {
    let frame = |n| Frame::new(n).expect("a frame number");
    let first = ranges.iter().map(|r| r.start).min().expect("at least one range");
    let end = ranges.iter().map(|r| r.end).max().expect("at least one range");
    let memory = pages((end - first) as usize);
    // SAFETY: frame f is at page f - first of the memory, which is never freed; its address is exposed.
    let dm = unsafe { DirectMap::new(memory.wrapping_sub(first as usize * PAGE_BYTES)) };
    let ranges: Vec<_> =
        ranges.iter().map(|r| FrameRange { start: frame(r.start), end: frame(r.end) }).collect();
    let topology = Box::leak(Box::new(two_nodes(end, cpus)));
    let cfg = Config { ranges: ranges.leak(), cpus, topology };
    let meta = vec![0; Memory::meta_bytes(&cfg)].leak();
    // SAFETY: the buffer is zeroed and apart from the memory, which is this allocator's alone.
    Box::leak(Box::new(unsafe { Memory::new(&cfg, meta, Clear::new(dm)) }))
}

/// Everything below frame number `end`, and the CPUs, are of node 0; there is a node 1, so that requests can name it, which
/// has no frame.
fn two_nodes(end: u64, cpus: usize) -> Topology {
    let mut builder = Builder::new(cpus);
    for (domain, pages) in [(0, 0..end), (1, end..end + 1)] {
        let (base, length) = (pages.start * PAGE_SIZE, (pages.end - pages.start) * PAGE_SIZE);
        builder.memory(MemoryAffinity { base, length, domain, enabled: true }).expect("two ranges");
    }
    builder.build().expect("two domains")
}

/// The bytes of a frame that has no other share.
pub fn bytes<'f>(memory: &Memory, owned: &'f mut OwnedFrame) -> &'f mut [u8] {
    assert!(!memory.is_shared(owned.frame()), "another owner may use the bytes");
    // SAFETY: the direct map reaches the frame; its one share is borrowed exclusively, so nobody makes another.
    unsafe { slice::from_raw_parts_mut(memory.dm().ptr(owned.frame().base()), PAGE_BYTES) }
}

/// Address of `n` zeroed pages of memory, aligned as a large page is, with its provenance exposed.
fn pages(n: usize) -> usize {
    let layout = Layout::from_size_align(n.max(1) * PAGE_BYTES, PAGE_BYTES).expect("a size that fits");
    // SAFETY: the layout is of at least a page.
    let memory = unsafe { alloc_zeroed(layout) };
    if memory.is_null() {
        handle_alloc_error(layout);
    }
    memory.expose_provenance()
}

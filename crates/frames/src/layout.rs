//! How memory is divided among CPUs, and where the tables lie in the caller's buffer.
//!
//! ```text
//!   CPUs' lines | used: a line or more a CPU | nodes' lines | arenas | words | rows | regions | lanes
//! ```
//! Tables begin at the arena of the lowest frame. Each node's blocks go to its CPUs in equal shares, in order of address;
//! where shares are of at least an extent they are cut between extents, so that no two CPUs' words lie on one line. A
//! block that two nodes share belongs to the node of its first frame. A node without CPUs has its blocks in its pool, and
//! a CPU without memory begins with none.

use core::{mem::size_of, slice};

use crate::primitive::{AtomicI64, AtomicU64};
use percpu::CpuId;

use crate::{
    Config, FRAMES_PER_BLOCK, FrameRange, MAX_NODES, Node, Topology,
    cpu::{Cpu, NodeLines},
    lane::{LANE_KINDS, Lane},
    map::{ARENA_BLOCKS, Arena, BLOCK_ROWS, Block, EXTENT_BLOCKS},
    word::{AtomicWord, Owner, Word},
};

/// Frames in an arena.
const ARENA_FRAMES: u64 = (ARENA_BLOCKS * FRAMES_PER_BLOCK) as u64;
/// Counters on the lines of one CPU: two lines, as adjacent ones are prefetched in pairs.
const USED_STRIDE: usize = 16;

/// Blocks `start..end`, whose home is `owner`: what it had at the beginning.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region {
    pub(crate) start: Block,
    pub(crate) end: Block,
    pub(crate) owner: Owner,
    pub(crate) node: Node,
}

impl Region {
    const NONE: Region = Region { start: Block(0), end: Block(0), owner: Owner::POOL, node: Node::FIRST };
}

/// Sizes of the tables, in entries.
#[derive(Debug)]
pub(crate) struct Layout {
    /// Number of the first frame.
    pub(crate) base: u64,
    pub(crate) blocks: usize,
    cpus: usize,
    nodes: usize,
    regions: usize,
}

impl Layout {
    pub(crate) fn new(cfg: &Config<'_, '_>) -> Self {
        let used = || cfg.ranges.iter().filter(|r| r.start < r.end);
        let first = used().map(|r| r.start.number()).min().unwrap_or_default();
        let end = used().map(|r| r.end.number()).max().unwrap_or_default();
        let base = first / ARENA_FRAMES * ARENA_FRAMES;
        let blocks = (end - base).div_ceil(u64::from(FRAMES_PER_BLOCK)) as usize;
        assert!(blocks < 1 << 26, "more than 128 TiB between the first frame and the last");
        let mut regions = 0;
        divide(cfg, base, |_| regions += 1);
        Self { base, blocks, cpus: cfg.cpus, nodes: cfg.topology.nodes(), regions }
    }
    fn arenas(&self) -> usize {
        self.blocks.div_ceil(ARENA_BLOCKS as usize)
    }
    /// Counters of each CPU, one a node.
    pub(crate) fn used_stride(&self) -> usize {
        self.nodes.next_multiple_of(USED_STRIDE)
    }
    /// Bytes that [`carve`] needs, wherever the buffer begins: of the tables that grow with memory, and of all.
    pub(crate) fn bytes(&self) -> (usize, usize) {
        let memory = self.arenas() * size_of::<Arena>()
            + self.blocks * (size_of::<AtomicWord>() + BLOCK_ROWS as usize * size_of::<AtomicU64>());
        let lanes = LANE_KINDS * size_of::<Lane<'_>>();
        let cpus = self.cpus * (size_of::<Cpu>() + self.used_stride() * size_of::<AtomicI64>() + lanes);
        let rest = self.nodes * size_of::<NodeLines>() + self.regions * size_of::<Region>();
        // Each of the eight tables may have to skip to its alignment.
        (memory, memory + cpus + rest + 8 * align_of::<Cpu>())
    }
}

/// Call `each` with the regions, in order of address.
pub(crate) fn divide(cfg: &Config<'_, '_>, base: u64, mut each: impl FnMut(Region)) {
    let mut totals = [0; MAX_NODES];
    pieces(cfg, base, |node, start, end| totals[node.index()] += end - start);
    let mut dealt = [0; MAX_NODES];
    pieces(cfg, base, |node, start, end| {
        let total: u32 = totals[node.index()];
        let cpus = || cfg.topology.cpus_of(node).iter().filter(|cpu| cpu.index() < cfg.cpus);
        let n = cpus().count() as u32;
        let mut at = start;
        while at < end {
            let rank = dealt[node.index()];
            // The last CPU's share ends with the last block. 64 bits: blocks times CPUs.
            let turn = (0..n).find(|i| rank < border(total, n, *i)).or(n.checked_sub(1));
            let to = match turn {
                Some(i) if i + 1 < n => {
                    let to = at + (border(total, n, i) - rank);
                    if total / n >= EXTENT_BLOCKS {
                        to.next_multiple_of(EXTENT_BLOCKS).min(end)
                    } else {
                        to.min(end)
                    }
                }
                _ => end,
            };
            let owner =
                turn.and_then(|i| cpus().nth(i as usize)).map_or(Owner::POOL, |cpu| Owner::cpu(cpu.index()));
            each(Region { start: Block(at), end: Block(to), owner, node });
            dealt[node.index()] += to - at;
            at = to;
        }
    });
}

/// How many of `total` blocks the first `i` + 1 of `n` CPUs have.
fn border(total: u32, n: u32, i: u32) -> u32 {
    (u64::from(total) * u64::from(i + 1) / u64::from(n)) as u32
}

/// Call `each` with the blocks that ranges touch, in order of address, each once.
fn pieces(cfg: &Config<'_, '_>, base: u64, mut each: impl FnMut(Node, u32, u32)) {
    let block = |frame: u64| ((frame - base) / u64::from(FRAMES_PER_BLOCK)) as u32;
    let mut next = 0;
    for range in cfg.ranges.iter().filter(|r| r.start < r.end) {
        for (node, part) in cfg.topology.cut(*range) {
            let start = block(part.start.number()).max(next);
            let end = block(part.end.number() - 1) + 1;
            if start < end {
                each(node, start, end);
                next = end;
            }
        }
    }
}

/// The tables.
pub(crate) struct Tables<'m> {
    pub(crate) cpus: &'m [Cpu],
    pub(crate) used: &'m [AtomicI64],
    pub(crate) nodes: &'m [NodeLines],
    pub(crate) arenas: &'m [Arena],
    pub(crate) words: &'m [AtomicWord],
    pub(crate) rows: &'m [AtomicU64],
    pub(crate) regions: &'m [Region],
    pub(crate) lanes: &'m [Lane<'m>],
}

/// Whether ranges are ascending and apart, as they must be.
pub(crate) fn ascending(ranges: &[FrameRange]) -> bool {
    ranges.iter().all(|r| r.start <= r.end) && ranges.windows(2).all(|w| w[0].end <= w[1].start)
}

/// Cut the tables out of `meta`, of which every byte is zero. Panics if it is shorter than [`Layout::bytes`].
///
/// # Safety
/// Every byte of `meta` is zero.
pub(crate) unsafe fn carve<'m>(meta: &'m mut [u8], layout: &Layout, cfg: &Config<'_, '_>) -> Tables<'m> {
    let mut rest = meta;
    let cpus = cut(&mut rest, layout.cpus, |i| new_cpu(i, cfg.topology));
    let used = cut(&mut rest, layout.cpus * layout.used_stride(), |_| AtomicI64::new(0));
    let nodes = cut(&mut rest, layout.nodes, |_| NodeLines::new());
    let arenas = cut(&mut rest, layout.arenas(), |_| Arena::new());
    let words = cut(&mut rest, layout.blocks, |_| AtomicWord::new(Word::HOLE));
    // SAFETY: every byte is zero, by the caller's promise.
    let rows = unsafe { zeroed_rows(&mut rest, layout.blocks * BLOCK_ROWS as usize) };
    let regions = cut(&mut rest, layout.regions, |_| Region::NONE);
    fill(regions, cfg, layout);
    let lanes = cut(&mut rest, layout.cpus * LANE_KINDS, |_| Lane::new());
    Tables { cpus, used, nodes, arenas, words, rows, regions, lanes }
}

/// `n` rows. They are the largest table, of which most is never written, so it isn't touched here.
///
/// # Safety
/// Every byte of `rest` is zero.
#[cfg(not(any(all(loom, feature = "model"), shuttle)))]
unsafe fn zeroed_rows<'m>(rest: &mut &'m mut [u8], n: usize) -> &'m [AtomicU64] {
    let first = take::<AtomicU64>(rest, n);
    // SAFETY: room for `n` values, aligned, ours for 'm; and an atomic integer may be all zeros, which the bytes are.
    unsafe { slice::from_raw_parts(first, n) }
}

/// `n` rows: a model checker's atomics are no plain integers.
///
/// # Safety
/// None is asked here; as above.
#[cfg(any(all(loom, feature = "model"), shuttle))]
unsafe fn zeroed_rows<'m>(rest: &mut &'m mut [u8], n: usize) -> &'m [AtomicU64] {
    cut(rest, n, |_| AtomicU64::new(0))
}

fn new_cpu(i: usize, topology: &Topology) -> Cpu {
    // There are at most as many CPUs as numbers for them.
    let id = CpuId::new(i).unwrap_or_default();
    Cpu::new(id, topology.node_of_cpu(id))
}

fn fill(regions: &mut [Region], cfg: &Config<'_, '_>, layout: &Layout) {
    let mut slots = regions.iter_mut();
    divide(cfg, layout.base, |region| {
        if let Some(slot) = slots.next() {
            *slot = region;
        }
    });
}

/// Room for `n` values off the front of `rest`, aligned.
fn take<T>(rest: &mut &mut [u8], n: usize) -> *mut T {
    let buffer = core::mem::take(rest);
    let skip = buffer.as_ptr().align_offset(align_of::<T>());
    let (table, after) = buffer.split_at_mut(skip + n * size_of::<T>());
    *rest = after;
    table[skip..].as_mut_ptr().cast()
}

/// `n` values made by `each`, off the front of `rest`.
fn cut<'m, T>(rest: &mut &'m mut [u8], n: usize, each: impl Fn(usize) -> T) -> &'m mut [T] {
    let first: *mut T = take(rest, n);
    // SAFETY: room for `n` values, aligned, ours for 'm; each is written before the slice is made.
    unsafe {
        (0..n).for_each(|i| first.add(i).write(each(i)));
        slice::from_raw_parts_mut(first, n)
    }
}

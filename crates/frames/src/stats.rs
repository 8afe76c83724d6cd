//! Where every frame is.
//!
//! Three sources that know nothing of each other: *free* adds up the counts of the blocks' words, *cached* what CPUs keep
//! in their own words, and *taken* the counters of what CPUs took from the map and gave back. What was taken and isn't
//! cached is owned. While nobody allocates or frees, `free + cached + owned = total`.

use core::ops::Range;

use crate::primitive::Ordering;
use percpu::{CpuId, CpuSet};

use crate::{
    AlgoKind, FRAMES_PER_BLOCK, Frames, HUGE_ORDER, MAX_ORDER, Node,
    cpu::OWN,
    lane::LANE_KINDS,
    map::{Block, ROW_FRAMES, runs},
    word::State,
};

/// Where the frames are. Exact while nobody allocates or frees.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Frames in service.
    pub total: u64,
    /// Frames in the map: the counts of blocks.
    pub free: u64,
    /// Frames that CPUs keep: leases, accumulators, shelves, quarantine, lanes.
    pub cached: u64,
    /// Frames that CPUs took from the map less those that they gave back, less the cached ones.
    pub owned: u64,
}

/// One CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CpuStats {
    /// Frames free in its blocks, in whole rows.
    pub unused: u64,
    /// Frames that it keeps.
    pub cached: u64,
    /// The bounds of `unused`.
    pub low: u64,
    /// See `low`.
    pub high: u64,
    /// Its algorithm.
    pub algo: AlgoKind,
    /// Rows that it leased.
    pub refills: u64,
    /// Times that it gave frames back to the map: those of a row together, or a run of more.
    pub flushes: u64,
    /// How many of these, of runs up to order 8, went to blocks that another CPU or nobody owns.
    pub remote_flushes: u64,
    /// Times that it fetched blocks of others.
    pub transfers: u64,
    /// Blocks that it fetched.
    pub blocks_taken: u64,
    /// Blocks that it gave back.
    pub blocks_given: u64,
    /// Rows that it leased of other nodes.
    pub away: u64,
    /// Times that it took frames of one class from a block of the other.
    pub mixed: u64,
    /// Frames that it zeroed ahead of need.
    pub zeroed_ahead: u64,
    /// Zeroed frames that were at hand when they were asked for.
    pub zeroed_hits: u64,
    /// Changes of its algorithm.
    pub switches: u64,
    /// Requests to drain that it met.
    pub drains: u64,
    /// Rows with frames that were freed twice, which showed only when the row went home.
    pub refused: u64,
    /// Times that it added up what a node has free, a line a CPU each.
    pub looks: u64,
}

/// What a full count of the tables finds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Recount {
    /// Clear bits in blocks in service.
    pub bits: u64,
    /// The sum of the counts of their words.
    pub counts: u64,
    /// Frames in huge and giant runs that are out, or on shelves.
    pub large: u64,
    /// Blocks whose count isn't the number of their clear bits.
    pub wrong: u64,
}

impl Frames<'_> {
    /// Where the frames are. Takes a look at each block's word.
    pub fn stats(&self) -> Stats {
        let nodes = || self.topology.all().iter();
        let total = nodes().map(|n| self.nodes[n.index()].level.0.total.load(Ordering::Relaxed)).sum();
        let free = nodes().flat_map(|n| self.words_of(n)).filter(|(_, w)| w.is(State::Normal));
        let free = free.map(|(_, w)| u64::from(w.free())).sum();
        let cached = self.everyone().iter().map(|cpu| self.cached_on(cpu)).sum::<u64>();
        let in_map = nodes().map(|n| self.free_in(n)).sum::<i64>();
        let taken = u64::try_from(total as i64 - in_map).unwrap_or(0);
        Stats { total, free, cached, owned: taken.saturating_sub(cached) }
    }

    /// The same of one node, but for what is cached, which isn't told apart: (total, free), in frames. Takes a line a CPU.
    pub fn node_stats(&self, node: Node) -> (u64, u64) {
        let total = self.nodes.get(node.index()).map_or(0, |n| n.level.0.total.load(Ordering::Relaxed));
        (total, if total == 0 { 0 } else { u64::try_from(self.free_in(node)).unwrap_or(0) })
    }

    /// Free frames as far as CPUs' counters say: takes a line a CPU and node.
    pub fn available(&self) -> u64 {
        self.topology.all().iter().map(|n| u64::try_from(self.free_in(n)).unwrap_or(0)).sum()
    }

    /// Frames that a CPU keeps.
    pub(crate) fn cached_on(&self, cpu: CpuId) -> u64 {
        let Some(c) = self.cpus.get(cpu.index()) else { return 0 };
        let rows = c.hot.lease.iter().chain(&c.hot.accumulators).chain(&c.cold.shelf).chain(&c.cold.away);
        let singles: u64 = rows.map(|row| u64::from(row.mask().count_ones())).sum();
        let huge = c.cold.huge.iter().filter(|slot| slot.load(OWN) != Block::NONE.0).count() as u64;
        let lanes = &self.lanes[cpu.index() * LANE_KINDS..][..LANE_KINDS];
        let lanes: u64 = lanes.iter().map(|lane| lane.free()).sum();
        singles + (huge << HUGE_ORDER) + lanes + c.cold.ring.frames()
    }

    /// One CPU's numbers; zeros if there is no such CPU.
    pub fn cpu_stats(&self, cpu: CpuId) -> CpuStats {
        let Some(c) = self.cpus.get(cpu.index()) else { return CpuStats::default() };
        let n = &c.cold.counts;
        let (low, high) = self.bounds(cpu).unwrap_or_default();
        CpuStats {
            unused: u64::try_from(c.unused()).unwrap_or(0) * u64::from(ROW_FRAMES),
            cached: self.cached_on(cpu),
            low,
            high,
            algo: AlgoKind::from_number(c.cold.algo.load(OWN)),
            refills: n.refills.load(OWN),
            flushes: n.flushes.load(OWN),
            remote_flushes: n.remote_flushes.load(OWN),
            transfers: n.transfers.load(OWN),
            blocks_taken: n.blocks_taken.load(OWN),
            blocks_given: n.blocks_given.load(OWN),
            away: n.away.load(OWN),
            mixed: n.mixed.load(OWN),
            zeroed_ahead: n.zeroed_ahead.load(OWN),
            zeroed_hits: n.zeroed_hits.load(OWN),
            switches: n.switches.load(OWN),
            drains: n.drains.load(OWN),
            refused: n.refused.load(OWN),
            looks: n.looks.load(OWN),
        }
    }

    /// Call `f` with the name, the addresses and the bytes of each CPU's part (0 if it isn't divided) of each table: for
    /// reports that name memory.
    pub fn places(&self, f: &mut dyn FnMut(&'static str, Range<usize>, usize)) {
        fn span<T>(table: &[T]) -> Range<usize> {
            let range = table.as_ptr_range();
            range.start.addr()..range.end.addr()
        }
        f("frames: CPU", span(self.cpus), size_of::<crate::cpu::Cpu>());
        f("frames: taken", span(self.used), self.used_stride * size_of::<u64>());
        f("frames: lanes", span(self.lanes), LANE_KINDS * size_of::<crate::lane::Lane<'_>>());
        f("frames: node", span(self.nodes), 0);
        f("frames: hints", span(self.map.arenas), 0);
        f("frames: words of blocks", span(self.map.words), 0);
        f("frames: rows", span(self.map.rows), 0);
        f("frames: regions", span(self.regions), 0);
    }

    /// CPUs that keep frames.
    pub fn keepers(&self) -> CpuSet {
        self.everyone().iter().filter(|cpu| self.cached_on(*cpu) > 0).collect()
    }

    /// Of each order, the largest free runs: how many there are in `node` that are not part of a larger one. Looks at every
    /// row.
    pub fn free_runs(&self, node: Node) -> [u64; MAX_ORDER as usize + 1] {
        let mut found = [0; MAX_ORDER as usize + 1];
        let mut empty: Option<(Block, u32)> = None;
        let mut end_of_empty = |group: Option<(Block, u32)>| {
            let Some((first, n)) = group else { return };
            let (mut at, end) = (first.0, first.0 + n);
            while at < end {
                // The largest aligned group that begins here and fits.
                let order = at.trailing_zeros().min((end - at).ilog2()).min(MAX_ORDER - HUGE_ORDER);
                found[(HUGE_ORDER + order) as usize] += 1;
                at += 1 << order;
            }
        };
        let mut small = [0; HUGE_ORDER as usize];
        for (block, w) in self.words_of(node) {
            if w.is(State::Normal) && w.free() == FRAMES_PER_BLOCK {
                empty = match empty {
                    Some((first, n)) if first.0 + n == block.0 => Some((first, n + 1)),
                    other => {
                        end_of_empty(other);
                        Some((block, 1))
                    }
                };
            } else if w.is(State::Normal) {
                self.count_runs(block, &mut small);
            }
        }
        end_of_empty(empty);
        found[..small.len()].copy_from_slice(&small);
        found
    }

    /// The runs of a block that isn't wholly free.
    fn count_runs(&self, block: Block, found: &mut [u64; HUGE_ORDER as usize]) {
        let mut whole = 0u32;
        for row in block.rows() {
            let mut zeros = self.map.zeros(row);
            if zeros == !0 {
                whole |= 1 << row.in_block();
                continue;
            }
            for order in (0..6).rev() {
                let fits = runs(zeros, order);
                found[order as usize] += u64::from(fits.count_ones());
                let each = crate::map::run_bits(order);
                (0..64).filter(|bit| fits >> bit & 1 != 0).for_each(|bit| zeros &= !(each << bit));
            }
        }
        for (order, rows) in [(8, 4), (7, 2), (6, 1)] {
            let mask = (1u32 << rows) - 1;
            for first in (0..8).step_by(rows) {
                if whole >> first & mask == mask {
                    found[order] += 1;
                    whole &= !(mask << first);
                }
            }
        }
    }

    /// Wholly free blocks of `node`.
    pub fn free_blocks(&self, node: Node) -> u64 {
        let whole = |w: &crate::word::Word| w.is(State::Normal) && w.free() == FRAMES_PER_BLOCK;
        self.words_of(node).filter(|(_, w)| whole(w)).count() as u64
    }

    /// Count everything, bit by bit. Exact while nobody allocates or frees.
    pub fn recount(&self) -> Recount {
        let mut sum = Recount::default();
        for (block, w) in self.topology.all().iter().flat_map(|n| self.words_of(n)) {
            match w.state() {
                State::Normal => {
                    let bits: u32 = block.rows().map(|row| self.map.zeros(row).count_ones()).sum();
                    sum.bits += u64::from(bits);
                    sum.counts += u64::from(w.free());
                    sum.wrong += u64::from(bits != w.free());
                }
                State::Huge | State::GiantHead | State::GiantTail => sum.large += u64::from(FRAMES_PER_BLOCK),
                State::Hole | State::Claiming | State::Offline => {}
            }
        }
        sum
    }
}

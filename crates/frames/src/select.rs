//! Finding a block to take from: this CPU's own first, then others', and moving memory between CPUs.
//!
//! A CPU's blocks are those whose word names it. It looks among them by the hints, in the direction of the class: movable
//! from the bottom, unmovable from the top, the fullest sensible kind first, so that what is empty stays empty. Without a
//! block of its own it takes over others': the node's pool's, then those of a CPU that has more than it needs, half of the
//! surplus at most, `batch` blocks at a time. Taking over is one compare-and-swap on the word of a block that nobody holds;
//! the CPU that loses it does nothing and need not know. Before anybody goes without, every word of the node is looked at.

use crate::primitive::{Ordering, spin_loop};

use crate::{
    Class, FRAMES_PER_BLOCK, Frames, Node,
    cpu::{Cpu, Me, OWN, count},
    layout::Region,
    map::{self, Block, EXTENT_BLOCKS, Map, ROW_FRAMES, runs},
    word::{Kind, Owner, State, Word},
};

/// Blocks of a kind that are looked into for a run; more are only looked into before giving up.
const TRIES: usize = 8;
/// Times that all words are looked at while others hold blocks for a moment.
const PATIENCE: usize = if cfg!(any(loom, shuttle)) { 2 } else { 1000 };
/// The most blocks that move at a time.
pub(crate) const MOST_BLOCKS: u32 = 16;
/// The most rows that are fetched at a time.
pub(crate) const MOST_FETCHED: i64 = MOST_BLOCKS as i64 * BLOCK_ROWS;
/// Rows in a block.
const BLOCK_ROWS: i64 = crate::map::BLOCK_ROWS as i64;
/// Refills that a CPU which found nothing to fetch ahead waits before it looks again.
const AFTER_NOTHING: u32 = 64;

/// What is done with a held block: `None` if it isn't of use, and is to be let go.
pub(crate) type Try<'f, R> = &'f mut dyn FnMut(Block) -> Option<R>;

impl Frames<'_> {
    /// Call `f` with blocks of `node` that have `need` free frames by their count, each held by this CPU, until it has
    /// what it looks for. What it returns something for, it has kept or let go itself.
    pub(crate) fn find<R>(
        &self,
        me: Me<'_>,
        node: Node,
        class: Class,
        need: u32,
        f: Try<'_, R>,
    ) -> Option<R> {
        self.find_own(me, node, class, need, f)
            .or_else(|| self.take_over(me, node, class, need, f))
            .or_else(|| self.find_anywhere(me, node, class, need, f))
    }

    /// Hold a block of anybody's that nobody holds: it is this CPU's from now on. A wholly free one becomes of `class`.
    pub(crate) fn hold(&self, me: Me<'_>, block: Block, w: Word, class: Class) -> bool {
        if !w.is(State::Normal) || w.owner() == Owner::ISOLATED {
            return false;
        }
        if w.held() {
            return false;
        }
        let class = if w.free() == FRAMES_PER_BLOCK { class } else { w.class() };
        let to = w.with_owner(me.owner()).with_hold(true).with_class(class);
        let to = to.with_zeroed(to.zeroed() && sync::mutant!("frames-zeroed-kept"));
        self.map.word(block).claim(w, to) && {
            self.moved(me, block, w, me.owner());
            if w.owner() != me.owner() {
                self.remember(me, block);
                count(&me.cold.counts.blocks_taken, 1);
            }
            true
        }
    }

    /// This CPU owns blocks near `block`, from now on: look for them there.
    pub(crate) fn remember(&self, me: Me<'_>, block: Block) {
        let extent = block.0 / EXTENT_BLOCKS * EXTENT_BLOCKS;
        me.hold_in(Block(extent), Block((extent + EXTENT_BLOCKS).min(self.map.blocks())));
    }

    /// Count that a block, whose word was `was`, went to `to`.
    pub(crate) fn moved(&self, me: Me<'_>, block: Block, was: Word, to: Owner) {
        if was.owner() != to {
            let rows = Map::whole_rows(was.free());
            self.count_unused(Some(me), was.owner(), -rows);
            self.count_unused(Some(me), to, rows);
            self.count_pooled(block, was.owner(), -1);
            self.count_pooled(block, to, 1);
        }
    }

    /// `n` blocks more are `owner`'s, if that is the pool of the node of `block`.
    pub(crate) fn count_pooled(&self, block: Block, owner: Owner, n: i64) {
        if owner == Owner::POOL {
            // Relaxed: an estimate.
            self.nodes[self.node_of(block).index()].level.0.pooled.fetch_add(n, Ordering::Relaxed);
        }
    }

    fn find_own<R>(&self, me: Me<'_>, node: Node, class: Class, need: u32, f: Try<'_, R>) -> Option<R> {
        let tries = if need == 1 { usize::MAX } else { TRIES };
        for kind in Kind::SEARCH.into_iter().filter(|k| k.most() >= need) {
            let mut left = tries;
            for block in self.blocks_of(me, kind, class == Class::Unmovable) {
                let w = self.map.word(block).peek();
                let fits = w.owner() == me.owner() && w.free() >= need && self.node_of(block) == node;
                let pure = w.class() == class || w.free() == FRAMES_PER_BLOCK;
                if w.kind() != Some(kind) || !fits || !pure || !self.hold(me, block, w, class) {
                    self.map.repair(block, kind, w);
                    continue;
                }
                if let Some(found) = f(block) {
                    if kind == Kind::Empty && class == Class::Movable {
                        me.cold.empty_from.store(block.0 + 1, OWN);
                    }
                    return Some(found);
                }
                self.unhold(block);
                left -= 1;
                if left == 0 {
                    break;
                }
            }
        }
        None
    }

    /// Blocks of the kind by the hints, in which `cpu` may own some, in order of address or against it. Of those that are
    /// wholly free the ones that it has been past come last, so that they aren't all looked at each time.
    pub(crate) fn blocks_of<'a>(
        &'a self,
        cpu: &'a Cpu,
        kind: Kind,
        down: bool,
    ) -> impl Iterator<Item = Block> + 'a {
        let past = if kind == Kind::Empty && !down { Block(cpu.cold.empty_from.load(OWN)) } else { Block(0) };
        let ahead = cpu.holdings().map(move |(start, end)| (start.max(past), end));
        let behind = cpu.holdings().map(move |(start, end)| (start, end.min(past)));
        ahead.chain(behind).flat_map(move |(start, end)| self.map.hinted(kind, start, end, down))
    }

    /// Note that `block` has become of `kind`.
    pub(crate) fn became(&self, me: Option<Me<'_>>, block: Block, kind: Kind) {
        self.map.set_hint(block, kind);
        if kind == Kind::Empty
            && let Some(me) = me
            && block.0 < me.cold.empty_from.load(OWN)
        {
            me.cold.empty_from.store(block.0, OWN);
        }
    }

    /// Take over blocks of `node` from its pool, or from a CPU that has more than it needs.
    pub(crate) fn take_over<R>(
        &self,
        me: Me<'_>,
        node: Node,
        class: Class,
        need: u32,
        f: Try<'_, R>,
    ) -> Option<R> {
        let batch = me.cold.batch.load(OWN);
        me.cold.batch.store((2 * batch).min(MOST_BLOCKS), OWN);
        let mut left = batch;
        let mut found = None;
        let mut take = |block: Block, w: Word| {
            if found.is_some() {
                self.fetch(me, block, w);
            } else if !self.seems_to_fit(block, need) {
                return true;
            } else if self.hold(me, block, w, class) {
                found = f(block);
                if found.is_none() {
                    self.unhold(block);
                }
            } else {
                return true;
            }
            left = left.saturating_sub(1);
            left > 0
        };
        if self.take_pooled(node, need, &mut take) {
            self.take_surplus(me, node, class, need, &mut take);
        }
        count(&me.cold.counts.transfers, u64::from(left < batch));
        found
    }

    /// Whether `block` has an aligned run of `need` free frames, as far as can be seen without holding it: a block that is
    /// taken over in vain is lost to its owner all the same.
    fn seems_to_fit(&self, block: Block, need: u32) -> bool {
        let zeros = |i: u32| self.map.zeros(block.row(i));
        match need / ROW_FRAMES {
            0 if need == 1 => true,
            0 => (0..map::BLOCK_ROWS).any(|i| runs(zeros(i), need.ilog2()) != 0),
            n => (0..map::BLOCK_ROWS).step_by(n as usize).any(|at| (at..at + n).all(|i| zeros(i) == !0)),
        }
    }

    /// Make a block that nobody holds this CPU's, without holding it.
    fn fetch(&self, me: Me<'_>, block: Block, w: Word) {
        if self.map.adopt(block, w, me.owner(), false).is_some() {
            self.moved(me, block, w, me.owner());
            self.remember(me, block);
            count(&me.cold.counts.blocks_taken, 1);
        }
    }

    /// Call `take` with blocks of the node's pool that have `need` frames until it says no; false then.
    fn take_pooled(&self, node: Node, need: u32, take: &mut dyn FnMut(Block, Word) -> bool) -> bool {
        if self.nodes[node.index()].level.0.pooled.load(Ordering::Relaxed) <= 0 {
            return true;
        }
        for (block, w) in self.words_of(node) {
            let ours = w.owner() == Owner::POOL && w.is(State::Normal) && !w.held() && w.free() >= need;
            if ours && !take(block, w) {
                return false;
            }
        }
        true
    }

    /// The same with blocks of the node's CPUs that have more than their lower bound: half of what is above it at most.
    fn take_surplus(
        &self,
        me: Me<'_>,
        node: Node,
        class: Class,
        need: u32,
        take: &mut dyn FnMut(Block, Word) -> bool,
    ) {
        let n = self.cpus.len();
        let start = me.random() as usize % n;
        for v in (start..n).chain(0..start).filter(|v| *v != me.id().index()) {
            let victim = &self.cpus[v];
            if percpu::CpuId::new(v).is_none_or(|id| self.topology.node_of_cpu(id) != node) {
                continue;
            }
            let mut surplus = (victim.unused() - victim.cold.low.load(OWN)) / 2;
            for kind in [Kind::Empty, Kind::Sparse, Kind::Partial].into_iter().filter(|k| k.most() >= need) {
                for block in self.blocks_of(victim, kind, true) {
                    if surplus < BLOCK_ROWS.min(i64::from(need.div_ceil(64))) {
                        break;
                    }
                    let w = self.map.word(block).peek();
                    let pure = w.class() == class || w.free() == FRAMES_PER_BLOCK;
                    let its = w.owner() == Owner::cpu(v) && !w.held() && w.kind() == Some(kind);
                    if its && pure && w.free() >= need && self.node_of(block) == node {
                        surplus -= Map::whole_rows(w.free());
                        if !take(block, w) {
                            return;
                        }
                    }
                }
            }
        }
    }

    /// Any block of `node` that anybody owns and nobody holds, of either class: this CPU's own first.
    fn find_anywhere<R>(&self, me: Me<'_>, node: Node, class: Class, need: u32, f: Try<'_, R>) -> Option<R> {
        for own in [true, false] {
            for _ in 0..PATIENCE {
                let (mut busy, mut changed) = (false, false);
                for (block, w) in self.words_of(node) {
                    let fits = w.is(State::Normal) && w.free() >= need && w.owner() != Owner::ISOLATED;
                    if !fits || (w.owner() == me.owner()) != own || !self.seems_to_fit(block, need) {
                        continue;
                    }
                    let held = w.held() && !sync::mutant!("frames-steal-held");
                    if held || !self.hold(me, block, w, class) {
                        busy |= w.held() && w.owner() != me.owner();
                        changed |= !w.held();
                        continue;
                    }
                    if let Some(found) = f(block) {
                        let mixed = w.free() < FRAMES_PER_BLOCK && w.class() != class;
                        count(&me.cold.counts.mixed, u64::from(mixed));
                        return Some(found);
                    }
                    self.unhold(block);
                }
                // What changed at this moment may have been given a frame; and nobody keeps a block for long in so small a
                // machine as a crowded one.
                if !(changed || busy && self.crowded) {
                    break;
                }
                spin_loop();
            }
        }
        None
    }

    /// The blocks of `node` with their words, in order of address.
    pub(crate) fn words_of(&self, node: Node) -> impl Iterator<Item = (Block, Word)> + '_ {
        let regions = self.regions.iter().filter(move |r| r.node == node);
        regions.flat_map(|r| (r.start.0..r.end.0).map(Block)).map(|b| (b, self.map.word(b).peek()))
    }

    /// A row was leased: fetch blocks ahead of need if this CPU is short of them, one CPU of a node at a time.
    pub(crate) fn refilled(&self, me: Me<'_>) {
        let cold = &me.cold;
        let wait = cold.patience.load(OWN);
        if wait > 0 {
            return cold.patience.store(wait - 1, OWN);
        }
        if self.crowded || me.unused() >= cold.low.load(OWN) || me.is_sparing() {
            return;
        }
        let busy = &self.nodes[me.node().index()].balancing.0;
        // Relaxed, both: it keeps CPUs from doing the same at the same time, and orders nothing.
        if busy.swap(true, Ordering::Relaxed) {
            return;
        }
        let mut left = cold.batch.load(OWN);
        let before = cold.counts.blocks_taken.load(OWN);
        let mut take = |block: Block, w: Word| {
            self.fetch(me, block, w);
            left -= 1;
            left > 0
        };
        if self.take_pooled(me.node(), FRAMES_PER_BLOCK, &mut take) {
            self.take_surplus(me, me.node(), Class::Movable, FRAMES_PER_BLOCK, &mut take);
        }
        busy.store(false, Ordering::Relaxed);
        if cold.counts.blocks_taken.load(OWN) == before {
            cold.patience.store(AFTER_NOTHING, OWN);
        } else {
            count(&cold.counts.transfers, 1);
        }
    }

    /// Give wholly free blocks that came from elsewhere back while this CPU has more than its upper bound: home if there
    /// is room for them there, else to the node's pool. Gives the number of blocks.
    pub(crate) fn give_home(&self, me: Me<'_>) -> u32 {
        let high = me.cold.high.load(OWN);
        let mut given = 0;
        if me.unused() <= high {
            return 0;
        }
        for block in self.blocks_of(me, Kind::Empty, true) {
            if me.unused() <= high || given == MOST_BLOCKS {
                break;
            }
            let w = self.map.word(block).peek();
            let Some(home) = self.region_of(block).filter(|r| r.owner != me.owner()) else { continue };
            let to = self.room_at(home);
            if w.is_empty() && w.owner() == me.owner() && self.map.adopt(block, w, to, false).is_some() {
                self.moved(me, block, w, to);
                given += 1;
            }
        }
        count(&me.cold.counts.blocks_given, u64::from(given));
        given
    }

    fn room_at(&self, home: &Region) -> Owner {
        match home.owner.as_cpu().map(|cpu| &self.cpus[cpu]) {
            Some(cpu) if cpu.unused() < cpu.cold.high.load(OWN) => home.owner,
            _ => Owner::POOL,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use percpu::{CpuId, Pinned};
    use std::{boxed::Box, vec::Vec};

    use super::*;
    use crate::{
        Req, Run, testing,
        topology::{Builder, CpuAffinity, MemoryAffinity},
    };

    /// However blocks leave the pool, it is known how many are left.
    #[test]
    fn the_pool_is_counted() {
        let mut builder = Builder::new(1);
        builder.memory(MemoryAffinity { base: 0, length: 40 << 21, domain: 0, enabled: true }).unwrap();
        builder.cpu(CpuAffinity { cpu: CpuId::new(0).unwrap(), domain: 1, enabled: true });
        let topology = Box::leak(Box::new(builder.build().unwrap()));
        let frames = testing::with_topology(core::slice::from_ref(&(0..40 << 9)), topology, 1);
        // SAFETY: one thread plays the only CPU.
        let pin = unsafe { Pinned::assume(CpuId::new(0).unwrap()) };
        let check = || {
            let left = frames.words_of(Node::FIRST).filter(|(_, w)| w.owner() == Owner::POOL).count() as i64;
            assert_eq!(frames.nodes[0].level.0.pooled.load(Ordering::Relaxed), left);
            left
        };
        assert_eq!(check(), 40);
        let order = |order| frames.alloc(&pin, Req::order(order)).map(Run::into_raw);
        for step in [9, 0, 8, 9, 10, 9] {
            order(step).unwrap();
            check();
        }
        let rest: Vec<_> = core::iter::from_fn(|| order(9).ok()).collect();
        assert!(check() < 4, "{} huge runs", rest.len());
    }
}

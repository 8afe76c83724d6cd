//! Going on after every CPU was stopped in the middle of whatever it did.
//!
//! **Claim.** Of a machine that stops between any two accesses to the tables, the tables can be put right: what somebody
//! owns stays his, what is free in the map can be had, and at most what CPUs kept, and what was on its way in a call that
//! never returned, is lost.
//!
//! **Idea.** The rows and the states of blocks are the truth, and are right at any instant; everything else is derived.
//! Taking sets the bits of frames before anybody is given them, and giving clears them after their owner has let go, so a
//! clear bit of a block in service is nobody's frame (I1 says that the count may be less, and so it is counted anew). What
//! a CPU keeps is told from what it has just handed out by words that take several stores to change, so they are not
//! believed: those frames stay taken, and are lost. Whole blocks are told by their state:
//!
//! * *Huge* is somebody's, or was kept. Its rows are made clear, as they may be half set by [`split`](Frames::split).
//! * A *giant head* whose tails are all there is somebody's. If some of its blocks are huge already, it was being split:
//!   it stays its owner's, in huge parts. If some are still being claimed, it was never handed out, and is free.
//! * *Claiming* is on its way into a giant or out of one, and nobody's; unless it is being [fused](Frames::fuse), which
//!   the count says, and then becomes the huge run that it was to be.
//! * A *giant tail* without a head is one that was being given back: free.
//!
//! So whoever had a run when the machine stopped, and wasn't in a call that gives it up, has it afterwards.

use crate::{
    FRAMES_PER_BLOCK, Frames, HUGE_ORDER, Node, Recount,
    cpu::{OWN, SPARING},
    map::{Block, Map},
    primitive::Ordering,
    word::{Kind, Owner, State, Word},
};

impl Frames<'_> {
    /// Put everything right that calls left half done which will never return. Counts and hints are made anew from the rows.
    /// What CPUs kept is lost: frames at hand, on shelves, in quarantine, in lanes; it counts as owned. So are the frames
    /// that those calls were about. Lanes are closed, and every CPU's algorithm is rows.
    ///
    /// Gives what there is afterwards, as [`Self::recount`]. Takes a look at every row.
    ///
    /// # Safety
    /// Nobody is in a call of this allocator or begins one meanwhile, and no call that was begun before goes on later.
    pub unsafe fn recover(&self) -> Recount {
        self.map.arenas.iter().for_each(|arena| {
            // SAFETY: who holds it, if anybody, never goes on.
            unsafe { arena.giants.0.force_unlock() };
            arena.forget_hints();
        });
        for (id, cpu) in self.cpus.iter().enumerate() {
            cpu.forget();
            self.lanes_of(id).iter().for_each(|lane| {
                // SAFETY: nobody is in a call, and so not in the lane's algorithm.
                unsafe { lane.close() };
            });
            cpu.hot.set_mode(SPARING, self.crowded);
        }
        for region in self.regions.iter().filter(|r| r.start < r.end) {
            if let Some(home) = region.owner.as_cpu() {
                // Where its blocks come back to.
                self.cpus[home].hold_in(region.start, region.end);
            }
        }
        let mut at = 0;
        while at < self.map.blocks() {
            at += self.recover_group(Block(at));
        }
        self.topology.all().iter().for_each(|node| self.recover_node(node));
        self.recount()
    }

    /// Put a block right, or a giant run, if it is the head of one; how many blocks.
    fn recover_group(&self, head: Block) -> u32 {
        let w = self.map.word(head).peek();
        let n = if w.is(State::GiantHead) { 1 << (w.free() - HUGE_ORDER) } else { 1 };
        let tails = || (head.0 + 1..head.0 + n).map(Block);
        let any = |state| tails().any(|b| self.map.word(b).peek().is(state));
        let (claimed, split) = (any(State::Claiming), any(State::Huge));
        for block in core::iter::once(head).chain(tails()) {
            let w = self.map.word(block).peek();
            let is = match w.state() {
                State::GiantHead | State::GiantTail if claimed || n == 1 => State::Normal,
                State::GiantHead | State::GiantTail if split && !sync::mutant!("frames-recover-split") => {
                    State::Huge
                }
                State::GiantHead | State::GiantTail if split => State::Normal,
                State::Claiming if w.free() == 0 => State::Normal,
                State::Claiming => State::Huge,
                state => state,
            };
            self.recover_block(block, w, is);
        }
        n
    }

    /// Make `block`, whose word is `w`, be `is`: with a count that its rows have, held by nobody.
    fn recover_block(&self, block: Block, w: Word, is: State) {
        if matches!(is, State::Hole | State::Offline) {
            return;
        }
        if !w.is(State::Normal) && !sync::mutant!("frames-recover-rows") {
            block.rows().for_each(|row| self.map.reset_row(row, !0));
        }
        let bits: u32 = block.rows().map(|row| self.map.zeros(row).count_ones()).sum();
        let bits =
            if sync::mutant!("frames-recover-counts") && w.is(State::Normal) { w.free() } else { bits };
        let free = match is {
            State::Normal => bits,
            State::GiantHead => w.free(),
            _ => 0,
        };
        // The mark stands while the block is free and not held, and so can't have been overtaken by a frame's use.
        let zeroed = w.is_empty() && w.zeroed();
        let now = w.with_state(is).with_free(free).with_hold(false).with_zeroed(zeroed);
        self.map.word(block).reset(now);
        if let Some(kind) = now.kind() {
            self.map.set_hint(block, kind);
        }
        let Some(cpu) = now.owner().as_cpu().map(|cpu| &self.cpus[cpu]) else { return };
        if !cpu.holdings().any(|(start, end)| (start..end).contains(&block)) {
            cpu.hold_in(block, Block(block.0 + 1));
        }
        if is == State::Normal {
            cpu.add_unused(Map::whole_rows(free));
        }
        if now.kind() == Some(Kind::Empty) && zeroed {
            let ready = &cpu.cold.zero_ready;
            ready.store(ready.load(OWN) + u64::from(FRAMES_PER_BLOCK), OWN);
        }
    }

    /// Count what a node has, whose blocks are right.
    fn recover_node(&self, node: Node) {
        let (mut blocks, mut free, mut pooled) = (0, 0, 0);
        for (_, w) in self.words_of(node).filter(|(_, w)| !matches!(w.state(), State::Hole | State::Offline))
        {
            blocks += u64::from(FRAMES_PER_BLOCK);
            pooled += i64::from(w.owner() == Owner::POOL);
            free += if w.is(State::Normal) { u64::from(w.free()) } else { 0 };
        }
        let lines = &self.nodes[node.index()];
        let level = &lines.level.0;
        // Relaxed, all: nobody else is here, and whoever lets others in orders this.
        let total = blocks - level.missing.load(Ordering::Relaxed);
        level.total.store(total, Ordering::Relaxed);
        level.pooled.store(pooled, Ordering::Relaxed);
        lines.balancing.0.store(false, Ordering::Relaxed);
        lines.shared.0.store((total - free) as i64, Ordering::Relaxed);
        let used = self.used.iter().skip(node.index()).step_by(self.used_stride);
        used.for_each(|n| n.store(0, Ordering::Relaxed));
    }
}

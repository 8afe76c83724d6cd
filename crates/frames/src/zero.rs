//! Frames that are zeroed ahead of need, by CPUs that have nothing else to do.
//!
//! Clearing a frame costs many times what allocating one does, so an idle CPU does it: it takes hold of a wholly free block
//! of its own, zeroes it row by row, and when all is done lets it go with the mark `zeroed`. The mark says that every frame
//! of a free block is zero. It goes away in the very operation that takes hold of the block or claims it whole, so nobody
//! can write to a frame while the mark stands: who holds has no mark, and who frees into the block finds it held, or not
//! wholly free. A block whose zeroing was broken off has no mark.
//!
//! Whoever wants a zeroed frame holds such a block for the purpose, and leases its rows one by one to its *shelf*, from
//! which frames go out and to which none comes back. A row that has not been leased since the block was taken is as it was.
//!
//! How much is zeroed ahead follows what was wanted in the last ticks. Nothing is while the node is short.

use percpu::Pinned;

use crate::{
    Class, FRAMES_PER_BLOCK, Fill, Frames, Pressure, Req, Run,
    cpu::{Me, OWN, count},
    map::{BLOCK_ROWS, Block},
    word::{Kind, Word},
};

/// The most frames that are kept zeroed on one CPU: 32 blocks.
const MOST_AHEAD: u64 = 32 * FRAMES_PER_BLOCK as u64;
/// All rows of a block.
const ALL_ROWS: u32 = (1 << BLOCK_ROWS) - 1;

impl Frames<'_> {
    /// One zeroed movable frame of those that are at hand. Larger runs, and unmovable ones, which would spoil their blocks,
    /// have no such stock.
    pub(crate) fn alloc_zeroed(&self, me: Me<'_>, req: &Req) -> Option<Run> {
        let cold = &me.cold;
        if req.order != 0 || req.class != Class::Movable {
            return None;
        }
        cold.zero_wanted.store(cold.zero_wanted.load(OWN) + 1, OWN);
        let shelf = || cold.shelf.iter().find_map(|row| row.take(0));
        let (row, bit) = shelf().or_else(|| self.fill_shelf(me, req).then(shelf).flatten())?;
        count(&cold.counts.zeroed_hits, 1);
        Some(Run::new(self.map.frame(row, bit), 0))
    }

    /// Lease a row of zeroed frames.
    fn fill_shelf(&self, me: Me<'_>, req: &Req) -> bool {
        let cold = &me.cold;
        if cold.zero_ready.load(OWN) == 0 || self.allowance(me, me.node(), req.ctx, 64) < 64 {
            return false;
        }
        let mut rows = cold.zero_rows.load(OWN);
        let mut block = Block(cold.zero_block.load(OWN));
        if block == Block::NONE {
            let Some(found) = self.hold_zeroed(me) else {
                cold.zero_ready.store(0, OWN);
                return false;
            };
            (block, rows) = (found, ALL_ROWS);
            cold.zero_block.store(block.0, OWN);
        }
        let row = block.row(rows.trailing_zeros());
        rows &= rows - 1;
        cold.zero_rows.store(rows, OWN);
        let zeroed = self.take_all(me, row);
        debug_assert_eq!(zeroed, !0, "a row that nobody touched");
        let ready = cold.zero_ready.load(OWN).saturating_sub(64);
        cold.zero_ready.store(ready, OWN);
        if let Some(slot) = cold.shelf.iter().find(|slot| slot.mask() == 0) {
            slot.set(row, zeroed);
        }
        if rows == 0 {
            cold.zero_block.store(Block::NONE.0, OWN);
            self.unhold(block);
        }
        true
    }

    /// Hold a block of this CPU's whose frames are zero: from the end on which blocks are zeroed.
    fn hold_zeroed(&self, me: Me<'_>) -> Option<Block> {
        self.blocks_of(me, Kind::Empty, true).find(|&block| {
            let w = self.map.word(block).peek();
            let ours =
                w.is_empty() && w.owner() == me.owner() && w.zeroed() && self.node_of(block) == me.node();
            ours && self.hold(me, block, w, Class::Movable)
        })
    }

    /// Zero up to `budget` frames ahead of need, if more are wanted than are ready. For a CPU that is idle. Gives how many
    /// it zeroed; 0 means that there is nothing to do.
    pub fn idle(&self, pin: &Pinned<'_>, budget: u32) -> u32 {
        let me = self.me(pin);
        let cold = &me.cold;
        self.safe_point_of(me);
        let goal = cold.zero_goal.load(OWN).min(MOST_AHEAD);
        let short = self.crowded || me.is_sparing() || self.pressure(me.node()) != Pressure::None;
        if short {
            self.stop_zeroing(me);
        }
        if short || cold.zero_ready.load(OWN) >= goal {
            return 0;
        }
        let mut block = Block(cold.clearing.load(OWN));
        if block == Block::NONE {
            let Some(found) = self.hold_dirty(me) else { return 0 };
            block = found;
            cold.clearing.store(block.0, OWN);
            cold.cleared.store(0, OWN);
        }
        let from = cold.cleared.load(OWN);
        let to = from.saturating_add(budget).min(FRAMES_PER_BLOCK);
        for i in from..to {
            self.clear.ahead(self.map.frame(block.row(i / 64), i % 64));
        }
        cold.cleared.store(to, OWN);
        count(&cold.counts.zeroed_ahead, u64::from(to - from));
        if to == FRAMES_PER_BLOCK {
            cold.clearing.store(Block::NONE.0, OWN);
            let word = self.map.word(block);
            let w = word.peek();
            debug_assert!(w.free() == FRAMES_PER_BLOCK, "somebody freed a free frame");
            // Release: the zeros come before whoever takes the block; partner of its claim.
            if word.put(w, w.with_hold(false).with_zeroed(true)) {
                self.map.set_hint(block, Kind::Empty);
                cold.zero_ready.store(cold.zero_ready.load(OWN) + u64::from(FRAMES_PER_BLOCK), OWN);
            }
        }
        to - from
    }

    /// Hold a wholly free block of this CPU's to zero it: the last, as single frames are taken from the first.
    fn hold_dirty(&self, me: Me<'_>) -> Option<Block> {
        self.blocks_of(me, Kind::Empty, true).find(|&block| {
            let w: Word = self.map.word(block).peek();
            let ours =
                w.is_empty() && w.owner() == me.owner() && !w.zeroed() && self.node_of(block) == me.node();
            ours && self.hold(me, block, w, w.class())
        })
    }

    /// Zeroing is broken off: the block goes back without the mark.
    pub(crate) fn stop_zeroing(&self, me: Me<'_>) {
        let block = Block(me.cold.clearing.load(OWN));
        if block != Block::NONE {
            me.cold.clearing.store(Block::NONE.0, OWN);
            self.unhold(block);
        }
    }

    /// A tick: the goal follows what was wanted.
    pub(crate) fn tick_zeroing(&self, me: Me<'_>) {
        let cold = &me.cold;
        let goal = cold.zero_goal.load(OWN);
        cold.zero_goal.store((goal * 7 / 8).max(2 * cold.zero_wanted.load(OWN)), OWN);
        cold.zero_wanted.store(0, OWN);
    }

    /// The huge run or row that carries the mark is gone from the stock.
    pub(crate) fn zeroed_taken(&self, me: Me<'_>, fill: Fill) {
        let ready = me.cold.zero_ready.load(OWN);
        me.cold.zero_ready.store(ready.saturating_sub(u64::from(FRAMES_PER_BLOCK)), OWN);
        count(
            &me.cold.counts.zeroed_hits,
            if fill == Fill::Zeroed { u64::from(FRAMES_PER_BLOCK) } else { 0 },
        );
    }
}

//! Runs of a whole block and more: orders 9 to 18.
//!
//! A block whose count is 512 has nothing in flight: all bits are clear, and nobody is between the two steps of taking or
//! giving, for either would make the count smaller (I4). So a huge run is claimed by one compare-and-swap on the word, of
//! any owner's block that nobody holds, and the rows are not even looked at: they stay clear while it is out. A CPU looks
//! from where it found the last one on: the hints of blocks that it claimed needn't be put right, to be set again when
//! they come back.
//!
//! A giant run is a group of such blocks within an arena. They are claimed one after the other under the arena's lock, in
//! ascending order, by way of a state that stops everybody else; if one isn't to be had, those before it are put back. Only
//! giants wait for that lock.

use addr::Frame;
use percpu::Pinned;

use crate::{
    FRAMES_PER_BLOCK, Fill, Frames, FreeError, HUGE_ORDER, Node, Req, Run,
    cpu::{Me, OWN, count},
    map::{ARENA_BLOCKS, BLOCK_ROWS, Block},
    word::{Kind, Owner, State, Word},
};

/// Rows in a block.
const ROWS: i64 = BLOCK_ROWS as i64;

impl Frames<'_> {
    fn huge(&self, block: Block) -> Run {
        Run::new(self.map.frame(block.row(0), 0), HUGE_ORDER)
    }

    /// A huge run that this CPU kept.
    pub(crate) fn alloc_shelved_huge(&self, me: Me<'_>, req: &Req) -> Option<Run> {
        let slot = me.cold.huge.iter().find(|slot| slot.load(OWN) != Block::NONE.0)?;
        let block = Block(slot.load(OWN));
        slot.store(Block::NONE.0, OWN);
        Some(self.filled(self.huge(block), req.fill))
    }

    /// A huge run without a search: more often than not the block after the last is the next, in order of address too.
    pub(crate) fn alloc_next_huge(&self, me: Me<'_>, req: &Req) -> Option<Run> {
        let block = Block(me.cold.empty_from.load(OWN));
        if req.fill == Fill::Zeroed || block.0 >= self.map.blocks() {
            return None;
        }
        let w = self.map.word(block).peek();
        let fits = w.owner() == me.owner() && self.node_of(block) == me.node() && w.is_empty() && !w.zeroed();
        if !fits || self.allowance(me, me.node(), req.ctx, FRAMES_PER_BLOCK) < FRAMES_PER_BLOCK {
            return None;
        }
        let run = self.claim_huge(me, block, w, req)?;
        me.cold.empty_from.store(block.0 + 1, OWN);
        Some(run)
    }

    /// A huge run of `node`: of this CPU's blocks, of the pool's, of anybody's.
    pub(crate) fn alloc_huge(&self, me: Me<'_>, node: Node, req: &Req) -> Option<Run> {
        if self.allowance(me, node, req.ctx, FRAMES_PER_BLOCK) < FRAMES_PER_BLOCK {
            return None;
        }
        let found = self.claim_own(me, node, req).or_else(|| {
            // A block that this CPU holds may be wholly free, but for what it keeps of it.
            self.give_up_all(me);
            self.claim_own(me, node, req)
        });
        let found = found.or_else(|| {
            // Several at a time, so that a CPU that has none doesn't look through all words for each.
            self.take_over(me, node, req.class, FRAMES_PER_BLOCK, &mut |block| {
                self.unhold(block);
                Some(())
            })?;
            self.claim_own(me, node, req)
        });
        found.or_else(|| self.words_of(node).find_map(|(b, w)| self.claim_huge(me, b, w, req)))
    }

    fn claim_own(&self, me: Me<'_>, node: Node, req: &Req) -> Option<Run> {
        let down = req.fill == Fill::Zeroed;
        let mut second = None;
        // Blocks are zeroed from the other end than frames are taken.
        for block in self.blocks_of(me, Kind::Empty, down) {
            let w = self.map.word(block).peek();
            if w.owner() != me.owner() || self.node_of(block) != node || !w.is_empty() {
                self.map.repair(block, Kind::Empty, w);
            } else if w.zeroed() != down && second.is_none() {
                second = Some((block, w));
            } else if let Some(run) = self.claim_huge(me, block, w, req) {
                if !down {
                    me.cold.empty_from.store(block.0 + 1, OWN);
                }
                return Some(run);
            }
        }
        second.and_then(|(block, w)| self.claim_huge(me, block, w, req))
    }

    /// Claim a wholly free block; it is this CPU's afterwards.
    #[inline]
    fn claim_huge(&self, me: Me<'_>, block: Block, w: Word, req: &Req) -> Option<Run> {
        let free =
            if sync::mutant!("frames-huge-held") { w.kind() == Some(Kind::Empty) } else { w.is_empty() };
        if !free || w.owner() == Owner::ISOLATED {
            return None;
        }
        let to = w.with_state(State::Huge).with_free(0).with_zeroed(false).with_owner(me.owner());
        if !self.map.word(block).claim(w, to) {
            return None;
        }
        self.count_unused(Some(me), w.owner(), -ROWS);
        self.count_used(Some(me), block, i64::from(FRAMES_PER_BLOCK));
        if w.owner() != me.owner() {
            self.count_pooled(block, w.owner(), -1);
            self.remember(me, block);
        }
        if w.zeroed() {
            self.zeroed_taken(me, req.fill);
        }
        Some(self.filled(self.huge(block), if w.zeroed() { Fill::Any } else { req.fill }))
    }

    /// A huge run comes back.
    pub(crate) fn free_huge(&self, me: Option<Me<'_>>, block: Block) -> Result<(), FreeError> {
        let first = self.map.frame(block.row(0), 0);
        let w = self.map.word(block).peek();
        if !w.is(State::Huge) {
            let free = w.is(State::Normal) && w.free() == FRAMES_PER_BLOCK;
            return Err(if free { FreeError::DoubleFree(first) } else { FreeError::WrongState(first) });
        }
        if let Some(me) = me {
            if me.cold.huge.iter().any(|slot| slot.load(OWN) == block.0) {
                return Err(FreeError::DoubleFree(first));
            }
            let room = me.cold.huge.iter().find(|slot| slot.load(OWN) == Block::NONE.0);
            let goes_out = w.owner() == Owner::ISOLATED;
            if let Some(slot) =
                room.filter(|_| !me.is_sparing() && !goes_out && self.node_of(block) == me.node())
            {
                slot.store(block.0, OWN);
                return Ok(());
            }
        }
        if !self.put_back(me, block, State::Huge) {
            return Err(FreeError::DoubleFree(first));
        }
        if let Some(me) = me {
            self.flushed(me, self.node_of(block));
        }
        Ok(())
    }

    /// Give the map the huge runs that this CPU keeps.
    pub(crate) fn give_up_huge(&self, me: Me<'_>) {
        for slot in &me.cold.huge {
            let block = Block(slot.load(OWN));
            if block != Block::NONE {
                slot.store(Block::NONE.0, OWN);
                if !self.put_back(Some(me), block, State::Huge) {
                    count(&me.cold.counts.refused, 1);
                }
            }
        }
    }

    /// Make a block that the caller owns whole free, whatever its owner has become meanwhile; false if it is free already,
    /// as somebody else thought that he owned it.
    #[inline]
    fn put_back(&self, me: Option<Me<'_>>, block: Block, from: State) -> bool {
        let word = self.map.word(block);
        loop {
            let w = word.peek();
            if !w.is(from) {
                return false;
            }
            if word.put(w, w.with_state(State::Normal).with_free(FRAMES_PER_BLOCK).with_zeroed(false)) {
                self.count_unused(me, w.owner(), ROWS);
                self.count_used(me, block, -i64::from(FRAMES_PER_BLOCK));
                self.became(me, block, Kind::Empty);
                return true;
            }
        }
    }

    /// A giant run of `node`.
    pub(crate) fn alloc_giant(&self, me: Me<'_>, node: Node, req: &Req) -> Option<Run> {
        let n = 1 << (req.order - HUGE_ORDER);
        if self.allowance(me, node, req.ctx, 1 << req.order) < 1 << req.order {
            return None;
        }
        let fits = |first: u32| {
            (first..first + n).map(Block).all(|b| {
                let w = self.map.word(b).peek();
                w.is_empty() && w.owner() != Owner::ISOLATED && self.node_of(b) == node
            })
        };
        for (arena, first) in (0..self.map.blocks()).step_by(ARENA_BLOCKS as usize).enumerate() {
            let last = self.map.blocks().min(first + ARENA_BLOCKS);
            let groups = || (first..last).step_by(n as usize).filter(|g| g + n <= last);
            if !groups().any(fits) {
                continue;
            }
            let _giants = self.map.arenas[arena].giants.0.lock();
            if let Some(head) = groups().find(|g| fits(*g) && self.claim_group(*g, n)) {
                return Some(self.make_giant(me, head, n, req.order));
            }
        }
        None
    }

    /// Claim all blocks of a group, or none. The caller has the arena's lock.
    fn claim_group(&self, first: u32, n: u32) -> bool {
        let claim = |b: &u32| {
            let (block, w) = (Block(*b), self.map.word(Block(*b)).peek());
            w.owner() != Owner::ISOLATED && self.map.claim_empty(block, w, State::Claiming)
        };
        let Some(taken) = (first..first + n).find(|b| !claim(b)) else { return true };
        if sync::mutant!("frames-giant-unrestored") {
            return false;
        }
        for block in (first..taken).map(Block) {
            self.become_of(block, State::Claiming, State::Normal, FRAMES_PER_BLOCK);
        }
        false
    }

    fn make_giant(&self, me: Me<'_>, head: u32, n: u32, order: u32) -> Run {
        for block in (head..head + n).map(Block) {
            let (state, free) =
                if block.0 == head { (State::GiantHead, order) } else { (State::GiantTail, 0) };
            let w = self.become_of(block, State::Claiming, state, free);
            self.count_unused(Some(me), w.owner(), -ROWS);
            self.count_used(Some(me), block, i64::from(FRAMES_PER_BLOCK));
        }
        Run::new(self.map.frame(Block(head).row(0), 0), order)
    }

    /// Change the state of a block that the caller owns whole, whatever its owner has become meanwhile; the word before.
    fn become_of(&self, block: Block, from: State, to: State, free: u32) -> Word {
        let word = self.map.word(block);
        loop {
            let w = word.peek();
            debug_assert!(w.is(from), "{w:?} is not {from:?}");
            if word.put(w, w.with_state(to).with_free(free)) {
                return w;
            }
        }
    }

    /// A giant run comes back: a second free, or another order, fails at the head.
    pub(crate) fn free_giant(&self, me: Option<Me<'_>>, head: Block, order: u32) -> Result<(), FreeError> {
        let word = self.map.word(head);
        let first = self.map.frame(head.row(0), 0);
        loop {
            let w = word.peek();
            if !w.is(State::GiantHead) || w.free() != order {
                let free = w.is(State::Normal) && w.free() == FRAMES_PER_BLOCK;
                return Err(if free { FreeError::DoubleFree(first) } else { FreeError::WrongState(first) });
            }
            if word.claim(w, w.with_state(State::Claiming).with_free(0)) {
                break;
            }
        }
        let n = 1 << (order - HUGE_ORDER);
        // The head has said that the tails are the caller's too.
        for block in (head.0 + 1..head.0 + n).map(Block) {
            let tail = self.put_back(me, block, State::GiantTail);
            debug_assert!(tail, "{block:?} is no tail of {head:?}");
        }
        self.put_back(me, head, State::Claiming);
        if let Some(me) = me {
            self.flushed(me, self.node_of(head));
        }
        Ok(())
    }

    /// Divide a run, whose parts are then given back one by one: a giant into huge runs, anything else into frames.
    ///
    /// Errors: the run, if there is no such run.
    pub fn split(&self, run: Run) -> Result<Runs, (Run, FreeError)> {
        let (first, order) = (run.first(), run.order());
        let (row, _) = match self.checked(first, order) {
            Ok(at) => at,
            Err(error) => return Err((run, error)),
        };
        let block = row.block();
        let wrong = || FreeError::WrongState(first);
        let w = self.map.word(block).peek();
        let each = match order {
            0..HUGE_ORDER => 0,
            HUGE_ORDER if w.is(State::Huge) => {
                block.rows().for_each(|row| {
                    self.map.take(row, !0);
                });
                self.become_of(block, State::Huge, State::Normal, 0);
                0
            }
            _ if w.is(State::GiantHead) && w.free() == order => {
                for b in (block.0 + 1..block.0 + (1 << (order - HUGE_ORDER))).map(Block) {
                    self.become_of(b, State::GiantTail, State::Huge, 0);
                }
                self.become_of(block, State::GiantHead, State::Huge, 0);
                HUGE_ORDER
            }
            _ => return Err((run, wrong())),
        };
        let (first, order) = run.into_raw();
        Ok(Runs { next: first, left: 1 << (order - each), order: each })
    }

    /// The inverse of [`Self::split`] for a block: its 512 frames become one run.
    ///
    /// Errors: the frames stay what they were, if `first` isn't the first frame of a block, if one of them is free or in a
    /// larger run, or if another CPU has hold of the block at this moment.
    ///
    /// # Safety
    /// The caller owns all 512 frames from `first` on, in runs of orders 0 to 8, and gives up those if it succeeds.
    pub unsafe fn fuse(&self, pin: &Pinned<'_>, first: Frame) -> Result<Run, FreeError> {
        let (row, _) = self.checked(first, HUGE_ORDER)?;
        let block = row.block();
        let me = self.me(pin);
        self.give_up_all(me);
        self.give_up_lanes(me);
        let word = self.map.word(block);
        let w = word.peek();
        let single = w.is(State::Normal) && w.free() == 0 && !w.held();
        // Nothing is in flight: all frames are the caller's, so nobody frees one, and there is none to take.
        if !single || block.rows().any(|row| self.map.zeros(row) != 0) {
            return Err(FreeError::WrongState(first));
        }
        // The count says that it is on its way to be huge, and whose it is meanwhile (see `recover`).
        if !word.claim(w, w.with_state(State::Claiming).with_free(FRAMES_PER_BLOCK)) {
            return Err(FreeError::WrongState(first));
        }
        block.rows().for_each(|row| {
            self.map.release(row, !0);
        });
        self.become_of(block, State::Claiming, State::Huge, 0);
        Ok(self.huge(block))
    }
}

/// The parts of a run that was divided. What isn't taken is leaked, which debug builds refuse.
#[must_use = "what is not taken is leaked"]
#[derive(Debug)]
pub struct Runs {
    next: Frame,
    left: u64,
    order: u32,
}

impl Iterator for Runs {
    type Item = Run;
    fn next(&mut self) -> Option<Run> {
        self.left = self.left.checked_sub(1)?;
        let run = Run::new(self.next, self.order);
        self.next = Frame::new(self.next.number() + (1 << self.order)).unwrap_or(self.next);
        Some(run)
    }
    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left as usize, Some(self.left as usize))
    }
}

impl Drop for Runs {
    fn drop(&mut self) {
        self.for_each(drop);
    }
}

//! Taking memory out of service and into it, in whole blocks.
//!
//! A block on its way out is *isolated*: nobody takes from it, while frames that are freed still land in it. When its count
//! is 512 nothing is in flight, and it goes offline. Until all blocks of a range are there, the caller moves away what it
//! can of what lives in them, and asks again; or it changes its mind.

use crate::primitive::Ordering;
use addr::Frame;
use percpu::Pinned;

use crate::{
    FRAMES_PER_BLOCK, FrameRange, Frames, FreeError,
    cpu::Me,
    map::{BLOCK_ROWS, Block, Map, Row},
    word::{Kind, Owner, State, Word},
};

/// A frame in this block is still in use; the whole range stays isolated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Busy {
    /// The first frame of the first block that has one.
    pub first: Frame,
}

impl Frames<'_> {
    /// Take the blocks of `range` out of service. What this CPU keeps of them is given up; what others keep, they must be
    /// asked for (`request_drain`).
    ///
    /// Errors: `Busy` if frames of them are still in use; nobody is given one of the range meanwhile, and the caller may try
    /// again, or [`cancel`](Self::cancel_offline). A range that isn't of whole blocks of this allocator is busy for ever, and
    /// nothing is done.
    pub fn offline(&self, pin: &Pinned<'_>, range: FrameRange) -> Result<(), Busy> {
        let me = self.me(pin);
        let Some((first, end)) = self.whole_blocks(range) else { return Err(Busy { first: range.start }) };
        self.give_up_all(me);
        self.give_up_lanes(me);
        // All are isolated even if one is busy: what is free stays so until the others are.
        let mut busy = None;
        for block in (first..end).map(Block) {
            if !self.isolate(me, block) || !self.is_retirable(block) {
                busy = busy.or(Some(Busy { first: self.map.frame(block.row(0), 0) }));
            }
        }
        busy.map_or(Ok(()), Err)?;
        // Somebody may have changed his mind meanwhile, and have them in service.
        let stays = (first..end).map(Block).filter(|block| !self.retire(*block)).min();
        // What was granted of it is granted no more.
        for node in self.topology.all() {
            self.look(me, node, 0);
        }
        stays.map_or(Ok(()), |block| Err(Busy { first: self.map.frame(block.row(0), 0) }))
    }

    /// Give a block to nobody; false if somebody holds it.
    fn isolate(&self, me: Me<'_>, block: Block) -> bool {
        let word = self.map.word(block);
        loop {
            let w = word.peek();
            if w.owner() == Owner::ISOLATED || matches!(w.state(), State::Offline | State::Hole) {
                return true;
            }
            if w.held() || w.is(State::Claiming) {
                return false;
            }
            if word.claim(w, w.with_owner(Owner::ISOLATED)) {
                let rows = if w.is(State::Normal) { Map::whole_rows(w.free()) } else { 0 };
                self.count_unused(Some(me), w.owner(), -rows);
                self.count_pooled(block, w.owner(), -1);
                return true;
            }
        }
    }

    /// Whether nothing of an isolated block is in use. It stays so: nobody takes from it.
    fn is_retirable(&self, block: Block) -> bool {
        // Acquire, in `load`: what the last owners did to the frames comes before whatever becomes of the memory.
        let w = self.map.word(block).load();
        matches!(w.state(), State::Offline | State::Hole) || is_isolated(w)
    }

    /// Take a block out of service that is isolated and of which nothing is in use; false if it is so no more.
    fn retire(&self, block: Block) -> bool {
        let word = self.map.word(block);
        let w = word.load();
        if is_isolated(w) && word.claim(w, w.with_state(State::Offline).with_free(0)) {
            self.change_total(block, -i64::from(FRAMES_PER_BLOCK));
            return true;
        }
        matches!(word.load().state(), State::Offline | State::Hole)
    }

    /// The blocks of `range` that are on their way out, but not there, are in service again.
    pub fn cancel_offline(&self, pin: &Pinned<'_>, range: FrameRange) {
        let me = self.me(pin);
        let Some((first, end)) = self.whole_blocks(range) else { return };
        for block in (first..end).map(Block) {
            let word = self.map.word(block);
            loop {
                let w = word.peek();
                if w.owner() != Owner::ISOLATED || w.is(State::Offline) {
                    break;
                }
                let home = self.region_of(block).map_or(Owner::POOL, |r| r.owner);
                if word.put(w, w.with_owner(home)) {
                    self.arrived(me, block, w.with_owner(home));
                    break;
                }
            }
        }
    }

    /// Blocks that were taken out of service, and those of ranges that never were in it, are in service, all their frames
    /// free; they belong to their node's pool.
    ///
    /// Errors: `NotManaged` if the range isn't of whole blocks between the first frame and the last, or `WrongState` if one
    /// is in service; nothing has changed then.
    ///
    /// # Safety
    /// The frames are memory that nobody uses.
    pub unsafe fn online(&self, pin: &Pinned<'_>, range: FrameRange) -> Result<(), FreeError> {
        let me = self.me(pin);
        let (first, end) = self.whole_blocks(range).ok_or(FreeError::NotManaged(range.start))?;
        let out = |b: &Block| matches!(self.map.word(*b).peek().state(), State::Offline);
        if let Some(block) = (first..end).map(Block).find(|b| !out(b)) {
            return Err(FreeError::WrongState(self.map.frame(block.row(0), 0)));
        }
        for block in (first..end).map(Block) {
            let word = self.map.word(block);
            let w = word.peek();
            let to = Word::normal(FRAMES_PER_BLOCK, Owner::POOL);
            if out(&block) && word.put(w, to) {
                self.change_total(block, i64::from(FRAMES_PER_BLOCK));
                self.arrived(me, block, to);
            }
        }
        Ok(())
    }

    /// A block came to the owner that its word `w` names.
    fn arrived(&self, me: Me<'_>, block: Block, w: Word) {
        self.count_pooled(block, w.owner(), 1);
        if w.is(State::Normal) {
            self.count_unused(Some(me), w.owner(), Map::whole_rows(w.free()));
        }
        if let Some(kind) = w.kind() {
            self.map.set_hint(block, kind);
        }
        debug_assert!(w.kind() != Some(Kind::Empty) || block.rows().count() == BLOCK_ROWS as usize);
    }

    fn change_total(&self, block: Block, frames: i64) {
        let total = &self.nodes[self.node_of(block).index()].level.0.total;
        // Relaxed: a number; wraps to the sum.
        total.fetch_add(frames as u64, Ordering::Relaxed);
    }

    /// Take the frames of `range` out of the map, without touching their bytes: for what lay in them before the allocator
    /// did. They are the caller's afterwards, as runs of order 0 ([`Run::from_raw`](crate::Run::from_raw)). For a machine
    /// that is still being set up: the answer is false, and nothing changes, if one of them isn't free in the map.
    pub fn claim(&self, pin: &Pinned<'_>, range: FrameRange) -> bool {
        let me = self.me(pin);
        let bits = |row: Row| {
            let first = self.map.frame(row, 0).number();
            let (from, to) = (range.start.number().max(first), range.end.number().min(first + 64));
            if from < to { (!0 >> (64 - (to - from))) << (from - first) } else { 0u64 }
        };
        let rows = || {
            let last = Frame::new(range.end.number().wrapping_sub(1)).and_then(|f| self.map.locate(f));
            let ends = self.map.locate(range.start).zip(last);
            ends.map(|((a, _), (b, _))| (a.0..=b.0).map(Row)).into_iter().flatten()
        };
        let there = |row: Row| {
            let w = self.map.word(row.block()).peek();
            w.is_normal_with(bits(row).count_ones()) && self.map.zeros(row) & bits(row) == bits(row)
        };
        if range.start >= range.end {
            return true;
        }
        if rows().next().is_none() || !rows().all(there) {
            return false;
        }
        for row in rows() {
            let word = self.map.word(row.block());
            let w = word.peek();
            if !word.claim(w, w.with_hold(true).with_zeroed(false)) {
                return false;
            }
            let k = bits(row).count_ones();
            let was = word.take(w, k, None);
            self.map.take(row, bits(row));
            self.count_used(Some(me), row.block(), i64::from(k));
            let rows = Map::whole_rows(was.free() - k) - Map::whole_rows(was.free());
            self.count_unused(Some(me), was.owner(), rows);
            self.unhold(row.block());
        }
        true
    }

    /// The blocks that make up `range`, first and end.
    fn whole_blocks(&self, range: FrameRange) -> Option<(u32, u32)> {
        let block = u64::from(FRAMES_PER_BLOCK);
        if range.start >= range.end
            || [range.start, range.end].iter().any(|f| !f.number().is_multiple_of(block))
        {
            return None;
        }
        let last = Frame::new(range.end.number() - 1)?;
        Some((self.map.locate(range.start)?.0.block().0, self.map.locate(last)?.0.block().0 + 1))
    }
}

/// Whether a block in service belongs to nobody, and none of its frames to anybody.
fn is_isolated(w: Word) -> bool {
    w.is_empty() && w.owner() == Owner::ISOLATED
}

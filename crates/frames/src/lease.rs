//! Single frames and runs of up to 256: leasing rows from a block that is held, and giving frames back to theirs.
//!
//! **Taking** `k` frames out of a row is two steps, both by the holder of the block: the count goes down by `k`, then their
//! bits go up. **Giving** `n` frames back is two steps, by whoever owns them: their bits go down, then the count goes up by
//! `n`. So at any instant the count promises at most as many frames as have clear bits (I1), and as nobody but the holder
//! sets bits (I2), what the holder sees clear it can take: no step fails, and there is nothing to undo.
//!
//! A leased row's frames are this CPU's, and go in and out of a word of its own until it is empty. Freed frames of other
//! rows gather in accumulators, a row each, and go home together: one pair of read-modify-writes for up to 64 frames.

use addr::Frame;
use percpu::Pinned;

use crate::{
    Class, Ctx, FRAMES_PER_BLOCK, Frames, FreeError, Node, Pressure, Req, Run,
    cpu::{Cached, LANES, Me, OWN, count},
    map::{BLOCK_ROWS, Block, Map, Row, lowest_ones, ones, run_bits, runs},
    word::{Kind, State, Word},
};

/// Rows with fewer free frames are not leased while the block has better ones.
const WORTH_LEASING: u32 = 8;

impl Frames<'_> {
    /// One frame for `req`, which the lease of its class can't serve: from a fresh row.
    pub(crate) fn refill(&self, me: Me<'_>, req: &Req) -> Option<Run> {
        count(&me.cold.counts.refills, 1);
        let class = req.class;
        let lease = &me.hot.lease[class as usize];
        let found = self
            .lease_from_current(me, class, req.ctx)
            .or_else(|| self.find_row(me, me.node(), class, req.ctx))
            .or_else(|| self.take_own(me))
            .or_else(|| {
                let others = self.topology.by_distance(me.node()).skip(1);
                let found = others.filter_map(|node| self.find_row(me, node, class, req.ctx)).next();
                count(&me.cold.counts.away, u64::from(found.is_some()));
                found
            })?;
        // What is kept of a row is kept in one place, so that a look there finds what is freed twice.
        let same = me.hot.lease.iter().chain([me.hot.near(found.0)]).filter(|c| c.row() == found.0);
        let mask = same.fold(found.1, |m, c| m | c.empty().1);
        lease.renew(found.0, mask);
        let (row, bit) = lease.take(0)?;
        self.refilled(me);
        Some(Run::new(self.map.frame(row, bit), 0))
    }

    /// Some of the frames of the block that this CPU holds for `class`.
    fn lease_from_current(&self, me: Me<'_>, class: Class, ctx: Ctx) -> Option<(Row, u64)> {
        let block = me.hot.current(class);
        if block == Block::NONE {
            return None;
        }
        // Frames that were just freed are warm, and moving them costs a single addition.
        let mut near = block.rows().map(|row| (row, me.hot.near(row)));
        if let Some((_, acc)) = near.find(|(row, acc)| acc.row() == *row && acc.mask() != 0) {
            let (row, mask) = acc.empty();
            let word = self.map.word(block);
            word.take(word.peek(), 0, Some(row.in_block()));
            return Some((row, mask));
        }
        let most = self.allowance(me, self.node_of(block), ctx, 64);
        if !me.is_sparing()
            && let Some(found) = self.take_row(me, block, most, true)
        {
            return Some(found);
        }
        me.hot.set_current(class, Block::NONE);
        self.unhold(block);
        None
    }

    /// Some frames of one row of `node`, from a block that this CPU holds from now on, unless it is to be sparing.
    fn find_row(&self, me: Me<'_>, node: Node, class: Class, ctx: Ctx) -> Option<(Row, u64)> {
        let most = self.allowance(me, node, ctx, 64).min(self.most_kept(me));
        if most == 0 {
            return None;
        }
        let keep = !me.is_sparing() && me.hot.current(class) == Block::NONE;
        self.find(me, node, class, 1, &mut |block| {
            let found = self.take_row(me, block, most, keep)?;
            if keep {
                me.hot.set_current(class, block);
            } else {
                self.unhold(block);
            }
            Some(found)
        })
    }

    /// The most frames of a row that this CPU may keep.
    fn most_kept(&self, me: Me<'_>) -> u32 {
        if me.is_sparing() { self.sparing } else { 64 }
    }

    /// What this CPU keeps of other rows: the last frames before it goes without.
    fn take_own(&self, me: Me<'_>) -> Option<(Row, u64)> {
        let kept = me.hot.accumulators.iter().chain(&me.cold.shelf);
        kept.into_iter().find(|c| c.mask() != 0).map(Cached::empty)
    }

    /// Take up to `most` frames of one row of `block`, which this CPU holds: of the row with the fewest that is worth it,
    /// so that rows that are nearly free become so. The row counts as leased if `lease`.
    pub(crate) fn take_row(&self, me: Me<'_>, block: Block, most: u32, lease: bool) -> Option<(Row, u64)> {
        let word = self.map.word(block);
        let seen = word.load();
        let (row, zeros, n) = self.best_row(block)?;
        let k = n.min(seen.free()).min(most);
        if k == 0 {
            return None;
        }
        let mask = lowest_ones(zeros, k);
        self.take_frames(me, seen, row, mask, lease);
        Some((row, mask))
    }

    /// The row of a block to take frames of, which these are, and how many. Of equals it is the first.
    fn best_row(&self, block: Block) -> Option<(Row, u64, u32)> {
        let (mut found, mut best) = (None, 0);
        for (row, zeros) in self.map.zeros_of(block) {
            let n = ones(zeros);
            let rank = if n >= WORTH_LEASING { 2 * ROW_MOST - n } else { n };
            if rank > best {
                (found, best) = (Some((row, zeros, n)), rank);
            }
        }
        found
    }

    /// Take all free frames of a row of a block that this CPU holds.
    pub(crate) fn take_all(&self, me: Me<'_>, row: Row) -> u64 {
        let seen = self.map.word(row.block()).load();
        let mask = lowest_ones(self.map.zeros(row), seen.free());
        if mask != 0 {
            self.take_frames(me, seen, row, mask, false);
        }
        mask
    }

    /// Take the frames `mask` of `row`, whose block this CPU holds with the word `seen` at most so many ago.
    fn take_frames(&self, me: Me<'_>, seen: Word, row: Row, mask: u64, lease: bool) {
        let (block, k) = (row.block(), ones(mask));
        let leased = if lease { Some(row.in_block()) } else { seen.leased() };
        let was = self.map.word(block).take(seen, k, leased);
        let taken = self.map.take(row, mask);
        debug_assert_eq!(taken, 0, "somebody else set bits of a held block");
        self.took(me, block, was, k);
    }

    /// Count what was taken of a block of this CPU's, whose word was `was` before.
    fn took(&self, me: Me<'_>, block: Block, was: Word, k: u32) {
        self.count_used(Some(me), block, i64::from(k));
        me.add_unused(Map::whole_rows(was.free() - k) - Map::whole_rows(was.free()));
    }

    /// 2^`order` frames, orders 1 to 8, of `node`.
    pub(crate) fn alloc_within_block(&self, me: Me<'_>, node: Node, req: &Req) -> Option<Run> {
        let n = 1 << req.order;
        if self.allowance(me, node, req.ctx, n) < n {
            return None;
        }
        let current = me.hot.current(req.class);
        if current != Block::NONE
            && self.node_of(current) == node
            && let Some(run) = self.take_run(me, current, req.order)
        {
            return Some(run);
        }
        self.find(me, node, req.class, n, &mut |block| {
            let run = self.take_run(me, block, req.order)?;
            self.unhold(block);
            Some(run)
        })
    }

    /// 2^`order` frames, orders 1 to 8, of a block that this CPU holds.
    fn take_run(&self, me: Me<'_>, block: Block, order: u32) -> Option<Run> {
        let seen = self.map.word(block).load();
        if seen.free() < 1 << order {
            return None;
        }
        if order <= 6 {
            let (row, fits) =
                block.rows().map(|r| (r, runs(self.map.zeros(r), order))).find(|(_, fits)| *fits != 0)?;
            let bit = fits.trailing_zeros();
            self.take_frames(me, seen, row, run_bits(order) << bit, false);
            return Some(Run::new(self.map.frame(row, bit), order));
        }
        let rows = 1 << (order - 6);
        let whole = |first: &u32| (*first..first + rows).all(|i| self.map.zeros(block.row(i)) == !0);
        let first = (0..BLOCK_ROWS).step_by(rows as usize).find(whole)?;
        // The count goes down once, for all rows, before the first bit is set.
        let was = self.map.word(block).take(seen, 1 << order, seen.leased());
        for i in first..first + rows {
            let taken = self.map.take(block.row(i), !0);
            debug_assert_eq!(taken, 0, "somebody else set bits of a held block");
        }
        self.took(me, block, was, 1 << order);
        Some(Run::new(self.map.frame(block.row(first), 0), order))
    }

    /// One frame of `node`, by way of the row that this CPU keeps for such requests.
    pub(crate) fn alloc_one_away(&self, me: Me<'_>, node: Node, req: &Req) -> Option<Run> {
        let away = &me.cold.away[req.class as usize];
        if away.mask() != 0 && self.node_of(away.row().block()) != node {
            let (row, mask) = away.empty();
            self.give_back(me, row, mask);
        }
        if away.mask() == 0 {
            let most = self.allowance(me, node, req.ctx, 64).min(self.most_kept(me));
            if most == 0 {
                return None;
            }
            let (row, mask) = self.find(me, node, req.class, 1, &mut |block| {
                let found = self.take_row(me, block, most, false)?;
                self.unhold(block);
                Some(found)
            })?;
            away.set(row, mask);
            count(&me.cold.counts.away, u64::from(node != me.node()));
        }
        let (row, bit) = away.take(0)?;
        Some(Run::new(self.map.frame(row, bit), 0))
    }

    /// Hold `block` no more. Its lease, if it has one, must have been emptied into the map or must belong to nobody else.
    pub(crate) fn unhold(&self, block: Block) {
        let word = self.map.word(block);
        let now = word.unhold(word.peek());
        if let Some(kind) = now.kind() {
            self.map.set_hint(block, kind);
        }
    }

    /// Frames of one row come back, and none of this CPU's words has that row, or it is to keep nothing.
    pub(crate) fn free_small(&self, me: Me<'_>, row: Row, mask: u64) -> Result<(), FreeError> {
        let near = me.hot.near(row);
        let twice = me.kept_of(row).unwrap_or(0) & mask;
        if twice != 0 {
            return Err(FreeError::DoubleFree(self.map.frame(row, twice.trailing_zeros())));
        }
        if me.is_sparing() {
            return self.flush(Some(me), row, mask);
        }
        if near.row() == row {
            near.put(mask);
            return Ok(());
        }
        // What goes home later is looked at now, while there is somebody to tell.
        let seen = self.map.word(row.block()).peek();
        if !seen.is(State::Normal) {
            return Err(not_normal(seen, self.map.frame(row, mask.trailing_zeros())));
        }
        let free = self.map.zeros(row) & mask;
        if free != 0 {
            return Err(FreeError::DoubleFree(self.map.frame(row, free.trailing_zeros())));
        }
        let (old, gathered) = near.empty();
        near.set(row, mask);
        if gathered == 0 { Ok(()) } else { self.flush(Some(me), old, gathered) }
    }

    /// Give the frames `mask` of `row`, which the caller has, back to the map.
    ///
    /// Errors: a frame that was free already; the others are given back all the same.
    pub(crate) fn flush(&self, me: Option<Me<'_>>, row: Row, mask: u64) -> Result<(), FreeError> {
        let block = row.block();
        let word = self.map.word(block);
        let seen = word.peek();
        if !seen.is(State::Normal) {
            return Err(not_normal(seen, self.map.frame(row, mask.trailing_zeros())));
        }
        let twice = self.leased_elsewhere(me, seen, row) & mask;
        let early = sync::mutant!("frames-count-first").then(|| word.give(mask.count_ones()));
        let good = self.map.release(row, mask & !twice);
        let n = ones(good);
        if n > 0 {
            let was = early.unwrap_or_else(|| word.give(n));
            self.gave(me, block, was, n);
        }
        match mask & !good {
            0 => Ok(()),
            bad => Err(FreeError::DoubleFree(self.map.frame(row, bad.trailing_zeros()))),
        }
    }

    /// Frames of `row` that lie in another CPU's lease, if the row is leased: free already. A caller that owns its frames
    /// got them after they left that lease, and so sees that they did.
    fn leased_elsewhere(&self, me: Option<Me<'_>>, seen: Word, row: Row) -> u64 {
        if !seen.held() || seen.leased() != Some(row.in_block()) {
            return 0;
        }
        let holder = seen.owner().as_cpu().filter(|cpu| me.is_none_or(|me| me.id().index() != *cpu));
        holder.map_or(0, |cpu| self.cpus[cpu].hot.leased(row))
    }

    /// Count what was given back to a block whose word was `was` before.
    #[inline]
    fn gave(&self, me: Option<Me<'_>>, block: Block, was: Word, n: u32) {
        self.count_used(me, block, -i64::from(n));
        let free = was.free() + n;
        let rows = Map::whole_rows(free) - Map::whole_rows(was.free());
        // Kinds are some whole rows apart, but for the lowest.
        if rows != 0 || was.free() <= Kind::Scant.most() {
            self.count_unused(me, was.owner(), rows);
            if let Some(kind) = Kind::of(free)
                && Kind::of(was.free()) != Some(kind)
            {
                self.became(me, block, kind);
            }
        }
        if let Some(me) = me {
            count(&me.cold.counts.remote_flushes, u64::from(was.owner() != me.owner()));
            self.flushed(me, self.node_of(block));
        }
    }

    /// Give back frames of this CPU's own words. What was freed twice shows only now, and there is nobody to tell: it is
    /// counted.
    pub(crate) fn give_back(&self, me: Me<'_>, row: Row, mask: u64) {
        if mask != 0 && self.flush(Some(me), row, mask).is_err() {
            count(&me.cold.counts.refused, 1);
        }
    }

    /// `rows` adjacent rows come back, owned whole: a run of order 6 to 8.
    pub(crate) fn free_rows(&self, me: Option<Me<'_>>, first: Row, rows: u32) -> Result<(), FreeError> {
        let block = first.block();
        let word = self.map.word(block);
        let seen = word.peek();
        let at = |i: u32| Row(first.0 + i);
        if !seen.is(State::Normal) {
            return Err(not_normal(seen, self.map.frame(first, 0)));
        }
        for row in (0..rows).map(at) {
            let own = me.and_then(|me| me.kept_of(row)).unwrap_or(0);
            let free = self.map.zeros(row) | own | self.leased_elsewhere(me, seen, row);
            if free != 0 {
                return Err(FreeError::DoubleFree(self.map.frame(row, free.trailing_zeros())));
            }
        }
        // All bits first, then the count (I1).
        let good = (0..rows).map(|i| ones(self.map.release(at(i), !0))).sum();
        let was = word.give(good);
        self.gave(me, block, was, good);
        if good == rows * 64 { Ok(()) } else { Err(FreeError::DoubleFree(self.map.frame(first, 0))) }
    }

    /// Give the map all that this CPU keeps, and hold nothing any more; quarantine and lanes apart.
    pub(crate) fn give_up_all(&self, me: Me<'_>) {
        let (hot, cold) = (&me.hot, &me.cold);
        for kept in hot.lease.iter().chain(&hot.accumulators).chain(&cold.shelf).chain(&cold.away) {
            let (row, mask) = kept.empty();
            self.give_back(me, row, mask);
        }
        for current in hot.current.iter().chain([&cold.zero_block]) {
            let block = Block(current.load(OWN));
            current.store(Block::NONE.0, OWN);
            if block != Block::NONE {
                self.unhold(block);
            }
        }
        self.stop_zeroing(me);
        self.give_up_huge(me);
    }

    /// This CPU has nothing to do: it lets go of what others may want. Zeroed frames stay at hand, unless memory is short.
    pub fn park(&self, pin: &Pinned<'_>) {
        let me = self.me(pin);
        self.safe_point_of(me);
        if self.pressure(me.node()) != Pressure::None {
            self.give_up_all(me);
            return self.give_up_lanes(me);
        }
        for kept in me.hot.lease.iter().chain(&me.hot.accumulators).chain(&me.cold.away) {
            let (row, mask) = kept.empty();
            self.give_back(me, row, mask);
        }
        for current in &me.hot.current {
            let block = Block(current.load(OWN));
            current.store(Block::NONE.0, OWN);
            if block != Block::NONE {
                self.unhold(block);
            }
        }
        self.give_up_huge(me);
    }

    /// Whether this CPU has frames or holds blocks that it could give to the map.
    pub(crate) fn keeps_anything(&self, me: Me<'_>) -> bool {
        let (hot, cold) = (&me.hot, &me.cold);
        let mut held = hot.current.iter().chain([&cold.zero_block, &cold.clearing]);
        held.any(|block| block.load(OWN) != Block::NONE.0)
            || hot.mode() & LANES != 0
            || self.cached_on(me.id()) > cold.ring.frames()
    }

    /// Give the map all that this CPU keeps.
    pub fn drain(&self, pin: &Pinned<'_>) {
        let me = self.me(pin);
        self.give_up_all(me);
        self.give_up_lanes(me);
    }
}

/// What is wrong with freeing a single frame of a block with the word `w`, which isn't in service for such.
fn not_normal(w: Word, frame: Frame) -> FreeError {
    if w.is(State::Hole) { FreeError::NotManaged(frame) } else { FreeError::WrongState(frame) }
}

const ROW_MOST: u32 = 64;
const _: () = assert!(FRAMES_PER_BLOCK == ROW_MOST * BLOCK_ROWS);

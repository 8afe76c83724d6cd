//! When memory is short: watermarks, draining, and reclaiming.
//!
//! **Watermarks.** Each node has two. Below `high` CPUs are *sparing*: they hold no block, keep few frames of a row, and
//! give back at once what is freed. Below `min` ordinary requests are refused, below half of it all but those that memory is
//! freed with. What a node has free is the difference of exact counters, one a CPU, and adding them up costs a line a CPU.
//! So a CPU that has looked is *granted* some frames that it may take without looking again. A node has a *scale* b: at the
//! last look, at least 2^b frames were free above `high`. A grant is 2^b / 2n frames for each of n CPUs, and holds as long as
//! the scale stays what it was. What a CPU takes is subtracted from what is left of its grant; what it gives back, whoever took
//! it, is added, but never above the grant. So since the last look, whoever's it was, a CPU has taken at most what was left of
//! its grant then more than it has given back; and as nothing is left to all of them together but half of 2^b, and who
//! takes more than its grant looks first, and counts that as taken, all CPUs together can't cross `high` unseen. (Without the
//! bound what one takes, and another gives back, would be left to the other while the first is granted anew.) A CPU that takes
//! and gives back in turn never looks, so that it reads no line of the others'. Whoever looks
//! and finds less than 2^b, or 2^(b+2) and more, changes the scale, which takes back all grants; between the two it stays, so
//! that it doesn't waver. A CPU takes more by what it is in the middle of, or has just read the old scale for: a row or a run.
//! A look reads one counter after the other: what is taken on one CPU and given back on another meanwhile, again and again, may be
//! counted as free as often, until somebody looks again. Memory that goes out of service is looked at when it is gone, and counts as free
//! until then.
//!
//! **Draining.** What a CPU keeps, nobody else can take. A request to drain is a number in a line of the CPU's; at its next
//! *safe point* (any slow path, the way to user mode, the way to idleness) the CPU gives all it keeps to the map and says
//! which request it has met. Whoever waits for that isn't pinned, and meets its own requests meanwhile, so that two CPUs
//! that drain each other go on. A CPU drains before it halts, so that an idle one keeps nothing.
//!
//! **Reclaiming** is for callers that may wait: free something, drain everybody, try again, three times.

use crate::primitive::Ordering;
use percpu::{CpuId, CpuSet, Pinned, Unpinned};

use crate::{
    AllocError, Ctx, Frames, Node, Req, Run,
    cpu::{Me, OWN, SPARING, count},
};

/// The limits of a node, in free frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Watermarks {
    /// Ordinary requests stop here.
    pub min: u64,
    /// CPUs are sparing below.
    pub high: u64,
}

/// How short a node is of frames.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Pressure {
    /// More than `high` are free.
    None,
    /// At most `high` are free.
    Low,
    /// At most `min` are free: ordinary requests fail.
    Min,
}

/// `min` is this part of a node.
const MIN_PART: u64 = 64;
/// `high` is at most this part of a node above `min`.
const HIGH_PART: u64 = 16;
/// Frames that `high` is above `min`, for each CPU, if the node is large enough.
const HIGH_PER_CPU: u64 = 1024;
/// Flushes between two looks at how much is free while memory is short.
const LOOK_EVERY: u64 = 8;
/// Flushes between two tries to give blocks of others back; a multiple of [`LOOK_EVERY`].
const RETURN_EVERY: u64 = 64;
/// Rounds of reclaiming.
const ROUNDS: usize = 3;

/// The scale of a node that had `scale` and has `spare` frames above `high`.
fn rescale(scale: u32, spare: u64) -> u32 {
    match scale.checked_sub(1) {
        Some(b) if spare >> b != 0 && spare >> b < 4 => scale,
        _ => spare.checked_ilog2().map_or(0, |b| b + 1),
    }
}

/// Whoever can make memory free, and CPUs come to a safe point.
pub trait Reclaim {
    /// Free what isn't needed, `need` frames or more if possible; false if there was nothing. Called with nothing pinned; it
    /// may sleep, and allocate with [`Ctx::Reserve`] only.
    fn reclaim(&self, need: u64) -> bool;
    /// Make the CPUs come to a safe point soon, those that are idle too.
    fn poke(&self, cpus: &CpuSet);
    /// Wait a little for them; false when that has been long enough. `turn` counts from 0.
    fn wait(&self, turn: u32) -> bool;
}

impl Frames<'_> {
    pub(crate) fn watermarks_for(total: u64, cpus: u64) -> Watermarks {
        let min = total.div_ceil(MIN_PART);
        Watermarks { min, high: min + (HIGH_PER_CPU * cpus).min(total / HIGH_PART) }
    }

    /// The limits of `node`.
    pub fn watermarks(&self, node: Node) -> Watermarks {
        let level = &self.nodes[node.index()].level.0;
        // Relaxed: a number that changes when frames are plugged.
        Self::watermarks_for(level.total.load(Ordering::Relaxed), self.cpus.len() as u64)
    }

    /// How short `node` is, as was last seen.
    pub fn pressure(&self, node: Node) -> Pressure {
        // Relaxed: a hint.
        match self.nodes[node.index()].level.0.now.load(Ordering::Relaxed) {
            0 => Pressure::None,
            1 => Pressure::Low,
            _ => Pressure::Min,
        }
    }

    /// How short the machine is: as its best node.
    pub fn overall_pressure(&self) -> Pressure {
        self.with_memory().map(|node| self.pressure(node)).min().unwrap_or(Pressure::Min)
    }

    /// The nodes that have memory.
    fn with_memory(&self) -> impl Iterator<Item = Node> + '_ {
        self.topology.all().iter().filter(|node| self.has_memory(*node))
    }

    /// Whether every node that has memory is down to `min`, so that ordinary requests fail. Costs a line a CPU while memory is short, and
    /// otherwise one a node.
    #[inline]
    pub fn is_exhausted(&self) -> bool {
        // What was last seen comes first: it is a word, and mostly the answer.
        self.topology.all().iter().all(|node| self.pressure(node) != Pressure::None || !self.has_memory(node))
            && self.is_down()
    }
    /// The same, counted.
    #[cold]
    fn is_down(&self) -> bool {
        self.with_memory().all(|node| {
            self.pressure(node) != Pressure::None
                && u64::try_from(self.free_in(node)).unwrap_or(0) <= self.watermarks(node).min
        })
    }
    fn has_memory(&self, node: Node) -> bool {
        // Relaxed: as in `watermarks`.
        self.nodes[node.index()].level.0.total.load(Ordering::Relaxed) > 0
    }

    /// How many of `want` frames of `node` may be taken: all, or what is left above the limit of `ctx`.
    pub(crate) fn allowance(&self, me: Me<'_>, node: Node, ctx: Ctx, want: u32) -> u32 {
        let local = node == me.node();
        let left = me.cold.unchecked.load(OWN);
        // Relaxed: read at every refill, written when it changes; see the module for who sees it late.
        let scale = self.nodes[node.index()].level.0.scale.load(Ordering::Relaxed);
        if local && left >= want && me.cold.granted_at.load(OWN) == scale {
            return want;
        }
        let free = self.look(me, node, want);
        let Watermarks { min, .. } = self.watermarks(node);
        let floor = match ctx {
            Ctx::Normal => min,
            Ctx::Atomic => min / 2,
            Ctx::Reserve => 0,
        };
        u64::from(want).min(free.saturating_sub(floor)) as u32
    }

    /// Count what is free in `node`, of which `want` may be taken next, and act on it: the node's pressure, and if it is this CPU's
    /// node how sparing the CPU is and how much it may take until it looks again.
    pub(crate) fn look(&self, me: Me<'_>, node: Node, want: u32) -> u64 {
        let level = &self.nodes[node.index()].level.0;
        // Relaxed, here and below: numbers. That it has not changed since is asked before it is.
        let scale = level.scale.load(Ordering::Relaxed);
        let free = u64::try_from(self.free_in(node)).unwrap_or(0);
        count(&me.cold.counts.looks, 1);
        let Watermarks { min, high } = self.watermarks(node);
        let pressure = if free > high {
            Pressure::None
        } else if free > min {
            Pressure::Low
        } else {
            Pressure::Min
        };
        let now = &level.now;
        // Relaxed, both: a hint, written only when it changes, as everybody reads it.
        if now.load(Ordering::Relaxed) != pressure as u32 {
            now.store(pressure as u32, Ordering::Relaxed);
        }
        // What is taken next is not there for the others' grants.
        let want = if sync::mutant!("frames-run-unseen") { 0 } else { u64::from(want) };
        let rescaled = rescale(scale, free.saturating_sub(high + want));
        // If somebody else was quicker, nothing is granted.
        let agreed = rescaled == scale
            || level.scale.compare_exchange(scale, rescaled, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if node == me.node() {
            let grant = (1u64 << rescaled) / 2 / (2 * self.cpus.len() as u64);
            let grant = if agreed { u32::try_from(grant).unwrap_or(u32::MAX) } else { 0 };
            me.cold.unchecked.store(grant, OWN);
            me.cold.grant.store(grant, OWN);
            me.cold.granted_at.store(rescaled, OWN);
            // A CPU whose node has no memory is as short as the best of the others.
            let pressure = if high == 0 { self.overall_pressure() } else { pressure };
            me.hot.set_mode(SPARING, self.crowded || pressure != Pressure::None);
        }
        free
    }

    /// `n` frames of `node` were taken from the map, or given back to it (negative): what this CPU may take unseen goes down
    /// with them, and up again, to what it was granted.
    #[inline]
    pub(crate) fn spend(&self, me: Me<'_>, node: Node, n: i64) {
        let cold = &me.cold;
        // Relaxed: as in `allowance`.
        let scale = self.nodes[node.index()].level.0.scale.load(Ordering::Relaxed);
        if node != me.node() || cold.granted_at.load(OWN) != scale {
            return;
        }
        let most = if sync::mutant!("frames-grant-grows") { u32::MAX } else { cold.grant.load(OWN) };
        let left = (i64::from(cold.unchecked.load(OWN)) - n).clamp(0, i64::from(most));
        cold.unchecked.store(left as u32, OWN);
    }

    /// Frames of a block of `node` were given to the map.
    #[inline]
    pub(crate) fn flushed(&self, me: Me<'_>, node: Node) {
        let flushes = me.cold.counts.flushes.load(OWN) + 1;
        me.cold.counts.flushes.store(flushes, OWN);
        if flushes.is_multiple_of(LOOK_EVERY) {
            self.consider(me, node, flushes);
        }
    }

    /// After so many flushes, see whether memory is short, or more than enough.
    #[inline(never)]
    fn consider(&self, me: Me<'_>, node: Node, flushes: u64) {
        if self.pressure(node) != Pressure::None || me.is_sparing() {
            self.look(me, node, 0);
        }
        if flushes.is_multiple_of(RETURN_EVERY) {
            self.give_home(me);
        }
    }

    /// A moment at which this CPU is in the middle of nothing: it does what others have asked of it. Call it on the way to
    /// user mode, before idling, and after each tick.
    #[inline]
    pub fn safe_point(&self, pin: &Pinned<'_>) {
        let cpu = self.me(pin);
        // Relaxed: whether it is worth a call; what is acted on is read there.
        if cpu.asked.drain.load(Ordering::Relaxed) != cpu.told.drained.load(OWN) {
            self.safe_point_of(self.me(pin));
        }
    }

    #[inline]
    pub(crate) fn safe_point_of(&self, me: Me<'_>) {
        // Acquire: what the asker did comes before; partner of `request_drain`.
        let asked = me.asked.drain.load(Ordering::Acquire);
        if asked != me.told.drained.load(OWN) {
            self.meet(me, asked);
        }
    }

    /// Do what the request to drain of that number asks for.
    #[cold]
    fn meet(&self, me: Me<'_>, asked: u64) {
        self.give_up_all(me);
        self.give_up_lanes(me);
        count(&me.cold.counts.drains, 1);
        // Release: all that was given up comes before; partner of `drained`.
        let order =
            if sync::mutant!("frames-relaxed-drained") { Ordering::Relaxed } else { Ordering::Release };
        me.told.drained.store(asked, order);
    }

    /// Ask CPUs to give the map what they keep, at their next safe point; the number of the request. The caller makes them
    /// come to one.
    pub fn request_drain(&self, cpus: &CpuSet) -> u64 {
        // Acquire and Release: a CPU that a later request has told already isn't told of this one, which then goes with that.
        let number = self.drains.0.fetch_add(1, Ordering::AcqRel) + 1;
        for cpu in cpus.iter().filter_map(|cpu| self.cpus.get(cpu.index())) {
            // Release: what the caller did comes before what it is asked for; partner of `safe_point_of`.
            cpu.asked.drain.fetch_max(number, Ordering::Release);
        }
        number
    }

    /// Whether `cpu` has met the request `number`, or a later one.
    pub fn drained(&self, cpu: CpuId, number: u64) -> bool {
        // Acquire: what it gave up is in the map; partner of `safe_point_of`.
        self.cpus.get(cpu.index()).is_none_or(|cpu| cpu.told.drained.load(Ordering::Acquire) >= number)
    }

    /// All CPUs.
    pub fn everyone(&self) -> CpuSet {
        (0..self.cpus.len()).filter_map(CpuId::new).collect()
    }

    /// As [`Self::alloc`], for a caller that isn't pinned and can wait: what `reclaim` can free is freed, and what CPUs
    /// keep is given up, before it fails.
    ///
    /// Errors: as there; `Short` means that there is nothing left to reclaim.
    pub fn alloc_reclaim(
        &self,
        ctx: Unpinned<'_>,
        req: Req,
        reclaim: &dyn Reclaim,
    ) -> Result<Run, AllocError> {
        let mut result = self.alloc(&ctx.pin(), req);
        for _ in 0..ROUNDS {
            if !matches!(result, Err(AllocError::Short { .. })) {
                break;
            }
            reclaim.reclaim(1 << req.order);
            self.drain_all(ctx, reclaim);
            result = self.alloc(&ctx.pin(), req);
        }
        result
    }

    /// Have every CPU give up what it keeps, and wait for that as long as `reclaim` says; false if some did not.
    pub fn drain_all(&self, ctx: Unpinned<'_>, reclaim: &dyn Reclaim) -> bool {
        let everyone = self.everyone();
        let number = self.request_drain(&everyone);
        reclaim.poke(&everyone);
        let mut turn = 0;
        loop {
            // Our own requests, and those of others who wait for us.
            self.safe_point_of(self.me(&ctx.pin()));
            if everyone.iter().all(|cpu| self.drained(cpu, number)) {
                return true;
            }
            if !reclaim.wait(turn) {
                return false;
            }
            turn = turn.saturating_add(1);
        }
    }

    /// A tick has passed on this CPU: bounds follow demand, and what is too much goes home.
    pub fn tick(&self, pin: &Pinned<'_>) {
        let me = self.me(pin);
        self.safe_point_of(me);
        let refills = me.cold.counts.refills.load(OWN);
        let rows = refills.wrapping_sub(me.cold.refills_seen.load(OWN));
        me.cold.refills_seen.store(refills, OWN);
        // An average over about four ticks, in quarters of a row.
        let demand = me.cold.demand.load(OWN);
        let demand = demand - demand / 4 + rows;
        me.cold.demand.store(demand, OWN);
        let (share, fixed) = (me.cold.share.load(OWN), me.cold.fixed.load(OWN) != 0);
        if !fixed {
            let low = (2 * demand / 4) as i64;
            me.cold.low.store(low.clamp(16.min(share / 4), (share / 4).max(0)), OWN);
        }
        me.cold.batch.store(1, OWN);
        self.give_home(me);
        self.tick_zeroing(me);
    }

    /// Set the bounds of a CPU's unused memory, in frames: it fetches more below `low` and gives back above `high`. They are
    /// clamped: `low` to a quarter of the CPU's share, `high` to at least a block more than `low`.
    pub fn set_bounds(&self, cpu: CpuId, low: u64, high: u64) {
        let Some(cpu) = self.cpus.get(cpu.index()) else { return };
        let rows = |frames: u64| i64::try_from(frames / 64).unwrap_or(i64::MAX);
        let low = rows(low).min(cpu.cold.share.load(OWN) / 4);
        // Relaxed: numbers that are only compared with.
        cpu.cold.low.store(low, Ordering::Relaxed);
        cpu.cold.high.store(rows(high).max(low + 8), Ordering::Relaxed);
        cpu.cold.fixed.store(1, Ordering::Relaxed);
    }

    /// The bounds of a CPU, in frames; `None` if there is no such CPU.
    pub fn bounds(&self, cpu: CpuId) -> Option<(u64, u64)> {
        let cold = &self.cpus.get(cpu.index())?.cold;
        let frames = |rows: i64| u64::try_from(rows).unwrap_or(0).saturating_mul(64);
        Some((frames(cold.low.load(OWN)), frames(cold.high.load(OWN))))
    }

    /// Move memory between this CPU and others as if it had just found itself short, or rich. Gives blocks fetched and given.
    pub fn balance(&self, pin: &Pinned<'_>) -> (u64, u64) {
        let me = self.me(pin);
        let before = me.cold.counts.blocks_taken.load(OWN);
        me.cold.patience.store(0, OWN);
        self.refilled(me);
        let given = self.give_home(me);
        (me.cold.counts.blocks_taken.load(OWN) - before, u64::from(given))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_is_a_lower_bound_and_does_not_waver() {
        let mut scale = 0;
        for spare in (0..5000).chain((0..5000).rev()) {
            let now = rescale(scale, spare);
            assert!(now == 0 && spare == 0 || (1..4).contains(&(spare >> (now - 1))), "{spare}: {now}");
            scale = now;
        }
        let low = rescale(rescale(0, 1024), 1023);
        assert!((512..2047).all(|spare| rescale(low, spare) == low), "back and forth over a power of two");
    }
}

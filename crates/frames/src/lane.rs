//! Other algorithms than rows, side by side on a CPU: lanes.
//!
//! The map is the only truth about which frames are not free. A lane takes blocks out of it whole (it holds them, and all
//! their free frames are taken) and lets its algorithm hand those out; frees on this CPU of frames in such a block go to the
//! algorithm, frees elsewhere go to the map, where the next that adopts the block finds them. So a frame can be allocated
//! under one algorithm and freed under another, and changing algorithms moves nothing but the masks of the adopted blocks.
//!
//! While memory is short, or so small that there are few blocks for each CPU, lanes give up their blocks, and rows serve
//! instead.
//!
//! Lanes serve what can be moved, up to order 8; the rest is always leased by rows, so that it stays together, and larger
//! runs are whole blocks, of which there is nothing to choose.

use core::alloc::Layout;

use crate::primitive::{AtomicU64, UnsafeCell};
use addr::Frame;
use percpu::Pinned;

use crate::{
    AlgoKind, Class, FRAMES_PER_BLOCK, Frames, FreeError, HUGE_ORDER, Req, Run,
    algo::{AnyAlgo, MAX_BLOCKS, Refused},
    cpu::{LANES, Me, OWN, count},
    map::{BLOCK_ROWS, Block},
};

/// Kinds that have an instance.
pub(crate) const LANE_KINDS: usize = AlgoKind::ALL.len() - 1;

/// One algorithm on one CPU.
pub(crate) struct Lane<'m> {
    algo: UnsafeCell<Option<AnyAlgo<'m>>>,
    /// Free frames in it.
    free: AtomicU64,
}

// SAFETY: the cell is used by threads that are pinned to the lane's CPU only (`Frames::lane`), one at a time; they follow
// each other by way of the CPU's scheduler, which orders them.
unsafe impl Sync for Lane<'_> {}

impl Lane<'_> {
    pub(crate) fn new() -> Self {
        Self { algo: UnsafeCell::new(None), free: AtomicU64::new(0) }
    }
    /// Forget the algorithm and its memory, in whatever state they are.
    ///
    /// # Safety
    /// Nobody is in a call of the algorithm's CPU, nor goes on with one later.
    pub(crate) unsafe fn close(&self) {
        // SAFETY: nobody else uses the cell. What was in it isn't dropped: it may be half written, and has no drop glue.
        self.algo.with_mut(|algo| unsafe { algo.write(None) });
        self.free.store(0, OWN);
    }
    /// Free frames in it; from any CPU.
    pub(crate) fn free(&self) -> u64 {
        self.free.load(OWN)
    }
}

impl core::fmt::Debug for Lane<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Lane with {} free", self.free())
    }
}

/// Why an algorithm can't be chosen. Nothing has changed then.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SwitchError {
    /// The algorithm isn't open on this CPU, and no memory was given.
    NoMemory,
    /// The memory is smaller than [`Frames::lane_layout`], or not aligned to it.
    BadMemory,
}

impl core::fmt::Display for SwitchError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::NoMemory => "the algorithm needs memory on this CPU",
            Self::BadMemory => "the memory given to the algorithm is too small",
        })
    }
}

impl core::error::Error for SwitchError {}

/// What a change of the default algorithm moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SwitchReport {
    /// What it was before.
    pub from: AlgoKind,
    /// Frames that the CPU kept and gave to the map.
    pub cached: u64,
    /// Blocks that were evacuated.
    pub blocks: u32,
}

impl<'m> Frames<'m> {
    /// Memory that an algorithm needs on one CPU, for ever: none for rows.
    pub fn lane_layout(kind: AlgoKind) -> Layout {
        AnyAlgo::layout(kind, MAX_BLOCKS)
    }

    /// The lanes of CPU number `cpu`.
    pub(crate) fn lanes_of(&self, cpu: usize) -> &'m [Lane<'m>] {
        &self.lanes[cpu * LANE_KINDS..][..LANE_KINDS]
    }

    /// Call `f` with the algorithm, if it is open here.
    fn lane<R>(&self, me: Me<'_>, kind: AlgoKind, f: impl FnOnce(&mut AnyAlgo<'m>) -> R) -> Option<R> {
        let lane = &self.lanes[me.id().index() * LANE_KINDS + (kind as usize).checked_sub(1)?];
        let cell = lane.algo.get_mut();
        // SAFETY: `me` was made from a `Pinned` of this CPU, so nobody else is here; no call of `f` comes here again.
        let algo = unsafe { cell.deref() }.as_mut()?;
        let result = f(algo);
        lane.free.store(u64::from(algo.held().free_frames()), OWN);
        Some(result)
    }

    /// Whether an algorithm can be asked for on this CPU. Rows always can.
    pub fn is_open(&self, pin: &Pinned<'_>, kind: AlgoKind) -> bool {
        kind == AlgoKind::Row || self.lane(self.me(pin), kind, |_| ()).is_some()
    }

    /// Make an algorithm available on this CPU, for requests that name it. If it is already, the memory is not used.
    ///
    /// Errors: `BadMemory`.
    pub fn open_lane(
        &self,
        pin: &Pinned<'_>,
        kind: AlgoKind,
        memory: &'m mut [u8],
    ) -> Result<(), SwitchError> {
        if self.is_open(pin, kind) {
            return Ok(());
        }
        let layout = Self::lane_layout(kind);
        if memory.len() < layout.size() || memory.as_ptr().align_offset(layout.align()) != 0 {
            return Err(SwitchError::BadMemory);
        }
        let me = self.me(pin);
        let lane = &self.lanes[me.id().index() * LANE_KINDS + kind as usize - 1];
        let cell = lane.algo.get_mut();
        // SAFETY: as in `lane`.
        *unsafe { cell.deref() } = AnyAlgo::new(kind, MAX_BLOCKS, memory);
        // Single frames that this CPU keeps would hide from the algorithm that their block is whole again.
        self.give_up_all(me);
        Ok(())
    }

    /// Make `kind` this CPU's algorithm for requests that name none. Frames that are out stay where they are.
    ///
    /// Errors: as [`Self::open_lane`], or `NoMemory` if it would need memory.
    pub fn set_algo(
        &self,
        pin: &Pinned<'_>,
        kind: AlgoKind,
        memory: Option<&'m mut [u8]>,
    ) -> Result<SwitchReport, SwitchError> {
        if !self.is_open(pin, kind) {
            self.open_lane(pin, kind, memory.ok_or(SwitchError::NoMemory)?)?;
        }
        let me = self.me(pin);
        let from = AlgoKind::from_number(me.cold.algo.load(OWN));
        let kept = self.cached_on(me.id());
        self.give_up_all(me);
        let blocks = if from == kind { 0 } else { self.give_up_lane(me, from) };
        let cached = kept.saturating_sub(self.cached_on(me.id()));
        me.cold.algo.store(kind as u32, OWN);
        count(&me.cold.counts.switches, 1);
        Ok(SwitchReport { from, cached, blocks })
    }

    /// From now on `kind` serves requests on this CPU that name none; for a change with every thread that runs here, so
    /// what the algorithms hold stays where it is. It must be open.
    pub fn use_algo(&self, pin: &Pinned<'_>, kind: AlgoKind) {
        let me = self.me(pin);
        if me.cold.algo.load(OWN) == kind as u32 {
            return;
        }
        // What is at hand would be handed out before the algorithm is asked.
        for kept in me.cold.shelf.iter().chain([&me.hot.lease[Class::Movable as usize]]) {
            let (row, mask) = kept.empty();
            self.give_back(me, row, mask);
        }
        me.cold.algo.store(kind as u32, OWN);
    }

    /// The algorithm that serves `req` on this CPU, if it isn't rows.
    pub(crate) fn lane_of(&self, me: Me<'_>, req: &Req) -> Option<AlgoKind> {
        if req.order >= HUGE_ORDER || req.class != Class::Movable {
            return None;
        }
        let kind = req.lane.unwrap_or(AlgoKind::from_number(me.cold.algo.load(OWN)));
        (kind != AlgoKind::Row).then_some(kind)
    }

    /// A run by the algorithm, which adopts a block if it has none to serve it from. `None` too if it isn't open.
    pub(crate) fn alloc_in_lane(&self, me: Me<'_>, kind: AlgoKind, req: &Req) -> Option<Run> {
        let run = |frame| Run::new(frame, req.order);
        if let Some(frame) = self.lane(me, kind, |algo| algo.alloc(req.order))? {
            return Some(run(frame));
        }
        if me.is_sparing() {
            // Whole blocks are too much to keep.
            self.give_up_lanes(me);
            return None;
        }
        if kind == AlgoKind::Slab && req.order > 5 {
            return None;
        }
        let full = self.lane(me, kind, |algo| {
            let fewest = algo.held().blocks().min_by_key(|(_, free)| *free).map(|(first, _)| first);
            fewest.filter(|_| algo.held().blocks().count() >= MAX_BLOCKS)
        })?;
        if let Some(block) = full {
            self.give_up_block(me, kind, block);
        }
        // Fewer frames don't make adopting a block worth while.
        let need = (1 << req.order).max(16);
        if self.allowance(me, me.node(), req.ctx, FRAMES_PER_BLOCK) < FRAMES_PER_BLOCK {
            return None;
        }
        self.find(me, me.node(), Class::Movable, need, &mut |block| {
            self.adopt(me, kind, block).then_some(())?;
            let frame = self.lane(me, kind, |algo| algo.alloc(req.order))?;
            // If even so there is no such run, the block is given up, and is let go by whoever found it.
            frame.or_else(|| {
                self.return_block(me, kind, block);
                None
            })
        })
        .map(run)
    }

    /// Hand all free frames of `block`, which this CPU holds, to the algorithm.
    fn adopt(&self, me: Me<'_>, kind: AlgoKind, block: Block) -> bool {
        let mut free = [0; BLOCK_ROWS as usize];
        for (row, mask) in block.rows().zip(&mut free) {
            *mask = self.take_all(me, row);
        }
        let first = self.map.frame(block.row(0), 0);
        let adopted = self.lane(me, kind, |algo| algo.adopt(first, &free)).unwrap_or(false);
        if adopted {
            me.hot.set_mode(LANES, true);
        }
        adopted || {
            block.rows().zip(free).for_each(|(row, mask)| self.give_back(me, row, mask));
            false
        }
    }

    /// Give the free frames of `block` back to the map; it stays held.
    fn return_block(&self, me: Me<'_>, kind: AlgoKind, block: Block) {
        let first = self.map.frame(block.row(0), 0);
        if let Some(free) = self.lane(me, kind, |algo| algo.give_up(first)).flatten() {
            block.rows().zip(free).for_each(|(row, mask)| self.give_back(me, row, mask));
        }
    }

    fn give_up_block(&self, me: Me<'_>, kind: AlgoKind, first: Frame) {
        if let Some((row, _)) = self.map.locate(first) {
            self.return_block(me, kind, row.block());
            self.unhold(row.block());
        }
    }

    /// Give up all blocks of an algorithm; how many there were.
    fn give_up_lane(&self, me: Me<'_>, kind: AlgoKind) -> u32 {
        let mut blocks = 0;
        while let Some(first) = self.lane(me, kind, |algo| algo.most_free()).flatten() {
            self.give_up_block(me, kind, first);
            blocks += 1;
        }
        let holds = |kind| self.lane(me, kind, |algo| algo.most_free().is_some()) == Some(true);
        me.hot.set_mode(LANES, AlgoKind::ALL.into_iter().any(holds));
        blocks
    }

    /// Give up all blocks of all algorithms.
    pub(crate) fn give_up_lanes(&self, me: Me<'_>) {
        if me.hot.mode() & LANES != 0 {
            AlgoKind::ALL.into_iter().for_each(|kind| {
                self.give_up_lane(me, kind);
            });
        }
    }

    /// A run of order 0 to 8 comes back: if its block is in a lane of this CPU's, that takes it.
    pub(crate) fn free_in_lane(&self, me: Me<'_>, first: Frame, order: u32) -> Option<Result<(), FreeError>> {
        for kind in AlgoKind::ALL {
            match self.lane(me, kind, |algo| (algo.free(first, order), algo.held().free_in(first))) {
                None | Some((Err(Refused::NotHeld), _)) => {}
                Some((Err(Refused::DoubleFree), _)) => return Some(Err(FreeError::DoubleFree(first))),
                Some((Ok(()), free)) => {
                    if free == FRAMES_PER_BLOCK && me.is_sparing() {
                        self.give_up_block(me, kind, first);
                    }
                    return Some(Ok(()));
                }
            }
        }
        None
    }
}

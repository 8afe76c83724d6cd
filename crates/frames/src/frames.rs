//! The allocator: its parts put together, and the paths that every call takes.

use core::fmt;

use crate::primitive::{AtomicI64, AtomicU64, Ordering};
use addr::{DirectMap, Frame, PAGE_BYTES};
use percpu::{MAX_CPUS, Pinned};

use crate::{
    AllocError, FRAMES_PER_BLOCK, Fill, FrameRange, FreeError, HUGE_ORDER, MAX_ORDER, Node, NodeSet, Place,
    Req, Run, Topology,
    cpu::{Cpu, Hot, LANES, Me, NodeLines, OWN, SPARING},
    lane::Lane,
    layout::{self, Layout, Region},
    map::{Block, Line, Map, Row, run_bits},
    select::MOST_FETCHED,
    word::{Kind, Owner, Word},
};

/// What an allocator is made for.
#[derive(Clone, Copy, Debug)]
pub struct Config<'r, 'm> {
    /// The frames, ascending and apart. What lies between them isn't memory.
    pub ranges: &'r [FrameRange],
    /// How many CPUs will call: the first of all [`CpuId`](percpu::CpuId)s; 1 to [`MAX_CPUS`].
    pub cpus: usize,
    /// Which frames and CPUs are near each other.
    pub topology: &'m Topology,
}

/// How frames are zeroed: the only way in which the allocator ever touches one.
#[derive(Clone, Copy)]
pub struct Clear {
    /// Where a frame's bytes are.
    pub dm: DirectMap,
    /// Zeroes the page that it is given, which is used at once.
    at_once: unsafe fn(*mut u8),
    /// Zeroes a page that is used some time later: better without filling the cache with it. Complete when it returns.
    ahead: unsafe fn(*mut u8),
}

impl Clear {
    /// Frames are reached by `dm`, and zeroed in the plain way.
    pub fn new(dm: DirectMap) -> Self {
        Self { dm, at_once: zero_page, ahead: zero_page }
    }
    /// The same with ways that the machine knows better: at once, and ahead of need.
    ///
    /// # Safety
    /// Both write zeros to all of the page that they are given and to nothing else, and what they wrote is ordered like
    /// ordinary stores when they return.
    pub unsafe fn by(self, now: unsafe fn(*mut u8), ahead: unsafe fn(*mut u8)) -> Self {
        Self { at_once: now, ahead, ..self }
    }
    /// Zero a frame that the caller has to itself.
    pub fn now(&self, frame: Frame) {
        // SAFETY: the direct map reaches the frame, which the caller has to itself.
        unsafe { (self.at_once)(self.dm.ptr(frame.base())) }
    }
    pub(crate) fn ahead(&self, frame: Frame) {
        // SAFETY: as above.
        unsafe { (self.ahead)(self.dm.ptr(frame.base())) }
    }
}

impl fmt::Debug for Clear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clear")
    }
}

/// Zero a page, where the machine has no better way.
///
/// # Safety
/// `at` is a whole page that may be written, and nobody else uses it.
unsafe fn zero_page(at: *mut u8) {
    // SAFETY: the caller's.
    unsafe { at.write_bytes(0, PAGE_BYTES) }
}

/// A page-frame allocator. See the crate.
pub struct Frames<'m> {
    pub(crate) map: Map<'m>,
    pub(crate) cpus: &'m [Cpu],
    /// Of each CPU and node, the frames that the CPU took from the map less those that it gave back: exact.
    pub(crate) used: &'m [AtomicI64],
    pub(crate) used_stride: usize,
    pub(crate) nodes: &'m [NodeLines],
    pub(crate) regions: &'m [Region],
    pub(crate) topology: &'m Topology,
    pub(crate) clear: Clear,
    /// Of each CPU, one for each kind but rows.
    pub(crate) lanes: &'m [Lane<'m>],
    /// The most frames that a CPU keeps of a row when memory is short.
    pub(crate) sparing: u32,
    /// Whether there are so few blocks that CPUs must not keep any.
    pub(crate) crowded: bool,
    /// The number of the last drain that anybody asked for.
    pub(crate) drains: Line<AtomicU64>,
}

impl<'m> Frames<'m> {
    /// Bytes of buffer that [`Self::new`] needs: about 1.1 bits a frame between the lowest and the highest, and 3 KiB a CPU.
    pub fn meta_bytes(cfg: &Config<'_, '_>) -> usize {
        Layout::new(cfg).bytes().1
    }
    /// The part of [`Self::meta_bytes`] that grows with memory, in bytes.
    pub fn map_bytes(cfg: &Config<'_, '_>) -> usize {
        Layout::new(cfg).bytes().0
    }

    /// An allocator of the frames of `cfg`, all free. Panics if ranges are not ascending and apart, if there are no CPUs
    /// or more than [`MAX_CPUS`], or if `meta` is shorter than [`Self::meta_bytes`].
    ///
    /// # Safety
    /// `meta` is zeroed. The frames are memory that nobody else uses from now on, `meta` isn't in them, and `clear`
    /// reaches them if a zeroed frame is ever asked for.
    pub unsafe fn new(cfg: &Config<'_, 'm>, meta: &'m mut [u8], clear: Clear) -> Self {
        assert!(layout::ascending(cfg.ranges), "ranges of frames must be ascending and apart");
        assert!((1..=MAX_CPUS).contains(&cfg.cpus), "{} CPUs", cfg.cpus);
        let layout = Layout::new(cfg);
        // SAFETY: `meta` is zeroed, by the caller's promise.
        let tables = unsafe { layout::carve(meta, &layout, cfg) };
        let map = Map { base: layout.base, rows: tables.rows, words: tables.words, arenas: tables.arenas };
        let total: u64 = cfg.ranges.iter().map(FrameRange::frames).sum();
        let blocks: u32 = tables.regions.iter().map(|r| r.end.0 - r.start.0).sum();
        let frames = Self {
            map,
            cpus: tables.cpus,
            used: tables.used,
            used_stride: layout.used_stride(),
            nodes: tables.nodes,
            regions: tables.regions,
            topology: cfg.topology,
            clear,
            lanes: tables.lanes,
            sparing: (total / (128 * cfg.cpus as u64)).clamp(1, 64) as u32,
            crowded: (blocks as usize) < 4 * cfg.cpus,
            drains: Line(AtomicU64::new(0)),
        };
        frames.settle(cfg);
        frames
    }

    /// With nobody else about: every frame of the ranges is free and where it belongs.
    fn settle(&self, cfg: &Config<'_, '_>) {
        for range in cfg.ranges {
            let (mut at, end) = (range.start.number(), range.end.number());
            while at < end {
                let block = Block(((at - self.map.base) / u64::from(FRAMES_PER_BLOCK)) as u32);
                let next = self.map.base + u64::from(block.0 + 1) * u64::from(FRAMES_PER_BLOCK);
                let to = end.min(next);
                self.add_frames(block, at, to);
                at = to;
            }
        }
        for region in self.regions {
            let blocks = region.end.0 - region.start.0;
            let (mut frames, mut rows) = (0, 0);
            for block in (region.start.0..region.end.0).map(Block) {
                let w = self.map.word(block).peek();
                frames += u64::from(w.free());
                rows += Map::whole_rows(w.free());
                self.map.word(block).reset(w.with_owner(region.owner));
            }
            let level = &self.nodes[region.node.index()].level.0;
            level.total.fetch_add(frames, Ordering::Relaxed);
            let missing = u64::from(blocks) * u64::from(FRAMES_PER_BLOCK) - frames;
            level.missing.fetch_add(missing, Ordering::Relaxed);
            match region.owner.as_cpu() {
                Some(cpu) => {
                    self.cpus[cpu].hold_in(region.start, region.end);
                    self.cpus[cpu].add_unused(rows);
                }
                None => {
                    level.pooled.fetch_add(i64::from(blocks), Ordering::Relaxed);
                }
            }
        }
        for cpu in self.cpus {
            let share = cpu.unused();
            cpu.cold.share.store(share, OWN);
            cpu.cold.low.store((share / 4).min(16), OWN);
            cpu.cold.high.store((2 * share).max(MOST_FETCHED * 2), OWN);
            cpu.hot.set_mode(SPARING, self.crowded);
        }
    }

    /// The frames `from..to` of `block` are memory.
    fn add_frames(&self, block: Block, from: u64, to: u64) {
        let first = self.map.base + u64::from(block.0) * u64::from(FRAMES_PER_BLOCK);
        let word = self.map.word(block);
        let seen = word.peek();
        let n = (to - from) as u32;
        let fresh = seen == Word::HOLE;
        if n < FRAMES_PER_BLOCK {
            for row in block.rows() {
                let start = first + u64::from(row.in_block()) * 64;
                let bits = |a: u64, b: u64| {
                    (a.clamp(start, start + 64)..b.clamp(start, start + 64))
                        .fold(0, |m, f| m | 1 << (f - start))
                };
                let was = if fresh { 0 } else { self.map.zeros(row) };
                self.map.reset_row(row, was | bits(from, to));
            }
        }
        let free = if fresh { n } else { seen.free() + n };
        word.reset(Word::normal(free, Owner::POOL));
        if let Some(kind) = Kind::of(free) {
            self.map.set_hint(block, kind);
        }
    }

    /// How many CPUs may call.
    pub fn cpus(&self) -> usize {
        self.cpus.len()
    }
    /// Which frames and CPUs are near each other.
    pub fn topology(&self) -> &'m Topology {
        self.topology
    }
    /// How frames are zeroed, and where their bytes are.
    pub fn clear(&self) -> Clear {
        self.clear
    }

    #[inline]
    fn hot(&self, pin: &Pinned<'_>) -> &'m Hot {
        &self.me(pin).hot
    }
    #[inline]
    pub(crate) fn me(&self, pin: &Pinned<'_>) -> Me<'m> {
        &self.cpus[pin.cpu().index()]
    }

    /// A run of frames. Never touches them, unless they are to be zeroed; never waits.
    ///
    /// Errors: `Short` if there are none within the caller's reach without asking others for what they keep; `Never` for
    /// an order above [`MAX_ORDER`] or nodes that there are not.
    #[inline]
    pub fn alloc(&self, pin: &Pinned<'_>, req: Req) -> Result<Run, AllocError> {
        if req.is_plain()
            && let Some((row, bit)) = self.hot(pin).lease[req.class as usize].take(req.order)
        {
            return Ok(Run::new(self.map.frame(row, bit), req.order));
        }
        self.alloc_zeroed_or_slow(pin, &req)
    }

    /// A call of its own, so that what precedes it stays small enough to be inlined.
    #[inline(never)]
    fn alloc_zeroed_or_slow(&self, pin: &Pinned<'_>, req: &Req) -> Result<Run, AllocError> {
        if req.is_plain_zeroed() {
            let me = self.me(pin);
            if let Some((row, bit)) = me.take_zeroed() {
                return Ok(Run::new(self.map.frame(row, bit), 0));
            }
            if let Some((row, bit)) = me.take_to_zero(req.class) {
                return Ok(self.filled(Run::new(self.map.frame(row, bit), 0), Fill::Zeroed));
            }
        }
        self.alloc_slow(pin, req)
    }

    /// Give a run back, to the block that it is from, whoever owns that. Never touches the frames.
    ///
    /// Errors: what is wrong with the run, as far as it can be seen; it is lost then, and nothing else is.
    #[inline]
    pub fn free(&self, pin: &Pinned<'_>, run: Run) -> Result<(), FreeError> {
        let (first, order) = run.into_raw();
        self.free_raw(pin, first, order)
    }

    #[inline]
    pub(crate) fn free_raw(&self, pin: &Pinned<'_>, first: Frame, order: u32) -> Result<(), FreeError> {
        let Some((row, bit)) = self.map.locate(first) else { return Err(FreeError::NotManaged(first)) };
        let hot = self.hot(pin);
        if order <= 5 && hot.mode() == 0 {
            // Most frames go where one of their row went before.
            let kept = [hot.near(row), &hot.lease[0], &hot.lease[1]];
            if let Some(kept) = kept.into_iter().find(|c| c.row() == row) {
                return if kept.put(run_bits(order) << bit) {
                    Ok(())
                } else {
                    Err(FreeError::DoubleFree(first))
                };
            }
        }
        self.free_slow(pin, first, order)
    }

    #[inline]
    fn alloc_slow(&self, pin: &Pinned<'_>, req: &Req) -> Result<Run, AllocError> {
        let me = self.me(pin);
        if req.order > MAX_ORDER {
            return Err(AllocError::Never);
        }
        self.safe_point_of(me);
        if req.place == Place::Local {
            let need = 1 << req.order;
            return self.alloc_local(me, req).ok_or(AllocError::Short { node: me.node(), need });
        }
        self.alloc_placed(me, req)
    }

    /// From the nodes that `req` names.
    #[inline(never)]
    fn alloc_placed(&self, me: Me<'_>, req: &Req) -> Result<Run, AllocError> {
        let all = self.topology.all();
        let (first, among) = match req.place {
            Place::Local => (me.node(), all),
            Place::Prefer(node) => (node, all),
            Place::PreferAny(nodes, near) | Place::Bind(nodes, near) => {
                (near.unwrap_or(me.node()), nodes.intersection(all))
            }
            Place::Interleave(nodes) => (self.next_of(me, nodes.intersection(all)), all),
        };
        if !all.contains(first) || among.is_empty() {
            return Err(AllocError::Never);
        }
        let local = first == me.node() && among == all;
        let run = if local { self.alloc_local(me, req) } else { self.alloc_away(me, first, among, req) };
        let run = run.or_else(|| match req.place {
            Place::PreferAny(..) => self.alloc_away(me, first, all, req),
            _ => None,
        });
        run.ok_or(AllocError::Short { node: first, need: 1 << req.order })
    }

    /// From this CPU's blocks or such as it can get, of its own node first, and then of others.
    #[inline]
    fn alloc_local(&self, me: Me<'_>, req: &Req) -> Option<Run> {
        if req.order == HUGE_ORDER
            && let Some(run) = self.alloc_shelved_huge(me, req).or_else(|| self.alloc_next_huge(me, req))
        {
            return Some(run);
        }
        self.alloc_searching(me, req)
    }

    #[inline(never)]
    fn alloc_searching(&self, me: Me<'_>, req: &Req) -> Option<Run> {
        if let Some(kind) = self.lane_of(me, req)
            && let Some(run) = self.alloc_in_lane(me, kind, req)
        {
            return Some(self.filled(run, req.fill));
        }
        if req.fill == Fill::Zeroed
            && let Some(run) = self.alloc_zeroed(me, req)
        {
            return Some(run);
        }
        if req.order <= 5
            && let Some((row, bit)) = me.hot.lease[req.class as usize].take(req.order)
        {
            return Some(self.filled(Run::new(self.map.frame(row, bit), req.order), req.fill));
        }
        let find = || match req.order {
            0 => self.refill(me, req).map(|run| self.filled(run, req.fill)),
            _ => self.alloc_run(me, me.node(), req).or_else(|| {
                let others = self.topology.by_distance(me.node()).skip(1);
                others.filter_map(|node| self.alloc_run(me, node, req)).next()
            }),
        };
        // What this CPU keeps may be what is missing.
        find().or_else(|| self.give_up_anything(me).then(find).flatten())
    }

    /// Give the map all that this CPU keeps, lanes' blocks too; false if there was nothing.
    fn give_up_anything(&self, me: Me<'_>) -> bool {
        let keeps = self.keeps_anything(me);
        if keeps {
            self.give_up_all(me);
            self.give_up_lanes(me);
        }
        keeps
    }

    /// From the blocks of nodes other than this CPU's: those of `among`, nearest to `first` first.
    fn alloc_away(&self, me: Me<'_>, first: Node, among: NodeSet, req: &Req) -> Option<Run> {
        let nodes = || self.topology.by_distance(first).filter(|node| among.contains(*node));
        let find = || nodes().find_map(|node| self.alloc_from(me, node, req));
        find().or_else(|| self.give_up_anything(me).then(find).flatten())
    }

    fn alloc_from(&self, me: Me<'_>, node: Node, req: &Req) -> Option<Run> {
        if req.order > 0 {
            return self.alloc_run(me, node, req);
        }
        self.alloc_one_away(me, node, req).map(|run| self.filled(run, req.fill))
    }

    /// A run of more than one frame from `node`.
    fn alloc_run(&self, me: Me<'_>, node: Node, req: &Req) -> Option<Run> {
        match req.order {
            0..HUGE_ORDER => self.alloc_within_block(me, node, req).map(|run| self.filled(run, req.fill)),
            HUGE_ORDER => self.alloc_huge(me, node, req),
            _ => self.alloc_giant(me, node, req).map(|run| self.filled(run, req.fill)),
        }
    }

    /// `run` with what was asked for in it.
    pub(crate) fn filled(&self, run: Run, fill: Fill) -> Run {
        if fill == Fill::Zeroed {
            let first = run.first().number();
            (first..first + run.frames()).filter_map(Frame::new).for_each(|frame| self.clear.now(frame));
        }
        run
    }

    #[inline(never)]
    fn free_slow(&self, pin: &Pinned<'_>, first: Frame, order: u32) -> Result<(), FreeError> {
        let me = self.me(pin);
        let (row, bit) = self.checked(first, order)?;
        if order > HUGE_ORDER {
            return self.free_giant(Some(me), row.block(), order);
        }
        if order == HUGE_ORDER {
            return self.free_huge(Some(me), row.block());
        }
        if me.hot.mode() & LANES != 0
            && let Some(result) = self.free_in_lane(me, first, order)
        {
            return result;
        }
        let result = if order > 5 {
            self.free_rows(Some(me), row, 1 << (order - 6))
        } else {
            self.free_small(me, row, run_bits(order) << bit)
        };
        self.safe_point_of(me);
        result
    }

    /// As [`Self::free`], from any context: an interrupt handler, a thread that isn't pinned. It leaves each CPU's own words
    /// alone, and so costs two read-modify-writes and more.
    ///
    /// Errors: as [`Self::free`].
    pub fn free_shared(&self, run: Run) -> Result<(), FreeError> {
        let (first, order) = run.into_raw();
        let (row, bit) = self.checked(first, order)?;
        match order {
            0..=5 => self.flush(None, row, run_bits(order) << bit),
            6..HUGE_ORDER => self.free_rows(None, row, 1 << (order - 6)),
            HUGE_ORDER => self.free_huge(None, row.block()),
            _ => self.free_giant(None, row.block(), order),
        }
    }

    /// Where a run is, if there can be such a run.
    pub(crate) fn checked(&self, first: Frame, order: u32) -> Result<(Row, u32), FreeError> {
        if order > MAX_ORDER || !first.number().is_multiple_of(1 << order) {
            return Err(FreeError::WrongState(first));
        }
        let at = self.map.locate(first).ok_or(FreeError::NotManaged(first))?;
        // The map has whole blocks.
        let inside =
            |n: u64| Frame::new(first.number() + n - 1).is_some_and(|f| self.map.locate(f).is_some());
        if order <= HUGE_ORDER || inside(1 << order) { Ok(at) } else { Err(FreeError::NotManaged(first)) }
    }

    /// The node whose turn it is.
    fn next_of(&self, me: Me<'_>, nodes: NodeSet) -> Node {
        let turn = me.cold.turn.load(OWN);
        me.cold.turn.store(turn.wrapping_add(1), OWN);
        nodes.iter().nth(turn as usize % nodes.len().max(1)).unwrap_or(me.node())
    }

    /// Count that this CPU took `n` frames of `block` from the map, or gave them back (negative).
    #[inline]
    pub(crate) fn count_used(&self, me: Option<Me<'_>>, block: Block, n: i64) {
        let node = self.node_of(block);
        let Some(me) = me else {
            // Relaxed: a count.
            self.nodes[node.index()].shared.0.fetch_add(n, Ordering::Relaxed);
            return;
        };
        let word = &self.used[me.id().index() * self.used_stride + node.index()];
        word.store(word.load(OWN) + n, OWN);
        self.spend(me, node, n);
    }
    /// The whole rows that are free in a block of `owner`'s have become `rows` more.
    pub(crate) fn count_unused(&self, me: Option<Me<'_>>, owner: Owner, rows: i64) {
        let Some(cpu) = owner.as_cpu() else { return };
        match me {
            _ if rows == 0 => {}
            Some(me) if me.id().index() == cpu => me.add_unused(rows),
            // Relaxed: an estimate.
            _ => {
                self.cpus[cpu].asked.unused.fetch_add(rows, Ordering::Relaxed);
            }
        }
    }
    /// Frames of `node` that are free in the map: exact while nobody allocates or frees.
    pub(crate) fn free_in(&self, node: Node) -> i64 {
        let total = self.nodes[node.index()].level.0.total.load(Ordering::Relaxed) as i64;
        let used = self.used.iter().skip(node.index()).step_by(self.used_stride);
        let shared = self.nodes[node.index()].shared.0.load(Ordering::Relaxed);
        total - shared - used.map(|n| n.load(Ordering::Relaxed)).sum::<i64>()
    }
    /// The node of a block.
    #[inline]
    pub(crate) fn node_of(&self, block: Block) -> Node {
        if self.nodes.len() == 1 {
            Node::FIRST
        } else {
            self.region_of(block).map_or(Node::FIRST, |r| r.node)
        }
    }
    /// What the block was part of at the beginning.
    pub(crate) fn region_of(&self, block: Block) -> Option<&'m Region> {
        let at = self.regions.partition_point(|r| r.end <= block);
        self.regions.get(at).filter(|r| r.start <= block)
    }
}

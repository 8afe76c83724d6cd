//! What a CPU keeps for itself, and the two lines through which others deal with it.
//!
//! ```text
//!   hot, cold   written by this CPU alone, by plain loads and stores
//!   told        written by this CPU at slow paths, read by others
//!   asked       written by others, by read-modify-writes
//! ```
//! All words are atomic since others may read them: to find a double free, or to count.

use crate::primitive::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering, fence};

use percpu::CpuId;

use crate::{
    Class, Node,
    map::{BLOCK_ROWS, Block, Line, Row, run_bits, runs},
    quarantine::Ring,
    word::Owner,
};

/// How the CPU's own words are read and written: Relaxed. Each is written by one CPU, whose threads follow each other by
/// way of its scheduler, which orders them; others who read want a number and find nothing through it.
pub(crate) const OWN: Ordering = Ordering::Relaxed;

/// A row of which this CPU has some free frames: their bits are 1 in the map, and here.
#[derive(Debug)]
pub(crate) struct Cached {
    row: AtomicU32,
    /// Odd while a lease gets another row, and another number afterwards.
    turn: AtomicU32,
    mask: AtomicU64,
}

impl Cached {
    pub(crate) fn new() -> Self {
        Self { row: AtomicU32::new(Row::NONE.0), turn: AtomicU32::new(0), mask: AtomicU64::new(0) }
    }
    #[inline]
    pub(crate) fn row(&self) -> Row {
        Row(self.row.load(OWN))
    }
    #[inline]
    pub(crate) fn mask(&self) -> u64 {
        self.mask.load(OWN)
    }
    #[inline]
    pub(crate) fn set(&self, row: Row, mask: u64) {
        self.row.store(row.0, OWN);
        self.mask.store(mask, OWN);
    }
    /// As [`Self::set`], of a lease, at which other CPUs may look meanwhile.
    pub(crate) fn renew(&self, row: Row, mask: u64) {
        let turn = self.turn.load(OWN);
        self.turn.store(turn.wrapping_add(1), OWN);
        // Release: whoever sees the row, the mask or what becomes of it sees that the turn has changed; partner of the
        // fence in `seen_of`.
        fence(Ordering::Release);
        self.set(row, mask);
        // Release: whoever sees the new turn sees both; partner of the load in `seen_of`.
        self.turn.store(turn.wrapping_add(2), Ordering::Release);
    }
    /// From any CPU: the frames of `row` that are in this lease, none if it gets another row at this moment. A mask that
    /// is read after the row may be that of the next one, which says nothing about `row`.
    pub(crate) fn seen_of(&self, row: Row) -> u64 {
        // Acquire: partner of the last store in `renew`.
        let turn = self.turn.load(Ordering::Acquire);
        let (of, mask) = (self.row(), self.mask());
        // Acquire: partner of the fence in `renew`.
        fence(Ordering::Acquire);
        let same = turn.is_multiple_of(2) && self.turn.load(OWN) == turn;
        if (same || sync::mutant!("frames-torn-lease")) && of == row { mask } else { 0 }
    }
    /// With nobody else about: it has nothing, whatever it was changing to.
    fn forget(&self) {
        self.turn.store(self.turn.load(OWN).next_multiple_of(2), OWN);
        if !sync::mutant!("frames-recover-leases") {
            self.set(Row::NONE, 0);
        }
    }
    /// Take everything out.
    pub(crate) fn empty(&self) -> (Row, u64) {
        let was = (self.row(), self.mask());
        self.set(Row::NONE, 0);
        was
    }
    /// Take 2^`order` aligned frames out, the lowest; `order` in 0..=5. Gives the bit of the first.
    #[inline]
    pub(crate) fn take(&self, order: u32) -> Option<(Row, u32)> {
        let mask = self.mask();
        let fits = runs(mask, order);
        if fits == 0 {
            return None;
        }
        let bit = fits.trailing_zeros();
        self.mask.store(mask & !(run_bits(order) << bit), OWN);
        Some((self.row(), bit))
    }
    /// Put frames in; false if one of them is in already.
    #[inline]
    pub(crate) fn put(&self, mask: u64) -> bool {
        let was = self.mask();
        if was & mask != 0 {
            return false;
        }
        self.mask.store(was | mask, OWN);
        true
    }
}

/// Accumulators of freed frames: one for each row of a block, so that those of one block don't get into each other's way.
pub(crate) const ACCUMULATORS: usize = BLOCK_ROWS as usize;
/// Rows of zeroed frames that are kept at hand.
pub(crate) const SHELF: usize = 4;
/// Huge runs that are kept at hand.
pub(crate) const HUGE_SHELF: usize = 4;
/// Runs of extents that a CPU remembers to hold blocks in.
pub(crate) const HOLDINGS: usize = 16;

/// [`Hot::mode`]: nothing is to be kept, as memory is short or small.
pub(crate) const SPARING: u32 = 1;
/// [`Hot::mode`]: an algorithm other than rows has blocks on this CPU.
pub(crate) const LANES: u32 = 2;

/// What every call looks at.
#[repr(align(128))]
#[derive(Debug)]
pub(crate) struct Hot {
    /// By class: the row that single frames and short runs are taken from.
    pub(crate) lease: [Cached; Class::COUNT],
    /// Freed frames on their way home, by the low bits of their row.
    pub(crate) accumulators: [Cached; ACCUMULATORS],
    /// By class: the block that is held to lease rows from.
    pub(crate) current: [AtomicU32; Class::COUNT],
    /// Bits that send calls to the slow path.
    pub(crate) mode: AtomicU32,
    /// Which CPU it is, and whose memory is near.
    id: CpuId,
    node: Node,
}

impl Hot {
    #[inline]
    pub(crate) fn mode(&self) -> u32 {
        self.mode.load(OWN)
    }
    pub(crate) fn set_mode(&self, bit: u32, on: bool) {
        let mode = self.mode();
        self.mode.store(if on { mode | bit } else { mode & !bit }, OWN);
    }
    pub(crate) fn current(&self, class: Class) -> Block {
        Block(self.current[class as usize].load(OWN))
    }
    pub(crate) fn set_current(&self, class: Class, block: Block) {
        self.current[class as usize].store(block.0, OWN);
    }
    /// The accumulator of `row`.
    #[inline]
    pub(crate) fn near(&self, row: Row) -> &Cached {
        &self.accumulators[row.0 as usize % ACCUMULATORS]
    }
    /// The frames of `row` that are leased, in either class; from any CPU.
    pub(crate) fn leased(&self, row: Row) -> u64 {
        self.lease.iter().fold(0, |m, l| m | l.seen_of(row))
    }
}

/// A run of blocks `start..end` in which the CPU may own some; empty if the two are the same.
#[derive(Debug)]
pub(crate) struct Holding {
    pub(crate) start: AtomicU32,
    pub(crate) end: AtomicU32,
}

/// What slow paths look at.
#[repr(align(128))]
#[derive(Debug)]
pub(crate) struct Cold {
    pub(crate) holdings: [Holding; HOLDINGS],
    /// From here on it looks for a wholly free block: below there is none of its own that it knows of, and what others
    /// made free there comes last.
    pub(crate) empty_from: AtomicU32,
    /// Rows of frames that are zero.
    pub(crate) shelf: [Cached; SHELF],
    /// A held block whose frames were zero when it was taken, and which of its rows are untouched since.
    pub(crate) zero_block: AtomicU32,
    pub(crate) zero_rows: AtomicU32,
    /// Frames that may be taken until the watermarks are looked at again, while the node has the scale at which it was
    /// granted.
    pub(crate) unchecked: AtomicU32,
    /// The scale at which that was granted, and how much it was.
    pub(crate) granted_at: AtomicU32,
    pub(crate) grant: AtomicU32,
    /// Refills until a CPU that found itself short, and nothing to take, asks again.
    pub(crate) patience: AtomicU32,
    /// Blocks to take at a time, 1 to 16.
    pub(crate) batch: AtomicU32,
    pub(crate) random: AtomicU64,
    /// Whose turn it is among the nodes that requests interleave.
    pub(crate) turn: AtomicU32,
    /// By class: a row of another node, for requests that name one.
    pub(crate) away: [Cached; Class::COUNT],
    /// Huge runs at hand, by their blocks.
    pub(crate) huge: [AtomicU32; HUGE_SHELF],
    /// Bounds on `unused`, in rows.
    pub(crate) low: AtomicI64,
    pub(crate) high: AtomicI64,
    /// The default algorithm.
    pub(crate) algo: AtomicU32,
    /// Rows that it had at the beginning.
    pub(crate) share: AtomicI64,
    /// 1 if the bounds were set by somebody, and don't follow demand.
    pub(crate) fixed: AtomicU32,
    /// Four times the rows leased in a tick, averaged; and what the count was at the last.
    pub(crate) demand: AtomicU64,
    pub(crate) refills_seen: AtomicU64,
    /// Zeroed frames: asked for since the tick, to be kept ready, ready.
    pub(crate) zero_wanted: AtomicU64,
    pub(crate) zero_goal: AtomicU64,
    pub(crate) zero_ready: AtomicU64,
    /// A held block that is being zeroed, and how many of its frames are.
    pub(crate) clearing: AtomicU32,
    pub(crate) cleared: AtomicU32,
    pub(crate) ring: Ring,
    pub(crate) counts: Counts,
}

/// Events on one CPU, counted at slow paths; all since the start.
#[derive(Debug)]
pub(crate) struct Counts {
    pub(crate) refills: AtomicU64,
    pub(crate) flushes: AtomicU64,
    pub(crate) remote_flushes: AtomicU64,
    pub(crate) transfers: AtomicU64,
    pub(crate) blocks_taken: AtomicU64,
    pub(crate) blocks_given: AtomicU64,
    pub(crate) away: AtomicU64,
    pub(crate) mixed: AtomicU64,
    pub(crate) zeroed_ahead: AtomicU64,
    pub(crate) zeroed_hits: AtomicU64,
    pub(crate) switches: AtomicU64,
    pub(crate) drains: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) looks: AtomicU64,
}

impl Counts {
    fn new() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            refills: zero(),
            flushes: zero(),
            remote_flushes: zero(),
            transfers: zero(),
            blocks_taken: zero(),
            blocks_given: zero(),
            away: zero(),
            mixed: zero(),
            zeroed_ahead: zero(),
            zeroed_hits: zero(),
            switches: zero(),
            drains: zero(),
            refused: zero(),
            looks: zero(),
        }
    }
}

/// Count `n` more, on the CPU whose word it is.
#[inline]
pub(crate) fn count(word: &AtomicU64, n: u64) {
    word.store(word.load(OWN).wrapping_add(n), OWN);
}

/// What the CPU tells others.
#[repr(align(128))]
#[derive(Debug)]
pub(crate) struct Told {
    /// Whole rows free in its blocks, but for what others did to them (`Asked::unused`): an estimate.
    pub(crate) unused: AtomicI64,
    /// The last request to drain that it has met.
    pub(crate) drained: AtomicU64,
}

/// What others tell the CPU.
#[repr(align(128))]
#[derive(Debug)]
pub(crate) struct Asked {
    /// Whole rows that others made free in its blocks, less what they took away with the blocks.
    pub(crate) unused: AtomicI64,
    /// The last request to drain.
    pub(crate) drain: AtomicU64,
}

/// The CPU that a call runs on.
pub(crate) type Me<'m> = &'m Cpu;

/// One CPU.
#[derive(Debug)]
pub(crate) struct Cpu {
    pub(crate) hot: Hot,
    pub(crate) cold: Cold,
    pub(crate) told: Told,
    pub(crate) asked: Asked,
}

impl Cpu {
    pub(crate) fn new(id: CpuId, node: Node) -> Self {
        let seed = (id.index() as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let cached = |_| Cached::new();
        Self {
            hot: Hot {
                lease: core::array::from_fn(cached),
                accumulators: core::array::from_fn(cached),
                current: core::array::from_fn(|_| AtomicU32::new(Block::NONE.0)),
                mode: AtomicU32::new(0),
                id,
                node,
            },
            cold: Cold {
                holdings: core::array::from_fn(|_| Holding {
                    start: AtomicU32::new(0),
                    end: AtomicU32::new(0),
                }),
                empty_from: AtomicU32::new(0),
                shelf: core::array::from_fn(cached),
                zero_block: AtomicU32::new(Block::NONE.0),
                zero_rows: AtomicU32::new(0),
                unchecked: AtomicU32::new(0),
                granted_at: AtomicU32::new(0),
                grant: AtomicU32::new(0),
                patience: AtomicU32::new(0),
                batch: AtomicU32::new(1),
                random: AtomicU64::new(seed | 1),
                turn: AtomicU32::new(0),
                away: core::array::from_fn(cached),
                huge: core::array::from_fn(|_| AtomicU32::new(Block::NONE.0)),
                low: AtomicI64::new(0),
                high: AtomicI64::new(0),
                algo: AtomicU32::new(0),
                share: AtomicI64::new(0),
                fixed: AtomicU32::new(0),
                demand: AtomicU64::new(0),
                refills_seen: AtomicU64::new(0),
                zero_wanted: AtomicU64::new(0),
                zero_goal: AtomicU64::new(0),
                zero_ready: AtomicU64::new(0),
                clearing: AtomicU32::new(Block::NONE.0),
                cleared: AtomicU32::new(0),
                ring: Ring::new(),
                counts: Counts::new(),
            },
            told: Told { unused: AtomicI64::new(0), drained: AtomicU64::new(0) },
            asked: Asked { unused: AtomicI64::new(0), drain: AtomicU64::new(0) },
        }
    }
    /// Which CPU it is.
    #[inline]
    pub(crate) fn id(&self) -> CpuId {
        self.hot.id
    }
    /// The node whose memory is near.
    #[inline]
    pub(crate) fn node(&self) -> Node {
        self.hot.node
    }
    /// As whose its blocks are marked.
    pub(crate) fn owner(&self) -> Owner {
        Owner::cpu(self.id().index())
    }
    /// Whether it is to keep as little as it can.
    pub(crate) fn is_sparing(&self) -> bool {
        self.hot.mode() & SPARING != 0
    }
    /// With nobody else about: it keeps nothing, holds nothing and owns nothing, whatever it was doing; bounds, demand and
    /// counts of events stay.
    pub(crate) fn forget(&self) {
        let Self { hot, cold, told, asked } = self;
        let kept = hot.lease.iter().chain(&hot.accumulators).chain(&cold.shelf).chain(&cold.away);
        kept.for_each(Cached::forget);
        let blocks = hot.current.iter().chain(&cold.huge).chain([&cold.zero_block, &cold.clearing]);
        blocks.for_each(|block| block.store(Block::NONE.0, OWN));
        let numbers = [
            &hot.mode,
            &cold.empty_from,
            &cold.zero_rows,
            &cold.cleared,
            &cold.unchecked,
            &cold.grant,
            &cold.granted_at,
            &cold.patience,
            &cold.algo,
        ];
        numbers.iter().for_each(|n| n.store(0, OWN));
        cold.batch.store(1, OWN);
        cold.zero_ready.store(0, OWN);
        for holding in &cold.holdings {
            holding.start.store(0, OWN);
            holding.end.store(0, OWN);
        }
        cold.ring.forget();
        told.unused.store(0, OWN);
        asked.unused.store(0, OWN);
        // It keeps nothing, as everyone who ever asked wanted.
        told.drained.store(asked.drain.load(OWN), OWN);
    }
    /// A zeroed frame that is at hand.
    #[inline]
    pub(crate) fn take_zeroed(&self) -> Option<(Row, u32)> {
        let found = self.cold.shelf[0].take(0)?;
        count(&self.cold.zero_wanted, 1);
        count(&self.cold.counts.zeroed_hits, 1);
        Some(found)
    }
    /// A frame that is at hand and not zeroed, if zeroed ones are not to be had.
    #[inline]
    pub(crate) fn take_to_zero(&self, class: Class) -> Option<(Row, u32)> {
        let shelves = self.cold.shelf.iter().all(|row| row.mask() == 0);
        if !shelves || self.cold.zero_ready.load(OWN) != 0 || self.hot.mode() != 0 {
            return None;
        }
        let found = self.hot.lease[class as usize].take(0)?;
        count(&self.cold.zero_wanted, 1);
        Some(found)
    }
    /// The frames of `row` that it keeps, but for those in quarantine and in lanes; `None` if no word has that row.
    #[inline]
    pub(crate) fn kept_of(&self, row: Row) -> Option<u64> {
        let mut kept = None;
        let mut look = |c: &Cached| {
            if c.row() == row {
                kept = Some(kept.unwrap_or(0) | c.mask());
            }
        };
        look(self.hot.near(row));
        self.hot.lease.iter().for_each(&mut look);
        self.cold.away.iter().for_each(&mut look);
        self.cold.shelf.iter().for_each(&mut look);
        kept
    }
    /// Whole rows free in its blocks: an estimate, from any CPU. Relaxed: see `OWN`.
    pub(crate) fn unused(&self) -> i64 {
        self.told.unused.load(OWN) + self.asked.unused.load(Ordering::Relaxed)
    }
    /// By the CPU itself: `rows` more are free in its blocks.
    pub(crate) fn add_unused(&self, rows: i64) {
        if rows != 0 {
            self.told.unused.store(self.told.unused.load(OWN) + rows, OWN);
        }
    }
    /// The next number of this CPU's random sequence (Marsaglia's xorshift).
    pub(crate) fn random(&self) -> u64 {
        let mut x = self.cold.random.load(OWN);
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.cold.random.store(x, OWN);
        x
    }
    /// The runs of blocks that it may own some of.
    pub(crate) fn holdings(&self) -> impl Iterator<Item = (Block, Block)> + '_ {
        let runs = self.cold.holdings.iter().map(|h| (Block(h.start.load(OWN)), Block(h.end.load(OWN))));
        // They are used from the first on.
        runs.take_while(|(start, end)| start != end)
    }
    /// Remember that it owns blocks of `start..end`. Without room for another run, the nearest is stretched to there: it
    /// has blocks of others then, but none of its own is forgotten.
    pub(crate) fn hold_in(&self, start: Block, end: Block) {
        let at = |h: &Holding| (h.start.load(OWN), h.end.load(OWN));
        let near = |&(a, b): &(u32, u32)| a != b && a <= end.0 && start.0 <= b;
        let slot = self.cold.holdings.iter().find(|h| near(&at(h)));
        let slot = slot.or_else(|| self.cold.holdings.iter().find(|h| at(h).0 == at(h).1));
        let gap = |(a, b): (u32, u32)| a.saturating_sub(end.0).max(start.0.saturating_sub(b));
        let slot = slot.or_else(|| self.cold.holdings.iter().min_by_key(|h| gap(at(h))));
        if let Some(h) = slot {
            let (a, b) = if at(h).0 == at(h).1 { (start.0, end.0) } else { at(h) };
            // A reader between the two stores sees a run that is too long or empty, and looks at the words anyway.
            h.start.store(a.min(start.0), OWN);
            h.end.store(b.max(end.0), OWN);
        }
    }
}

/// What CPUs share about one node.
#[derive(Debug)]
pub(crate) struct NodeLines {
    /// Read at every refill, written when it changes.
    pub(crate) level: Line<Level>,
    /// Held by the one CPU that fetches memory ahead of need.
    pub(crate) balancing: Line<AtomicBool>,
    /// Frames that were taken from the map less those that were given back, by who isn't on a CPU.
    pub(crate) shared: Line<AtomicI64>,
}

/// How much the node has, and how short it is.
#[derive(Debug)]
pub(crate) struct Level {
    /// [`crate::Pressure`] as a number.
    pub(crate) now: AtomicU32,
    /// About how much is free above `high`: 0, or 1 more than a logarithm (see `pressure`).
    pub(crate) scale: AtomicU32,
    /// Frames in service.
    pub(crate) total: AtomicU64,
    /// Frames that blocks in service lack, because they are no memory; never changes.
    pub(crate) missing: AtomicU64,
    /// Blocks that belong to the pool: at most an estimate.
    pub(crate) pooled: AtomicI64,
}

impl NodeLines {
    pub(crate) fn new() -> Self {
        Self {
            level: Line(Level {
                now: AtomicU32::new(0),
                scale: AtomicU32::new(0),
                total: AtomicU64::new(0),
                missing: AtomicU64::new(0),
                pooled: AtomicI64::new(0),
            }),
            balancing: Line(AtomicBool::new(false)),
            shared: Line(AtomicI64::new(0)),
        }
    }
}

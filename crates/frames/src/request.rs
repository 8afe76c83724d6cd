//! What callers ask for, what they get, and what can go wrong.

use core::{fmt, mem, num::NonZeroU32};

use addr::Frame;

use crate::{FRAMES_PER_BLOCK, HUGE_ORDER, MAX_ORDER, Node, NodeSet};

/// The frames `start..end`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameRange {
    /// First frame.
    pub start: Frame,
    /// First frame after the range.
    pub end: Frame,
}

impl FrameRange {
    /// How many frames there are.
    pub fn frames(&self) -> u64 {
        self.end.number().saturating_sub(self.start.number())
    }
}

/// Whether what a frame will hold can be moved to another one. The two kinds are kept in blocks of their own, as far as
/// there are blocks: a single frame that can't move keeps a whole block from ever being free again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Class {
    /// Memory of users.
    #[default]
    Movable = 0,
    /// Page tables, and what the kernel keeps.
    Unmovable = 1,
}

impl Class {
    /// Number of classes.
    pub const COUNT: usize = 2;
}

/// How deep into a node's last frames the caller may reach.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Ctx {
    /// Not below the node's `min` watermark.
    #[default]
    Normal,
    /// Not below half of it.
    Atomic,
    /// To the last frame: for what memory is freed with.
    Reserve,
}

/// What must be in the frames.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Fill {
    /// Anything.
    #[default]
    Any,
    /// Zeros.
    Zeroed,
}

/// Where the frames may come from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Place {
    /// This CPU's node, then others in order of their distance.
    #[default]
    Local,
    /// This node, then others in order of their distance from it.
    Prefer(Node),
    /// These nodes, the nearest to the second, or to this CPU, first; then any.
    PreferAny(NodeSet, Option<Node>),
    /// Likewise, and no other.
    Bind(NodeSet, Option<Node>),
    /// These nodes in turn, by the CPU's own count; then as [`Place::Local`].
    Interleave(NodeSet),
}

/// A way of keeping free frames.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum AlgoKind {
    /// Leases rows of 64 frames: see the crate.
    #[default]
    Row = 0,
    /// An AVL tree of free extents, as in the published system.
    Avl = 1,
    /// A binary buddy system.
    Buddy = 2,
    /// Lists of rows by size, hottest first.
    Slab = 3,
}

impl AlgoKind {
    /// All kinds.
    pub const ALL: [AlgoKind; 4] = [Self::Row, Self::Avl, Self::Buddy, Self::Slab];
    /// The name by which users choose it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Row => "row",
            Self::Avl => "avl",
            Self::Buddy => "buddy",
            Self::Slab => "slab",
        }
    }
    /// The kind of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
    pub(crate) fn from_number(n: u32) -> Self {
        Self::ALL.get(n as usize).copied().unwrap_or_default()
    }
}

/// What is asked for. The default is one frame of this node, with anything in it, for something that can be moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Req {
    /// log2 of the number of frames: 0..=[`MAX_ORDER`].
    pub order: u32,
    /// Whether the contents can be moved.
    pub class: Class,
    /// How urgent it is.
    pub ctx: Ctx,
    /// What must be in them.
    pub fill: Fill,
    /// Where they may come from.
    pub place: Place,
    /// The algorithm, if it isn't to be the CPU's default.
    pub lane: Option<AlgoKind>,
}

impl Req {
    /// As many frames as 2^`order`, the rest as by default.
    pub const fn order(order: u32) -> Self {
        Self {
            order,
            class: Class::Movable,
            ctx: Ctx::Normal,
            fill: Fill::Any,
            place: Place::Local,
            lane: None,
        }
    }
    /// Whether a shelf of zeroed frames can serve it without further questions. What is asked for by name of an algorithm
    /// is asked of that.
    #[inline]
    pub(crate) fn is_plain_zeroed(&self) -> bool {
        self.order == 0
            && matches!(self.fill, Fill::Zeroed)
            && matches!(self.place, Place::Local)
            && matches!(self.class, Class::Movable)
            && self.lane.is_none()
    }
    /// Whether a lease can serve it without further questions.
    #[inline]
    pub(crate) fn is_plain(&self) -> bool {
        self.order <= 5
            && matches!(self.fill, Fill::Any)
            && matches!(self.place, Place::Local)
            && matches!(self.lane, None | Some(AlgoKind::Row))
    }
}

/// 2^order adjacent frames, the first a multiple of that, with one owner. It is given back by
/// [`Frames::free`](crate::Frames::free); dropping it is a leak, which debug builds refuse.
#[must_use = "a run that is dropped is leaked"]
#[derive(PartialEq, Eq)]
pub struct Run {
    first: Frame,
    /// One more than its order, so that a run or none fits in two registers.
    order_and_1: NonZeroU32,
}

impl Run {
    #[inline]
    pub(crate) const fn new(first: Frame, order: u32) -> Self {
        Self { first, order_and_1: NonZeroU32::MIN.saturating_add(order) }
    }
    /// The first frame.
    #[inline]
    pub fn first(&self) -> Frame {
        self.first
    }
    /// log2 of the number of frames: 0..=[`MAX_ORDER`].
    #[inline]
    pub fn order(&self) -> u32 {
        self.order_and_1.get() - 1
    }
    /// Frames in the run.
    pub fn frames(&self) -> u64 {
        1 << self.order()
    }
    /// Give up the value but not the frames: the first of them, and the order.
    #[inline]
    pub fn into_raw(self) -> (Frame, u32) {
        let raw = (self.first, self.order());
        mem::forget(self);
        raw
    }
    /// Take back a run that [`Self::into_raw`] let go.
    ///
    /// # Safety
    /// The caller owns that run, and it was allocated with `order`.
    #[inline]
    pub unsafe fn from_raw(first: Frame, order: u32) -> Self {
        Self::new(first, order)
    }
    /// The two halves of a run of orders 1 to 8; larger ones are divided by [`Frames::split`](crate::Frames::split).
    ///
    /// Errors: the run itself, of any other order.
    pub fn halves(self) -> Result<[Run; 2], Run> {
        if !(1..HUGE_ORDER).contains(&self.order()) {
            return Err(self);
        }
        let (first, order) = self.into_raw();
        let second = Frame::new(first.number() + (1 << (order - 1))).unwrap_or(first);
        Ok([first, second].map(|f| Run::new(f, order - 1)))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // A test that fails drops what it holds; its own message is the one to show.
        #[cfg(feature = "testing")]
        if std::thread::panicking() {
            return;
        }
        if cfg!(debug_assertions) {
            panic!("{self:?} leaked: it was dropped");
        }
    }
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} order {}", self.first, self.order())
    }
}

/// Why there are no frames.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum AllocError {
    /// None without reaching into what others keep, or what the caller may not have: a caller that isn't pinned can
    /// have others give back what they keep, and free something. `need` is the number of frames.
    Short {
        /// The node that was asked first.
        node: Node,
        /// Frames.
        need: u32,
    },
    /// There is no such node, or the order is above [`MAX_ORDER`].
    Never,
}

impl fmt::Display for AllocError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short { node, need } => write!(f, "node {} is short of {need} frames", node.index()),
            Self::Never => f.write_str("no machine has such frames"),
        }
    }
}

impl core::error::Error for AllocError {}

/// Why a run can't be given back. The run stays what it was.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FreeError {
    /// This frame is free already.
    DoubleFree(Frame),
    /// This frame is part of a run of another order, or out of service.
    WrongState(Frame),
    /// This frame isn't one of the allocator's.
    NotManaged(Frame),
}

impl fmt::Display for FreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DoubleFree(frame) => write!(f, "{frame:?} was freed twice"),
            Self::WrongState(frame) => write!(f, "{frame:?} was freed in part, or under a wrong order"),
            Self::NotManaged(frame) => write!(f, "{frame:?} is no frame of this allocator"),
        }
    }
}

impl core::error::Error for FreeError {}

const _: () = assert!(1 << HUGE_ORDER == FRAMES_PER_BLOCK && MAX_ORDER == HUGE_ORDER + 9);

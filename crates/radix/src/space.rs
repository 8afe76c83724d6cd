//! What a family of trees shares, and what the words in their slots mean.

use core::{alloc::Layout, fmt, marker::PhantomData, ptr::NonNull};

use percpu::Pinned;
use refcache::Counted;
use sync::primitive::AtomicU64;

/// The most levels that a tree may have.
pub const MAX_LEVELS: usize = 8;

/// The surroundings of trees: their shape, memory for nodes, the domains that collect them, and the format of a slot's
/// value. A *value* is any word with LINK and LOCK clear; 0 is EMPTY. Here is the seam for other formats of leaves.
///
/// # Safety
/// [`Self::alloc`] gives writable memory of the layout that is nobody else's until it is given to [`Self::free`].
/// [`Self::refs`] and [`Self::rcu`] give the same domain each time, in the latter of which a CPU isn't idle while a [`Section`](crate::Section)
/// is open on it. Methods that return a value return one.
pub unsafe trait Space: Sync + Sized + 'static {
    /// How many bits of the key each level takes, from the root down: at least two levels, at most [`MAX_LEVELS`], each of
    /// 1 to 15 bits, and at most 63 in all. Keys are below 2 to the power of the sum.
    const BITS: &'static [u32];
    /// Counts the references to nodes.
    type Refs: Refs;
    /// What each node of [`Self::ANNEX_LEVEL`] has besides its slots, such as which CPUs use a block: made with the node,
    /// aligned to 64 bytes at most.
    type Annex: Default + Send + Sync + 'static;
    /// The level, from 1 on, whose nodes have an annex.
    const ANNEX_LEVEL: Option<usize> = None;

    /// The domain that counts.
    fn refs(&self) -> &Self::Refs;
    /// The domain whose sections keep nodes from being freed.
    fn rcu(&self) -> &rcu::kernel::Domain;
    /// Memory for a node, or `None`. Neither sleeps nor waits for a lock of a slot.
    fn alloc(&self, layout: Layout, pin: &Pinned<'_>) -> Option<NonNull<u8>>;
    /// Take memory back.
    ///
    /// # Safety
    /// It came from [`Self::alloc`] with this layout, and nobody uses it any more.
    unsafe fn free(&self, memory: NonNull<u8>, layout: Layout, pin: &Pinned<'_>);
    /// Called again and again while a slot's lock is held by somebody else, who may be waiting for this CPU: let it answer,
    /// such as requests for shootdowns. False to give up: the operation releases what it has and returns
    /// [`Error::Busy`].
    fn spin_wait(&self, pin: &Pinned<'_>) -> bool;

    /// The value for keys that begin `offset` after those of `value`: what a folded value means for a part of its span.
    fn part(value: u64, offset: u64) -> u64 {
        let _ = offset;
        value
    }
    /// `n` more slots have what `value` names, or fewer; what it names has a reference for each. Called with the slots'
    /// locks held; not for EMPTY.
    fn count(&self, value: u64, n: i32, pin: &Pinned<'_>) {
        let (_, _, _) = (value, n, pin);
    }
    /// A slot has `new` instead of `old`, one of which may be EMPTY: as two calls of [`Self::count`].
    #[inline]
    fn recount(&self, old: u64, new: u64, pin: &Pinned<'_>) {
        if new != 0 {
            self.count(new, 1, pin);
        }
        if old != 0 {
            self.count(old, -1, pin);
        }
    }
    /// Fork: a slot of another tree, of `keys` keys, gets the same pages as `value`, which stays. The value for the other.
    fn share(&self, value: u64, keys: u64, pin: &Pinned<'_>) -> u64 {
        let (_, _) = (keys, pin);
        value
    }
    /// Fork: a slot that has shared its page with others, as [`Self::share`] says, is no more.
    fn unshare(&self, value: u64, pin: &Pinned<'_>) {
        let (_, _) = (value, pin);
    }
    /// Fork: `value` for a slot whose page other trees may have as well.
    fn mark_shared(&self, value: u64) -> u64 {
        value
    }
    /// Fork: whether `value` has pages of its own, and so means another for each key.
    fn has_pages(&self, value: u64) -> bool {
        let _ = value;
        false
    }
    /// `value`, which was in a frozen node, for a slot that is one tree's alone again: what was known of the slot's use
    /// by that tree may have changed meanwhile.
    fn thawed(&self, value: u64) -> u64 {
        value
    }
}

/// The operations of [`refcache::Domain`], whatever the size of its caches.
pub trait Refs {
    /// As [`refcache::Domain::add`].
    ///
    /// # Safety
    /// As there.
    unsafe fn add<T: Counted>(&self, o: &T, n: i32, pin: &Pinned<'_>);
    /// As [`refcache::Domain::try_get`].
    ///
    /// # Safety
    /// As there.
    unsafe fn try_get<T: Counted>(&self, w: &AtomicU64, pin: &Pinned<'_>) -> Option<NonNull<T>>;
    /// As [`refcache::Domain::set_weak`].
    ///
    /// # Safety
    /// As there.
    unsafe fn set_weak<T: Counted>(&self, o: &T, w: Option<&AtomicU64>);
}

impl<const WAYS: usize> Refs for refcache::Domain<WAYS> {
    #[inline]
    unsafe fn add<T: Counted>(&self, o: &T, n: i32, pin: &Pinned<'_>) {
        // SAFETY: the caller's promise.
        unsafe { self.add(o, n, pin) }
    }
    #[inline]
    unsafe fn try_get<T: Counted>(&self, w: &AtomicU64, pin: &Pinned<'_>) -> Option<NonNull<T>> {
        // SAFETY: the caller's promise.
        unsafe { self.try_get(w, pin) }
    }
    #[inline]
    unsafe fn set_weak<T: Counted>(&self, o: &T, w: Option<&AtomicU64>) {
        // SAFETY: the caller's promise.
        unsafe { self.set_weak(o, w) }
    }
}

/// Why an operation did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// There is no memory for nodes or for the list of what is locked.
    OutOfMemory,
    /// A slot is locked by somebody else, and [`Space::spin_wait`] gave up.
    Busy,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutOfMemory => "there is no memory for nodes",
            Self::Busy => "a slot is locked",
        })
    }
}

impl core::error::Error for Error {}

/// Arithmetic of a space's shape. Level 0 is the root's.
pub(crate) struct Shape<S>(PhantomData<S>);

impl<S: Space> Shape<S> {
    pub(crate) const LEVELS: usize = S::BITS.len();
    pub(crate) const LEAF: usize = Self::LEVELS - 1;
    /// Bits of the key below a slot of each level.
    const SHIFT: [u32; MAX_LEVELS] = {
        assert!(2 <= Self::LEVELS && Self::LEVELS <= MAX_LEVELS);
        let (mut shift, mut level, mut sum) = ([0; MAX_LEVELS], Self::LEVELS, 0);
        while level > 0 {
            level -= 1;
            shift[level] = sum;
            sum += S::BITS[level];
            assert!(1 <= S::BITS[level] && S::BITS[level] <= 15 && sum <= 63);
        }
        shift
    };
    /// For a key with so many trailing zeros, or none but zeros, the levels, as bits, for which it is within a slot of the
    /// level above, and not at that slot's start. The root has no level above.
    pub(crate) const WITHIN: [u8; 65] = {
        assert!(MAX_LEVELS <= u8::BITS as usize);
        let (mut within, mut zeros) = ([0; 65], 0);
        while zeros < 64 {
            let mut level = 1;
            while level < Self::LEVELS {
                within[zeros] |= ((Self::SHIFT[level - 1] > zeros as u32) as u8) << level;
                level += 1;
            }
            zeros += 1;
        }
        within
    };
    /// Where a node's annex is in its memory: behind the slots.
    pub(crate) const fn annex(level: usize, head: usize, slot: usize) -> Option<usize> {
        const { assert!(align_of::<S::Annex>() <= 64) }
        match S::ANNEX_LEVEL {
            Some(of) if of == level => {
                Some((head + Self::fanout(level) * slot).next_multiple_of(align_of::<S::Annex>()))
            }
            _ => None,
        }
    }
    /// How many keys there are.
    pub(crate) const KEYS: u64 = 1 << (Self::SHIFT[0] + S::BITS[0]);

    /// Slots of a node.
    pub(crate) const fn fanout(level: usize) -> usize {
        1 << S::BITS[level]
    }
    /// Keys of a slot.
    pub(crate) const fn span(level: usize) -> u64 {
        1 << Self::SHIFT[level]
    }
    /// Where the slot for `key` is in its node.
    pub(crate) const fn index(level: usize, key: u64) -> usize {
        (key >> Self::SHIFT[level]) as usize & (Self::fanout(level) - 1)
    }
    /// The first key of the node that has a slot for `key`.
    pub(crate) const fn base(level: usize, key: u64) -> u64 {
        key & !((Self::span(level) << S::BITS[level]) - 1)
    }
}

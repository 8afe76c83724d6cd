//! What a tree's nodes lead to: a value, and whether the tree has given it up.

use alloc::{alloc as heap, boxed::Box};
use core::{alloc::Layout, fmt, ops::Deref, ptr::NonNull};

use percpu::Pinned;
use rcu::Head;
use sync::primitive::{AtomicU32, Ordering};

/// In the tree; given up, or never put in; given up but, as there was no memory, still found in the tree.
const LIVE: u32 = 0;
const DEAD: u32 = 1;
const TOMBSTONE: u32 = 2;
/// Was a tombstone, and is no longer found in the tree.
const PURGED: u32 = 3;

/// What a reader learns of an entry that it has found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    Live,
    Dead,
    Tombstone,
    Purged,
}

/// A value for a tree. Nodes are copied when the tree turns; the entry stays where it is, so it is the same entry as long as
/// it has the same address.
#[repr(C)]
pub struct Entry<V> {
    head: Head,
    state: AtomicU32,
    value: V,
}

impl<V> Entry<V> {
    /// An entry that is in no tree yet.
    pub fn new(value: V) -> Box<Self> {
        Box::new(Self::of(value))
    }
    /// As [`Self::new`], for who can do without: the value comes back if there is no memory.
    pub fn try_new(value: V) -> Result<Box<Self>, V> {
        // SAFETY: an entry has a size.
        let memory = unsafe { heap::alloc(Layout::new::<Self>()) }.cast::<Self>();
        let Some(memory) = NonNull::new(memory) else { return Err(value) };
        // SAFETY: the memory is an entry's and ours; it came from the allocator that boxes use.
        unsafe {
            memory.write(Self::of(value));
            Ok(Box::from_raw(memory.as_ptr()))
        }
    }
    fn of(value: V) -> Self {
        Self { head: Head::new(), state: AtomicU32::new(LIVE), value }
    }
    /// The value.
    pub fn into_inner(self) -> V {
        self.value
    }
    /// Whether the tree has given the entry up: set once the tree no longer leads to it, and never cleared.
    pub fn is_dead(&self) -> bool {
        self.state() != State::Live
    }
    pub(crate) fn state(&self) -> State {
        // Acquire: partner of the stores below: who sees that an entry is dead sees the tree without it.
        match self.state.load(Ordering::Acquire) {
            LIVE => State::Live,
            DEAD => State::Dead,
            TOMBSTONE => State::Tombstone,
            _ => State::Purged,
        }
    }
    /// The tree no longer leads to the entry.
    pub(crate) fn kill(&self) {
        // Release: after the store that has unlinked it; partner: the load in `state`. It comes before the next update's
        // first store, which is Release too: what a reader sees of that update, it sees with this.
        // Relaxed: only the writer stores.
        let buried = self.state.load(Ordering::Relaxed) == TOMBSTONE;
        self.state.store(if buried { PURGED } else { DEAD }, Ordering::Release);
    }
    /// The entry is given up, and the tree still leads to it.
    pub(crate) fn bury(&self) {
        // Release: as above.
        self.state.store(TOMBSTONE, Ordering::Release);
    }
    pub(crate) fn head(this: NonNull<Self>) -> NonNull<Head> {
        this.cast()
    }
}

/// Frees a retired entry.
///
/// # Safety
/// `head` is the first field of an entry that was a box's, and that nobody else uses.
pub(crate) unsafe fn free<V>(head: NonNull<Head>, _: &Pinned<'_>) {
    // SAFETY: the caller's promise.
    drop(unsafe { Box::from_raw(head.cast::<Entry<V>>().as_ptr()) });
}

impl<V> Deref for Entry<V> {
    type Target = V;
    fn deref(&self) -> &V {
        &self.value
    }
}

impl<V: fmt::Debug> fmt::Debug for Entry<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("state", &self.state())
            .field("value", &self.value)
            .finish_non_exhaustive()
    }
}

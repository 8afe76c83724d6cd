//! What waits for a grace period: objects that carry their own link, so that retiring allocates nothing.

use core::{cell::Cell, fmt, ptr, ptr::NonNull};

use percpu::Pinned;

/// Gives a retired object back; called once, by a thread that is pinned and in no section.
pub type Free = unsafe fn(NonNull<Head>, &Pinned<'_>);

/// The link that an object must have to be retired: 16 bytes, used from the call of
/// [`Domain::call`](crate::kernel::Domain::call) until the object is freed.
#[derive(Default)]
pub struct Head {
    next: Cell<*mut Head>,
    free: Cell<Option<Free>>,
}

// SAFETY: the cells are touched by the owner of a `Retired` alone, which moves from thread to thread as a value does.
unsafe impl Send for Head {}
// SAFETY: a shared `Head` gives access to nothing; see above.
unsafe impl Sync for Head {}

impl Head {
    /// A link that is in no list.
    pub const fn new() -> Self {
        Self { next: Cell::new(ptr::null_mut()), free: Cell::new(None) }
    }
}

impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Head")
    }
}

/// An object that no new reader can find, and that old ones may still be reading: it may only be handed to
/// [`Domain::call`](crate::kernel::Domain::call).
#[must_use = "an object that is retired and then forgotten is never freed"]
pub struct Retired {
    head: NonNull<Head>,
    bytes: usize,
}

/// What an object counts for at least, in bytes, where what waits is bounded.
pub const LEAST_BYTES: usize = 256;

// SAFETY: by the promise of `new` the object may be freed by any thread.
unsafe impl Send for Retired {}

impl Retired {
    /// Retire the object that `head` lies in.
    ///
    /// # Safety
    /// The object has been unlinked, by the calling thread or by one whose unlinking happens before: no section that
    /// begins after that finds it. It stays allocated until `free` is called, which may be on any thread; nobody else
    /// frees it or retires it again. `head` was derived from a pointer to the whole object, if `free` gives that back.
    pub unsafe fn new(head: NonNull<Head>, free: Free) -> Self {
        // SAFETY: the object is allocated, and its link is ours from here on.
        unsafe { head.as_ref() }.free.set(Some(free));
        Self { head, bytes: LEAST_BYTES }
    }
    /// It takes so many bytes of memory: for the bound of what waits.
    pub fn of_bytes(self, bytes: usize) -> Self {
        Self { bytes: bytes.max(LEAST_BYTES), ..self }
    }
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
    /// Where its link is, for a queue of another kind.
    #[cfg(feature = "std")]
    pub(crate) fn into_head(self) -> NonNull<Head> {
        self.head
    }
}

/// Free what was retired.
///
/// # Safety
/// As for its [`Free`]: once, and no section may still find it. `head` is of a [`Retired`].
#[cfg(feature = "std")]
pub(crate) unsafe fn free(head: NonNull<Head>, pin: &Pinned<'_>) {
    // SAFETY: what is retired is allocated, and its link is the queue's.
    if let Some(free) = unsafe { head.as_ref() }.free.get() {
        // SAFETY: the caller's promise.
        unsafe { free(head, pin) };
    }
}

impl fmt::Debug for Retired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Retired({:p})", self.head)
    }
}

/// A queue of retired objects, first in, first out.
pub(crate) struct List {
    first: *mut Head,
    last: *mut Head,
    len: usize,
    bytes: usize,
}

// SAFETY: it owns what is in it, all of it `Retired`.
unsafe impl Send for List {}

impl List {
    pub(crate) const EMPTY: List = List { first: ptr::null_mut(), last: ptr::null_mut(), len: 0, bytes: 0 };

    pub(crate) fn len(&self) -> usize {
        self.len
    }
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
    pub(crate) fn push(&mut self, Retired { head, bytes }: Retired) {
        // SAFETY: a retired object is allocated, and its link is the list's.
        unsafe { head.as_ref() }.next.set(ptr::null_mut());
        self.append(List { first: head.as_ptr(), last: head.as_ptr(), len: 1, bytes });
    }
    /// Put all of `other` behind what there is.
    pub(crate) fn append(&mut self, other: List) {
        // SAFETY: what is in the list is allocated, and its links are the list's.
        match unsafe { self.last.as_ref() } {
            Some(last) => last.next.set(other.first),
            None => self.first = other.first,
        }
        if other.len > 0 {
            self.last = other.last;
        }
        self.len += other.len;
        self.bytes += other.bytes;
    }
    pub(crate) fn take(&mut self) -> List {
        core::mem::replace(self, List::EMPTY)
    }
    /// The first object, how to free it, and what it counts for: sizes are known of the list as a whole, of which it has the average.
    pub(crate) fn pop(&mut self) -> Option<(NonNull<Head>, Free, usize)> {
        let head = NonNull::new(self.first)?;
        // SAFETY: what is in the list is allocated, and its links are the list's.
        let link = unsafe { head.as_ref() };
        self.first = link.next.get();
        if self.first.is_null() {
            self.last = ptr::null_mut();
        }
        let bytes = self.bytes / self.len;
        self.len -= 1;
        self.bytes -= bytes;
        Some((head, link.free.get()?, bytes))
    }
}

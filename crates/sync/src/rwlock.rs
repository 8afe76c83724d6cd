//! A reader-writer lock whose waiters sleep, or look for a while before they do, and are served first come, first served.
//!
//! **Claim.** Nobody waits by spinning, unless told to and then not for long (the inner spin lock is held for a few instructions), nobody is overtaken, a
//! reader is never let in beside a writer, and no wake-up is lost.
//!
//! **Idea.** The state (who is in, who waits) is plain data under a spin lock. Whoever can't enter puts a node, which
//! lives on its own stack, at the tail of a queue and sleeps until the node says `granted`. The lock is *handed
//! over*: the one that leaves last changes the state on behalf of the first waiter (a writer, or all readers up to
//! the next writer) before anyone else can see the lock as free, so that a newcomer can't slip in between.
//!
//! ```text
//!   state: 2 readers in       queue:  [W a] -> [R b] -> [R c] -> [W d]
//!   a reader leaves           1 in     unchanged
//!   the last reader leaves    a in     [R b] -> [R c] -> [W d]            a woken
//!   a leaves                  b, c in  [W d]                              b, c woken together
//! ```
//!
//! **Invariants**, true whenever the inner lock is free:
//! * I1: at most one writer is in, and then no reader.
//! * I2: if nobody is in, the queue is empty.
//! * I3: a node is in the queue exactly if its owner isn't in and waits for it.
//!
//! **Proof.** *I1*: entry is by a newcomer or by a grant. A newcomer enters only with an empty queue, as a writer if
//! nobody is in, as a reader if no writer is. A grant happens when nobody is in, and lets in one writer or some
//! readers. *I2*: the queue grows only in `enter`, when somebody is in or the queue is not empty (then somebody is
//! in, by I2). The number inside falls only in `leave`, which grants if it reaches zero. *No overtaking*: a newcomer
//! that finds a queue joins its tail; grants take from its head. *No lost wake-up*: a waiter's node leaves the queue
//! in a grant, and each granted node has its flag set and then its waker used, exactly once, by the granter. A wake
//! before the waiter's park makes that park return ([`percpu::Host::waker`]), and every park is between two reads of
//! the flag; so the flag is seen. Wakers may also fire early: the waiter looks at the flag, not at the wake.
//! *No use after free*: the owner's frame can't go away before the flag is set, since the owner does nothing else
//! but wait for it; the granter reads all it needs from the node before it sets the flag and nothing after.
//! *Visibility*: who left did so under the inner lock, before the granter took it; the flag is stored with Release
//! and read with Acquire.

use core::{
    fmt,
    ops::{Deref, DerefMut, Range},
    ptr::{self, NonNull},
    task::Waker,
};

use percpu::Unpinned;

use crate::{
    mutant, pause,
    primitive::{AtomicBool, ConstPtr, MutPtr, Ordering, UnsafeCell, spin_loop},
};

#[cfg(not(loom))]
use crate::spin::SpinLock;
#[cfg(loom)]
use blocking::SpinLock;

/// loom can't finish three threads that spin on one word, so under loom the inner lock is loom's own mutex, of the same
/// exclusion and ordering; the spin lock has a model of its own.
#[cfg(loom)]
mod blocking {
    use loom::sync::{Mutex, MutexGuard};

    pub(super) struct SpinLock<T>(Mutex<T>);

    impl<T> SpinLock<T> {
        pub(super) fn new(value: T) -> Self {
            Self(Mutex::new(value))
        }
        pub(super) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap()
        }
    }
}

/// A lock that many readers or one writer hold; waiting is by sleeping, in order of arrival.
///
/// A thread that holds it for reading must not ask for it again: a writer may have queued in between, and both would
/// wait for ever.
///
/// ```
/// # #[cfg(not(loom))] {
/// use percpu::testing::Machine;
/// use sync::RwLock;
///
/// let machine = Machine::new(4);
/// let total = RwLock::new(0);
/// machine.run(|_cpu, ctx| *total.write(&ctx) += 1);
/// machine.on(0, |ctx| assert_eq!(*total.read(&ctx), 4));
/// # }
/// ```
pub struct RwLock<T> {
    state: SpinLock<State>,
    /// Turns for which a waiter looks whether it is its turn before it sleeps.
    patience: u32,
    value: UnsafeCell<T>,
}

// SAFETY: readers share `&T` between threads, which asks `T: Sync`; writers move the access from thread to thread,
// which asks `T: Send`.
unsafe impl<T: Send + Sync> Sync for RwLock<T> {}
// SAFETY: the lock owns its value.
unsafe impl<T: Send> Send for RwLock<T> {}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Reader,
    Writer,
}

/// Who is in and who waits.
struct State {
    /// Readers that are in.
    readers: usize,
    /// Whether a writer is in.
    writer: bool,
    /// First and last of the waiters; both null or neither.
    head: *mut Waiter,
    tail: *mut Waiter,
}

// SAFETY: the pointers lead to nodes that stay alive while queued (module text), whatever thread follows them.
unsafe impl Send for State {}

/// One that waits: on its owner's stack. `kind`, `next` and `waker` belong to whoever holds the inner lock while the
/// node is queued, and to the granter from then until it sets `granted`.
struct Waiter {
    kind: Kind,
    next: *mut Waiter,
    waker: Option<Waker>,
    granted: AtomicBool,
}

/// Waiters taken from the queue in one grant, linked by `next`, which must now be told.
#[must_use]
struct Granted(*mut Waiter);

impl State {
    /// Enter if the rules let a newcomer of this kind in now.
    fn enter(&mut self, kind: Kind) -> bool {
        let overtakes = kind == Kind::Reader && mutant!("rwlock-readers-first");
        let free = (self.head.is_null() || overtakes)
            && match kind {
                Kind::Reader => !self.writer,
                Kind::Writer => !self.writer && self.readers == 0,
            };
        if free {
            self.admit(kind);
        }
        free
    }

    fn admit(&mut self, kind: Kind) {
        match kind {
            Kind::Reader => self.readers += 1,
            Kind::Writer => self.writer = true,
        }
    }

    /// Put `node` at the tail.
    ///
    /// # Safety
    /// `node` is valid for reads and writes until it is granted, and nobody else touches it but for `granted`.
    unsafe fn enqueue(&mut self, node: NonNull<Waiter>) {
        // SAFETY: the caller's promise.
        if mutant!("rwlock-writers-first") && unsafe { node.as_ref() }.kind == Kind::Writer {
            // SAFETY: as above.
            unsafe { (*node.as_ptr()).next = self.head };
            self.head = node.as_ptr();
            self.tail = if self.tail.is_null() { self.head } else { self.tail };
            return;
        }
        match NonNull::new(self.tail) {
            // SAFETY: a queued node is alive, and its link belongs to the holder of the inner lock.
            Some(tail) => unsafe { (*tail.as_ptr()).next = node.as_ptr() },
            None => self.head = node.as_ptr(),
        }
        self.tail = node.as_ptr();
    }

    /// Leave, and if nobody is left in, let in the first writer or all readers before the next one.
    fn leave(&mut self, kind: Kind) -> Granted {
        match kind {
            Kind::Reader => self.readers -= 1,
            Kind::Writer => self.writer = false,
        }
        if self.readers > 0 {
            return Granted(ptr::null_mut());
        }
        let first = self.head;
        let mut last = ptr::null_mut::<Waiter>();
        // SAFETY: queued nodes are alive, and their fields belong to the holder of the inner lock.
        while let Some(node) = unsafe { self.head.as_ref() } {
            if node.kind == Kind::Writer && !last.is_null() {
                break;
            }
            self.admit(node.kind);
            last = self.head;
            self.head = node.next;
            if node.kind == Kind::Writer {
                break;
            }
        }
        if self.head.is_null() {
            self.tail = ptr::null_mut();
        }
        // SAFETY: if there is a last granted node it is alive, and it is ours since it left the queue.
        if let Some(last) = unsafe { last.as_mut() } {
            last.next = ptr::null_mut();
        }
        Granted(first)
    }
}

impl Granted {
    /// Tell each of them, in order. Called without the inner lock, which the woken may want at once.
    fn wake(self) {
        let mut node = self.0;
        while !node.is_null() {
            // SAFETY: the node left the queue in our grant and its flag isn't set yet, so it is alive and, but for
            // the flag, ours. It may be gone as soon as the flag is set: nothing of it is read after that.
            let waker = unsafe {
                let this = node;
                node = (*this).next;
                let waker = (*this).waker.take();
                // Release: all that happened inside the lock comes before; partner of the load in `wait`.
                (*this).granted.store(true, Ordering::Release);
                waker
            };
            if let Some(waker) = waker
                && !mutant!("rwlock-lost-wake")
            {
                waker.wake();
            }
        }
    }
}

impl<T> RwLock<T> {
    /// A free lock over `value`.
    #[cfg(not(loom))]
    pub const fn new(value: T) -> Self {
        Self::patient(value, 0)
    }
    /// A free lock over `value`.
    #[cfg(loom)]
    pub fn new(value: T) -> Self {
        Self::patient(value, 0)
    }
    /// The same, but who waits looks so many turns whether it may enter before it sleeps. The order is the same.
    #[cfg(not(loom))]
    pub const fn patient(value: T, patience: u32) -> Self {
        Self { state: SpinLock::new(State::EMPTY), patience, value: UnsafeCell::new(value) }
    }
    /// The same, but who waits looks so many turns whether it may enter before it sleeps. The order is the same.
    #[cfg(loom)]
    pub fn patient(value: T, patience: u32) -> Self {
        Self { state: SpinLock::new(State::EMPTY), patience, value: UnsafeCell::new(value) }
    }
    /// Sleep until the lock can be held for reading, and take it.
    pub fn read<'l>(&'l self, ctx: &Unpinned<'_>) -> ReadGuard<'l, T> {
        self.acquire(Kind::Reader, ctx);
        ReadGuard { value: self.value.get(), _leave: Leave { state: &self.state, kind: Kind::Reader } }
    }
    /// Take the lock for reading if that can be had at once: for who must not sleep. `None` also if somebody waits.
    pub fn try_read(&self) -> Option<ReadGuard<'_, T>> {
        let entered = self.state.lock().enter(Kind::Reader);
        entered.then(|| ReadGuard {
            value: self.value.get(),
            _leave: Leave { state: &self.state, kind: Kind::Reader },
        })
    }
    /// Sleep until the lock can be held for writing, and take it.
    pub fn write<'l>(&'l self, ctx: &Unpinned<'_>) -> WriteGuard<'l, T> {
        self.write_after(ctx, || ())
    }
    /// As [`Self::write`], with `ready` called in the lock before the value may be accessed.
    pub(crate) fn write_after<'l>(&'l self, ctx: &Unpinned<'_>, ready: impl FnOnce()) -> WriteGuard<'l, T> {
        self.acquire(Kind::Writer, ctx);
        ready();
        WriteGuard { value: self.value.get_mut(), _leave: Leave { state: &self.state, kind: Kind::Writer } }
    }
    /// The value, without locking: the exclusive borrow shows that nobody holds the lock.
    pub fn get_mut(&mut self) -> &mut T {
        // SAFETY: `self` is borrowed exclusively, for as long as the result.
        self.value.with_mut(|value| unsafe { &mut *value })
    }
    /// The addresses of the lock's own words, and those of the value: for reports that name memory.
    pub fn places(&self) -> [Range<usize>; 2] {
        let place = |start: usize, bytes| start..start + bytes;
        let (state, value) = (ptr::from_ref(&self.state), ptr::from_ref(&self.value));
        [place(state.addr(), size_of_val(&self.state)), place(value.addr(), size_of::<T>())]
    }
    /// The value, back from the lock.
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }

    /// A read access to the value for whoever knows by other means that no writer is in.
    pub(crate) fn peek(&self) -> ConstPtr<T> {
        self.value.get()
    }

    fn acquire(&self, kind: Kind, ctx: &Unpinned<'_>) {
        let mut state = self.state.lock();
        if state.enter(kind) {
            return;
        }
        let node = UnsafeCell::new(Waiter {
            kind,
            next: ptr::null_mut(),
            waker: Some(ctx.waker()),
            granted: AtomicBool::new(false),
        });
        let node = node.with_mut(|node| node);
        // SAFETY: the node is a local of this call, which does not end before `wait` has seen the grant, not even by
        // unwinding (`Unwound`); from here on it is reached by the pointer only.
        unsafe { state.enqueue(NonNull::new_unchecked(node)) };
        drop(state);
        let guard = Unwound;
        // SAFETY: as above; `granted` is atomic, so it may be read while the granter stores it.
        let granted = unsafe { &(*node).granted };
        // Acquire, both: all that happened inside the lock comes before; partner of the store in `Granted::wake`.
        let patience = if mutant!("rwlock-impatient") { 0 } else { self.patience };
        for _ in 0..patience {
            pause!("rwlock-looks");
            if granted.load(Ordering::Acquire) {
                break;
            }
            spin_loop();
        }
        while !granted.load(Ordering::Acquire) {
            ctx.park();
        }
        core::mem::forget(guard);
    }
}

impl State {
    const EMPTY: State = State { readers: 0, writer: false, head: ptr::null_mut(), tail: ptr::null_mut() };
}

/// A queued node must not go away: a `park` that unwinds ends the program (panic while panicking).
struct Unwound;

impl Drop for Unwound {
    fn drop(&mut self) {
        panic!("a host's park unwound while its thread was queued for a lock");
    }
}

impl<T: Default> Default for RwLock<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> fmt::Debug for RwLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("RwLock")
            .field("readers", &state.readers)
            .field("writer", &state.writer)
            .field("waiters", &!state.head.is_null())
            .finish_non_exhaustive()
    }
}

/// A reader's access to the value; dropping it leaves the lock. Leaving never sleeps.
#[must_use = "the lock is left as soon as the guard is dropped"]
pub struct ReadGuard<'a, T> {
    // Fields are dropped in this order: the access ends before the lock is left.
    value: ConstPtr<T>,
    _leave: Leave<'a>,
}

/// A writer's access to the value; dropping it leaves the lock. Leaving never sleeps.
#[must_use = "the lock is left as soon as the guard is dropped"]
pub struct WriteGuard<'a, T> {
    // Fields are dropped in this order: the access ends before the lock is left.
    value: MutPtr<T>,
    _leave: Leave<'a>,
}

// SAFETY: a shared guard gives `&T` only.
unsafe impl<T: Sync> Sync for ReadGuard<'_, T> {}
// SAFETY: a shared guard gives `&T` only.
unsafe impl<T: Sync> Sync for WriteGuard<'_, T> {}

impl<T> Deref for ReadGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: this thread is in as a reader, so nothing writes the value (I1); the lock outlives the guard.
        unsafe { self.value.deref() }
    }
}

impl<T> Deref for WriteGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: this thread is in as the writer, so nothing else touches the value (I1).
        unsafe { self.value.deref() }
    }
}

impl<T> DerefMut for WriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and the guard is borrowed exclusively.
        unsafe { self.value.deref() }
    }
}

struct Leave<'a> {
    state: &'a SpinLock<State>,
    kind: Kind,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        let granted = self.state.lock().leave(self.kind);
        granted.wake();
    }
}

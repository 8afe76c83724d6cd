//! Timers: wake something at a time, on the CPU that asked.
//!
//! Each CPU has a binary heap of alarms, ordered by deadline, and one hardware timer that fires once. The hardware is
//! armed for the earliest of the first alarm, the end of the running thread's slice, and the time when the timers of its
//! process that count processor time must be looked at; and this module alone arms it: the scheduler says when the slice
//! ends ([`set_slice_end`]) and when to look ([`set_look`]), and the timer interrupt calls [`fire`]. A CPU with none of
//! them gets no interrupt at all, so idle CPUs stay halted.
//!
//! **The hardware is only ever armed earlier.** Setting it costs an exit from a virtual machine, and a CPU that
//! switches threads often would move its slice's end each time. So an armed deadline that is too early stays: the
//! interrupt then finds nothing due and arms what is wanted. At most one such interrupt comes per armed deadline.
//!
//! **An alarm belongs to a [`Timer`], and dropping that takes it back.** The alarm knows its place in the heap, so
//! that is O(log n). If the alarm is just being fired on its CPU, the drop waits for the end of that: afterwards the
//! waker is surely not in use, and the interrupt handler never frees memory, because the `Timer` outlives the
//! handler's share of the alarm. For that reason a `Timer` must not be dropped with a lock held that its waker takes.
//!
//! Memory for a heap is got and given back outside its lock, hence never with interrupts off.

use alloc::{sync::Arc, vec::Vec};
use core::{
    mem, ptr,
    sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering},
    task::Waker,
};

use percpu::MAX_CPUS;

use crate::{hw, places::Place};

/// No deadline, in ns since boot.
const NEVER: u64 = u64::MAX;
/// [`Alarm::slot`] of an alarm that is in no heap.
const OUT: usize = usize::MAX;

/// What [`length`] multiplies by.
static STRETCH: AtomicU64 = AtomicU64::new(1);

/// Take note whether the machine's CPUs take turns (`serial`), in which case its clock advances by what all of them
/// execute. Once, at boot, when all CPUs are there.
pub fn init(serial: bool) {
    // Relaxed, here and below: nothing hangs on who sees it when.
    STRETCH.store(if serial { hw::cpu::count() as u64 } else { 1 }, Ordering::Relaxed);
}

/// The length of something periodic (a slice, a tick, an epoch), given as `ns` on a machine whose CPUs run at once: where
/// they take turns it is as many times longer as there are CPUs, so that each CPU executes as much within it.
pub fn length(ns: u64) -> u64 {
    ns * STRETCH.load(Ordering::Relaxed)
}

/// One entry of a heap.
struct Alarm {
    /// When, in ns since boot.
    deadline: u64,
    waker: Waker,
    /// Index in the heap, or [`OUT`]. Read and written under the heap's lock only, which orders it.
    slot: AtomicUsize,
}

impl Alarm {
    fn place(&self, at: usize) {
        // Relaxed: the heap's lock orders every access.
        self.slot.store(at, Ordering::Relaxed);
    }
}

/// What the lock of one CPU's queue protects.
struct Pending {
    /// Binary heap: an entry's deadline is no later than those at 2i+1 and 2i+2; each entry's `slot` is its index.
    heap: Vec<Arc<Alarm>>,
    /// End of the running thread's slice, in ns since boot.
    slice_end: u64,
    /// When to look at the timers of the running thread's process, in ns since boot. Left as it is when the thread gives
    /// way to one whose process has none: a look too many does no harm.
    look: u64,
    /// What the hardware is armed for; never later than what is wanted.
    armed: u64,
}

impl Pending {
    fn earliest(&self) -> u64 {
        self.heap.first().map_or(NEVER, |a| a.deadline).min(self.slice_end).min(self.look)
    }

    /// Take out what is due at `now`, besides alarms.
    fn take_due(&mut self, now: u64) -> Due {
        let due = Due { slice: self.slice_end <= now, look: self.look <= now };
        if due.slice {
            self.slice_end = NEVER;
        }
        if due.look {
            self.look = NEVER;
        }
        due
    }

    /// Arm the hardware if it is wanted earlier than it is armed for. Runs on the CPU that owns the queue.
    fn rearm(&mut self) {
        let want = self.earliest();
        if want < self.armed {
            self.armed = want;
            // No further than the hardware can count; an early interrupt does no harm.
            hw::timer::arm(want.min(1 << 61));
        }
    }

    /// Add `alarm`; there is room.
    fn insert(&mut self, alarm: Arc<Alarm>) {
        let at = self.heap.len();
        alarm.place(at);
        self.heap.push(alarm);
        self.sift_up(at);
    }

    /// Take out the entry at `at`, if there is one.
    fn remove(&mut self, at: usize) -> Option<Arc<Alarm>> {
        let last = self.heap.len().checked_sub(1)?;
        if at > last {
            return None;
        }
        self.heap.swap(at, last);
        let gone = self.heap.pop()?;
        gone.place(OUT);
        if at < last {
            self.heap[at].place(at);
            self.sift_up(at);
            self.sift_down(at);
        }
        Some(gone)
    }

    fn sift_up(&mut self, mut at: usize) {
        while at > 0 {
            let parent = (at - 1) / 2;
            if self.heap[parent].deadline <= self.heap[at].deadline {
                break;
            }
            self.exchange(parent, at);
            at = parent;
        }
    }

    fn sift_down(&mut self, mut at: usize) {
        loop {
            let left = 2 * at + 1;
            let Some(mut least) = self.heap.get(left).map(|_| left) else { break };
            if self.heap.get(left + 1).is_some_and(|right| right.deadline < self.heap[left].deadline) {
                least = left + 1;
            }
            if self.heap[at].deadline <= self.heap[least].deadline {
                break;
            }
            self.exchange(at, least);
            at = least;
        }
    }

    fn exchange(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        self.heap[a].place(a);
        self.heap[b].place(b);
    }
}

/// One CPU's alarms, on cache lines of its own.
#[repr(align(128))]
struct Queue {
    pending: hw::irq::Lock<Pending>,
    /// The alarm whose waker this CPU's handler is calling now, or null.
    firing: AtomicPtr<Alarm>,
}

static QUEUES: [Queue; MAX_CPUS] = [const {
    Queue {
        pending: hw::irq::Lock::new(Pending {
            heap: Vec::new(),
            slice_end: NEVER,
            look: NEVER,
            armed: NEVER,
        }),
        firing: AtomicPtr::new(ptr::null_mut()),
    }
}; MAX_CPUS];

/// Where the queues are.
pub fn place() -> Place {
    Place::per_cpu("timers", &QUEUES)
}

/// This CPU's queue. The caller doesn't sleep while it uses the result, so it stays on this CPU.
fn mine() -> &'static Queue {
    &QUEUES[hw::cpu::id().index()]
}

/// A pending wake; dropping it cancels it, and on return the waker is not in use.
///
/// Not to be dropped in an interrupt handler, nor with a lock held that the waker takes.
#[must_use = "dropping a timer cancels it"]
pub struct Timer {
    alarm: Arc<Alarm>,
    queue: &'static Queue,
}

impl Timer {
    /// When it fires or fired, in ns since boot.
    pub fn deadline(&self) -> u64 {
        self.alarm.deadline
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let removed = {
            let mut pending = self.queue.pending.lock();
            // Relaxed: ordered by the lock.
            let at = self.alarm.slot.load(Ordering::Relaxed);
            pending.remove(at)
        };
        if removed.is_some() {
            return;
        }
        // Acquire: pairs with the Release in `fire`, so that the handler's last use of the alarm comes before its end
        // here. The handler announced the alarm under the lock that we have just held, so we don't miss it.
        while self.queue.firing.load(Ordering::Acquire).cast_const() == Arc::as_ptr(&self.alarm) {
            hw::cpu::pause();
        }
    }
}

/// Call the waker (or wake the shared value, such as a task) once at `deadline` (ns since boot) or soon after, from this
/// CPU's timer interrupt; at once if the deadline has passed. Threads only: it allocates.
pub fn wake_at(deadline: u64, waker: impl Into<Waker>) -> Timer {
    let waker = waker.into();
    let alarm = Arc::new(Alarm { deadline, waker, slot: AtomicUsize::new(OUT) });
    let queue = mine();
    let mut spare = Vec::new();
    loop {
        let mut pending = queue.pending.lock();
        let len = pending.heap.len();
        if len == pending.heap.capacity() {
            if spare.capacity() <= len {
                drop(pending);
                spare = Vec::with_capacity((2 * len).max(16));
                continue;
            }
            spare.append(&mut pending.heap);
            mem::swap(&mut spare, &mut pending.heap);
        }
        pending.insert(alarm.clone());
        pending.rearm();
        break;
    }
    Timer { alarm, queue }
}

/// The running thread's slice ends at `end` (ns since boot), or it has none. From the scheduler, on every switch.
pub fn set_slice_end(end: Option<u64>) {
    let mut pending = mine().pending.lock();
    pending.slice_end = end.unwrap_or(NEVER);
    pending.rearm();
}

/// The running thread's slice ends at `end` (ns since boot) at the latest. From the scheduler's interrupt.
pub fn limit_slice(end: u64) {
    let mut pending = mine().pending.lock();
    pending.slice_end = pending.slice_end.min(end);
    pending.rearm();
}

/// The timers of the running thread's process must be looked at, at `at` (ns since boot). From the scheduler.
pub fn set_look(at: u64) {
    let mut pending = mine().pending.lock();
    pending.look = at;
    pending.rearm();
}

/// What a timer interrupt has found due, besides alarms.
pub struct Due {
    /// The running thread's slice has ended.
    pub slice: bool,
    /// The timers of its process must be looked at.
    pub look: bool,
}

/// The timer interrupt: fire what is due on this CPU and arm the next.
pub fn fire() -> Due {
    let queue = mine();
    let now = hw::timer::now();
    // Taken before the alarms: those that they wake may begin to wait for this CPU.
    let due = queue.pending.lock().take_due(now);
    loop {
        let mut pending = queue.pending.lock();
        if pending.heap.first().is_none_or(|a| a.deadline > now) {
            pending.armed = NEVER;
            pending.rearm();
            return due;
        }
        let Some(alarm) = pending.remove(0) else { continue };
        // Relaxed: published by the lock's release, before anyone can see the alarm out of the heap.
        queue.firing.store(Arc::as_ptr(&alarm).cast_mut(), Ordering::Relaxed);
        drop(pending);
        alarm.waker.wake_by_ref();
        drop(alarm);
        // Release: our use of the alarm comes before the end of its owner's wait; pairs with `Timer::drop`.
        queue.firing.store(ptr::null_mut(), Ordering::Release);
    }
}

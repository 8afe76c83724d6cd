//! Waiting until all that was retired before has been freed.
//!
//! Lists are first in, first out, so a *marker* behind what a CPU holds tells when that is freed. Each CPU puts its own there when it
//! ticks. One that holds nothing needs none: so CPUs that idle are not waited for. What was handed over is not with any CPU; hence
//! * first the orphans are **closed**: nobody adopts, so nothing moves to a CPU that was found empty or has its marker already;
//! * then each CPU puts its marker, or is found to hold nothing: it has freed what it had, or handed it over, with a marker or not;
//! * then the last marker is put behind the orphans, and they are open again.
//!
//! A CPU that held nothing, and was not waited for, puts its marker for that barrier later all the same, if it comes by before the
//! next has begun. It is counted like the others, so the next barrier waits for it too; and while it is in a list its CPU
//! puts it nowhere else, and is waited for.
//!
//! So each object that was retired before is before a marker in some list, whichever way it goes from there, or is free. A CPU
//! that sees the new number has seen the orphans closed, by the order of the lock and the number.

use alloc::{boxed::Box, vec::Vec};
use core::{
    cell::Cell,
    fmt,
    ptr::{self, NonNull},
};

use percpu::{CpuId, Line, Pinned};
use sync::{
    mutant,
    primitive::{AtomicBool, AtomicU64, Ordering},
};

use super::{BATCH, Domain, callbacks::Queues};
use crate::{Head, Retired};

/// An object that is retired to learn when those before it are free.
#[repr(C)]
struct Marker {
    head: Head,
    /// Of the [`Markers`]: set when it is put into a list.
    outstanding: Cell<*const AtomicU64>,
    /// The last barrier that its CPU has put it for. Stored by that CPU.
    put: AtomicU64,
    /// It is in a list.
    queued: AtomicBool,
}

// SAFETY: head and pointer are touched by who puts the marker into a list and by who frees it there; one comes after the other,
// by `queued`, and for the last marker because a barrier ends with it before the next.
unsafe impl Sync for Marker {}
// SAFETY: the pointer is to a `Sync` value.
unsafe impl Send for Marker {}

/// Where they are stays the same as long as any of them is in a list: a domain that is moved has none there, or is never used
/// again.
pub(super) struct Markers {
    /// One at a time.
    busy: AtomicBool,
    /// Markers in lists, and one more while there may be more of them.
    outstanding: AtomicU64,
    of: Box<[Line<Marker>]>,
    last: Marker,
}

impl Marker {
    fn new() -> Self {
        Self {
            head: Head::new(),
            outstanding: Cell::new(ptr::null()),
            put: AtomicU64::new(0),
            queued: AtomicBool::new(false),
        }
    }
    fn retire(&self, outstanding: &AtomicU64) -> Retired {
        // Relaxed, both: whoever waits for zero has one in it himself as long as markers are put for him; and until it is freed
        // nobody else looks.
        outstanding.fetch_add(1, Ordering::Relaxed);
        self.queued.store(true, Ordering::Relaxed);
        self.outstanding.set(outstanding);
        // SAFETY: it lives in a box of the domain in whose lists it is, nobody finds it by a pointer, and it is in no list. The
        // head is its first field; what `free` touches of it lies beside the head, so the pointer is made of the whole.
        unsafe { Retired::new(NonNull::from(self).cast(), free) }
    }
}

/// # Safety
/// `head` is that of a [`Marker`] that was retired.
unsafe fn free(head: NonNull<Head>, _: &Pinned<'_>) {
    // SAFETY: the caller's promise.
    let marker = unsafe { head.cast::<Marker>().as_ref() };
    // SAFETY: set when it was retired, to what lives as long.
    let outstanding = unsafe { &*marker.outstanding.get() };
    // Release: head and pointer are nobody's; partner: the load in `put`.
    marker.queued.store(false, Ordering::Release);
    // Release: what was freed before; partner: the load in `step`.
    outstanding.fetch_sub(1, Ordering::Release);
}

impl Markers {
    pub(super) fn new(cpus: usize) -> Box<Self> {
        let of: Vec<_> = (0..cpus).map(|_| Line(Marker::new())).collect();
        Box::new(Self {
            busy: AtomicBool::new(false),
            outstanding: AtomicU64::new(0),
            of: of.into_boxed_slice(),
            last: Marker::new(),
        })
    }
    /// Put this CPU's marker behind what it holds, if that was not done for barrier `number`, nor is it in a list still.
    pub(super) fn put(&self, pin: &Pinned<'_>, number: u64, queues: &Queues) {
        let Line(marker) = &self.of[pin.cpu().index()];
        // Acquire: what was done with it in the list; partner: the store in `free`, perhaps on another CPU.
        let is_free = !marker.queued.load(Ordering::Acquire) || mutant!("rcu-barrier-twice");
        // Relaxed: this CPU's own.
        if marker.put.load(Ordering::Relaxed) != number && is_free {
            queues.push(pin, marker.retire(&self.outstanding));
            // Release: that it is outstanding; partner: the load in `step`.
            marker.put.store(number, Ordering::Release);
        }
    }
}

/// A barrier under way. To be [stepped](Self::step) to its end: no other begins before.
#[must_use = "it does nothing unless it is stepped"]
pub struct Barrier<'d> {
    domain: &'d Domain,
    number: u64,
    /// CPUs below this one have put their markers, or need not.
    cpu: usize,
    closed: bool,
}

impl fmt::Debug for Barrier<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Barrier({}, {} CPUs)", self.number, self.cpu)
    }
}

impl<'d> Barrier<'d> {
    /// `None` if another is under way.
    pub(super) fn begin(domain: &'d Domain) -> Option<Self> {
        let markers = &*domain.markers;
        // Acquire: what the barrier before did; partner: the store in `step`. Relaxed: nothing is read.
        markers.busy.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).ok()?;
        // Relaxed: published by the notice. Added: a marker of a barrier that has ended may be in a list, or on its way there.
        markers.outstanding.fetch_add(1, Ordering::Relaxed);
        Some(Self { domain, number: domain.queues.close(), cpu: 0, closed: true })
    }
    /// Go on, and do this CPU's work. True at the end: then all is free that was retired before the barrier began.
    pub fn step(&mut self, pin: &mut Pinned<'_>) -> bool {
        let (markers, queues) = (&*self.domain.markers, &self.domain.queues);
        while self.domain.tick(pin) == BATCH {}
        self.domain.look(pin);
        let behind = |cpu: CpuId| {
            // Acquire: that its marker is outstanding; partner: the store in `put`.
            let put = markers.of[cpu.index()].0.put.load(Ordering::Acquire) == self.number;
            !put && !queues.holds_nothing(cpu)
        };
        while let Some(cpu) = CpuId::new(self.cpu).filter(|_| self.cpu < markers.of.len()) {
            if behind(cpu) && !mutant!("rcu-barrier-skips") {
                return false;
            }
            self.cpu += 1;
        }
        if self.closed {
            queues.open(|| markers.last.retire(&markers.outstanding));
            self.closed = false;
            // Relaxed: as `retire` says.
            markers.outstanding.fetch_sub(1, Ordering::Relaxed);
        }
        // Acquire: all that was freed before the markers; partner: `free`, and its like, each of them a read-modify-write.
        if markers.outstanding.load(Ordering::Acquire) > 0 {
            return false;
        }
        // Release: partner of the exchange in `begin`.
        markers.busy.store(false, Ordering::Release);
        true
    }
}

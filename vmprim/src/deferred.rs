//! Deferred handlers: the faulting thread puts a node on its stack into a lock-free list and sleeps; a worker
//! answers.
//!
//! The faulting thread keeps the page's lock meanwhile and acts on the answer itself. So a worker needs no lock of
//! a page, and all that became of the fault is in one place. A worker takes the whole list at once, so there is no
//! pop that could be fooled by a node that left and came back; what it does not answer itself, others find in a
//! queue behind a lock of std, which no signal handler ever takes.
//!
//! ```text
//! fault:  push node; tickets += 1; wake one worker; sleep until node.done
//! worker: t = tickets; take one from the queue, refilled from the list
//!         none: sleep while tickets == t            // a push after the look has changed tickets
//!         node.answer = handler(..); node.done = 1; wake      // from here on the node may be gone
//! ```

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    cell::UnsafeCell,
    collections::VecDeque,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering},
    },
};

use crate::{
    fault::MustAnswer,
    handler::{DeferredHandler, Fault, Resolution},
    region::Inner,
    sys,
    thread::Block,
};

/// A fault that waits for its answer, on the stack of its thread.
#[derive(Debug)]
struct Node {
    next: *mut Node,
    fault: Fault,
    answer: UnsafeCell<Resolution>,
    done: AtomicU32,
}

/// A node's address, to hand between workers.
#[derive(Clone, Copy, Debug)]
struct Waiting(*mut Node);
// SAFETY: the node's thread sleeps until it is answered, and one worker has it at a time.
unsafe impl Send for Waiting {}

/// Faults on their way to workers.
pub struct Queue {
    handler: Box<dyn DeferredHandler>,
    list: AtomicPtr<Node>,
    tickets: AtomicU32,
    taken: Mutex<VecDeque<Waiting>>,
    stop: AtomicBool,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("stop", &self.stop).finish_non_exhaustive()
    }
}

impl Queue {
    pub fn new(handler: Box<dyn DeferredHandler>) -> Self {
        Self {
            handler,
            list: AtomicPtr::new(std::ptr::null_mut()),
            tickets: AtomicU32::new(0),
            taken: Mutex::new(VecDeque::new()),
            stop: AtomicBool::new(false),
        }
    }

    /// In the faulting thread: have a worker answer.
    pub fn hand_over(&self, fault: &Fault) -> Resolution {
        let mut node = Node {
            next: std::ptr::null_mut(),
            fault: *fault,
            answer: UnsafeCell::new(Resolution::Retry),
            done: AtomicU32::new(0),
        };
        let at = &raw mut node;
        // Relaxed: the exchange says whether it was current.
        let mut first = self.list.load(Ordering::Relaxed);
        loop {
            // SAFETY: ours until the exchange succeeds.
            unsafe { (*at).next = first };
            // Release: pairs with Acquire in `take`; the node is whole.
            match self.list.compare_exchange(first, at, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => break,
                Err(other) => first = other,
            }
        }
        // SAFETY: alive until this function returns; workers change it through the atomic and the cell only.
        let (done, answer) = unsafe { (&(*at).done, &(*at).answer) };
        // Release: pairs with Acquire in `work`; who sees the ticket finds the node.
        self.tickets.fetch_add(1, Ordering::Release);
        sys::futex_wake(&raw const self.tickets, 1);
        // Acquire: pairs with Release in `answer_to`.
        while done.load(Ordering::Acquire) == 0 {
            sys::futex_wait(std::ptr::from_ref(done), 0, None);
        }
        // SAFETY: the worker wrote it before `done`, and has let go.
        unsafe { *answer.get() }
    }

    /// Call the handler in this thread, for another that waits.
    pub fn call(&self, region: &Inner, block: &Block, fault: &Fault) -> Resolution {
        // Relaxed, all: this thread's own.
        block.serves.page.store(fault.page.0, Ordering::Relaxed);
        block.serves.region.store(std::ptr::from_ref(region) as usize, Ordering::Relaxed);
        let resolution = MustAnswer::of(|| self.handler.fault(fault, region.page_alias(fault.page)));
        block.serves.region.store(0, Ordering::Relaxed);
        resolution
    }

    /// The oldest fault that no worker has.
    fn take(&self) -> Option<Waiting> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.is_empty() {
            // Acquire: pairs with Release in `hand_over`.
            let mut next = self.list.swap(std::ptr::null_mut(), Ordering::Acquire);
            while !next.is_null() {
                taken.push_front(Waiting(next));
                // SAFETY: its thread sleeps until it is answered.
                next = unsafe { (*next).next };
            }
        }
        taken.pop_front()
    }

    /// What a worker does, until it is told to stop.
    pub fn work(&self, region: &Inner, block: &Block) {
        loop {
            // Acquire: pairs with Release in `hand_over` and `stop`; read before the look.
            let seen = self.tickets.load(Ordering::Acquire);
            match self.take() {
                Some(waiting) => self.answer_to(waiting, region, block),
                // Relaxed: ordered by the tickets.
                None if self.stop.load(Ordering::Relaxed) => return,
                None => sys::futex_wait(&raw const self.tickets, seen, None),
            }
        }
    }

    fn answer_to(&self, waiting: Waiting, region: &Inner, block: &Block) {
        // SAFETY: its thread sleeps until `done`, and this worker alone has it.
        let node = unsafe { &*waiting.0 };
        let resolution = self.call(region, block, &node.fault);
        // SAFETY: its thread reads it after `done`.
        unsafe { *node.answer.get() = resolution };
        let done = &raw const node.done;
        // Release: pairs with Acquire in `hand_over`.
        node.done.store(1, Ordering::Release);
        // The node may be gone: only its address is used.
        sys::futex_wake(done, 1);
    }

    /// Have all workers return once nobody waits.
    pub fn stop(&self) {
        // Relaxed: ordered by the tickets.
        self.stop.store(true, Ordering::Relaxed);
        // Release: pairs with Acquire in `work`.
        self.tickets.fetch_add(1, Ordering::Release);
        sys::futex_wake(&raw const self.tickets, i32::MAX);
    }
}

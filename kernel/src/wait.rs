//! Wait queues: sleep until a condition holds.
//!
//! The protocol against lost wakes: a sleeper *first* enters the queue, *then* tests its condition, then parks; a waker
//! *first* makes the condition true, *then* wakes the queue. The queue's lock orders the two: if the waker looks before
//! the sleeper entered, the sleeper's test comes after the waker's change and sees it; else the waker finds the sleeper,
//! and a wake before the park makes the park return at once (`sched.rs`).
//!
//! `wake_one` takes the sleeper out of the queue. A sleeper that was taken out but leaves for another reason (signal,
//! deadline) passes the wake on.
//!
//! Besides tasks, a queue may have *watchers* ([`WaitQueue::watch`]): wakers that are called at every wake and stay. They
//! are how `epoll` notices that a file has changed. A watcher is called with the queue locked, from any context; it may
//! wake other queues, as long as those never lead back to this one.

use alloc::{collections::VecDeque, sync::Arc, vec::Vec};
use core::{
    sync::atomic::{AtomicBool, Ordering},
    task::Waker,
};

use crate::{
    errno::Errno,
    hw::{self, irq},
    sched, signal,
    task::{self, Task},
    timers,
};

/// Tasks that wait for something, and watchers.
pub struct WaitQueue {
    waiters: irq::Lock<Waiters>,
    /// Whether there are watchers; for [`WaitQueue::notify`].
    watched: AtomicBool,
}

struct Waiters {
    tasks: VecDeque<Arc<Task>>,
    watchers: Vec<Waker>,
}

/// Why a wait ended without its condition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Woken {
    /// A signal is pending, or the process is ending.
    Interrupted,
    /// The deadline has passed.
    TimedOut,
}

impl Default for WaitQueue {
    fn default() -> Self {
        Self::new()
    }
}

impl WaitQueue {
    /// Nobody waits.
    pub const fn new() -> Self {
        let waiters = Waiters { tasks: VecDeque::new(), watchers: Vec::new() };
        Self { waiters: irq::Lock::new(waiters), watched: AtomicBool::new(false) }
    }

    /// Sleep until `cond` gives a value. `deadline` in nanoseconds since boot. `interruptible`: a pending signal ends
    /// the wait. `cond` runs with no lock held and may take spin locks, but must not sleep, and so not touch user
    /// memory: a sleep in it would use up the wake that came after it looked.
    pub fn wait<R>(
        &self,
        deadline: Option<u64>,
        interruptible: bool,
        cond: impl FnMut() -> Option<R>,
    ) -> Result<R, Woken> {
        wait_any(&[self], deadline, interruptible, cond)
    }

    /// Wake every waiter. From any context.
    pub fn wake_all(&self) {
        let w = self.waiters.lock();
        for t in &w.tasks {
            t.wake();
        }
        w.watchers.iter().for_each(Waker::wake_by_ref);
    }

    /// Wake the first waiter and take it out; false if nobody waits. From any context.
    pub fn wake_one(&self) -> bool {
        let first = {
            let mut w = self.waiters.lock();
            w.watchers.iter().for_each(Waker::wake_by_ref);
            w.tasks.pop_front()
        };
        match first {
            Some(t) => {
                t.wake();
                true
            }
            None => false,
        }
    }

    /// Tell the watchers alone, of a change that no sleeper waits for (more of what there was already).
    pub fn notify(&self) {
        // SeqCst: the caller changed its state before; a watcher sets the flag before it looks at that state, so one of
        // the two sees the other. Pairs with the store in `watch`.
        if self.watched.load(Ordering::SeqCst) {
            self.waiters.lock().watchers.iter().for_each(Waker::wake_by_ref);
        }
    }

    /// Call `watcher` at every wake from now on. The caller looks at the state afterwards. ENOMEM.
    pub fn watch(&self, watcher: Waker) -> Result<(), Errno> {
        let mut w = self.waiters.lock();
        w.watchers.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        w.watchers.push(watcher);
        // SeqCst: pairs with the load in `notify`.
        self.watched.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Take `watcher` out again. Once it has returned, the watcher is not in use by this queue.
    pub fn unwatch(&self, watcher: &Waker) {
        let taken = {
            let mut w = self.waiters.lock();
            let at = w.watchers.iter().position(|x| x.data() == watcher.data());
            let taken = at.map(|at| w.watchers.swap_remove(at));
            // SeqCst: as in `watch`.
            self.watched.store(!w.watchers.is_empty(), Ordering::SeqCst);
            taken
        };
        drop(taken); // outside the lock: it may be the last reference
    }

    fn enter(&self, me: &Arc<Task>) {
        let mut w = self.waiters.lock();
        if !w.tasks.iter().any(|t| Arc::ptr_eq(t, me)) {
            w.tasks.push_back(me.clone());
        }
    }

    /// Leave the queue; false if a `wake_one` had taken us out already.
    fn leave(&self, me: &Arc<Task>) -> bool {
        let mut w = self.waiters.lock();
        match w.tasks.iter().position(|t| Arc::ptr_eq(t, me)) {
            Some(i) => w.tasks.remove(i).is_some(),
            None => false,
        }
    }
}

/// As [`WaitQueue::wait`], woken by any of several queues.
pub fn wait_any<R>(
    queues: &[&WaitQueue],
    deadline: Option<u64>,
    interruptible: bool,
    mut cond: impl FnMut() -> Option<R>,
) -> Result<R, Woken> {
    if let Some(r) = cond() {
        return Ok(r);
    }
    let me = task::current().arc();
    let timer = deadline.map(|d| timers::wake_at(d, me.clone()));
    let result = loop {
        queues.iter().for_each(|q| q.enter(&me));
        if let Some(r) = cond() {
            break Ok(r);
        }
        if interruptible && signal::pending() {
            break Err(Woken::Interrupted);
        }
        if deadline.is_some_and(|d| hw::timer::now() >= d) {
            break Err(Woken::TimedOut);
        }
        sched::park();
    };
    drop(timer);
    for q in queues {
        if !q.leave(&me) && result.is_err() {
            q.wake_one();
        }
    }
    result
}

/// Sleep until `deadline` (nanoseconds since boot), whatever signals come.
pub fn pause_until(deadline: u64) {
    let _ = wait_any(&[], Some(deadline), false, || None::<core::convert::Infallible>);
}

/// Sleep until `deadline` (nanoseconds since boot) or a signal.
pub fn sleep_until(deadline: Option<u64>) -> Woken {
    match wait_any(&[], deadline, true, || None::<core::convert::Infallible>) {
        Err(w) => w,
        Ok(never) => match never {},
    }
}

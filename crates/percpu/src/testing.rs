//! A machine for host tests: threads that stand on CPU slots, with real sleeping and waking.
//!
//! Each thread that [`Machine::on`] or [`Machine::run`] starts a section for is bound to one slot. Several threads
//! may share a slot, as tasks share a CPU: the slot is taken at the outermost pin and given back at its end, so that
//! at most one thread is pinned to a CPU at a time. [`Machine::migrate`] moves a thread.
//!
//! ```
//! use percpu::{CpuId, PerCpu, testing::Machine};
//! use std::sync::atomic::{AtomicU64, Ordering};
//!
//! let machine = Machine::new(4);
//! let count = PerCpu::new(machine.cpus(), |_| AtomicU64::new(0));
//! machine.run(|_cpu, ctx| {
//!     count.get(&ctx.pin()).fetch_add(1, Ordering::Relaxed);
//! });
//! assert!(count.iter().all(|n| n.load(Ordering::Relaxed) == 1));
//! ```
#![allow(clippy::missing_const_for_thread_local)] // see `CPU`

#[cfg(not(loom))]
use alloc::boxed::Box;
use alloc::{sync::Arc, task::Wake, vec::Vec};
use core::{cell::Cell, task::Waker};

#[cfg(not(loom))]
use core::sync::atomic::{AtomicBool, Ordering};
#[cfg(not(loom))]
use std::thread::{self, Thread, yield_now};
#[cfg(not(loom))]
use std::thread_local;

#[cfg(loom)]
use loom::{
    sync::atomic::{AtomicBool, Ordering},
    thread::{self, Thread, yield_now},
    thread_local,
};

use crate::{CpuId, Host, Unpinned};

// loom's macro takes no `const` block, so the initialisers stay plain.
thread_local! {
    /// The slot that this thread stands on, if it stands on any.
    static CPU: Cell<Option<CpuId>> = Cell::new(None);
    /// How many pins this thread holds.
    static PINS: Cell<usize> = Cell::new(0);
}

/// After how many more pins a thread is preempted, and by what.
#[cfg(not(loom))]
type Preemption = (usize, Box<dyn FnOnce()>);

#[cfg(not(loom))]
thread_local! {
    /// What preempts this thread next.
    static PREEMPTION: Cell<Option<Preemption>> = Cell::new(None);
}

/// Let the calling thread run `others` when it is about to be pinned after `pins` more times, as if it was preempted
/// there. So a test can have something happen at each place, one after the other, where others may come in between.
#[cfg(not(loom))]
pub fn preempt_after(pins: usize, others: impl FnOnce() + 'static) {
    PREEMPTION.set(Some((pins, Box::new(others))));
}

/// Whether what [`preempt_after`] was given has run. If not, it won't.
#[cfg(not(loom))]
pub fn was_preempted() -> bool {
    PREEMPTION.take().is_none()
}

#[cfg(not(loom))]
fn preempt() {
    match PREEMPTION.take() {
        Some((0, others)) => others(),
        Some((pins, others)) => PREEMPTION.set(Some((pins - 1, others))),
        None => {}
    }
}

/// A machine of CPU slots.
#[derive(Debug)]
pub struct Machine {
    /// For each slot, whether a thread is pinned to it.
    taken: Vec<AtomicBool>,
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

impl Machine {
    /// A machine of `cpus` CPUs. Panics above [`crate::MAX_CPUS`].
    pub fn new(cpus: usize) -> Self {
        assert!(cpus <= crate::MAX_CPUS, "{cpus} CPUs are too many");
        Self { taken: (0..cpus).map(|_| AtomicBool::new(false)).collect() }
    }
    /// How many CPUs there are.
    pub fn cpus(&self) -> usize {
        self.taken.len()
    }
    /// The CPUs in ascending order.
    pub fn ids(&self) -> impl Iterator<Item = CpuId> + use<> {
        (0..self.cpus()).filter_map(CpuId::new)
    }
    /// Run `f` with the calling thread on CPU number `cpu`. Panics if there is no such CPU, or if the thread stands
    /// on one already.
    pub fn on<R>(&self, cpu: usize, f: impl FnOnce(Unpinned<'_>) -> R) -> R {
        /// Takes the thread off its slot, even if `f` panics.
        struct Off;
        impl Drop for Off {
            fn drop(&mut self) {
                CPU.with(|c| c.set(None));
            }
        }
        assert!(CPU.with(|c| c.get()).is_none(), "the thread is on a CPU already");
        self.place(cpu);
        let _off = Off;
        // SAFETY: the thread is one of this machine's from here to the end of `f`, which is given no way to keep the
        // witness; that it isn't used while pinned or under a spin lock is the test's duty, and `park` checks pins.
        f(unsafe { Unpinned::new(self) })
    }
    /// Run `f` on every CPU at once, a thread for each, and wait for all. A panic in one is passed on.
    #[cfg(not(loom))]
    pub fn run(&self, f: impl Fn(CpuId, Unpinned<'_>) + Sync) {
        thread::scope(|s| {
            let spawn = |cpu: CpuId| {
                let f = &f;
                s.spawn(move || self.on(cpu.index(), |ctx| f(cpu, ctx)))
            };
            let threads: Vec<_> = self.ids().map(spawn).collect();
            // Joined one by one: a race detector sees that, but not how a scope ends.
            let ends: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
            if let Some(panic) = ends.into_iter().find_map(Result::err) {
                std::panic::resume_unwind(panic);
            }
        });
    }
    /// Move the calling thread, which holds no pin, to CPU number `cpu`.
    pub fn migrate(&self, cpu: usize) {
        assert!(PINS.with(|p| p.get()) == 0, "a pinned thread does not migrate");
        assert!(CPU.with(|c| c.get()).is_some(), "the thread is on no CPU");
        self.place(cpu);
    }

    fn place(&self, cpu: usize) {
        assert!(cpu < self.cpus(), "the machine has no CPU {cpu}");
        CPU.with(|c| c.set(CpuId::new(cpu)));
    }
}

// SAFETY: a thread's slot changes only in `migrate` and `on`, which refuse while it is pinned (`on` refuses nesting);
// `taken` keeps a second thread from being pinned to the same slot; `park` checks that its thread isn't pinned.
unsafe impl Host for Machine {
    fn enter_pinned(&self) -> CpuId {
        let cpu = CPU.with(|c| c.get()).expect("the thread is on no CPU");
        #[cfg(not(loom))]
        if PINS.with(|p| p.get()) == 0 {
            preempt();
        }
        let pins = PINS.with(|p| p.replace(p.get() + 1));
        if pins == 0 {
            // Acquire: what the last thread did on this CPU comes before; partner of `leave_pinned`.
            while self.taken[cpu.index()].swap(true, Ordering::Acquire) {
                yield_now();
            }
        }
        cpu
    }
    fn leave_pinned(&self) {
        let cpu = CPU.with(|c| c.get()).expect("the thread is on no CPU");
        let pins = PINS.with(|p| p.replace(p.get() - 1));
        if pins == 1 {
            // Release: what this thread did on the CPU comes before the next one's; partner of `enter_pinned`.
            self.taken[cpu.index()].store(false, Ordering::Release);
        }
    }
    fn pins(&self) -> usize {
        PINS.with(|p| p.get())
    }
    fn waker(&self) -> Waker {
        Waker::from(Arc::new(Unpark(thread::current())))
    }
    fn park(&self) {
        assert!(PINS.with(|p| p.get()) == 0, "a pinned thread does not sleep");
        thread::park();
    }
}

/// Explore every execution of `model` with at most `preemptions` involuntary switches (all of them if `None`), print
/// how many there were, and panic if one fails. What environment variables say about limits is ignored: no limit ends
/// the exploration early, so a return means that it is complete. Gives the number of executions.
#[cfg(loom)]
pub fn explore(name: &str, preemptions: Option<usize>, model: impl Fn() + Send + Sync + 'static) -> usize {
    use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 20_000;
    builder.preemption_bound = preemptions;
    builder.max_duration = None;
    builder.max_permutations = None;
    builder.checkpoint_file = None;
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    builder.check(move || {
        // Relaxed: loom runs one execution after the other.
        counted.fetch_add(1, Relaxed);
        model();
    });
    let executions = count.load(Relaxed);
    assert!(executions > 1, "{name}: the model has no concurrency");
    std::println!("loom {name}: {executions} executions, complete");
    executions
}

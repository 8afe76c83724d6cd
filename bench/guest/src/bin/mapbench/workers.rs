//! Who does the work: threads of this process, or processes that have their memory to themselves.
//!
//! Processes are forked before any of them maps something of its mode's. They share with one another what a fork
//! leaves shared (the program's file, pages that nobody has written since), and one mapping each for the barrier and the
//! results, which nobody touches within a window.

use crate::{
    meter::Meter,
    sys,
    wait::{Barrier, Between},
};

/// `work` of so many threads at once: what each has measured. `work` gets the thread's number.
pub fn threads(count: usize, work: impl Fn(usize, &Barrier) -> Meter + Sync) -> Vec<Meter> {
    let barrier = Barrier::new(count, Between::Threads);
    std::thread::scope(|scope| {
        let (work, barrier) = (&work, &barrier);
        let workers: Vec<_> = (0..count).map(|worker| scope.spawn(move || work(worker, barrier))).collect();
        let join = |worker: std::thread::ScopedJoinHandle<_>| {
            worker.join().unwrap_or_else(|_| sys::die("a thread panicked"))
        };
        workers.into_iter().map(join).collect()
    })
}

/// The same of so many processes. This one must have no thread but the caller.
pub fn processes(count: usize, work: impl Fn(usize, &Barrier) -> Meter) -> Vec<Meter> {
    let barrier: *mut Barrier = sys::shared_memory(size_of::<Barrier>()).cast();
    let results: *mut Meter = sys::shared_memory(count * size_of::<Meter>()).cast();
    // SAFETY: memory of that size, aligned to pages, which stays; nobody else is there yet.
    let barrier: &Barrier = unsafe {
        barrier.write(Barrier::new(count, Between::Processes));
        &*barrier
    };
    for worker in 0..count {
        sys::child(|| {
            let meter = work(worker, barrier);
            // SAFETY: room for `count` results, this one for this worker alone. A result holds no pointer.
            unsafe { results.add(worker).write(meter) };
        });
    }
    for _ in 0..count {
        if !sys::a_child_succeeded() {
            // The others, who may wait for it, end with this process.
            sys::die("a process ended without success");
        }
    }
    // SAFETY: each worker has written its result and ended.
    (0..count).map(|worker| unsafe { results.add(worker).read() }).collect()
}

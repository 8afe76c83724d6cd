//! Waiting for other workers: always asleep, in `futex`. A thread that spins takes the turns of the emulated CPUs that
//! it waits for.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::sys;

/// Who sleeps on a word.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub enum Between {
    /// Threads of one process.
    #[default]
    Threads,
    /// Processes that share its page.
    Processes,
}

/// A number that only grows (modulo 2^32), written by one thread at a time, for which others sleep. Alone on its pair
/// of cache lines.
#[repr(align(128))]
#[derive(Default)]
pub struct Progress {
    value: AtomicU32,
    sleepers: AtomicU32,
    between: Between,
}

impl Progress {
    /// Sets the number and wakes who sleeps.
    pub fn publish(&self, value: u32) {
        // SeqCst, with the one in `wait_for`: either we see the sleeper, or it sees the value (the system call compares
        // the value again). Also Release: what was done before is seen by who reads the value.
        self.value.store(value, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            sys::futex_wake_all(&self.value, self.between);
        }
    }

    /// Sleeps until the number has come to `wanted`.
    pub fn wait_for(&self, wanted: u32) {
        loop {
            // Acquire, with the store in `publish`: what was done before it has happened for us.
            let now = self.value.load(Ordering::Acquire);
            if reached(now, wanted) {
                return;
            }
            // SeqCst: see `publish`.
            self.sleepers.fetch_add(1, Ordering::SeqCst);
            sys::futex_wait(&self.value, now, self.between);
            // Relaxed: a sleeper counted for too long costs a wake that wakes nobody.
            self.sleepers.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Whether `now` is at or past `wanted`, in arithmetic modulo 2^32 of numbers less than 2^31 apart.
fn reached(now: u32, wanted: u32) -> bool {
    now.wrapping_sub(wanted) < 1 << 31
}

/// All of a number of workers wait here for each other, again and again.
pub struct Barrier {
    workers: u32,
    arrived: AtomicU32,
    generation: Progress,
}

impl Barrier {
    /// For so many threads.
    pub fn new(workers: usize, between: Between) -> Self {
        let generation = Progress { between, ..Progress::default() };
        Self { workers: workers as u32, arrived: AtomicU32::new(0), generation }
    }

    /// Sleeps until all have come.
    pub fn wait(&self) {
        // Relaxed: the generation changes only after we have come.
        let next = self.generation.value.load(Ordering::Relaxed).wrapping_add(1);
        // AcqRel: the last to come has seen what all the others did before, and passes it on with the generation.
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.workers {
            // Relaxed: who counts itself in again has read the new generation before.
            self.arrived.store(0, Ordering::Relaxed);
            self.generation.publish(next);
        } else {
            self.generation.wait_for(next);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn numbers_are_compared_across_the_wrap() {
        assert!(reached(5, 5) && reached(6, 5) && !reached(4, 5));
        assert!(reached(2, u32::MAX) && !reached(u32::MAX, 2));
    }

    #[test]
    fn nobody_passes_a_barrier_before_all_have_come() {
        const THREADS: usize = 4;
        let (barrier, come) = (Barrier::new(THREADS, Between::Threads), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for round in 1..=500 {
                        // Relaxed: the barrier orders it.
                        come.fetch_add(1, Ordering::Relaxed);
                        barrier.wait();
                        assert_eq!(come.load(Ordering::Relaxed), round * THREADS);
                        barrier.wait();
                    }
                });
            }
        });
    }
}

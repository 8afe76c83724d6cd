//! What it costs to count a reference to something that is shared, and to give it up again: with an atomic counter, with
//! `Arc`, and with Refcache's counts, which each CPU holds back.
//!
//! Each thread, on a CPU of its own, counts one reference up and down on the same object. The cost of such a pair is the
//! processor time of the threads divided by their pairs. All subjects are measured in turn, so that whatever
//! else the host does happens to each; of the ratio to the atomic counter in the same turn there are the median and
//! the quartiles. Refcache's work in the background, a flush once in a millisecond, is in it.
//!
//!     cargo run --release -p quire-bench-host --bin refcache -- [THREADS,… [TURNS]]
//!
//! `counted.rs` has the same for a machine that counts.

mod counted;

use std::{
    hint::black_box,
    process::ExitCode,
    ptr::NonNull,
    sync::{
        Arc, Barrier,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use percpu::{CpuId, Pinned};
use refcache::{AllStopped, Budget, Counted, Domain, RefHead, Shared, Threads};
use rustix::{
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
    time::{ClockId, clock_gettime},
};

/// Pairs of a thread in a turn, and between two looks at the clock.
const PAIRS: u32 = 1 << 20;
const BATCH: u32 = 1 << 10;
/// Between two rounds of the manager, as in a kernel that counts with a tick of a tenth of the usual.
const TICK: Duration = Duration::from_millis(1);

/// What is measured: the kernel's way, with a pinned CPU at hand, and the library's.
const SUBJECTS: [&str; 4] = ["atomic", "Arc", "Domain", "Shared"];

#[repr(C)]
struct Object {
    head: RefHead,
}

// SAFETY: the head is the first field, made for this type.
unsafe impl Counted for Object {
    fn head(&self) -> &RefHead {
        &self.head
    }
    unsafe fn dispose(_: NonNull<Self>, _: &Pinned<'_>) {
        unreachable!("the first reference is never given up");
    }
}

/// The subjects' objects.
struct Objects {
    counter: Box<AtomicU64>,
    arc: Arc<u64>,
    domain: Domain<4096>,
    object: Box<Object>,
    shared: Shared<u64>,
}

impl Objects {
    fn new(threads: usize) -> Self {
        Self {
            counter: Box::new(AtomicU64::new(1)),
            arc: Arc::new(1),
            domain: Domain::new(threads),
            object: Box::new(Object { head: RefHead::new::<Object>(1) }),
            shared: Shared::new(1),
        }
    }
    /// A thread's pairs, on its CPU, with the work in the background when it is time.
    fn run(&self, subject: &str, pin: &Pinned<'_>) {
        let mut worked = Instant::now();
        for _ in 0..PAIRS / BATCH {
            self.pairs(subject, BATCH, pin);
            if subject == "Domain" {
                let now = Instant::now();
                if now - worked >= TICK {
                    worked = now;
                    self.work(subject, pin);
                }
            }
        }
    }
    /// So many pairs.
    #[inline]
    fn pairs(&self, subject: &str, pairs: u32, pin: &Pinned<'_>) {
        match subject {
            "atomic" => (0..pairs).for_each(|_| {
                // As `Arc` does it.
                black_box(&self.counter).fetch_add(1, Ordering::Relaxed);
                black_box(&self.counter).fetch_sub(1, Ordering::Release);
            }),
            "Arc" => (0..pairs).for_each(|_| drop(black_box(black_box(&self.arc).clone()))),
            // SAFETY: the first reference is never given up, and what is counted here is.
            "Domain" => (0..pairs).for_each(|_| unsafe {
                self.domain.add(black_box(&*self.object), 1, pin);
                self.domain.add(black_box(&*self.object), -1, pin);
            }),
            _ => (0..pairs).for_each(|_| drop(black_box(black_box(&self.shared).clone()))),
        }
    }
    /// What a kernel does in each tick; the library does it along with dropping references.
    fn work(&self, subject: &str, pin: &Pinned<'_>) {
        if subject == "Domain" {
            self.domain.work(pin, Budget::default());
        }
    }
    /// Whether every count is what it was: asked when all threads have ended.
    fn are_as_at_first(&self) -> bool {
        // SAFETY: nobody else calls the domain.
        let stopped = unsafe { AllStopped::assume() };
        self.counter.load(Ordering::Relaxed) == 1
            && Arc::strong_count(&self.arc) == 1
            && self.domain.exact(&*self.object, &stopped) == 1
    }
}

/// Let this thread run there. If the system refuses, threads are where it puts them.
fn place(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    let _ = sched_setaffinity(None, &set);
}

/// Processor time of this thread.
fn thread_clock() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// The host's CPUs that this process may use.
fn host_cpus() -> Vec<usize> {
    match sched_getaffinity(None) {
        Ok(set) => (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect(),
        Err(_) => vec![0],
    }
}

/// Nanoseconds of processor time that a pair takes.
fn measure(objects: &Objects, subject: &str, threads: usize, host: &[usize]) -> f64 {
    let barrier = Barrier::new(threads);
    let run = |cpu: usize| {
        place(host[cpu % host.len()]);
        // SAFETY: each thread is a CPU of its own, and one turn follows the other.
        let pin = unsafe { Pinned::assume(CpuId::new(cpu).expect("a CPU")) };
        barrier.wait();
        let begun = thread_clock();
        objects.run(subject, &pin);
        let took = thread_clock() - begun;
        objects.domain.leave(&pin);
        took
    };
    let total: Duration = thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = (0..threads).map(|cpu| scope.spawn(move || run(cpu))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a thread")).sum()
    });
    total.as_nanos() as f64 / (threads as f64 * f64::from(PAIRS))
}

/// The values at the quarters of the order.
fn quartiles(values: &mut [f64]) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| values[(values.len() - 1) * quarter / 4])
}

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word.starts_with(char::is_alphabetic)) {
        return counted::run(&words);
    }
    let numbers =
        |word: &str| word.split(',').map(|n| n.parse().ok().filter(|n| (1..=64).contains(n))).collect();
    let threads: Option<Vec<usize>> = words.first().map_or(Some(vec![1, 2]), |word| numbers(word));
    let turns: Option<usize> = words.get(1).map_or(Some(31), |word| word.parse().ok().filter(|n| *n > 0));
    let (Some(threads), Some(turns), true) = (threads, turns, words.len() <= 2) else {
        eprintln!("refcache: say [THREADS,… [TURNS]], with 1 to 64 threads");
        return ExitCode::from(2);
    };
    let host = host_cpus();
    println!("{} CPUs, {turns} turns of {PAIRS} pairs; a number is: median [quartiles]", host.len());
    for threads in threads {
        let objects = Objects::new(threads);
        let mut costs = SUBJECTS.map(|_| Vec::new());
        let mut ratios = SUBJECTS.map(|_| Vec::new());
        // This thread waits: nobody waits for it.
        Threads::idle(|| {
            for turn in 0..=turns {
                let took = SUBJECTS.map(|subject| measure(&objects, subject, threads, &host));
                // The first turn warms everything up.
                for i in (0..SUBJECTS.len()).filter(|_| turn > 0) {
                    costs[i].push(took[i]);
                    ratios[i].push(took[i] / took[0]);
                }
            }
        });
        println!("{threads} threads");
        for (i, subject) in SUBJECTS.iter().enumerate() {
            let [low, cost, high] = quartiles(&mut costs[i]);
            let [least, ratio, most] = quartiles(&mut ratios[i]);
            println!(
                "  {subject:8} {cost:7.2} [{low:.2} {high:.2}] ns a pair   {ratio:5.2} [{least:.2} {most:.2}] of atomic"
            );
        }
    }
    ExitCode::SUCCESS
}

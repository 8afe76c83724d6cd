//! The kernel's own tests, run in the machine by `selftest=all` or `selftest=NAME`, each reported as a record.

use alloc::{format, string::String, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicU64, Ordering};

use addr::PageRange;
use tlb::Shootdown;

use crate::{
    file, grace, hw, ids, process, sanitize, sched,
    shootdown::Ipi,
    stats::{self, Counter},
    supervisor,
    task::{self, Task},
    wait::{self, WaitQueue},
};

pub type Test = fn() -> Result<(), String>;

const TESTS: &[(&str, Test)] = &[
    ("threads run on every CPU", threads_run_everywhere),
    ("no wake is lost between two threads", ping_pong),
    ("a sleep ends at its deadline", sleep_deadline),
    ("a flush reaches every CPU", flush_reaches_all),
    ("all CPUs flush each other at once", flush_storm),
    ("idle CPUs take waiting threads", idle_cpus_steal),
];

/// Run the tests that `which` names; 0 if all passed.
pub fn run(which: &str) -> u32 {
    let mut failed = 0;
    if which == "panic" {
        panic!("asked to panic");
    }
    if which == "overflow" {
        hw::selftest::overflow_stack();
    }
    if let Some((_, mistake)) =
        sanitize::selftest::MISTAKES.iter().find(|(name, _)| sanitize::ON && which == *name)
    {
        mistake();
        supervisor::record(&format!("test {which} FAIL nobody noticed"));
        return 1;
    }
    for (name, test) in hw::selftest::TESTS
        .iter()
        .chain(TESTS)
        .chain(file::selftest::TESTS)
        .chain(grace::selftest::TESTS)
        .chain(ids::selftest::TESTS)
    {
        if which != "all" && which != *name {
            continue;
        }
        match test() {
            Ok(()) => supervisor::record(&format!("test {name} ok")),
            Err(e) => {
                failed += 1;
                supervisor::record(&format!("test {name} FAIL {e}"));
            }
        }
    }
    failed.min(125)
}

fn spawn(f: impl FnOnce() + Send + 'static) -> Result<Arc<Task>, String> {
    let kernel = process::supervisor().ok_or("no kernel process")?;
    let t = Task::kernel(kernel, f).ok_or("no memory for a thread")?;
    sched::start(t.clone());
    Ok(t)
}

/// Sleep until `done` reaches `n`, for at most `seconds`.
pub fn await_count(done: &AtomicU64, n: u64, seconds: u64) -> Result<(), String> {
    let deadline = hw::timer::now() + seconds * 1_000_000_000;
    // Acquire: pairs with the Release increments of the test threads.
    while done.load(Ordering::Acquire) < n {
        if hw::timer::now() > deadline {
            return Err(format!("{} of {n} after {seconds} s", done.load(Ordering::Relaxed)));
        }
        wait::pause_until(hw::timer::now() + 1_000_000);
    }
    Ok(())
}

fn threads_run_everywhere() -> Result<(), String> {
    let seen: Arc<Vec<AtomicU64>> = Arc::new((0..hw::cpu::count()).map(|_| AtomicU64::new(0)).collect());
    let done = Arc::new(AtomicU64::new(0));
    for c in sched::online().iter() {
        let (seen, done) = (seen.clone(), done.clone());
        let t = {
            let kernel = process::supervisor().ok_or("no kernel process")?;
            Task::kernel(kernel, move || {
                if let Some(s) = seen.get(hw::cpu::id().index()) {
                    s.fetch_add(1, Ordering::Relaxed);
                }
                // Release: pairs with `await_count`.
                done.fetch_add(1, Ordering::Release);
            })
            .ok_or("no memory for a thread")?
        };
        t.set_affinity(percpu::CpuSet::from_iter([c]));
        sched::start(t);
    }
    await_count(&done, hw::cpu::count() as u64, 20)?;
    match seen.iter().position(|s| s.load(Ordering::Relaxed) != 1) {
        None => Ok(()),
        Some(c) => Err(format!("CPU {c} ran {} threads", seen[c].load(Ordering::Relaxed))),
    }
}

fn ping_pong() -> Result<(), String> {
    const ROUNDS: u64 = 2000;
    struct Ball {
        at: AtomicU64,
        queue: WaitQueue,
    }
    let ball = Arc::new(Ball { at: AtomicU64::new(0), queue: WaitQueue::new() });
    let done = Arc::new(AtomicU64::new(0));
    for side in 0..2 {
        let (ball, done) = (ball.clone(), done.clone());
        spawn(move || {
            for round in 0..ROUNDS {
                let mine = 2 * round + side;
                // Acquire and Release: the hand-over itself.
                let _ =
                    ball.queue.wait(None, false, || (ball.at.load(Ordering::Acquire) == mine).then_some(()));
                ball.at.store(mine + 1, Ordering::Release);
                ball.queue.wake_all();
            }
            done.fetch_add(1, Ordering::Release);
        })?;
    }
    await_count(&done, 2, 60)
}

fn sleep_deadline() -> Result<(), String> {
    for ms in [1, 5, 20] {
        let start = hw::timer::now();
        wait::pause_until(start + ms * 1_000_000);
        let took = hw::timer::now() - start;
        if took < ms * 1_000_000 {
            return Err(format!("{ms} ms ended after {took} ns"));
        }
        if took > 2_000_000_000 {
            return Err(format!("{ms} ms took {took} ns"));
        }
    }
    Ok(())
}

fn flush_reaches_all() -> Result<(), String> {
    let before = stats::total(Counter::ShootdownsReceived);
    let pin = task::pinned();
    Ipi.flush(&pin, &sched::online(), PageRange::default());
    let got = stats::total(Counter::ShootdownsReceived) - before;
    if got == hw::cpu::count() as u64 - 1 { Ok(()) } else { Err(format!("{got} CPUs answered")) }
}

fn flush_storm() -> Result<(), String> {
    let rounds = if hw::cpu::count() > 16 { 3 } else { 50 };
    let done = Arc::new(AtomicU64::new(0));
    for _ in 0..hw::cpu::count() {
        let done = done.clone();
        spawn(move || {
            for _ in 0..rounds {
                Ipi.flush(&task::pinned(), &sched::online(), PageRange::default());
            }
            done.fetch_add(1, Ordering::Release);
        })?;
    }
    await_count(&done, hw::cpu::count() as u64, 60)
}

fn idle_cpus_steal() -> Result<(), String> {
    let done = Arc::new(AtomicU64::new(0));
    let n = 4 * hw::cpu::count() as u64;
    for _ in 0..n {
        let done = done.clone();
        spawn(move || {
            wait::pause_until(hw::timer::now() + 1_000_000);
            done.fetch_add(1, Ordering::Release);
        })?;
    }
    await_count(&done, n, 60)
}

//! The locks on real threads: exclusion, order of service, and waking.
#![cfg(not(loom))]

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    task::Waker,
    thread,
    time::{Duration, Instant},
};

use percpu::{CpuId, Host, Unpinned, testing::Machine};
use sync::{BitLock, RwLock, SpinLock};

/// Run `test` and fail, rather than hang, if it takes a minute: a lost wake-up is silent.
fn within_a_minute(test: impl FnOnce() + Send + 'static) {
    let (done, wait) = mpsc::channel();
    let runner = thread::spawn(move || {
        test();
        let _ = done.send(());
    });
    match wait.recv_timeout(Duration::from_secs(60)) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("nothing moves any more"),
        _ => runner.join().unwrap(),
    }
}

/// Wait for something that another thread is about to do.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(30), "never happened: {what}");
        thread::yield_now();
    }
}

#[test]
fn spin_lock_loses_no_update() {
    let total = SpinLock::new(0u64);
    thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| (0..10_000).for_each(|_| *total.lock() += 1));
        }
    });
    assert_eq!(total.into_inner(), 40_000);
}

#[test]
fn spin_lock_is_free_again_after_its_guard() {
    let mut lock = SpinLock::new(1);
    let guard = lock.lock();
    assert!(lock.try_lock().is_none());
    assert_eq!(format!("{lock:?}"), "SpinLock(held)");
    drop(guard);
    *lock.try_lock().unwrap() += 1;
    *lock.get_mut() += 1;
    assert_eq!(format!("{lock:?}"), "SpinLock(3)");
}

#[test]
fn bit_lock_loses_no_update_and_keeps_the_other_bits() {
    const LOCK: u64 = 1 << 10;
    let (word, total) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|s| {
        for t in 0..4 {
            let (word, total) = (&word, &total);
            s.spawn(move || {
                for _ in 0..10_000 {
                    assert_eq!(BitLock::lock(word, LOCK) & LOCK, 0);
                    total.store(total.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                    BitLock::unlock(word, LOCK);
                    word.fetch_or(1 << t, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(total.into_inner(), 40_000);
    assert_eq!(word.into_inner(), 0b1111);
}

/// A host that counts the wakers asked for: a thread asks when it has to wait.
struct Counted<'m> {
    machine: &'m Machine,
    waiting: &'m AtomicUsize,
    /// Where wakers are kept as well, to be used at the wrong time.
    kept: Option<&'m Mutex<Vec<Waker>>>,
}

// SAFETY: everything is passed on to a host.
unsafe impl Host for Counted<'_> {
    fn enter_pinned(&self) -> CpuId {
        self.machine.enter_pinned()
    }
    fn leave_pinned(&self) {
        self.machine.leave_pinned();
    }
    fn pins(&self) -> usize {
        self.machine.pins()
    }
    fn waker(&self) -> Waker {
        let waker = self.machine.waker();
        if let Some(kept) = self.kept {
            kept.lock().unwrap().push(waker.clone());
        }
        self.waiting.fetch_add(1, Ordering::SeqCst);
        waker
    }
    fn park(&self) {
        self.machine.park();
    }
}

impl Counted<'_> {
    fn ctx(&self) -> Unpinned<'_> {
        // SAFETY: used by the thread that makes it, inside `Machine::on`, without pins or spin locks.
        unsafe { Unpinned::new(self) }
    }
}

#[test]
fn rwlock_serves_in_order_of_arrival() {
    within_a_minute(|| {
        let machine = Machine::new(8);
        let (lock, waiting, order) = (RwLock::new(()), AtomicUsize::new(0), Mutex::new(Vec::new()));
        // Who comes when, after a writer holds the lock: R = reader.
        let arrivals = "WRRWRW";
        thread::scope(|s| {
            machine.on(0, |ctx| {
                let held = lock.write(&ctx);
                for (n, kind) in arrivals.chars().enumerate() {
                    let (machine, lock, waiting, order) = (&machine, &lock, &waiting, &order);
                    s.spawn(move || {
                        machine.on(n + 1, |_| {
                            let host = Counted { machine, waiting, kept: None };
                            if kind == 'R' {
                                let _guard = lock.read(&host.ctx());
                                order.lock().unwrap().push((kind, n));
                            } else {
                                let _guard = lock.write(&host.ctx());
                                order.lock().unwrap().push((kind, n));
                            }
                        });
                    });
                    // The waker is fetched under the inner lock, so the next to come queues behind.
                    until("the thread waits", || waiting.load(Ordering::SeqCst) == n + 1);
                }
                assert!(order.lock().unwrap().is_empty());
                drop(held);
            });
        });
        let order = order.into_inner().unwrap();
        // The readers 1 and 2 are in together, so either may be first to say so.
        let mut places: Vec<_> = order.iter().map(|(_, n)| *n).collect();
        places[1..3].sort();
        assert_eq!(places, [0, 1, 2, 3, 4, 5], "{order:?}");
    });
}

#[test]
fn rwlock_readers_are_in_together_and_a_late_reader_does_not_overtake_a_writer() {
    within_a_minute(|| {
        let machine = Machine::new(4);
        let (lock, waiting) = (RwLock::new(0), AtomicUsize::new(0));
        thread::scope(|s| {
            let (machine, lock, waiting) = (&machine, &lock, &waiting);
            machine.on(0, |ctx| {
                let first = lock.read(&ctx);
                // Beside a reader there is room for another.
                s.spawn(move || machine.on(1, |ctx| assert_eq!(*lock.read(&ctx), 0))).join().unwrap();
                let host = move || Counted { machine, waiting, kept: None };
                s.spawn(move || machine.on(2, |_| *lock.write(&host().ctx()) = 1));
                until("the writer waits", || waiting.load(Ordering::SeqCst) == 1);
                let late = s.spawn(move || machine.on(3, |_| *lock.read(&host().ctx())));
                until("the late reader waits", || waiting.load(Ordering::SeqCst) == 2);
                assert_eq!(*first, 0);
                drop(first);
                assert_eq!(late.join().unwrap(), 1);
            });
        });
    });
}

#[test]
fn rwlock_waits_on_when_woken_for_nothing() {
    within_a_minute(|| {
        let machine = Machine::new(2);
        let (lock, waiting, kept) = (RwLock::new(0), AtomicUsize::new(0), Mutex::new(Vec::new()));
        thread::scope(|s| {
            let (machine, lock, waiting, kept) = (&machine, &lock, &waiting, &kept);
            machine.on(0, |ctx| {
                let mut held = lock.write(&ctx);
                s.spawn(move || {
                    machine.on(1, |_| {
                        assert_eq!(*lock.read(&Counted { machine, waiting, kept: Some(kept) }.ctx()), 100);
                    });
                });
                until("the reader waits", || waiting.load(Ordering::SeqCst) == 1);
                for _ in 0..100 {
                    kept.lock().unwrap().iter().for_each(Waker::wake_by_ref);
                    thread::yield_now();
                    *held += 1;
                }
            });
        });
    });
}

#[test]
fn rwlock_excludes_under_load() {
    within_a_minute(|| {
        let machine = Machine::new(8);
        // Two words that are equal unless a writer is at work.
        let lock = RwLock::new((0u64, 0u64));
        let writes = AtomicU64::new(0);
        machine.run(|cpu, ctx| {
            let mut dice = 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(cpu.index() as u64 + 1);
            for _ in 0..3000 {
                dice ^= dice << 13;
                dice ^= dice >> 7;
                dice ^= dice << 17;
                if dice.is_multiple_of(4) {
                    let mut pair = lock.write(&ctx);
                    pair.0 += 1;
                    if dice.is_multiple_of(64) {
                        thread::yield_now();
                    }
                    pair.1 += 1;
                    writes.fetch_add(1, Ordering::Relaxed);
                } else {
                    let pair = lock.read(&ctx);
                    assert_eq!(pair.0, pair.1, "a reader saw a writer at work");
                }
            }
        });
        assert_eq!(lock.into_inner(), (writes.load(Ordering::Relaxed), writes.load(Ordering::Relaxed)));
    });
}

#[test]
fn rwlock_shows_who_is_in() {
    let machine = Machine::new(1);
    let mut lock = RwLock::new(5);
    *lock.get_mut() += 1;
    machine.on(0, |ctx| {
        let guard = lock.read(&ctx);
        assert_eq!(format!("{lock:?}"), "RwLock { readers: 1, writer: false, waiters: false, .. }");
        drop(guard);
        let guard = lock.write(&ctx);
        assert_eq!((*guard, format!("{lock:?}").contains("writer: true")), (6, true));
    });
}

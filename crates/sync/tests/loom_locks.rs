//! Spin lock and bit lock: exclusion and visibility, in every execution.
#![cfg(loom)]

use loom::{
    cell::UnsafeCell,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};
use percpu::testing::explore;
use sync::{BitLock, SpinLock};

#[test]
fn spin_lock_excludes_and_publishes() {
    explore("spin lock: two threads, two sections each", None, || {
        let lock = Arc::new(SpinLock::new(0));
        let l = lock.clone();
        let other = thread::spawn(move || {
            *l.lock() += 1;
            *l.lock() += 1;
        });
        *lock.lock() += 1;
        *lock.lock() += 1;
        other.join().unwrap();
        assert_eq!(*lock.lock(), 4);
    });
}

#[test]
fn spin_lock_try_lock_backs_out() {
    explore("spin lock: three threads that try", None, || {
        let lock = Arc::new(SpinLock::new(0));
        let attempt = |lock: &SpinLock<i32>| match lock.try_lock() {
            Some(mut value) => {
                *value += 1;
                1
            }
            None => 0,
        };
        let others = [0, 1].map(|_| {
            let l = lock.clone();
            thread::spawn(move || attempt(&l))
        });
        let done = attempt(&lock) + others.into_iter().map(|t| t.join().unwrap()).sum::<i32>();
        assert!(done >= 1, "all three were refused");
        assert_eq!(*lock.lock(), done);
    });
}

#[test]
fn bit_lock_excludes_and_leaves_the_other_bits() {
    const LOCK: u64 = 1 << 10;
    const DIRTY: u64 = 1 << 6;
    explore("bit lock: two threads and a bit set beside it", None, || {
        let word = Arc::new((AtomicU64::new(0x5000), UnsafeCell::new(0)));
        let section = |w: &(AtomicU64, UnsafeCell<i32>)| {
            let seen = BitLock::lock(&w.0, LOCK);
            assert_eq!(seen & !DIRTY, 0x5000);
            // SAFETY: the lock is held; loom checks it.
            w.1.with_mut(|n| unsafe { *n += 1 });
            BitLock::unlock(&w.0, LOCK);
        };
        let w = word.clone();
        let other = thread::spawn(move || section(&w));
        // Relaxed: as a processor sets the dirty bit, whoever holds the lock.
        word.0.fetch_or(DIRTY, Ordering::Relaxed);
        section(&word);
        other.join().unwrap();
        // SAFETY: the other thread has ended.
        word.1.with(|n| assert_eq!(unsafe { *n }, 2));
        assert_eq!(word.0.load(Ordering::Relaxed), 0x5000 | DIRTY);
    });
}

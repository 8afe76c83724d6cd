//! CPU sets against an oracle, and what the tests' machine promises about pins and sleep.
#![cfg(not(loom))]

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use percpu::{AtomicCpuSet, CpuId, CpuSet, MAX_CPUS, PerCpu, testing::Machine};
use proptest::prelude::*;

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).unwrap()
}

proptest! {
    #[test]
    fn sets_behave_as_sets(steps in prop::collection::vec((0..MAX_CPUS, any::<bool>()), 0..200)) {
        let (mut plain, shared, mut oracle) = (CpuSet::EMPTY, AtomicCpuSet::new(), BTreeSet::new());
        for (n, add) in steps {
            if add {
                plain.insert(cpu(n));
                shared.insert(cpu(n));
                oracle.insert(n);
            } else {
                plain.remove(cpu(n));
                shared.remove(cpu(n));
                oracle.remove(&n);
            }
            prop_assert_eq!(plain.contains(cpu(n)), add);
            prop_assert_eq!(plain.len(), oracle.len());
            prop_assert_eq!(plain.is_empty(), oracle.is_empty());
        }
        prop_assert!(plain.iter().map(CpuId::index).eq(oracle.iter().copied()));
        prop_assert_eq!(shared.snapshot(), plain);
        prop_assert_eq!(CpuSet::from_words(plain.words()), plain);
        prop_assert_eq!(plain.iter().collect::<CpuSet>(), plain);
    }

    #[test]
    fn intersection_is_that_of_sets(
        a in prop::collection::btree_set(0..MAX_CPUS, 0..60), b in prop::collection::btree_set(0..MAX_CPUS, 0..60)
    ) {
        let set = |s: &BTreeSet<usize>| s.iter().map(|n| cpu(*n)).collect::<CpuSet>();
        let both: BTreeSet<_> = a.intersection(&b).copied().collect();
        prop_assert_eq!(set(&a).intersection(&set(&b)), set(&both));
    }

    #[test]
    fn the_first_n_are_those_below_n(n in 0..=MAX_CPUS) {
        prop_assert!(CpuSet::first(n).iter().map(CpuId::index).eq(0..n));
    }
}

#[test]
fn ids_end_at_the_maximum() {
    assert!(CpuId::new(MAX_CPUS - 1).is_some());
    assert_eq!(CpuId::new(MAX_CPUS), None);
}

#[test]
fn per_cpu_values_are_on_lines_of_their_own() {
    let values = PerCpu::new(4, |c| AtomicU64::new(c.index() as u64));
    let at: Vec<_> = values.iter().map(|v| std::ptr::from_ref(v).addr()).collect();
    assert!(at.windows(2).all(|w| w[1] - w[0] >= 128 && w[0] % 128 == 0));
    assert_eq!(values.of(cpu(3)).map(|v| v.load(Ordering::Relaxed)), Some(3));
    assert!(values.of(cpu(4)).is_none());
    Machine::new(4).on(2, |ctx| assert_eq!(values.get(&ctx.pin()).load(Ordering::Relaxed), 2));
}

#[test]
fn one_thread_at_a_time_is_pinned_to_a_cpu() {
    // Plain load and store: an overlap would lose counts.
    let machine = Machine::new(2);
    let counts = PerCpu::new(2, |_| AtomicU64::new(0));
    thread::scope(|s| {
        for t in 0..6 {
            let (machine, counts) = (&machine, &counts);
            s.spawn(move || {
                machine.on(t % 2, |ctx| {
                    for _ in 0..2000 {
                        let outer = ctx.pin();
                        let inner = ctx.pin();
                        let count = counts.get(&inner);
                        count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                        drop(inner);
                        assert_eq!(outer.cpu(), cpu(t % 2));
                    }
                });
            });
        }
    });
    assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 6000));
}

#[test]
fn a_thread_migrates_between_pins() {
    let machine = Machine::new(3);
    machine.on(0, |ctx| {
        for n in [2, 1, 0] {
            machine.migrate(n);
            assert_eq!(ctx.pin().cpu(), cpu(n));
        }
    });
}

#[test]
#[should_panic(expected = "a pinned thread does not migrate")]
fn a_pinned_thread_does_not_migrate() {
    let machine = Machine::new(2);
    machine.on(0, |ctx| {
        let _pin = ctx.pin();
        machine.migrate(1);
    });
}

#[test]
#[should_panic(expected = "a pinned thread does not sleep")]
fn a_pinned_thread_does_not_sleep() {
    let machine = Machine::new(1);
    machine.on(0, |ctx| {
        let _pin = ctx.pin();
        ctx.park();
    });
}

#[test]
fn a_wake_before_the_park_is_not_lost() {
    let machine = Machine::new(1);
    machine.on(0, |ctx| {
        ctx.waker().wake();
        ctx.park();
    });
}

#[test]
fn a_sleeper_is_woken_by_its_waker() {
    let machine = Machine::new(2);
    let (sent, woken) = (AtomicBool::new(false), AtomicBool::new(false));
    let (give, take) = std::sync::mpsc::channel();
    thread::scope(|s| {
        let (machine, sent, woken) = (&machine, &sent, &woken);
        s.spawn(move || {
            machine.on(0, |ctx| {
                give.send(ctx.waker()).unwrap();
                while !sent.load(Ordering::Acquire) {
                    ctx.park();
                }
                woken.store(true, Ordering::Relaxed);
            });
        });
        let waker = take.recv().unwrap();
        sent.store(true, Ordering::Release);
        waker.wake();
    });
    assert!(woken.into_inner());
}

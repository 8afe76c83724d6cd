//! The flavour of quiescent states: what members promise each other.
#![cfg(not(any(loom, shuttle)))]

use std::{
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use rcu::{Ptr, qsbr};

struct Counted(Arc<AtomicUsize>, AtomicU64);

impl Drop for Counted {
    fn drop(&mut self) {
        self.1.store(0, Ordering::Relaxed);
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn counted(ends: &Arc<AtomicUsize>) -> Box<Counted> {
    Box::new(Counted(ends.clone(), AtomicU64::new(1)))
}

#[test]
fn a_member_that_reports_lets_objects_go() {
    qsbr!(static DOMAIN: Brand, 2);
    static AT: Ptr<Counted, Brand> = Ptr::none();
    let ends = Arc::new(AtomicUsize::new(0));
    let (mut one, mut two) = (DOMAIN.register().unwrap(), DOMAIN.register().unwrap());
    assert!(DOMAIN.register().is_none(), "there are two");
    assert!(AT.assign(counted(&ends), &mut ()).is_none());
    let section = two.read();
    assert_eq!(AT.load(&section).unwrap().1.load(Ordering::Relaxed), 1);
    one.call(AT.take(&mut ()).unwrap());
    (0..8).for_each(|_| one.quiescent());
    assert_eq!((ends.load(Ordering::SeqCst), one.pending()), (0, 1));
    drop(section);
    (0..4).for_each(|_| {
        two.quiescent();
        one.quiescent();
    });
    assert_eq!((ends.load(Ordering::SeqCst), one.pending()), (1, 0));
}

#[test]
fn nobody_waits_for_who_is_offline() {
    qsbr!(static DOMAIN: Brand, 2);
    let (mut one, mut two) = (DOMAIN.register().unwrap(), DOMAIN.register().unwrap());
    two.offline(|| one.synchronize());
}

#[test]
fn the_last_member_leaves_nothing() {
    qsbr!(static DOMAIN: Brand, 2);
    static AT: Ptr<Counted, Brand> = Ptr::none();
    let ends = Arc::new(AtomicUsize::new(0));
    let member = DOMAIN.register().unwrap();
    for _ in 0..200 {
        AT.assign(counted(&ends), &mut ()).into_iter().for_each(|old| member.call(old));
    }
    drop(member);
    assert_eq!(ends.load(Ordering::SeqCst), 199);
}

#[test]
fn synchronize_waits_for_sections_only() {
    qsbr!(static DOMAIN: Brand, 4);
    let (entered, left) = (Barrier::new(2), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut member = DOMAIN.register().unwrap();
            let section = member.read();
            entered.wait();
            thread::sleep(Duration::from_millis(20));
            left.store(true, Ordering::SeqCst);
            drop(section);
            member.quiescent();
        });
        let mut member = DOMAIN.register().unwrap();
        entered.wait();
        member.synchronize();
        assert!(left.load(Ordering::SeqCst));
    });
}

#[test]
fn readers_find_nothing_freed() {
    qsbr!(static DOMAIN: Brand, 8);
    static AT: Ptr<Counted, Brand> = Ptr::none();
    let (ends, stop) = (Arc::new(AtomicUsize::new(0)), AtomicBool::new(false));
    let replaced = thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut member = DOMAIN.register().unwrap();
                for turn in 0u32.. {
                    let section = member.read();
                    if let Some(found) = AT.load(&section) {
                        assert_eq!(found.1.load(Ordering::Relaxed), 1, "found what is freed");
                    }
                    drop(section);
                    member.quiescent();
                    if turn.is_multiple_of(1000) {
                        member.offline(thread::yield_now);
                    }
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
        }
        let mut member = DOMAIN.register().unwrap();
        for turn in 0..20_000 {
            if let Some(old) = AT.assign(counted(&ends), &mut ()) {
                if turn % 100 == 0 { member.free(old) } else { member.call(old) }
            }
            member.quiescent();
        }
        stop.store(true, Ordering::Relaxed);
        20_000 - 1
    });
    drop(DOMAIN.register());
    assert_eq!(ends.load(Ordering::SeqCst), replaced);
}

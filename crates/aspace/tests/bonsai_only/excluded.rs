//! What faults wait for, and who waits for faults, in each of the designs that the tree is compared with ([`Exclude`]): where a
//! fault goes on in one and waits in the next, so that a lock that does nothing is noticed, and one that is held for too long.

use std::{
    sync::mpsc::{Receiver, channel},
    thread,
};

use sync::pause;

use super::*;

/// As [`two_leaves`], with faults that exclude this.
fn space_of(sim: &'static Sim, exclude: Exclude) -> Arc<dyn AddressSpace> {
    sim.cpus.on(0, |ctx| {
        let space = Serial::bonsai(sim.machine(), sim.realm, exclude, &ctx).expect("there is memory");
        map(&*space, BASE, 3, &ctx);
        map(&*space, OTHER, 1, &ctx);
        sim.enter(&*space, &ctx);
        space as _
    })
}

/// Have CPU 1 do `f`, and wait a moment for it, or for as long as it may take if it must not wait. What tells its end, and whether
/// it has come.
fn beside<R: Send + 'static>(
    sim: &'static Sim,
    must_wait: bool,
    f: impl Fn(&Unpinned<'_>) -> R + Send + 'static,
) -> (Receiver<R>, Option<R>) {
    let (done, is_done) = channel();
    thread::spawn(move || sim.cpus.on(1, |ctx| done.send(f(&ctx))));
    let early = is_done.recv_timeout(if must_wait { MOMENT } else { LONG / 4 }).ok();
    (is_done, early)
}

/// Where who changes a mapping is, as another CPU faults in another mapping.
#[derive(Clone, Copy, PartialEq, Debug)]
enum At {
    /// It has the lock of the mappings, and has changed nothing.
    Look,
    /// It is changing the tree.
    Change,
    /// It flushes.
    Flush,
}

/// A fault beside a change of another mapping waits where `waits` says, and nowhere else.
fn a_fault_waits(exclude: Exclude, waits: &[At]) {
    for at in [At::Look, At::Change, At::Flush] {
        let must_wait = waits.contains(&at);
        let sim = Sim::new(2, 256);
        let space = space_of(sim, exclude);
        let (there, (answers, answer)) = (space.clone(), channel());
        let meanwhile = move || {
            let there = there.clone();
            let fault = move |ctx: &Unpinned<'_>| there.fault(page(OTHER).base(), Access::Write, ctx);
            let _ = answers.send(beside(sim, must_wait, fault));
        };
        sim.cpus.on(0, |ctx| {
            assert_eq!(sim.store(&*space, page(BASE + 1), 1, &ctx), Ok(()));
            match at {
                At::Look => pause::once_at("bonsai-looked", meanwhile),
                At::Change => pause::once_at("bonsai-pieces", meanwhile),
                At::Flush => {
                    let once = Mutex::new(Some(meanwhile));
                    let stop = move || once.lock().unwrap().take().into_iter().for_each(|f| f());
                    *sim.on_flush.lock().unwrap() = Some(Arc::new(stop));
                }
            }
            assert_eq!(space.protect(range(BASE + 1, 1), Prot::READ, &ctx), Ok(()));
        });
        *sim.on_flush.lock().unwrap() = None;
        let (later, early) = answer.try_recv().expect("it came there");
        assert_eq!(early.is_none(), must_wait, "{exclude:?}: of a fault beside who is at {at:?}");
        assert_eq!(early.or_else(|| later.recv_timeout(LONG).ok()), Some(Ok(())), "its answer");
        end(sim, &*space);
    }
}

#[test]
fn with_stock_a_fault_waits_for_all_of_a_change() {
    a_fault_waits(Exclude::Stock, &[At::Look, At::Change, At::Flush]);
}

#[test]
fn with_fault_lock_a_fault_waits_from_the_first_change_to_the_flush() {
    a_fault_waits(Exclude::FaultLock, &[At::Change, At::Flush]);
}

#[test]
fn with_hybrid_a_fault_waits_while_the_tree_changes() {
    a_fault_waits(Exclude::Hybrid, &[At::Change]);
}

#[test]
fn with_per_mapping_and_rcu_a_fault_waits_for_no_change() {
    a_fault_waits(Exclude::PerMapping, &[]);
    a_fault_waits(Exclude::Rcu, &[]);
}

/// In the middle of a fault at [`BASE`] its mapping, or the other, is unmapped: whether that waits for the fault.
fn an_unmapping_waits(exclude: Exclude, of_its_own: bool, of_another: bool) {
    for (at, must_wait) in [(BASE, of_its_own), (OTHER, of_another)] {
        let sim = Sim::new(2, 256);
        let space = space_of(sim, exclude);
        let (there, (answers, answer)) = (space.clone(), channel());
        let meanwhile = move || {
            let there = there.clone();
            let unmap = move |ctx: &Unpinned<'_>| there.unmap(range(at, 1), ctx);
            let _ = answers.send(beside(sim, must_wait, unmap));
        };
        *sim.on_asking.lock().unwrap() = Some((Use::Anonymous, Box::new(meanwhile)));
        sim.cpus.on(0, |ctx| {
            // It comes to the page before it goes, or is told that there is none.
            let done = space.fault(page(BASE).base(), Access::Write, &ctx);
            assert!(done == Ok(()) || at == BASE && done == Err(Fault::NoMapping), "{done:?}");
        });
        let (later, early) = answer.try_recv().expect("it came there");
        assert_eq!(early.is_none(), must_wait, "{exclude:?}: of an unmapping of {at:#x} beside a fault");
        assert_eq!(early.or_else(|| later.recv_timeout(LONG).ok()), Some(Ok(())), "its answer");
        end(sim, &*space);
    }
}

#[test]
fn with_stock_and_fault_lock_a_change_waits_for_all_faults() {
    an_unmapping_waits(Exclude::Stock, true, true);
    an_unmapping_waits(Exclude::FaultLock, true, true);
}

#[test]
fn with_per_mapping_a_change_waits_for_the_faults_of_its_mapping() {
    an_unmapping_waits(Exclude::PerMapping, true, false);
}

#[test]
fn with_hybrid_and_rcu_a_change_waits_for_no_fault() {
    an_unmapping_waits(Exclude::Hybrid, false, false);
    an_unmapping_waits(Exclude::Rcu, false, false);
}

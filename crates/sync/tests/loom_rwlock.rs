//! The sleeping lock: exclusion, hand-over and no lost wake-up, in every execution. A lost wake-up shows as loom's
//! report of a deadlock.
#![cfg(loom)]

use loom::{sync::Arc, thread};
use percpu::{
    Unpinned,
    testing::{Machine, explore},
};
use sync::RwLock;

type Role = fn(&RwLock<u64>, Unpinned<'_>);

fn writer(lock: &RwLock<u64>, ctx: Unpinned<'_>) {
    *lock.write(&ctx) += 1;
}

fn reader(lock: &RwLock<u64>, ctx: Unpinned<'_>) {
    let seen = *lock.read(&ctx);
    assert!(seen <= 2);
}

/// Run the roles at once, the first on the model's own thread; `writes` of them write.
fn run(roles: &[Role], writes: u64) {
    let shared = Arc::new((Machine::new(roles.len()), RwLock::new(0)));
    let others: Vec<_> = (1..roles.len())
        .map(|cpu| {
            let (role, shared) = (roles[cpu], shared.clone());
            thread::spawn(move || shared.0.on(cpu, |ctx| role(&shared.1, ctx)))
        })
        .collect();
    shared.0.on(0, |ctx| roles[0](&shared.1, ctx));
    others.into_iter().for_each(|t| t.join().unwrap());
    shared.0.on(0, |ctx| assert_eq!(*shared.1.read(&ctx), writes));
}

#[test]
fn two_writers_hand_over() {
    explore("rwlock: two writers", None, || run(&[writer, writer], 2));
}

#[test]
fn a_reader_and_a_writer_hand_over() {
    explore("rwlock: reader and writer", None, || run(&[reader, writer], 1));
}

#[test]
fn a_writer_twice_against_a_reader() {
    fn twice(lock: &RwLock<u64>, ctx: Unpinned<'_>) {
        writer(lock, ctx);
        writer(lock, ctx);
    }
    explore("rwlock: a writer twice and a reader", None, || run(&[twice, reader], 2));
}

#[test]
fn two_readers_are_let_in_together_after_a_writer() {
    explore("rwlock: writer and two readers", None, || run(&[writer, reader, reader], 1));
}

#[test]
fn two_writers_and_a_reader_queue() {
    explore("rwlock: two writers and a reader", None, || run(&[writer, writer, reader], 2));
}

#[test]
fn two_readers_queue_between_two_writers() {
    explore("rwlock: two writers and two readers", Some(3), || run(&[writer, writer, reader, reader], 2));
}

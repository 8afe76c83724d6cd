//! The biased lock: exclusion, and that readers see what was written, in every execution.
#![cfg(loom)]

use loom::{sync::Arc, thread};
use percpu::testing::{Machine, explore};
use sync::{Biased, Readers};

type Lock = Biased<u64, Arc<Readers>>;

/// A biased lock on a machine of two CPUs.
fn biased() -> Arc<(Machine, Lock)> {
    let shared = Arc::new((Machine::new(2), Biased::new(0, Arc::new(Readers::new()))));
    shared.0.on(0, |ctx| assert_eq!(*shared.1.read(&ctx), 0));
    shared
}

#[test]
fn no_reader_is_let_in_beside_a_writer() {
    explore("biased: reader and writer", None, || {
        let shared = biased();
        let reader = {
            let shared = shared.clone();
            thread::spawn(move || shared.0.on(1, |ctx| assert!(*shared.1.read(&ctx) <= 1)))
        };
        shared.0.on(0, |ctx| *shared.1.write(&ctx) += 1);
        reader.join().unwrap();
        shared.0.on(0, |ctx| assert_eq!(*shared.1.read(&ctx), 1));
    });
}

/// The first read after the writer makes it biased again, for the reader that was waiting or comes then.
#[test]
fn it_is_biased_again_behind_a_writer() {
    explore("biased: two readers in turn and a writer", Some(3), || {
        let shared = biased();
        let reader = {
            let shared = shared.clone();
            thread::spawn(move || {
                shared.0.on(1, |ctx| {
                    let first = *shared.1.read(&ctx);
                    let second = *shared.1.read(&ctx);
                    assert!(first <= second && second <= 2);
                });
            })
        };
        shared.0.on(0, |ctx| {
            *shared.1.write(&ctx) += 1;
            assert_eq!(*shared.1.read(&ctx), 1);
            *shared.1.write(&ctx) += 1;
        });
        reader.join().unwrap();
        shared.0.on(0, |ctx| assert_eq!(*shared.1.read(&ctx), 2));
    });
}

/// A writer that finds the name of another lock in a slot has the reads of its own before it.
#[test]
fn a_slot_names_another_lock() {
    explore("biased: a reader of two locks and a writer of the first", None, || {
        let readers = Arc::new(Readers::new());
        let machine = Machine::new(2);
        let locks = [(); 2].map(|()| Biased::new(0u64, readers.clone()));
        machine.on(0, |ctx| locks.iter().for_each(|lock| assert_eq!(*lock.read(&ctx), 0)));
        let shared = Arc::new((machine, locks));
        let reader = {
            let shared = shared.clone();
            thread::spawn(move || {
                shared.0.on(1, |ctx| {
                    assert!(*shared.1[0].read(&ctx) <= 1);
                    assert_eq!(*shared.1[1].read(&ctx), 0);
                });
            })
        };
        shared.0.on(0, |ctx| *shared.1[0].write(&ctx) += 1);
        reader.join().unwrap();
    });
}

/// Who must not sleep is let in beside no writer either, and turned away at most by one.
#[test]
fn who_must_not_sleep_is_let_in_beside_no_writer() {
    explore("biased: a reader that must not sleep and a writer", Some(3), || {
        let shared = biased();
        let reader = {
            let shared = shared.clone();
            thread::spawn(move || {
                shared.0.on(1, |ctx| {
                    let pin = ctx.pin();
                    let first = shared.1.try_read(&pin).map_or(0, |value| *value);
                    let second = shared.1.try_read(&pin).map_or(first, |value| *value);
                    assert!(first <= second && second <= 1);
                });
            })
        };
        shared.0.on(0, |ctx| *shared.1.write(&ctx) += 1);
        reader.join().unwrap();
        shared.0.on(0, |ctx| assert_eq!(shared.1.try_read(&ctx.pin()).map(|value| *value), Some(1)));
    });
}

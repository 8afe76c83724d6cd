//! The classic pair: readers fetch a field, and an updater copies, changes the field and publishes.
//!
//!     cargo run --release -p quire-rcu --features std --example foo

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use rcu::{Ptr, domain, user::Reader};

domain!(static FOOS: Foos);

#[derive(Clone)]
struct Foo {
    a: i32,
    b: char,
    c: i64,
}

static FOO: Ptr<Foo, Foos> = Ptr::none();
static FOO_LOCK: Mutex<()> = Mutex::new(());

fn get_a(reader: &Reader<Foos>) -> i32 {
    let section = reader.read();
    FOO.load(&section).map_or(0, |found| found.a)
}

fn update_a(reader: &mut Reader<Foos>, a: i32) {
    let old = {
        let mut lock = FOO_LOCK.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: whoever changes FOO holds the lock.
        let now = unsafe { FOO.load_locked(&lock) };
        let now = now.cloned().unwrap_or(Foo { a: 0, b: 'x', c: 42 });
        // From here new sections find the new one.
        FOO.assign(Box::new(Foo { a, ..now }), &mut lock)
    };
    if let Some(old) = old {
        // Once the old sections are over; `reader.call(old)` would not wait for them.
        reader.free(old);
    }
}

fn main() {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let reader = FOOS.register();
                    let (mut last, mut reads) = (0, 0u64);
                    while !stop.load(Ordering::Relaxed) {
                        let a = get_a(&reader);
                        assert!(a >= last, "a went back");
                        (last, reads) = (a, reads + 1);
                    }
                    reads
                })
            })
            .collect();
        let mut reader = FOOS.register();
        (1..=10_000).for_each(|a| update_a(&mut reader, a));
        stop.store(true, Ordering::Relaxed);
        let reads: u64 = readers.into_iter().filter_map(|thread| thread.join().ok()).sum();
        let section = reader.read();
        if let Some(found) = FOO.load(&section) {
            println!("a = {}, b = {:?}, c = {}: 10000 updates, {reads} reads", found.a, found.b, found.c);
        }
        println!("{:?}, {:?}", FOOS.mode(), FOOS.stats());
    });
}

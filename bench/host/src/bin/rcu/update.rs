//! What it costs to wait for a period, and to have an object freed after one.

use std::{
    hint::black_box,
    sync::atomic::{AtomicPtr, Ordering},
};

use rcu::{Ptr, domain, user::Reader};
use rustix::thread::{MembarrierCommand, membarrier};

use crate::team::{Record, Scale, Subject, against, measure, print, verdict};

domain!(static BEST: Best);
domain!(static FENCED: Fenced);

/// What is replaced.
type Value = [u64; 4];

/// Registered in each turn, so that nothing is left to a thread's end.
fn reader<D>(domain: &'static rcu::user::Domain<D>) -> Reader<'static, D> {
    domain.register()
}

/// With each number of threads.
pub fn run(scale: &Scale) -> Vec<Record> {
    FENCED.use_fences();
    let mut all = Vec::new();
    for &threads in &scale.threads {
        println!("synchronize, {threads} threads, no sections");
        let subjects = [
            Subject::new("membarrier", |_, ops| {
                // A kernel that refuses says so at once: the figure is then of that.
                (0..ops).for_each(|_| _ = membarrier(MembarrierCommand::PrivateExpedited));
            }),
            Subject::new("synchronize", |_, ops| {
                let mut reader = reader(&BEST);
                (0..ops).for_each(|_| reader.synchronize());
            }),
            Subject::new("synchronize, fences", |_, ops| {
                let mut reader = reader(&FENCED);
                (0..ops).for_each(|_| reader.synchronize());
            }),
        ];
        let records = measure("synchronize", threads, scale.turns, scale.operations >> 6, &subjects);
        print(&records);
        let beyond = records[1].ns[1] - 2.0 * records[0].ns[1];
        println!("  beyond two membarriers: {beyond:.0} ns, at most 100 wanted");
        all.extend(records);
        all.extend(replace(threads, scale));
    }
    all
}

fn replace(threads: usize, scale: &Scale) -> Vec<Record> {
    println!("replace, {threads} threads, each a pointer of its own: allocate, swap, retire and free");
    let subjects = [
        Subject::new("free at once", |_, ops| {
            let at = AtomicPtr::new(Box::into_raw(Box::new([0u64; 4])));
            (0..ops).for_each(|n| {
                let old = at.swap(Box::into_raw(Box::new(black_box([n; 4]))), Ordering::AcqRel);
                // SAFETY: only this thread has the pointer.
                drop(unsafe { Box::from_raw(old) });
            });
            // SAFETY: as above.
            drop(unsafe { Box::from_raw(at.into_inner()) });
        }),
        Subject::new("free 256 later", |_, ops| {
            let at = AtomicPtr::new(Box::into_raw(Box::new([0u64; 4])));
            let mut later = Vec::with_capacity(256);
            (0..ops).for_each(|n| {
                let old = at.swap(Box::into_raw(Box::new(black_box([n; 4]))), Ordering::AcqRel);
                // SAFETY: only this thread has the pointer.
                later.push(unsafe { Box::from_raw(old) });
                if later.len() == later.capacity() {
                    later.clear();
                }
            });
            // SAFETY: as above.
            drop(unsafe { Box::from_raw(at.into_inner()) });
        }),
        Subject::new("Reader::call", |_, ops| {
            let (at, reader) = (Ptr::<Value, Best>::new(Box::new([0; 4])), reader(&BEST));
            (0..ops).for_each(|n| {
                let old = at.assign(Box::new(black_box([n; 4])), &mut ());
                old.into_iter().for_each(|old| reader.call(old));
            });
        }),
        Subject::new("Reader::call, fences", |_, ops| {
            let (at, reader) = (Ptr::<Value, Fenced>::new(Box::new([0; 4])), reader(&FENCED));
            (0..ops).for_each(|n| {
                let old = at.assign(Box::new(black_box([n; 4])), &mut ());
                old.into_iter().for_each(|old| reader.call(old));
            });
        }),
        Subject::new("crossbeam defer", |_, ops| {
            let at = crossbeam_epoch::Atomic::new([0u64; 4]);
            (0..ops).for_each(|n| {
                let guard = crossbeam_epoch::pin();
                let new = crossbeam_epoch::Owned::new(black_box([n; 4]));
                let old = at.swap(new, Ordering::AcqRel, &guard);
                // SAFETY: unlinked.
                unsafe { guard.defer_destroy(old) };
            });
            // SAFETY: only this thread has the pointer.
            drop(unsafe { at.into_owned() });
        }),
        Subject::new("seize retire", |_, ops| {
            let collector = seize::Collector::new();
            let at = AtomicPtr::new(Box::into_raw(Box::new([0u64; 4])));
            (0..ops).for_each(|n| {
                let old = at.swap(Box::into_raw(Box::new(black_box([n; 4]))), Ordering::AcqRel);
                // SAFETY: unlinked, and made of a box.
                unsafe { collector.retire(old, seize::reclaim::boxed) };
            });
            // SAFETY: only this thread has the pointer.
            drop(unsafe { Box::from_raw(at.into_inner()) });
        }),
    ];
    let records = measure("replace", threads, scale.turns, scale.operations >> 3, &subjects);
    print(&records);
    verdict("Reader::call against seize", against(&records, "Reader::call", &["seize retire"]), 1.0);
    verdict("Reader::call against crossbeam", against(&records, "Reader::call", &["crossbeam defer"]), 1.0);
    let beyond = records[2].ns[1] - records[1].ns[1];
    println!(
        "  call and run beyond allocating, swapping, and freeing as late: {beyond:.1} ns, at most 10 wanted"
    );
    records
}

//! What a section costs: enter, load a pointer, read what it points to, leave.

use std::{
    cell::RefCell,
    hint::black_box,
    sync::{
        Mutex, RwLock,
        atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence},
    },
};

use rcu::{Ptr, domain, qsbr, qsbr::Member, user::Reader};

use crate::team::{Record, Scale, Subject, against, measure, print, verdict};

domain!(static BEST: Best);
domain!(static FENCED: Fenced);
qsbr!(static MEMBERS: Members, 64);

// Of left-right, hazard pointers and versions only what readers do is here, which is the least that the protocols need.

/// Sections between two reports of a member's.
const REPORT: u64 = 1024;
const PEERS: [&str; 3] = ["crossbeam pin", "crossbeam handle", "seize"];

/// A value as it was from a time on, and before that.
struct Version {
    since: u64,
    value: u64,
    before: Option<&'static Version>,
}

impl Version {
    /// The value at a time: that of the first version, from the newest, that is as old.
    fn at(&self, time: u64) -> u64 {
        let mut version = self;
        while version.since > time
            && let Some(before) = version.before
        {
            version = before;
        }
        version.value
    }
}

/// A word on lines of its own.
#[repr(align(128))]
struct Line(AtomicU64);

thread_local! {
    static READER: Reader<'static, Best> = BEST.register();
    static SLOW: Reader<'static, Fenced> = FENCED.register();
    /// What this thread reads, by a hazard pointer (Michael 2004).
    static HAZARD: Line = const { Line(AtomicU64::new(0)) };
    /// The time of this thread's snapshot, which who frees versions looks at; the largest number in none.
    static SNAPSHOT: Line = const { Line(AtomicU64::new(u64::MAX)) };
    /// Odd in a section of left-right (Ramalhete and Correia 2015).
    static COUNT: Line = const { Line(AtomicU64::new(0)) };
    static MEMBER: RefCell<Option<Member<'static, Members>>> = RefCell::new(MEMBERS.register());
}

/// So many sections. What they give is summed up, so that none is left out.
#[inline(always)]
fn enough(ops: u64, mut section: impl FnMut() -> u64) {
    black_box((0..ops).fold(0, |sum, _| sum + section()));
}

/// With each number of threads.
pub fn run(scale: &Scale) -> Vec<Record> {
    FENCED.use_fences();
    let plain = AtomicPtr::new(Box::leak(Box::new(1u64)));
    let (best, fenced) = (Ptr::<u64, Best>::new(Box::new(1)), Ptr::<u64, Fenced>::new(Box::new(1)));
    let (members, global) = (Ptr::<u64, Members>::new(Box::new(1)), Ptr::<u64>::new(Box::new(1)));
    let (sides, side) = ([1u64, 1], AtomicUsize::new(0));
    let first: &Version = Box::leak(Box::new(Version { since: 1, value: 1, before: None }));
    let newest = Box::leak(Box::new(Version { since: 2, value: 1, before: Some(first) }));
    let (clock, versions) = (AtomicU64::new(2), AtomicPtr::new(newest as *mut Version));
    let (rwlock, mutex) = (RwLock::new(1u64), Mutex::new(1u64));
    let epoch = crossbeam_epoch::Atomic::new(1u64);
    let collector = seize::Collector::new();
    let subjects = [
        Subject::new("plain load", |_, ops| {
            enough(ops, || {
                // SAFETY: leaked.
                let found = unsafe { plain.load(Ordering::Acquire).as_ref() };
                found.map_or(0, |value| *value)
            });
        }),
        Subject::new("Qsbr", |_, ops| {
            MEMBER.with_borrow_mut(|member| {
                let member = member.as_mut().expect("fewer than 64 threads");
                let mut left = ops;
                while left > 0 {
                    let some = left.min(REPORT);
                    enough(some, || {
                        let section = member.read();
                        members.load(&section).map_or(0, |value| *value)
                    });
                    member.quiescent();
                    left -= some;
                }
            });
        }),
        Subject::new("Reader", |_, ops| {
            READER.with(|reader| {
                enough(ops, || {
                    let section = reader.read();
                    best.load(&section).map_or(0, |value| *value)
                });
            });
        }),
        Subject::new("rcu::read", |_, ops| {
            enough(ops, || {
                let section = rcu::read();
                global.load(&section).map_or(0, |value| *value)
            });
        }),
        Subject::new("Reader, fences", |_, ops| {
            SLOW.with(|reader| {
                enough(ops, || {
                    let section = reader.read();
                    fenced.load(&section).map_or(0, |value| *value)
                });
            });
        }),
        Subject::new("crossbeam pin", |_, ops| {
            enough(ops, || {
                let guard = crossbeam_epoch::pin();
                // SAFETY: never replaced.
                let found = unsafe { epoch.load(Ordering::Acquire, &guard).as_ref() };
                found.map_or(0, |value| *value)
            });
        }),
        Subject::new("crossbeam handle", |_, ops| {
            let handle = crossbeam_epoch::default_collector().register();
            enough(ops, || {
                let guard = handle.pin();
                // SAFETY: never replaced.
                let found = unsafe { epoch.load(Ordering::Acquire, &guard).as_ref() };
                found.map_or(0, |value| *value)
            });
        }),
        Subject::new("seize", |_, ops| {
            enough(ops, || {
                let guard = collector.enter();
                let found = seize::Guard::protect(&guard, &plain, Ordering::Acquire);
                // SAFETY: never replaced.
                unsafe { found.as_ref() }.map_or(0, |value| *value)
            });
        }),
        Subject::new("hazard pointer", |_, ops| {
            HAZARD.with(|hazard| {
                enough(ops, || {
                    let mut found = plain.load(Ordering::Acquire);
                    loop {
                        hazard.0.store(found.addr() as u64, Ordering::Relaxed);
                        // Announced before the look whether it is still the one; who frees looks at what is announced.
                        fence(Ordering::SeqCst);
                        let now = plain.load(Ordering::Acquire);
                        if now == found {
                            break;
                        }
                        found = now;
                    }
                    // SAFETY: leaked.
                    let value = unsafe { *found };
                    hazard.0.store(0, Ordering::Release);
                    value
                });
            });
        }),
        Subject::new("left-right", |_, ops| {
            COUNT.with(|count| {
                enough(ops, || {
                    // The writer changes the side that nobody reads, has readers go there, and waits for these counts to be even.
                    count.0.fetch_add(1, Ordering::SeqCst);
                    let value = sides[side.load(Ordering::Acquire)];
                    count.0.fetch_add(1, Ordering::Release);
                    value
                });
            });
        }),
        Subject::new("versions", |_, ops| {
            SNAPSHOT.with(|snapshot| {
                enough(ops, || {
                    let mut time = clock.load(Ordering::Acquire);
                    loop {
                        snapshot.0.store(time, Ordering::Relaxed);
                        // Announced before the look whether it is still now; who frees looks at what is announced.
                        fence(Ordering::SeqCst);
                        let now = clock.load(Ordering::Acquire);
                        if now == time {
                            break;
                        }
                        time = now;
                    }
                    // SAFETY: leaked.
                    let value = unsafe { &*versions.load(Ordering::Acquire) }.at(time);
                    snapshot.0.store(u64::MAX, Ordering::Release);
                    value
                });
            });
        }),
        Subject::new("versions in a section", |_, ops| {
            READER.with(|reader| {
                enough(ops, || {
                    let _section = reader.read();
                    let time = clock.load(Ordering::Acquire);
                    // SAFETY: leaked.
                    unsafe { &*versions.load(Ordering::Acquire) }.at(time)
                });
            });
        }),
        Subject::new("RwLock", |_, ops| {
            enough(ops, || rwlock.read().map_or(0, |value| *value));
        }),
        Subject::new("Mutex", |_, ops| {
            enough(ops, || mutex.lock().map_or(0, |value| *value));
        }),
    ];
    let mut all = Vec::new();
    for &threads in &scale.threads {
        println!("read_side, {threads} threads; user domain: {:?}", BEST.mode());
        let records = measure("read_side", threads, scale.turns, scale.operations, &subjects);
        print(&records);
        verdict(
            "Reader against the better of crossbeam and seize",
            against(&records, "Reader", &PEERS),
            0.25,
        );
        verdict("rcu::read against them", against(&records, "rcu::read", &PEERS), 0.25);
        verdict("Reader with fences against them", against(&records, "Reader, fences", &PEERS), 1.0);
        verdict("Qsbr against a plain load", against(&records, "Qsbr", &["plain load"]), 1.2);
        all.extend(records);
    }
    all
}

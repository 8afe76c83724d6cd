//! What the user-space domain promises its threads, one thing at a time.
#![cfg(not(any(loom, shuttle)))]

use std::{
    cell::Cell,
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rcu::{
    Ptr, domain,
    user::{Full, Mode, Stall},
};

/// Counts its end.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn counted(ends: &Arc<AtomicUsize>) -> Box<Counted> {
    Box::new(Counted(ends.clone()))
}

#[test]
fn a_reader_keeps_what_it_has_found() {
    domain!(static DOMAIN: Brand);
    static AT: Ptr<u32, Brand> = Ptr::none();
    let mut updater = DOMAIN.register();
    assert!(AT.assign(Box::new(1), &mut ()).is_none());
    let (found, replaced, left) = (Barrier::new(2), Barrier::new(2), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            let reader = DOMAIN.register();
            let section = reader.read();
            let value = AT.load(&section).unwrap();
            found.wait();
            replaced.wait();
            thread::sleep(Duration::from_millis(20));
            assert_eq!(*value, 1);
            left.store(true, Ordering::SeqCst);
        });
        found.wait();
        let old = AT.assign(Box::new(2), &mut ()).unwrap();
        replaced.wait();
        updater.free(old);
        assert!(left.load(Ordering::SeqCst), "freed before the section ended");
    });
}

#[test]
fn sections_nest_and_end_in_any_order() {
    domain!(static DOMAIN: Brand);
    let reader = DOMAIN.register();
    let (outer, inner) = (reader.read(), reader.read());
    let need = DOMAIN.snap();
    drop(outer);
    assert!(!DOMAIN.poll(need), "the inner section is still open");
    drop(inner);
    assert!(DOMAIN.poll(need));
}

#[test]
fn a_section_that_begins_later_is_not_waited_for() {
    domain!(static DOMAIN: Brand);
    let readers = [DOMAIN.register(), DOMAIN.register()];
    let first = readers[0].read();
    let need = DOMAIN.snap();
    assert!(!DOMAIN.poll(need));
    let _second = readers[1].read();
    drop(first);
    assert!(DOMAIN.poll(need));
}

#[test]
fn retired_objects_are_freed_by_whole_bags_and_by_barriers() {
    domain!(static DOMAIN: Brand);
    static AT: Ptr<Counted, Brand> = Ptr::none();
    let ends = Arc::new(AtomicUsize::new(0));
    let mut reader = DOMAIN.register();
    for _ in 0..=1000 {
        AT.assign(counted(&ends), &mut ()).into_iter().for_each(|old| reader.call(old));
    }
    let freed = ends.load(Ordering::SeqCst);
    assert!((1000 - 256..1000).contains(&freed), "{freed} of 1000 are freed");
    reader.barrier();
    assert_eq!(ends.load(Ordering::SeqCst), 1000);
    assert_eq!((DOMAIN.stats().freed, DOMAIN.stats().waiting), (1000, 0));
}

#[test]
fn a_barrier_takes_what_other_threads_have_retired() {
    domain!(static DOMAIN: Brand);
    static AT: Ptr<Counted, Brand> = Ptr::none();
    let ends = Arc::new(AtomicUsize::new(0));
    let (retired, done) = (Barrier::new(2), Barrier::new(2));
    thread::scope(|scope| {
        scope.spawn(|| {
            let reader = DOMAIN.register();
            assert!(AT.assign(counted(&ends), &mut ()).is_none());
            reader.call(AT.take(&mut ()).unwrap());
            retired.wait();
            done.wait();
        });
        retired.wait();
        assert_eq!(ends.load(Ordering::SeqCst), 0);
        DOMAIN.barrier_unregistered();
        assert_eq!(ends.load(Ordering::SeqCst), 1);
        done.wait();
    });
}

#[test]
fn a_thread_that_ends_leaves_what_it_has_retired() {
    domain!(static DOMAIN: Brand);
    static AT: Ptr<Counted, Brand> = Ptr::none();
    let ends = Arc::new(AtomicUsize::new(0));
    let here = DOMAIN.register();
    let section = here.read();
    thread::scope(|scope| {
        scope.spawn(|| {
            let reader = DOMAIN.register();
            assert!(AT.assign(counted(&ends), &mut ()).is_none());
            reader.call(AT.take(&mut ()).unwrap());
        });
    });
    assert_eq!(ends.load(Ordering::SeqCst), 0);
    drop(section);
    here.flush();
    assert_eq!(ends.load(Ordering::SeqCst), 1);
}

#[test]
fn a_panic_ends_the_section() {
    domain!(static DOMAIN: Brand);
    let thread = thread::spawn(|| {
        let reader = DOMAIN.register();
        let _section = reader.read();
        panic!("on purpose");
    });
    assert!(thread.join().is_err());
    DOMAIN.register().synchronize();
}

#[test]
fn threads_come_and_go_beyond_the_first_slots() {
    domain!(static DOMAIN: Brand);
    let barrier = Barrier::new(40);
    for _ in 0..2 {
        thread::scope(|scope| {
            for _ in 0..40 {
                scope.spawn(|| {
                    let mut reader = DOMAIN.register();
                    let section = reader.read();
                    barrier.wait();
                    drop(section);
                    reader.synchronize();
                });
            }
        });
    }
}

/// One reader that never leaves, and a writer at full speed.
#[test]
fn memory_is_bounded_and_the_report_names_the_reader() {
    domain!(static DOMAIN: Brand);
    static AT: Ptr<[u64; 64], Brand> = Ptr::none();
    static REPORT: Mutex<Option<Stall>> = Mutex::new(None);
    const LIMIT: usize = 1 << 20;
    DOMAIN.set_limit(LIMIT);
    DOMAIN.set_stall(Duration::from_millis(100), |stall| *REPORT.lock().unwrap() = Some(stall.clone()));
    let (entered, stop, line) = (Barrier::new(2), AtomicBool::new(false), Cell::new(0));
    thread::scope(|scope| {
        let (entered, stop) = (&entered, &stop);
        thread::Builder::new()
            .name("parked".into())
            .spawn_scoped(scope, move || {
                let reader = DOMAIN.register();
                let _section = reader.read();
                entered.wait();
                while !stop.load(Ordering::SeqCst) {
                    thread::sleep(Duration::from_millis(1));
                }
            })
            .unwrap();
        line.set(line!() - 7);
        entered.wait();
        let writer = scope.spawn(move || {
            let reader = DOMAIN.register();
            let mut count = 0;
            while !stop.load(Ordering::SeqCst) {
                AT.assign(Box::new([0; 64]), &mut ()).into_iter().for_each(|old| reader.call(old));
                count += 1;
            }
            count
        });
        let begun = Instant::now();
        while REPORT.lock().unwrap().is_none() {
            assert!(begun.elapsed() < Duration::from_secs(60), "nothing was reported");
            thread::sleep(Duration::from_millis(5));
        }
        // The writer stands: what waits is the limit and a bag.
        let waiting = DOMAIN.stats().waiting;
        assert!((LIMIT..LIMIT + 2 * (64 << 10)).contains(&waiting), "{waiting} bytes wait");
        assert_eq!(DOMAIN.stats().throttled, 1);
        // Who won't wait is refused.
        let here = DOMAIN.register();
        let old = AT.assign(Box::new([1; 64]), &mut ()).unwrap();
        let Err(Full(old)) = here.try_call(old) else { panic!("there is no room") };
        // In a section nobody waits.
        let section = here.read();
        here.call(old);
        drop(section);
        stop.store(true, Ordering::SeqCst);
        assert!(writer.join().unwrap() > 1000);
    });
    DOMAIN.barrier_unregistered();
    assert_eq!(DOMAIN.stats().waiting, 0);
    let report = REPORT.lock().unwrap().take().unwrap();
    assert!(report.waited >= Duration::from_millis(100));
    let [parked] = &report.holdouts[..] else { panic!("{report}") };
    assert_eq!(parked.name, "parked");
    if cfg!(debug_assertions) {
        let place = parked.place.unwrap();
        assert_eq!((place.file(), place.line()), (file!(), line.get()));
    }
}

#[test]
fn both_modes_work() {
    domain!(static FENCED: Fenced);
    assert!(FENCED.use_fences());
    domain!(static BEST: Best);
    let mut reader = FENCED.register();
    drop(reader.read());
    reader.synchronize();
    assert_eq!((FENCED.mode(), FENCED.stats().periods), (Mode::Fences, 1));
    BEST.register().synchronize();
    assert_eq!(BEST.mode(), Mode::best());
    assert!(!BEST.use_fences(), "it is in use");
}

/// What is freed retires something else, more than once.
#[test]
fn destructors_may_retire() {
    static NEXT: Ptr<Chain> = Ptr::none();
    struct Chain(u32, Arc<AtomicUsize>);
    impl Drop for Chain {
        fn drop(&mut self) {
            self.1.fetch_add(1, Ordering::SeqCst);
            if self.0 > 0 {
                let next = Box::new(Chain(self.0 - 1, self.1.clone()));
                NEXT.assign(next, &mut ()).into_iter().for_each(rcu::call);
                NEXT.take(&mut ()).into_iter().for_each(rcu::call);
            }
        }
    }
    let ends = Arc::new(AtomicUsize::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            assert!(NEXT.assign(Box::new(Chain(9, ends.clone())), &mut ()).is_none());
            rcu::call(NEXT.take(&mut ()).unwrap());
        });
    });
    while ends.load(Ordering::SeqCst) < 10 {
        rcu::barrier().unwrap();
    }
}

#[test]
#[cfg_attr(debug_assertions, should_panic = "in a section")]
fn waiting_in_a_section_of_the_threads_own_is_refused() {
    let _section = rcu::read();
    assert_eq!(rcu::synchronize(), Err(rcu::user::InSection));
}

#[test]
#[should_panic = "in a section"]
fn a_second_reader_does_not_wait_for_the_first_ones_section() {
    domain!(static DOMAIN: Brand);
    let first = DOMAIN.register();
    let _section = first.read();
    DOMAIN.register().synchronize();
}

#[test]
#[should_panic = "in a section"]
fn nor_does_a_second_readers_barrier() {
    let _section = rcu::read();
    rcu::user::global().register().barrier();
}

/// Over the limit, with a section open by another reader.
#[test]
fn a_second_reader_retires_in_the_first_ones_section() {
    domain!(static DOMAIN: Brand);
    static AT: Ptr<[u64; 64], Brand> = Ptr::none();
    DOMAIN.set_limit(100 << 10);
    let (first, mut second) = (DOMAIN.register(), DOMAIN.register());
    let section = first.read();
    for _ in 0..1000 {
        AT.assign(Box::new([0; 64]), &mut ()).into_iter().for_each(|old| second.call(old));
    }
    let stats = DOMAIN.stats();
    assert!(stats.waiting > 100 << 10 && stats.throttled == 0, "{stats:?}");
    drop(section);
    second.barrier();
    assert_eq!(DOMAIN.stats().waiting, 0);
}

/// More than the limit is retired in a destructor, by another reader than the one that runs it, or by none: it does not wait for
/// its own bag, and begins no other.
#[test]
fn destructors_retire_by_any_reader() {
    domain!(static DOMAIN: Brand);
    static AT: Ptr<Outer, Brand> = Ptr::none();
    static INNER: Ptr<Inner, Brand> = Ptr::none();
    static DEEPEST: AtomicUsize = AtomicUsize::new(0);
    std::thread_local!(static DEPTH: Cell<usize> = const { Cell::new(0) });
    fn count(f: impl FnOnce()) {
        DEPTH.set(DEPTH.get() + 1);
        DEEPEST.fetch_max(DEPTH.get(), Ordering::SeqCst);
        f();
        DEPTH.set(DEPTH.get() - 1);
    }
    struct Outer(#[allow(dead_code)] [u8; 16 << 10]);
    struct Inner(#[allow(dead_code)] [u64; 64]);
    impl Drop for Outer {
        fn drop(&mut self) {
            count(|| {
                let reader = DOMAIN.register();
                for _ in 0..1000 {
                    INNER
                        .assign(Box::new(Inner([0; 64])), &mut ())
                        .into_iter()
                        .for_each(|old| reader.call(old));
                }
            });
        }
    }
    impl Drop for Inner {
        fn drop(&mut self) {
            count(|| ());
        }
    }
    DOMAIN.set_limit(8 << 10);
    let reader = DOMAIN.register();
    for flush in [true, false] {
        assert!(AT.assign(Box::new(Outer([0; 16 << 10])), &mut ()).is_none());
        reader.call(AT.take(&mut ()).unwrap());
        if flush { reader.flush() } else { DOMAIN.barrier_unregistered() }
    }
    DOMAIN.barrier_unregistered();
    assert_eq!((DOMAIN.stats().waiting, DOMAIN.stats().throttled), (0, 0));
    assert_eq!(DEEPEST.load(Ordering::SeqCst), 1, "a destructor ran another");
}

#[test]
#[cfg(debug_assertions)]
#[should_panic = "was dropped"]
fn a_retired_object_that_is_dropped_is_a_mistake() {
    let at = Ptr::<u8>::new(Box::new(1));
    drop(at.take(&mut ()));
}

/// Sections are begun in a signal handler, wherever the signal finds the thread: also between the steps of another section's
/// beginning.
#[test]
fn sections_in_signal_handlers() {
    static AT: Ptr<[u64; 4]> = Ptr::none();
    static SEEN: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn handler(_: libc::c_int) {
        let section = rcu::read();
        if let Some(&[first, .., last]) = AT.load(&section) {
            assert_eq!(first, last);
            SEEN.fetch_add(1, Ordering::Relaxed);
        }
    }
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            rcu::register();
            // SAFETY: the handler reads, and counts.
            unsafe { libc::signal(libc::SIGUSR1, handler as *const () as libc::sighandler_t) };
            // SAFETY: no arguments.
            let this = unsafe { libc::pthread_self() };
            let ticker = thread::spawn(move || {
                while SEEN.load(Ordering::Relaxed) < 200 {
                    // SAFETY: the thread waits for this one.
                    unsafe { libc::pthread_kill(this, libc::SIGUSR1) };
                    thread::yield_now();
                }
            });
            while !ticker.is_finished() {
                let section = rcu::read();
                if let Some(&[first, .., last]) = AT.load(&section) {
                    assert_eq!(first, last);
                }
            }
            ticker.join().unwrap();
        });
        scope.spawn(|| {
            let mut n = 0;
            while !stop.load(Ordering::SeqCst) {
                n += 1;
                AT.assign(Box::new([n; 4]), &mut ()).into_iter().for_each(|old| rcu::free(old).unwrap());
            }
        });
        reader.join().unwrap();
        stop.store(true, Ordering::SeqCst);
    });
}

/// Soon after its limit, and not before; how soon is the host's affair too, so the best of some tries counts.
#[test]
fn a_stall_is_reported_within_half_its_limit_again() {
    domain!(static DOMAIN: Brand);
    static WAITED: Mutex<Vec<Duration>> = Mutex::new(Vec::new());
    const STALL: Duration = Duration::from_millis(200);
    DOMAIN.set_stall(STALL, |stall| WAITED.lock().unwrap().push(stall.waited));
    // A section that stays open for so long beside who waits for its end.
    let stay = |long: Duration| {
        let entered = Barrier::new(2);
        thread::scope(|scope| {
            scope.spawn(|| {
                let reader = DOMAIN.register();
                let _section = reader.read();
                entered.wait();
                thread::sleep(long);
            });
            entered.wait();
            let begun = Instant::now();
            DOMAIN.synchronize_unregistered();
            begun.elapsed()
        })
    };
    let mut best = Duration::MAX;
    for _ in 0..5 {
        if best < STALL * 3 / 2 {
            break;
        }
        let waited = stay(2 * STALL);
        let told = WAITED.lock().unwrap().split_off(0);
        assert!(told.iter().all(|waited| *waited >= STALL), "too early: {told:?}");
        assert!(!told.is_empty() || waited < STALL * 3 / 2, "not reported after {waited:?}");
        best = told.into_iter().fold(best, Duration::min);
    }
    assert!(best < STALL * 3 / 2, "reported after {best:?} at best");
    // One that ends in time is nobody's business.
    let waited = stay(STALL / 4);
    assert!(WAITED.lock().unwrap().is_empty() || waited >= STALL);
}

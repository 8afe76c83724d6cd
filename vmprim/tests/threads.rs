//! Threads that race: nothing gets through a closed page, no write is lost from dirty sets, and a fault that many
//! take is handled once.
#![cfg(not(any(loom, shuttle)))]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use common::{PAGE, Random, ways};
use vmprim::{Access, Needs, PageNo, PageSet, Region, Resolution, inline};

const RUN: Duration = Duration::from_millis(400);

#[test]
fn no_access_above_the_level_completes_once_protect_has_returned() {
    for way in ways() {
        for level in way.levels() {
            if level == Access::ReadWrite {
                continue;
            }
            // Odd while the page is closed for sure. The gate is shut from before the call: the handler lets nobody
            // through.
            let epoch = AtomicU32::new(0);
            let gate = Arc::new(AtomicU32::new(0));
            let of_handler = gate.clone();
            // SAFETY: it waits for this test's own word, and answers.
            let handler = unsafe {
                inline(move |fault, safe| {
                    if of_handler.load(Ordering::SeqCst) == 1 {
                        safe.park(&of_handler, 1, Duration::from_micros(100));
                        return Resolution::Retry;
                    }
                    Resolution::Grant(fault.wanted)
                })
            };
            let region = way.builder(4).inline(handler).build().unwrap();
            let (stop, passed) = (AtomicBool::new(false), AtomicUsize::new(0));
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        vmprim::attach().unwrap();
                        let view = region.view::<u64>().unwrap();
                        while !stop.load(Ordering::Relaxed) {
                            let before = epoch.load(Ordering::SeqCst);
                            if level == Access::None {
                                view.get(PAGE / 8 + 3);
                            } else {
                                view.set(PAGE / 8 + 3, 1);
                            }
                            let after = epoch.load(Ordering::SeqCst);
                            assert!(
                                before != after || before.is_multiple_of(2),
                                "{way:?}: got through a closed page"
                            );
                            passed.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                }
                let end = Instant::now() + RUN;
                while Instant::now() < end {
                    gate.store(1, Ordering::SeqCst);
                    region.protect(PageNo(1), level).unwrap();
                    epoch.fetch_add(1, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_micros(200));
                    epoch.fetch_add(1, Ordering::SeqCst);
                    gate.store(0, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_micros(500));
                }
                stop.store(true, Ordering::Relaxed);
            });
            assert!(passed.load(Ordering::Relaxed) > 10, "{way:?}: hardly anything ran");
        }
    }
}

/// Copies exactly what the sets report while writers run: in the end the copy must be the memory.
#[test]
fn a_copy_of_dirty_pages_becomes_the_memory() {
    const PAGES: usize = 96;
    for way in ways() {
        let region = way.builder(PAGES).need(Needs::DIRTY).build().unwrap();
        let stop = AtomicBool::new(false);
        let mut copy = vec![0_u64; PAGES * PAGE / 8];
        let mut take = || {
            let view = region.view::<u64>().unwrap();
            let mut dirty = PageSet::new();
            region.take_dirty(0..PAGES, &mut dirty).unwrap();
            for page in dirty.iter() {
                let words = page.0 * PAGE / 8..(page.0 + 1) * PAGE / 8;
                words.for_each(|i| copy[i] = view.get(i).unwrap());
            }
            dirty.len()
        };
        let mut sets = 0;
        std::thread::scope(|scope| {
            for writer in 0..2_u64 {
                let (region, stop) = (&region, &stop);
                scope.spawn(move || {
                    let view = region.view::<u64>().unwrap();
                    let mut random = Random(0x9e37 + writer);
                    let mut n = 0;
                    while !stop.load(Ordering::Relaxed) {
                        n += 2;
                        let page = random.below(PAGES);
                        view.set(page * PAGE / 8 + writer as usize * 100 + random.below(100), n + writer);
                        if random.below(50) == 0 {
                            std::thread::yield_now();
                        }
                    }
                });
            }
            // Levels come and go meanwhile.
            scope.spawn(|| {
                let mut random = Random(77);
                let levels = way.levels();
                while !stop.load(Ordering::Relaxed) {
                    let first = random.below(PAGES);
                    region.protect(first..PAGES.min(first + 7), levels[random.below(levels.len())]).unwrap();
                    std::thread::yield_now();
                }
            });
            let end = Instant::now() + RUN;
            // On a slow machine too there are some sets.
            while Instant::now() < end || sets < 6 {
                take();
                sets += 1;
            }
            stop.store(true, Ordering::Relaxed);
        });
        take();
        let view = region.view::<u64>().unwrap();
        for (i, &word) in copy.iter().enumerate() {
            let page = i * 8 / PAGE;
            assert_eq!(Some(word), view.get(i), "{way:?}: a write to page {page} was never reported");
        }
    }
}

/// A page that another thread's fault has opened was noted before: whoever writes it and then takes the set finds
/// it there.
#[test]
fn a_write_that_ended_is_in_the_next_set() {
    for way in ways() {
        let region = way.builder(2).need(Needs::DIRTY).build().unwrap();
        let barrier = std::sync::Barrier::new(2);
        const ROUNDS: usize = 200;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let view = region.view::<u64>().unwrap();
                for _ in 0..ROUNDS {
                    barrier.wait();
                    view.set(1, 1);
                    barrier.wait();
                }
            });
            let view = region.view::<u64>().unwrap();
            let mut dirty = PageSet::new();
            for round in 0..ROUNDS {
                region.take_dirty(0..2, &mut dirty).unwrap();
                dirty.clear();
                barrier.wait();
                (0..round % 7 * 300).for_each(|_| std::hint::spin_loop());
                view.set(2, 2);
                region.take_dirty(0..2, &mut dirty).unwrap();
                assert!(dirty.contains(PageNo(0)), "{way:?}, round {round}");
                barrier.wait();
            }
        });
    }
}

/// A page that another thread lowers at the same time, which begins anew for it: what was written before is found.
#[test]
fn a_write_that_ended_is_in_the_next_set_whoever_lowers_the_page() {
    for way in ways() {
        let region = way.builder(2).need(Needs::DIRTY).build().unwrap();
        let level = *way.levels().last().unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    region.protect(PageNo(0), level).unwrap();
                    std::thread::yield_now();
                }
            });
            let view = region.view::<u64>().unwrap();
            let mut dirty = PageSet::new();
            let end = Instant::now() + RUN / 2;
            let (mut missed, mut random) = (0, Random(1));
            while Instant::now() < end {
                dirty.clear();
                view.set(2, 2);
                // The page is lowered between the two, mostly.
                let pause = Instant::now() + Duration::from_micros(random.below(100) as u64);
                while Instant::now() < pause {
                    std::hint::spin_loop();
                }
                region.take_dirty(0..2, &mut dirty).unwrap();
                missed += usize::from(!dirty.contains(PageNo(0)));
            }
            stop.store(true, Ordering::Relaxed);
            assert_eq!(missed, 0, "{way:?}");
        });
    }
}

#[test]
fn eight_threads_that_fault_on_a_page_have_one_handler() {
    for way in ways().into_iter().filter(|way| way.has_read) {
        let calls = Arc::new(AtomicUsize::new(0));
        let counts = calls.clone();
        // SAFETY: it counts, waits a little, and answers.
        let handler = unsafe {
            inline(move |fault, safe| {
                counts.fetch_add(1, Ordering::Relaxed);
                safe.park(&AtomicU32::new(0), 0, Duration::from_millis(20));
                Resolution::Grant(fault.wanted)
            })
        };
        let region = way.builder(2).inline(handler).build().unwrap();
        for round in 1..=5 {
            region.protect(0..2, Access::Read).unwrap();
            let barrier = std::sync::Barrier::new(8);
            std::thread::scope(|scope| {
                for i in 0..8 {
                    let (region, barrier) = (&region, &barrier);
                    // Half of them are not attached.
                    scope.spawn(move || {
                        if i % 2 == 0 {
                            vmprim::attach().unwrap();
                        }
                        barrier.wait();
                        region.view::<u64>().unwrap().set(i, round);
                    });
                }
            });
            assert_eq!(calls.load(Ordering::Relaxed), round as usize, "{way:?}");
            let view = region.view::<u64>().unwrap();
            (0..8).for_each(|i| assert_eq!(view.get(i), Some(round)));
        }
    }
}

#[test]
fn handlers_that_evict_each_others_page_both_finish() {
    for way in ways().into_iter().filter(|way| way.has_none && way.is_in_thread()) {
        // At most two of four pages are open: each fault evicts another.
        // SAFETY: it evicts and answers.
        let handler = unsafe {
            inline(|fault, safe| {
                let others = [1, 2, 3].map(|n| PageNo((fault.page.0 + n) % 4));
                safe.try_evict(&others[..2], Access::None);
                Resolution::Grant(Access::ReadWrite)
            })
        };
        let region = way.builder(4).initial(Access::None).inline(handler).build().unwrap();
        let total = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for t in 0..3_usize {
                let (region, total) = (&region, &total);
                scope.spawn(move || {
                    let view = region.view::<u64>().unwrap();
                    let mut random = Random(t as u64 + 5);
                    for _ in 0..3000 {
                        let at = random.below(4) * PAGE / 8 + t;
                        view.set(at, view.get(at).unwrap() + 1);
                        total.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        let view = region.view::<u64>().unwrap();
        let sum: u64 = (0..4)
            .flat_map(|page| (0..3).map(move |t| page * PAGE / 8 + t))
            .filter_map(|at| view.get(at))
            .sum();
        assert_eq!(sum, total.load(Ordering::Relaxed), "{way:?}");
    }
}

/// Deferred faults of many threads, with fewer workers: each page filled once, by its own content.
#[test]
fn deferred_faults_are_all_answered() {
    const PAGES: usize = 300;
    for way in ways().into_iter().filter(|way| way.has_none) {
        let calls = Arc::new(AtomicUsize::new(0));
        let counts = calls.clone();
        let fill = move |fault: &vmprim::Fault, page: Option<vmprim::PageAlias<'_>>| {
            counts.fetch_add(1, Ordering::Relaxed);
            page.expect("a memfd has an alias").fill(fault.page.0 as u8);
            Resolution::Grant(Access::ReadWrite)
        };
        if !way.memfd {
            continue;
        }
        let region = way.builder(PAGES).initial(Access::None).deferred(fill, 2).build().unwrap();
        std::thread::scope(|scope| {
            for t in 0..6_usize {
                let region = &region;
                scope.spawn(move || {
                    let view = region.view::<u8>().unwrap();
                    for i in 0..PAGES {
                        let page = (i * 7 + t * 50) % PAGES;
                        assert_eq!(view.get(page * PAGE + 11), Some(page as u8));
                    }
                });
            }
        });
        assert_eq!(calls.load(Ordering::Relaxed), PAGES, "{way:?}");
    }
}

/// A pin asks the deferred handler, whether the region's threads wait for its faults or read them from a descriptor.
#[test]
fn a_pin_is_answered_by_a_deferred_handler() {
    let output = common::in_child("a_pin_is_answered_by_a_deferred_handler", || {
        for way in ways().into_iter().filter(|way| way.has_read || way.has_none) {
            let calls = Arc::new(AtomicUsize::new(0));
            let counts = calls.clone();
            let answer = move |fault: &vmprim::Fault, _: Option<vmprim::PageAlias<'_>>| {
                assert_eq!(fault.kind, vmprim::Kind::Pin);
                counts.fetch_add(1, Ordering::Relaxed);
                Resolution::Grant(fault.wanted)
            };
            let level = *way.levels().last().unwrap();
            let region = way.builder(4).initial(level).deferred(answer, 2).build().unwrap();
            let pin = region.pin(1..3, Access::ReadWrite).unwrap();
            assert_eq!((calls.load(Ordering::Relaxed), pin.len()), (2, 2 * PAGE), "{way:?}");
            assert_eq!(region.level(PageNo(2)), Some(Access::ReadWrite), "{way:?}");
        }
    });
    common::succeeds(&output);
}

/// Map, use and unmap so many pages, again and again, by the kernel's calls themselves: an allocator would keep them.
fn storm(pages: usize, stop: &AtomicBool) {
    let both = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let mut count = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        // SAFETY: no fixed address; used within its length, and unmapped once.
        unsafe {
            let at = libc::mmap(std::ptr::null_mut(), pages * PAGE, both, flags, -1, 0);
            assert_ne!(at, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
            let (first, last) = (at.cast::<u64>(), at.cast::<u8>().add((pages - 1) * PAGE).cast::<u64>());
            assert_eq!((first.read_volatile(), last.read_volatile()), (0, 0), "new memory is not empty");
            first.write_volatile(count);
            last.write_volatile(count);
            assert_eq!((first.read_volatile(), last.read_volatile()), (count, count));
            assert_eq!(libc::munmap(at, pages * PAGE), 0);
        }
        count += 1;
    }
    assert!(count > 0);
}

#[test]
fn regions_come_and_go_while_others_fault() {
    let lasting = Region::builder(8 * PAGE).need(Needs::READ_LEVEL).build().unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for t in 0..3_usize {
            let (lasting, stop) = (&lasting, &stop);
            scope.spawn(move || {
                let mut random = Random(t as u64 + 1);
                let all = ways();
                while !stop.load(Ordering::Relaxed) {
                    let way = all[random.below(all.len())];
                    let level = *way.levels().last().unwrap();
                    let region = way.builder(3).initial(level).build().unwrap();
                    let view = region.view::<u64>().unwrap();
                    view.set(600, 5);
                    lasting.protect(PageNo(t), Access::Read).unwrap();
                    lasting.view::<u64>().unwrap().set(t * PAGE / 8, 1);
                    assert_eq!(view.get(600), Some(5));
                }
            });
        }
        // The process's mappings change all the time, beside regions and where they were: nothing of theirs may be left to
        // those that come there next.
        for pages in [1, 3, 256] {
            let stop = &stop;
            scope.spawn(move || storm(pages, stop));
        }
        std::thread::sleep(2 * RUN);
        stop.store(true, Ordering::Relaxed);
    });
}

/// The region ends while its own last fault is still being handled elsewhere: the end waits.
#[test]
fn the_end_of_a_region_waits_for_its_handlers() {
    let (inside, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (seen, ended) = (inside.clone(), done.clone());
    // SAFETY: it waits for this test's own words, and answers.
    let handler = unsafe {
        inline(move |fault, safe| {
            seen.store(true, Ordering::SeqCst);
            safe.park(&AtomicU32::new(0), 0, Duration::from_millis(100));
            ended.store(true, Ordering::SeqCst);
            // The page is gone when the access is repeated, so another place is taken.
            let _ = fault;
            Resolution::Divert
        })
    };
    let region =
        Region::builder(PAGE).need(Needs::NONE_LEVEL).initial(Access::None).inline(handler).build().unwrap();
    let at = region.base() as usize;
    let faulting = std::thread::spawn(move || {
        // SAFETY: in a region whose handler diverts; it exists when the access begins.
        unsafe { vmprim::fault_or!(load at as *const u64, else { 9 }) }
    });
    while !inside.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
    drop(region);
    assert!(done.load(Ordering::SeqCst), "the region ended under its handler");
    assert_eq!(faulting.join().unwrap(), 9);
}

/// Handlers of threads that are not attached have all blocks there are, and sleep for a page whose holder sleeps for
/// another: it needs no block for that.
#[test]
fn protecting_goes_on_while_every_block_is_in_a_handler() {
    let output = common::in_child("protecting_goes_on_while_every_block_is_in_a_handler", || {
        static GATES: [AtomicU32; 7] = [const { AtomicU32::new(0) }; 7];
        static CALLS: AtomicUsize = AtomicUsize::new(0);
        // SAFETY: it counts, waits for this test's own words, and answers.
        let handler = unsafe {
            inline(|fault, safe| {
                CALLS.fetch_add(1, Ordering::SeqCst);
                let gate = &GATES[fault.page.0];
                while gate.load(Ordering::SeqCst) == 1 {
                    safe.park(gate, 1, Duration::from_millis(1));
                }
                Resolution::Grant(fault.wanted)
            })
        };
        let region =
            Region::builder(7 * PAGE).need(Needs::NONE_LEVEL).initial(Access::None).inline(handler).build();
        let region = &region.unwrap();
        let view = region.view::<u8>().unwrap();
        let pause = || std::thread::sleep(Duration::from_millis(50));
        std::thread::scope(|scope| {
            [5, 6].iter().for_each(|&page: &usize| GATES[page].store(1, Ordering::SeqCst));
            [5, 6].iter().for_each(|&page: &usize| _ = scope.spawn(move || view.get(page * PAGE)));
            while CALLS.load(Ordering::SeqCst) < 2 {
                std::thread::yield_now();
            }
            // It holds the first five pages, and sleeps for the next.
            let protects = scope.spawn(|| region.protect(0..7, Access::None).unwrap());
            pause();
            // More than there are blocks.
            (0..60).for_each(|_| _ = scope.spawn(|| view.get(0)));
            pause();
            for page in [5, 6] {
                assert!(!protects.is_finished());
                GATES[page].store(0, Ordering::SeqCst);
                pause();
            }
        });
    });
    common::succeeds(&output);
}

//! What goes wrong around handlers: each situation in a process of its own, with the ending it must have.
#![cfg(not(any(loom, shuttle)))]

#[macro_use]
mod common;

use std::{
    io::Write,
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use common::{PAGE, Way, ends_by, in_child, level_of, read, succeeds, ways};
use vmprim::{
    Access, Backend, Backing, Error, Kind, Needs, OnFail, PageNo, PageSet, Region, Resolution, inline,
};

#[test]
fn a_handler_that_touches_the_page_it_holds_is_told() {
    let output = in_child("a_handler_that_touches_the_page_it_holds_is_told", || {
        static BASE: AtomicUsize = AtomicUsize::new(0);
        let region = region!(2, Access::None, |_: &_, _: &_| {
            read(BASE.load(Ordering::Relaxed));
            Resolution::Grant(Access::Read)
        });
        BASE.store(region.base() as usize, Ordering::Relaxed);
        read(region.base() as usize);
    });
    ends_by(&output, libc::SIGABRT, "a handler touched the page that it holds");
}

/// A chain of regions: the handler of each touches the next.
fn chain(depth: usize) {
    static BASES: [AtomicUsize; 6] = [const { AtomicUsize::new(0) }; 6];
    let regions: Vec<_> = (0..depth)
        .map(|i| {
            let region =
                region!(1, Access::None, move |fault: &vmprim::Fault, safe: &vmprim::SignalSafe<'_>| {
                    assert_eq!(safe.depth(), i + 1);
                    let next = BASES.get(i + 1).map_or(0, |next| next.load(Ordering::Relaxed));
                    if next != 0 {
                        read(next);
                    }
                    Resolution::Grant(fault.wanted)
                });
            BASES[i].store(region.base() as usize, Ordering::Relaxed);
            region
        })
        .collect();
    // Attached, and not: both have to find their way back.
    std::thread::scope(|scope| {
        scope.spawn(|| read(regions[0].base() as usize + 7));
    });
    for region in &regions {
        assert_eq!(region.level(PageNo(0)), Some(Access::Read));
        region.protect(PageNo(0), Access::None).unwrap();
    }
    read(regions[0].base() as usize + 7);
    BASES.iter().for_each(|base| base.store(0, Ordering::Relaxed));
}

#[test]
fn handlers_may_fault_four_deep_and_no_deeper() {
    let output = in_child("handlers_may_fault_four_deep_and_no_deeper", || {
        chain(2);
        chain(4);
        eprintln!("four went well");
        chain(5);
    });
    ends_by(&output, libc::SIGABRT, "handlers faulted 4 deep");
    assert!(common::text(&output).contains("four went well"));
}

#[test]
fn a_deferred_handler_that_touches_the_page_it_resolves_is_told() {
    let output = in_child("a_deferred_handler_that_touches_the_page_it_resolves_is_told", || {
        static BASE: AtomicUsize = AtomicUsize::new(0);
        let region = Region::builder(PAGE)
            .need(Needs::NONE_LEVEL)
            .initial(Access::None)
            .deferred(
                |_: &vmprim::Fault, _: Option<vmprim::PageAlias<'_>>| {
                    read(BASE.load(Ordering::Relaxed));
                    Resolution::Grant(Access::Read)
                },
                2,
            )
            .build()
            .unwrap();
        BASE.store(region.base() as usize, Ordering::Relaxed);
        read(region.base() as usize);
    });
    ends_by(&output, libc::SIGABRT, "a deferred handler touched the page that it resolves");
}

#[test]
fn a_deferred_handler_that_panics_ends_the_process() {
    let name = "a_deferred_handler_that_panics_ends_the_process";
    let how = std::env::var("VMPRIM_HOW").unwrap_or_default();
    let scenario = || {
        let panics = |_: &vmprim::Fault, _: Option<vmprim::PageAlias<'_>>| panic!("an accident");
        let region = Region::builder(PAGE)
            .backend(Backend::Signal)
            .initial(Access::None)
            .deferred(panics, 2)
            .build()
            .unwrap();
        if how == "pin" {
            let _pin = region.pin(0..1, Access::Read);
        } else {
            read(region.base() as usize);
        }
    };
    for how in ["access", "pin"] {
        let output = common::in_child_with(name, &[("VMPRIM_HOW", how)], scenario);
        ends_by(&output, libc::SIGABRT, "a handler panicked");
    }
}

#[test]
fn a_handler_that_grants_too_little_is_told() {
    let output = in_child("a_handler_that_grants_too_little_is_told", || {
        let region = region!(1, Access::None, |_: &_, _: &_| Resolution::Grant(Access::Read));
        read(region.base() as usize);
        region.view::<u8>().unwrap().set(0, 1);
    });
    ends_by(&output, libc::SIGABRT, "page 0, write");
}

#[test]
fn mappings_run_out_with_an_error_and_not_in_a_handler() {
    let output = in_child("mappings_run_out_with_an_error_and_not_in_a_handler", || {
        let region = Region::builder(100_000 * PAGE).backend(Backend::Signal).build().unwrap();
        let refused =
            (0..50_000).find_map(|i| region.protect(PageNo(2 * i), Access::Read).err().map(|e| (i, e)));
        let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap();
        let limit: usize = limit.trim().parse().unwrap();
        match refused {
            Some((at, Error::VmaBudget { used, limit: said })) => {
                assert!(said == limit && used <= limit && used > limit / 2, "{used} of {said}");
                assert!(at * 2 > limit / 2);
            }
            None if limit > 110_000 => {}
            other => panic!("{other:?}"),
        }
        // The pages that are closed open again, and one call for all of them needs no mapping.
        region.view::<u64>().unwrap().set(0, 1);
        region.protect(0..100_000, Access::None).unwrap();
        region.unprotect(0..100_000, Access::ReadWrite).unwrap();
        if vmprim::Region::builder(PAGE).backend(Backend::UffdView).build().is_ok() {
            let region = Region::builder(100_000 * PAGE).backend(Backend::UffdView).build().unwrap();
            (0..50_000).for_each(|i| region.protect(PageNo(2 * i), Access::Read).unwrap());
        }
    });
    succeeds(&output);
}

/// Where mappings are nearly used up, the handler is offered the neighbours.
#[test]
fn neighbours_are_offered_when_mappings_are_short() {
    let output = in_child("neighbours_are_offered_when_mappings_are_short", || {
        static OFFERS: AtomicUsize = AtomicUsize::new(0);
        // SAFETY: it counts and answers.
        let handler = unsafe {
            inline(|fault, _| {
                if fault.kind == Kind::Speculative {
                    OFFERS.fetch_add(1, Ordering::Relaxed);
                }
                Resolution::Grant(fault.wanted)
            })
        };
        let region = Region::builder(100_000 * PAGE)
            .backend(Backend::Signal)
            .initial(Access::None)
            .inline(handler)
            .build()
            .unwrap();
        let view = region.view::<u8>().unwrap();
        for page in 0..33_000 {
            view.get(page * 3 * PAGE);
        }
        let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap();
        let limit: usize = limit.trim().parse().unwrap();
        // 33,000 pages of their own come near to a limit of fewer mappings than twice as many, and not to one far above.
        let offers = OFFERS.load(Ordering::Relaxed);
        assert!(
            if limit <= 70_000 { offers > 0 } else { limit < 80_000 || offers == 0 },
            "{offers} of {limit}"
        );
    });
    succeeds(&output);
}

#[test]
fn what_others_do_to_the_view_loses_neither_traps_nor_data() {
    for way in ways().into_iter().filter(|way| way.memfd) {
        let traps = Arc::new(AtomicUsize::new(0));
        let counts = traps.clone();
        // SAFETY: it counts and answers.
        let handler = unsafe {
            inline(move |fault, _| {
                counts.fetch_add(1, Ordering::Relaxed);
                Resolution::Grant(fault.wanted)
            })
        };
        let region = way.builder(8).inline(handler).build().unwrap();
        let view = region.view::<u64>().unwrap();
        (0..8).for_each(|page| _ = view.set(page * PAGE / 8, page as u64 + 1));
        if way.has_read {
            region.protect(0..2, Access::Read).unwrap();
        }
        region.protect(2..4, Access::None).unwrap();
        for advice in [libc::MADV_PAGEOUT, libc::MADV_COLD, libc::MADV_DONTNEED] {
            // SAFETY: a shared mapping: its contents are the file's and stay.
            unsafe { libc::madvise(region.base().cast(), 8 * PAGE, advice) };
            (4..8).for_each(|page| assert_eq!(view.get(page * PAGE / 8), Some(page as u64 + 1), "{way:?}"));
            (4..8).for_each(|page| _ = view.set(page * PAGE / 8, page as u64 + 1));
            assert_eq!(traps.load(Ordering::Relaxed), 0, "{way:?}, advice {advice}: an open page trapped");
        }
        if way.has_read {
            (0..2).for_each(|page| assert_eq!(view.get(page * PAGE / 8), Some(page as u64 + 1), "{way:?}"));
            assert_eq!(traps.swap(0, Ordering::Relaxed), 0, "{way:?}");
            view.set(0, 9);
            assert_eq!(traps.swap(0, Ordering::Relaxed), 1, "{way:?}: a store got through");
        }
        assert_eq!(view.get(2 * PAGE / 8), Some(3), "{way:?}");
        assert_eq!(traps.load(Ordering::Relaxed), 1, "{way:?}: a load got through");
    }
}

#[test]
fn a_punched_hole_is_asked_about() {
    // Elsewhere the kernel gives a page of zeros.
    let asks = |way: &Way| way.memfd && !matches!(way.backend, Backend::Signal | Backend::Native);
    for way in ways().into_iter().filter(asks) {
        let missing = Arc::new(AtomicUsize::new(0));
        let counts = missing.clone();
        // SAFETY: it counts, fills the page through the alias, and answers.
        let handler = unsafe {
            inline(move |fault, safe| {
                if fault.kind == Kind::Missing {
                    counts.fetch_add(1, Ordering::Relaxed);
                    safe.alias(fault.page).expect("an alias").fill(0xee);
                }
                Resolution::Grant(fault.wanted)
            })
        };
        let region = way.builder(4).inline(handler).build().unwrap();
        let view = region.view::<u8>().unwrap();
        (0..4).for_each(|page| _ = view.set(page * PAGE, 5));
        region.protect(PageNo(2), Access::None).unwrap();
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let file = region.file().unwrap().as_raw_fd();
        // SAFETY: the region's own file.
        assert_eq!(unsafe { libc::fallocate(file, punch, PAGE as i64, 2 * PAGE as i64) }, 0);
        let found = [0, 1, 2, 3].map(|page| view.get(page * PAGE).unwrap());
        assert_eq!(found, [5, 0xee, 0xee, 5], "{way:?}");
        assert_eq!(missing.load(Ordering::Relaxed), 2, "{way:?}");
    }
}

#[test]
fn a_file_that_ends_early_is_an_error_and_no_zeros() {
    let build = |on_fail| {
        let path = std::env::temp_dir().join(format!("vmprim-{}", std::process::id()));
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        file.write_all(&[7; 3 * PAGE]).unwrap();
        let backing = Backing::File { file: file.try_clone().unwrap(), offset: 0, shared: true };
        let region = Region::builder(3 * PAGE)
            .backing(backing)
            .need(Needs::READ_LEVEL)
            .initial(Access::None)
            .on_fail(on_fail)
            .build()
            .unwrap();
        std::fs::remove_file(path).unwrap();
        (file, region)
    };
    let output = in_child("a_file_that_ends_early_is_an_error_and_no_zeros", || {
        let (file, region) = build(OnFail::Abort);
        assert_eq!(read(region.base() as usize + PAGE), 7);
        file.set_len(PAGE as u64).unwrap();
        read(region.base() as usize + PAGE);
    });
    ends_by(&output, libc::SIGABRT, "page 1, missing");
}

#[test]
fn a_poisoned_region_goes_on_and_says_so() {
    for way in ways().into_iter().filter(|way| way.has_none) {
        // SAFETY: it answers.
        let handler = unsafe { inline(|_, _| Resolution::Fail(42)) };
        let region =
            way.builder(2).initial(Access::None).inline(handler).on_fail(OnFail::Poison).build().unwrap();
        assert_eq!(region.check(), Ok(()));
        assert_eq!(region.view::<u8>().unwrap().get(5), Some(0));
        assert_eq!(region.check(), Err(Error::Poisoned { code: 42 }), "{way:?}");
    }
}

/// An access across two pages of which a handler keeps only two open needs both at once.
#[test]
fn an_unaligned_store_over_two_pages_completes() {
    for way in ways().into_iter().filter(|way| way.has_none && way.is_in_thread()) {
        // SAFETY: it evicts and answers. The page that was granted last stays.
        let handler = unsafe {
            inline(|fault, safe| {
                let last = PageNo(fault.page.0 ^ 1);
                let others: [PageNo; 4] = [0, 1, 2, 3].map(PageNo);
                let evicted = others.iter().filter(|&&page| page != fault.page && page != last);
                evicted.for_each(|&page| _ = safe.try_evict(&[page], Access::None));
                Resolution::Grant(Access::ReadWrite)
            })
        };
        let region = way.builder(4).initial(Access::None).inline(handler).build().unwrap();
        for round in 0..50_u64 {
            for page in [0, 2] {
                let at = region.base().wrapping_add((page + 1) * PAGE - 3).cast::<u64>();
                // SAFETY: in the region.
                unsafe { at.write_unaligned(round) };
                // SAFETY: see above.
                assert_eq!(unsafe { at.read_unaligned() }, round);
            }
        }
    }
}

#[test]
fn vector_registers_live_across_a_trap_and_prefetches_do_not_trap() {
    for way in ways().into_iter().filter(|way| way.has_none) {
        let traps = Arc::new(AtomicUsize::new(0));
        let counts = traps.clone();
        // SAFETY: it counts, uses vector registers, and answers.
        let handler = unsafe {
            inline(move |fault, _| {
                counts.fetch_add(1, Ordering::Relaxed);
                std::arch::asm!("vpxor ymm7, ymm7, ymm7", "vpcmpeqd ymm8, ymm8, ymm8", out("ymm7") _, out("ymm8") _);
                Resolution::Grant(fault.wanted)
            })
        };
        if !std::arch::is_x86_feature_detected!("avx2") {
            return;
        }
        let region = way.builder(1).initial(Access::None).inline(handler).build().unwrap();
        let at = region.base();
        for _ in 0..100 {
            // SAFETY: a hint.
            unsafe { std::arch::asm!("prefetcht0 [{at}]", at = in(reg) at) };
        }
        assert_eq!((traps.load(Ordering::Relaxed), region.level(PageNo(0))), (0, Some(Access::None)));
        let before: [u64; 8] = std::array::from_fn(|i| 0x0101 * (i as u64 + 3));
        let mut after = [0_u64; 8];
        // SAFETY: the buffers hold 64 bytes; the load traps, and is let through.
        unsafe {
            std::arch::asm!(
                "vmovdqu ymm7, [{before}]",
                "vmovdqu ymm8, [{before} + 32]",
                "mov al, [{at}]",
                "vmovdqu [{after}], ymm7",
                "vmovdqu [{after} + 32], ymm8",
                before = in(reg) before.as_ptr(),
                after = in(reg) after.as_mut_ptr(),
                at = in(reg) at,
                out("al") _, out("ymm7") _, out("ymm8") _,
            );
        }
        assert_eq!((before, traps.load(Ordering::Relaxed)), (after, 1), "{way:?}");
    }
}

/// The upper halves and the registers above the sixteenth are in parts of the state that are saved apart.
#[test]
fn the_widest_registers_live_across_a_trap() {
    if !std::arch::is_x86_feature_detected!("avx512f") {
        eprintln!("left out: no AVX-512");
        return;
    }
    for way in ways().into_iter().filter(|way| way.has_none) {
        // SAFETY: it uses vector and mask registers, and answers.
        let handler = unsafe {
            inline(move |fault, _| {
                std::arch::asm!(
                    "vpternlogd zmm2, zmm2, zmm2, 0xff", "vpternlogd zmm29, zmm29, zmm29, 0xff", "kxnorw k3, k3, k3",
                    out("zmm2") _, out("zmm29") _, out("k3") _,
                );
                Resolution::Grant(fault.wanted)
            })
        };
        let region = way.builder(1).initial(Access::None).inline(handler).build().unwrap();
        let before: [u64; 16] = std::array::from_fn(|i| 0x0101_0011 * (i as u64 + 3));
        let (mut after, mut mask) = ([0_u64; 16], 0x5a5a_u32);
        // SAFETY: the buffers hold 128 bytes; the load traps, and is let through.
        unsafe {
            std::arch::asm!(
                "vmovdqu64 zmm2, [{before}]",
                "vmovdqu64 zmm29, [{before} + 64]",
                "kmovw k3, {mask:e}",
                "mov al, [{at}]",
                "kmovw {mask:e}, k3",
                "vmovdqu64 [{after}], zmm2",
                "vmovdqu64 [{after} + 64], zmm29",
                before = in(reg) before.as_ptr(),
                after = in(reg) after.as_mut_ptr(),
                at = in(reg) region.base(),
                mask = inout(reg) mask,
                out("al") _, out("zmm2") _, out("zmm29") _, out("k3") _,
            );
        }
        assert_eq!((after, mask), (before, 0x5a5a), "{way:?}");
        let level = if way.has_read { Access::Read } else { Access::ReadWrite };
        assert_eq!(level_of(&way, &region, 0, level), Some(level), "{way:?}");
    }
}

/// The kernel refuses to lower pages whose mapping the program has removed: all locks are free after.
#[test]
fn a_call_that_the_kernel_refuses_leaves_no_page_locked() {
    let output = in_child("a_call_that_the_kernel_refuses_leaves_no_page_locked", || {
        let region = Region::builder(128 * PAGE).backend(Backend::Signal).build().unwrap();
        // Every other page: more runs than one call takes.
        (0..64).for_each(|i| region.protect(PageNo(2 * i), Access::None).unwrap());
        // SAFETY: nobody uses the page.
        unsafe { libc::munmap(region.base().wrapping_add(PAGE).cast(), PAGE) };
        assert!(region.protect(0..128, Access::Read).is_err());
        region.unprotect(2..128, Access::ReadWrite).unwrap();
        region.protect(2..128, Access::Read).unwrap();
        assert_eq!(region.level(PageNo(70)), Some(Access::Read));
    });
    succeeds(&output);
}

/// A set that the kernel refuses to begin anew loses no later write.
#[test]
fn a_set_that_failed_loses_no_write() {
    let output = in_child("a_set_that_failed_loses_no_write", || {
        let region = Region::builder(8 * PAGE).need(Needs::DIRTY).backend(Backend::Signal).build().unwrap();
        let view = region.view::<u8>().unwrap();
        let mut dirty = PageSet::new();
        region.take_dirty(0..8, &mut dirty).unwrap();
        [1, 5].iter().for_each(|page| _ = view.set(page * PAGE, 1));
        let at = region.base().wrapping_add(5 * PAGE).cast();
        let both = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: a page of the region's that nobody uses meanwhile.
        unsafe { libc::munmap(at, PAGE) };
        assert!(region.take_dirty(0..8, &mut dirty).is_err());
        // SAFETY: the place is free.
        assert_eq!(unsafe { libc::mmap(at, PAGE, both, flags, -1, 0) }, at);
        [1, 5].iter().for_each(|page| _ = view.set(page * PAGE, 2));
        dirty.clear();
        region.take_dirty(0..8, &mut dirty).unwrap();
        assert!(dirty.contains(PageNo(1)) && dirty.contains(PageNo(5)));
    });
    succeeds(&output);
}

#[test]
fn adopted_memory_is_given_back_open() {
    let len = 8 * PAGE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: no fixed address.
    let at =
        unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    for backend in [Backend::Signal, Backend::UffdWp, Backend::AsyncDirty] {
        // SAFETY: our own mapping.
        let builder = unsafe { Region::builder(len).adopt(at.cast()) }.backend(backend);
        let region = match builder.build() {
            Ok(region) => region,
            Err(Error::Unsupported { .. }) if !common::is_must(backend) => continue,
            Err(error) => panic!("{error}"),
        };
        let view = region.view::<u8>().unwrap();
        view.set(2 * PAGE, 3);
        if backend != Backend::AsyncDirty {
            region.protect(0..8, Access::Read).unwrap();
        }
        assert_eq!(view.get(2 * PAGE), Some(3));
        drop(region);
        // SAFETY: our own mapping.
        unsafe { at.cast::<u8>().add(3 * PAGE).write_volatile(9) };
    }
    // SAFETY: nobody uses it.
    unsafe { libc::munmap(at, len) };
}

/// The system refuses one of a region's threads: those before it end.
#[test]
fn threads_that_were_started_end_if_a_later_one_is_refused() {
    let output = in_child("threads_that_were_started_end_if_a_later_one_is_refused", || {
        let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
        let before = threads();
        // SAFETY: numbers, and a structure valid for the call. Root has no limit, so it becomes a user that has
        // nothing else running.
        unsafe {
            if libc::getuid() != 0 || libc::setuid(1_234_567) != 0 {
                eprintln!("left out: only root can be a user without threads");
                return;
            }
            let limit = libc::rlimit { rlim_cur: before as u64 + 3, rlim_max: before as u64 + 3 };
            assert_eq!(libc::setrlimit(libc::RLIMIT_NPROC, &limit), 0);
        }
        for backend in [Backend::Signal, Backend::UffdThread { threads: 8 }] {
            let nothing = |_: &vmprim::Fault, _: Option<vmprim::PageAlias<'_>>| Resolution::Retry;
            match Region::builder(PAGE).backend(backend).deferred(nothing, 8).build() {
                Err(Error::Os { op: "thread", errno }) => assert_eq!(errno.0, libc::EAGAIN),
                Err(Error::Unsupported { .. }) if backend != Backend::Signal => {}
                other => panic!("{other:?}"),
            }
            // Joined threads leave the list a moment later.
            (0..1000).take_while(|_| threads() > before).for_each(|_| {
                std::thread::sleep(std::time::Duration::from_millis(1));
            });
            assert_eq!(threads(), before, "{backend:?}");
        }
    });
    succeeds(&output);
}

/// Threads write adopted memory all the time, while regions over it come and go.
#[test]
fn adopted_memory_may_be_used_while_it_is_given_back() {
    let output = in_child("adopted_memory_may_be_used_while_it_is_given_back", || {
        const PAGES: usize = 40;
        let len = PAGES * PAGE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let both = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: no fixed address.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, both, flags, -1, 0) } as usize;
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for page in (0..PAGES).cycle().take_while(|_| !stop.load(Ordering::Relaxed)) {
                        // SAFETY: our own mapping, whose faults the region handles while there is one.
                        unsafe { ((at + page * PAGE) as *mut u8).write_volatile(9) };
                    }
                });
            }
            for way in ways().into_iter().filter(|way| !way.memfd) {
                let evicts = |fault: &vmprim::Fault, safe: &vmprim::SignalSafe<'_>| {
                    safe.try_evict(&[PageNo((fault.page.0 + 7) % PAGES)], Access::Read);
                    Resolution::Grant(fault.wanted)
                };
                for _ in 0..100 {
                    // SAFETY: our own mapping; the handler evicts, and answers.
                    let builder = unsafe { Region::builder(len).adopt(at as *mut _).inline(inline(evicts)) };
                    let region = builder.backend(way.backend).build().unwrap();
                    if way.has_read {
                        region.protect(0..PAGES, Access::Read).unwrap();
                    }
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
    });
    succeeds(&output);
}

//! What the allocator promises beyond being a set of frames: locality, the reserve, sharing between threads, and the
//! mistakes that debug builds catch.
#![cfg(not(loom))]

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use owned::{Memory, OwnedFrame, Use, testing};
use percpu::{Pinned, testing::Machine};

/// Run `f` pinned to CPU 0 of a machine of one CPU.
fn alone<R>(frames: usize, f: impl FnOnce(&'static Memory, &Pinned<'_>) -> R) -> R {
    Machine::new(1).on(0, |ctx| f(testing::memory(frames, 1), &ctx.pin()))
}

fn all(frames: &Memory, pin: &Pinned<'_>, usage: Use) -> Vec<OwnedFrame> {
    std::iter::from_fn(|| frames.alloc(pin, usage)).collect()
}

fn give(frames: &Memory, pin: &Pinned<'_>, owned: Vec<OwnedFrame>) {
    owned.into_iter().for_each(|o| frames.free(pin, o));
}

fn assert_identity(frames: &Memory) {
    let s = frames.stats();
    assert_eq!(s.free + s.cached + s.owned.iter().sum::<u64>(), s.total, "{s:?}");
}

#[test]
fn the_frame_freed_last_is_handed_out_first() {
    alone(8192, |frames, pin| {
        let owned = frames.alloc(pin, Use::Anonymous).unwrap();
        let frame = owned.frame();
        frames.free(pin, owned);
        let again = frames.alloc(pin, Use::Anonymous).unwrap();
        assert_eq!(again.frame(), frame);
        frames.free(pin, again);
    });
}

#[test]
fn the_user_stops_at_the_reserve_tables_at_half_and_the_kernel_at_zero() {
    alone(1000, |frames, pin| {
        let reserve = frames.stats().reserve;
        assert_eq!(reserve, 16);
        assert!(!frames.low());
        let user = all(frames, pin, Use::Anonymous);
        assert_eq!(user.len() as u64, 1000 - reserve);
        assert!(frames.low());
        assert!(frames.alloc(pin, Use::File).is_none());
        assert!(frames.alloc_run(pin, 0, Use::File).is_none());
        let tables = all(frames, pin, Use::PageTable);
        assert_eq!(tables.len() as u64, reserve / 2);
        assert!(frames.alloc(pin, Use::Stack).is_none());
        let mut kernel = all(frames, pin, Use::Kernel);
        assert_eq!(kernel.len() as u64, reserve - reserve / 2);
        assert_identity(frames);
        // What the kernel gives back below the mark is the kernel's again.
        frames.free(pin, kernel.pop().unwrap());
        assert!(frames.alloc(pin, Use::Anonymous).is_none());
        assert!(frames.alloc(pin, Use::PageTable).is_none());
        kernel.push(frames.alloc(pin, Use::Kernel).unwrap());
        assert!(frames.alloc(pin, Use::Kernel).is_none());
        give(frames, pin, kernel);
        give(frames, pin, tables);
        assert!(frames.low());
        give(frames, pin, user);
        assert!(!frames.low());
        assert_identity(frames);
    });
}

#[test]
fn the_chosen_allocation_fails_and_no_other() {
    alone(1000, |frames, pin| {
        for n in 1..20 {
            frames.fail_nth(n);
            let got: Vec<_> =
                (1..25).map(|i| (i, frames.alloc(pin, Use::ALL[i as usize % Use::COUNT]))).collect();
            assert!(got.iter().all(|(i, frame)| frame.is_none() == (*i == n)), "of {n}");
            assert_eq!(frames.until_failure(), 0);
            give(frames, pin, got.into_iter().filter_map(|(_, frame)| frame).collect());
            assert_identity(frames);
        }
        frames.fail_nth(1);
        assert!(frames.alloc_run(pin, 3, Use::Kernel).is_none());
        frames.fail_nth(5);
        frames.fail_nth(0);
        give(frames, pin, (0..10).map(|_| frames.alloc(pin, Use::File).unwrap()).collect());
    });
}

#[test]
fn what_idle_cpus_keep_is_bounded() {
    const CPUS: usize = 16;
    let machine = Machine::new(CPUS);
    let frames = testing::memory(4096, CPUS);
    // Every CPU fills its cache as far as it goes, and falls idle.
    machine.run(|_, ctx| {
        let owned: Vec<_> = (0..100).filter_map(|_| frames.alloc(&ctx.pin(), Use::Kernel)).collect();
        owned.into_iter().for_each(|o| frames.free(&ctx.pin(), o));
    });
    machine.on(0, |ctx| {
        let taken = all(frames, &ctx.pin(), Use::Kernel);
        let s = frames.stats();
        assert_eq!(s.free, 0);
        assert!(s.cached <= s.total / 8, "{s:?}");
        // What is freed while memory is short stays nowhere.
        machine.migrate(1);
        let before = frames.stats().cached;
        give(frames, &ctx.pin(), taken);
        assert_eq!(frames.stats().cached, before);
    });
    assert_identity(frames);
}

#[test]
fn a_run_may_be_made_of_what_this_cpu_has_cached() {
    alone(512, |frames, pin| {
        let owned: Vec<_> = (0..512).map_while(|_| frames.alloc(pin, Use::Kernel)).collect();
        assert_eq!(owned.len(), 512);
        give(frames, pin, owned);
        let run = frames.alloc_run(pin, 9, Use::Kernel).expect("all are free");
        assert_eq!(frames.stats().owned[Use::Kernel as usize], 512);
        assert!(frames.alloc_run(pin, 0, Use::Kernel).is_none());
        frames.free_run(pin, run);
        assert!(frames.alloc_run(pin, 19, Use::Kernel).is_none(), "there is no such order");
    });
}

#[test]
fn no_frames_at_all_is_an_empty_allocator() {
    let frames = testing::with_ranges(&[5..5, 9..9], 1);
    Machine::new(1).on(0, |ctx| {
        assert!(frames.alloc(&ctx.pin(), Use::Kernel).is_none());
        assert!(frames.alloc_run(&ctx.pin(), 3, Use::Kernel).is_none());
    });
    assert_eq!(frames.stats().total, 0);
}

#[test]
fn no_frame_has_two_owners_under_load() {
    const CPUS: usize = 4;
    const FRAMES: usize = 600;
    let machine = Machine::new(CPUS);
    let frames = testing::memory(FRAMES, CPUS);
    let taken: Vec<_> = (0..FRAMES).map(|_| AtomicBool::new(false)).collect();
    let slot = |o: &OwnedFrame| &taken[o.frame().number() as usize - 512];
    // Frames that wait to be freed by another thread.
    let passed = Mutex::new(Vec::new());
    let served = AtomicU64::new(0);
    machine.run(|cpu, ctx| {
        let mut dice = 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(cpu.index() as u64 + 7);
        let mut held: Vec<OwnedFrame> = Vec::new();
        let stamp = cpu.index() as u8 + 1;
        let free = |mut owned: OwnedFrame, stamp: Option<u8>| {
            let first = testing::bytes(frames, &mut owned)[0];
            assert!(stamp.is_none_or(|s| s == first), "somebody else wrote to {owned:?}");
            assert!(testing::bytes(frames, &mut owned).iter().all(|b| *b == first));
            // Relaxed: the allocator itself is to order the two owners.
            assert!(slot(&owned).swap(false, Ordering::Relaxed));
            frames.free(&ctx.pin(), owned);
        };
        for _ in 0..6000 {
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            match dice % 8 {
                0..=3 => {
                    let usage = Use::ALL[(dice >> 8) as usize % 5];
                    if let Some(mut owned) = frames.alloc(&ctx.pin(), usage) {
                        assert!(!slot(&owned).swap(true, Ordering::Relaxed), "{owned:?} has two owners");
                        testing::bytes(frames, &mut owned).fill(stamp);
                        served.fetch_add(1, Ordering::Relaxed);
                        held.push(owned);
                    }
                }
                4 | 5 if !held.is_empty() => {
                    let at = (dice >> 8) as usize % held.len();
                    free(held.swap_remove(at), Some(stamp));
                }
                6 if !held.is_empty() => passed.lock().unwrap().push(held.swap_remove(0)),
                7 => {
                    let owned = passed.lock().unwrap().pop();
                    if let Some(owned) = owned {
                        free(owned, None);
                    }
                }
                _ => {}
            }
        }
        held.into_iter().for_each(|o| free(o, Some(stamp)));
        let mut rest = std::mem::take(&mut *passed.lock().unwrap());
        rest.drain(..).for_each(|o| free(o, None));
    });
    assert!(served.into_inner() > 5000);
    assert_identity(frames);
    assert_eq!(frames.stats().owned, [0; 5]);
}

#[test]
fn a_shared_frame_lives_as_long_as_its_last_owner() {
    const CPUS: usize = 4;
    let machine = Machine::new(CPUS);
    let frames = testing::memory(64, CPUS);
    for round in 0..300u64 {
        let first = machine.on(0, |ctx| frames.alloc_zeroed(&ctx.pin(), Use::Anonymous).unwrap());
        let at = frames.dm().ptr(first.frame().base()).cast::<AtomicU64>();
        // SAFETY: the frame is owned by all shares together; every access to it is by this atomic.
        let word = unsafe { &*at };
        word.store(round, Ordering::Relaxed);
        let mut shares: Vec<_> = (1..CPUS).map(|_| frames.share(&first)).collect();
        shares.push(first);
        thread::scope(|s| {
            for (cpu, mut share) in shares.into_iter().enumerate() {
                let machine = &machine;
                s.spawn(move || {
                    machine.on(cpu, |ctx| {
                        for _ in 0..20 {
                            assert_eq!(word.load(Ordering::Relaxed), round, "freed under an owner");
                            // More shares come and go meanwhile.
                            let more = frames.share(&share);
                            frames.free(&ctx.pin(), std::mem::replace(&mut share, more));
                            let other = frames.alloc(&ctx.pin(), Use::Kernel).unwrap();
                            assert_ne!(other.frame(), share.frame());
                            frames.free(&ctx.pin(), other);
                        }
                        frames.free(&ctx.pin(), share);
                    });
                });
            }
        });
        assert_eq!(frames.stats().owned, [0; 5], "round {round}");
    }
    assert_identity(frames);
}

#[test]
fn a_share_survives_as_a_raw_frame_number() {
    alone(64, |frames, pin| {
        let owned = frames.alloc(pin, Use::Anonymous).unwrap();
        let frame = owned.into_raw();
        // SAFETY: `frame` stands for the share that was let go, and it was allocated for this use.
        let (share, owned) =
            unsafe { (frames.share_raw(frame, Use::Anonymous), OwnedFrame::from_raw(frame, Use::Anonymous)) };
        frames.free(pin, owned);
        assert!(!frames.is_shared(frame));
        frames.free(pin, share);
        assert_eq!(frames.stats().owned, [0; 5]);
    });
}

#[cfg(debug_assertions)]
mod mistakes {
    use addr::PAGE_BYTES;

    use super::*;

    #[test]
    #[should_panic(expected = "was written while free")]
    fn a_store_to_a_free_frame_shows() {
        alone(64, |frames, pin| {
            let owned = frames.alloc(pin, Use::Anonymous).unwrap();
            let stale = frames.dm().ptr(owned.frame().base());
            frames.free(pin, owned);
            // SAFETY: not sound, which is the point; the memory itself is never returned.
            unsafe { stale.add(PAGE_BYTES - 1).write(0) };
            give(frames, pin, all(frames, pin, Use::Kernel));
        });
    }

    #[test]
    #[should_panic(expected = "is free, not owned by Kernel")]
    fn freeing_twice_shows() {
        alone(64, |frames, pin| {
            let owned = frames.alloc(pin, Use::Kernel).unwrap();
            // SAFETY: not sound, which is the point.
            let twin = unsafe { OwnedFrame::from_raw(owned.frame(), Use::Kernel) };
            frames.free(pin, owned);
            frames.free(pin, twin);
        });
    }

    #[test]
    #[should_panic(expected = "is File, not owned by Anonymous")]
    fn freeing_under_another_use_shows() {
        alone(64, |frames, pin| {
            let owned = frames.alloc(pin, Use::File).unwrap();
            // SAFETY: not sound, which is the point.
            frames.free(pin, unsafe { OwnedFrame::from_raw(owned.into_raw(), Use::Anonymous) });
        });
    }

    #[test]
    #[should_panic(expected = "leaked")]
    fn dropping_a_frame_shows() {
        alone(64, |frames, pin| drop(frames.alloc(pin, Use::Kernel)));
    }

    #[test]
    #[should_panic(expected = "leaked")]
    fn dropping_a_run_shows() {
        alone(64, |frames, pin| drop(frames.alloc_run(pin, 2, Use::Kernel)));
    }

    #[test]
    #[should_panic(expected = "ascending and apart")]
    fn overlapping_ranges_show() {
        testing::with_ranges(&[5..10, 9..12], 1);
    }
}

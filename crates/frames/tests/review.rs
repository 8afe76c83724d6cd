//! Schedules and inputs that once broke the allocator, each by itself.
#![cfg(not(loom))]

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use addr::PAGE_SIZE;
use frames::{
    AlgoKind, AllocError, Class, Ctx, FrameRange, Frames, FreeError, Req, Run, Topology, testing,
    topology::{Builder, CpuAffinity, MemoryAffinity},
};
use percpu::{CpuId, Pinned};

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).expect("a CPU")
}
fn pin(n: usize) -> Pinned<'static> {
    // SAFETY: each test uses a CPU from one thread only.
    unsafe { Pinned::assume(cpu(n)) }
}
/// To the last frame.
fn last(order: u32) -> Req {
    Req { ctx: Ctx::Reserve, ..Req::order(order) }
}
fn raw(run: Run) -> u64 {
    run.into_raw().0.number()
}
fn run(first: u64, order: u32) -> Run {
    // SAFETY: what the tests make of it is a run that they have, or one that is to be refused.
    unsafe { Run::from_raw(testing::frame(first), order) }
}
fn alloc(frames: &Frames<'_>, on: usize, req: Req) -> Result<u64, AllocError> {
    frames.alloc(&pin(on), req).map(raw)
}
fn free(frames: &Frames<'_>, on: usize, first: u64, order: u32) -> Result<(), FreeError> {
    frames.free(&pin(on), run(first, order))
}

/// A CPU moves its lease from row to row while another gives back frames of it: none of them is free already.
#[test]
fn a_lease_that_moves_is_no_double_free() {
    const SLOTS: usize = 64;
    let frames = testing::frames(64 * 512, 2);
    let ring: Vec<AtomicU64> = (0..SLOTS).map(|_| AtomicU64::new(0)).collect();
    let done = AtomicBool::new(false);
    let refused = AtomicU64::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut at = 0;
            while !done.load(Ordering::Relaxed) {
                let frame = ring[at % SLOTS].swap(0, Ordering::Acquire);
                if frame == 0 {
                    std::hint::spin_loop();
                    continue;
                }
                at += 1;
                if frames.free_shared(run(frame, 0)).is_err() {
                    refused.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        for at in 0..400_000 {
            if let Ok(frame) = alloc(frames, 0, Req::default()) {
                while ring[at % SLOTS]
                    .compare_exchange(0, frame, Ordering::Release, Ordering::Relaxed)
                    .is_err()
                {
                    std::hint::spin_loop();
                }
            }
        }
        while ring.iter().any(|slot| slot.load(Ordering::Relaxed) != 0) {
            thread::yield_now();
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(refused.into_inner(), 0, "frames that were owned were refused");
    frames.drain(&pin(0));
    assert_eq!(frames.stats().owned, 0);
}

/// What a CPU keeps itself is to be had before it goes without.
#[test]
fn what_a_cpu_keeps_is_its_last_reserve() {
    let frames = testing::frames(16 * 512, 1);
    let huge: Vec<_> = (0..4).map(|_| alloc(frames, 0, last(9)).unwrap()).collect();
    huge.into_iter().for_each(|first| free(frames, 0, first, 9).unwrap());
    let n = std::iter::from_fn(|| alloc(frames, 0, last(0)).ok()).count();
    assert_eq!(n, 16 * 512, "{:?}", frames.stats());
}

/// A request for a run that nobody has leaves everybody's blocks with their owners.
#[test]
fn a_search_in_vain_takes_nothing_over() {
    let frames = testing::frames(64 * 512, 2);
    // Every half block of both has one frame in use.
    let halves: Vec<_> = (0..128).map(|i| alloc(frames, i / 64, last(8)).unwrap()).collect();
    for first in halves {
        // A run of order 8 is its frames.
        (first + 1..first + 256)
            .for_each(|frame| free(frames, usize::from(frame >= 512 * 33), frame, 0).unwrap());
    }
    (0..2).for_each(|on| frames.drain(&pin(on)));
    let before = frames.cpu_stats(cpu(1)).unused;
    assert!(alloc(frames, 0, last(8)).is_err());
    let after = frames.cpu_stats(cpu(1)).unused;
    // A batch is taken over, which is at most 16 blocks.
    assert!(after + 16 * 512 >= before && before > 0, "{before} frames, {after} after a search in vain");
}

/// A run that is freed twice, the first time into a CPU's shelf, spoils nothing when the shelf is given up.
#[test]
fn a_shelved_run_that_another_frees_is_refused() {
    let frames = testing::frames(64 * 512, 2);
    let huge = alloc(frames, 0, Req::order(9)).unwrap();
    assert_eq!(free(frames, 0, huge, 9), Ok(()));
    // Nobody can see that it lies on a shelf.
    assert_eq!(frames.free_shared(run(huge, 9)), Ok(()));
    let taken: Vec<_> = std::iter::from_fn(|| alloc(frames, 1, last(8)).ok()).collect();
    frames.drain(&pin(0));
    let count = frames.recount();
    assert_eq!((count.wrong, count.bits), (0, 64 * 512 - 256 * taken.len() as u64), "{count:?}");
}

/// A frame that lies in an accumulator is free, whichever row is leased meanwhile.
#[test]
fn a_gathered_frame_whose_row_is_leased_is_free_once() {
    let frames = testing::frames(64 * 512, 1);
    let block: Vec<_> = (0..512).map(|_| alloc(frames, 0, Req::default()).unwrap()).collect();
    let next = alloc(frames, 0, Req::default()).unwrap();
    let row = &block[..64];
    assert_eq!(row[0] % 64, 0);
    // All but one are free in the map; the one is in an accumulator.
    row[..63].iter().for_each(|frame| frames.free_shared(run(*frame, 0)).unwrap());
    free(frames, 0, row[63], 0).unwrap();
    // The row is leased again, once what is held has gone.
    let mut rest = vec![next];
    while rest.last().unwrap() / 64 != row[0] / 64 {
        rest.push(alloc(frames, 0, Req::default()).unwrap());
    }
    let again = free(frames, 0, row[63], 0);
    assert_eq!(again, Err(FreeError::DoubleFree(testing::frame(row[63]))));
}

/// A block that is brought back into service while others with it go out stays there, with whoever takes of it.
#[test]
fn a_change_of_mind_keeps_frames() {
    let frames = testing::frames(64 * 512, 2);
    let range = |first: u64, end: u64| FrameRange {
        start: testing::frame(first * 512),
        end: testing::frame(end * 512),
    };
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                if frames.offline(&pin(0), range(20, 65)).is_err() {
                    frames.cancel_offline(&pin(0), range(20, 64));
                }
                for block in 20..65 {
                    // SAFETY: imaginary frames, if they are out of service.
                    let _ = unsafe { frames.online(&pin(0), range(block, block + 1)) };
                }
            }
        });
        for _ in 0..60_000 {
            frames.cancel_offline(&pin(1), range(64, 65));
            // From the top.
            if let Ok(first) = alloc(frames, 1, Req { class: Class::Unmovable, ..Req::order(8) }) {
                let result = free(frames, 1, first, 8);
                if result.is_err() {
                    done.store(true, Ordering::Relaxed);
                }
                assert_eq!(result, Ok(()), "it was out of service");
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    frames.cancel_offline(&pin(1), range(1, 65));
    let s = frames.stats();
    assert_eq!((s.owned, frames.recount().wrong), (0, 0), "{s:?}");
}

/// A CPU finds all its blocks, however many pieces they lie in.
#[test]
fn many_pieces_are_all_found() {
    let pieces: Vec<_> = (0..80u64).map(|i| (2 * i + 1) * 512..(2 * i + 2) * 512).collect();
    let frames = testing::with_ranges(&pieces, 2);
    let n = (0..34 * 512).filter(|_| alloc(frames, 0, Req::default()).is_ok()).count();
    assert_eq!(n, 34 * 512);
    assert_eq!(frames.cpu_stats(cpu(0)).blocks_taken, 0, "it has {} of its own", 40 * 512 - n);
}

/// Two nodes, of which the second has CPU 1 and no memory.
fn no_memory_on_the_second(frames: u64) -> &'static Topology {
    let mut builder = Builder::new(2);
    let length = frames * PAGE_SIZE;
    builder.memory(MemoryAffinity { base: 0, length, domain: 0, enabled: true }).unwrap();
    builder.cpu(CpuAffinity { cpu: cpu(1), domain: 1, enabled: true });
    Box::leak(Box::new(builder.build().unwrap()))
}

/// A CPU without memory of its own isn't short while others have plenty.
#[test]
fn a_cpu_without_memory_keeps_rows() {
    let n = 64 * 512;
    let frames =
        testing::with_topology(core::slice::from_ref(&(512..512 + n)), no_memory_on_the_second(n + 512), 2);
    let have: Vec<_> = (0..640).map(|_| alloc(frames, 1, Req::default()).unwrap()).collect();
    have.into_iter().for_each(|frame| free(frames, 1, frame, 0).unwrap());
    let s = frames.cpu_stats(cpu(1));
    assert!(s.refills <= 20 && s.flushes <= 20, "{s:?}");
}

/// A CPU that idles may be given any budget.
#[test]
fn idle_takes_any_budget() {
    let n = 64 * 512usize;
    let pages = vec![0u64; 65 * 512 * 512].leak();
    let base = pages.as_mut_ptr().expose_provenance();
    // SAFETY: frames up to 65 * 512 are in the buffer, and nobody else uses it.
    let dm = unsafe { addr::DirectMap::new(base) };
    let topology = Box::leak(Box::new(Topology::one_node(1)));
    let frames = testing::with_clear(
        core::slice::from_ref(&(512..512 + n as u64)),
        topology,
        1,
        frames::Clear::new(dm),
    );
    let req = Req { fill: frames::Fill::Zeroed, ..Req::default() };
    let have: Vec<_> = (0..2000).map(|_| alloc(frames, 0, req).unwrap()).collect();
    frames.tick(&pin(0));
    assert_eq!(frames.idle(&pin(0), 100), 100);
    assert_eq!(frames.idle(&pin(0), u32::MAX), 412);
    have.into_iter().for_each(|frame| free(frames, 0, frame, 0).unwrap());
}

/// A row for requests that name a node has frames of one class.
#[test]
fn requests_that_name_a_node_keep_classes_apart() {
    let n = 64 * 512;
    let frames =
        testing::with_topology(core::slice::from_ref(&(512..512 + n)), no_memory_on_the_second(n + 512), 2);
    let place = frames::Place::Prefer(frames::Node::FIRST);
    let one = |class| alloc(frames, 1, Req { place, class, ..Req::default() }).unwrap() / 512;
    assert_ne!(one(Class::Movable), one(Class::Unmovable));
}

/// Once no other algorithm has blocks on a CPU, what is freed there goes back to the lease.
#[test]
fn algorithms_without_blocks_cost_nothing() {
    let frames = testing::frames(64 * 512, 1);
    for kind in [AlgoKind::Avl, AlgoKind::Row] {
        frames.set_algo(&pin(0), kind, Some(testing::lane_memory(kind))).unwrap();
        let frame = alloc(frames, 0, Req::default()).unwrap();
        free(frames, 0, frame, 0).unwrap();
        assert_eq!(alloc(frames, 0, Req::default()), Ok(frame), "under {}", kind.name());
        free(frames, 0, frame, 0).unwrap();
    }
}

/// A block on its way out isn't handed out by the shelf that it lies on, or would.
#[test]
fn a_block_that_goes_out_is_not_shelved() {
    let frames = testing::frames(64 * 512, 2);
    let huge = alloc(frames, 1, Req::order(9)).unwrap();
    let range = FrameRange { start: testing::frame(huge), end: testing::frame(huge + 512) };
    assert!(frames.offline(&pin(0), range).is_err());
    free(frames, 1, huge, 9).unwrap();
    assert_eq!(frames.offline(&pin(0), range), Ok(()));
}

/// One frame in quarantine that was freed already doesn't take others with it.
#[test]
#[cfg(not(debug_assertions))]
fn quarantine_frees_what_it_can() {
    let frames = testing::frames(64 * 512, 1);
    let have: Vec<_> = (0..8).map(|_| alloc(frames, 0, Req::default()).unwrap()).collect();
    have.iter().for_each(|frame| frames.free_pending(&pin(0), run(*frame, 0), frames::Gen(1)).unwrap());
    free(frames, 0, have[0], 0).unwrap();
    frames.release(&pin(0), frames::Gen(1));
    frames.drain(&pin(0));
    assert_eq!(frames.recount().bits, 64 * 512);
}

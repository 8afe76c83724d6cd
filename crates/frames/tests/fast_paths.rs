//! What the calls that a CPU's own words serve are compiled to: nothing in them locks the bus or a line.
//!
//! The test reads its own program. It follows each probe through every call that it makes, into every instruction of every
//! function, but for the slow paths, which are functions of their own that are never inlined, and for panics.
#![cfg(all(target_arch = "x86_64", not(any(loom, shuttle))))]

mod disassembly;

use std::{
    hint::black_box,
    sync::atomic::{AtomicU64, Ordering},
};

use disassembly::Program;
use frames::{AllocError, Frames, FreeError, Req, Run, testing};
use percpu::{CpuId, Pinned};

/// Where a fast path ends: the calls to these are not followed.
const SLOW: [&str; 2] = ["alloc_zeroed_or_slow", "free_slow"];
/// What ends the program.
const PANIC: &str = "panic";

#[unsafe(no_mangle)]
#[inline(never)]
fn probe_alloc(frames: &Frames<'_>, pin: &Pinned<'_>, req: Req) -> Result<Run, AllocError> {
    frames.alloc(pin, req)
}

#[unsafe(no_mangle)]
#[inline(never)]
fn probe_free(frames: &Frames<'_>, pin: &Pinned<'_>, run: Run) -> Result<(), FreeError> {
    frames.free(pin, run)
}

#[unsafe(no_mangle)]
#[inline(never)]
fn probe_counted(frames: &Frames<'_>, pin: &Pinned<'_>, req: Req, n: &AtomicU64) -> Result<Run, AllocError> {
    n.fetch_add(1, Ordering::Relaxed);
    frames.alloc(pin, req)
}

#[unsafe(no_mangle)]
#[inline(never)]
fn probe_exchanged(
    frames: &Frames<'_>,
    pin: &Pinned<'_>,
    run: Run,
    last: &AtomicU64,
) -> Result<u64, FreeError> {
    let before = last.swap(run.first().number(), Ordering::Relaxed);
    frames.free(pin, run).map(|()| before)
}

#[test]
fn the_fast_paths_lock_nothing() {
    let frames = testing::frames(1 << 14, 1);
    // SAFETY: one thread plays the only CPU.
    let pin = unsafe { Pinned::assume(CpuId::new(0).expect("a CPU")) };
    let count = AtomicU64::new(0);
    let probed = |order| black_box(probe_alloc(black_box(frames), &pin, Req::order(order))).expect("a run");
    // They are what is called, and do what they are for.
    for order in 0..=5 {
        let run = probed(order);
        assert_eq!(probe_free(frames, &pin, run), Ok(()));
        let run = probe_counted(frames, &pin, Req::order(order), &count).expect("a run");
        assert!(probe_exchanged(frames, &pin, run, &count).is_ok());
    }
    let program = Program::this();
    let reached = program.walk("probe_alloc", &[SLOW[0], PANIC]).functions;
    if reached.iter().filter_map(|at| program.functions.get(at)).any(|f| f.name.contains("atomic_load")) {
        // Every access is a call of a function that has all orders of memory in it, and chooses as it runs.
        return println!("compiled without optimisation: nothing to see");
    }
    for (probe, slow) in [("probe_alloc", SLOW[0]), ("probe_free", SLOW[1])] {
        let walk = program.walk(probe, &[SLOW[0], SLOW[1], PANIC]);
        println!("{probe}: {} instructions, {} functions", walk.instructions, walk.functions.len());
        assert!(walk.locked.is_empty() && walk.lost.is_empty(), "{probe}: {walk:#?}");
        assert!(walk.instructions > 15 && walk.ended_at.contains(slow), "{probe} is not the path: {walk:#?}");
        // What is behind the slow path's name does lock, and is found if it is followed.
        assert!(!program.walk(probe, &[PANIC]).locked.is_empty(), "{probe}: its slow path locks nothing");
    }
    for probe in ["probe_counted", "probe_exchanged"] {
        let walk = program.walk(probe, &[SLOW[0], SLOW[1], PANIC]);
        assert_eq!(walk.locked.len(), 1, "{probe}: what was planted was not found: {walk:#?}");
    }
}

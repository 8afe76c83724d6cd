//! Every interleaving, and every order in which memory may be seen, of two CPUs that take and give the same frames.
//!
//! Each model is a few operations by two threads on a machine of a few frames, some of whose bytes are cells that loom
//! watches: who gets a frame uses it, and does so before giving it back. At the end no frame is with two, and none is lost.
//! A machine of fewer than eight blocks for two CPUs keeps nothing back and waits for a block that is held; larger ones
//! lease rows and keep blocks.
#![cfg(loom)]

use std::ops::Range;

use addr::{DirectMap, Frame};
use frames::{AlgoKind, Busy, Clear, Config, Ctx, Fill, FrameRange, Frames, Gen, Req, Run, Topology};
use loom::{
    cell::UnsafeCell,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};
use percpu::{CpuId, CpuSet, Pinned, testing::explore};

/// The first frame, and the second in its row.
const A: u64 = 1024;
const B: u64 = A + 1;

/// A machine of two CPUs.
struct Sim {
    frames: Frames<'static>,
    tables: *mut [u8],
    /// The bytes of some frames.
    bytes: Vec<(u64, UnsafeCell<()>)>,
    /// Counts operations.
    turn: AtomicU64,
}

// SAFETY: the tables are touched through `frames` alone; loom fails the test if two uses of a cell race, and that none do
// is what is shown.
unsafe impl Send for Sim {}
// SAFETY: as above.
unsafe impl Sync for Sim {}

impl Drop for Sim {
    fn drop(&mut self) {
        // SAFETY: made from a box in `new`, and of those who used it the allocator is the last.
        drop(unsafe { Box::from_raw(self.tables) });
    }
}

/// CPU number `cpu`, of which one thread at a time plays each.
fn pin(cpu: usize) -> Pinned<'static> {
    // SAFETY: a model gives each CPU to one thread, and the main thread has both before and after.
    unsafe { Pinned::assume(CpuId::new(cpu).expect("a CPU")) }
}

fn frame(n: u64) -> Frame {
    Frame::new(n).expect("a frame number")
}

impl Sim {
    /// Memory of these frames; those of `watched` have bytes.
    fn with_ranges(ranges: impl Iterator<Item = Range<u64>>, watched: &[u64]) -> Self {
        // SAFETY: nothing is done to any byte.
        Self::with_clear(ranges, watched, unsafe { Clear::new(DirectMap::new(0)).by(|_| (), |_| ()) })
    }
    /// The same, whose frames are zeroed by `clear`.
    fn with_clear(ranges: impl Iterator<Item = Range<u64>>, watched: &[u64], clear: Clear) -> Self {
        let ranges: Vec<_> =
            ranges.map(|r| FrameRange { start: frame(r.start), end: frame(r.end) }).collect();
        let topology: &'static Topology = {
            static ONE: std::sync::OnceLock<Topology> = std::sync::OnceLock::new();
            ONE.get_or_init(|| Topology::one_node(2))
        };
        let cfg = Config { ranges: &ranges, cpus: 2, topology };
        let tables = Box::into_raw(vec![0; Frames::meta_bytes(&cfg)].into_boxed_slice());
        // SAFETY: the buffer is zeroed, and lives until the allocator is gone; the frames are this allocator's alone.
        let frames = unsafe { Frames::new(&cfg, &mut *tables, clear) };
        Self {
            frames,
            tables,
            bytes: watched.iter().map(|f| (*f, UnsafeCell::new(()))).collect(),
            turn: AtomicU64::new(0),
        }
    }
    /// Memory of `blocks` blocks of which only the first `each` frames exist.
    fn new(blocks: u64, each: u64, watched: &[u64]) -> Self {
        Self::with_ranges((0..blocks).map(|b| A + b * 512..A + b * 512 + each), watched)
    }
    /// An operation begins. Loom remembers one access of each kind to an object, and may miss that what one thread read is
    /// written by another that has read it too; of these it misses none, so that operations come in every order.
    fn begin(&self) {
        // Relaxed: it is to order nothing in memory.
        self.turn.fetch_add(1, Ordering::Relaxed);
    }
    fn touch(&self, run: &Run) {
        let (first, end) = (run.first().number(), run.first().number() + run.frames());
        let bytes = self.bytes.iter().filter(|(f, _)| (first..end).contains(f));
        bytes.for_each(|(_, cell)| cell.with_mut(|_| ()));
    }
    /// A run, which is used at once.
    fn alloc(&self, cpu: usize, order: u32) -> Option<Run> {
        self.begin();
        let req = Req { ctx: Ctx::Reserve, ..Req::order(order) };
        let run = self.frames.alloc(&pin(cpu), req).ok()?;
        self.touch(&run);
        Some(run)
    }
    fn free(&self, cpu: usize, run: Run) {
        self.begin();
        self.touch(&run);
        self.frames.free(&pin(cpu), run).expect("it was owned");
    }
    fn free_shared(&self, run: Run) {
        self.begin();
        self.touch(&run);
        self.frames.free_shared(run).expect("it was owned");
    }
    /// Two threads have ended: nothing was handed out twice or lost while `owned` were all that anybody has.
    fn check(&self, owned: impl IntoIterator<Item = Option<Run>>) {
        let mut owned: Vec<_> = owned.into_iter().flatten().collect();
        owned.sort_by_key(Run::first);
        let apart = |w: &[Run]| w[0].first().number() + w[0].frames() <= w[1].first().number();
        assert!(owned.windows(2).all(apart), "handed out twice: {owned:?}");
        self.balanced(owned.iter().map(Run::frames).sum());
        owned.into_iter().for_each(|run| self.free(0, run));
        (0..2).for_each(|cpu| self.frames.drain(&pin(cpu)));
        self.balanced(0);
        assert_eq!(self.frames.stats().cached, 0);
    }
    fn drain(&self, cpu: usize) {
        self.begin();
        self.frames.drain(&pin(cpu));
    }
    fn offline(&self, range: FrameRange) -> Result<(), Busy> {
        self.begin();
        self.frames.offline(&pin(0), range)
    }
    fn balanced(&self, owned: u64) {
        let (stats, count) = (self.frames.stats(), self.frames.recount());
        assert_eq!(count.wrong, 0, "{count:?} {stats:?}");
        assert_eq!(stats.owned, owned, "{stats:?}");
        assert_eq!(stats.free + stats.cached + stats.owned, stats.total, "{stats:?}");
        assert_eq!((count.bits, count.counts), (stats.free, stats.free), "{count:?} {stats:?}");
    }
}

/// Explore `first` on CPU 0 against `second` on CPU 1, of a machine that `new` makes with runs that `second` has; what both
/// return they own.
fn against<const N: usize>(
    name: &str,
    preemptions: Option<usize>,
    new: impl Fn() -> (Sim, [Run; N]) + Send + Sync + 'static,
    first: impl Fn(&Sim) -> Vec<Option<Run>> + Send + Sync + Copy + 'static,
    second: impl Fn(&Sim, [Run; N]) -> Vec<Option<Run>> + Send + Sync + Copy + 'static,
) {
    explore(name, preemptions, move || {
        let (sim, runs) = new();
        let sim = Arc::new(sim);
        let other = sim.clone();
        let there = thread::spawn(move || second(&other, runs));
        let mut owned = first(&sim);
        owned.extend(there.join().expect("the other CPU went well"));
        sim.check(owned);
    });
}

/// M1, where nothing is kept: one frame of a row is free, and another comes back while a frame is taken. The one that is
/// taken may be the one whose count isn't up yet, so that the row alone orders its uses.
#[test]
fn a_row_is_given_to_while_it_is_taken_from() {
    against(
        "frames: flush against taking from the same row",
        None,
        || {
            let sim = Sim::new(1, 2, &[A, B]);
            let run = sim.alloc(0, 0).expect("there are two");
            assert_eq!(run.first().number(), A);
            (sim, [run])
        },
        |sim| {
            let run = sim.alloc(0, 0);
            assert!(run.is_some(), "one is free all the time");
            vec![run]
        },
        |sim, [run]| {
            sim.free_shared(run);
            vec![]
        },
    );
}

/// M1, where rows are leased: CPU 0 goes on in its block while a frame of the leased row comes back from CPU 1.
#[test]
fn a_row_is_given_to_while_it_is_leased_again() {
    against(
        "frames: flush against refill of the same row",
        None,
        || {
            let sim = Sim::new(8, 2, &[A, B]);
            let runs = [0, 0].map(|_| sim.alloc(0, 0).expect("a row of two"));
            assert_eq!(runs.each_ref().map(|r| r.first().number()), [A, B]);
            (sim, runs)
        },
        |sim| vec![sim.alloc(0, 0)],
        |sim, [a, b]| {
            sim.free(1, a);
            sim.drain(1);
            vec![Some(b)]
        },
    );
}

/// M2: CPU 1 has nothing left and takes blocks over from CPU 0, which selects one and leases rows.
#[test]
fn a_block_is_taken_over_while_its_owner_selects() {
    against(
        "frames: taking over against selecting and leasing",
        Some(2),
        || {
            let sim = Sim::new(8, 64, &[A, A + 512]);
            let runs = [(); 4].map(|()| sim.alloc(1, 6).expect("its own share"));
            (sim, runs)
        },
        |sim| vec![sim.alloc(0, 0), sim.alloc(0, 6)],
        |sim, runs| {
            let taken = [sim.alloc(1, 0)];
            runs.into_iter().map(Some).chain(taken).collect()
        },
    );
}

/// M2, where nothing is kept and two frames are left: each of both CPUs holds the block for a moment.
#[test]
fn a_block_is_taken_over_while_its_owner_takes() {
    against(
        "frames: taking over against taking",
        Some(2),
        || (Sim::new(1, 2, &[A, B]), []),
        |sim| vec![sim.alloc(0, 0)],
        |sim, []| vec![sim.alloc(1, 0)],
    );
}

/// M3: the last frame of a block comes back while the block is claimed whole by its count, and its frames are owned singly
/// from then on: a bit that is cleared late would make one free that somebody has.
#[test]
fn a_block_is_claimed_whole_after_its_last_frame_came_back() {
    explore("frames: claiming a block against the flush of its last frame", None, || {
        // The two others keep the block from being more than all that the counters say is free.
        let sim = Arc::new(Sim::with_ranges([A..A + 512, A + 512..A + 514].into_iter(), &[A]));
        let last = sim.alloc(0, 0).expect("all are free");
        assert_eq!(last.first().number(), A);
        let other = sim.clone();
        let there = thread::spawn(move || other.free_shared(last));
        let parts = sim.alloc(0, 9).map(|run| sim.frames.split(run).expect("it is huge"));
        let split = parts.map(|parts| parts.for_each(core::mem::forget)).is_some();
        there.join().expect("the other CPU went well");
        sim.balanced(if split { 512 } else { 0 });
        // SAFETY: all 512 frames are ours, and were let go above.
        let whole =
            split.then(|| unsafe { sim.frames.fuse(&pin(0), frame(A)) }.expect("nobody else is here"));
        sim.check([whole]);
    });
}

/// M4: two whole rows are claimed while the other CPU wants one of their frames.
#[test]
fn rows_are_claimed_together_or_not_at_all() {
    against(
        "frames: two rows against taking over",
        Some(2),
        || (Sim::new(1, 128, &[A, A + 64]), []),
        |sim| vec![sim.alloc(0, 7)],
        |sim, []| vec![sim.alloc(1, 0)],
    );
}

/// M4, the way back: two rows come back while one of them is taken.
#[test]
fn rows_come_back_while_one_is_taken() {
    against(
        "frames: two rows come back against taking them",
        None,
        || {
            let sim = Sim::new(1, 192, &[A, A + 64]);
            let run = sim.alloc(0, 7).expect("all are free");
            (sim, [run])
        },
        |sim| vec![sim.alloc(0, 6), sim.alloc(0, 6)],
        |sim, [run]| {
            sim.free_shared(run);
            vec![]
        },
    );
}

/// M5: a giant run, of which another CPU claims a part whole, and gives it back.
#[test]
fn a_giant_run_is_claimed_whole_or_not_at_all() {
    against(
        "frames: giant against huge, and back",
        None,
        || (Sim::new(2, 512, &[A, A + 512]), []),
        |sim| vec![sim.alloc(0, 10)],
        |sim, []| {
            if let Some(run) = sim.alloc(1, 9) {
                sim.free(1, run);
            }
            vec![]
        },
    );
}

/// M5: a giant run comes back while a part of it is wanted.
#[test]
fn a_giant_run_comes_back_while_its_parts_are_wanted() {
    against(
        "frames: giant comes back against huge",
        None,
        || {
            let sim = Sim::new(2, 512, &[A, A + 512]);
            let run = sim.alloc(0, 10).expect("all are free");
            (sim, [run])
        },
        |sim| vec![sim.alloc(0, 9)],
        |sim, [run]| {
            sim.free(1, run);
            vec![]
        },
    );
}

/// M5: a huge run comes back while a giant one is wanted.
#[test]
fn a_huge_run_comes_back_while_a_giant_one_is_wanted() {
    against(
        "frames: huge comes back against giant",
        None,
        || {
            let sim = Sim::new(2, 512, &[A, A + 512]);
            let run = sim.alloc(1, 9).expect("all are free");
            (sim, [run])
        },
        |sim| vec![sim.alloc(0, 10)],
        |sim, [run]| {
            sim.free(1, run);
            vec![]
        },
    );
}

/// M5: a giant run, and one frame of it.
#[test]
fn a_giant_run_waits_for_nobody_who_holds_a_block() {
    against(
        "frames: giant against a single frame",
        None,
        || (Sim::new(2, 512, &[A, A + 512]), []),
        |sim| vec![sim.alloc(0, 10)],
        |sim, []| vec![sim.alloc(1, 0)],
    );
}

/// M5: a whole block, which the other CPU takes one frame of.
#[test]
fn a_block_that_is_held_is_not_claimed_whole() {
    against(
        "frames: huge against selecting",
        None,
        || (Sim::new(1, 512, &[A]), []),
        |sim| vec![sim.alloc(0, 9)],
        |sim, []| vec![sim.alloc(1, 0)],
    );
}

/// A machine of eight blocks of two frames each, of which CPU 0 keeps one and has the one beside it, and CPU 1 has the rest.
fn one_left(watched: &[u64]) -> (Sim, [Run; 8]) {
    let sim = Sim::new(8, 2, watched);
    let first = sim.alloc(0, 0).expect("all are free");
    assert_eq!(first.first().number(), A);
    let mut rest = (0..7).map(|_| sim.alloc(1, 1).expect("all others are free"));
    let rest: [Run; 7] = std::array::from_fn(|_| rest.next().expect("seven"));
    assert!(sim.alloc(1, 0).is_none(), "CPU 0 holds the last");
    let [a, b, c, d, e, f, g] = rest;
    (sim, [first, a, b, c, d, e, f, g])
}

/// M6: CPU 0 lets go of its block, and CPU 1 holds it next.
#[test]
fn the_next_holder_sees_what_the_last_one_did() {
    against(
        "frames: one holder after another",
        None,
        || one_left(&[A, B]),
        |sim| {
            sim.drain(0);
            vec![]
        },
        |sim, runs| runs.into_iter().map(Some).chain([sim.alloc(1, 0)]).collect(),
    );
}

/// M7: once a CPU has met a request to drain, who asked for it can have what was kept.
#[test]
fn what_was_drained_is_there() {
    against(
        "frames: request to drain",
        None,
        || one_left(&[B]),
        |sim| {
            let pin = pin(0);
            while !sim.frames.drained(pin.cpu(), 1) {
                sim.frames.safe_point(&pin);
                thread::yield_now();
            }
            vec![]
        },
        |sim, runs| {
            let keeper = pin(0).cpu();
            let number = sim.frames.request_drain(&CpuSet::from_iter([keeper]));
            while !sim.frames.drained(keeper, number) {
                thread::yield_now();
            }
            let last = sim.alloc(1, 0);
            assert!(last.is_some(), "what CPU 0 kept is in the map");
            runs.into_iter().map(Some).chain([last]).collect()
        },
    );
}

/// M9: a block goes out of service while its last frame comes back.
#[test]
fn a_block_goes_out_of_service_after_its_last_frame_came_back() {
    explore("frames: offline against the flush of the last frame", None, || {
        let sim = Arc::new(Sim::new(2, 512, &[A]));
        let last = sim.alloc(0, 0).expect("all are free");
        assert_eq!(last.first().number(), A);
        let range = FrameRange { start: frame(A), end: frame(A + 512) };
        let other = sim.clone();
        let there = thread::spawn(move || other.free_shared(last));
        let first = sim.offline(range);
        if first.is_ok() {
            // Whoever unplugs it.
            sim.bytes[0].1.with_mut(|_| ());
        }
        there.join().expect("the other CPU went well");
        assert_eq!(sim.offline(range), Ok(()));
        assert_eq!(sim.frames.stats().total, 512);
        sim.check([]);
    });
}

/// M9: a block goes out of service, or doesn't, while the other CPU takes from it.
#[test]
fn a_block_goes_out_of_service_or_is_taken_from() {
    explore("frames: offline against taking over", None, || {
        let sim = Arc::new(Sim::new(1, 512, &[A]));
        let other = sim.clone();
        let there = thread::spawn(move || other.alloc(1, 0));
        let range = FrameRange { start: frame(A), end: frame(A + 512) };
        let gone = sim.offline(range).is_ok();
        let taken = there.join().expect("the other CPU went well");
        assert!(!gone || taken.is_none());
        assert_eq!(sim.frames.stats().total, if gone { 0 } else { 512 });
        sim.check([taken]);
    });
}

/// M4, with half a block: four whole rows are claimed while the other CPU wants a frame of one.
#[test]
fn four_rows_are_claimed_together_or_not_at_all() {
    against(
        "frames: four rows against one frame",
        Some(2),
        || (Sim::new(1, 256, &[A, A + 192]), []),
        |sim| vec![sim.alloc(0, 8)],
        |sim, []| vec![sim.alloc(1, 0)],
    );
}

/// M4, the way back of half a block, of which the other CPU wants a part.
#[test]
fn four_rows_come_back_while_two_are_taken() {
    against(
        "frames: four rows come back against taking two",
        None,
        || {
            let sim = Sim::new(1, 256, &[A, A + 192]);
            let run = sim.alloc(0, 8).expect("all are free");
            (sim, [run])
        },
        |sim| vec![sim.alloc(0, 7)],
        |sim, [run]| {
            sim.free_shared(run);
            vec![]
        },
    );
}

/// A CPU that goes to sleep lets go of what it keeps.
#[test]
fn what_a_parked_cpu_kept_is_there() {
    against(
        "frames: park against the next holder",
        None,
        || one_left(&[A, B]),
        |sim| {
            sim.begin();
            sim.frames.park(&pin(0));
            vec![]
        },
        |sim, runs| runs.into_iter().map(Some).chain([sim.alloc(1, 0)]).collect(),
    );
}

/// A lane takes all free frames of a block out of the map, and gives them back, while more come back to it from CPU 1.
#[test]
fn a_block_is_given_to_while_a_lane_adopts_it() {
    against(
        "frames: a lane's block against a flush",
        Some(2),
        || {
            let sim = Sim::with_ranges(
                (0..8).map(|b| A + b * 512..A + b * 512 + if b == 0 { 32 } else { 2 }),
                &[A, B],
            );
            sim.frames.open_lane(&pin(0), AlgoKind::Avl, lane_memory()).expect("memory is given");
            let run = sim.alloc(0, 1).expect("all are free");
            assert_eq!(run.first().number(), A);
            sim.frames.drain(&pin(0));
            (sim, [run])
        },
        |sim| {
            sim.begin();
            let req = Req { ctx: Ctx::Reserve, lane: Some(AlgoKind::Avl), ..Req::default() };
            let run = sim.frames.alloc(&pin(0), req).ok();
            run.iter().for_each(|run| sim.touch(run));
            sim.drain(0);
            vec![run]
        },
        |sim, [run]| {
            sim.free_shared(run);
            vec![]
        },
    );
}

/// Memory for a lane, of executions that come one after the other.
fn lane_memory() -> &'static mut [u8] {
    static AT: std::sync::OnceLock<(usize, usize)> = std::sync::OnceLock::new();
    let (at, len) = *AT.get_or_init(|| {
        let memory = frames::testing::lane_memory(AlgoKind::Avl);
        (memory.as_mut_ptr().expose_provenance(), memory.len())
    });
    // SAFETY: leaked memory; the allocator that was given it last is gone.
    unsafe { std::slice::from_raw_parts_mut(std::ptr::with_exposed_provenance_mut(at), len) }
}

/// A frame in quarantine is nobody's: not until its generation is done, which is when the other CPU has used its old
/// translation for the last time.
#[test]
fn a_frame_in_quarantine_waits_for_its_generation() {
    explore("frames: quarantine against a stale translation", None, || {
        let sim = Arc::new(Sim::new(1, 2, &[A, B]));
        let first = sim.alloc(0, 0).expect("both are free");
        assert_eq!(first.first().number(), A);
        let done = Arc::new(AtomicU64::new(0));
        let (other, said) = (sim.clone(), done.clone());
        let there = thread::spawn(move || {
            other.bytes[0].1.with_mut(|_| ());
            // Release: partner of the load below, as a shootdown's answer is.
            said.store(1, Ordering::Release);
        });
        sim.begin();
        sim.frames.free_pending(&pin(0), first, Gen(1)).expect("there is room");
        let mut owned = vec![sim.alloc(0, 0)];
        // Acquire: partner of the store above.
        let generation = done.load(Ordering::Acquire);
        sim.begin();
        assert_eq!(sim.frames.release(&pin(0), Gen(generation)), generation as usize);
        owned.push(sim.alloc(0, 0));
        assert_eq!(owned[1].is_some(), generation == 1, "the frame is there as soon as it may be");
        there.join().expect("the other CPU went well");
        sim.frames.release(&pin(0), Gen(1));
        sim.check(owned);
    });
}

/// The first frame of the block that CPU 0 zeroes.
const Z: u64 = A + 3 * 512;

thread_local! {
    /// The bytes of that frame, of the execution that runs: loom's threads are one of the system's.
    static ZEROED: std::cell::Cell<*const UnsafeCell<u32>> = const { std::cell::Cell::new(std::ptr::null()) };
}

/// Zeroing a frame; only one has bytes.
fn clear(at: *mut u8) {
    if at.addr() as u64 == Z * addr::PAGE_SIZE {
        // SAFETY: it was set by the execution that runs.
        let cell = unsafe { &*ZEROED.get() };
        // SAFETY: loom checks that nobody else uses it.
        cell.with_mut(|bytes| unsafe { *bytes = 0 });
    }
}

/// CPU 0 zeroes its only whole block ahead of need while CPU 1 takes 2^`order` frames of it, writes to them, and gives them
/// back; who then asks for a zeroed block gets one.
fn zeroing_against(name: &str, order: u32) {
    explore(name, Some(2), move || {
        let cell = Arc::new(UnsafeCell::new(1));
        ZEROED.set(&*cell);
        let blocks = (0..8).map(|b| A + b * 512..A + b * 512 + if b == 3 { 512 } else { 2 });
        // SAFETY: both zero the only frame that has bytes.
        let zeroing = unsafe { Clear::new(DirectMap::new(0)).by(clear, clear) };
        let sim = Arc::new(Sim::with_clear(blocks, &[], zeroing));
        let zeroed = |order| Req { ctx: Ctx::Reserve, fill: Fill::Zeroed, ..Req::order(order) };
        // One was wanted, so that more are zeroed ahead.
        let first = sim.frames.alloc(&pin(0), zeroed(0)).expect("all are free");
        sim.frames.free(&pin(0), first).expect("it was ours");
        sim.frames.drain(&pin(0));
        sim.frames.tick(&pin(0));
        let (other, bytes) = (sim.clone(), cell.clone());
        let there = thread::spawn(move || {
            other.begin();
            let run = other.frames.alloc(&pin(1), Req { ctx: Ctx::Reserve, ..Req::order(order) }).ok()?;
            if run.first().number() == Z {
                // SAFETY: it is ours, as loom checks.
                bytes.with_mut(|bytes| unsafe { *bytes = 7 });
            }
            other.frames.free_shared(run).expect("it was ours");
            Some(())
        });
        sim.begin();
        sim.frames.idle(&pin(0), 512);
        there.join().expect("the other CPU went well");
        (0..2).for_each(|cpu| sim.frames.drain(&pin(cpu)));
        let whole = sim.frames.alloc(&pin(1), zeroed(9)).expect("nobody has anything");
        assert_eq!(whole.first().number(), Z);
        // SAFETY: it is ours, as loom checks.
        assert_eq!(cell.with(|bytes| unsafe { *bytes }), 0, "it was to be zeroed");
        sim.frames.free(&pin(1), whole).expect("it was ours");
        sim.check([]);
    });
}

#[test]
fn a_block_that_is_zeroed_is_claimed_whole_before_or_after() {
    zeroing_against("frames: zeroing against huge", 9);
}

#[test]
fn a_block_that_is_zeroed_is_taken_from_before_or_after() {
    zeroing_against("frames: zeroing against taking over", 3);
}

//! CPUs that stop in the middle of anything: what `recover` makes of the tables gives nobody's frame to anybody else, and
//! loses no more than what was kept and what was on its way.
//!
//! Shuttle switches at every access to the tables. A scheduler of our own runs the CPUs so many accesses, and then never
//! again; the main thread alone goes on.
#![cfg(shuttle)]

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use addr::DirectMap;
use frames::{AlgoKind, Class, Clear, Ctx, Fill, FrameRange, Frames, Gen, Req, Run, Topology, testing};
use percpu::{CpuId, Pinned};
use shuttle::{
    Config, Runner,
    scheduler::{Schedule, Scheduler, Task, TaskId},
    thread,
};

/// The first frame's number.
const FIRST: u64 = 512;

fn pin(cpu: usize) -> Pinned<'static> {
    // SAFETY: each CPU is one thread's; the main thread has them all before they begin and when they have stopped.
    unsafe { Pinned::assume(CpuId::new(cpu).expect("a CPU")) }
}

/// Which CPU is next, drawn at random (xorshift, Marsaglia 2003), until so many accesses were made.
struct Cut {
    /// The number of accesses after which all CPUs stop, of each execution to come.
    cuts: std::vec::IntoIter<usize>,
    left: usize,
    random: u64,
    /// How many accesses CPUs made in the last execution.
    steps: Arc<AtomicUsize>,
}

impl Scheduler for Cut {
    fn new_execution(&mut self) -> Option<Schedule> {
        self.left = self.cuts.next()?;
        self.steps.store(0, Ordering::Relaxed);
        Some(Schedule::new(0))
    }
    fn next_task(&mut self, runnable: &[&Task], current: Option<TaskId>, yielding: bool) -> Option<TaskId> {
        let main = TaskId::from(0);
        let at_work = current.is_none() || current == Some(main) && !yielding;
        let cpus: Vec<_> = runnable.iter().map(|task| task.id()).filter(|id| *id != main).collect();
        // The main thread yields when all CPUs may begin.
        if at_work || self.left == 0 || cpus.is_empty() {
            return runnable.iter().map(|task| task.id()).find(|id| *id == main);
        }
        self.left -= 1;
        self.steps.fetch_add(1, Ordering::Relaxed);
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        // Long stretches on one CPU, as well as short ones.
        let stays = self.random >> 40 & 3 != 0 || cpus.len() == 1;
        let stays = current.filter(|id| stays && cpus.contains(id));
        Some(stays.unwrap_or(cpus[(self.random >> 20) as usize % cpus.len()]))
    }
    fn next_u64(&mut self) -> u64 {
        self.random
    }
}

/// Who has what. Its lock is none that shuttle knows: what is done under it happens at one instant.
#[derive(Default)]
struct Owned {
    runs: Vec<Run>,
    /// Frames of runs that are being divided or put together: not to be handed out, but in which form is open.
    in_parts: BTreeSet<u64>,
}

struct Sim {
    frames: &'static Frames<'static>,
    blocks: u64,
    owned: Mutex<Owned>,
    /// The most frames that one call may have had in its hands when it was stopped, for all CPUs together.
    on_the_way: AtomicUsize,
}

impl Sim {
    fn new(blocks: u64, cpus: usize) -> Self {
        let topology = Box::leak(Box::new(Topology::one_node(cpus)));
        // SAFETY: imaginary frames, of which no byte is ever read.
        let clear = unsafe { Clear::new(DirectMap::new(0)).by(|_| (), |_| ()) };
        let frames =
            testing::with_clear(std::slice::from_ref(&(FIRST..FIRST + blocks * 512)), topology, cpus, clear);
        Self { frames, blocks, owned: Mutex::default(), on_the_way: AtomicUsize::new(0) }
    }
    fn get(&self, cpu: usize, req: Req) -> bool {
        let run = self.frames.alloc(&pin(cpu), Req { ctx: Ctx::Reserve, ..req });
        run.is_ok_and(|run| {
            self.owned.lock().expect("no thread panicked").runs.push(run);
            true
        })
    }
    fn pop(&self, which: usize) -> Option<Run> {
        let runs = &mut self.owned.lock().expect("no thread panicked").runs;
        let n = runs.len();
        (n > 0).then(|| runs.swap_remove(which % n))
    }
    /// Give back what `which` of all runs is, from now on on its way.
    fn put(&self, cpu: usize, which: usize) {
        if let Some(run) = self.pop(which) {
            self.frames.free(&pin(cpu), run).expect("it was owned");
        }
    }
    fn order(&self, cpu: usize, order: u32) -> bool {
        self.get(cpu, Req::order(order))
    }
    /// Divide the last run; its frames are in use all the time.
    fn split(&self) {
        let Some(run) = self.pop(usize::MAX) else { return };
        let frames = run.first().number()..run.first().number() + run.frames();
        self.owned.lock().expect("no thread panicked").in_parts.extend(frames.clone());
        let parts: Vec<_> = self.frames.split(run).expect("it was owned").collect();
        let mut owned = self.owned.lock().expect("no thread panicked");
        frames.for_each(|f| assert!(owned.in_parts.remove(&f)));
        owned.runs.extend(parts);
    }
    /// Divide a huge run and put it together again.
    fn split_and_fuse(&self, cpu: usize) {
        let Some(run) = self.pop(usize::MAX) else { return };
        let first = run.first();
        self.owned.lock().expect("no thread panicked").in_parts.extend(first.number()..first.number() + 512);
        self.frames.split(run).expect("it was owned").for_each(std::mem::forget);
        // SAFETY: the parts are all ours, and were forgotten.
        let run = unsafe { self.frames.fuse(&pin(cpu), first) }.expect("nobody else is here");
        let mut owned = self.owned.lock().expect("no thread panicked");
        (first.number()..first.number() + 512).for_each(|f| assert!(owned.in_parts.remove(&f)));
        owned.runs.push(run);
    }

    /// All CPUs have stopped: recover, and see that nothing is in two places, and how much is lost.
    fn check(&self, cpus: usize) {
        let kept = self.frames.stats().cached;
        // SAFETY: the threads of all CPUs have stopped, and are never scheduled again.
        let count = unsafe { self.frames.recover() };
        let Owned { runs, in_parts } = std::mem::take(&mut *self.owned.lock().expect("no thread panicked"));
        let frames_of = |run: &Run| run.first().number()..run.first().number() + run.frames();
        let mut taken = in_parts.clone();
        for f in runs.iter().flat_map(frames_of) {
            assert!(taken.insert(f), "frame {f:#x} was handed out twice before");
        }
        let stats = self.frames.stats();
        assert_eq!((count.wrong, count.bits), (0, count.counts), "{count:?} {stats:?}");
        assert_eq!((stats.free, stats.cached), (count.counts, 0), "{count:?} {stats:?}");
        assert_eq!(stats.free + stats.owned, stats.total);
        let lost = stats.owned.checked_sub(taken.len() as u64).expect("what is owned is counted");
        let bound = kept + self.on_the_way.load(Ordering::Relaxed) as u64;
        assert!(lost <= bound, "{lost} lost, {kept} were kept: {stats:?}");
        // Whoever took blocks out of service is gone.
        let all = FrameRange { start: testing::frame(FIRST), end: testing::frame(FIRST + self.blocks * 512) };
        self.frames.cancel_offline(&pin(0), all);
        // Everything that is free can be had, by whole blocks first, and none of it is anybody's.
        let mut again = Vec::new();
        for order in [10, 9, 0] {
            while let Ok(run) = self.frames.alloc(&pin(0), Req { ctx: Ctx::Reserve, ..Req::order(order) }) {
                assert!(frames_of(&run).all(|f| taken.insert(f)), "{run:?} is somebody's");
                again.push(run);
            }
        }
        assert_eq!(taken.len() as u64 + lost, stats.total, "all that is free can be had");
        // And all can be given back, by whoever.
        let cpu_of = |i: usize| i % cpus;
        for (i, run) in runs.into_iter().chain(again).enumerate() {
            self.frames.free(&pin(cpu_of(i)), run).expect("it was owned");
        }
        // A run that was being divided, or put together, is whole or in single frames.
        let whole = in_parts.iter().filter(|f| f.is_multiple_of(512)).filter(|first| {
            // SAFETY: it is ours, and if it isn't whole, the allocator says so.
            let run = unsafe { Run::from_raw(testing::frame(**first), 9) };
            self.frames.free(&pin(0), run).is_ok()
        });
        let left = in_parts.len() - 512 * whole.count();
        (0..cpus).for_each(|cpu| self.frames.drain(&pin(cpu)));
        let stats = self.frames.stats();
        assert_eq!((stats.cached, stats.owned), (0, lost + left as u64));
        assert_eq!(self.frames.recount().wrong, 0);
    }
}

type Part = fn(&Sim, usize);

/// Stop the CPUs after each number of accesses in turn, until they end by themselves: `parts` is what each CPU does after
/// `before` was done on CPU 0. At most `on_the_way` frames are in the hands of calls.
fn sweep(
    name: &'static str,
    (blocks, on_the_way): (u64, usize),
    before: Part,
    parts: &'static [Part],
    seeds: u64,
) {
    let (mut cut_points, mut executions) = (0, 0);
    for seed in 1..=seeds {
        let steps = Arc::new(AtomicUsize::new(0));
        let explore = |cuts: Vec<usize>| {
            let n = cuts.len();
            let random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let scheduler = Cut { cuts: cuts.into_iter(), left: 0, random, steps: steps.clone() };
            let mut config = Config::new();
            config.stack_size = 1 << 18;
            config.silence_warnings = true;
            Runner::new(scheduler, config).run(move || {
                let cpus = parts.len().max(2);
                let sim = Arc::new(Sim::new(blocks, cpus));
                before(&sim, 0);
                sim.on_the_way.store(on_the_way, Ordering::Relaxed);
                let threads: Vec<_> = (0..parts.len())
                    .map(|cpu| {
                        let sim = sim.clone();
                        thread::spawn(move || parts[cpu](&sim, cpu))
                    })
                    .collect();
                thread::yield_now();
                sim.check(cpus);
                // They are never joined: those that were stopped never end.
                std::mem::forget(threads);
            });
            n
        };
        // Uncut first: so many accesses there are.
        executions += explore(vec![usize::MAX]);
        let all = steps.load(Ordering::Relaxed);
        executions += explore((0..all).collect());
        cut_points += all;
    }
    assert!(cut_points > 0);
    println!("recover {name}: {cut_points} cut points, {executions} executions, complete");
}

fn nothing(_: &Sim, _: usize) {}

#[test]
fn single_frames() {
    sweep(
        "after alloc and free in a lease, refill, and a flush",
        (8, 128),
        nothing,
        &[|sim, cpu| {
            (0..70).for_each(|_| assert!(sim.order(cpu, 0)));
            (0..70).for_each(|i| sim.put(cpu, i * 7));
        }],
        1,
    );
}

#[test]
fn frames_freed_from_elsewhere() {
    sweep(
        "of two CPUs that free each other's",
        (8, 128),
        |sim, cpu| (0..6).for_each(|_| assert!(sim.order(cpu, 4))),
        &[
            |sim, cpu| {
                (0..3).for_each(|i| sim.put(cpu, i));
                assert!(sim.order(cpu, 0));
            },
            |sim, cpu| {
                (0..3).for_each(|i| sim.put(cpu, i));
                assert!(sim.order(cpu, 0));
                sim.frames.drain(&pin(cpu));
            },
        ],
        6,
    );
}

#[test]
fn both_classes() {
    sweep(
        "of both classes",
        (8, 64),
        nothing,
        &[|sim, cpu| {
            for class in [Class::Movable, Class::Unmovable] {
                sim.get(cpu, Req { class, ..Req::default() });
            }
            sim.put(cpu, 0);
            sim.frames.drain(&pin(cpu));
        }],
        1,
    );
}

#[test]
fn runs_within_a_block() {
    sweep(
        "of orders 1 to 8",
        (8, 256),
        nothing,
        &[|sim, cpu| {
            (1..9).for_each(|order| assert!(sim.order(cpu, order)));
            (0..8).for_each(|i| sim.put(cpu, i));
        }],
        1,
    );
}

#[test]
fn a_block_taken_over() {
    sweep(
        "of select and taking over",
        (8, 512 + 256),
        |sim, cpu| (0..4).for_each(|_| assert!(sim.order(cpu, 9))),
        &[
            |sim, cpu| {
                assert!(sim.order(cpu, 0));
                sim.put(cpu, 0);
            },
            |sim, cpu| {
                sim.order(cpu, 8);
                sim.order(cpu, 0);
            },
        ],
        6,
    );
}

#[test]
fn huge_runs() {
    sweep(
        "of huge runs, their parts, and fusing them",
        (4, 512),
        nothing,
        &[|sim, cpu| {
            assert!(sim.order(cpu, 9));
            sim.split_and_fuse(cpu);
            sim.put(cpu, 0);
            assert!(sim.order(cpu, 9));
            sim.split();
            (0..3).for_each(|i| sim.put(cpu, i));
            assert!(sim.order(cpu, 9));
            sim.put(cpu, usize::MAX);
            sim.frames.drain(&pin(cpu));
        }],
        1,
    );
}

#[test]
fn giant_runs() {
    sweep(
        "of giant runs, their parts",
        (9, 2048),
        nothing,
        &[|sim, cpu| {
            assert!(sim.order(cpu, 11));
            sim.put(cpu, 0);
            assert!(sim.order(cpu, 11));
            sim.split();
            sim.put(cpu, 1);
            sim.put(cpu, 1);
        }],
        1,
    );
}

#[test]
fn giant_runs_of_two_cpus() {
    sweep(
        "of giant runs against huge ones",
        (9, 2048),
        nothing,
        &[
            |sim, cpu| {
                sim.order(cpu, 10);
                sim.put(cpu, 0);
            },
            |sim, cpu| {
                sim.order(cpu, 9);
                sim.order(cpu, 11);
                sim.put(cpu, 0);
            },
        ],
        6,
    );
}

#[test]
fn lanes() {
    for kind in [AlgoKind::Avl, AlgoKind::Buddy, AlgoKind::Slab] {
        let part: &'static [Part] = match kind {
            AlgoKind::Avl => &[|sim, cpu| in_lane(sim, cpu, AlgoKind::Avl)],
            AlgoKind::Buddy => &[|sim, cpu| in_lane(sim, cpu, AlgoKind::Buddy)],
            _ => &[|sim, cpu| in_lane(sim, cpu, AlgoKind::Slab)],
        };
        sweep("of a lane", (16, 512), nothing, part, 1);
    }
}

fn in_lane(sim: &Sim, cpu: usize, kind: AlgoKind) {
    sim.frames.set_algo(&pin(cpu), kind, Some(testing::lane_memory(kind))).expect("memory is given");
    (0..3).for_each(|order| assert!(sim.order(cpu, order)));
    assert!(sim.frames.cpu_stats(pin(cpu).cpu()).cached > 64, "the algorithm has no block");
    (0..2).for_each(|i| sim.put(cpu, i));
    sim.frames.drain(&pin(cpu));
    assert!(sim.order(cpu, 0));
    sim.frames.set_algo(&pin(cpu), AlgoKind::Row, None).expect("rows need none");
}

#[test]
fn quarantine() {
    sweep(
        "of quarantine",
        (8, 128),
        |sim, cpu| [0, 0, 3, 6].into_iter().for_each(|order| assert!(sim.order(cpu, order))),
        &[|sim, cpu| {
            for generation in 1..4 {
                let Some(run) = sim.pop(0) else { return };
                sim.frames.free_pending(&pin(cpu), run, Gen(generation)).expect("there is room");
            }
            sim.frames.release(&pin(cpu), Gen(3));
            sim.frames.park(&pin(cpu));
        }],
        1,
    );
}

#[test]
fn draining_on_request() {
    sweep(
        "of draining on request",
        (8, 256),
        |sim, cpu| (0..3).for_each(|_| assert!(sim.order(cpu, 0))),
        &[
            |sim, cpu| {
                sim.put(cpu, 0);
                (0..2).for_each(|_| sim.frames.safe_point(&pin(cpu)));
                sim.frames.tick(&pin(cpu));
            },
            |sim, cpu| {
                sim.put(cpu, 0);
                sim.frames.request_drain(&sim.frames.everyone());
                sim.frames.safe_point(&pin(cpu));
            },
        ],
        6,
    );
}

#[test]
fn going_out_of_service() {
    sweep(
        "of going out of service and coming back",
        (4, 512),
        |sim, cpu| assert!(sim.order(cpu, 0)),
        &[|sim, cpu| {
            let at = |n: u64| testing::frame(FIRST + n * 512);
            let range = FrameRange { start: at(2), end: at(4) };
            sim.frames.offline(&pin(cpu), range).expect("nobody uses it");
            // SAFETY: imaginary frames, which were taken out of service.
            unsafe { sim.frames.online(&pin(cpu), range) }.expect("it was out of service");
        }],
        1,
    );
}

#[test]
fn zeroed_frames() {
    sweep(
        "of zeroing ahead",
        (16, 512),
        nothing,
        &[|sim, cpu| {
            let zeroed = Req { fill: Fill::Zeroed, ..Req::default() };
            (0..2).for_each(|_| assert!(sim.get(cpu, zeroed)));
            (0..2).for_each(|_| {
                sim.frames.tick(&pin(cpu));
                sim.frames.idle(&pin(cpu), 512);
            });
            (0..2).for_each(|_| assert!(sim.get(cpu, zeroed)));
            (0..3).for_each(|i| sim.put(cpu, i));
            assert!(sim.get(cpu, Req { fill: Fill::Zeroed, ..Req::order(9) }));
        }],
        1,
    );
}

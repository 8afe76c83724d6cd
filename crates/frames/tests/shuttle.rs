//! Four CPUs that do anything at all, in schedules drawn at random: longer ones than can be explored whole.
#![cfg(shuttle)]

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use frames::{AlgoKind, Class, Ctx, FrameRange, Frames, Gen, Req, Run, testing};
use percpu::{CpuId, Pinned};
use shuttle::{
    Config, Runner,
    rand::{Rng, thread_rng},
    scheduler::{PctScheduler, RandomScheduler, Scheduler},
    thread,
};

const CPUS: usize = 4;
/// Operations of each CPU.
const STEPS: usize = 40;

fn pin(cpu: usize) -> Pinned<'static> {
    // SAFETY: each CPU is one thread's, and the main thread's before and after.
    unsafe { Pinned::assume(CpuId::new(cpu).expect("a CPU")) }
}

/// What all threads share. The locks and flags are no points at which shuttle switches.
struct Sim {
    frames: &'static Frames<'static>,
    /// For each frame, whether somebody has it.
    owned: Vec<AtomicBool>,
    /// Runs that wait for somebody to free them.
    runs: Mutex<Vec<Run>>,
    /// Who takes memory out of service and brings it back: one at a time, as two may both find that it is out.
    plugging: Mutex<()>,
    blocks: u64,
}

impl Sim {
    fn new(blocks: u64) -> Self {
        let n = blocks as usize * 512;
        Self {
            frames: testing::frames(n, CPUS),
            owned: (0..n).map(|_| AtomicBool::new(false)).collect(),
            runs: Mutex::default(),
            plugging: Mutex::default(),
            blocks,
        }
    }
    fn mark(&self, run: &Run, owned: bool) {
        let first = (run.first().number() - 512) as usize;
        for (i, flag) in self.owned[first..first + run.frames() as usize].iter().enumerate() {
            let was = flag.swap(owned, Ordering::Relaxed);
            assert_ne!(was, owned, "{run:?}: frame {i} of it was handed out twice");
        }
    }
    fn add(&self, run: Run) {
        self.mark(&run, true);
        self.runs.lock().unwrap().push(run);
    }
    /// Anybody's run, which is nobody's now.
    fn take(&self, which: usize) -> Option<Run> {
        let mut runs = self.runs.lock().unwrap();
        let n = runs.len();
        let run = (n > 0).then(|| runs.swap_remove(which % n))?;
        self.mark(&run, false);
        Some(run)
    }
    fn step(&self, cpu: usize) {
        let (frames, pin) = (self.frames, pin(cpu));
        let mut rng = thread_rng();
        let which = rng.gen_range(0..1000usize);
        match rng.gen_range(0..32) {
            0..12 => {
                let order = [0, 0, 0, 0, 1, 3, 5, 6, 7, 8, 9, 9, 10][which % 13];
                let class = if which % 5 == 0 { Class::Unmovable } else { Class::Movable };
                if let Ok(run) = frames.alloc(&pin, Req { class, ctx: Ctx::Reserve, ..Req::order(order) }) {
                    self.add(run);
                }
            }
            12..20 => {
                if let Some(run) = self.take(which) {
                    frames.free(&pin, run).expect("it was owned");
                }
            }
            20..23 => {
                if let Some(run) = self.take(which) {
                    frames.free_shared(run).expect("it was owned");
                }
            }
            23 => {
                if let Some(run) = self.take(which)
                    && let Err((run, _)) = frames.free_pending(&pin, run, Gen(which as u64))
                {
                    frames.free(&pin, run).expect("it was owned");
                }
            }
            24 => {
                frames.release(&pin, Gen(which as u64));
            }
            25 => {
                if let Some(run) = self.take(which) {
                    frames.split(run).expect("it was owned").for_each(|part| self.add(part));
                }
            }
            26 => frames.drain(&pin),
            27 => {
                frames.request_drain(&frames.everyone());
                frames.safe_point(&pin);
            }
            28 => {
                frames.tick(&pin);
                frames.balance(&pin);
            }
            29 => {
                let kind = AlgoKind::ALL[which % AlgoKind::ALL.len()];
                frames
                    .set_algo(&pin, kind, Some(testing::lane_memory(kind)))
                    .expect("there is memory for it");
            }
            30 => frames.park(&pin),
            _ => {
                let Ok(_one) = self.plugging.try_lock() else { return };
                let first = 512 + which as u64 % self.blocks * 512;
                let range = FrameRange { start: testing::frame(first), end: testing::frame(first + 512) };
                if frames.offline(&pin, range).is_ok() {
                    let owned = &self.owned[first as usize - 512..first as usize];
                    assert!(owned.iter().all(|flag| !flag.load(Ordering::Relaxed)), "{range:?} is in use");
                    // SAFETY: it was just taken out of service, and nobody uses it.
                    unsafe { frames.online(&pin, range) }.expect("it is out of service");
                } else {
                    frames.cancel_offline(&pin, range);
                }
            }
        }
    }
    /// Everything comes back, and is there.
    fn check(&self) {
        let frames = self.frames;
        while let Some(run) = self.take(0) {
            frames.free(&pin(0), run).expect("it was owned");
        }
        for cpu in 0..CPUS {
            frames.release(&pin(cpu), Gen(u64::MAX));
            frames.drain(&pin(cpu));
        }
        let (stats, count) = (frames.stats(), frames.recount());
        assert_eq!((stats.free, stats.cached, stats.owned), (stats.total, 0, 0), "{stats:?} {count:?}");
        assert_eq!((count.wrong, count.bits, count.large), (0, stats.free, 0), "{stats:?} {count:?}");
        let refused: u64 = (0..CPUS).map(|cpu| frames.cpu_stats(pin(cpu).cpu()).refused).sum();
        assert_eq!(refused, 0, "something that was owned was refused");
    }
}

/// Each of `blocks`: so few that nothing is kept, and more.
fn everything_at_once() {
    let blocks = if thread_rng().gen_bool(0.3) { 5 } else { 16 };
    let sim = Arc::new(Sim::new(blocks));
    let threads: Vec<_> = (0..CPUS)
        .map(|cpu| {
            let sim = sim.clone();
            thread::spawn(move || (0..STEPS).for_each(|_| sim.step(cpu)))
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().expect("the CPU went well"));
    sim.check();
}

/// Run under a scheduler's schedules.
fn explore(scheduler: impl Scheduler + 'static) {
    let mut config = Config::new();
    // The tables of CPUs are made on the stack, and a watched atomic is larger than a plain one.
    config.stack_size = 4 << 20;
    Runner::new(scheduler, config).run(everything_at_once);
}

const SCHEDULES: usize = 150;

#[test]
fn every_frame_is_in_one_place_in_random_schedules() {
    explore(RandomScheduler::new(SCHEDULES));
}

/// As few switches as a fault needs, at random places.
#[test]
fn every_frame_is_in_one_place_in_schedules_of_few_switches() {
    explore(PctScheduler::new(3, SCHEDULES));
}

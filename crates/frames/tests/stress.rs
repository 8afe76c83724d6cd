//! Threads that want more frames than there are, all the time: nobody gets what another has, and in the end all is there.
//!
//! The usual sizes take seconds; with QUIRE_FULL set they are what one waits for, and with QUIRE_SLOW they are for a
//! program that ThreadSanitizer slows down. Threads meet by what it understands: being joined, and our own atomics.
#![cfg(not(loom))]

use std::{
    cell::UnsafeCell,
    collections::VecDeque,
    hint,
    sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    thread,
};

use ::sync::SpinLock;
use frames::{Ctx, Frames, HUGE_ORDER, MAX_ORDER, Req, Run, testing};
use percpu::{Unpinned, testing::Machine};

/// Frames of a block.
const BLOCK: u64 = 512;
/// The first frame's number: a multiple of every run's length.
const FIRST: u64 = 1 << MAX_ORDER;

/// One of two sizes.
fn sized<T>(usual: T, full: T) -> T {
    if std::env::var_os("QUIRE_FULL").is_some() { full } else { usual }
}

/// So many, or fewer if each takes long.
fn times(n: u64) -> u64 {
    if std::env::var_os("QUIRE_SLOW").is_some() { n / 16 } else { n }
}

/// Down to the last frame.
fn request(order: u32) -> Req {
    Req { ctx: Ctx::Reserve, ..Req::order(order) }
}

/// An allocator of `blocks` blocks of imaginary frames.
fn allocator(blocks: u64, cpus: usize) -> &'static Frames<'static> {
    testing::with_ranges(std::slice::from_ref(&(FIRST..FIRST + blocks * BLOCK)), cpus)
}

/// Numbers in an order that looks random (xorshift, Marsaglia 2003).
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % n
    }
}

/// Who owns which frame, in bits; and what is in the frames, a plain number of each: whoever gets a frame writes there, and
/// before giving it back. That no two do so without the allocator having ordered them is for ThreadSanitizer to say.
struct Owners {
    bits: Vec<AtomicU64>,
    bytes: Vec<UnsafeCell<u32>>,
}

// SAFETY: a frame's number is used by its owner only, which is what is tested.
unsafe impl Sync for Owners {}

impl Owners {
    fn new(blocks: u64) -> Self {
        Self {
            bits: (0..blocks * BLOCK / 64).map(|_| AtomicU64::new(0)).collect(),
            bytes: (0..blocks * BLOCK).map(|_| UnsafeCell::new(0)).collect(),
        }
    }

    /// Use the first and the last frame of a run, and between them one in each row, or block.
    fn touch(&self, run: &Run) {
        let (first, n) = ((run.first().number() - FIRST) as usize, 1usize << run.order());
        let step = if run.order() > HUGE_ORDER { BLOCK as usize } else { 64 };
        for cell in self.bytes[first..first + n].iter().step_by(step).chain([&self.bytes[first + n - 1]]) {
            // SAFETY: the caller owns the run.
            unsafe { *cell.get() += 1 };
        }
    }

    /// The words of a run, and its bits in each. Of runs of many blocks only the first word of each block is kept, as only
    /// whole blocks overlap them; so a test uses orders on one side of 9, or both up to it.
    fn words(&self, run: &Run) -> impl Iterator<Item = (&AtomicU64, u64)> {
        let (first, order) = (run.first().number() - FIRST, run.order());
        let mask = if order >= 6 { u64::MAX } else { ((1 << (1 << order)) - 1) << (first % 64) };
        let words = (1usize << order).div_ceil(64);
        let step = if order > HUGE_ORDER { BLOCK as usize / 64 } else { 1 };
        self.bits[(first / 64) as usize..][..words].iter().step_by(step).map(move |word| (word, mask))
    }

    /// Somebody got it.
    fn take(&self, run: &Run) {
        assert!(run.first().number().is_multiple_of(1 << run.order()), "{run:?} isn't aligned");
        for (word, mask) in self.words(run) {
            // Relaxed, here and below: one bit's changes are ordered by the allocator, or that shows.
            let twice = word.fetch_or(mask, Ordering::Relaxed) & mask;
            assert!(twice == 0, "{run:?} was handed out twice");
        }
        self.touch(run);
    }

    /// It is about to be given back.
    fn give(&self, run: &Run) {
        self.touch(run);
        for (word, mask) in self.words(run) {
            let seen = word.fetch_and(!mask, Ordering::Relaxed) & mask;
            assert!(seen == mask, "{run:?} was somebody else's too");
        }
    }
}

/// Everything that was handed out is back: all of it can be had as single frames, and as whole blocks.
fn assert_whole(machine: &Machine, frames: &Frames<'_>, blocks: u64) {
    let drain = || (0..machine.cpus()).for_each(|cpu| machine.on(cpu, |ctx| frames.drain(&ctx.pin())));
    drain();
    let (stats, recount) = (frames.stats(), frames.recount());
    assert_eq!((stats.owned, stats.cached, stats.free), (0, 0, blocks * BLOCK), "{stats:?}");
    assert_eq!((recount.wrong, recount.bits, recount.counts), (0, blocks * BLOCK, blocks * BLOCK));
    for (order, runs) in [(0, blocks * BLOCK), (HUGE_ORDER, blocks)] {
        machine.on(0, |ctx| {
            let mut all = Vec::new();
            while let Ok(run) = frames.alloc(&ctx.pin(), request(order)) {
                all.push(run);
            }
            assert_eq!(all.len() as u64, runs, "of order {order}");
            all.into_iter().for_each(|run| frames.free(&ctx.pin(), run).expect("it was ours"));
        });
        drain();
    }
}

/// One thread's part: it gets while it can, and gives back what it got, or what another has handed it.
struct Part<'a> {
    frames: &'a Frames<'static>,
    owners: &'a Owners,
    /// What others gave each thread.
    hands: &'a [SpinLock<VecDeque<Run>>],
    me: usize,
    orders: &'a [u32],
    /// Runs that one thread may have, of the smallest order.
    most: usize,
}

impl Part<'_> {
    /// Give something back; how many runs.
    fn give(&self, ctx: Unpinned<'_>, run: Run) {
        self.owners.give(&run);
        let pin = ctx.pin();
        let freed = self.frames.free(&pin, run);
        assert!(freed.is_ok(), "{freed:?}");
    }

    /// How often there was something, and how often nothing.
    fn play(&self, ctx: Unpinned<'_>, operations: u64) -> (u64, u64) {
        let mut random = Random::new(self.me as u64 + 1);
        let mut mine: Vec<Run> = Vec::new();
        let (mut got, mut refused) = (0, 0);
        for _ in 0..operations {
            let handed = self.hands[self.me].lock().pop_front();
            if let Some(run) = handed {
                self.give(ctx, run);
            }
            let order = self.orders[random.below(self.orders.len() as u64) as usize];
            // Rather more gets than frees: so there is hardly ever something left.
            if mine.len() < self.most && random.below(8) < 5 {
                let answer = self.frames.alloc(&ctx.pin(), request(order));
                if let Ok(run) = answer {
                    got += 1;
                    self.owners.take(&run);
                    mine.push(run);
                    continue;
                }
                refused += 1;
            }
            if mine.is_empty() {
                continue;
            }
            let run = mine.swap_remove(random.below(mine.len() as u64) as usize);
            if random.below(4) == 0 {
                let other =
                    (self.me + 1 + random.below(self.hands.len() as u64 - 1) as usize) % self.hands.len();
                self.hands[other].lock().push_back(run);
            } else {
                self.give(ctx, run);
            }
        }
        mine.into_iter().for_each(|run| self.give(ctx, run));
        (got, refused)
    }
}

/// `threads` threads, each on a CPU of its own, do so many operations each with runs of `orders`, in `blocks` blocks.
fn fight(threads: usize, orders: &[u32], blocks: u64, operations: u64) {
    let machine = Machine::new(threads);
    let (frames, owners) = (allocator(blocks, threads), Owners::new(blocks));
    let hands: Vec<_> = (0..threads).map(|_| SpinLock::new(VecDeque::new())).collect();
    let least = orders.iter().min().copied().unwrap_or(0);
    let most = (((blocks * BLOCK) >> least) as usize / threads + 2) * 2;
    let (got, refused) = (AtomicU64::new(0), AtomicU64::new(0));
    machine.run(|cpu, ctx| {
        let part = Part { frames, owners: &owners, hands: &hands, me: cpu.index(), orders, most };
        let (had, missed) = part.play(ctx, operations);
        got.fetch_add(had, Ordering::Relaxed);
        refused.fetch_add(missed, Ordering::Relaxed);
    });
    for run in hands.into_iter().flat_map(SpinLock::into_inner) {
        machine.on(0, |ctx| {
            owners.give(&run);
            frames.free(&ctx.pin(), run).expect("it was handed over");
        });
    }
    let (got, refused) = (got.into_inner(), refused.into_inner());
    assert!(got > 0 && refused > 0, "orders {orders:?}, {threads} threads: {got} gets, {refused} refused");
    assert_whole(&machine, frames, blocks);
}

#[test]
fn near_exhaustion_no_order_is_handed_out_twice() {
    for order in 0..=MAX_ORDER {
        // Room for a few runs a thread, however long they are.
        let runs = |threads: u64| 3 * threads / 2;
        let all_threads: Vec<usize> = sized(vec![2 + order as usize % 7, 2], (2..=8).collect());
        let operations = times(sized(100_000, 10_000_000));
        for threads in all_threads.iter().copied() {
            let n = threads as u64;
            let blocks = (runs(n) << order).div_ceil(BLOCK).max(2);
            let each = operations / all_threads.len() as u64 / n;
            fight(threads, &[order], blocks, each.max(4000));
        }
    }
}

#[test]
fn near_exhaustion_orders_do_not_overlap() {
    let operations = times(sized(1_000_000, 10_000_000));
    for threads in sized(vec![2, 5], (2..=8).collect()) {
        let n = threads as u64;
        fight(threads, &[0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9], 2 * n, operations / n);
        fight(threads, &[0, 6, 7, 8], n, operations / n);
        fight(threads, &[9, 9, 9, 10, 11, 12], 16 * n, operations / n / 4);
    }
}

/// Races show a fault now and then; this shows at once whether they could happen.
#[test]
fn what_one_cpu_holds_no_other_takes() {
    const BLOCKS: u64 = 64;
    let machine = Machine::new(2);
    let frames = allocator(BLOCKS, 2);
    let block_of = |run: &Run| (run.first().number() - FIRST) / BLOCK;
    // One frame: from now on the first CPU holds its block, and has leased one row of it.
    let one = machine.on(0, |ctx| frames.alloc(&ctx.pin(), request(0))).expect("there is plenty");
    let others = machine.on(1, |ctx| {
        let mut all = Vec::new();
        while let Ok(run) = frames.alloc(&ctx.pin(), request(0)) {
            all.push(run);
        }
        all
    });
    assert!(others.iter().all(|run| block_of(run) != block_of(&one)), "the block was held");
    assert_eq!(others.len() as u64, (BLOCKS - 1) * BLOCK);
    machine.on(0, |ctx| frames.free(&ctx.pin(), one)).expect("it was ours");
    machine.on(1, |ctx| {
        others.into_iter().for_each(|run| frames.free(&ctx.pin(), run).expect("it was ours"));
    });
    assert_whole(&machine, frames, BLOCKS);
}

/// How often two threads race: a fault of the kind shows a few times in so many.
const ROUNDS: u64 = 600;
/// Frames that two threads race for, in a round.
const PRIZE: u64 = 8192;

/// Two threads pass it together; if one of them fails, the other doesn't wait for it.
struct Gate(AtomicUsize);

impl Gate {
    fn pass(&self, turn: usize) {
        self.0.fetch_add(1, Ordering::AcqRel);
        let mut spins = 0;
        while self.0.load(Ordering::Acquire) < 2 * turn {
            spins += 1;
            if spins < 200 { hint::spin_loop() } else { thread::yield_now() }
        }
    }
}

/// Opens a gate for good when its thread fails.
struct OpenOnPanic<'a>(&'a Gate);

impl Drop for OpenOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.0.store(usize::MAX / 2, Ordering::Release);
        }
    }
}

/// What two racing threads share.
struct Race<'a> {
    frames: &'a Frames<'static>,
    order: u32,
    gate: Gate,
    /// How often each run was handed out in this round.
    times: Vec<AtomicU32>,
    duplicates: AtomicU64,
    total: AtomicU64,
    /// Runs that a CPU got of the other's share: the first half of memory is the first CPU's.
    stolen: AtomicU64,
}

impl Race<'_> {
    /// Get all there is, and give it back, so many times; `cleans` is whether this thread clears up between rounds.
    fn run(&self, ctx: Unpinned<'_>, cpu: usize, rounds: u64, cleans: bool) {
        let _open = OpenOnPanic(&self.gate);
        let mut turns = 1..;
        let mut together = || turns.next().into_iter().for_each(|turn| self.gate.pass(turn));
        for round in 0..rounds {
            together();
            let mut mine = Vec::new();
            while let Ok(run) = self.frames.alloc(&ctx.pin(), request(self.order)) {
                let at = (run.first().number() - FIRST) >> self.order;
                let before = self.times[at as usize].fetch_add(1, Ordering::Relaxed);
                self.duplicates.fetch_add(u64::from(before > 0), Ordering::Relaxed);
                let home = usize::from(at >= (PRIZE >> self.order) / 2);
                self.stolen.fetch_add(u64::from(home != cpu), Ordering::Relaxed);
                mine.push(run);
            }
            self.total.fetch_add(mine.len() as u64, Ordering::Relaxed);
            together();
            if cleans {
                self.times.iter().for_each(|n| n.store(0, Ordering::Relaxed));
            }
            together();
            // In order, or the other way round.
            if round % 2 == 0 {
                mine.reverse();
            }
            for run in mine {
                // A run that two had is freed twice, which is the same fault.
                let twice = self.frames.free(&ctx.pin(), run).is_err();
                self.duplicates.fetch_add(u64::from(twice), Ordering::Relaxed);
            }
            self.frames.drain(&ctx.pin());
        }
    }
}

/// Two threads are let go together, `rounds` times, and get all there is; `cpus` is the CPU of each. How many runs they got of
/// what was the other's share.
fn race(order: u32, cpus: [usize; 2], rounds: u64) -> u64 {
    let (blocks, n) = (PRIZE / BLOCK, if cpus[0] == cpus[1] { 1 } else { 2 });
    let machine = Machine::new(n);
    let race = Race {
        frames: allocator(blocks, n),
        order,
        gate: Gate(AtomicUsize::new(0)),
        times: (0..PRIZE >> order).map(|_| AtomicU32::new(0)).collect(),
        duplicates: AtomicU64::new(0),
        total: AtomicU64::new(0),
        stolen: AtomicU64::new(0),
    };
    thread::scope(|scope| {
        let (race, machine) = (&race, &machine);
        let spawn =
            |i: usize| scope.spawn(move || machine.on(cpus[i], |ctx| race.run(ctx, cpus[i], rounds, i == 0)));
        // Joined, as a race detector does not see how a scope ends.
        let ends = [0, 1].map(spawn).map(|thread| thread.join());
        assert!(ends.iter().all(Result::is_ok), "a thread failed");
    });
    assert_eq!(race.duplicates.into_inner(), 0, "duplicates of order {order} in {rounds} rounds");
    let (total, all) = (race.total.into_inner(), rounds * (PRIZE >> order));
    // What one CPU kept while the other looked for it was nobody's for that moment.
    assert!(total <= all && total >= all * 9 / 10, "order {order}: {total} of {all} runs were had");
    assert_whole(&machine, race.frames, blocks);
    race.stolen.into_inner()
}

#[test]
fn two_cpus_that_steal_from_each_other_get_no_frame_twice() {
    for order in [0, 3, 6, 7, 8, 9] {
        // On a busy host a few rounds may not overlap, above all in a slow build.
        let stolen = (0..50).any(|_| race(order, [0, 1], times(ROUNDS)) > 0);
        assert!(stolen, "order {order}: nothing was stolen, so nothing was tested");
    }
}

#[test]
fn two_threads_of_one_cpu_get_no_frame_twice() {
    for order in [0, 3, 6, 7, 8, 9] {
        race(order, [0, 0], times(ROUNDS));
    }
}

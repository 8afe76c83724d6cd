//! What remains of whole blocks when memory has been in use for long.
//!
//! All frames are handed out, and given back at random until a part of memory is free: hardly any block is whole then. In
//! each round after that every frame in use is replaced, in random order. Afterwards nearly as many blocks must be whole as
//! there could be. One thread plays all CPUs in turn, each of which gives back what it got; the seed is printed, and
//! QUIRE_SEED repeats a run.
#![cfg(not(loom))]

use std::time::{SystemTime, UNIX_EPOCH};

use frames::{AlgoKind, Ctx, Frames, HUGE_ORDER, Req, Run, testing};
use percpu::{CpuId, Pinned};

/// Frames of a block.
const BLOCK: usize = 512;
/// The first frame's number.
const FIRST: u64 = 512;

/// One of two sizes: the usual one takes seconds.
fn sized<T>(usual: T, full: T) -> T {
    if std::env::var_os("QUIRE_FULL").is_some() { full } else { usual }
}

/// Numbers in an order that looks random (xorshift, Marsaglia 2003).
struct Random(u64);

impl Random {
    /// By QUIRE_SEED, or another one each time.
    fn new() -> Self {
        let given = std::env::var("QUIRE_SEED").ok().and_then(|text| text.parse().ok());
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_nanos() as u64);
        let seed = given.unwrap_or_else(now);
        println!("QUIRE_SEED={seed}");
        Self(seed | 1)
    }
    fn shuffle<T>(&mut self, all: &mut [T]) {
        for i in (1..all.len()).rev() {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            all.swap(i, ((self.0 >> 16) % (i as u64 + 1)) as usize);
        }
    }
}

struct Memory {
    frames: &'static Frames<'static>,
    pins: Vec<Pinned<'static>>,
    /// What is in use, and which CPU got it.
    used: Vec<(Run, usize)>,
    /// Frames in use in each block.
    counts: Vec<usize>,
}

impl Memory {
    /// All of `blocks` blocks, in use.
    fn new(blocks: usize, cpus: usize, kind: AlgoKind) -> Self {
        let frames = testing::frames(blocks * BLOCK, cpus);
        // SAFETY: one thread plays all CPUs, one call after the other.
        let pins = (0..cpus).filter_map(CpuId::new).map(|cpu| unsafe { Pinned::assume(cpu) });
        let pins: Vec<_> = pins.collect();
        if kind != AlgoKind::Row {
            for pin in &pins {
                frames.set_algo(pin, kind, Some(testing::lane_memory(kind))).expect("it has memory");
            }
        }
        let mut memory = Self { frames, pins, used: Vec::new(), counts: vec![0; blocks] };
        let mut hungry: Vec<usize> = (0..cpus).collect();
        while !hungry.is_empty() {
            hungry.retain(|cpu| memory.get(*cpu));
        }
        memory
    }

    fn block(run: &Run) -> usize {
        (run.first().number() - FIRST) as usize / BLOCK
    }

    fn get(&mut self, cpu: usize) -> bool {
        let request = Req { ctx: Ctx::Reserve, ..Req::order(0) };
        let Ok(run) = self.frames.alloc(&self.pins[cpu], request) else { return false };
        self.counts[Self::block(&run)] += 1;
        self.used.push((run, cpu));
        true
    }

    fn put(&mut self, (run, cpu): (Run, usize)) {
        self.counts[Self::block(&run)] -= 1;
        self.frames.free(&self.pins[cpu], run).expect("it was in use");
    }

    fn replace_all(&mut self, random: &mut Random) {
        random.shuffle(&mut self.used);
        for (run, cpu) in std::mem::take(&mut self.used) {
            self.put((run, cpu));
            assert!(self.get(cpu), "there was one a moment ago");
        }
    }

    /// Blocks that could be whole.
    fn ideal(&self) -> usize {
        (self.counts.len() * BLOCK - self.used.len()) / BLOCK
    }

    /// Blocks without a frame in use, in percent of that.
    fn whole(&self) -> f64 {
        let whole = self.counts.iter().filter(|n| **n == 0).count();
        whole as f64 * 100.0 / self.ideal() as f64
    }

    /// The same, of blocks that can be had once all CPUs have given up what they keep.
    fn to_be_had(&self) -> f64 {
        self.pins.iter().for_each(|pin| self.frames.drain(pin));
        let request = Req { ctx: Ctx::Reserve, ..Req::order(HUGE_ORDER) };
        let runs: Vec<_> = std::iter::from_fn(|| self.frames.alloc(&self.pins[0], request).ok()).collect();
        let had = runs.len() as f64 * 100.0 / self.ideal() as f64;
        runs.into_iter().for_each(|run| self.frames.free(&self.pins[0], run).expect("it was had"));
        had
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        std::mem::take(&mut self.used).into_iter().for_each(|one| self.put(one));
    }
}

/// Whole blocks at the beginning, at the end, and those that can be had then; in percent of what could be.
fn churn(kind: AlgoKind, blocks: usize, cpus: usize, free: usize, random: &mut Random) -> [f64; 3] {
    let mut memory = Memory::new(blocks, cpus, kind);
    random.shuffle(&mut memory.used);
    while memory.used.len() > blocks * BLOCK / 100 * (100 - free) {
        let Some(one) = memory.used.pop() else { break };
        memory.put(one);
    }
    let before = memory.whole();
    (0..sized(3, 10)).for_each(|_| memory.replace_all(random));
    let found = [before, memory.whole(), memory.to_be_had()];
    println!("{}: {cpus} CPUs, {free} % free: {found:.1?} % of blocks are whole", kind.name());
    found
}

#[test]
fn rows_bring_blocks_together_again() {
    let mut random = Random::new();
    let blocks = sized(512, 2048);
    for free in [50, 75, 90] {
        for cpus in [1, 2, 4] {
            let [before, whole, had] = churn(AlgoKind::Row, blocks, cpus, free, &mut random);
            assert!(before < 10.0, "{before:.1} % were whole before anything was done");
            assert!(whole >= 95.0, "{cpus} CPUs, {free} % free: only {whole:.1} % of blocks became whole");
            // Whoever counts on a block wants to have it, too.
            assert!(had >= whole, "{cpus} CPUs, {free} % free: {had:.1} % of blocks can be had");
        }
    }
}

/// Of the others nothing is promised but that no frame is lost, and that what is whole can be had.
#[test]
fn other_algorithms_lose_nothing() {
    let mut random = Random::new();
    let blocks = sized(128, 1024);
    for kind in AlgoKind::ALL.into_iter().filter(|kind| *kind != AlgoKind::Row) {
        for free in [50, 75, 90] {
            for cpus in [1, 2, 4] {
                let [_, whole, had] = churn(kind, blocks, cpus, free, &mut random);
                assert!(had >= whole, "{}: {had:.1} % of blocks can be had", kind.name());
            }
        }
    }
}

//! The fragmentation simulator: what remains of large runs when memory has been in use for long.
//!
//! All frames are handed out, and given back at random until the wanted part is free: now hardly any block of 512 is
//! wholly free. Then follow *rounds*. In each, every frame that is in use is replaced, in random order: it is given back,
//! and another is got in its place. An allocator that fills what is partly used before it breaks what is whole brings
//! blocks together again; one that hands out the frame that it got last never does.
//!
//! A block counts as free if none of its frames is in use, wherever the allocator keeps them. How many there are is given
//! as a part of how many there could be. At the end they are asked for as runs, which also shows what the allocator
//! itself holds back.
//!
//! One thread acts for all CPUs in turn, so that the same seed gives the same numbers. A frame is always given back on the
//! CPU that got it.

use fastrand::Rng;
use percpu::Pinned;

use crate::{
    record::Outcome,
    subject::{Setup, Subject},
    team,
    work::BLOCK,
};

/// With `free` % of memory free.
pub fn run<S: Subject>(subject: &S, setup: &Setup, free: usize, rounds: usize, seed: u64) -> Outcome {
    team::alone(setup.cpus, |pins| {
        let mut rng = Rng::with_seed(seed);
        let mut memory = Memory::fill(subject, pins, setup.frames);
        memory.thin_out(setup.frames / 100 * (100 - free), &mut rng);
        let mut outcome = Outcome::default().with("start_pct", memory.whole());
        let mut half = None;
        for round in 1..=rounds {
            memory.replace_all(&mut rng);
            let whole = memory.whole();
            outcome = outcome.with(format!("round_{round}_pct"), whole);
            if whole >= 50.0 {
                half.get_or_insert(round);
            }
        }
        outcome = outcome.with("free_blocks_pct", memory.whole());
        if let Some(round) = half {
            outcome = outcome.with("half_after_rounds", round as f64);
        }
        if S::HUGE {
            outcome = outcome.with("huge_gets_pct", memory.get_runs());
        }
        outcome.failed(memory.failures)
    })
}

struct Memory<'a, S> {
    subject: &'a S,
    pins: &'a [Pinned<'static>],
    /// Frames in use, and the CPU of each.
    used: Vec<(u32, usize)>,
    /// Frames in use in each block.
    counts: Vec<u32>,
    frames: usize,
    failures: u64,
}

impl<'a, S: Subject> Memory<'a, S> {
    /// Everything in use, the CPUs getting in turn.
    fn fill(subject: &'a S, pins: &'a [Pinned<'static>], frames: usize) -> Self {
        let counts = vec![0; frames.div_ceil(BLOCK)];
        let mut memory =
            Self { subject, pins, used: Vec::with_capacity(frames), counts, frames, failures: 0 };
        let mut hungry: Vec<usize> = (0..pins.len()).collect();
        while !hungry.is_empty() {
            hungry.retain(|cpu| memory.get(*cpu).map(|frame| memory.used.push((frame, *cpu))).is_some());
        }
        memory
    }

    fn get(&mut self, cpu: usize) -> Option<u32> {
        let frame = self.subject.get(&self.pins[cpu], 0)?;
        self.counts[frame as usize / BLOCK] += 1;
        Some(frame as u32)
    }

    fn put(&mut self, (frame, cpu): (u32, usize)) {
        self.counts[frame as usize / BLOCK] -= 1;
        self.subject.put(&self.pins[cpu], frame.into(), 0);
    }

    /// Give frames back at random until only `wanted` are in use.
    fn thin_out(&mut self, wanted: usize, rng: &mut Rng) {
        rng.shuffle(&mut self.used);
        while self.used.len() > wanted {
            let Some(one) = self.used.pop() else { break };
            self.put(one);
        }
    }

    fn replace_all(&mut self, rng: &mut Rng) {
        rng.shuffle(&mut self.used);
        for one in std::mem::take(&mut self.used) {
            self.put(one);
            match self.get(one.1) {
                Some(frame) => self.used.push((frame, one.1)),
                None => self.failures += 1,
            }
        }
    }

    /// The most blocks that could be free.
    fn ideal(&self) -> usize {
        (self.frames - self.used.len()) / BLOCK
    }

    /// Free blocks in % of that.
    fn whole(&self) -> f64 {
        let whole = self.counts.iter().filter(|used| **used == 0).count();
        whole as f64 * 100.0 / self.ideal().max(1) as f64
    }

    /// The same, of blocks that can be had.
    fn get_runs(&self) -> f64 {
        let (mut runs, mut hungry) = (Vec::new(), self.pins.iter().collect::<Vec<_>>());
        while !hungry.is_empty() {
            hungry.retain(|pin| self.subject.get(pin, 9).map(|run| runs.push((run, *pin))).is_some());
        }
        runs.iter().for_each(|(run, pin)| self.subject.put(pin, *run, 9));
        runs.len() as f64 * 100.0 / self.ideal().max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::{Bitmap, Floor};

    const SETUP: Setup = Setup { frames: 64 * BLOCK, cpus: 1 };

    #[test]
    fn a_stack_never_brings_blocks_together() {
        let outcome = run(&Floor::new(&SETUP), &SETUP, 75, 10, 1);
        assert!(outcome.value("free_blocks_pct").unwrap() < 5.0, "{outcome:?}");
        assert_eq!(outcome.value("half_after_rounds"), None);
    }

    #[test]
    fn the_lowest_first_always_does() {
        let outcome = run(&Bitmap::<bitmap_allocator::BitAlloc64K>::new(&SETUP), &SETUP, 75, 10, 1);
        assert!(outcome.value("start_pct").unwrap() < 5.0, "{outcome:?}");
        assert!(outcome.value("free_blocks_pct").unwrap() > 95.0, "{outcome:?}");
        assert_eq!(outcome.value("huge_gets_pct"), outcome.value("free_blocks_pct"));
        assert_eq!(outcome.failures, 0);
    }

    #[test]
    fn one_seed_gives_the_same_again() {
        // With so much free, and so many blocks, chance leaves a few whole.
        let setup = Setup { frames: 1024 * BLOCK, cpus: 1 };
        let with = |seed| run(&Floor::new(&setup), &setup, 99, 2, seed).values;
        let first = with(1);
        assert_eq!(first, with(1));
        assert!((2..8).any(|seed| with(seed) != first), "the seed decides nothing");
    }
}

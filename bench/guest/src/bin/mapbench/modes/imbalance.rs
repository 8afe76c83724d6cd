//! `imbalance`: some threads map and touch memory that others unmap, so frames are freed on other CPUs than they are
//! taken on, all the time.
//!
//! A *pair* c:f says that thread f unmaps what thread c maps; by default thread 2k + 1 unmaps what thread 2k maps, and a
//! thread left over unmaps its own. Thread c maps its region, at c GiB, in chunks of 128 pages, touches each chunk and
//! publishes it; its freers take the chunks in turn and unmap them behind it. A chunk is mapped again in the next round
//! when it has been unmapped. Mapping with touching, and unmapping, are measured, a chunk at a time; waiting is not. A
//! thread's operation is one round: all chunks of its own region, and its share of those that it unmaps.

use super::{GIB, Mode, Work};
use crate::{
    meter::Meter,
    pages::{Author, PAGE, Pages},
    wait::Progress,
};

/// Pages mapped by one call.
const CHUNK: usize = 128;

pub struct Imbalance {
    threads: usize,
    npages: usize,
    pairs: Vec<Pair>,
    /// Chunks that each thread has mapped, over all rounds.
    mapped: Vec<Progress>,
    team: Vec<usize>,
}

/// Thread `freer` unmaps the chunks j of thread `mapper` for which j mod `among` = `turn`.
struct Pair {
    mapper: usize,
    freer: usize,
    turn: usize,
    among: usize,
    /// Chunks of the mapper's, over all rounds, up to which this freer has unmapped its share.
    freed: Progress,
}

struct Thread<'a> {
    mode: &'a Imbalance,
    thread: usize,
}

impl Imbalance {
    /// With these pairs, or the default ones.
    pub fn new(threads: usize, npages: usize, pairs: Option<&[(usize, usize)]>) -> Result<Self, String> {
        if npages * PAGE > GIB {
            return Err("imbalance has a GiB for a mapper: --npages is at most 262144".into());
        }
        let default: Vec<_> = (0..threads).step_by(2).map(|c| (c, (c + 1).min(threads - 1))).collect();
        let pairs = pairs.unwrap_or(&default);
        for &(mapper, freer) in pairs {
            if mapper.max(freer) >= threads {
                return Err(format!("--pairs {mapper}:{freer}: there are {threads} threads, from 0 on"));
            }
        }
        if let Some(idle) = (0..threads).find(|t| !pairs.iter().any(|(c, f)| [c, f].contains(&t))) {
            return Err(format!("--pairs gives thread {idle} nothing to do"));
        }
        let freers = |mapper| pairs.iter().filter(move |(c, _)| *c == mapper);
        if let Some((mapper, _)) = pairs.iter().find(|(c, _)| freers(*c).count() > npages.div_ceil(CHUNK)) {
            return Err(format!("thread {mapper} has more freers than chunks of {CHUNK} pages"));
        }
        let pair = |(at, &(mapper, freer)): (usize, &(usize, usize))| Pair {
            mapper,
            freer,
            turn: pairs[..at].iter().filter(|(c, _)| *c == mapper).count(),
            among: freers(mapper).count(),
            freed: Progress::default(),
        };
        Ok(Self {
            threads,
            npages,
            team: teams(threads, pairs),
            pairs: pairs.iter().enumerate().map(pair).collect(),
            mapped: (0..threads).map(|_| Progress::default()).collect(),
        })
    }

    fn chunks(&self) -> usize {
        self.npages.div_ceil(CHUNK)
    }

    fn chunk(&self, mapper: usize, chunk: usize) -> Pages {
        let first = chunk * CHUNK;
        Pages::at(mapper * GIB, self.npages).part(first, CHUNK.min(self.npages - first))
    }

    /// Chunks before this one, over all rounds, and itself.
    fn number(&self, round: u32, chunk: usize) -> u32 {
        round.wrapping_mul(self.chunks() as u32).wrapping_add(chunk as u32 + 1)
    }
}

/// For each thread the lowest one that it is connected with by pairs.
fn teams(threads: usize, pairs: &[(usize, usize)]) -> Vec<usize> {
    let mut team: Vec<_> = (0..threads).collect();
    for _ in 0..threads {
        for &(c, f) in pairs {
            let lowest = team[c].min(team[f]);
            team[c] = lowest;
            team[f] = lowest;
        }
    }
    team
}

impl Mode for Imbalance {
    fn extent(&self) -> usize {
        self.threads * GIB
    }

    fn start(&self, thread: usize) -> Box<dyn Work + '_> {
        Box::new(Thread { mode: self, thread })
    }

    fn team(&self, thread: usize) -> usize {
        self.team[thread]
    }
}

impl Thread<'_> {
    fn map(&self, round: u32, chunk: usize, meter: &mut Meter) {
        let (mode, me) = (self.mode, Author { thread: self.thread, round });
        let Some(pair) = mode.pairs.iter().find(|p| p.mapper == me.thread && chunk % p.among == p.turn)
        else {
            return;
        };
        if round > 0 {
            pair.freed.wait_for(mode.number(round - 1, chunk));
        }
        let pages = mode.chunk(me.thread, chunk);
        meter.bracket(pages.count(), |checks| {
            pages.map();
            pages.touch(me, checks);
        });
        mode.mapped[me.thread].publish(mode.number(round, chunk));
    }

    fn unmap(&self, round: u32, chunk: usize, meter: &mut Meter) {
        let mode = self.mode;
        for pair in mode.pairs.iter().filter(|p| p.freer == self.thread && chunk % p.among == p.turn) {
            mode.mapped[pair.mapper].wait_for(mode.number(round, chunk));
            let pages = mode.chunk(pair.mapper, chunk);
            meter.bracket(0, |_| pages.unmap());
            pair.freed.publish(mode.number(round, chunk));
        }
    }
}

impl Work for Thread<'_> {
    fn round(&mut self, round: u32, meter: &mut Meter) {
        for chunk in 0..self.mode.chunks() {
            self.map(round, chunk, meter);
            self.unmap(round, chunk, meter);
        }
    }

    fn finish(&mut self, rounds: u32, meter: &mut Meter) {
        let last = self.mode.number(rounds - 1, self.mode.chunks() - 1);
        for pair in self.mode.pairs.iter().filter(|pair| pair.mapper == self.thread) {
            // This freer's last chunk: the last one whose turn it is.
            let behind = (self.mode.chunks() - 1 + pair.among - pair.turn) % pair.among;
            pair.freed.wait_for(last.wrapping_sub(behind as u32));
        }
        if self.mode.pairs.iter().any(|pair| pair.mapper == self.thread) {
            meter.checks.expect(Pages::at(self.thread * GIB, self.mode.npages).are_free());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(mode: &Imbalance) -> Vec<(usize, usize, usize, usize)> {
        mode.pairs.iter().map(|p| (p.mapper, p.freer, p.turn, p.among)).collect()
    }

    #[test]
    fn by_default_odd_threads_free_for_even_ones() {
        let mode = Imbalance::new(5, 1024, None).unwrap();
        assert_eq!(pairs(&mode), [(0, 1, 0, 1), (2, 3, 0, 1), (4, 4, 0, 1)]);
        assert_eq!(mode.team, [0, 0, 2, 2, 4]);
        assert_eq!(pairs(&Imbalance::new(1, 1, None).unwrap()), [(0, 0, 0, 1)]);
    }

    #[test]
    fn several_freers_take_turns() {
        let mode = Imbalance::new(4, 1024, Some(&[(0, 1), (0, 2), (0, 3)])).unwrap();
        assert_eq!(pairs(&mode), [(0, 1, 0, 3), (0, 2, 1, 3), (0, 3, 2, 3)]);
        assert_eq!(mode.team, [0; 4]);
    }

    #[test]
    fn pairs_that_cannot_work_are_refused() {
        assert!(Imbalance::new(2, 1024, Some(&[(0, 2)])).is_err());
        assert!(Imbalance::new(3, 1024, Some(&[(0, 1)])).is_err());
        assert!(Imbalance::new(3, 128, Some(&[(0, 1), (0, 2)])).is_err());
        assert!(Imbalance::new(1, 262_145, None).is_err());
    }

    #[test]
    fn the_last_chunk_may_be_shorter() {
        let mode = Imbalance::new(1, 300, None).unwrap();
        let counts: Vec<_> = (0..mode.chunks()).map(|chunk| mode.chunk(0, chunk).count()).collect();
        assert_eq!(counts, [128, 128, 44]);
    }
}

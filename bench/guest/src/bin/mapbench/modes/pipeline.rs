//! `pipeline`: every thread's pages are used and unmapped by the thread before it, as in a chain of stages that hand
//! buffers on. Each unmapping has exactly one other CPU to tell.
//!
//! Thread i's ring of n slots of 1 MiB begins at i * n * 256 MiB; round r uses slot r mod n. In round r thread i waits
//! until thread i + 1 has done its round r - 1; then, as one measured operation, it touches that thread's pages of round
//! r - 1 and unmaps them, and maps and touches its own of round r. (Round 0, never measured, only maps.) So all waiting
//! lies between operations.
//!
//! No slot is mapped again while its last pages are there: when thread i maps round r, thread i + k has done round
//! r - k, so thread i - 1 = i + (threads - 1) has unmapped the round r - threads of thread i; and n >= threads.

use super::{MIB, Mode, Work};
use crate::{
    meter::Meter,
    pages::{Author, Pages},
    wait::Progress,
};

/// Slots of a ring if there are no more threads than that: the largest machine that the mode's published figures are
/// from had 80 CPUs. One number for all thread counts, so that the layout is the same along a curve.
const SLOTS: usize = 80;
/// The word that the second toucher writes: on the stamp's line, but not the stamp.
const SECOND_WORD: usize = 2;

pub struct Pipeline {
    threads: usize,
    npages: usize,
    slots: usize,
    /// Rounds that each thread has done.
    done: Vec<Progress>,
}

struct Thread<'a> {
    mode: &'a Pipeline,
    thread: usize,
}

impl Pipeline {
    pub fn new(threads: usize, npages: usize) -> Result<Self, String> {
        if npages > 256 {
            return Err("pipeline has slots of 1 MiB: --npages is at most 256".into());
        }
        let done = (0..threads).map(|_| Progress::default()).collect();
        Ok(Self { threads, npages, slots: threads.max(SLOTS), done })
    }

    /// The pages of one thread's round.
    fn pages(&self, author: Author) -> Pages {
        let slot = author.round as usize % self.slots;
        Pages::at(author.thread * self.slots * 256 * MIB + slot * MIB, self.npages)
    }
}

impl Mode for Pipeline {
    fn extent(&self) -> usize {
        self.threads * self.slots * 256 * MIB
    }

    fn start(&self, thread: usize) -> Box<dyn Work + '_> {
        Box::new(Thread { mode: self, thread })
    }

    fn team(&self, _thread: usize) -> usize {
        0
    }
}

impl Thread<'_> {
    /// The next thread's pages of this round, when it has done the round.
    fn taken_over(&self, round: u32) -> (Pages, Author) {
        let next = Author { thread: (self.thread + 1) % self.mode.threads, round };
        self.mode.done[next.thread].wait_for(round.wrapping_add(1));
        (self.mode.pages(next), next)
    }
}

impl Work for Thread<'_> {
    fn round(&mut self, round: u32, meter: &mut Meter) {
        let me = Author { thread: self.thread, round };
        let own = self.mode.pages(me);
        if round == 0 {
            own.map();
            own.touch(me, &mut meter.checks);
        } else {
            let (taken, other) = self.taken_over(round - 1);
            meter.bracket(taken.count() + own.count(), |checks| {
                for index in 0..taken.count() {
                    taken.write_word(index, SECOND_WORD, me.stamp(index));
                }
                for index in 0..taken.count() {
                    checks.expect(taken.read_word(index, SECOND_WORD) == me.stamp(index));
                }
                taken.check(other, checks);
                taken.unmap();
                own.map();
                own.touch(me, checks);
            });
        }
        self.mode.done[self.thread].publish(round.wrapping_add(1));
    }

    fn finish(&mut self, rounds: u32, meter: &mut Meter) {
        let (taken, other) = self.taken_over(rounds - 1);
        taken.check(other, &mut meter.checks);
        taken.unmap();
        meter.checks.expect(taken.are_free());
    }
}

//! How two sides meet: asleep while one prepares, and in user mode around the operations, where the kernel must not be
//! seen doing anything else.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::sys;

/// So many looks at the other's word before the CPU is given away: only where both share one.
const LOOKS: u32 = 100_000;

/// One side's word, alone on its pair of cache lines.
#[repr(align(128))]
#[derive(Default)]
struct Word {
    steps: AtomicU32,
    asleep: AtomicU32,
}

/// Where two sides meet; all zeroes at first. Each counts its own steps, and waits until the other has done as many.
#[derive(Default)]
pub struct Meeting([Word; 2]);

/// One side of it.
pub struct Side<'a> {
    meeting: &'a Meeting,
    side: usize,
    step: u32,
}

impl Meeting {
    /// Side 0 or 1.
    pub fn side(&self, side: usize) -> Side<'_> {
        // Relaxed: both sides of an earlier pair have ended, which whoever starts these has seen.
        Side { meeting: self, side, step: self.0[side].steps.load(Ordering::Relaxed) }
    }
}

impl<'a> Side<'a> {
    /// Wait for the other, asleep.
    pub fn sleep(&mut self) {
        let (own, other) = self.next();
        // SeqCst, all of them: either we see that the other sleeps, or it sees our step (the kernel compares it again).
        own.steps.store(self.step, Ordering::SeqCst);
        if own.asleep.load(Ordering::SeqCst) != 0 {
            sys::futex_wake(&own.steps);
        }
        other.asleep.store(1, Ordering::SeqCst);
        loop {
            let now = other.steps.load(Ordering::SeqCst);
            if reached(now, self.step) {
                break;
            }
            sys::futex_wait(&other.steps, now);
        }
        other.asleep.store(0, Ordering::SeqCst);
    }

    /// Wait for the other without a call.
    #[inline(always)]
    pub fn spin(&mut self) {
        let (own, other) = self.next();
        // Release, with the Acquire below: what was done before has happened for the other.
        own.steps.store(self.step, Ordering::Release);
        let mut looks = 0;
        while !reached(other.steps.load(Ordering::Acquire), self.step) {
            std::hint::spin_loop();
            looks += 1;
            if looks == LOOKS {
                sys::give_way();
                looks = 0;
            }
        }
    }

    /// Begin another step: our word and the other's.
    #[inline(always)]
    fn next(&mut self) -> (&'a Word, &'a Word) {
        self.step = self.step.wrapping_add(1);
        let words = &self.meeting.0;
        (&words[self.side], &words[1 - self.side])
    }
}

/// Whether `now` is at or past `wanted`, in arithmetic modulo 2^32.
#[inline(always)]
fn reached(now: u32, wanted: u32) -> bool {
    now.wrapping_sub(wanted) < 1 << 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_side_goes_ahead() {
        let (meeting, sum) = (Meeting::default(), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for side in [0, 1] {
                let (meeting, sum) = (&meeting, &sum);
                scope.spawn(move || {
                    let mut me = meeting.side(side);
                    for round in 1..=200 {
                        // Relaxed: the meetings order it.
                        sum.fetch_add(1, Ordering::Relaxed);
                        if round % 2 == 0 {
                            me.sleep()
                        } else {
                            me.spin()
                        }
                        assert_eq!(sum.load(Ordering::Relaxed), round * 2);
                        me.sleep();
                    }
                });
            }
        });
    }
}

//! `fault` and `fault-2m`: page faults alone, in a mapping made before.
//!
//! `fault`: every thread has a slice of its own, 1 GiB long and aligned, of one mapping. `fault-2m`: as many as 64
//! threads share 2 MiB of one mapping, their pages 32 KiB apart; more threads are spread evenly over as many such spans
//! as they need (80: two of 40). An operation touches the thread's pages. Then, not measured, their contents are given
//! up, and the next operation faults on the same pages.
//!
//! With `--first-touch` every operation faults on pages that nobody has touched since they were mapped: the next ones of
//! the slice, or the same places in the next 2 MiB. The warm-up then has a mapping of its own.

use super::{GIB, KIB, MIB, Mode, Work};
use crate::{
    meter::Meter,
    options::{Length, Plan},
    pages::{Author, PAGE, Pages},
};

/// The most threads in one span, and their distance in it.
const SPAN_THREADS: usize = 64;
const DISTANCE: usize = 32 * KIB;
const SPAN: usize = 2 * MIB;
/// As much as a run of fresh spans may take.
const MOST: usize = 1 << 40;

pub struct Fault {
    layout: Layout,
    /// Bytes of one mapping.
    bytes: usize,
    npages: usize,
    /// Of a run on fresh pages, rounds of the warm-up.
    fresh_after: Option<u32>,
}

#[derive(Clone, Copy)]
enum Layout {
    Slices,
    /// Threads in one span, and spans.
    Spans {
        threads: usize,
        spans: usize,
    },
}

struct Thread<'a> {
    mode: &'a Fault,
    thread: usize,
}

impl Fault {
    /// `fault`.
    pub fn slices(threads: usize, npages: usize, plan: &Plan) -> Result<Self, String> {
        let rounds = fresh_rounds(plan)?.unwrap_or(1);
        if rounds.saturating_mul(npages) > GIB / PAGE {
            return Err("fault has a slice of 262144 pages a thread: fewer pages or operations".into());
        }
        Ok(Self::new(Layout::Slices, threads * GIB, npages, plan))
    }

    /// `fault-2m`.
    pub fn spans(threads: usize, npages: usize, plan: &Plan) -> Result<Self, String> {
        if npages > DISTANCE / PAGE {
            return Err("fault-2m has 32 KiB a thread: --npages is at most 8".into());
        }
        let spans = threads.div_ceil(SPAN_THREADS);
        let bytes = fresh_rounds(plan)?.unwrap_or(1).saturating_mul(spans * SPAN);
        if bytes > MOST {
            return Err("fault-2m --first-touch takes 2 MiB an operation: fewer operations".into());
        }
        let layout = Layout::Spans { threads: threads.div_ceil(spans), spans };
        Ok(Self::new(layout, bytes, npages, plan))
    }

    fn new(layout: Layout, bytes: usize, npages: usize, plan: &Plan) -> Self {
        Self { layout, bytes, npages, fresh_after: plan.first_touch.then_some(plan.warm_up) }
    }

    /// The pages that a thread touches in a round.
    fn pages(&self, thread: usize, round: u32) -> Pages {
        // Of two mappings, the measured rounds have the first and the warm-up has the second.
        let (mapping, step) = match self.fresh_after {
            None => (0, 0),
            Some(warm_up) if round < warm_up => (self.bytes, round as usize),
            Some(warm_up) => (0, (round - warm_up) as usize),
        };
        let offset = match self.layout {
            Layout::Slices => thread * GIB + step * self.npages * PAGE,
            Layout::Spans { threads, spans } => {
                (step * spans + thread / threads) * SPAN + thread % threads * DISTANCE
            }
        };
        Pages::at(mapping + offset, self.npages)
    }
}

/// How many rounds the larger of the two phases has, if each needs fresh pages.
fn fresh_rounds(plan: &Plan) -> Result<Option<usize>, String> {
    match plan.length {
        _ if !plan.first_touch => Ok(None),
        Length::Operations(operations) => Ok(Some(operations.max(plan.warm_up) as usize)),
        Length::Seconds(_) => Err("--first-touch needs --operations".into()),
    }
}

impl Mode for Fault {
    fn extent(&self) -> usize {
        self.bytes * if self.fresh_after.is_some() { 2 } else { 1 }
    }

    fn prepare(&self) {
        for begin in (0..self.extent()).step_by(self.bytes) {
            Pages::at(begin, self.bytes / PAGE).map_sparsely();
        }
    }

    fn start(&self, thread: usize) -> Box<dyn Work + '_> {
        Box::new(Thread { mode: self, thread })
    }
}

impl Work for Thread<'_> {
    fn round(&mut self, round: u32, meter: &mut Meter) {
        let pages = self.mode.pages(self.thread, round);
        let author = Author { thread: self.thread, round };
        meter.bracket(pages.count(), |checks| pages.touch(author, checks));
        if self.mode.fresh_after.is_none() {
            pages.dont_need();
        }
    }

    fn finish(&mut self, rounds: u32, meter: &mut Meter) {
        // The last round's pages: given up, so fresh, or still as they were left.
        let (pages, author) =
            (self.mode.pages(self.thread, rounds - 1), Author { thread: self.thread, round: rounds - 1 });
        match self.mode.fresh_after {
            None => pages.touch(Author { round: rounds, ..author }, &mut meter.checks),
            Some(_) => pages.check(author, &mut meter.checks),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(threads: usize, fresh_after: Option<u32>) -> Fault {
        let spans = threads.div_ceil(SPAN_THREADS);
        let layout = Layout::Spans { threads: threads.div_ceil(spans), spans };
        Fault { layout, bytes: 100 * spans * SPAN, npages: 8, fresh_after }
    }

    #[test]
    fn eighty_threads_have_two_spans_of_forty() {
        let mode = spans(80, None);
        assert_eq!(mode.pages(0, 9), Pages::at(0, 8));
        assert_eq!(mode.pages(39, 9), Pages::at(39 * DISTANCE, 8));
        assert_eq!(mode.pages(40, 9), Pages::at(SPAN, 8));
        assert_eq!(mode.pages(79, 9), Pages::at(SPAN + 39 * DISTANCE, 8));
        assert_eq!(spans(64, None).pages(63, 0), Pages::at(63 * DISTANCE, 8));
    }

    #[test]
    fn fresh_pages_are_never_the_same_twice() {
        let mode = spans(80, Some(3));
        assert_eq!(mode.pages(40, 3), Pages::at(SPAN, 8));
        assert_eq!(mode.pages(40, 4), Pages::at(3 * SPAN, 8));
        assert_eq!(mode.pages(40, 2), Pages::at(mode.bytes + 5 * SPAN, 8));
        let slices = Fault { layout: Layout::Slices, bytes: 2 * GIB, npages: 4, fresh_after: Some(1) };
        assert_eq!(slices.pages(1, 3), Pages::at(GIB + 8 * PAGE, 4));
        assert_eq!(slices.pages(1, 0), Pages::at(3 * GIB, 4));
    }
}

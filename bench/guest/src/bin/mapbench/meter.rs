//! What one thread measures: its brackets, their time, and what it checked.

use std::{
    hint::black_box,
    thread,
    time::{Duration, Instant},
};

use crate::marker;

/// Words that were read back, and how many of them were wrong.
#[derive(Clone, Copy, Default)]
pub struct Checks {
    /// Comparisons made.
    pub made: u64,
    /// Comparisons that failed.
    pub wrong: u64,
}

impl Checks {
    /// Counts one comparison.
    #[inline(always)]
    pub fn expect(&mut self, right: bool) {
        self.made += 1;
        self.wrong += u64::from(!right);
    }
}

/// One thread's measurements. It lies on the thread's own stack: measuring shares no line with other threads.
#[derive(Default)]
pub struct Meter {
    open: bool,
    opened: Option<Instant>,
    /// Rounds in the window.
    pub operations: u64,
    /// Pairs of operation markers in the window.
    pub brackets: u64,
    /// Page touches inside the window's brackets.
    pub touches: u64,
    /// Time in the window's brackets.
    pub inside: Duration,
    /// Time from the window's begin to its end.
    pub window: Duration,
    /// Everything that was checked, in the window and outside.
    pub checks: Checks,
    /// Slept before each bracket.
    pub pause: Duration,
}

impl Meter {
    /// Begins the window.
    pub fn open(&mut self) {
        self.open = true;
        self.opened = Some(Instant::now());
        marker::window_begin();
    }

    /// Ends the window.
    pub fn close(&mut self) {
        marker::window_end();
        self.open = false;
        self.window = self.opened.map_or(Duration::ZERO, |opened| opened.elapsed());
    }

    /// Time since the window began.
    pub fn elapsed(&self) -> Duration {
        self.opened.map_or(Duration::ZERO, |opened| opened.elapsed())
    }

    /// Does measured work that touches `touches` pages. The clock is read outside of the markers.
    ///
    /// Before and after the window it is the same code, so that the warm-up brings in every page of it, but for the
    /// markers, which would make no sense there.
    #[inline(always)]
    pub fn bracket(&mut self, touches: usize, work: impl FnOnce(&mut Checks)) {
        if !self.pause.is_zero() {
            thread::sleep(self.pause);
        }
        // Copied, so that the bracket's own accesses stay in registers and on the stack.
        let (mut checks, open) = (self.checks, self.open);
        let start = Instant::now();
        // The compiler must not know that the two tests agree: it would make two copies of the work.
        if black_box(open) {
            marker::operation_begin();
        }
        work(&mut checks);
        if black_box(open) {
            marker::operation_end();
        }
        let time = start.elapsed();
        self.checks = checks;
        if open {
            self.inside += time;
            self.brackets += 1;
            self.touches += touches as u64;
        }
    }
}

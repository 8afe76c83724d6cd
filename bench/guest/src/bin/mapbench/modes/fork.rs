//! `fork`: every thread forks, and writes to its pages while the child still has them.
//!
//! An operation: the fork, as the parent sees it, and one write to each of the thread's pages, which copies it. The
//! child sleeps meanwhile. Then, not measured, it finds the pages as they were at the fork, and ends.

use std::os::fd::OwnedFd;

use super::{GIB, Mode, Work};
use crate::{
    meter::Meter,
    pages::{Author, Pages},
    sys::{self, Side},
};

/// Thread i's pages begin at i GiB.
pub struct Fork {
    pub threads: usize,
    pub npages: usize,
}

struct Thread {
    thread: usize,
    pages: Pages,
    /// What the pages have.
    last: Author,
    /// Children read from the first and so sleep until the parent writes to the second.
    gate: (OwnedFd, OwnedFd),
}

impl Mode for Fork {
    fn extent(&self) -> usize {
        self.threads * GIB
    }

    fn start(&self, thread: usize) -> Box<dyn Work> {
        let (pages, last) = (Pages::at(thread * GIB, self.npages), Author { thread, round: u32::MAX });
        pages.map();
        for index in 0..pages.count() {
            pages.write_word(index, 0, last.stamp(index));
        }
        Box::new(Thread { thread, pages, last, gate: sys::pipe() })
    }
}

/// The child's whole life. It uses no markers: its parent's CPU may be its own.
fn child(gate: &OwnedFd, pages: Pages, wanted: Author) -> ! {
    sys::die_with_parent();
    let opened = sys::read_byte(gate);
    let right = (0..pages.count()).all(|index| pages.read_word(index, 0) == wanted.stamp(index));
    sys::exit_child(i32::from(!(opened && right)))
}

impl Work for Thread {
    fn round(&mut self, round: u32, meter: &mut Meter) {
        let (pages, last, me) = (self.pages, self.last, Author { thread: self.thread, round });
        let (gate, mut pid) = (&self.gate.0, 0);
        meter.bracket(pages.count(), |_| {
            match sys::fork() {
                Side::Child => child(gate, pages, last),
                Side::Parent(child) => pid = child,
            }
            for index in 0..pages.count() {
                pages.write_word(index, 0, me.stamp(index));
            }
        });
        sys::write_byte(&self.gate.1);
        meter.checks.expect(sys::child_succeeded(pid));
        for index in 0..pages.count() {
            meter.checks.expect(pages.read_word(index, 0) == me.stamp(index));
        }
        self.last = me;
    }

    fn finish(&mut self, _rounds: u32, meter: &mut Meter) {
        self.pages.unmap();
        meter.checks.expect(self.pages.are_free());
    }
}

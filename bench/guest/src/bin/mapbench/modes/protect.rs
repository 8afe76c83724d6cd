//! `protect`: every thread takes the right to write to its own pages away and gives it back.
//!
//! An operation: the pages become read-only and are read; they become writable and are written. The write shows a
//! translation that was left weaker than the right, which a kernel may repair by a fault.

use super::{GIB, Mode, Work};
use crate::{
    meter::Meter,
    pages::{Author, Pages},
    sys,
};

/// Thread i's pages begin at i GiB.
pub struct Protect {
    pub threads: usize,
    pub npages: usize,
}

struct Thread {
    thread: usize,
    pages: Pages,
    /// What the pages have.
    last: Author,
}

impl Mode for Protect {
    fn extent(&self) -> usize {
        self.threads * GIB
    }

    fn start(&self, thread: usize) -> Box<dyn Work> {
        let (pages, last) = (Pages::at(thread * GIB, self.npages), Author { thread, round: u32::MAX });
        pages.map();
        for index in 0..pages.count() {
            pages.write_word(index, 0, last.stamp(index));
        }
        Box::new(Thread { thread, pages, last })
    }
}

impl Work for Thread {
    fn round(&mut self, round: u32, meter: &mut Meter) {
        let (pages, last, me) = (self.pages, self.last, Author { thread: self.thread, round });
        meter.bracket(pages.count(), |checks| {
            pages.protect(false);
            for index in 0..pages.count() {
                checks.expect(pages.read_word(index, 0) == last.stamp(index));
            }
            pages.protect(true);
            for index in 0..pages.count() {
                pages.write_word(index, 0, me.stamp(index));
            }
        });
        self.last = me;
    }

    fn finish(&mut self, _rounds: u32, meter: &mut Meter) {
        let (pages, last) = (self.pages, self.last);
        pages.protect(false);
        for index in 0..pages.count() {
            meter.checks.expect(pages.read_word(index, 0) == last.stamp(index));
        }
        meter.checks.expect(sys::refused_as_buffer(pages.address()));
        pages.protect(true);
        meter.checks.expect(!sys::refused_as_buffer(pages.address()));
        pages.unmap();
        meter.checks.expect(pages.are_free());
    }
}

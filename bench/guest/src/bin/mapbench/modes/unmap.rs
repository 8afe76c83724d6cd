//! `unmap-virt` and `unmap-touched`: unmapping alone, of pages that were never touched, or of pages that were. The
//! mapping and the touches before it are not measured.

use super::{GIB, Mode, Work};
use crate::{
    meter::Meter,
    pages::{Author, Pages},
};

/// Thread i's pages begin at i GiB.
pub struct Unmap {
    pub threads: usize,
    pub npages: usize,
    pub touched: bool,
}

struct Thread {
    thread: usize,
    pages: Pages,
    touched: bool,
}

impl Mode for Unmap {
    fn extent(&self) -> usize {
        self.threads * GIB
    }

    fn start(&self, thread: usize) -> Box<dyn Work> {
        Box::new(Thread { thread, pages: Pages::at(thread * GIB, self.npages), touched: self.touched })
    }
}

impl Work for Thread {
    fn round(&mut self, round: u32, meter: &mut Meter) {
        let pages = self.pages;
        pages.map();
        if self.touched {
            pages.touch(Author { thread: self.thread, round }, &mut meter.checks);
        }
        meter.bracket(0, |_| pages.unmap());
    }

    fn finish(&mut self, _rounds: u32, meter: &mut Meter) {
        meter.checks.expect(self.pages.are_free());
    }
}

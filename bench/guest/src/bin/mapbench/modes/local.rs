//! `local`: every thread maps, touches and unmaps its own pages. Nothing is shared, so nothing should be slower with
//! more threads.

use super::{MIB, Mode, Work};
use crate::{
    meter::Meter,
    pages::{Author, Pages},
};

/// Thread i's pages begin at i * npages MiB.
pub struct Local {
    pub threads: usize,
    pub npages: usize,
}

struct Thread {
    thread: usize,
    pages: Pages,
}

impl Mode for Local {
    fn extent(&self) -> usize {
        self.threads * self.npages * MIB
    }

    fn start(&self, thread: usize) -> Box<dyn Work> {
        Box::new(Thread { thread, pages: Pages::at(thread * self.npages * MIB, self.npages) })
    }
}

impl Work for Thread {
    fn round(&mut self, round: u32, meter: &mut Meter) {
        let (pages, author) = (self.pages, Author { thread: self.thread, round });
        meter.bracket(pages.count(), |checks| {
            pages.map();
            pages.touch(author, checks);
            pages.unmap();
        });
    }

    fn finish(&mut self, _rounds: u32, meter: &mut Meter) {
        meter.checks.expect(self.pages.are_free());
    }
}

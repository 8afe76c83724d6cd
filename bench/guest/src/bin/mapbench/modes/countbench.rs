//! `countbench`: every thread maps the same pages of one object and unmaps them again, in address ranges far apart.
//! All that the threads share is the count of the pages' users.

use std::os::fd::{AsRawFd, OwnedFd};

use super::{GIB, Mode, Work};
use crate::{
    meter::Meter,
    pages::{Author, PAGE, Pages},
    sys,
};

/// Who wrote the object.
const AUTHOR: Author = Author { thread: 0, round: 0 };

pub struct Countbench {
    threads: usize,
    npages: usize,
    object: OwnedFd,
}

struct Thread {
    pages: Pages,
    object: i32,
}

impl Countbench {
    pub fn new(threads: usize, npages: usize) -> Self {
        Self { threads, npages, object: sys::memory_object(npages * PAGE) }
    }
}

impl Mode for Countbench {
    fn extent(&self) -> usize {
        self.threads * 4 * GIB
    }

    fn prepare(&self) {
        let pages = Pages::at(0, self.npages);
        pages.map_object(self.object.as_raw_fd());
        pages.stamp(AUTHOR);
        pages.unmap();
    }

    fn start(&self, thread: usize) -> Box<dyn Work> {
        Box::new(Thread { pages: Pages::at(thread * 4 * GIB, self.npages), object: self.object.as_raw_fd() })
    }
}

impl Work for Thread {
    fn round(&mut self, _round: u32, meter: &mut Meter) {
        let (pages, object) = (self.pages, self.object);
        meter.bracket(pages.count(), |checks| {
            pages.map_object(object);
            pages.check(AUTHOR, checks);
            pages.unmap();
        });
    }

    fn finish(&mut self, _rounds: u32, meter: &mut Meter) {
        meter.checks.expect(self.pages.are_free());
    }
}

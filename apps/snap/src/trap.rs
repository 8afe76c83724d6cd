//! Checkpoints by traps: the handler, the cut, and the copier.
//!
//! Closing a page costs a call of the kernel, and D has many that are no neighbours. So most are closed *before* the cut,
//! in rounds, while threads write: a page that is written again after that traps, is opened, and is closed again in the
//! next round or in the cut, which is left with few. This changes nothing of the argument: a round takes a page's note
//! and then closes it, the page stays in D, and it is armed in the cut alone, so what is written before goes into the
//! image. A handler notes a page and opens it under vmprim's lock of the page, which closing takes too: a page whose
//! note a round has taken is closed after it was opened, and one that is noted later is in the next round's set.
//!
//! Handlers hand their copies to the copier by a list through numbers of buffers: a handler pushes, the copier takes
//! the whole list at once, so that there is no ABA.

#![deny(clippy::indexing_slicing)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use sync::mutant;
use vmprim::{Access, Fault, InlineHandler, Kind, PageNo, PageSet, Region, Resolution, SignalSafe};

use crate::{
    error::Error,
    gate::Gate,
    pages::{Pages, Sleep},
    snap::Taken,
    write::Writer,
};

/// No buffer.
const NONE: u32 = u32::MAX;

/// A sleeper looks again after this at the latest.
const NAP: Duration = Duration::from_millis(100);

/// Rounds of closing pages before the cut, at most.
const ROUNDS: u32 = 4;
/// So few pages that another round would not be worth it.
const FEW: usize = 64;

/// What the handler and the copier share.
#[derive(Debug)]
pub struct Trap {
    pages: Pages,
    /// Pages that were opened since they were last closed.
    written: Box<[AtomicU64]>,
    /// The list of copies: the first buffer, the next of each, and which page each has.
    first: AtomicU32,
    next: Box<[AtomicU32]>,
    page: Box<[AtomicU32]>,
    /// Writes that waited for a buffer, or for the copier.
    pub waits: AtomicU64,
}

/// The region's inline handler.
#[derive(Debug)]
pub struct Handler(pub Arc<Trap>);

/// Sleeping in a handler.
struct InHandler<'s>(&'s SignalSafe<'s>, &'s AtomicU64);

impl Sleep for InHandler<'_> {
    fn wait(&self, word: &AtomicU32, seen: u32) {
        // Relaxed: a count.
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.park(word, seen, NAP);
    }
    fn wake(&self, word: &AtomicU32) {
        self.0.unpark(word);
    }
}

/// The copier's side, which never sleeps on a page.
struct Outside;

impl Sleep for Outside {
    fn wait(&self, _: &AtomicU32, _: u32) {}
    fn wake(&self, word: &AtomicU32) {
        let operation = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
        // SAFETY: the word is valid, and a wake changes no memory.
        unsafe { libc::syscall(libc::SYS_futex, std::ptr::from_ref(word), operation, i32::MAX) };
    }
}

// SAFETY: it uses atomics, a buffer of the pool, the alias and a futex; it allocates, locks and prints nothing, and
// indexes nothing without a look.
unsafe impl InlineHandler for Handler {
    fn fault(&self, fault: &Fault, safe: &SignalSafe<'_>) -> Resolution {
        let trap = &*self.0;
        match fault.kind {
            // What was in the page is lost, and must not be taken for zeros.
            Kind::Missing => return Resolution::Fail(libc::EIO),
            // A page must not be opened that may never be written.
            Kind::Speculative => return Resolution::Retry,
            _ if fault.wanted < Access::ReadWrite => return Resolution::Grant(fault.wanted),
            _ => {}
        }
        let page = fault.page.0;
        let copy = |buffer: vmprim::Buffer<'_>| {
            if let Some(alias) = safe.alias(fault.page) {
                buffer.copy_from(&alias);
            }
            trap.push(buffer.into_number(), page);
        };
        trap.pages.before_write(page, &InHandler(safe, &trap.waits), || safe.take_buffer(), copy);
        if let Some(word) = trap.written.get(page / 64) {
            // Relaxed: the gate orders it before the next cut, since the write is part of an operation.
            word.fetch_or(1 << (page % 64), Ordering::Relaxed);
        }
        Resolution::Grant(Access::ReadWrite)
    }
}

impl Trap {
    /// For a region of so many pages, with so many buffers.
    pub fn new(pages: usize, buffers: usize) -> Self {
        let numbers = || (0..buffers).map(|_| AtomicU32::new(NONE)).collect();
        Self {
            pages: Pages::new(pages),
            written: (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            first: AtomicU32::new(NONE),
            next: numbers(),
            page: numbers(),
            waits: AtomicU64::new(0),
        }
    }

    /// Hand a copy to the copier.
    fn push(&self, buffer: usize, page: usize) {
        let (Some(next), Some(of)) = (self.next.get(buffer), self.page.get(buffer)) else { return };
        // Relaxed, both: published by the exchange below.
        of.store(page as u32, Ordering::Relaxed);
        let mut first = self.first.load(Ordering::Relaxed);
        loop {
            next.store(first, Ordering::Relaxed);
            // Release: pairs with Acquire in `drain`; the copy and the entry are complete.
            match self.first.compare_exchange_weak(first, buffer as u32, Ordering::Release, Ordering::Relaxed)
            {
                Ok(_) => return,
                Err(now) => first = now,
            }
        }
    }

    /// Put the copies that handlers have made into the image; how many.
    fn drain(&self, region: &Region, writer: &mut Writer) -> usize {
        // Acquire: pairs with Release in `push`.
        let mut at = self.first.swap(NONE, Ordering::Acquire);
        let mut count = 0;
        while let Some((next, page)) = self.next.get(at as usize).zip(self.page.get(at as usize)) {
            // Relaxed, both: see above.
            let (next, page) = (next.load(Ordering::Relaxed), page.load(Ordering::Relaxed));
            if let Some(buffer) = region.buffer(at as usize) {
                // Before the buffer is read: it may write to the disk.
                writer.make_room();
                writer.page(page, |to| {
                    // SAFETY: the buffer is taken, and its handler has handed it over: nobody else uses it.
                    let from = unsafe { std::slice::from_raw_parts(buffer.as_ptr(), buffer.len()) };
                    to.copy_from_slice(from);
                });
            }
            // The buffer was given back.
            self.pages.notify(&Outside);
            count += 1;
            at = next;
        }
        count
    }

    /// The cut: close the pages that were written, and note them, with those of `more`, as to be copied. On an error
    /// they are as if they had been written just now.
    pub fn cut(
        &self,
        region: &Region,
        gate: &Gate,
        more: PageSet,
        state: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Taken, Error> {
        let mut taken = Taken { pages: more, ..Taken::default() };
        let mut before = usize::MAX;
        for _ in 0..ROUNDS {
            let closed = self.close(region, &mut taken.pages)?;
            taken.rounds += 1;
            // Few, or no fewer than before: they are opened faster than they are closed.
            if closed <= FEW || closed > before / 2 {
                break;
            }
            before = closed;
        }
        let begin = Instant::now();
        let closed = gate.close();
        let began = Instant::now();
        // Before pages are closed: what it writes is before the cut, and does not trap for long.
        state(&mut taken.state);
        if !mutant!("snap-cut-not-closed") {
            self.close(region, &mut taken.pages)?;
        }
        taken.pages.iter().for_each(|page| self.pages.arm(page.0));
        taken.cut = began.elapsed();
        drop(closed);
        taken.pause = begin.elapsed();
        Ok(taken)
    }

    /// Close the pages that were opened since they were last closed, and put them into `pages`; how many there were.
    fn close(&self, region: &Region, pages: &mut PageSet) -> Result<usize, Error> {
        let mut open = PageSet::new();
        for (i, word) in self.written.iter().enumerate() {
            // Relaxed, both: a handler's note and this are ordered by the lock of the page, or by the gate.
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut bits = word.swap(0, Ordering::Relaxed);
            while bits != 0 {
                open.insert(PageNo(i * 64 + bits.trailing_zeros() as usize));
                bits &= bits - 1;
            }
        }
        open.iter().for_each(|page| pages.insert(page));
        let result = region.protect_many(&open.runs(), Access::Read);
        if result.is_err() {
            // Some may be closed, some open: all are in the next cut.
            self.mark(pages);
        }
        result?;
        Ok(open.len())
    }

    /// Count pages as written since the last cut.
    pub fn mark(&self, pages: &PageSet) {
        for page in pages.iter() {
            if let Some(word) = self.written.get(page.0 / 64) {
                // Relaxed: read by the next cut, in this thread or after it.
                word.fetch_or(1 << (page.0 % 64), Ordering::Relaxed);
            }
        }
    }

    /// Put all pages of the cut into the image, while threads write.
    pub fn copy(&self, region: &Region, pages: &PageSet, writer: &mut Writer) -> Result<(), Error> {
        let alias = region.alias()?;
        let size = region.page_size();
        let mut left = pages.len();
        let mut failed = None;
        for page in pages.iter() {
            left -= self.drain(region, writer);
            if !writer.works() {
                // Nothing comes of it; nobody need copy any more.
                left -= usize::from(self.pages.disarm(page.0));
                continue;
            }
            writer.make_room();
            if self.pages.claim(page.0) {
                let mut result = Ok(());
                writer.page(page.0 as u32, |to| {
                    if mutant!("snap-copy-not-awaited") {
                        std::thread::sleep(Duration::from_micros(50));
                    }
                    result = alias.read_into(page.0 * size, to);
                    self.pages.release(page.0, &Outside);
                });
                left -= 1;
                failed = failed.or(result.err());
            }
        }
        // Those that handlers have claimed and not yet handed over.
        while left > 0 {
            match self.drain(region, writer) {
                0 => std::thread::yield_now(),
                some => left -= some,
            }
        }
        failed.map_or(Ok(()), |error| Err(error.into()))
    }
}

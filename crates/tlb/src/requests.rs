//! What a CPU is asked to flush: a line of words that other CPUs put requests into, and it alone takes out.
//!
//! **Claim.** When a request that was posted is gone, its target has flushed, after every change of page tables that came before
//! the posting; and what the target did before is seen by who finds it gone.
//!
//! **Idea.** A request fits into a word, and its acknowledgement is that the word is gone. So of a shootdown one cache line
//! moves for each target, three times: to the initiator, to the target, and back.
//! ```text
//! initiator i                                     target t, when it is interrupted
//! 1  a word of t: 0 -> {i, range}, for each t     4  for each word that is a request:
//! 2  interrupt the targets                              flush its range; word = 0
//! 3  for each t: wait until no word of t is
//!    the request
//! ```
//! **Invariants.**
//! * A word that is a request is changed by its target alone, one that is 0 by initiators alone, by compare-and-swap.
//! * Each CPU has one request at a time, as it doesn't go on before 3 is over for all of its targets. The request names it,
//!   so 3 doesn't mistake for its own what somebody else has put in the place since.
//!
//! **Races.**
//! * *An interrupt and a request that comes just then.* 1 comes before 2, and a target looks at all words; an interrupt that
//!   finds none was served by an earlier one. A word that is filled behind the target's look has an interrupt to come.
//! * *No word is free.* Who finds it so interrupts those that it has asked so far, and *then* waits for a word. So each
//!   request has had its interrupt, or will have it from somebody who waits for nothing; and targets wait for nobody.
//! * *Reuse.* The swap that puts a request in the place of one that is gone reads the target's 0. Its word is thus one more
//!   in the sequence that the target's Release began: who waited for the first request and finds the second in its place
//!   sees as much as if it had found 0.

use addr::{Page, PageRange};
use percpu::CpuId;
use sync::{
    mutant,
    primitive::{AtomicU64, Ordering},
};

/// Above this many pages a flush of everything is cheaper than single ones; Linux's x86 default is the same 33.
pub const SINGLE_PAGES: u64 = 33;
/// Requests that a CPU can have at once: a cache line of them, and one in models.
pub const WORDS: usize = if cfg!(any(loom, shuttle)) { 1 } else { 8 };

/// Who asks for what: never 0.
/// ```text
/// 63      51        42      36                   0
/// | 0      | CPU + 1 | pages | first page's number |
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request(u64);

const PAGES_SHIFT: u32 = 36;
const CPU_SHIFT: u32 = 42;
/// In the place of a number of pages: everything is to be flushed.
const EVERYTHING: u64 = (1 << (CPU_SHIFT - PAGES_SHIFT)) - 1;
const _: () = assert!(SINGLE_PAGES < EVERYTHING);

impl Request {
    /// `from` asks for `range` to be flushed, or for everything if that is long.
    pub fn new(from: CpuId, range: PageRange) -> Self {
        let pages = if range.len() > SINGLE_PAGES { EVERYTHING } else { range.len() };
        let from = from.index() as u64 + 1;
        Self(from << CPU_SHIFT | pages << PAGES_SHIFT | range.start().number())
    }
    /// The range, or `None` if it is everything.
    pub fn range(self) -> Option<PageRange> {
        let start = Page::new(self.0 & ((1 << PAGES_SHIFT) - 1))?;
        let pages = self.0 >> PAGES_SHIFT & EVERYTHING;
        if pages == EVERYTHING { None } else { PageRange::with_len(start, pages) }
    }
    /// Which word is tried first: two initiators seldom try for the same.
    fn preferred(self) -> usize {
        (self.0 >> CPU_SHIFT) as usize % WORDS
    }
}

/// See the module. On a line of its own, and the one beside it, which is fetched with it.
#[repr(align(128))]
#[derive(Debug)]
pub struct Requests([AtomicU64; WORDS]);

#[cfg(not(any(loom, shuttle)))]
impl Requests {
    /// No request.
    #[allow(clippy::new_without_default)] // for statics
    pub const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; WORDS])
    }
}

#[cfg(any(loom, shuttle))]
impl Requests {
    /// No request.
    #[allow(clippy::new_without_default)] // as above
    pub fn new() -> Self {
        Self(core::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Requests {
    /// The words, beginning with the one that a request prefers.
    fn words(&self, request: Request) -> impl Iterator<Item = &AtomicU64> {
        let first = request.preferred();
        (0..WORDS).map(move |i| &self.0[(first + i) % WORDS])
    }
    /// Add a request, if there is a word for it: how many words were tried. The caller then interrupts the target, and waits
    /// until it doesn't [have](Self::has) it any more, before it makes another one.
    #[inline]
    pub fn post(&self, request: Request) -> Option<usize> {
        // Release: the page tables were changed before; partner: the load in `serve`. Relaxed: nothing was done. No look
        // before, which would fetch the line once more.
        let order = if mutant!("request-relaxed-post") { Ordering::Relaxed } else { Ordering::Release };
        let put = |word: &AtomicU64| word.compare_exchange(0, request.0, order, Ordering::Relaxed).is_ok();
        self.words(request).position(put).map(|before| before + 1)
    }
    /// Whether [`Self::post`] may find a word.
    pub fn has_room(&self) -> bool {
        // Relaxed: a hint.
        self.0.iter().any(|word| word.load(Ordering::Relaxed) == 0)
    }
    /// Whether a request isn't served yet, for which at most so many words were `tried`.
    #[inline]
    pub fn has(&self, request: Request, tried: usize) -> bool {
        // Acquire: what the target did before is seen; partner: the store in `serve`.
        self.words(request).take(tried).any(|word| word.load(Ordering::Acquire) == request.0)
    }
    /// On the CPU that the requests are for: call `flush` for each, with its [range](Request::range), and take it out.
    pub fn serve(&self, mut flush: impl FnMut(Option<PageRange>)) {
        // Changes nothing (Relaxed), and fetches the line for writing: a load would fetch a copy, and the store the line.
        _ = self.0[0].compare_exchange(0, 0, Ordering::Relaxed, Ordering::Relaxed);
        for word in &self.0 {
            // Acquire: the changes of page tables before the request come before the flush; partner: the swap in `post`.
            let request = word.load(Ordering::Acquire);
            if request == 0 {
                continue;
            }
            let early = mutant!("request-gone-early");
            if early {
                word.store(0, Ordering::Release);
            }
            flush(Request(request).range());
            if !early {
                // Release: the flush comes before; partner: the load in `has`.
                word.store(0, Ordering::Release);
            }
        }
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use std::vec::Vec;

    use super::*;

    fn range(start: u64, pages: u64) -> PageRange {
        PageRange::with_len(Page::new(start).unwrap(), pages).unwrap()
    }

    #[test]
    fn a_request_says_what_it_was_made_of() {
        let last = (1 << 36) - 1;
        for cpu in [0, 1, percpu::MAX_CPUS - 1] {
            let cpu = CpuId::new(cpu).unwrap();
            for asked in [range(0, 0), range(0, 1), range(last - SINGLE_PAGES, SINGLE_PAGES), range(last, 0)]
            {
                let request = Request::new(cpu, asked);
                assert!(request.0 != 0);
                assert_eq!(request.range(), Some(asked));
            }
            for asked in [range(0, SINGLE_PAGES + 1), range(1, last - 1)] {
                assert_eq!(Request::new(cpu, asked).range(), None);
            }
        }
    }

    #[test]
    fn each_request_is_served_once_and_no_more_fit_than_there_are_words() {
        let requests = Requests::new();
        let all: Vec<Request> = (0..=WORDS as u64)
            .map(|i| Request::new(CpuId::new(i as usize).unwrap(), range(16 * i, 1 + i)))
            .collect();
        let (last, fit) = all.split_last().unwrap();
        assert!(fit.iter().all(|&request| requests.has_room() && requests.post(request).is_some()));
        assert!(!requests.has_room() && requests.post(*last).is_none());
        assert!(fit.iter().all(|&request| requests.has(request, WORDS)) && !requests.has(*last, WORDS));
        let mut served = Vec::new();
        requests.serve(|range| served.push(range));
        served.sort_by_key(|range| range.map(|range| range.start().number()));
        assert!(fit.iter().map(|request| request.range()).eq(served));
        assert!(fit.iter().all(|&request| !requests.has(request, WORDS)));
        assert_eq!(requests.post(*last), Some(1));
        // The next one that prefers the same word gets another one.
        let same = Request::new(CpuId::new(2 * WORDS).unwrap(), range(0, 1));
        assert_eq!(requests.post(same), Some(2));
        assert!(requests.has(*last, 1) && !requests.has(same, 1) && requests.has(same, 2));
    }
}

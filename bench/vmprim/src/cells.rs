//! One cell: what is timed, and how the library is asked for it.

use std::{
    sync::{
        Arc, Barrier,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Instant,
};

use vmprim::{
    Access, Backend, Backing, Error, Needs, PageNo, PageSet, PageSize, Region, Resolution, fault_or, inline,
};

use crate::marker;

/// Pages that one call closes at most.
const BATCH: usize = 16;

/// A column of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    /// TRAP: a store that is diverted past.
    Trap,
    /// TRAP+PROT1+UNPROT: half of the pages closed; each fault closes an open page and opens its own.
    Prot1,
    /// TRAP+PROT16+UNPROT: the same, but each sixteenth fault closes sixteen pages by one call.
    Prot16,
    /// PROTN+TRAP+UNPROT: all pages closed by one call, then each opened by a fault.
    ProtN,
    /// DIRTY: an eighth of the pages written, then taken; for each of these.
    Dirty,
    /// MAP2: a store through the alias while the view is closed.
    Map2,
}

impl Cell {
    pub const ALL: [Self; 6] = [Self::Trap, Self::Prot1, Self::Prot16, Self::ProtN, Self::Dirty, Self::Map2];
    /// Its name in records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Trap => "trap",
            Self::Prot1 => "prot1_trap_unprot",
            Self::Prot16 => "prot16_trap_unprot",
            Self::ProtN => "protn_trap_unprot",
            Self::Dirty => "dirty",
            Self::Map2 => "map2",
        }
    }

    /// Faults of one eviction.
    const fn batch(self) -> usize {
        if matches!(self, Self::Prot16) { BATCH } else { 1 }
    }
}

/// A row of the table: a backend, its memory, and the level of a closed page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row {
    SignalAnon,
    SignalMemfd,
    UffdWp,
    ViewRead,
    ViewNone,
    Thread,
    Async,
    NativeAnon,
    NativeMemfd,
}

impl Row {
    pub const ALL: [Self; 9] = [
        Self::SignalAnon,
        Self::SignalMemfd,
        Self::UffdWp,
        Self::ViewRead,
        Self::ViewNone,
        Self::Thread,
        Self::Async,
        Self::NativeAnon,
        Self::NativeMemfd,
    ];

    /// Its name, as C has it too.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SignalAnon => "signal-anon",
            Self::SignalMemfd => "signal-memfd",
            Self::UffdWp => "uffd-wp",
            Self::ViewRead => "view-read",
            Self::ViewNone => "view-none",
            Self::Thread => "uffd-thread",
            Self::Async => "async-dirty",
            Self::NativeAnon => "native-anon",
            Self::NativeMemfd => "native-memfd",
        }
    }

    /// What the columns of a row mean, for people.
    pub const fn label(self) -> &'static str {
        match self {
            Self::SignalAnon => "Signal, anonymous, Read",
            Self::SignalMemfd => "Signal, memfd, None",
            Self::UffdWp => "UffdWp, anonymous, Read",
            Self::ViewRead => "UffdView, memfd, Read",
            Self::ViewNone => "UffdView, memfd, None",
            Self::Thread => "UffdThread, anonymous, Read",
            Self::Async => "AsyncDirty, anonymous",
            Self::NativeAnon => "Native, anonymous, Read",
            Self::NativeMemfd => "Native, memfd, None",
        }
    }

    const fn closed(self) -> Access {
        match self {
            Self::SignalMemfd | Self::ViewNone | Self::NativeMemfd => Access::None,
            _ => Access::Read,
        }
    }

    const fn memfd(self) -> bool {
        matches!(self, Self::SignalMemfd | Self::ViewRead | Self::ViewNone | Self::NativeMemfd)
    }

    /// Each run of pages of one level is a mapping.
    pub fn splits(self) -> bool {
        matches!(self, Self::SignalAnon | Self::SignalMemfd)
    }

    /// Faults are handled in the thread that faults.
    pub fn is_in_thread(self) -> bool {
        self != Self::Thread
    }

    /// Whether the row has this column.
    pub fn has(self, cell: Cell) -> bool {
        match cell {
            Cell::Map2 => self.memfd(),
            Cell::Dirty => !matches!(self, Self::ViewNone | Self::SignalMemfd | Self::NativeMemfd),
            Cell::Trap => self.is_in_thread() && self != Self::Async,
            _ => self != Self::Async,
        }
    }

    const fn backend(self) -> Backend {
        match self {
            Self::SignalAnon | Self::SignalMemfd => Backend::Signal,
            Self::UffdWp => Backend::UffdWp,
            Self::ViewRead | Self::ViewNone => Backend::UffdView,
            Self::Thread => Backend::UffdThread { threads: 1 },
            Self::Async => Backend::AsyncDirty,
            Self::NativeAnon | Self::NativeMemfd => Backend::Native,
        }
    }

    /// A region as the row wants it, without a handler of its own.
    pub fn region(self, pages: usize) -> Result<Region, Error> {
        self.with(pages, 4096, |builder| builder)
    }

    fn with(
        self,
        pages: usize,
        unit: usize,
        add: impl FnOnce(vmprim::Builder) -> vmprim::Builder,
    ) -> Result<Region, Error> {
        let backing = if self.memfd() { Backing::Memfd } else { Backing::Anon };
        let alias = if self.memfd() { Needs::ALIAS } else { Needs::NOTHING };
        let builder = Region::builder(pages * unit).page(PageSize::kib(unit >> 10));
        add(builder.backing(backing).backend(self.backend()).need(Needs::DIRTY | alias)).build()
    }
}

/// What the handler does, and what it shares with the loop that is timed.
#[derive(Debug, Default)]
struct Shared {
    /// 0 grant, 1 divert, 2 choose an open page to evict, and grant.
    mode: AtomicUsize,
    random: AtomicU64,
    open: Vec<AtomicU32>,
    /// How many of `victims` are closed by one call.
    batch: usize,
    /// Faults that chose a victim; those since the last call that closed any left theirs in the first places of `victims`.
    evictions: AtomicUsize,
    victims: [AtomicU32; BATCH],
}

impl Shared {
    /// Random numbers, as C draws them (xorshift64*).
    fn draw(&self) -> u64 {
        let mut x = self.random.load(Relaxed);
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.random.store(x, Relaxed);
        x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }
    fn shuffle(&self, order: &mut [u32]) {
        for (i, place) in (0..).zip(&mut *order) {
            *place = i;
        }
        for i in (1..order.len()).rev() {
            order.swap(i, (self.draw() % (i as u64 + 1)) as usize);
        }
    }
    /// A fault on `page`, which will be open, chooses a page that is; `close` gets those of a whole batch. Relaxed: faults come one
    /// after the other, and each before the touch that it interrupts ends.
    fn evict(&self, page: u32, close: impl FnOnce(&[PageNo])) {
        let i = (self.draw() % self.open.len() as u64) as usize;
        let evictions = self.evictions.load(Relaxed);
        let waiting = evictions % self.batch;
        if let (Some(open), Some(place)) = (self.open.get(i), self.victims.get(waiting)) {
            place.store(open.swap(page, Relaxed), Relaxed);
            self.evictions.store(evictions + 1, Relaxed);
        }
        if waiting + 1 == self.batch {
            let mut pages = [PageNo(0); BATCH];
            for (page, victim) in pages.iter_mut().zip(&self.victims).take(self.batch) {
                *page = PageNo(victim.load(Relaxed) as usize);
            }
            close(pages.get(..self.batch).unwrap_or_default());
        }
    }
    /// Touch pages that are `closed`, as many times as `times` says. What was touched is open, and what is in its stead is
    /// closed only when its batch is: so the places of a batch are moved behind those that are drawn from, and come back
    /// together.
    fn touch_closed(&self, closed: &mut [u32], times: usize, touch: impl Fn(u32)) {
        let mut ready = closed.len();
        for _ in 0..times {
            let i = (self.draw() % ready as u64) as usize;
            ready -= 1;
            closed.swap(i, ready);
            touch(closed[ready]);
            if closed.len() - ready == self.batch {
                for (place, victim) in closed[ready..].iter_mut().zip(&self.victims) {
                    *place = victim.load(Relaxed);
                }
                ready = closed.len();
            }
        }
    }
}

pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// Nanoseconds of a dependent addition.
pub fn add() -> f64 {
    const CHAIN: u32 = 100_000_000;
    let mut found: Vec<_> = (0..5)
        .map(|_| {
            let (mut sum, one) = (0_u64, 3_u64);
            let start = Instant::now();
            for _ in 0..CHAIN / 10 {
                // SAFETY: additions. Of a register, since a chain of constants is folded by current CPUs.
                unsafe {
                    std::arch::asm!(
                        "add {a}, {b}", "add {a}, {b}", "add {a}, {b}", "add {a}, {b}", "add {a}, {b}",
                        "add {a}, {b}", "add {a}, {b}", "add {a}, {b}", "add {a}, {b}", "add {a}, {b}",
                        a = inout(reg) sum, b = in(reg) one, options(pure, nomem, nostack),
                    );
                }
            }
            let time = start.elapsed().as_nanos() as f64 / f64::from(CHAIN);
            assert_eq!(sum, 3 * u64::from(CHAIN));
            time
        })
        .collect();
    median(&mut found)
}

fn said(error: Error) -> String {
    error.to_string()
}

/// A store that goes on if it is diverted.
fn touch(at: *mut u8, value: u64) {
    // SAFETY: the callers' pages are of a region whose handler grants or diverts, or of its alias.
    unsafe { fault_or!(store at.cast(), value, else { return }) };
}

/// What is measured begins, between the markers of a tracer if it is to be `counted`; then all threads begin together.
#[inline(always)]
fn begin(counted: Option<&Barrier>) -> Instant {
    let start = Instant::now();
    if let Some(all) = counted {
        all.wait();
        marker::window_begin();
        marker::operation_begin();
    }
    start
}

#[inline(always)]
fn end(start: Instant, counted: Option<&Barrier>) -> f64 {
    if counted.is_some() {
        marker::operation_end();
        marker::window_end();
    }
    start.elapsed().as_nanos() as f64
}

/// Nanoseconds an operation of a cell, the median of its rounds. The last round is between markers if it is to be `counted`,
/// by all the threads of that barrier.
pub fn measure(
    row: Row,
    cell: Cell,
    pages: usize,
    unit: usize,
    rounds: u32,
    seed: u64,
    counted: Option<&Barrier>,
) -> Result<f64, String> {
    if pages / 2 < cell.batch() {
        return Err(format!("{pages} pages are too few to close {} by one call", cell.batch()));
    }
    let shared = Arc::new(Shared {
        random: AtomicU64::new(seed),
        open: (0..pages / 2).map(|_| AtomicU32::new(0)).collect(),
        batch: cell.batch(),
        ..Shared::default()
    });
    let of_handler = shared.clone();
    // SAFETY: it draws a number, evicts, and answers; it touches no page.
    let handler = unsafe {
        inline(move |fault, safe| {
            match of_handler.mode.load(Relaxed) {
                0 => {}
                1 => return Resolution::Divert,
                _ => of_handler.evict(fault.page.0 as u32, |victims| {
                    safe.try_evict(victims, row.closed());
                }),
            }
            Resolution::Grant(Access::ReadWrite)
        })
    };
    let region = row.with(pages, unit, |builder| builder.inline(handler).reserve(true)).map_err(said)?;
    let at = |page: u32| region.base().wrapping_add(page as usize * unit);
    let mut order = vec![0; pages];
    let mut dirty = PageSet::new();
    let closes = row != Row::Async;
    (0..pages as u32).for_each(|page| touch(at(page), 1));
    let mut found = Vec::new();
    for round in 0..rounds {
        let counted = counted.filter(|_| round + 1 == rounds);
        shared.mode.store(0, Relaxed);
        shared.shuffle(&mut order);
        let mut per = pages;
        let start;
        match cell {
            Cell::Trap => {
                region.protect(0..pages, row.closed()).map_err(said)?;
                shared.mode.store(1, Relaxed);
                start = begin(counted);
                order.iter().for_each(|&page| touch(at(page), 2));
            }
            Cell::ProtN => {
                start = begin(counted);
                region.protect(0..pages, row.closed()).map_err(said)?;
                order.iter().for_each(|&page| touch(at(page), 2));
            }
            Cell::Prot1 | Cell::Prot16 => {
                region.protect(0..pages, row.closed()).map_err(said)?;
                let (open, closed) = order.split_at_mut(pages / 2);
                for (&page, place) in open.iter().zip(&shared.open) {
                    touch(at(page), 2);
                    place.store(page, Relaxed);
                }
                shared.evictions.store(0, Relaxed);
                shared.mode.store(2, Relaxed);
                start = begin(counted);
                shared.touch_closed(closed, pages, |page| touch(at(page), 3));
            }
            Cell::Dirty => {
                region.take_dirty(0..pages, &mut dirty).map_err(said)?;
                dirty.clear();
                per = pages / 8;
                start = begin(counted);
                order[..per].iter().for_each(|&page| touch(at(page), 4));
                region.take_dirty(0..pages, &mut dirty).map_err(said)?;
                if dirty.len() != per {
                    return Err(format!("{}: {} pages dirty of {per}", row.name(), dirty.len()));
                }
                dirty.clear();
            }
            Cell::Map2 => {
                region.protect(0..pages, row.closed()).map_err(said)?;
                let alias = region.alias().map_err(said)?.ptr();
                start = begin(counted);
                order.iter().for_each(|&page| touch(alias.wrapping_add(page as usize * unit), 5));
            }
        }
        found.push(end(start, counted) / per as f64);
        let evictions = shared.evictions.load(Relaxed);
        if shared.mode.swap(0, Relaxed) == 2 && evictions != pages {
            return Err(format!("{}: {evictions} of {pages} touches trapped", row.name()));
        }
        if closes && cell != Cell::Dirty {
            order.iter().for_each(|&page| touch(at(page), 6));
        }
    }
    Ok(median(&mut found))
}

/// Nanoseconds of PROTN+TRAP+UNPROT of a page and thread, with several threads on pages of their own or all on the
/// same.
pub fn threads(
    row: Row,
    pages: usize,
    threads: usize,
    same: bool,
    rounds: u32,
    seed: u64,
) -> Result<f64, String> {
    let region = row.with(pages, 4096, |builder| builder.reserve(true)).map_err(said)?;
    let shared = Shared { random: AtomicU64::new(seed), ..Shared::default() };
    let mut order = vec![0; pages];
    shared.shuffle(&mut order);
    let share = pages / threads;
    let mut found = Vec::new();
    for _ in 0..rounds {
        let barrier = std::sync::Barrier::new(threads);
        let times: Vec<Result<f64, String>> = std::thread::scope(|scope| {
            let work = |t: usize| {
                let (region, barrier, order) = (&region, &barrier, &order);
                move || {
                    vmprim::attach().map_err(said)?;
                    let mine = if same { 0..pages } else { t * share..(t + 1) * share };
                    barrier.wait();
                    let start = Instant::now();
                    region.protect(mine.clone(), row.closed()).map_err(said)?;
                    for &page in order.iter().filter(|&&page| mine.contains(&(page as usize))) {
                        touch(region.base().wrapping_add(page as usize * 4096), 1);
                    }
                    Ok(start.elapsed().as_nanos() as f64 / mine.len() as f64)
                }
            };
            let all: Vec<_> = (0..threads).map(|t| scope.spawn(work(t))).collect();
            all.into_iter()
                .map(|one| one.join().unwrap_or_else(|_| Err("a thread panicked".into())))
                .collect()
        });
        let times = times.into_iter().collect::<Result<Vec<_>, _>>()?;
        found.push(times.iter().sum::<f64>() / times.len() as f64);
    }
    Ok(median(&mut found))
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell as Shown, RefCell};

    use super::*;

    /// Touch pages in a model of levels instead of memory: each must trap, and half of the pages be closed between batches.
    fn touch_in_model(pages: usize, cell: Cell) {
        let shared = Shared {
            random: AtomicU64::new(7),
            open: (0..pages as u32 / 2).map(AtomicU32::new).collect(),
            batch: cell.batch(),
            ..Shared::default()
        };
        let is_open = RefCell::new((0..pages).map(|page| page < pages / 2).collect::<Vec<_>>());
        let mut closed: Vec<_> = (pages as u32 / 2..pages as u32).collect();
        let calls = Shown::new(0);
        shared.touch_closed(&mut closed, 10 * pages + 5, |page| {
            shared.evict(page, |victims| {
                assert_eq!(victims.len(), cell.batch());
                for victim in victims {
                    assert!(std::mem::take(&mut is_open.borrow_mut()[victim.0]), "a closed page was chosen");
                }
                calls.set(calls.get() + 1);
            });
            assert!(
                !std::mem::replace(&mut is_open.borrow_mut()[page as usize], true),
                "an open page was touched"
            );
        });
        assert_eq!(shared.evictions.load(Relaxed), 10 * pages + 5);
        assert_eq!(calls.get(), (10 * pages + 5) / cell.batch());
        let open = is_open.borrow().iter().filter(|open| **open).count();
        assert_eq!(open, pages / 2 + (10 * pages + 5) % cell.batch());
    }

    #[test]
    fn only_closed_pages_are_touched_and_only_open_ones_evicted() {
        for pages in [32, 33, 64, 4096] {
            touch_in_model(pages, Cell::Prot1);
            touch_in_model(pages, Cell::Prot16);
        }
    }
}

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

/// A column of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    /// TRAP: a store that is diverted past.
    Trap,
    /// TRAP+PROT1+UNPROT: half of the pages closed; each fault closes an open page and opens its own.
    Prot1,
    /// PROTN+TRAP+UNPROT: all pages closed by one call, then each opened by a fault.
    ProtN,
    /// DIRTY: an eighth of the pages written, then taken; for each of these.
    Dirty,
    /// MAP2: a store through the alias while the view is closed.
    Map2,
}

impl Cell {
    pub const ALL: [Self; 5] = [Self::Trap, Self::Prot1, Self::ProtN, Self::Dirty, Self::Map2];
    /// Its name in records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Trap => "trap",
            Self::Prot1 => "prot1_trap_unprot",
            Self::ProtN => "protn_trap_unprot",
            Self::Dirty => "dirty",
            Self::Map2 => "map2",
        }
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
    /// 0 grant, 1 divert, 2 evict an open page and grant.
    mode: AtomicUsize,
    random: AtomicU64,
    open: Vec<AtomicU32>,
    victim: AtomicU32,
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
    let shared = Arc::new(Shared {
        random: AtomicU64::new(seed),
        open: (0..pages / 2).map(|_| AtomicU32::new(0)).collect(),
        ..Shared::default()
    });
    let of_handler = shared.clone();
    // SAFETY: it draws a number, evicts, and answers; it touches no page.
    let handler = unsafe {
        inline(move |fault, safe| {
            match of_handler.mode.load(Relaxed) {
                0 => {}
                1 => return Resolution::Divert,
                _ => {
                    let i = (of_handler.draw() % of_handler.open.len() as u64) as usize;
                    if let Some(place) = of_handler.open.get(i) {
                        let victim = place.swap(fault.page.0 as u32, Relaxed);
                        of_handler.victim.store(victim, Relaxed);
                        safe.try_evict(&[PageNo(victim as usize)], row.closed());
                    }
                }
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
            Cell::Prot1 => {
                region.protect(0..pages, row.closed()).map_err(said)?;
                let (open, closed) = order.split_at_mut(pages / 2);
                for (&page, place) in open.iter().zip(&shared.open) {
                    touch(at(page), 2);
                    place.store(page, Relaxed);
                }
                shared.mode.store(2, Relaxed);
                start = begin(counted);
                for _ in 0..pages {
                    let i = (shared.draw() % closed.len() as u64) as usize;
                    touch(at(closed[i]), 3);
                    closed[i] = shared.victim.load(Relaxed);
                }
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
        shared.mode.store(0, Relaxed);
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

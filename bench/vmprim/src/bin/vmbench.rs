//! Single operations of the library between markers for a tracer (`docs/mapbench.md`, "Windows and brackets"), for the machine
//! that counts instructions. One bracket is one operation:
//!
//! * `trap`: a store to a closed page, which the handler opens (TRAP+UNPROT).
//! * `prot1`: the same, and the handler closes another page (TRAP+PROT1+UNPROT).
//! * `protn`: all pages are closed by one call; then, in brackets of their own, each is opened by a store.
//! * `alternate`: every second page is closed by a call of its own.
//! * `spread`: each thread uses a part of the pages; one closes all of them by one call, and opens them again.
//! * `dirty`: an eighth of the pages is stored to and taken.

use std::sync::{
    Arc, Barrier,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use clap::{Parser, ValueEnum};
use vmprim::{Access, Backend, Backing, Error, Needs, PageNo, PageSet, Region, Resolution, inline};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    Trap,
    Prot1,
    Protn,
    Alternate,
    Spread,
    Dirty,
}

/// Options.
#[derive(Debug, Parser)]
#[command(name = "vmbench", about = "Operations of vmprim between markers for a tracer")]
struct Options {
    mode: Mode,
    /// Backend [default: the best]
    #[arg(long, value_name = "NAME", value_parser = backend)]
    backend: Option<Backend>,
    /// Pages of the region
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(16..=1 << 20))]
    pages: u32,
    /// Operations [default: one for each page]
    #[arg(long)]
    operations: Option<u32>,
    /// Threads of `spread`
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    threads: u32,
    /// Closed pages may be read
    #[arg(long)]
    read: bool,
    /// Leave pages without frames until they are used
    #[arg(long)]
    blank: bool,
}

fn backend(name: &str) -> Result<Backend, String> {
    Backend::named(name).ok_or_else(|| format!("there is {}", Backend::names()))
}

macro_rules! marker {
    ($name:ident, $constant:literal) => {
        #[inline(always)]
        fn $name() {
            // SAFETY: it does nothing.
            unsafe {
                std::arch::asm!(concat!(".byte 0x0f, 0x1f, 0x84, 0x00\n.long ", $constant), options(nostack))
            };
        }
    };
}
marker!(window_begin, "0x51510001");
marker!(window_end, "0x51510002");
marker!(bracket_begin, "0x51510003");
marker!(bracket_end, "0x51510004");

fn bracket<R>(f: impl FnOnce() -> R) -> R {
    bracket_begin();
    let result = f();
    bracket_end();
    result
}

const PAGE: usize = 4096;
/// The status by which a program says that a primitive is missing.
const MISSING: i32 = 77;

fn store(region: &Region, page: usize, value: u8) {
    // SAFETY: a page of the region, whose handler grants.
    unsafe { region.base().wrapping_add(page * PAGE).write_volatile(value) };
}

/// Pages in an order that has nothing to do with where they are: a generator of full period modulo a power of two.
fn scattered(pages: usize) -> impl Iterator<Item = usize> {
    let period = pages.next_power_of_two();
    let mut at = 1usize;
    (0..period)
        .map(move |_| {
            at = at.wrapping_mul(5).wrapping_add(0x2545_f491 | 1) % period;
            at
        })
        .filter(move |&page| page < pages)
}

fn main() {
    let options = Options::parse();
    if let Err(error) = run(&options) {
        eprintln!("vmbench: {error}");
        std::process::exit(if matches!(error, Error::Unsupported { .. }) { MISSING } else { 1 });
    }
}

fn run(options: &Options) -> Result<(), Error> {
    let pages = options.pages as usize;
    let operations = options.operations.map_or(pages, |n| n as usize);
    let closed = if options.read { Access::Read } else { Access::None };
    // The page that the handler is to close; none if it isn't one.
    let victim = Arc::new(AtomicUsize::new(usize::MAX));
    let of_handler = victim.clone();
    // SAFETY: it closes a page, and answers; it touches none.
    let handler = unsafe {
        inline(move |fault, safe| {
            let victim = of_handler.load(Relaxed);
            if victim != usize::MAX {
                safe.try_evict(&[PageNo(victim)], closed);
            }
            Resolution::Grant(fault.wanted)
        })
    };
    let backend = options.backend.unwrap_or(Backend::Auto);
    let levels = if options.read { Needs::READ_LEVEL } else { Needs::NONE_LEVEL };
    let backing = if backend == Backend::UffdView { Backing::Memfd } else { Backing::Anon };
    let builder = Region::builder(pages * PAGE).backing(backing).backend(backend).need(levels | Needs::DIRTY);
    let region = builder.inline(handler).build()?;
    if !options.blank {
        (0..pages).for_each(|page| store(&region, page, 1));
    }
    // Once before it counts.
    region.protect(0..pages, closed)?;
    store(&region, 0, 1);
    region.protect(0..pages, closed)?;
    let mut done = 0;
    match options.mode {
        Mode::Trap => {
            window_begin();
            for page in scattered(pages).take(operations) {
                bracket(|| store(&region, page, 2));
                done += 1;
            }
            window_end();
        }
        Mode::Prot1 => {
            let order: Vec<_> = scattered(pages).collect();
            let (open, shut) = order.split_at(pages / 2);
            open.iter().for_each(|&page| store(&region, page, 2));
            window_begin();
            for (&page, &evicted) in shut.iter().zip(open).take(operations) {
                victim.store(evicted, Relaxed);
                bracket(|| store(&region, page, 3));
                done += 1;
            }
            window_end();
        }
        Mode::Protn => {
            (0..pages).for_each(|page| store(&region, page, 2));
            window_begin();
            bracket(|| region.protect(0..pages, closed))?;
            for page in scattered(pages) {
                bracket(|| store(&region, page, 3));
                done += 1;
            }
            window_end();
        }
        Mode::Alternate => {
            region.unprotect(0..pages, Access::ReadWrite)?;
            window_begin();
            for page in (0..pages).step_by(2).take(operations) {
                bracket(|| region.protect(PageNo(page), closed))?;
                done += 1;
            }
            window_end();
        }
        Mode::Spread => done = spread(options, &region, closed)?,
        Mode::Dirty => {
            region.unprotect(0..pages, Access::ReadWrite)?;
            let mut set = PageSet::new();
            region.take_dirty(0..pages, &mut set)?;
            set.clear();
            window_begin();
            bracket(|| {
                scattered(pages).take(pages / 8).for_each(|page| store(&region, page, 4));
                region.take_dirty(0..pages, &mut set)
            })?;
            window_end();
            done = set.len();
        }
    }
    println!("vmbench {:?} {}: {pages} pages, {done} operations", options.mode, region.backend().name());
    Ok(())
}

/// Rounds of one call that closes what several CPUs use, and one that opens it.
fn spread(options: &Options, region: &Region, closed: Access) -> Result<usize, Error> {
    const ROUNDS: usize = 8;
    let (pages, threads) = (options.pages as usize, options.threads as usize);
    let barrier = Barrier::new(threads);
    let mut result = Ok(());
    std::thread::scope(|scope| {
        let work = |thread: usize| -> Result<(), Error> {
            vmprim::attach()?;
            pin(thread);
            for _ in 0..ROUNDS {
                barrier.wait();
                (thread..pages).step_by(threads).for_each(|page| store(region, page, 3));
                barrier.wait();
                if thread == 0 {
                    window_begin();
                    bracket(|| region.protect(0..pages, closed))?;
                    bracket(|| region.unprotect(0..pages, Access::ReadWrite))?;
                    window_end();
                }
            }
            barrier.wait();
            Ok(())
        };
        let others: Vec<_> = (1..threads).map(|thread| scope.spawn(move || work(thread))).collect();
        result = work(0);
        others.into_iter().for_each(|other| _ = other.join());
    });
    result.map(|()| 2 * ROUNDS)
}

/// Let the calling thread run on one CPU.
fn pin(cpu: usize) {
    // SAFETY: zeros are a valid set, which is valid for the call.
    unsafe {
        let mut set = std::mem::zeroed::<libc::cpu_set_t>();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set);
    }
}

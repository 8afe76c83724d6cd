//! The demonstration: threads that map, touch, check and unmap memory at the same time, and a table of what each did.
//!
//! Every page is read before it is written (a fresh page must be zero), stamped with who wrote it and when, and read
//! back once all of the region's pages have been written. One wrong word makes the exit status 1. A page's first write
//! is a page fault, so the `faults` column counts faults that the kernel had to resolve: one a page, a round.
//!
//! `demo [--threads N] [--pages P] [--rounds R]`; by default one thread a CPU, at most 4.

use std::process::ExitCode;
use std::ptr::NonNull;
use std::sync::Barrier;
use std::time::{Duration, Instant};

const PAGE: usize = 4096;
const WORDS: usize = PAGE / size_of::<u64>();

/// What to do, from the command line.
#[derive(Clone, Copy)]
struct Plan {
    threads: usize,
    pages: usize,
    rounds: usize,
}

/// What one thread did, and how long it took for each kind of work.
#[derive(Default)]
struct Tally {
    maps: u64,
    faults: u64,
    unmaps: u64,
    verified: u64,
    mismatches: u64,
    mapping: Duration,
    faulting: Duration,
    unmapping: Duration,
}

/// A private anonymous mapping that this value owns.
struct Region {
    base: NonNull<u64>,
    pages: usize,
}

impl Region {
    fn map(pages: usize) -> std::io::Result<Self> {
        // SAFETY: a new mapping at an address that the kernel chooses disturbs nothing that exists.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                pages * PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(std::io::ErrorKind::Other)?;
        Ok(Self { base, pages })
    }

    /// The words of one page.
    fn page(&mut self, index: usize) -> &mut [u64] {
        assert!(index < self.pages);
        // SAFETY: the page lies in the mapping that `self` owns, is readable and writable, zeroed by the kernel, and
        // borrowed from `self` alone.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr().add(index * WORDS), WORDS) }
    }

    fn unmap(self) -> std::io::Result<()> {
        // SAFETY: the range is exactly the mapping that `self` owns, and no borrow of it outlives `self`.
        match unsafe { libc::munmap(self.base.as_ptr().cast(), self.pages * PAGE) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    }
}

/// The word that `thread` writes into `page` in `round`; never zero.
fn stamp(thread: usize, round: usize, page: usize) -> u64 {
    1 << 63 | (thread as u64) << 48 | (round as u64) << 24 | page as u64
}

fn work(thread: usize, plan: Plan) -> std::io::Result<Tally> {
    let mut tally = Tally::default();
    for round in 0..plan.rounds {
        let start = Instant::now();
        let mut region = Region::map(plan.pages)?;
        let mapped = Instant::now();
        for page in 0..plan.pages {
            let words = region.page(page);
            words[page % WORDS] = stamp(thread, round, page);
        }
        let touched = Instant::now();
        for page in 0..plan.pages {
            let words = region.page(page);
            let right = words
                .iter()
                .enumerate()
                .all(|(i, &word)| word == if i == page % WORDS { stamp(thread, round, page) } else { 0 });
            tally.verified += u64::from(right);
            tally.mismatches += u64::from(!right);
        }
        let checked = Instant::now();
        region.unmap()?;
        tally.unmapping += checked.elapsed();
        tally.mapping += mapped - start;
        tally.faulting += touched - mapped;
        tally.maps += 1;
        tally.faults += plan.pages as u64;
        tally.unmaps += 1;
    }
    Ok(tally)
}

/// Nanoseconds each, or 0 for none.
fn each(time: Duration, count: u64) -> u128 {
    time.as_nanos().checked_div(count.into()).unwrap_or(0)
}

fn print_row(name: &str, t: &Tally) {
    println!(
        "{name:>8} {:>8} {:>9} {:>8} {:>9} {:>9} {:>9} {:>10}",
        t.maps,
        t.faults,
        t.unmaps,
        each(t.mapping, t.maps),
        each(t.faulting, t.faults),
        each(t.unmapping, t.unmaps),
        t.verified
    );
}

/// The system's name and release, as uname tells them.
fn system() -> String {
    // SAFETY: all zeroes is a valid utsname, and uname fills the one it is given with terminated strings.
    let name = unsafe {
        let mut name: libc::utsname = std::mem::zeroed();
        if libc::uname(&mut name) != 0 {
            return "an unnamed system".into();
        }
        name
    };
    let text = |field: &[libc::c_char]| -> String {
        field.iter().map(|&c| c as u8 as char).take_while(|&c| c != '\0').collect()
    };
    format!("{} {}", text(&name.sysname), text(&name.release))
}

fn parse() -> Result<Plan, String> {
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get());
    let mut plan = Plan { threads: cpus.min(4), pages: 64, rounds: 100 };
    let mut arguments = std::env::args().skip(1);
    while let Some(option) = arguments.next() {
        let (field, most) = match option.as_str() {
            "--threads" => (&mut plan.threads, 1024),
            "--pages" => (&mut plan.pages, 1 << 20),
            "--rounds" => (&mut plan.rounds, 1 << 24),
            _ => return Err(format!("unknown option {option}")),
        };
        *field = arguments
            .next()
            .and_then(|value| value.parse().ok())
            .filter(|value| (1..=most).contains(value))
            .ok_or_else(|| format!("{option} needs a number from 1 to {most}"))?;
    }
    Ok(plan)
}

fn main() -> ExitCode {
    let plan = match parse() {
        Ok(plan) => plan,
        Err(problem) => {
            eprintln!("demo: {problem}; usage: demo [--threads N] [--pages P] [--rounds R]");
            return ExitCode::from(2);
        }
    };
    println!(
        "{} threads on {}: each maps {} pages, writes and checks every one, and unmaps them, {} times\n",
        plan.threads,
        system(),
        plan.pages,
        plan.rounds
    );
    println!(
        "{:>8} {:>8} {:>9} {:>8} {:>9} {:>9} {:>9} {:>10}",
        "thread", "maps", "faults", "unmaps", "ns/map", "ns/fault", "ns/unmap", "verified"
    );

    let start = Barrier::new(plan.threads);
    let results: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..plan.threads)
            .map(|thread| {
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    work(thread, plan)
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join()).collect()
    });

    let mut total = Tally::default();
    for (thread, result) in results.into_iter().enumerate() {
        let tally = match result {
            Ok(Ok(tally)) => tally,
            Ok(Err(error)) => {
                eprintln!("demo: thread {thread}: {error}");
                return ExitCode::FAILURE;
            }
            Err(_) => {
                eprintln!("demo: thread {thread} panicked");
                return ExitCode::FAILURE;
            }
        };
        print_row(&thread.to_string(), &tally);
        total.maps += tally.maps;
        total.faults += tally.faults;
        total.unmaps += tally.unmaps;
        total.verified += tally.verified;
        total.mismatches += tally.mismatches;
        total.mapping += tally.mapping;
        total.faulting += tally.faulting;
        total.unmapping += tally.unmapping;
    }
    print_row("all", &total);

    let wanted = (plan.threads * plan.pages * plan.rounds) as u64;
    println!("\nresult: {} of {wanted} pages verified, {} wrong", total.verified, total.mismatches);
    if total.verified == wanted { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

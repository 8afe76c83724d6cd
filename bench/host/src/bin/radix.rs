//! The radix tree of ranges, measured on the host: what its nodes take, and how fast lookups are, alone and under writers.
//!
//! ```text
//! radix sizes                 bytes of a node of each level
//! radix lookup [SECONDS]      lookups a second of random pages in 1,000 regions, by readers, beside writers
//! radix local [SECONDS]       map 4 pages, touch each, unmap; by threads on memory of their own
//! ```
//! A *region* is 16 pages. Writers unmap regions at random and map them again. A second is one of each thread's processor
//! time, so that other work on the host counts only by what it does to caches; with fewer processors than threads they don't
//! really run beside each other.

use std::{
    alloc::Layout,
    process::ExitCode,
    ptr::NonNull,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use percpu::{CpuId, Pinned};
use radix::{Mode, Reserve, Section, Space, Tree, page::Page};
use refcache::{Budget, Domain};

/// As many as a real domain has for each CPU.
const WAYS: usize = 4096;
/// CPUs that threads may play.
const CPUS: usize = 16;
const REGIONS: u64 = 1000;
const REGION_PAGES: u64 = 16;
/// Pages from one region to the next.
const STRIDE: u64 = 4096;

struct Pages {
    refs: Domain<WAYS>,
    rcu: rcu::kernel::Domain,
    nodes: AtomicUsize,
    bytes: AtomicUsize,
}

// SAFETY: memory is the heap's; the domains are fields, of which all CPUs are awake from the start; pages are values.
unsafe impl Space for Pages {
    const BITS: &'static [u32] = radix::page::BITS;
    type Refs = Domain<WAYS>;
    type Annex = ();

    fn refs(&self) -> &Self::Refs {
        &self.refs
    }
    fn rcu(&self) -> &rcu::kernel::Domain {
        &self.rcu
    }
    fn alloc(&self, layout: Layout, _: &Pinned<'_>) -> Option<NonNull<u8>> {
        // Relaxed, here and below: counts.
        self.nodes.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: a node has a size.
        NonNull::new(unsafe { std::alloc::alloc(layout) })
    }
    unsafe fn free(&self, memory: NonNull<u8>, layout: Layout, _: &Pinned<'_>) {
        self.nodes.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { std::alloc::dealloc(memory.as_ptr(), layout) };
    }
    fn spin_wait(&self, _: &Pinned<'_>) -> bool {
        thread::yield_now();
        true
    }
}

/// CPU number `cpu`. Each thread plays one, while the main thread waits.
fn pin(cpu: usize) -> Pinned<'static> {
    // SAFETY: as said.
    unsafe { Pinned::assume(CpuId::new(cpu).unwrap_or_default()) }
}

impl Pages {
    /// Of `cpus` CPUs, awake.
    fn new(cpus: usize) -> &'static Self {
        let space = Self {
            refs: Domain::new(cpus),
            rcu: rcu::kernel::Domain::new(cpus),
            nodes: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
        };
        (0..cpus).for_each(|cpu| space.rcu.idle_exit(&mut pin(cpu)));
        Box::leak(Box::new(space))
    }
    fn tick(&self, pin: &mut Pinned<'_>) {
        self.refs.work(pin, Budget::default());
        self.rcu.tick(pin);
    }
}

/// One CPU's way to a tree.
struct Cpu<'t> {
    tree: &'t Tree<Pages>,
    pin: Pinned<'static>,
    reserve: Reserve<Pages>,
}

impl<'t> Cpu<'t> {
    fn new(tree: &'t Tree<Pages>, cpu: usize) -> Self {
        Self { tree, pin: pin(cpu), reserve: Reserve::new() }
    }
    fn set(&mut self, first: u64, pages: u64, page: Page) {
        let section = Section::new(self.tree.space(), &self.pin);
        let mode = if page.is_mapped() { Mode::Fill } else { Mode::Take };
        let guard = self.tree.lock_range(first..first + pages, mode, &mut self.reserve, &section);
        guard.expect("the host has memory").replace(page.word(), |_| ());
    }
    /// As a fault does: a frame for a page that is mapped.
    fn touch(&mut self, key: u64) {
        let section = Section::new(self.tree.space(), &self.pin);
        let filled = self.reserve.fill(self.tree.space(), &(key..key + 1), &self.pin);
        filled.expect("the host has memory");
        if let Ok(Some(mut guard)) = self.tree.lock_one(key, &section) {
            guard.narrow_to(key, &mut self.reserve).expect("the reserve was filled");
            guard.set(Page::of(guard.span().value).with_pfn(1 + key).word());
        }
    }
    fn end(mut self) {
        self.reserve.give_back(self.tree.space(), &self.pin);
        self.tree.space().refs.leave(&self.pin);
        self.tree.space().rcu.idle_enter(&mut self.pin);
    }
}

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let seconds = |word: Option<&&str>| word.map_or(Ok(1.0), |word| word.parse::<f64>());
    let done = match &words[..] {
        ["sizes"] => sizes(),
        ["lookup", rest @ ..] if rest.len() < 2 => {
            seconds(rest.first()).map(lookups).map_err(|_| "SECONDS is a number".to_owned())
        }
        ["local", rest @ ..] if rest.len() < 2 => {
            seconds(rest.first()).map(local).map_err(|_| "SECONDS is a number".to_owned())
        }
        _ => Err("usage: radix sizes | lookup [SECONDS] | local [SECONDS]".to_owned()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("radix: {problem}");
            ExitCode::from(2)
        }
    }
}

fn sizes() -> Result<(), String> {
    let space = Pages::new(1);
    let tree = Tree::new(space, &pin(0)).map_err(|error| error.to_string())?;
    println!("root {} B, {} slots", space.bytes.load(Ordering::Relaxed), 1 << Pages::BITS[0]);
    // A page of the last span needs a node of each level.
    let mut cpu = Cpu::new(&tree, 0);
    let mut before = space.bytes.load(Ordering::Relaxed);
    for (level, name) in
        ["region", "dir", "table", "block", "leaf"].iter().enumerate().map(|(i, name)| (i + 1, name))
    {
        let below: u32 = Pages::BITS[level + 1..].iter().sum();
        let pages = 1 << below;
        cpu.set(((1 << 35) - 1) >> below << below, pages, Page::new(level as u32));
        // What was taken for the way there and not needed.
        cpu.reserve.give_back(space, &cpu.pin);
        let now = space.bytes.load(Ordering::Relaxed);
        println!("{name} {} B, {} slots of {pages} pages", now - before, 1 << Pages::BITS[level]);
        before = now;
    }
    cpu.end();
    Ok(())
}

/// The processor time that this thread has had.
fn thread_time() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Let `readers` and `writers` go for a while; how often a second each kind did its work, all threads of it together.
fn race(
    tree: &Tree<Pages>,
    (readers, writers): (usize, usize),
    seconds: f64,
    work: impl Fn(&mut Cpu<'_>, &mut fastrand::Rng, bool) -> u64 + Sync,
) -> [f64; 2] {
    let stop = AtomicBool::new(false);
    let done = thread::scope(|scope| {
        let threads: Vec<_> = (0..readers + writers)
            .map(|cpu| {
                let (stop, work) = (&stop, &work);
                scope.spawn(move || {
                    let (mut here, mut rng) = (Cpu::new(tree, cpu), fastrand::Rng::with_seed(cpu as u64));
                    let (mut done, begun) = (0, thread_time());
                    while !stop.load(Ordering::Relaxed) {
                        done += work(&mut here, &mut rng, cpu < readers);
                        here.tree.space().tick(&mut here.pin);
                    }
                    here.end();
                    done as f64 / (thread_time() - begun)
                })
            })
            .collect();
        thread::sleep(Duration::from_secs_f64(seconds));
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().map(|thread| thread.join().unwrap_or(0.0)).collect::<Vec<f64>>()
    });
    [&done[..readers], &done[readers..]].map(|done| done.iter().fold(0.0, |sum, one| sum + one))
}

fn lookups(seconds: f64) {
    println!("readers writers   M lookups/s   M changes/s   (regions unmapped or mapped)");
    let cpus = thread::available_parallelism().map_or(1, usize::from).min(CPUS / 2);
    for (readers, writers) in [(1, 0), (cpus, 0), (1, 1), (cpus, 1)] {
        let space = Pages::new(CPUS);
        let Ok(tree) = Tree::new(space, &pin(0)) else { return };
        let mut here = Cpu::new(&tree, 0);
        for region in 0..REGIONS {
            here.set(region * STRIDE, REGION_PAGES, Page::new(1));
            (0..REGION_PAGES).for_each(|page| here.touch(region * STRIDE + page));
        }
        here.reserve.give_back(space, &here.pin);
        space.refs.leave(&here.pin);
        // Of those that play no part nobody waits for a report.
        (readers + writers..CPUS).for_each(|cpu| _ = space.rcu.idle_enter(&mut pin(cpu)));
        let [reads, writes] = race(&tree, (readers, writers), seconds, |here, rng, reader| {
            if reader {
                let section = Section::new(here.tree.space(), &here.pin);
                let mut seen = 0;
                for _ in 0..256 {
                    let key = rng.u64(..REGIONS) * STRIDE + rng.u64(..REGION_PAGES);
                    seen ^= here.tree.get(key, &section).value;
                }
                std::hint::black_box(seen);
                return 256;
            }
            for _ in 0..8 {
                let first = rng.u64(..REGIONS) * STRIDE;
                here.set(first, REGION_PAGES, Page::EMPTY);
                here.set(first, REGION_PAGES, Page::new(1));
            }
            16
        });
        println!("{readers:7} {writers:7} {:13.2} {:13.3}", reads / 1e6, writes / 1e6);
    }
}

fn local(seconds: f64) {
    println!("threads   M iterations/s   ns an iteration of map 4, touch 4, unmap 4");
    for threads in [1, thread::available_parallelism().map_or(1, usize::from).min(CPUS)] {
        let space = Pages::new(CPUS);
        let Ok(tree) = Tree::new(space, &pin(0)) else { return };
        (threads..CPUS).for_each(|cpu| _ = space.rcu.idle_enter(&mut pin(cpu)));
        let [_, rate] = race(&tree, (0, threads), seconds, |here, _, _| {
            let first = (1 << 20) + here.pin.cpu().index() as u64 * 4 * 256;
            for _ in 0..64 {
                here.set(first, 4, Page::new(1));
                (0..4).for_each(|page| here.touch(first + page));
                here.set(first, 4, Page::EMPTY);
            }
            64
        });
        println!("{threads:7} {:16.3} {:17.0}", rate / 1e6, 1e9 * threads as f64 / rate);
    }
}

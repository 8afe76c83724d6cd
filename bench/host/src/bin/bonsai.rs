//! What it costs to find the region that an address is in: in a Bonsai tree, in an ordered map behind a reader-writer lock, in
//! a skip list without locks, and in a tree whose readers take none (`docs/bonsai.md`).
//!
//! Readers look up random addresses of random regions, each of which they must find, until the turn is over; beside them
//! there may be a writer, which takes a random region out and puts it in again, without rest. All subjects are
//! measured in turn, so that whatever else the host does happens to each; of the ratio to the Bonsai tree in the same turn
//! there are the median and the quartiles. Peers are keyed by the regions' ends, so that what is wanted is the first key
//! above the address; they have the regions' starts as values, and the Bonsai tree has them behind a pointer.
//!
//!     cargo run --release -p quire-bench-host --bin bonsai -- [--turns N] [--milliseconds N] [--json FILE]

use std::{
    collections::BTreeMap,
    fs,
    ops::Bound::{Excluded, Unbounded},
    path::PathBuf,
    process::ExitCode,
    ptr::{self, NonNull},
    sync::{
        Arc, Barrier, Mutex, RwLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use bonsai::{Entry, Heap, Memory, PAGE, Pool, Region, RegionTree};
use clap::Parser;
use crossbeam_skiplist::SkipMap;
use percpu::{CpuId, Pinned};
use rcu::kernel::Domain;
use rustix::{
    mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap},
    time::{ClockId, clock_gettime},
};
use scc::{Guard, TreeIndex};
use serde_json::json;

#[derive(Parser)]
#[command(name = "bonsai", about = "Look-ups of regions in a Bonsai tree and its peers, on this host")]
struct Options {
    /// Turns in which each subject is measured once
    #[arg(long, default_value_t = 31)]
    turns: usize,
    /// How long a subject is measured in a turn
    #[arg(long, default_value_t = 20)]
    milliseconds: u64,
    /// Regions
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 100_000])]
    regions: Vec<u64>,
    /// Write the results to this file
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Look-ups between two looks at whether the turn is over.
const BATCH: usize = 64;
/// A region's bytes, and those to the next.
const LENGTH: u64 = 3 << 12;
const STRIDE: u64 = 4 << 12;
/// Nodes and entries that wait for readers to be gone: with more a writer waits.
const MOST_GARBAGE: usize = 4096;
/// Threads' CPUs: the writer's is 0.
const CPUS: usize = 4;

/// What is measured.
trait Subject: Sync {
    fn name(&self) -> &'static str;
    /// Look all addresses up; how many are in no region.
    fn find(&self, pin: &mut Pinned<'_>, addresses: &[u64]) -> u64;
    /// Take region `n` out and put it in again.
    fn churn(&self, pin: &mut Pinned<'_>, n: u64);
    /// The thread comes, or goes.
    fn present(&self, _: &mut Pinned<'_>, _: bool) {}
}

struct Bonsai<M: Memory> {
    name: &'static str,
    domain: Arc<Domain>,
    tree: RegionTree<u64, Arc<Domain>, M>,
}

/// Pages of one mapping that the host may back by large pages, as a kernel's direct map is.
struct Large {
    start: NonNull<u8>,
    bytes: usize,
    used: AtomicUsize,
    free: Mutex<Vec<usize>>,
}

// SAFETY: the mapping is the pool's, whose pages are each one owner's.
unsafe impl Send for Large {}
// SAFETY: as above.
unsafe impl Sync for Large {}

impl Large {
    fn new(bytes: usize) -> Self {
        let (access, kind) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
        // SAFETY: a new mapping is nobody else's.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), bytes, access, kind) }.expect("address space");
        // SAFETY: as above. If the host has no large pages, small ones do.
        let _ = unsafe { madvise(start, bytes, Advice::LinuxHugepage) };
        let start = NonNull::new(start.cast()).expect("a mapping");
        Self { start, bytes, used: AtomicUsize::new(0), free: Mutex::default() }
    }
}

// SAFETY: each page of the mapping is given to one owner at a time; mappings are aligned to pages.
unsafe impl Memory for Large {
    fn page(&self) -> Option<NonNull<u8>> {
        let again = self.free.lock().expect("nobody panics").pop();
        let at = again.unwrap_or_else(|| self.used.fetch_add(PAGE, Relaxed));
        // SAFETY: it is within the mapping.
        (at < self.bytes).then(|| unsafe { self.start.add(at) })
    }
    unsafe fn free(&self, page: NonNull<u8>) {
        self.free.lock().expect("nobody panics").push(page.addr().get() - self.start.addr().get());
    }
}

impl Drop for Large {
    fn drop(&mut self) {
        // SAFETY: no page is out: each would own a reference to the pool.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

fn region(n: u64) -> Region {
    Region::new(n * STRIDE, n * STRIDE + LENGTH)
}

impl<M: Memory> Bonsai<M> {
    fn new(name: &'static str, regions: u64, memory: M) -> Self {
        let domain = Arc::new(Domain::new(CPUS));
        let tree = RegionTree::in_pool(domain.clone(), Pool::new(memory));
        let new = Self { name, domain, tree };
        let pin = &mut pin(0);
        new.present(pin, true);
        // One after the other in random order, as all subjects: built at once the tree would be better than any other.
        shuffled(regions).for_each(|n| {
            new.tree.write(&*pin).insert(region(n), Entry::new(n * STRIDE)).expect("it is free");
            new.tidy(pin, n);
        });
        new.present(pin, false);
        new
    }
    /// What a writer does besides after update `n`.
    fn tidy(&self, pin: &mut Pinned<'_>, n: u64) {
        // Regular work now and then; and with much garbage nothing else, until readers are gone.
        if n.is_multiple_of(8) || self.domain.pending(pin) > MOST_GARBAGE {
            self.domain.tick(pin);
            while self.domain.pending(pin) > MOST_GARBAGE {
                thread::yield_now();
                self.domain.tick(pin);
            }
        }
    }
}

impl<M: Memory> Subject for Bonsai<M> {
    fn name(&self) -> &'static str {
        self.name
    }
    #[inline(never)]
    fn find(&self, pin: &mut Pinned<'_>, addresses: &[u64]) -> u64 {
        let mut missed = 0;
        for at in addresses {
            let guard = self.domain.read(pin);
            match self.tree.read(&guard).covering(*at).filter(|(_, entry)| !entry.is_dead()) {
                Some((_, start)) => assert_eq!(**start, at / STRIDE * STRIDE),
                None => missed += 1,
            }
        }
        self.domain.qs(pin);
        missed
    }
    fn churn(&self, pin: &mut Pinned<'_>, n: u64) {
        {
            let mut writer = self.tree.write(&*pin);
            drop(writer.remove(n * STRIDE).expect("it was put in"));
        }
        self.tree.write(&*pin).insert(region(n), Entry::new(n * STRIDE)).expect("it is free");
        self.tidy(pin, n);
    }
    fn present(&self, pin: &mut Pinned<'_>, here: bool) {
        match here {
            true => self.domain.idle_exit(pin),
            false => {
                while self.domain.pending(pin) > 0 {
                    self.domain.tick(pin);
                    thread::yield_now();
                }
                self.domain.idle_enter(pin);
            }
        }
    }
}

/// The region of the first end above an address covers it, or it is not covered.
fn hit(at: u64, start: Option<u64>) -> u64 {
    match start.filter(|start| *start <= at) {
        Some(start) => {
            assert_eq!(start, at / STRIDE * STRIDE);
            0
        }
        None => 1,
    }
}

struct Locked(RwLock<BTreeMap<u64, u64>>);

impl Subject for Locked {
    fn name(&self) -> &'static str {
        "RwLock<BTreeMap>"
    }
    #[inline(never)]
    fn find(&self, _: &mut Pinned<'_>, addresses: &[u64]) -> u64 {
        let one = |at: &u64| {
            let map = self.0.read().expect("nobody panics");
            hit(*at, map.range((Excluded(*at), Unbounded)).next().map(|(_, start)| *start))
        };
        addresses.iter().map(one).sum()
    }
    fn churn(&self, _: &mut Pinned<'_>, n: u64) {
        let end = region(n).end();
        self.0.write().expect("nobody panics").remove(&end).expect("it was put in");
        self.0.write().expect("nobody panics").insert(end, n * STRIDE);
    }
}

struct Skip(SkipMap<u64, u64>);

impl Subject for Skip {
    fn name(&self) -> &'static str {
        "crossbeam-skiplist"
    }
    #[inline(never)]
    fn find(&self, _: &mut Pinned<'_>, addresses: &[u64]) -> u64 {
        let one = |at: &u64| hit(*at, self.0.lower_bound(Excluded(at)).map(|found| *found.value()));
        addresses.iter().map(one).sum()
    }
    fn churn(&self, _: &mut Pinned<'_>, n: u64) {
        let end = region(n).end();
        self.0.remove(&end).expect("it was put in");
        self.0.insert(end, n * STRIDE);
    }
}

struct Index(TreeIndex<u64, u64>);

impl Subject for Index {
    fn name(&self) -> &'static str {
        "scc::TreeIndex"
    }
    #[inline(never)]
    fn find(&self, _: &mut Pinned<'_>, addresses: &[u64]) -> u64 {
        let one = |at: &u64| {
            let guard = Guard::new();
            let found = self.0.range((Excluded(*at), Unbounded), &guard).next();
            hit(*at, found.map(|(_, start)| *start))
        };
        addresses.iter().map(one).sum()
    }
    fn churn(&self, _: &mut Pinned<'_>, n: u64) {
        let end = region(n).end();
        assert!(self.0.remove_sync(&end), "it was put in");
        self.0.insert_sync(end, n * STRIDE).expect("it is free");
    }
}

/// All numbers below `n`, in an order that is the same in each run.
fn shuffled(n: u64) -> impl Iterator<Item = u64> {
    let mut all: Vec<u64> = (0..n).collect();
    fastrand::Rng::with_seed(1).shuffle(&mut all);
    all.into_iter()
}

fn subjects(regions: u64) -> [Box<dyn Subject>; 5] {
    let pairs = || shuffled(regions).map(|n| (region(n).end(), n * STRIDE));
    let (skip, index) = (SkipMap::new(), TreeIndex::new());
    pairs().for_each(|(end, start)| {
        skip.insert(end, start);
        index.insert_sync(end, start).expect("it is free");
    });
    let mut map = BTreeMap::new();
    pairs().for_each(|(end, start)| _ = map.insert(end, start));
    [
        Box::new(Bonsai::new("bonsai", regions, Heap)),
        Box::new(Bonsai::new("bonsai, large pages", regions, Large::new(regions as usize * 128 + (4 << 20)))),
        Box::new(Locked(RwLock::new(map))),
        Box::new(Skip(skip)),
        Box::new(Index(index)),
    ]
}

fn pin(cpu: usize) -> Pinned<'static> {
    // SAFETY: in a turn each thread is a CPU of its own, and one turn follows the other.
    unsafe { Pinned::assume(CpuId::new(cpu).expect("a CPU")) }
}

/// Processor time of this thread.
fn thread_clock() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Nanoseconds: of a look-up on the wall and of processor time, and of the writer's pair of updates on the wall.
#[derive(Clone, Copy, Default)]
struct Cost {
    wall: f64,
    cpu: f64,
    pair: f64,
}

fn measure(subject: &dyn Subject, regions: u64, readers: usize, writes: bool, turn: Duration) -> Cost {
    let barrier = Barrier::new(readers + usize::from(writes));
    let over = AtomicBool::new(false);
    let (looks, wall, cpu) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let mut cost = Cost::default();
    thread::scope(|scope| {
        for reader in 0..readers {
            let (barrier, over, looks, wall, cpu) = (&barrier, &over, &looks, &wall, &cpu);
            scope.spawn(move || {
                let pin = &mut pin(1 + reader);
                let mut random = fastrand::Rng::new();
                let mut address = || random.u64(0..regions) * STRIDE + random.u64(0..LENGTH);
                let addresses: Vec<u64> = (0..BATCH * 256).map(|_| address()).collect();
                subject.present(pin, true);
                barrier.wait();
                let (begun, worked) = (Instant::now(), thread_clock());
                let (mut found, mut missed) = (0, 0);
                while !over.load(Relaxed) {
                    for batch in addresses.chunks(BATCH * 16) {
                        for some in batch.chunks(BATCH) {
                            missed += subject.find(pin, some);
                            found += BATCH as u64;
                        }
                        if begun.elapsed() >= turn {
                            over.store(true, Relaxed);
                        }
                        if over.load(Relaxed) {
                            break;
                        }
                    }
                }
                wall.fetch_add(begun.elapsed().as_nanos() as u64, Relaxed);
                cpu.fetch_add((thread_clock() - worked).as_nanos() as u64, Relaxed);
                looks.fetch_add(found, Relaxed);
                subject.present(pin, false);
                assert!(writes || missed == 0, "{}: {missed} regions were not found", subject.name());
            });
        }
        if writes {
            let pin = &mut pin(0);
            let mut random = fastrand::Rng::new();
            subject.present(pin, true);
            barrier.wait();
            let (begun, mut pairs) = (Instant::now(), 0);
            while !over.load(Relaxed) {
                subject.churn(pin, random.u64(0..regions));
                pairs += 1;
            }
            cost.pair = begun.elapsed().as_nanos() as f64 / f64::from(pairs.max(1));
            subject.present(pin, false);
        }
    });
    cost.wall = wall.into_inner() as f64 / looks.load(Relaxed) as f64;
    cost.cpu = cpu.into_inner() as f64 / looks.into_inner() as f64;
    cost
}

/// Nanoseconds of processor time for taking a region out and putting it in again, with nobody else about.
fn measure_updates(subject: &dyn Subject, regions: u64, turn: Duration) -> Cost {
    let pin = &mut pin(0);
    let mut random = fastrand::Rng::new();
    subject.present(pin, true);
    let (begun, worked) = (Instant::now(), thread_clock());
    let mut pairs = 0;
    while begun.elapsed() < turn {
        (0..32).for_each(|_| subject.churn(pin, random.u64(0..regions)));
        pairs += 32;
    }
    let each = |time: Duration| time.as_nanos() as f64 / f64::from(pairs);
    let cost = Cost { wall: each(begun.elapsed()), cpu: each(thread_clock() - worked), pair: 0.0 };
    subject.present(pin, false);
    cost
}

/// The values at the quarters of the order.
fn quartiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| values[(values.len() - 1) * quarter / 4])
}

/// Measure, print and record one case.
fn case(
    title: &str,
    of: serde_json::Value,
    options: &Options,
    subjects: &[Box<dyn Subject>],
    measure: impl Fn(&dyn Subject) -> Cost,
) -> Vec<serde_json::Value> {
    let mut costs: Vec<Vec<Cost>> = subjects.iter().map(|_| Vec::new()).collect();
    for turn in 0..=options.turns {
        for (subject, costs) in subjects.iter().zip(&mut costs) {
            let cost = measure(&**subject);
            // The first turn warms everything up.
            if turn > 0 {
                costs.push(cost);
            }
        }
    }
    println!("{title}");
    let mut records = Vec::new();
    for (subject, own) in subjects.iter().zip(&costs) {
        let of_all = |value: fn(&Cost) -> f64| quartiles(own.iter().map(value).collect());
        let ratio = |value: fn(&Cost) -> f64| {
            quartiles(own.iter().zip(&costs[0]).map(|(own, bonsai)| value(own) / value(bonsai)).collect())
        };
        let (wall, cpu, pair) = (of_all(|c| c.wall), of_all(|c| c.cpu), of_all(|c| c.pair));
        let (by_wall, by_cpu) = (ratio(|c| c.wall), ratio(|c| c.cpu));
        let show = |[low, median, high]: [f64; 3]| format!("{median:7.1} [{low:.1} {high:.1}]");
        let short = |[low, median, high]: [f64; 3]| format!("{median:.2} [{low:.2} {high:.2}]");
        print!(
            "  {:20} {:26} ns, {:26} ns of processor; of bonsai's {:20}, {:20}",
            subject.name(),
            show(wall),
            show(cpu),
            short(by_wall),
            short(by_cpu)
        );
        if pair[1] > 0.0 {
            print!("; writer {:.0} ns a pair", pair[1]);
        }
        println!();
        records.push(json!({
            "case": of, "subject": subject.name(), "wall_ns": wall, "cpu_ns": cpu, "writer_pair_ns": pair,
            "ratio_to_bonsai_wall": by_wall, "ratio_to_bonsai_cpu": by_cpu,
        }));
    }
    records
}

fn main() -> ExitCode {
    let options = Options::parse();
    let turn = Duration::from_millis(options.milliseconds);
    println!(
        "{} turns of {} ms, {} CPUs; a number is: median [quartiles]",
        options.turns,
        options.milliseconds,
        thread::available_parallelism().map_or(0, |cpus| cpus.get())
    );
    let mut records = Vec::new();
    for regions in options.regions.iter().copied() {
        let subjects = subjects(regions);
        for (readers, writes) in [(1, false), (2, false), (1, true), (2, true)] {
            let title =
                format!("look-up in {regions} regions, {readers} readers, {} writers", u8::from(writes));
            let of = json!({"regions": regions, "readers": readers, "writers": u8::from(writes)});
            records.extend(case(&title, of, &options, &subjects, |subject| {
                measure(subject, regions, readers, writes, turn)
            }));
        }
        let title = format!("removal and insert in {regions} regions, alone");
        records.extend(case(
            &title,
            json!({"regions": regions, "updates": true}),
            &options,
            &subjects,
            |subject| measure_updates(subject, regions, turn),
        ));
    }
    if let Some(path) = &options.json {
        let all = json!({
            "program": "bonsai", "version": 1, "turns": options.turns, "milliseconds": options.milliseconds,
            "records": records,
        });
        if let Err(error) = fs::write(path, format!("{all:#}\n")) {
            eprintln!("bonsai: {}: {error}", path.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

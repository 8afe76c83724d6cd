//! A driver inside of the process: threads that do a workload's operations at a rate, and checkpoints meanwhile.
//!
//! Operations are due at fixed times, and a latency counts from then: an operation that a pause delays counts as late,
//! and so do those that queue up behind it.

use std::{
    fs::read_to_string,
    io::Write,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use snap::{Folder, Folds, Image};

use crate::{
    fork::kib,
    histogram::Histogram,
    keeper::{Done, Keeper},
    table::{Refused, Table},
    workload::{Operation, Workload},
};

/// How much, how fast, how often.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// What is done.
    pub workload: Workload,
    /// How long.
    pub time: Duration,
    /// Operations of each thread, at most, those of earlier runs included.
    pub operations: u64,
    /// Operations a second, of all threads together; 0 for as many as there can be.
    pub rate: u64,
    /// Checkpoints begin so far apart.
    pub every: Duration,
    /// Say each checkpoint once it is durable.
    pub says: bool,
    /// Run at real-time priority, if that is allowed.
    pub real_time: bool,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Operations.
    pub operations: u64,
    /// Seconds.
    pub seconds: f64,
    /// Checkpoints, the first one, which writes all, left out.
    pub cuts: Vec<Done>,
    /// Checkpoints that failed.
    pub failed: u64,
    /// Latencies of operations that ended while a checkpoint ran.
    pub during: Histogram,
    /// Of the others.
    pub between: Histogram,
    /// The most memory besides the table's, in bytes.
    pub extra: u64,
    /// Bytes that the table uses.
    pub used: u64,
    /// Bases that were made of deltas.
    pub folds: Folds,
}

/// Run the calling thread before others; also what it forks or spawns, if `inherits`.
fn real_time(priority: i32, inherits: bool) {
    let parameter = libc::sched_param { sched_priority: priority };
    let policy = libc::SCHED_FIFO | if inherits { 0 } else { libc::SCHED_RESET_ON_FORK };
    // SAFETY: the parameter is valid. Where it is not allowed, the thread is as it was.
    unsafe { libc::sched_setscheduler(0, policy, &raw const parameter) };
}

/// Threads' counts of operations, each alone in its cache lines.
#[repr(align(128))]
struct Count(AtomicU64);

struct Shared<'t> {
    table: &'t Table,
    options: Options,
    counts: &'t [Count],
    begin: Instant,
    stop: AtomicBool,
    /// A checkpoint runs.
    active: AtomicBool,
}

/// One thread's operations; the latencies while checkpoints ran, and otherwise.
fn drive(shared: &Shared<'_>, thread: u32) -> Result<[Histogram; 2], String> {
    // Faults of a thread that is attached cost less.
    vmprim::attach().map_err(|error| error.to_string())?;
    if shared.options.real_time {
        real_time(2, false);
    }
    // SAFETY: a call without pointers: sleeps end when they should.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
    let Options { workload, rate, operations, .. } = shared.options;
    let count = &shared.counts[thread as usize].0;
    let mut stream = workload.stream(thread);
    let mut done = count.load(Ordering::Relaxed);
    stream.skip_done(done);
    let pace = match rate {
        0 => None,
        rate => Some(Duration::from_secs_f64(f64::from(workload.threads) / rate as f64)),
    };
    let mut histograms = [Histogram::default(), Histogram::default()];
    let mut value = Vec::new();
    let begin = Instant::now();
    let mut due = Duration::ZERO;
    // Relaxed: nothing else is known by it.
    while done < operations && !shared.stop.load(Ordering::Relaxed) {
        let Some(operation) = stream.next() else { break };
        let started = match pace {
            None => Instant::now(),
            Some(pace) => {
                due += pace;
                if let Some(early) = due.checked_sub(begin.elapsed()) {
                    std::thread::sleep(early);
                }
                begin + due
            }
        };
        done += 1;
        // Relaxed: a count is stored within the pass of its operation, so a cut sees both or neither.
        let counted = || count.store(done, Ordering::Relaxed);
        let refused = |error: pheap::Error| format!("{error}: give --mem more than it has");
        match operation {
            Operation::Get(key) => {
                value.clear();
                shared.table.get(&Workload::key(key), &mut value);
                counted();
            }
            Operation::Set(key, number) => {
                workload.value(number, &mut value);
                let pass = shared.table.enter();
                shared.table.set(&pass, &Workload::key(key), &value).map_err(refused)?;
                counted();
            }
            Operation::Del(key) => {
                let pass = shared.table.enter();
                shared.table.del(&pass, &Workload::key(key));
                counted();
            }
            Operation::Add(number, by) => {
                let pass = shared.table.enter();
                match shared.table.add(&pass, &Workload::number(number), by) {
                    Ok(_) => counted(),
                    Err(Refused::NoNumber) => return Err("a number is none".to_owned()),
                    Err(Refused::Heap(error)) => return Err(refused(error)),
                }
            }
        }
        let ns = started.elapsed().as_nanos() as u64;
        // Relaxed: near the time is enough.
        histograms[usize::from(!shared.active.load(Ordering::Relaxed))].add(ns);
    }
    Ok(histograms)
}

/// Memory of the process's own and its page tables, in bytes.
fn own_memory() -> u64 {
    kib("/proc/self/status", &["RssAnon:", "VmPTE:"])
}

/// Do it.
///
/// # Errors
/// A line that says what is wrong.
pub fn run(keeper: &Keeper, options: &Options) -> Result<Report, String> {
    let workload = options.workload;
    let restored = keeper.restored();
    // SAFETY: the table is gone before the caller's keeper.
    let memory = unsafe { keeper.bytes() };
    let table = Table::open(memory, restored.is_none()).map_err(|error| error.to_string())?;
    keeper.take_warnings().iter().for_each(|warning| eprintln!("kvd: {warning}"));
    let counts = match restored.as_deref().map(Workload::decode) {
        None => {
            let mut value = Vec::new();
            for (key, number) in workload.first() {
                workload.value(number, &mut value);
                let set = table.set(&table.enter(), &Workload::key(key), &value);
                set.map_err(|error| format!("{error}: give --mem more than it has"))?;
            }
            vec![0; workload.threads as usize]
        }
        Some(Some((of, counts))) if of == workload => counts,
        Some(_) => {
            return Err(
                "the image is of another workload: give the same options, or another --dir".to_owned()
            );
        }
    };
    let counts: Vec<Count> = counts.into_iter().map(|count| Count(AtomicU64::new(count))).collect();
    let state = |into: &mut Vec<u8>| {
        // Relaxed: in the cut, after all operations before it.
        let counts: Vec<u64> = counts.iter().map(|count| count.0.load(Ordering::Relaxed)).collect();
        workload.encode(&counts, into);
    };
    let total = || counts.iter().map(|count| count.0.load(Ordering::Relaxed)).sum::<u64>();
    let keeps = !matches!(keeper, Keeper::None(_));
    let say = |done: &Done| {
        if options.says {
            println!("epoch {}", done.epoch);
            // Whoever reads it is gone: so be it.
            let _ = std::io::stdout().flush();
        }
    };
    if keeps {
        // The first one writes everything.
        let done = keeper.checkpoint(table.gate(), &|| table.used(), state)?;
        say(&done);
    }
    let (before, begin) = (total(), Instant::now());
    let shared = Shared {
        table: &table,
        options: *options,
        counts: &counts,
        begin,
        stop: AtomicBool::new(false),
        active: AtomicBool::new(false),
    };
    let mut report = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workload.threads)
            .map(|thread| {
                let shared = &shared;
                scope.spawn(move || drive(shared, thread))
            })
            .collect();
        let sampler = scope.spawn(|| {
            let mut most = 0;
            while !shared.stop.load(Ordering::Relaxed) {
                most = most.max(own_memory());
                std::thread::sleep(Duration::from_millis(20));
            }
            most
        });
        if options.real_time {
            // The thread that copies, or the child that does: not a fold.
            real_time(1, matches!(keeper, Keeper::Fork(_)));
        }
        let mut report = Report::default();
        let mut next = options.every;
        loop {
            let ended = || threads.iter().all(std::thread::ScopedJoinHandle::is_finished);
            while shared.begin.elapsed() < next.min(options.time) && !ended() {
                let left = next.min(options.time).saturating_sub(shared.begin.elapsed());
                std::thread::sleep(left.min(Duration::from_millis(20)));
            }
            if shared.begin.elapsed() >= options.time || ended() {
                break;
            }
            if keeps {
                shared.active.store(true, Ordering::Relaxed);
                let result = keeper.checkpoint(table.gate(), &|| table.used(), state);
                shared.active.store(false, Ordering::Relaxed);
                match result {
                    Ok(done) => {
                        say(&done);
                        report.cuts.push(done);
                    }
                    Err(error) => {
                        eprintln!("kvd: {error}");
                        report.failed += 1;
                    }
                }
                keeper.take_warnings().iter().for_each(|warning| eprintln!("kvd: {warning}"));
            }
            // One that took longer than that is followed by the next at once.
            next = (next + options.every).max(shared.begin.elapsed());
        }
        report.seconds = shared.begin.elapsed().as_secs_f64();
        shared.stop.store(true, Ordering::Relaxed);
        for thread in threads {
            let [during, between] = thread.join().map_err(|_| "a thread panicked")??;
            report.during.merge(&during);
            report.between.merge(&between);
        }
        report.extra = sampler.join().map_err(|_| "a thread panicked")?;
        Ok::<_, String>(report)
    })?;
    report.operations = total() - before;
    report.used = table.used();
    // The tables of one mapping are there with any keeper. Memory of the process's own is the table's with the others,
    // and what they need besides is the child's.
    report.extra = match keeper {
        Keeper::Snap(_) => report.extra.saturating_sub(report.used / 512),
        _ => report.cuts.iter().map(|cut| cut.extra).max().unwrap_or(0),
    };
    report.folds = keeper.finish();
    Ok(report)
}

/// Compare a folder's newest image with the model: its epoch, and how many keys it has.
///
/// # Errors
/// A line that says what differs.
pub fn verify(folder: &Path) -> Result<(u64, u64), String> {
    let named = |error: snap::Error| format!("{}: {error}", folder.display());
    let image = Image::read(&Folder::peek(folder)).map_err(named)?;
    let mut image = image.ok_or_else(|| format!("there is no image in {}", folder.display()))?;
    image.warnings.iter().for_each(|warning| eprintln!("kvd: {warning}"));
    let (workload, counts) = Workload::decode(&image.state)
        .ok_or("the image is of a server, not of a load, whose operations could be repeated")?;
    // Aligned to words.
    let mut words = vec![0_u64; image.bytes.len().div_ceil(8)];
    for (word, bytes) in words.iter_mut().zip(image.bytes.chunks_exact(8)) {
        *word = bytes.try_into().map_or(0, u64::from_ne_bytes);
    }
    image.bytes = Vec::new();
    // SAFETY: the words outlive the table, and are used through it alone.
    let memory = unsafe { pheap::Memory::new(words.as_mut_ptr().cast(), words.len() * 8) };
    let table = Table::open(memory, false).map_err(|error| error.to_string())?;
    table.check()?;
    let keys = workload.compare(&counts, |each| {
        let mut cursor = 0;
        loop {
            cursor = table.scan(cursor, 1000, &mut *each);
            if cursor == 0 {
                break;
            }
        }
    })?;
    match keys == table.len() {
        true => Ok((image.epoch, keys)),
        false => Err(format!("the table counts {} keys, and has {keys}", table.len())),
    }
}

impl Report {
    /// For machines.
    pub fn json(&self) -> Value {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let cuts: Vec<Value> = self
            .cuts
            .iter()
            .map(|cut| {
                json!({
                    "epoch": cut.epoch, "pages": cut.pages, "bytes": cut.bytes, "rounds": cut.rounds, "waits": cut.waits,
                    "pause_ms": ms(cut.pause), "cut_ms": ms(cut.cut), "took_ms": ms(cut.took),
                })
            })
            .collect();
        let latencies = |histogram: &Histogram| {
            let us = |part| histogram.quantile(part) as f64 / 1e3;
            json!({
                "count": histogram.count(), "p50_us": us(0.5), "p99_us": us(0.99), "p999_us": us(0.999),
                "max_us": histogram.greatest() as f64 / 1e3,
            })
        };
        let load = read_to_string("/proc/loadavg").unwrap_or_default();
        json!({
            "operations": self.operations, "seconds": self.seconds, "failed": self.failed,
            "during": latencies(&self.during), "between": latencies(&self.between),
            "folds": {
                "count": self.folds.count, "bytes": self.folds.bytes, "took_ms": ms(self.folds.took),
                "busy_ms": ms(self.folds.busy),
            },
            "extra_bytes": self.extra, "used_bytes": self.used, "cuts": cuts,
            "machine_load": load.split(' ').next().and_then(|load| load.parse::<f64>().ok()),
        })
    }
}

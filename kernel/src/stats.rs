//! Counters, one set per CPU, printed on request; the fault path logs nothing.

use alloc::{
    collections::BTreeMap,
    string::{String, ToString},
    vec::Vec,
};
use core::{
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering},
};

use frames::CpuStats;
use percpu::MAX_CPUS;

use crate::{
    file::proc_frames::columns,
    hw::{cpu, irq},
    memory,
    places::Place,
    sanitize,
};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident = $key:literal,)*) => {
        /// What is counted on each CPU.
        #[derive(Clone, Copy)]
        pub enum Counter {
            $($(#[$doc])* $name,)*
        }
        const KEYS: &[&str] = &[$($key),*];
    };
}

counters! {
    /// Page faults from user mode or in a copy, resolved by reading.
    ReadFaults = "faults_read",
    /// Page faults resolved by a store.
    WriteFaults = "faults_write",
    /// Page faults resolved by an instruction fetch.
    ExecFaults = "faults_exec",
    /// Page faults that became a signal or EFAULT.
    BadFaults = "faults_refused",
    /// Accesses that a page's level forbade, given to the program.
    Upcalls = "upcalls",
    /// `mmap` calls that succeeded.
    Maps = "mmaps",
    /// `munmap` calls that succeeded.
    Unmaps = "munmaps",
    /// `mprotect` calls that succeeded.
    Protects = "mprotects",
    /// Flush requests sent, one for each target CPU.
    ShootdownsSent = "shootdowns_sent",
    /// Flush requests handled.
    ShootdownsReceived = "shootdowns_received",
    /// Switches from one thread to another.
    ContextSwitches = "context_switches",
    /// Threads taken from another CPU's queue.
    Steals = "steals",
    /// Interrupts sent to make another CPU schedule.
    RescheduleIpis = "reschedule_ipis",
    /// System calls.
    Syscalls = "syscalls",
    /// Timer interrupts.
    Ticks = "timer_interrupts",
}

const N: usize = KEYS.len();

#[repr(align(128))]
struct PerCpuCounts([AtomicU64; N]);

static COUNTS: [PerCpuCounts; MAX_CPUS] =
    [const { PerCpuCounts([const { AtomicU64::new(0) }; N]) }; MAX_CPUS];

/// Calls that the kernel doesn't have.
struct Unknown {
    by_number: BTreeMap<u64, u64>,
    /// Those that [`UNKNOWN_KINDS`] left no room for.
    more: u64,
}

static UNKNOWN: irq::Lock<Unknown> = irq::Lock::new(Unknown { by_number: BTreeMap::new(), more: 0 });
/// At most this many different numbers are kept, so that a program can't fill memory with them.
const UNKNOWN_KINDS: usize = 512;

/// Where the counters are.
pub fn place() -> Place {
    Place::per_cpu("counters", &COUNTS)
}

/// Count one on this CPU.
pub fn count(what: Counter) {
    count_n(what, 1);
}

/// Count `n` on this CPU.
pub fn count_n(what: Counter, n: u64) {
    // Relaxed: a statistic that only this CPU writes, on its own lines.
    COUNTS[cpu::id().index()].0[what as usize].fetch_add(n, Ordering::Relaxed);
}

/// Count a system call that the kernel doesn't have.
pub fn unknown_syscall(nr: u64) {
    let mut unknown = UNKNOWN.lock();
    if unknown.by_number.len() < UNKNOWN_KINDS || unknown.by_number.contains_key(&nr) {
        *unknown.by_number.entry(nr).or_insert(0) += 1;
    } else {
        unknown.more += 1;
    }
}

/// This many of `what` on all CPUs together.
pub fn total(what: Counter) -> u64 {
    // Relaxed: statistics.
    COUNTS.iter().map(|c| c.0[what as usize].load(Ordering::Relaxed)).sum()
}

/// The allocator's counters, as more of `counters`.
fn frame_counters(s: &mut String) {
    let allocator = memory::frames().allocator();
    let all: Vec<_> = allocator.everyone().iter().map(|cpu| columns(&allocator.cpu_stats(cpu))).collect();
    let names = columns(&CpuStats::default()).map(|(name, _)| name);
    for (i, name) in names.iter().enumerate() {
        let row: Vec<_> = all.iter().map(|cpu| cpu[i].1.to_string()).collect();
        let _ = write!(s, ",\"frames_{name}\":[{}]", row.join(","));
    }
}

/// Everything as one line of JSON: `counters` by name as an array over CPUs, `unknown_syscalls` by number and
/// `more_unknown_syscalls` that were not told apart, and where every page frame is; in the sanitized build `edges` of the
/// control flow too. `leaked`: frames owned by programs or files after all of them are gone.
pub fn json(leaked: i64, f: &owned::Stats) -> String {
    let mut s = String::new();
    let cpus = cpu::count();
    let _ = write!(s, "{{\"cpus\":{cpus},\"counters\":{{");
    for (i, key) in KEYS.iter().enumerate() {
        let _ = write!(s, "{}\"{key}\":[", if i > 0 { "," } else { "" });
        for (c, counts) in COUNTS.iter().take(cpus).enumerate() {
            // Relaxed: statistics.
            let n = counts.0[i].load(Ordering::Relaxed);
            let _ = write!(s, "{}{n}", if c > 0 { "," } else { "" });
        }
        s.push(']');
    }
    frame_counters(&mut s);
    s.push_str("},\"unknown_syscalls\":{");
    {
        let unknown = UNKNOWN.lock();
        for (i, (nr, n)) in unknown.by_number.iter().enumerate() {
            let _ = write!(s, "{}\"{nr}\":{n}", if i > 0 { "," } else { "" });
        }
        s.push('}');
        if unknown.more > 0 {
            let _ = write!(s, ",\"more_unknown_syscalls\":{}", unknown.more);
        }
    }
    if let Some((covered, total)) = sanitize::edges() {
        let _ = write!(s, ",\"edges\":{{\"covered\":{covered},\"total\":{total}}}");
    }
    let _ = write!(
        s,
        ",\"frames\":{{\"total\":{},\"free\":{},\"cached\":{},\"owned\":{},\"anonymous\":{},\"file\":{},\
         \"page_table\":{},\"kernel\":{},\"stack\":{},\"leaked\":{leaked}}}}}",
        f.total,
        f.free,
        f.cached,
        f.owned.iter().sum::<u64>(),
        f.owned[owned::Use::Anonymous as usize],
        f.owned[owned::Use::File as usize],
        f.owned[owned::Use::PageTable as usize],
        f.owned[owned::Use::Kernel as usize],
        f.owned[owned::Use::Stack as usize],
    );
    s
}

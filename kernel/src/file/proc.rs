//! /proc: what the kernel says of itself. Processes are in `proc_pid`.
//!
//! A file is made when it is read from its start. Fixed names stand in tables: a line each, with the function that
//! makes the contents.

use alloc::{boxed::Box, format, string::String, sync::Arc, vec::Vec};
use core::fmt::Write;

use addr::PAGE_SIZE;
use linux_raw_sys::general as c;
use owned::Use;

use super::{
    Result,
    entry::Entry,
    inode::{Inode, Kind, Link, Listing, MadeUp, Name, Node, Volume},
    proc_frames,
    proc_pid::ProcessDirectory,
    random,
};
use crate::{
    errno::Errno,
    hw::{self, cpu},
    ids::{self, PID_MAX},
    memory, process,
    syscall::process::{RELEASE, VERSION},
    task,
};

/// Ticks a second in which /proc counts time (`sysconf(_SC_CLK_TCK)`).
pub const TICKS: u64 = 100;
/// Nanoseconds in a tick.
pub const TICK: u64 = 1_000_000_000 / TICKS;
/// Where processes begin in the listing of /proc, after the fixed names.
const FIRST_PROCESS: u64 = 1000;

/// What a fixed name stands for.
#[derive(Clone, Copy)]
pub enum Item {
    /// A file with these contents.
    Text(fn() -> String),
    /// A directory.
    Directory(&'static [(&'static str, Item)]),
    /// A symbolic link to this.
    Link(fn() -> String),
}

const ROOT: &[(&str, Item)] = &[
    ("buddyinfo", Item::Text(proc_frames::buddyinfo)),
    ("cpuinfo", Item::Text(cpuinfo)),
    ("filesystems", Item::Text(|| "nodev\ttmpfs\nnodev\tproc\nnodev\tsysfs\n".into())),
    ("frames", Item::Text(proc_frames::frames)),
    ("loadavg", Item::Text(loadavg)),
    ("meminfo", Item::Text(meminfo)),
    ("mounts", Item::Link(|| "self/mounts".into())),
    ("quire", Item::Directory(QUIRE)),
    ("self", Item::Link(|| format!("{}", task::current().process.pid))),
    ("stat", Item::Text(stat)),
    ("sys", Item::Directory(SYS)),
    ("thread-self", Item::Link(thread_self)),
    ("uptime", Item::Text(uptime)),
    ("version", Item::Text(version)),
];

const QUIRE: &[(&str, Item)] = &[("frames", Item::Text(frame_account))];

const SYS: &[(&str, Item)] =
    &[("fs", Item::Directory(FS)), ("kernel", Item::Directory(KERNEL)), ("vm", Item::Directory(VM))];

const FS: &[(&str, Item)] =
    &[("nr_open", Item::Text(|| "1048576\n".into())), ("pipe-max-size", Item::Text(|| "1048576\n".into()))];

const KERNEL: &[(&str, Item)] = &[
    ("hostname", Item::Text(|| "quire\n".into())),
    ("osrelease", Item::Text(|| format!("{RELEASE}\n"))),
    ("ostype", Item::Text(|| "Linux\n".into())),
    ("pid_max", Item::Text(|| format!("{PID_MAX}\n"))),
    ("random", Item::Directory(&[("uuid", Item::Text(uuid))])),
    ("version", Item::Text(|| format!("{VERSION}\n"))),
];

// There is no overcommit accounting, and no limit on mappings but memory.
const VM: &[(&str, Item)] = &[
    ("max_map_count", Item::Text(|| format!("{}\n", i32::MAX))),
    ("mmap_min_addr", Item::Text(|| format!("{}\n", aspace::LOWEST * PAGE_SIZE))),
    ("overcommit_memory", Item::Text(|| "1\n".into())),
    ("unprivileged_userfaultfd", Item::Text(|| "0\n".into())),
];

/// A directory of fixed names.
pub struct Table(pub &'static [(&'static str, Item)]);

impl Listing for Table {
    fn lookup(&self, name: &[u8]) -> Option<Node> {
        let (_, item) = self.0.iter().find(|(n, _)| n.as_bytes() == name)?;
        Some(match *item {
            Item::Text(make) => text(move || Ok(make().into_bytes())),
            Item::Directory(names) => Node { kind: Kind::Listing(Box::new(Table(names))), mode: 0o555 },
            Item::Link(to) => Node { kind: Kind::Link(Box::new(Computed(to))), mode: 0o777 },
        })
    }

    fn names(&self) -> Vec<Name> {
        let kind = |item: &Item| match item {
            Item::Text(_) => c::DT_REG,
            Item::Directory(_) => c::DT_DIR,
            Item::Link(_) => c::DT_LNK,
        };
        (2..)
            .zip(self.0)
            .map(|(position, (n, i))| Name { position, name: (*n).into(), kind: kind(i) as u8 })
            .collect()
    }
}

/// A file that everyone may read.
pub fn text<T: Into<Text>>(make: impl Fn() -> Result<T> + Send + Sync + 'static) -> Node {
    let make = Box::new(move || make().map(Into::into));
    Node { kind: Kind::Text(MadeUp { make, take: None }), mode: 0o444 }
}

/// The same file, which its owner may write too.
pub fn writable(file: Node, take: impl Fn(&[u8]) -> Result<()> + Send + Sync + 'static) -> Node {
    match file.kind {
        Kind::Text(file) => {
            Node { kind: Kind::Text(MadeUp { take: Some(Box::new(take)), ..file }), mode: 0o644 }
        }
        kind => Node { kind, ..file },
    }
}

/// The contents of a file, as they were when it was read from its start. They may be long, with a line for each of a
/// program's mappings, but one block of the heap may not: so they come in pieces.
#[derive(Default)]
pub struct Text(Vec<Vec<u8>>);

impl Text {
    /// Bytes of a full piece.
    const PIECE: usize = 64 << 10;

    /// Add `bytes`, which are few. ENOMEM.
    pub fn push(&mut self, bytes: &[u8]) -> Result<()> {
        let full = self.0.last().is_none_or(|last| last.capacity() - last.len() < bytes.len());
        if full {
            if memory::frames().low() {
                return Err(Errno::ENOMEM);
            }
            let mut piece = Vec::new();
            piece.try_reserve_exact(Self::PIECE.max(bytes.len())).map_err(|_| Errno::ENOMEM)?;
            self.0.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
            self.0.push(piece);
        }
        if let Some(last) = self.0.last_mut() {
            last.extend_from_slice(bytes);
        }
        Ok(())
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(Vec::is_empty)
    }

    /// What there is from byte `offset` on, piece by piece.
    pub fn rest(&self, offset: u64) -> impl Iterator<Item = &[u8]> {
        let mut skip = usize::try_from(offset).unwrap_or(usize::MAX);
        self.0.iter().filter_map(move |piece| {
            let rest = piece.get(skip..).filter(|rest| !rest.is_empty());
            skip = skip.saturating_sub(piece.len());
            rest
        })
    }
}

impl From<Vec<u8>> for Text {
    fn from(bytes: Vec<u8>) -> Self {
        Self(alloc::vec![bytes])
    }
}

/// A link to what a function says.
struct Computed(fn() -> String);

impl Link for Computed {
    fn text(&self) -> Result<Vec<u8>> {
        Ok((self.0)().into_bytes())
    }
}

/// /proc itself.
struct Root;

impl Listing for Root {
    fn lookup(&self, name: &[u8]) -> Option<Node> {
        Table(ROOT).lookup(name).or_else(|| {
            let process = ids::find(number(name)?)?;
            Some(ProcessDirectory::node(process))
        })
    }

    fn names(&self) -> Vec<Name> {
        let mut names = Table(ROOT).names();
        names.extend(ids::all().iter().map(|p| Name {
            position: FIRST_PROCESS + u64::from(p.pid),
            name: format!("{}", p.pid).into_bytes(),
            kind: c::DT_DIR as u8,
        }));
        names
    }
}

/// A number as it is written in a name: decimal, without leading zeros.
pub fn number(name: &[u8]) -> Option<u32> {
    if name.first() == Some(&b'0') && name.len() > 1 || !name.iter().all(u8::is_ascii_digit) {
        return None;
    }
    core::str::from_utf8(name).ok()?.parse().ok()
}

/// Put /proc under `root`.
pub fn mount(root: &Arc<Entry>) -> Result<()> {
    let inode = Inode::new(Kind::Listing(Box::new(Root)), 0o555, Volume::Proc);
    super::mount_at(root, b"proc", inode).map(drop)
}

fn thread_self() -> String {
    let me = task::current();
    format!("{}/task/{}", me.process.pid, me.tid())
}

/// Where every page frame is: the sum of the rest is the first while nobody allocates or frees.
fn frame_account() -> String {
    let f = memory::frames().stats();
    let mut s = format!("total {}\nfree {}\ncached {}\n", f.total, f.free, f.cached);
    for (usage, n) in Use::ALL.iter().zip(f.owned) {
        let _ = writeln!(s, "{usage:?} {n}");
    }
    s
}

fn version() -> String {
    format!("Linux version {RELEASE} (Quire) {VERSION}\n")
}

fn uuid() -> String {
    let mut b = [0; 16];
    random::fill(&mut b);
    let n = u128::from_be_bytes(b) & !(0xf << 76) & !(3 << 62) | 4 << 76 | 2 << 62; // version 4, RFC 9562
    let hex = |shift: u32, digits: u32| (n >> shift) & ((1 << (4 * digits)) - 1);
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}\n",
        hex(96, 8),
        hex(80, 4),
        hex(64, 4),
        hex(48, 4),
        hex(0, 12)
    )
}

/// Time that each CPU has spent in threads, in ns: a thread's time counts for the CPU that it was on last.
fn busy() -> Vec<u64> {
    let mut busy = alloc::vec![0; cpu::count()];
    for process in ids::all() {
        for thread in process.threads.lock().iter() {
            if let Some(ns) = busy.get_mut(thread.sched.cpu().index()) {
                *ns += thread.sched.clock.run_ns();
            }
        }
    }
    busy
}

fn running() -> usize {
    let threads =
        |p: &Arc<process::Process>| p.threads.lock().iter().filter(|t| !t.sched.is_parked()).count();
    ids::all().iter().map(threads).sum()
}

fn stat() -> String {
    let (now, busy) = (hw::timer::now(), busy());
    let mut out = String::new();
    let mut line = |name: &str, ns: u64, of: u64| {
        // Writing to a string does not fail.
        let _ = writeln!(out, "{name} {} 0 0 {} 0 0 0 0 0 0", ns / TICK, of.saturating_sub(ns) / TICK);
    };
    line("cpu ", busy.iter().sum(), now * busy.len() as u64);
    for (i, &ns) in busy.iter().enumerate() {
        line(&format!("cpu{i}"), ns, now);
    }
    let _ = write!(
        out,
        "intr 0\nctxt {}\nbtime {}\nprocesses {}\nprocs_running {}\nprocs_blocked 0\n",
        crate::stats::total(crate::stats::Counter::ContextSwitches),
        hw::timer::boot_epoch_ns() / 1_000_000_000,
        ids::all().len(),
        running(),
    );
    out
}

fn uptime() -> String {
    let now = hw::timer::now();
    let idle = (now * cpu::count() as u64).saturating_sub(busy().iter().sum());
    let hundredths = |ns: u64| (ns / 1_000_000_000, ns / 10_000_000 % 100);
    let ((a, b), (x, y)) = (hundredths(now), hundredths(idle));
    format!("{a}.{b:02} {x}.{y:02}\n")
}

/// The averages are not kept: each shows what runs now.
fn loadavg() -> String {
    let n = running();
    let last = ids::all().iter().map(|p| p.pid).max().unwrap_or(0);
    format!("{n}.00 {n}.00 {n}.00 {n}/{} {last}\n", ids::task_count())
}

fn meminfo() -> String {
    let s = memory::frames().stats();
    let kib = |frames: u64| frames * PAGE_SIZE / 1024;
    let owned = |u: Use| s.owned.get(u as usize).copied().unwrap_or(0);
    let free = s.free + s.cached;
    let rows = [
        ("MemTotal", s.total),
        ("MemFree", free),
        ("MemAvailable", free.saturating_sub(s.reserve)),
        ("Buffers", 0),
        ("Cached", owned(Use::File)),
        ("SwapCached", 0),
        ("SwapTotal", 0),
        ("SwapFree", 0),
        ("Dirty", 0),
        ("Writeback", 0),
        ("AnonPages", owned(Use::Anonymous)),
        ("Shmem", owned(Use::File)),
        ("Slab", owned(Use::Kernel)),
        ("KernelStack", owned(Use::Stack)),
        ("PageTables", owned(Use::PageTable)),
    ];
    rows.iter().map(|(name, frames)| format!("{:<16}{:>8} kB\n", format!("{name}:"), kib(*frames))).collect()
}

/// What `flags` shows: (CPUID leaf, register, bit, name), for what programs look for.
const FLAGS: &[(u32, usize, u32, &str)] = &[
    (1, 3, 0, "fpu"),
    (1, 3, 4, "tsc"),
    (1, 3, 5, "msr"),
    (1, 3, 6, "pae"),
    (1, 3, 8, "cx8"),
    (1, 3, 9, "apic"),
    (1, 3, 15, "cmov"),
    (1, 3, 19, "clflush"),
    (1, 3, 23, "mmx"),
    (1, 3, 24, "fxsr"),
    (1, 3, 25, "sse"),
    (1, 3, 26, "sse2"),
    (1, 3, 28, "ht"),
    (0x8000_0001, 3, 11, "syscall"),
    (0x8000_0001, 3, 20, "nx"),
    (0x8000_0001, 3, 26, "pdpe1gb"),
    (0x8000_0001, 3, 27, "rdtscp"),
    (0x8000_0001, 3, 29, "lm"),
    (1, 2, 0, "pni"),
    (1, 2, 1, "pclmulqdq"),
    (1, 2, 9, "ssse3"),
    (1, 2, 12, "fma"),
    (1, 2, 13, "cx16"),
    (1, 2, 19, "sse4_1"),
    (1, 2, 20, "sse4_2"),
    (1, 2, 21, "x2apic"),
    (1, 2, 22, "movbe"),
    (1, 2, 23, "popcnt"),
    (1, 2, 25, "aes"),
    (1, 2, 26, "xsave"),
    (1, 2, 28, "avx"),
    (1, 2, 29, "f16c"),
    (1, 2, 30, "rdrand"),
    (1, 2, 31, "hypervisor"),
    (0x8000_0001, 2, 0, "lahf_lm"),
    (0x8000_0001, 2, 5, "abm"),
    (7, 1, 0, "fsgsbase"),
    (7, 1, 3, "bmi1"),
    (7, 1, 5, "avx2"),
    (7, 1, 7, "smep"),
    (7, 1, 8, "bmi2"),
    (7, 1, 9, "erms"),
    (7, 1, 18, "rdseed"),
    (7, 1, 19, "adx"),
    (7, 1, 20, "smap"),
    (7, 1, 23, "clflushopt"),
    (7, 1, 24, "clwb"),
    (7, 1, 29, "sha_ni"),
    (7, 2, 2, "umip"),
];

fn cpuinfo() -> String {
    let leaf = |n| cpu::cpuid(n, 0);
    let [_, b, c2, d] = leaf(0);
    let vendor: Vec<u8> = [b, d, c2].iter().flat_map(|w| w.to_le_bytes()).collect();
    let model: Vec<u8> = (0x8000_0002..=0x8000_0004)
        .flat_map(leaf)
        .flat_map(u32::to_le_bytes)
        .take_while(|&b| b != 0)
        .collect();
    let [signature, ..] = leaf(1);
    let (family, low) = ((signature >> 8) & 15, (signature >> 4) & 15);
    let number = if family == 6 || family == 15 { ((signature >> 16) & 15) << 4 | low } else { low };
    let family = if family == 15 { family + ((signature >> 20) & 255) } else { family };
    let flags: String = FLAGS
        .iter()
        .filter(|&&(l, register, bit, _)| leaf(l).get(register).is_some_and(|r| r >> bit & 1 != 0))
        .map(|(.., name)| format!(" {name}"))
        .collect();
    let [sizes, ..] = leaf(0x8000_0008);
    let hz = hw::timer::tsc_hz();
    let (mhz, khz) = (hz / 1_000_000, hz / 1000 % 1000);
    let mut out = String::new();
    for i in 0..cpu::count() {
        // Writing to a string does not fail.
        let _ = write!(
            out,
            "processor\t: {i}\nvendor_id\t: {}\ncpu family\t: {family}\nmodel\t\t: {number}\nmodel name\t: {}\n\
             stepping\t: {}\ncpu MHz\t\t: {mhz}.{khz:03}\nphysical id\t: 0\nsiblings\t: {n}\ncore id\t\t: {i}\n\
             cpu cores\t: {n}\nfpu\t\t: yes\nfpu_exception\t: yes\nwp\t\t: yes\nflags\t\t:{flags}\n\
             bogomips\t: {}.{:02}\nclflush size\t: 64\ncache_alignment\t: 64\n\
             address sizes\t: {} bits physical, {} bits virtual\n\n",
            String::from_utf8_lossy(&vendor),
            String::from_utf8_lossy(&model).trim(),
            signature & 15,
            2 * hz / 1_000_000,
            2 * hz / 10_000 % 100,
            sizes & 255,
            sizes >> 8 & 255,
            n = cpu::count(),
        );
    }
    out
}

//! /proc/N: what there is to know about a process and its threads.

use alloc::{boxed::Box, format, string::String, sync::Arc, vec::Vec};
use core::{fmt::Write, sync::atomic::Ordering};

use addr::PAGE_SIZE;
use aspace::Policy;
use linux_raw_sys::general as c;

use super::{
    Result,
    entry::Entry,
    inode::{Kind, Link, Listing, Name, Node, Target},
    open::{OpenFile, access},
    proc::{TICK, Text, number, text, writable},
    proc_frames, proc_memory, proc_numa,
    proc_pages::PageMap,
};
use crate::{
    errno::Errno,
    hw,
    limits::UNLIMITED,
    process::{Mm, Process},
    task::{self, Task},
    usercopy,
};

/// What a file in /proc/N or /proc/N/task/M is about. The thread is that of the directory; None once it has ended.
struct Subject {
    process: Arc<Process>,
    thread: Option<Arc<Task>>,
}

impl Subject {
    /// About a process, or its thread `tid`.
    fn new(process: &Arc<Process>, tid: Option<u32>) -> Self {
        let thread = match tid {
            Some(tid) => thread_of(process, tid),
            None => process.leader(),
        };
        Self { process: process.clone(), thread }
    }
}

type Make = fn(&Subject) -> Result<Text>;

/// The one file that can be written.
const FRAMES: &str = "frames";

const MOUNTS: &[u8] = b"tmpfs / tmpfs rw 0 0\nproc /proc proc rw 0 0\nsysfs /sys sysfs ro 0 0\n";

/// The files of a process, and of each of its threads.
const FILES: &[(&str, Make)] = &[
    ("cmdline", |s| strings(s, 0).map(Text::from)),
    ("comm", |s| comm(s).map(Text::from)),
    ("environ", |s| strings(s, 2).map(Text::from)),
    (FRAMES, |s| Ok(proc_frames::of_process(&s.process, &memory_policy(s)).into_bytes().into())),
    ("limits", |s| limits(s).map(Text::from)),
    ("maps", |s| proc_memory::maps(memory(s).as_deref())),
    ("mounts", |_| Ok(MOUNTS.to_vec().into())),
    ("numa_maps", |s| proc_numa::numa_maps(memory(s).as_deref(), memory_policy(s))),
    ("smaps", |s| proc_memory::smaps(memory(s).as_deref())),
    ("smaps_rollup", |s| proc_memory::rollup(memory(s).as_deref())),
    ("stat", |s| stat(s).map(Text::from)),
    ("statm", |s| Ok(proc_memory::statm(memory(s).as_deref()).into())),
    ("status", |s| status(s).map(Text::from)),
];

/// A link's name, and where it leads.
type ProcessLinkTo = (&'static str, fn(&Process) -> Result<Target>);

/// The links of a process, and of each of its threads.
const LINKS: &[ProcessLinkTo] = &[
    ("cwd", |p| if p.fs.is_left() { Err(Errno::ENOENT) } else { Ok(Target::Entry(p.fs.cwd())) }),
    ("exe", |p| p.mm().map(|mm| Target::Path(mm.exe.clone())).ok_or(Errno::ENOENT)),
    ("root", |p| Ok(Target::Entry(p.fs.root_directory().clone()))),
];

/// /proc/N, or /proc/N/task/M.
pub struct ProcessDirectory {
    process: Arc<Process>,
    /// Which thread, in a directory of a thread.
    tid: Option<u32>,
}

impl ProcessDirectory {
    /// /proc/N for `process`.
    pub fn node(process: Arc<Process>) -> Node {
        Node { kind: Kind::Listing(Box::new(Self { process, tid: None })), mode: 0o555 }
    }
}

fn directory(listing: impl Listing + 'static) -> Node {
    Node { kind: Kind::Listing(Box::new(listing)), mode: 0o555 }
}

impl Listing for ProcessDirectory {
    fn lookup(&self, name: &[u8]) -> Option<Node> {
        let (process, tid) = (self.process.clone(), self.tid);
        if let Some(&(file, make)) = FILES.iter().find(|(n, _)| n.as_bytes() == name) {
            let about = process.clone();
            let node = text(move || make(&Subject::new(&about, tid)));
            if file != FRAMES {
                return Some(node);
            }
            return Some(writable(node, move |bytes| {
                let s = Subject::new(&process, tid);
                proc_frames::set_process(&s.process, &memory_policy(&s), bytes)
            }));
        }
        if let Some(&(_, target)) = LINKS.iter().find(|(n, _)| n.as_bytes() == name) {
            return Some(Node { kind: Kind::Link(Box::new(ProcessLink { process, target })), mode: 0o777 });
        }
        match name {
            b"pagemap" => {
                let thread = Subject::new(&process, tid).thread;
                let mm = thread.and_then(|t| t.mm()).map(|mm| Arc::clone(&*mm));
                Some(Node { kind: Kind::Pages(PageMap::new(mm)), mode: 0o400 })
            }
            b"fd" => Some(directory(Descriptors { process })),
            b"task" if tid.is_none() => Some(directory(Threads { process })),
            _ => None,
        }
    }

    fn names(&self) -> Vec<Name> {
        let files = FILES.iter().map(|(n, _)| (*n, c::DT_REG));
        let links = LINKS.iter().map(|(n, _)| (*n, c::DT_LNK));
        let task = self.tid.is_none().then_some(("task", c::DT_DIR));
        let all = files.chain(links).chain([("fd", c::DT_DIR), ("pagemap", c::DT_REG)]).chain(task);
        (2..)
            .zip(all)
            .map(|(position, (n, kind))| Name { position, name: n.into(), kind: kind as u8 })
            .collect()
    }
}

fn thread_of(process: &Process, tid: u32) -> Option<Arc<Task>> {
    process.threads.lock().iter().find(|t| t.tid() == tid).cloned()
}

fn numbered(numbers: impl Iterator<Item = u32>, kind: u32) -> Vec<Name> {
    let name =
        |n: u32| Name { position: 2 + u64::from(n), name: format!("{n}").into_bytes(), kind: kind as u8 };
    let mut names: Vec<_> = numbers.map(name).collect();
    names.sort_by_key(|n| n.position);
    names
}

/// /proc/N/task.
struct Threads {
    process: Arc<Process>,
}

impl Listing for Threads {
    fn lookup(&self, name: &[u8]) -> Option<Node> {
        let thread = thread_of(&self.process, number(name)?)?;
        Some(directory(ProcessDirectory { process: self.process.clone(), tid: Some(thread.tid()) }))
    }
    fn names(&self) -> Vec<Name> {
        // The list gets its memory before the lock is taken, which turns interrupts off.
        let mut ids = Vec::with_capacity(self.process.threads.lock().len());
        let room = ids.capacity();
        ids.extend(self.process.threads.lock().iter().map(|t| t.tid()).take(room));
        numbered(ids.into_iter(), c::DT_DIR)
    }
}

/// /proc/N/fd.
struct Descriptors {
    process: Arc<Process>,
}

impl Listing for Descriptors {
    fn lookup(&self, name: &[u8]) -> Option<Node> {
        let fd = i32::try_from(number(name)?).ok()?;
        let (reads, writes) = access(self.process.files().get(fd).ok()?.flags());
        let mode = if reads { 0o500 } else { 0 } | if writes { 0o300 } else { 0 };
        Some(Node { kind: Kind::Link(Box::new(DescriptorLink { process: self.process.clone(), fd })), mode })
    }
    fn names(&self) -> Vec<Name> {
        let fds = self.process.files().descriptors();
        numbered(fds.into_iter().filter_map(|fd| u32::try_from(fd).ok()), c::DT_LNK)
    }
}

/// /proc/N/fd/M: leads to the open file itself, whatever it is called.
struct DescriptorLink {
    process: Arc<Process>,
    fd: i32,
}

impl DescriptorLink {
    fn file(&self) -> Result<Arc<OpenFile>> {
        self.process.files().get(self.fd).map_err(|_| Errno::ENOENT)
    }
}

impl Link for DescriptorLink {
    fn text(&self) -> Result<Vec<u8>> {
        self.file()?.entry.path()
    }
    fn follow(&self) -> Result<Target> {
        Ok(Target::Entry(self.file()?.entry.clone()))
    }
}

/// /proc/N/cwd and the like.
struct ProcessLink {
    process: Arc<Process>,
    target: fn(&Process) -> Result<Target>,
}

impl Link for ProcessLink {
    fn text(&self) -> Result<Vec<u8>> {
        Ok(match (self.target)(&self.process)? {
            Target::Path(path) => path,
            Target::Entry(entry) => Entry::path(&entry)?,
        })
    }
    fn follow(&self) -> Result<Target> {
        (self.target)(&self.process)
    }
}

fn comm(s: &Subject) -> Result<Vec<u8>> {
    let mut name = s.thread.as_ref().map(|t| t.comm()).ok_or(Errno::ESRCH)?;
    name.push(b'\n');
    Ok(name)
}

/// The memory of a process that has any.
fn memory(s: &Subject) -> Option<Arc<Mm>> {
    s.thread.as_ref().and_then(|t| t.mm()).map(|mm| Arc::clone(&*mm))
}

/// Where its thread wants memory.
fn memory_policy(s: &Subject) -> Policy {
    s.thread.as_ref().map_or(Policy::DEFAULT, |t| t.memory_policy.get())
}

/// The strings between bounds `which` and `which + 1` of the program's arguments and environment; nothing for a
/// process without memory, as on Linux.
fn strings(s: &Subject, which: usize) -> Result<Vec<u8>> {
    const MOST: u64 = 1 << 20;
    let Some(mm) = memory(s) else { return Ok(Vec::new()) };
    let (start, end) = match (*mm.args.lock(), which) {
        ([start, end, ..], 0) => (start, end),
        ([.., start, end], _) => (start, end),
    };
    let mut bytes = Vec::new();
    let len = end.saturating_sub(start).min(MOST) as usize;
    bytes.try_reserve_exact(len).map_err(|_| Errno::ENOMEM)?;
    bytes.resize(len, 0);
    let copied = task::visit(&mm, || usercopy::copy_in(start, &mut bytes));
    Ok(if copied.is_some_and(|copied| copied.is_ok()) { bytes } else { Vec::new() })
}

/// Pages mapped, and pages in memory.
fn usage(s: &Subject) -> (u64, u64) {
    memory(s).map_or((0, 0), |mm| {
        let u = mm.aspace.usage(&task::unpinned());
        (u.mapped_pages, u.resident_pages)
    })
}

/// The state's letter and word.
fn state(s: &Subject) -> (char, &'static str) {
    if s.process.ended().is_some() || s.thread.is_none() {
        return ('Z', "zombie");
    }
    match &s.thread {
        Some(t) if t.sched.is_parked() => ('S', "sleeping"),
        _ => ('R', "running"),
    }
}

fn stat(s: &Subject) -> Result<Vec<u8>> {
    let p = &s.process;
    let id = s.thread.as_ref().map_or(p.pid, |t| t.tid());
    let mut out = format!("{id} (").into_bytes();
    out.extend(s.thread.as_ref().map(|t| t.comm()).unwrap_or_default());
    let (session, group) = super::tty::owners();
    // Relaxed, here and below: a snapshot.
    let sid = p.sid.load(Ordering::Relaxed);
    let (tty, foreground) = if sid != 0 && sid == session {
        (super::Device::Console.number(), i64::from(group))
    } else {
        (0, -1)
    };
    let (mapped, resident) = usage(s);
    let threads = p.threads.lock().len();
    let ticks = |ns: u64| ns / TICK;
    let cpu = s.thread.as_ref().map_or(0, |t| t.sched.cpu().index());
    let args = memory(s).map_or([0; 4], |mm| *mm.args.lock());
    let ([code, code_end, data, data_end], brk, stack) = memory(s).map_or(([0; 4], 0, 0), |mm| {
        let brk = mm.brk.read(&task::unpinned()).start;
        // Relaxed: set once.
        (*mm.image.lock(), brk, mm.start_stack.load(Ordering::Relaxed))
    });
    let rest = format!(
        ") {} {} {} {sid} {tty} {foreground} 4194304 0 0 0 0 {} 0 {} 0 20 0 {threads} 0 {} {} {resident} {} \
         {code} {code_end} {stack} 0 0 0 0 0 0 0 0 0 {} {cpu} 0 0 0 0 0 {data} {data_end} {brk} {} {} {} {} 0\n",
        state(s).0,
        p.ppid(),
        p.pgid.load(Ordering::Relaxed),
        ticks(p.cpu_ns()),
        ticks(p.children_used().cpu_ns),
        ticks(p.started),
        mapped * PAGE_SIZE,
        UNLIMITED,
        p.exit_signal.load(Ordering::Relaxed),
        args[0],
        args[1],
        args[2],
        args[3],
    );
    out.extend_from_slice(rest.as_bytes());
    Ok(out)
}

fn status(s: &Subject) -> Result<Vec<u8>> {
    let p = &s.process;
    let (letter, word) = state(s);
    let mut out = b"Name:\t".to_vec();
    out.extend(s.thread.as_ref().map(|t| t.comm()).unwrap_or_default());
    let mut text = String::new();
    let id = s.thread.as_ref().map_or(p.pid, |t| t.tid());
    // Writing to a string does not fail.
    let _ = write!(
        text,
        "\nUmask:\t{:04o}\nState:\t{letter} ({word})\nTgid:\t{}\nNgid:\t0\nPid:\t{id}\nPPid:\t{}\nTracerPid:\t0\n\
         Uid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nFDSize:\t{}\nGroups:\t0 \n",
        p.fs.umask(),
        p.pid,
        p.ppid(),
        p.files().descriptors().len().next_multiple_of(64),
    );
    if let Some(mm) = memory(s) {
        text += &proc_memory::status(&mm);
    }
    let _ = writeln!(text, "Threads:\t{}", p.threads.lock().len());
    if let Some(t) = &s.thread {
        let (pending, blocked) = {
            let state = t.signals.lock();
            (state.pending_set().0, state.blocked().0)
        };
        let (words, list) = affinity(t);
        let _ = write!(
            text,
            "SigPnd:\t{pending:016x}\nSigBlk:\t{blocked:016x}\nCpus_allowed:\t{words}\nCpus_allowed_list:\t{list}\n"
        );
    }
    out.extend_from_slice(text.as_bytes());
    Ok(out)
}

/// Where a thread may run: as a mask and as a list.
fn affinity(t: &Task) -> (String, String) {
    let set = t.affinity();
    let mut words: Vec<u32> = set.words().iter().flat_map(|w| [*w as u32, (*w >> 32) as u32]).collect();
    words.truncate(hw::cpu::count().div_ceil(32));
    let mask: Vec<String> = words.iter().rev().map(|w| format!("{w:08x}")).collect();
    (mask.join(","), ranges(set.iter().map(|cpu| cpu.index())))
}

/// Ascending numbers as a list with ranges, as the kernel writes lists of CPUs: `0-3,8`.
pub fn ranges(numbers: impl Iterator<Item = usize>) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for n in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == n => *last = n,
            _ => runs.push((n, n)),
        }
    }
    let run = |&(a, b): &(usize, usize)| if a == b { format!("{a}") } else { format!("{a}-{b}") };
    runs.iter().map(run).collect::<Vec<_>>().join(",")
}

fn limits(s: &Subject) -> Result<Vec<u8>> {
    const NAMES: [(&str, &str); 16] = [
        ("Max cpu time", "seconds"),
        ("Max file size", "bytes"),
        ("Max data size", "bytes"),
        ("Max stack size", "bytes"),
        ("Max core file size", "bytes"),
        ("Max resident set", "bytes"),
        ("Max processes", "processes"),
        ("Max open files", "files"),
        ("Max locked memory", "bytes"),
        ("Max address space", "bytes"),
        ("Max file locks", "locks"),
        ("Max pending signals", "signals"),
        ("Max msgqueue size", "bytes"),
        ("Max nice priority", ""),
        ("Max realtime priority", ""),
        ("Max realtime timeout", "us"),
    ];
    let shown = |n: u64| if n == UNLIMITED { "unlimited".into() } else { format!("{n}") };
    let mut out = format!("{:<26}{:<21}{:<21}{:<10}\n", "Limit", "Soft Limit", "Hard Limit", "Units");
    for (i, (name, unit)) in NAMES.iter().enumerate() {
        if let Some(r) = s.process.limits.get(i) {
            out += &format!("{name:<26}{:<21}{:<21}{unit:<10}\n", shown(r.soft), shown(r.hard));
        }
    }
    Ok(out.into_bytes())
}

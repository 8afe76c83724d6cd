//! By which algorithm a CPU hands out page frames: its default, or what the process that runs there chose.
//!
//! A thread on its way to user mode compares its process's choice with the one that its CPU follows, and changes that if
//! need be. So a change costs something where processes with different choices take turns on a CPU, and nobody else more
//! than a load and a comparison. From a switch of threads in the kernel to the way out, frames come as the thread before
//! wanted them: each algorithm serves whatever is asked of it.
//!
//! The default is kept apart from what is in force. A process whose choice can't be had for lack of memory gets the default,
//! and that counts as following it, so that it isn't tried at each return.
#![allow(unsafe_code)] // says that this thread stays where it is; gives memory to algorithms

use alloc::alloc::alloc;
use core::{
    slice,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};

use frames::{AlgoKind, Frames, SwitchError, SwitchReport};
use percpu::{CpuId, MAX_CPUS, Pinned};

use crate::{
    errno::Errno,
    hw::{cpu, timer},
    memory::frames,
    options, sched, task,
};

/// How long an algorithm that there was no memory for isn't tried again on a CPU, in ns.
const RETRY: u64 = 1_000_000_000;

/// What a process chose; read on each way to user mode, so it has a cache line of its own.
#[repr(align(64))]
#[derive(Default)]
pub struct Choice(AtomicU32);

impl Choice {
    /// An algorithm, or `None` for each CPU's default.
    pub fn get(&self) -> Option<AlgoKind> {
        by_code(self.code())
    }
    /// Choose. It holds on each CPU from the next time that a thread of the process goes to user mode there.
    pub fn set(&self, choice: Option<AlgoKind>) {
        // Relaxed: as in `code`.
        self.0.store(code(choice), Ordering::Relaxed);
    }
    fn code(&self) -> u32 {
        // Relaxed: a wish, from which nothing else follows.
        self.0.load(Ordering::Relaxed)
    }
}

/// A choice as a number, in memory and towards programs: 0 is the default.
pub fn code(choice: Option<AlgoKind>) -> u32 {
    choice.map_or(0, |kind| kind as u32 + 1)
}

fn by_code(code: u32) -> Option<AlgoKind> {
    AlgoKind::ALL.get((code as usize).checked_sub(1)?).copied()
}

/// The choice of this number. EINVAL.
pub fn choice(code: u32) -> Result<Option<AlgoKind>, Errno> {
    if code == 0 { Ok(None) } else { by_code(code).map(Some).ok_or(Errno::EINVAL) }
}

/// What a choice is called.
pub fn name(choice: Option<AlgoKind>) -> &'static str {
    choice.map_or("default", AlgoKind::name)
}

/// The choice of this name. EINVAL.
pub fn by_name(text: &str) -> Result<Option<AlgoKind>, Errno> {
    if text == name(None) { Ok(None) } else { AlgoKind::from_name(text).map(Some).ok_or(Errno::EINVAL) }
}

/// One CPU. But for `switching` only it writes here.
#[repr(align(128))]
struct Own {
    /// The code of the choice that it follows.
    followed: AtomicU32,
    /// The algorithm for processes that chose none, by its code; 0: nothing was said yet, so rows.
    default: AtomicU32,
    /// When there was no memory for an algorithm, in ns since boot; 0: never.
    refused: AtomicU64,
    /// Somebody is about to change the default.
    switching: AtomicBool,
}

// Relaxed everywhere here: words of one CPU, whose threads follow each other by way of its scheduler; others want a number.
const OWN: Ordering = Ordering::Relaxed;

static CPUS: [Own; MAX_CPUS] = [const {
    Own {
        followed: AtomicU32::new(0),
        default: AtomicU32::new(0),
        refused: AtomicU64::new(0),
        switching: AtomicBool::new(false),
    }
}; MAX_CPUS];

fn own() -> &'static Own {
    &CPUS[cpu::id().index()]
}

fn here() -> Pinned<'static> {
    // SAFETY: a thread in the kernel isn't preempted, the callers are no interrupt handlers, and none sleeps meanwhile.
    unsafe { Pinned::assume(cpu::id()) }
}

/// A CPU's algorithm for processes that chose none.
pub fn default_of(cpu: CpuId) -> AlgoKind {
    by_code(CPUS[cpu.index()].default.load(OWN)).unwrap_or_default()
}

/// Whether this CPU follows the choice of the calling thread's process.
#[inline]
pub fn is_followed() -> bool {
    own().followed.load(OWN) == task::current().process.frames.code()
}

/// Make it so. On the way to user mode, interrupts on.
pub fn follow() {
    let wanted = task::current().process.frames.code();
    let kind = by_code(wanted).filter(|kind| is_to_be_had(*kind));
    let kind = kind.unwrap_or_else(|| default_of(cpu::id()));
    frames().allocator().use_algo(&here(), kind);
    own().followed.store(wanted, OWN);
}

/// Whether `kind` is open on this CPU, or can be opened.
fn is_to_be_had(kind: AlgoKind) -> bool {
    if frames().allocator().is_open(&here(), kind) {
        return true;
    }
    let (refused, now) = (own().refused.load(OWN), timer::now());
    if refused != 0 && now.saturating_sub(refused) < RETRY {
        return false;
    }
    let opened = open(kind).is_ok();
    if !opened {
        own().refused.store(now, OWN);
    }
    opened
}

/// Make `kind` available on this CPU, with memory of the kernel's heap if it needs some. Interrupts are on.
///
/// Errors: `NoMemory`.
pub fn open(kind: AlgoKind) -> Result<(), SwitchError> {
    let allocator = frames().allocator();
    if allocator.is_open(&here(), kind) {
        return Ok(());
    }
    // It is kept for ever, so it isn't taken from the reserve.
    if frames().low() {
        return Err(SwitchError::NoMemory);
    }
    let layout = Frames::lane_layout(kind);
    // SAFETY: an algorithm's layout isn't empty, if it isn't open already.
    let memory = unsafe { alloc(layout) };
    if memory.is_null() {
        return Err(SwitchError::NoMemory);
    }
    // SAFETY: fresh memory of this layout, which is never given back; what is in it doesn't matter to an algorithm, and
    // is made defined first.
    let memory = unsafe {
        memory.write_bytes(0, layout.size());
        slice::from_raw_parts_mut(memory, layout.size())
    };
    allocator.open_lane(&here(), kind, memory)
}

/// Make `kind` this CPU's default; what that moved, and how long it took, in ns. Interrupts are on.
///
/// Errors: `NoMemory`.
fn set_default(kind: AlgoKind) -> Result<(SwitchReport, u64), SwitchError> {
    open(kind)?;
    let (allocator, own) = (frames().allocator(), own());
    // The report is about the two defaults, whatever is in force for the calling process.
    allocator.use_algo(&here(), default_of(cpu::id()));
    let start = timer::now();
    let report = allocator.set_algo(&here(), kind, None)?;
    let ns = timer::now().saturating_sub(start);
    own.default.store(code(Some(kind)), OWN);
    own.followed.store(code(None), OWN);
    cpu::ask();
    Ok((report, ns))
}

/// Make `kind` the default of `cpu`, which runs. The calling thread goes there for it, so it must hold nothing.
///
/// Errors: ENOMEM; EBUSY if another thread is about to do that on the same CPU.
pub fn switch(cpu: CpuId, kind: AlgoKind) -> Result<(SwitchReport, u64), Errno> {
    let switching = &CPUS[cpu.index()].switching;
    // Relaxed, both: it keeps others from waiting in line here, and guards nothing; all that is done is done on one CPU.
    if switching.swap(true, Ordering::Relaxed) {
        return Err(Errno::EBUSY);
    }
    let result = sched::on_cpu(cpu, || set_default(kind));
    switching.store(false, Ordering::Relaxed);
    result.map_err(|_| Errno::ENOMEM)
}

/// Let the calling thread's process choose. The algorithm is opened where the thread runs; elsewhere when it gets there.
///
/// Errors: ENOMEM; the choice is what it was.
pub fn choose(choice: Option<AlgoKind>) -> Result<(), Errno> {
    if let Some(kind) = choice {
        open(kind).map_err(|_| Errno::ENOMEM)?;
    }
    let process = &task::current().process;
    process.frames.set(choice);
    // Threads in user mode elsewhere come by here, and follow, if they are interrupted.
    process.threads.lock().iter().for_each(|thread| sched::kick(thread));
    Ok(())
}

/// A CPU begins: it takes the algorithm that the command line names.
pub fn begin() {
    if let Some(kind) = options::get().frames
        && let Err(error) = set_default(kind)
    {
        crate::log!("frames={}: {error}", kind.name());
    }
}

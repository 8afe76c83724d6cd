//! Names for memory: what lies where, for a driver that has the addresses at which cache lines moved and wants to tell a
//! person what they are (`cargo quire trace`).
//!
//! Nothing is noted unless the command line says `places=1`: objects are noted when they are made, in room that is set
//! aside at boot, so that a run that is counted pays a few stores for each thread and process and nothing else. At the
//! end all of it is written as records (`cli/src/record.rs` has their form). An object that has gone keeps its entry:
//! its addresses may by then be another's, so several names may stand for one range, and the last is the newest.

use alloc::{format, string::String, sync::Arc, vec::Vec};
use core::{
    fmt::Write,
    ops::Range,
    ptr,
    sync::atomic::{AtomicBool, Ordering},
};

use crate::{
    hw::{self, irq},
    memory, options,
    process::{Mm, Process},
    sched, shootdown, stats, supervisor,
    task::Task,
    timers,
};

/// A named range of virtual addresses.
pub struct Place {
    /// First byte, and first byte after.
    at: Range<usize>,
    /// Bytes of each CPU's part, or 0 if it isn't divided among them.
    stride: usize,
    what: &'static str,
    /// The id of the process or thread that it belongs to; 0 if it belongs to none.
    id: u32,
    /// Which part of it.
    part: &'static str,
}

impl Place {
    /// A table with an element for each CPU.
    pub fn per_cpu<T>(what: &'static str, table: &'static [T]) -> Self {
        Self::divided(what, span(table), size_of::<T>())
    }

    /// Something of which `stride` bytes belong to each CPU, or all of it to all if that is 0.
    pub fn divided(what: &'static str, at: Range<usize>, stride: usize) -> Self {
        Self { stride, ..Self::named(what, at) }
    }

    /// Something that belongs to the kernel as a whole.
    pub fn named(what: &'static str, at: Range<usize>) -> Self {
        Self { at, stride: 0, what, id: 0, part: "" }
    }

    /// `START END STRIDE NAME`, numbers in hexadecimal.
    fn text(&self) -> String {
        let Self { at, stride, what, id, part } = self;
        let mut text = format!("place {:x} {:x} {stride:x} {what}", at.start, at.end);
        // Writing to a String cannot fail.
        if *id != 0 {
            let _ = write!(text, " {id}");
        }
        if !part.is_empty() {
            let _ = write!(text, ": {part}");
        }
        text
    }
}

/// The addresses of a value.
pub fn span<T: ?Sized>(value: &T) -> Range<usize> {
    let start = ptr::from_ref(value).addr();
    start..start + size_of_val(value)
}

/// The addresses of the two counts of references that an `Arc` keeps before its value. Where they are is the library's
/// affair; if it moves them, a name is missing and nothing else.
fn counts<T: ?Sized>(value: &Arc<T>) -> Range<usize> {
    const COUNTS: usize = 2 * size_of::<usize>();
    let start = Arc::as_ptr(value).cast::<u8>().addr() - COUNTS.max(align_of_val(&**value));
    start..start + COUNTS
}

/// A program's file in memory.
struct ProgramPlace {
    /// Added to the file's addresses.
    bias: u64,
    /// First byte after it.
    end: u64,
    path: Vec<u8>,
}

struct Noted {
    places: Vec<Place>,
    programs: Vec<ProgramPlace>,
}

static NOTED: irq::Lock<Noted> = irq::Lock::new(Noted { places: Vec::new(), programs: Vec::new() });
/// Whether names are wanted; every other CPU only reads it.
static WANTED: AtomicBool = AtomicBool::new(false);
/// At most so many objects are noted; later ones have no name.
const MOST: usize = 8192;
/// And so many programs.
const MOST_PROGRAMS: usize = 64;

/// Make room, if names are wanted. At boot.
pub fn init() {
    if options::get().places {
        let mut noted = NOTED.lock();
        noted.places.reserve_exact(MOST);
        noted.programs.reserve_exact(MOST_PROGRAMS);
        // Relaxed: there is no other CPU yet.
        WANTED.store(true, Ordering::Relaxed);
    }
}

/// Whether names are wanted.
pub fn wanted() -> bool {
    // Relaxed: written at boot.
    WANTED.load(Ordering::Relaxed)
}

/// Note the places that `list` gives to its argument, if names are wanted and there is room.
fn note(list: impl FnOnce(&mut dyn FnMut(Place))) {
    if !wanted() {
        return;
    }
    let mut noted = NOTED.lock();
    let places = &mut noted.places;
    list(&mut |place| {
        if places.len() < places.capacity() {
            places.push(place);
        }
    });
}

/// Note a slab of the kernel's heap. Not while others are being noted, or written: those may be what wants it.
pub fn slab(at: Range<usize>) {
    if wanted()
        && let Some(mut noted) = NOTED.try_lock()
        && noted.places.len() < noted.places.capacity()
    {
        noted.places.push(Place::named("kernel heap", at));
    }
}

/// Note a thread: itself and its kernel stack.
pub fn thread(task: &Arc<Task>) {
    note(|add| {
        let id = task.tid();
        add(Place { id, ..Place::named("thread", span(&**task)) });
        add(Place { id, part: "references", ..Place::named("thread", counts(task)) });
        add(Place { id, part: "scheduling", ..Place::named("thread", span(&task.sched)) });
        add(Place { id, ..Place::named("kernel stack of thread", task.thread.stack_span()) });
        if let Some(handle) = task.mm() {
            add(Place { id, part: "handle of its memory", ..Place::named("thread", counts(&handle)) });
        }
    });
}

/// Note a process.
pub fn process(process: &Arc<Process>) {
    note(|add| {
        let id = process.pid;
        let mut part = |part, at| add(Place { id, part, ..Place::named("process", at) });
        part("", span(&**process));
        part("references", counts(process));
        part("signals", span(&process.signals));
        part("threads", span(&process.threads));
        part("children", span(&process.children));
    });
}

/// Note the memory of the process `pid`.
pub fn memory(pid: u32, mm: &Arc<Mm>) {
    note(|add| {
        let mut mine = |what, part, at| add(Place { id: pid, part, ..Place::named(what, at) });
        mine("memory of PID", "", span(&**mm));
        mine("memory of PID", "references", counts(mm));
        mine("memory of PID", "heap lock", span(&mm.brk));
        mine("address space of PID", "references", counts(&mm.aspace));
        mm.aspace.places(&mut |part, at| mine("address space of PID", part, at));
    });
}

/// Note a range of a program's own memory.
pub fn user(what: &'static str, at: Range<u64>) {
    let at = at.start as usize..at.end as usize;
    if !at.is_empty() {
        note(|add| add(Place::named(what, at)));
    }
}

/// Note the program at `path`, whose file lies `bias` bytes above its own addresses, up to `end`.
pub fn program(path: &[u8], bias: u64, end: u64) {
    if !wanted() {
        return;
    }
    let mut noted = NOTED.lock();
    let programs = &mut noted.programs;
    let known = programs.iter().any(|p| p.bias == bias && p.path == path);
    if !known && programs.len() < programs.capacity() {
        programs.push(ProgramPlace { bias, end, path: path.to_vec() });
    }
}

/// Write all of it, and what the kernel has from boot on, as records. At the end.
pub fn write() {
    if !wanted() {
        return;
    }
    let mut add = |place: Place| supervisor::record(&place.text());
    [stats::place(), timers::place(), hw::cpu::place(), hw::thread::place()].into_iter().for_each(&mut add);
    sched::places().into_iter().chain(shootdown::places()).for_each(&mut add);
    hw::paging::places().into_iter().for_each(&mut add);
    memory::places(&mut add);
    let noted = NOTED.lock();
    for place in &noted.places {
        add(Place { at: place.at.clone(), ..*place });
    }
    for ProgramPlace { bias, end, path } in &noted.programs {
        supervisor::record(&format!("program {bias:x} {end:x} {}", String::from_utf8_lossy(path)));
    }
}

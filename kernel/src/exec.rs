//! `execve`: replace a process's program.
//!
//! Up to the point of no return everything is checked and read while the old program is intact, so most errors come
//! back as an errno. After it the old memory is gone; an error there kills the process, as on Linux.

use alloc::{borrow::ToOwned, sync::Arc, vec, vec::Vec};
use core::sync::atomic::Ordering;

use addr::{PAGE_SIZE, Page, Prot, USER_END};
use aspace::{AddressSpace, Error, Flags, Label, Machine, Mapping, Placement, Radix, Serial};
use linux_raw_sys::{auxvec, general as abi};

use crate::{
    elf::{Failure, INTERPRETER_BASE, Image, PIE_BASE, Placed},
    errno::Errno,
    file::{self, Claim, FsInfo},
    hw::{self, TrapFrame},
    ids,
    limits::RLIMIT_STACK,
    memory,
    options::{self, Design},
    places,
    process::{self, Brk, Mm, Process, Status},
    realm, sched, shootdown,
    syscall::managed,
    task::{self, Task},
    usercopy, vdso,
};

/// First byte after the stack.
const STACK_TOP: u64 = USER_END;
/// The largest stack by which the room for arguments is reckoned, whatever the limit says, in bytes.
const STACK_MAX: u64 = 64 << 20;
/// How much of the stack is mapped below the arguments at first, in bytes.
const STACK_AHEAD: u64 = 128 << 10;
/// How many scripts may stand before the program, as on Linux.
const SCRIPTS: usize = 5;
/// What is read of a file to see whether it is a script, in bytes; a script's first line ends within it.
const SCRIPT_LINE: usize = 256;
/// Arguments and environment together, with their pointers, in bytes: a quarter of the default stack, as on Linux.
pub const MAX_ARGS: usize = 2 << 20;

/// What to run.
pub struct Program {
    /// Path as given.
    pub path: Vec<u8>,
    /// Arguments, the program's name first.
    pub argv: Vec<Vec<u8>>,
    /// Environment.
    pub envp: Vec<Vec<u8>>,
}

/// A program that was found and checked.
struct Found {
    image: Image,
    interpreter: Option<Image>,
    /// Nobody writes the program while it runs.
    running: Claim,
    /// Nor its interpreter while that is being loaded.
    _loading: Option<Claim>,
    exe: Vec<u8>,
    argv: Vec<Vec<u8>>,
    envp: Vec<Vec<u8>>,
    given: Vec<u8>,
}

impl Found {
    /// What the strings on the new stack take, in bytes.
    fn string_bytes(&self) -> u64 {
        let all = self.argv.iter().chain(&self.envp).chain([&self.given]);
        8 + all.map(|s| s.len() as u64 + 1).sum::<u64>()
    }
}

impl Program {
    /// Find the file, follow `#!` lines (at most five, as Linux), check the headers.
    fn find(self, fs: &FsInfo) -> Result<Found, Errno> {
        let Program { path, mut argv, envp } = self;
        let mut file = path.clone();
        for _ in 0..=SCRIPTS {
            let entry = file::open_exec(&file, fs)?;
            let running = entry.inode.claim_running()?;
            let mut head = [0u8; SCRIPT_LINE];
            entry.read_at(0, &mut head)?;
            if let Some(line) = head.strip_prefix(b"#!") {
                let (program, argument) = script_line(line)?;
                if program.is_empty() {
                    // Linux opens the working directory then.
                    return Err(Errno::EACCES);
                }
                let rest = argv.split_off(argv.len().min(1));
                argv = vec![program.clone()];
                argv.extend(argument);
                argv.push(file);
                argv.extend(rest);
                file = program;
                continue;
            }
            let exe = entry.path().unwrap_or_else(|_| file.clone());
            let image = Image::read(entry)?;
            let (interpreter, loading) = match &image.interpreter {
                // As with scripts.
                Some(p) if p.is_empty() => return Err(Errno::EACCES),
                Some(p) => {
                    let entry = file::open_exec(p, fs)?;
                    let loading = entry.inode.claim_running()?;
                    (Some(Image::read_interpreter(entry)?), Some(loading))
                }
                None => (None, None),
            };
            return Ok(Found {
                image,
                interpreter,
                running,
                _loading: loading,
                exe,
                argv,
                envp,
                given: path,
            });
        }
        Err(Errno::ELOOP)
    }
}

/// The interpreter and its one optional argument, from what follows `#!` in a file's first bytes, which zeros follow if
/// the file is shorter. A line without an end will do if the interpreter's name has one. ENOEXEC if there is no name.
fn script_line(rest: &[u8]) -> Result<(Vec<u8>, Option<Vec<u8>>), Errno> {
    let blank = |b: &u8| *b == b' ' || *b == b'\t';
    let stop = |b: &u8| blank(b) || *b == 0;
    let line = match rest.iter().position(|b| *b == b'\n') {
        Some(end) => rest.get(..end),
        None => {
            let begun = rest.iter().position(|b| !blank(b)).ok_or(Errno::ENOEXEC)?;
            rest.iter().skip(begun).position(stop).ok_or(Errno::ENOEXEC)?;
            rest.get(..rest.len() - 1)
        }
    };
    let line = line.unwrap_or_default();
    let line =
        line.get(..line.iter().rposition(|b| !blank(b)).map_or(0, |last| last + 1)).unwrap_or_default();
    let from = line.iter().position(|b| !blank(b)).ok_or(Errno::ENOEXEC)?;
    let line = line.get(from..).unwrap_or_default();
    let (program, rest) = line.split_at(line.iter().position(stop).unwrap_or(line.len()));
    // A NUL ends the line.
    let rest = rest.split(|b| *b == 0).next().unwrap_or_default();
    let argument = rest.iter().position(|b| !blank(b)).and_then(|from| rest.get(from..));
    Ok((program.to_owned(), argument.map(<[u8]>::to_owned)))
}

/// An empty address space of the design chosen at boot.
pub fn new_space() -> Result<Arc<dyn AddressSpace>, Errno> {
    let machine = Machine {
        frames: memory::frames(),
        shootdown: &shootdown::Ipi,
        kernel_root: Some(hw::paging::kernel_root()),
    };
    let ctx = &task::unpinned();
    let options = options::get();
    let space: Result<Arc<dyn AddressSpace>, Error> = match realm::get() {
        Some(realm) if options.design == Design::Bonsai => {
            Serial::bonsai(machine, realm, options.exclude, ctx).map(|space| space as _)
        }
        Some(realm) => Radix::new(machine, realm, realm::tables(), ctx).map(|space| space as _),
        None => Serial::locked(machine, hw::cpu::count(), options.variant, ctx).map(|space| space as _),
    };
    space.map_err(|_| Errno::ENOMEM)
}

/// Note where the program at `exe`, which `task` now executes, and its memory lie.
fn note(task: &Arc<Task>, exe: &[u8], layout: &Layout) {
    let Some(mm) = task.mm() else { return };
    places::memory(task.process.pid, &mm);
    places::program(exe, layout.program.bias, layout.program.end);
    places::user("stack", STACK_TOP - stack_bytes(&task.process)..STACK_TOP);
    places::user("vDSO", layout.vdso..layout.vdso + PAGE_SIZE);
}

/// Map a found program into an empty address space.
fn build(found: &Found, space: &dyn AddressSpace, stack: u64) -> Result<Layout, Failure> {
    let program = found.image.map(space, PIE_BASE)?;
    let interpreter = match &found.interpreter {
        Some(i) => Some(i.map(space, INTERPRETER_BASE)?),
        None => None,
    };
    let mut prot = Prot::READ | Prot::WRITE;
    prot.set(Prot::EXEC, found.image.executable_stack);
    let mapping = Mapping { label: Label::Stack, flags: Flags::GROWS_DOWN, ..Mapping::anonymous(prot) };
    // What the arguments take, and Linux's 128 KiB below them; the rest comes as it is used.
    let pages = (found.string_bytes().div_ceil(PAGE_SIZE) + STACK_AHEAD / PAGE_SIZE).min(stack / PAGE_SIZE);
    let start = Page::new(STACK_TOP / PAGE_SIZE - pages).ok_or(Failure::Unsound)?;
    space.map(Placement::FixedNoReplace(start), pages, mapping, &task::unpinned())?;
    let vdso = vdso::map(space, &task::unpinned()).map_err(|_| Failure::NoMemory)?;
    Ok(Layout { program, interpreter, vdso })
}

struct Layout {
    program: Placed,
    interpreter: Option<Placed>,
    vdso: u64,
}

/// Write arguments, environment and auxiliary vector on the new stack (System V ABI, AMD64, figure 3.9). The calling
/// task runs in the new address space. Gives the stack pointer and the bounds of arguments and environment.
fn write_stack(found: &Found, layout: &Layout) -> Result<(u64, [u64; 4]), Errno> {
    let mut sp = STACK_TOP - 8;
    let push_str = |sp: &mut u64, s: &[u8]| -> Result<u64, Errno> {
        *sp -= s.len() as u64 + 1;
        usercopy::copy_out(*sp, s)?;
        usercopy::write(*sp + s.len() as u64, &0u8)?;
        Ok(*sp)
    };
    let push_all = |sp: &mut u64, list: &[Vec<u8>]| -> Result<u64, Errno> {
        list.iter().rev().try_for_each(|s| push_str(sp, s).map(drop))?;
        Ok(*sp)
    };
    let name = push_str(&mut sp, &found.given)?;
    let env_end = sp;
    let arg_end = push_all(&mut sp, &found.envp)?;
    let arg_start = push_all(&mut sp, &found.argv)?;
    let platform = push_str(&mut sp, b"x86_64")?;
    sp = (sp - 16) & !15;
    let random = sp;
    let mut bytes = [0u8; 16];
    file::random_bytes(&mut bytes);
    usercopy::copy_out(random, &bytes)?;
    let p = &layout.program;
    let aux = [
        (auxvec::AT_SYSINFO_EHDR, layout.vdso),
        (auxvec::AT_HWCAP, hw::cpu::feature_word().into()),
        (auxvec::AT_PAGESZ, PAGE_SIZE),
        (auxvec::AT_CLKTCK, 100),
        (auxvec::AT_PHDR, p.headers),
        (auxvec::AT_PHENT, 56),
        (auxvec::AT_PHNUM, p.header_count),
        (auxvec::AT_BASE, layout.interpreter.as_ref().map_or(0, |i| i.bias)),
        (auxvec::AT_FLAGS, 0),
        (auxvec::AT_ENTRY, p.entry),
        (auxvec::AT_UID, 0),
        (auxvec::AT_EUID, 0),
        (auxvec::AT_GID, 0),
        (auxvec::AT_EGID, 0),
        (auxvec::AT_SECURE, 0),
        (auxvec::AT_RANDOM, random),
        (auxvec::AT_HWCAP2, 0),
        (auxvec::AT_EXECFN, name),
        (auxvec::AT_PLATFORM, platform),
        (auxvec::AT_MINSIGSTKSZ, hw::fpu::signal_stack_bytes() as u64),
        (managed::AT_QUIRE, vdso::info_at(layout.vdso)),
        (auxvec::AT_NULL, 0),
    ];
    let (argc, envc) = (found.argv.len(), found.envp.len());
    sp = (sp - 8 * (argc + envc + 3 + 2 * aux.len()) as u64) & !15;
    let words = core::iter::once(argc as u64)
        .chain(addresses(arg_start, &found.argv))
        .chain(addresses(arg_end, &found.envp))
        .chain(aux.into_iter().flat_map(|(key, value)| [key.into(), value]));
    for (at, word) in (sp..).step_by(8).zip(words) {
        usercopy::write(at, &word)?;
    }
    Ok((sp, [arg_start, arg_end, arg_end, env_end]))
}

/// Where each of `list` is if they lie end to end from `start` on, and a null pointer.
fn addresses(start: u64, list: &[Vec<u8>]) -> impl Iterator<Item = u64> {
    let each = list.iter().scan(start, |next, s| {
        let at = *next;
        *next += s.len() as u64 + 1;
        Some(at)
    });
    each.chain([0])
}

fn entry_frame(layout: &Layout, sp: u64) -> TrapFrame {
    let rip = layout.interpreter.as_ref().map_or(layout.program.entry, |i| i.entry);
    TrapFrame::user(rip, sp)
}

fn stack_bytes(p: &Process) -> u64 {
    let soft = p.limits.soft(RLIMIT_STACK);
    soft.clamp(128 << 10, STACK_MAX) / PAGE_SIZE * PAGE_SIZE
}

/// The system call: on success the caller's registers are those of the new program.
pub fn execve(program: Program, frame: &mut TrapFrame) -> Result<(), Errno> {
    let me = task::current().arc();
    let p = me.process.clone();
    let comm = program.path.clone();
    let found = program.find(&p.fs)?;
    let stack = stack_bytes(&p);
    let args: usize = found.argv.iter().chain(&found.envp).map(|s| s.len() + 9).sum();
    if args as u64 > stack / 4 {
        return Err(Errno::E2BIG);
    }
    let space = new_space()?;
    let layout = match build(&found, &*space, stack) {
        Ok(l) => l,
        Err(failure) => {
            space.clear(&task::unpinned());
            if failure == Failure::Unsound {
                process::group_exit(Status::killed(abi::SIGSEGV));
            }
            return Err(Errno::ENOMEM);
        }
    };
    if process::end_other_threads().is_err() {
        // The process is ending; this thread goes with it.
        space.clear(&task::unpinned());
        return Err(Errno::EINTR);
    }
    // The point of no return. No thread is left that could share the descriptors anew.
    if let Err(e) = p.unshare_files() {
        space.clear(&task::unpinned());
        process::group_exit(Status::killed(abi::SIGSEGV));
        return Err(e);
    }
    let heap = layout.program.end.div_ceil(PAGE_SIZE) * PAGE_SIZE;
    let mm = Mm::new(
        space,
        found.exe.clone(),
        Some(found.running.clone()),
        Brk { start: heap, end: heap },
        [0; 4],
    );
    *mm.image.lock() = layout.program.image;
    crate::futex::exit_robust_list(&me);
    let old = me.set_mm(Some(mm.clone()));
    sched::reload_space();
    if let Some(old) = old {
        p.note_peak(&old);
        old.leave();
    }
    p.release_vfork();
    // Relaxed: the process's own thread writes, and it is read when that has ended.
    p.exit_signal.store(abi::SIGCHLD, Ordering::Relaxed);
    let filled = layout.program.clear_tails().and_then(|()| match &layout.interpreter {
        Some(i) => i.clear_tails(),
        None => Ok(()),
    });
    let (sp, bounds) = match filled.and_then(|()| write_stack(&found, &layout)) {
        Ok(x) => x,
        Err(e) => {
            process::group_exit(Status::killed(abi::SIGSEGV));
            return Err(e);
        }
    };
    *mm.args.lock() = bounds;
    // Relaxed: for reports.
    mm.start_stack.store(sp, Ordering::Relaxed);
    note(&me, &found.exe, &layout);
    me.set_comm(&comm);
    p.signals.lock().exec();
    p.timers.clear();
    me.signals.lock().exec();
    // Relaxed: these words belong to the thread.
    me.clear_child_tid.store(0, Ordering::Relaxed);
    me.robust_list.store(0, Ordering::Relaxed);
    me.rseq.clear();
    me.upcall.clear();
    p.has_execed.store(true, Ordering::Relaxed);
    p.files().exec();
    me.thread.reset_state();
    *frame = entry_frame(&layout, sp);
    Ok(())
}

/// The first program: a process of its own under `parent`, its first thread started. For the supervisor's thread.
pub fn spawn_first(program: Program, parent: &Arc<Process>) -> Result<Arc<Process>, Errno> {
    let id = ids::new_id()?;
    let pid = id.number();
    let p = Process::new(pid, Arc::downgrade(parent), parent.fork_files()?, parent.fs.fork());
    let found = program.find(&p.fs)?;
    let space = new_space()?;
    let layout = match build(&found, &*space, stack_bytes(&p)) {
        Ok(l) => l,
        Err(failure) => {
            space.clear(&task::unpinned());
            return Err(if failure == Failure::Unsound { Errno::ENOEXEC } else { Errno::ENOMEM });
        }
    };
    let heap = layout.program.end.div_ceil(PAGE_SIZE) * PAGE_SIZE;
    let mm = Mm::new(
        space,
        found.exe.clone(),
        Some(found.running.clone()),
        Brk { start: heap, end: heap },
        [0; 4],
    );
    *mm.image.lock() = layout.program.image;
    // The supervisor borrows the new address space to fill the stack, before there is a thread.
    let me = task::current();
    me.set_mm(Some(mm.clone()));
    sched::reload_space();
    let filled = layout.program.clear_tails().and_then(|()| match &layout.interpreter {
        Some(i) => i.clear_tails(),
        None => Ok(()),
    });
    let stack = filled.and_then(|()| write_stack(&found, &layout));
    me.set_mm(None);
    let (sp, bounds) = match stack {
        Ok(x) => x,
        Err(e) => {
            mm.leave();
            return Err(e);
        }
    };
    *mm.args.lock() = bounds;
    // Relaxed: for reports.
    mm.start_stack.store(sp, Ordering::Relaxed);
    let frame = entry_frame(&layout, sp);
    let task = Task::user(pid, p.clone(), mm, &frame, 0, false)?;
    task.set_comm(&found.given);
    process::register(&p, &task, None);
    places::process(&p);
    note(&task, &found.exe, &layout);
    hw::marker::run_begin();
    sched::start(task);
    Ok(p)
}

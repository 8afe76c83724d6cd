//! QEMU's callbacks, and the state behind them.
//!
//! # Phases
//! At first blocks are counted, which suffices for the quantum and costs little. The first marker that opens something
//! makes QEMU forget all translations; from then on instructions are counted one by one, also those of a block that a
//! fault cuts short, and each access to memory calls back. The kernel's marker for the first program comes early enough
//! for windows to be complete; without one, the first window misses what is executed until QEMU has come to it, and
//! the report says so.
//!
//! # One host thread
//! All callbacks come from the thread that runs the virtual CPUs, but two: `qemu_plugin_install`, before that thread
//! exists, and the last one, when it has stopped or from itself. So the state has no lock. [`on_block`] checks it.

use std::{
    cell::UnsafeCell,
    ffi::{CStr, c_char, c_int, c_uint, c_void},
    path::Path,
    ptr,
};

use crate::{
    counts::{Ledger, Mode},
    icr,
    lines::{self, Access, By, Lines, MAX_CPUS},
    marker::{self, Marker},
    options::{Options, Windows},
    places::{self, Place, STACK},
    profile::Profile,
    qemu::{self, Api, Block, Cpu, Id, Info},
    report::{self, Seen},
    turn::Turn,
};

/// How far the tracer sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Blocks only.
    Blocks,
    /// QEMU was asked to translate anew.
    Asked,
    /// Instructions and accesses.
    All,
}

struct Tracer {
    id: Id,
    api: Api,
    options: Options,
    phase: Phase,
    /// Whether every window was seen from its beginning.
    complete: bool,
    turn: Turn,
    ledger: Ledger,
    lines: Lines,
    profile: Profile,
    /// QEMU's handle of each CPU, once it was needed.
    cpus: Vec<*mut Cpu>,
    /// The virtual address that each CPU accessed last, if places need it.
    accessed: Vec<u64>,
    /// The CPU whose blocks are executed.
    running: Option<u32>,
    /// What of [`EXECUTED`] has been credited to a CPU.
    credited: [u64; 3],
    /// Accesses to memory since the last credit.
    accesses: u64,
    /// And to a block, user mode's and the kernel's together.
    profiled: u64,
    /// Tells the host thread that runs the CPUs from others.
    thread: Option<usize>,
}

struct Shared<T>(UnsafeCell<T>);
// SAFETY: used by one thread at a time, as the module says.
unsafe impl<T> Sync for Shared<T> {}

static TRACER: Shared<Option<Tracer>> = Shared(UnsafeCell::new(None));
/// Instructions executed by all CPUs, by [`Mode`]. Translated code adds to them.
static EXECUTED: Shared<[u64; 3]> = Shared(UnsafeCell::new([0; 3]));

/// Run `f` on the state; nothing before the installation.
fn with(f: impl FnOnce(&mut Tracer)) {
    // SAFETY: one thread at a time, as the module says; no function of QEMU's that `f` calls calls back at once.
    if let Some(tracer) = unsafe { &mut *TRACER.0.get() } {
        f(tracer);
    }
}

/// A line for the driver, which shows it if the emulator ends without a result.
fn complain(what: &str) {
    eprintln!("quire-tracer: {what}");
}

/// Called by QEMU when it loads the plugin: 0 if all is well.
///
/// # Safety
/// `info` and `arguments` are as QEMU's interface has them.
#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_plugin_install(
    id: Id,
    info: *const Info,
    count: c_int,
    arguments: *const *const c_char,
) -> c_int {
    let words = (0..usize::try_from(count).unwrap_or(0)).map(|i| {
        // SAFETY: QEMU's, each a string that ends in 0.
        unsafe { CStr::from_ptr(*arguments.add(i)) }.to_str().unwrap_or("")
    });
    // SAFETY: QEMU's, alive during the call.
    match install(id, unsafe { &*info }, words) {
        Ok(()) => 0,
        Err(why) => {
            complain(&why);
            1
        }
    }
}

fn install<'a>(id: Id, info: &Info, words: impl Iterator<Item = &'a str>) -> Result<(), String> {
    let options = Options::parse(words)?;
    let cpus = info.cpus().ok_or("this is not a machine of x86-64")?;
    if cpus as usize > MAX_CPUS {
        return Err(format!("{cpus} CPUs are more than {MAX_CPUS}"));
    }
    let api = Api::find().map_err(|name| {
        let name = name.to_string_lossy();
        format!("this QEMU has no {name}, which the exact machine needs; QEMU 7.2 has it")
    })?;
    let tracer = Tracer {
        id,
        api,
        phase: Phase::Blocks,
        complete: true,
        turn: Turn::new(options.outside),
        ledger: Ledger::new(cpus),
        lines: Lines::new(options.window_lines),
        profile: Profile::new(),
        cpus: vec![ptr::null_mut(); cpus as usize],
        accessed: vec![0; cpus as usize],
        running: None,
        credited: [0; 3],
        accesses: 0,
        profiled: 0,
        thread: None,
        options,
    };
    tracer.register();
    // SAFETY: no callback has come yet.
    unsafe { *TRACER.0.get() = Some(tracer) };
    Ok(())
}

extern "C" fn on_exit(_: Id, _: *mut c_void) {
    with(|tracer| {
        tracer.credit();
        tracer.lines.end_window();
        let Some(out) = tracer.options.out.clone() else { return };
        if let Err(error) = tracer.write(&out) {
            complain(&format!("cannot write {}: {error}", out.display()));
        }
    });
}

/// QEMU has forgotten all translations, and what this plugin had registered.
extern "C" fn on_reset(_: Id) {
    with(|tracer| {
        tracer.phase = Phase::All;
        tracer.register();
        if tracer.options.windows == Windows::Run {
            tracer.open_run();
        }
    });
}

extern "C" fn on_translate(_: Id, block: *mut Block) {
    with(|tracer| tracer.translate(block));
}

/// A block is about to be executed.
extern "C" fn on_block(cpu: c_uint, block: *mut c_void) {
    with(|tracer| {
        let (number, instructions) = unpack_block(block.addr());
        tracer.attribute();
        tracer.profile.enter(number);
        if tracer.running != Some(cpu) {
            tracer.check_thread();
            tracer.credit();
            tracer.running = Some(cpu);
        }
        if tracer.turn.execute(cpu, instructions) {
            tracer.end_turn(cpu);
        }
    });
}

extern "C" fn on_marker(cpu: c_uint, number: *mut c_void) {
    with(|tracer| {
        if let Some(marker) = Marker::from_number(number.addr() as u32) {
            tracer.mark(cpu, marker);
        }
    });
}

extern "C" fn on_place(cpu: c_uint, number: *mut c_void) {
    with(|tracer| {
        if let Some(place) = Place::from_number(number.addr() as u32) {
            tracer.pass(cpu, place);
        }
    });
}

extern "C" fn on_memory(cpu: c_uint, access: qemu::Access, address: u64, instruction: *mut c_void) {
    with(|tracer| {
        if tracer.options.places.need_accesses() {
            tracer.follow(cpu, access, address);
        }
        if tracer.ledger.is_open() {
            tracer.access(cpu, access, address, instruction.addr() as u64);
        }
    });
}

/// An instruction's address and whether it is locked, in one word: the address is canonical, so its top bit is that
/// below.
fn pack(pc: u64, locked: bool) -> u64 {
    pc << 1 | u64::from(locked)
}

/// What [`pack`] was given.
fn unpack(word: u64) -> (u64, bool) {
    ((word as i64 >> 1) as u64, word & 1 != 0)
}

/// A block's number and how many instructions it has, in one word: QEMU's blocks have at most 512.
fn pack_block(number: usize, instructions: usize) -> usize {
    number << 16 | instructions
}

/// What [`pack_block`] was given.
fn unpack_block(word: usize) -> (usize, u32) {
    (word >> 16, (word & 0xffff) as u32)
}

impl Tracer {
    fn register(&self) {
        // SAFETY: QEMU's interface; the functions live as long as the process, since the plugin is never unloaded.
        unsafe {
            (self.api.register_translate)(self.id, on_translate);
            (self.api.register_exit)(self.id, on_exit, ptr::null_mut());
        }
    }

    fn translate(&mut self, block: *mut Block) {
        let api = self.api;
        // SAFETY: QEMU's interface, within its callback: the block and its instructions are being translated, and the
        // bytes of one are as many as it says. The words that are added to are static.
        unsafe {
            let count = (api.block_instructions)(block);
            let first = (api.instruction_address)((api.block_instruction)(block, 0));
            let what = ptr::without_provenance_mut(pack_block(self.profile.number(first), count));
            (api.register_block)(block, on_block, qemu::NO_REGISTERS, what);
            for i in 0..count {
                let instruction = (api.block_instruction)(block, i);
                let size = (api.instruction_size)(instruction);
                let bytes = std::slice::from_raw_parts((api.instruction_bytes)(instruction).cast(), size);
                if let Some(marker) = Marker::decode(bytes) {
                    let number = ptr::without_provenance_mut(marker as usize);
                    (api.register_instruction)(instruction, on_marker, qemu::NO_REGISTERS, number);
                } else if self.phase == Phase::All {
                    let pc = (api.instruction_address)(instruction);
                    let word = EXECUTED.0.get().cast::<u64>().add(self.mode(pc) as usize);
                    (api.register_instruction_add)(instruction, qemu::ADD, word.cast(), 1);
                    let what = ptr::without_provenance_mut(pack(pc, marker::is_locked(bytes)) as usize);
                    if let Some(place) = self.options.places.of(pc, bytes) {
                        let number = ptr::without_provenance_mut(place as usize);
                        (api.register_instruction)(instruction, on_place, qemu::NO_REGISTERS, number);
                    }
                    let (flags, both) = (qemu::NO_REGISTERS, qemu::LOADS_AND_STORES);
                    (api.register_memory)(instruction, on_memory, flags, both, what);
                }
            }
        }
    }

    /// What kind of instruction is at `pc`.
    fn mode(&self, pc: u64) -> Mode {
        match pc >> 63 {
            0 => Mode::User,
            _ if self.options.places.clears(pc) => Mode::Zeroing,
            _ => Mode::Kernel,
        }
    }

    /// All blocks come from one host thread, or nothing here holds.
    fn check_thread(&mut self) {
        thread_local!(static HERE: u8 = const { 0 });
        let here = HERE.with(|at| ptr::from_ref(at).addr());
        if *self.thread.get_or_insert(here) != here {
            complain("the exact machine needs -accel tcg,thread=single");
            std::process::abort();
        }
    }

    /// Give what was executed since the last time to the block that ran, on the CPU that ran it. A block that a fault
    /// cut short gets what it came to execute.
    #[inline]
    fn attribute(&mut self) {
        // SAFETY: as in `credit`.
        let executed: u64 = unsafe { *EXECUTED.0.get() }.iter().sum();
        let instructions = executed - self.profiled;
        self.profiled += instructions;
        if self.ledger.is_open()
            && let Some(account) = self.running.and_then(|cpu| self.ledger.account(cpu))
        {
            self.profile.count(instructions, account);
        }
    }

    /// Give what was executed since the last time to the CPU that ran.
    fn credit(&mut self) {
        self.attribute();
        // SAFETY: translated code writes it, in the thread that has called here, or that has stopped.
        let executed = unsafe { *EXECUTED.0.get() };
        let new = [0, 1, 2].map(|i| executed[i] - self.credited[i]);
        if let Some(cpu) = self.running {
            self.ledger.executed(cpu, new, self.accesses);
        }
        (self.credited, self.accesses) = (executed, 0);
    }

    fn end_turn(&mut self, cpu: u32) {
        let handle = self.handle(cpu);
        // SAFETY: the CPU that runs exists, and ending a turn is safe at any time.
        unsafe { (self.api.cpu_exit)(handle) };
    }

    /// QEMU's handle of a CPU that exists.
    fn handle(&mut self, cpu: u32) -> *mut Cpu {
        let handle = &mut self.cpus[cpu as usize];
        if handle.is_null() {
            // SAFETY: QEMU's function, for a number within the machine's.
            *handle = unsafe { (self.api.get_cpu)(cpu as c_int) };
        }
        *handle
    }

    fn pass(&mut self, cpu: u32, place: Place) {
        self.credit();
        match place {
            // The call has just pushed it.
            Place::Work => self.ledger.enter_work(cpu, self.accessed[cpu as usize]),
            Place::Thread => {
                let worker = self.is_worker(cpu);
                self.ledger.switch_to(cpu, worker);
            }
            _ => self.ledger.pass(cpu, place),
        }
    }

    /// Whether the thread is a worker whose stack `cpu` has just popped a word from.
    fn is_worker(&mut self, cpu: u32) -> bool {
        let used = places::stack_in_use(self.accessed[cpu as usize]);
        let bytes = used.end - used.start;
        let mut words = [0u64; STACK as usize / 8];
        let handle = self.handle(cpu);
        // SAFETY: reads memory of the running CPU, without effect, into words of at least that size.
        let result =
            unsafe { (self.api.virtual_memory)(handle, used.start, words.as_mut_ptr().cast(), bytes, false) };
        result == 0 && self.options.places.is_worker(&words[..bytes as usize / 8])
    }

    /// Remember where `cpu` has accessed memory, and see whether it was the return from periodic work.
    fn follow(&mut self, cpu: u32, access: qemu::Access, address: u64) {
        self.accessed[cpu as usize] = address;
        // SAFETY: QEMU's interface, within its callback.
        if self.ledger.work(cpu) == Some(address) && unsafe { !(self.api.access_is_store)(access) } {
            self.credit();
            self.ledger.leave_work(cpu);
        }
    }

    fn mark(&mut self, cpu: u32, marker: Marker) {
        self.credit();
        let marked = self.options.windows == Windows::Marked;
        match marker {
            Marker::RunBegin if self.phase == Phase::Blocks && self.options.out.is_some() => self.see_all(),
            Marker::RunBegin if !marked => self.open_run(),
            Marker::RunEnd if !marked => self.ledger.close_all(),
            Marker::WindowBegin | Marker::WindowEnd if !marked => {}
            Marker::WindowBegin => {
                if self.phase == Phase::Blocks && self.options.out.is_some() {
                    self.see_all();
                }
                self.complete &= self.phase == Phase::All;
                if !self.ledger.is_open() {
                    self.lines.begin_window();
                }
                self.ledger.mark(cpu, marker);
            }
            _ => self.ledger.mark(cpu, marker),
        }
        self.choose_quantum();
    }

    /// Have everything translated anew, with all that there is to see.
    fn see_all(&mut self) {
        self.phase = Phase::Asked;
        // SAFETY: QEMU does it later, when no CPU runs.
        unsafe { (self.api.reset)(self.id, on_reset) };
    }

    fn open_run(&mut self) {
        if !self.ledger.is_open() {
            self.lines.begin_window();
        }
        self.ledger.open_all();
        self.choose_quantum();
    }

    fn choose_quantum(&mut self) {
        let Options { quantum, outside, .. } = self.options;
        self.turn.set_quantum(if self.ledger.is_open() { quantum } else { outside });
    }

    /// `instruction`, packed, has accessed memory at the virtual `address`.
    fn access(&mut self, cpu: u32, seen: qemu::Access, address: u64, instruction: u64) {
        let api = self.api;
        // SAFETY: QEMU's interface, within its callback.
        let (physical, device, store, shift) = unsafe {
            let at = (api.physical)(seen, address);
            if at.is_null() {
                return;
            }
            let (store, shift) = ((api.access_is_store)(seen), (api.access_size_shift)(seen));
            ((api.physical_address)(at), (api.physical_is_device)(at), store, shift)
        };
        if device {
            if store && physical == icr::ICR_LOW && self.ledger.counts(cpu) {
                let (others, vector) = self.interrupted(cpu);
                self.ledger.ipis(cpu, others, self.options.flush.contains(&vector));
            }
            return;
        }
        self.accesses += 1;
        let (pc, locked) = unpack(instruction);
        let access = match (locked, store) {
            (true, _) => Access::Update,
            (false, true) => Access::Write,
            (false, false) => Access::Read,
        };
        let by = By { cpu: cpu as u16, pc, access };
        self.touch(physical, by, address);
        if let Some(second) = lines::second_line(address, 1 << shift) {
            // SAFETY: as above. Both pages of an access were just used, so where they are is known.
            let at = unsafe { (api.physical)(seen, second) };
            if !at.is_null() {
                // SAFETY: as above.
                self.touch(unsafe { (api.physical_address)(at) }, by, second);
            }
        }
    }

    fn touch(&mut self, at: u64, by: By, address: u64) {
        if let Some(moved) = self.lines.access(at, by)
            && let Some(account) = self.ledger.transfer(by.cpu.into(), self.mode(by.pc))
        {
            self.lines.record(at, by, moved, account, address);
        }
    }

    /// How many CPUs the command that `cpu` has just stored interrupts.
    fn interrupted(&self, cpu: u32) -> (u32, u8) {
        let read = |at: u64| {
            let mut word = 0u32;
            // SAFETY: reads a register of the running CPU's local APIC, without effect, into a word of that size.
            unsafe { (self.api.physical_memory)(at, (&raw mut word).cast(), 4, false) };
            word
        };
        let low = read(icr::ICR_LOW);
        (icr::targets(low, read(icr::ICR_HIGH), cpu, self.cpus.len() as u32), icr::vector(low))
    }

    fn write(&self, out: &Path) -> std::io::Result<()> {
        let cpus = self.cpus.len() as u32;
        let seen = Seen { ledger: &self.ledger, lines: &self.lines, profile: &self.profile };
        std::fs::write(out, report::json(&self.options, cpus, self.complete, &seen))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_fits_into_a_word() {
        for pc in [0, 0x401234, 0x7fff_ffff_ffff, 0xffff_8000_0000_0000, 0xffff_ffff_8020_1234] {
            for locked in [false, true] {
                assert_eq!(unpack(pack(pc, locked)), (pc, locked));
            }
        }
    }

    #[test]
    fn a_block_fits_into_a_word() {
        for (number, instructions) in [(0, 1), (1, 512), (1 << 40, 300)] {
            assert_eq!(unpack_block(pack_block(number, instructions)), (number, instructions as u32));
        }
    }

    #[test]
    fn a_process_that_is_no_emulator_is_refused_by_name() {
        assert_eq!(Api::find().err(), Some(c"cpu_exit"));
    }
}

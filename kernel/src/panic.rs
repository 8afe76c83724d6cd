//! The end of the machine when the kernel is wrong: stop the other CPUs, say why, show the way here, exit.
//!
//! Everything goes to the control channel, without locks and without memory: the message, a line `  at 0xADDRESS` for
//! each return address, innermost first, and the record that tells the driver. The driver finds the symbols; for all
//! but the first line after a trap the address is that of the instruction after the call.
#![allow(unsafe_code)] // follows frame pointers; each block says why it is sound

use core::{
    arch::asm,
    fmt,
    panic::PanicInfo,
    sync::atomic::{AtomicU32, Ordering},
};

use crate::{
    hw::{self, TrapFrame, apic, cpu, irq, paging, serial},
    sanitize,
};

/// Frames shown at most.
const DEPTH: usize = 64;
/// No CPU.
const NOBODY: u32 = u32::MAX;

/// The CPU that panics.
static PANICKING: AtomicU32 = AtomicU32::new(NOBODY);

macro_rules! say {
    ($($arg:tt)*) => { serial::control_line(format_args!($($arg)*), false) };
}

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    begin();
    match info.location() {
        Some(at) => {
            say!("panic on CPU {} at {}:{}: {}", cpu::id().index(), at.file(), at.line(), info.message())
        }
        None => say!("panic on CPU {}: {}", cpu::id().index(), info.message()),
    }
    let rbp: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rbp", out(reg) rbp, options(nomem, nostack, preserves_flags)) };
    end(rbp)
}

/// End the machine because of an exception in the kernel: `frame` is what it left.
pub fn die(frame: &TrapFrame, why: fmt::Arguments<'_>) -> ! {
    begin();
    say!("panic on CPU {}: {why}", cpu::id().index());
    say!(
        "vector {:#x} error {:#x} rip {:#x} rflags {:#x}",
        frame.orig_rax,
        frame.error,
        frame.rip,
        frame.rflags
    );
    say!(
        "cs {:#x} ss {:#x} rsp {:#x} rbp {:#x} cr2 {:#x}",
        frame.cs,
        frame.ss,
        frame.rsp,
        frame.rbp,
        cpu::read_cr2()
    );
    say!("rax {:#x} rbx {:#x} rcx {:#x} rdx {:#x}", frame.rax, frame.rbx, frame.rcx, frame.rdx);
    say!(
        "rsi {:#x} rdi {:#x} r8 {:#x} r9 {:#x} r10 {:#x}",
        frame.rsi,
        frame.rdi,
        frame.r8,
        frame.r9,
        frame.r10
    );
    say!(
        "r11 {:#x} r12 {:#x} r13 {:#x} r14 {:#x} r15 {:#x}",
        frame.r11,
        frame.r12,
        frame.r13,
        frame.r14,
        frame.r15
    );
    say!("  at {:#x}", frame.rip);
    end(frame.rbp)
}

/// [`die`] of an exception that no one handles; `at` is the address of a page fault.
pub fn fatal(frame: &TrapFrame, at: u64) -> ! {
    // The frame's vector is what it was only for exceptions in the kernel, which these are.
    match (frame.orig_rax, sanitize::shadow::origin(at)) {
        (14, Some(wild)) => {
            die(frame, format_args!("sanitizer: access at {wild:#x}, where the kernel maps nothing"))
        }
        (14, None) => {
            die(frame, format_args!("page fault in the kernel at {at:#x}, error {:#x}", frame.error))
        }
        (vector, _) => die(frame, format_args!("exception {vector} in the kernel, error {:#x}", frame.error)),
    }
}

/// A non-maskable interrupt: from a CPU that panics, else from nowhere that matters.
pub fn on_nmi() {
    // Acquire: partner of the exchange in `begin`.
    if PANICKING.load(Ordering::Acquire) != NOBODY {
        stop();
    }
}

/// Whether some CPU panics.
#[cfg(feature = "sanitize")]
pub fn has_begun() -> bool {
    // Relaxed: who sees it late stops by the interrupt.
    PANICKING.load(Ordering::Relaxed) != NOBODY
}

/// Stop this CPU for good.
pub fn stop() -> ! {
    cpu::stop()
}

/// Make this the one CPU that runs.
fn begin() {
    core::mem::forget(irq::Off::new());
    let me = cpu::id().index() as u32;
    // AcqRel: one CPU wins; partner of the load in `on_nmi`.
    match PANICKING.compare_exchange(NOBODY, me, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => apic::send_nmi_to_others(),
        // The panic itself went wrong: no more attempts.
        Err(who) if who == me => hw::exit(PANIC_EXIT),
        Err(_) => stop(),
    }
}

/// QEMU's status is twice this plus one.
const PANIC_EXIT: u8 = 0x30;

fn end(mut rbp: u64) -> ! {
    for _ in 0..DEPTH {
        // A frame is the caller's RBP and the return address. Frames lie upwards, in mapped kernel memory.
        if !rbp.is_multiple_of(8) || !paging::is_mapped(rbp) || !paging::is_mapped(rbp + 15) {
            break;
        }
        let frame: *const [u64; 2] = core::ptr::with_exposed_provenance(rbp as usize);
        // SAFETY: mapped, as we have just seen, and nothing is ever unmapped; any content is good enough.
        let [next, address] = unsafe { frame.read_volatile() };
        if address == 0 {
            break;
        }
        say!("  at {address:#x}");
        if next <= rbp {
            break;
        }
        rbp = next;
    }
    serial::control_unlocked(b"\x1epanic\n");
    hw::exit(PANIC_EXIT)
}

//! Markers: instructions that do nothing, by which the kernel tells an emulator's tracer what it is doing.
//!
//! A marker is `nopl imm32(%rax,%rax,1)` with a number that says what begins or ends. Every processor executes it as a
//! no-operation of eight bytes; `tracer/` recognises the bytes and counts what lies between apart. Programs have markers of
//! their own, for windows and operations, with the numbers in between (`docs/exact.md`).
//!
//! None lets the compiler move an access to memory from one side to the other.

use core::arch::asm;

/// Zeroing a frame.
const CLEARING_BEGIN: u32 = 0x5151_0005;
const CLEARING_END: u32 = 0x5151_0006;
/// Periodic work: what the timer makes a CPU do, whatever the program does.
const PERIODIC_BEGIN: u32 = 0x5151_0007;
const PERIODIC_END: u32 = 0x5151_0008;
/// The first program.
const RUN_BEGIN: u32 = 0x5151_0009;
const RUN_END: u32 = 0x5151_000a;
/// A page fault. The numbers after this one are those of the crates' probes.
const FAULT: u32 = 0x5151_000b;

macro_rules! mark {
    ($number:expr) => {
        // SAFETY: an instruction without effect.
        unsafe {
            asm!(".byte 0x0f, 0x1f, 0x84, 0x00", ".long {}", const $number, options(nostack, preserves_flags))
        }
    };
}

/// In assembly: periodic work begins, on entry from the timer's interrupt.
macro_rules! enter_periodic {
    () => {
        ".byte 0x0f, 0x1f, 0x84, 0x00\n.long 0x51510007\n"
    };
}
/// In assembly: it ends. Said on every return from an interrupt or exception, since they share the way; where no periodic
/// work has begun, it means nothing.
macro_rules! leave_periodic {
    () => {
        ".byte 0x0f, 0x1f, 0x84, 0x00\n.long 0x51510008\n"
    };
}
pub(super) use {enter_periodic, leave_periodic};

const _: () = assert!(PERIODIC_BEGIN == 0x5151_0007 && PERIODIC_END == 0x5151_0008);

/// Periodic work begins that a timer's interrupt has put off.
#[inline]
pub fn periodic_begin() {
    mark!(PERIODIC_BEGIN);
}

/// Periodic work ends before the CPU returns from its interrupt: it switches to another thread, or has done what was put off.
#[inline]
pub fn periodic_end() {
    mark!(PERIODIC_END);
}

/// A page fault has been entered.
#[inline]
pub fn fault() {
    mark!(FAULT);
}

/// The first program is about to run.
pub fn run_begin() {
    mark!(RUN_BEGIN);
}

/// The first program has ended.
pub fn run_end() {
    mark!(RUN_END);
}

/// Zero the page at `at`.
///
/// # Safety
/// `at` is a whole page that may be written, and nobody else uses it.
pub unsafe fn clear_page(at: *mut u8) {
    mark!(CLEARING_BEGIN);
    // SAFETY: the caller's.
    unsafe { at.write_bytes(0, addr::PAGE_BYTES) };
    mark!(CLEARING_END);
}

//! From one kernel stack to another, and the first step on a new one.

use core::arch::naked_asm;

use addr::VirtAddr;

pub use super::idt::return_to_user;

/// Words below what [`first_stack`] keeps free: six registers, the return address, and one for alignment.
const FIRST_WORDS: usize = 8;

/// Store the stack pointer to `save` and continue where `load` was stored. Only what the ABI lets a callee keep is
/// saved; interrupts are off before and after, and the flags are not part of the state.
///
/// # Safety
/// `save` is writable; `load` was stored by this function or made by [`first_stack`], and is used once.
#[unsafe(naked)]
pub unsafe extern "C" fn switch(save: *mut u64, load: u64) {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi], rsp",
        "mov rsp, rsi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
    )
}

/// Prepare a fresh stack so that the first [`switch`] to the result begins in `entry`, with `frame_space` bytes (a
/// multiple of 16) left free below `top`.
///
/// # Safety
/// The stack below `top` is mapped, is large enough, and nobody uses it.
pub unsafe fn first_stack(top: VirtAddr, frame_space: usize, entry: extern "C" fn() -> !) -> u64 {
    debug_assert!(frame_space.is_multiple_of(16) && top.offset().is_multiple_of(16));
    let at = top.as_u64() as usize - frame_space - FIRST_WORDS * 8;
    let stack: *mut [u64; FIRST_WORDS] = core::ptr::with_exposed_provenance_mut(at);
    // r15 r14 r13 r12 rbx rbp, the address for `ret`, and a null return address: at `entry` the stack pointer is 8 below
    // a multiple of 16, as after a call, and backtraces end.
    // SAFETY: the caller's.
    unsafe { stack.write([0, 0, 0, 0, 0, 0, entry as *const () as u64, 0]) };
    at as u64
}

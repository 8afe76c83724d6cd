//! The markers that a tracer finds in the instruction stream.
//!
//! Each is the instruction `nopl imm32(%rax,%rax,1)`, bytes `0f 1f 84 00` and the constant: a no-op on every x86-64
//! processor, in user and in kernel mode, that no compiler emits with these constants. A tracer knows them by their
//! bytes when it translates the code; natively they cost a cycle.
//!
//! A *window* is the measured phase of one thread. Inside it, *operation* brackets enclose the work that is measured,
//! and nothing else: what a mode waits for, prepares or clears away lies inside the window and outside of the brackets.
//! Brackets don't nest.

/// Emits one marker. It is an assembler block that may touch memory, so the compiler moves no access across it.
macro_rules! marker {
    ($name:ident, $constant:literal, $doc:literal) => {
        #[doc = $doc]
        #[inline(always)]
        pub fn $name() {
            // SAFETY: a no-op: it reads and writes no register, no flag and no memory.
            unsafe {
                core::arch::asm!(
                    ".byte 0x0f, 0x1f, 0x84, 0x00",
                    concat!(".long ", $constant),
                    options(nostack, preserves_flags)
                );
            }
        }
    };
}

marker!(window_begin, "0x51510001", "The calling thread's measured phase begins.");
marker!(window_end, "0x51510002", "It ends.");
marker!(operation_begin, "0x51510003", "Measured work begins.");
marker!(operation_end, "0x51510004", "It ends.");

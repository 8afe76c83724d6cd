//! Probes: places in the code that an emulator's tracer counts, for which the running system pays one instruction without
//! effect, and nothing is stored.
//!
//! A probe is the no-operation `nopl imm32(%rax,%rax,1)` with a number, as are the kernel's markers (`docs/exact.md` lists all
//! numbers). Every x86-64 processor executes it as nothing in any mode; elsewhere, and under Miri, it is not there.

/// What has come to pass on this CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Event {
    /// Refcache's epoch was moved on.
    Epoch = 0x5151_000c,
    /// A grace period has ended.
    GracePeriod = 0x5151_000d,
    /// A fault gives the page a frame.
    FaultNew = 0x5151_000e,
    /// A fault enters into a table what the page has already.
    FaultFill = 0x5151_000f,
    /// A fault finds an entry that grants less than the page does.
    FaultRepair = 0x5151_0010,
    /// A fault copies the page's frame.
    FaultCopy = 0x5151_0011,
}

/// Tell a tracer that it has: `probe!(Epoch)`, by the name of an `Event`.
#[macro_export]
macro_rules! probe {
    ($event:ident) => {{
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        // SAFETY: an instruction without effect.
        #[allow(unsafe_code)]
        unsafe {
            ::core::arch::asm!(
                ".byte 0x0f, 0x1f, 0x84, 0x00", ".long {}",
                const $crate::probe::Event::$event as u32,
                options(nomem, nostack, preserves_flags)
            )
        }
    }};
}

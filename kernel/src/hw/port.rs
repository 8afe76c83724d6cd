//! Port input and output.

use core::arch::asm;

/// Write a byte.
///
/// # Safety
/// The device at `port` does nothing with it that breaks memory safety.
pub unsafe fn outb(port: u16, value: u8) {
    // SAFETY: the caller's.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) }
}

/// Write four bytes.
///
/// # Safety
/// As for [`outb`].
pub unsafe fn outl(port: u16, value: u32) {
    // SAFETY: the caller's.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack, preserves_flags)) }
}

/// Write all `bytes` to the same port, in one instruction: one exit from a virtual machine for many bytes.
///
/// # Safety
/// As for [`outb`].
pub unsafe fn outsb(port: u16, bytes: &[u8]) {
    // SAFETY: the caller's for the port; the slice is readable for its length. DF is clear, by the ABI.
    unsafe {
        asm!("rep outsb", in("dx") port, inout("rsi") bytes.as_ptr() => _, inout("rcx") bytes.len() => _,
             options(readonly, nostack, preserves_flags));
    }
}

/// Read a byte.
///
/// # Safety
/// As for [`outb`]: reading a device may act.
pub unsafe fn inb(port: u16) -> u8 {
    let value: u8;
    // SAFETY: the caller's.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags)) }
    value
}

/// Read four bytes.
///
/// # Safety
/// As for [`outb`].
pub unsafe fn inl(port: u16) -> u32 {
    let value: u32;
    // SAFETY: the caller's.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack, preserves_flags)) }
    value
}

//! The shadow's bytes: where they are, and what they say.

use super::ON;

/// Shadow of `at` is at `(at >> 3) + OFFSET`. The compiler is told the same number (`cli/src/kernel.rs`).
pub const OFFSET: u64 = 0xdfff_f000_0000_0000;
/// Where the shadow of the kernel's half begins and ends.
const START: u64 = 0xffff_e000_0000_0000;
const END: u64 = 0xffff_f000_0000_0000;

/// Bytes that have one byte of shadow.
pub const GRANULE: u64 = 8;

/// Before an allocation.
pub const HEAP_LEFT: u8 = 0xfa;
/// Behind it.
pub const HEAP_RIGHT: u8 = 0xfb;
/// Part of the heap, never allocated.
pub const HEAP_UNUSED: u8 = 0xfc;
/// Was allocated.
pub const HEAP_FREED: u8 = 0xfd;

/// Address of the shadow of `at`, an address in the kernel's half.
pub const fn of(at: u64) -> u64 {
    (at >> 3).wrapping_add(OFFSET)
}

/// The address whose shadow is at `shadow`, if there is any shadow.
pub fn origin(shadow: u64) -> Option<u64> {
    (ON && (START..END).contains(&shadow)).then(|| shadow.wrapping_sub(OFFSET) << 3)
}

/// The shadow of `at`, which has some.
pub fn read(at: u64) -> u8 {
    let shadow: *const u8 = core::ptr::with_exposed_provenance(of(at) as usize);
    // SAFETY: mapped, by the caller's word, and any byte will do. Volatile, since others may change it.
    unsafe { shadow.read_volatile() }
}

/// Let the `bytes` bytes from `at` on, a multiple of 8, have the shadow `value`; they have some. What is left of the last
/// 8 bytes gets it too.
pub fn fill(at: u64, bytes: u64, value: u8) {
    let shadow: *mut u8 = core::ptr::with_exposed_provenance_mut(of(at) as usize);
    // SAFETY: mapped, by the caller's word; shadow is nobody's memory.
    unsafe { shadow.write_bytes(value, bytes.div_ceil(GRANULE) as usize) };
}

/// Let the `bytes` bytes from `at` on, a multiple of 8, be accessed, and not what is left of the last 8 bytes.
pub fn allow(at: u64, bytes: u64) {
    fill(at, bytes & !(GRANULE - 1), 0);
    let left = bytes % GRANULE;
    if left > 0 {
        fill(at + bytes - left, left, left as u8);
    }
}

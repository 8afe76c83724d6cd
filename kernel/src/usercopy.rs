//! Copies between the kernel and user memory. A user pointer is an allegation: it is checked to lie in user space, and
//! the access itself may fault; a fault is resolved by the ordinary fault path, and if that refuses, the copy ends
//! with EFAULT.
//!
//! Each routine below that touches user memory is an assembly function whose faulting instructions lie between
//! `quire_usercopy_start` and `quire_usercopy_end`. A fault there that can't be resolved continues at
//! `quire_usercopy_fault`, which returns "failed" to whoever called the inner routine: all of them keep nothing on the
//! stack.
//!
//! SMAP (Intel SDM vol. 3A, 4.6.1): `stac` opens user memory for just these instructions; the trap entry closes it.
//!
//! Copies may sleep, so they are made with nothing pinned and no spin lock held.
#![allow(unsafe_code)] // The one place outside `hw` that touches memory by address.

use alloc::vec::Vec;
use core::{arch::global_asm, mem::MaybeUninit};

use addr::USER_END;

use crate::{
    errno::Errno,
    hw::{clac, stac},
    memory, sanitize, upcall,
};

global_asm!(
    ".pushsection .text.usercopy, \"ax\"",
    ".global quire_usercopy_start, quire_usercopy_end, quire_usercopy_fault",
    // rdi = to, rsi = from, rdx = bytes: 0 in rax when done. Words first, then the rest.
    ".global quire_copy",
    "quire_copy:",
    stac!(),
    "call 2f",
    clac!(),
    "ret",
    "2:",
    "quire_usercopy_start:",
    "mov rcx, rdx",
    "shr rcx, 3",
    "rep movsq",
    "mov ecx, edx",
    "and ecx, 7",
    "rep movsb",
    "xor eax, eax",
    "ret",
    // rdi = to, rsi = bytes.
    ".global quire_zero",
    "quire_zero:",
    stac!(),
    "call 3f",
    clac!(),
    "ret",
    "3:",
    "xor eax, eax",
    "mov rcx, rsi",
    "shr rcx, 3",
    "rep stosq",
    "mov ecx, esi",
    "and ecx, 7",
    "rep stosb",
    "xor eax, eax",
    "ret",
    // rdi = address of a u32, esi = expected, edx = new, rcx = where to store what was there.
    ".global quire_cmpxchg",
    "quire_cmpxchg:",
    stac!(),
    "call 4f",
    clac!(),
    "ret",
    "4:",
    "mov eax, esi",
    "lock cmpxchg [rdi], edx",
    "mov [rcx], eax",
    "xor eax, eax",
    "ret",
    // rdi = address of a u32, esi = the bits to keep.
    ".global quire_and",
    "quire_and:",
    stac!(),
    "call 5f",
    clac!(),
    "ret",
    "5:",
    "lock and [rdi], esi",
    "xor eax, eax",
    "ret",
    // rdi = to, rsi = from: one word.
    ".global quire_word",
    "quire_word:",
    stac!(),
    "call 6f",
    clac!(),
    "ret",
    "6:",
    "mov rax, [rsi]",
    "mov [rdi], rax",
    "xor eax, eax",
    "ret",
    "quire_usercopy_end:",
    "quire_usercopy_fault:",
    "mov eax, 1",
    "ret",
    ".popsection",
);

unsafe extern "C" {
    static quire_usercopy_start: u8;
    static quire_usercopy_end: u8;
    static quire_usercopy_fault: u8;
}
unsafe extern "sysv64" {
    fn quire_copy(to: u64, from: u64, bytes: u64) -> u64;
    fn quire_zero(to: u64, bytes: u64) -> u64;
    fn quire_word(to: u64, from: u64) -> u64;
    fn quire_and(at: u64, keep: u32) -> u64;
    fn quire_cmpxchg(at: u64, old: u32, new: u32, was: *mut u32) -> u64;
}

/// Where to continue if the instruction at `rip` faulted on user memory and the fault was refused; None if `rip` is no
/// copy routine.
pub fn fixup(rip: u64) -> Option<u64> {
    let (start, end) = (&raw const quire_usercopy_start as u64, &raw const quire_usercopy_end as u64);
    (start..end).contains(&rip).then_some(&raw const quire_usercopy_fault as u64)
}

fn check(addr: u64, bytes: u64) -> Result<(), Errno> {
    match addr.checked_add(bytes) {
        Some(end) if end <= USER_END => Ok(()),
        _ => Err(Errno::EFAULT),
    }
}

fn copy(to: u64, from: u64, bytes: u64) -> Result<(), Errno> {
    // SAFETY: the callers checked that one side is user memory, where any fault is handled, and that the other is a
    // live kernel buffer of `bytes` bytes.
    if unsafe { quire_copy(to, from, bytes) } == 0 { Ok(()) } else { Err(Errno::EFAULT) }
}

/// Fill `to` from user memory at `addr`. On EFAULT part of it may have been filled.
pub fn copy_in(addr: u64, to: &mut [u8]) -> Result<(), Errno> {
    check(addr, to.len() as u64)?;
    sanitize::check(to.as_ptr() as u64, to.len() as u64, true);
    copy(to.as_mut_ptr() as u64, addr, to.len() as u64)
}

/// Store `from` in user memory at `addr`. On EFAULT part of it may have been stored.
pub fn copy_out(addr: u64, from: &[u8]) -> Result<(), Errno> {
    check(addr, from.len() as u64)?;
    sanitize::check(from.as_ptr() as u64, from.len() as u64, false);
    store(addr, from)
}

/// Store `from` at `addr`, or owe it.
fn store(addr: u64, from: &[u8]) -> Result<(), Errno> {
    let made = copy(addr, from.as_ptr() as u64, from.len() as u64);
    if made.is_err() && upcall::owe(addr, from) { Ok(()) } else { made }
}

/// Store `bytes` zero bytes in user memory at `addr`.
pub fn zero(addr: u64, bytes: u64) -> Result<(), Errno> {
    check(addr, bytes)?;
    // SAFETY: the range is user memory, where any fault is handled.
    if unsafe { quire_zero(addr, bytes) } == 0 { Ok(()) } else { Err(Errno::EFAULT) }
}

/// The word at `addr`.
pub fn load_word(addr: u64) -> Result<u64, Errno> {
    check(addr, 8)?;
    let mut word = 0u64;
    // SAFETY: user memory, where any fault is handled; `word` is ours.
    if unsafe { quire_word(&raw mut word as u64, addr) } == 0 { Ok(word) } else { Err(Errno::EFAULT) }
}

/// Store a word at `addr`.
pub fn store_word(addr: u64, word: u64) -> Result<(), Errno> {
    check(addr, 8)?;
    // SAFETY: as in `load_word`.
    if unsafe { quire_word(addr, &raw const word as u64) } == 0 { Ok(()) } else { Err(Errno::EFAULT) }
}

/// If the u32 at `addr` is `old`, store `new`, atomically; gives what was there. EINVAL if misaligned.
pub fn cmpxchg_u32(addr: u64, old: u32, new: u32) -> Result<u32, Errno> {
    if !addr.is_multiple_of(4) {
        return Err(Errno::EINVAL);
    }
    check(addr, 4)?;
    let mut was = 0;
    // SAFETY: aligned user memory, where any fault is handled; `was` is ours.
    if unsafe { quire_cmpxchg(addr, old, new, &raw mut was) } == 0 { Ok(was) } else { Err(Errno::EFAULT) }
}

/// Clear the bits of `mask` in the u32 at `addr`, atomically. EINVAL if misaligned.
pub fn clear_bits_u32(addr: u64, mask: u32) -> Result<(), Errno> {
    if !addr.is_multiple_of(4) {
        return Err(Errno::EINVAL);
    }
    check(addr, 4)?;
    // SAFETY: aligned user memory, where any fault is handled.
    if unsafe { quire_and(addr, !mask) } == 0 { Ok(()) } else { Err(Errno::EFAULT) }
}

/// Types that may be copied to and from user memory as bytes.
///
/// # Safety
/// Every bit pattern is a value, and there is no padding whose contents would leak to the program.
pub unsafe trait Pod: Copy {}

/// Declare plain structures as [`Pod`]: `#[repr(C)]`, made of integers, without padding.
#[macro_export]
macro_rules! pod {
    ($($t:ty),* $(,)?) => {$(
        // SAFETY: the structure is `repr(C)`, made of integers and arrays of them, without padding.
        #[allow(unsafe_code)]
        unsafe impl $crate::usercopy::Pod for $t {}
    )*};
}

macro_rules! pod_ints {
    ($($t:ty)*) => {$(
        // SAFETY: an integer.
        unsafe impl Pod for $t {}
    )*};
}
pod_ints!(u8 i8 u16 i16 u32 i32 u64 i64 usize isize);
// SAFETY: an array of Pods has no padding.
unsafe impl<T: Pod, const N: usize> Pod for [T; N] {}

/// The value at `addr`.
pub fn read<T: Pod>(addr: u64) -> Result<T, Errno> {
    let mut v = MaybeUninit::<T>::uninit();
    check(addr, size_of::<T>() as u64)?;
    copy(v.as_mut_ptr() as u64, addr, size_of::<T>() as u64)?;
    // SAFETY: all bytes are initialised, and every pattern is a value of a Pod.
    Ok(unsafe { v.assume_init() })
}

/// Store `v` at `addr`.
pub fn write<T: Pod>(addr: u64, v: &T) -> Result<(), Errno> {
    check(addr, size_of::<T>() as u64)?;
    store(addr, bytes_of(v))
}

/// Fill `to` with the values at `addr`, one after the other. On EFAULT some may have been read.
pub fn read_into<T: Pod>(addr: u64, to: &mut [T]) -> Result<(), Errno> {
    check(addr, size_of_val(to) as u64)?;
    copy(to.as_mut_ptr() as u64, addr, size_of_val(to) as u64)
}

/// Store `from` at `addr`, one after the other. On EFAULT some may have been stored.
pub fn write_all<T: Pod>(addr: u64, from: &[T]) -> Result<(), Errno> {
    check(addr, size_of_val(from) as u64)?;
    // SAFETY: Pods have no padding, and the slice is borrowed.
    store(addr, unsafe { core::slice::from_raw_parts(from.as_ptr().cast(), size_of_val(from)) })
}

/// The bytes of `v`.
pub fn bytes_of<T: Pod>(v: &T) -> &[u8] {
    // SAFETY: a Pod is all initialised bytes.
    unsafe { core::slice::from_raw_parts((&raw const *v).cast(), size_of::<T>()) }
}

/// The bytes up to a NUL at `addr`: at most `max` with the NUL, else ENAMETOOLONG.
pub fn read_cstr(addr: u64, max: usize) -> Result<Vec<u8>, Errno> {
    let mut out = Vec::new();
    let mut at = addr;
    while out.len() < max {
        // Not past the end of a page, so that a string that ends just before a hole is readable.
        let room = (4096 - (at % 4096)) as usize;
        let mut buf = [0u8; 256];
        let n = room.min(buf.len()).min(max - out.len());
        let Some(chunk) = buf.get_mut(..n) else { return Err(Errno::EFAULT) };
        copy_in(at, chunk)?;
        match chunk.iter().position(|b| *b == 0) {
            Some(end) => {
                out.extend(chunk.iter().take(end));
                return Ok(out);
            }
            None => out.extend_from_slice(chunk),
        }
        at += n as u64;
    }
    Err(Errno::ENAMETOOLONG)
}

/// The most strings that [`read_strings`] reads: the kernel's list of them must fit in one allocation with room to
/// spare (`memory.rs`), however short they are.
const MAX_STRINGS: usize = 1 << 15;

/// The strings that a NULL-terminated array of pointers at `addr` names (argv, envp); no strings if `addr` is 0.
/// E2BIG past `max_bytes` in all, pointers included, or [`MAX_STRINGS`], or 128 KiB for one; ENOMEM when memory is
/// short.
pub fn read_strings(addr: u64, max_bytes: usize) -> Result<Vec<Vec<u8>>, Errno> {
    let mut out = Vec::new();
    if addr == 0 {
        return Ok(out);
    }
    let mut total = 0;
    loop {
        let at = addr.checked_add(8 * out.len() as u64).ok_or(Errno::EFAULT)?;
        let p: u64 = read(at)?;
        if p == 0 {
            return Ok(out);
        }
        if out.len() == MAX_STRINGS {
            return Err(Errno::E2BIG);
        }
        // All that is read stays in the kernel's heap, which must not run out.
        if memory::frames().low() {
            return Err(Errno::ENOMEM);
        }
        let s =
            read_cstr(p, 128 << 10).map_err(|e| if e == Errno::ENAMETOOLONG { Errno::E2BIG } else { e })?;
        total += s.len() + 1 + 8;
        if total > max_bytes {
            return Err(Errno::E2BIG);
        }
        out.push(s);
    }
}

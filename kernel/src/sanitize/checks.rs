//! What the compiler calls. The names and arguments are LLVM's: `__asan_loadN(address)` before every load of N bytes, and
//! so on (its `AddressSanitizer.cpp` and `SanitizerCoverage.cpp`).
//!
//! The checks are assembly for two reasons: they run before every access, and they must not be instrumented, which Rust
//! code in this build is. They use only what a callee may clobber, no stack, and no memory but the shadow.

use core::{
    arch::global_asm,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use super::{heap, is_exempt, shadow};
use crate::{hw::paging, panic};

/// Which eighths of the address space's upper half are checked: bit n is for addresses that begin with `ffff_8` + n.
/// None before [`start`].
#[unsafe(no_mangle)]
static QUIRE_CHECKED: AtomicU32 = AtomicU32::new(0);
/// Direct map, stacks, and the image.
const CHECKED: u32 = 0b1001_1111;

global_asm!(
    // Leave the check of the address in rdi at \out if it is in no region that is checked.
    ".macro quire_region out",
    "mov rax, rdi",
    "shr rax, 44",
    "sub eax, 0xffff8",
    "cmp eax, 7",
    "ja \\out",
    "mov ecx, dword ptr [rip + {checked}]",
    "bt ecx, eax",
    "jnc \\out",
    ".endm",
    // An access of \size bytes at rdi, aligned to its size or to 8 bytes.
    ".macro quire_access name, size, write",
    ".global \\name",
    "\\name:",
    "quire_region 2f",
    "mov rax, rdi",
    "shr rax, 3",
    "movabs rcx, {offset}",
    ".if \\size == 16",
    "movzx eax, word ptr [rax + rcx]",
    ".else",
    "movsx eax, byte ptr [rax + rcx]",
    ".endif",
    "test eax, eax",
    "jnz 3f",
    "2:",
    "ret",
    "3:",
    ".if \\size < 8",
    // The last byte accessed must come before the first that may not be.
    "mov ecx, edi",
    "and ecx, 7",
    "add ecx, \\size - 1",
    "cmp ecx, eax",
    "jl 2b",
    ".endif",
    "mov esi, \\size",
    "mov edx, \\write",
    "jmp quire_check_failed",
    ".endm",
    ".pushsection .text.sanitize, \"ax\"",
    "quire_access __asan_load1, 1, 0",
    "quire_access __asan_load2, 2, 0",
    "quire_access __asan_load4, 4, 0",
    "quire_access __asan_load8, 8, 0",
    "quire_access __asan_load16, 16, 0",
    "quire_access __asan_store1, 1, 1",
    "quire_access __asan_store2, 2, 1",
    "quire_access __asan_store4, 4, 1",
    "quire_access __asan_store8, 8, 1",
    "quire_access __asan_store16, 16, 1",
    // Any rsi bytes at rdi. All shadow but the last byte must be 0; the last may be a count.
    ".global __asan_loadN, __asan_storeN, quire_check",
    "__asan_storeN:",
    "mov edx, 1",
    "jmp quire_check",
    "__asan_loadN:",
    "xor edx, edx",
    "quire_check:",
    "test rsi, rsi",
    "jz 2f",
    "quire_region 2f",
    "movabs r11, {offset}",
    "mov r9, rdi",
    "lea r8, [rdi + rsi - 1]",
    "mov r10, r8",
    "shr r10, 3",
    "add r10, r11",
    "shr rdi, 3",
    "add rdi, r11",
    "mov rcx, r10",
    "sub rcx, rdi",
    "xor eax, eax",
    "repe scasb",
    "jne 3f",
    "movsx eax, byte ptr [r10]",
    "test eax, eax",
    "jz 2f",
    "and r8d, 7",
    "cmp r8d, eax",
    "jge 3f",
    "2:",
    "ret",
    "3:",
    "mov rdi, r9",
    // In a frame of its own, so that the backtrace names who made the access.
    "quire_check_failed:",
    "push rbp",
    "mov rbp, rsp",
    "call {failed}",
    "pop rbp",
    "ret",
    // rdi = to, rsi = from, rdx = bytes.
    ".macro quire_copying name, real",
    ".global \\name",
    "\\name:",
    "push rbp",
    "mov rbp, rsp",
    "push rdi",
    "push rsi",
    "push rdx",
    "push rdx",
    "mov rsi, rdx",
    "mov edx, 1",
    "call quire_check",
    "mov rdi, [rbp - 16]",
    "mov rsi, [rbp - 24]",
    "xor edx, edx",
    "call quire_check",
    "mov rdx, [rbp - 24]",
    "mov rsi, [rbp - 16]",
    "mov rdi, [rbp - 8]",
    "mov rsp, rbp",
    "pop rbp",
    "jmp \\real",
    ".endm",
    "quire_copying __asan_memcpy, memcpy",
    "quire_copying __asan_memmove, memmove",
    // rdi = to, esi = value, rdx = bytes.
    ".global __asan_memset",
    "__asan_memset:",
    "push rbp",
    "mov rbp, rsp",
    "push rdi",
    "push rsi",
    "push rdx",
    "push rdx",
    "mov rsi, rdx",
    "mov edx, 1",
    "call quire_check",
    "mov rdx, [rbp - 24]",
    "mov rsi, [rbp - 16]",
    "mov rdi, [rbp - 8]",
    "mov rsp, rbp",
    "pop rbp",
    "jmp memset",
    // The shadow of rsi * 8 bytes of a frame, which is at rdi, becomes \value.
    ".macro quire_set_shadow value",
    ".global __asan_set_shadow_\\value",
    "__asan_set_shadow_\\value:",
    "cmp dword ptr [rip + {checked}], 0",
    "je 2f",
    "mov rcx, rsi",
    "mov eax, 0x\\value",
    "rep stosb",
    "2:",
    "ret",
    ".endm",
    ".irp value, 00, 01, 02, 03, 04, 05, 06, 07, f1, f2, f3, f5, f8",
    "quire_set_shadow \\value",
    ".endr",
    // What is called next does not return: the frames from here to the stack's top may never be left.
    ".global __asan_handle_no_return",
    "__asan_handle_no_return:",
    "cmp dword ptr [rip + {checked}], 0",
    "je 2f",
    "mov rdi, rsp",
    "jmp {no_return}",
    "2:",
    "ret",
    ".popsection",
    checked = sym QUIRE_CHECKED,
    offset = const shadow::OFFSET as i64,
    failed = sym failed,
    no_return = sym no_return,
);

unsafe extern "C" {
    fn quire_check(at: u64, bytes: u64, write: u32);
    static init_array_start: u8;
    static init_array_end: u8;
}

/// See [`super::start`].
pub fn start() {
    // Relaxed: there is no other CPU yet, and this one sees its own stores.
    QUIRE_CHECKED.store(CHECKED, Ordering::Relaxed);
    let mut at = (&raw const init_array_start).cast::<Option<unsafe extern "C" fn()>>();
    while at.addr() < (&raw const init_array_end).addr() {
        // SAFETY: between the bounds that the linker script sets lie what the compiler made for this build: functions
        // that call the two below.
        unsafe {
            if let Some(initialise) = *at {
                initialise();
            }
            at = at.add(1);
        }
    }
}

/// See [`super::check`].
#[inline]
pub fn check(at: u64, bytes: u64, write: bool) {
    // SAFETY: it only reads shadow.
    unsafe { quire_check(at, bytes, write.into()) }
}

// What the compiler puts into the shadow of a frame: around and between its variables, and for those out of scope.
const STACK_LEFT: u8 = 0xf1;
const STACK_MIDDLE: u8 = 0xf2;
const STACK_RIGHT: u8 = 0xf3;
const OUT_OF_SCOPE: u8 = 0xf8;
/// Behind a static.
const GLOBAL: u8 = 0xf9;

/// What is wrong with an access to memory whose shadow is `value`.
fn describe(value: u8) -> &'static str {
    match value {
        STACK_LEFT | STACK_MIDDLE | STACK_RIGHT => "out of bounds of a variable on the stack",
        OUT_OF_SCOPE => "use of a variable out of its scope",
        GLOBAL => "out of bounds of a static",
        shadow::HEAP_LEFT => "out of bounds of the heap, before an allocation",
        shadow::HEAP_RIGHT => "out of bounds of the heap, behind an allocation",
        shadow::HEAP_UNUSED => "use of heap memory that was never allocated",
        shadow::HEAP_FREED => "use after free",
        1..8 => "out of bounds",
        _ => "use of poisoned memory",
    }
}

/// A static as the compiler describes it.
#[repr(C)]
struct Global {
    at: u64,
    bytes: u64,
    /// With the redzone behind it.
    whole: u64,
    _names: [u64; 2],
    _initialised: u64,
    _location: u64,
    _indicator: u64,
}

/// Poison what follows the `n` statics at `globals`.
#[unsafe(no_mangle)]
unsafe extern "C" fn __asan_register_globals(globals: *const Global, n: usize) {
    for i in 0..n {
        // SAFETY: the compiler's table.
        let g = unsafe { &*globals.add(i) };
        let end = g.at + g.bytes.next_multiple_of(shadow::GRANULE);
        shadow::allow(g.at, g.bytes);
        shadow::fill(end, g.at + g.whole - end, GLOBAL);
    }
}

/// Nothing is ever unloaded.
#[unsafe(no_mangle)]
extern "C" fn __asan_unregister_globals(_: *const Global, _: usize) {}

/// `coverage` finds the flags by their section.
#[unsafe(no_mangle)]
extern "C" fn __sanitizer_cov_bool_flag_init(_: *const u8, _: *const u8) {}

/// The word that protected functions keep between their variables and their return address. It is a constant, since this
/// build looks for mistakes and defends against nobody.
#[unsafe(no_mangle)]
static __stack_chk_guard: AtomicU64 = AtomicU64::new(0xb5e2_07d9_4c1f_a300);

/// A function found that word changed when it was about to return.
#[unsafe(no_mangle)]
extern "C" fn __stack_chk_fail() -> ! {
    panic!("sanitizer: a function's frame was overwritten past its variables")
}

/// Let the frames from `rsp` up be used afresh.
extern "C" fn no_return(rsp: u64) {
    if let Some(top) = paging::stack_top(rsp) {
        let from = rsp & !(shadow::GRANULE - 1);
        shadow::fill(from, top - from, 0);
    }
}

/// A check of `bytes` bytes at `at` failed.
extern "C" fn failed(at: u64, bytes: u64, write: u32) {
    // What is left of a panic runs unchecked, whatever it meets.
    if is_exempt() || panic::has_begun() {
        return;
    }
    let last = at + bytes - 1;
    let mut granules = (at / shadow::GRANULE..=last / shadow::GRANULE).map(|n| n * shadow::GRANULE);
    let is_bad = |granule: &u64| match shadow::read(*granule) {
        0 => false,
        allowed @ 1..8 => last - granule >= allowed.into(),
        _ => true,
    };
    let bad = granules.find(is_bad).unwrap_or(at);
    // The count of a last piece says nothing of what it belongs to; what comes behind does.
    let value = match shadow::read(bad) {
        1..8 => shadow::read(bad + shadow::GRANULE),
        value => value,
    };
    let access = if write != 0 { "store" } else { "load" };
    heap::tell_about(bad);
    panic!("sanitizer: {}: {access} of {bytes} bytes at {at:#x}, shadow {value:#x}", describe(value));
}

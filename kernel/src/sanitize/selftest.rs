//! Mistakes on purpose. Each must end the machine with a report; the driver's tests look for it.

use alloc::{boxed::Box, vec::Vec};
use core::{arch::asm, hint::black_box};

use owned::Use;

use crate::{memory, task};

/// The mistakes by name.
pub const MISTAKES: &[(&str, fn())] = &[
    ("use-after-free", use_after_free),
    ("out-of-bounds-read", out_of_bounds_read),
    ("double-free", double_free),
    ("stack-variable-overrun", stack_variable_overrun),
    ("stack-smash", stack_smash),
    ("store-to-free-frame", store_to_free_frame),
];

fn use_after_free() {
    // Or the compiler, seeing all that happens to it, does without the heap.
    let at = black_box(Box::into_raw(Box::new(7u64)));
    // SAFETY: the first line is sound. The second isn't, and that is the test.
    unsafe {
        drop(Box::from_raw(at));
        black_box(at.read_volatile());
    }
}

/// Of one byte, behind an object that doesn't end at a multiple of 8.
fn out_of_bounds_read() {
    let bytes: Vec<u8> = black_box(alloc::vec![1; 13]);
    // SAFETY: the address is in the heap; that it is one byte too far is the test.
    black_box(unsafe { bytes.as_ptr().add(bytes.len()).read_volatile() });
}

fn double_free() {
    let at = black_box(Box::into_raw(Box::new(7u64)));
    // SAFETY: the first is sound. The second isn't, and that is the test.
    unsafe {
        drop(Box::from_raw(at));
        drop(Box::from_raw(at));
    }
}

fn stack_variable_overrun() {
    let words = black_box([1u32; 6]);
    let beyond = black_box(words.len());
    // SAFETY: the address is on this stack; that it is one element too far is the test.
    black_box(unsafe { words.as_ptr().add(beyond).read_volatile() });
}

/// By assembly, which nobody checks, so that only the guard word can tell.
#[inline(never)]
fn stack_smash() {
    let mut bytes = black_box([0u8; 64]);
    let to = black_box(bytes.as_mut_ptr());
    // SAFETY: it overwrites this function's frame and its caller's, neither of which is returned to: that is the test.
    unsafe {
        asm!("rep stosb", inout("rdi") to => _, inout("rcx") 512 => _, in("al") 0x5au8, options(nostack));
    }
    black_box(&bytes);
}

/// Free frames have no shadow of their own; the allocator looks at them when it hands them out again.
fn store_to_free_frame() {
    let (pin, frames) = (task::pinned(), memory::frames());
    let Some(owned) = frames.alloc(&pin, Use::Kernel) else { return };
    let at = memory::dm().ptr(owned.frame().base());
    frames.free(&pin, owned);
    // SAFETY: the direct map reaches it; that it is free is the test.
    unsafe { at.write_volatile(1) };
    // What was freed last is handed out first.
    if let Some(again) = frames.alloc(&pin, Use::Kernel) {
        frames.free(&pin, again);
    }
}

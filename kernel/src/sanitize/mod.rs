//! The sanitized kernel: a build (`cargo quire run --sanitize`) in which the compiler asks this module about every
//! memory access, guards every stack frame, and marks every edge of the control flow that was taken. In all other
//! builds [`ON`] is false, and what is here compiles to nothing.
//!
//! # Shadow
//! Each 8 bytes of the kernel's half of the address space have a byte of *shadow*, at `(address >> 3) + OFFSET`: 0 if all
//! of them may be accessed, 1 to 7 if only so many of the first, and if none, a value that says why. This is the
//! scheme of AddressSanitizer (Serebryany and others, USENIX ATC 2012), and what LLVM emits for kernels.
//! ```text
//!  ffff_8000_0000_0000 ..  direct map   checked      shadow  ffff_e000_0000_0000 ..
//!  ffff_c000_0000_0000 ..  stacks       checked              ffff_e800_0000_0000 ..
//!  ffff_d000_0000_0000 ..  devices      not checked          none
//!  ffff_e000_0000_0000 ..  shadow       not checked          none
//!  ffff_ffff_8000_0000 ..  image        checked              ffff_efff_f000_0000 ..
//! ```
//! `paging` maps shadow for whatever it maps of the three that are checked (`cover`); it is zero until something is
//! poisoned, which is: what of the heap is not allocated, redzones around what is, and what was freed ([`heap`]); in a
//! function's frame, what lies between its variables and those out of scope; what follows a static.
//!
//! # What isn't checked
//! Every check is a call, so nothing depends on shadow before [`start`] turns checking on; until then, in early boot, the
//! calls return at once. The checks themselves are assembly, which the compiler doesn't instrument, so they can't call
//! themselves; what they call when they fail is Rust, whose own accesses are good and end in the assembly. The heap's
//! allocator keeps its records in memory that is poisoned, and is [exempt] while it works. Copies to and from user memory
//! are assembly: `usercopy` asks about its kernel's side itself. `core` and `alloc` as they come with the compiler are
//! not instrumented but for what is generic or inlined; with the library's sources they are, too.
#![allow(unsafe_code)] // shadow is memory by address; each block says why it is sound

#[cfg(feature = "sanitize")]
mod checks;
mod coverage;
pub mod heap;
pub mod selftest;
pub mod shadow;

use core::sync::atomic::{AtomicU32, Ordering};

pub use coverage::edges;
use percpu::MAX_CPUS;

use crate::hw::cpu;

/// Whether this build is the sanitized one.
pub const ON: bool = cfg!(feature = "sanitize");

/// Begin to check. Once, at boot, when the shadow is mapped, this CPU has its words, and nothing is allocated yet.
pub fn start() {
    #[cfg(feature = "sanitize")]
    checks::start();
}

/// The caller is about to access `bytes` bytes at `at` in a way that the compiler doesn't see.
#[inline]
pub fn check(at: u64, bytes: u64, write: bool) {
    #[cfg(feature = "sanitize")]
    checks::check(at, bytes, write);
    let _ = (at, bytes, write);
}

/// How many calls of [`exempt`] each CPU is in.
static EXEMPT: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];

/// Run `f`, which may access what is poisoned, and does not sleep. For the heap alone.
#[inline]
pub fn exempt<R>(f: impl FnOnce() -> R) -> R {
    if !ON {
        return f();
    }
    // Relaxed, both: only this CPU reads it.
    let depth = &EXEMPT[cpu::id().index()];
    depth.fetch_add(1, Ordering::Relaxed);
    let result = f();
    depth.fetch_sub(1, Ordering::Relaxed);
    result
}

/// Whether this CPU runs an [`exempt`] piece of code.
#[cfg(feature = "sanitize")]
fn is_exempt() -> bool {
    // Relaxed: as above.
    EXEMPT[cpu::id().index()].load(Ordering::Relaxed) > 0
}

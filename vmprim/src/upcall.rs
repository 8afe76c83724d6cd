//! Faults without signals, on a Quire kernel: the kernel calls [`entry`] on the thread's alternate stack with the registers that
//! the access had, and one call of ours goes back to them (`docs/primitives.md`, "On Quire").
//!
//! ```text
//! access -> exception -> entry: save what a function may change -> on_upcall: the dispatch of signals' faults
//!        <- q_resume  <- load it again                          <-
//! ```
//! The kernel stores a frame of 18 words and the stack's *top*, and nothing else; so a fault costs no signal, and no saving of
//! vector registers but ours. Which of them are saved is the CPU's to know: `xsavec` leaves out what is in its initial state.
//!
//! A thread that isn't attached has no stack of ours: its faults arrive as SIGSEGV. So do those that are of no region, once the
//! thread has given its upcalls up for that.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    arch::{global_asm, x86_64},
    sync::{
        OnceLock,
        atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering},
    },
};

use crate::{
    access::Kind,
    dispatch,
    error::Errno,
    fault::{Outcome, Place},
    sys,
    thread::Block,
};

/// The key in the auxiliary vector.
const AT_QUIRE: u64 = 0x5155_4952;
const MAGIC: [u8; 8] = *b"QuireVM\0";
const VERSION: u32 = 1;
/// What the library needs: levels, upcalls, what was written, calls that start over.
const FEATURES: u64 = 15;

/// What the key's value points to.
#[repr(C)]
struct Info {
    magic: [u8; 8],
    version: u32,
    first_call: u32,
    features: u64,
}

/// The kernel's own calls.
#[derive(Clone, Copy, Debug)]
pub struct Calls {
    first: i64,
}

/// A part of [`Calls::prot`].
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Op {
    pub address: u64,
    pub pages: u64,
    pub level: u32,
    pub raise: u32,
}

/// Said in the place of a level: by `region`, no level; by `resume`, the page's own.
pub const NO_LEVEL: u64 = 3;

impl Calls {
    /// Those of this kernel, if it has them all. Asked once: no call is tried on another kernel.
    pub fn find() -> Option<Self> {
        static FOUND: OnceLock<Option<Calls>> = OnceLock::new();
        *FOUND.get_or_init(|| {
            // SAFETY: it reads the auxiliary vector.
            let info = unsafe { libc::getauxval(AT_QUIRE) } as *const Info;
            // SAFETY: a kernel that has the key has the structure there.
            let info = unsafe { info.as_ref() }?;
            let fits = info.magic == MAGIC
                && info.version == VERSION
                && info.features & FEATURES == FEATURES
                && cfg!(target_arch = "x86_64");
            let calls = fits.then(|| Calls { first: info.first_call.into() })?;
            AREA.store(area(), Ordering::Relaxed);
            // Relaxed, all three: the stub runs in threads that were armed later.
            COMPACT.store(is_compact(), Ordering::Relaxed);
            RESUME.store(calls.first.wrapping_add(4), Ordering::Relaxed);
            Some(calls)
        })
    }
    /// # Safety
    /// What the call does to memory is the caller's to do.
    unsafe fn call(self, which: i64, a: [usize; 4]) -> Result<(), Errno> {
        let [a, b, c, d] = a;
        // SAFETY: as the caller says.
        sys::check(unsafe { libc::syscall(self.first.wrapping_add(which), a, b, c, d) }).map(drop)
    }
    /// Manage memory, or no longer.
    ///
    /// # Safety
    /// The memory is the caller's to protect.
    pub unsafe fn region(self, address: usize, len: usize, level: u64) -> Result<(), Errno> {
        // SAFETY: as the caller says.
        unsafe { self.call(0, [address, len, level as usize, 0]) }
    }
    /// Take upcalls on a stack, for a block.
    fn upcall(self, entry: usize, stack: usize, len: usize, block: *const Block) -> Result<(), Errno> {
        // SAFETY: the stack is the block's.
        unsafe { self.call(1, [entry, stack, len, block as usize]) }
    }
    /// Change levels; the parts ascend.
    ///
    /// # Safety
    /// As [`Self::region`].
    pub unsafe fn prot(self, ops: &[Op]) -> Result<(), Errno> {
        // SAFETY: as the caller says.
        unsafe { self.call(2, [ops.as_ptr() as usize, ops.len(), 0, 0]) }
    }
    /// What was written of so many pages; a bit for each.
    pub fn dirty(self, address: usize, pages: usize, bits: &mut [u64]) -> Result<(), Errno> {
        debug_assert!(bits.len() >= pages.div_ceil(64));
        // SAFETY: it writes to the bits alone, of which there are enough.
        unsafe { self.call(3, [address, pages, bits.as_mut_ptr() as usize, 0]) }
    }
}

/// The calling thread takes upcalls on `len` bytes of stack, if this kernel makes them.
pub fn arm(stack: usize, len: usize, block: &'static Block) -> Result<(), Errno> {
    Calls::find()
        .map_or(Ok(()), |calls| calls.upcall(vmprim_upcall_entry as *const () as usize, stack, len, block))
}

/// It takes none any more.
pub fn disarm() {
    if let Some(calls) = Calls::find() {
        let _ = calls.upcall(0, 0, 0, std::ptr::null());
    }
}

/// What the kernel stores.
#[derive(Debug)]
#[repr(C)]
struct Frame {
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
    address: u64,
    error: u64,
    level: u64,
    cookie: u64,
    top: u64,
    /// A word and its bits that are to be cleared when the page was raised.
    word: u64,
    mask: u64,
    saved: [u64; 6],
}

const ERROR_WRITE: u64 = 1 << 1;

/// Bytes that the CPU's registers take, whether `xsavec` saves them, and the number of `q_resume`: for the stub.
static AREA: AtomicUsize = AtomicUsize::new(0);
static COMPACT: AtomicU64 = AtomicU64::new(0);
static RESUME: AtomicI64 = AtomicI64::new(0);

/// Bytes of the area, and its header: a multiple of 64.
fn area() -> usize {
    // Leaf 13 says it for what the system has switched on.
    let size = x86_64::__cpuid_count(13, 0).ebx.max(576);
    (size as usize).next_multiple_of(64)
}

fn is_compact() -> u64 {
    u64::from(x86_64::__cpuid_count(13, 1).eax >> 1 & 1)
}

unsafe extern "C" {
    fn vmprim_upcall_entry();
}

// RSP is at the frame. Words 12 to 17 of it are for the registers that a call takes or changes.
global_asm!(
    ".pushsection .text.vmprim_upcall_entry, \"ax\", @progbits",
    ".balign 16",
    ".globl vmprim_upcall_entry",
    ".hidden vmprim_upcall_entry",
    "vmprim_upcall_entry:",
    "mov [rsp + 96], rax",
    "mov [rsp + 104], rdi",
    "mov [rsp + 112], rsi",
    "mov [rsp + 120], rdx",
    "mov [rsp + 128], rcx",
    "mov [rsp + 136], r11",
    "mov rdi, rsp",
    "push r8",
    "push r9",
    "push r10",
    "push rbp",
    "push rbx",
    "mov rbx, rdi",
    "mov rbp, rsp",
    "sub rsp, [rip + {area}]",
    "and rsp, -64",
    // The header, which must have no bits that mean nothing.
    "xor ecx, ecx",
    "mov [rsp + 512], rcx",
    "mov [rsp + 520], rcx",
    "mov [rsp + 528], rcx",
    "mov [rsp + 536], rcx",
    "mov [rsp + 544], rcx",
    "mov [rsp + 552], rcx",
    "mov [rsp + 560], rcx",
    "mov [rsp + 568], rcx",
    "mov eax, -1",
    "mov edx, -1",
    "cmp [rip + {compact}], rcx",
    "je 2f",
    "xsavec64 [rsp]",
    "jmp 3f",
    "2: xsave64 [rsp]",
    // What a function may rely on: no exceptions of arithmetic.
    "3: push 0x1f80",
    "ldmxcsr [rsp]",
    "pop rcx",
    "call {body}",
    "mov r8, rax",
    "mov eax, -1",
    "mov edx, -1",
    "xrstor64 [rsp]",
    "mov rsp, rbp",
    "mov rdi, rbx",
    "mov rsi, r8",
    "pop rbx",
    "pop rbp",
    "pop r10",
    "pop r9",
    "pop r8",
    "mov edx, 1",
    "mov rax, [rip + {resume}]",
    "syscall",
    "mov rdi, rax",
    "and rsp, -16",
    "call {refused}",
    "ud2",
    ".popsection",
    area = sym AREA,
    compact = sym COMPACT,
    resume = sym RESUME,
    body = sym on_upcall,
    refused = sym on_refused,
);

/// The kernel did not go back: there is no memory to raise the page, or the frame isn't what it was.
unsafe extern "C" fn on_refused(result: i64) {
    let errno = result.unsigned_abs() as usize;
    sys::die(&[
        "vmprim: the kernel can't go back from a fault (code ",
        sys::Digits::new(errno, 10).as_str(),
        ")\n",
    ]);
}

/// The rest of the handler, called by the stub: the level that the page is to be raised to.
unsafe extern "C" fn on_upcall(frame: *mut Frame) -> u64 {
    // SAFETY: the location is this thread's own.
    let errno = unsafe { libc::__errno_location().read() };
    // SAFETY: the kernel's, on this stack, and nothing else uses it.
    let frame = unsafe { &mut *frame };
    // SAFETY: the block that the thread was armed with, which lives for ever.
    let block = unsafe { &*(frame.cookie as *const Block) };
    let kind = if frame.error & ERROR_WRITE != 0 { Kind::Write } else { Kind::Read };
    let place = Place { kind, pc: frame.rip as usize, signal: libc::SIGSEGV, upcall: true };
    let mut level = NO_LEVEL;
    match dispatch::ours(block, frame.address as usize, place) {
        Outcome::Resume { .. } => {}
        Outcome::Raise(later) => {
            (frame.word, frame.mask) = (later.word as u64, later.mask.into());
            level = later.level as u64;
        }
        Outcome::Divert(to) => frame.rip = to as u64,
        // Whoever has a handler of signals for it.
        Outcome::Forward => disarm(),
    }
    // SAFETY: see above.
    unsafe { libc::__errno_location().write(errno) };
    level
}

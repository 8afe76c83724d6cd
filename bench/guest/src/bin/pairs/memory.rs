//! The operations themselves, on pages at fixed addresses, and what becomes of an access that is refused.
//!
//! Loads and stores are two functions in assembly of which the signal handler knows the one instruction that may fault:
//! it goes on behind it, with an answer that is no word of a page's.

use std::mem::zeroed;

use crate::{
    combination::{Combination, Operation, Place, Share, Start},
    sys::die_of,
};

/// Bytes in a page.
const PAGE: usize = 4096;
/// Where the first side's page is: 64 GiB.
const BASE: usize = 64 << 30;
/// How far the second's is, if far: in another line of the table that has an entry for each GiB.
const FAR: usize = 8 << 30;
/// How far it is, if near, in pages.
const NEAR: usize = 8;
/// A page that stays mapped, so that the table of the second level is always there.
const ANCHOR: usize = 32 << 30;
/// From a side's page, in pages: the neighbour that keeps the tables, and the place to move to; a second side's are one
/// step further. All of that lies in 256 KiB, and what isn't meant to share a line doesn't: eight entries, or words of a tree.
const NEIGHBOUR: usize = 16;
const TARGET: usize = 24;
const STEP: usize = 16;
/// Behind all of a side's pages, in pages.
const END: usize = 256;

/// An answer that is no word: the access was refused by a signal.
pub const REFUSED: u64 = 1 << 63;
/// The call failed, with this errno in the low bits.
pub const ERROR: u64 = 1 << 62;
/// What a page is at the end: it can be written, beside the word that it has.
pub const WRITABLE: u64 = 1 << 61;
/// What pages with contents have in their first word.
const CONTENTS: u64 = 0x100;

std::arch::global_asm!(
    ".globl pairs_load, pairs_loaded, pairs_store, pairs_stored",
    "pairs_load: mov rax, [rdi]",
    "pairs_loaded: ret",
    "pairs_store: mov [rdi], rsi",
    "mov eax, 0",
    "pairs_stored: ret",
);

unsafe extern "C" {
    /// The word at `at`, or [`REFUSED`].
    fn pairs_load(at: usize) -> u64;
    fn pairs_loaded();
    /// Store; 0, or [`REFUSED`].
    fn pairs_store(at: usize, word: u64) -> u64;
    fn pairs_stored();
}

/// Let refused accesses of the two functions be answered instead of ending the program.
pub fn catch_refusals() {
    // SAFETY: all zeroes is an action without flags; the handler below has the form that SA_SIGINFO says, and touches
    // only what it is given.
    let result = unsafe {
        let mut action: libc::sigaction = zeroed();
        action.sa_sigaction = on_refusal as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGSEGV, &action, std::ptr::null_mut())
    };
    if result != 0 {
        die_of("sigaction");
    }
}

extern "C" fn on_refusal(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives a handler the context of the thread that it interrupted, which nobody else uses.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let at = registers[libc::REG_RIP as usize];
    let after = match at {
        _ if at == pairs_load as *const () as i64 => pairs_loaded as *const () as i64,
        _ if at == pairs_store as *const () as i64 => pairs_stored as *const () as i64,
        _ => std::process::abort(),
    };
    registers[libc::REG_RIP as usize] = after;
    registers[libc::REG_RAX as usize] = REFUSED as i64;
}

/// One side's part of a combination.
#[derive(Clone, Copy)]
pub struct Part {
    side: usize,
    page: usize,
    target: usize,
    neighbour: Option<usize>,
    start: Start,
    /// Whether this side makes its page ready. Of a page of both the first does.
    prepares: bool,
    operation: Operation,
}

impl Part {
    /// That of side 0 or 1.
    pub fn new(combination: &Combination, side: usize) -> Self {
        let offset = match combination.place {
            Place::Same => 0,
            Place::Adjacent => PAGE,
            Place::Near => NEAR * PAGE,
            Place::Disjoint => FAR,
        };
        let page = BASE + side * offset;
        let step = side * STEP * PAGE;
        let prepares = side == 0 || combination.place != Place::Same || combination.share == Share::Processes;
        Self {
            side,
            page,
            target: page + TARGET * PAGE + step,
            neighbour: combination.warm.then_some(page + NEIGHBOUR * PAGE + step),
            start: combination.starts()[side],
            prepares,
            operation: combination.operations[side],
        }
    }

    /// Make the page what it is to be before.
    pub fn prepare(&self) {
        if let Some(neighbour) = self.neighbour {
            map(neighbour);
            store(neighbour, CONTENTS);
        }
        if self.prepares && self.start != Start::Free {
            map(self.page);
            if self.start == Start::Present {
                store(self.page, CONTENTS);
            }
        }
    }

    /// Do the operation; its answer.
    #[inline(always)]
    pub fn operate(&self) -> u64 {
        let page = self.page as *mut libc::c_void;
        let (readable, writable) = (libc::PROT_READ, libc::PROT_READ | libc::PROT_WRITE);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        // SAFETY: all of it is about pages of this program's that hold no object.
        let failed = unsafe {
            match self.operation {
                Operation::Mmap => libc::mmap(page, PAGE, writable, flags, -1, 0) == libc::MAP_FAILED,
                Operation::Munmap => libc::munmap(page, PAGE) != 0,
                Operation::Mprotect => libc::mprotect(page, PAGE, readable) != 0,
                Operation::Madvise => libc::madvise(page, PAGE, libc::MADV_DONTNEED) != 0,
                Operation::Mremap => {
                    let (flags, target) = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, self.target);
                    libc::mremap(page, PAGE, PAGE, flags, target) == libc::MAP_FAILED
                }
                Operation::Read => return pairs_load(self.page),
                Operation::Fault | Operation::Write => {
                    return pairs_store(self.page, CONTENTS + 1 + self.side as u64);
                }
            }
        };
        if failed { ERROR | std::io::Error::last_os_error().raw_os_error().unwrap_or(0) as u64 } else { 0 }
    }

    /// What the page and the place to move to are now: each a word, [`WRITABLE`] or not, or [`REFUSED`].
    pub fn look(&self) -> [u64; 2] {
        [self.page, self.target].map(|at| {
            // SAFETY: a refusal is an answer, and stores put back what is there.
            unsafe {
                let word = pairs_load(at);
                if word == REFUSED || pairs_store(at, word) == REFUSED { word } else { word | WRITABLE }
            }
        })
    }

    /// Unmap all that there may be.
    pub fn clear(&self) {
        let start = self.page - self.side * PAGE;
        // SAFETY: pages of this program's that hold no object.
        if unsafe { libc::munmap(start as *mut libc::c_void, END * PAGE) } != 0 {
            die_of("munmap");
        }
    }
}

/// Map the page that stays.
pub fn anchor() {
    map(ANCHOR);
    store(ANCHOR, CONTENTS);
}

fn map(at: usize) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    // SAFETY: pages of this program's that hold no object.
    let mapped = unsafe {
        libc::mmap(at as *mut libc::c_void, PAGE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
    };
    if mapped as usize != at {
        die_of("mmap");
    }
}

fn store(at: usize, word: u64) {
    // SAFETY: a page that was just mapped, and that holds no object.
    if unsafe { pairs_store(at, word) } != 0 {
        crate::sys::die("a page that was just mapped can't be written");
    }
}

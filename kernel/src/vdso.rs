//! The vDSO: clock functions that a program calls without entering the kernel (vdso(7)).
//!
//! Every program gets two pages, one after the other, the same frames for all:
//!
//! ```text
//! [vvar]  r--   how to make a time of the TSC: base, multiplier, date at boot; what Quire has that Linux has not
//! [vdso]  r-x   an ELF shared object: headers, symbol tables, and the code below, which finds [vvar] one page before
//! ```
//! The auxiliary vector tells where the second page is. C libraries look for `__vdso_clock_gettime` and its like with
//! the version LINUX_2.6, by DT_HASH, DT_VERSYM and DT_VERDEF; the image has just what they read, and no sections.
//!
//! The values in [vvar] are set at boot and never change: the clock is not steered, and the date can't be set. So the
//! readers need no sequence count. A clock that the code does not know is left to the system call.
//!
//! `__vdso_getcpu` is the system call: user code could learn its CPU from TSC_AUX, but nothing says that the processor
//! lets it.
#![allow(unsafe_code)] // Assembly that runs in user mode, and the frames that hold it.

use alloc::{sync::Arc, vec, vec::Vec};
use core::{arch::global_asm, ptr, slice};

use addr::{PAGE_BYTES, PAGE_SIZE, Prot};
use aspace::{AddressSpace, Backing, Label, Mapping, Object, ObjectError, Placement, Policy};
use owned::{Memory, OwnedFrame, Use};
use percpu::{Pinned, Unpinned};

use crate::{
    errno::Errno,
    hw::{self, irq},
    memory,
    syscall::managed,
    usercopy,
};

/// Where the code begins in its page.
const TEXT: usize = 0x800;

/// [vvar], byte offsets: the TSC at boot, ns per tick in units of 2^-32, ns from 1970 to boot.
const BASE: usize = 0;
const MULT: usize = 8;
const EPOCH: usize = 16;
/// [vvar], byte offset: Quire's [`managed::info`].
const INFO: usize = 64;

global_asm!(
    ".pushsection .rodata.quire_vdso, \"a\"",
    ".balign 16",
    ".global quire_vdso_start, quire_vdso_end",
    ".global quire_vdso_clock_gettime, quire_vdso_gettimeofday, quire_vdso_time, quire_vdso_getcpu",
    "quire_vdso_start:",
    // rax = ns since boot. Changes rcx and rdx. Fits `Parameters` in hw/timer.rs.
    "2:",
    "lfence",
    "rdtsc",
    "shl rdx, 32",
    "or rax, rdx",
    "sub rax, qword ptr [rip + quire_vdso_start - {vvar} + {base}]",
    "mul qword ptr [rip + quire_vdso_start - {vvar} + {mult}]",
    "shrd rax, rdx, {shift}",
    "ret",
    // rax = seconds, rdx = ns of the time of day.
    "3:",
    "call 2b",
    "add rax, qword ptr [rip + quire_vdso_start - {vvar} + {epoch}]",
    "4:",
    "xor edx, edx",
    "mov ecx, 1000000000",
    "div rcx",
    "ret",
    // edi = clock, rsi = where to store the timespec.
    "quire_vdso_clock_gettime:",
    "cmp edi, 7",
    "ja 6f",
    "mov eax, {realtime}",
    "bt eax, edi",
    "jc 5f",
    "mov eax, {monotonic}",
    "bt eax, edi",
    "jnc 6f",
    "call 2b",
    "call 4b",
    "jmp 7f",
    "5:",
    "call 3b",
    "7:",
    "mov qword ptr [rsi], rax",
    "mov qword ptr [rsi + 8], rdx",
    "xor eax, eax",
    "ret",
    "6:",
    "mov eax, 228",
    "syscall",
    "ret",
    // rdi = where to store the timeval, rsi = where to store the time zone; each may be 0.
    "quire_vdso_gettimeofday:",
    "test rdi, rdi",
    "jz 8f",
    "call 3b",
    "mov qword ptr [rdi], rax",
    "mov rax, rdx",
    "xor edx, edx",
    "mov ecx, 1000",
    "div rcx",
    "mov qword ptr [rdi + 8], rax",
    "8:",
    "xor eax, eax",
    "test rsi, rsi",
    "jz 9f",
    "mov qword ptr [rsi], rax",
    "9:",
    "ret",
    // rdi = where to store the seconds, or 0.
    "quire_vdso_time:",
    "call 3b",
    "test rdi, rdi",
    "jz 9f",
    "mov qword ptr [rdi], rax",
    "9:",
    "ret",
    "quire_vdso_getcpu:",
    "mov eax, 309",
    "syscall",
    "ret",
    "quire_vdso_end:",
    ".popsection",
    vvar = const TEXT + PAGE_BYTES,
    base = const BASE,
    mult = const MULT,
    epoch = const EPOCH,
    shift = const hw::timer::SHIFT,
    // Bits are clock ids: REALTIME, REALTIME_COARSE.
    realtime = const 1 << 0 | 1 << 5,
    // MONOTONIC, MONOTONIC_RAW, MONOTONIC_COARSE, BOOTTIME.
    monotonic = const 1 << 1 | 1 << 4 | 1 << 6 | 1 << 7,
);

unsafe extern "C" {
    static quire_vdso_start: u8;
    static quire_vdso_end: u8;
    static quire_vdso_clock_gettime: u8;
    static quire_vdso_gettimeofday: u8;
    static quire_vdso_time: u8;
    static quire_vdso_getcpu: u8;
}

/// The two frames, as pages 0 and 1 of something that can be mapped.
struct Image {
    frames: [OwnedFrame; 2],
}

/// Index of [vvar] in the object, and of [vdso].
const VVAR_PAGE: u64 = 0;
const VDSO_PAGE: u64 = 1;

impl Object for Image {
    fn page(
        &self,
        index: u64,
        _policy: &Policy,
        frames: &Memory,
        _ctx: &Unpinned<'_>,
    ) -> Result<OwnedFrame, ObjectError> {
        let frame = usize::try_from(index).ok().and_then(|i| self.frames.get(i));
        frame.map(|f| frames.share(f)).ok_or(ObjectError::BeyondEnd)
    }
    fn identity(&self) -> (u64, u64) {
        (0, 0)
    }
    fn path(&self) -> Vec<u8> {
        Vec::new()
    }
}

/// Lives as long as the machine.
static IMAGE: irq::Lock<Option<Arc<Image>>> = irq::Lock::new(None);

/// Make the two pages, once, on the boot CPU before any thread runs. Panics without memory.
pub fn init() {
    // SAFETY: there is no other thread yet that could be pinned here, and this is no interrupt handler.
    let pin = unsafe { Pinned::assume(hw::cpu::id()) };
    let clock = hw::timer::parameters();
    let mut vvar = vec![0; PAGE_BYTES];
    put(&mut vvar, BASE, &clock.base.to_le_bytes());
    put(&mut vvar, MULT, &clock.mult.to_le_bytes());
    put(&mut vvar, EPOCH, &hw::timer::boot_epoch_ns().to_le_bytes());
    put(&mut vvar, INFO, usercopy::bytes_of(&managed::info()));
    let frames = [vvar, elf()].map(|bytes| filled(&bytes, &pin));
    *IMAGE.lock() = Some(Arc::new(Image { frames }));
}

/// A frame that holds `bytes`, one page.
fn filled(bytes: &[u8], pin: &Pinned<'_>) -> OwnedFrame {
    let frame = memory::frames().alloc_zeroed(pin, Use::Kernel).expect("memory for the vDSO");
    let to = memory::dm().ptr(frame.frame().base());
    // SAFETY: the frame is ours alone and mapped there; the length is at most a page.
    unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len().min(PAGE_BYTES)) };
    frame
}

/// Map the two pages into `space`: the address of the second, for AT_SYSINFO_EHDR.
pub fn map(space: &dyn AddressSpace, ctx: &Unpinned<'_>) -> Result<u64, Errno> {
    let image = IMAGE.lock().clone().ok_or(Errno::ENOMEM)?;
    let mapping = |prot: Prot, page: u64, label: Label| Mapping {
        max_prot: prot,
        label,
        ..Mapping::new(prot, Backing::Object { object: image.clone(), page })
    };
    let range = space
        .map(Placement::Anywhere, 2, mapping(Prot::READ, VVAR_PAGE, Label::Vvar), ctx)
        .map_err(|_| Errno::ENOMEM)?;
    let second = range.start().checked_add(1).ok_or(Errno::ENOMEM)?;
    space
        .map(Placement::Fixed(second), 1, mapping(Prot::READ | Prot::EXEC, VDSO_PAGE, Label::Vdso), ctx)
        .map_err(|_| Errno::ENOMEM)?;
    Ok(range.start().base().as_u64() + PAGE_SIZE)
}

/// Where the program whose second page is at `second` finds [`managed::info`].
pub fn info_at(second: u64) -> u64 {
    second - PAGE_SIZE + INFO as u64
}

fn put(page: &mut [u8], at: usize, bytes: &[u8]) {
    page[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A table that is written front to back at a known place of the page.
struct Cursor<'a> {
    page: &'a mut [u8],
    at: usize,
}

impl Cursor<'_> {
    fn u16(&mut self, values: &[u16]) {
        values.iter().for_each(|v| self.bytes(&v.to_le_bytes()));
    }
    fn u32(&mut self, values: &[u32]) {
        values.iter().for_each(|v| self.bytes(&v.to_le_bytes()));
    }
    fn u64(&mut self, values: &[u64]) {
        values.iter().for_each(|v| self.bytes(&v.to_le_bytes()));
    }
    fn bytes(&mut self, bytes: &[u8]) {
        put(self.page, self.at, bytes);
        self.at += bytes.len();
    }
}

/// The hash of a name in DT_HASH and DT_VERDEF (System V gABI, chapter 5).
const fn elf_hash(name: &[u8]) -> u32 {
    let (mut h, mut i) = (0u32, 0);
    while i < name.len() {
        h = (h << 4).wrapping_add(name[i] as u32);
        let top = h & 0xf000_0000;
        h = (h ^ top >> 24) & !top;
        i += 1;
    }
    h
}

/// Build the shared object, one page. Everything in it is at a fixed place below [`TEXT`]; virtual addresses are file
/// offsets.
fn elf() -> Vec<u8> {
    const PROGRAM_HEADERS: usize = 64;
    const SYMBOLS: usize = 0x100;
    const VERSIONS: usize = 0x200;
    const DEFINITIONS: usize = 0x220;
    const HASH: usize = 0x280;
    const STRINGS: usize = 0x300;
    const DYNAMIC: usize = 0x400;
    const SONAME: &[u8] = b"linux-vdso.so.1";
    const VERSION: &[u8] = b"LINUX_2.6";

    let (start, end) = (&raw const quire_vdso_start, &raw const quire_vdso_end);
    let offset = |symbol: *const u8| (TEXT + symbol.addr() - start.addr()) as u64;
    // In the order of the code, so that each function ends where the next begins.
    let functions: [(&[u8], u64); 4] = [
        (b"__vdso_clock_gettime", offset(&raw const quire_vdso_clock_gettime)),
        (b"__vdso_gettimeofday", offset(&raw const quire_vdso_gettimeofday)),
        (b"__vdso_time", offset(&raw const quire_vdso_time)),
        (b"__vdso_getcpu", offset(&raw const quire_vdso_getcpu)),
    ];
    // SAFETY: the linker places the section's bytes between the two symbols, and nobody writes them.
    let text = unsafe { slice::from_raw_parts(start, end.addr() - start.addr()) };

    let mut page = vec![0; PAGE_BYTES];
    put(&mut page, TEXT, text);

    // Strings, with the offset of each; the first is empty.
    let mut strings = Cursor { page: &mut page, at: STRINGS + 1 };
    let mut string = |name: &[u8]| {
        let at = strings.at - STRINGS;
        strings.bytes(name);
        strings.at += 1;
        (at as u32, strings.at - STRINGS)
    };
    let (soname, _) = string(SONAME);
    let (version, _) = string(VERSION);
    let named = functions.map(|(name, value)| (string(name), value));
    let strings_size = named.last().map_or(0, |((_, end), _)| *end as u64);

    let mut out = Cursor { page: &mut page, at: 0 };
    // ELF header: 64 bits, little endian; a shared object for x86-64.
    out.bytes(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    out.u16(&[3, 62]);
    out.u32(&[1]);
    out.u64(&[TEXT as u64, PROGRAM_HEADERS as u64, 0]);
    out.u32(&[0]);
    out.u16(&[64, 56, 2, 64, 0, 0]);
    // PT_LOAD, r-x: the page. PT_DYNAMIC, r--. Each: type, flags; offset, address, physical address, sizes, alignment.
    let (dynamic, dynamic_size, size) = (DYNAMIC as u64, 10 * 16, (TEXT + text.len()) as u64);
    out.u32(&[1, 5]);
    out.u64(&[0, 0, 0, size, size, PAGE_SIZE]);
    out.u32(&[2, 4]);
    out.u64(&[dynamic, dynamic, dynamic, dynamic_size, dynamic_size, 8]);

    // Symbols: one undefined, then global functions in section 1. Name, info, other, section; value, size.
    out.at = SYMBOLS + 24;
    let ends = functions.iter().skip(1).map(|f| f.1).chain([size]);
    for (((name, _), value), end) in named.into_iter().zip(ends) {
        out.u32(&[name]);
        out.bytes(&[0x12, 0]);
        out.u16(&[1]);
        out.u64(&[value, end - value]);
    }

    // Each symbol's version, and the two versions: the object itself, and LINUX_2.6.
    out.at = VERSIONS;
    out.u16(&[0, 2, 2, 2, 2]);
    out.at = DEFINITIONS;
    for (flags, index, name, hash, next) in
        [(1, 1, soname, elf_hash(SONAME), 28), (0, 2, version, elf_hash(VERSION), 0)]
    {
        out.u16(&[1, flags, index, 1]);
        out.u32(&[hash, 20, next]);
        out.u32(&[name, 0]);
    }

    // One bucket: a chain of all symbols.
    out.at = HASH;
    out.u32(&[1, 5, 1, 0, 2, 3, 4, 0]);

    out.at = DYNAMIC;
    for (tag, value) in [
        (14, u64::from(soname)), // DT_SONAME
        (4, HASH as u64),        // DT_HASH
        (5, STRINGS as u64),     // DT_STRTAB
        (6, SYMBOLS as u64),     // DT_SYMTAB
        (10, strings_size),      // DT_STRSZ
        (11, 24),                // DT_SYMENT
        (0x6fff_fff0, VERSIONS as u64),
        (0x6fff_fffc, DEFINITIONS as u64),
        (0x6fff_fffd, 2), // DT_VERDEFNUM
        (0, 0),
    ] {
        out.u64(&[tag, value]);
    }
    page
}

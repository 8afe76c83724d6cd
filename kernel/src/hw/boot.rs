//! From the loader to Rust: the PVH entry of the boot CPU and the real-mode entry of the others.
//!
//! QEMU's `-kernel` finds an ELF note of owner "Xen" and type 18 and jumps to the physical address in it, in 32-bit
//! protected mode with paging off and EBX pointing to [`StartInfo`] (Xen's `docs/misc/pvh.pandoc` and
//! `xen/include/public/arch-x86/hvm/start_info.h`). The other CPUs begin in real mode in a page below 1 MiB, to which
//! [`install_trampoline`] copies some bytes. Both meet in `long_mode`.
//!
//! The tables used here map the first GiB three times, at 0, at the direct map and at the image, all of it writable and
//! executable; each CPU leaves them for the kernel's own within its first instructions in 64-bit mode.

use core::{arch::global_asm, cell::UnsafeCell, mem::MaybeUninit, slice, str};

use addr::PhysAddr;

use super::{acpi, apic, cpu, fpu, gdt, idt, paging, timer};
use crate::{memory, sanitize};

/// Where the image is mapped: virtual address less physical address.
pub const KERNEL_BASE: u64 = 0xffff_ffff_8000_0000;
/// Physical page of the real-mode trampoline; its number is the start-up IPI's vector.
pub const TRAMPOLINE: u64 = 0x8000;

global_asm!(
    r#"
    .set BASE, {base}
    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18
    .asciz "Xen"
    .quad boot_start - BASE

    .section .boot.text, "ax"
    .code32
    .global boot_start
boot_start:
    cli
    cld
    xorl %ebp, %ebp                     # the boot CPU
    jmp long_mode

    # The others come from the trampoline, on flat 32-bit segments.
ap32:
    movw $0x10, %ax
    movw %ax, %ds
    movl $1, %ebp

long_mode:                              # EBX, EBP are kept
    movl $0x20, %eax                    # CR4: PAE
    movl %eax, %cr4
    movl $(boot_pml4 - BASE), %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx              # EFER: LME
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl $0x80010033, %eax              # CR0: PG WP NE ET MP PE
    movl %eax, %cr0
    lgdt boot_gdtr - BASE
    ljmpl $0x08, $(low64 - BASE)

    .code64
low64:
    movabsq $high64, %rax
    jmpq *%rax
high64:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    testl %ebp, %ebp
    jnz ap64
    movq $boot_stack_top, %rsp
    movl %ebx, %edi
    call {start}
    ud2

ap64:
    # One locked add gives each CPU its stack, so that all can come at once. A CPU that the firmware did not list
    # may come too; it is parked.
    movl $1, %eax
    lock xaddl %eax, {ticket}(%rip)
    cmpl {expected}(%rip), %eax
    jae park
    movq {stacks}(,%rax,8), %rsp
    movl $0xc0000080, %ecx              # EFER: NXE, before tables that use the bit
    rdmsr
    orl $0x800, %eax
    wrmsr
    movl ${root} - BASE, %eax
    movq %rax, %cr3
    xorl %ebp, %ebp
    call {start_other}
park:
    cli
    hlt
    jmp park

    # Copied to TRAMPOLINE; INIT leaves CS = TRAMPOLINE >> 4 and caches off (CR0.CD), which the load of CR0 mends.
    .code16
    .global trampoline_start, trampoline_end
trampoline_start:
    cli
    cld
    xorw %ax, %ax
    movw %ax, %ds
    lgdtl {trampoline} + trampoline_gdtr - trampoline_start
    movl $0x11, %eax                    # CR0: ET PE
    movl %eax, %cr0
    ljmpl $0x18, $(ap32 - BASE)
    .balign 4
trampoline_gdtr:
    .word 31
    .long boot_gdt - BASE
trampoline_end:
    .code64

    .section .boot.data, "aw"
    .balign 4096
boot_pml4:
    .quad boot_pdpt - BASE + 3
    .fill 255, 8, 0
    .quad boot_pdpt - BASE + 3          # entry 256: the direct map
    .fill 254, 8, 0
    .quad boot_pdpt - BASE + 3          # entry 511: the image
boot_pdpt:
    .quad boot_pd - BASE + 3
    .fill 509, 8, 0
    .quad boot_pd - BASE + 3            # entry 510: KERNEL_BASE
    .quad 0
boot_pd:
    .set at, 0
    .rept 512
    .quad at + 0x83
    .set at, at + 0x200000
    .endr
boot_gdt:
    .quad 0, 0x00af9a000000ffff, 0x00cf92000000ffff, 0x00cf9a000000ffff
boot_gdtr:
    .word 31
    .long boot_gdt - BASE, 0

    .section .bss
    .balign 4096
    .global boot_stack_guard
boot_stack_guard:                       # not mapped in the kernel's tables
    .skip 4096
    .skip {stack}
boot_stack_top:
    .text
    "#,
    base = const KERNEL_BASE as i64,
    trampoline = const TRAMPOLINE,
    start = sym start,
    start_other = sym super::smp::start_other,
    ticket = sym super::smp::TICKET,
    expected = sym super::smp::EXPECTED,
    stacks = sym super::smp::STACK_TOPS,
    root = sym paging::ROOT,
    stack = const paging::BOOT_STACK_BYTES,
    options(att_syntax)
);

unsafe extern "C" {
    static trampoline_start: u8;
    static trampoline_end: u8;
}

/// `hvm_start_info`, version 1.
#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    modules_at: u64,
    cmdline_at: u64,
    rsdp_at: u64,
    memmap_at: u64,
    memmap_entries: u32,
    _reserved: u32,
}

/// `hvm_modlist_entry`.
#[repr(C)]
struct Module {
    at: u64,
    size: u64,
    _cmdline_at: u64,
    _reserved: u64,
}

/// `hvm_memmap_table_entry`; `kind` 1 is RAM (as in the BIOS's E820).
#[repr(C)]
#[derive(Clone, Copy)]
struct MemmapEntry {
    at: u64,
    size: u64,
    kind: u32,
    _reserved: u32,
}

const MAGIC: u32 = 0x336e_c578;
const RAM: u32 = 1;
const MAX_RANGES: usize = 64;
const MAX_CMDLINE: usize = 2048;

/// Physical bytes `start..end`.
#[derive(Clone, Copy, Default, Debug)]
pub struct PhysRange {
    /// First byte.
    pub start: u64,
    /// First byte after.
    pub end: u64,
}

impl PhysRange {
    /// Whether the two have a byte in common.
    pub fn overlaps(self, other: PhysRange) -> bool {
        self.start < other.end && other.start < self.end
    }
}

/// What the loader says, copied out of its memory.
pub struct Info {
    ram: [PhysRange; MAX_RANGES],
    ram_len: usize,
    cmdline: [u8; MAX_CMDLINE],
    cmdline_len: usize,
    rsdp: u64,
    initramfs: PhysRange,
}

impl Info {
    /// RAM in ascending order, cut to whole frames.
    pub fn ram(&self) -> &[PhysRange] {
        &self.ram[..self.ram_len]
    }
    /// The command line; bytes after the first that is not UTF-8 are dropped.
    pub fn cmdline(&self) -> &str {
        let bytes = &self.cmdline[..self.cmdline_len];
        match str::from_utf8(bytes) {
            Ok(s) => s,
            Err(e) => str::from_utf8(&bytes[..e.valid_up_to()]).unwrap_or_default(),
        }
    }
    /// Physical address of ACPI's root pointer, 0 if there is none.
    pub fn rsdp(&self) -> u64 {
        self.rsdp
    }
    /// The first module, empty if there is none.
    pub fn initramfs(&self) -> PhysRange {
        self.initramfs
    }

    /// # Safety
    /// `at` is what the loader passed, and its memory is still as the loader left it and mapped by the boot tables.
    unsafe fn parse(at: u64) -> Self {
        let mut info = Self {
            ram: [PhysRange::default(); MAX_RANGES],
            ram_len: 0,
            cmdline: [0; MAX_CMDLINE],
            cmdline_len: 0,
            rsdp: 0,
            initramfs: PhysRange::default(),
        };
        // SAFETY: the caller's; the structures are those of the PVH protocol, plain data within the first GiB.
        let (start, memmap, modules) = unsafe {
            let start = &*low::<StartInfo>(at);
            assert!(
                start.magic == MAGIC && start.version >= 1,
                "not started by a PVH loader with a memory map"
            );
            (
                start,
                slice::from_raw_parts(low::<MemmapEntry>(start.memmap_at), start.memmap_entries as usize),
                if start.modules == 0 {
                    &[]
                } else {
                    slice::from_raw_parts(low::<Module>(start.modules_at), 1)
                },
            )
        };
        for e in memmap.iter().filter(|e| e.kind == RAM) {
            let r = PhysRange { start: e.at.next_multiple_of(4096), end: (e.at + e.size) & !4095 };
            if r.start < r.end && info.ram_len < MAX_RANGES {
                info.ram[info.ram_len] = r;
                info.ram_len += 1;
            }
        }
        info.ram[..info.ram_len].sort_unstable_by_key(|r| r.start);
        if let Some(m) = modules.first() {
            info.initramfs = PhysRange { start: m.at, end: m.at + m.size };
        }
        if start.cmdline_at != 0 {
            // SAFETY: a string that ends in 0, in the loader's memory.
            let line = unsafe { core::ffi::CStr::from_ptr(low(start.cmdline_at)) }.to_bytes();
            info.cmdline_len = line.len().min(MAX_CMDLINE);
            info.cmdline[..info.cmdline_len].copy_from_slice(&line[..info.cmdline_len]);
        }
        info.rsdp = start.rsdp_at;
        info
    }
}

/// The loader's memory, by the boot tables' direct map.
fn low<T>(at: u64) -> *const T {
    assert!(at < 1 << 30, "boot data above 1 GiB");
    core::ptr::with_exposed_provenance((paging::DIRECT_MAP + at) as usize)
}

struct InfoCell(UnsafeCell<MaybeUninit<Info>>);
// SAFETY: written once by `start` before any other CPU or reader exists.
unsafe impl Sync for InfoCell {}
static INFO: InfoCell = InfoCell(UnsafeCell::new(MaybeUninit::uninit()));

/// The boot CPU's first Rust code: on the boot stack, on the boot tables, interrupts off.
extern "C" fn start(info: u32) -> ! {
    timer::start_clock();
    // SAFETY: the loader's pointer, passed on by `boot_start`; nothing has been written to RAM outside the image yet.
    let info: &'static Info = unsafe { (*INFO.0.get()).write(Info::parse(info.into())) };
    cpu::detect();
    // SAFETY: the image is still writable and no other CPU runs.
    unsafe { cpu::patch_smap() };
    memory::begin(info);
    paging::init(info);
    idt::init();
    // SAFETY: this is CPU 0's first initialisation, on its final page tables.
    unsafe { gdt::init_cpu(percpu::CpuId::default()) };
    cpu::init();
    let machine = acpi::init(info);
    sanitize::start();
    memory::init(info, cpu::count());
    gdt::prepare_others();
    apic::init(machine);
    timer::init(machine);
    fpu::init();
    crate::kernel_main(info)
}

/// Copy the real-mode entry to its page.
pub fn install_trampoline() {
    // SAFETY: the symbols bound the code; the page lies in the first MiB, which is RAM, reserved, and mapped.
    unsafe {
        let from = &raw const trampoline_start;
        let len = (&raw const trampoline_end).addr() - from.addr();
        let at = PhysAddr::new(TRAMPOLINE).map(|p| memory::dm().ptr(p));
        core::ptr::copy_nonoverlapping(from, at.unwrap_or(core::ptr::null_mut()), len);
    }
}

//! Segments and task state: per CPU one table of descriptors and one task-state segment, which names the stacks that the
//! CPU switches to by itself.
//!
//! Selectors are Linux's, since signal frames show them to programs. The interrupt stack table (Intel SDM vol. 3A,
//! 6.14.5) gives a stack of their own to the three exceptions that can come when the current one is unusable: double
//! fault (the kernel stack ran into its guard page), NMI (between `syscall` and the load of a kernel stack) and
//! machine check. The word at the top of each is the address of the CPU's [`cpu::Local`], so that their handlers can
//! find it whatever GS holds.

use core::{arch::asm, mem::offset_of};

use percpu::CpuId;

use super::{cpu, paging};

/// Kernel code.
pub const KERNEL_CS: u16 = 0x10;
/// Kernel data.
pub const KERNEL_SS: u16 = 0x18;
/// User data, with the privilege level.
pub const USER_SS: u16 = 0x2b;
/// User code, with the privilege level.
pub const USER_CS: u16 = 0x33;
/// The base from which `sysret` computes both: + 8 is data, + 16 is code. There is no 32-bit user code segment.
pub const SYSRET_BASE: u16 = 0x23;
const TSS_SELECTOR: u16 = 0x40;
/// Descriptors in the table.
pub const ENTRIES: usize = 10;

/// The table but for the task state, which takes the last two.
pub const TEMPLATE: [u64; ENTRIES] = [
    0,
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
    0,
    0,
    0,
];

/// Index of the double fault's stack in the table, from 1.
pub const IST_DOUBLE_FAULT: u8 = 1;
/// Of the non-maskable interrupt's.
pub const IST_NMI: u8 = 2;
/// Of the machine check's.
pub const IST_MACHINE_CHECK: u8 = 3;
/// Pages of each.
const IST_PAGES: usize = 2;

/// The 64-bit task state (SDM vol. 3A, figure 8-11).
#[repr(C, packed(4))]
pub struct Tss {
    _reserved0: u32,
    rsp: [u64; 3],
    _reserved1: u64,
    ist: [u64; 7],
    _reserved2: [u16; 5],
    io_map: u16,
}

impl Tss {
    /// Offset of the stack for entries from user mode.
    pub const RSP0: usize = offset_of!(Tss, rsp);
    /// No stacks; no port is open to user mode.
    pub const fn new() -> Self {
        Self {
            _reserved0: 0,
            rsp: [0; 3],
            _reserved1: 0,
            ist: [0; 7],
            _reserved2: [0; 5],
            io_map: size_of::<Self>() as u16,
        }
    }
}

/// Give `cpu` its interrupt stacks.
///
/// # Safety
/// `cpu` does not run yet, or is this one before its first use of [`init_cpu`]'s tables.
unsafe fn prepare(cpu: CpuId) {
    let local = cpu::local(cpu);
    for ist in [IST_DOUBLE_FAULT, IST_NMI, IST_MACHINE_CHECK] {
        let top = paging::map_stack(IST_PAGES).expect("no memory for interrupt stacks").as_u64() - 16;
        // SAFETY: the page is mapped and ours; nobody uses the CPU's words yet.
        unsafe {
            core::ptr::with_exposed_provenance_mut::<u64>(top as usize)
                .write(local.expose_provenance() as u64);
            (&raw mut (*local).tss.ist).cast::<u64>().add(usize::from(ist) - 1).write_unaligned(top);
        }
    }
}

/// Give the other CPUs their interrupt stacks, once there are frames.
pub fn prepare_others() {
    for cpu in (1..cpu::count()).filter_map(CpuId::new) {
        // SAFETY: the other CPUs have not started.
        unsafe { prepare(cpu) };
    }
}

/// Load the tables of `cpu` on this CPU, which is `cpu` from now on.
///
/// # Safety
/// Once on each CPU, on the kernel's page tables; for CPUs other than 0 after [`prepare_others`].
pub unsafe fn init_cpu(cpu: CpuId) {
    let local = cpu::local(cpu);
    // SAFETY: the caller's: the words are this CPU's and nobody else uses them. The descriptors are right, and those
    // of the segments in use keep their meaning.
    unsafe {
        if cpu.index() == 0 {
            prepare(cpu);
        }
        let base = (&raw const (*local).tss).expose_provenance() as u64;
        let limit = size_of::<Tss>() as u64 - 1;
        // 0x89: present, available 64-bit task state.
        (*local).gdt[usize::from(TSS_SELECTOR / 8)] =
            limit | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
        (*local).gdt[usize::from(TSS_SELECTOR / 8) + 1] = base >> 32;
        let pointer = TablePointer {
            limit: (ENTRIES * 8 - 1) as u16,
            base: (&raw const (*local).gdt).expose_provenance() as u64,
        };
        asm!(
            "lgdt [{pointer}]",
            // Code by a far return, data by loads; GS's base is set after, since loading the selector clears it.
            "push {cs}",
            "lea {scratch}, [rip + 2f]",
            "push {scratch}",
            "retfq",
            "2:",
            "mov ss, {ss:x}",
            "mov ds, {zero:x}",
            "mov es, {zero:x}",
            "mov fs, {zero:x}",
            "mov gs, {zero:x}",
            "ltr {tss:x}",
            // After a reset the local table lies at address 0 with a limit of 64 KiB, where a program could write it.
            "lldt {zero:x}",
            pointer = in(reg) &pointer,
            cs = in(reg) u64::from(KERNEL_CS),
            ss = in(reg) KERNEL_SS,
            zero = in(reg) 0u16,
            tss = in(reg) TSS_SELECTOR,
            scratch = out(reg) _,
        );
        cpu::set_local(cpu);
    }
    super::idt::load();
}

/// The operand of `lgdt` and `lidt`.
#[repr(C, packed)]
pub(super) struct TablePointer {
    /// Size less one, in bytes.
    pub limit: u16,
    /// Where the table is.
    pub base: u64,
}

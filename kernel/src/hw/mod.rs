//! The machine: everything that knows about x86-64 registers, ports and tables, and all of the kernel's assembly.
//!
//! ```text
//!  boot    PVH entry, real-mode trampoline, long mode          switch   kernel stack to kernel stack, to user mode
//!  paging  the kernel's half of every address space            fpu      x87, SSE and AVX state
//!  cpu     features, control registers, per-CPU words by GS    irq      interrupts off, and the lock that does it
//!  gdt     segments, task state, interrupt stacks              apic     local APIC: IPIs, end of interrupt; I/O APIC
//!  idt     the vectors, trap frames, the system call entry     timer    TSC, one-shot timer, the clock at boot
//!  acpi    which CPUs there are, and where their APICs are     serial   output by debug ports, input by COM1
//!  numa    which memory and CPUs are near each other           selftest what the kernel can check of all this
//!  smp     start of the other CPUs                             marker   no-operations that a tracer understands
//! ```
//!
//! # Virtual addresses
//! ```text
//!  0000_0000_0000_0000 .. 0000_7fff_ffff_f000   user
//!  ffff_8000_0000_0000 ..                       direct map of all RAM: writable, never executable
//!  ffff_c000_0000_0000 ..                       kernel stacks, one per 64 KiB, the rest of it guard
//!  ffff_d000_0000_0000 ..                       device registers, uncached
//!  ffff_e000_0000_0000 ..                       shadow, in the sanitized build only (`sanitize`)
//!  ffff_ffff_8020_0000 .. image_end             the image at KERNEL_BASE + physical: text r-x, rodata r--, data rw-
//! ```
//! The 256 upper entries of the root table are filled at boot and never change, so a copy of them in a user address
//! space sees every later change below.
//!
//! # Boot order
//! [`boot`] parses what the loader says, then: final page tables, this CPU's tables, ACPI, frames and heap, APIC,
//! timer, floating point; then `crate::kernel_main`, with interrupts off. That calls [`smp::start`] when the other
//! CPUs may come, and [`serial::enable_input`] when somebody reads.
#![allow(unsafe_code)] // this is the machine; each block says why it is sound

pub mod acpi;
pub mod apic;
pub mod boot;
pub mod cpu;
pub mod fpu;
pub mod gdt;
pub mod idt;
pub mod irq;
pub mod marker;
pub mod numa;
pub mod paging;
pub mod port;
pub mod selftest;
pub mod serial;
pub mod smp;
pub mod switch;
pub mod thread;
pub mod timer;

pub use idt::TrapFrame;

/// `stac`, where the CPU has SMAP, as a line of assembly: user pages from here on, see `usercopy.rs`. It is three bytes
/// of nothing until [`cpu::patch_smap`] puts the instruction in.
macro_rules! stac {
    () => {
        "771: .byte 0x0f, 0x1f, 0x00\n.pushsection .smap_sites, \"a\"\n.quad 771b, 0xcb\n.popsection\n"
    };
}
/// `clac` likewise: no user pages from here on.
macro_rules! clac {
    () => {
        "771: .byte 0x0f, 0x1f, 0x00\n.pushsection .smap_sites, \"a\"\n.quad 771b, 0xca\n.popsection\n"
    };
}
pub(crate) use {clac, stac};

/// End the machine: QEMU exits with status `2 * code + 1` (its isa-debug-exit device at port 0xf4). Where there is no
/// such device, the CPU stops.
pub fn exit(code: u8) -> ! {
    // SAFETY: the port belongs to the debug-exit device, or to nothing.
    unsafe { port::outl(0xf4, code.into()) };
    cpu::stop()
}

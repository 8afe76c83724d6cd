//! Interrupts between CPUs, and from the serial port to one: the local APICs and the I/O APIC.
//!
//! x2APIC (registers are MSRs, a send is one write) where CPUID has it, else xAPIC (registers in memory, 8-bit
//! numbers). Intel SDM vol. 3A, chapter 10; the I/O APIC is Intel's 82093AA data sheet.

use core::{
    arch::asm,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};

use addr::PhysAddr;
use percpu::{CpuId, CpuSet, MAX_CPUS};
use sync::SpinLock;

use super::{
    acpi::Machine,
    cpu::{self, Features},
    irq, paging, port,
};

/// The one-shot timer of this CPU.
pub const VECTOR_TIMER: u8 = 0xf0;
/// Look at the run queue.
pub const VECTOR_RESCHED: u8 = 0xf1;
/// Look for flush requests.
pub const VECTOR_FLUSH: u8 = 0xf2;
/// Stop for good.
pub const VECTOR_STOP: u8 = 0xf3;
/// The first serial port has input.
pub const VECTOR_SERIAL: u8 = 0xf4;
/// Only ends a `hlt`, while CPUs start. Not for others.
pub const VECTOR_WAKE: u8 = 0xf5;
/// Counts down what [`interrupt_all`] waits for. Not for others.
pub const VECTOR_SYNC: u8 = 0xf6;
/// What the APIC raises when an interrupt went away before it was delivered: nothing to do, and no [`eoi`].
pub const VECTOR_SPURIOUS: u8 = 0xff;

const MSR_BASE: u32 = 0x1b;
const BASE_X2: u64 = 1 << 10;
const BASE_ENABLE: u64 = 1 << 11;

/// Registers, as offsets in the xAPIC's page; an x2APIC's MSR is `0x800 + offset / 16`.
const TASK_PRIORITY: u32 = 0x80;
const EOI: u32 = 0xb0;
const SPURIOUS: u32 = 0xf0;
const REQUESTED: u32 = 0x200;
const ICR: u32 = 0x300;
const ICR_HIGH: u32 = 0x310;
const LVT_TIMER: u32 = 0x320;
const LVT_LINT0: u32 = 0x350;
const LVT_LINT1: u32 = 0x360;
const LVT_ERROR: u32 = 0x370;
const TIMER_INITIAL: u32 = 0x380;
const TIMER_CURRENT: u32 = 0x390;
const TIMER_DIVIDE: u32 = 0x3e0;

const MASKED: u32 = 1 << 16;
const TSC_DEADLINE: u32 = 2 << 17;
const DELIVERY_NMI: u32 = 4 << 8;
const DELIVERY_INIT: u32 = 5 << 8;
const DELIVERY_STARTUP: u32 = 6 << 8;
const DELIVERY_PENDING: u32 = 1 << 12;
const LEVEL_ASSERT: u32 = 1 << 14;
const ALL_BUT_SELF: u32 = 3 << 18;

/// Where the xAPIC's registers are mapped; 0 with x2APIC.
static REGISTERS: AtomicU64 = AtomicU64::new(0);
static IDS: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];
/// Whether "all but self" means the kernel's CPUs and no others.
static BROADCAST: AtomicBool = AtomicBool::new(false);

#[inline]
fn x2apic() -> bool {
    // Relaxed: written by `init`, before any other CPU starts.
    REGISTERS.load(Ordering::Relaxed) == 0
}

#[inline]
fn register(at: u32) -> *mut u32 {
    // Relaxed: as in `x2apic`.
    core::ptr::with_exposed_provenance_mut(REGISTERS.load(Ordering::Relaxed) as usize + at as usize)
}

#[inline]
fn read(at: u32) -> u32 {
    // SAFETY: a register of this CPU's APIC, in the mode that `init_cpu` has set; none of those above acts on a read.
    unsafe { if x2apic() { cpu::rdmsr(0x800 + at / 16) as u32 } else { register(at).read_volatile() } }
}

/// # Safety
/// The register takes the value, and its effect keeps memory safe.
#[inline]
unsafe fn write(at: u32, value: u32) {
    // SAFETY: the caller's; a register of this CPU's APIC.
    unsafe {
        if x2apic() {
            cpu::wrmsr(0x800 + at / 16, value.into());
        } else {
            register(at).write_volatile(value);
        }
    }
}

/// Find and enable the APICs, on the boot CPU: local ones and the I/O APIC; all of the latter's inputs are off.
pub fn init(machine: &Machine) {
    if !cpu::features().contains(Features::X2APIC) {
        let at = PhysAddr::new(machine.local_apic).and_then(|p| paging::map_device(p.frame()));
        // Relaxed, here and below: other CPUs start later.
        REGISTERS.store(at.expect("no memory to map the APIC").as_u64(), Ordering::Relaxed);
    }
    for (slot, &id) in IDS.iter().zip(machine.apic_ids()) {
        slot.store(id, Ordering::Relaxed);
    }
    // The old pair of interrupt controllers: off.
    // SAFETY: their mask registers.
    unsafe {
        port::outb(0x21, 0xff);
        port::outb(0xa1, 0xff);
    }
    init_cpu();
    io_apic::init(machine);
}

/// Enable this CPU's APIC. Its own inputs are off.
pub(super) fn init_cpu() {
    // SAFETY: as the manual has it; after this, `read` and `write` are in the mode that they expect.
    unsafe {
        let base = cpu::rdmsr(MSR_BASE) | BASE_ENABLE;
        cpu::wrmsr(MSR_BASE, if x2apic() { base | BASE_X2 } else { base });
        write(TASK_PRIORITY, 0);
        for lvt in [LVT_TIMER, LVT_LINT0, LVT_LINT1, LVT_ERROR] {
            write(lvt, MASKED);
        }
        write(TIMER_DIVIDE, 0b1011); // by 1
        write(SPURIOUS, 0x100 | u32::from(VECTOR_SPURIOUS));
    }
}

/// The number of `cpu`'s local APIC.
pub fn apic_id(cpu: CpuId) -> u32 {
    // Relaxed: see `init`.
    IDS[cpu.index()].load(Ordering::Relaxed)
}

/// Say that the interrupt being handled has been dealt with: once for every vector from 32 on but
/// [`VECTOR_SPURIOUS`].
#[inline]
pub fn eoi() {
    // SAFETY: lets the next interrupt come.
    unsafe { write(EOI, 0) }
}

/// Write the interrupt command register. Interrupts are off: with xAPIC it takes two writes.
///
/// # Safety
/// What the command does to its target keeps memory safe.
unsafe fn command(destination: u32, low: u32) {
    // SAFETY: the caller's.
    unsafe {
        if x2apic() {
            // MSR writes to an x2APIC overtake earlier stores (SDM vol. 3A, 10.12.3): the target must see those.
            asm!("mfence", "lfence", options(nostack, preserves_flags));
            cpu::wrmsr(0x800 + ICR / 16, u64::from(destination) << 32 | u64::from(low));
        } else {
            while read(ICR) & DELIVERY_PENDING != 0 {
                core::hint::spin_loop();
            }
            write(ICR_HIGH, destination << 24);
            write(ICR, low);
        }
    }
}

/// Raise `vector` on `cpus`, which may include this CPU. What this CPU stored before is visible to the handlers.
pub fn send(cpus: &CpuSet, vector: u8) {
    let _off = irq::Off::new();
    let low = u32::from(vector) | LEVEL_ASSERT;
    // Relaxed: a flag that goes up once; either way is right.
    let broadcast = BROADCAST.load(Ordering::Relaxed);
    let others = cpu::count() - 1;
    // SAFETY: vectors have handlers, which keep memory safe whenever they run.
    unsafe {
        if broadcast && others > 1 && cpus.len() == others && !cpus.contains(cpu::id()) {
            command(0, low | ALL_BUT_SELF);
        } else {
            for cpu in cpus.iter() {
                command(apic_id(cpu), low);
            }
        }
    }
}

/// CPUs that have yet to take the interrupt of [`interrupt_all`].
static UNSYNCED: AtomicU32 = AtomicU32::new(0);
static SYNC: SpinLock<()> = SpinLock::new(());

/// Interrupt every other CPU and wait until each has taken it, which is a full memory barrier there. Interrupts are on,
/// and the caller does not sleep meanwhile.
pub fn interrupt_all() {
    debug_assert!(irq::enabled(), "two callers would wait for each other");
    let _one_at_a_time = SYNC.lock();
    let mut others = CpuSet::first(cpu::count());
    others.remove(cpu::id());
    // Release: what the caller did before is visible to the handlers; partner of the RMW in `on_sync`.
    UNSYNCED.store(others.len() as u32, Ordering::Release);
    send(&others, VECTOR_SYNC);
    // Acquire: what the others did before they took it is visible after; partner of the RMW in `on_sync`.
    while UNSYNCED.load(Ordering::Acquire) != 0 {
        cpu::pause();
    }
}

/// Called by `wake_entry`: that the interrupt came is all.
pub(super) extern "C" fn on_wake() {
    eoi();
}

/// Called by `sync_entry`.
pub(super) extern "C" fn on_sync() {
    // AcqRel: partner of both accesses in `interrupt_all`.
    UNSYNCED.fetch_sub(1, Ordering::AcqRel);
    eoi();
}

/// Raise a non-maskable interrupt on every other CPU of the kernel.
pub fn send_nmi_to_others() {
    let _off = irq::Off::new();
    for cpu in (0..cpu::count()).filter_map(CpuId::new).filter(|&c| c != cpu::id()) {
        // SAFETY: the handler stops the CPU if there is a panic, else returns.
        unsafe { command(apic_id(cpu), LEVEL_ASSERT | DELIVERY_NMI) };
    }
}

/// INIT to all other CPUs: they wait for [`broadcast_startup`].
///
/// # Safety
/// None of them runs anything.
pub(super) unsafe fn broadcast_init() {
    let _off = irq::Off::new();
    // SAFETY: the caller's.
    unsafe { command(0, LEVEL_ASSERT | DELIVERY_INIT | ALL_BUT_SELF) }
}

/// Start-up to all other CPUs that wait for it: they begin in real mode in `page` (below 1 MiB).
///
/// # Safety
/// What is in the page keeps memory safe on every CPU that the machine has.
pub(super) unsafe fn broadcast_startup(page: u64) {
    let _off = irq::Off::new();
    // SAFETY: the caller's.
    unsafe { command(0, LEVEL_ASSERT | DELIVERY_STARTUP | ALL_BUT_SELF | (page >> 12) as u32) }
}

/// All CPUs are in the kernel, and no others answer: one command may reach all of them.
pub(super) fn allow_broadcast() {
    // Relaxed: see `send`.
    BROADCAST.store(true, Ordering::Relaxed);
}

/// Whether `vector`'s interrupt waits for this CPU to take it.
pub(super) fn requested(vector: u8) -> bool {
    read(REQUESTED + u32::from(vector / 32) * 16) >> (vector % 32) & 1 != 0
}

/// Let this CPU's timer raise `vector`: when the TSC passes a deadline, or when the count has run down once.
pub(super) fn timer_mode(vector: u8, deadline: bool) {
    // SAFETY: the vector has a handler.
    unsafe {
        write(LVT_TIMER, u32::from(vector) | if deadline { TSC_DEADLINE } else { 0 });
        // The mode must be set before the first deadline is written (SDM vol. 3A, 10.5.4.1).
        asm!("mfence", options(nostack, preserves_flags));
    }
}

/// Let the timer count down from `count`, or stop it with 0.
#[inline]
pub(super) fn timer_start(count: u32) {
    // SAFETY: raises the timer's vector, later.
    unsafe { write(TIMER_INITIAL, count) }
}

/// Where the count is.
pub(super) fn timer_count() -> u32 {
    read(TIMER_CURRENT)
}

mod io_apic {
    use addr::PhysAddr;

    use super::{MASKED, Machine, VECTOR_SERIAL, apic_id, paging};
    use percpu::CpuId;

    const VERSION: u32 = 1;
    const REDIRECTION: u32 = 0x10;

    /// All inputs off, but COM1's to the boot CPU: edge-triggered and active high, as ISA interrupts are.
    pub fn init(machine: &Machine) {
        let (at, first) = machine.io_apic;
        let Some(at) = PhysAddr::new(at).filter(|a| a.as_u64() != 0) else { return };
        let page = paging::map_device(at.frame()).expect("no memory to map the I/O APIC").as_u64();
        let select: *mut u32 = core::ptr::with_exposed_provenance_mut((page + at.as_u64() % 4096) as usize);
        // SAFETY: the register pair of the I/O APIC: select at 0, data at 16 bytes; nobody else uses it.
        unsafe {
            let write = |register: u32, value: u32| {
                select.write_volatile(register);
                select.add(4).write_volatile(value);
            };
            select.write_volatile(VERSION);
            let last = select.add(4).read_volatile() >> 16 & 0xff;
            for input in 0..=last {
                write(REDIRECTION + 2 * input, MASKED);
            }
            let input = machine.com1_gsi - first;
            if input <= last {
                write(REDIRECTION + 2 * input + 1, apic_id(CpuId::default()) << 24);
                write(REDIRECTION + 2 * input, VECTOR_SERIAL.into());
            }
        }
    }
}

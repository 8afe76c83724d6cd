//! What the firmware's tables say of CPUs, interrupt controllers and the power-management timer; of nodes, see `numa`.
//!
//! Read before there is a heap, so the result lives in a static.

use core::{cell::UnsafeCell, ptr::NonNull};

use acpi::{
    AcpiHandler, AcpiTables, PhysicalMapping,
    fadt::Fadt,
    madt::{Madt, MadtEntry},
};
use percpu::MAX_CPUS;

use super::{boot::Info, cpu, numa, paging};

/// The machine according to the firmware.
pub struct Machine {
    apic_ids: [u32; MAX_CPUS],
    cpus: usize,
    /// Physical address of the local APICs' registers.
    pub local_apic: u64,
    /// Physical address of the I/O APIC that serves [`Self::com1_gsi`], 0 if there is none, and its first input.
    pub io_apic: (u64, u32),
    /// The global interrupt number of ISA interrupt 4, the first serial port.
    pub com1_gsi: u32,
    /// I/O port of the power-management timer, which counts 3,579,545 Hz.
    pub pm_timer: Option<u16>,
    /// CMOS register that holds the century, 0 if none does.
    pub century: u8,
}

impl Machine {
    /// The local APIC's number of each usable CPU, in order of [`percpu::CpuId`]: the boot CPU, then as the firmware
    /// lists them.
    pub fn apic_ids(&self) -> &[u32] {
        &self.apic_ids[..self.cpus]
    }
}

struct Cell(UnsafeCell<Machine>);
// SAFETY: written by `init`, on the boot CPU before others run.
unsafe impl Sync for Cell {}
static MACHINE: Cell = Cell(UnsafeCell::new(Machine {
    apic_ids: [0; MAX_CPUS],
    cpus: 1,
    local_apic: 0xfee0_0000,
    io_apic: (0, 0),
    com1_gsi: 4,
    pm_timer: None,
    century: 0,
}));

/// Tables are reached by the direct map.
#[derive(Clone)]
pub(super) struct Direct;

impl AcpiHandler for Direct {
    unsafe fn map_physical_region<T>(&self, at: usize, size: usize) -> PhysicalMapping<Self, T> {
        let ptr = paging::ensure_direct(at as u64, size as u64);
        // SAFETY: mapped now, for ever, for `size` bytes.
        unsafe { PhysicalMapping::new(at, NonNull::new_unchecked(ptr.cast()), size, size, Direct) }
    }
    fn unmap_physical_region<T>(_: &PhysicalMapping<Self, T>) {}
}

/// The local APIC's number of the CPU that asks.
pub(super) fn own_apic_id() -> u32 {
    // Leaf 0xb has all 32 bits; it may be there without x2APIC, and may be empty.
    match cpu::cpuid(0xb, 0) {
        [_, 0, ..] => cpu::cpuid(1, 0)[1] >> 24,
        [.., id] => id,
    }
}

/// Read the tables below the root pointer that the loader names, and set [`cpu::count`]. Without tables: one CPU, no I/O
/// APIC, one node.
pub fn init(info: &Info) -> &'static Machine {
    // SAFETY: the boot CPU, once; see `Cell`.
    let machine = unsafe { &mut *MACHINE.0.get() };
    machine.apic_ids[0] = own_apic_id();
    // SAFETY: the loader says that it is there.
    let tables = unsafe { AcpiTables::from_rsdp(Direct, info.rsdp() as usize) }.ok();
    if let Some(tables) = &tables {
        if let Ok(madt) = tables.find_table::<Madt>() {
            read_madt(machine, &madt);
        }
        if let Ok(fadt) = tables.find_table::<Fadt>() {
            machine.century = fadt.century;
            if let Ok(Some(timer)) = fadt.pm_timer_block()
                && timer.address_space == acpi::address::AddressSpace::SystemIo
            {
                machine.pm_timer = u16::try_from(timer.address).ok();
            }
        }
    }
    cpu::set_count(machine.cpus);
    numa::init(tables.as_ref(), machine, info);
    machine
}

fn read_madt(machine: &mut Machine, madt: &PhysicalMapping<Direct, Madt>) {
    // An entry counts if its CPU is enabled (bit 0); one that could be plugged in later does not.
    const ENABLED: u32 = 1;
    // First where ISA interrupt 4 goes, then which I/O APIC serves that: the inputs are numbered on across them.
    for entry in madt.get().entries() {
        match entry {
            MadtEntry::LocalApic(e) if e.flags & ENABLED != 0 => add(machine, e.apic_id.into()),
            MadtEntry::LocalX2Apic(e) if e.flags & ENABLED != 0 => add(machine, e.x2apic_id),
            MadtEntry::LocalApicAddressOverride(e) => machine.local_apic = e.local_apic_address,
            MadtEntry::InterruptSourceOverride(e) if e.irq == 4 => {
                machine.com1_gsi = e.global_system_interrupt
            }
            _ => {}
        }
    }
    for entry in madt.get().entries() {
        if let MadtEntry::IoApic(e) = entry {
            let (at, first) = (e.io_apic_address, e.global_system_interrupt_base);
            if first <= machine.com1_gsi && (machine.io_apic.0 == 0 || first > machine.io_apic.1) {
                machine.io_apic = (at.into(), first);
            }
        }
    }
}

fn add(machine: &mut Machine, apic_id: u32) {
    let known = machine.apic_ids().contains(&apic_id);
    // Without x2APIC a number above 254 can't be addressed (255 is the broadcast).
    let reachable = apic_id < 255 || cpu::features().contains(cpu::Features::X2APIC);
    if !known && reachable && machine.cpus < MAX_CPUS {
        machine.apic_ids[machine.cpus] = apic_id;
        machine.cpus += 1;
    }
}
